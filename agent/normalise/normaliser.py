"""The normaliser: native records in, one batch of ECS columns out.

Work goes by block and by column, never by event and field. The records of a small block, which the processor's cache
holds, are decoded, sorted into shapes and kinds, and stripped to the native values that are wanted of their kind; those
become columns for the whole batch at once.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import RecordError
from agent.model import (
    DOCUMENT,
    NO_TIME,
    SECOND,
    UNPARSED,
    Batch,
    Chunk,
    Column,
    DeadLetter,
    Dictionary,
    Kind,
    Originals,
    Records,
    Timestamp,
    Value,
)
from agent.normalise import clock
from agent.normalise.catalogue import Converter
from agent.normalise.columns import ABSENT, Columns, Frame, Pool, encode
from agent.normalise.decode import Decoded, Raw, bytes_of, decode_each, decode_json, text_of
from agent.normalise.document import Plan
from agent.normalise.kinds import (
    LONGEST_CONSTANT,
    ORIGINAL,
    TEXT,
    Group,
    Route,
    Routes,
    Wanted,
    native_paths,
    own_paths,
)
from agent.normalise.lens import Lens, lens_of
from agent.normalise.lines import line_reader, patterns_of
from agent.normalise.mapping import MappingFile, installed
from agent.zones import parted, zone_of

FUTURE = 5 * 60 * SECOND
"""A row further ahead of its ingest time than this moves no watermark."""

_BLOCK = 256
_MOST_WAITING = 512
"""Records that wait to be read with others of their group: few at once cost more each, many are in no cache by then."""
_MOST_PLANS = 256
"""Kinds whose documents are planned: events that become documents are few."""
_KEPT_ORIGINAL = own_paths(ORIGINAL)
_FORMATS = {
    "json": "json",
    DOCUMENT: "json",
    "evtx": "json",
    "cloudtrail": "json",
    "zeek": "json",
    "syslog": "syslog",
    "text": "syslog",
    "w3c": "syslog",
    "access": "access",
    "apache": "access",
    "nginx": "access",
}
"""Format of a chunk -> format of the mappings that read it."""


@dataclass(frozen=True)
class Normalised:
    """What became of one fetch: every record is a row of *batch*, and those in *dead* are quarantined as well.

    *marks* are the greatest event times by partition after this fetch. *counts* are numbers for the books:
    ``wrong_type:FIELD`` values left out, ``untimed`` and ``future`` rows, ``quarantined`` records, ``unmapped`` rows of
    products that no mapping knows, and ``kinds_capped`` rows whose kind lost its constants to the cap.
    """

    batch: Batch
    dead: tuple[DeadLetter, ...]
    marks: Mapping[str, Timestamp]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Whole:
    """A whole record as an ECS document, the mapping that read it, and whether it says when it happened."""

    mapping: MappingFile
    document: dict[str, Any]
    timed: bool


class Normaliser:
    """Makes batches of native records; keeps dictionaries and kinds from call to call.

    *wanted* says which ECS fields are wanted of a kind; it is asked once for each new kind. *mappings* are the
    installed ones unless others are given. No record makes it raise.
    """

    def __init__(self, wanted: Wanted, mappings: Sequence[MappingFile] = ()) -> None:
        self._pool = Pool()
        self._wanted = wanted
        self._mappings = mappings or installed()
        self._patterns = patterns_of(self._mappings)
        self._routes = Routes(self._mappings, wanted, self._patterns)
        self._lenses: dict[Route, Lens] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._unparsed = Kind(UNPARSED)
        self._unparsed_original = ORIGINAL in wanted(self._unparsed)

    def __call__(self, records: Records, marks: Mapping[str, Timestamp]) -> Normalised:
        """Return *records* as a batch. *marks*: by partition, the greatest event time before this fetch."""
        if records.chunks:
            self._pool.renew()
        work = _Work(records, self._pool)
        row = 0
        for chunk in records.chunks:
            for begin in range(0, len(chunk.raw), _BLOCK):
                self._block(work, chunk, begin, row + begin)
            row += len(chunk.raw)
        return work.finish(marks)

    def projection(self, also: frozenset[str]) -> frozenset[str]:
        """Return every native field, dotted, that is read of a SIEM's documents, and of the ECS fields *also*.

        All rules are bound to all kinds for that: their millions of small objects hold no cycles, and to look for some
        again and again would take three times as long.
        """
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return native_paths(self._mappings, _FORMATS[DOCUMENT], lambda kind: self._wanted(kind) | also)
        finally:
            if was_enabled:
                gc.enable()

    def document(self, format: str, raw: Raw, *, as_of: Timestamp) -> dict[str, Any]:
        """Return one whole record as a nested ECS document, ``event.original`` left out.

        It holds every mapped field and, under the vendor's prefix, what no mapping knows. Raises RecordError if the
        record cannot be read.
        """
        return self.whole(format, raw, as_of=as_of).document

    def whole(self, format: str, raw: Raw, *, as_of: Timestamp) -> Whole:
        """Return what `document` does, and how it came about."""
        record = self._decode(format, [raw], as_of)[0]
        if isinstance(record, RecordError):
            raise record
        route, record = self._route(format, record)
        frame = Frame([record])
        time = clock.parse(frame.value(route.shape.time))
        timed = time != NO_TIME
        document = self._plan(route, route.named(frame)).build(frame, time if timed else as_of)
        return Whole(route.mapping, document, timed)

    def _plan(self, route: Route, identity: Mapping[str, str]) -> Plan:
        key = route, *identity.items()
        plan = self._plans.get(key)
        if plan is None:
            plan = Plan(route.mapping, route.shape, identity, route.mapping.product(identity))
            if all(len(value) <= LONGEST_CONSTANT for value in identity.values()):
                if len(self._plans) >= _MOST_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _block(self, work: _Work, chunk: Chunk, begin: int, first_row: int) -> None:
        raws = chunk.raw[begin : begin + _BLOCK]
        lens = self._lens(chunk.format, raws)
        decoded: list[Any] = lens.read(raws) if lens else [None] * len(raws)
        for place in chunk.faults:
            if 0 <= place - begin < len(raws):
                decoded[place - begin] = None
        whole = [place for place, record in enumerate(decoded) if record is None]
        routed: dict[Route, list[int]] = {}
        if lens:
            routed[lens.route] = [place for place, record in enumerate(decoded) if record is not None]
        found = self._decode(chunk.format, [raws[place] for place in whole], work.records.as_of)
        for place, record in zip(whole, found, strict=True):
            fault = chunk.faults.get(place + begin) or (str(record) if isinstance(record, RecordError) else "")
            if fault or isinstance(record, RecordError):
                self._quarantine(work, first_row + place, raws[place], fault)
            else:
                route, decoded[place] = self._route(chunk.format, record)
                routed.setdefault(route, []).append(place)
        wholly = frozenset(whole)
        for route, places in routed.items():
            through = lens if lens and lens.route is route else None
            self._strip(work, route, chunk.format, decoded, raws, places, first_row, through, wholly)
        work.took(len(raws))

    def _lens(self, format: str, raws: Sequence[Raw]) -> Lens | None:
        """Return what reads records like the first of *raws*, if they need not be decoded whole."""
        if _FORMATS.get(format) != "json" or format == DOCUMENT:
            return None
        head = decode_json(raws[:1])[0]
        if isinstance(head, RecordError):
            return None
        route, _ = self._routes.find("json", head)
        if route not in self._lenses and (lens := lens_of(route, self._routes.before("json", route), head)):
            self._lenses[route] = lens
        return self._lenses.get(route)

    def _strip(
        self,
        work: _Work,
        route: Route,
        format: str,
        decoded: list[Any],
        raws: Sequence[Raw],
        places: list[int],
        first_row: int,
        lens: Lens | None,
        whole: frozenset[int],
    ) -> None:
        """Pile up what is wanted of the records at *places*, all of one shape; *lens* read all but those at *whole*."""
        frame = Frame([decoded[place] for place in places])
        work.times([first_row + place for place in places], frame.column(route.shape.time))
        grouped: dict[Group, list[int]] = {}
        for place, group in zip(places, route.groups(frame, len(places)), strict=True):
            grouped.setdefault(group, []).append(place)
        for group, members in grouped.items():
            seen = [place for place in members if place not in whole] if lens and whole else members
            if lens and seen and not lens.covers(group):
                self._look_again(format, decoded, raws, seen)
            pile = work.pile(group)
            found = [decoded[place] for place in members]
            pile.rows += [first_row + place for place in members]
            pile.waiting += found
            if group.wants_original and format == DOCUMENT:
                pile.originals += Frame(found).column(_KEPT_ORIGINAL)
            elif group.wants_original:
                taken = [raws[place] for place in members]
                pile.originals += taken if _all_bytes(taken) else map(bytes_of, taken)

    def _look_again(self, format: str, decoded: list[Any], raws: Sequence[Raw], places: list[int]) -> None:
        """Decode the records at *places* whole."""
        for place, record in zip(places, decode_json([raws[place] for place in places]), strict=True):
            if not isinstance(record, RecordError):  # as it was read once, it is none
                decoded[place] = self._route(format, record)[1]

    def _route(self, format: str, record: dict[str, Any]) -> tuple[Route, dict[str, Any]]:
        """Return which mapping's shape reads *record*, and the record with its times in the zone of *format*."""
        alone, zone = parted(format)
        route, record = self._routes.find(_FORMATS[alone], record)
        if zone:
            route.localise(record, zone)
        return route, record

    def _decode(self, format: str, raws: Sequence[Raw], as_of: Timestamp) -> list[Decoded]:
        """Decode records of a chunk's *format*; one without a reader, or in no zone, is refused, record by record."""
        format, zone = parted(format)
        mapped = _FORMATS.get(format)
        if zone and (reason := _refused(zone)):
            return [RecordError(reason) for _ in raws]
        if mapped == "json" or format == "w3c":
            return decode_json(raws)
        if mapped is None:
            return [RecordError(f"no mapping reads records of format {format}") for _ in raws]
        return decode_each(raws, line_reader(format, as_of, self._patterns))

    def _quarantine(self, work: _Work, row: int, raw: Raw, reason: str) -> None:
        data = bytes_of(raw)
        letter = DeadLetter(work.records.reference(row), reason, data, work.records.as_of)
        work.unparsed(row, self._unparsed, data if self._unparsed_original else None, letter)


def _all_bytes(found: Sequence[Any]) -> bool:
    return set(map(type, found)) <= {bytes}


def _refused(zone: str) -> str:
    """Return why this machine knows no such zone, which was known when the record was read first."""
    try:
        zone_of(zone)
    except ValueError as error:
        return str(error)
    return ""


class _Pile:
    """The rows of one group, native values by the group's reads, and records that wait to be read."""

    def __init__(self, group: Group) -> None:
        self.rows: list[int] = []
        self.values: list[list[Any]] = [[] for _ in group.reads]
        self.originals: list[Any] = []
        self._reads = group.reads
        self.waiting: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take what is wanted of the records that wait."""
        frame = Frame(self.waiting)
        for values, paths in zip(self.values, self._reads, strict=True):
            values.extend(frame.column(paths))
        self.waiting = []


class _Work:
    """One batch while it is made."""

    def __init__(self, records: Records, pool: Pool) -> None:
        rows = len(records)
        self.records = records
        self.dead: list[DeadLetter] = []
        self._pool = pool
        self._columns = Columns(rows)
        self._kind = np.zeros(rows, np.int32)
        self._kinds: dict[Kind, int] = {}
        self._originals: list[bytes | Value] = []
        self._counts: Counter[str] = Counter()
        self._piles: dict[Group, _Pile] = {}
        self._waiting = 0
        self._timed_rows: list[int] = []
        self._times: list[Any] = []

    def times(self, rows: list[int], texts: list[Any]) -> None:
        self._timed_rows += rows
        self._times += texts

    def pile(self, group: Group) -> _Pile:
        found = self._piles.get(group)
        if found is None:
            found = self._piles[group] = _Pile(group)
        return found

    def unparsed(self, row: int, kind: Kind, original: bytes | None, letter: DeadLetter) -> None:
        self.dead.append(letter)
        rows = np.array([row])
        self._set_kind(rows, kind)
        if original is not None:
            self._put_originals(rows, [original])

    def took(self, records: int) -> None:
        """Read what waits once it is enough, *records* more than before."""
        self._waiting += records
        if self._waiting >= _MOST_WAITING:
            self._waiting = 0
            for pile in self._piles.values():
                pile.read()

    def _set_kind(self, rows: NDArray[np.intp], kind: Kind) -> None:
        self._kind[rows] = self._kinds.setdefault(kind, len(self._kinds))

    def _fill(self, group: Group, pile: _Pile) -> None:
        """Write all columns that are wanted of *group*."""
        pile.read()
        rows = np.array(pile.rows)
        self._set_kind(rows, group.kind)
        if group.unmapped:
            self._counts["unmapped"] += len(rows)
        if group.capped:
            self._counts["kinds_capped"] += len(rows)
        for name, value in group.constants:
            self._columns.put(name, rows, self._pool.dictionary(name).encode((value,))[0])
        for name, sources in group.sources:
            self._columns.put(name, rows, self._codes(name, sources, pile))
        if group.wants_original:
            self._put_originals(rows, pile.originals)

    def _put_originals(self, rows: NDArray[np.intp], found: Sequence[Any]) -> None:
        """Write `event.original`: what a stored document kept may be anything, records are bytes."""
        if _all_bytes(found):
            codes = np.arange(len(self._originals), len(self._originals) + len(found))
            self._originals += found
        else:
            kept = Dictionary()
            codes = np.array([encode(text_of(one) if isinstance(one, bytes) else one, kept, TEXT) for one in found])
            codes[codes >= 0] += len(self._originals)
            self._originals += kept.values
        self._columns.put(ORIGINAL, rows, codes)

    def _codes(self, name: str, sources: Iterable[tuple[int, Converter]], pile: _Pile) -> list[int]:
        """Code the first source, and from the others what it lacks; wrong is only what has no right alternative."""
        codes: list[int] = []
        for number, convert in sources:
            found = self._pool.coder(name, convert).codes(pile.values[number])
            codes = [b if a < 0 and b != ABSENT else a for a, b in zip(codes, found, strict=True)] if codes else found
            if min(codes) >= 0:
                break
        return codes

    def finish(self, marks: Mapping[str, Timestamp]) -> Normalised:
        for group, pile in self._piles.items():
            self._fill(group, pile)
        time = np.full(len(self.records), NO_TIME, np.int64)
        time[self._timed_rows] = clock.parse_all(self._times)
        future = time > self.records.as_of + FUTURE
        untimed = time == NO_TIME
        high, marks = self._highs(np.where(future, NO_TIME, time), marks)
        for name, number in self._columns.take_wrong().items():
            self._counts[f"wrong_type:{name}"] = number
        self._counts["future"] = int(np.count_nonzero(future))
        self._counts["untimed"] = int(np.count_nonzero(untimed))
        self._counts["quarantined"] = len(self.dead)
        batch = Batch(
            records=self.records,
            origin=np.arange(len(self.records), dtype=np.int32),
            kinds=tuple(self._kinds),
            kind=self._kind,
            time=np.where(untimed, self.records.as_of, time),
            columns={name: Column(codes, self._dictionary(name)) for name, codes in self._columns.codes.items()},
            high=high,
            future=future,
        )
        counts = {name: number for name, number in self._counts.items() if number}
        return Normalised(batch, tuple(self.dead), marks, counts)

    def _dictionary(self, name: str) -> Dictionary:
        return Originals(self._originals) if name == ORIGINAL else self._pool.dictionary(name)

    def _highs(
        self, moving: NDArray[np.int64], marks: Mapping[str, Timestamp]
    ) -> tuple[NDArray[np.int64], dict[str, Timestamp]]:
        """Return for each row the running maximum of its partition before it, and the maxima at the end."""
        after = dict(marks)
        high = np.full(len(moving), NO_TIME, np.int64)
        row = 0
        for chunk in self.records.chunks:
            times = moving[row : row + len(chunk.raw)]
            running = np.maximum.accumulate(np.concatenate([[after.get(chunk.partition, NO_TIME)], times]))
            high[row : row + len(times)] = running[:-1]
            if running[-1] != NO_TIME:
                after[chunk.partition] = int(running[-1])
            row += len(times)
        return high, after
