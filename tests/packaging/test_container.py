"""The Containerfile, as far as it can be judged without an engine: what it says, and its steps taken one by one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.packaging.conftest import ROOT, Built
from tests.packaging.machine import Machine

FILE = ROOT / "packaging" / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions and what stands after each, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", FILE.read_text())
    lines = (line.partition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return [(name, rest) for name, _, rest in lines]


def last_stage(name: str) -> list[str]:
    everything = instructions()
    start = max(number for number, (what, _) in enumerate(everything) if what == "FROM")
    return [rest for what, rest in everything[start:] if what == name]


def health_check() -> list[str]:
    command: list[str] = json.loads(last_stage("HEALTHCHECK")[0].partition("CMD ")[2])
    return command


def test_what_runs_is_not_root_and_goes_through_no_shell() -> None:
    (user,) = last_stage("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "a number, so that an orchestrator sees that it is not root"
    assert json.loads(last_stage("ENTRYPOINT")[0]) == ["/opt/vedette/bin/vedette"]
    assert json.loads(last_stage("CMD")[0]) == ["run", "-b", "/etc/vedette/bootstrap.yml"]
    assert health_check()[0] == "/opt/vedette/bin/python"


def test_nothing_is_fetched_but_what_the_lock_file_allows() -> None:
    """One step installs, and it is the one that packages are made by."""
    names = [name for name, _ in instructions()]
    assert "ADD" not in names
    assert "://" not in re.sub(r"HEALTHCHECK.*", "", FILE.read_text())
    steps = [rest for name, rest in instructions() if name == "RUN"]
    assert json.loads(steps[0]) == ["python3.11", "packaging/build.py", "install", "--root", "/tree"]
    assert not re.search(r"\b(pip|apt|apt-get|curl|wget)\b", " ".join(steps))


def test_no_secret_and_nothing_but_the_program_goes_in() -> None:
    assert not [name for name, rest in instructions() if name == "ENV" or (name == "ARG" and "KEY" in rest.upper())]
    assert last_stage("COPY") == ["--from=build /tree/ /"]
    copied = [
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    ]
    assert sorted(copied) == sorted(set(copied))
    assert all((ROOT / word).exists() for word in copied)
    assert not {".", ".git", "tests"} & set(copied)


def test_its_copies_are_all_that_the_build_reads(source: Path) -> None:
    """The tests build from a folder that has exactly these."""
    copied = {
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    assert copied == {one.name for one in source.iterdir()}


def test_the_steps_make_a_root_that_runs_read_only(built: Built, changed_root: Machine) -> None:
    """As an engine would: the steps as root, then the user without capabilities, its own folder alone writable."""
    for step in last_stage("RUN"):
        changed_root.run(step)
    changed_root.put(built.deb, "/root/vedette.deb")
    changed_root.run("dpkg-deb --extract /root/vedette.deb /")
    made = "vedette init /etc/vedette --data /var/lib/vedette --logs /etc/vedette/auth.log --name alice"
    line = "Nov 18 10:15:02 srv-web-01 sshd[2231]: Accepted password for root from 203.0.113.77 port 51122 ssh2\n"
    changed_root.run(f"cat > /etc/vedette/auth.log\necho 'correct horse battery staple' > /root/pass\n"
                     f"{made} --passphrase-file /root/pass", given=line.encode())  # fmt: skip
    changed_root.run("mount --bind /var/lib/vedette /var/lib/vedette && mount -o remount,bind,ro /")
    (user,) = last_stage("USER")
    uid, _, gid = user.partition(":")
    rights = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    entry = json.loads(last_stage("ENTRYPOINT")[0])
    command = shlex.join([*rights, *entry, *json.loads(last_stage("CMD")[0]), "--once"])
    changed_root.run(f"{shlex.join(rights)} touch /etc/vedette/new", code=1)
    changed_root.run(command)
    listed = changed_root.run(shlex.join([*rights, *entry, "alerts", "list", "--data", "/var/lib/vedette"])).stdout
    assert "root logged in over SSH with a password" in listed
