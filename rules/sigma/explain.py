"""Why a rule matched, and why not: the tests that held or did not, with the value each was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.model import Explanation, Factor, Value
from rules.sigma.engine import RAW, Bound
from rules.sigma.parse import Expression, Rule
from rules.sigma.predicate import ANY, Alternatives, compare_fields, predicate

_LONGEST = 512
"""Characters of an observed value that an explanation shows."""
_NAMED = 3
"""Facts that the sentence names; the factors have all of them."""

_WORDS = {
    "equals": "is",
    "contains": "contains",
    "startswith": "starts with",
    "endswith": "ends with",
    "like": "is like",
    "matches": "matches",
    "in network": "is in",
}

_LISTED = 5
"""Alternatives of one test that are named where none of them holds."""

Lookup = Callable[[str], Value | None]


@dataclass(frozen=True)
class Test:
    """What became of a condition or of a part of it: of one test with the value it was shown, or of *parts* joined."""

    holds: bool
    expected: str
    field: str = ""
    column: str = ""
    observed: Any = None
    parts: tuple[Test, ...] = ()

    def tests(self) -> Sequence[Test]:
        """Return the single tests."""
        return [test for part in self.parts for test in part.tests()] if self.parts else [self]


class Reasons:
    """Why a bound condition holds, made ready once for all events that it holds for."""

    def __init__(self, condition: Bound) -> None:
        self._part = None if isinstance(condition, bool) else _part(condition)

    def of(self, rule: Rule, lookup: Lookup) -> Explanation:
        """Return why *rule* matched the event that *lookup* reads."""
        factors = self._part.facts(lookup) if self._part else None
        distinct = tuple(dict.fromkeys(factors or ()))
        if not distinct:
            return Explanation(f"{rule.title}: every event of this kind matches, unless the rule leaves it out.")
        named = " and ".join(f"{one.field} {one.expected}" for one in distinct[:_NAMED])
        more = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
        return Explanation(f"{rule.title}: {named}{more}.", distinct)


class _Part(Protocol):
    """A part of a condition."""

    def holds(self, lookup: Lookup) -> bool: ...

    def facts(self, lookup: Lookup) -> list[Factor] | None:
        """Return the tests that make it hold, none for what is absent; None if it does not hold."""


def _part(condition: Expression) -> _Part:
    match condition:
        case ["is", name, operator, arguments] if operator.startswith("field "):
            return _Compared(name, operator.removeprefix("field "), arguments)
        case ["is", name, operator, arguments]:
            return _Tested(name, operator, arguments)
        case ["not", inner]:
            return _Negated(_part(inner))
    return _Joined([_part(each) for each in condition[1]], of_all=condition[0] == "and")


class _Compared:
    def __init__(self, name: str, way: str, others: list[str]) -> None:
        self._name, self._way, self._others = name, way, others

    def holds(self, lookup: Lookup) -> bool:
        return self.facts(lookup) is not None

    def facts(self, lookup: Lookup) -> list[Factor] | None:
        value = lookup(self._name)
        held = [other for other in self._others if compare_fields(self._way, value, lookup(other))]
        return [Factor(self._name, _shown(value), f"{_WORDS[self._way]} {other}") for other in held] or None


class _Tested:
    def __init__(self, name: str, operator: str, arguments: list[Any]) -> None:
        self._name, self._operator = name, operator
        self._field = "event.original" if name == RAW else name
        self._test = predicate(operator, arguments)
        self._alternatives = Alternatives(operator, arguments)

    def holds(self, lookup: Lookup) -> bool:
        return self._test(lookup(self._name))

    def facts(self, lookup: Lookup) -> list[Factor] | None:
        value = lookup(self._name)
        if not self._test(value):
            return None
        if self._operator == "exists":
            return [Factor(self._field, _shown(value), "is absent" if value is None else "is present")]
        return [
            Factor(self._field, _shown(text, str(argument)), _expected(self._operator, argument))
            for argument, text in self._alternatives.hits(value)
        ]


class _Negated:
    def __init__(self, part: _Part) -> None:
        self._inner = part

    def holds(self, lookup: Lookup) -> bool:
        return not self._inner.holds(lookup)

    def facts(self, lookup: Lookup) -> list[Factor] | None:
        return None if self._inner.holds(lookup) else []


class _Joined:
    def __init__(self, parts: Sequence[_Part], *, of_all: bool) -> None:
        self._parts, self._of_all = parts, of_all

    def holds(self, lookup: Lookup) -> bool:
        return (all if self._of_all else any)(part.holds(lookup) for part in self._parts)

    def facts(self, lookup: Lookup) -> list[Factor] | None:
        found: list[Factor] | None = None
        for part in self._parts:
            facts = part.facts(lookup)
            if facts is not None:
                found = [*(found or ()), *facts]
            elif self._of_all:
                return None
        return found


def _expected(operator: str, argument: Any) -> str:
    way = operator.removeprefix("cased ")
    if way == "like":
        argument = "".join(part if isinstance(part, str) else "*" if part == ANY else "?" for part in argument)
    return f'{_WORDS.get(way, way)} "{argument}"'


def _shown(value: Value | None, sought: str = "") -> Any:
    """Return *value* for display: long text is cut around what was sought, and says how long it is."""
    if not isinstance(value, str) or len(value) <= _LONGEST:
        return value
    start = max(0, min(value.lower().find(sought.lower()), len(value)) - _LONGEST // 4)
    return f"{'…' if start else ''}{value[start : start + _LONGEST]}… ({len(value)} characters)"


def examine(condition: Expression, column: Callable[[str | None], str], lookup: Lookup) -> Test:
    """Return what becomes of each part of *condition* for the event that *lookup* reads, whether it holds or not.

    *column* says where the event has what the rule calls by a name of its own.
    """
    match condition:
        case ["is", native, operator, arguments]:
            return _examine_leaf(native, operator, arguments, column, lookup)
        case ["not", inner]:
            part = examine(inner, column, lookup)
            return Test(not part.holds, "not", parts=(part,))
    way, inner = condition
    parts = tuple(examine(part, column, lookup) for part in inner)
    if len(parts) == 1:
        return parts[0]
    holds = [part.holds for part in parts]
    return Test(all(holds) if way == "and" else any(holds), "all of" if way == "and" else "any of", parts=parts)


def outline(condition: Expression, named: Callable[[Expression], str]) -> str:
    """Return *condition* in words; *named* gives the name of a part that has one, else an empty text."""
    if name := named(condition):
        return name
    match condition:
        case ["is", native, operator, arguments]:
            return f"{native or 'keywords'} {_asked(operator, arguments)}"
        case ["not", inner]:
            return f"not ({outline(inner, named)})"
    parts = [(part, outline(part, named)) for part in condition[1]]
    return f" {condition[0]} ".join(text if part[0] == "is" or named(part) else f"({text})" for part, text in parts)


def _examine_leaf(
    native: str | None, operator: str, arguments: list[Any], column: Callable[[str | None], str], lookup: Lookup
) -> Test:
    name = column(native)
    value = lookup(name)
    if operator.startswith("field "):
        way = operator.removeprefix("field ")
        holds = any(compare_fields(way, value, lookup(column(other))) for other in arguments)
        asked = arguments
    else:
        holds = predicate(operator, arguments)(value)
        hits = [] if operator == "exists" else Alternatives(operator, arguments).hits(value)
        asked = [argument for argument, _ in hits] or arguments
    shown = "event.original" if name == RAW else name
    return Test(holds, _asked(operator, asked), native or "keywords", shown, _shown(value))


def _asked(operator: str, arguments: list[Any]) -> str:
    """Return in words what is asked of a field; of many alternatives the first."""
    if operator == "exists":
        return "is present or absent" if len(set(arguments)) > 1 else "is present" if arguments[0] else "is absent"
    if operator.startswith("field "):
        return f"{_WORDS[operator.removeprefix('field ')]} what is in {' or '.join(arguments)}"
    named = [_expected(operator, one) for one in arguments[:_LISTED]]
    return " or ".join(named) + (f" or {len(arguments) - _LISTED} more" if len(arguments) > _LISTED else "")
