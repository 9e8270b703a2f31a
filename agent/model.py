"""Frozen values that cross rooms.

Records (native, as a source gave them) become a Batch (columns of ECS fields), detectors turn a Batch into Findings,
alerting turns Findings into Alerts, and a Document is what a sink is asked to write. Nothing here does I/O.

Time is an ``int``: microseconds since 1970-01-01T00:00:00Z (years 1 to 9999 fit). ``NO_TIME`` marks a row without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar, overload
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

Timestamp: TypeAlias = int
Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | tuple[Scalar, ...]
Identity: TypeAlias = str
"""32 hex digits that name one event for ever, derived from where it lies and never from what it says."""
Cursor: TypeAlias = Mapping[str, Any]
"""A source's position: JSON-able, opaque to everybody else."""

NO_TIME: Timestamp = -(2**63)
SECOND: Timestamp = 1_000_000

T = TypeVar("T")


def digest(*parts: str | int) -> str:
    """Return 32 hex digits over *parts*, unambiguous about where one part ends and the next begins."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


# --- what a source gives ----------------------------------------------------------------------------------------------


DOCUMENT = "document"
"""The format of a record that is a SIEM's stored document: its `event.original` is a field like any other."""


class Reference(NamedTuple):
    """Where one record lies: enough to name it (identity), to fetch it again and to read it (format)."""

    source: str
    partition: str
    key: int | str
    path: str = ""
    format: str = ""
    lineage: str = ""

    @property
    def identity(self) -> Identity:
        return digest(self.source, self.lineage or self.partition, self.key)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one partition (a file, a shard), in the partition's own stable order.

    *keys* are positions in the partition (an offset in bytes, a record number, a document id), one for each of *raw*.
    *raw* holds records as they came: bytes that the format's decoder reads, or a mapping that is decoded already.
    *faults* names records that the source itself found unusable (index in *raw* -> reason); *raw* then holds what there
    is of them, cut to the source's bound. *lineage* names the records' home where that outlives the partition: a copy
    of an index keeps the lineage of the original, so that its documents keep their identity.
    """

    partition: str
    path: str
    format: str
    keys: Sequence[int | str]
    raw: Sequence[bytes | Mapping[str, Any]]
    faults: Mapping[int, str] = field(default_factory=dict)
    lineage: str = ""


MODEL_EXPIRED = "model-expired"
"""`Notice.action` of the agent's own notice about a model, its *place*."""


@dataclass(frozen=True)
class Notice:
    """Something that a source must put on record: what happened, where, and what follows. *lost*: events are gone."""

    action: str
    place: str
    text: str
    lost: bool = False


@dataclass(frozen=True)
class Records:
    """One fetch: chunks in reading order, the cursor that stands behind them, and when they were read.

    *unread* names the partitions that still hold events after this fetch: they hold the watermark back. A name may
    stand for partitions that the source has not looked into yet. *projected*: the records hold only the fields asked
    for. *again*: they may have been given long ago, so that alerts about them may be delivered already. *counts* are
    the source's numbers for the books. What happened before *backfill* was there before the source was read for the
    first time: alerts about it say so.
    """

    source: str
    chunks: tuple[Chunk, ...]
    cursor: Cursor
    as_of: Timestamp
    unread: frozenset[str] = frozenset()
    projected: bool = False
    again: bool = False
    notices: tuple[Notice, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    backfill: Timestamp = NO_TIME

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(chunk.raw) for chunk in self.chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[Chunk, int]:
        """Return the chunk that holds record *index* and the record's place in it."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.chunks[number], index - int(self._starts[number])

    def reference(self, index: int) -> Reference:
        chunk, place = self.locate(index)
        return Reference(self.source, chunk.partition, chunk.keys[place], chunk.path, chunk.format, chunk.lineage)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used: why, where it came from and, within the byte cap, what it was."""

    reference: Reference
    reason: str
    raw: bytes
    time: Timestamp


# --- a batch of ECS events --------------------------------------------------------------------------------------------


class Dictionary:
    """Distinct values of a column, append-only: code ``i`` stands for ``values[i]`` for as long as the object lives.

    Consecutive batches share it, so that work on a value is done once (`PerValue`) and not once an event; whoever fills
    it starts a new one when `full`. Values of one column have one type, so that ``1`` and ``True`` never meet.
    """

    __slots__ = ("__weakref__", "_codes", "values")

    CAP = 65_536

    class _Codes(dict[Value, int]):
        def __init__(self, values: list[Value]) -> None:
            super().__init__()
            self._values = values

        def __missing__(self, value: Value) -> int:
            code = self[value] = len(self._values)
            self._values.append(value)
            return code

    def __init__(self) -> None:
        values: list[Value] = []
        self.values: Sequence[Value] = values
        self._codes = Dictionary._Codes(values)

    def encode(self, values: Iterable[Value]) -> list[int]:
        """Return one code a value; new values get the next codes."""
        return list(map(self._codes.__getitem__, values))

    def intern(self, value: Value) -> int:
        """Return the code of one value, a new one if it is new."""
        return self._codes[value]

    @property
    def full(self) -> bool:
        return len(self.values) >= self.CAP


class Originals(Dictionary):
    """Records as they came, each with a code of its own, one batch long: a text is made of one when it is asked for."""

    class _Texts(Sequence[Value]):
        def __init__(self, records: Sequence[bytes | Value]) -> None:
            self._records = records

        def __len__(self) -> int:
            return len(self._records)

        @overload
        def __getitem__(self, place: int) -> Value: ...
        @overload
        def __getitem__(self, place: slice) -> Sequence[Value]: ...
        def __getitem__(self, place: int | slice) -> Value | Sequence[Value]:
            if isinstance(place, slice):
                return [self[number] for number in range(*place.indices(len(self)))]
            record = self._records[place]
            return record.decode("utf-8", "replace") if isinstance(record, bytes) else record

    __slots__ = ("records",)

    def __init__(self, records: Sequence[bytes | Value]) -> None:
        super().__init__()
        self.records = records
        self.values = Originals._Texts(records)


class PerValue(Generic[T]):
    """A pure function of one value, computed once for each distinct value of each dictionary."""

    def __init__(self, function: Callable[[Value], T]) -> None:
        self._function = function
        self._tables: WeakKeyDictionary[Dictionary, list[T]] = WeakKeyDictionary()

    def __call__(self, dictionary: Dictionary) -> list[T]:
        """Return the results by code; the list grows with the dictionary."""
        table = self._tables.get(dictionary)
        if table is None:
            table = self._tables[dictionary] = []
        if len(table) < len(dictionary.values):
            table.extend(map(self._function, dictionary.values[len(table) :]))
        return table


def distinct(numbers: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Return the numbers (0 or more, and small) that occur, ascending; quicker than sorting them."""
    return np.flatnonzero(np.bincount(numbers))


@dataclass(frozen=True, slots=True)
class Column:
    """One ECS field over all rows: ``codes[row]`` points into the dictionary, -1 where the row lacks the field."""

    codes: NDArray[np.int32]
    dictionary: Dictionary

    def value(self, row: int) -> Value | None:
        code = self.codes[row]
        return None if code < 0 else self.dictionary.values[code]


@dataclass(frozen=True)
class Kind:
    """What sort of event a row is: the mapping that read it and the fields that are the same in all such rows.

    A plan folds *constants* once for each kind, and *absent*, fields that are known to be in none of its rows. `column`
    says under which ECS name this kind of event holds a field of its native taxonomy (Sigma's names): from *renames*,
    else under the vendor's *prefix*.
    """

    mapping: str
    constants: tuple[tuple[str, Value], ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    prefix: str = field(default="", compare=False)
    absent: frozenset[str] = frozenset()

    def column(self, native: str) -> str:
        return self.renames.get(native) or self.prefix + native

    @cached_property
    def constant(self) -> Mapping[str, Value]:
        return dict(self.constants)


UNPARSED = "unparsed"
"""`Kind.mapping` of a quarantined record: it has `event.original` only, and is shown to raw-text rules."""


@dataclass(frozen=True)
class Batch:
    """Events as columns: one row an event, one column a dotted ECS name, only the fields the plan wants.

    *origin[row]* is the record's index in *records*; *kind[row]* points into *kinds*; *time* is event time;
    *high[row]* is the greatest event time of the row's partition before this row (`NO_TIME` where none): a row older
    than ``high - lateness`` is late. Rows marked *future* (more than five minutes ahead of ingest) move no watermark.
    """

    records: Records
    origin: NDArray[np.int32]
    kinds: tuple[Kind, ...]
    kind: NDArray[np.int32]
    time: NDArray[np.int64]
    columns: Mapping[str, Column]
    high: NDArray[np.int64]
    future: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.origin)

    def reference(self, row: int) -> Reference:
        return self.records.reference(int(self.origin[row]))

    def value(self, row: int, name: str) -> Value | None:
        column = self.columns.get(name)
        return None if column is None else column.value(row)

    def take(self, rows: NDArray[np.intp]) -> Batch:
        """Return the batch of these rows only."""
        return replace(
            self,
            origin=self.origin[rows],
            kind=self.kind[rows],
            time=self.time[rows],
            columns={name: Column(column.codes[rows], column.dictionary) for name, column in self.columns.items()},
            high=self.high[rows],
            future=self.future[rows],
        )

    def rows_by_kind(self) -> Iterator[tuple[Kind, NDArray[np.intp]]]:
        """Yield each kind that occurs with its rows, ascending."""
        for number, kind in enumerate(self.kinds):
            rows = np.flatnonzero(self.kind == number)
            if len(rows):
                yield kind, rows


# --- what detectors say -----------------------------------------------------------------------------------------------

Level: TypeAlias = Literal["informational", "low", "medium", "high", "critical"]
Revision: TypeAlias = Literal["fired", "settled"]
"""What was known when an alert fired; and, where it came to differ, when its window closed."""


@dataclass(frozen=True)
class Description:
    """What is always true of a rule or detector: who it is, how grave, whose work, which ATT&CK techniques.

    *digest* names the exact content that ran (a version, never part of an alert's id).
    """

    id: str
    title: str
    kind: Literal["rule", "baseline", "model", "quality"]
    level: Level = "medium"
    description: str = ""
    author: str = ""
    license: str = ""
    status: str = ""
    techniques: tuple[str, ...] = ()
    tactics: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    false_positives: tuple[str, ...] = ()
    ruleset: str = ""
    digest: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Factor:
    """One reason: a field, what was seen, what was expected, and its share of the score where there is one."""

    field: str
    observed: Any
    expected: Any
    contribution: float | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a finding was made: a sentence for people, factors for machines, and how grown the baseline is (0..1)."""

    sentence: str
    factors: tuple[Factor, ...] = ()
    maturity: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A detector's statement about events; alerting makes it an alert.

    *entity* are field-value pairs; *window* is [start, end) in event time, or None for a statement about the events in
    *evidence* themselves; *key* tells apart statements of one detector about one entity and window. *row* is the row of
    the batch at hand when the finding is about one of its rows; *fields* keeps what is known of events that are not at
    hand any more, and under ``vedette.`` what its alert says besides. *revision* is ``settled`` when the window that an
    earlier finding was about has closed: it is kept if there is such an alert and it says something else by now. What a
    shadow detector finds is kept and not delivered (*deliver*).
    """

    detector: Description
    time: Timestamp
    evidence: tuple[Reference, ...]
    explanation: Explanation
    entity: tuple[tuple[str, str], ...] = ()
    window: tuple[Timestamp, Timestamp] | None = None
    key: str = ""
    score: float | None = None
    row: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    revision: Revision = "fired"
    deliver: bool = True


# --- what leaves ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alert:
    """An alert as stored: *document* is the nested ECS document, complete but for what a sink's schema adds.

    *again*: a sink may have it already, from a time that the store knows nothing of.
    """

    id: str
    rule_id: str
    title: str
    level: Level
    time: Timestamp
    document: Mapping[str, Any]
    deliver: bool = True
    revision: Revision = "fired"
    again: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """One document offered to a sink: a revision of an alert or a piece of the audit log, never changed once written.

    *repeat* is true if it may have been offered before (restart, retry).
    """

    id: str
    body: bytes
    repeat: bool = False
    dataset: Literal["alert", "audit"] = "alert"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A sink's answer for one document."""

    state: Literal["delivered", "retryable", "rejected"]
    reason: str = ""
    retry_after: float | None = None


DELIVERED = Outcome("delivered")
