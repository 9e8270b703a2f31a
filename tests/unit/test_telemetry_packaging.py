"""Rules, dashboard and page about metrics: what the generator writes, about metrics that there are, and at work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.telemetry.metrics import METRICS
from tests.scripts import load

ROOT = Path(__file__).parents[2]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: it comes with Debian's prometheus")


writer = load("observability.py")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(writer.rules())["groups"] for rule in group["rules"]
]  # fmt: skip
BOARD: dict[str, Any] = json.loads(writer.dashboard())
PANELS: list[dict[str, Any]] = [one for one in BOARD["panels"] if one["type"] != "row"]
LABELS = {label for one in METRICS for label in one.labels} | {"job", "instance", "le"}
WORDS = frozenset(
    re.findall(
        r"\w+",
        "sum by on count max min rate increase delta deriv changes histogram_quantile predict_linear time"
        " vector absent and or unless up",
    )
)


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression of rules and dashboard, by where it stands."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def series(expr: str) -> set[str]:
    """Return the names of series in *expr*: all words but functions, labels and durations."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on)\s*\([^)]*\)', " ", expr)
    return set(re.findall(r"[A-Za-z_][\w:]*", bare)) - WORDS


@pytest.mark.parametrize("name", [writer.RULES, writer.DASHBOARD, writer.PAGE])
def test_files_are_what_the_generator_writes(name: str) -> None:
    """After a change of metrics, rules or panels: python packaging/observability.py."""
    assert (ROOT / name).read_text("utf-8") == writer.files()[name]


def test_every_series_is_a_metric_of_ours_or_recorded() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    known = {one.name for one in METRICS if one.kind != "histogram"} | recorded
    known |= {f"{one.name}{end}" for one in METRICS if one.kind == "histogram" for end in ("_bucket", "_sum", "_count")}
    for where, expr in expressions():
        assert series(expr) <= known, where
    assert series('sum by (stream) (rate(vedette_nothing{a="b"}[5m])) > 0') == {"vedette_nothing"}


def test_every_label_is_one_of_ours() -> None:
    for where, expr in expressions():
        grouped = {name for found in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr) for name in found.split(", ")}
        matched = set(re.findall(r"[{,]\s*(\w+)\s*=", expr))
        assert grouped | matched <= LABELS, where
    for rule in RULES:
        for text in rule.get("annotations", {}).values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= LABELS, rule
    for panel in PANELS:
        for target in panel["targets"]:
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= LABELS, panel["title"]


def test_a_panel_filters_by_labels_that_its_metric_has() -> None:
    """A matcher on a label that a metric lacks would show nothing."""
    own = {one.name: {*one.labels, "instance"} for one in METRICS}
    for panel in PANELS:
        for target in panel["targets"]:
            for name, matchers in re.findall(r"(vedette_\w+)\{([^}]*)\}", target["expr"]):
                base = writer.metric_of(name)
                assert set(re.findall(r"(\w+)=", matchers)) <= own[base.name], (panel["title"], name)


def test_every_alert_says_what_to_do_and_where_to_read_on() -> None:
    alerts = [rule for rule in RULES if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning", "info", "none"}
        said = rule["annotations"]
        assert said["summary"]
        assert said["description"].endswith(".")
        path, _, anchor = said["runbook"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text("utf-8"), re.M)
        assert anchor in {writer.anchor_of(one) for one in headings}, said["runbook"]


def test_the_page_lists_every_metric_and_alert() -> None:
    page = writer.page()
    assert all(f"| `{one.name}` | {one.kind} | {one.unit} |" in page for one in METRICS)
    assert all(f"| {rule['alert']} |" in page for rule in RULES if "alert" in rule)


# --- the dashboard ----------------------------------------------------------------------------------------------------


def test_panels_do_not_overlap_and_stay_within_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_the_dashboard_asks_the_chosen_datasource_for_the_chosen_streams() -> None:
    names = [one["name"] for one in BOARD["templating"]["list"]]
    assert names == ["datasource", "instance", "stream"]
    rows = [one["title"] for one in BOARD["panels"] if one["type"] == "row"]
    assert rows == ["Health", "Flow", "Latency", "Alerts", "Store", "Rules and models", "Configuration and audit"]
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert "$instance" in target["expr"], panel["title"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {"instance", "stream", "__rate_interval"}


# --- Prometheus's own judgement ---------------------------------------------------------------------------------------


def promtool(*words: object) -> None:
    done = subprocess.run([str(PROMTOOL), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", ROOT / writer.RULES)


@needs_promtool
def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    values = {"$__rate_interval": "5m", "$instance": ".*", "$stream": ".*"}
    asked = [re.sub(r"\$\w+", lambda found: values[found[0]], target["expr"]) for panel in PANELS
             for target in panel["targets"]]  # fmt: skip
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(asked)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


WHERE = 'job="vedette", instance="a"'
CASES: tuple[tuple[str, dict[str, str], str, list[dict[str, str]]], ...] = (
    ("VedetteWatchdog", {}, "1m", [{}]),
    ("VedetteTargetDown", {'up{job="vedette", instance="a"}': "0x60"}, "10m", [{"job": "vedette", "instance": "a"}]),
    ("VedetteTargetDown", {'up{job="vedette", instance="a"}': "1x60"}, "10m", []),
    ("VedetteAbsent", {}, "15m", [{}]),
    ("VedetteAbsent", {f'vedette_build_info{{{WHERE}, version="1"}}': "1x60"}, "15m", []),
    ("VedetteStreamDegraded", {f'vedette_stream_degraded{{{WHERE}, stream="main"}}': "1x60"}, "9m", []),
    ("VedetteStreamDegraded", {f'vedette_stream_degraded{{{WHERE}, stream="main"}}': "1x60"}, "11m",
     [{"stream": "main"}]),
    ("VedetteStreamDown", {f'vedette_stream_up{{{WHERE}, stream="main"}}': "0x60",
                           f'vedette_stream_paused{{{WHERE}, stream="main"}}': "0x60"}, "10m", [{"stream": "main"}]),
    ("VedetteStreamDown", {f'vedette_stream_up{{{WHERE}, stream="main"}}': "0x60",
                           f'vedette_stream_paused{{{WHERE}, stream="main"}}': "1x60"}, "10m", []),
    ("VedetteLagGrows", {f'vedette_source_lag_events{{{WHERE}, stream="main", source="s"}}': "20000+500x60"}, "40m",
     [{"stream": "main", "source": "s"}]),
    ("VedetteLagGrows", {f'vedette_source_lag_events{{{WHERE}, stream="main", source="s"}}': "60000-500x60"}, "40m",
     []),
    ("VedetteOutboxOld", {f'vedette_outbox_oldest_age_seconds{{{WHERE}, sink="siem"}}': "0+60x60"}, "30m",
     [{"sink": "siem"}]),
    ("VedetteSinkDown", {f'vedette_sink_up{{{WHERE}, sink="siem"}}': "0x60"}, "6m", [{"sink": "siem"}]),
    ("VedetteDeadLettersRise", {f'vedette_events_quarantined{{{WHERE}, stream="main"}}': "0+1x90"}, "70m",
     [{"stream": "main"}]),
    ("VedetteDeadLettersRise", {f'vedette_events_quarantined{{{WHERE}, stream="main"}}': "90-1x90"}, "70m", []),
    ("VedetteSpilled", {f'vedette_sink_spilled_total{{{WHERE}, sink="siem"}}': "0x20 5x20"}, "25m", [{"sink": "siem"}]),
    ("VedetteCapped", {f'vedette_detector_capped_total{{{WHERE}, stream="main", detector="d"}}': "0x20 5x20"}, "25m",
     [{"stream": "main", "detector": "d"}]),
    ("VedetteWalLarge", {f"vedette_store_wal_bytes{{{WHERE}}}": "2147483648x60"}, "20m", [{}]),
    ("VedetteDiskLow", {f"vedette_store_free_bytes{{{WHERE}}}": "1e9x60"}, "20m", [{}]),
    ("VedetteDiskLow", {f"vedette_store_free_bytes{{{WHERE}}}": "1e12x60"}, "20m", []),
    ("VedetteConfigurationRefused", {f'vedette_configurations_total{{{WHERE}, outcome="refused"}}': "0x20 1x60",
                                     f"vedette_start_timestamp_seconds{{{WHERE}}}": "-9000x80"}, "25m",
     [{"outcome": "refused"}]),
    ("VedetteConfigurationRefused", {f'vedette_configurations_total{{{WHERE}, outcome="refused"}}': "1x80",
                                     f"vedette_start_timestamp_seconds{{{WHERE}}}": "0x80"}, "5m",
     [{"outcome": "refused"}]),
    ("VedetteConfigurationRefused", {f'vedette_configurations_total{{{WHERE}, outcome="refused"}}': "1x80",
                                     f"vedette_start_timestamp_seconds{{{WHERE}}}": "0x80"}, "40m", []),
    ("VedetteModelExpires", {f'vedette_model_expiry_timestamp_seconds{{{WHERE}, stream="s", model="m"}}': "604000x9"},
     "1m", [{"stream": "s", "model": "m"}]),
    ("VedetteModelExpires", {f'vedette_model_expiry_timestamp_seconds{{{WHERE}, stream="s", model="m"}}': "9e5x9"},
     "1m", []),
    ("VedetteModelExpires", {f'vedette_model_expiry_timestamp_seconds{{{WHERE}, stream="s", model="m"}}': "30x9"},
     "1m", []),
    ("VedetteModelExpired", {f'vedette_model_expiry_timestamp_seconds{{{WHERE}, stream="s", model="m"}}': "30x9"},
     "1m", [{"stream": "s", "model": "m"}]),
    ("VedetteAuditUnsigned", {f"vedette_audit_unsigned_leaves{{{WHERE}}}": "3x60",
                              f"vedette_audit_checkpoint_timestamp_seconds{{{WHERE}}}": "0x60"}, "10m", [{}]),
    ("VedetteAuditUnsigned", {f"vedette_audit_unsigned_leaves{{{WHERE}}}": "3x60",
                              f"vedette_audit_checkpoint_timestamp_seconds{{{WHERE}}}": "0+60x60"}, "10m", []),
    ("VedetteAuditCheckpointOld", {f"vedette_audit_checkpoint_timestamp_seconds{{{WHERE}}}": "0x240",
                                   f'vedette_stream_up{{{WHERE}, stream="main"}}': "1x240"}, "200m", [{}]),
    ("VedetteAuditCheckpointOld", {f"vedette_audit_checkpoint_timestamp_seconds{{{WHERE}}}": "0x240",
                                   f'vedette_stream_up{{{WHERE}, stream="main"}}': "0x240"}, "200m", []),
    ("VedetteCanarySilent", {f'vedette_canary_timestamp_seconds{{{WHERE}, stream="main"}}': "0x120"}, "70m",
     [{"stream": "main"}]),
)  # fmt: skip


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """One small world a case, minute by minute; which alerts stand at a moment, and with which labels."""
    quiet = [{key: value for key, value in rule.items() if key != "annotations"} for rule in RULES]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "vedette", "rules": quiet}]}))
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in RULES if "alert" in rule}
    tests = []
    for name, world, moment, expected in CASES:
        base = {"job": "vedette", "instance": "a"} if world and expected else {}
        alerts = [{"exp_labels": {**base, **labels, "severity": severity[name]}}
                  for labels in expected]  # fmt: skip
        tests.append({
            "name": f"{name} at {moment}",
            "interval": "1m",
            "input_series": [{"series": one, "values": values} for one, values in world.items()],
            "alert_rule_test": [{"eval_time": moment, "alertname": name, "exp_alerts": alerts}],
        })  # fmt: skip
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    promtool("test", "rules", tmp_path / "test.yml")
