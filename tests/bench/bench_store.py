"""The store's figures: what a batch's commit and its audit leaf cost, and how long a restart with a million keys takes.

python -m tests.bench.bench_store [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw

from agent.audit import Verifier, verify
from agent.audit.leaf import batch, member
from agent.model import Alert
from agent.state import Changes, State
from agent.store import Books, Commit, Reader, Store

NOW = 1_700_000_000_000_000
KEYS = 1_000_000
PER_BATCH = 2_000
"""Keys that one batch of 8,192 events changes."""
LEAVES = 50_000
MEMBERS = 10


def commit_of(state_changes: Changes, alerts: list[Alert]) -> Commit:
    return Commit("s", {"at": 1}, NOW, NOW, Books(8192, 8192, {}, 0), state_changes, alerts, ["out"])


def write_keys(store: Store, state: State, start: int, number: int) -> tuple[float, int]:
    """Commit one batch that changes *number* keys; return seconds and bytes of state written."""
    transaction = state.transaction()
    view = transaction.view("op")
    for key in range(start, start + number):
        view.put(f'["user{key % KEYS:07d}","198.51.100.7"]', [[480_000 + key % 720, key, "0123456789abcdef"]])
    begin = time.perf_counter()
    changes = transaction.changes()
    store.commit(commit_of(changes, []))
    transaction.apply()
    size = sum(len(one.block) for one in (*changes.deltas, *changes.parts))
    return time.perf_counter() - begin, size


def commit_cost(store: Store, alerts: int) -> float:
    """Return the median seconds of a commit with *alerts* new alerts and no state."""
    body = {"event": {"id": "x", "reason": "y" * 200}, "filler": "z" * 2000}
    taken = []
    for number in range(60):
        batch = [Alert(f"{alerts}-{number}-{n}", "r", "t", "low", NOW, body) for n in range(alerts)]
        begin = time.perf_counter()
        store.commit(commit_of(Changes(0), batch))
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def audit_cost(store: Store) -> tuple[float, float]:
    """Return seconds to append the leaf of a batch with ten new alerts, and leaves verified a second afterwards."""
    body = b"z" * 2000

    def fill(connection: apsw.Connection) -> float:
        begin = time.perf_counter()
        for number in range(LEAVES):
            members = [member(f"{number:030x}{place:02x}", "fired", body) for place in range(MEMBERS)]
            data = batch(members, cursor=b"{}", books={"received": number}, provenance={"configuration": "sha256:ab"})
            store._log.append(connection, "batch", time=NOW, stream="s", data=data, members=members)
        return (time.perf_counter() - begin) / LEAVES

    taken = store.do(fill)
    key = Verifier.parse((store.folder / "audit.pub").read_text())
    with Reader(store.folder) as reader:
        begin = time.perf_counter()
        report = verify(reader.leaves(), [note for _, _, note in reader.checkpoints()], key)
        return taken, report.leaves / (time.perf_counter() - begin)


def fsync_cost(folder: Path) -> float:
    """Return the median seconds of a bare 4 KiB write and fsync on the same disk: the floor of any commit."""
    taken = []
    with (folder / "probe").open("wb", buffering=0) as file:
        import os

        for _ in range(60):
            begin = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def measure(folder: Path) -> dict[str, Any]:
    store = Store(folder)
    facts: dict[str, Any] = {"fsync_ms": round(fsync_cost(folder) * 1e3, 2)}
    facts["commit_ms"] = {str(n): round(commit_cost(store, n) * 1e3, 2) for n in (0, 10, 100)}
    apart = Store(folder / "audit")
    leaf_s, verified = audit_cost(apart)
    apart.close()
    facts["audit_leaf_us_of_10_alerts"] = round(leaf_s * 1e6, 1)
    facts["audit_leaves_verified_per_s"] = round(verified)
    _, state = store.load("s")
    begin = time.perf_counter()
    batches = [write_keys(store, state, start, PER_BATCH) for start in range(0, KEYS, PER_BATCH)]
    facts["fill_keys_per_s"] = round(KEYS / (time.perf_counter() - begin))
    facts["state_commit_ms_p50"] = round(statistics.median(taken for taken, _ in batches) * 1e3, 1)
    facts["state_commit_ms_max"] = round(max(taken for taken, _ in batches) * 1e3, 1)
    facts["state_bytes_written_per_key"] = round(sum(size for _, size in batches) / KEYS, 1)
    store.close()
    store = Store(folder)
    begin = time.perf_counter()
    _, loaded = store.load("s")
    facts["restart_s_1m_keys"] = round(time.perf_counter() - begin, 2)
    assert loaded.keys()["op"] == KEYS
    store.close()
    facts["store_mb"] = round(sum(one.stat().st_size for one in folder.iterdir()) / 1e6, 1)
    facts["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder))
    for name, value in facts.items():
        print(f"{name:28} {value}")
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
