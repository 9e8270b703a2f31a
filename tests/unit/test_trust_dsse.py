"""Envelopes: who signed what, by known keys only."""

from __future__ import annotations

import orjson
import pytest

from agent.errors import ConfigError, TrustError
from agent.trust import dsse, keys

TYPE = "application/vnd.vedette.test"
ALICE, BOB, EVE = keys.generate(), keys.generate(), keys.generate()
KNOWN = [ALICE.public_key(), BOB.public_key()]


def ids(*of: keys.PrivateKey) -> frozenset[str]:
    return frozenset(keys.key_id(key.public_key()) for key in of)


def test_what_is_signed_is_the_encoding_of_the_specification() -> None:
    """The example of the DSSE protocol text."""
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_lengths_are_in_bytes() -> None:
    assert dsse.pae("é", b"") == "DSSEv1 2 é 0 ".encode()


def test_an_envelope_gives_its_payload_and_its_signers() -> None:
    envelope = dsse.sign(b"payload", TYPE, ALICE, BOB)
    assert dsse.verify(envelope, TYPE, KNOWN) == dsse.Verified(b"payload", ids(ALICE, BOB))


def test_unknown_signers_say_nothing() -> None:
    envelope = dsse.sign(b"payload", TYPE, EVE, ALICE)
    assert dsse.verify(envelope, TYPE, KNOWN).signers == ids(ALICE)


def test_a_key_counts_once() -> None:
    """However often its signatures stand there, and however often it is known."""
    envelope = orjson.loads(dsse.sign(b"payload", TYPE, ALICE))
    envelope["signatures"] *= 3
    assert dsse.verify(orjson.dumps(envelope), TYPE, [*KNOWN, *KNOWN]).signers == ids(ALICE)


def test_cosigning_adds_a_signature() -> None:
    envelope = dsse.cosign(dsse.sign(b"payload", TYPE, ALICE), TYPE, BOB)
    assert dsse.verify(envelope, TYPE, KNOWN) == dsse.Verified(b"payload", ids(ALICE, BOB))


def test_cosigning_again_replaces_the_older_signature() -> None:
    first = dsse.sign(b"payload", TYPE, ALICE, BOB)
    again = dsse.cosign(first, TYPE, ALICE)
    assert len(orjson.loads(again)["signatures"]) == 2
    assert dsse.verify(again, TYPE, KNOWN).signers == ids(ALICE, BOB)


def test_the_payload_can_be_looked_at_unverified() -> None:
    assert dsse.payload(dsse.sign(b"payload", TYPE, EVE), TYPE) == b"payload"


def test_an_envelope_is_of_one_type() -> None:
    envelope = dsse.sign(b"payload", TYPE, ALICE)
    for wrong in (
        lambda: dsse.verify(envelope, "text/plain", KNOWN),
        lambda: dsse.payload(envelope, "text/plain"),
        lambda: dsse.cosign(envelope, "text/plain", BOB),
    ):
        with pytest.raises(TrustError, match=f"expected payload type text/plain, found {TYPE}"):
            wrong()


def test_without_a_known_key_nothing_verifies() -> None:
    """An empty list of keys refuses."""
    envelope = dsse.sign(b"payload", TYPE, ALICE)
    for known in ([], [BOB.public_key()]):
        with pytest.raises(TrustError, match="expected a signature by one of"):
            dsse.verify(envelope, TYPE, known)


@pytest.mark.parametrize("size", [0, (1 << 20) + 1])
def test_only_payloads_that_can_be_verified_are_signed(size: int) -> None:
    with pytest.raises(ConfigError, match=str(size)):
        dsse.sign(b"x" * size, TYPE, ALICE)


def test_the_largest_payload_verifies() -> None:
    payload = b"x" * (1 << 20)
    assert dsse.verify(dsse.sign(payload, TYPE, ALICE), TYPE, KNOWN).payload == payload
