"""Keys: named by what they are, sealed when they rest, P-256 only."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from agent.errors import ConfigError, TrustError
from agent.trust import keys

KEY = keys.generate()
OTHERS = {
    "secp384r1": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa.generate_private_key(65537, 2048),
}


def test_a_key_id_is_the_digest_of_the_public_key_as_der() -> None:
    """Others can compute it from the public key."""
    der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert keys.key_id(KEY.public_key()) == hashlib.sha256(der).hexdigest()


def test_a_sealed_key_opens_with_its_passphrase() -> None:
    opened = keys.unseal(keys.seal(KEY, b"open sesame"), b"open sesame")
    assert keys.key_id(opened.public_key()) == keys.key_id(KEY.public_key())


def test_a_public_key_survives_pem() -> None:
    assert keys.from_pem(keys.to_pem(KEY.public_key())) == KEY.public_key()


def test_a_key_is_never_sealed_by_nothing() -> None:
    with pytest.raises(ConfigError, match="passphrase"):
        keys.seal(KEY, b"")


def test_a_wrong_passphrase_is_refused_and_not_repeated() -> None:
    """The text does not say what was tried."""
    with pytest.raises(TrustError, match="wrong passphrase") as caught:
        keys.unseal(keys.seal(KEY, b"right"), b"hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_sealed_key_needs_its_passphrase() -> None:
    with pytest.raises(TrustError, match="expected its passphrase"):
        keys.unseal(keys.seal(KEY, b"right"), b"")


def test_a_key_that_lies_open_is_refused() -> None:
    """Also for somebody who has no passphrase to give."""
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(TrustError, match="lies open"):
        keys.unseal(pem, b"any")
    with pytest.raises(TrustError, match="expected its passphrase"):
        keys.unseal(pem, b"")


@pytest.mark.parametrize("name", OTHERS)
def test_only_p256_keys_are_read(name: str) -> None:
    """Another curve or kind of key is named and refused, private and public."""
    other = OTHERS[name]
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TrustError, match=f"expected a P-256 key, found .*{name}"):
        keys.unseal(private, b"x")
    with pytest.raises(TrustError, match=f"expected a P-256 key, found .*{name}"):
        keys.from_pem(public)


@pytest.mark.parametrize("pem", [b"", b"no pem", b"-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----\n", b"\xff"])
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(TrustError):
        keys.from_pem(pem)
    with pytest.raises(TrustError):
        keys.unseal(pem, b"x")


def test_a_signature_holds_for_its_bytes_and_key_only() -> None:
    signature = keys.sign(KEY, b"this")
    keys.verify(KEY.public_key(), signature, b"this")
    for public, message in ((KEY.public_key(), b"that"), (keys.generate().public_key(), b"this")):
        with pytest.raises(TrustError, match="does not hold"):
            keys.verify(public, signature, message)


def test_a_signature_on_a_curve_nobody_agreed_on_is_refused() -> None:
    with pytest.raises(TrustError, match="secp256k1"):
        keys.verify(OTHERS["secp256k1"].public_key(), b"", b"")  # type: ignore[arg-type]
