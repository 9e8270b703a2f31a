"""What is wrong with a rule collection, all at once: what cannot run, and what runs and will disappoint.

Each problem has its place, ``file:line:column``, and the name of its check, by which it can be left out.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

from agent.alerting.attack import catalogue as attack
from agent.model import Kind, Value
from agent.normalise.catalogue import catalogue as ecs
from agent.normalise.mapping import MappingFile, Product, installed, sole
from rules.sigma import logsource
from rules.sigma.documents import Document, Files, parse_documents
from rules.sigma.engine import RAW, Binder, Engine, leaves
from rules.sigma.parse import Rule, compile_files
from rules.sigma.setting import is_setting

CHECKS: Mapping[str, str] = {
    "refused": "it cannot run",
    "missing": "a key that says what it is, how grave, or why",
    "key": "a key that Sigma does not know",
    "tag": "an ATT&CK tag that names nothing in force",
    "title": "two rules of one title",
    "remark": "it runs, but not as it may be meant: a filter for a rule that is not there, an unused pipeline",
    "log-source": "no mapping feeds its log source",
    "field": "no mapping that feeds its log source writes the field",
}
_ANY = ("title", "id", "status", "description", "license", "references", "author", "date", "modified", "level", "tags",
        "falsepositives", "name", "related", "taxonomy", "scope", "fields", "action", "simulation",
        "regression_tests_path")  # fmt: skip
"""Keys that any document may have; the last two are SigmaHQ's own."""
_BODIES = {"detection": ("logsource",), "correlation": (), "filter": ("logsource",)}
"""What makes a document a rule, a correlation or a filter, and the keys that go with it."""
_LOG_SOURCE = ("product", "category", "service", "definition")
_NEEDED = ("title", "id", "description", "level")
_REFUSAL = re.compile(r"(.*?):(\d+):(?:(\d+):)? (.*)", re.DOTALL)
ALWAYS: list[Any] = ["and", []]
"""The condition that every event of a log source fulfils."""
_NUMBER = "vedette.layer"
"""Tells kinds apart that differ in nothing that is known."""
_TECHNIQUE = re.compile(r"t\d{4}(\.\d{3})?", re.IGNORECASE)
_OTHER_TAG = re.compile(r"[gs]\d{4}|ta\d{4}|(?:[cm]|ds|det)\d{4}", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong; *check* is one of `CHECKS`."""

    path: str
    line: int
    column: int
    check: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


def lint(files: Files) -> list[Problem]:
    """Return every problem of the collection that *files* (name, content) are, in the order of their places."""
    texts = {name: content.decode("utf-8", "replace").splitlines() for name, content in files}
    collection = compile_files(files)
    found = [_said("refused", reason, texts) for reason in collection.refused]
    found += [_said("remark", reason, texts) for reason in collection.remarks if "without id, named" not in reason]
    written = [
        _Written(document, node)
        for name, content in files
        for document, node in _with_nodes(name, content)
        if not is_setting(document)
    ]
    found += [problem for one in written for problem in one.problems()]
    found += _same_titles(written)
    places = {one.place: one for one in written}
    feeds = _Feeds(installed(), [rule for rule in collection.rules if logsource.condition(*rule.logsource)])
    for rule in collection.rules:
        found += places[rule.place].unfed(rule, feeds)
    return sorted(set(found))


def _said(check: str, reason: str, texts: Mapping[str, Sequence[str]]) -> Problem:
    """Return what reading said; without a column it stands where its line begins, or where what it quotes is."""
    match = _REFUSAL.fullmatch(reason)
    assert match is not None
    path, line, column, text = match[1], int(match[2]), match[3], match[4]
    if column is None:
        lines = texts.get(path, ())
        written = lines[line - 1] if line <= len(lines) else ""
        quoted = re.search(r"'([^']+)'", text)
        at = written.find(quoted[1]) if quoted else -1
        column = 1 + (at if at >= 0 else len(written) - len(written.lstrip()))
    return Problem(path, line, int(column), check, text)


def _with_nodes(name: str, content: bytes) -> Iterator[tuple[Document, yaml.MappingNode]]:
    """Yield the documents of a file with the YAML that says where their keys stand; none if it is no YAML."""
    refused: list[str] = []
    documents = parse_documents(name, content, refused)
    if refused or not documents:
        return
    nodes = {node.start_mark.line + 1: node for node in yaml.compose_all(documents[0].text, Loader=yaml.CSafeLoader)
             if node is not None}  # fmt: skip
    for document in documents:
        node = nodes[document.line]
        assert isinstance(node, yaml.MappingNode)
        yield document, node


class _Written:
    """A document and where each of its parts stands."""

    def __init__(self, document: Document, node: yaml.MappingNode) -> None:
        self.document = document
        self.place = document.place()
        self._node = node

    def problems(self) -> Iterator[Problem]:
        """Yield what the document itself shows."""
        data = self.document.data
        body = next((key for key in _BODIES if key in data), "detection")
        needed = (*_NEEDED, *_BODIES[body]) if body != "filter" else ("title", "id", "description", "logsource")
        for key in needed:
            if not data.get(key):
                yield self._problem("missing", f"no {key}")
        yield from self._unknown((), data, (*_ANY, *_BODIES[body], body))
        if isinstance(source := data.get("logsource"), dict):
            yield from self._unknown(("logsource",), source, _LOG_SOURCE)
        tags = data.get("tags")
        for number, tag in enumerate(tags if isinstance(tags, list) else ()):
            if reason := _wrong_tag(str(tag)):
                yield self._problem("tag", reason, "tags", number)

    def _unknown(self, above: tuple[str, ...], section: Mapping[Any, Any], known: Sequence[str]) -> Iterator[Problem]:
        for key in section:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {close[0]}" if close else ""
                yield self._problem("key", f"unknown key {'.'.join((*above, str(key)))}{hint}", *above, key)

    def title(self) -> str:
        return str(self.document.data.get("title") or "")

    def same_title(self, other: _Written) -> Problem:
        return self._problem("title", f"{other.place} has the title {self.title()!r} too", "title")

    def unfed(self, rule: Rule, feeds: _Feeds) -> Iterator[Problem]:
        """Yield what of *rule*, which this document is, no mapping gives."""
        if logsource.condition(*rule.logsource) is None:
            said = " ".join(part for part in rule.logsource if part)
            yield self._problem("log-source", f"no mapping feeds the log source {said}: it can never fire", "logsource")
            return
        for name in dict.fromkeys(leaf[1] for leaf in leaves(rule.condition) if leaf[1] is not None):
            if not feeds.write(rule, name):
                yield self._problem("field", f"no mapping that feeds this log source writes {name}", "detection", name)

    def _problem(self, check: str, reason: str, *keys: Any) -> Problem:
        line, column = _find(self._node, keys)
        return Problem(self.document.path, line, column, check, reason)


def _find(node: yaml.Node, keys: Sequence[Any]) -> tuple[int, int]:
    """Return line and column of what *keys* lead to: of the key itself, or of the list's item.

    The last key may stand deeper than one step down, and with modifiers (a field of a detection); where it is not
    found, it is what stands above that is meant.
    """
    here = node
    mark = node.start_mark
    for key in keys:
        if isinstance(here, yaml.SequenceNode) and isinstance(key, int):
            here = here.value[key]
            mark = here.start_mark
            continue
        found = next(((name, value) for name, value in _pairs(here) if name.value.partition("|")[0] == str(key)), None)
        if found is None:
            break
        mark, here = found[0].start_mark, found[1]
    return mark.line + 1, mark.column + 1


def _pairs(node: yaml.Node) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """Yield the keys and values of a mapping, and then those that stand deeper."""
    waiting = [node]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, yaml.MappingNode):
            yield from ((key, value) for key, value in one.value if isinstance(key, yaml.ScalarNode))
            waiting += [value for _, value in one.value]
        elif isinstance(one, yaml.SequenceNode):
            waiting += one.value


def _wrong_tag(tag: str) -> str:
    """Return what is wrong with *tag* if it is one of ATT&CK's."""
    space, _, name = tag.lower().partition(".")
    if space != "attack" or _OTHER_TAG.fullmatch(name):
        return ""
    if _TECHNIQUE.fullmatch(name):
        known = name.upper() in attack()
        return (
            "" if known else f"{tag}: no technique in force in Vedette's ATT&CK catalogue: mistyped, revoked or newer"
        )
    return "" if name.replace("_", "-") in _tactics() else f"{tag}: ATT&CK has no such tactic"


@cache
def _tactics() -> frozenset[str]:
    """Return the short names of ATT&CK's tactics, of before and after its version 19."""
    return frozenset(short for shorts, _ in attack().values() for short in shorts) | {"stealth", "defense-impairment"}


def _same_titles(written: Sequence[_Written]) -> Iterator[Problem]:
    by_title: dict[str, list[_Written]] = defaultdict(list)
    for one in written:
        by_title[one.title().lower()].append(one)
    for title, same in by_title.items():
        if title:
            yield from (one.same_title(same[0]) for one in same[1:])


# --- what mappings feed and write -------------------------------------------------------------------------------------


class _Feeds:
    """Which mappings may give events of a log source, and what they write."""

    def __init__(self, mappings: Sequence[MappingFile], rules: Sequence[Rule]) -> None:
        probes = {rule.logsource: replace(rule, condition=ALWAYS) for rule in rules}
        engine = Engine(list(probes.values()))
        self._feeding: dict[Any, list[tuple[Kind, Product, MappingFile]]] = defaultdict(list)
        for mapping in mappings:
            for kind, product in _kinds(mapping):
                for probe in engine.rules_of(kind):
                    self._feeding[probe.logsource].append((kind, product, mapping))
        self._known: dict[tuple[Any, str], bool] = {}

    def write(self, rule: Rule, field: str) -> bool:
        """Say whether any event of the rule's log source may have *field*."""
        key = rule.logsource, field
        if key not in self._known:
            self._known[key] = any(_writes(rule, field, *one) for one in self._feeding[rule.logsource])
        return self._known[key]


def _writes(rule: Rule, field: str, kind: Kind, product: Product, mapping: MappingFile) -> bool:
    """Say whether events of *kind* may have *field*: what is under a vendor's prefix is as the vendor has it."""
    column = Binder(kind, rule.category, tests=None).column(field)
    if column in product.fields or column in kind.constant or column in mapping.identity.values():
        return True
    if column in (RAW, "event.original", "message", "@timestamp"):
        return True
    if column in ecs().fields:
        return any(shape.ecs for shape in mapping.shapes)
    return bool(mapping.prefix and mapping.native_names(column))


def _kinds(mapping: MappingFile) -> Iterator[tuple[Kind, Product]]:
    """Yield the kinds that the layers of *mapping* tell apart; what a layer does not ask for stays open."""
    for number, identity in enumerate([{}, *mapping.layer_identities()]):
        product = mapping.product(identity)
        constants: dict[str, Value] = {name: sole(values) for name, values in product.constants.items()}
        constants |= {column: identity[native] for native, column in mapping.identity.items() if native in identity}
        constants[_NUMBER] = number
        yield Kind(mapping.name, tuple(sorted(constants.items())), product.renames, mapping.prefix), product
