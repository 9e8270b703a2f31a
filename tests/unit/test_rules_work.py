"""`vedette rules check`, `test` and `explain`: all that is wrong with a rule at once, and why it fires or does not."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

from rules.lint import CHECKS, lint
from tests.rule_work import OTHER_ID, RULE_ID, Shell, process, rule, shell, write_log
from tests.signing import pem

EVIL = "{sel: {CommandLine|contains: evil}, condition: sel}"
HOSTS = """\
title: Hosts
id: 33333333-3333-4333-8333-333333333333
description: Two of them on one host.
level: high
correlation: {type: event_count, rules: [evil], group-by: [Hostname], timespan: 1h, condition: {gte: 2}}
"""

FILTER = f"""\
title: Our own host
id: 55555555-5555-4555-8555-555555555555
description: It does so every night.
logsource: {{product: windows, category: process_creation}}
filter: {{rules: [{RULE_ID}], own: {{Hostname: host1}}, condition: not own}}
"""


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    return shell(capsys, monkeypatch, tmp_path)


def problems(*texts: str) -> list[tuple[str, str]]:
    """Return place and check of all that is wrong with the files ``0.yml``, ``1.yml``, ..."""
    return [(one.place, one.check) for one in lint([(f"{n}.yml", text.encode()) for n, text in enumerate(texts)])]


# --- check ------------------------------------------------------------------------------------------------------------


def test_a_good_rule_has_no_problem() -> None:
    assert problems(rule(EVIL, tags="[attack.execution, attack.t1059.001, attack.s0002, car.2016-03-001]")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (rule(EVIL).replace("description: What it finds.\n", ""), [("0.yml:1:1", "missing")]),
        (rule(EVIL).replace("level: high\n", ""), [("0.yml:1:1", "missing")]),
        (rule(EVIL).replace(f"id: {RULE_ID}\n", ""), [("0.yml:1:1", "missing")]),
        (rule(EVIL, levle="high"), [("0.yml:6:1", "key")]),
        (rule(EVIL, logsource="{product: windows, servcie: security}"), [("0.yml:4:31", "key")]),
        (rule(EVIL, tags="[attack.execution, attack.t0000]"), [("0.yml:6:26", "tag")]),
        (rule(EVIL, tags="\n  - attack.exekution"), [("0.yml:7:5", "tag")]),
        (rule(EVIL, logsource="{product: toaster}"), [("0.yml:4:1", "log-source")]),
        (rule("{sel: {a: 1}, condition: other}"), [("0.yml:7:28", "refused")]),
        ("title: [", [("0.yml:2:1", "refused")]),
        (
            rule("{sel: {user.nmae: x}, condition: sel}", logsource="{product: linux, service: sshd}"),
            [("0.yml:7:10", "field")],
        ),
        (rule("{sel: {source.ipp: x}, condition: sel}", logsource="{category: webserver}"), [("0.yml:7:10", "field")]),
    ],
)
def test_each_check_names_the_place(text: str, found: list[tuple[str, str]]) -> None:
    """Line and column of the key, or of the document where something is missing."""
    assert problems(text) == found


@pytest.mark.parametrize(
    ("field", "logsource"),
    [
        ("cs-method", "{category: webserver}"),
        ("user.name", "{product: linux, service: sshd}"),
        ("source.ip", "{product: linux, service: sshd}"),
        ("TargetUserName", "{product: windows, service: security}"),
        ("requestParameters.anything", "{product: aws, service: cloudtrail}"),
    ],
)
def test_fields_that_a_mapping_may_write_are_no_problem(field: str, logsource: str) -> None:
    assert problems(rule(f"{{sel: {{{field}: x}}, condition: sel}}", logsource=logsource)) == []


def test_what_is_given_twice_is_named_with_the_first_place() -> None:
    found = lint([("a.yml", rule(EVIL).encode()), ("b.yml", rule(EVIL).encode())])
    assert [(one.place, one.check) for one in found] == [("b.yml:1:1", "title"), ("b.yml:2:1", "refused")]
    assert "a.yml:1" in found[0].reason
    assert "a.yml:1" in found[1].reason


def test_a_correlation_of_unknown_rules_is_refused() -> None:
    assert [check for _, check in problems(HOSTS)] == ["refused"]
    assert problems(HOSTS, rule(EVIL, name="evil")) == []


def test_filters_and_placeholders_are_no_rules_and_what_they_miss_is_named() -> None:
    """A filter needs no level; one for a rule that is not there is a remark, at its place."""
    beside = "placeholders: {words: [evil]}\n"
    assert problems(rule(EVIL), FILTER, beside) == []
    assert problems(rule(EVIL, OTHER_ID), FILTER) == [("1.yml:1:1", "remark")]


def test_check_prints_all_at_once_and_leaves_out_what_is_not_wanted(sh: Shell, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "a.yml").write_text(rule(EVIL, levle="high", tags="[attack.t0000]"))
    code, out, _ = sh("check", rules)
    assert code == 1
    assert "a.yml:6:1: key: unknown key levle; did you mean level\n" in out
    assert "a.yml:7:8: tag: attack.t0000: " in out
    code, out, _ = sh("check", rules, "--leave-out", "tag", "--json")
    assert code == 1
    (one,) = map(json.loads, out.splitlines())
    assert (one["path"], one["line"], one["column"], one["check"]) == ("a.yml", 6, 1, "key")
    assert sh("check", rules, "--leave-out", "tag", "--leave-out", "key")[0] == 0
    assert sh("check", rules, "--leave-out", "spelling")[0] == 2
    assert sh("check", tmp_path / "absent")[0] == 3


def test_our_own_rules_have_no_problem(sh: Shell) -> None:
    code, out, _ = sh("check", "builtin")
    assert (code, out.partition(": ")[2]) == (0, "nothing wrong\n")


def test_the_help_names_every_check(sh: Shell) -> None:
    _, out, _ = sh("check", "--help")
    assert all(name in out for name in CHECKS)


# --- test -------------------------------------------------------------------------------------------------------------


def cases(folder: Path, name: str, hits: list[object], misses: list[object], **more: str) -> None:
    both = {kind: [{"what": "x", **({"events": one} if isinstance(one, list) else {"event": one})} for one in events]
            for kind, events in (("hits", hits), ("misses", misses))}  # fmt: skip
    (folder / f"{name}.test.json").write_text(json.dumps({"format": "json", **both, **more}))


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A folder with one rule and a hit and a near miss of it."""
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "evil.yml").write_text(rule(EVIL, name="evil"))
    cases(folder, "evil", [process("some evil thing")], [process("good")])
    return folder


def test_cases_that_hold_are_silent(sh: Shell, rules: Path) -> None:
    assert sh("test", rules)[:2] == (0, "2 checks, 0 failed; 1 rule files, 0 without cases\n")


def test_a_case_that_fails_is_a_line_that_says_why(sh: Shell, rules: Path, tmp_path: Path) -> None:
    """What the missed event had instead, and what the found one had; and the same as JUnit XML."""
    cases(rules, "evil", [process("good")], [process("some evil thing")])
    code, out, _ = sh("test", rules, "--junit", tmp_path / "junit.xml")
    hit, miss, _ = out.splitlines()
    assert code == 1
    assert hit.startswith("evil.yml: hit: x: condition 'sel'; does not hold: sel: CommandLine (process.command_line) ")
    assert hit.endswith("contains \"evil\"; seen: 'good'")
    assert miss == 'evil.yml: near miss: x: A rule: process.command_line contains "evil".'
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    assert [one.get("message") for one in suite.iter("failure")] == [line.split(": x: ")[1] for line in (hit, miss)]


def test_what_xml_cannot_hold_does_not_break_the_report(sh: Shell, rules: Path, tmp_path: Path) -> None:
    """An event's own control characters and noncharacters."""
    cases(rules, "evil", [process("good \x00\x1b[2J\ufffe\U0001f600 <&>")], [])
    assert sh("test", rules, "--junit", tmp_path / "junit.xml")[0] == 1
    (failure,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("failure")
    assert "\U0001f600 <&>" in str(failure.get("message"))


def test_a_miss_of_another_log_source_says_so(sh: Shell, rules: Path) -> None:
    cases(rules, "evil", [process("evil", EventID=3)], [])
    code, out, _ = sh("test", rules)
    assert code == 1
    assert "not of the log source windows process_creation: " in out
    assert "event.code is \"1\"; seen: '3'" in out


def test_an_event_that_cannot_be_read_fails_its_case_alone(sh: Shell, rules: Path) -> None:
    cases(rules, "evil", ["{evil", process("evil")], [])
    code, out, _ = sh("test", rules)
    assert code == 1
    assert out.count("\n") == 2
    assert "evil.yml: hit: x: the event cannot be read as json: " in out


def test_a_rule_that_cannot_run_fails(sh: Shell, rules: Path) -> None:
    (rules / "broken.yml").write_text(rule("{sel: {a: 1}, condition: other}", OTHER_ID))
    code, out, _ = sh("test", rules)
    assert code == 1
    assert "collection: can run: broken.yml:" in out


def test_correlations_take_several_events(sh: Shell, rules: Path) -> None:
    """And the rule that is silent but for the correlation is still put to its own cases."""
    (rules / "hosts.yml").write_text(HOSTS)
    cases(rules, "hosts", [[process("evil"), process("evil")]], [[process("evil"), process("evil", Hostname="b")]])
    assert sh("test", rules)[:2] == (0, "4 checks, 0 failed; 2 rule files, 0 without cases\n")
    cases(rules, "hosts", [[process("evil")]], [])
    code, out, _ = sh("test", rules)
    assert code == 1
    assert "hosts.yml: hit: x: a correlation that these 1 events do not fulfil" in out


def test_a_folder_of_logs_by_rule_id(sh: Shell, rules: Path, tmp_path: Path) -> None:
    """Each file among the hits must have a match, none among the misses may."""
    events = tmp_path / "events"
    write_log(events / RULE_ID / "hits" / "a.json", process("good"), process("evil"))
    write_log(events / RULE_ID / "misses" / "b.json", process("good"))
    assert sh("test", rules, "--events", events)[:2] == (0, "4 checks, 0 failed; 1 rule files, 0 without cases\n")
    write_log(events / RULE_ID / "misses" / "b.json", process("evil"), process("evil"))
    write_log(events / RULE_ID / "hits" / "a.json", process("good"))
    (events / OTHER_ID).mkdir()
    code, out, _ = sh("test", rules, "--events", events, "--json")
    failed = [one["failure"] for one in map(json.loads, out.splitlines()) if one["failure"]]
    assert code == 1
    assert [text.split(" in ")[0].removeprefix(str(events / OTHER_ID)) for text in failed] == [
        "no matches", "2 matches", " is named after the id of no rule that can run"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"hits": []}', '{"format": "json", "hit": []}', '{"format": "json", "hits": [{"event": 1}]}']
)
def test_wrong_files_of_cases_are_named(sh: Shell, rules: Path, text: str) -> None:
    (rules / "evil.test.json").write_text(text)
    code, _, err = sh("test", rules)
    assert code == 3
    assert "evil.test.json" in err


# --- explain ----------------------------------------------------------------------------------------------------------

FILTERED = (
    "{sel: {CommandLine|contains: [evil, bad], Image|endswith: a.exe}, filter: {Hostname: host1},"
    " condition: sel and not filter}"
)


def test_explain_shows_each_selection_and_test(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "rule.yml").write_text(rule(FILTERED))
    (tmp_path / "event.json").write_text(json.dumps(process("so evil"), indent=1))
    code, out, _ = sh("explain", tmp_path / "rule.yml", tmp_path / "event.json")
    assert code == 1
    assert out.splitlines() == [
        f"A rule ({RULE_ID}): does not match",
        "  log source windows process_creation: true",
        "  condition sel and not filter: false",
        "    sel: true",
        "      true: all of",
        "        true: CommandLine (process.command_line) contains \"evil\"; seen: 'so evil'",
        "        true: Image (process.executable) ends with \"a.exe\"; seen: 'C:\\\\a.exe'",
        "    filter: true",
        "      true: Hostname (winlog.computer_name) is \"host1\"; seen: 'host1'",
    ]


def test_explain_names_the_log_source_that_does_not_fit(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "rule.yml").write_text(
        rule("{sel: {Image|endswith: a.exe}, filter: {Hostname: host1}, condition: sel and not filter}")
    )
    (tmp_path / "event.json").write_text(json.dumps(process("evil", EventID=11, Hostname="b")))
    code, out, _ = sh("explain", tmp_path / "rule.yml", tmp_path / "event.json", "--json")
    (said,) = map(json.loads, out.splitlines())
    assert code == 1
    assert said["log_source"]["holds"] is False
    assert {name: test["holds"] for name, test in said["selections"].items()} == {"sel": True, "filter": False}
    assert "event.code" in said["why_not"]


def test_explain_shows_filters_and_values_that_lie_beside_the_rule(sh: Shell, tmp_path: Path) -> None:
    """A filter of the same collection, and what a placeholder stands for; the condition itself holds."""
    text = "---\n".join(
        [
            rule("{sel: {CommandLine|contains|expand: '%words%'}, condition: sel}"),
            FILTER,
            "placeholders: {words: [evil, bad]}\n",
        ]
    )
    (tmp_path / "rule.yml").write_text(text)
    (tmp_path / "event.json").write_text(json.dumps(process("so bad")))
    code, out, _ = sh("explain", tmp_path / "rule.yml", tmp_path / "event.json")
    assert code == 1
    assert "  condition sel: true\n" in out
    assert "      true: CommandLine (process.command_line) contains \"bad\"; seen: 'so bad'\n" in out
    filtered = out.partition("  filter rule.yml:9: false\n")[2]
    assert "true: Hostname (winlog.computer_name) is \"host1\"; seen: 'host1'" in filtered
    _, out, _ = sh("explain", tmp_path / "rule.yml", tmp_path / "event.json", "--json")
    assert json.loads(out)["why_not"].startswith("left out by the filter at rule.yml:9: Hostname")


def test_explain_takes_an_id_and_standard_input(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of ours by its id, a line of text as the event: a match is exit code 0."""
    found = Path(__file__).parents[2] / "rules" / "content" / "linux"
    test = json.loads((found / "sudo_refused.test.json").read_text())
    id = next(line[4:] for line in (found / "sudo_refused.yml").read_text().splitlines() if line.startswith("id: "))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(test["hits"][0]["event"].encode() + b"\n")))
    code, out, err = sh("explain", id, "-")
    assert (code, err) == (0, "")
    assert f"({id}): matches" in out


def test_a_rule_of_the_configuration_is_read_with_its_collection(sh: Shell, rules: Path, tmp_path: Path) -> None:
    """By its id: a filter that lies beside it in another file counts."""
    (rules / "filter.yml").write_text(FILTER)
    (tmp_path / "event.json").write_text(json.dumps(process("evil")))
    root = {"root": {"roles": ["admin"], "key": pem("root")}}
    (tmp_path / "bootstrap.yml").write_text(yaml.safe_dump({"data": "data", "trust_root": root}))
    (tmp_path / "vedette.yml").write_text(
        f"revision: 1\nsources: {{logs: {{type: files, paths: [{tmp_path}]}}}}\n"
        f"detectors: {{theirs: {{type: sigma, path: {rules}}}}}\n"
        "streams: {a: {source: logs, detectors: [theirs]}}\n"
    )
    code, out, err = sh("explain", RULE_ID, tmp_path / "event.json")
    assert (code, err) == (1, "")
    assert "condition sel: true" in out
    assert re.search(r"filter \S*filter.yml:1: false", out)
    assert sh("explain", rules / "evil.yml", tmp_path / "event.json")[0] == 0
    assert sh("explain", OTHER_ID, tmp_path / "event.json")[0] == 1


def test_keywords_are_shown_where_they_are_sought(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "rule.yml").write_text(rule("{keywords: [nothing, evil], condition: keywords}"))
    (tmp_path / "event.json").write_text(json.dumps(process("so evil")))
    code, out, _ = sh("explain", tmp_path / "rule.yml", tmp_path / "event.json")
    assert code == 0
    assert 'true: keywords (event.original) contains "evil"' in out


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("b.json", ""), ("absent", None)])
def test_events_that_cannot_be_read_are_a_configuration_error(
    sh: Shell, tmp_path: Path, name: str, text: str | None
) -> None:
    (tmp_path / "rule.yml").write_text(rule(EVIL))
    if text is not None:
        (tmp_path / name).write_text(text)
    code, _, err = sh("explain", tmp_path / "rule.yml", tmp_path / name)
    assert code == 3
    assert name in err


def test_rules_that_are_not_there_or_cannot_run_are_named(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text("{}")
    (tmp_path / "broken.yml").write_text(rule("{sel: {a: 1}, condition: other}"))
    (tmp_path / "hosts.yml").write_text(HOSTS.replace("[evil]", f"[{RULE_ID}]") + "---\n" + rule(EVIL))
    code, _, err = sh("explain", OTHER_ID, tmp_path / "event.json")
    assert (code, OTHER_ID in err) == (1, True)
    code, _, err = sh("explain", tmp_path / "broken.yml", tmp_path / "event.json")
    assert (code, "broken.yml" in err) == (3, True)
    assert sh("explain", tmp_path / "hosts.yml", tmp_path / "event.json")[0] == 1


# --- pipelines that lie elsewhere -------------------------------------------------------------------------------------

THEIRS = """\
name: theirs
priority: 10
vars: {words: [evil, bad]}
transformations:
  - {id: names, type: field_name_mapping, mapping: {Command: CommandLine}}
  - {id: words, type: value_placeholders, include: [words]}
  - {id: source, type: change_logsource, product: windows, category: process_creation}
"""
THEIR_RULE = rule(
    "{sel: {Command|contains|expand: '%words%'}, condition: sel}",
    name="evil",
    tags="[attack.t1003]",
    logsource="{product: theirs}",
)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with a rule that needs a pipeline, which lies elsewhere; and all that commands take."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "rule.yml").write_text(THEIR_RULE)
    cases(folder, "rule", [process("so evil"), process("so bad")], [process("good")])
    (tmp_path / "pipeline.yml").write_text(THEIRS)
    (tmp_path / "count.yml").write_text(f"{THEIR_RULE}---\n{HOSTS}")
    (tmp_path / "wanted.txt").write_text("T1003\n")
    (tmp_path / "ours.yml").write_text(rule("{sel: {CommandLine|contains: [evil, bad]}, condition: sel}"))
    (tmp_path / "expected.yml").write_text(f"{RULE_ID}: 2\n")
    write_log(tmp_path / "log.json", process("evil 1"), process("bad 2"))
    write_log(tmp_path / "event.json", process("evil"))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "check theirs",
        "test theirs",
        "explain theirs/rule.yml event.json",
        "explain count.yml log.json",
        "coverage theirs --techniques wanted.txt",
        "coverage theirs log.json --techniques wanted.txt",
        "diff theirs ours.yml log.json",
        "backtest theirs log.json --expect expected.yml",
    ],
)
def test_pipelines_that_lie_elsewhere_are_read_as_if_beside_the_rules(
    sh: Shell, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """By every command alike: without them the rule is refused, and with them all is well."""
    monkeypatch.chdir(tmp_path)
    assert sh(*words.split())[0] in (1, 3)
    code, _, err = sh(*words.split(), "--pipeline", "pipeline.yml")
    assert (code, err) == (0, "")
    assert sh(*words.split(), "--pipeline", "absent.yml")[0] == 3


def test_pipelines_may_be_several_and_their_faults_are_named(sh: Shell, theirs: Path, tmp_path: Path) -> None:
    """By their number, as `vedette plan` names those of the configuration; they are no rules without cases."""
    first, second = tmp_path / "first.yml", tmp_path / "second.yml"
    *head, names, words, source = THEIRS.splitlines(keepends=True)
    first.write_text("".join([*head, words]))
    second.write_text("".join(["name: more\npriority: 20\ntransformations:\n", names, source]))
    said = "3 checks, 0 failed; 1 rule files, 0 without cases\n"
    assert sh("test", theirs, "--pipeline", first, "--pipeline", second)[:2] == (0, said)
    second.write_text("name: more\ntransformations: [{type: nonsense}]\n")
    code, out, _ = sh("check", theirs, "--pipeline", first, "--pipeline", second)
    assert (code, "pipeline 2/second.yml:2:1: refused: not a valid pipeline" in out) == (1, True)


def test_explain_puts_pipelines_beside_a_rule_of_the_configuration(sh: Shell, theirs: Path, tmp_path: Path) -> None:
    root = {"root": {"roles": ["admin"], "key": pem("root")}}
    (tmp_path / "bootstrap.yml").write_text(yaml.safe_dump({"data": "data", "trust_root": root}))
    (tmp_path / "count.yml").rename(theirs / "rule.yml")
    (tmp_path / "vedette.yml").write_text(
        f"revision: 1\nsources: {{logs: {{type: files, paths: [{tmp_path}]}}}}\n"
        f"detectors: {{theirs: {{type: sigma, path: {theirs}}}}}\n"
        "streams: {a: {source: logs, detectors: [theirs]}}\n"
    )
    hosts = "33333333-3333-4333-8333-333333333333"
    for id, log in ((RULE_ID, "event.json"), (hosts, "log.json")):
        assert sh("explain", id, tmp_path / log)[0] == 1
        assert sh("explain", id, tmp_path / log, "--pipeline", tmp_path / "pipeline.yml")[0] == 0
