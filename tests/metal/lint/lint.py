"""Refuse shader text that Apple's compiler would refuse, as far as that can be known without it.

    python lint.py params.h common.h a.metal ...

Three sieves: the translator's subset; rules over the text, for what C++ has no word for; and clang's
front end, with address spaces that are real ones and a standard library that declares what our
shaders may use and nothing else.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "emulator"))

from msl import File, Refused, closing, without_comments  # noqa: E402
from translate import translate  # noqa: E402

CLANG = [
    "-std=c++14",
    "-fsyntax-only",
    "-nostdinc",
    "-nostdinc++",
    "-x",
    "c++",
    "-ferror-limit=0",
    "-fno-caret-diagnostics",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wdouble-promotion",
    "-Wvla",
    "-Wc++17-extensions",
    "-Wc++20-extensions",
    "-Wno-unused",
    "-Wno-unused-parameter",
    "-Wno-undefined-internal",
    "-Wno-duplicate-decl-specifier",
    "-Wno-unknown-pragmas",
    "-Wno-pass-failed",
]
SPACES = r"\b(?:device|constant|threadgroup|thread)\b"
TYPES = r"(?:float|half|bfloat|bool|u?char|u?short|u?int|u?long|size_t|u?int\d+_t)[234]?"


def clang() -> str | None:
    """The compiler, if it is here."""
    return shutil.which("clang++-19")


def outer(code: str) -> Iterator[tuple[int, str]]:
    """What stands outside of all braces: each declaration with its place; bodies are `{}`."""
    code = re.sub(
        r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda m: re.sub(r"[^\n]", " ", m[0]), code, flags=re.M
    )
    at, start, text = 0, 0, ""
    while at < len(code):
        if code[at] == "{":
            stop = closing(code, at)
            text += "{}"
            at = stop + 1
            if "=" not in text.partition("(")[0] and not re.match(
                r"\s*(?:struct|enum|union|typedef)\b", text
            ):
                yield start + len(text) - len(text.lstrip()), text.strip()
                start, text = at, ""
            continue
        if code[at] == ";":
            if text.strip():
                yield start + len(text) - len(text.lstrip()), text.strip()
            start, text = at + 1, ""
        else:
            text += code[at]
        at += 1


def declarations(file: File) -> Iterator[str]:
    for at, text in outer(file.code):
        first = text.split()[0]
        if first in (
            "struct",
            "typedef",
            "using",
            "enum",
            "kernel",
            "static_assert",
            "METAL_FUNC",
        ) or re.match(r"template\s*<[^{}]*>\s*(?:METAL_FUNC|struct)\b|[A-Z_]+\(", text):
            continue
        if re.match(r"constant\b", text):
            if "=" not in text and "[[" not in text:
                yield str(file.refuse(at, f"`{text}`: a constant of the program wants its value"))
        elif "(" in text.partition("=")[0]:
            yield str(
                file.refuse(at, f"`{text.partition('(')[0]}(...)`: a helper is marked METAL_FUNC")
            )
        else:
            yield str(file.refuse(at, f"`{text}`: a variable of the program is `constant`"))


def pointers(file: File) -> Iterator[str]:
    """Pointers and references say where they point."""
    own = re.findall(r"\b(?:struct|typename|class)\s+(\w+)|}\s*(\w+)\s*;", file.code)
    names = "|".join([TYPES, *(a or b for a, b in own)])
    for m in re.finditer(
        rf"\b(?:{names})\s*(?:const\s*)?(?:\(\s*)?[*&](?![*&=])\s*[\w)>,]", file.code
    ):
        before = re.split(r"[,(;{}<]", file.code[: m.start()])[-1]
        if not re.search(SPACES, before + m[0]):
            shown = " ".join(m[0].split())
            yield str(
                file.refuse(
                    m.start(), f"`{shown}`: a pointer or reference without its address space"
                )
            )
        elif m[0].endswith(")") and re.search(r"\bthread\b", before):
            yield str(file.refuse(m.start(), "a cast to thread memory"))


def words_and_lambdas(file: File) -> Iterator[str]:
    for pattern, why in (
        (
            r"(?:[=(,;{}?:]|\breturn)\s*\[[^\[\]]*\]\s*(?:\([^()]*\)\s*(?:mutable\s*)?)\{",
            "a lambda",
        ),
        (
            r"\b(?:vertex|fragment|stage_in|object_data|ray_data|visible|intersection)\b",
            "a word of Metal",
        ),
        (r"\bstatic\b(?!_)", "static variables and functions are not for shaders"),
        (
            r"\b(?:dynamic_cast|typeid|thread_local|register|asm|union|friend|operator)\b",
            "not in our subset",
        ),
        (r"\bstd\s*::", "there is no std in Metal"),
    ):
        for m in re.finditer(pattern, file.code):
            yield str(file.refuse(m.start(), f"`{' '.join(m[0].split())}`: {why}"))


def recursion(files: list[File]) -> Iterator[str]:
    calls: dict[str, set[str]] = {}
    where: dict[str, tuple[File, int]] = {}
    for file in files:
        for m in re.finditer(r"\b(?:METAL_FUNC|kernel)\b[^;{}()]*?\b(\w+)\s*\(", file.code):
            open_ = file.code.find("{", m.end())
            body = file.code[open_ : closing(file.code, open_)]
            calls.setdefault(m[1], set()).update(re.findall(r"\b(\w+)\s*\(", body))
            where[m[1]] = file, m.start()
    for name in calls:
        seen: set[str] = set()
        front = {name}
        while front:
            front = {c for f in front for c in calls[f] & set(calls)} - seen
            seen |= front
        if name in seen:
            yield str(where[name][0].refuse(where[name][1], f"{name} calls itself"))


def front_end(compiler: str, files: list[tuple[str, str]]) -> Iterator[str]:
    done = subprocess.run(
        [compiler, *CLANG, f"-I{HERE / 'declarations'}", "-"],
        input=translate("lint", files), text=True, capture_output=True,
    )  # fmt: skip
    inside = ""  # what is wrong in a declaration: said of the line that brought clang there
    for line in done.stderr.splitlines():
        own = line.startswith(str(HERE))
        if re.search(r": (?:fatal error|error|warning): ", line):
            if inside:
                yield inside
            inside = line if own else ""
            if not own:
                yield line
        elif inside and line.endswith("requested here") and not own:
            yield f"{line.partition(' note: ')[0]} {inside.partition(': ')[2]}"
            inside = ""
    if inside:
        yield inside
    if done.returncode and not done.stderr:
        yield f"{compiler} failed and said nothing"


def lint(files: list[tuple[str, str]], compiler: str) -> list[str]:
    """All that is wrong with (path, text) pairs, a line each."""
    parsed = [File(path, without_comments(text)) for path, text in files]
    found = [
        line
        for f in parsed
        for rule in (declarations, pointers, words_and_lambdas)
        for line in rule(f)
    ]
    found += recursion(parsed)
    try:
        found += front_end(compiler, files)
    except Refused as refused:
        found.append(str(refused))
    return found


def main(paths: list[str]) -> int:
    compiler = clang()
    if not compiler or not paths:
        sys.stderr.write("usage: lint.py FILE... (wants clang-19)\n")
        return 2
    found = lint([(path, Path(path).read_text()) for path in paths], compiler)
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
