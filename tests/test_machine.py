"""Sizes, memory limits from every place they may come from, and the disk probe."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from flashmoe import machine
from flashmoe.errors import ArgumentError, ReadError

PHYSICAL = machine.physical_memory()


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6GB", 6_000_000_000),
        ("6 gb", 6_000_000_000),
        ("6G", 6_000_000_000),
        ("512MiB", 536_870_912),
        ("1.5GiB", 1_610_612_736),
        (".5KB", 500),
        ("123", 123),
        ("123B", 123),
        (123, 123),
        (6e9, 6_000_000_000),
    ],
)
def test_sizes(text: str | int | float, nbytes: int) -> None:
    assert machine.parse_size(text) == nbytes


def test_fractions_are_of_the_memory_limit() -> None:
    limit = machine.memory_limit()
    assert machine.parse_size(0.5) == limit // 2
    assert machine.parse_size("50%") == limit // 2
    assert machine.parse_size(1.0) == limit


@pytest.mark.parametrize(
    "size", ["", "GB", "6XB", "-1", "6 i", "6iB", "101%", 0, -5, 0.0, True, None, float("nan")]
)
def test_no_sizes(size: object) -> None:
    with pytest.raises(ArgumentError):
        machine.parse_size(size)  # type: ignore[arg-type]


def proc(root: Path, cgroup: str, available_kb: int = 1 << 40) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_kb} kB\n")


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")


@needs_linux
def test_cgroup_v2_takes_the_tightest_of_the_chain(tmp_path: Path) -> None:
    proc(tmp_path, "0::/outer/inner\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "outer", memory__max=4_000_000, memory__current=3_000_000)
    stat = "anon 1\nactive_file 500000\ninactive_file 1500000"
    (top / "outer/memory.stat").write_text(stat)
    group(top / "outer/inner", memory__max="max", memory__current=1_000_000)
    assert machine.memory_limit(tmp_path) == 4_000_000
    # 3,000,000 are used, of which the page cache's 2,000,000 can be taken back.
    assert machine.available_memory(tmp_path) == 3_000_000


@needs_linux
def test_cgroup_v2_seen_from_inside_a_container(tmp_path: Path) -> None:
    proc(tmp_path, "0::/../../hosts/own/path\n")
    group(tmp_path / "sys/fs/cgroup", memory__max=7_000_000, memory__current=0)
    assert machine.memory_limit(tmp_path) == 7_000_000


@needs_linux
def test_cgroup_v1(tmp_path: Path) -> None:
    proc(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    group(top, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
    inner = top / "docker/abc"
    group(inner, memory__limit_in_bytes=5_000_000, memory__usage_in_bytes=2_000_000)
    (inner / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 1000000\n")
    assert machine.memory_limit(tmp_path) == 5_000_000
    assert machine.available_memory(tmp_path) == 4_000_000


@needs_linux
def test_no_cgroup_limit_leaves_the_machine(tmp_path: Path) -> None:
    proc(tmp_path, "0::/\n", available_kb=2048)
    group(tmp_path / "sys/fs/cgroup", memory__max="max")
    assert machine.memory_limit(tmp_path) <= PHYSICAL
    assert machine.available_memory(tmp_path) == 2048 * 1024


@needs_linux
def test_silent_meminfo_is_an_error(tmp_path: Path) -> None:
    proc(tmp_path, "0::/\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(ReadError, match="give memory= yourself"):
        machine.available_memory(tmp_path)


@needs_linux
def test_address_space_limit_counts() -> None:
    ceiling = 2 << 30
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({ceiling}, {ceiling}))\n"
        "from flashmoe import machine\n"
        "print(machine.memory_limit(), machine.available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    limit, available = map(int, done.stdout.split())
    assert limit == min(ceiling, machine.memory_limit())
    assert 0 < available < ceiling
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != ceiling


def test_vm_stat() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\n"
        "Pages active:                            200000.\n"
        "Pages inactive:                           30000.\n"
        "Pages speculative:                         1000.\n"
        "Pages wired down:                        100000.\n"
        "Pages purgeable:                            500.\n"
    )
    assert machine.parse_vm_stat(text) == 16384 * 41500
    with pytest.raises(ReadError, match="vm_stat"):
        machine.parse_vm_stat("no such thing")


def test_probe_writes_and_removes_a_file(tmp_path: Path) -> None:
    probe = machine.probe_disk(
        tmp_path, block_bytes=100_000, threads=(1, 3), seconds=0.05, most_bytes=4 << 20
    )
    assert probe.block_bytes == 102_400
    assert set(probe.by_threads) == {1, 3}
    assert probe.bytes_per_second == max(probe.by_threads.values()) > 0
    assert probe.read_bytes >= 2 * 102_400
    assert list(tmp_path.iterdir()) == []


def test_probe_reads_a_large_file_that_is_there(tmp_path: Path) -> None:
    big = tmp_path / "experts.bin"
    big.write_bytes(bytes(4 << 20))
    before = big.stat().st_mtime_ns
    tmp_path.chmod(0o555)
    try:
        machine.probe_disk(tmp_path, block_bytes=4096, seconds=0.02, most_bytes=1 << 20)
    finally:
        tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == [big]
    assert big.stat().st_mtime_ns == before


def test_probe_of_nowhere_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot measure the disk"):
        machine.probe_disk(tmp_path / "absent")
