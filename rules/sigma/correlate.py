"""Correlations over the matches of rules, in event time and in bounded state.

The alert of a correlation is about a group (the values of its group-by fields) and a window ``floor(t / timespan)``, so
its id is the same for every cut into batches and every order of events within the allowed lateness:

- A *sliding* correlation (`Correlation.monotone`) has an alert for each window that holds a trigger: an event at ``t``
  for which the condition holds over ``(t - timespan, t]``. Events at one instant count as in any order. Of each window
  only what can decide is kept: as many of the earliest and of the latest events as the condition asks for, the first
  and last of each value. It is told at once, and again (``settled``) when its window is over.
- All others *tumble*: a tally a window, decided when the watermark has passed the window's end by `SETTLE`.

An event that comes again, such as a document that was updated, counts once: what slides keeps the events that can
decide, a tally the identities of up to `MOST_MET`. A tally of more keeps none, and counts again what comes again.

A correlation of correlations takes triggers, each once; what tumbles is a trigger at its window's last instant. A chain
in which anything tumbles promises its ids for disorder up to `SETTLE`, as what tumbles does: with later events what
slides in it may find a trigger for a window that is decided already, which is counted as late.

Of what others wait for, and of rules in order, every event is kept up to `MOST_EVENTS` at each end of a window: one may
come to stand between two others. A window that lost some says ``vedette.capped``, and how many in
``vedette.evidence.cut``.

State, by key, so that a batch writes the windows that it has touched and no others:

- ``[correlation, group values...]``: the group's newest window; ``<number>:[...]``: an older one
- ``!due``: in which minutes something closes; ``!due/<minute>``: when, of which correlations;
  ``!<time>/<correlation>/<part>``: of which groups
- empty: the operator's books (`Ledger`), their buckets being the starts of windows
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import islice, pairwise, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.detect.windows import (
    FieldView,
    Ledger,
    decode_key,
    encode_key,
    evidence_of,
    length,
    open_key,
    ordered,
    reference_of,
    scalars,
    text_of,
    timely,
)
from agent.model import (
    SECOND,
    Batch,
    Description,
    Explanation,
    Factor,
    Finding,
    Kind,
    Reference,
    Scalar,
    Timestamp,
    digest,
    distinct,
)
from agent.ports import StateView
from rules.sigma.correlation import MOST_VALUES, Correlation, holds, share
from rules.sigma.engine import Binder
from rules.sigma.parse import Rule

LATENESS = 24 * 3_600 * SECOND
"""How much older than the newest an event may be that a sliding correlation still takes."""
SETTLE = 300 * SECOND
"""The same for a tumbling one; and how long after its end a window is told to be over."""
MOST_EVENTS = 1_000
"""Events that a window keeps at each end where all of them matter."""
MOST_MET = 1_000
"""Events that a tally tells apart."""
_SWEEP = LATENESS // 4
_CITED = 100
_FIRST = 10
"""Events that a tally cites."""
_MINUTE = 60 * SECOND
_DUE = "!due"
_PART = 256
"""Groups that wait under one key before another is begun."""
_LAYOUT = 2
"""Of the state: what was kept in another layout is not read, and is swept away."""
_LONGEST_TEXT = 256
"""Characters of a value that a key holds; a longer one is told apart by its digest."""
_MOST_COMBINATIONS = 64
_ZERO = Fraction(0)

_Rows: TypeAlias = NDArray[np.intp]
_Home: TypeAlias = tuple[str, str, str, str, str]
"""Source, partition, path, format and lineage of an event."""
_Group: TypeAlias = tuple[str, ...]
_Identity: TypeAlias = tuple[str, str, str, str]


class _Event(NamedTuple):
    """One event of a group; *value* is what is counted of it: a value, a rule's number, or nothing. *told*: an outer
    correlation has had it as a trigger."""

    time: Timestamp
    value: str | int | None
    home: _Home
    key: int | str
    told: bool = False

    @property
    def identity(self) -> _Identity:
        source, partition, _, _, lineage = self.home
        return source, lineage or partition, str(self.key), str(self.value)

    @property
    def reference(self) -> Reference:
        source, partition, path, format, lineage = self.home
        return reference_of([self.time, source, partition, self.key, path, format, lineage])


class _Arrival(NamedTuple):
    """Events new to a window of a group. *number* is how many there were, *cut* how many a cap has taken, *events*
    those that may decide; *value* is what is counted of each, *marks* tell them apart."""

    group: _Group
    window: int
    events: list[_Event]
    number: int
    value: str | int | None
    cut: int = 0
    marks: Iterable[str] = ()


@dataclass
class _Window:
    """What is kept of one group's events in one window; *fired*: a trigger was met already.

    *met* has the marks of the events that a tally has counted, None if they were too many.
    """

    number: int = 0
    events: list[_Event] = field(default_factory=list)
    cut: int = 0
    fired: bool = False
    values: dict[str, int] = field(default_factory=dict)
    total: Fraction = _ZERO
    met: set[str] | None = field(default_factory=set)
    changed: bool = False

    @classmethod
    def load(cls, data: Sequence[Any]) -> _Window:
        number, cut, fired, total, values, met, homes, stored = data
        homes = [tuple(home) for home in homes]
        events = [_Event(time, value, homes[home], key, bool(told)) for time, value, home, key, told in stored]
        marks = None if met is None else {met[start : start + _MARK] for start in range(0, len(met), _MARK)}
        return cls(number, events, cut, bool(fired), values, Fraction(total) if total else _ZERO, marks)

    def dump(self) -> list[Any]:
        homes: dict[_Home, int] = {}
        events = [
            [time, value, homes.setdefault(home, len(homes)), key, int(told)]
            for time, value, home, key, told in self.events
        ]
        met = None if self.met is None else "".join(sorted(self.met))
        total = str(self.total) if self.total else ""
        return [self.number, self.cut, int(self.fired), total, self.values, met, list(homes), events]


class _Record:
    """A group's windows: the newest lies in state under the group's key, any other under one of its own."""

    def __init__(self, state: StateView, key: str) -> None:
        self._state, self._key = state, key
        self._open: dict[int, _Window] = {}
        self._dropped: set[int] = set()
        data = state.get(key)
        self._newest: int | None = None
        if data is not None:
            self._newest = data[0]
            self._open[data[0]] = _Window.load(data[1:])

    @property
    def new(self) -> bool:
        return self._newest is None

    @property
    def numbers(self) -> Sequence[int]:
        """The windows that were looked at."""
        return list(self._open)

    def get(self, number: int) -> _Window | None:
        if number not in self._open and self._newest is not None and number < self._newest:
            data = self._state.get(open_key(number, self._key))
            if data is not None and number not in self._dropped:
                self._open[number] = _Window.load(data)
        return self._open.get(number)

    def add(self, number: int) -> _Window:
        """Return the window, which is about to change; a new one if there is none."""
        window = self.get(number) or self._open.setdefault(number, _Window())
        window.changed = True
        return window

    def drop(self, number: int) -> None:
        if self._open.pop(number, None):
            self._dropped.add(number)

    def flush(self, books: _Books) -> None:
        """Write back what has changed."""
        newest = max(self._open, default=None)
        for number in self._dropped:
            if self._newest is not None and number < self._newest:
                self._state.delete(open_key(number, self._key))
        if newest is None:
            if self._newest is not None:
                books.drop(self._state, self._key)
            return
        for number, window in self._open.items():
            moved = (number == newest) != (number == self._newest)
            if not window.changed and not moved:
                continue
            if number != newest:
                self._state.put(open_key(number, self._key), window.dump())
                continue
            books.keep(self._state, self._key, [number, *window.dump()], new=self.new)
            if self._newest is not None and number < self._newest:
                self._state.delete(open_key(number, self._key))


class _Books(Ledger):
    """The ledger; its cap is one of groups, however many windows they have."""

    @classmethod
    def load(cls, state: StateView) -> _Books:
        return cls(**(state.get("") or {}))

    def drop(self, state: StateView, key: str) -> None:
        state.delete(key)
        self.keys -= key.startswith("[")


@dataclass(frozen=True)
class Attempt:
    """To what *degree* a condition held for a group in one window: 1 if it did, less the farther it was from it.

    *measured* is what is compared: events, values, rules, or a number that is measured; *present* the numbers of the
    rules that count. *events* are those that count, of a tally the first, between *since* and *until*; *total* is how
    many the window had.
    """

    about: Correlation
    group: tuple[str, ...]
    window: tuple[Timestamp, Timestamp]
    holds: bool
    degree: float
    measured: float
    present: tuple[int, ...]
    since: Timestamp
    until: Timestamp
    events: tuple[Reference, ...]
    total: int


class _Plan:
    """One correlation, ready to run: *waited* says that others take its triggers, *output* that it alerts."""

    def __init__(self, about: Correlation, description: Description, *, waited: bool, output: bool) -> None:
        self.about, self.description, self.waited, self.output = about, description, waited, output
        self.sliding = about.monotone
        self.span = about.timespan
        self.lateness = LATENESS if self.sliding else SETTLE
        self.by_rule = about.type in ("temporal", "temporal_ordered")
        self.keeps_all = waited or about.type == "temporal_ordered"
        """Whether any event of a window may come to matter: one between two others, once a late one joins them."""
        self.measures = about.type not in ("event_count", "value_count") and not self.by_rule
        self.overlaps = not self.sliding and not self.by_rule and len(about.rules) > 1
        """Whether a tally could meet one event by two of its rules."""
        self.least = about.least if self.sliding and not about.expression else len(about.rules)
        meaning = (
            about.type,
            about.rules,
            about.fields,
            about.values,
            about.bounds,
            about.expression,
            about.percentile,
        )
        self.key = digest(about.id, repr(meaning), self.span, _LAYOUT)[:12]

    def key_of(self, group: _Group) -> str:
        return encode_key((self.key, *group))

    def start(self, window: int) -> Timestamp:
        return window * self.span

    def is_over(self, window: int, watermark: Timestamp) -> bool:
        """Say whether nothing that *watermark* lets in can reach the window any more."""
        return self.start(window + 1) <= watermark - self.lateness - (self.span if self.sliding else 0)

    def value(self, rule: int, counted: Sequence[str]) -> str | int | None:
        """Return what is counted of an event of the rule of that number, whose *counted* fields hold these texts."""
        if self.by_rule or not counted:
            return rule if self.by_rule else None
        return counted[0] if len(counted) == 1 else encode_key(counted)

    def takes(self, value: str | int | None) -> bool:
        """Say whether *value* can be counted: what is measured is a number."""
        return not self.measures or _is_number(str(value))

    # --- sliding ---

    def triggers(self, before: Sequence[_Event], now: Sequence[_Event]) -> list[_Event]:
        """Return those of *now* at whose time the condition holds; both are in order, *before* is the window before."""
        events = [*before, *now]
        true_at = self._in_order(events) if self.about.type == "temporal_ordered" else self._counted(events)
        return [event for event in now if event.time in true_at]

    def _counted(self, events: Sequence[_Event]) -> set[Timestamp]:
        return {
            events[right - 1].time
            for left, right, counts in self._instants(events)
            if self._is_true(right - left, counts)
        }

    def _instants(self, events: Sequence[_Event]) -> Iterator[tuple[int, int, Counter[str | int | None]]]:
        """Yield of each instant which events lie in the time span that ends with it, and how many have which value."""
        counts: Counter[str | int | None] = Counter()
        left = right = 0
        while right < len(events):
            time = events[right].time
            while right < len(events) and events[right].time == time:
                counts[events[right].value] += 1
                right += 1
            while events[left].time <= time - self.span:
                value = events[left].value
                counts[value] -= 1
                if not counts[value]:
                    del counts[value]
                left += 1
            yield left, right, counts

    def _is_true(self, number: int, counts: Mapping[Any, int]) -> bool:
        if self.about.expression:
            return holds(self.about.expression, counts.keys())
        return (number if self.about.type == "event_count" else len(counts)) >= self.least

    def _in_order(self, events: Sequence[_Event]) -> set[Timestamp]:
        """Return the times at which a chain of all rules has ended that began less than the time span before."""
        return {
            events[right - 1].time
            for right, begun in self._chains(events)
            if begun[-1] > events[right - 1].time - self.span
        }

    def _chains(self, events: Sequence[_Event]) -> Iterator[tuple[int, Sequence[float]]]:
        """Yield of each instant where it ends and, for the rules up to each, the latest start of a chain of them."""
        begun = [-math.inf] * len(self.about.rules)
        right = 0
        while right < len(events):
            time = events[right].time
            here = set()
            while right < len(events) and events[right].time == time:
                here.add(events[right].value)
                right += 1
            for number in range(len(begun)):
                if number in here:
                    begun[number] = max(begun[number], time if number == 0 else begun[number - 1])
            yield right, begun

    def nearest(self, group: _Group, number: int, before: Sequence[_Event], window: _Window) -> Attempt:
        """Return when in the window the condition came to hold, or else was nearest to it."""
        events = [*before, *window.events]
        here = [one for one in self._degrees(events) if one[0] > len(before)]
        right, degree, since, rules = next((one for one in here if one[1] >= 1), max(here, key=lambda one: one[1]))
        counted = [one for one in events[:right] if one.time >= since and (not self.by_rule or _rule(one) < rules)]
        number_of = len(counted) if self.about.type == "event_count" else len({one.value for one in counted})
        return self._attempt(group, number, window, degree, number_of, counted)

    def _degrees(self, events: Sequence[_Event]) -> Iterator[tuple[int, float, float, int]]:
        """Yield of each instant where it ends, to what degree the condition holds, since when, and for which rules."""
        if self.about.type == "temporal_ordered":
            for right, begun in self._chains(events):
                reached = sum(start > events[right - 1].time - self.span for start in begun)
                yield right, reached / len(begun), begun[reached - 1] if reached else math.inf, reached
            return
        for left, right, counts in self._instants(events):
            found = right - left if self.about.type == "event_count" else len(counts)
            degree = share(self.about.expression, counts) if self.about.expression else min(1, found / self.least)
            yield right, degree, events[left].time, len(self.about.rules)

    def thin(self, window: _Window) -> int:
        """Drop events that can decide nothing any more; return how many the cap took that could."""
        kind = self.about.type
        if kind == "event_count":
            window.events = _ends(window.events, self.least)
            return 0
        if not self.keeps_all:
            window.events = self._ends_of_values(window.events)
        number = len(window.events)
        if number > 2 * MOST_EVENTS:
            events = _ends_of_runs(window.events) if kind == "temporal_ordered" else window.events
            window.events = _ends(events, MOST_EVENTS)
        return number - len(window.events)

    def _ends_of_values(self, events: list[_Event]) -> list[_Event]:
        first: dict[Any, int] = {}
        last: dict[Any, int] = {}
        for place, event in enumerate(events):
            first.setdefault(event.value, place)
            last[event.value] = place
        if not self.by_rule:
            first = dict(islice(first.items(), self.least))
            last = dict(sorted(last.items(), key=lambda item: -item[1])[: self.least])
        return [events[place] for place in sorted({*first.values(), *last.values()})]

    # --- tumbling ---

    def measure(self, window: _Window) -> float | None:
        """Return what is compared, None if there is nothing to measure."""
        match self.about.type:
            case "event_count":
                return window.number
            case "value_count" | "temporal":
                return len(window.values)
        size = sum(window.values.values()) if self.about.type in ("value_percentile", "value_median") else window.number
        if not size:
            return None
        if self.about.type == "value_sum":
            return float(window.total)
        if self.about.type == "value_avg":
            return float(window.total / size)
        return _percentile(window.values, 50.0 if self.about.type == "value_median" else self.about.percentile)

    def decide(self, window: _Window) -> bool:
        if self.about.expression:
            return holds(self.about.expression, {int(number) for number in window.values})
        measured = self.measure(window)
        return measured is not None and all(_COMPARE[sign](measured, bound) for sign, bound in self.about.bounds)

    def tallied(self, group: _Group, number: int, window: _Window) -> Attempt:
        """Return how near a tally came."""
        measured = self.measure(window) or 0.0
        if self.decide(window):
            degree = 1.0
        elif self.about.expression:
            degree = share(self.about.expression, {int(rule) for rule in window.values})
        else:
            degree = 1 / (2 + max(abs(measured - bound) for _, bound in self.about.bounds))
        return self._attempt(group, number, window, degree, measured, window.events)

    def _attempt(
        self, group: _Group, number: int, window: _Window, degree: float, measured: float,
        counted: Sequence[_Event],
    ) -> Attempt:  # fmt: skip
        present = {one.value for one in counted} if self.sliding else window.values
        return Attempt(
            about=self.about,
            group=group,
            window=(self.start(number), self.start(number + 1)),
            holds=degree >= 1,
            degree=degree,
            measured=measured,
            present=tuple(sorted(int(one) for one in present if one is not None)) if self.by_rule else (),
            since=min((one.time for one in counted), default=0),
            until=max((one.time for one in counted), default=0),
            events=tuple(dict.fromkeys(one.reference for one in counted)),
            total=window.number,
        )


_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    "=": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
}


def _ends(events: list[_Event], number: int) -> list[_Event]:
    return events if len(events) <= 2 * number else [*events[:number], *events[-number:]]


def _ends_of_runs(events: list[_Event]) -> list[_Event]:
    """Keep the first and last of consecutive events of one rule."""
    inner = range(1, len(events) - 1)
    dull = {n for n in inner if events[n - 1].value == events[n].value == events[n + 1].value}
    return [event for n, event in enumerate(events) if n not in dull]


def _percentile(values: Mapping[str, int], share: float) -> float:
    """Return the percentile of numbers with their counts, interpolated between neighbours."""
    numbers = sorted((float(text), count) for text, count in values.items())
    place = (sum(count for _, count in numbers) - 1) * share / 100
    below, above = _at(numbers, math.floor(place)), _at(numbers, math.ceil(place))
    return below + (above - below) * (place - math.floor(place))


def _at(numbers: Sequence[tuple[float, int]], place: int) -> float:
    for number, count in numbers:
        if place < count:
            return number
        place -= count
    return numbers[-1][0]


class Correlator:
    """All correlations of a collection, the inner ones before those that take their triggers.

    *describe* says what the alert of a correlation says of it; *loud* are those that alert.
    """

    def __init__(
        self,
        correlations: Sequence[Correlation],
        rules: Mapping[str, Rule],
        describe: Callable[[Any], Description],
        loud: Container[str],
        most_groups: int,
    ) -> None:
        waited = {rule for one in correlations for rule in one.rules}
        self._plans = [
            _Plan(one, describe(one), waited=one.id in waited, output=one.id in loud) for one in correlations
        ]
        self.loud = tuple(one for one in correlations if one.id in loud)
        self._by_key = {plan.key: place for place, plan in enumerate(self._plans)}
        self._rules = rules
        self._titles = {id: rule.title for id, rule in rules.items()} | {one.id: one.title for one in correlations}
        self._most_groups = most_groups
        self._takers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """Of each rule and correlation: which correlations take it, and as which of their rules."""
        for place, plan in enumerate(self._plans):
            for number, id in enumerate(plan.about.rules):
                self._takers[id].append((place, number))
        self._binders: dict[tuple[Kind, str | None], Binder] = {}

    def takes(self, rule: Rule) -> bool:
        return rule.id in self._takers

    def fields(self, kind: Kind, rules: Iterable[Rule]) -> frozenset[str]:
        """Return the columns that correlations read of the events of *kind* that *rules* may match."""
        found: set[str] = set()
        for rule in rules:
            for place, number in self._takers.get(rule.id, ()):
                found.update(self._columns(kind, rule, place, number))
        return frozenset(found) - kind.constant.keys()

    def _columns(self, kind: Kind, rule: Rule, place: int, number: int) -> list[str]:
        key = kind, rule.category
        binder = self._binders.get(key)
        if binder is None:
            binder = self._binders[key] = Binder(kind, rule.category, tests=None)
        about = self._plans[place].about
        return [binder.column(name) for name in (*about.fields[number], *about.values)]

    # --- a batch ------------------------------------------------------------------------------------------------------

    def detect(self, events: Batch, matches: Mapping[str, Sequence[int]], state: StateView) -> list[Finding]:
        """Fold the batch's *matches* (rows, ascending, by rule)."""
        run = _Run(self, state, events, {row for rows in matches.values() for row in rows})
        self._fold(run, matches)
        return run.findings

    def attempts(self, events: Batch, matches: Mapping[str, Sequence[int]], state: StateView) -> list[Attempt]:
        """Return how near each group came in each window, when nothing follows on the batch's *matches*."""
        run = _Run(self, state, events, {row for rows in matches.values() for row in rows}, attempts={})
        self._fold(run, matches)
        run = _Run(self, state, attempts=run.attempts)
        self._close(run, _END)
        return list((run.attempts or {}).values())

    def _fold(self, run: _Run, matches: Mapping[str, Sequence[int]]) -> None:
        for place, plan in enumerate(self._plans):
            for number, rule, rows in self._together(plan, matches):
                self._read(run, place, number, rule, rows)
        run.fold_all()
        run.flush()

    def _together(self, plan: _Plan, matches: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, Rule, _Rows]]:
        """Yield the rows of each of the plan's rules; of rules that are counted alike an event counts once."""
        alike: dict[Any, tuple[int, Rule, list[_Rows]]] = {}
        for number, id in enumerate(plan.about.rules):
            if id in matches:
                rule = self._rules[id]
                key = number if plan.by_rule else (plan.about.fields[number], rule.category)
                alike.setdefault(key, (number, rule, []))[2].append(np.array(matches[id], dtype=np.intp))
        for number, rule, rows in alike.values():
            yield number, rule, rows[0] if len(rows) == 1 else distinct(np.concatenate(rows))

    def _read(self, run: _Run, place: int, number: int, rule: Rule, rows: _Rows) -> None:
        """Group the rows at which *rule* matched, by window, group and value."""
        plan, events = self._plans[place], run.events
        assert events is not None
        rows = timely(events, rows, run.ledger.watermark, plan.lateness, run.state)
        for at in np.unique(events.kind[rows]).tolist():
            here = rows[events.kind[rows] == at]
            columns = self._columns(events.kinds[at], rule, place, number)
            fields = [run.view(name) for name in columns]
            mask = np.ones(len(here), dtype=np.bool_)
            for one in fields:
                mask &= one.codes[here] >= 0
            if lacking := int(np.count_nonzero(~mask)):
                run.state.count("ungrouped", lacking)
            here = here[mask]
            windows = events.time[here] // plan.span
            order, edges = ordered(here, windows, events.time[here], fields)
            here, windows = here[order], windows[order]
            for start, end in pairwise(edges):
                run.arrive(place, self._arrivals(run, plan, number, fields, int(windows[start]), here[start:end]))

    def _arrivals(
        self, run: _Run, plan: _Plan, number: int, fields: Sequence[_Folded], window: int, rows: _Rows
    ) -> Iterator[_Arrival]:
        """Yield what one group of rows comes to: several groups where a field is a list."""
        parts = [one.texts(int(one.codes[rows[0]])) for one in fields]
        if not all(parts):
            run.state.count("ungrouped", len(rows))
        split = len(plan.about.group_by)
        found = list(islice(product(*parts), _MOST_COMBINATIONS))
        if (over := math.prod(map(len, parts)) - len(found)) > 0:
            run.state.count("combinations_cut", over)
        for texts in found:
            group, value = texts[:split], plan.value(number, texts[split:])
            if not plan.takes(value):
                run.state.count("not_a_number", len(rows))
                continue
            fresh = run.unseen((plan.key, group, window, value), rows) if plan.overlaps else rows
            kept = self._kept(plan, fresh)
            made = [_event(run.events, row, value) for row in kept.tolist()]
            cut = len(fresh) - len(kept) if plan.sliding and plan.keeps_all else 0
            marks = () if plan.sliding else _marks(run.events, fresh, made)
            yield _Arrival(group, window, made, len(fresh), value, cut, marks)

    def _kept(self, plan: _Plan, rows: _Rows) -> _Rows:
        """Return those of a group's rows, in order of time, that its window would keep."""
        if not plan.sliding:
            return rows[:_FIRST]
        most = MOST_EVENTS if plan.keeps_all else plan.least if plan.about.type == "event_count" else 1
        return rows if len(rows) <= 2 * most else np.concatenate([rows[:most], rows[-most:]])

    # --- time passes --------------------------------------------------------------------------------------------------

    def advance(self, watermark: Timestamp, state: StateView) -> list[Finding]:
        """Close the windows that *watermark* has passed, each as of its own time, in order."""
        run = _Run(self, state)
        if watermark <= run.ledger.watermark:
            return []
        self._close(run, watermark)
        if run.ledger.swept is None or watermark - run.ledger.swept >= _SWEEP:
            run.sweep(watermark)
        return run.findings

    def _close(self, run: _Run, watermark: Timestamp) -> None:
        while (due := run.first_due(watermark)) is not None:
            run.ledger.watermark = due - 1
            for place, keys in run.take_due(due):
                run.close_windows(place, due, keys)
                run.fold_all()
        run.ledger.watermark = watermark
        run.flush()

    def plan(self) -> list[dict[str, Any]]:
        return [
            {
                "id": plan.about.id,
                "title": plan.about.title,
                "type": plan.about.type,
                "rules": list(plan.about.rules),
                "group_by": list(plan.about.group_by),
                "timespan": length(plan.span),
                "condition": plan.about.wanted,
                "windows": "sliding" if plan.sliding else "tumbling",
                "alerts": plan.output,
            }
            for plan in self._plans
        ]


class _Run:
    """One call: the groups that it has touched, what is still to fold, and what was found.

    *attempts*, where they are wanted, is what was last seen of each window, by correlation, group and number.
    """

    def __init__(
        self,
        owner: Correlator,
        state: StateView,
        events: Batch | None = None,
        matched: Iterable[int] = (),
        attempts: dict[tuple[str, str, int], Attempt] | None = None,
    ) -> None:
        self.owner, self.state, self.events, self._matched, self.attempts = owner, state, events, matched, attempts
        self.plans = owner._plans
        self.ledger = _Books.load(state)
        self.findings: list[Finding] = []
        self._views: dict[str, _Folded] = {}
        self._met: dict[Any, _Rows] = {}
        self._waiting: list[list[_Arrival]] = [[] for _ in self.plans]
        self._records: dict[str, _Record] = {}
        self._kept_minutes = frozenset(state.get(_DUE) or ())
        self._minutes: set[int] = set(self._kept_minutes)
        """In which something is due."""
        self._due: dict[int, dict[int, dict[str, int]]] = {}
        """By minute, time and correlation: the last part of those that wait; of minutes that were looked at."""
        self._changed: set[int] = set()
        self._closing: dict[tuple[int, str], list[str]] = defaultdict(list)

    def view(self, name: str) -> _Folded:
        assert self.events is not None
        if name not in self._views:
            self._views[name] = _Folded(self.events, name)
        return self._views[name]

    def unseen(self, of: Any, rows: _Rows) -> _Rows:
        """Return which of *rows* the tally *of* has not met in this batch, by another rule."""
        met = self._met.get(of)
        fresh: _Rows = rows if met is None else rows[~np.isin(rows, met)]
        self._met[of] = fresh if met is None else np.concatenate([met, fresh])
        return fresh

    def arrive(self, place: int, arrivals: Iterable[_Arrival]) -> None:
        self._waiting[place].extend(arrivals)

    def fold_all(self) -> None:
        """Fold what has arrived, inner correlations first."""
        for place, plan in enumerate(self.plans):
            arrivals, self._waiting[place] = self._waiting[place], []
            by_group: dict[_Group, list[_Arrival]] = defaultdict(list)
            for one in arrivals:
                by_group[one.group].append(one)
            for group, found in by_group.items():
                self._fold(plan, group, found)

    def _fold(self, plan: _Plan, group: _Group, arrivals: list[_Arrival]) -> None:
        key = plan.key_of(group)
        record = self._record(key)
        if record.new and not self.ledger.admits(key):
            self.state.count("capped")
        elif plan.sliding:
            self._slide(plan, group, key, record, arrivals)
        else:
            for one in arrivals:
                self._tally(plan, key, record, one)
            for number in {one.window for one in arrivals}:
                self._cap(record.add(number))

    def _record(self, key: str) -> _Record:
        if key not in self._records:
            self._records[key] = _Record(self.state, key)
        return self._records[key]

    # --- sliding ---

    def _slide(self, plan: _Plan, group: _Group, key: str, record: _Record, arrivals: list[_Arrival]) -> None:
        by_window: dict[int, list[_Arrival]] = defaultdict(list)
        for one in arrivals:
            by_window[one.window].append(one)
        for number, found in by_window.items():
            window = record.add(number)
            self.ledger.note(plan.start(number))
            before = len(window.events)
            events = {event.identity: event for event in window.events}
            for one in found:
                for event in one.events:
                    events.setdefault(event.identity, event)
            window.events = _in_order(events)
            window.number += len(events) - before + sum(one.number - len(one.events) for one in found)
            self._cut(window, "events_capped", sum(one.cut for one in found))
        for number in sorted({*by_window, *(number + 1 for number in by_window)}):
            if (there := record.get(number)) is not None:
                self._judge(plan, group, key, record, number, there)
                if number in by_window:
                    self._cut(there, "events_capped", plan.thin(there))
        for number in record.numbers:
            if plan.is_over(number, self.ledger.watermark):
                record.drop(number)

    def _judge(self, plan: _Plan, group: _Group, key: str, record: _Record, number: int, window: _Window) -> None:
        before = self._events(record, number - 1)
        triggers = plan.triggers(before, window.events)
        if self.attempts is not None:
            self.attempts[plan.about.id, key, number] = plan.nearest(group, number, before, window)
        if triggers and not window.fired:
            record.add(number).fired = True
            if plan.output:
                self.findings.append(self._slid(plan, group, record, number, window, triggers[0]))
                self._wait(plan, key, plan.start(number + 1) + SETTLE)
        if plan.waited and (fresh := [event for event in triggers if not event.told]):
            told = {event.identity for event in fresh}
            for event in fresh:
                self._hand_on(plan, group, event)
            record.add(number).events = [e._replace(told=True) if e.identity in told else e for e in window.events]

    def _events(self, record: _Record, number: int) -> Sequence[_Event]:
        window = record.get(number)
        return window.events if window else ()

    def _cut(self, window: _Window, name: str, number: int) -> None:
        """Note that a cap took *number* events of the window."""
        if number:
            window.cut += number
            self.state.count(name, number)

    def _hand_on(self, plan: _Plan, group: _Group, event: _Event) -> None:
        """Give a trigger to the correlations that take it."""
        values = dict(zip(plan.about.group_by, group, strict=True))
        for place, number in self.owner._takers[plan.about.id]:
            taker = self.plans[place]
            window = event.time // taker.span
            if taker.is_over(window, self.ledger.watermark):
                self.state.count("late")
                continue
            value = taker.value(number, [values[name] for name in taker.about.values])
            if not taker.takes(value):
                self.state.count("not_a_number")
                continue
            outer = tuple(values[name] for name in taker.about.fields[number])
            taken = event._replace(value=value, told=False)
            self._waiting[place].append(_Arrival(outer, window, [taken], 1, value, marks=[_mark(taken)]))

    # --- tumbling ---

    def _tally(self, plan: _Plan, key: str, record: _Record, one: _Arrival) -> None:
        window = record.get(one.window)
        if window is None:
            self.ledger.note(plan.start(one.window))
            self._wait(plan, key, plan.start(one.window + 1) + SETTLE)
            window = record.add(one.window)
        number = one.number
        if window.met is not None:
            fresh = {mark for mark in one.marks if mark not in window.met}
            window.met |= fresh
            number = len(fresh)
        window.number += number
        events = {event.identity: event for event in (*one.events, *window.events)}
        window.events = _in_order(events)[:_FIRST]
        if one.value is not None and number:
            value = str(one.value)
            if plan.about.type in ("value_sum", "value_avg"):
                window.total += Fraction(_number(value)) * number
            else:
                window.values[value] = window.values.get(value, 0) + number

    def _cap(self, window: _Window) -> None:
        """Keep no more of a tally than its caps allow."""
        if window.met is not None and len(window.met) > MOST_MET:
            self.state.count("unmarked", len(window.met))
            window.met = None
        if len(window.values) > MOST_VALUES:
            dropped = sorted(window.values, key=digest)[MOST_VALUES:]  # who stays does not depend on order
            self._cut(window, "values_capped", sum(window.values.pop(value) for value in dropped))

    # --- closing ---

    def _wait(self, plan: _Plan, key: str, at: Timestamp) -> None:
        minute = at // _MINUTE
        parts = self._due_in(minute).setdefault(at, {})
        if plan.key not in parts:
            parts[plan.key] = 0
            self._minutes.add(minute)
            self._changed.add(minute)
        self._closing[at, plan.key].append(key)

    def _due_in(self, minute: int) -> dict[int, dict[str, int]]:
        if minute not in self._due:
            stored = self.state.get(f"{_DUE}/{minute}") or {}
            self._due[minute] = {int(at): parts for at, parts in stored.items()}
        return self._due[minute]

    def first_due(self, watermark: Timestamp) -> Timestamp | None:
        if not self._minutes or (minute := min(self._minutes)) * _MINUTE > watermark:
            return None
        first = min(self._due_in(minute))
        return first if first <= watermark else None

    def take_due(self, at: Timestamp) -> list[tuple[int, list[str]]]:
        """Take out which correlations have windows to close at *at*, the first time that is due, and of which groups.

        Inner correlations come first.
        """
        minute = at // _MINUTE
        known = self.owner._by_key
        found = []
        for plan_key, last in self._due_in(minute).pop(at).items():
            groups = set(self._closing.pop((at, plan_key), ()))
            for part in range(last + 1):
                name = _waiting(at, plan_key, part)
                groups.update(self.state.get(name) or ())
                self.state.delete(name)
            if plan_key in known:
                found.append((known[plan_key], sorted(groups)))
        self._changed.add(minute)
        if not self._due[minute]:
            self._minutes.remove(minute)
        return sorted(found)

    def close_windows(self, place: int, at: Timestamp, keys: Iterable[str]) -> None:
        plan = self.plans[place]
        number = (at - SETTLE) // plan.span - 1
        for key in keys:
            record = self._record(key)
            window = record.get(number)
            if window is None:
                continue
            group = tuple(map(str, decode_key(key)[1:]))
            if plan.sliding:
                triggers = plan.triggers(self._events(record, number - 1), window.events)
                if triggers:
                    self.findings.append(self._slid(plan, group, record, number, window, triggers[0], settled=True))
                continue
            record.drop(number)
            if not self.ledger.knows(key, plan.start(number)):
                self.state.count("capped")
                continue
            if self.attempts is not None:
                self.attempts[plan.about.id, key, number] = plan.tallied(group, number, window)
            if plan.decide(window):
                self._tumbled(plan, group, number, window)

    def _tumbled(self, plan: _Plan, group: _Group, number: int, window: _Window) -> None:
        end = plan.start(number + 1) - 1
        if plan.output:
            self.findings.append(self._finding(plan, group, number, window, window.events, end))
        if plan.waited and window.events:
            self._hand_on(plan, group, window.events[0]._replace(time=end))

    def flush(self) -> None:
        """Write back what was touched."""
        for record in self._records.values():
            record.flush(self.ledger)
        for (at, plan_key), keys in self._closing.items():
            parts = self._due_in(at // _MINUTE)[at]
            waiting = self.state.get(_waiting(at, plan_key, parts[plan_key])) or []
            if len(waiting) >= _PART:
                parts[plan_key] += 1
                self._changed.add(at // _MINUTE)
                waiting = []
            self.state.put(_waiting(at, plan_key, parts[plan_key]), waiting + keys)
        for minute in self._changed:
            if minute in self._minutes:
                self.state.put(f"{_DUE}/{minute}", {str(at): parts for at, parts in self._due[minute].items()})
            else:
                self.state.delete(f"{_DUE}/{minute}")
        if self._minutes != self._kept_minutes:
            self.state.put(_DUE, sorted(self._minutes))
        self.ledger.shrink(self.state, self.owner._most_groups)
        self.ledger.save(self.state)

    def sweep(self, watermark: Timestamp) -> None:
        """Drop what no event can reach any more, and what belongs to correlations that are gone; all is flushed."""
        plans = {plan.key: plan for plan in self.plans}
        for key, data in self.state.items():
            number, bracket, group = key.partition("[")
            if not bracket:
                if not self._is_awaited(key):
                    self.state.delete(key)
                continue
            plan = plans.get(str(decode_key(bracket + group)[0]))
            if plan is None or plan.is_over(int(number[:-1]) if number else data[0], watermark):
                self.ledger.drop(self.state, key)
        self.ledger.swept = watermark
        reached = watermark - LATENESS - max(plan.span for plan in self.plans)
        self.ledger.recover(self.owner._most_groups, reached, reached)
        self.ledger.save(self.state)

    def _is_awaited(self, key: str) -> bool:
        """Say whether what lies under *key* is read when something is due."""
        head, _, rest = key.partition("/")
        if head in ("", _DUE):
            return not rest or int(rest) in self._minutes
        at = int(head[1:] or 0)
        return at // _MINUTE in self._minutes and at in self._due_in(at // _MINUTE)

    # --- what is said ---

    def _slid(
        self, plan: _Plan, group: _Group, record: _Record, number: int, window: _Window, trigger: _Event,
        *, settled: bool = False,
    ) -> Finding:  # fmt: skip
        """Say that the condition held at *trigger*; when the window is over, all of it is cited."""
        until = plan.start(number + 1) - 1 if settled else trigger.time
        events = [
            event
            for event in (*self._events(record, number - 1), *window.events)
            if trigger.time - plan.span < event.time <= until
        ]
        cited = [trigger, *(event for event in events if event.identity != trigger.identity)]
        return self._finding(plan, group, number, window, cited, trigger.time, settled=settled)

    def _finding(
        self, plan: _Plan, group: _Group, number: int, window: _Window, events: Sequence[_Event], time: Timestamp,
        *, settled: bool = False,
    ) -> Finding:  # fmt: skip
        about = plan.about
        entity = tuple(zip(about.group_by, group, strict=True))
        references = tuple(dict.fromkeys(event.reference for event in events))
        observed = self._observed(plan, window, events)
        expected = f"{about.wanted} within {length(plan.span)}"
        who = ", ".join(f"{name} {value}" for name, value in entity)
        fields: dict[str, Any] = {"vedette.evidence.total": max(window.number, len(references))}
        if window.cut or self.ledger.capped(plan.start(number)):
            fields["vedette.capped"] = True
        if window.cut:
            fields["vedette.evidence.cut"] = window.cut
        return Finding(
            detector=plan.description,
            time=time,
            evidence=references[:_CITED],
            explanation=Explanation(
                f"{about.title}{': ' if who else ''}{who}: {observed} ({expected}).",
                (
                    *(Factor(name, value, "group") for name, value in entity),
                    Factor(f"vedette.correlation.{about.type}", observed, expected),
                ),
            ),
            entity=entity,
            window=(plan.start(number), plan.start(number + 1)),
            row=self._row(references[0]) if references else None,
            fields=fields,
            revision="settled" if settled else "fired",
        )

    def _observed(self, plan: _Plan, window: _Window, events: Sequence[_Event]) -> str:
        if plan.by_rule:
            present = {event.value for event in events} if plan.sliding else window.values
            numbers = sorted(int(number) for number in present if number is not None)
            return " and ".join(self.owner._titles[plan.about.rules[number]] for number in numbers)
        if plan.about.type == "value_count":
            values = sorted({str(event.value) for event in events} if plan.sliding else window.values)
            more = f" and {len(values) - 5} more" if len(values) > 5 else ""
            return f"{', '.join(values[:5])}{more}"
        if plan.sliding:
            return f"{len({event.identity for event in events})} events"
        return f"{plan.measure(window):g}"

    def _row(self, reference: Reference) -> int | None:
        """Return the row of an event that is at hand."""
        return None if self.events is None else self._rows.get(reference)

    @cached_property
    def _rows(self) -> dict[Reference, int]:
        events = self.events
        assert events is not None
        return {events.reference(row): row for row in self._matched}


def _event(events: Batch | None, row: int, value: str | int | None) -> _Event:
    assert events is not None
    time, source, partition, key, path, format, lineage = evidence_of(events, row)
    return _Event(time, value, (source, partition, path, format, lineage), key)


def _in_order(events: Mapping[_Identity, _Event]) -> list[_Event]:
    return [event for _, event in sorted(events.items(), key=lambda item: (item[1].time, item[0]))]


def _waiting(at: Timestamp, plan_key: str, part: int) -> str:
    return f"!{at}/{plan_key}/{part}"


def _rule(event: _Event) -> int:
    assert isinstance(event.value, int)
    return event.value


_MARK = 16
"""Characters of a mark."""


def _mark(event: _Event) -> str:
    """Return what tells an event from others in a tally."""
    return digest(*event.identity)[:_MARK]


def _marks(events: Batch | None, rows: _Rows, first: Sequence[_Event]) -> Iterator[str]:
    """Yield the marks of the events at *rows*, which all have one value; of the *first* there are events already."""
    yield from map(_mark, first)
    for row in rows[len(first) :].tolist():
        yield _mark(_event(events, row, first[0].value))


class _Folded(FieldView):
    """A field whose values are compared without regard to case, long ones by the digest of what is compared."""

    def __init__(self, events: Batch, name: str) -> None:
        super().__init__(events, name)
        self._texts: dict[int, tuple[str, ...]] = {}

    def texts(self, code: int) -> tuple[str, ...]:
        """Return what the value of *code* puts into groups and counts."""
        known = self._texts.get(code)
        if known is None:
            value = self._dictionary.values[code] if code < self._columns else self._constants[code - self._columns]
            found = () if value is None else scalars(value)
            known = self._texts[code] = tuple(dict.fromkeys(map(_canonical, found)))
        return known


def _canonical(value: Scalar) -> str:
    text = text_of(value).lower()
    sound = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_TEXT and sound == text else f"{sound[:200]}…{digest(text)}"


_END = 2**62
"""A time after all others."""


_GREATEST = 1e200
"""What is greater measures nothing; no sum of such numbers is more than a float can hold."""
_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d{1,300})?(e[+-]?\d{1,3})?", re.ASCII)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) <= _GREATEST


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdigit() else float(text)
