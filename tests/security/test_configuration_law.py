"""Attacks on a configuration and its signatures: each is refused, with who, what and which permission."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.config import Accepted, Bootstrap, Files, accept, root_of
from agent.config.model import PrincipalConfig
from agent.config.revision import ENVELOPE, FILE, PAYLOAD_TYPE, recall
from agent.errors import AccessDenied, ConfigError, TrustError, VedetteError
from agent.trust import dsse, keys
from tests.signing import key, pem, write

BASE: dict[str, Any] = {
    "revision": 1,
    "sources": {"logs": {"type": "files", "paths": ["/var/log"]}},
    "detectors": {"rules": {"type": "sigma", "path": "builtin"}},
    "sinks": {"out": {"type": "ndjson", "path": "alerts.ndjson"}},
    "streams": {"main": {"source": "logs", "detectors": ["rules"]}},
    "access": {
        "principals": {
            "ana": {"roles": ["operator"], "key": pem("ana")},
            "dex": {"roles": ["detection-engineer"], "key": pem("dex")},
            "kim": {"roles": ["analyst"], "key": pem("kim")},
        },
        "permissions": {
            "access": {"roles": ["admin"], "approvals": 1},
            "sinks": {"roles": ["operator"], "approvals": 1},
        },
    },
}
ROOT = root_of(Bootstrap(data=Path("data"), trust_root={"root": PrincipalConfig(roles=["admin"], key=pem("root"))}))


def changed(**sections: Any) -> dict[str, Any]:
    return {**BASE, "revision": 2, **sections}


def files(folder: Path, configuration: dict[str, Any], *names: str) -> Files:
    write(folder, configuration, *names)
    return Files.read(folder)


@pytest.fixture
def first(tmp_path: Path) -> Accepted:
    return accept(files(tmp_path, BASE, "root"), ROOT, None)


def test_what_the_trust_root_signed_is_accepted_and_says_who_stands_for_what(first: Accepted) -> None:
    assert first.signers == ("root",)
    assert first.changed["sinks"] == first.changed["access"] == ("root",)
    assert "alerts" not in first.changed
    assert first.trust == "signed"


def test_a_change_by_somebody_who_may_is_accepted(tmp_path: Path, first: Accepted) -> None:
    sinks = {"out": {"type": "ndjson", "path": "elsewhere.ndjson"}}
    after = accept(files(tmp_path, changed(sinks=sinks), "ana"), ROOT, first)
    assert after.changed == {"sinks": ("ana",)}


@pytest.mark.parametrize(
    ("sections", "name", "section"),
    [
        ({"sinks": {"out": {"type": "ndjson", "path": "x"}}}, "dex", "sinks"),
        ({"sinks": {"out": {"type": "ndjson", "path": "x"}}}, "kim", "sinks"),
        ({"detectors": {"rules": {"type": "sigma", "path": "builtin", "min_level": "high"}}}, "ana", "detectors"),
        ({"tenant": "other"}, "ana", "tenant"),
        ({"audit": {"sinks": []}}, "ana", "audit"),
        ({"access": {}}, "ana", "access"),
        ({"alerts": {"max_per_rule_and_hour": 1}}, "kim", "alerts"),
    ],
)
def test_a_change_by_somebody_who_may_not_is_refused(
    tmp_path: Path, first: Accepted, sections: dict[str, Any], name: str, section: str
) -> None:
    """The text says who signed, which section, and which permission that takes."""
    with pytest.raises(AccessDenied) as caught:
        accept(files(tmp_path, changed(**sections), name), ROOT, first)
    text = str(caught.value)
    assert f"section {section}" in text
    assert f"signed by {name} (" in text
    assert f"permission {section}" in text


def test_nobody_gives_himself_a_role_in_the_change_that_needs_it(tmp_path: Path, first: Accepted) -> None:
    """What a signer may do is judged by the revision before."""
    access = {
        **BASE["access"],
        "principals": {**BASE["access"]["principals"], "kim": {"roles": ["admin"], "key": pem("kim")}},
    }
    with pytest.raises(AccessDenied):
        accept(files(tmp_path, changed(access=access), "kim"), ROOT, first)


def test_a_stranger_in_the_file_cannot_sign_it(tmp_path: Path, first: Accepted) -> None:
    access = {"principals": {"eve": {"roles": ["admin"], "key": pem("eve")}}}
    with pytest.raises(TrustError):
        accept(files(tmp_path, changed(access=access), "eve"), ROOT, first)


def test_the_first_takes_the_trust_root(tmp_path: Path) -> None:
    with pytest.raises(TrustError):
        accept(files(tmp_path, BASE, "ana"), ROOT, None)


@pytest.mark.parametrize("revision", [0, 1])
def test_an_older_revision_is_not_replayed(tmp_path: Path, first: Accepted, revision: int) -> None:
    with pytest.raises(TrustError, match="expected more than 1"):
        accept(files(tmp_path, {**changed(tenant="x"), "revision": revision}, "root"), ROOT, first)


def test_going_back_under_a_higher_number_works(tmp_path: Path, first: Accepted) -> None:
    second = accept(files(tmp_path, changed(tenant="x"), "root"), ROOT, first)
    third = accept(files(tmp_path, {**BASE, "revision": 3}, "root"), ROOT, second)
    assert third.changed == {"tenant": ("root",)}


def test_every_byte_of_the_file_is_covered(tmp_path: Path, first: Accepted) -> None:
    """Any change of any byte after signing is refused."""
    good = files(tmp_path, changed(tenant="x"), "root")
    for place in range(0, len(good.text)):
        text = bytearray(good.text)
        text[place] ^= 1
        with pytest.raises(TrustError, match="not what was signed"):
            accept(Files(tmp_path, bytes(text), good.envelope), ROOT, first)


def test_signatures_over_another_kind_of_thing_do_not_count(tmp_path: Path, first: Accepted) -> None:
    """A model's signature is no configuration's: the payload type is signed."""
    good = files(tmp_path, changed(tenant="x"), "root")
    other = dsse.sign(good.text, "application/vnd.in-toto+json", key("root"))
    with pytest.raises(TrustError):
        accept(Files(tmp_path, good.text, other), ROOT, first)
    with pytest.raises(TrustError):
        accept(
            Files(tmp_path, good.text, other.replace(b"application/vnd.in-toto+json", PAYLOAD_TYPE.encode())),
            ROOT,
            first,
        )


def test_an_unsigned_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, BASE, "root")
    (tmp_path / ENVELOPE).unlink()
    with pytest.raises(TrustError, match="not signed"):
        Files.read(tmp_path)


def test_a_revoked_key_signs_nothing_any_more(tmp_path: Path, first: Accepted) -> None:
    access = {**BASE["access"], "revoked": [keys.key_id(key("ana").public_key())]}
    second = accept(files(tmp_path, changed(access=access), "root"), ROOT, first)
    third = {**changed(access=access), "revision": 3, "sinks": {}}
    with pytest.raises(TrustError):
        accept(files(tmp_path, third, "ana"), ROOT, second)


def test_one_key_does_not_speak_for_two(tmp_path: Path, first: Accepted) -> None:
    twins = {name: {"roles": ["operator"], "key": pem("ana")} for name in ("ana", "bob")}
    with pytest.raises(ConfigError, match="the same key"):
        accept(files(tmp_path, changed(access={"principals": twins}), "root"), ROOT, first)


def test_nobody_locks_everybody_out(tmp_path: Path, first: Accepted) -> None:
    access = {**BASE["access"], "permissions": {"access": {"roles": ["admin"], "approvals": 2}}}
    with pytest.raises(ConfigError, match="nobody could change it any more"):
        accept(files(tmp_path, changed(access=access), "root"), ROOT, first)


@pytest.mark.parametrize("pem", ["", "no key", pem("ana").replace("PUBLIC", "PRIVATE")])
def test_a_key_that_is_none_is_refused_by_name(tmp_path: Path, first: Accepted, pem: str) -> None:
    access = {"principals": {"ana": {"roles": ["operator"], "key": pem}}}
    with pytest.raises(ConfigError, match=r"access\.principals\.ana\.key"):
        accept(files(tmp_path, changed(access=access), "root"), ROOT, first)


def test_what_ran_is_verified_again_and_its_number_stays_used(tmp_path: Path, first: Accepted) -> None:
    second = files(tmp_path, changed(sinks={}), "ana")
    found, above = recall([(1, first.files), (2, second)], ROOT)
    assert found is not None
    assert (found.revision, above) == (2, 2)
    assert recall([], ROOT) == (None, 0)
    bent = Files(tmp_path, second.text.replace(b"builtin", b"/tmp/xx"), second.envelope)
    assert recall([(1, first.files), (2, bent)], ROOT) == (None, 2)


def test_after_a_new_trust_root_the_numbers_go_on(tmp_path: Path, first: Accepted) -> None:
    """What the old root signed does not run, and an old number cannot be used again."""
    other = root_of(Bootstrap(data=Path("d"), trust_root={"new": PrincipalConfig(roles=["admin"], key=pem("new"))}))
    before, above = recall([(1, first.files)], other)
    assert (before, above) == (None, 1)
    with pytest.raises(TrustError, match="expected more than 1"):
        accept(files(tmp_path, BASE, "new"), other, before, above=above)
    assert accept(files(tmp_path, changed(), "new"), other, before, above=above).revision == 2


@pytest.mark.parametrize("text", ["revision: 2\nsources: {}\n", "[", "revision: two\n", "a: &a [*a]\n"])
def test_what_is_signed_must_still_be_a_configuration(tmp_path: Path, first: Accepted, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    (tmp_path / ENVELOPE).write_bytes(dsse.sign(text.encode(), PAYLOAD_TYPE, key("root")))
    with pytest.raises(VedetteError) as caught:
        accept(Files.read(tmp_path), ROOT, first)
    assert isinstance(caught.value, ConfigError)


NEW_ROOT = root_of(Bootstrap(data=Path("d"), trust_root={"new": PrincipalConfig(roles=["admin"], key=pem("new"))}))


def test_whom_an_old_root_named_is_nobody_under_a_new_one(tmp_path: Path, first: Accepted) -> None:
    """The chain is verified from its beginning; it begins anew with what the new root signs, and goes on from there."""
    second = files(tmp_path, changed(sinks={}), "ana")
    assert recall([(1, first.files), (2, second)], NEW_ROOT) == (None, 2)
    third = files(tmp_path, {**BASE, "revision": 3}, "new")
    fourth = files(tmp_path, {**BASE, "revision": 4, "sinks": {}}, "ana")
    found, above = recall([(1, first.files), (2, second), (3, third), (4, fourth)], NEW_ROOT)
    assert found is not None
    assert (found.revision, found.signers, above) == (4, ("ana",), 4)


def test_rows_that_somebody_put_into_the_store_are_not_believed(tmp_path: Path) -> None:
    access = {"principals": {"eve": {"roles": ["admin"], "key": pem("eve")}}}
    forged = [(number, files(tmp_path, {**BASE, "revision": number, "access": access}, "eve")) for number in (1, 2)]
    assert recall(forged, ROOT) == (None, 2)
    good = files(tmp_path, BASE, "root")
    assert recall([(7, good)], ROOT) == (None, 7), "under another number than it has"


def test_what_no_version_parses_any_more_is_no_reason_to_fail(tmp_path: Path, first: Accepted) -> None:
    assert recall([(1, first.files), (2, Files(tmp_path, b"[", b""))], ROOT) == (None, 2)


@pytest.mark.parametrize(
    ("old", "new"), [(1, True), (0, False), (1, 1.0), ("1", 1), ([], {}), (None, False), ("", None)], ids=repr
)
def test_no_change_is_too_small_to_need_a_signature(tmp_path: Path, first: Accepted, old: Any, new: Any) -> None:
    """What YAML tells apart is a change, though it may compare as equal."""

    def sources(value: Any) -> dict[str, Any]:
        return {"logs": {"type": "files", "paths": ["/var/log"], "option": value}}

    second = accept(files(tmp_path, changed(sources=sources(old)), "root"), ROOT, first)
    third = {**changed(sources=sources(new)), "revision": 3}
    with pytest.raises(AccessDenied, match="section sources"):
        accept(files(tmp_path, third, "dex"), ROOT, second)


def test_a_configuration_cannot_end_the_trust_root(tmp_path: Path, first: Accepted) -> None:
    """It is how a machine is recovered."""
    access = {**BASE["access"], "revoked": [keys.key_id(key("root").public_key())]}
    second = accept(files(tmp_path, changed(access=access), "root"), ROOT, first)
    third = {**changed(access=BASE["access"]), "revision": 3}
    assert accept(files(tmp_path, third, "root"), ROOT, second).signers == ("root",)


@pytest.mark.parametrize("what", ["folder", "pipe", "nothing to read"])
def test_what_is_no_plain_file_is_refused_and_waited_for_by_nobody(tmp_path: Path, what: str) -> None:
    write(tmp_path, BASE, "root")
    for name in (FILE, ENVELOPE):
        path = tmp_path / name
        kept = path.read_bytes()
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(path)
        with pytest.raises(VedetteError):
            Files.read(tmp_path)
        path.rmdir() if what == "folder" else path.unlink()
        path.write_bytes(kept)
