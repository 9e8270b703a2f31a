"""The closed list of value transforms that a mapping may name: pure functions of one native value.

A transform returns the new value, None where the native value holds nothing for the field, or raises ValueError where
it is malformed. Each runs once for each distinct value.
"""

from __future__ import annotations

import ipaddress
import ntpath
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

import re2

Transform: TypeAlias = Callable[[Any], Any]

_TOKEN = re2.compile(r'(?:[^\s"]|"[^"]*"?)+')
_ARGUMENTS = 512


def _basename(raw: str) -> str | None:
    """The file name of a Windows or POSIX path."""
    return ntpath.basename(raw) or None


def _directory(raw: str) -> str | None:
    return ntpath.dirname(raw) or None


def _extension(raw: str) -> str | None:
    """The file extension without its dot."""
    return ntpath.splitext(raw)[1][1:] or None


def _account(raw: str) -> str | None:
    r"""The name in ``DOMAIN\name``."""
    return raw.rpartition("\\")[2] or None


def _domain(raw: str) -> str | None:
    r"""The domain in ``DOMAIN\name``; None where there is none."""
    return raw.rpartition("\\")[0] or None


def _integer(raw: Any) -> int:
    """A number written in decimal, or in hexadecimal after ``0x``."""
    if isinstance(raw, str):
        return int(raw, 16 if raw[:2].lower() == "0x" else 10)
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    raise ValueError("not a number")


def _port(raw: Any) -> int | None:
    """A port; 0 means none."""
    return _integer(raw) or None


def _ip(raw: Any) -> str | None:
    """An address without zone; an IPv4 address inside IPv6 as IPv4. What is a name and no address is nothing here."""
    try:
        address = ipaddress.ip_address(str(raw).partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _host(raw: Any) -> str | None:
    """A name that is not an address."""
    return None if _ip(raw) else str(raw)


def _arguments(raw: str) -> list[str]:
    """The command line cut at blanks outside quotes; quotes stay."""
    return list(_TOKEN.findall(raw))[:_ARGUMENTS]


def _url_path(raw: str) -> str | None:
    return unquote(raw.partition("?")[0].partition("#")[0]) or None


def _url_query(raw: str) -> str | None:
    return raw.partition("#")[0].partition("?")[2] or None


def _url_extension(raw: str) -> str | None:
    name = (_url_path(raw) or "").rpartition("/")[2]
    return name.rpartition(".")[2] if "." in name[1:] else None


def _registry_hive(raw: str) -> str | None:
    return _HIVES.get(raw.partition("\\")[0].upper())


def _registry_key(raw: str) -> str | None:
    hive, _, key = raw.partition("\\")
    return key or None if hive.upper() in _HIVES else raw


def _listed(raw: Any) -> list[Any]:
    """The items of a list separated by commas; one value is a list of one."""
    if isinstance(raw, str):
        return [item.strip() for item in raw.split(",") if item.strip()]
    return list(raw) if isinstance(raw, list | tuple) else [raw]


def _http_outcome(raw: Any) -> str:
    """What a status of HTTP says of the request."""
    return "success" if _integer(raw) < 400 else "failure"


def _addresses(raw: str) -> list[str]:
    """The addresses in a list separated by semicolons, such as the answers of a name server."""
    return [found for item in raw.split(";")[:_ARGUMENTS] if item.strip() and (found := _ip(item.strip()))]


def _lines(raw: str) -> list[str]:
    """The blank-separated items of a list such as the privileges of Windows."""
    return raw.split()


_HIVES = {
    "HKLM": "HKLM",
    "HKU": "HKU",
    "HKCR": "HKCR",
    "HKCU": "HKCU",
    "HKEY_LOCAL_MACHINE": "HKLM",
    "HKEY_USERS": "HKU",
    "HKEY_CLASSES_ROOT": "HKCR",
    "HKEY_CURRENT_USER": "HKCU",
}

PLAIN: Mapping[str, Transform] = {
    "account": _account,
    "addresses": _addresses,
    "arguments": _arguments,
    "basename": _basename,
    "directory": _directory,
    "domain": _domain,
    "extension": _extension,
    "host": _host,
    "http_outcome": _http_outcome,
    "integer": _integer,
    "ip": _ip,
    "lines": _lines,
    "list": _listed,
    "lower": str.lower,
    "port": _port,
    "registry_hive": _registry_hive,
    "registry_key": _registry_key,
    "url_extension": _url_extension,
    "url_path": _url_path,
    "url_query": _url_query,
}
"""Transforms of a value alone, by the name a mapping uses."""


def hash_of(algorithm: str) -> Transform:
    """Return the transform that picks one algorithm out of ``SHA1=...,MD5=...``."""
    prefix = algorithm.upper() + "="

    def pick(raw: str) -> str | None:
        for part in raw.split(","):
            if part.strip().upper().startswith(prefix):
                return part.strip()[len(prefix) :].lower() or None
        return None

    return pick


def looked_up(table: Mapping[str, str]) -> Transform:
    """Return the transform that translates by *table*, whatever the case; what is not in it is nothing."""

    def look_up(raw: Any) -> str | None:
        if isinstance(raw, list | tuple):
            return next((found for item in raw if (found := look_up(item))), None)
        return table.get(str(raw).lower())

    return look_up


def constant(value: str) -> Transform:
    """Return the transform that says *value* wherever the native field holds something."""
    return lambda _raw: value
