"""The SIEM as a source: every visible document of the matching indices once, whatever its `@timestamp` says.

Each shard is read as a change feed (feed.py): by sequence number, on one pinned copy, no further than the global
checkpoint. Indices that have none of this are read by time (timed.py), and `notes` says which and why.

Cursor: ``{"since": µs or null, "began": µs, "indices": {uuid: row}, "timed": {pattern: row}, "gone": {uuid: [name,
lineage, created]}}``; an index's row holds its name, lineage, time of creation and its shards' positions. An index
derived from one already read inherits "done" and its lineage, so that its documents keep their identity.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from pydantic import Field, field_validator

from agent.errors import ConfigError, RetryableError
from agent.model import DOCUMENT, SECOND, Chunk, Cursor, Notice, Records, Reference, Timestamp
from agent.ports import Check, Lag
from connectors._backlog import Backlog
from connectors._options import parse
from connectors.siem import indices as siem
from connectors.siem import install
from connectors.siem.client import Access, Cluster, Denied, FlavourName, Param, segment
from connectors.siem.feed import START, Position, Proof, Sight, clauses
from connectors.siem.indices import Identity
from connectors.siem.timed import Timed, promise

MARGIN = 1_000
"""Operations before the start position that are read as well: some may have become visible late."""
MAX_PAGE = 10_000
MOST_NAMES = 100
"""Top-level fields that OpenSearch is asked to filter by; 200 are too many for it."""
WORTH = 0.4
"""A projection is kept where its documents have less than this share of the bytes of whole ones: the server pays for
leaving fields out, with more time than it takes to send them."""
WHOLE = 1_000
"""Whole documents that one search is asked for."""
LOOK_EVERY_S = 1.0
SETTLED_EVERY_S = 60.0
GONE_KEPT = 1_000
NOTES_KEPT = 200
UNKNOWN = -1
"""How many shards an index has of which only the cursor tells yet."""
_FIRST_PAGE = 500
_NO_SOURCE = "the index keeps no _source: only a search in it can see its events"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"^([1-9]\d{0,4})([mhd])$")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


class Options(Access):
    """What a source of type elasticsearch or opensearch may say."""

    indices: list[str] = Field(min_length=1)
    """Index, alias and data stream names and patterns; one that begins with ``-`` is left out."""
    start: str = "24h"
    """Where to begin with indices older than the source itself: now, earliest, or a duration such as 24h."""
    cursor: Literal["feed", "time"] = "feed"
    keywords: Literal["fields", "source"] = "fields"
    """What rules without a field search: message and event.original, or the whole document (then all of it is read)."""
    page_bytes: int = Field(default=16 << 20, ge=1 << 16, le=128 << 20)
    concurrency: int = Field(default=4, ge=1, le=32)
    """Shards that are searched at the same time."""
    searches_per_second: float = Field(default=2.0, gt=0, le=100)
    """Searches a second of a shard that has changed; a backlog is read as fast as the cluster answers."""

    @field_validator("start")
    @classmethod
    def _start(cls, start: str) -> str:
        if start not in ("now", "earliest") and not _DURATION.match(start):
            raise ValueError("expected now, earliest or a duration such as 24h")
        return start

    @field_validator("indices")
    @classmethod
    def _indices(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if not pattern or re.search(r'[\\/?"<>| #\x00-\x1f]', pattern) or len(pattern.encode()) > 255:
                raise ValueError(f"no index name or pattern: {pattern[:80]!r}")
        if all(pattern.startswith("-") for pattern in patterns):
            raise ValueError("only exclusions: name what to read")
        return patterns

    def since(self, now: Timestamp) -> Timestamp | None:
        """Return the time from which indices that are there already are read; None for all of them."""
        if self.start == "earliest":
            return None
        found = _DURATION.match(self.start)
        return now - (int(found[1]) * _SECONDS[found[2]] * SECOND if found else 0)


@dataclass(frozen=True, slots=True)
class Span:
    """Event times to read again, [start, end); None for no bound."""

    start: Timestamp | None = None
    end: Timestamp | None = None


@dataclass(slots=True)
class _Round:
    """One pass over a shard's unread numbers: from *above* to *checkpoint*, on the copy that was looked at."""

    above: int
    checkpoint: int
    shown: int
    copy: str


@dataclass(slots=True)
class _Shard:
    """One shard as this process knows it."""

    index: _Index
    number: int
    position: Position | None = None
    sight: Sight | None = None
    dirty: bool = True
    round: _Round | None = None
    next_at: float = 0.0
    changed_at: float = 0.0
    pause: float = 0.0
    ahead: tuple[int, Future[_Page]] | None = None
    """The next page, asked for while the last one is evaluated, and how many documents it may hold."""
    gap: str = ""
    last: str = ""
    """`@timestamp` of the last document read: who is furthest behind is read first."""
    backlog: Backlog = field(default_factory=Backlog)

    @property
    def partition(self) -> str:
        return f"{self.index.identity.uuid}/{self.number}"

    @property
    def behind(self) -> bool:
        """Whether there are, or may be, operations that were not read."""
        if self.position is None or self.round is not None or self.gap:
            return True
        return self.sight is not None and self.sight.checkpoint > self.position.done

    def is_awaited(self, now: float) -> bool:
        """Whether what was not read is still to come: it was not searched, or changed so lately that a refresh may
        show it."""
        if self.position is None or self.round is not None or self.gap or self.dirty:
            return True
        return now - self.changed_at < min(SETTLED_EVERY_S, max(5.0, 3 * self.index.identity.refresh_s))

    def lag(self, now: float) -> Lag:
        """Count what a search may still find: numbers above `done`, and holes that the running round has not come to.

        Other holes were searched already. It is an estimate: some operations are deletions, or replaced by later ones.
        """
        if self.position is None or self.sight is None or not self.is_awaited(now):
            return Lag(0)
        above = self.round.above if self.round else self.position.done
        unread = self.position.unread(above, self.sight.checkpoint)
        if self.round and self.position.cut:
            unread -= 1  # its number is a hole, though a document of it was given
        return Lag(unread, self.backlog.since(self.position.done) if unread else None)


@dataclass(slots=True)
class _Index:
    """One index as this process knows it. *row* is its part of the cursor, made anew when something changes."""

    identity: Identity
    lineage: str
    skipped: str = ""
    """Why it is not read: what it was derived from."""
    shards: dict[int, _Shard] = field(default_factory=dict)
    again: bool = False
    """A history broke: what is read may have been read before."""
    writable: bool = True
    closed: bool = False
    looked_at: float = 0.0
    bytes_each: float = 0.0
    whole_bytes: float = 0.0
    """Bytes of a whole document, by the first page; then `projects` says whether leaving fields out is worth it."""
    projects: bool | None = None
    row: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.identity.name

    def weigh(self, each: float, projected: bool) -> None:
        """Take in the bytes of a page's documents; decide whether a projection is worth the server's work."""
        self.bytes_each = max(each, 0.8 * self.bytes_each)
        if not projected and not self.whole_bytes:
            self.whole_bytes = each
        elif projected and self.projects is None:
            self.projects = each < WORTH * self.whole_bytes

    def make_row(self) -> dict[str, Any]:
        if self.row is None:
            positions = {str(one.number): one.position.row() for one in self.shards.values() if one.position}
            self.row = {"name": self.name, "lineage": self.lineage, "created": self.identity.created,
                        "shards": positions, "again": self.again, "skipped": self.skipped}  # fmt: skip
        return self.row


@dataclass(frozen=True, slots=True)
class _Page:
    """What one search gave of one shard."""

    hits: list[siem.Hit]
    covered: int
    bytes: int
    seconds: float
    projected: bool


@dataclass(slots=True)
class _Clocked:
    """A pattern that is read by time, why, and where it stands."""

    reader: Timed
    reason: str
    row: Mapping[str, Any] | None = None
    more: bool = False
    next_at: float = 0.0


class SiemSource:
    """Reads the indices that the patterns match."""

    def __init__(
        self,
        id: str,
        flavour: FlavourName,
        options: Options,
        clock: Callable[[], Timestamp],
        *,
        span: Span | None = None,
        lineages: Mapping[str, Any] | None = None,
    ) -> None:
        """With a *span*, read all that lies in it once again, copies included; *lineages* is the cursor to take
        lineages from."""
        self.id = id
        self.cluster = Cluster(f"source {id}", flavour, options)
        self._options = options
        self._clock = clock
        self._span = span
        self._lineages = lineages or {}
        self._fields: frozenset[str] = frozenset()
        self._cursor: Cursor | None = None
        self._since: Timestamp | None = None
        self._began: Timestamp = 0
        self._indices: dict[str, _Index] = {}
        self._gone: dict[str, list[Any]] = {}
        self._proofs: dict[str, Proof] = {}
        self._fed: list[str] = []
        self._clocked: dict[str, _Clocked] = {}
        self._timed_rows: Mapping[str, Any] = {}
        self._lost_feed = ""
        self._notices: list[Notice] = []
        self._counts: Counter[str] = Counter()
        self._notes: dict[str, str] = {}
        self._strangers: set[str] = set()
        """Names that another index has now."""
        self._looked_at = 0.0
        self._identified_at = 0.0
        self._look_every = LOOK_EVERY_S
        self._share = 1
        self._pool: ThreadPoolExecutor | None = None
        self._lag = Lag()
        self._as_of: Timestamp = 0

    # --- the port -----------------------------------------------------------------------------------------------------

    def open(self, fields: frozenset[str]) -> None:
        self.close()
        self._fields = fields
        self.cluster.connect()
        self._fed, self._lost_feed = [], ""
        include = [one for one in self._options.indices if not one.startswith("-")]
        if reason := self._why_not_fed(include):
            self._by_time(include, reason)
        else:
            self._fed = [one for one in include if ":" not in one]
            for pattern in include:
                if ":" in pattern:
                    self._by_time([pattern], "of another cluster")
        self._pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix=f"source-{self.id}")

    def _why_not_fed(self, include: Sequence[str]) -> str:
        """Return why nothing here can be read as a change feed, else an empty text."""
        if self._options.cursor == "time":
            return "configured so"
        if self.cluster.build == "serverless":
            return "serverless"
        local = [one for one in include if ":" not in one]
        try:
            names = [one.name for one in siem.find(self.cluster, local).values() if not one.closed] if local else []
        except Denied as error:
            raise ConfigError(f"{error}; grant it: vedette setup --print-roles") from None
        try:
            siem.sights(self.cluster, names[:1])
            siem.identify(self.cluster, names[:1])
        except Denied as error:
            if error.status == 401:
                raise ConfigError(str(error)) from None
            self._lost_feed = str(error)
            return "the privilege monitor is missing"
        return ""

    def _by_time(self, patterns: Sequence[str], reason: str) -> None:
        """Read *patterns* by time, because of *reason*."""
        excluded = [one for one in self._options.indices if one.startswith("-")]
        expression = ",".join([*patterns, *excluded])
        if expression not in self._clocked:
            reader = Timed(
                self.cluster,
                expression,
                fields=self._source_filter(),
                format=self._format,
                page_bytes=self._options.page_bytes,
                since=self._options.since(self._clock()) if self._span is None else None,
                span=self._span_filter(),
            )
            self._clocked[expression] = _Clocked(reader, reason, self._timed_rows.get(expression))

    def fetch(self, after: Cursor | None, limit: int) -> Records:
        if after is None or (after is not self._cursor and after != self._cursor):
            self._stand_at(after)
        try:
            return self._fetch(limit)
        except BaseException:
            self._cursor = None  # positions may have moved: the next fetch begins at its cursor again
            raise

    def full(self, references: Sequence[Reference]) -> Mapping[Reference, bytes]:
        by_index: dict[str, list[Reference]] = {}
        for one in references:
            by_index.setdefault(one.path, []).append(one)
        assert self._pool is not None, "open comes first"
        parts = [
            self._pool.submit(self._whole, index, found[start : start + WHOLE])
            for index, found in by_index.items()
            for start in range(0, len(found), WHOLE)
        ]
        return {reference: source for part in parts for reference, source in part.result().items()}

    def _whole(self, index: str, references: Sequence[Reference]) -> dict[Reference, bytes]:
        """Return whole documents of one index, asking only the shards that they were read from."""
        wanted = {str(one.key): one for one in references}
        shards = {shard for one in references if (shard := one.partition.rpartition("/")[2]).isdigit()}
        body = {"size": MAX_PAGE, "query": {"ids": {"values": sorted(wanted)}}, "track_total_hits": False}
        params: dict[str, Param] = {"ignore_unavailable": True}
        if shards:
            params["preference"] = f"_shards:{','.join(sorted(shards))}"
        hits, _ = siem.search(self.cluster, index, body, params=params)
        return {wanted[hit.id]: hit.raw for hit in hits if hit.id in wanted}

    def estimate(self) -> Mapping[str, Any]:
        now = self._clock()
        since = self._options.since(now)
        names = [one.name for one in siem.find(self.cluster, self._options.indices).values() if not one.closed]
        query = {"range": {"@timestamp": {"gte": _iso(since)}}} if since is not None else {"match_all": {}}
        ends = {name: {name: {"field": "@timestamp"}} for name in ("min", "max")}
        body = {"size": 0, "track_total_hits": True, "query": query, "aggs": ends}
        documents, bounds = 0, []
        for batch in siem.batches(names):
            params = {"ignore_unavailable": True}
            answer = self.cluster.request("POST", f"/{segment(batch)}/_search", params=params, body=body).body
            documents += answer["hits"]["total"]["value"]
            found = (answer["aggregations"][end]["value"] for end in ends)
            bounds += [milliseconds for milliseconds in found if milliseconds is not None]
        hours = (min(max(bounds), now / 1000) - min(bounds)) / 3_600_000 if bounds else 0.0
        return {"start": self._options.start, "places": len(names), "documents": documents, "hours": round(hours, 1)}

    def examine(self) -> Iterator[Check]:
        return install.examine_source(self.cluster, self._options.indices)

    def roles(self) -> Mapping[str, Any]:
        return install.source_roles(self.cluster.flavour, self._options.indices)

    def notes(self) -> Mapping[str, str]:
        return dict(self._notes)

    def lag(self) -> Lag:
        return self._lag

    def plant(self, place: str, document: Mapping[str, Any]) -> None:
        self.cluster.connect()
        try:
            there = siem.find(self.cluster, [place])
            if not there:
                raise ConfigError(f"source {self.id}: no index, alias or data stream {place} at {self.cluster.place}")
            if not there.keys() & siem.find(self.cluster, self._options.indices).keys():
                raise ConfigError(f"source {self.id} does not read {place}: expected one of its 'indices'")
            path = f"/{segment(place)}/_doc"
            self.cluster.request("POST", path, params={"op_type": "create"}, body=document)
        except Denied as error:
            raise ConfigError(f"{error}; grant this account create_doc on {place}") from None

    def ack(self, cursor: Cursor) -> None:
        """Nothing to do: a SIEM keeps no position for us."""

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        for clocked in self._clocked.values():
            clocked.reader.close()
        self._clocked.clear()
        self.cluster.close()
        self._cursor = None
        self._lag = Lag()
        self._indices.clear()
        self._proofs.clear()

    # --- one fetch ----------------------------------------------------------------------------------------------------

    def _fetch(self, limit: int) -> Records:
        now, as_of = time.monotonic(), self._clock()
        self._as_of = as_of
        if self._fed:
            self._look(now)
            self._peek(now)
        due = self._due(now)[: self._options.concurrency]
        timed = self._read_by_time(now, as_of, limit, len(due))
        pages = self._ask(due, limit - sum(len(chunk.raw) for chunk in timed))
        chunks = [chunk for shard, page in pages if (chunk := self._chunk(shard, page)) is not None]
        if chunks:
            self._confirm({shard.index.name for shard, page in pages if page.hits})
        cursor = self._make_cursor()
        notices, self._notices = tuple(self._notices), []
        counts, self._counts = dict(self._counts), Counter()
        self._lag = self._measure()
        return Records(
            self.id,
            (*chunks, *timed),
            cursor,
            as_of,
            self._unread(),
            projected=any(page.projected for _, page in pages) or (bool(timed) and self._source_filter() is not True),
            again=self._span is not None or any(shard.index.again for shard, _ in pages),
            notices=notices,
            counts=counts,
            backfill=self._began,
        )

    def _stand_at(self, after: Cursor | None) -> None:
        """Begin at the position *after*, as if nothing had been read beyond it."""
        if after is None:
            self._began = self._began or self._clock()
            self._since = None if self._span else self._options.since(self._began)
            after = {}
        else:
            self._since, self._began = after["since"], after["began"]
        self._gone = dict(after.get("gone", {}))
        rows = after.get("indices", {})
        if rows and self._lost_feed:
            raise RetryableError(
                f"{self._lost_feed}; so far these indices were read by sequence number: grant monitor again, or set"
                " 'cursor: time' under another source name, which raises the alerts of its first hours again"
            )
        for uuid in [uuid for uuid in self._indices if uuid not in rows]:
            del self._indices[uuid]
        for uuid, row in rows.items():
            index = self._indices.get(uuid)
            if index is None:
                identity = Identity(row["name"], uuid, row["created"], UNKNOWN, "", "", False, SETTLED_EVERY_S)
                index = self._indices[uuid] = _Index(identity, row["lineage"])
            index.again = row["again"]
            index.lineage, index.skipped, index.row = row["lineage"], row["skipped"], row
            for number, position in row["shards"].items():
                shard = index.shards.setdefault(int(number), _Shard(index, int(number)))
                shard.position = Position.from_row(position)
            for shard in index.shards.values():
                if str(shard.number) not in row["shards"]:
                    shard.position = None
                shard.dirty, shard.round, shard.ahead, shard.next_at = True, None, None, 0.0
        self._timed_rows = after.get("timed", {})
        for expression, clocked in self._clocked.items():
            clocked.row, clocked.next_at = self._timed_rows.get(expression), 0.0
        self._cursor = self._cursor_of(dict(rows))
        self._looked_at = 0.0
        self._notices.clear()
        self._counts.clear()

    def _make_cursor(self) -> Cursor:
        rows = {uuid: index.make_row() for uuid, index in self._indices.items()}
        before = self._cursor
        assert before is not None
        same = before["indices"].keys() == rows.keys() and all(before["indices"][uuid] is rows[uuid] for uuid in rows)
        timed = self._make_timed()
        same = same and before["timed"].keys() == timed.keys()
        same = same and all(before["timed"][name] is row for name, row in timed.items())
        if not same or before["gone"] != self._gone:
            self._cursor = self._cursor_of(rows)
        assert self._cursor is not None
        return self._cursor

    def _cursor_of(self, rows: dict[str, Any]) -> Cursor:
        return {
            "since": self._since,
            "began": self._began,
            "indices": rows,
            "timed": self._make_timed(),
            "gone": dict(self._gone),
        }

    def _make_timed(self) -> dict[str, Any]:
        rows = {name: one.row for name, one in self._clocked.items() if one.row is not None}
        return {**self._timed_rows, **rows}

    def _unread(self) -> frozenset[str]:
        """Return the shards that hold back the watermark."""
        now = time.monotonic()
        shards = (shard.partition for shard in self._shards() if shard.behind and shard.is_awaited(now))
        return frozenset([*shards, *(name for name, one in self._clocked.items() if one.more)])

    def _measure(self) -> Lag:
        """Return how far behind all shards and patterns are together."""
        now = time.monotonic()
        parts = [*(shard.lag(now) for shard in self._shards()), *(one.reader.lag for one in self._clocked.values())]
        counts = [one.events for one in parts]
        known = [one for one in counts if one is not None]
        oldest = [one.oldest for one in parts if one.oldest is not None]
        return Lag(sum(known) if len(known) == len(counts) else None, min(oldest, default=None))

    def _shards(self) -> Iterable[_Shard]:
        return (
            shard
            for index in self._indices.values()
            if not index.skipped and not index.closed
            for shard in index.shards.values()
        )

    # --- which indices ------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Find out which indices there are, at most once a second and for at most a twentieth of the time."""
        if self._looked_at and now - self._looked_at < self._look_every:
            return
        found = siem.find(self.cluster, [*self._fed, *(one for one in self._options.indices if one.startswith("-"))])
        by_name = {index.name: index for index in self._indices.values()}
        renew = now - self._identified_at >= SETTLED_EVERY_S
        unknown = [
            name
            for name, one in found.items()
            if not one.closed and ((renew and one.writable) or not self._is_known(by_name.get(name)))
        ]
        for identity in siem.identify(self.cluster, unknown).values() if unknown else ():
            self._meet(identity)
        if unknown:
            self._identified_at = now
        for index in list(self._indices.values()):
            place = found.get(index.name)
            if place is None:
                self._miss(index)
            else:
                index.closed, index.writable = place.closed, place.writable
                self._note(index.name, "closed" if place.closed else index.skipped)
        self._looked_at = now
        self._look_every = max(LOOK_EVERY_S, 20 * (time.monotonic() - now))

    def _is_known(self, index: _Index | None) -> bool:
        return index is not None and index.identity.shards == len(index.shards) and index.name not in self._strangers

    def _meet(self, identity: Identity) -> None:
        """Take in an index that is new, or whose settings this process has not seen yet."""
        if identity.unnumbered:
            self._by_time([identity.name], "its sequence numbers are switched off")
        known = self._indices.get(identity.uuid)
        if known is None:
            for other in [one for one in self._indices.values() if one.name == identity.name]:
                self._forget(other, "replaced by a new index of that name")
            known = self._indices[identity.uuid] = self._adopt(identity)
        if identity.unnumbered:
            known.skipped, known.row = "read by time", None
        known.identity = identity
        self._strangers.discard(identity.name)
        for number in range(identity.shards):
            known.shards.setdefault(number, _Shard(known, number))

    def _adopt(self, identity: Identity) -> _Index:
        """Return the new index, with the lineage of what it was made from where that was read."""
        origin = self._origin(identity)
        if origin is None:
            return _Index(identity, identity.source_uuid or identity.uuid)
        name, lineage = origin
        if self._span:
            return _Index(identity, lineage)
        text = f"derived from {name}, whose events were read there; vedette replay --index {identity.name} reads it"
        self._notices.append(Notice("index-derived", identity.name, text))
        return _Index(identity, lineage, skipped=text)

    def _origin(self, identity: Identity) -> tuple[str, str] | None:
        """Return name and lineage of the index that this one is a copy of, if it is one that we know."""
        known: dict[str, list[Any]] = {**self._lineages.get("gone", {}), **self._gone}
        for uuid, row in self._lineages.get("indices", {}).items():
            known[uuid] = [row["name"], row["lineage"], row["created"]]
        for uuid, index in self._indices.items():
            known[uuid] = [index.name, index.lineage, index.identity.created]
        if identity.uuid in known:
            name, lineage, _ = known[identity.uuid]
            return (name, lineage) if self._span else None
        if identity.source_uuid in known:
            name, lineage, _ = known[identity.source_uuid]
            return name, lineage
        for name, lineage, created in known.values():
            copied = created == identity.created and name in (identity.name, identity.source_name)
            named = siem.base_name(identity.name) == name != identity.name
            if copied or named or (identity.source_name and identity.source_name == name):
                return name, lineage
        return self._origin_by_content(identity)

    def _origin_by_content(self, identity: Identity) -> tuple[str, str] | None:
        """Ask the documents where nothing else tells: a restored index was created when its original was, and what
        Elasticsearch has resized came from shards of the same node."""
        there = [one for one in self._indices.values() if not one.closed]
        if identity.created * 1000 >= self._began and siem.is_resized(self.cluster, identity.name):
            originals = {one.name: one.lineage for one in there}
        else:
            originals = {one.name: one.lineage for one in there if one.identity.created == identity.created}
        found = siem.original_of(self.cluster, identity.name, originals.keys()) if originals else None
        return (found, originals[found]) if found else None

    def _miss(self, index: _Index) -> None:
        """An index is not listed any more: it is gone, or the patterns do not reach it now."""
        if siem.exists(self.cluster, index.name):
            index.closed = True
            self._note(index.name, "no longer matched by the source's patterns")
        else:
            self._forget(index, "deleted")

    def _forget(self, index: _Index, why: str) -> None:
        """Note that *index* is gone; what of it was not read is read from a copy if there is one, else lost."""
        unread = 0
        for shard in index.shards.values():
            if shard.position is not None and shard.sight is not None and not index.skipped:
                unread += shard.position.unread(START, shard.sight.checkpoint)
        copies = [one for one in self._indices.values() if one.lineage == index.lineage and one.skipped]
        text = f"index {index.name} was {why}"
        if unread and copies:
            text += f" with up to {unread} operations unread; reading its copy {copies[0].name} instead"
            copies[0].skipped, copies[0].again, copies[0].row = "", True, None
        elif unread:
            text += f" with up to {unread} operations unread: no rule has seen them"
        if not index.skipped:
            self._notices.append(Notice("index-gone", index.name, text, lost=bool(unread and not copies)))
        del self._indices[index.identity.uuid]
        self._gone[index.identity.uuid] = [index.name, index.lineage, index.identity.created]
        while len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        self._notes.pop(index.name, None)

    def _note(self, place: str, reason: str) -> None:
        if not reason:
            self._notes.pop(place, None)
        elif place in self._notes or len(self._notes) < NOTES_KEPT:
            self._notes[place] = reason
        else:
            self._notes["more"] = f"more than {NOTES_KEPT} places"

    # --- how their shards stand ---------------------------------------------------------------------------------------

    def _peek(self, now: float) -> None:
        """Look at the shards that may have changed: those written to as often as they may be searched, others once a
        minute."""
        every = 1 / self._options.searches_per_second
        names = [
            index.name
            for index in self._indices.values()
            if not index.skipped and not index.closed and now - index.looked_at >= self._rest(index, now, every)
        ]
        if names:
            self._take_in(names, now)

    def _rest(self, index: _Index, now: float, every: float) -> float:
        lively = index.writable or not index.looked_at
        lively = lively or any(one.gap or now - one.changed_at < SETTLED_EVERY_S for one in index.shards.values())
        return every if lively else SETTLED_EVERY_S

    def _take_in(self, names: Iterable[str], now: float) -> None:
        by_name = {index.name: index for index in self._indices.values()}
        looks = siem.sights(self.cluster, list(names))
        for name in names:
            index = by_name[name]
            uuid, sights = looks.get(name, ("", {}))
            index.looked_at = now
            if uuid and uuid != index.identity.uuid:
                self._strangers.add(name)
                self._looked_at = 0.0
                sights = {}
            for shard in index.shards.values():
                self._see(shard, sights.get(shard.number), now)

    def _see(self, shard: _Shard, sight: Sight | None, now: float) -> None:
        place = f"{shard.index.name}[{shard.number}]"
        if sight is None:
            if not shard.gap:
                self._counts["gaps"] += 1
                self._notices.append(Notice("gap", place, f"{place} is not there: it is read when it is back"))
            shard.gap = "the cluster says nothing of this shard"
            self._note(place, shard.gap)
            return
        if shard.gap:
            shard.gap, shard.dirty = "", True
            self._notices.append(Notice("gap-ended", place, f"{place} is back and read from where it was left"))
            self._note(place, "")
        if self._proofs.setdefault(shard.partition, Proof()).look(sight):
            shard.dirty, shard.changed_at = True, now
        shard.sight = sight
        shard.backlog.look(sight.checkpoint, self._as_of)
        position = shard.position
        if position is not None and (sight.history != position.history or sight.checkpoint < position.done):
            self._break(shard)

    def _break(self, shard: _Shard) -> None:
        """The shard's numbers begin anew (a restore, a lost copy): read it again from the start; ids absorb repeats."""
        place = f"{shard.index.name}[{shard.number}]"
        text = f"{place}: history changed or went back; reading again from the start, known alerts are not raised again"
        self._notices.append(Notice("history-break", place, text))
        self._counts["history_breaks"] += 1
        shard.position, shard.round, shard.ahead, shard.dirty = None, None, None, True
        shard.backlog = Backlog()
        shard.index.again, shard.index.row = True, None

    def _confirm(self, names: set[str]) -> None:
        """Look again at the indices that gave documents: was it still the index, history and copy that we meant?"""
        by_name = {index.name: index for index in self._indices.values()}
        before = {name: {shard.number: shard.sight for shard in by_name[name].shards.values()} for name in names}
        looks = siem.sights(self.cluster, names)
        now = time.monotonic()
        for name in names:
            uuid, sights = looks.get(name, ("", {}))
            if uuid != by_name[name].identity.uuid:
                raise RetryableError(f"source {self.id}: index {name} changed while it was read")
            for number, sight in sights.items():
                old = before[name].get(number)
                if old and (sight.history != old.history or sight.checkpoint < old.checkpoint):
                    raise RetryableError(f"source {self.id}: the history of {name}[{number}] changed while it was read")
            by_name[name].looked_at = now
            for shard in by_name[name].shards.values():
                self._see(shard, sights.get(shard.number), now)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> list[_Shard]:
        """Return the shards to search now, the one that is furthest behind first."""
        due = []
        for shard in self._shards():
            if shard.sight is None or shard.gap or now < shard.next_at:
                continue
            if shard.round is None and shard.dirty:
                self._begin(shard)
            if shard.round is not None:
                due.append(shard)
        return sorted(due, key=lambda shard: (shard.last, shard.partition))

    def _begin(self, shard: _Shard) -> None:
        sight = shard.sight
        assert sight is not None
        shard.dirty = False
        if shard.position is None:
            start = self._start(shard, sight)
            shard.position = Position(sight.history, start, start)
            shard.index.row = None
        shown = self._proofs[shard.partition].shown
        if shard.position.floor < sight.checkpoint:
            shard.round = _Round(shard.position.floor, sight.checkpoint, shown, sight.copy)

    def _start(self, shard: _Shard, sight: Sight) -> int:
        """Return the number after which to read a shard that was never read before."""
        since = self._since
        if since is None or shard.index.identity.created * 1000 >= since:
            return START
        if self._options.start == "now" and not shard.index.again:
            return sight.checkpoint
        body = {"size": 1, "_source": False, "track_total_hits": False}
        place = (shard.number, sight.copy)
        newer = {"range": {"@timestamp": {"gte": _iso(since)}}}
        first, _ = siem.search(
            self.cluster, shard.index.name, {**body, "query": newer, "sort": [{"_seq_no": "asc"}]}, shard=place
        )
        if first:
            return max(START, first[0].sort[0] - 1 - MARGIN)
        last, _ = siem.search(self.cluster, shard.index.name, {**body, "sort": [{"_seq_no": "desc"}]}, shard=place)
        return max(START, last[0].sort[0] - MARGIN) if last else START

    def _read_by_time(self, now: float, as_of: Timestamp, limit: int, others: int) -> list[Chunk]:
        """Return what the patterns without a change feed have; each gets its share of *limit*."""
        due = [(name, one) for name, one in self._clocked.items() if now >= one.next_at]
        chunks: list[Chunk] = []
        for number, (name, one) in enumerate(due):
            room = limit // (len(due) - number + bool(others))
            if not room:
                break
            start = time.monotonic()
            page = one.reader.fetch(one.row, room, as_of)
            one.row, one.more = page.row, page.more
            one.next_at = 0.0 if page.more else time.monotonic() + self._rest_by_time(start)
            limit -= sum(len(chunk.raw) for chunk in page.chunks)
            chunks += page.chunks
            self._counts.update(page.counts)
            self._note(name, f"{one.reason}: {promise(one.row)}")
        return chunks

    def _rest_by_time(self, start: float) -> float:
        """Return how long to leave alone what took from *start* until now."""
        return max(1 / self._options.searches_per_second, 10 * (time.monotonic() - start))

    def _ask(self, due: Sequence[_Shard], limit: int) -> list[tuple[_Shard, _Page]]:
        """Search the shards that are *due*, side by side, for *limit* documents in all."""
        self._share = share = max(1, limit // max(1, len(due)))
        running: list[tuple[_Shard, Future[_Page]]] = []
        for shard in due:
            size, page = shard.ahead or (0, None)
            shard.ahead = None
            if page is None or size > limit:
                size = min(share, limit, self._page_size(shard.index))
                page = self._submit(shard, size) if size else None
            if page is not None:
                limit -= size
                running.append((shard, page))
        pages: list[tuple[_Shard, _Page]] = []
        failures: list[RetryableError] = []
        for shard, future in running:
            try:
                pages.append((shard, future.result()))
            except RetryableError as error:
                failures.append(error)
                self._slow_down(shard, error)
        if failures and not pages:
            raise failures[0]
        return pages

    def _submit(self, shard: _Shard, size: int) -> Future[_Page]:
        assert self._pool is not None, "open comes first"
        return self._pool.submit(self._page, shard, size)

    def _page_size(self, index: _Index) -> int:
        each = index.bytes_each
        return min(MAX_PAGE, max(1, int(self._options.page_bytes / each))) if each else _FIRST_PAGE

    def _page(self, shard: _Shard, size: int) -> _Page:
        """Search the next unread numbers of *shard*: at most *size* documents that were not delivered yet."""
        index, round, position = shard.index, shard.round, shard.position
        assert round is not None
        assert position is not None
        said, end = clauses(position.wanted(round.above, round.checkpoint))
        if not said:
            return _Page([], round.checkpoint, 0, 0.0, False)
        asked = min(MAX_PAGE, size + (len(position.cut[1]) if position.cut else 0))
        body = {
            "size": asked,
            "query": {"bool": {"filter": [{"bool": {"should": said}}, *self._span_filter()]}},
            "sort": [{"_seq_no": "asc"}],
            "track_total_hits": False,
            "_source": self._filter_for(index),
        }
        start = time.monotonic()
        hits, size_read = siem.search(self.cluster, index.name, body, shard=(shard.number, round.copy))
        full = len(hits) == asked
        covered = round.checkpoint if end is None else end
        if full:
            covered = hits[-1].sort[0] - 1  # other documents of that number may follow
        return _Page(hits, covered, size_read, time.monotonic() - start, body["_source"] is not True)

    def _chunk(self, shard: _Shard, page: _Page) -> Chunk | None:
        """Deliver a page: move the shard's position and return its documents."""
        index, round, position = shard.index, shard.round, shard.position
        assert round is not None
        assert position is not None
        before = position.row()
        kept = position.take([(hit.sort[0], hit.id) for hit in page.hits], page.covered)
        gone = position.settle(min(round.shown, page.covered))
        if gone and not self._span:
            self._counts["gone_before_read"] += gone
        if position.row() != before:
            index.row = None
        self._counts["searches"] += 1
        self._pace(shard, page)
        if not kept:
            return None
        documents = [page.hits[place] for place in kept]
        raw = [hit.raw for hit in documents]
        shard.last = _time_of(raw[-1]) or shard.last
        return Chunk(
            shard.partition,
            index.name,
            self._format,
            [hit.id for hit in documents],
            raw,
            {place: _NO_SOURCE for place, one in enumerate(raw) if one == b""},
            lineage=index.lineage,
        )

    def _pace(self, shard: _Shard, page: _Page) -> None:
        """Go on at once in a backlog, else leave the shard alone for a while; longer while the cluster is slow."""
        round = shard.round
        assert round is not None
        round.above = page.covered
        if page.hits:
            each = page.bytes / len(page.hits)
            shard.index.weigh(each, page.projected)
        shard.pause = 0.0
        if page.covered < round.checkpoint:
            size = min(self._share, self._page_size(shard.index))
            shard.ahead = (size, self._submit(shard, size))
        else:
            shard.round = None
            shard.next_at = time.monotonic() + max(1 / self._options.searches_per_second, 2 * page.seconds)

    def _slow_down(self, shard: _Shard, error: RetryableError) -> None:
        shard.pause = min(30.0, max(1.0, 2 * shard.pause, error.retry_after or 0.0))
        shard.next_at = time.monotonic() + shard.pause
        shard.round, shard.ahead, shard.dirty = None, None, True
        shard.index.looked_at = 0.0
        shard.index.bytes_each *= 2
        self._counts["failed_searches"] += 1

    @property
    def _format(self) -> str:
        return DOCUMENT if self._options.keywords == "fields" else "json"

    def _filter_for(self, index: _Index) -> bool | list[str]:
        """Return the `_source` filter: the first page whole, the second projected, then as these two compare."""
        known = index.projects if index.projects is not None else bool(index.whole_bytes)
        return self._source_filter() if known else True

    def _source_filter(self) -> bool | list[str]:
        if not self._fields or self._options.keywords == "source":
            return True
        names = {*self._fields, "@timestamp"}
        if self.cluster.flavour == "opensearch":  # it makes an automaton of them, and refuses one that is large
            names = {name.partition(".")[0] for name in names}
            return sorted(names) if len(names) <= MOST_NAMES else True
        return sorted(names)

    def _span_filter(self) -> list[dict[str, Any]]:
        if self._span is None or (self._span.start is None and self._span.end is None):
            return []
        bounds = {}
        if self._span.start is not None:
            bounds["gte"] = _iso(self._span.start)
        if self._span.end is not None:
            bounds["lt"] = _iso(self._span.end)
        return [{"range": {"@timestamp": bounds}}]

    # --- what commands ask --------------------------------------------------------------------------------------------

    def replay(
        self, cursor: Cursor | None, *, place: str | None, start: Timestamp | None, end: Timestamp | None
    ) -> SiemSource:
        options = self._options.model_copy(update={"indices": [place]} if place else {})
        return SiemSource(
            self.id, self.cluster.flavour, options, self._clock, span=Span(start, end), lineages=cursor or {}
        )


def _time_of(raw: bytes) -> str:
    """Return the `@timestamp` of a document as it stands there, empty if it cannot be told."""
    try:
        return str(orjson.loads(raw).get("@timestamp", ""))
    except (ValueError, AttributeError):
        return ""


def _iso(moment: Timestamp) -> str:
    return (_EPOCH + timedelta(microseconds=moment)).isoformat().replace("+00:00", "Z")


def _now() -> Timestamp:
    return time.time_ns() // 1000


def build(flavour: FlavourName) -> Callable[[str, Mapping[str, Any]], SiemSource]:
    """Return what makes sources of *flavour*; ConfigError names the option that is wrong."""

    def make(id: str, options: Mapping[str, Any], clock: Callable[[], Timestamp] = _now) -> SiemSource:
        return SiemSource(id, flavour, parse(Options, f"source {id}", options), clock)

    return make
