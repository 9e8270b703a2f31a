"""What Vedette's data streams need in their cluster, who needs which privileges, and what is wrong.

There are two, of alerts and of copies of the audit log; a `Layout` says what each is made of. `install` puts the ingest
pipeline, the mapping and the index template of each; a second run changes nothing. The `*_roles` are the least
privileges as the servers' own role APIs take them. `examine_source` and `examine_sink` look and never raise.

No field of an alert may make the server refuse it: the mapping is closed, text that is too long and values of the wrong
type are kept but not indexed. What stays refusable is a scalar where an object is mapped, and the other way round.
"""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import orjson

from agent.errors import ConfigError, RetryableError, VedetteError
from agent.ports import Check
from connectors.siem.client import Cluster, Denied, FlavourName, Refused, segment
from connectors.siem.indices import Identity, find, identify, matches, sights

PRIORITY = 600
SINK, SOURCE, SETUP = "vedette-sink", "vedette-source", "vedette-setup"

Dataset: TypeAlias = Literal["alert", "audit"]
Form: TypeAlias = Mapping[str, Any]

_KEYWORD: Form = {"type": "keyword", "ignore_above": 1024}
_LONG_KEYWORD: Form = {"type": "keyword", "ignore_above": 8191}  # of 4 bytes: still below Lucene's 32,766 a term
_OPAQUE: Form = {"type": "object", "enabled": False}
# OpenSearch's flat_object stands nowhere: it has no ignore_above, so one long value would refuse the alert.
_FORMS: Mapping[str, Sequence[Form]] = {
    "keyword": [_KEYWORD],
    "constant_keyword": [{"type": "constant_keyword"}, _KEYWORD],
    "version": [{"type": "version"}, _KEYWORD],
    "wildcard": [{"type": "wildcard", "ignore_above": 8191}, _LONG_KEYWORD],
    "match_only_text": [{"type": "match_only_text"}, {"type": "text"}],
    "scaled_float": [{"type": "scaled_float", "scaling_factor": 1000}, {"type": "float"}],
    "flattened": [{"type": "flattened", "ignore_above": 1024}, _OPAQUE],
}
"""How each ECS type is mapped, best first; the last is known to every server."""
_AS = {"object": "flattened"}
"""ECS objects without fields of their own hold free keys, as flattened ones do."""

_EVERY: Mapping[str, str] = {
    **dict.fromkeys(("data_stream.type", "data_stream.dataset", "data_stream.namespace"), "constant_keyword"),
    **dict.fromkeys(("event.created", "event.ingested"), "date"),
    **dict.fromkeys(("event.id", "event.kind", "event.module", "ecs.version"), "keyword"),
    "message": "match_only_text",
}
_TIME: Form = {"type": "date", "ignore_malformed": False}  # a data stream takes nothing else
_KEPT: Form = {"type": "keyword", "index": False, "doc_values": False}


@dataclass(frozen=True)
class Layout:
    """What one of the data streams is made of."""

    dataset: Dataset
    own: Mapping[str, str]
    """Fields of every document, whatever else it carries, with their types; they win over the catalogue's."""
    fixed: Mapping[str, Form]
    """Fields that are mapped just so on every server."""
    sought: Sequence[str]
    """Where free text is sought: all fields at once are more than a query may have clauses."""
    events: bool
    """Documents may carry any field of an event."""

    @property
    def name(self) -> str:
        """Name of the ingest pipeline, of the component template with the mapping, and of the index template."""
        return f"vedette-{self.dataset}"

    @property
    def custom(self) -> str:
        """Component template for the operator (lifecycle, replicas): made empty, then left alone, wins over ours."""
        return f"{self.name}@custom"

    @property
    def pattern(self) -> str:
        return stream_name("*", self.dataset)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "final_pipeline": self.name,
            "mapping": {"ignore_malformed": True, "total_fields": {"limit": 10_000}},
            "query": {"default_field": list(self.sought)},
        }

    @cached_property
    def digest(self) -> str:
        """Names what of the mapping does not depend on catalogue nor server, so that doctor can tell its age."""
        return _digest([self.own, self.fixed, _FORMS, self.settings])


ALERT = Layout(
    dataset="alert",
    own={
        **_EVERY,
        **dict.fromkeys(("event.start", "event.end"), "date"),
        "event.severity": "long",
        "event.risk_score": "float",
        "event.risk_score_norm": "float",
        **dict.fromkeys(("rule.id", "rule.name"), "keyword"),
        "vedette.entity": "flattened",
        "vedette.enrichment.row": "flattened",
        "vedette.enrichment.made": "date",
        **dict.fromkeys(
            (
                "vedette.trust",
                "vedette.tenant",
                "vedette.stream",
                "vedette.detector",
                "vedette.level",
                "vedette.revision",
                "vedette.mapping_conflict",
                "vedette.false_positives",
                "vedette.model.id",
                "vedette.model.digest",
                "vedette.model.signer",
                "vedette.configuration.digest",
                "vedette.explain.field",
                "vedette.explain.observed",
                "vedette.explain.expected",
                "vedette.evidence.state",
                "vedette.evidence.records.id",
                "vedette.evidence.records.source",
                "vedette.evidence.records.path",
                "vedette.evidence.records.key",
                "vedette.enrichment.table",
                "vedette.enrichment.digest",
                "vedette.enrichment.field",
                "vedette.enrichment.value",
                "vedette.enrichment_stale",
            ),
            "keyword",
        ),
        **dict.fromkeys(
            (
                "vedette.score.value",
                "vedette.score.raw",
                "vedette.score.p_value",
                "vedette.score.budget",
                "vedette.maturity",
                "vedette.explain.contribution",
            ),
            "float",
        ),
        **dict.fromkeys(
            (
                "vedette.original_cut",
                "vedette.original_document_cut",
                "vedette.configuration.revision",
                "vedette.evidence.count",
                "vedette.evidence.cut",
                "vedette.evidence.total",
                "vedette.enrichment_cut",
            ),
            "long",
        ),
        **dict.fromkeys(("vedette.backfill", "vedette.capped"), "boolean"),
    },
    fixed={"@timestamp": _TIME, "event.original": _KEPT, "vedette.original_document": _OPAQUE},
    sought=(
        "message",
        "event.reason",
        "rule.name",
        "rule.description",
        "host.name",
        "user.name",
        "process.name",
        "process.command_line",
        "file.path",
        "vedette.explain.observed",
    ),
    events=True,
)
AUDIT = Layout(
    dataset="audit",
    own={
        **_EVERY,
        **dict.fromkeys(
            (
                "event.action",
                "event.category",
                "event.dataset",
                "event.outcome",
                "event.type",
                "observer.product",
                "observer.type",
                "observer.vendor",
                "observer.version",
                "user.name",
                "vedette.audit.hash",
                "vedette.audit.origin",
                "vedette.stream",
            ),
            "keyword",
        ),
        "vedette.audit.number": "long",
    },
    # The bytes that prove something: kept as they are whatever their length, and not sought.
    fixed={
        "@timestamp": _TIME,
        "vedette.audit.leaf": _KEPT,
        "vedette.audit.members": _KEPT,
        "vedette.audit.checkpoint": _KEPT,
    },
    sought=("message", "event.action", "user.name", "vedette.stream"),
    events=False,
)
LAYOUTS = (ALERT, AUDIT)

_PIPELINE: Mapping[str, Any] = {
    "description": "Vedette: when the document reached the cluster. Adds event.ingested, drops nothing.",
    # Not `set`: its copy_from is unknown to OpenSearch 2, its template needs a script language to be installed.
    "processors": [
        {
            "date": {
                "field": "_ingest.timestamp",
                "formats": ["ISO8601"],
                "target_field": "event.ingested",
                "ignore_failure": True,
            }
        },
    ],
}


def stream_name(namespace: str, dataset: Dataset = "alert") -> str:
    """Return the name of the data stream that holds the documents of *dataset* in *namespace*."""
    return f"logs-vedette.{dataset}-{namespace}"


def _streams(namespace: str) -> list[str]:
    return [stream_name(namespace, layout.dataset) for layout in LAYOUTS]


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


# --- setup ------------------------------------------------------------------------------------------------------------


def install(cluster: Cluster, namespace: str, fields: Mapping[str, str]) -> Iterator[Check]:
    """Install or update pipeline, mapping and index template of each stream, and let an existing one have them.

    *fields* are the ECS fields that an alert may carry, with their types. RetryableError if the cluster cannot be
    reached, ConfigError if it refuses a step. What is there already and as wanted is not written.
    """
    for layout in LAYOUTS:
        try:
            yield from _of(layout, _install(cluster, layout, namespace, fields if layout.events else {}))
        except Denied as error:
            raise ConfigError(f"{error}; setup needs an account with the role {SETUP}") from None
        except Refused as error:
            raise ConfigError(str(error)) from None


def _of(layout: Layout, checks: Iterator[Check]) -> Iterator[Check]:
    """Say of each check which stream it is about."""
    return (replace(check, name=f"{layout.dataset} {check.name}") for check in checks)


def _install(cluster: Cluster, layout: Layout, namespace: str, fields: Mapping[str, str]) -> Iterator[Check]:
    yield _put_pipeline(cluster, layout)
    component, said = _component(cluster, layout, fields)
    yield _put(cluster, "mapping", f"/_component_template/{layout.name}", component, said)
    if cluster.request("GET", f"/_component_template/{layout.custom}", accept={404}).status == 404:
        cluster.request("PUT", f"/_component_template/{layout.custom}", body={"template": {}})
    template = {
        "index_patterns": [layout.pattern],
        "priority": PRIORITY,
        "data_stream": {},
        "composed_of": [layout.name, layout.custom],
    }
    yield _put(
        cluster,
        "template",
        f"/_index_template/{layout.name}",
        _marked(layout, template),
        f"for {layout.pattern}, priority {PRIORITY}; "
        f"settings of your own belong in the component template {layout.custom}",
    )
    wanted = component["_meta"]["digest"]
    stream = stream_name(namespace, layout.dataset)
    verdicts = [_overruled(_templates(cluster), layout, stream), _effective(cluster, layout, wanted)]
    yield from verdicts
    if all(verdict.state == "ok" for verdict in verdicts):
        yield _renew(cluster, stream, wanted)


def _put_pipeline(cluster: Cluster, layout: Layout) -> Check:
    if _pipeline_stands(cluster, layout):
        return Check("pipeline", "ok", f"{layout.name} sets event.ingested")
    cluster.request("PUT", f"/_ingest/pipeline/{layout.name}", body=_PIPELINE)
    return Check("pipeline", "changed", f"{layout.name} put: sets event.ingested")


def _pipeline_stands(cluster: Cluster, layout: Layout) -> bool:
    answer = cluster.request("GET", f"/_ingest/pipeline/{layout.name}", accept={404})
    stored = {} if answer.status == 404 else answer.body.get(layout.name, {})
    return all(stored.get(key) == value for key, value in _PIPELINE.items())


def _put(cluster: Cluster, name: str, path: str, body: Mapping[str, Any], said: str) -> Check:
    stored = _stored_meta(cluster, path)
    if stored.get("digest") == body["_meta"]["digest"]:
        return Check(name, "ok", said)
    cluster.request("PUT", path, body=body)
    return Check(name, "changed", f"{'replaced' if stored else 'put'}: {said}")


def _stored_meta(cluster: Cluster, path: str) -> Mapping[str, Any]:
    """Return `_meta` of a stored template, {} if there is none."""
    answer = cluster.request("GET", path, accept={404})
    if answer.status == 404:
        return {}
    kind = path.split("/")[1].removeprefix("_")
    return answer.body[f"{kind}s"][0][kind].get("_meta") or {}


def _marked(layout: Layout, body: Mapping[str, Any]) -> dict[str, Any]:
    return {**body, "_meta": {"managed_by": "vedette", "digest": _digest(body), "layout": layout.digest}}


def _component(cluster: Cluster, layout: Layout, fields: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return the component template for this server and what is to be said about it."""
    types = {name: _AS.get(kind, kind) for name, kind in {**fields, **layout.own}.items()}
    parents = {name[:place] for name in types for place, sign in enumerate(name) if sign == "."}
    leaves = {name: kind for name, kind in types.items() if name not in parents}
    known = {kind: _known_form(cluster, kind) for kind in sorted(set(leaves.values()))}
    forms: dict[str, Form] = {name: known[kind] for name, kind in leaves.items()}
    forms |= {name: {"type": "nested"} for name in parents if types.get(name) == "nested"}
    for name, value in (("data_stream.type", "logs"), ("data_stream.dataset", f"vedette.{layout.dataset}")):
        if forms[name]["type"] == "constant_keyword":
            forms[name] = {"type": "constant_keyword", "value": value}
    forms |= layout.fixed
    template: dict[str, Any] = {
        "settings": {"index": dict(layout.settings)},
        "mappings": {"dynamic": False, "properties": _tree(forms)},
    }
    if _accepts(cluster, {"settings": {"index.mode": "standard"}}):
        template["settings"]["index"]["mode"] = "standard"
    off = {"data_stream_options": {"failure_store": {"enabled": False}}}
    if _accepts(cluster, off):
        template |= off
    body = _marked(layout, {"template": template})
    template["mappings"]["_meta"] = body["_meta"]
    return body, _size(len(forms), template["mappings"]) + _downgraded(leaves, known)


def _known_form(cluster: Cluster, kind: str) -> Form:
    """Return the best form of an ECS type that this server knows."""
    if kind == "nested":  # without fields of its own: nothing to index
        return _OPAQUE
    *better, last = _FORMS.get(kind, [{"type": kind}])
    for form in better:
        if _accepts(cluster, {"mappings": {"properties": {"field": form}}}):
            return form
    return last


def _accepts(cluster: Cluster, template: Mapping[str, Any]) -> bool:
    """Say if the server knows everything in *template*; nothing is stored."""
    body = {"index_patterns": ["vedette-probe"], "priority": 2**31 - 1, "data_stream": {}, "template": template}
    return cluster.request("POST", "/_index_template/_simulate", body=body, accept={400}).status == 200


def _tree(forms: Mapping[str, Form]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for name, form in sorted(forms.items()):  # a nested parent before its children
        *path, last = name.split(".")
        place = root
        for part in path:
            place = place.setdefault(part, {}).setdefault("properties", {})
        place[last] = dict(form)
    return root


def _size(count: int, mapping: Mapping[str, Any]) -> str:
    text = orjson.dumps(mapping)
    return (
        f"{count} fields, {len(text) / 1024:.0f} KiB of JSON, {len(zlib.compress(text)) / 1024:.0f} KiB compressed "
        "as the cluster state keeps it"
    )


def _downgraded(leaves: Mapping[str, str], known: Mapping[str, Form]) -> str:
    """Say which types this server lacks, for which fields, and what stands in their place."""
    lacking: defaultdict[str, list[str]] = defaultdict(list)
    for name, kind in sorted(leaves.items()):
        if kind in _FORMS and known[kind] != _FORMS[kind][0]:
            form = known[kind]
            lacking[f"{kind} → {'object, not indexed' if form == _OPAQUE else form['type']}"].append(name)
    if not lacking:
        return "; the server knows all types"
    said = (f"{what} ({_some(names)})" for what, names in sorted(lacking.items()))
    return "; types that this server lacks: " + ", ".join(said)


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _effective(cluster: Cluster, layout: Layout, digest: str) -> Check:
    """Ask the server what our template gives together with the operator's own component template."""
    template = cluster.request("POST", f"/_index_template/_simulate/{layout.name}").body.get("template")
    wrong = [
        f"{'.'.join(path)} is {found}"
        for path, wanted in (
            (("settings", "index", "final_pipeline"), layout.name),
            (("mappings", "dynamic"), "false"),
            (("mappings", "_meta", "digest"), digest),
        )
        if str(found := _at(template, *path)).lower() != wanted
    ]
    if wrong:
        return Check("effective template", "failed", f"with {layout.custom}: {', '.join(wrong)}",
                     f"remove from the component template {layout.custom} what is not yours to change")  # fmt: skip
    return Check("effective template", "ok", f"new backing indices get this mapping and the pipeline {layout.name}")


def _at(value: Any, *path: str) -> Any:
    """Return what lies at *path* in nested objects, None where one is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _overruled(templates: Mapping[str, Mapping[str, Any]], layout: Layout, stream: str) -> Check:
    """Say whose template makes *stream*: of those that match, the one with the highest priority."""
    rivals = [
        f"{name} (priority {template.get('priority', 0)})"
        for name, template in templates.items()
        if name != layout.name
        and template.get("priority", 0) > PRIORITY
        and any(matches(pattern, stream) for pattern in template["index_patterns"])
    ]
    if rivals:
        return Check("precedence", "failed", f"{stream} would be made by another template: {', '.join(sorted(rivals))}",
                     f"give it a priority below {PRIORITY}, or patterns that do not match {stream}")  # fmt: skip
    return Check("precedence", "ok", f"no template comes before ours for {stream}")


def _templates(cluster: Cluster) -> Mapping[str, Mapping[str, Any]]:
    found = cluster.request("GET", "/_index_template").body.get("index_templates", [])
    return {one["name"]: one["index_template"] for one in found}


def _renew(cluster: Cluster, stream: str, digest: str) -> Check:
    """Roll an existing stream over if its write index has another mapping.

    A new backing index always takes the new template; putting the mapping on the old one would fail on changed types
    and leave its settings.
    """
    found = _Stream(cluster, stream)
    if found.plain:
        return _not_a_stream(stream)
    if not found.backing:
        return Check("stream", "ok", f"{stream} is made with its first document")
    if found.meta().get("digest") == digest:
        return Check("stream", "ok", f"{found.write} has this mapping")
    new = cluster.request("POST", f"/{segment(stream)}/_rollover").body["new_index"]
    return Check(
        "stream", "changed", f"{stream} rolled over to {new}, which has this mapping; what is there keeps its own"
    )


def _not_a_stream(stream: str) -> Check:
    return Check(
        "stream",
        "failed",
        f"{stream} is an ordinary index or an alias, made before the template was there",
        f"reindex what is worth keeping, delete {stream}, then run vedette setup",
    )


class _Stream:
    """A data stream as it stands: its backing indices, the last of which is written to."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        answer = cluster.request("GET", f"/_resolve/index/{segment(name)}", accept={404})
        found = {} if answer.status == 404 else answer.body
        self.plain = bool(found.get("indices") or found.get("aliases"))
        self.backing: Sequence[str] = [one for each in found.get("data_streams", []) for one in each["backing_indices"]]

    @property
    def write(self) -> str:
        return self.backing[-1]

    def mappings(self) -> Mapping[str, Any]:
        answer = self._cluster.request("GET", f"/{segment(self.write)}/_mapping")
        return answer.body[self.write]["mappings"]  # type: ignore[no-any-return]

    def meta(self) -> Mapping[str, Any]:
        return self.mappings().get("_meta") or {}


# --- roles ------------------------------------------------------------------------------------------------------------

_RESOLVE = "indices:admin/resolve/index"
_TEMPLATES = "indices:admin/index_template/get"
_OPEN_METADATA = [_RESOLVE, "indices:admin/mappings/get"]
# (cluster, index) privileges. `cluster:monitor/main` is GET / alone, which Elasticsearch's `monitor` also includes.
_READ: Mapping[FlavourName, tuple[Sequence[str], Sequence[str]]] = {
    "elasticsearch": (["cluster:monitor/main"], ["monitor", "read"]),
    "opensearch": (
        ["cluster:monitor/main"],
        [_RESOLVE, "indices:data/read/search", "indices:monitor/settings/get", "indices:monitor/stats"],
    ),
}
_WRITE: Mapping[FlavourName, tuple[Sequence[str], Sequence[str]]] = {
    "elasticsearch": (
        ["cluster:monitor/main", _TEMPLATES],
        ["auto_configure", "create_doc", "read", "view_index_metadata"],
    ),
    "opensearch": (
        ["cluster:monitor/main", _TEMPLATES, "indices:data/read/mget", "indices:data/write/bulk"],
        [
            *_OPEN_METADATA,
            "indices:admin/create",
            "indices:data/read/mget[shard]",
            "indices:data/read/search",
            "indices:data/write/bulk[s]",
            "indices:data/write/index",
            "indices:monitor/settings/get",
        ],
    ),
}
_SET_UP: Mapping[FlavourName, tuple[Sequence[str], Sequence[str]]] = {
    "elasticsearch": (
        ["cluster:monitor/main", "manage_index_templates", "manage_ingest_pipelines"],
        ["indices:admin/rollover", "indices:monitor/stats", "view_index_metadata"],
    ),
    "opensearch": (
        [
            "cluster:monitor/main",
            "cluster:admin/component_template/get",
            "cluster:admin/component_template/put",
            "cluster:admin/ingest/pipeline/get",
            "cluster:admin/ingest/pipeline/put",
            _TEMPLATES,
            "indices:admin/index_template/put",
            "indices:admin/index_template/simulate",
        ],
        [*_OPEN_METADATA, "indices:admin/rollover", "indices:monitor/stats"],
    ),
}


def source_roles(flavour: FlavourName, patterns: Sequence[str]) -> Mapping[str, Any]:
    """Return the role that reads *patterns*. Patterns of another cluster need the same role there."""
    names = [one.rpartition(":")[2] for one in patterns if not one.startswith("-")]
    return {SOURCE: _role(flavour, _READ[flavour], names)}


def sink_roles(flavour: FlavourName, namespace: str) -> Mapping[str, Any]:
    """Return the role that adds documents to the streams of *namespace* and reads them back.

    On Elasticsearch it cannot change a document. OpenSearch has no privilege to create without one to overwrite: there
    it can replace one by addressing its backing index and sequence number.
    """
    return {SINK: _role(flavour, _WRITE[flavour], _streams(namespace))}


def setup_roles(flavour: FlavourName, namespace: str) -> Mapping[str, Any]:
    """Return the role that `install` needs, for the account of whoever runs `vedette setup`."""
    return {SETUP: _role(flavour, _SET_UP[flavour], _streams(namespace))}


def _role(flavour: FlavourName, privileges: tuple[Sequence[str], Sequence[str]], names: Sequence[str]) -> Any:
    cluster, index = (sorted(some) for some in privileges)
    if flavour == "elasticsearch":
        return {"cluster": cluster, "indices": [{"names": list(names), "privileges": index}]}
    return {
        "cluster_permissions": cluster,
        "index_permissions": [{"index_patterns": list(names), "allowed_actions": index}],
    }


# --- doctor -----------------------------------------------------------------------------------------------------------

_SUPPORTED: Mapping[FlavourName, Sequence[int]] = {"elasticsearch": (8, 9), "opensearch": (2, 3)}
_CLOCK = 30.0
"""Seconds that our clock and the cluster's may differ."""
_TIMED = "read by ingest time with overlap instead of by sequence number"


def examine_source(cluster: Cluster, patterns: Sequence[str]) -> Iterator[Check]:
    """Say whether the indices of *patterns* can be read, and read exactly."""
    yield from _careful(cluster, _examine_source(cluster, patterns))


def examine_sink(cluster: Cluster, namespace: str) -> Iterator[Check]:
    """Say whether documents can be written to the streams of *namespace*, and will look there as they should."""
    yield from _careful(cluster, _examine_sink(cluster, namespace))


def _careful(cluster: Cluster, checks: Iterator[Check]) -> Iterator[Check]:
    try:
        yield from checks
    except Denied as error:
        yield Check("reach", "failed", str(error), "check the credentials and the roles they are given")
    except (ConfigError, Refused) as error:
        yield Check("reach", "failed", str(error), "correct the source's or sink's options in vedette.yml")
    except RetryableError as error:
        yield Check("reach", "failed", str(error), f"see that {cluster.place} runs and can be reached from here")


def _reach(cluster: Cluster) -> Iterator[Check]:
    cluster.connect()
    version = ".".join(map(str, cluster.version))
    name = f"{cluster.flavour} {version} at {cluster.place}"
    if cluster.version[0] in _SUPPORTED[cluster.flavour]:
        yield Check("reach", "ok", name)
    else:
        majors = " and ".join(map(str, _SUPPORTED[cluster.flavour]))
        yield Check("reach", "warning", name, f"supported are versions {majors}: upgrade the cluster")
    try:
        status = cluster.request("GET", "/_cluster/health", params={"filter_path": "status"}).body["status"]
    except (Denied, Refused):
        return  # not among the privileges that we need; a serverless cluster has no such request
    if status == "red":
        yield Check("health", "failed", "the cluster is red: some primary shards are missing",
                    "see GET _cluster/allocation/explain for the first of them")  # fmt: skip


def _examine_source(cluster: Cluster, patterns: Sequence[str]) -> Iterator[Check]:
    yield from _reach(cluster)
    if cluster.build == "serverless":
        yield Check(
            "feed", "warning", f"serverless: all indices are {_TIMED}", "nothing to do; late events may be lost"
        )
    include = [one for one in patterns if not one.startswith("-")]
    remote = [one for one in include if ":" in one]
    if remote:
        yield Check("feed", "warning", f"{_some(remote)}: of another cluster, so {_TIMED}",
                    "make the other cluster a source of its own")  # fmt: skip
    excluded = [one for one in patterns if one.startswith("-")]
    names: set[str] = set()
    for pattern in include:
        if ":" in pattern:
            continue
        try:
            found = find(cluster, [pattern, *excluded])
        except Denied as error:
            yield _denied("patterns", error, cluster, "read", _RESOLVE, SOURCE)
            continue
        closed = sorted(name for name, one in found.items() if one.closed)
        names.update(found.keys() - set(closed))
        if closed:
            yield Check("patterns", "warning", f"{pattern}: closed and not read: {_some(closed)}",
                        "open them (POST INDEX/_open) or leave them out of the patterns")  # fmt: skip
        if found:
            yield Check("patterns", "ok", f"{pattern}: {len(found) - len(closed)} open indices")
        else:
            yield Check("patterns", "warning", f"{pattern}: matches nothing that we may read",
                        f"correct the pattern, or add it to the role {SOURCE}")  # fmt: skip
    if names:
        yield from _examine_indices(cluster, sorted(names))


def _examine_indices(cluster: Cluster, names: Sequence[str]) -> Iterator[Check]:
    running: Mapping[str, int] | None = None
    try:
        if cluster.build != "serverless":
            running = {name: len(shards) for name, (_, shards) in sights(cluster, names).items() if shards}
    except Denied as error:
        yield _denied("feed", error, cluster, "monitor", "indices:monitor/stats", SOURCE,
                      state="warning", said=f"_stats is denied, so all indices are {_TIMED}")  # fmt: skip
    try:
        yield from _examine_settings(identify(cluster, names), running)
    except Denied as error:
        yield _denied("settings", error, cluster, "monitor", "indices:monitor/settings/get", SOURCE)
    try:
        yield _clock(cluster, next(iter(running or names)))
    except Denied as error:
        yield _denied("search", error, cluster, "read", "indices:data/read/search", SOURCE)
    except RetryableError as error:
        yield Check("search", "failed", str(error), "mend the cluster's shards, or wait until they are back")
    yield from _examine_restrictions(cluster)


def _examine_settings(found: Mapping[str, Identity], shards: Mapping[str, int] | None) -> Iterator[Check]:
    indices = sorted(found.values(), key=lambda one: one.name)
    lost = {one: one.shards - shards.get(one.name, 0) for one in indices} if shards is not None else {}
    missing = [f"{one.name} ({number} of {one.shards})" for one, number in lost.items() if number > 0]
    unnumbered = [one.name for one in indices if one.unnumbered]
    unrefreshed = [one.name for one in indices if one.refresh_s == math.inf]
    if missing:
        yield Check("shards", "failed", f"no copy is running, so these cannot be read: {_some(missing)}",
                    "see GET _cluster/allocation/explain; what they hold is read once they are back")  # fmt: skip
    elif shards is not None:
        yield Check("shards", "ok", f"{sum(shards.values())} shards, all running")
    if unnumbered:
        yield Check("feed", "warning", f"sequence numbers are disabled, so {_TIMED}: {_some(unnumbered)}",
                    "create new indices without index.disable_sequence_numbers")  # fmt: skip
    if unrefreshed:
        yield Check("refresh", "warning", f"refresh_interval -1, so new events stay unseen: {_some(unrefreshed)}",
                    "set index.refresh_interval to 5s, or to null for the default")  # fmt: skip


def _clock(cluster: Cluster, index: str) -> Check:
    """Search, and learn the server's clock from it: how it understood `now`."""
    ranges = {"date_range": {"field": "@timestamp", "ranges": [{"from": "now"}]}}
    before = time.time()
    answer = cluster.request("POST", f"/{segment(index)}/_search", body={"size": 0, "aggs": {"now": ranges}})
    after = time.time()
    there = answer.body["aggregations"]["now"]["buckets"][0]["from"] / 1000
    ahead = there - min(max(there, before), after)  # beyond what the request itself took
    if abs(ahead) > _CLOCK:
        return Check("clock", "warning", f"the cluster's clock is {ahead:+.0f} s from ours",
                     "synchronise both clocks (NTP): lateness is judged by them")  # fmt: skip
    return Check("search", "ok", f"{index} answers; its clock and ours agree to {_CLOCK:.0f} s")


def _examine_restrictions(cluster: Cluster) -> Iterator[Check]:
    """Elasticsearch tells everybody their own privileges; a query in a role hides documents, not their numbers."""
    if cluster.flavour != "elasticsearch":
        return
    try:
        granted = cluster.request("GET", "/_security/user/_privileges").body.get("indices", [])
    except VedetteError:  # no security, no restrictions
        return
    narrow = sorted({name for one in granted if one.get("query") for name in one["names"]})
    if narrow:
        hidden = f"document-level security hides documents of {_some(narrow)}: no rule sees them, they count as gone"
        yield Check("feed", "warning", hidden, f"give the role {SOURCE} without a query")


def _denied(
    name: str,
    error: Denied,
    cluster: Cluster,
    elastic: str,
    opened: str,
    role: str,
    *,
    state: Any = "failed",
    said: str = "",
) -> Check:
    privilege = elastic if cluster.flavour == "elasticsearch" else opened
    return Check(name, state, said or str(error), f"grant the index privilege {privilege}, as in the role {role}")


def _examine_sink(cluster: Cluster, namespace: str) -> Iterator[Check]:
    yield from _reach(cluster)
    for layout in LAYOUTS:
        yield from _of(layout, _examine_layout(cluster, layout, stream_name(namespace, layout.dataset)))


def _examine_layout(cluster: Cluster, layout: Layout, name: str) -> Iterator[Check]:
    try:
        stream = _Stream(cluster, name)
    except Denied as error:
        yield _denied("stream", error, cluster, "view_index_metadata", _RESOLVE, SINK)
        return
    yield from _examine_templates(cluster, layout, name)
    if stream.plain:
        yield _not_a_stream(name)
    elif not stream.backing:
        yield Check("stream", "ok", f"{name} is made with its first document")
    else:
        yield from _examine_stream(cluster, layout, name, stream)


def _examine_templates(cluster: Cluster, layout: Layout, stream: str) -> Iterator[Check]:
    again = "run vedette setup"
    try:
        templates = _templates(cluster)
        meta = templates.get(layout.name, {}).get("_meta") or {}
        if not meta:
            yield Check("template", "failed", f"there is no index template {layout.name} of ours", again)
        elif meta.get("layout") != layout.digest:
            yield Check("template", "warning", f"{layout.name} was installed by another version of Vedette", again)
        else:
            yield Check("template", "ok", f"{layout.name} is of this version")
        yield _overruled(templates, layout, stream)
    except Denied as error:
        yield Check(
            "template", "failed", str(error), f"grant the cluster privilege {_TEMPLATES}, as in the role {SINK}"
        )
    try:  # the sink's own role need not see these
        stored = _stored_meta(cluster, f"/_component_template/{layout.name}")
        if not stored:
            yield Check("mapping", "failed", f"there is no component template {layout.name} of ours", again)
        elif meta:
            yield _effective(cluster, layout, str(stored.get("digest")))
        if not _pipeline_stands(cluster, layout):
            said = f"{layout.name} is missing or changed; without it documents are refused"
            yield Check("pipeline", "failed", said, again)
    except Denied:
        return


def _examine_stream(cluster: Cluster, layout: Layout, name: str, stream: _Stream) -> Iterator[Check]:
    ours = False
    steps: Sequence[tuple[str, str, str, Callable[[], Iterator[Check]]]] = (
        ("stream", "view_index_metadata", "indices:admin/mappings/get", lambda: _examine_mapping(layout, stream)),
        ("stream", "view_index_metadata", "indices:monitor/settings/get",
         lambda: _examine_blocks(cluster, layout, stream)),
        ("read", "read", "indices:data/read/mget[shard]", lambda: _examine_mget(cluster, stream)),
        ("ingest time", "read", "indices:data/read/search", lambda: _examine_newest(cluster, layout, name)),
    )  # fmt: skip
    for step, elastic, opened, look in steps:
        try:
            for check in look():
                ours |= step == "stream" and check.state == "ok"
                yield check
        except Denied as error:
            yield _denied(step, error, cluster, elastic, opened, SINK)
    if ours:  # else the empty document might be taken
        yield _examine_create(cluster, name)


def _examine_mapping(layout: Layout, stream: _Stream) -> Iterator[Check]:
    mappings = stream.mappings()
    meta = mappings.get("_meta") or {}
    if meta.get("managed_by") != "vedette":
        yield Check("stream", "failed", f"{stream.write} has not our mapping", "run vedette setup")
        return
    types = _at(mappings, "properties", "data_stream", "properties") or {}
    said = ", ".join(f"data_stream.{one} {form.get('type')}" for one, form in sorted(types.items()))
    if meta.get("layout") == layout.digest:
        yield Check("stream", "ok", f"{stream.write}, one of {len(stream.backing)}, has our mapping: {said}")
    else:
        yield Check("stream", "warning", f"{stream.write} has the mapping of another version of Vedette",
                    "run vedette setup")  # fmt: skip


def _examine_blocks(cluster: Cluster, layout: Layout, stream: _Stream) -> Iterator[Check]:
    answer = cluster.request("GET", f"/{segment(stream.write)}/_settings")
    index = answer.body[stream.write]["settings"]["index"]
    blocks = sorted(name for name, value in (index.get("blocks") or {}).items() if str(value) == "true")
    if "read_only_allow_delete" in blocks:
        yield Check("blocks", "failed", f"{stream.write} is read-only: a disk passed the flood-stage watermark",
                    "free disk space; the server then lifts the block by itself")  # fmt: skip
    elif set(blocks) & {"write", "read_only"}:
        yield Check("blocks", "failed", f"{stream.write} is blocked: {', '.join(blocks)}",
                    "remove the block, or roll the stream over")  # fmt: skip
    if index.get("final_pipeline") != layout.name:
        yield Check("pipeline", "failed", f"{stream.write}: final_pipeline is {index.get('final_pipeline')}",
                    f"set index.final_pipeline to {layout.name}")  # fmt: skip


def _examine_mget(cluster: Cluster, stream: _Stream) -> Iterator[Check]:
    """Ask for an id in each backing index, as the sink does before it sends again."""
    docs = [{"_index": index, "_id": "vedette-doctor", "_source": False} for index in stream.backing]
    answer = cluster.request("POST", "/_mget", body={"docs": docs})
    refused = [one["error"] for one in answer.body["docs"] if "error" in one]
    if refused:
        raise Denied(403, f"_mget: {refused[0].get('reason') or refused[0].get('type')}")
    yield Check("read", "ok", f"documents can be looked up in {len(docs)} backing indices")


def _examine_newest(cluster: Cluster, layout: Layout, name: str) -> Iterator[Check]:
    body = {"size": 1, "sort": [{"@timestamp": "desc"}], "_source": False, "docvalue_fields": ["event.ingested"]}
    hits = cluster.request("POST", f"/{segment(name)}/_search", body=body).body["hits"]["hits"]
    if hits and "fields" not in hits[0]:
        yield Check("ingest time", "failed", f"{hits[0]['_id']} has no date in event.ingested: rules that go by it "
                    "never see it", f"run vedette setup; the pipeline {layout.name} sets it")  # fmt: skip
    elif hits:
        yield Check("ingest time", "ok", f"{hits[0]['_id']}, the newest, has event.ingested")


def _examine_create(cluster: Cluster, name: str) -> Check:
    """Create a document that no stream takes, since it has no time: whoever may not create is told so first."""
    line = orjson.dumps({"create": {"_index": name, "_id": "vedette-doctor"}})
    try:
        item = cluster.request("POST", "/_bulk", body=line + b"\n{}\n").body["items"][0]["create"]
    except Denied as error:
        return _denied("write", error, cluster, "create_doc", "indices:data/write/bulk", SINK)
    reason = str((item.get("error") or {}).get("reason"))
    if item["status"] == 403 and "block" not in reason:
        return _denied("write", Denied(403, reason), cluster, "create_doc", "indices:data/write/index", SINK)
    if item["status"] == 400 and "pipeline" not in reason:
        return Check("write", "ok", f"documents can be created in {name}")
    return Check("write", "failed", f"{name}: {item['status']} {reason}", "run vedette setup, then look again")
