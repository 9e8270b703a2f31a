"""What shapes and expressions say beyond one field: several fields, kept sections, records inside of records."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from agent.errors import ConfigError
from agent.model import DOCUMENT, Batch, Chunk, Kind, Records
from agent.normalise import Normaliser
from agent.normalise.mapping import parse
from agent.normalise.transforms import (
    PLAIN,
    after,
    community_id,
    distinguished,
    flags,
    next_word,
    sentence,
    stated,
    where,
    word,
)

HEAD = "mapping: m\nformat: json\nprefix: m.\nidentity: {id: event.code}\n"
NOON = 1_714_557_600_000_000


def batch(record: dict[str, Any], *wanted: str) -> Batch:
    chunk = Chunk("p", "x", "json", [0], [orjson.dumps(record)])
    return Normaliser(lambda kind: frozenset(wanted))(Records("s", (chunk,), {}, NOON), {}).batch


def value(record: dict[str, Any], name: str) -> Any:
    column = batch(record, name).columns.get(name)
    return None if column is None or column.codes[0] < 0 else column.dictionary.values[column.codes[0]]


def document(record: dict[str, Any]) -> dict[str, Any]:
    return Normaliser(lambda kind: frozenset()).document(DOCUMENT, record, as_of=NOON)


CONNECTION = {
    "ts": NOON / 1e6,
    "uid": "C1",
    "id.orig_h": "10.0.0.1",
    "id.orig_p": 5000,
    "id.resp_h": "10.0.0.2",
    "id.resp_p": 53,
    "proto": "udp",
    "conn_state": "SF",
}


def test_columns_are_made_of_several_fields() -> None:
    """A column of several native fields is filled where one of them is there, and typed like any other."""
    assert value({**CONNECTION, "orig_ip_bytes": 3, "resp_ip_bytes": 4}, "network.bytes") == 7
    assert value({**CONNECTION, "resp_ip_bytes": 4}, "network.bytes") == 4
    assert value(CONNECTION, "network.bytes") is None
    assert value(CONNECTION, "network.community_id") == document(CONNECTION)["network"]["community_id"]


def test_a_section_has_two_names() -> None:
    """What documents keep whole is one column under the vendor's native name and under the document's."""
    record = {"eventSource": "s3", "eventName": "Get", "requestParameters": {"bucketName": "b", "a": {"b": [1]}}}
    assert value(record, "aws.cloudtrail.requestParameters.bucketName") == "b"
    assert value(record, "aws.cloudtrail.flattened.request_parameters.bucketName") == "b"
    assert value(record, "aws.cloudtrail.request_parameters") == "{bucketName=b, a={b=[1]}}"
    kept = document(record)["aws"]["cloudtrail"]
    assert kept["flattened"]["request_parameters"] == {"bucketName": "b", "a": {"b": [1]}}
    assert "requestParameters" not in kept


def test_a_section_takes_nothing_but_itself() -> None:
    """A field whose name only begins like a section stays where it was; a section that is no object is a field."""
    record = {
        "CreationTime": "2024-05-01T10:00:00",
        "RecordType": 1,
        "UserType": 0,
        "Target": "x",
        "TargetContextId": "y",
    }
    kept = document({**record, "Actor": [{"ID": "a"}], "ActorContextId": "z"})["o365"]["audit"]
    assert (kept["Target"], kept["TargetContextId"], kept["ActorContextId"]) == ("x", "y", "z")
    assert kept["Actor"] == [{"ID": "a"}]


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([{"Name": "a b", "Value": "1"}, {"Name": "c.d", "Value": {"e": 2}}], {"a_b": "1", "c_d": {"e": 2}}),
        ([{"Name": "a", "NewValue": "1", "OldValue": None}], {"a": {"NewValue": "1"}}),
        ([{"Name": "a", "Value": "1"}, "odd"], [{"Name": "a", "Value": "1"}, "odd"]),
        ([{"Name": "a"}], [{"Name": "a"}]),
        ([{"Name": 5, "Value": "1"}], [{"Name": 5, "Value": "1"}]),
        ([], []),
    ],
)
def test_lists_of_named_values_become_an_object(items: list[Any], kept: Any) -> None:
    """So that each has a field of its own; any other list stays a list."""
    record = {"CreationTime": "2024-05-01T10:00:00", "RecordType": 1, "UserType": 0, "ExtendedProperties": items}
    assert document(record)["o365"]["audit"]["ExtendedProperties"] == kept


def test_an_empty_list_keeps_its_place() -> None:
    """A renamed field that is an empty list is at its new name, not under the vendor's native one."""
    http = {**CONNECTION, "trans_depth": 1, "request_body_len": 0, "tags": []}
    del http["conn_state"]
    assert document(http)["zeek"]["http"]["tags"] == []
    assert "tags" not in document(http)["zeek"]


def wrapped(raw: str) -> dict[str, Any]:
    return {"preview": False, "result": {"_raw": raw, "host": "sensor"}}


def test_a_record_in_a_record_is_read_as_itself() -> None:
    """Its kind, its columns and its document are those of the inner record, with the outer one's host."""
    record = wrapped(orjson.dumps({"ts": NOON / 1e6, "name": "odd", "notice": False}).decode())
    assert value(record, "host.name") == "sensor"
    assert batch(record, "host.name").kinds[0].constant["event.dataset"] == "zeek.weird"
    assert batch(record).time[0] == NOON
    assert document(record)["zeek"]["weird"]["name"] == "odd"


@pytest.mark.parametrize("raw", ["plain text", '{"broken', "[1]", '{"a":' * 200 + "1" + "}" * 200, ""])
def test_what_is_no_record_inside_stays_outside(raw: str) -> None:
    """The outer record is read as JSON of no known shape, and nothing is lost."""
    found = document(wrapped(raw))
    assert found["event"]["kind"] == "event"
    assert found["json"]["result"]["_raw"] == raw


def test_records_may_be_wrapped_only_so_often() -> None:
    """A record in a record in a record is read, to any depth that its bytes allow."""
    record = {"ts": NOON / 1e6, "name": "odd", "notice": False}
    for _ in range(6):
        record = wrapped(orjson.dumps(record).decode())
    assert document(record)["event"]["dataset"] == "zeek.weird"


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        ({"parameters": [{"name": "a", "intValue": 1}, {"name": "b"}]}, {"a": "1"}),
        ([{"parameters": [{"name": "a", "multiValue": ["x", "y"]}]}], {"a": ["x", "y"]}),
        ([{"parameters": [{"name": "a", "value": "x"}]}, {"parameters": [{"name": "a", "value": "y"}]}], None),
        ({"parameters": [{"name": 5, "value": "x"}]}, [{"name": 5, "value": "x"}]),
        ({"parameters": "x"}, "x"),
        ({"other": 1}, None),
    ],
)
def test_lists_of_named_values_are_read_by_name(events: Any, kept: Any) -> None:
    """Where a shape says so, values have fields of their own, in columns too; what is no such list stays as it is."""
    record = {"id": {"applicationName": "chat", "time": "2024-05-01T10:00:00Z"}, "actor": {}, "events": events}
    found = document(record)["google_workspace"].get("events", {})
    assert (found.get("parameters") if isinstance(found, dict) else None) == kept
    if isinstance(kept, dict):
        asked = value(record, "google_workspace.events.parameters.a")
        assert (list(asked) if isinstance(asked, tuple) else asked) == kept["a"]


def test_a_shape_says_what_its_records_do_not() -> None:
    """An identity field that is not there has the value the shape names; one that is there keeps its own."""
    assert batch(CONNECTION).kinds[0].constant["event.dataset"] == "zeek.connection"
    assert batch({**CONNECTION, "_path": "dns"}).kinds[0].constant["event.dataset"] == "zeek.dns"


def test_an_exact_shape_has_no_other_fields() -> None:
    """Time and host alone are a known host of Zeek; with more it is any product's JSON."""
    known = {"ts": "2024-05-01T10:00:00Z", "host": "10.0.0.1"}
    assert document(known)["event"]["dataset"] == "zeek.known_hosts"
    assert "dataset" not in document({**known, "msg": "x"})["event"]


def test_records_of_the_same_keys_may_be_of_different_shapes() -> None:
    """What is remembered by a record's keys is only which shapes are possible."""
    normaliser = Normaliser(lambda kind: frozenset())
    deep, flat = {"result": {"_raw": "{}"}, "x": 1}, {"result": {"other": 1}, "x": 1}
    whole = {"protoPayload": {"methodName": "m"}, "logName": "l"}
    other = {"protoPayload": {"no": "m"}, "logName": "l"}
    for _ in range(2):
        assert "service" not in normaliser.document("json", orjson.dumps(deep), as_of=NOON)
        assert normaliser.document("json", orjson.dumps(flat), as_of=NOON)["json"]["result"] == {"other": "1"}
        assert normaliser.document("json", orjson.dumps(whole), as_of=NOON)["event"]["dataset"] == "gcp.audit"
        assert "dataset" not in normaliser.document("json", orjson.dumps(other), as_of=NOON)["event"]


def test_a_siem_is_asked_for_all_fields_of_an_expression() -> None:
    """The projection names each native field that a joint column reads."""
    fields = Normaliser(lambda kind: frozenset({"network.bytes"})).projection(frozenset())
    assert {"orig_ip_bytes", "resp_ip_bytes"} <= fields


@pytest.mark.parametrize("spec", ["shout(A, B)", "table.no(A, B)", "lower(A, B)", "where(A, B)"])
def test_unknown_transforms_of_several_fields_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="of several fields; there are "):
        parse(HEAD + f"kinds:\n  - fields:\n      user.name: {spec}\n", "m.yml")


def test_tables_read_several_fields() -> None:
    text = "tables: {both: {true/a: yes, /b: no}}\nkinds:\n  - fields: {user.name: 'table.both(A, B)'}\n"
    (item,) = parse(HEAD + text, "m.yml").product({}).fields["user.name"]
    assert [item.convert(pair) for pair in ((True, "A"), (None, "b"), (1, 2))] == ["yes", "no", None]


def test_kinds_differ_by_what_shapes_say() -> None:
    """The plan is asked for each log apart, though no record names its log."""
    asked: list[Kind] = []
    normaliser = Normaliser(lambda kind: asked.append(kind) or frozenset())  # type: ignore[func-returns-value]
    weird = {"ts": 1.0, "name": "odd", "notice": False}
    rows = [orjson.dumps(CONNECTION), orjson.dumps(weird)]
    normaliser(Records("s", (Chunk("p", "x", "json", [0, 1], rows),), {}, NOON), {})
    assert {kind.constant.get("event.dataset") for kind in asked} >= {"zeek.connection", "zeek.weird"}


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (("128.232.110.120", 34855, "66.35.250.204", 80, "tcp"), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (("66.35.250.204", 80, "128.232.110.120", 34855, "TCP"), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (("192.168.0.89", 8, "192.168.0.1", 0, "icmp"), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        (("10.0.0.1", 1, "10.0.0.2", 2, "gre"), None),
        (("10.0.0.1", 1, "10.0.0.2", None, "udp"), None),
    ],
)
def test_flows_have_one_hash_in_both_directions(flow: tuple[Any, ...], expected: str | None) -> None:
    """The hashes are those that the public specification of Community ID states."""
    assert community_id(None)(flow) == expected


def test_a_one_way_flow_of_icmp_keeps_its_direction() -> None:
    """A message that nothing answers hashes apart from its mirror."""
    there = community_id("icmp")(("10.0.0.9", 3, "10.0.0.1", 1))
    assert there != community_id("icmp")(("10.0.0.1", 3, "10.0.0.9", 1))


@pytest.mark.parametrize("flow", [("no address", 1, "10.0.0.2", 2, "udp"), ("10.0.0.1", "x", "10.0.0.2", 2, "udp")])
def test_a_malformed_flow_is_of_the_wrong_type(flow: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"address|invalid literal"):
        community_id(None)(flow)


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("principal", "ann/EXAMPLE.COM", "ann"),
        ("principal", "ann", "ann"),
        ("realm", "ann@example.com", "example.com"),
        ("realm", "ann", None),
        ("email", "ann@example.com", "ann@example.com"),
        ("email", "https://ann@example.com", None),
        ("url", "https://example.com/a", "https://example.com/a"),
        ("url", "/a", None),
        ("endpoint_ip", "192.0.2.1:80", "192.0.2.1"),
        ("endpoint_ip", "[2001:db8::1]:80", "2001:db8::1"),
        ("endpoint_ip", "2001:db8::1", "2001:db8::1"),
        ("endpoint_ip", "10.9000.0.1", None),
        ("endpoint_port", "[2001:db8::1]:80", 80),
        ("endpoint_port", "2001:db8::1", None),
        ("endpoint_port", "192.0.2.1", None),
        ("first", ["a", "b"], "a"),
        ("first", [], None),
        ("ip_version", "2001:db8::1", "ipv6"),
        ("integers", [1.0, 2.5], [1, 2]),
        ("nanoseconds", 0.076967, 76_967_000),
        ("stem", "org.add_member", "org"),
        ("written", {"a": {"b": [True, None, 1]}}, "{a={b=[true, null, 1]}}"),
    ],
)
def test_transforms(name: str, raw: Any, expected: Any) -> None:
    assert PLAIN[name](raw) == expected


def test_transforms_with_arguments() -> None:
    assert distinguished("O")(r"CN=a,O=Some\, Inc.,C=US") == "Some, Inc."
    assert distinguished("OU")("CN=a,O=b") is None
    assert after("providers")("/tenants/t/Providers/Microsoft.x/y") == "Microsoft.x"
    assert after("providers")("/tenants/providers") is None
    assert word("2")("4127 REGISTER") == "REGISTER"
    assert word("3")("4127 REGISTER") is None
    assert where("user")((["a", "b"], ["App", "User"])) == ["b"]
    assert where("user")((["a"], ["User", "User"])) is None
    assert where("icmp")((3, "ICMP")) == 3
    assert flags(["x.AA", "tc"])((True, "true")) == ["AA"]


def test_sentences_are_read_by_place_and_by_name() -> None:
    """A text's sentence by number, what a named one states, and the word behind another; nothing where it is not."""
    text = "UDP request from a:1 to b:2. Action: Deny. Rule Collection: x.y. Rule: "
    assert [sentence(number)(text) for number in ("1", "2", "9")] == [
        "UDP request from a:1 to b:2",
        "Action: Deny",
        None,
    ]
    assert [stated(name)(text) for name in ("Action", "Rule_Collection", "Rule", "ction")] == [
        "Deny",
        "x.y",
        None,
        None,
    ]
    assert [next_word(name)(text) for name in ("from", "to", "Rule:", "of")] == ["a:1", "b:2.", None, None]
    with pytest.raises(ValueError, match="first sentence is 1"):
        sentence("0")
