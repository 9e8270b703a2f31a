"""The SigmaHQ regression events: each rule matches its own events as often as it says."""

from __future__ import annotations

import csv
import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from rules.detector import build
from tests.sigma_scan import DATA, MISSING, matches

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=MISSING)

ABSENT = {"8a2f4b1c-3d5e-4f7a-9b2c-1e4f6d8a9c2b"}
"""Rules of a folder (threat hunting) that the collection at hand does not hold."""
MISCOUNTED = {"45e112d0-7759-4c2a-aa36-9f8fb79d3393": 3}
"""The index says one match; all three events of the file meet the rule, and its own JSON file lists all three."""


def test_every_rule_matches_its_regression_events(tmp_path: Path) -> None:
    """Each row of the index gives its match_count, at least one match where it states none."""
    with tarfile.open(DATA / "sigma" / "sigma-regression.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (index,) = tmp_path.rglob("index.csv")
    rows = list(csv.DictReader(io.StringIO(index.read_text())))
    detector = build("sigma", {"path": str(DATA / "sigma" / "sigma-rules.tar.gz")}, None)
    wanted = [index.parent / row["path"] for row in rows]
    found: Counter[tuple[str, str]] = Counter()
    for path in wanted:
        found.update((rule, str(path)) for rule, _, _ in matches(detector, [path]))
    wrong = {}
    for row, path in zip(rows, wanted, strict=True):
        count = found[row["rule_id"], str(path)]
        if not (count == int(row["match_count"]) if row["match_count"] else count >= 1):
            wrong[row["rule_id"]] = count
    assert len(rows) == 104
    assert wrong == MISCOUNTED | dict.fromkeys(ABSENT, 0)
