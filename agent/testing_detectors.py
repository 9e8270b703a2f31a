"""Checks of the promises in `agent.ports.Detector`, for any detector, and what they stand on.

`batch_of` makes a Batch from plain dicts, `MemoryState` is a StateView that keeps values in their stored form (JSON),
`replay` reads a log through a detector as a stream would: in batches, partition by partition, with watermarks, crashes
and repeats. `check_detector` runs all checks that fit the detector's class; a broken promise raises AssertionError.

An event is a dict of ECS fields. Time is ``@timestamp``: microseconds or ISO 8601; without it the row has no time.
``_partition`` says where it lies (default ``events``); ``_key`` is its position there (default: counted).
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.alerting.document import ALWAYS
from agent.model import (
    NO_TIME,
    SECOND,
    Batch,
    Chunk,
    Column,
    Dictionary,
    Finding,
    Kind,
    Records,
    Scalar,
    Timestamp,
    digest,
)
from agent.ports import Detector, StateView

Event = Mapping[str, Any]
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
_FAR = 253_402_300_799 * SECOND  # the end of the year 9999


# --- fakes that speak the real ports ----------------------------------------------------------------------------------


class MemoryState:
    """A StateView in memory. Values are kept as JSON text, so what is not put back is not changed."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self.counters: Counter[str] = Counter()

    def get(self, key: str) -> Any:
        text = self.stored.get(key)
        return None if text is None else json.loads(text)

    def put(self, key: str, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        assert not any("\ud800" <= character <= "\udfff" for character in key + text), "state is not valid UTF-8"
        self.stored[key] = text

    def delete(self, key: str) -> None:
        self.stored.pop(key, None)

    def items(self) -> Iterator[tuple[str, Any]]:
        for key, text in list(self.stored.items()):
            yield key, json.loads(text)

    def count(self, name: str, number: int = 1) -> None:
        self.counters[name] += number

    def copy(self) -> MemoryState:
        return deepcopy(self)

    def size(self) -> int:
        """Bytes of all keys and values as stored."""
        return sum(len(key.encode()) + len(text.encode()) for key, text in self.stored.items())


def instant_of(value: str | int | None) -> Timestamp:
    """Return microseconds for ISO 8601 text or microseconds; NO_TIME for None."""
    if value is None:
        return NO_TIME
    if isinstance(value, int):
        return value
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, got {value!r}")
    return round(moment.timestamp()) * SECOND + moment.microsecond


def batch_of(
    events: Sequence[Event],
    *,
    source: str = "test",
    as_of: Timestamp | None = None,
    high: Mapping[str, Timestamp] | None = None,
    constants: Sequence[str] = (),
    mapping: str = "test",
    dictionaries: dict[str, Dictionary] | None = None,
) -> Batch:
    """Return the batch of *events* in reading order.

    Fields named in *constants* become constants of the rows' kinds, all others columns. *high* gives each partition's
    running maximum before the batch. With *as_of* given, rows more than five minutes after it are `future`.
    *dictionaries* may be shared by consecutive batches.
    """
    shared = {} if dictionaries is None else dictionaries
    running: dict[str, Timestamp] = dict(high or {})
    time = [instant_of(event.get("@timestamp")) for event in events]
    future = [as_of is not None and moment > as_of + 5 * MINUTE for moment in time]
    before: list[Timestamp] = []
    for event, moment, ahead in zip(events, time, future, strict=True):
        partition = event.get("_partition", "events")
        before.append(running.get(partition, NO_TIME))
        if not ahead:
            running[partition] = max(moment, before[-1])
    kinds: dict[Kind, int] = {}
    kind = [kinds.setdefault(_kind_of(event, constants, mapping), len(kinds)) for event in events]
    hidden = {"@timestamp", "_partition", "_key", *constants}
    names = dict.fromkeys(name for event in events for name in event if name not in hidden)
    return Batch(
        records=_records(events, source, as_of or 0),
        origin=np.arange(len(events), dtype=np.int32),
        kinds=tuple(kinds),
        kind=np.array(kind, dtype=np.int32),
        time=np.array(time, dtype=np.int64),
        columns={name: _column(events, name, shared.setdefault(name, Dictionary())) for name in names},
        high=np.array(before, dtype=np.int64),
        future=np.array(future, dtype=np.bool_),
    )


def _kind_of(event: Event, constants: Sequence[str], mapping: str) -> Kind:
    found: tuple[tuple[str, Scalar], ...] = tuple((name, event[name]) for name in constants if name in event)
    return Kind(mapping=mapping, constants=found)


def _records(events: Sequence[Event], source: str, as_of: Timestamp) -> Records:
    keyed = [
        (event.get("_partition", "events"), event.get("_key", number), event) for number, event in enumerate(events)
    ]
    chunks = []
    for partition, run in groupby(keyed, key=lambda item: item[0]):
        items = list(run)
        keys, raw = [key for _, key, _ in items], [event for _, _, event in items]
        chunks.append(Chunk(partition=partition, path=partition, format="json", keys=keys, raw=raw))
    return Records(source=source, chunks=tuple(chunks), cursor={}, as_of=as_of)


def _column(events: Sequence[Event], name: str, dictionary: Dictionary) -> Column:
    present = [row for row, event in enumerate(events) if event.get(name) is not None]
    codes = np.full(len(events), -1, dtype=np.int32)
    values = [tuple(value) if isinstance(value := events[row][name], list) else value for row in present]
    codes[present] = dictionary.encode(values)
    return Column(codes, dictionary)


# --- a stream in small ------------------------------------------------------------------------------------------------


@dataclass
class Replayed:
    """What a detector said about a log, and the state it was left with."""

    findings: list[Finding] = field(default_factory=list)
    state: MemoryState = field(default_factory=MemoryState)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(map(alert_id, self.findings))


def alert_id(finding: Finding, tenant: str = "") -> str:
    """Return the id that the finding's alert has by its promise, made from what was found and nothing else."""
    window = finding.window or tuple(sorted(reference.identity for reference in finding.evidence))
    entity = json.dumps(finding.entity)
    return digest(tenant, finding.detector.id, entity, json.dumps(window), finding.key)


def keyed(events: Iterable[Event]) -> list[Event]:
    """Give each event its position in its partition, so that its identity does not depend on a cut."""
    places: Counter[str] = Counter()
    result: list[Event] = []
    for event in events:
        partition = event.get("_partition", "events")
        result.append({"_key": places[partition], **event})
        places[partition] += 1
    return result


def replay(
    detector: Detector,
    events: Sequence[Event],
    *,
    cuts: Iterable[int] = (),
    crashes: Iterable[int] = (),
    until: Timestamp | None = None,
    constants: Sequence[str] = (),
    state: MemoryState | None = None,
) -> Replayed:
    """Read *events* in the given order as a stream does, a new batch at each of *cuts*; then close at *until*.

    After each batch the watermark is the least running maximum of the partitions that hold unread events; *until*
    (default: 40 days after the last event) stands for the `as_of` of an empty fetch once all are read. A batch whose
    number is in *crashes* is evaluated, its state and findings are discarded, and it is evaluated again.
    """
    usual = [moment for event in events if NO_TIME < (moment := instant_of(event.get("@timestamp"))) < _FAR - 366 * DAY]
    until = max(usual, default=0) + 40 * DAY if until is None else until
    result = Replayed(state=state or MemoryState())
    edges = sorted({0, len(events), *(cut for cut in cuts if 0 < cut < len(events))})
    high: dict[str, Timestamp] = {}
    failing = set(crashes)
    shared: dict[str, Dictionary] = {}
    for number, (start, end) in enumerate(pairwise(edges)):
        batch = batch_of(events[start:end], as_of=until, high=high, constants=constants, dictionaries=shared)
        for row, event in enumerate(events[start:end]):
            if not batch.future[row]:
                partition = event.get("_partition", "events")
                high[partition] = max(high.get(partition, NO_TIME), int(batch.time[row]))
        unread = {event.get("_partition", "events") for event in events[end:]}
        watermark = min((high.get(partition, NO_TIME) for partition in unread), default=until)
        if number in failing:
            lost = result.state.copy()
            detector.detect(batch, lost)
            detector.advance(watermark, lost)
        result.findings += detector.detect(batch, result.state)
        result.findings += detector.advance(watermark, result.state)
    if len(edges) == 1:
        result.findings += detector.advance(until, result.state)
    return result


# --- checks -----------------------------------------------------------------------------------------------------------


def check_detector(
    build: Callable[[], Detector],
    events: Sequence[Event],
    *,
    constants: Sequence[str] = (),
    shuffle: Callable[[list[Event], random.Random], list[Event]] | None = None,
    seed: int = 0,
) -> None:
    """Run every check on *events*, a log in its partitions' order in which *build*'s detector finds something.

    *shuffle* reorders events within the detector's allowed lateness; it is used for detectors of class ``set``.
    """
    events = keyed(events)
    check_finds_and_explains(build(), events, constants=constants)
    check_inputs_untouched(build(), events, constants=constants)
    check_cuts(build, events, constants=constants, seed=seed)
    check_stored_state(build, events, constants=constants)
    check_interest(build(), events, constants=constants)
    check_odd_columns(build, events, constants=constants)
    if shuffle is not None and build().order == "set":
        check_order(build, events, shuffle, constants=constants, seed=seed)


def check_finds_and_explains(detector: Detector, events: Sequence[Event], *, constants: Sequence[str] = ()) -> None:
    """Each finding cites events that were read, names its detector, has a score in 0..1 and says why."""
    findings = replay(detector, events, constants=constants).findings
    known = {(event.get("_partition", "events"), event["_key"]) for event in events}
    assert findings, "no finding: give a log in which the detector finds something"
    for finding in findings:
        assert finding.detector.id == detector.id
        assert finding.evidence, "a finding cites its events"
        assert {(reference.partition, reference.key) for reference in finding.evidence} <= known
        assert finding.explanation.sentence.strip(), "a finding says why"
        assert finding.score is None or 0 <= finding.score <= 1
        assert finding.explanation.maturity is None or 0 <= finding.explanation.maturity <= 1
        assert finding.window in (None, ALWAYS) or finding.window[0] < finding.window[1]


def check_inputs_untouched(detector: Detector, events: Sequence[Event], *, constants: Sequence[str] = ()) -> None:
    """The batch is as it was, and nothing of it is kept but in the state."""
    batch = batch_of(events, constants=constants)
    arrays: list[NDArray[Any]] = [
        batch.time,
        batch.kind,
        batch.high,
        batch.future,
        *(column.codes for column in batch.columns.values()),
    ]
    copies = [array.copy() for array in arrays]
    values = {name: list(column.dictionary.values) for name, column in batch.columns.items()}
    for array in arrays:
        array.setflags(write=False)
    detector.detect(batch, MemoryState())
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, copies, strict=True))
    assert values == {name: column.dictionary.values for name, column in batch.columns.items()}
    again, afresh = replay(detector, events, constants=constants), replay(detector, events, constants=constants)
    assert again.ids == afresh.ids, "a second run of the same object on fresh state gives the same"


def check_cuts(
    build: Callable[[], Detector], events: Sequence[Event], *, constants: Sequence[str] = (), seed: int = 0
) -> None:
    """detect(a + b) says what detect(a) and then detect(b) say, for cuts anywhere and with batches repeated."""
    whole = replay(build(), events, constants=constants).ids
    chance = random.Random(seed)  # noqa: S311 (a test's choice, not a secret)
    step = max(1, len(events) // 12)
    cuttings = [range(step, len(events), step), sorted(chance.sample(range(len(events)), min(5, len(events))))]
    for cuts in [*cuttings, range(1, len(events)) if len(events) <= 400 else []]:
        assert replay(build(), events, cuts=cuts, constants=constants).ids == whole, f"cut at {list(cuts)}"
        crashed = replay(build(), events, cuts=cuts, crashes=range(0, len(events), 2), constants=constants)
        assert crashed.ids == whole, f"batches repeated after a crash, cut at {list(cuts)}"


def check_order(
    build: Callable[[], Detector],
    events: Sequence[Event],
    shuffle: Callable[[list[Event], random.Random], list[Event]],
    *,
    constants: Sequence[str] = (),
    seed: int = 0,
    rounds: int = 10,
) -> None:
    """Any order within the allowed lateness gives the same ids."""
    chance = random.Random(seed)  # noqa: S311
    whole = replay(build(), events, constants=constants).ids
    for _ in range(rounds):
        shuffled = shuffle(list(events), chance)
        cuts = chance.sample(range(len(events)), min(4, len(events)))
        assert replay(build(), shuffled, cuts=cuts, constants=constants).ids == whole, "another order, other ids"


class _LiveState(MemoryState):
    """Hands out the very objects that were put, as a store in memory may, and remembers how they looked."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, Any] = {}
        self.handed: list[tuple[Any, str]] = []

    def get(self, key: str) -> Any:
        return self._hand(self.live.get(key))

    def put(self, key: str, value: Any) -> None:
        super().put(key, value)
        self.live[key] = value

    def delete(self, key: str) -> None:
        super().delete(key)
        self.live.pop(key, None)

    def items(self) -> Iterator[tuple[str, Any]]:
        for key, value in list(self.live.items()):
            yield key, self._hand(value)

    def _hand(self, value: Any) -> Any:
        self.handed.append((value, json.dumps(value)))
        return value


def check_stored_state(
    build: Callable[[], Detector], events: Sequence[Event], *, constants: Sequence[str] = ()
) -> None:
    """State that went through JSON leads to the same answers as live objects, which are never changed in place."""
    cuts = range(0, len(events), max(1, len(events) // 8))
    live = _LiveState()
    here = replay(build(), events, cuts=cuts, state=live, constants=constants)
    there = replay(build(), events, cuts=cuts, constants=constants)
    assert here.ids == there.ids
    assert all(json.dumps(value) == text for value, text in live.handed), "a value of the state was changed in place"


def check_interest(detector: Detector, events: Sequence[Event], *, constants: Sequence[str] = ()) -> None:
    """Fields that were not asked for change nothing; kinds without interest are never found."""
    whole = replay(detector, events, constants=constants).ids
    asked = [
        {name: value for name, value in event.items() if name[0] in "@_" or name in {*constants, *wanted}}
        for event in events
        for wanted in [detector.fields(_kind_of(event, constants, "test"))]
    ]
    assert replay(detector, asked, constants=constants).ids == whole, "the detector reads a field it does not ask for"


def check_odd_columns(build: Callable[[], Detector], events: Sequence[Event], *, constants: Sequence[str] = ()) -> None:
    """NaN, null, missing and extra columns, hostile values and impossible times are borne, and add no finding."""
    whole = replay(build(), events, constants=constants)
    wanted = sorted({name for event in events for name in build().fields(_kind_of(event, constants, "test"))})
    first = min(instant_of(event.get("@timestamp")) for event in events)
    odd: list[Event] = [{"@timestamp": first, **dict.fromkeys(wanted)}, {"@timestamp": first}, {}]
    odd += [{"@timestamp": moment, **dict.fromkeys(wanted, "odd")} for moment in (_FAR, NO_TIME + 1)]
    mixed = [{"x.extra": math.nan, **event, "_partition": "odd", "_key": key} for key, event in enumerate(odd)]
    assert replay(build(), [*events, *mixed], constants=constants).ids >= whole.ids
    for value in ("\ud800", "\x00", "x" * 100_000, "[", '","', "", math.nan, 10**30, ["a", "a", ""], ()):
        for name in wanted:
            rows = [{**events[0], name: value, "@timestamp": first + place, "_key": place} for place in range(20)]
            state = replay(build(), rows, constants=constants).state
            assert state.size() < 20_000, f"{name}: a hostile value makes large state"
    assert replay(build(), []).findings == []
    assert [finding for row in odd[:3] for finding in build().detect(batch_of([row]), MemoryState())] == []


def check_state_bound(
    detector: Detector, events: Iterable[Sequence[Event]], *, most: int, constants: Sequence[str] = ()
) -> MemoryState:
    """However many entities come, the state never holds more than *most* keys after a batch; the rest is counted."""
    state: MemoryState = MemoryState()
    view: StateView = state
    for batch in events:
        detector.detect(batch_of(batch, constants=constants), view)
        assert len(state.stored) <= most, f"{len(state.stored)} keys held, at most {most} promised"
    assert sum(state.counters.values()), "what was not kept is counted"
    return state
