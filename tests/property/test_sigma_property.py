"""The fast engine against a slow and plain reading of the specification, over made-up rules and events."""

from __future__ import annotations

import re
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import Dictionary, Kind
from rules.sigma.engine import Engine
from rules.sigma.parse import compile_files
from tests.sigma_events import batch
from tests.sigma_reference import PlainEvent, Reference, texts_of

# --- rules and events -------------------------------------------------------------------------------------------------

LETTERS = 'abAB\\*? .-"é/İß'
TEXTS = ["T", "U"]
text = st.text(LETTERS, max_size=6)
words = st.lists(
    st.sampled_from(["ab", "B", "\\", "a*", "?", "\\*", ".", " ", "é", "A\\\\", "-", " -b", "/a"]), max_size=4
).map("".join)
plain = st.text("abAB -/", min_size=1, max_size=4)
constant = st.sampled_from(["ab", "AB", "b", ""])
DAY = ["2024-02-29T23:59:01Z", "2024-12-30T04:05:06+05:00", "2023-01-01T00:00:00", "no time"]
HOST = ["10.1.2.3", "10.200.0.1", "192.168.1.1", "fe80::1", "2001:db8::7", "x"]

_STRINGS = ["", "|contains", "|startswith", "|endswith", "|cased", "|contains|cased", "|neq", "|contains|neq"]
_EVERY = ["|contains|all", "|endswith|all", "|contains|all|neq"]
_CODED = ["|wide", "|utf16le", "|utf16be|contains", "|base64", "|base64offset|contains", "|wide|base64offset|contains",
          "|utf16|base64|startswith", "|utf16le|base64", "|windash", "|contains|windash"]  # fmt: skip
_REGEX = ["a.b", "^a|b$", "[ab]+-", "(a|B)?é"]


@st.composite
def item(draw: st.DrawFn) -> tuple[str, Any]:
    match draw(st.integers(0, 13)):
        case 0:
            return f"{draw(st.sampled_from(FIELDS))}|exists", draw(st.booleans())
        case 1:
            return draw(st.sampled_from(FIELDS)), None
        case 2:
            return f"{draw(st.sampled_from(FIELDS))}|{draw(st.sampled_from(COMPARISONS))}", draw(st.integers(-3, 12))
        case 3:
            return f"N{draw(st.sampled_from(['', '|neq']))}", draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
        case 4:
            return "B", draw(st.booleans())
        case 5:
            return f"{draw(st.sampled_from(FIELDS))}{draw(st.sampled_from(_CODED))}", draw(
                st.lists(plain, min_size=1, max_size=2)
            )
        case 6:
            flags = draw(st.sampled_from(["", "|i", "|m", "|s", "|i|s", "|neq"]))
            return f"T|re{flags}", draw(st.sampled_from(_REGEX))
        case 7:
            way = draw(st.sampled_from(["", "|startswith", "|endswith", "|contains", "|neq"]))
            return f"{draw(st.sampled_from(TEXTS))}|fieldref{way}", draw(st.sampled_from(FIELDS))
        case 8:
            nets = ["10.0.0.0/8", "10.1.0.0/16", "192.168.1.1/32", "fe80::/10", "2001:db8::/32", "0.0.0.0/0"]
            return "H|cidr", draw(st.lists(st.sampled_from(nets), min_size=1, max_size=2))
        case 9:
            part, number = draw(
                st.sampled_from(
                    [
                        ("minute", 59),
                        ("hour", 23),
                        ("day", 29),
                        ("week", 1),
                        ("week", 52),
                        ("month", 2),
                        ("month", 12),
                        ("year", 2024),
                    ]
                )
            )
            return f"D|{part}", number
        case 10:
            return f"{draw(st.sampled_from(FIELDS))}{draw(st.sampled_from(_EVERY))}", draw(
                st.lists(words, min_size=2, max_size=3)
            )
        case 11:
            return draw(st.sampled_from(TEXTS)), [None, draw(words)]
        case 12:
            return "T|expand", draw(st.sampled_from(["%few%", "a%few%", "%one%*", "%one%%few%"]))
    return draw(st.sampled_from(FIELDS)) + draw(st.sampled_from(_STRINGS)), draw(
        st.lists(words, min_size=1, max_size=3)
    )


FIELDS = ["B", "C", "D", "H", "N", "T", "U"]
COMPARISONS = ["gt", "gte", "lt", "lte"]
PLACEHOLDERS: dict[str, list[Any]] = {"few": ["a", "B*", 7], "one": ["ab"]}
mapping = st.lists(item(), min_size=1, max_size=3).map(dict)
keywords = st.lists(words.filter(bool), min_size=1, max_size=3)
every_keyword = st.lists(words.filter(bool), min_size=2, max_size=3, unique=True).map(lambda each: {"|all": each})
selection = st.one_of(mapping, mapping, mapping, st.lists(mapping, min_size=1, max_size=2), keywords, every_keyword)
NAMES = ["one", "two_a", "two_b", "_hidden"]
ATOMS = [*NAMES, "1 of them", "all of them", "1 of two_*", "all of two*", "any of t*b", "1 of *"]
condition: st.SearchStrategy[str] = st.deferred(
    lambda: st.one_of(
        st.sampled_from(ATOMS),
        st.sampled_from(ATOMS),
        condition.map("not ({})".format),
        st.sampled_from(ATOMS).map("not {}".format),
        st.tuples(condition, st.sampled_from(["and", "or"]), condition).map(" ".join),
        st.tuples(condition, st.sampled_from(["and", "or"]), condition).map(lambda each: f"({' '.join(each)})"),
    )
)
several = st.one_of(st.none(), text, st.lists(text, min_size=1, max_size=3).map(tuple))
event = st.fixed_dictionaries(
    {
        "T": several,
        "U": several,
        "N": st.none() | st.integers(-2, 12),
        "B": st.none() | st.booleans(),
        "D": st.none() | st.sampled_from(DAY),
        "H": st.none() | st.sampled_from(HOST),
        "C": constant,
        "event.original": st.none() | text,
    }
)


@st.composite
def rule(draw: st.DrawFn) -> dict[str, Any]:
    conditions = draw(condition | st.lists(condition, min_size=1, max_size=2))
    return {**{name: draw(selection) for name in NAMES}, "condition": conditions}


def compile_rule(detection: dict[str, Any], number: int) -> str:
    about = {"title": f"Rule {number}", "logsource": {"product": "linux", "service": "auth"}}
    return orjson.dumps({**about, "detection": detection}).decode()  # JSON is YAML


def plainly(one: dict[str, Any]) -> PlainEvent:
    values = {name: texts_of(value) for name, value in one.items() if value is not None}
    raw = values.pop("event.original", ())
    return PlainEvent(values, raw)


@settings(max_examples=300, deadline=None)
@given(st.lists(rule(), min_size=1, max_size=4), st.lists(event, min_size=1, max_size=14), st.booleans(), st.data())
def test_the_engine_agrees_with_the_reference(
    rules: list[dict[str, Any]], events: list[dict[str, Any]], folded: bool, data: st.DataObject
) -> None:
    """Same matches for any rules and events, whether a field is constant in the kind or a column, for every cut."""
    collection = compile_files(
        [("placeholders.yml", orjson.dumps({"placeholders": PLACEHOLDERS}))]
        + [(f"{number}.yml", compile_rule(one, number).encode()) for number, one in enumerate(rules)]
    )
    assert not collection.refused
    expected = {
        (row, f"Rule {number}")
        for number, one in enumerate(rules)
        for reference in [Reference({"detection": one}, PLACEHOLDERS)]
        for row, seen in enumerate(events)
        if reference.holds(plainly(seen))
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
    for refusal in compile_files([("x.yml", content)]).refused:
        assert re.match(r"x\.yml:\d+:\d+: ", refusal)
