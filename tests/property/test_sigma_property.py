"""The fast engine against a slow and plain reading of the specification, over made-up rules and events."""

from __future__ import annotations

import re
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import Dictionary, Kind
from rules.sigma.engine import Engine
from tests.sigma_events import batch, compiled

# --- the reference: plain dicts, one event at a time ------------------------------------------------------------------

TYPED = {"T": "text", "U": "text", "N": "number", "B": "boolean", "C": "constant"}


def texts_of(value: Any) -> list[str]:
    values = [] if value is None else list(value) if isinstance(value, tuple) else [value]
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


def wildcards_to_python(pattern: str) -> str:
    """Return a Python expression for a Sigma string, by its escaping rules."""
    parts, place = [], 0
    while place < len(pattern):
        char, following = pattern[place], pattern[place + 1 : place + 2]
        if char == "\\" and following and following in "*?\\":
            parts.append(re.escape(following))
            place += 1
        else:
            parts.append({"*": ".*", "?": "."}.get(char, re.escape(char)))
        place += 1
    return "".join(parts)


def value_holds(value: Any, modifiers: list[str], wanted: Any) -> bool:
    if wanted is None:
        return value is None
    if "exists" in modifiers:
        return (value is not None) is wanted
    if "gt" in modifiers:
        return any(re.fullmatch(r"-?\d+", text) and int(text) > wanted for text in texts_of(value))
    before = ".*" if {"contains", "endswith"} & set(modifiers) else ""
    after = ".*" if {"contains", "startswith"} & set(modifiers) else ""
    body = wildcards_to_python(wanted) if isinstance(wanted, str) else texts_of(wanted)[0]
    cased = "cased" in modifiers
    expression = f"(?s){before}{body if cased else body.lower()}{after}"
    return any(re.fullmatch(expression, text if cased else text.lower()) for text in texts_of(value))


def selection_holds(selection: dict[str, Any], event: dict[str, Any]) -> bool:
    for key, wanted in selection.items():
        field, *modifiers = key.split("|")
        answers = [
            value_holds(event.get(field), modifiers, one) for one in (wanted if isinstance(wanted, list) else [wanted])
        ]
        if not (all(answers) if "all" in modifiers else any(answers)):
            return False
    return True


def condition_holds(condition: Any, selections: dict[str, Any], event: dict[str, Any]) -> bool:
    if isinstance(condition, str):
        return selection_holds(selections[condition], event)
    way, *parts = condition
    answers = [condition_holds(part, selections, event) for part in parts]
    return not answers[0] if way == "not" else all(answers) if way == "and" else any(answers)


def condition_text(condition: Any) -> str:
    if isinstance(condition, str):
        return condition
    way, *parts = condition
    if way == "not":
        return f"not ({condition_text(parts[0])})"
    return "(" + f" {way} ".join(map(condition_text, parts)) + ")"


# --- rules and events -------------------------------------------------------------------------------------------------

LETTERS = 'abAB\\*? .-"é/İß'
text = st.text(LETTERS, max_size=6)
words = st.lists(st.sampled_from(["ab", "B", "\\", "a*", "?", "\\*", ".", " ", "é", "A\\\\", "-"]), max_size=4).map(
    "".join
)
modifier = st.sampled_from(["", "|contains", "|startswith", "|endswith", "|cased", "|contains|all", "|contains|cased"])
constant = st.sampled_from(["ab", "AB", "b", ""])


@st.composite
def item(draw: st.DrawFn) -> tuple[str, Any]:
    field = draw(st.sampled_from(sorted(TYPED)))
    special = draw(st.integers(0, 9))
    if special == 0:
        return f"{field}|exists", draw(st.booleans())
    if special == 1:
        return field, None
    if special == 2:
        return f"{field}|gt", draw(st.integers(-3, 12))
    if field == "N" and special < 6:
        return field, draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
    if field == "B" and special < 6:
        return field, draw(st.booleans())
    return field + draw(modifier), draw(st.lists(words, min_size=1, max_size=3))


selection = st.lists(item(), min_size=1, max_size=3).map(dict)
NAMES = ["one", "two", "three"]
condition: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.tuples(st.just("not"), condition),
        st.tuples(st.sampled_from(["and", "or"]), condition, condition),
    )
)
several = st.one_of(st.none(), text, st.lists(text, min_size=1, max_size=3).map(tuple))
event = st.fixed_dictionaries(
    {"T": several, "U": several, "N": st.none() | st.integers(-2, 12), "B": st.none() | st.booleans(), "C": constant}
)


@st.composite
def rule(draw: st.DrawFn) -> tuple[dict[str, Any], Any]:
    return {name: draw(selection) for name in NAMES}, draw(condition)


def compile_rule(selections: dict[str, Any], condition: Any, number: int) -> str:
    rule = {
        "title": f"Rule {number}",
        "logsource": {"product": "linux", "service": "auth"},
        "detection": {**selections, "condition": condition_text(condition)},
    }
    return orjson.dumps(rule).decode()  # JSON is YAML


@settings(max_examples=300, deadline=None)
@given(st.lists(rule(), min_size=1, max_size=4), st.lists(event, min_size=1, max_size=14), st.booleans(), st.data())
def test_the_engine_agrees_with_the_reference(
    rules: list[tuple[dict[str, Any], Any]], events: list[dict[str, Any]], folded: bool, data: st.DataObject
) -> None:
    """Same matches for any rules and events, whether a field is constant in the kind or a column, for every cut."""
    collection = compiled(*(compile_rule(*one, number) for number, one in enumerate(rules)))
    loaded = [next((r for r in collection.rules if r.title == f"Rule {n}"), None) for n in range(len(rules))]
    expected = {
        (row, f"Rule {number}")
        for number, (selections, condition) in enumerate(rules)
        if loaded[number] is not None
        for row, one in enumerate(events)
        if condition_holds(condition, selections, one)
    }
    dataset = ("event.dataset", "system.auth")
    kinds = [Kind("auth", (("C", one["C"]), dataset) if folded else (dataset,)) for one in events]
    rows = [{name: value for name, value in one.items() if not (folded and name == "C")} for one in events]
    engine, shared, found = Engine(collection.rules), dict[str, Dictionary](), set()
    cut = data.draw(st.integers(0, len(events)))
    for start, part, of_part in ((0, rows[:cut], kinds[:cut]), (cut, rows[cut:], kinds[cut:])):
        if part:
            found |= {(start + row, r.title) for row, r in engine.match(batch(part, of_part, shared))}
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_rules_or_refusals(content: bytes) -> None:
    """No file makes the loader raise, and every refusal names its file and line."""
    from rules.sigma.parse import compile_files

    for refusal in compile_files([("x.yml", content)]).refused:
        assert re.match(r"x\.yml:\d+: ", refusal)
