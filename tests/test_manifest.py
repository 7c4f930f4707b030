"""The manifest: its text round-trips exactly, anything else is refused with the line."""

from __future__ import annotations

import dataclasses

import pytest

import layouts
from flashmoe.checkpoint import open_checkpoint
from flashmoe.errors import ModelFormatError
from flashmoe.manifest import (
    Blocks,
    Experts,
    Extent,
    FileEntry,
    Manifest,
    Quant,
    Tensor,
    tensor_shapes,
)
from flashmoe.spec import Attention, Delta, Dense, Layer, ModelSpec, MoE, Rope

SPEC = ModelSpec(
    hidden_size=64,
    vocab_size=96,
    norm_eps=1e-6,
    max_positions=262144,
    tied=False,
    ropes=(Rope(8, 1.0, (1.0, 0.1, 0.01, 0.1**3)), Rope(4, 1.1386294361119891, (1.0, 1 / 3))),
    layers=(
        Layer(Delta(2, 4, 16, 32, 4), MoE(70, 3, True, 32, 0)),
        Layer(Attention(4, 2, 16, 1, 16**-0.5, True, True), Dense(96)),
        Layer(Attention(4, 1, 32, 0, 0.3, False, False), MoE(5, 5, False, 64, 32)),
    ),
)


def sample() -> Manifest:
    """A manifest with every word of the grammar in it."""
    q4 = Quant("affine", 4, 32, "bf16")
    tensors, at = {}, 100
    for name, (rows, cols) in tensor_shapes(SPEC).items():
        quant = q4 if name.endswith((".q", ".out")) else Quant("f32")
        blocks: dict[str, list[Blocks]] = {}
        for part in quant.parts:
            nbytes = quant.part_bytes(part, rows, cols)
            if rows % 2 == 0:
                blocks[part] = [Blocks(1, at, rows // 2, 2, nbytes)]
            else:
                blocks[part] = [Blocks(0, at, rows)]
            at += 2 * nbytes
        tensors[name] = Tensor(name, quant, rows, cols, **blocks, add=int(name == "norm"))
    packed = Experts(
        0,
        q4,
        q4,
        Quant("affine", 6, 32, "f16"),
        [Extent("record", 2, 4096, 8192)],
        [i * 0x0123456789ABCDE % 2**64 for i in range(70)],
    )
    each = Experts(
        2,
        Quant("f16"),
        Quant("bf16"),
        Quant("f32"),
        [
            Extent("gate.weight", 1, 5, 8192),
            Extent("up.weight", 0, 0, None, [(e % 2, 10 + 9000 * e) for e in range(5)]),
            Extent("down.weight", 1, 7, 16384),
        ],
    )
    files = [
        FileEntry("a.safetensors", 10_000_000),
        FileEntry("b", 10_000_000, "0a" * 32),
        FileEntry("experts-0.bin", 4096 + 70 * 8192),
    ]
    return Manifest(SPEC, files, tensors, [packed, each])


def test_round_trip():
    manifest = sample()
    manifest.check()
    text = manifest.to_text()
    assert Manifest.parse(text) == manifest
    assert Manifest.parse(text).to_text() == text
    assert Manifest.parse("# a comment\n\n" + text.replace("\n", "\r\n  \n")) == manifest


def test_words():
    """The lines as the core's description of them has them."""
    lines = sample().to_text().splitlines()
    assert lines[:2] == [
        "flashmoe version=1",
        "model hidden_size=64 vocab_size=96 layers=3 norm_eps=1e-06 max_positions=262144 tied=0",
    ]
    for line in [
        f"file index=1 path=b bytes=10000000 sha256={'0a' * 32}",
        "rope index=0 dims=8 scale=1 inv_freq=1,0.1,0.01,0.0010000000000000002",
        "layer index=0 mixer=delta key_heads=2 value_heads=4 key_dim=16 value_dim=32 conv_taps=4 "
        "ffn=moe experts=70 experts_per_token=3 renormalise=1 intermediate_size=32 "
        "shared_intermediate_size=0",
        "layer index=1 mixer=attention heads=4 kv_heads=2 head_dim=16 rope=1 scale=0.25 gated=1 "
        "qk_norm=1 ffn=dense intermediate_size=96",
        "tensor name=norm quant=f32 rows=1 cols=64 add=1",
        "tensor name=layers.1.q quant=affine:4:32:bf16 rows=64 cols=64",
        "experts layer=0 gate=affine:4:32:bf16 up=affine:4:32:bf16 down=affine:6:32:f16",
        "extent layer=0 part=record file=2 base=4096 stride=8192",
        "extent layer=2 part=up.weight file=1 expert=3 base=27010",
    ]:
        assert line in lines
    sums = [line for line in lines if line.startswith("checksum")]
    assert [s.count(",") + 1 for s in sums] == [64, 6]
    assert sums[1].startswith("checksum layer=0 first=64 xxh3=")


def test_record_layout():
    """gate, up, down; weight, scales, biases; each on 64 bytes; a record on 4096."""
    layout = sample().record_layout(0)
    sizes = {"gate": (1024, 128, 128), "up": (1024, 128, 128), "down": (64 * 24, 128, 128)}
    at = 0
    for projection, expected in sizes.items():
        for part, nbytes in zip(("weight", "scales", "biases"), expected, strict=True):
            got = layout.parts[f"{projection}.{part}"]
            assert (got.at, got.nbytes) == (at, nbytes)
            at += -(-nbytes // 64) * 64
    assert (layout.nbytes, layout.record_stride) == (at, 8192)
    assert list(layout.parts) == [f"{p}.{x}" for p in sizes for x in ("weight", "scales", "biases")]


def test_record_layout_pads_odd_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "WIDE", 33)
    monkeypatch.setattr(layouts, "H", 36)
    layouts.write(tmp_path / "model", "qwen3_moe", "separate", "F16")
    manifest = open_checkpoint(tmp_path / "model").manifest
    layout = manifest.record_layout(0)
    assert {p.nbytes for p in layout.parts.values()} == {33 * 36 * 2} == {2376}
    assert [p.at for p in layout.parts.values()] == [0, 2432, 4864]
    assert (layout.nbytes, layout.record_stride) == (7296, 8192)
    assert manifest.expert_bytes(0) == 7296
    assert manifest.total_expert_bytes == 3 * 6 * 7296


def test_resident_bytes():
    """What the core allocates: small vectors widened to float32, parts on 64 bytes."""
    manifest = sample()
    halves = {
        n: dataclasses.replace(t, quant=Quant("f16")) if t.quant.kind == "f32" else t
        for n, t in manifest.tensors.items()
    }
    total = 0
    for name, t in halves.items():
        if name.endswith(("norm", "conv", "a_log", "dt_bias")):
            total += -(-t.rows * t.cols * 4 // 64) * 64
        elif t.quant.kind == "affine":
            total += t.rows * t.cols // 2 + 2 * (t.rows * t.cols // 32 * 2)
        else:
            total += -(-t.rows * t.cols * 2 // 64) * 64
    assert dataclasses.replace(manifest, tensors=halves).resident_bytes == total


QUANTS = [
    "f32",
    "f16",
    "bf16",
    "affine:4:64:bf16",
    "affine:2:128:f32",
    "fp8:128:128:bf16",
    "fp8:1:32:e8m0",
]


@pytest.mark.parametrize("text", QUANTS)
def test_quant(text):
    assert Quant.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f64",
        "bf16 ",
        "affine",
        "affine:7:64:bf16",
        "affine:4:16:bf16",
        "affine:4:64:e8m0",
        "affine:04:64:bf16",
        "affine:4:64:bf16:1",
        "fp8:0:128:bf16",
        "fp8:128:bf16",
        "affine:-4:64:bf16",
        "affine:٤:64:bf16",
    ],
)
def test_no_such_quant(text):
    with pytest.raises(ModelFormatError, match="there is no number format"):
        Quant.parse(text)


def test_rows_that_groups_do_not_divide():
    with pytest.raises(ModelFormatError, match="rows of 100 numbers cannot be affine:4:64:bf16"):
        Quant.parse("affine:4:64:bf16").row_bytes(100)


BAD_LINES = [
    # a line, what it becomes, words
    ("flashmoe version=1", "flashmoe version=2", "line 1: version 2.*reads version 1"),
    ("flashmoe version=1", "flashmoe version=1 more=2", "flashmoe does not know more"),
    ("flashmoe version=1", "", "line 2: model where a flashmoe line must be"),
    ("model ", "model hidden_size=64 ", "hidden_size is given twice"),
    ("model ", "model wide ", "'wide' is not key=value"),
    ("model ", "model colour=red ", "line 2: model does not know colour"),
    (" tied=0", "", "line 2: model has no tied"),
    (" tied=0", " tied=2", "tied=2 is neither 0 nor 1"),
    ("hidden_size=64", "hidden_size=-64", "hidden_size=-64 is not an integer"),
    ("hidden_size=64", "hidden_size=64.0", "hidden_size=64.0 is not an integer"),
    ("hidden_size=64", "hidden_size=99999999999999999999", "is not an integer"),
    ("hidden_size=64", "hidden_size=16777217", "hidden_size is 16777217"),
    ("norm_eps=1e-06", "norm_eps=nan", "norm_eps is not a list of numbers"),
    ("norm_eps=1e-06", "norm_eps=1,2", "norm_eps is not one number"),
    ("norm_eps=1e-06", "norm_eps=0", "norm_eps is 0"),
    ("layers=3", "layers=4", "3 layer lines for layers=4"),
    ("file index=1", "file index=2", "file index=2 where 1 must be"),
    ("path=b ", "path=../b ", "line 4: .*'../b' is not a plain name"),
    ("sha256=0a", "sha256=xx", "sha256=xx.* is not 64 hex"),
    ("rope index=1 dims=4", "rope index=1 dims=6", "rope 1: dims is 6 with 2 frequencies"),
    ("inv_freq=1,0.1,", "inv_freq=1,,", "inv_freq is not a list of numbers"),
    ("inv_freq=1,0.1,", "inv_freq=1,1e999,", "rope 0: inv_freq is inf"),
    ("mixer=delta", "mixer=mamba", "there is no mixer 'mamba'"),
    ("ffn=dense", "ffn=sparse", "there is no ffn 'sparse'"),
    ("rope=1 scale", "rope=2 scale", "layer 1: rope is 2"),
    ("experts_per_token=3", "experts_per_token=71", "layer 0: experts_per_token is 71 of 70"),
    ("heads=4 kv_heads=2", "heads=4 kv_heads=3", "layer 1: 4 heads cannot share 3 kv_heads"),
    ("value_heads=4", "value_heads=5", "layer 0: 5 value_heads cannot share 2 key_heads"),
    ("conv_taps=4", "conv_taps=0", "layer 0: conv_taps is 0"),
    ("tensor name=lm_head", "tensor name=lm_hat", "tensor lm_hat has no place"),
    ("tensor name=norm", "tensor name=embed", "tensor embed is given twice"),
    (
        "tensor name=norm quant=f32 rows=1 cols=64",
        "tensor name=norm quant=f32 rows=1 cols=32",
        r"tensor norm is \[1, 32\]; it must be \[1, 64\]",
    ),
    (
        "quant=affine:4:32:bf16 rows=64 cols=64",
        "quant=affine:4:128:bf16 rows=64 cols=64",
        "rows of 64 numbers cannot be affine:4:128",
    ),
    ("quant=f32 rows=96 cols=64", "quant=f31 rows=96 cols=64", "line .*no number format 'f31'"),
    (
        "weight file=1 at=100 rows=48 count=2",
        "weight file=1 at=100 rows=48 count=3",
        "weight of tensor embed: 144 rows are placed; there must be 96",
    ),
    (
        "weight file=1 at=100 rows=48 count=2",
        "weight file=1 at=100 rows=0 count=2",
        "rows and count must be at least 1",
    ),
    ("weight file=1 at=100 ", "weight file=3 at=100 ", "weight of tensor embed is in file 3 of 3"),
    (
        "weight file=1 at=100 ",
        "weight file=1 at=9999999 ",
        "is 36864 bytes at 9999999 of b, which has 10000000",
    ),
    ("\nexperts layer=0", "\nexperts layer=1", "layer 1 has no experts"),
    (
        "part=record file=2 base=4096 stride=8192",
        "part=record file=2 base=4096 stride=4288",
        "layer 0: record: stride 4288 is less than 4352",
    ),
    (
        "part=record file=2 base=4096",
        "part=record file=2 base=8192",
        "layer 0: record is .* of experts-0.bin",
    ),
    (
        "part=record",
        "part=gate.weight",
        r"layer 0: extents \('gate.weight',\); they must be \('gate.weight', 'gate.scales'",
    ),
    ("expert=3 base", "expert=4 base", "up.weight expert=4 where 3 must be"),
    (
        "expert=4 base=36010",
        "expert=4 base=9999990",
        "layer 2: up.weight is 4096|layer 2: up.weight is 8192",
    ),
    ("extent layer=0", "extent layer=2", "extent layer=2 under experts layer=0"),
    ("first=64 ", "first=65 ", "checksums from 65 where they go on from 64"),
    ("xxh3=0000000000000000,", "xxh3=", "69 checksums for 70|go on from 63"),
    ("xxh3=0000000000000000,", "xxh3=zz00000000000000,", "checksum 'zz00000000000000' is not 16"),
    (
        "experts layer=2",
        "tensor name=late quant=f32 rows=1 cols=1\nexperts layer=2",
        "'tensor' has no place here",
    ),
]


@pytest.mark.parametrize(("old", "new", "words"), BAD_LINES, ids=lambda v: str(v)[:30])
def test_refused(old, new, words):
    text = sample().to_text()
    assert old in text
    with pytest.raises(ModelFormatError, match=words):
        Manifest.parse(text.replace(old, new, 1))


def test_any_line_missing():
    """No line can go without being missed."""
    lines = sample().to_text().splitlines()
    for i in range(len(lines)):
        text = "\n".join(lines[:i] + lines[i + 1 :])
        with pytest.raises(ModelFormatError):
            Manifest.parse(text)


def test_empty():
    with pytest.raises(ModelFormatError, match="ends where a flashmoe line must be"):
        Manifest.parse("")


def test_layers_without_experts():
    with pytest.raises(ModelFormatError, match="layer 1 has no routed experts"):
        sample().record_layout(1)
    with pytest.raises(ModelFormatError, match="layer 1 has no routed experts"):
        sample().expert_shapes(1)
