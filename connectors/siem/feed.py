"""What was read of one shard and what is still to come; no I/O.

A shard numbers its operations (`_seq_no`). Visible documents appear in any order, so a position is three things:
`done`, the greatest number delivered; `holes`, the numbers below it not seen yet; and `floor`, at or below which
nothing can appear any more. Only numbers up to the global checkpoint are read: those above may be given again.

A hole is gone for good (its document was deleted or replaced) once a search finds nothing there although the copy must
show it: see `Proof`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Range = tuple[int, int]
"""First and last number, both included."""

MAX_TERMS = 32_768
MAX_CLAUSES = 512
START = -1
"""The position before the first number."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at one copy of a shard: which, its history, its checkpoint and how often it was refreshed."""

    copy: str
    history: str
    checkpoint: int
    refreshes: int


class Proof:
    """Up to which number a copy certainly shows what it holds.

    All up to the checkpoint was in the copy when we looked. Once the copy has been refreshed twice since (one refresh
    may have been under way), at least one refresh began after the look, so all of that can be searched.
    """

    def __init__(self) -> None:
        self.shown = START
        self._last: Sight | None = None
        self._noted: Sight | None = None

    def look(self, sight: Sight) -> bool:
        """Take in a look; return whether anything has changed since the last one."""
        last, self._last = self._last, sight
        same_copy = last is not None and (last.copy, last.history) == (sight.copy, sight.history)
        if last is None or not same_copy or sight.refreshes < last.refreshes:
            self.shown, self._noted = START, sight
            return True
        assert self._noted is not None
        if sight.refreshes >= self._noted.refreshes + 2:
            self.shown, self._noted = max(self.shown, self._noted.checkpoint), sight
        return sight != last


@dataclass(slots=True)
class Position:
    """How far one shard was read. `cut`: ids delivered of a number that several documents share, if a page ended there.

    Numbers are shared in an index that was shrunk from one with more shards; the number at which a page ends stays a
    hole until it is known to be read whole.
    """

    history: str
    floor: int = START
    done: int = START
    holes: list[Range] = field(default_factory=list)
    cut: tuple[int, tuple[str, ...]] | None = None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Position:
        history, floor, done, holes, *rest = row
        cut = (rest[0][0], tuple(rest[0][1])) if rest else None
        return cls(history, floor, done, [(first, last) for first, last in holes], cut)

    def row(self) -> list[Any]:
        """Return the position as JSON-able data."""
        row: list[Any] = [self.history, self.floor, self.done, [list(one) for one in self.holes]]
        return row if self.cut is None else [*row, [self.cut[0], list(self.cut[1])]]

    def wanted(self, above: int, checkpoint: int) -> list[Range]:
        """Return the numbers in (*above*, *checkpoint*] that were not seen yet, ascending."""
        ranges = [*self.holes, (self.done + 1, checkpoint)]
        return [(max(first, above + 1), min(last, checkpoint)) for first, last in ranges
                if max(first, above + 1) <= min(last, checkpoint)]  # fmt: skip

    def unread(self, above: int, checkpoint: int) -> int:
        """Return how many numbers in (*above*, *checkpoint*] were not seen yet; some may be of no document."""
        return sum(last - first + 1 for first, last in self.wanted(above, checkpoint))

    def take(self, hits: Sequence[tuple[int, str]], covered: int) -> list[int]:
        """Deliver *hits* (number, id), ascending; return the places of those that were not delivered before.

        *covered* is the number up to which *hits* hold all that a search can see; a number above it is cut: of its
        documents some may be missing.
        """
        skip = set(self.cut[1]) if self.cut else set()
        skipped_number = self.cut[0] if self.cut else None
        kept = [place for place, (number, id) in enumerate(hits) if not (number == skipped_number and id in skip)]
        seen = {hits[place][0] for place in kept}
        if skipped_number is not None and covered >= skipped_number:
            seen.add(skipped_number)
            self.cut = None
        cut = sorted(number for number in seen if number > covered)
        if cut:
            ids = tuple(hits[place][1] for place in kept if hits[place][0] == cut[0])
            self.cut = (cut[0], (*(skip if cut[0] == skipped_number else ()), *ids))
            seen.discard(cut[0])
        self._deliver(sorted(seen), max(seen | set(cut), default=START))
        return kept

    def settle(self, number: int) -> int:
        """Raise the floor to *number*, where all has been searched and shown; return how many holes are gone."""
        if number <= self.floor:
            return 0
        gone = sum(min(last, number) - first + 1 for first, last in self.holes if first <= number)
        gone += max(0, number - self.done)
        self.holes = [(max(first, number + 1), last) for first, last in self.holes if last > number]
        self.floor = number
        self.done = max(self.done, number)
        return gone

    def _deliver(self, numbers: Sequence[int], greatest: int) -> None:
        """Take *numbers* out of the holes; those above `done` that were skipped up to *greatest* become holes."""
        holes = self.holes
        if greatest > self.done:
            holes = [*holes, (self.done + 1, greatest)]
            self.done = greatest
        self.holes = list(_without(holes, numbers))


def _without(ranges: Iterable[Range], numbers: Sequence[int]) -> Iterator[Range]:
    """Yield *ranges* without *numbers*; both ascending."""
    index = 0
    for first, last in ranges:
        start = first
        while index < len(numbers) and numbers[index] <= last:
            number = numbers[index]
            index += 1
            if number < start:
                continue
            if number > start:
                yield start, number - 1
            start = number + 1
        if start <= last:
            yield start, last


def clauses(ranges: Sequence[Range]) -> tuple[list[dict[str, Any]], int | None]:
    """Return query clauses that match exactly *ranges*, and where they end if not all could be said at once."""
    found: list[dict[str, Any]] = []
    single: list[int] = []
    end: int | None = None
    for first, last in ranges:
        if last - first < 8:
            single.extend(range(first, last + 1))
        else:
            found.append({"range": {"_seq_no": {"gte": first, "lte": last}}})
        if len(single) >= MAX_TERMS or len(found) >= MAX_CLAUSES:
            end = last
            break
    if single:
        found.append({"terms": {"_seq_no": single}})
    return found, None if end is None or end == ranges[-1][1] else end
