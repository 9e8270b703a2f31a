"""How soon it is there: `vedette --help`, the daemon at work, its first batch on disk, a new version of its rules.

python -m tests.bench.bench_start [--json FILE]

Medians of seconds. The daemon runs our own rules over one log line, each time in a folder of its own. For the last
figure, measured once, it runs all of SigmaHQ's rules, as an archive that is a signed pack, over Windows events of
``mordor`` that never end, both from the test data; a new version is signed and taken at SIGHUP. The stream stands still
from the fetch of the last batch under the old version until the first under the new one is on disk.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from agent.audit import Leaf
from agent.store import Reader
from agent.trust import pack
from rules.sigma.documents import content_digest, read_files
from tests.bench.bench_scan import DATA
from tests.process import VEDETTE
from tests.signing import key
from tests.site import Site

RUNS = 7
BLOCK = 512
"""Events in a batch, the same in each."""
RULES = DATA / "sigma" / "sigma-rules.tar.gz"
EVENTS = DATA / "mordor" / "lsass_campaign_01" / "metasploit_logonpasswords_lsass_memory_dump.zip"


def help_text() -> float:
    begin = time.perf_counter()
    subprocess.run([*VEDETTE, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def daemon() -> tuple[float, float]:
    """Return how long it takes until it answers commands, and until its first batch is on disk."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        site.sign("root", detectors={"rules": {"type": "sigma", "path": "builtin"}})
        try:
            begin = time.perf_counter()
            site.start()
            at_work = time.perf_counter() - begin
            site.until(lambda: site.received() == 1)
            return at_work, time.perf_counter() - begin
        finally:
            site.end_anyhow()


class Patient(Site):
    """A site whose daemon may take its time: thousands of rules are compiled at its first start."""

    def until(self, holds: Callable[[], object], seconds: float = 180.0) -> None:
        super().until(holds, seconds)


def reload() -> float:
    """Return how long the stream stands still for a new version of the rules."""
    with tempfile.TemporaryDirectory() as folder:
        site, done = Patient(Path(folder)), threading.Event()
        archive = site.folder / "sigma.tar.gz"
        sign(archive, 1)
        detector = {"type": "sigma", "path": str(archive), "pack": "sigma"}
        stream = {"source": "logs", "detectors": ["rules"], "sinks": ["out"], "batch": BLOCK}
        site.sign("root", detectors={"rules": detector}, streams={"main": stream})
        feeder = threading.Thread(target=feed, args=(site, events(), done))
        try:
            site.start()
            feeder.start()
            site.until(lambda: site.received() > 20 * BLOCK)
            sign(archive, 2)
            assert site.process is not None
            site.process.send_signal(signal.SIGHUP)
            site.until(lambda: len(batches(site)[1]) > 1)
            before, after = batches(site)
            return (after[1].time - before[-1].time) / 1e6
        finally:
            done.set()
            site.end_anyhow()
            if feeder.ident:
                feeder.join()


def sign(archive: Path, version: int) -> None:
    """Write SigmaHQ's rules to *archive*, one file fewer in each version, and sign it."""
    with tarfile.open(RULES) as old, tarfile.open(archive, "w:gz", compresslevel=1) as new:
        for number, member in enumerate(one for one in old if one.name.endswith(".yml")):
            if number >= version:
                new.addfile(member, old.extractfile(member))
    said = pack.Pack(name="sigma", version=version, digest=content_digest(read_files(archive)))
    pack.envelope_of(archive).write_bytes(pack.sign(said, key("dex")))


def events() -> bytes:
    """Return the lines of one batch, taken from all over the log."""
    with zipfile.ZipFile(EVENTS) as members, members.open(members.namelist()[0]) as file:
        lines = [line for line in file if line.strip()]
    return b"".join(lines[place * len(lines) // BLOCK].rstrip() + b"\n" for place in range(BLOCK))


def feed(site: Site, block: bytes, done: threading.Event) -> None:
    """Append *block* to a log again and again, so that there is always something to read and never much."""
    written = 0
    with (site.folder / "logs" / "events.jsonl").open("ab", buffering=0) as log:
        while not done.wait(0.005):
            while written < site.received() + 3 * BLOCK:
                log.write(block)
                written += BLOCK


def batches(site: Site) -> tuple[list[Leaf], list[Leaf]]:
    """Return what is on record of batches before and since the newest version was accepted; none but before, if that is
    the first."""
    with Reader(site.data) as reader:
        last, *others = reader.backwards("pack-accepted")
        found = list(reader.backwards("batch"))[::-1]
    end = last.number if others else found[-1].number + 1
    return [one for one in found if one.number < end], [one for one in found if one.number > end]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    starts = [daemon() for _ in range(RUNS)]
    found = {
        "vedette --help": [help_text() for _ in range(RUNS)],
        "start to at work": [at_work for at_work, _ in starts],
        "start to first batch": [first for _, first in starts],
    }
    if RULES.exists() and EVENTS.exists():
        found["stands still at a reload"] = [reload()]
    else:
        print(f"no reload is timed: rules and logs are not at {DATA}, set VEDETTE_TEST_DATA")
    medians = {what: round(statistics.median(times), 2) for what, times in found.items()}
    for what, seconds in medians.items():
        print(f"{what:24} {seconds:.2f} s")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
