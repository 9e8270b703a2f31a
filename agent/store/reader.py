"""The reading side of the store: read-only, short transactions, safe beside a running daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw
import orjson

from agent.audit import Action, Entry, Leaf
from agent.audit.leaf import END_OF_TIME, decode, member
from agent.errors import ConfigError
from agent.model import Cursor
from agent.normalise.clock import to_text

_ALERTS = """
    SELECT number, id, stream, rule_id, title, level, time, created, deliver, repeats, acked, acked_by, verdict, note,
           coalesce((SELECT document FROM alert AS newer WHERE newer.id = alert.id AND newer.revision = 'settled'),
                    document)
    FROM alert
"""
ALERT_COLUMNS = ("number", "id", "stream", "rule_id", "title", "level", "time", "created", "deliver", "repeats",
                 "acked", "acked_by", "verdict", "note", "document")  # fmt: skip
LEVELS = ("informational", "low", "medium", "high", "critical")
_PAGE = 10_000
_ALERT_PAGE = 500
"""Alerts are read with their documents."""
_FAR = 2**62
_AS_BYTES = ", ".join(f"coalesce(CAST({name} AS BLOB), x'')" for name in ("bytes", "members", "hash"))
"""SQLite does not hold a tamperer to the types of columns; what he leaves there is judged as bytes."""
_EXTENT = """
    SELECT (SELECT coalesce(max(number) + 1, 0) FROM leaf),
           (SELECT count(*) FROM alert) - (SELECT count(*) FROM alert WHERE number < 1),
           (SELECT coalesce(max(size), 0) FROM checkpoint)
"""
_CHECKPOINTS = """
    SELECT size, CAST(time AS INTEGER), CAST(note AS BLOB) FROM checkpoint
    WHERE size > ? AND size <= ? ORDER BY size LIMIT ?
"""
_MEMBERS = """
    SELECT number, CAST(leaf AS INTEGER), CAST(id AS BLOB), CAST(revision AS BLOB),
           coalesce(CAST(document AS BLOB), x'')
    FROM alert WHERE number > ?1 AND (?2 IS NULL OR id = ?2) ORDER BY number LIMIT ?3
"""


class Reader:
    """A read-only connection to the store in *folder*; ConfigError if there is none."""

    def __init__(self, folder: Path) -> None:
        path = folder / "vedette.db"
        if not path.exists():
            raise ConfigError(f"no store in {folder}: run 'vedette run --data {folder}' first, or name another --data")
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._connection.set_busy_timeout(10_000)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return list(self._connection.execute(sql, values))

    def cursor(self, stream: str) -> Cursor | None:
        """Return where *stream* stands, or None if it has never committed."""
        rows = self.rows("SELECT cursor FROM stream WHERE id = ?", stream)
        return orjson.loads(rows[0][0]) if rows else None

    def paused(self) -> dict[str, str]:
        """Return the streams that are paused, and by whom since when."""
        sql = "SELECT stream, leaf, CAST(bytes AS BLOB) FROM paused JOIN leaf ON leaf.number = leaf"
        leaves = ((stream, decode(data)) for stream, _, data in self.rows(sql))
        return {stream: f"paused by {leaf.actor} since {to_text(leaf.time)}" for stream, leaf in leaves}

    def counters(self, scope: str | None = None) -> dict[str, dict[str, int]]:
        """Return every number by scope (a stream, a sink) and name."""
        found: dict[str, dict[str, int]] = {}
        for name, key, value in self.rows("SELECT scope, name, value FROM counter ORDER BY scope, name"):
            if scope in (None, name):
                found.setdefault(name, {})[key] = value
        return found

    def waiting(self, sink: str, cap: int, *, alerts_only: bool = False) -> int:
        """Return how many documents wait for *sink*, counting no further than *cap*."""
        number = 0
        for which in ("NOT NULL",) if alerts_only else ("NOT NULL", "NULL"):
            sql = f"SELECT 1 FROM outbox WHERE sink = ? AND refused IS NULL AND alert IS {which} LIMIT ?"  # noqa: S608
            number += int(self.rows(f"SELECT count(*) FROM ({sql})", sink, cap - number)[0][0])  # noqa: S608
        return number

    def alerts(
        self, *, id: str | None = None, rule: str | None = None, min_level: str | None = None,
        since: int | None = None, open_only: bool = False, limit: int = -1,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Yield stored alerts, oldest evidence first, with the newest *document*; *id* may be a unique beginning."""
        wanted: list[tuple[str, Any]] = [("revision = ?", "fired")]
        if id is not None:
            wanted.append(("id >= ?", id))
            wanted.append(("id < ?", id + "g"))
        if rule is not None:
            wanted.append(("rule_id = ?", rule))
        if since is not None:
            wanted.append(("time >= ?", since))
        if min_level is not None:
            levels = LEVELS[LEVELS.index(min_level) :]
            wanted.append(("instr(?, '|' || level || '|')", f"|{'|'.join(levels)}|"))
        if open_only:
            wanted.append(("acked IS ?", None))
        where = f"WHERE {' AND '.join(condition for condition, _ in wanted)}"
        sql = f"{_ALERTS} {where} ORDER BY time, number LIMIT ?"
        for row in self._connection.execute(sql, (*(value for _, value in wanted), limit)):
            alert = dict(zip(ALERT_COLUMNS, row, strict=True))
            alert["document"] = orjson.loads(alert["document"])
            yield alert

    def dead_letters(self, limit: int = -1) -> Iterator[dict[str, Any]]:
        """Yield dead letters, oldest first; *raw* is None where only its digest is kept."""
        names = "identity, stream, source, partition, path, key, format, lineage, reason, time, size, digest, raw"
        sql = f"SELECT {names} FROM dead_letter ORDER BY time, identity LIMIT ?"  # noqa: S608
        for row in self._connection.execute(sql, (limit,)):
            letter = dict(zip(names.split(", "), row, strict=True))
            letter["key"] = orjson.loads(letter["key"])
            yield letter

    def extent(self) -> tuple[int, int, int]:
        """Return how many leaves there are, how many alerts are stored and the size last signed, at one moment.

        An alert with a number that the store never gives is as good as deleted: `alert_members` does not see it either.
        """
        leaves, alerts, signed = self.rows(_EXTENT)[0]
        return leaves, alerts, signed

    def leaves(self, before: int | None = None) -> Iterator[Entry]:
        """Yield the audit log from the first leaf on; a page at a time, so that a writer is not held up."""
        sql = f"SELECT number, {_AS_BYTES} FROM leaf WHERE number > ? AND number < ? ORDER BY number LIMIT ?"  # noqa: S608
        end = _FAR if before is None else before
        rows = self.rows(sql, -1, end, _PAGE)
        while rows:
            for number, data, members, hash in rows:
                yield Entry(number, data, members_of(members), hash)
            rows = self.rows(sql, rows[-1][0], end, _PAGE)

    def checkpoints(self, upto: int = _FAR) -> Iterator[tuple[int, int, str]]:
        """Yield size, time and note of what was signed, up to a size of *upto*; a page at a time, as `leaves`."""
        rows = self.rows(_CHECKPOINTS, -_FAR, upto, _PAGE)
        while rows:
            for size, time, note in rows:
                yield size, min(max(time or 0, 0), END_OF_TIME - 1), text_of(note)
            rows = self.rows(_CHECKPOINTS, rows[-1][0], upto, _PAGE)

    def recorded(self, *, action: str | None = None, since: int | None = None, limit: int = 100) -> list[Leaf]:
        """Return the newest leaves, oldest first."""
        sql = """
            SELECT coalesce(CAST(bytes AS BLOB), x'') FROM leaf
            WHERE NOT json_valid(CAST(bytes AS TEXT))
               OR (?1 IS NULL OR CAST(bytes AS TEXT) ->> 'action' = ?1)
              AND (?2 IS NULL OR CAST(bytes AS TEXT) ->> 'time' >= ?2)
            ORDER BY number DESC LIMIT ?3
        """
        return [decode(data) for (data,) in reversed(self.rows(sql, action, since, limit))]

    def backwards(self, action: Action) -> Iterator[Leaf]:
        """Yield the leaves of *action*, the newest first; whoever has found his own reads no further.

        A leaf is canonical JSON, so its action stands at its very beginning: those of others cost no parsing.
        """
        begins = b'{"action":"%s",' % action.encode()
        sql = "SELECT CAST(bytes AS BLOB) FROM leaf WHERE substr(CAST(bytes AS BLOB), 1, ?) = ? ORDER BY number DESC"
        for (data,) in self._connection.execute(sql, (len(begins), begins)):
            yield decode(data)

    def configurations(self) -> list[tuple[int, bytes, bytes]]:
        """Return number, text and envelope of every configuration that was accepted, the newest at the end."""
        return self.rows("SELECT revision, text, envelope FROM configuration ORDER BY revision")

    def members(self, leaf: int) -> tuple[bytes, ...]:
        """Return what the leaf of a batch stands for."""
        rows = self.rows("SELECT CAST(members AS BLOB) FROM leaf WHERE number = ?", leaf)
        return members_of(rows[0][0]) if rows else ()

    def alert_members(self, id: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield for stored alerts the number of their leaf and what the leaf must have as its member; *id*: of one.

        A page at a time, as `leaves`.
        """
        rows = self.rows(_MEMBERS, 0, id, _ALERT_PAGE)
        while rows:
            for _, leaf, alert, revision, document in rows:
                yield -1 if leaf is None else leaf, member(text_of(alert), text_of(revision), document)
            rows = self.rows(_MEMBERS, rows[-1][0], id, _ALERT_PAGE)


def text_of(data: bytes | None) -> str:
    """Return text that was read as bytes: what is no UTF-8 becomes something that no signature fits."""
    return (data or b"").decode("utf-8", "replace")


def members_of(lines: bytes) -> tuple[bytes, ...]:
    """Return the members of a leaf, as the store keeps them: one a line."""
    return tuple(lines.split(b"\n")) if lines else ()
