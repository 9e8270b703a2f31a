"""The whole evaluation, rules, baselines and models together: the same alert ids for any cut, shuffle or repeat.

*set* operators: every cut and every order within the allowed lateness. *sequence* operators: every cut, each partition
in its own order. Several partitions, broken lines and an event dated 9999 are among the records.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import plugins
from agent.alerting import Judge
from agent.alerting.judge import OPERATOR
from agent.model import SECOND, Chunk, Records
from agent.pipeline import Pipeline
from agent.ports import Detector
from agent.state import State, StoredDelta
from tests import models

NOW = 1_767_400_000 * SECOND
HOUR = 3600
MONTH = 30 * 24 * HOUR * SECOND
Event = tuple[str, int, bytes]
"""Partition, key, record."""

RULE = """
title: Login of admin
id: 0f3c7f8a-6f57-4bb1-9a37-0a1f5f0f4d11
level: low
logsource: {category: dns}
detection: {selection: {dns.question.name|startswith: adm}, keywords: [broken], condition: selection or keywords}
"""


@cache
def rules(folder: str) -> Detector:
    path = Path(folder) / "rule.yml"
    path.write_text(RULE)
    return plugins.detector("sigma")("rules", {"path": str(path)}, None)


def detectors(folder: Path, lateness: str, order: str) -> list[Detector]:
    if order == "sequence":
        options = {
            "title": "Count",
            "entity": ["user.name"],
            "bucket": "1h",
            "lateness": lateness,
            "min_history": 2,
            "min_count": 2,
        }
        return [plugins.detector("hour-of-week")("counts", options, None)]
    options = {
        "title": "New",
        "entity": ["user.name"],
        "value": ["source.ip"],
        "bucket": "1h",
        "history": "2d",
        "lateness": lateness,
        "min_history": 1,
    }
    trained = [models.artifact(models.ROWS), models.artifact(models.WINDOWS, lateness=lateness)]
    judges = [models.detector(files, share=0.5) for files in trained]
    return [rules(str(folder)), plugins.detector("first-seen")("seen", options, None), *judges]


@st.composite
def days(draw: st.DrawFn) -> list[Event]:
    """Return a few hours of logins in three partitions, each in its own order, some repeated, some broken."""
    keys = dict.fromkeys("abc", 0)
    events: list[Event] = []
    second = 0
    for _ in range(draw(st.integers(3, 40))):
        second += draw(st.sampled_from([0, 1, 600, HOUR, 3 * HOUR]))
        partition = draw(st.sampled_from("abc"))
        user, address = draw(st.sampled_from(["adm", "kim"])), draw(st.integers(1, 3))
        raw = draw(
            st.sampled_from(
                [
                    *[login(second, user, address)] * 8,
                    b'{"broken',
                    login(None, user, address),
                ]
            )
        )
        events.append((partition, keys[partition], raw))
        keys[partition] += 1
    return events


def login(second: int | None, user: str, address: int) -> bytes:
    when = "9999-12-31T23:59:59Z" if second is None else f"2026-01-{1 + second // 86400:02d}T{clock(second)}Z"
    return orjson.dumps(
        {
            "@timestamp": when,
            "ecs": {"version": "8.0.0"},
            "event": {"category": ["authentication"], "outcome": "success"},
            "user": {"name": user},
            "dns": {"question": {"name": f"{user}.example"}},
            "source": {"ip": f"192.0.2.{address}"},
        }
    )


def clock(second: int) -> str:
    return f"{second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


def fetches(events: Sequence[Event], cuts: Sequence[int]) -> Iterator[Records]:
    """Cut *events* into fetches; a partition is unread as long as later fetches hold more of it.

    A month of silence follows, in which every window closes.
    """
    edges = sorted({0, len(events), *(cut % (len(events) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        rest = frozenset(partition for partition, _, _ in events[end:])
        chunks = [
            Chunk(partition, f"/{partition}", "json", (key,), (raw,)) for partition, key, raw in events[start:end]
        ]
        yield Records("s", tuple(chunks), {"at": end}, NOW, rest)
    yield Records("s", (), {"at": len(events)}, NOW + MONTH, frozenset())


def ids(
    folder: Path, events: Sequence[Event], cuts: Sequence[int], *, lateness: str, order: str, crash: int = -1
) -> set[str]:
    """Return the ids of all alerts; batch number *crash* is evaluated, lost and evaluated again."""
    pipeline = Pipeline(detectors(folder, lateness, order))
    judge = Judge(pipeline.normaliser, tenant="t", stream="s", cap=None)
    deltas: list[StoredDelta] = []
    found: set[str] = set()
    for number, records in enumerate(fetches(events, cuts)):
        for lost in (True, False) if number == crash else (False,):
            transaction = State(deltas=deltas).transaction()
            evaluation = pipeline.evaluate(records, transaction)
            view, mark = transaction.view(OPERATOR), evaluation.watermark
            alerts = judge.judge(evaluation.findings, evaluation.dead, evaluation.batch, view, lambda _: {}, mark)
            if not lost:
                found |= {alert.id for alert in alerts}
                deltas += transaction.changes().deltas
                deltas = [StoredDelta(one.operator, place, one.block) for place, one in enumerate(deltas, 1)]
    return found


_settings = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_settings
@given(days(), st.lists(st.integers(0, 1000), max_size=6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_set_operators_give_the_same_ids_for_every_cut_and_shuffle(
    tmp_path: Path, events: list[Event], cuts: list[int], crash: int, order: random.Random
) -> None:
    """Rules, first-seen and models: one batch in order and any cut of any shuffle with a crash in it are the same."""
    expected = ids(tmp_path, events, [], lateness="10d", order="set")
    shuffled = order.sample(events, len(events))
    assert ids(tmp_path, shuffled, cuts, lateness="10d", order="set", crash=crash) == expected


@_settings
@given(days(), st.lists(st.integers(0, 1000), max_size=6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_sequence_operators_give_the_same_ids_for_every_cut(
    tmp_path: Path, events: list[Event], cuts: list[int], crash: int, order: random.Random
) -> None:
    """Hour-of-week: any cut, partitions read in any interleaving that keeps each one's own order."""
    expected = ids(tmp_path, events, [], lateness="5m", order="sequence")
    assert ids(tmp_path, interleaved(events, order), cuts, lateness="5m", order="sequence", crash=crash) == expected


def interleaved(events: Sequence[Event], order: random.Random) -> list[Event]:
    queues = {name: [event for event in events if event[0] == name] for name in "abc"}
    picks = order.sample([event[0] for event in events], len(events))
    return [queues[name].pop(0) for name in picks]


def test_there_is_something_to_compare(tmp_path: Path) -> None:
    """Rule, first-seen, models and hour-of-week each find something in logs of the kind the properties draw."""
    quiet = [("a", number, login(number * HOUR, "adm", 1)) for number in range(30)]
    burst = [("a", 30 + number, login(30 * HOUR + number, "adm", 2)) for number in range(30)]
    found = {order: ids(tmp_path, quiet + burst, [7], lateness="5m", order=order) for order in ("set", "sequence")}
    assert len(found["set"]) > 61 + 60
    assert len(found["sequence"]) >= 1


def test_the_check_sees_an_operator_that_depends_on_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control that must fail: with next to no lateness allowed, a shuffle changes what first-seen finds."""
    events = [("a", number, login(number * HOUR, "kim", 1 + number % 3)) for number in range(12)]
    straight: Any = ids(tmp_path, events, [], lateness="1s", order="set")
    shuffles = (
        ids(tmp_path, random.Random(seed).sample(events, 12), [], lateness="1s", order="set") for seed in range(20)
    )
    assert any(found != straight for found in shuffles)
