"""The ports and their promises. `agent.testing` checks each promise for any implementation.

A source gives native records and a cursor; a sink answers for each document; a detector is a pure function of
(events, state). None of them keeps a promise with a lock, a global or a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from agent.model import Batch, Cursor, Description, Document, Finding, Kind, Outcome, Records, Reference, Timestamp


@runtime_checkable
class Source(Protocol):
    """Where records come from.

    The same *after* and an unchanged upstream give the same records; a changed one gives a superset without repeats.
    `fetch` returns at most *limit* records and never waits: nothing new is an empty `Records`, which still says
    `as_of`.
    Transient trouble raises `RetryableError`, wrong credentials or addresses `ConfigError`.
    """

    id: str

    def open(self, fields: frozenset[str]) -> None:
        """Prove reach and least privilege, else ConfigError.

        *fields* are the native fields (dotted) that the plan reads of stored documents; empty for all. A source that
        leaves out the others says so in `Records.projected`.
        """

    def fetch(self, after: Cursor | None, limit: int) -> Records: ...

    def full(self, references: Sequence[Reference]) -> Mapping[Reference, bytes | Mapping[str, Any]]:
        """Return whole native records; a missing key means that the record has vanished."""

    def notes(self) -> Mapping[str, str]:
        """Say what of the upstream is not read and why, by place; bounded, what is beyond the bound as a number."""

    def ack(self, cursor: Cursor) -> None:
        """Tell the upstream that everything up to *cursor* is committed: a courtesy, our checkpoint is the truth."""

    def close(self) -> None:
        """Release what is held; safe unopened, safe twice."""


@runtime_checkable
class Estimable(Protocol):
    """A source that can say how much it would read from its start position."""

    def estimate(self) -> Mapping[str, Any]:
        """Return ``start``, ``places``, ``documents`` and ``hours`` of what a first start would read; it is open."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What a source has not given yet: how many records, counted or estimated, and since when the oldest of them is
    known to be there. None: it cannot tell; without a record there is no oldest."""

    events: int | None = None
    oldest: Timestamp | None = None


@runtime_checkable
class Measured(Protocol):
    """A source that can say how far it is behind."""

    def lag(self) -> Lag:
        """Return what the last fetch learnt, at once and in any thread; the upstream is not asked."""


@runtime_checkable
class Plantable(Protocol):
    """A source into whose upstream a document can be put, to see it come back as an event."""

    def plant(self, place: str, document: Mapping[str, Any]) -> None:
        """Write *document* to *place* (an index), where this source reads it; the instance need not be open.

        ConfigError or RetryableError if it is not written.
        """


@runtime_checkable
class Replayable(Protocol):
    """A source whose upstream can be asked again for what it held."""

    def replay(
        self, cursor: Cursor | None, *, place: str | None, start: Timestamp | None, end: Timestamp | None
    ) -> Source:
        """Return an unopened source that gives what lies in *place* (an index; None: everywhere) with an event time in
        [start, end), each record with the identity that it has in the stream whose position is *cursor*.
        """


@runtime_checkable
class Sink(Protocol):
    """Where documents go. `write` answers once for each document, in order; a repeated id leaves one document."""

    id: str

    def open(self) -> None: ...

    def write(self, documents: Sequence[Document]) -> Sequence[Outcome]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `vedette setup` did or `vedette doctor` looked at: what is so, and what to do about it."""

    name: str
    state: Literal["ok", "changed", "warning", "failed"]
    detail: str
    remedy: str = ""


@runtime_checkable
class Examinable(Protocol):
    """A source or sink that can say what is wrong with its upstream. Never raises for what it finds."""

    def examine(self) -> Iterator[Check]: ...


@runtime_checkable
class Installable(Protocol):
    """A sink whose target needs templates or the like. The instance need not be open."""

    def install(self, fields: Mapping[str, str]) -> Iterator[Check]:
        """Install or update what the target needs, step by step; *fields* are the ECS fields with their types.

        A second run changes nothing and says so. RetryableError or ConfigError where a step cannot be done.
        """


@runtime_checkable
class Privileged(Protocol):
    """A source or sink that needs privileges at its upstream."""

    def roles(self) -> Mapping[str, Any]:
        """Return the least privileges, by role name, as the body that the upstream's own API takes."""


class StateView(Protocol):
    """One operator's keyed state inside the running batch: reads see its own writes, all is discarded on an error.

    Values are JSON-able; a value read must be put back to be changed.
    """

    def get(self, key: str) -> Any: ...

    def put(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...

    def items(self) -> Iterator[tuple[str, Any]]:
        """All keys with their values, in no order that may matter."""

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of the operator's counters (late events, capped keys): numbers only, never read back."""


@runtime_checkable
class Detector(Protocol):
    """A pure function of (events, state): no clock, no network, no disk, no memory but *state*.

    *order* is the promise about alert ids: ``set``, the same for every cut and every order of events within the allowed
    lateness; ``sequence``, the same for every cut of events in their partitions' order.
    """

    id: str
    order: Literal["set", "sequence"]

    def fields(self, kind: Kind) -> frozenset[str]:
        """The ECS fields wanted of events of *kind*; empty if the detector has no interest in them."""

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]: ...

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        """Close what *watermark* has passed: no event older than it less the allowed lateness will be folded."""

    def plan(self) -> Mapping[str, Any]:
        """Return what runs as JSON-able data: counts, refusals as ``file:line: reason``, fields and what they cost."""


@runtime_checkable
class Referring(Protocol):
    """A detector made of content that lies beside the configuration, such as a folder of rules."""

    unpinned: str
    """Digest of that content if the options do not name it, so that the configuration's signature does not cover it;
    else empty."""
    pack: str
    """Name of the signed pack that the options say it is; empty if they do not."""
    place: Path
    """Where the content lies."""


@runtime_checkable
class Ruled(Protocol):
    """A detector whose findings go by rules with ids of their own; those of any other go by the detector's id."""

    def rules(self) -> Sequence[Description]:
        """Return what it says of each rule that it runs."""


class DetectorFactory(Protocol):
    """What an entry point of the group ``vedette.detectors`` names."""

    def __call__(self, id: str, options: Mapping[str, Any], cache: Path | None) -> Detector:
        """Build a detector; unknown or wrong options raise ConfigError. *cache* is a folder for compiled plans."""


@dataclass(frozen=True)
class Connector:
    """What an entry point of the group ``vedette.connectors`` names: how to make its source and its sink, if any.

    Unknown or wrong options raise ConfigError. *keeps_audit*: its sink is a SIEM, where copies of the audit log belong
    unless the configuration says otherwise.
    """

    source: Callable[[str, Mapping[str, Any]], Source] | None = None
    sink: Callable[[str, Mapping[str, Any]], Sink] | None = None
    keeps_audit: bool = False
