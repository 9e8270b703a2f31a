"""First seen: a value that an entity has not shown before (a user's new address, a host's new service).

The events of bucket ``b`` for (entity, value) are a finding if the value was not seen with the entity in the *history*
before ``b`` while the entity was active in at least *min_history* of those buckets. Class ``set``: state holds
facts about which order and repeats say nothing, so any cut and any order within *lateness* give the same alert ids.

A fact is decided once everything before its bucket is closed: at once for an event of the bucket that the watermark
less *lateness* has reached, else in `advance`. State, by key:

- ``<bucket>:[entity..., value...]``: the least event of a fact that is not decided yet
- ``[entity..., value...]``: the last decided bucket in which the value was seen
- ``[entity...]``: ``[buckets with activity, buckets that brought a new value]``, decided ones only
- empty: the operator's books (`Ledger`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from agent.detect.windows import (
    BaselineOptions,
    Duration,
    Evidence,
    FieldNames,
    Group,
    Ledger,
    Reader,
    decode_key,
    describe,
    duration,
    encode_key,
    evidence_of,
    instant,
    length,
    open_key,
    pairs,
    parse,
    phrase,
    reference_of,
)
from agent.model import NO_TIME, Batch, Explanation, Factor, Finding, Kind, Timestamp
from agent.ports import Detector, StateView

_MOST_BUCKETS = 1_000
_UNKNOWN: tuple[list[int], list[int]] = ([], [])


class FirstSeenOptions(BaselineOptions):
    """What may stand under a detector of type ``first-seen``."""

    type: Literal["first-seen"] = Field(default="first-seen", description="This baseline.")
    value: FieldNames = Field(description="One to four fields whose combination is new or not.")
    bucket: Duration = Field(default=duration("1d"), description="Width of a window (duration, from 1m).")
    history: Duration = Field(
        default=duration("30d"), description="How far back a value is remembered (duration, 1 to 1,000 buckets)."
    )
    min_history: int = Field(
        default=3, ge=1, description="Buckets of the history in which the entity must have been active."
    )
    lateness: Duration = Field(
        default=duration("5m"), description="How much older than the newest an event may come (duration)."
    )
    max_keys: int = Field(
        default=200_000, ge=1, le=10_000_000, description="Most entities, pairs and waiting decisions held in state."
    )

    @model_validator(mode="after")
    def _consistent(self) -> FirstSeenOptions:
        if self.bucket < 60_000_000:
            raise ValueError("bucket: expected at least 1m")
        if not self.bucket <= self.history <= _MOST_BUCKETS * self.bucket:
            raise ValueError(f"history: expected 1 to {_MOST_BUCKETS} buckets of {length(self.bucket)}")
        if self.min_history > self.history // self.bucket:
            raise ValueError("min_history: expected no more buckets than the history has")
        return self


def build(id: str, options: Mapping[str, Any], cache: Path | None) -> Detector:  # noqa: ARG001 (nothing to compile)
    """Build a first-seen baseline; ConfigError names wrong options."""
    return FirstSeen(id, parse(FirstSeenOptions, id, options))


class _Fact(NamedTuple):
    """(entity, value) was seen in *bucket*; *row* is the event's row if it is at hand."""

    bucket: int
    pair: str
    evidence: Evidence
    row: int | None = None


class FirstSeen:
    order: Literal["set", "sequence"] = "set"

    def __init__(self, id: str, options: FirstSeenOptions) -> None:
        self.id = id
        self._options = options
        self._description = describe(id, options)
        self._history = options.history // options.bucket
        self._split = len(options.entity)
        self._reader = Reader(options.where, (*options.entity, *options.value), options.bucket, options.lateness)

    def fields(self, kind: Kind) -> frozenset[str]:
        return self._reader.fields(kind)

    def plan(self) -> Mapping[str, Any]:
        return {
            "id": self.id,
            "type": self._options.type,
            "order": self.order,
            "fields": sorted({*self._options.where, *self._options.entity, *self._options.value}),
            "options": self._options.model_dump(mode="json"),
        }

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        ledger = Ledger.load(state)
        reached = self._reached(ledger)
        findings: list[Finding] = []
        for group in self._reader.groups(events, ledger.watermark, state):
            ledger.note(group.bucket)
            for values in group.combinations:
                pair = encode_key(values)
                if not ledger.admits(pair):
                    state.count("capped")
                elif reached is None or group.bucket > reached:
                    _hold(events, group, pair, ledger, state)
                elif state.get(pair) != group.bucket:
                    row, evidence = _least(events, group)
                    findings += self._decide(_Fact(group.bucket, pair, evidence, row), ledger, state)
        ledger.shrink(state, self._options.max_keys)
        ledger.save(state)
        return findings

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        ledger = Ledger.load(state)
        if watermark <= ledger.watermark:
            return []
        ledger.watermark = watermark
        reached = (watermark - self._options.lateness) // self._options.bucket
        findings: list[Finding] = []
        for bucket, pair, evidence in ledger.take_due(state, reached + 1):
            findings += self._decide(_Fact(bucket, pair, evidence), ledger, state)
        if ledger.swept is None or reached - ledger.swept > self._history // 4:
            self._forget(reached, ledger, state)
        ledger.shrink(state, self._options.max_keys)
        ledger.save(state)
        return findings

    def _reached(self, ledger: Ledger) -> int | None:
        """The bucket that the watermark has reached: all before it are closed. None: nothing is closed."""
        if ledger.watermark == NO_TIME:
            return None
        return (ledger.watermark - self._options.lateness) // self._options.bucket

    def _decide(self, fact: _Fact, ledger: Ledger, state: StateView) -> list[Finding]:
        """Make the fact history; find if the value was new to a known entity."""
        last = state.get(fact.pair)
        ledger.keep(state, fact.pair, fact.bucket, new=last is None)
        since = fact.bucket - self._history
        new = last is None or last < since
        active, novel = self._activate(
            encode_key(decode_key(fact.pair)[: self._split]), fact.bucket, new, ledger, state
        )
        if not new or active < self._options.min_history:
            return []
        if not ledger.knows(fact.pair, since):
            state.count("capped")
            return []
        return [self._finding(fact, active, novel, ledger.capped(since))]

    def _activate(self, entity: str, bucket: int, new: bool, ledger: Ledger, state: StateView) -> tuple[int, int]:
        """Note that *entity* was active; return in how many earlier buckets it was, and in how many with news."""
        record = state.get(entity)
        if record is None and not ledger.admits(entity):
            return 0, 0
        since = bucket - self._history
        active, novel = ([b for b in past if b >= since] for past in record or _UNKNOWN)
        before = sum(b < bucket for b in active)
        if bucket not in active or (new and before and bucket not in novel):
            active = active if bucket in active else [*active, bucket]
            novel = [*novel, bucket] if new and before and bucket not in novel else novel
            ledger.keep(state, entity, [active, novel], new=record is None)
        return before, sum(b < bucket for b in novel)

    def _forget(self, reached: int, ledger: Ledger, state: StateView) -> None:
        """Drop what no later decision can ask for."""
        oldest = reached - self._history
        ledger.swept = reached
        stale = [key for key, record in state.items() if key[:1] == "[" and _newest(record) < oldest]
        for key in stale:
            ledger.drop(state, key)
        ledger.recover(self._options.max_keys, reached, oldest)

    def _finding(self, fact: _Fact, active: int, novel: int, capped: bool) -> Finding:
        values = decode_key(fact.pair)
        entity = pairs(self._options.entity, values[: self._split])
        value = pairs(self._options.value, values[self._split :])
        bucket, width = fact.bucket, self._options.bucket
        since = f"{instant((bucket - self._history) * width):%Y-%m-%d %H:%M} UTC"
        unit = {"1d": "days", "1h": "hours"}.get(length(width), f"windows of {length(width)}")
        fields = dict(zip((*self._options.entity, *self._options.value), values, strict=True))
        return Finding(
            detector=self._description,
            time=fact.evidence[0],
            evidence=(reference_of(fact.evidence),),
            explanation=Explanation(
                sentence=(
                    f"{phrase(value)} is new for {phrase(entity)}: not seen since {since}, though active on "
                    f"{active} of the {self._history} {unit} before; {novel} of these brought something new."
                ),
                factors=(
                    *(Factor(name, text, f"a value seen since {since}") for name, text in value),
                    Factor("vedette.baseline.active", active, f"at least {self._options.min_history}"),
                    Factor("vedette.baseline.novel", novel, None),
                ),
                maturity=active / self._history,
            ),
            entity=entity,
            window=(bucket * width, (bucket + 1) * width),
            key=encode_key(values[self._split :]),
            score=1 - (novel + 1) / (active + 1),
            row=fact.row,
            fields=fields | {"vedette.capped": True} if capped else fields,
        )


def _hold(events: Batch, group: Group, pair: str, ledger: Ledger, state: StateView) -> None:
    """Keep the group's least event until the watermark allows the decision."""
    waiting = state.get(open_key(group.bucket, pair))
    if waiting is None or group.time <= waiting[0]:
        _, evidence = _least(events, group)
        if waiting is None or _age(evidence) < _age(waiting):
            ledger.keep_open(state, group.bucket, pair, evidence, new=waiting is None)


def _least(events: Batch, group: Group) -> tuple[int, Evidence]:
    """Return row and evidence of the group's least event by time, then identity."""
    ties = group.rows[events.time[group.rows] == group.time].tolist()
    row = ties[0] if len(ties) == 1 else min(ties, key=lambda row: events.reference(row).identity)
    return row, evidence_of(events, row)


def _age(evidence: Evidence) -> tuple[int, str]:
    return evidence[0], reference_of(evidence).identity


def _newest(record: int | list[list[int]]) -> int:
    """Return the last bucket that the record of a pair or an entity speaks of."""
    return record if isinstance(record, int) else max(record[0])
