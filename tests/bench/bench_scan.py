"""Speed of `vedette scan` beside rsigma: the same events, the same rules, run in turn as whole processes.

    python -m tests.bench.bench_scan [--json FILE] [--pairs N]

Input: the Windows events of ``mordor`` in the test data, one JSON object a line, and SigmaHQ's ``rules/windows``; then
the same events with every long text made one of a kind, which leaves nothing to remember. Last, the first events with
500 and with all rules of SigmaHQ. Figures are CPU seconds (user and system) of the whole process, start-up included,
and peak memory; rules are in the cache, as at every start but the first. rsigma (RSIGMA, else on the PATH) is left out
with a word if it is not installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import orjson

DATA = Path(os.environ.get("VEDETTE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
LEFT_OUT = ("ec2_proxy_s3_exfiltration", "sh_arp_cache")
"""Archives of `mordor/atomic` that hold no Windows events."""
LONG = 16
KEPT = frozenset({"Channel", "SourceName", "ProviderGuid", "EventType", "Category", "Hostname", "host"})
_TIME = re.compile(r"\d{4}-\d\d-\d\d")


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


def make_distinct(source: Path, target: Path) -> None:
    """Write the events again, each text of `LONG` characters and more with a number that no other has.

    Times, and what says whose event it is, stay as they are: both tools would take it for another event otherwise.
    """
    number = itertools.count(10**9)
    with source.open("rb") as lines, target.open("wb") as out:
        for line in lines:
            event = orjson.loads(line)
            for key, value in event.items():
                if isinstance(value, str) and len(value) >= LONG and key not in KEPT and not _TIME.match(value):
                    event[key] = f"{value[:8]}{next(number)}{value[8:]}"
            out.write(orjson.dumps(event) + b"\n")


def unpack_rules(folder: Path) -> Path:
    with tarfile.open(DATA / "sigma" / "sigma-rules.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "rules" / "windows"


def some_rules(folder: Path, target: Path, number: int) -> Path:
    """Copy *number* rules from all over *folder*; return *target*."""
    every = sorted(folder.rglob("*.yml"))
    target.mkdir()
    for place in range(number):
        file = every[place * len(every) // number]
        shutil.copy(file, target / f"{place}-{file.name}")
    return target


def run(command: list[str], out: Path, *, must_match: bool = True) -> dict[str, float]:
    """Run *command* to its end; return its CPU seconds, peak memory in MB and lines printed."""
    with out.open("wb") as target:
        process = subprocess.Popen(command, stdout=target, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    if must_match and not out.stat().st_size:  # code 1 is "found something" and also how Python ends on an error
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


class Bench:
    """The commands, with a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.peer = os.environ.get("RSIGMA") or shutil.which("rsigma")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def ours(self, events: Path, rules: Path, *, must_match: bool = True) -> dict[str, float]:
        vedette = str(Path(sys.executable).with_name("vedette"))
        command = [vedette, "scan", str(events), "--rules", str(rules), "--json"]
        return run(command, self._folder / "ours", must_match=must_match)

    def theirs(self, events: Path, rules: Path) -> dict[str, float]:
        command = [
            str(self.peer),
            "engine",
            "eval",
            "-r",
            str(rules),
            "-p",
            "sysmon",
            "-q",
            "--output-format",
            "ndjson",
        ]
        return run([*command, "-e", f"@{events}"], self._folder / "theirs")

    def pairs(self, events: Path, rules: Path, number: int, count: int) -> dict[str, Any]:
        """Run both in turn; return the figures of each and how many times as fast ours is."""
        ours, theirs = [], []
        for _ in range(count):
            ours.append(self.ours(events, rules))
            if self.peer:
                theirs.append(self.theirs(events, rules))
        facts: dict[str, Any] = {"vedette": middle(ours, number)}
        if theirs:
            ratios = [b["cpu_s"] / a["cpu_s"] for a, b in zip(ours, theirs, strict=True)]
            facts["rsigma"] = middle(theirs, number)
            facts["speed_ratio"] = {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2),
                                    "max": round(max(ratios), 2)}  # fmt: skip
        else:
            facts["rsigma"] = "not installed: cargo install rsigma --version 0.23.0 --locked, or set RSIGMA"
        return facts

    def growth(self, events: Path, few: Path, every: Path, number: int, count: int) -> dict[str, Any]:
        """Return what 500 and all rules cost, in turn, with and without what a start costs."""
        one = self._folder / "one.jsonl"
        with events.open("rb") as lines:
            one.write_bytes(lines.readline())
        rows: dict[str, list[float]] = {"few": [], "every": [], "few_start": [], "every_start": []}
        for _ in range(count + 1):
            for name, rules in (("few", few), ("every", every)):
                rows[name].append(self.ours(events, rules)["cpu_s"])
                rows[f"{name}_start"].append(self.ours(one, rules, must_match=False)["cpu_s"])
        middles = {name: statistics.median(found[1:]) for name, found in rows.items()}  # the first fills the cache
        steady = {name: middles[name] - middles[f"{name}_start"] for name in ("few", "every")}
        return {
            "events": number,
            "cpu_s": {name: round(value, 2) for name, value in middles.items()},
            "times_whole": round(middles["every"] / middles["few"], 2),
            "times_without_start": round(steady["every"] / steady["few"], 2),
        }


def measure(pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events, distinct = folder / "events.jsonl", folder / "distinct.jsonl"
        sigma = folder / "sigma"
        number, rules = write_events(events), unpack_rules(sigma)
        make_distinct(events, distinct)
        bench = Bench(folder)
        first = bench.ours(events, rules)
        return {
            "events": number,
            "rules": 2407,
            "pairs": pairs,
            "vedette_first_start": {"cpu_s": round(first["cpu_s"], 2), "note": "rules parsed, nothing cached"},
            "real": bench.pairs(events, rules, number, pairs),
            "distinct": bench.pairs(distinct, rules, number, pairs),
            "growth": bench.growth(events, some_rules(sigma, folder / "few", 500), sigma, number, 3),
        }


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
    for title in ("real", "distinct"):
        print(title)
        for name in ("vedette", "rsigma"):
            row = facts[title][name]
            if isinstance(row, str):
                print(f"  {name:8} {row}")
                continue
            print(f"  {name:8} {row['cpu_s']:6.2f} s  {row['events_per_cpu_s']:>8,} events/CPU s"
                  f"  {row['peak_mb']:>5} MB  {row['matches']:>5} matches")  # fmt: skip
        if ratio := facts[title].get("speed_ratio"):
            print(
                f"  vedette is {ratio['median']} times as fast as rsigma, pair by pair {ratio['min']} to {ratio['max']}"
            )
    grown = facts["growth"]
    print(f"from 500 to all rules of SigmaHQ the cost grows {grown['times_whole']} times"
          f" ({grown['times_without_start']} times without the start)")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
