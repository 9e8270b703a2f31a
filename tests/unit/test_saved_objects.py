"""Saved objects, rules and monitor in `packaging`: as published schemas want them, and about fields that we write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, Json, model_validator

from agent.alerting import document
from agent.alerting.judge import QUARANTINE
from agent.audit import copy, leaf
from agent.model import SECOND, Description, Explanation, Factor, Finding, Reference, Timestamp
from agent.normalise.catalogue import catalogue
from tests.scripts import load

PACKAGING = Path(__file__).parents[2] / "packaging"


dashboards = load("dashboards.py")
FILES: Mapping[str, str] = dashboards.files()
FLAVOURS = ("elastic", "opensearch")
VEDETTE = {
    "vedette.level": "keyword",
    "vedette.evidence.state": "keyword",
    "vedette.mapping_conflict": "keyword",
    "vedette.original_cut": "long",
    "vedette.capped": "boolean",
    "vedette.tenant": "keyword",
    "vedette.audit.number": "long",
}
"""How our streams map those of our own fields that the dashboards, the rule and the monitor read."""


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILES[name].splitlines()]


def samples(now: Timestamp) -> list[dict[str, Any]]:
    """Return alerts of every kind that the dashboard shows, made at *now*."""
    where = Reference("siem", "0", 7, "logs-endpoint-default", "ecs")
    why = Explanation("lsass.exe was read by procdump.exe", (Factor("process.name", "procdump.exe", "not this"),))
    rule = Description("0f06a3a5", "LSASS memory read", "rule", "high", author="Vedette", techniques=("T1003.001",))
    capped = Description("first-seen", "First logon to a host", "baseline", "medium", author="Vedette")
    source = {"host": {"name": "web-1"}, "user": {"name": "ada"}, "event": {"original": "x" * 40_000}}
    made = [
        (Finding(rule, now, (where,), why), source, False),
        (Finding(capped, now, (where,), why, score=0.99, fields={"vedette.capped": True}), source, True),
        (Finding(QUARANTINE, now, (where,), why), {}, False),
    ]
    alerts = [
        document.build(finding, f"alert-{number}", known, tenant="main", stream="logs", as_of=now, partial=partial)
        for number, (finding, known, partial) in enumerate(made)
    ]
    alerts[1]["vedette"]["mapping_conflict"] = "failed to parse field [process.pid]"  # as the sink says it
    return alerts


def audit_copies() -> list[dict[str, Any]]:
    """Return copies of what the list of the audit log shows, of a batch, and of a checkpoint."""
    acts: list[tuple[leaf.Action, str]] = [("configuration-applied", "ada"), ("batch", "")]
    made = [copy.of_checkpoint("log", len(acts), SECOND, "log\n2\n")]
    for number, (action, actor) in enumerate(acts):
        data = leaf.encode(number, action, time=SECOND, actor=actor, data={})
        made.append(copy.of_leaf("log", leaf.Entry(number, data)))
    return [json.loads(one.body) for one in made]


def flat(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}".lstrip("."))
    else:
        yield name


# --- the published schemas: names, types, what is required, which values are allowed ----------------------------------


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Ref(Strict):
    name: str
    type: Literal["index-pattern", "visualization", "search"]
    id: str


class Query(Strict):
    query: str
    language: Literal["kuery", "lucene"]


class SearchSource(Strict):
    """kibana and OpenSearch-Dashboards: data plugin, common/search/search_source/types.ts (SerializedSearchSource)."""

    query: Query
    filter: list[Any]
    indexRefName: str | None = None  # noqa: N815


class Meta(Strict):
    searchSourceJSON: Json[SearchSource]  # noqa: N815


class Grid(Strict):
    x: int = Field(ge=0, lt=48)
    y: int = Field(ge=0)
    w: int = Field(ge=1, le=48)
    h: int = Field(ge=1)
    i: str


class PanelJson(Strict):
    """kibana: src/platform/plugins/shared/dashboard/server/dashboard_saved_object/schema (SavedDashboardPanel);
    OpenSearch-Dashboards: src/plugins/dashboard/common/bwc/types.ts (RawSavedDashboardPanel730ToLatest)."""

    version: str = Field(pattern=r"^7\.(?:[3-9]|\d\d)\.\d+$")
    gridData: Grid  # noqa: N815
    panelIndex: str  # noqa: N815
    embeddableConfig: dict[str, Any]  # noqa: N815
    panelRefName: str  # noqa: N815


class Options(Strict):
    useMargins: bool  # noqa: N815
    hidePanelTitles: bool  # noqa: N815


class Refresh(Strict):
    pause: bool
    value: int
    display: str | None = None
    section: int | None = None


class Dashboard(Strict):
    """kibana: src/platform/plugins/shared/dashboard/server/dashboard_saved_object/schema/v1/v1.ts (8.9.0);
    OpenSearch-Dashboards: src/plugins/dashboard/server/saved_objects/dashboard.ts, the same names."""

    title: str
    description: str
    kibanaSavedObjectMeta: Meta  # noqa: N815
    timeRestore: bool  # noqa: N815
    timeFrom: str  # noqa: N815
    timeTo: str  # noqa: N815
    refreshInterval: Refresh  # noqa: N815
    panelsJSON: Json[list[PanelJson]]  # noqa: N815
    optionsJSON: Json[Options]  # noqa: N815
    hits: int = 0
    version: int


class Terms(Strict):
    """kibana: src/platform/plugins/shared/data/common/search/aggs/buckets/terms.ts; OpenSearch-Dashboards: the same."""

    field: str
    size: int = Field(ge=1)
    order: Literal["asc", "desc"]
    orderBy: Literal["1"]  # noqa: N815
    otherBucket: bool  # noqa: N815
    otherBucketLabel: str  # noqa: N815
    missingBucket: bool  # noqa: N815
    missingBucketLabel: str  # noqa: N815
    customLabel: str  # noqa: N815


class DateHistogram(Strict):
    """… aggs/buckets/date_histogram.ts; what is left out has defaults, and other names in the two dashboards."""

    field: str
    interval: Literal["auto"]
    min_doc_count: int
    drop_partials: bool
    extended_bounds: dict[str, Any]


class FilterInput(Strict):
    input: Query
    label: str


class Filters(Strict):
    """… aggs/buckets/filters.ts."""

    filters: list[FilterInput] = Field(min_length=1)


class Cardinality(Strict):
    """… aggs/metrics/cardinality.ts."""

    field: str
    customLabel: str  # noqa: N815


class Count(Strict):
    """… aggs/metrics/count.ts."""

    customLabel: str  # noqa: N815


AGGREGATIONS: Mapping[str, type[Strict]] = {
    "terms": Terms,
    "date_histogram": DateHistogram,
    "filters": Filters,
    "cardinality": Cardinality,
    "count": Count,
}


class Agg(Strict):
    id: str
    enabled: bool
    type: Literal["terms", "date_histogram", "filters", "cardinality", "count"]
    params: dict[str, Any]
    schema_: Literal["metric", "segment", "group", "bucket"] = Field(alias="schema")

    @model_validator(mode="after")
    def _known_params(self) -> Agg:
        AGGREGATIONS[self.type].model_validate(self.params)
        return self


LOOKS = {
    # kibana: src/platform/plugins/private/vis_types/{xy,pie,table,metric}/public (visConfig.defaults of each type);
    # OpenSearch-Dashboards: src/plugins/vis_type_{vislib,table,metric}/public.
    "histogram": "type grid categoryAxes valueAxes seriesParams addTooltip addLegend legendPosition times "
    "addTimeMarker",
    "pie": "type addTooltip addLegend legendDisplay legendPosition isDonut labels",
    "table": "perPage showPartialRows showMetricsAtAllLevels showTotal totalFunc percentageCol",
    "metric": "type addTooltip addLegend metric",
}
SCHEMAS = {"histogram": ["segment", "group"], "pie": ["segment"], "table": ["bucket"], "metric": []}
"""The names under which each type of chart takes buckets; xy charts one segment only."""


class VisState(Strict):
    title: str
    type: Literal["histogram", "pie", "table", "metric"]
    params: dict[str, Any]
    aggs: list[Agg]

    @model_validator(mode="after")
    def _fits_its_type(self) -> VisState:
        assert not self.params.keys() - set(LOOKS[self.type].split())
        assert self.params.get("type", self.type) == self.type
        buckets = [agg.schema_ for agg in self.aggs if agg.schema_ != "metric"]
        assert set(buckets) <= set(SCHEMAS[self.type])
        assert self.type == "table" or len(set(buckets)) == len(buckets)
        assert self.aggs[0].type == "count", "what the terms are ordered by"
        return self


class Visualization(Strict):
    """kibana: src/platform/plugins/shared/visualizations/server/saved_objects/visualization.ts (8.8.0);
    OpenSearch-Dashboards: src/plugins/visualizations/server/saved_objects/visualization.ts."""

    title: str
    description: str
    visState: Json[VisState]  # noqa: N815
    uiStateJSON: Json[dict[str, Any]]  # noqa: N815
    kibanaSavedObjectMeta: Meta  # noqa: N815
    version: int


class Search(Strict):
    """OpenSearch-Dashboards: src/plugins/discover/server/saved_objects/search.ts."""

    title: str
    description: str
    columns: list[str]
    sort: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    kibanaSavedObjectMeta: Meta  # noqa: N815
    version: int


class KibanaSearch(Search):
    """kibana: src/platform/plugins/shared/saved_search/server/saved_objects/schema_legacy.ts (8.8.0)."""

    grid: dict[str, Any]
    hideChart: bool  # noqa: N815
    isTextBasedQuery: bool  # noqa: N815


class IndexPattern(Strict):
    """OpenSearch-Dashboards: src/plugins/data/common/index_patterns/types.ts (IndexPatternAttributes)."""

    title: str
    timeFieldName: str  # noqa: N815


class KibanaIndexPattern(IndexPattern):
    """kibana: src/platform/plugins/shared/data_views/server/content_management/schema/v1/cm_services.ts."""

    name: str
    allowNoIndex: bool  # noqa: N815


ATTRIBUTES: Mapping[tuple[str, str], type[Strict]] = {
    ("elastic", "index-pattern"): KibanaIndexPattern,
    ("elastic", "visualization"): Visualization,
    ("elastic", "search"): KibanaSearch,
    ("elastic", "dashboard"): Dashboard,
    ("opensearch", "index-pattern"): IndexPattern,
    ("opensearch", "visualization"): Visualization,
    ("opensearch", "search"): Search,
    ("opensearch", "dashboard"): Dashboard,
}


class Saved(Strict):
    type: Literal["index-pattern", "visualization", "search", "dashboard"]
    id: str = Field(min_length=1)
    attributes: dict[str, Any]
    references: list[Ref]


class KibanaSaved(Saved):
    """kibana: src/core/packages/saved-objects/common/src/server_types.ts (SavedObject). An object is refused if its
    version is above the newest migration of its type; these are the newest that Kibana 8.9 knows."""

    coreMigrationVersion: Literal["8.8.0"]  # noqa: N815
    typeMigrationVersion: Literal["8.0.0", "8.5.0", "8.9.0"]  # noqa: N815
    managed: bool


class OpenSearchSaved(Saved):
    """OpenSearch-Dashboards: src/core/types/saved_objects.ts (SavedObject)."""

    migrationVersion: dict[str, Literal["7.6.0", "7.9.3", "7.10.0"]]  # noqa: N815


class Mapped(Strict):
    field: str
    operator: Literal["equals"]
    value: str


class SeverityMapped(Mapped):
    severity: Literal["low", "medium", "high", "critical"]


class RequiredField(Strict):
    name: str = Field(min_length=1)
    type: str = Field(min_length=1)


class InvestigationFields(Strict):
    field_names: list[str] = Field(min_length=1)


class Duration(Strict):
    value: int = Field(ge=1)
    unit: Literal["s", "m", "h"]


class Suppression(Strict):
    group_by: list[str] = Field(min_length=1, max_length=3)
    duration: Duration
    missing_fields_strategy: Literal["doNotSuppress", "suppress"]


class Rule(Strict):
    """kibana: x-pack/solutions/security/plugins/security_solution/common/api/detection_engine: QueryRuleCreateProps of
    model/rule_schema/rule_schemas.schema.yaml and common_attributes.schema.yaml, with what
    rule_management/import_rules/rule_to_import.ts adds: rule_id and version are required."""

    rule_id: str
    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    type: Literal["query"]
    query: str
    language: Literal["kuery", "lucene"]
    index: list[str] = Field(min_length=1)
    interval: str = Field(pattern=r"^\d+[smh]$")
    from_: str = Field(alias="from", pattern=r"^now-\d+[smh]$")
    to: Literal["now"]
    timestamp_override: str
    max_signals: int = Field(ge=1)
    rule_name_override: str
    severity: Literal["low", "medium", "high", "critical"]
    severity_mapping: list[SeverityMapped]
    risk_score: int = Field(ge=0, le=100)
    risk_score_mapping: list[Mapped]
    tags: list[str]
    note: str
    setup: str
    investigation_fields: InvestigationFields
    required_fields: list[RequiredField]
    author: list[str]
    license: str
    false_positives: list[str]
    references: list[str]
    threat: list[Any] = Field(max_length=0)
    related_integrations: list[Any] = Field(max_length=0)
    exceptions_list: list[Any] = Field(max_length=0)
    actions: list[Any] = Field(max_length=0)
    enabled: bool
    immutable: Literal[False]
    version: int = Field(ge=1)
    alert_suppression: Suppression | None = None


class ExceptionList(Strict):
    """kibana: importExceptionsListSchema of kbn-securitysolution-io-ts-list-types."""

    list_id: str = Field(min_length=1)
    name: str
    description: str
    type: Literal["detection", "rule_default", "endpoint"]
    namespace_type: Literal["single", "agnostic"]
    tags: list[str]
    immutable: Literal[False]
    version: int = Field(ge=1)


class Entry(Strict):
    """kibana: kbn-securitysolution-exceptions-common/api/model/exception_list_item_entry.schema.yaml (match)."""

    type: Literal["match"]
    field: str = Field(min_length=1)
    value: str = Field(min_length=1)
    operator: Literal["included", "excluded"]


class ExceptionItem(Strict):
    """kibana: importExceptionListItemSchema of kbn-securitysolution-io-ts-list-types."""

    list_id: str = Field(min_length=1)
    item_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    description: str
    type: Literal["simple"]
    namespace_type: Literal["single", "agnostic"]
    entries: list[Entry] = Field(min_length=1)
    tags: list[str]
    comments: list[Any]


class Period(Strict):
    interval: int = Field(ge=1)
    unit: Literal["SECONDS", "MINUTES", "HOURS", "DAYS"]


class Schedule(Strict):
    period: Period


class DocQuery(Strict):
    """opensearch-project/common-utils: alerting/model/DocLevelQuery.kt, with the characters it refuses in names."""

    id: str
    name: str = Field(pattern=r"^[^ \[\]{}()]+$")
    query: str
    tags: list[Annotated[str, Field(pattern=r"^[^ \[\]{}()]+$")]]


class DocInput(Strict):
    description: str
    indices: list[str] = Field(min_length=1)
    queries: list[DocQuery] = Field(min_length=1, max_length=10)


class Input(Strict):
    doc_level_input: DocInput


class Script(Strict):
    source: str
    lang: Literal["painless"]


class Condition(Strict):
    script: Script


class Trigger(Strict):
    id: str
    name: str
    severity: Literal["1", "2", "3", "4", "5"]
    condition: Condition
    actions: list[Any] = Field(max_length=0)


class DocTrigger(Strict):
    document_level_trigger: Trigger


class Monitor(Strict):
    """opensearch-api-specification: spec/schemas/alerting._common.yaml (Monitor); common-utils: Monitor.kt."""

    type: Literal["monitor"]
    name: str
    monitor_type: Literal["doc_level_monitor"]
    enabled: bool
    schedule: Schedule
    inputs: list[Input] = Field(min_length=1, max_length=1)
    triggers: list[DocTrigger] = Field(max_length=10)


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_are_what_the_script_writes(name: str) -> None:
    """A file that was edited by hand, or not written again, is found."""
    assert (PACKAGING / name).read_text("utf-8") == FILES[name], "run: python packaging/dashboards.py"
    assert dashboards.files() == FILES


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_saved_objects_fit_the_schemas(flavour: str) -> None:
    """Every object has the envelope and the attributes that its dashboard knows, and no other."""
    for saved in lines(f"{flavour}/dashboards.ndjson"):
        (KibanaSaved if flavour == "elastic" else OpenSearchSaved).model_validate(saved)
        ATTRIBUTES[flavour, saved["type"]].model_validate(saved["attributes"])


def test_the_schemas_refuse() -> None:
    """An unknown attribute, a missing one and a value outside the list are errors."""
    search = next(one for one in lines("opensearch/dashboards.ndjson") if one["type"] == "search")["attributes"]
    monitor = json.loads(FILES["opensearch/monitor.json"])
    [rule] = lines("elastic/promotion-rule.ndjson")
    refused: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (Search, search | {"grid": {}}),
        (Search, {name: value for name, value in search.items() if name != "title"}),
        (Rule, rule | {"severity": "informational"}),
        (Monitor, monitor | {"monitor_type": "ppl_monitor"}),
    ]
    for model, wrong in refused:
        with pytest.raises(ValueError, match="validation error"):
            model.model_validate(wrong)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_references_resolve(flavour: str) -> None:
    """What an object refers to is in the file before it, and what it names in its JSON is among its references."""
    seen: set[tuple[str, str]] = set()
    for saved in lines(f"{flavour}/dashboards.ndjson"):
        named = {reference["name"].rpartition(":")[2] for reference in saved["references"]}
        assert {(reference["type"], reference["id"]) for reference in saved["references"]} <= seen
        assert set(re.findall(r'\\?"(?:panelRefName|indexRefName)\\?":\\?"([^"\\]+)', json.dumps(saved))) == named
        seen.add((saved["type"], saved["id"]))
    assert len(seen) == len(lines(f"{flavour}/dashboards.ndjson"))


def test_ids_are_stable() -> None:
    """An import of a newer release replaces these objects; a changed id would leave the old ones beside the new."""
    panels = "totals levels over-time rules tactics hosts users quality incomplete"
    for flavour in FLAVOURS:
        first, second, *ids = [saved["id"] for saved in lines(f"{flavour}/dashboards.ndjson")]
        assert (first, second) == ("vedette-alerts", "vedette-audit")
        assert ids[:-3] == [f"vedette-alerts-{name}" for name in panels.split()]
        assert ids[-3:] == ["vedette-alerts-list", "vedette-audit-list", "vedette-alerts-dashboard"]
    rules = lines("elastic/promotion-rule.ndjson") + lines("elastic/promotion-rule-suppressed.ndjson")
    assert {rule["rule_id"] for rule in rules} == {"vedette-alerts-promotion"}
    assert {one["list_id"] for one in lines("elastic/exception-list.ndjson")} == {"vedette-promoted-by-own-rule"}


def test_panels_do_not_overlap() -> None:
    """Each cell of the grid belongs to one panel, and none reaches over its edge."""
    taken: set[tuple[int, int]] = set()
    for x, y, w, h in (one.place for one in (*dashboards.PANELS, *dashboards.VIEWS)):
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert x + w <= 48
        assert not cells & taken
        taken |= cells


def _type(field: str) -> str:
    return VEDETTE.get(field) or catalogue().fields[field].type


def test_fields_are_ours_and_can_be_counted() -> None:
    """Every field on the dashboard is on some document of its stream, and one of a chart can be counted or filtered."""
    alerts, audit = dashboards.VIEWS
    assert alerts.fields() <= {name for alert in samples(SECOND) for name in flat(alert)}
    assert audit.fields() <= {name for one in audit_copies() for name in flat(one)}
    assert {_type(field) for field in alerts.fields()} <= {"keyword", "date", "long", "boolean"}
    assert {_type(field) for field in {*audit.where, *audit.without}} <= {"keyword", "long"}
    counted = [bucket.field for panel in dashboards.PANELS for bucket in panel.buckets if bucket.type == "terms"]
    counted += [one.field for panel in dashboards.PANELS for one in panel.distinct]
    assert {_type(field) for field in counted} == {"keyword"}
    assert _type(dashboards.TIME) == "date"


def test_fields_of_the_files_are_those_of_the_description() -> None:
    """`fields()`, by which the mapping is checked, leaves out none that a chart or a list reads."""
    used: set[str] = set()
    for saved in lines("elastic/dashboards.ndjson"):
        text = json.dumps(saved["attributes"]).replace("\\", "")
        used |= set(re.findall(r'"field":"([^"]+)"', text)) | set(re.findall(r"([a-z_]+\.[a-z_.]+): [a-z*]", text))
        used |= set(saved["attributes"].get("columns", ()))
    assert used | {dashboards.TIME} == set().union(*(view.fields() for view in dashboards.VIEWS))


def test_levels_have_colours() -> None:
    """The charts know every level, and Elastic's severities are those that alerts carry."""
    assert set(dashboards.LEVELS) == set(document.SEVERITY)
    for level, number in dashboards.SEVERITIES.items():
        assert document.SEVERITY[level][0] == number
    assert {number for number, _ in document.SEVERITY.values()} == set(dashboards.SEVERITIES.values())


def test_promotion_rule() -> None:
    """The rule fits the import schema; only the second file has the suppression, which needs a licence."""
    [rule] = lines("elastic/promotion-rule.ndjson")
    [suppressed] = lines("elastic/promotion-rule-suppressed.ndjson")
    for one in (rule, suppressed):
        Rule.model_validate(one)
    suppression = suppressed.pop("alert_suppression")
    assert suppression["group_by"] == ["event.id", "vedette.tenant"]
    assert suppressed == rule
    ours = set(flat(samples(SECOND)[0]))
    read = [one["field"] for one in rule["severity_mapping"] + rule["risk_score_mapping"]]
    read += [*suppression["group_by"], rule["rule_name_override"], *rule["investigation_fields"]["field_names"]]
    assert set(read) <= ours
    for field in rule["required_fields"]:
        assert _type(field["name"]) == field["type"]


def test_exception_list() -> None:
    """The list and its one item fit the import schemas, and the item means what the promotion rule promotes."""
    container, item = lines("elastic/exception-list.ndjson")
    ExceptionList.model_validate(container)
    ExceptionItem.model_validate(item)
    assert item["list_id"] == container["list_id"]
    [entry] = item["entries"]
    assert dashboards.OURS[entry["field"]] == entry["value"]


def test_monitor() -> None:
    """The monitor fits the schema, and each trigger names one of its queries."""
    monitor = json.loads(FILES["opensearch/monitor.json"])
    Monitor.model_validate(monitor)
    names = [f"query[name={query['name']}]" for query in monitor["inputs"][0]["doc_level_input"]["queries"]]
    triggers = [one["document_level_trigger"] for one in monitor["triggers"]]
    assert [trigger["condition"]["script"]["source"] for trigger in triggers] == names
    assert [trigger["severity"] for trigger in triggers] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_of_a_machine_or_a_secret(name: str) -> None:
    """No address, path, key or time of the one who wrote the files is in them."""
    text = FILES[name]
    assert not re.search(r"https?://|\d+\.\d+\.\d+\.\d+|/(?:home|root|tmp|mnt|srv|opt)/", text)
    assert not re.search(r"password|api[_-]?key|secret|token|updated_at|created_at|updated_by|created_by", text, re.I)


def test_conditions_say_the_same_in_every_language() -> None:
    """One condition, three languages; a field that must only be there is asked for as each language does it."""
    where = {"event.kind": "alert", "vedette.original_cut": dashboards.ANY}
    assert dashboards.kql(where) == "event.kind: alert and vedette.original_cut: *"
    assert dashboards.lucene(where) == "event.kind:alert AND _exists_:vedette.original_cut"
    assert dashboards.dsl(where) == {
        "bool": {"filter": [{"term": {"event.kind": "alert"}}, {"exists": {"field": "vedette.original_cut"}}]}
    }
    without = {"event.action": "batch"}
    assert dashboards.kql({"event.kind": "event"}, without) == "event.kind: event and not event.action: batch"
    assert dashboards.dsl({}, without) == {"bool": {"filter": [], "must_not": [{"term": {"event.action": "batch"}}]}}
