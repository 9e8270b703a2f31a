"""Hour of week: an entity has more events in an hour than that hour of the week, and its level, lead to expect.

Class ``sequence``: events are counted by (entity, bucket); when the watermark less *lateness* has passed a bucket, it
is judged and then learnt, in order of bucket and entity, so any cut gives the same findings and scores. A count is
exact because the cursor and this state move in one commit; identities are not remembered, so a source that breaks its
promise not to repeat can only raise the counts of buckets that are still open (older repeats are late).

What is expected: mean and mean square of the slot's own past, blended with those of the entity over all hours, which
counts as one more observation of the slot. A negative binomial with these moments, its spread held above a floor, gives
``p = P(count or more)``; score = 1 - p. What is learnt fades with *half_life*. An hour above the alarm bound is learnt
as if it had been at the bound, so an attack does not become normal. Silence is learnt too: once an entity is known its
hours without events count as zero, by closed forms and not hour by hour.

State, by key:

- ``<bucket>:[entity...]``: ``[count, first few events]`` of a bucket that is not closed yet
- ``[entity...]``: ``[first bucket, last bucket, moments...]``; moments are faded sums of counts, of squared counts and
  of windows
- ``[entity...]<day>``: ``{slot of this day of the week: [last bucket, moments...]}``
- empty: the operator's books (`Ledger`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from agent.detect.windows import (
    BaselineOptions,
    Duration,
    Evidence,
    Ledger,
    Reader,
    decode_key,
    describe,
    duration,
    encode_key,
    evidence_of,
    instant,
    open_key,
    pairs,
    parse,
    phrase,
    reference_of,
)
from agent.model import Batch, Explanation, Factor, Finding, Kind, Timestamp
from agent.ports import Detector, StateView

_WEEK = duration("1w")
_EVIDENCE = 4
_FORGOTTEN = 4  # half-lives of silence after which an entity is unknown again
_PRIOR = 2.0  # the entity at large weighs as much as so many observations of the slot
_SPREAD = 0.1  # least variance beyond Poisson, as a share of the squared mean: no count is steadier than +-30 %


class HourOfWeekOptions(BaselineOptions):
    """What may stand under a detector of type ``hour-of-week``."""

    type: Literal["hour-of-week"] = Field(default="hour-of-week", description="This baseline.")
    bucket: Duration = Field(
        default=duration("1h"), description="Width of a window (duration from 5m that divides a week)."
    )
    threshold: float = Field(
        default=0.001, gt=0, lt=0.5, description="Find counts that are less probable than this (probability)."
    )
    min_count: int = Field(default=10, ge=1, description="Find no window with fewer events (events).")
    min_history: int = Field(
        default=168, ge=1, description="How long an entity must be known before it is judged (windows)."
    )
    half_life: Duration = Field(
        default=duration("28d"), description="Time in which what was learnt loses half its weight (duration from 1w)."
    )
    lateness: Duration = Field(
        default=duration("5m"), description="How much older than the newest an event may come (duration)."
    )
    max_keys: int = Field(
        default=200_000, ge=1, le=10_000_000, description="Most keys held: up to eight an entity, one an open window."
    )

    @model_validator(mode="after")
    def _consistent(self) -> HourOfWeekOptions:
        if self.bucket < duration("5m") or _WEEK % self.bucket:
            raise ValueError("bucket: expected at least 5m and a divisor of a week, such as 15m, 1h or 1d")
        if self.half_life < _WEEK:
            raise ValueError("half_life: expected at least 1w")
        return self


def build(id: str, options: Mapping[str, Any], cache: Path | None) -> Detector:  # noqa: ARG001 (nothing to compile)
    """Build an hour-of-week baseline; ConfigError names wrong options."""
    return HourOfWeek(id, parse(HourOfWeekOptions, id, options))


class HourOfWeek:
    order: Literal["set", "sequence"] = "sequence"

    def __init__(self, id: str, options: HourOfWeekOptions) -> None:
        self.id = id
        self._options = options
        self._description = describe(id, options)
        self._slots = _WEEK // options.bucket
        self._fade_slot = 0.5 ** (_WEEK / options.half_life)
        self._fade = 0.5 ** (options.bucket / options.half_life)
        self._memory = _FORGOTTEN * options.half_life // options.bucket
        self._reader = Reader(options.where, options.entity, options.bucket, options.lateness)

    def fields(self, kind: Kind) -> frozenset[str]:
        return self._reader.fields(kind)

    def plan(self) -> Mapping[str, Any]:
        return {
            "id": self.id,
            "type": self._options.type,
            "order": self.order,
            "fields": sorted({*self._options.where, *self._options.entity}),
            "options": self._options.model_dump(mode="json"),
        }

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        """Count; findings come from `advance`, when the counts are final."""
        ledger = Ledger.load(state)
        for group in self._reader.groups(events, ledger.watermark, state):
            ledger.note(group.bucket)
            earliest = [evidence_of(events, row) for row in group.rows[:_EVIDENCE].tolist()]
            for values in group.combinations:
                self._count(group.bucket, encode_key(values), len(group.rows), earliest, ledger, state)
        ledger.shrink(state, self._options.max_keys)
        ledger.save(state)
        return []

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        ledger = Ledger.load(state)
        if watermark <= ledger.watermark:
            return []
        ledger.watermark = watermark
        reached = (watermark - self._options.lateness) // self._options.bucket
        findings: list[Finding] = []
        for bucket, entity, (count, evidence) in ledger.take_due(state, reached):
            findings += self._close(bucket, entity, count, evidence, ledger, state)
        if ledger.swept is None or reached - ledger.swept > self._memory // 16:
            self._forget(reached, ledger, state)
        ledger.shrink(state, self._options.max_keys)
        ledger.save(state)
        return findings

    def _count(
        self, bucket: int, entity: str, number: int, earliest: list[Evidence], ledger: Ledger, state: StateView
    ) -> None:
        if not ledger.admits(entity):
            state.count("capped")
            return
        known = state.get(open_key(bucket, entity))
        count, evidence = known or (0, [])
        evidence = sorted([*evidence, *earliest], key=lambda event: event[0])[:_EVIDENCE]  # stable: ties as read
        ledger.keep_open(state, bucket, entity, [count + number, evidence], new=known is None)

    def _close(
        self, bucket: int, entity: str, count: int, evidence: list[Evidence], ledger: Ledger, state: StateView
    ) -> list[Finding]:
        """Judge a closed bucket by the entity's past, then make it part of that past."""
        options = self._options
        past = self._recall(bucket, entity, state)
        expected = _expect(past.own, past.level)
        found: list[Finding] = []
        learnt = count
        if bucket - past.first >= options.min_history and count > expected.mean:
            probability = expected.reach(count)
            if probability < options.threshold:
                learnt = min(count, max(expected.bound(options.threshold), options.min_count))
                if count >= options.min_count:
                    capped = ledger.capped(bucket - self._memory)
                    found = [self._finding(bucket, entity, count, evidence, expected, probability, capped)]
        if past.known or ledger.admits(entity):
            slot = [bucket, *_learn(past.own, self._fade_slot, learnt)]
            day, slots = self._day(bucket, entity), past.slots or {}
            level = _learn(past.level, self._fade, learnt)
            ledger.keep(state, day, slots | {str(bucket % self._slots): slot}, new=past.slots is None)
            ledger.keep(state, entity, [past.first, bucket, *level], new=not past.known)
        return found

    def _day(self, bucket: int, entity: str) -> str:
        """The key of the entity's slots of one day of the week."""
        return f"{entity}{bucket % self._slots * 7 // self._slots}"

    def _recall(self, bucket: int, entity: str, state: StateView) -> _Past:
        """Return what is known of the entity before *bucket*, the silence up to it included."""
        record, slots = state.get(entity), state.get(self._day(bucket, entity))
        if record is None or bucket - record[1] > self._memory:
            return _Past(record is not None, bucket, _NOTHING, slots, _NOTHING)
        first, last, *level = record
        at, *own = (slots or {}).get(str(bucket % self._slots), (first - 1, *_NOTHING))
        if at < max(first, bucket - self._memory):  # not seen, or so long ago that it counts as not seen
            own, silent = _NOTHING, (bucket - first) // self._slots
        else:
            silent = (bucket - at) // self._slots - 1
        own = _silence(own, self._fade_slot, silent)
        return _Past(True, first, _silence(level, self._fade, bucket - last - 1), slots, own)

    def _forget(self, reached: int, ledger: Ledger, state: StateView) -> None:
        """Drop entities that have been silent for so long that they count as unknown."""
        ledger.swept = reached
        oldest = reached - self._memory
        stale = [key for key, record in state.items() if key[:1] == "[" and _newest(record) < oldest]
        for key in stale:
            ledger.drop(state, key)
        ledger.recover(self._options.max_keys, reached, oldest)

    def _finding(
        self,
        bucket: int,
        key: str,
        count: int,
        evidence: list[Evidence],
        expected: _Expected,
        probability: float,
        capped: bool,
    ) -> Finding:
        options = self._options
        entity = pairs(options.entity, values := decode_key(key))
        window = (bucket * options.bucket, (bucket + 1) * options.bucket)
        start, end = map(instant, window)
        slot = f"{start:%A %H:%M}–{end:%H:%M} UTC"
        low, high = (expected.bound(share) - 1 for share in (1 - options.threshold, options.threshold))
        fields: dict[str, Any] = dict(zip(options.entity, values, strict=True))
        return Finding(
            detector=self._description,
            time=evidence[0][0],
            evidence=tuple(reference_of(event) for event in evidence),
            explanation=Explanation(
                sentence=(
                    f"{count} events of {phrase(entity)} on {start:%Y-%m-%d}, {slot}; "
                    f"expected about {expected.mean:.3g} and no more than {high}."
                ),
                factors=(
                    Factor(
                        "vedette.baseline.count",
                        count,
                        {"mean": round(expected.mean, 3), "low": low, "high": high},
                        1 - probability,
                    ),
                    Factor("vedette.baseline.slot", slot, None),
                ),
                maturity=expected.maturity,
            ),
            entity=entity,
            window=window,
            score=1 - probability,
            fields=fields | {"vedette.evidence.total": count} | ({"vedette.capped": True} if capped else {}),
        )


# --- what is learnt, and what it leads to expect ----------------------------------------------------------------------

_Moments = Sequence[float]
"""Faded sums of counts, of squared counts, and of windows."""
_NOTHING: _Moments = (0.0, 0.0, 0.0)


def _learn(moments: _Moments, fade: float, count: int) -> list[float]:
    total, squares, windows = moments
    return [round(total * fade + count, 4), round(squares * fade + count * count, 4), round(windows * fade + 1, 4)]


def _silence(moments: _Moments, fade: float, windows: int) -> _Moments:
    """Learn a count of zero *windows* times."""
    left = fade**windows
    return moments[0] * left, moments[1] * left, moments[2] * left + (1 - left) / (1 - fade)


class _Past(NamedTuple):
    """What is known of an entity: since when, its level, its day's *slots*, and the moments of the slot at hand."""

    known: bool
    first: int
    level: _Moments
    slots: dict[str, list[Any]] | None
    own: _Moments


class _Expected(NamedTuple):
    """A negative binomial of *mean* and *size* (variance = mean + mean² / size)."""

    mean: float
    size: float
    maturity: float

    def reach(self, count: int) -> float:
        """Return the probability of *count* or more."""
        return 1.0 if count <= 0 else _beta(self.mean / (self.size + self.mean), count, self.size)

    def bound(self, probability: float) -> int:
        """Return the least count that is reached with less than *probability*."""
        low, high = 0, 1
        while self.reach(high) >= probability:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.reach(middle) >= probability else (low, middle)
        return high


def _expect(own: _Moments, level: _Moments) -> _Expected:
    """Blend the slot's own moments with the entity's level (half an event is added: nothing is impossible)."""
    weight = own[2] + _PRIOR
    mean = (own[0] + _PRIOR * (level[0] + 0.5) / (level[2] + 1)) / weight
    square = (own[1] + _PRIOR * (level[1] + 0.5) / (level[2] + 1)) / weight
    excess = max((square - mean * mean) * (1 + 1 / weight) - mean, _SPREAD * mean * mean)
    return _Expected(mean, mean * mean / excess, own[2] / weight)


def _beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22, modified Lentz)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + step * d)
            c = _nonzero(1 + step / c)
            value *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return min(1.0, front * value / a)


def _nonzero(number: float) -> float:
    return number if abs(number) > 1e-300 else 1e-300


def _newest(record: list[Any] | dict[str, list[Any]]) -> int:
    """Return the last bucket that the record of an entity or of one of its days speaks of."""
    return int(record[1]) if isinstance(record, list) else max(int(slot[0]) for slot in record.values())
