"""`vedette normalise`: what came of each record, what is outside ECS, and drafts that read their own samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from agent.cli import app
from agent.errors import ConfigError
from agent.normalise import Normaliser
from agent.normalise.draft import draft
from agent.normalise.mapping import installed, parse, shipped

DOORS = ["gate7 opened door 4 for ann", "gate7 opened door 5 for bob", "gate7 refused door 5 for \x1b[31mbob"]
PAIRS = ["acme: user=ann src=192.0.2.1 door=4 ts=1704164645", "acme: user=bob src=192.0.2.2 door=5 ts=1704164646"]
OBJECTS = [
    {"kind": "door", "ts": "2024-01-02T03:04:05Z", "actor": {"login": "ann"}, "src_ip": "192.0.2.1", "odd (name)": 1},
    {"kind": "door", "ts": "2024-01-02T03:04:06Z", "actor": {"login": "bob"}, "src_ip": "192.0.2.2"},
]
OWN = "mapping: {name}\nformat: json\nshapes: {{record: {{when: [door]}}}}\nkinds: [{{renames: {{by: user.name}}}}]\n"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["normalise", *map(str, words)], catch_exceptions=False)


def written(folder: Path, name: str, records: list[Any]) -> Path:
    path = folder / name
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
    return path


def test_each_record_is_shown_with_what_came_of_it(tmp_path: Path) -> None:
    """Each record has its place, time, mapping and main fields; sums follow, and the names outside ECS."""
    path = written(
        tmp_path, "auth.log", ["Jan  2 03:04:05 host sshd[7]: Failed password for root from 192.0.2.1 port 22"]
    )
    result = run(path)
    assert result.exit_code == 0
    first, *rest = result.stdout.splitlines()
    assert first.startswith("auth.log:0  ")
    assert "linux  event.category=authentication event.type=info event.outcome=failure" in first
    assert "source.ip=192.0.2.1" in first
    assert any("system.auth.ssh.event" in line for line in rest)
    assert "1 records: 1 mapped, 0 unmapped, 0 unreadable, 0 untimed" in rest


def test_what_is_unmapped_or_unreadable_is_said_and_fails_the_check(tmp_path: Path) -> None:
    """Reasons stand beside the records, nothing hostile reaches the terminal, and the exit code is 1."""
    path = written(tmp_path, "a.json", [{"door": "\x1b[31m"}, "{broken"])
    result = run(path)
    assert result.exit_code == 1
    assert "a.json:0  no time  json (unmapped)" in result.stdout
    assert "unreadable: not JSON" in result.stdout
    assert "2 records: 0 mapped, 1 unmapped, 1 unreadable, 1 untimed" in result.stdout
    assert "\x1b" not in result.stdout


def test_json_holds_documents_and_errors(tmp_path: Path) -> None:
    """Machines get one object a record: the document, the names outside ECS, or the error."""
    path = written(tmp_path, "a.json", [{"src_ip": "192.0.2.1", "door": 4}, "{broken"])
    mapped, broken = map(json.loads, run(path, "--json").stdout.splitlines())
    assert mapped["document"]["source"] == {"ip": "192.0.2.1"}
    assert (mapped["unmapped"], mapped["timed"]) == (True, False)
    assert mapped["outside_ecs"] == ["json.door", "json.src_ip"]
    assert broken["error"].startswith("not JSON")


def test_a_file_of_no_known_format_says_how_to_read_it(tmp_path: Path) -> None:
    """Text is not guessed at unasked; the way out is named."""
    result = run(written(tmp_path, "doors.log", DOORS))
    assert "--format text" in result.stderr


@pytest.mark.parametrize(
    ("name", "format", "records"), [("doors", "text", DOORS), ("acme", "text", PAIRS), ("access", "json", OBJECTS)]
)
def test_a_draft_reads_what_it_was_drafted_from(tmp_path: Path, name: str, format: str, records: list[Any]) -> None:
    """The draft is a mapping; with it every record is mapped, and no control character is in it."""
    path = written(tmp_path, f"{name}.log", records)
    result = run(path, "--format", format, "--draft")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    own = tmp_path / "own.yml"
    own.write_text(result.stdout)
    tried = run(path, "--format", format, "--mapping", own)
    assert f"{len(records)} records: {len(records)} mapped, 0 unmapped, 0 unreadable" in tried.stdout
    assert tried.exit_code == 0


def test_a_draft_maps_names_that_many_products_share() -> None:
    """Shared names become ECS fields with their transforms; others are comments with a value."""
    text = draft("acme", OBJECTS)
    (product,) = (one.product({}) for one in [parse(text, "acme.yml")])
    assert product.fields["source.ip"][0].convert("192.0.2.1") == "192.0.2.1"
    assert product.fields["user.name"][0].native == "actor.login"
    assert "# ECS.NAME: kind" in text
    assert "odd (name)" in text


def test_where_all_is_mapped_there_is_nothing_to_draft(tmp_path: Path) -> None:
    """No mapping is drafted for records that have one."""
    path = written(tmp_path, "auth.log", ["Jan  2 03:04:05 host sshd[7]: hello"])
    assert "nothing to draft" in run(path, "--draft").stdout


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_lines_make_a_draft(lines: list[str]) -> None:
    """Whatever the lines are, their draft is a mapping."""
    assert parse(draft("any", lines), "any.yml").name == "any"


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.none())), min_size=1, max_size=3))
def test_any_objects_make_a_draft(objects: list[dict[str, Any]]) -> None:
    """Whatever the objects are, their draft is a mapping."""
    assert parse(draft("any", objects), "any.yml").name == "any"


def test_a_mapping_on_trial_may_not_take_an_installed_name(tmp_path: Path) -> None:
    """Two mappings of one name cannot be told apart."""
    path = tmp_path / "own.yml"
    path.write_text(OWN.format(name="linux"))
    with pytest.raises(ConfigError, match="a mapping called linux is installed already"):
        run(written(tmp_path, "a.json", OBJECTS), "--mapping", path)


# --- mappings of other packages ---------------------------------------------------------------------------------------


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, mapping: str) -> None:
    """Put a distribution that brings one mapping where Python finds packages."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    (folder / package / "own.yml").write_text(mapping)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vedette.mappings]\n{package} = {package}\n")
    monkeypatch.syspath_prepend(folder)


def test_installed_packages_bring_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's mappings come after the shipped ones and read what those leave."""
    install(tmp_path, monkeypatch, "doors_for_tests", OWN.format(name="doors"))
    found = installed.__wrapped__()
    assert [mapping.name for mapping in found] == [*(mapping.name for mapping in shipped()), "doors"]
    document = Normaliser(lambda kind: frozenset(), found).document("json", b'{"door": 4, "by": "ann"}', as_of=1)
    assert document["user"] == {"name": "ann"}


def test_an_installed_mapping_replaces_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is taken is refused at start, by name."""
    install(tmp_path, monkeypatch, "linux_for_tests", OWN.format(name="linux"))
    with pytest.raises(ConfigError, match="more than one mapping is called linux"):
        installed.__wrapped__()


def test_a_broken_mapping_is_refused_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, file and line are named."""
    install(tmp_path, monkeypatch, "broken_for_tests", "mapping: broken\n")
    with pytest.raises(ConfigError, match=r"broken_for_tests/own\.yml:1"):
        installed.__wrapped__()
