"""Alert ids do not depend on how events were cut, repeated after a crash or, for the class *set*, ordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agent.detect import first_seen, hour_of_week
from agent.model import Batch, Description, Explanation, Finding, Kind
from agent.ports import Detector, StateView
from agent.testing_detectors import DAY, HOUR, MINUTE, Event, Replayed, alert_id, keyed, replay
from tests import models

START = 20_000 * DAY
YEAR_9999 = 253_400_000_000 * 1_000_000
SPAN = 10 * HOUR
UNTIL = START + 30 * DAY
USERS = "abcdefgh"
"""Enough to meet a cap."""

Drawn = st.DataObject


@st.composite
def logs(draw: st.DrawFn, least: int = 12, most: int = 50, users: str = "ab") -> list[Event]:
    """Events over ten hours, some users and three addresses, in up to three partitions, one of them from 9999."""
    minutes = st.one_of(st.integers(0, 599), st.sampled_from([59, 60, 61, 119, 120, 121]))
    row = st.tuples(minutes, st.sampled_from(users), st.sampled_from("xyz"), st.sampled_from("pqr"))
    rows = draw(st.lists(row, min_size=least, max_size=most))
    events: list[Event] = [
        {"@timestamp": START + minute * MINUTE, "user.name": user, "source.ip": source, "_partition": partition}
        for minute, user, source, partition in sorted(rows)
    ]
    place = draw(st.integers(0, len(events)))
    ahead = {"@timestamp": YEAR_9999, "user.name": "a", "source.ip": "w", "_partition": draw(st.sampled_from("pqr"))}
    return keyed([*events[:place], ahead, *events[place:]])


def bounded(data: Drawn, events: Sequence[Event], lateness: int) -> list[Event]:
    """Reorder so that no event comes more than *lateness* after a newer one of its partition; interleave partitions."""
    delays = data.draw(st.lists(st.integers(0, lateness), min_size=len(events), max_size=len(events)))
    delayed = sorted(zip(events, delays, strict=True), key=lambda item: min(item[0]["@timestamp"], UNTIL) + item[1])
    return interleaved(data, [event for event, _ in delayed])


def interleaved(data: Drawn, events: Sequence[Event]) -> list[Event]:
    """Mix partitions in any way; each keeps its own order."""
    queues: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        queues[event["_partition"]].append(event)
    turns = data.draw(st.permutations([event["_partition"] for event in events]))
    return [queues[partition].pop(0) for partition in turns]


def read(data: Drawn, detector: Detector, events: Sequence[Event]) -> Replayed:
    """Replay with any cuts and crashes."""
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=8))
    crashes = data.draw(st.sets(st.integers(0, 8), max_size=3))
    return replay(detector, events, cuts=cuts, crashes=crashes, until=UNTIL)


def news(lateness: str, **more: Any) -> Detector:
    options = {"title": "t", "entity": ["user.name"], "value": ["source.ip"], "bucket": "1h", "history": "4h"}
    return first_seen.build("news", {**options, "min_history": 2, "lateness": lateness, **more}, None)


def expected_news(events: Sequence[Event]) -> set[tuple[str, str, int]]:
    """What the definition of first-seen says, taken literally: (entity, value, bucket)."""
    seen = {
        (event["user.name"], event["source.ip"], event["@timestamp"] // HOUR)
        for event in events
        if event["@timestamp"] < YEAR_9999
    }
    return {
        (user, source, bucket)
        for user, source, bucket in seen
        if not any((user, source, bucket - back) in seen for back in range(1, 5))
        and len({b for u, _, b in seen if u == user and bucket - 4 <= b < bucket}) >= 2
    }


def said(replayed: Replayed) -> set[tuple[str, str, int]]:
    return {
        (finding.fields["user.name"], finding.fields["source.ip"], (finding.window or (0, 0))[0] // HOUR)
        for finding in replayed.findings
    }


@settings(max_examples=150, deadline=None)
@given(events=logs(), data=st.data())
def test_first_seen_is_its_definition_for_any_cut_and_disorder_within_lateness(
    events: list[Event], data: Drawn
) -> None:
    """Five minutes of disorder in each partition, partitions mixed in any way, any cut, crashes: the same findings."""
    replayed = read(data, news("5m"), bounded(data, events, 5 * MINUTE))
    assert said(replayed) == expected_news(events)
    assert replayed.state.counters["late"] == 0
    assert len(replayed.findings) == len(replayed.ids)


@settings(max_examples=150, deadline=None)
@given(events=logs(), data=st.data())
def test_first_seen_is_its_definition_for_any_order_when_lateness_covers_the_span(
    events: list[Event], data: Drawn
) -> None:
    """A full shuffle changes nothing if the allowed lateness is as long as the log."""
    replayed = read(data, news("10h"), data.draw(st.permutations(events)))
    assert said(replayed) == expected_news(events)
    assert len(replayed.findings) == len(replayed.ids)


@settings(max_examples=100, deadline=None)
@given(events=logs(), data=st.data())
def test_first_seen_cites_the_same_event_in_any_order(events: list[Event], data: Drawn) -> None:
    """While decisions wait, evidence is the least event by time and identity."""
    whole = replay(news("10h"), events, until=UNTIL)
    shuffled = read(data, news("10h"), data.draw(st.permutations(events)))
    assert {f.evidence for f in shuffled.findings} == {f.evidence for f in whole.findings}
    assert {f.score for f in shuffled.findings} == {f.score for f in whole.findings}


@settings(max_examples=100, deadline=None)
@given(events=logs(), cap=st.integers(1, 20), data=st.data())
def test_survivors_of_a_cap_are_the_same_in_any_order(events: list[Event], cap: int, data: Drawn) -> None:
    """Who is dropped depends on the keys alone; what is said without them is marked and is never wrong."""
    whole = replay(news("10h", max_keys=cap), events, until=UNTIL)
    shuffled = read(data, news("10h", max_keys=cap), data.draw(st.permutations(events)))
    assert shuffled.ids == whole.ids
    assert len(shuffled.state.stored) <= cap + 1


@settings(max_examples=150, deadline=None)
@given(events=logs(least=40, most=80, users=USERS), cap=st.integers(1, 60), data=st.data())
def test_what_is_said_past_a_cap_is_true_and_marked_where_it_may_lack(
    events: list[Event], cap: int, data: Drawn
) -> None:
    """For any cut, while decisions are made and the cap is met and left: no false news, no other score unmarked."""
    order = bounded(data, events, 5 * MINUTE)
    found = read(data, news("5m", min_history=1, max_keys=cap), order)
    uncapped = replay(news("5m", min_history=1), order, until=UNTIL)
    assert said(found) <= said(uncapped)
    assert unmarked(found) <= unmarked(uncapped)
    assert len(found.state.stored) <= cap + 1
    assert len(found.ids) == len(uncapped.ids) or found.state.counters["capped"]


def unmarked(replayed: Replayed) -> set[tuple[str, float | None]]:
    return {(alert_id(one), one.score) for one in replayed.findings if "vedette.capped" not in one.fields}


def test_a_value_of_9999_is_counted_as_future_and_blinds_nothing() -> None:
    """The watermark stays with the honest events, so what comes after them is still found."""
    rows = [(0, "x"), (60, "x"), (90, "w"), (121, "y")]
    events = keyed(
        {"@timestamp": YEAR_9999 if source == "w" else START + minute * MINUTE, "user.name": "a", "source.ip": source}
        for minute, source in rows
    )
    replayed = replay(news("5m"), events, cuts=range(1, 4), until=UNTIL)
    assert [finding.fields["source.ip"] for finding in replayed.findings] == ["y"]
    assert replayed.state.counters["future"] == 1


def model(data: Mapping[str, Any], share: float, max_windows: int | None = None, **more: Any) -> Detector:
    return models.detector(models.artifact(data, **more), share=share, max_windows=max_windows)


def described(replayed: Replayed) -> list[str]:
    """Everything that the findings say, in no order."""
    return sorted(
        f"{f.entity} {f.window} {f.time} {f.score} {f.evidence} {f.explanation} {f.fields}" for f in replayed.findings
    )


OPEN: Mapping[str, Any] = {**models.WINDOWS, "where": {}}
"""The recipe over all events of these logs; `logs` draws no event category."""


@settings(max_examples=100, deadline=None)
@given(events=logs(), data=st.data())
def test_a_window_model_says_the_same_for_any_cut_and_disorder_within_lateness(
    events: list[Event], data: Drawn
) -> None:
    """Every window of every entity is judged once, with the same features to the last bit."""
    asked = model(OPEN, 1.0, lateness="5m")
    whole = replay(asked, events, until=UNTIL)
    assert {(f.entity[0][1], (f.window or (0, 0))[0] // HOUR) for f in whole.findings} == {
        (event["user.name"], event["@timestamp"] // HOUR) for event in events if event["@timestamp"] < YEAR_9999
    }
    disordered = read(data, asked, bounded(data, events, 5 * MINUTE))
    assert described(disordered) == described(whole)
    assert disordered.state.counters["late"] == 0


@settings(max_examples=100, deadline=None)
@given(events=logs(), share=st.sampled_from([0.3, 0.7, 1.0]), data=st.data())
def test_a_window_model_says_the_same_for_any_order_when_lateness_covers_the_span(
    events: list[Event], share: float, data: Drawn
) -> None:
    asked = model(OPEN, share, lateness="10h")
    shuffled = read(data, asked, data.draw(st.permutations(events)))
    assert described(shuffled) == described(replay(asked, events, until=UNTIL))


@settings(max_examples=100, deadline=None)
@given(events=logs(users=USERS), cap=st.integers(1, 30), data=st.data())
def test_windows_that_survive_a_cap_are_the_same_in_any_order_while_none_closes(
    events: list[Event], cap: int, data: Drawn
) -> None:
    """Who survives depends on the entities alone; they say what they would say without it, and that others lack."""
    asked = model(OPEN, 1.0, cap, lateness="10h")
    whole = replay(asked, events, until=UNTIL)
    shuffled = read(data, asked, data.draw(st.permutations(events)))
    assert described(shuffled) == described(whole)
    check_against_uncapped(whole, replay(model(OPEN, 1.0, lateness="10h"), events, until=UNTIL))
    assert len(shuffled.state.stored) <= cap + 1


@settings(max_examples=200, deadline=None)
@given(events=logs(least=40, most=80, users=USERS), cap=st.integers(1, 12), data=st.data())
def test_a_window_past_a_cap_is_whole_or_absent_and_an_hour_without_a_mark_is_complete(
    events: list[Event], cap: int, data: Drawn
) -> None:
    """For any cut and disorder, while windows close and the cap is met and left again."""
    order = bounded(data, events, 5 * MINUTE)
    check_against_uncapped(
        read(data, model(OPEN, 1.0, cap, lateness="5m"), order),
        replay(model(OPEN, 1.0, lateness="5m"), events, until=UNTIL),
    )


def check_against_uncapped(found: Replayed, uncapped: Replayed) -> None:
    """Each window found is as it is without a cap; where one lacks, those of its time are marked, and it is counted."""
    marked = {finding.window for finding in found.findings if finding.fields.get("vedette.capped")}
    bare = [replace(f, fields={**f.fields, "vedette.capped": None}) for f in found.findings]
    expected = [replace(f, fields={**f.fields, "vedette.capped": None}) for f in uncapped.findings]
    missing = [finding for finding in expected if finding not in bare]
    assert len(found.ids) == len(bare)
    assert all(finding in expected for finding in bare)
    assert {finding.window for finding in missing} & {finding.window for finding in bare} <= marked
    assert found.state.counters["capped"] >= len(missing)
    assert uncapped.state.counters["capped"] == 0


@settings(max_examples=100, deadline=None)
@given(events=logs(), share=st.sampled_from([0.3, 0.7, 1.0]), data=st.data())
def test_a_row_model_says_the_same_for_any_order(events: list[Event], share: float, data: Drawn) -> None:
    """Events from 9999 and late ones are judged as any other."""
    asked = model({**models.ROWS, "where": {}}, share)
    whole = replay(asked, events, until=UNTIL)
    assert share < 1 or len(whole.ids) == len(events)
    shuffled = read(data, asked, data.draw(st.permutations(events)))
    assert described(shuffled) == described(whole)


def counts(**more: Any) -> Detector:
    options = {"title": "t", "entity": ["user.name"], "threshold": 0.3, "min_count": 1, "min_history": 1}
    return hour_of_week.build("counts", {**options, **more}, None)


@settings(max_examples=150, deadline=None)
@given(events=logs(most=60), data=st.data())
def test_hour_of_week_says_the_same_for_any_cut_in_the_partitions_order(events: list[Event], data: Drawn) -> None:
    """Ids, scores, expectations and cited events, wherever the batches end and however the partitions interleave."""
    order = bounded(data, events, 20 * MINUTE)  # events past the allowed lateness are late in every cut
    whole = replay(counts(), order, until=UNTIL)
    cut = read(data, counts(), order)
    assert cut.findings == whole.findings or _sorted(cut) == _sorted(whole)
    assert cut.state.counters == whole.state.counters
    assert cut.state.stored.keys() == whole.state.stored.keys()
    mixed = read(data, counts(), interleaved(data, order))
    assert mixed.ids == whole.ids


@settings(max_examples=100, deadline=None)
@given(events=logs(least=40, most=80, users="abcd"), cap=st.integers(1, 40), data=st.data())
def test_hour_of_week_marks_what_it_says_past_a_cap(events: list[Event], cap: int, data: Drawn) -> None:
    """What bears no mark is what is said without a cap, for any cut, while the cap is met and left: over ten days."""
    days = [{**event, "@timestamp": stretched(event["@timestamp"])} for event in events]
    order = bounded(data, days, 5 * MINUTE)
    options = {"bucket": "1d", "half_life": "1w"}
    found = read(data, counts(max_keys=cap, **options), order)
    uncapped = replay(counts(**options), order, until=UNTIL)
    assert unmarked(found) <= unmarked(uncapped)
    assert found.ids >= uncapped.ids or found.state.counters["capped"]


def stretched(time: int) -> int:
    """Make days of hours."""
    return time if time == YEAR_9999 else START + 24 * (time - START)


def _sorted(replayed: Replayed) -> list[Finding]:
    return sorted(replayed.findings, key=lambda finding: (finding.window or (0, 0), finding.entity))


class LastSeen:
    """The control: a detector that calls itself *set* and remembers the last address of a user."""

    id = "control"
    order: Literal["set", "sequence"] = "set"

    def fields(self, kind: Kind) -> frozenset[str]:
        return frozenset({"user.name", "source.ip"})

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        findings = []
        for row in range(len(events)):
            user, source = str(events.value(row, "user.name")), events.value(row, "source.ip")
            if state.get(user) not in (None, source):
                about = Description(id=self.id, title="t", kind="baseline")
                evidence = (events.reference(row),)
                findings.append(Finding(about, int(events.time[row]), evidence, Explanation("changed")))
            state.put(user, source)
        return findings

    def advance(self, watermark: int, state: StateView) -> Sequence[Finding]:
        return []

    def plan(self) -> Mapping[str, Any]:
        return {}


def test_the_checks_catch_a_detector_that_depends_on_order() -> None:
    """The same property, asked of the control, fails."""

    @settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate])
    @given(events=logs(), data=st.data())
    def same_for_any_order(events: list[Event], data: Drawn) -> None:
        shuffled = data.draw(st.permutations(events))
        assert read(data, LastSeen(), shuffled).ids == replay(LastSeen(), events, until=UNTIL).ids

    with pytest.raises(AssertionError):
        same_for_any_order()
