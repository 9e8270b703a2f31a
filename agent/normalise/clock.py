"""Event times: many texts at once to microseconds since 1970, in UTC where a text names no zone.

The common forms (``2021-06-11T09:07:15.635Z``, ``2020-10-19 03:30:41.104``, up to nine digits of fraction) are read as
arrays of characters; everything else one by one. What is no time, and what only stands for "never set", is `NO_TIME`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.model import NO_TIME, SECOND, Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_WIDTH = 32
_MASK = "dddd-dd-ddTdd:dd:dd"
_DIGITS = [place for place, sign in enumerate(_MASK) if sign == "d"]
_PLACE_VALUE = np.array([1000, 100, 10, 1])
_DAYS_BEFORE = np.array([0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334])
_DAYS_IN = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_NEVER = frozenset((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND for year in (1, 1601, 1970))
"""The zero of Go, of Windows and of Unix: a clock that was never set, not a time."""


def parse_all(texts: Sequence[Any]) -> NDArray[np.int64]:
    """Return the time of each of *texts*; `NO_TIME` where there is none."""
    short = [text if text.__class__ is str and len(text) <= _WIDTH else "" for text in texts]
    times, sure = _parse_common(short)
    for row in np.flatnonzero(~sure):
        times[row] = parse(texts[int(row)])
    return times


def parse(raw: Any) -> Timestamp:
    """Return the time that *raw* names: ISO 8601, or seconds or milliseconds since 1970 as a number."""
    if isinstance(raw, dict):
        raw = raw.get("#text")
    if isinstance(raw, str) and len(raw) <= 64:
        return _settle(_iso(raw.strip()))
    if isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw) and 0 < raw < 1e14:
        return _settle(int(raw * (1000 if raw >= 1e11 else SECOND)))
    return NO_TIME


def from_datetime(time: datetime) -> Timestamp:
    """Return *time* (UTC if it has no zone) as a timestamp."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return _settle((aware - _EPOCH) // _MICROSECOND)


def to_datetime(time: Timestamp) -> datetime:
    """Return *time* in UTC; years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=time)


def to_text(time: Timestamp) -> str:
    """Return *time* as ECS writes it: milliseconds, or microseconds where there are any, and ``Z``."""
    precision = "milliseconds" if time % 1000 == 0 else "microseconds"
    return to_datetime(time).replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def _iso(text: str) -> Timestamp:
    try:
        return from_datetime(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return NO_TIME


def _settle(time: Timestamp) -> Timestamp:
    return NO_TIME if time in _NEVER else time


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
