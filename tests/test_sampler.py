"""Sampling against the definitions of its parts, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import Sampler, _core
from flashmoe.errors import ArgumentError, NumericalError


def kept(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Ids that may be drawn and their probabilities, by the textbook."""
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if top_k:
        order = order[:top_k]
    q = p[order] / p[order].sum()
    if top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(q), top_p)) + 1]
    order = order[p[order] >= min_p * p.max()]
    return order, p[order] / p[order].sum()


def draws(sampler, logits, n):
    draw = sampler.start()
    return np.array([draw(logits) for _ in range(n)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_distribution(options):
    logits = (np.random.RandomState(0).standard_normal(60) * 2).astype(np.float32)
    ids, p = kept(logits, **options)
    got = draws(Sampler(seed=3, **options), logits, 20000)
    assert set(got) <= set(ids.tolist())
    counts = np.array([(got == i).sum() for i in ids])
    chi = ((counts - p * len(got)) ** 2 / np.maximum(p * len(got), 1e-9)).sum()
    assert chi < len(ids) + 6 * np.sqrt(2 * len(ids)) + 20


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_large_vocabularies_take_the_same_cut(top_p, spread):
    """The shortcut for likely tokens never changes which tokens are kept."""
    logits = (np.random.RandomState(1).standard_normal(50000) * spread).astype(np.float32)
    ids, _ = kept(logits, top_p=top_p)
    assert set(draws(Sampler(seed=1, top_p=top_p), logits, 200)) <= set(ids.tolist())


def test_greedy_takes_the_first_of_the_largest():
    logits = np.zeros(9, np.float32)
    logits[[3, 5]] = 2
    assert Sampler(temperature=0)(logits) == 3


def test_seed():
    logits = np.random.RandomState(2).standard_normal(500).astype(np.float32)
    one, again = (draws(Sampler(seed=9), logits, 50) for _ in range(2))
    assert (one == again).all()
    assert (one != draws(Sampler(seed=10), logits, 50)).any()
    assert (draws(Sampler(), logits, 50) != draws(Sampler(), logits, 50)).any()


def test_penalties():
    logits = np.array([3.0, -1.0, 2.5, 0.0], np.float32)
    draw = Sampler(temperature=0, repetition_penalty=2.0).start(prompt=[0, 1])
    assert draw(logits) == 2  # 3 / 2 < 2.5
    assert draw(logits) == 0  # now 1.5 against 2.5 / 2
    draw = Sampler(temperature=0, presence_penalty=0.6).start(prompt=[0])
    assert [draw(logits) for _ in range(2)] == [0, 2]  # the prompt does not count
    draw = Sampler(temperature=0, frequency_penalty=0.3).start()
    assert [draw(logits) for _ in range(4)] == [0, 0, 2, 0]
    assert (logits == np.array([3.0, -1.0, 2.5, 0.0], np.float32)).all()


def test_logit_bias():
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    assert Sampler(temperature=0, logit_bias={0: 5.0})(logits) == 0
    with pytest.raises(ArgumentError, match="logit_bias names token 3"):
        Sampler(logit_bias={3: 1.0})(logits)


def test_defaults_of_a_checkpoint_fill_only_what_is_open():
    s = Sampler(top_p=0.5).with_defaults(
        {"temperature": 0.6, "top_p": 0.9, "top_k": -1, "do_sample": True}
    )
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.6, 0.5, 0, 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature must be"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"top_k": 2.5}, "whole number"),
        ({"min_p": float("nan")}, "min_p must be"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ArgumentError, match=words):
        Sampler(**options)


def test_nan_is_an_error():
    logits = np.zeros(5, np.float32)
    logits[2] = np.nan
    with pytest.raises(NumericalError, match="logit 2"):
        Sampler()(logits)
    with pytest.raises(NumericalError, match="every token is forbidden"):
        Sampler()(np.full(5, -np.inf, np.float32))


def test_logprob():
    logits = np.random.RandomState(4).standard_normal(1000).astype(np.float32) * 5
    want = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    assert _core.logprob(logits, 17) == pytest.approx(want[17], abs=1e-5)
