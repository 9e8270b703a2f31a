"""The writer's end of the audit log: leaves are appended inside the caller's transaction, checkpoints signed in it.

Only the store's writer thread uses it. A leaf is on disk with the effect that it stands for, or neither is.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apsw

from agent.audit import Action, LogBroken, Signer
from agent.audit.leaf import encode
from agent.audit.merkle import Frontier, leaf_hash
from agent.audit.note import Checkpoint, open_checkpoint
from agent.errors import TrustError
from agent.model import Timestamp
from agent.store.reader import text_of

KEY = "audit.key"
PUBLIC = "audit.pub"
CHECKPOINT_S = 1.0
"""Seconds between two checkpoints, at least; twice as many each time until there is a rest."""
MOST_CHECKPOINT_S = 60.0
"""Where that ends. A rest is twice as long, so at whatever pace leaves come, there is about one checkpoint a minute."""
_LEAVE_OFF = """
    UPDATE audit_sink SET
        leaf = coalesce((SELECT min(leaf) FROM outbox WHERE sink = ?1 AND alert IS NULL AND refused IS NULL), ?2),
        checkpoint = coalesce(
            (SELECT min(checkpoint) FROM outbox WHERE sink = ?1 AND alert IS NULL AND refused IS NULL), ?3
        )
    WHERE id = ?1
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the log is: what there is to append to, how much of it is signed, and which sinks get copies."""

    frontier: Frontier
    signed: int
    sinks: tuple[str, ...]


class AuditLog:
    """The log in one store, open for appending. Whoever rolls back what it wrote must put *mark* back too."""

    def __init__(self, connection: apsw.Connection, folder: Path) -> None:
        """Load the log and its key, or begin one; TrustError if it is not what its last checkpoint signs.

        This looks at what lies behind the last checkpoint, so it costs nothing that grows; `audit.verify` looks at
        everything.
        """
        begun = connection.execute("SELECT EXISTS (SELECT 1 FROM leaf)").get
        self._signer = _take_key(folder, begun=bool(begun))
        self.mark = _resume(connection, self._signer)
        self._due, self._last = time.monotonic(), -math.inf
        self._pause = CHECKPOINT_S
        if (signed := self.mark.signed) < self.size:
            # A crash leaves such, and so does who removes a checkpoint to edit behind it: it is signed, and said to be.
            found = {"first": signed, "last": self.size - 1}
            with connection:
                self.append(connection, "leaves-recovered", time=time.time_ns() // 1000, data=found)

    @property
    def size(self) -> int:
        return self.mark.frontier.size

    @property
    def origin(self) -> str:
        return self._signer.name

    def append(
        self,
        connection: apsw.Connection,
        action: Action,
        *,
        time: Timestamp,
        actor: str = "",
        stream: str = "",
        data: Mapping[str, Any],
        members: Sequence[bytes] = (),
    ) -> int:
        """Add a leaf and return its number."""
        number = self.size
        leaf = encode(number, action, time=time, actor=actor, stream=stream, data=data)
        hash = leaf_hash(leaf)
        connection.execute("INSERT INTO leaf VALUES (?, ?, ?, ?)", (number, hash, leaf, b"\n".join(members)))
        queue = [(sink, number) for sink in self.mark.sinks]
        connection.executemany("INSERT INTO outbox (sink, leaf) VALUES (?, ?)", queue)
        self.mark = replace(self.mark, frontier=self.mark.frontier.append(hash))
        return number

    def copy_to(self, connection: apsw.Connection, sinks: Sequence[str]) -> None:
        """Let *sinks* get a copy of all there is and will be, and no others; one that had some goes on from there."""
        known = self.mark.sinks
        for sink in set(known).difference(sinks):
            connection.execute(_LEAVE_OFF, (sink, self.size, self.size + 1))
            connection.execute("DELETE FROM outbox WHERE sink = ? AND alert IS NULL", (sink,))
        for sink in sorted(set(sinks).difference(known)):
            connection.execute("INSERT OR IGNORE INTO audit_sink VALUES (?, 0, 0)", (sink,))
            # it may have had some already, offered and not settled: attempts = 1 says so
            for what, number in (("leaf", "number"), ("checkpoint", "size")):
                connection.execute(
                    f"INSERT INTO outbox (sink, {what}, attempts) SELECT ?1, {number}, 1 FROM {what}"  # noqa: S608
                    f" WHERE {number} >= (SELECT {what} FROM audit_sink WHERE id = ?1) ORDER BY {number}",
                    (sink,),
                )
            connection.execute("UPDATE audit_sink SET leaf = NULL, checkpoint = NULL WHERE id = ?", (sink,))
        self.mark = replace(self.mark, sinks=tuple(sorted(set(sinks))))

    def wait(self) -> float | None:
        """Return seconds until a checkpoint is due; None if all is signed."""
        return None if self.size == self.mark.signed else max(0.0, self._due - time.monotonic())

    def sign(self, connection: apsw.Connection, now: Timestamp) -> None:
        """Add a checkpoint of all leaves, unless there is one."""
        if self.size == self.mark.signed:
            return
        before, self._last = self._last, time.monotonic()
        busy = self._last - before < 2 * MOST_CHECKPOINT_S
        self._pause = min(2 * self._pause, MOST_CHECKPOINT_S) if busy else CHECKPOINT_S
        self._due = self._last + self._pause
        frontier = self.mark.frontier
        note = self._signer.sign(Checkpoint(self.origin, frontier.size, frontier.root).text)
        connection.execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", (frontier.size, now, bytes(frontier), note))
        queue = [(sink, frontier.size) for sink in self.mark.sinks]
        connection.executemany("INSERT INTO outbox (sink, checkpoint) VALUES (?, ?)", queue)
        self.mark = replace(self.mark, signed=frontier.size)


def _resume(connection: apsw.Connection, signer: Signer) -> Mark:
    """Return where the log stands, held to the last checkpoint and to the leaves behind it."""
    last = connection.execute(
        "SELECT size, CAST(peaks AS BLOB), CAST(note AS BLOB) FROM checkpoint ORDER BY size DESC LIMIT 1"
    ).fetchone()
    frontier = Frontier()
    if last is not None:
        size, peaks, note = last
        signed = open_checkpoint(text_of(note), signer.verifier)
        frontier = Frontier.of(size, peaks)
        if (signed.size, signed.root) != (frontier.size, frontier.root):
            raise LogBroken(signer.name, size, f"the checkpoint of {size:,} leaves signs another root than is kept")
        newest = connection.execute("SELECT max(number) FROM leaf").get
        if newest is None or newest + 1 < size:
            first = 0 if newest is None else newest + 1
            raise LogBroken(signer.name, first, f"leaves from {first:,} on are missing: a checkpoint signs {size:,}")
    elif connection.execute("SELECT EXISTS (SELECT 1 FROM leaf)").get:  # the first leaf is signed in its transaction
        raise LogBroken(signer.name, 0, "there are leaves and no checkpoint: the checkpoints were removed")
    signed_size = frontier.size
    rows = "SELECT number, CAST(hash AS BLOB), CAST(bytes AS BLOB) FROM leaf WHERE number >= ? ORDER BY number"
    for number, hash, data in connection.execute(rows, (signed_size,)):
        if number != frontier.size or leaf_hash(data) != hash:
            raise LogBroken(signer.name, frontier.size, f"leaf {frontier.size:,} is missing or was edited")
        frontier = frontier.append(hash)
    sinks = connection.execute("SELECT id FROM audit_sink WHERE leaf IS NULL ORDER BY id")
    return Mark(frontier, signed_size, tuple(id for (id,) in sinks))


def _take_key(folder: Path, *, begun: bool) -> Signer:
    """Return the log's key, a new one if the log has no leaf yet; TrustError if it is gone or cannot be read."""
    path = folder / KEY
    if path.exists():
        signer = Signer.parse(path.read_text("utf-8"))
    elif begun:
        raise TrustError(f"{path} is missing and the audit log has begun: put it back, or begin anew in another --data")
    else:
        signer = Signer(f"vedette/{secrets.token_hex(16)}", secrets.token_bytes(32))
        _write(path, signer.secret)
    public = folder / PUBLIC
    if not public.exists():
        _write(public, str(signer.verifier))
    elif public.read_text("utf-8").strip() != str(signer.verifier):
        raise TrustError(f"{public} is not the public half of {path}: find out who changed one of them")
    return signer


def _write(path: Path, line: str) -> None:
    """Write a file of one line for its owner only, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.touch(mode=0o600)
    with part.open("w", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
