"""The Merkle tree of RFC 6962: its known answers, and every proof of every tree up to 64 leaves."""

from __future__ import annotations

from hashlib import sha256

import pytest

from agent.audit.merkle import EMPTY, Frontier, Tree, check_inclusion, leaf_hash
from agent.errors import TrustError

KNOWN = (  # leaf, root of the tree that ends with it
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
    ("606162636465666768696a6b6c6d6e6f", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
)
LEAVES = [leaf_hash(bytes([number])) for number in range(64)]
TREES = [Tree(LEAVES[:size]) for size in range(65)]


def defined(leaves: list[bytes]) -> bytes:
    """Return the root as RFC 6962 defines it."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return sha256(b"\x01" + defined(leaves[:half]) + defined(leaves[half:])).digest()


def test_known_answers() -> None:
    """The roots are those of Certificate Transparency's own tests."""
    frontier = Frontier()
    assert frontier.root.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for data, root in KNOWN:
        frontier = frontier.append(leaf_hash(bytes.fromhex(data)))
        assert frontier.root.hex() == root
    assert Tree([leaf_hash(bytes.fromhex(data)) for data, _ in KNOWN]).root.hex() == KNOWN[-1][1]


def test_all_roots_are_the_defined_one() -> None:
    """Appending, the whole tree and the definition agree, and a frontier survives its stored form."""
    frontier = Frontier()
    for size in range(65):
        assert frontier.root == TREES[size].root == defined(LEAVES[:size])
        assert Frontier.of(size, bytes(frontier)) == frontier
        frontier = frontier.append(LEAVES[size]) if size < 64 else frontier


def test_every_leaf_is_proved_to_be_in_every_tree() -> None:
    """The path leads to the root, and to it alone: not from another leaf, place or size, not changed, cut or grown."""
    for size in range(1, 65):
        root = TREES[size].root
        for index in range(size):
            path = TREES[size].inclusion(index)
            check_inclusion(LEAVES[index], index, size, path, root)
            wrong = [
                (LEAVES[index - 1] if size > 1 else leaf_hash(b"x"), index, size, path, root),
                (LEAVES[index], index ^ 1, size, path, root),
                (LEAVES[index], index, size, path, leaf_hash(b"x")),
                (LEAVES[index], index, size, (*path, root), root),
                (LEAVES[index], index + size, size, path, root),
                (LEAVES[index], -1, size, path, root),
                *((LEAVES[index], index, size, path[:cut], root) for cut in range(len(path))),
            ]
            for attempt in wrong:
                with pytest.raises(TrustError):
                    check_inclusion(*attempt)


@pytest.mark.parametrize(("size", "data"), [(3, b"x" * 32), (1, b"x" * 64), (1, b"x" * 31), (-1, b"")])
def test_a_frontier_that_cannot_be_is_refused(size: int, data: bytes) -> None:
    """One hash for each whole subtree, no more and no less."""
    with pytest.raises(TrustError, match="frontier"):
        Frontier.of(size, data)
