"""A trained model as a detector: what it finds, what it says, what it refuses to be made of."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pytest

from agent.alerting import Judge
from agent.alerting.judge import OPERATOR
from agent.detect import weights
from agent.detect.model import ModelDetector, load
from agent.errors import ConfigError, TrustError
from agent.model import Finding
from agent.normalise import Normaliser
from agent.pipeline import Pipeline
from agent.state import State
from agent.testing_detectors import MemoryState, batch_of, keyed
from agent.trust.manifest import parse
from tests.models import BEGIN, DAY, HOUR, ROWS, WINDOWS, artifact, detector, history, logon, records

NIGHT = BEGIN + 35 * DAY + 3 * HOUR
ODD = logon(NIGHT, "mallory", "203.0.113.9")
USUAL = logon(BEGIN + 35 * DAY + 9 * HOUR, "alice", "10.0.0.0", **{"source.bytes": 101})
MINUTE = 60_000_000


def burst() -> list[Mapping[str, Any]]:
    return [logon(NIGHT + n * MINUTE, "bob", f"203.0.113.{n}", **{"source.bytes": 9_000}) for n in range(20)]


def found(one: ModelDetector, events: list[Mapping[str, Any]]) -> list[Finding]:
    state = MemoryState()
    return [*one.detect(batch_of(keyed(events)), state), *one.advance(NIGHT + 9 * DAY, state)]


def test_an_unusual_event_is_found_and_a_usual_one_is_not() -> None:
    """Another user, an address of the Internet, at night."""
    (finding,) = found(detector(artifact(ROWS)), [USUAL, ODD])
    assert finding.row == 1
    assert finding.window is None
    assert [reference.key for reference in finding.evidence] == [1]
    assert finding.detector.kind == "model"
    assert finding.detector.digest == "d" * 64
    assert finding.score is not None
    assert finding.score > 0.99


def test_an_unusual_window_is_found_when_it_closes() -> None:
    events = [*burst(), USUAL]
    (finding,) = found(detector(artifact(WINDOWS)), events)
    assert finding.entity == (("user.name", "bob"),)
    assert finding.window == (NIGHT, NIGHT + HOUR)
    assert finding.fields["vedette.evidence.total"] == 20
    assert finding.row is None


def test_a_window_beside_which_others_were_dropped_is_marked() -> None:
    """And only such a window: with room for all, none is."""
    crowd = [logon(NIGHT, f"user{n}", "203.0.113.9") for n in range(40)]
    wide = found(detector(artifact(WINDOWS), share=1.0), crowd)
    assert not any("vedette.capped" in finding.fields for finding in wide)
    few = found(detector(artifact(WINDOWS), share=1.0, max_windows=20), crowd)
    assert 0 < len(few) <= 20
    assert all(finding.fields["vedette.capped"] is True for finding in few)


def test_a_finding_says_what_was_seen_and_what_was_expected() -> None:
    """Factors by weight, observed beside the training median, and the place among calibration in words."""
    (finding,) = found(detector(artifact(WINDOWS)), burst())
    named = {factor.field: factor for factor in finding.explanation.factors}
    assert (named["sources"].observed, named["sources"].expected) == (20, 1)
    assert named["hour"].observed == "03:00 UTC"
    shares = [factor.contribution or 0 for factor in finding.explanation.factors]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=0.01)
    said = finding.explanation.sentence
    assert said.startswith(
        "user.name bob from 2026-02-11 03:00 to 04:00 UTC: none of 367 in calibration was as unusual"
    )
    assert "sources 20 (usually 1)" in said
    assert 0 < (finding.explanation.maturity or 0) < 1


def test_a_missing_value_counts_as_the_training_median_and_reads_as_missing() -> None:
    """As usual as it would be with the median; a factor that is missing is not said to be seen."""
    one, bare = detector(artifact(WINDOWS), share=1.0), {**USUAL}
    del bare["source.bytes"]
    full, lacking = (found(one, [event])[0] for event in (USUAL, bare))
    assert full.fields["vedette.score.raw"] != lacking.fields["vedette.score.raw"]
    assert {factor.observed for factor in lacking.explanation.factors if factor.field == "mean"} <= {"missing"}


def test_what_is_judged_and_found_is_counted() -> None:
    """So that the realised budget can be held against the one asked for."""
    state = MemoryState()
    detector(artifact(ROWS)).detect(batch_of(keyed([USUAL, USUAL, ODD])), state)
    assert state.counters == {"model.logon-rows.judged": 3, "model.logon-rows.found": 1}


def test_the_realised_budget_is_about_the_one_asked_for() -> None:
    """On events of the calibration's own sort, 5 % asked for: 2 to 9 % found."""
    events = list(history())
    state = MemoryState()
    one = detector(artifact(ROWS), share=0.05)
    one.detect(batch_of(keyed(events)), state)
    assert 0.02 < state.counters["model.logon-rows.found"] / len(events) < 0.09


def test_a_budget_that_calibration_cannot_resolve_is_refused() -> None:
    with pytest.raises(ConfigError, match="model logon-rows: budget: expected at least"):
        detector(artifact(ROWS), share=1e-6)


def test_the_plan_says_what_runs_and_how_much_it_may_find() -> None:
    plan = detector(artifact(ROWS), shadow=True).plan()
    assert orjson.loads(orjson.dumps(plan)) == plan
    assert plan["state"] == "shadow"
    assert plan["digest"] == "d" * 64
    assert plan["threshold"]["p_value"] == pytest.approx(0.01, abs=0.0015)
    assert plan["smallest_budget"] < plan["budget"]
    assert plan["features"]["hour"].endswith("UTC")


def alerts(one: ModelDetector, cap: int | None = None) -> list[Any]:
    pipeline = Pipeline([one])
    judge = Judge(pipeline.normaliser, tenant="t", stream="s", cap=cap)
    made, state = [], State()
    for fetch in records([*history()[:50], ODD, *burst()]):
        transaction = state.transaction()
        evaluation = pipeline.evaluate(fetch, transaction)
        view = transaction.view(OPERATOR)
        made += judge.judge(
            evaluation.findings, evaluation.dead, evaluation.batch, view, lambda _: {}, evaluation.watermark
        )
        transaction.changes()
        transaction.apply()
    return made


@pytest.mark.parametrize("recipe", [ROWS, WINDOWS])
def test_an_alert_carries_model_signer_and_scores(recipe: Mapping[str, Any]) -> None:
    document = alerts(detector(artifact(recipe)))[0].document
    assert document["vedette"]["model"] == {"id": recipe["name"], "digest": "d" * 64, "signer": "5" * 64}
    score = document["vedette"]["score"]
    assert score["value"] == 1 - score["p_value"]
    assert 0.5 < score["raw"] < 1
    assert score["budget"] > 0
    assert document["rule"]["category"] == "model"
    assert document["user"]["name"] in {"mallory", "bob"}
    orjson.dumps(document)


@pytest.mark.parametrize("recipe", [ROWS, WINDOWS])
def test_a_shadow_model_is_stored_and_never_delivered(recipe: Mapping[str, Any]) -> None:
    """Its alerts have the ids of the active model's, use no delivery cap and raise no storm."""
    shadow, active = (alerts(detector(artifact(recipe), shadow=shadow), cap=1) for shadow in (True, False))
    assert shadow
    assert not any(alert.deliver for alert in shadow)
    assert {alert.id for alert in shadow} <= {alert.id for alert in active}
    assert any(alert.deliver for alert in active)


def changed(files: Mapping[str, bytes], change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """Return *files* with other weights."""
    arrays = {name: array.copy() for name, array in weights.load(files["weights.npz"]).items()}
    change(arrays)
    return {**files, "weights.npz": weights.dump(arrays)}


def _swap_scores(arrays: dict[str, Any]) -> None:
    arrays["calibration"] = arrays["calibration"][::-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("medians"),
        lambda arrays: arrays.update(extra=np.zeros(3)),
        lambda arrays: arrays.update(medians=np.zeros(3)),
        lambda arrays: arrays.update(medians=arrays["medians"].astype(np.float32)),
        lambda arrays: arrays.update(medians=arrays["medians"] * np.nan),
        lambda arrays: arrays.update(calibration=arrays["calibration"][1:]),
        _swap_scores,
        lambda arrays: arrays["feature"].__setitem__(0, 99),
        lambda arrays: arrays.update({"rarity.user.keys": np.zeros((4, 8), np.uint8)}),
        lambda arrays: arrays.update({"rarity.user.values": np.zeros(2)}),
        lambda arrays: arrays.pop("rarity.user.keys"),
    ],
)
def test_weights_that_are_not_what_the_manifest_says_are_refused(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(TrustError):
        load(changed(artifact(ROWS), change))


def test_a_recipe_that_this_version_does_not_know_is_refused() -> None:
    files = artifact(ROWS)
    manifest = orjson.loads(files["manifest.json"])
    manifest["recipe"]["features"]["x"] = {"novelty": "user.name"}
    with pytest.raises(TrustError, match=r"model logon-rows: .*features\.x"):
        load({**files, "manifest.json": orjson.dumps(manifest)})


def test_weights_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.savez(file, roots=np.array([object()], dtype=object))
    with pytest.raises(TrustError, match="plain array"):
        load({**artifact(ROWS), "weights.npz": file.getvalue()})


def test_the_detector_has_the_id_of_the_manifest() -> None:
    assert detector(artifact(ROWS)).id == parse(artifact(ROWS)["manifest.json"]).id == "logon-rows"


def test_no_interest_in_events_that_cannot_match() -> None:
    """Fields are asked for only of kinds that the recipe may be about."""
    one = detector(artifact(ROWS))
    kinds = batch_of([{"event.category": "process"}, {"event.category": "authentication"}],
                     constants=("event.category",)).kinds  # fmt: skip
    assert one.fields(kinds[0]) == frozenset()
    assert one.fields(kinds[1]) == {"event.outcome", "source.ip", "user.name"}
    assert Normaliser(one.fields)
