"""Model signatures: every file just as it was signed, by a key or a certificate that the caller names."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.errors import ConfigError, TrustError
from agent.trust import keys, oms
from agent.trust.dsse import pae
from tests.artifacts import KEY, MIDSUMMER, STRANGER, YEAR, certificate

FILES = {"manifest.json": b"{}", "weights.npz": b"w", "more/notes.txt": b"", "more-notes.txt": b"n"}
KNOWN = [KEY.public_key()]
BUNDLE = oms.sign(FILES, "logons", KEY)
Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> bytes:
    """Return the bundle with something changed that its signature does not cover."""
    bundle = orjson.loads(BUNDLE)
    change(bundle)
    return orjson.dumps(bundle)


def resigned(change: Change) -> bytes:
    """Return the bundle over a statement that was changed before it was signed."""
    bundle = orjson.loads(BUNDLE)
    envelope = bundle["dsseEnvelope"]
    statement = orjson.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = orjson.dumps(statement)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(keys.sign(KEY, pae(envelope["payloadType"], payload))).decode()
    return orjson.dumps(bundle)


def test_a_signature_says_digest_name_and_signer() -> None:
    signed = oms.verify(FILES, BUNDLE, [STRANGER.public_key(), *KNOWN])
    assert signed == oms.Signed(oms.digest(FILES), "logons", keys.key_id(KEY.public_key()))


def test_the_digest_is_over_the_files_digests_in_order_of_path() -> None:
    """Folder by folder, as the public library sorts."""
    ordered = ["manifest.json", "more/notes.txt", "more-notes.txt", "weights.npz"]
    expected = hashlib.sha256(b"".join(hashlib.sha256(FILES[path]).digest() for path in ordered)).hexdigest()
    assert oms.digest(FILES) == expected


def test_files_sorted_as_text_verify_too() -> None:
    """The specification says by name, the library sorts by part of the path."""

    def sort(statement: dict[str, Any]) -> None:
        resources = sorted(statement["predicate"]["resources"], key=lambda one: one["name"])
        statement["predicate"]["resources"] = resources
        digests = b"".join(bytes.fromhex(one["digest"]) for one in resources)
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()

    assert oms.verify(FILES, resigned(sort), KNOWN).name == "logons"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({**FILES, "weights.npz": b"W"}, r"weights\.npz changed"),
        ({**FILES, "extra": b""}, "extra not signed"),
        ({**FILES, ".gitattributes": b""}, "gitattributes not signed"),
        ({**FILES, ".git/config": b""}, "config not signed"),
        ({**FILES, "model.sig": b""}, r"model\.sig not signed"),
        ({path: FILES[path] for path in FILES if path != "weights.npz"}, r"weights\.npz missing"),
        ({**{p: FILES[p] for p in FILES if p != "weights.npz"}, "weight.npz": b"w"}, r"npz missing; weight\.npz not"),
        ({**FILES, "manifest.json": b"w", "weights.npz": b"{}"}, r"manifest\.json, weights\.npz changed"),
        ({}, "missing"),
    ],
    ids=range(9),
)
def test_other_files_than_those_signed_are_named(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(TrustError, match=says):
        oms.verify(files, BUNDLE, KNOWN)


@pytest.mark.parametrize("path", ["model.sig", ".git/config", ".gitignore", "more/.hidden", "/etc/passwd", "../up"])
def test_files_that_other_verifiers_leave_out_are_not_signed(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot sign"):
        oms.sign({**FILES, path: b""}, "logons", KEY)


def test_nothing_is_not_signed() -> None:
    with pytest.raises(ConfigError, match="no file"):
        oms.sign({}, "logons", KEY)


def test_an_unknown_key_is_refused() -> None:
    for known in ([], [STRANGER.public_key()]):
        with pytest.raises(TrustError, match="known keys"):
            oms.verify(FILES, BUNDLE, known)


def test_somebody_elses_signature_under_a_known_name_is_refused() -> None:
    """The hint is no proof."""
    theirs = orjson.loads(oms.sign(FILES, "logons", STRANGER))
    theirs["verificationMaterial"] = orjson.loads(BUNDLE)["verificationMaterial"]
    with pytest.raises(TrustError, match="does not hold"):
        oms.verify(FILES, orjson.dumps(theirs), KNOWN)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.pop("mediaType"), "mediaType"),
        (lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"), "mediaType"),
        (lambda b: b.update(more=1), "more: unknown key"),
        (lambda b: b.pop("verificationMaterial"), "verificationMaterial"),
        (lambda b: b["verificationMaterial"].pop("publicKey"), "found one with nothing"),
        (lambda b: b["verificationMaterial"]["publicKey"].pop("hint"), "hint"),
        (lambda b: b["verificationMaterial"]["publicKey"].update(hint=None), "hint"),
        (lambda b: b["verificationMaterial"]["publicKey"].update(rawBytes="YQ=="), "rawBytes: unknown key"),
        (lambda b: b["verificationMaterial"].update(certificate={}), "a key and a Sigstore identity"),
        (lambda b: b["verificationMaterial"].update(tlogEntries=[{}]), "log entries"),
        (lambda b: b["verificationMaterial"].update(timestampVerificationData={"a": 1}), "timestamps"),
        (lambda b: b.pop("dsseEnvelope"), "dsseEnvelope"),
        (lambda b: b["dsseEnvelope"].update(signatures=[]), "signatures"),
        (lambda b: b["dsseEnvelope"].update(signatures=b["dsseEnvelope"]["signatures"] * 2), "one signature, found 2"),
        (lambda b: b["dsseEnvelope"].update(payloadType="application/json"), "payload type"),
        (lambda b: b["dsseEnvelope"].update(payload=""), "canonical base64"),
        (lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "does not hold"),
        (lambda b: b["dsseEnvelope"]["signatures"][0].pop("sig"), "sig"),
    ],
    ids=range(18),
)
def test_a_bundle_of_another_shape_is_refused(change: Change, says: str) -> None:
    with pytest.raises(TrustError, match=says):
        oms.verify(FILES, changed(change), KNOWN)


@pytest.mark.parametrize("keyid", [None, "", "hint"])
def test_the_envelopes_own_key_id_says_nothing(keyid: str | None) -> None:
    """As the specification wants it: it may be absent, empty or null."""
    bundle = changed(lambda b: b["dsseEnvelope"]["signatures"][0].update(keyid=keyid))
    assert oms.verify(FILES, bundle, KNOWN).name == "logons"


def _predicate(**values: Any) -> Change:
    return lambda statement: statement["predicate"].update(values)


def _serialization(**values: Any) -> Change:
    return lambda statement: statement["predicate"]["serialization"].update(values)


def _resources(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    return lambda statement: change(statement["predicate"]["resources"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType"),
        (lambda s: s.update(more=1), "unknown key"),
        (lambda s: s.update(subject=[]), "subject"),
        (lambda s: s.update(subject=s["subject"] * 2), "subject"),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "expected digest .* over the listed files"),
        (lambda s: s["subject"][0]["digest"].update(sha512="0" * 64), "unknown key"),
        (lambda s: s["subject"][0].pop("name"), "name"),
        (_predicate(more=1), "unknown key"),
        (_predicate(resources=[]), "resources"),
        (_serialization(method="shards", shard_size=1_000_000), "method"),
        (_serialization(hash_type="blake2b"), "hash_type"),
        (_serialization(allow_symlinks=True), "allow_symlinks"),
        (_serialization(shard_size=1), "unknown key"),
        (_resources(lambda r: r[0].update(algorithm="blake3")), "algorithm"),
        (_resources(lambda r: r[0].update(digest=r[0]["digest"].upper())), "digest"),
        (_resources(lambda r: r.reverse()), "another order"),
        (_resources(lambda r: r.append(r[-1])), "another order"),
        (_resources(lambda r: r.pop()), "expected digest"),
    ],
    ids=range(19),
)
def test_a_signed_statement_that_says_something_else_is_refused(change: Change, says: str) -> None:
    with pytest.raises(TrustError, match=says):
        oms.verify(FILES, resigned(change), KNOWN)


def test_what_a_statement_ignores_is_not_ignored() -> None:
    bundle = resigned(_serialization(ignore_paths=["model.sig", "extra", ".git"]))
    assert oms.verify(FILES, bundle, KNOWN).name == "logons"
    with pytest.raises(TrustError, match="extra not signed"):
        oms.verify({**FILES, "extra": b""}, bundle, KNOWN)


# --- certificates -----------------------------------------------------------------------------------------------------

ROOT_KEY, MIDDLE_KEY = keys.generate(), keys.generate()
ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY, authority=True)
MIDDLE = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, authority=True, length=0)
LEAF = certificate("signer", KEY, "middle", MIDDLE_KEY)


def proved(*chain: x509.Certificate, roots: tuple[x509.Certificate, ...] = (ROOT,), now: datetime = MIDSUMMER) -> Any:
    return oms.verify_certificate(FILES, oms.sign_with_certificate(FILES, "logons", KEY, chain), roots, now)


def leaf(**changes: Any) -> x509.Certificate:
    return certificate("signer", KEY, "middle", MIDDLE_KEY, **changes)


def test_a_certificate_below_a_root_verifies() -> None:
    expected = oms.Signed(oms.digest(FILES), "logons", keys.key_id(KEY.public_key()))
    assert proved(LEAF, MIDDLE) == proved(LEAF, MIDDLE, ROOT) == proved(LEAF, roots=(MIDDLE,)) == expected


def test_other_files_than_a_certificate_signed_are_refused() -> None:
    bundle = oms.sign_with_certificate(FILES, "logons", KEY, [LEAF, MIDDLE])
    with pytest.raises(TrustError, match="changed"):
        oms.verify_certificate({**FILES, "weights.npz": b"W"}, bundle, [ROOT], MIDSUMMER)


DAY = timedelta(days=1)
LAST_YEAR = (YEAR[0] - 365 * DAY, YEAR[0] - DAY)
OTHER_ROOT = certificate("root", STRANGER, "root", STRANGER, authority=True)


@pytest.mark.parametrize(
    ("chain", "roots", "now", "says"),
    [
        ((LEAF, MIDDLE), (), MIDSUMMER, "expected a root"),
        ((LEAF, MIDDLE), (OTHER_ROOT,), MIDSUMMER, "does not hold"),
        ((LEAF,), (ROOT,), MIDSUMMER, "does not hold"),
        ((LEAF, MIDDLE, OTHER_ROOT), (OTHER_ROOT,), MIDSUMMER, "does not hold"),
        ((LEAF, MIDDLE), (ROOT,), YEAR[1] + DAY, "not valid at validation time"),
        ((LEAF, MIDDLE), (ROOT,), YEAR[0] - DAY, "not valid at validation time"),
        ((leaf(valid=LAST_YEAR), MIDDLE), (ROOT,), MIDSUMMER, "not valid at validation time"),
        ((leaf(uses=()), MIDDLE), (ROOT,), MIDSUMMER, "does not hold"),
        ((leaf(uses=(ExtendedKeyUsageOID.SERVER_AUTH,)), MIDDLE), (ROOT,), MIDSUMMER, "code signing"),
        (
            (leaf(uses=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING)), MIDDLE),
            (ROOT,),
            MIDSUMMER,
            "not for servers",
        ),
        ((leaf(uses=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)), MIDDLE), (ROOT,), MIDSUMMER, "code signing"),
        ((leaf(authority=True), MIDDLE), (ROOT,), MIDSUMMER, "does not hold"),
        (
            (certificate("signer", KEY, "root", ROOT_KEY), certificate("root", ROOT_KEY, "root", ROOT_KEY)),
            (OTHER_ROOT,),
            MIDSUMMER,
            "does not hold",
        ),
    ],
    ids=[
        "no root",
        "another root of the name",
        "a link missing",
        "a root brought along",
        "now too late",
        "now too early",
        "expired",
        "no use",
        "a server's",
        "a server's too",
        "any use",
        "an authority's",
        "an issuer that is none",
    ],
)
def test_a_certificate_that_does_not_hold_is_refused(
    chain: tuple[x509.Certificate, ...], roots: tuple[x509.Certificate, ...], now: datetime, says: str
) -> None:
    with pytest.raises(TrustError, match=says):
        proved(*chain, roots=roots, now=now)


def test_an_issuer_of_the_chain_must_hold_now_too() -> None:
    old = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, authority=True, valid=LAST_YEAR)
    old_root = certificate("root", ROOT_KEY, "root", ROOT_KEY, authority=True, valid=LAST_YEAR)
    for chain, roots in (((LEAF, old), (ROOT,)), ((LEAF, MIDDLE), (old_root,))):
        with pytest.raises(TrustError, match="not valid at validation time"):
            proved(*chain, roots=roots)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"authority": False, "usage": {"key_cert_sign": True}}, "must be asserted in a CA"),
        ({"usage": {"key_cert_sign": False}}, "may sign certificates"),
        ({"uses": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "issuer for code signing"),
    ],
    ids=["no authority", "not for certificates", "for servers"],
)
def test_an_issuer_must_be_made_for_it(changes: dict[str, Any], says: str) -> None:
    middle = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, **{"authority": True, **changes})
    with pytest.raises(TrustError, match=says):
        proved(LEAF, middle)


def test_a_key_that_also_signs_certificates_signs_no_model() -> None:
    with pytest.raises(TrustError, match="and not for certificates"):
        proved(leaf(usage={"key_cert_sign": True}), MIDDLE)


def test_somebody_who_may_sign_code_may_not_make_others_who_may() -> None:
    below = certificate("below", STRANGER, "signer", KEY)
    bundle = oms.sign_with_certificate(FILES, "logons", STRANGER, [below, LEAF, MIDDLE])
    with pytest.raises(TrustError, match="does not hold"):
        oms.verify_certificate(FILES, bundle, [ROOT], MIDSUMMER)


def test_a_chain_is_no_longer_than_its_authorities_allow() -> None:
    low_key = keys.generate()
    low = certificate("low", low_key, "middle", MIDDLE_KEY, authority=True)
    signer = certificate("signer", KEY, "low", low_key)
    with pytest.raises(TrustError, match="path length"):
        proved(signer, low, MIDDLE)


def test_another_key_than_the_certificates_signs_nothing() -> None:
    with pytest.raises(ConfigError, match="leaf first"):
        oms.sign_with_certificate(FILES, "logons", STRANGER, [LEAF, MIDDLE])
    theirs = orjson.loads(oms.sign(FILES, "logons", STRANGER))
    ours = orjson.loads(oms.sign_with_certificate(FILES, "logons", KEY, [LEAF, MIDDLE]))
    theirs["verificationMaterial"] = ours["verificationMaterial"]
    with pytest.raises(TrustError, match="does not hold"):
        oms.verify_certificate(FILES, orjson.dumps(theirs), [ROOT], MIDSUMMER)


def test_each_method_is_verified_as_itself_only() -> None:
    with pytest.raises(TrustError, match="expected a signature made with a certificate, found one with a key"):
        oms.verify_certificate(FILES, BUNDLE, [ROOT], MIDSUMMER)
    bundle = oms.sign_with_certificate(FILES, "logons", KEY, [LEAF, MIDDLE])
    with pytest.raises(TrustError, match="expected a signature made with a key, found one with a certificate"):
        oms.verify(FILES, bundle, KNOWN)


@pytest.mark.parametrize("der", [b"x", b"\x30\x80", LEAF.tbs_certificate_bytes])
def test_what_is_no_certificate_is_refused(der: bytes) -> None:
    bundle = orjson.loads(oms.sign_with_certificate(FILES, "logons", KEY, [LEAF, MIDDLE]))
    chain = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    chain[0]["rawBytes"] = base64.b64encode(der).decode()
    with pytest.raises(TrustError, match="not a certificate"):
        oms.verify_certificate(FILES, orjson.dumps(bundle), [ROOT], MIDSUMMER)


def test_a_certificate_for_another_kind_of_key_is_refused() -> None:
    other: Any = rsa.generate_private_key(65537, 2048)
    bundle = orjson.loads(oms.sign_with_certificate(FILES, "logons", KEY, [LEAF, MIDDLE]))
    der = certificate("signer", other, "middle", MIDDLE_KEY).public_bytes(oms.Encoding.DER)
    chain = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    chain[0]["rawBytes"] = base64.b64encode(der).decode()
    with pytest.raises(TrustError, match="elliptic-curve"):
        oms.verify_certificate(FILES, orjson.dumps(bundle), [ROOT], MIDSUMMER)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_other_curves_of_the_specification_verify(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    assert oms.verify(FILES, oms.sign(FILES, "logons", key), [key.public_key()]).signer == keys.key_id(key.public_key())


def test_now_may_be_in_any_time_zone() -> None:
    assert MIDSUMMER.tzinfo is UTC
    assert proved(LEAF, MIDDLE, now=MIDSUMMER.astimezone()).name == "logons"
