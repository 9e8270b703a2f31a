"""First seen: what is found, what is not, what state keeps, and what an alert says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent.detect import first_seen, hour_of_week
from agent.detect.windows import duration, length
from agent.errors import ConfigError
from agent.model import NO_TIME, UNPARSED, Finding, Kind
from agent.ports import Detector
from agent.testing_detectors import DAY, HOUR, MINUTE, Event, MemoryState, batch_of, instant_of, keyed, replay

PAGE = Path(__file__).parents[2] / "docs" / "detectors.md"
START = 20_000 * DAY
OPTIONS: dict[str, Any] = {
    "title": "New source for a user",
    "level": "high",
    "techniques": ["T1078"],
    "where": {"event.category": ["authentication"]},
    "entity": ["user.name"],
    "value": ["source.ip"],
}


def detector(**more: Any) -> Detector:
    return first_seen.build("new-source", {**OPTIONS, **more}, None)


def logon(day: float, source: Any = "192.0.2.1", user: Any = "alice", **more: Any) -> Event:
    return {
        "@timestamp": START + int(day * DAY),
        "event.category": "authentication",
        "user.name": user,
        "source.ip": source,
        **more,
    }


def found(events: list[Event], cuts: Any = None, **options: Any) -> list[Finding]:
    """Read one event a batch unless told otherwise."""
    events = keyed(events)
    return replay(detector(**options), events, cuts=range(len(events)) if cuts is None else cuts).findings


def known(days: int = 5) -> list[Event]:
    return [logon(day + 0.5) for day in range(days)]


def test_a_new_value_of_a_known_entity_is_found_in_the_batch_that_holds_it() -> None:
    """The finding points at the row, and says who, what and when."""
    state = MemoryState()
    one = detector()
    past = replay(one, keyed(known()), until=START + 5 * DAY + HOUR, state=state)
    assert past.findings == []
    (finding,) = one.detect(batch_of([logon(5.5), logon(5.6, "203.0.113.9")]), state)
    assert finding.row == 1
    assert finding.entity == (("user.name", "alice"),)
    assert finding.key == '["203.0.113.9"]'
    assert finding.window == (START + 5 * DAY, START + 6 * DAY)
    assert finding.time == START + int(5.6 * DAY)
    assert finding.fields == {"user.name": "alice", "source.ip": "203.0.113.9"}
    assert [reference.key for reference in finding.evidence] == [1]
    assert finding.detector.level == "high"
    assert finding.detector.techniques == ("T1078",)


def test_an_explanation_is_one_sentence_with_factors_and_maturity() -> None:
    """Sentence, observed and expected, and the grown share of the history."""
    (finding,) = found([*known(), logon(5.6, "203.0.113.9")])
    explanation = finding.explanation
    assert explanation.sentence == (
        "source.ip 203.0.113.9 is new for user.name alice: not seen since 2024-09-09 00:00 UTC, though active on 5 of "
        "the 30 days before; 0 of these brought something new."
    )
    assert explanation.sentence in " ".join(PAGE.read_text().replace("\n> ", " ").split()), "quoted there"
    assert explanation.factors[0].field == "source.ip"
    assert explanation.factors[0].observed == "203.0.113.9"
    assert explanation.maturity == pytest.approx(5 / 30)
    assert finding.score == pytest.approx(1 - 1 / 6)


def test_an_entity_that_often_shows_new_values_scores_lower() -> None:
    """Days that brought something new count against the surprise."""
    roaming = [logon(day + 0.5, f"198.51.100.{day}") for day in range(6)]
    assert [round(finding.score or 0, 2) for finding in found(roaming)] == [0.25, 0.2, 0.17]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([logon(0.5), logon(1.5), logon(2.5, "203.0.113.9")], "active on two days only"),
        ([*known(), logon(5.5)], "seen before"),
        ([logon(0, "203.0.113.9"), *known(), logon(29.9, "203.0.113.9")], "seen within the history"),
        ([*known(), logon(5.5, "203.0.113.9", "bob")], "another entity"),
        ([*known(), {**logon(5.5, "203.0.113.9"), "event.category": "network"}], "does not match where"),
        ([*known(), logon(5.5, None)], "no value"),
        ([*known(), logon(5.5, "")], "an empty value"),
        ([*known(), logon(5.5, "203.0.113.9", None)], "no entity"),
    ],
)
def test_what_is_no_news_is_not_found(events: list[Event], reason: str) -> None:
    assert found(events) == [], reason


def test_a_value_is_news_again_after_the_history() -> None:
    """Seen on day 0, it is known on day 30 and new on day 31."""
    days = [logon(day + 0.5) for day in range(32)]
    assert found([logon(0.1, "203.0.113.9"), *days[:30], logon(30.6, "203.0.113.9")]) == []
    assert len(found([logon(0.1, "203.0.113.9"), *days[:31], logon(31.6, "203.0.113.9")])) == 1


def test_one_bucket_says_it_once() -> None:
    """Ten events of the same news are one finding."""
    assert len(found([*known(), *(logon(5.5 + n / 100, "203.0.113.9") for n in range(10))])) == 1


def test_a_decision_waits_for_earlier_buckets_that_are_open() -> None:
    """Read in one batch, the days are decided in order when the watermark has passed them."""
    one, state = detector(), MemoryState()
    assert one.detect(batch_of(keyed([logon(5.6, "203.0.113.9"), *known()]), high={}), state) == []
    assert state.counters["late"] == 5, "the file begins with its newest event, so the others are late"
    state = MemoryState()
    assert one.detect(batch_of(keyed([*known(), logon(5.6, "203.0.113.9")])), state) == []
    assert one.advance(START + 5 * DAY + 4 * MINUTE, state) == []
    (finding,) = one.advance(START + 5 * DAY + 5 * MINUTE, state)
    assert finding.row is None
    assert finding.time == START + int(5.6 * DAY)
    assert one.advance(START + 40 * DAY, state) == []


def test_late_future_and_untimed_events_are_counted_and_not_folded() -> None:
    """Each has its own counter; a late row is judged by its own partition."""
    state = MemoryState()
    events = [
        logon(5.5),
        {**logon(5.5), "@timestamp": START + int(5.5 * DAY) - 5 * MINUTE},
        {**logon(5.5, "203.0.113.9"), "@timestamp": START + int(5.5 * DAY) - 5 * MINUTE - 1},
        {**logon(1), "_partition": "other"},
        logon(200, "203.0.113.9"),
        {**logon(5.5, "203.0.113.9"), "@timestamp": None},
    ]
    detector().detect(batch_of(events, as_of=START + 6 * DAY), state)
    assert state.counters == {"late": 1, "future": 1, "untimed": 1}
    assert not any("203.0.113.9" in key for key in state.stored)


def test_an_advance_that_falls_back_changes_nothing() -> None:
    """The watermark never falls."""
    one, state = detector(), MemoryState()
    one.advance(START + 6 * DAY, state)
    before = dict(state.stored)
    assert one.advance(START, state) == one.advance(NO_TIME, state) == []
    assert state.stored == before


def test_state_is_forgotten_after_the_history() -> None:
    """When all is older than the history, only the books are left."""
    one, state = detector(), MemoryState()
    replay(one, keyed(known()), state=state, until=START + 6 * DAY)
    assert len(state.stored) == 3
    one.advance(START + 60 * DAY, state)
    assert list(state.stored) == [""]


def test_a_list_counts_as_each_of_its_values() -> None:
    """Two addresses in one event are two facts."""
    events = [*known(), logon(5.5, ["192.0.2.1", "203.0.113.9", "203.0.113.9"])]
    assert [finding.key for finding in found(events)] == ['["203.0.113.9"]']


def test_combinations_of_lists_are_bounded_and_the_rest_is_counted() -> None:
    """A hundred addresses for a hundred names are not ten thousand keys."""
    state = MemoryState()
    event = logon(1, [f"a{n}" for n in range(100)], [f"u{n}" for n in range(100)])
    detector().detect(batch_of([event]), state)
    assert len(state.stored) == 65
    assert state.counters["combinations_cut"] == 10_000 - 64


def test_long_values_are_cut_and_stay_apart() -> None:
    """Keys are bounded; two long values that differ at the end are two."""
    state = MemoryState()
    one = detector()
    one.detect(batch_of([logon(1, "x" * 100_000 + end) for end in "ab"]), state)
    assert len(state.stored) == 3
    assert max(map(len, state.stored)) < 400


def test_values_keep_their_type() -> None:
    """The number 22 and the text "22" are different values, and the alert gets the number back."""
    events = [*(logon(day + 0.5, **{"source.port": "22"}) for day in range(4)), logon(4.5, **{"source.port": 22})]
    (finding,) = found(events, value=["source.port"])
    assert finding.fields["source.port"] == 22
    assert finding.key == "[22]"


def test_several_fields_make_one_value_and_one_entity() -> None:
    """New is the combination."""
    events = [logon(day + 0.5, f"10.0.0.{day % 2}", **{"host.name": f"h{day % 2}"}) for day in range(6)]
    crossed = logon(6.5, "10.0.0.0", **{"host.name": "h1"})
    findings = found([*events, crossed], value=["source.ip", "host.name"], min_history=5)
    assert [finding.key for finding in findings] == ['["10.0.0.0","h1"]']


def test_a_path_that_is_not_unicode_survives_the_state() -> None:
    """Evidence that waited names the same record as it did when it was read."""
    events = [{**event, "_partition": "log\udcff"} for event in [*known(), logon(5.6, "203.0.113.9")]]
    (finding,) = found(events, cuts=[])
    assert finding.evidence[0] == batch_of(keyed(events)).reference(5)


def test_fields_are_wanted_only_where_they_can_matter() -> None:
    """Nothing from kinds that contradict *where*, nothing that the kind's constants say already."""
    one = detector()
    assert one.fields(Kind("x")) == {"event.category", "user.name", "source.ip"}
    assert one.fields(Kind("x", (("event.category", "authentication"),))) == {"user.name", "source.ip"}
    assert one.fields(Kind("x", (("event.category", "process"),))) == frozenset()
    assert one.fields(Kind(UNPARSED)) == frozenset()


def test_where_reads_lists_numbers_and_truth_as_text() -> None:
    """A list matches by any value; 4624 matches "4624"; true matches true."""
    where = {"event.code": [4624], "event.category": "authentication", "user.roles": [True]}
    events = [
        logon(day + 0.5, **{"event.category": ["session", "authentication"], "event.code": "4624", "user.roles": True})
        for day in range(4)
    ]
    news = {**events[0], "@timestamp": START + int(4.5 * DAY), "source.ip": "203.0.113.9"}
    assert len(found([*events, news], where=where)) == 1


def test_findings_of_a_capped_operator_say_so() -> None:
    """With more keys than the cap allows, some are dropped by rank, counted, and what is still found is marked."""
    users = [f"user{n}" for n in range(40)]
    events = [logon(day + 0.5, "192.0.2.1", user) for day in range(5) for user in users]
    events += [logon(5.5, "203.0.113.9", user) for user in users]
    replayed = replay(detector(max_keys=60), keyed(events), cuts=range(0, len(events), 40))
    assert 0 < len(replayed.findings) < 40
    assert all(finding.fields["vedette.capped"] is True for finding in replayed.findings)
    assert replayed.state.counters["capped"] > 0


def test_a_capped_operator_recovers_when_the_flood_is_over() -> None:
    """After the history has passed, everybody is known again, and nobody is wrongly news in between."""
    users = [f"user{n}" for n in range(20)]
    flood = [logon(0.5, "192.0.2.1", f"flood{n}") for n in range(500)]
    days = [[logon(day + 0.5, "192.0.2.1", user) for user in users] for day in range(90)]
    events = [*flood, *(event for day in days for event in day), *(logon(90.5, "203.0.113.9", user) for user in users)]
    findings = replay(detector(max_keys=100), keyed(events), cuts=range(500, len(events), 20)).findings
    assert {finding.key for finding in findings} == {'["203.0.113.9"]'}
    assert len(findings) == len(users)
    assert not any("vedette.capped" in finding.fields for finding in findings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entity": None}, "detectors.x.entity"),
        ({"colour": "red"}, "detectors.x.colour: unknown key"),
        ({"bucket": "1 fortnight"}, "detectors.x.bucket: .*such as 90s, 5m"),
        ({"bucket": 3600}, "detectors.x.bucket"),
        ({"bucket": "0s"}, "detectors.x.bucket"),
        ({"bucket": "30s"}, "bucket: expected at least 1m"),
        ({"history": "1h"}, "history: expected 1 to 1000 buckets of 1d"),
        ({"bucket": "1m"}, "history: expected 1 to 1000 buckets of 1m"),
        ({"min_history": 31}, "min_history: expected no more"),
        ({"min_history": 0}, "detectors.x.min_history"),
        ({"level": "grave"}, "detectors.x.level"),
        ({"techniques": ["1078"]}, "detectors.x.techniques.0"),
        ({"where": {"user.name": []}}, "detectors.x.where.user.name"),
        ({"value": []}, "detectors.x.value"),
        ({"title": ""}, "detectors.x.title"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        first_seen.build("x", {**OPTIONS, **options}, None)


def test_durations_read_as_they_are_written() -> None:
    for text in ("90s", "5m", "1h", "36h", "30d"):
        assert length(duration(text)) == text
    assert length(duration("4w")) == "28d"


def table(model: type[BaseModel]) -> str:
    """The option table of the documentation, as the model has it."""
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{written(name, field.default)}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines)


def written(name: str, default: Any) -> str:
    if name in ("bucket", "history", "lateness", "half_life"):
        return length(default)
    return "{}" if default == {} else "[]" if default == () else '""' if default == "" else str(default)


@pytest.mark.parametrize("model", [first_seen.FirstSeenOptions, hour_of_week.HourOfWeekOptions])
def test_the_documentation_has_every_option_as_it_is(model: type[BaseModel]) -> None:
    """docs/detectors.md holds each model's table, word for word; the message shows what to put there."""
    assert table(model) in PAGE.read_text(), f"put this table into docs/detectors.md:\n{table(model)}"


def test_times_are_read_as_iso_8601_too() -> None:
    """The test helper's own reading of time is exact."""
    assert instant_of("2024-10-04T00:00:00.000001+00:00") == START + 1
