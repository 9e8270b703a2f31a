"""Attacks on an envelope: refused, or the very same payload by no more signers than before."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from agent.errors import TrustError
from agent.trust import dsse, keys

TYPE = "application/vnd.vedette.configuration"
PAYLOAD = b"sources: {}\n"
ALICE, BOB, EVE = keys.generate(), keys.generate(), keys.generate()
KNOWN = [ALICE.public_key(), BOB.public_key()]
ENVELOPE = dsse.sign(PAYLOAD, TYPE, ALICE)
BOTH = dsse.sign(PAYLOAD, TYPE, ALICE, BOB)
SIGNED = dsse.verify(ENVELOPE, TYPE, KNOWN)


def refused(envelope: bytes) -> bool:
    """Say whether *envelope* is refused; what is not refused must be what Alice signed, by her alone."""
    try:
        assert dsse.verify(envelope, TYPE, KNOWN) == SIGNED
    except TrustError:
        return True
    return False


def test_every_bit_of_an_envelope_flipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but what was signed ever comes out."""
    tried = len(ENVELOPE) * 8
    passed = 0
    for place in range(len(ENVELOPE)):
        for bit in range(8):
            passed += not refused(ENVELOPE[:place] + bytes([ENVELOPE[place] ^ 1 << bit]) + ENVELOPE[place + 1 :])
    with capsys.disabled():
        print(f"\nenvelope: {tried} flipped bits, {tried - passed} refused, {passed} the same payload and signers")
    assert passed == 0


def test_every_bit_of_an_envelope_of_two_flipped() -> None:
    """The payload stays, and nobody is added to the signers; losing one is all that can be had."""
    both = dsse.verify(BOTH, TYPE, KNOWN).signers
    for place in range(len(BOTH)):
        flipped = BOTH[:place] + bytes([BOTH[place] ^ 1 << place % 8]) + BOTH[place + 1 :]
        try:
            found = dsse.verify(flipped, TYPE, KNOWN)
        except TrustError:
            continue
        assert found.payload == PAYLOAD
        assert found.signers < both


def test_every_truncation_is_refused() -> None:
    assert all(refused(ENVELOPE[:size]) for size in range(len(ENVELOPE)))


def test_every_byte_left_out_or_doubled_is_refused() -> None:
    for place in range(len(ENVELOPE)):
        assert refused(ENVELOPE[:place] + ENVELOPE[place + 1 :])
        assert refused(ENVELOPE[:place] + ENVELOPE[place : place + 1] + ENVELOPE[place:])


Change = Callable[[dict[str, Any]], object]


def _signature(**values: Any) -> Change:
    return lambda envelope: envelope["signatures"][0].update(values)


def _all(*values: Any) -> Change:
    return lambda envelope: envelope.update(signatures=list(values))


def _text(old: str, new: str) -> Change:
    def change(envelope: dict[str, Any]) -> None:
        envelope["payload"] = envelope["payload"].replace(old, new)

    return change


FIRST = orjson.loads(ENVELOPE)["signatures"][0]
OTHER = base64.b64encode(b"sinks: {}\n").decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(payload=OTHER),
        lambda e: e.update(payload=e["payload"] + "\n"),
        lambda e: e.update(payload=e["payload"] + e["payload"]),
        lambda e: e.update(payload=""),
        lambda e: e.update(payload=None),
        lambda e: e.update(payload={"a": 1}),
        lambda e: e.update(payload=PAYLOAD.decode()),
        lambda e: e.pop("payload"),
        lambda e: e.update(payloadType="application/vnd.vedette.other"),
        lambda e: e.update(payloadType=TYPE.upper()),
        lambda e: e.update(payloadType=TYPE + " "),
        lambda e: e.update(payloadType=[TYPE]),
        lambda e: e.pop("payloadType"),
        lambda e: e.update(more=1),
        lambda e: e.pop("signatures"),
        _all(),
        _all(*[FIRST] * 65),
        _all(FIRST["sig"]),
        _all(None),
        _all([FIRST]),
        lambda e: e.update(signatures={"0": FIRST}),
        lambda e: e.update(signatures=FIRST),
        _all(FIRST, {**FIRST, "sig": FIRST["sig"][::-1]}),
        _signature(more=1),
        _signature(sig=""),
        _signature(sig=None),
        _signature(sig="AAAA"),
        _signature(sig=base64.b64encode(bytes(64)).decode()),
        _signature(sig=base64.b64encode(encode_dss_signature(0, 0)).decode()),
        _signature(sig=base64.b64encode(encode_dss_signature(1, 1)).decode()),
        _signature(sig=base64.b64encode(base64.b64decode(FIRST["sig"]) + b"\0").decode()),
        _signature(keyid=keys.key_id(BOB.public_key())),
        _signature(keyid=keys.key_id(EVE.public_key())),
        _signature(keyid=FIRST["keyid"].upper()),
        _signature(keyid=FIRST["keyid"][:-1]),
        _signature(keyid=""),
        _signature(keyid=None),
        _signature(keyid=0),
        _signature(keyid=[FIRST["keyid"]]),
        lambda e: e["signatures"][0].pop("keyid"),
        lambda e: e["signatures"][0].pop("sig"),
    ],
    ids=range(41),
)
def test_an_envelope_of_another_shape_is_refused(change: Change) -> None:
    envelope = orjson.loads(ENVELOPE)
    change(envelope)
    assert refused(orjson.dumps(envelope))


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"null",
        b"[]",
        b'"' + ENVELOPE.replace(b'"', b'\\"') + b'"',
        b"[" + ENVELOPE + b"]",
        ENVELOPE + ENVELOPE,
        ENVELOPE + b"x",
        ENVELOPE + b"\0",
        b"\xef\xbb\xbf" + ENVELOPE,
        ENVELOPE.decode().encode("utf-16"),
        ENVELOPE[:-1] + b',"payload":"' + OTHER.encode() + b'"}',
        b'{"payload":"' + OTHER.encode() + b'",' + ENVELOPE[1:],
        ENVELOPE[:-1] + b',"payl\\u006fad":"' + OTHER.encode() + b'"}',
        ENVELOPE[:-1] + b',"signatures":[]}',
        ENVELOPE[:-1] + b',"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ENVELOPE[:-1] + b"}" + b" " * (2 << 20),
        ENVELOPE.replace(b'"payload"', b'"Payload"'),
        PAYLOAD,
    ],
    ids=range(18),
)
def test_what_is_not_one_plain_envelope_is_refused(envelope: bytes) -> None:
    """Repeated keys, more before or after, other encodings, bombs."""
    assert refused(envelope)


def test_an_oversize_payload_is_refused_though_it_is_signed() -> None:
    payload = b"x" * ((1 << 20) + 1)
    signature = keys.sign(ALICE, dsse.pae(TYPE, payload))
    text = {"payloadType": TYPE, "payload": base64.b64encode(payload).decode(), "signatures": [FIRST]}
    text["signatures"] = [{**FIRST, "sig": base64.b64encode(signature).decode()}]
    with pytest.raises(TrustError, match="at most 1048576"):
        dsse.verify(orjson.dumps(text), TYPE, KNOWN)


def test_other_base64_of_the_same_bytes_is_refused() -> None:
    """There is one way to write an envelope's payload."""
    payload = b"\xfb\xef"  # ++8= and, with URL letters, --8=
    envelope = dsse.sign(payload, TYPE, ALICE)
    assert dsse.verify(envelope, TYPE, KNOWN).payload == payload
    for other in (b"--8=", b"++8", b"++9=", b"+\\n+8=", b" ++8="):
        with pytest.raises(TrustError, match="canonical base64"):
            dsse.verify(envelope.replace(b"++8=", other), TYPE, KNOWN)


def test_order_and_space_change_nothing() -> None:
    """Keys and signatures in another order, indented."""
    envelope = orjson.loads(BOTH)
    envelope["signatures"].reverse()
    turned = orjson.dumps(dict(reversed(envelope.items())), option=orjson.OPT_INDENT_2)
    assert dsse.verify(turned, TYPE, KNOWN) == dsse.verify(BOTH, TYPE, KNOWN)


def test_a_signature_over_the_bare_payload_is_refused() -> None:
    """Only the encoding of type and payload counts."""
    envelope = orjson.loads(ENVELOPE)
    envelope["signatures"][0]["sig"] = base64.b64encode(keys.sign(ALICE, PAYLOAD)).decode()
    assert refused(orjson.dumps(envelope))


def test_a_signature_of_another_type_cannot_be_moved() -> None:
    other = orjson.loads(dsse.sign(PAYLOAD, "application/vnd.vedette.other", ALICE))
    assert refused(orjson.dumps({**other, "payloadType": TYPE}))


def test_a_signature_of_another_payload_cannot_be_moved() -> None:
    other = orjson.loads(dsse.sign(b"sinks: {}\n", TYPE, ALICE))
    assert refused(orjson.dumps({**orjson.loads(ENVELOPE), "signatures": other["signatures"]}))


def test_a_strangers_signature_beside_a_good_one_counts_for_nothing() -> None:
    """Whatever it holds."""
    for sig in (FIRST["sig"], "AAAA", "no base64"):
        envelope = orjson.loads(ENVELOPE)
        envelope["signatures"].insert(0, {"keyid": "stranger", "sig": sig})
        assert not refused(orjson.dumps(envelope))


def test_one_who_signs_twice_is_still_one() -> None:
    """A second signature of one key, fresh or mirrored on the curve, is no second signer."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    first, second = decode_dss_signature(base64.b64decode(FIRST["sig"]))
    mirrored = encode_dss_signature(first, order - second)
    fresh = keys.sign(ALICE, dsse.pae(TYPE, PAYLOAD))
    envelope = orjson.loads(ENVELOPE)
    envelope["signatures"] += [{**FIRST, "sig": base64.b64encode(one).decode()} for one in (mirrored, fresh)]
    assert not refused(orjson.dumps(envelope))
