"""docs/audit.md, docs/models.md and docs/access.md are run as they stand, and their tables are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from agent.access import PERMISSIONS, ROLES
from agent.config.model import ModelConfig
from agent.trust.admission import admit
from tests.pages import DOCS, Shell, blocks


def test_whoever_follows_the_auditors_page_sees_that_it_holds(tmp_path: Path) -> None:
    """Each command does what the page says, from the demo to the proof out of the copy alone."""
    shell = Shell(tmp_path)
    said = {}
    for block in blocks(DOCS / "audit.md"):
        said[block.heading] = said.get(block.heading, "") + shell.do(block.text)
    assert "holds: nothing edited, removed, inserted or moved" in said["Does the log hold?"]
    assert "the law accepted a configuration" in said["What ran, and who allowed it?"]
    assert "signed by alex" in said["One alert"]
    assert "signed by dana" in said["One alert"]
    assert said["From the SIEM's copy alone"].count("holds: nothing edited") == 2
    assert said["From the SIEM's copy alone"].count("is in the log") == 2
    assert (tmp_path / "proof.json").read_bytes() == (tmp_path / "proof-from-siem.json").read_bytes()


def test_a_log_that_was_tampered_with_does_not_hold(tmp_path: Path) -> None:
    """Exit code 4 and the first leaf that is wrong, as the page says."""
    shell = Shell(tmp_path)
    shell.do("vedette demo > demo.txt; cp .demo/data/audit.pub audit.pub")
    database = tmp_path / ".demo" / "data" / "vedette.db"
    shell.do(
        f"""python3 - <<'END'
import apsw
connection = apsw.Connection("{database}")
connection.execute("DROP TRIGGER leaf_is_append_only")
connection.execute("UPDATE leaf SET bytes = CAST(replace(CAST(bytes AS TEXT), 'alex', 'eve') AS BLOB) WHERE number = 1")
END"""
    )
    assert "leaf 1" in shell.do("vedette audit verify --data .demo/data --key audit.pub 2>&1", code=4)


def test_whoever_follows_the_models_page_gets_a_signed_model(tmp_path: Path) -> None:
    """Features, training, a key, a signature; the lines for the configuration are what it takes."""
    shell = Shell(tmp_path)
    for block in blocks(DOCS / "models.md"):
        if block.language == "yaml" and "ssh.yml" in block.text:
            (tmp_path / "ssh.yml").write_text(block.text)
        elif block.language == "sh":
            shell.do(block.text)
    named = (tmp_path / "named.txt").read_text()
    (section,) = yaml.safe_load(named[named.index("models:") :])["models"].values()
    assert ModelConfig.model_validate(section).state == "shadow"
    assert yaml.safe_load((tmp_path / "sam.yml").read_text())["sam"]["roles"] == ["data-scientist"]
    assert (tmp_path / "models" / "ssh-by-address" / "model.sig").exists()


def test_the_table_of_permissions_is_the_one_in_force() -> None:
    text = (DOCS / "access.md").read_text()
    rows = re.findall(r"^\| (`.+?`.*?) \| ([a-z, -]+) \| (\d) \|$", text, re.M)
    table = {
        name: (tuple(roles.split(", ")), int(number))
        for names, roles, number in rows
        for name in re.findall("`([a-z_]+)`", names)
    }
    assert table == {name: (row.roles, row.approvals) for name, row in PERMISSIONS.items()}
    assert all(role in text for role in ROLES)


def test_the_table_of_steps_is_the_procedure() -> None:
    said = re.findall(r"^\| (\d) ([a-z]+) \|", (DOCS / "models.md").read_text(), re.M)
    source = Path(str(admit.__code__.co_filename)).read_text()
    done = dict.fromkeys(re.findall(r'refuse\((\d), "([a-z]+)"', source))
    assert said == sorted(done)
