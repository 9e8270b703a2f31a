"""Signed documents: what can be read in two ways is not read."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import TrustError
from agent.trust.encoding import MAX_BYTES, MAX_DEPTH, Shape, read, unbase64


class Document(Shape):
    value: Any = None
    number: int = 0


def test_plain_json_is_read() -> None:
    assert read(Document, b' {"value": [{"a": 1.5, "b": null}], "number": 7}\n', "x").value == [{"a": 1.5, "b": None}]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not plain JSON"),
        (b'{"number": 1, "number": 2}', "key 'number' stands twice"),
        (b'{"value": {"a": 1, "a": 1}}', "key 'a' stands twice"),
        (b'{"value": {"a": 1, "\\u0061": 1}}', "key 'a' stands twice"),
        (b'{"value": NaN}', "not plain JSON"),
        (b'{"value": -Infinity}', "not plain JSON"),
        (b'{"value": 1e999}', "not plain JSON"),
        (b'{"value": ' + b"9" * 5000 + b"}", "not plain JSON"),
        (b'{"value": "\\ud800"}', "not plain JSON"),
        (b'{"value": "\xff"}', "not plain JSON"),
        (b'\xef\xbb\xbf{"value": 1}', "not plain JSON"),
        (b'{"value": 1}x', "not plain JSON"),
        (b'{"value": 1}{"value": 1}', "not plain JSON"),
        (b'{"value": 1,}', "not plain JSON"),
        (b'{"value": /* why */ 1}', "not plain JSON"),
        (b'{"value": 1}\0', "not plain JSON"),
        (b"[1]", "object"),
        (b"null", "object"),
        (b'{"other": 1}', "other: unknown key"),
        (b'{"number": "7"}', "number: .*integer"),
        (b'{"number": 7.0}', "number: .*integer"),
        (b'{"number": true}', "number: .*integer"),
        (b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not plain JSON|deeper"),
        (b'{"value": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "deeper than 32"),
        (b'{"value": "' + b"a" * MAX_BYTES + b'"}', "at most 1048576"),
    ],
    ids=range(25),
)
def test_what_is_not_plain_is_refused_with_its_place(data: bytes, says: str) -> None:
    with pytest.raises(TrustError, match=rf"^the thing: .*({says})"):
        read(Document, data, "the thing")


@pytest.mark.parametrize("text", ["", "YQ", "YQ=", "YR==", "YQ==\n", " YQ==", "YQ==YQ==", "_-8=", "YQ==x", "é"])
def test_base64_that_could_be_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(TrustError, match="canonical base64"):
        unbase64(text, "the thing")


def test_canonical_base64_is_read() -> None:
    assert unbase64("YQ==", "x") == b"a"
