"""The engine's policies against the same policies written out; recorded picks; counts of uses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import flashmoe
import tiny
from conftest import tokens

TOOL = Path(__file__).parent.parent / "benchmarks" / "evict_traces.py"
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="the sources are not beside the tests")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evict_traces", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["evict_traces"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    where = tmp_path_factory.mktemp("evict") / "hf"
    tiny.write(where, "qwen3_5_moe", seed=8, num_experts=16, num_experts_per_tok=2)
    return where


def decode(model: flashmoe.Model, ids) -> dict[str, int]:
    session = model.new_session()
    none = np.empty((0, model.vocab_size), np.float32)
    for i in range(len(ids)):
        session.eval(ids[i : i + 1], none)
    stats = session.stats()
    session.close()
    return stats


@pytest.mark.parametrize("policy", ["lru", "lfu", "slru"])
def test_the_engine_hits_as_often_as_the_policy_written_out(path, tool, policy):
    with flashmoe.Model(path) as model:
        i = model.info()
        spare = i["resident_bytes"] + i["scratch_bytes"] + i["state_bytes"]
        spare += 256 * i["kv_bytes_per_token"]
    moe = i["expert_file_bytes"] // i["expert_bytes"] // 16
    for slots in (2 * moe + 1, 5 * moe, 12 * moe):
        budget = spare + slots * i["expert_bytes"]
        with flashmoe.Model(path, memory=budget, eviction=policy, guess=False) as model:
            got = model.info()["expert_slots"]
            model.record_routes()
            stats = decode(model, tokens(200))
            trace = tool.groups(model.routes())
            assert got >= 2 * moe
            assert stats["experts_used"] == sum(map(len, trace))
            assert stats["experts_hit"] == tool.POLICIES[policy](trace, got), (slots, got)


def test_belady_is_the_best(path, tool):
    with flashmoe.Model(path) as model:
        model.record_routes()
        decode(model, tokens(200))
        trace = tool.groups(model.routes())
    for slots in (3, 8, 20, 40):
        hits = {name: policy(trace, slots) for name, policy in tool.POLICIES.items()}
        assert hits["belady"] == max(hits.values()) > 0
    assert tool.belady([[(0, 1)], [(0, 2)], [(0, 3)], [(0, 1)], [(0, 2)]], 2) == 1


def test_routes_and_uses_are_what_was_picked(path):
    with flashmoe.Model(path) as model:
        assert model.routes().shape == (0, 5)
        model.record_routes()
        model.logits(tokens(70))
        lines = model.routes()
        uses = model.expert_uses()
        model.record_routes(False)
        model.logits(tokens(5))
        assert model.routes().shape == (0, 5)
    layers = np.unique(lines[:, 2])
    assert len(lines) == 70 * len(layers)
    assert (lines[:, 3] < lines[:, 4]).all()
    want = np.zeros_like(uses)
    for line in lines:
        want[line[2], line[3:]] += 1
    assert np.array_equal(uses, want) and uses.sum() == 140 * len(layers)
