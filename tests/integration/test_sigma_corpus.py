"""The whole SigmaHQ corpus: all of it loads, and on real events it matches what a plain reading matches."""

from __future__ import annotations

import csv
import gzip
import zipfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

from agent.model import Chunk
from rules.detector import SigmaDetector, build
from tests.sigma_scan import DATA, MISSING, matches, record_number

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=MISSING)

RULES = DATA / "sigma" / "sigma-rules.tar.gz"
PEERS = DATA / "peer-matches"
TOOLS = ("chainsaw", "hayabusa", "rsigma", "zircolite")
Event = tuple[str, str, str]
"""Rule, file and line or record number."""

DIFFERENT: dict[tuple[str, str], tuple[int, str]] = {}
"""(input, rule id) -> our count, and why it is not that of the plain reading."""


@pytest.fixture(scope="module")
def detector() -> SigmaDetector:
    return build("sigma", {"path": str(RULES)}, None)


@pytest.fixture(scope="module")
def windows_rules(detector: SigmaDetector) -> frozenset[str]:
    return frozenset(r.id for r in detector._engine.rules if r.place.startswith("rules/windows/"))


def test_every_rule_loads_or_is_refused_by_name(detector: SigmaDetector) -> None:
    """3,614 rules: loaded ones and refusals with file, line and reason; nothing disappears."""
    plan = detector.plan()
    refused = [reason for reason in plan["refused"] if not reason.startswith("specification/")]
    assert plan["rules"] + len(refused) == 3_614
    assert (
        sorted(reason.partition(": ")[2] for reason in refused) == ["placeholder %known_cdcs% has no values here"] * 2
    )
    for reason in plan["refused"]:
        path, line, _ = reason.split(":", 2)
        assert path.endswith(".yml")
        assert int(line) > 0


def test_rules_that_no_mapping_feeds_are_counted(detector: SigmaDetector) -> None:
    """All Windows sources but kernel file tracing are fed; the others are named with their numbers."""
    unfed = detector.plan()["unfed"]
    assert unfed["rules"] == sum(unfed["log_sources"].values())
    windows = {name for name in unfed["log_sources"] if name.startswith("product=windows")}
    assert windows == {"product=windows category=file_access", "product=windows category=file_rename"}
    for fed in ("product=linux service=sshd", "category=webserver", "product=aws service=cloudtrail", "category=dns"):
        assert fed not in unfed["log_sources"]


def reading(which: str, rules: frozenset[str]) -> dict[str, int]:
    """Return the matches of each rule in a plain reading, Security 4688 included.

    The summary has the rules on which the tools differ; on the others they agree, with each other and with it.
    """
    with (PEERS / "summary.csv").open(newline="") as file:
        differing = {row["rule_id"]: row for row in csv.DictReader(file) if row["input"] == which}
    agreed = Counter(rule for rule, _, _ in peer_events(which)["rsigma"])
    counts = {rule: int(row["reading"] or 0) + int(row["reading_4688"] or 0) for rule, row in differing.items()}
    return {rule: count for rule, count in ({**agreed, **counts}).items() if rule in rules and count}


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


@pytest.fixture(scope="module", params=["mordor", "evtx"])
def ours(
    request: pytest.FixtureRequest, detector: SigmaDetector, windows_rules: frozenset[str]
) -> tuple[str, set[Event]]:
    find = mordor_matches if request.param == "mordor" else evtx_matches
    return request.param, {event for event in find(detector) if event[0] in windows_rules}


def test_each_rule_matches_as_often_as_a_plain_reading(
    ours: tuple[str, set[Event]], windows_rules: frozenset[str]
) -> None:
    """Every difference is listed with its reason."""
    which, events = ours
    counts = Counter(rule for rule, _, _ in events)
    expected = reading(which, windows_rules)
    different = {
        (which, rule): counts[rule] for rule in counts.keys() | expected.keys() if counts[rule] != expected.get(rule, 0)
    }
    assert different == {key: count for key, (count, _) in DIFFERENT.items() if key[0] == which}


def test_what_all_tools_report_is_reported_on_the_same_events(
    ours: tuple[str, set[Event]], windows_rules: frozenset[str]
) -> None:
    """Agreement is by event and not only by count."""
    which, events = ours
    common = set.intersection(*(peer_events(which)[tool] for tool in TOOLS))
    assert len(common) > 100
    assert {event for event in common if event[0] in windows_rules} <= events


def test_nothing_is_reported_that_no_tool_reports(ours: tuple[str, set[Event]]) -> None:
    """All but the two Security 4688 matches that are known to be nobody's."""
    which, events = ours
    alone = events.difference(*peer_events(which).values())
    assert len(alone) <= 2, sorted(alone)[:20]
