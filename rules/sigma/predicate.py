"""What a Sigma operator means for one value.

Strings are compared without regard to case unless the rule says so, numbers and booleans by their text. A field with
several values holds if any of them does; a field that is absent (None here) satisfies only the test for its absence.
Every test is linear in the value's length: regular expressions are RE2's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import contains
from typing import Any, TypeAlias

import re2

from agent.model import Value

ANY, ONE = 0, 1
"""Wildcards in the parts of a ``like`` pattern: any characters, exactly one character."""

Predicate: TypeAlias = Callable[[Value | None], bool]
_TextTest: TypeAlias = Callable[[str], bool]

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)


def texts(value: Value | None) -> list[str]:
    """Return *value* as the texts that rules compare: one for each of its values, none if it is absent."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [_text(each) for each in (value if isinstance(value, tuple) else (value,))]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def predicate(operator: str, arguments: Sequence[Any]) -> Predicate:
    """Return the test whether any of *arguments* holds.

    ValueError with the reason if one cannot be tested (a pattern that RE2 refuses).
    """
    if operator == "exists":
        return lambda value: (value is not None) in arguments
    test = _text_test(operator, tuple(tuple(each) if isinstance(each, list) else each for each in arguments))

    def holds(value: Value | None) -> bool:
        return test(value) if isinstance(value, str) else any(map(test, texts(value)))

    return holds


class Alternatives:
    """The single arguments of a test: which of them a value passes."""

    def __init__(self, operator: str, arguments: Sequence[Any]) -> None:
        self._arguments = arguments
        self._places = _LITERAL_PLACES.get(operator, _places_of)(operator, arguments)

    def hits(self, value: Value | None) -> list[tuple[Any, str]]:
        """Return each argument that holds, in their order, with the first text of *value* that it holds for."""
        found: dict[int, str] = {}
        for text in texts(value):
            for place in self._places(text):
                found.setdefault(place, text)
        return [(self._arguments[place], found[place]) for place in sorted(found)]


_Places: TypeAlias = Callable[[str], Iterable[int]]
"""Text -> the places of the arguments that it passes."""


def _places_of(operator: str, arguments: Sequence[Any]) -> _Places:
    each = (tuple(argument) if isinstance(argument, list) else argument for argument in arguments)
    tests = [(place, _text_test(operator, (argument,))) for place, argument in enumerate(each)]
    return lambda text: (place for place, test in tests if test(text))


def _places_equal(_operator: str, arguments: Sequence[str]) -> _Places:
    places: dict[str, list[int]] = {}
    for place, argument in enumerate(arguments):
        places.setdefault(argument.lower(), []).append(place)
    return lambda text: places.get(text.lower(), ())


def _places_within(operator: str, arguments: Sequence[str]) -> _Places:
    sought = [(place, argument.lower()) for place, argument in enumerate(arguments)]
    way: Callable[[str, str], bool] = {"startswith": str.startswith, "endswith": str.endswith}.get(operator, contains)

    def places(text: str) -> Iterable[int]:
        lowered = text.lower()
        return (place for place, argument in sought if way(lowered, argument))

    return places


_LITERAL_PLACES: dict[str, Callable[[str, Sequence[Any]], _Places]] = {
    "equals": _places_equal,
    "contains": _places_within,
    "startswith": _places_within,
    "endswith": _places_within,
    "exists": lambda _operator, _arguments: lambda _text: (),
}


def compare_fields(operator: str, left: Value | None, right: Value | None) -> bool:
    """Say whether ``left operator right`` holds for any of their values; never if one is absent."""
    return any(map(_make_text_test(operator, tuple(texts(right))), texts(left)))


def _make_text_test(operator: str, arguments: tuple[Any, ...]) -> _TextTest:
    way, cased = operator.removeprefix("cased "), operator.startswith("cased ")
    if way in _LITERAL:
        test = _LITERAL[way](arguments if cased else tuple(each.lower() for each in arguments))
        return test if cased else lambda text: test(text.lower())
    if way == "like":
        return _like(arguments, cased)
    tests = [_OTHER[way](each) for each in arguments]
    return tests[0] if len(tests) == 1 else lambda text: any(test(text) for test in tests)


_text_test = lru_cache(maxsize=65_536)(_make_text_test)
"""For the arguments of rules; values of events, of which there is no end, are not kept."""


def _equals(wanted: tuple[str, ...]) -> _TextTest:
    return frozenset(wanted).__contains__


def _contains(wanted: tuple[str, ...]) -> _TextTest:
    if len(wanted) == 1:
        (one,) = wanted
        return lambda text: one in text
    return lambda text: any(map(text.__contains__, wanted))


_LITERAL: dict[str, Callable[[tuple[str, ...]], _TextTest]] = {
    "equals": _equals,
    "contains": _contains,
    "startswith": lambda wanted: lambda text: text.startswith(wanted),
    "endswith": lambda wanted: lambda text: text.endswith(wanted),
}


def _like(patterns: tuple[tuple[str | int, ...], ...], cased: bool) -> _TextTest:
    lowered = [tuple(part if cased or isinstance(part, int) else part.lower() for part in each) for each in patterns]
    search = _regex("|".join(map(like_pattern, lowered)))
    return search if cased else lambda text: search(text.lower())


def like_pattern(parts: tuple[str | int, ...]) -> str:
    """Return the regular expression for a pattern with wildcards, over the whole value."""
    return r"(?s)\A" + "".join(r".*" if p == ANY else "." if p == ONE else re2.escape(p) for p in parts) + r"\z"


def _regex(pattern: str) -> _TextTest:
    options = re2.Options()
    options.log_errors = False
    try:
        search = re2.compile(pattern, options).search
    except re2.error as error:
        raise ValueError(f"RE2 cannot take the pattern {pattern!r}: {error}") from error
    # bytes, because RE2 would otherwise map offsets back to characters; a lone surrogate has no UTF-8
    return lambda text: search(text.encode("utf-8", "replace")) is not None


def _network(argument: str) -> _TextTest:
    network = ipaddress.ip_network(argument)

    def test(text: str) -> bool:
        try:
            return ipaddress.ip_address(text) in network
        except ValueError:
            return False

    return test


def _compare(holds: Callable[[float, float], bool]) -> Callable[[float], _TextTest]:
    def build(bound: float) -> _TextTest:
        return lambda text: _NUMBER.fullmatch(text) is not None and holds(_number(text), bound)

    return build


def _number(text: str) -> float:
    return int(text) if text.lstrip("+-").isdigit() and len(text) < 400 else float(text)


def _part_of_time(part: Callable[[datetime], int]) -> Callable[[int], _TextTest]:
    def build(wanted: int) -> _TextTest:
        return lambda text: (when := _time(text)) is not None and part(when) == wanted

    return build


def _time(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text)
        return when.astimezone(UTC) if when.tzinfo else when
    except (ValueError, OverflowError):
        return None


_OTHER: dict[str, Callable[[Any], _TextTest]] = {
    "matches": _regex,
    "in network": _network,
    "<": _compare(lambda number, bound: number < bound),
    "<=": _compare(lambda number, bound: number <= bound),
    ">": _compare(lambda number, bound: number > bound),
    ">=": _compare(lambda number, bound: number >= bound),
    "minute": _part_of_time(lambda when: when.minute),
    "hour": _part_of_time(lambda when: when.hour),
    "day": _part_of_time(lambda when: when.day),
    "week": _part_of_time(lambda when: when.isocalendar().week),
    "month": _part_of_time(lambda when: when.month),
    "year": _part_of_time(lambda when: when.year),
}
