"""What the hot path measures of itself: histograms and a few counts since the start, safe to fill from any thread."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Stage: TypeAlias = Literal["fetch", "evaluate", "commit"]
Outcome: TypeAlias = Literal["accepted", "refused"]
Labels: TypeAlias = tuple[str, ...]

STAGE = "vedette_batch_stage_seconds"
BATCH = "vedette_batch_events"
DELIVERY = "vedette_sink_delivery_seconds"
BOUNDS: Mapping[str, tuple[float, ...]] = {
    STAGE: (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    BATCH: (1, 10, 100, 500, 1000, 2000, 4000, 8192, 16_384, 65_536),
    DELIVERY: (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600),
}
"""Upper bounds of each histogram's buckets; one without a bound follows."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram at one moment: how many values each bucket got, the one without a bound last, and their sum."""

    counts: tuple[int, ...]
    total: float


class Meters:
    """Filled by the streams' and the sinks' threads, read by whoever renders metrics. A value costs about 1 µs.

    Label sets are as many as streams, stages and sinks, so nothing here grows with what is read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], list[int]] = {}
        self._sums: dict[tuple[str, Labels], float] = defaultdict(float)
        self._outcomes: Counter[Outcome] = Counter()

    def stage(self, stream: str, stage: Stage, seconds: float) -> None:
        """Note what a stage of one batch has cost."""
        self._observe(STAGE, (stream, stage), seconds)

    def batch(self, stream: str, events: int) -> None:
        """Note how large a batch was."""
        self._observe(BATCH, (stream,), events)

    def delivered(self, sink: str, seconds: float) -> None:
        """Note how long after its events were read a document was taken by *sink*."""
        self._observe(DELIVERY, (sink,), seconds)

    def configuration(self, outcome: Outcome) -> None:
        """Note that a configuration was accepted or refused."""
        with self._lock:
            self._outcomes[outcome] += 1

    def configurations(self) -> dict[Outcome, int]:
        """Return how many were accepted and refused."""
        with self._lock:
            return {"accepted": self._outcomes["accepted"], "refused": self._outcomes["refused"]}

    def distributions(self, name: str) -> dict[Labels, Distribution]:
        """Return the histogram *name* by its labels."""
        with self._lock:
            return {
                key[1]: Distribution(tuple(counts), self._sums[key])
                for key, counts in self._counts.items()
                if key[0] == name
            }

    def _observe(self, name: str, labels: Labels, value: float) -> None:
        bounds, key = BOUNDS[name], (name, labels)
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = [0] * (len(bounds) + 1)
            counts[bisect_left(bounds, value)] += 1
            self._sums[key] += value
