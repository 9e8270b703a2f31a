"""Sigma correlation documents to plain data, resolved against the rules beside them.

What a correlation counts is decided in one of two ways, and this file says which (`Correlation.monotone`):

- *Monotone* conditions (at least so many events or values, all or some of these rules, in this order; ``and``, ``or``)
  only become truer with more events. They slide: an event is a trigger if the condition holds for ``(t - T, t]``.
- All others (fewer than, exactly, a range, sums, averages, percentiles, any ``not``) are decided for windows of length
  *timespan* that begin at the epoch, once time has passed them; a group is decided only in windows in which it occurs.

Group values and counted values are compared without regard to case, as Sigma compares strings.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, TypeAlias, cast, get_args

from agent.model import SECOND
from rules.sigma.documents import About

Type: TypeAlias = Literal[
    "event_count", "value_count", "temporal", "temporal_ordered", "value_sum", "value_avg", "value_percentile",
    "value_median",
]  # fmt: skip
Expression: TypeAlias = list[Any]
"""``["rule", number]``, ``["and", [...]]``, ``["or", [...]]`` or ``["not", x]`` over the numbers of the rules."""

_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "eq": "=", "neq": "!="}
_WORDS = {">": "more than", ">=": "at least", "<": "fewer than", "<=": "at most", "=": "exactly", "!=": "other than"}
_MEASURES = frozenset(["value_sum", "value_avg", "value_percentile", "value_median"])
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "M": 2_629_746, "y": 31_556_952}
_LONGEST_S = 366 * _UNITS["d"]
MOST_COUNTED = 5_000
"""Events that a sliding count may ask for: it keeps twice as many of each window."""
MOST_VALUES = 1_000
"""Distinct values that are kept of each window, so fewer can be told apart from more."""
_MOST_RULES = 64
_MOST_FIELDS = 8
_KEYS = frozenset(["type", "rules", "group-by", "timespan", "condition", "aliases", "generate"])


class CorrelationError(Exception):
    """Why a correlation cannot run, and the text to look for to find the line."""

    def __init__(self, reason: str, needle: str = "correlation:") -> None:
        super().__init__(reason)
        self.needle = needle


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation(About):
    """A correlation: what it says of itself, which rules (ids, of rules or correlations) it joins and when it holds.

    *bounds* are comparisons that must all hold, or *expression* must. *fields* has, for each of *rules*, the fields
    that stand for *group_by*; *values* the fields that are counted or measured. *timespan* is in microseconds.
    """

    type: Type
    rules: tuple[str, ...]
    group_by: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    timespan: int
    bounds: tuple[tuple[str, int | float], ...] = ()
    expression: Expression = field(default_factory=list)
    values: tuple[str, ...] = ()
    percentile: int | float = 0
    generate: bool = False

    @property
    def monotone(self) -> bool:
        """Say whether more events can only make the condition truer."""
        if self.type in _MEASURES:
            return False
        if self.expression:
            return not _has_not(self.expression)
        return _is_least(self.bounds)

    @property
    def least(self) -> int:
        """The number of events, values or rules that a monotone bound asks for; a trigger is always one."""
        operator, bound = self.bounds[0]
        return max(1, int(bound // 1) + 1 if operator == ">" else -int(-bound // 1))

    @property
    def wanted(self) -> str:
        """The condition in words, without the time span."""
        if self.expression:
            return _phrase(self.expression, self.rules)
        if self.type == "temporal_ordered":
            return f"all {len(self.rules)} rules in this order"
        bounds = " and ".join(f"{_WORDS[operator]} {bound:g}" for operator, bound in self.bounds)
        if self.type in _MEASURES:
            return f"{self._measure} {bounds}"
        counted = {"event_count": "events", "value_count": f"values of {', '.join(self.values)}"}
        return f"{bounds} {counted.get(self.type, f'of {len(self.rules)} rules')}"

    def found(self, measured: float) -> str:
        """Return in words what was counted or measured, and what was asked if that is one number."""
        if self.type in _MEASURES:
            return f"{self._measure} {measured:g}"
        asked = f" of {len(self.rules) if self.expression else self.least}" if self.monotone else ""
        plural = "" if measured == 1 else "s"
        match self.type:
            case "event_count":
                return f"{measured:g} event{plural}{asked and f'{asked} asked'}"
            case "value_count":
                return f"{measured:g} distinct {', '.join(self.values)}{asked and f'{asked} asked'}"
        return f"{measured:g}{asked} rules asked" if asked else f"{measured:g} rule{plural}"

    @property
    def _measure(self) -> str:
        measure = f"percentile {self.percentile:g}" if self.percentile else self.type.removeprefix("value_")
        return f"{measure} of {self.values[0]}"


def _is_least(bounds: Sequence[tuple[str, float]]) -> bool:
    return len(bounds) == 1 and bounds[0][0] in (">", ">=")


def _has_not(expression: Expression) -> bool:
    match expression[0]:
        case "rule":
            return False
        case "not":
            return True
    return any(map(_has_not, expression[1]))


def _phrase(expression: Expression, rules: Sequence[str]) -> str:
    match expression[0]:
        case "rule":
            return rules[expression[1]]
        case "not":
            return f"not {_phrase(expression[1], rules)}"
    return "(" + f" {expression[0]} ".join(_phrase(part, rules) for part in expression[1]) + ")"


@dataclass(frozen=True, slots=True)
class Draft:
    """A correlation as it is written: its rules are still references, by id or by name."""

    type: Type
    references: tuple[str, ...]
    group_by: tuple[str, ...]
    aliases: Mapping[str, Mapping[str, str]]
    timespan: int
    bounds: tuple[tuple[str, float], ...]
    text: str
    values: tuple[str, ...]
    percentile: float
    generate: bool


def draft(section: Any) -> Draft:
    """Return what the ``correlation`` section of a document says; CorrelationError if it cannot be meant so."""
    if not isinstance(section, dict):
        raise CorrelationError("correlation must be a mapping")
    for key in section:
        if key not in _KEYS:
            raise CorrelationError(f"correlation.{key}: unknown key; there are: {', '.join(sorted(_KEYS))}", f"{key}:")
    kind = section.get("type")
    if kind not in get_args(Type):
        raise CorrelationError(f"correlation.type must be one of {', '.join(get_args(Type))}, got {kind!r}", "type:")
    kind = cast(Type, kind)
    condition = section.get("condition")
    text = condition if isinstance(condition, str) else ""
    references = _names(section.get("rules"), "rules", _MOST_RULES)
    if text and not kind.startswith("temporal"):
        raise CorrelationError(f"{kind} takes a comparison as its condition, not an expression", "condition:")
    if not references and not text:
        raise CorrelationError("correlation.rules: expected ids or names of rules")
    if not isinstance(section.get("generate", False), bool):
        raise CorrelationError("correlation.generate must be true or false", "generate:")
    bounds, values, percentile = _bounds(kind, condition, len(references)) if not text else ((), (), 0.0)
    return Draft(
        type=kind,
        references=references,
        group_by=_names(section.get("group-by"), "group-by", _MOST_FIELDS),
        aliases=_aliases(section.get("aliases")),
        timespan=_timespan(section.get("timespan")),
        bounds=bounds,
        text=text,
        values=values,
        percentile=percentile,
        generate=section.get("generate", False),
    )


def _names(value: Any, key: str, most: int) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise CorrelationError(f"correlation.{key} must be a text or a list of texts, got {value!r}", f"{key}:")
    if len(names) > most:
        raise CorrelationError(f"correlation.{key} may have at most {most} entries", f"{key}:")
    if len(set(names)) < len(names):
        raise CorrelationError(f"correlation.{key} names one thing twice", f"{key}:")
    return tuple(names)


def _aliases(value: Any) -> dict[str, dict[str, str]]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(alias, str)
        and isinstance(fields, dict)
        and all(isinstance(text, str) for pair in fields.items() for text in pair)
        for alias, fields in value.items()
    ):
        raise CorrelationError("correlation.aliases must map an alias to the field of each rule", "aliases:")
    return value


def _timespan(value: Any) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhdwMy])", value) if isinstance(value, str) else None
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_S:
        raise CorrelationError(
            f"correlation.timespan must be a number and s, m, h, d, w, M or y, up to 366 days, got {value!r}",
            "timespan:",
        )
    return seconds * SECOND


def _bounds(kind: Type, condition: Any, rules: int) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...], float]:
    if condition is None and kind.startswith("temporal"):
        return ((">=", rules),), (), 0.0
    if not isinstance(condition, dict):
        raise CorrelationError(f"{kind} needs a condition such as 'gte: 10'")
    for key in condition:
        if key not in (*_OPERATORS, "field", "percentile"):
            raise CorrelationError(
                f"correlation.condition.{key}: unknown key; there are: {', '.join(_OPERATORS)}, field, percentile",
                f"{key}:",
            )
    bounds = tuple((sign, _number(condition[key], key)) for key, sign in _OPERATORS.items() if key in condition)
    if not bounds:
        raise CorrelationError(f"correlation.condition: expected one of {', '.join(_OPERATORS)}", "condition:")
    values = _names(condition.get("field"), "condition.field", _MOST_FIELDS)
    counted = kind == "value_count" or kind in _MEASURES
    if counted and not values:
        raise CorrelationError(f"{kind} needs a field in its condition", "condition:")
    if kind in _MEASURES and len(values) > 1:
        raise CorrelationError(f"{kind} measures one field", "field:")
    if not counted and values:
        raise CorrelationError(f"{kind} counts no field; value_count does", "field:")
    if kind == "temporal_ordered" and bounds != ((">=", rules),):
        raise CorrelationError("temporal_ordered asks for all its rules; it takes no other count", "condition:")
    if (kind == "value_percentile") != ("percentile" in condition):
        raise CorrelationError(
            "value_percentile needs a percentile (1 to 99) in its condition, and no other type takes one", "condition:"
        )
    _check_kept(kind, bounds)
    percentile = _number(condition.get("percentile", 0), "percentile")
    if kind == "value_percentile" and not 0 < percentile < 100:
        raise CorrelationError(f"percentile must lie between 0 and 100, got {percentile:g}", "percentile:")
    return bounds, values, percentile


def _check_kept(kind: Type, bounds: Sequence[tuple[str, float]]) -> None:
    """Refuse a count that what is kept of a window could not decide."""
    if kind == "event_count" and _is_least(bounds) and bounds[0][1] > MOST_COUNTED:
        raise CorrelationError(
            f"at most {MOST_COUNTED} events can be asked for: as many are kept of each group and window", "condition:"
        )
    if kind == "value_count" and any(bound >= MOST_VALUES for _, bound in bounds):
        raise CorrelationError(
            f"value_count compares with fewer than {MOST_VALUES} values: as many are kept of each group and window",
            "condition:",
        )


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise CorrelationError(f"correlation.condition.{key} must be a number, got {value!r}", f"{key}:")
    return value


# --- references -------------------------------------------------------------------------------------------------------


class Referred:
    """What a correlation may refer to: rules and correlations by id and by name, with the fields each one gives.

    A rule's events have any field; a correlation's triggers have what it is grouped by.
    """

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()
        self.given: dict[str, frozenset[str] | None] = {}

    def add(self, id: str, name: str, given: frozenset[str] | None = None) -> None:
        self.given[id] = given
        self._ids[id] = id
        if name and name != id:
            if name in self._ids:
                self._taken.add(name)
            self._ids[name] = id

    def knows(self, reference: str) -> bool:
        return reference in self._ids

    def resolve(self, reference: str) -> str:
        if reference in self._taken:
            raise CorrelationError(f"{reference!r} is the name of several rules; refer to one by its id", reference)
        if reference not in self._ids:
            raise CorrelationError(f"no rule here that can run has the id or name {reference!r}", reference)
        return self._ids[reference]


def resolve(
    written: Draft, referred: Referred
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], Expression, tuple[tuple[str, float], ...]]:
    """Return the ids of its rules, each one's fields for the groups, its expression and its bounds."""
    expression, names = _expression(written.text) if written.text else ([], written.references)
    if written.text and written.references and set(names) != set(written.references):
        raise CorrelationError("the rules of correlation.rules are not those of its condition", "condition:")
    bounds = written.bounds
    if written.type == "temporal_ordered" and expression:
        if expression[0] != "and" or any(part[0] != "rule" for part in expression[1]):
            raise CorrelationError("temporal_ordered joins its rules with 'and' only: order says no more", "condition:")
        expression, bounds = [], ((">=", len(names)),)
    rules = tuple(referred.resolve(name) for name in names)
    if len(set(rules)) < len(rules):
        raise CorrelationError("correlation.rules names one rule twice", "rules:")
    fields = []
    for name, rule in zip(names, rules, strict=True):
        fields.append(tuple(_field(written, name, rule, alias) for alias in written.group_by))
        given = referred.given[rule]
        for one in (*fields[-1], *written.values):
            if given is not None and one not in given:
                raise CorrelationError(f"{name!r} is a correlation that is not grouped by {one!r}", name)
    for alias, by_rule in written.aliases.items():
        for reference in by_rule:
            if referred.resolve(reference) not in rules:
                raise CorrelationError(f"alias {alias!r} names {reference!r}, which is none of its rules", reference)
    return rules, tuple(fields), expression, bounds


def _field(written: Draft, name: str, rule: str, alias: str) -> str:
    by_rule = written.aliases.get(alias)
    if by_rule is None:
        return alias
    if found := by_rule.get(name) or by_rule.get(rule):
        return found
    raise CorrelationError(f"alias {alias!r} does not say what it is in {name!r}", f"{alias}:")


def _expression(text: str) -> tuple[Expression, tuple[str, ...]]:
    from sigma.correlations import SigmaExtendedCorrelationCondition
    from sigma.exceptions import SigmaError

    try:
        parsed = SigmaExtendedCorrelationCondition(text)
    except (SigmaError, RecursionError) as error:
        raise CorrelationError(f"correlation.condition: {str(error).partition(chr(10))[0]}", "condition:") from error
    names = tuple(parsed.get_referenced_rules())
    if len(names) > _MOST_RULES:
        raise CorrelationError(f"correlation.condition may name at most {_MOST_RULES} rules", "condition:")
    return _translate(parsed.parsed, names), names


def _translate(node: Any, names: tuple[str, ...]) -> Expression:
    from sigma import correlations

    match node:
        case correlations.CorrelationConditionNOT():
            return ["not", _translate(node.args[0], names)]
        case correlations.CorrelationConditionAND():
            return ["and", [_translate(arg, names) for arg in node.args]]
        case correlations.CorrelationConditionOR():
            return ["or", [_translate(arg, names) for arg in node.args]]
    return ["rule", names.index(node.reference)]


def holds(expression: Expression, present: Container[int]) -> bool:
    """Say whether *expression* holds where the rules of these numbers have matched."""
    match expression[0]:
        case "rule":
            return expression[1] in present
        case "not":
            return not holds(expression[1], present)
        case "and":
            return all(holds(part, present) for part in expression[1])
    return any(holds(part, present) for part in expression[1])


def share(expression: Expression, present: Container[Any]) -> float:
    """Return to what degree *expression* holds, 1 if it does: of rules that must all match, which share of them has."""
    match expression[0]:
        case "rule":
            return float(expression[1] in present)
        case "not":
            return float(not holds(expression[1], present))
        case "and":
            return sum(share(part, present) for part in expression[1]) / len(expression[1])
    return max(share(part, present) for part in expression[1])
