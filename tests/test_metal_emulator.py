"""The Metal emulator: right kernels give right numbers, and every planted bug is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metal.emulator.kernels import ORDERS, Failed, Kernels

HERE = Path(__file__).parent / "metal" / "emulator"
SAMPLES = HERE / "samples"
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
CLANG = shutil.which("clang++-19")
pytestmark = pytest.mark.skipif(not CLANG, reason="needs clang-19 (Debian's package is called so)")

BOUND = 1e-5  # of errors, where numbers are about 1


# ---- cases: each runs a kernel and gives its largest error ----


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest error; infinite where one of both is no number."""
    off = np.abs(got.astype(np.float64) - wanted)
    return float(np.inf if np.isnan(off).any() else off.max())


def unset(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def normal(rng: np.random.Generator, *shape: int, kind: type = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(kind)


def matvec(k: Kernels, kernel: str, rows: int, columns: int, bits: int, add: int) -> float:
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    per_word, words = 32 // bits, -(-columns * bits // 32)
    padded = np.zeros((rows, words * per_word), np.uint64)
    padded[:, :columns] = codes
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    packed = (padded.reshape(rows, words, per_word) << shifts).sum(-1).astype(np.uint32)
    scale, x = rng.random(rows).astype(np.float16), normal(rng, columns) / 8
    y = normal(rng, rows) if add else unset(rows)
    wanted = (codes - 8.0) @ x.astype(np.float64) * scale + (y if add else 0.0)
    p = np.array([rows, columns], np.int32)
    groups, simdgroups = -(-rows // 3), 3
    k.run(kernel, [p, packed, scale, x, y], groups, 32 * simdgroups, constants={0: bits, 3: add})
    return error(y, wanted) / np.sqrt(columns)


def normalise(k: Kernels, kernel: str, rows: int, columns: int, threads: int) -> float:
    x = normal(np.random.default_rng(columns), rows, columns) + np.float32(3.0)
    y = unset(rows, columns)
    k.run(kernel, [np.array([rows, columns], np.int32), x, y], rows, threads)
    wanted = x.astype(np.float64)
    wanted -= wanted.mean(1, keepdims=True)
    wanted /= np.sqrt((wanted**2).mean(1, keepdims=True) + 1e-6)
    return error(y, wanted)


def attend(k: Kernels, kernel: str, heads: int, positions: int, dim: int, threads: int) -> float:
    rng = np.random.default_rng(positions)
    q, y = normal(rng, heads, dim) * np.float32(3.0), unset(heads, dim)
    keys, values = (normal(rng, positions, heads, dim, kind=np.float16) for _ in "kv")
    p = np.array([(positions, dim, heads * dim, dim**-0.5)], dtype="i4,i4,i4,f4")
    k.run(kernel, [p, q, keys, values, y], heads, threads, threadgroup={0: 4 * positions})
    score = np.einsum("hd,phd->hp", q.astype(np.float64), keys.astype(np.float64)) * dim**-0.5
    share = np.exp(score - score.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    return error(y, np.einsum("hp,phd->hd", share, values.astype(np.float64)))


def tiles(k: Kernels, kernel: str, rows: int, columns: int, inner: int) -> float:
    rng = np.random.default_rng(inner)
    a, b, c = normal(rng, rows, inner), normal(rng, columns, inner), unset(rows, columns)
    p = np.array([rows, inner], np.int32)
    k.run(kernel, [p, a, b, c], (columns // 8, rows // 8), 32)
    return error(c, a.astype(np.float64) @ b.astype(np.float64).T)


def count(k: Kernels, kernel: str, n: int) -> float:
    kind = np.random.default_rng(n).integers(0, 7, n).astype(np.uint8)
    counts = np.zeros(7, np.uint32)
    k.run(kernel, [np.array([0, n], np.int32), kind, counts], -(-n // 64), 64)
    return error(counts, np.bincount(kind, minlength=7))


def lanes(k: Kernels, kernel: str) -> float:
    x = np.random.default_rng(0).integers(0, 256, (32, 4)).astype(np.uint8)
    y, z = unset(32, 4), np.zeros((32, 6), np.uint32)
    k.run(kernel, [x, y, z], 1, 32)
    i = np.arange(32)
    wanted = (x * 0.5 + [1.0, 2.0, 3.0, float(np.float16(0.1))])[:, ::-1]
    top = (x[:, 0] * np.float32(0.5) + np.float32(1.0)).astype(np.float32)
    wanted[:, 0] = (top.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    before = np.cumsum(i) - i
    columns = [np.where(i < 29, (i + 3) ** 2, i**2), np.where(i < 5, i**2, (i - 5) ** 2), i ^ 6,
               7 + before, np.full(32, 31 + 2), np.where(i > 16, np.clip(i, 4, 9), 31 - i),
               ]  # fmt: skip
    return max(error(y, wanted), error(z, np.stack(columns, 1)))


def numbers(k: Kernels, kernel: str, n: int) -> float:
    x, y = np.linspace(0.1, 3.0, n).astype(np.float32), unset(n, 32)
    k.run(kernel, [x, y], 1, n)
    a = x.astype(np.float64)
    rounded = x.astype(np.float16).astype(np.float64)
    ones = np.array([bin(bits).count("1") for bits in x.view(np.uint32)])
    leading = [32 - int(f).bit_length() for f in x * np.float32(100.0)]
    tens = (x * np.float32(10.0)).astype(int)
    wanted = [
        np.ceil(a), np.cos(a), np.exp(a), 2**a, np.floor(-a), np.log(a), np.log2(a), np.rint(a),
        np.floor(a + 0.5), a**-0.5, np.sin(a), a**0.5, np.tanh(a), -np.floor(a), a + 1, a**1.5,
        a * a + 1, np.minimum(a, 1) + np.maximum(a, 2), np.clip(a, 0.5, 1.5), 6 * a * a + 0.25,
        1 + 0 * a, 1 + 0 * a, ones, leading, rounded, np.exp(-a), 0.25 + 0 * a,
        np.where(a > 1, -a, a), 4 * a * a + 2 * a,
        np.minimum(tens, 7) + np.maximum(3, x.astype(int)), -rounded, 2.25 * a - 1,
    ]  # fmt: skip
    return error(y / 16, np.stack(wanted, 1) / 16)


Case = tuple[Callable[..., float], tuple[int, ...]]
CASES: list[Case] = [
    (matvec, (101, 333, 4, 0)), (matvec, (7, 65, 8, 1)), (matvec, (3, 31, 4, 1)),
    (normalise, (3, 1001, 96)), (normalise, (5, 77, 32)), (normalise, (2, 33, 1024)),
    (attend, (3, 77, 40, 128)), (attend, (2, 1, 33, 64)), (attend, (1, 300, 65, 96)),
    (tiles, (16, 24, 40)), (count, (1001,)), (lanes, ()), (numbers, (77,)),
]  # fmt: skip


# ---- planted bugs: what changes in the samples, and who must see it ----

BARRIER = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n"
V, W = {"values"}, {"watch"}


def nth(text: str, old: str, n: int, new: str) -> str:
    parts = text.split(old)
    return old.join(parts[: n + 1]) + new + old.join(parts[n + 1 :])


PLANTED: list[tuple[str, str, int, str, set[str]]] = [
    ("matvec", "row >= uint(p.rows)", 0, "row > uint(p.rows)", W),
    ("matvec", "+ 31u) / 32u", 0, ") / 32u", V),
    ("matvec", "uint i = lane;", 0, "uint i = 0u;", V),
    ("matvec", "i += 32u", 0, "i += 31u", V),
    ("matvec", "- 8.0f", 0, "- 7.9375f", V),
    ("matvec", "simd_sum(sum)", 0, "sum", V),
    ("matvec", "if (lane == 0u)", 0, "if (lane < 2u)", V | W),
    ("matvec", "i < uint(p.columns)", 0, "i <= uint(p.columns)", W),
    ("matvec", "group * simdgroups", 0, "group * 4u", V),
    ("group_sum", BARRIER, 0, "", V | W),
    ("group_sum", BARRIER, 1, "", V | W),
    ("group_sum", "lane < simdgroups", 0, "lane <= simdgroups", V),
    ("group_sum", "part[simdgroup] = x", 0, "part[lane] = x", V | W),
    ("normalise", "i += threads.x", 1, "i += 32u", V),
    ("normalise", "(row[i] - mean) *", 1, "row[i] *", V),
    ("normalise", "group.x * uint(p.columns)", 1, "group.y * uint(p.columns)", V | W),
    ("attend", BARRIER, 0, "", W),
    ("attend", BARRIER, 1, "", V | W),
    ("attend", BARRIER, 2, "", V | W),
    ("attend", BARRIER, 3, "", V | W),
    ("attend", "t < positions", 4, "t <= positions", W),
    ("attend", "t * uint(p.stride)", 1, "t * size", V),
    ("attend", "if (lane == 0u) total", 0, "if (lane < 2u) total", W),
    ("tiles", ", true)", 0, ", false)", V),
    ("tiles", "k += 8ul", 0, "k += 16ul", V),
    ("count", "atomic_fetch_add_explicit(&counts[uint(kind[i])], 1u, memory_order_relaxed)", 0,
     "((device uint *)counts)[uint(kind[i])] += 1u", W),
    ("count", "if (i < uint(p.columns)) ", 0, "", W),
]  # fmt: skip


def blocks() -> dict[str, str]:
    """The functions of the samples by name."""
    text = "".join((SAMPLES / f"{name}.metal").read_text() for name in ("samples", "tiles"))
    found = re.findall(r"^(?:kernel void|METAL_FUNC \w+) (\w+)\(.*?^}\n", text, re.M | re.S)
    parts = re.findall(r"^(?:kernel|METAL_FUNC) .*?^}\n", text, re.M | re.S)
    return dict(zip(found, parts, strict=True))


def planted_text() -> str:
    """Each planted bug as a kernel of its own, called as the right one and its number."""
    out, functions = [], blocks()
    for number, (where, old, n, new, _) in enumerate(PLANTED):
        assert functions[where].count(old) > n, f"{where}: no {old!r} number {n}"
        kernel = "normalise" if where == "group_sum" else where
        wanted = {"matvec": ["code"], "normalise": ["group_sum"]}.get(kernel, [])
        for name in [*wanted, kernel]:
            text = nth(functions[name], old, n, new) if name == where else functions[name]
            out.append(re.sub(rf"\b({'|'.join(functions)})\(", rf"\g<1>_{number}(", text))
    return "\n".join(out)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, faults and planted bugs, in a library of each kind."""
    path = tmp_path_factory.mktemp("kernels")
    (path / "planted.metal").write_text(planted_text())
    texts = ("params.h", "samples.metal", "tiles.metal", "library.metal", "faults.metal")
    files = [*(SAMPLES / n for n in texts),
             path / "planted.metal"]  # fmt: skip
    for command in (
        ["cmake", "-G", "Ninja", "-S", str(HERE), "-B", str(path), f"-DCMAKE_CXX_COMPILER={CLANG}",
         f"-DEMU_FILES={';'.join(map(str, files))}", "-DEMU_KINDS=plain;watch;address"],
        ["cmake", "--build", str(path), "-j2"],
    ):  # fmt: skip
        done = subprocess.run(
            command, text=True, capture_output=True, env={**os.environ, "PATH": TOOLS}
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return path


@pytest.fixture(scope="session")
def plain(built: Path) -> Kernels:
    return Kernels(built / "libkernels_plain.so")


@pytest.fixture(scope="session")
def watch(built: Path) -> Kernels:
    return Kernels(built / "libkernels_watch.so")


def run_case(kernels: Kernels, case: Case, order: int, suffix: str = "") -> float:
    function, shape = case
    kernels.order(order)
    kernels.barrier()
    return function(kernels, function.__name__ + suffix, *shape)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].__name__}{c[1]}")
def test_right_kernels(plain: Kernels, watch: Kernels, case: Case, order: int) -> None:
    assert run_case(plain, case, order) < BOUND
    assert run_case(watch, case, order) < BOUND


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].__name__}{c[1]}")
def test_orders_give_the_same(plain: Kernels, case: Case) -> None:
    assert len({run_case(plain, case, order) for order in ORDERS}) == 1


@pytest.mark.parametrize("number", range(len(PLANTED)))
def test_planted_bugs(plain: Kernels, watch: Kernels, number: int) -> None:
    """Each bug shows in one of the cases of its kernel, in one of the orders."""
    where, old, n, new, wanted = PLANTED[number]
    kernel = "normalise" if where == "group_sum" else where
    seen: set[str] = set()
    for case in CASES:
        for order in ORDERS if case[0].__name__ == kernel else ():
            for kind in wanted - seen:  # what runs past the end is left to the watch
                try:
                    off = run_case(
                        {"values": plain, "watch": watch}[kind], case, order, f"_{number}"
                    )
                    seen |= {kind} if kind == "values" and off > BOUND else set()
                except Failed:
                    seen |= {kind}
    assert seen == wanted, f"{where}: {old!r} number {n} as {new!r}"


# ---- faults that are named, and dispatches that are refused ----

# Kernel, what the plain build says, what the watch build says.
FAULTS: list[tuple[str, str, str]] = [
    ("some_threads_wait", r"lanes of a simdgroup do not meet: thread \d+ \w.*faults.metal:8, "
     r"thread \d+ has returned", "do not meet"),
    ("two_barriers", r"threads of a threadgroup do not meet: .*:15.*:17", "do not meet"),
    ("some_lanes_sum", r"do not meet: thread 0 waits at simd_sum .*:23, thread 30 has", "do not"),
    ("lane_that_is_not", "simd_shuffle reads lane 32 of 32 at line 28", "lane 32 of 32"),
    ("too_much_memory", "'b' brings threadgroup memory to 32784 bytes, of 32768", "'b' brings"),
    ("changes_const", "", "write to 'x', which is const at faults.metal:42"),
    ("past_an_array", "", "write of 4 bytes 0 bytes behind the end of 'a', which has 256 at f"),
    ("groups_meet", "", r"race on y\+\d+: \w+ at faults.metal:\d+ after \w+ by thread \d+ of "
     r"threadgroup \d at faults.metal:\d+, with no barrier between"),
    ("wrong_memory", "", r"wrong_memory\[threadgroup 0,0,0 thread 0,0,0\]: race on y\+252: read at "
     r"faults.metal:67 after write by thread 63 at faults.metal:65"),
    ("bytes", "", ""),
    ("in_simdgroup", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "in_plain", "in_watch"), FAULTS, ids=lambda f: f[:20])
def test_faults(plain: Kernels, watch: Kernels, kernel: str, in_plain: str, in_watch: str) -> None:
    for kernels, says in ((plain, in_plain), (watch, in_watch)):
        kernels.order(0)
        kernels.barrier()
        groups = 2 if kernel in ("bytes", "groups_meet") else 1
        threads = 32 if kernel in ("some_lanes_sum", "lane_that_is_not") else 64
        y = np.zeros(128, np.float32)
        if says:
            with pytest.raises(Failed, match=says):
                kernels.run(kernel, [y], groups, threads)
        else:
            kernels.run(kernel, [y], groups, threads)


def test_dispatches_without_barrier(watch: Kernels) -> None:
    p, x, y, z = np.array([1, 64], np.int32), unset(64), np.ones(64, np.float32), unset(64)
    for order in ORDERS:
        watch.order(order)
        watch.barrier()
        watch.run("normalise", [p, y, x], 1, 64)
        watch.run("normalise", [p, y, z], 1, 64)  # both only read y
        with pytest.raises(
            Failed, match=r"race on x\+\d+: read .* after write by thread \d+ of kernel "
        ):
            watch.run("normalise", [p, x, z], 1, 64)
        watch.barrier()
        watch.run("normalise", [p, x, z], 1, 64)
        with pytest.raises(
            Failed, match=r"race on y\+\d+: write .* after read by an earlier dispatch"
        ):
            watch.run("normalise", [p, y, x], 1, 64)


def test_refused_dispatches(plain: Kernels) -> None:
    p, x = np.array([1, 64], np.int32), np.ones(64, np.float32)
    a = np.array([(5, 8, 8, 1.0)], dtype="i4,i4,i4,f4")
    for kernel, buffers, threads, more, says in (
        ("normalize", [p, x, x], 32, {}, "no kernel 'normalize'"),
        ("normalise", [p, x], 32, {}, r"normalise: buffer\(2\) 'y' is not bound"),
        (
            "normalise",
            [p[:1], x, x],
            32,
            {},
            r"buffer\(0\) 'p': 4 bytes bound, the argument takes 8",
        ),
        (
            "normalise",
            [p, x, x],
            1025,
            {},
            "1025x1x1 threads in 1x1x1 threadgroups: wants 1 to 1024",
        ),
        ("normalise", [p, x, x], (32, 0, 1), {}, "32x0x1 threads"),
        ("matvec", [p, x, x, x, x], 32, {"constants": {0: 4}}, "function constant 3 is not set"),
        ("attend", [a, x, x, x, x], 32, {}, r"threadgroup\(0\) 'score' has no length"),
        (
            "attend",
            [a, x, x, x, x],
            32,
            {"threadgroup": {0: 32768}},
            "'largest' brings threadgroup ",
        ),
        ("attend", [a, x, x, x, x], 32, {"threadgroup": {0: 32769}}, "32784 bytes of threadgroup"),
    ):
        with pytest.raises(Failed, match=says):
            plain.run(kernel, buffers, 1, threads, **more)
    assert plain.constants("matvec") == [0, 3] and plain.constants("normalise") == []


def test_address_sanitizer(built: Path) -> None:
    """One element too few, and one past an array of threadgroup memory: the line is named."""
    found = subprocess.run([CLANG, "-print-file-name=libclang_rt.asan-x86_64.so"],
                           text=True, capture_output=True).stdout.strip()  # fmt: skip
    if not Path(found).exists():
        pytest.skip("needs libclang-rt-19-dev on x86-64")
    program = """
import sys
import numpy as np
from metal.emulator.kernels import Kernels
k, short = Kernels(sys.argv[1]), int(sys.argv[2])
x = np.ones(999 - (short == 1), np.float32)
k.run("normalise", [np.array([1, 999], np.int32), x, np.empty(999, np.float32)], 1, 64)
if short == 2:
    k.run("past_an_array", [x], 1, 64)
print("done")
"""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(HERE.parent.parent),
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": f"detect_leaks=0,external_symbolizer_path={shutil.which('addr2line')}",
    }
    says = (
        "done",
        r"heap-buffer-overflow.*READ of size 4.*samples.metal:62",
        r"use-after-poison.*WRITE of size 4.*faults.metal:48",
    )
    for short, wanted in enumerate(says):
        done = subprocess.run(
            [sys.executable, "-c", program, str(built / "libkernels_address.so"), str(short)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode == 0) == (short == 0), done.stdout
        assert re.search(wanted, done.stdout, re.S), done.stdout
