"""Event times: many texts at once to microseconds since 1970, in UTC where a text names no zone.

The common forms (``2021-06-11T09:07:15.635Z``, ``2020-10-19 03:30:41.104``, up to nine digits of fraction) are read as
arrays of characters; everything else one by one. What is no time, and what only stands for "never set", is `NO_TIME`.

A time that names no zone can be set into one beforehand (`localised`): it then has its offset, and behind it in
brackets the zone, as RFC 9557 writes it. Where a clock was set back a time of day came twice, and where it was set
forward one never came: the offset from before the change is taken then, and stands in the brackets to mark it as
assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.model import NO_TIME, SECOND, Timestamp
from agent.zones import zone_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_WIDTH = 32
_MASK = "dddd-dd-ddTdd:dd:dd"
_DIGITS = [place for place, sign in enumerate(_MASK) if sign == "d"]
_PLACE_VALUE = np.array([1000, 100, 10, 1])
_DAYS_BEFORE = np.array([0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334])
_DAYS_IN = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_EPOCH_TEXT = re.compile(r"(?:\d{10}|\d{13}|\d{16}|\d{19})(?:\.\d{1,9})?$", re.ASCII)
_CLOCK = r"(?P<clock>\d{1,2}:\d{2}:\d{2}(?:\.\d{1,9})?)"
_DATED = tuple(
    re.compile(form, re.ASCII)
    for form in (
        rf"(?P<month>[A-Za-z]{{3}}) (?P<day>\d{{1,2}}) (?P<year>\d{{4}}) {_CLOCK}$",
        rf"[A-Za-z]{{3}} (?P<month>[A-Za-z]{{3}}) +(?P<day>\d{{1,2}}) {_CLOCK} (?P<year>\d{{4}})$",
        rf"(?P<day>\d{{1,2}})[/-](?P<month>[A-Za-z]{{3}})[/-](?P<year>\d{{4}})[: ]{_CLOCK} ?(?P<zone>[+-]\d{{4}})?$",
        rf"(?P<year>\d{{4}})/(?P<month>\d{{2}})/(?P<day>\d{{2}}) {_CLOCK}$",
        rf"(?P<year>\d{{4}})-(?P<month>\d{{2}})-(?P<day>\d{{2}})T{_CLOCK}(?P<zone>Z)?$",
        rf"(?P<year>\d{{4}}|\d{{2}})-?(?P<month>\d{{2}})-?(?P<day>\d{{2}}) +{_CLOCK}$",
        rf"(?P<day>\d{{1,2}})\.(?P<month>\d{{1,2}})\.(?P<year>\d{{4}}) {_CLOCK}$",
    )
)
"""Matched against texts of at most `_LONGEST` characters."""
_SHORT = re.compile(r"[+-]\d{2}(?:\d{2})?$", re.ASCII)
_OFFSETS = {
    **dict.fromkeys(("UTC", "GMT", "WET"), "Z"),
    **dict.fromkeys(("CET", "WEST"), "+01:00"),
    **dict.fromkeys(("CEST", "EET", "SAST"), "+02:00"),
    **dict.fromkeys(("EEST", "MSK"), "+03:00"),
    **dict.fromkeys(("JST", "KST"), "+09:00"),
    **{"HKT": "+08:00", "AEST": "+10:00", "AEDT": "+11:00", "NZST": "+12:00", "NZDT": "+13:00"},
    **{"EST": "-05:00", "EDT": "-04:00", "MST": "-07:00", "MDT": "-06:00", "PST": "-08:00", "PDT": "-07:00"},
}
"""Short names of zones; those that mean several (CST, IST, BST) are not here."""
_PLAIN = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?$", re.ASCII)
_UNSURE_YEARS = frozenset(map("{:04}".format, range(1980)))
"""Years whose offsets may have seconds, or whose first second stands for "never set"."""
_SIGNED = re.compile(r"[+-]")
_BEHIND = re.compile(r"([+-])([01]\d|2[0-3]):([0-5]\d)(?:\[[\w/+:-]+\])?$", re.ASCII)
_LONGEST = 80
_IN_ZONE = re.compile(r"(.*[+-]\d{2}:\d{2}(?::\d{2})?)\[([\w/+:-]+)\]$", re.ASCII)
_NEVER = frozenset((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND for year in (1, 1601, 1970))
"""The zero of Go, of Windows and of Unix: a clock that was never set, not a time."""
_FIRST, _LAST = ((edge.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND for edge in (datetime.min, datetime.max))


def parse_all(texts: Sequence[Any]) -> NDArray[np.int64]:
    """Return the time of each of *texts*; `NO_TIME` where there is none."""
    shifts: dict[int, int] = {}
    short = [_local(row, text, shifts) if text.__class__ is str else "" for row, text in enumerate(texts)]
    times, sure = _parse_common(short)
    for place, shift in shifts.items():
        times[place] = _settle(int(times[place]) - shift) if times[place] != NO_TIME else NO_TIME
    for row in np.flatnonzero(~sure):
        times[row] = parse(texts[int(row)])
    return times


def _local(row: int, text: str, shifts: dict[int, int]) -> str:
    """Return what is to be read of *text* as an array; an offset behind it goes to *shifts*."""
    signed = len(text) > 19 and text[-1] != "Z" and text[:4] not in _UNSURE_YEARS
    if signed and (sign := _SIGNED.search(text, 19)):
        shift = _shift_of(text[sign.start() :])
        if shift is not None:
            shifts[row] = shift
            text = text[: sign.start()]
    return text if len(text) <= _WIDTH else ""


@lru_cache(maxsize=1024)
def _shift_of(offset: str) -> int | None:
    """Return the microseconds that ``+02:00`` or ``+02:00[Europe/Berlin]`` stands for; None if that is no offset."""
    found = _BEHIND.match(offset)
    if found is None:
        return None
    seconds = int(found[2]) * 3600 + int(found[3]) * 60
    return (-seconds if found[1] == "-" else seconds) * SECOND


def parse(raw: Any) -> Timestamp:
    """Return the time that *raw* names.

    Read are ISO 8601, ``Jan 17 2020 08:52:10`` of CEF, ``Mon Jan 17 08:52:10 2020`` of C, web servers'
    ``17/Jan/2020:08:52:10 +0100``, ``17-Jan-2020 08:52:10`` of BIND, ``2020/01/17 08:52:10``,
    ``17.1.2020 08:52:10``, ``2020-01-17 08:52:10 CET`` and ``200117  8:52:10`` (years from 1970 to 2069), and a number
    since 1970: seconds, milliseconds, microseconds or nanoseconds by its size, in a text with 10, 13, 16 or 19 digits;
    and what `localised` returns.
    """
    if isinstance(raw, dict):
        raw = raw.get("#text")
    if isinstance(raw, str) and len(raw) <= _LONGEST:
        return _in_text(raw.strip())
    if isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
        return _since_1970(raw)
    return NO_TIME


@lru_cache(maxsize=4096)
def _in_text(text: str) -> Timestamp:
    """Return the time that *text* names; kept, since what happens in one second has one text."""
    if _EPOCH_TEXT.match(text):
        return _since_1970(int(text) if text.isdecimal() else float(text))
    found = _written(without_zone(text))
    return from_datetime(found) if found else NO_TIME


def _since_1970(number: int | float) -> Timestamp:
    if 0 < number < 1e11:
        return _settle(round(number * SECOND))
    if 0 < number < 1e14:
        return _settle(round(number * 1000))
    return _settle(int(number) // (1 if number < 1e17 else 1000)) if 0 < number < 1e20 else NO_TIME


def _dated(text: str) -> str:
    """Return a time of another form in ISO form; any other text as it is. Of two-digit years 70 is the first."""
    for form in _DATED:
        if found := form.match(text):
            part = found.groupdict()
            month, year = MONTHS.get(part["month"].title(), part["month"]), int(part["year"])
            year += 0 if year > 99 else 2000 if year < 70 else 1900
            clock = part["clock"] if part["clock"][2] == ":" else f"0{part['clock']}"
            return f"{year:04}-{month:>02}-{part['day']:>02}T{clock}{part.get('zone') or ''}"
    return text


def from_datetime(time: datetime) -> Timestamp:
    """Return *time* (UTC if it has no zone) as a timestamp."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return _settle((aware - _EPOCH) // _MICROSECOND)


def localised(text: str, zone: str) -> str:
    """Return the time of day *text* as one of *zone*; what names its zone already, or is no time, as it is."""
    if _PLAIN.match(text) and text[:4] not in _UNSURE_YEARS:
        return (
            f"{text[:10]}T{text[11:]}{behind}" if (behind := _behind(f"{text[:10]}T{text[11:16]}:00", zone)) else text
        )
    return _localised(text, zone) if len(text) <= _LONGEST else text


@lru_cache(maxsize=4096)
def _behind(minute: str, zone: str) -> str:
    """Return what `localised` writes behind every time of one minute; no clock is changed within one nowadays."""
    return _localised(minute, zone).removeprefix(minute)


@lru_cache(maxsize=4096)
def _localised(text: str, zone: str) -> str:
    if ":" not in text or (local := _written(text.strip())) is None or local.tzinfo:
        return text
    if from_datetime(local) == NO_TIME:
        return text
    place = zone_of(zone)
    before, after = _in_zone(local, place, 0), _in_zone(local, place, 1)
    assumed = "" if before == after else before
    return f"{local.isoformat()}{before}[{assumed or zone}]"


def zone_in(text: str) -> str:
    """Return the zone, or the assumed offset, that `localised` wrote into *text*; nothing if it wrote none."""
    found = _IN_ZONE.match(text) if text.endswith("]") else None
    return found[2] if found else ""


def offset_of(name: str) -> str:
    """Return the offset that the short name of a zone stands for (``CET``, ``-03``); nothing if it may be another."""
    return _OFFSETS.get(name) or (f"{name[:3]}:{name[3:] or '00'}" if _SHORT.match(name) else "")


def without_zone(text: str) -> str:
    """Return *text* without what `zone_in` finds in it."""
    found = _IN_ZONE.match(text) if text.endswith("]") else None
    return found[1] if found else text


def _in_zone(local: datetime, place: tzinfo, fold: int) -> str:
    """Return the offset of *local*: with *fold* 1 that after a change of the clock, else that before it."""
    return local.replace(tzinfo=place, fold=fold).isoformat()[len(local.isoformat()) :]


def to_datetime(time: Timestamp) -> datetime:
    """Return *time* in UTC; years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=time)


def to_text(time: Timestamp) -> str:
    """Return *time* as ECS writes it: milliseconds, or microseconds where there are any, and ``Z``."""
    precision = "milliseconds" if time % 1000 == 0 else "microseconds"
    return to_datetime(time).replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def _written(text: str) -> datetime | None:
    """Return the time of the forms that `parse` reads, without a zone where it names none."""
    start, _, name = text.rpartition(" ")
    offset = offset_of(name)
    for form in (text, _dated(text), start + offset if offset else ""):
        with suppress(ValueError, OverflowError):
            return datetime.fromisoformat(form)
    return None


def _settle(time: Timestamp) -> Timestamp:
    """Return *time*, or `NO_TIME` if it was never set or an offset moved it out of the years that there are."""
    return time if _FIRST <= time <= _LAST and time not in _NEVER else NO_TIME


def _parse_common(texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return times, and which of them were of the common form."""
    rows = len(texts)
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    signs = np.array(texts, dtype=f"U{_WIDTH}").view(np.uint32).reshape(rows, _WIDTH)
    digits = signs.astype(np.int64) - ord("0")
    is_digit = (digits >= 0) & (digits <= 9)
    sure = is_digit[:, _DIGITS].all(axis=1)
    for place, sign in enumerate(_MASK):
        if sign not in "dT":
            sure &= signs[:, place] == ord(sign)
    sure &= (signs[:, 10] == ord("T")) | (signs[:, 10] == ord(" "))

    year = digits[:, 0:4] @ _PLACE_VALUE
    month, day, hour, minute, second = (digits[:, at] * 10 + digits[:, at + 1] for at in (5, 8, 11, 14, 17))
    micro, tail = _fraction(signs, digits, is_digit)
    sure &= tail & (month >= 1) & (month <= 12) & (hour <= 23) & (minute <= 59) & (second <= 59) & (year >= 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    month = np.where(sure, month, 1)
    sure &= (day >= 1) & (day <= _DAYS_IN[month]) & ((month != 2) | (day <= 28) | leap)

    past = year - 1
    days = past * 365 + past // 4 - past // 100 + past // 400 - 719_162 + _DAYS_BEFORE[month] + day - 1
    days += leap & (month > 2)
    times = (((days * 24 + hour) * 60 + minute) * 60 + second) * SECOND + micro
    times[~sure | np.isin(times, list(_NEVER))] = NO_TIME
    return times, sure


def _fraction(
    signs: NDArray[np.uint32], digits: NDArray[np.int64], is_digit: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the microseconds after place 19, and whether nothing but a fraction of up to nine digits and Z follows."""
    dot = signs[:, 19] == ord(".")
    run = np.cumprod(is_digit[:, 20:30] & dot[:, None], axis=1)
    micro = (digits[:, 20:26] * run[:, :6]) @ np.array([100_000, 10_000, 1000, 100, 10, 1])
    end = np.where(dot, 20 + run.sum(axis=1), 19)
    everywhere = np.arange(len(signs))
    zulu = (signs[everywhere, end] == ord("Z")).astype(np.int64)
    clean = signs[everywhere, end + zulu] == 0
    return micro, clean & (end < 30) & (~dot | (end > 20))
