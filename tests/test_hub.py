"""Models from the hub, against a server on the loopback: whole, and shard by shard."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hub_server
import tiny
from flashmoe import errors, hub
from flashmoe.checkpoint import open_checkpoint
from flashmoe.conversion import convert
from flashmoe.conversion.plan import Formats
from flashmoe.conversion.run import Conversion, Options
from flashmoe.conversion.sources import HubSource
from flashmoe.conversion.write import Fs

SHARDS = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repo") / "tiny"
    tiny.write(path, "qwen3_moe", seed=4, dtype="bf16", shards=4, vocab_size=300,
               num_hidden_layers=3)  # fmt: skip
    tiny.tokenizer(path, 300)
    return path


@pytest.fixture(scope="module")
def golden(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the same files make when they lie here."""
    out = convert(repo, tmp_path_factory.mktemp("golden") / "out", bits=4, progress=False)
    return digest(out)


def digest(path: Path) -> dict[str, str]:
    """Of every file, but for the comment that says where a manifest is from, and what lists it."""
    found = {}
    for file in path.iterdir():
        if file.name != "SHA256SUMS":
            data = file.read_bytes()
            if file.name == "manifest.fm" and data.startswith(b"#"):
                data = data.partition(b"\n")[2]
            found[file.name] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture
def server(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with served(repo, tmp_path, monkeypatch) as running:
        yield running


def served(folder: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub on the loopback with an empty cache, and nothing else of this machine's settings."""
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.file_download.time", impatient)
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)
    context = hub_server.serve(folder)

    class Pointed:
        def __enter__(self) -> hub_server.Hub:
            running = context.__enter__()
            monkeypatch.setenv("HF_ENDPOINT", running.url)
            return running

        def __exit__(self, *what: Any) -> None:
            close_session()  # its connections, which it would keep for the next request
            context.__exit__(*what)

    return Pointed()


# ----------------------------------------------------------------------------------------- resolve


def test_a_directory_comes_first(
    server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert hub.resolve("acme/tiny") == Path("acme/tiny")
    assert hub.resolve(tmp_path) == tmp_path
    assert server.requests == []


def test_a_repository_is_downloaded_once(repo: Path, server: hub_server.Hub) -> None:
    path = hub.resolve("acme/tiny")
    for name in (*SHARDS, "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (path / name).read_bytes() == (repo / name).read_bytes()
    assert all(server.fetched(name) == 1 for name in SHARDS)
    assert open_checkpoint(path).manifest == open_checkpoint(repo).manifest
    assert hub.resolve("acme/tiny", "main") == path
    assert hub.resolve("acme/tiny", hub_server.COMMIT) == path
    assert all(server.fetched(name) == 1 for name in SHARDS)
    server.gone = True
    assert hub.resolve("acme/tiny") == path  # what is here needs no hub


@pytest.mark.parametrize("name", [SHARDS[1], "tokenizer.json"])
def test_wrong_bits_do_not_stay_in_the_cache(name: str, repo: Path, server: hub_server.Hub) -> None:
    server.spoilt = {name: 1}
    path = hub.resolve("acme/tiny")
    assert (path / name).read_bytes() == (repo / name).read_bytes()
    assert server.fetched(name) == 2


def test_what_nobody_has_checked_is_checked_by_the_next(
    repo: Path, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended when a file was there, but not looked at."""
    server.spoilt = dict.fromkeys((file.name for file in repo.iterdir()), 1)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_is_right", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            hub.resolve("acme/tiny")
    path = hub.resolve("acme/tiny")
    for file in repo.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()


def test_only_what_makes_a_model_is_downloaded(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(repo, tmp_path / "repo")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "photo.png"):
        (folder / name).write_bytes(b"x" * 5000)
    with served(folder, tmp_path, monkeypatch) as server:
        names = {p.name for p in hub.resolve("acme/tiny").iterdir()}
        assert {"config.json", "tokenizer.json", *SHARDS} <= names
        assert not names & {"pytorch_model.bin", "consolidated.safetensors", "photo.png"}
        assert server.fetched("pytorch_model.bin") == 0


@pytest.mark.parametrize(
    ("name", "revision", "kind", "words"),
    [
        ("acme/none", None, errors.ModelFormatError, "neither a directory acme/none nor such a"),
        ("acme/gated", None, errors.ReadError, "is gated: accept its terms .* `hf auth login`"),
        ("acme/tiny", "v9", errors.ModelFormatError, "has no revision 'v9'"),
        ("just-a-name", None, errors.ModelFormatError, "just-a-name is not a directory"),
        ("/no/such/place", None, errors.ModelFormatError, "/no/such/place is not a directory"),
        ("acme/ti..ny", None, errors.ModelFormatError, "is no name of a repository"),
    ],
)
def test_what_cannot_be_found(
    name: str, revision: str | None, kind: type[Exception], words: str, server: hub_server.Hub
) -> None:
    with pytest.raises(kind, match=words):
        hub.resolve(name, revision)


def test_a_hub_that_is_not_there(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(errors.ReadError, match="hub cannot be reached: check the network"):
        hub.resolve("acme/tiny")
    with pytest.raises(errors.ReadError, match=r"acme/tiny.*hub"):
        hub.RemoteCheckpoint("acme/tiny")


def test_a_download_that_cannot_fit(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(errors.ReadError, match=r"takes [\d,]+ bytes of disk and .* 1,000 free"):
        hub.resolve("acme/tiny")
    assert all(server.fetched(name) == 0 for name in SHARDS)


# ------------------------------------------------------------------------------------- the headers


@pytest.mark.parametrize("head", [8, 64, 1 << 17])
@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_headers_alone_give_the_manifest(
    head: int, ignores_ranges: bool, repo: Path, server: hub_server.Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(hub, "_HEAD_BYTES", head)
    server.ignores_ranges = ignores_ranges
    remote = hub.RemoteCheckpoint("acme/tiny")
    assert remote.manifest == open_checkpoint(repo).manifest
    assert remote.commit == hub_server.COMMIT
    assert all(server.fetched(name) == 0 for name in SHARDS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: (p / "config.json").unlink(), "has no config.json"),
        (lambda p: (p / SHARDS[1]).unlink(), "names model-00002-of-00004.safetensors, which is"),
        (lambda p: (p / SHARDS[1]).write_bytes(b"\xff" * 300), "header length"),
        (lambda p: os.truncate(p / SHARDS[2], 90_000), "is truncated"),
        (lambda p: (p / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda p: (p / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "../../x"}}'), "not a plain name inside"),
        (lambda p: [f.unlink() for f in p.glob("*.safetensors*")], "has no model.safetensors"),
    ],
)  # fmt: skip
def test_repositories_that_are_no_model(
    change: Any, words: str, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(repo, tmp_path / "repo")
    change(folder)
    with served(folder, tmp_path, monkeypatch):
        with pytest.raises(errors.ModelFormatError, match=words):
            convert("acme/tiny", tmp_path / "out", progress=False)
        assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------- shard by shard


def held(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[int]:
    """How many shards lie on the disk after each download."""
    counts: list[int] = []
    download = hub.RemoteCheckpoint.download

    def counting(self: hub.RemoteCheckpoint, name: str, where: Path) -> Path:
        path = download(self, name, where)
        counts.append(sum(p.suffix == ".safetensors" for p in folder.rglob("*")))
        return path

    monkeypatch.setattr(hub.RemoteCheckpoint, "download", counting)
    return counts


def test_one_shard_at_a_time(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    counts = held(monkeypatch, tmp_path)
    out = convert("acme/tiny", tmp_path / "out", bits=4, progress=False)
    assert capfd.readouterr() == ("", "")
    assert digest(out) == golden
    assert counts == [1, 1, 1, 1]
    assert all(server.fetched(name) == 1 for name in SHARDS)
    first = (out / "manifest.fm").read_text().partition("\n")[0]
    assert first == f"# from acme/tiny, revision {hub_server.COMMIT}"
    assert open_checkpoint(out).kind == "packed"
    with pytest.raises(errors.ConversionError, match="holds a finished model already"):
        convert("acme/tiny", out, bits=4, progress=False)


def test_fp8_with_its_scale_in_the_next_shard(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.fp8(repo, tmp_path / "fp8")
    split_pairs(folder)
    want = digest(convert(folder, tmp_path / "local", bits=4, progress=False))
    counts = held(monkeypatch, tmp_path / "out")
    with served(folder, tmp_path, monkeypatch) as server:
        out = convert("acme/tiny", tmp_path / "out", bits=4, progress=False)
        assert [server.fetched(name) for name in SHARDS] == [1, 1, 1, 1]
    assert digest(out) == want
    assert max(counts) == 2


def split_pairs(folder: Path) -> None:
    """Cut a checkpoint into four shards, each matrix's scales one shard after the matrix."""
    tensors = tiny.read(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    weights = [name for name in tensors if not name.endswith("_scale_inv")]
    shards: list[dict[str, tiny.Tensor]] = [{} for _ in SHARDS]
    for i, name in enumerate(weights):
        shard = 3 * i // len(weights)
        shards[shard][name] = tensors[name]
        if f"{name}_scale_inv" in tensors:
            shards[shard + 1][f"{name}_scale_inv"] = tensors[f"{name}_scale_inv"]
    place = {}
    for name, content in zip(SHARDS, shards, strict=True):
        tiny.save(folder / name, content)
        place |= dict.fromkeys(content, name)
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_room_for_the_result_and_one_shard(
    repo: Path, golden: dict[str, str], server: hub_server.Hub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    largest = max((repo / name).stat().st_size for name in SHARDS)
    weights = sum(
        int(line.split("bytes=")[1].split()[0])
        for line in manifest_lines(repo, tmp_path)
        if line.startswith("file ")
    )
    needed = weights + largest + (1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(errors.ConversionError, match=f"needs {needed:,} bytes"):
        convert("acme/tiny", out, bits=4, progress=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert digest(convert("acme/tiny", out, bits=4, progress=False)) == golden


def manifest_lines(repo: Path, tmp: Path) -> list[str]:
    out = convert(repo, tmp / "local", bits=4, progress=False)
    return (out / "manifest.fm").read_text().splitlines()


def test_dropped_connections(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path
) -> None:
    server.drops = 7
    assert digest(convert("acme/tiny", tmp_path / "out", bits=4, progress=False)) == golden
    assert server.drops == 0


def test_a_hub_that_goes_away_in_between(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    download = hub.RemoteCheckpoint.download

    def going(self: hub.RemoteCheckpoint, name: str, where: Path) -> Path:
        server.gone = name == SHARDS[2]
        return download(self, name, where)

    monkeypatch.setattr(hub.RemoteCheckpoint, "download", going)
    with pytest.raises(errors.ReadError, match=r"acme/tiny.*hub"):
        convert("acme/tiny", tmp_path / "out", bits=4, progress=False)
    assert not (tmp_path / "out" / "manifest.fm").exists()
    monkeypatch.undo()
    server.gone = False
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert digest(convert("acme/tiny", tmp_path / "out", bits=4, progress=False)) == golden
    assert [server.fetched(name) for name in SHARDS[:2]] == [1, 1]


def test_a_spoilt_shard_is_fetched_again(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path
) -> None:
    server.spoilt = {SHARDS[1]: 1}
    assert digest(convert("acme/tiny", tmp_path / "out", bits=4, progress=False)) == golden
    assert [server.fetched(name) for name in SHARDS] == [1, 2, 1, 1]


def test_a_shard_that_is_always_spoilt(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path
) -> None:
    server.spoilt = {SHARDS[3]: 99}
    with pytest.raises(errors.IntegrityError, match=f"{SHARDS[3]} came 3 times with another SHA"):
        convert("acme/tiny", tmp_path / "out", bits=4, progress=False)
    assert not (tmp_path / "out" / "manifest.fm").exists()
    server.spoilt = {}
    assert digest(convert("acme/tiny", tmp_path / "out", bits=4, progress=False)) == golden


class Crash(BaseException):
    """The process is gone."""


class CrashingFs(Fs):
    """Crashes at the Nth change."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def write(self, fd: int, data: Any, at: int) -> None:
        self._tick()
        super().write(fd, data, at)

    def sync(self, fd: int) -> None:
        self._tick()

    def rename(self, old: Path, new: Path) -> None:
        self._tick()
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._tick()
        super().remove(path)


def test_crashes_between_and_inside_shards(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for at in range(3, 1000, 53):
        crashed = True
        source = HubSource(hub.RemoteCheckpoint("acme/tiny"), out)
        try:
            Conversion(source, out, Options(Formats(4, 64), False, 1), CrashingFs(at)).run()
            crashed = False
        except Crash:
            assert not (out / "manifest.fm").exists() or digest(out).items() >= golden.items()
            before = {name: server.fetched(name) for name in SHARDS}
            convert("acme/tiny", out, bits=4, progress=False)
            again = [server.fetched(name) - before[name] for name in SHARDS]
            assert sorted(again)[-2:] in ([0, 0], [0, 1], [1, 1])
            assert again == sorted(again)
        finally:
            source.close()
        assert digest(out) == golden
        shutil.rmtree(out)
        if not crashed:
            break
    assert not crashed
    assert at > 300


def test_killed_while_streaming(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path
) -> None:
    out, luck = tmp_path / "out", random.Random(5)
    program = (
        "import sys\nfrom flashmoe.conversion import convert\n"
        "convert('acme/tiny', sys.argv[1], bits=4, progress=False)\n"
    )
    settings = {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    kills = 0
    for _ in range(6):
        server.requests.clear()
        child = subprocess.Popen([sys.executable, "-c", program, str(out)],
                                 env=os.environ | settings, stderr=subprocess.DEVNULL)  # fmt: skip
        while not server.requests and child.poll() is None:
            time.sleep(0.005)
        time.sleep(luck.uniform(0, 0.25))
        kills += child.poll() is None
        child.kill()
        child.wait()
        if (out / "manifest.fm").exists():
            assert digest(out).items() >= golden.items()
            shutil.rmtree(out)
    assert kills
    if (out / "manifest.fm").exists():
        shutil.rmtree(out)
    convert("acme/tiny", out, bits=4, progress=False)
    assert digest(out) == golden


def test_an_unfinished_one_keeps_its_revision(
    golden: dict[str, str], server: hub_server.Hub, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = HubSource(hub.RemoteCheckpoint("acme/tiny"), out)
    with pytest.raises(Crash):
        Conversion(source, out, Options(Formats(4, 64), False, 1), CrashingFs(120)).run()
    source.close()
    server.commit = "f" * 40  # somebody pushes to the main branch
    assert digest(convert("acme/tiny", out, bits=4, progress=False)) == golden
