"""``verify`` finds every changed byte and says where it is."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import flashmoe
import tiny
from flashmoe import errors
from flashmoe.conversion import convert
from flashmoe.verification import verify


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of twelve experts; each layer's records are 8192 bytes apart."""
    src = tmp_path_factory.mktemp("source") / "model"
    tiny.write(src, "qwen3_moe", seed=6, dtype="bf16", vocab_size=300)
    tiny.tokenizer(src, 300)
    return convert(src, tmp_path_factory.mktemp("packed") / "model", bits=4, progress=False)


@pytest.fixture
def mine(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "mine")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def stride(packed: Path) -> int:
    return (packed / "experts-02.bin").stat().st_size // 12


def test_what_was_written_is_there(packed: Path) -> None:
    report = verify(packed, progress=False)
    assert report.ok
    assert report.mismatch is None
    assert report.has_checksums
    assert (report.kind, report.records) == ("packed", 48)
    assert report.files == len(list(packed.iterdir())) - 1  # all but the list of sums itself
    total = sum(p.stat().st_size for p in packed.iterdir() if p.name != "SHA256SUMS")
    assert report.nbytes == total
    assert "48 experts match their checksums" in report.message


@pytest.mark.parametrize("expert", [0, 5, 11])
@pytest.mark.parametrize("offset", [0, 1, 2000])
def test_a_flipped_bit_in_an_expert(expert: int, offset: int, mine: Path) -> None:
    at = expert * stride(mine)
    flip(mine / "experts-02.bin", at + offset)
    report = verify(mine, progress=False)
    assert not report.ok
    assert report.mismatch is not None
    found = report.mismatch
    assert (found.file, found.offset) == ("experts-02.bin", at)
    assert (found.layer, found.expert) == (2, expert)
    assert f"experts-02.bin: expert {expert} of layer 2, at byte {at}, does not" in report.message
    assert "convert the model again" in report.message


def test_a_flipped_bit_between_experts(mine: Path) -> None:
    flip(mine / "experts-02.bin", stride(mine) - 1)
    report = verify(mine, progress=False)
    assert report.mismatch is not None
    assert report.mismatch.expert is None
    assert "experts-02.bin: its SHA-256 is not the one in the manifest" in report.message


@pytest.mark.parametrize("at", [0, 12345, -1])
def test_a_flipped_bit_in_the_resident_file(at: int, mine: Path) -> None:
    flip(mine / "resident.bin", at)
    report = verify(mine, progress=False)
    assert report.mismatch is not None
    assert report.mismatch.file == "resident.bin"
    assert "resident.bin: its SHA-256 is not" in report.message


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_changed_small_file(name: str, mine: Path) -> None:
    flip(mine / name, 10)
    report = verify(mine, progress=False)
    assert f"{name}: was changed: its SHA-256" in report.message
    assert report.mismatch is not None
    assert report.records == 48


def test_a_changed_manifest(mine: Path) -> None:
    text = (mine / "manifest.fm").read_text()
    (mine / "manifest.fm").write_text(text.replace("norm_eps=1e-06", "norm_eps=1e-05"))
    assert "manifest.fm: was changed" in verify(mine, progress=False).message
    (mine / "manifest.fm").write_text(text + "nonsense\n")
    with pytest.raises(errors.ModelFormatError, match=r"manifest\.fm: .*nonsense.* convert"):
        verify(mine, progress=False)


@pytest.mark.parametrize("name", ["experts-01.bin", "resident.bin", "tokenizer.json"])
def test_a_missing_file(name: str, mine: Path) -> None:
    (mine / name).unlink()
    report = verify(mine, progress=False)
    assert not report.ok
    assert name in report.message
    assert "missing" in report.message


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size(change: int, mine: Path) -> None:
    size = (mine / "experts-03.bin").stat().st_size
    os.truncate(mine / "experts-03.bin", size + change)
    report = verify(mine, progress=False)
    assert f"experts-03.bin: has {size + change} bytes, the manifest says {size}" in report.message
    assert report.nbytes == 0  # found before anything is read


def test_only_the_first_difference_is_told(mine: Path) -> None:
    flip(mine / "experts-01.bin", 3 * stride(mine))
    flip(mine / "experts-01.bin", 9 * stride(mine))
    flip(mine / "experts-03.bin", 0)
    found = verify(mine, progress=False).mismatch
    assert found is not None
    assert (found.layer, found.expert) == (1, 3)


def test_a_checksum_of_another_expert_does_not_pass(mine: Path) -> None:
    """Two experts that changed places have right bytes and wrong places."""
    file, step = mine / "experts-00.bin", stride(mine)
    data = bytearray(file.read_bytes())
    data[:step], data[step : 2 * step] = data[step : 2 * step], data[:step]
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    lines = (mine / "manifest.fm").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "path=experts-00.bin" in line)
    lines[at] = lines[at].split(" sha256=")[0] + f" sha256={digest}"
    (mine / "manifest.fm").write_text("\n".join(lines) + "\n")
    assert "expert 0 of layer 0" in verify(mine, progress=False).message


def test_the_bar_counts_bytes(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(packed)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "100%" in shown.err
    assert "verifying" in shown.err


# --------------------------------------------------------------------------- while a model is run


def flip_every_expert(path: Path) -> None:
    """In place, under an open model: one low bit of a weight of each expert."""
    for file in path.glob("experts-*.bin"):
        with file.open("r+b") as f:
            for expert in range(12):
                f.seek(expert * stride(path))
                byte = f.read(1)[0]
                f.seek(expert * stride(path))
                f.write(bytes([byte ^ 1]))


def open_small(path: Path, verify: str) -> flashmoe.Model:
    """In the least memory, so that experts are read again and again."""
    for memory in range(200_000, 20_000_000, 50_000):
        try:
            model = flashmoe.Model(path, memory=memory, threads=1, read="buffered", verify=verify)
        except errors.BudgetError:
            continue
        assert model.info()["expert_slots"] < 48
        return model
    raise AssertionError("too large")


def logits_of(model: flashmoe.Model) -> bytes:
    logits = np.empty((64, model.vocab_size), np.float32)
    session = model.new_session()
    try:
        session.eval(np.arange(64, dtype=np.int32), logits)
    finally:
        session.close()
    return logits.tobytes()


@pytest.mark.parametrize("verify", ["first", "always", "off"])
def test_experts_that_change_before_they_are_first_read(mine: Path, verify: str) -> None:
    with open_small(mine, verify) as model:
        assert model.info()["verify"] == verify
        flip_every_expert(mine)
        if verify == "off":
            logits_of(model)
        else:
            with pytest.raises(errors.IntegrityError, match=r"layer \d+ expert \d+ .*checksum"):
                logits_of(model)


@pytest.mark.parametrize("verify", ["first", "always", "off"])
def test_experts_that_change_later(mine: Path, verify: str) -> None:
    with open_small(mine, verify) as model:
        right = logits_of(model)
        assert logits_of(model) == right
        flip_every_expert(mine)
        if verify == "always":
            with pytest.raises(errors.IntegrityError, match=r"layer \d+ expert \d+ .*checksum"):
                logits_of(model)
        else:
            assert logits_of(model) != right  # what the documentation says of these two
        flip_every_expert(mine)
        if verify == "always":
            assert logits_of(model) == right


def test_other_words_for_verify(mine: Path) -> None:
    with pytest.raises(ValueError, match="verify must be one of first, always, off, not 'often'"):
        flashmoe.Model(mine, verify="often")


# --------------------------------------------------------------------- a checkpoint opened in place


def test_a_checkpoint_opened_in_place_has_no_checksums(tmp_path: Path) -> None:
    src = tiny.write(tmp_path / "src", "qwen3_next", seed=1, dtype="bf16", shards=3)
    report = verify(src, progress=False)
    assert report.ok
    assert not report.has_checksums
    assert report.records == 0
    assert (report.kind, report.files) == ("safetensors", 3)
    assert "no checksums are recorded" in report.message


def test_its_headers_are_checked(tmp_path: Path) -> None:
    src = tiny.write(tmp_path / "src", "qwen3_moe", seed=1)
    file = src / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(errors.ModelFormatError, match="truncated"):
        verify(src, progress=False)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFormatError, match=r"has no config\.json"):
        verify(tmp_path, progress=False)
    with pytest.raises(errors.ModelFormatError, match="is not a directory"):
        verify(tmp_path / "nothing", progress=False)
