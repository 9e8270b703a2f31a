"""Event times: the bulk reader and the single one agree, and what is no time is none."""

from __future__ import annotations

from typing import Any

import pytest

from agent.model import NO_TIME, SECOND
from agent.normalise.clock import parse, parse_all, to_text

NEW_YEAR = 1_704_067_200 * SECOND


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-01T00:00:00Z", NEW_YEAR),
        ("2024-01-01 00:00:00", NEW_YEAR),
        ("2024-01-01T00:00:00.1Z", NEW_YEAR + 100_000),
        ("2024-01-01 00:00:00.123", NEW_YEAR + 123_000),
        ("2024-01-01T00:00:00.123456789Z", NEW_YEAR + 123_456),
        ("2024-01-01T01:00:00+01:00", NEW_YEAR),
        ("2024-01-01", NEW_YEAR),
        ("2024-02-29T00:00:00Z", NEW_YEAR + 59 * 86_400 * SECOND),
        ("1601-01-02T00:00:00Z", -11_644_387_200 * SECOND),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
        (1_704_067_200, NEW_YEAR),
        (1_704_067_200.5, NEW_YEAR + 500_000),
        (1_704_067_200_000, NEW_YEAR),
        ("Mon Jan  1 00:00:00 2024", NEW_YEAR),
        ("Mon Jan 01 00:00:00.250 2024", NEW_YEAR + 250_000),
        ("01/Jan/2024:01:00:00 +0100", NEW_YEAR),
        ("01/Jan/2024:00:00:00.250", NEW_YEAR + 250_000),
        ("2024/01/01 00:00:00", NEW_YEAR),
        ("240101  0:00:00", NEW_YEAR),
        ("2024-01-01  0:00:00", NEW_YEAR),
        ("2024-01-01T0:00:00.250Z", NEW_YEAR + 250_000),
        ("691231 23:59:59", 3_155_759_999 * SECOND),
        ("700101  0:00:01", SECOND),
    ],
)
def test_times(text: Any, expected: int) -> None:
    """ISO 8601 and Unix times, with or without zone (UTC), to the microsecond."""
    assert parse_all([text]).tolist() == [expected]
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["1601-01-01T00:00:00Z", "1601-01-01T00:00:00.000000Z", "0001-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z", 0],
)
def test_zero_times_are_no_time(text: Any) -> None:
    """The zero of Windows, Go and Unix says that a clock was never set."""
    assert parse_all([text]).tolist() == [NO_TIME]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "yesterday",
        "2024-13-01T00:00:00Z",
        "241301  0:00:00",
        "Mon Foo 01 00:00:00 2024",
        "2023-02-29T00:00:00Z",
        "2024-01-01T24:00:01Z",
        "2024-01-01T00:00:00Zjunk",
        "2024-01-01 00:00:00 junk",
        "2024-01-01 00:00:00 IST",
        "2024-01-01T00:00:00.1234567890123456789012345678901234567890Z" * 9,
        "٢٠٢٤-01-01T00:00:00Z",
        True,
        float("nan"),
        [],
        {"x": 1},
        -1,
        1e300,
    ],
)
def test_what_is_no_time(text: Any) -> None:
    """Anything else has no time, and stops nothing."""
    assert parse_all(["2024-01-01T00:00:00Z", text]).tolist() == [NEW_YEAR, NO_TIME]


def test_text_form() -> None:
    """Milliseconds as ECS writes them, microseconds where there are any."""
    assert to_text(NEW_YEAR + 5_000) == "2024-01-01T00:00:00.005Z"
    assert to_text(NEW_YEAR + 5) == "2024-01-01T00:00:00.000005Z"
