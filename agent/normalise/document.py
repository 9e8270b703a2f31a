"""Whole documents: one record as nested ECS, with every mapped field and what no mapping knows.

Types follow the catalogue; a value of the wrong type is left out, never bent. Where two fields want one place (``a`` as
a text and ``a.b``), the first stays. Names that no index takes (empty, with control characters) are left out. What is
left out is still in ``event.original``, which the caller adds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

import re2

from agent.model import Value
from agent.normalise.catalogue import Converter, catalogue
from agent.normalise.clock import to_text
from agent.normalise.columns import Frame
from agent.normalise.kinds import TEXT
from agent.normalise.mapping import Expression, Joint, MappingFile, Paths, Product, Shape

_RELATED: Mapping[str, tuple[str, ...]] = {
    "hash": ("file.hash.md5", "file.hash.sha1", "file.hash.sha256", "process.hash.md5", "process.hash.sha256"),
    "hosts": ("host.hostname", "dns.question.name", "destination.domain", "source.domain", "url.domain"),
    "ip": ("source.ip", "destination.ip", "client.ip", "server.ip"),
    "user": ("user.name", "user.target.name", "user.effective.name"),
}
_STRUCTURED = frozenset({"object", "nested", "flattened", "geo_point"})
_LONGEST_NAME = 1_024
_UNNAMED = re2.compile(r"[.\s]")


class _Spot(NamedTuple):
    """Where a field stands in a document, and what it may hold."""

    parents: tuple[str, ...]
    last: str
    legal: bool
    array: bool
    allowed: frozenset[str]


@lru_cache(8192)
def _spot(name: str) -> _Spot:
    *parents, last = parts = name.split(".")
    field = catalogue().fields.get(name)
    allowed = catalogue().allowed.get(name, frozenset())
    return _Spot(tuple(parents), last, all(map(_is_readable, parts)), bool(field and field.array), allowed)


class _Document:
    """A nested document under construction."""

    def __init__(self) -> None:
        self.root: dict[str, Any] = {}

    def put(self, name: str, value: Any) -> bool:
        """Set the field *name* unless its place is taken; say whether it holds the value now."""
        return len(name) <= _LONGEST_NAME and self._put(_spot(name), value)

    def put_typed(self, name: str, value: Value | None) -> bool:
        """Set an ECS field as its type and its closed list allow."""
        if value is None or len(name) > _LONGEST_NAME:
            return False
        spot = _spot(name)
        if not (spot.array or spot.allowed or isinstance(value, tuple)):
            return self._put(spot, value)
        values = list(value) if isinstance(value, tuple) else [value]
        if spot.allowed:
            values = [item for item in values if item in spot.allowed]
        if not values:
            return False
        return self._put(spot, values[0] if len(values) == 1 and not spot.array else values)

    def _put(self, spot: _Spot, value: Any) -> bool:
        if not spot.legal:
            return False
        place = self.root
        for part in spot.parents:
            inner = place.setdefault(part, {})
            if inner.__class__ is not dict:
                return False
            place = inner
        return bool(place.setdefault(spot.last, value) is value)

    def part(self, name: str) -> None:
        """Make the object *name*, whose fields are lists of one length, a list of objects."""
        *parents, last = name.split(".")
        place: Any = self.root
        for each in parents:
            place = place.get(each) if place.__class__ is dict else None
        whole = place.get(last) if place.__class__ is dict else None
        if whole.__class__ is dict:
            columns = [value if isinstance(value, list) else [value] for value in whole.values()]
            if len({len(column) for column in columns}) == 1:
                place[last] = [dict(zip(whole, row, strict=True)) for row in zip(*columns, strict=True)]

    def get(self, name: str) -> list[Any]:
        place: Any = self.root
        spot = _spot(name)
        for part in (*spot.parents, spot.last):
            place = place.get(part) if place.__class__ is dict else None
        return place if isinstance(place, list) else [] if place is None else [place]


class Plan:
    """How records of one kind in one shape become documents; *identity* and *product* say what sort of event it is."""

    def __init__(self, mapping: MappingFile, shape: Shape, identity: Mapping[str, str], product: Product) -> None:
        self._mapping = mapping
        self._shape = shape
        self._product = product
        named = ((name, identity[native]) for native, name in mapping.identity.items() if name and native in identity)
        self._named = [(name, _converted(catalogue().converter(name), value)) for name, value in named]
        self._fields = [
            (name, [(item, shape.source(item)) for item in alternatives])
            for name, alternatives in product.fields.items()
        ]
        sections = dict.fromkeys(name.rpartition(".")[0] for name in product.fields)
        self._parted = [name for name in sections if name in _lists_of_objects()]
        paths = (*shape.names.values(), shape.time, shape.message)
        self._headers = {".".join(path) for each in paths for path in each}

    def build(self, frame: Frame, time: int) -> dict[str, Any]:
        """Return the one record of *frame* as a document."""
        mapping, shape = self._mapping, self._shape
        document = _Document()
        document.put("@timestamp", to_text(time))
        document.put("ecs", {"version": catalogue().version})
        if shape.ecs:
            _adopt(document, frame.section(())[0], mapping.prefix, self._product.constants)
        for name, value in self._named:
            document.put_typed(name, value)
        for name, values in self._product.constants.items():
            document.put_typed(name, tuple(values))
        moved = set(mapping.identity)
        for name, alternatives in self._fields:
            used = _fill(document, name, alternatives, frame, mapping.absent)
            if used and (used.moves or (mapping.prefix and name.startswith(mapping.prefix))):
                moved.add(used.native)
        for name in self._parted:
            document.part(name)
        if shape.message:
            document.put_typed("message", _converted(TEXT, frame.value(shape.message)))
        if not shape.ecs:
            _leftovers(document, mapping, shape, frame, moved, self._headers)
        _relate(document, mapping.related or _RELATED, mapping.absent)
        return document.root


def _fill(
    document: _Document,
    name: str,
    alternatives: Iterable[tuple[Expression, Paths | Joint]],
    frame: Frame,
    absent: frozenset[str],
) -> Expression | None:
    """Set *name* from the first alternative that gives a value; return it if the field holds that."""
    for item, source in alternatives:
        raw = frame.value(source)
        if raw is None:
            continue
        value = _converted(item.convert, raw)
        if raw == [] and item.moves and document.put(name, raw):
            return item
        if value is None or (item.moves and value in absent):
            continue
        return item if document.put_typed(name, value) else None
    return None


def _converted(convert: Converter, raw: Any) -> Value | None:
    try:
        return convert(raw)
    except ValueError:
        return None


# --- what stands in the record ----------------------------------------------------------------------------------------


def _adopt(document: _Document, record: Mapping[str, Any], prefix: str, constants: Collection[str]) -> None:
    """Take over a record that is ECS already, field by field, each checked; what its kind says stands above it."""
    for name, value in _leaves(record, ""):
        if name in {"@timestamp", "event.original"} or name.startswith("ecs.") or name in constants:
            continue
        if name in catalogue().fields and catalogue().fields[name].type not in _STRUCTURED:
            document.put_typed(name, _converted(catalogue().converter(name), value))
        elif prefix and name.startswith(prefix):
            document.put_typed(name, _converted(TEXT, value))
        else:
            document.put(name, _plain(value))


def _leftovers(
    document: _Document, mapping: MappingFile, shape: Shape, frame: Frame, known: set[str], headers: set[str]
) -> None:
    """Put what no mapping knows under the vendor's prefix, as text."""
    prefix = mapping.prefix or f"{mapping.name}."
    kept = tuple(f"{name}." for name in mapping.sections if _keep_whole(document, mapping, name, shape, frame))
    for section in shape.data:
        for name, value in _leaves(frame.section(section)[0], ""):
            is_header = ".".join((*section, name)) in headers
            if name not in known and not is_header and not f"{name}.".startswith(kept):
                text = _converted(TEXT, value)
                document.put(prefix + name, _plain(value) if text is None else _listed(text))


def _keep_whole(document: _Document, mapping: MappingFile, native: str, shape: Shape, frame: Frame) -> bool:
    """Put the object or list *native* at its place as it is; say whether it is there."""
    value = frame.value(shape.paths(native))
    if value.__class__ is list and value:
        value = _by_name(value) or value
    return value.__class__ in (dict, list) and value != {} and document.put(mapping.sections[native], _plain(value))


def _by_name(items: list[Any]) -> dict[str, Any]:
    """Return a list of objects such as ``{Name: a, Value: b}`` as one object; nothing if it is no such list."""
    named: dict[str, Any] = {}
    for item in items:
        if item.__class__ is not dict or item.get("Name").__class__ is not str or len(item) < 2:
            return {}
        rest = {key: value for key, value in item.items() if key != "Name"}
        named[_UNNAMED.sub("_", item["Name"])] = rest["Value"] if rest.keys() == {"Value"} else rest
    return named


def _leaves(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values that are no objects; decoding bounds the depth."""
    for key, value in section.items():
        if value.__class__ is dict and value and "#text" not in value:
            if key != "#attributes":
                yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            yield prefix + key, value


def _listed(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    """Return a value for a place without a type, with names that an index takes."""
    if value.__class__ is list:
        return [_plain(item) for item in value]
    if value.__class__ is dict:
        return {key: _plain(inner) for key, inner in value.items() if inner is not None and inner != {} and _legal(key)}
    return value


@cache
def _lists_of_objects() -> frozenset[str]:
    """Return the ECS fields that are lists of objects, such as the answers of a name server."""
    fields = catalogue().fields
    return frozenset(name for name, field in fields.items() if field.array and field.type in {"object", "nested"})


def _legal(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and _spot(name).legal


def _is_readable(part: str) -> bool:
    return bool(part and part.isprintable() and part.strip())


def _relate(document: _Document, related: Mapping[str, tuple[str, ...]], absent: frozenset[str]) -> None:
    for kind, names in related.items():
        values = [value for name in names for value in document.get(name) if isinstance(value, str) and value]
        values = [value for value in values if value not in absent]
        own = document.get(f"related.{kind}")
        if together := list(dict.fromkeys([*own, *values])):
            place = document.root.setdefault("related", {})
            if place.__class__ is dict:
                place[kind] = together
