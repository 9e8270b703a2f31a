"""The closed list of value transforms that a mapping may name: pure functions of one native value.

A transform returns the new value, None where the native value holds nothing for the field, or raises ValueError where
it is malformed. Each runs once for each distinct value.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ntpath
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import unquote

import re2

from agent.model import NO_TIME
from agent.normalise import clock, wintexts

Transform: TypeAlias = Callable[[Any], Any]

_HARDWARE = re2.compile(r"^[0-9A-F]{12,16}$")
_SCHEME = re2.compile(r"^[A-Za-z][A-Za-z0-9+.-]{1,20}://")
_EMAIL = re2.compile(r"^[^@\s/]+@[^@\s/]+$")
_ZONE = re2.compile(r"(?:Z|[+-]\d\d:?\d\d)$")
_REALM = re2.compile("[/@]")
_WHOLE_URL = re2.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)")
_ARGUMENTS = 512


def _basename(raw: str) -> str | None:
    """The file name of a Windows or POSIX path."""
    return ntpath.basename(raw) or None


def _before_colon(raw: str) -> str | None:
    return raw.partition(":")[0] or None


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


def _url_scheme(raw: str) -> str | None:
    """The scheme of a whole URL."""
    found = _WHOLE_URL.match(raw)
    return found[1].lower() if found else None


def _url_domain(raw: str) -> str | None:
    """The host of a whole URL, without user and port."""
    found = _WHOLE_URL.match(raw)
    return found[2].rpartition("@")[2].partition(":")[0].lower() or None if found else None


def _decoded(raw: str) -> str:
    """A text in which a URL's escapes stood for blanks and other signs."""
    return unquote(raw)


def _url_port(raw: str) -> int | None:
    """The port that a whole URL names."""
    found = _WHOLE_URL.match(raw)
    return _endpoint_port(found[2].rpartition("@")[2]) if found else None


def _stem(raw: str) -> str | None:
    """The file name without its extension."""
    return ntpath.splitext(ntpath.basename(raw))[0] or None


def _url_path(raw: str) -> str | None:
    found = _WHOLE_URL.match(raw)
    return unquote((raw[found.end() :] if found else raw).partition("?")[0].partition("#")[0]) or None


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


def _endpoint_ip(raw: str) -> str | None:
    """The address in ``192.0.2.1:80``, ``[2001:db8::1]:80`` or an address alone."""
    return _ip(raw) or _ip(raw.rpartition(":")[0].strip("[]") or raw.strip("[]"))


def _endpoint_port(raw: str) -> int | None:
    """The port behind an address; None where there is none."""
    host, _, port = raw.rpartition(":")
    return _port(port) if host and not _ip(raw) and port.isdecimal() else None


def _url(raw: str) -> str | None:
    """A text that is a URL with a scheme."""
    return raw if _SCHEME.match(raw) else None


def _mac(raw: str) -> str:
    """A hardware address as ECS writes it: ``00-0C-29-EB-35-DE``."""
    digits = raw.replace(":", "").replace("-", "").replace(".", "").upper()
    if not _HARDWARE.match(digits):
        raise ValueError("not a hardware address")
    return "-".join(digits[place : place + 2] for place in range(0, len(digits), 2))


def _facility(raw: Any) -> int:
    """The facility in a priority of syslog."""
    return _integer(raw) >> 3


def _syslog_severity(raw: Any) -> int:
    """The severity in a priority of syslog."""
    return _integer(raw) & 7


def _elapsed(raw: str) -> int:
    """``1:02:03`` or ``1h:02m:03s`` in nanoseconds."""
    parts = [int(part.rstrip("hms")) for part in raw.split(":")]
    total = 0
    for part in parts:
        total = total * 60 + part
    return total * 10**9


def _hexadecimal(raw: str) -> str:
    """The digits of a fingerprint or serial number, without what parts them."""
    return raw.replace(":", "").replace(" ", "").upper()


def _time(raw: Any) -> str:
    """A time as ECS writes it, whatever form that the clock reads it had."""
    time = clock.parse(raw)
    if time == NO_TIME:
        raise ValueError("not a time")
    return clock.to_text(time)


def _addresses(raw: Any) -> list[str]:
    """The addresses in a list, maybe one separated by semicolons, such as the answers of a name server."""
    items = raw if isinstance(raw, list) else raw.split(";")
    return [found for item in items[:_ARGUMENTS] if (found := _ip(str(item).strip()))]


def _written(raw: Any) -> str:
    """An object as one text, ``{name=value, list=[a, b]}``."""
    if isinstance(raw, dict):
        return "{" + ", ".join(f"{key}={_written(value)}" for key, value in raw.items()) + "}"
    if isinstance(raw, list):
        return "[" + ", ".join(map(_written, raw)) + "]"
    return "null" if raw is None else _shown(raw)


def _shown(raw: Any) -> str:
    return str(raw).lower() if isinstance(raw, bool) else str(raw)


def _nanoseconds(raw: Any) -> int:
    """Seconds, with a fraction, in nanoseconds."""
    return round(float(raw) * 1e9)


def _milliseconds(raw: Any) -> int:
    """Milliseconds in nanoseconds."""
    return round(float(raw) * 1e6)


def _integers(raw: Any) -> list[int]:
    """A list of numbers without their fractions."""
    return [int(item) for item in (raw if isinstance(raw, list) else [raw])]


def _ip_version(raw: str) -> str:
    return f"ipv{ipaddress.ip_address(raw).version}"


def _first(raw: Any) -> Any:
    """The first item of a list."""
    return raw[0] if isinstance(raw, list) and raw else None


def _tcp_flags(raw: Any) -> list[str]:
    """The names of the flags that are set in a number."""
    number = _integer(raw)
    return [
        name for bit, name in enumerate(("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")) if number >> bit & 1
    ]


def _undotted(raw: Any) -> Any:
    """A name of DNS, or a list of them, without the dot of the root at the end."""
    if isinstance(raw, list):
        return list(map(_undotted, raw))
    return str(raw).removesuffix(".") or None


def _labels(raw: str) -> str:
    """A name of DNS written as labels with their lengths, ``(3)www(7)example(0)``, as one with dots."""
    labels, place = [], 0
    while place < len(raw):
        begin = raw.index(")", place) + 1
        end = begin + int(raw[place + 1 : begin - 1])
        if raw[place] != "(" or not begin <= end <= len(raw):
            raise ValueError("not labels with their lengths")
        labels.append(raw[begin:end])
        place = end
    return ".".join(filter(None, labels)) or "."


def _email(raw: str) -> str | None:
    """A text that is an address of mail."""
    return raw if _EMAIL.match(raw) else None


def _principal(raw: str) -> str | None:
    """The name in Kerberos' ``name/REALM`` or ``name@REALM``."""
    name = _REALM.search(raw)
    return (raw[: name.start()] if name else raw) or None


def _realm(raw: str) -> str | None:
    name = _REALM.search(raw)
    return raw[name.end() :] or None if name else None


def _lines(raw: str) -> list[str]:
    """The blank-separated items of a list such as the privileges of Windows."""
    return raw.split()


def _unzoned(raw: Any) -> str | None:
    """The zone of a time that does not name it itself: its source's, else UTC, which is assumed."""
    return None if _ZONE.search(str(raw)) else clock.zone_in(str(raw)) or "+00:00"


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
    "answer_names": wintexts.answer_names,
    "answer_types": wintexts.answer_types,
    "answers": wintexts.answers,
    "arguments": wintexts.arguments,
    "before_colon": _before_colon,
    "basename": _basename,
    "count": len,
    "decoded": _decoded,
    "directory": _directory,
    "domain": _domain,
    "email": _email,
    "elapsed": _elapsed,
    "endpoint_ip": _endpoint_ip,
    "endpoint_port": _endpoint_port,
    "extension": _extension,
    "facility": _facility,
    "hexadecimal": _hexadecimal,
    "first": _first,
    "host": _host,
    "http_outcome": _http_outcome,
    "integer": _integer,
    "integers": _integers,
    "ip": _ip,
    "ip_version": _ip_version,
    "labels": _labels,
    "lines": _lines,
    "list": _listed,
    "lower": str.lower,
    "milliseconds": _milliseconds,
    "nanoseconds": _nanoseconds,
    "mac": _mac,
    "port": _port,
    "principal": _principal,
    "realm": _realm,
    "registered_domain": wintexts.registered_domain,
    "registry_data": wintexts.registry_data,
    "registry_hive": _registry_hive,
    "registry_key": _registry_key,
    "registry_type": wintexts.registry_type,
    "stem": _stem,
    "subdomain": wintexts.subdomain,
    "syslog_severity": _syslog_severity,
    "time": _time,
    "tcp_flags": _tcp_flags,
    "top_level_domain": wintexts.top_level_domain,
    "undotted": _undotted,
    "upper": str.upper,
    "unzoned": _unzoned,
    "url_domain": _url_domain,
    "url": _url,
    "url_extension": _url_extension,
    "url_path": _url_path,
    "url_port": _url_port,
    "url_query": _url_query,
    "url_scheme": _url_scheme,
    "written": _written,
}
"""Transforms of a value alone, by the name a mapping uses."""

OF_OBJECTS: frozenset[Transform | None] = frozenset({_written})
"""Those that read an object; for all others one holds nothing but its text."""


def _total(raw: tuple[Any, ...]) -> int:
    """The sum of what is there."""
    return sum(_integer(value) for value in raw if value is not None)


def _registry_details(raw: tuple[Any, ...]) -> Any:
    """A registry value of some type as Sysmon writes it, which is what rules know."""
    kind, value = raw
    texts = value if isinstance(value, list) else [value]
    if kind == "REG_BINARY":
        return "Binary Data"
    if kind not in ("REG_DWORD", "REG_QWORD") or len(texts) != 1:
        return value
    number = int(str(texts[0]), 0)
    if kind == "REG_DWORD":
        return f"DWORD (0x{number:08x})"
    return f"QWORD (0x{number >> 32:08x}-0x{number & 0xFFFFFFFF:08x})"


def _before(raw: tuple[Any, ...]) -> str | None:
    """A time less how long it had taken (see `_elapsed`): when it began."""
    end, elapsed = raw
    if end is None or elapsed is None:
        return None
    return clock.to_text(clock.parse(_time(end)) - _elapsed(elapsed) // 1000)


def _after(raw: tuple[Any, ...]) -> str | None:
    """A time and so many seconds more."""
    begin, seconds = raw
    if begin is None or seconds is None:
        return None
    return clock.to_text(clock.parse(_time(begin)) + _nanoseconds(seconds) // 1000)


def _changed(raw: tuple[Any, ...]) -> Any:
    """The second value where it is another than the first, such as an address after its translation."""
    before, after = raw
    return None if before == after else after


def _under(raw: tuple[Any, ...]) -> str | None:
    """A file's path of its folder and its name in there."""
    folder, name = (str(part or "") for part in raw)
    if not folder or not name:
        return folder or name or None
    return folder.rstrip("\\/") + ("/" if "/" in folder else "\\") + name


def _whole_url(raw: tuple[Any, ...]) -> str | None:
    """Scheme, host, path and query as one URL; a query of ``-`` is none."""
    scheme, host, path, query = (str(part or "") for part in raw)
    if not scheme or not host:
        return None
    return f"{scheme}://{host}{path}" + (f"?{query}" if query not in {"", "-"} else "")


def community_id(transport: str | None) -> Transform:
    """Return the transform that makes the flow hash which network tools share (Community ID 1, seed 0).

    It reads source, its port, destination, its port, and the transport where none is given here. ICMP has type and code
    in place of the ports.
    """
    return (lambda raw: _community_id((*raw, transport))) if transport else _community_id


def _community_id(raw: tuple[Any, ...]) -> str | None:
    protocol = _PROTOCOLS.get(str(raw[4]).lower())
    if protocol is None or None in raw:
        return None
    ends = [(ipaddress.ip_address(address).packed, _integer(port)) for address, port in (raw[:2], raw[2:4])]
    one_way = False
    if answers := _ICMP_ANSWERS.get(protocol):
        other = answers.get(ends[0][1])
        one_way = other is None
        ends[1] = ends[1][0], ends[1][1] if other is None else other
    first, second = ends if one_way else sorted(ends)
    state = hashlib.sha1(b"\0\0", usedforsecurity=False)
    state.update(first[0] + second[0] + bytes([protocol, 0]))
    state.update(first[1].to_bytes(2, "big") + second[1].to_bytes(2, "big"))
    return "1:" + b64encode(state.digest()).decode()


_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmp6": 58, "sctp": 132, "6": 6, "17": 17, "132": 132}
"""Names of transports and, for those that have ports, numbers: what logs numbers writes no type and code of ICMP."""
_ICMP_ANSWERS: Mapping[int, Mapping[int, int]] = {
    1: {0: 8, 8: 0, 9: 10, 10: 9, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
    58: {
        128: 129,
        129: 128,
        130: 131,
        131: 130,
        133: 134,
        134: 133,
        135: 136,
        136: 135,
        139: 140,
        140: 139,
        144: 145,
        145: 144,
    },
}
"""Types of ICMP and ICMPv6 -> the type that answers them."""


def _unzoned_unless(raw: tuple[Any, ...]) -> str | None:
    """The same, where no surer time is there."""
    time, surer = raw
    return _unzoned(time) if surer is None else None


JOINT: Mapping[str, Transform] = {
    "after": _after,
    "before": _before,
    "changed": _changed,
    "registry_details": _registry_details,
    "total": _total,
    "under": _under,
    "unzoned": _unzoned_unless,
    "whole_url": _whole_url,
}
"""Transforms of several native fields: each gets a tuple, None where a field is not there."""


def hash_of(algorithm: str) -> Transform:
    """Return the transform that picks one algorithm out of ``SHA1=...,MD5=...``."""
    prefix = algorithm.upper() + "="

    def pick(raw: str) -> str | None:
        for part in raw.split(","):
            if part.strip().upper().startswith(prefix):
                digits = part.strip()[len(prefix) :].lower()
                return digits if digits.strip("0") else None  # zeros alone: there was nothing to hash
        return None

    return pick


def looked_up(table: Mapping[str, str]) -> Transform:
    """Return the transform that translates by *table*, whatever the case; what is not in it is nothing."""

    def look_up(raw: Any) -> str | None:
        if isinstance(raw, list | tuple):
            return next((found for item in raw if (found := look_up(item))), None)
        return table.get(str(raw).lower())

    return look_up


def chained(first: Transform, second: Transform) -> Transform:
    """Return the transform that hands what *first* finds to *second*."""

    def both(raw: Any) -> Any:
        found = first(raw)
        return None if found is None else second(found)

    return both


def constant(value: str) -> Transform:
    """Return the transform that says *value* wherever the native field holds something."""
    return lambda _raw: value


def looked_up_joint(table: Mapping[str, str]) -> Transform:
    """Return the transform that translates several values, written ``a/b``, by *table*."""
    return lambda raw: table.get("/".join("" if value is None else _shown(value) for value in raw).lower())


def flags(names: Sequence[str]) -> Transform:
    """Return the transform that says which of the fields *names* are true."""
    short = [name.rpartition(".")[2].upper() for name in names]
    return lambda raw: [name for name, value in zip(short, raw, strict=True) if value is True]


def distinguished(part: str) -> Transform:
    r"""Return the transform that picks one part out of ``CN=name,O=Some\, Inc.,C=US``."""
    wanted = re2.compile(rf"(?i)(?:^|,)\s*{part}=((?:[^,\\]|\\.)*)")

    def pick(raw: str) -> str | None:
        found = wanted.search(raw)
        return found[1].replace("\\", "") or None if found else None

    return pick


def where(value: str) -> Transform:
    """Return the transform that says the first field where the second one is *value*; of lists, the items there."""

    def pick(raw: tuple[Any, ...]) -> Any:
        found, beside = raw[:2]
        if isinstance(found, list) and isinstance(beside, list):
            pairs = zip(found, beside, strict=False) if len(found) == len(beside) else ()
            return [one for one, other in pairs if str(other).lower() == value] or None
        return found if str(beside).lower() == value else None

    return pick


def after(name: str) -> Transform:
    """Return the transform that picks what follows *name* in a path such as ``/tenants/T/providers/P``."""

    def pick(raw: str) -> str | None:
        parts = raw.split("/")
        place = next((place for place, part in enumerate(parts, 1) if part.lower() == name), len(parts))
        return parts[place] if place < len(parts) else None

    return pick


def answered(part: str) -> Transform:
    """Return the transform that picks one part of each line of a zone file: name, ttl, class, type and data by tabs.

    A line without data, such as one cut off, is left out.
    """
    place = _RECORD.index(part)

    def pick(raw: str) -> list[str] | None:
        records = (line.split("\t", len(_RECORD) - 1) for line in raw.splitlines()[:_ARGUMENTS])
        found = [record[place] for record in records if len(record) == len(_RECORD)]
        return [each.upper() for each in found] if part in {"class", "type"} else found

    return pick


_RECORD = ("name", "ttl", "class", "type", "data")


def arn(number: str) -> Transform:
    """Return the transform that picks one of the parts of an ARN, ``arn:aws:service:region:account:rest``; 1 to 6."""
    place = int(number) - 1
    if not 0 <= place < 6:
        raise ValueError("an ARN has parts 1 to 6")
    return lambda raw: (raw.split(":", 5)[place : place + 1] or [None])[0] or None


def kubernetes(part: str) -> Transform:
    """Return the transform that picks version, namespace, type or name of ``group/v1/namespaces/N/pods/name``."""
    if part not in {"version", "namespace", "type", "name"}:
        raise ValueError("a path of Kubernetes has version, namespace, type and name")

    def pick(raw: str) -> str | None:
        _, version, *rest = [*raw.split("/"), ""][:7]
        if not version.startswith("v"):
            return None
        found = {"version": version}
        if rest[:1] == ["namespaces"] and len(rest) > 3:
            found["namespace"] = rest[1]
            del rest[:2]
        found |= zip(("type", "name"), rest, strict=False)
        return found.get(part) or None

    return pick


def word(number: str) -> Transform:
    """Return the transform that picks one of the words of a text; the first is 1."""
    place = int(number) - 1
    if place < 0:
        raise ValueError("the first word is 1")
    return lambda raw: (raw.split()[place : place + 1] or [None])[0]


def next_word(name: str) -> Transform:
    """Return the transform that picks the word behind the word *name*."""

    def pick(raw: str) -> str | None:
        words = raw.split()
        return words[words.index(name) + 1] if name in words[:-1] else None

    return pick


def sentence(number: str) -> Transform:
    """Return the transform that picks one of the sentences of a text, without its dot; the first is 1."""
    place = int(number) - 1
    if place < 0:
        raise ValueError("the first sentence is 1")
    return lambda raw: (_SENTENCE.split(raw)[place : place + 1] or [None])[0] or None


def stated(name: str) -> Transform:
    """Return the transform that picks what a sentence such as ``Name: value.`` states; ``_`` is a blank in a name."""
    start = name.replace("_", " ") + ": "

    def pick(raw: str) -> str | None:
        found = (part.removeprefix(start) for part in _SENTENCE.split(raw) if part.startswith(start))
        return next(found, None) or None

    return pick


_SENTENCE = re2.compile(r"\.(?:\s+|$)")

WITH_ARGUMENT: Mapping[str, tuple[str, Callable[[str], Transform]]] = {
    "after": ("NAME", after),
    "answered": ("PART", answered),
    "arn": ("NUMBER", arn),
    "constant": ("VALUE", constant),
    "distinguished": ("PART", distinguished),
    "hash": ("ALGORITHM", hash_of),
    "kubernetes": ("PART", kubernetes),
    "line": ("KEY", wintexts.line_of),
    "next": ("WORD", next_word),
    "sentence": ("NUMBER", sentence),
    "stated": ("NAME", stated),
    "word": ("NUMBER", word),
}
"""Transforms made for an argument, with what the argument is."""
