"""The soak with every fault once; and that its clock, its load and its judge do what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.soak import (
    HOUR_S,
    RECOVERY_S,
    Alert,
    Clock,
    Skipped,
    SmallDisk,
    Trend,
    Writer,
    judge_alerts,
    judge_books,
    judge_trends,
)
from tests.site import Site

SOAK = [sys.executable, "-m", "tests.faults.soak", "--short", "--json"]
LOOK = """
import apsw, datetime, threading, time
begun = time.monotonic()
threading.Event().wait(0.05)
(sqlite,) = apsw.Connection("").execute("SELECT unixepoch()").fetchone()
print(time.time(), datetime.datetime.now().timestamp(), time.time_ns() / 1e9, sqlite, time.monotonic() - begun)
"""
GOOD = [Alert("a", 1), Alert("b", 2), Alert("c", None)]
FLAT = Trend(an_hour=0.0, most_warm=20, most=20, growth=0.0)


@pytest.mark.timeout(480)
@pytest.mark.xdist_group("soak")
def test_load_and_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    """Each fault once under a thousand lines a second: exact at the end, over within 30 seconds, and nothing grows."""
    with subprocess.Popen([*SOAK, str(tmp_path / "report.json")], stdout=subprocess.PIPE, text=True) as soak:
        try:
            said, _ = soak.communicate(timeout=460)
        finally:
            soak.terminate()  # it ends its daemon and takes its file system away
    print(said)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["wrong"], soak.returncode) == ([], 0)
    assert report["lines"] > 20_000
    assert {one["name"] for one in report["faults"] if one["recovery_s"] >= RECOVERY_S} == set()
    assert len(report["faults"]) == 13 or report["skipped"]


def test_a_flood_of_signals_neither_ends_nor_stops_it(tmp_path: Path) -> None:
    """After thousands of SIGHUP in two seconds it looks at its configuration again, and ends in order."""
    site = Site(tmp_path)
    site.start()
    try:
        assert site.process is not None
        end = time.monotonic() + 2
        while time.monotonic() < end:
            site.process.send_signal(signal.SIGHUP)
            time.sleep(0.00002)
        time.sleep(1)
        looked = site.log.count("configuration looked at again")
        site.process.send_signal(signal.SIGHUP)
        site.until(lambda: site.log.count("configuration looked at again") > looked, 10)
        site.stop()
    finally:
        site.end_anyhow()


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
def test_the_process_follows_the_clock_that_is_set(tmp_path: Path, seconds: int) -> None:
    """Python's time and SQLite's move; waiting does not."""
    try:
        clock = Clock(tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))
    clock.set(seconds)
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={**os.environ, **clock.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    *told, waited = map(float, done.stdout.split())
    assert [round((one - time.time() - seconds) / 60) for one in told] == [0, 0, 0, 0]
    assert 0.05 <= waited < 30


def test_the_small_disk_is_full_and_then_it_is_not(tmp_path: Path) -> None:
    """A write fails while the ballast lies there, and succeeds afterwards."""
    try:
        disk = SmallDisk(tmp_path, 2)
    except Skipped as reason:
        pytest.skip(str(reason))
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "file").write_bytes(bytes(8192))
        disk.free()
        (tmp_path / "file").write_bytes(bytes(8192))
    finally:
        disk.close()


def test_every_line_is_written_once_over_rotations(tmp_path: Path) -> None:
    """The rotated files and the newest hold the lines in their order, none torn."""
    writer = Writer(tmp_path, rate=5000, rotate_s=0.2, seed=3)
    writer.start()
    time.sleep(0.7)
    writer.stop()
    oldest_first = sorted(tmp_path.iterdir(), reverse=True)
    lines = b"".join(path.read_bytes() for path in oldest_first).splitlines()
    assert writer.rotations >= 2
    assert [int(line.split(b"sshd[")[1].split(b"]")[0]) for line in lines if b"sshd[" in line] == [
        number for number in range(writer.lines) if number % 5000 != 123
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (GOOD, []),
        (GOOD[1:], ["siem: 1 missing, 0 double, 0 unknown", "siem: 1 alerts are not the same as in the first place"]),
        ([*GOOD, Alert("b", 2)], ["siem: 0 missing, 2 double, 0 unknown"]),
        ([*GOOD[:2]], ["siem: 1 alerts are not the same as in the first place"]),
        (
            [*GOOD, Alert("d", 3)],
            ["siem: 0 missing, 0 double, 1 unknown", "siem: 1 alerts are not the same as in the first place"],
        ),
        (
            [*GOOD, Alert("d", 2)],
            ["siem: 0 missing, 1 double, 0 unknown", "siem: 1 alerts are not the same as in the first place"],
        ),
    ],
)
def test_the_judge_sees_what_is_missing_double_and_unknown(found: Sequence[Alert], said: list[str]) -> None:
    """Of the fired lines by their numbers, of all alerts by their ids."""
    assert list(judge_alerts([1, 2], {"store": GOOD, "siem": found})) == said


def test_the_judge_sees_books_that_do_not_balance() -> None:
    """Each line once, under the disposition of its kind."""
    books = {"received": 2000, "scored": 1997, "quarantined": 1, "filtered": 2}
    assert list(judge_books(books, 2000)) == []
    assert list(judge_books(books | {"scored": 1998}, 2000))
    assert list(judge_books(books, 2001))


def test_the_judge_sees_what_grows() -> None:
    """Descriptors beyond those of the warm-up, memory beyond what alerts of an hour take."""
    flat = {"descriptors": FLAT, "rss_mb": FLAT}
    assert list(judge_trends(flat, HOUR_S)) == []
    assert list(judge_trends({**flat, "descriptors": replace(FLAT, most=24)}, HOUR_S))
    assert list(judge_trends({**flat, "rss_mb": replace(FLAT, growth=90.0)}, HOUR_S))
