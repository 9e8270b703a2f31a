"""Byte streams out of files: plain, gzip, the members of zip and tar archives, UTF-16 turned into UTF-8.

Everything is streamed. Nothing is unpacked to disk, and no more is held in memory than what was asked for. A damaged or
hostile container raises `RecordError` where it is met; what came before it stays valid.
"""

from __future__ import annotations

import codecs
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from agent.errors import RecordError

GZIP = b"\x1f\x8b"
QUANTUM = 1 << 16
"""Unpacked bytes asked for at a time, always the same, so that damage is met at the same place after a restart."""
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
BLOCK = 1 << 20
TAR_BLOCK = 512
TAR_NAME = 1 << 16
FREE_RATIO = 64 << 20
"""Bytes that any container may expand to before its ratio is looked at: short inputs have wild ratios."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one container may expand to: bytes, bytes out for each byte in, members."""

    unpacked: int = 64 << 30
    ratio: int = 250
    members: int = 100_000

    def check(self, unpacked: int, packed: int) -> None:
        if unpacked > self.unpacked:
            raise RecordError(f"expands to more than {self.unpacked:,} bytes; the rest was not read")
        if unpacked > FREE_RATIO and unpacked > self.ratio * packed:
            raise RecordError(f"expands more than {self.ratio}-fold; the rest was not read")


class Stream:
    """Bytes in order, with a look ahead. An empty read is the end for now: a growing file may give more later."""

    def __init__(self, pull: Callable[[int], bytes], seek: Callable[[int], None] | None = None) -> None:
        self._pull = pull
        self._seek = seek
        self._held = b""
        self._error: RecordError | None = None
        self.offset = 0

    @property
    def seekable(self) -> bool:
        return self._seek is not None

    def read(self, size: int = BLOCK) -> bytes:
        """Return at most *size* bytes, and none only at the end."""
        if self._error and not self._held:
            raise self._error
        data = self._held or self._pull(size)
        self._held = data[size:]
        data = data[:size]
        self.offset += len(data)
        return data

    def peek(self, size: int) -> bytes:
        """Return the next *size* bytes without moving; fewer only at the end, or where the data cannot be read on."""
        try:
            while (
                not self._error and len(self._held) < size and (data := self._pull(max(size - len(self._held), 4096)))
            ):
                self._held += data
        except RecordError as error:
            self._error = error
        return self._held[:size]

    def back(self, data: bytes) -> None:
        """Put *data*, which was read last, in front again."""
        self._held = data + self._held
        self.offset -= len(data)

    def skip_to(self, offset: int) -> None:
        """Move forward to *offset*, or to the end if that comes first."""
        if self._seek and offset > self.offset:
            self._seek(offset)
            self._held, self.offset = b"", offset
        while self.offset < offset and self.read(min(BLOCK, offset - self.offset)):
            pass


def open_regular(path: str, follow_links: bool = False) -> int:
    """Open *path* for reading, but never a device, a FIFO or (unless wanted) a symbolic link; OSError if that fails."""
    look = os.stat if follow_links else os.lstat
    if not stat.S_ISREG(look(path).st_mode):
        raise OSError(f"not a regular file: {path}")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(f"not a regular file: {path}")


class _Descriptor:
    """Reads a file descriptor without moving its own position, so that several streams may share it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def pull(self, size: int) -> bytes:
        data = os.pread(self._descriptor, max(size, 1), self._offset)
        self._offset += len(data)
        return data

    def seek(self, offset: int) -> None:
        self._offset = offset


def plain(descriptor: int) -> Stream:
    file = _Descriptor(descriptor)
    return Stream(file.pull, file.seek)


class _Gunzip:
    """Inflates one or more gzip members; *packed* is where its bytes come from."""

    def __init__(self, packed: Stream, bounds: Bounds) -> None:
        self._packed = packed
        self._bounds = bounds
        self._start = packed.offset
        self._inflate: zlib._Decompress | None = None
        self._unpacked = 0

    def pull(self, _size: int) -> bytes:
        while data := self._next_input():
            assert self._inflate is not None
            try:
                out = self._inflate.decompress(data, QUANTUM)
            except zlib.error as error:
                raise RecordError(f"damaged gzip data after {self._unpacked:,} bytes: {error}") from error
            self._return_unused()
            if out:
                self._unpacked += len(out)
                self._bounds.check(self._unpacked, self._packed.offset - self._start)
                return out
        return b""

    def _next_input(self) -> bytes:
        if self._inflate is None:
            if self._packed.peek(2) != GZIP:
                return b""
            self._inflate = zlib.decompressobj(31)
        return self._inflate.unconsumed_tail or self._packed.read(QUANTUM)

    def _return_unused(self) -> None:
        assert self._inflate is not None
        if self._inflate.eof:
            self._packed.back(self._inflate.unused_data)
            self._inflate = None

    def finish(self) -> str:
        """Say what is wrong at the end of the data, if anything is."""
        if self._inflate is not None:
            return f"gzip data ends in the middle, after {self._unpacked:,} bytes"
        if self._packed.peek(64).strip(b"\0"):
            return "other data follows the gzip data; it was not read"
        return ""


class _Utf16:
    """UTF-16 as UTF-8. Lone surrogates stay visible as such: whoever decodes the record decides."""

    def __init__(self, source: Stream, encoding: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def pull(self, _size: int) -> bytes:
        while data := self._source.read(QUANTUM):
            if text := self._decoder.decode(data):
                return text.encode("utf-8", "surrogatepass")
        return b""


def text(stream: Stream) -> Stream:
    """Return *stream* as UTF-8 if it is UTF-16 (by its mark, or by zeros in every other byte), else as it is."""
    head = stream.peek(16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Stream(_Utf16(stream, "utf-16").pull)
    for encoding, zeros, letters in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(head) >= 8 and not any(zeros) and all(letters):
            return Stream(_Utf16(stream, encoding).pull)
    return stream


class Member(NamedTuple):
    """One file inside a container: *name* is empty for what is not an archive.

    *packed* is true if its bytes are made by inflating, so that going back means starting again. *finish* says what was
    wrong at the end, if anything was.
    """

    name: str
    stream: Stream
    finish: Callable[[], str] = str


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def kind(descriptor: int) -> str:
    """Return what the file is, by its content: zip, tar, tar.gz, gz, or plain."""
    stream = plain(descriptor)
    head = stream.peek(TAR_BLOCK)
    if head.startswith(ZIP):
        return "zip"
    if is_tar(head):
        return "tar"
    if not head.startswith(GZIP):
        return "plain"
    try:
        inner = Stream(_Gunzip(stream, Bounds()).pull).peek(TAR_BLOCK)
    except RecordError:
        return "gz"
    return "tar.gz" if is_tar(inner) else "gz"


def members(descriptor: int, kind: str, bounds: Bounds) -> Generator[Member, None, None]:
    """Yield what a file holds, in its own order; a member must be read before the next one is asked for."""
    stream = plain(descriptor)
    if kind == "zip":
        yield from _zip_members(descriptor, bounds)
    elif kind == "tar":
        yield from _tar_members(stream, bounds)
    elif kind == "tar.gz":
        yield from _tar_members(Stream(_Gunzip(stream, bounds).pull), bounds)
    else:
        yield _unpacked("", stream, bounds)


def _unpacked(name: str, stream: Stream, bounds: Bounds, finish: Callable[[], str] = str) -> Member:
    """Return the member, inflated once more if it is a gzip file itself."""
    if stream.peek(2) != GZIP:
        return Member(name, stream, finish)
    gunzip = _Gunzip(stream, bounds)
    return Member(name, Stream(gunzip.pull), gunzip.finish)


# --- zip --------------------------------------------------------------------------------------------------------------


class _ZipMember:
    def __init__(self, file: IO[bytes], info: zipfile.ZipInfo, bounds: Bounds) -> None:
        self._file = file
        self._info = info
        self._bounds = bounds
        self._unpacked = 0

    def pull(self, _size: int) -> bytes:
        try:
            data = self._file.read(QUANTUM)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise RecordError(f"damaged zip member after {self._unpacked:,} bytes: {error}") from error
        self._unpacked += len(data)
        self._bounds.check(self._unpacked, self._info.compress_size)
        return data


def _zip_members(descriptor: int, bounds: Bounds) -> Iterator[Member]:
    _check_directory(descriptor, bounds)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise RecordError(f"damaged zip archive: {error}") from error
        for info in archive.infolist():
            if not info.is_dir():
                yield _zip_member(archive, info, bounds)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, bounds: Bounds) -> Member:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Member(info.filename, failing(f"zip compression method {info.compress_type} is not supported"))
    try:
        opened = archive.open(info)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, ValueError) as error:
        return Member(info.filename, failing(f"zip member cannot be opened: {error}"))
    try:
        return _unpacked(info.filename, Stream(_ZipMember(opened, info, bounds).pull), bounds)
    except RecordError as error:
        return Member(info.filename, failing(str(error)))


def failing(reason: str) -> Stream:
    """A stream that cannot be read, and says why."""

    def pull(_size: int) -> bytes:
        raise RecordError(reason)

    return Stream(pull)


def _check_directory(descriptor: int, bounds: Bounds) -> None:
    """Refuse a central directory that is too long before `zipfile` reads all of it into memory."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, (1 << 16) + 22 + 20, max(0, size - (1 << 16) - 22 - 20))
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        raise RecordError("damaged zip archive: it has no directory at its end")
    length = int.from_bytes(tail[place + 12 : place + 16], "little")
    if tail[max(0, place - 20) : place].startswith(b"PK\x06\x07"):
        record = os.pread(descriptor, 56, int.from_bytes(tail[place - 12 : place - 4], "little") & (2**63 - 1))
        length = max(length if length != 0xFFFFFFFF else 0, int.from_bytes(record[40:48], "little"))
    if length > bounds.members * 512:
        raise RecordError(
            f"zip directory of {length:,} bytes holds more than {bounds.members:,} members; nothing was read"
        )


# --- tar --------------------------------------------------------------------------------------------------------------


def _tar_members(stream: Stream, bounds: Bounds) -> Iterator[Member]:
    """Read headers one by one: the standard library would hold an extended header of any length in memory."""
    name, size, count = "", -1, 0
    while len(header := stream.peek(TAR_BLOCK)) == TAR_BLOCK and header.strip(b"\0"):
        stream.skip_to(stream.offset + TAR_BLOCK)
        length, flag = _tar_number(header[124:136]), header[156:157]
        if flag in (b"L", b"x"):
            extra = _tar_extra(stream, length)
            name, size = _tar_names(flag, extra, name, size)
            continue
        if flag in (b"0", b"\0", b"7"):
            count += 1
            if count > bounds.members:
                raise RecordError(f"archive holds more than {bounds.members:,} members; the rest was not read")
            length = size if size >= 0 else length
            part = _TarMember(stream, length)
            yield _unpacked(name or _tar_name(header), Stream(part.pull), bounds, part.finish)
            part.drain()
        else:
            stream.skip_to(stream.offset + _padded(length))
        name, size = "", -1


class _TarMember:
    def __init__(self, stream: Stream, length: int) -> None:
        self._stream = stream
        self._left = length
        self._padding = _padded(length) - length

    def pull(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        return data

    def drain(self) -> None:
        self._stream.skip_to(self._stream.offset + self._left + self._padding)

    def finish(self) -> str:
        return f"archive ends {self._left:,} bytes before the end of this member" if self._left else ""


def _padded(length: int) -> int:
    return -(-length // TAR_BLOCK) * TAR_BLOCK


def _tar_number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise RecordError("damaged tar header") from error


def _tar_name(header: bytes) -> str:
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    name = header[:100].split(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _tar_extra(stream: Stream, length: int) -> bytes:
    if length > TAR_NAME:
        raise RecordError(f"tar header extension of {length:,} bytes; the rest of the archive was not read")
    data = stream.peek(_padded(length))
    stream.skip_to(stream.offset + _padded(length))
    return data[:length]


def _tar_names(flag: bytes, extra: bytes, name: str, size: int) -> tuple[str, int]:
    """Return name and size as the extended header states them, else as they were."""
    if flag == b"L":
        return extra.rstrip(b"\0").decode("utf-8", "replace"), size
    while extra:
        length, _, _ = extra.partition(b" ")
        if not length.isdigit() or len(length) > 6 or int(length) <= len(length):
            break
        key, _, value = extra[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
        extra = extra[int(length) :]
    return name, size
