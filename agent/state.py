"""Operator state: keyed JSON values in memory, stored as one delta a batch and folded bit by bit.

The committed state of a stream lives here; a `Transaction` sees its own writes over it and leaves nothing behind unless
`apply` is called, which the stream does after the store has committed the transaction's `changes`. On disk an
operator's state is *parts* (the keys of one hash bucket, as of a commit) plus the *deltas* of later commits. When the
deltas outweigh the parts, each commit rewrites a few parts until all are newer than the cycle's start and the deltas
before it can go: no commit pays for the whole state.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

PARTS = 64
FOLD_FROM = 1 << 20
"""Bytes of deltas below which folding is not worth a write."""
FOLD_STEP = 1 << 18
"""Bytes of parts that one commit rewrites, at least one part."""

_Overlay = dict[str, bytes]
"""Key to JSON, empty for a deleted key."""


def part_of(key: str) -> int:
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % PARTS


def pack(values: Mapping[str, bytes]) -> bytes:
    """Return *values* as one compressed block: a line with the keys, then a line a value (JSON holds no line end)."""
    return zlib.compress(b"\n".join([orjson.dumps(list(values)), *values.values()]), 1)


def unpack(block: bytes) -> Iterator[tuple[str, bytes]]:
    keys, *values = zlib.decompress(block).split(b"\n")
    return zip(orjson.loads(keys), values, strict=True)


@dataclass(frozen=True, slots=True)
class StoredPart:
    operator: str
    part: int
    sequence: int
    block: bytes


@dataclass(frozen=True, slots=True)
class StoredDelta:
    operator: str
    sequence: int
    block: bytes


@dataclass(frozen=True)
class Changes:
    """What a commit writes: this batch's deltas, the parts it folds, and up to where older deltas are done with."""

    sequence: int
    deltas: tuple[StoredDelta, ...] = ()
    parts: tuple[StoredPart, ...] = ()
    forget: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


class _Operator:
    """Committed values of one operator, by part."""

    def __init__(self) -> None:
        self.parts: list[dict[str, bytes]] = [{} for _ in range(PARTS)]

    def get(self, key: str) -> bytes | None:
        return self.parts[part_of(key)].get(key)

    def apply(self, values: Iterable[tuple[str, bytes]]) -> None:
        for key, value in values:
            part = self.parts[part_of(key)]
            if value:
                part[key] = bytes(memoryview(value))  # orjson's own result holds on to kilobytes
            else:
                part.pop(key, None)


class View:
    """One operator's state inside a transaction (the port `StateView`)."""

    def __init__(self, operator: _Operator) -> None:
        self._operator = operator
        self.overlay: _Overlay = {}
        self.counts: dict[str, int] = defaultdict(int)

    def get(self, key: str) -> Any:
        value = self.overlay.get(key)
        if value is None:
            value = self._operator.get(key)
        return orjson.loads(value) if value else None

    def put(self, key: str, value: Any) -> None:
        self.overlay[key] = orjson.dumps(value)

    def delete(self, key: str) -> None:
        self.overlay[key] = b""

    def items(self) -> Iterator[tuple[str, Any]]:
        for part in self._operator.parts:
            for key, value in part.items():
                if key not in self.overlay:
                    yield key, orjson.loads(value)
        for key, value in list(self.overlay.items()):
            if value:
                yield key, orjson.loads(value)

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] += number


class State:
    """All operators' state of one stream."""

    def __init__(self, parts: Iterable[StoredPart] = (), deltas: Iterable[StoredDelta] = ()) -> None:
        self._operators: dict[str, _Operator] = defaultdict(_Operator)
        self._sequence = 0
        self._delta_bytes = self._part_bytes = 0
        self._cycle: _Cycle | None = None
        folded: dict[tuple[str, int], int] = {}
        for stored in parts:
            self._operators[stored.operator].apply(unpack(stored.block))
            folded[stored.operator, stored.part] = stored.sequence
            self._part_bytes += len(stored.block)
            self._sequence = max(self._sequence, stored.sequence)
        for delta in sorted(deltas, key=lambda one: one.sequence):
            newer = (pair for pair in unpack(delta.block) if self._is_newer(delta, folded, pair[0]))
            self._operators[delta.operator].apply(newer)
            self._delta_bytes += len(delta.block)
            self._sequence = max(self._sequence, delta.sequence)

    @staticmethod
    def _is_newer(delta: StoredDelta, folded: Mapping[tuple[str, int], int], key: str) -> bool:
        return delta.sequence > folded.get((delta.operator, part_of(key)), 0)

    def transaction(self) -> Transaction:
        """Begin; what is not applied never happened."""
        return Transaction(self)

    def keys(self) -> dict[str, int]:
        """Return the number of keys of each operator."""
        return {name: sum(map(len, operator.parts)) for name, operator in list(self._operators.items())}


@dataclass
class _Cycle:
    """One round of folding: deltas up to *start* may go when every part has been rewritten."""

    start: int
    todo: list[tuple[str, int]]
    part_bytes: int = 0
    delta_bytes: int = 0


class Transaction:
    """The operators' states during one batch."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._views: dict[str, View] = {}
        self._changes: Changes | None = None

    def view(self, operator: str) -> View:
        if operator not in self._views:
            self._views[operator] = View(self._state._operators[operator])
        return self._views[operator]

    def counted(self, name: str) -> int:
        """Return how often the operators have counted *name* so far."""
        return sum(view.counts.get(name, 0) for view in self._views.values())

    def changes(self) -> Changes:
        """Return what to store. Call it once, then `apply` if the store has committed it."""
        state = self._state
        sequence = state._sequence + 1
        deltas = tuple(
            StoredDelta(name, sequence, pack(view.overlay)) for name, view in self._views.items() if view.overlay
        )
        cycle = state._cycle or self._begin_cycle()
        parts = tuple(self._fold(cycle, sequence)) if cycle else ()
        done = cycle is not None and len(parts) == len(cycle.todo)
        counts = {f"{name}.{what}": n for name, view in self._views.items() for what, n in view.counts.items()}
        self._cycle = cycle
        self._changes = Changes(sequence, deltas, parts, cycle.start if cycle and done else 0, counts)
        return self._changes

    def apply(self) -> None:
        """Make the committed changes the state."""
        changes, state, cycle = self._changes, self._state, self._cycle
        assert changes is not None
        for name, view in self._views.items():
            state._operators[name].apply(view.overlay.items())
        state._sequence = changes.sequence
        written = sum(len(delta.block) for delta in changes.deltas)
        state._delta_bytes += written
        if cycle is not None:
            del cycle.todo[: len(changes.parts)]
            cycle.part_bytes += sum(len(part.block) for part in changes.parts)
            cycle.delta_bytes += written
            if changes.forget:
                state._part_bytes, state._delta_bytes, cycle = cycle.part_bytes, cycle.delta_bytes, None
        state._cycle = cycle

    def _begin_cycle(self) -> _Cycle | None:
        state = self._state
        if state._delta_bytes < max(FOLD_FROM, state._part_bytes):
            return None
        names = sorted({*state._operators, *self._views})
        return _Cycle(state._sequence, [(name, part) for name in names for part in range(PARTS)])

    def _fold(self, cycle: _Cycle, sequence: int) -> Iterator[StoredPart]:
        size = 0
        for name, number in cycle.todo:
            if size >= FOLD_STEP:
                return
            values = dict(self._state._operators[name].parts[number])
            overlay = self._views[name].overlay if name in self._views else {}
            for key, value in overlay.items():
                if part_of(key) == number:
                    values.pop(key, None)
                    if value:
                        values[key] = value
            part = StoredPart(name, number, sequence, pack(values))
            size += len(part.block)
            yield part
