"""Signed bytes as values, read one way only.

JSON here says the same to every reader: no repeated keys, no numbers beyond a float, no depth or size without end, no
key that is not known. Base64 is canonical. Whatever is not so is a TrustError that names the place.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.errors import TrustError

MAX_BYTES = 1 << 20
"""Most bytes of one signed document."""
MAX_DEPTH = 32

_CONTAINERS = (dict, list)


class Shape(BaseModel):
    """What a signed document may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ShapeT = TypeVar("ShapeT", bound=BaseModel)


def read(shape: type[ShapeT], data: bytes, what: str, limit: int = MAX_BYTES) -> ShapeT:
    """Return *data* as a *shape*; TrustError starts with *what* and the key at fault."""
    if len(data) > limit:
        raise TrustError(f"{what}: {len(data)} bytes, at most {limit} are read")
    try:
        _check_depth(orjson.loads(data))
        json.loads(data, object_pairs_hook=_distinct)  # the one reader that sees a key twice
    except ValueError as error:
        raise TrustError(f"{what}: not plain JSON: {error}") from None
    try:
        return shape.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise TrustError(f"{what}: {_say(error)}") from None


def unbase64(text: str, what: str) -> bytes:
    """Return the bytes that *text* is the canonical base64 of."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not text or to_base64(data) != text:
        raise TrustError(f"{what}: expected canonical base64 of at least one byte")
    return data


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, _CONTAINERS) for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"deeper than {MAX_DEPTH} levels")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)[:64]!r} stands twice")
    return value


def _say(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    text = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
    return f"{place[:200]}: {text}" if place else text
