"""Whatever comes in: nothing raises, every record has one fate, and how it is cut changes nothing."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import RecordError
from agent.model import NO_TIME, UNPARSED, Chunk, Records
from agent.normalise import Normaliser
from agent.normalise.clock import parse, parse_all

AS_OF = parse("2024-05-01T12:00:00Z")
NAMES = ["EventID", "Channel", "Event", "System", "EventData", "winlog", "event_data", "Image", "ProcessId", "ecs"]
NAMES += ["eventSource", "eventName", "event", "@timestamp", "a.b", "", "__class__", "#text", "#attributes", "\x00"]
WANTED = frozenset({"event.code", "process.executable", "process.pid", "a.b", "event.original", "message"})

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9)
)
times = st.sampled_from(["2024-05-01T11:00:00Z", "1601-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-05-01 10:00:00"])
names = st.sampled_from(NAMES) | st.text(max_size=5)
values = st.recursive(
    scalars | times,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(names, values, max_size=6)
words = st.sampled_from([b"-", b"a", b"192.0.2.1", b"192.0.2.1,", b'" "', b"\x1c", b"\xa0", b"<13>", b"a:"])
access = st.lists(words, min_size=2, max_size=5).map(
    lambda head: b" ".join(head) + b' [09/Mar/2024:11:00:00 +0100] "GET / HTTP/1.1" 200 3'
)
raws = st.binary(max_size=60) | objects.map(orjson.dumps) | values.map(orjson.dumps) | access
formats = st.sampled_from(["json", "evtx", "cloudtrail", "syslog", "access", "text"])
chunks = st.lists(st.tuples(st.sampled_from("ab"), formats, st.lists(raws, max_size=6)), max_size=4)


def records(parts: list[tuple[str, str, list[bytes]]]) -> Records:
    made = tuple(Chunk(name, "f", format, range(len(raw)), raw) for name, format, raw in parts)
    return Records("s", made, {}, AS_OF)


def rows(parts: list[tuple[str, str, list[bytes]]], normaliser: Normaliser, marks: dict[str, int]) -> list[Any]:
    result = normaliser(records(parts), marks)
    batch = result.batch
    marks.update(result.marks)
    dead = (letter.reason for letter in result.dead)
    return [
        (
            batch.kinds[batch.kind[row]],
            int(batch.time[row]),
            int(batch.high[row]),
            bool(batch.future[row]),
            {name: value for name in batch.columns if (value := batch.value(row, name)) is not None},
            next(dead) if batch.kinds[batch.kind[row]].mapping == UNPARSED else None,
        )
        for row in range(len(batch))
    ]


@settings(max_examples=150, deadline=None)
@given(chunks)
def test_each_record_has_one_fate_and_cuts_change_nothing(parts: list[tuple[str, str, list[bytes]]]) -> None:
    """One row a record; quarantined or of a kind; the same rows if each record is a fetch of its own."""
    whole = rows(parts, Normaliser(lambda kind: WANTED), {})
    assert len(whole) == sum(len(raw) for *_, raw in parts)
    normaliser, marks = Normaliser(lambda kind: WANTED), dict[str, int]()
    single = [
        row for name, format, raw in parts for one in raw for row in rows([(name, format, [one])], normaliser, marks)
    ]
    assert whole == single


@settings(max_examples=150, deadline=None)
@given(formats, raws)
def test_a_document_is_json_or_the_record_is_refused(format: str, raw: bytes) -> None:
    """`document` gives JSON with a time, or raises RecordError exactly where the batch quarantines."""
    normaliser = Normaliser(lambda kind: frozenset())
    dead = normaliser(records([("p", format, [raw])]), {}).dead
    try:
        document = normaliser.document(format, raw, as_of=AS_OF)
    except RecordError:
        assert dead
    else:
        assert not dead
        assert parse(orjson.loads(orjson.dumps(document))["@timestamp"]) != NO_TIME


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.datetimes().map(str) | st.datetimes().map(lambda time: time.isoformat() + "Z") | st.text(max_size=40))
)
def test_bulk_times_are_single_times(texts: list[str]) -> None:
    """Reading times by the array gives what reading them one by one gives."""
    assert parse_all(texts).tolist() == [parse(text) for text in texts]
