"""Following files: rotation, truncation, copies, late arrivals.

The cursor keeps one row a file that gave a record: about 150 bytes and the path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from agent.errors import RecordError
from agent.model import SECOND, Chunk, Cursor, Records, Timestamp, digest
from agent.ports import Lag
from connectors._backlog import Backlog
from connectors._containers import Bounds, kind, members, open_regular, plain, text
from connectors._opened import (
    ARCHIVES,
    FETCH_BYTES,
    NOTED,
    SAMPLE,
    FileReader,
    Mark,
    Noted,
    OpenFile,
    Options,
    content_digest,
    end_of_lines,
    file_of,
    find,
    fingerprint,
    holds,
    is_followed,
    is_prefix,
    mark_of,
    short,
    tail_of,
)
from connectors._readers import EVTX, HEAD, events_above, sniff

EVENTS = 10_000
OPEN = 128
SETTLED = 5 * SECOND
Look: TypeAlias = tuple[int, ...]
"""Size, time of change, device and inode."""


@dataclass(slots=True, eq=False)
class Tracked:
    """A followed file: who it is (kept in the cursor) and where it is now (found again by inode and content).

    *look* is what was last seen of it from outside, *quiet* the look at which it was read to its end.
    """

    partition: str
    path: str
    device: int
    inode: int
    length: int
    fingerprint: str
    format: str = ""
    tail: str = ""
    gone: bool = False
    mark: Mark = field(default_factory=Mark)
    at: str = ""
    look: Look = ()
    quiet: Look | None = None
    final: bool = False
    settled: bool = False

    def row(self) -> list[Any]:
        mark = self.mark
        who = [self.path, self.device, self.inode, self.length, self.fingerprint, self.format, self.tail, self.gone]
        return [*who, mark.member, mark.offset, mark.skipping, mark.done]

    @classmethod
    def of(cls, partition: str, row: Sequence[Any]) -> Tracked:
        path, device, inode, length, fingerprint, format, tail, gone, *mark = row
        return cls(partition, path, device, inode, length, fingerprint, format, tail, gone, Mark(*mark))

    @property
    def node(self) -> Look:
        return self.device, self.inode

    @property
    def state(self) -> Look:
        return (*self.look, self.final, self.settled)

    @property
    def waiting(self) -> bool:
        return not self.gone and not self.mark.done and self.quiet != self.state

    @property
    def read(self) -> int:
        """Return how many bytes on the disk of a waiting file were read; of what is packed or EVTX none."""
        return self.mark.offset if self.length and not self.at.endswith(".gz") else 0

    @property
    def is_live_evtx(self) -> bool:
        return self.format == "evtx" and not self.length

    def move(self, path: str, look: Look) -> None:
        self.at, self.look, self.gone = path, look, False
        self.device, self.inode = look[2:4]


class FollowedFiles(FileReader):
    """Follows files as they grow, are rotated, truncated, replaced, or appear.

    A file stays the same one over a rename (device and inode), and when it goes on in a copy or a gzipped copy: same
    first bytes, same bytes before the position, a name that begins alike. The older generation of a path is read to its
    end before the newer one. A last line without its end waits until it has one, or until the file was rotated away.
    Archives and gzip files count as complete five seconds after their last change.

    What was truncated away or deleted before it was read is lost; nobody can tell how much it was.
    """

    def __init__(self, id: str, options: Options, clock: Callable[[], Timestamp]) -> None:
        super().__init__(id, options, clock)
        self._tracked: dict[str, Tracked] = {}
        self._open: dict[str, OpenFile] = {}
        self._inherited: dict[str, Any] = {}
        self._passed: dict[Look, Look] = {}
        self._listed: dict[str, Look] = {}
        self._at: dict[str, Tracked] = {}
        self._looked = 0
        self._stale = True
        self._first = False
        self._backlogs: dict[str, Backlog] = {}

    def fetch(self, after: Cursor | None, limit: int) -> Records:
        as_of = self._clock()
        if after is None or after != self._cursor:
            self._load(after)
        if as_of - self._looked >= SECOND or self._is_overwritten():
            self._stale = True
        chunks: list[Chunk] = []
        limit, room = self._read_on(chunks, limit, FETCH_BYTES, as_of)
        if self._stale:
            limit, room = self._read_on(chunks, limit, room, as_of)
        self._stale = self._stale or (limit > 0 and room > 0)
        begun = (tracked for tracked in self._tracked.values() if tracked.mark != Mark())
        self._cursor = {"files": {tracked.partition: tracked.row() for tracked in begun}}
        self._look_back(chunks, as_of)
        return Records(self.id, tuple(chunks), self._cursor, as_of, self._unread())

    def ack(self, cursor: Cursor) -> None:
        """Let go of the files that are gone and, as *cursor* says, were read to their end."""
        for partition in [partition for partition, row in cursor.get("files", {}).items() if row[7]]:
            self._shut(partition)

    def close(self) -> None:
        for partition in list(self._open):
            self._shut(partition)
        self._tracked.clear()
        self._cursor, self._lag = None, Lag()

    def _load(self, after: Cursor | None) -> None:
        """Stand where *after* says. Open files stay open: some may have no name any more."""
        rows: Mapping[str, Any] = (after or {}).get("files", {})
        self._first = after is None
        self._inherited = {name: row for name, row in rows.items() if not is_followed(row)}
        self._tracked = {name: Tracked.of(name, row) for name, row in rows.items() if is_followed(row)}
        for partition in list(self._open):
            if tracked := self._tracked.get(partition):
                self._open[partition] = self._open[partition].again(tracked.mark)
            else:
                self._shut(partition)
        self._passed.clear()
        self._stale = True

    def _unread(self) -> frozenset[str]:
        waiting = (tracked.partition for tracked in self._tracked.values() if tracked.waiting)
        return frozenset(self._open[name].partition if name in self._open else name for name in waiting)

    def _look_back(self, chunks: Sequence[Chunk], as_of: Timestamp) -> None:
        """Learn what this fetch has left unread, and since when it has been there."""
        waiting = {name: tracked for name, tracked in self._tracked.items() if tracked.waiting}
        self._backlogs = {name: self._backlogs.get(name) or Backlog() for name in waiting}
        unread, since = 0, []
        for name, tracked in waiting.items():
            self._backlogs[name].look(tracked.look[0], as_of)
            unread += max(0, tracked.look[0] - tracked.read)
            since.append(self._backlogs[name].since(tracked.read))
        self._measure(chunks, unread, min((one for one in since if one is not None), default=None))

    def _shut(self, partition: str) -> None:
        if file := self._open.pop(partition, None):
            file.close()

    # reading

    def _read_on(self, chunks: list[Chunk], limit: int, room: int, as_of: Timestamp) -> tuple[int, int]:
        """Add what the files hold to *chunks*, within *limit* and *room*; return what is left of these."""
        if self._stale:
            self._look_around(as_of)
        for tracked in sorted(self._tracked.values(), key=lambda tracked: tracked.path):
            while limit > 0 and room > 0 and (chunk := self._take(tracked, limit, room)):
                chunks.append(chunk)
                limit -= len(chunk.raw)
                room -= sum(map(len, chunk.raw))
        return limit, room

    def _take(self, tracked: Tracked, limit: int, room: int) -> Chunk | None:
        """Return the next chunk of the file, or None if there is none for now."""
        if not tracked.waiting:
            return None
        try:
            file = self._opened(tracked)
            if file is None:
                self._stale = True
                return None
            if tracked.is_live_evtx:
                return self._take_events(tracked, file, limit)
            return self._take_records(tracked, file, limit, room)
        except (OSError, RecordError) as error:
            self.problems.note(tracked.at, getattr(error, "strerror", None) or str(error))
            tracked.quiet = tracked.state
            return None

    def _take_records(self, tracked: Tracked, file: OpenFile, limit: int, room: int) -> Chunk | None:
        file.final = tracked.final
        file.settled = tracked.settled and os.fstat(file.descriptor).st_size == tracked.look[0]
        chunk = file.take(limit, room)
        tracked.format = tracked.format or ("" if file.is_archive else file.format)
        if chunk is None:
            self._rest(tracked, file)
        elif not file.is_archive:
            tracked.tail = tail_of(chunk, bool(self._options.record_start)) or tracked.tail
        return chunk

    def _opened(self, tracked: Tracked) -> OpenFile | None:
        """Return the file, open; None if it is another one by now."""
        file = self._open.pop(tracked.partition, None)
        if file is None:
            descriptor = open_regular(tracked.at, tracked.at in self._named)
            if _look(os.fstat(descriptor))[2:4] != tracked.node or not self._is_same(tracked, descriptor, deep=False):
                os.close(descriptor)
                return None
            options = self._options_of(tracked)
            file = OpenFile(descriptor, tracked.path, tracked.partition, tracked.mark, options, self.skipped)
            self._make_room()
        self._open[tracked.partition] = file
        return file

    def _options_of(self, tracked: Tracked) -> Options:
        """What the file was taken for first, it stays."""
        return self._options.model_copy(update={"format": tracked.format or self._options.format})

    def _make_room(self) -> None:
        """Close the file used longest ago, but none that could not be opened again."""
        if len(self._open) >= OPEN:
            names = (name for name in self._open if name not in self._tracked or self._tracked[name].at)
            self._shut(next(names, ""))

    def _rest(self, tracked: Tracked, file: OpenFile) -> None:
        """Note that the file was read to its present end."""
        tracked.quiet = tracked.state
        if not tracked.at:
            tracked.gone = True
        elif tracked.mark.done or not file.resumes:
            self._shut(tracked.partition)

    def _take_events(self, tracked: Tracked, file: OpenFile, limit: int) -> Chunk | None:
        """Return the events of a live EVTX file above the last record id; ids that start again are a new generation."""
        events = file.events(tracked.mark.offset, min(limit, EVENTS))
        if events.broken:
            self.problems.note(tracked.path, f"{events.broken} EVTX records could not be read")
        if events.highest < tracked.mark.offset:
            tracked.gone = events.highest >= 0
        if not events.records:
            tracked.quiet = tracked.state
            return None
        tracked.mark.offset = max(events.records)
        return Chunk(tracked.partition, tracked.path, "evtx", list(events.records), list(events.records.values()))

    # looking around

    def _is_overwritten(self) -> bool:
        """Is one of the open files another one by now? That must be known before it is read on."""
        for partition, file in self._open.items():
            tracked = self._tracked.get(partition)
            changed = tracked and _look(os.fstat(file.descriptor))[:2] != tracked.look[:2]
            if tracked and changed and not self._is_same(tracked, file.descriptor, deep=False):
                return True
        return False

    def _look_around(self, as_of: Timestamp) -> None:
        """See which files there are and which of them are the ones we know. What gave nothing yet is met anew.

        Where files take other names meanwhile, nobody is found lost or new by what was listed: we look again.
        """
        self._looked, self._stale = as_of, False
        for name in [name for name, tracked in self._tracked.items() if tracked.mark == Mark()]:
            self._shut(name)
            del self._tracked[name]
        self._listed = self._list()
        here = {look[2:4]: path for path, look in reversed(self._listed.items())}
        lost = [each for each in self._tracked.values() if not self._find_again(each, here.get(each.node, each.at))]
        homeless = set(lost)
        self._at = {tracked.at: tracked for tracked in self._tracked.values() if tracked not in homeless}
        taken = {tracked.node for tracked in self._at.values()}
        for path, look in self._listed.items():
            is_known = look[2:4] in taken or self._passed.get(look[2:4]) == look
            if not is_known and not self._meet(path, look, lost, as_of):
                self._stale = True
                return
            taken.add(look[2:4])
        for tracked in lost:
            if not tracked.gone:
                self._search(tracked)
        self._passed = {node: look for node, look in self._passed.items() if node in here}
        self._first = False
        self._inherited.clear()
        self._forget()
        for tracked in self._tracked.values():
            tracked.final = self._is_final(tracked, as_of)
            tracked.settled = bool(self._options.record_start) and _settled(tracked.look, as_of)

    def _list(self) -> dict[str, Look]:
        looks = {}
        for path in find(self._options.paths, self.problems):
            with suppress(OSError):
                looks[path] = _look(Path(path).stat(follow_symlinks=path in self._named))
        return looks

    def _find_again(self, tracked: Tracked, path: str) -> bool:
        """Is the file that was at *tracked*'s inode still there, at *path*, and the same?"""
        if tracked.gone:
            return False
        try:
            look = _look(Path(path).stat())
            if look[2:4] != tracked.node:
                return False
            if look != tracked.look:
                descriptor = open_regular(path, path in self._named)
                try:
                    look = _look(os.fstat(descriptor))
                    if look[2:4] != tracked.node or not self._is_same(tracked, descriptor, deep=not tracked.look):
                        return False
                finally:
                    os.close(descriptor)
        except OSError:
            return False
        tracked.move(path, look)
        return True

    def _is_same(self, tracked: Tracked, descriptor: int, deep: bool) -> bool:
        """Does the file begin as the one we have read, and hold the record we read last where it was?

        The record is looked for if that costs nothing, or if it is wanted (*deep*).
        """
        if tracked.is_live_evtx:
            return plain(descriptor).peek(len(EVTX)) == EVTX
        form = kind(descriptor)
        if form in ARCHIVES or not tracked.length:
            return not tracked.length and content_digest(descriptor) == tracked.partition
        stream = next(members(descriptor, form, Bounds())).stream
        if fingerprint(stream.peek(SAMPLE)[: tracked.length]) != tracked.fingerprint:
            return False
        recoded = text(stream)
        if form == "plain" and recoded is stream and os.fstat(descriptor).st_size < tracked.mark.offset:
            return False
        return not (deep or recoded.seekable) or holds(recoded, tracked.tail)

    def _meet(self, path: str, look: Look, lost: list[Tracked], as_of: Timestamp) -> bool:
        """Decide who a file is that is not at a known inode: a known one's next place, a copy, or a new one.

        False if another file has the name by now: what was listed says nothing of that one.
        """
        try:
            descriptor = open_regular(path, path in self._named)
        except FileNotFoundError:
            return False
        except OSError as error:
            self.problems.note(path, error.strerror or str(error))
            return True
        try:
            if _look(os.fstat(descriptor))[2:4] != look[2:4]:
                return False
            before = next((each for each in lost if self._goes_on(each, path, descriptor)), None)
            if before:
                self._shut(before.partition)
                before.move(path, look)
                lost.remove(before)
                self._at[path] = before
            elif not self._is_copy(path, descriptor):
                self._track(path, descriptor, look, as_of)
        except RecordError as error:
            self.problems.note(path, str(error))
            self._passed[look[2:4]] = look
        finally:
            os.close(descriptor)
        return True

    def _goes_on(self, tracked: Tracked, path: str, descriptor: int) -> bool:
        return _alike(path, tracked.path) and not tracked.is_live_evtx and self._is_same(tracked, descriptor, deep=True)

    def _is_copy(self, path: str, descriptor: int) -> bool:
        """Is this a copy of a file that is still there? Rotation copies first and truncates or deletes later."""
        names = (path[:end] for end in range(path.rindex("/") + 2, len(path)))
        originals = (self._at[name] for name in names if name in self._at)
        return any(tracked.length and self._is_prefix(descriptor, tracked) for tracked in originals)

    def _is_prefix(self, descriptor: int, tracked: Tracked) -> bool:
        try:
            original = open_regular(tracked.at, tracked.at in self._named)
        except OSError:
            return False
        try:
            return is_prefix(descriptor, original)
        finally:
            os.close(original)

    def _track(self, path: str, descriptor: int, look: Look, as_of: Timestamp) -> None:
        """Track a file that was never met, if it is a log."""
        form = kind(descriptor)
        if form in ARCHIVES:
            if _settled(look, as_of):
                self._begin(path, look, descriptor, content_digest(descriptor))
            return
        stream = next(members(descriptor, form, Bounds())).stream
        head = stream.peek(SAMPLE)
        shape = sniff(text(stream).peek(HEAD), self._options.format) if head else None
        if shape is None:
            self._passed[look[2:4]] = look
            if head:
                self.skipped.note(path, "none of the known log formats")
        elif shape.layout == "evtx" and form == "plain":
            self._begin(path, look, descriptor, self._unused("evtx", path), format="evtx")
        else:
            head = self._as_inherited(head, path)
            mark = fingerprint(head)
            self._begin(path, look, descriptor, self._unused(mark, path), length=len(head), fingerprint=mark)

    def _as_inherited(self, head: bytes, path: str) -> bytes:
        """Return as much of *head* as made the file's identity when it was read once, if it was."""
        lengths = {row[5]: row[4] for row in self._inherited.values() if isinstance(row, list)}
        known = head[: lengths.get(short(path), SAMPLE)]
        return known if digest(fingerprint(known), path) in self._inherited else head

    def _unused(self, *parts: str) -> str:
        """Return a partition for what *parts* name: a generation of its own if there was one before."""
        names = (digest(*parts, *([number] if number else [])) for number in count())
        return next(name for name in names if name not in self._tracked)

    def _begin(
        self,
        path: str,
        look: Look,
        descriptor: int,
        partition: str,
        length: int = 0,
        fingerprint: str = "",
        format: str = "",
    ) -> None:
        known = self._tracked.get(partition)
        if known and not known.gone:
            self.skipped.note(path, f"same content as {known.at}")
            self._passed[look[2:4]] = look
            return
        tracked = known or Tracked(partition, path, look[2], look[3], length, fingerprint, format)
        if partition in self._inherited:
            tracked.mark = mark_of(self._inherited[partition])
            tracked.mark.done &= kind(descriptor) != "plain"
        elif self._first and self._options.start == "now":
            tracked.mark = self._end_of(tracked, descriptor)
        tracked.move(path, look)
        self._tracked[partition] = self._at[path] = tracked

    def _end_of(self, tracked: Tracked, descriptor: int) -> Mark:
        """Return the mark behind the last whole record there is now; what is packed counts as read."""
        if tracked.is_live_evtx:
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return Mark(offset=events_above(file, -1, 0).highest)
        if kind(descriptor) != "plain":
            return Mark(done=True)
        return Mark(offset=end_of_lines(text(plain(descriptor)), os.fstat(descriptor).st_size))

    def _search(self, tracked: Tracked) -> None:
        """Look for a lost file under a name that is not listed, then behind its open descriptor; else it is gone."""
        for path in _siblings(tracked.path):
            if path not in self._listed and self._find_sibling(tracked, path):
                return
        file = self._open.get(tracked.partition)
        if file and self._is_same(tracked, file.descriptor, deep=False):
            tracked.move("", _look(os.fstat(file.descriptor)))
        else:
            self._shut(tracked.partition)
            tracked.gone = True

    def _find_sibling(self, tracked: Tracked, path: str) -> bool:
        if self._find_again(tracked, path):
            return True
        try:
            descriptor = open_regular(path)
        except OSError:
            return False
        try:
            look = _look(os.fstat(descriptor))
            taken = any(
                each.node == look[2:4] for each in self._tracked.values() if each is not tracked and not each.gone
            )
            if taken or not self._goes_on(tracked, path, descriptor):
                return False
            self._shut(tracked.partition)
            tracked.move(path, look)
            return True
        finally:
            os.close(descriptor)

    def _forget(self) -> None:
        """Keep the rows of the thousand files that went last: their gzipped copies may still turn up."""
        gone = [name for name, tracked in self._tracked.items() if tracked.gone]
        for name in gone[: max(0, len(gone) - NOTED)]:
            self._shut(name)
            del self._tracked[name]

    def _is_final(self, tracked: Tracked, as_of: Timestamp) -> bool:
        """Will nothing be added to the file any more?"""
        if not tracked.at:
            return True
        if tracked.at.endswith(".gz") or not tracked.length:
            return _settled(tracked.look, as_of)
        if tracked.at != tracked.path:
            return self._listed.get(tracked.path, (0,))[0] > 0
        rotated = _ROTATED.fullmatch(tracked.at)
        return rotated is not None and self._listed.get(rotated[1], (0,))[0] > 0

    def _reread(self, path: str, partition: str, keys: set[int | str]) -> Mapping[int | str, bytes]:
        name = file_of(path)
        same_path = (tracked for tracked in self._tracked.values() if tracked.path == name)
        known = self._tracked.get(partition) or next(same_path, None)
        if known is None:
            return {}
        held = self._open.get(known.partition)
        descriptor = os.dup(held.descriptor) if held else open_regular(known.at, True)
        file = OpenFile(descriptor, name, known.partition, Mark(), self._options_of(known), Noted())
        try:
            return file.reread(partition, keys)
        finally:
            file.close()


_ROTATED = re.compile(r"(.+?)[.\-_]\d[\d.\-_T]*", re.DOTALL)


def _look(status: os.stat_result) -> Look:
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _settled(look: Look, as_of: Timestamp) -> bool:
    return look[1] // 1000 <= as_of - SETTLED


def _alike(path: str, first: str) -> bool:
    """May *path* be what became of the file first seen at *first*? Same folder, and the names begin alike."""
    folder, _, name = first.rpartition("/")
    return path.startswith(f"{folder}/{name.split('.')[0]}") and "/" not in path[len(folder) + 1 :]


def _siblings(path: str) -> list[str]:
    folder = path.rpartition("/")[0] or "/"
    try:
        with os.scandir(folder) as entries:
            files = [each.path for each in entries if each.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(each for each in files if _alike(each, path))
