"""What Kibana and OpenSearch ask of the alert stream, asked of a real server: promotion, monitor and dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from agent.alerting.document import iso
from agent.normalise.catalogue import catalogue
from connectors.siem.client import Cluster, segment
from tests.siem import bulk, connected
from tests.unit.test_saved_objects import VEDETTE, audit_copies, dashboards, flat, lines, samples

pytestmark = pytest.mark.servers

AGO = 3 * 3600 * 1_000_000
"""Microseconds by which the alerts' own time lies back: rules must go by the time of ingest."""


@dataclass(frozen=True)
class Stream:
    """An index with our sample alerts, a later revision of one of them, and somebody else's alert."""

    cluster: Cluster
    index: str
    alerts: list[dict[str, Any]]

    def search(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.cluster.request("POST", f"/{segment(self.index)}/_search", body=body).body
        return answer

    def ids(self, *queries: dict[str, Any], without: tuple[dict[str, Any], ...] = ()) -> set[str]:
        """Return `_id` of what all *queries* match and none of *without*."""
        query = {"bool": {"filter": list(queries), "must_not": list(without)}}
        return {hit["_id"] for hit in self.search({"size": 100, "query": query})["hits"]["hits"]}


@pytest.fixture
def stream(siem: Any) -> Iterator[Stream]:
    cluster = connected(siem.flavour, siem.access())
    index = f"test-promotion-{uuid4().hex[:8]}"
    now = int(time.time()) * 1_000_000
    alerts = samples(now - AGO)
    for alert in alerts:
        alert["event"]["ingested"] = iso(now)
    revision = alerts[0] | {"event": alerts[0]["event"] | {"kind": "event"}}
    foreign = alerts[0] | {"event": {"kind": "alert", "module": "suricata", "ingested": iso(now)}}
    documents = {f"ours-{number}": alert for number, alert in enumerate(alerts)}
    documents |= {"later": revision, "foreign": foreign}
    actions = [line for id, body in documents.items() for line in ({"create": {"_id": id}}, body)]
    try:
        settings = {"index.number_of_replicas": 0}
        cluster.request("PUT", f"/{index}", body={"settings": settings, "mappings": _mappings(alerts)})
        bulk(cluster, index, actions)
        yield Stream(cluster, index, alerts)
    finally:
        cluster.request("DELETE", f"/{index}", accept={404})
        cluster.close()


def _mappings(alerts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a closed mapping of the alerts' ECS fields by the catalogue's types, and of our own that are read."""
    ecs = catalogue().fields
    types = {name: ecs[name].type for alert in alerts for name in flat(alert) if name in ecs}
    types |= VEDETTE
    as_text = {name: "text" if kind == "match_only_text" else kind for name, kind in types.items()}
    properties = {name: {"type": kind} for name, kind in as_text.items() if kind not in ("object", "flattened")}
    return {"dynamic": False, "properties": properties}


def _rule() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the promotion rule, and its time window as the detection engine asks for it."""
    [rule] = lines("elastic/promotion-rule.ndjson")
    return rule, {"range": {rule["timestamp_override"]: {"gte": rule["from"], "lte": rule["to"]}}}


def test_alerts_are_promoted_once(stream: Stream) -> None:
    """Our rule takes each of our alerts and no later revision; the generic rule, with our exception, all others."""
    rule, window = _rule()
    ours = {f"ours-{number}" for number in range(len(stream.alerts))}
    assert stream.ids(window, dashboards.dsl(dashboards.OURS)) == ours
    text = {"query_string": {"query": rule["query"].replace(" and ", " AND ")}}
    assert stream.ids(window, text) == ours, "the rule's text and its translation say the same"

    generic = [window, {"term": {"event.kind": "alert"}}]
    builtin = {"terms": {"event.module": ["endgame", "endpoint", "cloud_defend"]}}
    assert stream.ids(*generic, without=(builtin,)) == ours | {"foreign"}
    [entry] = lines("elastic/exception-list.ndjson")[1]["entries"]
    exception = {"term": {entry["field"]: entry["value"]}}
    assert stream.ids(*generic, without=(builtin, exception)) == {"foreign"}


def test_old_alerts_are_promoted(stream: Stream) -> None:
    """By their own time the alerts are too old for the rule; that they arrived just now is what counts."""
    rule, window = _rule()
    by_event_time = {"range": {"@timestamp": {"gte": rule["from"]}}}
    assert stream.ids(dashboards.dsl(dashboards.OURS), by_event_time) == set()
    assert stream.ids(dashboards.dsl(dashboards.OURS), window)


def test_overrides_have_values(stream: Stream) -> None:
    """Name, severity, risk and suppression key of a detection alert come from fields that every alert of ours has."""
    [rule] = lines("elastic/promotion-rule-suppressed.ndjson")
    severities = {mapping["value"] for mapping in rule["severity_mapping"]}
    risk = rule["risk_score_mapping"][0]["field"]
    wanted = [rule["rule_name_override"], "event.severity", risk, *rule["alert_suppression"]["group_by"]]
    body = {"query": dashboards.dsl(dashboards.OURS), "fields": wanted, "_source": False}
    hits = stream.search(body)["hits"]["hits"]
    assert len(hits) == len(stream.alerts)
    for hit in hits:
        assert set(hit["fields"]) == set(wanted)
        assert str(hit["fields"]["event.severity"][0]) in severities
        assert 0 < hit["fields"][risk][0] <= 100


@pytest.mark.parametrize("panel", dashboards.PANELS, ids=lambda panel: panel.id)
def test_panels_have_something_to_show(stream: Stream, panel: Any) -> None:
    """Each panel's search is taken by the server and has a value in every row, for every group and every metric."""
    answer = stream.search(panel.request())
    assert answer["hits"]["total"]["value"] > 0
    _check(answer.get("aggregations", {}), panel)


def _check(found: dict[str, Any], panel: Any, depth: int = 0) -> None:
    if depth == len(panel.buckets):
        for one in panel.distinct:
            assert found[f"distinct {one.field}"]["value"] > 0
        return
    buckets = found[panel.buckets[depth].type]["buckets"]
    rows = list(buckets.values()) if isinstance(buckets, dict) else buckets
    assert rows
    for row in rows:
        assert row["doc_count"] > 0
        _check(row, panel, depth + 1)


def _columns(view: Any) -> tuple[list[str], dict[str, str]]:
    """Return what the saved search of *view* shows and what it sorts by."""
    [search] = [saved for saved in lines("elastic/dashboards.ndjson") if saved["id"] == f"{view.id}-list"]
    return search["attributes"]["columns"], dict(search["attributes"]["sort"])


def test_list_of_alerts(stream: Stream) -> None:
    """The saved search sorts by time and finds a value for each of its columns."""
    columns, order = _columns(dashboards.ALERT_VIEW)
    body = {"query": dashboards.dsl(dashboards.OURS), "sort": order, "fields": columns, "_source": False}
    hits = stream.search(body)["hits"]["hits"]
    assert set().union(*(hit["fields"] for hit in hits)) == set(columns)


def test_monitor_sorts_by_severity(stream: Stream) -> None:
    """Each alert of ours is found by exactly one of the monitor's queries, the one of its severity."""
    queries = dashboards.monitor()["inputs"][0]["doc_level_input"]["queries"]
    found = {query["name"]: stream.ids({"query_string": {"query": query["query"]}}) for query in queries}
    assert found == {"critical": set(), "high": {"ours-0"}, "medium": {"ours-1"}, "low": {"ours-2"}}


def test_list_of_the_audit_log(siem: Any) -> None:
    """It shows what ran and by whom, and neither batches nor checkpoints."""
    view, copies = dashboards.AUDIT_VIEW, audit_copies()
    columns, order = _columns(view)
    with closing(connected(siem.flavour, siem.access())) as cluster:
        stream = Stream(cluster, f"test-promotion-{uuid4().hex[:8]}", [])
        try:
            cluster.request("PUT", f"/{stream.index}", body={"mappings": _mappings(copies)})
            bulk(cluster, stream.index, [line for one in copies for line in ({"create": {}}, one)])
            query = dashboards.dsl(view.where, view.without)
            found = stream.search({"query": query, "sort": order, "fields": columns, "_source": False})
        finally:
            cluster.request("DELETE", f"/{stream.index}", accept={404})
    [hit] = found["hits"]["hits"]
    assert set(hit["fields"]) == set(columns)
    assert hit["fields"]["user.name"] == ["ada"]
