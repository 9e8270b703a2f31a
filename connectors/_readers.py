"""Records out of byte streams: lines, JSON documents, tables, Windows event logs; and telling them apart.

A reader stands at an `offset` from which another reader, opened anew on the same bytes, gives the same records. A
record longer than `LONGEST` is cut there and named as a fault; it stays one record.
"""

from __future__ import annotations

import csv
import heapq
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate, compress, count
from operator import add
from typing import IO, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import orjson
import re2
from evtx import PyEvtxParser

from agent.errors import RecordError
from connectors._containers import BLOCK, Stream

LONGEST = 1 << 20
HEAD = 1 << 16
TOO_LONG = f"longer than {LONGEST:,} bytes; the rest of the record was not kept"
EVTX = b"ElfFile\0"
UTF8_MARK = b"\xef\xbb\xbf"

Layout = Literal["lines", "documents", "table", "evtx"]


@dataclass(slots=True)
class Piece:
    """Consecutive records: their keys, bytes, and the faults by place; *size* is how many bytes of input they are."""

    keys: list[int | str] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    size: int = 0

    def add(self, key: int | str, raw: bytes, fault: str = "") -> None:
        if fault:
            self.faults[len(self.raw)] = fault
        self.keys.append(key)
        self.raw.append(raw)
        self.size += len(raw)


class Reader(Protocol):
    """Hands out records in order.

    *final* says that the input will not grow: what is left is a record too. *skipping* is true if *offset* lies inside
    a record that was cut: its rest is passed over.
    """

    final: bool

    @property
    def offset(self) -> int: ...

    @property
    def skipping(self) -> bool: ...

    def take(self, limit: int, room: int) -> Piece:
        """Return at most *limit* records of about *room* bytes; none means the end for now."""

    def more(self) -> bool:
        """Is there anything that `take` may still give?"""

    def left(self) -> bytes:
        """What was read but belongs to no whole record yet: all there is if the stream cannot be read further."""


# --- lines ------------------------------------------------------------------------------------------------------------


class LineReader:
    """Lines, without their ends; empty lines are no records. Keys are byte offsets."""

    final = True

    def __init__(self, stream: Stream, offset: int = 0, skipping: bool = False) -> None:
        stream.skip_to(offset)
        self.offset = stream.offset
        self.skipping = skipping
        self._stream = stream
        self._rest = b""
        self._rest_at = stream.offset
        self._piece = Piece()
        self._ends: list[int] = []
        self._next = 0

    def take(self, limit: int, room: int) -> Piece:
        while self._next == len(self._ends):
            if not self._fill():
                return Piece()
        first = self._next
        last = min(first + limit, max(first + 1, bisect_right(self._ends, self.offset + room)))
        self._next = min(last, len(self._ends))
        piece, start = self._slice(first, self._next), self.offset
        self.offset = self._rest_at if self._next == len(self._ends) else self._ends[self._next - 1]
        piece.size = self.offset - start
        return piece

    def _slice(self, first: int, last: int) -> Piece:
        piece = self._piece
        if first == 0 and last == len(self._ends):
            return piece
        faults = {place - first: why for place, why in piece.faults.items() if first <= place < last}
        return Piece(piece.keys[first:last], piece.raw[first:last], faults)

    def more(self) -> bool:
        return self._next < len(self._ends) or bool(self.final and self._rest) or bool(self._stream.peek(1))

    def left(self) -> bytes:
        return self._rest

    def _fill(self) -> bool:
        """Read one block; return whether a record may have come of it or may come of the next."""
        block = self._stream.read(BLOCK)
        ended = not block
        if self.skipping and block:
            block = self._pass_over(block)
        data = self._rest + block
        cut = data.rfind(b"\n") + 1
        if cut:
            self._queue(data, cut)
        elif data and ended and self.final:
            self._queue(data, len(data))
        elif len(data) > LONGEST:
            self._cut(data)
        else:
            self._rest = data
            return not ended
        self._rest = data[cut:] if cut else b""
        return True

    def _pass_over(self, block: bytes) -> bytes:
        """Drop the rest of a cut line from the front of *block*."""
        end = block.find(b"\n") + 1
        self._rest_at += end or len(block)
        self.offset = self._rest_at
        self.skipping = not end
        return block[end:] if end else b""

    def _cut(self, data: bytes) -> None:
        piece = Piece()
        piece.add(self._rest_at, data[:LONGEST], TOO_LONG)
        self.skipping = True
        self._enqueue(piece, [self._rest_at + len(data)])

    def _queue(self, data: bytes, end: int) -> None:
        """Queue the lines of *data* before *end*, in C only and with few copies: this is the hot path."""
        start = self._rest_at
        lines = data.split(b"\n")
        if data[end - 1 : end] == b"\n":
            lines.pop()  # what follows the last line's end
        ends = list(map(add, accumulate(map(len, lines)), count(start + 1)))
        keys: list[int | str] = [start, *ends[:-1]]
        ends[-1] = start + end
        if b"\r" in data and b"\r\n" in data:  # one byte is sought twenty times as fast as two
            lines = data.replace(b"\r\n", b"\n").split(b"\n")[: len(lines)]
        if start == 0:
            lines[0] = lines[0].removeprefix(UTF8_MARK)
        if b"" in lines:
            keys, ends = list(compress(keys, lines)), list(compress(ends, lines))
            lines = list(filter(None, lines))
        self._enqueue(Piece(keys, lines, _shorten(lines)), ends, start + end)

    def _enqueue(self, piece: Piece, ends: list[int], rest_at: int | None = None) -> None:
        self._piece, self._ends, self._next = piece, ends, 0
        self._rest_at = ends[-1] if rest_at is None else rest_at
        if not ends:
            self.offset = self._rest_at


def _shorten(lines: list[bytes]) -> dict[int, str]:
    """Cut lines that are too long, in place; return the faults."""
    if max(map(len, lines), default=0) <= LONGEST:
        return {}
    places = [place for place, line in enumerate(lines) if len(line) > LONGEST]
    for place in places:
        lines[place] = lines[place][:LONGEST]
    return dict.fromkeys(places, TOO_LONG)


class JoinedReader:
    """Records of several lines: each begins at a line that *start* matches, and is joined by line feeds.

    Keys are byte offsets of first lines. A record is whole once the next begins, the input ends or, if it grows,
    *settled* says that it did not lately. One that would grow longer than `LONGEST` goes on as another.
    """

    final = True
    settled = False

    def __init__(self, stream: Stream, offset: int, skipping: bool, start: str) -> None:
        self._lines = LineReader(stream, offset, skipping)
        self._is_start = _starts(start)
        self._ahead: deque[tuple[int | str, bytes, str]] = deque()
        self._begun: tuple[int | str, list[bytes], str] | None = None
        self._length = 0

    @property
    def offset(self) -> int:
        first = self._ahead[0][0] if self._ahead else self._begun[0] if self._begun else self._lines.offset
        return int(first)

    @property
    def skipping(self) -> bool:
        return not (self._ahead or self._begun) and self._lines.skipping

    def take(self, limit: int, room: int) -> Piece:
        piece = Piece()
        while len(piece.raw) < limit and piece.size < room and (self._ahead or self._read()):
            piece.add(*self._ahead.popleft())
        return piece

    def more(self) -> bool:
        return bool(self._ahead or (self.final and self._begun)) or self._lines.more()

    def left(self) -> bytes:
        begun = self._begun[1] if self._begun else []
        return b"\n".join([*begun, self._lines.left()])[:LONGEST]

    def _read(self) -> bool:
        """Join lines until a record is whole; return False if none is for now."""
        self._lines.final = self.final
        while not self._ahead:
            lines = self._lines.take(_JOINED, BLOCK)
            for place, (key, line) in enumerate(zip(lines.keys, lines.raw, strict=True)):
                self._join(key, line, lines.faults.get(place, ""))
            if not lines.raw:
                if self.final or self.settled:
                    self._end()
                return bool(self._ahead)
        return True

    def _join(self, key: int | str, line: bytes, fault: str) -> None:
        if self._begun is None or fault or self._is_start(line) or self._length + len(line) >= LONGEST:
            self._end()
            self._begun, self._length = (key, [line], fault), len(line)
        else:
            self._begun[1].append(line)
            self._length += len(line) + 1

    def _end(self) -> None:
        if self._begun:
            key, lines, fault = self._begun
            self._ahead.append((key, b"\n".join(lines), fault))
            self._begun = None


_JOINED = 1000


@lru_cache(8)
def _starts(pattern: str) -> Callable[[bytes], Any]:
    """Return what says whether a line begins as *pattern* has it, in linear time."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, whatever they are
    match: Callable[[bytes], Any] = re2.compile(pattern.encode(), options).match
    return match


# --- JSON documents ---------------------------------------------------------------------------------------------------

_TOKEN = re.compile(rb'[{}\[\]]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_RECORDS = re.compile(rb'\{\s{0,64}"Records"\s{0,64}:\s{0,64}\[|\{\s{0,64}"records"\s{0,64}:\s{0,64}\[(?=\s{0,64}\{)')
_EVENT_LIST = re.compile(
    rb'\{\s{0,16}"kind"\s{0,4}:\s{0,4}"EventList"\s{0,4},\s{0,16}"apiVersion"\s{0,4}:\s{0,4}"audit\.k8s\.io/[a-z0-9]{1,8}"'
    rb'\s{0,4},\s{0,16}(?:"metadata"\s{0,4}:\s{0,4}\{[^{}]{0,32}\}\s{0,4},\s{0,16})?"items"\s{0,4}:\s{0,4}\['
)
"""How deliveries of CloudTrail, Azure and Kubernetes' audit log begin: shorter than what is read ahead."""
_BETWEEN = b" \t\r\n,[]}\xef\xbb\xbf"
_GAP = re.compile(rb"[ \t\r\n,\[\]}\xef\xbb\xbf]*+")
_QUOTE = ord('"')
_BRACE = ord("{")


class DocumentReader:
    """JSON objects that follow each other, or the elements of one array (CloudTrail's ``Records``,
    Azure's ``records`` and Kubernetes' ``EventList`` too).

    Only brackets and strings are looked at, so each record is the exact bytes of its object. Keys are byte offsets.
    Once it has met the end of a file that may grow, a new reader has to be opened at `offset`.
    """

    skipping = False
    final = True

    def __init__(self, stream: Stream, offset: int = 0) -> None:
        stream.skip_to(offset)
        self.offset = stream.offset
        self._stream = stream
        self._buffer = b""
        self._base = stream.offset
        self._place = 0
        self._depth = 0
        self._in_string = False

    def take(self, limit: int, room: int) -> Piece:
        piece = Piece()
        while len(piece.raw) < limit and piece.size < room and self._next(piece):
            pass
        return piece

    def more(self) -> bool:
        return bool(self._buffer[self._place :].strip(_BETWEEN)) or bool(self._stream.peek(1))

    def left(self) -> bytes:
        return self._buffer[self._place :][:LONGEST]

    def _next(self, piece: Piece) -> bool:
        """Add the next record to *piece*; return False if there is none for now."""
        while self._ready(256) or self._place < len(self._buffer):
            place = self._after(_GAP, self._place)
            if place == len(self._buffer):
                self._place = place
            elif wrapper := _RECORDS.match(self._buffer, place) or _EVENT_LIST.match(self._buffer, place):
                self._place = wrapper.end()
            elif self._buffer[place] == _BRACE:
                return self._object(piece, place)
            else:
                return self._junk(piece, place)
        self.offset = self._base + self._place
        return False

    def _after(self, pattern: re.Pattern[bytes], place: int) -> int:
        match = pattern.match(self._buffer, place)
        return match.end() if match else place

    def _ready(self, size: int) -> bool:
        """Have *size* bytes ahead in the buffer, unless the data ends before."""
        while len(self._buffer) - self._place < size:
            if not self._refill(self._place):
                return False
        return True

    def _refill(self, drop: int) -> bool:
        """Forget the first *drop* bytes of the buffer and read a block; return False at the end of the data."""
        block = self._stream.read(BLOCK)
        self._buffer = self._buffer[drop:] + block
        self._base += drop
        self._place -= drop
        return bool(block)

    def _junk(self, piece: Piece, place: int) -> bool:
        """Make what stands where an object should begin one faulty record, up to the next brace."""
        self._place = place
        self._ready(LONGEST)
        end = self._buffer.find(b"{", self._place, self._place + LONGEST)
        junk = self._buffer[self._place : end if end >= 0 else self._place + LONGEST]
        piece.add(self._base + self._place, junk, "not a JSON object")
        self._move(self._place + len(junk))
        return True

    def _object(self, piece: Piece, start: int) -> bool:
        key, kept = self._base + start, b""
        self._place, self._depth, self._in_string = start, 0, False
        while not self._close():
            length = self._base + len(self._buffer) - key
            if length > LONGEST and not kept:
                kept = self._buffer[start : start + LONGEST]
            drop = self._place if kept else start
            if not self._refill(drop):
                return self.final and self._broken(piece, key, kept or self._buffer[:LONGEST])
            start -= drop
        size = self._base + self._place - key
        piece.add(key, kept or self._buffer[start : self._place][:LONGEST], TOO_LONG if size > LONGEST else "")
        self._move(self._place)
        return True

    def _broken(self, piece: Piece, key: int, raw: bytes) -> bool:
        piece.add(key, raw, "JSON document ends in the middle")
        self._move(len(self._buffer))
        return True

    def _move(self, place: int) -> None:
        self._place = place
        self.offset = self._base + place

    def _close(self) -> bool:
        """Go on to the end of the object that is open; return False if the buffer ends before."""
        if self._in_string:
            self._place = self._after(_STRING, self._place)
            if self._place == len(self._buffer) or self._buffer[self._place] != _QUOTE:
                return False
            self._in_string = False
            self._place += 1
        for token in _TOKEN.finditer(self._buffer, self._place):
            first = self._buffer[token.start()]
            if first == _QUOTE:
                if not token[1]:
                    self._place, self._in_string = token.end(), True
                    return False
            elif first in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    self._place = token.end()
                    return True
        self._place = len(self._buffer)
        return False


# --- tables -----------------------------------------------------------------------------------------------------------

_COMMENT = re.compile(rb"^#[^\n]*", re.MULTILINE)


class _Header(Protocol):
    """What a table's header says, and what becomes of a line by it."""

    def learn(self, line: bytes) -> None:
        """Take in a line of the header."""

    def record(self, line: bytes) -> bytes:
        """Return the line as a JSON object; RecordError if it has not the header's columns."""


class TableReader:
    """Tables whose columns a header names: each line as a JSON object.

    Lines that begin with ``#`` are the header; a file may hold several, so a reader that is opened further on reads all
    lines before for the one in force. Keys are byte offsets of lines. A line that does not fit is a faulty record.
    """

    _header: ClassVar[Callable[[], _Header]]

    def __init__(self, stream: Stream, offset: int = 0, skipping: bool = False) -> None:
        self._table = type(self)._header()
        _learn_before(self._table, stream, offset)
        self._lines = LineReader(stream, offset, skipping)

    @property
    def offset(self) -> int:
        return self._lines.offset

    @property
    def skipping(self) -> bool:
        return self._lines.skipping

    @property
    def final(self) -> bool:
        return self._lines.final

    @final.setter
    def final(self, final: bool) -> None:
        self._lines.final = final

    def take(self, limit: int, room: int) -> Piece:
        while (lines := self._lines.take(limit, room)).raw:
            if (piece := self._records(lines)).raw:
                return piece
        return lines

    def more(self) -> bool:
        return self._lines.more()

    def left(self) -> bytes:
        return self._lines.left()

    def _records(self, lines: Piece) -> Piece:
        piece = Piece()
        for place, (key, line) in enumerate(zip(lines.keys, lines.raw, strict=True)):
            if line[:1] == b"#":
                self._table.learn(line)
            elif place in lines.faults:
                piece.add(key, line, lines.faults[place])
            else:
                try:
                    piece.add(key, self._table.record(line))
                except RecordError as error:
                    piece.add(key, line, str(error))
        piece.size = lines.size
        return piece


def _learn_before(table: _Header, stream: Stream, offset: int) -> None:
    """Read *stream* up to *offset* for the header that is in force there."""
    rest = b""
    while stream.offset < offset and (block := stream.read(min(BLOCK, offset - stream.offset))):
        data = rest + block
        end = data.rfind(b"\n") + 1
        for line in _COMMENT.findall(data, 0, end):
            table.learn(line.rstrip(b"\r"))
        rest = data[end:][:LONGEST]


# --- Zeek's tables ----------------------------------------------------------------------------------------------------

_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-fA-F]{2}))")
_SECONDS = re.compile(r"([0-9]{1,12})\.([0-9]{6})|-?[0-9]{1,12}(?:\.[0-9]{1,18})?(?:e[+-]?[0-9]{1,2})?")
_UNSIGNED = 2**64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Cell: TypeAlias = Callable[[str], Any]


class _Zeek:
    """The header of one of Zeek's tables."""

    def __init__(self) -> None:
        self._parting = "\t"
        self._said = {"set_separator": ",", "empty_field": "(empty)", "unset_field": "-", "path": ""}
        self._columns: list[tuple[str, _Cell]] = []
        self._names: list[str] = []

    def learn(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        if text.startswith("#separator "):
            self._parting = _unescaped(text.removeprefix("#separator ")) or "\t"
            return
        word, _, rest = text[1:].partition(self._parting)
        if word == "fields":
            self._names, self._columns = rest.split(self._parting), []
        elif word == "types":
            cells = map(self._cell, rest.split(self._parting))
            self._columns = list(zip(self._names, cells, strict=False))
        elif rest and word in self._said:
            self._said[word] = rest

    def record(self, line: bytes) -> bytes:
        cells = line.decode("utf-8", "replace").split(self._parting)
        if len(cells) != len(self._columns):
            raise RecordError(f"expected the {len(self._columns)} fields of the header, got {len(cells)}")
        unset = self._said["unset_field"]
        record: dict[str, Any] = {"_path": self._said["path"]}
        for (name, convert), cell in zip(self._columns, cells, strict=True):
            if cell != unset:
                record[name] = convert(cell)
        return orjson.dumps(record)

    def _cell(self, type: str) -> _Cell:
        """Return what reads the cells of a column; a cell that is not of its type stays a text."""
        outer, _, inner = type.partition("[")
        if outer in {"set", "vector"}:
            return self._items(_CELLS.get(inner.removesuffix("]"), self._text))
        return _CELLS.get(type, self._text)

    def _items(self, convert: _Cell) -> _Cell:
        def items(cell: str) -> list[Any]:
            if cell == self._said["empty_field"]:
                return []
            unset = self._said["unset_field"]
            return [None if item == unset else convert(item) for item in cell.split(self._said["set_separator"])]

        return items

    def _text(self, cell: str) -> str:
        if cell == self._said["empty_field"]:
            return ""
        return _unescaped(cell) if "\\" in cell else cell


def _unescaped(cell: str) -> str:
    """Write out what a table cannot hold as it is; what no text holds stays escaped, as in Zeek's JSON."""
    return _ESCAPED.sub(_character, cell)


def _character(found: re.Match[str]) -> str:
    sign = chr(int(found[1] or "5c", 16))
    return sign if sign.isascii() and (sign.isprintable() or sign in "\t\n\r") else found[0]


def _time(cell: str) -> str:
    found = _SECONDS.fullmatch(cell)
    if found is None:
        return cell
    try:
        if found[2]:
            return f"{_second(found[1])}.{found[2]}Z"
        return (_EPOCH + timedelta(microseconds=round(Decimal(cell) * 1_000_000))).isoformat()
    except OverflowError:  # past the year 9999
        return cell


@lru_cache(64)
def _second(seconds: str) -> str:
    return (_EPOCH + timedelta(seconds=int(seconds))).replace(tzinfo=None).isoformat()


def _number(read: Callable[[str], int | float]) -> _Cell:
    def convert(cell: str) -> int | float | str:
        try:
            number = read(cell)
        except ValueError:
            return cell
        return number if -_UNSIGNED < number < _UNSIGNED else cell

    return convert


_CELLS: dict[str, _Cell] = {
    **dict.fromkeys(("count", "int", "port"), _number(int)),
    **dict.fromkeys(("interval", "double"), _number(float)),
    "time": _time,
    "bool": lambda cell: cell == "T" if cell in {"T", "F"} else cell,
}


class ZeekReader(TableReader):
    """Zeek's tab-separated logs: each line as the JSON object that Zeek writes, with the log's name in ``_path``.

    Times are ISO 8601, which keeps all their digits.
    """

    _header = _Zeek


# --- W3C's extended logs ----------------------------------------------------------------------------------------------

_DIRECTIVE = re.compile(r"#([A-Z][A-Za-z -]{0,40}): *(.*)")
_QUOTED = re.compile(r'^"(.*)"$', re.DOTALL)


class _W3c:
    """The header of an extended log: ``#Fields:`` names the columns, ``#Software:`` who wrote it."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._commas = False
        self._software: dict[str, str] = {}
        self._local = False

    def learn(self, line: bytes) -> None:
        found = _DIRECTIVE.fullmatch(line.decode("utf-8", "replace"))
        word, rest = (found[1], found[2].strip()) if found else ("", "")
        if word == "Fields":
            self._commas = "," in rest
            self._names = [name.strip() for name in rest.split(",")] if self._commas else rest.split()
        elif word == "Software":
            product, _, version = rest.rpartition(" ")
            self._software = {product: version} if version[:1].isdecimal() else {rest: ""}
        elif word == "Time Format":
            self._local = rest == "Local"

    def record(self, line: bytes) -> bytes:
        cells = self._cells(line.decode("utf-8", "replace"))
        if len(cells) != len(self._names):
            raise RecordError(f"expected the {len(self._names)} fields of the header, got {len(cells)}")
        record: dict[str, Any] = {"_software": self._software}
        record.update((name, cell) for name, cell in zip(self._names, cells, strict=True) if cell not in {"-", ""})
        if "date" in record and "time" in record:
            record["time"] = f"{record.pop('date')}T{record['time']}{'' if self._local else 'Z'}"
            if self._local:
                record["zone"] = "+0000"
        return orjson.dumps(record)

    def _cells(self, line: str) -> list[str]:
        """Part *line*; quotes hold blanks together only where it has too many of them, as some do not mean quotes."""
        parting = "," if self._commas else "\t" if "\t" in line else " "
        cells = line.split(parting)
        if '"' not in line:
            return cells
        if len(cells) == len(self._names):
            return [_QUOTED.sub(_within_quotes, cell) for cell in cells]
        try:
            return next(csv.reader([line], delimiter=parting), [])
        except csv.Error:
            return cells


def _within_quotes(found: re.Match[str]) -> str:
    return found[1].replace('""', '"')


class W3cReader(TableReader):
    """Extended logs of W3C, as IIS and CloudFront write them: each line as an object of the columns that it fills.

    Who wrote it stands in ``_software``, date and time of day are one ``time``: UTC, unless the header says otherwise.
    """

    _header = _W3c


# --- Windows event logs -----------------------------------------------------------------------------------------------


class EvtxReader:
    """Records of an EVTX file as JSON. Keys are record ids; *offset* counts records, the unreadable ones too.

    A record id that does not rise above those before it gets the record's number behind it, so that keys never repeat.
    """

    skipping = False
    final = True

    def __init__(self, file: IO[bytes], offset: int = 0) -> None:
        self._fault = _missing_chunks(file)
        file.seek(0)
        try:
            self._records: Iterator[Any] = PyEvtxParser(file, 1).records_json()
        except (RuntimeError, OSError, ValueError) as error:
            raise RecordError(f"not a readable EVTX file: {error}") from error
        self._highest = -1
        self._ahead: tuple[int | str, bytes, str] | None = None
        self.offset = -1
        self._advance()
        while self.offset < offset and self._ahead:
            self._advance()

    def take(self, limit: int, room: int) -> Piece:
        piece = Piece()
        while self._ahead and len(piece.raw) < limit and piece.size < room:
            piece.add(*self._ahead)
            self._advance()
        return piece

    def more(self) -> bool:
        return self._ahead is not None

    def left(self) -> bytes:
        return b""

    def _advance(self) -> None:
        self.offset += 1
        self._ahead = self._read()

    def _read(self) -> tuple[int | str, bytes, str] | None:
        place = f"#{self.offset}"
        try:
            record = next(self._records)
        except StopIteration:
            fault, self._fault = self._fault, ""
            return (place, b"", fault) if fault else None
        except Exception as error:
            return place, b"", f"unreadable EVTX record: {error}"[:1000]
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            self._records = iter(())
            return place, b"", f"EVTX parser gave up: {error}"[:1000]
        number = int(record["event_record_id"])
        key: int | str = number if number > self._highest else f"{number}{place}"
        self._highest = max(number, self._highest)
        raw = record["data"].encode("utf-8", "surrogatepass")
        return key, raw[:LONGEST], TOO_LONG if len(raw) > LONGEST else ""


class Events(NamedTuple):
    """Events of a live log by record id, the highest id it has (-1: none), and how many could not be read."""

    records: dict[int, bytes]
    highest: int
    broken: int


def events_above(file: IO[bytes], above: int, limit: int) -> Events:
    """Return the first *limit* events with ids above *above*, by id; a full log wraps round, so ids jump in it."""
    highest, reader = -1, EvtxReader(file)
    kept: list[tuple[int, bytes]] = []
    broken = 0
    while (piece := reader.take(1000, BLOCK)).raw:
        broken += len(piece.faults)
        numbers = [int(str(key).split("#")[0] or -1) for key in piece.keys]
        highest = max(highest, *numbers)
        kept += [event for event in zip(numbers, piece.raw, strict=True) if event[0] > above]
        kept = heapq.nsmallest(limit, kept)
    return Events(dict(kept), highest, broken)


def _missing_chunks(file: IO[bytes]) -> str:
    """Say so if the file is shorter than its header promises: the parser would end in silence."""
    file.seek(0)
    header = file.read(44)
    chunks = int.from_bytes(header[42:44], "little")
    there = max(0, file.seek(0, 2) - 4096) // 65536
    return f"EVTX file is cut short: {there} of {chunks} chunks are there" if there < chunks else ""


# --- telling them apart -----------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What a file holds: the format of its records and how they lie in it."""

    format: str
    layout: Layout


_ACCESS = re.compile(rb"\S{1,255} \S{1,255} .{0,255}?\[\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] \"")
_SYSLOG = re.compile(
    rb"<\d{1,3}>"
    rb"|[A-Z][a-z]{2} [ \d]?\d (?:\d{4} )?\d\d:\d\d:\d\d:? \S"
    rb"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S{0,40} \S{1,255} [^\s:]{1,255}:"
    rb"|CEF:\d\||LEEF:[12]\.\d\||%[A-Z][A-Z0-9_]{1,40}-\d-"
    rb"|date=\d{4}-\d\d-\d\d time=\d\d:\d\d:\d\d (?:devname|devid|logver|logid|eventtime)="  # Fortinet
    rb"|\d{1,12},\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d[^,]{0,20},[^,]{0,40},[A-Z-]{3,20},"  # Palo Alto
    rb"|(?:node=\S{1,255} )?type=[A-Z_]{1,64} msg=audit\("  # auditd
    rb"|\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d[.\d]{0,7} \d{4}\] \["  # the error log of Apache
    rb"|\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[[a-z]{1,8}\] \d{1,10}#"  # the error log of nginx
    rb"|\d{10}\.\d{3} +-?\d{1,10} \S{1,255} [A-Z_]{1,40}/\d{3} "  # Squid
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]{0,4} [A-Z\d+-]{2,5}[: ][^\n]{0,255}?\b"  # PostgreSQL
    rb"(?:DEBUG\d?|INFO|NOTICE|WARNING|ERROR|LOG|FATAL|PANIC|DETAIL|HINT|STATEMENT|CONTEXT):  "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z\d+-]{2,5},[\",]"  # PostgreSQL's csvlog
    rb"|\d\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d\.\d{3} (?:[a-z-]{1,40}: ){0,2}(?:client |[a-z]{4,8}: )"  # BIND
    rb"|\[\d{10}(?:\.\d{1,9})?\] unbound\[\d"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:\S{1,255} ){0,2}\S{2,39} [A-Z]{3,16} /"  # IIS
)
_ARRAY = re.compile(rb"\[\s*[{\]]")
_TABLE = re.compile(rb"#separator |(?:#[^\n]*\n){0,9}#fields\t[^\n]*\n#types\t")
_EXTENDED = re.compile(rb"(?:#[^\n]*\n){0,9}#Fields: ?[a-z]")


def sniff(head: bytes, configured: str = "auto") -> Shape | None:
    """Return what the file that begins with *head* holds, by content; None if it is none of the known formats.

    A *configured* format is taken at its word, and only the layout is looked for.
    """
    if head.startswith(EVTX) or configured == "evtx":
        return Shape("evtx", "evtx") if configured in ("auto", "evtx") and head.startswith(EVTX) else None
    body = head.removeprefix(UTF8_MARK).lstrip()
    if configured in ("syslog", "access", "apache", "nginx", "text"):
        return Shape(configured, "lines")
    if configured in ("json", "cloudtrail"):
        found = _sniff_json(body)
        return Shape(configured, found.layout if found else "lines")
    if configured == "zeek" or _TABLE.match(body):
        return _sniff_json(body) or Shape("zeek", "table")
    if configured == "w3c" or _EXTENDED.match(body):
        return Shape("w3c", "table")
    return _sniff_json(body) or _sniff_lines(body)


def _sniff_json(body: bytes) -> Shape | None:
    if _ARRAY.match(body):
        return Shape("cloudtrail" if b'"eventSource"' in body and b'"eventName"' in body else "json", "documents")
    if not body.startswith(b"{"):
        return None
    if found := _RECORDS.match(body):
        return Shape("cloudtrail" if b'"Records"' in found[0] else "json", "documents")
    if _EVENT_LIST.match(body):
        return Shape("json", "documents")
    first = body.split(b"\n", 1)[0].rstrip()
    opens = b"\n" in body and first[-1:] in (b"{", b"[", b",") and not _is_json(first)
    return Shape("json", "documents" if opens else "lines")


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _sniff_lines(body: bytes) -> Shape | None:
    """Take the format that at least half of the first lines have; an access line in one of syslog looks like both."""
    lines = [line for line in body.split(b"\n")[:50] if line.strip()]
    for format, pattern in (("syslog", _SYSLOG), ("access", _ACCESS)):
        if lines and 2 * sum(map(bool, map(pattern.match, lines))) >= len(lines):
            return Shape(format, "lines")
    return None
