"""Reading by time on real servers: three shards, equal times across page edges, late documents, restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest

from agent.errors import RetryableError
from agent.model import DOCUMENT, SECOND
from connectors.siem import timed as room
from connectors.siem.client import segment
from connectors.siem.timed import Page, Timed
from tests.servers import Server
from tests.siem import bulk, connected, remove

NOW = 1_767_225_600 * SECOND
"""2026-01-01T00:00:00Z"""


class Upstream:
    """Indices under one name of their own."""

    def __init__(self, server: Server) -> None:
        self.name = f"timed-{uuid4().hex[:12]}"
        self.cluster = connected(server.flavour, server.access())
        self.number = 0

    @property
    def pattern(self) -> str:
        return f"{self.name}-*"

    def index(self, name: str = "a", time: str = "date", **settings: Any) -> str:
        settings = {"number_of_shards": 3, "number_of_replicas": 0, "refresh_interval": "-1", **settings}
        fields = {"@timestamp": {"type": time}}
        body = {"settings": settings, "mappings": {"properties": fields}}
        self.cluster.request("PUT", f"/{self.name}-{name}", body=body)
        return f"{self.name}-{name}"

    def put(self, *times: int | str, name: str = "a", **fields: Any) -> list[str]:
        """Make one document at each of *times* (µs, or as written) searchable; return their ids."""
        lines, ids = [], []
        for time in times:
            self.number += 1
            ids.append(f"{self.number:06}")
            when = time if isinstance(time, str) else time // 1000
            lines += [{"create": {"_id": ids[-1]}}, {"@timestamp": when, "number": self.number, "rest": "x", **fields}]
        bulk(self.cluster, f"{self.name}-{name}", lines)
        return ids

    def reader(self, expression: str = "", **options: Any) -> Timed:
        base: dict[str, Any] = {"fields": ["@timestamp", "number"], "format": DOCUMENT, "page_bytes": 1 << 20}
        return Timed(self.cluster, expression or self.pattern, **{**base, "since": None, **options})

    def close(self) -> None:
        remove(self.cluster, self.pattern)
        self.cluster.close()


@pytest.fixture
def upstream(siem: Server) -> Iterator[Upstream]:
    made = Upstream(siem)
    yield made
    made.close()


@pytest.fixture(params=[9, 10_000], ids=["small pages", "great pages"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many hits a search gives at most: more than there are shards, see `Timed._list`."""
    monkeypatch.setattr(room, "MAX_PAGE", request.param)


def ids(page: Page) -> list[str]:
    return [str(key) for chunk in page.chunks for key in chunk.keys]


def stored(row: Mapping[str, Any] | None) -> Any:
    return json.loads(json.dumps(row))


def poll(
    reader: Timed, row: Mapping[str, Any] | None, limit: int = 1000, now: int = NOW
) -> tuple[list[str], Mapping[str, Any] | None]:
    """Fetch until the poll is at its end."""
    found: list[str] = []
    while True:
        page = reader.fetch(row, limit, now)
        assert len(ids(page)) <= limit
        found += ids(page)
        row = page.row
        if not page.more:
            reader.close()
            return found, row


def several(upstream: Upstream) -> list[str]:
    """Make documents of which many have the same time, in two indices."""
    upstream.index()
    upstream.index("b", time="date_nanos")
    same = [NOW - 60 * SECOND] * 12
    made = upstream.put(*same, *[NOW - step * SECOND for step in range(20, 10, -1)])
    return made + upstream.put(*same, NOW - 400 * SECOND, "2025-12-31T23:59:00.000000789Z", name="b")


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("limit", [1, 7])
def test_documents_of_equal_times_are_all_given_once(upstream: Upstream, limit: int) -> None:
    made = several(upstream)
    found, row = poll(upstream.reader(), None, limit)
    assert sorted(found) == sorted(made)
    assert poll(upstream.reader(), stored(row), limit) == ([], row)


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("limit", [1, 5])
def test_a_reader_that_starts_anew_at_every_row_gives_what_the_old_one_would(upstream: Upstream, limit: int) -> None:
    several(upstream)
    going, row = upstream.reader(), None
    for _ in range(12):
        page = going.fetch(row, limit, NOW)
        fresh = upstream.reader()
        again = fresh.fetch(stored(row), limit, NOW)
        assert [list(chunk.raw) for chunk in again.chunks] == [list(chunk.raw) for chunk in page.chunks]
        assert (again.chunks, again.row) == (page.chunks, page.row)
        fresh.close()
        row = page.row
    going.close()


@pytest.mark.usefixtures("pages")
def test_late_documents_within_the_overlap_are_given_and_later_ones_are_not(upstream: Upstream) -> None:
    upstream.index()
    made = upstream.put(NOW - 1000 * SECOND, NOW)
    found, row = poll(upstream.reader(), None)
    assert found == made
    overlap = room.OVERLAP_S * SECOND
    late = upstream.put(NOW - overlap, NOW - overlap // 2, NOW)
    too_late = upstream.put(NOW - overlap - SECOND)
    found, row = poll(upstream.reader(), stored(row), 2)
    assert found == late
    assert not set(too_late) & set(found)
    assert poll(upstream.reader(), stored(row))[0] == []


def test_a_document_of_the_year_9999_is_given_once_and_blinds_nobody(upstream: Upstream) -> None:
    upstream.index()
    future = upstream.put("9999-12-31T23:59:59.999Z", NOW + 3600 * SECOND)
    found, row = poll(upstream.reader(), None)
    assert sorted(found) == future
    made = upstream.put(NOW + SECOND, NOW - SECOND)
    found, row = poll(upstream.reader(), stored(row), now=NOW + 2 * SECOND)
    assert sorted(found) == made
    assert poll(upstream.reader(), stored(row), now=NOW + 3 * SECOND)[0] == []


@pytest.mark.usefixtures("pages")
def test_documents_are_read_by_ingest_time_and_those_without_by_their_own(upstream: Upstream) -> None:
    upstream.index()
    old = upstream.put(NOW - 90_000 * SECOND, event={"ingested": "2026-01-01T00:00:00Z"})
    plain = upstream.put(NOW - SECOND)
    found, row = poll(upstream.reader(since=NOW - 3600 * SECOND), None, 1)
    assert sorted(found) == old + plain
    assert row is not None
    assert [track["field"] for track in row["tracks"]] == ["@timestamp", "event.ingested"]
    assert "event.ingested, or @timestamp where that is missing" in room.promise(row)
    backdated = upstream.put(NOW - 80_000 * SECOND, event={"ingested": "2026-01-01T00:00:00Z"})
    assert poll(upstream.reader(), stored(row), 1)[0] == backdated


def test_an_ingest_time_that_is_no_date_everywhere_is_not_used(upstream: Upstream) -> None:
    upstream.index()
    upstream.index("b")
    made = upstream.put(NOW - SECOND, event={"ingested": "2026-01-01T00:00:00Z"})
    made += upstream.put(NOW - SECOND, name="b", event={"ingested": "yesterday"})
    found, row = poll(upstream.reader(), None)
    assert row is not None
    assert [track["field"] for track in row["tracks"]] == ["@timestamp"]
    assert sorted(found) == made


def test_a_reader_begins_at_since(upstream: Upstream) -> None:
    upstream.index()
    upstream.put(NOW - 100 * SECOND)
    made = upstream.put(NOW - 99 * SECOND)
    assert poll(upstream.reader(since=NOW - 99 * SECOND), None)[0] == made


def test_a_span_is_kept_to(upstream: Upstream) -> None:
    upstream.index()
    upstream.put(NOW - 100 * SECOND)
    made = upstream.put(NOW - 50 * SECOND)
    upstream.put(NOW)
    bounds = {"gte": (NOW - 99 * SECOND) // 1000, "lt": NOW // 1000, "format": "epoch_millis"}
    assert poll(upstream.reader(span=[{"range": {"@timestamp": bounds}}]), None)[0] == made


def test_where_nothing_matches_there_is_nothing(upstream: Upstream) -> None:
    for expression in ("", f"{upstream.name}-none"):
        assert upstream.reader(expression).fetch(None, 10, NOW) == Page((), None, False)
    upstream.index("none")
    page = upstream.reader().fetch(None, 10, NOW)
    assert (page.chunks, page.more) == ((), False)
    assert page.row is not None
    upstream.cluster.request("DELETE", f"/{upstream.name}-none")
    assert upstream.reader().fetch(page.row, 10, NOW).chunks == ()
    assert upstream.reader(f"{upstream.name}-none").fetch(page.row, 10, NOW).chunks == ()


def test_an_index_that_vanishes_in_a_poll_does_not_stop_the_others(upstream: Upstream) -> None:
    upstream.index()
    upstream.index("b")
    made = upstream.put(*[NOW] * 4)
    upstream.put(*[NOW + SECOND] * 4, name="b")
    reader = upstream.reader()
    page = reader.fetch(None, 1, NOW + SECOND)
    upstream.cluster.request("DELETE", f"/{upstream.name}-b")
    rest: set[str] = set(ids(page))
    row = page.row
    for _ in range(20):
        try:
            page = reader.fetch(row, 3, NOW + SECOND)
        except RetryableError:
            continue
        rest |= set(ids(page))
        row = page.row
    assert set(made) <= rest


def test_a_lost_point_in_time_is_opened_anew(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_PAGE", 4)
    upstream.index()
    made = upstream.put(*[NOW] * 9)
    reader = upstream.reader()
    page = reader.fetch(None, 2, NOW)
    assert page.more
    elastic = upstream.cluster.flavour == "elasticsearch"
    assert reader._poll
    id = reader._poll.id
    path, body = ("/_pit", {"id": id}) if elastic else ("/_search/point_in_time", {"pit_id": [id]})
    upstream.cluster.request("DELETE", path, body=body)
    found, _ = poll(reader, page.row)
    assert sorted(ids(page) + found) == made


def test_no_point_in_time_stays_open(upstream: Upstream) -> None:
    several(upstream)

    def open_contexts() -> int:
        path = f"/{segment(upstream.pattern)}/_stats/search"
        answer = upstream.cluster.request("GET", path).body["_all"]["total"]["search"]
        return int(answer.get("open_contexts", 0) + answer.get("point_in_time_current", 0))

    reader = upstream.reader()
    assert reader.fetch(None, 1, NOW).more
    assert open_contexts()
    reader.close()
    assert not open_contexts()
    poll(upstream.reader(), None, 5)
    assert not open_contexts()


def test_a_chunk_holds_documents_of_one_index_with_only_the_fields_wanted(upstream: Upstream) -> None:
    upstream.index()
    upstream.index("b")
    first = upstream.put(NOW - SECOND)
    second = upstream.put(NOW, name="b")
    page = upstream.reader().fetch(None, 10, NOW)
    one, two = page.chunks
    assert (one.partition, one.path, one.lineage) == (upstream.pattern, f"{upstream.name}-a", f"{upstream.name}-a")
    assert (list(one.keys), list(two.keys), two.path, one.format) == (first, second, f"{upstream.name}-b", DOCUMENT)
    assert raws(page)[0] == {"@timestamp": NOW // 1000 - 1000, "number": 1}
    whole = upstream.reader(fields=True).fetch(None, 10, NOW)
    assert [one["rest"] for one in raws(whole)] == ["x", "x"]


def raws(page: Page) -> Sequence[Any]:
    return [json.loads(one) for chunk in page.chunks for one in chunk.raw]


# --- other clusters ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["elasticsearch8", "elasticsearch9"])
def remote(request: pytest.FixtureRequest) -> Iterator[tuple[Upstream, str, str]]:
    """A cluster that is its own remote; and the names of that remote and of one that cannot be reached."""
    upstream = Upstream(request.getfixturevalue(request.param))
    near, gone = (f"{kind}{uuid4().hex[:8]}" for kind in ("near", "gone"))
    node = next(iter(upstream.cluster.request("GET", "/_nodes/transport").body["nodes"].values()))
    seeds = {near: node["transport"]["publish_address"], gone: "127.0.0.1:1"}

    def configure(on: bool) -> None:
        settings = {f"cluster.remote.{name}.seeds": [seed] if on else None for name, seed in seeds.items()}
        settings[f"cluster.remote.{gone}.skip_unavailable"] = True if on else None
        settings[f"cluster.remote.{near}.skip_unavailable"] = True if on else None
        upstream.cluster.request("PUT", "/_cluster/settings", body={"persistent": settings})

    configure(True)
    yield upstream, near, gone
    configure(False)
    upstream.close()


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("limit", [1, 4])
def test_a_remote_cluster_is_read_like_a_local_one(remote: tuple[Upstream, str, str], limit: int) -> None:
    upstream, near, _ = remote
    made = several(upstream)
    expression = f"{near}:{upstream.pattern}"
    found, row = poll(upstream.reader(expression), None, limit)
    assert sorted(found) == sorted(made)
    late = upstream.put(*[NOW - 60 * SECOND] * 3)
    page = upstream.reader(expression).fetch(stored(row), 10, NOW)
    assert sorted(ids(page)) == late
    assert {chunk.path for chunk in page.chunks} == {f"{near}:{upstream.name}-a"}


def test_a_remote_cluster_that_may_be_left_out_is_not_left_out(remote: tuple[Upstream, str, str]) -> None:
    upstream, near, gone = remote
    upstream.index()
    made = upstream.put(NOW)
    found, row = poll(upstream.reader(f"{near}:{upstream.pattern}"), None)
    assert found == made
    for here in (f"{near}:{upstream.pattern}", upstream.pattern):
        with pytest.raises(RetryableError, match="not all indices"):
            upstream.reader(f"{here},{gone}:{upstream.pattern}").fetch(None, 10, NOW)
        with pytest.raises(RetryableError, match=r"not whole|not hold all shards"):
            upstream.reader(f"{here},{gone}:{upstream.pattern}").fetch(row, 10, NOW)
