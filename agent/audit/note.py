"""Signed notes and checkpoints as C2SP describes them (signed-note, tlog-checkpoint), with Ed25519.

A note is text under signatures; a checkpoint is a note that says how many leaves a log has and what their root is::

    vedette/2f1c…             the log's name, which is also the key's
    2013                      leaves
    nND/nri/U0xuHUr5…=        root
                              (a blank line)
    — vedette/2f1c… Az3grl…=  signature

Keys are one line of text each: ``name+key id+base64`` for verifying, the same behind ``PRIVATE+KEY+`` for signing.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.audit.merkle import SIZE
from agent.errors import TrustError

_ED25519 = b"\x01"
_PRIVATE = "PRIVATE+KEY+"
_LONGEST = 64 << 10
_NAME = re.compile(r"[!-*,-~]{1,256}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Verifier:
    """A public key and its name."""

    name: str
    key: bytes

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read the line that `str` gives; TrustError if it is not one of an Ed25519 key."""
        return cls(*_read(text.strip(), "verifier key"))

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encode64(_ED25519 + self.key)}"

    @cached_property
    def id(self) -> bytes:
        return _key_id(self.name, self.key)


@dataclass(frozen=True)
class Signer:
    """A private key and its name. It never prints itself: `secret` does."""

    name: str
    seed: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Signer:
        """Read the line that `secret` gives; TrustError if it is not one, and no word of what it holds."""
        if not text.startswith(_PRIVATE):
            raise TrustError("signing key: expected a line that begins with PRIVATE+KEY+")
        return cls(*_read(text.removeprefix(_PRIVATE).strip(), "signing key", private=True))

    @property
    def secret(self) -> str:
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{encode64(_ED25519 + self.seed)}"

    @cached_property
    def verifier(self) -> Verifier:
        return Verifier(self.name, self._key.public_key().public_bytes_raw())

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    def sign(self, text: str) -> str:
        """Return *text*, lines that all end, as a signed note."""
        signature = self._key.sign(text.encode())
        return f"{text}\n— {self.name} {encode64(self.verifier.id + signature)}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log held: *size* leaves under one *root*."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{encode64(self.root)}\n"


def verify(note: str, key: Verifier) -> str:
    """Return the text of *note* as signed by *key*; TrustError for anything else. Signatures of others are ignored."""
    head, mark, tail = note.rpartition("\n\n")
    text = head + "\n"
    if len(note) > _LONGEST or not mark or not head or not tail.endswith("\n") or _CONTROL.search(note):
        raise TrustError("signed note: expected lines of text, a blank line and lines of signatures")
    ours = 0
    for line in tail.removesuffix("\n").split("\n"):
        found = _SIGNATURE.fullmatch(line)
        data = decode64(found[2]) if found else b""
        if found is None or len(data) < 5:
            raise TrustError(f"signed note: {line[:80]!r} is no signature; expected '— name base64'")
        if (found[1], data[:4]) == (key.name, key.id):
            ours += 1
            try:
                public = Ed25519PublicKey.from_public_bytes(key.key)
                public.verify(data[4:], text.encode("utf-8", "surrogatepass"))
            except InvalidSignature:
                raise TrustError(f"signed note: the signature of {key.name} does not fit the text") from None
    if ours != 1:
        raise TrustError(f"signed note: expected one signature of {key}, found {ours}")
    return text


def open_checkpoint(note: str, key: Verifier) -> Checkpoint:
    """Return the checkpoint that *key* signed; TrustError if it did not, or if it is another log's."""
    lines = verify(note, key).split("\n")
    if len(lines) != 4 or not _NUMBER.fullmatch(lines[1]):
        raise TrustError("checkpoint: expected the log's name, a number of leaves and a root")
    root = decode64(lines[2])
    if lines[0] != key.name or len(root) != SIZE:
        raise TrustError(f"checkpoint: expected one of the log {key.name}, found one of {lines[0]!r}")
    return Checkpoint(lines[0], int(lines[1]), root)


def _read(text: str, what: str, *, private: bool = False) -> tuple[str, bytes]:
    """Return the name and the 32 bytes of a key's line."""
    name, id, data = ([*text.split("+", 2), "", ""])[:3]
    key = decode64(data)
    if not _NAME.fullmatch(name) or len(key) != 33 or key[:1] != _ED25519:
        raise TrustError(f"{what}: expected name+key id+base64 of an Ed25519 key")
    public = Signer(name, key[1:]).verifier.key if private else key[1:]
    if _key_id(name, public).hex() != id:
        raise TrustError(f"{what} {name}: the key id does not fit the key")
    return name, key[1:]


def _key_id(name: str, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def encode64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decode64(text: str) -> bytes:
    """Return what *text* encodes; TrustError if it is not the one base64 text of it."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if encode64(data) != text:
        raise TrustError("expected base64, found something else")
    return data
