"""The NDJSON sink: one document a line of a file, its id as the first member ``_id``.

A document is delivered when its line is on disk (fsync). A line torn by a crash is cut off at `open`; after a failed
write the file has the length it had before. A document that may have been offered before is looked for in the file, so
its line stays the only one; a file that was rotated away in between is not searched. One process writes to a file.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from agent.errors import ConfigError, RecordError, full_disk_s
from agent.model import DELIVERED, Document, Outcome
from agent.ports import Connector
from connectors._options import parse

LONGEST = 16 << 20
BLOCK = 1 << 20
_ID = re.compile(rb'^\{"_id":("(?:[^"\\]++|\\.)*+")', re.MULTILINE)


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)


class NdjsonSink:
    """Appends documents to one file."""

    def __init__(self, id: str, options: Options) -> None:
        self.id = id
        self._path = str(Path(options.path).absolute())
        self._file = -1
        self._length = 0

    def open(self) -> None:
        """Open the file for us alone and cut off a torn last line; ConfigError if that cannot be done."""
        self.close()
        try:
            self._file = self._reach()
        except OSError as error:
            raise ConfigError(f"sink {self.id}: cannot write {self._path}: {error.strerror or error}") from error
        self._cut(_end_of_lines(self._file))

    def write(self, documents: Sequence[Document]) -> Sequence[Outcome]:
        try:
            self._follow_rotation()
            self._cut(self._length)
            known = self._known({document.id for document in documents if document.repeat})
        except OSError as error:
            return [_later(error)] * len(documents)
        outcomes, lines = plan(documents, known)
        return self._append(b"".join(lines), outcomes)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _reach(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError("it is not a regular file")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise OSError("another process writes to it") from None
        except OSError:
            os.close(file)
            raise
        _sync_folder(self._path)
        return file

    def _follow_rotation(self) -> None:
        """Write to the file that has the name now, if ours was renamed or deleted."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file), Path(self._path).stat()):
                return
        file = self._reach()
        self.close()
        self._file, self._length = file, _end_of_lines(file)

    def _cut(self, length: int) -> None:
        """Give the file the length up to which its lines are whole."""
        if os.fstat(self._file).st_size > length:
            os.ftruncate(self._file, length)
        self._length = length

    def _known(self, wanted: set[str]) -> set[str]:
        """Return those of *wanted* that the file holds."""
        if not wanted:
            return set()
        needles = {orjson.dumps(id): id for id in wanted}
        found = (needles.get(match[1]) for block in _whole_lines(self._file) for match in _ID.finditer(block))
        return {id for id in found if id is not None}

    def _append(self, data: bytes, outcomes: list[Outcome | None]) -> list[Outcome]:
        try:
            if data:
                _write_all(self._file, data)
                os.fsync(self._file)
                self._length += len(data)
        except OSError as error:
            with suppress(OSError):
                self._cut(self._length)
            return [outcome or _later(error) for outcome in outcomes]
        return [outcome or DELIVERED for outcome in outcomes]


def plan(documents: Sequence[Document], known: set[str]) -> tuple[list[Outcome | None], list[bytes]]:
    """Return what is decided already (None: depends on the write) and the lines to write, each id once."""
    outcomes: list[Outcome | None] = []
    lines: list[bytes] = []
    written: set[str] = set()
    for document in documents:
        decided: Outcome | None = None
        if document.id in known:
            decided = DELIVERED
        elif document.id not in written:
            try:
                lines.append(line_of(document))
                written.add(document.id)
            except RecordError as error:
                decided = Outcome("rejected", str(error))
        outcomes.append(decided)
    return outcomes, lines


def line_of(document: Document) -> bytes:
    """Return the document as one line; a field ``_id`` of its own becomes ``__id``. RecordError if it is no object."""
    if len(document.body) > LONGEST:
        raise RecordError(f"document of {len(document.body):,} bytes; at most {LONGEST:,} are written")
    try:
        body = orjson.loads(document.body)
        if not isinstance(body, dict):
            raise RecordError("document is not a JSON object")
        name = orjson.dumps(document.id)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise RecordError(f"document is not valid JSON: {error}") from error
    if "_id" in body:
        body["__id"] = body.pop("_id")
    text = orjson.dumps(body) if "__id" in body or b"\n" in document.body else document.body.strip()
    return b'{"_id":' + name + (b"," if body else b"") + text[1:].lstrip() + b"\n"


def _later(error: OSError) -> Outcome:
    return Outcome("retryable", f"cannot write: {error.strerror or error}", full_disk_s(error))


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _end_of_lines(file: int) -> int:
    """Return the offset behind the last line end."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _whole_lines(file: int) -> Iterator[bytes]:
    """Yield the file in blocks that begin and end at line ends."""
    offset, rest = 0, b""
    while block := os.pread(file, BLOCK, offset):
        offset += len(block)
        data = rest + block
        cut = data.rfind(b"\n") + 1
        yield data[:cut]
        rest = data[cut:]


def _sync_folder(path: str) -> None:
    folder = os.open(str(Path(path).parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def build(id: str, options: Mapping[str, Any]) -> NdjsonSink:
    """Return an NDJSON sink; ConfigError names the option that is wrong."""
    return NdjsonSink(id, parse(Options, f"sink {id}", options))


connector = Connector(sink=build)
