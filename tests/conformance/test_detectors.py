"""The baselines and trained models keep every promise of a detector, and a detector that breaks one is caught."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.detect import canary, first_seen, hour_of_week
from agent.model import Batch, Description, Explanation, Finding, Kind
from agent.ports import Detector, StateView
from agent.testing_detectors import DAY, HOUR, Event, check_detector, check_order, check_state_bound
from tests.models import ROWS, WINDOWS, artifact, detector

START = 20_000 * DAY
LOGON = {"event.category": "authentication", "event.outcome": "success"}


def first_seen_detector() -> Detector:
    options = {
        "title": "New source for a user",
        "where": {"event.category": ["authentication"], "event.outcome": "success"},
        "entity": ["user.name"],
        "value": ["source.ip"],
        "lateness": "10m",
    }
    return first_seen.build("new-source-for-user", options, None)


def hour_of_week_detector() -> Detector:
    options = {"title": "Unusual number of logons", "entity": ["source.ip"], "min_history": 48, "where": LOGON}
    return hour_of_week.build("logons", options, None)


def logons() -> list[Event]:
    """Ten days of two users, each with an address of their own; on the tenth day alice comes from elsewhere."""
    events = [
        {**LOGON, "@timestamp": START + day * DAY + hour * HOUR, "user.name": user, "source.ip": address}
        for day in range(10)
        for hour in (8, 9, 14)
        for user, address in (("alice", "192.0.2.1"), ("bob", "192.0.2.2"))
    ]
    return [
        *events,
        {**LOGON, "@timestamp": START + 9 * DAY + 15 * HOUR, "user.name": "alice", "source.ip": "203.0.113.9"},
    ]


def burst() -> list[Event]:
    """The same days, and sixty logons from one address in one night."""
    night = START + 9 * DAY + 20 * HOUR
    return [
        *logons(),
        *(
            {**LOGON, "@timestamp": night + n * 1_000_000, "user.name": "bob", "source.ip": "192.0.2.2"}
            for n in range(60)
        ),
    ]


def canary_detector() -> Detector:
    return canary.build("canary", {}, None)


def canaries() -> list[Event]:
    """The same days with messages, one canary that comes three times, and two in one event."""
    events = [{**event, "message": f"session {number}"} for number, event in enumerate(logons())]
    for place, text in (
        (7, "one-one-one"),
        (31, "one-one-one"),
        (50, "one-one-one"),
        (20, "two-2222 vedette-canary:3333-three"),
    ):
        events[place]["message"] = f"a line with vedette-canary:{text}, and more"
    return events


def row_model() -> Detector:
    return detector(artifact(ROWS), share=0.005)


def window_model() -> Detector:
    return detector(artifact(WINDOWS, lateness="10m"), share=0.1)


def within_ten_minutes(events: list[Event], chance: random.Random) -> list[Event]:
    return sorted(events, key=lambda event: event["@timestamp"] + chance.randrange(600) * 1_000_000)


@pytest.mark.parametrize("constants", [(), ("event.category", "event.outcome"), ("user.name",)])
@pytest.mark.parametrize(
    ("build", "events"),
    [
        (first_seen_detector, logons),
        (hour_of_week_detector, burst),
        (canary_detector, canaries),
        (row_model, logons),
        (window_model, burst),
    ],
)
def test_detectors_keep_the_promises_of_a_detector(
    build: Callable[[], Detector], events: Callable[[], list[Event]], constants: Sequence[str]
) -> None:
    """Constants of the kind or columns of the rows: every check holds."""
    check_detector(build, events(), constants=constants, shuffle=within_ten_minutes)


@pytest.mark.parametrize("build", [first_seen.build, hour_of_week.build])
def test_state_is_bounded_by_max_keys(build: Callable[..., Detector]) -> None:
    """A flood of entities leaves at most max_keys keys and the books, and what is dropped is counted."""
    options: dict[str, Any] = {"title": "t", "entity": ["user.name"], "max_keys": 100}
    if build is first_seen.build:
        options["value"] = ["source.ip"]
    flood = (
        [{"@timestamp": START + n, "user.name": f"user{n}", "source.ip": f"ip{n}"} for n in range(size, size + 500)]
        for size in range(0, 5_000, 500)
    )
    state = check_state_bound(build("flood", options, None), flood, most=101)
    assert state.counters["capped"] > 4_000


class Toy:
    """A detector of class ``set`` that breaks promises on demand."""

    id = "toy"
    order: Literal["set", "sequence"] = "set"

    def __init__(self, find: Callable[[int, Batch, StateView], bool]) -> None:
        self._find = find

    def fields(self, kind: Kind) -> frozenset[str]:
        return frozenset({"user.name", "source.ip"})

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        return [self._finding(events, row) for row in range(len(events)) if self._find(row, events, state)]

    def advance(self, watermark: int, state: StateView) -> Sequence[Finding]:
        return []

    def plan(self) -> Mapping[str, Any]:
        return {}

    def _finding(self, events: Batch, row: int) -> Finding:
        description = Description(id=self.id, title="toy", kind="baseline")
        explanation = Explanation("because")
        return Finding(description, int(events.time[row]), (events.reference(row),), explanation)


def changed_source(row: int, events: Batch, state: StateView) -> bool:
    """Find the row if its address is not the user's last one: depends on the order of events."""
    user, address = str(events.value(row, "user.name")), events.value(row, "source.ip")
    last = state.get(user)
    state.put(user, address)
    return last is not None and last != address


def first_of_batch(row: int, events: Batch, state: StateView) -> bool:
    """Find the first row of each batch: depends on the cut."""
    return row == 0


def changed_in_place(row: int, events: Batch, state: StateView) -> bool:
    """Count in a value that is not put back: lost in any store that keeps bytes."""
    if state.get("count") is None:
        state.put("count", [0])
    count = state.get("count")
    count[0] += 1
    return bool(count[0] == 30) or row == 3


def unasked_field(row: int, events: Batch, state: StateView) -> bool:
    """Read a field that `fields` does not name."""
    return events.value(row, "event.outcome") == "success"


@pytest.mark.parametrize("find", [changed_source, first_of_batch, changed_in_place, unasked_field])
def test_a_detector_that_breaks_a_promise_is_caught(find: Callable[[int, Batch, StateView], bool]) -> None:
    with pytest.raises(AssertionError):
        check_detector(lambda: Toy(find), logons(), shuffle=within_a_day)


def test_a_detector_that_depends_on_order_is_caught_by_the_order_check() -> None:
    with pytest.raises(AssertionError, match="another order, other ids"):
        check_order(lambda: Toy(changed_source), logons(), within_a_day)


def within_a_day(events: list[Event], chance: random.Random) -> list[Event]:
    return sorted(events, key=lambda event: event["@timestamp"] + chance.randrange(86_400) * 1_000_000)


def test_factories_are_entry_points() -> None:
    """Both are built as the plan builds them: id, options, cache folder."""
    for build in (first_seen.build, hour_of_week.build):
        options: dict[str, Any] = {"title": "t", "entity": ["user.name"]} | (
            {"value": ["source.ip"]} if build is first_seen.build else {}
        )
        detector = build("x", options, Path("/nowhere"))
        assert isinstance(detector, Detector)
        assert detector.plan()["order"] == detector.order
