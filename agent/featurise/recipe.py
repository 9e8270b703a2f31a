"""Feature recipes: which numbers are made of which events, as data.

A recipe without an *entity* makes one row an event (row features); with one it makes one row an entity and window
(window features). What a recipe means is bound by `schema_hash`, over its canonical form with all defaults filled in
and the version of how features are computed; the order in which features are written means nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from agent.detect.windows import Allowed, Duration, FieldName, duration, length
from agent.errors import ConfigError
from agent.normalise.catalogue import catalogue

MAX_COLUMNS = 256
"""Most columns that the features of one recipe may come to."""

_COMPUTED = 2
"""Raised whenever a feature comes to be computed otherwise: a model that has learnt the old numbers is then refused."""

_OPEN = {"object", "flattened", "nested"}
"""ECS types under which any field may stand."""


def _known(name: str) -> str:
    """Return *name* if it is a field of ECS or one under a vendor's prefix."""
    fields = catalogue().fields
    parts = name.split(".")
    above = (".".join(parts[:end]) for end in range(1, len(parts)))
    if name in fields or any(place in fields and fields[place].type in _OPEN for place in above):
        return name
    if len(parts) > 1 and not any(known.startswith(parts[0] + ".") for known in fields):
        return name
    near = get_close_matches(name, fields, 1)
    hint = f"did you mean {near[0]}?" if near else "fields that ECS lacks stand under their vendor's prefix"
    raise ValueError(f"no field {name!r} in ECS {catalogue().version}; {hint}")


EcsField: TypeAlias = Annotated[FieldName, AfterValidator(_known)]
Where: TypeAlias = Annotated[dict[EcsField, Allowed], Field(min_length=1)]
Span: TypeAlias = Annotated[Duration, PlainSerializer(length)]
FeatureName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]

_LOG = Field(default=False, description="Take log(1 + |x|), sign kept: for numbers that span magnitudes.")


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Number(_Spec):
    """Row: the field as a number; of a list, the greatest."""

    number: EcsField
    log: bool = _LOG


class Length(_Spec):
    """Row: how many characters the field has; of a list, the longest."""

    length: EcsField


class Entropy(_Spec):
    """Row: Shannon entropy of the field's characters, in bits; of a list, the greatest."""

    entropy: EcsField


class OneOf(_Spec):
    """Row: for each of *values* a column, 1 where the field has it."""

    one_of: EcsField
    values: Annotated[Allowed, Field(max_length=64)]


class PrivateAddress(_Spec):
    """Row: 1 if the address is not routed on the Internet, else 0; of a list, 0 if any is."""

    private_address: EcsField


class Rarity(_Spec):
    """Row: -log of the share of training events with this value; a value that training did not see is the rarest."""

    rarity: EcsField


class Present(_Spec):
    """Row: 1 if the event has the field, else 0."""

    present: EcsField


class Hour(_Spec):
    """Row or window: the time of day (of the window's start) in UTC, as two columns, so that midnight is no edge."""

    hour: Literal[True]


class Weekday(_Spec):
    """Row or window: the day of the week (of the window's start) in UTC, as two columns."""

    weekday: Literal[True]


class Count(_Spec):
    """Window: how many events, all or those that match."""

    count: Literal[True] | Where
    log: bool = _LOG


class Share(_Spec):
    """Window: the share of events that match."""

    share: Where


class Distinct(_Spec):
    """Window: how many different values; exact up to 256, beyond that an estimate within some 6 %."""

    distinct: EcsField
    log: bool = _LOG


class Sum(_Spec):
    """Window: the sum of the numbers, to a thousandth; a number beyond 64 bits counts as their limit."""

    sum: EcsField
    log: bool = _LOG


class Mean(_Spec):
    """Window: the sum divided by how many events have the number."""

    mean: EcsField
    log: bool = _LOG


class Max(_Spec):
    """Window: the greatest number."""

    max: EcsField
    log: bool = _LOG


class Min(_Spec):
    """Window: the least number."""

    min: EcsField
    log: bool = _LOG


_TIMES: dict[str, type[_Spec]] = {"hour": Hour, "weekday": Weekday}
_ROWS: dict[str, type[_Spec]] = {
    "number": Number,
    "length": Length,
    "entropy": Entropy,
    "one_of": OneOf,
    "private_address": PrivateAddress,
    "rarity": Rarity,
    "present": Present,
}
_WINDOWS: dict[str, type[_Spec]] = {
    "count": Count,
    "share": Share,
    "distinct": Distinct,
    "sum": Sum,
    "mean": Mean,
    "max": Max,
    "min": Min,
}
_TAGS = {kind: tag for tag, kind in (_TIMES | _ROWS | _WINDOWS).items()}


def _tag(value: Any) -> str | None:
    """Say which feature *value* is: the one key of its mapping that names a feature."""
    if isinstance(value, Mapping):
        return next((tag for tag in _TAGS.values() if tag in value), None)
    return _TAGS.get(type(value))


Feature: TypeAlias = Annotated[
    Annotated[Number, Tag("number")]
    | Annotated[Length, Tag("length")]
    | Annotated[Entropy, Tag("entropy")]
    | Annotated[OneOf, Tag("one_of")]
    | Annotated[PrivateAddress, Tag("private_address")]
    | Annotated[Rarity, Tag("rarity")]
    | Annotated[Present, Tag("present")]
    | Annotated[Hour, Tag("hour")]
    | Annotated[Weekday, Tag("weekday")]
    | Annotated[Count, Tag("count")]
    | Annotated[Share, Tag("share")]
    | Annotated[Distinct, Tag("distinct")]
    | Annotated[Sum, Tag("sum")]
    | Annotated[Mean, Tag("mean")]
    | Annotated[Max, Tag("max")]
    | Annotated[Min, Tag("min")],
    Discriminator(
        _tag,
        custom_error_type="feature",
        custom_error_message="expected one of " + ", ".join(_TAGS.values()),
    ),
]


class Recipe(BaseModel):
    """A feature recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the recipe and of its model.")
    version: int = Field(default=1, ge=1, description="For people: raise it when the recipe changes.")
    where: dict[EcsField, Allowed] = Field(
        default={}, description="Only events whose fields have one of these values (exact); all fields must match."
    )
    entity: tuple[EcsField, ...] = Field(
        default=(), max_length=4, description="Up to four fields that a window is kept for; none: a row an event."
    )
    window: Span | None = Field(default=None, description="Width of a window (duration, from 1m), with an entity.")
    lateness: Span = Field(
        default=duration("5m"), description="How much older than the newest an event may come (duration)."
    )
    features: dict[FeatureName, Feature] = Field(
        min_length=1, max_length=64, description="Features by name, of rows or of windows."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if bool(self.entity) != (self.window is not None):
            raise ValueError("entity and window: expected both (window features) or neither (row features)")
        if self.window is not None and self.window < duration("1m"):
            raise ValueError("window: expected at least 1m")
        allowed, shape = (_WINDOWS, "window") if self.entity else (_ROWS, "row")
        for name, feature in self.features.items():
            if _TAGS[type(feature)] not in allowed | _TIMES:
                raise ValueError(f"features.{name}: {_TAGS[type(feature)]} is not a {shape} feature")
        if not any(_TAGS[type(feature)] in allowed for feature in self.features.values()):
            raise ValueError("features: expected at least one besides hour and weekday")
        if (columns := sum(map(width, self.features.values()))) > MAX_COLUMNS:
            raise ValueError(f"features: come to {columns} columns, at most {MAX_COLUMNS} are made")
        return self

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain data that `parse` reads: defaults filled in, lists and names as JSON has them."""
        return self.model_dump(mode="json", exclude_none=True)


def width(feature: _Spec) -> int:
    """Return how many columns *feature* has."""
    if isinstance(feature, OneOf):
        return len(feature.values)
    return 2 if isinstance(feature, Hour | Weekday) else 1


def parse(data: Any, place: Callable[..., str] = lambda *_: "recipe") -> Recipe:
    """Return *data* as a recipe; ConfigError names each key that is unknown, missing or wrong.

    *place* says where the key stands that its arguments lead to.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_say(problem, place) for problem in error.errors(include_url=False))) from None


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, for editors."""
    return Recipe.model_json_schema()


def schema_hash(data: Mapping[str, Any]) -> str:
    """Return ``sha256:`` and the digest that binds what the recipe *data* means; ConfigError if it is none."""
    bound = {"computed": _COMPUTED, "recipe": parse(data).dump()}
    return "sha256:" + hashlib.sha256(orjson.dumps(bound, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _say(problem: Any, place: Callable[..., str]) -> str:
    keys = [key for key in problem["loc"] if key != "[key]"]
    if keys[:1] == ["features"]:
        del keys[2:3]  # pydantic puts the feature's kind between its name and its keys
    text = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
    named = [".".join(map(str, keys))] if keys else []
    return ": ".join([place(*keys), *named, text.removeprefix("Value error, ")])
