"""The manifest: all that it must say, nothing that nobody knows."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from agent.errors import TrustError
from agent.trust.manifest import Gate, Manifest, instant, parse
from tests.artifacts import manifest


def test_a_manifest_survives_being_written() -> None:
    """What is made in Python, written and read again is the same."""
    made = Manifest.model_validate(manifest(tenants=("a", "b"), techniques=["T1078"], provenance={"seed": "7"}))
    assert parse(orjson.dumps(made.model_dump(mode="json"))) == made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "vedette.model/2"}, "format"),
        ({"more": 1}, "more: unknown key"),
        ({"id": "Logons"}, "id"),
        ({"id": "../logons"}, "id"),
        ({"title": ""}, "title"),
        ({"level": "grave"}, "level"),
        ({"kind": "pickle"}, "kind"),
        ({"weights": "weights.pkl"}, "weights"),
        ({"recipe": []}, "recipe"),
        ({"schema_hash": "0" * 64}, "schema_hash"),
        ({"schema_hash": "md5:" + "0" * 32}, "schema_hash"),
        ({"tenants": "default"}, "tenants"),
        ({"created": "2026-06-01"}, "created"),
        ({"not_after": "2026-13-01T00:00:00Z"}, "not_after"),
        ({"not_after": "2026-12-01T00:00:00+02:00"}, "not_after"),
        ({"not_after": "2026-12-01T00:00:00Z\n"}, "not_after"),
        ({"not_after": None}, "not_after"),
        ({"training": {**manifest()["training"], "rows": 0}}, "training.rows"),
        ({"training": {**manifest()["training"], "rows": "1000"}}, "training.rows"),
        ({"calibration": {**manifest()["calibration"], "rows_per_day": 0}}, "calibration.rows_per_day"),
        ({"calibration": {**manifest()["calibration"], "more": 0}}, "calibration.more: unknown key"),
        ({"evaluation": [{"metric": "auc", "value": 0.97}]}, "evaluation.0.value"),
        ({"evaluation": [{"metric": "auc", "value": "NaN"}]}, "evaluation.0.value"),
        ({"gates": [{**manifest()["gates"][0], "comparator": "=="}]}, "gates.0.comparator"),
        ({"gates": [{**manifest()["gates"][0], "passed": 1}]}, "gates.0.passed"),
        ({"gates": [{**manifest()["gates"][0], "passed": "true"}]}, "gates.0.passed"),
    ],
    ids=range(26),
)
def test_a_manifest_that_says_something_else_is_refused_with_the_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TrustError, match=f"^manifest.json: {says}"):
        parse(orjson.dumps(manifest(**changes)))


@pytest.mark.parametrize("key", sorted(manifest().keys() - {"format", "kind", "evaluation", "gates", "weights"}))
def test_what_a_manifest_must_say_is_missed(key: str) -> None:
    said = manifest()
    del said[key]
    with pytest.raises(TrustError, match=f"^manifest.json: {key}: Field required"):
        parse(orjson.dumps(said))


def test_times_are_read_to_the_microsecond() -> None:
    assert instant("2026-01-01T00:00:00Z") == 1_767_225_600_000_000
    assert instant("2026-01-01T00:00:00.000001Z") == 1_767_225_600_000_001


@pytest.mark.parametrize(
    ("comparator", "below", "equal", "above"),
    [("<", True, False, False), ("<=", True, True, False), (">", False, False, True), (">=", False, True, True)],
)
def test_a_gate_compares_decimals_exactly(comparator: Any, below: bool, equal: bool, above: bool) -> None:
    """Figures that no float tells apart."""
    gate = Gate(metric="m", comparator=comparator, threshold="0.90000000000000000001", passed=True)
    values = ("0.9", "0.900000000000000000010", "9.0000000000000000002e-1")
    assert [gate.allows(value) for value in values] == [below, equal, above]
