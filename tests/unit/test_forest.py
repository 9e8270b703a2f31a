"""The forest on arrays: the scores of scikit-learn, the same in any batch, and nothing hostile gets through."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from agent.detect.forest import MAX_DEPTH, Forest
from agent.errors import TrustError

WIDTH = 6


@cache
def fitted(rows: int = 3_000, samples: int = 256) -> Any:
    from sklearn.ensemble import IsolationForest

    chance = np.random.default_rng(5)
    values = chance.normal(size=(rows, WIDTH))
    values[:, 1] = np.round(values[:, 1])
    values[:, 2] = 4.0
    values[:, 3] = chance.lognormal(10, 8, size=rows)
    return IsolationForest(n_estimators=60, max_samples=samples, random_state=1).fit(values.astype(np.float32))


def sample(rows: int = 4_000) -> np.ndarray[Any, np.dtype[np.float64]]:
    chance = np.random.default_rng(6)
    values = chance.normal(size=(rows, WIDTH)) * 3
    values[::2, 1] = np.round(values[::2, 1])
    values[:, 3] = chance.lognormal(10, 9, size=rows)
    return values


@pytest.mark.parametrize(("rows", "samples"), [(3_000, 256), (300, 2), (150, 150), (3_000, 700)])
def test_scores_are_those_of_scikit_learn(rows: int, samples: int) -> None:
    """Within 1e-9, sign turned; also for trees of two rows, of all rows and of more levels."""
    theirs = -fitted(rows, samples).score_samples(sample().astype(np.float32))
    ours = Forest.of(fitted(rows, samples)).score(sample())
    assert np.abs(theirs - ours).max() < 1e-9
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_rows_on_a_threshold_go_the_same_way_as_in_scikit_learn() -> None:
    """The trained thresholds themselves, and their neighbours among 32-bit floats, as values."""
    forest = Forest.of(fitted())
    edges = np.unique(forest.threshold[forest.left > 0])
    near = np.concatenate([edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf))])
    values = np.tile(near.astype(np.float64)[:, None], WIDTH)
    assert np.abs(forest.score(values) + fitted().score_samples(values.astype(np.float32))).max() < 1e-9


def test_a_score_does_not_depend_on_the_batch() -> None:
    """The very same bits for one row alone, for any cut and any order."""
    forest, values = Forest.of(fitted()), sample(1_000)
    whole = forest.score(values)
    order = np.random.default_rng(2).permutation(1_000)
    assert (forest.score(values[order]) == whole[order]).all()
    assert all((forest.score(values[at : at + 1]) == whole[at]).all() for at in range(0, 1_000, 37))
    assert (np.concatenate([forest.score(part) for part in np.array_split(values, 13)]) == whole).all()


def test_values_beyond_32_bits_are_held_at_their_limit() -> None:
    forest = Forest.of(fitted())
    assert np.isfinite(forest.score(np.array([[1e300] * WIDTH, [-1e300] * WIDTH, [np.inf] * WIDTH]))).all()


def test_no_rows_have_no_scores() -> None:
    assert Forest.of(fitted()).score(np.empty((0, WIDTH))).shape == (0,)


def test_contributions_name_the_feature_that_is_odd() -> None:
    """A row that is typical but for one column owes its score to it; shares sum to 1."""
    forest = Forest.of(fitted())
    typical = np.array([0.0, 0.0, 4.0, 20_000.0, 0.0, 0.0])
    row = typical.copy()
    row[4] = 9.0
    shares = forest.contributions(row, typical, [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 6)])
    assert shares == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert forest.contributions(typical, typical, [slice(0, 2), slice(2, 6)]) == [0.0, 0.0]


def test_arrays_are_the_forest() -> None:
    forest = Forest.of(fitted())
    again = Forest.from_arrays(forest.to_arrays(), WIDTH)
    assert (again.score(sample()) == forest.score(sample())).all()


def test_scoring_imports_no_scikit_learn() -> None:
    code = "import sys, agent.detect.model; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def chain(levels: int) -> dict[str, Any]:
    """A tree that is as deep as it can be."""
    nodes = 2 * levels + 1
    left = np.zeros(nodes, np.int32)
    left[0] = 1
    left[2:-1:2] = np.arange(3, nodes, 2)
    return {
        "roots": np.zeros(1, np.int32),
        "left": left,
        "feature": np.zeros(nodes, np.int32),
        "threshold": np.zeros(nodes, np.float32),
        "length": np.zeros(nodes, np.int64),
        "samples": np.array([2], np.int64),
    }


def test_a_tree_may_be_deep_but_not_endless() -> None:
    assert len(Forest.from_arrays(chain(MAX_DEPTH), 1).score(np.zeros((3, 1)))) == 3
    with pytest.raises(TrustError, match="levels"):
        Forest.from_arrays(chain(MAX_DEPTH + 1), 1)


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("left", 0, 0x7FFFFFFF),
        ("left", 0, -1),
        ("left", 2, 2),
        ("left", 2, 1),
        ("left", 0, 8),
        ("left", 6, 8),
        ("feature", 3, 1),
        ("feature", 3, -1),
        ("threshold", 0, np.nan),
        ("threshold", 0, np.inf),
        ("length", 0, -1),
        ("length", 0, 2**60),
        ("roots", 0, 1),
        ("roots", 0, -1),
        ("samples", 0, 1),
        ("samples", 0, 2**62),
    ],
)
def test_a_value_that_training_does_not_make_is_refused(name: str, index: int, value: float) -> None:
    """Children that loop, go back or leave the tree; features, thresholds and lengths out of range."""
    arrays = chain(4)
    arrays[name][index] = value
    with pytest.raises(TrustError, match="forest: expected"):
        Forest.from_arrays(arrays, 1)


def test_a_child_in_the_next_tree_is_refused() -> None:
    arrays = chain(4)
    arrays["roots"] = np.array([0, 3], np.int32)
    with pytest.raises(TrustError, match="children"):
        Forest.from_arrays(arrays, 1)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("left", np.zeros(9, np.int64)),
        ("left", np.zeros((9, 1), np.int32)),
        ("left", np.zeros(8, np.int32)),
        ("left", np.zeros(0, np.int32)),
        ("roots", np.zeros(0, np.int32)),
        ("roots", np.zeros(2, np.int32)),
        ("roots", np.array([0, 5, 4], np.int32)),
        ("roots", np.array([0, 9], np.int32)),
        ("roots", np.arange(2_000, dtype=np.int32)),
        ("samples", np.zeros(0, np.int64)),
        ("threshold", np.array([object()] * 9)),
        ("length", None),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(name: str, array: Any) -> None:
    arrays = chain(4)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(TrustError, match="forest: "):
        Forest.from_arrays(arrays, 1)


def test_any_random_arrays_are_refused_or_score_in_bounds() -> None:
    """5,000 corruptions of a small forest: a TrustError, or scores that are numbers in 0..1."""
    chance = np.random.default_rng(9)
    refused = 0
    for _ in range(5_000):
        arrays = chain(6)
        name = chance.choice(["left", "feature", "roots", "length", "threshold"])
        place = chance.integers(len(arrays[name]))
        arrays[name][place] = chance.choice([-1, 0, 1, 2, 3, 5, 11, 12, 13, 2**31 - 1])
        try:
            scores = Forest.from_arrays(arrays, 2).score(np.zeros((2, 2)))
        except TrustError:
            refused += 1
        else:
            assert ((scores >= 0) & (scores <= 1)).all()
    assert refused > 1_000
