"""Extended logs of W3C: the columns that a file's header names, wherever reading goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.normalise import Normaliser
from agent.testing import payloads, stored_cursor
from connectors._containers import Stream
from connectors._readers import Shape, W3cReader, sniff
from connectors.files import build

LATER = 4_000_000_000_000_000
IIS = "Microsoft Internet Information Services 10.0"


def header(*fields: str, software: str = IIS) -> str:
    return f"#Software: {software}\r\n#Version: 1.0\r\n#Date: 2026-03-09 10:00:00\r\n#Fields: {' '.join(fields)}\r\n"


def reader(text: str, offset: int = 0) -> W3cReader:
    return W3cReader(Stream(io.BytesIO(text.encode()).read), offset)


def read(text: str) -> list[dict[str, Any]]:
    piece = reader(text).take(1000, 1 << 20)
    assert not piece.faults
    return [json.loads(raw) for raw in piece.raw]


def test_a_line_is_the_object_of_its_columns() -> None:
    """Date and time of day are one time in UTC; a cell that is not set is not there; the header is no record."""
    text = header("date", "time", "cs-method", "cs(User-Agent)", "cs-username")
    assert read(text + "2026-03-09 10:00:01 GET Mozilla/5.0+(X) -\r\n") == [
        {
            "_software": {"Microsoft Internet Information Services": "10.0"},
            "time": "2026-03-09T10:00:01Z",
            "cs-method": "GET",
            "cs(User-Agent)": "Mozilla/5.0+(X)",
        }
    ]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ("a b c", '1 x"y 3'),
        ("a b c", '1\tx"y\t3'),
        ("a,b,c", '1,"x""y",3'),
        ("a\tb\tc", '1\tx"y\t3'),
    ],
)
def test_cells_are_parted_by_what_the_line_has(fields: str, line: str) -> None:
    """Blanks or tabs part them, or commas where they part the names."""
    (record,) = read(f"#Fields: {fields}\n{line}\n")
    assert record == {"_software": {}, "a": "1", "b": 'x"y', "c": "3"}


def test_quotes_hold_blanks_together() -> None:
    """Some servers quote texts with blanks; others write a quote as it came, which swallows no column."""
    assert read('#Fields: a b c\n1 "two words" 3\n1 "one" 3\n1 "two 3\n') == [
        {"_software": {}, "a": "1", "b": "two words", "c": "3"},
        {"_software": {}, "a": "1", "b": "one", "c": "3"},
        {"_software": {}, "a": "1", "b": '"two', "c": "3"},
    ]


def test_a_header_may_say_that_times_are_local() -> None:
    """The firewall of Windows does: the zone is assumed, and marked."""
    (record,) = read("#Version: 1.5\n#Time Format: Local\n#Fields: date time action\n2026-03-09 10:00:01 DROP\n")
    assert (record["time"], record["zone"]) == ("2026-03-09T10:00:01", "+0000")


@pytest.mark.parametrize(
    ("software", "product"),
    [(IIS, {"Microsoft Internet Information Services": "10.0"}), ("Some Proxy", {"Some Proxy": ""}), ("", {"": ""})],
)
def test_the_header_says_who_wrote_it(software: str, product: dict[str, str]) -> None:
    """The version stands apart, so that a mapping can ask for the product."""
    assert read(header("a", software=software) + "1\n")[0]["_software"] == product


def test_what_does_not_fit_is_a_faulty_record() -> None:
    """Lines of another width, and lines before any header, keep their bytes and say why."""
    piece = reader("stray\n#Fields: a b\n1 2\n1 2 3\n").take(1000, 1 << 20)
    assert piece.faults == {
        0: "expected the 0 fields of the header, got 1",
        2: "expected the 2 fields of the header, got 3",
    }
    assert (piece.raw[0], piece.raw[2]) == (b"stray", b"1 2 3")


LINES = st.one_of(
    st.text(max_size=20).map(str.encode),
    st.sampled_from([b"#Fields: a b", b"#Fields: a,b", b"#Fields:", b"#Software: X 1", b"#: x", b"1 2", b'"', b"1,2"]),
)


@given(st.lists(LINES, max_size=12), st.integers(1, 4))
def test_whatever_a_log_holds_is_read_the_same_from_anywhere(lines: list[bytes], limit: int) -> None:
    """Nothing raises, and what one reader gives does not depend on where the last one stopped."""
    data = b"#Fields: a b\r\n" + b"\n".join(lines) + b"\n"

    def at(offset: int) -> W3cReader:
        return W3cReader(Stream(io.BytesIO(data).read), offset)

    whole = at(0).take(1000, 1 << 20)
    cut, offset = [], 0
    while (piece := (one := at(offset)).take(limit, 1 << 20)).raw:
        cut += zip(piece.keys, piece.raw, strict=True)
        offset = one.offset
    assert cut == list(zip(whole.keys, whole.raw, strict=True))
    assert len(cut) == sum(bool(line.strip(b"\r")) and line[:1] != b"#" for line in data.split(b"\n"))


@pytest.mark.parametrize(
    ("head", "configured", "shape"),
    [
        (header("date", "time"), "auto", Shape("w3c", "table")),
        ("#Version: 1.0\n#Fields: date time x-edge-location\n", "auto", Shape("w3c", "table")),
        ("anything\n", "w3c", Shape("w3c", "table")),
        (header("date", "time"), "syslog", Shape("syslog", "lines")),
        ("#Software: " + IIS, "auto", None),
    ],
)
def test_logs_are_told_by_their_header(head: str, configured: str, shape: Shape | None) -> None:
    assert sniff(head.encode(), configured) == shape


@pytest.mark.parametrize("killed", [False, True])
def test_a_followed_log_is_read_on_by_its_columns(tmp_path: Path, killed: bool) -> None:
    """Through growth, a new header and rotation, killed or not, each line comes once and by its own columns."""
    log, cursor = tmp_path / "u_ex.log", None

    def opened() -> Any:
        source = build("files", {"paths": [str(tmp_path / "*.log*")], "follow": True}, lambda: LATER)
        source.open(frozenset())
        return source

    source = opened()

    def stems() -> list[str]:
        nonlocal cursor, source
        if killed:
            source.close()
            source = opened()
        found = []
        while len(records := source.fetch(cursor, 2)):
            cursor = stored_cursor(records.cursor)
            assert not any(chunk.faults for chunk in records.chunks)
            found += [json.loads(raw)["cs-uri-stem"] for raw in payloads(records)]  # type: ignore[arg-type]
        return found

    log.write_text(header("date", "time", "cs-uri-stem") + "2026-03-09 10:00:00 /1\r\n2026-03-09 10:00:00 /2\r\n2026-0")
    assert stems() == ["/1", "/2"]
    with log.open("a") as file:
        file.write("3-09 10:00:00 /3\r\n" + header("cs-uri-stem", "time", "date") + "/4 10:00:01 2026-03-09\r\n")
    assert stems() == ["/3", "/4"]
    with log.open("a") as file:
        file.write("/5 10:00:02 2026-03-09\r\n")
    log.rename(tmp_path / "u_ex.log.1")
    log.write_text(header("time", "cs-uri-stem", software="Else 1").replace("10:00:00", "11:00:00") + "11:00:00 /6\r\n")
    assert sorted(stems()) == ["/5", "/6"]
    source.close()


def test_a_log_of_any_columns_is_an_access_of_iis(tmp_path: Path) -> None:
    """No line is a dead letter, the columns' order does not matter, and evidence is read again by offset."""
    (tmp_path / "u_ex.log").write_text(
        header("date", "time", "c-ip", "cs-uri-stem", "sc-status") + "2026-03-09 10:00:00 192.0.2.1 /x 404\r\n"
    )
    source = build("files", {"paths": [str(tmp_path)]})
    source.open(frozenset())
    records = source.fetch(None, 100)
    normaliser = Normaliser(lambda kind: frozenset({"source.ip"}))
    assert normaliser(records, {}).dead == ()
    (raw,), reference = payloads(records), records.reference(0)
    assert source.full([reference]) == {reference: raw}
    document = normaliser.document(records.chunks[0].format, raw, as_of=LATER)
    assert document["@timestamp"] == "2026-03-09T10:00:00.000Z"
    assert document["event"]["dataset"] == "iis.access"
    assert (document["source"]["ip"], document["url"]["path"]) == ("192.0.2.1", "/x")
    assert document["http"]["response"]["status_code"] == 404
    source.close()


def test_a_configured_zone_holds_only_for_local_times() -> None:
    """A time that its header calls UTC stays; a local one is set into the zone."""
    normaliser = Normaliser(lambda kind: frozenset())
    utc, local = {"_software": {}, "time": "2026-03-09T10:00:00Z"}, {"_software": {}, "time": "2026-03-09T10:00:00"}
    times = [
        normaliser.document("w3c@Europe/Berlin", json.dumps({**record, "zone": "+0000"}).encode(), as_of=LATER)
        for record in (utc, local)
    ]
    assert [time["@timestamp"] for time in times] == ["2026-03-09T10:00:00.000Z", "2026-03-09T09:00:00.000Z"]
    assert times[1]["event"]["timezone"] == "Europe/Berlin"
