"""`vedette rules explain` of a correlation: which events count, for whom, when, and what was nearest."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pages import DOCS
from tests.rule_work import RULE_ID, Shell, process, rule, shell, write_log

EVIL = rule("{sel: {CommandLine|contains: evil}, condition: sel}", title="Evil", name="evil")
CALM = rule(
    "{sel: {CommandLine|contains: calm}, condition: sel}",
    id="44444444-4444-4444-8444-444444444444", title="Calm", name="calm",
)  # fmt: skip
ID = "33333333-3333-4333-8333-333333333333"


def correlation(text: str, id: str = ID, title: str = "Many") -> str:
    return f"title: {title}\nid: {id}\nname: {title.lower()}\ncorrelation: {{{text}}}\n"


THREE = correlation("type: event_count, rules: [evil], group-by: [Hostname], timespan: 5m, condition: {gte: 3}")


@pytest.fixture
def sh(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return shell(capsys, monkeypatch, tmp_path)


def at(second: int, command: str = "evil", host: str = "host1", **more: Any) -> dict[str, Any]:
    time = f"2024-05-05 10:{second // 60:02}:{second % 60:02}"
    return process(command, **{"EventTime": time, "Hostname": host, **more})


def explain(sh: Shell, folder: Path, texts: list[str], *events: dict[str, Any]) -> tuple[int, list[str], Any]:
    """Return the exit code, what is said in words and what is said as JSON."""
    (folder / "rules.yml").write_text("---\n".join(texts))
    log = write_log(folder / "events.json", *events)
    code, out, _ = sh("explain", folder / "rules.yml", log)
    code_again, rows, _ = sh("explain", folder / "rules.yml", log, "--json")
    assert code == code_again
    return code, out.splitlines(), [json.loads(row) for row in rows.splitlines()]


def test_where_it_holds_it_says_for_whom_and_when_and_by_which_lines(sh: Shell, tmp_path: Path) -> None:
    """It holds with the third event; the fourth is of the window and did not make it."""
    events = [at(1), at(5, "nothing"), at(7), at(8, host="host2"), at(190), at(200)]
    code, out, (row,) = explain(sh, tmp_path, [THREE, EVIL], *events)
    assert code == 0
    assert out == [
        f"Many ({ID}): holds in 1 window",
        "  asked: at least 3 events within 5m, by Hostname",
        "    Evil: matches 5 events",
        "  counted: 2 groups, 2 windows",
        "    Hostname host1, window 2024-05-05 10:00:00 to 10:05:00: 3 events of 3 asked,"
        " between 10:00:01 and 10:03:10; lines 1, 3, 5",
    ]
    assert (row["matched"], row["matches"], row["nearest"]) == (True, {RULE_ID: 5}, None)
    (held,) = row["held"]
    assert (held["group"], held["lines"], held["total"]) == ({"Hostname": "host1"}, [1, 3, 5], 4)
    assert held["window"] == ["2024-05-05T10:00:00.000Z", "2024-05-05T10:05:00.000Z"]


def test_where_it_does_not_hold_the_nearest_miss_is_said(sh: Shell, tmp_path: Path) -> None:
    """Over the border of two windows, of the group that came nearest; a value that comes again is not a new one."""
    many = correlation(
        "type: value_count, rules: [evil], group-by: [Hostname], timespan: 5m, condition: {gte: 10, field: User}"
    )
    near = [at(second, host="host2", User=f"u{number}") for number, second in enumerate((10, 295, 303, 550))]
    code, out, (row,) = explain(sh, tmp_path, [many, EVIL], at(1, User="a"), *near, at(551, host="host2", User="U3"))
    assert code == 1
    assert out[0] == f"Many ({ID}): does not hold"
    assert out[3:] == [
        "  counted: 2 groups, 3 windows",
        "    nearest: Hostname host2, window 2024-05-05 10:05:00 to 10:10:00: 3 distinct User of 10 asked,"
        " between 10:00:10 and 10:05:03; lines 2, 3, 4",
    ]
    assert row["nearest"]["measured"] == 3
    assert not row["held"]


def test_times_of_another_day_say_which(sh: Shell, tmp_path: Path) -> None:
    """A window of a week, and an event of the day before the last."""
    (tmp_path / "rules.yml").write_text("---\n".join([THREE.replace("5m", "7d"), EVIL]))
    events = [at(1), at(2, EventTime="2024-05-06 10:00:02"), at(3, EventTime="2024-05-07 10:00:03")]
    code, out, _ = sh("explain", tmp_path / "rules.yml", write_log(tmp_path / "events.json", *events))
    assert code == 0
    assert "window 2024-05-02 00:00:00 to 2024-05-09 00:00:00: 3 events of 3 asked," in out
    assert "between 2024-05-05 10:00:01 and 2024-05-07 10:00:03; lines 1, 2, 3" in out


def test_a_chain_is_explained_from_the_inside(sh: Shell, tmp_path: Path) -> None:
    """Which of its rules were there; what it takes of an inner correlation is the event that made that true."""
    then = correlation(
        "type: temporal_ordered, rules: [many, calm], group-by: [Hostname], timespan: 10m",
        id="55555555-5555-4555-8555-555555555555", title="Then",
    )  # fmt: skip
    texts = [then, THREE, EVIL, CALM]
    code, out, (inner, outer) = explain(sh, tmp_path, texts, at(0, "calm"), at(1), at(2), at(3))
    assert code == 1
    assert (inner["matched"], outer["matched"]) == (True, False)
    assert outer["inner"] == {ID: 1}
    assert out[-5:] == [
        "  asked: all 2 rules in this order within 10m, by Hostname",
        "    Calm: matches 1 event",
        "    Many: holds in 1 window",
        "  counted: 1 group, 1 window",
        "    nearest: Hostname host1, window 2024-05-05 10:00:00 to 10:10:00: 1 of 2 rules asked (Many), at 10:00:03;"
        " line 4",
    ]
    code, out, rows = explain(sh, tmp_path, texts, at(1), at(2), at(3), at(4, "calm"))
    assert code == 0
    assert out[-1].endswith("2 of 2 rules asked (Many, Calm), between 10:00:03 and 10:00:04; lines 3, 4")
    assert rows[-1]["held"][0]["rules"] == [ID, "44444444-4444-4444-8444-444444444444"]


def test_what_tumbles_is_explained_as_when_its_window_is_over(sh: Shell, tmp_path: Path) -> None:
    """By what it measures, or by the rules that were there; how many events are beyond those that are named."""
    total = "type: value_sum, rules: [evil], group-by: [Hostname], timespan: 5m, condition: {field: x, gt: 20}"
    code, out, _ = explain(sh, tmp_path, [correlation(total), EVIL], *(at(second, x=1.5) for second in range(12)))
    assert code == 1
    assert out[1] == "  asked: sum of x more than 20 within 5m, by Hostname"
    assert out[-1].endswith("10:05:00: sum of x 18; lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more")
    without = "type: temporal, group-by: [Hostname], timespan: 5m, condition: evil and not calm"
    events = [at(1), at(2, "calm"), at(3, host="host2")]
    code, out, (row,) = explain(sh, tmp_path, [correlation(without), EVIL, CALM], *events)
    assert code == 0
    assert out[1] == "  asked: (Evil and not Calm) within 5m, by Hostname"
    assert [(one["group"], one["said"]) for one in row["held"]] == [({"Hostname": "host2"}, "1 rule (Evil)")]


def test_what_is_not_counted_is_said(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text("---\n".join([THREE, EVIL]))
    log = write_log(tmp_path / "events.json", at(1), at(2, host=""))
    log.write_text(log.read_text() + "\n{broken\n")
    code, out, _ = sh("explain", tmp_path / "rules.yml", log)
    assert code == 1
    assert "not counted: 1 ungrouped" in out
    assert "line 4 cannot be read: " in out
    _, out, _ = sh("explain", tmp_path / "rules.yml", log, "--json")
    row = json.loads(out)
    assert (row["uncounted"], [one["line"] for one in row["unreadable"]]) == ({"ungrouped": 1}, [4])


def test_of_one_event_the_rules_of_the_file_are_explained_too(sh: Shell, tmp_path: Path) -> None:
    """Why the rule that is counted did not match; the correlation's own answer is the exit code."""
    code, out, rows = explain(sh, tmp_path, [THREE, EVIL], at(1, "nothing"))
    assert code == 1
    assert out[0] == f"Evil ({RULE_ID}): does not match"
    assert out[-2:] == ["    Evil: matches 0 events", "  counted: 0 groups, 0 windows"]
    assert [row["rule"] for row in rows] == [RULE_ID, ID]


def test_one_of_ours_by_its_id_and_standard_input(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Path(__file__).parents[2] / "rules" / "content" / "linux"
    hit = json.loads((found / "sshd_password_guessing.test.json").read_text())["hits"][0]["events"]
    id = next(line[4:] for line in (found / "sshd_password_guessing.yml").read_text().splitlines() if "id: " in line)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("\n".join(hit).encode())))
    code, out, err = sh("explain", id, "-")
    assert (code, err) == (0, "")
    assert "10 events of 10 asked" in out


def test_only_the_correlation_that_is_named_is_explained(sh: Shell, tmp_path: Path) -> None:
    """Of a collection that has others."""
    page = Path(__file__).parents[2] / "rules" / "content"
    log = write_log(tmp_path / "events.json", at(1))
    id = "76e9c809-2966-493d-8bc1-6f01162794bf"
    assert any(id in one.read_text() for one in page.rglob("*.yml"))
    _, out, _ = sh("explain", id, log, "--json")
    assert [json.loads(row)["rule"] for row in out.splitlines()][-1] == id
    assert len(out.splitlines()) == 2


def test_the_page_shows_what_is_printed(sh: Shell, tmp_path: Path) -> None:
    """docs/rules.md: failed logins of two addresses, and a line of another kind between them."""
    failed = [("10:14:10", 7), ("10:14:20", 9), ("10:15:10", 7), ("10:15:50", 7), ("10:16:20", 7)]
    lines = [
        f"2025-11-18T{time}+00:00 web sshd[3391]: Failed password for root from 203.0.113.{host} port 40000 ssh2"
        for time, host in failed
    ]
    lines.insert(4, "2025-11-18T10:16:00+00:00 web sshd[3391]: Server listening on 0.0.0.0 port 22.")
    (tmp_path / "auth.log").write_text("\n".join(lines))
    page = (DOCS / "rules.md").read_text()
    command, said = page.partition("$ vedette rules ")[2].partition("```")[0].split("\n", 1)
    _, *words = command.split()
    assert sh("explain", words[0], tmp_path / words[1])[:2] == (1, said)
