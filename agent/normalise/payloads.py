r"""Readers of what a message may hold: ``key=value`` pairs, CEF, LEEF, records of auditd, packets that were logged.

Each takes time linear in its length. They are named by mappings (``payload: {GROUP: pairs}``) and return native fields;
what is malformed is left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

Payload: TypeAlias = Callable[[str], Mapping[str, Any]]
_T = TypeVar("_T")

MOST_PAIRS = 500
_SHORT = 16_384
_PAIR = re.compile(
    r"""(?<![^\s=,"';|])([^\s=,"';|]++)="""
    r"""(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"|'([^'\\]*+(?:\\.[^'\\]*+)*+)'|(\S*+))""",
    re.DOTALL,
)
"""Python's own expressions, 30 times as fast as RE2 for many short matches; linear, since a run of letters is entered
at its beginning only, nothing matched is given back, and a second opening quote closes the first."""
_STRUCTURED = re.compile(r'(?<![^\s;\[])([A-Za-z_][\w.-]{0,99}+)[=:]"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_NAME_BEFORE = re.compile(r"[\s;\[]([A-Za-z_][\w.-]{0,99}+)[=:]\Z")
_LONGEST_NAME = 102
_MOST_NAMES = 4_096
_ESCAPED = re.compile(r'\\(["\\\]])')
_SECOND = itemgetter(1)
_FIRST = itemgetter(0)
_LAST = itemgetter(2)
_ZONE = re.compile(r"^(?:|(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2}))$")
_CEF_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "=": "=", "\\": "\\", "|": "|"}
_CEF_ESCAPED = re.compile(r"\\([nrt=\\|])")
_CEF_KEY = re.compile(r"(?:^|(?<=[ \t]))([A-Za-z0-9_.\[\]-]{1,100}+)=")
_MONTH_FIRST = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\S{1,16}) (AM|PM)", re.ASCII)
_CEF_HEAD = ("version", "vendor", "product", "device_version", "class", "name", "severity")
_LEEF_HEAD = ("version", "vendor", "product", "device_version", "event_id")
_LEEF_KEY = re.compile(r"([^=\s]{1,100}+)=(.*)\Z")

_AUDIT_PAIR = re.compile(r"""(?:^|(?<=[ "']))([^ ="']++)=(?:"([^"]*+)"?|'([^']*+)'?|([^ ]*+))""")
_AUDIT_OLD_NEW = re.compile(r"\b(old|new)[ -](auid|ses)=")
_AUDIT_TEXTS = frozenset(
    {
        *("acct", "cmd", "comm", "cwd", "data", "dir", "exe", "file", "grp"),
        *("key", "name", "path", "proctitle", "root_dir", "sw", "unit", "vm"),
    }
)
_AUDIT_ARGUMENT = re.compile(r"a([0-9]{1,9}+)(?:(_len)|\[[0-9]++\])?\Z")
_AUDIT_UNKNOWN = frozenset({"?", "(null)", ""})
_LONGEST_HEAD = 36
_MOST_ARGUMENT_FIELDS = 10
_HEXADECIMAL = frozenset("0123456789ABCDEF")
_DENIED = ("drop", "deny", "denied", "reject", "block")
_ALLOWED = ("accept", "allow")
_TRANSPORTS = {"ICMPv6": "ipv6-icmp", "2": "igmp", "47": "gre", "50": "esp", "51": "ah", "132": "sctp"}
_FRAME_LENGTH = len("00:00:00:00:00:00:00:00:00:00:00:00:00:00")


def _pairs(text: str) -> dict[str, str]:
    """Pairs parted by blanks or commas; a value may be quoted, and then holds blanks. The first of a key stays.

    A day and a time of day in keys of their own (``date``, ``time``, and ``tz`` for the zone) give ``date_time`` too.
    """
    pairs = _first(_PAIR, text)[::-1]  # so that the first of a key stays
    if "," in text or ";" in text:
        found = {key: double or single or bare.rstrip(",;") for key, double, single, bare in pairs}
    else:
        found = {key: double or single or bare for key, double, single, bare in pairs}
    if "date" in found and "time" in found and (zone := _ZONE.match(found.get("tz", ""))):
        at = f"{zone[1]}{zone[2]:0>2}:{zone[3]}" if zone[1] else ""
        found.setdefault("date_time", f"{found['date']}T{found['time']}{at}")
    return found


def _first(form: re.Pattern[str], text: str) -> list[tuple[str, ...]]:
    """Return the groups of up to `MOST_PAIRS` matches; of a short text all at once, which is faster."""
    if len(text) < _SHORT:
        return form.findall(text)[:MOST_PAIRS]
    return [match.groups("") for match in islice(form.finditer(text), MOST_PAIRS)]


def _cef(text: str) -> dict[str, str]:
    r"""``CEF:0|vendor|product|version|class|name|severity|extension``; a bar or backslash in the head is escaped.

    A value of the extension goes up to the next key; ``\=``, ``\\`` and ``\n`` in it are written out.
    """
    parts = _split(text.removeprefix("CEF:"), "|", len(_CEF_HEAD))
    found = {name: value for name, value in zip(_CEF_HEAD, parts, strict=False) if value}
    if len(parts) <= len(_CEF_HEAD):
        return found
    keys, values = _by_blanks(parts[-1]) or _by_keys(parts[-1])
    values = [*map(str.strip, values)]
    if "\\" in parts[-1]:
        values = [_written_out(value) if "\\" in value else value for value in values]
    names = map("extensions.".__add__, reversed(keys))  # from the last on, so that the first of a key stays
    return dict(zip(names, reversed(values), strict=True)) | found


def _by_keys(text: str) -> tuple[list[str], list[str]]:
    """Return the keys in *text* and the values behind them."""
    rest = _CEF_KEY.split(text, MOST_PAIRS)  # no key ends with a backslash: an escaped sign is never taken
    return rest[1::2], rest[2::2]


def _by_blanks(text: str) -> tuple[list[str], list[str]] | None:
    """Return what `_by_keys` does but for blanks, where each sign of equality has a key before it."""
    *heads, last = text.split("=")
    if len(heads) >= MOST_PAIRS or "\t" in text:
        return None
    rows = [head.rpartition(" ") for head in heads]
    keys = list(map(_LAST, rows))
    if not all(map(_SECOND, rows[1:])) or not all(map(_CEF_KEYS.__getitem__, keys)):
        return None
    return keys, [*map(_FIRST, rows[1:]), *([last] if rows else [])]


def _keep(known: dict[str, _T], text: str, what: _T) -> None:
    """Remember what a short text is; where there are too many, those that come again are soon back."""
    if len(text) <= _LONGEST_NAME:
        if len(known) >= _MOST_NAMES:
            known.clear()
        known[text] = what


class _CefKeys(dict[str, bool]):
    """Text -> whether it is a key of CEF."""

    def __missing__(self, text: str) -> bool:
        is_key = _CEF_KEY.fullmatch(f"{text}=") is not None
        _keep(self, text, is_key)
        return is_key


_CEF_KEYS = _CefKeys()


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
            found.setdefault(f"extensions.{match[1]}", match[2].strip())
    return found


def _audit(text: str) -> dict[str, Any]:
    """``seconds.milliseconds:sequence): pairs`` of the Linux audit system, as its log has them after ``msg=audit(``.

    The pairs within ``msg='...'`` stand beside the others, what auditd could not know (``?``) is left out, and texts
    written in hexadecimal are texts again. Of a program's start the arguments are the list ``args`` and, joined, the
    text ``command``; of a command of sudo likewise.
    """
    found: dict[str, Any] = {}
    head, closed, rest = text.partition("):")
    if closed and len(head) <= _LONGEST_HEAD and head.isascii():
        seconds, _, sequence = head.partition(":")
        if seconds[-4:-3] == "." and seconds.replace(".", "").isdigit() and sequence.isdigit():
            found = {"time": int(seconds.replace(".", "")), "sequence": sequence}
            text = rest.lstrip()
    text = text.replace("\x1d", " ")
    if "auid=" in text and ("old" in text or "new" in text):
        text = _AUDIT_OLD_NEW.sub(r"\1_\2=", text)
    pairs = _audit_pairs(text, _AUDIT_TEXTS)
    if inner := pairs.pop("msg", ""):
        pairs = _audit_pairs(inner, _AUDIT_TEXTS) | pairs
    if "syscall" in pairs:
        return found | pairs
    begin = text[:5]
    if begin.startswith("argc=") or (begin[:1] == "a" and begin[1:2].isdigit()):
        return found | _arguments(text)
    if "cmd" in pairs:
        command = pairs.pop("cmd")
        args = command.split()
        found |= {"args": args, "argc": len(args), "command": command}
    return found | pairs


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a program's start, each maybe in several pieces (``a1[0]``)."""
    pairs: dict[str, Any] = _audit_pairs(text, None)
    arguments: dict[int, str] = {}
    for key in [key for key in pairs if key.startswith("a")]:
        if match := _AUDIT_ARGUMENT.match(key):
            number, length = int(match[1]), match[2]
            piece = pairs.pop(key)
            if not length:
                arguments[number] = arguments.get(number, "") + piece
    if arguments:
        pairs |= {f"a{number}": text for number, text in arguments.items() if number < _MOST_ARGUMENT_FIELDS}
        pairs |= {"args": list(arguments.values()), "command": " ".join(arguments.values())}
    return pairs


def _audit_pairs(text: str, texts: frozenset[str] | None) -> dict[str, str]:
    """Pairs parted by blanks; those named in *texts*, or all of None, may be in hexadecimal where no quotes stand."""
    found: dict[str, str] = {}
    for key, double, single, bare in _first(_AUDIT_PAIR, text):
        if key in found:
            continue
        if bare:
            if bare not in _AUDIT_UNKNOWN:
                found[key] = _audit_text(bare) if texts is None or key in texts else bare
        elif (value := double or single) and value not in _AUDIT_UNKNOWN:
            found[key] = value
    return found


def _audit_text(value: str) -> str:
    """Return a text that may be in hexadecimal, control characters as ``^M``; a blank for the end of an argument."""
    if len(value) % 2 or not _HEXADECIMAL.issuperset(value):
        return value
    text = bytes.fromhex(value).decode("utf-8", "backslashreplace").rstrip("\0").replace("\0", " ")
    if text.isprintable():
        return text
    if not any(map(str.isprintable, text)):
        return value
    return "".join(sign if sign >= " " and sign != "\x7f" else f"^{chr(ord(sign) ^ 64)}" for sign in text)


def _packet(text: str) -> dict[str, Any]:
    """``label: IN=eth0 OUT= MAC=... SRC=... PROTO=TCP ... SYN`` as the kernel's packet filter logs it.

    A label that says so is a ``verdict``, denied or allowed; ``[set-rule-D]`` is what Ubiquiti's firewalls write. Of
    MAC come both addresses and the type of the frame. What stands before PROTO is of the network layer; of LEN and ID
    behind it the names are PROTO_LEN and PROTO_ID; PROTO itself is ``transport``, as ECS names it. Words without a
    value are ``fragment`` before it, ``flags`` behind it. A packet that an ICMP message quotes is left out.
    """
    label, _, packet = text.partition("IN=")
    found: dict[str, Any] = _label(label)
    words: list[str] = []
    layer = ""
    for word in f"IN={packet}".partition(" [")[0].split()[:MOST_PAIRS]:
        key, equals, value = word.partition("=")
        if not equals:
            words.append(word)
        elif key == "PROTO":
            found["transport"] = _TRANSPORTS.get(value) or value.lower()
            if words:
                found["fragment"] = words
            words, layer = [], "PROTO_"
        elif value:
            found.setdefault(f"{layer}{key}" if key in {"LEN", "ID"} else key, value)
    if words:
        found["flags"] = words
    if len(mac := found.get("MAC", "")) >= _FRAME_LENGTH:
        found |= {"MAC_TO": mac[:17], "MAC_FROM": mac[18:35], "ETHER": f"0x{mac[36:38]}{mac[39:41]}"}
        del found["MAC"]
    return found


def _label(text: str) -> dict[str, str]:
    """What the words before a packet say that was done with it."""
    if text.startswith("[") and text.endswith("]"):
        rule_set, *rest = text[1:-1].rsplit("-", 2)
        if len(rest) == 2 and rest[1] in ("A", "D", "R"):
            verdict, label = {"A": ("allowed", "accept"), "D": ("denied", "drop"), "R": ("denied", "reject")}[rest[1]]
            zones = dict(zip(("zone_in", "zone_out"), rule_set.split("-"), strict=False)) if "-" in rule_set else {}
            return {"verdict": verdict, "label": label, "rule_set": rule_set, "rule": rest[0], **zones}
    for word in text.lower().replace("[", " ").replace("]", " ").replace(":", " ").split():
        for verdict, parts in (("denied", _DENIED), ("allowed", _ALLOWED)):
            if any(part in word for part in parts):
                return {"verdict": verdict, "label": word}
    return {}


def _structured(text: str) -> dict[str, Any]:
    r"""Structured data of RFC 5424, ``[id name="value" ...]``, and Check Point's ``[name:"value"; ...]``.

    Names get lower case, with ``_`` for ``-``; what has a name more than once is a list.
    """
    pairs = _unquoted(text) or [(_key(name), written) for name, written in _first(_STRUCTURED, text)]
    found: dict[str, Any] = dict(pairs)
    if len(found) < len(pairs):
        found = {}
        for name, written in pairs:
            found.setdefault(name, []).append(_unescaped(written))
        return {name: values if values[1:] else values[0] for name, values in found.items()}
    if "\\" in text:
        found |= {name: _unescaped(value) for name, value in pairs if "\\" in value}
    return found


def _unquoted(text: str) -> list[tuple[str, str]]:
    """Return what `_STRUCTURED` finds, names as fields, where quotes alone tell names from values; else nothing.

    Names are few and come again and again, so that they are known from before.
    """
    if '\\"' in text:
        return []
    parts = f" {text}".split('"', 2 * MOST_PAIRS)
    if len(parts) % 2 == 0:
        return []
    pairs = list(zip(map(_NAMES.__getitem__, parts[:-1:2]), parts[1::2], strict=True))
    if all(map(_FIRST, pairs)):
        return pairs
    looks_like_name = any(value[-1:] in {":", "="} for name, value in pairs if not name)
    return [] if looks_like_name else [pair for pair in pairs if pair[0]]


class _Names(dict[str, str]):
    """Text before a value -> its field, which is empty if no name ends the text."""

    def __missing__(self, text: str) -> str:
        found = _NAME_BEFORE.search(text[-_LONGEST_NAME:])
        name = _key(found[1]) if found else ""
        _keep(self, text, name)
        return name


_NAMES = _Names()


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(_SECOND, value) if "\\" in value else value


@lru_cache(maxsize=_MOST_NAMES)
def _key(name: str) -> str:
    return name.lower().replace("-", "_")


def _month_first(text: str) -> Mapping[str, Any]:
    """Return the ``time`` of ``3/9/2026 1:05:09 PM`` in ISO form: of its own, since elsewhere the day comes first."""
    found = _MONTH_FIRST.fullmatch(text)
    if found is None:
        return {}
    month, day, year, hour, rest, half = found.groups()
    return {"time": f"{year}-{month:>02}-{day:>02}T{int(hour) % 12 + 12 * (half == 'PM'):02}:{rest}"}


def _headed(text: str) -> Mapping[str, Any]:
    """Return the words of ``Name: word  Other: word`` by their names; a name without a word has none."""
    found, name = {}, ""
    for word in text.split():
        if word.endswith(":"):
            name = word[:-1]
        elif name:
            found[name], name = word, ""
    return found


PAYLOADS: Mapping[str, Payload] = {
    "audit": _audit,
    "cef": _cef,
    "headed": _headed,
    "leef": _leef,
    "month_first": _month_first,
    "packet": _packet,
    "pairs": _pairs,
    "structured": _structured,
}


def columns(place: int, names: Mapping[str, Sequence[str]]) -> Payload:
    """Return the reader of values parted by commas, maybe quoted.

    The value at *place* says which of *names* they have in their order, ``other`` if it is none of them; ``_`` is none.
    """

    def read(text: str) -> dict[str, str]:
        row = text.split(",")
        if '"' in text:
            with suppress(csv.Error):  # a value longer than the module takes
                row = next(csv.reader([text]), [])
        chosen = names.get(row[place] if place < len(row) else "", names["other"])
        return {name: value for name, value in zip(chosen, row, strict=False) if value and name != "_"}

    return read


def _split(text: str, bar: str, most: int) -> list[str]:
    """Split at *bar* where it is not escaped, at most *most* times; escapes in the parts are written out."""
    *heads, rest = text.split(bar, most)
    if "\\" not in text[: len(text) - len(rest)]:
        return [*map(str.strip, heads), rest]
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
    if before[-1:] != "\\":
        return False
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _written_out(value: str) -> str:
    return _CEF_ESCAPED.sub(lambda found: _CEF_ESCAPES[found[1]], value)


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
