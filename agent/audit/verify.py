"""Holding a log to what it signed: the first leaf that was edited, removed, inserted or moved, by its number.

What is trusted is the verifier key alone. Leaves and checkpoints may come from the store or from copies of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from agent.audit.leaf import Entry, Leaf, decode, members_tree
from agent.audit.merkle import Frontier, leaf_hash
from agent.audit.note import Verifier, open_checkpoint
from agent.errors import TrustError
from agent.model import NO_TIME, Timestamp

_NO_MORE: tuple[float, Iterable[tuple[int, bytes]]] = math.inf, ()


class LogBroken(TrustError):
    """A log that does not hold; *number* is the first leaf that is wrong, or may be."""

    def __init__(self, origin: str, number: int, text: str) -> None:
        super().__init__(
            f"audit log {origin}: {text}; keep the data folder as evidence and compare it with the copy in the SIEM"
            " ('vedette audit verify --copy')"
        )
        self.number = number


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified: *leaves*, the first *signed* of which are under the last checkpoint, the *note*.

    Of the *members*, alerts that the leaves stand for, *pruned* were forgotten on record, none of them behind the leaf
    *pruned_to*.
    """

    origin: str
    leaves: int
    signed: int
    note: str
    checkpoints: int
    members: int
    pruned: int
    pruned_to: int
    first: Timestamp
    last: Timestamp


class Verification:
    """Takes the leaves of one log in order; raises `LogBroken` at the first that does not hold.

    Between two leaves it may be copied (`copy.copy`), to go on in several ways.
    """

    def __init__(self, checkpoints: Iterable[str], key: Verifier) -> None:
        self._origin = key.name
        self._roots: dict[int, bytes] = {}
        self._signed, self._note = 0, ""
        for note in checkpoints:
            one = open_checkpoint(note, key)
            if self._roots.setdefault(one.size, one.root) != one.root:
                raise self._broken(one.size, f"two checkpoints of {one.size:,} leaves differ: the log was forked")
            if one.size > self._signed:
                self._signed, self._note = one.size, note
        self._frontier = Frontier()
        self._held = 0
        self._members = self._pruned = 0
        self._pruned_to = -1
        self._first = self._last = NO_TIME

    def take(self, entry: Entry) -> Leaf:
        """Return the next leaf."""
        number = self._frontier.size
        if entry.number != number:
            raise self._broken(number, f"leaf {number:,} is missing, the next one kept is {entry.number:,}")
        hash = leaf_hash(entry.data)
        if entry.hash is not None and entry.hash != hash:
            raise self._broken(number, f"leaf {number:,} was edited: its bytes do not fit its hash")
        leaf = self._decode(entry)
        if leaf.number != number:
            raise self._broken(number, f"in place of leaf {number:,} there is one made as {leaf.number:,}")
        self._check_members(leaf, entry.members)
        self._frontier = self._frontier.append(hash)
        self._check_root()
        self._members += len(entry.members)
        if leaf.action == "alerts-pruned":
            self._pruned += _whole(leaf.data.get("alerts"))
            self._pruned_to = max(self._pruned_to, _whole(leaf.data.get("last_leaf")))
        self._first = leaf.time if number == 0 else self._first
        self._last = leaf.time
        return leaf

    def finish(self) -> Report:
        """Return what was verified, when there are no more leaves."""
        size, signed = self._frontier.size, self._signed
        if signed > size:
            raise self._broken(size, f"leaves from {size:,} on are missing: a checkpoint signs {signed:,}")
        if size and not signed:
            raise self._broken(0, "no checkpoint signs any of the leaves: the checkpoints were removed")
        return Report(
            origin=self._origin, leaves=size, signed=signed, note=self._note, checkpoints=len(self._roots),
            members=self._members, pruned=self._pruned, pruned_to=self._pruned_to,
            first=self._first, last=self._last,
        )  # fmt: skip

    def _decode(self, entry: Entry) -> Leaf:
        try:
            return decode(entry.data)
        except TrustError as error:
            raise self._broken(entry.number, f"leaf {entry.number:,} was edited: {error}") from None

    def _check_members(self, leaf: Leaf, members: Sequence[bytes]) -> None:
        said = (leaf.data.get("alerts"), leaf.data.get("root")) if leaf.action == "batch" else (0, None)
        found = (len(members), members_tree(members).root.hex() if leaf.action == "batch" else None)
        if said != found:
            raise self._broken(leaf.number, f"the members of leaf {leaf.number:,} were edited")

    def _check_root(self) -> None:
        size = self._frontier.size
        signed = self._roots.get(size)
        if signed is not None and signed != self._frontier.root:
            which = (
                f"leaf {self._held:,}" if size - self._held == 1 else f"one of leaves {self._held:,} to {size - 1:,}"
            )
            raise self._broken(self._held, f"{which} is not what the checkpoint of {size:,} leaves signs")
        if signed is not None:
            self._held = size

    def _broken(self, number: int, text: str) -> LogBroken:
        return LogBroken(self._origin, number, text)


def verify(entries: Iterable[Entry], checkpoints: Iterable[str], key: Verifier) -> Report:
    """Hold a whole log to its checkpoints, in order of number; `LogBroken` names the first place that does not hold.

    Leaves behind the last checkpoint are whole but not signed yet: `Report.signed` says how many are. That leaves *and*
    checkpoints were cut off at the end shows only against a checkpoint kept elsewhere: give it with the others.
    """
    verification = Verification(checkpoints, key)
    for entry in entries:
        verification.take(entry)
    return verification.finish()


def check_stored(report: Report, stored: int, gone: Iterable[tuple[int, bytes]], key: Verifier) -> None:
    """Hold how many alerts are *stored*, at the moment of the report's last leaf, to the log: none was deleted.

    If any was, *gone* (`not_stored`) says which: all behind the leaf where pruning ended, none before it.
    """
    missing = report.members - report.pruned - stored
    if missing > 0:
        number, one = next(((leaf, one) for leaf, one in gone if leaf > report.pruned_to), (0, b""))
        which = f": leaf {number:,} has {_brief(one)}" if one else ""
        text = f"{missing:,} alerts that the log stands for were deleted, not pruned on record{which}"
        raise LogBroken(key.name, number, text)
    if missing < 0:
        raise LogBroken(key.name, 0, f"{-missing:,} more alerts are stored than the log stands for")


def not_stored(entries: Iterable[Entry], alerts: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield the members without a stored alert, each with the number of its leaf; both are given by leaf."""
    stored = groupby(alerts, itemgetter(0))
    leaf, kept = next(stored, _NO_MORE)
    for entry in entries:
        while leaf < entry.number:
            leaf, kept = next(stored, _NO_MORE)
        known = {one for _, one in kept} if leaf == entry.number else set()
        yield from ((entry.number, one) for one in entry.members if one not in known)


def _brief(one: bytes) -> str:
    return one.decode("utf-8", "replace")[:200]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def check_alerts(alerts: Iterable[tuple[int, bytes]], members: Callable[[int], Sequence[bytes]], key: Verifier) -> int:
    """Hold stored alerts, each the number of its leaf and its member, to the log; return how many they are.

    They are in order of their leaves, and each is there once: a copy of one must not make up for another.
    """
    number, known, count = -1, set[bytes](), 0
    for leaf, one in alerts:
        if leaf > number:
            number, known = leaf, set(members(leaf))
        if leaf < number or one not in known:
            text = f"a stored alert was edited or added: leaf {leaf:,} has no {_brief(one)}, or had it before"
            raise LogBroken(key.name, leaf, text)
        known.remove(one)
        count += 1
    return count
