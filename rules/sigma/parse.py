"""Sigma documents to rules as plain data, with pySigma as the reader of the language.

A condition is data too, so that a compiled collection can be kept as JSON and read back without pySigma::

    ["is", field, operator, [argument, ...]]      one of the arguments holds for the field (None: keywords)
    ["and", [...]]   ["or", [...]]   ["not", x]

`rules.sigma.predicate` gives the operators their meaning. A rule that cannot run is refused as ``file:line: reason``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, get_args

import orjson

from agent.errors import TrustError
from agent.model import Level, digest
from rules.sigma.documents import Document, content_digest, parse_documents, read_files
from rules.sigma.predicate import ANY, ONE, predicate

ENGINE = "2"
"""Raise it whenever the compiled form changes: it is part of the cache's key, with the version of pySigma."""

Expression: TypeAlias = list[Any]

_COMPARE = {"LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_FLAGS = {"IGNORECASE": "i", "MULTILINE": "m", "DOTALL": "s"}
_REFERENCE = {
    (False, False): "field equals",
    (True, False): "field startswith",
    (False, True): "field endswith",
    (True, True): "field contains",
}

LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Rule:
    """A Sigma rule: what it says of itself, the log source it is for and its condition."""

    id: str
    title: str
    level: Level
    place: str
    digest: str
    product: str | None
    category: str | None
    service: str | None
    condition: Expression
    description: str = ""
    author: str = ""
    license: str = ""
    status: str = ""
    tags: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    false_positives: tuple[str, ...] = ()

    @property
    def logsource(self) -> tuple[str | None, str | None, str | None]:
        return self.product, self.category, self.service


@dataclass
class Collection:
    """The rules of one place, what was refused as ``file:line: reason``, and remarks that refuse nothing.

    *content* names the exact files that they were made of.
    """

    rules: list[Rule] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    content: str = ""


def load(path: Path, folder: Path | None = None, expected: str = "") -> Collection:
    """Return the collection at *path*, compiled anew only if its content is not in *folder* yet.

    TrustError if *expected*, a content digest, is given and the files are others. They are read once.
    """
    files = read_files(path)
    content = content_digest(files)
    if expected not in ("", content):
        raise TrustError(
            f"{path}: expected the rules {expected}, found {content}; put the files back, or sign a configuration that"
            " names the new digest"
        )
    cached = folder / f"sigma-{digest(ENGINE, version('pysigma'), content)}.json" if folder else None
    collection = _read_cache(cached) if cached else None
    if collection is None:
        collection = compile_files(files)
        if cached:
            _write_cache(cached, collection)
    collection.content = content
    return collection


def _read_cache(file: Path) -> Collection | None:
    """Return the cached collection; None, so that it is built again, if the file is absent or not as it was written."""
    try:
        check, _, body = file.read_bytes().partition(b"\n")
        if check.decode("ascii") != digest(body.hex()):
            return None
        data = orjson.loads(body)
        rules = [Rule(*row[:-3], *map(tuple, row[-3:])) for row in data["rules"]]
        return Collection(rules, data["refused"], data["remarks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(file: Path, collection: Collection) -> None:
    rows = [[getattr(rule, name) for name in Rule.__slots__] for rule in collection.rules]
    body = orjson.dumps({"rules": rows, "refused": collection.refused, "remarks": collection.remarks})
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{secrets.token_hex(8)}")  # nobody can have laid a link there
    try:
        with fresh.open("xb") as stream:
            stream.write(digest(body.hex()).encode() + b"\n" + body)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def compile_files(files: Iterable[tuple[str, bytes]]) -> Collection:
    """Return the collection that *files* (name, content) hold."""
    collection = Collection()
    places: dict[str, str] = {}
    for name, content in files:
        for document in parse_documents(name, content, collection.refused):
            try:
                rule = _parse_rule(document)
            except _Refused as refusal:
                collection.refused.append(f"{document.place(refusal.needle)}: {refusal}")
                continue
            if rule.id in places:
                collection.refused.append(f"{document.place('id:')}: id {rule.id} is taken by {places[rule.id]}")
                continue
            if "id" not in document.data:
                collection.remarks.append(f"{rule.place}: rule without id, named {rule.id} after its content")
            places[rule.id] = rule.place
            collection.rules.append(rule)
    return collection


class _Refused(Exception):
    """Why a rule cannot run, and the text to look for to find the line."""

    def __init__(self, reason: str, needle: str = "") -> None:
        super().__init__(reason)
        self.needle = needle


def _parse_rule(document: Document) -> Rule:
    from sigma.exceptions import SigmaError
    from sigma.rule import SigmaRule

    data = document.data
    for key, what in (("correlation", "correlation rules are"), ("filter", "filter documents are")):
        if key in data:
            raise _Refused(f"{what} not supported yet", f"{key}:")
    if "detection" not in data:
        raise _Refused("not a Sigma rule: no detection")
    try:
        rule = SigmaRule.from_dict(data)
        condition = _any([_translate(each.parsed) for each in rule.detection.parsed_condition])
    except SigmaError as error:
        raise _Refused(_first_line(error), _needle(error)) from error
    except _Refused:
        raise
    except (RecursionError, AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise _Refused(f"not a valid Sigma rule: {type(error).__name__}: {_first_line(error)}") from error
    content = digest(orjson.dumps(data, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS).decode())
    return Rule(
        id=str(rule.id or content),
        title=rule.title,
        level=_level(rule.level),
        place=document.place(),
        digest=content,
        product=_lower(rule.logsource.product),
        category=_lower(rule.logsource.category),
        service=_lower(rule.logsource.service),
        condition=condition,
        description=rule.description or "",
        author=rule.author or "",
        license=rule.license or "",
        status=str(rule.status).lower() if rule.status else "",
        tags=tuple(str(tag) for tag in rule.tags),
        references=tuple(map(str, rule.references)),
        false_positives=tuple(map(str, rule.falsepositives)),
    )


def _level(level: Any) -> Level:
    """Return a rule's level; one that names none is medium."""
    name = str(level).lower() if level else "medium"
    return next((known for known in LEVELS if known == name), "medium")


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()


def _plain(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"unexpected {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _needle(error: Exception) -> str:
    """Return what the message quotes first, which is the name or the value that is wrong."""
    quoted = re.search(r"'([^']+)'", str(error))
    return quoted.group(1) if quoted else ""


# --- the condition ----------------------------------------------------------------------------------------------------


def _translate(node: Any) -> Expression:
    from sigma import conditions

    match node:
        case conditions.ConditionAND():
            return _all([_translate(arg) for arg in node.args])
        case conditions.ConditionOR():
            return _any([_translate(arg) for arg in node.args])
        case conditions.ConditionNOT():
            return ["not", _translate(node.args[0])]
        case conditions.ConditionFieldEqualsValueExpression():
            return _any(list(_leaves(node.field, node.value)))
        case conditions.ConditionValueExpression():
            return _any(list(_leaves(None, node.value)))
    raise _Refused("the condition selects nothing", "condition:")


def _all(parts: list[Expression]) -> Expression:
    return parts[0] if len(parts) == 1 else ["and", parts]


def _any(parts: list[Expression]) -> Expression:
    """Join *parts*; leaves with the same field and operator become one, which is what makes a list of values cheap."""
    merged: list[Expression] = []
    seen: dict[tuple[str | None, str], Expression] = {}
    for part in parts:
        for each in part[1] if part[0] == "or" else [part]:
            if each[0] == "is" and (each[1], each[2]) in seen:
                seen[each[1], each[2]][3].extend(each[3])
            else:
                merged.append(each)
                if each[0] == "is":
                    seen[each[1], each[2]] = each
    return merged[0] if len(merged) == 1 else ["or", merged]


def _leaves(name: str | None, value: Any) -> Iterator[Expression]:
    from sigma import types

    if isinstance(value, types.SigmaExpansion):
        for each in value.values:
            yield from _leaves(name, each)
        return
    operator, argument = _test(value, keyword=name is None)
    try:
        if not operator.startswith("field "):
            predicate(operator, [argument])
    except ValueError as error:
        raise _Refused(str(error), str(argument)) from error
    yield ["is", name, operator, [argument]]


def _test(value: Any, keyword: bool) -> tuple[str, Any]:
    """Return the operator and its argument for a pySigma value."""
    from sigma import types

    if isinstance(value, types.SigmaString):
        operator, argument = _string(value, keyword)
        cased = isinstance(value, types.SigmaCasedString) and operator != "exists"
        return (f"cased {operator}" if cased else operator), argument
    for kind, translate in _translators(keyword):
        if isinstance(value, kind):
            return translate(value)
    raise _Refused(f"values of type {type(value).__name__} are not supported")


@cache
def _translators(keyword: bool) -> tuple[tuple[type, Callable[[Any], tuple[str, Any]]], ...]:
    from sigma import types

    plain = "contains" if keyword else "equals"
    return (
        (types.SigmaTimestampPart, lambda value: (value.timestamp_part.name.lower(), value.number)),
        (types.SigmaNumber, lambda value: (plain, str(value.number))),
        (types.SigmaBool, lambda value: (plain, str(value.boolean).lower())),
        (types.SigmaNull, lambda value: ("exists", False)),  # noqa: ARG005
        (types.SigmaExists, lambda value: ("exists", value.exists)),
        (types.SigmaRegularExpression, _regular_expression),
        (types.SigmaCIDRExpression, lambda value: ("in network", str(value.cidr))),
        (types.SigmaCompareExpression, lambda value: (_COMPARE[value.op.name], value.number.number)),
        (types.SigmaFieldReference, lambda value: (_REFERENCE[value.starts_with, value.ends_with], value.field)),
    )


def _regular_expression(value: Any) -> tuple[str, Any]:
    _refuse_placeholder(value.regexp)
    flags = "".join(sorted(_FLAGS[flag.name] for flag in value.flags))
    pattern = value.regexp.to_plain(regex=True)
    return "matches", f"(?{flags}){pattern}" if flags else pattern


def _refuse_placeholder(value: Any) -> None:
    from sigma.types import Placeholder

    for part in value.s:
        if isinstance(part, Placeholder):
            raise _Refused(f"placeholder %{part.name}% has no values here", f"%{part.name}%")


def _string(value: Any, keyword: bool) -> tuple[str, Any]:
    from sigma.types import SpecialChars

    _refuse_placeholder(value)
    parts: list[str | int] = []
    found: tuple[str, Any]
    for part in value.s:
        code = part if isinstance(part, str) else ANY if part is SpecialChars.WILDCARD_MULTI else ONE
        if not (code == ANY and parts and parts[-1] == ANY):
            parts.append(code)
    if keyword:
        inner = _trim(parts)
        parts = [ANY, *inner, ANY] if inner else [ANY]
    match parts:
        case []:
            found = "equals", ""
        case [0]:
            found = "exists", True
        case [str(text)]:
            found = "equals", text
        case [0, str(text), 0]:
            found = "contains", text
        case [str(text), 0]:
            found = "startswith", text
        case [0, str(text)]:
            found = "endswith", text
        case _:
            found = "like", parts
    return found


def _trim(parts: list[str | int]) -> list[str | int]:
    start = 1 if parts and parts[0] == ANY else 0
    end = len(parts) - 1 if len(parts) > start and parts[-1] == ANY else len(parts)
    return parts[start:end]
