"""Signing keys: elliptic-curve keys on P-256.

A key is named by its *key id*: the SHA-256, in hex, of its DER SubjectPublicKeyInfo. A private key leaves the process
only sealed by a passphrase, as standard PKCS#8 that `openssl` reads too.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from agent.errors import ConfigError, TrustError

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey

_CURVE = ec.SECP256R1
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


def generate() -> PrivateKey:
    return ec.generate_private_key(_CURVE())


def key_id(public: PublicKey) -> str:
    """Return the 64 hex digits that name the key."""
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def seal(private: PrivateKey, passphrase: bytes) -> bytes:
    """Return the key as PEM that only *passphrase* opens."""
    if not passphrase:
        raise ConfigError("a signing key needs a passphrase, found an empty one; choose one and try again")
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def unseal(pem: bytes, passphrase: bytes) -> PrivateKey:
    """Return the private key in *pem*; TrustError if it is not a P-256 key that *passphrase* seals."""
    if not passphrase:
        raise TrustError("signing key: expected its passphrase, found an empty one")
    try:
        key = load_pem_private_key(pem, passphrase)
    except TypeError:
        raise TrustError("signing key: expected an encrypted key, found one that lies open; seal it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError("signing key: wrong passphrase, or not an encrypted private key in PEM") from None
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, _CURVE):
        raise TrustError(f"signing key: expected a P-256 key, found {_describe(key)}; make one with 'vedette init'")
    return key


def to_pem(public: PublicKey) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def from_pem(pem: bytes) -> PublicKey:
    """Return the public key in *pem*; TrustError if it is not a P-256 key."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError("public key: expected a P-256 key in PEM, found something else") from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, _CURVE):
        raise TrustError(f"public key: expected a P-256 key, found {_describe(key)}")
    return key


def sign(private: PrivateKey, message: bytes) -> bytes:
    """Return the ECDSA signature (DER) over *message*."""
    return private.sign(message, ec.ECDSA(_hash(private.curve)))


def verify(public: PublicKey, signature: bytes, message: bytes) -> None:
    """Raise TrustError if *signature* is not the key's ECDSA signature (DER) over *message*.

    Signatures of other signers may also be on P-384 or P-521, with the hash of that size.
    """
    try:
        public.verify(signature, message, ec.ECDSA(_hash(public.curve)))
    except InvalidSignature:
        raise TrustError(f"the signature by key {key_id(public)[:16]} does not hold: other bytes were signed") from None


def _hash(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    try:
        return _HASHES[curve.name]
    except KeyError:
        raise TrustError(f"expected a key on P-256, P-384 or P-521, found curve {curve.name}") from None


def _describe(key: object) -> str:
    curve = getattr(key, "curve", None)
    return f"curve {curve.name}" if isinstance(curve, ec.EllipticCurve) else f"a {type(key).__name__}"
