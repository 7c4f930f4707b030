"""Compare our declarations of Foundation and Metal with public metadata.

check_headers.py HEADERS METAL_CPP METADATA: our folder with Foundation/ and Metal/, metal-cpp's
folder, and the _metadata.py of pyobjc-framework-Metal. Selectors, argument and result types,
classes, protocols, structs and functions are compared with metal-cpp, enum values with both.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

# metal-cpp has no use for these; they are as old as Foundation itself.
UNLISTED = {"+[NSObject new]", "-[NSObject dealloc]", "+[NSString stringWithUTF8String:]"}

SELF = "self"  # instancetype: whatever class was asked


@dataclass
class Declared:
    """What our headers say."""

    methods: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # "-[C sel:]": result, arguments
    classes: set[str] = field(default_factory=set)
    protocols: set[str] = field(default_factory=set)
    enums: dict[str, str] = field(default_factory=dict)  # name: its integer type
    values: dict[str, int] = field(default_factory=dict)
    structs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


@dataclass
class Public:
    """What the public metadata says."""

    methods: dict[tuple[str, str], set[tuple[str, ...]]] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)  # classes and protocols
    enums: dict[str, str] = field(default_factory=dict)
    values: dict[str, set[int]] = field(default_factory=dict)  # what each source says
    text: str = ""
    aliases: dict[str, str] = field(default_factory=dict)

    def find(self, owner: str, selector: str) -> set[tuple[str, ...]] | None:
        """The method of a class or of one it stands on."""
        while (owner, selector) not in self.methods:
            if owner == "Object":
                return None
            owner = self.bases.get(owner, "Object")
        return self.methods[owner, selector]


# ---- types -------------------------------------------------------------------------------


def plain(text: str, aliases: dict[str, str]) -> str:
    """A type as both sides write it: no const, no prefix, no name of a parameter, no blanks."""
    block = re.match(r"(.*?)\(\s*\^\s*\w*\s*\)\s*\((.*)\)\s*$", text, re.S)
    if block:
        inner = ",".join(plain(nameless(part), aliases) for part in block[2].split(","))
        return f"{plain(block[1], aliases)}(^)({inner})"
    text = re.sub(r"\b(const|oneway|class|struct|nonatomic|MTL::|NS::)(?=\W|\b)", "", text)
    text = re.sub(r"\bid<MTL(\w+)>", r"\1*", text)
    text = re.sub(r"\bid\b|\bObjectType\b|\b_Object\*", "Object*", text)
    text = re.sub(r"\b(MTL|NS)(?=[A-Z])", "", text).replace("BOOL", "bool")
    text = re.sub(r"instancetype|\b_Class\*", SELF, text)
    text = re.sub(r"\s+", "", text)
    base = text.rstrip("*")
    return plain(aliases[base], aliases) + text[len(base) :] if base in aliases else text


def nameless(parameter: str) -> str:
    """A parameter's type without its name."""
    named = re.match(r"(.*[\s*&])(\w+)\s*$", parameter.strip(), re.S)
    return named[1] if named and named[1].strip() not in ("const", "") else parameter


def outside(text: str, separator: str = ",") -> list[str]:
    """Split where no bracket is open."""
    parts, depth = [""], 0
    for letter in text:
        depth += letter in "(<"
        depth -= letter in ")>"
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


# ---- ours --------------------------------------------------------------------------------


def bracketed(text: str, at: int) -> int:
    """Where the bracket that opens at ``at`` closes."""
    depth = 0
    for end in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return end
    raise ValueError(f"a bracket stays open: {text[at : at + 60]}")


def method(text: str, aliases: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """Selector and types of ``(result)name:(type)argument ...``."""
    types, selector, at = [], "", 0
    while (start := text.find("(", at)) >= 0:
        selector += re.sub(r"^\s*\w+\s+(?=\w)", "", text[at:start]).strip() if at else ""
        end = bracketed(text, start)
        types.append(plain(text[start + 1 : end], aliases))
        at = end + 1
    rest = text[at:].strip()
    return (selector if len(types) > 1 else rest), tuple(types)


def members(out: Declared, owner: str, body: str) -> None:
    for kind, text in re.findall(r"^([-+])\s*(\(.*?);", body, re.M | re.S):
        selector, types = method(text, out.aliases)
        out.methods[f"{kind}[{owner} {selector}]"] = types
    for attributes, text in re.findall(r"^@property\((.*?)\)\s*(.*?);", body, re.M | re.S):
        name = re.search(r"(\w+)\s*$", text)
        assert name
        kind = plain(text[: name.start()], out.aliases)
        out.methods[f"-[{owner} {name[1]}]"] = (kind,)
        if "readonly" not in attributes:
            out.methods[f"-[{owner} set{name[1][0].upper()}{name[1][1:]}:]"] = ("void", kind)


def read_ours(headers: Path) -> Declared:
    """Everything that our two headers declare."""
    out = Declared()
    files = [headers / "Foundation" / "Foundation.h", headers / "Metal" / "Metal.h"]
    text = "\n".join(file.read_text() for file in files)
    text = re.sub(r"/\*.*?\*/|__attribute__\(\(.*?\)\)", "", text, flags=re.S)
    for block, name in re.findall(r"typedef\s+(\w+\s*\(\^(\w+)\)\s*\(.*?\));", text):
        out.aliases[name.removeprefix("MTL")] = block
    for kind, name, body in re.findall(
        r"@(interface|protocol)\s+(\w+)(?:<\w+>)?\s*(?::\s*\w+)?\s*(?:<\w+>)?\s*\{?\s*\n(.*?)@end",
        text,
        re.S,
    ):
        (out.classes if kind == "interface" else out.protocols).add(name)
        members(out, name, body)
    for integer, body, name in re.findall(r"typedef enum : (\w+) \{(.*?)\} (\w+);", text, re.S):
        out.enums[name] = plain(integer, {})
        for value, number in re.findall(r"(\w+) = ([^,]+),", body):
            out.values[value] = arithmetic(number)
    for body, name in re.findall(r"typedef struct \{([^}]*)\} (\w+);", text):
        out.structs[name] = tuple(re.findall(r"\w+(?=[,;])", body))
    for result, name in re.findall(r"^(id<\w+>) (MTL\w+)\(void\)", text, re.M):
        out.functions[name] = plain(result, {})
    return out


# ---- theirs ------------------------------------------------------------------------------


def arithmetic(text: str) -> int:
    """The value of numbers with ``<<``, ``+`` and brackets."""
    if not re.fullmatch(r"[\d\s<+()xXa-fA-F|-]+", text):
        raise ValueError(f"not a number: {text}")
    return int(eval(text))


def read_methods(out: Public, selectors: dict[str, str]) -> None:
    """Definitions: ``_MTL_INLINE R MTL::C::f(T a) { ... sendMessage<R>(this, SEL, a); }``."""
    for result, owner, arguments, body in re.findall(
        r"^_(?:MTL|NS)_INLINE ([^;{}]*?)\b(?:MTL|NS)::(\w+)(?:<[^>]*>)?::~?\w+\(([^{};]*)\)"
        r"[^{};()]*\n\{\n(.*?)\n\}",
        out.text,
        re.M | re.S,
    ):
        sent = re.search(
            r"sendMessage\w*<.*?>\(([^,]+), _(?:MTL|NS)_PRIVATE_SEL\((\w+)\)", body, re.S
        )
        if not sent:
            continue
        kind = "-" if sent[1].strip() == "this" else "+"
        types = [plain(nameless(part), out.aliases) for part in outside(arguments)]
        if kind == "+" and "pClassName" in arguments:
            types = []
        name = "Object" if owner in ("Referencing", "Copying", "SecureCoding") else owner
        mine = SELF if kind == "+" or result.strip() in ("_Class*",) else ""
        value = plain(result, out.aliases)
        if mine and value in (f"{owner}*", SELF):
            value = SELF
        out.methods.setdefault((name, kind + selectors[sent[2]]), set()).add((value, *types))


def read_enums(out: Public, metadata: str) -> None:
    for integer, name, body in re.findall(
        r"_MTL_(?:ENUM|OPTIONS)\(([\w:]+), (\w+)\)\s*\{(.*?)\};", out.text, re.S
    ):
        out.enums[name] = plain(integer, {})
        for value, number in re.findall(r"(\w+) = ([-\d<( )+]+?),", body):
            out.values.setdefault(value, set()).add(arithmetic(number))
    for value, number in re.findall(r"\$(MTL\w+)@(-?\d+)(?=\$)", metadata):
        out.values.setdefault(value.removeprefix("MTL"), set()).add(int(number))


def read_public(metal_cpp: Path, metadata: Path) -> Public:
    """Everything that metal-cpp and PyObjC's metadata declare."""
    out = Public()
    files = [
        f for part in ("Foundation", "Metal") for f in sorted((metal_cpp / part).glob("*.hpp"))
    ]
    out.text = "\n".join(file.read_text() for file in files)
    selectors = dict(re.findall(r"_PRIVATE_DEF_SEL\((\w+),\s*\"([^\"]+)\"\)", out.text))
    out.names = set(re.findall(r"_PRIVATE_DEF_(?:CLS|PRO)\((\w+)\)", out.text))
    out.aliases = {
        name: kind
        for name, kind in re.findall(r"^\s*using (\w+)\s*=\s*([^;]+);", out.text, re.M)
        if "^" in kind or kind.endswith("*")
    }
    for name, base in re.findall(
        r"class (\w+) : public (?:NS::)?\w+<\w+(?:,\s*(?:MTL::|NS::)?(\w+))?>", out.text
    ):
        out.bases[name] = base or "Object"
    read_methods(out, selectors)
    read_enums(out, metadata.read_text())
    return out


# ---- both --------------------------------------------------------------------------------


def short(name: str) -> str:
    return re.sub(r"^(MTL|NS)", "", name)


def compare_methods(ours: Declared, public: Public) -> list[str]:
    wrong = []
    for said, types in ours.methods.items():
        if said in UNLISTED:
            continue
        kind, owner, selector = said[0], *said[2:-1].split(" ")
        found = public.find(short(owner), kind + selector)
        if found is None:
            wrong.append(f"{said}: no such method")
        elif types not in found:
            wrong.append(f"{said}: {types} here, {' or '.join(map(str, found))} there")
    return wrong


def compare(ours: Declared, public: Public) -> list[str]:
    """What does not agree, a line each."""
    wrong = compare_methods(ours, public)
    wrong += [
        f"{name}: no such class or protocol"
        for name in ours.classes | ours.protocols
        if name not in public.names and not name.startswith("NS")
    ]
    wrong += [
        f"{name}: of {kind} here, of {public.enums.get(short(name))} there"
        for name, kind in ours.enums.items()
        if public.enums.get(short(name)) != kind and short(name) != "CommandBufferError"
    ]
    wrong += [
        f"{name}: {number} here, {public.values.get(short(name))} there"
        for name, number in ours.values.items()
        if public.values.get(short(name)) != {number}
    ]
    for name, fields in ours.structs.items():
        body = re.search(rf"struct {short(name)}\n\{{(.*?)\n\}}", public.text, re.S)
        theirs = tuple(re.findall(r"^\s*NS::UInteger (\w+);", body[1], re.M)) if body else ()
        if theirs != fields:
            wrong.append(f"struct {name}: {fields} here, {theirs} there")
    wrong += [
        f"{name}: no such function"
        for name, result in ours.functions.items()
        if f'extern "C" MTL::{result} {name}()' not in public.text
    ]
    return wrong


def check(headers: Path, metal_cpp: Path, metadata: Path) -> tuple[Declared, list[str]]:
    """Our declarations, and what is wrong with them."""
    ours = read_ours(headers)
    return ours, compare(ours, read_public(metal_cpp, metadata))


if __name__ == "__main__":
    _, problems = check(*map(Path, sys.argv[1:4]))
    sys.exit("\n".join(problems) or 0)
