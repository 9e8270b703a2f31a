"""Writes the rules for Prometheus, the dashboard for Grafana and the page about metrics, all from `METRICS`.

`python packaging/observability.py` writes every file of `files()`. Same source, same bytes. What a panel says of itself
and the table of the page are the list's own words; every name in an expression is in the list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from agent.telemetry.metrics import METRICS, MOST_SERIES, Metric

ROOT = Path(__file__).parents[1]
RULES = "packaging/prometheus/vedette-rules.yml"
DASHBOARD = "packaging/grafana/vedette.json"
PAGE = "docs/metrics.md"
OWN = {one.name: one for one in METRICS}
Severity: TypeAlias = Literal["critical", "warning", "info", "none"]

WRONG = "docs/operate.md#when-something-is-wrong"
DISK = "docs/operate.md#what-is-on-the-disk"
RUN = "docs/operate.md#run"
MODELS = "docs/models.md#4-let-it-run"
AUDIT = "docs/audit.md#does-the-log-hold"
ACCESS = "docs/access.md#a-change"
COUNTED = "docs/detectors.md#what-is-not-folded-and-counted"


# --- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A series that Prometheus keeps because the dashboard or an alert asks for it often."""

    name: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """What somebody should look at: when, how long it must hold, how bad it is, what it means, and where to read on."""

    name: str
    expr: str
    holds: str
    severity: Severity
    summary: str
    description: str
    runbook: str


RECORDINGS = (
    Recording(
        "vedette:events_received:rate5m", "sum by (job, instance, stream) (rate(vedette_events_received_total[5m]))"
    ),
    Recording(
        "vedette:batch_stage_seconds:mean5m",
        "sum by (job, instance, stream, stage) (rate(vedette_batch_stage_seconds_sum[5m]))"
        " / sum by (job, instance, stream, stage) (rate(vedette_batch_stage_seconds_count[5m]))",
    ),
    Recording(
        "vedette:sink_delivery_seconds:p50_5m",
        "histogram_quantile(0.5, sum by (job, instance, sink, le) (rate(vedette_sink_delivery_seconds_bucket[5m])))",
    ),
    Recording(
        "vedette:sink_delivery_seconds:p99_5m",
        "histogram_quantile(0.99, sum by (job, instance, sink, le) (rate(vedette_sink_delivery_seconds_bucket[5m])))",
    ),
    Recording(
        "vedette:model_found:increase1d",
        "sum by (job, instance, stream, model) (increase(vedette_model_found_total[1d]))",
    ),
)

ALERTS = (
    # --- the agent itself
    Alert(
        "VedetteWatchdog", "vector(1)", "", "none",
        "Alerts reach you",
        "This alert always fires. Let a service outside tell you when it stops: then Prometheus, or its way to you,"
        " fails and no other alert comes through.",
        WRONG,
    ),
    Alert(
        "VedetteTargetDown", 'up{job=~"vedette.*"} == 0', "5m", "critical",
        "Vedette on {{ $labels.instance }} does not answer",
        "Its metrics cannot be read: the process is down, hangs or cannot be reached. Nothing is read meanwhile; what"
        " was read goes on from the last commit.",
        RUN,
    ),
    Alert(
        "VedetteAbsent", "absent(vedette_build_info)", "10m", "critical",
        "No Vedette is scraped",
        "There is no series of any Vedette: it is not running, or Prometheus does not know its address.",
        RUN,
    ),
    Alert(
        "VedetteRestarts", "changes(vedette_start_timestamp_seconds[30m]) > 3", "", "critical",
        "Vedette on {{ $labels.instance }} starts again and again",
        "It has started {{ $value | humanize }} times more within half an hour; its log says why it ended.",
        WRONG,
    ),
    Alert(
        "VedetteConfigurationRefused",
        'increase(vedette_configurations_total{outcome="refused"}[15m]) > 0'
        ' or (vedette_configurations_total{outcome="refused"} > 0'
        " and on (job, instance) time() - vedette_start_timestamp_seconds < 900)",
        "", "warning",
        "A configuration was refused on {{ $labels.instance }}",
        "The last good one goes on. The log and the audit log say which law it broke.",
        ACCESS,
    ),
    # --- reading
    Alert(
        "VedetteStreamDown",
        "vedette_stream_up == 0 unless on (job, instance, stream) vedette_stream_paused == 1", "5m", "critical",
        "Stream {{ $labels.stream }} does not run",
        "It could not be made from the configuration: the log says why. Nothing of its source is read.",
        WRONG,
    ),
    Alert(
        "VedetteStreamDegraded", "vedette_stream_degraded == 1", "10m", "warning",
        "Stream {{ $labels.stream }} is degraded",
        "It waits to try again, or runs without something that the configuration names; /readyz and the log say what.",
        WRONG,
    ),
    Alert(
        "VedetteStreamPaused", "vedette_stream_paused == 1", "1d", "info",
        "Stream {{ $labels.stream }} has been paused for a day",
        "Somebody paused it and nothing is read; the audit log says who and when.",
        WRONG,
    ),
    Alert(
        "VedetteLagGrows",
        "(vedette_source_lag_events > 10000 and deriv(vedette_source_lag_events[15m]) > 0)"
        " or vedette_source_lag_seconds > 900",
        "15m", "warning",
        "Stream {{ $labels.stream }} falls behind {{ $labels.source }}",
        "More comes than is read, so alerts come late ({{ $value | humanize }} events, or seconds). See which stage of"
        " the batches costs most.",
        WRONG,
    ),
    Alert(
        "VedetteEventsLost", "increase(vedette_source_lost_total[1h]) > 0", "", "critical",
        "Events of stream {{ $labels.stream }} were deleted before they were read",
        "About {{ $value | humanize }} events in an hour: retention at the source is shorter than the lag.",
        WRONG,
    ),
    Alert(
        "VedetteDeadLettersRise", "delta(vedette_events_quarantined[1h]) > 10", "", "warning",
        "Events of stream {{ $labels.stream }} cannot be read",
        "About {{ $value | humanize }} more within an hour; 'vedette deadletter list' says where and why.",
        WRONG,
    ),
    Alert(
        "VedetteDeadLettersCut", "increase(vedette_dead_letters_cut_total[1h]) > 0", "", "warning",
        "The dead-letter store is full",
        "Of {{ $value | humanize }} records only place, reason and digest were kept: they cannot be read again.",
        WRONG,
    ),
    Alert(
        "VedetteCanarySilent", "time() - vedette_canary_timestamp_seconds > 3600", "5m", "critical",
        "No canary has come through stream {{ $labels.stream }}",
        "The last one was {{ $value | humanizeDuration }} ago. Between the log's origin and the alert something is"
        " broken, or nobody sends canaries any more.",
        WRONG,
    ),
    # --- detection
    Alert(
        "VedetteCapped", "increase(vedette_detector_capped_total[1h]) > 0", "", "warning",
        "Detector {{ $labels.detector }} forgets",
        "{{ $value | humanize }} keys in an hour found no room in its state: give it more, or choose another entity.",
        COUNTED,
    ),
    Alert(
        "VedetteAlertStorm", "increase(vedette_alerts_held_back_total[1h]) > 0", "", "info",
        "Alerts of stream {{ $labels.stream }} are held back",
        "A rule is past max_per_rule_and_hour: its alerts are stored and one storm alert stands for them.",
        WRONG,
    ),
    Alert(
        "VedetteModelExpires",
        "vedette_model_expiry_timestamp_seconds - time() < 604800 and vedette_model_expiry_timestamp_seconds > time()",
        "", "warning",
        "Model {{ $labels.model }} expires within {{ $value | humanizeDuration }}",
        "Train and sign a new one.",
        MODELS,
    ),
    Alert(
        "VedetteModelExpired", "vedette_model_expiry_timestamp_seconds <= time()", "", "critical",
        "Model {{ $labels.model }} has expired",
        "It goes on or has stopped, as on_expiry says. What it finds is less and less to be believed.",
        MODELS,
    ),
    Alert(
        "VedetteModelRefused", "vedette_model_admitted == 0", "5m", "critical",
        "Model {{ $labels.model }} was refused on stream {{ $labels.stream }}",
        "It does not run; the log and the audit log name the step of its admission that failed.",
        MODELS,
    ),
    Alert(
        "VedetteModelLoud",
        "vedette:model_found:increase1d"
        " > 3 * sum by (job, instance, stream, model) (vedette_model_budget_alerts_per_day)",
        "1h", "warning",
        "Model {{ $labels.model }} finds three times what it may",
        "{{ $value | humanize }} findings in a day: the events have moved away from those it was calibrated on.",
        MODELS,
    ),
    # --- delivery
    Alert(
        "VedetteSinkDown", "vedette_sink_up == 0", "5m", "critical",
        "Sink {{ $labels.sink }} does not answer",
        "Alerts wait in the outbox and lose nothing; when a required sink is full, reading stops.",
        WRONG,
    ),
    Alert(
        "VedetteOutboxOld", "vedette_outbox_oldest_age_seconds > 900", "5m", "critical",
        "An alert has waited {{ $value | humanizeDuration }} for sink {{ $labels.sink }}",
        "The sink is down, slow, or pushes back.",
        WRONG,
    ),
    Alert(
        "VedetteDeliverySlow", "vedette:sink_delivery_seconds:p99_5m > 60", "15m", "warning",
        "Alerts take {{ $value | humanizeDuration }} to sink {{ $labels.sink }}",
        "One in a hundred takes so long from the fetch of its events to the sink's yes.",
        WRONG,
    ),
    Alert(
        "VedetteSpilled", "increase(vedette_sink_spilled_total[15m]) > 0", "", "critical",
        "Sink {{ $labels.sink }} was full and alerts were spilled",
        "{{ $value | humanize }} alerts are stored here and will never be offered to it.",
        WRONG,
    ),
    Alert(
        "VedetteRefused", "increase(vedette_sink_refused_total[1h]) > 0", "", "warning",
        "Sink {{ $labels.sink }} refuses documents for good",
        "{{ $value | humanize }} documents in an hour; they stay in the outbox with the reason.",
        WRONG,
    ),
    # --- store and audit
    Alert(
        "VedetteDiskLow",
        "vedette_store_free_bytes < 2147483648 or predict_linear(vedette_store_free_bytes[6h], 86400) < 0",
        "15m", "critical",
        "The disk of the data folder on {{ $labels.instance }} is running full",
        "On a full disk nothing is read or stored until there is room; nothing is lost.",
        DISK,
    ),
    Alert(
        "VedetteWalLarge", "vedette_store_wal_bytes > 1073741824", "15m", "warning",
        "The write-ahead log on {{ $labels.instance }} has grown to {{ $value | humanize1024 }}B",
        "Somebody reads the store in one long transaction, so that the log cannot be folded into the file.",
        DISK,
    ),
    Alert(
        "VedetteAuditUnsigned",
        "vedette_audit_unsigned_leaves > 0 and time() - vedette_audit_checkpoint_timestamp_seconds > 300",
        "2m", "critical",
        "{{ $value | humanize }} leaves of the audit log are not signed",
        "A checkpoint is due every minute at least while there is something to sign; the log says what hinders it.",
        AUDIT,
    ),
    Alert(
        "VedetteAuditCheckpointOld",
        "time() - vedette_audit_checkpoint_timestamp_seconds > 10800"
        " and on (job, instance) sum by (job, instance) (vedette_stream_up) > 0",
        "10m", "warning",
        "The audit log's last checkpoint is {{ $value | humanizeDuration }} old",
        "A stream that runs is put on record every hour: either none commits, or nothing is signed.",
        AUDIT,
    ),
    Alert(
        "VedetteMetricsLeftOut", "vedette_metrics_left_out > 0", "1h", "info",
        "{{ $labels.metric }} shows only a part",
        f"It has more than {MOST_SERIES} label sets; {{{{ $value | humanize }}}} are left out.",
        WRONG,
    ),
)  # fmt: skip


def rules() -> str:
    """Return the file of rules for Prometheus."""
    recorded = [{"record": one.name, "expr": one.expr} for one in RECORDINGS]
    groups = [{"name": "vedette-recorded", "rules": recorded}, {"name": "vedette", "rules": list(map(_rule, ALERTS))}]
    head = "# Made by packaging/observability.py. Under rule_files in prometheus.yml.\n"
    return head + yaml.safe_dump({"groups": groups}, sort_keys=False, width=10_000, allow_unicode=True)


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        **({"for": alert.holds} if alert.holds else {}),
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.description, "runbook": alert.runbook},
    }


# --- dashboard --------------------------------------------------------------------------------------------------------

ANY = 'instance=~"$instance"'
STREAM = 'instance=~"$instance", stream=~"$stream"'
PER = "$__rate_interval"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDE = 24
_FINE, _BAD = "green", "red"


@dataclass(frozen=True)
class Panel:
    """A chart: what it asks, by (expression, legend). *bad*: a number, of a tile, from which on it is red."""

    title: str
    asks: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    stacked: bool = False
    bad: float | None = None

    @property
    def description(self) -> str:
        """What the metrics of the chart mean, in the list's own words."""
        names = dict.fromkeys(name for expr, _ in self.asks for name in re.findall(r"vedette_\w+", expr))
        known = dict.fromkeys(filter(None, map(metric_of, names)))
        return "\n".join(f"{one.name}: {one.help}" for one in known)


def tile(title: str, expr: str, *, unit: str = "short", bad: float | None = None, legend: str = "") -> Panel:
    return Panel(title, ((expr, legend),), unit, "stat", 4, bad=bad)


def rate(name: str, by: str, where: str = STREAM) -> str:
    return f"sum by ({by}) (rate({name}{{{where}}}[{PER}]))"


def rise(name: str, by: str, where: str = STREAM) -> str:
    return f"sum by ({by}) (increase({name}{{{where}}}[{PER}]))"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Health", (
        tile("Streams that run", f"sum(vedette_stream_up{{{STREAM}}})"),
        tile("Streams degraded", f"sum(vedette_stream_degraded{{{STREAM}}})", bad=1),
        tile("Streams paused", f"sum(vedette_stream_paused{{{STREAM}}})", bad=1),
        tile("Sinks down", f"count(vedette_sink_up{{{ANY}}} == 0) or vector(0)", bad=1),
        tile("Since the last canary", f"time() - max(vedette_canary_timestamp_seconds{{{STREAM}}})", unit="s",
             bad=3600),
        tile("Running for", f"time() - min(vedette_start_timestamp_seconds{{{ANY}}})", unit="s"),
        Panel("Streams degraded", ((f"vedette_stream_degraded{{{STREAM}}}", "{{instance}} {{stream}}"),), width=8),
        Panel("Events not read yet", ((f"vedette_source_lag_events{{{STREAM}}}", "{{stream}} {{source}}"),), width=8),
        Panel("Age of the oldest event not read",
              ((f"vedette_source_lag_seconds{{{STREAM}}}", "{{stream}} {{source}}"),), "s"),
    )),
    ("Flow", (
        Panel("Events a second", ((rate("vedette_events_received_total", "stream"), "{{stream}}"),), "eps"),
        Panel("What became of them", (
            (rate("vedette_events_scored_total", "instance"), "scored"),
            (rate("vedette_events_filtered_total", "filter"), "filtered: {{filter}}"),
        ), "eps", stacked=True),
        Panel("Events that could not be read",
              ((f"vedette_events_quarantined{{{STREAM}}}", "{{stream}}"),), "short"),
        Panel("Events in a batch", (
            (f"{rate('vedette_batch_events_sum', 'stream')} / {rate('vedette_batch_events_count', 'stream')}",
             "{{stream}}"),
        )),
        Panel("Events lost, gaps, breaks", (
            (rise("vedette_source_lost_total", "stream"), "lost: {{stream}}"),
            (rise("vedette_source_gaps_total", "stream"), "gaps: {{stream}}"),
            (rise("vedette_source_history_breaks_total", "stream"), "history breaks: {{stream}}"),
            (rise("vedette_source_failed_searches_total", "stream"), "failed searches: {{stream}}"),
        )),
        Panel("Marked and left out", (
            (rise("vedette_events_future_total", "stream"), "future: {{stream}}"),
            (rise("vedette_events_untimed_total", "stream"), "untimed: {{stream}}"),
            (rise("vedette_detector_left_out_total", "detector, reason"), "{{detector}}: {{reason}}"),
            (rise("vedette_values_wrong_type_total", "field"), "wrong type: {{field}}"),
        )),
    )),
    ("Latency", (
        Panel("From fetch to the sink's yes", (
            (f"histogram_quantile(0.5, {rate('vedette_sink_delivery_seconds_bucket', 'sink, le', ANY)})",
             "p50 {{sink}}"),
            (f"histogram_quantile(0.99, {rate('vedette_sink_delivery_seconds_bucket', 'sink, le', ANY)})",
             "p99 {{sink}}"),
        ), "s", width=12),
        Panel("What a batch costs, by stage", (
            (f"{rate('vedette_batch_stage_seconds_sum', 'stream, stage')}"
             f" / {rate('vedette_batch_stage_seconds_count', 'stream, stage')}", "{{stream}} {{stage}}"),
        ), "s", width=12),
    )),
    ("Alerts", (
        Panel("New alerts", ((rise("vedette_alerts_total", "level"), "{{level}}"),), stacked=True),
        Panel("Findings that became no alert of their own", (
            (rise("vedette_alerts_suppressed_total", "stream"), "suppressed: {{stream}}"),
            (rise("vedette_alerts_held_back_total", "stream"), "held back: {{stream}}"),
            (rise("vedette_alerts_excepted_total", "stream"), "excepted: {{stream}}"),
        )),
        Panel("Documents taken by sinks", ((rate("vedette_sink_delivered_total", "sink", ANY), "{{sink}}"),), "cps"),
        Panel("Waiting in the outbox", ((f"vedette_outbox_waiting{{{ANY}}}", "{{sink}} {{dataset}}"),)),
        Panel("Age of the oldest that waits", ((f"vedette_outbox_oldest_age_seconds{{{ANY}}}", "{{sink}}"),), "s"),
        Panel("Refused, spilled, offered again", (
            (rise("vedette_sink_refused_total", "sink", ANY), "refused: {{sink}}"),
            (rise("vedette_sink_spilled_total", "sink", ANY), "spilled: {{sink}}"),
            (rise("vedette_sink_retried_total", "sink", ANY), "offered again: {{sink}}"),
        )),
    )),
    ("Store", (
        Panel("Size on the disk", (
            (f"vedette_store_database_bytes{{{ANY}}}", "database {{instance}}"),
            (f"vedette_store_wal_bytes{{{ANY}}}", "write-ahead log {{instance}}"),
            (f"vedette_dead_letter_bytes{{{ANY}}}", "dead letters {{instance}}"),
            (f"sum by (stream) (vedette_state_bytes{{{STREAM}}})", "state {{stream}}"),
        ), "bytes"),
        Panel("Space left", ((f"vedette_store_free_bytes{{{ANY}}}", "{{instance}}"),), "bytes"),
        Panel("Keys held in memory", ((f"sum by (operator) (vedette_state_keys{{{STREAM}}})", "{{operator}}"),)),
        Panel("Keys dropped, letters cut", (
            (rise("vedette_detector_capped_total", "detector"), "capped: {{detector}}"),
            (rise("vedette_detector_combinations_cut_total", "detector"), "combinations: {{detector}}"),
            (rise("vedette_dead_letters_cut_total", "stream"), "dead letters: {{stream}}"),
        )),
        Panel("Processor", ((rate("vedette_process_cpu_seconds_total", "instance", ANY), "{{instance}}"),),
              "percentunit"),
        Panel("Memory", ((f"vedette_process_resident_memory_bytes{{{ANY}}}", "{{instance}}"),), "bytes"),
    )),
    ("Rules and models", (
        tile("Rules that run", f"sum(vedette_rules_loaded{{{STREAM}}})"),
        tile("Rules refused", f"sum(vedette_rules_refused{{{STREAM}}})"),
        tile("Models refused", f"count(vedette_model_admitted{{{STREAM}}} == 0) or vector(0)", bad=1),
        tile("First model expires in", f"min(vedette_model_expiry_timestamp_seconds{{{STREAM}}}) - time()", unit="s"),
        Panel("Found in a day, and the budget", (
            (f"sum by (model) (increase(vedette_model_found_total{{{STREAM}}}[1d]))", "found: {{model}}"),
            (f"sum by (model) (vedette_model_budget_alerts_per_day{{{STREAM}}})", "budget: {{model}}"),
        )),
        Panel("Judged a second", ((rate("vedette_model_judged_total", "model"), "{{model}}"),), "cps"),
    )),
    ("Configuration and audit", (
        tile("Revision that runs", f"max(vedette_configuration_revision{{{ANY}}})"),
        tile("Configurations refused", f'sum(vedette_configurations_total{{{ANY}, outcome="refused"}})', bad=1),
        tile("Leaves", f"sum(vedette_audit_leaves_total{{{ANY}}})"),
        tile("Leaves not signed", f"sum(vedette_audit_unsigned_leaves{{{ANY}}})"),
        tile("Since the last checkpoint", f"time() - min(vedette_audit_checkpoint_timestamp_seconds{{{ANY}}})",
             unit="s", bad=10_800),
        tile("Versions", f"count by (version) (vedette_build_info{{{ANY}}})", legend="{{version}}"),
    )),
)  # fmt: skip


def metric_of(name: str) -> Metric | None:
    """Return the metric that the series *name* belongs to."""
    return OWN.get(name) or OWN.get(re.sub(r"_(bucket|sum|count)$", "", name))


def dashboard() -> str:
    """Return the dashboard for Grafana, in the model that every version can import."""
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0,
         "refresh": 1, "regex": "", "multi": False, "includeAll": False, "options": [], "current": {}},
        _variable("instance", "Agent", "label_values(vedette_build_info, instance)"),
        _variable("stream", "Stream", f"label_values(vedette_events_received_total{{{ANY}}}, stream)"),
    ]  # fmt: skip
    board = {
        "uid": "vedette",
        "title": "Vedette",
        "description": "How the agent is, what it reads, finds and delivers.",
        "tags": ["vedette", "security"],
        "schemaVersion": 42,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": variables},
        "panels": list(_laid_out()),
    }
    return json.dumps(board, indent=2, ensure_ascii=False) + "\n"


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "label": label, "type": "query", "datasource": _SOURCE, "definition": query,
        "query": {"qryType": 1, "query": query, "refId": name}, "refresh": 2, "sort": 1, "hide": 0, "regex": "",
        "multi": True, "includeAll": True, "allValue": ".*", "options": [],
        "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def _laid_out() -> Iterator[dict[str, Any]]:
    """Yield rows and panels, left to right and top to bottom."""
    number, top = 1, 0
    for title, panels in ROWS:
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": top, "w": _WIDE, "h": 1}}  # fmt: skip
        number, top, left, tallest = number + 1, top + 1, 0, 0
        for panel in panels:
            height = 4 if panel.kind == "stat" else 8
            if left + panel.width > _WIDE or (left and height != tallest):
                top, left = top + tallest, 0
            tallest = height
            yield _panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": height})
            number, left = number + 1, left + panel.width
        top += tallest


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    is_tile = panel.kind == "stat"
    steps: list[dict[str, Any]] = [{"color": _FINE, "value": None}]
    if panel.bad is not None:
        steps.append({"color": _BAD, "value": panel.bad})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if is_tile:
        options: dict[str, Any] = {
            "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
            "textMode": "value_and_name" if panel.asks[0][1] else "value", "wideLayout": True,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }  # fmt: skip
    else:
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults |= {"min": 0, "color": {"mode": "palette-classic"}}
        defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 20 if panel.stacked else 5,
                              "showPoints": "never", "spanNulls": False, "stacking": stacking}  # fmt: skip
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [
            {"refId": chr(65 + index), "datasource": _SOURCE, "editorMode": "code", "expr": expr,
             "legendFormat": legend or "__auto", "range": not is_tile, "instant": is_tile}
            for index, (expr, legend) in enumerate(panel.asks)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }  # fmt: skip


# --- the page ---------------------------------------------------------------------------------------------------------

_PAGE = """\
# Metrics and health

<!-- Made by packaging/observability.py: change it there. -->

With `listen: 127.0.0.1:9464` in `bootstrap.yml` the daemon answers three pages over HTTP, to GET and HEAD only:

| page | what |
| --- | --- |
| `/livez` | 200 while the process is at work; 503 if it hangs and should be started anew |
| `/readyz` | 200 while every stream and sink works; else 503 with the reasons |
| `/metrics` | all figures, in the text format of Prometheus |

Nothing there is secret and nothing can be changed, but who reads it learns what you watch: keep it to the host, or put
TLS and a login in front of it.

```yaml
# prometheus.yml
scrape_configs:
  - job_name: vedette
    static_configs: [{targets: ["127.0.0.1:9464"]}]
rule_files: [vedette-rules.yml]   # packaging/prometheus/vedette-rules.yml
```

The dashboard is `packaging/grafana/vedette.json` (import it, choose the Prometheus). Counters that the store keeps go
on over a restart; those of *meters* and of the sinks begin anew. A label never holds what an event says.

## Metrics
"""


def page() -> str:
    """Return the page about metrics."""
    metrics = [
        (f"`{one.name}`", one.kind, one.unit, ", ".join(one.labels) or "–", one.help, one.source) for one in METRICS
    ]
    alerts = [
        (one.name, one.severity, f"`{one.expr}`" + (f" for {one.holds}" if one.holds else ""),
         f"[{_section(one.runbook)}]({one.runbook.removeprefix('docs/')})")
        for one in ALERTS
    ]  # fmt: skip
    return "\n".join([
        _PAGE,
        *_table(("name", "kind", "unit", "labels", "what", "from"), metrics),
        "",
        "## Alerts",
        "",
        "Each says what it means. The limits are where we would begin: change them to what is usual with you.",
        "",
        *_table(("name", "severity", "when", "read on"), alerts),
        "",
    ])  # fmt: skip


def _section(place: str) -> str:
    """Return the name of the section that *place* points to, as its heading writes it."""
    path, _, anchor = place.partition("#")
    for heading in re.findall(r"^#+ (.+)$", (ROOT / path).read_text("utf-8"), re.M):
        if anchor_of(heading) == anchor:
            return str(heading)
    raise ValueError(f"{place}: there is no such section")


def anchor_of(heading: str) -> str:
    """Return what a link to *heading* ends in."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def files() -> dict[str, str]:
    """Return the content of every file, by its path below the project's folder."""
    return {RULES: rules(), DASHBOARD: dashboard(), PAGE: page()}


def main() -> None:
    for name, text in files().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
