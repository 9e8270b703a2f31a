"""Figures of the store for metrics, read in one short transaction.

What it costs grows with the documents that wait in the outbox, never with the alerts and leaves that are stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.model import Timestamp
from agent.store.reader import Reader
from agent.store.sqlite import DATABASE

_CANARY = "vedette.canary"
_CANARIES = 500
"""How many of the newest canary alerts are looked at: enough for the last one of each stream."""

_ALERTS = "SELECT count(*), min(number) FROM outbox WHERE sink = ? AND refused IS NULL AND alert IS NOT NULL"
_AUDIT = "SELECT count(*) FROM outbox WHERE sink = ? AND refused IS NULL AND alert IS NULL"
_STORED = "SELECT created FROM alert WHERE number = (SELECT alert FROM outbox WHERE number = ?)"
_STATE = """
    SELECT stream, sum(bytes) FROM (
        SELECT stream, length(block) AS bytes FROM state_part
        UNION ALL SELECT stream, length(block) FROM state_delta
    ) GROUP BY stream
"""
_NEWEST = """
    SELECT stream, max(created) FROM (
        SELECT stream, created FROM alert WHERE rule_id = ? ORDER BY time DESC LIMIT ?
    ) GROUP BY stream
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a sink: alerts and copies of the audit log, and when the oldest alert was stored."""

    alerts: int
    audit: int
    oldest: Timestamp | None


@dataclass(frozen=True)
class Numbers:
    """What the store holds at one moment.

    *counters* are by scope (a stream, a sink) and name; *streams* have the time of their last batch and their
    watermark; *canaries* the time of each stream's last canary alert. The first *signed* of all *leaves* are under the
    last *checkpoint*.
    """

    counters: Mapping[str, Mapping[str, int]]
    streams: Mapping[str, tuple[Timestamp, Timestamp]]
    waiting: Mapping[str, Waiting]
    state_bytes: Mapping[str, int]
    canaries: Mapping[str, Timestamp]
    leaves: int
    signed: int
    checkpoint: Timestamp | None
    database_bytes: int
    wal_bytes: int
    free_bytes: int


def read(folder: Path, sinks: Iterable[str]) -> Numbers:
    """Return the figures of the store in *folder*, and what waits for *sinks*; ConfigError if there is none."""
    with Reader(folder) as reader:
        reader.rows("BEGIN")
        leaves = reader.rows("SELECT coalesce(max(number) + 1, 0) FROM leaf")[0][0]
        signed = reader.rows("SELECT size, time FROM checkpoint ORDER BY size DESC LIMIT 1")
        size, time = signed[0] if signed else (0, None)
        disk = os.statvfs(folder)
        return Numbers(
            counters=reader.counters(),
            streams={id: (as_of, mark) for id, as_of, mark in reader.rows("SELECT id, as_of, watermark FROM stream")},
            waiting={sink: _waiting(reader, sink) for sink in sinks},
            state_bytes=dict(reader.rows(_STATE)),
            canaries=dict(reader.rows(_NEWEST, _CANARY, _CANARIES)),
            leaves=leaves,
            signed=size,
            checkpoint=time,
            database_bytes=_size(folder / DATABASE),
            wal_bytes=_size(folder / f"{DATABASE}-wal"),
            free_bytes=disk.f_bavail * disk.f_frsize,
        )


def _waiting(reader: Reader, sink: str) -> Waiting:
    alerts, first = reader.rows(_ALERTS, sink)[0]
    stored = reader.rows(_STORED, first)
    return Waiting(alerts, reader.rows(_AUDIT, sink)[0][0], stored[0][0] if stored else None)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # there is no write-ahead log before the first write
        return 0
