"""Copies of the log in a SIEM or a file: a document for each leaf and each checkpoint, and the log read from them.

A pipeline and a SIEM change documents, so the exact bytes lie in it as base64, in fields that nothing rewrites; the
other fields are for people. Ids derive from the log's name and the number, so a copy that is written again is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import orjson

from agent.audit.leaf import Entry, decode
from agent.audit.merkle import leaf_hash
from agent.audit.note import decode64, encode64
from agent.errors import TrustError
from agent.model import Document, Timestamp, digest
from agent.normalise.catalogue import catalogue
from agent.normalise.clock import to_text

_VERSION = version("vedette")


def of_leaf(origin: str, entry: Entry) -> Document:
    """Return the document that stands for a leaf."""
    leaf = decode(entry.data)
    act = leaf.act
    event = {"action": leaf.action, "category": list(act.category), "type": [act.type], "outcome": act.outcome}
    audit = {
        "number": entry.number,
        "leaf": encode64(entry.data),
        "hash": leaf_hash(entry.data).hex(),
        **({"members": [encode64(one) for one in entry.members]} if entry.members else {}),
    }
    document = _document(origin, leaf.time, leaf.sentence, event, audit)
    if leaf.actor:
        document["user"] = {"name": leaf.actor}
    if leaf.stream:
        document["vedette"]["stream"] = leaf.stream
    return Document(digest("leaf", origin, entry.number), orjson.dumps(document), dataset="audit")


def of_checkpoint(origin: str, size: int, time: Timestamp, note: str) -> Document:
    """Return the document that stands for a checkpoint."""
    event = {"action": "checkpoint", "type": ["info"], "outcome": "success"}
    document = _document(origin, time, f"checkpoint of {size:,} leaves", event, {"checkpoint": note})
    return Document(digest("checkpoint", origin, size), orjson.dumps(document), dataset="audit")


def _document(
    origin: str, time: Timestamp, message: str, event: Mapping[str, Any], audit: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "@timestamp": to_text(time),
        "ecs": {"version": catalogue().version},
        "message": message,
        "event": {"kind": "event", "module": "vedette", "dataset": "vedette.audit", **event},
        "observer": {"vendor": "Vedette", "product": "vedette", "type": "siem-agent", "version": _VERSION},
        "vedette": {"audit": {"origin": origin, **audit}},
    }


class Copy:
    """A log as its copies tell it, from lines of JSON: documents, hits that hold them, or whole search answers.

    Documents of other logs and of anything else are passed over; order does not matter and a copy may be there twice,
    if it says the same. TrustError for lines that cannot be read.
    """

    def __init__(self, lines: Iterable[bytes], origin: str) -> None:
        self._entries: dict[int, Entry] = {}
        self._checkpoints: dict[str, None] = {}
        for number, line in enumerate(lines, 1):
            try:
                for document in _documents(orjson.loads(line)) if line.strip() else ():
                    self._add(document, origin)
            except TrustError as error:
                raise TrustError(f"copy, line {number:,}: {error}") from None
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise TrustError(f"copy, line {number:,}: no document of an audit log ({error})") from None

    def leaves(self) -> Iterator[Entry]:
        """Yield the leaves that are there, by number."""
        for number in sorted(self._entries):
            yield self._entries[number]

    def checkpoints(self) -> list[str]:
        return list(self._checkpoints)

    def _add(self, document: Mapping[str, Any], origin: str) -> None:
        own = document.get("vedette")
        audit = own.get("audit") if isinstance(own, Mapping) else None
        if not isinstance(audit, Mapping) or audit.get("origin") != origin:
            return
        if "checkpoint" in audit:
            self._checkpoints[str(audit["checkpoint"])] = None
            return
        members = audit.get("members", [])
        texts = members if isinstance(members, list) else [members]
        entry = Entry(int(audit["number"]), decode64(audit["leaf"]), tuple(map(decode64, texts)))
        if self._entries.setdefault(entry.number, entry) != entry:
            raise TrustError(f"there are two of leaf {entry.number:,}, and they differ: one of them was made up")


def _documents(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the documents of one line."""
    hits = found.get("hits")
    inner = hits.get("hits") if isinstance(hits, Mapping) else None
    for one in inner if isinstance(inner, list) else [found]:
        source = one.get("_source")
        yield source if isinstance(source, Mapping) else one
