"""Whole documents: nested ECS of the right types, what no mapping knows under the vendor's prefix."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.errors import RecordError
from agent.normalise import Normaliser
from tests.unit.test_normalise import AS_OF, EVTX, SYSMON, WINLOGBEAT

NORMALISER = Normaliser(lambda kind: frozenset())


def document(raw: Any, format: str = "json") -> dict[str, Any]:
    return NORMALISER.document(format, json.dumps(raw).encode(), as_of=AS_OF)


def test_windows_document() -> None:
    """Mapped fields are nested and typed, the rest stays native, related fields gather who took part."""
    doc = document({**SYSMON, "Odd": 5})
    assert doc["@timestamp"] == "2024-05-01T11:00:00.250Z"
    assert doc["process"]["pid"] == 4711
    assert doc["process"]["args"] == ["cmd.exe", "/c", "whoami"]
    assert doc["event"]["category"] == ["process"]
    assert doc["user"] == {"name": "alice", "domain": "EXAMPLE"}
    assert doc["winlog"]["event_data"] == {"User": r"EXAMPLE\alice", "Hashes": SYSMON["Hashes"], "Odd": "5"}
    assert doc["related"] == {"hash": ["00112233445566778899aabbccddeeff"], "user": ["alice"]}
    assert "original" not in doc["event"]


def test_evtx_document() -> None:
    """An EVTX record gives the same kind of document; its time is that of TimeCreated."""
    doc = document(EVTX, "evtx")
    assert doc["@timestamp"] == "2024-05-01T10:00:00.000Z"
    assert doc["destination"] == {"ip": "203.0.113.9", "port": 443}
    assert doc["network"]["direction"] == "egress"
    assert doc["event"]["code"] == "3"


def test_zero_header_time_is_not_the_events_time() -> None:
    """A zero TimeCreated is no time: the time of reading stands in."""
    event = json.loads(json.dumps(EVTX))
    event["Event"]["System"]["TimeCreated"]["#attributes"]["SystemTime"] = "1601-01-01T00:00:00.000000Z"
    assert document(event, "evtx")["@timestamp"] == "2024-05-01T12:00:00.000Z"


def test_documents_that_are_ecs_already_keep_their_fields() -> None:
    """Own values win over the mapping's, dotted keys are nested, wrong types and unknown categories are left out."""
    doc = document(
        {
            "ecs.version": "1.0",
            "ecs": {"version": "1.12"},
            "@timestamp": "2024-05-01T11:00:00Z",
            "event": {"kind": "alert", "category": ["web", "nonsense"], "original": "raw", "dataset": "x.y"},
            "source.ip": "192.0.2.1",
            "source": {"port": "http"},
            "custom": {"a": [1, {"b": 2}]},
            "related": {"ip": ["192.0.2.2"]},
        }
    )
    assert doc["event"] == {"kind": "alert", "category": ["web"], "dataset": "x.y"}
    assert doc["source"] == {"ip": "192.0.2.1"}
    assert doc["custom"] == {"a": [1, {"b": 2}]}
    assert doc["related"]["ip"] == ["192.0.2.2", "192.0.2.1"]


def test_winlogbeat_document_keeps_event_data() -> None:
    """Native fields of a winlogbeat document stay where they were, beside the ECS fields made of them."""
    doc = document(WINLOGBEAT)
    assert doc["winlog"]["event_data"]["NewProcessName"] == r"C:\a.exe"
    assert doc["process"] == {"executable": r"C:\a.exe", "name": "a.exe", "pid": 16}
    assert doc["event"]["code"] == "4688"


def test_unknown_json_stays_under_its_own_root() -> None:
    """Fields of an unknown product cannot collide with ECS."""
    doc = document({"host": "h", "source": [1, 2], "a": {"b": None, "c": {}}})
    assert doc["json"] == {"host": "h", "source": ["1", "2"]}


def test_names_that_no_index_takes_are_left_out() -> None:
    """Empty names and control characters stay in event.original only; of two fields for one place the first stays."""
    doc = document({"": 1, "a..b": 1, "x\x00": 1, "a": 1, "a.b": 2, "ok": 1})
    assert doc["json"] == {"a": "1", "ok": "1"}


def test_unreadable_record() -> None:
    """What cannot be decoded has no document."""
    with pytest.raises(RecordError, match="not JSON"):
        NORMALISER.document("json", b"{", as_of=AS_OF)
