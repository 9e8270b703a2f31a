"""What the baselines share: their options, event-time buckets, the rows of a batch by entity, and bounded state.

Buckets are numbers: bucket ``b`` of width ``w`` is ``[b * w, (b + 1) * w)`` in microseconds since the epoch. A row is
folded if it matches *where*, has all entity (and value) fields and a time, is not *future* and not late. It is late if
it is older than ``max(high of its row, last watermark) - lateness``; since the stream's watermark never passes the
running maximum of a partition that is still read, this depends on the partition's own order and not on the batch's cut.
What is not folded is counted: ``future``, ``late``, ``untimed``, ``combinations_cut``, ``capped``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b
from itertools import islice, pairwise, product
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from agent.errors import ConfigError
from agent.model import (
    NO_TIME,
    SECOND,
    UNPARSED,
    Batch,
    Description,
    Dictionary,
    Kind,
    Level,
    PerValue,
    Reference,
    Scalar,
    Timestamp,
    Value,
    digest,
    distinct,
)
from agent.ports import StateView

# --- options ----------------------------------------------------------------------------------------------------------

_UNITS = {"s": SECOND, "m": 60 * SECOND, "h": 3_600 * SECOND, "d": 86_400 * SECOND, "w": 604_800 * SECOND}
_LONGEST = 3_660 * _UNITS["d"]


def duration(text: Any) -> int:
    """Return microseconds for ``90s``, ``5m``, ``1h``, ``30d`` or ``4w``; ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text) if isinstance(text, str) else None
    length = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < length <= _LONGEST:
        raise ValueError(f"expected a duration such as 90s, 5m, 1h, 30d or 4w, up to ten years, got {text!r}")
    return length


def text_of(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _texts(value: Any) -> Any:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(text_of(item) if isinstance(item, str | int | float) else item for item in items)


Duration: TypeAlias = Annotated[int, BeforeValidator(duration)]
FieldName: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\s]+$")]
FieldNames: TypeAlias = Annotated[tuple[FieldName, ...], Field(min_length=1, max_length=4)]
Allowed: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_texts), Field(min_length=1)]


class BaselineOptions(BaseModel):
    """The options that all baselines have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(min_length=1, description="Short, stable title of the alert.")
    description: str = Field(default="", description="What the alert means and what to do about it.")
    level: Level = Field(default="medium", description="Severity: informational, low, medium, high or critical.")
    techniques: tuple[Annotated[str, StringConstraints(pattern=r"^T\d{4}(\.\d{3})?$")], ...] = Field(
        default=(), description="ATT&CK technique ids."
    )
    where: dict[FieldName, Allowed] = Field(
        default={}, description="Only events whose fields have one of these values (exact); all fields must match."
    )
    entity: FieldNames = Field(description="One to four fields that say whose behaviour is learnt.")


OptionsT = TypeVar("OptionsT", bound=BaselineOptions)
T = TypeVar("T")


def parse(model: type[OptionsT], id: str, options: Mapping[str, Any]) -> OptionsT:
    """Return validated options; ConfigError names each key that is unknown, missing or wrong."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        reasons = [
            f"{'.'.join(['detectors', id, *map(str, item['loc'])])}: "
            f"{'unknown key' if item['type'] == 'extra_forbidden' else item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError("; ".join(reasons)) from None


def describe(id: str, options: BaselineOptions) -> Description:
    return Description(
        id=id,
        title=options.title,
        kind="baseline",
        level=options.level,
        description=options.description,
        techniques=options.techniques,
        digest=digest(id, options.model_dump_json()),
    )


# --- words ------------------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(time: Timestamp) -> datetime:
    """Return *time* as a datetime, held inside the years that one can express."""
    return _EPOCH + timedelta(microseconds=min(max(time, -62_135_596_800 * SECOND), 253_402_300_799 * SECOND))


def length(microseconds: int) -> str:
    """Write a duration in its largest whole unit, as options are written."""
    unit = next(unit for unit in "dhms" if microseconds % _UNITS[unit] == 0)
    return f"{microseconds // _UNITS[unit]}{unit}"


def pairs(names: Sequence[str], values: Sequence[Scalar]) -> tuple[tuple[str, str], ...]:
    return tuple((name, text_of(value)) for name, value in zip(names, values, strict=True))


def phrase(found: Sequence[tuple[str, str]]) -> str:
    """Write field-value pairs for a sentence: ``user.name alice, source.ip 192.0.2.1``."""
    return ", ".join(f"{name} {value}" for name, value in found)


# --- keys -------------------------------------------------------------------------------------------------------------

_LONGEST_TEXT = 256
_MOST_COMBINATIONS = 64


def _short(value: Scalar) -> Scalar:
    """Return *value* as a key may hold it: what is long or has no JSON form is cut and told apart by its digest."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = hex(value)
    if not isinstance(value, str) or (len(value) <= _LONGEST_TEXT and _encodable(value)):
        return value
    return value[:200].encode("utf-8", "replace").decode() + "…" + digest(value)


def _encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _usable(value: Scalar) -> bool:
    return math.isfinite(value) if isinstance(value, float) else value != ""


def scalars(value: Value) -> tuple[Scalar, ...]:
    """Return the distinct usable values of one field: a list counts as each of its values; "" and NaN are none."""
    items = value if isinstance(value, tuple) else (value,)
    return tuple(dict.fromkeys(item for item in items if _usable(item)))


def _parts(value: Value) -> tuple[Scalar, ...]:
    """Return the distinct usable values of one field as keys hold them."""
    return tuple(dict.fromkeys(map(_short, scalars(value))))


def encode_key(values: Sequence[Scalar]) -> str:
    return orjson.dumps(values).decode()


def decode_key(key: str) -> tuple[Scalar, ...]:
    return tuple(orjson.loads(key))


def rank(key: str) -> float:
    """Place a key in [0, 1) by its hash: who survives a cap is the same in any order."""
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest(), "big") / 2.0**48


# --- rows of a batch by entity ----------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Rows that share bucket and key fields, from the least *time* on; several combinations where a field is a list."""

    bucket: int
    combinations: Sequence[tuple[Scalar, ...]]
    rows: NDArray[np.intp]
    time: Timestamp


class FieldView:
    """One field over all rows: a code a row (-1: absent), from the column or else from the kind's constants."""

    def __init__(self, events: Batch, name: str) -> None:
        column = events.columns.get(name)
        self._dictionary = Dictionary() if column is None else column.dictionary
        self._constants = [kind.constant.get(name) for kind in events.kinds]
        self._columns = len(self._dictionary.values)
        self._known: dict[int, tuple[Scalar, ...]] = {}
        self.size = self._columns + len(self._constants)
        numbers = [-1 if value is None else self._columns + kind for kind, value in enumerate(self._constants)]
        self.codes = np.array(numbers, dtype=np.int64)[events.kind]
        if column is not None:
            self.codes = np.where(column.codes >= 0, column.codes, self.codes)

    def parts(self, code: int) -> tuple[Scalar, ...]:
        """Return what the value of *code* puts into keys."""
        known = self._known.get(code)
        if known is None:
            value = self._dictionary.values[code] if code < self._columns else self._constants[code - self._columns]
            known = self._known[code] = () if value is None else _parts(value)
        return known

    def apply(self, function: PerValue[T]) -> dict[int, T]:
        """Return the function's result by code, for each code that occurs."""
        table = function(self._dictionary)
        codes = distinct(self.codes[self.codes >= 0]).tolist()
        return {
            code: table[code] if code < self._columns else self._apply_to_constant(function, code) for code in codes
        }

    def _apply_to_constant(self, function: PerValue[T], code: int) -> T:
        alone, value = Dictionary(), self._constants[code - self._columns]
        assert value is not None
        alone.intern(value)
        return function(alone)[0]


class Reader:
    """Finds in a batch the rows that a baseline folds, and groups them by bucket and key fields with array operations.

    Python runs once for each distinct combination, never for each row.
    """

    def __init__(
        self,
        where: Mapping[str, Sequence[str]],
        names: Sequence[str],
        bucket: int,
        lateness: int,
        also: Iterable[str] = (),
    ) -> None:
        """*also* are fields that are read where a row has them."""
        self._also = frozenset(also)
        self._allowed = {field: frozenset(texts) for field, texts in where.items()}
        self._matches = {field: PerValue(partial(_any_of, texts)) for field, texts in self._allowed.items()}
        self._names = tuple(names)
        self._bucket = bucket
        self._lateness = lateness

    def fields(self, kind: Kind) -> frozenset[str]:
        """The fields to materialise for *kind*; none if its constants contradict *where*."""
        if kind.mapping == UNPARSED or any(self._constant(kind, field) is False for field in self._allowed):
            return frozenset()
        return self._also.union(self._names, self._allowed) - kind.constant.keys()

    def groups(self, events: Batch, watermark: Timestamp, state: StateView) -> Iterator[Group]:
        """Yield the foldable rows group by group; count in *state* what is not folded."""
        if not len(events):
            return
        fields = [FieldView(events, name) for name in self._names]
        mask = self.matching(events)
        for field in fields:
            mask &= field.codes >= 0
        rows = timely(events, np.flatnonzero(mask), watermark, self._lateness, state)
        buckets = events.time[rows] // self._bucket
        order, edges = ordered(rows, buckets, events.time[rows], fields)
        rows, buckets = rows[order], buckets[order][edges[:-1]]
        first = rows[edges[:-1]]
        codes = zip(*(field.codes[first].tolist() for field in fields), strict=True)
        leasts = events.time[first].tolist()
        for bucket, code, least, (start, end) in zip(buckets.tolist(), codes, leasts, pairwise(edges), strict=True):
            found = [field.parts(number) for field, number in zip(fields, code, strict=True)]
            combinations = list(islice(product(*found), _MOST_COMBINATIONS))
            if (cut := math.prod(map(len, found)) - len(combinations)) > 0:
                state.count("combinations_cut", cut)
            yield Group(bucket, combinations, rows[start:end], least)

    def _constant(self, kind: Kind, field: str) -> bool | None:
        """Whether the kind's constants satisfy *where* for *field*; None if they do not say."""
        value = kind.constant.get(field)
        return None if value is None else _any_of(self._allowed[field], value)

    def matching(self, events: Batch) -> NDArray[np.bool_]:
        """Return which rows could be read and match *where*."""
        mask = np.array([kind.mapping != UNPARSED for kind in events.kinds] or [True], dtype=np.bool_)[events.kind]
        for field in self._allowed:
            known = [self._constant(kind, field) for kind in events.kinds]
            matched = np.array([answer is True for answer in known], dtype=np.bool_)[events.kind]
            if (column := events.columns.get(field)) is not None and None in known:
                silent = np.array([answer is None for answer in known], dtype=np.bool_)[events.kind]
                table = np.array([*self._matches[field](column.dictionary), False], dtype=np.bool_)
                matched |= silent & table[column.codes]  # code -1 meets the appended False
            mask &= matched
        return mask


def timely(
    events: Batch, rows: NDArray[np.intp], watermark: Timestamp, lateness: int, state: StateView
) -> NDArray[np.intp]:
    """Return those of *rows* that have a time, not in the future and not late; count the others in *state*."""
    time = events.time[rows]
    horizon = np.maximum(np.maximum(events.high[rows], watermark), NO_TIME + lateness) - lateness
    untimed = time == NO_TIME
    future = events.future[rows] & ~untimed
    late = (time < horizon) & ~future & ~untimed
    for name, refused in (("untimed", untimed), ("future", future), ("late", late)):
        if number := int(np.count_nonzero(refused)):
            state.count(name, number)
    kept: NDArray[np.intp] = rows[~(untimed | future | late)]
    return kept


def _any_of(allowed: frozenset[str], value: Value) -> bool:
    return any(text_of(item) in allowed for item in (value if isinstance(value, tuple) else (value,)))


def ordered(
    rows: NDArray[np.intp], buckets: NDArray[np.int64], time: NDArray[np.int64], fields: Sequence[FieldView]
) -> tuple[NDArray[np.intp], list[int]]:
    """Order rows by bucket and codes, then by time, then as read; return the order and where each group begins."""
    if not len(rows):
        return rows, [0]
    code = buckets - buckets.min()
    for field in fields:
        if int(code.max() + 1) * field.size >= 2**62:
            code = np.unique(code, return_inverse=True)[1].astype(np.int64)
        code = code * field.size + field.codes[rows]
    order = np.lexsort((time, code))
    return order, [0, *(np.flatnonzero(np.diff(code[order])) + 1).tolist(), len(rows)]


# --- evidence ---------------------------------------------------------------------------------------------------------

Evidence: TypeAlias = list[Any]
"""Time and reference of one event, as state keeps it."""


def evidence_of(events: Batch, row: int) -> Evidence:
    return [int(events.time[row]), *map(_sealed, events.reference(row))]


def reference_of(evidence: Evidence) -> Reference:
    return Reference(*map(_opened, evidence[1:]))


def _sealed(part: Any) -> Any:
    """Return *part* in a form that JSON can hold, even of a file name that is not valid Unicode."""
    if isinstance(part, str) and not _encodable(part):
        return "\0" + part.encode("utf-8", "surrogatepass").hex()
    return part


def _opened(part: Any) -> Any:
    if isinstance(part, str) and part.startswith("\0"):
        return bytes.fromhex(part[1:]).decode("utf-8", "surrogatepass")
    return part


# --- bounded state ----------------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """An operator's own books, kept under the key "": watermark, what waits, and who survives the cap.

    *keys* is how many other keys the operator holds, *due* the first bucket for which something waits. Past its cap
    only keys ranked below *limit* stay; those above *blind_limit* may have lost what was known of them up to the bucket
    *blind*. *limit* recovers when there is room again and a bucket with events has closed, the first of them being
    *oldest*. While none closes it only falls, so who survives does not depend on order or cut.
    """

    watermark: Timestamp = NO_TIME
    due: int | None = None
    swept: int | None = None
    oldest: int | None = None
    newest: int | None = None
    keys: int = 0
    limit: float = 1.0
    blind: int | None = None
    blind_limit: float = 1.0

    @classmethod
    def load(cls, state: StateView) -> Ledger:
        return cls(**(state.get("") or {}))

    def save(self, state: StateView) -> None:
        fields = asdict(self)
        if fields != state.get(""):
            state.put("", fields)

    def note(self, bucket: int) -> None:
        """Remember that *bucket* has events."""
        self.oldest = bucket if self.oldest is None else min(self.oldest, bucket)
        self.newest = bucket if self.newest is None else max(self.newest, bucket)

    def keep(self, state: StateView, key: str, value: Any, new: bool) -> None:
        """Put *value*; *new* says that the key was not held before."""
        state.put(key, value)
        self.keys += new

    def drop(self, state: StateView, key: str) -> None:
        state.delete(key)
        self.keys -= 1

    def keep_open(self, state: StateView, bucket: int, key: str, value: Any, new: bool) -> None:
        """Put what waits until *bucket* is closed, as its own key: ``<bucket>:<key>``."""
        self.keep(state, open_key(bucket, key), value, new)
        self.due = bucket if self.due is None else min(self.due, bucket)

    def take_due(self, state: StateView, before: int) -> list[tuple[int, str, Any]]:
        """Take out all that waits for buckets lower than *before*, in order of bucket and key."""
        if self.due is None or self.due >= before:
            return []
        waiting = [(*_parted(key), value) for key, value in state.items() if key and key[0] != "["]
        due = sorted((item for item in waiting if item[0] < before), key=lambda item: item[:2])
        self.due = min((bucket for bucket, _, _ in waiting if bucket >= before), default=None)
        for bucket, key, _ in due:
            self.drop(state, open_key(bucket, key))
        return due

    def admits(self, key: str) -> bool:
        return self.limit >= 1.0 or rank(key) < self.limit

    def knows(self, key: str, since: int) -> bool:
        """Whether nothing about *key* can have been dropped since the bucket *since*."""
        return not self.capped(since) or rank(key) < self.blind_limit

    def capped(self, since: int) -> bool:
        """Whether any key may have been dropped since the bucket *since*."""
        return self.blind is not None and self.blind >= since

    def shrink(self, state: StateView, cap: int) -> None:
        """Drop keys, by rank only, until at most *cap* are held."""
        if self.keys > cap:
            held = sorted(
                (rank(key[key.index("[") : key.rindex("]") + 1]), key) for key, _ in state.items() if "[" in key
            )
            while self.keys > cap:
                self.limit /= 2
                while held and held[-1][0] >= self.limit:
                    self.drop(state, held.pop()[1])
                    state.count("capped")
            self.blind_limit = min(self.blind_limit, self.limit)
        if self.limit < 1.0:
            self.blind = self.newest

    def recover(self, cap: int, reached: int, since: int) -> None:
        """When a bucket before *reached* closes: admit more keys if there is room, forget blindness before *since*."""
        if self.oldest is None or self.newest is None or self.oldest >= reached:
            return
        self.oldest = self.newest if self.newest >= reached else None
        if self.keys * 2 <= cap:
            self.limit = min(1.0, self.limit * cap / max(0.5, self.keys * 2))
        if not self.capped(since):
            self.blind, self.blind_limit = None, self.limit


def open_key(bucket: int, key: str) -> str:
    return f"{bucket}:{key}"


def _parted(key: str) -> tuple[int, str]:
    bucket, _, rest = key.partition(":")
    return int(bucket), rest
