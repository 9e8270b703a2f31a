"""Evaluating again what a stream's upstream still holds: an index, a span of event time, or what came too late.

A replay is a stream of its own with a fresh state; it reads each record under the identity that it has in the original
stream, so it finds that stream's alerts again and adds only what is missing. Detectors that learn know only what the
replay itself reads: its warm-up.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from agent.assemble import AdmittedPack, build_enrichment, build_judge, build_stream, stamp
from agent.config import Accepted
from agent.errors import RetryableError, TrustError, VedetteError
from agent.model import SECOND, Timestamp
from agent.ports import Replayable
from agent.state import State
from agent.store import Reader, Store
from agent.store.sqlite import backoff, clock
from agent.stream import Stream, run_cycle
from agent.workers import last_pack

log = structlog.get_logger()
IDLE_S = 0.2
PATIENCE = 8
"""Failures in a row after which a replay gives up; it may be run again."""
FOREVER = 2**62


@dataclass(frozen=True)
class Span:
    """What to evaluate again: event times in [start, end), in *place* (an index; None: wherever the stream reads)."""

    start: Timestamp | None = None
    end: Timestamp | None = None
    place: str | None = None


@dataclass
class Replay:
    """One run over *spans*. The numbers grow while it runs; *error* is set if it ended early."""

    stream: str
    spans: Sequence[Span]
    warm_up: int = 0
    """Seconds before each span that are read to learn from."""
    read: int = 0
    new: int = 0
    spans_done: int = 0
    done: bool = False
    error: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, accepted: Accepted, store: Store) -> None:
        """Work through all spans; never raises, see *error*."""
        try:
            for span in self.spans:
                self._run(span, accepted, store)
                self.spans_done += 1
        except VedetteError as error:
            self.error = str(error)
        except Exception as error:
            log.exception("replay failed", stream=self.stream)
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.done = True

    def stop(self, reason: str) -> None:
        """End it before its time."""
        if not self.done:
            self.error = reason
            self.stopped.set()

    def report(self) -> dict[str, Any]:
        """Return how far it is, as JSON-able data."""
        return {"stream": self.stream, "spans": len(self.spans), "spans_done": self.spans_done, "read": self.read,
                "new": self.new, "done": self.done, "failure": self.error}  # fmt: skip

    def _run(self, span: Span, accepted: Accepted, store: Store) -> None:
        stream = self._make(span, accepted, store)
        store.forget(stream.id)
        stream.source.open(stream.pipeline.projection(stream.judge.fields))
        section = accepted.configuration.streams[self.stream]
        before, failures = _alerts(store, stream.id), 0
        try:
            while not self.stopped.is_set():
                try:
                    records = run_cycle(stream, store, limit=section.batch, sinks=section.sinks)
                except RetryableError as error:
                    failures += 1
                    if failures >= PATIENCE:
                        raise
                    self.stopped.wait(backoff(failures, error))
                    continue
                failures = 0
                self.read += len(records)
                if not len(records):
                    if not records.unread:
                        break
                    self.stopped.wait(IDLE_S)
        finally:
            stream.source.close()
            store.forget(stream.id)
            self.new += _alerts(store, stream.id) - before

    def _make(self, span: Span, accepted: Accepted, store: Store) -> Stream:
        built = build_stream(accepted, self.stream, store.folder / "cache", clock())
        stream = built.stream
        for one in built.packs.values():
            self._must_be_accepted(one, store)
        if not isinstance(stream.source, Replayable):
            raise VedetteError(f"source {stream.source.id} cannot be asked again; 'vedette scan' evaluates files anew")
        begin = None if span.start is None else span.start - self.warm_up * SECOND
        cursor, _ = store.load(self.stream)
        source = stream.source.replay(cursor, place=span.place, start=begin, end=span.end)
        bounds = (-FOREVER if span.start is None else span.start, FOREVER if span.end is None else span.end)
        judge = build_judge(
            accepted.configuration,
            self.stream,
            stream.pipeline,
            stamp=stamp(accepted),
            span=bounds,
            enrich=build_enrichment(accepted),
        )
        return Stream(f"{self.stream}/replay", source, stream.pipeline, judge, None, State(), stream.provenance)

    @staticmethod
    def _must_be_accepted(lies: AdmittedPack, store: Store) -> None:
        """TrustError unless the daemon accepted the pack as it lies there: what it has not seen raises no alerts."""
        with Reader(store.folder) as reader:
            last = last_pack(reader, lies.pack.name)
        if (last.get("version"), last.get("digest")) != (lies.pack.version, lies.pack.digest):
            raise TrustError(
                f"pack {lies.pack.name}: version {lies.pack.version} lies there, accepted is {last.get('version')}:"
                " let it be taken first ('vedette config apply'), or put the accepted one back"
            )


def _alerts(store: Store, stream: str) -> int:
    with Reader(store.folder) as reader:
        return reader.counters(stream).get(stream, {}).get("alerts", 0)
