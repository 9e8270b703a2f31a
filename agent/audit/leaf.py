"""The leaf: one thing that was done, as canonical JSON bytes, and what a batch's leaf stands for.

    {"action":"start","actor":"kim","data":{"pid":7},"n":0,"stream":"","time":1767400000000000,"v":1}

``n`` is the leaf's number in the log, ``time`` microseconds since 1970 UTC, ``actor`` who asked for it (empty: the
agent itself). Keys are sorted and nothing is written between tokens.

A batch has a leaf if it stored an alert or a dead letter, if it is its stream's first, or if the last one is an hour
old. Its ``data`` are ``root`` and ``alerts``, the Merkle root over the batch's *members* and their number, ``cursor``,
the SHA-256 of where the stream stands, and ``books``, what the stream has received, scored and quarantined up to here:
so what came between two leaves is on record in the second. A member is
``["alert id","revision","SHA-256 of the document"]``.

Where ``data`` names a ``configuration``, it is by the digest of its text, which is the ``digest`` of the leaf that says
that it was accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import orjson

from agent.audit.merkle import Tree, leaf_hash
from agent.errors import TrustError
from agent.model import Timestamp

VERSION = 1
END_OF_TIME = 253_402_300_800_000_000
"""No leaf is of a year after 9999."""
ALLOWING = frozenset({"start", "configuration-accepted", "configuration-applied", "detector-loaded"})
"""Actions that say why what runs may run."""

Action: TypeAlias = Literal[
    "start",
    "stop",
    "leaves-recovered",
    "batch",
    "source-notice",
    "configuration-accepted",
    "configuration-applied",
    "configuration-refused",
    "detector-loaded",
    "pack-accepted",
    "pack-refused",
    "stream-refused",
    "model-refused",
    "model-expiry",
    "command-refused",
    "stream-paused",
    "stream-resumed",
    "alerts-pruned",
    "alert-acknowledged",
    "dead-letters-retried",
    "replay",
]


class Act(NamedTuple):
    """What an action means in plain words, and its ECS `event.category`, `event.type` and `event.outcome`."""

    words: str
    category: tuple[str, ...]
    type: str
    outcome: str = "success"


ACTIONS: Mapping[Action, Act] = {
    "start": Act("the agent started", ("process",), "start"),
    "stop": Act("the agent stopped in order", ("process",), "end"),
    "leaves-recovered": Act("leaves that no checkpoint signed were found at a start", (), "info"),
    "batch": Act("a batch was evaluated", (), "info"),
    "source-notice": Act("a source put on record what happened upstream", (), "info"),
    "configuration-accepted": Act("the law accepted a configuration", ("configuration",), "change"),
    "configuration-applied": Act("the configuration was applied", ("configuration",), "change"),
    "configuration-refused": Act("a configuration was refused", ("configuration",), "denied", "failure"),
    "detector-loaded": Act("a detector was loaded", ("configuration",), "change"),
    "pack-accepted": Act("a signed pack of rules was accepted", ("configuration",), "change"),
    "pack-refused": Act("a changed pack of rules was refused", ("configuration",), "denied", "failure"),
    "stream-refused": Act("a stream could not be made and does not run", ("configuration",), "denied", "failure"),
    "model-refused": Act("a model was refused", ("configuration",), "denied", "failure"),
    "model-expiry": Act("a model that runs expires or has expired", ("configuration",), "info"),
    "command-refused": Act("a command was refused", ("iam",), "denied", "failure"),
    "stream-paused": Act("a stream was paused", ("configuration",), "change"),
    "stream-resumed": Act("a paused stream was told to go on", ("configuration",), "change"),
    "alerts-pruned": Act("delivered alerts were forgotten, as the configuration's retention says", (), "deletion"),
    "alert-acknowledged": Act("an alert was acknowledged", (), "change"),
    "dead-letters-retried": Act("dead letters were read again", (), "change"),
    "replay": Act("a replay began", (), "change"),
}
"""The closed list: whatever is not here has no leaf."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf that was read."""

    number: int
    time: Timestamp
    actor: str
    action: str
    stream: str
    data: Mapping[str, Any]

    @property
    def act(self) -> Act:
        """What the action means; a later Vedette may have written one that is not in this one's list."""
        return ACTIONS.get(cast(Action, self.action), Act(self.action, (), "info"))

    @property
    def configuration(self) -> object:
        """Digest of the configuration that the leaf speaks of; None if it names none."""
        return self.data.get("digest" if self.action.startswith("configuration-") else "configuration")

    @property
    def sentence(self) -> str:
        """The leaf in plain words, for people."""
        who = f" by {self.actor}" if self.actor else ""
        where = f" in stream {self.stream}" if self.stream else ""
        return f"{self.act.words}{where}{who}{_told(self.action, self.data)}"


def _told(action: str, data: Mapping[str, Any]) -> str:
    """Return what *data* adds to the words of an action; whatever it holds, for the log may not be ours."""
    match action, data:
        case "batch", {"alerts": int(alerts), "books": {"received": int(received)}}:
            return f": {alerts:,} new alerts; {received:,} records received so far"
        case "pack-accepted", {"pack": str(pack), "version": int(version), "digest": str(digest)}:
            return f": {pack} version {version}, {_brief(digest)}, signed by {_names(data.get('signers'))}"
        case "configuration-accepted", {"revision": int(revision), "digest": str(digest), "changed": dict(changed)}:
            approved = "; ".join(f"{section} by {_names(by)}" for section, by in changed.items())
            signers = _names(data.get("signers"))
            return f": revision {revision}, {_brief(digest)}, signed by {signers}; approved: {approved or 'no change'}"
        case "detector-loaded", {"detector": str(detector)}:
            made = [f"{data['type']}" if "type" in data else f"{data['rules']} rules" if "rules" in data else ""]
            made += [_brief(str(data["digest"]))] if data.get("digest") else []
            made += [f"signed by {data['signer']}"] if data.get("signer") else []
            return f": {detector} ({', '.join(filter(None, made))})"
    facts = [f"{name} {_short(value)}" for name, value in data.items() if value not in (None, "", {}, [])]
    return f": {', '.join(facts)}" if facts else ""


def _names(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else _short(value)


def _brief(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')[:12]}…"


@dataclass(frozen=True, slots=True)
class Entry:
    """A leaf as it is kept: its exact bytes and, of a batch, its members'. *hash* is the kept hash, if one is kept."""

    number: int
    data: bytes
    members: tuple[bytes, ...] = ()
    hash: bytes | None = None


def encode(
    number: int, action: Action, *, time: Timestamp, actor: str = "", stream: str = "", data: Mapping[str, Any]
) -> bytes:
    """Return the bytes of a leaf; ValueError for an action that is not in the list."""
    if action not in ACTIONS:
        raise ValueError(f"audit action {action!r}: expected one of {', '.join(ACTIONS)}")
    said = {"v": VERSION, "n": number, "time": time, "actor": actor, "action": action, "stream": stream, "data": data}
    try:
        return canonical(said)
    except TypeError:  # a name that is no Unicode, of a file say: what is refused must still come on record
        return canonical(_written_out(said))


def _written_out(value: Any) -> Any:
    """Return *value* with what UTF-8 cannot say written out as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_written_out(key): _written_out(one) for key, one in value.items()}
    return [_written_out(one) for one in value] if isinstance(value, list | tuple) else value


def decode(data: bytes) -> Leaf:
    """Read the bytes of a leaf; TrustError if they are none."""
    try:
        found = orjson.loads(data)
        if found["v"] != VERSION:
            raise ValueError
        leaf = Leaf(found["n"], found["time"], found["actor"], found["action"], found["stream"], found["data"])
    except (ValueError, TypeError, KeyError):
        raise TrustError(f"expected a leaf of version {VERSION}, found {data[:80]!r}") from None
    kinds = tuple(map(type, (leaf.number, leaf.time, leaf.actor, leaf.action, leaf.stream, leaf.data)))
    if len(found) != 7 or kinds != (int, int, str, str, str, dict) or not 0 <= leaf.time < END_OF_TIME:
        raise TrustError(f"expected a leaf of version {VERSION}, found {data[:80]!r}")
    return leaf


def member(alert: str, revision: str, document: bytes) -> bytes:
    """Return what stands for a stored alert in its batch's leaf."""
    return canonical([alert, revision, sha256(document).hexdigest()])


def batch(
    members: Sequence[bytes], *, cursor: bytes, books: Mapping[str, int], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the data of a batch's leaf."""
    return {
        **provenance,
        "alerts": len(members),
        "root": members_tree(members).root.hex(),
        "cursor": sha256(cursor).hexdigest(),
        "books": books,
    }


def members_tree(members: Sequence[bytes]) -> Tree:
    return Tree([leaf_hash(one) for one in members])


def canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value).decode()
    return text if len(text) <= 120 else f"{text[:119]}…"


assert tuple(ACTIONS) == get_args(Action)
