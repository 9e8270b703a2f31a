"""Operator state: what was committed is what a restart finds, whatever was folded or lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agent.state
from agent.state import Changes, State, StoredDelta, StoredPart

KEYS = st.text(min_size=1, max_size=4) | st.sampled_from(["a", "b", "c"])
VALUES = st.none() | st.integers(-5, 5) | st.text(max_size=3) | st.lists(st.integers(0, 3), max_size=2)
WRITES = st.lists(st.tuples(st.sampled_from(["x", "y"]), KEYS, VALUES), max_size=6)


class Disk:
    """What the store keeps of a stream's state, as the store keeps it."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, int], StoredPart] = {}
        self.deltas: list[StoredDelta] = []

    def store(self, changes: Changes) -> None:
        self.deltas += changes.deltas
        self.parts |= {(part.operator, part.part): part for part in changes.parts}
        self.deltas = [delta for delta in self.deltas if delta.sequence > changes.forget]

    def load(self) -> State:
        return State(self.parts.values(), self.deltas)


def write(state: State, writes: list[tuple[str, str, Any]]) -> Any:
    transaction = state.transaction()
    for operator, key, value in writes:
        if value is None:
            transaction.view(operator).delete(key)
        else:
            transaction.view(operator).put(key, value)
    return transaction


def read(state: State, operator: str) -> dict[str, Any]:
    return dict(state.transaction().view(operator).items())


@pytest.fixture(autouse=True)
def fold_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold after few bytes and in many steps, so that short runs meet every stage of a cycle."""
    monkeypatch.setattr(agent.state, "FOLD_FROM", 60)
    monkeypatch.setattr(agent.state, "FOLD_STEP", 200)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(WRITES, st.sampled_from(["commit", "lose", "restart"])), max_size=25))
def test_committed_state_survives_and_nothing_else(steps: list[tuple[Any, str]]) -> None:
    """After any mix of commits, lost batches and restarts, memory and disk hold exactly the committed writes."""
    disk, expected = Disk(), {"x": {}, "y": {}}
    state = disk.load()
    for writes, fate in steps:
        transaction = write(state, writes)
        changes = transaction.changes()
        if fate != "lose":
            disk.store(changes)
            transaction.apply()
            for operator, key, value in writes:
                expected[operator].pop(key, None)
                if value is not None:
                    expected[operator][key] = value
        if fate == "restart":
            state = disk.load()
        for operator, values in expected.items():
            assert read(state, operator) == values
    assert {name: read(disk.load(), name) for name in expected} == expected


def test_folding_forgets_old_deltas() -> None:
    """Deltas do not pile up: their bytes stay within a small multiple of the state's."""
    disk = Disk()
    state = disk.load()
    for number in range(400):
        transaction = write(state, [("x", f"k{number % 5}", number)])
        disk.store(transaction.changes())
        transaction.apply()
    assert len(disk.deltas) < 60
    assert read(disk.load(), "x") == {f"k{number % 5}": number for number in range(395, 400)}


def test_a_transaction_sees_its_own_writes_and_values_are_copies() -> None:
    """A value read and changed is not stored unless it is put back."""
    state = State()
    view = state.transaction().view("x")
    view.put("k", [1])
    view.get("k").append(2)
    assert view.get("k") == [1]
    view.delete("k")
    assert view.get("k") is None
    assert list(view.items()) == []
