"""The lint accepts our shaders and samples, and refuses seeded mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metal.lint.lint import clang, lint

HERE = Path(__file__).parent
SHADERS = HERE.parent / "shaders"
COMPILER = clang()
pytestmark = pytest.mark.skipif(
    not COMPILER, reason="needs clang-19 (Debian's package is called so)"
)

HEAD = """#include <metal_stdlib>
using namespace metal;
struct P {
    int n, m;
    float4 v;
};
constant int KIND [[function_constant(0)]];
constant float TABLE[4] = {0.0f, 1.0f, 2.0f, 3.0f};
METAL_FUNC float total(device const float *x, uint n)
{
    float sum = 0.0f;
    for (uint i = 0u; i < n; i++) sum += x[i] * TABLE[i & 3u];
    return sum;
}
METAL_FUNC float of_group(threadgroup const float *x) { return x[0]; }
METAL_FUNC void change(thread float &x) { x += 1.0f; }
"""
KERNEL = """kernel void k(constant P &p [[buffer(0)]],
              device const float *x [[buffer(1)]],
              device float *y [[buffer(2)]],
              device half *h [[buffer(3)]],
              device uchar4 *b [[buffer(4)]],
              uint i [[thread_position_in_grid]],
              uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float t[32];
    t[lane] = total(x, uint(p.n)) + float(KIND);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // HERE
    y[i] = simd_sum(of_group(t));
}
"""

# A line in the kernel, and what is said about it.
IN_KERNEL: list[tuple[str, str]] = [
    ("y[i] = total(t, 1u);", "no matching function for call to 'total'"),
    ("y[i] = of_group(x);", "no matching function for call to 'of_group'"),
    ("change(y[i]);", "no matching function for call to 'change'"),
    ("float *q = x;", "without its address space"),
    ("thread float *q = y;", "cannot initialize a variable of type"),
    ("thread float *q = (thread float *)y;", "a cast to thread memory"),
    ("device float *q = y; q = (float *)y;", "without its address space"),
    ("device float *q = x;", "cannot initialize"),
    ("x[i] = 1.0f;", "read-only|const"),
    ("((constant P &)p).n = 1;", "read-only|const|not assignable"),
    ("TABLE[0] = 1.0f;", "read-only|const"),
    ("P copy = p;", "no matching constructor"),
    ("y[i] = max(1.0f, 2);", "call to 'max' is ambiguous"),
    ("y[i] = max(x[i], h[i]);", "call to 'max' is ambiguous"),
    ("y[i] = simd_summ(x[i]);", "undeclared identifier 'simd_summ'"),
    ("h[i] = x[i];", "implicit conversion loses floating-point precision"),
    ("y[i] = p.n;", "implicit conversion from 'const.* int' to .*float"),
    ("int q = x[i];", "implicit conversion turns floating-point number into integer"),
    ("uchar q = p.n;", "implicit conversion loses integer precision"),
    ("y[i] = 1.0;", "a number without its `f`"),
    ("y[i] = 1e-6;", "a number without its `f`"),
    ("float4 q = (float4)b[i];", "not .float4.x"),
    ("float4 q = float4(1.0f, 2.0f, 3.0f);", "the values do not fill the vector"),
    ("float3 q = float3(p.v);", "the values do not fill the vector"),
    ("float q = as_type<float>(h[i]);", "as_type of another size"),
    ("auto q = [](float z) { return z; };", "a lambda"),
    ("float q[p.n];", "variable length array"),
    ("double q = 1.0f;", "`double`: is not part"),
    ('printf("%d", p.n);', "undeclared identifier 'printf'"),
    ("y[i] = std::exp(x[i]);", "no std in Metal"),
    ("y[i] = expf(x[i]);", "undeclared identifier 'expf'"),
    ("y[i] = float(p.k);", "no member named 'k'"),
    ("goto out; out: y[i] = 0.0f;", "`goto`"),
    ("static float q = 0.0f;", "static variables"),
    ("if (lane < 4u) { threadgroup float u[4]; u[0] = 0.0f; }", "at the top of the kernel"),
    ("threadgroup float u[4], w[4];", "one array a line"),
    ("threadgroup_barrier(mem_threadgroup);", "undeclared identifier 'mem_threadgroup'"),
    ("threadgroup_barrier();", "no matching function for call to 'threadgroup_barrier'"),
    ("float q; y[i] = q;", "uninitialized"),
    ("if constexpr (true) y[i] = 0.0f;", r"C\+\+17 extension"),
    ("auto [u, w] = p;", r"C\+\+17 extension|no matching constructor"),
    ("y[i] = x[i] + p;", "invalid operands"),
    (
        "y[i] = float(atomic_fetch_add_explicit(y, 1u, memory_order_relaxed));",
        "no matching function",
    ),
    ("simdgroup_half8x8 q;", "unknown type name 'simdgroup_half8x8'|undeclared"),
    ("y[i] = precise::rsqrtf(x[i]);", "no member named 'rsqrtf'"),
    ("throw 1;", "`throw`"),
]

# Text beside the kernel.
OUTSIDE: list[tuple[str, str]] = [
    ("float add(float a, float b) { return a + b; }", "a helper is marked METAL_FUNC"),
    ("METAL_FUNC float first(const float *a) { return a[0]; }", "without its address space"),
    ("METAL_FUNC void set(float &a) { a = 0.0f; }", "without its address space"),
    (
        "template <class T> METAL_FUNC T first(const T *a) { return a[0]; }",
        "without its address space",
    ),
    ("METAL_FUNC int f(int n) { return n < 2 ? 1 : n * f(n - 1); }", "f calls itself"),
    ("const int SIZE = 4;", "a variable of the program is `constant`"),
    ("static constexpr int SIZE = 4;", "a variable of the program is `constant`"),
    ("float scratch[32];", "a variable of the program is `constant`"),
    ("constant float SIZE;", "wants its value"),
    ("threadgroup float shared[32];", "declared outside a kernel"),
    ("constant float KIND2 [[function_constant(1)]];", "an attribute where none"),
    ("constant int KIND2 [[function_constant(0)]];", "declared twice"),
    (
        "METAL_FUNC float f(float x) { threadgroup float t[4]; return t[0] + x; }",
        "outside a kernel",
    ),
    ("struct vertex { int n; };", "a word of Metal"),
    ("kernel void g(device float *y) { y[0] = 0.0f; }", "one attribute a parameter"),
    ("kernel void g(device float *y [[buffer(0)]], device float *z [[buffer(0)]]) {}", "two param"),
    ("kernel void g(device float *y [[buffers(0)]]) {}", "is not known"),
    ("kernel void g(constant float y [[buffer(0)]]) {}", "wants a pointer or reference"),
    ("kernel void g(float2 i [[thread_position_in_grid]]) {}", "wants one of uint"),
    ("kernel float g(device float *y [[buffer(0)]]) { return 0.0f; }", "wants `kernel void name"),
    ("template <int N> kernel void g(device float *y [[buffer(0)]]) {}", "a kernel is no template"),
    (
        "METAL_FUNC float f(float x) { return x; }\nMETAL_FUNC float f(float y) { return y; }",
        "redefinition",
    ),
]


def said(text: str) -> str:
    assert COMPILER
    return "\n".join(lint([("x.metal", text)], COMPILER))


def test_right_text() -> None:
    assert said(HEAD + KERNEL) == ""
    assert said(HEAD + KERNEL.replace("// HERE", "y[i] = float(h[i]) + float4(b[i]).x;")) == ""


@pytest.mark.parametrize(("line", "wanted"), IN_KERNEL, ids=lambda t: t[:30])
def test_mistakes_in_a_kernel(line: str, wanted: str) -> None:
    found = said(HEAD + KERNEL.replace("// HERE", line))
    assert re.search(wanted, found), found or "nothing found"
    assert f"x.metal:{(HEAD + KERNEL).split('// HERE')[0].count(chr(10)) + 1}:" in found


@pytest.mark.parametrize(("text", "wanted"), OUTSIDE, ids=lambda t: t[:30])
def test_mistakes_beside_kernels(text: str, wanted: str) -> None:
    found = said(HEAD + text + "\n" + KERNEL)
    assert wanted in found, found or "nothing found"


@pytest.mark.skipif(not SHADERS.is_dir(), reason="the sources are not beside the tests")
def test_shaders() -> None:
    names = ["params.h", "common.h", *sorted(p.name for p in SHADERS.glob("*.metal"))]
    files = [(name, (SHADERS / name).read_text()) for name in names]
    assert COMPILER and lint(files, COMPILER) == []


def test_samples() -> None:
    samples = HERE / "metal" / "emulator" / "samples"
    files = [
        (n, (samples / n).read_text())
        for n in ("params.h", "samples.metal", "tiles.metal", "library.metal", "faults.metal")
    ]
    assert COMPILER and lint(files, COMPILER) == []
