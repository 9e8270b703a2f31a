"""Speed of `vedette scan` beside rsigma: the same events, the same rules, run in turn as whole processes.

    python -m tests.bench.bench_scan [--json FILE] [--pairs N]

Input: the Windows events of ``mordor`` in the test data, one JSON object a line, and SigmaHQ's ``rules/windows``.
Figures are CPU seconds (user and system) of the whole process, start-up included, and peak memory. rsigma (RSIGMA, else
on the PATH) is left out with a word if it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("VEDETTE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
LEFT_OUT = ("ec2_proxy_s3_exfiltration", "sh_arp_cache")
"""Archives of `mordor/atomic` that hold no Windows events."""


def write_events(target: Path) -> int:
    """Write the Windows events into *target*; return how many there are."""
    mordor = DATA / "mordor"
    archives = [path for path in sorted((mordor / "atomic").glob("*.zip")) if not path.stem.startswith(LEFT_OUT)]
    archives += [mordor / "lsass_campaign_01" / "metasploit_logonpasswords_lsass_memory_dump.zip"]
    archives += [mordor / "goldensamladfsmailaccess" / "WindowsEvents.Zip"]
    number = 0
    with target.open("wb") as out:
        for archive in archives:
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if name.startswith("__MACOSX"):
                        continue
                    with members.open(name) as lines:  # streamed: a child's peak memory begins with its parent's
                        for line in lines:
                            if line.strip():
                                out.write(line.rstrip() + b"\n")
                                number += 1
    return number


def unpack_rules(folder: Path) -> Path:
    with tarfile.open(DATA / "sigma" / "sigma-rules.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "rules" / "windows"


def run(command: list[str], out: Path) -> dict[str, float]:
    """Run *command* to its end; return its CPU seconds, peak memory in MB and lines printed."""
    with out.open("wb") as target:
        process = subprocess.Popen(command, stdout=target, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    if not out.stat().st_size:  # code 1 is "found something" and also how Python ends on an error
        raise SystemExit(f"{command[0]} printed no match: it failed, and its time means nothing")
    return {"cpu_s": cpu, "peak_mb": usage.ru_maxrss / 1024, "lines": count_lines(out)}


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def middle(rows: list[dict[str, float]], events: int) -> dict[str, Any]:
    cpu = statistics.median(row["cpu_s"] for row in rows)
    return {
        "cpu_s": round(cpu, 2),
        "cpu_s_min": round(min(row["cpu_s"] for row in rows), 2),
        "events_per_cpu_s": round(events / cpu),
        "peak_mb": round(max(row["peak_mb"] for row in rows)),
        "matches": int(rows[-1]["lines"]),
    }


def measure(pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = folder / "events.jsonl"
        number, rules = write_events(events), unpack_rules(folder / "sigma")
        vedette = [str(Path(sys.executable).with_name("vedette")), "scan", str(events), "--rules", str(rules), "--json"]
        peer = os.environ.get("RSIGMA") or shutil.which("rsigma")
        rsigma = [str(peer), "engine", "eval", "-r", str(rules), "-p", "sysmon", "-q", "--output-format", "ndjson"]
        rsigma += ["-e", f"@{events}"]
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        first = run(vedette, folder / "ours")
        ours, theirs = [], []
        for _ in range(pairs):
            ours.append(run(vedette, folder / "ours"))
            if peer:
                theirs.append(run(rsigma, folder / "theirs"))
    facts: dict[str, Any] = {"events": number, "rules": 2407, "pairs": pairs, "vedette": middle(ours, number)}
    facts["vedette_first_start"] = {"cpu_s": round(first["cpu_s"], 2), "note": "rules parsed, nothing cached"}
    if theirs:
        ratios = [b["cpu_s"] / a["cpu_s"] for a, b in zip(ours, theirs, strict=True)]
        facts["rsigma"] = middle(theirs, number)
        facts["speed_ratio"] = {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2),
                                "max": round(max(ratios), 2)}  # fmt: skip
    else:
        facts["rsigma"] = "not installed: cargo install rsigma --version 0.23.0 --locked, or set RSIGMA"
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"no test data in {DATA}: set VEDETTE_TEST_DATA")
        return 0
    facts = measure(options.pairs)
    print(f"{facts['events']:,} Windows events, {facts['rules']:,} rules, {facts['pairs']} pairs; CPU seconds, median")
    for name in ("vedette", "rsigma"):
        row = facts[name]
        if isinstance(row, str):
            print(f"{name:8} {row}")
            continue
        print(f"{name:8} {row['cpu_s']:6.2f} s  {row['events_per_cpu_s']:>8,} events/CPU s  {row['peak_mb']:>5} MB"
              f"  {row['matches']:>5} matches")  # fmt: skip
    if "speed_ratio" in facts:
        ratio = facts["speed_ratio"]
        print(f"vedette is {ratio['median']} times as fast as rsigma, pair by pair {ratio['min']} to {ratio['max']}")
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
