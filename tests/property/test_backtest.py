"""A backtest of a time counts what the daemon would have found in it, though it reads not all that came before."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli.options import instant
from agent.model import SECOND
from agent.normalise.clock import to_datetime
from agent.pipeline import Pipeline
from agent.testing import MemorySource
from rules import running
from rules.comparison import backtest, warm_from
from rules.detector import SigmaDetector
from rules.running import ALWAYS, Runner, Span, fetches
from rules.sigma.parse import Collection, compile_files
from tests.rule_work import RULE_ID, process, rule

START = instant("2024-05-05T09:50")
RULES = "---\n".join(
    rule(f"{{sel: {{CommandLine: {name}}}, condition: sel}}", RULE_ID.replace("1", str(number)), name=name)
    for number, name in enumerate(("ra", "rb"), 3)
)
COUNT: dict[str, Any] = {"type": "event_count", "rules": ["ra"], "timespan": "10m", "condition": {"gte": 2}}
SETS: dict[str, list[dict[str, Any]]] = {
    "slides": [COUNT],
    "slides over hours": [{**COUNT, "timespan": "1h"}],
    "values": [{**COUNT, "type": "value_count", "condition": {"field": "User", "gte": 3}}],
    "tumbles": [{**COUNT, "condition": {"lt": 3}}],
    "in order": [{"type": "temporal_ordered", "rules": ["ra", "rb"], "timespan": "7m"}],
    "not both": [{"type": "temporal", "condition": "ra and not rb", "timespan": "20m"}],
    "a chain": [COUNT, {"type": "temporal_ordered", "rules": ["c0", "rb"], "timespan": "15m"}],
    "a chain whose inner one is longer": [{**COUNT, "timespan": "1h"}, {**COUNT, "rules": ["c0"], "timespan": "7m"}],
    "a chain that is heard": [
        {**COUNT, "timespan": "1h"}, {**COUNT, "rules": ["c0"], "timespan": "7m", "generate": True}
    ],
    "a chain of three": [COUNT, {**COUNT, "rules": ["c0"]}, {**COUNT, "rules": ["c1"], "condition": {"gte": 2}}],
    "a chain that tumbles inside": [
        {**COUNT, "condition": {"lt": 3}}, {**COUNT, "rules": ["c0"], "timespan": "25m", "condition": {"gte": 2}}
    ],
    "a chain that tumbles outside": [COUNT, {**COUNT, "rules": ["c0"], "timespan": "1h", "condition": {"lt": 4}}],
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def whole_records() -> Iterator[None]:
    """What a SIEM would be asked for takes longest to work out, and a list in memory gives all that it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "projection", lambda _: frozenset())
        yield


@cache
def collected(name: str) -> tuple[SigmaDetector, Collection]:
    correlations = [
        {"title": f"c{number}", "name": f"c{number}", "correlation": {"group-by": ["Hostname"], **said}}
        for number, said in enumerate(SETS[name])
    ]
    text = "---\n".join([RULES, *map(yaml.safe_dump, correlations)])
    collection = compile_files([("rules.yml", text.encode())])
    assert not collection.refused, collection.refused
    return SigmaDetector("rules", collection, {}), collection


Row = tuple[int, str, str, str]
"""Second, command, host and user of an event."""
MINUTES = 100
Seconds = st.one_of(st.integers(0, 60 * MINUTES), st.sampled_from([600 * number - 1 for number in range(1, 10)]))
Rows = st.tuples(Seconds, st.sampled_from(["ra", "ra", "rb"]), st.sampled_from("xy"), st.sampled_from("uvw"))
Late = st.integers(0, 240)
"""Seconds that an event comes after its time: less than what tumbles lets pass."""


def source(rows: Sequence[Row], span: Span = ALWAYS) -> MemorySource:
    """Return what gives those of *rows* that happened in *span*, as a SIEM that is asked for it."""
    found = MemorySource()
    for second, command, host, user in rows:
        time = START + second * SECOND
        if span[0] <= time < span[1]:
            clock = f"{to_datetime(time):%Y-%m-%d %H:%M:%S}"
            found.append(json.dumps(process(command, Hostname=host, User=user, EventTime=clock)).encode())
    return found


def raised(name: str, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Return rule and time of each alert that is raised when all *rows* are read, as a daemon reads them."""
    all_time, runner = source(rows), Runner(collected(name)[0])
    alerts = [one for records in fetches(all_time) for one in runner.step(records, all_time).alerts]
    return [(one.rule_id, one.time) for one in alerts if one.revision == "fired"]


def counted(name: str, rows: Sequence[Row], begin: int, end: int) -> Counter[str]:
    """Return what a backtest of [begin, end) counts that reads no more than it must."""
    detector, collection = collected(name)
    asked = warm_from(collection.correlations, begin), end
    return Counter(backtest(detector, source(rows, asked), (begin, end)).counts)


def within(alerts: Iterable[tuple[str, int]], begin: int, end: int) -> Counter[str]:
    return Counter(rule for rule, time in alerts if begin <= time < end)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(Rows, Late), min_size=20, max_size=80), begins=st.lists(Seconds, min_size=4, max_size=4))
def test_a_time_alone_and_all_time_give_the_same_numbers(
    name: str, rows: list[tuple[Row, int]], begins: list[int]
) -> None:
    """Of events that come out of order, as far as that is allowed."""
    events = [event for event, late in sorted(rows, key=lambda row: row[0][0] + row[1])]
    alerts = raised(name, events)
    for second in begins:
        span = START + second * SECOND, START + (second + 1800) * SECOND
        assert counted(name, events, *span) == within(alerts, *span)


@pytest.mark.parametrize("name", SETS)
def test_the_number_of_a_time_is_what_a_daemon_adds_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many events that the daemon reads a few at a time, and any quarter of an hour."""
    draw = random.Random(2)
    rows = sorted(
        (draw.randrange(60 * MINUTES), draw.choice(["ra", "ra", "rb"]), draw.choice("xy"), draw.choice("uvw"))
        for _ in range(60)
    )
    monkeypatch.setattr(running, "_LIMIT", 7)
    alerts = raised(name, rows)
    assert alerts
    for minute in range(20, MINUTES, 3):
        span = START + minute * 60 * SECOND, START + (minute + 15) * 60 * SECOND
        assert counted(name, rows, *span) == within(alerts, *span)
