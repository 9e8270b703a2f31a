"""Maintenance: times in which events of some hosts, users or rules raise no alerts, as planned, owned and ending.

It goes by event time, like exceptions do, so that a replay gives the same; what it withholds is counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from agent.alerting.document import texts_at
from agent.model import Timestamp
from agent.normalise.clock import to_datetime

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60
_WEEK = 7 * _DAY
_TIME = r"(\d{2}):(\d{2})"
_SPAN = re.compile(rf"([a-z]{{3}})(?:-([a-z]{{3}}))? {_TIME}-(?:([a-z]{{3}}) )?{_TIME}")


@dataclass(frozen=True)
class Maintenance:
    """One plan: in force in [*since*, *until*), in the *weeks* spans (minutes of the local week) if there are any."""

    name: str
    since: Timestamp
    until: Timestamp
    where: Mapping[str, frozenset[str]]
    rules: frozenset[str]
    weekly: tuple[tuple[int, int], ...]
    zone: tzinfo

    def covers(self, rule: str, time: Timestamp) -> bool:
        """Say whether findings of *rule* about *time* may fall under it."""
        if not self.since <= time < self.until or (self.rules and rule not in self.rules):
            return False
        if not self.weekly:
            return True
        local = to_datetime(time).astimezone(self.zone)
        minute = local.weekday() * _DAY + local.hour * 60 + local.minute
        return any(start <= at < end for at in (minute, minute + _WEEK) for start, end in self.weekly)

    def fits(self, document: Mapping[str, Any]) -> bool:
        """Say whether *document* has one of the wanted values in every field of *where*, whatever their case."""
        return all(
            not wanted.isdisjoint(map(str.lower, texts_at(document, name))) for name, wanted in self.where.items()
        )


def spans(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return minutes of the week for ``Sat 22:00-06:00``, ``Sat 22:00-Mon 06:00`` or ``Mon-Fri 08:00-18:00``.

    A span ends after it begins: an end that is no later lies on the next day. ValueError for anything else.
    """
    return tuple(span for text in texts for span in _spans(text))


def _spans(text: str) -> list[tuple[int, int]]:
    match = _SPAN.fullmatch(text.lower())
    names = [name for name in (match[1], match[2], match[5]) if name] if match else []
    if match is None or any(name not in _DAYS for name in names) or (match[2] and match[5]):
        raise ValueError(f"expected a span such as 'Sat 22:00-06:00' or 'Mon-Fri 08:00-18:00', got {text!r}")
    begin, end = _minutes(match[3], match[4], text), _minutes(match[6], match[7], text)
    first = _DAYS.index(match[1])
    if match[5]:
        length = (_DAYS.index(match[5]) - first) * _DAY + end - begin
        return [(first * _DAY + begin, first * _DAY + begin + (length if length > 0 else length + _WEEK))]
    last = _DAYS.index(match[2]) if match[2] else first
    days = range(first, (last if last >= first else last + 7) + 1)
    length = end - begin if end > begin else end - begin + _DAY
    return [(day % 7 * _DAY + begin, day % 7 * _DAY + begin + length) for day in days]


def _minutes(hours: str, minutes: str, text: str) -> int:
    found = int(hours) * 60 + int(minutes)
    if found > _DAY or int(minutes) > 59:
        raise ValueError(f"no time of day in {text!r}")
    return found
