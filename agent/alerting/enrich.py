"""What an organisation knows and an event does not say, added to alerts from tables that the configuration pins.

A table (CSV with a header, or NDJSON) lists things by a key: addresses, host or user names, hashes. An alert whose
event holds a listed value in one of the *match* fields gets the row: under ``vedette.enrichment``, with the table's
digest, and in the ECS fields that *set* names. What the event says itself is never overwritten, and no alert's id
depends on it. A table of *indicators* makes ``threat.enrichments``; each alert names the tables that are too old.
A MaxMind DB file is a table of addresses that knows its ECS fields and its age itself.
"""

from __future__ import annotations

import csv
import hashlib
import io
import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import orjson

from agent.alerting.document import texts_at, value_at
from agent.alerting.maxmind import ENDING, Address, Database, Known
from agent.errors import ConfigError, TrustError
from agent.model import Timestamp, Value
from agent.normalise.catalogue import Converter, catalogue
from agent.normalise.clock import to_text

MAX_BYTES = 64 << 20
MAX_ROWS = 1_000_000
MAX_COLUMNS = 64
MAX_CELL = 8_192
_INDICATOR = "threat.enrichments.indicator"
_MOST_MATCHES = 20
"""Rows that one alert gets; how many more there were is in `vedette.enrichment_cut`."""

Row: TypeAlias = Mapping[str, str]
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Enrich: TypeAlias = Callable[[dict[str, Any], Timestamp], None]


@dataclass(frozen=True)
class Listing:
    """What the configuration says of a table: `agent.config.model.EnrichmentConfig` explains each."""

    name: str
    digest: str
    key: str | None
    match: tuple[str, ...]
    set: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    networks: bool = False
    indicators: bool = False
    made: Timestamp | None = None
    max_age: int | None = None


class Table:
    """One table, read and checked; ConfigError or TrustError says what is wrong with it."""

    def __init__(self, terms: Listing, data: bytes, path: str) -> None:
        self.terms = terms
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != terms.digest:
            raise TrustError(
                f"{path}: expected the table {terms.digest}, found {found}; put it back, or sign the new one"
            )
        self._database = Database(data, path) if path.endswith(ENDING) else None
        self._made = self._database.made if self._database else terms.made
        self._rows: dict[str, Row] = {}
        self._networks: dict[tuple[int, int], dict[int, Row]] = {}
        """By version and length of the prefix: rows by the network's bits."""
        if terms.key is not None:
            self._read(terms.key, data, path)
        self._targets = [(column, _targets(terms, target, path)) for column, target in terms.set.items()]

    def __len__(self) -> int:
        return len(self._rows) + sum(map(len, self._networks.values()))

    def _read(self, column: str, data: bytes, path: str) -> None:
        columns: set[str] = set()
        for number, row in enumerate(_rows(data, path), 1):
            if number > MAX_ROWS:
                raise ConfigError(f"a table may have at most {MAX_ROWS} rows", path)
            columns |= row.keys()
            self._add(number, column, row, path)
        if unknown := sorted({column, *self.terms.set} - columns):
            raise ConfigError(f"no column {', '.join(unknown)}; there are: {', '.join(sorted(columns))}", path)

    def _add(self, number: int, column: str, row: Row, path: str) -> None:
        key = row.get(column, "").strip()
        if not key:
            raise ConfigError(f"row {number}: no value in {column}, the key", path)
        place: dict[Any, Row] = self._rows
        name: Any = key.lower()
        if self.terms.networks:
            try:
                network = _unmapped(ipaddress.ip_network(key))
            except ValueError as error:
                raise ConfigError(f"row {number}: {error}", path) from None
            place = self._networks.setdefault((network.version, network.prefixlen), {})
            name = int(network.network_address)
        if name in place:
            raise ConfigError(f"row {number}: {key} is listed twice", path)
        place[name] = row

    def find(self, value: str) -> Known | None:
        """Return the row of *value*, of networks the smallest that it lies in, and the ECS fields beside it."""
        if self._database is None and not self.terms.networks:
            return _alone(self._rows.get(value.lower()))
        address = _address(value)
        if address is None:
            return None
        return self._database.find(address) if self._database else _alone(self._network(address))

    def _network(self, address: Address) -> Row | None:
        for version, length in sorted(self._networks, reverse=True):
            if version == address.version:
                bits = address.max_prefixlen - length
                row = self._networks[version, length].get(int(address) >> bits << bits)
                if row is not None:
                    return row
        return None

    def is_stale(self, now: Timestamp) -> bool:
        made, most = self._made, self.terms.max_age
        return made is not None and most is not None and now > made + most

    def enrich(self, document: dict[str, Any], now: Timestamp) -> int:
        """Add to *document* what the table knows; return how many rows found no place."""
        terms, cut = self.terms, 0
        own = document.setdefault("vedette", {})
        if self.is_stale(now):
            own.setdefault("enrichment_stale", []).append(terms.name)
        for name in terms.match:
            for value in texts_at(document, name):
                known = self.find(value)
                if known is None:
                    continue
                row, fields = known
                found = own.setdefault("enrichment", [])
                if len(found) >= _MOST_MATCHES:
                    cut += 1
                    continue
                made = {} if self._made is None else {"made": to_text(self._made)}
                found.append(
                    {
                        "table": terms.name,
                        "digest": terms.digest,
                        "field": name,
                        "value": value,
                        **made,
                        "row": {column: text[:MAX_CELL] for column, text in islice(row.items(), MAX_COLUMNS)},
                    }
                )
                self._set(document, name, value, row)
                for group in ("geo.", "as."):
                    _put_group(document, name, {key: one for key, one in fields.items() if key.startswith(group)})
        return cut

    def _set(self, document: dict[str, Any], name: str, value: str, row: Row) -> None:
        if self.terms.tags:
            tags = texts_at(document, "tags")
            document["tags"] = [*tags, *(tag for tag in self.terms.tags if tag not in tags)]
        indicator: dict[str, Any] = {}
        for column, targets in self._targets:
            target, convert = targets[name]
            try:
                made = convert(row[column]) if row.get(column) else None
            except ValueError:
                made = None  # the row itself stays visible
            if made is None:
                continue
            if self.terms.indicators:
                _put(indicator, target.removeprefix(f"{_INDICATOR}."), made)
            else:
                _put(document, target, made)
        if self.terms.indicators:
            matched = {"atomic": value, "field": name, "type": "indicator_match_rule", "id": self.terms.digest}
            _append_threat(document, {"indicator": indicator, "matched": matched})


def enricher(tables: Sequence[Table]) -> Enrich:
    """Return what adds all of *tables*, in their order, to an alert's document."""

    def enrich(document: dict[str, Any], now: Timestamp) -> None:
        if cut := sum(table.enrich(document, now) for table in tables):
            document["vedette"]["enrichment_cut"] = cut

    return enrich


def _rows(data: bytes, path: str) -> Iterator[Row]:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"a table may have at most {MAX_BYTES} bytes", path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8: {error}", path) from None
    return _objects(text, path) if path.endswith((".ndjson", ".jsonl")) else _lines(text, path)


def _objects(text: str, path: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"line {number}: not JSON: {error}", path) from None
        if not isinstance(row, dict) or any(isinstance(value, dict | list) for value in row.values()):
            raise ConfigError(f"line {number}: expected an object of plain values", path)
        yield _checked({key: _text(value) for key, value in row.items() if value is not None}, number, path)


def _lines(text: str, path: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(f"line {reader.line_num}: expected {len(reader.fieldnames or ())} columns", path)
            yield _checked(row, reader.line_num, path)
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num}: {error}", path) from None


def _checked(row: Row, number: int, path: str) -> Row:
    if len(row) > MAX_COLUMNS or any(len(value) > MAX_CELL for value in row.values()):
        raise ConfigError(f"line {number}: at most {MAX_COLUMNS} columns of {MAX_CELL} characters", path)
    return row


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _targets(terms: Listing, target: str, path: str) -> dict[str, tuple[str, Converter]]:
    """Return for each matched field which ECS field *target* means; ``.x`` is one beside the matched field."""
    found = {}
    for name in terms.match:
        base = _INDICATOR if terms.indicators else name.rpartition(".")[0]
        full = f"{base}{target}" if target.startswith(".") else target
        if full not in catalogue().fields or (terms.indicators and not full.startswith(f"{_INDICATOR}.")):
            raise ConfigError(f"set: {target}: ECS has no field {full}; the row is kept without it", path)
        found[name] = full, catalogue().converter(full)
    return found


def _address(value: str) -> Address | None:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _alone(row: Row | None) -> Known | None:
    return None if row is None else (row, {})


def _append_threat(document: dict[str, Any], enrichment: Mapping[str, Any]) -> None:
    """Add *enrichment* to what the event has; an event whose `threat` is no object leaves no place for it."""
    threat = document.setdefault("threat", {})
    if isinstance(threat, dict):
        own = threat.get("enrichments", [])
        threat["enrichments"] = [*(own if isinstance(own, list) else [own]), enrichment]


def _unmapped(network: _Network) -> _Network:
    """Return the IPv4 network for one that is written inside IPv6, as addresses are looked up."""
    if isinstance(network, ipaddress.IPv4Network) or network.prefixlen < 96:
        return network
    mapped = network.network_address.ipv4_mapped
    return network if mapped is None else ipaddress.ip_network((mapped, network.prefixlen - 96))


def _put_group(document: dict[str, Any], matched: str, fields: Mapping[str, Any]) -> None:
    """Put *fields* beside the field *matched* where ECS has them, unless one of them stands there otherwise: half of
    what the event says and half of what a database says would be a place that neither means."""
    base = matched.rpartition(".")[0]
    full = {f"{base}.{name}": value for name, value in fields.items() if f"{base}.{name}" in catalogue().fields}
    if all(value_at(document, name) in (None, value) for name, value in full.items()):
        for name, value in full.items():
            _put(document, name, value)


def _put(document: dict[str, Any], name: str, value: Value) -> None:
    """Put *value* where nothing is; what stands there already stays."""
    *path, last = name.split(".")
    place = document
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            return
    place.setdefault(last, list(value) if isinstance(value, tuple) else value)
