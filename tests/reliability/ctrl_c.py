"""SIGINT at random times: how soon it ends a call, and that the next call is what it would be.

``python tests/reliability/ctrl_c.py --times 200`` prints a table; tests run it with fewer.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging

import tiny
from flashmoe import Generator, Model, Sampler, convert, errors, hub, verify
from test_hub import served

PROMPT = [i % 190 for i in range(1500)]
STORY = "Tell me a short story about a fox."


class Stopped:
    """What became of one kind of call.

    Attributes:
        late: Seconds from signal to exception.
        ended: Calls that ended before the signal.
        wrong: Calls after which something was not as it should be.
    """

    def __init__(self) -> None:
        self.late: list[float] = []
        self.ended = 0
        self.wrong = 0


def interrupt(call: Callable[[], Any], after: float, outcome: Stopped) -> bool:
    """Call, send SIGINT meanwhile; whether the call ended with KeyboardInterrupt."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    try:
        timer.start()
        call()
        timer.cancel()
        timer.join()
        time.sleep(0)  # a signal that came just now is raised here
    except KeyboardInterrupt:
        outcome.late.append(time.monotonic() - sent[0])
        timer.join()
        return True
    outcome.ended += 1
    outcome.wrong += bool(sent)  # somebody kept the signal to himself
    return False


def duration(call: Callable[[], Any]) -> float:
    """Seconds, the fastest of five: the first ones are slow, and others may be at work."""
    took = []
    for _ in range(5):
        start = time.monotonic()
        call()
        took.append(time.monotonic() - start)
    return min(took)


def generating(path: Path, times: int, rng: random.Random) -> dict[str, Stopped]:
    """Prefill and decode."""
    found = {"prefill": Stopped(), "decode": Stopped()}
    with Model(path, kv_dtype="f32") as model, Generator(model, Sampler(temperature=0)) as g:
        calls: dict[str, Callable[[], Any]] = {
            "prefill": lambda: g.generate(PROMPT, max_tokens=1),
            "decode": lambda: g.generate(PROMPT[:9], max_tokens=400),
        }
        want = g.generate(PROMPT[:100], max_tokens=8).token_ids
        for name, call in calls.items():
            whole = duration(call)
            for _ in range(times):
                interrupt(call, rng.uniform(0, whole), found[name])
                found[name].wrong += g.generate(PROMPT[:100], max_tokens=8).token_ids != want
    return found


def loading(path: Path, times: int, rng: random.Random) -> Stopped:
    """Opening a model; the next one opens and answers."""
    found = Stopped()

    def load() -> list[int]:
        with Model(path, kv_dtype="f32") as model, Generator(model, Sampler(temperature=0)) as g:
            return list(g.generate(PROMPT[:20], max_tokens=4).token_ids)

    want, whole = load(), duration(load)
    for _ in range(times):
        interrupt(load, rng.uniform(0, whole), found)
        found.wrong += load() != want
    return found


@contextmanager
def suppress_finished() -> Iterator[None]:
    """The signal may have come when all was done."""
    try:
        yield
    except errors.ConversionError as error:
        if "finished model already" not in str(error):
            raise


def converting(source: Path, folder: Path, times: int, rng: random.Random) -> Stopped:
    """A conversion that is stopped goes on later, and gives the same bytes."""
    found = Stopped()

    def run(out: Path) -> None:
        convert(source, out, bits=4, group_size=32, progress=False)

    def files(out: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in out.iterdir()}

    def fresh() -> Path:
        shutil.rmtree(folder / "out", ignore_errors=True)
        return folder / "out"

    whole = duration(lambda: run(fresh()))
    want = files(folder / "out")
    for _ in range(times):
        out = fresh()
        stopped = interrupt(lambda: run(out), rng.uniform(0, whole), found)  # noqa: B023
        if stopped:
            with suppress_finished():
                run(out)
        verify(out, progress=False)
        found.wrong += files(out) != want
    return found


def pulling(source: Path, folder: Path, times: int, rng: random.Random) -> Stopped:
    """A download from a slow hub that is stopped is done by the next call, and whole."""
    found = Stopped()
    fresh = iter(range(10**6))

    def is_whole(there: Path) -> bool:
        return all((there / p.name).read_bytes() == p.read_bytes() for p in source.iterdir())

    with pytest.MonkeyPatch.context() as patch, served(source, folder, patch) as server:

        def pull(pause: float) -> Path:
            server.pause = pause
            return hub.resolve("acme/tiny")

        def empty() -> None:
            patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / f"{next(fresh)}"))

        def pull_all() -> None:
            empty()
            pull(0.005)

        whole = duration(pull_all)
        for _ in range(times):
            empty()
            if rng.random() < 0.3:
                interrupt(lambda: pull(0.3), rng.uniform(0, 2), found)
            else:
                interrupt(lambda: pull(0.005), rng.uniform(0, whole), found)
            found.wrong += not is_whole(pull(0))
    return found


def chatting(folder: Path, times: int, rng: random.Random) -> Stopped:
    """The chat in a terminal: an answer that is stopped, and after it the prompt and the next."""
    from test_chat_cli import Terminal

    found = Stopped()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        terminal = Terminal("demo", "-t", "0", "--memory", "8MB")
    terminal.until("/help for commands")
    terminal.ready()

    def say(text: str) -> None:
        terminal.type(text + "\r")
        terminal.until("\x1b[?2004l")  # the line was taken

    def ask_for_a_story() -> float:
        say("/clear")
        terminal.ready()
        say(STORY)
        while not termios.tcgetattr(terminal.fd)[3] & termios.ISIG:
            time.sleep(0.0002)  # Ctrl-C is still a key of the line editor
        return time.monotonic()

    took = []
    for _ in range(3):
        start = ask_for_a_story()
        terminal.until("tok/s")
        took.append(time.monotonic() - start)
        terminal.ready()
    whole = min(took)
    for _ in range(times):
        ask_for_a_story()
        time.sleep(rng.uniform(0, whole))
        sent = time.monotonic()
        terminal.type("\x03")
        try:
            told = terminal.until_any("[stopped]", "once more leaves", seconds=5)
        except AssertionError:
            told = "nothing"
            found.wrong += 1
            print(f"unheard: {terminal.seen!r}")
        if told == "[stopped]":
            found.late.append(time.monotonic() - sent)
        else:
            found.ended += 1
        terminal.ready()
        say("/clear")
        terminal.ready()
        say("What is 12 * 7?")
        found.wrong += "12 times 7 is 84." not in terminal.until("tok/s")
        terminal.ready()
    found.wrong += terminal.close() != 0
    return found


def campaign(folder: Path, times: int, seed: int = 0) -> dict[str, Stopped]:
    """All kinds of calls, each interrupted so many times.

    Args:
        folder: Where models go.
        times: Signals for each kind.
        seed: Of their moments.
    """
    rng = random.Random(seed)
    path, source = folder / "model", folder / "source"
    tiny.write(path, "qwen3_5_moe", seed=31, vocab_size=320, num_hidden_layers=8)
    tiny.write(source, "qwen3_moe", seed=2, dtype="bf16", num_hidden_layers=3)
    found = generating(path, times, rng)
    found["load"] = loading(path, times, rng)
    found["convert"] = converting(source, folder, times, rng)
    return found


def programs(folder: Path, times: int, seed: int = 0) -> dict[str, Stopped]:
    """The same of what waits for others: a download, and a person's chat.

    Args:
        folder: Where models go.
        times: Signals for each kind.
        seed: Of their moments.
    """
    rng = random.Random(seed)
    source = folder / "repository"
    tiny.write(source, "qwen3_moe", seed=2, dtype="bf16", num_hidden_layers=2, shards=3)
    return {
        "pull": pulling(source, folder, times, rng),
        "chat": chatting(folder, times, rng),
    }


def main() -> int:
    """Print what was found; 1 if something was late or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=200, help="signals for each kind of call")
    parser.add_argument("--limit", type=float, default=0.2, help="latest, in seconds")
    parser.add_argument("--programs", action="store_true", help="only downloads and the chat")
    options = parser.parse_args()
    hub_logging.set_verbosity_error()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        found = programs(Path(folder), options.times)
        found |= campaign(Path(folder), options.times) if not options.programs else {}
    bad = 0
    for name, outcome in found.items():
        late = sorted(outcome.late)
        bad += outcome.wrong + sum(seconds > options.limit for seconds in late)
        print(
            f"{name:8} stopped {len(late):4}  ended before {outcome.ended:4}  "
            f"median {late[len(late) // 2] * 1e3:6.1f} ms  latest {late[-1] * 1e3:6.1f} ms  "
            f"wrong afterwards {outcome.wrong}"
        )
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
