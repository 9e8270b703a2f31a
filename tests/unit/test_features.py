"""From events to numbers: what each feature is, and that neither order nor cut changes a bit of it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from agent.featurise.features import Featuriser, Numbered, Rarities, Window, hash_of, plain
from agent.featurise.recipe import parse
from agent.testing_detectors import DAY, HOUR, MINUTE, Event, MemoryState, batch_of, keyed

START = 20_000 * DAY


def rows(feature: Mapping[str, Any], *events: Event, learnt: Any = None, **more: Any) -> list[list[float]]:
    featuriser = Featuriser(parse({"name": "r", "features": {"x": feature, "y": {"present": "tags"}}}), learnt)
    found = featuriser.rows(batch_of([{"@timestamp": START, "tags": "t", **event} for event in events], **more))[1]
    return [row[: featuriser.columns.index("y")] for row in found.tolist()]


NAN = math.nan
LONG = "x" * 256


@pytest.mark.parametrize(
    ("feature", "field", "value", "expected"),
    [
        ({"number": "source.bytes"}, "source.bytes", 12, [12.0]),
        ({"number": "source.bytes"}, "source.bytes", [3, 12, 5], [12.0]),
        ({"number": "source.bytes", "log": True}, "source.bytes", math.e - 1, [1.0]),
        ({"number": "source.bytes", "log": True}, "source.bytes", 1 - math.e, [-1.0]),
        ({"number": "x.size"}, "x.size", "17.5", [17.5]),
        ({"number": "x.size"}, "x.size", "seventeen", [NAN]),
        ({"number": "x.size"}, "x.size", "1e999", [NAN]),
        ({"number": "x.size"}, "x.size", 10**400, [NAN]),
        ({"length": "user.name"}, "user.name", "alice", [5.0]),
        ({"length": "user.name"}, "user.name", ["al", "alice"], [5.0]),
        ({"entropy": "user.name"}, "user.name", "aabb", [1.0]),
        ({"entropy": "user.name"}, "user.name", "aaaa", [0.0]),
        ({"one_of": "event.outcome", "values": ["success", "failure"]}, "event.outcome", "failure", [0.0, 1.0]),
        ({"one_of": "event.outcome", "values": ["success", "failure"]}, "event.outcome", "other", [0.0, 0.0]),
        ({"private_address": "source.ip"}, "source.ip", "10.1.2.3", [1.0]),
        ({"private_address": "source.ip"}, "source.ip", "::ffff:10.1.2.3", [1.0]),
        ({"private_address": "source.ip"}, "source.ip", "203.0.113.9", [0.0]),
        ({"private_address": "source.ip"}, "source.ip", ["10.1.2.3", "203.0.113.9"], [0.0]),
        ({"private_address": "source.ip"}, "source.ip", "fd00::1", [1.0]),
        ({"private_address": "source.ip"}, "source.ip", "nowhere", [NAN]),
        ({"present": "user.name"}, "user.name", "alice", [1.0]),
        ({"present": "user.name"}, "user.name", "", [0.0]),
        ({"number": "source.bytes"}, "source.bytes", 2**63, [2.0**63]),
        ({"number": "source.bytes"}, "source.bytes", 2**64 - 1, [2.0**64]),
        ({"number": "source.bytes"}, "source.bytes", [5, 2**63, 2**64 - 1], [2.0**64]),
        ({"length": "x.size"}, "x.size", 2**64 - 1, [20.0]),
        ({"length": "user.name"}, "user.name", "x" * 257, [257.0]),
        ({"length": "user.name"}, "user.name", "x" * 10_000, [10_000.0]),
        ({"length": "user.name"}, "user.name", "\ud800", [1.0]),
        ({"length": "user.name"}, "user.name", ["x" * 257, "x" * 10_000, "\ud800"], [10_000.0]),
        ({"entropy": "user.name"}, "user.name", "x" * 257, [0.0]),
        ({"entropy": "user.name"}, "user.name", "ab" * 5_000, [1.0]),
        ({"entropy": "user.name"}, "user.name", "\ud800a", [1.0]),
        ({"entropy": "user.name"}, "user.name", ["x" * 257, "\ud800a", "abcd" * 2_500], [2.0]),
        ({"one_of": "user.name", "values": [LONG + "a", LONG + "b"]}, "user.name", LONG + "b", [0.0, 1.0]),
        ({"one_of": "user.name", "values": [LONG + "a", LONG + "b"]}, "user.name", ["b", LONG + "a"], [1.0, 0.0]),
        ({"one_of": "x.size", "values": [2**63, 2**64 - 1]}, "x.size", [2**64 - 1, 2**63], [1.0, 1.0]),
        ({"private_address": "source.ip"}, "source.ip", [f"10.0.{n >> 8}.{n & 255}" for n in range(300)], [1.0]),
        ({"private_address": "source.ip"}, "source.ip", "fe80::1%" + LONG, [1.0]),
        ({"present": "user.name"}, "user.name", "\ud800", [1.0]),
    ],
)
def test_a_row_feature_is_a_function_of_one_value(
    feature: Mapping[str, Any], field: str, value: Any, expected: Sequence[float]
) -> None:
    """The same as a column of the rows and as a constant of their kind."""
    np.testing.assert_allclose(rows(feature, {field: value}), [expected])
    if not isinstance(value, list):
        np.testing.assert_allclose(rows(feature, {field: value}, constants=(field,)), [expected])


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        ({"number": "source.bytes"}, [NAN]),
        ({"length": "user.name"}, [NAN]),
        ({"private_address": "source.ip"}, [NAN]),
        ({"present": "user.name"}, [0.0]),
        ({"one_of": "event.outcome", "values": ["a", "b"]}, [0.0, 0.0]),
    ],
)
def test_what_an_event_lacks_is_missing_and_not_zero(feature: Mapping[str, Any], expected: Sequence[float]) -> None:
    """But for what asks whether it is there."""
    np.testing.assert_equal(rows(feature, {}), [expected])


def test_midnight_is_no_edge_of_the_hour() -> None:
    """A minute before and after midnight lie beside each other on the circle, noon opposite."""
    at = [START - MINUTE, START + MINUTE, START + 12 * HOUR]
    before, after, noon = (np.array(row) for row in rows({"hour": True}, *({"@timestamp": time} for time in at)))
    assert np.linalg.norm(before - after) < 0.01
    assert np.linalg.norm(noon - after) > 1.99


def test_the_weekday_is_that_of_utc() -> None:
    featuriser = Featuriser(parse({"name": "r", "features": {"day": {"weekday": True}, "x": {"present": "tags"}}}))
    _, values = featuriser.rows(batch_of([{"@timestamp": "2024-10-05T23:59:00+00:00", "tags": "t"}]))
    day = featuriser.features[0]
    assert day.show(values[0, day.columns].tolist()) == "Saturday"


def test_an_event_without_a_time_has_no_hour() -> None:
    np.testing.assert_equal(rows({"hour": True}, {"@timestamp": None}), [[NAN, NAN]])


def test_rarity_is_what_training_learnt_and_the_unseen_is_rarest() -> None:
    known = Rarities([(hash_of("alice"), 0.5)], 9.0)
    events = [{"user.name": name} for name in ("alice", "mallory", None)]
    np.testing.assert_equal(rows({"rarity": "user.name"}, *events, learnt={"x": known}), [[0.5], [9.0], [NAN]])
    assert len(known) == 1


def test_long_values_that_differ_anywhere_have_rarities_of_their_own() -> None:
    """At the end of 10,000 characters, in a lone surrogate, in the last bit of a number, as items of a list."""
    values = ["x" * 10_000 + "a", "x" * 10_000 + "b", "\ud800", "\ud801", 2**63, 2**64 - 1, ("\ud800", 2**63)]
    assert len({hash_of(value) for value in values}) == len(values)
    known = Rarities([(hash_of(values[0]), 0.5)], 9.0)
    events = [{"user.name": value} for value in values[:3]]
    assert rows({"rarity": "user.name"}, *events, learnt={"x": known}) == [[0.5], [9.0], [9.0]]


def test_numbering_values_stands_in_for_rarity_while_learning() -> None:
    numbered = Numbered()
    events = [{"user.name": name} for name in ("alice", "bob", "alice")]
    assert rows({"rarity": "user.name"}, *events, learnt={"x": numbered}) == [[0.0], [1.0], [0.0]]
    assert [*numbered] == [hash_of("alice"), hash_of("bob")]


def test_a_row_must_match_and_have_something_to_say() -> None:
    """Rows that do not match *where*, or have no field that a feature is made of, are not there."""
    recipe = parse({"name": "r", "where": {"event.outcome": "success"}, "features": {"x": {"length": "user.name"}}})
    events = [
        {"@timestamp": START, "event.outcome": "success", "user.name": "a"},
        {"@timestamp": START, "event.outcome": "failure", "user.name": "a"},
        {"@timestamp": START, "event.outcome": "success"},
    ]
    found, _ = Featuriser(recipe).rows(batch_of(events))
    assert found.tolist() == [0]


def test_columns_are_in_the_order_of_names() -> None:
    """So that the order in which a recipe is written means nothing."""
    data = {"b": {"hour": True}, "a": {"one_of": "event.outcome", "values": ["x", "y"]}, "c": {"length": "user.name"}}
    featuriser = Featuriser(parse({"name": "r", "features": data}))
    assert featuriser.columns == ("a=x", "a=y", "b.sin", "b.cos", "c")


# --- windows ----------------------------------------------------------------------------------------------------------

SPECS: Mapping[str, Any] = {
    "all": {"count": True},
    "bad": {"count": {"event.outcome": "failure"}},
    "share": {"share": {"event.outcome": "failure"}},
    "sources": {"distinct": "source.ip"},
    "sum": {"sum": "source.bytes"},
    "mean": {"mean": "source.bytes"},
    "max": {"max": "source.bytes"},
    "min": {"min": "source.bytes"},
    "hour": {"hour": True},
}


def windows(
    events: Sequence[Event], *, specs: Mapping[str, Any] = SPECS, cuts: Sequence[int] = (), **more: Any
) -> list[Window]:
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": specs, "lateness": "10d", **more}
    featuriser, state = Featuriser(parse(data)), MemoryState()
    edges = [0, *cuts, len(events)]
    for start, end in pairwise(edges):
        featuriser.fold(batch_of(events[start:end]), state)
    closed = featuriser.close(START + 100 * DAY, state)
    assert set(state.stored) <= {""}, "a closed window is forgotten"
    return closed


def event(minute: int, user: str = "a", **more: Any) -> Event:
    return {"@timestamp": START + minute * MINUTE, "user.name": user, **more}


def test_a_window_is_what_its_events_come_to() -> None:
    """Counts, shares, different values and sums over the events of one entity and hour."""
    events = [
        event(5, **{"event.outcome": "failure", "source.ip": "x", "source.bytes": 10}),
        event(6, **{"event.outcome": "success", "source.ip": "y", "source.bytes": 30}),
        event(7, **{"event.outcome": "failure", "source.ip": "x", "source.bytes": 0.5}),
        event(8),
        event(65, **{"event.outcome": "failure"}),
        event(9, "b"),
    ]
    first, other, second = windows(keyed(events))
    recipe = parse({"name": "w", "entity": ["user.name"], "window": "1h", "features": SPECS})
    assert dict(zip(Featuriser(recipe).columns, first.features, strict=True)) == {
        "all": 4, "bad": 2, "share": 0.5, "sources": 2, "sum": 40.5, "mean": 13.5, "max": 30, "min": 0.5,
        "hour.sin": 0, "hour.cos": 1,
    }  # fmt: skip
    assert first.entity == (("user.name", "a"),)
    assert (first.start, first.end, first.count) == (START, START + HOUR, 4)
    assert [reference.key for reference in first.evidence] == [0, 1, 2, 3]
    assert other.entity == (("user.name", "b"),)
    assert second.start == START + HOUR


def test_a_window_without_numbers_has_neither_sum_nor_mean() -> None:
    (found,) = windows(keyed([event(1)]), specs={"s": {"sum": "source.bytes"}, "m": {"mean": "source.bytes"}})
    np.testing.assert_equal(found.features, [NAN, NAN])


def test_features_of_a_window_do_not_depend_on_order_or_cut() -> None:
    """Numbers whose floating-point sum depends on order: the very same bits for 30 shuffles and cuts."""
    chance = random.Random(3)
    events = keyed(
        event(
            chance.randrange(180),
            chance.choice("ab"),
            **{
                "source.bytes": chance.choice([1e16, 1.1, -1e16, 3.3, 0.1, 2**62, 2**64 - 1, 10**30, "7.7"]),
                "source.ip": f"10.0.{chance.randrange(3)}.{chance.randrange(256)}",
                "event.outcome": chance.choice(["failure", "success"]),
            },
        )
        for _ in range(1_500)
    )
    whole = windows(events)
    assert len(whole) == 6
    assert max(one.features[-2] for one in whole)
    for _ in range(30):
        shuffled = chance.sample(events, len(events))
        assert windows(shuffled, cuts=sorted(chance.sample(range(1, 1_500), 5))) == whole


def test_many_different_values_are_estimated_within_bounds() -> None:
    """Exact below 256; 20,000 within 20 %, from a state that stays small."""
    events = keyed(event(1, **{"source.ip": f"10.{n >> 8}.{n & 255}"}) for n in range(20_000))
    (few,) = windows(events[:255], specs={"d": {"distinct": "source.ip"}})
    (many,) = windows(events, specs={"d": {"distinct": "source.ip"}}, cuts=[7_000, 9_000])
    assert few.features == (255.0,)
    assert 16_000 < many.features[0] < 24_000


def test_sums_are_exact_beyond_what_a_float_holds() -> None:
    events = keyed(event(1, **{"source.bytes": size}) for size in [2**62, 1, 1, 1, -(2**62)])
    assert windows(events, specs={"s": {"sum": "source.bytes"}})[0].features == (3.0,)


@pytest.mark.parametrize(
    ("numbers", "total", "greatest", "least"),
    [
        ([2**63, 2**64 - 1, 5, -(2**63), 1 - 2**64], 5, 2.0**64, -(2.0**64)),
        ([[2**63, 2**64 - 1], 1], 2.0**64, 2.0**64, 1),
        ([10**400, 1 - 2**64, 3], 3, 2.0**64, -(2.0**64)),
        ([-1e306, 2**64 - 1, 3], 3, 2.0**64, -(2.0**64)),
        (["1e999", NAN, "\ud800", "9" * 257, 3], 3, 3, 3),
    ],
)
def test_a_window_has_numbers_of_64_bits_exactly_and_holds_greater_ones_at_the_limit(
    numbers: list[Any], total: float, greatest: float, least: float
) -> None:
    """In any order; what is no finite number is missing."""
    specs = {"a": {"sum": "source.bytes"}, "b": {"max": "source.bytes"}, "c": {"min": "source.bytes"}}
    events = keyed(event(1, **{"source.bytes": number}) for number in numbers)
    for order in (events, events[::-1]):
        (found,) = windows(order, specs=specs, cuts=[1])
        assert found.features == (total, greatest, least)


def test_different_values_are_told_apart_however_long() -> None:
    values = ["x" * 10_000 + "a", "x" * 10_000 + "b", "\ud800", "\ud801", 2**63, 2**64 - 1]
    events = keyed([event(1, **{"process.args": values}), event(2, **{"process.args": values[0]})])
    assert windows(events, specs={"d": {"distinct": "process.args"}})[0].features == (6.0,)


def test_entities_stay_short_and_apart_in_state() -> None:
    """What is folded is the raw value, what the state's keys hold is cut."""
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": {"n": {"count": True}}}
    featuriser, state = Featuriser(parse(data)), MemoryState()
    featuriser.fold(batch_of(keyed(event(1, "x" * 100_000 + end) for end in "ab")), state)
    assert len(state.stored) == 3
    assert max(map(len, state.stored)) < 300


def test_a_list_of_entities_counts_for_each() -> None:
    events = keyed([{"@timestamp": START, "user.name": ["a", "b"]}])
    assert [dict(one.entity)["user.name"] for one in windows(events, specs={"n": {"count": True}})] == ["a", "b"]


def test_a_window_waits_for_its_lateness() -> None:
    """It closes when the watermark less lateness has passed its end, and not before."""
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": {"n": {"count": True}}}
    featuriser, state = Featuriser(parse({**data, "lateness": "5m"})), MemoryState()
    featuriser.fold(batch_of(keyed([event(10)])), state)
    assert featuriser.close(START + HOUR + 5 * MINUTE - 1, state) == []
    assert len(featuriser.close(START + HOUR + 5 * MINUTE, state)) == 1
    featuriser.fold(batch_of(keyed([event(50)])), state)
    assert state.counters["late"] == 1
    assert featuriser.close(START + 2 * HOUR, state) == []


def test_open_windows_are_bounded_and_survivors_are_whole() -> None:
    """A flood of entities keeps at most the cap; what closes has all its events, the rest is counted."""
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": {"n": {"count": True}}}
    featuriser, state = Featuriser(parse(data), max_windows=50), MemoryState()
    for _ in range(2):
        for at in range(0, 1_000, 100):
            featuriser.fold(batch_of(keyed(event(1, f"user{n}") for n in range(at, at + 100))), state)
            assert len(state.stored) <= 51
    closed = featuriser.close(START + DAY, state)
    assert closed
    assert {one.features for one in closed} == {(2.0,)}
    assert state.counters["capped"] >= 1_900
    assert all(one.capped for one in closed)


def flooded(marks: Sequence[int]) -> tuple[list[Window], MemoryState]:
    """Return what is given of 200 entities in an hour, cap 50, while the watermark goes to each of *marks* minutes."""
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": {"n": {"count": True}}}
    featuriser, state = Featuriser(parse(data), max_windows=50), MemoryState()
    events = keyed(event(59, f"user{n}") for n in range(200))
    for number, mark in enumerate(marks):
        batch = events[number * 200 // len(marks) : (number + 1) * 200 // len(marks)]
        featuriser.fold(batch_of(batch), state)
        assert featuriser.close(START + mark * MINUTE, state) == []
    return featuriser.close(START + 2 * HOUR, state), state


def test_a_watermark_that_closes_nothing_admits_nobody() -> None:
    """Who survives is the same for every cut, whatever the watermark does before the window's end."""
    whole, state = flooded([0])
    assert 0 < len(whole) <= 50
    assert state.counters["capped"] >= 200 - len(whole)
    assert flooded([*range(1, 60)])[0] == whole


@pytest.mark.parametrize("cap", [1, 4])
def test_after_a_flood_all_windows_are_given_again_and_none_is_marked(cap: int) -> None:
    """Even if it has left nobody."""
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": {"n": {"count": True}}}
    featuriser, state = Featuriser(parse(data), max_windows=cap), MemoryState()
    featuriser.fold(batch_of(keyed(event(1, f"user{n}") for n in range(64))), state)
    given = []
    for hour in range(1, 20):
        given += featuriser.close(START + hour * HOUR + 5 * MINUTE, state)
        featuriser.fold(batch_of(keyed([event(60 * hour + 5, "late")])), state)
    again = [one.start for one in given if not one.capped]
    assert len(again) >= 8
    assert again == [START + hour * HOUR for hour in range(19 - len(again), 19)]


def test_room_is_made_when_the_last_bucket_of_a_flood_closes() -> None:
    """Though no event has come since it began."""
    data = {"name": "w", "entity": ["user.name"], "window": "1h", "features": {"n": {"count": True}}}
    featuriser, state = Featuriser(parse(data), max_windows=50), MemoryState()
    names = [f"user{n}" for n in range(200)]
    featuriser.fold(batch_of(keyed(event(minute, name) for minute in (59, 61) for name in names)), state)
    for hour in (1, 2):
        assert all(one.capped for one in featuriser.close(START + hour * HOUR + 5 * MINUTE, state))
    featuriser.fold(batch_of(keyed(event(200, name) for name in names[:40])), state)
    again = featuriser.close(START + DAY, state)
    assert len(again) == 40
    assert not any(one.capped for one in again)


@pytest.mark.parametrize(
    ("number", "expected"), [(3.0, 3), (0.123456, 0.1235), (16240.4, 16240), (1e300, 1e300), (-2.0, -2)]
)
def test_numbers_read_plainly(number: float, expected: float) -> None:
    assert repr(plain(number)) == repr(expected)


@pytest.mark.parametrize(
    ("feature", "columns", "words"),
    [
        ({"number": "source.bytes", "log": True}, [math.log1p(1_000)], 1_000),
        ({"rarity": "user.name"}, [math.log(50)], "one in 50"),
        ({"rarity": "user.name"}, [1e6], "one in 1.014e+304"),
        ({"private_address": "source.ip"}, [0.0], "public"),
        ({"present": "user.name"}, [1.0], "present"),
        ({"one_of": "event.outcome", "values": ["a", "b"]}, [0.0, 1.0], "b"),
        ({"one_of": "event.outcome", "values": ["a", "b"]}, [0.0, 0.0], "other"),
        ({"hour": True}, [1.0, 0.0], "06:00 UTC"),
        ({"hour": True}, [0.1, 0.1], "any"),
    ],
)
def test_features_read_as_what_they_stand_for(feature: Any, columns: list[float], words: Any) -> None:
    made = Featuriser(parse({"name": "r", "features": {"a": feature, "z": {"present": "tags"}}})).features[0]
    assert made.show(columns) == words
