"""Weights as data: a ``.npz`` file that holds plain arrays of a few types and nothing else, uncompressed.

`dump` writes the same bytes for the same arrays. `load` reads what `dump` writes, also of anybody's making: nothing is
unpickled, evaluated or unpacked, nothing is larger than the file itself, and whatever is not as expected is a
TrustError.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import TrustError

NAME = "weights.npz"
MAX_MEMBERS = 256

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(\|u1|<i4|<i8|<f4|<f8)', 'fortran_order': False, "
    rb"'shape': \((?:(\d{1,10}),|(\d{1,10}), (\d{1,10}))\), \} *\n"
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


def dump(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return *arrays* as the bytes of a ``.npz`` file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue())
    return file.getvalue()


def load(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays by name, not to be written to."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, len(data))
            raw = {one.filename.removesuffix(".npy"): archive.read(one) for one in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise TrustError(f"{NAME}: expected an uncompressed .npz file, found none: {error}") from None
    return {name: _array(name, member) for name, member in raw.items()}


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [one.filename for one in members]
    if len(set(names)) != len(names) or len(names) > MAX_MEMBERS:
        raise TrustError(f"{NAME}: expected at most {MAX_MEMBERS} arrays with a name each, found {len(names)}")
    for one in members:
        if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1 or one.compress_size != one.file_size:
            raise TrustError(f"{NAME}: {_short(one.filename)}: expected an array as it is, found it packed")
    if sum(one.file_size for one in members) > size:
        raise TrustError(f"{NAME}: expected no more than the file holds, found members that share bytes")


def _array(name: str, data: bytes) -> NDArray[Any]:
    length = int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10 : 10 + length]) if data.startswith(_MAGIC) else None
    if header is None:
        raise TrustError(f"{NAME}: {_short(name)}: expected a plain array of numbers, found something else")
    kind, *sizes = header.groups()
    shape = tuple(int(size) for size in sizes if size is not None)
    dtype = np.dtype(kind.decode("ascii"))
    body = memoryview(data)[10 + length :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise TrustError(f"{NAME}: {_short(name)}: expected {shape} of {dtype}, found {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape)


def _short(name: str) -> str:
    return repr(name[:80])
