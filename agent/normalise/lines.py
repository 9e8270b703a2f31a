"""Readers of text lines: syslog (RFC 3164, RFC 5424, ISO time) and web access (common and combined format).

A reader turns one line into native fields, or raises RecordError.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any

from agent.errors import RecordError
from agent.model import SECOND, Timestamp
from agent.normalise import forms
from agent.normalise.clock import to_datetime
from agent.normalise.forms import Form
from agent.normalise.mapping import Pattern, shipped

Reader = Callable[[bytes], dict[str, Any]]

NO_HEAD = "-"
"""The program of a line without a syslog head."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = {name: number for number, name in enumerate(_MONTHS, 1)}
_DAY = 86_400 * SECOND

_HEAD = Form(
    r"(?s)^(?:<(?P<priority>\d{1,3})>)?(?:"
    r"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) (?:(?P<year>\d{4}) )?(?P<clock>\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?)"
    r"|(?P<iso>\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}[.,\d]*(?:Z|[+-]\d{2}:?\d{2})?)"
    r")(?P<rest> .*)$"
)
_TAIL = Form(
    r"(?s)^ (?:(?P<host>[^\s\[\]:]*) )?(?P<program>[^\s\[\]:()]+)(?:\((?P<module>[^()\s]*)\))?(?:\[(?P<pid>\d+)\])?: ?"
    r"(?P<message>.*)$"
)
_BARE = Form(r"(?s)^ (?P<host>\S*) (?P<message>.*)$")
_RFC5424 = Form(
    r"(?s)^<(?P<priority>\d{1,3})>\d{1,2} (?P<time>\S+) (?P<host>\S+) (?P<program>\S+) (?P<pid>\S+) (?P<id>\S+) "
    r'(?P<data>-|(?:\[(?:[^\]"]|"(?:[^"\\]|\\.)*")*\])+)(?: (?P<message>.*))?$'
)
_CHAIN = r"[^\s,]+(?:, ?[^\s,]+)*"
_ACCESS = Form(
    rf"^(?:(?P<client>{_CHAIN}) -|(?P<host>\S+) (?P<proxied>{_CHAIN}) -|(?P<named>{_CHAIN}) (?P<ident>\S+)) "
    r'(?P<user>.*?) \[(?P<time>\d{2}/[A-Z][a-z]{2}/\d{4}[^\]]*)\] "(?P<request>(?:[^"\\]|\\.)*)" '
    r'(?P<status>\d{3}|-) (?P<bytes>\d+|-)(?: "(?P<referrer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)")?(?:\s.*)?$'
)
_REQUEST = Form(r"^(?P<method>[A-Za-z_-]+) (?P<uri>.*?)(?: HTTP/(?P<version>[\d.]+))?$")


def line_reader(format: str, as_of: Timestamp) -> Reader:
    """Return the reader of *format*; *as_of* settles the year of a time that has none."""
    return _syslog_reader(as_of) if format == "syslog" else _read_access


def _line(raw: bytes) -> bytes:
    line = raw.rstrip(b"\r\n")
    if not line.strip():
        raise RecordError("empty record")
    return line


# --- syslog -----------------------------------------------------------------------------------------------------------


def _syslog_reader(as_of: Timestamp) -> Reader:
    patterns = _patterns()
    latest = to_datetime(as_of + _DAY)
    years: dict[tuple[str, str], str] = {}

    def date(month: str, day: str) -> str:
        """Return the last such day that is not after *as_of* and a day."""
        found = years.get((month, day))
        if found is None:
            found = years[month, day] = _last_date(latest, _MONTH.get(month, 0), int(day))
        return found

    def read(raw: bytes) -> dict[str, Any]:
        record = _parse_syslog(_line(raw), date)
        _match_message(record, patterns)
        if "time" not in record and record.get("program") == NO_HEAD:
            del record["program"]
            if "pattern" not in record:
                raise RecordError("not a syslog line: no time at its start, and of no other form that is known")
        return record

    return read


def _parse_syslog(line: bytes, date: Callable[[str, str], str]) -> dict[str, Any]:
    if line.startswith(b"<") and (record := _RFC5424.read(line)):
        return {name: value for name, value in record.items() if value not in {"-", ""}}
    head = _HEAD.read(line)
    if head is None:
        return {"program": NO_HEAD, "message": forms.text_of(line)}
    rest = head["rest"].encode()
    record = _TAIL.read(rest) or _BARE.read(rest) or {"message": head["rest"].strip()}
    record["time"] = _time_of(head, date)
    if "priority" in head:
        record["priority"] = head["priority"]
    return {name: value for name, value in record.items() if value}


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


def _match_message(record: dict[str, Any], patterns: dict[str, tuple[Pattern, ...]]) -> None:
    """Add the fields that the message holds after the first pattern of its program that fits."""
    message = record.get("message", "").encode()
    program = record.get("program", "")
    for pattern in patterns.get(program, () if program == NO_HEAD else patterns[""]):
        if message.startswith(pattern.starts) and (found := pattern.form.read(message)) is not None:
            record["pattern"] = pattern.name
            record.update((name, value) for name, value in found.items() if value)
            for name, read in pattern.payloads.items():
                if name in found:
                    record[name] = read(found[name])
            return


@cache
def _patterns() -> dict[str, tuple[Pattern, ...]]:
    """Return the patterns by program, those for every program (the empty name) last."""
    found: dict[str, tuple[Pattern, ...]] = {"": ()}
    for mapping in shipped():
        for patterns in mapping.pattern_sets:
            for program in patterns.programs:
                found[program] = found.get(program, ()) + patterns.patterns
    return {
        program: patterns if program in ("", NO_HEAD) else patterns + found[""] for program, patterns in found.items()
    }


# --- web access -------------------------------------------------------------------------------------------------------


def _read_access(raw: bytes) -> dict[str, Any]:
    found = _ACCESS.read(_line(raw))
    if found is None:
        raise RecordError("not a line of common or combined access format")
    record: dict[str, Any] = {name: value for name, value in found.items() if value not in {"-", ""}}
    request = record.get("request")
    if request:
        record.update(_REQUEST.read(request.encode()) or {"uri": request})
    record["time"] = _access_time(found["time"])
    chain = found.get("client") or found.get("proxied") or found["named"]
    record["chain"] = chain.replace(",", " ").split()
    record["client"] = record["chain"][0]
    return record


def _access_time(text: str) -> str:
    """Return ``09/Mar/2024:11:00:00 +0100`` in ISO form; what is not of that form will not parse as a time."""
    zone = f"{text[21:24]}:{text[24:]}"
    month = _MONTH.get(text[3:6], 0)
    return f"{text[7:11]}-{month:02}-{text[:2]}T{text[12:20]}{'Z' if zone in {'+00:00', '-00:00'} else zone}"
