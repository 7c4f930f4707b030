"""Other engines, measured as children in the same turns: llama.cpp and mlx-lm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flashmoe.bench.cap import command_line
from flashmoe.bench.run import BenchError, run_command
from flashmoe.bench.setting import Setting
from flashmoe.bench.visit import drop_page_cache
from flashmoe.errors import ArgumentError

_HELP_SECONDS = 30


@dataclass(frozen=True)
class LlamaBench:
    """llama.cpp, by its own program ``llama-bench``.

    Attributes:
        program: Path of ``llama-bench``.
        model: A GGUF file; of a split model, the first.
        name: In the results.
    """

    program: Path
    model: Path
    name: str = "llama.cpp"

    def command(
        self,
        kind: str,
        prompt: int,
        tokens: int,
        context: int,
        threads: int | None,
        capped: bool,
        *,
        cold: bool = False,
        samples: int = 1,
    ) -> list[str]:
        """The command line of one visit.

        Args:
            kind: ``"decode"`` or ``"prefill"``.
            prompt: Tokens of the prompt of a prefill.
            tokens: Tokens to decode.
            context: Tokens before the first that is decoded.
            threads: Threads that compute; its own choice if None.
            capped: Whether memory is limited: weights then stay mapped from the file, without the
                repacked copy that would have to fit the limit.
            cold: Whether to start the clock without a run to warm up.
            samples: Repetitions.
        """
        out = [str(self.program), "-m", str(self.model), "-r", str(samples), "-o", "json"]
        if kind == "prefill":
            out += ["-p", str(prompt), "-n", "0"]
        else:
            out += ["-p", "0", "-n", str(tokens), "-d", str(context)]
        if threads is not None:
            out += ["-t", str(threads)]
        if cold:
            out.append("--no-warmup")
        if capped:
            out += self._mapped
        return out

    @cached_property
    def _mapped(self) -> list[str]:
        """Options that keep weights in the file, as this version of the program names them."""
        command = [str(self.program), "--help"]
        try:
            said = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_HELP_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"{self.program} --help failed: {error}") from error
        known = said.stdout + said.stderr
        if "--repack" not in known:
            raise BenchError(
                f"{self.program} has no --repack, so it would copy weights and not fit the limit; "
                "use a newer llama.cpp, or leave --cap out"
            )
        mapped = ["--load-mode", "mmap"] if "--load-mode" in known else ["--mmap", "1"]
        return [*mapped, "--repack", "0"]

    def parse(self, stdout: str) -> list[float]:
        """Tokens a second of every sample.

        Args:
            stdout: What the program printed.

        Raises:
            BenchError: It is not the result of one test.
        """
        try:
            (test,) = json.loads(stdout)
            rates = [float(rate) for rate in test["samples_ts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(
                f"{self.program} printed no result of one test as JSON ({error}): {stdout[:200]!r}"
            ) from error
        if not rates or min(rates) <= 0:
            raise BenchError(f"{self.program} measured {rates} tokens a second")
        return rates

    def visit(self, setting: Setting, samples: int, prefix: Sequence[str]) -> dict[str, Any]:
        """Measure once, in a process of its own.

        Args:
            setting: What to measure.
            samples: How often within the visit.
            prefix: To be put before the command.

        Raises:
            BenchError: The program failed, or cannot do what the setting asks for.
        """
        _check(setting, self.name)
        if setting.cold or setting.cap:
            drop_page_cache(self.model.parent)
        command = self.command(
            setting.kind,
            setting.prompt,
            setting.tokens,
            setting.context,
            setting.threads,
            setting.cap is not None,
            cold=setting.cold,
            samples=samples,
        )
        return {"samples": self.parse(run_command(command_line(prefix, command)))}


@dataclass(frozen=True, slots=True)
class MlxLm:
    """mlx-lm, as installed for this Python.

    Attributes:
        model: Directory of a model that mlx-lm loads.
        name: In the results.
    """

    model: Path
    name: str = "mlx-lm"

    def visit(self, setting: Setting, samples: int, prefix: Sequence[str]) -> dict[str, Any]:
        """Measure once, in a process of its own.

        Args:
            setting: What to measure.
            samples: How often within the visit.
            prefix: To be put before the command.

        Raises:
            BenchError: mlx-lm failed, or cannot do what the setting asks for.
        """
        _check(setting, self.name)
        if setting.threads is not None:
            raise BenchError("mlx-lm takes no number of threads; leave --threads out")
        if setting.cold or setting.cap:
            drop_page_cache(self.model)
        request = {"path": str(self.model), "setting": setting.as_dict(), "samples": samples}
        command = command_line(prefix, [sys.executable, "-m", "flashmoe.bench.mlx_visit"])
        answer = run_command(command, json.dumps(request)).splitlines()[-1]
        out: dict[str, Any] = json.loads(answer)
        return out


def parse_comparison(text: str) -> LlamaBench | MlxLm:
    """An engine to compare with, as a command line names it.

    Args:
        text: ``llama.cpp=PROGRAM:MODEL.gguf`` or ``mlx-lm=DIRECTORY``.

    Raises:
        ArgumentError: It names no engine that could run here; the message says why.
    """
    engine, _, rest = text.partition("=")
    if engine == "llama.cpp":
        program, _, model = rest.rpartition(":")
        if not program or not model:
            raise ArgumentError(
                f"{text!r} must be llama.cpp=PROGRAM:MODEL, such as "
                "llama.cpp=/usr/bin/llama-bench:/models/model.gguf"
            )
        if not Path(model).is_file():
            raise ArgumentError(f"{model} is no file; name the GGUF file after the last colon")
        return LlamaBench(_program(program), Path(model))
    if engine == "mlx-lm":
        if not (Path(rest) / "config.json").is_file():
            raise ArgumentError(f"{rest or text!r} is no model of mlx-lm: it has no config.json")
        if find_spec("mlx_lm") is None:
            raise ArgumentError('mlx-lm is not installed: run pip install "mlx-lm"')
        return MlxLm(Path(rest))
    raise ArgumentError(
        f"{text!r} names no engine to compare with; give llama.cpp=PROGRAM:MODEL.gguf or "
        "mlx-lm=DIRECTORY"
    )


def _program(name: str) -> Path:
    """A program by its path, or by its name on ``PATH``."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    if os.path.isfile(name):
        raise ArgumentError(f"{name} is not executable; run chmod +x on it, if it is llama-bench")
    raise ArgumentError(f"{name} is not there; give the path of llama-bench before the last colon")


def _check(setting: Setting, engine: str) -> None:
    """Refuse what another engine would not do, rather than compare different work."""
    if setting.batch != 1:
        raise BenchError(f"{engine} is measured with one sequence at a time, not {setting.batch}")
    if setting.experts_per_token is not None:
        raise BenchError(f"{engine} uses the model's own number of experts per token")
