"""What shader text says about its kernels: parameters, attributes, function constants.

Refuses what it does not know, with file, line and kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

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
PLAIN = {"device": "", "thread": "", "threadgroup": "", "constant": "const"}
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
        return words(self.type, PLAIN).strip()

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


def check(file: File) -> None:
    """Refuse what would mean something else, or nothing, in the targets."""
    for pattern, why in (
        (
            r"\[\[",
            "an attribute where none is expected "
            "(function constants are `constant int NAME [[function_constant(n)]];`)",
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
