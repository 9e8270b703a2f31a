"""The proof of one alert: two short paths, from it to its batch's leaf and from there to a signed checkpoint.

Beside the alert's leaf it holds the leaves before it that say why what ran was allowed to run, each with its own path,
so that "why did this fire, and who allowed it" is answered by one small file and one verifier key. That no other leaf
of that kind lies between them is what `verify` says of the whole log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.audit.leaf import ALLOWING, Entry, Leaf, decode, members_tree
from agent.audit.merkle import Tree, check_inclusion, leaf_hash
from agent.audit.note import Checkpoint, Verifier, decode64, encode64, open_checkpoint
from agent.audit.verify import Verification
from agent.errors import ConfigError, RetryableError, TrustError


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Place(_Form):
    """A leaf, its number and its path to the checkpoint's root; bytes are base64."""

    number: int
    leaf: str
    path: list[str]


class Proof(_Form):
    """The proof that a revision of an alert, as *member* says it, is in the log that signed *checkpoint*."""

    format: Literal["vedette.proof/1"] = "vedette.proof/1"
    member: str
    index: int
    path: list[str]
    batch: Place
    allowed: list[Place]
    checkpoint: str


@dataclass(frozen=True)
class Proven:
    """What a proof says: *document* is the SHA-256 of the alert's document as it was stored."""

    alert: str
    revision: str
    document: str
    batch: Leaf
    allowed: tuple[Leaf, ...]
    checkpoint: Checkpoint


def prove(alert: str, entries: Iterable[Entry], checkpoints: Iterable[str], key: Verifier) -> list[Proof]:
    """Verify the log and return a proof for each revision of the alert whose id begins with *alert*.

    ConfigError if no alert or several begin so, RetryableError if none of the checkpoints covers it yet.
    """
    verification = Verification(checkpoints, key)
    hashes: list[bytes] = []
    allowing: dict[tuple[object, ...], tuple[Leaf, Entry]] = {}
    found: list[tuple[Entry, list[Entry], int]] = []
    start = b'["' + alert.encode()
    for entry in entries:
        leaf = verification.take(entry)
        hashes.append(leaf_hash(entry.data))
        for index, one in enumerate(entry.members):
            if one.startswith(start):
                found.append((entry, [kept for said, kept in allowing.values() if _allows(said, leaf)], index))
        if leaf.action in ALLOWING:
            allowing[leaf.action, leaf.stream, leaf.configuration, leaf.data.get("detector")] = (leaf, entry)
    report = verification.finish()
    _one_alert(alert, {orjson.loads(entry.members[index])[0] for entry, _, index in found})
    if found[-1][0].number >= report.signed:
        raise RetryableError(f"alert {alert}: leaf {found[-1][0].number:,} is not under a checkpoint yet; try again")
    tree = Tree(hashes[: report.signed])
    return [
        Proof(
            member=encode64(entry.members[index]),
            index=index,
            path=_texts(members_tree(entry.members).inclusion(index)),
            batch=_place(entry, tree),
            allowed=[_place(one, tree) for one in allowed],
            checkpoint=report.note,
        )
        for entry, allowed, index in found
    ]


def parse(data: bytes) -> Iterator[Proof]:
    """Read proofs, one a line; TrustError for a line that is none."""
    for line in data.splitlines():
        try:
            yield Proof.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise TrustError(f"proof: {place}: {first['msg']}; make it anew with 'vedette audit prove'") from None


def check_proof(proof: Proof, key: Verifier) -> Proven:
    """Return what *proof* says, as the owner of *key* signed it; TrustError if it does not hold."""
    checkpoint = open_checkpoint(proof.checkpoint, key)
    batch = _check(proof.batch, checkpoint)
    member = decode64(proof.member)
    if batch.action != "batch":
        raise TrustError(f"proof: expected the leaf of a batch, found one of {batch.action!r}")
    try:
        size, root = int(batch.data["alerts"]), bytes.fromhex(batch.data["root"])
        alert, revision, document = orjson.loads(member)
    except (KeyError, ValueError, TypeError):
        raise TrustError("proof: the batch or the alert in it cannot be read") from None
    check_inclusion(leaf_hash(member), proof.index, size, _hashes(proof.path), root)
    allowed = tuple(_check(place, checkpoint) for place in proof.allowed)
    for one in allowed:
        if one.action not in ALLOWING or one.number >= batch.number or not _allows(one, batch):
            raise TrustError(f"proof: leaf {one.number:,} ({one.action}) does not allow what leaf {batch.number:,} did")
    accepted = {one.configuration for one in allowed if one.action == "configuration-accepted"}
    if batch.configuration is not None and batch.configuration not in accepted:
        raise TrustError(
            f"proof: nothing in it accepts the configuration {batch.configuration} that the batch ran under"
        )
    return Proven(alert, revision, document, batch, allowed, checkpoint)


def _check(place: Place, checkpoint: Checkpoint) -> Leaf:
    data = decode64(place.leaf)
    check_inclusion(leaf_hash(data), place.number, checkpoint.size, _hashes(place.path), checkpoint.root)
    leaf = decode(data)
    if leaf.number != place.number:
        raise TrustError(f"proof: in place of leaf {place.number:,} there is one made as {leaf.number:,}")
    return leaf


def _allows(said: Leaf, batch: Leaf) -> bool:
    """Say whether *said* is about the stream of *batch* and about its configuration, where both name one."""
    configurations = {said.configuration, batch.configuration} - {None}
    return said.stream in ("", batch.stream.removesuffix("/replay")) and len(configurations) < 2


def _one_alert(alert: str, ids: set[str]) -> None:
    if len(ids) != 1:
        trouble = "no alert in the log has" if not ids else "several alerts have"
        raise ConfigError(f"{trouble} an id that begins with {alert!r}; see 'vedette alerts list'")


def _place(entry: Entry, tree: Tree) -> Place:
    return Place(number=entry.number, leaf=encode64(entry.data), path=_texts(tree.inclusion(entry.number)))


def _texts(hashes: Iterable[bytes]) -> list[str]:
    return [encode64(one) for one in hashes]


def _hashes(texts: Iterable[str]) -> list[bytes]:
    return [decode64(one) for one in texts]
