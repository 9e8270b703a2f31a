"""What rules cover: which can never fire on the events at hand and why, which fields no rule reads, and ATT&CK.

A rule is asked in parts: whether any event is of its log source, whether its fields occur at all, and whether each of
the parts that must all hold ever does. A part that was true once is asked no more.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agent.errors import ConfigError, RecordError
from agent.model import UNPARSED, Batch, Description, Finding, Kind, Timestamp
from agent.normalise import Normaliser
from agent.ports import Source, StateView
from rules.detector import SigmaDetector
from rules.lint import ALWAYS
from rules.running import Runner, fetches
from rules.sigma import logsource
from rules.sigma.correlation import Correlation, holds
from rules.sigma.documents import Files
from rules.sigma.engine import Engine, leaves
from rules.sigma.explain import outline
from rules.sigma.parse import Collection, Expression, Rule
from rules.sigma.predicate import predicate
from rules.verdict import Library, source_name, unfolded

State = Literal["fired", "quiet", "log source not mapped", "log source absent", "field never seen", "never true"]
NEVER: tuple[State, ...] = ("log source not mapped", "log source absent", "field never seen", "never true")
"""Of the first it is known without events; `quiet` means that each of its parts held, but never all at once."""
_SLICES = (64, 512)
"""Rows of the first looks: most parts that hold at all hold soon, and need not be asked of every event."""
_SAMPLE = 20
"""Events of each kind whose fields are all looked at."""
_TECHNIQUE = re.compile(r"\bT\d{4}(?:\.\d{3})?\b")
_NO_RULES_BUSINESS = frozenset(["@timestamp", "ecs.version"])


@dataclass(frozen=True)
class Row:
    """What became of one rule; *detail* says why it cannot fire."""

    rule: Description
    state: State
    detail: str = ""
    matches: int = 0

    @property
    def never(self) -> bool:
        return self.state in NEVER


@dataclass
class Coverage:
    """Rules and fields. *unread*: by mapping, the fields that no rule reads and how many sampled events had them."""

    rows: list[Row] = field(default_factory=list)
    events: int = 0
    unread: dict[str, dict[str, int]] = field(default_factory=dict)

    def techniques(self) -> dict[str, list[Row]]:
        """Return the rules of each technique, a rule for a subtechnique under both."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            for id in {*row.rule.techniques, *(one.partition(".")[0] for one in row.rule.techniques)}:
                found[id].append(row)
        return dict(sorted(found.items()))

    def compared(self, wanted: Iterable[str]) -> dict[str, int]:
        """Return for each of the *wanted* techniques how many rules for it may fire."""
        by_id = self.techniques()
        return {id: _may_fire(by_id.get(id, ())) for id in wanted}


def of_rules(detector: SigmaDetector, collection: Collection) -> Coverage:
    """Return what can be said without events: whether a mapping feeds the rules' log sources."""
    rows = [
        Row(detector.describe(rule), "quiet")
        if logsource.condition(*rule.logsource)
        else Row(detector.describe(rule), "log source not mapped", source_name(rule))
        for rule in collection.rules
    ]
    return Coverage(rows + [Row(detector.describe(one), "quiet") for one in collection.correlations])


def of_events(detector: SigmaDetector, collection: Collection, files: Files, source: Source) -> Coverage:
    """Return what became of each rule on all that *source* holds; *files* are what the collection was made of."""
    observer = _Observer(collection.rules, detector)
    runner, matches, events = Runner(detector, observer), Counter[str](), 0
    for records in fetches(source):
        step = runner.step(records, source)
        events += len(records)
        matches.update(one.detector.id for one in step.evaluation.findings)
    labels = _Labels(files)
    rows = []
    for rule in collection.rules:
        state, detail = observer.state(rule, labels)
        rows.append(Row(detector.describe(rule), state, detail, matches[rule.id]))
    by_id = {row.rule.id: row for row in rows}
    for one in collection.correlations:
        dead = [id for id in one.rules if by_id[id].never]
        alive = {number for number, id in enumerate(one.rules) if id not in dead}
        state = "fired" if matches[one.id] else "quiet" if _may_hold(one, alive) else "never true"
        detail = f"its rules can never fire: {', '.join(dead)}" if state == "never true" else ""
        by_id[one.id] = Row(detector.describe(one), state, detail, matches[one.id])
        rows.append(by_id[one.id])
    return Coverage(rows, events, observer.unread())


def _may_hold(one: Correlation, alive: set[int]) -> bool:
    """Say whether a correlation may hold where only the rules of these numbers can fire."""
    if not one.monotone:
        return bool(alive)
    if one.expression:
        return holds(one.expression, alive)
    return len(alive) >= (one.least if one.type.startswith("temporal") else 1)


class _Labels:
    """What the parts of a rule's condition are called in it: by selection, else by their tests."""

    def __init__(self, files: Files) -> None:
        self._library = Library(files)

    def of(self, rule: Rule, parts: Sequence[Expression]) -> list[str]:
        here = (one for one in self._library.rules(path=rule.place.rpartition(":")[0]) if one.rule.id == rule.id)
        named = [(expression, name) for one in here for name, expression in one.selections.items()]
        named += [(condition, f"filter {place}") for place, condition in unfolded(rule)[1].items()]
        return [outline(part, lambda one: next((name for known, name in named if known == one), "")) for part in parts]


class _Observer:
    """Looks at events beside the rules, as a detector that finds nothing; it asks parts of rules until they held."""

    order: Literal["set", "sequence"] = "set"
    id = "coverage"

    def __init__(self, rules: Sequence[Rule], detector: SigmaDetector) -> None:
        self._detector = detector
        self._open: dict[str, Rule] = {}
        self._known: set[str] = set()
        for rule in rules:
            self._ask(f"source {rule.logsource}", rule, ALWAYS)
            for name in _fields(rule):
                self._ask(f"field {rule.logsource} {name}", rule, ["is", name, "exists", [True]])
            for number, part in enumerate(_parts(rule)):
                self._ask(f"part {rule.id} {number}", rule, part)
            self._ask(f"rule {rule.id}", rule, rule.condition)
        self._engine = Engine(list(self._open.values()))
        self._sampled: dict[Kind, Counter[str]] = defaultdict(Counter)
        self._samples: Counter[Kind] = Counter()
        self._normaliser = Normaliser(lambda _kind: frozenset())

    def _ask(self, key: str, rule: Rule, condition: Expression) -> None:
        if key not in self._known:
            self._known.add(key)
            self._open[key] = replace(rule, id=key, condition=condition)

    def fields(self, kind: Kind) -> frozenset[str]:
        return self._engine.fields(kind)

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:  # noqa: ARG002
        start = 0
        for end in (*_SLICES, len(events)):
            self._look(events.take(np.arange(start, min(end, len(events)))))
            start = end
        self._sample(events)
        return ()

    def _look(self, events: Batch) -> None:
        held = {rule.id for _, rule in self._engine.match(events)} if len(events) else set()
        for key in held:
            self._open.pop(key, None)
        if 10 * len(self._open) <= 9 * len(self._engine.rules):
            self._engine = Engine(list(self._open.values()))

    def _sample(self, events: Batch) -> None:
        for kind, rows in events.rows_by_kind():
            for row in rows[: max(0, _SAMPLE - self._samples[kind])].tolist() if kind.mapping != UNPARSED else ():
                chunk, place = events.records.locate(int(events.origin[row]))
                self._samples[kind] += 1
                try:
                    document = self._normaliser.document(chunk.format, chunk.raw[place], as_of=events.records.as_of)
                except RecordError:
                    continue
                self._sampled[kind].update(_flat(document))

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:  # noqa: ARG002
        return ()

    def plan(self) -> Mapping[str, Any]:
        return {}

    def state(self, rule: Rule, labels: _Labels) -> tuple[State, str]:
        """Return what became of *rule*, and why it cannot fire."""
        if logsource.condition(*rule.logsource) is None:
            return "log source not mapped", source_name(rule)
        if f"rule {rule.id}" not in self._open:
            return "fired", ""
        if f"source {rule.logsource}" in self._open:
            return "log source absent", source_name(rule)
        absent = {name for name in _fields(rule) if f"field {rule.logsource} {name}" in self._open}
        if absent and _possible(rule.condition, absent) is False:
            return "field never seen", ", ".join(sorted(absent))
        never = [part for number, part in enumerate(_parts(rule)) if f"part {rule.id} {number}" in self._open]
        return ("never true", ", ".join(labels.of(rule, never))) if never else ("quiet", "")

    def unread(self) -> dict[str, dict[str, int]]:
        """Return by mapping the fields of the sampled events that no rule reads."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for kind, fields in self._sampled.items():
            read = self._detector.fields(kind) | kind.constant.keys() | _NO_RULES_BUSINESS
            found[kind.mapping].update({name: number for name, number in fields.items() if name not in read})
        return {mapping: dict(fields.most_common()) for mapping, fields in sorted(found.items()) if fields}


def _fields(rule: Rule) -> list[str]:
    """Return the fields that a rule tests or compares with, by the rule's names."""
    tests = list(leaves(rule.condition))
    compared = [name for leaf in tests if leaf[2].startswith("field ") for name in leaf[3]]
    return list(dict.fromkeys([*(leaf[1] for leaf in tests if leaf[1] is not None), *compared]))


def _parts(rule: Rule) -> list[Expression]:
    """Return what must all hold at once: the selections, where the condition joins them with 'and', and filters."""
    condition, filters = unfolded(rule)
    way, *rest = condition
    joined = way == "and" and any(part[0] != "is" for part in rest[0])
    return [*(rest[0] if joined else [condition]), *filters.values()]


def _possible(condition: Expression, absent: set[str]) -> bool | None:
    """Return what becomes of *condition* where the *absent* fields are; None if that decides nothing."""
    match condition:
        case ["is", name, operator, arguments]:
            if operator.startswith("field "):
                return False if name in absent or absent.issuperset(arguments) else None
            return bool(predicate(operator, arguments)(None)) if name in absent else None
        case ["not", inner]:
            verdict = _possible(inner, absent)
            return None if verdict is None else not verdict
    decisive: bool = condition[0] == "or"
    verdicts = [_possible(part, absent) for part in condition[1]]
    if decisive in verdicts:
        return decisive
    return None if None in verdicts else not decisive


def _flat(document: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key


def _may_fire(rows: Sequence[Row]) -> int:
    return sum(not row.never for row in rows)


# --- ATT&CK -----------------------------------------------------------------------------------------------------------


def read_techniques(file: Path) -> list[str]:
    """Return the technique ids that the lines of *file* (a list, CSV, anything) name; ConfigError if there are none."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the techniques: {error}", str(file)) from error
    found = list(dict.fromkeys(chain.from_iterable(map(_TECHNIQUE.findall, text.splitlines()))))
    if not found:
        raise ConfigError("no technique ids such as T1059 or T1059.001 in it", str(file))
    return found


def navigator_layer(coverage: Coverage, name: str) -> dict[str, Any]:
    """Return a layer for ATT&CK Navigator (format 4.5): a technique's score is how many rules for it may fire."""
    exact: dict[str, list[Row]] = defaultdict(list)
    for row in coverage.rows:
        for id in row.rule.techniques:
            exact[id].append(row)
    techniques = [
        {
            "techniqueID": id,
            "score": _may_fire(rows),
            "comment": "\n".join(f"{row.rule.title}: {row.state}" for row in rows),
            "enabled": True,
            "showSubtechniques": False,
        }
        for id, rows in sorted(exact.items())
    ]
    return {
        "name": name,
        "versions": {"layer": "4.5", "navigator": "5.1.0", "attack": "18"},
        "domain": "enterprise-attack",
        "description": "score: rules that may fire",
        "gradient": {
            "colors": ["#ff6666", "#ffe766", "#8ec843"],
            "minValue": 0,
            "maxValue": max([1, *map(_may_fire, exact.values())]),
        },
        "techniques": techniques,
    }
