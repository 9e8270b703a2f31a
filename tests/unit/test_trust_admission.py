"""Admission: what runs, on which terms, and how near its end it is."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from agent.errors import TrustError
from agent.trust import keys, oms
from agent.trust.admission import expiry
from agent.trust.manifest import MANIFEST, Manifest, instant
from tests.artifacts import KEY, admitted, content, manifest, signed

DAY = 86_400_000_000
ENDS = instant("2026-12-01T00:00:00Z")
MODEL = Manifest.model_validate(manifest())


def test_a_good_model_is_admitted_with_the_bytes_that_were_verified() -> None:
    files = signed()
    model = admitted(files)
    assert model.files == files
    assert model.manifest == MODEL
    assert model.digest == oms.digest(content())
    assert model.signer == keys.key_id(KEY.public_key())


def test_what_was_admitted_does_not_change_with_what_was_given() -> None:
    files = signed()
    model = admitted(files)
    files[MANIFEST] = b"{}"
    assert model.files[MANIFEST] == content()[MANIFEST]


@pytest.mark.parametrize("tenants", [[], ["default"], ["other", "default"]])
def test_a_model_for_this_tenant_or_any_is_admitted(tenants: list[str]) -> None:
    assert admitted(signed(content(manifest(tenants=tenants)))).manifest.tenants == tuple(tenants)


@pytest.mark.parametrize("now", ["2026-06-01T00:00:00Z", "2026-11-30T23:59:59.999999Z"])
def test_a_model_is_admitted_from_its_first_moment_to_its_last(now: str) -> None:
    assert admitted(signed(), now)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gates": [{**manifest()["gates"][0], "passed": False}]}, "expected auc >= 0.9, found a gate not passed"),
        ({"gates": []}, "expected at least one gate, found none"),
        ({"evaluation": []}, "expected auc >= 0.9, found no figure for it"),
        ({"evaluation": [{"metric": "aucs", "value": "0.99"}]}, "expected auc >= 0.9, found no figure for it"),
        ({"evaluation": [{"metric": "auc", "value": "0.89"}]}, "expected auc >= 0.9, found 0.89"),
        (
            {"evaluation": [{"metric": "auc", "value": "0.89"}, {"metric": "auc", "value": "0.97"}]},
            "expected auc >= 0.9, found 0.89",
        ),
        (
            {"calibration": {**manifest()["calibration"], "begin": "2026-02-28T23:59:59Z"}},
            "expected a calibration from 2026-03-01T00:00:00Z on, found one from 2026-02-28T23:59:59Z",
        ),
    ],
)
def test_a_model_that_did_not_pass_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TrustError) as caught:
        admitted(signed(content(manifest(**changes))))
    assert str(caught.value).startswith(f"model logons: refused at step 8, gates: {says}; ")


def test_a_refusal_names_model_step_both_sides_and_the_way_out() -> None:
    with pytest.raises(TrustError) as caught:
        admitted(signed(), now="2026-12-01T00:00:00Z")
    assert str(caught.value) == (
        "model logons: refused at step 7, validity: expected a model that is valid now, "
        "found one until 2026-12-01T00:00:00Z; train and sign a new one"
    )


def test_only_one_step_speaks() -> None:
    """The first that fails."""
    with pytest.raises(TrustError, match="step 1, files"):
        admitted({MANIFEST: orjson.dumps({})}, digest="0" * 64)


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (31 * DAY, ""),
        (30 * DAY + 1, ""),
        (30 * DAY, "expires within 30 days"),
        (7 * DAY + 1, "expires within 30 days"),
        (7 * DAY, "expires within 7 days"),
        (DAY, "expires within one day"),
        (1, "expires within one day"),
        (0, "expired today"),
        (-DAY + 1, "expired today"),
        (-DAY, "expired yesterday"),
        (-2 * DAY, "expired 2 days ago"),
        (-40 * DAY, "expired 40 days ago"),
    ],
)
def test_a_model_that_runs_says_how_near_its_end_it_is(before: int, says: str) -> None:
    text = expiry(MODEL, ENDS - before)
    assert text == (f"model logons: {says}, on 2026-12-01T00:00:00Z; train and sign a new one" if says else "")


def test_each_warning_comes_once_and_then_one_a_day() -> None:
    """The text changes just then."""
    texts = [expiry(MODEL, ENDS + hour * DAY // 24) for hour in range(-40 * 24, 5 * 24)]
    assert len(dict.fromkeys(filter(None, texts))) == 3 + 5
