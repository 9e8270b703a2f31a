"""Records of several lines: joined by what their first line begins with, wherever the file is cut."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.model import SECOND
from agent.normalise import Normaliser
from agent.testing import payloads, stored_cursor
from connectors._containers import Stream
from connectors._readers import LONGEST, TOO_LONG, JoinedReader
from connectors.files import build

START = r"\d\d "
NOW = 2_000_000_000 * SECOND


def reader(data: bytes, offset: int = 0, skipping: bool = False) -> JoinedReader:
    return JoinedReader(Stream(io.BytesIO(data).read), offset, skipping, START)


def test_a_record_goes_on_to_the_next_that_begins() -> None:
    """Its key is the offset of its first line; what stands before any beginning is a record too."""
    piece = reader(b"stray\r\n01 a\r\n\tb\r\n\r\nc\n02 d\n").take(9, 1 << 20)
    assert dict(zip(piece.keys, piece.raw, strict=True)) == {0: b"stray", 7: b"01 a\n\tb\nc", 21: b"02 d"}


LINES = st.lists(st.sampled_from([b"01 a", b"more", b"", b"\r", b"02 \xff", b"0", b"x" * 99]), max_size=30)


@given(LINES, st.integers(1, 4))
def test_records_are_the_same_from_wherever_reading_goes_on(lines: list[bytes], limit: int) -> None:
    """Nothing is lost, and what one reader gives does not depend on where the last one stopped."""
    data = b"\n".join([*lines, b""])
    whole = reader(data).take(1000, 1 << 20)
    cut, offset = [], 0
    while (piece := (at := reader(data, offset)).take(limit, 1 << 20)).raw:
        cut += zip(piece.keys, piece.raw, strict=True)
        offset = at.offset
    assert cut == list(zip(whole.keys, whole.raw, strict=True))
    joined = b"\n".join(whole.raw).split(b"\n") if whole.raw else []
    assert joined == [line for line in (each.removesuffix(b"\r") for each in data.split(b"\n")) if line]
    assert all(raw[:1] == b"0" and raw[2:3] == b" " for raw in whole.raw[1:])


def test_a_record_is_bounded() -> None:
    """One that would be too long goes on as another; a line that is too long by itself is cut, and says so."""
    line = b"y" * 300_000
    data = b"01 a\n" + (line + b"\n") * 7 + b"02 " + b"z" * (2 * LONGEST) + b"\nw\n03 c\n"
    found, offset, skipping = [], 0, False
    while (piece := (at := reader(data, offset, skipping)).take(1, 1 << 20)).raw:
        found.append((piece.raw[0], piece.faults.get(0)))
        offset, skipping = at.offset, at.skipping
    assert max(len(raw) for raw, _ in found) <= LONGEST
    assert [raw[:4] for raw, _ in found] == [b"01 a", b"yyyy", b"yyyy", b"02 z", b"w", b"03 c"]
    assert [fault for _, fault in found] == [None, None, None, TOO_LONG, None, None]
    assert sum(raw.count(line) for raw, _ in found) == 7


class Follower:
    """Follows the logs of a folder, at a time that the test says; between two fetches it may be killed."""

    def __init__(self, folder: Path, killed: bool) -> None:
        self._folder, self._killed, self._cursor = folder, killed, None
        self.now = NOW
        self._open()

    def _open(self) -> None:
        options = {"paths": [str(self._folder / "*.log*")], "follow": True, "format": "text", "record_start": START}
        self.source = build("files", options, lambda: self.now)
        self.source.open(frozenset())

    def read(self) -> list[bytes]:
        if self._killed:
            self.source.close()
            self._open()
        self.now += SECOND
        found: list[Any] = []
        while len(records := self.source.fetch(self._cursor, 2)):
            self._cursor = stored_cursor(records.cursor)
            found += payloads(records)
        self._cursor = stored_cursor(records.cursor)
        return found


def write(path: Path, data: bytes, time: int) -> None:
    """Append to *path* as if at *time*."""
    with path.open("ab") as file:
        file.write(data)
    os.utime(path, ns=(time * 1000, time * 1000))


@pytest.mark.parametrize("killed", [False, True])
def test_a_followed_record_waits_for_its_end(tmp_path: Path, killed: bool) -> None:
    """It is whole when the next begins or its file was left alone; killed or not, each record comes once."""
    log, follower = tmp_path / "a.log", Follower(tmp_path, killed)
    write(log, b"01 a\r\nb\r\n02 c\r\nd", follower.now)
    assert follower.read() == [b"01 a\nb"]
    write(log, b"\r\ne\r\n", follower.now)
    assert follower.read() == []
    follower.now += 10 * SECOND
    assert follower.read() == [b"02 c\nd\ne"]
    write(log, b"late\r\n03 f\r\ng\r\n", follower.now)
    assert follower.read() == [b"late"]
    log.rename(tmp_path / "a.log.1")
    write(log, b"04 h\ni\n05 j\n", follower.now)
    assert sorted(follower.read()) == [b"03 f\ng", b"04 h\ni"]
    packed = gzip.compress((tmp_path / "a.log.1").read_bytes())
    (tmp_path / "a.log.1").unlink()
    write(tmp_path / "a.log.1.gz", packed, follower.now)
    follower.now += 10 * SECOND
    assert follower.read() == [b"05 j"]
    assert follower.read() == []
    follower.source.close()


def test_the_only_record_of_a_file_is_given_once(tmp_path: Path) -> None:
    """Though nothing follows it, and the file gave nothing before."""
    follower = Follower(tmp_path, killed=False)
    write(tmp_path / "a.log", b"01 a\nb\n", follower.now)
    assert follower.read() == []
    follower.now += 10 * SECOND
    assert (follower.read(), follower.read()) == ([b"01 a\nb"], [])
    follower.source.close()


def test_records_can_be_read_again(tmp_path: Path) -> None:
    """Evidence is fetched by the offset of the first line, whole."""
    (tmp_path / "a.log").write_bytes(b"01 a\nb\n02 c\nd\n03 e\n")
    source = build("files", {"paths": [str(tmp_path)], "format": "text", "record_start": START})
    source.open(frozenset())
    records = source.fetch(None, 100)
    references = [records.reference(index) for index in range(len(records))]
    assert source.full(references[1:]) == dict(zip(references[1:], [b"02 c\nd", b"03 e"], strict=True))
    source.close()


def test_what_is_no_pattern_is_refused() -> None:
    """The option that is wrong is named when the configuration is read."""
    with pytest.raises(ConfigError, match="record_start"):
        build("files", {"paths": ["a"], "record_start": "(?=x)"})


ROW = '2026-03-09 10:00:00.250 UTC,"ann","shop",77,"192.0.2.1:4000",65ec0000.4d,3,"SELECT",,,0,ERROR,42501,"denied"'


def test_rows_whose_quotes_hold_line_ends_are_read_whole(tmp_path: Path) -> None:
    """PostgreSQL's csvlog, told by its content: a statement of several lines stays in its record."""
    rows = [f'{ROW},,,,,,"select {number}\n\nfrom secret",15,,"psql","client backend",,0\n' for number in range(2)]
    (tmp_path / "a.csv").write_text("".join(rows))
    source = build("files", {"paths": [str(tmp_path)], "record_start": r"\d{4}-\d\d-\d\d "})
    source.open(frozenset())
    (chunk,) = source.fetch(None, 100).chunks
    normaliser = Normaliser(lambda kind: frozenset())
    documents = [normaliser.document(chunk.format, raw, as_of=NOW) for raw in chunk.raw]
    assert [each["postgresql"]["log"]["query"] for each in documents] == [
        "select 0\nfrom secret",
        "select 1\nfrom secret",
    ]
    source.close()
