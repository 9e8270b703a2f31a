"""Maintenance: planned times in which some events raise no alerts, by event time, counted, and never everything."""

from __future__ import annotations

from collections import Counter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.alerting.maintenance import Maintenance, spans
from agent.config.load import parse
from agent.errors import ConfigError
from agent.model import NO_TIME
from agent.normalise.clock import parse as instant
from tests.unit.test_exceptions import BARE, PATH, judged
from tests.unit.test_pipeline import event, first_second, records

HOUR, DAY = 60, 24 * 60
END = instant("2027-01-01T00:00:00Z")


def plan(*weekly: str, where: dict[str, list[str]] | None = None, zone: str = "UTC", **more: Any) -> Maintenance:
    wanted = {name: frozenset(values) for name, values in (where or {}).items()}
    usual = {"since": NO_TIME, "until": END, "rules": frozenset()}
    return Maintenance("m", where=wanted, weekly=spans(weekly), zone=ZoneInfo(zone), **{**usual, **more})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mon 00:00-01:30", [(0, 90)]),
        ("Sat 22:00-06:00", [(5 * DAY + 22 * HOUR, 6 * DAY + 6 * HOUR)]),
        ("Sun 22:00-06:00", [(6 * DAY + 22 * HOUR, 7 * DAY + 6 * HOUR)]),
        ("Fri 22:00-Mon 06:00", [(4 * DAY + 22 * HOUR, 7 * DAY + 6 * HOUR)]),
        ("Mon 08:00-Mon 07:00", [(8 * HOUR, 7 * DAY + 7 * HOUR)]),
        ("Mon-Tue 08:00-18:00", [(8 * HOUR, 18 * HOUR), (DAY + 8 * HOUR, DAY + 18 * HOUR)]),
        ("Sat-Mon 00:00-24:00", [(5 * DAY, 6 * DAY), (6 * DAY, 7 * DAY), (0, DAY)]),
    ],
)
def test_spans_of_the_week(text: str, expected: list[tuple[int, int]]) -> None:
    assert list(spans([text])) == expected


@pytest.mark.parametrize("text", ["", "Sat", "Sat 22-06", "Xyz 22:00-06:00", "Sat 22:00-25:00", "Sat 22:70-23:00",
                                  "Mon-Fri 08:00-Sat 18:00", "Sat 22:00 - 06:00"])  # fmt: skip
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a span|no time of day"):
        spans([text])


def test_the_clock_on_the_wall_counts() -> None:
    """Saturday 22:00 in Berlin, in summer and in winter, and not before."""
    berlin = plan("Sat 22:00-06:00", zone="Europe/Berlin")
    for inside in ("2026-01-03T21:00:00Z", "2026-07-04T20:00:00Z", "2026-07-05T03:59:59Z"):
        assert berlin.covers("r", instant(inside)), inside
    for outside in ("2026-01-03T20:59:59Z", "2026-07-04T19:59:59Z", "2026-07-05T04:00:00Z", "2026-07-08T22:00:00Z"):
        assert not berlin.covers("r", instant(outside)), outside


@given(st.integers(0, END - 1))
def test_every_minute_is_in_a_span_of_the_whole_week(time: int) -> None:
    assert plan("Mon-Sun 00:00-24:00", zone="Europe/Berlin").covers("r", time)


def test_it_begins_and_ends() -> None:
    one = plan(since=instant("2026-03-01T00:00:00Z"), until=instant("2026-03-02T00:00:00Z"), rules=frozenset({"r"}))
    assert one.covers("r", instant("2026-03-01T00:00:00Z"))
    assert not one.covers("r", instant("2026-03-02T00:00:00Z"))
    assert not one.covers("other", instant("2026-03-01T00:00:00Z"))


def test_only_what_fits_in_every_field_is_withheld_and_counted() -> None:
    """Case does not matter, one value of a list is enough, and what Vedette says of itself is always said."""
    where = {"host.name": ["web1", "web2"], "user.name": ["deploy"]}
    batch = records(
        event(1, host={"name": "WEB1"}, user={"name": "deploy"}),
        event(2, host={"name": "web1"}, user={"name": "eve"}),
        event(3, host={"name": "db1"}, user={"name": "deploy"}),
        event(4, host={"name": "web2"}, user={"name": ["eve", "deploy"]}),
        event(5, user={"name": "deploy"}),
        b"{",
    )
    alerts, counts = judged([batch], maintenance=[plan(where=where)], cap=2)
    assert [one.time for one in alerts[:3]] == [first_second(second) for second in (2, 3, 5)]
    assert [one.rule_id for one in alerts[3:]] == ["vedette.storm", "vedette.quarantine"]
    assert counts == Counter(
        {"vedette.alerting.excepted": 2, "vedette.alerting.excepted.every": 2, "vedette.alerting.maintenance.m": 2,
         "vedette.alerting.held_back": 1}
    )  # fmt: skip


def section(text: str) -> bytes:
    return (
        f"{BARE}maintenance:\n  patching: {{until: '2027-01-01T00:00:00Z', reason: r, owner: kim, {text}}}\n".encode()
    )


def test_a_plan_is_read_from_the_configuration() -> None:
    found = parse(section("where: {host.name: [web1]}, weekly: [Sat 22:00-06:00], zone: Europe/Berlin"), PATH)[0]
    assert found.maintenance["patching"].where == {"host.name": ["web1"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("weekly: [Sat 22:00-06:00]", "nothing silences everything"),
        ("rules: [vedette.loss]", "cannot be silenced"),
        ("rules: [r], weekly: [Saturday]", "expected a span"),
        ("rules: [r], zone: Nowhere/Here", "zone"),
        ("rules: [r], since: '2027-01-01T00:00:00Z'", "before until"),
        ("where: {host.name: []}", "at least 1 item"),
        ("rules: [r], days: 3", "days"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(section(text), PATH)
