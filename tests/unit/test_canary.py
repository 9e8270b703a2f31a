"""The canary: what is one, that it is one alert, and what a flood of them may cost."""

from __future__ import annotations

from typing import Any

import pytest

from agent.alerting.judge import alert_id
from agent.detect.canary import MARK, MOST, build
from agent.detect.windows import rank
from agent.errors import ConfigError
from agent.model import SECOND, Kind
from agent.plugins import detector
from agent.ports import Detector
from agent.testing_detectors import Event, MemoryState, batch_of
from connectors.siem.source import build as siem
from tests.fake_siem import Reply
from tests.unit.test_lag import Index

NOON = 1_767_268_800 * SECOND
TOKEN = "20260101T120000-0af3"


def tokens(events: list[Event], detector: Detector | None = None, **options: Any) -> list[str]:
    detector = detector or build("canary", options, None)
    return [finding.key for finding in detector.detect(batch_of(events), MemoryState())]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"{MARK}{TOKEN}", [TOKEN]),
        (f"GET /?q={MARK}{TOKEN}&x=1", [TOKEN]),
        ([f"a {MARK}{TOKEN}", f"b {MARK}another-one {MARK}{TOKEN}", 7], [TOKEN, "another-one"]),
        (f"{MARK}{'x' * 64}", ["x" * 64]),
        (f"{MARK}{'x' * 65}", []),
        (f"{MARK}short77", []),
        (f"{MARK.upper()}{TOKEN}", []),
        (f"vedette-canary {TOKEN}", []),
        (7, []),
        (None, []),
    ],
)
def test_a_canary_is_the_mark_and_a_token(message: Any, expected: list[str]) -> None:
    assert tokens([{"@timestamp": NOON, "message": message}]) == sorted(expected, key=rank)


def test_its_alert_depends_on_the_token_alone() -> None:
    """Another event, time, field and configured name: the same alert; another token: another alert."""
    text = f"{MARK}{TOKEN}"
    events: list[Event] = [
        {"@timestamp": NOON, "message": text},
        {"@timestamp": NOON + 86_400 * SECOND, "message": f"again {text}", "event.original": text, "_partition": "b"},
        {"message": text},
    ]
    found = [build("canary", {}, None).detect(batch_of([one]), MemoryState())[0] for one in events]
    found += build("other", {"field": "event.original"}, None).detect(batch_of(events), MemoryState())
    assert len({alert_id("tenant", one) for one in found}) == 1
    assert {one.detector.id for one in found} == {"vedette.canary"}
    (other,) = build("canary", {}, None).detect(batch_of([{"message": f"{text}-2"}]), MemoryState())
    assert alert_id("tenant", other) != alert_id("tenant", found[0])


def test_a_constant_of_the_kind_is_seen_without_a_column() -> None:
    events: list[Event] = [{"@timestamp": NOON, "message": f"{MARK}{TOKEN}"}]
    detector = build("canary", {}, None)
    (finding,) = detector.detect(batch_of(events, constants=["message"]), MemoryState())
    assert finding.key == TOKEN
    assert detector.fields(Kind("k", (("message", "x"),))) == frozenset()


def test_it_asks_for_one_field_and_says_so() -> None:
    made = detector("canary")("canary", {"field": "url.original"}, None)
    assert made.fields(Kind("k")) == {"url.original"}
    assert made.plan()["fields"] == ["url.original"]


def test_a_flood_is_cut_by_what_the_tokens_are_and_counted() -> None:
    """Beyond the most of one batch the same ones are found, whatever their order."""
    flood: list[Event] = [{"@timestamp": NOON, "message": f"{MARK}flooding{number}"} for number in range(MOST + 50)]
    state = MemoryState()
    found = build("canary", {}, None).detect(batch_of(flood), state)
    assert len(found) == MOST
    assert state.counters["capped"] == 50
    assert sorted(tokens(flood[::-1])) == sorted(one.key for one in found)
    assert not state.stored


def test_a_document_is_planted_by_a_create_and_a_refusal_says_what_is_missing() -> None:
    with Index() as index:
        index.write(1)
        index.on("_doc", Reply(201, {"result": "created"}), Reply(403, {"error": {"type": "security_exception"}}))
        source = siem("elasticsearch")("siem", {**index.access(), "indices": ["logs"]})
        source.plant("logs", {"message": "one"})
        (sent,) = index.sent("_doc")
        assert (sent.path, sent.query, sent.lines) == ("/logs/_doc", {"op_type": "create"}, [{"message": "one"}])
        with pytest.raises(ConfigError, match=r"403 security_exception.*; grant this account create_doc on logs"):
            source.plant("logs", {"message": "two"})
        source.close()


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^detectors\.canary\.colour: unknown key$"):
        build("canary", {"colour": "yellow"}, None)
    with pytest.raises(ConfigError, match=r"^detectors\.canary\.field: "):
        build("canary", {"field": "two words"}, None)
