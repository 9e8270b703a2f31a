"""Rules made to cost: each is refused with its place and reason, or runs, in bounded time."""

from __future__ import annotations

import time

import pytest

from rules.sigma.parse import Collection, compile_files
from tests.sigma_events import batch, engine

_HEAD = "title: Hostile\nlogsource: {product: windows}\ndetection:\n"
_SECONDS = 5.0
"""Far above what any of these takes, far below what it would take without its bound."""


def compiled_in_time(text: str) -> Collection:
    begin = time.process_time()
    collection = compile_files([("x.yml", text.encode())])
    assert time.process_time() - begin < _SECONDS
    return collection


def listed(values: list[str], key: str = "A") -> str:
    return f"{_HEAD}  s:\n    {key}:\n" + "".join(f"    - '{value}'\n" for value in values) + "  condition: s\n"


MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MANY = "".join(f"  s{number}: {{A: v{number}}}\n" for number in range(2_000))
WINDASH = [f" -a{number} /b -c" for number in range(2_000)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (listed([str(number) for number in range(100_000)]), "x.yml:1:1: not valid YAML: more than 50000 nodes"),
        (MERGES, "x.yml:3:3: not valid YAML: merge keys (<<) are not read"),
        ("a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)), "50000 nodes"),
        ("a: 1" + ":1" * 200_000 + "\n", "x.yml:1:4: not valid YAML: a number may have at most 400 digits"),
        ("a: 1." + "1" * 1_000 + "\n", "x.yml:1:4: not valid YAML: a number may have at most 400 digits"),
        ("a: " + "[" * 5_000 + "]" * 5_000 + "\n", "x.yml:1:1: not valid YAML: nested more than 64 deep"),
        (f"custom: {'[' * 300}{']' * 300}\n{_HEAD}  s: {{A: x}}\n  condition: s\n", "nested more than 64 deep"),
        (f"{_HEAD}  s: {{A: x, A: y}}\n  condition: s\n", "x.yml:4:13: not valid YAML: key 'A' is given twice"),
        (f"{_HEAD}{MANY}  condition: [{', '.join(['1 of s*'] * 99)}]\n", "x.yml:2004:3: the rule compares more than"),
        (f"{_HEAD}{MANY}  condition: {' or '.join(['1 of them'] * 99)}\n", "the rule compares more than 100000 values"),
        (listed(WINDASH, "A|windash"), "the rule compares more than 100000 values"),
        (f"{_HEAD}  s: {{A: x}}\n  condition: {'(' * 500}s{')' * 500}\n", "x.yml:5:3: a condition may nest at most 32"),
        (f"{_HEAD}  s: {{A: x}}\n  condition: {'not ' * 500}s\n", "x.yml:5:3: a condition may nest at most 32"),
        (f"{_HEAD}  s: {{A: x}}\n  condition: {' or '.join(['s'] * 9_000)}\n", "a condition may have at most 20000"),
        (f"{_HEAD}  s: {{A|re: '(a{{1000}}){{1000}}'}}\n  condition: s\n", "x.yml:4:"),
    ],
)
def test_what_would_grow_without_bounds_is_refused_in_time(text: str, reason: str) -> None:
    """The refusal names file, line, column and the bound."""
    collection = compiled_in_time(text)
    assert not collection.rules
    (refusal,) = collection.refused
    assert reason in refusal


@pytest.mark.parametrize(
    "text",
    [
        listed([f"value {number}" for number in range(20_000)], "A|contains"),
        listed([f"a*{number}?b" for number in range(3_000)]),
        f"{_HEAD}  s: {{A|re: '{'|'.join(f'alt{number}' for number in range(5_000))}'}}\n  condition: s\n",
        f"{_HEAD}{MANY}  condition: 1 of s*\n",
        f"{_HEAD}  s: {{A: x}}\n  condition: {'(' * 32}s{')' * 32}\n",
        f"{_HEAD}  s: {{A: x}}\n  condition: {'not (' * 16}s{')' * 16}\n",
        f"{_HEAD}  s: {{A: x}}\n  condition: {' and '.join(['(s or not s)'] * 1_000)}\n",
    ],
)
def test_what_is_large_but_honest_is_compiled_and_matched_in_time(text: str) -> None:
    """Large lists, long alternations and wide conditions are only work."""
    collection = compiled_in_time(text)
    assert not collection.refused
    begin = time.process_time()
    list(engine(text).match(batch([{"winlog.event_data.A": "x" * 1_000 + str(n)} for n in range(200)])))
    assert time.process_time() - begin < _SECONDS
