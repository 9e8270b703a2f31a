"""Correlations: what is refused, whom an alert names and cites, and what its rules still say for themselves."""

from __future__ import annotations

import re
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from agent.testing_detectors import MINUTE, SECOND, Event, MemoryState, batch_of, keyed, replay
from rules.detector import SigmaDetector, build
from rules.sigma.parse import load
from tests.sigma_events import compiled

START = 20_000 * 86_400 * SECOND
FAILED = """
title: A login fails
id: 11111111-1111-4111-8111-111111111111
name: failed
level: low
logsource: {product: linux, service: auditd}
detection: {sel: {event.action: failed}, condition: sel}
---
"""
WORKED = FAILED.replace("fails", "works").replace("1111-1111-4111", "2222-2222-4222").replace("failed", "worked")
MANY = """
title: Many failed logins
id: 33333333-3333-4333-8333-333333333333
name: many
level: high
author: A. Uthor
tags: [attack.credential-access, attack.t1110]
correlation:
  type: event_count
  rules: failed
  group-by: user.name
  timespan: 5m
  condition: {gte: 3}
---
"""
THEN = """
title: Guessed
id: 44444444-4444-4444-8444-444444444444
level: critical
correlation:
  type: temporal_ordered
  rules: [many, worked]
  group-by: user.name
  timespan: 10m
---
"""


def make(folder: Path, *texts: str, **options: Any) -> SigmaDetector:
    (folder / "rules.yml").write_text("".join(texts))
    return build("sigma", {"path": str(folder), **options}, folder / "cache")


def event(second: int, action: str = "failed", user: str = "alice", **more: Any) -> Event:
    return {
        "@timestamp": START + second * SECOND,
        "event.dataset": "auditd.log",
        "event.action": action,
        "user.name": user,
        **more,
    }


def log(*events: Event) -> list[Event]:
    return keyed(events)


GUESSED = log(*(event(second) for second in (0, 10, 20, 30)), event(40, "worked"))


def test_an_alert_names_its_group_and_cites_what_made_it(tmp_path: Path) -> None:
    """The trigger comes first; the sentence and the factors say who, what and how much was asked for."""
    (finding,) = make(tmp_path, FAILED, MANY).detect(batch_of(GUESSED), MemoryState())
    assert (finding.entity, finding.window) == ((("user.name", "alice"),), (START, START + 5 * MINUTE))
    assert (finding.time, finding.row) == (START + 20 * SECOND, 2)
    assert [reference.key for reference in finding.evidence] == [2, 0, 1]
    assert finding.explanation.sentence == (
        "Many failed logins: user.name alice: 3 events (at least 3 events within 5m)."
    )
    assert [(one.field, one.observed) for one in finding.explanation.factors] == [
        ("user.name", "alice"),
        ("vedette.correlation.event_count", "3 events"),
    ]
    about = finding.detector
    assert (about.id[:4], about.level, about.author, about.techniques) == ("3333", "high", "A. Uthor", ("T1110",))


def test_when_the_window_is_over_all_of_it_is_told(tmp_path: Path) -> None:
    """Same window, so the same alert; what came after the alert was raised is cited now."""
    found = replay(make(tmp_path, FAILED, MANY), GUESSED, cuts=[3])
    fired, settled = found.findings
    assert (fired.revision, settled.revision) == ("fired", "settled")
    assert len(found.ids) == 1
    assert [reference.key for reference in settled.evidence] == [2, 0, 1, 3]
    assert settled.fields["vedette.evidence.total"] == 4


def test_rules_that_a_correlation_takes_are_silent_unless_it_says_generate(tmp_path: Path) -> None:
    """Of a chain only the outermost alerts."""

    def titles(*texts: str, **options: Any) -> set[str]:
        return {
            one.detector.title for one in make(tmp_path, *texts, **options).detect(batch_of(GUESSED), MemoryState())
        }

    loud = MANY.replace("  timespan", "  generate: true\n  timespan")
    assert titles(FAILED, WORKED, MANY) == {"Many failed logins", "A login works"}
    assert titles(FAILED, loud) == {"Many failed logins", "A login fails"}
    assert titles(FAILED, WORKED, MANY, THEN) == {"Guessed"}
    assert titles(FAILED, WORKED, MANY, THEN, min_level="critical") == {"Guessed"}
    assert titles(FAILED, WORKED, MANY, THEN, exclude=["44444444-4444-4444-8444-444444444444"]) == set()


def test_only_what_alerts_is_listed_and_all_is_planned(tmp_path: Path) -> None:
    detector = make(tmp_path, FAILED, WORKED, MANY, THEN)
    assert [one.title for one in detector.rules()] == ["Guessed"]
    assert [
        (one["title"], one["windows"], one["timespan"], one["alerts"]) for one in detector.plan()["correlations"]
    ] == [
        ("Many failed logins", "sliding", "5m", False),
        ("Guessed", "sliding", "10m", True),
    ]


def test_groups_are_read_for_each_kind_of_event_and_only_for_it(tmp_path: Path) -> None:
    (kind,) = batch_of(GUESSED, constants=["event.dataset"]).kinds
    detector = make(tmp_path, FAILED, MANY)
    assert detector.fields(kind) == {"event.action", "user.name"}
    assert "user.name" not in make(tmp_path, FAILED).fields(kind)
    other = batch_of([event(0, **{"event.dataset": "nginx.access"})], constants=["event.dataset"]).kinds[0]
    assert detector.fields(other) == set()


def test_an_alias_joins_different_fields(tmp_path: Path) -> None:
    """The address that is refused and the one that connects are one group."""
    text = """
title: Refused, then connected
id: 55555555-5555-4555-8555-555555555555
correlation:
  type: temporal
  rules: [failed, worked]
  aliases:
    address: {failed: source.ip, worked: destination.ip}
  group-by: [address]
  timespan: 1m
"""
    events = log(
        event(0, **{"source.ip": "192.0.2.1"}),
        event(1, "worked", **{"destination.ip": "192.0.2.1"}),
        event(2, "worked", **{"source.ip": "192.0.2.1"}),
    )
    state = MemoryState()
    (finding,) = make(tmp_path, FAILED, WORKED, text).detect(batch_of(events), state)
    assert finding.entity == (("address", "192.0.2.1"),)
    assert state.counters["ungrouped"] == 1


def test_case_and_lists_make_the_groups_that_they_mean(tmp_path: Path) -> None:
    """Alice is alice; an event of two users counts for each of them."""
    events = log(event(0, user="Alice"), event(1), {**event(2), "user.name": ("ALICE", "bob")})
    (finding,) = make(tmp_path, FAILED, MANY).detect(batch_of(events), MemoryState())
    assert finding.entity == (("user.name", "alice"),)


def test_a_compiled_collection_keeps_its_correlations(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(FAILED + WORKED + MANY + THEN)
    fresh = load(tmp_path, tmp_path / "cache")
    assert load(tmp_path, tmp_path / "cache").correlations == fresh.correlations
    assert [one.name for one in fresh.correlations] == ["many", ""]


def test_a_definition_that_changes_starts_anew(tmp_path: Path) -> None:
    """What was counted for another time span is not mistaken for this one's, and is dropped in time."""
    state = MemoryState()
    make(tmp_path, FAILED, MANY).detect(batch_of(GUESSED[:2]), state)
    changed = make(tmp_path, FAILED, MANY.replace("5m", "1h"))
    assert changed.detect(batch_of(GUESSED[2:3]), state) == []
    changed.advance(START + 1, state)
    assert sum(key.startswith("[") for key in state.stored) == 1


def test_what_is_older_than_the_lateness_is_counted(tmp_path: Path) -> None:
    state = MemoryState()
    detector = make(tmp_path, FAILED, MANY)
    detector.advance(START + 25 * 60 * MINUTE, state)
    assert detector.detect(batch_of(GUESSED), state) == []
    assert state.counters["late"] == 4


ONCE = MANY.replace("gte: 3", "eq: 1")


def test_one_event_in_several_spellings_of_a_group_counts_once(tmp_path: Path) -> None:
    found = replay(make(tmp_path, FAILED, ONCE), log(event(0, user=["Alice", "alice"]))).findings
    assert [one.entity for one in found] == [(("user.name", "alice"),)]


def test_one_event_counts_once_though_two_rules_name_its_group_differently(tmp_path: Path) -> None:
    """A tally keeps no identities, yet what two rules match is one event."""
    both = ONCE.replace("rules: failed", "rules: [failed, worked]").replace(
        "group-by: user.name",
        "group-by: who\n  aliases: {who: {failed: user.name, worked: user.id}}",
    )
    twice = log(event(0, ["failed", "worked"], **{"user.id": "alice"}))
    assert len(replay(make(tmp_path, FAILED, WORKED, both), twice).findings) == 1


def test_a_bound_below_one_keeps_no_more_than_a_bound_of_one(tmp_path: Path) -> None:
    flood = log(*(event(0) for _ in range(1_000)))
    found = replay(make(tmp_path, FAILED, MANY.replace("gte: 3", "gte: 0")), flood, cuts=range(0, 1_000, 100))
    assert {one.revision for one in found.findings} == {"fired", "settled"}
    state = MemoryState()
    make(tmp_path, FAILED, MANY.replace("gte: 3", "gt: -1.5")).detect(batch_of(flood), state)
    assert state.size() < 1_000


def test_a_number_that_no_sum_can_hold_measures_nothing(tmp_path: Path) -> None:
    """It is counted; the others are summed."""
    total = MANY.replace("event_count", "value_sum").replace("{gte: 3}", "{gt: 6, field: x.size}")
    sizes = ("1e308", "-1e308", "9" * 250, "4", "3")
    found = replay(make(tmp_path, FAILED, total), log(*(event(0, **{"x.size": size}) for size in sizes)))
    assert [one.explanation.factors[-1].observed for one in found.findings] == ["7"]
    assert found.state.counters["not_a_number"] == 3


@pytest.mark.parametrize("bound", ["gte: 20", "lt: 20"])
def test_a_group_with_many_values_in_one_batch_takes_no_square_of_their_time(tmp_path: Path, bound: str) -> None:
    """A scan: thousands of ports of one host."""
    values = MANY.replace("event_count", "value_count").replace("{gte: 3}", f"{{{bound}, field: source.port}}")
    detector = make(tmp_path, FAILED, values)
    scan = batch_of(log(*(event(0, **{"source.port": port}) for port in range(6_000))))
    before = process_time()
    detector.detect(scan, MemoryState())
    assert process_time() - before < 3


BASE = {"type": "event_count", "rules": "[failed]", "timespan": "5m", "condition": "{gte: 3}"}


def written(**parts: str | None) -> str:
    lines = "".join(f"  {name.replace('_', '-')}: {text}\n" for name, text in {**BASE, **parts}.items() if text)
    return f"title: c\nid: 66666666-6666-4666-8666-666666666666\ncorrelation:\n{lines}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title: c\ncorrelation: 3\n", "0.yml:2: correlation must be a mapping"),
        (written(type="sum"), "0.yml:4: correlation.type must be one of event_count"),
        (written(rules=None), "0.yml:3: correlation.rules: expected ids or names"),
        (written(rules="[failed, failed]"), "0.yml:5: correlation.rules names one thing twice"),
        (written(rules="[nobody]"), "0.yml:5: no rule here that can run has the id or name 'nobody'"),
        (written(timespan="5"), "0.yml:6: correlation.timespan must be a number and s, m"),
        (written(timespan="0s"), "0.yml:6: correlation.timespan must be a number and s, m"),
        (written(condition="{gte: many}"), "0.yml:7: correlation.condition.gte must be a number, got 'many'"),
        (written(condition="{atleast: 3}"), "0.yml:7: correlation.condition.atleast: unknown key"),
        (written(condition="{field: a}"), "0.yml:7: correlation.condition: expected one of gt, gte"),
        (written(condition="{gte: 3, field: a}"), "0.yml:7: event_count counts no field"),
        (written(condition=None), "0.yml:3: event_count needs a condition such as 'gte: 10'"),
        (written(condition="failed and worked"), "0.yml:7: event_count takes a comparison"),
        (written(type="value_count"), "0.yml:7: value_count needs a field"),
        (written(type="value_sum", condition="{gt: 1, field: [a, b]}"), "0.yml:7: value_sum measures one field"),
        (written(type="value_percentile", condition="{gt: 1, field: a}"), "value_percentile needs a percentile"),
        (written(type="value_percentile", condition="{gt: 1, field: a, percentile: 101}"), "must lie between"),
        (written(type="temporal_ordered", condition="{gte: 3}"), "temporal_ordered asks for all its rules"),
        (written(type="temporal_ordered", condition="failed or worked", rules=None), "joins its rules with 'and' only"),
        (written(type="temporal", condition="failed and", rules=None), "0.yml:6: correlation.condition: "),
        (written(type="temporal", condition="failed and worked"), "the rules of correlation.rules are not those"),
        (written(window="5m"), "0.yml:8: correlation.window: unknown key"),
        (written(generate="please"), "0.yml:8: correlation.generate must be true or false"),
        (written(group_by="[a, 3]"), "0.yml:8: correlation.group-by must be a text or a list of texts"),
        (written(aliases="{a: b}", group_by="[a]"), "0.yml:8: correlation.aliases must map an alias"),
        (written(aliases="{a: {worked: b}}", group_by="[a]"), "alias 'a' does not say what it is in 'failed'"),
        (written(rules="[many]", group_by="[source.ip]"), "'many' is a correlation that is not grouped by 'source.ip'"),
        (written(rules="[c]").replace("title: c", "title: c\nname: c"), "correlations that refer to each other"),
        (written().replace("666666666666", "x"), "0.yml:1: Sigma rule identifier must be an UUID"),
        (written().replace("66666666-6666-4666-8666-666666666666", MANY.split()[5]), "is taken by"),
        (written(condition="{gt: 6000}"), "0.yml:7: at most 5000"),
        (written(type="value_count", condition="{gte: 1000, field: a}"), "value_count compares with fewer than 1000"),
        (written(type="value_count", condition="{gt: 3, lt: 2000, field: a}"), "compares with fewer than 1000"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_its_line_and_reason(text: str, reason: str) -> None:
    """And stops no other."""
    collection = compiled(text, FAILED + WORKED + MANY)
    assert len(collection.correlations) == 1
    assert len(collection.refused) == 1, collection.refused
    assert reason in re.sub(r"^(\d\.yml:\d+):\d+: ", r"\1: ", collection.refused[0])
    assert re.match(r"\d\.yml:\d+:\d+: ", collection.refused[0]), "file, line and column"


def test_rules_that_are_refused_take_their_correlations_with_them() -> None:
    """Each says why."""
    collection = compiled(FAILED.replace("event.action: failed", "event.action|fancy: a"), MANY)
    assert len(collection.refused) == 2
    assert not collection.correlations


class Written(MemoryState):
    """A state that notes what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, int] = {}

    def put(self, key: str, value: Any) -> None:
        super().put(key, value)
        self.written[key] = len(self.stored[key])

    def size_of(self, detector: SigmaDetector, events: list[Event]) -> int:
        """Return how many bytes a batch of *events* writes, but for the list of minutes in which something is due."""
        self.written.clear()
        detector.detect(batch_of(events), self)
        return sum(size for key, size in self.written.items() if key != "!due")


TALLY = MANY.replace("gte: 3", "eq: 3")


@pytest.mark.parametrize("text", [MANY, TALLY])
def test_a_batch_writes_the_windows_that_it_touches_and_no_others(tmp_path: Path, text: str) -> None:
    """Of a group with events in two hundred windows; those of a late event are its own and, if that fires, the next."""
    state, detector = Written(), make(tmp_path, FAILED, text)
    events = log(*(event(number * 100, user="a") for number in range(600)))
    first = state.size_of(detector, events[:3])
    for start in range(3, 597, 3):
        detector.detect(batch_of(events[start : start + 3]), state)
    assert state.size_of(detector, events[597:]) < 3 * first
    assert state.size_of(detector, [event(30_001, _key=9_999, user="a")]) < 3 * first
    groups = [key for key in state.stored if "[" in key]
    assert len(groups) == 200
    assert sum(key in state.written for key in groups) <= 2


@pytest.mark.parametrize("text", [MANY, TALLY])
def test_what_waits_for_the_end_of_a_window_is_not_written_again_and_again(tmp_path: Path, text: str) -> None:
    """A window of ever more groups."""
    state, detector = Written(), make(tmp_path, FAILED, text)
    events = log(*(event(1, user=f"u{number // 3}") for number in range(18_000)))
    sizes = [state.size_of(detector, events[start : start + 900]) for start in range(0, 18_000, 900)]
    assert max(sizes) < 1.5 * sizes[0]
    found = detector.advance(START + 11 * MINUTE, state)
    assert len({one.entity for one in found}) == 6_000


@pytest.mark.parametrize("text", [MANY, TALLY])
def test_nothing_is_left_behind(tmp_path: Path, text: str) -> None:
    """Neither of windows that are over, nor of what waited for them, nor of a state in a layout of old."""
    state, detector = MemoryState(), make(tmp_path, FAILED, text)
    state.put("!", {"5": ["abc"]})
    state.put("!5/abc/7", ['["abc","x"]'])
    state.put('["abc","x"]', {"homes": [], "windows": {}})
    events = log(*(event(number * 50, user=user) for number in range(100) for user in ("a", "[b]:", "!c")))
    found = replay(detector, events, cuts=range(0, 300, 7), state=state, until=START + 60 * 60 * MINUTE)
    assert len(found.ids) == (51 if text is MANY else 0)
    assert set(state.stored) == {"", "!due"}
    assert state.get("!due") == []


def test_a_window_that_is_not_the_newest_is_told_when_it_is_over(tmp_path: Path) -> None:
    """And the group stays counted as one, whatever its windows."""
    state, detector = MemoryState(), make(tmp_path, FAILED, MANY)
    detector.detect(batch_of(log(*(event(second) for second in (0, 10, 20, 400, 800)))), state)
    detector.detect(batch_of([event(30, _key=77)]), state)
    (settled,) = detector.advance(START + 11 * MINUTE, state)
    assert (settled.revision, settled.fields["vedette.evidence.total"]) == ("settled", 4)
    assert state.get("")["keys"] == 1
    assert len([key for key in state.stored if "[" in key]) == 3


def test_an_event_that_comes_again_counts_once(tmp_path: Path) -> None:
    """In a later batch or the same; a document that was updated is one that comes again."""
    twice = log(event(0), event(10))
    for text, seen in ((MANY.replace("gte: 3", "eq: 2"), 1), (MANY, 0), (MANY.replace("gte: 3", "gte: 2"), 1)):
        for cuts in ([2], []):
            found = replay(make(tmp_path, FAILED, text), [*twice, *twice], cuts=cuts, until=START + 20 * MINUTE)
            assert len(found.ids) == seen
            assert {one.fields["vedette.evidence.total"] for one in found.findings} <= {2}


def test_a_tally_of_many_events_tells_them_apart_no_more(tmp_path: Path) -> None:
    """What it forgets is counted, and its state is small."""
    state, detector = MemoryState(), make(tmp_path, FAILED, MANY.replace("gte: 3", "eq: 1404"))
    flood = log(*(event(number // 10) for number in range(1_400)))
    for start in range(0, 1_400, 100):
        detector.detect(batch_of(flood[start : start + 100]), state)
        detector.detect(batch_of(flood[start : start + 1]), state)
    assert state.counters["unmarked"] == 1_100
    assert state.size() < 3_000
    (finding,) = detector.advance(START + 11 * MINUTE, state)
    assert finding.fields["vedette.evidence.total"] == 1_404, "of fourteen that came again the last four counted again"


def test_long_names_are_compared_as_short_ones_are(tmp_path: Path) -> None:
    """Without regard to case, as Sigma compares; to the end of the name."""
    long = "Group-" * 100
    events = [event(0, user=long), event(1, user=long.upper()), event(2, user=long.lower()), event(3, user=long + "x")]
    (finding,) = make(tmp_path, FAILED, MANY).detect(batch_of(log(*events)), MemoryState())
    assert len(finding.evidence) == 3


def test_an_event_whose_group_is_empty_is_counted_and_not_grouped(tmp_path: Path) -> None:
    """Nobody's name is nobody; of a list the names that are some count."""
    events = log(*(event(0, user=user) for user in ("", [], ["", ""], ["", "alice"], "alice", "ALICE")))
    state = MemoryState()
    (finding,) = make(tmp_path, FAILED, MANY).detect(batch_of(events), state)
    assert finding.entity == (("user.name", "alice"),)
    assert state.counters["ungrouped"] == 3


def test_an_alert_says_how_many_events_a_cap_took(tmp_path: Path) -> None:
    """The number stands in the alert and in the books: events in order, and events whose value is not kept."""
    third = WORKED.replace("2222-2222-4222", "9999-9999-4999").replace("worked", "left")
    chain = THEN.replace("[many, worked]", "[failed, worked, left]")
    events = log(
        *(event(number // 100, ("failed", "worked")[number % 2]) for number in range(5_000)), event(59, "left")
    )
    found = replay(make(tmp_path, FAILED, WORKED, third, chain), events, cuts=range(0, 5_000, 900))
    fired, settled = found.findings
    assert [one.fields["vedette.capped"] for one in (fired, settled)] == [True, True]
    assert fired.fields["vedette.evidence.cut"] == 4_500 - 2_000
    assert settled.fields["vedette.evidence.cut"] == found.state.counters["events_capped"] == 5_001 - 2_000

    values = MANY.replace("event_count", "value_count").replace("{gte: 3}", "{neq: 3, field: source.port}")
    scan = log(*(event(0, **{"source.port": number // 2}) for number in range(2_400)))
    found = replay(make(tmp_path, FAILED, values), scan, cuts=range(0, 2_400, 300), until=START + 11 * MINUTE)
    (finding,) = found.findings
    assert finding.fields["vedette.evidence.cut"] == found.state.counters["values_capped"] == 400
    assert "vedette.evidence.cut" not in replay(make(tmp_path, FAILED, MANY), GUESSED).findings[0].fields
