"""The Sigma detector: options, findings that explain themselves, and a plan that hides nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.errors import ConfigError
from agent.model import Chunk, Kind, Records
from agent.normalise import Normaliser
from agent.normalise.clock import parse
from agent.ports import Detector
from agent.state import State
from rules.detector import SigmaDetector, build
from tests.sigma_events import WINDOWS, batch, rule_text

RULE = rule_text(
    """
  sel:
    Image|endswith: ['\\powershell.exe', '\\pwsh.exe']
    CommandLine|contains|all: [' -enc', 'hidden']
  filter:
    ParentImage|endswith: '\\agent.exe'
  condition: sel and not filter
""",
    id="11111111-1111-4111-8111-111111111111",
    level="high",
    author="A. Uthor",
    status="stable",
    tags="[attack.execution, attack.t1059.001, cve.2020-1, attack.defense_evasion]",
)
LOW = rule_text("{sel: {Image: a}, condition: sel}", id="22222222-2222-4222-8222-222222222222", level="low")
STATE = State().transaction().view("sigma")


def make(folder: Path, *texts: str, **options: Any) -> SigmaDetector:
    for number, text in enumerate(texts):
        (folder / f"{number}.yml").write_text(text)
    return build("sigma", {"path": str(folder), **options}, None)


EVENT = {
    "process.executable": "C:\\Windows\\PowerShell.exe",
    "process.command_line": "powershell -w hidden -ENC AAAA",
    "process.parent.executable": "C:\\cmd.exe",
}


def test_a_finding_says_which_values_hit_which_patterns(tmp_path: Path) -> None:
    """The factors name field, observed value and pattern; the sentence reads them out."""
    (finding,) = make(tmp_path, RULE).detect(batch([EVENT]), STATE)
    assert [(one.field, one.observed, one.expected) for one in finding.explanation.factors] == [
        ("process.executable", "C:\\Windows\\PowerShell.exe", 'ends with "\\powershell.exe"'),
        ("process.command_line", "powershell -w hidden -ENC AAAA", 'contains " -enc"'),
        ("process.command_line", "powershell -w hidden -ENC AAAA", 'contains "hidden"'),
    ]
    assert finding.explanation.sentence == (
        'Test rule: process.executable ends with "\\powershell.exe" and process.command_line contains " -enc"'
        ' and process.command_line contains "hidden".'
    )


def test_a_finding_points_at_its_row_and_record(tmp_path: Path) -> None:
    """Row, time and evidence are the event's; the rule's id is the detector's id."""
    events = batch([{"process.executable": "x"}, EVENT])
    (finding,) = make(tmp_path, RULE).detect(events, STATE)
    assert (finding.row, finding.time, finding.evidence) == (1, 1, (events.reference(1),))
    assert finding.detector.id == "11111111-1111-4111-8111-111111111111"
    assert (finding.key, finding.entity, finding.window) == ("", (), None)


def test_a_description_keeps_author_level_and_attack_tags(tmp_path: Path) -> None:
    """What the rule's licence and an alert need is there."""
    (finding,) = make(tmp_path, RULE).detect(batch([EVENT]), STATE)
    about = finding.detector
    assert (about.title, about.author, about.level, about.status) == ("Test rule", "A. Uthor", "high", "stable")
    assert (about.techniques, about.tactics) == (("T1059.001",), ("execution", "defense-evasion"))
    assert (about.kind, about.path, len(about.digest)) == ("rule", "0.yml:1", 32)


def test_constants_of_the_kind_explain_too(tmp_path: Path) -> None:
    """A folded field is still a reason."""
    rule = rule_text("{sel: {EventID: 1}, condition: sel}")
    (finding,) = make(tmp_path, rule).detect(batch([{"a": "b"}]), STATE)
    assert [(one.field, one.observed) for one in finding.explanation.factors] == [("event.code", "1")]


DENIED = (
    b"May 01 2024 11:00:00: %ASA-4-106023: Deny tcp src outside:198.51.100.9/4000 dst inside:10.0.0.5/22"
    b' by access-group "in"'
)


@pytest.mark.parametrize("type", ["connection", "denied"])
def test_a_constant_of_several_values_is_each_of_them(tmp_path: Path, type: str) -> None:
    """A refused connection is of the types connection and denied: a rule may ask for either."""
    rule = rule_text(f"{{sel: {{event.type: {type}}}, condition: sel}}", logsource="{product: cisco}")
    detector = make(tmp_path, rule)
    records = Records("s", (Chunk("p", "f", "syslog", [0], [DENIED]),), {}, parse("2024-05-01T12:00:00Z"))
    events = Normaliser(detector.fields)(records, {}).batch
    assert events.kinds[0].constant["event.type"] == ("denied", "connection")
    assert [one.row for one in detector.detect(events, STATE)] == [0]


def test_long_observed_values_are_cut_around_the_hit(tmp_path: Path) -> None:
    """The cut says how long the value was."""
    rule = rule_text("{k: [needle], condition: k}")
    (finding,) = make(tmp_path, rule).detect(batch([{"event.original": "x" * 9_000 + "needle" + "y" * 9_000}]), STATE)
    (factor,) = finding.explanation.factors
    assert "needle" in factor.observed
    assert len(factor.observed) < 600
    assert factor.observed.endswith("… (18006 characters)")


def test_absence_and_references_are_explained(tmp_path: Path) -> None:
    """Tests that are no text comparison have words of their own."""
    rule = rule_text("{sel: {F: null, A|fieldref: B, N|gt: 3, W: 'a*b?'}, condition: sel}")
    prefix = "winlog.event_data."
    event = {prefix + "A": "x", prefix + "B": "X", prefix + "N": "4", prefix + "W": "aXbc"}
    (finding,) = make(tmp_path, rule).detect(batch([event]), STATE)
    assert [one.expected for one in finding.explanation.factors] == [
        "is absent",
        f"is {prefix}B",
        '> "3"',
        'is like "a*b?"',
    ]


def test_the_detector_keeps_the_port_and_its_inputs(tmp_path: Path) -> None:
    """It is a Detector, changes nothing it is given and closes nothing with the watermark."""
    detector = make(tmp_path, RULE)
    events = batch([EVENT])
    before = copy.deepcopy({name: column.codes.tolist() for name, column in events.columns.items()})
    assert isinstance(detector, Detector)
    assert detector.detect(events, STATE) == detector.detect(events, STATE)
    assert {name: column.codes.tolist() for name, column in events.columns.items()} == before
    assert list(detector.advance(10**18, STATE)) == []
    assert detector.order == "set"


def test_rules_can_be_left_out_by_level_status_and_id(tmp_path: Path) -> None:
    """What is left out is counted by reason."""
    assert make(tmp_path, RULE, LOW, min_level="medium").plan()["left_out"] == {"below min_level": 1}
    assert make(tmp_path, status=["stable"]).plan()["left_out"] == {"other status": 1}
    plan = make(tmp_path, exclude=["22222222-2222-4222-8222-222222222222"]).plan()
    assert (plan["rules"], plan["left_out"]) == (1, {"excluded": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "option path is missing"),
        ({"path": "/x", "pth": 1}, "pth: unknown key"),
        ({"path": 3}, "path must be a str"),
        ({"path": "/x", "pipeline": [3]}, "pipeline must list files"),
        ({"path": "builtin", "pipeline": ["/does/not/exist"]}, "cannot read rules"),
        ({"path": "/x", "min_level": "loud"}, "min_level must be one of informational, low"),
        ({"path": "/does/not/exist"}, "cannot read rules"),
    ],
)
def test_wrong_options_are_configuration_errors(options: dict[str, Any], message: str) -> None:
    """Each names the option and what was expected."""
    with pytest.raises(ConfigError, match=message):
        build("sigma", options, None)


def test_the_plan_says_what_runs_what_does_not_and_what_it_costs(tmp_path: Path) -> None:
    """It is JSON-able and counts every rule once."""
    unfed = rule_text("{sel: {a: b}, condition: sel}", "{product: vax, service: vms}")
    keywords = rule_text("{k: [evil], condition: k}", "{product: linux}")
    detector = make(tmp_path, RULE, LOW, unfed, keywords, "title: broken\n")
    assert detector.fields(WINDOWS) == set(EVENT)
    detector.detect(batch([EVENT]), STATE)
    plan = orjson.loads(orjson.dumps(detector.plan()))
    assert plan["rules"] == 4
    assert plan["levels"] == {"high": 1, "low": 1, "medium": 2}
    assert plan["refused"] == ["4.yml:1:1: not a Sigma rule: no detection"]
    assert plan["unfed"] == {"rules": 1, "log_sources": {"product=vax service=vms": 1}}
    assert plan["costs"] == ["1 rules look for keywords: they add event.original to their log sources"]
    assert plan["kinds"][0]["rules"] == 2
    assert "CommandLine" in plan["fields"]


def test_the_plan_counts_the_rules_of_each_filter(tmp_path: Path) -> None:
    """A filter that is part of no rule shows as well."""
    text = "title: f\nlogsource: {product: windows}\nfilter: {rules: any, s: {A: x}, condition: not s}\n"
    plan = make(tmp_path, RULE, LOW, text, text.replace("windows", "vax").replace("title: f", "title: g")).plan()
    assert plan["filters"] == {"2.yml:1": 2, "3.yml:1": 0}
    assert plan["remarks"] == ["3.yml:1: filter for any rule of a log source that no rule here has"]


def test_a_kind_without_rules_wants_nothing(tmp_path: Path) -> None:
    """No interest, no field, no cost."""
    assert make(tmp_path, RULE).fields(Kind("cloudtrail", (("event.dataset", "aws.cloudtrail"),), {}, "aws.")) == set()


@pytest.mark.parametrize("digest", ["", "sha256:", "0" * 64, "sha256:" + "G" * 64])
def test_a_digest_that_is_none_is_refused(tmp_path: Path, digest: str) -> None:
    """An empty one would pin nothing and say that it does."""
    (tmp_path / "rule.yml").write_text(RULE)
    with pytest.raises(ConfigError, match="digest must be sha256"):
        build("rules", {"path": str(tmp_path), "digest": digest}, None)


def test_explanations_of_kinds_long_gone_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rules.detector._MOST_REASONS", 4)
    detector = make(tmp_path, RULE)
    for number in range(20):
        kind = Kind("windows", (*WINDOWS.constants, ("labels.site", str(number))), WINDOWS.renames, WINDOWS.prefix)
        (finding,) = detector.detect(batch([EVENT], kind), STATE)
        assert len(finding.explanation.factors) == 3
        assert len(detector._why) <= 4
