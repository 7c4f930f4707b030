"""Everything that must be refused, with the words that say why; and that the next call works."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

import flashmoe
import tiny
from conftest import tokens
from flashmoe import Generator, Model, Sampler
from flashmoe.errors import (
    BudgetError,
    ExpertReadError,
    ModelFormatError,
    NumericalError,
    TokenizerError,
    UnsupportedModelError,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("refusals") / "model"
    tiny.write(path, "qwen3_5_moe", seed=41, vocab_size=320)
    tiny.tokenizer(path, 320)
    return path


@pytest.fixture
def copy(sound, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(sound, path)
    yield path
    with Model(sound) as model:  # nothing is left behind in this process
        assert np.isfinite(model.logits([1, 2, 3])).all()


def weights(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


def header(file: Path) -> tuple[dict, bytes]:
    data = file.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def rewrite(file: Path, table: dict, body: bytes) -> None:
    text = json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    data = json.loads(file.read_text())
    inner = data.get("text_config", data)
    for key, value in changes.items():
        nested = "text_config" in data and key != "model_type"
        (inner if key in inner or nested else data)[key] = value
    file.write_text(json.dumps(data))


def poison(path: Path, part: str, value: float = np.nan) -> str:
    """Put a number that is not finite into the first tensor whose name has ``part``."""
    file = weights(path)
    table, body = header(file)
    name = next(n for n in sorted(table) if part in n)
    begin, end = table[name]["data_offsets"]
    body = bytearray(body)
    size = {"F32": 4, "BF16": 2, "F16": 2}[table[name]["dtype"]]
    at = begin + (end - begin) // size // 2 * size
    raw = np.array([value], np.float32).tobytes()
    body[at : at + size] = raw if size == 4 else raw[2:]
    rewrite(file, table, bytes(body))
    return name


def test_truncated_shard(copy):
    file = weights(copy)
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(ModelFormatError, match=file.name):
        Model(copy)


def test_header_longer_than_the_file(copy):
    file = weights(copy)
    file.write_bytes(struct.pack("<Q", 10**7) + file.read_bytes()[8:])
    with pytest.raises(ModelFormatError, match="header"):
        Model(copy)


def test_overlapping_offsets(copy):
    file = weights(copy)
    table, body = header(file)
    names = sorted(
        (n for n in table if n != "__metadata__"), key=lambda n: table[n]["data_offsets"]
    )
    a, b = table[names[0]]["data_offsets"], table[names[1]]["data_offsets"]
    table[names[1]]["data_offsets"] = [b[0] - 4, b[1] - 4]
    assert a[1] == b[0]
    rewrite(file, table, body)
    with pytest.raises(ModelFormatError, match=names[1].replace(".", r"\.") + "|offset"):
        Model(copy)


def test_missing_tensor(copy):
    file = weights(copy)
    table, body = header(file)
    name = next(n for n in table if n.endswith("norm.weight") and "layers.1." in n)
    table["model.not_of_this_model.weight"] = table.pop(name)
    rewrite(file, table, body)
    with pytest.raises(ModelFormatError, match=r"layers\.1"):
        Model(copy)


def test_extra_tensor(copy):
    file = weights(copy)
    table, body = header(file)
    table["model.layers.0.surprise.weight"] = {
        "dtype": "F32", "shape": [2], "data_offsets": [len(body), len(body) + 8],
    }  # fmt: skip
    rewrite(file, table, body + b"\0" * 8)
    with pytest.raises(ModelFormatError, match="surprise"):
        Model(copy)


def test_misshapen_tensor(copy):
    file = weights(copy)
    table, body = header(file)
    name = next(n for n in table if n.endswith("mlp.gate.weight"))
    table[name]["shape"] = table[name]["shape"][::-1]
    rewrite(file, table, body)
    with pytest.raises(ModelFormatError, match=r"mlp\.gate\.weight"):
        Model(copy)


def test_shard_name_that_leaves_the_directory(copy):
    file = weights(copy)
    table, _ = header(file)
    shutil.move(file, copy.parent / "outside.safetensors")
    names = {n: "../outside.safetensors" for n in table if n != "__metadata__"}
    index = {"metadata": {}, "weight_map": names}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFormatError, match=r"\.\."):
        Model(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["mlp.gate.weight", "input_layernorm", "A_log", "lm_head"])
def test_resident_number_that_is_not_finite(copy, part, value):
    poison(copy, part, value)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        Model(copy)


def test_expert_number_that_is_not_finite(copy):
    poison(copy, "layers.0.mlp.experts")
    with Model(copy) as model:
        with pytest.raises(NumericalError, match="layer 0"):
            model.logits(tokens(200))
        with pytest.raises(NumericalError, match="layer 0"):
            model.logits(tokens(200))


def test_scale_that_is_not_finite(sound, tmp_path):
    tiny.quantise_mlx(sound, tmp_path / "mlx", 4, 32)
    poison(tmp_path / "mlx", "switch_mlp.down_proj.scales")
    with Model(tmp_path / "mlx") as model, pytest.raises(NumericalError, match="layer 0"):
        model.logits(tokens(200))
    poison(tmp_path / "mlx", "self_attn.q_proj.scales")
    with pytest.raises(NumericalError, match="NaN or infinite"):
        Model(tmp_path / "mlx")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts_per_tok": 1000}, "1000"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "mystery_moe"}, "mystery_moe"),
        ({"a_new_field_that_matters": 3}, "a_new_field_that_matters"),
        ({"layer_types": ["quantum_attention"] * 4}, "quantum_attention"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"attention_bias": True}, "attention_bias"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_config(copy, changes, words):
    config(copy, **changes)
    with pytest.raises(ModelFormatError, match=words):
        Model(copy)


def test_group_that_does_not_divide(sound, tmp_path):
    tiny.quantise_mlx(sound, tmp_path / "mlx", 4, 32)
    file = weights(tmp_path / "mlx")
    table, body = header(file)
    name = next(n for n in table if n.endswith("o_proj.scales"))
    rows, groups = table[name]["shape"]
    table[name]["shape"] = [rows * groups // 3, 3] if rows * groups % 3 == 0 else [1, rows * groups]
    rewrite(file, table, body)
    with pytest.raises(ModelFormatError, match=name.removesuffix(".scales").replace(".", r"\.")):
        Model(tmp_path / "mlx")


def test_tokenizer_larger_than_the_vocabulary(copy):
    tiny.tokenizer(copy, 400)
    with pytest.raises(TokenizerError, match="320"):
        Model(copy)


def test_missing_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with Model(copy) as model:
        assert Generator(model, Sampler(temperature=0)).generate([1, 2], max_tokens=2).token_ids
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            Generator(model).generate("words")


def test_budget_too_small(sound):
    with pytest.raises(BudgetError) as caught:
        Model(sound, memory="100KB")
    for words in (
        "resident weights",
        "activations",
        "KV cache",
        "expert slots",
        "memory is 0.000 GB",
    ):
        assert words in str(caught.value)


def test_budget_is_exceeded_by_a_long_conversation(sound):
    with Model(sound, memory="1GB") as model:
        i = model.info()
    fewest = i["resident_bytes"] + i["state_bytes"] + i["min_expert_slots"] * i["expert_bytes"]
    fewest += i["kv_bytes_per_token"] * 256
    for extra in range(0, 100_000_000, 50_000):
        try:
            model = Model(sound, memory=fewest + extra)
        except BudgetError:
            continue
        break
    with model:
        generator = Generator(model, Sampler(temperature=0))
        long = [1] * (model.context_length - 1)
        with pytest.raises(BudgetError, match="sessions would hold"):
            generator.generate(long, max_tokens=1)
        assert generator.generate([1, 2, 3], max_tokens=1).token_ids
        assert model.info()["held_bytes"] <= fewest + extra


def test_fp8_is_sent_to_convert(sound, tmp_path):
    tiny.fp8(sound, tmp_path / "fp8")
    with pytest.raises(UnsupportedModelError, match="flashmoe convert"):
        Model(tmp_path / "fp8")


def test_bad_arguments(sound):
    for options, words in [
        ({"kv_dtype": "f8"}, "kv_dtype must be one of"),
        ({"read": "tape"}, "read must be one of"),
        ({"read_threads": 0}, "read_threads"),
        ({"read_split": 3}, "read_split"),
        ({"device": "tpu"}, "tpu"),
        ({"threads": 0}, "threads"),
        ({"experts_per_token": 0}, "experts_per_token"),
        ({"experts_per_token": 99}, "99"),
        ({"memory": "lots"}, "lots"),
    ]:
        with pytest.raises((ValueError, flashmoe.FlashMoEError), match=words):
            Model(sound, **options)


def test_unknown_kernels(sound, monkeypatch):
    monkeypatch.setenv("FLASHMOE_KERNELS", "avx9000")
    with pytest.raises(UnsupportedModelError, match=r"avx9000.*ref"):
        Model(sound)


def test_file_truncated_while_running(copy):
    with Model(copy, read="buffered") as model:
        good = model.logits(tokens(2))
        file = weights(copy)
        data = file.read_bytes()
        os.truncate(file, len(data) // 3)
        with pytest.raises(ExpertReadError, match=file.name):
            model.logits(tokens(300, seed=3))
        file.write_bytes(data)
        assert np.array_equal(model.logits(tokens(2)), good)
        assert np.isfinite(model.logits(tokens(300, seed=3))).all()


def test_file_replaced_while_running(copy, sound):
    """A rename leaves the open file as it was: the old bytes go on being used."""
    with Model(sound) as model:
        want = model.logits(tokens(300, seed=3))
    with Model(copy) as model:
        file = weights(copy)
        other = copy / "other"
        other.write_bytes(b"\0" * file.stat().st_size)
        os.replace(other, file)
        assert np.array_equal(model.logits(tokens(300, seed=3)), want)
