"""Lines of no known form: what is read of them, and what is not claimed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.normalise.clock import parse, to_text
from agent.normalise.guess import guess


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("[2024-01-02 03:04:05,678] x", "2024-01-02T03:04:05.678Z"),
        ("INFO 2024/01/02 03:04:05 x", "2024-01-02T03:04:05.000Z"),
        ("2024-01-02T03:04:05.5 +0200 x", "2024-01-02T01:04:05.500Z"),
        ("2024-01-02 03:04:05 UTC x", "2024-01-02T03:04:05.000Z"),
        ('10.0.0.1 "05/Mar/2024:11:00:00 +0100" x', "2024-03-05T10:00:00.000Z"),
        ("Mar  5 2024 11:00:00: x", "2024-03-05T11:00:00.000Z"),
        ("1700000000.25 x", "2023-11-14T22:13:20.250Z"),
        ("1700000000250,x", "2023-11-14T22:13:20.250Z"),
    ],
)
def test_times_near_the_beginning(line: str, time: str) -> None:
    """The forms of time that logs of all kinds use are found where a line begins."""
    assert to_text(parse(guess(line)["time"])) == time


@pytest.mark.parametrize("line", ["x" * 300 + " 2024-01-02 03:04:05", "id 17000000001 x", "version 2024.01.02", ""])
def test_what_is_no_time(line: str) -> None:
    """Numbers and places far into the line are not taken for its time."""
    assert "time" not in guess(line)


def test_addresses_are_found_once() -> None:
    """Addresses come in their order, each once; times of day, hardware addresses and versions are none."""
    line = "10.0.0.1:80 -> [2001:db8::1]:443 10.0.0.1 12:34:56 aa:bb:cc:dd:ee:ff 1.2.3.4.5 300.1.1.1 x10.9.9.9"
    assert guess(line)["addresses"] == ["10.0.0.1", "2001:db8::1"]


def test_pairs() -> None:
    """Pairs are there under their own names."""
    assert guess('user="ann b" src=192.0.2.1, x')["guessed"] == {"user": "ann b", "src": "192.0.2.1"}


@given(st.text(max_size=200))
def test_no_text_makes_it_raise(text: str) -> None:
    """Any text is read, and stays whole."""
    assert guess(text)["message"] == text
