"""Reading `vedette.yml` with the line of every key at hand."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson
import yaml
from pydantic import BaseModel, ValidationError

from agent.config.model import Bootstrap, Configuration
from agent.errors import ConfigError

Lines = dict[tuple[str, ...], int]
MAX_BYTES = 1 << 20


SectionT = TypeVar("SectionT", bound=BaseModel)


def load(path: Path) -> tuple[Configuration, Locator]:
    """Return the configuration in *path* and where each key stands; ConfigError names file, line and key."""
    return parse(read(path), path)


def parse(text: bytes, path: Path) -> tuple[Configuration, Locator]:
    """Return the configuration that *text* is; *path* is where errors say that it stands."""
    configuration, locator = _parse(Configuration, text, path)
    _check_names(configuration, locator)
    return configuration, locator


def load_bootstrap(path: Path) -> Bootstrap:
    """Return what *path* says, its paths made absolute."""
    bootstrap, _ = _parse(Bootstrap, read(path), path)
    base = path.resolve().parent
    return bootstrap.model_copy(update={"data": base / bootstrap.data, "configuration": base / bootstrap.configuration})


def read(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return what a plain file of at most *most* bytes holds."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (it is a descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("cannot read the configuration: it is no plain file", str(path))
            text = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", str(path)) from None
    if len(text) > most:
        raise ConfigError(f"configuration of more than {most} bytes: at most so many are read", str(path))
    return text


def read_yaml(text: bytes, path: Path) -> tuple[Any, Locator]:
    """Return the data in *text* and where each key stands.

    ConfigError for whatever is not plain data: aliases, tags, repeated keys, keys that are no text, values that JSON
    does not have, deep nesting.
    """
    line = 0
    try:
        loader = _Loader(text.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            data = None if node is None else loader.construct_document(node)
        finally:
            line = loader.line
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else line
        raise ConfigError(f"not YAML: {error.problem}", f"{path}:{line + 1}") from None
    except yaml.reader.ReaderError as error:
        line = text.decode("utf-8-sig").count("\n", 0, error.position)
        raise ConfigError(f"not YAML: {error.reason}", f"{path}:{line + 1}") from None
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start)
        raise ConfigError(f"not YAML: expected UTF-8: {error.reason}", f"{path}:{line + 1}") from None
    except (ValueError, OverflowError) as error:  # escapes in text that name no character
        raise ConfigError(f"not YAML: {error}", f"{path}:{line + 1}") from None
    return data, Locator(path, dict(_lines(node)))


def compose(text: str) -> yaml.MappingNode:
    """Return the nodes of *text*, which `parse` has taken, for where in it everything stands."""
    node = yaml.compose(text, Loader=_Loader)
    assert isinstance(node, yaml.MappingNode)
    return node


def _parse(model: type[SectionT], text: bytes, path: Path) -> tuple[SectionT, Locator]:
    data, locator = read_yaml(text, path)
    try:
        return model.model_validate(data), locator
    except ValidationError as error:
        raise ConfigError("; ".join(_say(problem, locator) for problem in error.errors())) from None


class Locator:
    """Where each key of the configuration stands."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self.path = path
        self._lines = lines

    def __call__(self, *keys: str | int) -> str:
        """Return ``file:line`` of the key, or of the nearest one around it."""
        wanted = tuple(map(str, keys))
        while wanted and wanted not in self._lines:
            wanted = wanted[:-1]
        return f"{self.path}:{self._lines.get(wanted, 1)}"


MAX_DEPTH = 32
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """YAML as plain data: no aliases (no bombs), no tags, no dates, no repeated keys (no silent last-one-wins)."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read here; write the value out", problem_mark=mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags are not read here", problem_mark=mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"a {kind} is not read here; put it in quotes", problem_mark=node.start_mark
            )
        try:
            value = super().construct_object(node, deep)
            if isinstance(node, yaml.ScalarNode) and orjson.loads(orjson.dumps(value)) != value:
                raise ValueError("a number that is not finite")
        except (ValueError, TypeError, OverflowError) as error:  # surrogates and numbers too large for JSON, too
            raise yaml.MarkedYAMLError(problem=f"no plain value: {error}", problem_mark=node.start_mark) from None
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem="expected a name as key; put it in quotes", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, str(key.value))
            yield place, key.start_mark.line + 1
            yield from _lines(value, place)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            place = (*path, str(number))
            yield place, value.start_mark.line + 1
            yield from _lines(value, place)


def _say(problem: Any, locator: Locator) -> str:
    keys: Sequence[str | int] = problem["loc"]
    name = ".".join(str(key) for key in keys if key != "[key]")
    text = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    return f"{locator(*keys)}: {name or 'file'}: {text}"


def _check_names(configuration: Configuration, locator: Locator) -> None:
    """Every name that is used must be defined."""
    for stream_id, stream in configuration.streams.items():
        uses: dict[str, tuple[list[str], Mapping[str, object]]] = {
            "source": ([stream.source], configuration.sources),
            "detectors": (stream.detectors, configuration.detectors),
            "sinks": (stream.sinks, configuration.sinks),
            "filters": (stream.filters, configuration.filters),
        }
        for key, (names, defined) in uses.items():
            _check_defined(names, defined, locator, "streams", stream_id, key)
    for model_id, model in configuration.models.items():
        _check_defined(model.streams, configuration.streams, locator, "models", model_id, "streams")
    _check_defined(configuration.audit.sinks or (), configuration.sinks, locator, "audit", "sinks")


def _check_defined(names: Sequence[str], defined: Mapping[str, object], locator: Locator, *keys: str) -> None:
    for number, name in enumerate(names):
        if name not in defined:
            known = ", ".join(sorted(defined)) or "none is defined"
            raise ConfigError(f"{'.'.join(keys)}: no {name!r}; there is: {known}", locator(*keys, number))
