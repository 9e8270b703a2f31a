"""What correlations cost: 50 of them, each with 10,000 groups, beside the same rules without them.

    python -m tests.bench.bench_correlations [--json FILE] [--share PERCENT ...] [--growth EVENTS]

Input: the Windows events of ``mordor`` in the test data under SigmaHQ's ``rules/windows``, and among them a share of
logons that fail, each counted by one of the correlations by user: as counts, values or sequences. Figures are events a
CPU second of this process, JSON decoded and state packed as for the store; both runs alternate, the best of three
counts.

With ``--growth`` instead: what a batch costs at the beginning and at the end of a log of so many events, where one
correlation keeps ever more of them: in many windows of one group, in one window of it, in one window of many groups.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson

from agent.model import SECOND, Batch, Chunk, Column, Dictionary, Kind, Records
from agent.normalise.clock import parse
from agent.pipeline import Pipeline
from agent.state import State
from rules.detector import SigmaDetector
from rules.sigma.documents import read_files
from rules.sigma.parse import Collection, compile_files
from tests.bench.bench_scan import DATA, unpack_rules, write_events

CORRELATIONS = 50
GROUPS = 10_000
EVENTS = 60_000
BATCH = 8_192
ROUNDS = 3
AS_OF = parse("2026-03-01T02:00:00Z")
_TYPES = (
    "type: event_count\n  condition: {gte: 10}",
    "type: value_count\n  condition: {field: IpAddress, gte: 5}",
    "type: temporal_ordered",
)


def rules(folder: Path) -> Collection:
    """Return SigmaHQ's rules, unpacked in *folder*, a rule for each correlation, and the correlations over them."""
    texts = []
    for number in range(CORRELATIONS):
        texts.append(
            f"title: rule {number}\nid: 00000000-0000-4000-8000-{number:012}\nname: r{number}\n"
            f"logsource: {{product: windows, service: security}}\n"
            f"detection: {{sel: {{EventID: 4625, Status: s{number}}}, condition: sel}}\n"
        )
        other = (number + 1) % CORRELATIONS
        texts.append(
            f"title: correlation {number}\nid: 00000000-0000-4000-8001-{number:012}\ncorrelation:\n"
            f"  rules: [r{number}{f', r{other}' if number % 3 == 2 else ''}]\n"
            f"  group-by: [TargetUserName]\n  timespan: 10m\n  {_TYPES[number % 3]}\n"
        )
    collection = compile_files([("rules.yml", "---\n".join(texts).encode()), *read_files(unpack_rules(folder))])
    assert len(collection.correlations) == CORRELATIONS, collection.refused
    return collection


def events(share: float, real: Sequence[bytes]) -> list[bytes]:
    """Return *real* events, and among them as many of an hour as make *share* of all, each of them counted."""
    random = Random(7)
    found: list[bytes] = []
    for number, line in enumerate(real):
        found.append(line)
        if random.random() * (1 - share) >= share:
            continue
        second = number * 3_600 // len(real)
        found.append(failed(3_600 + second, random.randrange(GROUPS), random.randrange(CORRELATIONS), random))
    return found


def failed(second: int, user: int, rule: int, random: Random) -> bytes:
    """Return a logon that failed, counted by one of the correlations."""
    return orjson.dumps(
        {
            "@timestamp": f"2026-03-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000Z",
            "EventID": 4625,
            "Channel": "Security",
            "SourceName": "Microsoft-Windows-Security-Auditing",
            "Hostname": f"ws{random.randrange(300)}.example.com",
            "TargetUserName": f"user{user}",
            "IpAddress": f"10.{random.randrange(8)}.{random.randrange(256)}.{random.randrange(256)}",
            "LogonType": 3,
            "Status": f"s{rule}",
        }
    )


def run(pipeline: Pipeline, state: State, raws: Sequence[bytes]) -> dict[str, Any]:
    """Read *raws* batch by batch as a stream does; return CPU seconds, findings, keys and bytes of state written."""
    written = findings = 0
    gc.collect()
    begin = time.process_time()
    for start in range(0, len(raws), BATCH):
        part = raws[start : start + BATCH]
        chunk = Chunk("p", "f", "json", range(start, start + len(part)), part)
        records = Records("bench", (chunk,), {}, AS_OF, frozenset({"p"}))
        transaction = state.transaction()
        findings += len(pipeline.evaluate(records, transaction).findings)
        written += sum(len(one.block) for one in transaction.changes().deltas)
        transaction.apply()
    seconds = time.process_time() - begin
    return {"seconds": seconds, "findings": findings, "keys": state.keys().get("rules", 0), "bytes": written}


def measure(share: float, whole: Collection, real: Sequence[bytes]) -> dict[str, Any]:
    """Measure with all groups in state already; each run reads the events as if for the first time."""
    raws, random = events(share, real), Random(8)
    counted = {rule for one in whole.correlations for rule in one.rules}
    alone = Collection(rules=[rule for rule in whole.rules if rule.id not in counted])
    every = [failed(n * 600 // GROUPS, n, rule, random) for n in range(GROUPS) for rule in range(CORRELATIONS)]
    state = State()
    run(Pipeline([SigmaDetector("rules", whole, {"max_groups": 2 * len(every)})]), state, every)
    without, joined = [], []
    for _ in range(ROUNDS):
        without.append(run(Pipeline([SigmaDetector("rules", alone, {})]), State(), raws))
        joined.append(run(Pipeline([SigmaDetector("rules", whole, {"max_groups": 2 * len(every)})]), state, raws))
    best = [min(rows, key=lambda row: row["seconds"]) for rows in (without, joined)]
    return {
        "counted": share,
        "events": len(raws),
        "stateless_per_s": round(len(raws) / best[0]["seconds"]),
        "correlated_per_s": round(len(raws) / best[1]["seconds"]),
        "ratio": round(best[0]["seconds"] / best[1]["seconds"], 2),
        "keys": best[1]["keys"],
        "state_bytes_an_event": round(joined[0]["bytes"] / len(raws)),
    }


GROWING = {
    "windows of one group": ("event_count\n  condition: {gte: 10}\n  timespan: 1m", 1, 86_400),
    "one window of a group": ("event_count\n  condition: {gte: 5000}\n  timespan: 1d", 1, 80_000),
    "one tally of a group": ("event_count\n  condition: {eq: 3}\n  timespan: 1d", 1, 80_000),
    "one window, many groups": ("event_count\n  condition: {gte: 1}\n  timespan: 1d", 500_000, 80_000),
    "tallies of many groups": ("event_count\n  condition: {eq: 3}\n  timespan: 1d", 500_000, 80_000),
}
"""What is kept: the correlation, how many groups there are, and the seconds over which the events are spread."""
GROWTH_BATCH = 5_000


def growing(total: int, groups: int, seconds: int) -> Iterator[Batch]:
    """Yield batches of *total* events of one rule, in turn of each of *groups*, spread over *seconds*."""
    kind, users = Kind("bench", (("event.dataset", "auditd.log"), ("event.action", "failed"))), Dictionary()
    for start in range(0, total, GROWTH_BATCH):
        numbers = np.arange(start, min(total, start + GROWTH_BATCH))
        codes = users.encode([f"user{number % groups}" for number in numbers.tolist()])
        keys = range(start, start + len(numbers))
        time = 20_000 * 86_400 * SECOND + numbers * (seconds * SECOND // total)
        yield Batch(
            records=Records("bench", (Chunk("p", "f", "json", keys, [b""] * len(numbers)),), {}, AS_OF),
            origin=np.arange(len(numbers), dtype=np.int32),
            kinds=(kind,),
            kind=np.zeros(len(numbers), dtype=np.int32),
            time=time,
            columns={"user.name": Column(np.array(codes, dtype=np.int32), users)},
            high=np.maximum(time - 1, 0),
            future=np.zeros(len(numbers), dtype=np.bool_),
        )


def growth(total: int, condition: str, groups: int, seconds: int) -> dict[str, Any]:
    """Return what the first and the last tenth of the batches cost, in events a CPU second and bytes an event."""
    rule = (
        "title: r\nid: 00000000-0000-4000-8000-000000000000\nname: r\nlogsource: {product: linux, service: auditd}\n"
        "detection: {sel: {event.action: failed}, condition: sel}\n---\ntitle: c\n"
        "id: 00000000-0000-4000-8001-000000000000\ncorrelation:\n  rules: [r]\n  group-by: [user.name]\n"
        f"  type: {condition}\n"
    )
    collection = compile_files([("rules.yml", rule.encode())])
    assert not collection.refused, collection.refused
    detector, state = SigmaDetector("rules", collection, {"max_groups": 1_000_000}), State()
    costs = []
    for batch in growing(total, groups, seconds):
        transaction = state.transaction()
        view = transaction.view("rules")
        gc.collect()
        begin = time.process_time()
        detector.detect(batch, view)
        detector.advance(int(batch.time[-1]) - SECOND, view)
        written = sum(len(one.block) for one in transaction.changes().deltas)
        transaction.apply()
        costs.append((len(batch), time.process_time() - begin, written))
    tenth = max(1, len(costs) // 10)
    tenths = [
        [sum(column) for column in zip(*costs[start : start + tenth], strict=True)]
        for start in range(0, len(costs), tenth)
    ]
    first, last = tenths[0], tenths[-1]
    return {
        "events": total,
        "groups": groups,
        "first_per_s": round(first[0] / first[1]),
        "last_per_s": round(last[0] / last[1]),
        "worst_per_s": round(min(number / seconds for number, seconds, _ in tenths)),
        "first_bytes_an_event": round(first[2] / first[0]),
        "worst_bytes_an_event": round(max(size / number for number, _, size in tenths)),
        "keys": state.keys().get("rules", 0),
    }


def grow(total: int) -> list[dict[str, Any]]:
    facts = []
    for name, (condition, groups, seconds) in GROWING.items():
        row = growth(total, condition, groups, seconds)
        facts.append({"kept": name, **row})
        print(f"{name:>24}: {row['first_per_s']:,} events/s at first, {row['last_per_s']:,} at last,"
            f" {row['worst_per_s']:,} at worst;"
              f" {row['first_bytes_an_event']:,} and {row['worst_bytes_an_event']:,} bytes an event;"
              f" {row['keys']:,} keys", flush=True)  # fmt: skip
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--share", type=float, nargs="*", default=[1, 10], help="per cent of events that are counted")
    parser.add_argument("--growth", type=int, metavar="EVENTS", help="measure growth over so many events instead")
    options = parser.parse_args()
    if options.growth:
        facts = grow(options.growth)
        if options.json:
            options.json.write_text(json.dumps(facts, indent=2) + "\n")
        return 0
    if not DATA.is_dir():
        print(f"no test data in {DATA}: set VEDETTE_TEST_DATA")
        return 0
    with tempfile.TemporaryDirectory() as name:
        write_events(Path(name) / "events")
        real = (Path(name) / "events").read_bytes().splitlines()[:EVENTS]
        whole = rules(Path(name))
    print(f"{len(whole.rules):,} rules, {CORRELATIONS} correlations over {GROUPS:,} users; {len(real):,} real events")
    facts = []
    for share in options.share:
        row = measure(share / 100, whole, real)
        facts.append(row)
        print(f"{share:4g} % counted: {row['stateless_per_s']:,} events/s without, {row['correlated_per_s']:,} with"
              f" ({row['ratio']:.0%}); {row['keys']:,} keys of state")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
