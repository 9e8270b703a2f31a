"""How soon it is there: `vedette --help`, the daemon at work, its first batch on disk.

python -m tests.bench.bench_start [--json FILE]

Medians of seconds. The daemon runs our own rules over one log line, each time in a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.process import VEDETTE
from tests.site import Site

RUNS = 7


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
    medians = {what: round(statistics.median(times), 2) for what, times in found.items()}
    for what, seconds in medians.items():
        print(f"{what:24} {seconds:.2f} s")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
