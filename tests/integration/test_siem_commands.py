"""`setup`, `doctor`, `plan`, `run` and `replay` as a user gives them, against real servers."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import apsw
import orjson
import pytest

from agent.pipeline import Pipeline
from agent.testing import fetch
from connectors.siem.client import Cluster
from connectors.siem.install import ALERT, stream_name
from connectors.siem.source import build as source
from rules.detector import build as sigma
from tests.faults.proxy import FAULTS, FaultProxy
from tests.process import VEDETTE, Process
from tests.servers import Server
from tests.siem import MARK, connected, new_namespace, put_away, snapshot
from tests.signing import signed

pytestmark = [pytest.mark.servers, pytest.mark.parametrize("siem", ["elasticsearch9", "opensearch2"], indirect=True)]

CONFIG = """
sources:
  logs: {{type: {flavour}, hosts: ["{url}"], indices: ["{index}*"], start: earliest}}
detectors:
  rules: {{type: sigma, path: "{folder}/rules"}}
  new-address:
    {{type: first-seen, title: New address, entity: [user.name], value: [source.ip], bucket: 1h, history: 2d,
      min_history: 3, where: {{event.action: [login]}}}}
sinks:
  siem: {{type: {flavour}, hosts: ["{url}"], namespace: {namespace}}}
streams:
  main: {{source: logs, detectors: [rules, new-address], sinks: [siem]}}
"""
BESIDE_OR_NOT = [
    pytest.param(True, id="beside the daemon"),
    pytest.param(False, id="without one"),
]
RULE = """
title: {title}
id: {id}
level: high
logsource: {{category: webserver}}
detection: {{selection: {{url.path: "{path}"}}, condition: selection}}
"""
NOW = datetime.now(UTC).replace(microsecond=0)


class Site(Process):
    """A cluster with logs, and a Vedette that reads them: its configuration, data folder and daemon."""

    def __init__(self, server: Server, folder: Path) -> None:
        super().__init__(folder)
        self.server = server
        self.cluster: Cluster = connected(server.flavour, server.access())
        self.namespace, self.index = new_namespace(), f"commands-{uuid4().hex[:12]}"
        self.stream = stream_name(self.namespace)
        (folder / "rules").mkdir()
        self.rule("/bad", "5ff3cf1f-0a6c-4b43-8b6c-0a2d93f3b0a1")
        self.configure(server.url)

    def configure(self, url: str) -> None:
        facts = {"flavour": self.server.flavour, "url": url, "index": self.index, "namespace": self.namespace}
        self.config.write_text(CONFIG.format(folder=self.folder, **facts))

    def rule(self, path: str, id: str) -> None:
        (self.folder / "rules" / f"{id}.yml").write_text(RULE.format(title=f"Asked for {path}", id=id, path=path))

    def vedette(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command; it ends within a minute."""
        command, *rest = words
        about = ["-c", str(self.config)]
        about += ["-d", str(self.data)] if command == "plan" else []
        if command in ("run", "replay"):
            about = ["-b", str(signed(self.config, self.data))]
        return subprocess.run(
            [*VEDETTE, command, *about, *rest], capture_output=True, text=True, check=False, timeout=60
        )

    def succeed(self, *words: str) -> str:
        done = self.vedette(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def replay(self, *words: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.succeed("replay", "--json", *words))
        return report

    def event(self, path: str, ago: timedelta = timedelta(hours=1), **more: Any) -> None:
        """Index a request for *path*."""
        moment = (NOW - ago).isoformat()
        body = {"@timestamp": moment, "ecs": {"version": "8.17.0"}, "url": {"path": path},
                "event": {"category": ["web"], "action": more.pop("action", "get")}, **more}  # fmt: skip
        self.cluster.request("POST", f"/{self.index}/_doc", params={"refresh": True}, body=body)

    def login(self, address: str, ago: timedelta) -> None:
        self.event("/login", ago, action="login", user={"name": "alice"}, source={"ip": address})

    def alerts(self) -> list[Mapping[str, Any]]:
        """Return the alerts in the SIEM, over all backing indices."""
        self.cluster.request("POST", f"/{self.stream}/_refresh", accept=(404,))
        answer = self.cluster.request("POST", f"/{self.stream}/_search", body={"size": 1000}, accept=(404,))
        return [] if answer.status == 404 else [hit["_source"] for hit in answer.body["hits"]["hits"]]

    def ids(self) -> list[str]:
        return sorted(alert["event"]["id"] for alert in self.alerts())

    def stored(self) -> list[str]:
        with apsw_connection(self.data) as connection:
            return sorted(id for (id,) in connection.execute("SELECT id FROM alert"))

    def forget(self) -> None:
        """Drop all alerts from the embedded store, as retention does."""
        with apsw_connection(self.data) as connection:
            connection.execute("DELETE FROM alert")

    def close(self) -> None:
        self.kill()
        put_away(self.cluster)


class apsw_connection:  # noqa: N801
    def __init__(self, data: Path) -> None:
        self._connection = apsw.Connection(str(data / "vedette.db"))
        self._connection.set_busy_timeout(10_000)

    def __enter__(self) -> apsw.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@pytest.fixture
def site(siem: Server, tmp_path: Path) -> Iterator[Site]:
    made = Site(siem, tmp_path)
    yield made
    made.close()


@pytest.fixture
def read(site: Site) -> Site:
    """A site with two alerts in the SIEM and no daemon."""
    site.event("/bad")
    site.event("/bad", timedelta(hours=2))
    site.event("/good")
    site.succeed("setup")
    site.succeed("run", "--once")
    assert len(site.ids()) == 2
    return site


def ago(hours: float) -> str:
    return (NOW - timedelta(hours=hours)).isoformat()


# --- setup, doctor, plan ----------------------------------------------------------------------------------------------


def test_setup_says_what_it_changed_and_changes_nothing_twice(site: Site) -> None:
    first = site.succeed("setup")
    assert "changed  sink siem: alert template: put" in first
    assert {line.split()[0] for line in site.succeed("setup").splitlines()} == {"ok"}


def test_the_exit_code_of_doctor_says_if_it_works(site: Site) -> None:
    """0 after setup; 1 with a foreign template and with a cluster that is down: each with what to do about it."""
    site.event("/good")
    assert site.vedette("doctor").returncode == 1
    site.succeed("setup")
    site.succeed("doctor")
    foreign = {"index_patterns": [f"logs-vedette.alert-{MARK}*"], "priority": 500, "data_stream": {}}
    site.cluster.request("PUT", f"/_index_template/{ALERT.name}", body=foreign)
    broken = site.vedette("doctor")
    assert broken.returncode == 1
    assert "failed   sink siem: alert template" in broken.stdout
    assert "-> run vedette setup" in broken.stdout
    site.configure(f"http://127.0.0.1:{free_port()}")
    down = site.vedette("doctor")
    assert down.returncode == 1
    assert down.stdout.count("can be reached from here") == 2


def test_plan_says_what_would_run(site: Site) -> None:
    site.event("/good")
    said = site.succeed("plan")
    assert "rules: 1" in said
    assert "detector new-address" in said
    site.configure(f"http://127.0.0.1:{free_port()}")
    assert site.vedette("plan").returncode == 5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="nothing"),
        pytest.param(("--late", "--from", "2026-01-01"), id="late with a span"),
        pytest.param(("--late", "--index", "logs"), id="late with an index"),
        pytest.param(("--from", "yesterday"), id="no time"),
        pytest.param(("--from", "2026-01-01", "--warm-up", "3w"), id="no duration"),
    ],
)
def test_replay_with_wrong_arguments_is_a_usage_error(site: Site, words: tuple[str, ...]) -> None:
    done = site.vedette("replay", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_replay_of_an_unknown_stream_names_those_that_there_are(read: Site) -> None:
    done = read.vedette("replay", "--from", "2026-01-01", "--stream", "other")
    assert done.returncode == 3
    assert "main" in done.stderr


@pytest.mark.parametrize("beside", BESIDE_OR_NOT)
def test_replay_of_a_span_finds_the_same_alerts_again(read: Site, beside: bool) -> None:
    """It reads what lies in the span, and adds nothing to the store nor to the SIEM."""
    before = read.ids()
    if beside:
        read.start()
    assert read.replay("--from", ago(1.5))["read"] == 2
    assert read.replay("--from", ago(3), "--to", ago(1.5))["read"] == 1
    whole = read.replay("--from", ago(3))
    assert (whole["read"], whole["new"], whole["failure"]) == (3, 0, "")
    if beside:
        read.stop()
    read.succeed("run", "--once")
    assert read.ids() == read.stored() == before


@pytest.mark.parametrize("beside", BESIDE_OR_NOT)
def test_an_alert_that_the_store_forgot_stays_one_document(read: Site, beside: bool) -> None:
    """Its row comes back; the SIEM keeps the document that it has, though it lies in an older backing index now."""
    before = read.ids()
    read.forget()
    read.cluster.request("POST", f"/{read.stream}/_rollover")
    if beside:
        read.start()
    assert read.replay("--from", ago(3))["new"] == 2
    assert read.stored() == before
    if beside:
        read.until(lambda: waiting(read) == 0)
        read.stop()
    else:
        read.succeed("run", "--once")
    assert waiting(read) == 0
    assert read.ids() == before


def waiting(site: Site) -> int:
    with apsw_connection(site.data) as connection:
        return int(connection.execute("SELECT count(*) FROM outbox").get)


def test_alerts_that_a_replay_adds_are_marked(read: Site) -> None:
    """A rule that is new finds what was read before it was there; the daemon sends it when it comes."""
    read.rule("/good", "c2b1e6f4-7f0f-4d0a-9a53-61a3f0c7d9aa")
    read.succeed("run", "--once")
    assert read.replay("--from", ago(3))["new"] == 1
    read.start()
    read.until(lambda: len(read.ids()) == 3)
    read.stop()
    (added,) = [alert for alert in read.alerts() if alert["message"] == "Asked for /good"]
    assert added["vedette"]["backfill"] is True


def clone(site: Site, name: str) -> None:
    site.cluster.request("PUT", f"/{site.index}/_settings", body={"index.blocks.write": True})
    site.cluster.request("POST", f"/{site.index}/_clone/{name}")


def restore(site: Site, name: str) -> None:
    with snapshot(site.cluster, site.index) as restored:
        restored(name)


@pytest.mark.parametrize(("copy", "name"), [(clone, "{}-copy"), (restore, "restored-{}")], ids=["cloned", "restored"])
def test_a_copy_is_read_by_replay_and_not_as_new(read: Site, copy: Callable[[Site, str], None], name: str) -> None:
    """Its events are those of the index that it was made from: the same alerts, none added."""
    name, before = name.format(read.index), read.ids()
    copy(read, name)
    read.succeed("run", "--once")
    assert read.ids() == before
    report = read.replay("--index", name)
    assert (report["read"], report["new"]) == (3, 0)
    assert read.ids() == read.stored() == before


@pytest.mark.parametrize("beside", BESIDE_OR_NOT)
def test_replay_of_late_hours_tells_detectors_that_learn(site: Site, beside: bool) -> None:
    """A login that comes hours late is too late for the baseline; a replay with a warm-up finds it, once."""
    site.succeed("setup")
    for hours in range(11, 4, -1):
        site.login("192.0.2.1", timedelta(hours=hours))
    site.start()
    site.until(lambda: received(site) == 7)
    site.until(lambda: watermark(site) > (NOW - timedelta(hours=1)).timestamp() * 1e6)
    site.login("198.51.100.7", timedelta(hours=3))
    site.until(lambda: received(site) == 8)
    if not beside:
        site.stop()
    assert site.stored() == []
    report = site.replay("--late", "--warm-up", "2d")
    assert (report["spans"], report["new"]) == (1, 1), report
    again = site.replay("--late", "--warm-up", "2d")
    assert (again["spans"], again["new"]) == (0, 0)
    if beside:
        site.until(lambda: waiting(site) == 0)
    else:
        site.succeed("run", "--once")
    (alert,) = site.alerts()
    assert alert["source"]["ip"] == "198.51.100.7"
    assert alert["vedette"]["backfill"] is True


def received(site: Site) -> int:
    return number(site, "SELECT value FROM counter WHERE scope = 'main' AND name = 'received'")


def watermark(site: Site) -> int:
    return number(site, "SELECT watermark FROM stream WHERE id = 'main'")


def number(site: Site, query: str) -> int:
    with apsw_connection(site.data) as connection:
        return int(connection.execute(query).get or 0)


# --- a SIEM that is down ----------------------------------------------------------------------------------------------


def test_a_siem_that_is_down_at_the_start_is_waited_for(site: Site) -> None:
    """The daemon stays up, says so, and reads and delivers when the SIEM comes."""
    site.event("/bad")
    site.succeed("setup")
    with FaultProxy(site.server.url) as proxy:
        site.configure(proxy.url)
        proxy.script(replace(FAULTS["refused"], seconds=5.0), match=lambda *_: True, when="before")
        site.start()
        assert proxy.struck
        site.until(lambda: "recovered" in site.log)
        site.until(lambda: len(site.ids()) == 1)
        site.stop()
    said = [orjson.loads(line) for line in site.log.splitlines()]
    assert {"degraded", "sink waits"} <= {line["message"] for line in said}


# --- what went wrong once ---------------------------------------------------------------------------------------------


def test_the_fields_that_our_own_rules_want_can_be_asked_for(site: Site, tmp_path: Path) -> None:
    """The projection of ``path: builtin`` is one that the server takes; the second page is the first to ask for it."""
    site.event("/good")
    site.event("/good")
    fields = Pipeline([sigma("rules", {"path": "builtin"}, tmp_path)]).projection()
    options = {**site.server.access(), "indices": [site.index], "start": "earliest"}
    logs = source(site.server.flavour)("logs", options)
    try:
        logs.open(fields)
        first = fetch(logs, None, 1)
        assert (len(first), len(fetch(logs, first.cursor, 1))) == (1, 1)
    finally:
        logs.close()


def test_an_empty_data_folder_doubles_no_alert(read: Site) -> None:
    """Vedette begins anew after its folder is lost; the stream has rolled over since."""
    before = read.ids()
    read.cluster.request("POST", f"/{read.stream}/_rollover")
    read.data = read.folder / "new"
    read.succeed("run", "--once")
    assert read.stored() == before
    assert read.ids() == before


# --- the audit log ----------------------------------------------------------------------------------------------------


def test_the_siems_copy_alone_proves_an_alert(read: Site, tmp_path: Path) -> None:
    """What a search finds in the audit stream is the whole log: it holds, and so does a proof that was made of it."""
    stream = stream_name(read.namespace, "audit")
    read.cluster.request("POST", f"/{stream}/_refresh")
    hits = read.cluster.request("POST", f"/{stream}/_search", body={"size": 1000}).body["hits"]["hits"]
    copy, proof, key = tmp_path / "copy.ndjson", tmp_path / "proof.json", str(read.data / "audit.pub")
    copy.write_bytes(b"".join(orjson.dumps(hit) + b"\n" for hit in hits))
    public = Path(key).read_text()
    away = read.data.rename(tmp_path / "away")
    (alert, _) = read.alerts()
    words = ["--copy", str(copy), "--key", public.strip()]

    def audit(*words: str) -> str:
        done = subprocess.run([*VEDETTE, "audit", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    report = json.loads(audit("verify", "--json", *words))
    assert report["ok"]
    assert (
        report["signed"]
        == report["leaves"]
        == len({hit["_source"]["vedette"]["audit"].get("number") for hit in hits} - {None})
    )
    audit("prove", alert["event"]["id"], *words, "-o", str(proof))
    assert alert["event"]["id"] in audit("verify", "--proof", str(proof), "--key", public.strip())
    away.rename(read.data)
