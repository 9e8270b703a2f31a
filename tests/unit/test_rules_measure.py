"""`vedette rules coverage`, `diff`, `backtest` and `tune`: rules held against many events."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from sigma.filters import SigmaFilter

from agent import plugins
from agent.cli.options import instant
from agent.errors import RetryableError
from agent.model import SECOND, Alert, Cursor
from agent.normalise.clock import to_text
from agent.ports import Connector
from agent.state import Changes
from agent.store import Books, Commit, Store
from agent.testing import MemorySource
from rules.comparison import warm_from
from rules.detector import build
from rules.lint import CHECKS
from rules.running import PATIENCE, Runner, fetches, log_source
from rules.sigma.parse import Rule, compile_files
from rules.tuning import FALSE, TRUE, Marked, propose
from tests.fake_siem import Reply, Request
from tests.pages import DOCS, blocks
from tests.rule_work import OTHER_ID, RULE_ID, Shell, process, rule, shell, write_log
from tests.signing import pem
from tests.unit.test_lag import Index

WINDOWS = {"product": "windows", "category": "process_creation"}
EVIL = "{sel: {CommandLine|contains: evil}, condition: sel}"
NOW = 1_767_400_000_000_000


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    return shell(capsys, monkeypatch, tmp_path)


def folder(path: Path, *texts: str) -> Path:
    path.mkdir()
    for number, text in enumerate(texts):
        (path / f"{number}.yml").write_text(text)
    return path


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detection", "more", "state", "detail"),
    [
        (EVIL, {}, "fired", ""),
        (EVIL, {"logsource": "{product: toaster}"}, "log source not mapped", "toaster"),
        (EVIL, {"logsource": "{product: aws, service: cloudtrail}"}, "log source absent", "aws cloudtrail"),
        ("{sel: {Shoe: x}, condition: sel}", {}, "field never seen", "Shoe"),
        ("{a: {Shoe: x}, b: {CommandLine: a, Hat: x}, condition: a or b}", {}, "field never seen", "Hat, Shoe"),
        ("{sel: {CommandLine|fieldref: Shoe}, condition: sel}", {}, "field never seen", "Shoe"),
        (
            "{sel: {CommandLine: so evil}, gone: {Shoe: null}, condition: sel and not gone}",
            {},
            "field never seen",
            "Shoe",
        ),
        ("{sel: {Shoe: x}, e: {CommandLine: a}, condition: sel or e}", {}, "never true", "sel or e"),
        ("{sel: {Shoe: null, CommandLine: a}, condition: sel}", {}, "never true", "sel"),
        ("{a: {CommandLine: a, Image: b}, b: {Image|endswith: exe}, condition: a and b}", {}, "never true", "a"),
        ("{a: {CommandLine: x}, b: {Image|endswith: exe}, condition: a and not b}", {}, "never true", "a, not (b)"),
        ("{a: {CommandLine: good}, b: {CommandLine: so evil}, condition: a and (b or not a)}", {}, "quiet", ""),
    ],
)
def test_why_a_rule_never_fires(
    sh: Shell, tmp_path: Path, detection: str, more: dict[str, str], state: str, detail: str
) -> None:
    """The first of: no such log source, a field that it needs is absent, a part is true of no event."""
    log = write_log(tmp_path / "log.json", process("so evil"), process("good"))
    code, out, err = sh("coverage", folder(tmp_path / "rules", rule(detection, **more)), log, "--json")
    row, facts = map(json.loads, out.splitlines())
    assert err == ""
    assert (row["state"], row["detail"], row["matches"]) == (state, detail, int(state == "fired"))
    assert code == int(state not in ("fired", "quiet"))
    assert facts["events"] == 2


def test_a_rule_is_asked_of_every_event(sh: Shell, tmp_path: Path) -> None:
    """What is true of the last of many events only counts too, and is found through all looks."""
    quiet = [process(f"good {number}") for number in range(1_000)]
    log = write_log(tmp_path / "log.json", *quiet, process("evil"))
    rules = folder(tmp_path / "rules", rule(EVIL), rule("{sel: {Image: no}, condition: sel}", OTHER_ID, "Other"))
    _, out, _ = sh("coverage", rules, log, "--json")
    first, second, _ = map(json.loads, out.splitlines())
    assert (first["state"], second["state"]) == ("fired", "never true")


def test_fields_that_no_rule_reads(sh: Shell, tmp_path: Path) -> None:
    """By mapping; what a rule reads, or what tells the kinds of events apart, is not among them."""
    log = write_log(tmp_path / "log.json", process("good"), process("bad", Shoe="x"))
    _, out, _ = sh("coverage", folder(tmp_path / "rules", rule(EVIL)), log, "--json")
    unread = json.loads(out.splitlines()[-1])["unread"]["windows"]
    assert unread["process.executable"] == 2
    assert unread["winlog.event_data.Shoe"] == 1
    assert not {"process.command_line", "event.code", "winlog.channel", "@timestamp"} & unread.keys()
    _, out, _ = sh("coverage", tmp_path / "rules", log)
    assert "windows: no rule reads " in out


def test_a_correlation_without_rules_that_can_fire_never_fires(sh: Shell, tmp_path: Path) -> None:
    text = rule("{sel: {Shoe: x}, condition: sel}") + (
        f"---\ntitle: Two\nid: {OTHER_ID}\ncorrelation: {{type: event_count, rules: [{RULE_ID}], timespan: 1h,"
        " condition: {gte: 2}}\n"
    )
    log = write_log(tmp_path / "log.json", process("a"), process("b"))
    rules = folder(tmp_path / "rules", text)
    states = [json.loads(line).get("state") for line in sh("coverage", rules, log, "--json")[1].splitlines()]
    assert states[:2] == ["field never seen", "never true"]
    write_log(log, process("a", Shoe="x"), process("b", Shoe="x"))
    states = [json.loads(line).get("state") for line in sh("coverage", rules, log, "--json")[1].splitlines()]
    assert states[:2] == ["fired", "fired"]


@pytest.mark.parametrize(
    ("correlation", "state"),
    [
        ("type: temporal, rules: [a, b]", "never true"),
        ("type: temporal, rules: [a, b], condition: {gte: 1}", "fired"),
        ("type: temporal, condition: a or b", "fired"),
        ("type: temporal, condition: a and b", "never true"),
        ("type: event_count, rules: [a, b], condition: {gte: 2}", "quiet"),
    ],
)
def test_a_correlation_can_fire_if_enough_of_its_rules_can(
    sh: Shell, tmp_path: Path, correlation: str, state: str
) -> None:
    text = f"title: Both\nid: {OTHER_ID}\ncorrelation: {{timespan: 1h, {correlation}}}\n"
    other = rule("{sel: {Shoe: x}, condition: sel}", RULE_ID.replace("1", "3"), "Other", name="b")
    rules = folder(tmp_path / "rules", rule(EVIL, name="a"), other, text)
    log = write_log(tmp_path / "log.json", process("evil"))
    rows = [json.loads(line) for line in sh("coverage", rules, log, "--json")[1].splitlines()]
    assert [row["state"] for row in rows[:-1]] == ["fired", "field never seen", state]


def test_a_filter_that_leaves_out_all_is_what_keeps_a_rule_silent(sh: Shell, tmp_path: Path) -> None:
    """It is named by its place, and the selections as ever."""
    beside = (
        f"title: F\nid: {OTHER_ID}\nlogsource: {{product: windows}}\n"
        f"filter: {{rules: [{RULE_ID}], own: {{Hostname: host1}}, condition: not own}}\n"
    )
    log = write_log(tmp_path / "log.json", process("evil"))
    rules = folder(tmp_path / "rules", rule(EVIL), beside)
    row = json.loads(sh("coverage", rules, log, "--json")[1].splitlines()[0])
    assert (row["state"], row["detail"]) == ("never true", "filter 1.yml:1")
    (rules / "0.yml").write_text(rule("{sel: {CommandLine: x}, condition: sel}"))
    row = json.loads(sh("coverage", rules, log, "--json")[1].splitlines()[0])
    assert (row["state"], row["detail"]) == ("never true", "sel, filter 1.yml:1")


def test_techniques_are_compared_with_a_list_and_drawn_as_a_layer(sh: Shell, tmp_path: Path) -> None:
    """A rule for a subtechnique covers its technique; one that can never fire covers nothing."""
    rules = folder(
        tmp_path / "rules",
        rule(EVIL, tags="[attack.t1059.001]"),
        rule(EVIL, OTHER_ID, "Other", tags="[attack.t1003]", logsource="{product: toaster}"),
    )
    wanted = tmp_path / "wanted.csv"
    wanted.write_text("id,name\nT1059,Scripts\n")
    (rules / "1.yml").rename(tmp_path / "other.yml")
    assert sh("coverage", rules, "--techniques", wanted)[0] == 0
    (tmp_path / "other.yml").rename(rules / "1.yml")
    wanted.write_text('T1059\n"T1003",x\nT1059.001\nT1566\n')
    code, out, _ = sh("coverage", rules, "--techniques", wanted, "--navigator", tmp_path / "layer.json", "--json")
    assert code == 1
    assert json.loads(out.splitlines()[-1])["techniques"] == {"T1059": 1, "T1003": 0, "T1059.001": 1, "T1566": 0}
    layer = json.loads((tmp_path / "layer.json").read_text())
    assert (layer["versions"]["layer"], layer["domain"]) == ("4.5", "enterprise-attack")
    assert {one["techniqueID"]: one["score"] for one in layer["techniques"]} == {"T1059.001": 1, "T1003": 0}


def test_wrong_inputs_of_coverage(sh: Shell, tmp_path: Path) -> None:
    rules = folder(tmp_path / "rules", rule(EVIL))
    (tmp_path / "none.txt").write_text("no technique\n")
    assert sh("coverage", rules, tmp_path / "absent")[0] == 3
    assert sh("coverage", rules, "--techniques", tmp_path / "none.txt")[0] == 3
    assert sh("coverage", rules, "--navigator", tmp_path / "absent" / "layer.json")[0] == 1


# --- diff -------------------------------------------------------------------------------------------------------------


def test_diff_shows_alerts_lost_and_gained_by_rule(sh: Shell, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.json", process("evil one"), process("evil two"), process("bad"))
    old = folder(tmp_path / "old", rule(EVIL))
    new = folder(tmp_path / "new", rule("{sel: {CommandLine|contains: [bad, two]}, condition: sel}"))
    code, out, _ = sh("diff", old, new, log, "--json")
    assert code == 1
    changes = [json.loads(line) for line in out.splitlines()]
    assert [(one["change"], one["rule"], one["place"].partition(":")[0]) for one in changes] == [
        ("lost", RULE_ID, str(log)), ("gained", RULE_ID, str(log))
    ]  # fmt: skip
    code, out, _ = sh("diff", old, new, log)
    assert f"{RULE_ID}  A rule     1       1        1" in out
    assert out.endswith("1 alerts in both, 1 lost, 1 gained\n")


def test_diff_of_rules_that_find_the_same_is_silent(sh: Shell, tmp_path: Path) -> None:
    """Whatever else of the rule has changed."""
    log = write_log(tmp_path / "log.json", process("evil one"))
    old, new = folder(tmp_path / "old", rule(EVIL)), folder(tmp_path / "new", rule(EVIL, title="Another"))
    assert sh("diff", old, new, log)[:2] == (0, "1 alerts in both, 0 lost, 0 gained\n")


# --- backtest ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def days(tmp_path: Path) -> tuple[Path, Path]:
    """Rules, and a log with a match on each of three days."""
    events = [process("evil", EventTime=f"2024-05-0{day} 10:00:00") for day in (1, 2, 3)]
    return folder(tmp_path / "rules", rule(EVIL)), write_log(tmp_path / "log.json", *events)


def test_backtest_counts_what_happened_in_the_time(sh: Shell, days: tuple[Path, Path]) -> None:
    """From is in, to is out; both are UTC unless they say otherwise."""
    rules, log = days
    for span, number in (
        ([], 3),
        (["--from", "2024-05-02"], 2),
        (["--from", "2024-05-01T12:00", "--to", "2024-05-03T10:00Z"], 1),
        (["--to", "2024-05-02T12:00+02:00"], 1),
    ):
        code, out, _ = sh("backtest", rules, log, *span, "--json")
        row, facts = map(json.loads, out.splitlines())
        assert (code, row["id"], row["alerts"], facts["events"]) == (0, RULE_ID, number, 3)


def test_backtest_checks_expected_numbers(sh: Shell, days: tuple[Path, Path], tmp_path: Path) -> None:
    """A rule that is not named is expected to make none; one that does not run fails even then."""
    rules, log = days
    expected, junit = tmp_path / "expected.yml", tmp_path / "junit.xml"
    expected.write_text(f"{RULE_ID}: 3\n")
    assert sh("backtest", rules, log, "--expect", expected, "--junit", junit)[0] == 0
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    expected.write_text(f"{OTHER_ID}: 0\n")
    code, out, _ = sh("backtest", rules, log, "--expect", expected, "--junit", junit)
    assert code == 1
    assert f"rule {RULE_ID}: expected 0 alerts, got 3" in out
    assert f"rule {OTHER_ID} does not run" in out
    assert ElementTree.parse(junit).getroot().get("failures") == "2"


@pytest.mark.parametrize("text", ["[1]", "a: many", "a: -1", "a: true", "a: {b: 1}"])
def test_expected_numbers_that_are_none_are_named(
    sh: Shell, days: tuple[Path, Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "expected.yml").write_text(f"{text}\n")
    code, _, err = sh("backtest", *days, "--expect", tmp_path / "expected.yml")
    assert code == 3
    assert "expected.yml" in err


def test_backtest_without_events_asks_for_them(sh: Shell, days: tuple[Path, Path], tmp_path: Path) -> None:
    assert sh("backtest", days[0])[0] == 3
    assert sh("backtest", *days, "--junit", tmp_path / "x.xml")[0] == 2
    assert sh("backtest", *days, "--from", "yesterday")[0] == 2


class Held(MemorySource):
    """A source whose upstream can be asked again for a time: it notes for which, and for which stream's position."""

    def __init__(self, asked: list[Any]) -> None:
        super().__init__("siem")
        self._asked = asked
        for day in (1, 2, 3):
            self.append(json.dumps(process("evil", EventTime=f"2024-05-0{day} 10:00:00")).encode())

    def replay(self, cursor: Cursor | None, **span: Any) -> Held:
        self._asked.append((cursor, span))
        bounds = [time and to_text(time)[:19].replace("T", " ") for time in (span["start"], span["end"])]
        times = [(json.loads(raw)["EventTime"], raw) for raw in self.upstream["main"]]
        self.upstream = {
            "main": [raw for time, raw in times if (bounds[0] or "") <= time and (not bounds[1] or time < bounds[1])]
        }
        return self


@pytest.fixture
def siem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A configuration that reads such a source, with a store that knows how far; what the source was asked for."""
    asked: list[Any] = []
    real = plugins.connector
    held = Connector(source=lambda id, options: Held(asked))
    monkeypatch.setattr(plugins, "connector", lambda name: held if name == "held" else real(name))
    root = {"root": {"roles": ["admin"], "key": pem("root")}}
    (tmp_path / "bootstrap.yml").write_text(yaml.safe_dump({"data": "data", "trust_root": root}))
    streams = {name: {"source": name, "detectors": ["ours"]} for name in ("siem", "logs")}
    sources = {"siem": {"type": "held"}, "logs": {"type": "files", "paths": [str(tmp_path)]}}
    detectors = {"ours": {"type": "sigma", "path": "builtin"}}
    text = yaml.safe_dump({"revision": 1, "sources": sources, "detectors": detectors, "streams": streams})
    (tmp_path / "vedette.yml").write_text(text)
    store = Store(tmp_path / "data")
    store.commit(Commit("siem", {"main": 3}, NOW, NOW, Books(3, 3, {}, 0), Changes(1), []))
    store.close()
    return asked


def test_backtest_asks_the_siem_again_and_leaves_the_store_alone(
    sh: Shell, days: tuple[Path, Path], siem: list[Any], tmp_path: Path
) -> None:
    """As the stream would read it, but into no store: not one byte of it changes."""
    kept = {file.name: file.read_bytes() for file in (tmp_path / "data").iterdir() if file.is_file()}
    code, out, err = sh("backtest", days[0], "--stream", "siem", "--from", "2024-05-02", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[0])["alerts"] == 2
    start = 1_714_608_000_000_000
    assert siem == [({"main": 3}, {"place": None, "start": start, "end": None})]
    after = {file.name: file.read_bytes() for file in (tmp_path / "data").iterdir() if file.is_file()}
    assert {name: content for name, content in after.items() if content and "-shm" not in name} == {
        name: content for name, content in kept.items() if content and "-shm" not in name
    }


DAYS = f"""---
title: Days
id: {OTHER_ID}
level: high
correlation: {{type: event_count, rules: [{RULE_ID}], timespan: 2d, condition: {{gte: 2}}}}
"""


@pytest.mark.parametrize("words", [[], ["--stream", "siem"]], ids=["files", "siem"])
def test_backtest_begins_with_warm_correlations(
    sh: Shell, days: tuple[Path, Path], siem: list[Any], words: list[str]
) -> None:
    """The second event is the first in the time, and completes what the one before the time began."""
    rules, log = days
    (rules / "0.yml").write_text(rule(EVIL) + DAYS)
    told = [rules, *([] if words else [log]), *words, "--from", "2024-05-02", "--to", "2024-05-03"]
    code, out, err = sh("backtest", *told, "--json")
    row, facts = map(json.loads, out.splitlines())
    assert (code, err, row["id"], row["alerts"]) == (0, "", OTHER_ID, 1)
    assert facts["warm_from"] == "2024-04-29T00:00:00.000Z"
    said = "1 alerts of 1 rules\ncorrelations start warm: they know what happened from 2024-04-29T00:00:00.000Z on\n"
    assert said in sh("backtest", *told)[1]
    if words:
        start, end = 1_714_348_800 * SECOND, 1_714_694_400 * SECOND
        assert siem[0] == ({"main": 3}, {"place": None, "start": start, "end": end})


def test_what_happened_before_the_time_is_no_alert_of_it(sh: Shell, days: tuple[Path, Path], siem: list[Any]) -> None:
    """Of a window whose first trigger came before, nothing is counted, however many follow in the time."""
    rules, _ = days
    (rules / "0.yml").write_text(rule(EVIL) + DAYS.replace("gte: 2", "gte: 1"))
    _, out, _ = sh("backtest", rules, "--stream", "siem", "--from", "2024-05-02", "--json")
    row, facts = map(json.loads, out.splitlines())
    assert (row["alerts"], facts["events"]) == (1, 3)


def test_nothing_more_is_read_without_a_time_or_a_correlation(
    sh: Shell, days: tuple[Path, Path], siem: list[Any]
) -> None:
    rules, _ = days
    told = ["--stream", "siem", "--json"]
    first = sh("backtest", rules, *told, "--from", "2024-05-02")[1]
    (rules / "0.yml").write_text(rule(EVIL) + DAYS)
    second = sh("backtest", rules, *told, "--to", "2024-05-03")[1]
    assert [json.loads(out.splitlines()[-1])["warm_from"] for out in (first, second)] == [None, None]
    assert [span["start"] for _, span in siem] == [1_714_608_000 * SECOND, None]
    assert "warm" not in sh("backtest", rules, "--stream", "siem")[1]


def test_a_time_before_all_others_is_the_first_year(sh: Shell, days: tuple[Path, Path], siem: list[Any]) -> None:
    """Such as a clock that was never set has: there is nothing before it that could be asked for."""
    rules, _ = days
    (rules / "0.yml").write_text(rule(EVIL) + DAYS)
    for begin in ("1970-01-01", "0001-01-02"):
        assert sh("backtest", rules, "--stream", "siem", "--from", begin)[0] == 0
        assert to_text(siem[-1][1]["start"]) == "0001-01-01T00:00:00.000Z"


class Visits(Index):
    """An index with a request for /bad every half hour of a day; it can be searched by time and by id too.

    Each look at it finds it refreshed: what was not found is not waited for.
    """

    def reply(self, request: Request) -> Reply:
        self.refreshes += request.last == "refresh"
        return super().reply(request)

    def _search(self, shard: int, body: Any) -> Reply:
        if "ids" in body["query"]:
            return _hits([int(id.partition("-")[2]) for id in body["query"]["ids"]["values"]])
        found = [hit["sort"][0] for hit in super()._search(shard, body).body["hits"]["hits"]]
        _, time = body["query"]["bool"]["filter"]
        bounds = time["range"]["@timestamp"]
        return _hits([number for number in found if bounds["gte"] <= _visited(number) < bounds["lt"]])


def _hits(numbers: list[int]) -> Reply:
    about = {"ecs": {"version": "8.17.0"}, "url": {"path": "/bad"}, "event": {"category": ["web"]}}
    hits = [
        {"_index": "logs", "_id": f"0-{number}", "_source": {"@timestamp": _visited(number), **about}, "sort": [number]}
        for number in numbers
    ]
    return Reply(
        body={"timed_out": False, "_shards": {"total": 1, "successful": 1, "failed": 0}, "hits": {"hits": hits}}
    )


def _visited(number: int) -> str:
    return f"2024-05-05T{number // 2:02}:{number % 2 * 30:02}:00Z"


def test_a_siem_is_asked_for_the_warm_up_and_no_more(sh: Shell, tmp_path: Path) -> None:
    """A third request within an hour and a half is at 10:30 and before 11:00, if one knows of those before 10:00."""
    bad = rule("{sel: {url.path: /bad}, condition: sel}", logsource="{category: webserver}", name="bad")
    three = joined(1, "bad", timespan="90m").replace("gte: 2", "gte: 3")
    rules = folder(tmp_path / "rules", bad + three)
    root = {"root": {"roles": ["admin"], "key": pem("root")}}
    (tmp_path / "bootstrap.yml").write_text(yaml.safe_dump({"data": "data", "trust_root": root}))
    with Visits() as visits:
        visits.write(48)
        source = {"type": "elasticsearch", "hosts": [visits.url], "indices": ["logs"], "searches_per_second": 100}
        written = {
            "revision": 1,
            "sources": {"logs": source},
            "detectors": {"ours": {"type": "sigma", "path": "builtin"}},
            "streams": {"siem": {"source": "logs", "detectors": ["ours"]}},
        }
        (tmp_path / "vedette.yml").write_text(yaml.safe_dump(written))
        told = ["backtest", rules, "--from", "2024-05-05T10:00", "--to", "2024-05-05T11:00", "--json"]
        code, out, err = sh(*told)
    row, facts = map(json.loads, out.splitlines())
    assert (code, err) == (0, "")
    assert (row["alerts"], facts["events"], facts["warm_from"]) == (1, 7, "2024-05-05T07:30:00.000Z")


def joined(id: int, rules: str, *, tumbles: bool = False, timespan: str = "1h", **more: Any) -> str:
    """Return a correlation called c*id*: at least two, or fewer than two."""
    condition = {"lt": 2} if tumbles else {"gte": 2}
    said = {"type": "event_count", "rules": rules.split(), "timespan": timespan, "condition": condition, **more}
    about = {"title": f"c{id}", "id": f"00000000-0000-4000-8000-00000000000{id}", "name": f"c{id}"}
    return f"---\n{yaml.safe_dump({**about, 'correlation': said})}"


@pytest.mark.parametrize(
    ("correlations", "since"),
    [
        ([], "10:20"),
        ([joined(1, "evil")], "09:00"),
        ([joined(1, "evil", tumbles=True)], "10:00"),
        ([joined(1, "evil"), joined(2, "evil", timespan="4h")], "04:00"),
        ([joined(1, "evil", timespan="10m"), joined(2, "c1")], "08:50"),
        ([joined(1, "evil", timespan="30m", tumbles=True), joined(2, "c1")], "09:00"),
        ([joined(1, "evil", timespan="4h", tumbles=True), joined(2, "c1")], "08:00"),
        ([joined(1, "evil"), joined(2, "c1", tumbles=True)], "09:00"),
        ([joined(1, "evil", timespan="2h"), joined(2, "c1", timespan="10m")], "08:10"),
        ([joined(1, "evil", timespan="2h"), joined(2, "c1", timespan="10m", generate=True)], "08:00"),
        ([joined(1, "evil"), joined(2, "c1"), joined(3, "c2")], "07:00"),
        ([joined(1, "evil"), joined(2, "c1"), joined(3, "c1", timespan="4h")], "03:00"),
    ],
)
def test_how_far_back_correlations_must_know(correlations: list[str], since: str) -> None:
    """To 10:20, by hand: an own window and, if it slides, one before; of what is taken, its span before the taker's."""
    collection = compile_files([("rules.yml", (rule(EVIL, name="evil") + "".join(correlations)).encode())])
    assert len(collection.correlations) == len(correlations)
    found = warm_from(collection.correlations, instant("2024-05-05T10:20"))
    assert to_text(found)[:16] == f"2024-05-05T{since}"


def test_coverage_of_what_the_siem_holds(sh: Shell, days: tuple[Path, Path], siem: list[Any]) -> None:
    code, out, _ = sh("coverage", days[0], "--stream", "siem", "--from", "2024-05-01", "--json")
    assert code == 0
    assert [json.loads(line).get("state") for line in out.splitlines()] == ["fired", None]
    assert len(siem) == 1
    assert sh("coverage", *days, "--from", "2024-05-01")[0] == 2


def test_a_siem_that_fails_for_a_moment_is_asked_again() -> None:
    """Nothing is counted twice; one that goes on failing ends it."""
    source = Held([])
    source.failures.extend(RetryableError("busy", retry_after=0.001) for _ in range(PATIENCE - 1))
    assert sum(map(len, fetches(source))) == 3
    source.failures.extend(RetryableError("busy", retry_after=0.001) for _ in range(PATIENCE))
    with pytest.raises(RetryableError):
        list(fetches(source))


def test_backtest_names_what_it_cannot_read_again(sh: Shell, days: tuple[Path, Path], siem: list[Any]) -> None:
    code, _, err = sh("backtest", days[0], "--stream", "logs")
    assert (code, "source logs cannot be asked again" in err) == (3, True)
    code, _, err = sh("backtest", days[0])
    assert (code, "expected one of logs, siem" in err) == (3, True)


# --- tune -------------------------------------------------------------------------------------------------------------


def compiled(text: str) -> Rule:
    (found,) = compile_files([("rule.yml", text.encode())]).rules
    return found


def marked(id: str, verdict: str, **fields: Any) -> Marked:
    """Return an alert; two underscores in a name are a dot."""
    document: dict[str, Any] = {"event": {"id": id, "code": "1"}, "rule": {"id": RULE_ID}, "vedette": {"level": "high"}}
    for name, value in fields.items():
        *above, key = name.split("__")
        here = document
        for part in above:
            here = here.setdefault(part, {})
        here[key] = value
    return Marked(id, verdict, document)


def test_the_filter_is_what_false_positives_share_and_no_true_one_has() -> None:
    """The user alone would hide the true one, and what is new in each event says nothing."""
    alerts = [
        marked("f1", FALSE, user__name="svc", process__executable="C:\\b.exe", process__pid=4),
        marked("f2", FALSE, user__name="svc", process__executable="C:\\b.exe", process__pid=4),
        marked("t1", TRUE, user__name="svc", process__executable="C:\\x.exe", process__pid=5),
        marked("u1", "", user__name="svc", process__executable="C:\\b.exe", process__pid=6),
        marked("u2", "", user__name="kim", process__executable="C:\\b.exe", process__pid=6),
    ]
    found = propose(compiled(rule(EVIL)), alerts)
    assert found is not None
    assert found.selections == [{"user.name": "svc", "process.executable": "C:\\b.exe"}]
    assert found.hidden == {FALSE: ["f1", "f2"], "": ["u1"]}
    assert found.left == []


def test_a_filter_has_as_many_fields_as_it_takes() -> None:
    """Each two of the three values that false positives share are a true one's too."""
    shared = {"process__executable": "C:\\b.exe", "user__name": "svc", "host__name": "one"}
    alerts = [marked("f1", FALSE, **shared), marked("f2", FALSE, **shared)]
    alerts += [marked(f"t {name}", TRUE, **{**shared, name: "other"}) for name in shared]
    found = propose(compiled(rule(EVIL)), alerts)
    assert found is not None
    assert len(found.selections[0]) == 3
    assert found.hidden == {FALSE: ["f1", "f2"]}


def test_several_groups_are_several_selections_and_a_single_one_is_left() -> None:
    alerts = [
        *(marked(f"a{n}", FALSE, user__name="svc", host__name="one") for n in range(3)),
        *(marked(f"b{n}", FALSE, user__name="bak", host__name="two") for n in range(2)),
        marked("c", FALSE, user__name="kim", host__name="three"),
        marked("t", TRUE, user__name="eve", host__name="one"),
    ]
    alerts = [Marked(one.id, one.verdict, {k: v for k, v in one.document.items() if k != "event"}) for one in alerts]
    found = propose(compiled(rule(EVIL)), alerts)
    assert found is not None
    assert [one["user.name"] for one in found.selections] == ["svc", "bak"]
    assert (found.hidden, found.left) == ({FALSE: ["a0", "a1", "a2", "b0", "b1"]}, ["c"])
    condition = yaml.safe_load(found.sigma(compiled(rule(EVIL)), WINDOWS))["filter"]["condition"]
    assert condition == "not 1 of selection_*"


def test_nothing_is_proposed_where_a_true_positive_is_alike() -> None:
    alike: Mapping[str, str] = {"user__name": "svc", "host__name": "one"}
    alerts = [
        marked("f1", FALSE, **alike),
        marked("f2", FALSE, **alike),
        marked("t", TRUE, **alike, source__ip="192.0.2.1"),
    ]
    assert propose(compiled(rule(EVIL)), alerts) is None


@pytest.mark.parametrize("value", ["C:\\*", "\\\\host\\share", "a?b", "*", "\\", "x\\?", "\\\\*"])
def test_values_are_meant_as_they_are(value: str) -> None:
    """A wildcard or backslash of an event's own stands for itself: it hides this value, and not another."""
    alerts = [marked("f", FALSE, user__name=value), marked("u", "", user__name="C:\\more and a much longer name")]
    found = propose(compiled(rule(EVIL)), alerts)
    assert found is not None
    assert found.hidden == {FALSE: ["f"]}


def test_a_vendors_fields_go_by_the_names_that_rules_use() -> None:
    about = compiled(rule("{sel: {eventName: x}, condition: sel}", logsource="{product: aws, service: cloudtrail}"))
    found = propose(about, [marked("f", FALSE, aws__cloudtrail__user_identity__type="Root")])
    assert found is not None
    assert found.selections[0]["user_identity.type"] == "Root"


def test_the_engine_leaves_out_what_the_proposal_said_it_would(sh: Shell, tmp_path: Path) -> None:
    """Of alerts as they are stored: the rule with the filter in it finds the true ones, and only them."""
    own = {"User": "LAB\\svc?", "ParentImage": "C:\\Tools\\*\\backup.exe"}
    events = [process(f"evil {number}", ProcessId=number, **own) for number in range(4)]
    events += [process("evil 9", User="LAB\\svc?", ParentImage="C:\\Tools\\x\\backup.exe")]
    log = write_log(tmp_path / "log.json", *events)
    found = run_rule(tmp_path / "rule.yml", rule(EVIL), log)
    alerts = [Marked(one.id, TRUE if "9" in one.document["process"]["command_line"] else FALSE, one.document)
              for one in found]  # fmt: skip
    proposal = propose(compiled(rule(EVIL)), alerts)
    assert proposal is not None
    assert sorted(proposal.hidden[FALSE]) == sorted(one.id for one in alerts if one.verdict == FALSE)
    (selection,) = proposal.selections
    assert len(selection) > 1
    left = run_rule(
        tmp_path / "filtered.yml", rule(EVIL) + "---\n" + proposal.sigma(compiled(rule(EVIL)), WINDOWS), log
    )
    assert [one.document["process"]["command_line"] for one in left] == ["evil 9"]


def test_the_filter_is_for_the_log_source_that_the_rule_has_before_any_pipeline() -> None:
    """Filters are matched with what is written; a filter for what a pipeline makes of it would be for no rule."""
    pipeline = b"transformations: [{id: p, type: change_logsource, product: windows, category: process_creation}]"
    text = rule(EVIL, logsource="{product: theirs}")
    about = compile_files([("a.yml", text.encode()), ("p.yml", pipeline)]).rules[0]
    assert about.logsource == ("windows", "process_creation", None)
    found = propose(about, [marked("f", FALSE, user__name="svc")])
    assert found is not None
    both = f"{text}---\n{found.sigma(about, {'product': 'theirs'})}"
    assert list(compile_files([("a.yml", both.encode()), ("p.yml", pipeline)]).filters.values()) == [1]


def run_rule(file: Path, text: str, log: Path) -> list[Alert]:
    """Return the alerts that a rule makes of a log."""
    file.write_text(text)
    source, runner = log_source([log]), Runner(build("rules", {"path": str(file)}, None))
    return [alert for records in fetches(source) for alert in runner.step(records, source).alerts]


def test_tune_reads_marks_from_the_store_and_writes_a_sigma_filter(sh: Shell, tmp_path: Path) -> None:
    """The file is a filter as pySigma reads it, for this rule and its log source."""
    (tmp_path / "rule.yml").write_text(rule(EVIL))
    document = marked("x", "", user__name="svc", host__name="one").document
    store = Store(tmp_path / "data")
    alerts = [Alert(letter * 32, RULE_ID, "A rule", "high", NOW, document) for letter in "ab"]
    store.commit(Commit("s", {}, NOW, NOW, Books(2, 2, {}, 0), Changes(1), alerts))
    store.close()
    code, _, err = sh("tune", tmp_path / "rule.yml", "-d", tmp_path / "data")
    assert (code, "none of the 2 stored alerts" in err) == (1, True)
    store = Store(tmp_path / "data")
    store.acknowledge("a" * 32, by="kim", verdict=FALSE, note=None, now=NOW)
    store.close()
    code, out, err = sh("tune", tmp_path / "rule.yml", "-d", tmp_path / "data", "-o", tmp_path / "filter.yml")
    assert (code, err) == (0, "")
    assert f"would have hidden: 1 of 1 marked {FALSE}, 0 of 0 marked {TRUE}" in out
    assert f"unmarked: 1: {'b' * 8}" in out
    found = SigmaFilter.from_yaml((tmp_path / "filter.yml").read_text())
    assert [one.reference for one in found.filter.rules] == [RULE_ID]
    assert found.logsource.category == "process_creation"
    assert set(found.filter.detections) == {"selection"}


def test_tune_takes_pipelines_that_lie_elsewhere(sh: Shell, tmp_path: Path) -> None:
    """Without them the rule cannot run, and so not be tuned."""
    (tmp_path / "rule.yml").write_text(rule("{sel: {CommandLine|expand: '%words%'}, condition: sel}"))
    (tmp_path / "p.yml").write_text("{name: p, vars: {words: [evil]}, transformations: [{type: value_placeholders}]}")
    store = Store(tmp_path / "data")
    document = marked("x", "", user__name="svc", host__name="one").document
    alert = Alert("a" * 32, RULE_ID, "A rule", "high", NOW, document)
    store.commit(Commit("s", {}, NOW, NOW, Books(2, 2, {}, 0), Changes(1), [alert]))
    store.acknowledge("a" * 32, by="kim", verdict=FALSE, note=None, now=NOW)
    store.close()
    words = ["tune", tmp_path / "rule.yml", "-d", tmp_path / "data"]
    assert sh(*words)[0] == 3
    code, out, err = sh(*words, "--pipeline", tmp_path / "p.yml")
    assert (code, err, f"would have hidden: 1 of 1 marked {FALSE}" in out) == (0, "", True)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", ["How a rule is tested", "Rules on many events"])
def test_the_page_shows_commands_as_they_are(sh: Shell, tmp_path: Path, heading: str, monkeypatch: Any) -> None:
    """Each command of docs/rules.md does its work in a folder such as it speaks of."""
    monkeypatch.chdir(tmp_path)
    for name in ("rules", "released"):
        folder(tmp_path / name, rule(EVIL)).joinpath("0.yml").rename(tmp_path / name / "comsvcs.yml")
    write_log(tmp_path / "logs" / "a.json", process("good"), process("evil"))
    write_log(tmp_path / "samples" / RULE_ID / "hits" / "a.json", process("evil"))
    write_log(tmp_path / "event.json", process("evil"))
    (tmp_path / "wanted.txt").write_text("T1003\n")
    (tmp_path / "expected.yml").write_text(f"{RULE_ID}: 1\n")
    (tmp_path / "theirs.yml").write_text("{name: theirs, transformations: []}\n")
    (block,) = (one for one in blocks(DOCS / "rules.md") if (one.heading, one.language) == (heading, "sh"))
    commands = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    codes = {" ".join(words[2:]): sh(*words[2:])[0] for words in commands}
    assert {name for name, code in codes.items() if code} <= {"coverage rules/ --techniques wanted.txt"}
    assert len(codes) >= 4


def test_the_page_lists_the_checks() -> None:
    said = re.findall(r"^\| `([a-z-]+)` \|", (DOCS / "rules.md").read_text().partition("| check |")[2], re.M)
    assert said == list(CHECKS)
