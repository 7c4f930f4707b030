"""Visits in turns, and what they come to."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flashmoe.bench.cap import capped, command_line
from flashmoe.bench.setting import Setting, in_turns
from flashmoe.errors import FlashMoEError

if TYPE_CHECKING:
    from flashmoe.manifest import Manifest

SCHEMA = 1


class BenchError(FlashMoEError):
    """A visit did not come to an end."""


class Engine(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str:
        """In the results."""
        ...

    def visit(self, setting: Setting, samples: int, prefix: Sequence[str]) -> dict[str, Any]:
        """Measure once, in a process of its own.

        Args:
            setting: What to measure.
            samples: How often within the visit.
            prefix: To be put before the command.

        Returns:
            At least ``samples``: tokens a second.
        """
        ...


@dataclass(frozen=True, slots=True)
class FlashMoE:
    """This library.

    Attributes:
        path: Directory of the model.
        tokens: Tokens to use instead of random ones.
        name: In the results.
    """

    path: Path
    tokens: tuple[int, ...] = ()
    name: str = "flashmoe"

    def visit(self, setting: Setting, samples: int, prefix: Sequence[str]) -> dict[str, Any]:
        """See :class:`Engine`.

        Args:
            setting: What to measure.
            samples: How often.
            prefix: To be put before the command.

        Raises:
            BenchError: The visit failed; the message is the model's.
        """
        request = {
            "path": str(self.path),
            "setting": setting.as_dict(),
            "tokens": list(self.tokens),
            "samples": samples,
        }
        command = command_line(prefix, [sys.executable, "-m", "flashmoe.bench.visit"])
        out = run_command(command, json.dumps(request))
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer


def run_command(command: Sequence[str], text: str = "") -> str:
    """A child's standard output.

    Args:
        command: Program and arguments.
        text: Its standard input.

    Raises:
        BenchError: It failed; the message has the end of what it said.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout
    why = "was killed: out of memory?" if done.returncode == -9 else f"ended {done.returncode}"
    said = (done.stderr or done.stdout).strip()[-600:]
    raise BenchError(f"{' '.join(command[-6:])}: {why}\n{said}".rstrip())


@dataclass(slots=True)
class Measurement:
    """All samples of an engine under a setting.

    Attributes:
        engine: Its name.
        setting: What was measured.
        visits: What each visit saw.
        error: Why there are no more.
    """

    engine: str
    setting: Setting
    visits: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def samples(self) -> list[float]:
        """Tokens a second."""
        return [rate for visit in self.visits for rate in visit["samples"]]

    @property
    def median(self) -> float | None:
        """Of the samples."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Of the samples: a quarter lies below the first, a quarter above the second."""
        samples = self.samples
        if len(samples) < 2:
            return (samples[0], samples[0]) if samples else None
        first, _, last = statistics.quantiles(samples, n=4, method="inclusive")
        return first, last

    def typical(self, name: str) -> float | None:
        """The median over the visits of something they saw.

        Args:
            name: A key of a visit.
        """
        seen = [v[name] for v in self.visits if v.get(name) is not None]
        return statistics.median(seen) if seen else None

    def peak(self, name: str) -> int | None:
        """The most over the visits.

        Args:
            name: A key of a visit.
        """
        return max((v[name] for v in self.visits if v.get(name) is not None), default=None)

    def as_dict(self, floors: Floors | None = None) -> dict[str, Any]:
        """For JSON.

        Args:
            floors: Adds ``floor``: tokens a second if only bytes had to move.
        """
        firsts = [s for v in self.visits for s in v.get("first_token_seconds", [])]
        out: dict[str, Any] = {
            "engine": self.engine,
            "kind": self.setting.kind,
            "settings": self.setting.as_dict(),
            "samples": self.samples,
            "median": self.median,
            "quartiles": list(self.quartiles) if self.quartiles else None,
            "first_token_seconds": statistics.median(firsts) if firsts else None,
            "bytes_read_per_token": self.typical("bytes_read_per_token"),
            "hit_rate": self.typical("hit_rate"),
            "read_wait_share": self.typical("read_wait_share"),
            "open_seconds": self.typical("open_seconds"),
            "peak_anon": self.peak("peak_anon"),
            "peak_rss": self.peak("peak_rss"),
            "floor": None,
            "error": self.error,
        }
        if floors and self.engine == "flashmoe" and self.setting.kind == "decode":
            out["floor"] = floors.decode(self.setting, out["bytes_read_per_token"])
        for name in ("info", "expert_uses", "layer_ms"):
            if self.visits and name in self.visits[-1]:
                out[name] = self.visits[-1][name]
        return out


@dataclass(frozen=True, slots=True)
class Floors:
    """What moving bytes costs on this machine.

    Attributes:
        manifest: Of the model.
        memory: Bytes a second that all cores read.
        disk: Bytes a second that the disk gives, if measured.
    """

    manifest: Manifest
    memory: float
    disk: float | None

    def decode(self, setting: Setting, read_per_token: float | None) -> float | None:
        """Tokens a second if reading and computing overlapped and nothing else cost time.

        Args:
            setting: Batch, context and experts per token are taken from it.
            read_per_token: Expert bytes that came from the disk.
        """
        from flashmoe.cli.footprint import measure

        size = measure(self.manifest, setting.experts_per_token)
        once = size.resident_bytes - size.embedding_bytes
        each = size.read_per_token + size.state_bytes + setting.context * size.kv_bytes_per_token
        moved = (once / setting.batch + each) / self.memory
        if not read_per_token:
            return 1 / moved
        return None if self.disk is None else 1 / max(moved, read_per_token / self.disk)


def measure_floors(path: Path) -> Floors:
    """Measure memory and disk, for a model.

    Args:
        path: Its directory.
    """
    from flashmoe.checkpoint import open_checkpoint

    manifest = open_checkpoint(path).manifest
    disk = read_speed(manifest, path) if manifest.total_expert_bytes else None
    return Floors(manifest, read_bandwidth(), disk)


def read_speed(
    manifest: Manifest, path: Path, seconds: float = 0.5, tries: int = 4
) -> float | None:
    """Bytes a second that the disk gives of random experts, the best of some tries.

    Args:
        manifest: Of the model.
        path: Its directory.
        seconds: Of a try.
        tries: How many.

    Returns:
        None where the page cache cannot be avoided.
    """
    from flashmoe import _core, reading

    way = reading.probe(manifest, path).best
    if way is None:
        return None
    best = 0.0
    for seed in range(tries):
        got = _core.probe_reads(
            manifest.to_text(),
            str(path),
            read=way.read,
            read_threads=way.threads,
            read_split=way.split,
            seconds=seconds,
            cold=False,
            seed=seed,
        )
        best = max(best, got["bytes"] / (got["ns"] / 1e9))
    return best


def read_bandwidth(nbytes: int = 256 << 20) -> float:
    """Bytes a second that all cores together read from memory, the best of some tries.

    Args:
        nbytes: Bytes that each core reads.
    """
    import time
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from flashmoe import _core

    cores = _core.cores()
    blocks = [np.ones(nbytes // 4, np.int32) for _ in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(6):
            start = time.perf_counter()
            list(pool.map(np.max, blocks))
            best = min(best, time.perf_counter() - start)
    return nbytes * cores / best


def measure(
    engines: Sequence[Engine],
    settings: Sequence[Setting],
    *,
    rounds: int,
    samples: int,
    on_visit: Callable[[Measurement], object] = lambda _: None,
) -> list[Measurement]:
    """Measure every engine under every setting, in turns (ABBA).

    A setting that fails says so in its measurement and is not visited again; the others go on.

    Args:
        engines: What to measure.
        settings: Under which settings.
        rounds: Visits to each.
        samples: Samples of a visit.
        on_visit: Called after every visit.
    """
    all_ = [
        (engine, Measurement(engine.name, setting)) for setting in settings for engine in engines
    ]
    for engine, measurement in in_turns(all_, rounds):
        if measurement.error:
            continue
        try:
            with capped(measurement.setting.cap) as prefix:
                measurement.visits.append(engine.visit(measurement.setting, samples, prefix))
        except BenchError as error:
            measurement.error = str(error)
        on_visit(measurement)
    return [measurement for _, measurement in all_]


def document(measurements: Sequence[Measurement], floors: Floors | None) -> dict[str, Any]:
    """Everything that was seen, for JSON.

    Args:
        measurements: What was measured.
        floors: What moving bytes costs here.
    """
    return {
        "schema": SCHEMA,
        "machine": machine(floors),
        "flashmoe": {"version": _version(), "commit": _commit()},
        "command": sys.argv[1:],
        "measurements": [m.as_dict(floors) for m in measurements],
    }


def machine(floors: Floors | None) -> dict[str, Any]:
    """What was measured on.

    Args:
        floors: What moving bytes costs here.
    """
    from flashmoe import _core

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _core.cores(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernels": _core.kernels(),
        "python": platform.python_version(),
        "memory_bytes_per_second": floors.memory if floors else None,
        "disk_bytes_per_second": floors.disk if floors else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _version() -> str:
    import flashmoe

    return flashmoe.__version__


def _commit() -> str | None:
    """The commit of a development tree, if the package lies in one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() or None
