"""Time zones of sources whose records name none. A chunk's format says the zone: ``syslog@Europe/Berlin``.

So the zone goes wherever the format goes, to batches, references and dead letters, and what was read in one zone is
read in it again, whatever the configuration says by then. No identity and no cursor depends on it.
"""

from __future__ import annotations

import re
from datetime import UTC, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

_OFFSET = re.compile(r"([+-])([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
_SIGN = "@"


@lru_cache(maxsize=64)
def zone_of(name: str) -> tzinfo:
    """Return the zone called *name* in the tz database, or the offset ``+02:00``; ValueError if there is none."""
    if found := _OFFSET.fullmatch(name):
        offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
        return timezone(-offset if found[1] == "-" else offset) if offset else UTC
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        raise ValueError(
            f"unknown time zone {name!r}; expected a name of the tz database such as Europe/Berlin, or +02:00"
        ) from None


def with_zone(format: str, zone: str) -> str:
    """Return *format* with the zone of its times; without one if *zone* is empty."""
    return f"{format}{_SIGN}{zone}" if zone else format


def parted(format: str) -> tuple[str, str]:
    """Return a chunk's format alone, and its zone; an empty one where it names none."""
    alone, _, zone = format.partition(_SIGN)
    return alone, zone
