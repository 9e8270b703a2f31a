"""From raw records to native fields, within bounds.

A record that cannot be read gives its reason, never an exception: `decode_all` answers once for each record. Bounds:
2,000 fields and 64 levels a record (the bytes of a record are bounded by its source).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import orjson

from agent.errors import RecordError
from agent.model import DOCUMENT

Raw: TypeAlias = bytes | Mapping[str, Any]
Decoded: TypeAlias = dict[str, Any] | RecordError
"""The native fields, or why there are none."""

MAX_FIELDS = 2_000
MAX_DEPTH = 64
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
        value if _is_flat(value) or _is_small(raw) else _checked(value) for raw, value in zip(raws, values, strict=True)
    ]


def decode_each(raws: Sequence[Raw], read: Callable[[bytes], dict[str, Any]]) -> list[Decoded]:
    """Decode records with *read*, which raises RecordError where it cannot."""
    return [_attempt(raw, read) for raw in raws]


def text_of(raw: Raw) -> str:
    """Return a record as text, whatever it is: undecodable bytes are replaced."""
    return (raw if isinstance(raw, bytes) else dump(raw)).decode("utf-8", "replace")


def original_of(format: str, raw: Raw) -> str | None:
    """Return the event as it was before anybody read it: the record itself, of a stored document what it kept."""
    record = _load(raw)
    if format != DOCUMENT or record.__class__ is not dict:
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
        return RecordError(f"not JSON: {error}")


def _is_flat(value: Any) -> bool:
    """Say cheaply that *value* is an object of few fields and no depth.

    The interpreter does not track a dict for garbage collection while it holds no containers. Where it tracks more than
    that, records only take the slower way through `_checked`.
    """
    return value.__class__ is dict and len(value) <= MAX_FIELDS and not gc.is_tracked(value)


def _is_small(raw: Any) -> bool:
    """Say cheaply that what an object's bytes decode to breaks no bound: each field follows a comma or an opening."""
    if raw.__class__ is not bytes:
        return False
    openings: int = raw.count(b"{") + raw.count(b"[")
    return raw[:1] == b"{" and openings <= MAX_DEPTH and openings + raw.count(b",") <= MAX_FIELDS


def _checked(value: Any) -> Decoded:
    if isinstance(value, RecordError):
        return value
    if value.__class__ is not dict:
        return RecordError("not a JSON object")
    excess = _excess(value)
    return RecordError(excess) if excess else value


def _excess(record: dict[str, Any]) -> str:
    """Say which bound *record* breaks, level by level, so that depth costs no recursion."""
    level: list[Any] = [record.values()]
    fields = 0
    for _ in range(MAX_DEPTH):
        fields += sum(map(len, level))
        if fields > MAX_FIELDS:
            return f"more than {MAX_FIELDS} fields"
        inner = [value for outer in level for value in outer if value.__class__ in _CONTAINERS]
        if not inner:
            return ""
        level = [value.values() if value.__class__ is dict else value for value in inner]
    return f"deeper than {MAX_DEPTH} levels"
