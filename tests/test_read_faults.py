"""Expert reads go wrong in every way: the right tokens or one exception, then all is well again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "fault_shim.c"
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's"),
    pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler"),
]

SWEEP = """
import ctypes, os, sys
import flashmoe
from flashmoe import BudgetError, ExpertReadError, Generator, IntegrityError, Model, Sampler

shim = ctypes.CDLL(None)
NOTHING, IO_ERROR, END_OF_FILE, NO_MEMORY, INTERRUPTED, SHORT, BIT_FLIP = range(7)
path, step, read = flashmoe.demo_model_path(), int(sys.argv[1]), sys.argv[2]

def smallest():
    for budget in range(3_000_000, 40_000_000, 200_000):
        try:
            return Model(path, memory=budget, threads=1, read=read, guess=False)
        except BudgetError:
            pass

model = smallest()
generator = Generator(model, Sampler(temperature=0))
prompt = model.tokenizer.encode("The experts are read when")
answer = lambda: generator.generate(prompt, max_tokens=6).token_ids
want = answer()
shim.fault_set(0, 0, NOTHING)
assert answer() == want
reads = shim.fault_set(0, 0, NOTHING)
assert reads > 100, reads
files = lambda: len(os.listdir("/proc/self/fd"))
threads = lambda: len(os.listdir("/proc/self/task"))
before = files(), threads()
cases = wrong = 0
for how in (IO_ERROR, END_OF_FILE, NO_MEMORY, INTERRUPTED, SHORT):
    for times in (1, 10**9):
        for at in range(how % step, reads, step):
            if times > 1 and how in (INTERRUPTED, SHORT) and at > reads // 2:
                continue
            ends = how in (INTERRUPTED, SHORT)
            shim.fault_set(at, min(times, 50) if ends else times, how)
            cases += 1
            try:
                got = answer()
            except ExpertReadError as error:
                assert how in (IO_ERROR, END_OF_FILE, NO_MEMORY), error
                assert all(word in str(error) for word in ("layer", "expert", ".bin")), error
            else:
                assert how in (INTERRUPTED, SHORT), (how, at)
                assert got == want
            shim.fault_set(0, 0, NOTHING)
            wrong += answer() != want
assert not wrong
assert (files(), threads()) == before
generator.close()
model.close()

for at in range(12):                    # records are checked when they are first read
    model = smallest()
    generator = Generator(model, Sampler(temperature=0))
    shim.fault_set(at, 1, BIT_FLIP)
    cases += 1
    try:
        got = answer()
    except IntegrityError as error:
        assert "checksum" in str(error)
    else:
        raise AssertionError(f"a flipped bit in read {at} went unnoticed")
    shim.fault_set(0, 0, NOTHING)
    assert answer() == want
    generator.close()
    model.close()
print(cases, "faults")
"""


@pytest.mark.parametrize("read", ["buffered", "direct"])
def test_every_read_fails(tmp_path: Path, read: str) -> None:
    library = tmp_path / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, os.environ.get("FLASHMOE_FAULT_STEP", "29"), read],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 50
