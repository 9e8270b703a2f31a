"""Files of the upstream: which there are, who each of them is, and one of them opened at a position.

Nothing but regular files is ever opened, and symbolic links only where the configuration names them.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeAlias

import re2
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from agent.errors import ConfigError, RecordError
from agent.model import Chunk, Cursor, Reference, Timestamp, digest
from agent.ports import Lag
from agent.zones import parted, with_zone, zone_of
from connectors._containers import BLOCK, Bounds, Member, Stream, kind, members, plain, text
from connectors._readers import (
    EVTX,
    HEAD,
    LONGEST,
    UTF8_MARK,
    DocumentReader,
    Events,
    EvtxReader,
    JoinedReader,
    LineReader,
    Piece,
    Reader,
    W3cReader,
    ZeekReader,
    events_above,
    sniff,
)

FETCH_BYTES = 6 << 20
SPILL = 1 << 30
SAMPLE = 1024
TAIL = 256
NOTED = 1000
DEEPEST = 100
_WILD = re.compile(r"[*?\[]")
ARCHIVES = ("zip", "tar", "tar.gz")


Format: TypeAlias = Literal[
    "auto", "json", "evtx", "syslog", "access", "apache", "nginx", "cloudtrail", "zeek", "w3c", "text"
]


def _zone(value: Any) -> str:
    """Return the name of a zone; YAML reads ``+10:00`` without quotes as a number."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text such as Europe/Berlin or '+02:00', in quotes, found {value!r}")
    zone_of(value)
    return value


def _pattern(value: str) -> str:
    try:
        re2.compile(value)
    except re2.error as error:
        raise ValueError(f"not a regular expression of RE2: {error}") from None
    return value


class Options(BaseModel):
    """What may be set for a files source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: list[str] = Field(min_length=1)
    format: Format = "auto"
    timezone: Annotated[str, BeforeValidator(_zone)] = ""
    follow: bool = False
    start: Literal["earliest", "now"] = "earliest"
    record_start: Annotated[str, AfterValidator(_pattern)] = ""
    max_unpacked_bytes: int = Field(default=Bounds().unpacked, gt=0)
    max_ratio: int = Field(default=Bounds().ratio, gt=0)


class Noted(dict[str, str]):
    """Path -> reason, for the first thousand; *count* is how many there were."""

    count = 0

    def note(self, path: str, reason: str) -> None:
        if path in self:
            return
        self.count += 1
        if len(self) < NOTED:
            self[path] = reason


# --- which files ------------------------------------------------------------------------------------------------------


def find(paths: Sequence[str], problems: Noted) -> list[str]:
    """Return the files that *paths* (files, folders, globs) name, sorted, each once.

    Symbolic links inside a folder or glob are passed over, so that nothing outside of it is read.
    """
    found: set[str] = set()
    for path in map(os.path.abspath, paths):
        if Path(path).is_dir():
            found.update(_walk(path, DEEPEST, problems))
        elif os.path.lexists(path) or not _WILD.search(path):
            found.add(path)
        else:
            found.update(_glob(path, problems))
    return sorted(found)


def fixed_part(pattern: str) -> str:
    """Return the folder above the first wildcard, or the path itself if there is none."""
    found = _WILD.search(pattern)
    return pattern[: found.start()].rpartition("/")[0] if found else pattern


def _glob(pattern: str, problems: Noted) -> Iterator[str]:
    """Yield the files that match: ``*``, ``?`` and ``[]`` match no slash, ``**`` any number of folders."""
    root = fixed_part(pattern)
    depth = DEEPEST if "**" in pattern else pattern.count("/") - root.count("/") - 1
    wanted = re2.compile(re.sub(r"\*\*/|\*\*|\[!?[^\]/]+\]|.", _glob_part, pattern, flags=re.DOTALL))
    return filter(wanted.fullmatch, _walk(root or "/", depth, problems))


def _glob_part(found: re.Match[str]) -> str:
    part = found[0]
    if len(part) > 2 and part[0] == "[":
        return "[" + part[1:].replace("!", "^", 1).replace("\\", r"\\") if part[1] == "!" else part.replace("\\", r"\\")
    return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part) or re2.escape(part)


def _walk(folder: str, depth: int, problems: Noted) -> Iterator[str]:
    """Yield the regular files under *folder*, at most *depth* folders down."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        problems.note(folder, error.strerror or str(error))
        return
    for entry in entries:
        if entry.is_symlink():
            problems.note(entry.path, "symbolic link inside a folder: not followed; name its target in 'paths'")
        elif entry.is_dir() and depth:
            yield from _walk(entry.path, depth - 1, problems)
        elif entry.is_file() and _is_utf8(entry.path):
            yield entry.path
        elif entry.is_file():
            problems.note(ascii(entry.path), "its name is not valid UTF-8: not read; rename it")


def _is_utf8(path: str) -> bool:
    """Can the path be stored and sent? Bytes of a name that are no UTF-8 come from the system as lone surrogates."""
    return path.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in path)


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Mark:
    """A position in a file: which member, where in it; *done* after the last one."""

    member: int = 0
    offset: int = 0
    skipping: bool = False
    done: bool = False


class OpenFile:
    """An upstream file, open at a mark: hands out chunks in order and moves the mark."""

    def __init__(
        self, descriptor: int, path: str, partition: str, mark: Mark, options: Options, skipped: Noted
    ) -> None:
        """Own *descriptor* from now on. *mark* is moved as records are taken."""
        self.descriptor = descriptor
        self.path = path
        self.mark = mark
        self.final = not options.follow
        self.settled = False
        self.format = ""
        self._file_partition = partition
        self._kind = kind(descriptor)
        self._options = options
        self._skipped = skipped
        self._members = members(descriptor, self._kind, Bounds(options.max_unpacked_bytes, options.max_ratio))
        self._number = -1
        self._member: Member | None = None
        self._reader: Reader | None = None
        self._reader_at: Callable[[Stream, int, bool], Reader] | None = None
        self._recoded = False
        self._file: IO[bytes] | None = None

    @property
    def is_archive(self) -> bool:
        return self._kind in ARCHIVES

    @property
    def partition(self) -> str:
        """The partition of the member at hand."""
        if not self.is_archive:
            return self._file_partition
        return digest(self._file_partition, self.mark.member, self._member.name if self._member else "")

    def take(self, limit: int, room: int) -> Chunk | None:
        """Return the next chunk, or None at the end of the file (for now, if it is not final)."""
        while not self.mark.done:
            try:
                if self._reader is None:
                    self._open_member()
                    continue
                self._reader.final = self.final
                if isinstance(self._reader, JoinedReader):
                    self._reader.settled = self.settled
                piece = self._reader.take(limit, room)
            except RecordError as error:
                return self._fault(str(error))
            if piece.raw:
                self.mark.offset, self.mark.skipping = self._reader.offset, self._reader.skipping
                return self._chunk(piece)
            if not self.final:
                self.mark.offset, self.mark.skipping = self._reader.offset, self._reader.skipping
                return None
            if reason := self._member.finish() if self._member else "":
                return self._fault(reason)
            self._leave_member()
        return None

    @property
    def resumes(self) -> bool:
        """May the file be read on with this object after it has grown?"""
        return self._reader_at is not None and not self.is_archive

    def events(self, above: int, limit: int) -> Events:
        with os.fdopen(os.dup(self.descriptor), "rb") as file:
            return events_above(file, above, limit)

    def again(self, mark: Mark) -> OpenFile:
        """Close this object and return one for the same file, which may have no name any more, at *mark*."""
        descriptor = os.dup(self.descriptor)
        self.close()
        return OpenFile(descriptor, self.path, self._file_partition, mark, self._options, self._skipped)

    def more(self) -> bool:
        """May the member at hand hold more records?"""
        try:
            return self._reader is not None and self._reader.more()
        except RecordError:
            return True

    def unread(self) -> int:
        """Return how many bytes on the disk were not read; all of what is packed or EVTX before its end."""
        size = 0 if self.mark.done else os.fstat(self.descriptor).st_size
        whole = self._kind != "plain" or self.format == "evtx"
        return size if whole else max(0, size - self.mark.offset)

    def close(self) -> None:
        self._drop_reader()
        self._members.close()
        os.close(self.descriptor)

    def _drop_reader(self) -> None:
        self._reader = None
        if self._file:
            self._file.close()
        self._file = None

    def _open_member(self) -> None:
        """Open the reader of the member at the mark; what is no log is passed over."""
        while self._number < self.mark.member:
            self._number += 1
            self._member = None
            self._member = next(self._members, None)
            if self._member is None:
                self.mark.done = True
                return
        assert self._member is not None
        reader = self._reader_of(self._member) if wanted(self._member.name) else None
        if reader:
            self._reader = reader
        else:
            self._skipped.note(self._display(), "none of the known log formats")
            self._leave_member()

    def _reader_of(self, member: Member) -> Reader | None:
        stream = text(member.stream)
        self._recoded = stream is not member.stream
        shape = sniff(stream.peek(HEAD), self._options.format)
        if shape is None:
            return None
        self.format, self._reader_at = shape.format, None
        if shape.layout == "evtx":
            self._file = self._seekable(stream)
            return EvtxReader(self._file, self.mark.offset)
        if shape.layout == "documents":
            return DocumentReader(stream, self.mark.offset)
        if shape.layout == "table":
            self._reader_at = W3cReader if shape.format == "w3c" else ZeekReader
        elif self._options.record_start:
            self._reader_at = partial(JoinedReader, start=self._options.record_start)
        else:
            self._reader_at = LineReader
        return self._reader_at(stream, self.mark.offset, self.mark.skipping)

    def _seekable(self, stream: Stream) -> IO[bytes]:
        """Return the bytes of *stream* as a file one can seek in; what is packed goes to a bounded, nameless file."""
        if self._kind == "plain":
            return os.fdopen(os.dup(self.descriptor), "rb")
        spill = tempfile.TemporaryFile()  # noqa: SIM115 - the reader keeps it
        self._file = spill
        while block := stream.read(BLOCK):
            spill.write(block)
            if spill.tell() > SPILL:
                raise RecordError(f"packed EVTX file of more than {SPILL:,} bytes; unpack it to have it read")
        return spill

    def _leave_member(self) -> None:
        self._drop_reader()
        if self.is_archive:
            self.mark.member, self.mark.offset, self.mark.skipping = self.mark.member + 1, 0, False
        else:
            self.mark.done = True

    def _display(self) -> str:
        return f"{self.path}!{self._member.name}" if self._member and self._member.name else self.path

    def _chunk(self, piece: Piece) -> Chunk:
        format = with_zone(self.format, self._options.timezone)
        return Chunk(self.partition, self._display(), format, piece.keys, piece.raw, piece.faults)

    def _fault(self, reason: str) -> Chunk:
        """Close the member with one faulty record: what was read of it last, and why it cannot be read on."""
        key = f"{self._reader.offset if self._reader else self.mark.offset}!"
        left = self._reader.left() if self._reader else b""
        chunk = Chunk(self.partition, self._display(), self.format or "text", [key], [left], {0: reason})
        if self._member is None:
            self.mark.done = True
        else:
            self._leave_member()
        return chunk

    def reread(self, partition: str, keys: set[int | str]) -> dict[int | str, bytes]:
        """Return the records with *keys* of the member that is *partition*."""
        while not self.mark.done:
            self._open_member()
            if self._reader is None:
                continue
            if self.partition == partition:
                return self._pick(keys)
            self._leave_member()
        return {}

    def _pick(self, keys: set[int | str]) -> dict[int | str, bytes]:
        found: dict[int | str, bytes] = {}
        while len(found) < len(keys) and (piece := self._next_piece(keys - found.keys())).raw:
            found.update((key, raw) for key, raw in zip(piece.keys, piece.raw, strict=True) if key in keys)
        return found

    def _next_piece(self, keys: set[int | str]) -> Piece:
        """Read on; in a plain file of lines or rows, from the first wanted key instead of through all before it."""
        assert self._reader is not None
        offsets = [key for key in keys if isinstance(key, int)]
        plain_lines = self._kind == "plain" and not self._recoded
        if plain_lines and offsets and self._reader_at:
            self._reader = self._reader_at(plain(self.descriptor), min(offsets), False)
            return self._reader.take(1, BLOCK)
        return self._reader.take(4096, BLOCK)


def wanted(member: str) -> bool:
    """Is this member of an archive worth a look? macOS adds files of its own to archives."""
    return not member.startswith("__MACOSX/") and not member.rpartition("/")[2].startswith("._")


# --- who is who -------------------------------------------------------------------------------------------------------


def identify(descriptor: int, path: str, length: int = SAMPLE) -> tuple[str, int]:
    """Return the file's partition and the number of bytes its fingerprint covers (0: all, the content is final).

    *length* is that number if the file was seen before. An empty file has no identity yet: ("", 0).
    """
    form = kind(descriptor)
    head = b"" if form in ARCHIVES else next(members(descriptor, form, Bounds())).stream.peek(SAMPLE)[:length]
    if form in ARCHIVES or (form == "plain" and head.startswith(EVTX)):
        return content_digest(descriptor), 0
    return (digest(fingerprint(head), path), len(head)) if head else ("", 0)


def tail_of(chunk: Chunk, joined: bool = False) -> str:
    """Return where the last record of *chunk* begins and what its first bytes are; nothing if that is not known.

    Of lines that were *joined* the first stands in the file as it does in the record.

    The header of a table, which names the second it was begun, tells files apart well enough.
    """
    if parted(chunk.format)[0] in ("evtx", "zeek", "w3c") or not isinstance(chunk.keys[-1], int):
        return ""
    head = bytes(chunk.raw[-1][:TAIL])  # type: ignore[index]
    if joined:
        head = head.partition(b"\n")[0]
    return f"{chunk.keys[-1]}:{len(head)}:{fingerprint(head)[:16]}"


def holds(stream: Stream, tail: str) -> bool:
    """Does the stream hold the record that *tail* describes?"""
    if not tail:
        return True
    offset, length, mark = tail.split(":")
    try:
        stream.skip_to(int(offset))
        data = stream.peek(int(length) + len(UTF8_MARK))
    except RecordError:
        return False
    data = data.removeprefix(UTF8_MARK) if offset == "0" else data
    return fingerprint(data[: int(length)])[:16] == mark


def is_prefix(copy: int, original: int) -> bool:
    """Is the content of *copy* how *original* begins? Of what is long, the first and the last bytes are compared."""
    forms = kind(copy), kind(original)
    if not {*forms} <= {"plain", "gz"}:
        return False
    first, second = (
        next(members(file, form, Bounds())).stream for file, form in zip((copy, original), forms, strict=True)
    )
    if not second.peek(HEAD).startswith(first.peek(HEAD)):
        return False
    size = os.fstat(copy).st_size
    if forms != ("plain", "plain"):
        return True
    last = max(0, size - TAIL)
    return size <= os.fstat(original).st_size and os.pread(copy, TAIL, last) == os.pread(original, size - last, last)


def end_of_lines(stream: Stream, size: int) -> int:
    """Return the offset behind the last line end of a stream that has *size* bytes in its file."""
    end = 0
    stream.skip_to(max(0, size - LONGEST) if stream.seekable else 0)
    while block := stream.read():
        found = block.rfind(b"\n") + 1
        end = stream.offset - len(block) + found if found else end
    return end


def fingerprint(head: bytes) -> str:
    return blake2b(head, digest_size=16).hexdigest()


def content_digest(descriptor: int) -> str:
    state, stream = blake2b(digest_size=16), plain(descriptor)
    while block := stream.read():
        state.update(block)
    return state.hexdigest()


# --- rows of the cursor -----------------------------------------------------------------------------------------------

FOLLOWED_ROW = 12


def mark_of(row: Any) -> Mark:
    """Return the mark in the row of a file that is read once."""
    if isinstance(row, list):
        return Mark(row[0], row[1], bool(row[2]), bool(row[3]))
    return Mark() if row is None else Mark(0, row, False, True)


def is_followed(row: Any) -> bool:
    return isinstance(row, list) and len(row) == FOLLOWED_ROW


def unfollowed(row: Any) -> Any:
    """Return the row of a file that is not followed any more in the form of a file that is read once."""
    return [*row[8:], row[3], short(row[0])] if is_followed(row) else row


def short(path: str) -> str:
    return digest(path)[:16]


def file_of(path: str) -> str:
    """Return the file part of a path that may go on with ``!`` and a member's name."""
    ends = [place for place, letter in enumerate(path) if letter == "!"]
    return next((path[:end] for end in ends if Path(path[:end]).is_file()), path)


class FileReader:
    """What both ways of reading files share."""

    def __init__(self, id: str, options: Options, clock: Callable[[], Timestamp]) -> None:
        self.id = id
        self.problems = Noted()
        self.skipped = Noted()
        self._options = options
        self._clock = clock
        self._named = set(map(os.path.abspath, options.paths))
        self._cursor: Cursor | None = None
        self._lag = Lag()
        self._given = self._given_bytes = 0

    def open(self, fields: frozenset[str]) -> None:  # noqa: ARG002 - a file gives whole records
        """ConfigError if nothing that was named can be read."""
        self.close()
        if not any(map(self._is_reachable, self._options.paths)):
            names = ", ".join(self._options.paths)
            raise ConfigError(f"source {self.id}: nothing readable in {names}; check 'paths' and the permissions")

    def _is_reachable(self, path: str) -> bool:
        """Is there something to read at *path*, or a place where it would appear?"""
        readable = (os.access(file, os.R_OK) for file in find([path], self.problems))
        folder = fixed_part(path) if self._options.follow else path
        return any(readable) or (Path(folder).is_dir() and os.access(folder, os.R_OK | os.X_OK))

    def notes(self) -> Mapping[str, str]:
        """Return the problems and what was skipped, by path."""
        found = {**self.skipped, **self.problems}
        more = self.skipped.count + self.problems.count - len(found)
        return {**found, "(elsewhere)": f"{more} more"} if more > 0 else found

    def lag(self) -> Lag:
        """Estimate the records that the files hold unread: their bytes by the mean size of the records given so far.

        Bytes are those on the disk; what is packed or EVTX counts whole until its end.
        """
        return self._lag

    def _measure(self, chunks: Sequence[Chunk], unread: int, oldest: Timestamp | None) -> None:
        """Take in what a fetch gave, and the bytes that are left."""
        self._given += sum(len(chunk.raw) for chunk in chunks)
        self._given_bytes += sum(len(raw) + 1 for chunk in chunks for raw in chunk.raw)
        if not unread:
            self._lag = Lag(0)
        elif self._given:
            self._lag = Lag(max(1, unread * self._given // self._given_bytes), oldest)
        else:
            self._lag = Lag(None, oldest)

    def close(self) -> None:
        raise NotImplementedError

    def full(self, references: Sequence[Reference]) -> Mapping[Reference, bytes | Mapping[str, Any]]:
        """Read whole records again; what is not where it was, or is another file now, is missing."""
        wanted: dict[tuple[str, str], list[Reference]] = {}
        for reference in references:
            wanted.setdefault((reference.path, reference.partition), []).append(reference)
        found: dict[Reference, bytes | Mapping[str, Any]] = {}
        for (path, partition), group in wanted.items():
            with suppress(OSError, RecordError):
                records = self._reread(path, partition, {reference.key for reference in group})
                found.update({reference: records[reference.key] for reference in group if reference.key in records})
        return found

    def _reread(self, path: str, partition: str, keys: set[int | str]) -> Mapping[int | str, bytes]:
        raise NotImplementedError
