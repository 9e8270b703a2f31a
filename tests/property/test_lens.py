"""What is read of a JSON record through a lens is what is read of the whole record, whatever lies in either."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import Chunk, Records
from agent.normalise import Normaliser, lens, normaliser
from agent.normalise.catalogue import catalogue
from agent.normalise.decode import decode_json
from agent.normalise.lens import Lens
from agent.normalise.normaliser import Normalised
from tests.property.test_mapping_property import AS_OF, OBJECTS, VALUES


def sections(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every object in *record*, itself first."""
    found, left = [], [record]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found.append(value)
            left += value.values()
        elif isinstance(value, list):
            left += value
    return found


FLAT = [(format, record) for format, record in OBJECTS if format not in {"document", "w3c"}]
FIELDS = sorted(catalogue().fields)
NATIVES = sorted({key for _, record in FLAT for section in sections(record) for key in section})
PIECES = [
    *(
        b'"\xff"',
        b'"\\ud800"',
        b'"\\u0041"',
        b'"\\q"',
        b"1e999",
        b"-1e999",
        b"9" * 30,
        b"9" * 400,
        b"9" * 5_000,
        b"18446744073709551615",
    ),
    *(
        b"-9223372036854775809",
        b"01",
        b"NaN",
        b"1.5e3",
        b"-0",
        b"[" * 130 + b"]" * 130,
        b'{"a":[{},{},{"b":1}]}',
        b"tru",
    ),
    *(
        b'{"name":"a","value":1}',
        b'[-9223372036854775809,{"a":[18446744073709551616]}]',
        b'[{"name":"a","value":1},{"name":"b"}]',
        b'"]},{["',
        b"[1,[2,[3]],{}]",
        b'"\xc3\xa9"',
    ),
]
PLACE = b'"@@@"'


@st.composite
def raws(draw: st.DrawFn) -> list[bytes]:
    """Records of one or two products, some of them with keys and values that do not belong there."""
    products = draw(st.lists(st.integers(0, len(FLAT) - 1), min_size=1, max_size=2))
    found = []
    for _ in range(draw(st.integers(2, 12))):
        record = copy.deepcopy(FLAT[draw(st.sampled_from(products))][1])
        piece = b'""'
        for _ in range(draw(st.integers(0, 2))):
            section = draw(st.sampled_from(sections(record)))
            other = draw(st.sampled_from(sections(FLAT[draw(st.integers(0, len(FLAT) - 1))][1])))
            keys = sorted({*section, *other})
            if not keys:
                continue
            key = draw(st.sampled_from(keys))
            value = draw(st.one_of(st.just("@@@"), st.sampled_from([*VALUES, other.get(key)])))
            section[key] = copy.deepcopy(value)
            piece = draw(st.sampled_from(PIECES))
        raw = orjson.dumps(record).replace(PLACE, piece)
        found.append(raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 30)) == 0 else raw)
    return found


def read(parts: list[list[bytes]], fields: set[str], natives: set[str]) -> list[Normalised]:
    """Return what one normaliser makes of *parts*, one after the other."""
    one = Normaliser(lambda kind: frozenset(fields).union(map(kind.column, natives)))
    chunks = [Chunk("p", "f", "json", range(len(part)), part) for part in parts]
    return [one(Records("s", (chunk,), {}, AS_OF), {}) for chunk in chunks]


def told(found: Normalised) -> list[Any]:
    batch = found.batch
    rows = [
        (
            batch.kinds[batch.kind[row]],
            int(batch.time[row]),
            {n: c.value(row) for n, c in batch.columns.items() if c.value(row) is not None},
        )
        for row in range(len(batch.kind))
    ]
    return [rows, [(letter.reference, letter.reason, letter.raw) for letter in found.dead], found.counts]


def same(parts: list[list[bytes]], fields: set[str], natives: set[str]) -> bool:
    """Say whether lenses change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normaliser, "lens_of", lambda *_: None)
        whole = read(parts, fields, natives)
    return [*map(told, read(parts, fields, natives))] == [*map(told, whole)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(raws(), min_size=1, max_size=3),
    st.sets(st.sampled_from([*FIELDS, "event.original"]), max_size=40),
    st.sets(st.sampled_from(NATIVES), max_size=40),
)
def test_a_lens_shows_what_the_whole_record_holds(
    parts: list[list[bytes]], fields: set[str], natives: set[str]
) -> None:
    assert same(parts, fields, natives)


def test_most_examples_are_seen_through_a_lens() -> None:
    """The test above compares something: all but lines, layouts and records in records."""
    without = []
    for format, record in FLAT:
        one = Normaliser(lambda kind: frozenset({"user.name", "event.id"}))
        raw = orjson.dumps(record)
        one(Records("s", (Chunk("p", "f", format, range(4), [raw] * 4),), {}, AS_OF), {})
        if all(each.read([raw]) == [None] for each in one._lenses.values()):
            without.append(record)
    assert len(without) < len(FLAT) / 10


BLIND: list[tuple[object, str, object]] = [(lens, "_guards", lambda *_: []), (Lens, "covers", lambda *_: True)]


@pytest.mark.parametrize(("where", "name", "instead"), BLIND)
def test_a_lens_that_shows_too_little_is_noticed(
    where: object, name: str, instead: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one product, then with the keys of another one as well."""
    pairs = [(one, other) for (_, one), (_, other) in pairwise(FLAT)]
    parts = [[[orjson.dumps(one)] * 2, [orjson.dumps(one), orjson.dumps({**one, **other})]] for one, other in pairs]
    assert all(same(part, {"user.name", "event.id"}, set()) for part in parts)
    monkeypatch.setattr(where, name, instead)
    assert not all(same(part, {"user.name", "event.id"}, set()) for part in parts)


CLOUDTRAIL = next(record for format, record in FLAT if format == "cloudtrail")


@pytest.mark.parametrize("key", ["eventID", "beside"])
@pytest.mark.parametrize(
    "piece", [b"9" * 30, b"[%d]" % 2**64, b'{"a":[-9223372036854775809]}', b"9" * 5_000, b"[-%s]" % (b"9" * 5_000)]
)
def test_numbers_of_any_length_are_the_same(key: str, piece: bytes) -> None:
    """Whether they are read or passed over, in lists and objects as well."""
    raw = orjson.dumps({**CLOUDTRAIL, key: "@@@"}).replace(PLACE, piece)
    assert same([[raw] * 2] * 2, {"event.id", "user.name"}, set())
    assert not read([[raw]], {"event.id"}, set())[0].dead


@pytest.fixture(autouse=True)
def _it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lenses are used whatever they cost here."""
    monkeypatch.setattr(Lens, "_pays", lambda *_: True)


@pytest.mark.parametrize("pays", [False, True])
def test_what_was_decoded_whole_is_not_decoded_again(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a lens costs more than it spares, nor where it rests."""
    decoded = 0

    def counted(raws: Sequence[Any]) -> Any:
        nonlocal decoded
        decoded += len(raws)
        return decode_json(raws)

    monkeypatch.setattr(normaliser, "decode_json", counted)
    monkeypatch.setattr(Lens, "_pays", lambda *_: pays)
    refused = orjson.dumps({**CLOUDTRAIL, "eventTime": 2**64 - 1})
    read([[refused] * 8] * 3, {"event.id", "user.name"}, set())
    assert decoded <= 3 * (1 + 8)


@pytest.mark.parametrize(("read_ns", "whole_ns", "used"), [(10, 20, True), (20, 10, False), (20, 20, False)])
def test_a_lens_is_used_where_it_costs_less(
    read_ns: int, whole_ns: int, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried when it shows more, and again after many blocks; the clock alone decides, the records are the same."""
    monkeypatch.undo()
    times: list[int] = []

    def told(_: object) -> int:
        if not times:
            times.extend([read_ns, read_ns, whole_ns, whole_ns])
        return times.pop(0)

    monkeypatch.setattr(lens, "_time_of", told)
    found: list[int] = []
    genuine = Lens.read

    def counted(self: Lens, raws: Sequence[Any]) -> Any:
        result = genuine(self, raws)
        found.append(len(result) - result.count(None))
        return result

    monkeypatch.setattr(Lens, "read", counted)
    raw = orjson.dumps(CLOUDTRAIL)
    assert same([[raw] * 8] * 3, {"event.id", "user.name"}, set())
    assert any(found) is used
