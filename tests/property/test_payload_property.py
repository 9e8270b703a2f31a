"""The quick ways through structured data and CEF give what their expressions give, or leave it to them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.normalise import payloads

PARTS = [
    "[",
    "]",
    ";",
    " ",
    '"',
    '="',
    ':"',
    '::"',
    "\\",
    '\\"',
    "=",
    "\t",
    "|",
    "name",
    "a-b",
    "A_b",
    "1",
    "é",
    "x" * 101,
    "\n",
]
PAIRS = [
    ' a="1"',
    '; Name:"two words"',
    ' b::"c"',
    ' x="y:"',
    ' x=" y=" z="',
    " src=1.2.3.4",
    " cs1=a b",
    " u=http://h/?q=1",
]
TEXTS = st.lists(st.sampled_from(PARTS + PAIRS * 3), max_size=30).map("".join)


@settings(max_examples=2_000, deadline=None)
@given(TEXTS)
def test_quotes_alone_part_names_from_values(text: str) -> None:
    quick = payloads._unquoted(text)
    slow = [(payloads._key(name), value) for name, value in payloads._first(payloads._STRUCTURED, text)]
    assert quick in ([], slow)


@settings(max_examples=2_000, deadline=None)
@given(TEXTS)
def test_blanks_alone_part_values_from_keys(text: str) -> None:
    keys, values = payloads._by_keys(text)
    quick = payloads._by_blanks(text)
    assert quick is None or (quick[0], [*map(str.strip, quick[1])]) == (keys, [*map(str.strip, values)])


def test_the_quick_ways_are_taken() -> None:
    text = '[action:"Accept"; flags:"444676"; ifdir:"out"; sys_message::"x"; note:"a \\] b"]'
    assert [name for name, _ in payloads._unquoted(text)] == ["action", "flags", "ifdir", "note"]
    assert payloads._by_blanks("src=1.2.3.4 msg=two words dpt=80") == (
        ["src", "msg", "dpt"],
        ["1.2.3.4", "two words", "80"],
    )
