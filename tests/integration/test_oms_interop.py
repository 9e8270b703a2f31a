"""Model signatures are one format: the public library verifies ours, ours verifies the library's, and the vectors hold.

What the library lets through and we do not is shown here too, so that the difference is a choice.
"""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent import artifact
from agent.errors import TrustError
from agent.trust import keys, oms
from tests.artifacts import KEY, MIDSUMMER, STRANGER, YEAR, certificate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    library: Any = pytest.importorskip(
        "model_signing", reason="model_signing and pyOpenSSL are not installed", exc_type=ImportError
    )

pytestmark = pytest.mark.filterwarnings("ignore")

FILES = {"manifest.json": b"{}", "weights.npz": b"w" * 5000, "more/a/notes.txt": b"", "more-notes.txt": b"n"}
ROOT_KEY, MIDDLE_KEY = keys.generate(), keys.generate()
ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY, authority=True)
MIDDLE = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, authority=True)
LEAF = certificate("signer", KEY, "middle", MIDDLE_KEY)
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "logons"
    artifact.write(made, FILES)
    return made


def files_in(folder: Path) -> tuple[dict[str, bytes], bytes]:
    """Return what *folder* holds without its signature, and the signature."""
    files = artifact.read(folder)
    return files, files.pop(oms.SIGNATURE)


def pem(folder: Path, thing: Any) -> Path:
    """Return a file beside *folder* that holds a key or a certificate."""
    if isinstance(thing, x509.Certificate):
        data = thing.public_bytes(Encoding.PEM)
    elif isinstance(thing, ec.EllipticCurvePublicKey):
        data = keys.to_pem(thing)
    else:
        data = thing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder.parent / f"{len(list(folder.parent.iterdir()))}.pem"
    path.write_bytes(data)
    return path


def library_signs(folder: Path, key: Any = KEY, hashing: Any = None) -> None:
    _signs(library.signing.Config().use_elliptic_key_signer(private_key=pem(folder, key)), folder, hashing)


def library_signs_with(folder: Path, leaf: x509.Certificate, *chain: x509.Certificate) -> None:
    signer = library.signing.Config().use_certificate_signer(
        private_key=pem(folder, KEY),
        signing_certificate=pem(folder, leaf),
        certificate_chain=[pem(folder, one) for one in chain],
    )
    _signs(signer, folder)


def _signs(signer: Any, folder: Path, hashing: Any = None) -> None:
    """Sign as the library's command line does, which leaves out the signature that lies in the folder."""
    hashing = hashing or library.hashing.Config()
    hashing.add_ignored_paths(model_path=folder, paths=[oms.SIGNATURE])
    signer.set_hashing_config(hashing).sign(folder, folder / oms.SIGNATURE)


def library_verifies(folder: Path, key: keys.PrivateKey = KEY) -> None:
    verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=pem(folder, key.public_key()))
    verifier.verify(folder, folder / oms.SIGNATURE)


def library_verifies_below(folder: Path, *roots: x509.Certificate) -> None:
    verifier = library.verifying.Config().use_certificate_verifier(
        certificate_chain=[pem(folder, one) for one in roots]
    )
    verifier.verify(folder, folder / oms.SIGNATURE)


# --- by key -----------------------------------------------------------------------------------------------------------


def test_the_library_verifies_our_signature(folder: Path) -> None:
    artifact.put(folder, oms.SIGNATURE, oms.sign(FILES, "logons", KEY))
    library_verifies(folder)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_we_verify_the_librarys_signature(folder: Path, curve: ec.EllipticCurve) -> None:
    """And find the digest and the name that it wrote."""
    key = ec.generate_private_key(curve)
    library_signs(folder, key)
    files, bundle = files_in(folder)
    signed = oms.verify(files, bundle, [key.public_key()])
    assert signed == oms.Signed(oms.digest(FILES), "logons", keys.key_id(key.public_key()))


def test_the_library_opens_our_sealed_key(folder: Path) -> None:
    sealed = folder.parent / "sealed.pem"
    sealed.write_bytes(keys.seal(KEY, b"open sesame"))
    signer = library.signing.Config().use_elliptic_key_signer(private_key=sealed, password=b"open sesame")
    signer.sign(folder, folder / oms.SIGNATURE)
    files, bundle = files_in(folder)
    assert oms.verify(files, bundle, [KEY.public_key()]).name == "logons"


def _flip(folder: Path) -> None:
    (folder / "weights.npz").write_bytes(b"W" + b"w" * 4999)


def _rename(folder: Path) -> None:
    (folder / "weights.npz").rename(folder / "weight.npz")


CHANGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "renamed": _rename,
    "removed": lambda folder: (folder / "more-notes.txt").unlink(),
    "added": lambda folder: (folder / "added").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_both_refuse_changed_files_of_both(folder: Path, change: str) -> None:
    """Whoever signed them."""
    signatures = [oms.sign(FILES, "logons", KEY)]
    library_signs(folder)
    signatures.append(files_in(folder)[1])
    CHANGES[change](folder)
    for signature in signatures:
        (folder / oms.SIGNATURE).write_bytes(signature)
        with pytest.raises(ValueError, match="Signature mismatch"):
            library_verifies(folder)
        files, bundle = files_in(folder)
        with pytest.raises(TrustError, match="expected the files as they were signed"):
            oms.verify(files, bundle, [KEY.public_key()])


def test_both_refuse_a_stranger(folder: Path) -> None:
    artifact.put(folder, oms.SIGNATURE, oms.sign(FILES, "logons", STRANGER))
    with pytest.raises(ValueError, match="Key mismatch"):
        library_verifies(folder)
    with pytest.raises(TrustError, match="known keys"):
        oms.verify(FILES, files_in(folder)[1], [KEY.public_key()])


# --- by certificate ---------------------------------------------------------------------------------------------------


def test_the_library_verifies_our_signature_with_a_certificate(folder: Path) -> None:
    artifact.put(folder, oms.SIGNATURE, oms.sign_with_certificate(FILES, "logons", KEY, [LEAF, MIDDLE]))
    library_verifies_below(folder, ROOT)


@pytest.mark.parametrize("chain", [(MIDDLE,), (MIDDLE, ROOT)])
def test_we_verify_the_librarys_signature_with_a_certificate(folder: Path, chain: tuple[x509.Certificate, ...]) -> None:
    library_signs_with(folder, LEAF, *chain)
    files, bundle = files_in(folder)
    signed = oms.verify_certificate(files, bundle, [ROOT], MIDSUMMER)
    assert signed == oms.Signed(oms.digest(FILES), "logons", keys.key_id(KEY.public_key()))


def test_both_refuse_another_root(folder: Path) -> None:
    other = certificate("root", STRANGER, "root", STRANGER, authority=True)
    library_signs_with(folder, LEAF, MIDDLE)
    with pytest.raises(Exception, match=r"unable to get|certificate signature failure"):
        library_verifies_below(folder, other)
    with pytest.raises(TrustError, match="does not hold"):
        oms.verify_certificate(*files_in(folder), [other], MIDSUMMER)


# --- where we are stricter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "now"),
    [
        (certificate("signer", KEY, "middle", MIDDLE_KEY), YEAR[1] + 365 * DAY),
        (certificate("signer", KEY, "middle", MIDDLE_KEY, valid=(YEAR[1] - DAY, YEAR[1])), MIDSUMMER),
        (certificate("signer", KEY, "middle", MIDDLE_KEY, uses=(ExtendedKeyUsageOID.SERVER_AUTH,)), MIDSUMMER),
        (certificate("signer", KEY, "middle", MIDDLE_KEY, uses=()), MIDSUMMER),
    ],
    ids=["expired", "not yet valid", "a server's", "no use"],
)
def test_certificates_that_only_the_library_takes(folder: Path, leaf: x509.Certificate, now: datetime) -> None:
    library_signs_with(folder, leaf, MIDDLE)
    library_verifies_below(folder, ROOT)
    with pytest.raises(TrustError, match="does not hold"):
        oms.verify_certificate(*files_in(folder), [ROOT], now)


@pytest.mark.parametrize("name", [".gitattributes", ".git/config", ".github/workflow.yml"])
def test_files_that_only_the_library_overlooks(folder: Path, name: str) -> None:
    library_signs(folder)
    files, bundle = files_in(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    library_verifies(folder)
    with pytest.raises(TrustError, match="not signed"):
        oms.verify({**files, name: b"x"}, bundle, [KEY.public_key()])
    with pytest.raises(TrustError, match="not hidden"):
        artifact.read(folder)


def test_files_that_a_statement_leaves_out(folder: Path) -> None:
    hashing = library.hashing.Config().set_ignored_paths(paths=["more"])
    library_signs(folder, hashing=hashing)
    library_verifies(folder)
    with pytest.raises(TrustError, match=r"more/a/notes\.txt not signed"):
        oms.verify(*files_in(folder), [KEY.public_key()])


@pytest.mark.parametrize(
    "choose",
    [
        lambda config: config.use_file_serialization(hashing_algorithm="blake2"),
        lambda config: config.use_file_serialization(hashing_algorithm="blake3"),
        lambda config: config.use_shard_serialization(shard_size=1000),
    ],
    ids=["blake2", "blake3", "shards"],
)
def test_digests_of_another_kind(folder: Path, choose: Callable[[Any], Any]) -> None:
    """Some of these the library signs and cannot verify itself."""
    library_signs(folder, hashing=choose(library.hashing.Config()))
    with pytest.raises(TrustError, match=r"statement: predicate\.resources\.0"):
        oms.verify(*files_in(folder), [KEY.public_key()])


def test_a_signature_without_the_name_of_its_key(folder: Path) -> None:
    library_signs(folder)
    bundle = orjson.loads(files_in(folder)[1])
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    (folder / oms.SIGNATURE).write_bytes(orjson.dumps(bundle))
    library_verifies(folder)
    with pytest.raises(TrustError, match="hint"):
        oms.verify(*files_in(folder), [KEY.public_key()])


# --- the specification's vectors --------------------------------------------------------------------------------------

DATA = Path(os.environ.get("VEDETTE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "oms"
needs_vectors = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the specification's vectors are not at {DATA}: set VEDETTE_TEST_DATA"
)
VECTOR_FILES = {"signme-1": b"signme-1\n", "signme-2": b"signme-2"}
"""The files behind the vectors; their digests stand in the signed statements."""
VECTOR_NOW = MIDSUMMER


def vector(name: str) -> bytes:
    return (DATA / "test-vectors" / "v1.0" / f"{name}.bundle.json").read_bytes()


def vector_chain() -> list[x509.Certificate]:
    material = orjson.loads(vector("valid/certificate"))["verificationMaterial"]
    chain = material["x509CertificateChain"]["certificates"]
    return [x509.load_der_x509_certificate(base64.b64decode(one["rawBytes"])) for one in chain]


def vector_key() -> keys.PublicKey:
    """Return the key that signed the vectors: the one in their certificate."""
    key = vector_chain()[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


@needs_vectors
def test_the_valid_vector_by_key_verifies() -> None:
    signed = oms.verify(VECTOR_FILES, vector("valid/key"), [vector_key()])
    assert signed == oms.Signed(oms.digest(VECTOR_FILES), "model", keys.key_id(vector_key()))


@needs_vectors
def test_the_valid_vector_by_certificate_verifies() -> None:
    """Below its intermediate; the root is not among the vectors."""
    signed = oms.verify_certificate(VECTOR_FILES, vector("valid/certificate"), vector_chain()[1:], VECTOR_NOW)
    assert signed == oms.Signed(oms.digest(VECTOR_FILES), "model", keys.key_id(vector_key()))


@needs_vectors
def test_the_valid_vector_by_identity_is_of_a_method_that_we_do_not_take() -> None:
    with pytest.raises(TrustError, match="expected a signature made with a key, found one with a Sigstore identity"):
        oms.verify(VECTOR_FILES, vector("valid/sigstore"), [vector_key()])


@needs_vectors
@pytest.mark.parametrize(
    "name", [path.stem.removesuffix(".bundle") for path in sorted(DATA.glob("test-vectors/v1.0/invalid/*.json"))]
)
def test_the_invalid_vectors_are_refused(name: str) -> None:
    with pytest.raises(TrustError):
        oms.verify(VECTOR_FILES, vector(f"invalid/{name}"), [vector_key()])
    with pytest.raises(TrustError):
        oms.verify_certificate(VECTOR_FILES, vector(f"invalid/{name}"), vector_chain()[1:], VECTOR_NOW)


@needs_vectors
def test_the_vector_with_an_invalid_payload_is_refused() -> None:
    """Already because nobody signed this payload."""
    with pytest.raises(TrustError, match="does not hold"):
        oms.verify(VECTOR_FILES, vector("invalid-payload/wrong-predicate"), [vector_key()])
