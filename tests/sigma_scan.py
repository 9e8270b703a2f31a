"""Run the Sigma detector over real files, through the files source and the normaliser; what other tools say of them."""

from __future__ import annotations

import csv
import gzip
import os
import zipfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import orjson

from agent import plugins
from agent.model import Chunk
from agent.normalise import Normaliser
from agent.state import State
from rules.detector import SigmaDetector

DATA = Path(os.environ.get("VEDETTE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PEERS = DATA / "peer-matches"
TOOLS = ("chainsaw", "hayabusa", "rsigma", "zircolite")
Event = tuple[str, str, str]
"""Rule, file and line or record number."""
MISSING = f"real logs are not at {DATA}: set VEDETTE_TEST_DATA"


def matches(detector: SigmaDetector, paths: Sequence[Path]) -> Iterator[tuple[str, Chunk, int]]:
    """Yield rule id, chunk and place in it for each match in the files at *paths*."""
    build = plugins.connector("files").source
    assert build is not None
    source = build("test", {"paths": [str(path) for path in paths]})
    source.open(frozenset())
    normaliser, cursor = Normaliser(detector.fields), None
    while len(records := source.fetch(cursor, 8_192)):
        cursor = records.cursor
        batch = normaliser(records, {}).batch
        for finding in detector.detect(batch, State().transaction().view("sigma")):
            assert finding.row is not None
            yield finding.detector.id, *records.locate(int(batch.origin[finding.row]))
    source.close()


def record_number(chunk: Chunk, place: int) -> str:
    """Return an EVTX record's own EventRecordID."""
    raw = chunk.raw[place]
    assert isinstance(raw, bytes)
    number = orjson.loads(raw)["Event"]["System"]["EventRecordID"]
    return str(number["#text"] if isinstance(number, dict) else number)


@cache
def peer_events(which: str) -> dict[str, set[Event]]:
    events: dict[str, set[Event]] = defaultdict(set)
    with gzip.open(PEERS / f"{which}.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            place = row["line"] or row["record_id"]
            events[row["tool"]].add((row["rule_id"], row["file"], place))
    return events


def mordor_archives() -> list[Path]:
    names = {file for _, file, _ in peer_events("mordor")["rsigma"]}
    folders = {DATA / "mordor" / Path(name).parent for name in names}
    nested = "empire_wdigest_downgrade.tar.gz"  # its events are of a shape that no tool of the comparison reads
    found = [path for folder in folders for path in folder.iterdir() if path.name.lower().endswith(".zip")]
    return [path for path in found if path.name != nested and _is_windows(path)]


def _is_windows(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        first = next(name for name in archive.namelist() if not name.startswith("__MACOSX"))
        return b'"EventID"' in archive.open(first).readline()


class Lines:
    """Byte offsets in an archive's one JSON member to 1-based line numbers."""

    def __init__(self) -> None:
        self._starts: dict[str, list[int]] = {}

    def __call__(self, chunk: Chunk, place: int) -> tuple[str, str]:
        path, _, member = chunk.path.partition("!")
        if chunk.path not in self._starts:
            with zipfile.ZipFile(path) as archive:
                sizes = (len(line) + 1 for line in archive.read(member).split(b"\n"))
                self._starts[chunk.path] = [0, *accumulate(sizes)]
        key = chunk.keys[place]
        assert isinstance(key, int)
        return str(Path(path).relative_to(DATA / "mordor")), str(bisect_right(self._starts[chunk.path], key))


def mordor_matches(detector: SigmaDetector) -> Iterator[Event]:
    lines = Lines()
    for rule, chunk, place in matches(detector, mordor_archives()):
        yield (rule, *lines(chunk, place))


def evtx_matches(detector: SigmaDetector) -> Iterator[Event]:
    for rule, chunk, place in matches(detector, [DATA / "evtx" / "evtx-attack-samples.tar.gz"]):
        yield rule, chunk.path.rpartition("/")[2], record_number(chunk, place)
