"""The manifest of a model: what it is, what it was trained on, how well it did, and until when it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import ge, gt, le, lt
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from agent.model import Level, Timestamp
from agent.trust.encoding import Shape, read

MANIFEST = "manifest.json"
WEIGHTS = "weights.npz"

Comparator: TypeAlias = Literal["<", "<=", ">", ">="]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPARE: Mapping[Comparator, Callable[[Decimal, Decimal], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}


def instant(text: str) -> Timestamp:
    """Return the time that *text*, checked when its manifest was read, names."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def _is_time(text: str) -> str:
    instant(text)
    return text


Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Number: TypeAlias = Annotated[str, Field(pattern=r"^-?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?$")]
"""A decimal as text, so that no reader rounds it."""
Time: TypeAlias = Annotated[
    str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$"), AfterValidator(_is_time)
]
"""ISO 8601 in UTC, ending in ``Z``."""
_Rows: TypeAlias = Annotated[int, Field(ge=1, le=2**53)]
_Rate: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Span(Shape):
    """What it was trained on: *digest* is over the training matrix, *source* says where the events came from."""

    begin: Time
    end: Time
    rows: _Rows
    digest: Digest
    source: str


class Calibration(Shape):
    """Which later events its scores are measured against.

    *smallest_budget*: the fewest alerts a day that so many rows can tell apart, ``rows_per_day / (rows + 1)``.
    """

    begin: Time
    end: Time
    rows: _Rows
    rows_per_day: _Rate
    smallest_budget: _Rate


class Measure(Shape):
    """One figure of its evaluation."""

    metric: str
    value: Number


class Gate(Shape):
    """What a figure had to be for the model to be let through, and whether it was."""

    metric: str
    comparator: Comparator
    threshold: Number
    passed: bool

    def allows(self, value: str) -> bool:
        return _COMPARE[self.comparator](Decimal(value), Decimal(self.threshold))


class Manifest(Shape):
    """The whole of `manifest.json`."""

    format: Literal["vedette.model/1"] = "vedette.model/1"
    id: Name
    """The detector's stable id, part of the ids of its alerts."""
    title: str = Field(min_length=1, max_length=200)
    description: str = ""
    level: Level = "medium"
    techniques: tuple[str, ...] = ()
    kind: Literal["isolation-forest"] = "isolation-forest"
    recipe: dict[str, Any]
    """The feature recipe as data."""
    schema_hash: Digest
    """The digest of the recipe, as the code that computes the features sees it."""
    tenants: tuple[str, ...] = ()
    """Whom it may judge; nobody named: anybody."""
    training: Span
    calibration: Calibration
    evaluation: tuple[Measure, ...] = ()
    gates: tuple[Gate, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    created: Time
    not_before: Time
    not_after: Time
    provenance: dict[str, str] = Field(default_factory=dict)
    """Who made it and how it can be made again."""
    weights: Literal["weights.npz"] = "weights.npz"


def parse(data: bytes) -> Manifest:
    """Return the manifest that *data* is; TrustError names the key that cannot be used."""
    return read(Manifest, data, MANIFEST)
