"""Mappings: one YAML file a product, the single source of truth from native names to ECS and back.

::

    mapping: windows                    # the name; `Kind.mapping`
    format: json                        # what decodes it: json (any shape of JSON), syslog (lines) or access
    prefix: winlog.event_data.          # where native fields without an ECS name stay
    identity: {EventID: event.code}     # native fields whose values make a kind -> the constant they become
    absent: ["-", ""]                   # native values that mean nothing to derived fields
    tables: {status: {ok: success}}     # for the transform table.status(Field)
    related: {user: [user.name]}        # what full documents gather under related.*
    unmapped: true                      # for what no other mapping knows: its events are counted as unmapped
    sections: {Params: v.params}        # where documents keep an object or list whole, and columns find its fields
    shapes:                             # how records look, tried in order
      flat:
        when: [EventID]                 # paths that must be there (`unless`: must not; `exact`: nothing else, but _x)
        data: [[Event, EventData]]      # the sections that hold native fields; absent: the record itself
        names: {Computer: [Hostname]}   # native name -> paths to it, first that is there wins
        time: ["@timestamp"]            # paths to the event's time, likewise
        ecs: true                       # ECS fields may stand in the record already, under their own names
        message: [Message]              # paths to the text for people
        says: {EventID: "1"}            # identity fields that such records do not hold: what the shape says of them
        named: [events, parameters]     # a list of objects {name: a, value: 1}: read as the object {a: 1}
      wrapped:
        when: [[result, _raw]]
        inside: [result, _raw]          # the record is this text, JSON or a Windows event in XML,
                                        # with the fields of `names` beside its own
      entry:
        when: [__REALTIME_TIMESTAMP]
        line: true                      # the record is a line of syslog in parts, which `names` gives: program,
        names: {message: [MESSAGE]}     # message, time, ...; whatever reads such lines reads it
      otlp:
        when: [resourceLogs]
        layout: otlp                    # typed values and lists of keys and values become plain sections
      enveloped:
        when: [chain]
        format: syslog                  # what decodes such records, if not the mapping's own format
    patterns:                           # for lines: what a message holds; the first that fits
      - programs: [sshd]                # "" is any program, "-" a line without a syslog head
        match:
          - name: login                 # the native field `pattern`
            starts: "Accepted "         # a literal that is looked at first
            contains: " from "          # another, anywhere behind: both are cheap, the expression is not
            within: data                # the part of the line: message if left out, or RFC 5424's structured data
            regex: "for (?P<user>\\S+) (?P<rest>.*)$"       # RE2; groups are native fields
            payload: {rest: pairs}      # reads a group further, into a section of its name
            then: {rest: door-message}  # the patterns of this name read the group next, and name the native field
            columns: {rest: "a, _, b"}  # likewise, values parted by commas; or {by: "3", TYPE: "a, b", other: "a"}
    kinds:                              # all whose `when` holds apply, in order; later ones win
      - when: {EventID: ["4688"]}
        declared: true
        constants: {event.category: [process]}
        renames: {NewProcessName: process.executable}     # value preserved: serves both directions
        aliases: {Image: process.executable}              # further native names of columns, for rules
        fields: {process.name: basename(NewProcessName)}  # derived; a list gives alternatives; f(A, B) reads several;
                                                          # f(g(A)) takes one step after the other

Whatever is wrong in a file raises ConfigError with ``file:line``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from typing import Any, TypeAlias

import re2
import yaml

from agent import plugins
from agent.errors import ConfigError
from agent.model import Value
from agent.normalise import forms
from agent.normalise.catalogue import Converter, catalogue, is_date
from agent.normalise.forms import Form
from agent.normalise.layouts import LAYOUTS, Layout
from agent.normalise.payloads import PAYLOADS, Payload, columns
from agent.normalise.transforms import (
    JOINT,
    OF_OBJECTS,
    PLAIN,
    WITH_ARGUMENT,
    Transform,
    chained,
    community_id,
    flags,
    looked_up,
    looked_up_joint,
    where,
)

Path: TypeAlias = tuple[str, ...]
Paths: TypeAlias = tuple[Path, ...]

_OF_TIMES = ("time(", "before(", "after(", "unzoned(")
"""Transforms of times, whatever the type of the field that they are for."""
_EXPRESSION = re2.compile(r"^([a-z_]+)(?:\.([A-Za-z0-9_]+))?\((.+)\)$")


@dataclass(frozen=True)
class Joint:
    """Paths of several native fields whose values are read together, as one tuple."""

    fields: tuple[Paths, ...]


@dataclass(frozen=True)
class Expression:
    """A native field, or several, and what makes the ECS field's typed value of it."""

    native: str
    convert: Converter
    moves: bool = False
    """True for a rename: the ECS field holds the native value, so a document need not keep it twice."""
    others: Path = ()
    """Further native fields; the converter then gets a tuple, with None for a field that is not there."""
    timed: bool = False
    """True if it may read times."""

    @property
    def natives(self) -> Path:
        return self.native, *self.others


@dataclass(frozen=True)
class Shape:
    """One way in which records of a product look."""

    name: str
    when: Paths
    unless: Paths
    data: Paths
    names: Mapping[str, Paths]
    time: Paths
    message: Paths
    ecs: bool
    exact: bool = False
    says: Mapping[str, str] = field(default_factory=dict)
    inside: Path = ()
    named: Path = ()
    line: bool = False
    layout: Layout | None = None
    format: str = ""

    def may_fit(self, keys: frozenset[str]) -> bool:
        """Say whether a record with these keys may be of this shape; `is_certain` says that it is then."""
        if self.exact and sum(name[:1] != "_" for name in keys) > len(self.when):
            return False
        return keys.issuperset(path[0] for path in self.when) and keys.isdisjoint(
            path[0] for path in self.unless if len(path) == 1
        )

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Say whether a record whose keys may fit does."""
        for path in self._deep_when:
            if not has(record, path):
                return False
        for path in self._deep_unless:  # noqa: SIM110 -- a generator costs more than the look
            if has(record, path):
                return False
        return True

    @cached_property
    def is_certain(self) -> bool:
        """True if the keys of a record decide it."""
        return not (self._deep_when or self._deep_unless)

    @cached_property
    def _deep_when(self) -> Paths:
        return tuple(path for path in self.when if len(path) > 1)

    @cached_property
    def _deep_unless(self) -> Paths:
        return tuple(path for path in self.unless if len(path) > 1)

    def paths(self, native: str) -> Paths:
        """Return where records of this shape hold the native field: header fields first, then the data section."""
        return self.names.get(native) or self.section(native)

    def source(self, expression: Expression) -> Paths | Joint:
        """Return where records of this shape hold what *expression* reads."""
        if expression.others:
            return Joint(tuple(map(self.paths, expression.natives)))
        return self.paths(expression.native)

    def section(self, native: str) -> Paths:
        """Return where the data section holds *native*; a dotted name may be nested or a key of its own."""
        parts = tuple(native.split("."))
        whole = tuple((*data, native) for data in self.data)
        return (*((*data, *parts) for data in self.data), *whole) if len(parts) > 1 else whole


@dataclass(frozen=True)
class Layer:
    """What one entry of `kinds` adds."""

    when: Mapping[str, frozenset[str]] = field(default_factory=dict)
    declared: bool = False
    constants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, tuple[Expression, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Product:
    """All that holds for one kind of event: the layers that apply, merged."""

    constants: Mapping[str, tuple[str, ...]]
    renames: Mapping[str, str]
    fields: Mapping[str, tuple[Expression, ...]]


@dataclass(frozen=True)
class MappingFile:
    """One product's mapping."""

    name: str
    format: str
    prefix: str
    identity: Mapping[str, str]
    related: Mapping[str, tuple[str, ...]]
    absent: frozenset[str]
    shapes: tuple[Shape, ...]
    layers: tuple[Layer, ...]
    pattern_sets: tuple[Patterns, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    unmapped: bool = False

    def native_names(self, name: str) -> list[str]:
        """Return what may be the native name of *name*, a field under the vendor's prefix or of a section."""
        found = [name.removeprefix(self.prefix)] if name.startswith(self.prefix) else []
        kept = (native + name[len(place) :] for native, place in self.sections.items() if name.startswith(f"{place}."))
        return [*kept, *found]

    def product(self, identity: Mapping[str, str]) -> Product:
        """Return what holds for events whose identity fields have the values *identity*."""
        constants: dict[str, tuple[str, ...]] = {}
        renames = {native: ecs for native, ecs in self.identity.items() if ecs}
        aliases: dict[str, str] = {}
        fields: dict[str, tuple[Expression, ...]] = {}
        for layer in self._applying(identity):
            taken = {*layer.renames.values(), *layer.fields}
            renames = {native: ecs for native, ecs in renames.items() if ecs not in taken} | dict(layer.renames)
            fields = {ecs: found for ecs, found in fields.items() if ecs not in taken} | dict(layer.fields)
            constants = {name: values for name, values in constants.items() if name not in taken}
            constants.update(layer.constants)
            aliases.update(layer.aliases)
        moved = {ecs: (Expression(native, catalogue().converter(ecs), moves=True),) for native, ecs in renames.items()}
        return Product(constants, {**aliases, **renames}, {**moved, **fields})

    def declares(self, identity: Mapping[str, str]) -> bool:
        """Say whether the mapping knows such events: cheap, since past the cap on kinds each event is asked for."""
        return any(layer.declared for layer in self._applying(identity))

    @cached_property
    def timed(self) -> frozenset[str]:
        """The native fields that times are made of."""
        renamed = (native for layer in self.layers for native, ecs in layer.renames.items() if is_date(ecs))
        items = (item for layer in self.layers for found in layer.fields.values() for item in found if item.timed)
        return frozenset([*renamed, *(native for item in items for native in item.natives)])

    def layer_identities(self) -> Iterator[dict[str, str]]:
        """Yield for each layer one identity to which it applies."""
        for layer in self.layers:
            yield {native: min(values) for native, values in layer.when.items()}

    def _applying(self, identity: Mapping[str, str]) -> Iterator[Layer]:
        """Yield the layers that hold, in order. One look-up for each set of fields: an attacker picks the values."""
        found: list[int] = []
        for natives, by_values in self._index.items():
            found += by_values.get(tuple(identity.get(native, "").lower() for native in natives), ())
        return (self.layers[number] for number in sorted(found))

    @cached_property
    def _index(self) -> Mapping[Path, Mapping[Path, list[int]]]:
        index: dict[Path, dict[Path, list[int]]] = {}
        for number, layer in enumerate(self.layers):
            by_values = index.setdefault(tuple(layer.when), {})
            for values in product(*layer.when.values()):
                by_values.setdefault(values, []).append(number)
        return index


@dataclass(frozen=True)
class Pattern:
    """A message's form: literals that it begins with and contains, and named groups that become native fields.

    *payloads* read a group further: its native fields stand in a section of the group's name. *within* is the part of
    the line that has the form: the message, or the structured data of RFC 5424. *then* names for a group the program
    whose patterns read it next; they are for nothing else.
    """

    name: str
    starts: bytes
    form: Form
    payloads: Mapping[str, Payload] = field(default_factory=dict)
    within: str = "message"
    then: Mapping[str, str] = field(default_factory=dict)
    contains: bytes = b""


@dataclass(frozen=True)
class Patterns:
    """The patterns for messages of some programs, tried in order.

    The program ``""`` is any one, ``?`` a line whose head names none, ``-`` a line that has no head at all.
    """

    programs: frozenset[str]
    patterns: tuple[Pattern, ...]


def has(record: Mapping[str, Any], path: Path) -> bool:
    """Say whether *record* holds something at *path*."""
    value: Any = record
    for key in path:
        if value.__class__ is not dict or key not in value:
            return False
        value = value[key]
    return True


def sole(values: tuple[str, ...]) -> Value:
    """Return what a constant of *values* is in a column: the value itself if there is but one."""
    return values if len(values) > 1 else values[0]


@cache
def shipped() -> tuple[MappingFile, ...]:
    """Return the mappings of this package, by file name."""
    return tuple(_in(files(__package__).joinpath("mappings"), ""))


@cache
def installed() -> tuple[MappingFile, ...]:
    """Return the shipped mappings, then those that installed packages bring by the entry point ``vedette.mappings``.

    An entry point names a Python package whose ``*.yml`` files are mappings. Whoever installs that package beside
    Vedette has installed its code: importing it runs nothing that the installation did not already allow. What it
    brings is data, comes after what is shipped, and can replace none of it.
    """
    found = list(shipped())
    for entry in plugins.mappings():
        found += _in(files(entry.module), f"{entry.module}/")
    names = Counter(mapping.name for mapping in found)
    if twice := sorted(name for name, number in names.items() if number > 1):
        reason = f"more than one mapping is called {', '.join(twice)}; rename or uninstall one"
        raise ConfigError(reason, plugins.MAPPINGS)
    return tuple(found)


def _in(folder: Traversable, prefix: str) -> Iterator[MappingFile]:
    for name in sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yml")):
        yield parse(folder.joinpath(name).read_text("utf-8"), prefix + name)


def parse(text: str, file: str) -> MappingFile:
    """Read one mapping; ConfigError names ``file:line``."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not YAML: {error.problem}", f"{file}:{line}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}", f"{file}:1") from None
    if root is None:
        raise ConfigError("expected a mapping, found nothing", f"{file}:1")
    return _Reader(file).mapping_file(root)


class _Reader:
    """Turns YAML nodes into a mapping; knows the file, so that each complaint names the line."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._tables: dict[str, dict[str, str]] = {}
        self._absent: frozenset[str] = frozenset()

    def fail(self, node: yaml.Node, message: str) -> ConfigError:
        return ConfigError(message, f"{self._file}:{node.start_mark.line + 1}")

    def mapping_file(self, root: yaml.Node) -> MappingFile:
        keys = "mapping format prefix identity absent tables related unmapped sections shapes kinds patterns"
        parts = self._keys(root, keys, required="mapping format")
        self._tables = {name: self._texts(node) for name, node in self._entries(parts.get("tables"))}
        self._tables = {
            name: {key.lower(): value for key, value in table.items()} for name, table in self._tables.items()
        }
        self._absent = frozenset(self._list(parts.get("absent")))
        shapes = tuple(self._shape(name, node) for name, node in self._entries(parts.get("shapes")))
        if self._text(parts["format"]) == "syslog" and any(shape.line for shape in shapes):
            raise self.fail(parts["shapes"], "line: a record of the format syslog is a line already")
        return MappingFile(
            name=self._text(parts["mapping"]),
            format=self._text(parts["format"]),
            prefix=self._text(parts["prefix"]) if "prefix" in parts else "",
            identity=self._texts(parts.get("identity")),
            related={name: self._list(node) for name, node in self._entries(parts.get("related"))},
            absent=self._absent,
            shapes=shapes,
            layers=tuple(self._layer(node) for node in self._items(parts.get("kinds"))),
            pattern_sets=tuple(self._patterns(node) for node in self._items(parts.get("patterns"))),
            sections=self._texts(parts.get("sections")),
            unmapped=self._flag(parts, "unmapped"),
        )

    def _shape(self, name: str, node: yaml.Node) -> Shape:
        parts = self._keys(node, "when unless exact data names time message ecs says inside named line layout format")
        return Shape(
            name=name,
            when=self._paths(parts.get("when")),
            unless=self._paths(parts.get("unless")),
            data=self._paths(parts.get("data")) or ((),),
            names={native: self._paths(paths) for native, paths in self._entries(parts.get("names"))},
            time=self._paths(parts.get("time")),
            message=self._paths(parts.get("message")),
            ecs=self._flag(parts, "ecs"),
            exact="exact" in parts and self._text(parts["exact"]) == "true",
            says=self._texts(parts.get("says")),
            inside=self._list(parts.get("inside")),
            named=self._list(parts.get("named")),
            line=self._flag(parts, "line"),
            layout=self._layout(parts["layout"]) if "layout" in parts else None,
            format=self._text(parts["format"]) if "format" in parts else "",
        )

    def _layout(self, node: yaml.Node) -> Layout:
        name = self._text(node)
        if name not in LAYOUTS:
            raise self.fail(node, f"unknown layout {name}; there are {', '.join(LAYOUTS)}")
        return LAYOUTS[name]

    def _layer(self, node: yaml.Node) -> Layer:
        parts = self._keys(node, "when declared constants renames aliases fields")
        return Layer(
            when={
                native: frozenset(value.lower() for value in self._list(values))
                for native, values in self._entries(parts.get("when"))
            },
            declared=self._flag(parts, "declared"),
            constants={name: self._constant(name, value) for name, value in self._entries(parts.get("constants"))},
            renames=self._renames(parts.get("renames")),
            aliases=self._texts(parts.get("aliases")),
            fields={
                name: tuple(self._expression(name, item) for item in self._items(value, single=True))
                for name, value in self._entries(parts.get("fields"))
            },
        )

    def _constant(self, name: str, node: yaml.Node) -> tuple[str, ...]:
        values = self._list(node)
        unknown = set(values) - catalogue().allowed.get(name, frozenset(values))
        if unknown:
            raise self.fail(node, f"{name}: ECS does not allow {', '.join(sorted(unknown))}")
        return values

    def _renames(self, node: yaml.Node | None) -> dict[str, str]:
        renames = self._texts(node)
        if node is not None and len(set(renames.values())) < len(renames):
            raise self.fail(node, "two native fields are renamed to one ECS field")
        return renames

    def _expression(self, name: str, node: yaml.Node) -> Expression:
        spec = self._text(node)
        natives, transform = self._reading(name, node, spec)
        convert = _derived(transform, catalogue().converter(name), self._absent)
        timed = is_date(name) or spec.startswith(_OF_TIMES)
        return Expression(natives[0], convert, others=tuple(natives[1:]), timed=timed)

    def _reading(self, name: str, node: yaml.Node, spec: str) -> tuple[list[str], Transform | None]:
        """Return which native fields *spec* reads, and what it makes of their values."""
        found = _EXPRESSION.match(spec)
        if found is None or found.group(3).count("(") != found.group(3).count(")"):
            if "(" not in spec:
                return [spec], None
            raise self.fail(
                node, f"{name}: expected Field, transform(Field) or transform.argument(Field), found {spec}"
            )
        if "(" in found.group(3):
            natives, first = self._reading(name, node, found.group(3))
            second = self._transform(node, found.group(1), found.group(2))
            return natives, chained(first, second) if first else second
        natives = [each.strip() for each in found.group(3).split(",")]
        make = self._transform if len(natives) == 1 else partial(self._joint, natives)
        return natives, make(node, found.group(1), found.group(2))

    def _joint(self, natives: list[str], node: yaml.Node, name: str, argument: str | None) -> Transform:
        """Return a transform of several native fields."""
        if name == "community_id":
            return community_id(argument)
        if name == "flags" and argument is None:
            return flags(natives)
        if name == "where" and argument:
            return where(argument)
        if name in JOINT and argument is None:
            return JOINT[name]
        if name == "table" and argument in self._tables:
            return looked_up_joint(self._tables[argument])
        known = ", ".join([*JOINT, "community_id", "flags", "table", "where"])
        raise self.fail(node, f"unknown transform {name} of several fields; there are {known}")

    def _transform(self, node: yaml.Node, name: str, argument: str | None) -> Transform:
        if name in PLAIN and argument is None:
            return PLAIN[name]
        if name in WITH_ARGUMENT and argument:
            _, make = WITH_ARGUMENT[name]
            with suppress(ValueError):
                return make(argument)
        if name == "table" and argument in self._tables:
            return looked_up(self._tables[argument])
        argued = (f"{each}.{what}" for each, (what, _) in WITH_ARGUMENT.items())
        known = ", ".join([*PLAIN, *argued, *(f"table.{table}" for table in self._tables)])
        raise self.fail(node, f"unknown transform {name}{'.' if argument else ''}{argument or ''}; there are {known}")

    def _patterns(self, node: yaml.Node) -> Patterns:
        parts = self._keys(node, "programs match", required="programs match")
        return Patterns(
            frozenset(self._list(parts["programs"])),
            tuple(self._pattern(item) for item in self._items(parts["match"])),
        )

    def _pattern(self, node: yaml.Node) -> Pattern:
        parts = self._keys(node, "name within starts contains regex payload columns then", required="name regex")
        try:
            form = Form(self._text(parts["regex"]))
        except forms.error as error:
            raise self.fail(parts["regex"], f"regular expression refused: {error}") from None
        starts, contains = (self._text(parts[key]).encode() if key in parts else b"" for key in ("starts", "contains"))
        payloads = {group: self._payload(reader) for group, reader in self._entries(parts.get("payload"))}
        payloads |= {group: self._columns(names) for group, names in self._entries(parts.get("columns"))}
        within = self._text(parts["within"]) if "within" in parts else "message"
        name, then = self._text(parts["name"]), self._texts(parts.get("then"))
        return Pattern(name, starts, form, payloads, within, then, contains)

    def _columns(self, node: yaml.Node) -> Payload:
        """Read ``{by: NUMBER, VALUE: "name, name", other: "name, name"}``, or the names alone."""
        if isinstance(node, yaml.ScalarNode):
            return columns(0, {"other": self._text(node).replace(",", " ").split()})
        parts = self._texts(node)
        if not parts.get("by", "").isdecimal() or "other" not in parts:
            raise self.fail(node, "expected 'by' with the number of a column, counted from 0, and 'other'")
        place = int(parts.pop("by"))
        return columns(place, {value: names.replace(",", " ").split() for value, names in parts.items()})

    def _payload(self, node: yaml.Node) -> Payload:
        name = self._text(node)
        if name not in PAYLOADS:
            raise self.fail(node, f"unknown payload {name}; there are {', '.join(PAYLOADS)}")
        return PAYLOADS[name]

    # --- plain YAML, with lines ---------------------------------------------------------------------------------------

    def _keys(self, node: yaml.Node, known: str, required: str = "") -> dict[str, yaml.Node]:
        parts = dict(self._entries(node))
        if unknown := set(parts) - set(known.split()):
            raise self.fail(node, f"unknown key {', '.join(sorted(unknown))}; known are {known.replace(' ', ', ')}")
        if missing := set(required.split()) - set(parts):
            raise self.fail(node, f"missing key {', '.join(sorted(missing))}")
        return parts

    def _entries(self, node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
        if node is None:
            return
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, "expected key: value")
        seen = set()
        for key_node, value in node.value:
            key = self._text(key_node)
            if key in seen:
                raise self.fail(key_node, f"{key} is there twice")
            seen.add(key)
            yield key, value

    def _items(self, node: yaml.Node | None, single: bool = False) -> list[yaml.Node]:
        if node is None:
            return []
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if single:
            return [node]
        raise self.fail(node, "expected a list")

    def _list(self, node: yaml.Node | None) -> tuple[str, ...]:
        return tuple(self._text(item) for item in self._items(node, single=True))

    def _paths(self, node: yaml.Node | None) -> Paths:
        """A path is a text (one key) or a list of keys."""
        return tuple(self._list(item) for item in self._items(node, single=True))

    def _texts(self, node: yaml.Node | None) -> dict[str, str]:
        return {key: self._text(value) for key, value in self._entries(node)}

    def _flag(self, parts: Mapping[str, yaml.Node], key: str) -> bool:
        return key in parts and self._text(parts[key]) == "true"

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, "expected a text")
        return str(node.value)


def _derived(transform: Transform | None, convert: Converter, absent: frozenset[str]) -> Converter:
    """Join transform and type; a value of *absent* means nothing, and text transforms refuse what is no text."""

    def derive(raw: Any) -> Any:
        if raw.__class__ is dict and transform not in OF_OBJECTS:
            raw = raw.get("#text")
        if raw is None or (isinstance(raw, str) and raw in absent):
            return None
        if transform is None:
            return convert(raw)
        try:
            return convert(transform(raw))
        except (TypeError, AttributeError, ArithmeticError, LookupError):
            raise ValueError("not of the type or range that the transform reads") from None

    return derive
