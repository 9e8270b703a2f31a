"""Rules over events without a daemon: its own pipeline and judge, with a state in memory and no store.

Nothing of the production's state is read or written, so a run may be repeated at will.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import plugins
from agent.alerting import Judge
from agent.errors import ConfigError, RetryableError
from agent.model import Alert, Records, Timestamp
from agent.pipeline import Evaluation, Pipeline
from agent.ports import Detector, Source
from agent.state import State
from rules.detector import SigmaDetector, place
from rules.sigma.parse import Collection, load

_LIMIT = 8_192
"""Records a fetch: enough rows a kind for columns to pay, few enough to keep memory low."""
_IDLE_S = 0.2
PATIENCE = 8
"""Failures in a row after which a source is given up; the run may be repeated."""
Span = tuple[Timestamp, Timestamp]
ALWAYS: Span = (-(2**62), 2**62)


@dataclass(frozen=True)
class Step:
    """What one fetch came to. *late*: events too late for what counts them."""

    records: Records
    evaluation: Evaluation
    alerts: Sequence[Alert]
    late: int


class Runner:
    """One pipeline with its state: fetches in, alerts out. With a *span* of event time, only of what happened in it."""

    def __init__(self, *detectors: Detector, span: Span | None = None) -> None:
        self.pipeline = Pipeline(detectors)
        self._judge = Judge(self.pipeline.normaliser, tenant="default", stream="scan", cap=None, span=span)
        self._state = State()

    def step(self, records: Records, source: Source) -> Step:
        """Evaluate one fetch of *source*."""
        transaction = self._state.transaction()
        found = self.pipeline.evaluate(records, transaction)
        view = transaction.view("scan")
        alerts = self._judge.judge(found.findings, (), found.batch, view, source.full, found.watermark)
        transaction.changes()
        transaction.apply()
        return Step(records, found, alerts, transaction.counted("late"))


def fetches(source: Source, fields: frozenset[str] = frozenset()) -> Iterator[Records]:
    """Open *source* and yield what it gives until it holds no more; then close it.

    What it cannot give at the moment it is asked for again, a few times; then that is the caller's RetryableError.
    """
    source.open(fields)
    try:
        cursor, failures = None, 0
        while True:
            try:
                records = source.fetch(cursor, _LIMIT)
            except RetryableError as error:
                failures += 1
                if failures >= PATIENCE:
                    raise
                from agent.store.sqlite import backoff

                time.sleep(backoff(failures, error))
                continue
            cursor, failures = records.cursor, 0
            yield records
            if not len(records):
                if not records.unread:
                    return
                time.sleep(_IDLE_S)
    finally:
        source.close()


def log_source(paths: Sequence[Path]) -> Source:
    """Return the source that reads log files, folders or archives once; ConfigError if one is not there."""
    if missing := [str(path) for path in paths if not path.exists()]:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")
    build = plugins.connector("files").source
    assert build is not None
    return build("scan", {"paths": [str(path) for path in paths]})


def loaded(path: str, pipelines: Sequence[Path] | None = None) -> tuple[SigmaDetector, Collection]:
    """Return the detector for the rules at *path*, as `build` makes it, and the collection that it runs."""
    collection = load(place(path), cache(), pipelines=pipelines or ())
    return SigmaDetector("rules", collection, {"path": path, "pipeline": list(map(str, pipelines or ()))}), collection


def cache() -> Path:
    """Return the user's cache folder: compiled rules are kept there by content."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vedette"
