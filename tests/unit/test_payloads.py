"""What a message may hold: pairs, CEF, LEEF; whatever is in it, in time that grows with its length alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.normalise.payloads import MOST_PAIRS, PAYLOADS


@pytest.mark.parametrize(
    ("kind", "text", "fields"),
    [
        ("pairs", 'a=1 b="two words" c=\'x="y"\' d=', {"a": "1", "b": "two words", "c": 'x="y"', "d": ""}),
        ("pairs", "a=1, b=2; a=3", {"a": "1", "b": "2"}),
        ("pairs", "no pairs here", {}),
        (
            "cef",
            r"CEF:0|Se\|cur|th\\reat|1.0|100|a name|9|src=192.0.2.1 msg=one \= two\nthree cs1Label=x y cs1=z",
            {
                "version": "0", "vendor": "Se|cur", "product": "th\\reat", "device_version": "1.0", "class": "100",
                "name": "a name", "severity": "9", "ext.src": "192.0.2.1", "ext.msg": "one = two\nthree",
                "ext.cs1Label": "x y", "ext.cs1": "z",
            },
        ),
        ("cef", "CEF:0|a|b", {"version": "0", "vendor": "a", "product": "b"}),
        ("cef", "CEF:0|a|b|c|d|e|1|request=http://x/?a=b&c=d act=ok", {
            "version": "0", "vendor": "a", "product": "b", "device_version": "c", "class": "d", "name": "e",
            "severity": "1", "ext.request": "http://x/?a=b&c=d", "ext.act": "ok",
        }),
        ("leef", "LEEF:1.0|v|p|1|logon|src=192.0.2.1\tusr=ann b", {
            "version": "1.0", "vendor": "v", "product": "p", "device_version": "1", "event_id": "logon",
            "ext.src": "192.0.2.1", "ext.usr": "ann b",
        }),
        ("leef", "LEEF:2.0|v|p|1|logon|x5E|src=192.0.2.1^usr=ann", {
            "version": "2.0", "vendor": "v", "product": "p", "device_version": "1", "event_id": "logon",
            "ext.src": "192.0.2.1", "ext.usr": "ann",
        }),
    ],
)  # fmt: skip
def test_what_a_message_holds(kind: str, text: str, fields: dict[str, str]) -> None:
    assert PAYLOADS[kind](text) == fields


@pytest.mark.parametrize("kind", PAYLOADS)
@given(st.text(alphabet="ab=|\\\" \t\n'^x5CEF:L", max_size=300))
def test_no_text_makes_one_raise(kind: str, text: str) -> None:
    for head in ("", "CEF:0|", "LEEF:2.0|v|p|1|e|"):
        found = PAYLOADS[kind](head + text)
        assert all(isinstance(value, str) for value in found.values())
        assert len(found) <= MOST_PAIRS + 7


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("part", ["\\", "|", "a=", "a=b ", '"', "a=\\", 'a="x'])
def test_its_time_grows_with_its_length_alone(kind: str, part: str) -> None:
    """A million characters of what is worst are read in seconds, not in hours."""
    text = "CEF:0|a|b|c|d|e|1|" + part * (1_000_000 // len(part))
    begin = time.process_time()
    PAYLOADS[kind](text)
    assert time.process_time() - begin < 5
