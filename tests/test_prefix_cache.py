"""Saved sessions and what is done with them: the same bits, refusals, budgets, processes."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tiny
from conftest import nmse, tokens
from flashmoe import Generator, Model, Sampler
from flashmoe.errors import ArgumentError, IntegrityError, ModelFormatError
from flashmoe.prefix_cache import PrefixCache
from flashmoe.prefix_files import read, write

FAMILIES = ("qwen3_5_moe", "qwen3_moe")
GREEDY = Sampler(temperature=0)
ROOM = 1 << 30


@pytest.fixture
def model(checkpoint):
    with Model(checkpoint("qwen3_5_moe", seed=1), memory="64MB", threads=1) as opened:
        yield opened


def session_with(model, ids, step=64):
    session = model.new_session()
    none = np.empty((0, model.vocab_size), np.float32)
    for first in range(0, len(ids), step):
        session.eval(ids[first : first + step], none)
    return session


def go_on(model, session, ids, step=64):
    out = np.empty((len(ids), model.vocab_size), np.float32)
    for first in range(0, len(ids), step):
        session.eval(ids[first : first + step], out[first : first + step])
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
@pytest.mark.parametrize("length", [1, 37, 64, 300])
def test_a_loaded_session_gives_the_bits_of_the_saved_one(checkpoint, family, kv_dtype, length):
    ids = tokens(length + 70)
    with Model(checkpoint(family, seed=1), memory="64MB", threads=1, kv_dtype=kv_dtype) as model:
        first = session_with(model, ids[:length])
        snapshot = first.save()
        want = go_on(model, first, ids[length:])
        second = session_with(model, tokens(400, seed=9))  # its caches are full of something else
        second.load(snapshot)
        assert second.position == length
        np.testing.assert_array_equal(second.save(), snapshot)
        np.testing.assert_array_equal(go_on(model, second, ids[length:]), want)


def test_snapshots_do_not_depend_on_what_a_session_had_before(model):
    ids = tokens(100)
    used = session_with(model, tokens(300, seed=5))
    used.reset()
    go_on(model, used, ids)
    np.testing.assert_array_equal(used.save(), session_with(model, ids).save())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv_dtype": "f32"}, "f32"),
        ({"experts_per_token": 2}, "experts_per_token"),
        ({"seed": 2}, "another model"),
        ({"dtype": "bf16"}, "quantisation"),
    ],
)
def test_of_another_model_it_is_refused(checkpoint, model, options, says):
    snapshot = session_with(model, tokens(70)).save()
    weights = {"seed": options.pop("seed", 1), "dtype": options.pop("dtype", "f32")}
    path = checkpoint("qwen3_5_moe", **weights)
    with Model(path, memory="64MB", threads=1, **options) as other:
        session = session_with(other, tokens(10))
        before = session.save()
        with pytest.raises(ModelFormatError, match=says):
            session.load(snapshot)
        np.testing.assert_array_equal(session.save(), before)


def test_one_changed_expert_is_another_model(checkpoint, model, tmp_path):
    path = tmp_path / "other"
    shutil.copytree(checkpoint("qwen3_5_moe", seed=1), path)
    name = "model.layers.2.mlp.experts.gate_up_proj"
    tiny.rewrite_tensor(path, name, tiny.read(path)[name].floats() * 2)
    with Model(path, memory="64MB", threads=1) as other:
        assert other.fingerprint() != model.fingerprint()


def test_every_cut_and_flip_of_a_snapshot_is_refused(model):
    session = session_with(model, tokens(70))
    good = session.save()
    for size in range(0, good.size, 4096):
        with pytest.raises(IntegrityError):
            session.load(good[:size].copy())
    random = np.random.RandomState(4)
    for at in [*range(80), *random.randint(80, good.size, 200)]:
        bad = good.copy()
        bad[at] ^= 1 << random.randint(8)
        with pytest.raises((IntegrityError, ModelFormatError)):
            session.load(bad)
    np.testing.assert_array_equal(session.save(), good)


def stored(model, cache, *lengths, seed=1):
    ids = tokens(max(lengths), seed=seed)
    for length in lengths:
        cache.store(session_with(model, ids[:length]), ids[:length])
    return ids


def test_the_longest_shorter_prefix_is_restored(model):
    cache = PrefixCache(model, memory=ROOM)
    ids = stored(model, cache, 20, 50, 90)
    session = model.new_session()
    for n, want in ((91, 90), (90, 50), (60, 50), (50, 20), (20, 0), (5, 0)):
        session.reset()
        assert cache.restore(session, tokens(91)[:n]) == want == session.position
    other = ids.copy()
    other[30] = (other[30] + 1) % 97
    session.reset()
    assert cache.restore(session, other) == 20


@pytest.mark.parametrize("kept", ["in memory", "in a directory"])
def test_a_hash_that_agrees_by_chance_is_not_enough(model, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(
        "flashmoe.prefix_cache._prefix_hashes", lambda ids: np.zeros(ids.size, np.uint64)
    )
    if kept == "in memory":
        cache = PrefixCache(model, memory=ROOM)
    else:
        cache = PrefixCache(model, memory=0, directory=tmp_path, disk=ROOM)
    stored(model, cache, 20)
    cache.flush()
    session = model.new_session()
    assert cache.restore(session, tokens(40, seed=2)) == 0 == session.position
    assert cache.restore(session, tokens(40)[:20].repeat(2)) == 0


def test_what_was_not_used_for_longest_goes(model):
    one = session_with(model, tokens(30)).save().nbytes + 30 * 4
    cache = PrefixCache(model, memory=2 * one)
    session = model.new_session()
    for seed in (1, 2):
        stored(model, cache, 30, seed=seed)
    assert cache.restore(session, tokens(31, seed=1)) == 30
    stored(model, cache, 30, seed=3)
    assert cache.stats()["entries"] == 2 and cache.stats()["memory_bytes"] == 2 * one
    found = [cache.restore(session, tokens(31, seed=seed)) for seed in (1, 2, 3)]
    assert found == [30, 0, 30]


def test_disk_budget_and_restart(model, tmp_path):
    one = session_with(model, tokens(30)).save().nbytes + 30 * 4 + 40
    cache = PrefixCache(model, memory=0, directory=tmp_path, disk=2 * one)
    for seed in (1, 2, 3):
        stored(model, cache, 30, seed=seed)
        cache.flush()
        os.utime(max(tmp_path.glob("*.prefix"), key=lambda p: p.stat().st_mtime_ns), (seed, seed))
    cache.close()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) == 2 * one
    again = PrefixCache(model, memory=ROOM, directory=tmp_path, disk=2 * one)
    session = model.new_session()
    assert [again.restore(session, tokens(31, seed=seed)) for seed in (1, 2, 3)] == [0, 30, 30]
    assert again.stats()["hits"] == 2
    assert not list(tmp_path.glob(".*"))
    again.close()


def test_a_broken_file_is_removed_and_never_used(model, tmp_path, caplog):
    cache = PrefixCache(model, memory=0, directory=tmp_path, disk=ROOM)
    ids = stored(model, cache, 70)
    cache.flush()
    path = next(tmp_path.glob("*.prefix"))
    good = path.read_bytes()
    random = np.random.RandomState(4)
    cuts = [good[:size] for size in range(0, len(good), 4096)]
    flips = []
    for at in [*range(60), *random.randint(60, len(good), 60)]:
        bad = bytearray(good)
        bad[at] ^= 1 << random.randint(8)
        flips.append(bytes(bad))
    session = model.new_session()
    for bad in [*cuts, *flips, good + b"x"]:
        path.write_bytes(bad)
        with caplog.at_level(logging.WARNING, "flashmoe"):
            caplog.clear()
            assert cache.restore(session, np.append(ids, 1).astype(np.int32)) == 0
        assert session.position == 0
        assert not path.exists() and "refused" in caplog.text
    path.write_bytes(good)
    assert cache.restore(session, np.append(ids, 1).astype(np.int32)) == 70


def test_files_of_another_model_are_left_alone(checkpoint, model, tmp_path):
    cache = PrefixCache(model, memory=0, directory=tmp_path, disk=ROOM)
    ids = stored(model, cache, 40)
    cache.flush()
    with Model(checkpoint("qwen3_5_moe", seed=2), memory="64MB", threads=1) as other:
        foreign = PrefixCache(other, memory=0, directory=tmp_path, disk=ROOM)
        assert foreign.restore(other.new_session(), np.append(ids, 1).astype(np.int32)) == 0
    assert len(list(tmp_path.glob("*.prefix"))) == 1


def test_only_its_own_files_are_touched(model, tmp_path):
    """What others keep there stays; what a writer left unfinished long ago goes."""
    cache = PrefixCache(model, memory=0, directory=tmp_path, disk=1 << 20)
    for name, age in (("notes.txt", 9000), (".a.prefix.b.tmp", 10), (".c.prefix.d.tmp", 9000)):
        (tmp_path / name).write_bytes(b"x" * (2 << 20))
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    ids = stored(model, cache, 40)
    cache.flush()
    names = {p.name for p in tmp_path.iterdir()}
    assert len(names) == 3 and {"notes.txt", ".a.prefix.b.tmp"} < names
    assert cache.restore(model.new_session(), np.append(ids, 1).astype(np.int32)) == 40
    cache.close()


def test_what_is_larger_than_the_whole_directory_may_be_is_not_kept(model, tmp_path):
    cache = PrefixCache(model, memory=0, directory=tmp_path / "deep" / "er", disk=1000)
    ids = stored(model, cache, 40)
    cache.flush()
    assert not list(tmp_path.rglob("*.prefix"))
    assert cache.restore(model.new_session(), np.append(ids, 1).astype(np.int32)) == 0
    (tmp_path / "deep" / "er").rmdir()
    assert cache.stats()["disk_bytes"] == 0
    cache.close()


def test_two_processes_share_a_directory(checkpoint, model, tmp_path):
    script = (
        "import sys, numpy as np\n"
        "from flashmoe import Model\n"
        "from flashmoe.prefix_cache import PrefixCache\n"
        "from test_prefix_cache import stored\n"
        "from conftest import tokens\n"
        "with Model(sys.argv[1], memory='64MB', threads=1) as model:\n"
        "    one = int(sys.argv[4])\n"
        "    cache = PrefixCache(model, memory=0, directory=sys.argv[2], disk=5 * one)\n"
        "    for i in range(30):\n"
        "        stored(model, cache, 30, seed=int(sys.argv[3]) + i)\n"
        "        cache.restore(model.new_session(), tokens(31, seed=i))\n"
        "    cache.close()\n"
        "    assert cache.stats()['refused'] == 0\n"
    )
    one = session_with(model, tokens(30)).save().nbytes + 30 * 4 + 40
    path = checkpoint("qwen3_5_moe", seed=1)
    paths = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(tmp_path), first, str(one)],
            env={**os.environ, "PYTHONPATH": paths},
        )
        for first in ("0", "15")
    ]
    assert [p.wait(60) for p in both] == [0, 0]
    assert 0 < sum(p.stat().st_size for p in tmp_path.iterdir()) <= 6 * one


@pytest.mark.parametrize("family", FAMILIES)
def test_a_follow_up_turn_evaluates_only_new_tokens(checkpoint, family, tmp_path):
    path = checkpoint(family, seed=1)
    with Model(path, memory="64MB", threads=1) as model:
        first = tokens(200)
        cold = Generator(model, GREEDY)
        with PrefixedPair(model, tmp_path) as (cache, generator):
            one = generator.generate(first, max_tokens=5)
            assert one.stats.cached_tokens == 0
            follow = np.concatenate([first, one.token_ids[:-1], tokens(20, seed=3)])
            two = generator.generate(follow, max_tokens=5)
            assert two.stats.cached_tokens == 204
            assert nmse(two.logprobs, cold.generate(follow, max_tokens=5).logprobs) < 1e-3
            session = generator._session
            assert session.stats()["tokens"] == 200 + 4 + (follow.size - 204) + 4
            cache.flush()
        again = PrefixCache(model, memory=0, directory=tmp_path, disk=ROOM)
        warm = Generator(model, GREEDY, prefix_cache=again).generate(follow, max_tokens=5)
        assert warm.stats.cached_tokens == 204 and warm.token_ids == two.token_ids
        assert warm.logprobs == two.logprobs
        again.close()


class PrefixedPair:
    def __init__(self, model, directory):
        self.cache = PrefixCache(model, memory=ROOM, directory=directory, disk=ROOM)
        self.generator = Generator(model, GREEDY, prefix_cache=self.cache)

    def __enter__(self):
        return self.cache, self.generator

    def __exit__(self, *error):
        self.generator.close()
        self.cache.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_answers_have_the_bits_of_a_cold_run(checkpoint, family):
    with Model(checkpoint(family, seed=1), memory="64MB", threads=1) as model:
        cache = PrefixCache(model, memory=ROOM, exact=True)
        warm, cold = Generator(model, GREEDY, prefix_cache=cache), Generator(model, GREEDY)
        prompt = tokens(150)
        for turn in range(4):
            got = warm.generate(prompt, max_tokens=7)
            want = cold.generate(prompt, max_tokens=7)
            assert (got.token_ids, got.logprobs) == (want.token_ids, want.logprobs)
            assert got.stats.cached_tokens == (0, 128, 128, 192)[turn]
            more = tokens(30, seed=turn)
            prompt = np.concatenate([prompt, got.token_ids[:-1], more])


def test_a_batch_begins_with_what_was_kept(model):
    cache = PrefixCache(model, memory=ROOM, exact=True)
    generator = Generator(model, GREEDY, prefix_cache=cache)
    head = tokens(130)
    prompts = [np.concatenate([head, tokens(20 + i, seed=i)]) for i in range(3)]
    want = Generator(model, GREEDY).generate_batch(prompts, max_tokens=4)
    generator.generate(head, max_tokens=1)
    got = generator.generate_batch(prompts, max_tokens=4)
    assert [g.stats.cached_tokens for g in got] == [128, 128, 128]
    assert [(g.token_ids, g.logprobs) for g in got] == [(w.token_ids, w.logprobs) for w in want]


def test_a_conversation_goes_on_before_the_answer_header(checkpoint):
    path = checkpoint("qwen3_5_moe", seed=1, vocab_size=300)
    if not (path / "tokenizer.json").exists():
        tiny.tokenizer(path, 300)
    with Model(path, memory="64MB", threads=1) as model:
        cache = PrefixCache(model, memory=ROOM)
        generator = Generator(model, GREEDY, prefix_cache=cache)
        turns = [{"role": "user", "content": "how are you?"}]
        generator.chat(turns, max_tokens=3)
        stable = len(model.tokenizer.encode(generator.render(turns, add_generation_prompt=False)))
        turns += [
            {"role": "assistant", "content": "another answer than it gave"},
            {"role": "user", "content": "and now?"},
        ]
        assert generator.chat(turns, max_tokens=3).stats.cached_tokens == stable > 0


def test_a_sequence_is_saved_and_goes_on_elsewhere(checkpoint, model, tmp_path):
    file = tmp_path / "talk"
    generator = Generator(model, GREEDY)
    with pytest.raises(ArgumentError, match="generate"):
        generator.save(file)
    first = tokens(100)
    one = generator.generate(first, max_tokens=6)
    generator.save(file)
    assert file.stat().st_mode & 0o077 == 0
    ids, _ = read(file, *_key(model))
    np.testing.assert_array_equal(ids, np.concatenate([first, one.token_ids[:-1]]))
    follow = np.concatenate([ids, tokens(10, seed=2)])
    with Model(checkpoint("qwen3_5_moe", seed=1), memory="64MB", threads=1) as again:
        other = Generator(again, GREEDY)
        other.load(file)
        two = other.generate(follow, max_tokens=6)
        assert two.stats.cached_tokens == 105
        third = np.concatenate([follow, two.token_ids[:-1], tokens(9, seed=3)])
        assert other.generate(third, max_tokens=2).stats.cached_tokens == follow.size + 5
        assert other.generate(first, max_tokens=2).stats.cached_tokens == 0
        assert other.generate(first, max_tokens=6).logprobs == one.logprobs
    path = checkpoint("qwen3_5_moe", seed=2)
    with (
        Model(path, memory="64MB", threads=1) as stranger,
        pytest.raises(ModelFormatError, match="another model"),
    ):
        Generator(stranger, GREEDY).load(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="bytes"):
        generator.load(file)
    assert generator.generate(first, max_tokens=6).logprobs == one.logprobs


def test_a_sequence_with_more_than_is_known_of_it_begins_anew(model, tmp_path):
    """As after a Ctrl-C between a token and its being written down."""
    generator, file = Generator(model, GREEDY), tmp_path / "talk"
    generator.generate(tokens(100), max_tokens=6)
    generator.save(file)
    ids, _ = read(file, *_key(model))
    follow = np.concatenate([ids, [8], tokens(10, seed=2)])
    want = generator.generate(follow, max_tokens=6)
    generator.load(file)
    generator._session.eval(np.array([7], np.int32), np.empty((1, model.vocab_size), np.float32))
    got = generator.generate(follow, max_tokens=6)
    assert (got.stats.cached_tokens, got.logprobs) == (0, want.logprobs)


def _key(model):
    from flashmoe.prefix_cache import model_key

    return (model_key(model),)


def test_a_write_that_fails_leaves_the_old_file(model, tmp_path, monkeypatch):
    ids = tokens(30)
    snapshot = session_with(model, ids).save()
    path = tmp_path / "talk"
    write(path, 1, ids, snapshot)
    before = path.read_bytes()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *a: (_ for _ in ()).throw(OSError(28, "no space")))
            with pytest.raises(OSError, match="no space"):
                write(path, 1, ids[:20], snapshot)
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_saved_sequence_is_on_the_disk_before_it_has_its_name(model, tmp_path, monkeypatch):
    ids, done = tokens(30), []
    snapshot = session_with(model, ids).save()
    fsync, replace = os.fsync, os.replace

    def sync(fd):
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "contents")
        fsync(fd)

    def name(old, new):
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", name)
    write(tmp_path / "talk", 1, ids, snapshot)
    assert done == ["contents", "name", "directory"]


def test_a_full_disk_does_not_end_an_answer(model, tmp_path, monkeypatch, caplog):
    cache = PrefixCache(model, memory=0, directory=tmp_path, disk=ROOM)

    def full(*a: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr("flashmoe.prefix_files.write", full)
    generator = Generator(model, GREEDY, prefix_cache=cache)
    assert len(generator.generate(tokens(20), max_tokens=3).token_ids) == 3
    cache.flush()
    assert "could not be saved" in caplog.text


def test_arguments(model, tmp_path):
    with pytest.raises(ArgumentError, match="together"):
        PrefixCache(model, memory=1, directory=tmp_path)
    with pytest.raises(ArgumentError, match="negative"):
        PrefixCache(model, memory=-1)
    cache = PrefixCache(model, memory=1)
    with pytest.raises(ArgumentError, match="session"):
        cache.store(session_with(model, tokens(9)), tokens(8))
