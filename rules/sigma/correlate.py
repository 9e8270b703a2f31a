"""Correlations over the matches of rules, in event time and in bounded state.

The alert of a correlation is about a group (the values of its group-by fields) and a window ``floor(t / timespan)``, so
its id is the same for every cut into batches and every order of events within the allowed lateness:

- A *sliding* correlation (`Correlation.monotone`) has an alert for each window that holds a trigger: an event at ``t``
  for which the condition holds over ``(t - timespan, t]``. Events at one instant count as in any order. Of each window
  only what can decide is kept: as many of the earliest and of the latest events as the condition asks for, the first
  and last of each value. It is told at once, and again (``settled``) when its window is over.
- All others *tumble*: a tally a window, decided when the watermark has passed the window's end by `SETTLE`.

A correlation of correlations takes triggers, each once; what tumbles is a trigger at its window's last instant. Of what
others wait for, and of three rules or more in order, every event is kept up to `MOST_EVENTS` at each end of a window; a
window that lost some says ``vedette.capped``.

State, by key:

- ``[correlation, group values...]``: the group's windows and where their events lie
- ``!``: when which correlations have something to close; ``!<time>/<correlation>/<shard>``: for which groups
- empty: the operator's books (`Ledger`), their buckets being the starts of windows
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from heapq import heappop, heappush
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
    ordered,
    reference_of,
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
from rules.sigma.correlation import MOST_VALUES, Correlation, holds
from rules.sigma.engine import Binder
from rules.sigma.parse import Rule

LATENESS = 24 * 3_600 * SECOND
"""How much older than the newest an event may be that a sliding correlation still takes."""
SETTLE = 300 * SECOND
"""The same for a tumbling one; and how long after its end a window is told to be over."""
MOST_EVENTS = 1_000
"""Events that a window keeps at each end where all of them matter."""
_SWEEP = LATENESS // 4
_CITED = 100
_FIRST = 10
"""Events that a tally cites."""
_SHARDS = 64
_MOST_HOMES = 64
"""Places of events that a group's record may name before it is looked which of them are still of use."""
_MOST_COMBINATIONS = 64

_Rows: TypeAlias = NDArray[np.intp]
_Home: TypeAlias = tuple[str, str, str, str, str]
"""Source, partition, path, format and lineage of an event."""
_Group: TypeAlias = tuple[str, ...]


class _Event(NamedTuple):
    """One event of a group; *value* is what is counted of it: a value, a rule's number, or nothing. *told*: an outer
    correlation has had it as a trigger."""

    time: Timestamp
    value: str | int | None
    home: _Home
    key: int | str
    told: bool = False

    @property
    def identity(self) -> tuple[str, str, str, str]:
        source, partition, _, _, lineage = self.home
        return source, lineage or partition, str(self.key), str(self.value)

    @property
    def reference(self) -> Reference:
        source, partition, path, format, lineage = self.home
        return reference_of([self.time, source, partition, self.key, path, format, lineage])


class _Arrival(NamedTuple):
    """Events new to a window of a group. *number* is how many there were, *events* those that may decide."""

    group: _Group
    window: int
    events: list[_Event]
    number: int
    cut: bool = False
    values: Mapping[str, int] = {}
    """How many of them had which number as their value, for what is measured."""


@dataclass
class _Window:
    """What is kept of one group's events in one window; *fired*: a trigger was met already."""

    number: int = 0
    events: list[_Event] = field(default_factory=list)
    cut: bool = False
    fired: bool = False
    values: dict[str, int] = field(default_factory=dict)
    total: Fraction = Fraction(0)


class _Record:
    """A group's windows, as state keeps them: those that nobody asks for are written back as they were read."""

    def __init__(self, data: Any = None) -> None:
        stored = data or {"homes": [], "windows": {}}
        self._homes: list[_Home] = [tuple(home) for home in stored["homes"]]
        self._stored: dict[int, Any] = {int(number): window for number, window in stored["windows"].items()}
        self._open: dict[int, _Window] = {}

    def numbers(self) -> set[int]:
        return self._stored.keys() | self._open.keys()

    def get(self, number: int) -> _Window | None:
        if number in self._stored:
            count, cut, fired, total, values, events = self._stored.pop(number)
            found = [_Event(time, value, self._homes[home], key, bool(told)) for time, value, home, key, told in events]
            self._open[number] = _Window(count, found, bool(cut), bool(fired), dict(values), Fraction(total))
        return self._open.get(number)

    def add(self, number: int) -> _Window:
        """Return the window, a new one if there is none."""
        return self.get(number) or self._open.setdefault(number, _Window())

    def drop(self, number: int) -> None:
        self._stored.pop(number, None)
        self._open.pop(number, None)

    def dump(self) -> dict[str, Any]:
        if len(self._homes) > _MOST_HOMES:  # some may be of events that are gone
            for number in list(self._stored):
                self.get(number)
            self._homes = []
        homes = {home: place for place, home in enumerate(self._homes)}
        windows = {str(number): window for number, window in self._stored.items()}
        for number, one in self._open.items():
            events = [
                [time, value, homes.setdefault(home, len(homes)), key, int(told)]
                for time, value, home, key, told in one.events
            ]
            windows[str(number)] = [one.number, int(one.cut), int(one.fired), str(one.total), one.values, events]
        return {"homes": list(homes), "windows": windows}


class _Plan:
    """One correlation, ready to run: *waited* says that others take its triggers, *output* that it alerts."""

    def __init__(self, about: Correlation, description: Description, *, waited: bool, output: bool) -> None:
        self.about, self.description, self.waited, self.output = about, description, waited, output
        self.sliding = about.monotone
        self.span = about.timespan
        self.lateness = LATENESS if self.sliding else SETTLE
        self.by_rule = about.type in ("temporal", "temporal_ordered")
        self.keeps_all = waited or (about.type == "temporal_ordered" and len(about.rules) > 2)
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
        self.key = digest(about.id, repr(meaning), self.span)[:12]

    def key_of(self, group: _Group) -> str:
        return encode_key((self.key, *group))

    def start(self, window: int) -> Timestamp:
        return window * self.span

    def value(self, rule: int, counted: Sequence[str]) -> str | int | None:
        """Return what is counted of an event of the rule of that number, whose *counted* fields hold these texts."""
        if self.by_rule or not counted:
            return rule if self.by_rule else None
        return counted[0] if len(counted) == 1 else encode_key(counted)

    def takes(self, value: str | int | None) -> bool:
        """Say whether *value* can be counted: what is measured is a number."""
        return not self.measures or _is_number(str(value))

    def arrival(
        self, group: _Group, window: int, events: list[_Event], number: int, value: str | int | None, cut: bool = False
    ) -> _Arrival:
        tallied = {} if self.sliding or value is None else {str(value): number}
        return _Arrival(group, window, events, number, cut, tallied)

    # --- sliding ---

    def triggers(self, before: Sequence[_Event], now: Sequence[_Event]) -> list[_Event]:
        """Return those of *now* at whose time the condition holds; both are in order, *before* is the window before."""
        events = [*before, *now]
        true_at = self._in_order(events) if self.about.type == "temporal_ordered" else self._counted(events)
        return [event for event in now if event.time in true_at]

    def _counted(self, events: Sequence[_Event]) -> set[Timestamp]:
        found: set[Timestamp] = set()
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
            if self._is_true(right - left, counts):
                found.add(time)
        return found

    def _is_true(self, number: int, counts: Mapping[Any, int]) -> bool:
        if self.about.expression:
            return holds(self.about.expression, counts.keys())
        return (number if self.about.type == "event_count" else len(counts)) >= self.least

    def _in_order(self, events: Sequence[_Event]) -> set[Timestamp]:
        """Return the times at which a chain of all rules has ended that began less than the time span before."""
        found: set[Timestamp] = set()
        begun = [-math.inf] * len(self.about.rules)
        """The latest start of a chain of the rules up to each."""
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
            if begun[-1] > time - self.span:
                found.add(time)
        return found

    def thin(self, window: _Window) -> bool:
        """Drop events that can decide nothing any more; say whether the cap took some that could."""
        kind = self.about.type
        if kind == "event_count":
            window.events = _ends(window.events, self.least)
            return False
        if not self.keeps_all:
            window.events = self._ends_of_values(window.events)
        if len(window.events) <= 2 * MOST_EVENTS:
            return False
        events = _ends_of_runs(window.events) if kind == "temporal_ordered" else window.events
        window.events = _ends(events, MOST_EVENTS)
        return True

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
        for place, plan in enumerate(self._plans):
            for number, rule, rows in self._together(plan, matches):
                self._read(run, place, number, rule, rows)
        run.fold_all()
        run.flush()
        return run.findings

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
        self, run: _Run, plan: _Plan, number: int, fields: Sequence[FieldView], window: int, rows: _Rows
    ) -> Iterator[_Arrival]:
        """Yield what one group of rows comes to: several groups where a field is a list."""
        parts = [one.parts(int(one.codes[rows[0]])) for one in fields]
        split = len(plan.about.group_by)
        found = list(islice(product(*parts), _MOST_COMBINATIONS))
        if (over := math.prod(map(len, parts)) - len(found)) > 0:
            run.state.count("combinations_cut", over)
        for texts in dict.fromkeys(tuple(map(_canonical, combination)) for combination in found):
            group, value = texts[:split], plan.value(number, texts[split:])
            if not plan.takes(value):
                run.state.count("not_a_number", len(rows))
                continue
            fresh = run.unseen((plan.key, group, window, value), rows) if plan.overlaps else rows
            kept, cut = self._kept(plan, fresh)
            made = [_event(run.events, row, value) for row in kept.tolist()]
            yield plan.arrival(group, window, made, len(fresh), value, cut)

    def _kept(self, plan: _Plan, rows: _Rows) -> tuple[_Rows, bool]:
        """Return those of a group's rows, in order of time, that its window would keep; and whether a cap took some."""
        if not plan.sliding:
            return rows[:_FIRST], False
        if plan.keeps_all:
            most, cut = MOST_EVENTS, len(rows) > 2 * MOST_EVENTS
        else:
            most, cut = (plan.least if plan.about.type == "event_count" else 1), False
        return (rows, False) if len(rows) <= 2 * most else (np.concatenate([rows[:most], rows[-most:]]), cut)

    # --- time passes --------------------------------------------------------------------------------------------------

    def advance(self, watermark: Timestamp, state: StateView) -> list[Finding]:
        """Close the windows that *watermark* has passed, each as of its own time, in order."""
        run = _Run(self, state)
        if watermark <= run.ledger.watermark:
            return []
        while (due := run.first_due(watermark)) is not None:
            run.ledger.watermark = due - 1
            for place in run.take_due(due):
                run.close_windows(place, due)
                run.fold_all()
        run.ledger.watermark = watermark
        run.flush()
        if run.ledger.swept is None or watermark - run.ledger.swept >= _SWEEP:
            run.sweep(watermark)
        return run.findings

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
    """One call: the groups that it has touched, what is still to fold, and what was found."""

    def __init__(
        self, owner: Correlator, state: StateView, events: Batch | None = None, matched: Iterable[int] = ()
    ) -> None:
        self.owner, self.state, self.events, self._matched = owner, state, events, matched
        self.plans = owner._plans
        self.ledger = Ledger.load(state)
        self.findings: list[Finding] = []
        self._views: dict[str, FieldView] = {}
        self._met: dict[Any, _Rows] = {}
        self._waiting: list[list[_Arrival]] = [[] for _ in self.plans]
        self._records: dict[str, _Record] = {}
        self._new: set[str] = set()
        self._due: dict[int, list[str]] = {int(at): keys for at, keys in (state.get("!") or {}).items()}
        self._times = sorted(self._due)
        """The times of what is due, as a heap."""
        self._due_changed = False
        self._closing: dict[str, list[str]] = defaultdict(list)

    def view(self, name: str) -> FieldView:
        assert self.events is not None
        if name not in self._views:
            self._views[name] = FieldView(self.events, name)
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
        if record is None:
            if not self.ledger.admits(key):
                self.state.count("capped")
                return
            record = self._records[key] = _Record()
            self._new.add(key)
        if plan.sliding:
            self._slide(plan, group, key, record, arrivals)
        else:
            for one in arrivals:
                self._tally(plan, key, record, one)
            for number in {one.window for one in arrivals}:
                self._cap_values(record.add(number))

    def _record(self, key: str) -> _Record | None:
        if key not in self._records:
            data = self.state.get(key)
            if data is None:
                return None
            self._records[key] = _Record(data)
        return self._records[key]

    # --- sliding ---

    def _slide(self, plan: _Plan, group: _Group, key: str, record: _Record, arrivals: list[_Arrival]) -> None:
        touched: set[int] = set()
        by_window: dict[int, list[_Arrival]] = defaultdict(list)
        for one in arrivals:
            if plan.start(one.window + 1) <= self.ledger.watermark - LATENESS - plan.span:
                self.state.count("late", one.number)
            else:
                by_window[one.window].append(one)
        for number, found in by_window.items():
            window = record.add(number)
            self.ledger.note(plan.start(number))
            before = len(window.events)
            events = {event.identity: event for event in window.events}
            for one in found:
                for event in one.events:
                    events.setdefault(event.identity, event)
            window.events = sorted(events.values(), key=lambda event: (event.time, event.identity))
            window.number += len(events) - before + sum(one.number - len(one.events) for one in found)
            window.cut |= any(one.cut for one in found)
            touched |= {number, number + 1}
        for number in sorted(touched & record.numbers()):
            self._judge(plan, group, key, record, number)
        horizon = self.ledger.watermark - LATENESS - plan.span
        for number in record.numbers():
            if plan.start(number + 1) <= horizon:
                record.drop(number)

    def _judge(self, plan: _Plan, group: _Group, key: str, record: _Record, number: int) -> None:
        window, before = record.add(number), record.get(number - 1)
        triggers = plan.triggers(before.events if before else (), window.events)
        if triggers:
            if plan.output and not window.fired:
                self.findings.append(self._slid(plan, group, record, number, triggers[0]))
                self._wait(plan, key, plan.start(number + 1) + SETTLE)
            window.fired = True
            if plan.waited:
                told = {event.identity for event in triggers}
                for event in triggers:
                    if not event.told:
                        self._hand_on(plan, group, event)
                window.events = [e._replace(told=True) if e.identity in told else e for e in window.events]
        if plan.thin(window):
            window.cut = True
            self.state.count("events_capped")

    def _hand_on(self, plan: _Plan, group: _Group, event: _Event) -> None:
        """Give a trigger to the correlations that take it."""
        values = dict(zip(plan.about.group_by, group, strict=True))
        for place, number in self.owner._takers[plan.about.id]:
            taker = self.plans[place]
            if not taker.sliding and taker.start(event.time // taker.span + 1) + SETTLE <= self.ledger.watermark:
                self.state.count("late")
                continue
            value = taker.value(number, [values[name] for name in taker.about.values])
            if not taker.takes(value):
                self.state.count("not_a_number")
                continue
            outer = tuple(values[name] for name in taker.about.fields[number])
            taken = event._replace(value=value, told=False)
            self._waiting[place].append(taker.arrival(outer, event.time // taker.span, [taken], 1, value))

    # --- tumbling ---

    def _tally(self, plan: _Plan, key: str, record: _Record, one: _Arrival) -> None:
        window = record.get(one.window)
        if window is None:
            window = record.add(one.window)
            self.ledger.note(plan.start(one.window))
            self._wait(plan, key, plan.start(one.window + 1) + SETTLE)
        window.number += one.number
        window.events = sorted([*window.events, *one.events], key=lambda event: (event.time, event.identity))[:_FIRST]
        for value, number in one.values.items():
            if plan.about.type in ("value_sum", "value_avg"):
                window.total += Fraction(_number(value)) * number
                continue
            window.values[value] = window.values.get(value, 0) + number

    def _cap_values(self, window: _Window) -> None:
        if len(window.values) > MOST_VALUES:
            for value in sorted(window.values, key=digest)[MOST_VALUES:]:  # who stays does not depend on order
                del window.values[value]
            window.cut = True
            self.state.count("values_capped")

    # --- closing ---

    def _wait(self, plan: _Plan, key: str, at: Timestamp) -> None:
        if at not in self._due:
            heappush(self._times, at)
        keys = self._due.setdefault(at, [])
        if plan.key not in keys:
            keys.append(plan.key)
            self._due_changed = True
        self._closing[f"!{at}/{plan.key}/{zlib.crc32(key.encode()) % _SHARDS}"].append(key)

    def first_due(self, watermark: Timestamp) -> Timestamp | None:
        return self._times[0] if self._times and self._times[0] <= watermark else None

    def take_due(self, at: Timestamp) -> list[int]:
        """Return which correlations have windows to close at *at*, the first time that is due; inner ones first."""
        self._due_changed = True
        heappop(self._times)
        known = self.owner._by_key
        keys = self._due.pop(at)
        for key in keys:
            if key not in known:
                self._groups_due(at, key)
        return sorted(known[key] for key in keys if key in known)

    def _groups_due(self, at: Timestamp, plan_key: str) -> list[str]:
        found: list[str] = []
        for shard in range(_SHARDS):
            name = f"!{at}/{plan_key}/{shard}"
            found += self._closing.pop(name, [])
            waiting = self.state.get(name)
            if waiting:
                found += waiting
                self.state.delete(name)
        return sorted(set(found))

    def close_windows(self, place: int, at: Timestamp) -> None:
        plan = self.plans[place]
        number = (at - SETTLE) // plan.span - 1
        for key in self._groups_due(at, plan.key):
            record = self._record(key)
            window = record.get(number) if record else None
            if record is None or window is None:
                continue
            group = tuple(map(str, decode_key(key)[1:]))
            if plan.sliding:
                before = record.get(number - 1)
                triggers = plan.triggers(before.events if before else (), window.events)
                if triggers:
                    self.findings.append(self._slid(plan, group, record, number, triggers[0], settled=True))
                continue
            record.drop(number)
            if not self.ledger.knows(key, plan.start(number)):
                self.state.count("capped")
            elif plan.decide(window):
                self._tumbled(plan, group, number, window)

    def _tumbled(self, plan: _Plan, group: _Group, number: int, window: _Window) -> None:
        end = plan.start(number + 1) - 1
        if plan.output:
            self.findings.append(self._finding(plan, group, number, window, window.events, end))
        if plan.waited and window.events:
            self._hand_on(plan, group, window.events[0]._replace(time=end))

    def flush(self) -> None:
        """Write back what was touched."""
        for key, record in self._records.items():
            if record.numbers():
                self.ledger.keep(self.state, key, record.dump(), new=key in self._new)
            elif key not in self._new:
                self.ledger.drop(self.state, key)
        for name, keys in self._closing.items():
            waiting = dict.fromkeys([*(self.state.get(name) or ()), *keys])
            self.state.put(name, list(waiting))
        if self._due_changed:
            self.state.put("!", {str(at): keys for at, keys in self._due.items()})
        self.ledger.shrink(self.state, self.owner._most_groups)
        self.ledger.save(self.state)

    def sweep(self, watermark: Timestamp) -> None:
        """Drop what no event can reach any more, and what belongs to correlations that are gone; all is flushed."""
        plans = {plan.key: plan for plan in self.plans}
        for key, data in self.state.items():
            if not key.startswith("["):
                continue
            plan = plans.get(str(decode_key(key)[0]))
            if plan is None:
                self.ledger.drop(self.state, key)
            elif plan.sliding:
                horizon = watermark - LATENESS - plan.span
                over = [number for number in data["windows"] if plan.start(int(number) + 1) <= horizon]
                for number in over:
                    del data["windows"][number]
                if not data["windows"]:
                    self.ledger.drop(self.state, key)
                elif over:
                    self.state.put(key, data)
        self.ledger.swept = watermark
        reached = watermark - LATENESS - max(plan.span for plan in self.plans)
        self.ledger.recover(self.owner._most_groups, reached, reached)
        self.ledger.save(self.state)

    # --- what is said ---

    def _slid(
        self, plan: _Plan, group: _Group, record: _Record, number: int, trigger: _Event, *, settled: bool = False
    ) -> Finding:
        """Say that the condition held at *trigger*; when the window is over, all of it is cited."""
        window, before = record.add(number), record.get(number - 1)
        until = plan.start(number + 1) - 1 if settled else trigger.time
        events = [
            event
            for one in (before, window)
            for event in (one.events if one else ())
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


def _canonical(value: Scalar) -> str:
    return text_of(value).lower()


_GREATEST = 1e200
"""What is greater measures nothing; no sum of such numbers is more than a float can hold."""
_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d{1,300})?(e[+-]?\d{1,3})?", re.ASCII)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) <= _GREATEST


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdigit() else float(text)
