"""YAML documents of a rule collection: a file, a folder, a tar or a zip archive, nothing unpacked to disk.

Archives are bounded in members and bytes; what cannot be read as YAML is returned as a refusal,
``file:line:column: reason``.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from agent.errors import ConfigError
from agent.model import Level

MAX_FILE = 1 << 20
MAX_TOTAL = 1 << 28
MAX_FILES = 100_000
MAX_NODES = 50_000
MAX_DEPTH = 64
_LONGEST_NUMBER = 400
_SUFFIXES = (".yml", ".yaml")


@dataclass(frozen=True, slots=True)
class Document:
    """One mapping of a YAML stream with its first and last line; *text* is the file that holds it."""

    path: str
    line: int
    data: dict[str, Any]
    text: str
    last: int

    def place(self, needle: str = "") -> str:
        """Return ``file:line`` of *needle* inside the document, of its first line where it is not found."""
        for number, line in enumerate(self.text.splitlines()[self.line - 1 :] if needle else (), self.line):
            if needle in line:
                return f"{self.path}:{number}"
        return f"{self.path}:{self.line}"

    def spot(self, needle: str = "") -> str:
        """Return ``file:line:column`` of *needle*, best where it stands alone; of the beginning if it is not found."""
        lines = self.text.splitlines()[self.line - 1 : self.last] if needle else []
        for pattern in (rf"(?<!\w){re.escape(needle)}(?!\w)", re.escape(needle)):
            for number, line in enumerate(lines, self.line):
                if found := re.search(pattern, line):
                    return f"{self.path}:{number}:{found.start() + 1}"
        return f"{self.path}:{self.line}:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a document says of itself, a rule or a correlation; *digest* names exactly what it says."""

    id: str
    title: str
    level: Level
    place: str
    digest: str
    name: str = ""
    description: str = ""
    author: str = ""
    license: str = ""
    status: str = ""
    tags: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    false_positives: tuple[str, ...] = ()


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


def read_pipelines(paths: Iterable[Path]) -> Files:
    """Return what the files *paths* hold, processing pipelines that are read as if they lay beside rules."""
    return [(f"pipeline {n}/{name}", text) for n, one in enumerate(paths, 1) for name, text in read_files(one)]


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
            if name.endswith(_SUFFIXES):
                file = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                try:
                    status = os.fstat(file)
                    if stat.S_ISREG(status.st_mode):
                        place = f"{folder}/{name}".removeprefix(root).lstrip("/")
                        yield place, status.st_size, partial(os.read, file, MAX_FILE + 1)
                finally:
                    os.close(file)


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
    """YAML that refuses a key given twice (one of two selections would be lost) and what grows without bounds."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > _LONGEST_NUMBER:
            problem = f"a number may have at most {_LONGEST_NUMBER} digits; write it in quotes to make it a text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        number = self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)
        if not (-(2**63) <= number < 2**64 if isinstance(number, int) else math.isfinite(number)):
            problem = "a number may have at most 64 bits and must be finite; write it in quotes to make it a text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                problem = "merge keys (<<) are not read; write out what they stand for"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"key {name!r} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def parse_documents(name: str, content: bytes, refused: list[str]) -> list[Document]:
    """Return the documents of one file, ``action: global`` and ``repeat`` applied; append refusals to *refused*."""
    try:
        text = content.decode("utf-8-sig")
        return list(_apply_actions(_parse(name, text)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        refused.append(f"{name}:{place}: not valid YAML: {error.problem}")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        refused.append(f"{name}:1:1: not valid YAML: {type(error).__name__}: {error}")
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
            _check_size(data, node)
            yield Document(name, line, data, text, node.end_mark.line + 1)
    finally:
        loader.dispose()


def _check_size(data: Any, node: yaml.Node) -> None:
    """Walk *data* as the tree it stands for, so that a few aliases cannot stand for billions of nodes."""
    waiting, seen = [(data, 1)], 0
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            problem = f"more than {MAX_NODES} nodes" if seen > MAX_NODES else f"nested more than {MAX_DEPTH} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting.extend((each, depth + 1) for each in inner)


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
        yield replace(document, data=data)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
