"""What becomes of one event in one rule, selection by selection; and of many in a correlation, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from agent.detect.windows import length
from agent.errors import VedetteError
from agent.model import Batch, Chunk, Kind, Records, Timestamp, Value
from agent.normalise import Normaliser
from agent.normalise.clock import to_datetime
from agent.state import State
from rules.detector import SigmaDetector
from rules.sigma import logsource
from rules.sigma.correlate import Attempt
from rules.sigma.correlation import Correlation
from rules.sigma.documents import Document, Files, parse_documents
from rules.sigma.engine import RAW, Binder, Engine, columns, raw_values
from rules.sigma.explain import Test, examine
from rules.sigma.parse import Collection, Expression, Rule, compile_files
from rules.sigma.setting import is_setting


@dataclass(frozen=True)
class Written:
    """A rule with what its condition is made of, as it is written."""

    rule: Rule
    logsource: Mapping[str, Any]
    condition: str
    selections: Mapping[str, Expression]


@dataclass(frozen=True)
class Verdict:
    """Whether a rule matched an event, and why: its log source (None: no mapping feeds it), whether its own condition
    holds, each selection, and each filter that is folded into it, by its place.
    """

    rule: Rule
    matched: bool
    condition: str
    holds: bool
    source: Test | None
    selections: Mapping[str, Test]
    filters: Mapping[str, Test]

    def why_not(self) -> str:
        """Return in a line what did not hold; empty for a match."""
        if self.matched:
            return ""
        if self.source is None:
            return f"no mapping feeds the log source {source_name(self.rule)}"
        if not self.source.holds:
            return f"not of the log source {source_name(self.rule)}: {_failed(self.source)}"
        if self.holds:
            out = [f"{place}: {_failed(one)}" for place, one in self.filters.items() if not one.holds]
            return f"left out by the filter at {'; '.join(out)}"
        false = [f"{name}: {_failed(test)}" for name, test in self.selections.items() if not test.holds]
        true = [name for name, test in self.selections.items() if test.holds]
        parts = [f"does not hold: {one}" for one in false] + ([f"holds: {', '.join(true)}"] if true else [])
        return f"condition '{self.condition}'; {'; '.join(parts)}"


def source_name(rule: Rule) -> str:
    """Return the rule's log source for people."""
    return " ".join(part for part in rule.logsource if part)


def unfolded(rule: Rule) -> tuple[Expression, dict[str, Expression]]:
    """Return a rule's condition without the filters that are folded into it, and theirs by their places."""
    condition, filters = rule.condition, {}
    for place in reversed(rule.filters):
        _, (condition, filters[place]) = condition
    return condition, filters


class Library:
    """The rules of a collection as they are written, with what lies beside them and changes them."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._settings: Files = []
        self._beside: Files = []
        for name, content in files:
            if any(word in content for word in (b"filter", b"placeholders", b"transformations")):
                documents = parse_documents(name, content, [])
                settings = [(name, _dumped(one.data)) for one in documents if is_setting(one)]
                self._settings += settings
                if settings or any("filter" in one.data for one in documents):
                    self._beside.append((name, content))

    def rules(self, *, path: str = "", id: str = "") -> Iterator[Written]:
        """Yield the rules that can run, only those of the file *path* or the one called *id* if these are given."""
        for name, content in self._files:
            if path in ("", name) and id.encode() in content:
                others = [one for one in self._beside if one[0] != name]
                rules = {rule.place: rule for rule in compile_files([*others, (name, content)]).rules}
                for document in parse_documents(name, content, []):
                    rule = rules.get(document.place())
                    if rule and id in ("", rule.id):
                        yield self._written(rule, document)

    def _written(self, rule: Rule, document: Document) -> Written:
        detection = document.data["detection"]
        said = detection["condition"]
        alone = {
            name: {**document.data, "detection": {**detection, "condition": name}}
            for name in detection
            if name not in ("condition", "timeframe")
        }
        found = {name: compile_files([*self._settings, (document.path, _dumped(one))]) for name, one in alone.items()}
        return Written(
            rule=rule,
            logsource=document.data["logsource"],
            condition=" | ".join(said) if isinstance(said, list) else str(said),
            selections={name: one.rules[0].condition for name, one in found.items() if one.rules},
        )


def _dumped(data: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode()


def judge(rule: Written, format: str, raw: bytes, as_of: Timestamp) -> Verdict:
    """Return what becomes of the record *raw* in *rule*; VedetteError if it cannot be read."""
    about = rule.rule
    source = logsource.condition(*about.logsource)
    conditions = [about.condition, *rule.selections.values()]
    batch = _batch(lambda kind: _wanted(kind, about.category, conditions, source), format, raw, as_of)
    kind = batch.kinds[batch.kind[0]]

    def lookup(name: str) -> Value | None:
        if name == RAW:
            return raw_values(batch.value(0, "event.original"))
        return kind.constant[name] if name in kind.constant else batch.value(0, name)

    binder = Binder(kind, about.category, tests=None)
    own, filters = unfolded(about)
    return Verdict(
        rule=about,
        matched=any(True for _ in Engine([about]).match(batch)),
        condition=rule.condition,
        holds=examine(own, binder.column, lookup).holds,
        source=examine(source, str, lookup) if source else None,
        selections={name: examine(one, binder.column, lookup) for name, one in rule.selections.items()},
        filters={place: examine(one, binder.column, lookup) for place, one in filters.items()},
    )


def _wanted(
    kind: Kind, category: str | None, conditions: Iterable[Expression], source: Expression | None
) -> frozenset[str]:
    """Return the columns of all conditions, also where the kind shows already that the rule cannot match."""
    binder = Binder(kind, category, tests=None)
    found = columns(binder.bind(source, str)) if source else set()
    found.update(*(columns(binder.bind(one)) for one in conditions))
    return frozenset("event.original" if name == RAW else name for name in found) - kind.constant.keys()


def _batch(wanted: Callable[[Kind], frozenset[str]], format: str, raw: bytes, as_of: Timestamp) -> Batch:
    chunk = Chunk("event", "event", format, range(1), [raw])
    normalised = Normaliser(wanted)(Records("event", (chunk,), {}, as_of), {})
    if normalised.dead:
        raise VedetteError(f"the event cannot be read as {format}: {normalised.dead[0].reason}")
    return normalised.batch


def _failed(test: Test) -> str:
    """Return the tests that kept *test* from holding."""
    return "; ".join(dict.fromkeys(map(sentence, _culprits(test))))


def _culprits(test: Test) -> Iterator[Test]:
    if not test.parts:
        yield test
    elif test.expected == "not":
        yield from [one for one in test.tests() if one.holds] or test.tests()
    else:
        for part in test.parts:
            if not part.holds:
                yield from _culprits(part)


def sentence(test: Test) -> str:
    """Return a single test in words: what was asked, and what there was."""
    name = test.field if test.column in (test.field, "") else f"{test.field} ({test.column})"
    seen = "absent" if test.observed is None else repr(test.observed)
    return f"{name} {test.expected}; seen: {seen}"


# --- correlations -----------------------------------------------------------------------------------------------------

Lines = Sequence[tuple[int, bytes]]
"""Events with the numbers of their lines."""


@dataclass(frozen=True)
class Account:
    """What a correlation came to on a list of events.

    *matches* are the events that each of its rules matched, *inner* the windows in which a correlation among them held.
    *attempts* are of each group and window: those that hold in order of time, then the others, the nearest first.
    """

    about: Correlation
    titles: Mapping[str, str]
    matches: Mapping[str, int]
    inner: Mapping[str, int]
    attempts: Sequence[Attempt]

    @property
    def held(self) -> Sequence[Attempt]:
        return [one for one in self.attempts if one.holds]

    @property
    def nearest(self) -> Attempt | None:
        """The attempt that came nearest, where none holds."""
        return None if self.held else next(iter(self.attempts), None)

    @property
    def asked(self) -> str:
        """What is asked, in words."""
        named = replace(self.about, rules=tuple(self.titles[id] for id in self.about.rules))
        groups = f", by {', '.join(self.about.group_by)}" if self.about.group_by else ""
        return f"{named.wanted} within {length(self.about.timespan)}{groups}"

    def found(self, attempt: Attempt) -> str:
        """Return in words what *attempt* found, and when."""
        about = self.about
        said = about.found(attempt.measured)
        if attempt.present:
            said += f" ({', '.join(self.titles[about.rules[number]] for number in attempt.present)})"
        if not about.monotone or not attempt.events:
            return said
        first, last = (moment(time, attempt.window[0]) for time in (attempt.since, attempt.until))
        return f"{said}, {f'at {first}' if first == last else f'between {first} and {last}'}"


def moment(time: Timestamp, beside: Timestamp | None = None) -> str:
    """Return *time* for people, in UTC; without its day if that is the one of the time *beside* it."""
    when = to_datetime(time)
    same = beside is not None and to_datetime(beside).date() == when.date()
    return f"{when:%H:%M:%S}" if same else f"{when:%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Hearing:
    """What became of a list of events: an account of each correlation, inner ones first, and what was not counted.

    *unreadable* are lines with the reason, *uncounted* numbers of matches by why they do not count.
    """

    accounts: Sequence[Account]
    unreadable: Mapping[int, str]
    uncounted: Mapping[str, int]


def wanted(collection: Collection, id: str = "") -> list[Correlation]:
    """Return the correlation called *id*, or all of them, with those whose triggers it takes; these come first."""
    needed = {one.id for one in collection.correlations if id in ("", one.id)}
    for one in reversed(collection.correlations):
        if one.id in needed:
            needed.update(one.rules)
    return [one for one in collection.correlations if one.id in needed]


def hear(
    collection: Collection, correlations: Sequence[Correlation], format: str, lines: Lines, as_of: Timestamp
) -> Hearing:
    """Put *lines* to *correlations* of *collection* as if nothing came after them."""
    needed = {rule for one in correlations for rule in one.rules}
    rules = [rule for rule in collection.rules if rule.id in needed]
    detector = SigmaDetector("rules", Collection(rules=rules, correlations=list(correlations)), {})
    chunk = Chunk("events", "events", format, [number for number, _ in lines], [raw for _, raw in lines])
    normalised = Normaliser(detector.fields)(Records("events", (chunk,), {}, as_of), {})
    view = State().transaction().view("rules")
    matches, attempts = detector.attempts(normalised.batch, view)
    titles = {one.id: one.title for one in (*rules, *correlations)}
    accounts: list[Account] = []
    for about in correlations:
        before = {one.about.id: len(one.held) for one in accounts}
        own = sorted(
            (one for one in attempts if one.about.id == about.id),
            key=lambda one: (not one.holds, 0 if one.holds else -one.degree, one.window, one.group),
        )
        found = {id: matches.get(id, 0) for id in about.rules if id not in before}
        inner = {id: before[id] for id in about.rules if id in before}
        accounts.append(Account(about, titles, found, inner, own))
    unreadable = {int(one.reference.key): one.reason for one in normalised.dead}
    return Hearing(accounts, unreadable, dict(view.counts))
