"""The judges are judged: ``reference`` and ``tiny`` against transformers, torch and mlx-lm.

Seen when the golden data was made: float64 logits agree with transformers (its float32 casts
promoted) to an NMSE of 1e-29 and at most 1.0e-13 in any logit, while transformers' own float32
strays by 5e-12, and MLX in float32 by 4e-12. Bytes of quantised checkpoints are equal.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reference
import reference_weights
import tiny
import tiny_files
from make_golden import (
    BITS,
    GOLDEN,
    GROUPS,
    IDS,
    KINDS,
    MLX_CASES,
    ROWS,
    TEXT_CASES,
    YARN_CASES,
    bits_and_group,
    digest,
    fp8_codes,
    fp8_inputs,
    quantiser_rows,
    write_mlx_source,
)


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(((got - want) ** 2).sum() / (want**2).sum())


def golden(name: str):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_it_is_independent():
    """Neither judge may lean on what it judges."""
    for module in (tiny, tiny_files, reference, reference_weights):
        assert "flashmoe" not in Path(module.__file__).read_text("utf-8")


@pytest.mark.parametrize("name", TEXT_CASES)
def test_logits_of_transformers(tmp_path, name):
    family, options = TEXT_CASES[name]
    path = tiny.write(tmp_path / name, family, seed=5, **options)
    got = reference.logits(path, IDS)[ROWS]
    want = np.load(GOLDEN / "transformers.npz")[name]
    assert want.dtype == np.float64
    assert nmse(got, want) <= 1e-25
    assert np.abs(got - want).max() <= 1e-12
    assert 1e-14 < golden("transformers_float32_nmse")[name] <= 1e-10


@pytest.mark.parametrize("name", MLX_CASES)
def test_bytes_and_logits_of_mlx(tmp_path, name):
    source = write_mlx_source(tmp_path / "source", name)
    path = tiny.quantise_mlx(source, tmp_path / "mlx", *bits_and_group(name), **MLX_CASES[name][2])
    want = golden("mlx")[name]
    got = {key: digest(value) for key, value in sorted(tiny.read(path).items())}
    assert got == want["tensors"]
    assert json.loads((path / "config.json").read_text())["quantization"] == want["quantization"]
    logits = np.load(GOLDEN / "mlx.npz")[name].astype(np.float64)
    assert nmse(reference.logits(path, IDS)[ROWS], logits) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_quantiser_of_mlx(kind, bits, group):
    parts = tiny.quantise(quantiser_rows(kind, bits), bits, group)
    assert digest(*parts) == golden("quantiser")[f"{kind}_q{bits}_g{group}"]


def test_quantiser_rows_meet_every_rule():
    """The golden rows hold groups at both edges, without steps, and at the least scale."""
    _, scale, bias = tiny.affine(quantiser_rows("F32", 4).floats(), 4, 32)
    assert (scale > 0).any()
    assert (scale < 0).any()
    assert ((bias == 0) & (np.abs(scale) == np.float32(1e-7))).any()
    assert ((bias == 0) & (np.abs(scale) > 1e-6)).any() or (np.abs(bias) > 1e29).any()


def test_e4m3_of_torch():
    codes = tiny.nearest_e4m3(fp8_inputs())
    want = golden("fp8")
    assert digest(tiny.Tensor("U8", codes)) == want["encoded"]
    values = tiny.e4m3()[fp8_codes()]
    assert digest(tiny.Tensor("F32", values)) == want["decoded"]
    assert np.array_equal(values, reference_weights.E4M3[fp8_codes()])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fp8_is_its_blocks_spelled_out(tmp_path, family):
    """The FP8 release gives the logits of a float checkpoint with the dequantised weights."""
    options = {"hidden_size": 160, "moe_intermediate_size": 136, "layout": "per_expert"}
    source = tiny.write(tmp_path / "source", family, seed=3, **options)
    path = tiny.fp8(source, tmp_path / "fp8")
    release = tiny.read(path)
    spelled = {}
    for name, value in release.items():
        if value.dtype == "F8_E4M3":
            scale = release[name + "_scale_inv"].floats()
            rows, columns = np.indices(value.data.shape) // 128
            spelled[name] = tiny.tensor(tiny.e4m3()[value.data] * scale[rows, columns], "F32")
        elif not name.endswith("_scale_inv"):
            spelled[name] = tiny.tensor(value.floats(), "F32")
    assert any(v.data.size > 1 for n, v in release.items() if n.endswith("_scale_inv"))
    assert set(spelled) == set(tiny.read(source))
    tiny.save(source / "model.safetensors", spelled)
    ids = IDS[:20]
    assert nmse(reference.logits(path, ids), reference.logits(source, ids)) <= 1e-10


def test_layout_shards_and_nesting_change_nothing(tmp_path):
    want = reference.logits(tiny.write(tmp_path / "a", "qwen3_5_moe", seed=1), IDS[:20])
    for i, options in enumerate(
        ({"layout": "per_expert"}, {"shards": 4}, {"nested": True, "extras": True})
    ):
        path = tiny.write(tmp_path / str(i), "qwen3_5_moe", seed=1, **options)
        assert np.array_equal(reference.logits(path, IDS[:20]), want), options


def test_all_spellings_of_a_rope(tmp_path):
    """``type`` or ``rope_type``, the base at the top or inside: four ways to say the same."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64}
    spellings = [
        {"rope_scaling": {key: "yarn", **yarn, **inside}, "rope_theta": outside}
        for key in ("type", "rope_type")
        for inside, outside in (({}, 5e5), ({"rope_theta": 5e5}, ...))
    ]
    spellings += [{"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **yarn}}]
    spellings += [{"rope_parameters": {"type": "yarn", **yarn}, "rope_theta": 5e5}]
    got = [
        reference.logits(tiny.write(tmp_path / str(i), "qwen3_moe", seed=2, **spelling), IDS[:90])
        for i, spelling in enumerate(spellings)
    ]
    assert all(np.array_equal(g, got[0]) for g in got[1:])
    plain = tiny.write(tmp_path / "plain", "qwen3_moe", seed=2, rope_theta=5e5)
    assert nmse(reference.logits(plain, IDS[:90]), got[0]) > 1e-4


@pytest.mark.parametrize("index", range(len(YARN_CASES)))
def test_yarn_of_transformers(index):
    case, want = YARN_CASES[index], golden("yarn")[index]
    dim = int(64 * case.get("partial_rotary_factor", 1))
    freq, factor = reference.yarn_inv_freq(case["rope_theta"], dim, case)
    assert np.allclose(freq, want["inv_freq"], rtol=1e-13, atol=0)
    assert factor == pytest.approx(want["factor"], rel=1e-15)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_of_the_delta_rule(size):
    """The chunked form is the recurrence, for ragged chunks, strong decay and any state."""
    stream = np.random.RandomState(size)
    n, heads, dk, dv = 150, 3, 16, 24
    q, k = stream.standard_normal((2, n, heads, dk))
    k /= np.sqrt((k * k).sum(-1, keepdims=True))
    v = stream.standard_normal((n, heads, dv))
    g, beta = -(stream.exponential(2.0, (n, heads)) ** 3), stream.uniform(0, 1, (n, heads))
    start = stream.standard_normal((heads, dk, dv))
    state, steps = start, np.empty((n, heads, dv))
    for t in range(n):
        steps[t], state = reference.delta_step(state, q[t], k[t], v[t], g[t], beta[t])
    end, chunks = start, []
    for i in range(0, n, size):
        part = slice(i, i + size)
        out, end = reference.delta_chunk(end, q[part], k[part], v[part], g[part], beta[part])
        chunks.append(out)
    assert np.abs(np.concatenate(chunks) - steps).max() <= 1e-11
    assert np.abs(end - state).max() <= 1e-12


def test_attention_with_a_past():
    """Queries at the end of a text see what they see in the whole of it."""
    stream = np.random.RandomState(0)
    q, k, v = (stream.standard_normal((30, heads, 8)) for heads in (6, 3, 3))
    whole = reference.attention(q, k, v, 0.3)
    assert np.allclose(reference.attention(q[20:], k, v, 0.3), whole[20:], rtol=0, atol=1e-14)
    assert np.allclose(whole[0], v[0].repeat(2, 0), rtol=0, atol=1e-15)


def test_tokenizer_counts_its_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    for vocab in (259, 320, 400):
        tiny.tokenizer(tmp_path, vocab)
        made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert made.get_vocab_size() == vocab
        ids = made.encode("the aé😀 tin<|im_end|>").ids
        assert ids[-1] == vocab - 1 == made.token_to_id("<|im_end|>")
        assert made.decode(ids, skip_special_tokens=False) == "the aé😀 tin<|im_end|>"


def test_breakage_is_where_it_was_asked_for(tmp_path):
    path = tiny.write(tmp_path / "m", "qwen3_moe", seed=1, shards=2, dtype="bf16")
    before = tiny.read(path)
    broken = before["model.norm.weight"].floats().copy()
    broken[3] = np.nan
    tiny.rewrite_tensor(path, "model.norm.weight", broken)
    after = tiny.read(path)
    changed = [n for n in before if digest(before[n]) != digest(after[n])]
    assert changed == ["model.norm.weight"]
    assert np.flatnonzero(np.isnan(after["model.norm.weight"].floats())).tolist() == [3]
    file = tiny.file_of(path, "model.norm.weight")
    tiny.edit_header(file, lambda table: table["model.norm.weight"].update(dtype="F16"))
    assert tiny.header(file)[0]["model.norm.weight"]["dtype"] == "F16"
    size = file.stat().st_size
    tiny.truncate(file, 7)
    assert file.stat().st_size == size - 7
