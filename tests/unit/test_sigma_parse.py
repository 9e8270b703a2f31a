"""Reading Sigma collections: every document becomes a rule or a refusal that names its line."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from agent.errors import ConfigError
from rules.sigma import documents
from rules.sigma.parse import load
from tests.sigma_events import compiled, rule_text

GOOD = rule_text("{sel: {Image: a}, condition: sel}", id="11111111-1111-4111-8111-111111111111")


def refusals(*texts: str) -> list[str]:
    return compiled(*texts).refused


def test_a_rule_keeps_what_an_alert_must_say() -> None:
    """Author, level, tags and the rest cross from the rule unchanged."""
    text = rule_text(
        "{sel: {Image: a}, condition: sel}",
        author="A. Uthor",
        level="high",
        status="test",
        tags="[attack.t1003.001, attack.credential-access]",
        falsepositives="[backup]",
    )
    (rule,) = compiled(text).rules
    assert (rule.author, rule.level, rule.status) == ("A. Uthor", "high", "test")
    assert rule.tags == ("attack.t1003.001", "attack.credential-access")
    assert rule.false_positives == ("backup",)
    assert rule.place == "0.yml:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (rule_text("{sel: {Image: a}, condition: other}"), "0.yml:4:32: "),
        (rule_text("\n  sel:\n    Image|fancy: a\n  condition: sel\n"), "0.yml:6:11: Unknown modifier 'fancy'"),
        (
            rule_text("\n  sel:\n    Image|re: 'a(?=b)'\n  condition: sel\n"),
            "0.yml:6:16: Regular expression 'a(?=b)' is invalid",
        ),
        (
            rule_text("\n  sel:\n    User|expand: '%admins%'\n  condition: sel\n"),
            "0.yml:6:19: placeholder %admins% has no values here",
        ),
        (rule_text("\n  sel:\n    User|base64: 'a*'\n  condition: sel\n"), "Base64 encoding of strings with wildcards"),
        ("title: t\nlogsource: {product: windows}\n", "0.yml:1:1: not a Sigma rule: no detection"),
        ("title: t\ntitle: u\n", "0.yml:2:1: not valid YAML: key 'title' is given twice"),
        ("title: [\n", "0.yml:2:1: not valid YAML"),
        ("- a\n- b\n", "0.yml:1:1: not valid YAML: a rule is a mapping"),
        ("a: &a [x]\n? *a\n: b\n", "0.yml:1:1: not valid YAML"),
        ("title: t\ndetection: 3\nlogsource: {product: windows}\n", "0.yml:1:1: "),
        ("action: nonsense\ntitle: t\n", "unknown action 'nonsense'"),
        (rule_text("{sel: {A: 99999999999999999999}, condition: sel}"), "0.yml:4:13: not valid YAML: a number may"),
        (rule_text(f"{{sel: {{A: {'9' * 399}}}, condition: sel}}"), "0.yml:4:13: not valid YAML: a number may"),
        (rule_text("{sel: {A: .inf}, condition: sel}"), "must be finite; write it in quotes"),
    ],
)
def test_what_cannot_run_is_refused_with_its_line_and_reason(text: str, reason: str) -> None:
    """A refusal reads file:line:column: reason, and stops no other rule."""
    collection = compiled(text, GOOD)
    assert len(collection.rules) == 1
    assert len(collection.refused) == 1
    assert reason in collection.refused[0]


def test_the_line_of_a_later_document_is_its_own() -> None:
    """In a stream of documents the place is where the document begins."""
    second = GOOD.replace("title: Test rule", "title: Second").replace("111111111111", "111111111112")
    collection = compiled(f"{GOOD}---\n{second}")
    assert [rule.place for rule in collection.rules] == ["0.yml:1", "0.yml:8"]


def test_the_place_of_a_refusal_is_inside_its_own_document() -> None:
    """What is wrong is not looked for in the documents that follow, and rather as a word than inside one."""
    broken = "title: other\nlogsource: {product: windows}\ndetection: {condition: sel, s: {A: unselected}}\n"
    assert refusals(f"{broken}---\n# sel\n{GOOD}") == ["0.yml:3:24: Detection 'sel' not defined in detections"]
    untitled = rule_text("{sel: {Image: a}, condition: sel}").replace("title: Test rule\n", "")
    assert refusals(f"{untitled}---\n{GOOD}") == ["0.yml:1:1: Sigma rule must have a title"]
    assert refusals(f"title: x\n---\n{GOOD.replace('Test rule', 'detection')}") == [
        "0.yml:1:1: not a Sigma rule: no detection"
    ]


def test_a_global_document_is_part_of_those_that_follow() -> None:
    """``action: global`` merges into each rule of its file until ``reset``."""
    text = """
action: global
title: Shared
logsource: {product: windows}
detection:
  condition: sel
---
detection: {sel: {EventID: 1}}
---
logsource: {service: system}
detection: {sel: {EventID: 2}}
---
action: reset
---
detection: {sel: {EventID: 3}, condition: sel}
"""
    collection = compiled(text)
    assert [rule.logsource for rule in collection.rules] == [("windows", None, None), ("windows", None, "system")]
    assert collection.refused == ["0.yml:15:1: Sigma rule must have a title"]


def test_the_cache_gives_what_was_compiled(tmp_path: Path) -> None:
    """Rules and correlations of every type of value, read back; a file that was changed is not read."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yml").write_text(
        GOOD.replace("detection:", "tags: [attack.t1003]\nreferences: [a, b]\ndetection:")
        + "---\n"
        + rule_text("{sel: {A|gte: 1.5, B: [1, null, '\u263a'], C|re: 'x+'}, k: [v], condition: sel or k}")
        + "---\ntitle: c\ncorrelation: {type: event_count, rules: 11111111-1111-4111-8111-111111111111,"
        " group-by: [A, B], timespan: 5m, condition: {gte: 3, lt: 9}}\n"
    )
    compiled = load(tmp_path / "rules", tmp_path / "cache")
    assert (len(compiled.rules), len(compiled.correlations), compiled.refused) == (2, 1, [])
    (file,) = (tmp_path / "cache").iterdir()
    written = file.read_bytes()
    cached = load(tmp_path / "rules", tmp_path / "cache")
    assert cached == compiled
    assert repr(cached) == repr(compiled)
    file.write_bytes(written.replace(b"Test rule", b"Best rule"))
    assert load(tmp_path / "rules", tmp_path / "cache") == compiled
    assert file.read_bytes() == written


def test_two_rules_with_one_id_are_both_named() -> None:
    """The second is refused with the place of the first."""
    assert refusals(GOOD, GOOD) == [
        "1.yml:3:1: id 11111111-1111-4111-8111-111111111111 is taken by 0.yml:1",
    ]


def test_a_rule_without_id_gets_a_stable_one_and_it_is_said() -> None:
    """The id comes from the content, so it survives a move to another file."""
    text = rule_text("{sel: {Image: a}, condition: sel}")
    collection = compiled(GOOD, text)
    (alone,) = compiled(text).rules
    assert collection.rules[1].id == alone.id
    assert collection.remarks == [f"1.yml:1: rule without id, named {alone.id} after its content"]


def test_aliases_that_stand_for_billions_of_nodes_are_refused() -> None:
    """A small file cannot make the parser walk an exponential tree."""
    levels = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 30))
    (refusal,) = refusals(f"a0: &a0 [x, x]\n{levels}\n")
    assert "nodes" in refusal


def test_deep_nesting_is_refused_and_does_not_crash() -> None:
    """Ten thousand brackets are a refusal."""
    assert len(refusals("a: " + "[" * 10_000 + "]" * 10_000)) == 1


def test_folder_file_tar_and_zip_hold_the_same_rules(tmp_path: Path) -> None:
    """Each form of a collection gives the same rules under the same names."""
    folder = tmp_path / "rules"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "good.yml").write_text(GOOD)
    (folder / "notes.txt").write_text("not a rule")
    with tarfile.open(tmp_path / "rules.tar.gz", "w:gz") as archive:
        archive.add(folder, ".")
    with zipfile.ZipFile(tmp_path / "rules.zip", "w") as zipped:
        zipped.write(folder / "sub" / "good.yml", "sub/good.yml")
    for path in (folder, tmp_path / "rules.tar.gz", tmp_path / "rules.zip"):
        (rule,) = load(path).rules
        assert rule.place == "sub/good.yml:1"
    (rule,) = load(folder / "sub" / "good.yml").rules
    assert rule.place == "good.yml:1"


@pytest.mark.parametrize("name", ["absent", "empty", "broken.tar.gz", "broken.zip"])
def test_a_collection_that_cannot_be_read_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    """No rules is never silently no detection."""
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a.yml")
        member.size = 200_000
        archive.addfile(member, io.BytesIO(bytes(range(256)) * 782))
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "broken.tar.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "broken.zip").write_bytes(b"PK\x05\x06" + b"\xff" * 18)
    with pytest.raises(ConfigError):
        load(tmp_path / name)


def test_an_archive_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds hold for what comes out, not for what the archive weighs."""
    monkeypatch.setattr(documents, "MAX_TOTAL", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}.yml", "#" * 1_000)
    with pytest.raises(ConfigError, match="at most"):
        load(tmp_path / "bomb.zip")


def test_the_cache_gives_the_same_collection_and_notices_changes(tmp_path: Path) -> None:
    """A second load comes from the cache; a changed rule, or a damaged cache, is compiled again."""
    rules, cache = tmp_path / "rules", tmp_path / "cache"
    rules.mkdir()
    (rules / "a.yml").write_text(GOOD)
    (rules / "b.yml").write_text("title: [\n")
    first = load(rules, cache)
    (file,) = cache.iterdir()
    assert load(rules, cache) == first
    file.write_bytes(file.read_bytes().replace(b"Test rule", b"Evil rule"))
    assert load(rules, cache) == first
    file.write_bytes(b"")
    assert load(rules, cache) == first
    (rules / "a.yml").write_text(GOOD.replace("Test rule", "Another"))
    assert load(rules, cache).rules[0].title == "Another"


def test_a_link_laid_into_the_cache_leads_nowhere(tmp_path: Path) -> None:
    """Neither under the name of the cached file nor under one that it might have on the way."""
    rules, cache, victim = tmp_path / "rules", tmp_path / "cache", tmp_path / "victim"
    rules.mkdir()
    (rules / "a.yml").write_text(GOOD)
    load(rules, cache)
    (file,) = cache.iterdir()
    victim.write_text("precious")
    file.unlink()
    for name in (file.name, file.with_suffix(".new").name, f"{file.name}.new"):
        (cache / name).symlink_to(victim)
    load(rules, cache)
    assert victim.read_text() == "precious"
    assert not file.is_symlink()


def test_a_cached_collection_needs_no_sigma_parser(tmp_path: Path) -> None:
    """The warm start reads plain JSON: the slow parser is not even imported."""
    import subprocess
    import sys

    (tmp_path / "a.yml").write_text(GOOD)
    load(tmp_path / "a.yml", tmp_path / "cache")
    script = (
        "import sys; from pathlib import Path; from rules.sigma.parse import load;"
        f"assert load(Path({str(tmp_path / 'a.yml')!r}), Path({str(tmp_path / 'cache')!r})).rules;"
        "assert 'sigma' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
