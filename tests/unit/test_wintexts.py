"""Texts that Windows writes into fields are read as a person reads them, and what they do not say is not made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.normalise import domains, wintexts

READERS: list[Callable[[str], Any]] = [
    wintexts.arguments,
    wintexts.answers,
    wintexts.answer_names,
    wintexts.registry_data,
    wintexts.registry_type,
    wintexts.line_of("HostName"),
    domains.split,
]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (r"notepad.exe", ["notepad.exe"]),
        (r'"C:\Program Files\a.exe" /x  "b c"', [r"C:\Program Files\a.exe", "/x", "b c"]),
        (r'a.exe "say \"hi\"" b', ["a.exe", 'say "hi"', "b"]),
        (r'a.exe "C:\dir\\" b', ["a.exe", "C:\\dir\\", "b"]),
        (r"a.exe \\server\share", ["a.exe", r"\\server\share"]),
        (r'a.exe "" b', ["a.exe", "", "b"]),
        (r'a.exe "never closed', ["a.exe", "never closed"]),
        (r'a.exe x="1 2"y', ["a.exe", "x=1 2y"]),
        ("", []),
    ],
)
def test_a_command_line_is_cut_as_its_program_sees_it(line: str, found: list[str]) -> None:
    """Quotes hold blanks and are gone; an escaped one stays; backslashes before anything else are themselves."""
    assert wintexts.arguments(line) == found


def test_answers_and_their_types_go_together() -> None:
    """One type for each answer; an address inside IPv6 is an IPv4 one; what is no answer is left out."""
    text = "type:  5 a.example.net;type: 33 srv.example.net;::ffff:192.0.2.1;2001:db8::1;type: 64999 x;odd;"
    assert wintexts.answers(text) == ["a.example.net", "srv.example.net", "192.0.2.1", "2001:db8::1", "x"]
    assert wintexts.answer_types(text) == ["CNAME", "SRV", "A", "AAAA", "64999"]
    assert wintexts.answer_names(text) == ["a.example.net"]


@pytest.mark.parametrize(
    ("details", "data", "kind"),
    [
        ("DWORD (0x00000004)", "4", "REG_DWORD"),
        ("QWORD (0x00000001-0x00000002)", str((1 << 32) + 2), "REG_QWORD"),
        ("Binary Data", None, "REG_BINARY"),
        (r"C:\a.exe", r"C:\a.exe", None),
    ],
)
def test_registry_data_is_what_was_written(details: str, data: str | None, kind: str | None) -> None:
    """Numbers are in decimal; text says nothing of its type; binary data is not in the log."""
    assert (wintexts.registry_data(details), wintexts.registry_type(details)) == (data, kind)


def test_a_line_is_found_by_its_key() -> None:
    """With or without blanks in the key; an empty value is none; a key is not looked for in the middle of a line."""
    text = "  Host Name = Console Host \r\n\tHostId=7\n\tPipelineId=\n\tConnected User = a\n\tUser = b\n"
    found = {key: wintexts.line_of(key)(text) for key in ("HostName", "HostId", "PipelineId", "User", "Absent")}
    assert found == {"HostName": "Console Host", "HostId": "7", "PipelineId": None, "User": "b", "Absent": None}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("www.example.com", ("www", "example.com", "com")),
        ("example.com.", (None, "example.com", "com")),
        ("a.b.example.co.uk", ("a.b", "example.co.uk", "co.uk")),
        ("x.example.io", ("x", "example.io", "io")),
        ("www.example.gov.bd", ("www", "example.gov.bd", "gov.bd")),
        ("co.uk", None),
        ("www.example.jp", None),
        ("example.jp", (None, "example.jp", "jp")),
        ("www.example.co.jp", ("www", "example.co.jp", "co.jp")),
        ("dc1.corp.local", None),
        ("1.2.0.192.in-addr.arpa", None),
        ("192.0.2.1", None),
        ("2001:db8::1", None),
        ("wpad", None),
        ("a..example.com", None),
        ("", None),
    ],
)
def test_a_name_is_parted_where_the_rule_is_sure(name: str, parts: tuple[str | None, str, str] | None) -> None:
    """By second level, or by third below a country's own labels; else nothing is said."""
    assert domains.split(name) == parts


@given(st.text(max_size=200))
def test_no_text_makes_one_raise(text: str) -> None:
    """Whatever stands in the field, a reader answers."""
    for read in READERS:
        read(text)


@pytest.mark.parametrize("piece", ["\\", '"', '\\"', " ", "type: 5 ;", "Host Name", "a.", "\n"])
def test_time_grows_with_length_alone(piece: str) -> None:
    """Much of anything is read in a moment."""
    text = piece * (300_000 // len(piece))
    begin = time.perf_counter()
    for read in READERS:
        read(text)
    assert time.perf_counter() - begin < 3
