"""The data path of one stream: fetch, evaluate, commit, acknowledge; and from the outbox to a sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import structlog

from agent.alerting import Judge
from agent.alerting.judge import OPERATOR, document_id
from agent.model import MODEL_EXPIRED, SECOND, Cursor, Document, Notice, Records, Timestamp
from agent.pipeline import Pipeline
from agent.ports import Sink, Source
from agent.state import State
from agent.store import Books, Commit, Reader, Store
from agent.telemetry.meters import Meters

log = structlog.get_logger()


@dataclass
class Stream:
    """One source and one pipeline; where it stands and what its operators know.

    *provenance* says in the audit log under what it runs.
    """

    id: str
    source: Source
    pipeline: Pipeline
    judge: Judge
    cursor: Cursor | None
    state: State
    provenance: Mapping[str, Any] = field(default_factory=dict)
    meters: Meters = field(default_factory=Meters)


def run_cycle(
    stream: Stream, store: Store, *, limit: int, sinks: Sequence[str] = (), spilled: Sequence[str] = ()
) -> Records:
    """Move at most *limit* records from the source into the store; return them. Alerts go to *sinks*, not to *spilled*.

    Until `commit`, a crash or a RetryableError leaves cursor, state and outbox as they were, so the next cycle repeats
    the work; alert ids derive from what was found, so a repeat adds nothing.
    """
    begin = perf_counter()
    records = stream.source.fetch(stream.cursor, limit)
    if len(records):
        stream.meters.stage(stream.id, "fetch", perf_counter() - begin)
        stream.meters.batch(stream.id, len(records))
    new = process(stream, store, records, sinks=sinks, spilled=spilled)
    if new:
        log.info("alerts", stream=stream.id, new=new, events=len(records))
    stream.cursor = records.cursor
    stream.source.ack(records.cursor)
    return records


def process(
    stream: Stream,
    store: Store,
    records: Records,
    *,
    sinks: Sequence[str],
    spilled: Sequence[str] = (),
    released: Sequence[str] = (),
) -> int:
    """Evaluate *records* and commit all that follows from them at once; return how many alerts are new."""
    begin = perf_counter()
    transaction = stream.state.transaction()
    found = stream.pipeline.evaluate(records, transaction)
    counted = transaction.view(OPERATOR)
    alerts = stream.judge.judge(found.findings, found.dead, found.batch, counted, stream.source.full, found.watermark)
    books = Books(len(records), found.scored, found.filtered, len(found.dead))
    if released:  # received once already: what is readable now moves from quarantined to scored
        books = replace(books, received=0, quarantined=len(found.dead) - len(records))
    still_dead = {letter.reference.identity for letter in found.dead}
    commit = Commit(
        stream=stream.id,
        cursor=records.cursor,
        as_of=records.as_of,
        watermark=found.watermark,
        books=books,
        changes=transaction.changes(),
        alerts=alerts,
        sinks=sinks,
        spilled=spilled,
        dead=found.dead,
        released=[one for one in released if one not in still_dead],
        counts={**found.counts, **records.counts},
        events=[("source-notice", _said(one)) for one in records.notices if one.action != MODEL_EXPIRED],
        provenance=stream.provenance,
    )
    said = records.chunks or records.notices or records.counts or alerts or commit.changes.deltas
    if not said and records.cursor == stream.cursor:
        return 0
    evaluated = perf_counter()
    new = store.commit(commit)
    transaction.apply()
    if len(records):
        stream.meters.stage(stream.id, "evaluate", evaluated - begin)
        stream.meters.stage(stream.id, "commit", perf_counter() - evaluated)
    return new


def drain(sink: Sink, store: Store, reader: Reader, meters: Meters, *, limit: int, now: Timestamp) -> int:
    """Offer waiting documents to *sink*; settle each by its own outcome; return how many were offered."""
    waiting = store.waiting(reader, sink.id, limit, now)
    if waiting:
        documents = [
            Document(
                document_id(item.id, item.revision) if item.revision else item.id, item.body, item.repeat, item.dataset
            )
            for item in waiting
        ]
        begin = perf_counter()
        answers = list(zip(waiting, sink.write(documents), strict=True))
        taken = perf_counter() - begin
        store.settle(sink.id, answers, now)
        for item, outcome in answers:
            if outcome.state == "delivered" and item.read:
                meters.delivered(sink.id, max(0, now - item.read) / SECOND + taken)
    return len(waiting)


def _said(notice: Notice) -> Mapping[str, Any]:
    return {"notice": notice.action, "place": notice.place, "text": notice.text, "lost": notice.lost}
