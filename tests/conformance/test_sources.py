"""Every source keeps the port's promises, in every format and container."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent.errors import RetryableError
from agent.model import SECOND, Timestamp
from agent.ports import Source
from agent.testing import SOURCE_CHECKS, MemorySource, Raw, SourceHarness, run
from connectors.files import build


class Memory(SourceHarness):
    def __init__(self) -> None:
        self._upstream: dict[str, list[Raw]] = {}
        self._numbers = count()

    def grow(self, number: int, time: Timestamp) -> Sequence[Raw]:
        new = [{"number": next(self._numbers), "time": time} for _ in range(number)]
        for record in new:
            self._upstream.setdefault(f"p{record['number'] % 2}", []).append(record)
        return new

    def source(self) -> Source:
        source = MemorySource()
        source.upstream = self._upstream
        return source

    def troubled(self) -> Iterable[AbstractContextManager[Source]]:
        @contextmanager
        def failing() -> Any:
            source = MemorySource()
            source.failures.append(RetryableError("busy"))
            yield source

        return [failing()]


def line(format: str, number: int, time: Timestamp) -> bytes:
    at = datetime.fromtimestamp(time / SECOND, UTC)
    if format == "syslog":
        return f"{at:%b %d %H:%M:%S} host{number % 3} sshd[{number}]: Accepted password for user{number}".encode()
    if format == "access":
        return f'10.0.0.{number % 250} - - [{at:%d/%b/%Y:%H:%M:%S +0000}] "GET /{number} HTTP/1.1" 200 5'.encode()
    if format == "text":
        return f"something {number} happened at {at}".encode()
    record = {"eventSource": "s3.amazonaws.com", "eventName": "GetObject", "eventTime": f"{at:%FT%TZ}", "n": number}
    return json.dumps(record).encode()


Store = Callable[[Path, list[list[bytes]]], None]
"""Writes all that has been generated, in the order in which it grew, into a folder."""


def appended(folder: Path, grown: list[list[bytes]]) -> None:
    (folder / "a.log").write_bytes(b"".join(each + b"\n" for lines in grown for each in lines))


def one_file_each(write: Callable[[Path, bytes], object], suffix: str) -> Store:
    def store(folder: Path, grown: list[list[bytes]]) -> None:
        for number, lines in enumerate(grown):
            path = folder / f"{number:04}{suffix}"
            if not path.exists():
                write(path, b"\n".join(lines))
                os.utime(path, (1, 1))

    return store


def write_gz(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, mtime=0))


def write_zip(path: Path, data: bytes) -> None:
    lines = data.split(b"\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._a.log", b"\0\5\26\7")
        archive.writestr("logs/a.log", b"\n".join(lines[::2]))
        archive.writestr("logs/b.log", b"\n".join(lines[1::2]))


def write_tar(path: Path, data: bytes) -> None:
    lines = data.split(b"\n")
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("x" * 150 + ".log", lines[::2]), ("README", [b"read me"]), ("b.log", lines[1::2])):
            info = tarfile.TarInfo(name)
            info.size = len(b"\n".join(content))
            archive.addfile(info, io.BytesIO(b"\n".join(content)))


def write_delivery(path: Path, data: bytes) -> None:
    write_gz(path, b'{"Records":[' + data.replace(b"\n", b",\n") + b"]}")


def write_utf16(path: Path, data: bytes) -> None:
    path.write_bytes(data.decode().replace("\n", "\r\n").encode("utf-16"))


class Files(SourceHarness):
    format = "json"
    store: Store = staticmethod(appended)
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        self._grown: list[list[bytes]] = []
        self._numbers = count()

    def grow(self, number: int, time: Timestamp) -> Sequence[Raw]:
        self._grown.append([line(self.format, next(self._numbers), time) for _ in range(number)])
        type(self).store(self.path, self._grown)
        return self._grown[-1]

    def source(self) -> Source:
        return build("files", {"paths": [str(self.path)], **self.options})

    def misconfigured(self) -> Iterable[Callable[[], Source]]:
        return [
            lambda: build("files", {}),
            lambda: build("files", {"paths": []}),
            lambda: build("files", {"paths": ["/"], "colour": "red"}),
            lambda: build("files", {"paths": ["/"], "format": "xml"}),
            lambda: build("files", {"paths": [str(self.path / "nowhere" / "*.log")]}),
        ]

    def close(self) -> None:
        self._folder.cleanup()


HEADER = b"#separator \\x09\n#unset_field\t-\n#path\tweird\n#fields\tts\tuid\n#types\ttime\tstring\n"


class Tables(Files):
    """Zeek's tables: what is written is a line, what is given is the object that it stands for."""

    format = "zeek"
    options: ClassVar[dict[str, Any]] = {"follow": True}

    def grow(self, number: int, time: Timestamp) -> Sequence[Raw]:
        new = [
            (f"{datetime.fromtimestamp(time / SECOND, UTC):%FT%T}.000000Z", f"C{next(self._numbers)}")
            for _ in range(number)
        ]
        with (self.path / "weird.log").open("ab") as file:
            file.write(HEADER)
            file.writelines(f"{time // SECOND}.000000\t{uid}\n".encode() for _, uid in new)
        return [json.dumps({"_path": "weird", "ts": at, "uid": uid}, separators=(",", ":")).encode() for at, uid in new]


class ExtendedLogs(Files):
    """Extended logs of W3C: what is written is a line, what is given is the object of its columns."""

    format = "w3c"
    options: ClassVar[dict[str, Any]] = {"follow": True}

    def grow(self, number: int, time: Timestamp) -> Sequence[Raw]:
        at = f"{datetime.fromtimestamp(time / SECOND, UTC):%F %T}"
        stems = [f"/{next(self._numbers)}" for _ in range(number)]
        with (self.path / "u_ex.log").open("ab") as file:
            file.write(b"#Version: 1.0\r\n#Fields: date time cs-uri-stem\r\n")
            file.writelines(f"{at} {stem}\r\n".encode() for stem in stems)
        when = f"{at.replace(' ', 'T')}Z"
        objects = [{"_software": {}, "time": when, "cs-uri-stem": stem} for stem in stems]
        return [json.dumps(each, separators=(",", ":")).encode() for each in objects]


class ReadOnce(Files):
    exceptions: ClassVar[dict[str, str]] = {
        "late_records_are_given": "files are listed once, at open; 'follow: true' sees later ones",
        "an_empty_fetch_says_when": "what is appended after the end was read comes at the next open",
    }


def files(name: str, base: type[Files], lines: str, store: Store, **options: Any) -> type[Files]:
    members = {"format": lines, "store": staticmethod(store), "options": options}
    return type(name, (base,), members)


gz, zip_, tar = one_file_each(write_gz, ".gz"), one_file_each(write_zip, ".zip"), one_file_each(write_tar, ".tgz")
ended, ended_utf16 = (
    one_file_each(lambda path, data, write=write: write(path, data + b"\n"), suffix)
    for write, suffix in ((Path.write_bytes, ".log"), (write_utf16, ".txt"))
)
delivery, utf16 = one_file_each(write_delivery, ".json.gz"), one_file_each(write_utf16, ".txt")
plain = one_file_each(Path.write_bytes, ".log")

once = ReadOnce


class TablesOnce(Tables):
    options: ClassVar[dict[str, Any]] = {}
    exceptions = ReadOnce.exceptions


HARNESSES: list[type[SourceHarness]] = [
    Memory,
    files("followed", Files, "json", appended, follow=True),
    files("followed-syslog", Files, "syslog", appended, follow=True),
    files("followed-files", Files, "access", ended, follow=True),
    files("followed-gz", Files, "syslog", gz, follow=True),
    files("followed-zip", Files, "access", zip_, follow=True),
    files("followed-tar", Files, "json", tar, follow=True),
    files("followed-delivery", Files, "cloudtrail", delivery, follow=True),
    files("followed-utf16", Files, "json", ended_utf16, follow=True),
    files("growing", once, "json", appended),
    files("json", once, "json", plain),
    files("syslog", once, "syslog", plain),
    files("zoned", Files, "syslog", ended, follow=True, timezone="Europe/Berlin"),
    files("access", once, "access", plain),
    files("text", once, "text", plain, format="text"),
    files("gz", once, "json", gz),
    files("zip", once, "syslog", zip_),
    files("tar", once, "access", tar),
    files("delivery", once, "cloudtrail", delivery),
    files("utf16", once, "json", utf16),
    Tables,
    ExtendedLogs,
    TablesOnce,
]


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.__name__)
def test_the_source_keeps_its_promise(harness: type[SourceHarness], check: Callable[[SourceHarness], None]) -> None:
    run(check, harness)
