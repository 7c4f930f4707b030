"""What the translator of shader text refuses and keeps, and the same text as CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from metal.emulator.translate import Refused, translate

HERE = Path(__file__).parent / "metal" / "emulator"
SAMPLES = HERE / "samples"
SHADERS = HERE.parent.parent.parent / "shaders"

KERNEL = "kernel void f(device float *y [[buffer(0)]]) { y[0] = 1.0f; }"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("template <int N> " + KERNEL, "kernel f: a kernel is no template"),
        ("kernel float f() {}", "wants `kernel void name"),
        ("kernel void f(device float *y) {}", "found `device float \\*y`"),
        ("kernel void f(device float *y [[buffer(0)]] [[x]]) {}", "one attribute a parameter"),
        ("kernel void f(float *y [[buffer(0)]]) {}", "'y' is `float \\*`; wants a pointer"),
        ("kernel void f(threadgroup float *y [[buffer(0)]]) {}", "to device or constant"),
        ("kernel void f(device float *y [[buffer(31)]]) {}", "an index from 0 to 30"),
        ("kernel void f(device float *y [[buffer]]) {}", "an index from 0 to 30"),
        ("kernel void f(uint i [[thread_position_in_grid]],\n"
         "uint3 j [[thread_position_in_threadgroup]]) {}",
         "positions of 1 and 3"),
        ("kernel void f(int i [[thread_index_in_simdgroup]]) {}", "is `int`; wants one of uint"),
        ("kernel void f(uint i [[vertex_id]]) {}", r"\[\[vertex_id\]\] is not known"),
        ("kernel void f(device float *a [[buffer(0)]], device float *b [[buffer(0)]]) {}",
         "two parameters"),
        ("\n\nkernel void f(uint i [[thread_index_in_simdgroup]])\n"
         "{\n  threadgroup float a[2], b;\n}",
         "x.metal:5: kernel f: threadgroup 'a': wants one array a line"),
        ("kernel void f(uint i [[thread_index_in_simdgroup]]) { { threadgroup float a[2]; } }",
         "at the top of the kernel"),
        ("METAL_FUNC void g() {\n threadgroup float a[2]; }",
         "x.metal:2: threadgroup 'a' is declared"),
        ("constant float A [[function_constant(0)]];", "an attribute where none is expected"),
        ("constant int A [[function_constant(0)]];\nconstant int B [[function_constant(0)]];",
         "declared twice"),
        (KERNEL + "\n" + KERNEL, "kernel f: defined twice"),
        ("METAL_FUNC float g() { return 1.0; }", "`1.0`: a number without its `f`"),
        ("METAL_FUNC float g() { return 1e-5 + 0.5h; }", "`1e-5`"),
        ("METAL_FUNC half g() { return 0.5h; }", "write half"),
        ("METAL_FUNC float4 g(uchar4 x) { return (float4)x; }", "write float4"),
        ("kernel void f(texture2d<float> t [[texture(0)]]) {}", "not known"),
        ("METAL_FUNC float g(double x) { return 1.0f; }", "`double`: is not part"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["cpu", "cuda", "lint"])
def test_refused_text(mode: str, text: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        translate(mode, [("x.metal", text)])


def test_lines_stay() -> None:
    text = (SAMPLES / "samples.metal").read_text()
    for mode in ("cpu", "cuda", "lint"):
        out = translate(mode, [("x.metal", text)]).split('#line 1 "x.metal"\n')[1].split("\n")
        for number, line in enumerate(text.split("\n")):
            for word in re.findall(
                r"\b(?:precise|simd_\w+|threadgroup_barrier)\b", line.split("//")[0]
            ):
                assert word in out[number], f"{mode}: line {number + 1}"


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc (compiles only)")
@pytest.mark.parametrize("text", ["samples", "shaders"])
def test_cuda_compiles(tmp_path: Path, text: str) -> None:
    files = [SAMPLES / name for name in ("params.h", "samples.metal", "library.metal")]
    if text == "shaders":
        files = [SHADERS / "params.h", SHADERS / "common.h", *sorted(SHADERS.glob("*.metal"))]
    if not files[0].exists():
        pytest.skip("the sources are not beside the tests")
    (tmp_path / "k.cu").write_text(translate("cuda", [(f.name, f.read_text()) for f in files]))
    constants = [f"-DFUNCTION_CONSTANT_{i}=1" for i in range(8)]
    done = subprocess.run(
        ["nvcc", "-std=c++17", "-arch=sm_90", "-ptx", f"-I{HERE / 'cuda'}", *constants, "k.cu"],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    kernels = set(re.findall(r"kernel void (\w+)\(", "".join(f.read_text() for f in files)))
    assert kernels == set(re.findall(r"\.entry (\w+)\(", (tmp_path / "k.ptx").read_text()))
