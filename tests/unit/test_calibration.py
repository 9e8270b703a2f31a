"""Scores to p-values, and budgets to thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from agent.detect.calibration import p_values, smallest_budget, threshold
from agent.errors import ConfigError


def test_p_is_the_share_of_calibration_that_scores_as_high() -> None:
    """The row itself counts as one of them, ties count as higher, and nothing is ever impossible."""
    calibration = np.array([0.1, 0.2, 0.2, 0.4])
    found = p_values(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.9]), calibration)
    assert found.tolist() == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]


def test_p_is_at_most_x_in_a_share_x_of_cases() -> None:
    """The conformal promise, over 2,000 calibrations and new rows of the same sort."""
    chance = np.random.default_rng(4)
    found = [p_values(chance.normal(size=1), np.sort(chance.normal(size=99)))[0] for _ in range(2_000)]
    for bound in (0.01, 0.05, 0.2, 0.5):
        assert np.mean(np.array(found) <= bound + 1e-12) == pytest.approx(bound, abs=4 * np.sqrt(bound / 2_000))


def test_a_budget_is_a_bound_on_p() -> None:
    """10 alerts of 1,000 rows a day: the hundredth part, in steps that the calibration resolves."""
    assert threshold(10, 1_000, 999) == 0.01
    assert threshold(10, 1_000, 149) == pytest.approx(1 / 150)
    assert threshold(5_000, 1_000, 99) == 1.0


def test_the_smallest_budget_is_just_enough() -> None:
    for rows, rate in ((99, 7.0), (1_234, 98.7), (100_000, 3.3e6)):
        least = smallest_budget(rate, rows)
        assert threshold(least, rate, rows) == pytest.approx(1 / (rows + 1))
        with pytest.raises(ConfigError):
            threshold(least * 0.999, rate, rows)


def test_a_budget_too_small_is_refused_with_the_numbers_and_the_way_out() -> None:
    with pytest.raises(ConfigError) as error:
        threshold(0.5, 1_000, 99)
    assert str(error.value) == (
        "budget: expected at least 10 alerts a day, which is what 99 calibration rows at 1,000 a day can tell apart, "
        "got 0.5; raise it or calibrate on a longer period"
    )
