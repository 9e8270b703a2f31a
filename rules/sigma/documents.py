"""YAML documents of a rule collection: a file, a folder, a tar or a zip archive, nothing unpacked to disk.

Archives are bounded in members and bytes; what cannot be read as YAML is returned as a refusal, ``file:line: reason``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from agent.errors import ConfigError

MAX_FILE = 1 << 20
MAX_TOTAL = 1 << 28
MAX_FILES = 100_000
MAX_NODES = 50_000
_SUFFIXES = (".yml", ".yaml")


@dataclass(frozen=True, slots=True)
class Document:
    """One mapping of a YAML stream and where it begins; *text* is the file that holds it."""

    path: str
    line: int
    data: dict[str, Any]
    text: str

    def place(self, needle: str = "") -> str:
        """Return ``file:line`` of *needle* inside the document, of its first line where it is not found."""
        for number, line in enumerate(self.text.splitlines()[self.line - 1 :] if needle else (), self.line):
            if needle in line:
                return f"{self.path}:{number}"
        return f"{self.path}:{self.line}"


Files = list[tuple[str, bytes]]


def read_files(path: Path) -> Files:
    """Return the YAML files under *path* with their names, sorted; ConfigError if there is nothing to read."""
    try:
        if path.is_dir():
            found = _read_folder(path)
        elif tarfile.is_tarfile(path):
            found = _bounded(path, _tar_members(path))
        elif zipfile.is_zipfile(path):
            found = _bounded(path, _zip_members(path))
        else:
            found = _bounded(path, [(path.name, path.stat().st_size, path.read_bytes)])
    except (OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ConfigError(f"cannot read rules: {error}", str(path)) from error
    if not found:
        raise ConfigError("no rules found: expected .yml files, or an archive of them", str(path))
    return sorted(found)


def content_digest(files: Files) -> str:
    """Return ``sha256:…`` over the names and contents of *files*, wherever and however packed they lie."""
    state = hashlib.sha256()
    for name, content in files:
        state.update(f"{len(name)} {len(content)} {name}".encode("utf-8", "surrogateescape"))
        state.update(content)
    return f"sha256:{state.hexdigest()}"


def _read_folder(path: Path) -> Files:
    return _bounded(path, _folder_members(str(path)))


def _folder_members(root: str) -> Iterator[tuple[str, int, Any]]:
    """Yield the folder's rule files; plain strings, since a path object a file would take as long as reading it."""
    for folder, _, names in os.walk(root):
        for name in names:
            file = f"{folder}/{name}"
            if name.endswith(_SUFFIXES) and stat.S_ISREG((status := os.stat(file)).st_mode):  # noqa: PTH116
                yield file.removeprefix(root).lstrip("/"), status.st_size, partial(_read, file)


def _read(file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:  # noqa: PTH123
        return stream.read(MAX_FILE + 1)


def _tar_members(path: Path) -> Iterator[tuple[str, int, Any]]:
    with tarfile.open(path) as archive:
        skipped = 0
        for member in archive:
            skipped += member.size
            if skipped > MAX_TOTAL:
                raise ConfigError(f"an archive may hold at most {MAX_TOTAL} bytes", str(path))
            if member.isfile() and member.name.endswith(_SUFFIXES):
                stream = archive.extractfile(member)
                assert stream is not None
                yield member.name.removeprefix("./"), member.size, stream.read


def _zip_members(path: Path) -> Iterator[tuple[str, int, Any]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(_SUFFIXES):
                stream = archive.open(member)
                yield member.filename, member.file_size, lambda stream=stream: stream.read(MAX_FILE + 1)


def _bounded(path: Path, members: Iterable[tuple[str, int, Any]]) -> Files:
    """Read *members* within the bounds; what one file says of its size is not believed."""
    found: Files = []
    total = 0
    for name, size, read in members:
        content = read() if size <= MAX_FILE else None
        if content is None or len(content) > MAX_FILE:
            raise ConfigError(f"a rule file may hold at most {MAX_FILE} bytes", f"{path}:{name}")
        total += len(content)
        if total > MAX_TOTAL or len(found) == MAX_FILES:
            raise ConfigError(f"a rule collection may hold at most {MAX_FILES} files and {MAX_TOTAL} bytes", str(path))
        found.append((name, content))
    return found


class _Loader(yaml.CSafeLoader):
    """YAML that refuses a key given twice: one of the two selections would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"key {name!r} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def parse_documents(name: str, content: bytes, refused: list[str]) -> list[Document]:
    """Return the documents of one file, ``action: global`` and ``repeat`` applied; append refusals to *refused*."""
    try:
        text = content.decode("utf-8-sig")
        return list(_apply_actions(_parse(name, text)))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        refused.append(f"{name}:{line}: not valid YAML: {error.problem}")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        refused.append(f"{name}:1: not valid YAML: {type(error).__name__}: {error}")
    return []


def _parse(name: str, text: str) -> Iterator[Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            line = node.start_mark.line + 1
            data = loader.construct_document(node)
            if data is None:
                continue
            if not isinstance(data, dict):
                raise yaml.MarkedYAMLError(problem="a rule is a mapping", problem_mark=node.start_mark)
            _check_size(data)
            yield Document(name, line, data, text)
    finally:
        loader.dispose()


def _check_size(data: Any) -> None:
    """Walk *data* as the tree it stands for, so that a few aliases cannot stand for billions of nodes."""
    waiting, seen = [data], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} nodes")
        waiting.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())


def _apply_actions(documents: Iterable[Document]) -> Iterator[Document]:
    common: dict[str, Any] = {}
    previous: dict[str, Any] = {}
    for document in documents:
        data = {key: value for key, value in document.data.items() if key != "action"}
        match document.data.get("action"):
            case "global":
                common = _merge(common, data)
                continue
            case "reset":
                common = {}
                continue
            case "repeat":
                data = _merge(previous, data)
            case None:
                data = _merge(common, data)
            case other:
                raise ValueError(f"unknown action {other!r}")
        previous = data
        yield Document(document.path, document.line, data, document.text)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
