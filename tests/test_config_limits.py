"""Every field of every family's config at its limits: a spec that holds, or a typed error, soon."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashmoe.checkpoint import open_checkpoint
from flashmoe.errors import ModelFormatError
from flashmoe.families import FAMILIES, read_config, text_config
from flashmoe.quantization import read_quantization
from fuzz.files import config_seeds

LIMITS = (1 << 16, 1 << 24, 1 << 30)  # of heads, widths and positions
VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, *LIMITS, *(n + 1 for n in LIMITS), 1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**400,
    0.0, 0.5, 1.5, -1.5, 1e-300, 1e-12, 1e12, 1e299, 1e308,
    float("inf"), float("-inf"), float("nan"),
    "", "4", "yarn", "text", None, True, False, [], [1], [None], {}, {"a": 1}, {"type": "yarn"},
)  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.1,
    "truncate": True, "partial_rotary_factor": 0.5,
}  # fmt: skip


def configs() -> list[dict[str, Any]]:
    """Published configs of all families, and one more of each with every field of YaRN."""
    plain = [json.loads(seed) for seed in config_seeds()]
    scaled = copy.deepcopy(plain)
    for config in scaled:
        text = config.get("text_config", config)
        for name in ("rope_theta", "rope_parameters", "partial_rotary_factor"):
            text.pop(name, None)
        text["rope_scaling"] = dict(YARN)
    return plain + scaled


def places(config: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field, however deep."""
    pairs = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def changed(config: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node: Any = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return config


def verdict(config: dict[str, Any]) -> bool:
    """Whether a config is taken; raises whatever is not a typed error."""
    try:
        _, spec = read_config(config)
        read_quantization(config, text_config(config))
    except ModelFormatError:
        return False
    spec.validate()
    return True


def test_one_field_at_a_limit() -> None:
    cases = taken = 0
    slowest = 0.0
    families = set()
    for config in configs():
        assert verdict(config)
        families.add(text_config(config).get("model_type", config["model_type"]))
        for path in places(config):
            for value in VALUES:
                started = time.perf_counter()
                taken += verdict(changed(config, path, value))
                slowest = max(slowest, time.perf_counter() - started)
                cases += 1
    assert cases > 20_000 and 0 < taken < cases
    assert families >= {f for f in FAMILIES if f != "qwen3_5_moe"}
    assert slowest < 2


def test_two_fields_of_yarn_at_limits() -> None:
    """Numbers that are right alone and overflow together."""
    config = configs()[-1]
    path = ("text_config", "rope_scaling") if "text_config" in config else ("rope_scaling",)
    numbers = (1, 3, 1e-300, 1e-45, 1e12, 1e150, 1e299, 1 << 63, 10**299)
    fields = [key for key, value in YARN.items() if type(value) in (int, float)]
    for one in fields:
        for other in fields:
            for a in numbers:
                for b in numbers:
                    verdict(changed(changed(config, (*path, one), a), (*path, other), b))


@pytest.mark.parametrize("value", VALUES, ids=lambda v: str(v)[:12])
def test_the_whole_config_is_something_else(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(value))
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    with pytest.raises(ModelFormatError):
        open_checkpoint(tmp_path)
