"""A checkpoint's tensors: found by name, checked by shape, each accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.places import AFFINE_BITS, AFFINE_GROUPS, Blocks, FileEntry, Quant
from flashmoe.quantization import CONVERT_HINT, Quantization
from flashmoe.safetensors import Header, TensorInfo

FLOAT_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
SCALE_DTYPES = {**FLOAT_DTYPES, "F8_E8M0": "e8m0"}

IGNORED_PREFIXES = (
    # vision towers
    "model.visual.",
    "visual.",
    "vision_tower.",
    "model.vision_tower.",
    # multi-token prediction
    "mtp.",
    "model.mtp.",
    "language_model.mtp.",
)
"""Tensors that text generation does not use."""

_FOREIGN_SUFFIXES = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "NVFP4",
    ".weight_global_scale": "NVFP4",
    "_blocks": "MXFP4",
}


@dataclass(frozen=True, slots=True)
class Runs:
    """``count`` runs of ``rows`` rows of a matrix, ``stride`` rows apart, from row ``start``."""

    start: int
    rows: int
    count: int = 1
    stride: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix, or a stack of equal ones, as it lies in the checkpoint.

    Attributes:
        quant: How its numbers are stored.
        rows: Rows of one matrix.
        cols: Numbers in a row.
        parts: File and place of ``weight`` and, by format, ``scales`` and ``biases``.
    """

    quant: Quant
    rows: int
    cols: int
    parts: dict[str, tuple[int, TensorInfo]]

    def blocks(self, part: str, runs: Sequence[Runs]) -> list[Blocks]:
        """Where ``part`` of some rows lies."""
        file, info = self.parts[part]
        if part == "scales" and self.quant.kind == "fp8":
            height = self.split_quant(runs).block[0]
            return [b for run in runs for b in self._fp8_scales(run, height, file, info)]
        row = self.quant.row_bytes if part == "weight" else self.quant.scale_row_bytes
        return [_blocks(file, info.at, row(self.cols), run) for run in runs]

    def split_quant(self, runs: Sequence[Runs]) -> Quant:
        """The format of some rows; FP8's blocks of rows shrink to what divides the runs."""
        if self.quant.kind != "fp8" or list(runs) == [Runs(0, self.rows)]:
            return self.quant
        numbers = [n for r in runs for n in (r.start, r.rows, r.stride)]
        height = math.gcd(self.quant.block[0], *numbers)
        return replace(self.quant, block=(height, self.quant.block[1]))

    def _fp8_scales(self, run: Runs, height: int, file: int, info: TensorInfo) -> list[Blocks]:
        """Where the scales of one run lie: a row of them for every ``height`` rows."""
        row_bytes, high = self.quant.scale_row_bytes(self.cols), self.quant.block[0]
        if run == Runs(0, self.rows):
            return [Blocks(file, info.at, self.quant.scale_rows(self.rows))]
        if height == high:
            whole = Runs(run.start // high, run.rows // high, run.count, run.stride // high)
            return [_blocks(file, info.at, row_bytes, whole)]
        return [
            Blocks(file, info.at + row // high * row_bytes, 1)
            for i in range(run.count)
            for row in range(
                run.start + i * run.stride, run.start + i * run.stride + run.rows, height
            )
        ]


def _blocks(file: int, base: int, row_bytes: int, run: Runs) -> Blocks:
    at = base + run.start * row_bytes
    if run.count == 1:
        return Blocks(file, at, run.rows)
    if run.stride == run.rows:
        return Blocks(file, at, run.rows, run.count)
    return Blocks(file, at, run.rows, run.count, run.stride * row_bytes)


class Source:
    """All tensors of a checkpoint that the language model must account for.

    Args:
        headers: The shards' headers by file name.
        quantization: What the config says of formats.

    Raises:
        ModelFormatError: A tensor is in two shards.
    """

    def __init__(self, headers: Mapping[str, Header], quantization: Quantization) -> None:
        self.files: list[FileEntry] = []
        self.quantization = quantization
        self._tensors: dict[str, tuple[int, TensorInfo]] = {}
        for name in sorted(headers):
            header = headers[name]
            index = len(self.files)
            used = False
            for info in header.tensors.values():
                if info.name.startswith(IGNORED_PREFIXES):
                    continue
                used = True
                entry = (index, info)
                before = self._tensors.setdefault(info.name, entry)
                if before is not entry:
                    raise ModelFormatError(
                        f"tensor {info.name} is in two shards, "
                        f"{self.files[before[0]].path} and {name}"
                    )
            if used:
                self.files.append(FileEntry(name, header.file_size))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def peek(self, name: str) -> TensorInfo:
        """A tensor that is there, without taking it."""
        return self._tensors[name][1]

    def take(
        self, name: str, shape: tuple[int, ...], *others: tuple[int, ...]
    ) -> tuple[int, TensorInfo]:
        """File and place of a tensor, which now counts as used.

        Args:
            name: Its name in the checkpoint.
            shape: What it must be.
            *others: What it may be instead.

        Raises:
            ModelFormatError: It is missing or has another shape.
            UnsupportedModelError: It is stored in a format that flashmoe does not read.
        """
        found = self._tensors.pop(name, None)
        if found is None:
            self._refuse_foreign(name)
            raise ModelFormatError(f"tensor {name} {list(shape)} is missing from the checkpoint")
        if found[1].shape != shape and found[1].shape not in others:
            self._refuse_foreign(name)
            raise ModelFormatError(
                f"{self.files[found[0]].path}: tensor {name} has shape "
                f"{list(found[1].shape)}; it must be {list(shape)}"
            )
        return found

    def vector(self, name: str, length: int) -> Stored:
        """A float vector, as a matrix of one row."""
        found = self.take(name, (length,))
        return Stored(self._float(found), 1, length, {"weight": found})

    def conv(self, name: str, channels: int, taps: int) -> Stored:
        """A depthwise convolution, in either library's order of dimensions."""
        found = self.take(name, (channels, 1, taps), (channels, taps, 1))
        return Stored(self._float(found), channels, taps, {"weight": found})

    def matrix(
        self, path: str, rows: int, cols: int, stack: tuple[int, ...] = (), suffix: str = ".weight"
    ) -> Stored:
        """A matrix in any format.

        Args:
            path: Its name without ``suffix``.
            rows: Output features.
            cols: Input features.
            stack: Leading dimensions: ``(experts,)`` for a stack of them.
            suffix: Of the weight's own name.

        Raises:
            ModelFormatError: Missing, misshapen, or at odds with the config.
            UnsupportedModelError: In a format that flashmoe does not read.
        """
        name = path + suffix
        if name not in self._tensors:
            self.take(name, (*stack, rows, cols))
        dtype = self._tensors[name][1].dtype
        if dtype == "U32":
            return self._affine(path, name, rows, cols, stack)
        if dtype == "F8_E4M3":
            return self._fp8(path, name, rows, cols, stack)
        found = self.take(name, (*stack, rows, cols))
        if isinstance(self.quantization.modules.get(path), Mapping):
            raise ModelFormatError(
                f"config.json: quantization says {path} is quantised, but it is stored as {dtype}"
            )
        return Stored(self._float(found), rows, cols, {"weight": found})

    def finish(self) -> None:
        """Refuse tensors that nothing asked for.

        Raises:
            UnsupportedModelError: Naming them.
        """
        if self._tensors:
            names = sorted(self._tensors)
            self._refuse_foreign(names[0])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UnsupportedModelError(
                f"the checkpoint has tensors that this model does not use: "
                f"{', '.join(names[:5])}{more}; leaving them out would change what it computes"
            )

    def _float(self, found: tuple[int, TensorInfo]) -> Quant:
        kind = FLOAT_DTYPES.get(found[1].dtype)
        if kind is None:
            self._refuse_foreign(found[1].name)
            raise UnsupportedModelError(
                f"{self.files[found[0]].path}: tensor {found[1].name} is stored as "
                f"{found[1].dtype}, which flashmoe does not read there: {CONVERT_HINT}"
            )
        return Quant(kind)

    def _affine(self, path: str, name: str, rows: int, cols: int, stack: tuple[int, ...]) -> Stored:
        words = self.peek(name).shape[-1] if self.peek(name).shape else 0
        weight = self.take(name, (*stack, rows, words))
        scales_name, biases_name = f"{path}.scales", f"{path}.biases"
        if scales_name not in self._tensors:
            self.take(scales_name, (*stack, rows, cols // 64))
        info = self.peek(scales_name)
        groups = info.shape[-1] if info.shape else 0
        scales = self.take(scales_name, (*stack, rows, groups))
        group = cols // groups if groups and cols % groups == 0 else 0
        bits = 32 * words // cols if 32 * words % cols == 0 else 0
        if info.dtype == "U8":
            mode = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}.get((bits, group))
            raise UnsupportedModelError(
                f"tensor {name} is in MLX's {mode or 'U8-scaled'} mode, which is not supported; "
                "quantise again with `mlx_lm.convert --q-mode affine`, or `flashmoe convert` the "
                "bf16 release"
            )
        if bits not in AFFINE_BITS or group not in AFFINE_GROUPS:
            raise ModelFormatError(
                f"{self.files[weight[0]].path}: tensor {name} {list(weight[1].shape)} with scales "
                f"{list(info.shape)} for rows of {cols} numbers: no bits in {AFFINE_BITS} and "
                f"group size in {AFFINE_GROUPS} give these shapes"
            )
        biases = self.take(biases_name, (*stack, rows, groups))
        kind = self._float(scales).kind
        if self._float(biases).kind != kind:
            raise ModelFormatError(
                f"tensor {biases_name} is {biases[1].dtype}, its scales are {info.dtype}"
            )
        self.quantization.check_module(path, bits, group)
        parts = {"weight": weight, "scales": scales, "biases": biases}
        return Stored(Quant("affine", bits, group, kind), rows, cols, parts)

    def _fp8(self, path: str, name: str, rows: int, cols: int, stack: tuple[int, ...]) -> Stored:
        block = self.quantization.fp8_block
        if block is None or stack:
            raise UnsupportedModelError(
                f"tensor {name} is FP8 without a weight_block_size in config.json's "
                f"quantization_config, or stacked: {CONVERT_HINT}"
            )
        weight = self.take(name, (rows, cols))
        scales = self.take(f"{path}.weight_scale_inv", (-(-rows // block[0]), -(-cols // block[1])))
        kind = SCALE_DTYPES.get(scales[1].dtype)
        if kind is None:
            raise UnsupportedModelError(
                f"tensor {scales[1].name} is stored as {scales[1].dtype}; "
                f"scales of FP8 must be one of {', '.join(SCALE_DTYPES)}"
            )
        quant = Quant("fp8", scale=kind, block=block)
        return Stored(quant, rows, cols, {"weight": weight, "scales": scales})

    def _refuse_foreign(self, name: str) -> None:
        """Say which foreign format a tensor's neighbours give away, if any."""
        path = name.removesuffix(".weight")
        for suffix, format_name in _FOREIGN_SUFFIXES.items():
            if path + suffix in self._tensors or name.endswith(suffix):
                raise UnsupportedModelError(
                    f"tensor {name} is stored as {format_name}, which is not supported: "
                    f"{CONVERT_HINT}"
                )
