"""Our own rules: true metadata, each hit found, each near miss not, and quiet on ordinary logs."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import tarfile
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
import re2
import yaml

from agent.alerting.attack import threat
from agent.model import Chunk, Finding, Records
from agent.normalise import Normaliser
from agent.state import State
from rules.cases import Case, Trial, read_cases
from rules.detector import SigmaDetector, build
from rules.sigma.documents import read_files

REPO = Path(__file__).parents[2]
CONTENT = REPO / "rules" / "content"
DATA = Path(os.environ.get("VEDETTE_TEST_DATA", REPO.parent / "shared" / "data"))
RULES = sorted(CONTENT.rglob("*.yml"))
AS_OF = 1_795_000_000_000_000
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real logs are not at {DATA}; set VEDETTE_TEST_DATA")


@cache
def detector() -> SigmaDetector:
    return build("own", {"path": str(CONTENT)}, None)


def find(raws: Iterable[bytes], format: str) -> list[Finding]:
    """Run native records through the normaliser and the rules."""
    normaliser = Normaliser(detector().fields)
    found: list[Finding] = []
    state = State().transaction().view("own")
    rest = iter(raws)
    start = 0
    while block := list(islice(rest, 5_000)):
        chunk = Chunk("part", "file", format, range(start, start + len(block)), block)
        start += len(block)
        normalised = normaliser(Records("test", (chunk,), {}, AS_OF), {})
        found.extend(detector().detect(normalised.batch, state))
    return found


@cache
def trial() -> Trial:
    return Trial(read_files(CONTENT), AS_OF)


def cases() -> list[Any]:
    names = [path.relative_to(CONTENT).as_posix() for path in RULES]
    return [
        pytest.param(name, case, id=f"{Path(name).stem}: {case.what}")
        for name in names
        for case in read_cases(CONTENT, name)
    ]


def head(path: Path) -> Any:
    """Return the first document of a rule file: of a correlation with its rules, the outermost correlation."""
    return next(yaml.safe_load_all(path.read_text()))


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_all_rules_run() -> None:
    """None is refused, each has a log source that a mapping feeds."""
    plan = detector().plan()
    documents = [rule for path in RULES for rule in yaml.safe_load_all(path.read_text())]
    assert plan["rules"] == sum("detection" in one for one in documents) >= 69
    assert len(plan["correlations"]) == sum("correlation" in one for one in documents)
    correlated = Counter(path.parent.name for path in RULES if "correlation" in head(path))
    assert sum(correlated.values()) >= 46
    assert correlated.keys() >= {"azure", "gcp", "github", "kubernetes", "m365", "network", "okta"}
    assert (plan["refused"], plan["remarks"], plan["unfed"]["rules"]) == ([], [], 0)


def test_ids_and_titles_are_unique() -> None:
    """No two rules share an id or a title; an id is a random UUID."""
    rules = [rule for path in RULES for rule in yaml.safe_load_all(path.read_text())]
    for name in ("id", "title"):
        assert [text for text, count in Counter(rule[name] for rule in rules).items() if count > 1] == []
    assert {uuid.UUID(rule["id"]).version for rule in rules} == {4}


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_metadata(path: Path) -> None:
    """A rule says who wrote it, how grave it is, what to do and what else may cause it, and has tests."""
    rule = head(path)
    assert (rule["author"], rule["license"]) == ("Vedette", "Apache-2.0")
    assert rule["status"] in {"stable", "test", "experimental"}
    assert rule["level"] in {"informational", "low", "medium", "high", "critical"}
    assert len(rule["description"]) > 120
    assert len(rule["title"]) <= 100
    assert rule["falsepositives"]
    assert all(isinstance(text, str) for text in rule["falsepositives"])
    tests = json.loads(path.with_suffix(".test.json").read_text())
    assert tests["hits"]
    assert tests["misses"]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_techniques_are_shown(path: Path) -> None:
    """The alert's threat fields name every technique and tactic of the rule."""
    techniques, tactics = _tags(path)
    shown = json.dumps(threat(tuple(techniques), tuple(tactics)))
    assert all(f'"{technique}"' in shown for technique in techniques)


@needs_data
@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_techniques_are_real_and_under_their_tactic(path: Path) -> None:
    """Each technique is in force, every tactic tag has a technique under it, and every technique a tactic tag."""
    techniques, tactics = _tags(path)
    assert techniques
    by_id = _catalogue()
    of = {technique: set(by_id[technique]["tactics"].split(";")) for technique in techniques}
    assert [one for one in techniques if by_id[one]["revoked"] != "False" or by_id[one]["deprecated"] != "False"] == []
    assert [tactic for tactic in tactics if not any(tactic in under for under in of.values())] == []
    assert [technique for technique, under in of.items() if not under & set(tactics)] == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_regexes_are_linear(path: Path) -> None:
    """Every regular expression compiles in RE2, so its cost is linear in the text."""
    for value in re.findall(r"\|re: '(.*)'", path.read_text()):
        re2.compile(value.replace("''", "'"))


def _tags(path: Path) -> tuple[list[str], list[str]]:
    tags = [tag.removeprefix("attack.") for tag in head(path)["tags"]]
    techniques = [tag.upper() for tag in tags if re.fullmatch(r"t\d{4}(\.\d{3})?", tag)]
    return techniques, [tag for tag in tags if tag.upper() not in techniques]


@cache
def _catalogue() -> dict[str, dict[str, str]]:
    with gzip.open(DATA / "attack" / "techniques.csv.gz", "rt") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


# --- hits and near misses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), cases())
def test_hit_or_near_miss(name: str, case: Case) -> None:
    """The rule finds its hits and leaves its near misses alone."""
    assert trial().put(name, case).failure == ""


# --- ordinary logs ----------------------------------------------------------------------------------------------------


def _titles(found: Iterable[Finding]) -> dict[str, int]:
    return dict(Counter(finding.detector.title for finding in found))


@needs_data
def test_quiet_on_an_ordinary_web_site() -> None:
    """Ten thousand ordinary access lines: at most two alerts."""
    with gzip.open(DATA / "web" / "apache_access.log.gz") as file:
        found = find((line.rstrip(b"\r\n") for line in file), "access")
    assert len(found) <= 2, _titles(found)


@needs_data
def test_quiet_on_ordinary_cloudtrail() -> None:
    """Of 1,276 ordinary events only the deletion of a trail and what follows it is found, and the detonations are."""
    phases: dict[str, list[bytes]] = {}
    with tarfile.open(DATA / "cloudtrail" / "aws-dataset.tar.gz") as archive:
        labels = archive.extractfile("labels.csv")
        assert labels is not None
        phase = {row["eventID"]: row["phase"] for row in csv.DictReader(labels.read().decode().splitlines())}
        for member in archive:
            if member.name.endswith(".json"):
                stream = archive.extractfile(member)
                assert stream is not None
                for record in orjson.loads(stream.read())["Records"]:
                    record.pop("userAgent", None)
                    phases.setdefault(phase[record["eventID"]], []).append(orjson.dumps(record))
    ordinary = find(phases["other"] + phases["warmup_or_cleanup"], "cloudtrail")
    allowed = {"Audit trail stopped, deleted or narrowed", "Something destroyed after logging was stopped"}
    assert set(_titles(ordinary)) <= allowed
    assert len(ordinary) <= 2
    assert len(find(phases["detonation"], "cloudtrail")) >= 35


@needs_data
def test_payload_found_and_loud_neighbour_left_alone() -> None:
    """In the campaign the payload's access to LSASS is found, VBoxService's 228 accesses are not."""
    path = DATA / "mordor" / "lsass_campaign_01" / "metasploit_logonpasswords_lsass_memory_dump.zip"
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        lines = [line for line in file if b"lsass.exe" in line]
    found = find(lines, "json")
    by_source = Counter(orjson.loads(lines[int(finding.evidence[0].key)]).get("SourceImage", "") for finding in found)
    assert any(source.endswith("winx64_payload.exe") for source in by_source)
    assert not any(source.endswith("VBoxService.exe") for source in by_source)


@needs_data
def test_a_scan_from_inside_is_found_once() -> None:
    """Of a scan of 182 hosts there is one alert for its ports and one for its hosts; an ordinary network has none."""
    titles = [f"Many {what} tried within the network by one host" for what in ("ports", "hosts")]
    with tarfile.open(DATA / "zeek-labelled" / "zeek-labelled.tar.gz") as archive:
        stream = archive.extractfile("002-zeek-scenario-port-scanning/conn.log")
        assert stream is not None
        scan = _titles(find(stream.read().splitlines(), "json"))
    ordinary: list[bytes] = []
    for path in (DATA / "mordor" / "apt29").glob("*.zip"):
        with zipfile.ZipFile(path) as zipped:
            ordinary += [line for name in zipped.namelist() for line in zipped.read(name).splitlines()]
    assert len(ordinary) > 2_000
    assert [scan[title] for title in titles] == [1, 1]
    assert not _titles(find(ordinary, "json")).keys() & set(titles)


@needs_data
def test_services_made_on_many_hosts_in_a_competition() -> None:
    """Of what attackers and defenders did over RPC two hosts made services on three others, and no more are named."""
    with tarfile.open(DATA / "zeek-samples" / "zeek-wrccdc.tar.gz") as archive:
        stream = archive.extractfile("zeek-json/dce_rpc.json")
        assert stream is not None
        found = find(stream.read().splitlines(), "json")
    assert _titles(found)["Services or tasks made on several hosts over the network"] == 2
