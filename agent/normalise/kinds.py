"""Kinds and routes: which mapping reads a record, what sort of event it is, and where its wanted fields lie.

A route is a mapping's shape; it sorts records into groups by their identity fields, one group a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from types import NoneType
from typing import Any, TypeAlias

from agent.errors import RecordError
from agent.model import Kind, Value
from agent.normalise import eventxml
from agent.normalise.catalogue import Converter, catalogue
from agent.normalise.clock import localised, zone_in
from agent.normalise.columns import Frame
from agent.normalise.decode import decode_json
from agent.normalise.lines import ASSUMED_ZONE, ZONE, ByProgram, read_parts
from agent.normalise.mapping import Joint, MappingFile, Path, Paths, Product, Shape, sole

MAX_KINDS = 4_096
"""Kinds that a stream may make; later ones lose their constants (see `Group.capped`)."""

Wanted: TypeAlias = Callable[[Kind], frozenset[str]]
Identity: TypeAlias = tuple[str | None, ...]

ORIGINAL = "event.original"
TEXT = catalogue().converter(ORIGINAL)
LONGEST_CONSTANT = 256
_TELLING = ("event.category", "event.dataset")
"""Fields by which log sources tell events apart: that a kind cannot have them spares its events many rules."""
_MEMO = 4_096
_MEMO_KEYS = 64
_MEMO_LENGTH = 4_096
_NAME = itemgetter("name")
_FIRST_TWO = itemgetter(0, 1)


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of one kind in one shape: what is constant, what is to be read, and what makes each wanted column.

    *sources* gives for each wanted field its alternatives: an index into *reads* and what converts the native value.
    """

    kind: Kind
    constants: tuple[tuple[str, Value], ...]
    reads: tuple[Paths | Joint, ...]
    sources: tuple[tuple[str, tuple[tuple[int, Converter], ...]], ...]
    wants_original: bool
    capped: bool = False
    unmapped: bool = False


class Budget:
    """How many kinds may still be made, over all routes; the last quarter is kept for kinds that a mapping declares."""

    def __init__(self) -> None:
        self._made = 0

    def take(self, declared: bool) -> bool:
        if self._made >= (MAX_KINDS if declared else MAX_KINDS * 3 // 4):
            return False
        self._made += 1
        return True


class Route:
    """One shape of one mapping, with the groups that its records fall into."""

    def __init__(self, mapping: MappingFile, shape: Shape, wanted: Wanted, budget: Budget) -> None:
        self.mapping = mapping
        self.shape = shape
        self._wanted = wanted
        self._budget = budget
        self._groups: dict[tuple[Any, ...], Group] = {}
        self._overflow: Group | None = None
        self.identity = [shape.paths(native) for native in mapping.identity]
        self._times = frozenset(shape.time).union(*(shape.paths(native) for native in mapping.timed))
        self.is_certain = shape.is_certain
        self.may_refuse = bool(shape.inside or shape.layout)

    def localise(self, record: dict[str, Any], zone: str) -> None:
        """Set the times of *record* that name no zone into *zone*, and where a reader of lines assumed one say so."""
        for *sections, key in self._times:
            place = _at(record, sections)
            if place.__class__ is dict and (text := place.get(key)).__class__ is str:
                place[key] = localised(text, zone)
        if record.get(ZONE) == ASSUMED_ZONE:
            time = next((found for path in self.shape.time if (found := _at(record, path)) is not None), "")
            record[ZONE] = zone_in(str(time)) or zone

    def groups(self, frame: Frame, count: int) -> list[Group]:
        """Return the group of each record of *frame*."""
        columns = self._identities(frame)
        if not columns:
            return [self._group(())] * count
        return [self._groups.get(key) or self._group(key) for key in zip(*columns, strict=True)]

    def named(self, frame: Frame) -> Mapping[str, str]:
        """Return the identity of the only record of *frame*."""
        return self._named(tuple(column[0] for column in self._identities(frame)))

    def _identities(self, frame: Frame) -> list[list[Any]]:
        """Return the values of each identity field; where a record has none, what its shape says."""
        columns = [_hashable(frame.column(paths)) for paths in self.identity]
        for number, native in enumerate(self.mapping.identity):
            if said := self.shape.says.get(native):
                columns[number] = [said if value is None else value for value in columns[number]]
        return columns

    def _named(self, key: tuple[Any, ...]) -> dict[str, str]:
        return {
            native: str(value)
            for native, value in zip(self.mapping.identity, key, strict=True)
            if value is not None and value != ""
        }

    def _group(self, key: tuple[Any, ...]) -> Group:
        identity = self._named(key)
        too_long = any(len(value) > LONGEST_CONSTANT for value in identity.values())
        if too_long or not self._budget.take(self.mapping.declares(identity)):
            return self._overflowing()
        missing = [native for native, value in zip(self.mapping.identity, key, strict=True) if value is None]
        group = self._groups[key] = self._plan(identity, self.mapping.product(identity), missing)
        return group

    def _overflowing(self) -> Group:
        """Return the group for kinds past the cap: no constants from the event, so its identity is in columns."""
        if self._overflow is None:
            self._overflow = self._plan({}, self.mapping.product({}), (), capped=True)
        return self._overflow

    def _plan(
        self, identity: Mapping[str, str], product: Product, missing: Iterable[str], capped: bool = False
    ) -> Group:
        """Make the group of records of that *identity*, which have nothing in the identity fields *missing*."""
        named = {self.mapping.identity[native]: value for native, value in identity.items()}
        named.pop("", None)
        constants = {**{name: sole(values) for name, values in product.constants.items()}, **named}
        own = dict.fromkeys(_TELLING, frozenset[Path]())
        own |= {self.mapping.identity[native]: frozenset(self.shape.paths(native)) for native in missing}
        absent = frozenset(
            name
            for name, paths in own.items()
            if name and name not in constants and self._reads_only(paths, name, product)
        )
        kind = Kind(self.mapping.name, tuple(sorted(constants.items())), product.renames, self.mapping.prefix, absent)
        wanted = self._wanted(kind)
        found = {name: self._sources(name, product) for name in sorted(wanted - constants.keys() - {ORIGINAL})}
        reads = {paths: None for sources in found.values() for paths, _ in sources}
        place = {paths: number for number, paths in enumerate(reads)}
        return Group(
            kind=kind,
            constants=tuple((name, constants[name]) for name in sorted(wanted & constants.keys())),
            reads=tuple(reads),
            sources=tuple(
                (name, tuple((place[paths], convert) for paths, convert in sources))
                for name, sources in found.items()
                if sources
            ),
            wants_original=ORIGINAL in wanted,
            capped=capped,
            unmapped=self.mapping.unmapped,
        )

    def _reads_only(self, own: frozenset[Path], name: str, product: Product) -> bool:
        """Say whether the field *name* comes from nowhere but the places *own*."""
        return all(not isinstance(paths, Joint) and own.issuperset(paths) for paths, _ in self._sources(name, product))

    def _sources(self, name: str, product: Product) -> list[tuple[Paths | Joint, Converter]]:
        """Return where the field *name* may come from, in order; neighbours with one converter are read as one."""
        convert = catalogue().converter(name)
        found: list[tuple[Paths | Joint, Converter]] = []
        if self.shape.ecs:
            found.append((own_paths(name), convert))
        found += [(self.shape.source(item), item.convert) for item in product.fields.get(name, ())]
        if name == "message" and self.shape.message:
            found.append((self.shape.message, convert))
        found += [(self.shape.section(native), convert) for native in self.mapping.native_names(name)]
        joined: list[tuple[Paths | Joint, Converter]] = []
        for paths, convert in found:
            before, known = joined[-1] if joined else ((), None)
            if known is convert and not isinstance(before, Joint) and not isinstance(paths, Joint):
                joined[-1] = (tuple(dict.fromkeys(before + paths)), convert)
            else:
                joined.append((paths, convert))
        return joined


def _at(record: dict[str, Any], path: Sequence[str]) -> Any:
    place: Any = record
    for key in path:
        place = place.get(key) if place.__class__ is dict else None
    return place


def _unwrapped(shape: Shape, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record that lies in *record* as text, with the fields that the shape names beside its own."""
    frame = Frame([record])
    inner = _written(frame.value((shape.inside,)))
    if inner is None:
        return None
    beside = ((native, frame.value(paths)) for native, paths in shape.names.items())
    return {**{native: value for native, value in beside if value is not None}, **inner}


def _parts(shape: Shape, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return *record* with the fields that the shape names under their native names."""
    parts = dict(record)
    for native, paths in shape.names.items():
        if held := next((path[0] for path in paths if record.get(path[0]) is not None), None):
            parts[native] = parts.pop(held)
    return parts


def _written(text: Any) -> dict[str, Any] | None:
    """Return the record that *text* is: JSON, or a Windows event in XML."""
    if text.__class__ is not str or text[:1] not in ("{", "<"):
        return None
    found = decode_json([text.encode("utf-8", "replace")])[0] if text[0] == "{" else eventxml.read(text)
    return None if isinstance(found, RecordError) else found


def with_names(value: Any, path: Path) -> Any:
    """Return *value* with the list of named values at *path* as one object.

    Through lists that is done in each of their objects; a list of one becomes its object.
    """
    if value.__class__ is list:
        if path:
            items = [with_names(item, path) for item in value]
            return items[0] if len(items) == 1 else items
        return _by_name(value)
    if path and value.__class__ is dict and path[0] in value:
        return {**value, path[0]: with_names(value[path[0]], path[1:])}
    return value


def _by_name(items: list[Any]) -> Any:
    """Return *items* as one object, if each is one with a name; of what else an item holds, the first."""
    try:
        names = list(map(_NAME, items))
    except (LookupError, TypeError):
        return items
    if not set(map(type, names)) <= {str}:
        return items
    if set(map(next, map(iter, items))) <= {"name"} and min(map(len, items), default=2) > 1:  # nearly always
        return dict(map(_FIRST_TWO, map(tuple, map(dict.values, items))))
    return {item["name"]: next((value for key, value in item.items() if key != "name"), None) for item in items}


def own_paths(name: str) -> Paths:
    """Return where a record holds a dotted name itself: nested, or as one key."""
    parts = tuple(name.split("."))
    return (parts, (name,)) if len(parts) > 1 else (parts,)


def native_paths(mappings: Sequence[MappingFile], format: str, wanted: Wanted) -> frozenset[str]:
    """Return every place, dotted, that may be read of records of *format*, whatever kinds they turn out to be.

    A kind that tells nothing of itself is asked for each layer of each mapping: nothing can be folded away then. Kinds
    are told apart by their constants, so each has its number as one.
    """
    paths: set[Path] = set()
    for mapping in mappings:
        if mapping.format != format:
            continue
        products = [mapping.product({}), *map(mapping.product, mapping.layer_identities())]
        names = frozenset().union(
            *(
                wanted(Kind(mapping.name, (("vedette.layer", number),), product.renames, mapping.prefix))
                for number, product in enumerate(products)
            )
        )
        items = [item for product in products for name in names for item in product.fields.get(name, ())]
        natives = {native for item in items for native in item.natives}
        for shape in mapping.shapes:
            if shape.format not in {"", format}:
                continue
            paths.update(shape.when, shape.unless, shape.time, shape.message if "message" in names else ())
            for native in (*natives, *mapping.identity):
                paths.update(shape.paths(native))
            for name in names:
                paths.update(own_paths(name) if shape.ecs else ())
                for native in mapping.native_names(name):
                    paths.update(shape.section(native))
    return frozenset(".".join(path) for path in paths)


class Routes:
    """All routes of the mappings at hand, by the format of a chunk."""

    def __init__(self, mappings: Sequence[MappingFile], wanted: Wanted, patterns: ByProgram) -> None:
        budget = Budget()
        self._patterns = patterns
        asked = cache(wanted)  # kinds that several shapes share are asked for once
        self._by_format: dict[str, list[Route]] = {}
        for mapping in mappings:
            for shape in mapping.shapes:
                routes = self._by_format.setdefault(shape.format or mapping.format, [])
                routes.append(Route(mapping, shape, asked, budget))
        for routes in self._by_format.values():
            routes.sort(key=lambda route: not route.shape.when)  # what fits everything comes last
        self._by_keys: dict[tuple[str, ...], list[Route]] = {}

    def before(self, format: str, route: Route) -> list[Route] | None:
        """Return the routes that are tried before *route*; None if it is for what lies in records of *format*."""
        routes = self._by_format[format]
        return routes[: routes.index(route)] if route in routes else None

    def find(self, format: str, record: dict[str, Any]) -> tuple[Route, dict[str, Any]]:
        """Return the first route that *record* fits, and the record as its shape reads it.

        Each format has a route that fits everything.
        """
        keys = (format, *record)
        for route in self._by_keys.get(keys) or self._candidates(keys):
            shape = route.shape
            if not (route.is_certain or shape.fits(record)):
                continue
            if shape.line:
                return self.find("syslog", read_parts(_parts(shape, record), self._patterns))
            if shape.inside:
                if inner := _unwrapped(shape, record):
                    return self.find(format, inner)
            elif shape.layout:
                if plain := shape.layout(record):
                    return route, plain
            else:
                return route, with_names(record, shape.named) if shape.named else record
        raise AssertionError(f"no mapping of format {format} takes everything")

    def _candidates(self, keys: tuple[str, ...]) -> list[Route]:
        """Return the routes that records of a format with these keys may fit, up to one that they surely do.

        Kept for the next record: how many mappings there are costs nothing then.
        """
        found, present = [], frozenset(keys[1:])
        for route in self._by_format[keys[0]]:
            if route.shape.may_fit(present):
                found.append(route)
                if route.is_certain and not route.may_refuse:
                    break
        if len(keys) <= _MEMO_KEYS and sum(map(len, keys)) <= _MEMO_LENGTH:
            if len(self._by_keys) >= _MEMO:
                self._by_keys.clear()
            self._by_keys[keys] = found
        return found


def _hashable(values: list[Any]) -> list[Any]:
    """Return identity values as text, integers or None, so that no two values of different types are equal keys."""
    if set(map(type, values)) <= {str, int, NoneType}:
        return values
    return [value if value.__class__ in (str, int, NoneType) else _identity(value) for value in values]


def _identity(value: Any) -> str | None:
    try:
        text = TEXT(value)
    except ValueError:
        return None
    first = text[0] if isinstance(text, tuple) else text  # of a list of categories the first names the kind
    return first if isinstance(first, str) else None
