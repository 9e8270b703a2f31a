"""The canary: what is one, that it is one alert, and what a flood of them may cost."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.alerting.judge import alert_id
from agent.cli import app
from agent.cli import canary as command
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


# --- the command, as far as it goes without a daemon ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before", "added"),
    [
        ("a.log", b"", b"<14>1 "),
        ("a.json", b"", b'{"@timestamp":"'),
        ("a.log", b"Jan  1 12:00:00 web1 app: {\n", b"<14>1 "),
        ("a.log", b"Jan  1 12:00:00 web1 app: unended", b"\n<14>1 "),
        ("a.log", b'plain\n{"message": "x"}\n\n', b'{"@timestamp":"'),
        ("a.json", b"Jan  1 12:00:00 web1 app: no JSON\n", b"<14>1 "),
    ],
)
def test_a_line_is_appended_in_the_form_of_the_log(tmp_path: Path, name: str, before: bytes, added: bytes) -> None:
    """What is there stays as it is, and the line is one of its own."""
    log = tmp_path / name
    log.write_bytes(before)
    command.append(log, TOKEN, "url.original", create=False)
    after = log.read_bytes()
    assert after.startswith(before + added)
    assert after.endswith(b"\n")
    assert after.removeprefix(before).strip().count(b"\n") == 0
    line = after.splitlines()[-1]
    texts = [json.loads(line)["message"], json.loads(line)["url"]["original"]] if b"{" in line else [line.decode()]
    assert all(text.endswith(MARK + TOKEN) for text in texts)


def test_only_a_plain_file_is_written_to(tmp_path: Path) -> None:
    """Not through a link that somebody put there, not into a device, and none is made unasked."""
    log = tmp_path / "a.log"
    log.touch()
    (tmp_path / "link.log").symlink_to(log)
    os.mkfifo(tmp_path / "pipe.log")
    for place in (tmp_path, tmp_path / "link.log", tmp_path / "pipe.log", Path("/dev/null"), tmp_path / "new.log"):
        with pytest.raises(ConfigError, match=re.escape(str(place))):
            command.append(place, TOKEN, "message", create=False)
    assert not log.read_bytes()
    assert not (tmp_path / "new.log").exists()
    command.append(tmp_path / "new.log", TOKEN, "message", create=True)
    assert (tmp_path / "new.log").read_text().endswith(f"{MARK}{TOKEN}\n")


@pytest.mark.parametrize(
    "words", [["--wait", "short"], ["--wait", f"{TOKEN}\n"], ["--wait", TOKEN, "--write", "x"], ["--timeout", "soon"]]
)
def test_a_wrong_usage_is_said_before_anything_is_looked_at(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["canary", "-b", "nowhere.yml", *words]).exit_code == 2
