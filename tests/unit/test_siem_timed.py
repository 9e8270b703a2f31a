"""Reading by time against a model of a store, and against answers written after the vendors' documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import RetryableError
from agent.model import DOCUMENT, SECOND
from connectors.siem import timed as room
from connectors.siem.client import Access, Cluster
from connectors.siem.timed import CREATED, INGESTED, Page, Timed, promise
from tests.fake_siem import FakeSiem, Fault, Reply, Request

Hit = dict[str, Any]
NOW = 1_767_225_600 * SECOND
OVERLAP = room.OVERLAP_S


class Store(FakeSiem):
    """Documents that become searchable when `show` is called, searched in points in time by the queries of a reader."""

    def __init__(self, flavour: Any = "elasticsearch", types: Mapping[str, Any] | None = None) -> None:
        super().__init__(flavour)
        self.types = types or {}
        self.visible: list[Hit] = []
        self.pits: dict[str, list[Hit]] = {}
        self.opened = 0

    def __enter__(self) -> Store:
        super().__enter__()
        return self

    def show(self, id: str, time: int | None, index: str = "logs-a", ingested: int | None = None) -> None:
        """Make a document searchable; times are ms."""
        times = {CREATED: time, INGESTED: ingested}
        self.visible.append({"_index": index, "_id": id, "times": times, "number": len(self.visible)})

    def answer(self, request: Request) -> Any:
        if request.method == "DELETE" and not self._script.get(request.last):
            self.requests.append(request)
            return self.reply(request)
        return super().answer(request)

    def reply(self, request: Request) -> Reply:
        body = json.loads(request.body) if request.body else {}
        if request.last == "_field_caps":
            fields = {INGESTED: self.types} if self.types else {}
            return Reply(body={"indices": sorted({hit["_index"] for hit in self.visible}), "fields": fields})
        if request.last in ("_pit", "point_in_time"):
            if request.method == "DELETE":
                for id in [body["id"]] if "id" in body else body["pit_id"]:
                    self.pits.pop(id, None)
                return Reply()
            self.opened += 1
            self.pits[f"pit{self.opened}"] = list(self.visible)
            key = "id" if request.last == "_pit" else "pit_id"
            return Reply(body={key: f"pit{self.opened}", "_shards": shards()})
        if request.last == "_search":
            return self._search(body)
        return super().reply(request)

    def _search(self, body: dict[str, Any]) -> Reply:
        if "pit" in body and body["pit"]["id"] not in self.pits:
            return missing()
        held = self.pits[body["pit"]["id"]] if "pit" in body else self.visible
        field = next(iter(body["sort"][0])) if "sort" in body else CREATED
        found = [hit for hit in held if self._matches(hit, body["query"])]
        hits = []
        for hit in sorted(found, key=lambda hit: (hit["times"][field], hit["number"])):
            shared = self.flavour == "opensearch"  # `_seq_no` is given once in each shard, `_shard_doc` once
            sort = [hit["times"][field], hit["number"] // 2 if shared else hit["number"]]
            if sort > body.get("search_after", []):
                source = {"_source": {"id": hit["_id"]}} if body.get("_source", True) else {}
                hits.append({"_index": hit["_index"], "_id": hit["_id"], "sort": sort, **source})
        pit = {"pit_id": body["pit"]["id"]} if "pit" in body else {}
        return Reply(body={**pit, "timed_out": False, "_shards": shards(), "hits": {"hits": hits[: body["size"]]}})

    def _matches(self, hit: Hit, query: Mapping[str, Any]) -> bool:
        ((kind, value),) = query.items()
        if kind == "bool":
            wanted = all(self._matches(hit, one) for one in value.get("filter", ()))
            return wanted and not any(self._matches(hit, one) for one in value.get("must_not", ()))
        if kind == "ids":
            return hit["_id"] in value["values"]
        if kind == "exists":
            return hit["times"][value["field"]] is not None
        if kind == "match_none":
            return False
        assert kind == "range"
        ((field, bounds),) = value.items()
        time = hit["times"][field]
        return time is not None and bounds.get("gte", time) <= time < bounds.get("lt", time + 1)


def shards(total: int = 3, **more: int) -> dict[str, int]:
    return {"total": total, "successful": total, "skipped": 0, "failed": 0, **more}


def missing() -> Reply:
    """What both servers say of a point in time that is gone: /docs/api/doc/elasticsearch/operation/operation-search."""
    cause = {"type": "search_context_missing_exception", "reason": "No search context found for id [1]"}
    error = {"root_cause": [cause], "type": "search_phase_execution_exception", "reason": "all shards failed"}
    return Reply(404, {"error": error, "status": 404})


def reader(store: Store, expression: str = "logs-*", **options: Any) -> Timed:
    cluster = Cluster("test", store.flavour, Access(**store.access()))
    base: dict[str, Any] = {"fields": True, "format": DOCUMENT, "page_bytes": 1 << 20, "since": None}
    return Timed(cluster, expression, **{**base, **options})


def ids(page: Page) -> list[str]:
    return [str(key) for chunk in page.chunks for key in chunk.keys]


def stored(row: Mapping[str, Any] | None) -> Any:
    return json.loads(json.dumps(row))


def poll(timed: Timed, row: Any, limit: int = 100, now: int = NOW) -> tuple[list[str], Any]:
    """Fetch until the poll is at its end."""
    found: list[str] = []
    while True:
        page = timed.fetch(row, limit, now)
        found += ids(page)
        row = page.row
        if not page.more:
            return found, row


@pytest.fixture(params=["elasticsearch", "opensearch"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store(request.param) as running:
        yield running


@contextmanager
def capped(cap: int, page: int = 10_000) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CAP", cap)
        patch.setattr(room, "MAX_PAGE", page)
        yield


# --- the promise ------------------------------------------------------------------------------------------------------

EVENT = st.tuples(
    st.integers(0, 3 * OVERLAP),  # its time, s after the start
    st.one_of(st.integers(-OVERLAP, OVERLAP), st.sampled_from([0, OVERLAP])),  # how much later it is searchable, s
    st.booleans(),  # whether it has an ingest time
)


class _Life:
    """A reader that lives through random stops, on a store whose documents come late."""

    def __init__(self, store: Store, events: list[tuple[int, int, bool]]) -> None:
        self.store = store
        self.start = NOW // 1000
        self.waiting = sorted(
            (max(0, time + late), number, time, has) for number, (time, late, has) in enumerate(events)
        )
        self.clock = 0
        self.row: Any = None
        self.found: list[str] = []
        self.timed = reader(store)

    def wait(self, seconds: int) -> None:
        self.clock += seconds
        while self.waiting and self.waiting[0][0] <= self.clock:
            _, number, time, has = self.waiting.pop(0)
            when = self.start + 1000 * time
            self.store.show(str(number), when, f"logs-{number % 2}", when if has else None)

    def fetch(self, limit: int, commit: bool = True, new: bool = False) -> bool:
        """Fetch once, in a new process if *new*; without a commit it is as if the process had died."""
        if new:
            self.timed = reader(self.store)
        page = self.timed.fetch(self.row, limit, NOW + SECOND * self.clock)
        assert len(ids(page)) <= limit
        if commit:
            self.row = stored(page.row) if new else page.row
            self.found += ids(page)
        return page.more


STEP = st.tuples(st.sampled_from([0, 0, 1, 20, 100, OVERLAP]), st.integers(1, 9), st.booleans(), st.booleans())


@given(
    st.sampled_from(["elasticsearch", "opensearch"]),
    st.lists(EVENT, max_size=40),
    st.lists(STEP, max_size=25),
    st.sampled_from([3, 5, 10_000]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_documents_not_later_than_the_overlap_are_given_exactly_once(
    flavour: str, events: list[tuple[int, int, bool]], steps: list[tuple[int, int, bool, bool]], page: int, both: bool
) -> None:
    """For any limit, any size of pages, a stop at any place."""
    with Store(flavour, {"date": {}} if both else None) as store, capped(1_000_000, page):
        life = _Life(store, events)
        for seconds, limit, commit, new in steps:
            life.wait(seconds)
            life.fetch(limit, commit, new)
        life.wait(10 * OVERLAP)
        for _ in range(2):  # the first ends a poll that began before the last documents came
            while life.fetch(7):
                pass
        assert sorted(life.found, key=int) == [str(number) for number in range(len(events))]


def test_a_document_later_than_the_overlap_is_the_one_that_is_missed(store: Store) -> None:
    store.show("seen", NOW // 1000)
    found, row = poll(reader(store), None)
    store.show("late", NOW // 1000 - 1000 * OVERLAP)
    store.show("too late", NOW // 1000 - 1000 * OVERLAP - 1)
    found, row = poll(reader(store), row)
    assert found == ["late"]


def test_the_promise_names_the_times_that_it_is_about(store: Store) -> None:
    store.show("a", 1)
    assert "than 5 minutes after" in promise(None)
    assert "read by @timestamp:" in promise(poll(reader(store), None)[1])
    store.types = {"date": {}, "date_nanos": {}}
    assert f"read by {INGESTED}, or {CREATED} where that is missing" in promise(poll(reader(store), None)[1])
    store.types = {"date": {}, "keyword": {}}
    assert "read by @timestamp:" in promise(poll(reader(store), None)[1])


def test_a_poll_that_lasts_does_not_lose_what_came_meanwhile(store: Store) -> None:
    """The position never passes the moment when the poll began, even where an event of the future was read."""
    store.show("a", NOW // 1000)
    store.show("future", NOW // 1000 + 9 * 60_000)
    timed = reader(store)
    page = timed.fetch(None, 1, NOW)
    store.show("b", NOW // 1000 + 2 * 60_000)
    rest = timed.fetch(page.row, 1, NOW + 10 * 60 * SECOND)
    assert ids(page) + ids(rest) == ["a", "future"]
    assert poll(timed, rest.row, now=NOW + 10 * 60 * SECOND)[0] == ["b"]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_past_the_cap_the_overlap_is_shortened_and_counted(store: Store) -> None:
    with capped(5):
        for second in range(20):
            store.show(f"{second}", NOW // 1000 + 1000 * second)
        page = reader(store).fetch(None, 100, NOW + 60 * SECOND)
        assert len(ids(page)) == 20
        assert page.counts["overlap_shortened"] == 15
        assert page.row is not None
        (track,) = page.row["tracks"]
        assert (track["floor"], len(track["seen"])) == (NOW // 1000 + 15_000, 5)
        store.show("missed", NOW // 1000 + 14_999)
        store.show("found", NOW // 1000 + 15_000)
        assert poll(reader(store), page.row, now=NOW + 60 * SECOND)[0] == ["found"]


def test_a_full_memory_does_not_lose_the_late_documents_of_a_poll_that_goes_on(store: Store) -> None:
    with capped(5):
        for second in range(5):
            store.show(f"{second}", NOW // 1000 + 1000 * second)
        _, row = poll(reader(store), None, now=NOW + 60 * SECOND)
        for number in range(4):
            store.show(f"late {number}", NOW // 1000 + 1000 + number)
        found = []
        for _ in range(6):
            page = reader(store).fetch(row, 1, NOW + 60 * SECOND)
            found += ids(page)
            row = stored(page.row)
        assert found == [f"late {number}" for number in range(4)]


def test_documents_of_one_instant_are_remembered_however_many_there_are(store: Store) -> None:
    with capped(5, 4):
        for number in range(20):
            store.show(f"{number}", NOW // 1000)
        found, row = [], None
        for _ in range(25):
            page = reader(store).fetch(row, 1, NOW)
            found += ids(page)
            row = stored(page.row)
        assert sorted(found, key=int) == [str(number) for number in range(20)]


def test_documents_of_the_future_wait_for_their_time_once_the_memory_is_full(store: Store) -> None:
    with capped(4, 6):
        for number in range(10):
            store.show(f"future {number}", NOW // 1000 + 3_600_000 + number)
        page = reader(store).fetch(None, 100, NOW)
        assert len(ids(page)) == 4
        assert page.counts["held_back"]
        assert len(store.sent("_search")) == 1
        store.show("present", NOW // 1000)
        found, row = poll(reader(store), page.row, now=NOW + SECOND)
        assert found == ["present"]
        found, row = poll(reader(store), row, now=NOW + 3601 * SECOND)
        assert found == [f"future {number}" for number in range(4, 10)]
        assert poll(reader(store), row, now=NOW + 7200 * SECOND)[0] == []


def test_the_row_keeps_digests_no_longer_than_the_overlap(store: Store) -> None:
    row: Any = None
    for second in range(0, 10 * OVERLAP, OVERLAP // 2):
        store.show(f"{second}", NOW // 1000 + 1000 * second)
        found, row = poll(reader(store), row, now=NOW + second * SECOND)
        assert found == [f"{second}"]
        assert len(row["tracks"][0]["seen"]) <= 3


# --- one fetch --------------------------------------------------------------------------------------------------------


def test_documents_that_are_known_are_not_read_again(store: Store) -> None:
    for number in range(50):
        store.show(f"{number}", NOW // 1000 - number)
    _, row = poll(reader(store), None)
    store.show("new", NOW // 1000 - 7)
    store.requests.clear()
    with capped(100, 30):
        assert poll(reader(store), row)[0] == ["new"]
    first, second, reading = (json.loads(request.body) for request in store.sent("_search"))
    assert first["_source"] is second["_source"] is False
    assert {"ids": {"values": ["new"]}} in reading["query"]["bool"]["filter"]


def test_pages_are_bounded_by_bytes(store: Store) -> None:
    for number in range(2000):
        store.show(f"{number}", NOW // 1000)
    timed = reader(store, page_bytes=10_000)
    page = timed.fetch(None, 2000, NOW)
    assert len(ids(page)) < 2000
    found, _ = poll(timed, page.row, 2000)
    assert len(set(ids(page) + found)) == 2000
    sizes = [json.loads(request.body)["size"] for request in store.sent("_search")]
    assert max(sizes[1:]) < sizes[0]


def test_what_vedette_writes_is_never_read(store: Store) -> None:
    for index in ("logs-vedette.alert-default", ".ds-logs-vedette.alert-default-000001", "b:logs-vedette.alert-x",
                  "logs-vedette.audit-default", ".ds-logs-vedette.audit-default-000001",
                  ".internal.alerts-security-000001"):  # fmt: skip
        store.show(f"{index}", NOW // 1000, index)
    store.show("a", NOW // 1000)
    assert poll(reader(store), None)[0] == ["a"]


def test_a_lost_point_in_time_begins_the_poll_again_and_no_more_than_once(store: Store) -> None:
    for number in range(6):
        store.show(f"{number}", NOW // 1000 - number)
    timed = reader(store)
    with capped(100, 2):
        page = timed.fetch(None, 2, NOW)
        store.pits.clear()
        found, row = poll(timed, page.row, 2)
        assert sorted(ids(page) + found) == [str(number) for number in range(6)]
        store.show("new", NOW // 1000)
        store.on("_search", lambda _: missing(), lambda _: missing())
        with pytest.raises(RetryableError, match="lost twice"):
            timed.fetch(row, 2, NOW)
        assert poll(timed, row)[0] == ["new"]


@pytest.mark.parametrize(
    "fault",
    [Reply(500), Reply(503), Reply(429), Reply(400, {"error": {"type": "x", "reason": "y"}}), Reply(403),
     Fault("reset"), Fault("truncate"), Reply(body={"took": 1}), Reply(body=[]),
     Reply(body={"timed_out": True, "_shards": shards(), "hits": {"hits": []}}),
     Reply(body={"timed_out": False, "_shards": shards(failed=1), "hits": {"hits": []}}),
     Reply(body={"timed_out": False, "_shards": shards(successful=2), "hits": {"hits": []}})],
)  # fmt: skip
def test_only_whole_answers_count(store: Store, fault: Any) -> None:
    store.show("a", NOW // 1000)
    timed = reader(store)
    store.on("_search", fault)
    with pytest.raises(RetryableError):
        timed.fetch(None, 10, NOW)
    assert not store.pits
    for last in ("_field_caps", "_pit", "point_in_time"):
        if isinstance(fault, Fault) or fault.status >= 400:
            store.on(last, fault)
    with pytest.raises(RetryableError) if store._script["_pit"] else contextmanager(lambda: iter([None]))():
        timed.fetch(None, 10, NOW)
    store._script.clear()
    assert ids(timed.fetch(None, 10, NOW)) == ["a"]


# --- answers after the documentation, of what cannot be tried here ----------------------------------------------------


def test_a_cluster_that_was_skipped_makes_the_answer_not_whole() -> None:
    """After /docs/explore-analyze/cross-cluster-search (`_clusters` with `details`): skip_unavailable lets a search
    succeed without a cluster."""
    clusters = {"total": 2, "successful": 1, "skipped": 1, "running": 0, "partial": 0, "failed": 0,
                "details": {"a": {"status": "successful", "indices": "logs-*", "took": 1, "timed_out": False},
                            "b": {"status": "skipped", "indices": "logs-*", "timed_out": False}}}  # fmt: skip
    with Store() as store:
        store.show("x", NOW // 1000, "a:logs-1")
        for state in ("skipped", "partial", "failed", "running"):
            said = {**clusters, "skipped": 0, state: 1}
            answer = {"timed_out": False, "_shards": shards(), "_clusters": said, "hits": {"hits": []}}
            store.on("_search", Reply(body=answer))
            with pytest.raises(RetryableError, match="not whole"):
                reader(store, "*:logs-*").fetch(None, 10, NOW)
        assert poll(reader(store, "*:logs-*"), None)[0] == ["x"]


def test_a_cluster_that_is_left_out_of_the_point_in_time_is_noticed() -> None:
    """Open point in time (/docs/api/doc/elasticsearch/operation/operation-open-point-in-time) leaves a cluster with
    skip_unavailable out: newer servers say so in `_clusters`, older ones only hold fewer shards."""
    with Store() as store:
        store.show("x", NOW // 1000, "a:logs-1")
        skipped = {"total": 2, "successful": 1, "skipped": 1, "running": 0, "partial": 0, "failed": 0}
        store.on("_pit", Reply(body={"id": "pit9", "_shards": shards(), "_clusters": skipped}))
        with pytest.raises(RetryableError, match="not whole"):
            reader(store, "*:logs-*").fetch(None, 10, NOW)
        store.on("_search", Reply(body={"timed_out": False, "_shards": shards(5), "hits": {"hits": []}}))
        with pytest.raises(RetryableError, match="does not hold all shards"):
            reader(store, "*:logs-*").fetch(None, 10, NOW)


def test_fields_of_a_remote_index_that_failed_are_not_guessed() -> None:
    """After /docs/api/doc/elasticsearch/operation/operation-field-caps: `failed_indices` and `failures`."""
    failures = [{"indices": ["b:logs-1"], "failure": {"error": {"type": "connect_transport_exception"}}}]
    with Store() as store:
        store.show("x", NOW // 1000, "a:logs-1")
        answer = {"indices": ["a:logs-1"], "fields": {}, "failed_indices": 1, "failures": failures}
        store.on("_field_caps", Reply(body=answer))
        with pytest.raises(RetryableError, match="not all indices"):
            reader(store, "*:logs-*").fetch(None, 10, NOW)


def test_serverless_gets_only_parameters_that_it_documents() -> None:
    """Query parameters of /docs/api/doc/elasticsearch-serverless/operation/operation-open-point-in-time, -search-1 and
    -field-caps-1; its open point in time answers with `id` and `_shards`."""
    allowed = {"_pit": {"keep_alive"}, "_search": {"allow_partial_search_results"}, "_field_caps": {"fields"}}
    with Store(types={"date": {}}) as store:
        store.show("x", NOW // 1000, ".ds-logs-x-2026.01.01-000001", NOW // 1000)
        assert poll(reader(store), None)[0] == ["x"]
        for request in store.requests:
            assert set(request.query) <= allowed[request.last]
        paths = {request.path for request in store.requests}
        assert paths == {"/logs-*/_field_caps", "/logs-*/_pit", "/_search", "/_pit"}


def test_an_answer_without_shards_at_opening_is_taken() -> None:
    """Open point in time of servers before 8.16 answers with `id` alone."""
    with Store() as store:
        store.show("x", NOW // 1000)
        store.pits["old"] = list(store.visible)
        store.on("_pit", Reply(body={"id": "old"}))
        assert poll(reader(store), None)[0] == ["x"]


def test_documents_without_a_stored_source_are_given_empty(store: Store) -> None:
    """After /docs/reference/elasticsearch/mapping-reference/mapping-source-field: hits then have no `_source`; in
    logsdb, where it is made up when it is read, they have one like any other."""
    store.show("x", NOW // 1000)
    hit = {"_index": "logs-a", "_id": "x", "sort": [NOW // 1000, 0]}
    store.on("_search", Reply(body={"timed_out": False, "_shards": shards(), "hits": {"hits": [hit]}}))
    page = reader(store).fetch(None, 10, NOW)
    assert [list(chunk.raw) for chunk in page.chunks] == [[b"{}"]]
