"""The demo model from Python to the emulated GPU: the CPU's text, in few submissions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests"),
    pytest.mark.skipif(
        sys.platform != "linux" or not all(map(shutil.which, ("clang-19", "clang++-19"))),
        reason="needs Linux with clang-19, libobjc-12-dev and libblocksruntime-dev",
    ),
]
COMPILERS = {"CC": "clang-19", "CXX": "clang++-19", "OBJC": "clang-19"}

WRITE = """
import ctypes, json, sys
import numpy as np
import flashmoe
from flashmoe import _core

device, memory, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
fake = ctypes.CDLL(_core.__file__)
fake.fake_metal_count.restype = ctypes.c_uint64
names = ("commits", "encoders", "dispatches", "barriers", "waits")
prompt = "The expert loader reads what the router picks. " * 12 + "The expert loader reads"
with flashmoe.Model(flashmoe.demo_model_path(), device=device, memory=memory) as model:
    ids = np.array(model.tokenizer.encode(prompt), np.int32)
    session, logits = model.new_session(), np.empty((1, model.vocab_size), np.float32)
    for first, last in model.prefill_steps(0, len(ids)):
        session.eval(ids[first:last], logits[: last == len(ids)])
    before = [fake.fake_metal_count(i) for i in range(len(names))]
    written = []
    for _ in range(tokens):
        written.append(int(logits.argmax()))
        session.eval(np.array(written[-1:], np.int32), logits)
    after = [fake.fake_metal_count(i) for i in range(len(names))]
    print(json.dumps({
        "text": model.tokenizer.decode(written), "written": written, "prompt": len(ids),
        "info": {k: v for k, v in model.info().items() if isinstance(v, (str, int))},
        "each": {n: (z - a) / tokens for n, a, z in zip(names, before, after)},
    }))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flashmoe with the Metal device, on an emulated GPU."""
    to = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(to)),
            *("-Ccmake.define.FLASHMOE_METAL=ON", str(ROOT)),
        ],
        env={**os.environ, **COMPILERS}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return to


def run(site: Path, *command: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], text=True, timeout=300, cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), "FLASHMOE_KERNELS": "ref", **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def write(site: Path, device: str, memory: str, schedule: str = "", tokens: int = 64) -> Any:
    return json.loads(run(site, "-c", WRITE, device, memory, str(tokens), FAKE_METAL=schedule))


@pytest.fixture(scope="module")
def cpu(site: Path) -> Any:
    return write(site, "cpu", "1GB")


@pytest.mark.parametrize(
    ("memory", "schedule"),
    [("1GB", ""), ("SMALL", "lazy,order=3,threads=2"), ("1GB", "lazy"), ("SMALL", "order=1")],
)
def test_the_text_is_the_cpus(site: Path, cpu: Any, memory: str, schedule: str) -> None:
    got = write(site, "metal", smallest(site) if memory == "SMALL" else memory, schedule)
    assert got["info"]["device"] == "metal"
    assert (got["text"], got["written"]) == (cpu["text"], cpu["written"])
    assert len(got["written"]) == 64
    assert got["prompt"] == cpu["prompt"] > 64
    if memory == "SMALL":
        assert got["info"]["expert_slots"] <= 32  # of 256: no more than a wave
        assert got["info"]["prefill_rows"] < got["prompt"]  # the prompt goes in several steps
    else:
        assert got["info"]["prefill_rows"] >= got["prompt"]


def smallest(site: Path) -> str:
    """The least memory that the model runs with on Metal, as the error says it."""
    text = run(
        site,
        "-c",
        "import flashmoe\n"
        "try: flashmoe.Model(flashmoe.demo_model_path(), device='metal', memory='1MB')\n"
        "except flashmoe.BudgetError as error: print(error)",
    )
    needed = float(text.split("needs ")[1].split(" GB")[0])
    return f"{needed + 0.0006:.4f}GB"


@pytest.mark.parametrize("schedule", ["", "lazy"])
def test_what_a_token_costs_in_submissions(site: Path, schedule: str) -> None:
    got = write(site, "metal", "1GB", schedule, tokens=24)
    layers, each = got["info"]["num_hidden_layers"], got["each"]
    assert each["commits"] <= 2 * layers + 1
    assert each["waits"] <= layers + 1  # one a layer, for its router, and one for the logits
    assert each["encoders"] == each["commits"]
    counted = [str(ROOT / "benchmarks/metal_roofline.py"), str(site / "flashmoe/demo_model")]
    table = json.loads(run(site, *counted, "--context", "200", "--json"))
    assert each["dispatches"] == sum(row["dispatches"] for row in table.values())


def test_the_selftest_knows_both_devices(site: Path) -> None:
    text = run(site, "-m", "flashmoe", "selftest", "--quick", "--json")
    report = json.loads(text)
    assert report["ok"] and report["same_text"]
    assert [d["device"] for d in report["devices"]] == ["cpu", "metal"]
    assert all(len(d["checks"]) > 100 for d in report["devices"])


def test_auto_takes_metal_if_it_proves_itself(site: Path, tmp_path: Path) -> None:
    script = (
        "import flashmoe\nwith flashmoe.Model(flashmoe.demo_model_path(), memory='1GB') as model:\n"
        "    print(model.info()['device'], '|', model.info()['device_reason'])"
    )
    sound = run(site, "-c", script, XDG_CACHE_HOME=str(tmp_path / "a"))
    assert sound.startswith("metal | it passed")
    old = run(site, "-c", script, XDG_CACHE_HOME=str(tmp_path / "b"), FAKE_METAL="fail=family:1")
    assert old.startswith("cpu | Metal is not used: ") and "older" in old
    broken = run(
        site, "-c", script, XDG_CACHE_HOME=str(tmp_path / "c"), FAKE_METAL="fail=pipeline:9"
    )
    assert broken.startswith("cpu | Metal is not used: ") and "selftest" in broken
    kept = run(site, "-c", script, XDG_CACHE_HOME=str(tmp_path / "c"))
    assert kept == broken  # found out once


ROOM = """
import flashmoe
for memory in ("1GB", "8MB", "1MB"):
    try:
        with flashmoe.Model(flashmoe.demo_model_path(), device="metal", memory=memory) as model:
            print(model.info()["memory"], model.info()["held_bytes"])
    except flashmoe.BudgetError as error:
        print(error)
"""


def test_memory_is_no_more_than_the_gpu_is_meant_to_hold(site: Path) -> None:
    above, below, _ = run(site, "-c", ROOM, FAKE_METAL="working_set=9000000").splitlines()
    memory, held = map(int, above.split())
    assert held <= memory == 9_000_000  # without that limit it holds 13 million
    assert int(below.split()[0]) == 8_000_000
    few = run(site, "-c", ROOM, FAKE_METAL="working_set=3000000").splitlines()
    assert "memory is 0.003 GB, all that the GPU is meant to hold: resident" in few[0]
    assert "memory is 0.001 GB: resident" in few[2]


FAIL = """
import ctypes
import numpy as np
import flashmoe
from flashmoe import _core

ids = np.arange(4, dtype=np.int32)
try:
    with flashmoe.Model(flashmoe.demo_model_path(), device="metal", memory="1GB") as model:
        try:
            model.logits(ids)
        except flashmoe.FlashMoEError as error:
            print(type(error).__name__, error)
        print("then", model.logits(ids)[-1].argmax())
except flashmoe.FlashMoEError as error:
    print(type(error).__name__, error)
left = ctypes.create_string_buffer(256)
print("alive", ctypes.CDLL(_core.__file__).fake_metal_alive(left, 256), left.value.decode())
"""


@pytest.fixture(scope="module")
def sound(site: Path) -> list[str]:
    return run(site, "-c", FAIL, FAKE_METAL="lazy").splitlines()


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("device", "there is no Metal device"),
        ("source", r"DeviceError Fake GPU: the shaders do not compile: program_source:1:1"),
        ("function:3", r"DeviceError kernel \w+ does not compile: no function"),
        ("pipeline:4", r"DeviceError kernel \w+ gives no pipeline: the compiler was made to"),
        ("archive", "then"),  # a cache only
        ("buffer:2", "OutOfMemoryError Metal gives no buffer of"),
        ("command_buffer:3", "DeviceError Fake GPU gives no command"),
        ("encoder:2", "DeviceError Fake GPU gives no command encoder"),
        ("run:3", r"DeviceError .* in a run of \d+ kernels, \w+ to \w+: Caused GPU Timeout"),
        ("lost:2", r"DeviceError .* in a run of \d+ kernels, \w+ to \w+: Device Removed"),
    ],
)
def test_a_failure_of_the_gpu_is_an_error_that_names_it(
    site: Path, sound: list[str], failure: str, said: str
) -> None:
    got = run(site, "-c", FAIL, FAKE_METAL=f"lazy,fail={failure}").splitlines()
    assert re.match(f".*{said}", got[0])
    assert got[-1] == sound[-1] == "alive 0 "
    if failure not in ("device", "source", "buffer:2", "lost:2"):
        assert got[-2] == sound[0]  # the next step is sound


EVERY = """
import ctypes, json, sys
import numpy as np
import flashmoe
from flashmoe import _core

COMMITS, RUN = 0, 9
fake = ctypes.CDLL(_core.__file__)
fake.fake_metal_count.restype = ctypes.c_uint64

def steps(session, logits):
    # A prompt of five tokens and two tokens more: the bits of each step, and why there are no more.
    seen, token = [], np.arange(5, dtype=np.int32)
    try:
        for _ in range(3):
            session.eval(token, logits)
            seen.append(logits.tobytes())
            token = np.array([logits[0].argmax()], np.int32)
    except flashmoe.FlashMoEError as error:
        return seen, f"{type(error).__name__} {error}"
    return seen, None

with flashmoe.Model(sys.argv[1], device="metal", memory="1GB") as model:
    logits = np.empty((1, model.vocab_size), np.float32)
    session = model.new_session()
    want, why = steps(session, logits)  # every expert that is needed is in memory from now on
    assert why is None
    session.reset()
    ends = [fake.fake_metal_count(COMMITS)]
    token = np.arange(5, dtype=np.int32)
    for _ in range(3):
        session.eval(token, logits)
        token = np.array([logits[0].argmax()], np.int32)
        ends.append(fake.fake_metal_count(COMMITS))
    ends = [end - ends[0] for end in ends]
    said, wrong = [], []
    for nth in range(1, ends[-1] + 1):
        session.reset()
        fake.fake_metal_fail(RUN, nth)
        seen, why = steps(session, logits)
        fake.fake_metal_fail(RUN, 0)
        step = next(i for i, end in enumerate(ends[1:]) if nth <= end)
        said.append(why)
        if seen != want[:step] or session.position != (0, 5, 6)[step]:
            wrong.append((nth, step, len(seen)))
        if step:  # the same session takes the failed step again
            token = np.frombuffer(want[step - 1], np.float32).argmax()
            session.eval(np.array([token], np.int32), logits)
            if logits.tobytes() != want[step]:
                wrong.append((nth, "again"))
        session.reset()
        if steps(session, logits) != (want, None):
            wrong.append((nth, "next"))
print(json.dumps([ends[-1], said, wrong]))
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("error=8", "Insufficient Memory"),
        ("lazy,error=2", "Caused GPU Timeout Error"),
        ("error=1", "Impacting Interactivity"),
        ("lazy,error=7", "Insufficient Permission"),
    ],
)
def test_every_submission_fails_once(site: Path, tmp_path: Path, options: str, says: str) -> None:
    """No step gives what a failed submission left behind; it can be taken again, and the next."""
    tiny.write(
        tmp_path / "model", "qwen3_5_moe", seed=5, num_hidden_layers=2, full_attention_interval=2
    )
    submissions, said, wrong = json.loads(
        run(site, "-c", EVERY, str(tmp_path / "model"), FAKE_METAL=options)
    )
    assert not wrong
    assert submissions == len(said) > 10
    named = re.compile(rf"DeviceError .* in a run of \d+ kernels, \w+ to \w+: {says}")
    assert all(named.match(why) for why in said), said
