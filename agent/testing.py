"""Conformance checks for sources and sinks, and fakes that speak the real ports. Shipped for third parties.

A connector proves itself by a small harness that says how to make upstream data, how to open an instance and how to
break it. Each check is a function whose name is the promise; `run` runs one against a fresh harness::

    class MySource(SourceHarness):
        def grow(self, number, time): ...      # put *number* records upstream
        def source(self): ...                  # a fresh, unopened instance

    @pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
    def test_my_source(check):
        run(check, MySource)

A promise that cannot be kept is listed by name with its reason in `exceptions`; it must then really fail.
"""

from __future__ import annotations

import io
import json
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

from agent.errors import ConfigError, RetryableError, VedetteError
from agent.model import (
    DELIVERED,
    DOCUMENT,
    SECOND,
    Chunk,
    Cursor,
    Document,
    Identity,
    Outcome,
    Records,
    Reference,
    Timestamp,
)
from agent.ports import Lag, Measured, Sink, Source
from agent.zones import parted

Raw: TypeAlias = bytes | Mapping[str, Any]

NOON = 1_700_000_000 * SECOND


# --- fakes ------------------------------------------------------------------------------------------------------------


class MemorySource:
    """A source whose upstream is lists in memory, one a partition.

    `failures` are raised by the next fetches, one each. What a fetch may read at once is bounded by *page*.
    """

    def __init__(self, id: str = "memory", format: str = "json", clock: Callable[[], Timestamp] | None = None) -> None:
        self.id = id
        self.format = format
        self.upstream: dict[str, list[Raw]] = {}
        self.failures: deque[Exception] = deque()
        self.acknowledged: list[Cursor] = []
        self.fields: frozenset[str] | None = None
        self._clock = clock or (lambda: time.time_ns() // 1000)
        self._lag = Lag()

    def append(self, *records: Raw, partition: str = "main") -> None:
        self.upstream.setdefault(partition, []).extend(records)

    def open(self, fields: frozenset[str]) -> None:
        self.fields = fields

    def notes(self) -> Mapping[str, str]:
        return {}

    def fetch(self, after: Cursor | None, limit: int) -> Records:
        if self.failures:
            raise self.failures.popleft()
        position = dict(after or {})
        chunks = []
        for partition, records in sorted(self.upstream.items()):
            start = position.get(partition, 0)
            raw = records[start : start + limit]
            if raw:
                keys = range(start, start + len(raw))
                chunks.append(Chunk(partition, f"memory:{partition}", self.format, keys, raw))
                position[partition] = start + len(raw)
                limit -= len(raw)
        unread = {name: left for name, held in self.upstream.items() if (left := len(held) - position.get(name, 0)) > 0}
        self._lag = Lag(sum(unread.values()))
        return Records(self.id, tuple(chunks), position, self._clock(), frozenset(unread))

    def lag(self) -> Lag:
        return self._lag

    def full(self, references: Sequence[Reference]) -> Mapping[Reference, Raw]:
        return {
            reference: self.upstream[reference.partition][reference.key]
            for reference in references
            if isinstance(reference.key, int) and reference.key < len(self.upstream.get(reference.partition, ()))
        }

    def ack(self, cursor: Cursor) -> None:
        self.acknowledged.append(cursor)

    def close(self) -> None:
        self._lag = Lag()


Answer: TypeAlias = Outcome | Callable[[Document], Outcome]


class MemorySink:
    """A sink whose target is a dictionary. `answers` are given to the next documents offered, one each, then all is
    delivered; an answer that is not "delivered" stores nothing.
    """

    def __init__(self, id: str = "memory") -> None:
        self.id = id
        self.documents: dict[str, bytes] = {}
        self.offered: list[Document] = []
        self.answers: deque[Answer] = deque()
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def write(self, documents: Sequence[Document]) -> Sequence[Outcome]:
        return [self._write(document) for document in documents]

    def _write(self, document: Document) -> Outcome:
        self.offered.append(document)
        answer = self.answers.popleft() if self.answers else _judge
        outcome = answer(document) if callable(answer) else answer
        if outcome.state == "delivered":
            self.documents.setdefault(document.id, document.body)
        return outcome

    def close(self) -> None:
        self.is_open = False


def _judge(document: Document) -> Outcome:
    """What any sink says of a body that is not one JSON object."""
    try:
        body = json.loads(document.body)
    except ValueError as error:
        return Outcome("rejected", f"not JSON: {error}")
    return DELIVERED if isinstance(body, dict) else Outcome("rejected", "not a JSON object")


# --- harnesses --------------------------------------------------------------------------------------------------------


class Harness:
    """What both kinds of harness say. *exceptions*: name of a check -> why its promise cannot be kept.

    *secrets* are texts that no log line, output or error may hold.
    """

    exceptions: ClassVar[Mapping[str, str]] = {}
    secrets: Sequence[str] = ()

    def close(self) -> None:
        """Give back what the harness holds."""


class SourceHarness(Harness):
    """One upstream of a source."""

    def grow(self, number: int, time: Timestamp) -> Sequence[Raw]:
        """Put *number* new, distinct records of that event time upstream, where the next fetch finds them; return them
        as the source must give them."""
        raise NotImplementedError

    def source(self) -> Source:
        """Return a fresh, unopened instance that reads this upstream from its start."""
        raise NotImplementedError

    def same(self, raw: Raw) -> Any:
        """Return what two equal records have in common, as something hashable."""
        return raw if isinstance(raw, bytes) else json.dumps(raw, sort_keys=True, default=str)

    def misconfigured(self) -> Iterable[Callable[[], Source]]:
        """Makers of sources with wrong options, addresses or credentials: making or opening each is a ConfigError."""
        return ()

    def troubled(self) -> Iterable[AbstractContextManager[Source]]:
        """Sources whose upstream is in transient trouble: opening or fetching each is a RetryableError."""
        return ()


class SinkHarness(Harness):
    """One target of a sink."""

    too_large: int | None = None
    """A document of so many bytes must be rejected; None if there is no bound."""

    def sink(self) -> Sink:
        """Return a fresh, unopened instance that writes to this target."""
        raise NotImplementedError

    def stored(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Return id and body of each document in the target, in any order, repeats included."""
        raise NotImplementedError

    def misconfigured(self) -> Iterable[Callable[[], Sink]]:
        """Makers of sinks with wrong options, addresses or credentials: making or opening each is a ConfigError."""
        return ()

    def trouble(self) -> AbstractContextManager[object]:
        """While this lasts the target refuses everything, and would take it later. None: it cannot be arranged."""
        raise NotImplementedError


H = TypeVar("H", bound=Harness)


def run(check: Callable[[H], None], make: Callable[[], H]) -> None:
    """Run one check against a fresh harness. AssertionError if the promise is broken, or kept against expectation."""
    harness = make()
    reason = harness.exceptions.get(check.__name__)
    try:
        check(harness)
    except (AssertionError, NotImplementedError):
        if reason is None:
            raise
        return
    finally:
        harness.close()
    assert reason is None, f"{check.__name__} passed, but is listed as an exception: {reason}"


# --- source checks ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(source: Source) -> Iterator[Source]:
    source.open(frozenset({"message", "event.original"}))
    try:
        yield source
    finally:
        source.close()


def stored_cursor(cursor: Cursor | None) -> Any:
    """Return the cursor as it comes out of a store."""
    return json.loads(json.dumps(cursor))


def identities(records: Records) -> list[Identity]:
    return [records.reference(index).identity for index in range(len(records))]


def payloads(records: Records) -> list[Raw]:
    return [raw for chunk in records.chunks for raw in chunk.raw]


def documents(records: Records) -> list[Any]:
    """Return the payloads of records that are JSON, decoded."""
    return [json.loads(raw) if isinstance(raw, bytes) else raw for raw in payloads(records)]


def fetch(source: Source, after: Cursor | None, limit: int) -> Records:
    """Fetch what there is; a source that gives nothing but names unread partitions spares its upstream: ask again."""
    records = source.fetch(after, limit)
    patience = 200
    while not len(records) and records.unread and patience:
        time.sleep(0.02)
        records = source.fetch(records.cursor, limit)
        patience -= 1
    return records


def drain(source: Source, after: Cursor | None = None, limit: int = 1000) -> tuple[dict[Identity, Raw], Cursor | None]:
    """Read until nothing is new; return the records by identity, and the cursor. AssertionError on a repeat."""
    found: dict[Identity, Raw] = {}
    while len(records := fetch(source, after, limit)):
        for identity, raw in zip(identities(records), payloads(records), strict=True):
            assert identity not in found, f"{identity} was given twice"
            found[identity] = raw
        after = stored_cursor(records.cursor)
    return found, stored_cursor(records.cursor)


def _is_all(harness: SourceHarness, found: Iterable[Raw], expected: Iterable[Raw]) -> None:
    have, want = Counter(map(harness.same, found)), Counter(map(harness.same, expected))
    assert not want - have, f"{(want - have).total()} records are missing, e.g. {next(iter(want - have))!r}"
    assert not have - want, f"{(have - want).total()} records too many, e.g. {next(iter(have - want))!r}"


def gives_every_record_once(harness: SourceHarness) -> None:
    expected = harness.grow(50, NOON)
    with opened(harness.source()) as source:
        _is_all(harness, drain(source)[0].values(), expected)


def survives_any_consumer(harness: SourceHarness) -> None:
    """Accepted records are those generated, under consumers that accept, delay, refuse or die at random."""
    expected: list[Raw] = []
    consumer = _Consumer(harness, random.Random(7))  # noqa: S311 - a test is repeated, not guessed
    for _ in range(60):
        if consumer.random.random() < 0.3:
            expected += harness.grow(consumer.random.randint(1, 9), NOON)
        consumer.step()
    _is_all(harness, consumer.finish().values(), expected)


class _Consumer:
    """Keeps records and cursor in one step, as a store would, and lets nothing else survive its death."""

    def __init__(self, harness: SourceHarness, seeded: random.Random) -> None:
        self.random = seeded
        self._harness = harness
        self._kept: dict[Identity, Raw] = {}
        self._cursor: Cursor | None = None
        self._source: Source | None = None

    def step(self) -> None:
        """Fetch, and then: accept, refuse (fetch the same again), read one batch ahead, or die before the commit."""
        source = self._running()
        fate = self.random.choice(("accept", "accept", "accept", "refuse", "ahead", "die"))
        first = fetch(source, self._cursor, self.random.choice((1, 2, 3, 7, 100)))
        second = fetch(source, first.cursor, self.random.choice((1, 5))) if fate == "ahead" else None
        if fate in ("accept", "ahead"):
            self._commit(source, first)
        if second is not None and self.random.random() < 0.5:
            self._commit(source, second)
        if fate == "die":
            source.close()
            self._source = None
            self._cursor = stored_cursor(self._cursor)

    def finish(self) -> dict[Identity, Raw]:
        """Start once more and read all there is."""
        self._running().close()
        self._source = None
        source = self._running()
        while len(records := fetch(source, self._cursor, 10)):
            self._commit(source, records)
        source.close()
        return self._kept

    def _running(self) -> Source:
        if self._source is None:
            self._source = self._harness.source()
            self._source.open(frozenset())
        return self._source

    def _commit(self, source: Source, records: Records) -> None:
        for identity, raw in zip(identities(records), payloads(records), strict=True):
            assert identity not in self._kept, f"{raw!r} was given again after it had been accepted"
            self._kept[identity] = raw
        self._cursor = records.cursor
        source.ack(records.cursor)


def same_position_gives_the_same_records(harness: SourceHarness) -> None:
    harness.grow(20, NOON)
    with opened(harness.source()) as source:
        first = fetch(source, None, 7)
        second = fetch(source, first.cursor, 7)
        for after, before in ((None, first), (first.cursor, second)):
            again = fetch(source, after, 7)
            assert identities(again) == identities(before), "other records after the same cursor"
            assert payloads(again) == payloads(before), "other content after the same cursor"
            assert stored_cursor(again.cursor) == stored_cursor(before.cursor)


def a_grown_upstream_gives_a_superset(harness: SourceHarness) -> None:
    harness.grow(6, NOON)
    with opened(harness.source()) as source:
        start = stored_cursor(fetch(source, None, 1).cursor)
        before = identities(fetch(source, start, 100))
    harness.grow(5, NOON)
    with opened(harness.source()) as source:
        after = identities(fetch(source, start, 100))
    assert set(before) <= set(after), "a record has vanished or has another identity now"
    assert len(set(after)) == len(after) == 10


def limit_is_kept(harness: SourceHarness) -> None:
    harness.grow(11, NOON)
    for limit in (1, 2, 3, 10, 11, 12):
        with opened(harness.source()) as source:
            sizes, after = [], None
            while len(records := fetch(source, after, limit)):
                sizes.append(len(records))
                after = records.cursor
        assert max(sizes) <= limit
        assert sum(sizes) == 11


def pages_lose_nothing_at_their_edges(harness: SourceHarness) -> None:
    """Equal event times across a page edge, older ones after newer ones: all are given, whatever the page."""
    expected = [*harness.grow(9, NOON), *harness.grow(5, NOON - 3600 * SECOND), *harness.grow(4, NOON)]
    found = []
    for limit in (1, 2, 4, 1000):
        with opened(harness.source()) as source:
            given = drain(source, limit=limit)[0]
        _is_all(harness, given.values(), expected)
        found.append({identity: harness.same(raw) for identity, raw in given.items()})
        assert found[-1] == found[0], f"other identities with pages of {limit}"


def late_records_are_given(harness: SourceHarness) -> None:
    """What appears upstream after a newer record was read is read too."""
    harness.grow(3, NOON)
    with opened(harness.source()) as source:
        _, after = drain(source)
        late = harness.grow(3, NOON - 86_400 * SECOND)
        _is_all(harness, drain(source, after)[0].values(), late)


def cursor_survives_json_and_restart(harness: SourceHarness) -> None:
    expected = harness.grow(12, NOON)
    found: dict[Identity, Raw] = {}
    after: Cursor | None = None
    for _ in range(12):
        with opened(harness.source()) as source:
            records = fetch(source, after, 1)
        found.update(zip(identities(records), payloads(records), strict=True))
        after = stored_cursor(records.cursor)
    _is_all(harness, found.values(), expected)


def an_empty_fetch_says_when(harness: SourceHarness) -> None:
    """Nothing new is an empty answer at once, with the time and a cursor that goes on."""
    harness.grow(2, NOON)
    with opened(harness.source()) as source:
        _, after = drain(source)
        started = time.monotonic()
        records = fetch(source, after, 10)
        assert time.monotonic() - started < 5, "the fetch has waited"
        assert len(records) == 0
        assert records.as_of > 0
        assert records.unread == frozenset()
        expected = harness.grow(2, NOON)
        _is_all(harness, drain(source, stored_cursor(records.cursor))[0].values(), expected)


def unread_partitions_are_named(harness: SourceHarness) -> None:
    harness.grow(10, NOON)
    with opened(harness.source()) as source:
        assert fetch(source, None, 3).unread, "seven records wait, and no partition is said to hold any"


def lag_says_what_the_last_fetch_left(harness: SourceHarness) -> None:
    """A source that says how far it is behind: unknown before a fetch, something while it holds more, then nothing."""
    harness.grow(20, NOON)
    with opened(harness.source()) as source:
        if not isinstance(source, Measured):
            return
        assert source.lag() == Lag(), "nothing was fetched, and a lag is known"
        records = fetch(source, None, 5)
        behind = source.lag()
        assert behind.events is None or behind.events > 0, "fifteen records wait, and nothing is said to lag"
        assert behind.oldest is None or behind.oldest <= records.as_of
        assert source.lag() is behind, "the lag has changed without a fetch"
        drain(source, records.cursor)
        assert source.lag() == Lag(0), "all was read, and something is said to lag"
    assert source.lag() == Lag(), "a closed source knows no lag"


def records_are_well_formed(harness: SourceHarness) -> None:
    harness.grow(10, NOON)
    with opened(harness.source()) as source:
        records = fetch(source, None, 100)
    assert records.source == source.id
    assert len(set(identities(records))) == len(records)
    for chunk in records.chunks:
        assert len(chunk.keys) == len(chunk.raw) > 0
        assert parted(chunk.format)[0] in {
            "json",
            "evtx",
            "syslog",
            "access",
            "apache",
            "nginx",
            "cloudtrail",
            "zeek",
            "w3c",
            "text",
            DOCUMENT,
        }
        assert all(0 <= place < len(chunk.raw) for place in chunk.faults)
        assert all(isinstance(raw, bytes | Mapping) for raw in chunk.raw)


def whole_records_can_be_read_again(harness: SourceHarness) -> None:
    harness.grow(10, NOON)
    with opened(harness.source()) as source:
        records = fetch(source, None, 100)
        references = [records.reference(index) for index in range(len(records))]
        whole = source.full(references[::-2])
        for index, reference in enumerate(references):
            expected = harness.same(payloads(records)[index]) if reference in references[::-2] else None
            assert (harness.same(whole[reference]) if reference in whole else None) == expected
        unknown = Reference(source.id, "0" * 32, 10**9, references[0].path)
        assert source.full([unknown]) == {}, "a record that is not there must be missing"


def close_is_always_safe(harness: SourceHarness) -> None:
    expected = harness.grow(3, NOON)
    source = harness.source()
    source.close()
    source.open(frozenset())
    fetch(source, None, 1)
    source.close()
    source.close()
    source.open(frozenset())
    _is_all(harness, drain(source)[0].values(), expected)
    source.close()


def wrong_configuration_is_refused(harness: SourceHarness | SinkHarness) -> None:
    for make in harness.misconfigured():
        try:
            made: Source | Sink = make()
            _open(made)
        except ConfigError:
            continue
        made.close()
        raise AssertionError("no ConfigError")


def _open(made: Source | Sink) -> None:
    if isinstance(made, Source):
        made.open(frozenset())
    else:
        made.open()


def transient_trouble_is_retryable(harness: SourceHarness) -> None:
    for trouble in harness.troubled():
        with trouble as source:
            try:
                source.open(frozenset())
                fetch(source, None, 10)
            except RetryableError:
                continue
            finally:
                source.close()
            raise AssertionError("no RetryableError")


@contextmanager
def _overheard() -> Iterator[io.StringIO]:
    """Collect all that is logged and printed."""
    heard = io.StringIO()
    handler, root = logging.StreamHandler(heard), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with redirect_stdout(heard), redirect_stderr(heard):
            yield heard
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def secrets_stay_secret(harness: SourceHarness | SinkHarness) -> None:
    """No log line, output, error text or repr holds a secret, whatever happens."""
    with _overheard() as heard:
        for use in _uses(harness):
            try:
                use()
            except VedetteError as error:
                heard.write(f"{error} {error!r}\n")
    for secret in harness.secrets:
        assert secret not in heard.getvalue(), "a secret was logged"


def _uses(harness: SourceHarness | SinkHarness) -> Iterator[Callable[[], object]]:
    if isinstance(harness, SourceHarness):
        harness.grow(2, NOON)
        source = harness.source()
        yield lambda: print(repr(source))
        yield lambda: source.open(frozenset())
        yield lambda: fetch(source, None, 10)
        yield source.close
    else:
        sink = harness.sink()
        yield lambda: print(repr(sink))
        yield sink.open
        yield lambda: print(sink.write([_document(1)]))
        yield sink.close
    for make in harness.misconfigured():
        yield partial(lambda maker: _open(maker()), make)


SOURCE_CHECKS: tuple[Callable[[SourceHarness], None], ...] = (
    gives_every_record_once,
    survives_any_consumer,
    same_position_gives_the_same_records,
    a_grown_upstream_gives_a_superset,
    limit_is_kept,
    pages_lose_nothing_at_their_edges,
    late_records_are_given,
    cursor_survives_json_and_restart,
    an_empty_fetch_says_when,
    unread_partitions_are_named,
    lag_says_what_the_last_fetch_left,
    records_are_well_formed,
    whole_records_can_be_read_again,
    close_is_always_safe,
    wrong_configuration_is_refused,
    transient_trouble_is_retryable,
    secrets_stay_secret,
)


# --- sink checks ------------------------------------------------------------------------------------------------------


def _document(number: int, /, repeat: bool = False, **fields: Any) -> Document:
    body = {"@timestamp": "2026-01-01T00:00:00Z", "event": {"id": str(number), "kind": "alert"}, **fields}
    return Document(f"{number:032x}", json.dumps(body).encode(), repeat)


def _offer(sink: Sink, documents: Sequence[Document]) -> list[Outcome]:
    outcomes = list(sink.write(documents))
    assert len(outcomes) == len(documents), "not one outcome for each document"
    for outcome in outcomes:
        assert outcome.state in ("delivered", "retryable", "rejected")
        assert outcome.state == "delivered" or outcome.reason, "an outcome without a reason"
    return outcomes


@contextmanager
def _open_sink(harness: SinkHarness) -> Iterator[Sink]:
    sink = harness.sink()
    sink.open()
    try:
        yield sink
    finally:
        sink.close()


def _ids(harness: SinkHarness) -> list[str]:
    return sorted(id for id, _ in harness.stored())


def every_document_is_answered_and_stored(harness: SinkHarness) -> None:
    documents = [_document(number, text=f"line {number}\nwith \u00fc") for number in range(300)]
    with _open_sink(harness) as sink:
        assert _offer(sink, []) == []
        assert {outcome.state for outcome in _offer(sink, documents)} == {"delivered"}
    stored = dict(harness.stored())
    assert len(harness.stored()) == len(documents)
    for document in documents:
        assert stored[document.id] == json.loads(document.body)


def a_repeated_id_leaves_one_document(harness: SinkHarness) -> None:
    with _open_sink(harness) as sink:
        _offer(sink, [_document(1), _document(2), _document(1)])
        assert _offer(sink, [_document(1, repeat=True), _document(3)]) == [DELIVERED, DELIVERED]
    with _open_sink(harness) as sink:
        assert _offer(sink, [_document(4), _document(2, repeat=True), _document(5, repeat=True)]) == [DELIVERED] * 3
    assert _ids(harness) == [_document(number).id for number in (1, 2, 3, 4, 5)]


def an_unusable_document_is_rejected_alone(harness: SinkHarness) -> None:
    bad = [Document(f"{number:032x}", body) for number, body in enumerate((b"", b"{", b"[1]", b"\xff{}", b"nul"), 100)]
    mixed = [document for pair in zip(bad, map(_document, range(5)), strict=True) for document in pair]
    with _open_sink(harness) as sink:
        outcomes = _offer(sink, mixed)
    assert [outcome.state for outcome in outcomes] == ["rejected", "delivered"] * 5
    assert _ids(harness) == [_document(number).id for number in range(5)]


def an_oversize_document_is_rejected_alone(harness: SinkHarness) -> None:
    if harness.too_large is None:
        return
    with _open_sink(harness) as sink:
        outcomes = _offer(sink, [_document(1), _document(2, text="x" * harness.too_large), _document(3)])
    assert [outcome.state for outcome in outcomes] == ["delivered", "rejected", "delivered"]
    assert _ids(harness) == [_document(1).id, _document(3).id]


HOSTILE: tuple[dict[str, Any], ...] = (
    {"_id": "forged", "_index": "other", "_source": {}},
    {"": 1, ".": 2, "..": 3, "a.": {"b": 4}, ".a": 5},
    {"a.b": 1, "a": {"b": 2}},
    {"__proto__": {"polluted": True}, "constructor": 1},
    {"\u0000\u001b[31m": "\u0000\r\n", "\u202e": "\u2028\u2029"},
    {"k" * 40_000: "v" * 40_000},
    {"number": 10**18, "float": 1e308, "null": None, "list": [[], {}, [[]]]},
    {f"field{number}": number for number in range(2000)},
)


def hostile_fields_do_no_harm(harness: SinkHarness) -> None:
    """Field names meant to break something: delivered or rejected, and their neighbours are stored."""
    hostile = [_document(number, **fields) for number, fields in enumerate(HOSTILE, 100)]
    with _open_sink(harness) as sink:
        outcomes = _offer(sink, [_document(1), *hostile, _document(2)])
        surrogate = Document("f" * 32, b'{"a":"\\ud800"}')
        outcomes += _offer(sink, [surrogate])
    assert "retryable" not in {outcome.state for outcome in outcomes}
    delivered = [document.id for document, outcome in zip(hostile, outcomes[1:], strict=False) if outcome == DELIVERED]
    assert set(_ids(harness)) - {surrogate.id} == {_document(1).id, _document(2).id, *delivered}


def trouble_is_retryable_and_leaves_nothing_half(harness: SinkHarness) -> None:
    with _open_sink(harness) as sink:
        _offer(sink, [_document(1)])
        with harness.trouble():
            assert {outcome.state for outcome in _offer(sink, [_document(2), _document(3)])} == {"retryable"}
        again = [_document(2, repeat=True), _document(3, repeat=True), _document(4)]
        assert _offer(sink, again) == [DELIVERED] * 3
    assert _ids(harness) == [_document(number).id for number in (1, 2, 3, 4)]


def a_sink_is_closed_and_opened_safely(harness: SinkHarness) -> None:
    sink = harness.sink()
    sink.close()
    for number in (1, 2):
        sink.open()
        assert _offer(sink, [_document(number)]) == [DELIVERED]
        sink.close()
        sink.close()
    assert _ids(harness) == [_document(1).id, _document(2).id]


SINK_CHECKS: tuple[Callable[[SinkHarness], None], ...] = (
    every_document_is_answered_and_stored,
    a_repeated_id_leaves_one_document,
    an_unusable_document_is_rejected_alone,
    an_oversize_document_is_rejected_alone,
    hostile_fields_do_no_harm,
    trouble_is_retryable_and_leaves_nothing_half,
    a_sink_is_closed_and_opened_safely,
    wrong_configuration_is_refused,
    secrets_stay_secret,
)
