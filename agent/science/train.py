"""Training: logs and a recipe in, the files of a model artifact out; the same bytes for the same input and seed.

Features come from the pipeline that runs live, so training sees what the detector will see. By time, the first 70 % of
the rows are learnt from (forest, medians, rarities) and what comes later calibrates: no row is judged by what it has
taught. *exclude* cuts spans out, such as a known incident. Rows without a time of their own, or from the future, teach
nothing.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from agent.detect import weights
from agent.detect.calibration import smallest_budget
from agent.detect.forest import Floats, Forest
from agent.detect.model import Model, pack
from agent.errors import ConfigError
from agent.featurise.features import DAY, Featuriser, Numbered, Rarities, matrix
from agent.featurise.recipe import Rarity, Recipe, schema_hash
from agent.model import SECOND, Batch, Finding, Kind, Level, Records, Timestamp
from agent.normalise.clock import to_text
from agent.pipeline import Pipeline
from agent.ports import StateView
from agent.state import State
from agent.trust.manifest import MANIFEST, Manifest

Times = NDArray[np.int64]
Spans = Sequence[tuple[Timestamp, Timestamp]]

MIN_ROWS = 100
"""Fewest rows of training, and of calibration."""
MAX_ROWS = 5_000_000
"""Most rows in all: what memory and an artifact hold."""
TREES = 100

_SAMPLE = 256  # rows a tree is made of; more make masking worse, not scores better (Liu, Ting and Zhou 2008)
_LEARN = 0.7
_KNOWN = 65_536


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of features by time; *entities* say whose, where the recipe has windows.

    Columns of rarities hold numbers of values (*numbered*, by feature) until `resolved` puts rarities there.
    """

    featuriser: Featuriser
    time: Times
    values: Floats
    entities: Sequence[tuple[tuple[str, str], ...]]
    numbered: Mapping[str, Numbered]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: NDArray[Any]) -> Table:
        places = np.arange(len(self))[rows].tolist()
        entities = [self.entities[place] for place in places] if self.entities else ()
        return replace(self, time=self.time[rows], values=self.values[rows], entities=entities)

    def learn(self) -> dict[str, Rarities]:
        """Return how rare each value is among these rows; beyond 65,536 values of a feature the rarest count as new."""
        return {name: self._rarities(name, known) for name, known in self.numbered.items()}

    def resolved(self, rarities: Mapping[str, Rarities]) -> Table:
        """Return the table with *rarities* in place of numbers."""
        values = self.values.copy()
        for name, known in self.numbered.items():
            column = values[:, self._column(name)]
            present = ~np.isnan(column)
            by_number = np.array([rarities[name][key] for key in known])
            column[present] = by_number[column[present].astype(np.intp)]
        return replace(self, values=values, numbered={})

    def _rarities(self, name: str, known: Numbered) -> Rarities:
        column = self.values[:, self._column(name)]
        counts = np.bincount(column[~np.isnan(column)].astype(np.intp), minlength=len(known))
        total = int(counts.sum())
        ranked = sorted((-count, key) for key, count in zip(known, counts.tolist(), strict=True) if count)[:_KNOWN]
        return Rarities(((key, _rare(-count, total)) for count, key in ranked), _rare(1, total + 1))

    def _column(self, name: str) -> int:
        return self.featuriser.columns.index(name)


def _rare(count: int, total: int) -> float:
    return round(float(-np.log(count / total)), 9)


class _Collector:
    """A detector that finds nothing and keeps the features that a model would judge."""

    id = "features"
    order: Literal["set", "sequence"] = "set"

    def __init__(self, recipe: Recipe) -> None:
        self._named = [name for name, one in recipe.features.items() if isinstance(one, Rarity)]
        self._numbered = {name: Numbered() for name in self._named}
        self.featuriser = Featuriser(recipe, self._numbered, max_windows=MAX_ROWS)
        self._times: list[Times] = []
        self._values: list[Floats] = []
        self._entities: list[tuple[tuple[str, str], ...]] = []
        self._rows = 0

    def fields(self, kind: Kind) -> frozenset[str]:
        return self.featuriser.fields(kind)

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        timed = events.take(np.flatnonzero((events.time != events.records.as_of) & ~events.future))
        if self.featuriser.recipe.entity:
            self.featuriser.fold(timed, state)
        else:
            rows, values = self.featuriser.rows(timed)
            self._keep(timed.time[rows], values)
        return []

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        if self.featuriser.recipe.entity:
            windows = self.featuriser.close(watermark, state)
            self._entities += [one.entity for one in windows]
            starts = np.array([one.start for one in windows], dtype=np.int64)
            self._keep(starts, matrix(windows, len(self.featuriser.columns)))
        return []

    def plan(self) -> Mapping[str, Any]:
        return {}

    def table(self) -> Table:
        width = len(self.featuriser.columns)
        return Table(
            self.featuriser,
            np.concatenate([np.empty(0, np.int64), *self._times]),
            np.concatenate([np.empty((0, width)), *self._values]),
            self._entities,
            self._numbered,
        )

    def _keep(self, times: Times, values: Floats) -> None:
        self._rows += len(times)
        if self._rows > MAX_ROWS:
            raise ConfigError(f"more than {MAX_ROWS:,} rows: narrow the recipe's 'where' or give a shorter period")
        self._times.append(times)
        self._values.append(values)


def collect(recipe: Recipe, logs: Iterable[Records]) -> Table:
    """Return the features of all *logs*, in order of time, as the running pipeline makes them."""
    collector = _Collector(recipe)
    pipeline, state = Pipeline([collector]), State()
    for records in logs:
        transaction = state.transaction()
        pipeline.evaluate(records, transaction)
        transaction.changes()
        transaction.apply()
    table = collector.table()
    return table.take(np.argsort(table.time, kind="stable"))


@dataclass(frozen=True)
class Options:
    """What training is told beside recipe and logs. *now*: when the model is made; it holds for *days* from then."""

    title: str
    source: str
    command: str
    by: str
    now: Timestamp
    seed: int = 7
    days: int = 90
    level: Level = "medium"
    techniques: tuple[str, ...] = ()
    exclude: Spans = ()


def train(recipe: Recipe, logs: Iterable[Records], options: Options) -> dict[str, bytes]:
    """Return `manifest.json` and `weights.npz` of a model of *logs*; ConfigError if they are too few to learn from."""
    whole = collect(recipe, logs)
    whole = whole.take(_outside(whole.time, options.exclude))
    border = _border(whole.time, recipe.window or 1)
    rarities = whole.take(whole.time < border).learn()
    whole = whole.resolved(rarities)
    past, later = _sorted(whole.take(whole.time < border)), _sorted(whole.take(whole.time >= border))
    _check_enough(past, later)
    medians = _medians(past.values)
    filled = np.where(np.isnan(past.values), medians, past.values)
    constant = filled.min(axis=0) == filled.max(axis=0)
    if constant.all():
        raise ConfigError(
            "every feature is the same in all training rows: there is nothing to learn; change the recipe"
        )
    forest = _fit(filled, options.seed)
    model = Model(past.featuriser, medians, forest, np.empty(0))
    scores = np.sort(model.score(later.values))
    manifest = _manifest(recipe, past, later, border, options)
    named = [name for name, still in zip(past.featuriser.columns, constant.tolist(), strict=True) if still]
    drift = _drift(np.sort(model.score(past.values)), scores)
    manifest |= {
        "evaluation": [
            {"metric": "calibration.rows", "value": str(len(later))},
            {"metric": "calibration.drift", "value": f"{drift:.6f}"},
        ],
        "gates": [{"metric": "calibration.rows", "comparator": ">=", "threshold": str(MIN_ROWS), "passed": True}],
        "provenance": {
            "by": options.by,
            "command": options.command,
            "seed": str(options.seed),
            "trees": str(TREES),
            **({"constant": ", ".join(named)} if named else {}),
        },
    }
    checked = Manifest.model_validate_json(orjson.dumps(manifest), strict=True)
    return {
        MANIFEST: orjson.dumps(checked.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        + b"\n",
        weights.NAME: weights.dump(pack(forest, medians, scores, rarities)),
    }


def _outside(time: Times, spans: Spans) -> NDArray[np.bool_]:
    mask = np.ones(len(time), dtype=np.bool_)
    for start, end in spans:
        mask &= (time < start) | (time >= end)
    return mask


def _border(time: Times, width: int) -> Timestamp:
    """Return where calibration begins: at the row that 70 % come before, and at the edge of a window."""
    if not len(time):
        return 0
    return -(-int(time[int(len(time) * _LEARN)]) // width) * width


def _sorted(table: Table) -> Table:
    """Return the rows in an order that only what they are decides, not the order in which logs were read."""
    return table.take(np.lexsort([*table.values.T[::-1], table.time]))


def _check_enough(past: Table, later: Table) -> None:
    for what, table in (("to learn from", past), ("of a later time to calibrate on", later)):
        if len(table) < MIN_ROWS:
            raise ConfigError(
                f"expected at least {MIN_ROWS} rows {what}, got {len(table)} ({len(past) + len(later)} in all); give "
                "logs of a longer period or widen the recipe's 'where'"
            )


def _medians(values: Floats) -> Floats:
    """Return the median of what each column has; 0 where it has nothing."""
    known = [column[~np.isnan(column)] for column in values.T]
    return np.array([float(np.median(column)) if len(column) else 0.0 for column in known])


def _fit(rows: Floats, seed: int) -> Forest:
    from sklearn.ensemble import IsolationForest  # type: ignore[import-untyped]  # seconds to import

    narrow = np.clip(rows, -3e38, 3e38).astype(np.float32)
    forest = IsolationForest(n_estimators=TREES, max_samples=min(_SAMPLE, len(rows)), random_state=seed, n_jobs=1)
    return Forest.of(forest.fit(narrow))


def _drift(past: Floats, later: Floats) -> float:
    """Return the greatest distance between the two score distributions (Kolmogorov and Smirnov), 0..1."""
    at = np.concatenate([past, later])
    below = [np.searchsorted(scores, at, side="right") / len(scores) for scores in (past, later)]
    return float(np.abs(below[0] - below[1]).max())


def _manifest(recipe: Recipe, past: Table, later: Table, border: Timestamp, options: Options) -> dict[str, Any]:
    width = recipe.window or SECOND
    end = int(later.time.max()) + width
    rows_per_day = len(later) / _days(later.time, (border, end), options.exclude, max(width, DAY))
    return {
        "id": recipe.name,
        "title": options.title,
        "description": f"{'A window' if recipe.entity else 'An event'} unlike those of training in: "
        f"{', '.join(sorted(recipe.features))}.",
        "level": options.level,
        "techniques": options.techniques,
        "recipe": recipe.dump(),
        "schema_hash": schema_hash(recipe.dump()),
        "training": {
            "begin": to_text(int(past.time.min())),
            "end": to_text(border),
            "rows": len(past),
            "digest": "sha256:" + _digest(past),
            "source": options.source,
        },
        "calibration": {
            "begin": to_text(border),
            "end": to_text(end),
            "rows": len(later),
            "rows_per_day": rows_per_day,
            "smallest_budget": smallest_budget(rows_per_day, len(later)),
        },
        "versions": dict(_versions()),
        "created": to_text(options.now),
        "not_before": to_text(options.now),
        "not_after": to_text(options.now + options.days * DAY),
    }


def _days(time: Times, span: tuple[Timestamp, Timestamp], exclude: Spans, step: int) -> float:
    """Return how many days the rows stand for: the *span* without what was cut out, but no *step* that has no row.

    A gap in the logs would else make the days look quiet, and the threshold would let through more than the budget.
    """
    at, end = span
    kept = 0
    for start, stop in [*sorted(exclude), (end, end)]:
        kept += max(0, min(start, end) - at)
        at = max(at, stop)
    return min(max(kept, SECOND), len(np.unique(time // step)) * step) / DAY


def _digest(table: Table) -> str:
    """Return the digest of the training matrix: its columns' names, then times and values as little-endian numbers."""
    state = hashlib.sha256(orjson.dumps(table.featuriser.columns))
    state.update(table.time.astype("<i8").tobytes())
    state.update(np.where(np.isnan(table.values), np.nan, table.values).astype("<f8").tobytes())
    return state.hexdigest()


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in ("vedette", "numpy", "scikit-learn"):
        yield name, version(name)
