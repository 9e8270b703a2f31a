"""What the service manager is told, over a real socket; without one nothing happens."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.telemetry import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's end of the socket, named as systemd names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@vedette-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def test_each_word_is_one_datagram(manager: socket.socket) -> None:
    notify.ready("3 streams")
    notify.alive()
    notify.stopping()
    assert [manager.recv(4096) for _ in range(3)] == [b"READY=1\nSTATUS=3 streams", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_reload_says_when_by_the_monotonic_clock(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.reloading()
    word, moment = manager.recv(4096).decode().splitlines()
    assert word == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_is_one_line_of_bounded_length(manager: socket.socket) -> None:
    """Text of somebody else's cannot say READY=1."""
    notify.alive(f"waits\nREADY=1 {'x' * 5000}")
    lines = manager.recv(65_536).decode().split("\n")
    assert lines[0] == "WATCHDOG=1"
    assert lines[1].startswith("STATUS=waits READY=1 xxx")
    assert len(lines) == 2
    assert len(lines[1]) < 300


@pytest.mark.parametrize("name", ["", "relative", "/nowhere/notify", "@" + "x" * 300, "/" + "x" * 5000])
def test_nobody_who_listens_stops_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify.ready("fine")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.ready("fine")


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    begun = time.monotonic()
    for _ in range(5000):
        notify.alive()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("limit", "process", "expected"),
    [
        ("60000000", "own", 30.0),
        ("60000000", None, 30.0),
        ("60000000", "1", None),
        (None, "own", None),
        ("0", None, None),
        ("soon", None, None),
        ("60000000", "me", None),
    ],
)
def test_the_watchdog_wants_a_word_twice_in_its_time(
    limit: str | None, process: str | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", limit), ("WATCHDOG_PID", str(os.getpid()) if process == "own" else process)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_interval() == expected
