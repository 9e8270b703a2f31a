"""Kill points: the real process, struck at one system call after another, and what it left behind.

A *golden* run counts how often each call happens. Then, for each call and each count, a fresh run is struck there
(SIGKILL, ENOSPC or EIO by strace's injection), started again undisturbed, and compared with the golden run: the same
alert ids in the store and in the sink's file, none twice, the same books; and the audit log and its copy in that file
hold. Run as a script it does all points:

    python -m tests.faults.kill_points --all --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from agent.audit import Copy, Verifier, check_alerts, check_stored, verify
from agent.errors import TrustError
from agent.store import Reader
from tests.signing import signed

KILLED = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "unlink", "rename")
FAILED = (("ENOSPC", "write"), ("ENOSPC", "pwrite64"), ("EIO", "fsync"), ("EIO", "fdatasync"), ("EIO", "pwrite64"))
_DISTURBED_S = 60
_VEDETTE = [sys.executable, "-m", "agent"]

CONFIG = """
sources:
  logs: {{type: files, paths: ["{logs}"]}}
detectors:
  rules: {{type: sigma, path: "{rules}"}}
  logins: {{type: first-seen, title: New address, entity: [user.name], value: [source.ip], bucket: 1h, min_history: 1}}
sinks:
  out: {{type: ndjson, path: "{out}"}}
streams:
  main: {{source: logs, detectors: [rules, logins], sinks: [out], batch: 7}}
audit: {{sinks: [out]}}
"""
RULE = """
title: Failed password
id: 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11
status: test
level: medium
logsource: {product: linux, service: sshd}
detection: {selection: {user.name|contains: admin}, condition: selection}
---
title: Failed passwords in a row
id: 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b12
status: test
level: high
correlation:
  type: event_count
  rules: [6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11]
  group-by: [user.name]
  timespan: 8h
  generate: true
  condition: {gte: 2}
---
title: Few addresses in a window
id: 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b13
status: test
level: low
correlation:
  type: value_count
  rules: [6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11]
  group-by: [user.name]
  timespan: 5h
  generate: true
  condition: {field: source.ip, lte: 1}
"""


@dataclass(frozen=True)
class Left:
    """What a finished run left: alerts stored (id and revision) and delivered, dead letters, the books."""

    stored: tuple[str, ...]
    delivered: tuple[str, ...]
    dead: tuple[str, ...]
    books: dict[str, int]


@dataclass
class Result:
    """Points tried by effect and call, how many of them struck home by effect, and what was wrong.

    A point beyond the last such call of the thread at hand does not strike; the run is compared all the same.
    """

    points: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def make_logs(base: Path) -> None:
    """Write the logs and the rule that all runs share: an event's identity rests on where it lies."""
    logs, rules = base / "logs", base / "rules"
    logs.mkdir(parents=True)
    rules.mkdir()
    lines = []
    for number in range(48):
        user = ("admin", "kim", "root")[number % 3]
        stamp = f"2026-03-0{1 + number // 24}T{number % 24:02d}:00:01"
        outcome = "Accepted" if number % 5 else "Failed"
        address = f"192.0.2.{1 + number // 12}"
        what = f"{outcome} password for {user} from {address} port 5022 ssh2"
        lines.append(f"{stamp}.000000+00:00 web1 sshd[{900 + number}]: {what}")
        if number % 16 == 7:
            lines.append("\x00\x01 not a log line \udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    (logs / "auth.log").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (logs / "more.jsonl").write_text('{"broken": \n' + '{"message": "fine"}\n' * 5)
    (rules / "rule.yml").write_text(RULE)


def make_case(folder: Path) -> Path:
    """Write a configuration for one run into *folder*, over the logs beside it; return it."""
    folder.mkdir()
    config = folder / "vedette.yml"
    base = folder.parent
    config.write_text(CONFIG.format(logs=base / "logs", rules=base / "rules", out=folder / "out.ndjson"))
    return config


def run(config: Path, data: Path, *strace: str) -> int:
    """Run the daemon once over the case; return its exit status. Struck calls are written to the file `trace`."""
    command = [*_VEDETTE, "run", "--once", "-b", str(signed(config, data))]
    if strace:
        command = ["strace", "-f", "-qq", "-o", str(data.parent / "trace"), *strace, *command]
    with (data.parent / "log.txt").open("ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=_DISTURBED_S, check=False)
    return done.returncode


def left(folder: Path) -> Left:
    connection = apsw.Connection(str(folder / "data" / "vedette.db"))
    alerts = connection.execute("SELECT id || '/' || revision FROM alert ORDER BY id, revision")
    stored = tuple(row[0] for row in alerts)
    dead = tuple(row[0] for row in connection.execute("SELECT identity FROM dead_letter ORDER BY identity"))
    waiting = connection.execute("SELECT count(*) FROM outbox").get
    books = dict(connection.execute("SELECT name, value FROM counter WHERE scope = 'main'"))
    connection.close()
    lines = (folder / "out.ndjson").read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    delivered = tuple(sorted(one["_id"] for one in documents if one["event"]["dataset"] == "vedette.alert"))
    return Left(stored, delivered, dead, {**books, "waiting": waiting})


def count_calls(folder: Path) -> dict[str, int]:
    """Return the greatest count of each system call in one thread of an undisturbed run."""
    make = make_case(folder)
    trace = folder / "trace"
    calls = ",".join(sorted({*KILLED, *(call for _, call in FAILED)}))
    command = ["strace", "-f", "-qq", "-o", str(trace), "--seccomp-bpf", "-e", f"trace={calls}", *_VEDETTE]
    subprocess.run(
        [*command, "run", "--once", "-b", str(signed(make, folder / "data"))], check=True, capture_output=True
    )
    counts: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, rest = line.partition(" ")
        name = rest.lstrip().partition("(")[0]
        counts[thread, name] += 1
    most: dict[str, int] = {}
    for (_, name), number in counts.items():
        most[name] = max(most.get(name, 0), number)
    return most


def points(counts: dict[str, int], *, every: int) -> list[tuple[str, str, int]]:
    """Return (effect, call, n), every *every*-th of each call."""
    effects = [("KILL", call) for call in KILLED] + list(FAILED)
    found = []
    for effect, call in effects:
        total = counts.get(call, 0)
        found += [(effect, call, n) for n in range(1 + (hash_of(effect, call) % every), total + 1, every)]
    random.Random(7).shuffle(found)
    return found


def hash_of(*parts: str) -> int:
    return sum(map(ord, "".join(parts)))


def strike(folder: Path, effect: str, call: str, n: int) -> tuple[Left, bool]:
    """Strike one point in a fresh case, let the next start recover; return what is left and whether it struck."""
    config = make_case(folder)
    what = f"signal={effect}" if effect == "KILL" else f"error={effect}"
    quick = [] if effect == "KILL" else ["--seccomp-bpf"]  # with the filter strace 6.1 delivers no signals
    status = run(config, folder / "data", *quick, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={n}")
    trace = (folder / "trace").read_text(errors="replace")
    again = run(config, folder / "data")
    if again != 0:
        log = (folder / "log.txt").read_text(errors="replace")[-2000:]
        raise AssertionError(f"the start after {effect} at {call} {n} ended with {again}: {log}")
    return left(folder), "INJECTED" in trace or status in (-9, 128 + 9)


def judge(golden: Left, found: Left) -> list[str]:
    """Return what is wrong with *found*; empty if nothing was lost, doubled or left unscored."""
    wrong = []
    for name, want, have in (("stored", golden.stored, found.stored), ("delivered", golden.delivered, found.delivered)):
        lost, extra = set(want) - set(have), set(have) - set(want)
        doubled = [id for id, times in Counter(have).items() if times > 1]
        wrong += [f"{name}: {len(ids)} {what}" for what, ids in (("lost", lost), ("extra", extra)) if ids]
        wrong += [f"{name}: {len(doubled)} twice"] if doubled else []
    if golden.dead != found.dead:
        wrong.append(f"dead letters: {len(golden.dead)} became {len(found.dead)}")
    if golden.books != found.books:
        wrong.append(f"books: {golden.books} became {found.books}")
    return wrong


def judge_audit(folder: Path) -> list[str]:
    """Return what is wrong with the audit log and with its copy in the sink's file; both must be whole and the same."""
    key = Verifier.parse((folder / "data" / "audit.pub").read_text())
    try:
        with Reader(folder / "data") as reader:
            kept = verify(reader.leaves(), [note for _, _, note in reader.checkpoints()], key)
            check_stored(kept, reader.extent()[1], (), key)
            check_alerts(reader.alert_members(), reader.members, key)
        lines = [line for line in (folder / "out.ndjson").read_bytes().splitlines() if b'"vedette.audit"' in line]
        copy = Copy(lines, key.name)
        copied = verify(copy.leaves(), copy.checkpoints(), key)
    except TrustError as error:
        return [f"audit: {error}"]
    wrong = [] if kept.signed == kept.leaves else [f"audit: {kept.leaves - kept.signed} leaves are not signed"]
    ids = Counter(json.loads(line)["_id"] for line in lines)
    wrong += [f"audit copy: {len(lines) - len(ids)} twice"] if len(ids) < len(lines) else []
    return wrong + ([] if copied.leaves == kept.leaves else [f"audit copy: {copied.leaves} of {kept.leaves} leaves"])


def strike_all(base: Path, *, every: int, workers: int = 2, show: bool = False, limit_s: float = 3600) -> Result:
    """Strike every *every*-th point; stops with what it has when *limit_s* seconds are over."""
    make_logs(base)
    counts = count_calls(base / "golden")
    golden = left(base / "golden")
    result, start = Result(), time.monotonic()

    def one(number_and_point: tuple[int, tuple[str, str, int]]) -> None:
        number, (effect, call, n) = number_and_point
        if time.monotonic() - start > limit_s:
            return
        folder = base / f"{number}"
        found, struck = strike(folder, effect, call, n)
        result.points[f"{effect} {call}"] += 1
        result.struck[effect] += struck
        wrong = [*judge(golden, found), *judge_audit(folder)]
        result.wrong += [f"{effect} at {call} {n}: {text}" for text in wrong]
        shutil.rmtree(folder)
        if show and result.points.total() % 50 == 0:
            print(f"  {result}", file=sys.stderr)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, enumerate(points(counts, every=every))))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = strike_all(
            Path(folder), every=options.every, show=True, limit_s=options.limit, workers=os.cpu_count() or 1
        )
    facts = {
        "tried": result.points.total(),
        "struck": result.struck.total(),
        "struck_by": dict(result.struck),
        "wrong": result.wrong,
        "points": dict(result.points),
    }
    print(json.dumps(facts, indent=2))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
