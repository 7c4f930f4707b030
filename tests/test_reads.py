"""Ways of reading: which is taken and why, what is kept of a measurement, one answer by all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import flashmoe
from conftest import tokens
from flashmoe import _core, kept, reading
from flashmoe.checkpoint import open_checkpoint
from flashmoe.errors import ArgumentError, ExpertReadError, UnsupportedModelError
from flashmoe.reading import Choice, Figure, Probe

GB = 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory of this test's own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return kept.directory() / "reads.json"


@pytest.fixture
def model(checkpoint):
    return checkpoint(seed=7)


class Sizes:
    """A manifest of nothing but sizes."""

    total_expert_bytes, resident_bytes, experts = 18 * GB, GB, ()

    def to_text(self) -> str:
        return ""


def figure(way: str, rate: float, *, direct: bool = True, error: str | None = None) -> Figure:
    return Figure(way, 8, 1, rate, direct, error)


def probed(monkeypatch: pytest.MonkeyPatch, *figures: Figure) -> list[object]:
    """Let the disk give these figures; the list says how often it was asked."""
    calls: list[object] = []

    def measure(_text, _directory, candidates):
        calls.append(candidates)
        return figures

    monkeypatch.setattr(reading, "_measure", measure)
    return calls


def choose(tmp_path: Path, budget: float, available: float, read: str = "auto") -> Choice:
    return reading.choose(
        read, None, None, manifest=Sizes(), directory=tmp_path,
        budget=int(budget * GB), available=int(available * GB),
    )  # fmt: skip


# ---- what auto takes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "available", "way"),
    [
        (6, 32, "buffered"),  # 18 + 6 of 32
        (48, 64, "buffered"),  # the model holds 19, not 48: 18 + 19 of 64
        (6, 26, "direct"),  # 18 + 6 are more than nine tenths of 26
        (16, 22, "direct"),  # slots and page cache would hold most experts twice
        (5, 6, "direct"),
    ],
)
def test_the_page_cache_is_used_if_it_holds_everything(
    tmp_path, monkeypatch, budget, available, way
):
    calls = probed(monkeypatch, figure("direct", 2e9))
    got = choose(tmp_path, budget, available)
    assert got.read == way
    assert len(calls) == (way == "direct")  # nothing is measured for nothing
    assert "18.00 GB" in got.reason and f"{available:.2f} GB" in got.reason


def test_the_fastest_is_taken_if_it_is_clearly_faster(tmp_path, monkeypatch, cache):
    def taken(*figures: Figure) -> Choice:
        cache.unlink(missing_ok=True)
        probed(monkeypatch, *figures)
        return choose(tmp_path, 5, 6)

    assert taken(figure("direct", 2e9), figure("uring", 2.4e9)).read == "direct"
    clearly = taken(figure("direct", 2e9), Figure("uring", 16, 2, 2.6e9, True))
    assert (clearly.read, clearly.threads, clearly.split) == ("uring", 16, 2)
    assert "2.60 GB/s" in clearly.reason
    cached = taken(figure("direct", 1e9), figure("uring", 9e9, direct=False))
    assert cached.read == "direct"  # a figure of the page cache is none of the disk
    refused = taken(figure("direct", 1e9), figure("uring", 0, direct=False, error="EPERM"))
    assert refused.read == "direct" and refused.probe.figures[1].error == "EPERM"


def test_a_file_system_without_direct_reads_is_told_as_such(tmp_path, monkeypatch, cache):
    probed(monkeypatch, figure("direct", 9e9, direct=False), figure("uring", 9e9, direct=False))
    got = choose(tmp_path, 5, 6)
    assert got.read == "buffered" and "O_DIRECT" in got.reason
    assert not cache.exists()  # nothing was learnt about the disk
    assert "O_DIRECT" in reading.refused(Choice("direct", 8, 1, "asked for"), False).reason
    assert reading.refused(Choice("direct", 8, 1, "asked for"), True).reason == "asked for"
    assert reading.refused(Choice("mmap", 8, 1, "asked for"), False).reason == "asked for"


def test_a_disk_that_cannot_be_measured_is_no_failure(tmp_path, monkeypatch):
    probed(monkeypatch, figure("direct", 0, direct=False, error="x.bin: wanted 5 bytes"))
    got = choose(tmp_path, 5, 6)
    assert got.read == "direct" and "x.bin: wanted 5 bytes" in got.reason


def test_what_is_asked_for_is_not_measured(tmp_path, monkeypatch):
    calls = probed(monkeypatch)
    assert choose(tmp_path, 5, 6, "uring") == Choice("uring", 8, 1, "asked for")
    assert not calls
    for wrong in (("tape", None, None), ("auto", 257, None), ("auto", None, 3)):
        with pytest.raises(ArgumentError):
            reading.check(*wrong)


# ---- what is kept -------------------------------------------------------------------------------


def test_a_measurement_is_made_once(tmp_path, monkeypatch, cache):
    calls = probed(monkeypatch, figure("direct", 2e9), figure("uring", 3e9))
    first, second = choose(tmp_path, 5, 6), choose(tmp_path, 5, 6)
    assert len(calls) == 1
    assert second.read == first.read == "uring"
    assert second.probe.figures == first.probe.figures
    assert (first.probe.kept, second.probe.kept) == (False, True)
    assert "an earlier run" in second.reason
    assert [p.name for p in cache.parent.iterdir()] == ["reads.json"]
    reading.probe(Sizes(), tmp_path, threads=4)
    assert len(calls) == 2 and {threads for _, threads, _ in calls[1]} == {4}


def spoil(cache: Path, change) -> None:
    kept = json.loads(cache.read_text())
    change(kept, next(iter(kept["reads"].values())))
    cache.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "change",
    [
        lambda kept, entry: kept.update(version=0),
        lambda kept, entry: kept.update(reads=[1]),
        lambda kept, entry: entry.update(measured_at=time.time() - 31 * 24 * 3600),
        lambda kept, entry: entry.update(measured_at=time.time() + 3600),
        lambda kept, entry: entry.update(measured_at="now"),
        lambda kept, entry: entry.update(figures=3),
        lambda kept, entry: entry.update(figures=[]),
        lambda kept, entry: entry["figures"][0].update(read="tape"),
        lambda kept, entry: entry["figures"][0].update(threads=10**6),
        lambda kept, entry: entry["figures"][0].update(threads="8"),
        lambda kept, entry: entry["figures"][0].update(bytes_per_second="fast"),
        lambda kept, entry: entry["figures"][0].update(extra=1),
    ],
)
def test_a_stale_or_broken_entry_is_measured_again(tmp_path, monkeypatch, cache, change):
    calls = probed(monkeypatch, figure("direct", 2e9))
    choose(tmp_path, 5, 6)
    spoil(cache, change)
    assert choose(tmp_path, 5, 6).read == "direct"
    assert len(calls) == 2
    assert choose(tmp_path, 5, 6).probe.kept  # and kept again


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', "\xff\xfe"])
def test_a_broken_file_is_written_anew(tmp_path, monkeypatch, cache, text):
    calls = probed(monkeypatch, figure("direct", 2e9))
    cache.parent.mkdir(parents=True)
    cache.write_bytes(text.encode("latin-1"))
    choose(tmp_path, 5, 6)
    assert choose(tmp_path, 5, 6).probe.kept and len(calls) == 1


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, cache):
    calls = probed(monkeypatch, figure("direct", 2e9))
    cache.parent.parent.mkdir(parents=True, exist_ok=True)
    cache.parent.write_text("a file where the directory would be")
    for _ in range(2):
        assert choose(tmp_path, 5, 6).read == "direct"
    assert len(calls) == 2


def test_figures_survive_the_file(tmp_path, monkeypatch):
    figures = (figure("direct", 2.25e9), figure("uring", 0.0, direct=False, error="EPERM"))
    probed(monkeypatch, *figures)
    choose(tmp_path, 5, 6)
    kept = choose(tmp_path, 5, 6).probe
    assert isinstance(kept, Probe) and kept.figures == figures
    assert "EPERM" in figures[1].describe() and "2.25 GB/s" in figures[0].describe()


# ---- the real thing -----------------------------------------------------------------------------


def usable(way: str, path: Path) -> bool:
    """Whether this system has that way; if not, it says what to take instead."""
    if way not in ("populate", "uring"):
        return True
    try:
        flashmoe.Model(path, read=way).close()
    except UnsupportedModelError as error:
        return 'read with "' not in str(error)
    return True


@pytest.mark.parametrize("way", reading.WAYS)
def test_every_way_gives_the_same_bits(model, way):
    if not usable(way, model):
        pytest.skip(f"this system has no {way}")
    ids = tokens(150)
    with flashmoe.Model(model, read="buffered") as plain:
        want = plain.logits(ids)
        greedy = generate(plain, ids)
    for threads, split in ((1, 1), (3, 2), (16, 8)):
        with flashmoe.Model(model, read=way, read_threads=threads, read_split=split) as other:
            info = other.info()
            assert np.array_equal(other.logits(ids), want)
            assert generate(other, ids) == greedy
        assert (info["read_threads"], info["read_split"]) == (threads, split)
        assert info["read"] == way or "O_DIRECT" in info["read_reason"]
        assert "asked for" in info["read_reason"]


def generate(model: flashmoe.Model, ids: np.ndarray) -> list[int]:
    generator = flashmoe.Generator(model, flashmoe.Sampler(temperature=0))
    try:
        return list(generator.generate(ids.tolist(), max_tokens=8).token_ids)
    finally:
        generator.close()


@pytest.mark.parametrize("way", reading.WAYS)
def test_every_way_tells_of_a_cut_file(model, tmp_path, way):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    if not usable(way, copy):
        pytest.skip(f"this system has no {way}")
    file = max(copy.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    with flashmoe.Model(copy, read=way) as cut:
        size = file.stat().st_size
        os.truncate(file, size // 3)
        with pytest.raises(ExpertReadError) as caught:
            cut.logits(tokens(300, seed=3))
    told = str(caught.value)
    for word in ("layer", "expert", file.name, "wanted", "at offset", "got", f"cut from {size}"):
        assert word in told, told


def test_auto_measures_a_real_disk(model, monkeypatch):
    small = open_checkpoint(model).manifest.total_expert_bytes
    monkeypatch.setattr("flashmoe.machine.available_memory", lambda: 2 * small)
    started = time.perf_counter()
    with flashmoe.Model(model, memory="1GB", read_threads=2) as opened:
        took = time.perf_counter() - started
        info = opened.info()
        assert opened.logits(tokens(5)).shape[0] == 5
    assert took < 5
    assert info["read_threads"] == 2
    assert len(info["read_probe"]) >= 2
    assert all(f["threads"] == 2 for f in info["read_probe"])
    if info["read_direct"]:
        assert "measured" in info["read_reason"] and info["read"] in ("direct", "uring")
    else:
        assert "O_DIRECT" in info["read_reason"]


def test_the_probe_counts_what_it_reads(model):
    manifest = open_checkpoint(model).manifest
    for way, cold in (("buffered", True), ("direct", False)):
        got = _core.probe_reads(
            manifest.to_text(), str(model), read=way, read_threads=2, read_split=1,
            seconds=0.02, cold=cold, seed=5,
        )  # fmt: skip
        assert got["ns"] >= 0.02e9 and got["batches"] >= 1
        assert got["bytes"] >= got["experts"] * 1000 > 0
        assert got["direct"] in (False, way == "direct")
    with pytest.raises(ArgumentError):
        _core.probe_reads(
            manifest.to_text(), str(model), read="direct", read_threads=0, read_split=1,
            seconds=0.02, cold=False, seed=5,
        )  # fmt: skip


def test_read_buffers_count(model):
    """Reads around the page cache that are not aligned need memory, which the ceiling knows."""
    with (
        flashmoe.Model(model, read="buffered") as through,
        flashmoe.Model(model, read="direct", read_threads=4) as around,
    ):
        more = around.info()["scratch_bytes"] - through.info()["scratch_bytes"]
        if around.info()["read_direct"]:
            assert more >= 4 * through.info()["expert_bytes"]
        else:
            assert more == 0
