"""The store: one commit is all or nothing, the outbox leaves only on a yes, caps leave numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent.audit.leaf import decode
from agent.control import NAME as SOCKET
from agent.control import Control
from agent.errors import ConfigError, RetryableError
from agent.model import DELIVERED, Alert, DeadLetter, Outcome, Reference
from agent.state import Changes, StoredDelta, pack
from agent.store import Books, Commit, Reader, Store, StoreBroken
from agent.store.sqlite import _ALERTS_WAIT, _AUDIT_WAITS

NOW = 1_700_000_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path, dead_letter_bytes=10)
    yield opened
    opened.close()


def alert(id: str, *, deliver: bool = True, level: Any = "high") -> Alert:
    return Alert(id, "rule", "A title", level, NOW, {"event": {"id": id, "reason": "why"}}, deliver)


def commit(**changes: Any) -> Commit:
    values: dict[str, Any] = {
        "stream": "s", "cursor": {"at": 1}, "as_of": NOW, "watermark": NOW, "books": Books(3, 2, {"own": 1}, 0),
        "changes": Changes(1), "sinks": ["out"],
    }  # fmt: skip
    return Commit(**{**values, **changes})


def letter(key: int, raw: bytes) -> DeadLetter:
    return DeadLetter(Reference("src", "p", key, "/a", "json"), "broken", raw, NOW)


def test_a_commit_moves_cursor_state_alerts_and_books_together(store: Store) -> None:
    """Everything that follows from a batch is there after the commit."""
    delta = StoredDelta("op", 1, pack({"k": b"[1]"}))
    assert store.commit(commit(alerts=[alert("a")], changes=Changes(1, (delta,)))) == 1
    cursor, state = store.load("s")
    assert cursor == {"at": 1}
    assert state.transaction().view("op").get("k") == [1]
    with Reader(store.folder) as reader:
        assert reader.counters("s")["s"] == {
            "received": 3,
            "scored": 2,
            "filtered.own": 1,
            "alerts": 1,
            "alerts.high": 1,
        }
        assert [one["id"] for one in reader.alerts()] == ["a"]


def test_a_failing_commit_leaves_nothing(store: Store) -> None:
    """A commit that breaks half-way has no effect, and the ones grouped with it are not hurt."""
    broken = commit(alerts=[alert("a")], events=[("source-notice", {"not json": object()})])
    with pytest.raises(TypeError):
        store.commit(broken)
    assert store.commit(commit(alerts=[alert("b")])) == 1
    with Reader(store.folder) as reader:
        assert [one["id"] for one in reader.alerts()] == ["b"]


def test_a_known_alert_id_is_not_stored_or_queued_again(store: Store) -> None:
    """The same finding made again leaves one alert, one document and a number."""
    store.commit(commit(alerts=[alert("a")]))
    assert store.commit(commit(alerts=[alert("a")])) == 0
    with Reader(store.folder) as reader:
        assert [one["repeats"] for one in reader.alerts()] == [1]
        assert len(store.waiting(reader, "out", 10, NOW)) == 1


def revision(id: str, what: Any, reason: str) -> Alert:
    own = {"explain": [], "evidence": {"count": 1}}
    return Alert(id, "rule", "T", "low", NOW, {"event": {"reason": reason}, "vedette": own}, True, what)


def test_a_settled_revision_is_a_second_document_if_it_says_something_else(store: Store) -> None:
    """What fired stays; what settled is added only where it differs, and only to an alert that fired."""
    store.commit(commit(alerts=[revision("a", "fired", "3 so far"), revision("b", "fired", "same")]))
    settled = [revision("a", "settled", "5 in all"), revision("b", "settled", "same"), revision("c", "settled", "new")]
    assert store.commit(commit(alerts=settled)) == 1
    assert store.commit(commit(alerts=settled)) == 0
    with Reader(store.folder) as reader:
        shown = {one["id"]: one["document"]["event"]["reason"] for one in reader.alerts()}
        offered = [(one.id, one.revision) for one in store.waiting(reader, "out", 10, NOW)]
    assert shown == {"a": "5 in all", "b": "same"}
    assert offered == [("a", "fired"), ("b", "fired"), ("a", "settled")]


def test_an_alert_held_back_is_stored_but_not_queued(store: Store) -> None:
    """The delivery cap caps delivery, not finding."""
    store.commit(commit(alerts=[alert("a", deliver=False)]))
    with Reader(store.folder) as reader:
        assert [one["deliver"] for one in reader.alerts()] == [0]
        assert store.waiting(reader, "out", 10, NOW) == []


def test_documents_are_settled_one_by_one(store: Store) -> None:
    """Delivered goes, retryable waits its time and comes back marked as a repeat, rejected stays with its reason."""
    store.commit(commit(alerts=[alert("a"), alert("b"), alert("c")]))
    with Reader(store.folder) as reader:
        waiting = store.waiting(reader, "out", 10, NOW)
        assert [item.repeat for item in waiting] == [False, False, False]
        answers = [DELIVERED, Outcome("retryable", "busy", retry_after=5.0), Outcome("rejected", "mapping")]
        store.settle("out", zip(waiting, answers, strict=True), NOW)
        assert store.waiting(reader, "out", 10, NOW + 4_999_999) == []
        (again,) = store.waiting(reader, "out", 10, NOW + 5_000_000)
        assert (again.id, again.repeat) == ("b", True)
        assert reader.counters("out")["out"] == {"delivered": 1, "refused": 1, "retried": 1}


def test_what_waited_at_start_is_a_repeat(store: Store, tmp_path: Path) -> None:
    """A document in the outbox at start may have been offered before the crash."""
    store.commit(commit(alerts=[alert("a")]))
    store.close()
    again = Store(tmp_path)
    again.commit(commit(alerts=[alert("b")]))
    with Reader(tmp_path) as reader:
        assert [(item.id, item.repeat) for item in again.waiting(reader, "out", 10, NOW)] == [("a", True), ("b", False)]
    again.close()


def test_what_was_offered_and_not_settled_is_a_repeat(store: Store) -> None:
    """The sink may have written it: if the disk is full when it is settled, the next offer says that it repeats."""
    store.commit(commit(alerts=[alert("a")]))
    with Reader(store.folder) as reader:
        assert [item.repeat for item in store.waiting(reader, "out", 10, NOW)] == [False]
        assert [item.repeat for item in store.waiting(reader, "out", 10, NOW)] == [True]


def test_a_full_sink_is_counted(store: Store) -> None:
    """What a full best-effort sink misses is a number."""
    store.commit(commit(alerts=[alert("a"), alert("b", deliver=False)], sinks=[], spilled=["slow"]))
    with Reader(store.folder) as reader:
        assert reader.counters("slow") == {"slow": {"spilled": 1}}


def test_dead_letters_past_the_cap_keep_position_reason_and_digest(store: Store) -> None:
    """The byte cap cuts raw bytes, never the record of the letter."""
    store.commit(commit(dead=[letter(1, b"12345678"), letter(2, b"12345678")]))
    with Reader(store.folder) as reader:
        found = {one["key"]: one for one in reader.dead_letters()}
        assert (found[1]["raw"], found[2]["raw"]) == (b"12345678", None)
        assert (found[2]["reason"], found[2]["size"]) == ("broken", 8)
        assert reader.counters("s")["s"]["dead_letters_cut"] == 1


def test_the_bytes_of_dead_letters_are_counted_once_and_given_back(store: Store, tmp_path: Path) -> None:
    """A letter that comes again, one that was read after all, a commit that failed: the cap knows what is kept."""
    store.commit(commit(dead=[letter(1, b"1234")]))
    store.commit(commit(dead=[letter(1, b"1234"), letter(2, b"1")]))
    assert store.dead_bytes == 5
    with pytest.raises(ValueError, match="audit action"):
        store.commit(commit(dead=[letter(3, b"1")], events=[("party", {})]))
    assert store.dead_bytes == 5
    store.commit(commit(released=[letter(1, b"").reference.identity]))
    assert store.dead_bytes == 1
    store.close()
    again = Store(tmp_path, dead_letter_bytes=10)
    assert again.dead_bytes == 1
    again.close()
    with Reader(tmp_path) as reader:
        assert [decode(one.data).action for one in reader.leaves()].count("batch") == 2, "both that stored a letter"


def test_the_bytes_of_dead_letters_are_given_back_if_a_whole_group_fails(store: Store) -> None:
    """A disk that is full for one is full for all that were to be written with it."""
    blocked = threading.Event()

    def full(_: apsw.Connection) -> None:
        raise apsw.FullError

    with ThreadPoolExecutor(3) as pool:
        pool.submit(store.do, lambda _: blocked.wait(10))
        time.sleep(0.05)  # the two that follow wait for it and so are one group
        failed = [pool.submit(store.commit, commit(dead=[letter(1, b"1234")]))]
        time.sleep(0.05)
        failed.append(pool.submit(store.do, full))
        time.sleep(0.05)
        blocked.set()
        assert [type(one.exception(10)) for one in failed] == [RetryableError, RetryableError]
    assert store.dead_bytes == 0
    store.commit(commit(dead=[letter(1, b"1234")]))
    assert store.dead_bytes == 4


def test_the_books_move_what_a_retry_could_read(store: Store) -> None:
    """A retry's counts are of the letters it read again; they must not stand for the books."""
    store.commit(commit(books=Books(5, 0, {}, 5), counts={"quarantined": 5}))
    store.commit(commit(books=Books(0, 3, {}, -3), counts={"quarantined": 2}))
    with Reader(store.folder) as reader:
        found = reader.counters("s")["s"]
    assert (found["received"], found["scored"], found["quarantined"]) == (5, 3, 2)


def test_what_came_to_an_alert_already_stored_is_counted(store: Store) -> None:
    store.commit(commit(alerts=[alert("a"), alert("a"), alert("b")]))
    store.commit(commit(alerts=[alert("b")]))
    with Reader(store.folder) as reader:
        found = reader.counters("s")["s"]
    assert (found["alerts"], found["suppressed"]) == (2, 2)


def test_what_waits_is_found_without_a_look_at_what_does_not(store: Store) -> None:
    """However much of the audit log is queued, each query for the outbox goes by an index of its own."""

    def plan(sql: str) -> str:
        with Reader(store.folder) as reader:
            return " ".join(str(row) for row in reader.rows(f"EXPLAIN QUERY PLAN {sql}", "out", 1, 2, 3))

    assert "USING INDEX outbox_alerts" in plan(_ALERTS_WAIT)
    assert "USING INDEX outbox_audit" in plan(_AUDIT_WAITS)
    assert "TEMP B-TREE" not in plan(_ALERTS_WAIT) + plan(_AUDIT_WAITS)


def test_retention_forgets_only_delivered_alerts(store: Store) -> None:
    """An alert that still waits for a sink outlives its retention."""
    store.commit(commit(alerts=[alert("a")]))
    store.commit(commit(alerts=[alert("b")], sinks=[]))
    later = NOW + 31 * 86_400_000_000
    assert store.prune(later, days=30, max_bytes=1 << 30) == 1
    assert store.prune(NOW, days=30, max_bytes=0) == 0
    with Reader(store.folder) as reader:
        assert [one["id"] for one in reader.alerts()] == ["a"]


def test_retention_by_bytes_forgets_the_oldest(store: Store) -> None:
    """Beyond the byte cap the oldest alerts go first."""
    store.commit(commit(alerts=[alert(name) for name in "abc"], sinks=[]))
    with Reader(store.folder) as reader:
        size = reader.rows("SELECT bytes FROM alert LIMIT 1")[0][0]
        store.prune(NOW, days=30, max_bytes=2 * size)
        assert [one["id"] for one in reader.alerts()] == ["b", "c"]


def test_acknowledgement_and_its_leaf(store: Store) -> None:
    """A verdict is stored with who gave it, and the audit log says so for good."""
    store.commit(commit(alerts=[alert("a")]))
    assert store.acknowledge("a", by="kim", verdict="benign", note=None, now=NOW) == 1
    assert store.acknowledge("x", by="kim", verdict="benign", note=None, now=NOW) == 0
    with Reader(store.folder) as reader:
        assert [(one["verdict"], one["acked_by"]) for one in reader.alerts()] == [("benign", "kim")]
        (said,) = reader.recorded(action="alert-acknowledged")
    assert (said.actor, said.data) == ("kim", {"alert": "a", "verdict": "benign", "note": None})


def test_what_was_last_on_record_is_found_without_a_look_at_what_came_before(store: Store) -> None:
    """Of an action, and of no other that has its name within; the log behind it may be of any length."""
    for version in (1, 2):
        store.record("s", "pack-accepted", {"pack": "own", "version": version}, NOW)
    store.record("s", "pack-refused", {"reason": '{"action":"pack-accepted",'}, NOW)
    with Reader(store.folder) as reader:
        assert [leaf.data["version"] for leaf in reader.backwards("pack-accepted")] == [2, 1]
        store.do(lambda each: [store._log.append(each, "stop", time=NOW, data={}) for _ in range(3_000)])
        store.record("s", "pack-accepted", {"pack": "own", "version": 3}, NOW)
        steps: list[int] = []
        reader._connection.set_progress_handler(lambda: bool(steps.append(1)), 100)
        assert next(reader.backwards("pack-accepted")).data["version"] == 3
        assert len(steps) < 10
        assert [leaf.data["version"] for leaf in reader.backwards("pack-accepted")] == [3, 2, 1]
        assert len(steps) > 100, "the measure sees rows that are looked at"


def test_one_process_holds_the_store(store: Store) -> None:
    """A second writer is refused with the holder's process number."""
    with pytest.raises(ConfigError, match="in use by process"):
        Store(store.folder)


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    """A store of a version we do not know is left alone."""
    store = Store(tmp_path)
    store.do(lambda connection: connection.pragma("user_version", 99))
    store.close()
    with pytest.raises(ConfigError, match="version 99"):
        Store(tmp_path)


def test_a_full_disk_is_retryable_and_a_sick_one_is_the_end(store: Store) -> None:
    """No space: nothing stored, try again. An I/O error: the store says so and takes nothing more."""

    def full(_: apsw.Connection) -> None:
        raise apsw.FullError

    def sick(_: apsw.Connection) -> None:
        raise apsw.IOError

    with pytest.raises(RetryableError, match="no space left"):
        store.do(full)
    store.commit(commit())
    with pytest.raises(StoreBroken):
        store.do(sick)
    with pytest.raises(StoreBroken):
        store.commit(commit())


def test_the_data_folder_and_the_socket_in_it_are_private(tmp_path: Path) -> None:
    """Nobody but the owner looks in or asks the daemon for anything."""
    folder = tmp_path / "data"
    Store(folder).close()
    control = Control(folder, dict)
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / SOCKET)]
    control.close()
    assert modes == [0o700, 0o600]


def test_the_database_is_private_and_fsyncs_every_commit(store: Store) -> None:
    """Owner-only file, write-ahead log, synchronous FULL."""
    assert (store.folder / "vedette.db").stat().st_mode & 0o777 == 0o600
    assert store.do(lambda connection: connection.pragma("synchronous")) == 2
    assert store.do(lambda connection: connection.pragma("journal_mode")) == "wal"
