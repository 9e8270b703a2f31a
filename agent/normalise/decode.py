"""From raw records to native fields, within bounds.

A record that cannot be read gives its reason, never an exception: `decode_all` answers once for each record. Bounds:
2,000 fields and 128 levels a record (the bytes of a record are bounded by its source).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import isinf
from typing import Any, NoReturn, TypeAlias

import numpy as np
import orjson

from agent.errors import RecordError
from agent.model import DOCUMENT

Raw: TypeAlias = bytes | Mapping[str, Any]
Decoded: TypeAlias = dict[str, Any] | RecordError
"""The native fields, or why there are none."""

MAX_FIELDS = 2_000
MAX_DEPTH = 128
_MOST_DIGITS = 20
"""Of a whole number of 64 bits, with its sign."""
_CONTAINERS = frozenset({dict, list})


def decode_json(raws: Sequence[Raw]) -> list[Decoded]:
    """Decode records that are one JSON object each."""
    if raws and raws[0].__class__ is dict:
        return [value if _is_flat(value) else _checked(value) for value in map(_load, raws)]
    values: list[Any]
    try:
        values = list(map(orjson.loads, raws))  # type: ignore[arg-type]
    except ValueError:
        values = [_load(raw) for raw in raws]
    return [
        value if _is_flat(value) or is_small(raw) else _checked(value, raw)
        for raw, value in zip(raws, values, strict=True)
    ]


def decode_each(raws: Sequence[Raw], read: Callable[[bytes], dict[str, Any]]) -> list[Decoded]:
    """Decode records with *read*, which raises RecordError where it cannot."""
    return [_attempt(raw, read) for raw in raws]


def text_of(raw: Raw) -> str:
    """Return a record as text, whatever it is: undecodable bytes are replaced."""
    return bytes_of(raw).decode("utf-8", "replace")


def bytes_of(raw: Raw) -> bytes:
    """Return a record as it came, of one that came decoded its JSON."""
    return raw if isinstance(raw, bytes) else dump(raw)


def original_of(format: str, raw: Raw) -> str | None:
    """Return the event as it was before anybody read it: the record itself, of a stored document what it kept."""
    record = _load(raw) if format == DOCUMENT else None
    if record.__class__ is not dict:
        return text_of(raw)
    event = record.get("event")
    kept = event.get("original") if event.__class__ is dict else None
    kept = record.get("event.original") if kept is None else kept
    return kept if isinstance(kept, str) else None


def dump(value: Any) -> bytes:
    """Return *value* as JSON; what JSON or UTF-8 cannot say is replaced."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        return repr(value).encode("utf-8", "replace")


def _attempt(raw: Raw, read: Callable[[bytes], dict[str, Any]]) -> Decoded:
    if not isinstance(raw, bytes):
        return RecordError("expected a line of text, found an object")
    try:
        return read(raw)
    except RecordError as error:
        return error


def _load(raw: Raw) -> Any:
    try:
        if isinstance(raw, Mapping):
            orjson.dumps(raw)  # refuses lone surrogates and depth without end, as loads does for bytes
            return dict(raw)
        return orjson.loads(raw) if raw.strip() else RecordError("empty record")
    except (TypeError, ValueError) as error:
        return _with_any_number(raw) or RecordError(f"not JSON: {error}")


def _with_any_number(raw: Any) -> dict[str, Any] | None:
    """Return the object that *raw* is, if it is one but for numbers that are too large: they are texts then."""
    try:
        value = json.loads(raw.decode(), parse_int=_int, parse_float=_float, parse_constant=_refuse)
        orjson.dumps(value)  # refuses lone surrogates
    except (AttributeError, TypeError, ValueError, RecursionError):
        return None
    return value if value.__class__ is dict and not _excess(value) else None


def _int(text: str) -> int | float | str:
    """Return the number as the decoder of most records does, which has none of more than 64 bits."""
    if len(text) <= _MOST_DIGITS and -(2**63) <= (number := int(text)) < 2**64:
        return number
    return _float(text)


def _float(text: str) -> float | str:
    return text if isinf(number := float(text)) else number


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _is_flat(value: Any) -> bool:
    """Say cheaply that *value* is an object of few fields and no depth.

    The interpreter does not track a dict for garbage collection while it holds no containers. Where it tracks more than
    that, records only take the slower way through `_checked`.
    """
    return value.__class__ is dict and len(value) <= MAX_FIELDS and not gc.is_tracked(value)


def is_small(raw: Any) -> bool:
    """Say cheaply that what an object's bytes decode to breaks no bound.

    What is open at one time was opened; of a row of objects in a list only one is, and each but the first shows as
    ``},{``: what lies in texts as well counts on both sides.
    """
    if raw.__class__ is not bytes or raw[:1] != b"{":
        return False
    openings, commas = _signs(raw)
    is_shallow = openings <= MAX_DEPTH or openings - raw.count(b"},{") <= MAX_DEPTH
    return is_shallow and openings + commas <= MAX_FIELDS


def _signs(raw: bytes) -> tuple[int, int]:
    """Return how many openings *raw* has, and commas: each field follows one of them.

    A field takes two bytes at least, so that of little they need not be counted. Of much the array is faster.
    """
    if len(raw) <= 2 * MAX_FIELDS:
        return raw.count(b"{") + raw.count(b"["), 0
    signs = np.frombuffer(raw, np.uint8)
    openings = int(np.count_nonzero((signs & np.uint8(0xDF)) == np.uint8(0x5B)))  # the braces differ in one bit
    return openings, int(np.count_nonzero(signs == np.uint8(0x2C)))


def _checked(value: Any, raw: Any = None) -> Decoded:
    if isinstance(value, RecordError):
        return value
    if value.__class__ is not dict:
        return RecordError("not a JSON object")
    is_within = raw.__class__ is bytes and sum(_signs(raw)) <= MAX_FIELDS and _is_shallow(value)
    excess = "" if is_within else _excess(value)
    return RecordError(excess) if excess else value


def _is_shallow(record: dict[str, Any]) -> bool:
    """Say cheaply that *record* is not too deep: objects that hold no containers are not looked at, see `_is_flat`."""
    level: list[Any] = [record.values()]
    for _ in range(MAX_DEPTH - 1):
        inner = [*filter(gc.is_tracked, chain.from_iterable(level))]
        if not inner:
            return True
        level = [value.values() if value.__class__ is dict else value for value in inner]
    return False


def _excess(record: dict[str, Any]) -> str:
    """Say which bound *record* breaks, level by level, so that depth costs no recursion."""
    level: list[Any] = [record.values()]
    fields = 0
    for _ in range(MAX_DEPTH):
        fields += sum(map(len, level))
        if fields > MAX_FIELDS:
            return f"more than {MAX_FIELDS} fields"
        inner = [value for value in chain.from_iterable(level) if value.__class__ in _CONTAINERS]
        if not inner:
            return ""
        level = [value.values() if value.__class__ is dict else value for value in inner]
    return f"deeper than {MAX_DEPTH} levels"
