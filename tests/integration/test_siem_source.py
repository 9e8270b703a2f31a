"""The change feed on real servers: every trap of a SIEM that changes while it is read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import orjson
import pytest

from agent.errors import ConfigError, RetryableError
from agent.model import Cursor, Identity, Notice, Records
from agent.testing import documents, identities, stored_cursor
from connectors.siem.source import Options, SiemSource
from tests.servers import Server
from tests.siem import bulk, connected, remove, snapshot, started

NOW = 1_764_000_000_000_000


class Upstream:
    """A server's indices with a prefix of their own, and a reader of them."""

    def __init__(self, server: Any, **options: Any) -> None:
        self.server = server
        self.prefix = f"feed{uuid4().hex[:10]}"
        self.cluster = connected(server.flavour, server.access())
        self.options = {"indices": [f"{self.prefix}*"], "start": "earliest", "searches_per_second": 100, **options}
        self.source = self.open()
        self.cursor: Cursor | None = None
        self.got: Counter[str] = Counter()
        """How often each document number was given."""
        self.seen: set[Identity] = set()
        self.notices: list[Notice] = []
        self.counts: Counter[str] = Counter()

    def open(self, **more: Any) -> SiemSource:
        options = Options.model_validate({**self.server.access(), **self.options, **more})
        source = SiemSource("logs", self.server.flavour, options, lambda: time.time_ns() // 1000)
        source.open(frozenset())
        return source

    def index(self, name: str, **settings: Any) -> str:
        full = f"{self.prefix}-{name}"
        body = {"settings": {"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "-1", **settings}}
        self.cluster.request("PUT", f"/{full}", body=body)
        return full

    def write(self, index: str, numbers: Sequence[int], *, refresh: bool = True, **fields: Any) -> None:
        lines = [
            line
            for number in numbers
            for line in (
                {"index": {"_id": str(number)}},
                {"@timestamp": "2026-01-01T00:00:00Z", "number": number, **fields},
            )
        ]
        bulk(self.cluster, index, lines, refresh=refresh)

    def refresh(self, index: str) -> None:
        self.cluster.request("POST", f"/{index}/_refresh")

    def fetch(self, limit: int = 1000) -> Records:
        records = self.source.fetch(self.cursor, limit)
        self.cursor = stored_cursor(records.cursor)
        self.got.update(str(document["number"]) for document in documents(records))
        self.seen.update(identities(records))
        self.notices += records.notices
        self.counts.update(records.counts)
        return records

    def settle(self, fetches: int = 6, limit: int = 1000) -> None:
        """Fetch until nothing has come several times."""
        quiet = 0
        for _ in range(400):
            quiet = 0 if len(self.fetch(limit)) else quiet + 1
            if quiet >= fetches:
                return
            time.sleep(0.03)
        raise AssertionError("does not come to rest")

    def until(self, holds: Callable[[Records], object]) -> None:
        """Fetch until *holds* of what a fetch gave; AssertionError if that takes half a minute."""
        end = time.monotonic() + 30
        while not holds(self.fetch()):
            assert time.monotonic() < end, "not in time"
            time.sleep(0.03)

    def look(self) -> None:
        """Let the next fetch find out which indices there are, as one does that comes long after the last."""
        self.source._looked_at = 0.0

    def restart(self) -> None:
        """Begin again with the cursor alone."""
        self.source.close()
        self.source = self.open()

    def close(self) -> None:
        self.source.close()
        remove(self.cluster, f"{self.prefix}*")
        self.cluster.close()

    def position(self, shard: int = 0) -> list[Any]:
        assert self.cursor is not None
        [row] = self.cursor["indices"].values()
        return list(row["shards"][str(shard)])


@contextmanager
def upstream(server: Any, **options: Any) -> Iterator[Upstream]:
    made = Upstream(server, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def up(siem: Server) -> Iterator[Upstream]:
    with upstream(siem) as made:
        yield made


def once(numbers: Sequence[int]) -> Mapping[str, int]:
    return {str(number): 1 for number in numbers}


def test_documents_that_become_visible_late_are_read_once(up: Upstream) -> None:
    """What a time-based poller loses: an old timestamp behind a newer one, and a refresh that comes much later."""
    index = up.index("a")
    up.write(index, range(10))
    up.settle()
    up.write(index, range(10, 20), refresh=False, message="older than what was read")
    up.settle()
    assert up.got == once(range(10))
    up.refresh(index)
    up.settle()
    assert up.got == once(range(20))


def test_holes_of_deleted_and_replaced_documents_are_given_up_and_counted(up: Upstream) -> None:
    """Numbers that no search can show any more leave the cursor once two refreshes prove it."""
    index = up.index("a")
    up.write(index, range(10), refresh=False)
    up.write(index, [3, 4], refresh=False, changed=True)
    up.cluster.request("DELETE", f"/{index}/_doc/5")
    up.refresh(index)
    up.settle()
    assert up.got == once([0, 1, 2, 3, 4, 6, 7, 8, 9])
    for number in (20, 21, 22):
        up.write(index, [number])
        up.settle()
    _, floor, done, holes = up.position()
    assert (floor >= 12, holes) == (True, [])
    assert done >= floor
    assert up.counts["gone_before_read"] == 4  # 3, 4 and 5 as first written, and the deletion itself
    assert up.got == once([0, 1, 2, 3, 4, 6, 7, 8, 9, 20, 21, 22])


def test_an_update_is_its_documents_newest_version_with_the_same_identity(up: Upstream) -> None:
    index = up.index("a")
    up.write(index, [1])
    up.settle()
    up.write(index, [1], changed=True)
    up.settle()
    assert up.got == {"1": 2}
    assert len(up.seen) == 1


def test_pages_restarts_and_shards_lose_nothing(up: Upstream) -> None:
    index = up.index("a", number_of_shards=3)
    for first in range(0, 200, 40):
        up.write(index, range(first, first + 40))
        up.fetch(7)
        up.restart()
    up.settle(limit=7)
    assert up.got == once(range(200))


def test_gets_between_refreshes_prove_nothing(up: Upstream) -> None:
    """A realtime get refreshes the copy for itself; that is not the refresh that searches see."""
    index = up.index("a")
    up.write(index, [1])
    up.settle()
    up.write(index, [2], refresh=False)
    for _ in range(4):
        up.write(index, [2], refresh=False, again=True)
        up.cluster.request("GET", f"/{index}/_doc/2", params={"realtime": True})
        up.fetch()
    assert up.got == {"1": 1}
    up.refresh(index)
    up.settle()
    assert up.got == {"1": 1, "2": 1}


def test_an_index_that_is_never_refreshed_is_read_when_it_is(up: Upstream) -> None:
    index = up.index("a")
    up.write(index, range(5), refresh=False)
    up.settle()
    assert not up.got
    up.refresh(index)
    up.settle()
    assert up.got == once(range(5))


def test_a_search_idle_shard_is_woken_by_our_own_search(siem: Server) -> None:
    """Without an interval of its own, an idle shard refreshes only when it is searched: a changed checkpoint is
    reason enough to search."""
    with upstream(siem) as up:
        settings = {"number_of_shards": 1, "number_of_replicas": 0, "search.idle.after": "1s"}
        index = f"{up.prefix}-idle"
        up.cluster.request("PUT", f"/{index}", body={"settings": settings})
        up.write(index, [1], refresh=False)
        time.sleep(2.5)
        up.write(index, [2], refresh=False)
        up.until(lambda _: len(up.got) == 2)
        assert up.got == once([1, 2])


def test_a_quiet_index_costs_no_search(up: Upstream) -> None:
    index = up.index("a")
    up.write(index, range(5))
    up.settle()
    before = up.source.cluster.spent["_search"]
    for _ in range(20):
        up.fetch()
        time.sleep(0.02)
    assert up.source.cluster.spent["_search"] == before


def test_an_index_made_anew_is_another_index(up: Upstream) -> None:
    """Same name, same ids, other events; what of the old one was not read is a loss on record."""
    index = up.index("a")
    up.write(index, range(5))
    up.settle()
    up.write(index, range(5, 9), refresh=False)
    up.fetch()
    time.sleep(0.05)
    up.fetch()
    up.cluster.request("DELETE", f"/{index}")
    up.index("a")
    up.write(index, range(3))
    up.look()
    up.settle()
    assert up.got == {"0": 2, "1": 2, "2": 2, "3": 1, "4": 1}
    assert len(up.seen) == 8
    [loss] = [one for one in up.notices if one.lost]
    assert "up to 4 operations unread" in loss.text


def test_a_deleted_index_that_was_read_is_no_loss(up: Upstream) -> None:
    index = up.index("a")
    up.write(index, range(5))
    up.settle()
    up.cluster.request("DELETE", f"/{index}")
    up.look()
    up.settle()
    assert [(one.action, one.lost) for one in up.notices] == [("index-gone", False)]


def test_a_closed_index_is_named_and_read_when_it_opens(up: Upstream) -> None:
    index = up.index("a")
    up.write(index, range(5))
    up.settle()
    up.write(index, range(5, 8), refresh=False)
    up.cluster.request("POST", f"/{index}/_close")
    up.look()
    up.settle()
    assert up.source.notes() == {index: "closed"}
    up.cluster.request("POST", f"/{index}/_open", params={"wait_for_active_shards": "1"})
    up.look()
    up.settle()
    assert up.got == once(range(8))
    assert not up.source.notes()


def test_a_shrunk_index_is_not_read_twice_but_replay_reads_it_under_the_same_identities(up: Upstream) -> None:
    index = up.index("a", number_of_shards=3)
    up.write(index, range(90))
    up.settle()
    up.cluster.request("PUT", f"/{index}/_settings", body={"index.blocks.write": True})
    copy = f"{up.prefix}-copy"
    body = {"settings": {"index.number_of_shards": 1, "index.number_of_replicas": 0, "index.blocks.write": None}}
    up.cluster.request("PUT", f"/{index}/_shrink/{copy}", params={"wait_for_active_shards": 1}, body=body)
    up.look()
    up.settle()
    assert up.got == once(range(90))
    assert "derived from" in up.source.notes()[copy]
    replayed = Upstream.__new__(Upstream)
    replayed.__dict__.update(up.__dict__, cursor=None, got=Counter(), seen=set(), notices=[], counts=Counter())
    replayed.source = up.source.replay(up.cursor, place=copy, start=None, end=None)
    replayed.source.open(frozenset())
    replayed.settle(limit=10)  # three documents share each number: pages end within them
    replayed.source.close()
    assert replayed.got == once(range(90))
    assert replayed.seen == up.seen


def test_a_shrunk_index_is_read_instead_of_an_original_deleted_unread(up: Upstream) -> None:
    index = up.index("a", number_of_shards=2)
    up.write(index, range(40))
    for _ in range(3):
        up.fetch(5)
        time.sleep(0.02)
    already = sum(up.got.values())
    assert already < 40
    up.cluster.request("PUT", f"/{index}/_settings", body={"index.blocks.write": True})
    copy = f"shrink-ab12-{index}"
    up.options["indices"] = [f"{up.prefix}*", f"shrink-*-{up.prefix}*"]
    up.restart()
    body = {"settings": {"index.number_of_shards": 1, "index.number_of_replicas": 0, "index.blocks.write": None}}
    up.cluster.request("PUT", f"/{index}/_shrink/{copy}", params={"wait_for_active_shards": 1}, body=body)
    up.fetch(1)
    up.cluster.request("DELETE", f"/{index}")
    up.look()
    up.settle()
    assert set(up.got) == set(once(range(40)))
    assert len(up.seen) == 40
    assert not any(one.lost for one in up.notices)
    up.cluster.request("DELETE", f"/{copy}")


def test_a_snapshot_restored_over_the_index_is_a_history_break(siem: Server) -> None:
    """The uuid stays, the numbers begin again: the shard is read from the start, ids absorb what is known."""
    with upstream(siem) as up:
        index = up.index("a")
        up.write(index, range(10))
        up.settle()
        with snapshot(up.cluster, index) as restore:
            up.write(index, range(10, 20))
            up.settle()
            up.cluster.request("POST", f"/{index}/_close")
            restore()
        up.write(index, range(30, 33))
        up.look()
        up.settle()
        assert len(up.seen) == 23
        assert {str(number) for number in (*range(20), 30, 31, 32)} == set(up.got)
        assert [one.action for one in up.notices] == ["history-break"]
        assert up.counts["history_breaks"] == 1
        assert up.fetch().again is False
        up.write(index, [40])
        up.until(lambda records: records.again)


def test_a_snapshot_restored_under_a_name_of_ones_own_is_a_copy(siem: Server) -> None:
    """Whatever it is called: it was created when its original was, and holds its documents."""
    with upstream(siem) as up:
        index = up.index("a")
        up.write(index, range(10))
        up.settle()
        with snapshot(up.cluster, index) as restore:
            restore(f"{up.prefix}-zz")
        up.look()
        up.settle()
        assert up.got == once(range(10))
        assert "derived from" in up.source.notes()[f"{up.prefix}-zz"]


def test_start_is_now_or_a_duration(siem: Server) -> None:
    """An index that was there before is read from the start position, a newer one whole."""
    with upstream(siem) as up:
        index = up.index("old")
        up.write(index, range(5))
        time.sleep(0.01)
        up.options["start"] = "now"
        up.restart()
        up.settle()
        up.write(index, [5])
        new = up.index("new")
        up.write(new, [6])
        up.look()
        up.settle()
        assert up.got == once([5, 6])


def test_an_estimate_says_what_a_first_start_reads(up: Upstream) -> None:
    index = up.index("a", number_of_shards=2)
    body = {"properties": {"@timestamp": {"type": "date"}}}
    up.cluster.request("PUT", f"/{index}/_mapping", body=body)
    for hour in (0, 6):
        bulk(up.cluster, index, [{"index": {}}, {"@timestamp": f"2026-01-01T{hour:02}:00:00Z"}] * 5)
    assert up.source.estimate() == {"start": "earliest", "places": 1, "documents": 10, "hours": 6.0}


def test_a_data_stream_is_read_through_rollovers(siem: Server) -> None:
    with upstream(siem) as up:
        template = {
            "index_patterns": [f"{up.prefix}-stream*"],
            "data_stream": {},
            "priority": 900,
            "template": {"settings": {"number_of_shards": 2, "number_of_replicas": 0}},
        }
        up.cluster.request("PUT", f"/_index_template/{up.prefix}", body=template)
        name = f"{up.prefix}-stream"
        for part in range(3):
            bulk(up.cluster, name, [{"create": {}}, {"@timestamp": "2026-01-01T00:00:00Z", "number": part}])
            up.cluster.request("POST", f"/{name}/_rollover")
        up.look()
        up.settle()
        assert up.got == once(range(3))
        assert up.cursor is not None
        assert len(up.cursor["indices"]) == 4


def test_own_alerts_and_exclusions_are_never_listed(siem: Server) -> None:
    with upstream(siem) as up:
        for name in ("a", "b"):
            up.write(up.index(name), [1])
        up.options["indices"] = [f"{up.prefix}*", f"-{up.prefix}-b"]
        up.restart()
        up.settle()
        assert sum(up.got.values()) == 1


def test_projection_leaves_out_what_no_rule_reads_and_full_gives_it(siem: Server) -> None:
    """The first page is read whole and the second projected; what is worth it stays so."""
    with upstream(siem) as up:
        index = up.index("a")
        up.write(index, range(6), message="wanted", noise="x" * 1000)
        up.source.close()
        source = up.open()
        source.open(frozenset({"message", "user.name"}))
        first = source.fetch(None, 2)
        assert not first.projected
        records = source.fetch(first.cursor, 2)
        assert records.projected
        assert all(set(document) == {"@timestamp", "message"} for document in documents(records))
        references = [records.reference(row) for row in range(2)]
        whole = source.full(references)
        assert all(len(orjson.loads(whole[one])["noise"]) == 1000 for one in references)
        up.cluster.request("DELETE", f"/{index}/_doc/{references[0].key}", params={"refresh": True})
        assert source.full(references).keys() == {references[1]}
        up.cluster.request("DELETE", f"/{index}")
        assert source.full(references) == {}
        source.close()


@pytest.mark.parametrize("projected", [False, True], ids=["whole", "projected"])
def test_a_document_that_decoders_refuse_holds_up_no_other(siem: Server, projected: bool) -> None:
    """Servers store half a surrogate pair and any depth they allow; either used to spoil the page that held it."""
    with upstream(siem, page_bytes=1 << 16) as up:
        index = up.index("a")
        up.cluster.request("PUT", f"/{index}/_mapping", body={"dynamic": False})
        up.write(index, range(40), noise="x" * 30_000)
        hostile = [
            b'{"number":40,"text":"half \\ud800 pair"}',
            b'{"number":41,"a":%s1%s}' % (b'{"a":' * 997, b"}" * 997),
            b'{"number":42,"text":"\\ud83d","a":{"_source":[{"_source":"}"}]}}',
        ]
        bulk(
            up.cluster,
            index,
            [line for place, one in enumerate(hostile, 40) for line in ({"index": {"_id": str(place)}}, one)],
        )
        up.write(index, [43])
        up.source.close()
        source = up.open()
        if projected:
            source.open(frozenset({"number", "text"}))
        given: dict[str, bytes] = {}
        cursor = None
        while len(given) < 44:
            records = source.fetch(cursor, 10)
            cursor = records.cursor
            for chunk in records.chunks:
                for key, raw in zip(chunk.keys, chunk.raw, strict=True):
                    assert str(key) not in given
                    assert isinstance(raw, bytes)
                    given[str(key)] = raw
        assert given.keys() == {str(number) for number in range(44)}
        assert b"pair" in given["40"]
        references = [records.reference(row) for row in range(len(records))]
        assert source.full(references).keys() == set(references)
        source.close()


def test_documents_of_an_index_without_source_are_quarantined_and_not_lost(siem: Server) -> None:
    with upstream(siem) as up:
        index = f"{up.prefix}-bare"
        body = {
            "settings": {"number_of_shards": 1, "number_of_replicas": 0},
            "mappings": {"_source": {"enabled": False}},
        }
        up.cluster.request("PUT", f"/{index}", body=body)
        up.write(index, range(2))
        records = up.source.fetch(None, 10)
        [chunk] = records.chunks
        assert list(chunk.keys) == ["0", "1"]
        assert set(chunk.faults) == {0, 1}
        assert "_source" in chunk.faults[0]


def test_a_projection_that_saves_little_is_given_up(siem: Server) -> None:
    """Where rules read nearly all there is, leaving out the rest costs the server more than it saves."""
    with upstream(siem) as up:
        up.write(up.index("a"), range(9), message="x" * 500, noise="y")
        up.source.close()
        source = up.open()
        source.open(frozenset({"message"}))
        projected, cursor = [], None
        for _ in range(4):
            records = source.fetch(cursor, 2)
            cursor = records.cursor
            projected.append(records.projected)
        assert projected == [False, True, False, False]
        source.close()


def test_a_shard_that_is_not_there_is_a_gap_and_others_go_on(siem: Server) -> None:
    """An index that cannot be allocated is named; what else there is, is read."""
    with upstream(siem) as up:
        settings = {"number_of_shards": 1, "number_of_replicas": 0, "routing.allocation.include._name": "nowhere"}
        up.cluster.request(
            "PUT", f"/{up.prefix}-red", params={"wait_for_active_shards": "0"}, body={"settings": settings}
        )
        index = up.index("a")
        up.write(index, range(3))
        up.settle()
        assert up.got == once(range(3))
        assert up.counts["gaps"] == 1
        assert [one.action for one in up.notices] == ["gap"]
        assert list(up.source.notes()) == [f"{up.prefix}-red[0]"]
        records = up.fetch()
        assert len(records.unread) == 1, "a gap holds the watermark back"
        body = {"index.routing.allocation.include._name": None}
        up.cluster.request("PUT", f"/{up.prefix}-red/_settings", body=body)
        up.cluster.request("GET", f"/_cluster/health/{up.prefix}-red", params={"wait_for_status": "green"})
        up.write(f"{up.prefix}-red", [9])
        up.until(lambda _: "9" in up.got)
        up.settle()
        assert up.got == once([0, 1, 2, 9])
        assert not up.source.notes()


def test_what_has_no_change_feed_is_read_by_time_and_said_so(up: Upstream) -> None:
    """The same source, told to read by time: everything once, over a restart too, and the reason is named."""
    index = up.index("a", number_of_shards=2)
    mapping = {"properties": {"@timestamp": {"type": "date"}}}
    up.cluster.request("PUT", f"/{index}/_mapping", body=mapping)
    up.options["cursor"] = "time"
    up.restart()
    up.write(index, range(30))
    up.settle(limit=7)
    up.restart()
    up.write(index, range(30, 40))
    up.until(lambda _: len(up.got) == 40)
    up.settle(limit=7)
    assert up.got == once(range(40))
    [(place, reason)] = up.source.notes().items()
    assert place == f"{up.prefix}*"
    assert "configured so" in reason
    assert "missed" in reason


def test_a_lost_primary_is_replaced_and_nothing_is_lost() -> None:
    """The node of the primary is killed: the other copy takes over, its refreshes are proven anew."""
    with started("elasticsearch", 8, nodes=2) as server, upstream(server) as up:
        index = up.index("a", number_of_replicas=1, number_of_shards=2)
        up.cluster.request("GET", f"/_cluster/health/{index}", params={"wait_for_status": "green", "timeout": "60s"})
        up.write(index, range(100))
        up.settle(limit=20)
        up.write(index, range(100, 150), refresh=False)
        up.fetch()
        server.kill_node(1)
        deadline = time.monotonic() + 60
        written = 150
        while time.monotonic() < deadline:
            try:
                up.write(index, range(written, written + 10))
                written += 10
                up.fetch()
            except (RetryableError, AssertionError):
                pass
            if written >= 250:
                break
            time.sleep(0.2)
        for _ in range(50):
            try:
                up.settle()
                break
            except RetryableError:
                time.sleep(0.5)
        assert set(up.got) == set(once(range(written)))
        assert len(up.seen) == written


def test_missing_privileges_are_said_at_start(elasticsearch8_secure: Server) -> None:
    """A wrong password, or an account that may not read, is a ConfigError and not a silence."""
    access = elasticsearch8_secure.access()
    base = {**access, "indices": ["logs-*"], "start": "earliest"}
    source = SiemSource("logs", "elasticsearch", Options.model_validate({**base, "username": "nobody"}), lambda: NOW)
    with pytest.raises(ConfigError, match="401"):
        source.open(frozenset())
    source.close()


def test_without_monitor_reading_is_by_time_but_never_changes_over_silently(elasticsearch8_secure: Server) -> None:
    """An account that may not see the shards' numbers reads by time; one that could before waits for it."""
    server = elasticsearch8_secure
    with upstream(server) as up:
        index = up.index("a")
        up.cluster.request("PUT", f"/{index}/_mapping", body={"properties": {"@timestamp": {"type": "date"}}})
        up.write(index, range(5))
        up.settle()
        name = f"reader-{up.prefix}"
        role = {"cluster": ["cluster:monitor/main"], "indices": [{"names": [f"{up.prefix}*"], "privileges": ["read"]}]}
        up.cluster.request("PUT", f"/_security/role/{name}", body=role)
        user = {"password": "kV7-moss-Tundra-19", "roles": [name]}
        up.cluster.request("PUT", f"/_security/user/{name}", body=user)
        secret = server.folder / f"{name}.password"
        secret.write_text(user["password"])
        account = {"username": name, "password": f"file:{secret}"}
        reader = up.open(**account)
        records = reader.fetch(None, 100)
        assert len(records) == 5
        assert "monitor" in reader.notes()[f"{up.prefix}*"]
        with pytest.raises(RetryableError, match="grant monitor again"):
            reader.fetch(up.cursor, 100)
        reader.close()
