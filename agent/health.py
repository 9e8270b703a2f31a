"""Whether the daemon is alive and ready, and who is told: HTTP, and the service manager with its watchdog."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from agent.telemetry import notify
from agent.telemetry.server import HealthServer

BEAT_S = 60.0
"""A main thread that is silent for longer hangs, unless it said that it needs longer."""


class Health:
    """Serves `/livez`, `/readyz` and `/metrics` at *listen* (None: nowhere) and feeds the service manager's watchdog.

    *troubles* says why the daemon is not ready. Alive means that the main thread beats: a stream that cannot read is
    no reason to be killed.
    """

    def __init__(
        self, listen: str | None, *, troubles: Callable[[], Sequence[str]], metrics: Callable[[], bytes]
    ) -> None:
        self._until = time.monotonic() + BEAT_S
        self._started = False
        self._troubles = troubles
        self._end = threading.Event()
        self._server: HealthServer | None = None
        if listen:
            host, _, port = listen.rpartition(":")
            self._server = HealthServer(host.strip("[]"), int(port), live=self.live, ready=self.ready, metrics=metrics)
        if (interval := notify.watchdog_interval()) is not None:
            threading.Thread(target=self._watch, args=(interval,), name="watchdog", daemon=True).start()

    def beat(self, seconds: float = BEAT_S) -> None:
        """Say that the main thread is at work, and will be heard of within *seconds*."""
        self._until = time.monotonic() + seconds

    def live(self) -> list[str]:
        silent = time.monotonic() - self._until
        return [f"the main thread should have been heard of {silent:.0f} seconds ago"] if silent > 0 else []

    def ready(self) -> list[str]:
        return [*self.live(), *(self._troubles() if self._started else ["starting"])]

    def started(self, status: str) -> None:
        self._started = True
        notify.ready(status)

    def close(self) -> None:
        """Tell that the end has come; safe twice."""
        self._end.set()
        if self._server is not None:
            self._server.close()

    def _watch(self, pause: float) -> None:
        while not self._end.wait(pause):
            if not self.live():
                notify.alive()
