"""Zeek's tables: what a header says, what becomes of cells, and reading on in the middle of a file that grows."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import DOCUMENT
from agent.normalise import Normaliser
from agent.testing import payloads, stored_cursor
from connectors._containers import Stream
from connectors._readers import Shape, ZeekReader, sniff
from connectors.files import build

FIELDS = ("ts", "uid", "id.orig_p", "host", "ok", "rtt", "tags", "ports")
TYPES = ("time", "string", "port", "string", "bool", "interval", "set[string]", "vector[port]")
LATER = 4_000_000_000_000_000


def header(path: str = "weird", fields: tuple[str, ...] = FIELDS, types: tuple[str, ...] = TYPES) -> str:
    return (
        "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n"
        f"#path\t{path}\n#open\t2024-05-01-10-00-00\n#fields\t"
        + "\t".join(fields)
        + "\n#types\t"
        + "\t".join(types)
        + "\n"
    )


def row(number: int = 1, **cells: str) -> str:
    known = {"ts": f"1714557600.{number:06}", "uid": f"C{number}", "id.orig_p": "53", **cells}
    return "\t".join(known.get(name, "-") for name in FIELDS) + "\n"


def reader(text: str, offset: int = 0) -> ZeekReader:
    source = io.BytesIO(text.encode())
    return ZeekReader(Stream(source.read), offset)


def read(text: str, offset: int = 0) -> list[dict[str, Any]]:
    piece = reader(text, offset).take(1000, 1 << 20)
    assert not piece.faults
    return [json.loads(raw) for raw in piece.raw]


def test_a_line_is_the_object_that_zeek_writes_as_json() -> None:
    """Cells have the types of the header; what is unset is not there, what is empty is an empty text or list."""
    cells = {"host": "a.example", "ok": "T", "rtt": "0.25", "tags": "x,y", "ports": "(empty)"}
    assert read(header() + row(7, **cells)) == [
        {
            "_path": "weird",
            "ts": "2024-05-01T10:00:00.000007Z",
            "uid": "C7",
            "id.orig_p": 53,
            "host": "a.example",
            "ok": True,
            "rtt": 0.25,
            "tags": ["x", "y"],
            "ports": [],
        }
    ]


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("host", "(empty)", ""),
        ("host", r"C:\\a\x09b\x2c", "C:\\a\tb,"),
        ("host", r"\x00\xff", r"\x00\xff"),
        ("host", "grüß", "grüß"),
        ("tags", r"a\x2cb,c", ["a,b", "c"]),
        ("tags", "a,-", ["a", None]),
        ("ports", "80,443", [80, 443]),
        ("id.orig_p", "many", "many"),
        ("id.orig_p", "9" * 30, "9" * 30),
        ("ok", "maybe", "maybe"),
        ("rtt", "nan", "nan"),
        ("ts", "-1.5", "1969-12-31T23:59:58.500000+00:00"),
        ("ts", "1714557600", "2024-05-01T10:00:00+00:00"),
        ("ts", "99999999999.000000", "5138-11-16T09:46:39.000000Z"),
        ("ts", "999999999999.000000", "999999999999.000000"),
        ("ts", "-999999999999", "-999999999999"),
        ("ts", "1.7145576005e+09", "2024-05-01T10:00:00.500000+00:00"),
        ("ts", "1e99", "1e99"),
        ("ts", "1e900000", "1e900000"),
        ("ts", "9" * 20, "9" * 20),
        ("ts", "soon", "soon"),
    ],
)
def test_cells(column: str, cell: str, value: object) -> None:
    """Escapes are written out; a cell that is not of its type stays a text."""
    assert read(header() + row(**{column: cell}))[0][column] == value


def test_a_header_may_choose_its_own_signs() -> None:
    """Separator, set separator, empty and unset are read from the header."""
    lines = [
        "#separator ;",
        "#set_separator;|",
        "#empty_field;none",
        "#unset_field;?",
        "#fields;a;b;c",
        "#types;string;set[count];int",
    ]
    assert read("\n".join([*lines, "x;1|2;-3", "none;?;?", ""])) == [
        {"_path": "", "a": "x", "b": [1, 2], "c": -3},
        {"_path": "", "a": ""},
    ]


def test_a_header_may_say_nonsense() -> None:
    """Signs that are empty change nothing, and types inside of types without end are texts."""
    text = header(types=("set[" * 50_000, *TYPES[1:])) + "#set_separator\t\n#separator \n" + row(tags="x,y")
    assert read(text)[0]["tags"] == ["x", "y"]


def test_what_does_not_fit_is_a_faulty_record() -> None:
    """Lines of another width, and lines before any header, keep their bytes and say why."""
    piece = reader("stray\n" + header() + row() + "one\ttwo\n").take(1000, 1 << 20)
    assert piece.faults == {
        0: "expected the 0 fields of the header, got 1",
        2: "expected the 8 fields of the header, got 2",
    }
    assert (piece.raw[0], piece.raw[2]) == (b"stray", b"one\ttwo")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_reader_opened_further_on_knows_the_header_in_force(limit: int) -> None:
    """A file may hold several headers; wherever reading goes on, the last one before it counts."""
    other = header("conn", ("uid", "ts"), ("string", "time"))
    text = (
        header()
        + row(1)
        + row(2)
        + "#close\t2024-05-01\n"
        + other
        + "C3\t1714557600.000003\nC4\t-\n"
        + header()
        + row(5)
    )
    whole = reader(text).take(1000, 1 << 20)
    assert [json.loads(raw)["uid"] for raw in whole.raw] == ["C1", "C2", "C3", "C4", "C5"]
    cut, offset = [], 0
    while (piece := (at := reader(text, offset)).take(limit, 1 << 20)).raw:
        cut += zip(piece.keys, piece.raw, strict=True)
        offset = at.offset
    assert cut == list(zip(whole.keys, whole.raw, strict=True))
    assert [text.encode()[key : key + 2] for key, raw in cut if b'"conn"' in raw] == [b"C3", b"C4"]  # type: ignore[misc, operator]


CELL = st.text(max_size=6) | st.sampled_from(
    ["-", "(empty)", "T", "1e999", "-1.5", r"\x0", r"\x00", "9" * 25, "nan", "a,b"]
)
HOSTILE = st.one_of(
    st.binary(max_size=40),
    st.lists(CELL, min_size=1, max_size=9).map(lambda cells: "\t".join(cells).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"#fields", b"#types\t", b"#separator ", b"#separator \\x2c", b"#path", b"#set_separator\t", b"#unset_field\t"]
    ),
    st.just(header().encode()),
)


@given(st.lists(HOSTILE, max_size=12), st.integers(1, 4))
def test_whatever_a_table_holds_is_read_once_and_the_same_from_anywhere(lines: list[bytes], limit: int) -> None:
    """Nothing raises, no line is lost, and what one reader gives does not depend on where the last one stopped."""
    data = header().encode() + b"\n".join(lines) + b"\n"

    def at(offset: int) -> ZeekReader:
        source = io.BytesIO(data)
        return ZeekReader(Stream(source.read), offset)

    whole: list[tuple[int | str, bytes]] = []
    reader = at(0)
    while (piece := reader.take(10_000, 1 << 20)).raw:
        assert all(piece.raw[place] in data for place in piece.faults)
        assert all(json.loads(raw) for place, raw in enumerate(piece.raw) if place not in piece.faults)
        whole += zip(piece.keys, piece.raw, strict=True)
    assert [key for key, _ in whole] == [
        key for key, line in located(data) if line.removesuffix(b"\r") and not line.startswith(b"#")
    ]
    cut, offset = [], 0
    while (piece := (reader := at(offset)).take(limit, 1 << 20)).raw:
        cut += zip(piece.keys, piece.raw, strict=True)
        offset = reader.offset
    assert cut == whole


def located(data: bytes) -> list[tuple[int, bytes]]:
    """Return each line with its offset."""
    found, offset = [], 0
    for line in data.split(b"\n"):
        found.append((offset, line))
        offset += len(line) + 1
    return found


@pytest.mark.parametrize(
    ("head", "configured", "shape"),
    [
        (header(), "auto", Shape("zeek", "table")),
        ("#separator \\x09\n#set", "auto", Shape("zeek", "table")),
        ("#path\tconn\n#fields\tts\tuid\n#types\ttime\tstring\n", "auto", Shape("zeek", "table")),
        ("#Fields: date time c-ip\n", "auto", Shape("w3c", "table")),
        ("anything\n", "zeek", Shape("zeek", "table")),
        ('{"_path":"conn"}\n', "zeek", Shape("json", "lines")),
    ],
)
def test_tables_are_told_by_their_header(head: str, configured: str, shape: Shape | None) -> None:
    assert sniff(head.encode(), configured) == shape


class Follower:
    """Follows the logs of a folder; between two fetches it may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cursor = folder, None
        self.open()

    def open(self) -> None:
        self.source = build("files", {"paths": [str(self.folder / "*.log*")], "follow": True}, lambda: LATER)
        self.source.open(frozenset())

    def uids(self, killed: bool = False) -> list[str]:
        if killed:
            self.source.close()
            self.open()
        found: list[str] = []
        while len(records := self.source.fetch(self.cursor, 2)):
            self.cursor = stored_cursor(records.cursor)
            found += [json.loads(raw)["uid"] for raw in payloads(records)]  # type: ignore[arg-type]
        return found


@pytest.mark.parametrize("killed", [False, True])
def test_a_followed_table_is_read_on_where_it_was_left(tmp_path: Path, killed: bool) -> None:
    """Through growth, rotation and packing, killed or not, each record comes once and is read by its own header."""
    log = tmp_path / "conn.log"
    log.write_text(header() + row(1) + row(2) + row(3)[:20])
    follower = Follower(tmp_path)
    assert follower.uids() == ["C1", "C2"]
    with log.open("a") as file:
        file.write(row(3)[20:] + row(4))
    assert follower.uids(killed) == ["C3", "C4"]
    with log.open("a") as file:
        file.write(row(5) + "#close\t2024-05-01-11-00-00\n")
    rotated = tmp_path / "conn.log.1"
    log.rename(rotated)
    log.write_text(header("conn", ("uid", "ts"), ("string", "time")).replace("10-00", "11-00") + "C6\t1714557600.0\n")
    assert follower.uids(killed) == ["C5", "C6"]
    (tmp_path / "conn.log.1.gz").write_bytes(gzip.compress(rotated.read_bytes()))
    rotated.unlink()
    with log.open("a") as file:
        file.write("C7\t1714557601.0\n")
    assert follower.uids(killed) == ["C7"]
    follower.source.close()


def test_records_of_a_table_can_be_read_again(tmp_path: Path) -> None:
    """Evidence is fetched by offset, with the header that was in force there."""
    text = header() + row(1) + header("conn", ("uid", "ts"), ("string", "time")) + "C2\t1714557600.5\nC3\t-\n"
    (tmp_path / "all.log").write_text(text)
    source = build("files", {"paths": [str(tmp_path)]})
    source.open(frozenset())
    records = source.fetch(None, 100)
    references = [records.reference(index) for index in range(len(records))]
    assert source.full(references[1:]) == dict(zip(references[1:], payloads(records)[1:], strict=True))
    source.close()


def test_a_table_and_its_json_make_the_same_document() -> None:
    """The normaliser reads what the reader gives like Zeek's own JSON, with `_path` or without."""
    fields = (
        "ts",
        "uid",
        "id.orig_h",
        "id.orig_p",
        "id.resp_h",
        "id.resp_p",
        "proto",
        "conn_state",
        "orig_ip_bytes",
        "resp_ip_bytes",
    )
    types = ("time", "string", "addr", "port", "addr", "port", "enum", "string", "count", "count")
    line = "1714557600.250000\tC1\t10.0.0.1\t40000\t198.51.100.7\t443\ttcp\tSF\t100\t250\n"
    (raw,) = reader(header("conn", fields, types) + line).take(1, 1 << 20).raw
    record = json.loads(raw)
    del record["_path"]
    normaliser = Normaliser(lambda kind: frozenset())
    document = normaliser.document("zeek", raw, as_of=LATER)
    assert document == normaliser.document(DOCUMENT, {**record, "ts": 1714557600.25}, as_of=LATER)
    assert document["@timestamp"] == "2024-05-01T10:00:00.250Z"
    assert document["event"]["type"] == ["connection", "start", "end"]
    assert document["network"]["bytes"] == 350
    assert document["related"] == {"ip": ["10.0.0.1", "198.51.100.7"]}
