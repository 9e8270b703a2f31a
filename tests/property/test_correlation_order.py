"""Correlations say what their definition says, taken literally, for any cut and any order within the lateness."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.testing_detectors import MINUTE, Event, MemoryState, Replayed, batch_of, keyed, replay
from rules.detector import SigmaDetector
from rules.sigma.correlate import MOST_EVENTS
from rules.sigma.parse import compile_files
from tests.property.test_detector_order import START, UNTIL, YEAR_9999, Drawn, bounded, read

RULE = """
title: {name}
id: 00000000-0000-4000-8000-00000000000{number}
name: {name}
logsource: {{product: linux, service: auditd}}
detection: {{sel: {{event.action: {value}}}, condition: sel}}
---"""
RULES = "".join(RULE.format(name=name, number=number, value=value) for number, (name, value) in enumerate(
    [("ra", "a"), ("rb", "b"), ("rc", "c"), ("rab", "[a, b]")]))  # fmt: skip
HEAD = """
title: {name}
id: 00000000-0000-4000-8000-1000000000{number:02}
name: {name}
correlation:
  group-by: [{group}]
  timespan: {span}
"""


def correlation(name: str, number: int, rest: str, group: str = "user.name", span: str = "10m") -> str:
    lines = "".join(f"  {line}\n" for line in rest.strip().splitlines())
    return HEAD.format(name=name, number=number, group=group, span=span) + lines + "---"


def detector(*correlations: str, **options: Any) -> SigmaDetector:
    collection = compile_files([("rules.yml", (RULES + "".join(correlations)).encode())])
    assert not collection.refused, collection.refused
    return SigmaDetector("sigma", collection, options)


@st.composite
def logs(draw: st.DrawFn, most: int = 60) -> list[Event]:
    """Events over two hours of two users, in up to three partitions, with actions, addresses and sizes; one of 9999."""
    seconds = st.one_of(st.integers(0, 7199), st.sampled_from([599, 600, 601, 1199, 1200]), st.integers(590, 610))
    row = st.tuples(
        seconds, st.sampled_from("ab"), st.sampled_from("abcz"), st.sampled_from("xyz"), st.sampled_from("pqr")
    )
    events: list[Event] = [
        {
            "@timestamp": START + second * 1_000_000,
            "event.dataset": "auditd.log",
            "user.name": user,
            "event.action": action,
            "source.ip": source,
            "source.bytes": 0.1 * (second % 7),
            "_partition": partition,
        }
        for second, user, action, source, partition in sorted(draw(st.lists(row, min_size=5, max_size=most)))
    ]
    ahead = {**events[0], "@timestamp": YEAR_9999, "_partition": draw(st.sampled_from("pqr"))}
    place = draw(st.integers(0, len(events)))
    return keyed([*events[:place], ahead, *events[place:]])


# --- the definition, taken literally ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """An event or trigger that one of the rules has matched."""

    time: int
    rule: str
    group: str
    value: str
    size: float
    id: Any


def matched(events: Sequence[Event]) -> list[Seen]:
    rules: Mapping[str, str] = {"a": "ra rab", "b": "rb rab", "c": "rc"}
    return [
        Seen(one["@timestamp"], rule, one["user.name"], one["source.ip"], one["source.bytes"],
             (one["_partition"], one["_key"]))
        for one in events
        if one["@timestamp"] < YEAR_9999
        for rule in rules.get(one["event.action"], "").split()
    ]  # fmt: skip


Holds = Callable[[Sequence[Seen]], bool]


def triggers(seen: Sequence[Seen], rules: str, span: int, holds: Holds, name: str = "") -> list[Seen]:
    """The events at which *holds* is true of what their group had in the time span that ends with them."""
    taken = [one for one in seen if one.rule in rules.split()]
    found = {}
    for one in taken:
        window = [e for e in taken if e.group == one.group and one.time - span < e.time <= one.time]
        if holds(window):
            found[one.id] = Seen(one.time, name, one.group, "", 0.0, one.id)
    return list(found.values())


def slid(found: Sequence[Seen], span: int) -> set[tuple[str, int]]:
    return {(one.group, one.time // span * span) for one in found}


def tumbled(seen: Sequence[Seen], rules: str, span: int, holds: Holds) -> set[tuple[str, int]]:
    windows: dict[tuple[str, int], list[Seen]] = defaultdict(list)
    for one in seen:
        if one.rule in rules.split():
            windows[one.group, one.time // span * span].append(one)
    return {window for window, events in windows.items() if holds(events)}


def ordered(*rules: str) -> Holds:
    def holds(window: Sequence[Seen]) -> bool:
        reached = [-1] * len(rules)
        for time in sorted({one.time for one in window}):
            for number, rule in enumerate(rules):
                before = time if number == 0 else reached[number - 1]
                if before >= 0 and any(one.time == time and one.rule == rule for one in window):
                    reached[number] = time
        return reached[-1] >= 0

    return holds


def number(window: Sequence[Seen]) -> int:
    return len({one.id for one in window})


def rules_in(window: Sequence[Seen]) -> set[str]:
    return {one.rule for one in window}


SPAN = 10 * MINUTE
SLIDING: dict[str, tuple[str, str, Holds]] = {
    "count": ("type: event_count\nrules: ra\ncondition: {gte: 3}", "ra", lambda w: number(w) >= 3),
    "count over two rules": ("type: event_count\nrules: [ra, rab]\ncondition: {gt: 2}", "ra rab",
                             lambda w: number(w) > 2),
    "values": ("type: value_count\nrules: [ra, rb]\ncondition: {field: source.ip, gte: 3}", "ra rb",
               lambda w: len({one.value for one in w}) >= 3),
    "together": ("type: temporal\nrules: [ra, rb, rc]", "ra rb rc", lambda w: rules_in(w) == {"ra", "rb", "rc"}),
    "two of three": ("type: temporal\nrules: [ra, rb, rc]\ncondition: {gte: 2}", "ra rb rc",
                     lambda w: len(rules_in(w)) >= 2),
    "and or": ("type: temporal\ncondition: ra and (rb or rc)", "ra rb rc",
               lambda w: "ra" in rules_in(w) and bool(rules_in(w) & {"rb", "rc"})),
    "in order": ("type: temporal_ordered\nrules: [ra, rb, rc]", "ra rb rc", ordered("ra", "rb", "rc")),
    "two in order": ("type: temporal_ordered\nrules: [rb, ra]", "ra rb", ordered("rb", "ra")),
}  # fmt: skip
TUMBLING: dict[str, tuple[str, str, Holds]] = {
    "fewer": ("type: event_count\nrules: ra\ncondition: {lt: 3}", "ra", lambda w: number(w) < 3),
    "fewer over two rules": ("type: event_count\nrules: [ra, rab]\ncondition: {lte: 2}", "ra rab",
                             lambda w: number(w) <= 2),
    "exactly": ("type: event_count\nrules: ra\ncondition: {eq: 2}", "ra", lambda w: number(w) == 2),
    "not exactly": ("type: event_count\nrules: ra\ncondition: {neq: 2}", "ra", lambda w: number(w) != 2),
    "range": ("type: event_count\nrules: ra\ncondition: {gt: 1, lte: 3}", "ra", lambda w: 1 < number(w) <= 3),
    "few values": ("type: value_count\nrules: ra\ncondition: {field: source.ip, lte: 1}", "ra",
                   lambda w: len({one.value for one in w}) <= 1),
    "without": ("type: temporal\ncondition: ra and not rb", "ra rb",
                lambda w: "ra" in rules_in(w) and "rb" not in rules_in(w)),
    "sum": ("type: value_sum\nrules: ra\ncondition: {field: source.bytes, gt: 0.6}", "ra",
            lambda w: float(sum(Fraction(one.size) for one in w)) > 0.6),
    "average": ("type: value_avg\nrules: ra\ncondition: {field: source.bytes, gte: 0.3}", "ra",
                lambda w: float(sum(Fraction(one.size) for one in w) / len(w)) >= 0.3),
    "median": ("type: value_median\nrules: ra\ncondition: {field: source.bytes, lt: 0.3}", "ra",
               lambda w: median(one.size for one in w) < 0.3),
    "lowest percentile": ("type: value_percentile\nrules: ra\n"
                          "condition: {field: source.bytes, percentile: 0.001, lte: 0.0001}", "ra",
                          lambda w: min(one.size for one in w) <= 0.0001),
}  # fmt: skip


def said(replayed: Replayed) -> set[tuple[str, int]]:
    return {(one.entity[0][1], one.window[0]) for one in replayed.findings if one.window and one.revision == "fired"}


def repeated(data: Drawn, events: list[Event]) -> list[Event]:
    """Let some events come again, as documents do that were updated."""
    return [*events, *data.draw(st.lists(st.sampled_from(events), max_size=5))]


def read_in_any_order(data: Drawn, asked: SigmaDetector, events: list[Event]) -> Replayed:
    return read(data, asked, data.draw(st.permutations(repeated(data, events))))


@pytest.mark.parametrize("name", SLIDING)
@settings(max_examples=60, deadline=None)
@given(events=logs(), data=st.data())
def test_a_sliding_correlation_is_its_definition_in_any_order(name: str, events: list[Event], data: Drawn) -> None:
    text, rules, holds = SLIDING[name]
    found = read_in_any_order(data, detector(correlation("c", 0, text)), events)
    assert said(found) == slid(triggers(matched(events), rules, SPAN, holds), SPAN)
    assert found.state.counters["events_capped"] == found.state.counters["late"] == 0


@pytest.mark.parametrize("name", TUMBLING)
@settings(max_examples=60, deadline=None)
@given(events=logs(), data=st.data())
def test_a_tumbling_correlation_is_its_definition_within_five_minutes(
    name: str, events: list[Event], data: Drawn
) -> None:
    text, rules, holds = TUMBLING[name]
    found = read(data, detector(correlation("c", 0, text)), bounded(data, repeated(data, events), 5 * MINUTE))
    assert said(found) == tumbled(matched(events), rules, SPAN, holds)
    assert sum(one.window is not None for one in found.findings) == len(said(found)), "each is told once"
    assert found.state.counters["late"] == 0
    assert set(found.state.stored) <= {"", "!due"}, "what is decided is forgotten"


@pytest.mark.parametrize("name", [*SLIDING, *TUMBLING])
@settings(max_examples=40, deadline=None)
@given(events=logs())
def test_what_is_explained_is_what_is_found(name: str, events: list[Event]) -> None:
    """The same windows; what is not found is said to be less than what was asked."""
    events = sorted(events, key=lambda one: one["@timestamp"])
    asked = detector(correlation("c", 0, {**SLIDING, **TUMBLING}[name][0]))
    _, attempts = asked.attempts(batch_of(events, as_of=UNTIL), MemoryState())
    assert {(one.group[0], one.window[0]) for one in attempts if one.holds} == said(replay(asked, events, until=UNTIL))
    assert all(one.holds == (one.degree == 1) and 0 <= one.degree <= 1 for one in attempts)
    assert len({(one.group, one.window) for one in attempts}) == len(attempts)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(("last", "rules", "windows"), [("c", "ra, rb, rc", {1}), ("a", "ra, rb", {0, 1})])
def test_an_event_between_others_of_its_rule_may_come_to_matter(
    place: int, last: str, rules: str, windows: set[int]
) -> None:
    """Of three at 1, 300 and 599 seconds only the second begins the order that an event at 301 completes for 700."""
    events = keyed(
        {"@timestamp": START + second * 1_000_000, "event.dataset": "auditd.log", "user.name": "u",
         "event.action": action, "source.ip": "x"}
        for second, action in [(301, "b"), (1, "a"), (300, "a"), (599, "a"), (700, last)]
    )  # fmt: skip
    order = [*events[1 : place + 1], events[0], *events[place + 1 :]]
    asked = detector(correlation("c", 0, f"type: temporal_ordered\nrules: [{rules}]"))
    for cuts in (range(1, 5), []):
        found = replay(asked, order, cuts=cuts)
        assert said(found) == {("u", START + SPAN * number) for number in windows}


INNER = [name for name in SLIDING if name != "two in order"]


@pytest.mark.parametrize("name", INNER)
@settings(max_examples=60, deadline=None)
@given(events=logs(), data=st.data())
def test_a_chain_takes_every_trigger_in_any_order(name: str, events: list[Event], data: Drawn) -> None:
    """Three triggers of the inner one, then rule c: each trigger counts once, whichever order made it one."""
    text, rules, holds = SLIDING[name]
    inner = correlation("inner", 0, text)
    many = correlation("many", 1, "type: event_count\nrules: inner\ncondition: {gte: 3}", span="30m")
    then = correlation("then", 2, "type: temporal_ordered\nrules: [many, rc]", span="5m")
    found = read_in_any_order(data, detector(then, many, inner), events)
    seen = matched(events)
    first = triggers(seen, rules, SPAN, holds, "inner")
    second = triggers(first, "inner", 30 * MINUTE, lambda w: number(w) >= 3, "many")
    third = triggers([*second, *seen], "many rc", 5 * MINUTE, ordered("many", "rc"))
    assert said(found) == slid(third, 5 * MINUTE)


@settings(max_examples=60, deadline=None)
@given(events=logs(), data=st.data())
def test_a_chain_of_tumbling_windows_is_decided_inside_out(events: list[Event], data: Drawn) -> None:
    """Windows without rule b, twice in an hour and no more: both windows may close in one step."""
    inner = correlation("inner", 0, "type: temporal\ncondition: ra and not rb")
    outer = correlation("outer", 1, "type: event_count\nrules: inner\ncondition: {eq: 2}", span="1h")
    soon = correlation("soon", 2, "type: event_count\nrules: inner\ncondition: {gte: 2}", span="11m")
    found = read(data, detector(outer, inner, soon), bounded(data, events, 5 * MINUTE))
    windows = tumbled(matched(events), "ra rb", SPAN, TUMBLING["without"][2])
    closed = [Seen(start + SPAN - 1, "inner", group, "", 0.0, (group, start)) for group, start in windows]
    hours = tumbled(closed, "inner", 60 * MINUTE, lambda w: len(w) == 2)
    near = slid(triggers(closed, "inner", 11 * MINUTE, lambda w: len(w) >= 2), 11 * MINUTE)
    assert {(f.detector.title, *g) for f in found.findings if f.revision == "fired" for g in said(Replayed([f]))} == {
        *(("outer", *one) for one in hours),
        *(("soon", *one) for one in near),
    }


@pytest.mark.parametrize("name", INNER)
@settings(max_examples=40, deadline=None)
@given(events=logs(), data=st.data())
def test_a_tally_of_what_slides_is_its_definition_within_five_minutes(
    name: str, events: list[Event], data: Drawn
) -> None:
    """Fewer than three triggers in half an hour: a chain's lateness is that of what tumbles in it."""
    text, rules, holds = SLIDING[name]
    inner = correlation("inner", 0, text)
    few = correlation("few", 1, "type: event_count\nrules: inner\ncondition: {lt: 3}", span="30m")
    found = read(data, detector(few, inner), bounded(data, repeated(data, events), 5 * MINUTE))
    first = triggers(matched(events), rules, SPAN, holds, "inner")
    assert said(found) == tumbled(first, "inner", 30 * MINUTE, lambda w: number(w) < 3)
    assert found.state.counters["late"] == 0


def test_what_slides_in_a_chain_takes_late_events_and_a_tally_counts_that_it_does_not() -> None:
    """An hour late, the third of three: the inner correlation is true, and the window of the outer one is decided."""
    inner = correlation("inner", 0, SLIDING["count"][0])
    few = correlation("few", 1, "type: event_count\nrules: inner\ncondition: {lt: 3}\ngenerate: true", span="30m")
    row: Event = {"event.dataset": "auditd.log", "user.name": "u", "event.action": "a", "source.ip": "x"}
    late, *events = keyed({"@timestamp": START + second * 1_000_000, **row} for second in (2, 0, 1, 3_600))
    found = replay(detector(few, inner), [*events, late], cuts=[3], until=START + 180 * MINUTE)
    assert [one.detector.title for one in found.findings if one.window and one.revision == "fired"] == ["inner"]
    assert found.state.counters["late"] == 1


@settings(max_examples=60, deadline=None)
@given(events=logs(), cap=st.integers(1, 3), data=st.data())
def test_past_a_cap_on_groups_what_is_kept_is_whole_and_what_is_said_is_true(
    events: list[Event], cap: int, data: Drawn
) -> None:
    """Groups by user and address; whoever is kept does not depend on order and has all that it has without a cap."""
    text = correlation("c", 0, SLIDING["count"][0], group="user.name, source.ip")
    uncapped = replay(detector(text), events, until=START + 180 * MINUTE)
    order = data.draw(st.permutations(events))
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=8))
    found = replay(detector(text, max_groups=cap), order, cuts=cuts, until=START + 180 * MINUTE)
    whole = replay(detector(text, max_groups=cap), events, until=START + 180 * MINUTE)
    assert found.ids <= uncapped.ids
    assert found.ids == uncapped.ids or found.state.counters["capped"]
    assert kept(found) == kept(whole)
    assert len(kept(found)) <= cap
    assert of(found, kept(found)) == of(uncapped, kept(found))


def kept(replayed: Replayed) -> set[tuple[str, ...]]:
    return {tuple(json.loads(key)[1:]) for key in replayed.state.stored if key.startswith("[")}


def of(replayed: Replayed, groups: set[tuple[str, ...]]) -> set[tuple[Any, Any]]:
    found = [(tuple(value for _, value in one.entity), one.window) for one in replayed.findings]
    return {one for one in found if one[0] in groups}


def test_a_flood_stays_bounded_and_says_so() -> None:
    """Ten thousand events of one group in a window: an event count keeps six of them, a chain the cap; ids stand."""
    events = keyed(
        {"@timestamp": START + n * 1000, "event.dataset": "auditd.log", "user.name": "a", "event.action": "a",
         "source.ip": str(n), "source.bytes": 0.0}
        for n in range(10_000)
    )  # fmt: skip
    cuts = range(0, 10_000, 777)
    alone = replay(detector(correlation("c", 0, SLIDING["count"][0])), events, cuts=cuts, until=START + MINUTE)
    assert said(alone) == {("a", START // SPAN * SPAN)}
    assert alone.state.size() < 3_000
    inner = correlation("inner", 0, "type: value_count\nrules: ra\ncondition: {field: source.ip, gte: 3}")
    outer = correlation("outer", 1, "type: event_count\nrules: inner\ncondition: {gte: 5000}", span="1h")
    chained = replay(detector(inner, outer), events, cuts=cuts, until=START + MINUTE)
    assert chained.state.counters["events_capped"] == 10_000 - 2 * MOST_EVENTS
    assert chained.state.size() < 400 * MOST_EVENTS + 200 * 2 * 5_000
