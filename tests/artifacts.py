"""A small model artifact, whole and signed, for tests to break."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.trust import keys, oms
from agent.trust.admission import Admitted, Terms, admit
from agent.trust.manifest import MANIFEST, WEIGHTS, instant

NOW = "2026-07-01T12:00:00Z"
KEY = keys.generate()
"""The key of a principal who may sign models."""
STRANGER = keys.generate()
RECIPE = {"name": "logons", "version": 1, "features": {"count": {"count": True}}}


def schema_hash(recipe: Mapping[str, Any]) -> str:
    """Stand in for the digest of a recipe."""
    return "sha256:" + hashlib.sha256(orjson.dumps(dict(recipe), option=orjson.OPT_SORT_KEYS)).hexdigest()


def manifest(**changes: Any) -> dict[str, Any]:
    """Return a manifest that is good on `NOW`, but for *changes*."""
    return {
        "format": "vedette.model/1",
        "id": "logons",
        "title": "Unusual logons",
        "kind": "isolation-forest",
        "recipe": RECIPE,
        "schema_hash": schema_hash(RECIPE),
        "training": {
            "begin": "2026-01-01T00:00:00Z",
            "end": "2026-03-01T00:00:00Z",
            "rows": 1000,
            "digest": "sha256:" + "0" * 64,
            "source": "auth",
        },
        "calibration": {
            "begin": "2026-03-01T00:00:00Z",
            "end": "2026-04-01T00:00:00Z",
            "rows": 499,
            "rows_per_day": 100.0,
            "smallest_budget": 0.2,
        },
        "evaluation": [{"metric": "auc", "value": "0.97"}],
        "gates": [{"metric": "auc", "comparator": ">=", "threshold": "0.9", "passed": True}],
        "created": "2026-06-01T00:00:00Z",
        "not_before": "2026-06-01T00:00:00Z",
        "not_after": "2026-12-01T00:00:00Z",
        "weights": "weights.npz",
        **changes,
    }


def weights() -> bytes:
    """Return a few hundred bytes of weights."""
    buffer = io.BytesIO()
    np.savez(buffer, threshold=np.arange(4.0))
    return buffer.getvalue()


def content(about: Mapping[str, Any] | bytes | None = None, **others: bytes) -> dict[str, bytes]:
    """Return the files of an artifact without its signature; *others* by name with ``__`` for a dot."""
    about = manifest() if about is None else about
    data = about if isinstance(about, bytes) else orjson.dumps(about)
    files = {MANIFEST: data, WEIGHTS: weights()}
    return files | {name.replace("__", "."): data for name, data in others.items()}


def signed(files: Mapping[str, bytes] | None = None, key: keys.PrivateKey = KEY) -> dict[str, bytes]:
    """Return *files* with the signature of *key*."""
    files = content() if files is None else files
    return {**files, oms.SIGNATURE: oms.sign(files, "logons", key)}


def terms(files: Mapping[str, bytes], now: str = NOW, **changes: Any) -> Terms:
    """Return terms on which *files* may run, but for *changes*."""
    covered = {path: data for path, data in files.items() if path != oms.SIGNATURE}
    known = {keys.key_id(KEY.public_key()): KEY.public_key()}
    values = {"model": "logons", "digest": oms.digest(covered), "tenant": "default", "keys": known}
    return Terms(**{**values, "revoked": frozenset(), "now": instant(now), **changes})  # type: ignore[arg-type]


def admitted(files: Mapping[str, bytes], now: str = NOW, **changes: Any) -> Admitted:
    """Admit *files* on terms that name just them, but for *changes*."""
    return admit(files, terms(files, now, **changes), schema_hash)


# --- certificates -----------------------------------------------------------------------------------------------------

YEAR = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
MIDSUMMER = datetime(2026, 7, 1, tzinfo=UTC)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
CODE = (ExtendedKeyUsageOID.CODE_SIGNING,)


def certificate(
    subject: str,
    key: keys.PrivateKey,
    issuer: str,
    issuer_key: keys.PrivateKey,
    *,
    authority: bool = False,
    length: int | None = None,
    uses: tuple[x509.ObjectIdentifier, ...] = CODE,
    usage: Mapping[str, bool] | None = None,
    valid: tuple[datetime, datetime] = YEAR,
) -> x509.Certificate:
    """Return a certificate: of an *authority* with at most *length* others below it, or of somebody who signs.

    *usage* says otherwise what its key may do.
    """
    may = dict.fromkeys(_USAGES, False) | {"key_cert_sign" if authority else "digital_signature": True}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(authority, length), critical=True)
        .add_extension(x509.KeyUsage(**{**may, **(usage or {})}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if uses and (not authority or uses != CODE):
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
