"""Conversion: what is kept is kept to the byte, what is quantised is as MLX does it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from flashmoe import errors
from flashmoe.checkpoint import open_checkpoint
from flashmoe.conversion import convert
from flashmoe.conversion.plan import Formats
from flashmoe.conversion.run import Conversion, Options
from flashmoe.conversion.sources import LocalSource
from flashmoe.conversion.write import Fs
from packed import Packed, published, rows_of

FAMILIES = tiny.FAMILIES
KEPT = ("norm", "mixer_norm", "ffn_norm", "q_norm", "k_norm", "delta_norm", "conv", "a_log",
        "dt_bias")  # fmt: skip
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Tiny checkpoints, each written once."""
    done: dict[str, Path] = {}

    def make(family: str, **options: object) -> Path:
        key = repr((family, options))
        if key not in done:
            path = tmp_path_factory.mktemp("source") / "model"
            done[key] = tiny.write(path, family, **({"seed": 3, "dtype": "bf16"} | options))
        return done[key]

    return make


def pack(src: Path, dst: Path, **options: object) -> Packed:
    return Packed(convert(src, dst, progress=False, **options))


def digest(path: Path) -> dict[str, str]:
    """Of every file of a directory."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}


def parts_of(stored: list[tiny.Tensor]) -> dict[str, bytes]:
    names = ("weight", "scales", "biases")
    return {n: np.ascontiguousarray(t.data).tobytes() for n, t in zip(names, stored, strict=False)}


def config_of(path: Path) -> dict:
    config = json.loads((path / "config.json").read_text())
    return config.get("text_config", config)


class Published:
    """Matrices of a source directory by the core's names."""

    def __init__(self, family: str, path: Path, prefix: str = "model.") -> None:
        self.family, self.prefix = family, prefix
        self.config = config_of(path)
        self.tensors = tiny.read(path)

    def resident(self, name: str) -> list[tiny.Tensor]:
        module = published(self.family, name, self.prefix)
        found = [self.tensors[n] for n in (f"{module}.weight", f"{module}.scales",
                 f"{module}.biases", module) if n in self.tensors]  # fmt: skip
        if name.endswith(("A_log", "conv")):
            return found
        return [tiny.Tensor(t.dtype, rows_of(self.family, self.config, name, t.data))
                for t in found]  # fmt: skip

    def expert(self, layer: int, expert: int) -> dict[str, list[tiny.Tensor]]:
        at = f"{self.prefix}layers.{layer}.mlp."
        out = {}
        for projection in ("gate", "up", "down"):
            stack = f"{at}switch_mlp.{projection}_proj."
            apart = f"{at}experts.{expert}.{projection}_proj.weight"
            if stack + "weight" in self.tensors:
                parts = [self.tensors[stack + p] for p in ("weight", "scales", "biases")
                         if stack + p in self.tensors]  # fmt: skip
                out[projection] = [tiny.Tensor(t.dtype, t.data[expert]) for t in parts]
            elif apart in self.tensors:
                out[projection] = [self.tensors[apart]]
            elif projection == "down":
                whole = self.tensors[f"{at}experts.down_proj"]
                out[projection] = [tiny.Tensor(whole.dtype, whole.data[expert])]
            else:
                whole = self.tensors[f"{at}experts.gate_up_proj"]
                half = whole.data.shape[1] // 2
                rows = whole.data[expert, :half] if projection == "gate" else (
                    whole.data[expert, half:])  # fmt: skip
                out[projection] = [tiny.Tensor(whole.dtype, rows)]
        return out


def compare(
    packed: Packed,
    source: Published,
    become: Callable[[str, list[tiny.Tensor]], list[tiny.Tensor]],
) -> int:
    """Hold every byte of a packed directory against the source; returns how many matrices."""
    count = 0
    for name in packed.tensors:
        assert packed.tensor(name) == parts_of(become(name, source.resident(name))), name
        count += 1
    for layer in packed.experts:
        for expert in range(packed.count(layer)):
            got, _ = packed.expert(layer, expert)
            for projection, stored in source.expert(layer, expert).items():
                want = parts_of(become(f"layers.{layer}.{projection}", stored))
                assert {p: got[f"{projection}.{p}"] for p in want} == want, (layer, expert)
                count += 1
    return count


def same(_: str, stored: list[tiny.Tensor]) -> list[tiny.Tensor]:
    return stored


def as_mlx(bits: int, group: int) -> Callable[[str, list[tiny.Tensor]], list[tiny.Tensor]]:
    """What mlx-lm's rules and quantiser make of a float matrix."""

    def become(name: str, stored: list[tiny.Tensor]) -> list[tiny.Tensor]:
        word = name.rsplit(".", 1)[-1]
        (weight,) = stored
        if word in KEPT or weight.data.shape[-1] % group:
            return stored
        how = (8, 64) if word in ("router", "shared_score") else (bits, group)
        return list(tiny.quantise(weight, *how))

    return become


def sums_agree(packed: Packed) -> None:
    """The checksums in the manifest are those of the bytes, and of nothing else."""
    from flashmoe._core import xxh3_64

    assert xxh3_64(b"") == 0x2D06800538D394C2  # the published value
    for line in packed.files:
        data = (packed.path / line["path"]).read_bytes()
        assert len(data) == int(line["bytes"])
        assert hashlib.sha256(data).hexdigest() == line["sha256"]
    for layer, sums in packed.checksums.items():
        images = [packed.expert(layer, e)[1] for e in range(packed.count(layer))]
        assert sums == [f"{xxh3_64(image):016x}" for image in images]


# ------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_floats_stay(family: str, dtype: str, made: Write, tmp_path: Path) -> None:
    src = made(family, dtype=dtype, shards=3)
    packed = pack(src, tmp_path / "out")
    assert set(packed.tensors.values()) <= {dtype, "f32"}
    assert compare(packed, Published(family, src), same) > 4 * 12 * 3
    sums_agree(packed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 64), (5, 128), (6, 32), (8, 64)])
def test_mlx_becomes_records_without_loss(
    family: str, bits: int, group: int, made: Write, tmp_path: Path
) -> None:
    sizes = {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
    if family == "qwen3_moe":
        del sizes["shared_expert_intermediate_size"]
    src = tiny.quantise_mlx(made(family, **sizes), tmp_path / "mlx", bits, group,
                            overrides={"*down_proj": {"bits": 6, "group_size": 32}})  # fmt: skip
    prefix = "language_model.model." if family == "qwen3_5_moe" else "model."
    packed = pack(src, tmp_path / "out")
    assert packed.experts[0]["gate"] == f"affine:{bits}:{group}:bf16"
    assert packed.experts[0]["down"] == "affine:6:32:bf16"
    compare(packed, Published(family, src, prefix), same)
    sums_agree(packed)


def test_a_norm_stored_minus_one_says_so(made: Write, tmp_path: Path) -> None:
    text = (pack(made("qwen3_next"), tmp_path / "out").path / "manifest.fm").read_text()
    assert "tensor name=layers.0.mixer_norm quant=bf16 rows=1 cols=128 add=1\n" in text
    assert "tensor name=layers.0.delta_norm quant=bf16 rows=1 cols=32\n" in text


def test_small_files_come_along(made: Write, tmp_path: Path) -> None:
    src = shutil.copytree(made("qwen3_moe"), tmp_path / "src")
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt",
             "generation_config.json", "special_tokens_map.json", "LICENSE"]  # fmt: skip
    for name in names:
        (src / name).write_text(f"contents of {name}")
    (src / "notes.txt").write_text("not a part of the model")
    before = digest(src)
    dst = pack(src, tmp_path / "out").path
    assert digest(src) == before
    for name in (*names, "config.json"):
        assert (dst / name).read_bytes() == (src / name).read_bytes()
    new = {"resident.bin", "manifest.fm", "SHA256SUMS", *(f"experts-0{i}.bin" for i in range(4))}
    assert set(digest(dst)) == {*names, "config.json", *new}
    listed = dict(reversed(line.split("  ")) for line in
                  (dst / "SHA256SUMS").read_text().splitlines())  # fmt: skip
    found = digest(dst)
    del found["SHA256SUMS"]
    assert listed == found


# ------------------------------------------------------------------------------- what is quantised


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "bits", "group"),
    [("bf16", 4, 64), ("bf16", 2, 128), ("f16", 3, 32), ("f32", 8, 128)],
)
def test_quantised_as_mlx_does(
    family: str, dtype: str, bits: int, group: int, made: Write, tmp_path: Path
) -> None:
    src = made(family, dtype=dtype, shards=3)
    packed = pack(src, tmp_path / "out", bits=bits, group_size=group)
    assert packed.tensors["embed"] == f"affine:{bits}:{group}:{dtype}"
    assert packed.tensors["layers.0.router"] == f"affine:8:64:{dtype}"
    compare(packed, Published(family, src), as_mlx(bits, group))
    sums_agree(packed)


@pytest.mark.parametrize("bits", [2, 5, 6])
def test_quantised_experts_equal_a_lossless_pack_of_mlx(
    bits: int, made: Write, tmp_path: Path
) -> None:
    src = made("qwen3_5_moe")
    ours = pack(src, tmp_path / "ours", bits=bits, group_size=32)
    theirs = pack(tiny.quantise_mlx(src, tmp_path / "mlx", bits, 32), tmp_path / "theirs")
    for layer in range(4):
        name = f"experts-{layer:02d}.bin"
        assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes()


def test_hostile_numbers_are_quantised_as_mlx_does() -> None:
    from flashmoe.conversion.quantise import quantise
    from flashmoe.places import Quant

    random = np.random.RandomState(5)
    w = random.standard_normal((400, 256)) * 10.0 ** random.randint(-30, 20, (400, 1))
    w = w.astype(np.float32)
    w[0], w[1], w[2], w[3] = 0, -0.0, 1.5, -2.5
    w[4, ::2], w[5, 1:] = 0, 0
    w[6:10], w[10:14] = np.abs(w[6:10]), -np.abs(w[10:14])
    w[14] = np.arange(256) - 128
    w[15] = np.arange(256) / 2
    for dtype, kind in (("F32", "f32"), ("BF16", "bf16")):
        weight = tiny.tensor(w, dtype)
        for bits in (2, 3, 4, 5, 6, 8):
            for group in (32, 64, 128):
                got = quantise(weight.floats(), Quant("affine", bits, group, kind))
                want = parts_of(list(tiny.quantise(weight, bits, group)))
                assert {name: part.tobytes() for name, part in got.items()} == want


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_becomes_bf16_or_is_quantised_from_it(family: str, made: Write, tmp_path: Path) -> None:
    src = tiny.fp8(made(family), tmp_path / "fp8", block=32)
    source = Published(family, src)
    for name, t in list(source.tensors.items()):
        if t.dtype == "F8_E4M3":
            scale = source.tensors.pop(f"{name}_scale_inv").floats()
            wide = scale.repeat(32, 0).repeat(32, 1)[: t.data.shape[0], : t.data.shape[1]]
            source.tensors[name] = tiny.tensor(tiny.e4m3()[t.data] * wide, "BF16")
    plain = pack(src, tmp_path / "bf16")
    assert plain.experts[0] == dict.fromkeys(("gate", "up", "down"), "bf16")
    compare(plain, source, same)
    compare(pack(src, tmp_path / "q4", bits=4, group_size=32), source, as_mlx(4, 32))


def test_a_packed_float_model_can_be_quantised(made: Write, tmp_path: Path) -> None:
    src = made("qwen3_next")
    once = pack(src, tmp_path / "once", bits=4).path
    twice = convert(pack(src, tmp_path / "bf16").path, tmp_path / "twice", bits=4, progress=False)
    assert digest(once) == digest(twice)


def test_rows_that_the_group_does_not_divide_stay(made: Write, tmp_path: Path) -> None:
    packed = pack(made("qwen3_moe", moe_intermediate_size=48), tmp_path / "out", bits=4)
    assert packed.experts[0] == {
        "gate": "affine:4:64:bf16", "up": "affine:4:64:bf16", "down": "bf16"}  # fmt: skip


def test_any_number_of_workers_makes_the_same_bytes(made: Write, tmp_path: Path) -> None:
    src = made("qwen3_5_moe", shards=3)
    results = []
    for workers in (1, 2, 5):
        source = LocalSource(open_checkpoint(src))
        dst = tmp_path / str(workers)
        Conversion(source, dst, Options(Formats(4, 64), False, workers), Fs()).run()
        source.close()
        results.append(digest(dst))
    assert results[0] == results[1] == results[2]


def test_slabs_of_any_size_make_the_same_bytes(
    made: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = tiny.fp8(made("qwen3_next"), tmp_path / "fp8", block=32)
    whole = digest(pack(src, tmp_path / "whole", bits=4).path)
    monkeypatch.setattr("flashmoe.conversion.slabs.SLAB_NUMBERS", 999)
    monkeypatch.setattr("flashmoe.conversion.slabs.COPY_NUMBERS", 777)
    monkeypatch.setattr("flashmoe.conversion.sources.STEP_BYTES", 5000)
    assert digest(pack(src, tmp_path / "small", bits=4).path) == whole


# ------------------------------------------------------------------------------------ what it costs


def sparse_model(path: Path, vocab: int) -> int:
    """A bf16 model of zeros that takes no disk; returns its bytes."""
    tiny.write(path, "qwen3_moe", seed=0, dtype="bf16", hidden_size=512, vocab_size=vocab,
               num_hidden_layers=1, num_experts=2, num_experts_per_tok=1,
               moe_intermediate_size=512, tie_word_embeddings=True)  # fmt: skip
    return sum(p.stat().st_size for p in path.glob("*.safetensors"))


def grow_embedding(path: Path, vocab: int) -> int:
    """Give a one-file model a larger embedding, all zeros and sparse; returns the file's bytes."""
    file = path / "model.safetensors"
    table, body = tiny.header(file)
    name = "model.embed_tokens.weight"
    _begin, _end = table[name]["data_offsets"]
    rest = {n: e for n, e in table.items() if n not in (name, "__metadata__")}
    blobs, at = [], 0
    for e in rest.values():
        first, last = e["data_offsets"]
        blobs.append(body[first:last])
        e["data_offsets"] = [at, at + last - first]
        at += last - first
    hidden = table[name]["shape"][1]
    rest[name] = {"dtype": "BF16", "shape": [vocab, hidden],
                  "data_offsets": [at, at + 2 * vocab * hidden]}  # fmt: skip
    text = json.dumps(rest).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(blobs)
        out.truncate(8 + len(text) + at + 2 * vocab * hidden)
        size = out.seek(0, os.SEEK_END)
    config = json.loads((path / "config.json").read_text()) | {"vocab_size": vocab}
    (path / "config.json").write_text(json.dumps(config))
    return size


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    sparse_model(tmp_path / "src", vocab=64)
    size = grow_embedding(tmp_path / "src", vocab=300_000)
    assert size > 0.3e9  # in one tensor
    program = (
        "import sys\n"
        "from flashmoe.conversion import convert\n"
        "convert(sys.argv[1], sys.argv[2], bits=4, progress=False)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "src"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(run.stdout) * 1024
    assert peak < 150e6


def test_the_bar_counts_bytes_of_the_source(
    made: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(made("qwen3_moe"), tmp_path / "out")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "100%" in shown.err
    assert "converting to out" in shown.err


# --------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("inside", ["", "packed", "a/b"])
def test_never_writes_into_the_source(inside: str, made: Write, tmp_path: Path) -> None:
    src = shutil.copytree(made("qwen3_moe"), tmp_path / "src")
    before = digest(src)
    with pytest.raises(errors.ConversionError, match="lie inside each other"):
        convert(src, src / inside, progress=False)
    with pytest.raises(errors.ConversionError, match="lie inside each other"):
        convert(src, tmp_path, progress=False)
    assert digest(src) == before


def test_a_finished_model_is_left_alone(made: Write, tmp_path: Path) -> None:
    dst = pack(made("qwen3_moe"), tmp_path / "out").path
    before = digest(dst)
    with pytest.raises(errors.ConversionError, match="holds a finished model already"):
        convert(made("qwen3_moe"), dst, progress=False)
    assert digest(dst) == before


def test_a_directory_in_other_use_is_left_alone(made: Write, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(errors.ConversionError, match=r"is not empty: it holds thesis\.txt"):
        convert(made("qwen3_moe"), tmp_path / "out", progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(errors.ConversionError, match="is a file"):
        convert(made("qwen3_moe"), tmp_path / "out" / "thesis.txt", progress=False)


def test_no_room_is_said_before_anything_is_written(
    made: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(errors.ConversionError, match=r"out needs [\d,]+ bytes .* only 1,000 are"):
        convert(made("qwen3_moe"), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_is_quantised_is_not_quantised_again(made: Write, tmp_path: Path) -> None:
    src = tiny.quantise_mlx(made("qwen3_moe"), tmp_path / "mlx", 4, 64)
    with pytest.raises(errors.ConversionError, match=r"embed is quantised already \(affine:4:64"):
        convert(src, tmp_path / "out", bits=2, progress=False)
    assert not (tmp_path / "out").exists()
    packed = pack(src, tmp_path / "out").path
    with pytest.raises(errors.ConversionError, match="is packed already"):
        convert(packed, tmp_path / "again", progress=False)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"bits": 7}, "bits must be one of"),
        ({"bits": 1}, "bits must be one of"),
        ({"bits": 4, "group_size": 48}, "group_size must be one of"),
    ],
)
def test_formats_that_do_not_exist(option: dict, word: str, made: Write, tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match=word):
        convert(made("qwen3_moe"), tmp_path / "out", progress=False, **option)


def poison(path: Path, name: str, value: bytes, index: int = 0) -> None:
    """Overwrite one number of a tensor."""
    file = tiny.file_of(path, name)
    table, _ = tiny.header(file)
    data = bytearray(file.read_bytes())
    at = 8 + struct.unpack("<Q", data[:8])[0] + table[name]["data_offsets"][0] + index * len(value)
    data[at : at + len(value)] = value
    file.write_bytes(data)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.1.mlp.gate.weight", r"layers\.1\.router: weight, rows 0"),
        ("model.layers.0.input_layernorm.weight", r"layers\.0\.mixer_norm: weight"),
        ("model.layers.2.mlp.experts.7.up_proj.weight", r"layer 2, expert 7, up: weight"),
    ],
)
@pytest.mark.parametrize("value", [b"\x80\x7f", b"\x80\xff", b"\xc1\x7f"])  # inf, -inf, NaN
def test_nan_and_infinity_are_named(
    name: str, words: str, value: bytes, bits: int | None, made: Write, tmp_path: Path
) -> None:
    src = shutil.copytree(made("qwen3_moe"), tmp_path / "src")
    poison(src, name, value, index=3)
    with pytest.raises(errors.NumericalError, match=words + r".*model\.safetensors.* NaN or inf"):
        convert(src, tmp_path / "out", bits=bits, progress=False)
    assert not (tmp_path / "out" / "manifest.fm").exists()


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_nan_in_a_scale_is_named(part: str, made: Write, tmp_path: Path) -> None:
    src = tiny.quantise_mlx(made("qwen3_moe"), tmp_path / "mlx", 4, 32)
    poison(src, f"model.layers.3.mlp.switch_mlp.down_proj.{part}", b"\xc0\x7f", index=130)
    with pytest.raises(errors.NumericalError, match=rf"layer 3, expert 1, down: {part}"):
        convert(src, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("weight", b"\x7f"), ("weight_scale_inv", b"\xc0\x7f")]
)
def test_nan_in_fp8_is_named(name: str, value: bytes, made: Write, tmp_path: Path) -> None:
    src = tiny.fp8(made("qwen3_moe"), tmp_path / "fp8")
    poison(src, f"model.layers.1.self_attn.k_proj.{name}", value)
    with pytest.raises(errors.NumericalError, match=r"layers\.1\.k: .* NaN or infinity"):
        convert(src, tmp_path / "out", progress=False)


def test_numbers_too_far_apart_for_a_scale(made: Write, tmp_path: Path) -> None:
    src = shutil.copytree(made("qwen3_moe"), tmp_path / "src")
    poison(src, "model.layers.1.self_attn.k_proj.weight", b"\x7f\x7f\x7f\xff")  # largest, -largest
    with pytest.raises(errors.NumericalError, match=r"layers\.1\.k: rows .* too far apart"):
        convert(src, tmp_path / "out", bits=4, progress=False)


def test_a_truncated_source_is_refused(made: Write, tmp_path: Path) -> None:
    src = shutil.copytree(made("qwen3_moe"), tmp_path / "src")
    os.truncate(src / "model.safetensors", (src / "model.safetensors").stat().st_size - 1)
    with pytest.raises(errors.ModelFormatError, match="truncated"):
        convert(src, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_neither_a_directory_nor_an_id(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFormatError, match="is not a directory"):
        convert(tmp_path / "nothing", tmp_path / "out", progress=False)


def test_the_function_is_not_hidden_by_a_module() -> None:
    program = (
        "import flashmoe, flashmoe.conversion.run, flashmoe.verification\n"
        "assert callable(flashmoe.convert) and callable(flashmoe.verify)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ----------------------------------------------------------------------------------- what it is for


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_answers_as_its_source_does(
    family: str, made: Write, tmp_path: Path
) -> None:
    """To the bit: the numbers are the same, only their place is another."""
    import flashmoe

    plain = made(family)
    quantised = tiny.quantise_mlx(plain, tmp_path / "mlx", 4, 32)
    ids = np.random.RandomState(0).randint(0, 97, 40)
    for src in (plain, quantised):
        packed = convert(src, tmp_path / f"packed-{src.name}", progress=False)
        with flashmoe.Model(src, memory="1GB") as there, flashmoe.Model(packed) as here:
            assert np.array_equal(there.logits(ids), here.logits(ids))


def test_a_flipped_bit_in_a_record_never_becomes_a_token(made: Write, tmp_path: Path) -> None:
    import flashmoe

    packed = convert(made("qwen3_moe"), tmp_path / "out", bits=4, progress=False)
    file = packed / "experts-02.bin"
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), len(data) // 12):  # in every expert
        data[at + 100] ^= 4
    file.write_bytes(data)
    with (
        flashmoe.Model(packed) as model,
        pytest.raises(errors.IntegrityError, match=r"experts-02\.bin"),
    ):
        model.logits([1, 2, 3])
