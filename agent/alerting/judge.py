"""From findings to the alerts of one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agent.alerting import document
from agent.alerting.enrich import Enrich
from agent.alerting.maintenance import Maintenance
from agent.errors import RecordError
from agent.model import (
    DOCUMENT,
    MODEL_EXPIRED,
    SECOND,
    Alert,
    Batch,
    DeadLetter,
    Description,
    Explanation,
    Factor,
    Finding,
    Notice,
    Records,
    Reference,
    Revision,
    Timestamp,
    digest,
)
from agent.normalise import Normaliser
from agent.normalise.clock import to_text
from agent.normalise.decode import original_of
from agent.ports import StateView

OPERATOR = "vedette.alerting"
"""The operator that knows the alerts of each rule and event-time hour, for the delivery cap.

``<hour>/<rule>`` is how many different alerts have been counted, one more than the cap at most; ``<hour>/<alert id>``
is one of them; ``""`` is the hour before which all has been forgotten.
"""
EXCEPTED = "excepted"
"""Counts findings that an exception keeps from being alerts: all of them, and under ``excepted.<rule>`` each rule's."""
MAINTENANCE = "maintenance"
"""Counts, under ``maintenance.<name>``, findings that a planned time keeps from being alerts."""
HOUR = 3600 * SECOND
DAY = 24 * HOUR
_HOURS_KEPT = 24

_Raw = bytes | Mapping[str, Any]
Fetch = Callable[[Sequence[Reference]], Mapping[Reference, _Raw]]


@dataclass(frozen=True)
class Suppression:
    """Alerts of one rule with the same values of *by* within one period of *seconds* are one alert."""

    by: tuple[str, ...]
    seconds: int


QUARANTINE = Description(
    id="vedette.quarantine",
    title="Events that could not be read",
    kind="quality",
    level="low",
    description="Records of this log could not be read; only raw-text rules saw them: 'vedette deadletter list'.",
    author="Vedette",
)
LOSS = Description(
    id="vedette.loss",
    title="Events lost before they were read",
    kind="quality",
    level="high",
    description="Logs were deleted at their source before Vedette had read them all: no rule has seen what was left.",
    author="Vedette",
)
EXPIRED = Description(
    id="vedette.model-expired",
    title="A model has expired and goes on",
    kind="quality",
    level="medium",
    description="What it finds is less and less to be believed: train and sign a new one, or set 'on_expiry: stop'.",
    author="Vedette",
)
STORM = Description(
    id="vedette.storm",
    title="Alert storm",
    kind="quality",
    level="medium",
    description="A rule made more alerts in an hour of event time than the configuration lets out. All are stored.",
    author="Vedette",
)


def alert_id(tenant: str, finding: Finding, suppression: Suppression | None = None, values: Sequence[str] = ()) -> str:
    """Return the alert's id: what was found, about whom, in which events or window; no version and no wall time."""
    rule = finding.detector.id
    if suppression is not None:
        return digest("suppressed", tenant, rule, *values, finding.time // (suppression.seconds * SECOND))
    if finding.window is not None:
        return digest("window", tenant, rule, _entity(finding), *finding.window, finding.key)
    return digest("events", tenant, rule, _entity(finding), *sorted(e.identity for e in finding.evidence), finding.key)


def document_id(alert: str, revision: Revision) -> str:
    """Return the id under which a revision of an alert is written to a SIEM."""
    return digest(alert, revision)


def quarantine_finding(letter: DeadLetter) -> Finding:
    """Return the data-quality finding that a dead letter makes: one for each partition, however many letters."""
    where = letter.reference
    return Finding(
        detector=QUARANTINE,
        time=letter.time,
        evidence=(where,),
        entity=(("log.file.path", where.path),),
        window=document.ALWAYS,
        key=where.partition,
        explanation=Explanation(
            f"{where.path} at {where.key}: {letter.reason}", (Factor("reason", letter.reason, "readable"),)
        ),
    )


def loss_finding(notice: Notice, as_of: Timestamp) -> Finding:
    """Return the data-quality finding that a loss at the source makes."""
    return Finding(
        detector=LOSS,
        time=as_of,
        evidence=(),
        entity=(("log.source", notice.place),),
        window=document.ALWAYS,
        explanation=Explanation(notice.text, (Factor("unread", notice.text, "none"),)),
    )


def expired_finding(notice: Notice, as_of: Timestamp) -> Finding:
    """Return the finding that a model has expired: one a day and model."""
    day = as_of // DAY
    return Finding(
        detector=EXPIRED,
        time=as_of,
        evidence=(),
        entity=(("vedette.model.id", notice.place),),
        window=(day * DAY, (day + 1) * DAY),
        explanation=Explanation(notice.text, (Factor("not_after", notice.text, "later than now"),)),
    )


class Judge:
    """Makes the alerts of a stream's batches.

    *cap* is how many alerts of one rule may leave in an hour of event time; None for no cap.
    """

    def __init__(
        self,
        normaliser: Normaliser,
        *,
        tenant: str,
        stream: str,
        cap: int | None,
        suppressions: Mapping[str, Suppression] | None = None,
        stamp: Mapping[str, Any] | None = None,
        span: tuple[Timestamp, Timestamp] | None = None,
        exceptions: Mapping[str, Timestamp] | None = None,
        enrich: Enrich | None = None,
        maintenance: Sequence[Maintenance] = (),
    ) -> None:
        """*stamp*: what every alert says under ``vedette`` of the configuration it was raised under; without one it is
        ``trust: local``. With a *span*, findings about other times than [start, end) make no alerts.

        *exceptions* say by rule until when its findings, by event time, are counted and make no alerts; so do
        those about what is under *maintenance*. *enrich* adds to a document what is known of what it is about."""
        self._normaliser = normaliser
        self._tenant = tenant
        self._stream = stream
        self._cap = cap
        self._suppressions = suppressions or {}
        self._stamp = stamp or {"trust": "local"}
        self._span = span
        self._exceptions = exceptions or {}
        self._enrich = enrich
        self._maintenance = tuple(maintenance)

    @property
    def fields(self) -> frozenset[str]:
        """The ECS fields that decide whether there is an alert and what its id is."""
        by = {name for one in self._suppressions.values() for name in one.by}
        return frozenset(by.union(*(one.where for one in self._maintenance)))

    def judge(
        self,
        findings: Sequence[Finding],
        dead: Sequence[DeadLetter],
        batch: Batch,
        state: StateView,
        fetch: Fetch,
        watermark: Timestamp,
    ) -> list[Alert]:
        """Return one alert for each finding without exception, those past the cap marked as not to be delivered.

        *fetch* gets whole records of evidence that *batch* does not hold, or not whole, in one call. What was counted
        for hours that *watermark* has long passed is forgotten.
        """
        _forget(state, watermark // HOUR - _HOURS_KEPT)
        records = batch.records
        lost = [loss_finding(notice, records.as_of) for notice in records.notices if notice.lost]
        worn = [expired_finding(one, records.as_of) for one in records.notices if one.action == MODEL_EXPIRED]
        findings = [one for one in findings if self._is_wanted(one, state)]
        everything = [*findings, *_once_a_partition(dead), *lost, *worn]
        at_hand = _at_hand(findings, dead, batch)
        wanted = {one.evidence[0] for one in everything if one.evidence}
        missing = wanted if records.projected else wanted - at_hand.keys()
        whole = dict(fetch(sorted(missing, key=str))) if missing else {}
        if not records.projected:
            whole |= at_hand
        alerts: list[Alert] = []
        for finding in everything:
            source, partial = self._source(finding, whole, at_hand, records.as_of)
            seen = source
            planned = [one for one in self._maintenance if self._may_fall_under(one, finding)]
            by_fields = planned or finding.detector.id in self._suppressions
            if by_fields and records.projected and finding.evidence and finding.evidence[0] in at_hand:
                seen, _ = self._source(finding, at_hand, at_hand, records.as_of)
            if under := next((one for one in planned if one.fits(seen)), None):
                self._withhold(finding, state, f"{MAINTENANCE}.{under.name}")
                continue
            alerts.extend(self._alerts(finding, self._id(finding, seen), source, partial, records, state))
        return alerts

    def _is_wanted(self, finding: Finding, state: StateView) -> bool:
        if self._span is not None and not self._span[0] <= finding.time < self._span[1]:
            return False
        until = self._exceptions.get(finding.detector.id)
        if until is None or finding.time >= until:
            return True
        self._withhold(finding, state)
        return False

    @staticmethod
    def _withhold(finding: Finding, state: StateView, *why: str) -> None:
        for name in (EXCEPTED, f"{EXCEPTED}.{finding.detector.id}", *why):
            state.count(name)

    @staticmethod
    def _may_fall_under(plan: Maintenance, finding: Finding) -> bool:
        return finding.detector.kind != "quality" and plan.covers(finding.detector.id, finding.time)

    def _alerts(
        self, finding: Finding, id: str, source: Mapping[str, Any], partial: bool, records: Records, state: StateView
    ) -> list[Alert]:
        counts = finding.deliver and finding.revision == "fired"
        deliver, storm = self._let_out(finding, id, state) if counts else (finding.deliver, None)
        body = self._build(finding, id, source, records.as_of, partial)
        old = finding.time < records.backfill
        if old:
            body["vedette"]["backfill"] = True
        about, again = finding.detector, old or records.again
        alerts = [Alert(id, about.id, about.title, about.level, finding.time, body, deliver, finding.revision, again)]
        if storm is not None:
            storm_id = alert_id(self._tenant, storm)
            body = self._build(storm, storm_id, {}, records.as_of, False)
            alerts.append(Alert(storm_id, STORM.id, STORM.title, STORM.level, storm.time, body, again=again))
        return alerts

    def _build(
        self, finding: Finding, id: str, source: Mapping[str, Any], as_of: Timestamp, partial: bool
    ) -> dict[str, Any]:
        body = document.build(
            finding, id, source, tenant=self._tenant, stream=self._stream, as_of=as_of, partial=partial
        )
        body["vedette"] |= self._stamp
        if self._enrich is not None:
            self._enrich(body, as_of)
        return body

    def _id(self, finding: Finding, source: Mapping[str, Any]) -> str:
        """Return the alert's id. *source* is what was evaluated: whether the rest can still be had must not matter."""
        suppression = self._suppressions.get(finding.detector.id)
        values = [str(document.value_at(source, name)) for name in suppression.by] if suppression else []
        return alert_id(self._tenant, finding, suppression, values)

    def _let_out(self, finding: Finding, id: str, state: StateView) -> tuple[bool, Finding | None]:
        """Count the alert in its rule's hour; past the cap it stays in, and the first to do so raises a storm.

        An alert that was let out once is let out again: whoever writes it knows it by its id.
        """
        if self._cap is None:
            return True, None
        hour = finding.time // HOUR
        key = f"{hour}/{finding.detector.id}"
        mine = f"{hour}/{id}"
        number = state.get(mine)
        if number is None:
            number = (state.get(key) or 0) + 1
            if number <= self._cap + 1:
                state.put(key, number)
                state.put(mine, number)
        if number <= self._cap:
            return True, None
        state.count("held_back")
        return False, _storm(finding, hour, self._cap) if number == self._cap + 1 else None

    def _source(
        self, finding: Finding, whole: Mapping[Reference, _Raw], at_hand: Mapping[Reference, _Raw], as_of: Timestamp
    ) -> tuple[dict[str, Any], bool]:
        """Return the full document of the finding's first evidence, else what is known of it (partial)."""
        reference = finding.evidence[0] if finding.evidence else None
        if reference is not None and reference in whole:
            return self._full(reference, whole[reference], as_of), False
        if reference is not None and reference in at_hand:
            return self._full(reference, at_hand[reference], as_of), True
        known = {name: value for name, value in finding.fields.items() if not name.startswith("vedette.")}
        if finding.detector.kind != "rule":  # a correlation's groups have names of the rule's own, not of columns
            known |= dict(finding.entity)
        return nest(known), reference is not None

    def _full(self, reference: Reference, raw: _Raw, as_of: Timestamp) -> dict[str, Any]:
        original = original_of(reference.format, raw)
        try:
            full = self._normaliser.document(reference.format, raw, as_of=as_of)
        except RecordError:
            full = {}
        if reference.format == DOCUMENT:
            return {**full, "event": {**(full.get("event") or {}), **({"original": original} if original else {})}}
        log = full.get("log") or {}
        offset = {"offset": reference.key} if isinstance(reference.key, int) else {}
        return {
            **full,
            "event": {**(full.get("event") or {}), "original": original},
            "log": {**log, **offset, "file": {**(log.get("file") or {}), "path": reference.path}},
        }


def _forget(state: StateView, oldest: int) -> None:
    """Forget what was counted for hours before *oldest*."""
    if oldest <= (state.get("") or 0):
        return
    for key in [key for key, _ in state.items() if key and int(key.partition("/")[0]) < oldest]:
        state.delete(key)
    state.put("", oldest)


def _entity(finding: Finding) -> str:
    return orjson.dumps(finding.entity).decode()


def _storm(finding: Finding, hour: int, cap: int) -> Finding:
    about = finding.detector
    sentence = (
        f"{about.title}: more than {cap} alerts in the hour from {to_text(hour * HOUR)}; the rest are stored and "
        f"not sent: vedette alerts list --rule {about.id}"
    )
    return Finding(
        detector=STORM,
        time=hour * HOUR,
        evidence=(),
        entity=(("rule.id", about.id),),
        window=(hour * HOUR, (hour + 1) * HOUR),
        explanation=Explanation(sentence, (Factor("alerts", f"> {cap}", f"<= {cap}"),)),
    )


def _once_a_partition(dead: Sequence[DeadLetter]) -> list[Finding]:
    first = {letter.reference.partition: letter for letter in reversed(dead)}
    return [quarantine_finding(letter) for letter in first.values()]


def _at_hand(findings: Sequence[Finding], dead: Sequence[DeadLetter], batch: Batch) -> dict[Reference, _Raw]:
    """Return the native records that need no second reading: hits on this batch's rows, and dead letters."""
    raws: dict[Reference, _Raw] = {letter.reference: letter.raw for letter in dead}
    for finding in findings:
        if finding.row is not None:
            chunk, place = batch.records.locate(int(batch.origin[finding.row]))
            raws[finding.evidence[0]] = chunk.raw[place]
    return raws


def nest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted *fields* as nested objects; a field that stands where an object must goes under `value` in it."""
    nested: dict[str, Any] = {}
    for name, value in sorted(fields.items()):
        *path, last = name.split(".")
        place = nested
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = place[part] = {"value": inner}
            place = inner
        place[last] = value
    return nested
