"""The real process: started, fed, asked, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import VEDETTE, Process
from tests.signing import signed

CONFIG = """
sources:
  auth: {{type: files, paths: ["{folder}/logs"], follow: true}}
detectors:
  rules: {{type: sigma, path: "{folder}/rules"}}
sinks:
  out: {{type: ndjson, path: "{folder}/out.ndjson"}}
streams:
  main: {{source: auth, detectors: [rules], sinks: [out]}}
"""
RULE = """
title: Failed password
id: 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11
level: high
logsource: {product: linux, service: sshd}
detection: {selection: {event.outcome: failure}, condition: selection}
"""
LINE = (
    "2026-03-01T10:00:{second:02d}.000000+00:00 web1 sshd[77]: Failed password for root from 192.0.2.9 port 5022 ssh2\n"
)


class Daemon(Process):
    """A daemon that follows a folder of logs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "logs").mkdir()
        (folder / "rules").mkdir()
        (folder / "rules" / "rule.yml").write_text(RULE)
        self.config.write_text(CONFIG.format(folder=folder))

    def append(self, text: str, name: str = "auth.log") -> None:
        with (self.folder / "logs" / name).open("a") as log:
            log.write(text)

    def delivered(self) -> list[str]:
        out = self.folder / "out.ndjson"
        return [json.loads(line)["event"]["id"] for line in out.read_text().splitlines()] if out.exists() else []

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return vedette(*words, "-d", str(self.data))


def vedette(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VEDETTE, *words], capture_output=True, text=True, check=False)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.kill()


def test_a_followed_log_survives_kill_and_restart(daemon: Daemon) -> None:
    """Lines before, during and after a SIGKILL come to one alert each, in the store and in the sink."""
    daemon.append(LINE.format(second=1))
    daemon.start()
    daemon.until(lambda: len(daemon.delivered()) == 1)
    daemon.append(LINE.format(second=2) * 3)
    daemon.until(lambda: len(daemon.delivered()) == 4)
    daemon.append(LINE.format(second=3))
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    daemon.append(LINE.format(second=4))
    daemon.start()
    daemon.until(lambda: len(daemon.delivered()) == 6)
    assert daemon.end(signal.SIGTERM) == 0
    stored = [json.loads(line)["id"] for line in daemon.ask("alerts", "list", "--json").stdout.splitlines()]
    assert sorted(stored) == sorted(daemon.delivered())
    assert len(set(stored)) == 6


def test_commands_work_beside_the_daemon_and_without_it(daemon: Daemon) -> None:
    """An acknowledgement is done by the running daemon, and by the command itself when none runs."""
    daemon.append(LINE.format(second=1) + LINE.format(second=2))
    daemon.start()
    daemon.until(lambda: len(daemon.delivered()) == 2)
    first, second = daemon.delivered()
    assert daemon.ask("alerts", "ack", first, "--verdict", "benign").returncode == 0
    assert daemon.end(signal.SIGTERM) == 0
    assert daemon.ask("alerts", "ack", second, "--verdict", "true-positive").returncode == 0
    rows = [json.loads(line) for line in daemon.ask("alerts", "list", "--json").stdout.splitlines()]
    assert {row["id"]: row["verdict"] for row in rows} == {first: "benign", second: "true-positive"}
    assert daemon.ask("alerts", "ack", "ffffffff").returncode == 3


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    """One process holds a data folder; the other says which process that is and ends with the configuration code."""
    daemon.start()
    second = vedette("run", "-b", str(signed(daemon.config, daemon.data)))
    assert second.returncode == 3
    assert f"in use by process {daemon.process.pid}" in second.stderr if daemon.process else False


def test_dead_letters_are_listed_and_stay_when_nothing_has_changed(daemon: Daemon) -> None:
    """A line that cannot be read is listed with its reason; trying again scores nothing new and doubles nothing."""
    daemon.append('{"broken\n', name="events.json")
    daemon.append('{"message": "fine"}\n', name="events.json")
    daemon.start()
    daemon.until(lambda: len(daemon.delivered()) == 1)
    (letter,) = [json.loads(line) for line in daemon.ask("deadletter", "list", "--json").stdout.splitlines()]
    assert letter["reason"]
    assert letter["begins"] == '{"broken'
    again = vedette("deadletter", "retry", "-b", str(signed(daemon.config, daemon.data)))
    assert again.stdout.strip() == "0 read and scored"
    assert len(daemon.ask("deadletter", "list", "--json").stdout.splitlines()) == 1
    assert len(daemon.delivered()) == 1


def test_a_daemon_without_configuration_says_so(tmp_path: Path) -> None:
    """Exit code 3 and one line, no stack trace."""
    done = subprocess.run(
        [*VEDETTE, "run", "-b", str(tmp_path / "none.yml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 3
    assert done.stderr.startswith("vedette: ")
    assert "Traceback" not in done.stderr
