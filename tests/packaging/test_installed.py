"""docs/install.md followed command by command on a machine that is thrown away, and what it promises beside that."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests.packaging.conftest import NEWER, Built
from tests.packaging.machine import Machine
from tests.packaging.test_container import health_check
from tests.pages import DOCS, blocks

PAGE = DOCS / "install.md"
PASSPHRASE = b"correct horse battery staple"
KEY = "VEDETTE_PASSPHRASE_FILE=/root/passphrase VEDETTE_KEY=/root/.config/vedette/keys/alice.pem"
LINE = "{:%b %e %H:%M:%S} srv-web-01 sshd[2231]: Accepted password for root from 203.0.113.{} port 51122 ssh2\n"
ALERT = "root logged in over SSH with a password"
SANDBOX = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapBnd": "0" * 16, "CapAmb": "0" * 16}
SIEM = """
import socket
with socket.create_server(("127.0.0.1", 9200)) as server, open("/root/asked", "ab", buffering=0) as asked:
    while True:
        peer, _ = server.accept()
        with peer:
            asked.write(peer.recv(65536))
            peer.sendall(b"HTTP/1.1 503 Service Unavailable\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
"""


class Reader:
    """Somebody with root's shell on a machine, the page in hand and the packages in root's home."""

    def __init__(self, machine: Machine, built: Built, newer: Path) -> None:
        self.machine = machine
        self.left = defaultdict(list)
        for block in blocks(PAGE):
            if block.language == "sh":
                self.left[block.heading].append(block.text)
        self._own = {"vedette_0.1.0-1_amd64.deb": built.deb.name, "vedette_0.1.1-1_amd64.deb": newer.name}
        self._own["apt "] = "apt --yes "
        for deb in (built.deb, newer):
            machine.put(deb, f"/root/{deb.name}")
        machine.run("install -m 0600 /dev/stdin /root/passphrase", given=PASSPHRASE)
        machine.run("install -m 0640 -g adm /dev/null /var/log/auth.log")

    def follow(self, heading: str, *, given: bytes = b"") -> str:
        """Do what the page says next under *heading*."""
        text = self.left[heading].pop(0)
        for theirs, own in self._own.items():
            text = text.replace(theirs, own)
        before = f"export DEBIAN_FRONTEND=noninteractive {KEY}\ncd\n"
        return self.machine.run(before + text, given=given).stdout

    def log_in(self, address: int) -> None:
        """Have root log in with a password from an address that ends with *address*."""
        self.machine.run("cat >> /var/log/auth.log", given=LINE.format(datetime.now(UTC), address).encode())

    def alerts(self) -> list[str]:
        """Return from where root logged in, by the alerts in the sink's file."""
        found = self.machine.run("cat /var/lib/vedette/alerts.ndjson").stdout.splitlines()
        return [json.loads(line)["source"]["ip"].rpartition(".")[2] for line in found]

    def alerted(self, address: int) -> None:
        self.machine.until(f"grep -F '203.0.113.{address}\"' /var/lib/vedette/alerts.ndjson")

    def add_sink(self, name: str, **options: object) -> None:
        """Write a sink into the configuration, under the next number, and sign it."""
        written = yaml.safe_load(self.machine.run("cat /etc/vedette/vedette.yml").stdout)
        written["revision"] += 1
        written.setdefault("sinks", {})[name] = options
        written["streams"]["main"].setdefault("sinks", []).append(name)
        self.machine.run("cat > /etc/vedette/vedette.yml", given=yaml.safe_dump(written).encode())
        self.machine.run(f"{KEY} vedette config sign")


@pytest.fixture
def reader(built: Built, newer: Path, machine: Machine) -> Reader:
    return Reader(machine, built, newer)


def healthy(machine: Machine) -> bool:
    """Return what the health check of the container says."""
    return machine.run(shlex.join(health_check()), code=None).returncode == 0


def state(machine: Machine) -> dict[str, str]:
    """Return what systemd says of the service."""
    names = ("ActiveState", "MainPID", "NRestarts", "ExecMainStatus", "UnitFileState")
    said = machine.run(f"systemctl show vedette --property {','.join(names)}").stdout
    return dict(line.split("=", 1) for line in said.splitlines())


def test_whoever_follows_the_page_has_a_service_that_goes_on(reader: Reader) -> None:
    """Installed, started in its sandbox, given a secret, upgraded, removed: each login of root alerts once."""
    machine = reader.machine
    reader.follow("1. Install")
    assert state(machine)["ActiveState"] == "inactive"
    owners = machine.run("stat -c '%a %U %G' /etc/vedette /var/lib/vedette").stdout
    assert owners.splitlines() == ["750 root vedette", "700 vedette vedette"]
    assert reader.follow("What is in it") == ""

    reader.follow("2. Make a configuration")
    machine.run("echo 'listen: 127.0.0.1:9464' >> /etc/vedette/bootstrap.yml")
    reader.follow("3. Say what it may read")
    reader.log_in(1)
    reader.follow("4. Start")
    machine.until(f"runuser -u vedette -- vedette alerts list --data /var/lib/vedette | grep -F '{ALERT}'")
    assert healthy(machine)
    pid = state(machine)["MainPID"]
    status = dict(re.findall(r"(?m)^(\w+):\s+(\S+)", machine.run(f"cat /proc/{pid}/status").stdout))
    assert {name: status[name] for name in SANDBOX} == SANDBOX
    assert status["Uid"] == machine.run("id -u vedette").stdout.strip() != "0"
    for place, may in (("/opt/vedette", False), ("/etc/vedette", False), ("/usr", False), ("/var/lib/vedette", True)):
        written = machine.run(f"nsenter --target {pid} --mount touch {place}/new", code=None)
        assert (written.returncode == 0) is may, place

    reader.add_sink("file", type="ndjson", path="/var/lib/vedette/alerts.ndjson")
    machine.run("systemctl reload vedette")
    machine.until("systemctl show vedette --property StatusText | grep 'revision 2'")
    reader.log_in(2)
    reader.alerted(2)
    assert state(machine)["MainPID"] == pid

    machine.run("systemd-run --quiet --unit siem /usr/bin/python3 -c " + f"'{SIEM}'")
    siem = {"type": "elasticsearch", "hosts": ["http://127.0.0.1:9200"], "username": "sink", "delivery": "best_effort"}
    reader.add_sink("siem", **siem, password="credential:siem-password")
    reader.follow("Secrets", given=b"opensesame\n")
    reader.follow("Tighter still")
    reader.log_in(3)
    reader.alerted(3)
    machine.until("grep -i '^authorization: basic c2luazpvcGVuc2VzYW1l' /root/asked")  # sink:opensesame
    assert machine.run("stat -c %a /etc/credstore/vedette.siem-password").stdout == "600\n"

    sums = "cd /etc/vedette && sha256sum * && cat /etc/systemd/system/vedette.service.d/*"
    before = machine.run(sums).stdout
    pid = state(machine)["MainPID"]
    reader.log_in(4)
    reader.follow("Upgrade")
    assert NEWER in machine.run("ls /opt/vedette/lib/python3.11/site-packages").stdout
    reader.log_in(5)
    reader.alerted(5)
    assert reader.alerts() == ["2", "3", "4", "5"]
    assert state(machine)["MainPID"] != pid
    assert machine.run(sums).stdout == before

    reader.follow("Remove")
    assert state(machine) | {"ExecMainStatus": ""} == {
        "ActiveState": "inactive", "MainPID": "0", "NRestarts": "0", "ExecMainStatus": "", "UnitFileState": "",
    }  # fmt: skip
    assert not healthy(machine)
    machine.run("test ! -e /opt/vedette && test ! -e /usr/bin/vedette && test ! -e /usr/share/doc/vedette")
    assert machine.run(sums).stdout == before
    assert reader.alerts() == ["2", "3", "4", "5"]
    reader.follow("Remove")
    machine.run("! getent passwd vedette && ! getent group vedette")
    assert not any(reader.left.values()), "a block of the page was not followed"


def test_a_daemon_that_hangs_is_started_again_and_one_without_configuration_is_not(reader: Reader) -> None:
    machine = reader.machine
    reader.follow("1. Install")
    machine.run("systemctl start vedette", code=1)
    assert state(machine) == {
        "ActiveState": "failed", "MainPID": "0", "NRestarts": "0", "ExecMainStatus": "3", "UnitFileState": "disabled",
    }  # fmt: skip

    reader.follow("2. Make a configuration")
    reader.follow("3. Say what it may read")
    faster = "[Service]\nWatchdogSec=3\nRestartSec=1\nTimeoutAbortSec=1\n"
    machine.run("cat > /etc/systemd/system/vedette.service.d/faster.conf", given=faster.encode())
    reader.follow("4. Start")
    machine.run(f"kill -STOP {state(machine)['MainPID']}")
    machine.until('test "$(systemctl show vedette --property NRestarts --value)" = 1')
    machine.until("systemctl is-active vedette")
    reader.log_in(1)
    machine.until(f"runuser -u vedette -- vedette alerts list --data /var/lib/vedette | grep -F '{ALERT}'")


def test_in_a_root_without_an_init_it_is_installed_and_purged_and_data_stays(
    changed_root: Machine, built: Built
) -> None:
    """As an image is built; nothing is started, and nothing that somebody wrote is taken away."""
    changed_root.put(built.deb, "/root/vedette.deb")
    changed_root.run("dpkg --install /root/vedette.deb")
    assert "Usage: vedette" in changed_root.run("vedette --help").stdout
    changed_root.run("touch /var/lib/vedette/vedette.db && dpkg --purge vedette")
    changed_root.run("test -f /var/lib/vedette/vedette.db && test ! -e /etc/vedette && getent passwd vedette")
    changed_root.run("dpkg --install /root/vedette.deb && rm /var/lib/vedette/vedette.db && dpkg --purge vedette")
    changed_root.run("test ! -e /var/lib/vedette && ! getent passwd vedette && test ! -e /opt/vedette")


def test_the_rpm_is_installed_upgraded_and_removed(built: Built, changed_root: Machine) -> None:
    """By Red Hat's own tool, though on Debian: what it depends on is not looked at."""
    if changed_root.run("command -v rpm", code=None).returncode:
        pytest.skip("rpm is not installed")
    changed_root.put(built.rpm, "/root/vedette.rpm")
    rpm = "rpm --force-debian --nodeps"
    changed_root.run(f"{rpm} --install /root/vedette.rpm")
    assert "Usage: vedette" in changed_root.run("vedette --help").stdout
    assert changed_root.run("rpm --verify --nodeps vedette").stdout == ""
    changed_root.run(f"touch /var/lib/vedette/vedette.db && {rpm} --upgrade --force /root/vedette.rpm")
    assert "Usage: vedette" in changed_root.run("vedette --help").stdout
    changed_root.run(f"{rpm} --erase vedette")
    changed_root.run("test -f /var/lib/vedette/vedette.db && test -d /etc/vedette && getent passwd vedette")
    changed_root.run("test ! -e /opt/vedette && test ! -e /usr/bin/vedette")


def test_the_page_says_how_exposed_the_unit_is() -> None:
    assert "`systemd-analyze security vedette` gives 1.1 of 10" in PAGE.read_text()


def test_files_that_the_page_names_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
