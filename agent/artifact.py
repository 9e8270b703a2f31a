"""A model's folder on disk: read once and whole, written whole or not at all.

What `read` returns is what is verified and what is loaded; nobody opens the folder a second time. It follows no link,
waits for no pipe and reads no more than its bounds.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agent.errors import ConfigError, TrustError

MAX_FILES = 64
MAX_BYTES = 64 << 20
MAX_DEPTH = 4
"""Levels of folders below the artifact's own."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def read(folder: Path) -> dict[str, bytes]:
    """Return every file below *folder* by its relative path.

    TrustError names the path of what an artifact may not hold: links of both sorts, anything but plain files and
    folders, hidden or odd names, empty folders, more than the bounds, or a file that changes while it is read.
    """
    files: dict[str, bytes] = {}
    with _opened(os.fspath(folder), None, _FOLDER, f"{folder}") as descriptor:
        _read_folder(descriptor, folder, "", 0, files)
    return files


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make *folder* with these files, on disk when this returns; ConfigError if it exists or cannot be made."""
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists; choose another folder or remove it")
    made = _beside(folder)
    try:
        for path, data in files.items():
            _check_path(path)
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_file(target, data)
        for place, _, _ in os.walk(made):
            _sync(Path(place))
        made.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put(folder: Path, path: str, data: bytes) -> None:
    """Write one file of an artifact that exists, such as its signature: the old one or the new one is there, whole."""
    _check_path(path)
    made = _beside(folder)
    try:
        _write_file(made, data)
        made.replace(folder / path)
        _sync(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder / path}: {error.strerror}") from None
    finally:
        made.unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_folder(descriptor: int, folder: Path, below: str, depth: int, files: dict[str, bytes]) -> None:
    names = _names(descriptor, folder, below)
    if not names:
        raise TrustError(f"{folder / below}: an artifact has no empty folders; remove it")
    for name in names:
        path = f"{below}{name}"
        place = folder / path
        if not _NAME.fullmatch(name):
            shown = f"{place}".encode("utf-8", "backslashreplace").decode()
            raise TrustError(f"{shown}: expected a name of letters, digits, '.', '_' and '-' that is not hidden")
        try:
            kind = os.lstat(name, dir_fd=descriptor).st_mode
        except OSError as error:
            raise TrustError(f"{place}: cannot be read: {error.strerror}") from None
        if stat.S_ISDIR(kind):
            if depth == MAX_DEPTH:
                raise TrustError(f"{place}: deeper than {MAX_DEPTH} folders")
            with _opened(name, descriptor, _FOLDER, f"{place}") as inner:
                _read_folder(inner, folder, f"{path}/", depth + 1, files)
        elif stat.S_ISREG(kind):
            if len(files) == MAX_FILES:
                raise TrustError(f"{folder}: more than {MAX_FILES} files")
            left = MAX_BYTES - sum(map(len, files.values()))
            with _opened(name, descriptor, _FILE, f"{place}") as opened:
                files[path] = _read_file(opened, place, left)
        else:
            raise TrustError(f"{place}: expected a plain file, found {_describe(kind)}")


def _names(descriptor: int, folder: Path, below: str) -> list[str]:
    names: list[str] = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MAX_FILES:
                raise TrustError(f"{folder / below}: more than {MAX_FILES} files")
    return sorted(names)


def _read_file(descriptor: int, place: Path, left: int) -> bytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise TrustError(f"{place}: expected a plain file, found {_describe(before.st_mode)}")
    if before.st_nlink != 1:
        raise TrustError(f"{place}: the file has {before.st_nlink} names (hard links), expected one; copy it")
    if before.st_size > left:
        raise TrustError(f"{place}: the artifact is larger than {MAX_BYTES} bytes")
    parts = []
    wanted = before.st_size + 1
    while wanted and (part := os.read(descriptor, wanted)):
        parts.append(part)
        wanted -= len(part)
    data = b"".join(parts)
    after = os.fstat(descriptor)  # of the times only the change time cannot be set back
    if len(data) != before.st_size or before.st_ctime_ns != after.st_ctime_ns:
        raise TrustError(f"{place}: changed while it was read; try again when nobody writes to it")
    return data


@contextmanager
def _opened(path: str, parent: int | None, flags: int, place: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags, dir_fd=parent)
    except OSError as error:
        raise TrustError(f"{place}: cannot be read without following links: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _describe(mode: int) -> str:
    names = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return names.get(stat.S_IFMT(mode), "a device or something else")


# --- writing ----------------------------------------------------------------------------------------------------------


def _beside(folder: Path) -> Path:
    """Return a free name on the file system of *folder*."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")


def _check_path(path: str) -> None:
    parts = path.split("/")
    if len(parts) > MAX_DEPTH + 1 or not all(map(_NAME.fullmatch, parts)):
        raise ConfigError(f"cannot write {path!r}: expected names of letters, digits, '.', '_' and '-', not hidden")


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
