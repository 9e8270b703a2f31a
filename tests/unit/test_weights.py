"""Weights as plain arrays in a file: the same bytes for the same arrays, and nothing but arrays comes out."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agent.detect import weights
from agent.errors import TrustError

ARRAYS = {"a": np.arange(4, dtype=np.int64), "b.c": np.zeros((2, 3)), "e": np.zeros((0, 16), np.uint8)}


def saved(save: Callable[..., None], **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(members: dict[str, bytes], **more: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **more) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_what_is_written_is_read_back() -> None:
    found = weights.load(weights.dump(ARRAYS))
    assert found.keys() == ARRAYS.keys()
    assert all((found[name] == ARRAYS[name]).all() and found[name].dtype == ARRAYS[name].dtype for name in ARRAYS)
    assert not any(array.flags.writeable for array in found.values())


def test_the_same_arrays_are_the_same_bytes() -> None:
    assert weights.dump(ARRAYS) == weights.dump(dict(reversed(ARRAYS.items())))


def test_numpy_reads_what_is_written_and_the_other_way_round() -> None:
    with np.load(io.BytesIO(weights.dump(ARRAYS)), allow_pickle=False) as found:
        assert set(found) == set(ARRAYS)
    assert weights.load(saved(np.savez, **ARRAYS)).keys() == ARRAYS.keys()


def header(text: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no zip",
        pickle.dumps({"a": 1}),
        npy(np.arange(3)),
        saved(np.savez_compressed, a=np.zeros(10_000)),
        saved(np.savez, a=np.array([{"a": 1}], dtype=object)),
        saved(np.savez, a=np.array(["text"])),
        saved(np.savez, a=np.zeros(3, dtype=[("x", "<i4")])),
        saved(np.savez, a=np.zeros(3, dtype=">f8")),
        saved(np.savez, a=np.float64(1)),
        saved(np.savez, a=np.asfortranarray(np.zeros((2, 3)))),
        zipped({"a.npy": pickle.dumps([1])}),
        zipped({"a.npy": b""}),
        zipped({"a.npy": npy(np.arange(3))[:-1]}),
        zipped({"a.npy": npy(np.arange(3)) + b"more"}),
        zipped({"a.npy": npy(np.arange(3)), "a": b""}),
        zipped({"a.npy": npy(np.arange(3))}, compression=zipfile.ZIP_DEFLATED),
        zipped({"a.npy": npy(np.arange(3))}, compression=zipfile.ZIP_BZIP2),
        zipped({f"a{n}.npy": npy(np.arange(1)) for n in range(300)}),
        zipped({"a.npy": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999,), }\n")}),
        zipped({"a.npy": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 5_000 + b",), }\n")}),
        zipped({"a.npy": header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps(1))}),
        zipped({"a.npy": header(b"__import__('os').system('true')\n")}),
        zipped({"a.npy": header(b"(" * 9_000)}),
        zipped({"a.npy": b"\x93NUMPY\x02\x00" + bytes(4)}),
    ],
)
def test_whatever_is_not_plain_arrays_is_refused(data: bytes) -> None:
    """Pickles in any disguise, compression, other types, headers that are programs, sizes that lie."""
    with pytest.raises(TrustError, match=r"weights\.npz"):
        weights.load(data)


def test_members_that_share_bytes_are_refused() -> None:
    """Each member may claim no bytes that another has: a bomb without compression."""
    data = bytearray(zipped({f"a{n}.npy": npy(np.zeros(2_000)) for n in range(9)}))
    first, last = data.index(b"PK\x01\x02"), 0
    at = first
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 42 : at + 46] = bytes(4)
        last, at = at, at + 4
    assert last > first
    with pytest.raises(TrustError):
        weights.load(bytes(data))


def test_any_flipped_byte_is_refused_or_harmless() -> None:
    """Nothing but a TrustError or plain arrays, whichever byte is another."""
    data = weights.dump(ARRAYS)
    for place in range(len(data)):
        for bit in (1, 128):
            broken = bytearray(data)
            broken[place] ^= bit
            try:
                found = weights.load(bytes(broken))
            except TrustError:
                continue
            assert all(array.dtype.kind in "iuf" for array in found.values())
