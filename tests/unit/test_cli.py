"""The command line: nothing hostile reaches a terminal or a spreadsheet, and exit codes mean something."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from agent import cli
from agent.cli import options
from agent.cli.alerts import CSV_COLUMNS, cell
from agent.cli.doctor import show as show_check
from agent.cli.terminal import safe, table, wrapped
from agent.model import Alert
from agent.ports import Check
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


def test_show_says_what_it_is_about_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host, user, the reason without the title, the rule's advice, techniques by id and name; the list cuts places."""
    sub = {"id": ["T1003.001"], "name": ["LSASS Memory"]}
    document = {
        "event": {"reason": "One: code is 1."},
        "rule": {"description": "Passwords leak.\n  Isolate the host."},
        "host": {"name": "ws-1"},
        "user": {"name": "amelie"},
        "threat": {"technique": {"id": ["T1003"], "name": ["OS Credential Dumping"], "subtechnique": sub}},
        "vedette": {
            "trust": "local",
            "explain": [{"field": "event.code", "observed": "1", "expected": "is 1"}],
            "evidence": {"records": [{"path": "logs-windows.sysmon_operational-default", "key": "0"}]},
        },
    }
    store = Store(tmp_path)
    alerts = [Alert("aa" * 16, "r1", "One", "high", NOW, document)]
    store.commit(Commit("s", {}, NOW, NOW, Books(1, 1, {}, 0), Changes(1), alerts))
    store.close()
    _, out, _ = run(capsys, monkeypatch, "alerts", "show", "aa", "-d", str(tmp_path))
    lines = [line.strip() for line in out.splitlines()]
    assert "about     ws-1 amelie" in lines
    assert "why       code is 1." in lines
    assert "event.code: 1  (expected: is 1)" in lines
    assert "means     Passwords leak. Isolate the host." in lines
    assert [line for line in lines if line.startswith("ATT&CK")] == [
        "ATT&CK    T1003 OS Credential Dumping",
        "ATT&CK    T1003.001 LSASS Memory",
    ]
    _, out, _ = run(capsys, monkeypatch, "alerts", "list", "-d", str(tmp_path))
    assert out.splitlines()[1].split()[-4:] == ["ws-1", "amelie", "logs-windows.sysmon_ope…", "aaaaaaaa"]


@pytest.mark.parametrize(
    ("threat", "said"),
    [
        ({"technique": {"id": "T1003", "name": "OS Credential Dumping"}}, ["ATT&CK    T1003 OS Credential Dumping"]),
        ({"technique": {"id": ["T9999"], "name": ["T9999"], "subtechnique": "x"}}, ["ATT&CK    T9999"]),
        ("x", []),
    ],
)
def test_show_takes_any_form_of_techniques_that_an_event_may_bring(
    threat: object, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A rule without techniques leaves the event's own, which may be one text instead of lists, or no object."""
    own = {"trust": "local", "explain": [], "evidence": {"records": []}}
    document = {"event": {"reason": "plain"}, "rule": {}, "threat": threat, "vedette": own}
    store = Store(tmp_path)
    alerts = [Alert("aa" * 16, "r1", "One", "high", NOW, document)]
    store.commit(Commit("s", {}, NOW, NOW, Books(1, 1, {}, 0), Changes(1), alerts))
    store.close()
    code, out, _ = run(capsys, monkeypatch, "alerts", "show", "aa", "-d", str(tmp_path))
    assert code == 0
    assert [line.strip() for line in out.splitlines() if "ATT&CK" in line] == said
    target = tmp_path / "alerts.csv"
    assert run(capsys, monkeypatch, "alerts", "export", "-d", str(tmp_path), "-o", str(target))[0] == 0


def test_a_list_of_nothing_says_so(
    data: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where no alert was ever raised, and where none is left over by what was asked."""
    empty = tmp_path_factory.mktemp("empty")
    Store(empty).close()
    assert run(capsys, monkeypatch, "alerts", "list", "-d", str(empty)) == (0, "no alerts yet\n", "")
    asked = ("alerts", "list", "-d", str(data), "--min-level", "critical")
    assert run(capsys, monkeypatch, *asked) == (0, "no alerts\n", "")


def test_a_column_without_text_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Its heading too; a table without rows has its headings."""
    table(("id", "why", "count>"), [("a", "", 0), ("b", "", 1)])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["id", "count"], ["a", "0"], ["b", "1"]]
    table(("id", "why"), [])
    assert capsys.readouterr().out.split() == ["id", "why"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("  why  one two", ["  why  one", "       two"]),
        ("  -> do this", ["  -> do", "     this"]),
        ("\nabcdefghijklmnop q", ["", "abcdefghijklmnop", "q"]),
        ("a  b", ["a  b"]),
    ],
)
def test_a_long_line_breaks_between_words_under_its_value(text: str, lines: list[str]) -> None:
    """A key or an address stays whole, so that it can be copied."""
    assert wrapped(text, 10) == "\n".join(lines)


def test_doctor_names_the_part_once(capsys: pytest.CaptureFixture[str]) -> None:
    """An error begins with the part it is of, and the line does too."""
    show_check("source logs", Check("reach", "failed", "source logs: 401", "mend it"), as_json=False)
    assert capsys.readouterr().out.splitlines() == ["failed   source logs: reach: 401", "         -> mend it"]


@pytest.mark.parametrize("command", ["run", "status"])
def test_whoever_names_no_bootstrap_is_told_how(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place that was looked at, the option, and the command that makes one."""
    absent = tmp_path / "bootstrap.yml"
    monkeypatch.setattr(options, "BOOTSTRAP", absent)
    said = f"vedette: {absent}: no such file; name yours with -b, or make one: 'vedette init'\n"
    assert run(capsys, monkeypatch, command, "-b", str(absent)) == (3, "", said)


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
