"""Match many rules against columns of events at the price of one scan.

For each kind of event the rules' conditions are bound to columns and folded over what is constant in the kind. Most
rules need one of a few literals to be present at all: those literals of all rules form one index a column (a hash for
equality, one Aho-Corasick automaton for substrings), which is asked once for each distinct value. Only the rows that
it names are verified, against the exact condition, whose parts are remembered by distinct value as well. Rules that
need no literal are evaluated as masks over the kind's rows.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import ahocorasick_rs
import numpy as np
import orjson
from numpy.typing import NDArray

from agent.model import UNPARSED, Batch, Column, Dictionary, Kind, Originals, Scalar, Value, distinct
from rules.sigma import logsource
from rules.sigma.parse import Expression, Rule
from rules.sigma.predicate import Predicate, compare_fields, predicate, texts

RAW = "event.original: values"
"""Where keywords are sought: each value in `event.original` if that is JSON, else its text."""
_RAW_COLUMN = "event.original"
_FEW = 8
"""Rows up to which deciding one by one is faster than selecting from an array."""

_MEMO = 8_192
"""Values that one part of a condition remembers for a column's dictionary."""
_MOST_LISTED = 131_072
"""Rules in the groups of an index, which are then found anew: there are values of ever other groups."""
_MOST_MADE = 1_024
"""Plans that another kind may share."""
_MOST_BOUND = 65_536
"""Rules whose conditions are kept bound, over all plans."""
_MOST_PLANS = 512
"""Kinds whose plans are kept, those that events had last; a plan that was given up is made again."""

_T = TypeVar("_T")
Bound: TypeAlias = Expression | bool
_Codes: TypeAlias = NDArray[np.int32]
_Rows: TypeAlias = NDArray[np.intp]


class _PerLeaf(Generic[_T]):
    """A function of a leaf's operator and arguments, computed once for each list of arguments.

    Binding hands the lists of a rule on as they are, so their identity is the leaf's; they are held to keep it theirs.
    """

    def __init__(self, function: Callable[[str, list[Any]], _T]) -> None:
        self._function = function
        self._known: dict[int, tuple[str, list[Any], _T]] = {}

    def __call__(self, operator: str, arguments: list[Any]) -> _T:
        known = self._known.get(id(arguments))
        if known is None or known[0] != operator:
            known = self._known[id(arguments)] = operator, arguments, self._function(operator, arguments)
        return known[2]


Tests: TypeAlias = _PerLeaf[Predicate]


# --- binding a condition to a kind of event ---------------------------------------------------------------------------


_VARIES: Final = object()
"""In place of a value: it is another one in each row, or may be."""


class _Fold(NamedTuple):
    """What all rows of a kind have in a column (None: nothing), or `_VARIES`; and what tests said of it."""

    value: Any
    said: list[tuple[str, list[Any], bool]]


Folds: TypeAlias = dict[str, _Fold]
_EXACTLY: Final = ("", list[Any](), False)
"""In place of what a test said: the column meets others, so that it must be this very value."""


def _known(kind: Kind, name: str) -> Any:
    """Return what all rows of *kind* have in a column: a column of another vendor is in none, and what could not be
    read has its raw text alone."""
    if name in kind.constant:
        return kind.constant[name]
    if kind.mapping == UNPARSED:
        return _VARIES if name == RAW else None
    is_anothers = name.startswith("winlog.") and not kind.prefix.startswith("winlog.")
    return None if name in kind.absent or is_anothers else _VARIES


class Binder:
    """How one kind of event holds what a rule's condition names."""

    def __init__(self, kind: Kind, category: str | None, tests: Tests | None, folds: Folds | None = None) -> None:
        """*tests* decide what is constant in the kind; without them it is left in the condition.

        *folds* learns what was asked of the kind.
        """
        self._kind = kind
        self._aliases = logsource.ALIASES.get(category or "", {})
        self._tests = tests
        self._columns: dict[str | None, str] = {}
        self._folds: Folds = {} if folds is None else folds

    def column(self, native: str | None) -> str:
        """Return the column for a rule's field: by the kind's mapping, by category, as ECS itself, by prefix."""
        name = self._columns.get(native)
        if name is None:
            name = self._columns[native] = RAW if native is None else self._resolve(native)
        return name

    def _resolve(self, native: str) -> str:
        if native in self._kind.renames:
            return self._kind.renames[native]
        if native in self._aliases:
            return self._aliases[native]
        root, dot, _ = native.partition(".")
        if root in logsource.ECS_ROOTS and (dot or root in ("message", "@timestamp")):
            return native
        return self._kind.column(native)

    def bind(self, condition: Expression, column: Callable[[str | None], str] | None = None) -> Bound:
        """Return *condition* over columns, folded over the kind's constants; a bool if nothing is left to look at."""
        column = column or self.column
        way, inner = condition[0], condition[1]
        if way == "is":
            return self._bind_leaf(condition, column)
        if way == "not":
            bound = self.bind(inner, column)
            return not bound if bound is True or bound is False else ["not", bound]
        decisive = way == "or"
        parts = []
        for part in inner:
            bound = self._bind_leaf(part, column) if part[0] == "is" else self.bind(part, column)
            if bound is decisive:
                return decisive
            if bound is not (not decisive):
                parts.append(bound)
        return not decisive if not parts else parts[0] if len(parts) == 1 else [way, parts]

    def _bind_leaf(self, leaf: Expression, column: Callable[[str | None], str]) -> Bound:
        _, native, operator, arguments = leaf
        name = column(native)
        if operator[:6] == "field ":
            others = [column(other) for other in arguments]
            for each in (name, *others):
                self._fold(each).said.append(_EXACTLY)
            return ["is", name, operator, others]
        if self._tests is None:
            return ["is", name, operator, arguments]
        fold = self._fold(name)
        if fold.value is _VARIES:
            return ["is", name, operator, arguments]
        verdict = self._tests(operator, arguments)(fold.value)
        fold.said.append((operator, arguments, verdict))
        return verdict

    def _fold(self, name: str) -> _Fold:
        fold = self._folds.get(name)
        if fold is None:
            fold = self._folds[name] = _Fold(_known(self._kind, name), [])
        return fold


class _Source(NamedTuple):
    """The rules of one log source, with their numbers."""

    logsource: tuple[str | None, str | None, str | None]
    rules: list[tuple[int, Rule]]

    def bind(self, kind: Kind, tests: Tests, folds: Folds) -> Iterator[tuple[int, Bound]]:
        """Yield what is left to decide of each rule for events of *kind*, without those that cannot match them."""
        binder = Binder(kind, self.logsource[1], tests, folds)
        applies = binder.bind(condition, str) if (condition := logsource.condition(*self.logsource)) else False
        unparsed = kind.mapping == UNPARSED
        if applies is False and not unparsed:
            return
        for number, rule in self.rules:
            if unparsed and not _has_keywords(rule.condition):
                continue
            bound = binder.bind(rule.condition)
            if bound is False:
                continue
            if isinstance(applies, bool):
                yield number, bound
            else:
                yield number, applies if bound is True else ["and", [applies, bound]]


def _has_keywords(condition: Expression) -> bool:
    return any(leaf[1] is None for leaf in leaves(condition))


def leaves(condition: Expression) -> Iterator[Expression]:
    """Yield the tests of a condition."""
    if condition[0] == "is":
        yield condition
    else:
        for part in [condition[1]] if condition[0] == "not" else condition[1]:
            yield from leaves(part)


def columns(condition: Bound) -> set[str]:
    """Return the columns that a bound condition looks at."""
    found: set[str] = set()
    waiting: list[Bound] = [condition]
    for part in waiting:
        if isinstance(part, bool):
            continue
        if part[0] == "is":
            found.add(part[1])
            if part[2].startswith("field "):
                found.update(part[3])
        else:
            waiting += [part[1]] if part[0] == "not" else part[1]
    return found


# --- raw text ---------------------------------------------------------------------------------------------------------


def raw_values(value: Value | None) -> Value | None:
    """Return what keywords are sought in: the values of a JSON object, else the text itself."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        return tuple(_scalars(orjson.loads(value)))
    except orjson.JSONDecodeError:
        return value


def _searchable(text: str) -> str:
    """Return *text* in lower case and fit for UTF-8."""
    text = text.lower()
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _scalars(data: Any) -> Iterator[Scalar]:
    waiting = [data]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
        elif node is not None:
            yield node


# --- conditions as trees over columns ---------------------------------------------------------------------------------


class _View:
    """A kind's rows of one batch, with the columns' codes taken once."""

    def __init__(self, batch: Batch, rows: _Rows) -> None:
        self._batch = batch
        self._rows = rows
        self._codes: dict[str, _Codes] = {}
        self._verdicts: dict[_Leaf, dict[int, bool]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> Column | None:
        return self._batch.columns.get(_RAW_COLUMN if name == RAW else name)

    def codes(self, name: str) -> _Codes:
        """Return the column's codes by row of the view; -1 throughout if the batch has no such column."""
        codes = self._codes.get(name)
        if codes is None:
            column = self.column(name)
            codes = np.full(len(self._rows), -1, np.int32) if column is None else column.codes[self._rows]
            self._codes[name] = codes
        return codes

    def value(self, name: str, row: int) -> Value | None:
        code, column = self.codes(name)[row], self.column(name)
        return None if code < 0 or column is None else column.dictionary.values[code]

    def verdicts(self, leaf: _Leaf) -> dict[int, bool]:
        known = self._verdicts.get(leaf)
        if known is None:
            column = self.column(leaf.column)
            known = self._verdicts[leaf] = {} if column is None else leaf.memo.setdefault(column.dictionary, {})
        return known


class _Node:
    def holds(self, view: _View, row: int) -> bool:
        """Decide for one row."""
        raise NotImplementedError

    def select(self, view: _View, rows: _Rows) -> _Rows:
        """Return those of *rows* (ascending) for which the condition holds."""
        raise NotImplementedError


class _Leaf(_Node):
    """A condition over one column, remembered by distinct value; most are never asked, so the test is made late."""

    def __init__(self, column: str, make: Callable[[], Predicate]) -> None:
        self.column = column
        self.make = make
        self.memo: WeakKeyDictionary[Dictionary, dict[int, bool]] = WeakKeyDictionary()

    @cached_property
    def test(self) -> Predicate:
        return self.make()

    def holds(self, view: _View, row: int) -> bool:
        code = int(view.codes(self.column)[row])
        verdicts = view.verdicts(self)
        verdict = verdicts.get(code)
        if verdict is None:
            if len(verdicts) >= _MEMO:
                verdicts.clear()
            value = view.value(self.column, row)
            verdict = verdicts[code] = self.test(raw_values(value) if self.column == RAW else value)
        return verdict

    def select(self, view: _View, rows: _Rows) -> _Rows:
        _, first, inverse = np.unique(view.codes(self.column)[rows], return_index=True, return_inverse=True)
        verdicts = np.array([self.holds(view, row) for row in rows[first].tolist()], dtype=bool)
        kept: _Rows = rows[verdicts[inverse]]
        return kept


class _All(_Node):
    def __init__(self, parts: list[_Node]) -> None:
        self.parts = parts

    def holds(self, view: _View, row: int) -> bool:
        return all(part.holds(view, row) for part in self.parts)

    def select(self, view: _View, rows: _Rows) -> _Rows:
        for part in self.parts:
            if not len(rows):
                break
            rows = part.select(view, rows)
        return rows


class _Any(_Node):
    def __init__(self, parts: list[_Node]) -> None:
        self.parts = parts

    def holds(self, view: _View, row: int) -> bool:
        return any(part.holds(view, row) for part in self.parts)

    def select(self, view: _View, rows: _Rows) -> _Rows:
        selected = np.concatenate([part.select(view, rows) for part in self.parts])
        return distinct(selected)


class _Not(_Node):
    def __init__(self, part: _Node) -> None:
        self.part = part

    def holds(self, view: _View, row: int) -> bool:
        return not self.part.holds(view, row)

    def select(self, view: _View, rows: _Rows) -> _Rows:
        return np.setdiff1d(rows, self.part.select(view, rows), assume_unique=True)


class _Compare(_Node):
    """Two columns of one row against each other; what is *constant* in the kind is in no column."""

    def __init__(self, operator: str, left: str, rights: list[str], constant: Mapping[str, Value]) -> None:
        self.operator = operator.removeprefix("field ")
        self.left = left
        self.rights = rights
        self.constant = constant

    def holds(self, view: _View, row: int) -> bool:
        left = self._value(view, self.left, row)
        return any(compare_fields(self.operator, left, self._value(view, right, row)) for right in self.rights)

    def _value(self, view: _View, name: str, row: int) -> Value | None:
        return self.constant[name] if name in self.constant else view.value(name, row)

    def select(self, view: _View, rows: _Rows) -> _Rows:
        kept: _Rows = rows[np.array([self.holds(view, row) for row in rows.tolist()], dtype=bool)]
        return kept


class _Always(_Node):
    def holds(self, view: _View, row: int) -> bool:  # noqa: ARG002
        return True

    def select(self, view: _View, rows: _Rows) -> _Rows:  # noqa: ARG002
        return rows


def _build(condition: Bound, constant: Mapping[str, Value]) -> _Node:
    """Return the tree of a bound condition; parts that look at one column only become one leaf.

    *constant* is what the kind has that is in no column.
    """
    match condition:
        case bool():
            return _Always()
        case ["is", name, operator, arguments] if operator.startswith("field "):
            return _Compare(operator, name, arguments, constant)
        case ["is", name, operator, arguments]:
            return _Leaf(name, partial(predicate, operator, arguments))
        case ["not", inner]:
            node = _build(inner, constant)
            return _Leaf(node.column, partial(_negate, node.make)) if isinstance(node, _Leaf) else _Not(node)
    way, parts = condition
    nodes = _join_leaves(way, [_build(part, constant) for part in parts])
    return nodes[0] if len(nodes) == 1 else _All(nodes) if way == "and" else _Any(nodes)


def _join_leaves(way: str, nodes: list[_Node]) -> list[_Node]:
    """Join leaves over the same column into one; leaves come first, as they are cheap."""
    makers: dict[str, list[Callable[[], Predicate]]] = defaultdict(list)
    for node in nodes:
        if isinstance(node, _Leaf):
            makers[node.column].append(node.make)
    leaves = [
        _Leaf(column, same[0] if len(same) == 1 else partial(_combine, way, same)) for column, same in makers.items()
    ]
    return [*leaves, *(node for node in nodes if not isinstance(node, _Leaf))]


def _negate(make: Callable[[], Predicate]) -> Predicate:
    test = make()
    return lambda value: not test(value)


def _combine(way: str, makers: list[Callable[[], Predicate]]) -> Predicate:
    every, tests = (all if way == "and" else any), [make() for make in makers]
    return lambda value: every(test(value) for test in tests)


# --- the index of required literals -----------------------------------------------------------------------------------


_LITERALS = frozenset(["equals", "contains", "startswith", "endswith"])

_Clause: TypeAlias = list[Expression]
_Cost: TypeAlias = Callable[[_Clause], float]


def clauses(condition: Bound, cost: _Cost) -> list[_Clause]:
    """Return lists of leaves of which each must have one that holds, wherever the condition holds."""
    if isinstance(condition, bool) or condition[0] == "not":
        return []
    if condition[0] == "is":
        return [] if condition[2] == "exists" or condition[2].startswith("field ") else [[condition]]
    options = [clauses(part, cost) for part in condition[1]]
    if condition[0] == "and":
        return list(chain.from_iterable(options))
    if not all(options):
        return []
    return [[leaf for option in options for leaf in (option[0] if len(option) == 1 else min(option, key=cost))]]


def literal(operator: str, argument: Any) -> str:
    """Return the text that must be in a value for a test to hold, in lower case; empty if there is none."""
    way = operator.removeprefix("cased ")
    if way in _LITERALS:
        found = str(argument).lower()
    elif way == "like":
        found = max((part.lower() for part in argument if isinstance(part, str)), key=len, default="")
    else:
        found = ""
    # the lower case of a letter may depend on its neighbours, so a cased test has a literal in ASCII only
    return found if way == operator or found.isascii() else ""


class _Sought(NamedTuple):
    """The literals of a leaf, one an argument, and a guess how often it holds where its rule does not.

    Short literals do, and an argument without a literal costs a call for each value.
    """

    literals: list[str]
    cost: float


def _sought(operator: str, arguments: list[Any]) -> _Sought:
    literals = [literal(operator, argument) for argument in arguments]
    return _Sought(literals, sum(20.0 * 0.7 ** len(each) if each else 30.0 for each in literals))


class _Gate:
    """Which raw texts may hold one of a few ASCII literals, also in JSON's spelling: many texts in one look.

    Bytes are compared without the bit that tells upper from lower case, which lets through a little too much. Texts
    that may spell out an ASCII letter in another way (JSON's escapes, the Kelvin sign, the dotted I) pass as well.
    """

    TOGETHER = 32
    """Texts a look: what they amount to stays in the processor's cache."""
    _OTHERWISE = (b"\\u00", b"\\/", "\u212a".encode(), "\u0130".encode())

    def __init__(self, literals: Iterable[str]) -> None:
        forms = {form for text in literals for form in (text.encode(), orjson.dumps(text)[1:-1].lower())}
        otherwise = [form for form in self._OTHERWISE if form != b"\\/" or any(b"/" in text for text in forms)]
        used = {byte | 0x20 for form in (*forms, *otherwise) for byte in form}
        self._separator = next(bytes([code]) for code in range(0x20) if code | 0x20 not in used)
        # two automata, because long literals are sought seven times as fast without the short forms among them
        self._searches = [self._searcher(forms), self._searcher(otherwise)]

    def _searcher(self, forms: Iterable[bytes]) -> Callable[[memoryview], list[tuple[int, int, int]]]:
        patterns = {self._fold(form).tobytes() for form in forms}
        found = ahocorasick_rs.BytesAhoCorasick(patterns, ahocorasick_rs.MatchKind.LeftmostFirst)
        return cast(Callable[[memoryview], list[tuple[int, int, int]]], found.find_matches_as_indexes)

    @staticmethod
    def _fold(data: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(data, np.uint8) | np.uint8(0x20)

    def __call__(self, codes: list[int], values: Sequence[bytes | Value]) -> list[int]:
        parts: list[Any] = [values[code] for code in codes]
        if set(map(type, parts)) != {bytes}:
            parts = [
                one if isinstance(one, bytes) else "\n".join(texts(one)).encode("utf-8", "replace") for one in parts
            ]
        data = self._fold(self._separator.join(parts)).data
        hits = [start for search in self._searches for _, start, _ in search(data)]
        if not hits:
            return []
        starts = np.cumsum([0, *(len(part) + 1 for part in parts)])
        places = np.searchsorted(starts, hits, side="right") - 1
        return [codes[place] for place in distinct(places).tolist()]


class _Seek(NamedTuple):
    """A rule is worth looking at for values that pass a test with one of the arguments; literals as in `_Sought`."""

    operator: str
    arguments: list[Any]
    literals: list[str]
    rule: int


class _Interested(NamedTuple):
    """The rules that look for one literal, by where it must stand."""

    anywhere: list[int]
    at_begin: list[int]
    at_end: list[int]


_PLACES = {"startswith": 1, "endswith": 2}
"""Operator -> which of `_Interested` it is; others look anywhere."""


class _Index:
    """Which rules a value of one column makes worth looking at; made ready for the first batch with that column."""

    def __init__(self, column: str, seeks: list[_Seek]) -> None:
        self.column = column
        self.atoms = sum(len(seek.arguments) for seek in seeks)
        self._seeks = seeks
        self._equal: dict[str, list[int]] = defaultdict(list)
        self._within: dict[str, _Interested] = defaultdict(lambda: _Interested([], [], []))
        self._tests: dict[tuple[str, str], tuple[Predicate, list[int]]] = {}
        self._automaton: ahocorasick_rs.AhoCorasick | None = None
        self._gate: _Gate | None = None
        self._found: list[_Interested] = []
        self._groups: list[tuple[int, ...]] = [()]
        self._numbers: dict[tuple[int, ...], int] = {(): 0}
        self._listed = 0
        self._known: WeakKeyDictionary[Dictionary, _Codes] = WeakKeyDictionary()

    def _add(self, operator: str, arguments: list[Any], literals: list[str], rule: int) -> None:
        """Have *rule* looked at for values that pass the test with one of *arguments*."""
        way = operator.removeprefix("cased ")
        for argument, sought in zip(arguments, literals, strict=True):
            if way == "equals" and self.column != RAW:
                self._equal[sought].append(rule)
            elif sought:
                self._within[sought][_PLACES.get(way, 0)].append(rule)
            else:
                key = operator, repr(argument)
                if key not in self._tests:
                    self._tests[key] = predicate(operator, [argument]), []
                self._tests[key][1].append(rule)

    def groups(self, view: _View) -> tuple[_Codes, list[tuple[int, ...]]]:
        """Return for each row the number of its group of rules (0: none), and the groups."""
        column = view.column(self.column)
        if column is None:
            return np.zeros(len(view), np.int32), self._groups
        for seek in self._seeks:
            self._add(*seek)
        self._seeks = []
        if self._listed > _MOST_LISTED:
            self._groups, self._numbers, self._listed = [()], {(): 0}, 0
            self._known.clear()
        codes = view.codes(self.column)
        if isinstance(column.dictionary, Originals):  # no code comes again
            numbers = np.zeros(len(view), np.int32)
            for code in self._worth_a_look(codes[codes >= 0].tolist(), column.dictionary):
                numbers[codes == code] = self._number(column.dictionary.values[code])
            return numbers, self._groups
        known = self._table(column.dictionary)
        numbers = known[codes]
        unknown = distinct(codes[numbers < 0])
        if len(unknown):
            values = column.dictionary.values
            known[unknown] = 0
            for code in self._worth_a_look(unknown.tolist(), column.dictionary):
                known[code] = self._number(values[code])
            numbers = known[codes]
        return numbers, self._groups

    def _worth_a_look(self, codes: list[int], dictionary: Dictionary) -> list[int]:
        """Return the codes whose values may pass a test: for raw text, what could hold a literal before decoding it.

        Looking for the first of few literals is several times faster than looking for all of them.
        """
        if self.column != RAW or self._tests or not all(map(str.isascii, self._within)):
            return codes
        if self._gate is None:
            self._gate = _Gate(self._within)
        values = dictionary.records if isinstance(dictionary, Originals) else dictionary.values
        slices = (codes[start : start + _Gate.TOGETHER] for start in range(0, len(codes), _Gate.TOGETHER))
        return [code for each in slices for code in self._gate(each, values)]

    def _table(self, dictionary: Dictionary) -> _Codes:
        """Return group numbers by code, -1 where unknown; the last place is for code -1, the absent value."""
        table = self._known.get(dictionary)
        size = len(dictionary.values)
        if table is None or len(table) <= size:
            grown = np.full(max(64, 2 * size) + 1, -1, np.int32)
            grown[-1] = 0
            if table is not None:
                grown[: len(table) - 1] = table[:-1]
            table = self._known[dictionary] = grown
        return table

    def _number(self, value: Value) -> int:
        rules: set[int] = set()
        seen = raw_values(value) if self.column == RAW else value
        for text in texts(seen):
            self._search(_searchable(text), rules)
        for test, interested in self._tests.values():
            if test(seen):
                rules.update(interested)
        if not rules:
            return 0
        group = tuple(sorted(rules))
        number = self._numbers.get(group)
        if number is None:
            number = self._numbers[group] = len(self._groups)
            self._groups.append(group)
            self._listed += len(group)
        return number

    def _search(self, text: str, rules: set[int]) -> None:
        found = self._equal.get(text)
        if found:
            rules.update(found)
        if not self._within:
            return
        if self._automaton is None:
            self._automaton = ahocorasick_rs.AhoCorasick(list(self._within))
            self._found = list(self._within.values())
        for pattern, start, end in self._automaton.find_matches_as_indexes(text, overlapping=True):
            anywhere, at_begin, at_end = self._found[pattern]
            rules.update(anywhere)
            if at_begin and not start:
                rules.update(at_begin)
            if at_end and end == len(text):
                rules.update(at_end)


_Indexes: TypeAlias = WeakValueDictionary[tuple[Any, ...], _Index]
"""Indexes by what they seek, as long as a kind has them."""


# --- the plan of a kind -----------------------------------------------------------------------------------------------


class KindPlan:
    """The rules that can match events of one kind, or of kinds that are the same to all rules, ready to run."""

    def __init__(
        self, kind: Kind, sources: Iterable[_Source], tests: Tests, sought: _PerLeaf[_Sought], indexes: _Indexes
    ) -> None:
        self._kind = kind
        self._sources = sources
        self._tests = tests
        self._folds: Folds = {}
        bound = self._bound
        self.rules = len(bound)
        self.fields = frozenset(
            _RAW_COLUMN if name == RAW else name for one in bound.values() for name in columns(one)
        ) - frozenset(kind.constant)
        self.numbers = tuple(bound)
        self._trees: dict[int, _Node] = {}
        self._constant = kind.constant
        self._sought = sought
        self._indexes = indexes

    @cached_property
    def _bound(self) -> dict[int, Bound]:
        folds = self._folds = {}
        return {number: one for source in self._sources for number, one in source.bind(self._kind, self._tests, folds)}

    def lighten(self) -> None:
        """Give up the bound conditions, which are most of it; they are made again if events come."""
        self.__dict__.pop("_bound", None)

    def serves(self, kind: Kind) -> bool:
        """Say whether rules see no difference between *kind* and the one that this was made for."""
        own = self._kind
        if (kind.mapping, kind.prefix, kind.renames) != (own.mapping, own.prefix, own.renames):
            return False
        return all(self._is_alike(fold, _known(kind, name)) for name, fold in self._folds.items())

    def _is_alike(self, fold: _Fold, value: Any) -> bool:
        if fold.value is _VARIES or value is _VARIES:
            return fold.value is value
        return fold.value == value or all(
            operator and self._tests(operator, arguments)(value) is verdict
            for operator, arguments, verdict in fold.said
        )

    @cached_property
    def _looked_up(self) -> tuple[list[int], dict[str, _Index]]:
        """The rules that need no literal, and the indexes of the others' literals; made for the first event."""
        sought, scans = self._sought, []
        seeks: dict[str, list[_Seek]] = defaultdict(list)

        def cost(clause: _Clause) -> float:
            return sum(sought(leaf[2], leaf[3]).cost for leaf in clause)

        for number, condition in self._bound.items():
            options = clauses(condition, cost)
            if not options:
                scans.append(number)
                continue
            for _, column, operator, arguments in options[0] if len(options) == 1 else min(options, key=cost):
                seeks[column].append(_Seek(operator, arguments, sought(operator, arguments).literals, number))
        return scans, {column: self._index(column, each) for column, each in seeks.items()}

    def _index(self, column: str, seeks: list[_Seek]) -> _Index:
        """Return the index for *seeks*: the one that another kind has, if it seeks the same."""
        key = column, *((id(seek.arguments), seek.rule) for seek in seeks)
        found = self._indexes.get(key)
        if found is None:
            found = self._indexes[key] = _Index(column, seeks)
        return found

    @property
    def atoms(self) -> int:
        return sum(index.atoms for index in self._looked_up[1].values())

    @property
    def scanned(self) -> int:
        """Rules that need no literal, evaluated for every row."""
        return len(self._looked_up[0])

    def match(self, batch: Batch, rows: _Rows) -> Iterator[tuple[int, int]]:
        """Yield (row of the batch, rule number) for each match."""
        view = _View(batch, rows)
        for rule, candidates in self._candidates(view):
            tree = self._tree(rule)
            if len(candidates) > _FEW:
                found = tree.select(view, candidates).tolist()
            else:
                found = [row for row in candidates.tolist() if tree.holds(view, row)]
            for row in found:
                yield int(rows[row]), rule

    def _candidates(self, view: _View) -> Iterator[tuple[int, _Rows]]:
        """Yield each rule that may match with the rows where it may."""
        every = np.arange(len(view))
        scans, indexes = self._looked_up
        for rule in scans:
            yield rule, every
        found: dict[int, list[_Rows]] = defaultdict(list)
        for index in indexes.values():
            numbers, groups = index.groups(view)
            rows = np.flatnonzero(numbers)
            numbers = numbers[rows]
            for number in distinct(numbers).tolist():
                here = rows[numbers == number]
                for rule in groups[number]:
                    found[rule].append(here)
        for rule, parts in found.items():
            yield rule, parts[0] if len(parts) == 1 else distinct(np.concatenate(parts))

    def _tree(self, rule: int) -> _Node:
        tree = self._trees.get(rule)
        if tree is None:
            tree = self._trees[rule] = _build(self._bound[rule], self._constant)
        return tree


def _sorted(parts: list[_Rows]) -> _Rows:
    return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))


class Engine:
    """All rules, with a plan for each kind of event that has been met."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._plans: dict[Kind, KindPlan] = {}
        self._of_kind: WeakValueDictionary[Kind, KindPlan] = WeakValueDictionary()
        self._made: deque[KindPlan] = deque(maxlen=_MOST_MADE)
        """Plans that kinds may share, the newest first."""
        self._heavy: deque[KindPlan] = deque()
        """Those that hold their bound conditions, the oldest first."""
        self._weight = 0
        self._tests = _PerLeaf(predicate)
        self._sought = _PerLeaf(_sought)
        self._indexes: _Indexes = WeakValueDictionary()
        by_source: dict[Any, list[tuple[int, Rule]]] = defaultdict(list)
        for number, rule in enumerate(self.rules):
            by_source[rule.logsource].append((number, rule))
        self._sources = [_Source(*pair) for pair in by_source.items()]

    def fields(self, kind: Kind) -> frozenset[str]:
        """Return the columns that the rules for *kind* read."""
        return self._of(kind).fields

    def rules_of(self, kind: Kind) -> list[Rule]:
        """Return the rules that events of *kind* may match."""
        return [self.rules[number] for number in self._of(kind).numbers]

    def _of(self, kind: Kind) -> KindPlan:
        """Return the plan of *kind*, or of a kind that rules cannot tell from it, or a new one."""
        found = self._of_kind.get(kind) or next((plan for plan in self._made if plan.serves(kind)), None)
        if found is None:
            found = self._new(kind)
            self._made.appendleft(found)
            self._heavy.append(found)
            self._weight += found.rules
            while self._weight > _MOST_BOUND:
                lightened = self._heavy.popleft()
                lightened.lighten()
                self._weight -= lightened.rules
        self._of_kind[kind] = found
        return found

    def _new(self, kind: Kind) -> KindPlan:
        return KindPlan(kind, self._sources, self._tests, self._sought, self._indexes)

    def plan(self, kind: Kind) -> KindPlan:
        plan = self._plans.pop(kind, None)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._of(kind)
        self._plans[kind] = plan
        return plan

    @property
    def plans(self) -> Mapping[Kind, KindPlan]:
        return self._plans

    def match(self, batch: Batch) -> Iterator[tuple[int, Rule]]:
        """Yield (row, rule) for each match, in the order of rows and of rules."""
        rows_by_plan: dict[KindPlan, list[_Rows]] = defaultdict(list)
        for kind, rows in batch.rows_by_kind():
            rows_by_plan[self.plan(kind)].append(rows)
        found = [pair for plan, parts in rows_by_plan.items() for pair in plan.match(batch, _sorted(parts))]
        for row, rule in sorted(found):
            yield row, self.rules[rule]
