"""What correlations cost: 50 of them, each with 10,000 groups, beside the same rules without them.

    python -m tests.bench.bench_correlations [--json FILE] [--share PERCENT ...]

Input: the Windows events of ``mordor`` in the test data under SigmaHQ's ``rules/windows``, and among them a share of
logons that fail, each counted by one of the correlations by user: as counts, values or sequences. Figures are events a
CPU second of this process, JSON decoded and state packed as for the store; both runs alternate, the best of three
counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import orjson

from agent.model import Chunk, Records
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
    """Read *raws* batch by batch as a stream does; return CPU seconds, findings, groups and bytes of state written."""
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
    return {"seconds": seconds, "findings": findings, "groups": state.keys().get("rules", 0), "bytes": written}


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
        "groups": best[1]["groups"],
        "state_bytes_an_event": round(joined[0]["bytes"] / len(raws)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--share", type=float, nargs="*", default=[1, 10], help="per cent of events that are counted")
    options = parser.parse_args()
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
              f" ({row['ratio']:.0%}); {row['groups']:,} groups in state")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
