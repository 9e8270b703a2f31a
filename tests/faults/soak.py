"""A soak: the real process under steady load, struck by one fault after another.

A writer appends lines to a log and rotates it by rename; one in a hundred fires a rule, and a baseline keeps state. The
alerts go to a file and to a SIEM. Meanwhile the SIEM goes away or is busy, the disk is full, the clock is set an
hour ahead and back and behind and back, and storms of SIGHUP come. For each fault it is measured how long it takes from
its end until every alert that is due is delivered everywhere. At the end each fired line is one alert in the store, in
the file and in the SIEM, the books balance, the audit log verifies, and memory and descriptors did not grow.

    python -m tests.faults.soak --minutes 30 --json FILE
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
import yaml

from agent.alerting.judge import document_id
from agent.control import ask
from agent.errors import VedetteError
from agent.store import Reader
from rules.sigma.documents import content_digest, read_files
from tests.fake_siem import FakeSiem
from tests.faults.exactness import STREAM, connect, install_alert_stream, new_name, remove_alert_streams, scan
from tests.faults.proxy import Fault as Strike
from tests.faults.proxy import FaultProxy
from tests.process import VEDETTE, Process
from tests.servers import start
from tests.signing import pem, write
from tests.site import RULE, RULE_ID

HOUR_S = 3600
RATE = 1000
FIRED, UNREADABLE, FILTERED, NEW = (100, 50), (5000, 123), (1000, 7), (3000, 11)
"""Each so many lines, the one with that remainder: fires, cannot be read, is filtered, brings a new address."""
KEPT = 4
"""Rotated files that stay."""
RECOVERY_S, PER_SECOND = 30.0, 4.0
"""How long a recovery may take, and how much longer for each second of the fault: pauses between attempts double."""
GIVE_UP_S = 140.0
"""What has not recovered by then will not, and the soak ends."""
DESCRIPTORS = 3
GROWTH_MB, GROWTH_MB_HOUR = 25.0, 60.0
"""Memory may grow by that once, and by that for each hour: the alerts of an hour are counted for a day."""
CHORE_S = 25.0
"""The status is told every ten seconds; a longer silence is a chore that stalls."""
ANSWER_S = 10.0
ROWS = 200
"""Samples that a report keeps."""

_NUMBER = re.compile(r"sshd\[(\d+)\]")


class Skipped(Exception):
    """This machine cannot do a part of the soak."""


# --- the load ---------------------------------------------------------------------------------------------------------


def line_of(number: int, now: datetime) -> bytes:
    """Return the line of that *number*, which it carries as its process id."""
    if _is(number, UNREADABLE):
        return b"\x00\x01 not a log line \xff %d\n" % number
    what = f"Accepted password for u{number % 20} from 198.51.100.{number % 40} port 5022 ssh2"
    if _is(number, FIRED):
        what = "Failed password for root from 192.0.2.9 port 5022 ssh2"
    elif _is(number, FILTERED):
        what = "Accepted password for probe from 192.0.2.1 port 5022 ssh2"
    elif _is(number, NEW):
        what = f"Accepted password for u3 from 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255} port 1 ssh2"
    return f"{now.isoformat(timespec='microseconds')} web1 sshd[{number}]: {what}\n".encode()


def _is(number: int, kind: tuple[int, int]) -> bool:
    return number % kind[0] == kind[1]


class Writer(threading.Thread):
    """Appends *rate* lines a second to ``auth.log`` in *folder* until it is stopped, and rotates it by rename."""

    def __init__(self, folder: Path, *, rate: float, rotate_s: float, seed: int) -> None:
        super().__init__(name="writer", daemon=True)
        self.lines = 0
        self.fired: list[int] = []
        self.rotations = 0
        self.failure: BaseException | None = None
        self._rate, self._rotate_s, self._rng = rate, rotate_s, random.Random(seed)
        self._path = folder / "auth.log"
        self._path.touch()
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        begun = rotated = time.monotonic()
        file = self._path.open("ab", buffering=0)
        while not self._over.wait(0.02):
            now = time.monotonic()
            if now - rotated >= self._rotate_s:
                file.close()
                self._rotate()
                file, rotated = self._path.open("ab", buffering=0), now
            self._append(file, int((now - begun) * self._rate))
        file.close()

    def _append(self, file: Any, end: int) -> None:
        """Write the lines up to the number *end*, sometimes torn into two writes."""
        numbers, now = range(self.lines, end), datetime.now(UTC)
        data = b"".join(line_of(number, now) for number in numbers)
        cut = self._rng.randrange(len(data) + 1) if self._rng.random() < 0.1 else 0
        for part in (data[:cut], data[cut:]):
            if part:
                file.write(part)
        self.fired += [number for number in numbers if _is(number, FIRED)]
        self.lines = max(self.lines, end)

    def _rotate(self) -> None:
        for number in range(KEPT, 0, -1):
            older = self._path.with_name(f"auth.log.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"auth.log.{number - 1}")
            if newer.exists():
                newer.rename(older)
        self.rotations += 1


# --- what can be broken -----------------------------------------------------------------------------------------------


class Clock:
    """The daemon's wall clock, as far as it is off the machine's."""

    def __init__(self, folder: Path) -> None:
        """Skipped where no C compiler is."""
        if (compiler := shutil.which("cc")) is None:
            raise Skipped("the clock is not moved: that needs a C compiler, cc")
        shim, file = folder / "clock_shim.so", folder / "clock"
        source = Path(__file__).with_name("clock_shim.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(shim), "VEDETTE_SOAK_CLOCK": str(file)}
        self.offset_s = 0

    def set(self, seconds: int) -> None:
        self._page[:] = struct.pack("=q", seconds * 1_000_000)
        self.offset_s = seconds


class SmallDisk:
    """A file system of its own of *megabytes* at *place*."""

    def __init__(self, place: Path, megabytes: int) -> None:
        """Skipped where none can be mounted."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Skipped(f"the disk is not filled: no file system can be mounted here ({error})") from None
        self._place, self._ballast = place, place / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as ballast:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):  # no space left
                    while True:
                        ballast.write(bytes(size))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self._place)], check=True)


class Listener:
    """Plays the service manager: notes when the daemon tells its status, which one of its chores does."""

    def __init__(self) -> None:
        self.address = f"@vedette-soak-{os.getpid()}"
        self.told: list[float] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}")
        threading.Thread(target=self._listen, daemon=True).start()

    def silence(self, until: float) -> float:
        """Return the longest time without a word."""
        return max(after - before for before, after in zip(self.told, [*self.told[1:], until], strict=True))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while message := self._socket.recv(4096):
                if message.startswith(b"STATUS="):
                    self.told.append(time.monotonic())


class Daemon(Process):
    """`vedette run` over the writer's log, the two sinks, and a configuration that is signed anew on demand."""

    def __init__(self, folder: Path, disk: Path, sink: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.data, self.out = disk / "data", disk / "out.ndjson"
        self.revision = 0
        self._environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **environment}
        rules = folder / "rules"
        rules.mkdir()
        (rules / "rule.yml").write_text(RULE)
        root = {"root": {"roles": ["admin"], "key": pem("root")}}
        (folder / "bootstrap.yml").write_text(yaml.safe_dump({"data": str(self.data), "trust_root": root}))
        first_seen = {
            "type": "first-seen", "title": "New address", "entity": ["user.name"], "value": ["source.ip"],
            "bucket": "1m", "history": "1h", "min_history": 1,
        }  # fmt: skip
        self._configuration: dict[str, Any] = {
            "sources": {"logs": {"type": "files", "paths": [str(folder / "logs")], "follow": True}},
            "detectors": {
                "rules": {"type": "sigma", "path": str(rules), "digest": content_digest(read_files(rules))},
                "addresses": first_seen,
            },
            "filters": {"probes": {"user.name": ["probe"]}},
            "sinks": {"out": {"type": "ndjson", "path": str(self.out)}, "siem": {"timeout_s": 5, **sink}},
            "streams": {
                "main": {
                    "source": "logs",
                    "detectors": ["rules", "addresses"],
                    "filters": ["probes"],
                    "sinks": ["out", "siem"],
                }
            },
            "audit": {"sinks": ["out", "siem"]},
        }
        self.sign()

    def sign(self) -> None:
        """Sign a revision that is new and says something new."""
        self.revision += 1
        alerts = {"max_per_rule_and_hour": 10_000_000, "retention_days": 30 + self.revision % 2}
        write(self.folder, {"revision": self.revision, **self._configuration, "alerts": alerts}, "root")

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        command = [*VEDETTE, "run", *options, "-b", str(self.folder / "bootstrap.yml")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        return self.process

    def hang_up(self, times: int) -> None:
        """Send SIGHUP so often, 50 a second."""
        assert self.process is not None
        for _ in range(times):
            self.process.send_signal(signal.SIGHUP)
            time.sleep(0.02)

    def end_or_stacks(self, recovered: bool) -> str:
        """End it in order; if it does not end, or is *recovered* not, kill it and return where its threads stood."""
        assert self.process is not None
        if recovered:
            with suppress(subprocess.TimeoutExpired):
                self.stop()
                return ""
        self.end(signal.SIGABRT)
        return self.log[-12_000:]

    def said(self, text: str) -> int:
        return self.log.count(text)

    def runs_under(self) -> int:
        """Return the number of the configuration that was applied last."""
        with Reader(self.data) as reader:
            return reader.configurations()[-1][0]

    def clock(self) -> float:
        """Return when, by its own clock, it looked last for lines to read."""
        with Reader(self.data) as reader:
            return float(reader.rows("SELECT as_of FROM stream")[0][0]) / 1e6

    def books(self) -> dict[str, int]:
        with Reader(self.data) as reader:
            counts = reader.counters("main").get("main", {})
        books = {name: counts.get(name, 0) for name in ("received", "scored", "quarantined")}
        return {**books, "filtered": counts.get("filtered.probes", 0)}


# --- what was delivered -----------------------------------------------------------------------------------------------


class Alert(NamedTuple):
    """The id of a document, and the number of the line if it is about a fired one."""

    id: str
    line: int | None


class Place(Protocol):
    """Where alerts end up: `look` learns of new ones, `lines` are those known so far, `all` reads all of it anew."""

    lines: set[int]

    def look(self) -> None: ...
    def all(self) -> list[Alert]: ...


def alert_of(id: str, document: Mapping[str, Any]) -> Alert:
    line = None
    if document["rule"]["id"] == RULE_ID:
        found = _NUMBER.search(document["event"]["original"])
        assert found, document
        line = int(found[1])
    return Alert(id, line)


class Ndjson:
    """The file of the ndjson sink."""

    def __init__(self, path: Path) -> None:
        self.lines: set[int] = set()
        self._path, self._read = path, 0

    def look(self) -> None:
        alerts, self._read = self._from(self._read)
        self.lines.update(one.line for one in alerts if one.line is not None)

    def all(self) -> list[Alert]:
        return self._from(0)[0]

    def _from(self, start: int) -> tuple[list[Alert], int]:
        if not self._path.exists():
            return [], 0
        with self._path.open("rb") as file:
            start = start if start <= os.fstat(file.fileno()).st_size else 0  # a failed write is cut off again
            file.seek(start)
            data = file.read()
        end = data.rfind(b"\n") + 1
        documents = map(orjson.loads, data[:end].splitlines())
        found = [alert_of(one["_id"], one) for one in documents if one["event"]["dataset"] == "vedette.alert"]
        return found, start + end


class Fake:
    """The alerts in a `FakeSiem`, of which only ids and numbers are kept."""

    def __init__(self, siem: FakeSiem) -> None:
        self.lines: set[int] = set()
        self._siem, self._known = siem, 0
        self._alerts: list[Alert] = []

    def look(self) -> None:
        self._siem.requests.clear()
        new = list(self._siem.documents.items())[self._known :]
        self._known += len(new)
        for (index, id), document in new:
            if STREAM in index:
                self._alerts.append(alert_of(id, document))
                self.lines.update(one for one in (self._alerts[-1].line,) if one is not None)
            self._siem.documents[index, id] = {}

    def all(self) -> list[Alert]:
        self.look()
        return self._alerts


class Real:
    """The alerts in a real cluster."""

    def __init__(self, cluster: Any, namespace: str) -> None:
        self.lines: set[int] = set()
        self._cluster, self._stream = cluster, f"{STREAM}{namespace}"

    def look(self) -> None:
        self.lines = {one.line for one in self.all() if one.line is not None}

    def all(self) -> list[Alert]:
        hits = scan(self._cluster, self._stream, ["rule.id", "event.original"])
        return [alert_of(hit["_id"], hit["_source"]) for hit in hits]


def stored(data: Path) -> list[Alert]:
    """Return the alerts in the store, by the ids under which they are delivered."""
    with Reader(data) as reader:
        rows = reader.rows("SELECT id, revision, document FROM alert WHERE deliver")
    return [alert_of(document_id(id, revision), orjson.loads(document)) for id, revision, document in rows]


# --- measuring --------------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """How the process is at one moment; *load* is that of the whole machine."""

    seconds: float
    rss_mb: float
    descriptors: int
    threads: int
    cpu_s: float
    store_mb: float
    wal_mb: float
    load: float


class Sampler(threading.Thread):
    """Looks at the process each second, and asks it how it is."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(name="sampler", daemon=True)
        self.samples: list[Sample] = []
        self.slowest_answer_s = 0.0
        self.unanswered: list[str] = []
        self._daemon, self._begun = daemon, time.monotonic()
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(1):
            try:
                self._look()
            except (OSError, VedetteError) as error:
                self.unanswered.append(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        daemon = self._daemon
        assert daemon.process is not None
        folder = Path("/proc") / str(daemon.process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        used = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        self.samples.append(
            Sample(
                round(time.monotonic() - self._begun, 1),
                round(int(status["VmRSS"].split()[0]) / 1024, 1),
                len(list((folder / "fd").iterdir())),
                int(status["Threads"]),
                sum(map(int, used)) / os.sysconf("SC_CLK_TCK"),
                round((daemon.data / "vedette.db").stat().st_size / 2**20, 2),
                round((daemon.data / "vedette.db-wal").stat().st_size / 2**20, 2),
                round(os.getloadavg()[0], 1),
            )
        )
        asked = time.monotonic()
        if ask(daemon.data, {"do": "status"}) is None:
            self.unanswered.append("nobody listens at the control socket")
        self.slowest_answer_s = max(self.slowest_answer_s, time.monotonic() - asked)


@dataclass(frozen=True)
class Trend:
    """One figure after the warm-up: slope by least squares, and the greatest before and after."""

    an_hour: float
    most_warm: float
    most: float
    growth: float

    @classmethod
    def of(cls, samples: Sequence[Sample], name: str) -> Trend:
        """Fit the samples behind the first third of the time."""
        end = samples[-1].seconds
        warm = [getattr(one, name) for one in samples if one.seconds < end / 3]
        later = [one for one in samples if one.seconds >= end / 3]
        values = [float(getattr(one, name)) for one in later]
        slope = float(np.polyfit([one.seconds for one in later], values, 1)[0])
        growth = slope * (end - later[0].seconds)
        return cls(round(slope * HOUR_S, 2), max(warm), max(values), round(growth, 2))


# --- the soak ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How long it takes, how much is written, how long a fault and the rest after it last at most."""

    minutes: float = 30.0
    rate: int = RATE
    rotate_s: float = 60.0
    warm_up_s: float = 60.0
    fault_s: tuple[float, float] = (5.0, 20.0)
    rest_s: float = 15.0
    seed: int = 1


SHORT = Plan(minutes=0, rotate_s=8, warm_up_s=8, fault_s=(2, 2), rest_s=1)
"""Every fault once."""


@dataclass(frozen=True)
class Struck:
    """A fault that was tried: how long it lasted, and how long it took until all that was due was delivered."""

    name: str
    seconds: float
    recovery_s: float


@dataclass
class Result:
    """What a soak found; `wrong` is empty if every promise was kept."""

    seconds: float = 0.0
    lines: int = 0
    fired: int = 0
    alerts: int = 0
    rotations: int = 0
    revisions: int = 0
    books: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    faults: list[Struck] = field(default_factory=list)
    trends: dict[str, Trend] = field(default_factory=dict)
    cpu: float = 0.0
    """Share of one core."""
    cores: int = os.cpu_count() or 1
    load: float = 0.0
    """Of the machine, on the average: what else ran there is in it."""
    slowest_answer_s: float = 0.0
    longest_silence_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)


class Soak:
    """One run in progress: `faults` are what can be done to it here."""

    def __init__(self, plan: Plan, daemon: Daemon, writer: Writer, places: Mapping[str, Place], proxy: FaultProxy,
                 clock: Clock | None, disk: SmallDisk | None) -> None:  # fmt: skip
        self.result = Result()
        self._plan, self._daemon, self._writer, self._places = plan, daemon, writer, places
        self._proxy, self._rng = proxy, random.Random(plan.seed)
        self.faults: list[tuple[str, Callable[[], None]]] = [
            ("SIEM gone", self._gone),
            ("SIEM answers 429", lambda: self._busy(429)),
            ("SIEM answers 503", lambda: self._busy(503)),
            ("SIGHUP, nothing new", lambda: daemon.hang_up(50)),
            ("SIGHUP, new revisions", self._revisions),
            ("SIGHUP, broken file", self._broken),
        ]
        if disk is not None:
            self.faults += [
                ("disk full", lambda: self._full(disk)),
                ("disk full, new revision", lambda: self._full(disk, self._revision_on_full_disk)),
            ]
        if clock is not None:
            self.faults += [
                ("clock an hour ahead", lambda: self._set(clock, HOUR_S)),
                ("clock back again", lambda: self._set(clock, 0)),
                ("clock an hour behind", lambda: self._set(clock, -HOUR_S)),
                ("clock forth again", lambda: self._set(clock, 0)),
                ("SIEM gone, clock ahead then back", lambda: self._gone_meanwhile(clock)),
            ]

    def run(self) -> bool:
        """Strike one fault after another until the time is over, and say how each went; False if one lasts."""
        begun = time.monotonic()
        end = begun + 60 * self._plan.minutes
        time.sleep(self._plan.warm_up_s)
        faults = enumerate(cycle(self.faults), start=1)
        while True:
            number, (name, strike) = next(faults)
            self._strike(name, strike)
            self._tell(time.monotonic() - begun)
            if self.result.faults[-1].recovery_s >= GIVE_UP_S:
                return False
            if number >= len(self.faults) and time.monotonic() >= end:
                return True
            time.sleep(self._plan.rest_s)

    def _strike(self, name: str, strike: Callable[[], None]) -> None:
        begun = time.monotonic()
        strike()
        end = time.monotonic()
        due = len(self._writer.fired) + 1  # the next one too: it is written after the fault is over
        took, lasted = self.wait_for(due), end - begun
        self.result.faults.append(Struck(name, round(lasted, 1), round(took, 1)))
        if took > RECOVERY_S + PER_SECOND * lasted:
            self.result.wrong.append(f"{name}: {took:.1f} s until all that was due was delivered")

    def wait_for(self, due: int) -> float:
        """Return how many seconds it takes until the first *due* fired lines are delivered everywhere."""
        begun = time.monotonic()
        while time.monotonic() - begun < GIVE_UP_S:
            assert self._writer.failure is None, self._writer.failure
            assert self._daemon.process is not None
            assert self._daemon.process.poll() is None, self._daemon.log[-4000:]
            for place in self._places.values():
                place.look()
            wanted = set(self._writer.fired[:due])
            if len(wanted) == due and all(wanted <= place.lines for place in self._places.values()):
                break
            time.sleep(0.1)
        return time.monotonic() - begun

    def _seconds(self) -> float:
        return self._rng.uniform(*self._plan.fault_s)

    def _expect(self, what: str, holds: Callable[[], object], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                self.result.wrong.append(what)
                return
            time.sleep(0.1)

    # the faults

    def _gone(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Lose the answer to one request, and then the server."""
        seconds, struck = self._seconds(), len(self._proxy.struck)
        fault = Strike("gone", "refused", seconds=seconds)
        self._proxy.script(fault, match=lambda *_: True, when="after")
        self._expect("the SIEM did not go away", lambda: len(self._proxy.struck) > struck)
        end = time.monotonic() + seconds
        meanwhile()
        time.sleep(max(0.0, end - time.monotonic()))

    def _busy(self, status: int) -> None:
        struck, end = len(self._proxy.struck), time.monotonic() + self._seconds()
        fault = Strike(f"status-{status}", "status", status, retry_after=1 if status == 429 else 0)
        self._proxy.script(fault, match=lambda *_: time.monotonic() < end, when="before", times=1_000_000)
        time.sleep(max(0.0, end - time.monotonic()))
        if len(self._proxy.struck) == struck:
            self.result.wrong.append(f"nothing was answered with {status}")

    def _revisions(self) -> None:
        """Five new revisions in a second, and 50 SIGHUP."""
        daemon = self._daemon
        for _ in range(5):
            daemon.sign()
            daemon.hang_up(10)
        self._expect("the newest revision does not run", lambda: daemon.runs_under() == daemon.revision)

    def _broken(self) -> None:
        path, refused = self._daemon.config, self._daemon.said("configuration refused")
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        self._daemon.hang_up(50)
        path.write_bytes(good)
        self._expect("a broken file was not refused", lambda: self._daemon.said("configuration refused") > refused)

    def _full(self, disk: SmallDisk, meanwhile: Callable[[], None] = lambda: None) -> None:
        text = "no space left"
        before = self._daemon.said(text)
        disk.fill()
        self._expect("the full disk did not strike", lambda: self._daemon.said(text) > before, 60)
        meanwhile()
        time.sleep(self._seconds())
        disk.free()

    def _revision_on_full_disk(self) -> None:
        """The new one cannot be put on record, so what ran before must go on; nobody asks again."""
        self._daemon.sign()
        self._daemon.hang_up(10)

    def _set(self, clock: Clock, seconds: int) -> None:
        clock.set(seconds)
        self._expect(
            f"the daemon's clock is not {seconds} s off",
            lambda: abs(self._daemon.clock() - time.time() - seconds) < RECOVERY_S,
        )

    def _gone_meanwhile(self, clock: Clock) -> None:
        def meanwhile() -> None:
            clock.set(HOUR_S)
            time.sleep(2)
            clock.set(0)

        self._gone(meanwhile)

    def _tell(self, seconds: float) -> None:
        last = self.result.faults[-1]
        print(f"{seconds:6.0f} s  {self._writer.lines:>9,} lines  {last.name:<32} {last.seconds:5.1f} s, "
              f"recovered in {last.recovery_s:4.1f} s", file=sys.stderr, flush=True)  # fmt: skip


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_alerts(fired: Sequence[int], places: Mapping[str, Sequence[Alert]]) -> Iterator[str]:
    """Yield what is wrong: each fired line must be one alert in every place, and all places must hold the same."""
    wanted = set(fired)
    (_, first), *_ = places.items()
    for name, alerts in places.items():
        lines = Counter(one.line for one in alerts if one.line is not None)
        ids = Counter(one.id for one in alerts)
        missing, unknown = len(wanted - lines.keys()), len(lines.keys() - wanted)
        double = sum(times > 1 for times in lines.values()) + sum(times > 1 for times in ids.values())
        if missing or unknown or double:
            yield f"{name}: {missing} missing, {double} double, {unknown} unknown"
        if other := len(ids.keys() ^ {one.id for one in first}):
            yield f"{name}: {other} alerts are not the same as in the first place"


def judge_books(books: Mapping[str, int], lines: int) -> Iterator[str]:
    """Yield what is wrong: each line was received once and has the disposition that its kind has."""
    expected = {
        "received": lines,
        "filtered": sum(_is(number, FILTERED) for number in range(lines)),
        "quarantined": sum(_is(number, UNREADABLE) for number in range(lines)),
    }
    expected["scored"] = lines - expected["filtered"] - expected["quarantined"]
    if dict(books) != expected:
        yield f"books: {dict(books)}, expected {expected}"


def judge_trends(trends: Mapping[str, Trend], seconds: float) -> Iterator[str]:
    """Yield what grows that should not."""
    descriptors, memory = trends["descriptors"], trends["rss_mb"]
    if descriptors.most > descriptors.most_warm + DESCRIPTORS:
        yield f"{descriptors.most} descriptors, {descriptors.most_warm} in the warm-up"
    if memory.growth > GROWTH_MB + GROWTH_MB_HOUR * seconds / HOUR_S:
        yield f"memory grew by {memory.growth} MB ({memory.an_hour} MB an hour)"


def run(folder: Path, plan: Plan, *, server: str = "") -> Result:
    """Run the soak in *folder*, which is empty, against a fake SIEM or a real *server* (``elasticsearch:8``)."""
    skipped: list[str] = []
    with ExitStack() as stack:
        (folder / "small").mkdir()
        (folder / "logs").mkdir()
        disk = clock = None
        try:
            disk = SmallDisk(folder / "small", int(96 + 8 * plan.minutes * plan.rate / RATE))
            stack.callback(disk.close)
        except Skipped as reason:
            skipped.append(str(reason))
        try:
            clock = Clock(folder)
        except Skipped as reason:
            skipped.append(str(reason))
        url, place, sink = stack.enter_context(_siem(server))
        proxy = stack.enter_context(FaultProxy(url))
        listener = Listener()
        stack.callback(listener.close)
        environment = {"NOTIFY_SOCKET": listener.address, **(clock.environment if clock else {})}
        daemon = Daemon(folder, folder / "small", {**sink, "hosts": [proxy.url]}, environment)
        stack.callback(daemon.kill)
        writer = Writer(folder / "logs", rate=plan.rate, rotate_s=plan.rotate_s, seed=plan.seed)
        daemon.start()
        writer.start()
        stack.callback(writer.stop)
        sampler = Sampler(daemon)
        sampler.start()
        stack.callback(sampler.stop)
        soak = Soak(plan, daemon, writer, {"siem": place, "ndjson": Ndjson(daemon.out)}, proxy, clock, disk)
        begun = time.monotonic()
        recovered = soak.run()
        writer.stop()
        result = soak.result
        if recovered:
            soak.wait_for(len(writer.fired))
            _settle(daemon, writer)
        sampler.stop()
        result.longest_silence_s = round(listener.silence(time.monotonic()), 1) if listener.told else -1
        result.seconds, result.skipped = round(time.monotonic() - begun, 1), skipped
        if stacks := daemon.end_or_stacks(recovered):
            result.wrong.append(f"it hangs: {stacks}")
        _judge(result, daemon, writer, sampler, {"store": stored(daemon.data), "siem": place.all(),
                                                 "ndjson": Ndjson(daemon.out).all()})  # fmt: skip
    return result


def _settle(daemon: Daemon, writer: Writer) -> None:
    """Wait until every line is read and every alert delivered, the baseline's too, or for long."""
    end = time.monotonic() + GIVE_UP_S
    while time.monotonic() < end:
        with Reader(daemon.data) as reader:
            waiting = sum(reader.waiting(name, 1, alerts_only=True) for name in ("out", "siem"))
        if not waiting and daemon.books()["received"] >= writer.lines:
            return
        time.sleep(0.2)


def _judge(
    result: Result, daemon: Daemon, writer: Writer, sampler: Sampler, places: Mapping[str, Sequence[Alert]]
) -> None:
    """Fill in what the run came to, and what is wrong with it."""
    samples = sampler.samples
    result.lines, result.fired, result.rotations = writer.lines, len(writer.fired), writer.rotations
    result.alerts, result.revisions, result.books = len(places["store"]), daemon.revision, daemon.books()
    names = ("rss_mb", "descriptors", "threads", "store_mb", "wal_mb")
    result.trends = {name: Trend.of(samples, name) for name in names}
    result.cpu = round((samples[-1].cpu_s - samples[0].cpu_s) / (samples[-1].seconds - samples[0].seconds), 3)
    result.load = round(statistics.fmean(one.load for one in samples), 1)
    result.slowest_answer_s = round(sampler.slowest_answer_s, 2)
    result.samples = samples[:: max(1, -(-len(samples) // ROWS))]
    verified = subprocess.run(
        [*VEDETTE, "audit", "verify", "-d", str(daemon.data)], capture_output=True, text=True, check=False
    )
    result.wrong += [*judge_alerts(writer.fired, places), *judge_books(result.books, writer.lines)]
    result.wrong += judge_trends(result.trends, result.seconds)
    if verified.returncode:
        result.wrong.append(f"audit verify ends with {verified.returncode}: {verified.stdout}{verified.stderr}")
    if "Traceback" in daemon.log:
        result.wrong.append(f"a traceback is in the log: {daemon.log[daemon.log.index('Traceback') :][:2000]}")
    if sampler.unanswered or result.slowest_answer_s > ANSWER_S:
        result.wrong.append(f"the control socket: {result.slowest_answer_s} s, {sampler.unanswered[:5]}")
    if not 0 <= result.longest_silence_s <= CHORE_S:
        result.wrong.append(f"a chore stalls: no status was told for {result.longest_silence_s} s")


@contextmanager
def _siem(server: str) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Give the address of a SIEM, what it holds, and how a sink is configured for it."""
    if not server:
        with FakeSiem() as siem:
            yield siem.url, Fake(siem), {"type": "elasticsearch"}
        return
    flavour, _, major = server.partition(":")
    with start(flavour, int(major)) as real:  # type: ignore[arg-type]
        cluster, namespace = connect(real), new_name()
        install_alert_stream(cluster, namespace)
        try:
            yield real.urls[0], Real(cluster, namespace), {"type": flavour, "namespace": namespace}
        finally:
            remove_alert_streams(cluster, namespace)
            cluster.close()


def table(result: Result) -> str:
    """Return the figures as a person reads them."""
    lines = [
        f"{result.seconds / 60:.1f} minutes, {result.lines:,} lines, {result.rotations} rotations, "
        f"{result.revisions} revisions; {result.fired:,} lines fired, {result.alerts:,} alerts in all",
        f"CPU {100 * result.cpu:.0f} % of a core; machine: {result.cores} cores, load {result.load} on the average, "
        "other work included",
        f"slowest answer at the control socket {result.slowest_answer_s} s, longest silence of the status "
        f"{result.longest_silence_s} s",
        f"{'':<34}{'an hour':>10}{'most':>10}{'warm-up':>10}",
    ]
    lines += [f"{name:<34}{one.an_hour:>10}{one.most:>10}{one.most_warm:>10}" for name, one in result.trends.items()]
    lines.append(f"{'fault':<34}{'times':>10}{'median s':>10}{'worst s':>10}")
    for name in dict.fromkeys(one.name for one in result.faults):
        took = [one.recovery_s for one in result.faults if one.name == name]
        lines.append(f"{name:<34}{len(took):>10}{statistics.median(took):>10.1f}{max(took):>10.1f}")
    return "\n".join(
        [*lines, *(f"skipped: {one}" for one in result.skipped), *(f"WRONG: {one}" for one in result.wrong)]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--rate", type=int, default=RATE, help="lines a second")
    parser.add_argument("--short", action="store_true", help="every fault once, in about a minute and a half")
    parser.add_argument("--server", default="", help="a real one, flavour:major, as tests/servers.py has it")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the file system is unmounted then
    plan = SHORT if given.short else Plan(given.minutes, given.rate, seed=given.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), plan, server=given.server)
    print(table(result))
    if given.json:
        given.json.write_text(report(result))
    return 1 if result.wrong else 0


def report(result: Result) -> str:
    """Return all figures as JSON, a sample a line."""
    facts = asdict(result)
    rows = facts.pop("samples")
    text = json.dumps({**facts, "columns": Sample._fields}, indent=1)
    return text[:-2] + ',\n "samples": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]\n}\n"


def as_mount_owner() -> None:
    """Go on as the owner of a name space of mounts, where we are not root and the system lets us."""
    able = ["unshare", "-rm", "true"]
    if os.geteuid() != 0 and shutil.which("unshare") and subprocess.run(able, check=False).returncode == 0:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "tests.faults.soak", *sys.argv[1:]])


if __name__ == "__main__":
    as_mount_owner()
    sys.exit(main())
