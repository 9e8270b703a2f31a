"""How soon it is there: `vedette --help`, the start of the daemon, and the first batch on disk.

python -m tests.bench.bench_start [--json FILE]

Cold is without a cache of compiled rules; the rest is warm. Medians; processor time beside the wall's, since the first
does not depend on who else is at work.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from agent.errors import ConfigError
from agent.store import Reader
from tests.process import VEDETTE
from tests.sigma_scan import DATA
from tests.signing import signed
from tests.site import LINE

RUNS = 9
LINES = 1_000


def timed(work: Callable[[], float | None]) -> dict[str, float]:
    """Run *work* some times; return the medians of wall seconds (its own word, if it gives one) and CPU seconds."""
    walls, cpus = [], []
    for _ in range(RUNS):
        used, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        told = work()
        walls.append(time.perf_counter() - begin if told is None else told)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    return {"seconds": round(statistics.median(walls), 3), "cpu_seconds": round(statistics.median(cpus), 3)}


def help_text() -> None:
    subprocess.run([*VEDETTE, "--help"], stdout=subprocess.DEVNULL, check=True)


class Daemon:
    """Starts over fresh data each time, with *rules*, on a log of LINES lines."""

    def __init__(self, folder: Path, rules: str, *, cold: bool) -> None:
        self._folder, self._cold = folder, cold
        folder.mkdir()
        log = folder / "auth.log"
        log.write_text("".join(LINE.format(number % 60) for number in range(LINES)))
        self._config = folder / "vedette.yml"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "sources": {"logs": {"type": "files", "paths": [str(log)], "follow": True}},
                    "detectors": {"rules": {"type": "sigma", "path": rules}},
                    "streams": {"main": {"source": "logs", "detectors": ["rules"]}},
                }
            )
        )

    def __call__(self) -> float:
        """Return seconds from the process's start to its first batch on disk."""
        data = self._folder / "data"
        if data.exists():
            for one in data.iterdir():
                if one.name == "cache" and not self._cold:
                    continue
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        bootstrap = signed(self._config, data)
        begin = time.perf_counter()
        with subprocess.Popen([*VEDETTE, "run", "-b", str(bootstrap)], stderr=subprocess.DEVNULL) as process:
            while not self._has_read(data):
                if process.poll() is not None:
                    raise SystemExit(f"vedette ended with {process.returncode}")
                time.sleep(0.002)
            taken = time.perf_counter() - begin
            process.send_signal(signal.SIGTERM)
        return taken

    @staticmethod
    def _has_read(data: Path) -> bool:
        try:
            with Reader(data) as reader:
                return bool(reader.counters("main").get("main", {}).get("received"))
        except (ConfigError, OSError):
            return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"vedette --help": timed(help_text)}
    with tempfile.TemporaryDirectory() as folder:
        places = {"our own rules": "builtin"}
        archive = DATA / "sigma" / "sigma-rules.tar.gz"
        if archive.exists():
            shutil.unpack_archive(archive, Path(folder) / "sigma", filter="data")
            places["SigmaHQ's rules"] = str(Path(folder) / "sigma")
        for number, (name, rules) in enumerate(places.items()):
            for cold in (True, False):
                what = f"start to first batch, {name}, {'cold' if cold else 'warm'}"
                daemon = Daemon(Path(folder) / f"{number}{cold}", rules, cold=cold)
                if not cold:
                    daemon()
                found[what] = timed(daemon)
    for what, one in found.items():
        print(f"{what:60} {one['seconds']:7.3f} s   {one['cpu_seconds']:7.3f} CPU s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
