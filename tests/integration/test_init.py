"""`vedette init` makes a whole set-up or none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.config.revision import FILE
from tests.process import VEDETTE


def init(folder: Path, passphrase: str = "correct horse battery staple") -> subprocess.CompletedProcess[str]:
    (folder / "passphrase").write_text(passphrase)
    words = ["init", str(folder / "deep" / "etc"), "--name", "alice", "--key", str(folder / "keys" / "alice.pem")]
    words += ["--passphrase-file", str(folder / "passphrase")]
    return subprocess.run([*VEDETTE, *words], capture_output=True, text=True, check=False)


def test_a_passphrase_that_is_too_short_leaves_nothing_behind(tmp_path: Path) -> None:
    done = init(tmp_path, "short")
    assert done.returncode == 3
    assert "at least 12 characters" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["passphrase"]


@pytest.mark.parametrize("name", ["vedette.schema.json", f"{FILE}.dsse"])
def test_what_cannot_be_finished_is_taken_back_but_for_what_was_there(tmp_path: Path, name: str) -> None:
    """The key too: it was made for nothing else."""
    (tmp_path / "deep" / "etc" / name).mkdir(parents=True)
    done = init(tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert [one.name for one in (tmp_path / "deep" / "etc").iterdir()] == [name]
    assert not (tmp_path / "keys").exists()


def test_a_key_that_was_there_stays(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "alice.pem"
    key.parent.mkdir()
    key.write_text("precious")
    assert init(tmp_path).returncode == 3
    assert key.read_text() == "precious"
    assert not (tmp_path / "deep").exists()


def test_after_a_failure_it_works_at_the_next_try(tmp_path: Path) -> None:
    init(tmp_path, "short")
    done = init(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "deep" / "etc" / f"{FILE}.dsse").exists()
