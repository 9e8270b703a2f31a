"""Compare our documents with the ECS documents that Elastic's integrations make of the same logs, field by field."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from agent.errors import RecordError
from agent.normalise import Normaliser
from agent.normalise.clock import parse

LEFT_OUT = ("user_agent.", "event.ingested", "event.original", "event.created", "tags", "ecs.version", "_tmp", "agent.")
PRODUCTS = {
    "system auth": ("packages/system/data_stream/auth/", "syslog", "2023-12-01T00:00:00Z"),
    "system security": ("packages/system/data_stream/security/", "json", ""),
    "nginx access": ("packages/nginx/data_stream/access/", "access", ""),
    "apache access": ("packages/apache/data_stream/access/", "access", ""),
    "aws cloudtrail": ("packages/aws/data_stream/cloudtrail/", "cloudtrail", ""),
    "windows sysmon": ("packages/windows/data_stream/sysmon_operational/", "json", ""),
    "windows powershell": ("packages/windows/data_stream/powershell/", "json", ""),
    "windows powershell_operational": ("packages/windows/data_stream/powershell_operational/", "json", ""),
}


@dataclass
class Tally:
    """Expected fields by outcome, and which differ most."""

    documents: int = 0
    unreadable: int = 0
    expected: int = 0
    equal: int = 0
    differing: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        return self.equal / self.expected if self.expected else 0.0


def compare(archive: Path) -> dict[str, Tally]:
    """Return a tally for each product of `PRODUCTS`."""
    members = _members(archive)
    normaliser = Normaliser(lambda kind: frozenset())
    return {product: _product(normaliser, members, *where) for product, where in PRODUCTS.items()}


def table(tallies: dict[str, Tally]) -> str:
    rows = [f"{'product':32} {'documents':>9} {'unreadable':>10} {'fields':>7} {'equal':>7}"]
    rows += [
        f"{name:32} {tally.documents:9} {tally.unreadable:10} {tally.expected:7} {tally.share:7.1%}"
        for name, tally in tallies.items()
    ]
    return "\n".join(rows)


def _members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            member.name: file.read()
            for member in tar
            if (file := tar.extractfile(member)) and "/pipeline/" in member.name
        }


def _product(normaliser: Normaliser, members: dict[str, bytes], folder: str, format: str, as_of: str) -> Tally:
    tally = Tally()
    for name, data in members.items():
        if name.startswith(folder) and name + "-expected.json" in members and not name.endswith(".yml"):
            wanted = json.loads(members[name + "-expected.json"])["expected"]
            for raw, expected in _pairs(list(_records(name, data)), wanted):
                if expected:
                    _one(tally, normaliser, format, raw, expected, parse(as_of or "2026-01-01T00:00:00Z"))
    return tally


def _records(name: str, data: bytes) -> Iterator[bytes]:
    if name.endswith(".json"):
        yield from (json.dumps(event).encode() for event in json.loads(data)["events"])
    else:
        yield from (line for line in data.splitlines() if line.strip())


def _pairs(records: list[bytes], wanted: list[dict[str, Any]]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Pair by the original where the expected documents keep it (lines may have been dropped), else by place."""
    lines = {record.decode().strip(): record for record in records}
    for record, expected in zip_longest(records, wanted):
        original = ((expected or {}).get("event") or {}).get("original")
        if isinstance(original, str) and original.strip() in lines:
            yield lines[original.strip()], expected
        elif record is not None and expected:
            yield record, expected


def _one(tally: Tally, normaliser: Normaliser, format: str, raw: bytes, expected: dict[str, Any], as_of: int) -> None:
    tally.documents += 1
    fields = {name: value for name, value in leaves(expected) if _counts(name)}
    tally.expected += len(fields)
    try:
        ours = dict(leaves(normaliser.document(format, raw, as_of=as_of)))
    except RecordError:
        tally.unreadable += 1
        return
    for name, value in fields.items():
        if _same(name, value, ours.get(name)):
            tally.equal += 1
        else:
            tally.differing[name] += 1


def _counts(name: str) -> bool:
    return not name.startswith(LEFT_OUT) and ".geo." not in name and ".as." not in name


def leaves(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _same(name: str, theirs: Any, ours: Any) -> bool:
    if name == "@timestamp":
        return parse(theirs) == parse(ours)
    theirs, ours = (value if isinstance(value, list) else [value] for value in (theirs, ours))
    return sorted(map(str, theirs)) == sorted(map(str, ours))
