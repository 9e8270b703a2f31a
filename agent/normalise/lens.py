"""Lenses: of a JSON record only what is read of it becomes objects, the rest is checked and passed over.

A lens is of one route. It decodes what tells that a record takes this route, the values that make its kind, its times,
and what the kinds seen so far are read for; so a record seen through it is as good as the whole one, or it is refused
and has to be decoded whole. What is passed over must be JSON and within bounds all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias, TypedDict

import msgspec
import orjson

from agent.normalise.decode import Raw, decode_json, is_small
from agent.normalise.kinds import Group, Route, with_names
from agent.normalise.mapping import Joint, Path, Paths, has

_TRIED = 16
"""Records on which a lens is tried against decoding them whole, whenever it shows more, and now and then."""
_MOST_REFUSED = 4
"""One record of so many may be refused; a lens that refuses more rests for some blocks."""
_REST, _LONG_REST = 16, 256
"""Blocks: after many refusals; and until it is tried again."""
_64_BITS = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_SCALAR: Any = str | _64_BITS | float | bool | None
_WHOLE: Any = _SCALAR | list[Any] | dict[str, Any]
_Tree: TypeAlias = dict[str, "_Tree | None"]
"""Keys -> what is read below them; nothing: whatever is there; None: only that something is."""


class Lens:
    """Decodes records of *route*; *rivals* are the routes before it, which *record*, one of the route, did not take."""

    def __init__(self, route: Route, rivals: Iterable[Route], record: dict[str, Any]) -> None:
        self.route = route
        self._guards = _guards([rival.shape.when for rival in rivals], record)
        """Paths of which one is missing in all that take a rival: none of them may be there."""
        self._without = frozenset(path[0] for path in (*self._guards, *route.shape.unless) if len(path) == 1)
        self._deep_guards = [path for path in self._guards if len(path) > 1]
        self._with = {path[0] for path in route.shape.when}
        self._asked = {*self._guards, *route.shape.when, *route.shape.unless}
        self._paths = set(route.shape.time).union(*route.identity)
        self._covered: set[Group] = set()
        self._rests = 0
        self._untried = 0
        """Blocks until it is tried again."""
        self._show()

    def read(self, raws: Sequence[Raw]) -> list[dict[str, Any] | None]:
        """Return what is read of *raws*; None for each that has to be decoded whole."""
        if self._rests:
            self._rests -= 1
            return [None] * len(raws)
        if self._shown != self._paths:
            self._show()
        self._untried -= 1
        if self._untried < 0:
            self._untried = _LONG_REST
            if not self._pays(raws[:_TRIED]):
                self._rests = _LONG_REST
                return [None] * len(raws)
        found = [self._read(raw) for raw in raws]
        if found.count(None) * _MOST_REFUSED > len(raws):
            self._rests = _REST
        return found

    def _pays(self, raws: Sequence[Raw]) -> bool:
        """Say whether *raws* are read in less time than it takes to decode them: that depends on how they are made."""
        read = min(_time_of(lambda: [self._read(raw) for raw in raws]) for _ in range(2))
        whole = min(_time_of(lambda: decode_json(raws)) for _ in range(2))
        return read < whole

    def covers(self, group: Group) -> bool:
        """Say whether the records that were read hold all that *group* reads; if not, the next ones will."""
        if group in self._covered:
            return True
        paths = set(_paths(group.reads))
        if paths <= self._shown:
            self._covered.add(group)
            return True
        self._paths |= paths
        return False

    def _read(self, raw: Raw) -> dict[str, Any] | None:
        if not is_small(raw):
            return None
        assert isinstance(raw, bytes)
        try:
            if not raw.isascii():
                raw.decode()
            record: dict[str, Any] = self._decode(raw)
            orjson.dumps(record, default=_passed)  # refuses a number of more than 64 bits in what is read as a whole
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError):
            return None
        if not self._without.isdisjoint(record) or not self._with <= record.keys():
            return None
        for path in self._deep_guards:
            if has(record, path):
                return None
        shape = self.route.shape
        if not shape.fits(record):
            return None
        return with_names(record, shape.named) if shape.named else record

    def _show(self) -> None:
        self._shown = set(self._paths)
        self._untried = 0
        self._decode = self._decoder()

    def _decoder(self) -> Any:
        tree: _Tree = {}
        whole = [_until_whole(path, self.route.shape.named) for path in self._paths]
        if () in whole:
            return msgspec.json.Decoder(dict[str, Any]).decode
        for path in sorted(whole, key=len, reverse=True):
            _section(tree, path)[path[-1]] = {}  # what is read as a whole holds what is read of it
        for path in sorted(self._asked, key=len, reverse=True):
            if not any(path[: len(above)] == above for above in whole):
                _section(tree, path).setdefault(path[-1])
        return msgspec.json.Decoder(_dict_of(tree)).decode


def lens_of(route: Route, rivals: Sequence[Route] | None, record: dict[str, Any]) -> Lens | None:
    """Return a lens for records like *record*, if it took *route* as it is, by what it has and lacks."""
    shape = route.shape
    if rivals is None or shape.inside or shape.layout or shape.line or shape.exact:
        return None
    if not (shape.may_fit(frozenset(record)) and shape.fits(record)):
        return None
    rivals = [rival for rival in rivals if not set(rival.shape.unless) & set(shape.when)]
    if not all(any(not has(record, path) for path in rival.shape.when) for rival in rivals):
        return None
    return Lens(route, rivals, record)


def _time_of(work: Callable[[], object]) -> int:
    begun = time.thread_time_ns()
    work()
    return time.thread_time_ns() - begun


def _guards(whens: Sequence[Paths], record: dict[str, Any]) -> list[Path]:
    """Return for each of *whens* a path that *record* lacks, few in all."""
    missing = [
        {path[:1] if path[0] not in record else path for path in when if not has(record, path)} for when in whens
    ]
    chosen: list[Path] = []
    for number, paths in enumerate(missing):
        if paths.isdisjoint(chosen):
            often = {path: sum(path in later for later in missing[number:]) for path in paths}
            chosen.append(min(paths, key=lambda path: (len(path), -often[path], path)))
    return chosen


def _passed(_: msgspec.Raw) -> None:
    """Take the place of what only has to be there."""


def _until_whole(path: Path, named: Path) -> Path:
    """Return *path* up to where keys are not known beforehand."""
    if named and path[: len(named)] == named:
        return named
    return path[: path.index("*")] if "*" in path else path


def _paths(reads: Iterable[Paths | Joint]) -> Iterator[Path]:
    for read in reads:
        for paths in read.fields if isinstance(read, Joint) else (read,):
            yield from paths


def _section(tree: _Tree, path: Path) -> _Tree:
    for key in path[:-1]:
        below = tree.get(key)
        if below is None:
            below = tree[key] = {}
        tree = below
    return tree


def _dict_of(tree: _Tree) -> Any:
    return TypedDict("_Read", {key: _type_of(inner) for key, inner in tree.items()}, total=False)  # type: ignore[operator]


def _type_of(tree: _Tree | None) -> Any:
    """Return the type of a value of which *tree* is read: an object, or a list of such."""
    if tree is None:
        return msgspec.Raw
    if not tree:
        return _WHOLE
    section: Any = _dict_of(tree)
    return section | _SCALAR | list[section | _SCALAR | list[Any]]
