"""The hashes of RFC 6962: a Merkle tree over a list that only grows, with proofs of what it holds and held.

SHA-256; a leaf is hashed behind a zero byte, a node behind a one, so that neither can pass for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from agent.errors import TrustError

EMPTY = sha256(b"").digest()
"""The root of a tree without leaves."""
SIZE = 32
"""Bytes of a hash."""


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed to append: the roots of the whole subtrees, the largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, size: int, data: bytes) -> Frontier:
        """Return the frontier of *size* leaves that `bytes` gave; TrustError if it cannot be one."""
        if size < 0 or len(data) != size.bit_count() * SIZE:
            raise TrustError(
                f"frontier of {size:,} leaves: expected {size.bit_count()} hashes, found {len(data)} bytes"
            )
        return cls(size, tuple(data[at : at + SIZE] for at in range(0, len(data), SIZE)))

    def __bytes__(self) -> bytes:
        return b"".join(self.peaks)

    def append(self, leaf: bytes) -> Frontier:
        """Return the frontier with one more leaf, given by its hash."""
        peaks, size = list(self.peaks), self.size
        while size & 1:
            leaf = node_hash(peaks.pop(), leaf)
            size >>= 1
        return Frontier(self.size + 1, (*peaks, leaf))

    @property
    def root(self) -> bytes:
        if not self.peaks:
            return EMPTY
        *rest, node = self.peaks
        for peak in reversed(rest):
            node = node_hash(peak, node)
        return node


class Tree:
    """A whole tree, from the hashes of its leaves: its root and its proofs."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            above = [node_hash(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
            self._levels.append(above + level[len(above) * 2 :])

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0] if len(self) else EMPTY

    def inclusion(self, index: int) -> tuple[bytes, ...]:
        """Return the path from the leaf at *index* to the root."""
        path = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                path.append(level[index ^ 1])
            index >>= 1
        return tuple(path)


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Hold *path* to lead from the leaf's hash at *index* to the *root* of a tree of *size*; TrustError if it does not.

    RFC 9162, 2.1.3.2.
    """
    if not 0 <= index < size:
        raise TrustError(f"leaf {index:,} cannot be in a tree of {size:,}")
    node, last = leaf, size - 1
    for step in path:
        if last == 0:
            raise TrustError(f"leaf {index:,} of {size:,}: the path is too long")
        if index & 1 or index == last:
            node = node_hash(step, node)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, step)
        index, last = index >> 1, last >> 1
    if last or node != root:
        raise TrustError(f"the path leads to the root {node.hex()}, expected {root.hex()}")
