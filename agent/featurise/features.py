"""The one function from events to rows of numbers, the same in training and live.

Row features are a function of one event. Window features are folded into operator state and given when the watermark
less *lateness* has passed the window: everything that is folded is a count, a set, a maximum or a sum of integers
(numbers are held to a thousandth), so neither the order of events nor the cut into batches can change a bit of a
feature. What a field lacks is NaN; the model says what stands for it. Like all that folds, windows rely on the source's
promise not to repeat a record within a cursor.

Past the cap on open windows, which of them are given may depend on the cut, since that decides how many are open at a
time. What is given is whole; where windows may be missing, the others of that time are `capped`.

State of windows, by key:

- ``<bucket>:[entity...]``: ``[events, earliest events, what each feature has folded]`` of a window that is open
- empty: the operator's books (`agent.detect.windows.Ledger`)
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.detect.windows import (
    Evidence,
    FieldView,
    Group,
    Ledger,
    Reader,
    decode_key,
    encode_key,
    evidence_of,
    instant,
    open_key,
    pairs,
    reference_of,
    scalars,
    text_of,
)
from agent.featurise import recipe as spec
from agent.model import NO_TIME, SECOND, Batch, Kind, PerValue, Reference, Scalar, Timestamp, Value
from agent.ports import StateView

EVIDENCE = 4
"""Events that a window cites: its earliest, by time and identity."""
MAX_WINDOWS = 200_000
"""Open windows that are held in state; past it those with the greatest hashes go, and are counted as `capped`."""

_DISTINCT = 256
_THOUSANDTH = 1_000
_LARGEST = 2**64 - 1  # what a number beyond it, of either sign, counts as in a window
_MINUTE = 60 * SECOND
DAY = 1_440 * _MINUTE
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MOST_LOG = 700.0  # beyond it a power of e is no float
_TEXT = 4_096  # characters of a text that its entropy is taken over
_PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
]

Matrix: TypeAlias = NDArray[np.float64]
Learnt: TypeAlias = Mapping[str, Mapping[bytes, float]]
"""What training knows, by feature: the rarity of every value, by the value's hash."""


class Rarities(dict[bytes, float]):
    """Rarity by hash; a value that was not seen is *unseen*."""

    def __init__(self, known: Iterable[tuple[bytes, float]], unseen: float) -> None:
        super().__init__(known)
        self.unseen = unseen

    def __missing__(self, key: bytes) -> float:
        return self.unseen


class Numbered(dict[bytes, float]):
    """Numbers values in the order in which they are met: what training puts where rarities will stand."""

    def __missing__(self, key: bytes) -> float:
        number = self[key] = float(len(self))
        return number


@dataclass(frozen=True)
class Feature:
    """One feature by name: its columns, and how their values read to a person."""

    name: str
    columns: slice
    show: Callable[[Sequence[float]], Any]


@dataclass(frozen=True, slots=True)
class Window:
    """A closed window of one entity: its features, and the earliest of its *count* events.

    It is whole. *capped* says that other entities may be missing at its time.
    """

    start: Timestamp
    end: Timestamp
    entity: tuple[tuple[str, str], ...]
    fields: Mapping[str, Scalar]
    count: int
    evidence: tuple[Reference, ...]
    time: Timestamp
    features: tuple[float, ...]
    capped: bool = False


class Featuriser:
    """Makes the rows of a recipe; *learnt* answers for the recipe's rarities (`needs_learning`)."""

    def __init__(self, recipe: spec.Recipe, learnt: Learnt | None = None, *, max_windows: int = MAX_WINDOWS) -> None:
        self.recipe = recipe
        self._max_windows = max_windows
        specs = sorted(recipe.features.items())
        self._rows = [_row(feature, (learnt or {}).get(name, {})) for name, feature in specs if not recipe.entity]
        self._windows = [_window(feature) for _, feature in specs if recipe.entity]
        self._content = sorted({field for one in self._rows for field in one.fields})
        wanted = {field for one in self._windows for field in one.fields}.union(self._content)
        self._width = recipe.window or 1
        self._reader = Reader(recipe.where, recipe.entity, self._width, recipe.lateness, also=wanted)
        self.features = _features(specs)
        self.columns = tuple(column for name, feature in specs for column in _columns(name, feature))

    def fields(self, kind: Kind) -> frozenset[str]:
        return self._reader.fields(kind)

    def rows(self, events: Batch) -> tuple[NDArray[np.intp], Matrix]:
        """Return which rows the recipe is about, and a row of features for each of them.

        An event that has none of the fields that features are made of is not among them.
        """
        mask = self._reader.matching(events)
        views = {name: FieldView(events, name) for name in self._content}
        mask &= np.any([view.codes >= 0 for view in views.values()], axis=0)
        rows = np.flatnonzero(mask)
        if not len(rows):
            return rows, np.empty((0, len(self.columns)))
        columns = [column for one in self._rows for column in one.columns(views, events.time)]
        return rows, np.column_stack(columns)[rows]

    def fold(self, events: Batch, state: StateView) -> None:
        """Add the events to their windows; count in *state* what is not folded."""
        ledger = Ledger.load(state)
        adders: list[_Adder] = []
        for group in self._reader.groups(events, ledger.watermark, state):
            adders = adders or [one.adder(events) for one in self._windows]
            ledger.note(group.bucket)
            earliest = _earliest(events, group)
            for values in group.combinations:
                self._add(group, encode_key(values), earliest, adders, ledger, state)
        ledger.shrink(state, self._max_windows)
        ledger.save(state)

    def close(self, watermark: Timestamp, state: StateView) -> list[Window]:
        """Return the windows that no event can change any more, and forget them."""
        ledger = Ledger.load(state)
        if watermark <= ledger.watermark:
            return []
        ledger.watermark = watermark
        reached = (watermark - self.recipe.lateness) // self._width
        due = ledger.take_due(state, reached)
        whole = [one for one in due if ledger.knows(one[1], one[0])]
        if len(whole) < len(due):
            state.count("capped", len(due) - len(whole))
        closed = [self._closed(bucket, key, *value, capped=ledger.capped(bucket)) for bucket, key, value in whole]
        ledger.recover(self._max_windows, reached, reached)
        ledger.save(state)
        return closed

    def _add(
        self,
        group: Group,
        key: str,
        earliest: list[Evidence],
        adders: Sequence[_Adder],
        ledger: Ledger,
        state: StateView,
    ) -> None:
        if not ledger.admits(key):
            state.count("capped")
            return
        known = state.get(open_key(group.bucket, key))
        count, evidence, folded = known or (0, [], [None] * len(adders))
        value = [
            count + len(group.rows),
            sorted([*evidence, *earliest], key=_age)[:EVIDENCE],
            [add(old, group.rows) for add, old in zip(adders, folded, strict=True)],
        ]
        ledger.keep_open(state, group.bucket, key, value, new=known is None)

    def _closed(
        self, bucket: int, key: str, count: int, evidence: list[Evidence], folded: list[Any], *, capped: bool
    ) -> Window:
        start, values = bucket * self._width, decode_key(key)
        return Window(
            start=start,
            end=start + self._width,
            entity=pairs(self.recipe.entity, values),
            fields=dict(zip(self.recipe.entity, values, strict=True)),
            count=count,
            evidence=tuple(reference_of(one) for one in evidence),
            time=evidence[0][0],
            features=tuple(
                number
                for one, state in zip(self._windows, folded, strict=True)
                for number in one.columns(state, count, start)
            ),
            capped=capped,
        )


def matrix(windows: Sequence[Window], width: int) -> Matrix:
    """Return the features of *windows*, a row each."""
    return np.array([one.features for one in windows], dtype=np.float64).reshape(len(windows), width)


def hash_of(value: Value) -> bytes:
    """Return the 16 bytes under which the rarity of a value is known; a list is one value."""
    state = blake2b(digest_size=16)
    for item in scalars(value):
        data = text_of(item).encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(4, "big") + data)
    return state.digest()


# --- features of a row ------------------------------------------------------------------------------------------------

_Views: TypeAlias = Mapping[str, FieldView]


class _Row(Protocol):
    """A feature of rows: the fields that it reads, and its columns over all rows of a batch."""

    fields: tuple[str, ...]

    def columns(self, views: _Views, time: NDArray[np.int64]) -> list[Matrix]: ...


class _OfValue:
    """A pure function of one field's value; *absent* stands where an event lacks the field."""

    def __init__(self, field: str, *functions: Callable[[Value], float], absent: float = math.nan) -> None:
        self.fields: tuple[str, ...] = (field,)
        self._functions = [PerValue(function) for function in functions]
        self._absent = absent

    def columns(self, views: _Views, time: NDArray[np.int64]) -> list[Matrix]:  # noqa: ARG002
        view = views[self.fields[0]]
        found = []
        for function in self._functions:
            table = np.full(view.size + 1, self._absent)  # code -1 meets the last
            numbers = view.apply(function)
            table[list(numbers)] = list(numbers.values())
            found.append(table[view.codes])
        return found


class _OfTime:
    """The place of a row's time in a day or week, as sine and cosine of an angle."""

    def __init__(self, place: Callable[[Any], Any], steps: int) -> None:
        self.fields: tuple[str, ...] = ()
        self._place = place
        self._table = np.array([*_circle(steps), (math.nan, math.nan)])

    def columns(self, views: _Views, time: NDArray[np.int64]) -> list[Matrix]:  # noqa: ARG002
        return list(self._table[np.where(time == NO_TIME, -1, self._place(time))].T)


def _row(feature: spec.Feature, rarities: Mapping[bytes, float]) -> _Row:
    made: _Row
    match feature:
        case spec.Number(number=field, log=log):
            made = _OfValue(field, partial(_greatest, _log_number if log else _number))
        case spec.Length(length=field):
            made = _OfValue(field, partial(_greatest, _length))
        case spec.Entropy(entropy=field):
            made = _OfValue(field, partial(_greatest, _entropy))
        case spec.OneOf(one_of=field, values=values):
            made = _OfValue(field, *(partial(_has, value) for value in values), absent=0.0)
        case spec.PrivateAddress(private_address=field):
            made = _OfValue(field, _private_address)
        case spec.Rarity(rarity=field):
            made = _OfValue(field, lambda value: rarities[hash_of(value)])
        case spec.Present(present=field):
            made = _OfValue(field, lambda value: float(bool(scalars(value))), absent=0.0)
        case _:
            made = _OfTime(*_clock(feature))
    return made


def _greatest(function: Callable[[Scalar], float], value: Value) -> float:
    numbers = [number for item in scalars(value) if not math.isnan(number := function(item))]
    return max(numbers, default=math.nan)


def _number(item: Scalar) -> float:
    try:
        number = float(item) if not isinstance(item, str) or len(item) <= 64 else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _log(number: float) -> float:
    return math.copysign(math.log1p(abs(number)), number)


def _log_number(item: Scalar) -> float:
    return _log(_number(item))


def _length(item: Scalar) -> float:
    return float(len(text_of(item)))


def _entropy(item: Scalar) -> float:
    text = text_of(item)[:_TEXT]
    counts = Counter(text).values()
    return math.fsum(count / len(text) * math.log2(len(text) / count) for count in counts)


def _has(wanted: str, value: Value) -> float:
    return float(any(text_of(item) == wanted for item in scalars(value)))


def _private_address(value: Value) -> float:
    try:
        addresses = [ipaddress.ip_address(text_of(item)) for item in scalars(value)]
    except ValueError:
        return math.nan
    return float(all(map(_is_private, addresses))) if addresses else math.nan


def _is_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    inner = getattr(address, "ipv4_mapped", None) or address
    return any(inner in network for network in _PRIVATE)


# --- features of a window ---------------------------------------------------------------------------------------------

_Adder: TypeAlias = Callable[[Any, NDArray[np.intp]], Any]
"""Adds rows of the batch at hand to what was folded before (None: nothing) and returns the whole, as JSON has it."""


class _Window(Protocol):
    """A feature of windows. What it folds does not depend on order; `columns` makes numbers of it."""

    fields: tuple[str, ...]

    def adder(self, events: Batch) -> _Adder: ...

    def columns(self, folded: Any, count: int, start: Timestamp) -> Sequence[float]: ...


class _Matching:
    """How many events match, or their share."""

    def __init__(self, where: Mapping[str, Sequence[str]], *, share: bool, log: bool) -> None:
        self.fields = tuple(where)
        self._reader = Reader(where, (), 1, 0)
        self._share = share
        self._log = log

    def adder(self, events: Batch) -> _Adder:
        mask = self._reader.matching(events)
        return lambda old, rows: (old or 0) + int(np.count_nonzero(mask[rows]))

    def columns(self, folded: Any, count: int, start: Timestamp) -> Sequence[float]:  # noqa: ARG002
        return [folded / count if self._share else _scaled(float(folded), self._log)]


class _Distinct:
    """How many values: the set of the least hashes, which any order leaves the same."""

    def __init__(self, field: str, *, log: bool) -> None:
        self.fields: tuple[str, ...] = (field,)
        self._hashes = PerValue(_hashes)
        self._log = log

    def adder(self, events: Batch) -> _Adder:
        view = FieldView(events, self.fields[0])
        hashes = view.apply(self._hashes)

        def add(old: Any, rows: NDArray[np.intp]) -> Any:
            codes = np.unique(view.codes[rows]).tolist()
            found = {one for code in codes if code >= 0 for one in hashes[code]}
            return sorted(found.union(old or ()))[:_DISTINCT]

        return add

    def columns(self, folded: Any, count: int, start: Timestamp) -> Sequence[float]:  # noqa: ARG002
        number = len(folded) if len(folded) < _DISTINCT else round((_DISTINCT - 1) * 2**48 / folded[-1])
        return [_scaled(float(number), self._log)]


def _hashes(value: Value) -> tuple[int, ...]:
    return tuple(int.from_bytes(hash_of(item)[:6], "big") + 1 for item in scalars(value))


class _Numbers:
    """What numbers come to, as integers of a thousandth: exact, so their order does not matter."""

    def __init__(self, field: str, fold: Callable[[Iterable[int]], int], *, mean: bool, log: bool) -> None:
        self.fields: tuple[str, ...] = (field,)
        self._numbers = PerValue(_thousandths)
        self._fold = fold
        self._mean = mean
        self._log = log

    def adder(self, events: Batch) -> _Adder:
        view = FieldView(events, self.fields[0])
        numbers = view.apply(self._numbers)

        def add(old: Any, rows: NDArray[np.intp]) -> Any:
            found = [number for code in view.codes[rows].tolist() if (number := numbers.get(code)) is not None]
            count, folded = old or (0, None)
            whole = found if folded is None else [*found, int(folded)]
            return [count + len(found), str(self._fold(whole)) if whole else None]

        return add

    def columns(self, folded: Any, count: int, start: Timestamp) -> Sequence[float]:  # noqa: ARG002
        number, total = folded
        if total is None:
            return [math.nan]
        return [_scaled(int(total) / (_THOUSANDTH * (number if self._mean else 1)), self._log)]


def _thousandths(value: Value) -> int | None:
    numbers = [_thousandth(item) for item in scalars(value)]
    return max((number for number in numbers if number is not None), default=None)


def _thousandth(item: Scalar) -> int | None:
    exact = item if isinstance(item, int) else _number(item)
    if isinstance(exact, float) and math.isnan(exact):
        return None
    return round(max(-_LARGEST, min(_LARGEST, exact)) * _THOUSANDTH)


class _Started:
    """Where the window's start lies in a day or week."""

    def __init__(self, place: Callable[[Any], Any], steps: int) -> None:
        self.fields: tuple[str, ...] = ()
        self._place = place
        self._table = _circle(steps)

    def adder(self, events: Batch) -> _Adder:  # noqa: ARG002
        return lambda old, rows: None  # noqa: ARG005

    def columns(self, folded: Any, count: int, start: Timestamp) -> Sequence[float]:  # noqa: ARG002
        point: tuple[float, float] = self._table[self._place(start)]
        return point


def _window(feature: spec.Feature) -> _Window:
    made: _Window
    match feature:
        case spec.Count(count=where, log=log):
            made = _Matching({} if where is True else where, share=False, log=log)
        case spec.Share(share=where):
            made = _Matching(where, share=True, log=False)
        case spec.Distinct(distinct=field, log=log):
            made = _Distinct(field, log=log)
        case spec.Sum(sum=field, log=log):
            made = _Numbers(field, sum, mean=False, log=log)
        case spec.Mean(mean=field, log=log):
            made = _Numbers(field, sum, mean=True, log=log)
        case spec.Max(max=field, log=log):
            made = _Numbers(field, max, mean=False, log=log)
        case spec.Min(min=field, log=log):
            made = _Numbers(field, min, mean=False, log=log)
        case _:
            made = _Started(*_clock(feature))
    return made


def _scaled(number: float, log: bool) -> float:
    return _log(number) if log else number


def _earliest(events: Batch, group: Group) -> list[Evidence]:
    """Return the group's earliest events, by time and identity; its rows are in order of time."""
    times = events.time[group.rows]
    last = times[min(EVIDENCE, len(times)) - 1]
    earliest = [evidence_of(events, row) for row in group.rows[: np.searchsorted(times, last, side="right")].tolist()]
    return sorted(earliest, key=_age)[:EVIDENCE]


def _age(evidence: Evidence) -> tuple[int, str]:
    return evidence[0], reference_of(evidence).identity


# --- time, columns and words ------------------------------------------------------------------------------------------


class _Turn(NamedTuple):
    """A cycle of so many *steps*, and the step of a time or of an array of times."""

    place: Callable[[Any], Any]
    steps: int


def _minute(time: Any) -> Any:
    return time // _MINUTE % 1_440


def _weekday(time: Any) -> Any:
    return (time // DAY + 3) % 7  # day 0 was a Thursday


def _clock(feature: spec.Feature) -> _Turn:
    return _Turn(_minute, 1_440) if isinstance(feature, spec.Hour) else _Turn(_weekday, 7)


def _circle(steps: int) -> list[tuple[float, float]]:
    """Return points around a circle; rounded, so that every platform has the same."""
    angles = [2 * math.pi * step / steps for step in range(steps)]
    return [(round(math.sin(angle), 9), round(math.cos(angle), 9)) for angle in angles]


def _columns(name: str, feature: spec.Feature) -> list[str]:
    match feature:
        case spec.OneOf(values=values):
            return [f"{name}={value}" for value in values]
        case spec.Hour() | spec.Weekday():
            return [f"{name}.sin", f"{name}.cos"]
    return [name]


def _features(specs: Sequence[tuple[str, spec.Feature]]) -> tuple[Feature, ...]:
    found, start = [], 0
    for name, feature in specs:
        end = start + spec.width(feature)
        found.append(Feature(name, slice(start, end), _show(feature)))
        start = end
    return tuple(found)


def _show(feature: spec.Feature) -> Callable[[Sequence[float]], Any]:
    made: Callable[[Sequence[float]], Any]
    match feature:
        case spec.OneOf(values=values):
            made = partial(_show_choice, values)
        case spec.Hour() | spec.Weekday():
            made = partial(_show_turn, _clock(feature).steps)
        case spec.Rarity():
            made = _show_rarity
        case spec.PrivateAddress():
            made = partial(_show_either, "private", "public")
        case spec.Present():
            made = partial(_show_either, "present", "absent")
        case _:
            made = _show_log if getattr(feature, "log", False) else _show_number
    return made


def _show_choice(values: Sequence[str], columns: Sequence[float]) -> str:
    return ", ".join(value for value, one in zip(values, columns, strict=True) if one > 0.5) or "other"


def _show_either(yes: str, no: str, columns: Sequence[float]) -> str:
    return yes if columns[0] > 0.5 else no


def _show_rarity(columns: Sequence[float]) -> str:
    return f"one in {plain(math.exp(min(columns[0], _MOST_LOG)))}"


def _show_log(columns: Sequence[float]) -> int | float:
    return plain(math.copysign(math.expm1(min(abs(columns[0]), _MOST_LOG)), columns[0]))


def _show_number(columns: Sequence[float]) -> int | float:
    return plain(columns[0])


def _show_turn(steps: int, columns: Sequence[float]) -> str:
    sine, cosine = columns
    if math.hypot(sine, cosine) < 0.3:
        return "any"
    step = round(math.atan2(sine, cosine) / (2 * math.pi) * steps) % steps
    return _WEEKDAYS[step] if steps == len(_WEEKDAYS) else f"{instant(step * _MINUTE):%H:%M} UTC"


def plain(number: float) -> int | float:
    """Return *number* as a person reads it: whole, or with four digits."""
    if abs(number) < 1e15 and abs(number - round(number)) < 1e-6:
        return round(number)
    short = float(f"{number:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
