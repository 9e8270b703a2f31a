"""Signed packs of content, such as rules: who made which version, and the digest of exactly what it holds.

The statement lies beside the pack, ``NAME.dsse`` beside the folder or archive ``NAME``. A configuration that names the
pack instead of a digest lets whoever may sign packs change what is in it without a new revision.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.encoding import Shape, read
from agent.trust.keys import PrivateKey, PublicKey
from agent.trust.manifest import Digest, Name

PAYLOAD_TYPE = "application/vnd.vedette.pack+json"
MAX_ENVELOPE = 1 << 20
_Version: TypeAlias = Annotated[int, Field(ge=1, le=2**53)]


class Pack(Shape):
    """What a signer says: this content, under this name, is this version."""

    name: Name
    version: _Version
    digest: Digest


def envelope_of(content: Path) -> Path:
    """Return where the statement about *content* lies: beside it, also of a folder that is called ``.`` here."""
    return Path(f"{os.path.abspath(content)}.dsse")  # noqa: PTH100 (a link keeps its own statement)


def sign(pack: Pack, key: PrivateKey, beside: bytes = b"") -> bytes:
    """Return the envelope of *pack*; signatures that stand in *beside* over the same statement are kept."""
    payload = pack.model_dump_json().encode()
    try:
        same = bool(beside) and dsse.payload(beside, PAYLOAD_TYPE) == payload
    except TrustError:
        same = False
    return dsse.cosign(beside, PAYLOAD_TYPE, key) if same else dsse.sign(payload, PAYLOAD_TYPE, key)


def claimed(envelope: bytes) -> Pack:
    """Return what *envelope* says, UNVERIFIED: to go on from, never to run."""
    return read(Pack, dsse.payload(envelope, PAYLOAD_TYPE), "pack")


def verify(envelope: bytes, known: Iterable[PublicKey]) -> tuple[Pack, frozenset[str]]:
    """Return what *envelope* says and which of the *known* keys (ids) say so; TrustError if none does."""
    verified = dsse.verify(envelope, PAYLOAD_TYPE, known)
    return read(Pack, verified.payload, "pack"), verified.signers
