"""`vedette canary` against a running daemon: an event goes the whole way, or the command says where it got stuck."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from agent.store import Reader
from tests.fake_siem import FakeSiem, Reply, Request
from tests.pages import DOCS, Shell, blocks
from tests.servers import Server
from tests.siem import bulk, connected, remove
from tests.site import Site


class Watched(Site):
    """A site whose streams have a canary detector: `main` over its logs, `other` over a folder of its own."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        super().__init__(folder)
        (folder / "elsewhere").mkdir()
        sources, streams = self.configuration["sources"], self.configuration["streams"]
        base: dict[str, Any] = {
            "sources": {**sources, "far": {**sources["logs"], "paths": [str(folder / "elsewhere")]}},
            "detectors": {**self.configuration["detectors"], "canary": {"type": "canary"}},
            "streams": {
                "main": {**streams["main"], "detectors": ["rules", "canary"]},
                "other": {"source": "far", "detectors": ["canary"], "sinks": ["out"]},
            },
        }
        self.sign("root", **{**base, **sections})

    @property
    def canaries(self) -> list[dict[str, Any]]:
        with Reader(self.data) as reader:
            return list(reader.alerts(rule="vedette.canary"))

    def canary(self, *words: str) -> tuple[int, dict[str, Any], str]:
        done = self.ask("canary", "--json", *words)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.end_anyhow()


def test_a_canary_goes_from_its_log_to_the_sink_once(site: Watched) -> None:
    """Through a log of syslog and through one of JSON; put there again, it is the same alert."""
    site.start()
    log, new = site.folder / "logs" / "auth.log", site.folder / "logs" / "app.json"
    before = log.read_bytes().removesuffix(b"\n")
    log.write_bytes(before)
    for place, words in ((log, ()), (new, ("--create",))):
        code, report, error = site.canary("--stream", "main", "--write", str(place), *words)
        assert (code, error, report["stuck"]) == (0, "", "")
        assert report["written"] <= report["stored"] <= report["delivered"]["out"]
        assert report["alert"] in site.delivered()
        assert report["token"] in place.read_text()
    head, line, rest = log.read_bytes().rpartition(b"<14>1 ")[0], log.read_bytes(), report["token"]
    assert head == before + b"\n", "what was in the log is changed"
    assert line.endswith(b"\n")
    assert json.loads(new.read_text())["message"] == f"vedette-canary:{rest}"
    with log.open("a") as file:
        file.write(f"<13>1 2026-01-01T00:00:00Z far app - - - and vedette-canary:{rest} again\n")
        file.write("<13>1 2026-01-01T00:00:00Z far app - - - by hand: vedette-canary:by-hand-1\n")
    code, report, _ = site.canary("--stream", "main", "--wait", "by-hand-1")
    assert (code, report["written"], list(report["delivered"])) == (0, None, ["out"])
    assert len(site.canaries) == 3
    assert len(site.delivered()) == len(set(site.delivered()))
    assert {(one["level"], one["stream"]) for one in site.canaries} == {("informational", "main")}


def test_whoever_follows_the_page_has_a_canary(tmp_path: Path) -> None:
    """The configuration of docs/operate.md and its command, as they stand."""
    page = [one for one in blocks(DOCS / "operate.md") if one.heading == "Is it alive: the canary"]
    (configuration,) = (yaml.safe_load(one.text) for one in page if one.language == "yaml")
    (command,) = (one.text for one in page if one.language == "sh")
    site = Site(tmp_path)
    detectors = {**site.configuration["detectors"], **configuration["detectors"]}
    site.sign("root", detectors=detectors, streams=configuration["streams"])
    shell = Shell(tmp_path, {"/etc/vedette/bootstrap.yml": str(site.bootstrap), "/var/log": str(tmp_path / "logs")})
    try:
        site.start()
        said = shell.do(command).splitlines()
    finally:
        site.end_anyhow()
    assert [line.split()[0] for line in said] == ["canary", "written", "stored", "delivered"]
    assert said[-1].endswith("sink out")


def test_a_canary_that_gets_stuck_says_where_and_what_to_do(site: Watched) -> None:
    """Not read, by another stream, not by this one while it is paused: exit code 1, in time."""
    site.start()
    unread = site.folder / "unread.log"
    code, report, error = site.canary("--stream", "main", "--write", str(unread), "--create", "--timeout", "1s")
    assert (code, report["stored"], report["delivered"]) == (1, None, {})
    assert "not stored: does source logs read that place" in error
    assert "stream main is ok" in error
    log = site.folder / "logs" / "auth.log"
    code, report, error = site.canary("--stream", "other", "--write", str(log), "--timeout", "20s")
    assert code == 1
    assert "it came through stream main" in error
    assert site.ask("pause", "main").returncode == 0
    code, report, error = site.canary("--stream", "main", "--write", str(log), "--timeout", "1s")
    assert (code, report["stuck"] in error) == (1, True)
    assert "stream main is paused" in error


def test_a_sink_that_refuses_it_or_is_away_is_named(tmp_path: Path) -> None:
    """What is stored and not delivered is stuck at its sink; a refusal is said at once, with its reason."""
    picky = True

    def bulk(request: Request) -> Reply:
        if not picky:
            return siem.reply(request)
        error = {"type": "document_parsing_exception", "reason": "none of these"}
        ids = [line["create"]["_id"] for line in request.lines[::2]]
        items = [{"create": {"_index": siem.backing[-1], "_id": id, "status": 400, "error": error}} for id in ids]
        return Reply(body={"took": 1, "errors": True, "items": items})

    with FakeSiem() as siem:
        siem.rollover()
        siem.on("_bulk", *[bulk] * 100)
        site = Watched(tmp_path)
        streams, sinks = site.configuration["streams"], site.configuration["sinks"]
        far = {"picky": {"type": "elasticsearch", **siem.access()},
               "away": {"type": "elasticsearch", "hosts": ["http://127.0.0.1:1"]}}  # fmt: skip
        main = {"main": {**streams["main"], "sinks": ["out", "away", "picky"]}}
        site.sign("root", sinks={**sinks, **far}, streams={**streams, **main}, audit={"sinks": []})
        log = str(site.folder / "logs" / "auth.log")
        try:
            site.start()
            code, report, error = site.canary("--stream", "main", "--write", log)
            assert (code, bool(report["stored"])) == (1, True)
            assert "stored, and refused by sink picky: " in error
            assert "none of these" in error
            picky = False
            code, report, error = site.canary("--stream", "main", "--write", log, "--timeout", "3s")
        finally:
            site.end_anyhow()
    assert (code, sorted(report["delivered"])) == (1, ["out", "picky"])
    assert "stored, and not delivered to away" in error


def test_without_a_daemon_nothing_is_written(site: Watched) -> None:
    """Exit code 5 at once, also where one has run before."""
    log = site.folder / "logs" / "auth.log"
    before = log.read_bytes()
    assert site.canary("--stream", "main", "--write", str(log))[0] == 5
    site.start()
    site.stop()
    code, report, error = site.canary("--stream", "main", "--write", str(log))
    assert (code, report) == (5, {})
    assert "no daemon runs over" in error
    assert log.read_bytes() == before


def test_what_cannot_be_done_is_refused_before_anything_is_written(site: Watched) -> None:
    site.start()
    log = site.folder / "logs" / "auth.log"
    before = log.read_bytes()
    for words, reason in (
        (("--write", str(log)), "--stream: expected one with a detector of type canary: main, other"),
        (("--stream", "main", "--write", "logs:index"), "source logs is of type files"),
        (("--stream", "main", "--write", str(log.with_name("new.log"))), "no such file"),
    ):
        code, _, error = site.canary(*words)
        assert (code, reason in error) == (3, True), error
    assert log.read_bytes() == before


def test_a_line_for_another_machine_is_printed_anywhere() -> None:
    """Without a daemon and without a configuration."""
    done = subprocess.run(
        [sys.executable, "-m", "agent", "canary", "-b", "nowhere.yml"], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("logger -t vedette vedette-canary:")
    assert second.endswith(f"--wait {first.rpartition(':')[2]}")


def test_a_canary_is_planted_in_an_index(siem: Server, tmp_path: Path) -> None:
    """It comes back as an event of the source; an index that is not there, or is not read, is refused and not made."""
    name = f"canary{uuid4().hex[:10]}"
    cluster = connected(siem.flavour, siem.access())
    try:
        for index in (f"{name}-read", f"{name}x"):
            bulk(cluster, index, [{"create": {}}, {"@timestamp": "2026-01-01T00:00:00Z", "message": "first"}])
        source = {"type": siem.flavour, **siem.access(), "indices": [f"{name}-*"]}
        site = Watched(tmp_path)
        sources = {**site.configuration["sources"], "siem": source}
        one = {"source": "siem", "detectors": ["canary"], "sinks": ["out"]}
        site.sign("root", sources=sources, streams={"siem": one})
        try:
            site.start()
            code, report, error = site.canary("--write", f"siem:{name}-read")
            assert (code, error) == (0, "")
            assert report["alert"] in site.delivered()
            for index, reason in ((f"{name}-none", "no index, alias or data stream"), (f"{name}x", "does not read")):
                code, _, error = site.canary("--write", f"siem:{index}")
                assert (code, reason in error) == (3, True), error
        finally:
            site.end_anyhow()
    finally:
        remove(cluster, f"{name}*")
        cluster.close()
