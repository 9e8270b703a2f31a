"""Run the Sigma detector over real files, through the files source and the normaliser."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from agent import plugins
from agent.model import Chunk
from agent.normalise import Normaliser
from agent.state import State
from rules.detector import SigmaDetector

DATA = Path(os.environ.get("VEDETTE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
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
