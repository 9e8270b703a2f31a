"""The SIEM sink: each document becomes one document of the data stream ``logs-vedette.<dataset>-<namespace>``.

A document is delivered when the server says that it created it, or that it exists, in a backing index of its stream.
Whatever else an answer says, in a request that succeeded as a whole too, is no delivery::

    created, or 409, in a backing index     delivered
    429, 5xx, 401, 403, 404, no clear word  retryable
    400                                     an alert is offered again at once, first reduced to the fields that our
                                            template surely takes, then to the least of them; rejected if the stream
                                            refuses that too
    dropped, or stored anywhere else        rejected

A copy of the audit log is never cut and never given up: what would be rejected waits, for without it the copy proves
nothing. ``create`` sees a repeat only inside one backing index. A document that may have been offered before is
therefore looked for in all of them first, and is not written while that cannot be done.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

import orjson
from pydantic import Field

from agent.errors import ConfigError, RecordError, RetryableError, VedetteError
from agent.model import DELIVERED, Document, Outcome
from agent.ports import Check
from connectors._options import parse
from connectors.siem import install
from connectors.siem.client import Access, Cluster, Denied, FlavourName, Refused, segment
from connectors.siem.indices import matches
from connectors.siem.install import LAYOUTS, SINK, Dataset, stream_name

LARGEST = 5 << 20
"""Bytes of one request. An alert that alone is larger is written reduced, an audit copy as it is."""
SMALLEST = 64 << 10
"""Trouble on the way makes requests smaller, but not smaller than this."""
LOOKED_UP = 1000
"""Pairs of id and backing index that one request asks for."""
REASON = 500
_LONGEST_ID = 512
_REQUIRE_DATA_STREAM = (8, 13)

WHOLE, REDUCED, MINIMAL = range(3)
_ALERT = frozenset({"kind", "category", "type", "id", "module", "dataset", "severity", "risk_score", "risk_score_norm",
                    "reason", "start", "end", "created"})  # fmt: skip
_KEPT: Mapping[int, Mapping[str, frozenset[str] | None]] = {
    REDUCED: {
        "@timestamp": None,
        "ecs": None,
        "message": None,
        "event": _ALERT,
        "rule": None,
        "threat": frozenset({"framework", "tactic", "technique"}),
        "observer": None,
        "vedette": None,
    },
    MINIMAL: {
        "@timestamp": None,
        "ecs": frozenset({"version"}),
        "message": None,
        "event": _ALERT,
        "rule": frozenset({"id", "name"}),
    },
}
"""Top-level fields that a form keeps, and which of their members (None: all): Vedette's own, not the event's."""
_ORIGINAL = {REDUCED: 1 << 20, MINIMAL: 32 << 10}
"""Bytes of the original document that a form carries as text."""
_TEXT = 1000
"""Characters of a text in the minimal form."""


class Options(Access):
    """Options of a sink: how to reach the cluster, and the namespace of its data streams."""

    namespace: str = Field(default="default", pattern=r"^[a-z0-9_][a-z0-9_.]{0,99}$")


class _Target:
    """Where the documents of one dataset go: the stream, what tells its backing indices, what each document says."""

    def __init__(self, dataset: Dataset, namespace: str) -> None:
        self.stream = stream_name(namespace, dataset)
        self.own = re.compile(rf"\.ds-{re.escape(self.stream)}-(\d{{4}}\.\d\d\.\d\d-)?\d{{6,}}")
        self.stamp = {"type": "logs", "dataset": f"vedette.{dataset}", "namespace": namespace}


@dataclass(frozen=True, slots=True)
class _Item:
    """One document on its way: what it is and the two lines that offer it in this form."""

    document: Document
    form: int
    lines: bytes


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The document as offered is refused; *last* is the outcome's state if there is no smaller form to try."""

    reason: str
    kind: str
    last: Outcome


class SiemSink:
    """Creates documents in one data stream a dataset. `counts` says what became of them, for metrics."""

    def __init__(self, id: str, flavour: FlavourName, options: Options) -> None:
        self.id = id
        self.counts: Counter[str] = Counter()
        self._cluster = Cluster(f"sink {id}", flavour, options)
        self._namespace = options.namespace
        self._targets = {layout.dataset: _Target(layout.dataset, options.namespace) for layout in LAYOUTS}
        self._most = self._limit = LARGEST

    def open(self) -> None:
        """Prove that each stream is there, or that our template will make it; ConfigError if a person must act."""
        self._most = self._limit = LARGEST
        self._cluster.connect()
        for target in self._targets.values():
            try:
                self._backing(target.stream)
            except Denied as error:
                said = f"{error}; writing to {target.stream} needs an account with the role {SINK}"
                raise ConfigError(said) from None

    def write(self, documents: Sequence[Document]) -> Sequence[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for dataset, target in self._targets.items():
            places = [place for place, document in enumerate(documents) if document.dataset == dataset]
            outcomes.update(zip(places, self._write(target, [documents[place] for place in places]), strict=True))
        return [outcomes[place] for place in range(len(documents))]

    def _write(self, target: _Target, documents: Sequence[Document]) -> Sequence[Outcome]:
        """Write documents that go to the same stream; trouble with one stream leaves the other alone."""
        unusable: dict[int, Outcome] = {}
        items: dict[str, _Item] = {}
        for place, document in enumerate(documents):
            try:
                items.setdefault(document.id, self._item(document))
            except RecordError as error:
                unusable[place] = self._reject("unusable", str(error))
        repeated = list(dict.fromkeys(one.id for one in documents if one.repeat and one.id in items))
        outcomes: dict[str, Outcome] = {}
        if items:
            try:
                backing = self._backing(target.stream)
            except VedetteError as error:
                outcomes = dict.fromkeys(items, _later(error))
            else:
                outcomes.update(self._look_up(repeated, backing))
                outcomes.update(self._create(target, (item for id, item in items.items() if id not in outcomes)))
        self.counts["retryable"] += sum(outcome.state == "retryable" for outcome in outcomes.values())
        return [unusable.get(place) or outcomes[document.id] for place, document in enumerate(documents)]

    def close(self) -> None:
        self._cluster.close()

    def install(self, fields: Mapping[str, str]) -> Iterator[Check]:
        self._cluster.connect()
        yield from install.install(self._cluster, self._namespace, fields)

    def examine(self) -> Iterator[Check]:
        return install.examine_sink(self._cluster, self._namespace)

    def roles(self) -> Mapping[str, Any]:
        flavour, namespace = self._cluster.flavour, self._namespace
        return {**install.sink_roles(flavour, namespace), **install.setup_roles(flavour, namespace)}

    # --- where it goes ------------------------------------------------------------------------------------------------

    def _backing(self, stream: str) -> list[str]:
        """Return the stream's backing indices, oldest first; none if it is still to be made, by our own template."""
        path = f"/_resolve/index/{segment(stream)}"
        found = _object(self._cluster.request("GET", path, accept=(404,)).body, path)
        for one in _objects(found.get("data_streams")):
            if one.get("name") == stream:
                return [str(index) for index in one.get("backing_indices") or ()]
        for kind, key in (("an index", "indices"), ("an alias", "aliases")):
            if any(one.get("name") == stream for one in _objects(found.get(key))):
                self._misplaced(f"{stream} is {kind}, not a data stream: remove it, then run 'vedette setup'")
        self._prove_template(stream)
        return []

    def _prove_template(self, stream: str) -> None:
        """ConfigError unless the template that would make the stream was made for it."""
        path = "/_index_template"
        wanted = ("name", "index_template.index_patterns", "index_template.priority", "index_template.data_stream")
        params = {"filter_path": ",".join(f"index_templates.{one}" for one in wanted)}
        try:
            body = _object(self._cluster.request("GET", path, params=params).body, path)
        except Denied:
            self._misplaced(f"there is no data stream {stream}, and templates cannot be read: run 'vedette setup'")
        matching = [
            (int(template.get("priority") or 0), str(one.get("name")), template)
            for one in _objects(body.get("index_templates"))
            if isinstance(template := one.get("index_template"), dict)
            and any(matches(str(pattern), stream) for pattern in template.get("index_patterns") or ())
        ]
        if not matching:
            self._misplaced(f"there is no index template for the data stream {stream}: run 'vedette setup'")
        priority, name, template = max(matching, key=lambda one: one[:2])
        ours = any(str(pattern).startswith("logs-vedette.") for pattern in template["index_patterns"])
        if not ours or "data_stream" not in template:
            self._misplaced(
                f"the index template {name} (priority {priority}), which is not Vedette's, would make {stream}: "
                "run 'vedette setup'"
            )

    def _misplaced(self, message: str) -> NoReturn:
        raise ConfigError(f"sink {self.id}: {self._cluster.place}: {message}")

    # --- what was offered before --------------------------------------------------------------------------------------

    def _look_up(self, ids: Sequence[str], backing: Sequence[str]) -> dict[str, Outcome]:
        """Return delivered for the ids that the stream holds, retryable for those of which that is not known."""
        pairs = ((index, id) for index in reversed(backing) for id in ids)
        outcomes: dict[str, Outcome] = {}
        unknown: dict[str, Outcome] = {}
        while asked := list(islice((pair for pair in pairs if pair[1] not in outcomes), LOOKED_UP)):
            for id, found in zip((id for _, id in asked), self._get(asked), strict=True):
                if found is True:
                    outcomes[id] = DELIVERED
                elif found is not False:
                    unknown[id] = found
        self.counts["found_before_resend"] += len(outcomes)
        return unknown | outcomes

    def _get(self, pairs: Sequence[tuple[str, str]]) -> Sequence[bool | Outcome]:
        """Say of each pair of index and id, in real time, whether it is there, or why that is not known."""
        body = {"docs": [{"_index": index, "_id": id} for index, id in pairs]}
        try:
            answer = self._cluster.request(
                "POST", "/_mget", params={"_source": False, "realtime": True}, body=body
            ).body
        except VedetteError as error:
            return [_later(error)] * len(pairs)
        docs = answer.get("docs") if isinstance(answer, dict) else None
        if not isinstance(docs, list) or len(docs) != len(pairs):
            return [_unclear("_mget did not answer for each document")] * len(pairs)
        return [_presence(one, index, id) for one, (index, id) in zip(docs, pairs, strict=True)]

    # --- bulk ---------------------------------------------------------------------------------------------------------

    def _create(self, target: _Target, items: Iterable[_Item]) -> Iterator[tuple[str, Outcome]]:
        """Offer the items in requests of bounded size, the refused ones again in smaller forms."""
        pending = deque(items)
        while pending:
            batch = self._take(pending)
            answers: Sequence[Outcome | _Refusal]
            try:
                answers = self._bulk(target, batch)
            except Refused as error:
                if error.status in (400, 413) and len(batch) > 1:
                    self._limit = sum(len(item.lines) for item in batch) // 2
                    self._most = self._limit if error.status == 413 else self._most
                    pending.extendleft(reversed(batch))
                    continue
                answers = [_whole_refusal(error)] * len(batch)
            except VedetteError as error:
                self._limit = max(min(SMALLEST, self._limit), self._limit // 2)
                later = _later(error)
                yield from ((item.document.id, later) for item in (*batch, *pending))
                return
            for item, answer in zip(batch, answers, strict=True):
                result = self._smaller(item, answer) if isinstance(answer, _Refusal) else answer
                if isinstance(result, _Item):
                    pending.append(result)
                elif result.state == "rejected" and item.document.dataset == "audit":
                    yield item.document.id, Outcome("retryable", result.reason)
                else:
                    yield item.document.id, result

    def _take(self, pending: deque[_Item]) -> list[_Item]:
        """Take the next items, as many as fit into one request and at least one."""
        batch = [pending.popleft()]
        size = len(batch[0].lines)
        while pending and (size := size + len(pending[0].lines)) <= self._limit:
            batch.append(pending.popleft())
        return batch

    def _bulk(self, target: _Target, batch: Sequence[_Item]) -> list[Outcome | _Refusal]:
        """Send one request; return what it says of each item."""
        body = b"".join(item.lines for item in batch)
        known = self._cluster.flavour == "elasticsearch" and self._cluster.version >= _REQUIRE_DATA_STREAM
        self.counts["requests"] += 1
        self.counts["bytes"] += len(body)
        answer = self._cluster.request(
            "POST",
            f"/{segment(target.stream)}/_bulk",
            params={"require_data_stream": True} if known else None,
            body=body,
        ).body
        given = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(given, list) or len(given) != len(batch):
            raise RetryableError(f"sink {self.id}: {self._cluster.place}: _bulk did not answer for each document")
        self._limit = min(self._most, self._limit * 2)
        return [self._judge(target, item, one) for item, one in zip(batch, given, strict=True)]

    def _judge(self, target: _Target, item: _Item, given: Any) -> Outcome | _Refusal:
        """Return what the answer *given* for one item means."""
        answer = given.get("create") if isinstance(given, dict) else None
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or answer.get("_id") != item.document.id or not isinstance(status, int):
            return _unclear("_bulk answered for another document")
        place, result = str(answer.get("_index")), answer.get("result")
        own = target.own.fullmatch(place) is not None
        if status < 300:
            stored = f"it was stored in {place}, not in {target.stream}: see 'vedette doctor'"
            return self._stored(item, result, "" if own and answer.get("failure_store") != "used" else stored)
        reason = _reason(answer.get("error"), status)
        if status == 409:
            if not own:
                return self._reject("elsewhere", f"it exists in {place}, which is no index of {target.stream}")
            self.counts["duplicate"] += 1
            return DELIVERED
        if status in (401, 403, 404, 408, 429) or status >= 500:
            return Outcome("retryable", reason)
        # Before it comes to an index it is the pipeline or the cluster (too many shards, say) that refuses: no verdict.
        return _Refusal(reason, "refused", Outcome("rejected" if own else "retryable", reason))

    def _stored(self, item: _Item, result: object, elsewhere: str) -> Outcome:
        """Return the outcome of an answer without an error; *elsewhere* says where, if not in the stream."""
        if result == "noop":
            return self._reject("dropped", "an ingest pipeline dropped it")
        if elsewhere:
            return self._reject("elsewhere", elsewhere)
        if result != "created":
            return _unclear(f"_bulk answered {str(result)[:50]!r} to create")
        self.counts["created"] += 1
        if item.form:
            self.counts["reduced" if item.form == REDUCED else "minimal"] += 1
        return DELIVERED

    def _reject(self, kind: str, reason: str) -> Outcome:
        self.counts[f"rejected_{kind}"] += 1
        return Outcome("rejected", reason)

    # --- forms --------------------------------------------------------------------------------------------------------

    def _item(self, document: Document) -> _Item:
        """Return the document as its stream takes it; RecordError if it is no JSON object with a usable id."""
        try:
            body = orjson.loads(document.body)
            name = orjson.dumps(document.id)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
            raise RecordError(f"document is not valid JSON: {error}") from None
        if not isinstance(body, dict):
            raise RecordError("document is not a JSON object")
        if not 0 < len(name) - 2 <= _LONGEST_ID:
            raise RecordError(f"document id of {len(name) - 2} bytes; 1 to {_LONGEST_ID} are allowed")
        if forged := sorted(key for key in body if key.startswith("_")):
            # Before a pipeline, Elasticsearch 8 refuses the whole request for it, and OpenSearch 2 may take `_routing`
            # out of the document.
            return self._form(document, REDUCED, f"only a server may set {', '.join(forged)[:100]}")
        stamp = self._targets[document.dataset].stamp
        if "data_stream" in body:
            try:
                text = orjson.dumps(body | {"data_stream": stamp})
            except orjson.JSONEncodeError as error:  # nested deeper than it writes, though it reads that
                return self._form(document, REDUCED, f"{error}")
        else:  # line ends occur between tokens only; all other bytes stay as they are
            rest = document.body.strip().replace(b"\n", b" ")[1:].lstrip()
            text = b'{"data_stream":' + orjson.dumps(stamp) + (b"," if body else b"") + rest
        if len(text) > LARGEST and document.dataset == "alert":
            return self._form(document, REDUCED, f"document of {len(text):,} bytes; at most {LARGEST:,} are written")
        return _Item(document, WHOLE, _lines(document.id, text))

    def _smaller(self, item: _Item, refusal: _Refusal) -> _Item | Outcome:
        """Return the item in its next smaller form, or the outcome if it has none."""
        if item.form < MINIMAL and item.document.dataset == "alert":
            return self._form(item.document, item.form + 1, refusal.reason)
        if refusal.last.state == "rejected":
            return self._reject(refusal.kind, refusal.last.reason)
        return refusal.last

    def _form(self, document: Document, form: int, reason: str) -> _Item:
        """Return the alert with what *form* keeps, the *reason*, and the original as text; RecordError if it is no
        alert."""
        if document.dataset != "alert":
            raise RecordError(f"{reason}; a copy of the audit log is never cut")
        body = _kept(orjson.loads(document.body), form)
        original, cut = document.body[: _ORIGINAL[form]], len(document.body) - _ORIGINAL[form]
        own = body.get("vedette")
        body["vedette"] = {
            **(own if isinstance(own, dict) else {}),
            "mapping_conflict": reason,
            "original_document": original.decode("utf-8", "ignore"),
            **({"original_document_cut": cut} if cut > 0 else {}),
        }
        body["data_stream"] = self._targets[document.dataset].stamp
        try:
            lines = _lines(document.id, orjson.dumps(body))
        except orjson.JSONEncodeError:  # what it keeps is itself too deep
            return self._form(document, MINIMAL, reason)
        return _Item(document, form, lines) if len(lines) <= LARGEST else self._form(document, MINIMAL, reason)


def _presence(answer: Any, index: str, id: str) -> bool | Outcome:
    """Return what `_mget` says of one pair."""
    if not isinstance(answer, dict) or (answer.get("_index"), answer.get("_id")) != (index, id):
        return _unclear("_mget answered for another document")
    found = answer.get("found")
    return found if isinstance(found, bool) else _unclear(f"_mget: {_reason(answer.get('error'), 0)}")


def _whole_refusal(error: Refused) -> Outcome | _Refusal:
    """Return what a refused request means for the single document in it, or for any if it was not about documents."""
    later = _later(error)
    if error.status not in (400, 413):
        return later
    return _Refusal(later.reason, "too_large", Outcome("rejected", later.reason) if error.status == 413 else later)


def _lines(id: str, text: bytes) -> bytes:
    return b'{"create":{"_id":' + orjson.dumps(id) + b"}}\n" + text + b"\n"


def _kept(body: Mapping[str, Any], form: int) -> dict[str, Any]:
    """Return what *form* keeps of *body*; the minimal one keeps texts, numbers and short lists of them only."""
    leaf: Callable[[Any], Any] = _leaf if form == MINIMAL else lambda value: value
    kept: dict[str, Any] = {}
    for name, members in _KEPT[form].items():
        value = body.get(name)
        if members is None:
            kept[name] = leaf(value)
        elif isinstance(value, dict):
            kept[name] = {key: leaf(one) for key, one in value.items() if key in members}
    return {name: value for name, value in kept.items() if value is not None}


def _leaf(value: Any) -> Any:
    """Return a scalar or a list of scalars, cut to a bound; None for anything else."""
    if isinstance(value, list):
        return [_leaf(one) for one in value[:10] if not isinstance(one, list)]
    if isinstance(value, str):
        return value[:_TEXT]
    return value if isinstance(value, int | float) else None


def _object(answer: Any, path: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise RetryableError(f"{path} answered no JSON object")
    return answer


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _reason(error: Any, status: int) -> str:
    """Return the server's words for one item, bounded: type, reason, and the cause where there is one."""
    if not isinstance(error, dict):
        return f"{status}: {str(error)[:REASON]}" if error or status else ""
    cause = error.get("caused_by")
    parts = [error.get("type"), error.get("reason"), cause.get("reason") if isinstance(cause, dict) else None]
    return ": ".join(str(part)[:REASON] for part in parts if part) or f"{status}"


def _later(error: VedetteError) -> Outcome:
    return Outcome("retryable", str(error)[: 2 * REASON], getattr(error, "retry_after", None))


def _unclear(reason: str) -> Outcome:
    return Outcome("retryable", reason)


def build(flavour: FlavourName) -> Callable[[str, Mapping[str, Any]], SiemSink]:
    """Return the maker of sinks for a connector of this *flavour*; ConfigError names the option that is wrong."""

    def make(id: str, options: Mapping[str, Any]) -> SiemSink:
        return SiemSink(id, flavour, parse(Options, f"sink {id}", options))

    return make
