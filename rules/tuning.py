"""From alerts that turned out false to a Sigma filter, held against those that turned out true.

A filter is a few fields with the values that false positives share and no true positive has all of. It is built of
what alerts keep of their events, and then tried on them by the very tests that the engine uses.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from agent.normalise.mapping import installed
from rules.sigma.explain import examine
from rules.sigma.logsource import ECS_ROOTS
from rules.sigma.parse import Rule, compile_files

FALSE, TRUE = "false-positive", "true-positive"
_MOST_SELECTIONS = 5
_FEWEST_FIELDS = 2
"""A filter on one value alone hides more than was seen: a second one is added where there is one."""
_LEFT_OUT = re.compile(
    r"@timestamp|(?:_id|agent|ecs|labels|log|message|observer|related|rule|tags|threat|vedette)(?:\..*)?"
    r"|event\.(?!action$|code$|outcome$|provider$).*"
    r"|.*(?:^|[._])(?:pid|port|bytes|packets|entity_id|record_id|process_id|thread(?:\.|_?id).*|sequence|created|start|end"
    r"|time|guid|uptime|hash\..*)",
    re.IGNORECASE,
)
"""What an alert says of itself, and what is new in each event."""
_PREFERRED = ("process.parent.executable", "process.executable", "process.command_line", "user.name", "source.ip",
              "host.name", "user_agent.original", "url.path", "process.name")  # fmt: skip
"""What people know their own software by, the best first."""

_Pair = tuple[str, str]


@dataclass(frozen=True)
class Marked:
    """A stored alert: its id, what an analyst found it to be (empty: nobody has said), and its ECS document."""

    id: str
    verdict: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Proposal:
    """A filter, and the alerts that it would have hidden, by verdict; *left* are false positives that it would not."""

    selections: Sequence[Mapping[str, str]]
    hidden: Mapping[str, Sequence[str]]
    left: Sequence[str]

    def sigma(self, rule: Rule, logsource: Mapping[str, Any]) -> str:
        """Return it as a Sigma filter for *rule*, whose log source is *logsource* before any pipeline."""
        names = (
            ["selection"] if len(self.selections) == 1 else [f"selection_{n + 1}" for n in range(len(self.selections))]
        )
        parts = ("product", "category", "service")
        document = {
            "title": f"False positives of: {rule.title}",
            "id": str(uuid.uuid4()),
            "description": f"Shared by {len(self.hidden.get(FALSE, ()))} alerts that were marked {FALSE}.",
            "logsource": {name: logsource[name] for name in parts if logsource.get(name)},
            "filter": {
                "rules": [rule.id],
                **dict(zip(names, map(dict, self.selections), strict=True)),
                "condition": "not selection" if len(names) == 1 else "not 1 of selection_*",
            },
        }
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def propose(rule: Rule, alerts: Sequence[Marked]) -> Proposal | None:
    """Return a filter for the false positives among *alerts*, all of *rule*; None if they share nothing of their own.

    A group of one is only taken if there are no others: one alert says little of what will come.
    """
    pairs = {alert.id: frozenset(_pairs(alert.document)) for alert in alerts}
    true = [pairs[one.id] for one in alerts if one.verdict == TRUE]
    others = [pairs[one.id] for one in alerts if one.verdict != FALSE]
    waiting = {one.id for one in alerts if one.verdict == FALSE}
    fewest = 1 if len(waiting) == 1 else 2
    chosen: list[list[_Pair]] = []
    while waiting and len(chosen) < _MOST_SELECTIONS:
        group = _largest({id: pairs[id] for id in waiting}, true)
        if len(group) < fewest:
            break
        shared = frozenset.intersection(*(pairs[id] for id in group))
        chosen.append(_narrow(shared, true, others))
        waiting -= {id for id in waiting if pairs[id].issuperset(chosen[-1])}
    if not chosen:
        return None
    selections = [{_name(field): _escaped(value) for field, value in one} for one in chosen]
    hidden: dict[str, list[str]] = defaultdict(list)
    for alert in _hidden(rule, selections, {_name(field): field for one in chosen for field, _ in one}, alerts):
        hidden[alert.verdict].append(alert.id)
    left = [one.id for one in alerts if one.verdict == FALSE and one.id not in hidden[FALSE]]
    return Proposal(selections, dict(hidden), left)


def _largest(waiting: Mapping[str, frozenset[_Pair]], true: Sequence[frozenset[_Pair]]) -> set[str]:
    """Return the most alerts that share a value and, with all else that they share, no true positive."""
    by_pair: dict[_Pair, set[str]] = defaultdict(set)
    for id, pairs in waiting.items():
        for pair in pairs:
            by_pair[pair].add(id)
    for pair in sorted(by_pair, key=lambda one: (-len(by_pair[one]), _rank(one), one)):
        group = by_pair[pair]
        shared = frozenset.intersection(*(waiting[id] for id in group))
        if not any(shared <= one for one in true):
            return group
    return set()


def _narrow(
    shared: frozenset[_Pair], true: Sequence[frozenset[_Pair]], others: Sequence[frozenset[_Pair]]
) -> list[_Pair]:
    """Return few of the *shared* values, such that no true positive has them all, and of other alerts few have."""
    having = Counter(pair for one in others for pair in one & shared)
    chosen: list[_Pair] = []
    still = list(true)
    for pair in sorted(shared, key=lambda one: (having[one], _rank(one), one)):
        if len(chosen) >= _FEWEST_FIELDS and not still:
            break
        if len(chosen) < _FEWEST_FIELDS or any(pair not in one for one in still):
            chosen.append(pair)
            still = [one for one in still if pair in one]
    return chosen


def _rank(pair: _Pair) -> int:
    return _PREFERRED.index(pair[0]) if pair[0] in _PREFERRED else len(_PREFERRED)


def _hidden(
    rule: Rule, selections: Sequence[Mapping[str, str]], columns: Mapping[str, str], alerts: Iterable[Marked]
) -> Iterator[Marked]:
    """Yield the alerts that any of *selections* holds for, by the engine's own tests."""
    detection = {f"s{number}": dict(one) for number, one in enumerate(selections)}
    source = {
        name: value for name, value in zip(("product", "category", "service"), rule.logsource, strict=True) if value
    }
    text = yaml.safe_dump({"title": "filter", "logsource": source, "detection": {**detection, "condition": "1 of s*"}})
    (compiled,) = compile_files([("filter.yml", text.encode())]).rules
    for alert in alerts:
        values = dict(_leaves(alert.document))
        if examine(compiled.condition, lambda native: columns[str(native)], values.get).holds:
            yield alert


def _pairs(document: Mapping[str, Any]) -> Iterator[_Pair]:
    """Yield what a filter may ask of an alert: fields with one value that is not new in each event."""
    for name, value in _leaves(document):
        if value not in ("", None) and not isinstance(value, tuple) and not _LEFT_OUT.fullmatch(name):
            yield name, str(value).lower() if isinstance(value, bool) else str(value)


def _leaves(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, tuple(map(str, value)) if isinstance(value, list) else value


def _name(column: str) -> str:
    """Return how a rule may call *column*: as itself if it is ECS, else without its vendor's prefix."""
    if column.partition(".")[0] in ECS_ROOTS:
        return column
    return column.removeprefix(max((one for one in _prefixes() if column.startswith(one)), key=len, default=""))


@cache
def _prefixes() -> tuple[str, ...]:
    return tuple(mapping.prefix for mapping in installed() if mapping.prefix)


def _escaped(value: str) -> str:
    r"""Return *value* as Sigma writes it: wildcards, and backslashes that would escape something, behind a ``\``."""
    return re.sub(r"\\(?=[\\*?])|[*?]", lambda found: f"\\{found[0]}", value)
