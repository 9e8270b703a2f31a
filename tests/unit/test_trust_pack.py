"""Signed packs: where the statement about one lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.trust.pack import envelope_of


@pytest.mark.parametrize("written", [".", "../own", "other/..", "./"])
def test_the_envelope_lies_beside_the_folder_however_it_is_named(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    assert envelope_of(Path(written)) == tmp_path / "own.dsse"


def test_a_link_has_an_envelope_of_its_own(tmp_path: Path) -> None:
    """A new version can be put in place by turning the link."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "own").symlink_to("v1")
    assert envelope_of(tmp_path / "own") == tmp_path / "own.dsse"
