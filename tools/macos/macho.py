"""What a Mach-O library for arm64 says of itself: load commands, symbols, exports, signature."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

ARM64, DYLIB = 0x0100000C, 6
LOAD_DYLIB, ID_DYLIB, CODE_SIGNATURE = 0xC, 0xD, 0x1D
DYLD_INFO_ONLY, LOAD_WEAK_DYLIB, BUILD_VERSION = 0x80000022, 0x80000018, 0x32
CODE_DIRECTORY, SHA256 = 0xFADE0C02, 2

# Opcodes of binding: the high half of a byte.
ORDINAL, ORDINAL_LONG, ORDINAL_SPECIAL, SYMBOL = 0x10, 0x20, 0x30, 0x40
BINDS = {0x90, 0xA0, 0xB0, 0xC0}
NUMBERS = {0x60: 1, 0x70: 1, 0x80: 1, 0xA0: 1, 0xC0: 2}  # how many follow


@dataclass
class MachO:
    """A parsed file."""

    name: str = ""  # its install name
    platform: int = 0
    least: tuple[int, int] = (0, 0)  # the oldest macOS that loads it
    libraries: list[str] = field(default_factory=list)
    bound: set[tuple[str, str]] = field(default_factory=set)  # symbol, its library; "": any
    weak: set[str] = field(default_factory=set)  # its own unless another library exports one
    exported: set[str] = field(default_factory=set)
    signature: bytes = b""
    signed_to: int = 0  # where the signature begins


def text_at(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def number(data: bytes, at: int) -> tuple[int, int]:
    """A ULEB128 number, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at


def exports(trie: bytes, at: int = 0, prefix: str = "") -> set[str]:
    """The names in an exports trie."""
    if not trie:
        return set()
    size, body = number(trie, at)
    names = {prefix} if size else set()
    at = body + size
    children, at = trie[at], at + 1
    for _ in range(children):
        edge = text_at(trie, at)
        child, at = number(trie, at + len(edge) + 1)
        names |= exports(trie, child, prefix + edge)
    return names


def binds(code: bytes, libraries: list[str]) -> set[tuple[str, str]]:
    """What the loader looks up, and in which library; "" is in any."""
    found, home, name, at = set(), "", "", 0
    while at < len(code):
        opcode, low, at = code[at] & 0xF0, code[at] & 0x0F, at + 1
        if opcode == ORDINAL:
            home = libraries[low - 1]
        elif opcode == ORDINAL_LONG:
            ordinal, at = number(code, at)
            home = libraries[ordinal - 1]
        elif opcode == ORDINAL_SPECIAL:
            home = ""
        if opcode == SYMBOL:
            name = text_at(code, at)
            at += len(name) + 1
        if opcode in BINDS:
            found.add((name, home))
        for _ in range(NUMBERS.get(opcode, 0)):
            _, at = number(code, at)
    return found


def read_info(data: bytes, at: int, out: MachO) -> None:
    """LC_DYLD_INFO_ONLY: rebases, binds, weak binds, lazy binds, exports."""
    places = struct.unpack_from("<10I", data, at + 8)
    bind, weak, lazy, trie = (data[places[i] : places[i] + places[i + 1]] for i in (2, 4, 6, 8))
    out.bound = binds(bind, out.libraries) | binds(lazy, out.libraries)
    out.weak = {name for name, _ in binds(weak, [])}
    out.exported = exports(trie)


def read_command(data: bytes, at: int, command: int, out: MachO) -> None:
    if command in (LOAD_DYLIB, LOAD_WEAK_DYLIB):
        out.libraries.append(text_at(data, at + struct.unpack_from("<I", data, at + 8)[0]))
    elif command == ID_DYLIB:
        out.name = text_at(data, at + struct.unpack_from("<I", data, at + 8)[0])
    elif command == BUILD_VERSION:
        out.platform, least = struct.unpack_from("<II", data, at + 8)
        out.least = (least >> 16, least >> 8 & 0xFF)
    elif command == CODE_SIGNATURE:
        place = struct.unpack_from("<II", data, at + 8)
        out.signed_to, out.signature = place[0], data[place[0] : sum(place)]


def read(data: bytes) -> MachO:
    """Parse a library; ValueError if it is not one for Apple silicon."""
    magic, cpu, _, kind, commands, _, _, _ = struct.unpack_from("<8I", data)
    if (magic, cpu, kind) != (0xFEEDFACF, ARM64, DYLIB):
        raise ValueError("this is no Mach-O library for arm64")
    out, info, at = MachO(), 0, 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        read_command(data, at, command, out)
        info = at if command == DYLD_INFO_ONLY else info
        at += size
    if not info:
        raise ValueError("LC_DYLD_INFO_ONLY is missing: another linker made this")
    read_info(data, info, out)
    return out


def bad_pages(data: bytes, macho: MachO) -> list[int] | None:
    """Pages that are not what was signed; None if no signature covers all of the file."""
    blob = macho.signature
    for i in range(struct.unpack_from(">I", blob, 8)[0] if blob else 0):
        start = struct.unpack_from(">I", blob, 12 + 8 * i + 4)[0]
        if struct.unpack_from(">I", blob, start)[0] != CODE_DIRECTORY:
            continue
        hashes, pages, limit = (
            struct.unpack_from(">I", blob, start + 16)[0],
            *struct.unpack_from(">II", blob, start + 28),
        )
        size, kind, _, page = struct.unpack_from(">4B", blob, start + 36)
        step = 1 << page
        if kind != SHA256 or limit != macho.signed_to or pages != -(-limit // step):
            return None
        return [
            n for n in range(pages)
            if hashlib.sha256(data[n * step : min((n + 1) * step, limit)]).digest()[:size]
            != blob[start + hashes + n * size : start + hashes + (n + 1) * size]
        ]  # fmt: skip
    return None


def stub_symbols(stub: Path) -> tuple[str, set[str]]:
    """Install name of a text stub, and what it exports for arm64, its own and others' symbols."""
    text = re.sub(r"\s+", " ", stub.read_text())
    name = re.search(r" install-name: '?([^' ]+)", text)
    if not name:
        raise ValueError(f"{stub} has no install name")
    symbols: set[str] = set()
    for targets, rest in re.findall(r"- targets: \[([^]]*)\](.*?)(?=- targets|---|$)", text):
        if "arm64" not in targets:
            continue
        for key, words in re.findall(r"([\w-]*symbols|objc-classes): \[([^]]*)\]", rest):
            prefix = "_OBJC_CLASS_$_" if key == "objc-classes" else ""
            symbols |= {prefix + word.strip(" '") for word in words.split(",")}
    return name[1], symbols
