"""The parts of a domain name, by a rule and not by a list of public suffixes.

Under a generic top-level domain names are registered at the second level. Under a country's they are too, or at the
third below a label such as ``co`` or ``gov``. Where a registry's ways are too varied for that (`_VARIED`) a longer name
is left unsaid. Suffixes under which a hosting company lets names to others (``github.io``) count as registered names.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

_LONGEST = 255
_SECOND = frozenset(
    {
        *("ac", "co", "com", "edu", "gob", "gov", "gouv", "go", "govt", "gv"),
        *("mil", "ne", "net", "nhs", "nom", "or", "org", "plc", "sch"),
    }
)
_VARIED = frozenset(
    {
        *("au", "br", "ca", "cn", "hu", "id", "in", "it", "jp", "kr", "my", "no", "nz"),
        *("pl", "ru", "th", "tr", "tw", "ua", "us", "uy", "vn", "za"),
    }
)
_THIRD = frozenset({"bd", "ck", "er", "fk", "jm", "kh", "mm", "np", "pg"})
_PRIVATE = frozenset(
    {
        *("arpa", "corp", "domain", "example", "home", "internal", "intranet", "invalid", "lan"),
        *("local", "localdomain", "localhost", "private", "test", "workgroup"),
    }
)


class Domain(NamedTuple):
    """A name as its registered part, what is below that, and the suffix above it."""

    subdomain: str | None
    registered: str
    suffix: str


def split(name: str) -> Domain | None:
    """Return the parts of *name*; None for an address, a name inside a network, and where the rule cannot say."""
    return _split(name) if len(name) <= _LONGEST else None


@lru_cache(8192)
def _split(name: str) -> Domain | None:
    labels = name.rstrip(".").split(".")
    top = labels[-1].lower() if labels else ""
    if len(labels) < 2 or not all(labels) or top in _PRIVATE or not (top.isalpha() or top.startswith("xn--")):
        return None
    under = 2 if len(top) == 2 and (top in _THIRD or labels[-2].lower() in _SECOND) else 1
    if len(labels) <= under or (under == 1 and top in _VARIED and len(labels) > 2):
        return None
    registered = ".".join(labels[-under - 1 :])
    return Domain(".".join(labels[: -under - 1]) or None, registered, ".".join(labels[-under:]))
