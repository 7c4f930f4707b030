"""The small trained model inside the package."""

from __future__ import annotations

from pathlib import Path

from flashmoe.errors import ReadError


def demo_model_path() -> Path:
    """Directory of the demo model: a real Qwen3.5-MoE of a few megabytes, packed at 4 bits.

    Raises:
        ReadError: This installation was built without it.
    """
    path = Path(__file__).parent / "demo_model"
    if not (path / "manifest.fm").is_file():
        raise ReadError(f"{path} does not hold the demo model; install flashmoe from a wheel")
    return path
