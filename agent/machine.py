"""How Vedette is on this machine: what `vedette doctor` looks at beside sources, sinks and trust."""

from __future__ import annotations

import http.client
import ipaddress
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from agent.config import Bootstrap
from agent.config.revision import ENVELOPE, FILE
from agent.control import ask
from agent.errors import VedetteError
from agent.model import SECOND
from agent.ports import Check
from agent.store import numbers
from agent.store.numbers import Numbers
from agent.store.sqlite import DATABASE, clock

LEAST_BYTES = 1 << 30
"""Space below which somebody should look; the streams wait when there is none."""
MOST_WAL_BYTES = 512 << 20
LONGEST_WAIT_S = 600.0
_UNSIGNED_S = 300.0


def examine(bootstrap: Bootstrap, sinks: list[str]) -> Iterator[Check]:
    """Yield what is so of the files, the store, the running daemon and what it serves."""
    yield from _files(bootstrap)
    if not (bootstrap.data / DATABASE).exists():
        yield Check("store", "warning", f"no store in {bootstrap.data} yet", "start the daemon: 'vedette run'")
        return
    try:
        found = numbers.read(bootstrap.data, sinks)
    except PermissionError:
        yield Check("store", "failed", f"{bootstrap.data} is closed to you", "ask as the service's user, or as root")
        return
    yield from _store(found)
    yield from _books(found)
    yield from _daemon(bootstrap)


def _files(bootstrap: Bootstrap) -> Iterator[Check]:
    folder = bootstrap.configuration
    for path in (folder / FILE, folder / ENVELOPE):
        if path.exists() and path.stat().st_mode & stat.S_IWOTH:
            yield Check("files", "warning", f"everybody may write {path}", f"chmod o-w {path}")
    if bootstrap.data.exists() and bootstrap.data.stat().st_mode & 0o077:
        yield Check(
            "files", "warning", f"others than its owner may enter {bootstrap.data}", f"chmod 700 {bootstrap.data}"
        )


def _store(found: Numbers) -> Iterator[Check]:
    space = f"{found.free_bytes / 1e9:,.1f} GB free, the store has {found.database_bytes / 1e9:,.2f} GB"
    if found.free_bytes < LEAST_BYTES:
        yield Check("disk", "warning", space, "make room, or lower alerts.retention_bytes and dead_letters.max_bytes")
    else:
        yield Check("disk", "ok", space)
    if found.wal_bytes > MOST_WAL_BYTES:
        held = f"the write-ahead log has {found.wal_bytes / 1e6:,.0f} MB: something reads the store for long"
        yield Check("write-ahead log", "warning", held, "look for 'vedette' commands or copies that hang, and end them")
    age = 0.0 if found.checkpoint is None else (clock() - found.checkpoint) / SECOND
    unsigned = found.leaves - found.signed
    said = f"{found.leaves:,} leaves, {unsigned:,} not signed yet"
    if unsigned and age > _UNSIGNED_S:
        remedy = "start the daemon: it signs what it finds; 'vedette audit verify' says whether the log holds"
        yield Check("audit log", "warning", said, remedy)
    else:
        yield Check("audit log", "ok", said)


def _books(found: Numbers) -> Iterator[Check]:
    for sink, waiting in found.waiting.items():
        age = 0.0 if waiting.oldest is None else (clock() - waiting.oldest) / SECOND
        if age > LONGEST_WAIT_S:
            said = f"{waiting.alerts:,} alerts wait, the oldest for {age / 60:,.0f} minutes"
            yield Check(f"outbox of {sink}", "warning", said, "see below what is wrong with the sink")
        if refused := found.counters.get(sink, {}).get("refused", 0):
            said = f"{refused:,} documents were refused for good; they are kept"
            yield Check(f"outbox of {sink}", "warning", said, "the daemon's log says why: 'document rejected'")
    for stream in found.streams:
        counted = found.counters.get(stream, {})
        if kept := counted.get("quarantined", 0):
            yield Check(f"stream {stream}", "warning", f"{kept:,} records could not be read", "vedette deadletter list")
        if late := sum(number for name, number in counted.items() if name.endswith(".late")):
            said = f"{late:,} events came too late for windows"
            yield Check(f"stream {stream}", "warning", said, "vedette replay --late, where the source still has them")


def _daemon(bootstrap: Bootstrap) -> Iterator[Check]:
    try:
        streams = ask(bootstrap.data, {"do": "status"})
    except VedetteError as error:
        yield Check("daemon", "failed", str(error))
        return
    if streams is None:
        yield Check(
            "daemon", "warning", f"none runs over {bootstrap.data}", "systemctl start vedette, or 'vedette run'"
        )
        return
    for id, one in streams.items():
        yield _stream(id, one)
    if bootstrap.listen is not None:
        yield _health(bootstrap.listen)


def _stream(id: str, one: Mapping[str, Any]) -> Check:
    match one["status"]:
        case "ok":
            return Check(f"stream {id}", "ok", "reads")
        case "paused":
            return Check(f"stream {id}", "warning", one["reason"], f"vedette resume {id}")
    return Check(f"stream {id}", "failed", one["reason"], "see its source and sinks below, and the daemon's log")


def _health(listen: str) -> Check:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(4096).decode("utf-8", "replace")
    except OSError as error:
        return Check("health", "failed", f"http://{listen}/readyz does not answer: {error}", "see the daemon's log")
    finally:
        connection.close()
    if answer.status != 200:
        return Check("health", "warning", f"http://{listen}/readyz: {text}")
    if not _is_loopback(host):
        return Check("health", "warning", f"metrics are served on {listen} without a login",
                     "listen on 127.0.0.1, or let a firewall say who may read them")  # fmt: skip
    return Check("health", "ok", f"http://{listen}/readyz says ok")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
