"""`vedette scan` over files of our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from tests.sigma_events import rule_text

RULE = rule_text(
    "{sel: {CommandLine|contains: evil}, condition: sel}",
    id="11111111-1111-4111-8111-111111111111",
    level="high",
    author="A. Uthor",
)


def event(command: str) -> bytes:
    fields = {
        "EventID": 1,
        "Channel": "Microsoft-Windows-Sysmon/Operational",
        "Hostname": "host1",
        "EventTime": "2024-05-05 10:00:00",
        "Image": "C:\\a.exe",
        "CommandLine": command,
    }
    return orjson.dumps(fields) + b"\n"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "rule.yml").write_text(RULE)
    (tmp_path / "logs").mkdir()
    content = event("good") + event("an evil \x1b[2J\u202ething") + b"{not json\n" + event("EVIL two")
    (tmp_path / "logs" / "a.json").write_bytes(content)
    return tmp_path


def scan(logs: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "agent", "scan", str(logs / "logs"), "--rules", str(logs / "rule.yml"), *arguments]
    return subprocess.run(command, capture_output=True, check=False, env={"XDG_CACHE_HOME": str(logs / "cache")})


def test_matches_are_printed_and_found_is_exit_code_one(logs: Path) -> None:
    """Time, level, title, host and place of each match, then the numbers."""
    done = scan(logs)
    assert done.returncode == 1, done.stderr
    first, second, *summary = done.stdout.decode().splitlines()
    assert first.startswith("2024-05-05T10:00:00.000Z  high  Test rule  host1  ")
    assert f"{logs / 'logs' / 'a.json'}:" in first
    assert "Test rule" in second
    assert "4 events" in summary[0]
    assert "2 matches" in summary[0]
    assert any("quarantined: 1 " in line for line in summary)


def test_json_is_one_alert_a_line_with_the_rules_id_and_the_files_path(logs: Path) -> None:
    """Standard output holds nothing else; the numbers go to standard error."""
    done = scan(logs, "--json")
    alerts = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert [alert["rule"]["id"] for alert in alerts] == ["11111111-1111-4111-8111-111111111111"] * 2
    assert {alert["log"]["file"]["path"] for alert in alerts} == {str(logs / "logs" / "a.json")}
    assert alerts[0]["rule"]["author"] == ["A. Uthor"]
    assert alerts[0]["vedette"]["trust"] == "local"
    assert b"2 matches" in done.stderr


def test_nothing_found_is_exit_code_zero(logs: Path) -> None:
    """A clean scan says so by its code."""
    (logs / "logs" / "a.json").write_bytes(event("good"))
    assert scan(logs).returncode == 0


def test_unusable_paths_and_rules_are_exit_code_three(logs: Path) -> None:
    """What cannot be read is a configuration error and not an empty result."""
    assert scan(logs, "--min-level", "loud").returncode == 3
    assert scan(logs, str(logs / "absent")).returncode == 3
    (logs / "rule.yml").unlink()
    assert scan(logs).returncode == 3


def test_hostile_text_cannot_steer_the_terminal(logs: Path) -> None:
    """Control and bidirectional characters from logs and rules are written out."""
    (logs / "rule.yml").write_text(RULE.replace("Test rule", '"Title \\e[31m \\u202e"'))
    hostile = event("evil").replace(b"host1", b"ho\\u001b[2Jst\\u202e")
    (logs / "logs" / "a.json").write_bytes(hostile)
    done = scan(logs)
    assert done.returncode == 1
    assert b"\x1b" not in done.stdout
    assert "\u202e".encode() not in done.stdout
    assert b"\\x1b" in done.stdout
