"""MaxMind DB files for tests, written after the format's description: a tree of bits, the records, what it is about."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

MARK = b"\xab\xcd\xefMaxMind.com"
BUILT = 1_772_323_200
"""2026-03-01T00:00:00Z"""


def database(records: Mapping[str, Any], *, version: int = 6, **about: Any) -> bytes:
    """Return a database of *records* by network, built at `BUILT`; *about* changes its metadata."""
    tree: list[Any] = [None, None]
    for network in sorted(map(ip_network, records), key=lambda one: (-one.version, one.prefixlen)):
        inside = version == 6 and network.version == 4
        length = network.prefixlen + (96 if inside else 0)
        bits = f"{int(network.network_address):0{32 if version == 4 else 128}b}"[:length]
        node = tree
        for bit in map(int, bits[:-1]):
            if not isinstance(node[bit], list):
                node[bit] = [node[bit]] * 2
            node = node[bit]
        node[int(bits[-1])] = str(network)
    nodes = _in_order(tree)
    places, data = {}, b""
    for network, record in records.items():
        places[network] = len(data)
        data += encode(record)
    numbers = {id(node): number for number, node in enumerate(nodes)}

    def pointer(child: Any) -> int:
        if isinstance(child, list):
            return numbers[id(child)]
        return len(nodes) if child is None else len(nodes) + 16 + places[child]

    search = b"".join(pointer(child).to_bytes(4, "big") for node in nodes for child in node)
    metadata = {
        "node_count": len(nodes),
        "record_size": 32,
        "ip_version": version,
        "database_type": "Test",
        "languages": ["en"],
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": BUILT,
        "description": {"en": "made up"},
    }
    return search + bytes(16) + data + MARK + encode({**metadata, **about})


def encode(value: Any) -> bytes:
    if isinstance(value, bool):
        return _head(14, int(value))
    if isinstance(value, str):
        data = value.encode()
        return _head(2, len(data)) + data
    if isinstance(value, bytes):
        return _head(4, len(value)) + value
    if isinstance(value, float):
        return _head(3, 8) + struct.pack(">d", value)
    if isinstance(value, int):
        data = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return _head(9, len(data)) + data
    if isinstance(value, list):
        return _head(11, len(value)) + b"".join(map(encode, value))
    return _head(7, len(value)) + b"".join(encode(key) + encode(one) for key, one in value.items())


def _head(kind: int, size: int) -> bytes:
    extended = b"" if kind < 8 else bytes([kind - 7])
    first = kind << 5 if kind < 8 else 0
    if size < 29:
        return bytes([first | size]) + extended
    if size < 285:
        return bytes([first | 29]) + extended + bytes([size - 29])
    return bytes([first | 30]) + extended + (size - 285).to_bytes(2, "big")


def _in_order(tree: list[Any]) -> list[list[Any]]:
    nodes = [tree]
    for node in nodes:  # which grows
        nodes += [child for child in node if isinstance(child, list)]
    return nodes
