"""docs/mappings.md, followed as it stands: from a log that nothing knows to a mapping that passes its checks."""

from __future__ import annotations

import tomllib
from pathlib import Path

from agent import plugins
from tests.pages import DOCS, Shell, blocks

PAGE = DOCS / "mappings.md"


def test_the_page_leads_from_a_log_to_a_checked_mapping(tmp_path: Path) -> None:
    """Files are written as the page shows them, commands run in its order, and each does what the page says."""
    shell = Shell(tmp_path)
    said = []
    for block in blocks(PAGE):
        if block.language == "sh":
            said.append(shell.do(block.text))
        else:
            name = block.text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block.text)
    first, _, tried, checked = said
    assert "2 records: 0 mapped, 2 unmapped" in first
    assert "2 records: 2 mapped, 0 unmapped, 0 unreadable, 0 untimed" in tried
    assert "event.outcome=failure" in tried
    assert "1 passed" in checked
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]) == {plugins.MAPPINGS}
