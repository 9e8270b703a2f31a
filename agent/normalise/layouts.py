"""Layouts of JSON that hold their fields in typed values and lists; a mapping's shape names one to have plain sections.

A layout returns the record in sections, or None where the record is not of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Layout: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any] | None]

_WRAPPED = ("resourceLogs", "scopeLogs", "logRecords")
_LONGEST_INTEGER = len(str(-(2**63)))
_UNSET: tuple[Any, ...] = (None, 0, "0", "")
"""What a field of protobuf holds that was never set."""
_TYPED = frozenset({"stringValue", "boolValue", "doubleValue", "bytesValue", "intValue", "arrayValue", "kvlistValue"})


def _otlp(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a log record of OpenTelemetry as the sections `record`, `attributes` and `resource`.

    The document is the record, with its resource beside it, or an export that holds just one record. A body is
    `body.text`, or `body.structured`.
    """
    merged, innermost = dict(document), document
    for name in _WRAPPED if _WRAPPED[0] in document else ():
        items = innermost.get(name)
        if items.__class__ is not list or len(items) != 1 or items[0].__class__ is not dict:
            return None
        innermost = items[0]
        merged |= innermost
    record = {name: _plain(value) for name, value in merged.items() if name not in _WRAPPED and value not in _UNSET}
    body = record.pop("body", None)
    if body is not None:
        record["body.structured" if body.__class__ is dict or body.__class__ is list else "body.text"] = body
    attributes, resource = _section(record, "attributes"), _section(record, "resource")
    if described := _section(resource, "attributes"):
        record |= {"resource": resource} if resource else {}
        resource = described
    return {"record": record, "attributes": attributes, "resource": resource}


def _section(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Take an object out of *record*; anything else stays there."""
    return record.pop(name) if record.get(name).__class__ is dict else {}


def _plain(value: Any) -> Any:
    """Return a value without its type; decoding bounds the depth."""
    if value.__class__ is list:
        return _attributes(value) if value and _is_attribute(value[0]) else list(map(_plain, value))
    if value.__class__ is not dict:
        return value
    if len(value) == 1:
        ((kind, inner),) = value.items()
        if kind in _TYPED:
            return _untyped(kind, inner)
    return {name: _plain(inner) for name, inner in value.items()}


def _untyped(kind: str, value: Any) -> Any:
    if kind == "intValue":
        is_number = value.__class__ is str and len(value) <= _LONGEST_INTEGER and value.removeprefix("-").isdecimal()
        return int(value) if is_number else value
    if value.__class__ is dict:
        return _plain(value.get("values", []))
    return value


def _attributes(items: list[Any]) -> Any:
    """Return a list of keys and values as one object; any other list with its values plain."""
    if all(map(_is_attribute, items)):
        return {item["key"]: _plain(item["value"]) for item in items}
    return list(map(_plain, items))


def _is_attribute(item: Any) -> bool:
    return item.__class__ is dict and "value" in item and item.get("key").__class__ is str


LAYOUTS: Mapping[str, Layout] = {"otlp": _otlp}
