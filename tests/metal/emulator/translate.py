"""Metal shader text as C++ for the emulator, as CUDA, or as text for the lint.

    python translate.py {cpu|cuda|lint} params.h common.h a.metal ... > kernels.cpp

The text is hardly touched, and every line stays where it was: the attributes of kernel parameters
become calls that hand over what is bound, `threadgroup` arrays and function constants become what
the target calls them, and vector constructors become `make<float4>(...)`. What is outside the
subset is refused, with file, line and kernel.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as a script and as a module

from msl import (
    ARRAY,
    PLAIN,
    POSITIONS,
    SCALARS,
    VECTOR,
    File,
    Kernel,
    Refused,
    blank,
    check,
    closing,
    parse_params,
    reached,
    without_comments,
    words,
)  # fmt: skip

MODES = ("cpu", "cuda", "lint")
WORDS = {"cpu": PLAIN | {"kernel": "static"}, "cuda": PLAIN, "lint": {"kernel": ""}}


def arrays(file: File, start: int, body: str, kernel: str, mode: str) -> str:
    """Rewrite the threadgroup arrays of a kernel."""
    out, last = [], 0
    for n, m in enumerate(ARRAY.finditer(body)):
        if m[4] != ";":
            raise file.refuse(
                start + m.start(),
                f"threadgroup '{m[2]}': wants one array a line, not initialised",
                kernel,
            )
        if body.count("{", 0, m.start()) - body.count("}", 0, m.start()) != 1:
            raise file.refuse(
                start + m.start(),
                f"threadgroup '{m[2]}' wants to stand at the top of the kernel",
                kernel,
            )
        new = {
            "cpu": f'auto &{m[2]} = emu::array<{m[1]}{m[3].strip()}>({n}, "{m[2]}");',
            "cuda": f"__shared__ {m[1]} {m[2]}{m[3].strip()};",
            "lint": f"static {m[0]}",
        }[mode]
        out += [body[last : m.start()], new]
        last = m.end()
    return "".join(out) + body[last:]


def cuda_signature(kernel: Kernel, lines: int) -> str:
    """Parameters that are bound are CUDA's parameters; the others are computed."""
    bound = [p for p in kernel.params if p.attribute == "buffer"]
    inside = "".join(
        f" auto {p.name} = ({p.cpp})emu::dynamic();"
        if p.attribute == "threadgroup"
        else f" const {p.type} {p.name} = "
        f"emu::position<{p.type}>(emu::{(POSITIONS | SCALARS)[p.attribute]}());"
        for p in kernel.params
        if p.attribute != "buffer"
    )
    given = ", ".join(f"{p.cpp.replace('&', '')} {p.name}" for p in bound)
    return f'extern "C" __global__ void {kernel.name}({given}) {{{inside}' + "\n" * lines


def kernels_of(file: File, mode: str) -> tuple[str, list[Kernel]]:
    """The code with its kernels rewritten, and what they are."""
    out, last, kernels = [], 0, []
    for m in re.finditer(r"\bkernel\b(?:\s+void\s+(\w+)\s*\()?", file.code):
        if not m[1]:
            raise file.refuse(m.start(), "wants `kernel void name(...)`")
        if re.search(r"(?:>|\]\])\s*$", file.code[: m.start()]):
            raise file.refuse(
                m.start(), "a kernel is no template and has no attributes of its own", m[1]
            )
        end = closing(file.code, m.end() - 1)
        open_ = file.code.find("{", end)
        if open_ < 0 or file.code[end + 1 : open_].strip():
            raise file.refuse(m.start(), "wants its body behind its parameters", m[1])
        stop = closing(file.code, open_)
        line = file.code.count("\n", 0, m.start()) + 1
        kernel = Kernel(
            m[1], file.path, line, parse_params(file, m.end(), file.code[m.end() : end], m[1])
        )
        signature = re.sub(
            r"\[\[.*?\]\]", lambda a: blank(a[0]), file.code[m.start() : open_ + 1], flags=re.S
        )
        if mode == "cuda":
            signature = cuda_signature(kernel, signature.count("\n"))
        body = arrays(file, open_, file.code[open_:stop], m[1], mode)[1:]
        out += [file.code[last : m.start()], signature, body]
        last = stop
        kernels.append(kernel)
    return "".join(out) + file.code[last:], kernels


def constants_of(file: File, mode: str) -> tuple[str, dict[str, int]]:
    """The code with its function constants rewritten, and their indices."""
    found: dict[str, int] = {}

    def define(m: re.Match[str]) -> str:
        if m[1] in found or int(m[2]) in found.values():
            raise file.refuse(m.start(), f"function constant {m[1]}, {m[2]}: declared twice")
        found[m[1]] = int(m[2])
        new = {"cpu": f"static int {m[1]};", "lint": f"extern constant int {m[1]};"}
        return new.get(mode, f"static constexpr int {m[1]} = FUNCTION_CONSTANT_{m[2]};") + "\n" * m[
            0
        ].count("\n")

    wanted = r"\bconstant\s+int\s+(\w+)\s*\[\[\s*function_constant\s*\(\s*(\d+)\s*\)\s*\]\]\s*;"
    return re.sub(wanted, define, file.code), found


def registration(kernels: list[Kernel], constants: dict[str, int]) -> str:
    """One trampoline and one row a kernel."""
    out, rows = [], []
    for k in kernels:
        bound = [p for p in k.params if p.attribute in ("buffer", "threadgroup")]
        given = [
            f"emu::argument<{p.cpp}>(t.{p.attribute}[{p.index}])"
            if p in bound
            else f"emu::position<{p.type}>(t.{(POSITIONS | SCALARS)[p.attribute]})"
            for p in k.params
        ]
        table = "".join(
            f"{{{p.index}, {int(p.attribute == 'threadgroup')}, {int(p.read_only)}, "
            f'{f"sizeof({p.pointee})" if "&" in p.type else "0"}, "{p.name}"}}, '
            for p in bound
        )
        out.append(
            f"EMU_UNWATCHED static void emu_call_{k.name}(const emu::Thread &t) "
            f"{{ {k.name}({', '.join(given)}); }}"
        )
        out.append(f"static const emu_param emu_params_{k.name}[] = {{ {table}{{}} }};")
        indices = "".join(f"{i}, " for i in k.constants)
        out.append(f"static const int32_t emu_constants_{k.name}[] = {{ {indices}-1 }};")
        rows.append(
            f'    {{"{k.name}", "{k.file}", {k.line}, emu_call_{k.name}, '
            f"emu_params_{k.name}, {len(bound)}, "
            f"emu_constants_{k.name}, {len(k.constants)}}},"
        )
    values = "".join(f"    {{{index}, &{name}}},\n" for name, index in constants.items())
    return "\n".join(
        [
            '#line 1 "registration"',
            *out,
            "extern const emu_kernel emu_kernels[] = {",
            *rows,
            "    {}\n};",
            f"extern const emu::Constant emu_constant_values[] = {{\n{values}    {{-1, nullptr}}\n}};\n",
        ]
    )


def translate(mode: str, files: list[tuple[str, str]]) -> str:
    """Translate (path, text) pairs, in their order, into one text.

    Raises:
        Refused: The text is outside the subset.
    """
    out, kernels, constants = [], [], {}
    for path, text in files:
        code = re.sub(
            r'^[ \t]*#[ \t]*include[ \t]*(?:"[^"\n]*"|<metal_\w+>).*$|^[ \t]*using namespace metal;',
            lambda m: blank(m[0]), without_comments(text), flags=re.M,
        )  # fmt: skip
        code, found = constants_of(File(path, code), mode)
        code, some = kernels_of(File(path, code), mode)
        check(File(path, code if mode != "lint" else re.sub(r"\bstatic threadgroup\b", "", code)))
        code = words(re.sub(rf"\b({VECTOR})\s*\(", r"make<\1>(", code), WORDS[mode])
        if mode == "cuda":
            code = re.sub(r"^(?=const\b|constexpr\b)", "__device__ ", code, flags=re.M)
        kernels += some
        for k in some:
            if [other.name for other in kernels].count(k.name) > 1:
                raise Refused(f"{path}: kernel {k.name}: defined twice")
        if twice := set(constants.values()) & set(found.values()):
            raise Refused(f"{path}: function constant {min(twice)}: declared twice")
        out.append(f'#line 1 "{path}"\n{code}\n')
        constants |= found
    reached("".join(out), kernels, constants)
    head = "#define __METAL_VERSION__ 310\n#include <metal_stdlib>\n"
    if mode == "cuda":
        return head + "namespace metal {\n" + "".join(out) + "}\n"
    return (
        head
        + "using namespace metal;\n"
        + "".join(out)
        + (registration(kernels, constants) if mode == "cpu" else "")
    )


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in MODES:
        sys.stderr.write(f"usage: translate.py {{{'|'.join(MODES)}}} FILE...\n")
        return 2
    try:
        sys.stdout.write(
            translate(arguments[0], [(path, Path(path).read_text()) for path in arguments[1:]])
        )
    except (Refused, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
