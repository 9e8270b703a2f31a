"""A throw-away machine: this one's files under an overlay that is forgotten, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

_LAYERS = """
for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    if [ -w $tree/cgroup.procs ]; then mkdir $tree/$2 && echo 0 > $tree/$2/cgroup.procs; fi
done
mount -t tmpfs -o mode=0755 tmpfs "$1" && cd "$1" && mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
touch root/thrown-away
rm -f root/usr/sbin/policy-rc.d
: > root/etc/machine-id
shift 2
exec "$@"
"""
_HERE = 97
"""What a script ends with that would have run on this machine itself: the other one is not there yet, or no more."""
_BOOTED = ["systemd-nspawn", "--quiet", "--directory=root", "--private-network", "--register=no", "--keep-unit"]
_BOOTED += ["--console=pipe", "--link-journal=no", "--boot", "systemd.unit=basic.target"]
_CHANGED_ROOT = ["unshare", "--net", "--ipc", "sh", "-c", "mount -t proc proc root/proc; chroot root sleep infinity; :"]


def cannot() -> str:
    """Return why this machine can have no throw-away one, or nothing."""
    if os.geteuid() != 0:
        return "only root can start a machine"
    missing = [name for name in ("systemd-nspawn", "nsenter", "unshare", "setpriv") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Unavailable(Exception):
    """No machine starts here, whatever would be tried on it."""


class Machine:
    """Runs in *folder* until *end*: with its own systemd, or with *booted* false as a changed root without one."""

    def __init__(self, folder: Path, *, booted: bool = True) -> None:
        folder.mkdir()
        self._log = folder.with_suffix(".log")
        self._name = f"vedette-{folder.name}-{os.getpid()}"
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words += ["sh", "-euc", _LAYERS, "sh", str(folder), self._name, *(_BOOTED if booted else _CHANGED_ROOT)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        asked = "[[ $(timeout 2 systemctl is-system-running) =~ ^(running|degraded)$ ]]"  # too early, it waits for ever
        until_up = asked if booted else "true"
        end = time.monotonic() + 60
        while self.run(until_up, code=None).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                self.end()
                raise Unavailable(f"the machine does not start: {self._log.read_text()}")
            time.sleep(0.2)

    def run(self, script: str, *, given: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run *script* in the machine's bash, as root. AssertionError unless it ends with *code* (None: any)."""
        first = _child(_child(self._process.pid))  # of whoever made the namespaces, of whoever runs the machine
        words = ["nsenter", "--target", first, "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        words += ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        words += ["timeout", "120", "bash", "-euo", "pipefail", "-c"]
        words += [f"test -e /thrown-away || exit {_HERE}\numask 022\n{script}"]
        ended = subprocess.run(words, input=given, capture_output=True, check=False)
        done = subprocess.CompletedProcess(words, ended.returncode, ended.stdout.decode(), ended.stderr.decode())
        assert code in {None, done.returncode}, f"{script}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def put(self, file: Path, place: str) -> None:
        """Copy *file* of this machine to *place* there."""
        self.run(f"cat > {place}", given=file.read_bytes())

    def until(self, script: str) -> str:
        """Run *script* until it succeeds; return what it printed then."""
        end = time.monotonic() + 60
        while (done := self.run(script, code=None)).returncode:
            assert time.monotonic() < end, f"{script}\n{done.stdout}\n{done.stderr}\n{self.journal()}"
            time.sleep(0.2)
        return done.stdout

    def journal(self) -> str:
        return self.run("journalctl --unit vedette --no-pager --output cat", code=None).stdout

    def end(self) -> None:
        """Kill everything that runs there, at once."""
        self._process.kill()
        self._process.wait()
        for tree in Path("/sys/fs/cgroup").glob(f"**/{self._name}"):
            groups = [path for path in (tree, *tree.rglob("*")) if path.is_dir()]
            for group in reversed(groups):
                _remove(group)


def _child(process: int | str) -> str:
    """Return the id of the first child of *process*, or nothing."""
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().partition(" ")[0]
    except OSError:
        return ""


def _remove(group: Path) -> None:
    """Remove a control group as soon as the last of its processes is gone."""
    end = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return
