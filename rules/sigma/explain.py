"""Why a rule matched: the tests that held, with the value each was shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.model import Explanation, Factor, Value
from rules.sigma.engine import RAW
from rules.sigma.parse import Expression, Rule
from rules.sigma.predicate import ANY, compare_fields, first_hit, predicate

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

Lookup = Callable[[str], Value | None]


def explain(rule: Rule, condition: Expression | bool, lookup: Lookup) -> Explanation:
    """Return why *rule*, whose bound *condition* holds, matched the event that *lookup* reads."""
    factors = [] if isinstance(condition, bool) else _facts(condition, lookup) or []
    distinct = tuple(dict.fromkeys(factors))
    if not distinct:
        return Explanation(f"{rule.title}: every event of this kind matches, unless the rule leaves it out.")
    named = " and ".join(f"{one.field} {one.expected}" for one in distinct[:_NAMED])
    more = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
    return Explanation(f"{rule.title}: {named}{more}.", distinct)


def _facts(condition: Expression, lookup: Lookup) -> list[Factor] | None:
    """Return the tests that make *condition* hold, none for what is absent; None if it does not hold."""
    match condition:
        case ["is", name, operator, arguments]:
            return _leaf_facts(name, operator, arguments, lookup)
        case ["not", inner]:
            return [] if _facts(inner, lookup) is None else None
        case ["and", parts]:
            found = [_facts(part, lookup) for part in parts]
            return None if None in found else [fact for facts in found for fact in facts or ()]
    held = [facts for part in condition[1] if (facts := _facts(part, lookup)) is not None]
    return [fact for facts in held for fact in facts] if held else None


def _leaf_facts(name: str, operator: str, arguments: list[Any], lookup: Lookup) -> list[Factor] | None:
    value = lookup(name)
    field = "event.original" if name == RAW else name
    if operator.startswith("field "):
        way = operator.removeprefix("field ")
        held = [other for other in arguments if compare_fields(way, value, lookup(other))]
        return [Factor(field, _shown(value), f"{_WORDS[way]} {other}") for other in held] or None
    if not predicate(operator, arguments)(value):
        return None
    if operator == "exists":
        return [Factor(field, _shown(value), "is absent" if value is None else "is present")]
    return [
        Factor(field, _shown(text, str(argument)), _expected(operator, argument))
        for argument in arguments
        if (text := first_hit(operator, argument, value)) is not None
    ]


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
