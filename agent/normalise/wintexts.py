r"""Texts that Windows writes into fields, read: command lines, answers of name servers, contexts of PowerShell.

Each function takes time linear in the length of its text.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

import re2

from agent.normalise import domains

_MOST = 512
_TOKEN = re2.compile(r'(?:\\[\\"]|[^\s"]|"(?:\\[\\"]|[^"])*"?)+')
_RECORD = re2.compile(r"^type:\s*(\d{1,5})\s*(.*)$")
_NUMBER = re2.compile(r"^([DQ])WORD \((?:0x([0-9a-fA-F]{1,8})-)?0x([0-9a-fA-F]{1,16})\)$")
_RECORDS = {
    "1": "A", "2": "NS", "5": "CNAME", "6": "SOA", "12": "PTR", "15": "MX", "16": "TXT", "28": "AAAA", "33": "SRV",
    "35": "NAPTR", "39": "DNAME", "43": "DS", "46": "RRSIG", "47": "NSEC", "48": "DNSKEY", "50": "NSEC3", "64": "SVCB",
    "65": "HTTPS", "255": "ANY", "257": "CAA",
}  # fmt: skip
"""Numbers of DNS record types, as IANA keeps them."""


def arguments(raw: str) -> list[str]:
    """The command line as its program gets it: cut at blanks outside quotes, and quotes gone unless escaped."""
    if raw.isascii() and raw.isprintable() and '"' not in raw:
        return raw.split(maxsplit=_MOST)[:_MOST]
    return [_unquoted(token) if '"' in token else token for token in _TOKEN.findall(raw)[:_MOST]]


def _unquoted(token: str) -> str:
    *parts, last = token.split('"')
    found: list[str] = []
    for part in parts:
        bare = part.rstrip("\\")
        slashes = len(part) - len(bare)
        found += bare, "\\" * (slashes // 2), '"' * (slashes % 2)
    return "".join([*found, last])


def answers(raw: str) -> list[str]:
    """What the answers of a name server say, such as ``type: 5 example.net;::ffff:192.0.2.1;``."""
    return [data for _, data in _answers(raw)]


def answer_types(raw: str) -> list[str]:
    """The record types of the same answers, one for each."""
    return [kind for kind, _ in _answers(raw)]


def answer_names(raw: str) -> list[str]:
    """The names among the same answers."""
    return list(dict.fromkeys(data for kind, data in _answers(raw) if kind in {"CNAME", "DNAME", "NS", "PTR", "MX"}))


def _answers(raw: str) -> Iterator[tuple[str, str]]:
    for item in raw.split(";")[:_MOST]:
        text = item.strip()
        if record := _RECORD.match(text):
            yield _RECORDS.get(record[1], record[1]), record[2]
        elif text:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                continue
            address = getattr(address, "ipv4_mapped", None) or address
            yield ("A" if address.version == 4 else "AAAA"), str(address)


def registered_domain(raw: str) -> str | None:
    found = domains.split(raw)
    return found.registered if found else None


def subdomain(raw: str) -> str | None:
    found = domains.split(raw)
    return found.subdomain if found else None


def top_level_domain(raw: str) -> str | None:
    found = domains.split(raw)
    return found.suffix if found else None


def registry_data(raw: str) -> str | None:
    """What Sysmon says was written to a registry value: a number in decimal, else the text; binary data is left out."""
    number = _NUMBER.match(raw)
    if number:
        return str(int((number[2] or "") + number[3].rjust(8 if number[2] else 1, "0"), 16))
    return None if raw == "Binary Data" else raw


def registry_type(raw: str) -> str | None:
    """The type of the same; a text does not tell which of the types of text it is."""
    number = _NUMBER.match(raw)
    return f"REG_{number[1]}WORD" if number else "REG_BINARY" if raw == "Binary Data" else None


def line_of(key: str) -> Callable[[str], str | None]:
    """Return the transform that finds ``HostName=value`` or ``Host Name = value`` in a text of lines."""
    words = re2.sub("([a-z])([A-Z])", r"\1 \2", key)
    signs = (f"{key}=", f"{words} =")

    def find(raw: str) -> str | None:
        for sign in signs:
            place = raw.find(sign)
            while place >= 0:
                if _begins_line(raw, place):
                    begin, end = place + len(sign), raw.find("\n", place)
                    return raw[begin : end if end >= 0 else None].strip() or None
                place = raw.find(sign, place + len(sign))
        return None

    return find


def _begins_line(raw: str, place: int) -> bool:
    while place and raw[place - 1] in " \t":
        place -= 1
    return place == 0 or raw[place - 1] == "\n"
