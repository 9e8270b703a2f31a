"""Training: reproducible to the byte, by time, on what the running pipeline sees; and the commands around it."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import typer
import yaml
from typer.testing import CliRunner

from agent import artifact as folders
from agent.cli import features, model
from agent.detect import weights
from agent.detect.model import load
from agent.errors import ConfigError
from agent.featurise.recipe import schema_hash
from agent.science.train import collect, train
from agent.testing_detectors import batch_of, keyed
from agent.trust.manifest import instant, parse
from tests.models import BEGIN, DAY, HOUR, NOW, ROWS, WINDOWS, artifact, history, logon, options, recipe, records

BOTH = pytest.mark.parametrize("data", [ROWS, WINDOWS])


@BOTH
def test_the_same_input_and_seed_give_the_same_bytes(data: Mapping[str, Any]) -> None:
    """However the log is cut into fetches, and in whatever order its records lie."""
    wanted, late = recipe(data, lateness="60d"), NOW + 100 * DAY
    whole = train(wanted, records(history(), as_of=late), options())
    assert train(wanted, records(history(), as_of=late, size=97), options()) == whole
    shuffled = random.Random(2).sample(history(), len(history()))
    assert train(wanted, records(shuffled, as_of=late), options()) == whole
    assert train(wanted, records(history(), as_of=late), options(seed=8)) != whole


@BOTH
def test_the_manifest_says_what_it_was_made_of(data: Mapping[str, Any]) -> None:
    manifest = parse(artifact(data)["manifest.json"])
    assert manifest.id == data["name"]
    assert manifest.schema_hash == schema_hash(data) == schema_hash(manifest.recipe)
    learnt, later = manifest.training, manifest.calibration
    assert instant(learnt.begin) < instant(learnt.end) == instant(later.begin) < instant(later.end) < NOW
    assert 0.65 < learnt.rows / (learnt.rows + later.rows) < 0.75
    assert later.smallest_budget == later.rows_per_day / (later.rows + 1)
    assert later.rows_per_day == pytest.approx(later.rows / ((instant(later.end) - instant(later.begin)) / DAY))
    assert instant(manifest.not_after) - instant(manifest.not_before) == 90 * DAY
    assert {"python", "numpy", "scikit-learn", "vedette"} == manifest.versions.keys()
    assert manifest.provenance["seed"] == "7"
    assert all(gate.passed for gate in manifest.gates)


def test_features_of_training_are_those_of_the_detector() -> None:
    """Row by row the same numbers, one through the pipeline with numbered values, one live with what was learnt."""
    live = load(artifact(ROWS)).featuriser
    events = [event for event in history() if event["event.outcome"] == "success"]
    table = collect(recipe(ROWS), records(history()))
    learnt = {name: table.take(table.time < _border(ROWS)).learn()[name] for name in table.numbered}
    rows, values = live.rows(batch_of(keyed(events)))
    assert table.time.tolist() == [event["@timestamp"] for event in events]
    np.testing.assert_array_equal(table.resolved(learnt).values, values)
    assert rows.tolist() == list(range(len(events)))


def _border(data: Mapping[str, Any]) -> int:
    return instant(parse(artifact(data)["manifest.json"]).training.end)


def test_calibration_is_of_rows_that_taught_nothing() -> None:
    """A value that only the later period shows is new to the model."""
    odd = [logon(BEGIN + 30 * DAY + n, "eve", "198.51.100.99") for n in range(200)]
    files = train(recipe(ROWS), records([*history(), *odd]), options())
    known = load(files).featuriser
    (row,) = known.rows(batch_of([logon(0, "eve", "10.0.0.0")]))[1].tolist()
    assert row[known.columns.index("user")] == weights.load(files["weights.npz"])["rarity.user.values"][-1]


def test_excluded_spans_teach_nothing_and_calibrate_nothing() -> None:
    """Neither their rows nor their time count."""
    cut = (BEGIN + 28 * DAY, BEGIN + 29 * DAY)
    files = train(recipe(ROWS), records(history()), options(exclude=[cut, (BEGIN, BEGIN + 5 * DAY)]))
    manifest = parse(files["manifest.json"])
    inside = [event for event in history() if event["event.outcome"] == "success"
              and not cut[0] <= event["@timestamp"] < cut[1] and event["@timestamp"] >= BEGIN + 5 * DAY]  # fmt: skip
    later = manifest.calibration
    assert manifest.training.rows + later.rows == len(inside)
    assert instant(manifest.training.begin) >= BEGIN + 5 * DAY
    days = (instant(later.end) - instant(later.begin)) / DAY - 1
    assert later.rows_per_day == pytest.approx(later.rows / days)


def test_the_time_of_excluded_spans_counts_once() -> None:
    """However often, in whatever order and however overlapping the same day is named."""
    day = BEGIN + 27 * DAY
    parts = [(day + 6 * HOUR, day + DAY), (day, day + 12 * HOUR), (day, day + DAY), (day + HOUR, day + 2 * HOUR)]
    once, often = (
        parse(train(recipe(ROWS), records(history()), options(exclude=spans))["manifest.json"]).calibration
        for spans in ([(day, day + DAY)], parts)
    )
    assert often == once


def test_a_gap_in_the_logs_makes_no_quiet_days() -> None:
    """One stray event a year later: the rate stays that of days with events."""
    stray = logon(NOW + 400 * DAY, "alice", "10.0.0.1")
    gap, none = (
        parse(train(recipe(ROWS), records(log, as_of=NOW + 500 * DAY), options())["manifest.json"]).calibration
        for log in ([*history(), stray], history())
    )
    assert gap.rows_per_day == pytest.approx(none.rows_per_day, rel=0.2)


def test_rows_without_a_time_or_from_the_future_teach_nothing() -> None:
    untimed = {"event.category": "authentication", "event.outcome": "success", "user.name": "x"}
    odd = [{**untimed, "@timestamp": NOW}, {**untimed, "@timestamp": NOW + 3 * DAY}]
    assert len(collect(recipe(ROWS), records(odd))) == 0
    assert len(collect(recipe(WINDOWS), records(odd))) == 0


@pytest.mark.parametrize(("number", "said"), [(0, "got 0 "), (120, "got 84 "), (250, "got 75 ")])
def test_too_few_rows_are_refused_with_their_number(number: int, said: str) -> None:
    few = [logon(BEGIN + n * HOUR, "alice", "10.0.0.1") for n in range(number)]
    with pytest.raises(ConfigError, match=f"expected at least 100 rows .*{said}"):
        train(recipe(ROWS), records(few), options())


def test_logs_in_which_nothing_varies_are_refused() -> None:
    same = [logon(BEGIN + n * DAY // 24, "alice", "10.0.0.1") for n in range(500)]
    data = {**ROWS, "features": {"user": {"rarity": "user.name"}}}
    with pytest.raises(ConfigError, match="the same in all training rows"):
        train(recipe(data), records(same), options())


def test_what_never_varies_is_named() -> None:
    """A column that is always the same, or always missing, can tell nothing apart; the manifest says so."""
    data = {**ROWS, "features": {**ROWS["features"], "gone": {"number": "http.response.status_code"},
                                 "kind": {"one_of": "event.outcome", "values": ["success", "failure"]}}}  # fmt: skip
    files = train(recipe(data), records(history()), options())
    assert parse(files["manifest.json"]).provenance["constant"] == "gone, kind=success, kind=failure"
    assert np.isfinite(load(files).score(np.full((1, 8), np.nan))).all()


def test_an_artifact_is_small_and_holds_no_value_of_the_logs() -> None:
    files = artifact(ROWS)
    assert sum(map(len, files.values())) < 600_000
    assert not any(text in data for data in files.values() for text in (b"alice", b"10.0.0.", b"198.51"))


# --- the commands -----------------------------------------------------------------------------------------------------

app = typer.Typer()
app.command("features")(features.features)
app.command("train")(model.train)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a log and two recipes."""
    lines = [bytes(raw) for fetch in records(history()) for chunk in fetch.chunks for raw in chunk.raw]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    for data in (ROWS, WINDOWS):
        (tmp_path / f"{data['name']}.yml").write_text(yaml.safe_dump(dict(data)))
    return tmp_path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


def test_features_prints_one_line_a_feature(place: Path) -> None:
    """Name, share missing, least, median, greatest, and how they are spread."""
    result = run("features", place / "logon-windows.yml", place / "log.jsonl")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("logon-windows: 1,2")
    assert [line.split()[0] for line in lines[2:]] == [
        "bytes", "failed", "hour.sin", "hour.cos", "logons", "mean", "sources",
    ]  # fmt: skip
    assert "█" in lines[2]


def test_features_as_json_and_csv_are_the_same_rows(place: Path) -> None:
    given = (place / "logon-windows.yml", place / "log.jsonl")
    rows = [orjson.loads(line) for line in run("features", *given, "--json").stdout.splitlines()]
    table = list(csv.DictReader(io.StringIO(run("features", *given, "--csv").stdout)))
    assert len(rows) == len(table) > 1_000
    assert rows[0]["entity"].keys() == {"user.name"}
    assert [float(one["sources"]) for one in table] == [row["features"]["sources"] for row in rows]
    assert [one["@timestamp"] for one in table] == [row["@timestamp"] for row in rows]


def test_features_of_nothing_is_a_failed_check(place: Path) -> None:
    (place / "none.yml").write_text("name: none\nfeatures: {a: {length: dns.question.name}}\n")
    result = run("features", place / "none.yml", place / "log.jsonl")
    assert result.exit_code == 1
    assert "no events that the recipe is about" in result.stdout


def test_train_writes_an_artifact_twice_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under SOURCE_DATE_EPOCH every byte; the folder holds just the two files."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(NOW // 1_000_000))
    made = []
    for number in range(2):
        result = run("train", place / "logon-rows.yml", place / "log.jsonl", "-o", place / f"m{number}", "--days", 30)
        assert result.exit_code == 0, result.output
        assert f"next: vedette model sign {place / f'm{number}'}" in result.stdout
        made.append(folders.read(place / f"m{number}"))
    assert made[0] == made[1]
    assert made[0].keys() == {"manifest.json", "weights.npz"}
    manifest = parse(made[0]["manifest.json"])
    assert instant(manifest.not_after) == NOW + 30 * DAY
    assert manifest.training.source == str(place / "log.jsonl")


def test_train_as_json_and_with_everything_said(place: Path) -> None:
    result = run(
        "train", place / "logon-rows.yml", place / "log.jsonl", "--out", place / "m", "--title", "Odd logons",
        "--level", "high", "--technique", "T1078", "--exclude", "2026-01-10/2026-01-11T12:00Z", "--seed", 9, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = orjson.loads(result.stdout)["manifest"]
    assert (manifest["title"], manifest["level"], manifest["techniques"]) == ("Odd logons", "high", ["T1078"])
    assert manifest["provenance"]["seed"] == "9"


def test_train_refuses_before_it_reads(place: Path) -> None:
    """A folder that exists, a span that is none, logs that are not there."""
    (place / "m").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        run("train", place / "logon-rows.yml", place / "log.jsonl", "-o", place / "m")
    assert (
        run("train", place / "logon-rows.yml", place / "log.jsonl", "-o", place / "n", "--exclude", "x").exit_code == 2
    )
    with pytest.raises(ConfigError, match="no such file"):
        run("train", place / "logon-rows.yml", place / "gone", "-o", place / "n")
