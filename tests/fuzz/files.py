"""The parsers of a model directory's files."""

from __future__ import annotations

import atexit
import json
import shutil
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import layouts
from flashmoe.chat_prompt import chat_prompt
from flashmoe.checkpoint import read_config_json, read_index
from flashmoe.errors import FlashMoEError, ModelFormatError
from flashmoe.families import read_config, text_config
from flashmoe.manifest import Manifest, check_file_name
from flashmoe.prefix_files import read as read_prefix
from flashmoe.prefix_files import write as write_prefix
from flashmoe.quantization import read_quantization
from flashmoe.safetensors import DTYPE_BITS, parse_header, read_header
from flashmoe.structured import compile_constraint
from flashmoe.tokenizer import Tokenizer
from flashmoe.tool_calls import tool_style
from fuzz import by_hand
from fuzz.harness import CORPUS, Target
from fuzz.mutate import damage_bytes, damage_tree, dumped, json_mutator, text_mutator

TESTS = Path(__file__).parent.parent
CONFIGS = TESTS / "data" / "configs"


@cache
def scratch() -> Path:
    """A folder of this process, in memory where there is such a file system."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="flashmoe_fuzz_", dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# safetensors ------------------------------------------------------------------------------


def _header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def _one(dtype: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def _safetensors_seeds() -> list[bytes]:
    several = _header(
        b=_one("U8", [3], 0, 3),
        __metadata__={"format": "mlx", "n": "1"},
        a=_one("BF16", [2, 1, 2], 3, 11),
        scalar=_one("F64", [], 11, 19),
        none=_one("F32", [4, 0], 19, 19),
        half=_one("F4", [10], 19, 24),
    )
    return [several + bytes(24), _header(a=_one("F32", [2, 3], 0, 24)) + bytes(24), _header()]


def _odd_safetensors() -> list[bytes]:
    return [struct.pack("<Q", len(text)) + text.encode() + b"a" for text in by_hand.SAFETENSORS]


def check_safetensors(data: bytes) -> None:
    """A whole file: header, then as many bytes as there are."""
    path = scratch() / "x.safetensors"
    path.write_bytes(data)
    header = read_header(path)
    with suppress(ModelFormatError):  # of a file elsewhere the first bytes alone are read
        assert parse_header(data[: len(data) // 2], len(data), path.name) == header
    at = header.file_size - sum(t.nbytes for t in header.tensors.values())
    for tensor in sorted(header.tensors.values(), key=lambda t: (t.at, t.nbytes)):
        assert tensor.at == at, "tensors do not lie one after another"
        at += tensor.nbytes
    assert at == header.file_size == len(data)


_TENSOR_KEYS = ("dtype", "shape", "data_offsets", "__metadata__", "a", "b", *DTYPE_BITS)


def _mutate_safetensors(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The header as a tree, mostly with its right length; sometimes the body's length follows."""
    if rng.random() < 0.2 or len(data) < 8:
        return damage_bytes(rng, data, others)
    length = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + length], data[8 + length :]
    text = json_mutator(_TENSOR_KEYS)(rng, text, [o[8:] for o in others[:20]])
    if rng.random() < 0.3:
        body = bytes(rng.choice((0, 1, 3, 24, len(body) + 1, 4096)))
    size = len(text) if rng.random() < 0.95 else rng.choice((0, 1, len(text) - 1, 2**63, 10**8 + 1))
    return struct.pack("<Q", max(0, size) % 2**64) + text + body


# index, config, manifest ------------------------------------------------------------------


def _check_index(data: bytes) -> None:
    path = scratch() / "model.safetensors.index.json"
    path.write_bytes(data)
    for file in read_index(path).values():
        check_file_name(file)
        assert (path.parent / file).resolve().parent == path.parent.resolve()


def _index_seeds() -> list[bytes]:
    names = {f"model.layers.{i}.w": f"model-0000{i}-of-00003.safetensors" for i in range(3)}
    return [json.dumps({"metadata": {"total_size": 1}, "weight_map": names}).encode()]


def check_config(data: bytes) -> None:
    """A whole config.json, up to the spec and the number formats."""
    (scratch() / "config.json").write_bytes(data)
    config = read_config_json(scratch())
    _, spec = read_config(config)
    spec.validate()
    read_quantization(config, text_config(config))


def config_seeds() -> list[bytes]:
    """The published configs, fewer layers and words."""
    seeds = []
    for path in sorted(CONFIGS.glob("*.json")):
        config = json.loads(path.read_text())
        text = config.get("text_config", config)
        layers = text["num_hidden_layers"] = min(8, text["num_hidden_layers"])
        if "layer_types" in text:
            text["layer_types"] = text["layer_types"][:layers]
        config.pop("vision_config", None)
        seeds.append(json.dumps(config).encode())
    yarn = json.loads(seeds[0])
    yarn.get("text_config", yarn)["rope_scaling"] = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "attention_factor": 1.1, "truncate": True,
    }  # fmt: skip
    yarn["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine", "a.b": {"bits": 8}}
    fp8 = json.loads(seeds[-1])
    fp8["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return [*seeds, json.dumps(yarn).encode(), json.dumps(fp8).encode()]


def _odd_configs() -> list[bytes]:
    own = json.dumps(layouts.config("qwen3_5_moe")).encode()
    return [by_hand.edited(own, *changes) for changes in by_hand.CONFIG]


CONFIG_KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "truncate", "beta_fast",
    "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings", "text_config", "quantization", "quantization_config",
    "mlp_only_layers", "decoder_sparse_step", "full_attention_interval", "layer_types",
    "num_experts", "num_local_experts", "num_experts_per_tok", "head_dim", "model_type", "bits",
    "group_size", "quant_method", "weight_block_size", "intermediate_size", "hidden_size",
)  # fmt: skip


def _manifest_seeds() -> list[bytes]:
    folder = CORPUS / "manifest"
    return [(folder / f"seed-{name}").read_bytes() for name in ("sample", "packed", "dense")]


def _odd_manifests() -> list[bytes]:
    """Those of the core's reader, too."""
    folder = CORPUS / "manifest"
    texts = [
        ((folder / f"seed-{name}").read_text().replace(old, new)).encode()
        for name, old, new in by_hand.MANIFEST
    ]
    return [*texts, *(path.read_bytes() for path in sorted(folder.glob("*")))]


def check_manifest(data: bytes) -> None:
    """A manifest.fm; what is taken is written back and read alike."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:  # as the opening of a packed directory does
        raise ModelFormatError("no plain text") from error
    manifest = Manifest.parse(text)
    assert Manifest.parse(manifest.to_text()) == manifest, "another manifest is written"


_MANIFEST_WORDS = (
    "flashmoe", "version=1", "model", "file", "rope", "layer", "tensor", "weight", "scales",
    "biases", "experts", "extent", "checksum", "index=0", "rows=1", "count=", "stride=", "at=",
    "part=record", "part=gate.weight", "expert=0", "base=", "quant=affine:4:32:bf16", "quant=fp8:",
    "16777216", "9223372036854775807", "65536", "mixer=delta", "ffn=dense", "path=../a", "e999",
)  # fmt: skip


# saved sequences --------------------------------------------------------------------------


@cache
def _prefix_file() -> bytes:
    path = scratch() / "seed.prefix"
    write_prefix(path, 7, np.arange(3, dtype=np.int32), np.arange(40, dtype=np.uint8))
    return path.read_bytes()


def _check_prefix(data: bytes) -> None:
    path = scratch() / "x.prefix"
    path.write_bytes(data)
    ids, snapshot = read_prefix(path, 7)
    assert len(data) == 40 + 4 * len(ids) + len(snapshot)


def _mutate_prefix(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Half of the damage has a checksum that is right."""
    from flashmoe import _core

    data = damage_bytes(rng, data, others)
    if rng.random() < 0.7 and len(data) >= 40:
        n = int.from_bytes(data[12:16], "little")
        if rng.random() < 0.5:
            n = rng.choice((0, 1, 3, (len(data) - 40) // 4, 2**31, 2**32 - 1))
            rest = (len(data) - 40 - 4 * n) % 2**64
            data = data[:12] + struct.pack("<IQQ", n, 7, rest) + data[32:]
        body = data[:32] + data[40 : 40 + 4 * n]
        data = data[:32] + struct.pack("<Q", _core.xxh3_64(body)) + data[40:]
    return data


# tokenizer --------------------------------------------------------------------------------

_TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": 12, "content": "<|im_end|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True},
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+"}, "behavior": "Isolated",
         "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
         "use_regex": False}]},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                       "use_regex": False},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                "use_regex": False},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
              "ignore_merges": False,
              "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4, "Ġ": 5, "Ã": 6, "©": 7, "Ã©": 8,
                        "Ġa": 9, "Ġab": 10, "x": 11},
              "merges": [["a", "b"], ["ab", "c"], ["Ã", "©"], ["Ġ", "a"], ["Ġ", "ab"]]},
}  # fmt: skip
_TOKENIZER_FILES = {
    "tokenizer.json": _TOKENIZER,
    "tokenizer_config.json": {
        "eos_token": "<|im_end|>", "pad_token": {"content": "a"}, "chat_template": "{{ 1 }}",
        "added_tokens_decoder": {"12": {"content": "<|im_end|>", "special": True}},
    },
    "generation_config.json": {"eos_token_id": [12, 0], "temperature": 0.7, "do_sample": False},
    "config.json": {"eos_token_id": 12, "text_config": {"eos_token_id": 0}},
    "special_tokens_map.json": None,
    "chat_template.json": None,
    "chat_template.jinja": None,
    "additional_chat_templates/tool_use.jinja": None,
}  # fmt: skip
_TOKENIZER_KEYS = (
    "type", "BPE", "WordPiece", "Unigram", "WordLevel", "ByteLevel", "Metaspace", "Sequence",
    "Replace", "Strip", "ByteFallback", "Fuse", "Lowercase", "NFKC", "Prepend", "Digits", "vocab",
    "merges", "added_tokens", "decoder", "decoders", "normalizer", "normalizers", "pattern",
    "Regex", "String", "content", "id", "special", "added_tokens_decoder", "eos_token_id",
    "Template", "TemplateProcessing", "Precompiled", "precompiled_charsmap", "<0x0A>", "unk_id",
    "truncation", "padding", "max_length", "stride", "strategy", "direction", "BatchLongest",
    "start", "stop", "cleanup", "prefix", "max_input_chars_per_word", "dropout",
)  # fmt: skip


def _tokenizer_seeds() -> list[bytes]:
    """The files of a directory as one JSON object; other models and decoders."""
    seeds = [json.dumps(_TOKENIZER_FILES).encode()]
    pieces = json.loads(seeds[0])
    stored = pieces["tokenizer.json"]
    stored["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    stored["pre_tokenizer"] = stored["post_processor"] = None
    stored["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}  # fmt: skip
    stored["model"]["byte_fallback"] = True
    stored["model"]["vocab"] |= {"<0x0A>": 12, "<0xC3>": 13, "▁": 14}
    stored["added_tokens"][0]["id"] = 15
    pieces["tokenizer_config.json"] = pieces["generation_config.json"] = pieces["config.json"] = {}
    seeds.append(json.dumps(pieces).encode())
    stored["model"] = {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                       "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁", -2.0], ["ab", -3.5]]}  # fmt: skip
    stored["added_tokens"] = []
    seeds.append(json.dumps(pieces).encode())
    return seeds


def _odd_tokenizers() -> list[bytes]:
    sound = json.dumps(_TOKENIZER_FILES).encode()
    return [by_hand.edited(sound, *changes) for changes in by_hand.TOKENIZER]


def check_tokenizer(data: bytes) -> None:
    """Load a directory, then encode and decode with it."""
    try:
        files = json.loads(data)
    except (ValueError, RecursionError):
        files = {"tokenizer.json": data.decode("utf-8", "replace")}
    folder = scratch() / "tokenizer"
    (folder / "additional_chat_templates").mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        value = files.get(name) if isinstance(files, dict) else None
        path = folder / name
        if value is None:
            path.unlink(missing_ok=True)
        else:  # a text is the file itself
            text = value if isinstance(value, str) else json.dumps(value)
            path.write_bytes(text.encode(errors="surrogatepass"))
    tokenizer = Tokenizer.from_directory(folder, num_logits=1 << 20)
    ids = tokenizer.encode("abc ab\né😀<|im_end|>")
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    stream = tokenizer.stream(skip_special_tokens=False)
    assert "".join(map(stream.push, ids)) + stream.flush() == whole, "the stream is another text"
    shown = tokenizer.decode(ids)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == shown, "the stream is another text"
    if tokenizer.chat_template is not None:
        tool_style("\n".join(tokenizer.chat_template.sources.values()))
    with suppress(FlashMoEError):  # the tokenizer may do for plain prompts alone
        controls = "".join(tokenizer.special_tokens.values())
        chat_prompt(tokenizer, [{"role": "user", "content": f"a {controls}"}])
    with suppress(FlashMoEError):
        compile_constraint(tokenizer, {"type": "json_object"}, in_reasoning=True)


def _mutate_tokenizer(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return dumped(rng, damage_tree(rng, tree, _TOKENIZER_KEYS))


TARGETS = (
    Target("safetensors", _safetensors_seeds, check_safetensors, _mutate_safetensors, _odd_safetensors),
    Target("index", _index_seeds, _check_index, json_mutator(("weight_map", "metadata"))),
    Target("config", config_seeds, check_config, json_mutator(CONFIG_KEYS), _odd_configs),
    Target("manifest_py", _manifest_seeds, check_manifest, text_mutator(_MANIFEST_WORDS), _odd_manifests),
    Target("prefix", lambda: [_prefix_file()], _check_prefix, _mutate_prefix),
    Target("tokenizer", _tokenizer_seeds, check_tokenizer, _mutate_tokenizer, _odd_tokenizers),
)  # fmt: skip
