"""An isolation forest as arrays: scores 0..1, higher is more anomalous, the same for a row in any batch.

A row's path through a tree ends in a leaf that has a length: its depth, and what the rows that training left unparted
there would have needed more. Lengths are integers (2⁻³² of a step), so their sum over trees is exact, and a row's score
does not depend on which rows stand beside it. The score is ``2 ** -(mean length / expected length)``, as scikit-learn's
``-score_samples``. Rows are compared as 32-bit floats, as scikit-learn fits them; thresholds are rounded down to the
next one, which changes no comparison.

Arrays: *roots* the first node of each tree; by node *left* (its right child is the next one; 0: a leaf), *feature*,
*threshold* (at most: left) and *length*; *samples* how many rows each tree was made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import TrustError

MAX_TREES = 1_000
MAX_NODES = 2_000_000
MAX_DEPTH = 64

Floats = NDArray[np.float64]

_UNIT = 2**32
_EULER = 0.5772156649015329
_BLOCK = 128
_SHAPES: Mapping[str, type[np.generic]] = {
    "roots": np.int32,
    "left": np.int32,
    "feature": np.int32,
    "threshold": np.float32,
    "length": np.int64,
    "samples": np.int64,
}


@dataclass(frozen=True, eq=False)
class Forest:
    """A fitted isolation forest."""

    roots: NDArray[np.int32]
    left: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    length: NDArray[np.int64]
    samples: NDArray[np.int64]

    @classmethod
    def of(cls, fitted: Any) -> Forest:
        """Return the forest that scikit-learn's ``IsolationForest`` has fitted."""
        trees = [_relaid(one.tree_) for one in fitted.estimators_]
        sizes = [len(tree["left"]) for tree in trees]
        roots = np.cumsum([0, *sizes[:-1]])
        for root, tree in zip(roots, trees, strict=True):
            tree["left"] += root * (tree["left"] > 0)
        joined = {name: np.concatenate([tree[name] for tree in trees]) for name in trees[0]}
        joined |= {"roots": roots, "samples": np.array([fitted.max_samples_])}
        return cls(**{name: joined[name].astype(kind) for name, kind in _SHAPES.items()})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in _SHAPES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], features: int) -> Forest:
        """Return the forest in *arrays*, which may be anybody's; TrustError unless it is one over *features* columns.

        Every walk through it ends, in at most `MAX_DEPTH` steps, and reads nothing but the arrays.
        """
        for name, kind in _SHAPES.items():
            array = arrays.get(name)
            if array is None or array.dtype != np.dtype(kind) or array.ndim != 1:
                found = "nothing" if array is None else f"{array.ndim}-d {array.dtype}"
                raise TrustError(f"forest: {name}: expected 1-d {np.dtype(kind)}, found {found}")
        forest = cls(**{name: arrays[name] for name in _SHAPES})
        forest._check(features)
        return forest

    def score(self, rows: Floats) -> Floats:
        """Return one score a row; no value may be NaN."""
        narrow = np.clip(rows, -_WIDEST, _WIDEST).astype(np.float32)
        lengths = [self._lengths(narrow[at : at + _BLOCK]) for at in range(0, len(narrow), _BLOCK)]
        scale = len(self.roots) * _expected(int(self.samples[0])) * _UNIT
        return np.array([2.0 ** -(total / scale) for block in lengths for total in block], dtype=np.float64)

    def contributions(self, row: Floats, typical: Floats, features: list[slice]) -> list[float]:
        """Return for each feature its share of how far *row* scores above what it would with a typical value.

        One feature at a time is set to its *typical* columns; the falls of the score are scaled to a sum of 1 (all 0
        where none of them alone matters).
        """
        variants = np.tile(row, (len(features) + 1, 1))
        for number, columns in enumerate(features, 1):
            variants[number, columns] = typical[columns]
        scores = self.score(variants)
        falls = np.maximum(scores[0] - scores[1:], 0.0)
        total = math.fsum(falls)
        return [float(fall / total) if total else 0.0 for fall in falls]

    def _lengths(self, rows: NDArray[np.float32]) -> list[int]:
        """Return the sum of lengths over all trees, a row each."""
        children, feature = self._children, self._feature
        flat = rows.ravel()
        begins = np.arange(0, rows.size, rows.shape[1])[:, None]
        nodes = np.repeat(self.roots.astype(np.intp)[None, :], len(rows), axis=0)
        for _ in range(self._depth):
            nodes = children.take(nodes) + (flat.take(feature.take(nodes) + begins) > self._bounds.take(nodes))
        totals: list[int] = self.length.take(nodes).sum(axis=1).tolist()
        return totals

    # A leaf is its own left child and its bound is infinite, so that a walk that has ended stays where it is.

    @cached_property
    def _children(self) -> NDArray[np.intp]:
        return np.where(self.left > 0, self.left, np.arange(len(self.left))).astype(np.intp)

    @cached_property
    def _feature(self) -> NDArray[np.intp]:
        return self.feature.astype(np.intp)

    @cached_property
    def _bounds(self) -> NDArray[np.float32]:
        return np.where(self.left > 0, self.threshold, np.float32(np.inf))

    @cached_property
    def _depth(self) -> int:
        """The most steps from a root to a leaf; `MAX_DEPTH` + 1 if there may be more."""
        reached = np.unique(self.roots)
        for depth in range(MAX_DEPTH + 1):
            inner = reached[self.left[reached] > 0]
            if not len(inner):
                return depth
            reached = np.unique(np.concatenate([self.left[inner], self.left[inner] + 1]))
        return MAX_DEPTH + 1

    def _check(self, features: int) -> None:
        trees, nodes = len(self.roots), len(self.left)
        ends = np.append(self.roots[1:], nodes)
        _refuse(
            {
                f"1 to {MAX_TREES} trees": 1 <= trees <= MAX_TREES,
                f"1 to {MAX_NODES} nodes": 1 <= nodes <= MAX_NODES,
                "one value a node": all(len(one) == nodes for one in (self.feature, self.threshold, self.length)),
                "one number of samples, 2 or more": len(self.samples) == 1 and bool(2 <= self.samples[0] <= 2**40),
                "roots ascending from 0": not self.roots[:1].any() and bool((ends > self.roots).all()),
            }
        )
        inner = np.flatnonzero(self.left)
        left, last = self.left[inner], np.repeat(ends, ends - self.roots)[inner] - 1
        _refuse(
            {
                "children after their parent and in its tree": bool(((left > inner) & (left < last)).all()),
                f"features below {features}": bool(((self.feature >= 0) & (self.feature < features)).all()),
                "finite thresholds": bool(np.isfinite(self.threshold).all()),
                "lengths of 0 to 1,024": bool(((self.length >= 0) & (self.length <= 1_024 * _UNIT)).all()),
            }
        )
        _refuse({f"at most {MAX_DEPTH} levels": self._depth <= MAX_DEPTH})


_WIDEST = float(np.finfo(np.float32).max)


def _refuse(expectations: Mapping[str, bool]) -> None:
    for expected, met in expectations.items():
        if not met:
            raise TrustError(f"forest: expected {expected}, found otherwise; the weights were not made by training")


def _relaid(tree: Any) -> dict[str, NDArray[Any]]:
    """Return one of scikit-learn's trees with its nodes level by level, so that siblings stand side by side."""
    order, left = [0], []
    for node in order:  # grows while it is read
        inner = tree.children_left[node] >= 0
        left.append(len(order) if inner else 0)
        order += [tree.children_left[node], tree.children_right[node]] if inner else []
    leaf = np.array(left) == 0
    threshold = np.where(leaf, 0.0, tree.threshold[order])
    narrow = threshold.astype(np.float32)
    down = np.nextafter(narrow, np.float32(-np.inf))
    lengths = tree.compute_node_depths()[order] - 1 + np.array([_expected(n) for n in tree.n_node_samples[order]])
    return {
        "left": np.array(left),
        "feature": np.where(leaf, 0, tree.feature[order]),
        "threshold": np.where(narrow.astype(np.float64) > threshold, down, narrow),
        "length": np.where(leaf, np.rint(lengths * _UNIT), 0),
    }


def _expected(rows: int) -> float:
    """Return the mean length of a path that isolates one of *rows* (Liu, Ting and Zhou 2008, equation 1)."""
    if rows <= 2:
        return float(rows == 2)
    return 2.0 * (math.log(rows - 1.0) + _EULER) - 2.0 * (rows - 1.0) / rows
