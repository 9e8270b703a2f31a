"""Plan and evaluate: records in, findings out.

A pipeline joins one normaliser and the detectors of a stream. `evaluate` is a function of (records, state): it reads no
clock, no disk and no network, and the alert ids that follow from it do not depend on how records are cut into fetches.
The dictionaries that it keeps between calls are caches of pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.model import NO_TIME, SECOND, UNPARSED, Batch, DeadLetter, Finding, Kind, Records, Timestamp, distinct
from agent.normalise import Normaliser
from agent.ports import Detector, StateView

WATERMARKS = "vedette.watermarks"
"""The operator that keeps, by partition, the greatest event time read, and under `_STREAM` the stream's watermark."""
LATE = "vedette.late"
"""The operator that keeps the hours of event time of which events came too late: for `vedette replay --late`."""
_LATE_KEPT = 1_000
_HOUR = 3600 * SECOND
_STREAM = ""
_IDLE_STEP = 10 * SECOND
"""How far the clock must go before an empty fetch moves the watermark: a silent source costs a commit every 10 s."""


class States(Protocol):
    """The operators' states inside one transaction."""

    def view(self, operator: str) -> StateView: ...

    def counted(self, name: str) -> int:
        """Return how often the operators have counted *name* in this transaction."""


@dataclass(frozen=True)
class Filter:
    """Events to leave unscored: every field of *where* has one of its values. Each is counted by name."""

    name: str
    where: Mapping[str, frozenset[str]]

    def fields(self, kind: Kind) -> frozenset[str]:
        for field, allowed in self.where.items():
            if field in kind.constant and str(kind.constant[field]) not in allowed:
                return frozenset()
        return frozenset(self.where)

    def rows(self, batch: Batch) -> NDArray[np.bool_]:
        """Return a mask over the rows that this filter leaves out."""
        mask = np.ones(len(batch), dtype=bool)
        for field, allowed in self.where.items():
            mask &= self._matches(batch, field, allowed)
        return mask

    @staticmethod
    def _matches(batch: Batch, field: str, allowed: frozenset[str]) -> NDArray[np.bool_]:
        by_kind = np.array([str(kind.constant.get(field)) in allowed for kind in batch.kinds] or [False])
        mask = by_kind[batch.kind]
        column = batch.columns.get(field)
        if column is not None:
            values = column.dictionary.values
            codes = distinct(column.codes[column.codes >= 0])
            mask = mask | np.isin(column.codes, [code for code in codes if _any_in(values[code], allowed)])
        return mask


OWN_ALERTS = Filter("own-alerts", {"observer.product": frozenset({"vedette"})})
"""No feedback loop: documents that Vedette wrote are not events, wherever they lie."""


@dataclass(frozen=True)
class Evaluation:
    """What one fetch came to. The books: received = scored + quarantined + the sum of *filtered*."""

    batch: Batch
    findings: tuple[Finding, ...]
    dead: tuple[DeadLetter, ...]
    scored: int
    filtered: Mapping[str, int]
    counts: Mapping[str, int]
    watermark: Timestamp


class Pipeline:
    """The plan of one stream: its detectors, its filters and the fields they want."""

    def __init__(self, detectors: Sequence[Detector], filters: Sequence[Filter] = ()) -> None:
        self.detectors = tuple(detectors)
        self.filters = (OWN_ALERTS, *filters)
        self.normaliser = Normaliser(partial(_wanted, (*self.detectors, *self.filters)))

    def evaluate(self, records: Records, states: States) -> Evaluation:
        """Normalise, filter and show the events to every detector; then close what the watermark has passed."""
        marks = states.view(WATERMARKS)
        partitions = {chunk.partition for chunk in records.chunks}
        known = {name: marks.get(name) for name in partitions}
        normalised = self.normaliser(records, {name: mark for name, mark in known.items() if mark is not None})
        for name in partitions:
            if normalised.marks.get(name) != known[name]:
                marks.put(name, normalised.marks[name])
        batch, filtered = self._filter(normalised.batch)
        shown = self.detectors if len(batch) else ()
        findings = [finding for one in shown for finding in one.detect(batch, states.view(one.id))]
        if states.counted("late"):
            _note_late(batch, _mark(marks, _STREAM), states.view(LATE))
        watermark = _watermark(records, marks)
        for one in self.detectors:
            findings.extend(one.advance(watermark, states.view(one.id)))
        quarantined = sum(len(rows) for kind, rows in batch.rows_by_kind() if kind.mapping == UNPARSED)
        return Evaluation(
            batch,
            tuple(findings),
            normalised.dead,
            len(batch) - quarantined,
            filtered,
            normalised.counts,
            watermark,
        )

    def projection(self, also: frozenset[str] = frozenset()) -> frozenset[str]:
        """Return the native fields, dotted, that a source of stored documents has to give."""
        return self.normaliser.projection(also)

    def plan(self) -> dict[str, Any]:
        """Return what each detector says of itself, and the filters."""
        return {
            "detectors": {one.id: {"order": one.order, **one.plan()} for one in self.detectors},
            "filters": {one.name: {name: sorted(values) for name, values in one.where.items()} for one in self.filters},
        }

    def _filter(self, batch: Batch) -> tuple[Batch, dict[str, int]]:
        filtered: Counter[str] = Counter()
        for one in self.filters:
            mask = one.rows(batch)
            if mask.any():
                filtered[one.name] += int(mask.sum())
                batch = batch.take(np.flatnonzero(~mask))
        return batch, dict(filtered)


def _wanted(parts: Sequence[Detector | Filter], kind: Kind) -> frozenset[str]:
    """Return the fields that *parts* read of a kind. The normaliser knows them and not the pipeline, so that no circle
    holds thousands of rules until the collector comes by."""
    return frozenset().union(*(one.fields(kind) for one in parts))


def _watermark(records: Records, marks: StateView) -> Timestamp:
    """Return the stream's watermark after this fetch; it never falls.

    It is the least of the partitions that hold unread events; when all are read up, it is the time of the fetch, so
    that windows of a source that has gone silent close too.
    """
    reached = min(_mark(marks, partition) for partition in records.unread) if records.unread else records.as_of
    before = _mark(marks, _STREAM)
    step = 0 if len(records) else _IDLE_STEP
    if reached <= before + step:
        return before
    marks.put(_STREAM, reached)
    return reached


def _note_late(batch: Batch, watermark: Timestamp, late: StateView) -> None:
    """Keep the hours of the events that came after the newest of their partition, or after the watermark."""
    behind = (batch.time < np.maximum(batch.high, watermark)) & ~batch.future
    hours = {str(hour) for hour in np.unique(batch.time[behind] // _HOUR)}
    room = _LATE_KEPT - sum(1 for _ in late.items())
    new = sorted(hour for hour in hours if late.get(hour) is None)
    for hour in new[: max(0, room)]:
        late.put(hour, 1)
    if len(new) > room:
        late.count("hours_forgotten", len(new) - max(0, room))


def late_spans(late: StateView) -> list[tuple[Timestamp, Timestamp]]:
    """Return the spans of event time, [start, end), that some detector got too late; neighbours are joined."""
    spans: list[tuple[Timestamp, Timestamp]] = []
    for hour in sorted(int(key) for key, _ in late.items()):
        start, end = hour * _HOUR, (hour + 1) * _HOUR
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _mark(marks: StateView, partition: str) -> Timestamp:
    mark = marks.get(partition)
    return NO_TIME if mark is None else int(mark)


def _any_in(value: Any, allowed: frozenset[str]) -> bool:
    return any(str(one) in allowed for one in value) if isinstance(value, tuple) else str(value) in allowed
