"""What lies beside rules and changes what they mean: filters, values of placeholders, processing pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError, TrustError
from rules.detector import build
from rules.sigma.engine import Engine
from rules.sigma.parse import Collection, load
from tests.sigma_events import batch, compiled, rule_text

FIRST, SECOND = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
PREFIX = "winlog.event_data."
RULE = rule_text("{sel: {F: bad}, condition: sel}", id=FIRST, name="first_rule")
OTHER = rule_text("{sel: {F: bad}, condition: sel}", id=SECOND).replace("Test rule", "Other")
EVENTS = [{PREFIX + "F": "bad"}, {PREFIX + "F": "bad", PREFIX + "U": "adm_x"}, {PREFIX + "U": "adm_x"}]


def filter_text(rules: str, body: str = "selection: {U|startswith: adm_}", **more: str) -> str:
    source = more.get("logsource", "{product: windows, category: process_creation}")
    condition = more.get("condition", "not selection")
    return (
        f"title: Administrators\nlogsource: {source}\nfilter:\n  rules: {rules}\n  {body}\n  condition: {condition}\n"
    )


def matched(collection: Collection, events: list[dict[str, Any]] = EVENTS) -> list[tuple[int, str]]:
    assert not collection.refused
    return [(row, rule.id) for row, rule in Engine(collection.rules).match(batch(events))]


@pytest.mark.parametrize("rules", [f"[{FIRST}]", FIRST, "first_rule", "[first_rule]"])
def test_a_filter_is_part_of_the_rules_that_it_names(rules: str) -> None:
    """By id or by name; its condition must hold as well, and other rules are as they were."""
    collection = compiled(filter_text(rules), RULE, OTHER)
    assert matched(collection) == [(0, FIRST), (0, SECOND), (1, SECOND)]
    assert collection.filters == {"0.yml:1": 1}
    assert [rule.filters for rule in collection.rules] == [("0.yml:1",), ()]


def test_a_filter_for_any_rule_is_for_those_of_its_log_source() -> None:
    """A log source that says less has those that say more."""
    assert matched(compiled(RULE, OTHER, filter_text("any"))) == [(0, FIRST), (0, SECOND)]
    assert matched(compiled(RULE, OTHER, filter_text("any", logsource="{product: windows}"))) == [
        (0, FIRST),
        (0, SECOND),
    ]
    elsewhere = compiled(RULE, filter_text("any", logsource="{product: linux}"))
    assert matched(elsewhere) == [(0, FIRST), (1, FIRST)]
    assert elsewhere.remarks == ["1.yml:1: filter for any rule of a log source that no rule here has"]


def test_several_filters_all_hold() -> None:
    """Each is folded in, with several selections and a condition of its own."""
    body = "selection_a: {F: x}\n  selection_b: {U: adm_x}"
    first = filter_text(FIRST, body, condition="not 1 of selection_*")
    second = filter_text(FIRST, "keep: {F: bad}", condition="keep and not keep").replace("Admin", "Second")
    assert matched(compiled(RULE, first)) == [(0, FIRST)]
    collection = compiled(RULE, first, second)
    assert matched(collection) == []
    assert collection.rules[0].filters == ("1.yml:1", "2.yml:1")


def test_a_filter_changes_the_digest_that_alerts_carry() -> None:
    """An alert says exactly which text made it, filters included."""
    plain, filtered, other = (
        compiled(RULE, *more).rules[0].digest
        for more in ([], [filter_text(FIRST)], [filter_text(FIRST, "selection: {U: x}")])
    )
    assert len({plain, filtered, other}) == 3
    assert compiled(RULE, filter_text(FIRST)).rules[0].id == FIRST


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        (filter_text(SECOND), f"filter for '{SECOND}', which is no rule here that can run"),
        (filter_text(FIRST, logsource="{product: linux}"), f"filter for '{FIRST}', which is of another log source"),
        (filter_text(FIRST, condition="selection"), "filter without 'not': its rules match only what it selects"),
    ],
)
def test_a_filter_that_may_not_do_what_it_should_is_remarked(text: str, remark: str) -> None:
    """Nothing is refused, and nothing is silent."""
    collection = compiled(RULE, text)
    assert not collection.refused
    assert [one for one in collection.remarks if one.startswith(f"1.yml:1: {remark}")]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("title: f\nlogsource: {product: windows}\nfilter: 3\n", "1.yml:3:1: filter must be a mapping"),
        (filter_text("[]"), "1.yml:4:3: filter.rules: expected any, or the ids or names of rules"),
        (filter_text("[3]"), "1.yml:4:3: filter.rules: expected any"),
        (filter_text(FIRST, condition="[a, b]"), "1.yml:6:3: filter.condition: expected one text"),
        (filter_text(FIRST, condition="nothing"), "1.yml:6:14: Detection 'nothing' not defined"),
        (filter_text(FIRST, "selection: {U|fancy: a}"), "1.yml:5:17: Unknown modifier 'fancy'"),
        (
            "title: f\nfilter: {rules: any, s: {A: b}, condition: not s}\n",
            "1.yml:1:1: Sigma rule must have a log source",
        ),
        (filter_text("any") + f"id: {FIRST}\n", f"1.yml:7:1: id {FIRST} is taken by 0.yml:1"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_with_its_place(text: str, refusal: str) -> None:
    """The rule beside it runs as if it were not there."""
    collection = compiled(RULE, text)
    (found,) = collection.refused
    assert found.startswith(refusal)
    assert len(collection.rules) == 1


# --- placeholders -----------------------------------------------------------------------------------------------------

EXPAND = rule_text("{sel: {U|expand: '%admins%'}, condition: sel}", id=FIRST)


def test_a_placeholder_stands_for_the_values_given_beside_the_rules() -> None:
    """Values may have wildcards, are combined with the text around them, and keep the other modifiers."""
    beside = "placeholders:\n  admins: [root, adm_*, 7]\n  of: [x]\n"
    events = [{PREFIX + "U": value} for value in ["ROOT", "adm_1", "7", "x", "%admins%"]]
    assert [row for row, _ in matched(compiled(EXPAND, beside), events)] == [0, 1, 2]
    pairs = rule_text("{sel: {U|contains|cased|expand: '-%admins%.%of%'}, condition: sel}", id=FIRST)
    events = [{PREFIX + "U": value} for value in ["a-root.xb", "a-ROOT.xb", "-adm_z.x", "root.x"]]
    assert [row for row, _ in matched(compiled(pairs, beside), events)] == [0, 2]


def test_the_values_of_placeholders_are_part_of_the_rules_digest() -> None:
    """Other values make another rule; values that a rule does not use do not."""
    digests = [
        compiled(EXPAND, f"placeholders: {{admins: {admins}, b: {b}}}\n").rules[0].digest
        for admins, b in (("[x]", "[x]"), ("[y]", "[x]"), ("[x]", "[y]"))
    ]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("beside", "refusal"),
    [
        ("placeholders: {b: [x]}\n", "0.yml:5:21: placeholder %admins% has no values here"),
        ("placeholders: [x]\n", "1.yml:1:1: placeholders must map names to lists of values"),
        ("placeholders:\n  admins: []\n", "1.yml:2:3: placeholders: 'admins' must have 1 to 1000 values"),
        ("placeholders:\n  admins: [{a: b}]\n", "1.yml:2:3: placeholders: 'admins' must have 1 to 1000 values"),
        (
            "placeholders: {admins: x}\n---\nplaceholders: {admins: y}\n",
            "1.yml:3:16: placeholder 'admins' is given twice",
        ),
    ],
)
def test_placeholders_without_fit_values_are_refused(beside: str, refusal: str) -> None:
    """A rule is never run with a placeholder taken literally."""
    assert [one for one in compiled(EXPAND, beside).refused if one.startswith(refusal)]


# --- pipelines --------------------------------------------------------------------------------------------------------

MAPPING = """
name: ours
priority: 20
transformations:
- id: names
  type: field_name_mapping
  mapping: {U: user.name}
"""


def test_a_pipeline_changes_the_rules_before_they_are_compiled(tmp_path: Path) -> None:
    """Names, values and conditions; of two pipelines the one of lower priority comes first."""
    (tmp_path / "rule.yml").write_text(EXPAND)
    (tmp_path / "ours.yml").write_text(MAPPING)
    early = (
        "priority: 10\nvars: {admins: [root]}\ntransformations:\n- type: value_placeholders\n"
        "- type: field_name_mapping\n  mapping: {U: V}\n"
    )
    (tmp_path / "early.yml").write_text(early)
    options = {
        "path": str(tmp_path / "rule.yml"),
        "pipeline": [str(tmp_path / "ours.yml"), str(tmp_path / "early.yml")],
    }
    detector = build("rules", options, None)
    assert detector._engine.rules[0].condition == ["is", "V", "equals", ["root"]]
    alone = load(tmp_path / "rule.yml", None, "", [tmp_path / "early.yml"])
    ours = rule_text("{sel: {U: root}, condition: sel}", id=FIRST)
    (tmp_path / "rule.yml").write_text(ours)
    named = load(tmp_path / "rule.yml", None, "", [tmp_path / "ours.yml"])
    assert matched(named, [{"user.name": "root"}, {PREFIX + "U": "root"}]) == [(0, FIRST)]
    assert alone.rules[0].digest != named.rules[0].digest != load(tmp_path / "rule.yml").rules[0].digest


def test_a_pipeline_is_part_of_the_content_digest_and_of_the_cache(tmp_path: Path) -> None:
    """Other pipeline, other content: a pinned digest refuses it, and the cache does not serve the old rules."""
    rule, pipeline = tmp_path / "rule.yml", tmp_path / "ours.yml"
    rule.write_text(rule_text("{sel: {U: root}, condition: sel}", id=FIRST))
    pipeline.write_text(MAPPING)
    first = load(rule, tmp_path / "cache", "", [pipeline])
    assert load(rule, tmp_path / "cache", first.content, [pipeline]) == first
    pipeline.write_text(MAPPING.replace("user.name", "user.id"))
    with pytest.raises(TrustError, match="expected the rules"):
        load(rule, tmp_path / "cache", first.content, [pipeline])
    assert load(rule, tmp_path / "cache", "", [pipeline]).rules[0].condition[1] == "user.id"
    assert load(rule, tmp_path / "cache").rules[0].condition[1] == "U"


def test_a_pipeline_beside_our_own_rules_must_be_pinned(tmp_path: Path) -> None:
    """Rules that come with Vedette are what the signature says only as long as nothing changes them."""
    (tmp_path / "ours.yml").write_text(MAPPING)
    pipeline = [str(tmp_path / "ours.yml")]
    assert build("rules", {"path": "builtin", "pipeline": pipeline}, None).unpinned.startswith("sha256:")
    with pytest.raises(ConfigError, match="put it into the pack"):
        build("rules", {"path": str(tmp_path), "pack": "p", "pipeline": pipeline}, None)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (
            "transformations:\n- {type: command_placeholders, command: id}\n",
            "1.yml:2:10: pipeline: command_placeholders runs",
        ),
        (
            "transformations:\n- type: nest\n  items: [{type: http_placeholders}]\n",
            "1.yml:3:18: pipeline: http_placeholders",
        ),
        (
            "transformations:\n- {type: file_placeholders, path: x}\n",
            "1.yml:2:10: pipeline: file_placeholders reads a file",
        ),
        ("transformations:\n- {type: nonsense}\n", "1.yml:1:1: not a valid pipeline: "),
        ("transformations: 3\n", "1.yml:1:1: not a valid pipeline: "),
        ("transformations:\n- {type: rule_failure, message: no}\n", "0.yml:"),
    ],
)
def test_a_pipeline_that_cannot_or_must_not_run_is_refused(text: str, refusal: str) -> None:
    """It never runs a command, reads another file or asks a server; what it refuses is refused."""
    assert [one for one in compiled(RULE, text).refused if one.startswith(refusal)]


def test_what_a_pipeline_says_of_queries_is_remarked() -> None:
    """There is no query text here to work on."""
    text = MAPPING + "postprocessing:\n- type: embed\n  prefix: x\n"
    assert (
        "2.yml:2: pipeline: postprocessing is about the text of queries and has no meaning here"
        in compiled(RULE, OTHER, text).remarks
    )
