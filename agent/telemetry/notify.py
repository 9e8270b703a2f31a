"""Words to the service manager (systemd's notify protocol): ready, reloading, stopping, alive.

Without a socket in the environment nothing happens, and nothing here ever raises: a service manager that does not
listen must not stop the work.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

_STATUS_CHARACTERS = 200


def has_listener() -> bool:
    """Say whether a service manager is there to be told anything."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def ready(status: str = "") -> None:
    """Say that start-up, or a reload, is done."""
    _send("READY=1", _status(status))


def reloading(status: str = "") -> None:
    """Say that a new configuration is being taken; `ready` must follow."""
    _send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", _status(status))


def stopping(status: str = "") -> None:
    _send("STOPPING=1", _status(status))


def status(text: str) -> None:
    """Say in one line how it is; nothing to say is not said."""
    if text:
        _send(_status(text))


def alive(status: str = "") -> None:
    """Say that the work goes on: to be called at least every `watchdog_interval` seconds."""
    _send("WATCHDOG=1", _status(status))


def watchdog_interval() -> float | None:
    """Return how many seconds may pass between two calls of `alive`, half of what the manager waits; None: any."""
    try:
        limit = int(os.environ.get("WATCHDOG_USEC", "0"))
        process = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return limit / 2_000_000 if limit > 0 and process == os.getpid() else None


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_STATUS_CHARACTERS]}" if text else ""


def _send(*lines: str) -> None:
    if not has_listener():
        return
    address = os.environ["NOTIFY_SOCKET"]
    place = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.setblocking(False)
        manager.connect(place)
        manager.send("\n".join(filter(None, lines)).encode("utf-8", "replace"))
