"""The manifest as text: lines of ``keyword key=value …``, written and strictly read.

``csrc/README.md`` describes the grammar; ``csrc/model/manifest.c`` reads the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from flashmoe.errors import ModelFormatError
from flashmoe.places import (
    Blocks,
    Experts,
    Extent,
    FileEntry,
    Quant,
    Tensor,
    check_file_name,
)
from flashmoe.spec import Attention, Delta, Dense, Layer, ModelSpec, MoE, Rope

VERSION = 1
CHECKSUMS_A_LINE = 64


def write(
    spec: ModelSpec,
    files: Iterable[FileEntry],
    tensors: Iterable[Tensor],
    experts: Iterable[Experts],
) -> str:
    """The text of a manifest made of these."""
    lines = [f"flashmoe version={VERSION}"]
    lines.append(
        f"model hidden_size={spec.hidden_size} vocab_size={spec.vocab_size} "
        f"layers={len(spec.layers)} norm_eps={_number(spec.norm_eps)} "
        f"max_positions={spec.max_positions} tied={int(spec.tied)}"
    )
    for index, file in enumerate(files):
        digest = f" sha256={file.sha256}" if file.sha256 is not None else ""
        lines.append(f"file index={index} path={file.path} bytes={file.nbytes}{digest}")
    for index, rope in enumerate(spec.ropes):
        angles = ",".join(map(_number, rope.inv_freq))
        scale = _number(rope.scale)
        lines.append(f"rope index={index} dims={rope.dims} scale={scale} inv_freq={angles}")
    for index, layer in enumerate(spec.layers):
        lines.append(f"layer index={index} {_mixer(layer.mixer)} {_ffn(layer.ffn)}")
    for tensor in tensors:
        lines.extend(_tensor_lines(tensor))
    for one in experts:
        lines.extend(_experts_lines(one))
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    text = repr(float(value))
    return text.removesuffix(".0")


def _mixer(mixer: Attention | Delta) -> str:
    if isinstance(mixer, Delta):
        return (
            f"mixer=delta key_heads={mixer.key_heads} value_heads={mixer.value_heads} "
            f"key_dim={mixer.key_dim} value_dim={mixer.value_dim} conv_taps={mixer.conv_taps}"
        )
    return (
        f"mixer=attention heads={mixer.heads} kv_heads={mixer.kv_heads} "
        f"head_dim={mixer.head_dim} rope={mixer.rope} scale={_number(mixer.scale)} "
        f"gated={int(mixer.gated)} qk_norm={int(mixer.qk_norm)}"
    )


def _ffn(ffn: Dense | MoE) -> str:
    if isinstance(ffn, Dense):
        return f"ffn=dense intermediate_size={ffn.intermediate_size}"
    return (
        f"ffn=moe experts={ffn.experts} experts_per_token={ffn.experts_per_token} "
        f"renormalise={int(ffn.renormalise)} intermediate_size={ffn.intermediate_size} "
        f"shared_intermediate_size={ffn.shared_intermediate_size}"
    )


def _tensor_lines(tensor: Tensor) -> Iterator[str]:
    add = f" add={tensor.add}" if tensor.add else ""
    yield (
        f"tensor name={tensor.name} quant={tensor.quant.text} "
        f"rows={tensor.rows} cols={tensor.cols}{add}"
    )
    for part in tensor.quant.parts:
        for b in tensor.blocks(part):
            count = f" count={b.count}" if b.count != 1 else ""
            stride = f" stride={b.stride}" if b.stride is not None else ""
            yield f"{part} file={b.file} at={b.at} rows={b.rows}{count}{stride}"


def _experts_lines(e: Experts) -> Iterator[str]:
    yield f"experts layer={e.layer} gate={e.gate.text} up={e.up.text} down={e.down.text}"
    for x in e.extents:
        where = f"extent layer={e.layer} part={x.part}"
        if x.each is None:
            yield f"{where} file={x.file} base={x.base} stride={x.stride}"
        else:
            for expert, (file, base) in enumerate(x.each):
                yield f"{where} file={file} expert={expert} base={base}"
    sums = e.checksums or []
    for first in range(0, len(sums), CHECKSUMS_A_LINE):
        words = ",".join(f"{s:016x}" for s in sums[first : first + CHECKSUMS_A_LINE])
        yield f"checksum layer={e.layer} first={first} xxh3={words}"


class _Line:
    """One line's keyword and values; every value must be asked for."""

    __slots__ = ("keyword", "number", "values")

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.keyword, *words = text.split()
        self.values: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not value:
                raise self.error(f"{word!r} is not key=value")
            if key in self.values:
                raise self.error(f"{key} is given twice")
            self.values[key] = value

    def error(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"manifest, line {self.number}: {what}")

    def word(self, key: str) -> str:
        value = self.values.pop(key, None)
        if value is None:
            raise self.error(f"{self.keyword} has no {key}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        if default is not None and key not in self.values:
            return default
        text = self.word(key)
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 2**63):
            raise self.error(f"{key}={text} is not an integer in 0 .. 2**63 - 1")
        return int(text)

    def flag(self, key: str, default: int | None = None) -> bool:
        value = self.integer(key, default)
        if value > 1:
            raise self.error(f"{key}={value} is neither 0 nor 1")
        return value == 1

    def numbers(self, key: str) -> tuple[float, ...]:
        text = self.word(key)
        if not set(text) <= set("0123456789.,e+-"):
            raise self.error(f"{key} is not a list of numbers")
        try:
            return tuple(float(word) for word in text.split(","))
        except ValueError:
            raise self.error(f"{key} is not a list of numbers") from None

    def number_of(self, key: str) -> float:
        numbers = self.numbers(key)
        if len(numbers) != 1:
            raise self.error(f"{key} is not one number")
        return numbers[0]

    def quant(self, key: str) -> Quant:
        try:
            return Quant.parse(self.word(key))
        except ModelFormatError as error:
            raise self.error(str(error)) from None

    def done(self) -> None:
        if self.values:
            raise self.error(f"{self.keyword} does not know {', '.join(self.values)}")


class _Reader:
    """The lines of a text, the next one always in sight."""

    def __init__(self, text: str) -> None:
        self._lines = self._all(text)
        self.line: _Line | None = next(self._lines, None)

    @staticmethod
    def _all(text: str) -> Iterator[_Line]:
        for number, line in enumerate(text.split("\n"), 1):
            stripped = line.strip()
            if stripped and not stripped.startswith("#"):
                yield _Line(number, stripped)

    def take(self, keyword: str) -> _Line | None:
        """The next line if it has this keyword."""
        line = self.line
        if line is None or line.keyword != keyword:
            return None
        self.line = next(self._lines, None)
        return line

    def need(self, keyword: str) -> _Line:
        line = self.take(keyword)
        if line is None:
            if self.line is None:
                raise ModelFormatError(f"manifest: ends where a {keyword} line must be")
            raise self.line.error(f"{self.line.keyword} where a {keyword} line must be")
        return line

    def all(self, keyword: str) -> Iterator[_Line]:
        """The next lines with this keyword, whose ``index`` must count from 0."""
        index = 0
        while line := self.take(keyword):
            given = line.integer("index")
            if given != index:
                raise line.error(f"{keyword} index={given} where {index} must be")
            yield line
            line.done()
            index += 1


def parse(text: str) -> tuple[ModelSpec, list[FileEntry], dict[str, Tensor], list[Experts]]:
    """Read the text form.

    Raises:
        ModelFormatError: Naming the line.
    """
    reader = _Reader(text)
    head = reader.need("flashmoe")
    version = head.integer("version")
    head.done()
    if version != VERSION:
        raise head.error(f"version {version}; this flashmoe reads version {VERSION}: upgrade it")
    model = reader.need("model")
    layers = model.integer("layers")
    spec = ModelSpec(
        hidden_size=model.integer("hidden_size"),
        vocab_size=model.integer("vocab_size"),
        norm_eps=model.number_of("norm_eps"),
        max_positions=model.integer("max_positions"),
        tied=model.flag("tied"),
        ropes=(),
        layers=(),
    )
    model.done()
    files = [_read_file(line) for line in reader.all("file")]
    ropes = tuple(_read_rope(line) for line in reader.all("rope"))
    read_layers = tuple(_read_layer(line) for line in reader.all("layer"))
    if len(read_layers) != layers:
        raise ModelFormatError(f"manifest: {len(read_layers)} layer lines for layers={layers}")
    tensors: dict[str, Tensor] = {}
    while line := reader.take("tensor"):
        tensor = _read_tensor(line, reader)
        if tensors.setdefault(tensor.name, tensor) is not tensor:
            raise line.error(f"tensor {tensor.name} is given twice")
    experts: list[Experts] = []
    while line := reader.take("experts"):
        counts = {i: y.ffn.experts for i, y in enumerate(read_layers) if isinstance(y.ffn, MoE)}
        experts.append(_read_experts(line, reader, counts))
    if reader.line is not None:
        raise reader.line.error(f"{reader.line.keyword!r} has no place here")
    return replace(spec, ropes=ropes, layers=read_layers), files, tensors, experts


def _read_file(line: _Line) -> FileEntry:
    path, nbytes = line.word("path"), line.integer("bytes")
    try:
        check_file_name(path)
    except ModelFormatError as error:
        raise line.error(str(error)) from None
    digest = line.values.pop("sha256", None)
    if digest is not None and not (len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
        raise line.error(f"sha256={digest} is not 64 hexadecimal digits")
    return FileEntry(path, nbytes, digest)


def _read_rope(line: _Line) -> Rope:
    return Rope(line.integer("dims"), line.number_of("scale"), line.numbers("inv_freq"))


def _read_layer(line: _Line) -> Layer:
    mixer: Attention | Delta
    ffn: Dense | MoE
    kind = line.word("mixer")
    if kind == "attention":
        mixer = Attention(
            heads=line.integer("heads"),
            kv_heads=line.integer("kv_heads"),
            head_dim=line.integer("head_dim"),
            rope=line.integer("rope"),
            scale=line.number_of("scale"),
            gated=line.flag("gated"),
            qk_norm=line.flag("qk_norm"),
        )
    elif kind == "delta":
        mixer = Delta(
            key_heads=line.integer("key_heads"),
            value_heads=line.integer("value_heads"),
            key_dim=line.integer("key_dim"),
            value_dim=line.integer("value_dim"),
            conv_taps=line.integer("conv_taps"),
        )
    else:
        raise line.error(f"there is no mixer {kind!r}")
    kind = line.word("ffn")
    if kind == "dense":
        ffn = Dense(line.integer("intermediate_size"))
    elif kind == "moe":
        ffn = MoE(
            experts=line.integer("experts"),
            experts_per_token=line.integer("experts_per_token"),
            renormalise=line.flag("renormalise"),
            intermediate_size=line.integer("intermediate_size"),
            shared_intermediate_size=line.integer("shared_intermediate_size"),
        )
    else:
        raise line.error(f"there is no ffn {kind!r}")
    return Layer(mixer, ffn)


def _read_blocks(line: _Line) -> Blocks:
    blocks = Blocks(
        file=line.integer("file"),
        at=line.integer("at"),
        rows=line.integer("rows"),
        count=line.integer("count", 1),
        stride=line.integer("stride") if "stride" in line.values else None,
    )
    line.done()
    if blocks.rows < 1 or blocks.count < 1:
        raise line.error("rows and count must be at least 1")
    return blocks


def _read_tensor(line: _Line, reader: _Reader) -> Tensor:
    tensor = Tensor(
        name=line.word("name"),
        quant=line.quant("quant"),
        rows=line.integer("rows"),
        cols=line.integer("cols"),
        weight=[],
        add=int(line.flag("add", 0)),
    )
    line.done()
    for part in tensor.quant.parts:
        while blocks := reader.take(part):
            tensor.blocks(part).append(_read_blocks(blocks))
    return tensor


def _read_experts(line: _Line, reader: _Reader, counts: dict[int, int]) -> Experts:
    layer = line.integer("layer")
    experts = Experts(layer, line.quant("gate"), line.quant("up"), line.quant("down"), [])
    line.done()
    if layer not in counts:
        raise line.error(f"layer {layer} has no experts")
    places: dict[str, list[tuple[int, int]]] = {}
    while extent := reader.take("extent"):
        _same_layer(extent, layer)
        _read_extent(extent, experts, places)
    sums: list[int] = []
    while checksum := reader.take("checksum"):
        _same_layer(checksum, layer)
        sums.extend(_read_checksums(checksum, len(sums)))
    return replace(experts, checksums=sums or None)


def _same_layer(line: _Line, layer: int) -> None:
    given = line.integer("layer")
    if given != layer:
        raise line.error(f"{line.keyword} layer={given} under experts layer={layer}")


def _read_extent(line: _Line, experts: Experts, places: dict[str, list[tuple[int, int]]]) -> None:
    part, file, base = line.word("part"), line.integer("file"), line.integer("base")
    if "expert" in line.values:
        expert = line.integer("expert")
        each = places.setdefault(part, [])
        if expert != len(each):
            raise line.error(f"{part} expert={expert} where {len(each)} must be")
        each.append((file, base))
        if expert == 0:
            experts.extents.append(Extent(part, 0, 0, None, each))
    else:
        experts.extents.append(Extent(part, file, base, line.integer("stride")))
    line.done()


def _read_checksums(line: _Line, expected: int) -> list[int]:
    first, words = line.integer("first"), line.word("xxh3").split(",")
    line.done()
    if first != expected or len(words) > CHECKSUMS_A_LINE:
        raise line.error(f"checksums from {first} where they go on from {expected}")
    for word in words:
        if len(word) != 16 or not set(word) <= set("0123456789abcdef"):
            raise line.error(f"checksum {word[:40]!r} is not 16 hexadecimal digits")
    return [int(word, 16) for word in words]
