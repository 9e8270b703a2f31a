"""Sigma documents to rules as plain data, with pySigma as the reader of the language.

A condition is data too, so that a compiled collection can be kept as JSON and read back without pySigma::

    ["is", field, operator, [argument, ...]]      one of the arguments holds for the field (None: keywords)
    ["and", [...]]   ["or", [...]]   ["not", x]

`rules.sigma.predicate` gives the operators their meaning. A rule that cannot run is refused as
``file:line:column: reason``. A filter document is folded into the rules that it is
for: its condition must hold as well.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, get_args

import msgspec
import orjson

from agent.errors import TrustError
from agent.model import Level, digest
from rules.sigma.correlation import Correlation, CorrelationError, Draft, Referred, draft, resolve
from rules.sigma.documents import About, Document, content_digest, parse_documents, read_files, read_pipelines
from rules.sigma.predicate import ANY, ONE, predicate
from rules.sigma.setting import Setting, SettingError, is_setting

ENGINE = "6"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(About):
    """A Sigma rule: what it says of itself, the log source it is for and its condition."""

    product: str | None
    category: str | None
    service: str | None
    condition: Expression
    filters: tuple[str, ...] = ()
    """Where the filters stand that are part of the condition."""

    @property
    def logsource(self) -> tuple[str | None, str | None, str | None]:
        return self.product, self.category, self.service


@dataclass
class Collection:
    """The rules of one place, what was refused as ``file:line:column: reason``, and remarks that refuse nothing.

    Of *correlations* the inner ones come before those that refer to them. *filters* are the places of filters with how
    many rules each is part of. *content* names the exact files that all were made of.
    """

    rules: list[Rule] = field(default_factory=list)
    correlations: list[Correlation] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    filters: dict[str, int] = field(default_factory=dict)
    content: str = ""


def load(path: Path, folder: Path | None = None, expected: str = "", pipelines: Sequence[Path] = ()) -> Collection:
    """Return the collection at *path*, compiled anew only if its content is not in *folder* yet.

    The files *pipelines* are read as if they lay beside the rules. TrustError if *expected*, a content digest, is given
    and the files are others. They are read once.
    """
    files = read_files(path) + read_pipelines(pipelines)
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
        if check != _checksum(body):
            return None
        return msgspec.json.decode(body, type=Collection)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_cache(file: Path, collection: Collection) -> None:
    body = msgspec.json.encode(collection)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{secrets.token_hex(8)}")  # nobody can have laid a link there
    try:
        with fresh.open("xb") as stream:
            stream.write(_checksum(body) + b"\n" + body)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def compile_files(files: Sequence[tuple[str, bytes]]) -> Collection:
    """Return the collection that *files* (name, content) hold."""
    collection = Collection()
    setting = _setting(files, collection)
    places: dict[str, str] = {}
    correlating: list[Document] = []
    filters: list[_Filter] = []
    sources: dict[str, _Source] = {}
    for name, content in files:
        for document in parse_documents(name, content, collection.refused):
            if is_setting(document):
                continue
            if "correlation" in document.data:
                correlating.append(document)
                continue
            try:
                one = (_parse_filter if "filter" in document.data else _parse_rule)(document, setting)
            except _Refused as refusal:
                collection.refused.append(f"{document.spot(refusal.needle)}: {refusal}")
                continue
            if one.id in places:
                collection.refused.append(f"{document.spot('id:')}: id {one.id} is taken by {places[one.id]}")
                continue
            places[one.id] = one.place
            if isinstance(one, _Filter):
                filters.append(one)
                continue
            if "id" not in document.data:
                collection.remarks.append(f"{one.place}: rule without id, named {one.id} after its content")
            collection.rules.append(one)
            sources[one.id] = _source(document.data)
    _filter(filters, sources, collection)
    _correlate(correlating, places, collection)
    return collection


def _setting(files: Sequence[tuple[str, bytes]], collection: Collection) -> Setting:
    """Return what lies beside the rules; only files that may hold something of the kind are looked into."""
    setting = Setting()
    for name, content in files:
        if b"placeholders" not in content and b"transformations" not in content:
            continue
        for document in filter(is_setting, parse_documents(name, content, [])):
            try:
                collection.remarks += [f"{document.place()}: {remark}" for remark in setting.add(document)]
            except SettingError as refusal:
                collection.refused.append(f"{document.spot(refusal.needle)}: {refusal}")
    return setting


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
            collection.refused.append(f"{document.spot(refusal.needle)}: {refusal}")
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
                collection.refused.append(f"{document.spot(refusal.needle)}: {refusal}")
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


def _parse_rule(document: Document, setting: Setting) -> Rule:
    if "detection" not in document.data:
        raise _Refused("not a Sigma rule: no detection")
    rule, condition = _read(document.data, setting)
    about = _about(document, rule)
    if used := setting.used(document.data["detection"]):
        about["digest"] = digest(about["digest"], used)
    return Rule(
        **about,
        product=_lower(rule.logsource.product),
        category=_lower(rule.logsource.category),
        service=_lower(rule.logsource.service),
        condition=condition,
    )


def _read(data: dict[str, Any], setting: Setting) -> tuple[Any, Expression]:
    """Return pySigma's rule of a document and its condition."""
    from sigma.exceptions import SigmaError
    from sigma.rule import SigmaRule

    _know_all_modifiers()
    _check(data["detection"])
    try:
        rule = SigmaRule.from_dict(data)
        setting.apply(rule)
        return rule, _any([_translate(each.parsed, setting) for each in rule.detection.parsed_condition])
    except SigmaError as error:
        raise _Refused(_first_line(error), _needle(error)) from error
    except _Refused:
        raise
    except (RecursionError, AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise _Refused(f"not a valid Sigma rule: {type(error).__name__}: {_first_line(error)}") from error


@cache
def _know_all_modifiers() -> None:
    """Teach pySigma the name that the specification has for `wide`."""
    from sigma import modifiers

    modifiers.modifier_mapping.setdefault("utf16le", modifiers.SigmaWideModifier)


# --- filters ----------------------------------------------------------------------------------------------------------

_Source: TypeAlias = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter document: the *references* (ids or names; none: any rule) of the rules that it becomes a part of."""

    id: str
    place: str
    digest: str
    references: tuple[str, ...]
    source: _Source
    condition: Expression


def _parse_filter(document: Document, setting: Setting) -> _Filter:
    data = document.data
    body = data["filter"]
    if not isinstance(body, dict):
        raise _Refused("filter must be a mapping with rules, a selection and a condition", "filter:")
    rules = body.get("rules")
    if isinstance(rules, str):
        rules = [rules]
    if not isinstance(rules, list) or not rules or not all(isinstance(one, str) for one in rules):
        raise _Refused(
            "filter.rules: expected any, or the ids or names of rules", "rules:" if "rules" in body else "filter:"
        )
    if not isinstance(body.get("condition"), str):
        raise _Refused("filter.condition: expected one text", "condition:" if "condition" in body else "filter:")
    detection = {name: each for name, each in body.items() if name != "rules"}
    rule, condition = _read({**{k: v for k, v in data.items() if k != "filter"}, "detection": detection}, setting)
    about = _about(document, rule)
    return _Filter(
        id=about["id"],
        place=about["place"],
        digest=digest(about["digest"], setting.used(detection)),
        references=() if [one.lower() for one in rules] == ["any"] else tuple(rules),
        source=_source(data),
        condition=condition,
    )


def _source(data: dict[str, Any]) -> _Source:
    """Return the log source that a document names, before any pipeline."""
    written = data["logsource"]
    product, category, service = (written.get(part) for part in ("product", "category", "service"))
    return _lower(product), _lower(category), _lower(service)


def _filter(filters: Iterable[_Filter], sources: dict[str, _Source], collection: Collection) -> None:
    """Fold each of *filters* into the rules that it is for: those of its log source, if it names some only these."""
    by_name: dict[str, list[int]] = {}
    for number, rule in enumerate(collection.rules):
        for name in {rule.id, rule.name} - {""}:
            by_name.setdefault(name, []).append(number)
    for one in filters:
        wanted = [number for name in one.references for number in by_name.get(name, ())]
        fitting = [
            number
            for number in dict.fromkeys(wanted if one.references else range(len(collection.rules)))
            if all(
                own in (None, its) for own, its in zip(one.source, sources[collection.rules[number].id], strict=True)
            )
        ]
        for number in fitting:
            rule = collection.rules[number]
            collection.rules[number] = replace(
                rule,
                condition=["and", [rule.condition, one.condition]],
                digest=digest(rule.digest, one.digest),
                filters=(*rule.filters, one.place),
            )
        collection.filters[one.place] = len(fitting)
        for name in one.references:
            if name not in by_name:
                collection.remarks.append(f"{one.place}: filter for '{name}', which is no rule here that can run")
            elif not set(by_name[name]) & set(fitting):
                collection.remarks.append(f"{one.place}: filter for '{name}', which is of another log source")
        if not fitting and not one.references:
            collection.remarks.append(f"{one.place}: filter for any rule of a log source that no rule here has")
        if one.condition[0] != "not" and not _denies(one.condition):
            collection.remarks.append(
                f"{one.place}: filter without 'not': its rules match only what it selects; to leave that out, write"
                " 'condition: not selection'"
            )


def _denies(condition: Expression) -> bool:
    """Say whether some part of *condition* is negated."""
    return condition[0] == "not" or (condition[0] != "is" and any(map(_denies, condition[1])))


# --- what a rule may ask ----------------------------------------------------------------------------------------------

MOST_TESTS = 100_000
"""Values that the conditions of one rule may compare, each as often as a condition names it."""
_LONGEST_CONDITION = 20_000
_MOST_BRACKETS = 32
_REGEX_MAY = frozenset(["re", "i", "m", "s", "ignorecase", "multiline", "dotall", "neq", "all", "expand"])
_PARTS_OF_TIME = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day": (1, 31),
    "week": (1, 53),
    "month": (1, 12),
    "year": (1, 9999),
}


def _check(detection: Any) -> None:
    """Refuse what the specification excludes and pySigma takes, and what would grow without bounds."""
    if not isinstance(detection, dict):
        return
    weights = {str(name): _weight(each) for name, each in detection.items() if name not in ("condition", "timeframe")}
    written = detection.get("condition")
    total = 0
    for condition in written if isinstance(written, list) else [written]:
        text = str(condition)
        if len(text) > _LONGEST_CONDITION:
            raise _Refused(f"a condition may have at most {_LONGEST_CONDITION} characters", "condition:")
        if _depth(text) > _MOST_BRACKETS:
            raise _Refused(f"a condition may nest at most {_MOST_BRACKETS} brackets or 'not'", "condition:")
        for word in re.findall(r"[^\s()]+", text):
            if word == "them" or "*" in word:
                pattern = ".*" if word == "them" else ".*".join(map(re.escape, word.split("*")))
                total += sum(each for name, each in weights.items() if re.fullmatch(pattern, name))
            else:
                total += weights.get(word, 0)
        if total > MOST_TESTS:
            raise _Refused(f"the rule compares more than {MOST_TESTS} values", "condition:")


def _depth(condition: str) -> int:
    """Return how deep brackets are nested, or how many `not` follow each other."""
    deepest = now = row = 0
    for word in re.findall(r"[()]|[^\s()]+", condition):
        row = row + 1 if word.lower() == "not" else 0 if word not in "()" else row
        now += (word == "(") - (word == ")")
        deepest = max(deepest, now, row)
    return deepest


def _weight(selection: Any) -> int:
    """Return how many values a selection compares, what modifiers make of one value included."""
    if isinstance(selection, dict):
        return sum(_weigh_item(str(key), value) for key, value in selection.items())
    if isinstance(selection, list):
        return sum(map(_weight, selection))
    return 1


def _weigh_item(key: str, value: Any) -> int:
    _, *modifiers = key.split("|")
    values = value if isinstance(value, list) else [value]
    if "all" in modifiers and len(values) < 2:
        raise _Refused(f"'{key}': all needs a list of two values or more", key)
    if "re" in modifiers and (wrong := [one for one in modifiers if one not in _REGEX_MAY]):
        raise _Refused(f"'{key}': re cannot be combined with {wrong[0]}; say it in the expression", key)
    for part, (least, most) in _PARTS_OF_TIME.items():
        if part in modifiers and not all(isinstance(one, int) and least <= one <= most for one in values):
            raise _Refused(f"'{key}': {part} must be a number from {least} to {most}", key)
    each = 3 if "base64offset" in modifiers else 1
    if "windash" in modifiers:
        return sum(each * 5 ** min(3, len(re.findall(r"\B[-/]\b", str(one)))) for one in values)
    return each * len(values)


# --- about a rule -----------------------------------------------------------------------------------------------------


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


def _translate(node: Any, setting: Setting) -> Expression:
    from sigma import conditions

    match node:
        case conditions.ConditionAND():
            return _all([_translate(arg, setting) for arg in node.args])
        case conditions.ConditionOR():
            return _any([_translate(arg, setting) for arg in node.args])
        case conditions.ConditionNOT():
            return ["not", _translate(node.args[0], setting)]
        case conditions.ConditionFieldEqualsValueExpression():
            return _any(list(_leaves(node.field, node.value, setting)))
        case conditions.ConditionValueExpression():
            return _any(list(_leaves(None, node.value, setting)))
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


def _leaves(name: str | None, value: Any, setting: Setting) -> Iterator[Expression]:
    from sigma import types

    if isinstance(value, types.SigmaExpansion):
        for each in value.values:
            yield from _leaves(name, each, setting)
        return
    for each in setting.expand(value, _without_values):
        operator, argument = _test(each, keyword=name is None)
        try:
            if not operator.startswith("field "):
                predicate(operator, [argument])
        except ValueError as error:
            raise _Refused(str(error), str(argument)) from error
        yield ["is", name, operator, [argument]]


def _without_values(name: str) -> _Refused:
    return _Refused(f"placeholder %{name}% has no values here", f"%{name}%")


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
    flags = "".join(sorted(_FLAGS[flag.name] for flag in value.flags))
    pattern = value.regexp.to_plain(regex=True)
    return "matches", f"(?{flags}){pattern}" if flags else pattern


def _string(value: Any, keyword: bool) -> tuple[str, Any]:
    from sigma.types import SpecialChars

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
