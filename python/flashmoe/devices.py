"""What computes: the device that was asked for, or the best one that proves itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmoe import kept
from flashmoe.errors import ArgumentError, DeviceError, FlashMoEError

NAMES = ("auto", "cpu", "metal")
_KIND, _VERSION = "devices", 1


@dataclass(frozen=True, slots=True)
class Device:
    """A choice.

    Attributes:
        name: ``"cpu"`` or ``"metal"``.
        reason: Why.
    """

    name: str
    reason: str


def cache() -> str:
    """Where a device keeps what it compiled; "" where nothing can be kept."""
    with suppress(OSError, RuntimeError):
        path = kept.directory()
        path.mkdir(parents=True, exist_ok=True)
        return str(path)
    return ""


def choose(wanted: str) -> Device:
    """The device for a model.

    Args:
        wanted: One of :data:`NAMES`.

    Raises:
        ArgumentError: It is none of them.
        DeviceError: This build has no such device.
    """
    from flashmoe import _core

    if wanted not in NAMES:
        raise ArgumentError(f"device must be one of {', '.join(NAMES)}, not {wanted!r}")
    built = _core.devices()
    if wanted != "auto":
        if wanted not in built:
            raise DeviceError(
                f"this build has no device {wanted!r}, only {', '.join(built)}: Metal needs a Mac "
                'with Apple silicon and a wheel made for it; use device="cpu"'
            )
        return Device(wanted, "asked for")
    if "metal" not in built:
        return Device("cpu", "this build has no other device")
    trouble = _trouble("metal")
    if trouble:
        return Device("cpu", f"Metal is not used: {trouble}; flashmoe selftest says more")
    return Device("metal", "it passed the quick selftest")


def _trouble(name: str) -> str:
    """What is wrong with a device; "" if nothing is. Found out once for each system and build."""
    key = _key(name)
    known = kept.load(_KIND, _VERSION).get(key)
    if isinstance(known, str):
        return known
    trouble = _tried(name)
    kept.keep(_KIND, _VERSION, key, trouble)
    return trouble


def _tried(name: str) -> str:
    from flashmoe import _core

    try:
        rows = _core.selftest(name, cache=cache(), quick=True)
    except FlashMoEError as error:
        return str(error)
    return first_failure(rows)


def first_failure(rows: list[dict[str, Any]]) -> str:
    """A sentence about the first check that failed; "" if none did.

    Args:
        rows: Of ``_core.selftest``.
    """
    for row in rows:
        if not row["ok"]:
            why = row["message"] or f"error {row['error']:.1e} above {row['bound']:.0e}"
            return f"{row['verb']} ({row['case']}): {why}"
    return ""


def _key(name: str) -> str:
    """What a result holds for: this build on this system."""
    import platform

    from flashmoe import __version__, _core

    built = Path(_core.__file__).stat()
    system = f"{platform.platform()} {platform.processor()}"
    return f"{name} {__version__} {built.st_size}.{built.st_mtime_ns} {system}"
