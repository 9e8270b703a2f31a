"""A trained model as a detector: features, forest, calibration, threshold.

What it needs of an artifact is `manifest.json` (recipe, calibration) and `weights.npz`, and `load` takes both as bytes,
so that what was verified is what runs. A row or window is a finding if its p-value is within the alert budget. A column
without a value gets the training median, here as in training. Class ``set``: a row's features and score depend on that
row, a window's on the set of its events. Findings of windows say `vedette.capped` where a cap may have hidden others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.detect import weights
from agent.detect.calibration import p_values, threshold
from agent.detect.forest import Floats, Forest
from agent.detect.windows import instant, phrase
from agent.errors import ConfigError, TrustError
from agent.featurise import recipe as recipes
from agent.featurise.features import DAY, Featuriser, Rarities, Window, matrix
from agent.model import Batch, Description, Explanation, Factor, Finding, Kind, Timestamp
from agent.ports import StateView
from agent.trust.manifest import MANIFEST, Manifest, parse

_FACTORS = 6
_SPOKEN = 3
_FOREST = ("roots", "left", "feature", "threshold", "length", "samples")


@dataclass(frozen=True, eq=False)
class Model:
    """What training has learnt: features, what stands for a missing one, the forest, and its calibration scores."""

    featuriser: Featuriser
    medians: Floats
    forest: Forest
    calibration: Floats

    def score(self, rows: Floats) -> Floats:
        """Return the raw score of each row of features."""
        return self.forest.score(self.filled(rows))

    def filled(self, rows: Floats) -> Floats:
        """Return *rows* with the training median where a value is missing."""
        return np.where(np.isnan(rows), self.medians, rows)


def pack(
    forest: Forest, medians: Floats, calibration: Floats, rarities: Mapping[str, Rarities]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of `weights.npz`; `load` reads them."""
    arrays = {**forest.to_arrays(), "medians": medians, "calibration": calibration}
    for name, known in rarities.items():
        keys = sorted(known)
        arrays[f"rarity.{name}.keys"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
        arrays[f"rarity.{name}.values"] = np.array([*(known[key] for key in keys), known.unseen])
    return arrays


def load(files: Mapping[str, bytes]) -> Model:
    """Return the model in an artifact's *files*; TrustError unless its weights are what its manifest says."""
    manifest = parse(files[MANIFEST])
    try:
        recipe = recipes.parse(manifest.recipe)
    except ConfigError as error:
        raise TrustError(f"model {manifest.id}: {error}; train it again with this version") from None
    arrays = weights.load(files[manifest.weights])
    named = [name for name, one in recipe.features.items() if isinstance(one, recipes.Rarity)]
    expected = {*_FOREST, "medians", "calibration"}
    expected |= {f"rarity.{name}.{part}" for name in named for part in ("keys", "values")}
    if arrays.keys() != expected:
        odd = sorted(arrays.keys() ^ expected)
        raise TrustError(f"model {manifest.id}: {weights.NAME}: missing or not expected: {', '.join(odd)[:200]}")
    featuriser = Featuriser(recipe, {name: _rarities(name, arrays) for name in named})
    width = len(featuriser.columns)
    calibration = _floats(arrays, "calibration", manifest.calibration.rows)
    if (np.diff(calibration) < 0).any():
        raise TrustError(f"{weights.NAME}: calibration: expected ascending scores, found otherwise")
    return Model(featuriser, _floats(arrays, "medians", width), Forest.from_arrays(arrays, width), calibration)


def _floats(arrays: Mapping[str, NDArray[Any]], name: str, size: int) -> Floats:
    array = arrays[name]
    if array.dtype != np.float64 or array.shape != (size,) or not np.isfinite(array).all():
        raise TrustError(f"{weights.NAME}: {name}: expected {size} finite numbers, found {array.shape} {array.dtype}")
    return array


def _rarities(name: str, arrays: Mapping[str, NDArray[Any]]) -> Rarities:
    keys = arrays[f"rarity.{name}.keys"]
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != 16:
        raise TrustError(f"{weights.NAME}: rarity.{name}.keys: expected rows of 16 bytes, found {keys.shape}")
    *known, unseen = _floats(arrays, f"rarity.{name}.values", len(keys) + 1).tolist()
    return Rarities(zip(map(bytes, keys), known, strict=True), unseen)


class ModelDetector:
    """Judges rows or windows by a model within an alert *budget* (alerts a day).

    *digest* and *signer* name the admitted artifact and the key that signed it. A *shadow* model's findings are kept
    and not delivered. ConfigError if the calibration cannot resolve the budget. Counted: ``model.<id>.judged`` and
    ``model.<id>.found``, so that the realised budget can be held against the one asked for.
    """

    order: Literal["set", "sequence"] = "set"

    def __init__(
        self, id: str, model: Model, manifest: Manifest, *, digest: str, signer: str, budget: float, shadow: bool
    ) -> None:
        self.id = id
        self._model = model
        self.manifest = manifest
        self._signer = signer
        self._budget = float(budget)
        self._shadow = shadow
        self._featuriser = model.featuriser
        self._rows_per_day = manifest.calibration.rows_per_day
        try:
            self._limit = threshold(budget, self._rows_per_day, len(model.calibration))
        except ConfigError as error:
            raise ConfigError(f"model {id}: {error}") from None
        self._description = Description(
            id=id,
            title=manifest.title,
            kind="model",
            level=manifest.level,
            description=manifest.description,
            techniques=manifest.techniques,
            digest=digest,
        )

    def fields(self, kind: Kind) -> frozenset[str]:
        return self._featuriser.fields(kind)

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        if self._featuriser.recipe.entity:
            self._featuriser.fold(events, state)
            return []
        rows, features = self._featuriser.rows(events)
        return [
            self._row_finding(events, int(rows[place]), features[place], raw, p)
            for place, raw, p in self._judge(features, state)
        ]

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        if not self._featuriser.recipe.entity:
            return []
        windows = self._featuriser.close(watermark, state)
        features = matrix(windows, len(self._featuriser.columns))
        return [
            self._window_finding(windows[place], features[place], raw, p)
            for place, raw, p in self._judge(features, state)
        ]

    def plan(self) -> Mapping[str, Any]:
        calibration, training = self.manifest.calibration, self.manifest.training
        return {
            "id": self.id,
            "type": self.manifest.kind,
            "order": self.order,
            "state": "shadow" if self._shadow else "active",
            "digest": self._description.digest,
            "signer": self._signer,
            "budget": self._budget,
            "smallest_budget": calibration.smallest_budget,
            "threshold": {"p_value": self._limit, "score": 1 - self._limit},
            "trained": {"begin": training.begin, "end": training.end, "rows": training.rows},
            "calibrated": {"begin": calibration.begin, "end": calibration.end, "rows": calibration.rows},
            "not_after": self.manifest.not_after,
            "features": {one.name: self._typical(one.columns, one.show) for one in self._featuriser.features},
        }

    def _judge(self, features: Floats, state: StateView) -> list[tuple[int, float, float]]:
        """Return place, raw score and p-value of those within the budget."""
        if not len(features):
            return []
        scores = self._model.score(features)
        p = p_values(scores, self._model.calibration)
        found = np.flatnonzero(p <= self._limit).tolist()
        state.count(f"model.{self.id}.judged", len(features))
        if found:
            state.count(f"model.{self.id}.found", len(found))
        return [(place, float(scores[place]), float(p[place])) for place in found]

    def _row_finding(self, events: Batch, row: int, features: Floats, raw: float, p: float) -> Finding:
        return Finding(
            detector=self._description,
            time=int(events.time[row]),
            evidence=(events.reference(row),),
            explanation=self._explain("This event", features, p),
            score=1 - p,
            row=row,
            fields=self._facts(raw, p),
            deliver=not self._shadow,
        )

    def _window_finding(self, window: Window, features: Floats, raw: float, p: float) -> Finding:
        start, end = instant(window.start), instant(window.end)
        until = f"{end:%H:%M}" if window.end - window.start < DAY else f"{end:%Y-%m-%d %H:%M}"
        about = f"{phrase(window.entity)} from {start:%Y-%m-%d %H:%M} to {until} UTC"
        facts = {**window.fields, **self._facts(raw, p), "vedette.evidence.total": window.count}
        return Finding(
            detector=self._description,
            time=window.time,
            evidence=window.evidence,
            explanation=self._explain(about, features, p),
            entity=window.entity,
            window=(window.start, window.end),
            score=1 - p,
            fields=facts | ({"vedette.capped": True} if window.capped else {}),
            deliver=not self._shadow,
        )

    def _facts(self, raw: float, p: float) -> dict[str, Any]:
        return {
            "vedette.model.id": self.manifest.id,
            "vedette.model.digest": self._description.digest,
            "vedette.model.signer": self._signer,
            "vedette.score.raw": raw,
            "vedette.score.p_value": p,
            "vedette.score.budget": self._budget,
        }

    def _explain(self, about: str, features: Floats, p: float) -> Explanation:
        """Say what stands out. Maturity: how little one calibration row more or less would move the threshold."""
        model, known = self._model, self._featuriser.features
        shares = model.forest.contributions(
            model.filled(features[None, :])[0], model.medians, [one.columns for one in known]
        )
        ranked = sorted(zip(shares, known, strict=True), key=lambda pair: -pair[0])[:_FACTORS]
        factors = tuple(
            Factor(
                one.name,
                "missing" if np.isnan(features[one.columns]).any() else one.show(features[one.columns].tolist()),
                self._typical(one.columns, one.show),
                round(share, 4),
            )
            for share, one in ranked
            if share > 0
        )
        words = "; ".join(f"{one.field} {one.observed} (usually {one.expected})" for one in factors[:_SPOKEN])
        size = len(model.calibration)
        as_high, steps = round(p * (size + 1)) - 1, round(self._limit * (size + 1))
        often = f"{as_high or 'none'} of {size:,} in calibration {'were' if as_high > 1 else 'was'} as unusual"
        return Explanation(
            sentence=f"{about}: {often}; {words or 'no feature stands out alone'}.",
            factors=factors or (Factor("score", 1 - p, f"below {1 - self._limit:.6g}"),),
            maturity=steps / (steps + 1),
        )

    def _typical(self, columns: slice, show: Any) -> Any:
        return show(self._model.medians[columns].tolist())
