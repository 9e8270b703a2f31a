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
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, get_args

import orjson

from agent.errors import TrustError
from agent.model import Level, digest
from rules.sigma.correlation import Correlation, CorrelationError, Draft, Referred, draft, resolve
from rules.sigma.documents import Document, content_digest, parse_documents, read_files
from rules.sigma.predicate import ANY, ONE, predicate

ENGINE = "3"
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
    name: str = ""
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

    Of *correlations* the inner ones come before those that refer to them. *content* names the exact files that all were
    made of.
    """

    rules: list[Rule] = field(default_factory=list)
    correlations: list[Correlation] = field(default_factory=list)
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
        correlations = [Correlation(**{name: _tupled(name, value) for name, value in row.items()})
                        for row in data["correlations"]]  # fmt: skip
        return Collection(rules, correlations, data["refused"], data["remarks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(file: Path, collection: Collection) -> None:
    rows = [[getattr(rule, name) for name in Rule.__slots__] for rule in collection.rules]
    joined = [asdict(one) for one in collection.correlations]
    body = orjson.dumps(
        {"rules": rows, "correlations": joined, "refused": collection.refused, "remarks": collection.remarks}
    )
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


def _tupled(name: str, value: Any) -> Any:
    """Return *value* as a correlation holds it: JSON has lists for tuples."""
    if name == "expression" or not isinstance(value, list):
        return value
    return tuple(_tupled(name, each) for each in value)


def compile_files(files: Iterable[tuple[str, bytes]]) -> Collection:
    """Return the collection that *files* (name, content) hold."""
    collection = Collection()
    places: dict[str, str] = {}
    correlating: list[Document] = []
    for name, content in files:
        for document in parse_documents(name, content, collection.refused):
            if "correlation" in document.data:
                correlating.append(document)
                continue
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
    _correlate(correlating, places, collection)
    return collection


def _correlate(documents: Iterable[Document], places: dict[str, str], collection: Collection) -> None:
    """Add the correlations of *documents*, each after those that it refers to."""
    referred = Referred()
    for rule in collection.rules:
        referred.add(rule.id, rule.name)
    waiting: dict[str, tuple[Document, dict[str, Any], Draft]] = {}
    for document in documents:
        try:
            about, written = _written(document)
            if about["id"] in places:
                raise _Refused(f"id {about['id']} is taken by {places[about['id']]}", "id:")
        except (CorrelationError, _Refused) as refusal:
            collection.refused.append(f"{document.place(refusal.needle)}: {refusal}")
            continue
        if "id" not in document.data:
            collection.remarks.append(f"{about['place']}: rule without id, named {about['id']} after its content")
        places[about["id"]] = about["place"]
        waiting[about["id"]] = document, about, written
    while waiting:
        names = {about["name"] for _, about, _ in waiting.values()} - {""}
        ready = [id for id, (_, _, written) in waiting.items() if not _refers(written, names | waiting.keys())]
        for id in ready or list(waiting):
            document, about, written = waiting.pop(id)
            try:
                if not ready:
                    raise CorrelationError("correlations that refer to each other in a circle", "rules:")
                rules, fields, expression, bounds = resolve(written, referred)
            except CorrelationError as refusal:
                collection.refused.append(f"{document.place(refusal.needle)}: {refusal}")
                continue
            one = Correlation(
                **about,
                type=written.type,
                rules=rules,
                group_by=written.group_by,
                fields=fields,
                timespan=written.timespan,
                bounds=bounds,
                expression=expression,
                values=written.values,
                percentile=written.percentile,
                generate=written.generate,
            )
            collection.correlations.append(one)
            referred.add(id, about["name"], frozenset(written.group_by))


def _refers(written: Draft, names: Iterable[str]) -> bool:
    """Say whether a correlation refers to one of *names*."""
    return bool(set(written.references or re.findall(r"\w+", written.text)) & set(names))


def _written(document: Document) -> tuple[dict[str, Any], Draft]:
    """Return what a correlation document says of itself, and what it joins."""
    from sigma.exceptions import SigmaError
    from sigma.rule.base import SigmaRuleBase

    try:
        said, errors = SigmaRuleBase.from_dict_common_params(document.data)
        if errors:
            raise errors[0]
        about = _about(document, SimpleNamespace(**said))
    except SigmaError as error:
        raise _Refused(_first_line(error), _needle(error)) from error
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise _Refused(f"not a valid Sigma correlation: {type(error).__name__}: {_first_line(error)}") from error
    return about, draft(document.data["correlation"])


def _about(document: Document, said: Any) -> dict[str, Any]:
    """Return what a document says of itself, a rule or a correlation."""
    data = orjson.dumps(document.data, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    content = digest(data.decode())
    return {
        "id": str(said.id or content),
        "title": said.title or "",
        "level": _level(said.level),
        "place": document.place(),
        "digest": content,
        "name": said.name or "",
        "description": said.description or "",
        "author": said.author or "",
        "license": said.license or "",
        "status": str(said.status).lower() if said.status else "",
        "tags": tuple(str(tag) for tag in said.tags or ()),
        "references": tuple(map(str, said.references or ())),
        "false_positives": tuple(map(str, said.falsepositives or ())),
    }


class _Refused(Exception):
    """Why a rule cannot run, and the text to look for to find the line."""

    def __init__(self, reason: str, needle: str = "") -> None:
        super().__init__(reason)
        self.needle = needle


def _parse_rule(document: Document) -> Rule:
    from sigma.exceptions import SigmaError
    from sigma.rule import SigmaRule

    data = document.data
    if "filter" in data:
        raise _Refused("filter documents are not supported yet", "filter:")
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
    return Rule(
        **_about(document, rule),
        product=_lower(rule.logsource.product),
        category=_lower(rule.logsource.category),
        service=_lower(rule.logsource.service),
        condition=condition,
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
