"""Seeds that random damage does not come by: sound inputs with one thing changed on purpose."""

from __future__ import annotations

import json
from typing import Any

_FIRST = "model.language_model.layers.0."
_SHARD, _INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
_Q = "model.layers.0.self_attn.q_proj"

GONE: Any = ...
"""Instead of a value: what stands there is left out."""


def edited(seed: bytes, *changes: tuple[Any, ...]) -> bytes:
    """A JSON text with values changed.

    Args:
        seed: The text.
        *changes: Keys that lead to a value, and what it becomes.
    """
    tree = json.loads(seed)
    for *path, last, value in changes:
        node = tree
        for key in path:
            node = node[key]
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    return json.dumps(tree).encode()


def _whole(*changes: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    return tuple(("model.safetensors", *change) for change in changes)


FUSED: tuple[tuple[tuple[Any, ...], ...], ...] = (
    _whole((f"{_FIRST}linear_attn.conv1d.weight", ["BF16", [256, 4, 1]])),  # the other is not MLX's
    _whole(("model.language_model.embed_tokens.weight", GONE)),
    _whole(("model.embed_tokens.weight", ["BF16", [96, 64]])),
    (("config.json", "tie_word_embeddings", True),),
    _whole(("model.visual.patch", ["I64", [3]]), ("model.extra.weight", ["BF16", [2, 2]])),
    _whole(("model.language_model.norm.weight", ["I32", [64]])),
    (("model-2.safetensors", {f"{_FIRST}mlp.gate.weight": ["BF16", [2, 64]]}),),
    (("config.json", "quantization", {"bits": 4, f"{_FIRST}mlp.gate": {"bits": 4}}),),
    (("hf_quant_config.json", {}),),
)
"""Changes of a directory whose experts lie in one stack."""

FP8: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (("config.json", "quantization_config", GONE),),
    ((_SHARD, "model.layers.0.mlp.experts.1.gate_proj.weight_scale_inv", ["F32", [1, 2]]),),
    ((_SHARD, "model.layers.1.self_attn.q_proj.weight_scale_inv", ["I32", [8, 2]]),),
    ((_INDEX, "weight_map", "lm_head.weight", "model-00002-of-00002.safetensors"),),
    ((_INDEX, "weight_map", "lm_head.weight", GONE),),
    ((_INDEX, GONE), (_SHARD, GONE)),
)
"""Changes of a directory in two files, with an index."""

STACKED: tuple[tuple[tuple[Any, ...], ...], ...] = (
    _whole((f"{_Q}.scales", ["U8", [128, 2]])),
    _whole((f"{_Q}.scales", ["F16", [128, 3]])),
    _whole((f"{_Q}.biases", ["F32", [128, 2]])),
    _whole((f"{_Q}.weight", GONE), (f"{_Q}.qweight", ["U32", [128, 8]])),
    (("config.json", "quantization", _Q, False),),
    (("config.json", "quantization", _Q, {"bits": 8}),),
    (("config.json", "quantization", _Q, {"bits": 4, "group_size": 32}),),
    (("config.json", "quantization", {"bits": 4, "mode": "mxfp4"}),),
)
"""Changes of a directory as MLX writes it."""

_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}

CONFIG: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (("linear_num_value_heads", 5),),
    (("num_key_value_heads", 3),),
    (("rope_theta", 1),),
    (("rope_scaling", _YARN),),
    (("rope_scaling", {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5}),),
    (("rope_scaling", {**_YARN, "truncate": False, "beta_fast": 2, "beta_slow": 2}),),
    (("rope_scaling", {**_YARN, "factor": 1e299, "original_max_position_embeddings": 1e299}),),
    (("quantization_config", []),),
    (("quantization_config", {"bits": 4, "group_size": 64}),),
    (("quantization_config", {"quant_method": "gptq"}),),
    (("quantization_config", {**_FP8, "fmt": "e5m2"}),),
    (("quantization_config", {**_FP8, "weight_block_size": [128]}),),
    (("quantization", {"bits": 4, "group_size": 64, "mode": "mxfp4"}),),
    (("quantization", {"bits": 4, "group_size": 64, "a.b": 8}),),
)
"""Changes of a config of qwen3_5_moe."""

_EXPERTS = """\
experts layer=0 gate=affine:4:32:bf16 up=affine:4:32:bf16 down=affine:4:32:bf16
extent layer=0 part=record file=1 base=4096 stride=4096
checksum layer=0 first=0 xxh3=0123456789abcdef,ffffffffffffffff,0000000000000002
"""

MANIFEST: tuple[tuple[str, str, str], ...] = (
    ("packed", "path=r.bin", "path=../r.bin"),
    ("packed", "hidden_size=32", "hidden_size=0"),
    ("packed", "norm_eps=1e-06", "norm_eps=0"),
    ("packed", "norm_eps=1e-06", "norm_eps=1,2"),
    ("packed", "dims=4", "dims=5"),
    ("packed", "heads=2 kv_heads=1", "heads=3 kv_heads=2"),
    ("packed", "dims=4 scale=1 inv_freq=1,0.01", "dims=10 scale=1 inv_freq=1,1,1,1,1"),
    ("packed", "experts_per_token=2", "experts_per_token=4"),
    ("packed", "experts=3 ", "experts=4 "),
    ("packed", "ffn=moe", "ffn=none"),
    ("packed", "file=0 at=0 rows=8", "file=2 at=0 rows=8"),
    ("packed", "file=0 at=0 rows=8", "file=0 at=65535 rows=8"),
    ("packed", "file=0 at=0 rows=8", "file=0 at=0 rows=0"),
    ("packed", "quant=bf16 rows=8 cols=32", "quant=affine:2:64:bf16 rows=8 cols=32"),
    ("packed", "name=norm", "name=embed"),
    ("packed", "name=norm", "name=lm_head"),
    ("packed", "tensor name=norm quant=bf16 rows=1 cols=32\nweight file=0 at=512 rows=1\n", ""),
    ("packed", "name=norm quant=bf16 rows=1", "name=norm quant=bf16 rows=2"),
    ("packed", "experts layer=0", "experts layer=1"),
    ("packed", _EXPERTS, ""),
    ("packed", ",ffffffffffffffff,", ","),
    ("packed", "extent layer=0 part=record", "extent layer=1 part=record"),
    ("packed", "part=record", "part=gate.weight"),
    ("packed", "base=4096 stride=4096", "base=4096 stride=64"),
    ("packed", "up=affine:4:32:bf16", "up=affine:04:32:bf16"),
    ("dense", "key_heads=1 value_heads=2", "key_heads=2 value_heads=3"),
    ("dense", "name=embed quant=f32", "name=embed quant=affine:4:64:f16"),
    ("sample", "part=up.weight file=1 expert=1", "part=up.weight file=1 expert=2"),
    ("sample", "extent layer=2 part=up.weight file=0 expert=4 base=36010\n", ""),
    ("sample", "file=0 expert=4 base=36010", "file=0 expert=4 base=9999999"),
    ("sample", "experts layer=2 gate=f16", "experts layer=0 gate=f16"),
)
"""Of ``corpus/manifest/seed-NAME``: what is replaced, and by what."""

SAFETENSORS: tuple[str, ...] = (
    '{"a": {}, "a": {}}',
    '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
    '{"' + "a" * 600 + '": {}}',
    '{"a": {"dtype": "U8", "shape": [1, 1, 1, 1, 1, 1, 1, 1, 1], "data_offsets": [0, 1]}}',
    '{"a": {"dtype": "F64", "shape": [4294967296, 4294967296], "data_offsets": [0, 1]}}',
)
"""Headers."""

TOKENIZER: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (("chat_template.jinja", "{{ eos_token }}{{ messages[0].content }}"),),
    (("chat_template.jinja", "<tool_call>\n<function={{ messages[0].content }}>"),),
    (("chat_template.jinja", "\ud800"),),
    (("additional_chat_templates/tool_use.jinja", "{{ 1 }}"),),
    (("chat_template.json", {"chat_template": [{"name": "default", "template": "{{ 2 }}"}]}),),
    (("chat_template.json", {"chat_template": {"default": 1}}),),
    (("chat_template.json", {}),),
    (("tokenizer_config.json", "chat_template", [{"name": "tool_use", "template": "a"}]),),
    (("tokenizer_config.json", "chat_template", [1]),),
    (("tokenizer_config.json", "added_tokens_decoder", GONE),
     ("special_tokens_map.json", {"bos_token": "a"})),
    (("tokenizer_config.json", "added_tokens_decoder", {"13": {"content": "<new>"}}),),
    (("tokenizer_config.json", "added_tokens_decoder", {"99": {"content": "<far>"}}),),
    (("tokenizer_config.json", "eos_token", "<none>"),),
    (("tokenizer.json", "model", "vocab", "far", 1 << 21),),
    (("tokenizer.json", "added_tokens", 0, "content", "世"),
     ("tokenizer_config.json", "eos_token", "世"),
     ("tokenizer_config.json", "added_tokens_decoder", GONE),
     ("tokenizer_config.json", "chat_template", "{{ messages[0].content }}")),
    (("tokenizer.json", "decoder", None),),
    (("tokenizer_config.json", {}), ("generation_config.json", {}), ("config.json", {})),
)  # fmt: skip
"""Changes of the files of a byte-level tokenizer."""

_HI = {"role": "user", "content": "Hi"}
_WEATHER = {"name": "weather", "arguments": '{"city": "Oslo"}'}


def _called(arguments: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [_HI, {"role": "assistant", "content": None, "tool_calls": [call]}]}


CHAT: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "developer", "content": "Be kind."}, _HI]},
    {"messages": [_HI, {"role": "system", "content": "Be kind."}, _HI]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}, _HI]},
    {"messages": [_HI], "tools": [1]},
    {"messages": [_HI], "documents": [{"title": "a", "text": "b"}]},
    {"messages": [_HI], "documents": [1]},
    {"messages": [], "as_it_is": True},
    {"messages": ["Hi"], "as_it_is": True},
    {"messages": [_HI, {"role": "assistant", "tool_calls": [_WEATHER]}]},
    {"messages": [_HI, {"role": "assistant", "tool_calls": [{"function": "f"}]}]},
    *(_called(arguments) for arguments in ("", "{", "[1]", {"a": 1})),
    {"messages": [_HI, {"role": "assistant", "tool_calls": [{**_WEATHER, "arguments": "{}"}, {}]}]},
)
"""Conversations, each for every template."""

_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
_THEIRS = {"name": "weather", "input_schema": {"type": "object"}}
_ASSISTANT = {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}

HTTP: tuple[tuple[str, Any], ...] = (
    ("chat", []),
    ("chat", {"messages": [_HI], "n": 2}),
    ("chat", {"messages": [_HI], "audio": {}}),
    ("chat", {"messages": [_HI], "top_logprobs": 1}),
    ("chat", {"messages": [_HI], "reasoning_effort": "none", "max_tokens": 5.0}),
    ("chat", {"messages": [_HI], "chat_template_kwargs": {"tools": []}}),
    ("chat", {"messages": [_HI], "top_p": 0}),
    ("chat", {"messages": [_HI], "top_k": 1.5}),
    ("chat", {"messages": [_HI], "stop": ["a"] * 17}),
    ("chat", {"messages": [_HI], "response_format": {"type": "text"}}),
    ("chat", {"messages": [_HI], "tools": [_TOOL], "tool_choice": "required",
              "response_format": {"type": "json_object"}}),
    ("chat", {"messages": [_HI], "logit_bias": {"a": 1}}),
    ("chat", {"messages": [_HI], "reasoning_effort": "much"}),
    ("chat", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
    ("chat", {"messages": [_HI], "tools": [_TOOL],
              "tool_choice": {"type": "function", "function": {"name": "b"}}}),
    ("completions", {"prompt": ["a"], "n": 2}),
    ("completions", {"prompt": ["a"], "echo": True}),
    ("completions", {"prompt": ["a"], "stream": True}),
    ("completions", {"prompt": "a " * 10_001, "max_tokens": 1}),
    ("responses", {"input": "a", "background": True}),
    ("responses", {"input": "a", "tool_choice": "any"}),
    ("responses", {"input": "a", "tool_choice": "required"}),
    ("responses", {"input": [_HI, _ASSISTANT, _HI], "stream": True}),
    ("responses", {"input": "a", "previous_response_id": "resp_1"}),
    ("responses", {"input": "a", "previous_response_id": "gone"}),
    ("responses", {"input": "a", "tools": [{"type": "web_search"}]}),
    ("responses", {"input": "a", "tool_choice": {"type": "function", "name": "b"}}),
    ("responses", {"input": "a", "text": {"format": {"type": "regex", "regex": "a"}}}),
    ("responses", {"input": [{"type": "image"}]}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "image"}]}]}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "temperature": 3}),
    ("messages", {"max_tokens": 1, "messages": [{"content": "a"}]}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "system": 1}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "tool_choice": {"type": "any"}}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "tools": [{"type": "web_search"}]}),
    ("messages", {"max_tokens": 1, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]}]}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "tools": [_THEIRS],
                  "tool_choice": {"type": "tool", "name": "weather"}, "stream": True}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "tools": [_THEIRS],
                  "tool_choice": {"type": "tool", "name": "b"}}),
    ("messages", {"max_tokens": 1, "messages": [_HI], "tool_choice": {"type": "none"}}),
    ("messages", {"max_tokens": 1, "messages": [
        _HI, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": "x", "is_error": True}]}]}),
)  # fmt: skip
"""Requests by interface."""


def _forced(parameters: dict[str, Any], style: str = "xml") -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "$defs": {"a": {"$ref": "#/$defs/a"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    return {"tools": [tool], "choice": "required", "style": style}


GRAMMAR: tuple[dict[str, Any], ...] = (
    _forced({"x": {"enum": []}}),
    _forced({"<": {}}),
    _forced({"x": {"$ref": "#/$defs/a"}}),
    _forced({"x": {"type": "string", "format": "date"}}),
    _forced({}, "another"),
    {**_forced({}), "format": {"type": "json_object"}, "both": True},
    {"format": {"type": "json_object"}},
    {"format": {"type": "choice", "choices": ["a", ""]}},
    {"format": {"type": "grammar", "grammar": "start: a0\n" + "a0: /a:/\n" * 300}},
    {"format": {"type": "regex", "regex": "a" * 65_537}},
    *({"format": {"type": "regex", "regex": "a" * n}} for n in range(65)),  # more than are kept
)
"""Tools and formats."""

CALL: tuple[str, ...] = (
    json.dumps(_WEATHER),
    "[1]",
    '<function=f><parameter=a>\n7\n</parameter></function>\x1e[{"name": "f", "parameters": '
    '{"properties": {"a": {"type": "number"}}}}]',
    '<function=f><parameter=a>\nnull\n</parameter></function>\x1e[{"name": "f", "parameters": '
    '{"properties": {"a": {"type": "integer", "nullable": true}}}}]',
)
"""Calls, and perhaps the tools that were offered."""
