"""What a line of no known form holds as far as one can tell: its time, its ``key=value`` pairs, its addresses.

Nothing is claimed that the line does not say: an address in free text is an address, not a source.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import re2

from agent.normalise.payloads import PAYLOADS

_FAR = 256
"""A time stands within so many characters of the line's beginning."""
_MOST_ADDRESSES = 32
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_TIME = re2.compile(
    r"(?:^|[\s\[\"'(<>|,;=])(?:"
    r"(?P<iso>\d{4}[-/]\d{2}[-/]\d{2}[T ]\d{2}:\d{2}:\d{2}(?:[.,]\d{1,9})? ?(?:Z|UTC|[+-]\d{2}:?\d{2})?)"
    rf"|(?P<web>\d{{2}}/(?:{_MONTHS})/\d{{4}}:\d{{2}}:\d{{2}}:\d{{2}} [+-]\d{{4}})"
    rf"|(?P<dated>(?:{_MONTHS}) +\d{{1,2}} \d{{4}} \d{{2}}:\d{{2}}:\d{{2}}(?:\.\d{{1,9}})?)"
    r"|(?P<epoch>1\d{9}(?:\.\d{1,9}|\d{3})?))(?:$|[\s\]\"')<>|,;:])"
)
_ADDRESS = re2.compile(r"(?:^|[^\w.:])(\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})")


def guess(text: str) -> dict[str, Any]:
    """Return native fields: ``guessed`` pairs, ``addresses``, ``message``, and ``time`` if one is near the begin."""
    found: dict[str, Any] = {"message": text, "guessed": PAYLOADS["pairs"](text)}
    if time := _time(text[:_FAR]):
        found["time"] = time
    if addresses := _addresses(text):
        found["addresses"] = addresses
    return found


def _time(text: str) -> str:
    match = _TIME.search(text)
    if match is None:
        return ""
    if iso := match["iso"]:
        return _iso(iso.replace("/", "-").replace(",", ".").replace("UTC", "Z"))
    return " ".join((match["web"] or match["dated"] or match["epoch"]).split())


def _iso(text: str) -> str:
    """Return a day, a time of day and maybe a zone without a blank before the zone."""
    return text[:19] + text[19:].replace(" ", "")


def _addresses(text: str) -> list[str]:
    found: dict[str, None] = {}
    for match in _ADDRESS.finditer(text):
        after = text[match.end() : match.end() + 2]
        if after[:1].isalnum() or (after[:1] == "." and after[1:].isalnum()):
            continue
        try:
            found[str(ipaddress.ip_address(match[1]))] = None
        except ValueError:
            continue
        if len(found) == _MOST_ADDRESSES:
            break
    return list(found)
