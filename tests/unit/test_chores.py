"""Chores at intervals, and a clock that is set while they wait."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from agent import chores
from agent.chores import Chores


def test_a_clock_that_is_set_puts_no_chore_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is done at once, then at its interval; when the clock has been set they all begin anew, and not before."""
    offset = [0.0]
    said: list[float] = []
    monkeypatch.setattr(chores, "_offset", lambda: offset[0])
    monkeypatch.setattr(chores, "log", SimpleNamespace(warning=lambda _event, seconds: said.append(seconds)))
    done = threading.Semaphore(0)
    made = Chores()
    made.every(3600, done.release)
    made.start()
    try:
        assert done.acquire(timeout=10)
        offset[0] += chores.STEP_S - 0.1  # as clocks drift
        made.look()
        assert not done.acquire(timeout=0.3)
        offset[0] -= 3600.0
        made.look()
        assert done.acquire(timeout=10)
        made.look()
        assert not done.acquire(timeout=0.3), "it is set once"
    finally:
        made.close()
    assert said == [pytest.approx(-3595.1, abs=0.05)]
