"""The SIEM sink keeps the port's promises on real servers, and what only it promises."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest

from agent.errors import ConfigError
from agent.model import DELIVERED, Document, Outcome
from agent.ports import Sink
from agent.testing import SINK_CHECKS, SinkHarness, run
from connectors.siem.client import FlavourName
from connectors.siem.install import Dataset, stream_name
from connectors.siem.sink import SiemSink, build
from tests.siem import audit_copy, connected, document

pytestmark = pytest.mark.servers

TEMPLATE: dict[str, Any] = {
    "index_patterns": ["logs-vedette.alert-sinktest*", "logs-vedette.audit-sinktest*"],
    "priority": 700,
    "data_stream": {},
    "template": {
        "settings": {"number_of_shards": 1, "number_of_replicas": 0},
        "mappings": {
            "dynamic": False,
            "properties": {
                "@timestamp": {"type": "date"},
                "message": {"type": "text"},
                "event": {"properties": {"id": {"type": "keyword"}, "kind": {"type": "keyword"}}},
                "host": {"properties": {"name": {"type": "keyword"}}},
                "process": {"properties": {"start": {"type": "date"}, "pid": {"type": "long"}}},
                "source": {"properties": {"ip": {"type": "ip"}}},
                "labels": {"type": "object", "dynamic": True},
            },
        },
    },
}


class Stream:
    """A data stream of its own on a real server, and requests about it."""

    def __init__(self, siem: Any, dataset: Dataset = "alert") -> None:
        self.options = dict(siem.access())
        self.namespace = f"sinktest{uuid.uuid4().hex}"
        self.name = stream_name(self.namespace, dataset)
        self.flavour = siem.flavour
        self._cluster = connected(siem.flavour, self.options)
        self.ask("PUT", "/_index_template/vedette-sinktest", TEMPLATE)

    def ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        return self._cluster.request(method, path, body=body, params=params, accept=(400, 404, 405)).body

    def sink(self, **options: Any) -> SiemSink:
        return build(self.flavour)("out", self.options | {"namespace": self.namespace} | options)

    def stored(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        self.ask("POST", f"/{self.name}/_refresh")
        found = self.ask("POST", f"/{self.name}/_search", {"size": 10_000})
        return [(hit["_id"], hit["_source"]) for hit in found.get("hits", {}).get("hits", ())]

    def rollover(self) -> None:
        assert self.ask("POST", f"/{self.name}/_rollover")["rolled_over"] is True

    def set(self, **settings: Any) -> None:
        self.ask("PUT", f"/{self.name}/_settings", {"index": settings})

    def close(self) -> None:
        self.ask("DELETE", f"/_data_stream/{self.name}")
        self._cluster.close()


class Siem(SinkHarness):
    """One data stream. No size is too large: what is larger than a request lands reduced."""

    secrets = ("correct-horse",)

    def __init__(self, siem: Any) -> None:
        self._stream = Stream(siem)

    def sink(self) -> Sink:
        return self._stream.sink()

    def stored(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """What the sink adds, the stream's name, is taken off."""
        return [
            (id, {name: value for name, value in body.items() if name != "data_stream"})
            for id, body in self._stream.stored()
        ]

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Block writes, as the flood stage of the disk watermark does."""
        self._stream.set(**{"blocks.write": True})
        yield
        self._stream.set(**{"blocks.write": False})

    def misconfigured(self) -> Iterable[Callable[[], Sink]]:
        other: FlavourName = "opensearch" if self._stream.flavour == "elasticsearch" else "elasticsearch"
        return [
            lambda: self._stream.sink(namespace="no-dash"),
            lambda: self._stream.sink(colour="red"),
            lambda: self._stream.sink(hosts=["https://writer:correct-horse@127.0.0.1:9"]),
            lambda: self._stream.sink(api_key=None, username="writer", password="file:/no/such/file"),
            lambda: build(other)("out", self._stream.options),
        ]

    def close(self) -> None:
        self._stream.close()


@pytest.mark.parametrize("check", SINK_CHECKS, ids=lambda check: check.__name__)
def test_the_sink_keeps_its_promise(siem: Any, check: Callable[[SinkHarness], None]) -> None:
    run(check, lambda: Siem(siem))


# --- what only this sink promises -------------------------------------------------------------------------------------


@pytest.fixture
def stream(siem: Any) -> Iterator[Stream]:
    made = Stream(siem)
    yield made
    made.close()


@contextmanager
def opened(stream: Stream) -> Iterator[SiemSink]:
    with closing(stream.sink()) as sink:
        sink.open()
        yield sink


def test_a_rollover_before_the_resend_leaves_one_document(stream: Stream) -> None:
    with opened(stream) as sink:
        assert sink.write([document("a"), document("b")]) == [DELIVERED] * 2
        for _ in range(2):
            stream.rollover()
        assert sink.write([document("a", True), document("c", True), document("b", True)]) == [DELIVERED] * 3
        assert sink.counts["found_before_resend"] == 2
    assert sorted(id for id, _ in stream.stored()) == ["a", "b", "c"]


CONFLICTS: Mapping[str, dict[str, Any]] = {
    "scalar for an object": {"host": "flat"},
    "object for a scalar": {"host": {"name": {"first": "x"}}},
    "no date": {"process": {"start": "yesterday"}},
    "no number": {"process": {"pid": "all"}},
    "no address": {"source": {"ip": "10.0.0.300"}},
    "term of 36 KB": {"host": {"name": "x" * 36_000}},
    "1,200 fields": {"labels": {f"field{number}": "x" for number in range(1200)}},
    "a field of the server": {"_id": "forged"},
    "a field without a name": {"": 1},
}


def test_a_document_that_the_mapping_refuses_lands_with_the_reason(stream: Stream) -> None:
    offered = [document(name, message="Title", **fields) for name, fields in CONFLICTS.items()]
    with opened(stream) as sink:
        assert sink.write([document("before"), *offered, document("after")]) == [DELIVERED] * (len(offered) + 2)
        reduced = sink.counts["reduced"]
    stored = dict(stream.stored())
    assert len(stored) == len(stream.stored()) == len(offered) + 2
    whole = []
    for one in offered:
        body = stored[one.id]
        own = body.get("vedette", {})
        if not own:  # the servers differ in what they ignore
            whole.append(one.id)
            continue
        assert own["mapping_conflict"]
        assert json.loads(own["original_document"]) == json.loads(one.body)
        assert (body["message"], body["event"]["id"]) == ("Title", one.id)
    assert reduced == len(offered) - len(whole)
    assert set(whole) <= {"1,200 fields", "term of 36 KB"}


def test_a_document_without_a_time_is_rejected_alone(stream: Stream) -> None:
    with opened(stream) as sink:
        good, bad = sink.write([document("a"), Document("b", b'{"event":{"kind":"alert"}}')])
    assert (good, bad.state) == (DELIVERED, "rejected")
    assert "@timestamp" in bad.reason


PIPELINE: dict[str, Any] = {
    "processors": [
        {"drop": {"if": "ctx.message == 'drop'"}},
        {"fail": {"if": "ctx.message == 'fail'", "message": "not today"}},
        {"set": {"if": "ctx.message == 'move'", "field": "_index", "value": "sinktest-elsewhere"}},
    ]
}


def test_what_a_pipeline_drops_or_moves_is_not_delivered(stream: Stream) -> None:
    stream.ask("PUT", "/_ingest/pipeline/vedette-sinktest", PIPELINE)
    with opened(stream) as sink:
        sink.write([document("first")])
        stream.set(default_pipeline="vedette-sinktest")
        outcomes = sink.write([document(name, message=name) for name in ("keep", "drop", "move", "fail")])
    kept, dropped, moved, failed = outcomes
    assert kept == DELIVERED
    assert (dropped.state, "dropped" in dropped.reason) == ("rejected", True)
    assert moved.state == ("rejected" if stream.flavour == "opensearch" else "retryable"), (
        "Elasticsearch will not move it"
    )
    assert "sinktest-elsewhere" in moved.reason
    assert (failed.state, "not today" in failed.reason) == ("retryable", True)


FORGED: Mapping[str, Any] = {
    "_id": "other",
    "_index": "sinktest-elsewhere",
    "_routing": "other",
    "_version": 7,
    "_version_type": "external",
    "_if_seq_no": 1,
    "_ignored": ["x"],
    "_source": {},
    "_tier": "x",
}


def test_a_document_cannot_say_where_it_goes(stream: Stream) -> None:
    """A pipeline sees such fields as the document's own metadata."""
    stream.ask("PUT", "/_ingest/pipeline/vedette-sinktest", PIPELINE)
    with opened(stream) as sink:
        sink.write([document("first")])
        stream.set(default_pipeline="vedette-sinktest")
        forged = [document(name, False, **{name: value}) for name, value in FORGED.items()]
        assert sink.write([*forged, document("last")]) == [DELIVERED] * (len(forged) + 1)
        assert sink.counts["requests"] == 2, "no document may spoil the request of its neighbours"
    stored = dict(stream.stored())
    assert sorted(id for id, _ in stream.stored()) == sorted(["first", *FORGED, "last"])
    for name in FORGED:
        assert name in stored[name]["vedette"]["mapping_conflict"]
        assert name in json.loads(stored[name]["vedette"]["original_document"])


def test_a_pipeline_that_is_missing_is_waited_for(stream: Stream) -> None:
    with opened(stream) as sink:
        sink.write([document("first")])
        stream.set(default_pipeline="no-such-pipeline")
        (outcome,) = sink.write([document("a")])
        assert outcome == Outcome("retryable", outcome.reason)
        assert "no-such-pipeline" in outcome.reason
        stream.set(default_pipeline=None)
        assert sink.write([document("a", True)]) == [DELIVERED]


def test_a_foreign_template_may_not_make_the_stream(stream: Stream) -> None:
    name = f"foreign-{stream.namespace}"
    foreign = {"index_patterns": [f"logs-*-x{stream.namespace}"], "priority": 800, "data_stream": {}}
    stream.ask("PUT", f"/_index_template/{name}", foreign)
    try:
        with pytest.raises(ConfigError, match=f"{name}.*vedette setup"):
            stream.sink(namespace=f"x{stream.namespace}").open()
    finally:
        stream.ask("DELETE", f"/_index_template/{name}")


def test_an_alias_with_the_name_of_the_stream_is_refused(stream: Stream) -> None:
    index = f"sinktest-{stream.namespace}"
    stream.ask("PUT", f"/{index}", {"aliases": {f"logs-vedette.alert-x{stream.namespace}": {}}})
    try:
        with pytest.raises(ConfigError, match="an alias, not a data stream"):
            stream.sink(namespace=f"x{stream.namespace}").open()
    finally:
        stream.ask("DELETE", f"/{index}")


def test_a_document_larger_than_a_request_lands(stream: Stream) -> None:
    with opened(stream) as sink:
        assert sink.write([document("a"), document("b", text="x" * (6 << 20))]) == [DELIVERED] * 2
    assert dict(stream.stored())["b"]["vedette"]["original_document_cut"] > 5 << 20


# --- copies of the audit log ------------------------------------------------------------------------------------------


@pytest.fixture
def audit(siem: Any) -> Iterator[Stream]:
    made = Stream(siem, "audit")
    yield made
    made.close()


def test_copies_of_the_audit_log_lie_in_a_stream_of_their_own(audit: Stream) -> None:
    with opened(audit) as sink:
        assert sink.write([document("a"), audit_copy("a"), document("b"), audit_copy("c")]) == [DELIVERED] * 4
    assert sorted(id for id, _ in audit.stored()) == ["a", "c"]
    assert {body["data_stream"]["dataset"] for _, body in audit.stored()} == {"vedette.audit"}
    audit.ask("DELETE", f"/_data_stream/{stream_name(audit.namespace)}")


def test_a_rollover_before_a_copy_is_sent_again_leaves_one(audit: Stream) -> None:
    with opened(audit) as sink:
        assert sink.write([audit_copy("a")]) == [DELIVERED]
        audit.rollover()
        assert sink.write([audit_copy("a", True), audit_copy("b", True)]) == [DELIVERED] * 2
        assert sink.counts["found_before_resend"] == 1
    assert sorted(id for id, _ in audit.stored()) == ["a", "b"]


def test_a_copy_that_the_mapping_refuses_waits_alone_and_is_not_cut(audit: Stream) -> None:
    with opened(audit) as sink:
        before, refused, after = sink.write([audit_copy("a"), audit_copy("b", event="flat"), audit_copy("c")])
        assert (before, refused.state, after) == (DELIVERED, "retryable", DELIVERED)
        assert "event" in refused.reason
    assert sorted(id for id, _ in audit.stored()) == ["a", "c"]


def test_a_copy_larger_than_a_request_lands_as_it_is(audit: Stream) -> None:
    with opened(audit) as sink:
        assert sink.write([audit_copy("a"), audit_copy("b", text="x" * (6 << 20))]) == [DELIVERED] * 2
    assert len(dict(audit.stored())["b"]["text"]) == 6 << 20
