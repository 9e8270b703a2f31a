"""The command line: nothing hostile reaches a terminal or a spreadsheet, and exit codes mean something."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from agent import cli
from agent.cli.alerts import CSV_COLUMNS, cell
from agent.cli.terminal import safe
from agent.model import Alert
from agent.state import Changes
from agent.store import Books, Commit, Store

NOW = 1_767_400_000_000_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store with two alerts, one with hostile text in it."""
    store = Store(tmp_path)
    hostile = {
        "event": {"id": "aa", "reason": '=HYPERLINK("x")\x1b[31m', "original": "raw \u202e line\r\n"},
        "rule": {"author": ["=cmd", "Kim"]},
        "host": {"name": "@host"},
        "threat": {"technique": {"id": ["T1003"], "name": ["OS Credential Dumping"]}},
        "vedette": {"trust": "local", "explain": [], "evidence": {"records": [{"path": "/a\x07", "key": "0"}]}},
    }
    plain = {**hostile, "event": {"id": "ab", "reason": "plain"}}
    alerts = [Alert("aa" * 16, "r1", "One", "high", NOW, hostile), Alert("ab" * 16, "r2", "Two", "low", NOW + 1, plain)]
    store.commit(Commit("s", {}, NOW, NOW, Books(2, 2, {}, 0), Changes(1), alerts))
    store.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Run the command as the shell would; return exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["vedette", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


@pytest.mark.parametrize("text", ["\x1b[2J", "\u202e", "\r", "\x00", "\ud800", "\u2028", "\u200b"])
def test_control_and_bidi_characters_are_written_out(text: str) -> None:
    """No escape sequence, line end or direction mark of an event's own reaches the terminal."""
    assert safe(f"a{text}b").isprintable()
    assert safe(f"a{text}b") != f"a{text}b"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_cell_is_never_a_formula(text: str) -> None:
    """A spreadsheet shows the text and computes nothing."""
    assert cell(text) == f"'{text}"


def test_list_as_json_is_one_document_a_line(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines read lines; levels are a floor."""
    code, out, _ = run(capsys, monkeypatch, "alerts", "list", "-d", str(data), "--json", "--min-level", "medium")
    assert code == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["aa" * 16]


def test_show_prints_nothing_hostile(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole alert, with control characters written out."""
    code, out, _ = run(capsys, monkeypatch, "alerts", "show", "aa", "-d", str(data))
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "OS Credential Dumping" in out


def test_export_as_csv(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One row an alert, the same columns, formulas quoted."""
    target = data / "alerts.csv"
    code, _, _ = run(capsys, monkeypatch, "alerts", "export", "-d", str(data), "-o", str(target))
    rows = list(csv.DictReader(io.StringIO(target.read_text("utf-8-sig"))))
    assert code == 0
    assert tuple(rows[0]) == CSV_COLUMNS
    assert rows[0]["reason"].startswith("'=")
    assert rows[0]["author"] == "'=cmd, Kim"
    assert rows[0]["host"] == "'@host"
    assert rows[1]["evidence_time"].endswith("Z")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["alerts", "list"], 3),
        (["alerts", "show", "ff"], 3),
        (["run", "-b", "/nowhere.yml"], 3),
        (["alerts", "list", "--min-level", "huge"], 2),
        (["nonsense"], 2),
        (["--help"], 0),
        (["--version"], 0),
    ],
)
def test_exit_codes(
    words: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 for usage, 3 for configuration, and one line instead of a stack trace."""
    given = [*words, "-d", str(tmp_path)] if words[0] == "alerts" else words
    found, _, err = run(capsys, monkeypatch, *given)
    assert found == code
    assert "Traceback" not in err
