"""Checks that this machine's devices compute what they should."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from flashmoe import devices
from flashmoe.errors import FlashMoEError

_PROMPT = "The expert loader reads"


@dataclass(frozen=True, slots=True)
class Check:
    """One computation of a device against the scalar CPU kernels.

    Attributes:
        verb: What was computed, such as ``"matmul"``.
        case: With which shapes.
        error: Squared error over energy; NaN if it failed.
        bound: The most it may be.
        ok: Whether it is.
        message: What the device said, if it failed.
    """

    verb: str
    case: str
    error: float
    bound: float
    ok: bool
    message: str


@dataclass(slots=True)
class DeviceReport:
    """What one device did.

    Attributes:
        device: ``"cpu"`` or ``"metal"``.
        kernels: Which of its kernels: ``"avx512"``, or the GPU's name.
        checks: Every check, in order.
        text: What the demo model wrote, greedily.
        tokens_per_second: How fast it did.
        trouble: Why the device could not be tested; "" if it could.
    """

    device: str
    kernels: str = ""
    checks: list[Check] = field(default_factory=list)
    text: str = ""
    tokens_per_second: float = 0.0
    trouble: str = ""

    @property
    def failed(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.ok]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.trouble and not self.failed

    @property
    def line(self) -> str:
        """The device in a few words."""
        if self.trouble:
            return f"{self.device}: {self.trouble}"
        good = len(self.checks) - len(self.failed)
        worst = max((c.error for c in self.checks if c.error == c.error), default=0.0)
        return (
            f"{self.device} ({self.kernels}): {good} of {len(self.checks)} checks, "
            f"worst error {worst:.0e}, demo {self.tokens_per_second:,.0f} tok/s"
        )


@dataclass(slots=True)
class Report:
    """What all of them did.

    Attributes:
        system: Version, operating system, processor.
        devices: One report each; the CPU is always among them.
    """

    system: str
    devices: list[DeviceReport]

    @property
    def same_text(self) -> bool:
        """Whether the demo model wrote the same on every device that could be tested."""
        return len({d.text for d in self.devices if not d.trouble}) <= 1

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return self.same_text and all(d.ok for d in self.devices)

    @property
    def line(self) -> str:
        """All of it in one line, to paste into an issue."""
        words = [self.system, *(d.line for d in self.devices)]
        if not self.same_text:
            words.append("texts differ")
        return " | ".join([*words, "ok" if self.ok else "FAILED"])


def selftest(device: str = "all", *, quick: bool = False) -> Report:
    """Check every computation of this machine's devices.

    Every verb of a device is compared with the scalar CPU kernels, the definition of what is right,
    on random numbers of odd shapes; then the demo model writes on every device, and all must write
    the same.

    Args:
        device: ``"cpu"``, ``"metal"`` or ``"all"`` that this build has. The CPU is always tested.
        quick: Fewer cases of each verb.

    Raises:
        ArgumentError: There is no such device.
        DeviceError: This build does not have it.
    """
    from flashmoe import _core

    if device != "all":
        devices.choose(device)
    names = _core.devices() if device == "all" else dict.fromkeys(["cpu", device])
    return Report(_system(), [_test(name, quick) for name in sorted(names)])


def _test(name: str, quick: bool) -> DeviceReport:
    from flashmoe import _core

    report = DeviceReport(name)
    try:
        rows = _core.selftest(name, cache=devices.cache() if name != "cpu" else "", quick=quick)
        report.checks = [Check(**row) for row in rows]
        _write(report, 16 if quick else 64)
    except FlashMoEError as error:
        report.trouble = str(error)
    return report


def _write(report: DeviceReport, tokens: int) -> None:
    """Let the demo model write something on a device."""
    from flashmoe.demo import demo_model_path
    from flashmoe.generator import Generator
    from flashmoe.model import Model
    from flashmoe.sampler import Sampler

    with Model(demo_model_path(), device=report.device, memory="512MB") as model:
        info: dict[str, Any] = model.info()
        generator = Generator(model, Sampler(temperature=0))
        generator.generate(_PROMPT, max_tokens=2)  # kernels are compiled, experts are read
        started = time.perf_counter()
        report.text = generator.generate(_PROMPT, max_tokens=tokens).text
        report.tokens_per_second = tokens / (time.perf_counter() - started)
        report.kernels = info["kernels"]


def _system() -> str:
    import platform

    from flashmoe import __version__

    return f"flashmoe {__version__} | {platform.platform()} | Python {platform.python_version()}"
