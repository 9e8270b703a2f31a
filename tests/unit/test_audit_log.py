"""The audit log in the store: a leaf is on disk with its effect or neither is, and what was signed stays so."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import orjson
import pytest

from agent.audit import (
    Copy,
    Entry,
    LogBroken,
    Report,
    Verifier,
    check_alerts,
    check_proof,
    check_stored,
    not_stored,
    prove,
    verify,
)
from agent.audit.leaf import decode, members_tree
from agent.audit.merkle import Tree, leaf_hash
from agent.audit.note import decode64
from agent.audit.proof import Proof, _place, parse
from agent.errors import ConfigError, RetryableError, TrustError
from agent.model import DELIVERED, Alert, Outcome
from agent.state import Changes
from agent.store import Books, Commit, Reader, Store, StoreBroken, auditlog
from agent.store import reader as reader_module
from agent.store.auditlog import AuditLog
from agent.store.sqlite import DATABASE
from agent.stream import drain
from agent.telemetry.meters import Meters
from connectors.ndjson import build

NOW = 1_767_400_000_000_000
HOUR = 3_600_000_000
CONFIGURATION = {"configuration": "sha256:ab", "revision": 1}


@pytest.fixture(autouse=True)
def _seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come at once after a start and at the end, so that no test depends on how long it takes."""
    monkeypatch.setattr(auditlog, "CHECKPOINT_S", 3600.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def alert(id: str, revision: Any = "fired", reason: str = "why") -> Alert:
    own = {"explain": [], "evidence": {"count": 1}}
    document = {"event": {"id": id, "reason": reason}, "vedette": own}
    return Alert(id, "rule", "A title", "high", NOW, document, True, revision)


def commit(*alerts: Alert, at: int = NOW, **changes: Any) -> Commit:
    values: dict[str, Any] = {
        "stream": "main", "cursor": {"at": 1}, "as_of": at, "watermark": at, "books": Books(3, 2, {"own": 1}, 0),
        "changes": Changes(0), "alerts": alerts, "sinks": ["out"], "provenance": CONFIGURATION,
    }  # fmt: skip
    return Commit(**{**values, **changes})


def key_of(folder: Path) -> Verifier:
    return Verifier.parse((folder / "audit.pub").read_text())


def report_of(folder: Path) -> Report:
    with Reader(folder) as reader:
        notes = [note for _, _, note in reader.checkpoints()]
        return verify(reader.leaves(), notes, key_of(folder))


def actions(folder: Path) -> list[str]:
    with Reader(folder) as reader:
        return [leaf.action for leaf in reader.recorded()]


def tamper(folder: Path, *statements: str) -> None:
    """Do with the file what its triggers forbid."""
    connection = apsw.Connection(str(folder / DATABASE))
    for name in ("leaf_is_append_only", "leaf_is_kept", "checkpoint_is_append_only", "checkpoint_is_kept"):
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


# --- what has a leaf --------------------------------------------------------------------------------------------------


def test_a_record_is_on_disk_when_it_has_a_number(store: Store) -> None:
    """Whoever was told the number can rely on the leaf: who, what, when, in which stream."""
    assert store.record("", "start", {"pid": 1}, NOW, actor="kim") == 0
    assert store.record("main", "replay", {"spans": 2}, NOW + 1) == 1
    with Reader(store.folder) as reader:
        first, second = reader.recorded()
    assert (first.number, first.action, first.actor, first.data, first.time) == (0, "start", "kim", {"pid": 1}, NOW)
    assert (second.number, second.stream, second.actor) == (1, "main", "")


def test_an_action_outside_the_list_has_no_leaf(store: Store) -> None:
    """The list is closed: what is not in it is a fault of ours and stores nothing."""
    with pytest.raises(ValueError, match="expected one of start"):
        store.record("", "party", {}, NOW)  # type: ignore[arg-type]
    assert store.record("", "start", {}, NOW) == 0


def test_a_batch_that_stores_alerts_has_one_leaf(store: Store) -> None:
    """It says under what it ran, where the stream stands and what it has read, and its members are the alerts."""
    store.commit(commit(alert("a"), alert("b")))
    with Reader(store.folder) as reader:
        (entry,) = reader.leaves()
        leaf = decode(entry.data)
        assert [orjson.loads(one)[:2] for one in entry.members] == [["a", "fired"], ["b", "fired"]]
        assert check_alerts(reader.alert_members(), reader.members, key_of(store.folder)) == 2
        root = members_tree(entry.members).root.hex()
    books = {"received": 3, "scored": 2}
    cursor = sha256(b'{"at":1}').hexdigest()
    assert leaf.action == "batch"
    assert leaf.data == {**CONFIGURATION, "alerts": 2, "root": root, "books": books, "cursor": cursor}


def test_a_batch_that_stores_nothing_has_none_but_the_first_and_one_an_hour(store: Store) -> None:
    """What was read in between is in the sums of the next leaf, so a quiet day is 24 leaves and not 170,000."""
    for minute in range(121):
        store.commit(commit(at=NOW + minute * 60_000_000))
    store.commit(commit(alert("a"), at=NOW + 2 * HOUR + 1))
    store.commit(commit(alert("a"), at=NOW + 2 * HOUR + 2))
    with Reader(store.folder) as reader:
        found = [(leaf.time - NOW, leaf.data["alerts"], leaf.data["books"]["received"]) for leaf in reader.recorded()]
    assert found == [(0, 0, 3), (HOUR, 0, 183), (2 * HOUR, 0, 363), (2 * HOUR + 1, 1, 366)]


def test_a_notice_of_the_source_has_its_own_leaf(store: Store) -> None:
    """A gap upstream is on record beside the batch that read past it."""
    store.commit(commit(events=[("source-notice", {"notice": "history-break", "lost": True})]))
    assert actions(store.folder) == ["batch", "source-notice"]


def test_an_accepted_configuration_and_its_leaf_are_one_commit(store: Store) -> None:
    """What was signed is kept as it was, and the number cannot be used twice."""
    for revision in (1, 2, 4):
        store.accept(revision, b"text %d" % revision, b"signed", {"revision": revision}, NOW)
    with pytest.raises(apsw.ConstraintError):
        store.accept(4, b"other", b"signed", {}, NOW)
    with Reader(store.folder) as reader:
        assert reader.configurations() == [(n, b"text %d" % n, b"signed") for n in (1, 2, 4)]
    assert actions(store.folder) == ["configuration-accepted"] * 3
    store.accept(4, b"text 4", b"signed by more", {}, NOW)
    with Reader(store.folder) as reader:
        assert reader.configurations()[-1] == (4, b"text 4", b"signed by more")
    assert report_of(store.folder).leaves == 4


# --- one commit -------------------------------------------------------------------------------------------------------


def test_a_batch_that_fails_leaves_no_leaf_and_no_gap(store: Store) -> None:
    """Neither alone nor together with others in one transaction: numbers and tree go on as if it had not been."""

    def full(_: apsw.Connection) -> None:
        raise apsw.FullError

    store.record("", "start", {}, NOW)
    with pytest.raises(TypeError):
        store.commit(commit(alert("a"), events=[("source-notice", {"not json": object()})]))
    with pytest.raises(RetryableError):
        store.do(full)
    assert store.record("", "stop", {}, NOW) == 1
    store.close()
    report = report_of(store.folder)
    assert (report.leaves, report.signed, report.members) == (2, 2, 0)


def test_one_of_a_group_that_fails_takes_no_number(store: Store) -> None:
    """Jobs of one transaction stand alone: the others are numbered and hashed as if it had not been there."""
    held = threading.Event()

    def broken(connection: apsw.Connection) -> None:
        store._log.append(connection, "replay", time=NOW, data={})
        raise ValueError("broken")

    with ThreadPoolExecutor() as pool:
        jobs: list[Future[Any]] = [pool.submit(store.do, lambda _: held.wait(10))]
        jobs += [pool.submit(store.record, "", "start", {}, NOW) for _ in range(3)]
        jobs.append(pool.submit(store.do, broken))
        jobs += [pool.submit(store.record, "", "stop", {}, NOW) for _ in range(3)]
        held.set()
        with pytest.raises(ValueError, match="broken"):
            jobs.pop(4).result(10)
        numbers = [job.result(10) for job in jobs[1:]]
    assert sorted(numbers) == list(range(6))
    store.close()
    report = report_of(store.folder)
    assert (report.leaves, report.signed) == (6, 6)


def test_leaves_cannot_be_changed_through_the_store(store: Store) -> None:
    """Neither leaves nor checkpoints, by anyone who does not take the file itself apart."""
    store.record("", "start", {}, NOW)
    store.commit(commit())
    for statement in ("DELETE FROM leaf", "UPDATE leaf SET bytes = x''", "DELETE FROM checkpoint",
                      "UPDATE checkpoint SET note = ''"):  # fmt: skip
        with pytest.raises(apsw.ConstraintError, match="append-only"):
            store.do(lambda connection, statement=statement: connection.execute(statement))  # type: ignore[misc]


def test_a_deleted_alert_is_found_and_a_pruned_one_is_on_record(store: Store) -> None:
    """What the log stands for is stored or was forgotten on record; nothing else."""

    def check() -> int:
        with Reader(store.folder) as reader:
            leaves, stored, signed = reader.extent()
            notes = (note for _, _, note in reader.checkpoints(signed))
            report = verify(reader.leaves(leaves), notes, key_of(store.folder))
            gone = not_stored(reader.leaves(leaves), reader.alert_members())
            check_stored(report, stored, gone, key_of(store.folder))
            return report.pruned

    store.commit(commit(alert("a"), alert("b"), sinks=()))
    store.commit(commit(alert("c"), sinks=(), at=NOW + HOUR))
    assert check() == 0
    assert store.prune(NOW + 1, days=0, max_bytes=1 << 30) == 2
    assert check() == 2
    assert actions(store.folder).count("alerts-pruned") == 1
    assert store.prune(NOW + 1, days=0, max_bytes=1 << 30) == 0
    assert actions(store.folder).count("alerts-pruned") == 1, "nothing was forgotten"
    store.do(lambda connection: connection.execute("DELETE FROM alert WHERE id = 'c'"))
    with pytest.raises(LogBroken, match=r'1 alerts .* were deleted, not pruned on record: leaf 1 has \["c"') as broken:
        check()
    assert broken.value.number == 1


def test_a_deleted_alert_that_is_older_than_the_last_pruned_one_is_counted(store: Store) -> None:
    """Which one it was, nobody can tell then: a pruned one looks the same."""
    store.record("", "start", {}, NOW)
    store.commit(commit(alert("a"), alert("b"), sinks=()))
    store.do(lambda connection: connection.execute("DELETE FROM alert WHERE id = 'a'"))
    store.prune(NOW + 1, days=0, max_bytes=1 << 30)
    store.close()
    with Reader(store.folder) as reader:
        report = report_of(store.folder)
        gone = not_stored(reader.leaves(), reader.alert_members())
        with pytest.raises(LogBroken, match="1 alerts that the log stands for were deleted, not pruned on record;"):
            check_stored(report, reader.extent()[1], gone, key_of(store.folder))


def test_what_is_not_stored_is_told_by_leaf() -> None:
    """Some of a leaf, all of one, none; alerts of leaves that are not looked at do not count."""
    entries = [Entry(0, b""), Entry(1, b"", (b"a", b"b")), Entry(2, b"", (b"c",)), Entry(4, b"", (b"d", b"e"))]
    stored = [(-1, b"a"), (1, b"b"), (3, b"c"), (4, b"e"), (4, b"d"), (9, b"f")]
    assert list(not_stored(entries, stored)) == [(1, b"a"), (2, b"c")]
    assert list(not_stored(entries, [])) == [(1, b"a"), (1, b"b"), (2, b"c"), (4, b"d"), (4, b"e")]


def test_a_log_that_grows_while_it_is_verified_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are read a page at a time and no further than at the moment when verification began."""
    monkeypatch.setattr(reader_module, "_PAGE", 2)
    for _ in range(5):
        store.record("", "replay", {}, NOW)
        store.checkpoint()
    with Reader(store.folder) as reader:
        leaves, _, signed = reader.extent()
        store.record("", "replay", {}, NOW)
        store.checkpoint()
        report = verify(
            reader.leaves(leaves), (note for _, _, note in reader.checkpoints(signed)), key_of(store.folder)
        )
        assert (report.leaves, report.signed, report.checkpoints) == (5, 5, 5)
        assert [size for size, _, _ in reader.checkpoints()] == [1, 2, 3, 4, 5, 6]


def test_one_job_that_breaks_a_rule_of_the_store_fails_alone(store: Store) -> None:
    """Whoever was grouped with it has its effect."""
    blocked = threading.Event()
    futures = []
    with ThreadPoolExecutor(3) as pool:
        futures.append(pool.submit(store.do, lambda _: blocked.wait(10)))
        time.sleep(0.05)  # the two that follow wait for it and so are one group
        broken = pool.submit(store.do, lambda connection: connection.execute("INSERT INTO paused VALUES ('x', 999)"))
        fine = pool.submit(store.commit, commit(alert("a")))
        time.sleep(0.05)
        blocked.set()
        assert fine.result(10) == 1
        with pytest.raises(apsw.ConstraintError):
            broken.result(10)
    assert report_of(store.folder).members == 1


def test_what_waits_for_a_moment_that_a_clock_set_back_has_put_off_is_offered(store: Store) -> None:
    """An hour's step back must not hold an alert for an hour."""
    store.commit(commit(alert("a")))
    with Reader(store.folder) as reader:
        (item,) = store.waiting(reader, "out", 10, NOW)
        store.settle("out", [(item, Outcome("retryable", "busy"))], NOW)
        assert store.waiting(reader, "out", 10, NOW) == []
        assert len(store.waiting(reader, "out", 10, NOW - HOUR)) == 1


def test_an_edited_or_planted_alert_is_found(store: Store) -> None:
    """The store's alerts are held to the log, whatever their own rows say."""
    store.commit(commit(alert("a"), alert("b")))
    for statement in (
        "UPDATE alert SET document = replace(document, 'why', 'not') WHERE id = 'b'",
        "UPDATE alert SET id = 'c' WHERE id = 'b'",
    ):
        store.do(lambda connection, statement=statement: connection.execute(statement))  # type: ignore[misc]
        with Reader(store.folder) as reader, pytest.raises(LogBroken, match="stored alert was edited or added"):
            check_alerts(reader.alert_members(), reader.members, key_of(store.folder))


# --- what is signed ---------------------------------------------------------------------------------------------------


def test_everything_is_signed_soon_and_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaf at once, what follows when its time has come or it is asked for, the rest at close."""
    monkeypatch.setattr(auditlog, "CHECKPOINT_S", 0.1)
    monkeypatch.setattr(auditlog, "MOST_CHECKPOINT_S", 0.2)
    store.record("", "start", {}, NOW)
    assert report_of(store.folder).signed == 1
    store.record("", "replay", {}, NOW)
    deadline = time.monotonic() + 10
    while report_of(store.folder).signed < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert report_of(store.folder).signed == 2
    monkeypatch.setattr(auditlog, "CHECKPOINT_S", 3600.0)
    time.sleep(0.5)  # quiet: the next one is signed at once again, and the one after it when it is due
    store.record("", "replay", {}, NOW)
    assert report_of(store.folder).signed == 3
    store.record("", "replay", {}, NOW)
    assert report_of(store.folder).signed == 3
    store.checkpoint()
    assert report_of(store.folder).signed == 4
    store.record("", "stop", {}, NOW)
    store.close()
    report = report_of(store.folder)
    assert (report.leaves, report.signed, report.checkpoints) == (5, 5, 5)


@pytest.mark.parametrize("pace", [0.1, 2.5, 20.0])
def test_under_steady_load_checkpoints_become_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: float
) -> None:
    """Leaves at any pace for ten minutes: in the end a checkpoint a minute; after a rest at once again."""
    now = [0.0]
    monkeypatch.setattr(auditlog, "CHECKPOINT_S", 1.0)
    monkeypatch.setattr(auditlog, "time", SimpleNamespace(monotonic=lambda: now[0], time_ns=lambda: NOW * 1000))
    connection = apsw.Connection(":memory:")
    connection.execute(files("agent.store").joinpath("schema.sql").read_text("utf-8"))
    log = AuditLog(connection, tmp_path)

    def leaf() -> int:
        log.append(connection, "replay", time=NOW, data={})
        if log.wait() == 0:
            log.sign(connection, NOW)
        return int(connection.execute("SELECT count(*) FROM checkpoint").get)

    for _ in range(int(600 / pace)):
        now[0] += pace
        number = leaf()
    assert 10 <= number <= 16
    now[0] += 200.0
    assert [leaf(), log.size == log.mark.signed] == [number + 1, True]


def test_the_log_goes_on_where_it_stood(store: Store, tmp_path: Path) -> None:
    """Numbers, tree and key survive a restart."""
    for number in range(5):
        assert store.record("", "start", {}, NOW) == number
    store.close()
    again = Store(tmp_path)
    assert again.record("", "start", {}, NOW) == 5
    again.close()
    assert report_of(tmp_path).signed == 6


def test_leaves_that_a_crash_left_unsigned_are_signed_later(store: Store, tmp_path: Path) -> None:
    """A process that is killed leaves whole leaves; the next one goes on behind them and signs all."""
    store.record("", "start", {}, NOW)
    store.record("", "replay", {}, NOW)
    copy = shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy", "lock", "*-shm"))
    assert report_of(copy).signed == 1
    again = Store(copy)
    assert again.record("", "start", {}, NOW) == 3
    again.close()
    assert report_of(copy).signed == 4
    with Reader(copy) as reader:
        recovered = list(reader.recorded())[2]
    assert (recovered.action, recovered.data) == ("leaves-recovered", {"first": 1, "last": 1})


def test_a_cut_log_is_refused_at_start(store: Store, tmp_path: Path) -> None:
    """The end is missing and the last checkpoint says so: nothing is appended to such a log."""
    for _ in range(5):
        store.record("", "start", {}, NOW)
    store.close()
    tamper(tmp_path, "DELETE FROM leaf WHERE number = 4")
    with pytest.raises(LogBroken, match="leaves from 4 on are missing"):
        Store(tmp_path)
    with pytest.raises(LogBroken, match="leaves from 4 on are missing"):
        report_of(tmp_path)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_log_rewritten_behind_removed_checkpoints_is_not_made_clean(
    store: Store, tmp_path: Path, beyond: int
) -> None:
    """Without the key only the unsigned can be rewritten, and that it was unsigned stays in the log for good."""
    for actor in ("kim", "mallory", "kim"):
        store.record("", "start", {}, NOW, actor=actor)
    store.close()
    tamper(tmp_path, f"DELETE FROM checkpoint WHERE size > {beyond}")
    connection = apsw.Connection(str(tmp_path / DATABASE))
    data = bytes(connection.execute("SELECT CAST(bytes AS BLOB) FROM leaf WHERE number = 1").get)
    forged = data.replace(b"mallory", b"someone")
    connection.execute("DROP TRIGGER IF EXISTS leaf_is_append_only")
    connection.execute("UPDATE leaf SET bytes = ?, hash = ? WHERE number = 1", (forged, leaf_hash(forged)))
    connection.close()
    if beyond == 0:
        with pytest.raises(LogBroken, match="checkpoints were removed"):
            report_of(tmp_path)
        with pytest.raises(LogBroken, match="checkpoints were removed"):
            Store(tmp_path)
        return
    assert report_of(tmp_path).signed == 1
    Store(tmp_path).close()
    with Reader(tmp_path) as reader:
        last = list(reader.recorded())[-1]
    assert (last.action, last.data) == ("leaves-recovered", {"first": 1, "last": 2})


def test_what_is_no_unicode_comes_on_record_written_out(store: Store) -> None:
    store.record("", "model-refused", {"reason": "a\udcff"}, NOW, actor="k\udcffm")
    with Reader(store.folder) as reader:
        (leaf,) = reader.recorded()
    assert (leaf.data, leaf.actor) == ({"reason": "a\\udcff"}, "k\\udcffm")


def test_after_a_disk_error_nothing_more_is_written_or_signed(store: Store) -> None:
    """Not even what was queued already."""
    store.record("", "start", {}, NOW)
    begun, go = threading.Event(), threading.Event()

    def fails(_: apsw.Connection) -> None:
        begun.set()
        go.wait(10)
        raise apsw.IOError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.do, fails)
        assert begun.wait(10)
        second = pool.submit(store.record, "", "replay", {}, NOW)
        while store._jobs.empty():
            time.sleep(0.01)
        go.set()
        for one in (first, second):
            with pytest.raises(StoreBroken):
                one.result(10)
    store.close()
    assert report_of(store.folder).leaves == 1


def test_an_edited_leaf_is_found_whatever_was_appended_since(store: Store, tmp_path: Path) -> None:
    """The agent goes on from what it has signed, so it cannot be made to sign the edit."""
    store.record("", "start", {}, NOW, actor="mallory")
    store.close()
    tamper(tmp_path, "UPDATE leaf SET bytes = replace(bytes, 'mallory', 'someone')")
    again = Store(tmp_path)
    again.record("", "stop", {}, NOW)
    again.close()
    with pytest.raises(LogBroken, match="leaf 0 was edited") as broken:
        report_of(tmp_path)
    assert broken.value.number == 0


def test_an_edited_checkpoint_is_refused_at_start(store: Store, tmp_path: Path) -> None:
    """The log goes on only from what its own key has signed."""
    store.record("", "start", {}, NOW)
    store.close()
    tamper(tmp_path, "UPDATE checkpoint SET peaks = zeroblob(32)")
    with pytest.raises(LogBroken, match="signs another root"):
        Store(tmp_path)


def test_a_log_without_its_key_is_refused(store: Store, tmp_path: Path) -> None:
    """A new key would be a new log that says nothing of the old one; one that does not fit audit.pub neither."""
    store.record("", "start", {}, NOW)
    store.close()
    kept = (tmp_path / "audit.key").rename(tmp_path / "kept")
    with pytest.raises(TrustError, match=r"audit\.key is missing"):
        Store(tmp_path)
    kept.rename(tmp_path / "audit.key")
    (tmp_path / "audit.pub").write_text("vedette/other+00000000+AAAA\n")
    with pytest.raises(TrustError, match="not the public half"):
        Store(tmp_path)
    (tmp_path / "audit.pub").unlink()
    Store(tmp_path).close()
    assert report_of(tmp_path).leaves == 1


def test_the_key_is_for_its_owner_only(store: Store) -> None:
    """And it is not the same for two logs."""
    path = store.folder / "audit.key"
    assert path.stat().st_mode & 0o777 == 0o600
    other = Store(store.folder / "other")
    other.close()
    assert key_of(store.folder) != key_of(store.folder / "other")


# --- copies and proofs ------------------------------------------------------------------------------------------------


def drained(store: Store, path: Path, sink: str = "out") -> list[bytes]:
    """Let the ndjson sink have all that waits for it and return the lines of its file."""
    target = build(sink, {"path": str(path)})
    target.open()
    with Reader(store.folder) as reader:
        while drain(target, store, reader, Meters(), limit=7, now=NOW):
            pass
    target.close()
    return path.read_bytes().splitlines()


def filled(store: Store) -> None:
    store.record("", "start", {"pid": 1}, NOW, actor="kim")
    store.accept(1, b"text", b"signed", {"revision": 1, "digest": "sha256:ab", "signers": ["ann", "bo"]}, NOW)
    store.record("main", "detector-loaded", {"detector": "sigma", "configuration": "sha256:ab"}, NOW)
    store.record("main", "detector-loaded", {"detector": "old", "configuration": "sha256:cd"}, NOW)
    store.record("other", "detector-loaded", {"detector": "sigma"}, NOW)
    store.commit(commit(alert("a1"), alert("a2"), alert("b")))
    store.commit(commit(alert("a1", "settled", "more")))
    store.record("", "stop", {}, NOW)


def test_a_sink_gets_the_whole_log_from_the_first_leaf(store: Store, tmp_path: Path) -> None:
    """Also what was done before it was named, and what a process does that was not told of it; once each."""
    filled(store)
    store.audit_sinks = ["out"]
    store.close()
    again = Store(tmp_path)
    assert again.audit_sinks == ("out",)
    again.record("", "start", {}, NOW)
    again.close()
    again = Store(tmp_path)
    again.audit_sinks = ["out"]
    lines = drained(again, tmp_path / "copy.ndjson")
    again.close()
    copy = Copy(lines, key_of(tmp_path).name)
    report = verify(copy.leaves(), copy.checkpoints(), key_of(tmp_path))
    assert report == report_of(tmp_path)
    assert len({orjson.loads(line)["_id"] for line in lines}) == len(lines) == 9 + report.checkpoints + 4


def test_no_alert_waits_for_the_audit_log(store: Store) -> None:
    """A sink that is named late is offered what is new before all that was done since the beginning."""
    for number in range(20):
        store.record("", "replay", {"spans": number}, NOW)
    store.audit_sinks = ["out"]
    store.commit(commit(alert("a"), alert("b")))
    with Reader(store.folder) as reader:
        assert [one.dataset for one in store.waiting(reader, "out", 4, NOW)] == ["alert", "alert", "audit", "audit"]


def test_a_sink_that_is_named_no_more_gets_no_more(store: Store, tmp_path: Path) -> None:
    """Nothing waits for it, and named again it goes on where it stood: what it got before does not come again."""
    store.audit_sinks = ["out"]
    store.record("", "start", {}, NOW)
    assert len(drained(store, tmp_path / "copy.ndjson")) == 2
    store.record("", "replay", {"number": 1}, NOW)  # this one waits when the sink is taken off
    store.audit_sinks = []
    store.record("", "replay", {"number": 2}, NOW)
    store.checkpoint()
    with Reader(store.folder) as reader:
        assert reader.waiting("out", 10) == 0
    store.audit_sinks = ["out"]
    with Reader(store.folder) as reader:
        assert [item.repeat for item in store.waiting(reader, "out", 10, NOW)] == [True, True, True]
    assert len(drained(store, tmp_path / "copy.ndjson")) == 5
    store.close()
    copy = Copy((tmp_path / "copy.ndjson").read_bytes().splitlines(), key_of(tmp_path).name)
    assert verify(copy.leaves(), copy.checkpoints(), key_of(tmp_path)).signed == 3


def test_a_copy_is_settled_like_any_document(store: Store) -> None:
    """Delivered goes, retryable waits, and its id and bytes stay the same."""
    store.audit_sinks = ["out"]
    store.record("", "start", {"pid": 1}, NOW, actor="kim")
    with Reader(store.folder) as reader:
        waiting = store.waiting(reader, "out", 10, NOW)
        assert [item.dataset for item in waiting] == ["audit", "audit"]
        store.settle("out", zip(waiting, [Outcome("retryable", "busy", 1.0), DELIVERED], strict=True), NOW)
        (again,) = store.waiting(reader, "out", 10, NOW + 1_000_000)
    assert (again.id, again.body, again.repeat) == (waiting[0].id, waiting[0].body, True)
    document = orjson.loads(again.body)
    assert document["event"]["dataset"] == "vedette.audit"
    assert (document["event"]["action"], document["user"]["name"]) == ("start", "kim")
    assert document["observer"]["product"] == "vedette"


def proofs_from(folder: Path, lines: list[bytes], id: str) -> list[Proof]:
    copy = Copy(lines, key_of(folder).name)
    return prove(id, copy.leaves(), copy.checkpoints(), key_of(folder))


def test_one_alert_is_proved_from_the_copy_alone(store: Store, tmp_path: Path) -> None:
    """Each revision by two short paths, with the leaves that allowed what ran; checked from the file's bytes."""
    store.audit_sinks = ["out"]
    filled(store)
    store.close()
    again = Store(tmp_path)
    lines = drained(again, tmp_path / "copy.ndjson")
    again.close()
    proofs = b"".join(one.model_dump_json().encode() + b"\n" for one in proofs_from(tmp_path, lines, "a1"))
    fired, settled = (check_proof(one, key_of(tmp_path)) for one in parse(proofs))
    assert (fired.alert, fired.revision, settled.revision) == ("a1", "fired", "settled")
    assert fired.batch.data["configuration"] == "sha256:ab"
    said = [
        (leaf.action, leaf.actor or leaf.data.get("detector") or leaf.data.get("signers")) for leaf in fired.allowed
    ]
    assert said == [
        ("start", "kim"), ("configuration-accepted", ["ann", "bo"]), ("detector-loaded", "sigma"),
    ]  # fmt: skip


def test_search_answers_and_hits_are_copies_too(store: Store, tmp_path: Path) -> None:
    """The log is read from what the SIEM gives: whole answers, hits, in any order, more than once."""
    store.audit_sinks = ["out"]
    filled(store)
    documents = [orjson.loads(line) for line in drained(store, tmp_path / "copy.ndjson")]
    hits = [{"_index": "logs-vedette.audit-default", "_id": one.pop("_id"), "_source": one} for one in documents]
    answer = orjson.dumps({"hits": {"hits": hits[::-1]}})
    copy = Copy([answer, *map(orjson.dumps, hits), b"", b'{"message": "something else"}'], key_of(tmp_path).name)
    assert verify(copy.leaves(), copy.checkpoints(), key_of(tmp_path)).leaves == 8


def test_what_cannot_be_a_copy_is_refused(store: Store, tmp_path: Path) -> None:
    """Lines that are no documents, and two that say different things of one leaf."""
    store.audit_sinks = ["out"]
    filled(store)
    line = next(one for one in drained(store, tmp_path / "copy.ndjson") if b'"vedette.audit"' in one)
    origin = key_of(tmp_path).name
    document = orjson.loads(line)
    document["vedette"]["audit"]["leaf"] = "e30="
    for lines in ([b"not json"], [b"[1]"], [line, orjson.dumps(document)], [line.replace(b'"leaf":"', b'"leaf":"!')]):
        with pytest.raises(TrustError, match="copy"):
            Copy(lines, origin)
    assert list(Copy([line], "vedette/other").leaves()) == []


def test_an_unknown_ambiguous_or_unsigned_alert_has_no_proof(store: Store) -> None:
    """The way out is said."""
    filled(store)
    key = key_of(store.folder)
    with Reader(store.folder) as reader:
        notes = [note for _, _, note in reader.checkpoints()]
        for id, trouble in (("x", "no alert"), ("a", "several alerts")):
            with pytest.raises(ConfigError, match=trouble):
                prove(id, reader.leaves(), notes, key)
        with pytest.raises(RetryableError, match="not under a checkpoint yet"):
            prove("b", reader.leaves(), notes, key)


def test_what_allowed_something_else_allows_nothing_here(store: Store) -> None:
    """The acceptance of another configuration or a detector of another stream is in the log too: it does not count."""
    store.accept(9, b"other", b"signed", {"revision": 9, "digest": "sha256:aa", "signers": ["ann"], "changed": {}}, NOW)
    store.record("other", "detector-loaded", {"detector": "x", "configuration": "sha256:ab"}, NOW)
    filled(store)
    store.close()
    key = key_of(store.folder)
    with Reader(store.folder) as reader:
        entries, notes = list(reader.leaves()), [note for _, _, note in reader.checkpoints()]
    (proof,) = prove("b", entries, notes, key)
    assert check_proof(proof, key).allowed
    tree = Tree([leaf_hash(one.data) for one in entries])
    for number in (0, 1):
        place = _place(entries[number], tree)
        for allowed in ([place], [*proof.allowed, place]):
            with pytest.raises(TrustError):
                check_proof(proof.model_copy(update={"allowed": allowed}), key)


def test_a_changed_proof_is_refused(store: Store) -> None:
    """Whatever of it is changed: member, place, paths, leaves, checkpoint."""
    filled(store)
    store.close()
    key = key_of(store.folder)
    with Reader(store.folder) as reader:
        notes = [note for _, _, note in reader.checkpoints()]
        (proof,) = prove("b", reader.leaves(), notes, key)
        (other,) = prove("a2", reader.leaves(), notes, key)
    place = proof.batch.model_copy
    allowed = proof.allowed[0]
    changes: list[dict[str, Any]] = [
        {"allowed": []},
        {"allowed": [one for one in proof.allowed if b"configuration-accepted" not in decode64(one.leaf)]},
        {"member": other.member},
        {"member": "!"},
        {"index": other.index},
        {"index": proof.index + 4},
        {"path": proof.path[:-1]},
        {"path": [*proof.path, proof.path[0]]},
        {"batch": allowed},
        {"batch": place(update={"number": proof.batch.number - 1})},
        {"batch": place(update={"leaf": allowed.leaf})},
        {"batch": place(update={"path": allowed.path})},
        {"allowed": [proof.batch]},
        {"allowed": [allowed.model_copy(update={"number": 1})]},
        {"checkpoint": notes[0]},
        {"checkpoint": proof.checkpoint.replace("vedette", "vedett")},
    ]
    for change in changes:
        with pytest.raises(TrustError):
            check_proof(proof.model_copy(update=change), key)
    for line in (b"", b"x", b"{}", proof.model_dump_json().replace('"index":2', '"index":"2"').encode()):
        with pytest.raises(TrustError, match="proof"):
            list(parse(line + b"\n"))
