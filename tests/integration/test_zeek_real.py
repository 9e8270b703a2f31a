"""Zeek's real logs: tables and JSON give the same events, and logs without ``_path`` are told apart."""

from __future__ import annotations

import json
import math
import os
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent.model import Chunk
from agent.normalise import Normaliser
from agent.testing import drain
from connectors.files import build
from tests.integration.integrations import leaves

DATA = Path(os.environ.get("VEDETTE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"real logs are not at {DATA} (set VEDETTE_TEST_DATA)")

NAMES = {"conn": "connection"}
BARE = {"ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p"}
SIX_DIGITS = 5.1e-7
"""What a table may leave out of a number with a fraction; in nanoseconds a thousand times a thousand times as much."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zeek")
    with tarfile.open(DATA / "zeek-samples/zeek-wrccdc.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def documents(*paths: Path) -> list[dict[str, Any]]:
    """Return all records of *paths* as documents, flat, without what only a stream of JSON says of itself."""
    source = build("files", {"paths": [str(path) for path in paths]})
    source.open(frozenset())
    found = []
    cursor = None
    while len(records := source.fetch(cursor, 100_000)):
        cursor = records.cursor
        for chunk in records.chunks:
            assert isinstance(chunk, Chunk)
            assert not chunk.faults
            found += [(chunk.format, raw) for raw in chunk.raw]
    source.close()
    normaliser = Normaliser(lambda kind: frozenset())
    flat = [dict(leaves(normaliser.document(format, raw, as_of=0))) for format, raw in found]
    for one in flat:
        one.pop("zeek._write_ts", None)
    return flat


def alike(table: Any, other: Any, name: str) -> bool:
    if table == other:
        return True
    try:
        slack = 1e9 * SIX_DIGITS if name == "event.duration" else SIX_DIGITS
        return math.isclose(float(table), float(other), rel_tol=0, abs_tol=slack)
    except (TypeError, ValueError):
        return False


def test_tables_and_json_give_the_same_events(samples: Path) -> None:
    """All 11,128 records, sixteen logs: equal but for digits that a table leaves out."""
    tables = sorted((samples / "zeek-default").iterdir())
    total, differing = 0, Counter[str]()
    for table in tables:
        ours, theirs = documents(table), documents(samples / "zeek-json" / f"{table.stem}.json")
        assert len(ours) == len(theirs)
        total += len(ours)
        for one, other in zip(ours, theirs, strict=True):
            names = one.keys() | other.keys()
            differing.update(name for name in names if not alike(one.get(name), other.get(name), name))
            assert one["event.dataset"] == f"zeek.{table.stem}"
    assert (total, differing) == (11_128, Counter())


def test_json_logs_without_a_path_are_told_apart() -> None:
    """A record is known by its fields, or where a collector names the log, by that; one with no fields is of no log."""
    own = re.compile(rb'"(id|certificate|san)_(?=[a-z_]+":)')
    normaliser = Normaliser(lambda kind: frozenset())
    seen = Counter[str]()
    for archive in sorted((DATA / "mordor/apt29").glob("*zeek*")):
        with zipfile.ZipFile(archive) as packed:
            for line in (line for name in packed.namelist() for line in packed.read(name).splitlines()):
                record = json.loads(line)
                wanted = f"zeek.{NAMES.get(record['@stream'], record['@stream'])}"
                assert normaliser.document("json", line, as_of=0)["event"]["dataset"] == wanted
                bare = {key: value for key, value in json.loads(own.sub(rb'"\1.', line)).items() if key[0] != "@"}
                if bare.keys() - BARE:
                    assert normaliser.document("json", json.dumps(bare).encode(), as_of=0)["event"]["dataset"] == wanted
                    seen[wanted] += 1
    assert len(seen) == 14
    assert seen.total() == 2_130


def test_every_record_of_the_tables_is_read_once(samples: Path) -> None:
    """Read in small pieces, no line is lost and none is a fault."""
    source = build("files", {"paths": [str(samples / "zeek-default")]})
    source.open(frozenset())
    assert len(drain(source, limit=997)[0]) == 11_128
    source.close()
