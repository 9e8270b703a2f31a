"""Readers of text lines: syslog (RFC 3164, RFC 5424, ISO time) and web access (common and combined format).

A reader turns one line into native fields, or raises RecordError.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from agent.errors import RecordError
from agent.model import SECOND, Timestamp
from agent.normalise import forms
from agent.normalise.clock import offset_of, to_datetime
from agent.normalise.forms import Form
from agent.normalise.guess import guess
from agent.normalise.mapping import MappingFile, Pattern, installed

Reader = Callable[[bytes], dict[str, Any]]

NO_HEAD = "-"
"""The program of a line without a syslog head."""
NO_PROGRAM = "?"
"""The program of a line with a head that names none."""
ASSUMED_ZONE = "+0000"
"""The zone of a time that names none."""
ZONE = "zone"
"""The native field that says a zone was assumed."""
LOCAL = "local"
"""The group of a pattern that holds a time without zone."""
_MATCHED = frozenset({"program", "message", "data"})
"""The parts of a line that patterns are tried on."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = {name: number for number, name in enumerate(_MONTHS, 1)}
_DAY = 86_400 * SECOND

_HEAD = Form(
    r"(?s)^(?:<(?P<priority>\d{1,3})>)?(?:"
    r"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) (?:(?P<year>\d{4}) )?(?P<clock>\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?)"
    r"|(?P<iso>\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}[.,\d]*(?P<zone>Z|[+-]\d{2}:?\d{2})?)"
    r"):?(?P<rest> .*)$"
)
_TAG = Form(
    r"(?s)^(?:: ?)?(?P<cisco_tag>%(?P<facility>[A-Z][A-Z0-9_]*)-(?:(?P<suffix>[a-z]+)-)?"
    r"(?P<level>\d)-(?P<code>[A-Z0-9_]+)):? ?(?P<message>.*)$"
)
_BEFORE_TAG = frozenset("%:")
_FIREWALLS = frozenset({"ASA", "FTD", "PIX", "FWSM"})
"""Facilities of Cisco that number their messages alike."""
_TAIL = Form(
    r"(?s)^ (?:(?P<host>[^\s\[\]:,]*) )?(?P<program>[^\s\[\]:(),]+)(?:\((?P<module>[^()\s]*)\))?"
    r"(?:\[(?P<pid>\d+)(?::(?P<thread>\d+))?\]:?|:)"
    r" *(?P<message>.*)$"
)
_BARE = Form(r"(?s)^ (?P<host>[^\s,]*\w[^\s,]*) (?P<message>.*)$")
_DATA = re.compile(rb'(?:\[(?:[^\]"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+\])++', re.DOTALL)
"""Python's own expressions, far faster than RE2 here; linear, since nothing matched is given back."""
_RFC5424_HEAD = ("time", "host", "program", "pid", "id")
_OTHER_BLANKS = b"\t\n\f\r"
_NAME = r'[^\s,"]+'
_CHAIN = rf'"[^"]*" {_NAME}|{_NAME}(?:, ?{_NAME})+(?: [0-9A-Fa-f.:]+)?|{_NAME}'
_ACCESS = Form(
    rf"^(?:(?P<client>{_CHAIN}) -|(?P<host>{_NAME}) (?P<proxied>{_CHAIN}) -|(?P<named>{_CHAIN}) (?P<ident>\S+)) "
    r'(?P<user>.*?) \[(?P<time>\d{2}/[A-Z][a-z]{2}/\d{4}[^\]]*)\] "(?P<request>(?:[^"\\]|\\.)*)" '
    r'(?P<status>\d{3}|-) (?P<bytes>\d+|-)(?: "(?P<referrer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)")?(?: "-")?'
    r'(?: X-Forwarded-For="(?P<forwarded>[^"]*)")?(?:\s.*)?$'
)
_CHAINS = ("client", "proxied", "named")
"""Groups of which one takes part, even if it says ``-``."""
_REQUESTED = '] "'
"""Parts the time of an access line from its request."""
_SERVERS = {"nginx": "nginx", "apache": "apache", "httpd": "apache"}
"""How programs of web servers begin -> the server."""
_PORT = Form(r"^(?P<host>[^:]+|\[[^\]]*\]):(?P<host_port>\d{1,5})$")
_LONGEST_PRIORITY = len("<191>")
_REQUEST = Form(r"^(?P<method>[A-Za-z_-]+) (?P<uri>.*?)(?: HTTP/(?P<version>[\d.]+))?$")


class Candidates:
    """Patterns in the order in which they are tried; which a message may have its first byte tells."""

    def __init__(self, patterns: tuple[Pattern, ...] = ()) -> None:
        self.patterns = patterns
        self._by_first: dict[bytes, tuple[Pattern, ...]] = {b"": patterns}

    def of(self, message: bytes) -> tuple[Pattern, ...]:
        first = message[:1]
        found = self._by_first.get(first)
        if found is None:
            found = self._by_first[first] = tuple(one for one in self.patterns if _may_begin(one, first[0]))
        return found


def _may_begin(pattern: Pattern, first: int) -> bool:
    return pattern.within != "message" or first in pattern.form.first


ByProgram = Mapping[str, Candidates]
_NONE = Candidates()


def line_reader(format: str, as_of: Timestamp, patterns: ByProgram | None = None) -> Reader:
    """Return the reader of *format*; *as_of* settles the year of a time that has none.

    *patterns* are those of `patterns_of`; the installed mappings' if there are none.
    """
    if format in {"syslog", "text"}:
        return _syslog_reader(as_of, patterns or _installed_patterns(), is_syslog=format == "syslog")
    return _access_reader(format, as_of)


def _line(raw: bytes) -> bytes:
    line = raw.rstrip(b"\r\n")
    if not line.strip():
        raise RecordError("empty record")
    return line


def read_parts(parts: Mapping[str, Any], patterns: ByProgram) -> dict[str, Any]:
    """Return the native fields of a line that is in parts already, such as an entry of a journal.

    A part is a text, the bytes of one as numbers, or a list if it stood there more than once.
    """
    record = dict(parts)
    for name in _MATCHED & record.keys():
        record[name] = _part_of(record[name])
    _match_message(record, patterns)
    return record


def _part_of(raw: Any) -> str:
    if raw.__class__ is not list:
        return str(raw)
    try:
        return bytes(raw).decode("utf-8", "replace")
    except (TypeError, ValueError):
        return "\n".join(map(str, raw))


# --- syslog -----------------------------------------------------------------------------------------------------------


def _dates(as_of: Timestamp) -> Callable[[str, str], str]:
    """Return what gives the last such day of a month that is not after *as_of* and a day."""
    latest = to_datetime(as_of + _DAY)
    return cache(lambda month, day: _last_date(latest, _MONTH.get(month, 0), int(day)))


def _syslog_reader(as_of: Timestamp, patterns: ByProgram, is_syslog: bool) -> Reader:
    date = _dates(as_of)

    def read(raw: bytes) -> dict[str, Any]:
        record = _parse_syslog(_line(raw), date)
        if record.get("program", "")[:1] == "%" or record.get("message", "")[:1] in _BEFORE_TAG:
            _read_tag(record)
        _match_message(record, patterns)
        if "pattern" not in record and _REQUESTED in record.get("message", "") and (found := _enveloped(record)):
            return found
        if record.get("program") == NO_HEAD:
            del record["program"]
            if "pattern" not in record and is_syslog:
                raise RecordError("not a syslog line: no time at its start, and of no other form that is known")
            if "pattern" not in record:
                return guess(record["message"])
            if LOCAL in record:
                record[ZONE] = ASSUMED_ZONE
        return record

    return read


def _parse_syslog(line: bytes, date: Callable[[str, str], str]) -> dict[str, Any]:
    begin = line.find(b">", 0, _LONGEST_PRIORITY) + 1 if line.startswith(b"<") else 0
    first = line[begin : begin + 1]
    if begin and first.isdigit() and b" " in line[begin + 1 : begin + 3] and (record := _read_rfc5424(line, begin)):
        return record
    head = _HEAD.read(line) if b"0" <= first <= b"Z" else None
    if head is None:
        if begin and (priority := line[1 : begin - 1]).isdigit():
            return {"program": NO_HEAD, "priority": priority.decode(), "message": forms.text_of(line[begin:])}
        return {"program": NO_HEAD, "message": forms.text_of(line)}
    rest = head["rest"].encode()
    record = _TAIL.read(rest)
    if record is None or _is_address(record):
        record = _BARE.read(rest) or {"message": head["rest"].strip()}
    record["time"] = _time_of(head, date)
    offset = "" if "zone" in head or "iso" not in head else _take_offset(record)
    if offset:
        record["time"] += offset
    elif "zone" not in head:
        record[ZONE] = ASSUMED_ZONE
    if "priority" in head:
        record["priority"] = head["priority"]
    return {name: value for name, value in record.items() if value}


def _read_rfc5424(line: bytes, begin: int) -> dict[str, Any] | None:
    """Return the parts of ``<priority>version time host program pid id data message``, but those that say nothing."""
    priority = line[1 : begin - 1]
    *words, rest = line[begin:].split(b" ", len(_RFC5424_HEAD) + 1)
    if len(words) <= len(_RFC5424_HEAD) or not all(words) or not (priority.isdigit() and words[0].isdigit()):
        return None
    head = line[: len(line) - len(rest)]
    if len(head.translate(None, _OTHER_BLANKS)) < len(head):
        return None
    if rest[:1] == b"-":
        end = 1
    elif data := _DATA.match(rest):
        end = data.end()
    else:
        return None
    if rest[end : end + 1] not in {b"", b" "}:
        return None
    values = (priority, *words[1:], rest[:end], rest[end + 1 :])
    names = ("priority", *_RFC5424_HEAD, "data", "message")
    return {name: forms.text_of(value) for name, value in zip(names, values, strict=True) if value not in {b"-", b""}}


def _read_tag(record: dict[str, Any]) -> None:
    """Take a tag of Cisco's (``%ASA-6-302013:``) for the program ``%ASA-302013``, and the program for the process."""
    program, message = record.get("program", NO_HEAD), record.get("message", "")
    is_tag = program.startswith("%")
    found = _TAG.read(f"{program}: {message}".encode() if is_tag else message.encode())
    if found is None:
        return
    if not is_tag and program != NO_HEAD:
        record["process"] = program
    record.update(found)
    family = "ASA" if found["facility"] in _FIREWALLS else found["facility"]
    record["program"] = f"%{family}-{found['code']}"


def _take_offset(record: dict[str, Any]) -> str:
    """Return the offset of the zone's short name behind the time, where host or program or a row of commas begins."""
    zone, comma, row = record.get("message", "").partition(",")
    if comma and "program" not in record and "host" not in record and (offset := offset_of(zone)):
        record["message"] = row
        return offset
    name = "host" if "host" in record else "program"
    offset = offset_of(record.get(name, ""))
    if offset:
        del record[name]
    return offset


def _is_address(record: dict[str, str]) -> bool:
    """Say whether what looks like a program and its message is an IPv6 address in the host's place."""
    word = record["message"].partition(" ")[0]
    program = record["program"]
    is_short = len(program) <= 4 and "host" not in record and not offset_of(program)
    return is_short and ":" in word and not word.startswith("%")


def _time_of(head: dict[str, str], date: Callable[[str, str], str]) -> str:
    if "iso" in head:
        return head["iso"].replace(",", ".")
    if "year" in head:
        return f"{head['year']}-{_MONTH.get(head['month'], 0):02}-{int(head['day']):02}T{head['clock']}"
    return f"{date(head['month'], head['day'])}T{head['clock']}"


def _last_date(latest: datetime, month: int, day: int) -> str:
    """Return the latest date of *month* and *day* up to *latest*; a day that no year has stays as it is."""
    for year in range(latest.year, max(latest.year - 9, 0), -1):
        try:
            if datetime(year, month, day, tzinfo=latest.tzinfo) <= latest:
                return f"{year:04}-{month:02}-{day:02}"
        except ValueError:
            continue
    return f"{latest.year:04}-{month:02}-{day:02}"


def _match_message(record: dict[str, Any], patterns: ByProgram) -> None:
    """Add the fields that the message holds after the first pattern of its program that fits."""
    message = record.get("message", "").encode()
    program = record.get("program") or NO_PROGRAM
    found = _match(record, message, patterns.get(program) or (_NONE if program == NO_HEAD else patterns[""]))
    for name, then in found.then.items() if found else ():
        if name in record:
            _match(record, record[name].encode(), patterns.get(then, _NONE))


def _match(record: dict[str, Any], message: bytes, candidates: Candidates) -> Pattern | None:
    for pattern in candidates.of(message):
        text = message if pattern.within == "message" else record.get(pattern.within, "").encode()
        is_likely = text.startswith(pattern.starts) and pattern.contains in text
        if is_likely and (found := pattern.form.read(text)) is not None:
            record["pattern"] = pattern.name
            record.update((name, value) for name, value in found.items() if value)
            for name, read in pattern.payloads.items():
                if name in found:
                    record[name] = read(found[name])
            return pattern
    return None


def patterns_of(mappings: Iterable[MappingFile]) -> ByProgram:
    """Return the patterns of *mappings* by program, those for every program (the empty name) last.

    Those that other patterns name in `then` stand alone.
    """
    mappings = tuple(mappings)
    sets = [patterns for mapping in mappings for patterns in mapping.pattern_sets]
    alone = {"", NO_HEAD, *(then for one in sets for pattern in one.patterns for then in pattern.then.values())}
    found: dict[str, tuple[Pattern, ...]] = {"": ()}
    for mapping in mappings:
        for patterns in mapping.pattern_sets:
            for program in patterns.programs:
                found[program] = found.get(program, ()) + patterns.patterns
    return {
        program: Candidates(patterns if program in alone else patterns + found[""])
        for program, patterns in found.items()
    }


@cache
def _installed_patterns() -> ByProgram:
    return patterns_of(installed())


# --- web access -------------------------------------------------------------------------------------------------------


def _access_reader(format: str, as_of: Timestamp) -> Reader:
    date = _dates(as_of)

    def read(raw: bytes) -> dict[str, Any]:
        line = _line(raw)
        if line[:1] == b"<" or line[3:4] == b" " or line[4:5] == b"-":  # maybe the head of syslog
            record = _parse_syslog(line, date)
            if (record.get("program") != NO_HEAD or "priority" in record) and (found := _enveloped(record)):
                return {**found, "server": format}
        if (found := _access(line)) is None:
            raise RecordError("not a line of common or combined access format")
        return {**found, "server": format}

    return read


def _enveloped(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the access line that the message of a line of syslog is, and what its head says beside it."""
    found = _access(record.get("message", "").encode())
    if found is None:
        return None
    program = "" if record.get("program") == NO_HEAD else record.get("program", "")
    head = {"node": record.get("host"), "program": program, "pid": record.get("pid")}
    head |= {"priority": record.get("priority"), "message": record["message"]}
    server = next((server for name, server in _SERVERS.items() if program.startswith(name)), "access")
    return {**{name: value for name, value in head.items() if value}, **found, "server": server}


def _access(line: bytes) -> dict[str, Any] | None:
    """Return the native fields of an access line; None if it is none."""
    found = _ACCESS.read(line)
    if found is None:
        return None
    record: dict[str, Any] = {
        name: value for name, value in found.items() if value not in {"-", ""} and name not in _CHAINS
    }
    request = record.get("request")
    if request:
        record.update(_REQUEST.read(request.encode()) or {"uri": request})
    record["time"] = _access_time(found["time"])
    chain = next(found[name] for name in _CHAINS if name in found)
    addresses = chain.replace(",", " ").replace('"', " ").split() or [chain]  # one of odd blanks
    record["client"] = _client(addresses)
    if port := _PORT.read(found.get("host", "").encode()):
        record.update(port)
    forwarded = record.get("forwarded", "").replace(",", " ").split()
    if forwarded:
        record["forwarded"] = forwarded[0]
    record["chain"] = [*forwarded, *addresses]
    return record


def _client(chain: list[str]) -> str:
    """Return the first public address of the proxies' *chain*, else its first."""
    return next(filter(_is_public, chain), chain[0]) if len(chain) > 1 else chain[0]


def _is_public(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_global
    except ValueError:
        return False


def _access_time(text: str) -> str:
    """Return ``09/Mar/2024:11:00:00 +0100`` in ISO form; what is not of that form will not parse as a time."""
    zone = f"{text[21:24]}:{text[24:]}"
    month = _MONTH.get(text[3:6], 0)
    return f"{text[7:11]}-{month:02}-{text[:2]}T{text[12:20]}{'Z' if zone in {'+00:00', '-00:00'} else zone}"
