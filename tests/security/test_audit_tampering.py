"""Tampering with an audit log of 2,000 leaves: every single change is found.

The attacker may be careless (the kept hash still tells) or thorough: hashes and numbers are made anew, so that only the
signed checkpoints tell. The checkpoints are 40 leaves apart here; what is found lies between two of them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence

import orjson
import pytest

from agent.audit import Entry, LogBroken, Signer, Verification
from agent.audit.leaf import batch, canonical, encode, member
from agent.audit.merkle import Frontier, leaf_hash
from agent.audit.note import Checkpoint, open_checkpoint
from agent.errors import TrustError

SIZE = 2_000
APART = 40
NOW = 1_767_400_000_000_000
SIGNER = Signer("vedette/tampering", bytes(range(32)))


def made(number: int) -> Entry:
    """Return leaf *number*: every third is a batch with members."""
    if number % 3:
        data = encode(number, "start", time=NOW + number, actor="kim", data={"pid": number})
        return Entry(number, data, (), leaf_hash(data))
    members = tuple(member(f"{number:032x}", "fired", bytes([place])) for place in range(number % 5))
    facts = batch(members, cursor=b"{}", books={"received": number}, provenance={})
    data = encode(number, "batch", time=NOW + number, stream="main", data=facts)
    return Entry(number, data, members, leaf_hash(data))


LOG = [made(number) for number in range(SIZE)]


def checkpoints(log: Iterable[Entry]) -> list[str]:
    frontier, notes = Frontier(), []
    for entry in log:
        frontier = frontier.append(leaf_hash(entry.data))
        if frontier.size % APART == 0:
            notes.append(SIGNER.sign(Checkpoint(SIGNER.name, frontier.size, frontier.root).text))
    return notes


NOTES = checkpoints(LOG)


@pytest.fixture(scope="module")
def upto() -> list[Verification]:
    """How verification stands before each leaf, so that no test begins at the start again."""
    verification = Verification(NOTES, SIGNER.verifier)
    states = [copy.copy(verification)]
    for entry in LOG:
        verification.take(entry)
        states.append(copy.copy(verification))
    assert verification.finish().signed == SIZE
    return states


def anew(entries: Iterable[Entry], start: int) -> Iterator[Entry]:
    """Yield the entries as a thorough attacker would keep them: numbered and hashed from *start* on."""
    for number, entry in enumerate(entries, start):
        data = canonical({**orjson.loads(entry.data), "n": number})
        yield Entry(number, data, entry.members, leaf_hash(data))


def edited(entry: Entry) -> Entry:
    data = canonical({**orjson.loads(entry.data), "actor": "mallory"})
    return Entry(entry.number, data, entry.members, entry.hash)


def taken(state: Verification, entries: Iterable[Entry]) -> Verification:
    state = copy.copy(state)
    for entry in entries:
        state.take(entry)
    return state


def found(state: Verification, entries: Iterable[Entry]) -> int:
    """Return the first leaf that verification says is wrong."""
    with pytest.raises(LogBroken) as broken:
        taken(state, entries).finish()
    assert f"{broken.value.number:,}" in str(broken.value)
    return broken.value.number


def before(number: int) -> int:
    """Return the size of the last checkpoint that does not cover leaf *number*."""
    return number // APART * APART


def later(index: int) -> Sequence[Entry]:
    """Return what follows, as far as the next checkpoint needs it."""
    return LOG[index : index + APART + 2]


def test_every_edit_is_found(upto: list[Verification]) -> None:
    """A careless one at its leaf, a thorough one between the checkpoints around it."""
    for index, entry in enumerate(LOG):
        changed = edited(entry)
        assert found(upto[index], [changed]) == index
        assert found(upto[index], anew([changed, *later(index + 1)], index)) == before(index)


def test_every_edit_of_members_is_found(upto: list[Verification]) -> None:
    """Which alerts a batch stored is as fixed as the leaf itself."""
    for index, entry in enumerate(LOG):
        more = (*entry.members, member("f" * 32, "fired", b""))
        for members in (more, *([entry.members[1:]] if entry.members else [])):
            assert found(upto[index], [Entry(index, entry.data, members, entry.hash)]) == index


def test_every_deletion_is_found(upto: list[Verification]) -> None:
    """Careless: the number is missing. Thorough: the next checkpoint signs another root, the last one more leaves."""
    for index in range(SIZE):
        assert found(upto[index], LOG[index + 1 : index + 2]) == index
        expected = before(index) if index < SIZE - APART else SIZE - 1
        assert found(upto[index], anew(later(index + 1), index)) == expected


def test_every_insertion_is_found(upto: list[Verification]) -> None:
    """Wherever a leaf is put in; one behind the last checkpoint is not signed, and the report says so."""
    extra = made(SIZE)
    for index in range(SIZE):
        assert found(upto[index], [extra]) == index
        assert found(upto[index], anew([extra, *later(index)], index)) == before(index)
    report = taken(upto[SIZE], [extra]).finish()
    assert (report.leaves, report.signed) == (SIZE + 1, SIZE)


def test_every_swap_of_neighbours_is_found(upto: list[Verification]) -> None:
    """Careless: the first says that it is the second. Thorough: the root tells."""
    for index in range(SIZE - 1):
        assert found(upto[index], [LOG[index + 1]]) == index
        swapped = [LOG[index + 1], LOG[index], *later(index + 2)]
        assert found(upto[index], anew(swapped, index)) == before(index)


def test_random_swaps_are_found(upto: list[Verification]) -> None:
    """2,000 pairs, however far apart."""
    random.seed(20_260_101)
    for _ in range(2_000):
        first, second = sorted(random.sample(range(SIZE), 2))
        swapped = list(later(first))
        swapped[0] = LOG[second]
        if second < first + len(swapped):
            swapped[second - first] = LOG[first]
        careless = Entry(first, LOG[second].data, LOG[second].members, LOG[second].hash)
        assert found(upto[first], [careless]) == first
        assert found(upto[first], anew(swapped, first)) == before(first)


def test_every_truncation_is_found(upto: list[Verification]) -> None:
    """One checkpoint that was kept elsewhere is enough, also where those in the log went with the leaves."""
    kept_elsewhere = NOTES[-1:]
    for size in range(SIZE):
        assert found(upto[size], []) == size
    alone = Verification([*NOTES[:10], *kept_elsewhere], SIGNER.verifier)
    assert found(alone, LOG[: 10 * APART]) == 10 * APART


def test_a_log_forked_and_signed_again_is_found() -> None:
    """Whoever has the key can sign another history, but not one that agrees with a checkpoint kept elsewhere."""
    forked = list(anew([*LOG[:100], edited(LOG[100]), *LOG[101:]], 0))
    with pytest.raises(LogBroken, match="forked"):
        Verification([*checkpoints(forked), NOTES[-1]], SIGNER.verifier)
    state = Verification(NOTES[-1:], SIGNER.verifier)
    assert found(state, forked) == 0


def test_every_bit_of_a_leaf_and_of_a_checkpoint_counts(upto: list[Verification]) -> None:
    """Flipped one by one, with the hash made anew."""
    number = SIZE - 2
    data = LOG[number].data
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        changed = Entry(number, bytes(flipped), LOG[number].members, leaf_hash(bytes(flipped)))
        found(upto[number], [changed, *LOG[number + 1 :]])
    note = NOTES[-1].encode()
    for place in range(len(note) * 8):
        flipped = bytearray(note)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(TrustError):
            open_checkpoint(flipped.decode("utf-8", "surrogateescape"), SIGNER.verifier)
