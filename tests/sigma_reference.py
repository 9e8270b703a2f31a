"""A slow and plain reading of the Sigma specification, to hold the fast engine against. It shares no code with it.

One rule, one event, no index, no columns: a rule is its parsed YAML, an event gives the values of a field by the name
that the rule uses. Where the specification leaves a choice, the choices are those of the product's documentation: a
`null` holds for an absent field, all values are compared by their text and without regard to case, a field with several
values holds if one does, and a keyword is sought in each value.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

_DASHES = "-/–—―"
_MEMO = 20_000
_TIMES: dict[str, Callable[[datetime], int]] = {
    "minute": lambda when: when.minute,
    "hour": lambda when: when.hour,
    "day": lambda when: when.day,
    "week": lambda when: when.isocalendar().week,
    "month": lambda when: when.month,
    "year": lambda when: when.year,
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
}


class Event(Protocol):
    def texts(self, field: str) -> tuple[str, ...]:
        """Return a field's values as texts; none if the event does not have it."""

    def words(self) -> Iterable[str]:
        """Return every value of the event."""


@dataclass(frozen=True)
class PlainEvent:
    """An event as a dict of a rule's own names."""

    values: Mapping[str, tuple[str, ...]]
    everything: tuple[str, ...] = ()

    def texts(self, field: str) -> tuple[str, ...]:
        return self.values.get(field, ())

    def words(self) -> Iterable[str]:
        return self.everything


def texts_of(value: Any) -> tuple[str, ...]:
    """Return a value, or several, as the texts that rules compare."""
    values = [] if value is None else list(value) if isinstance(value, tuple) else [value]
    return tuple(map(_text, values))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


# --- values and modifiers ---------------------------------------------------------------------------------------------

Wild = tuple[str | None, ...]
"""Characters; None stands for any characters, the empty text for exactly one."""


@dataclass(frozen=True)
class _Wanted:
    """A value of a rule on its way through the modifiers."""

    kind: str
    value: Any
    cased: bool = False
    flags: str = ""
    before: bool = False
    after: bool = False


def wildcards(text: str) -> Wild:
    """Return the characters of a Sigma string, by its rules of escaping."""
    found: list[str | None] = []
    place = 0
    while place < len(text):
        char = text[place]
        if char == "\\" and text[place + 1 : place + 2] in ("*", "?", "\\"):
            found.append(text[place + 1])
            place += 2
            continue
        found.append(None if char == "*" else "" if char == "?" else char)
        place += 1
    return tuple(found)


def _first(value: Any, placeholders: bool) -> _Wanted:
    if value is None:
        return _Wanted("null", None)
    if isinstance(value, str):
        return _Wanted("expand" if placeholders else "text", value if placeholders else wildcards(value))
    return _Wanted("bool" if isinstance(value, bool) else "number", value)


def _modify(wanted: _Wanted, modifier: str, original: Any) -> list[_Wanted]:
    """Return what a modifier makes of a value."""
    value = wanted.value
    match modifier:
        case "contains" | "startswith" | "endswith":
            return [
                replace(
                    wanted,
                    before=wanted.before or modifier != "startswith",
                    after=wanted.after or modifier != "endswith",
                )
            ]
        case "cased":
            return [replace(wanted, cased=True)]
        case "re":
            return [_Wanted("regex", original)]
        case "i" | "m" | "s":
            return [replace(wanted, flags=wanted.flags + modifier)]
        case "windash":
            return [replace(wanted, value=one) for one in _dashed(value)]
        case "wide" | "utf16le" | "utf16be":
            code = "utf-16-be" if modifier == "utf16be" else "utf-16-le"
            parts = [one.encode(code).decode() if one else [one] for one in value]
            return [replace(wanted, value=tuple(itertools.chain(*parts)))]
        case "utf16":
            (wide,) = _modify(wanted, "wide", original)
            return [replace(wide, value=("\ufeff", *wide.value))]
        case "base64":
            return [replace(wanted, value=tuple(base64.b64encode(_bytes(value)).decode()))]
        case "base64offset":
            return [replace(wanted, value=tuple(one)) for one in _offsets(_bytes(value))]
        case "cidr" | "fieldref" | "exists":
            return [replace(wanted, kind=modifier, value=original)]
        case "lt" | "lte" | "gt" | "gte" | "minute" | "hour" | "day" | "week" | "month" | "year":
            return [replace(wanted, kind=modifier)]
    assert modifier in ("all", "neq", "expand"), modifier
    return [wanted]


def _dashed(value: Wild) -> list[Wild]:
    """Return *value* with each dash or slash that begins a word in every spelling."""
    text = [one or " " for one in value]
    choices = []
    for place, one in enumerate(value):
        inside = place > 0 and _is_word(text[place - 1])
        begins = one in ("-", "/") and not inside and place + 1 < len(text) and _is_word(text[place + 1])
        choices.append(_DASHES if begins else [one])
    return [tuple(one) for one in itertools.product(*choices)]


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _bytes(value: Wild) -> bytes:
    text = "".join(one or "" for one in value)
    return b"\xff\xfe" + text[1:].encode() if text.startswith("\ufeff") else text.encode()


def _offsets(data: bytes) -> list[str]:
    """Return the characters that *data* alone decides, for each of the three places it can have in Base64."""
    found = []
    for shift in range(3):
        bits = "".join(f"{byte:08b}" for byte in data)
        skip = -(shift * 8) % 6
        bits = bits[skip:]
        bits = bits[: len(bits) // 6 * 6]
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        found.append("".join(alphabet[int(bits[at : at + 6], 2)] for at in range(0, len(bits), 6)))
    return found


def _number(text: str) -> float | None:
    if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", text):
        return None
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,399}", text) else float(text)


def _is_in(network: str, text: str) -> bool:
    try:
        return ipaddress.ip_address(text) in ipaddress.ip_network(network)
    except ValueError:
        return False


def _part_of_time(part: str, text: str) -> int | None:
    try:
        when = datetime.fromisoformat(text)
        return _TIMES[part](when.astimezone(UTC) if when.tzinfo else when)
    except (ValueError, OverflowError):
        return None


def _expression(wanted: _Wanted) -> re.Pattern[str]:
    """Return the expression for a text with wildcards, over the whole value."""
    body = "".join(".*" if one is None else re.escape(one) if one else "." for one in wanted.value)
    return re.compile(f"(?s:{'.*' if wanted.before else ''}{body}{'.*' if wanted.after else ''})")


def _test(wanted: _Wanted, keyword: bool) -> Callable[[str], bool]:
    """Return whether one text is what is wanted."""
    value = wanted.value
    if wanted.kind in ("number", "bool"):
        wanted = replace(wanted, kind="text", value=tuple(_text(value)))
    match wanted.kind:
        case "text":
            if keyword:
                wanted = replace(wanted, before=True, after=True)
            lower = [one if wanted.cased or not one else one.lower() for one in wanted.value]
            expression = _expression(replace(wanted, value=lower))
            return lambda text: bool(expression.fullmatch(text if wanted.cased else text.lower()))
        case "regex":
            flags = [{"i": re.I, "m": re.M, "s": re.S}[flag] for flag in wanted.flags]
            expression = re.compile(value, sum(flags, re.RegexFlag(0)))
            return lambda text: bool(expression.search(text))
        case "cidr":
            return lambda text: _is_in(value, text)
        case kind if kind in _COMPARISONS:
            return lambda text: (number := _number(text)) is not None and _COMPARISONS[kind](number, value)
    return lambda text: _part_of_time(wanted.kind, text) == value


@dataclass
class _Item:
    """One line of a selection: a field, or keywords, with its modifiers and values."""

    field: str
    groups: list[list[_Wanted]]
    every: bool
    negated: bool
    tests: list[list[Callable[[str], bool]]] = field(default_factory=list)
    memo: dict[tuple[str, ...], list[bool]] = field(default_factory=dict)

    @classmethod
    def read(cls, key: str, written: Any, placeholders: Mapping[str, Sequence[Any]]) -> _Item:
        name, *modifiers = key.split("|")
        groups = []
        for value in written if isinstance(written, list) else [written]:
            group = [_first(value, "expand" in modifiers)]
            if group[0].kind == "expand":
                group = [_Wanted("text", one) for one in _expanded(value, placeholders)]
            for modifier in modifiers:
                group = [one for each in group for one in _modify(each, modifier, value)]
            groups.append(group)
        return cls(name, groups, "all" in modifiers, "neq" in modifiers)

    def holds(self, event: Event) -> bool:
        texts = event.texts(self.field) if self.field else tuple(event.words())
        if any(one.kind == "fieldref" for group in self.groups for one in group):
            answers = [any(_same(one, texts, event) for one in group) for group in self.groups]
        else:
            known = self.memo.get(texts)
            if known is None:
                if len(self.memo) >= _MEMO:
                    self.memo.clear()
                known = self.memo[texts] = [self._any(number, texts) for number in range(len(self.groups))]
            answers = known
        return (all(answers) if self.every else any(answers)) != self.negated

    def _any(self, number: int, texts: tuple[str, ...]) -> bool:
        if not self.tests:
            self.tests = [[_test(one, not self.field) for one in group] for group in self.groups]
        for one, test in zip(self.groups[number], self.tests[number], strict=True):
            if one.kind == "null":
                found = not texts
            elif one.kind == "exists":
                found = bool(texts) is one.value
            else:
                found = any(map(test, texts))
            if found:
                return True
        return False


def _expanded(written: str, placeholders: Mapping[str, Sequence[Any]]) -> list[Wild]:
    """Return a text with its placeholders replaced by each of their values."""
    parts = re.split(r"(?<!\\)%(\w+)%", written)
    choices = [
        [wildcards(part.replace("\\%", "%"))]
        if number % 2 == 0
        else [wildcards(_text(value)) for value in placeholders[part]]
        for number, part in enumerate(parts)
    ]
    return [tuple(itertools.chain(*one)) for one in itertools.product(*choices)]


def _same(wanted: _Wanted, texts: tuple[str, ...], event: Event) -> bool:
    """Compare with the values of another field."""
    for left, right in itertools.product(texts, event.texts(wanted.value)):
        one, other = left.lower(), right.lower()
        if wanted.before and wanted.after:
            found = other in one
        elif wanted.after:
            found = one.startswith(other)
        elif wanted.before:
            found = one.endswith(other)
        else:
            found = one == other
        if found:
            return True
    return False


# --- selections and conditions ----------------------------------------------------------------------------------------

Holds = Callable[[Event], bool]


def _selection(written: Any, placeholders: Mapping[str, Sequence[Any]]) -> Holds:
    if isinstance(written, dict):
        items = [_Item.read(str(key), value, placeholders) for key, value in written.items()]
        return lambda event: all(item.holds(event) for item in items)
    if isinstance(written, list):
        parts = [_selection(one, placeholders) for one in written]
        return lambda event: any(part(event) for part in parts)
    return _Item.read("", written, placeholders).holds


class Reference:
    """A rule, read plainly. *filters* are conditions of filter documents, which must hold as well."""

    def __init__(self, rule: Mapping[str, Any], placeholders: Mapping[str, Sequence[Any]] | None = None) -> None:
        detection = dict(rule.get("detection") or rule["filter"])
        conditions = detection.pop("condition")
        detection.pop("timeframe", None)
        detection.pop("rules", None)
        self._parts = {name: _selection(one, placeholders or {}) for name, one in detection.items()}
        self._conditions = [self._parse(one) for one in (conditions if isinstance(conditions, list) else [conditions])]

    def holds(self, event: Event) -> bool:
        return any(condition(event) for condition in self._conditions)

    def _parse(self, condition: str) -> Holds:
        waiting = re.findall(r"[()]|[^\s()]+", condition)
        found = self._either(waiting)
        assert not waiting, f"left over: {waiting}"
        return found

    def _either(self, waiting: list[str]) -> Holds:
        parts = [self._both(waiting)]
        while waiting and waiting[0].lower() == "or":
            waiting.pop(0)
            parts.append(self._both(waiting))
        return lambda event: any(part(event) for part in parts)

    def _both(self, waiting: list[str]) -> Holds:
        parts = [self._negated(waiting)]
        while waiting and waiting[0].lower() == "and":
            waiting.pop(0)
            parts.append(self._negated(waiting))
        return lambda event: all(part(event) for part in parts)

    def _negated(self, waiting: list[str]) -> Holds:
        token = waiting.pop(0)
        if token.lower() == "not":
            inner = self._negated(waiting)
            return lambda event: not inner(event)
        if token == "(":
            found = self._either(waiting)
            assert waiting.pop(0) == ")"
            return found
        if token.lower() in ("1", "any", "all") and waiting and waiting[0].lower() == "of":
            waiting.pop(0)
            parts = self._matching(waiting.pop(0))
            return (
                (lambda event: all(part(event) for part in parts))
                if token.lower() == "all"
                else (lambda event: any(part(event) for part in parts))
            )
        return self._parts[token]

    def _matching(self, pattern: str) -> list[Holds]:
        pattern = "*" if pattern == "them" else pattern
        expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        return [
            part
            for name, part in self._parts.items()
            if expression.fullmatch(name) and (not name.startswith("_") or pattern.startswith("_"))
        ]
