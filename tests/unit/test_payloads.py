"""What a message may hold: pairs, CEF, LEEF, records of auditd, packets; it is read in time linear in its length."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.normalise import payloads
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
                "name": "a name", "severity": "9", "extensions.src": "192.0.2.1", "extensions.msg": "one = two\nthree",
                "extensions.cs1Label": "x y", "extensions.cs1": "z",
            },
        ),
        ("cef", "CEF:0|a|b", {"version": "0", "vendor": "a", "product": "b"}),
        ("cef", "CEF:0|a|b|c|d|e|1|request=http://x/?a=b&c=d act=ok", {
            "version": "0", "vendor": "a", "product": "b", "device_version": "c", "class": "d", "name": "e",
            "severity": "1", "extensions.request": "http://x/?a=b&c=d", "extensions.act": "ok",
        }),
        ("leef", "LEEF:1.0|v|p|1|logon|src=192.0.2.1\tusr=ann b", {
            "version": "1.0", "vendor": "v", "product": "p", "device_version": "1", "event_id": "logon",
            "extensions.src": "192.0.2.1", "extensions.usr": "ann b",
        }),
        ("leef", "LEEF:2.0|v|p|1|logon|x5E|src=192.0.2.1^usr=ann", {
            "version": "2.0", "vendor": "v", "product": "p", "device_version": "1", "event_id": "logon",
            "extensions.src": "192.0.2.1", "extensions.usr": "ann",
        }),
        ("audit", "1700000000.007:9): a=1 b=? c=(null) msg='a=2 d=\"x y\"'", {
            "time": 1_700_000_000_007, "sequence": "9", "a": "1", "d": "x y",
        }),
        ("audit", "1.000:1): syscall=59 a0=4142 comm=6C7320", {
            "time": 1000, "sequence": "1", "syscall": "59", "a0": "4142", "comm": "ls ",
        }),
        ("audit", "1.000:1): argc=3 a0=6C73 a1=10 a2=0A00", {  # what decodes to nothing readable is no text
            "time": 1000, "sequence": "1", "argc": "3", "a0": "ls", "a1": "10", "a2": "0A00",
            "args": ["ls", "10", "0A00"], "command": "ls 10 0A00",
        }),
        ("audit", "1.000:1): cmd=6C73202D6C", {
            "time": 1000, "sequence": "1", "args": ["ls", "-l"], "argc": 2, "command": "ls -l",
        }),
        ("audit", "1.000:1): data=6C730D7F name=C3A9FF", {
            "time": 1000, "sequence": "1", "data": "ls^M^?", "name": "é\\xff",
        }),
        ("packet", "IN=a OUT= SRC=192.0.2.1 LEN=9 ID=1 DF PROTO=ICMPv6 TYPE=8 LEN=5 ID=2 SYN [SRC=192.0.2.2 ]", {
            "IN": "a", "SRC": "192.0.2.1", "LEN": "9", "ID": "1", "fragment": ["DF"], "transport": "ipv6-icmp",
            "TYPE": "8", "PROTO_LEN": "5", "PROTO_ID": "2", "flags": ["SYN"],
        }),
        ("packet", "IN= MAC=02:00:00:00:00:01:02:00:00:00:00:02:86:dd PROTO=17", {
            "MAC_TO": "02:00:00:00:00:01", "MAC_FROM": "02:00:00:00:00:02", "ETHER": "0x86dd", "transport": "17",
        }),
    ],
)  # fmt: skip
def test_what_a_message_holds(kind: str, text: str, fields: dict[str, Any]) -> None:
    assert PAYLOADS[kind](text) == fields


@pytest.mark.parametrize("kind", PAYLOADS)
@given(st.text(alphabet="ab=|\\\" \t\n'^x5CEF:L", max_size=300))
def test_no_text_makes_one_raise(kind: str, text: str) -> None:
    for head in ("", "CEF:0|", "LEEF:2.0|v|p|1|e|", "1700000000.250:7): a0=41 a1[0]=", "IN=a OUT= PROTO=TCP "):
        found = PAYLOADS[kind](head + text)
        assert all(isinstance(value, str | int | list) for value in found.values())
        assert len(found) <= 2 * MOST_PAIRS


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("part", ["\\", "|", "a=", "a=b ", '"', "a=\\", 'a="x'])
def test_its_time_grows_with_its_length_alone(kind: str, part: str) -> None:
    """A million characters of what is worst are read in seconds, not in hours."""
    text = "CEF:0|a|b|c|d|e|1|" + part * (1_000_000 // len(part))
    begin = time.process_time()
    PAYLOADS[kind](text)
    assert time.process_time() - begin < 5


def test_texts_that_never_come_again_do_not_crowd_out_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered begins anew when it is full: a flood of odd texts makes no other sender slow for good."""
    monkeypatch.setattr(payloads, "_MOST_NAMES", 8)
    for number in range(100):
        payloads._structured(f'[odd{number}="1"]')
        payloads._cef(f"CEF:0|a|b|1|c|d|1|odd{number}=1")
        assert len(payloads._NAMES) <= 8
        assert len(payloads._CEF_KEYS) <= 8
    assert payloads._structured('[user="ann"]') == {"user": "ann"}
    payloads._cef("CEF:0|a|b|1|c|d|1|src=1.2.3.4")
    assert " [user=" in payloads._NAMES
    assert "src" in payloads._CEF_KEYS
