"""The daemon in one line: what `systemctl status` shows."""

from __future__ import annotations

from collections import Counter

from agent.store.numbers import Numbers
from agent.telemetry.metrics import Snapshot


def summary(snapshot: Snapshot, numbers: Numbers) -> str:
    """Return how the streams are, what they have read and found, and what waits."""
    states = Counter(one.status for one in snapshot.streams)
    streams = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    events, alerts = (
        sum(numbers.counters.get(one.id, {}).get(name, 0) for one in snapshot.streams)
        for name in ("received", "alerts")
    )
    waiting = sum(one.alerts for one in numbers.waiting.values())
    lag = sum(one.lag_events or 0 for one in snapshot.streams)
    parts = [f"revision {snapshot.revision}", f"streams: {streams}", f"{events:,} events, {alerts:,} alerts"]
    parts += [f"{waiting:,} to send"] if waiting else []
    parts += [f"{lag:,} events behind"] if lag else []
    parts += [f"{one.id}: {one.reason}" for one in snapshot.streams if one.reason]
    return "; ".join([*parts, *(f"sink {one.id} is down" for one in snapshot.sinks if not one.up)])
