"""The writing side of the store: one thread, one connection, grouped commits, and the audit log inside them."""

from __future__ import annotations

import fcntl
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import apsw
import orjson

from agent.audit import Action, Entry
from agent.audit.copy import of_checkpoint, of_leaf
from agent.audit.leaf import batch, member
from agent.errors import FULL_DISK_S, ConfigError, RetryableError, VedetteError, full_disk_s
from agent.model import SECOND, Alert, Cursor, DeadLetter, Outcome, Revision, Timestamp, digest
from agent.state import Changes, State, StoredDelta, StoredPart
from agent.store.auditlog import AuditLog
from agent.store.reader import Reader, members_of

SCHEMA_VERSION = 4
DATABASE = "vedette.db"
ACCOUNT_US = 3600 * SECOND
"""A stream whose batches store no alert is put on record so often."""
_BACKOFF_CAP_S = 30.0
_PATIENCE_S = 900.0
"""No wait is longer, whatever the other side asks for."""
_GROUP = 64

T = TypeVar("T")


class StoreBroken(VedetteError):
    """A write or fsync failed and the file's state is unknown: end the process, the next start recovers."""


@dataclass(frozen=True)
class Books:
    """How a fetch's records were disposed of: *received* is the sum of the others."""

    received: int
    scored: int
    filtered: Mapping[str, int]
    quarantined: int

    def counts(self) -> dict[str, int]:
        named = {f"filtered.{name}": number for name, number in self.filtered.items()}
        return {"received": self.received, "scored": self.scored, "quarantined": self.quarantined, **named}


@dataclass(frozen=True)
class Commit:
    """One batch's whole effect: it happens at once or not at all.

    *sinks* get each deliverable alert that is not stored yet; *spilled* are full sinks that would have, and count it.
    *released* are dead letters that were tried again and read. *events* are audited each; *provenance* says in the
    batch's own leaf under what it ran.
    """

    stream: str
    cursor: Cursor
    as_of: Timestamp
    watermark: Timestamp
    books: Books
    changes: Changes
    alerts: Sequence[Alert] = ()
    sinks: Sequence[str] = ()
    spilled: Sequence[str] = ()
    dead: Sequence[DeadLetter] = ()
    released: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[tuple[Action, Mapping[str, Any]]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A document in the outbox: a revision of an alert, or with *revision* None a piece of the audit log."""

    number: int
    id: str
    revision: Revision | None
    body: bytes
    attempts: int
    repeat: bool
    read: Timestamp | None = None
    """When the events of an alert were read."""
    dataset: Literal["alert", "audit"] = "alert"


_Job = tuple[Callable[[apsw.Connection], Any], "Future[Any]"]


class Store:
    """The state of one data folder. Only one process at a time may hold it (a lock file says who)."""

    def __init__(self, folder: Path, *, dead_letter_bytes: int = 1 << 30) -> None:
        """Open or create the store in *folder*.

        ConfigError if another process holds it or its version is unknown, TrustError if its audit log does not hold.
        """
        self.folder = folder
        self.dead_letter_bytes = dead_letter_bytes
        self._lock = _take_lock(folder)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._broken: StoreBroken | None = None
        try:
            connection = _open(folder / DATABASE)
            self._log = AuditLog(connection, folder)
        except BaseException:
            self._lock.close()
            raise
        self._offered: set[int] = set()
        """Rows handed out and not settled: if settling fails, the next offer must say that it repeats."""
        self._boot = connection.execute("SELECT coalesce(max(number), 0) FROM outbox").get
        self._dead_bytes: int = connection.execute("SELECT coalesce(sum(length(raw)), 0) FROM dead_letter").get
        self._thread = threading.Thread(target=self._write, args=(connection,), name="store-writer", daemon=True)
        self._thread.start()

    # --- what callers ask ---------------------------------------------------------------------------------------------

    def load(self, stream: str) -> tuple[Cursor | None, State]:
        """Return where *stream* stands and its operators' state."""
        with Reader(self.folder) as reader:
            cursor = reader.cursor(stream)
            parts = [StoredPart(*row) for row in reader.rows(_PARTS, stream)]
            deltas = [StoredDelta(*row) for row in reader.rows(_DELTAS, stream)]
        return cursor, State(parts, deltas)

    def commit(self, commit: Commit) -> int:
        """Store the batch's effect and return how many of its alerts are new; it is on disk when this returns."""
        return self._do(lambda connection: self._commit(connection, commit))

    def waiting(self, reader: Reader, sink: str, limit: int, now: Timestamp) -> list[Waiting]:
        """Return up to *limit* documents that *sink* should be offered now: alerts first, then the oldest."""
        never = now + int(_PATIENCE_S * SECOND)  # a moment that far off was not set by this clock: it was set back
        rows = reader.rows(_ALERTS_WAIT, sink, now, never, limit)
        if len(rows) < limit:
            rows += reader.rows(_AUDIT_WAITS, sink, now, never, limit - len(rows))
        found = [self._waiting(*row) for row in rows]
        self._offered.update(item.number for item in found)
        return found

    def settle(self, sink: str, answers: Iterable[tuple[Waiting, Outcome]], now: Timestamp) -> None:
        """Take what *sink* has answered into account, item by item."""
        settled = list(answers)
        self._do(lambda connection: _settle(connection, sink, settled, now))
        self._offered.difference_update(item.number for item, _ in settled)

    def do(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run *work* on the writing connection, in a transaction that is on disk when this returns."""
        return self._do(work)

    def prune(self, now: Timestamp, *, days: int, max_bytes: int) -> int:
        """Forget delivered alerts that are older than *days* or, oldest first, beyond *max_bytes*; return how many."""

        def work(connection: apsw.Connection) -> int:
            gone = _prune(connection, now - days * 86_400 * SECOND, max_bytes)
            if gone:
                data = {"alerts": len(gone), "last_leaf": max(gone), "days": days, "max_bytes": max_bytes}
                self._log.append(connection, "alerts-pruned", time=now, data=data)
            return len(gone)

        return self._do(work)

    def remember(self, stream: str, changes: Changes) -> None:
        """Store *changes* to what the operators of *stream* know, without a batch."""
        self._do(lambda connection: _store_changes(connection, stream, changes))

    def forget(self, stream: str) -> None:
        """Drop where *stream* stands and what its operators know."""
        self._do(lambda connection: _forget(connection, stream))

    def acknowledge(self, id: str, *, by: str, verdict: str | None, note: str | None, now: Timestamp) -> int:
        """Note that *by* has looked at the alert; return how many alerts that was (0: no such id)."""
        return self._do(lambda connection: self._acknowledge(connection, id, by, verdict, note, now))

    def pause(self, stream: str, by: str, now: Timestamp, *, paused: bool) -> str:
        """Remember that *by* has paused *stream*, or lets it go on; return what `Reader.paused` says of it then."""

        def work(connection: apsw.Connection) -> None:
            action: Action = "stream-paused" if paused else "stream-resumed"
            leaf = self._log.append(connection, action, time=now, actor=by, stream=stream, data={})
            connection.execute("DELETE FROM paused WHERE stream = ?", (stream,))
            if paused:
                connection.execute("INSERT INTO paused VALUES (?, ?)", (stream, leaf))

        self._do(work)
        with Reader(self.folder) as reader:
            return reader.paused().get(stream, "")

    def record(self, stream: str, action: Action, data: Mapping[str, Any], now: Timestamp, actor: str = "") -> int:
        """Audit that *actor* (empty: the agent itself) does *action*; return the leaf's number when it is on disk."""
        return self._do(
            lambda connection: self._log.append(connection, action, time=now, actor=actor, stream=stream, data=data)
        )

    def accept(self, revision: int, text: bytes, envelope: bytes, facts: Mapping[str, Any], now: Timestamp) -> None:
        """Keep a configuration that was accepted, and audit *facts* about it. A number stands for one text only."""

        def work(connection: apsw.Connection) -> None:
            leaf = self._log.append(connection, "configuration-accepted", time=now, data=facts)
            connection.execute("DELETE FROM configuration WHERE revision = ? AND text = ?", (revision, text))
            connection.execute("INSERT INTO configuration VALUES (?, ?, ?, ?)", (revision, text, envelope, leaf))

        self._do(work)

    def checkpoint(self) -> None:
        """Sign all leaves now, for whoever cannot wait until it is due."""
        self._do(lambda connection: self._log.sign(connection, clock()))

    @property
    def audit_sinks(self) -> Sequence[str]:
        """The sinks that get a copy of the whole audit log; kept in the store until others are set."""
        return self._log.mark.sinks

    @audit_sinks.setter
    def audit_sinks(self, sinks: Sequence[str]) -> None:
        self._do(lambda connection: self._log.copy_to(connection, sinks))

    @property
    def dead_bytes(self) -> int:
        """Bytes of the records that are kept as dead letters."""
        return self._dead_bytes

    def close(self) -> None:
        """Finish what was handed over, sign it, fold the log into the file and let go of the lock; safe twice."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._lock.close()

    # --- the writer ---------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[apsw.Connection], T]) -> T:
        if self._broken:
            raise self._broken
        future: Future[T] = Future()
        self._jobs.put((work, future))
        return future.result()

    def _write(self, connection: apsw.Connection) -> None:
        running = True
        while running:
            group = self._next_group()
            running = None not in group
            self._run([job for job in group if job is not None], connection, last=not running)
        connection.close()

    def _next_group(self) -> list[_Job | None]:
        """Wait for work and return what there is of it; nothing when a checkpoint is due."""
        try:
            group = [self._jobs.get(timeout=None if self._broken else self._log.wait())]
        except queue.Empty:
            return []
        while len(group) < _GROUP and not self._jobs.empty():
            group.append(self._jobs.get())
        return group

    def _run(self, jobs: list[_Job], connection: apsw.Connection, *, last: bool) -> None:
        """Do *jobs* in one transaction, each in a savepoint, and answer them after the fsync."""
        if self._broken:  # nothing more is written, nor signed, over a file that is not trusted
            for _, future in jobs:
                future.set_exception(self._broken)
            return
        answers: list[tuple[Future[Any], Any]] = []
        before, dead_before = self._log.mark, self._dead_bytes
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, future in jobs:
                mark, dead = self._log.mark, self._dead_bytes
                try:
                    with connection:
                        answers.append((future, work(connection)))
                except Exception as error:
                    if isinstance(error, apsw.Error) and not isinstance(error, apsw.ConstraintError):
                        raise
                    self._log.mark, self._dead_bytes = mark, dead
                    future.set_exception(error)
            if last or self._log.wait() == 0:
                self._log.sign(connection, clock())
            connection.execute("COMMIT")
        except Exception as error:
            self._log.mark, self._dead_bytes = before, dead_before
            failure = self._judge(error, connection)
            for _, future in jobs:
                if not future.done():
                    future.set_exception(failure)
            return
        for future, answer in answers:
            future.set_result(answer)

    def _judge(self, error: Exception, connection: apsw.Connection) -> Exception:
        """Roll back and say what the caller can do: wait (disk full), or nothing (disk sick)."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except apsw.Error as second:
            error = second
        if isinstance(error, apsw.FullError):
            message = f"no space left in {self.folder}: nothing was stored; free space, work goes on then"
            return RetryableError(message, FULL_DISK_S)
        self._broken = StoreBroken(f"store {self.folder / DATABASE}: {error}; ending, to recover at the next start")
        return self._broken

    def _commit(self, connection: apsw.Connection, commit: Commit) -> int:
        cursor = orjson.dumps(commit.cursor)
        accounted = connection.execute(
            "INSERT INTO stream (id, cursor, as_of, watermark) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
            " SET cursor = excluded.cursor, as_of = excluded.as_of, watermark = excluded.watermark RETURNING accounted",
            (commit.stream, cursor, commit.as_of, commit.watermark),
        ).get
        _store_changes(connection, commit.stream, commit.changes)
        stored = [(alert, _store_alert(connection, commit, alert, self._log.size)) for alert in commit.alerts]
        new = [(alert, one) for alert, one in stored if one is not None]
        for identity in commit.released:
            kept = connection.execute("DELETE FROM dead_letter WHERE identity = ? RETURNING length(raw)", (identity,))
            self._dead_bytes -= sum(size or 0 for (size,) in kept)
        dead = [self._store_dead(connection, commit.stream, letter) for letter in commit.dead]
        counts = {**commit.changes.counts, **commit.counts, **commit.books.counts()}
        levels = Counter(f"alerts.{alert.level}" for alert, _ in new)
        levels["suppressed"] = sum(alert.revision == "fired" and one is None for alert, one in stored)
        _add(connection, commit.stream, {**counts, **levels, "alerts": len(new), "dead_letters_cut": dead.count("cut")})
        for sink in commit.spilled:
            _add(connection, sink, {"spilled": sum(alert.deliver for alert, _ in new)})
        if new or any(dead) or accounted is None or commit.as_of - accounted >= ACCOUNT_US:
            self._account(connection, commit, cursor, [one for _, one in new])
        for action, data in commit.events:
            self._log.append(connection, action, time=commit.as_of, stream=commit.stream, data=data)
        return len(new)

    def _account(self, connection: apsw.Connection, commit: Commit, cursor: bytes, members: Sequence[bytes]) -> None:
        """Give the batch its leaf."""
        books = dict(connection.execute(_BOOKS, (commit.stream,)))
        data = batch(members, cursor=cursor, books=books, provenance=commit.provenance)
        self._log.append(connection, "batch", time=commit.as_of, stream=commit.stream, data=data, members=members)
        connection.execute("UPDATE stream SET accounted = ? WHERE id = ?", (commit.as_of, commit.stream))

    def _acknowledge(
        self, connection: apsw.Connection, id: str, by: str, verdict: str | None, note: str | None, now: Timestamp
    ) -> int:
        connection.execute(
            "UPDATE alert SET acked = ?, acked_by = ?, verdict = coalesce(?, verdict), note = coalesce(?, note)"
            " WHERE id = ?",
            (now, by, verdict, note, id),
        )
        found = connection.changes()
        if found:
            data = {"alert": id, "verdict": verdict, "note": note}
            self._log.append(connection, "alert-acknowledged", time=now, actor=by, data=data)
        return found

    def _waiting(self, number: int, attempts: int, *row: Any) -> Waiting:
        """Return what is to be offered for a row of the outbox, joined with what it stands for."""
        repeat = attempts > 0 or number <= self._boot or number in self._offered
        id, revision, document, read, leaf, data, members, size, time, note = row
        if id is not None:
            return Waiting(number, id, revision, document, attempts, repeat, read)
        if leaf is not None:
            copy = of_leaf(self._log.origin, Entry(leaf, data, members_of(members)))
        else:
            copy = of_checkpoint(self._log.origin, size, time, note)
        return Waiting(number, copy.id, None, copy.body, attempts, repeat, dataset=copy.dataset)

    def _store_dead(self, connection: apsw.Connection, stream: str, letter: DeadLetter) -> Literal["", "kept", "cut"]:
        """Keep *letter*, without its raw bytes where the store's cap is reached; "" if it is known."""
        reference, raw = letter.reference, letter.raw
        cut = self._dead_bytes + len(raw) > self.dead_letter_bytes
        connection.execute(
            "INSERT OR IGNORE INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                reference.identity,
                stream,
                reference.source,
                reference.partition,
                reference.path,
                orjson.dumps(reference.key),
                reference.format,
                reference.lineage,
                letter.reason,
                letter.time,
                len(raw),
                digest(raw.hex()),
                None if cut else raw,
            ),
        )
        if not connection.changes():
            return ""
        self._dead_bytes += 0 if cut else len(raw)
        return "cut" if cut else "kept"


_PARTS = "SELECT operator, part, sequence, block FROM state_part WHERE stream = ?"
_DELTAS = "SELECT operator, sequence, block FROM state_delta WHERE stream = ? ORDER BY sequence"
_ALERTS_WAIT = """
    SELECT outbox.number, attempts, id, revision, document, created, NULL, NULL, NULL, NULL, NULL, NULL
    FROM outbox JOIN alert ON alert.number = outbox.alert
    WHERE sink = ?1 AND refused IS NULL AND outbox.alert IS NOT NULL AND (not_before <= ?2 OR not_before > ?3)
    ORDER BY outbox.number LIMIT ?4
"""
_AUDIT_WAITS = """
    SELECT outbox.number, attempts, NULL, NULL, NULL, NULL, leaf.number, bytes, members, size, time, note
    FROM outbox LEFT JOIN leaf ON leaf.number = outbox.leaf LEFT JOIN checkpoint ON size = outbox.checkpoint
    WHERE sink = ?1 AND refused IS NULL AND alert IS NULL AND (not_before <= ?2 OR not_before > ?3)
    ORDER BY outbox.number LIMIT ?4
"""
_BOOKS = "SELECT name, value FROM counter WHERE scope = ? AND name IN ('received', 'scored', 'quarantined')"


def _take_lock(folder: Path) -> IO[str]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise ConfigError(
            f"data folder {folder} is in use by process {holder}; stop it or choose another --data"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _open(path: Path) -> apsw.Connection:
    """Open the database for writing, with the settings that its promises rest on, and make or check its schema."""
    path.touch(mode=0o600)
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    if connection.pragma("journal_mode", "wal") != "wal":
        raise ConfigError(f"{path}: this file system cannot hold a write-ahead log; choose a local folder for --data")
    connection.pragma("synchronous", "full")
    connection.pragma("foreign_keys", True)
    connection.pragma("journal_size_limit", 64 << 20)
    version = connection.pragma("user_version")
    if version == 0:
        with connection:
            connection.execute(files("agent.store").joinpath("schema.sql").read_text("utf-8"))
            connection.pragma("user_version", SCHEMA_VERSION)
    elif version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: store version {version}, this Vedette reads {SCHEMA_VERSION}; use the Vedette that wrote it, or"
            " another --data"
        )
    return connection


def _store_changes(connection: apsw.Connection, stream: str, changes: Changes) -> None:
    connection.executemany(
        "INSERT INTO state_delta VALUES (?, ?, ?, ?)",
        [(stream, delta.sequence, delta.operator, delta.block) for delta in changes.deltas],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO state_part VALUES (?, ?, ?, ?, ?)",
        [(stream, part.operator, part.part, part.sequence, part.block) for part in changes.parts],
    )
    if changes.forget:
        connection.execute("DELETE FROM state_delta WHERE stream = ? AND sequence <= ?", (stream, changes.forget))


def _store_alert(connection: apsw.Connection, commit: Commit, alert: Alert, leaf: int) -> bytes | None:
    """Store *alert* and queue it for the sinks; return what stands for it in *leaf*, or None if it is known."""
    if alert.revision == "settled" and not _says_more(connection, alert):
        return None
    document = orjson.dumps(alert.document)
    columns = "id, revision, stream, rule_id, title, level, time, created, deliver, leaf, bytes, document"
    about = (alert.id, alert.revision, commit.stream, alert.rule_id, alert.title, alert.level, alert.time)
    connection.execute(
        f"INSERT OR IGNORE INTO alert ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (*about, commit.as_of, alert.deliver, leaf, len(document), document),
    )
    if not connection.changes():
        connection.execute(
            "UPDATE alert SET repeats = repeats + 1 WHERE id = ? AND revision = ?", (alert.id, alert.revision)
        )
        return None
    if alert.deliver:
        number = connection.last_insert_rowid()
        connection.executemany(
            "INSERT INTO outbox (sink, alert, attempts) VALUES (?, ?, ?)",
            [(sink, number, int(alert.again)) for sink in commit.sinks],
        )
    return member(alert.id, alert.revision, document)


def _says_more(connection: apsw.Connection, alert: Alert) -> bool:
    """Say whether a settled *alert* differs in reason, explanation or evidence from what fired."""
    fired = connection.execute("SELECT document FROM alert WHERE id = ? AND revision = 'fired'", (alert.id,)).get
    return fired is not None and _substance(orjson.loads(fired)) != _substance(alert.document)


def _substance(document: Mapping[str, Any]) -> tuple[Any, ...]:
    own = document["vedette"]
    return document["event"]["reason"], own["explain"], own["evidence"]


def _forget(connection: apsw.Connection, stream: str) -> None:
    for table, column in (("stream", "id"), ("state_part", "stream"), ("state_delta", "stream")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (stream,))  # noqa: S608


def _settle(connection: apsw.Connection, sink: str, answers: Sequence[tuple[Waiting, Outcome]], now: Timestamp) -> None:
    counts = {"delivered": 0, "refused": 0, "retried": 0}
    for item, outcome in answers:
        if outcome.state == "delivered":
            connection.execute("DELETE FROM outbox WHERE number = ?", (item.number,))
            counts["delivered"] += 1
        elif outcome.state == "rejected":
            connection.execute("UPDATE outbox SET refused = ? WHERE number = ?", (outcome.reason, item.number))
            counts["refused"] += 1
        else:
            connection.execute(
                "UPDATE outbox SET attempts = attempts + 1, not_before = ? WHERE number = ?",
                (now + int(backoff(item.attempts, outcome) * SECOND), item.number),
            )
            counts["retried"] += 1
    _add(connection, sink, counts)


def _prune(connection: apsw.Connection, before: Timestamp, max_bytes: int) -> list[int]:
    """Forget alerts and return the leaf of each."""
    idle = "NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.alert = alert.number)"
    sql = f"DELETE FROM alert WHERE created < ? AND {idle} RETURNING leaf"  # noqa: S608
    gone = [leaf for (leaf,) in connection.execute(sql, (before,))]
    excess = connection.execute("SELECT coalesce(sum(bytes), 0) FROM alert").get - max_bytes
    if excess > 0:
        sql = (
            "DELETE FROM alert WHERE number IN (SELECT number FROM"  # noqa: S608
            f" (SELECT number, sum(bytes) OVER (ORDER BY number) - bytes AS older FROM alert WHERE {idle})"
            " WHERE older < ?) RETURNING leaf"
        )
        gone += [leaf for (leaf,) in connection.execute(sql, (excess,))]
    _add(connection, "", {"alerts_pruned": len(gone)})
    return gone


def backoff(attempts: int, error: Exception | Outcome | None = None) -> float:
    """Return seconds to wait before the next try after *error*, of which there were *attempts* in a row.

    What the other side asked for; shortly where a disk is full; else doubling with full jitter.
    """
    asked = full_disk_s(error) if isinstance(error, OSError) else getattr(error, "retry_after", None)
    if asked is not None:
        return min(asked, _PATIENCE_S)
    return random.uniform(0.1, min(_BACKOFF_CAP_S, 2.0 ** min(attempts, 16)))  # noqa: S311


def _add(connection: apsw.Connection, scope: str, counts: Mapping[str, int]) -> None:
    connection.executemany(
        "INSERT INTO counter VALUES (?, ?, ?) ON CONFLICT (scope, name) DO UPDATE SET value = value + excluded.value",
        [(scope, name, number) for name, number in counts.items() if number],
    )


def clock() -> Timestamp:
    """Return the wall clock in microseconds since 1970 UTC."""
    return time.time_ns() // 1000
