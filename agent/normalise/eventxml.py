"""Windows events as XML text, such as Sysmon for Linux writes to syslog and forwarders keep: read as EVTX is.

A text that is not one event of at most `_MOST` elements is nothing, and so is one that declares entities.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from xml.parsers import expat

_MOST = 2_000
_DEEPEST = 16


class _Refused(Exception):
    pass


class _Element(NamedTuple):
    name: str
    attributes: dict[str, str]
    inner: dict[str, Any]
    texts: list[str]


class _Builder:
    """Builds objects from elements: attributes under ``#attributes``, text beside them under ``#text``."""

    def __init__(self) -> None:
        self._open = [_Element("", {}, {}, [])]
        self._seen = 0

    @property
    def root(self) -> dict[str, Any]:
        return self._open[0].inner

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._seen += 1
        if self._seen > _MOST or len(self._open) > _DEEPEST:
            raise _Refused
        self._open.append(_Element(name, attributes, {}, []))

    def text(self, data: str) -> None:
        self._open[-1].texts.append(data)

    def end(self, _name: str) -> None:
        element = self._open.pop()
        parent, text = self._open[-1].inner, "".join(element.texts)
        if element.name != "Data":
            parent.setdefault(element.name, _value(element, text))
        elif name := element.attributes.get("Name", "").lstrip("#"):
            parent.setdefault(name, text)
        elif (unnamed := parent.setdefault("Data", {"#text": []})).__class__ is dict:
            unnamed["#text"].append(text)


def _value(element: _Element, text: str) -> Any:
    whole = {**element.inner, "#attributes": element.attributes} if element.attributes else element.inner
    if not whole:
        return text or None
    return {**whole, "#text": text} if text.strip() else whole


def read(text: str) -> dict[str, Any] | None:
    """Return the event that *text* is; None if it is none."""
    if "<!" in text:
        return None
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except (_Refused, expat.ExpatError):
        return None
    event = builder.root.get("Event")
    return builder.root if isinstance(event, dict) and isinstance(event.get("System"), dict) else None
