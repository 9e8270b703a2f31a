"""Attacks on a model's folder: read, verified and loaded as the daemon does it, each is refused."""

from __future__ import annotations

import io
import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from agent import artifact
from agent.detect.weights import load as weights_of
from agent.errors import TrustError
from agent.featurise.recipe import schema_hash
from agent.trust import keys, oms
from agent.trust.admission import Admitted, admit
from agent.trust.manifest import MANIFEST, WEIGHTS
from tests.artifacts import KEY, NOW, RECIPE, STRANGER, admitted, certificate, content, manifest, signed, terms, weights

GOOD = signed()
DIGEST = terms(GOOD).digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    artifact.write(made, GOOD)
    return made


def load(folder: Path, **changes: Any) -> Admitted:
    """Read *folder* and admit what was read on terms that name the good artifact, but for *changes*."""
    return admitted(artifact.read(folder), **{"digest": DIGEST, **changes})


def install(folder: Path, files: dict[str, bytes]) -> str:
    """Make the folder hold *files* and return their digest."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return terms(files).digest


def test_the_artifact_under_attack_is_good(folder: Path) -> None:
    assert load(folder).files == GOOD


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_every_bit_of_every_file_flipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of the signature: nothing in an artifact can be changed and still run."""
    tried = refused = 0
    on = terms(GOOD)
    for path, data in GOOD.items():
        for place in range(len(data)):
            for bit in range(8):
                flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
                tried += 1
                try:
                    admitted({**GOOD, path: flipped}, digest=on.digest)
                except TrustError:
                    refused += 1
    with capsys.disabled():
        print(f"\nartifact of {sum(map(len, GOOD.values()))} bytes: {tried} flipped bits, {refused} refused")
    assert refused == tried


@pytest.mark.parametrize("path", GOOD)
def test_a_flipped_byte_on_disk_is_refused(folder: Path, path: str) -> None:
    data = bytearray(GOOD[path])
    data[len(data) // 2] ^= 1
    (folder / path).write_bytes(data)
    with pytest.raises(TrustError, match="step 2, signature"):
        load(folder)


@pytest.mark.parametrize("path", GOOD)
def test_a_truncated_or_longer_file_is_refused(folder: Path, path: str) -> None:
    for data in (b"", GOOD[path][:-1], GOOD[path] + b"x", GOOD[path] * 2):
        (folder / path).write_bytes(data)
        with pytest.raises(TrustError, match="step 2, signature"):
            load(folder)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README", "weights.pkl", "model.joblib", "weights2.npz", "model.sig.old", "a/b.py"])
def test_a_file_added_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(TrustError, match="step 1, files"):
        load(folder)


@pytest.mark.parametrize("name", [".gitattributes", ".git/config", ".github/x", ".gitignore", ".hidden"])
def test_a_file_that_others_overlook_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(TrustError, match="not hidden"):
        load(folder)


def test_an_empty_folder_added_is_refused(folder: Path) -> None:
    (folder / "more").mkdir()
    with pytest.raises(TrustError, match="no empty folders"):
        load(folder)


@pytest.mark.parametrize("path", GOOD)
def test_a_file_removed_is_refused(folder: Path, path: str) -> None:
    (folder / path).unlink()
    with pytest.raises(TrustError, match="step 1, files"):
        load(folder)


@pytest.mark.parametrize("path", GOOD)
def test_a_file_renamed_is_refused(folder: Path, path: str) -> None:
    (folder / path).rename(folder / f"{path}2")
    with pytest.raises(TrustError, match="step 1, files"):
        load(folder)


def test_two_files_swapped_are_refused(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(GOOD[WEIGHTS])
    (folder / WEIGHTS).write_bytes(GOOD[MANIFEST])
    with pytest.raises(TrustError, match="step 2, signature"):
        load(folder)


@pytest.mark.parametrize("path", GOOD)
def test_a_symbolic_link_to_the_very_bytes_is_refused(folder: Path, path: str) -> None:
    (folder / path).rename(folder.parent / "elsewhere")
    (folder / path).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(TrustError, match="symbolic link"):
        load(folder)


@pytest.mark.parametrize("path", GOOD)
def test_a_hard_link_to_the_very_bytes_is_refused(folder: Path, path: str) -> None:
    os.link(folder / path, folder.parent / "elsewhere")
    with pytest.raises(TrustError, match="hard links"):
        load(folder)


def test_a_link_to_the_folder_is_refused(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)
    with pytest.raises(TrustError, match="without following links"):
        load(folder.parent / "latest")


def test_a_pipe_for_a_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(TrustError, match="a pipe"):
        load(folder)


# --- while it is loaded -----------------------------------------------------------------------------------------------


@pytest.fixture
def swapping(folder: Path) -> Iterator[Callable[[Callable[[int], object]], None]]:
    """Do something to the folder again and again beside the test, with the number of the round."""
    done = threading.Event()
    workers: list[threading.Thread] = []

    def start(change: Callable[[int], object]) -> None:
        def work() -> None:
            for number in cycle(range(2)):
                if done.wait(0.0001):
                    return
                change(number)

        workers.append(threading.Thread(target=work))
        workers[-1].start()

    yield start
    done.set()
    for worker in workers:
        worker.join()


def _loads(folder: Path, times: int = 200) -> tuple[int, int]:
    """Load again and again: return how often the good bytes were admitted and how often all was refused."""
    good = refused = 0
    for _ in range(times):
        try:
            assert load(folder).files == GOOD
            good += 1
        except TrustError:
            refused += 1
    return good, refused


def test_files_swapped_while_they_are_read_never_run(
    folder: Path, swapping: Callable[[Callable[[int], object]], None]
) -> None:
    """Each load is all of the good artifact or nothing, whatever stood there a moment before or after."""
    evil = weights().replace(b"NUMPY", b"NUMPX")

    def swap(number: int) -> None:
        made = folder.parent / "made"
        made.write_bytes(evil if number else GOOD[WEIGHTS])
        made.replace(folder / WEIGHTS)

    swapping(swap)
    good, refused = _loads(folder)
    assert good + refused == 200
    assert refused


def test_links_swapped_in_while_files_are_read_never_run(
    folder: Path, swapping: Callable[[Callable[[int], object]], None]
) -> None:
    """Between the look at a name and its opening there is no following."""
    secret = folder.parent / "secret"
    secret.write_bytes(GOOD[WEIGHTS])

    def swap(number: int) -> None:
        made = folder.parent / "made"
        if number:
            made.symlink_to(secret)
        else:
            made.write_bytes(GOOD[WEIGHTS])
        made.replace(folder / WEIGHTS)

    swapping(swap)
    good, refused = _loads(folder)
    assert good + refused == 200
    assert good
    assert refused, "a link was followed: what it leads to are the very bytes"


@pytest.mark.parametrize(
    ("replace", "says"),
    [
        (lambda path: path.symlink_to(MANIFEST), "without following links"),
        (os.mkfifo, "a pipe"),
        (os.mkdir, "found a folder"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_file_swapped_between_the_look_and_the_opening_is_read_as_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, replace: Callable[[Path], object], says: str
) -> None:
    """At the worst moment."""
    original = os.lstat

    def look_and_swap(path: Any, *, dir_fd: int | None = None) -> os.stat_result:
        result = original(path, dir_fd=dir_fd)
        if path == WEIGHTS:
            (folder / WEIGHTS).unlink()
            replace(folder / WEIGHTS)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", look_and_swap)
        with pytest.raises(TrustError, match=says):
            artifact.read(folder)


def test_what_changes_after_the_load_changes_nothing(folder: Path) -> None:
    """The bytes that were verified are the bytes that run."""
    model = load(folder)
    (folder / WEIGHTS).write_bytes(b"evil")
    assert model.files[WEIGHTS] == GOOD[WEIGHTS]


# --- signatures -------------------------------------------------------------------------------------------------------


def test_an_unsigned_artifact_is_refused(folder: Path) -> None:
    (folder / oms.SIGNATURE).unlink()
    with pytest.raises(TrustError, match=r"step 1, files: expected a signature in model\.sig, found none"):
        load(folder)


@pytest.mark.parametrize("signature", [b"", b"{}", b"null", b"-----BEGIN SIGNATURE-----", bytes(1000)])
def test_an_empty_signature_is_refused(folder: Path, signature: bytes) -> None:
    (folder / oms.SIGNATURE).write_bytes(signature)
    with pytest.raises(TrustError, match="step 2, signature"):
        load(folder)


def test_a_strangers_signature_is_refused(folder: Path) -> None:
    install(folder, signed(key=STRANGER))
    with pytest.raises(TrustError, match=r"step 2, signature: .*known keys"):
        load(folder)


def test_without_anybody_who_may_sign_nothing_runs(folder: Path) -> None:
    with pytest.raises(TrustError, match=r"step 2, signature: .*0 known keys"):
        load(folder, keys={})


def test_the_signature_of_another_artifact_is_refused(folder: Path) -> None:
    other = signed(content(manifest(title="Another")))
    (folder / oms.SIGNATURE).write_bytes(other[oms.SIGNATURE])
    with pytest.raises(TrustError, match=r"step 2, signature: .*manifest\.json changed"):
        load(folder)


def test_a_signature_by_certificate_does_not_stand_for_a_principals(folder: Path) -> None:
    chain = [certificate("signer", KEY, "signer", KEY)]
    signature = oms.sign_with_certificate(content(), "logons", KEY, chain)
    (folder / oms.SIGNATURE).write_bytes(signature)
    with pytest.raises(TrustError, match=r"step 2, signature: .*found one with a certificate"):
        load(folder)


def test_a_revoked_key_is_refused(folder: Path) -> None:
    revoked = frozenset({keys.key_id(KEY.public_key())})
    with pytest.raises(TrustError, match="step 4, revocation: expected a key that is not revoked"):
        load(folder, revoked=revoked)


def test_a_revoked_artifact_is_refused(folder: Path) -> None:
    with pytest.raises(TrustError, match="step 4, revocation: expected an artifact that is not revoked"):
        load(folder, revoked=frozenset({DIGEST}))


def test_another_artifact_than_the_configuration_names_is_refused(folder: Path) -> None:
    """Well signed, by the right person: an older one, say."""
    install(folder, signed(content(manifest(title="An older one"))))
    with pytest.raises(TrustError, match=f"step 3, digest: expected {DIGEST}, found"):
        load(folder)


# --- what the manifest says -------------------------------------------------------------------------------------------


def test_an_expired_artifact_is_refused(folder: Path) -> None:
    with pytest.raises(TrustError, match=r"step 7, validity: .*until 2026-12-01"):
        load(folder, now="2026-12-01T00:00:00Z")


def test_an_artifact_that_is_not_valid_yet_is_refused(folder: Path) -> None:
    with pytest.raises(TrustError, match=r"step 7, validity: .*not before 2026-06-01"):
        load(folder, now="2026-05-31T23:59:59Z")


def test_an_artifact_that_is_never_valid_is_refused(folder: Path) -> None:
    digest = install(folder, signed(content(manifest(not_before=NOW, not_after="2026-06-30T00:00:00Z"))))
    with pytest.raises(TrustError, match="step 7, validity: expected an end after the beginning"):
        load(folder, digest=digest)


def test_another_tenants_artifact_is_refused(folder: Path) -> None:
    digest = install(folder, signed(content(manifest(tenants=["other"]))))
    with pytest.raises(TrustError, match="step 6, tenant: expected a model for tenant default, found one for other"):
        load(folder, digest=digest)


def test_another_feature_schema_is_refused(folder: Path) -> None:
    recipe = {**RECIPE, "version": 2}
    digest = install(folder, signed(content(manifest(recipe=recipe))))
    with pytest.raises(TrustError, match=r"step 9, features: expected sha256:.* found sha256:"):
        load(folder, digest=digest)


def test_a_recipe_that_cannot_be_read_is_refused(folder: Path) -> None:
    digest = install(folder, signed(content(manifest(recipe={"name": "x", "import": "os"}))))
    files = artifact.read(folder)
    with pytest.raises(TrustError, match=r"step 9, features: .*import"):
        admit(files, terms(files, digest=digest), schema_hash)


def test_a_gate_that_was_not_passed_is_refused(folder: Path) -> None:
    gate = {"metric": "auc", "comparator": ">=", "threshold": "0.99", "passed": False}
    digest = install(folder, signed(content(manifest(gates=[gate]))))
    with pytest.raises(TrustError, match=r"step 8, gates: expected auc >= 0.99, found 0.97"):
        load(folder, digest=digest)


def test_a_gate_that_only_says_it_was_passed_is_refused(folder: Path) -> None:
    gate = {"metric": "auc", "comparator": ">=", "threshold": "0.99", "passed": True}
    digest = install(folder, signed(content(manifest(gates=[gate]))))
    with pytest.raises(TrustError, match=r"step 8, gates: expected auc >= 0.99, found 0.97"):
        load(folder, digest=digest)


# --- bombs ------------------------------------------------------------------------------------------------------------

BOMBS = {
    "deep": b'{"recipe":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"recipe":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "long": b'{"title":"' + b"a" * (1 << 20) + b'"}',
    "wide": b'{"recipe":{' + b",".join(b'"%d":[]' % n for n in range(100_000)) + b"}}",
    "big number": orjson.dumps(manifest()).replace(b'"rows":1000', b'"rows":' + b"9" * 100_000),
    "infinite": orjson.dumps(manifest()).replace(b'"rows_per_day":100.0', b'"rows_per_day":1e999'),
    "doubled key": orjson.dumps(manifest())[:-1] + b',"tenants":[],"not_after":"2999-01-01T00:00:00Z"}',
    "surrogate": orjson.dumps(manifest()).replace(b'"Unusual logons"', b'"\\ud800"'),
    "not UTF-8": orjson.dumps(manifest()).replace(b"Unusual", b"\xff"),
    "not JSON": b"recipe: !!python/object/apply:os.system [id]",
    "more": orjson.dumps(manifest(on_load="os.system")),
    "empty": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_signed_manifest_that_is_a_bomb_is_refused(folder: Path, bomb: str) -> None:
    digest = install(folder, signed(content(BOMBS[bomb])))
    with pytest.raises(TrustError, match="step 5, manifest"):
        load(folder, digest=digest)


def test_a_signature_that_is_a_bomb_is_refused(folder: Path) -> None:
    for bomb in (BOMBS["deep"], BOMBS["wide"], b" " * (3 << 20) + GOOD[oms.SIGNATURE]):
        (folder / oms.SIGNATURE).write_bytes(bomb)
        with pytest.raises(TrustError, match="step 2, signature"):
            load(folder)


def test_a_huge_file_is_refused_unread(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TrustError, match="larger than"):
        load(folder)


def test_a_thousand_files_are_refused(folder: Path) -> None:
    for number in range(1000):
        (folder / f"f{number}").touch()
    with pytest.raises(TrustError, match="more than 64 files"):
        load(folder)


# --- weights that are code --------------------------------------------------------------------------------------------


class Evil:
    """What a pickle would run."""

    ran: Path

    def __reduce__(self) -> Any:
        return Path.touch, (Evil.ran,)


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def _header(text: str, body: bytes = b"") -> bytes:
    """Return an array file with this header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + body


OBJECTS = np.array([Evil()], dtype=object)
DISGUISES: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: pickle.dumps(Evil()),
    "an old pickle": lambda: pickle.dumps(Evil(), protocol=0),
    "an array of objects": lambda: _npy(OBJECTS),
    "an archive with an array of objects": lambda: _zip({"threshold.npy": _npy(OBJECTS)}),
    "an archive with a pickle for an array": lambda: _zip({"threshold.npy": pickle.dumps(Evil())}),
    "an archive with a pickle beside": lambda: weights_and({"evil.pkl": pickle.dumps(Evil())}),
    "an archive with objects in a record": lambda: _zip({"threshold.npy": _npy(np.zeros(1, [("a", "O")]))}),
    "a header that says objects": lambda: _zip(
        {"threshold.npy": _header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps([Evil()]))}
    ),
    "a header that is code": lambda: _zip({"threshold.npy": _header("__import__('os').system('id')\n")}),
    "a header that is huge": lambda: _zip({"threshold.npy": _header(f"{{'descr': {'(' * 30_000}\n")}),
    "a shape that is huge": lambda: _zip(
        {"threshold.npy": _header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n")}
    ),
    "a bomb": lambda: _zip({"threshold.npy": _npy(np.zeros(1 << 22))}, zipfile.ZIP_DEFLATED),
    "a joblib-like archive": lambda: _zip({"archive/data.pkl": pickle.dumps(Evil()), "archive/version": b"3"}),
}


def weights_and(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO(weights())
    with zipfile.ZipFile(buffer, "a") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def test_honest_weights_are_loaded() -> None:
    assert weights_of(weights()).keys() == {"threshold"}


def test_what_hides_in_the_disguises_is_live(tmp_path: Path) -> None:
    """Whoever unpickles it, runs it."""
    Evil.ran = tmp_path / "ran"
    np.load(io.BytesIO(DISGUISES["an array of objects"]()), allow_pickle=True)
    assert Evil.ran.exists()


@pytest.mark.parametrize("disguise", DISGUISES)
def test_signed_weights_that_are_code_are_refused_and_not_run(folder: Path, tmp_path: Path, disguise: str) -> None:
    """Somebody who may sign models may still not run code."""
    Evil.ran = tmp_path / "ran"
    digest = install(folder, signed(content(weights__npz=DISGUISES[disguise]())))
    loaded = load(folder, digest=digest)
    with pytest.raises(TrustError, match=r"weights\.npz: "):
        weights_of(loaded.files[WEIGHTS])
    assert not Evil.ran.exists()
