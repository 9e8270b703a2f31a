"""Writes the saved objects for Kibana and OpenSearch Dashboards, Elastic's promotion rule and OpenSearch's monitor.

`python packaging/dashboards.py` writes every file of `files()` below this folder. Same source, same bytes.

One description serves both dashboards: no Lens, which OpenSearch lacks, but the classic aggregation-based charts. What
differs is the envelope: Kibana reads `typeMigrationVersion`, OpenSearch Dashboards `migrationVersion`. Either names the
newest migration that our shape does not need: later versions bring it up to date, versions before that one refuse it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

HERE = Path(__file__).parent
TIME = "@timestamp"
LEVELS = {
    "critical": "#bd271e",
    "high": "#e7664c",
    "medium": "#d6bf57",
    "low": "#6092c0",
    "informational": "#98a2b3",
}
SEVERITIES = {"low": 21, "medium": 47, "high": 73, "critical": 99}

Flavour: TypeAlias = Literal["elastic", "opensearch"]
Where: TypeAlias = dict[str, str]
"""Conditions that must all hold: field -> value, or field -> ANY."""
ANY = "*"
ALERTS: Where = {"event.kind": "alert"}
"""Without the later revisions of an alert, which are `event.kind: event`."""
OURS: Where = {"event.kind": "alert", "event.module": "vedette"}


# --- conditions, in the three languages that need them ----------------------------------------------------------------


def kql(where: Where, without: Where | None = None) -> str:
    """Return *where*, and none of *without*, for Kibana and OpenSearch Dashboards."""
    wanted = [f"{field}: {value}" for field, value in where.items()]
    return " and ".join(wanted + [f"not {field}: {value}" for field, value in (without or {}).items()])


def lucene(where: Where) -> str:
    """Return *where* for a per-document monitor."""
    return " AND ".join(f"_exists_:{field}" if value == ANY else f"{field}:{value}" for field, value in where.items())


def dsl(where: Where, without: Where | None = None) -> dict[str, Any]:
    """Return *where*, and none of *without*, as a query for the server itself."""
    return {"bool": {"filter": _clauses(where)} | ({"must_not": _clauses(without)} if without else {})}


def _clauses(where: Where) -> list[dict[str, Any]]:
    return [
        {"exists": {"field": field}} if value == ANY else {"term": {field: value}} for field, value in where.items()
    ]


# --- what is on the dashboard -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    field: str
    label: str
    size: int = 10

    type = "terms"

    def params(self) -> dict[str, Any]:
        return {
            "field": self.field,
            "size": self.size,
            "order": "desc",
            "orderBy": "1",
            "otherBucket": False,
            "otherBucketLabel": "Other",
            "missingBucket": False,
            "missingBucketLabel": "Missing",
            "customLabel": self.label,
        }

    def request(self) -> dict[str, Any]:
        return {"terms": {"field": self.field, "size": self.size}}

    def fields(self) -> set[str]:
        return {self.field}


@dataclass(frozen=True)
class OverTime:
    type = "date_histogram"

    def params(self) -> dict[str, Any]:
        return {"field": TIME, "interval": "auto", "min_doc_count": 1, "drop_partials": False, "extended_bounds": {}}

    def request(self) -> dict[str, Any]:
        return {"date_histogram": {"field": TIME, "fixed_interval": "1h", "min_doc_count": 1}}

    def fields(self) -> set[str]:
        return {TIME}


@dataclass(frozen=True)
class Groups:
    """Named groups of documents; one may be in several."""

    of: Mapping[str, Where]

    type = "filters"

    def params(self) -> dict[str, Any]:
        return {
            "filters": [
                {"input": {"query": kql(where), "language": "kuery"}, "label": label}
                for label, where in self.of.items()
            ]
        }

    def request(self) -> dict[str, Any]:
        return {"filters": {"filters": {label: dsl(where) for label, where in self.of.items()}}}

    def fields(self) -> set[str]:
        return {field for where in self.of.values() for field in where}


@dataclass(frozen=True)
class Distinct:
    """The number of different values of a field."""

    field: str
    label: str


@dataclass(frozen=True)
class Panel:
    """A chart of alerts, counted by *buckets* one inside the other; *place* is x, y, width, height of 48."""

    id: str
    title: str
    kind: Literal["metric", "histogram", "pie", "table"]
    place: tuple[int, int, int, int]
    buckets: tuple[Terms | OverTime | Groups, ...] = ()
    distinct: tuple[Distinct, ...] = ()
    only: Where = field(default_factory=dict)
    about: str = ""

    @property
    def where(self) -> Where:
        return ALERTS | self.only

    def fields(self) -> set[str]:
        """Return all fields that the panel reads."""
        return set(self.where).union(*(b.fields() for b in self.buckets), (one.field for one in self.distinct))

    def request(self) -> dict[str, Any]:
        """Return the search that the panel asks of the server."""
        aggs: dict[str, Any] = {f"distinct {d.field}": {"cardinality": {"field": d.field}} for d in self.distinct}
        for bucket in reversed(self.buckets):
            aggs = {bucket.type: bucket.request() | ({"aggs": aggs} if aggs else {})}
        return {"size": 0, "track_total_hits": True, "query": dsl(self.where)} | ({"aggs": aggs} if aggs else {})


_ALERTS_OVER_TIME = (OverTime(), Terms("vedette.level", "Level", len(LEVELS)))
PANELS = (
    Panel(
        "totals",
        "Alerts, rules, hosts, users",
        "metric",
        (0, 0, 32, 7),
        distinct=(Distinct("rule.id", "Rules"), Distinct("host.name", "Hosts"), Distinct("user.name", "Users")),
    ),
    Panel("levels", "Alerts by level", "pie", (32, 0, 16, 17), (Terms("vedette.level", "Level", len(LEVELS)),)),
    Panel("over-time", "Alerts over time by level", "histogram", (0, 7, 32, 10), _ALERTS_OVER_TIME),
    Panel(
        "rules",
        "Top rules",
        "table",
        (0, 17, 24, 14),
        (Terms("rule.name", "Rule"), Terms("vedette.level", "Level", len(LEVELS))),
    ),
    Panel("tactics", "ATT&CK tactics", "table", (24, 17, 24, 14), (Terms("threat.tactic.name", "Tactic", 20),)),
    Panel(
        "hosts",
        "Top hosts",
        "table",
        (0, 31, 24, 14),
        (Terms("host.name", "Host"),),
        distinct=(Distinct("rule.id", "Rules"),),
    ),
    Panel(
        "users",
        "Top users",
        "table",
        (24, 31, 24, 14),
        (Terms("user.name", "User"),),
        distinct=(Distinct("rule.id", "Rules"),),
    ),
    Panel(
        "quality",
        "Data quality",
        "table",
        (0, 45, 24, 12),
        (Terms("rule.name", "What"), Terms("event.reason", "Where and why")),
        only={"rule.category": "quality"},
        about="What could not be read, and rules that made more alerts than are let out.",
    ),
    Panel(
        "incomplete",
        "Alerts that are not whole",
        "table",
        (24, 45, 24, 12),
        (
            Groups(
                {
                    "Written reduced: mapping conflict or size": {"vedette.mapping_conflict": ANY},
                    "Evidence no longer there": {"vedette.evidence.state": "partial"},
                    "Original event cut": {"vedette.original_cut": ANY},
                    "Detector at its cap": {"vedette.capped": "true"},
                }
            ),
        ),
        about="Alerts that carry less than was found, by why.",
    ),
)


@dataclass(frozen=True)
class View:
    """One of our streams: its index pattern, and the list of what is in it, newest first.

    *name* is the data view's, *title* and *about* are the list's. *columns* come after the time, which both dashboards
    show first by themselves; *place* is on the dashboard.
    """

    id: str
    pattern: str
    name: str
    title: str
    about: str
    where: Where
    columns: tuple[str, ...]
    place: tuple[int, int, int, int]
    without: Where = field(default_factory=dict)
    panels: tuple[Panel, ...] = ()

    def fields(self) -> set[str]:
        """Return all fields that a panel or the list reads; the stream must map each."""
        return {TIME, *self.columns, *self.where, *self.without}.union(*(panel.fields() for panel in self.panels))


ALERT_VIEW = View(
    "vedette-alerts",
    "logs-vedette.alert-*",
    "Vedette alerts",
    "Vedette: alerts",
    "Every alert, newest first.",
    ALERTS,
    ("rule.name", "vedette.level", "host.name", "user.name", "event.reason", "rule.id", "event.id"),
    (0, 57, 48, 24),
    panels=PANELS,
)
AUDIT_VIEW = View(
    "vedette-audit",
    "logs-vedette.audit-*",
    "Vedette audit",
    "Vedette: audit",
    "What ran, what was changed or refused, and by whom, newest first; without what each batch and checkpoint adds.",
    {"vedette.audit.number": ANY},
    ("event.action", "event.outcome", "user.name", "message", "vedette.audit.number"),
    (0, 81, 48, 16),
    without={"event.action": "batch"},
)
VIEWS = (ALERT_VIEW, AUDIT_VIEW)


# --- saved objects ----------------------------------------------------------------------------------------------------

_CORE = "8.8.0"
_MIGRATED: Mapping[Flavour, Mapping[str, str]] = {
    "elastic": {"index-pattern": "8.0.0", "visualization": "8.5.0", "search": "8.0.0", "dashboard": "8.9.0"},
    "opensearch": {"index-pattern": "7.6.0", "visualization": "7.10.0", "search": "7.9.3", "dashboard": "7.9.3"},
}
_PANEL_VERSION = "7.10.0"


def saved_objects(flavour: Flavour) -> list[dict[str, Any]]:
    """Return index patterns, charts, lists and dashboard, what is referred to before what refers to it."""
    return [
        *(_view(flavour, view) for view in VIEWS),
        *(_visualization(flavour, panel) for panel in PANELS),
        *(_search(flavour, view) for view in VIEWS),
        _dashboard(flavour),
    ]


def _object(
    flavour: Flavour, type: str, id: str, attributes: Mapping[str, Any], references: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    migrated = _MIGRATED[flavour][type]
    envelope = (
        {"coreMigrationVersion": _CORE, "typeMigrationVersion": migrated, "managed": False}
        if flavour == "elastic"
        else {"migrationVersion": {type: migrated}}
    )
    return {"type": type, "id": id, "attributes": attributes, "references": list(references), **envelope}


def _view(flavour: Flavour, view: View) -> dict[str, Any]:
    attributes: dict[str, Any] = {"title": view.pattern, "timeFieldName": TIME}
    if flavour == "elastic":
        attributes |= {"name": view.name, "allowNoIndex": True}
    return _object(flavour, "index-pattern", view.id, attributes)


_INDEX = "kibanaSavedObjectMeta.searchSourceJSON.index"


def _source(view: View, query: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the search source for what of *view* answers to *query*, and its reference."""
    source = {"query": {"query": query, "language": "kuery"}, "filter": [], "indexRefName": _INDEX}
    return {"searchSourceJSON": _json(source)}, {"name": _INDEX, "type": "index-pattern", "id": view.id}


def _visualization(flavour: Flavour, panel: Panel) -> dict[str, Any]:
    source, reference = _source(ALERT_VIEW, kql(panel.where))
    state = {"title": panel.title, "type": panel.kind, "params": _params(panel), "aggs": _aggs(panel)}
    attributes = {
        "title": f"Vedette: {panel.title}",
        "description": panel.about,
        "visState": _json(state),
        "uiStateJSON": _json({"vis": {"colors": LEVELS}} if panel.kind in ("histogram", "pie") else {}),
        "kibanaSavedObjectMeta": source,
        "version": 1,
    }
    return _object(flavour, "visualization", f"{ALERT_VIEW.id}-{panel.id}", attributes, [reference])


def _aggs(panel: Panel) -> list[dict[str, Any]]:
    """Return counts first (id 1 is what the terms are ordered by), then buckets from the outermost."""
    metrics: list[tuple[str, dict[str, Any]]] = [("count", {"customLabel": "Alerts"})]
    metrics += [("cardinality", {"field": one.field, "customLabel": one.label}) for one in panel.distinct]
    schemas = {"histogram": ["segment", "group"], "pie": ["segment"], "metric": []}.get(
        panel.kind, ["bucket"] * len(panel.buckets)
    )
    parts = [(type, params, "metric") for type, params in metrics]
    parts += [(one.type, one.params(), schema) for one, schema in zip(panel.buckets, schemas, strict=True)]
    return [
        {"id": str(number), "enabled": True, "type": type, "params": params, "schema": schema}
        for number, (type, params, schema) in enumerate(parts, 1)
    ]


def _params(panel: Panel) -> dict[str, Any]:
    """Return the looks; what is not given, both dashboards fill from the defaults of the chart's type."""
    if panel.kind == "table":
        return {
            "perPage": 10,
            "showPartialRows": False,
            "showMetricsAtAllLevels": False,
            "showTotal": False,
            "totalFunc": "sum",
            "percentageCol": "",
        }
    if panel.kind == "pie":
        legend = {"legendDisplay": "show", "addLegend": True}  # Kibana's name for it, and OpenSearch's
        return {"type": "pie", "addTooltip": True, "legendPosition": "right", "isDonut": True, **legend}
    if panel.kind == "metric":
        style = {"bgFill": "#000", "bgColor": False, "labelColor": False, "subText": "", "fontSize": 36}
        return {
            "type": "metric",
            "addTooltip": True,
            "addLegend": False,
            "metric": {
                "percentageMode": False,
                "useRanges": False,
                "colorSchema": "Green to Red",
                "metricColorMode": "None",
                "colorsRange": [{"from": 0, "to": 10000}],
                "labels": {"show": True},
                "invertColors": False,
                "style": style,
            },
        }
    count = {"label": "Alerts", "id": "1"}
    return {
        "type": "histogram",
        "grid": {"categoryLines": False},
        "categoryAxes": [
            {
                "id": "CategoryAxis-1",
                "type": "category",
                "position": "bottom",
                "show": True,
                "style": {},
                "scale": {"type": "linear"},
                "labels": {"show": True, "filter": True, "truncate": 100},
                "title": {},
            }
        ],
        "valueAxes": [
            {
                "id": "ValueAxis-1",
                "name": "LeftAxis-1",
                "type": "value",
                "position": "left",
                "show": True,
                "style": {},
                "scale": {"type": "linear", "mode": "normal"},
                "labels": {"show": True, "rotate": 0, "filter": False, "truncate": 100},
                "title": {"text": "Alerts"},
            }
        ],
        "seriesParams": [
            {
                "show": True,
                "type": "histogram",
                "mode": "stacked",
                "data": count,
                "valueAxis": "ValueAxis-1",
                "drawLinesBetweenPoints": True,
                "lineWidth": 2,
                "showCircles": True,
            }
        ],
        "addTooltip": True,
        "addLegend": True,
        "legendPosition": "right",
        "times": [],
        "addTimeMarker": False,
    }


def _search(flavour: Flavour, view: View) -> dict[str, Any]:
    source, reference = _source(view, kql(view.where, view.without))
    attributes: dict[str, Any] = {
        "title": view.title,
        "description": view.about,
        "columns": list(view.columns),
        "sort": [[TIME, "desc"]],
        "kibanaSavedObjectMeta": source,
        "version": 1,
    }
    if flavour == "elastic":
        attributes |= {"grid": {}, "hideChart": False, "isTextBasedQuery": False}
    return _object(flavour, "search", f"{view.id}-list", attributes, [reference])


def _dashboard(flavour: Flavour) -> dict[str, Any]:
    shown = [("visualization", panel.id, f"{ALERT_VIEW.id}-{panel.id}", panel.place) for panel in PANELS]
    lists = (("list", ALERT_VIEW), ("audit", AUDIT_VIEW))
    shown += [("search", id, f"{view.id}-list", view.place) for id, view in lists]
    panels = [
        {
            "version": _PANEL_VERSION,
            "gridData": {"x": x, "y": y, "w": w, "h": h, "i": id},
            "panelIndex": id,
            "embeddableConfig": {},
            "panelRefName": f"panel_{id}",
        }
        for _, id, _, (x, y, w, h) in shown
    ]
    attributes = {
        "title": "Vedette: alerts",
        "description": "What was found, by whom and where, what is missing, and what ran by whose leave.",
        "panelsJSON": _json(panels),
        "optionsJSON": _json({"useMargins": True, "hidePanelTitles": False}),
        "kibanaSavedObjectMeta": {
            "searchSourceJSON": _json({"query": {"query": "", "language": "kuery"}, "filter": []})
        },
        "timeRestore": True,
        "timeFrom": "now-24h",
        "timeTo": "now",
        "refreshInterval": {"pause": False, "value": 60000},
        "version": 1,
    }
    references = [
        {"name": f"{id}:panel_{id}" if flavour == "elastic" else f"panel_{id}", "type": type, "id": saved}
        for type, id, saved, _ in shown
    ]
    return _object(flavour, "dashboard", f"{ALERT_VIEW.id}-dashboard", attributes, references)


# --- Elastic: from external alerts to detection alerts ----------------------------------------------------------------

EXCEPTION_LIST = "vedette-promoted-by-own-rule"
_GUIDE = """## Triage and analysis

This alert was found by Vedette outside Elastic and written to `logs-vedette.alert-*`. The alert's name is the title of
the Vedette rule or detector.

### Steps

1. Read `event.reason`: one sentence that says what was seen, and, for a baseline, what was expected.
2. `vedette.explain` lists the fields that decided, each with the observed and the expected value. For a Sigma rule,
   `rule.description` and `rule.reference` say what it looks for; `vedette.false_positives` when it is wrong.
3. `vedette.evidence.records` points to the events: each has the index in `path` and the document in `id`.
   `vedette.evidence.state: partial` means that they were gone when the alert was written.
4. Look at the same `host.name` and `user.name` between `event.start` and `event.end`, and some minutes around them.
5. `rule.category: quality` is about the logs themselves: something could not be read, or was held back. Treat it as a
   gap in what you see, not as an attack.

### When it is wrong

Tune the rule or add an exception in Vedette's configuration: it is then not raised for any SIEM. An exception here only
hides it here. Mark the alert as a false positive when closing it.
"""


def promotion_rule(*, suppress: bool) -> dict[str, Any]:
    """Return the rule that makes each alert of our stream a detection alert; *suppress* needs a paid licence."""
    rule: dict[str, Any] = {
        "rule_id": "vedette-alerts-promotion",
        "name": "Vedette alerts",
        "description": "Makes a detection alert of each alert of Vedette, with that alert's name, severity and risk.",
        "type": "query",
        "query": kql(OURS),
        "language": "kuery",
        "index": [ALERT_VIEW.pattern],
        "interval": "1m",
        "from": "now-2m",
        "to": "now",
        "timestamp_override": "event.ingested",
        "max_signals": 1000,
        "rule_name_override": "message",
        "severity": "medium",
        "severity_mapping": [
            {"field": "event.severity", "operator": "equals", "severity": level, "value": str(number)}
            for level, number in SEVERITIES.items()
        ],
        "risk_score": 47,
        "risk_score_mapping": [{"field": "event.risk_score", "operator": "equals", "value": ""}],
        "tags": ["Data Source: Vedette", "Promotion: External Alerts", "Resources: Investigation Guide"],
        "note": _GUIDE,
        "setup": "Link Vedette's exception list to the rule External Alerts, else each alert is made twice.",
        "investigation_fields": {
            "field_names": [
                "event.reason",
                "rule.id",
                "host.name",
                "user.name",
                "vedette.level",
                "vedette.evidence.state",
            ]
        },
        "required_fields": [
            {"name": "event.ingested", "type": "date"},
            {"name": "event.kind", "type": "keyword"},
            {"name": "event.module", "type": "keyword"},
            {"name": "event.severity", "type": "long"},
        ],
        "author": ["Vedette"],
        "license": "Apache-2.0",
        "false_positives": [],
        "references": [],
        "threat": [],
        "related_integrations": [],
        "exceptions_list": [],
        "actions": [],
        "enabled": False,
        "immutable": False,
        "version": 1,
    }
    if suppress:
        rule["alert_suppression"] = {
            "group_by": ["event.id", "vedette.tenant"],
            "duration": {"value": 24, "unit": "h"},
            "missing_fields_strategy": "doNotSuppress",
        }
    return rule


def exception_list() -> list[dict[str, Any]]:
    """Return the list, and its item, that keeps our alerts out of the generic rule External Alerts."""
    return [
        {
            "list_id": EXCEPTION_LIST,
            "name": "Vedette alerts (promoted by their own rule)",
            "description": "Keeps Vedette's alerts out of External Alerts; the rule Vedette alerts promotes them.",
            "type": "detection",
            "namespace_type": "single",
            "tags": ["Data Source: Vedette"],
            "immutable": False,
            "version": 1,
        },
        {
            "list_id": EXCEPTION_LIST,
            "item_id": f"{EXCEPTION_LIST}-module",
            "name": "Alerts of Vedette",
            "description": "All that Vedette writes.",
            "type": "simple",
            "namespace_type": "single",
            "entries": [{"field": "event.module", "operator": "included", "type": "match", "value": "vedette"}],
            "tags": ["Data Source: Vedette"],
            "comments": [],
        },
    ]


# --- OpenSearch: notifications ----------------------------------------------------------------------------------------


STREAM = "logs-vedette.alert-default"
"""The stream that the monitor watches, by its own name: a pattern would be searched through all backing indices."""


def monitor() -> dict[str, Any]:
    """Return a per-document monitor: one alert of the Alerting plugin for each of ours, severity 1 for critical."""
    levels = list(reversed(SEVERITIES))
    return {
        "type": "monitor",
        "name": "Vedette alerts",
        "monitor_type": "doc_level_monitor",
        "enabled": True,
        "schedule": {"period": {"interval": 1, "unit": "MINUTES"}},
        "inputs": [
            {
                "doc_level_input": {
                    "description": "Alerts of Vedette, by severity",
                    "indices": [STREAM],
                    "queries": [
                        {"id": level, "name": level, "query": lucene(OURS | _severity(level)), "tags": ["vedette"]}
                        for level in levels
                    ],
                }
            }
        ],
        "triggers": [
            {
                "document_level_trigger": {
                    "id": f"vedette-{level}",
                    "name": f"Vedette: {level}",
                    "severity": str(number),
                    "condition": {"script": {"source": f"query[name={level}]", "lang": "painless"}},
                    "actions": [],
                }
            }
            for number, level in enumerate(levels, 1)
        ],
    }


def _severity(level: str) -> Where:
    """Return the condition for *level*; `event.severity` is on every alert, however reduced, `vedette.level` is not."""
    return {"event.severity": str(SEVERITIES[level])}


# --- files ------------------------------------------------------------------------------------------------------------


def files() -> dict[str, str]:
    """Return the text of each file by its path below this folder."""
    return {
        "elastic/dashboards.ndjson": _lines(saved_objects("elastic")),
        "elastic/promotion-rule.ndjson": _lines([promotion_rule(suppress=False)]),
        "elastic/promotion-rule-suppressed.ndjson": _lines([promotion_rule(suppress=True)]),
        "elastic/exception-list.ndjson": _lines(exception_list()),
        "opensearch/dashboards.ndjson": _lines(saved_objects("opensearch")),
        "opensearch/monitor.json": json.dumps(monitor(), indent=2) + "\n",
    }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _lines(objects: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_json(one) + "\n" for one in objects)


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text, "utf-8")
