"""Reading by time, for what has no change feed: remote clusters, serverless, indices that number nothing.

A poll reads, in a point in time, all that lies at or after `floor`, and leaves out what it remembers to have given.
`floor` follows `at`, the latest time given, at a distance of `OVERLAP`: what becomes searchable later than that after
its own time is missed (`PROMISE`). `at` never passes the moment at which the poll began, so an event dated 9999 is
given once, remembered, and blinds nobody.

Documents with `event.ingested` are read by it, those without by `@timestamp`, each with a position of their own
(`Track`); those with neither are not found. Whether `event.ingested` can be used is decided when the row is made.

The row alone says where a reader stands; the point in time is only in memory, and without it the poll begins again.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from agent.errors import RetryableError, VedetteError
from agent.model import Chunk, Timestamp
from agent.ports import Lag
from connectors.siem.client import Cluster, Param, segment
from connectors.siem.indices import OWN, Found, Hit, matches, read_search

OVERLAP_S = 300
CAP = 200_000
"""Documents that are remembered; where the overlap holds more, it is shortened."""
MAX_PAGE = 10_000
PROMISE = (
    "read by {field}: a document that becomes searchable more than 5 minutes after that time is missed "
    "(sooner where 5 minutes hold more than 200,000 documents), and so is one without it"
)
"""What reading by time cannot promise."""
INGESTED = "event.ingested"
CREATED = "@timestamp"
_FIRST_PAGE = 500
_KEEP_ALIVE = "5m"
_DIGEST = 8
_EMPTY = msgspec.Raw(b"{}")
"""Stands for a document that the index does not keep: only what is listed without its document has none."""


def promise(row: Mapping[str, Any] | None) -> str:
    """Return `PROMISE` for the times that *row* was made for."""
    both = row is not None and len(row["tracks"]) > 1
    return PROMISE.format(field=f"{INGESTED}, or {CREATED} where that is missing" if both else CREATED)


@dataclass(frozen=True)
class Page:
    """What one fetch gave; *more* says that the poll is not at its end."""

    chunks: tuple[Chunk, ...]
    row: Mapping[str, Any] | None
    """Where the reader stands behind it; None as long as there is nothing that the expression matches."""
    more: bool
    counts: Mapping[str, int] = field(default_factory=dict)


class Track:
    """What was given by one time field; no I/O. Times are milliseconds, as precise as sort values are."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.field: str = row["field"]
        self.at: int | None = row["at"]
        self.floor: int | None = row["floor"]
        self._packed: dict[int, str] = {int(second): packed for second, packed in row["seen"].items()}
        self._seen: dict[int, list[bytes]] = {}
        for second, packed in self._packed.items():
            whole = base64.b64decode(packed)
            self._seen[second] = [whole[place : place + _DIGEST] for place in range(0, len(whole), _DIGEST)]
        self._known = {one for digests in self._seen.values() for one in digests}

    @staticmethod
    def new_row(field: str, floor: int | None) -> dict[str, Any]:
        return {"field": field, "at": None, "floor": floor, "seen": {}}

    def row(self) -> dict[str, Any]:
        """Return the track as JSON-able data."""
        for second in self._seen.keys() - self._packed.keys():
            self._packed[second] = base64.b64encode(b"".join(self._seen[second])).decode()
        seen = {str(second): self._packed[second] for second in sorted(self._packed)}
        return {"field": self.field, "at": self.at, "floor": self.floor, "seen": seen}

    def __len__(self) -> int:
        """Return how many documents are remembered."""
        return len(self._known)

    def knows(self, digest: bytes) -> bool:
        return digest in self._known

    def give(self, time: int, digest: bytes, now: int) -> None:
        """Note that a document was given; *now* is when the poll began."""
        self._known.add(digest)
        self._seen.setdefault(time // 1000, []).append(digest)
        self._packed.pop(time // 1000, None)
        time = min(time, now)
        self.at = time if self.at is None else max(self.at, time)

    def rise(self, reached: int) -> int:
        """Let the floor follow, no further than *reached*, up to where this poll has given all; return how many
        documents of the overlap were forgotten because there are too many."""
        if self.at is None:
            return 0
        low = self.at - OVERLAP_S * 1000
        early = 0
        for second in sorted(self._seen):
            end = (second + 1) * 1000
            if end > low and (len(self._known) <= CAP or end > min(self.at, reached)):
                break
            gone = self._seen.pop(second)
            self._packed.pop(second, None)
            self._known.difference_update(gone)
            if end > low:
                low, early = end, early + len(gone)
        self.floor = low if self.floor is None else max(self.floor, low)
        return early


class _Lost(Exception):
    """The point in time is gone."""


class _Poll:
    """One pass over all tracks in one point in time; *now* (ms) is when it began."""

    def __init__(self, id: str, now: int, tracks: Sequence[Track]) -> None:
        self.id = id
        self.now = now
        self.left = deque((track, track.floor) for track in tracks)
        """Tracks not read to their end, with their floors when the poll began: its query stays the same."""
        self.after: tuple[int, ...] | None = None
        """Sort values of the last hit listed of the first track; `listed` when there are no more."""
        self.listed = False
        self.pending: deque[Hit] = deque()
        """Hits of the first track that are new and were not given yet."""
        self.size = 0
        """What the next page has to hold at least."""

    def settle(self) -> None:
        """Go to the next track if the first is read to its end."""
        if self.listed and not self.pending:
            self.left.popleft()
            self.after, self.listed = None, False


class Timed:
    """Reads one expression: an index, or a pattern such as ``remote:logs-*``."""

    def __init__(
        self,
        cluster: Cluster,
        expression: str,
        *,
        fields: bool | list[str],
        format: str,
        page_bytes: int,
        since: Timestamp | None,
        span: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """*fields* is the filter of `_source`; *span* are clauses that each document must match."""
        self._cluster = cluster
        self._expression = expression
        self._fields = fields
        self._format = format
        self._page_bytes = page_bytes
        self._since = since
        self._span = list(span)
        self._row: Mapping[str, Any] | None = None
        self._tracks: list[Track] = []
        self._poll: _Poll | None = None
        self._bytes_each = 0.0
        self._counts: Counter[str] = Counter()

    def fetch(self, row: Mapping[str, Any] | None, limit: int, as_of: Timestamp) -> Page:
        """Return at most *limit* documents behind *row*; *as_of* is a time not later than the call.

        The same row and an unchanged upstream give the same documents, up to where `page_bytes` cut them.
        RetryableError for whatever is not a whole answer.
        """
        try:
            try:
                return self._fetch(row, limit, as_of)
            except _Lost:
                self.close()
                return self._fetch(row, limit, as_of)
        except _Lost:
            self.close()
            raise RetryableError(f"{self._expression}: the point in time was lost twice") from None
        except BaseException:
            self.close()
            raise

    @property
    def lag(self) -> Lag:
        """How far the last poll has come: how many documents are left is not known before its end, only their time."""
        if self._poll is None:
            return Lag(0)
        track, _ = self._poll.left[0]
        reached = track.floor if track.at is None else track.at
        return Lag(None, None if reached is None else reached * 1000)

    def close(self) -> None:
        """Forget what is only in memory; safe at any time."""
        self._row = None
        self._end()

    def _fetch(self, row: Mapping[str, Any] | None, limit: int, as_of: Timestamp) -> Page:
        if row is None:
            row = self._first_row()
            if row is None:
                return Page((), None, False)
        if row is not self._row and row != self._row:
            self._end()
            self._tracks = [Track(one) for one in row["tracks"]]
            self._row = row
            self._counts.clear()
        given: list[Hit] = []
        poll = self._poll or self._begin(as_of // 1000)
        while poll and poll.left and len(given) < limit and len(given) * self._bytes_each < self._page_bytes:
            if poll.pending:
                given += self._take(poll, limit - len(given))
            else:
                self._list(poll)
            poll.settle()
        if poll and not poll.left:
            self._end()
        if given:
            self._row = {"tracks": [track.row() for track in self._tracks]}
        counts, self._counts = dict(self._counts), Counter()
        return Page(tuple(self._chunks(given)), self._row, self._poll is not None, counts)

    def _first_row(self) -> Mapping[str, Any] | None:
        """Decide by which times to read; None if there is nothing yet to decide by."""
        path = f"/{segment(self._expression)}/_field_caps"
        answer = self._cluster.request("GET", path, params={"fields": INGESTED}, accept=(404,))
        if answer.status == 404 or not answer.body["indices"]:
            return None
        if answer.body.get("failed_indices"):
            raise RetryableError(f"{self._expression}: not all indices say which fields they have")
        types = set(answer.body["fields"].get(INGESTED, {}))
        fields = [CREATED, INGESTED] if types and types <= {"date", "date_nanos"} else [CREATED]
        floor = None if self._since is None else self._since // 1000
        return {"tracks": [Track.new_row(one, floor) for one in fields]}

    # --- one poll -----------------------------------------------------------------------------------------------------

    def _begin(self, now: int) -> _Poll | None:
        """Open a point in time over all that the expression matches; None if that is nothing."""
        elastic = self._cluster.flavour == "elasticsearch"
        path = f"/{segment(self._expression)}/" + ("_pit" if elastic else "_search/point_in_time")
        params: dict[str, Param] = {"keep_alive": _KEEP_ALIVE}
        if not elastic:
            params |= {"allow_partial_pit_creation": False, "allow_no_indices": False}
        answer = self._cluster.request("POST", path, params=params, accept=(404,))
        if answer.status == 404:
            return None
        self._poll = _Poll(answer.body["id" if elastic else "pit_id"], now, self._tracks)
        if "_shards" in answer.body:
            self._check(msgspec.convert({"hits": {"hits": []}, "timed_out": False, **answer.body}, Found))
        if ":" in self._expression:
            self._check_clusters()
        return self._poll

    def _check_clusters(self) -> None:
        """Be sure that no cluster is left out: where that is allowed, older servers open the point in time without a
        word, but a search says so, and over how many shards it went."""
        body = {"size": 0, "query": {"match_none": {}}}
        plain, _ = self._search(body, self._expression)
        body["sort"] = self._sort(CREATED)
        inside, _ = self._search(body)
        if plain.shards["total"] != inside.shards["total"]:
            raise RetryableError(f"{self._expression}: the point in time does not hold all shards")

    def _end(self) -> None:
        poll, self._poll = self._poll, None
        if poll:
            elastic = self._cluster.flavour == "elasticsearch"
            path, body = ("/_pit", {"id": poll.id}) if elastic else ("/_search/point_in_time", {"pit_id": [poll.id]})
            with suppress(VedetteError):  # it ends by itself
                self._cluster.request("DELETE", path, body=body, accept=(404,), timeout_s=2.0)

    def _list(self, poll: _Poll) -> None:
        """Find the next new documents of the first track: up to `at` by name only, since most of them are known."""
        track, floor = poll.left[0]
        whole = track.at is None or (poll.after is not None and poll.after[0] >= track.at)
        size = poll.size = max(poll.size, self._page_size() if whole else MAX_PAGE)
        body: dict[str, Any] = {
            "size": size,
            "query": {"bool": {"filter": self._filter(track, {} if floor is None else {"gte": floor})}},
            "sort": self._sort(track.field),
            "_source": self._fields if whole else False,
        }
        if poll.after is not None:
            body["search_after"] = poll.after
        found, read = self._search(body)
        hits = found.hits.hits
        poll.listed = len(hits) < size
        if not poll.listed and self._cluster.flavour == "opensearch":
            # sequence numbers are unique in a shard only: a page may not end among documents with the same key
            kept = [hit for hit in hits if hit.sort != hits[-1].sort]
            if not kept and size == MAX_PAGE:
                raise RetryableError(f"{self._expression}: more than {size} documents with the key {hits[-1].sort}")
            if not kept:
                poll.size = min(MAX_PAGE, 2 * size)
                return
            hits = kept
        poll.size = 0
        if whole:
            self._weigh(hits, read)
            for hit in hits:
                hit.source = hit.source or _EMPTY
        if hits:
            poll.after = hits[-1].sort
        poll.pending.extend(hit for hit in hits if not track.knows(_digest(hit)) and not _own(hit))

    def _take(self, poll: _Poll, limit: int) -> list[Hit]:
        """Give the next found documents, at most *limit*.

        Once as many are remembered as may be, documents of the future wait for their time.
        """
        track, _ = poll.left[0]
        part: list[Hit] = []
        whole = bool(poll.pending[0].source)
        while poll.pending and len(part) < min(limit, self._page_size()) and bool(poll.pending[0].source) == whole:
            if _time(poll.pending[0]) > poll.now and len(track) + len(part) >= CAP:
                self._counts["held_back"] += len(poll.pending)
                poll.pending.clear()
                poll.listed = True
                break
            part.append(poll.pending.popleft())
        if not part:
            return []
        if not whole:
            self._read(track, part)
        for hit in part:
            track.give(_time(hit), _digest(hit), poll.now)
        if early := track.rise(_time(part[-1])):
            self._counts["overlap_shortened"] += early
        return part

    def _read(self, track: Track, part: Sequence[Hit]) -> None:
        """Put the documents into hits that were only listed; all of them are in the point in time."""
        wanted = {(hit.index, hit.id): hit for hit in part}
        times = {"gte": _time(part[0]), "lt": _time(part[-1]) + 1}
        clauses = [*self._filter(track, times), {"ids": {"values": sorted({id for _, id in wanted})}}]
        body: dict[str, Any] = {
            "size": MAX_PAGE,
            "query": {"bool": {"filter": clauses}},
            "sort": self._sort(track.field),
            "_source": self._fields,
        }
        found, read = self._search(body)
        self._weigh(found.hits.hits, read)
        for one in found.hits.hits:
            if hit := wanted.pop((one.index, one.id), None):
                hit.source = one.source or _EMPTY
        if wanted:
            raise RetryableError(f"{self._expression}: {len(wanted)} listed documents were not given")

    # --- requests -----------------------------------------------------------------------------------------------------

    def _search(self, body: dict[str, Any], expression: str = "") -> tuple[Found, int]:
        """Return the whole answer and its bytes; in the point in time, unless an *expression* is given.

        Parameters are those that serverless projects take, too.
        """
        # Exact totals are not wanted; without any, shards that lie before search_after are left out and, in some
        # versions, documents with them.
        body = {**body, "track_total_hits": 1}
        poll = self._poll
        if not expression:
            assert poll is not None
            body["pit"] = {"id": poll.id, "keep_alive": _KEEP_ALIVE}
        path = f"/{segment(expression)}/_search" if expression else "/_search"
        params: dict[str, Param] = {"allow_partial_search_results": False}
        given = self._cluster.request("POST", path, params=params, body=body, accept=(404,), decode=read_search)
        if given.status == 404:
            raise _Lost
        self._counts["searches"] += 1
        found: Found = given.body
        self._check(found)
        if poll and not expression:
            poll.id = found.pit_id or poll.id
        return found, given.size

    def _check(self, found: Found) -> None:
        if not found.is_whole:
            raise RetryableError(f"{self._expression}: the answer is not whole: {found.shards} {found.clusters}"[:500])

    def _filter(self, track: Track, times: Mapping[str, int]) -> list[Mapping[str, Any]]:
        clauses: list[Mapping[str, Any]] = [*self._span]
        clauses.append({"range": {track.field: {**times, "format": "epoch_millis"}}} if times
                       else {"exists": {"field": track.field}})  # fmt: skip
        if track.field == CREATED and len(self._tracks) > 1:
            clauses.append({"bool": {"must_not": [{"exists": {"field": INGESTED}}]}})
        return clauses

    def _sort(self, field: str) -> list[dict[str, Any]]:
        elastic = self._cluster.flavour == "elasticsearch"
        tie = {"_shard_doc": "asc"} if elastic else {"_seq_no": {"order": "asc", "unmapped_type": "long"}}
        return [{field: {"order": "asc", "numeric_type": "date", "unmapped_type": "date"}}, tie]

    def _page_size(self) -> int:
        return min(MAX_PAGE, max(1, int(self._page_bytes / self._bytes_each))) if self._bytes_each else _FIRST_PAGE

    def _weigh(self, hits: Sequence[Hit], read: int) -> None:
        if hits:
            self._bytes_each = max(read / len(hits), 0.8 * self._bytes_each)

    def _chunks(self, hits: Iterable[Hit]) -> Iterable[Chunk]:
        for index, group in groupby(hits, key=lambda hit: hit.index):
            part = list(group)
            keys = [hit.id for hit in part]
            raw = [hit.raw for hit in part]
            yield Chunk(self._expression, index, self._format, keys, raw, lineage=index)


def _time(hit: Hit) -> int:
    return hit.sort[0]


def _digest(hit: Hit) -> bytes:
    name = f"{hit.index}\0{hit.id}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, digest_size=_DIGEST).digest()


def _own(hit: Hit) -> bool:
    name = hit.index.rpartition(":")[2]
    return any(matches(pattern, name) for pattern in OWN)
