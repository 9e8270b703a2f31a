"""Hour of week: what is expected, what is found, how silence and attacks are learnt, and what an alert says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from agent.detect import hour_of_week
from agent.detect.hour_of_week import _expect, _Expected, _learn, _silence
from agent.errors import ConfigError
from agent.model import Finding
from agent.ports import Detector
from agent.testing_detectors import DAY, HOUR, MINUTE, SECOND, Event, MemoryState, batch_of, keyed, replay

MONDAY = 19_996 * DAY  # 2024-09-30, a Monday
WEEK = 7 * DAY
OPTIONS: dict[str, Any] = {"title": "Unusual number of failed logons", "entity": ["source.ip"]}


def detector(**more: Any) -> Detector:
    return hour_of_week.build("failures", {**OPTIONS, **more}, None)


def hours(counts: Mapping[int, int], entity: Any = "192.0.2.1") -> list[Event]:
    """So many events in these hours after a Monday's midnight."""
    return [
        {"@timestamp": MONDAY + hour * HOUR + n * SECOND // 4, "source.ip": entity}
        for hour, count in sorted(counts.items())
        for n in range(count)
    ]


def found(counts: Mapping[int, int], **options: Any) -> list[Finding]:
    return replay(detector(**options), keyed(hours(counts))).findings


def said(findings: list[Finding]) -> list[int]:
    """The hours that were found, counted from the Monday."""
    return [((finding.window or (0, 0))[0] - MONDAY) // HOUR for finding in findings]


def office(weeks: int, peak: int = 12) -> dict[int, int]:
    """A few events in each working hour."""
    return {
        week * 168 + day * 24 + hour: peak + (week + day + hour) % 5
        for week in range(weeks)
        for day in range(5)
        for hour in range(8, 18)
    }


PAGE = Path(__file__).parents[2] / "docs" / "detectors.md"
NIGHT = 4 * 168 + 3
"""Monday of the fifth week, three o'clock."""


def test_a_burst_at_an_unusual_hour_is_found_when_the_hour_is_closed() -> None:
    """Not before the watermark less the lateness has passed the hour's end; then once."""
    one, state = detector(), MemoryState()
    assert replay(one, keyed(hours(office(4))), state=state, until=MONDAY + 4 * WEEK).findings == []
    assert one.detect(batch_of(hours({NIGHT: 200})), state) == []
    end = MONDAY + (NIGHT + 1) * HOUR
    assert one.advance(end + 5 * MINUTE - 1, state) == []
    (finding,) = one.advance(end + 5 * MINUTE, state)
    assert finding.window == (end - HOUR, end)
    assert finding.entity == (("source.ip", "192.0.2.1"),)
    assert finding.row is None
    assert finding.time == end - HOUR
    assert one.advance(end + DAY, state) == []


def test_an_explanation_says_how_many_when_and_how_many_were_expected() -> None:
    """One sentence; observed, expected with its interval, slot; maturity; a few of the events and their number."""
    (finding,) = found({**office(4), NIGHT: 200})
    why = finding.explanation
    assert why.sentence.startswith("200 events of source.ip 192.0.2.1 on 2024-10-28, Monday 03:00–04:00 UTC; expected ")
    assert why.sentence in " ".join(PAGE.read_text().replace("\n> ", " ").split()), "the documentation quotes it"
    count, slot = why.factors
    assert (count.field, count.observed) == ("vedette.baseline.count", 200)
    assert 0 < count.expected["mean"] < 5
    assert count.expected["low"] == 0
    assert 10 < count.expected["high"] < 100
    assert count.contribution == finding.score
    assert slot.observed == "Monday 03:00–04:00 UTC"
    assert why.maturity == pytest.approx(0.6, abs=0.1)
    assert finding.score is not None
    assert finding.score > 0.999
    assert finding.fields == {"source.ip": "192.0.2.1", "vedette.evidence.total": 200}
    assert [reference.key - 4 * 50 * 14 for reference in finding.evidence] == [0, 1, 2, 3]  # type: ignore[operator]


def test_what_is_usual_at_one_hour_is_a_finding_at_another() -> None:
    """Eighty events on Monday at nine are ordinary, at three in the morning they are not."""
    peaks = {**office(8, peak=4), **{week * 168 + 9: 80 for week in range(9)}}
    assert said(found({**peaks, 8 * 168 + 3: 80})) == [8 * 168 + 3]


def test_an_entity_is_not_judged_before_it_is_known_long_enough() -> None:
    """A week of history by default; an hour or a week sooner or later makes the difference."""
    counts = {0: 1, 100: 1, 167: 100}
    assert found(counts) == []
    assert said(found(counts, min_history=167)) == [167]


def test_few_events_are_not_worth_an_alert() -> None:
    """Below min_count nothing is found, however unexpected."""
    counts = {0: 1, 300: 1, 900: 9}
    assert found(counts, threshold=0.01) == []
    assert said(found(counts, threshold=0.01, min_count=9)) == [900]


def test_silence_is_learnt() -> None:
    """Twelve events are ordinary after a busy week, and news after eight quiet ones."""
    busy = dict.fromkeys(range(168), 10)
    assert found({**busy, 170: 14}) == []
    quiet = {0: 1, 9 * 168: 14}
    assert said(found(quiet)) == [9 * 168]


def test_silence_in_closed_form_is_silence_hour_by_hour() -> None:
    """A hundred zeros at once are a hundred zeros one by one."""
    one_by_one = list(_silence([30.0, 400.0, 7.0], 0.97, 0))
    for _ in range(100):
        one_by_one = [part * 0.97 + add for part, add in zip(one_by_one, (0, 0, 1), strict=True)]
    assert list(_silence([30.0, 400.0, 7.0], 0.97, 100)) == pytest.approx(one_by_one)


def test_an_attack_does_not_become_normal() -> None:
    """Twenty-four hours of attack are twenty-four findings, and next week's attack is one more."""
    start = 4 * 168 + 18
    attack = dict.fromkeys(range(start, start + 24), 5_000)
    findings = said(found({**office(4), **attack, start + 168: 5_000}))
    assert findings == [*range(start, start + 24), start + 168]


def test_a_new_level_becomes_normal_in_time() -> None:
    """A lasting change (a new job that asks four times as often) stops alerting within a week."""
    steady = dict.fromkeys(range(4 * 168), 20)
    raised = dict.fromkeys(range(4 * 168, 8 * 168), 80)
    findings = said(found({**steady, **raised}))
    assert findings
    assert max(findings) < 5 * 168


def test_false_alarms_are_about_as_rare_as_the_threshold_says() -> None:
    """Ordinary traffic, spread more than chance alone would, gives few findings; a fixed seed."""
    chance = np.random.default_rng(1)
    judged = alarms = 0
    for _ in range(4):
        hour = np.arange(6 * 168)
        working = (hour % 24 >= 8) & (hour % 24 < 18) & (hour // 24 % 7 < 5)
        rates = np.where(working, 12, 0.2) * chance.gamma(4, 1 / 4, len(hour))
        drawn = chance.poisson(rates)
        counts = {int(at): int(drawn[at]) for at in np.flatnonzero(drawn)}
        alarms += len(found(counts))
        judged += 5 * 168
    assert alarms <= 2 * 0.001 * judged


def test_late_events_are_counted_apart() -> None:
    """An hour that is closed stays as it was judged."""
    one, state = detector(), MemoryState()
    one.detect(batch_of(hours({0: 3})), state)
    one.advance(MONDAY + 2 * HOUR, state)
    before = dict(state.stored)
    one.detect(batch_of(hours({0: 50})), state)
    assert state.counters["late"] == 50
    assert state.stored == before


def test_entities_that_are_silent_for_long_are_forgotten_and_unknown() -> None:
    """Four half-lives of silence leave the books only, and who returns is new."""
    one, state = detector(), MemoryState()
    replay(one, keyed(hours(office(2))), state=state, until=MONDAY + 2 * WEEK)
    assert len(state.stored) == 7
    one.advance(MONDAY + 30 * WEEK, state)
    assert list(state.stored) == [""]
    assert found({**office(2), 30 * 168: 500}) == []


def test_state_of_an_entity_is_bounded() -> None:
    """Half a year of events in every hour is one record, seven days of slots and the books, in a few kilobytes."""
    state = MemoryState()
    replay(detector(), keyed(hours(dict.fromkeys(range(26 * 168), 1))), state=state)
    assert len(state.stored) == 9
    assert state.size() < 8_000


def test_findings_of_a_capped_operator_say_so() -> None:
    """Entities past the cap are dropped by rank and counted; what is found meanwhile is marked."""
    events = [event for n in range(60) for event in hours({0: 1, 200: 50}, f"10.0.0.{n}")]
    events.sort(key=lambda event: event["@timestamp"])
    replayed = replay(detector(max_keys=60), keyed(events), cuts=range(0, len(events), 60))
    assert 0 < len(replayed.findings) < 60
    assert all(finding.fields["vedette.capped"] is True for finding in replayed.findings)
    assert replayed.state.counters["capped"] > 0


def test_tail_and_bound_agree_with_the_distribution() -> None:
    """P(count or more) is scipy's negative binomial, far into the tail; the bound is its inverse."""
    for mean, size in ((0.01, 0.02), (3.0, 0.3), (40.0, 8.0), (5_000.0, 9.9)):
        reference = stats.nbinom(size, size / (size + mean))
        expected = _Expected(mean, size, 1.0)
        for count in (1, 2, 10, 100, 1_000, 20_000):
            assert expected.reach(count) == pytest.approx(reference.sf(count - 1), rel=1e-8, abs=1e-300)
        bound = expected.bound(0.001)
        assert expected.reach(bound) < 0.001 <= expected.reach(bound - 1)


def test_expectation_moves_from_the_level_to_the_slot() -> None:
    """Without observations of its own a slot is like the entity at large; with many it is itself."""
    level = (100.0, 2_000.0, 100.0)
    own: Any = (0.0, 0.0, 0.0)
    assert _expect(own, level).mean == pytest.approx(1, abs=0.02)
    for _ in range(200):
        own = _learn(own, 0.99, 30)
    assert _expect(own, level).mean == pytest.approx(30, rel=0.05)
    assert _expect(own, level).maturity > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket": "5h"}, "bucket: expected at least 5m and a divisor of a week"),
        ({"bucket": "1m"}, "bucket: expected at least 5m"),
        ({"half_life": "1d"}, "half_life: expected at least 1w"),
        ({"threshold": 0}, "detectors.x.threshold"),
        ({"threshold": 0.7}, "detectors.x.threshold"),
        ({"min_count": 0}, "detectors.x.min_count"),
        ({"value": ["source.ip"]}, "detectors.x.value: unknown key"),
        ({"entity": []}, "detectors.x.entity"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hour_of_week.build("x", {**OPTIONS, **options}, None)
