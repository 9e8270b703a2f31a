"""The whole SigmaHQ corpus: all of it loads, and on real events it matches what a plain reading matches."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from rules.detector import SigmaDetector, build
from tests.bench.parity import Plainly, compare, differences, inputs
from tests.sigma_scan import DATA, MISSING, PEERS, TOOLS, Event, evtx_matches, mordor_matches, peer_events

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=MISSING)

RULES = DATA / "sigma" / "sigma-rules.tar.gz"

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
    """All Windows and macOS sources are fed; the others are named with their numbers."""
    unfed = detector.plan()["unfed"]
    assert unfed["rules"] == sum(unfed["log_sources"].values())
    assert not [name for name in unfed["log_sources"] if name.startswith(("product=windows", "product=macos"))]
    assert "product=opencanary category=application" in unfed["log_sources"]
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


@pytest.mark.parametrize(("which", "every", "fewest"), [("evtx", 13, 200), ("mordor", 23, 10)])
def test_each_rule_matches_what_a_plain_reading_of_each_record_matches(
    detector: SigmaDetector, which: str, every: int, fewest: int
) -> None:
    """A fixed sample, rule by rule and record by record; `make parity` takes all of them."""
    paths = [path for path in inputs(DATA)[which] if which == "evtx" or path.parent.name == "atomic"]
    found = compare(detector, Plainly(RULES), paths, every)
    assert (found.only_fast, found.only_plain) == ([], [])
    assert found.matches > fewest


def test_no_difference_from_another_tool_is_unexplained(
    ours: tuple[str, set[Event]], windows_rules: frozenset[str]
) -> None:
    """Of four tools: whatever one reports and we do not, or the reverse, has a cause that is known."""
    found, aside = differences(*ours, windows_rules)
    assert [one for one in found if not one.cause] == []
    assert aside == {"evtx": 116, "mordor": 287}[ours[0]]
    assert {one.only for one in found} == {"ours", "theirs"}
