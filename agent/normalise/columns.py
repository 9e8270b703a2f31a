"""From decoded records to columns: which native values lie where, and their codes.

A `Frame` reads one field of many records at once; a `Coder` turns native values into codes of a column's dictionary and
converts each distinct native value once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.model import Dictionary, Value
from agent.normalise.catalogue import Converter
from agent.normalise.mapping import Joint, Path, Paths

ABSENT = -1
WRONG = -2
"""Codes for a value that is not there, and for one that is not of its field's type."""

_EMPTY: dict[str, Any] = {}
_SCALARS = (str, int, float, bool)
_MEMO_CAP = 65_536
_WEIGHT_CAP = 16 * 2**20
_TOGETHER_CAP = 32 * 2**20
_VALUE_WEIGHT = 128
"""Bytes that a value takes beside its text, with what is remembered of it."""


class Frame:
    """Records of one shape; sections that many fields share are looked up once.

    The key ``*`` stands for the first object of a section. A list of objects is read as one object whose values are
    lists, as a SIEM does; a list of values as one whose fields are ``param1``, ``param2`` and so on, as Windows agents
    do.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._sections: dict[Path, list[Mapping[str, Any]]] = {(): list(records)}

    def section(self, path: Path) -> list[Mapping[str, Any]]:
        found = self._sections.get(path)
        if found is None:
            parents, key = self.section(path[:-1]), path[-1]
            values = [_first_object(parent) if key == "*" else parent.get(key) for parent in parents]
            found = [value if value.__class__ is dict else _object(value) for value in values]
            self._sections[path] = found
        return found

    def column(self, paths: Paths | Joint) -> list[Any]:
        """Return one native value a record, from the first path that holds one; None where none does."""
        if isinstance(paths, Joint):
            columns = list(map(self.column, paths.fields))
            return [row if any(value is not None for value in row) else None for row in zip(*columns, strict=True)]
        values: list[Any] = []
        if not paths:
            return [None] * len(self._sections[()])
        for path in paths:
            key = path[-1]
            found = [section.get(key) for section in self.section(path[:-1])]
            values = [b if a is None else a for a, b in zip(values, found, strict=True)] if values else found
            if None not in values:
                break
        return values

    def value(self, paths: Paths | Joint) -> Any:
        """Return what `column` does, of the only record."""
        if isinstance(paths, Joint):
            row = tuple(map(self.value, paths.fields))
            return row if any(value is not None for value in row) else None
        for path in paths:
            if (found := self.section(path[:-1])[0].get(path[-1])) is not None:
                return found
        return None


def _first_object(section: Mapping[str, Any]) -> Any:
    return next((value for value in section.values() if value.__class__ is dict), None)


def _object(value: Any) -> dict[str, Any]:
    if value.__class__ is not list:
        return _EMPTY
    merged: dict[str, Any] = {}
    for place, item in enumerate(value, 1):
        if item.__class__ is dict:
            for key, inner in item.items():
                merged.setdefault(key, []).append(inner)
        else:
            merged[f"param{place}"] = item
    return merged


class _Memo(dict[Any, int]):
    """Native value -> code, for native values of one type; *weight* is of those that the dictionary does not hold."""

    def __init__(self, dictionary: Dictionary, convert: Converter) -> None:
        super().__init__({None: ABSENT})
        self._dictionary = dictionary
        self._convert = convert
        self.weight = 0

    def __missing__(self, raw: Any) -> int:
        code = encode(raw, self._dictionary, self._convert)
        if code < 0:
            self.weight += _VALUE_WEIGHT + _length(raw)
        elif self._dictionary.values[code] is not raw:
            self.weight += _length(raw)
        if len(self) >= _MEMO_CAP or self.weight > _WEIGHT_CAP:
            self.clear()
            self.weight = 0
            self[None] = ABSENT
        self[raw] = code
        return code


def encode(raw: Any, dictionary: Dictionary, convert: Converter) -> int:
    try:
        value = convert(raw)
    except ValueError:
        return WRONG
    return ABSENT if value is None else dictionary.intern(value)


class Coder:
    """Codes native values of one field; remembers distinct ones, by type, so that 1, 1.0 and True never meet."""

    def __init__(self, dictionary: Dictionary, convert: Converter) -> None:
        self.dictionary = dictionary
        self._convert = convert
        self._memos: dict[type, _Memo] = {kind: _Memo(dictionary, convert) for kind in _SCALARS}

    def codes(self, values: list[Any]) -> list[int]:
        types = set(map(type, values)) - {NoneType}
        if not types:
            return [ABSENT] * len(values)
        if len(types) == 1 and (memo := self._memos.get(types.pop())) is not None:
            return list(map(memo.__getitem__, values))
        return [self._code(value) for value in values]

    @property
    def weight(self) -> int:
        """How much is remembered beside the dictionary."""
        return sum(memo.weight for memo in self._memos.values())

    def _code(self, value: Any) -> int:
        memo = self._memos.get(value.__class__)
        if memo is not None:
            return memo[value]
        return ABSENT if value is None else encode(value, self.dictionary, self._convert)


class Pool:
    """The dictionaries of all columns, kept from batch to batch and begun anew when full or heavy."""

    def __init__(self) -> None:
        self._dictionaries: dict[str, Dictionary] = {}
        self._weights: dict[str, tuple[int, int]] = {}
        self._coders: dict[tuple[str, Converter], Coder] = {}

    def renew(self) -> None:
        """Start new dictionaries in place of those that are full or heavy, alone or together; between batches only."""
        weights = {name: self._weigh(name, dictionary) for name, dictionary in self._dictionaries.items()}
        for (name, _), coder in self._coders.items():
            weights[name] += coder.weight
        left = sum(weights.values())
        together = _TOGETHER_CAP // 2 if left > _TOGETHER_CAP else left
        for name in sorted(weights, key=weights.__getitem__, reverse=True):
            if left > together or weights[name] > _WEIGHT_CAP or self._dictionaries[name].full:
                left -= weights[name]
                del self._dictionaries[name]
                del self._weights[name]
                for key in [key for key in self._coders if key[0] == name]:
                    del self._coders[key]

    def dictionary(self, name: str) -> Dictionary:
        found = self._dictionaries.get(name)
        if found is None:
            found = self._dictionaries[name] = Dictionary()
            self._weights[name] = (0, 0)
        return found

    def coder(self, name: str, convert: Converter) -> Coder:
        found = self._coders.get((name, convert))
        if found is None:
            found = self._coders[name, convert] = Coder(self.dictionary(name), convert)
        return found

    def _weigh(self, name: str, dictionary: Dictionary) -> int:
        seen, weight = self._weights[name]
        new = dictionary.values[seen:]
        weight += len(new) * _VALUE_WEIGHT + sum(map(_length, new))
        self._weights[name] = (len(dictionary.values), weight)
        return weight


def _length(value: Value) -> int:
    if isinstance(value, tuple):
        return sum(map(_length, value)) + _VALUE_WEIGHT // 2 * len(value)
    return len(value) if isinstance(value, str) else 0


class Columns:
    """The columns of one batch while they are filled."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.codes: dict[str, NDArray[np.int32]] = {}

    def put(self, name: str, rows: NDArray[np.intp], codes: Sequence[int] | NDArray[np.integer[Any]] | int) -> None:
        column = self.codes.get(name)
        if column is None:
            column = self.codes[name] = np.full(self._rows, ABSENT, np.int32)
        column[rows] = codes

    def take_wrong(self) -> dict[str, int]:
        """Make wrong values absent; return how many there were, by field."""
        counts = {}
        for name, column in self.codes.items():
            wrong = column == WRONG
            if number := int(np.count_nonzero(wrong)):
                column[wrong] = ABSENT
                counts[name] = number
        return counts
