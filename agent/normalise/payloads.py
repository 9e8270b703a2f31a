r"""Readers of what a message may hold: ``key=value`` pairs, CEF and LEEF. Each takes time linear in its length.

They are named by mappings (``payload: {GROUP: pairs}``) and return native fields; what is malformed is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import re2

Payload: TypeAlias = Callable[[str], dict[str, str]]

MOST_PAIRS = 500
_PAIR = re2.compile(r"""([^\s=,"';|]+)=(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s]*))""")
_CEF_KEY = re2.compile(r"(?:^|[ \t])([A-Za-z0-9_.\[\]-]{1,100})=")
_CEF_HEAD = ("version", "vendor", "product", "device_version", "class", "name", "severity")
_LEEF_HEAD = ("version", "vendor", "product", "device_version", "event_id")
_LEEF_KEY = re2.compile(r"^([^=\s]{1,100})=(.*)$")


def _pairs(text: str) -> dict[str, str]:
    """Pairs parted by blanks or commas; a value may be quoted, and then holds blanks. The first of a key stays."""
    found: dict[str, str] = {}
    for number, match in enumerate(_PAIR.finditer(text)):
        if number == MOST_PAIRS:
            break
        key, double, single, bare = match.groups()
        value = double if double is not None else single if single is not None else bare.rstrip(",;")
        found.setdefault(key, value)
    return found


def _cef(text: str) -> dict[str, str]:
    r"""``CEF:0|vendor|product|version|class|name|severity|extension``; a bar or backslash in the head is escaped.

    A value of the extension goes up to the next key; ``\=``, ``\\`` and ``\n`` in it are written out.
    """
    parts = _split(text.removeprefix("CEF:"), "|", len(_CEF_HEAD))
    found = {name: value for name, value in zip(_CEF_HEAD, parts, strict=False) if value}
    if len(parts) <= len(_CEF_HEAD):
        return found
    extension = parts[-1]
    keys: list[tuple[int, int, str]] = []
    for match in _CEF_KEY.finditer(extension):
        if len(keys) == MOST_PAIRS:
            break
        start = match.start(1)
        if extension[start - 1 : start] != "\\" and not _is_escaped(extension, match.end() - 1):
            keys.append((start, match.end(), match.group(1)))
    ends = [start for start, _, _ in keys[1:]] + [len(extension)]
    for (_, begin, key), end in zip(keys, ends, strict=False):  # without a key there is an end, and no value
        found.setdefault(f"ext.{key}", _written_out(extension[begin:end].strip()))
    return found


def _leef(text: str) -> dict[str, str]:
    """``LEEF:1.0|vendor|product|version|event|`` and pairs parted by tabs; 2.0 may name another character."""
    body = text.removeprefix("LEEF:")
    parts = _split(body, "|", len(_LEEF_HEAD))
    found = {name: value for name, value in zip(_LEEF_HEAD, parts, strict=False) if value}
    rest = parts[-1] if len(parts) > len(_LEEF_HEAD) else ""
    parting = "\t"
    if found.get("version", "").startswith("2"):
        named, bar, behind = rest.partition("|")
        if bar and "=" not in named:
            parting, rest = _character(named) or "\t", behind
    for item in rest.split(parting, MOST_PAIRS)[:MOST_PAIRS]:
        if match := _LEEF_KEY.match(item):
            found.setdefault(f"ext.{match.group(1)}", match.group(2).strip())
    return found


PAYLOADS: Mapping[str, Payload] = {"cef": _cef, "leef": _leef, "pairs": _pairs}


def _split(text: str, bar: str, most: int) -> list[str]:
    """Split at *bar* where it is not escaped, at most *most* times; escapes in the parts are written out."""
    parts: list[str] = []
    begin = place = 0
    while len(parts) < most and (place := text.find(bar, place)) >= 0:
        if not _is_escaped(text, place):
            parts.append(text[begin:place].replace(f"\\{bar}", bar).replace("\\\\", "\\").strip())
            begin = place + 1
        place += 1
    return [*parts, text[begin:]]


def _is_escaped(text: str, place: int) -> bool:
    """Say whether an odd number of backslashes stands before *place*; a run of more than 64 is taken as even."""
    before = text[max(0, place - 64) : place]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _written_out(value: str) -> str:
    if "\\" not in value:
        return value
    out, place = [], 0
    while (found := value.find("\\", place)) >= 0 and found + 1 < len(value):
        out.append(value[place:found])
        letter = value[found + 1]
        out.append({"n": "\n", "r": "\r", "t": "\t"}.get(letter, letter if letter in "=\\|" else f"\\{letter}"))
        place = found + 2
    return "".join([*out, value[place:]])


def _character(named: str) -> str:
    """Return the character that LEEF 2.0 names: itself, or ``x09`` or ``0x09``."""
    text = named.strip().lower()
    digits = text.removeprefix("0x") if text.startswith("0x") else text.removeprefix("x")
    if digits != text:
        try:
            return chr(int(digits, 16))
        except (ValueError, OverflowError):
            return ""
    return named[:1]
