"""The systemd unit: how little it may do, and that it fits what is installed and what the daemon says of itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

UNIT = ROOT / "packaging" / "systemd" / "vedette.service"
MOST_EXPOSURE = 1.2
BY_NATURE = {"PrivateNetwork=", "RestrictAddressFamilies=~AF_(INET|INET6)", "RestrictAddressFamilies=~AF_UNIX"}
"""An agent that talks to a SIEM, and to its own commands and the service manager."""
BY_SITE = {"IPAddressDeny=", "RootDirectory=/RootImage="}
BY_PROTECT_CLOCK = {"DeviceAllow="}


@pytest.fixture
def systemd_analyze() -> str:
    if (found := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    return found


def test_the_unit_is_exposed_to_nothing_but_what_it_is_for(systemd_analyze: str) -> None:
    words = [systemd_analyze, "security", "--offline=yes", f"--threshold={MOST_EXPOSURE * 10:.0f}"]
    done = subprocess.run([*words, "--json=short", UNIT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    exposed = {one["name"] for one in json.loads(done.stdout) if one["set"] is False and one["exposure"]}
    assert exposed == BY_NATURE | BY_SITE | BY_PROTECT_CLOCK


def test_systemd_finds_nothing_wrong_in_it(systemd_analyze: str, tmp_path: Path) -> None:
    """Unknown keys and values are warnings there; the program is not installed here."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/vedette/bin/vedette", "/bin/true"))
    done = subprocess.run([systemd_analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "vedette" in line]
    assert (done.returncode, ours) == (0, [])


def test_what_a_restart_cannot_mend_is_not_started_again() -> None:
    """Usage, configuration and trust, by the exit codes that the operator's page lists."""
    page = (ROOT / "docs" / "operate.md").read_text()
    wanted = re.findall(r"(?m)^\| (\d) \| (?:usage|configuration;|trust or access refused)", page)
    (prevented,) = re.findall(r"(?m)^RestartPreventExitStatus=(.*)$", UNIT.read_text())
    assert prevented.split() == wanted == ["2", "3", "4"]


def test_the_system_user_can_be_made(tmp_path: Path) -> None:
    if (tool := shutil.which("systemd-sysusers")) is None:
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    users = ROOT / "packaging" / "systemd" / "vedette.sysusers"
    subprocess.run([tool, f"--root={tmp_path}", users], check=True, capture_output=True)
    fields = (tmp_path / "etc" / "passwd").read_text().split(":")
    assert (fields[0], fields[5], fields[6]) == ("vedette", "/var/lib/vedette", "/usr/sbin/nologin\n")
