"""The normaliser's promises: every record has one fate, columns hold typed ECS values, kinds say what a row is."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from agent.model import NO_TIME, SECOND, UNPARSED, Chunk, Dictionary, Kind, Records, Value
from agent.normalise import Normalised, Normaliser, columns, kinds
from agent.normalise.clock import parse

AS_OF = parse("2024-05-01T12:00:00Z")
SYSMON = {
    "EventID": 1,
    "Channel": "Microsoft-Windows-Sysmon/Operational",
    "SourceName": "Microsoft-Windows-Sysmon",
    "Hostname": "ws-01.example.com",
    "@timestamp": "2024-05-01T11:00:00.250Z",
    "Image": r"C:\Windows\System32\cmd.exe",
    "CommandLine": "cmd.exe /c whoami",
    "ProcessId": "4711",
    "User": r"EXAMPLE\alice",
    "Hashes": "MD5=00112233445566778899AABBCCDDEEFF",
}
EVTX = {
    "Event": {
        "System": {
            "Provider": {"#attributes": {"Name": "Microsoft-Windows-Sysmon", "Guid": "{0}"}},
            "EventID": 3,
            "TimeCreated": {"#attributes": {"SystemTime": "2024-05-01T10:00:00.000000Z"}},
            "Channel": "Microsoft-Windows-Sysmon/Operational",
            "Computer": "ws-02",
        },
        "EventData": {"DestinationIp": "203.0.113.9", "DestinationPort": 443, "Initiated": True},
    }
}
WINLOGBEAT = {
    "@timestamp": "2024-05-01T11:59:00.000Z",
    "event": {"code": 4688, "kind": "event"},
    "winlog": {
        "channel": "Security",
        "provider_name": "Microsoft-Windows-Security-Auditing",
        "event_id": 4688,
        "time_created": "2024-05-01T09:00:00.000Z",
        "event_data": {"NewProcessName": r"C:\a.exe", "NewProcessId": "0x10", "SubjectUserName": "bob"},
    },
}


def wanting(*names: str) -> Normaliser:
    return Normaliser(lambda kind: frozenset(names))


def records(*raws: Any, format: str = "json", partition: str = "p", as_of: int = AS_OF) -> Records:
    raw = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in raws]
    return Records("s", (Chunk(partition, "f", format, range(len(raw)), raw),), {}, as_of)


def run(normaliser: Normaliser, *raws: Any, format: str = "json") -> Normalised:
    return normaliser(records(*raws, format=format), {})


def values(result: Normalised, name: str) -> list[Value | None]:
    return [result.batch.value(row, name) for row in range(len(result.batch))]


def kind_of(raw: Any, format: str = "json") -> Kind:
    return run(wanting(), raw, format=format).batch.kinds[0]


# --- shapes and kinds -------------------------------------------------------------------------------------------------


def test_flat_windows_event_fills_ecs_columns() -> None:
    """A flat Sysmon event gives its renamed fields under ECS names, typed by the catalogue."""
    result = run(wanting("process.executable", "process.pid", "host.name", "user.name", "process.hash.md5"), SYSMON)
    assert values(result, "process.executable") == [r"C:\Windows\System32\cmd.exe"]
    assert values(result, "process.pid") == [4711]
    assert values(result, "host.name") == ["ws-01.example.com"]
    assert values(result, "user.name") == ["alice"]
    assert values(result, "process.hash.md5") == ["00112233445566778899aabbccddeeff"]


def test_kind_names_what_is_constant() -> None:
    """A Windows kind carries event id as text, channel, provider and category as constants."""
    constant = kind_of(SYSMON).constant
    assert constant["event.code"] == "1"
    assert constant["winlog.channel"] == "Microsoft-Windows-Sysmon/Operational"
    assert constant["winlog.provider_name"] == "Microsoft-Windows-Sysmon"
    assert (constant["event.category"], constant["event.type"]) == ("process", "start")


def test_wanted_constant_is_a_column_too() -> None:
    """A wanted field that is constant for the kind can be read like any other."""
    assert values(run(wanting("event.code"), SYSMON), "event.code") == ["1"]


@pytest.mark.parametrize("event", [SYSMON, EVTX, WINLOGBEAT], ids=["flat", "evtx", "winlogbeat"])
def test_native_image_resolves_to_the_same_column(event: dict[str, Any]) -> None:
    """Whatever the shape, rules find Image under process.executable and an unknown field under the vendor's prefix."""
    kind = kind_of(event)
    assert kind.column("Image") == "process.executable"
    assert kind.column("EventID") == "event.code"
    assert kind.column("ComputerName") == "winlog.computer_name"
    assert kind.column("Hashes") == "winlog.event_data.Hashes"


def test_4688_answers_to_process_creation_names() -> None:
    """Security 4688 holds Image, CommandLine and ParentImage where Sysmon 1 does."""
    kind = kind_of(WINLOGBEAT)
    assert [kind.column(name) for name in ("Image", "NewProcessName", "CommandLine", "ParentImage", "User")] == [
        "process.executable",
        "process.executable",
        "process.command_line",
        "process.parent.executable",
        "winlog.event_data.SubjectUserName",
    ]
    result = run(wanting("process.executable", "process.pid", kind.column("User")), WINLOGBEAT)
    assert values(result, "process.executable") == [r"C:\a.exe"]
    assert values(result, "process.pid") == [16]
    assert values(result, "winlog.event_data.SubjectUserName") == ["bob"]


def test_ecs_document_of_windows_origin_is_read_under_its_ecs_names() -> None:
    """Where an integration has already renamed the native field, the column comes from the ECS field."""
    document = {
        "@timestamp": "2024-05-01T11:00:00Z",
        "ecs": {"version": "8.0.0"},
        "event": {"code": "1"},
        "process": {"executable": r"C:\x.exe"},
        "winlog": {"channel": "Microsoft-Windows-Sysmon/Operational", "event_id": "1"},
    }
    result = run(wanting("process.executable"), document)
    assert result.batch.kinds[0].column("Image") == "process.executable"
    assert values(result, "process.executable") == [r"C:\x.exe"]


def test_old_winlogbeat_shape() -> None:
    """The nested event_data of winlogbeat 6 is a Windows event."""
    event = {"log_name": "Microsoft-Windows-Sysmon/Operational", "event_id": 1, "event_data": {"Image": "C:\\y.exe"}}
    assert values(run(wanting("process.executable"), event), "process.executable") == ["C:\\y.exe"]


def test_booleans_of_evtx_are_text_in_vendor_fields() -> None:
    """EVTX has real booleans where the event has text; vendor fields are text, as rules write them."""
    result = run(wanting("winlog.event_data.Initiated", "destination.port"), EVTX, format="evtx")
    assert values(result, "winlog.event_data.Initiated") == ["true"]
    assert values(result, "destination.port") == [443]


def test_user_data_and_unnamed_data_of_evtx() -> None:
    """UserData's fields and unnamed Data are reachable under the vendor's prefix."""
    system = EVTX["Event"]["System"]
    cleared = {"Event": {"System": system, "UserData": {"LogFileCleared": {"SubjectUserName": "eve"}}}}
    unnamed = {"Event": {"System": system, "EventData": {"Data": {"#text": ["a", "b"]}}}}
    result = run(wanting("winlog.event_data.SubjectUserName", "winlog.event_data.Data"), cleared, unnamed)
    assert values(result, "winlog.event_data.SubjectUserName") == ["eve", None]
    assert values(result, "winlog.event_data.Data") == [None, ("a", "b")]


def test_event_id_with_qualifiers() -> None:
    """An EventID that is an object with attributes still names the kind."""
    event = json.loads(json.dumps(EVTX))
    event["Event"]["System"]["EventID"] = {"#attributes": {"Qualifiers": 16384}, "#text": 7045}
    assert kind_of(event).constant["event.code"] == "7045"


def test_cloudtrail_kind_and_nested_fields() -> None:
    """CloudTrail kinds are service and action; parameters stay reachable under their own dotted names."""
    record = {
        "eventSource": "s3.amazonaws.com",
        "eventName": "PutBucketPolicy",
        "eventTime": "2024-05-01T10:00:00Z",
        "sourceIPAddress": "198.51.100.7",
        "errorCode": "AccessDenied",
        "requestParameters": {"bucketName": "b-1"},
    }
    name = "aws.cloudtrail.requestParameters.bucketName"
    result = run(wanting(name, "source.ip", "event.outcome"), record, format="cloudtrail")
    kind = result.batch.kinds[0]
    assert (kind.constant["event.provider"], kind.constant["event.action"]) == ("s3.amazonaws.com", "PutBucketPolicy")
    assert kind.column("requestParameters.bucketName") == name
    assert values(result, name) == ["b-1"]
    assert values(result, "source.ip") == ["198.51.100.7"]
    assert values(result, "event.outcome") == ["failure"]


def test_lists_of_objects_are_read_as_lists() -> None:
    """A field inside a list of objects has all their values, as in a SIEM."""
    record = {"eventSource": "a", "eventName": "b", "resources": [{"ARN": "x"}, {"ARN": "y"}]}
    assert values(run(wanting("aws.cloudtrail.resources.ARN"), record), "aws.cloudtrail.resources.ARN") == [("x", "y")]


def test_unknown_json_is_readable_under_its_own_names() -> None:
    """JSON of no known shape is no failure: kind `json`, fields by dotted name, nested or not."""
    result = run(wanting("a.b", "c.d"), {"a": {"b": "x"}, "c.d": "y", "ts": 1_700_000_000})
    assert result.batch.kinds[0].mapping == "json"
    assert (values(result, "a.b"), values(result, "c.d")) == (["x"], ["y"])
    assert not result.dead
    assert result.batch.time[0] == 1_700_000_000 * SECOND


def test_what_identifies_and_is_missing_is_absent_in_the_kind() -> None:
    """Not what is empty: a rule may ask for that; nor what may come from elsewhere."""
    bare = {"EventID": 5156, "Computer": "a", "TimeGenerated": "2021-08-02T13:09:19Z"}
    assert kind_of(bare).absent == {"winlog.channel", "winlog.provider_name", "event.category", "event.dataset"}
    assert "winlog.channel" not in kind_of(bare | {"Channel": ""}).absent
    assert kind_of(bare | {"Channel": "Security"}).constant["event.category"] == "network"
    assert kind_of(bare | {"Channel": "Security"}).absent == {"winlog.provider_name"}
    document = {"@timestamp": "2021-08-02T13:09:19Z", "event": {"kind": "event", "dataset": "own"}}
    assert {"event.category", "event.action"} <= kind_of(document).absent
    assert "event.dataset" not in kind_of(document).absent
    values_of = run(wanting("winlog.channel", "event.dataset"), bare)
    assert (values(values_of, "winlog.channel"), values(values_of, "event.dataset")) == ([None], [None])


def test_ecs_category_list_names_the_kind_by_its_first() -> None:
    """Of a list of categories the first is the kind's constant."""
    document = {"event": {"category": ["network", "session"], "dataset": "zeek.conn"}, "@timestamp": "2024-05-01"}
    kind = kind_of(document)
    assert kind.mapping == "ecs"
    assert kind.constant["event.category"] == "network"


def test_wanted_is_asked_once_for_each_kind() -> None:
    """Equal kinds of different shapes are one kind to the detectors."""
    asked: list[Kind] = []

    def wanted(kind: Kind) -> frozenset[str]:
        asked.append(kind)
        return frozenset()

    normaliser = Normaliser(wanted)
    again = {**WINLOGBEAT, "winlog": {**WINLOGBEAT["winlog"], "event_id": "4688"}}
    run(normaliser, WINLOGBEAT, again, SYSMON)
    run(normaliser, WINLOGBEAT, SYSMON)
    assert len(asked) == len(set(asked)) == 3  # one of them for records that cannot be read


# --- types ------------------------------------------------------------------------------------------------------------


def test_wrong_type_is_left_out_and_counted() -> None:
    """A value that is not of its field's type is absent, not guessed, and counted by field."""
    result = run(wanting("process.pid"), SYSMON, {**SYSMON, "ProcessId": "many"}, {**SYSMON, "ProcessId": True})
    assert values(result, "process.pid") == [4711, None, None]
    assert result.counts["wrong_type:process.pid"] == 2


def test_values_of_a_column_have_one_type() -> None:
    """1, 1.0, true and "1" of a text field are four texts and never meet as equal keys."""
    name = "winlog.event_data.X"
    result = run(wanting(name), *({**SYSMON, "X": value} for value in (1, 1.0, True, "1", [1, None, True], None, [])))
    assert values(result, name) == ["1", "1.0", "true", "1", ("1", "true"), None, None]
    assert {type(value) for value in result.batch.columns[name].dictionary.values} == {str, tuple}


def test_alternative_is_taken_where_the_first_holds_nothing() -> None:
    """A derived field falls back to its next source where the first holds a dash."""
    event = {
        "EventID": 4720,
        "Channel": "Security",
        "SubjectUserName": "-",
        "TargetUserName": "carol",
    }
    assert values(run(wanting("user.name"), event, {**event, "SubjectUserName": "dan"}), "user.name") == [
        "carol",
        "dan",
    ]


def test_dictionary_is_kept_between_batches() -> None:
    """Consecutive batches share a column's dictionary, so that work on a value is done once."""
    normaliser = wanting("process.executable")
    first = run(normaliser, SYSMON).batch.columns["process.executable"].dictionary
    assert run(normaliser, SYSMON).batch.columns["process.executable"].dictionary is first


def test_full_dictionary_is_replaced_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full dictionary is begun anew; batches made before keep their own."""
    monkeypatch.setattr(Dictionary, "CAP", 2)
    normaliser = wanting("process.executable")
    first = run(normaliser, *({**SYSMON, "Image": f"{n}.exe"} for n in range(3)))
    second = run(normaliser, SYSMON)
    old, new = (one.batch.columns["process.executable"].dictionary for one in (first, second))
    assert old is not new
    assert values(first, "process.executable") == ["0.exe", "1.exe", "2.exe"]


def test_heavy_dictionary_is_replaced_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few but long values also end a dictionary: memory is bounded by weight."""
    monkeypatch.setattr(columns, "_WEIGHT_CAP", 10_000)
    normaliser = wanting("process.command_line")
    first = run(normaliser, {**SYSMON, "CommandLine": "x" * 20_000})
    second = run(normaliser, SYSMON)
    assert (
        first.batch.columns["process.command_line"].dictionary
        is not second.batch.columns["process.command_line"].dictionary
    )


# --- caps -------------------------------------------------------------------------------------------------------------


def test_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the cap a kind has no constants from the event; its identity is then in columns, and it is counted."""
    monkeypatch.setattr(kinds, "MAX_KINDS", 8)
    normaliser = wanting("event.code", "winlog.event_data.X")
    events = [{"EventID": n, "Channel": "c", "X": "v", "@timestamp": "2024-05-01"} for n in range(100)]
    result = run(normaliser, *events, SYSMON)
    assert len(result.batch.kinds) == 6 + 1 + 1
    assert result.counts["kinds_capped"] == 94
    assert values(result, "event.code") == [*map(str, range(100)), "1"]
    assert result.batch.kinds[result.batch.kind[-1]].constant["event.code"] == "1"  # declared kinds have a reserve


def test_a_long_identity_makes_no_kind() -> None:
    """A value too long for a constant stays a column."""
    result = run(wanting("winlog.channel"), {"EventID": 1, "Channel": "c" * 1000})
    assert "winlog.channel" not in result.batch.kinds[0].constant
    assert values(result, "winlog.channel") == ["c" * 1000]


# --- bad input --------------------------------------------------------------------------------------------------------

DEEP = b'{"a":' * 200 + b"1" + b"}" * 200


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": ', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
        (b'{"a": "\xe9"}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'"not JSON: so it says"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"", "empty record"),
        (b"  \t", "empty record"),
        (json.dumps({str(n): n for n in range(10_000)}).encode(), "more than 2000 fields"),
        (json.dumps({"a": [{str(n): n for n in range(10_000)}]}).encode(), "more than 2000 fields"),
        (DEEP, "deeper than 128 levels"),
        (b'{"a":' * 100_000, "not JSON"),
    ],
)
def test_unreadable_json_is_quarantined_with_its_reason(raw: bytes, reason: str) -> None:
    """A record that cannot be used is a dead letter with place and reason, and a row for raw-text rules."""
    result = run(wanting("event.original", "process.pid"), SYSMON, raw, SYSMON)
    (letter,) = result.dead
    assert letter.reason.startswith(reason)
    assert letter.reference == result.batch.reference(1)
    assert letter.raw == raw
    assert [result.batch.kinds[number].mapping for number in result.batch.kind] == ["windows", UNPARSED, "windows"]
    assert values(result, "process.pid") == [4711, None, 4711]
    assert values(result, "event.original")[1] == raw.decode("utf-8", "replace")
    assert result.counts["quarantined"] == 1


def test_faults_of_the_source_are_quarantined() -> None:
    """What the source found unusable keeps the source's reason, even if it would decode."""
    raw = json.dumps(SYSMON).encode()
    chunk = Chunk("p", "f", "json", [0, 1], [raw, raw], {1: "line longer than 1 MiB"})
    result = wanting("process.pid")(Records("s", (chunk,), {}, AS_OF), {})
    assert [letter.reason for letter in result.dead] == ["line longer than 1 MiB"]
    assert values(result, "process.pid") == [4711, None]


def test_decoded_mappings_are_read_like_bytes() -> None:
    """A source may give mappings; one that holds a lone surrogate is quarantined as its bytes would be."""
    chunk = Chunk("p", "f", "json", [0, 1], [SYSMON, {"a": "\ud800"}])
    result = wanting("process.pid", "event.original")(Records("s", (chunk,), {}, AS_OF), {})
    assert values(result, "process.pid") == [4711, None]
    assert len(result.dead) == 1
    assert json.loads(str(result.batch.value(0, "event.original"))) == SYSMON


def test_records_of_an_unknown_format_go_to_the_dead_letters_and_are_still_seen() -> None:
    """What no reader takes is quarantined, and raw-text rules see it."""
    result = run(wanting("event.original"), b"something happened", format="odd")
    assert result.dead[0].reason == "no mapping reads records of format odd"
    assert values(result, "event.original") == ["something happened"]


def test_text_that_no_mapping_knows_is_an_event_and_counted() -> None:
    """A line of unknown text keeps its text and what it says of itself; it is counted as unmapped, not quarantined."""
    lines = (b"something happened", b"user=ann src=192.0.2.1 logged in", b"Jan  2 03:04:05 host sshd[7]: hello")
    result = run(wanting("event.original", "message", "user.name", "source.ip"), *lines, format="text")
    assert values(result, "message") == ["something happened", "user=ann src=192.0.2.1 logged in", "hello"]
    assert values(result, "event.original")[0] == "something happened"
    assert values(result, "user.name") == [None, "ann", None]
    assert values(result, "source.ip") == [None, "192.0.2.1", None]
    assert not result.dead
    assert result.counts["unmapped"] == result.counts["untimed"] == 2


def test_json_that_no_mapping_knows_is_counted() -> None:
    """An object of no known product is an event, with what its names say, and counted as unmapped."""
    result = run(wanting("source.ip", "user.name"), {"src_ip": "192.0.2.1", "user": "ann"}, SYSMON)
    assert values(result, "source.ip")[0] == "192.0.2.1"
    assert values(result, "user.name")[0] == "ann"
    assert result.counts["unmapped"] == 1


@pytest.mark.parametrize(
    "record",
    [
        {"a.b": 1, "a": {"b": 2}},
        {"": {"": ""}, "..": 1},
        {"a\x00b": 1, "__class__": "x", "__init__": {"__globals__": 1}},
        {"Event": [], "winlog": "x", "EventID": {}, "Channel": [], "eventSource": {}, "eventName": None},
        {"Event": {"System": {"EventID": [1, 2], "Channel": {"a": {}}, "Provider": 1, "TimeCreated": "x"}}},
        {"winlog": {"event_data": ["x"], "channel": True, "event_id": 1.5}},
        {"EventID": 10**30, "Channel": "x" * 10_000},
        {"ecs": {"version": {}}, "event": 7},
    ],
)
def test_hostile_names_and_types_do_no_harm(record: dict[str, Any]) -> None:
    """Odd names and mixed types are read or left out, by columns and by document alike."""
    normaliser = wanting(
        "a.b", "process.executable", "event.code", "winlog.event_data.X", "__class__", "event.original"
    )
    result = run(normaliser, record)
    assert len(result.batch) == 1
    document = normaliser.document("json", json.dumps(record).encode(), as_of=AS_OF)
    assert json.loads(json.dumps(document))["@timestamp"] == "2024-05-01T12:00:00.000Z"


# --- time -------------------------------------------------------------------------------------------------------------


def at(time: Any) -> dict[str, Any]:
    return {"@timestamp": time}


def test_untimed_and_future_rows_move_nothing() -> None:
    """The running maximum is that of earlier, timed rows that are not in the future."""
    times = ["2024-05-01T10:00:00Z", "9999-12-31T23:59:59Z", "no time", "2024-05-01T09:00:00Z", "2024-05-01T11:00:00Z"]
    result = wanting()(records(*map(at, times)), {"p": parse("2024-05-01T08:00:00Z")})
    ten = parse(times[0])
    assert result.batch.high.tolist() == [parse("2024-05-01T08:00:00Z"), ten, ten, ten, ten]
    assert result.marks == {"p": parse("2024-05-01T11:00:00Z")}
    assert result.batch.future.tolist() == [False, True, False, False, False]
    assert result.batch.time[2] == AS_OF
    assert result.counts == {"future": 1, "untimed": 1, "unmapped": 5}


def test_five_minutes_ahead_is_not_yet_the_future() -> None:
    """The bound is five minutes after as_of, itself included."""
    result = run(wanting(), at("2024-05-01T12:05:00Z"), at("2024-05-01T12:05:00.001Z"))
    assert result.batch.future.tolist() == [False, True]


def test_partitions_have_their_own_maxima() -> None:
    """A partition's maximum goes on over its chunks and is not moved by other partitions."""
    raws = [json.dumps(at(f"2024-05-01T0{hour}:00:00Z")).encode() for hour in (3, 9, 5)]
    chunks = tuple(Chunk(part, "f", "json", [0], [raw]) for part, raw in zip("aba", raws, strict=True))
    result = wanting()(Records("s", chunks, {}, AS_OF), {})
    assert result.batch.high.tolist() == [NO_TIME, NO_TIME, parse("2024-05-01T03:00:00Z")]
    assert result.marks == {"a": parse("2024-05-01T05:00:00Z"), "b": parse("2024-05-01T09:00:00Z")}


def test_empty_fetch() -> None:
    """No records, no rows, the marks as they were."""
    result = wanting("event.code")(Records("s", (), {}, AS_OF), {"p": 7})
    assert len(result.batch) == 0
    assert result.marks == {"p": 7}
    assert not result.counts


def _everything(result: Normalised) -> Sequence[Mapping[str, Any]]:
    names = sorted(result.batch.columns)
    return [
        {name: result.batch.value(row, name) for name in names}
        | {"kind": result.batch.kinds[result.batch.kind[row]], "time": int(result.batch.time[row])}
        for row in range(len(result.batch))
    ]


def test_cuts_change_nothing() -> None:
    """However records are cut into fetches, each gives the same row."""
    raws = [SYSMON, EVTX, b"broken", WINLOGBEAT, {"x": 1}, {**SYSMON, "ProcessId": "?"}] * 60
    names = ("event.code", "process.executable", "process.pid", "destination.port", "event.original", "x")
    whole = _everything(run(wanting(*names), *raws))
    cut = wanting(*names)
    parts = [row for start in range(0, len(raws), 7) for row in _everything(run(cut, *raws[start : start + 7]))]
    assert [{k: v for k, v in row.items() if v is not None} for row in whole] == [
        {k: v for k, v in row.items() if v is not None} for row in parts
    ]
    assert np.all(run(cut, *raws).batch.origin == np.arange(len(raws)))


def test_values_that_never_come_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all columns remember together has a cap: the heaviest begin anew."""
    monkeypatch.setattr(columns, "_TOGETHER_CAP", 100_000)
    normaliser = wanting("process.command_line", "process.executable", "user.name")
    for number in range(50):
        texts = [{**SYSMON, "CommandLine": f"{number}-{row}" * 20, "Image": f"{row}.exe"} for row in range(100)]
        result = normaliser(records(*texts), {})
        column = result.batch.columns["process.command_line"]
        assert [column.value(row) for row in range(100)] == [text["CommandLine"] for text in texts]
        assert sum(len(dictionary.values) for dictionary in normaliser._pool._dictionaries.values()) < 1_500


def test_lists_weigh_what_their_items_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_TOGETHER_CAP", 100_000)
    normaliser = wanting("process.args", "user.name")
    for number in range(20):
        normaliser(records({"ecs": {"version": "8.11"}, "process": {"args": [f"{number}" * 500] * 100}}), {})
    assert len(normaliser._pool.dictionary("process.args").values) < 4


def test_values_of_the_wrong_type_are_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of them counts as what columns hold does."""
    monkeypatch.setattr(columns, "_TOGETHER_CAP", 100_000)
    normaliser = wanting("process.pid", "user.name")
    for number in range(50):
        result = normaliser(records(*({**SYSMON, "ProcessId": f"{number}-{row}" * 100} for row in range(20))), {})
        assert result.counts["wrong_type:process.pid"] == 20
    assert sum(coder.weight for coder in normaliser._pool._coders.values()) < 200_000


@pytest.mark.parametrize(
    "change",
    [
        lambda long: {long: 1},
        lambda long: {"Channel": long},
        lambda long: {"EventData": {long: 1}},
    ],
)
def test_long_names_and_kinds_are_not_remembered(change: Callable[[str], dict[str, Any]]) -> None:
    """What is kept for the next record is short: whoever writes 100 kB a name would fill the memory otherwise."""
    normaliser = wanting("user.name")
    long = [f"{number}" + "x" * 100_000 for number in range(40)]

    def meet(texts: Sequence[str]) -> int:
        for raw in (json.dumps({**SYSMON, **change(text)}).encode() for text in texts):
            normaliser(records(raw), {})
            normaliser.document("json", raw, as_of=AS_OF)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = meet(long[:10])
        assert meet(long[10:]) - before < 1_000_000
    finally:
        tracemalloc.stop()
