"""Views over alerts: who is at risk, and which alerts belong together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.alerting.incidents import entities, incidents, risks

HOUR = 3_600_000_000
DAY = 24 * HOUR
NOW = 20_000 * DAY
LEVELS = ["low", "medium", "high"]


def alert(number: int, time: int, *, score: float = 50.0, rule: str = "r", level: str = "medium",
          verdict: str | None = None, **fields: Any) -> dict[str, Any]:  # fmt: skip
    technique = {"technique": {"id": ["T1110"], "subtechnique": {"id": ["T1110.001"]}}}
    document = {"event": {"risk_score": score}, "threat": technique, **fields}
    return {"id": f"{number:032x}", "time": time, "rule_id": rule, "title": f"rule {rule}", "level": level,
            "verdict": verdict, "document": document}  # fmt: skip


HOST = {"host": {"name": "Web1"}}
USER = {"user": {"name": "alice"}}


def test_an_alert_is_about_hosts_users_and_addresses() -> None:
    """Whatever form they have; names in lower case."""
    one = alert(1, NOW, **HOST, user={"name": ["Alice", "bob", ""]}, source={"ip": "192.0.2.1"}, destination="odd")
    assert entities(one) == [
        ("host.name", "web1"), ("user.name", "alice"), ("user.name", "bob"), ("source.ip", "192.0.2.1"),
    ]  # fmt: skip


def test_risk_fades_and_many_small_alerts_do_not_outweigh_a_grave_one() -> None:
    grave = [alert(1, NOW, score=99.0, **HOST)]
    small = [alert(2 + n, NOW, score=10.0, rule=str(n), **USER) for n in range(50)]
    first, second = risks([*grave, *small], NOW, 7 * DAY)
    assert (first.entity, second.entity, second.alerts) == (("host.name", "web1"), ("user.name", "alice"), 50)
    assert second.score < 10
    (old,) = risks([alert(1, NOW - 7 * DAY, score=99.0, **HOST)], NOW, 7 * DAY)
    assert old.score == pytest.approx(first.score / 2)


def test_one_rule_counts_once_an_hour_and_what_was_found_false_for_nothing() -> None:
    same = [alert(n, NOW, **HOST) for n in range(9)]
    (risk,) = risks(same, NOW, 7 * DAY)
    assert (risk.alerts, risk.score) == (9, risks(same[:1], NOW, 7 * DAY)[0].score)
    assert (
        risks([alert(1, NOW, verdict="false-positive", **HOST), alert(2, NOW, verdict="benign", **HOST)], NOW, DAY)
        == []
    )


@given(st.lists(st.tuples(st.floats(0, 99), st.integers(0, 60), st.sampled_from("abc")), max_size=60))
def test_risk_stays_within_its_bounds(rows: list[tuple[float, int, str]]) -> None:
    alerts = [
        alert(n, NOW - hours * HOUR, score=score, rule=rule, **HOST) for n, (score, hours, rule) in enumerate(rows)
    ]
    assert all(0 <= one.score <= 100 for one in risks(alerts, NOW, DAY))


def test_alerts_that_share_an_entity_in_time_are_one_incident() -> None:
    """By way of others too; what lies apart in time or shares nothing is another one."""
    found = incidents(
        [
            alert(1, NOW, **HOST),
            alert(2, NOW + HOUR // 2, level="high", rule="s", **HOST, **USER),
            alert(3, NOW + HOUR, **USER),
            alert(4, NOW + HOUR, host={"name": "db1"}),
            alert(5, NOW + 3 * HOUR, **USER),
            alert(6, NOW + 3 * HOUR, verdict="benign", **USER),
        ],
        HOUR,
        LEVELS,
    )
    assert [[int(id, 16) for id in one.alerts] for one in found] == [[1, 2, 3], [4], [5]]
    first = found[0]
    assert (first.level, first.start, first.end) == ("high", NOW, NOW + HOUR)
    assert first.entities == (("host.name", "web1"), ("user.name", "alice"))
    assert (first.rules, first.techniques) == (("rule r", "rule s"), ("T1110", "T1110.001"))


def test_an_alert_about_nobody_is_an_incident_of_its_own() -> None:
    assert len(incidents([alert(1, NOW), alert(2, NOW)], HOUR, LEVELS)) == 2
