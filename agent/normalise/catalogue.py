"""The ECS field catalogue: which fields exist, of which type, and how a value becomes one of that type.

A converter takes a decoded JSON value and returns the typed value, or None where there is nothing, or raises ValueError
where the value is not of the type: nothing is guessed. Lists become tuples of scalars. A field outside ECS is text.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from agent.model import Scalar, Value
from agent.normalise.clock import without_zone

Converter: TypeAlias = Callable[[Any], Value | None]

_INT64 = 2**63


@dataclass(frozen=True)
class Field:
    """What ECS says of one field."""

    type: str
    level: str
    array: bool


@dataclass(frozen=True)
class Catalogue:
    """All fields of one ECS version, and the allowed values of those that have a closed list."""

    version: str
    fields: Mapping[str, Field]
    allowed: Mapping[str, frozenset[str]]

    def converter(self, name: str) -> Converter:
        """Return the converter for the field *name*; text for a field that ECS does not know."""
        field = self.fields.get(name)
        return _converter(_BY_TYPE.get(field.type, _refuse) if field else _text)


def is_date(name: str) -> bool:
    """Say whether *name* is an ECS field that holds a time."""
    field = catalogue().fields.get(name)
    return field is not None and field.type == "date"


@cache
def catalogue() -> Catalogue:
    """Return the shipped catalogue."""
    version, fields, allowed = "", {}, {}
    for line in files(__package__).joinpath("ecs.txt").read_text("utf-8").splitlines():
        match line.split():
            case ["version", version]:
                pass
            case ["field", name, kind, level, *array]:
                fields[name] = Field(kind, level, bool(array))
            case ["allowed", name, *values]:
                allowed[name] = frozenset(values)
    return Catalogue(version.removesuffix("-dev"), fields, allowed)


@cache
def _converter(scalar: Callable[[Any], Scalar]) -> Converter:
    def convert(raw: Any) -> Value | None:
        if raw.__class__ is dict and "#text" in raw:  # XML text beside attributes
            raw = raw["#text"]
        if raw.__class__ is list or raw.__class__ is tuple:
            return tuple(scalar(item) for item in _flat(raw)) or None
        return None if raw is None else scalar(raw)

    return convert


def _flat(items: Any) -> list[Any]:
    """Return the scalars of a list of lists; decoding bounds the depth."""
    flat: list[Any] = []
    for item in items:
        if item.__class__ is list or item.__class__ is tuple:
            flat += _flat(item)
        elif item is not None:
            flat.append(item)
    return flat


def _text(raw: Any) -> str:
    if isinstance(raw, str):
        return raw
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | float):
        return str(raw)
    raise ValueError("not text")


def _date(raw: Any) -> str:
    """A time as it was written; with its offset alone if it was set into a zone."""
    return without_zone(_text(raw))


def _integer(raw: Any) -> int:
    if isinstance(raw, bool):
        raise ValueError("not an integer")
    if isinstance(raw, float):
        if not raw.is_integer():
            raise ValueError("not an integer")
        raw = int(raw)
    if isinstance(raw, str):
        if not (raw.isascii() and raw.removeprefix("-").isdigit() and len(raw) <= 20):
            raise ValueError("not an integer")
        raw = int(raw)
    if not isinstance(raw, int) or not -_INT64 <= raw < _INT64:
        raise ValueError("not an integer")
    return raw


def _float(raw: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError("not a number")
    number = float(raw)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in {"true", "false"}:
        return raw.lower() == "true"
    raise ValueError("not a boolean")


def _ip(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("not an address")
    ipaddress.ip_address(raw)
    return raw


def _refuse(_raw: Any) -> Scalar:
    raise ValueError("not a scalar field")


_BY_TYPE: Mapping[str, Callable[[Any], Scalar]] = {
    **dict.fromkeys(("keyword", "constant_keyword", "wildcard", "text", "match_only_text"), _text),
    "date": _date,
    **dict.fromkeys(("long", "integer"), _integer),
    **dict.fromkeys(("float", "double", "scaled_float"), _float),
    "boolean": _boolean,
    "ip": _ip,
}
