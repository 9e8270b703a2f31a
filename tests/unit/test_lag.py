"""How far behind a source is: what it says after a fetch, of a SIEM and of real files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError
from agent.model import SECOND, Cursor
from agent.ports import Lag, Measured, Source
from connectors._backlog import KEPT, Backlog
from connectors.files import build as files
from connectors.siem.feed import Position
from connectors.siem.source import SETTLED_EVERY_S, SiemSource, build
from tests.fake_siem import FakeSiem, Reply, Request
from tests.unit.test_siem_timed import NOW, Store, poll, reader

START = 1_764_000_000 * SECOND


class Clock:
    """A clock that stands until it is set."""

    now = START

    def __call__(self) -> int:
        return self.now


# --- the change feed --------------------------------------------------------------------------------------------------


class Index(FakeSiem):
    """One index: its shards have operations up to `checkpoint`, of which a search finds those in `visible`.

    Searches of the shards in `sick` are refused.
    """

    def __init__(self) -> None:
        super().__init__("elasticsearch")
        self.checkpoint, self.refreshes = -1, 1
        self.visible: set[int] = set()
        self.shards = 1
        self.sick: set[int] = set()

    def write(self, number: int, *, gone: int = 0) -> None:
        """Write that many operations and make them visible; *gone* more are deletions, that nothing ever shows."""
        self.visible.update(range(self.checkpoint + 1, self.checkpoint + 1 + number))
        self.checkpoint += number + gone
        self.refreshes += 1

    def reply(self, request: Request) -> Reply:
        match request.last:
            case "_settings":
                named = {
                    "uuid": "u" * 22,
                    "creation_date": "1",
                    "number_of_shards": str(self.shards),
                    "refresh_interval": "1s",
                }
                return Reply(body={"logs": {"settings": {f"index.{name}": value for name, value in named.items()}}})
            case "refresh":
                row = {
                    "routing": {"primary": True, "state": "STARTED", "node": "n"},
                    "seq_no": {"global_checkpoint": self.checkpoint},
                    "commit": {"user_data": {"history_uuid": "h"}},
                    "refresh": {"external_total": self.refreshes},
                }
                shards = {str(number): [row] for number in range(self.shards)}
                return Reply(body={"indices": {"logs": {"uuid": "u" * 22, "shards": shards}}})
            case "_search":
                number = int(request.query["preference"].partition("|")[0].removeprefix("_shards:"))
                return Reply(503) if number in self.sick else self._search(number, json.loads(request.body))
        if request.path.startswith("/_resolve/index/"):
            return Reply(
                body={"indices": [{"name": "logs", "attributes": ["open"]}], "aliases": [], "data_streams": []}
            )
        return super().reply(request)

    def _search(self, shard: int, body: Any) -> Reply:
        found = [number for number in sorted(self.visible) if _wanted(number, body["query"]["bool"]["filter"][0])]
        hits = [
            {"_index": "logs", "_id": f"{shard}-{number}", "_source": {"message": str(number)}, "sort": [number]}
            for number in found[: body["size"]]
        ]
        shards = {"total": 1, "successful": 1, "failed": 0}
        return Reply(body={"timed_out": False, "_shards": shards, "hits": {"hits": hits}})


def _wanted(number: int, clause: Any) -> bool:
    for one in clause["bool"]["should"]:
        if "terms" in one and number in one["terms"]["_seq_no"]:
            return True
        if "range" in one and one["range"]["_seq_no"]["gte"] <= number <= one["range"]["_seq_no"]["lte"]:
            return True
    return False


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def feed(index: Index, clock: Clock) -> Iterator[SiemSource]:
    options = {**index.access(), "indices": ["logs"], "start": "earliest", "searches_per_second": 100}
    source = build("elasticsearch")("siem", options, clock)
    source.open(frozenset())
    yield source
    source.close()


def fetched(source: Source, after: Cursor | None, limit: int) -> tuple[Cursor, int, Lag]:
    records = source.fetch(after, limit)
    assert isinstance(source, Measured)
    return records.cursor, len(records), source.lag()


def test_a_feed_counts_what_is_above_its_position_and_since_when(
    index: Index, feed: SiemSource, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is as old as the look that first showed it; what came later is younger."""
    monkeypatch.setattr("connectors.siem.source._FIRST_PAGE", 10)
    index.write(30)
    after, given, lag = fetched(feed, None, 10)
    assert (given, lag) == (10, Lag(20, START))
    index.write(5)
    clock.now += 7 * SECOND
    _see_changes(feed)
    after, given, lag = fetched(feed, after, 10)
    assert (given, lag) == (10, Lag(15, START))
    after, given, lag = fetched(feed, after, 10)
    assert (given, lag) == (10, Lag(5, START + 7 * SECOND))
    for shard in feed._shards():
        if shard.ahead:
            shard.ahead[1].result()  # the page that is read ahead has been asked for
    requests = len(index.requests)
    assert feed.lag() is lag
    assert len(index.requests) == requests, "a lag costs no request"


def _see_changes(feed: SiemSource) -> None:
    """Let the next fetch look at the shards and search them, as one does that comes long after the last."""
    for index in feed._indices.values():
        index.looked_at = 0.0
        for shard in index.shards.values():
            shard.next_at = 0.0


def test_operations_that_show_nothing_are_no_lag_once_they_have_settled(
    index: Index, feed: SiemSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletions may be documents that a refresh will show, for a while."""
    index.write(3, gone=4)
    after, given, lag = fetched(feed, None, 100)
    assert (given, lag) == (3, Lag(4, START))
    for one in feed._shards():
        one.changed_at -= SETTLED_EVERY_S
    _, given, lag = fetched(feed, after, 100)
    assert (given, lag) == (0, Lag(0))


def test_holes_that_were_searched_are_no_lag(index: Index, feed: SiemSource) -> None:
    """Of an index that was mostly updated, only what lies above the position counts."""
    index.write(1, gone=500)
    index.write(1)
    assert fetched(feed, None, 100)[1:] == (2, Lag(0))


def test_a_shard_that_cannot_be_searched_stays_unread_however_long(index: Index, feed: SiemSource) -> None:
    """It holds back the watermark: events that were not read are not passed over."""
    index.shards = 2
    index.sick = {1}
    index.write(3)
    records = feed.fetch(None, 100)
    assert len(records) == 3, "the other shard is read"
    for one in feed._shards():
        one.changed_at -= 10 * SETTLED_EVERY_S
    records = feed.fetch(records.cursor, 100)
    assert (len(records), records.unread) == (0, {f"{'u' * 22}/1"})
    assert feed.lag() == Lag(3, START)


def test_an_unknown_option_of_a_siem_is_called_so() -> None:
    with pytest.raises(ConfigError, match=r"source siem: colour: unknown key$"):
        build("elasticsearch")("siem", {"hosts": ["http://localhost:1"], "indices": ["a"], "colour": "red"})


def test_numbers_that_were_not_seen_are_counted_within_bounds() -> None:
    position = Position("h", 9, 20, [(12, 13), (18, 18)])
    assert position.unread(-1, 25) == 2 + 1 + 5
    assert position.unread(12, 25) == 1 + 1 + 5
    assert position.unread(20, 20) == 0


def test_a_backlog_is_bounded_and_never_younger_than_it_is() -> None:
    """However many looks there are, what is unread is as old as the look that showed it, or older."""
    backlog = Backlog()
    for number in range(20 * KEPT):
        backlog.look(number + 1, number)
    assert len(backlog._looks) <= KEPT
    times = [(read, backlog.since(read)) for read in range(0, 20 * KEPT, 7)]
    assert all(time is not None and read - 20 * KEPT // 50 <= time <= read for read, time in times)
    assert backlog.since(20 * KEPT) is None


# --- by time ----------------------------------------------------------------------------------------------------------


def test_reading_by_time_knows_how_old_the_rest_is_but_not_how_much() -> None:
    with Store() as store:
        for number in range(6):
            store.show(str(number), NOW // 1000 - 60_000 + number * 1000)
        timed = reader(store)
        page = timed.fetch(None, 3, NOW)
        assert page.more
        assert timed.lag == Lag(None, NOW - 58 * SECOND)
        timed.fetch(page.row, 100, NOW)
        poll(timed, page.row)
        assert timed.lag == Lag(0)


def test_a_pattern_read_by_time_leaves_the_count_of_the_whole_open(clock: Clock) -> None:
    with Store() as store:
        for number in range(6):
            store.show(str(number), START // 1000 - 60_000 + number * 1000)
        options = {**store.access(), "indices": ["logs-*"], "cursor": "time", "start": "earliest"}
        source = build("elasticsearch")("siem", options, clock)
        source.open(frozenset())
        after, given, lag = fetched(source, None, 3)
        assert (given, lag) == (3, Lag(None, START - 58 * SECOND))
        assert fetched(source, after, 100)[1:] == (3, Lag(0))
        source.close()


# --- files ------------------------------------------------------------------------------------------------------------

LINE = '{{"@timestamp": "2026-01-01T00:00:00Z", "message": "number {0:04}"}}\n'
LINES = "".join(map(LINE.format, range(40)))


@pytest.mark.parametrize("follow", [False, True])
def test_files_estimate_by_the_bytes_of_records_given(tmp_path: Path, clock: Clock, follow: bool) -> None:
    """Of lines of one length the estimate is exact; files that were not opened yet count too."""
    (tmp_path / "a.json").write_text(LINES)
    (tmp_path / "b.json").write_text(LINES.replace("number", "NUMBER"))
    source = files("logs", {"paths": [str(tmp_path)], "follow": follow}, clock)
    source.open(frozenset())
    after, given, lag = fetched(source, None, 10)
    assert (given, lag) == (10, Lag(70, START if follow else None))
    after, given, lag = fetched(source, after, 35)
    assert (given, lag.events) == (35, 35)
    assert fetched(source, after, 100)[1:] == (35, Lag(0))
    source.close()


def test_what_was_appended_is_as_old_as_its_first_sight(tmp_path: Path, clock: Clock) -> None:
    log = tmp_path / "a.json"
    log.write_text(LINES)
    source = files("logs", {"paths": [str(log)], "follow": True}, clock)
    source.open(frozenset())
    after, _, lag = fetched(source, None, 10)
    assert lag == Lag(30, START)
    with log.open("a") as file:
        file.write(LINES)
    clock.now += 9 * SECOND
    after, _, lag = fetched(source, after, 20)
    assert lag == Lag(50, START)
    after, _, lag = fetched(source, after, 20)
    assert lag == Lag(30, START + 9 * SECOND)
    source.close()


@pytest.mark.parametrize("follow", [False, True])
def test_a_packed_file_counts_whole_until_its_end(tmp_path: Path, clock: Clock, follow: bool) -> None:
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(LINES.encode()))
    clock.now = packed.stat().st_mtime_ns // 1000 + 60 * SECOND
    source = files("logs", {"paths": [str(packed)], "follow": follow}, clock)
    source.open(frozenset())
    expected = packed.stat().st_size // len(LINE.format(0))
    after, given, lag = fetched(source, None, 10)
    assert (given, lag.events) == (10, expected)
    after, given, lag = fetched(source, after, 30)
    after, given, lag = fetched(source, after, 10)
    assert (given, lag) == (0, Lag(0))
    source.close()


def test_files_of_which_nothing_was_given_yet_can_be_counted_by_nobody(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a.json").write_text(LINES)
    source = files("logs", {"paths": [str(tmp_path)], "follow": True}, clock)
    source.open(frozenset())
    assert fetched(source, None, 0)[1:] == (0, Lag(None, START))
    source.close()


def test_a_closed_source_knows_no_lag(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a.json").write_text(LINES)
    source = files("logs", {"paths": [str(tmp_path)]}, clock)
    source.open(frozenset())
    assert fetched(source, None, 1)[2].events == 39
    source.close()
    assert isinstance(source, Measured)
    assert source.lag() == Lag()
