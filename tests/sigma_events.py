"""Batches of events written as plain dicts of columns, and rules written as short YAML, for tests of the Sigma room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent.model import Batch, Chunk, Column, Dictionary, Kind, Records
from rules.sigma.engine import Engine
from rules.sigma.parse import Collection, compile_files

WINDOWS = Kind(
    "windows",
    (("event.code", "1"), ("winlog.channel", "Microsoft-Windows-Sysmon/Operational")),
    {
        "EventID": "event.code",
        "Channel": "winlog.channel",
        "Image": "process.executable",
        "CommandLine": "process.command_line",
        "ParentImage": "process.parent.executable",
        "ProcessId": "process.pid",
    },
    "winlog.event_data.",
)


def batch(
    events: Sequence[Mapping[str, Any]],
    kinds: Kind | Sequence[Kind] = WINDOWS,
    dictionaries: dict[str, Dictionary] | None = None,
) -> Batch:
    """Return *events* (column -> value, None for absent) as a batch; *dictionaries* are shared between batches."""
    of_row = [kinds] * len(events) if isinstance(kinds, Kind) else list(kinds)
    distinct = list(dict.fromkeys(of_row))
    shared = {} if dictionaries is None else dictionaries
    rows = len(events)
    columns = {}
    for name in sorted({name for event in events for name in event}):
        dictionary = shared.setdefault(name, Dictionary())
        values = [event.get(name) for event in events]
        codes = [-1 if value is None else dictionary.encode([value])[0] for value in values]
        columns[name] = Column(np.array(codes, np.int32), dictionary)
    records = Records("test", (Chunk("part", "part.log", "json", list(range(rows)), [b"{}"] * rows),), {}, 0)
    return Batch(
        records=records,
        origin=np.arange(rows, dtype=np.int32),
        kinds=tuple(distinct),
        kind=np.array([distinct.index(kind) for kind in of_row], np.int32),
        time=np.arange(rows, dtype=np.int64),
        columns=columns,
        high=np.zeros(rows, np.int64),
        future=np.zeros(rows, bool),
    )


def rule_text(detection: str, logsource: str = "{product: windows, category: process_creation}", **more: str) -> str:
    """Return a rule; *detection* is YAML, indented by the caller or on one line."""
    extra = "".join(f"{name}: {value}\n" for name, value in more.items())
    body = detection if "\n" in detection else f"  {detection}\n"
    return f"title: Test rule\nlogsource: {logsource}\n{extra}detection:\n{body}\n"


def compiled(*texts: str) -> Collection:
    """Return the rules of *texts*, each a file ``N.yml``."""
    return compile_files([(f"{number}.yml", text.encode()) for number, text in enumerate(texts)])


def engine(*texts: str) -> Engine:
    collection = compiled(*texts)
    assert not collection.refused, collection.refused
    return Engine(collection.rules)


def matching_rows(
    detection: str, events: Sequence[Mapping[str, Any]], kinds: Kind | Sequence[Kind] = WINDOWS
) -> list[int]:
    """Return the rows of *events* that a rule with *detection* matches."""
    return [row for row, _ in engine(rule_text(detection)).match(batch(events, kinds))]
