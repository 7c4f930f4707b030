"""Metal shader text as C++ for the emulator, as CUDA, or as text for the lint.

    python translate.py {cpu|cuda|lint} params.h common.h a.metal ... > kernels.cpp

The text is hardly touched, and every line stays where it was: the attributes of kernel parameters become calls
that hand over what is bound, `threadgroup` arrays and function constants become what the target calls them, and
vector constructors become `make<float4>(...)`. What is outside the subset is refused, with file, line and kernel.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MODES = ("cpu", "cuda", "lint")

POSITIONS = {  # attribute -> field of emu::Thread; one, two or three components
    "thread_position_in_grid": "in_grid",
    "thread_position_in_threadgroup": "in_group",
    "threadgroup_position_in_grid": "group",
    "threads_per_threadgroup": "threads",
    "threadgroups_per_grid": "groups",
    "threads_per_grid": "grid",
}
SCALARS = {
    "thread_index_in_threadgroup": "index",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
    "threads_per_simdgroup": "width",
}
POSITION_TYPES = ("uint", "uint2", "uint3", "ushort", "ushort2", "ushort3")
VECTOR = r"(?:char|uchar|short|ushort|int|uint|long|ulong|half|float)[234]"
WORDS = {
    "cpu": {"device": "", "thread": "", "threadgroup": "", "constant": "const", "kernel": "static"},
    "cuda": {"device": "", "thread": "", "threadgroup": "", "constant": "const"},
    "lint": {"kernel": ""},
}
MOST_BUFFERS = 31


class Refused(Exception):
    """Text outside the subset."""


@dataclass(frozen=True)
class Param:
    name: str
    type: str  # with its address space
    attribute: str
    index: int

    @property
    def cpp(self) -> str:
        """Its type without address spaces."""
        return words(self.type, WORDS["cpu"]).strip()

    @property
    def pointee(self) -> str:
        return re.sub(r"\bconst\b|[*&]", "", self.cpp).strip()

    @property
    def read_only(self) -> bool:
        return re.search(r"\bconst(ant)?\b", self.type) is not None


@dataclass
class Kernel:
    name: str
    file: str
    line: int
    params: list[Param]
    constants: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    path: str
    code: str  # without comments, every line in its place

    def refuse(self, at: int, why: str, kernel: str = "") -> Refused:
        where = f"{self.path}:{self.code.count(chr(10), 0, at) + 1}: "
        return Refused(where + (f"kernel {kernel}: " if kernel else "") + why)


def words(text: str, change: dict[str, str]) -> str:
    """Replace whole words, but not in #include and #pragma lines."""
    if not change:
        return text
    pattern = re.compile(rf"^[ \t]*#[ \t]*(?:include|pragma).*$|\b(?:{'|'.join(change)})\b", re.M)
    return pattern.sub(lambda m: change.get(m[0], m[0]), text)


def blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def without_comments(text: str) -> str:
    return re.sub(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"',
        lambda m: m[0] if m[0][0] == '"' else blank(m[0]),
        text,
        flags=re.S,
    )


def closing(code: str, at: int) -> int:
    """Where the bracket at `at` is closed; the end of the text if nowhere."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] == code[at]) - (code[i] == pairs[code[at]])
        if depth == 0:
            return i
    return len(code)


def split(text: str) -> Iterator[tuple[int, str]]:
    """The parts between commas that stand in no bracket, each with its place."""
    depth, start = 0, 0
    for i, c in enumerate(text + ","):
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            yield start, text[start:i]
            start = i + 1


def parse_param(file: File, at: int, text: str, kernel: str) -> Param:
    found = re.fullmatch(
        r"\s*(.*?)\s*\b(\w+)\s*\[\[\s*(\w+)\s*(?:\(\s*(\w+)\s*\))?\s*\]\]\s*", text, re.S
    )
    if not found:
        shown = " ".join(text.split()) or "nothing"
        raise file.refuse(
            at,
            f"wants `type name [[attribute]]`, one attribute a parameter; found `{shown}`",
            kernel,
        )
    kind, name, attribute, index = " ".join(found[1].split()), found[2], found[3], found[4]
    if attribute in ("buffer", "threadgroup"):
        space = re.findall(r"\b(?:device|constant|threadgroup|thread)\b", kind)
        wanted = ["threadgroup"] if attribute == "threadgroup" else ["device", "constant"]
        if len(space) != 1 or space[0] not in wanted or not re.fullmatch(r"[\w\s]+[*&]", kind):
            raise file.refuse(
                at,
                f"'{name}' is `{kind}`; wants a pointer or reference to {' or '.join(wanted)}",
                kernel,
            )
        if not (index or "").isdigit() or int(index) >= MOST_BUFFERS:
            raise file.refuse(
                at,
                f"'{name}' wants an index from 0 to {MOST_BUFFERS - 1} in [[{attribute}(n)]]",
                kernel,
            )
        return Param(name, kind, attribute, int(index))
    if attribute not in POSITIONS and attribute not in SCALARS:
        raise file.refuse(at, f"'{name}': attribute [[{attribute}]] is not known", kernel)
    types = POSITION_TYPES if attribute in POSITIONS else ("uint", "ushort")
    if kind not in types or index:
        raise file.refuse(
            at, f"'{name}' [[{attribute}]] is `{kind}`; wants one of {', '.join(types)}", kernel
        )
    return Param(name, kind, attribute, 0)


def parse_params(file: File, at: int, text: str, kernel: str) -> list[Param]:
    params = [parse_param(file, at + start, part, kernel) for start, part in split(text)]
    seen = [(p.attribute, p.index) for p in params]
    for p in params:
        if seen.count((p.attribute, p.index)) > 1:
            raise file.refuse(
                at, f"two parameters are [[{p.attribute}]] with index {p.index}", kernel
            )
    sizes = {p.type[-1] if p.type[-1] in "23" else "1" for p in params if p.attribute in POSITIONS}
    if len(sizes) > 1:
        raise file.refuse(
            at,
            f"positions of {' and '.join(sorted(sizes))} components; all must have the same",
            kernel,
        )
    return params


# A declaration of threadgroup memory: not a pointer or a reference to it.
ARRAY = re.compile(
    r"\bthreadgroup\s+(?!(?:const\s+)?\w+\s*(?:const\s*)?[*&(])"
    r"([\w:]+)\s+(\w+)\s*((?:\[[^\[\]]*\]\s*)*)([^\s\[])"
)


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
        else f" const {p.type} {p.name} = emu::position<{p.type}>(emu::{(POSITIONS | SCALARS)[p.attribute]}());"
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


def check(file: File) -> None:
    """Refuse what would mean something else, or nothing, in the targets."""
    for pattern, why in (
        (
            r"\[\[",
            "an attribute where none is expected (function constants are `constant int NAME [[function_constant(n)]];`)",
        ),
        (
            r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+(?=[eE][+-]?\d))(?:[eE][+-]?\d+)?(?![\w.])",
            "a number without its `f`",
        ),
        (r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+)[hH]\b", "write half(1.0f)"),
        (rf"\(\s*{VECTOR}\s*\)\s*[\w(]", "write float4(x), not (float4)x"),
        (
            r"\b(?:texture\w+|sampler|goto|double|new|delete|virtual|try|throw)\b",
            "is not part of the subset",
        ),
    ):
        code = re.sub(
            r"^[ \t]*#[ \t]*(?:include|pragma|line).*$",
            lambda m: blank(m[0]),
            file.code,
            flags=re.M,
        )
        if m := re.search(pattern, code):
            raise file.refuse(m.start(), f"`{' '.join(m[0].split())}`: {why}")
    for m in ARRAY.finditer(file.code):
        raise file.refuse(m.start(), f"threadgroup '{m[2]}' is declared outside a kernel")


def reached(code: str, kernels: list[Kernel], constants: dict[str, int]) -> None:
    """Find the function constants that each kernel, or what it calls, names."""
    named: dict[str, set[str]] = {}
    for m in re.finditer(r"^[ \t]*#[ \t]*define[ \t]+(\w+)((?:.*\\\n)*.*)$", code, re.M):
        named.setdefault(m[1], set()).update(re.findall(r"[A-Za-z_]\w*", m[2]))
    at = 0
    while (open_ := code.find("{", at)) >= 0:
        stop = closing(code, open_)
        name = re.search(r"(\w+)\s*\(", code[at:open_].rpartition(";")[2])
        if name:
            named.setdefault(name[1], set()).update(re.findall(r"[A-Za-z_]\w*", code[open_:stop]))
        at = stop + 1
    for kernel in kernels:
        seen, front = {kernel.name}, {kernel.name}
        while front:
            front = set().union(*(named.get(name, set()) for name in front)) - seen
            seen |= front
        kernel.constants = sorted(constants[name] for name in seen & set(constants))


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
            f"EMU_UNWATCHED static void emu_call_{k.name}(const emu::Thread &t) {{ {k.name}({', '.join(given)}); }}"
        )
        out.append(f"static const emu_param emu_params_{k.name}[] = {{ {table}{{}} }};")
        indices = "".join(f"{i}, " for i in k.constants)
        out.append(f"static const int32_t emu_constants_{k.name}[] = {{ {indices}-1 }};")
        rows.append(
            f'    {{"{k.name}", "{k.file}", {k.line}, emu_call_{k.name}, emu_params_{k.name}, {len(bound)}, '
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
