"""What setup, roles and doctor decide without a server: the mapping, the bodies of roles, what is said of trouble."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest

from agent.alerting import document
from agent.audit.copy import of_checkpoint, of_leaf
from agent.audit.leaf import Entry, encode
from agent.errors import ConfigError, RetryableError
from agent.model import Description, Explanation, Factor, Finding, Reference
from agent.ports import Check
from connectors.siem import install as setup
from connectors.siem.client import Access, Cluster, FlavourName
from connectors.siem.indices import batches
from tests.fake_siem import FakeSiem, Reply, Request

FLAVOURS: tuple[FlavourName, ...] = get_args(FlavourName)


@pytest.fixture(params=FLAVOURS)
def fake(request: pytest.FixtureRequest) -> Iterator[FakeSiem]:
    with FakeSiem(request.param) as siem:
        yield siem


def to(siem: FakeSiem, flavour: FlavourName | None = None) -> Cluster:
    return Cluster("test", flavour or siem.flavour, Access(**siem.access()))


def denied(_: Request) -> Reply:
    return Reply(403, {"error": {"type": "security_exception", "reason": "no permissions"}})


def indices(siem: FakeSiem, **settings: Any) -> None:
    """Let the fake have one index ``logs-a`` of one shard with these settings."""
    siem.on("logs-*", resolved(indices=[{"name": "logs-a", "attributes": ["open"]}]))
    flat = {f"index.{name}": value for name, value in {"number_of_shards": "1", **settings}.items()}
    siem.on("_settings", Reply(body={"logs-a": {"settings": flat}}))
    siem.on("_search", answered_at(0))


def resolved(**found: Any) -> Reply:
    return Reply(body={"indices": [], "aliases": [], "data_streams": [], **found})


def running(siem: FakeSiem) -> None:
    copy = {
        "routing": {"state": "STARTED", "primary": True, "node": "n"},
        "commit": {"user_data": {"history_uuid": "h"}},
        "seq_no": {"global_checkpoint": 0},
        "refresh": {"external_total": 1},
    }
    siem.on("refresh", Reply(body={"indices": {"logs-a": {"uuid": "u", "shards": {"0": [copy]}}}}))


def answered_at(ahead: float) -> Any:
    """Return a search's answer of a server whose clock is *ahead* of ours by so many seconds."""
    return lambda _: Reply(
        body={"hits": {"hits": []}, "aggregations": {"now": {"buckets": [{"from": (time.time() + ahead) * 1000}]}}}
    )


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# --- mapping ----------------------------------------------------------------------------------------------------------


def knows_everything(siem: FakeSiem) -> None:
    siem.on("_simulate", *[Reply()] * 20)


def mapping(
    siem: FakeSiem, fields: Mapping[str, str], layout: setup.Layout = setup.ALERT
) -> tuple[dict[str, Any], str]:
    cluster = to(siem)
    cluster.connect()
    component, said = setup._component(cluster, layout, fields)
    return component["template"]["mappings"]["properties"], said


def at(properties: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    first, _, rest = name.partition(".")
    form: Mapping[str, Any] = properties[first]
    return at(form["properties"], rest) if rest else form


def test_a_server_that_knows_all_types_gets_them_all(fake: FakeSiem) -> None:
    knows_everything(fake)
    found, said = mapping(fake, {"url.full": "wildcard", "labels": "object", "host.cpu.usage": "scaled_float"})
    assert at(found, "url.full") == {"type": "wildcard", "ignore_above": 8191}
    assert at(found, "labels") == {"type": "flattened", "ignore_above": 1024}
    assert at(found, "data_stream.dataset") == {"type": "constant_keyword", "value": "vedette.alert"}
    assert at(found, "data_stream.namespace") == {"type": "constant_keyword"}
    assert "knows all types" in said


def test_a_server_that_knows_few_types_gets_what_stands_in_for_them(fake: FakeSiem) -> None:
    fake.on("_simulate", *[Reply(400, {"error": {"reason": "No handler for type"}})] * 20)
    fields = {"url.full": "wildcard", "labels": "object", "host.cpu.usage": "scaled_float", "package.v": "version"}
    found, said = mapping(fake, fields)
    assert at(found, "url.full") == {"type": "keyword", "ignore_above": 8191}
    assert at(found, "labels") == {"type": "object", "enabled": False}
    assert at(found, "host.cpu.usage") == {"type": "float"}
    assert at(found, "package.v") == {"type": "keyword", "ignore_above": 1024}
    assert at(found, "message") == {"type": "text"}
    assert at(found, "data_stream.dataset") == {"type": "keyword", "ignore_above": 1024}
    assert "wildcard → keyword (url.full)" in said


def test_objects_with_fields_stay_objects_and_nested_ones_nested(fake: FakeSiem) -> None:
    knows_everything(fake)
    fields = {"dns.answers": "object", "dns.answers.data": "keyword", "a.n": "nested", "a.n.x": "ip", "a.m": "nested"}
    found, _ = mapping(fake, fields)
    assert at(found, "dns.answers") == {"properties": {"data": {"type": "keyword", "ignore_above": 1024}}}
    assert at(found, "a.n") == {"type": "nested", "properties": {"x": {"type": "ip"}}}
    assert at(found, "a.m") == {"type": "object", "enabled": False}


def test_our_own_fields_are_mapped_whatever_else_is(fake: FakeSiem) -> None:
    knows_everything(fake)
    found, _ = mapping(fake, {"event.severity": "keyword", "event.original": "keyword"})
    assert at(found, "event.severity") == {"type": "long"}
    assert at(found, "event.risk_score") == {"type": "float"}
    assert at(found, "event.original") == {"type": "keyword", "index": False, "doc_values": False}
    assert at(found, "vedette.mapping_conflict")["type"] == "keyword"
    assert at(found, "vedette.original_document") == {"type": "object", "enabled": False}
    assert at(found, "vedette.evidence.records.id")["type"] == "keyword"


def leaves(value: Any, name: str = "") -> Iterator[str]:
    for inner in value if isinstance(value, list) else ():
        yield from leaves(inner, name)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, f"{name}.{key}".lstrip("."))
    if not isinstance(value, list | dict):
        yield name


def test_every_field_of_ours_in_an_alert_is_mapped() -> None:
    """A value where the mapping has an object, or the other way round, would make the stream refuse the alert."""
    why = Explanation("because", (Factor("process.name", "a", "b", 0.5),), maturity=0.5)
    about = Description("id", "Title", "model", false_positives=("x",))
    more = {"vedette.capped": True, "vedette.evidence.total": 3}
    finding = Finding(
        about, 0, (Reference("siem", "0", 7, "logs"),), why, (("user.name", "a"),), score=0.9, fields=more
    )
    large = {"event": {"original": "x" * 40_000}}
    alert = document.build(finding, "a", large, tenant="t", stream="s", as_of=0, partial=False)
    named = {name for name in leaves(alert) if name.startswith("vedette.")} - {"vedette.entity.user.name"}
    assert named <= set(setup.ALERT.own)
    assert not [one for one in named for other in setup.ALERT.own if other.startswith(f"{one}.")]


def test_every_field_of_an_audit_copy_is_mapped() -> None:
    leaf = encode(3, "batch", time=0, actor="ada", stream="s", data={})
    documents = [of_leaf("log", Entry(3, leaf, (b"[]",))), of_checkpoint("log", 4, 0, "log\n4\n")]
    named = {name for one in documents for name in leaves(json.loads(one.body))}
    assert named <= setup.AUDIT.own.keys() | setup.AUDIT.fixed.keys()


def test_what_proves_something_is_kept_whole_and_not_indexed(fake: FakeSiem) -> None:
    knows_everything(fake)
    found, _ = mapping(fake, {}, setup.AUDIT)
    for name in ("leaf", "members", "checkpoint"):
        assert at(found, f"vedette.audit.{name}") == {"type": "keyword", "index": False, "doc_values": False}
    assert at(found, "vedette.audit.number") == {"type": "long"}
    assert at(found, "data_stream.dataset") == {"type": "constant_keyword", "value": "vedette.audit"}


def test_a_layout_is_told_from_others_by_its_digest() -> None:
    assert setup.ALERT.digest != setup.AUDIT.digest
    assert setup.ALERT.digest == replace(setup.ALERT).digest
    assert setup.ALERT.digest != replace(setup.ALERT, sought=()).digest


# --- roles ------------------------------------------------------------------------------------------------------------


def test_the_sources_roles() -> None:
    assert setup.source_roles("elasticsearch", ["logs-*", "-logs-x", "far:winlogbeat-*"]) == {
        "vedette-source": {
            "cluster": ["cluster:monitor/main"],
            "indices": [{"names": ["logs-*", "winlogbeat-*"], "privileges": ["monitor", "read"]}],
        }
    }
    role = setup.source_roles("opensearch", ["logs-*"])["vedette-source"]
    assert role["index_permissions"][0]["index_patterns"] == ["logs-*"]
    assert not [action for action in role["index_permissions"][0]["allowed_actions"] if "write" in action]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_roles_hold_no_wildcard_and_the_sinks_only_its_own_streams(flavour: FlavourName) -> None:
    for roles in (setup.sink_roles(flavour, "soc"), setup.setup_roles(flavour, "soc")):
        (role,) = roles.values()
        assert "*" not in str(role)
        assert "['logs-vedette.alert-soc', 'logs-vedette.audit-soc']" in str(role)


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_not_there_is_a_failed_check() -> None:
    with FakeSiem() as gone:
        cluster = to(gone)
    for checks in (setup.examine_source(cluster, ["logs-*"]), setup.examine_sink(cluster, "default")):
        (check,) = checks
        assert (check.name, check.state) == ("reach", "failed")
        assert check.remedy


def test_another_kind_of_server_is_a_failed_check() -> None:
    with FakeSiem("opensearch") as siem:
        (check,) = setup.examine_source(to(siem, "elasticsearch"), ["logs-*"])
    assert (check.name, check.state) == ("reach", "failed")
    assert "opensearch" in check.detail


@pytest.mark.parametrize(
    ("flavour", "version", "state"),
    [
        ("elasticsearch", "7.17.9", "warning"),
        ("elasticsearch", "8.0.0", "ok"),
        ("elasticsearch", "9.4.3", "ok"),
        ("opensearch", "1.3.20", "warning"),
        ("opensearch", "3.6.0", "ok"),
    ],
)
def test_versions_that_are_not_supported_are_warned_of(flavour: FlavourName, version: str, state: str) -> None:
    with FakeSiem(flavour, version) as siem:
        assert by_name(setup.examine_sink(to(siem), "default"))["reach"].state == state


def test_a_red_cluster_is_said_where_we_may_ask(fake: FakeSiem) -> None:
    fake.on("health", Reply(body={"status": "red"}), denied)
    indices(fake)
    running(fake)
    assert by_name(setup.examine_source(to(fake), ["logs-*"]))["health"].state == "failed"
    indices(fake)
    running(fake)
    assert "health" not in by_name(setup.examine_source(to(fake), ["logs-*"]))


def test_clocks_that_differ_are_said(fake: FakeSiem) -> None:
    fake.on("health", denied)
    fake.on("_search", answered_at(-120))
    indices(fake)
    running(fake)
    check = by_name(setup.examine_source(to(fake), ["logs-*"]))["clock"]
    assert check.state == "warning"
    assert "-120 s" in check.detail


def test_denied_stats_are_a_warning_since_there_is_another_way_to_read(fake: FakeSiem) -> None:
    fake.on("health", denied)
    fake.on("refresh", denied)
    indices(fake)
    checks = by_name(setup.examine_source(to(fake), ["logs-*"]))
    assert checks["feed"].state == "warning"
    assert "by ingest time" in checks["feed"].detail
    assert "shards" not in checks


def test_what_keeps_an_index_from_being_read_by_number_is_said(fake: FakeSiem) -> None:
    fake.on("health", denied)
    indices(fake, disable_sequence_numbers="true", refresh_interval="-1")
    running(fake)
    checks = by_name(setup.examine_source(to(fake), ["logs-*"]))
    assert (checks["feed"].state, checks["refresh"].state) == ("warning", "warning")


def test_a_shard_without_a_running_copy_is_said(fake: FakeSiem) -> None:
    fake.on("health", denied)
    fake.on("refresh", Reply(body={}))
    indices(fake)
    assert "logs-a (1 of 1)" in by_name(setup.examine_source(to(fake), ["logs-*"]))["shards"].detail


def test_what_we_write_is_not_counted_as_a_sources_indices(fake: FakeSiem) -> None:
    fake.on("health", denied)
    own = [
        {"name": f"logs-vedette.{dataset}-a", "backing_indices": [f".ds-logs-vedette.{dataset}-a-000001"]}
        for dataset in ("alert", "audit")
    ]
    fake.on("logs-*", resolved(data_streams=own))
    assert by_name(setup.examine_source(to(fake), ["logs-*"]))["patterns"].state == "warning"


def test_a_hidden_document_is_said_by_elasticsearch() -> None:
    with FakeSiem("elasticsearch") as siem:
        siem.on("health", denied)
        indices(siem)
        running(siem)
        siem.on("_privileges", Reply(body={"indices": [{"names": ["logs-*"], "query": ['{"term":{"a":1}}']}]}))
        check = by_name(setup.examine_source(to(siem), ["logs-*"]))["feed"]
    assert "document-level security" in check.detail


LAYOUTS = pytest.mark.parametrize("layout", setup.LAYOUTS, ids=lambda layout: layout.dataset)


@LAYOUTS
def test_a_template_that_is_missing_or_of_another_version_is_said(fake: FakeSiem, layout: setup.Layout) -> None:
    fake.on("health", denied, denied)
    fake.templates = []
    name = f"{layout.dataset} template"
    assert by_name(setup.examine_sink(to(fake), "default"))[name].state == "failed"
    old = {"_meta": {"managed_by": "vedette", "digest": "0", "layout": "0"}, "index_patterns": [layout.pattern]}
    fake.templates = [{"name": layout.name, "index_template": {**old, "priority": 600, "data_stream": {}}}]
    assert by_name(setup.examine_sink(to(fake), "default"))[name].state == "warning"


@LAYOUTS
def test_a_template_with_a_higher_priority_is_named(fake: FakeSiem, layout: setup.Layout) -> None:
    fake.on("health", denied)
    other = {"index_patterns": ["logs-*-*"], "priority": 601, "data_stream": {}}
    fake.templates = [{"name": "theirs", "index_template": other}]
    check = by_name(setup.examine_sink(to(fake), "default"))[f"{layout.dataset} precedence"]
    assert check.state == "failed"
    assert "theirs (priority 601)" in check.detail


# --- setup ------------------------------------------------------------------------------------------------------------


def test_setup_that_may_not_or_cannot_raises(fake: FakeSiem) -> None:
    fake.on(setup.ALERT.name, denied, Reply(503), Reply(400, {"error": {"type": "x", "reason": "no"}}))
    for error, said in ((ConfigError, "vedette-setup"), (RetryableError, "503"), (ConfigError, "no")):
        with pytest.raises(error, match=said):
            list(setup.install(to(fake), "default", {}))


def test_names_go_into_as_many_requests_as_they_need() -> None:
    names = [f"logs-{number:04}-{'x' * 90}" for number in range(100)]
    lines = list(batches(names))
    assert [name for line in lines for name in line.split(",")] == names
    assert max(map(len, lines)) < 4_000
    assert len(lines) == 4
