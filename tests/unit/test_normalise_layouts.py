"""JSON whose fields are no plain ones: typed values of OpenTelemetry, lines of syslog in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from agent.errors import ConfigError
from agent.model import Chunk, Kind, Records
from agent.normalise import Normaliser
from agent.normalise.clock import parse as parse_time
from agent.normalise.layouts import LAYOUTS
from agent.normalise.mapping import parse

AS_OF = parse_time("2024-05-01T12:00:00Z")
FAILED = "Failed password for invalid user ann from 198.51.100.7 port 50123 ssh2"
WANTED = ("event.dataset", "event.outcome", "host.hostname", "process.name", "process.pid", "source.ip", "user.name")


def row(format: str, raw: bytes) -> tuple[int, dict[str, Any]]:
    """Return the time and the wanted columns of one record in a batch."""

    def wanted(_kind: Kind) -> frozenset[str]:
        return frozenset(WANTED)

    records = Records("s", (Chunk("p", "p", format, (0,), (raw,)),), {}, as_of=AS_OF)
    batch = Normaliser(wanted)(records, {}).batch
    columns = {name: column.dictionary.values[column.codes[0]] for name, column in batch.columns.items()}
    return int(batch.time[0]), columns


def otlp(document: Mapping[str, Any]) -> dict[str, Any] | None:
    return LAYOUTS["otlp"](document)


def export(*records: Any) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}


def test_a_journals_entry_is_the_line_that_syslog_would_hold() -> None:
    """An entry and the line of the same message have the same columns and the same time."""
    entry = {
        "__REALTIME_TIMESTAMP": "1714557600000000",
        "_HOSTNAME": "web1",
        "SYSLOG_IDENTIFIER": "sshd",
        "_PID": "4242",
        "MESSAGE": FAILED,
    }
    line = f"2024-05-01T10:00:00Z web1 sshd[4242]: {FAILED}".encode()
    assert row("json", orjson.dumps(entry)) == row("syslog", line)
    assert row("syslog", line)[1]["user.name"] == "ann"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ([*FAILED.encode()], FAILED),
        ([70, 255], "F\ufffd"),
        (["one", "two"], "one\ntwo"),
        ([1, 256], "1\n256"),
        (7, "7"),
        (None, None),
    ],
)
def test_a_journals_message_has_several_forms(message: Any, text: str | None) -> None:
    """Bytes as numbers, a field that stands there twice, a number and nothing: all are read, none raises."""
    entry = orjson.dumps({"__REALTIME_TIMESTAMP": "1714557600000000", "SYSLOG_IDENTIFIER": "sshd", "MESSAGE": message})
    document = Normaliser(lambda kind: frozenset()).document("json", entry, as_of=AS_OF)
    assert document.get("message") == text
    assert document["process"]["name"] == "sshd"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"stringValue": "a"}, "a"),
        ({"intValue": "-9223372036854775808"}, -(2**63)),
        ({"intValue": 7}, 7),
        ({"intValue": "9" * 5000}, "9" * 5000),
        ({"intValue": "seven"}, "seven"),
        ({"boolValue": False}, False),
        ({"doubleValue": 0.5}, 0.5),
        ({"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}}, ["a", 1]),
        ({"arrayValue": {}}, []),
        ({"kvlistValue": {"values": [{"key": "a", "value": {"arrayValue": {"values": []}}}]}}, {"a": []}),
        ({"kvlistValue": None}, None),
        ({"stringValue": "a", "more": 1}, {"stringValue": "a", "more": 1}),
        ({}, {}),
        ("bare", "bare"),
    ],
)
def test_typed_values_become_plain(value: Any, plain: Any) -> None:
    """Each type of OTLP's values; what is none of them stays as it is."""
    found = otlp({"body": "b", "attributes": [{"key": "k", "value": value}]})
    assert found == {"record": {"body.text": "b"}, "attributes": {"k": plain}, "resource": {}}


@pytest.mark.parametrize(
    "document",
    [
        {"resourceLogs": []},
        {"resourceLogs": {}},
        {"resourceLogs": [None]},
        {"resourceLogs": [{"scopeLogs": [{}, {}]}]},
        export(),
        export("text"),
        export({"body": {"stringValue": "a"}}, {"body": {"stringValue": "b"}}),
    ],
)
def test_an_export_of_more_or_less_than_one_record_stays_whole(document: dict[str, Any]) -> None:
    """It is an event that no mapping knows, with all that it holds, and is counted as such."""
    assert otlp(document) is None
    whole = Normaliser(lambda kind: frozenset()).whole("json", orjson.dumps(document), as_of=AS_OF)
    assert whole.mapping.name == "json"


def test_what_wraps_a_record_is_kept() -> None:
    """Schemas' addresses, the scope, what a resource has beside its attributes, and attributes that are none."""
    document = export({"body": {"stringValue": "a"}, "severityNumber": 0, "attributes": "odd"})
    resource = {"droppedAttributesCount": 2, "attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    document["resourceLogs"][0] |= {"schemaUrl": "u", "resource": resource}
    document["resourceLogs"][0]["scopeLogs"][0]["scope"] = {"name": "s"}
    record = {
        "schemaUrl": "u",
        "scope": {"name": "s"},
        "body.text": "a",
        "attributes": "odd",
        "resource": {"droppedAttributesCount": 2},
    }
    assert otlp(document) == {"record": record, "attributes": {}, "resource": {"service.name": "shop"}}


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("format: json\nshapes: {s: {when: [a], layout: xml}}", "own.yml:3: unknown layout xml; there are otlp"),
        ("format: syslog\nshapes: {s: {when: [a], line: true}}", "own.yml:3: line: a record of the format syslog"),
    ],
)
def test_a_shape_that_cannot_be_read_is_refused(shape: str, says: str) -> None:
    """An unknown layout, and a line within a line, which would never end."""
    with pytest.raises(ConfigError) as raised:
        parse(f"mapping: own\n{shape}\n", "own.yml")
    assert says in str(raised.value)
