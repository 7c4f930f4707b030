"""What a ``config.json`` says of a checkpoint's number formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flashmoe.errors import ModelFormatError, UnsupportedModelError

CONVERT_HINT = (
    "take the bf16, FP8 or MLX release of this model instead; "
    "`flashmoe convert` quantises bf16 and FP8"
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """The formats that a config announces; the tensors' shapes decide.

    Attributes:
        mlx: Whether the config is one of MLX's quantised ones.
        modules: MLX's word for single modules, by path without ``.weight``.
        fp8_block: Rows and columns that share a scale, for FP8.
    """

    mlx: bool = False
    modules: dict[str, Mapping[str, Any] | bool] = field(default_factory=dict)
    fp8_block: tuple[int, int] | None = None

    def check_module(self, path: str, bits: int, group: int) -> None:
        """Hold what was found for an affine matrix against what the config says of it.

        Raises:
            ModelFormatError: They differ.
        """
        said = self.modules.get(path, True)
        if isinstance(said, bool):
            if not said:
                raise ModelFormatError(
                    f"config.json: quantization says {path} is not quantised, but it has scales"
                )
            return
        for name, found in (("bits", bits), ("group_size", group)):
            if said.get(name) is not None and said[name] != found:
                raise ModelFormatError(
                    f"config.json: quantization gives {path} {name} {said[name]!r}, "
                    f"its shapes make it {found}"
                )


def read_quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> Quantization:
    """Read ``quantization`` or ``quantization_config``.

    Args:
        config: The whole ``config.json``.
        text: Its text part.

    Raises:
        UnsupportedModelError: A format that flashmoe does not read, by name.
        ModelFormatError: The entry is malformed.
    """
    for source in (config, text):
        if source.get("quantization") is not None:
            return _mlx(source["quantization"])
    for source in (config, text):
        entry = source.get("quantization_config")
        if entry is None:
            continue
        if not isinstance(entry, Mapping):
            raise ModelFormatError("config.json: quantization_config is not an object")
        method = entry.get("quant_method")
        if method is None and "group_size" in entry:
            return _mlx(entry)
        if method != "fp8":
            raise UnsupportedModelError(
                f"config.json: quantization method {method!r} is not supported: {CONVERT_HINT}"
            )
        return _fp8(entry)
    return Quantization()


def _mlx(entry: Any) -> Quantization:
    if not isinstance(entry, Mapping):
        raise ModelFormatError("config.json: quantization is not an object")
    _check_mode("", entry)
    modules: dict[str, Mapping[str, Any] | bool] = {}
    for path, said in entry.items():
        if isinstance(said, Mapping):
            _check_mode(f" of {path}", said)
            modules[path] = said
        elif isinstance(said, bool):
            modules[path] = said
        elif path not in ("bits", "group_size", "mode", "quant_method", "linear_class"):
            raise ModelFormatError(
                f"config.json: quantization entry {path} is {said!r}; "
                "it must be an object, true or false"
            )
    return Quantization(mlx=True, modules=modules)


def _check_mode(where: str, entry: Mapping[str, Any]) -> None:
    mode = entry.get("mode")
    if mode is not None and mode != "affine":
        raise UnsupportedModelError(
            f"config.json: MLX quantization mode {mode!r}{where} is not supported, only 'affine'; "
            "quantise again with `mlx_lm.convert --q-mode affine`, or `flashmoe convert` the "
            "bf16 release"
        )


def _fp8(entry: Mapping[str, Any]) -> Quantization:
    fmt = entry.get("fmt", "e4m3")
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise UnsupportedModelError(f"config.json: FP8 format {fmt!r} is not supported, only e4m3")
    block = entry.get("weight_block_size")
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(n) is int and 0 < n <= 65536 for n in block)
    ):
        raise UnsupportedModelError(
            f"config.json: FP8 weight_block_size {block!r} is not supported; "
            "it must be two positive integers"
        )
    return Quantization(fp8_block=(block[0], block[1]))
