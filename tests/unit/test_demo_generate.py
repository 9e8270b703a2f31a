"""The demo's logs: the same for the same seed, native in form, and labelled truly; and the judge's arithmetic."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.demo import Labels, Step, Story, generate, judge, last_working_day

DAY = date(2026, 11, 20)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Labels]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, generate(folder, day=DAY, scale=0.1)


def _digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        state.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return state.hexdigest()


def _bytes(folder: Path, file: str) -> bytes:
    raw = (folder / file).read_bytes()
    return gzip.decompress(raw) if file.endswith(".gz") else raw


def _records(folder: Path, file: str) -> list[bytes]:
    raw = _bytes(folder, file)
    return list(map(orjson.dumps, json.loads(raw)["Records"])) if file.endswith(".gz") else raw.split(b"\n")[:-1]


def _at(folder: Path, file: str, offset: int) -> bytes:
    """The record that begins at *offset*."""
    raw = _bytes(folder, file)[offset:]
    if not file.endswith(".gz"):
        return raw.partition(b"\n")[0]
    record, _ = json.JSONDecoder().raw_decode(raw.decode())
    return orjson.dumps(record)


def _steps(labels: Labels) -> dict[str, Step]:
    return {step.id: step for story in labels.stories for step in story.steps}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Two runs with the same arguments write the same bytes; another seed writes others."""
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        generate(tmp_path / name, seed=seed, day=DAY, hours=12, scale=0.02)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")


def test_counts_are_lines(demo: tuple[Path, Labels]) -> None:
    """The labels count the records of every file, and there are no other files."""
    folder, labels = demo
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*labels.events, "labels.json"}
    assert labels.events == {file: len(_records(folder, file)) for file in labels.events}


def test_every_step_is_in_the_files(demo: tuple[Path, Labels]) -> None:
    """Each place that a label names holds a record that names one of the step's entities."""
    folder, labels = demo
    steps = _steps(labels).values()
    assert all(step.events == len(step.places) > 0 for step in steps)
    for step in steps:
        words = [value.encode() for values in step.entities.values() for value in values]
        for file, offset in step.places[:30]:
            record = _at(folder, file, offset)
            assert not words or any(word in record for word in words), (step.id, record)


def test_labels_survive_their_file(demo: tuple[Path, Labels]) -> None:
    """labels.json read again is what generate returned."""
    folder, labels = demo
    assert Labels.read(folder / "labels.json") == labels


def test_records_are_native(demo: tuple[Path, Labels]) -> None:
    """But for the labelled oddities every record has the form of its source."""
    folder, labels = demo
    odd = [
        _at(folder, *place) for id, step in _steps(labels).items() if id.startswith("faults/") for place in step.places
    ]
    forms = {
        "windows": _is_windows,
        "dns": lambda raw: bool(json.loads(raw)["dns"]["question"]["name"]),
        "linux": re.compile(rb"[A-Z][a-z]{2} [ 0-3]\d \d\d:\d\d:\d\d [\w-]+ \w+(\[\d+\])?: .+").fullmatch,
        "web": re.compile(rb'[\d.]+ - \S+ \[[^\]]+\] "[A-Z]+ \S+ HTTP/1\.1" \d{3} (\d+|-) "[^"]*" "[^"]*"').fullmatch,
        "aws": lambda raw: bool(json.loads(raw)["eventName"]),
    }
    for file in labels.events:
        form = forms[file.removeprefix("history/").partition("/")[0]]
        for raw in _records(folder, file):
            assert form(raw) or raw in odd, (file, raw)


def _is_windows(raw: bytes) -> bool:
    try:
        return {"@timestamp", "EventID", "Channel", "SourceName", "Hostname"} <= orjson.loads(raw).keys()
    except ValueError:
        return False


def test_there_are_faults(demo: tuple[Path, Labels]) -> None:
    """The files hold records that cannot be read, a year 9999 and a repeat, and the labels say where."""
    folder, labels = demo
    steps = _steps(labels)
    assert sum(id.startswith("faults/") and step.expected == "loud" for id, step in steps.items()) == 4
    first, second = (_at(folder, *place) for place in steps["faults/repeat"].places)
    assert first == second
    assert b'"9999-' in _at(folder, *steps["faults/future"].places[0])


def test_addresses_are_invented(demo: tuple[Path, Labels]) -> None:
    """Every address is private or set aside for documentation, every domain is under example."""
    folder, labels = demo
    allowed = [ipaddress.ip_network(net) for net in ("10.0.0.0/8", "127.0.0.0/8", "192.0.2.0/24")]
    allowed += [ipaddress.ip_network(net) for net in ("198.51.100.0/24", "203.0.113.0/24")]
    field = re.compile(
        r'"(?:ip|IpAddress|SourceIp|DestinationIp|sourceIPAddress)": ?"([^"]+)"|from ([\d.]+) port|^([\d.]+) - '
    )
    found = {
        next(filter(None, match))
        for file in labels.events
        for raw in _records(folder, file)
        for match in field.findall(raw.decode("utf-8", "replace"))
    } - {"-"}
    assert len(found) > 100
    assert [one for one in found if not any(ipaddress.ip_address(one) in net for net in allowed)] == []


def test_history_ends_before_the_day(demo: tuple[Path, Labels]) -> None:
    """History is logons only, quiet, and older than the day but for sessions that end after midnight."""
    folder, _ = demo
    records = [json.loads(raw) for raw in _records(folder, "history/windows/sysmon-security.jsonl")]
    assert {record["EventID"] for record in records} == {4624, 4634}
    assert max(record["@timestamp"] for record in records) < "2026-11-20T06"
    assert min(record["@timestamp"] for record in records) < "2026-10-24"


def test_hours_cut_the_day(tmp_path: Path) -> None:
    """A short day holds nothing later, and steps that did not happen have no events."""
    labels = generate(tmp_path, day=DAY, hours=6, scale=0.02)
    steps = _steps(labels)
    assert steps["backup-account/walk"].events == 180
    assert steps["phishing/lsass"].events == 0
    assert all(raw < b"Nov 20 06" for raw in _records(tmp_path, "linux/auth.log"))


def test_working_days() -> None:
    """The demo's day is never a weekend and never today."""
    assert [last_working_day(date(2026, 11, 20 + n)).isoformat() for n in range(4)] == [
        "2026-11-19", "2026-11-20", "2026-11-20", "2026-11-20"
    ]  # fmt: skip


# --- the judge --------------------------------------------------------------------------------------------------------


def _step(id: str, events: int = 1, **entities: tuple[str, ...]) -> Step:
    named = {name.replace("_", "."): values for name, values in entities.items()}
    times = ("2026-11-20T11:00:00.000Z", "2026-11-20T11:05:00.000Z")
    return Step(
        id, "what", "T1003.001", "rule", named, *times, events, tuple(("aws/b.json.gz", n) for n in range(events))
    )


FILES = {"aws/b.json.gz": 200, "history/aws/b.json.gz": 9, "aws/a.json.gz": 9, "web/access.log": 9}
ATTACK = Story("s", "An attack", False, (_step("s/1", 100, user_name=("deploy",)),))
HARMLESS = Story(
    "h", "A neighbour", True, (Step("h/1", "", "", "loud", {}, events=1, places=(("web/access.log", 7),)),)
)
LABELS = Labels(7, "2026-11-20", FILES, (ATTACK, HARMLESS))


def _alert(*places: tuple[str, int], user: str = "", hour: int = 11) -> dict[str, Any]:
    return {
        "@timestamp": "2026-11-21T00:00:00.000Z",
        "event": {"start": f"2026-11-20T{hour}:00:00.000Z", "end": f"2026-11-20T{hour + 1}:00:00.000Z"},
        "rule": {"id": "r-1", "name": "a rule"},
        "vedette": {
            "entity": {"user.name": user} if user else {},
            "evidence": {"records": [{"path": f"/logs/{file}", "key": str(offset)} for file, offset in places]},
        },
    }


def test_citing_a_record_of_the_step_is_a_catch() -> None:
    """An alert that cites a record of the step has caught it, whatever else it says."""
    card = judge(LABELS, [_alert(("aws/b.json.gz", 7), hour=20), _alert(("aws/b.json.gz", 8))])
    assert card.attacks[0].alerts == {"a rule": 2}
    assert (card.stories_caught, card.false_alarms, card.alerts) == (1, {}, 2)


@pytest.mark.parametrize("place", [("aws/b.json.gz", 100), ("history/aws/b.json.gz", 7), ("aws/a.json.gz", 7)])
def test_citing_another_record_is_a_false_alarm(place: tuple[str, int]) -> None:
    """Another offset, or the same offset in another file, is a false alarm, counted by rule."""
    card = judge(LABELS, [_alert(place, user="deploy")])
    assert card.false_alarms == {"a rule": 1}
    assert not any(verdict.caught for verdict in card.verdicts)


def test_harmless_story_is_counted_apart() -> None:
    """An alert on something harmless is no catch, and not among the unexplained false alarms."""
    card = judge(LABELS, [_alert(("web/access.log", 7))])
    assert card.harmless[0].caught
    assert (card.stories_caught, card.false_alarms) == (0, {})


COUNTED = (("aws/a.json.gz", 1), ("aws/a.json.gz", 2))


def test_count_over_the_window_is_a_catch() -> None:
    """A count of the step's entity over a window around many records has caught them without citing them."""
    assert judge(LABELS, [_alert(*COUNTED, user="deploy")]).attacks[0].caught


@pytest.mark.parametrize(
    "alert",
    [
        _alert(*COUNTED, user="backup"),
        _alert(*COUNTED),
        _alert(*COUNTED, user="deploy", hour=13),
        _alert(("web/access.log", 1), ("web/access.log", 2), user="deploy"),
    ],
    ids=["another entity", "no entity", "another hour", "another log"],
)
def test_count_of_something_else_is_not(alert: dict[str, Any]) -> None:
    """Another entity, hour or log: not a catch."""
    assert not judge(LABELS, [alert]).attacks[0].caught
