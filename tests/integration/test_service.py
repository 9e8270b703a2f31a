"""The daemon as an operator meets it: signals, pausing, and how it says that it is well."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end_anyhow()


def test_a_paused_stream_fetches_nothing_until_it_is_told_to_go_on(site: Site) -> None:
    """What it had read is delivered, a restart does not wake it, and both commands are on record."""
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    done = site.ask("pause", "main")
    assert done.returncode == 0, done.stderr
    assert "stream main: paused: paused by" in done.stdout
    site.log_line(1)
    assert site.end(signal.SIGTERM) == 0
    site.start()
    assert site.status()["status"] == "paused"
    assert site.ask("pause", "main").returncode == 0, "paused already"
    again = site.ask("resume", "main", "--json")
    assert json.loads(again.stdout)["status"] == "ok"
    site.until(lambda: len(site.delivered()) == 2)
    assert [len(site.audited(action)) for action in ("stream-paused", "stream-resumed")] == [1, 1]
    assert site.audited("stream-paused")[0]["actor"]


def test_a_pause_that_cannot_be_is_refused(site: Site) -> None:
    nobody = site.ask("pause", "main")
    assert nobody.returncode == 5
    assert "no daemon runs" in nobody.stderr
    site.start()
    wrong = site.ask("pause", "other")
    assert wrong.returncode == 3
    assert "no stream 'other' runs; there is: main" in wrong.stderr
    assert len(site.audited("command-refused")) == 1


def test_a_hangup_takes_a_new_configuration_and_keeps_the_last_good_one(site: Site) -> None:
    """SIGHUP is 'vedette config apply' for a service manager; a broken file changes nothing."""
    site.start()
    assert site.process is not None
    site.sign("root", tenant="other")
    site.process.send_signal(signal.SIGHUP)
    site.until(lambda: len(site.audited("configuration-applied")) == 1)
    assert site.audited("configuration-applied")[0]["actor"] == "SIGHUP"
    (site.folder / "vedette.yml").write_text("sources: [")
    for _ in range(50):
        site.process.send_signal(signal.SIGHUP)
    site.until(lambda: site.audited("configuration-refused"))
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    assert site.status()["status"] == "ok"


class Watched(Site):
    """A site whose daemon serves health and metrics, under a service manager that listens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        with self.bootstrap.open("a") as file:
            file.write(f"listen: 127.0.0.1:{self.port}\n")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.settimeout(20)
        self.told: list[str] = []

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one series."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        (value,) = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return value

    def hears(self, text: str) -> str:
        """Wait until the service manager is told *text*; return the whole message."""
        while not self.told or text not in self.told[-1]:
            self.told.append(self.manager.recv(4096).decode())
        return self.told[-1]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield made
    made.end_anyhow()
    made.manager.close()


def test_the_service_manager_hears_how_it_is_from_ready_to_stopping(watched: Watched) -> None:
    """Ready when it works, with live counts; alive while it works; reloading and ready again; stopping."""
    watched.start()
    assert "streams: 1 " in watched.hears("READY=1")
    watched.hears("WATCHDOG=1")
    watched.until(lambda: len(watched.delivered()) == 1)
    assert watched.process is not None
    watched.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in watched.hears("RELOADING=1")
    assert "1 events, 1 alerts" in watched.hears("READY=1")
    watched.process.send_signal(signal.SIGSTOP)  # a process that hangs feeds no watchdog
    watched.manager.settimeout(0.2)
    with pytest.raises(TimeoutError):
        watched.hears("no such thing")
    watched.process.send_signal(signal.SIGCONT)
    watched.manager.settimeout(20)
    assert watched.end(signal.SIGTERM) == 0
    watched.hears("STOPPING=1")


def test_health_and_metrics_say_what_is_so(watched: Watched) -> None:
    """Alive and ready; a sink that is gone makes it not ready, and it stays alive."""
    watched.start()
    watched.until(lambda: len(watched.delivered()) == 1)
    assert watched.get("/livez") == (200, '{"status":"ok","reasons":[]}')
    watched.until(lambda: watched.get("/readyz")[0] == 200)
    assert watched.metric("vedette_events_received_total", stream="main") == 1
    assert watched.metric("vedette_alerts_total", stream="main", level="high") == 1
    assert watched.metric("vedette_sink_delivered_total", sink="out") == 1
    assert watched.metric("vedette_sink_delivery_seconds_count", sink="out") == 1
    assert watched.metric("vedette_batch_stage_seconds_count", stream="main", stage="commit") == 1
    assert watched.metric("vedette_rules_loaded", stream="main", detector="rules") == 1
    assert watched.metric("vedette_configuration_revision") == 1
    assert watched.ask("pause", "main").returncode == 0
    assert watched.metric("vedette_stream_paused", stream="main") == 1
    assert watched.ask("resume", "main").returncode == 0
    gone = watched.folder / "gone"
    gone.mkdir()
    watched.sign("root", sinks={"out": {"type": "ndjson", "path": str(gone / "out.ndjson")}})
    assert watched.ask("config", "apply").returncode == 0
    watched.log_line(1)
    watched.until(lambda: len(watched.delivered("gone/out.ndjson")) == 1)
    assert watched.end(signal.SIGTERM) == 0
    gone.rename(watched.folder / "away")
    watched.start()
    watched.log_line(2)
    watched.until(lambda: watched.get("/readyz")[0] == 503)
    assert "sink out: " in watched.get("/readyz")[1]
    assert watched.get("/livez")[0] == 200
    assert watched.metric("vedette_sink_up", sink="out") == 0
    (watched.folder / "away").rename(gone)
    watched.until(lambda: watched.get("/readyz")[0] == 200)
    assert watched.get("/else")[0] == 404


def test_status_shows_how_it_is_and_doctor_says_what_to_do(watched: Watched) -> None:
    watched.data.mkdir(mode=0o755)
    assert watched.ask("status").returncode == 5
    idle = watched.ask("doctor")
    assert "no store in" in idle.stdout
    watched.start()
    watched.until(lambda: len(watched.delivered()) == 1)
    watched.until(lambda: watched.get("/readyz")[0] == 200)
    done = watched.ask("status")
    assert done.returncode == 0, done.stdout
    assert "streams: 1 ok; 1 events, 1 alerts" in done.stdout
    found = json.loads(watched.ask("status", "--json").stdout)
    assert found["counts"]["main"]["received"] == 1
    assert found["streams"][0]["lag_events"] == 0
    with (watched.folder / "logs" / "broken.json").open("wb") as log:
        log.write(b'{"a": 1}\n{"b\n')
    watched.until(lambda: watched.received() == 3)
    said = watched.ask("doctor")
    assert said.returncode == 0, said.stdout
    assert "/readyz says ok" in said.stdout
    assert "others than its owner may enter" in said.stdout
    assert "-> vedette deadletter list" in said.stdout
    assert watched.ask("pause", "main").returncode == 0
    assert "-> vedette resume main" in watched.ask("doctor").stdout


def test_an_address_that_is_taken_is_said_and_nothing_starts(watched: Watched) -> None:
    with socket.create_server(("127.0.0.1", watched.port)):
        done = watched.ask("run", "--once")
    assert done.returncode == 3
    assert "listen" in done.stderr
