"""Every mapping under hostile input: its own examples, cut, spliced and with values of every wrong kind."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import RecordError
from agent.model import Chunk, Kind, Records
from agent.normalise import Normaliser
from agent.normalise.catalogue import catalogue
from agent.normalise.clock import parse

AS_OF = parse("2024-05-01T12:00:00Z")
EXAMPLES = [
    example
    for path in sorted((Path(__file__).parents[1] / "mappings").glob("*.yml"))
    for example in yaml.safe_load(path.read_text("utf-8"))
]
LINES = [(example["format"], example["line"].encode()) for example in EXAMPLES if "line" in example]
OBJECTS = [(example["format"], example["record"]) for example in EXAMPLES if "record" in example]
PIECES = [
    b"",
    b"\\",
    b'"',
    b"'",
    b"=",
    b"|",
    b",",
    b"[",
    b"]",
    b"<0>",
    b"%",
    b"\xff\xfe",
    b"\0",
    b"\x1b[2J",
    b"A" * 5000,
]
PIECES += [
    b'="',
    b" a=b",
    b"\t",
    b"::1",
    b"999.9.9.9",
    b"-1",
    b"9" * 40,
    b"0x",
    b"1e999",
    b"\xe2\x80\xae",
    b"{}",
    b"CEF:0|",
]
VALUES = [
    None,
    True,
    -1,
    2**63,
    1e308,
    "",
    "-",
    "\x00",
    "\x1b[2J",
    "9" * 400,
    [],
    [[]],
    [None],
    {},
    {"": {}},
    ["a", 1, {}],
]
VALUES += [
    "not an address",
    "1601-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    {"#text": []},
    [{"a": 1}, {"a": []}],
    "\u202e",
]


@cache
def whole() -> Normaliser:
    return Normaliser(lambda kind: frozenset())


def everything(kind: Kind) -> frozenset[str]:
    return frozenset(catalogue().fields) | {"event.original", *kind.renames.values()}


@cache
def columns() -> Normaliser:
    return Normaliser(everything)


def holds(format: str, raw: bytes) -> None:
    """Both ways of reading agree on whether *raw* can be read; a document is JSON, and ECS fields have their types."""
    result = columns()(Records("s", (Chunk("p", "f", format, [0], [raw]),), {}, AS_OF), {})
    assert len(result.batch) == 1
    try:
        document = whole().document(format, raw, as_of=AS_OF)
    except RecordError:
        assert result.dead
        return
    assert not result.dead
    orjson.dumps(document)
    for name, field in catalogue().fields.items():
        if field.level == "core" and (value := of(document, name)) is not None and not isinstance(value, dict):
            items = value if isinstance(value, list) else [value]
            assert [catalogue().converter(name)(item) for item in items] == items
            assert set(map(str, items)) <= catalogue().allowed.get(name, set(map(str, items)))


def of(document: Any, name: str) -> Any:
    for part in name.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LINES), st.data())
def test_no_line_harms_its_mapping(example: tuple[str, bytes], data: st.DataObject) -> None:
    """A line may be cut anywhere and hold anything."""
    format, line = example
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(line))] * 2)))
    holds(format, line[:begin] + data.draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + line[end:])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(OBJECTS), st.data())
def test_no_object_harms_its_mapping(example: tuple[str, Any], data: st.DataObject) -> None:
    """Any value of an object may be of any type, or not be there."""
    format, record = example
    record = copy.deepcopy(record)
    place = record
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(VALUES))
    holds(format, orjson.dumps(record))
