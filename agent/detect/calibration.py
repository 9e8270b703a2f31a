"""From scores to probabilities, and from an alert budget to a threshold.

The p-value of a score is the share of calibration rows (and the row itself) that score as high: with rows of the same
sort as those of calibration, p is at most x in a share x of cases, whatever the model (conformal prediction). So a
budget of alerts a day is a bound on p: budget / rows a day. *n* rows tell apart steps of 1 / (n + 1) and no less.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.errors import ConfigError

Floats = NDArray[np.float64]


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Return one p-value a score; *calibration* is sorted."""
    as_high = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return (1 + as_high) / (len(calibration) + 1)


def smallest_budget(rows_per_day: float, rows: int) -> float:
    """Return the least alerts a day that *rows* of calibration can resolve."""
    return rows_per_day / (rows + 1)


def threshold(budget: float, rows_per_day: float, rows: int) -> float:
    """Return the greatest p-value that raises an alert, so that *budget* alerts a day are expected.

    ConfigError if the calibration cannot tell so few apart.
    """
    steps = math.floor(min(budget / rows_per_day * (rows + 1), rows + 1) + 1e-9)
    if steps < 1:
        least = smallest_budget(rows_per_day, rows)
        raise ConfigError(
            f"budget: expected at least {least:.4g} alerts a day, which is what {rows:,} calibration rows at "
            f"{rows_per_day:,.4g} a day can tell apart, got {budget:g}; raise it or calibrate on a longer period"
        )
    return steps / (rows + 1)
