"""Model signatures: OpenSSF Model Signing v1.0, by key or by certificate.

A signature is a Sigstore bundle around a DSSE envelope around an in-toto statement that lists every file of the model
with its digest. Bundles of the public `model_signing` library verify here and ours verify there, but less passes here:

- every file is listed and every listed file is there, whatever the statement says it ignores (also ``.git*``)
- exactly one signature, whose key is named and known; SHA-256 only; whole files only, sorted, no links
- a certificate is valid *now* and made for code signing, and its chain ends in a root that the caller names

Signatures may be on P-256, P-384 or P-521, as the specification has it; ours are on P-256.

https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import BaseModel, Field

from agent.errors import ConfigError, TrustError
from agent.trust import keys
from agent.trust.dsse import Envelope, pae
from agent.trust.encoding import MAX_BYTES, Shape, read, to_base64, unbase64
from agent.trust.keys import PrivateKey, PublicKey, key_id, to_pem

SIGNATURE = "model.sig"
"""The file that holds the signature, beside the files that it covers."""

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_LIMIT = 2 * MAX_BYTES
_MAX_CHAIN = 8
_SHOWN = 5

_METHODS = {
    "public_key": "a key",
    "x509_chain": "a certificate",
    "certificate": "a Sigstore identity",
}

_Hex: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Signed:
    """What a signature says: the model's digest (hex SHA-256), the name it was signed under, the id of the key."""

    digest: str
    name: str
    signer: str


# --- the shapes of a bundle -------------------------------------------------------------------------------------------


class _Hint(Shape):
    hint: str


class _Certificate(Shape):
    der: str = Field(alias="rawBytes", max_length=1 << 16)


class _Chain(Shape):
    certificates: list[_Certificate] = Field(min_length=1, max_length=_MAX_CHAIN)


class _Material(Shape):
    public_key: _Hint | None = Field(default=None, alias="publicKey")
    x509_chain: _Chain | None = Field(default=None, alias="x509CertificateChain")
    certificate: Any = None
    log: list[Any] = Field(default=[], alias="tlogEntries")
    timestamps: Any = Field(default=None, alias="timestampVerificationData")


class _Bundle(Shape):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    material: _Material = Field(alias="verificationMaterial")
    envelope: Envelope = Field(alias="dsseEnvelope")


class _Digest(Shape):
    sha256: _Hex


class _Subject(BaseModel):
    name: str = Field(min_length=1, max_length=255)
    digest: _Digest


class _Resource(BaseModel):
    name: str = Field(min_length=1)
    digest: _Hex
    algorithm: Literal["sha256"]


class _Serialization(Shape):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[str, ...] = ()


class _Predicate(Shape):
    resources: list[_Resource] = Field(min_length=1)
    serialization: _Serialization


class _Statement(Shape):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_Subject] = Field(min_length=1, max_length=1)
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    predicate: _Predicate


# --- signing ----------------------------------------------------------------------------------------------------------


def digest(files: Mapping[str, bytes]) -> str:
    """Return the digest that names the model: SHA-256 over the files' digests in the order of their names."""
    return _root(hashlib.sha256(files[name]).hexdigest() for name in _ordered(files))


def sign(files: Mapping[str, bytes], name: str, key: PrivateKey) -> bytes:
    """Return the signature of *key* over *files*: every file of the model but the signature, by relative POSIX path."""
    return _bundle(files, name, key, {"publicKey": {"hint": _hint(key.public_key())}})


def sign_with_certificate(
    files: Mapping[str, bytes], name: str, key: PrivateKey, chain: Sequence[x509.Certificate]
) -> bytes:
    """Return the signature of *key*, whose certificate is the first of *chain*, over *files*."""
    if not chain or chain[0].public_key() != key.public_key():
        raise ConfigError("the first certificate of the chain is not that of the signing key; give the leaf first")
    certificates = [{"rawBytes": to_base64(one.public_bytes(Encoding.DER))} for one in chain]
    return _bundle(files, name, key, {"x509CertificateChain": {"certificates": certificates}})


def _bundle(files: Mapping[str, bytes], name: str, key: PrivateKey, material: Mapping[str, Any]) -> bytes:
    if not files:
        raise ConfigError("there is no file to sign")
    for path in files:
        if path == SIGNATURE or path.startswith("/") or any(part.startswith(".") for part in path.split("/")):
            raise ConfigError(f"cannot sign a file named {path!r}: other verifiers leave such files out; rename it")
    resources = [
        {"name": path, "algorithm": "sha256", "digest": hashlib.sha256(files[path]).hexdigest()}
        for path in _ordered(files)
    ]
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest(files)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": resources,
        },
    }
    payload = orjson.dumps(statement)
    signature = keys.sign(key, pae(_PAYLOAD_TYPE, payload))
    envelope = {
        "payload": to_base64(payload),
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [{"sig": to_base64(signature), "keyid": ""}],
    }
    return orjson.dumps(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {**material, "tlogEntries": []},
            "dsseEnvelope": envelope,
        }
    )


# --- verifying --------------------------------------------------------------------------------------------------------


def verify(files: Mapping[str, bytes], bundle: bytes, known: Iterable[PublicKey]) -> Signed:
    """Return what *bundle* says of *files* if one of the *known* keys signed just these; otherwise TrustError."""
    parsed = read(_Bundle, bundle, SIGNATURE, _LIMIT)
    named = _material(parsed, "public_key").hint
    by_hint = {_hint(key): key for key in known}
    if named not in by_hint:
        raise TrustError(f"{SIGNATURE}: expected one of {len(by_hint)} known keys, found the key with hint {named:.16}")
    return _signed(files, parsed.envelope, by_hint[named])


def verify_certificate(
    files: Mapping[str, bytes], bundle: bytes, roots: Sequence[x509.Certificate], now: datetime
) -> Signed:
    """Return what *bundle* says of *files* if a certificate below one of *roots* signed just these.

    TrustError otherwise, or if a certificate of the chain is not valid at *now* or not made for this.
    """
    parsed = read(_Bundle, bundle, SIGNATURE, _LIMIT)
    chain = [_certificate(one) for one in _material(parsed, "x509_chain").certificates]
    return _signed(files, parsed.envelope, _leaf_key(chain, roots, now))


def _material(bundle: _Bundle, wanted: str) -> Any:
    """Return how *bundle* names its key, which must be the *wanted* way and no other."""
    material = bundle.material
    found = [method for method in _METHODS if getattr(material, method) is not None]
    if found != [wanted]:
        methods = " and ".join(_METHODS[method] for method in found) or "nothing"
        raise TrustError(f"{SIGNATURE}: expected a signature made with {_METHODS[wanted]}, found one with {methods}")
    if material.log or material.timestamps:
        raise TrustError(f"{SIGNATURE}: expected no log entries or timestamps beside {_METHODS[wanted]}, found some")
    return getattr(material, wanted)


def _signed(files: Mapping[str, bytes], envelope: Envelope, public: PublicKey) -> Signed:
    if len(envelope.signatures) != 1:
        raise TrustError(f"{SIGNATURE}: expected one signature, found {len(envelope.signatures)}")
    if envelope.payload_type != _PAYLOAD_TYPE:
        raise TrustError(f"{SIGNATURE}: expected payload type {_PAYLOAD_TYPE}, found {envelope.payload_type}")
    payload = unbase64(envelope.payload, f"{SIGNATURE}: payload")
    signature = unbase64(envelope.signatures[0].sig, f"{SIGNATURE}: signature")
    keys.verify(public, signature, pae(_PAYLOAD_TYPE, payload))
    statement = read(_Statement, payload, f"{SIGNATURE}: statement")
    resources = statement.predicate.resources
    listed = {one.name: one.digest for one in resources}
    if [one.name for one in resources] not in (_ordered(listed), sorted(listed)):
        raise TrustError(f"{SIGNATURE}: expected each file listed once, sorted by name, found another order")
    root = _root(one.digest for one in resources)
    subject = statement.subject[0]
    if subject.digest.sha256 != root:
        raise TrustError(f"{SIGNATURE}: expected digest {root} over the listed files, found {subject.digest.sha256}")
    _compare(listed, {path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
    return Signed(root, subject.name, key_id(public))


def _compare(listed: Mapping[str, str], found: Mapping[str, str]) -> None:
    problems = {
        "missing": listed.keys() - found.keys(),
        "not signed": found.keys() - listed.keys(),
        "changed": {path for path in listed.keys() & found.keys() if listed[path] != found[path]},
    }
    told = [f"{', '.join(sorted(paths)[:_SHOWN])} {what}" for what, paths in problems.items() if paths]
    if told:
        raise TrustError(f"{SIGNATURE}: expected the files as they were signed, found {'; '.join(told)}")


def _ordered(names: Iterable[str]) -> list[str]:
    """Sort as the specification's library does: by the parts of the path."""
    return sorted(names, key=lambda name: PurePosixPath(name).parts)


def _root(digests: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _hint(public: PublicKey) -> str:
    return hashlib.sha256(to_pem(public)).hexdigest()


# --- certificates -----------------------------------------------------------------------------------------------------


def _certificate(one: _Certificate) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(unbase64(one.der, f"{SIGNATURE}: certificate"))
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise TrustError(f"{SIGNATURE}: not a certificate: {error}") from None


def _leaf_key(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime) -> PublicKey:
    """Return the key of the first certificate once its chain is proved at *now*."""
    if not roots:
        raise TrustError(f"{SIGNATURE}: expected a root certificate to trust, found none; name one")
    leaf, *between = chain
    now = now.astimezone(UTC)
    policy = (
        verification.PolicyBuilder()
        .store(verification.Store(list(roots)))
        .time(now)
        .max_chain_depth(_MAX_CHAIN)
        .extension_policies(ca_policy=_issuer_policy(), ee_policy=_signer_policy())
    )
    try:
        policy.build_client_verifier().verify(leaf, between)
        key = leaf.public_key()
    except (verification.VerificationError, ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{SIGNATURE}: the certificate does not hold at {now:%Y-%m-%d %H:%M} UTC: {error}") from None
    if not isinstance(key, PublicKey):
        raise TrustError(f"{SIGNATURE}: expected a certificate for an elliptic-curve key, found {type(key).__name__}")
    return key


def _signer_policy() -> verification.ExtensionPolicy:
    anyway = verification.Criticality.AGNOSTIC
    return (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.KeyUsage, anyway, _signs_data)
        .require_present(x509.ExtendedKeyUsage, anyway, _signs_code)
    )


def _issuer_policy() -> verification.ExtensionPolicy:
    anyway = verification.Criticality.AGNOSTIC
    return (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)
        .require_present(x509.KeyUsage, anyway, _signs_certificates)
        .may_be_present(x509.ExtendedKeyUsage, anyway, _may_issue_for_code)
    )


def _signs_data(_policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature or usage.key_cert_sign:
        raise ValueError("expected a key for digital signatures and not for certificates")


def _signs_code(_policy: verification.Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CODE_SIGNING not in usage or ExtendedKeyUsageOID.SERVER_AUTH in usage:
        raise ValueError("expected a key for code signing and not for servers")


def _signs_certificates(_policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("expected an issuer whose key may sign certificates")


def _may_issue_for_code(
    _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None
) -> None:
    if usage is not None and ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise ValueError("expected an issuer for code signing")
