"""MaxMind DB files (`.mmdb`): what they say of an address, as it stands there and as ECS has a place for it.

The layout that is known is that of MaxMind's own databases (City, Country, ASN, Enterprise, ISP), which others use too.
A database is read from bytes in memory and never from its file: those that were checked are those that are used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.alerting.document import value_at
from agent.errors import ConfigError
from agent.model import SECOND

if TYPE_CHECKING:
    from maxminddb import Reader

ENDING = ".mmdb"
MAX_BYTES = 512 << 20
ADDRESSES = ("source.ip", "destination.ip", "client.ip", "server.ip", "host.ip")
"""The fields that are looked up where the configuration names none."""
_MARK = b"\xab\xcd\xefMaxMind.com"
_MARK_WITHIN = 128 << 10
_YEAR_10000 = 253_402_300_800
_LONGEST = 1_024
_MOST_COLUMNS = 1_000
"""Characters of a column's name or of an ECS field's text, and columns, that are taken: in a small file all that lies
below one long name may repeat it without end."""
_DAMAGED = (RuntimeError, TypeError, ValueError)
"""What the reader raises for bytes that cannot be right; its own error is a RuntimeError."""

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Known: TypeAlias = tuple[Mapping[str, str], Mapping[str, Any]]
"""The record's columns, and the ECS fields below the address's own object: `geo.city_name`, `as.number`."""


class Database:
    """A MaxMind DB file, and when it was *made*; ConfigError if *data* is none."""

    def __init__(self, data: bytes, path: str) -> None:
        if data.rfind(_MARK, max(0, len(data) - _MARK_WITHIN)) < 0:
            raise ConfigError("no MaxMind DB file, or its end is missing", path)
        try:
            self._reader = _reader(data, path)
        except _DAMAGED as error:
            raise ConfigError(f"a damaged MaxMind DB file: {error}", path) from None
        about = self._reader.metadata()
        form = about.binary_format_major_version, about.ip_version
        if form not in ((2, 4), (2, 6)):
            raise ConfigError("expected format 2 for IP 4 or 6, got format {} for IP {}".format(*form), path)
        if not isinstance(about.build_epoch, int) or not 0 < about.build_epoch < _YEAR_10000:
            raise ConfigError(f"a damaged MaxMind DB file: built at {about.build_epoch!r}", path)
        self.made = about.build_epoch * SECOND

    def find(self, address: Address) -> Known | None:
        """Return what the database knows of *address*; if its record cannot be read, why, as the column `error`."""
        if address.version > self._reader.metadata().ip_version:
            return None
        try:
            record = self._reader.get(address)
            return None if record is None else (dict(islice(_columns("", record), _MOST_COLUMNS)), _fields(record))
        except _DAMAGED as error:
            return {"error": f"the file is damaged here: {error}"}, {}


def _reader(data: bytes, path: str) -> Reader:
    """Return the reader in pure Python: it takes bytes, and no damaged file can crash it."""
    from maxminddb import MODE_FD, Reader

    file = BytesIO(data)
    file.name = path  # its errors show it
    return Reader(file, MODE_FD)


def _columns(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the plain values in *value* under dotted names, of names in several languages only one.

    What would have a name too long is left out.
    """
    if len(name) > _LONGEST:
        return
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            inner = f"{name}.{key}" if name else str(key)
            if key == "names" and (text := _in_english(one)):
                yield inner.removesuffix("s"), text
            else:
                yield from _columns(inner, one)
    elif isinstance(value, bool):
        yield name or "value", "true" if value else "false"
    else:
        yield name or "value", value.hex() if isinstance(value, bytes) else str(value)


def _fields(record: Any) -> dict[str, Any]:
    regions = value_at(record, "subdivisions")
    region = regions[-1] if isinstance(regions, list) and regions else {}
    country, part = _text(value_at(record, "country.iso_code")), _text(value_at(region, "iso_code"))
    texts = {
        "geo.continent_code": value_at(record, "continent.code"),
        "geo.continent_name": _in_english(value_at(record, "continent.names")),
        "geo.country_iso_code": country,
        "geo.country_name": _in_english(value_at(record, "country.names")),
        "geo.region_iso_code": f"{country}-{part}" if country and part else None,
        "geo.region_name": _in_english(value_at(region, "names")),
        "geo.city_name": _in_english(value_at(record, "city.names")),
        "geo.postal_code": value_at(record, "postal.code"),
        "geo.timezone": value_at(record, "location.time_zone"),
        "as.organization.name": _either(record, "autonomous_system_organization"),
    }
    found: dict[str, Any] = {name: text for name, value in texts.items() if (text := _text(value))}
    latitude, longitude = value_at(record, "location.latitude"), value_at(record, "location.longitude")
    if _within(latitude, 90) and _within(longitude, 180):
        found["geo.location"] = {"lat": latitude, "lon": longitude}
    number = _either(record, "autonomous_system_number")
    if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 1 << 32:
        found["as.number"] = number
    return found


def _either(record: Any, name: str) -> Any:
    """Return what stands under *name* in *record* (ASN, ISP), or among its traits (Enterprise)."""
    found = value_at(record, name)
    return value_at(record, f"traits.{name}") if found is None else found


def _in_english(names: Any) -> str | None:
    """Return the English one of *names* by language, else the first."""
    return _text(names.get("en", next(iter(names.values()), None))) if isinstance(names, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST else None


def _within(degrees: Any, most: int) -> bool:
    return isinstance(degrees, float) and -most <= degrees <= most
