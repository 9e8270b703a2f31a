"""DSSE v1 envelopes: a payload and its signatures, as one JSON document.

What is signed is the pre-authentication encoding of type and payload, so bytes signed as one type never pass as
another. The list of signatures is not signed itself: who signed is what `verify` says, and taking signatures away can
only make it say fewer.

https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from pydantic import Field

from agent.errors import ConfigError, TrustError
from agent.trust import keys
from agent.trust.encoding import MAX_BYTES, Shape, read, to_base64, unbase64
from agent.trust.keys import PrivateKey, PublicKey, key_id

MAX_SIGNATURES = 64
_LIMIT = 2 * MAX_BYTES


@dataclass(frozen=True)
class Verified:
    """A payload and the ids of the known keys that signed it: at least one, each once."""

    payload: bytes
    signers: frozenset[str]


class Signature(Shape):
    """One signature; *keyid* is a hint that nothing protects."""

    keyid: str | None = Field(default=None, max_length=256)
    sig: str = Field(max_length=256)


class Envelope(Shape):
    """A payload, base64, of a type, and signatures over both."""

    payload_type: str = Field(alias="payloadType", min_length=1, max_length=256)
    payload: str
    signatures: list[Signature] = Field(min_length=1, max_length=MAX_SIGNATURES)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: type and payload, unambiguous about where each ends."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, key: PrivateKey, *others: PrivateKey) -> bytes:
    """Return the envelope of *payload*, signed by each key."""
    if not 0 < len(payload) <= MAX_BYTES:
        raise ConfigError(f"cannot sign {len(payload)} bytes: expected 1 to {MAX_BYTES}")
    message = pae(payload_type, payload)
    return _dump(payload, payload_type, [_signature(one, message) for one in (key, *others)])


def cosign(envelope: bytes, payload_type: str, key: PrivateKey) -> bytes:
    """Return *envelope* with one more signature over its payload; an older one of the same key gives way."""
    parsed, content = _open(envelope, payload_type)
    added = _signature(key, pae(payload_type, content))
    kept = [one.model_dump() for one in parsed.signatures if one.keyid != added["keyid"]]
    return _dump(content, payload_type, [*kept, added])


def payload(envelope: bytes, payload_type: str) -> bytes:
    """Return the payload UNVERIFIED: to show what somebody wants, never to do it."""
    return _open(envelope, payload_type)[1]


def verify(envelope: bytes, payload_type: str, known: Iterable[PublicKey]) -> Verified:
    """Return the payload and which of the *known* keys signed it.

    Signatures by other keys say nothing. TrustError if no known key signed, if a signature that names a known key does
    not hold, or if the envelope is not exactly one well-formed envelope of this type.
    """
    by_id = {key_id(key): key for key in known}
    parsed, content = _open(envelope, payload_type)
    message = pae(payload_type, content)
    signers = set()
    for one in parsed.signatures:
        if one.keyid in by_id:
            keys.verify(by_id[one.keyid], unbase64(one.sig, "envelope: signature"), message)
            signers.add(one.keyid)
    if not signers:
        named = ", ".join(sorted({str(one.keyid)[:16] for one in parsed.signatures}))
        raise TrustError(f"envelope: expected a signature by one of {len(by_id)} known keys, found only: {named}")
    return Verified(content, frozenset(signers))


def _open(envelope: bytes, payload_type: str) -> tuple[Envelope, bytes]:
    parsed = read(Envelope, envelope, "envelope", _LIMIT)
    if parsed.payload_type != payload_type:
        raise TrustError(f"envelope: expected payload type {payload_type}, found {parsed.payload_type}")
    content = unbase64(parsed.payload, "envelope: payload")
    if len(content) > MAX_BYTES:
        raise TrustError(f"envelope: payload is {len(content)} bytes, at most {MAX_BYTES} are read")
    return parsed, content


def _signature(key: PrivateKey, message: bytes) -> dict[str, str | None]:
    return {"keyid": key_id(key.public_key()), "sig": to_base64(keys.sign(key, message))}


def _dump(payload: bytes, payload_type: str, signatures: list[dict[str, str | None]]) -> bytes:
    return orjson.dumps({"payloadType": payload_type, "payload": to_base64(payload), "signatures": signatures})
