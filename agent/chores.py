"""Work at intervals beside the streams: pruning, expiry, the status line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

log = structlog.get_logger()
STEP_S = 5.0
"""A clock that moves so much more or less than the time that has passed has been set."""


@dataclass(frozen=True)
class _Chore:
    work: Callable[[], object]
    seconds: float


class Chores:
    """Does each piece of work at once and then every so many seconds.

    The scheduler goes by the wall clock, so `look` must be called often: when the clock has been set, all intervals
    begin anew. Else a clock set back by an hour would stop every chore for that hour.
    """

    def __init__(self) -> None:
        self._scheduler = BackgroundScheduler(
            timezone="UTC", job_defaults={"coalesce": True, "misfire_grace_time": None}
        )
        self._chores: list[_Chore] = []
        self._offset = _offset()

    def every(self, seconds: float, work: Callable[[], object]) -> None:
        self._chores.append(_Chore(work, seconds))

    def start(self) -> None:
        self._plan()
        self._scheduler.start()

    def look(self) -> None:
        """Begin all intervals anew if the clock was set since the last call."""
        step = _offset() - self._offset
        if abs(step) < STEP_S:
            return
        self._offset += step
        log.warning("the clock was set", seconds=round(step, 1))
        self._plan()

    def close(self) -> None:
        self._scheduler.shutdown()

    def _plan(self) -> None:
        self._scheduler.remove_all_jobs()
        for one in self._chores:
            self._scheduler.add_job(one.work, "interval", seconds=one.seconds, next_run_time=datetime.now(UTC))


def _offset() -> float:
    return time.time() - time.monotonic()
