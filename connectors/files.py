"""The files source: logs from files, folders and globs, read once or followed, resumed exactly.

Reads JSON lines and documents, EVTX, syslog, web access logs and CloudTrail deliveries, plain, gzipped or in zip and
tar archives, told apart by content. A record's identity is (source, partition, key): the partition is derived from the
file's first bytes and the path under which it was first seen (an archive's or EVTX file's from its whole content), the
key is the record's byte offset after unpacking (EVTX: its record id).

Cursor: ``{"files": {partition: row}}``. A file that was read once and to its end costs about 45 bytes there, a
followed one about 150 and its path.

What may fail: no readable path at all is a ConfigError at `open`. One file that cannot be read is named in `problems`,
one that is no log in `skipped`, and the others go on. A damaged, truncated or exploding file gives what came before the
damage and one faulty record that says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from agent.model import Chunk, Cursor, Records, Timestamp
from agent.ports import Connector, Lag, Source
from connectors._containers import kind, open_regular
from connectors._follow import FollowedFiles
from connectors._opened import (
    FETCH_BYTES,
    SAMPLE,
    FileReader,
    Mark,
    Noted,
    OpenFile,
    Options,
    file_of,
    find,
    identify,
    mark_of,
    short,
    unfollowed,
)
from connectors._options import parse

UNOPENED = "unopened"
"""Stands in `Records.unread` for the files that were not opened yet: their partitions are not known before."""


class FilesSource(FileReader):
    """Reads each file once, in the order of their paths; a restart goes on where the cursor stands.

    A file's row in the cursor is the offset alone once it was read to its end, else (and where the fingerprint is
    short) ``[member, offset, skipping, done, fingerprint length, digest of the path]``.
    """

    def __init__(self, id: str, options: Options, clock: Callable[[], Timestamp]) -> None:
        super().__init__(id, options, clock)
        self._paths: list[str] = []
        self._left: list[int] = []
        """Bytes on the disk of each path and all behind it, as they were at `open`; 0 at the end."""
        self._next = 0
        self._file: OpenFile | None = None
        self._place: tuple[str, int, str] = ("", 0, "")
        self._rows: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}
        self._read: dict[str, str] = {}

    def open(self, fields: frozenset[str]) -> None:
        super().open(fields)
        self._paths = find(self._options.paths, self.problems)
        self._left = [0, *accumulate(map(_size, reversed(self._paths)))][::-1]

    def fetch(self, after: Cursor | None, limit: int) -> Records:
        if after is None or after != self._cursor:
            self._restart(after)
        chunks: list[Chunk] = []
        room = FETCH_BYTES
        while limit > 0 and room > 0 and self._file_at_hand():
            chunk = self._next_chunk(limit, room)
            if chunk is None:
                self._leave_file()
                continue
            chunks.append(chunk)
            limit -= len(chunk.raw)
            room -= sum(map(len, chunk.raw))
        self._note_row()
        self._cursor = {"files": dict(self._rows)}
        self._measure(chunks, self._left[self._next] + (self._file.unread() if self._file else 0), None)
        return Records(self.id, tuple(chunks), self._cursor, self._clock(), self._unread())

    def ack(self, cursor: Cursor) -> None:
        """Nothing to do: files keep no position for us."""

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file, self._cursor, self._lag = None, None, Lag()

    def _restart(self, after: Cursor | None) -> None:
        self.close()
        rows: Mapping[str, Any] = (after or {}).get("files", {})
        self._next, self._rows, self._read = 0, {name: unfollowed(row) for name, row in rows.items()}, {}
        self._lengths = {row[5]: row[4] for row in self._rows.values() if isinstance(row, list)}

    def _file_at_hand(self) -> bool:
        """Have a file open that is not read to its end, unless there is none."""
        while self._file is None and self._next < len(self._paths):
            path = self._paths[self._next]
            self._next += 1
            try:
                self._file = self._start(open_regular(path, path in self._named), path)
            except OSError as error:
                self.problems.note(path, error.strerror or str(error))
        return self._file is not None

    def _next_chunk(self, limit: int, room: int) -> Chunk | None:
        """Return the next chunk of the file at hand; a file that fails keeps its place for the next start."""
        assert self._file is not None
        try:
            return self._file.take(limit, room)
        except OSError as error:
            self.problems.note(self._file.path, error.strerror or str(error))
            return None

    def _start(self, descriptor: int, path: str) -> OpenFile | None:
        """Return the file, open where its row stands; None if there is nothing (more) to read in it."""
        file = None
        try:
            file = self._place_in(descriptor, path)
        finally:
            if file is None:
                os.close(descriptor)
        return file

    def _place_in(self, descriptor: int, path: str) -> OpenFile | None:
        partition, length = self._identify(descriptor, path)
        first = self._read.setdefault(partition, path)
        if partition and first != path:
            self.skipped.note(path, f"same content as {first}")
        mark = mark_of(self._rows.get(partition))
        if length and mark.done and kind(descriptor) == "plain":
            mark.done = os.fstat(descriptor).st_size <= mark.offset
        if not partition or first != path or mark.done:
            return None
        self._place = (partition, length, short(path))
        return OpenFile(descriptor, path, partition, mark, self._options, self.skipped)

    def _identify(self, descriptor: int, path: str) -> tuple[str, int]:
        """Return partition and fingerprint length: those in the cursor if the file is there, else those of today."""
        partition, length = identify(descriptor, path, self._lengths.get(short(path), SAMPLE))
        return (partition, length) if partition in self._rows else identify(descriptor, path)

    def _leave_file(self) -> None:
        self._note_row()
        assert self._file is not None
        self._file.close()
        self._file = None

    def _note_row(self) -> None:
        if self._file is None:
            return
        mark, (partition, length, path) = self._file.mark, self._place
        if mark.done and length in (0, SAMPLE):
            self._rows[partition] = mark.offset
        elif mark != Mark():
            self._rows[partition] = [mark.member, mark.offset, mark.skipping, mark.done, length, path]

    def _unread(self) -> frozenset[str]:
        here = {self._file.partition} if self._file and self._file.more() else set()
        ahead = {UNOPENED} if self._next < len(self._paths) or (self._file and self._file.is_archive) else set()
        return frozenset(here | ahead)

    def _reread(self, path: str, partition: str, keys: set[int | str]) -> Mapping[int | str, bytes]:
        name = file_of(path)
        descriptor = open_regular(name, follow_links=True)
        file = OpenFile(descriptor, name, self._identify(descriptor, name)[0], Mark(), self._options, Noted())
        try:
            return file.reread(partition, keys)
        finally:
            file.close()


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _now() -> Timestamp:
    return time.time_ns() // 1000


def build(id: str, options: Mapping[str, Any], clock: Callable[[], Timestamp] = _now) -> Source:
    """Return a files source; ConfigError names the option that is wrong."""
    parsed = parse(Options, f"source {id}", options)
    return (FollowedFiles if parsed.follow else FilesSource)(id, parsed, clock)


connector = Connector(source=build)
