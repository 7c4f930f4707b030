"""Signals, forks and threads: a program that uses the library stays the master of its process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from flashmoe import Generator, Model, Sampler, _core
from flashmoe.batch import Batch
from flashmoe.engine import Engine
from flashmoe.errors import CancelledError, ClosedError
from reliability import ctrl_c, threads

PROMPT = list(range(40))
GREEDY = Sampler(temperature=0)

LEFT_OPEN = "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
"""A signal just after a file was opened leaves it to the finaliser, which closes it and warns."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "model"
    tiny.write(path, "qwen3_5_moe", seed=31, vocab_size=320)
    tiny.tokenizer(path, 320)
    return path


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    with Model(path, kv_dtype="f32", threads=2) as model:
        yield model


# ---- signals ---------------------------------------------------------------------------


@pytest.mark.filterwarnings(LEFT_OPEN)
def test_ctrl_c_at_any_time(tmp_path: Path) -> None:
    for name, outcome in ctrl_c.campaign(tmp_path, times=8, seed=1).items():
        assert outcome.wrong == 0, name
        assert len(outcome.late) >= 4, name  # of 8: the others ended before
        assert max(outcome.late) < 2, name


@pytest.mark.filterwarnings(LEFT_OPEN)
def test_ctrl_c_while_downloading_and_in_the_chat(tmp_path: Path) -> None:
    pytest.importorskip("prompt_toolkit")
    for name, outcome in ctrl_c.programs(tmp_path, times=4, seed=3).items():
        assert outcome.wrong == 0, name
        assert len(outcome.late) >= 1, name
        assert max(outcome.late) < 2, name


def test_ctrl_c_is_the_main_threads_though_others_compute(path: Path) -> None:
    """A call that ends on another thread takes nothing from the one on the main thread."""
    program = """
import os, signal, sys, threading, time
from flashmoe import Model
model = Model(sys.argv[1], threads=1)
def small():
    while True:
        model.logits([1])
threading.Thread(target=small, daemon=True).start()
signal.setitimer(signal.ITIMER_REAL, 0)
sent = []
def send():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
ids = [i % 300 for i in range(4000)]
start = time.monotonic()
model.logits(ids)
whole = time.monotonic() - start
threading.Timer(0.1, send).start()
try:
    model.logits(ids)
except KeyboardInterrupt:
    late = time.monotonic() - sent[0]
    print("late" if late > max(0.5, whole / 2) else "soon", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "soon\n", done.stdout + done.stderr


def test_importing_changes_nothing_in_the_process() -> None:
    program = """
import os, signal, threading
def state():
    status = open("/proc/self/status").read().splitlines() if os.path.exists("/proc/self") else []
    masks = [line for line in status if line.startswith(("Sig", "Shd", "Threads"))]
    handlers = [signal.getsignal(n) for n in signal.valid_signals()]
    return masks, handlers, dict(os.environ), threading.active_count()
import numpy
before = state()
import flashmoe, flashmoe._core, flashmoe.generator, flashmoe.model
assert state() == before, (before, state())
print("the same")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "the same\n", done.stderr


# ---- forks -----------------------------------------------------------------------------


def in_child(what: Callable[[], Any]) -> str:
    """What a call in a forked child raised, and how long that took; the child ends in order."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        start = time.monotonic()
        try:
            what()
            said = "nothing"
        except BaseException as error:  # all of it is for the parent to judge
            said = f"{type(error).__name__} {'slow' if time.monotonic() - start > 0.5 else 'soon'}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    assert os.waitpid(pid, 0)[1] == 0
    return said


def test_a_forked_process_is_told(model: Model) -> None:
    generator = Generator(model, GREEDY)
    want = generator.generate(PROMPT, max_tokens=8).token_ids
    stream = generator.stream(PROMPT)
    next(stream)
    session = model.new_session()
    engine = Engine(model)
    ids, row = np.array(PROMPT, np.int32), np.empty((1, model.vocab_size), np.float32)
    uses: list[Callable[[], Any]] = [
        lambda: model.logits(PROMPT),
        lambda: model.info(),
        lambda: Generator(model).generate("hello"),
        lambda: generator.generate(PROMPT),
        lambda: next(stream),
        lambda: generator.generate_batch([PROMPT, PROMPT]),
        lambda: model.new_session(),
        lambda: session.eval(ids, row),
        lambda: session.reset(),
        lambda: session.save(),
        lambda: engine.drain(1),
    ]
    for use in uses:
        assert in_child(use) == "ForkedProcessError soon"
    for end in (model.close, generator.close, session.close, engine.close):
        assert in_child(end) == "nothing"
    engine.close()
    session.close()
    assert generator.generate(PROMPT, max_tokens=8).token_ids == want


def test_forked_while_another_thread_computes(model: Model) -> None:
    """Locks that are held at that moment stay locked for ever in the child."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            model.logits(PROMPT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: model.logits(PROMPT)) == "ForkedProcessError soon"
            assert in_child(model.close) == "nothing"
    finally:
        stop.set()
        thread.join()


def answer(path: Path) -> list[int]:
    with Model(path, kv_dtype="f32") as model:
        return list(Generator(model, GREEDY).generate(PROMPT, max_tokens=8).token_ids)


def test_a_forked_process_may_open_its_own(path: Path, model: Model) -> None:
    want = answer(path)

    def check() -> None:
        assert answer(path) == want

    assert in_child(check) == "nothing"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start_processes(path: Path, tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, sys
from flashmoe import Generator, Model, Sampler
def answer():
    with Model(sys.argv[1], kv_dtype="f32") as model:
        return str(Generator(model, Sampler(temperature=0)).generate([1, 2], max_tokens=8).text)
if __name__ == "__main__":
    with Model(sys.argv[1]) as before, multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        before.logits([1, 2, 3])
        assert pool.apply_async(answer).get(60) == answer()
        print("the same")
"""
    )
    done = subprocess.run(
        [sys.executable, program, path, method], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "the same\n", done.stderr


# ---- threads ---------------------------------------------------------------------------


def test_threads_share_a_model_until_it_closes(path: Path) -> None:
    """Answers are those of one thread alone; after close() every call says so."""
    seen = threads.campaign(path, calls=10, seconds=20)
    assert seen.wrong == 0
    assert min(seen.calls) >= 10
    assert len(seen.ends) == threads.THREADS
    assert all(after == "ClosedError" for _, after in seen.ends), seen.ends


def test_a_model_closed_just_as_a_session_begins(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() ends all sessions, also one that it could not know of yet."""
    model, made, real = Model(path, threads=1), [], _core.Session

    def session(core: _core.Model) -> _core.Session:
        made.append(real(core))
        model.close()
        return made[-1]

    ids, row = np.array(PROMPT, np.int32), np.empty((1, model.vocab_size), np.float32)
    monkeypatch.setattr(_core, "Session", session)
    with pytest.raises(ClosedError):
        model.new_session()
    with pytest.raises(ClosedError):
        made[0].eval(ids, row)


def test_a_generator_closed_by_another_thread(model: Model) -> None:
    endless = Sampler(temperature=0, logit_bias=dict.fromkeys(model.tokenizer.eos_token_ids, -1e9))
    for wait in (0.0, 0.001, 0.005, 0.02):
        generator = Generator(model, endless)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(generator.generate, PROMPT, max_tokens=100000)
            time.sleep(wait)
            generator.close()
            with pytest.raises((ClosedError, CancelledError)):
                call.result(timeout=20)


@pytest.mark.parametrize("what", ["generate", "load", "batch"])
def test_a_generator_closed_just_as_a_call_begins(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the look whether it is open and the session or batch that close() would end."""
    file = tmp_path / "sequence"
    with Generator(model, GREEDY) as other:
        other.generate(PROMPT, max_tokens=2)
        other.save(file)
    generator, made = Generator(model, GREEDY), []

    def closing(make: Callable[..., Any]) -> Callable[..., Any]:
        def maker(*args: Any) -> Any:
            made.append(make(*args))
            generator.close()
            return made[-1]

        return maker

    monkeypatch.setattr(model, "new_session", closing(model.new_session))
    monkeypatch.setattr("flashmoe.generator.Batch", closing(Batch))
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: generator.generate(PROMPT, max_tokens=4),
        "load": lambda: generator.load(file),
        "batch": lambda: generator.generate_batch([PROMPT, PROMPT], max_tokens=4),
    }
    with pytest.raises(ClosedError):
        calls[what]()
    assert len(made) == 1
    if what != "batch":
        with pytest.raises(ClosedError):
            made[0].eval(np.array(PROMPT, np.int32), np.empty((1, model.vocab_size), np.float32))


def test_a_generator_closed_at_any_moment(path: Path, tmp_path: Path) -> None:
    """Whatever runs says that it is closed, or cancelled, or was done before."""
    rng, file = random.Random(5), tmp_path / "sequence"
    before = sys.getswitchinterval()
    with Model(path, threads=1) as model, ThreadPoolExecutor(1) as pool:
        with Generator(model, GREEDY) as first:
            first.generate(PROMPT, max_tokens=2)
            first.save(file)
        calls: list[Callable[[Generator], Any]] = [
            lambda g: g.generate(PROMPT, max_tokens=3),
            lambda g: g.generate_batch([PROMPT, PROMPT], max_tokens=3),
            lambda g: (g.load(file), g.generate([*PROMPT, 7], max_tokens=3), g.save(file)),
        ]
        sys.setswitchinterval(1e-6)
        try:
            for i in range(150):
                generator = Generator(model, GREEDY)
                call = pool.submit(calls[i % 3], generator)
                for _ in range(rng.randrange(3000)):
                    pass
                generator.close()
                error = call.exception(timeout=20)
                assert error is None or isinstance(error, ClosedError | CancelledError), error
        finally:
            sys.setswitchinterval(before)


def test_python_goes_on_during_a_call(path: Path) -> None:
    """No long call holds the GIL, nor does one that waits for it."""
    gaps: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    with Model(path, kv_dtype="f32", threads=1) as model:
        ids = [i % 300 for i in range(4000)]
        begin = time.monotonic()
        model.logits(ids)
        whole = time.monotonic() - begin
        busy = threading.Thread(target=lambda: [model.logits(ids) for _ in range(2)])
        asking = threading.Thread(
            target=lambda: [(model.info(), model.expert_uses(), model.layer_seconds())
                            for _ in range(8)])  # fmt: skip
        ticking = threading.Thread(target=tick)
        for thread in (ticking, busy, asking):
            thread.start()
        busy.join()
        asking.join()
        stop.set()
        ticking.join()
    assert len(gaps) > 20
    assert sorted(gaps)[len(gaps) * 9 // 10] < max(0.05, whole / 20), sorted(gaps)[-9:]


def test_a_program_that_ends_meanwhile_ends(path: Path) -> None:
    """Leaving the interpreter with a stream open, a thread at work and nothing closed."""
    program = """
import sys, threading, time
from flashmoe import Generator, Model
model = Model(sys.argv[1])
stream = Generator(model).stream([1, 2, 3])
next(stream)
other = Generator(model)
def work():
    while True:
        other.generate([1, 2], max_tokens=50)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("end", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_a_program_ends_while_a_thread_waits_for_the_gil(path: Path) -> None:
    """Python would end the thread inside of our functions, and with it, by abort(), the process."""
    program = """
import sys, threading, time
from flashmoe import Model
model = Model(sys.argv[1], threads=1)
model.logits([1])
class Last:
    def __del__(self, sleep=time.sleep):
        sleep(0.2)  # another thread may have the GIL, and is ended for it
sys.last = Last()  # goes when the interpreter has nearly ended
def work():
    while True:
        model.logits([1] * 2000)
sys.setswitchinterval(5)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
print("end", flush=True)
until = time.monotonic() + 0.5
while time.monotonic() < until:
    pass  # keeps the GIL, which the thread wants by now
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_sigterm_ends_a_server_in_order() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "flashmoe", "serve", "--demo", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if "http://" in line:
                break
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
