"""Every metric there is, and how it is made: `METRICS` is the one list, `render` the one way out.

Dashboard, rules and the table in the documentation are made from the list (`packaging/observability.py`), and what is
rendered has exactly its names. No label holds what an event says: streams, sinks, models and the like are named by the
configuration, and a metric with more than `MOST_SERIES` label sets says how many it leaves out.
"""

from __future__ import annotations

import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Literal, TypeAlias

import apsw
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from agent.model import NO_TIME, SECOND, Timestamp
from agent.store.numbers import Numbers
from agent.store.reader import LEVELS
from agent.telemetry.meters import BATCH, BOUNDS, DELIVERY, STAGE, Distribution, Labels, Meters

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
MOST_SERIES = 500


@dataclass(frozen=True)
class Metric:
    """One name: what is measured, in which unit, by which labels, and what the number is made from."""

    name: str
    kind: Kind
    unit: str
    labels: Labels
    help: str
    source: str

    @property
    def documentation(self) -> str:
        return f"{self.help} Unit: {self.unit}."


_FLAG = "1 or 0"
METRICS: tuple[Metric, ...] = (
    # --- events: received = scored + filtered + quarantined
    Metric("vedette_events_received_total", "counter", "events", ("stream",),
           "Events read from the source.", "store: received"),
    Metric("vedette_events_scored_total", "counter", "events", ("stream",),
           "Events that all detectors of the stream have seen.", "store: scored"),
    Metric("vedette_events_filtered_total", "counter", "events", ("stream", "filter"),
           "Events that a filter of the configuration left unscored.", "store: filtered.FILTER"),
    Metric("vedette_events_quarantined", "gauge", "events", ("stream",),
           "Events that could not be read and lie in the dead-letter store; a retry takes out what it can read.",
           "store: quarantined"),
    Metric("vedette_events_future_total", "counter", "events", ("stream",),
           "Events dated more than five minutes after they were read.", "store: future"),
    Metric("vedette_events_untimed_total", "counter", "events", ("stream",),
           "Events without a time that can be read.", "store: untimed"),
    Metric("vedette_values_wrong_type_total", "counter", "values", ("stream", "field"),
           "Values that are not of the type that the field has.", "store: wrong_type:FIELD"),
    # --- sources
    Metric("vedette_source_lag_events", "gauge", "events", ("stream", "source"),
           "Events that the source holds and the stream has not read, as far as the source can tell.", "service"),
    Metric("vedette_source_lag_seconds", "gauge", "seconds", ("stream", "source"),
           "Age of the oldest event that the stream has not read, as far as the source can tell.", "service"),
    Metric("vedette_source_lost_total", "counter", "events", ("stream",),
           "Events deleted at their source before they were read.", "store: gone_before_read"),
    Metric("vedette_source_gaps_total", "counter", "gaps", ("stream",),
           "Times a shard did not answer and was left for later.", "store: gaps"),
    Metric("vedette_source_history_breaks_total", "counter", "breaks", ("stream",),
           "Times a shard was read anew because its history had changed.", "store: history_breaks"),
    Metric("vedette_source_searches_total", "counter", "requests", ("stream",),
           "Searches sent to the SIEM.", "store: searches"),
    Metric("vedette_source_failed_searches_total", "counter", "requests", ("stream",),
           "Searches that the SIEM did not answer whole.", "store: failed_searches"),
    # --- streams
    Metric("vedette_stream_up", "gauge", _FLAG, ("stream",),
           "Whether the stream could be made and is not paused.", "service"),
    Metric("vedette_stream_degraded", "gauge", _FLAG, ("stream",),
           "Whether the stream lacks something or waits to try again.", "service"),
    Metric("vedette_stream_paused", "gauge", _FLAG, ("stream",), "Whether an operator has paused it.", "service"),
    Metric("vedette_stream_committed_timestamp_seconds", "gauge", "seconds", ("stream",),
           "When the batch was read that was committed last, since 1970.", "store"),
    Metric("vedette_stream_watermark_timestamp_seconds", "gauge", "seconds", ("stream",),
           "The event time up to which windows are closed, since 1970.", "store"),
    Metric(STAGE, "histogram", "seconds", ("stream", "stage"),
           "What a stage (fetch, evaluate, commit) of a batch costs.", "meters"),
    Metric(BATCH, "histogram", "events", ("stream",), "Events in a batch.", "meters"),
    # --- detectors and models
    Metric("vedette_rules_loaded", "gauge", "rules", ("stream", "detector"), "Rules that run.", "service"),
    Metric("vedette_rules_refused", "gauge", "rules", ("stream", "detector"),
           "Rules that cannot run; 'vedette plan' says why.", "service"),
    Metric("vedette_detector_left_out_total", "counter", "events", ("stream", "detector", "reason"),
           "Events that a detector could not fold: late, future, untimed, ungrouped or not_a_number.",
           "store: DETECTOR.REASON"),
    Metric("vedette_detector_capped_total", "counter", "keys", ("stream", "detector"),
           "Keys that a detector dropped, or did not begin, because its state is full.", "store: DETECTOR.capped"),
    Metric("vedette_detector_combinations_cut_total", "counter", "combinations", ("stream", "detector"),
           "Combinations of one event's values beyond what is folded.", "store: DETECTOR.combinations_cut"),
    Metric("vedette_model_admitted", "gauge", _FLAG, ("stream", "model", "state"),
           "Whether the model runs (state active or shadow) or was refused.", "service"),
    Metric("vedette_model_expiry_timestamp_seconds", "gauge", "seconds", ("stream", "model"),
           "When the model expires, since 1970.", "service"),
    Metric("vedette_model_budget_alerts_per_day", "gauge", "alerts a day", ("stream", "model"),
           "Alerts a day that the configuration allows the model.", "service"),
    Metric("vedette_model_judged_total", "counter", "rows", ("stream", "model"),
           "Events or windows that the model has scored.", "store: MODEL.model.MODEL.judged"),
    Metric("vedette_model_found_total", "counter", "rows", ("stream", "model"),
           "Events or windows within the alert budget; a day's increase is held against the budget.",
           "store: MODEL.model.MODEL.found"),
    # --- alerts
    Metric("vedette_alerts_total", "counter", "alerts", ("stream", "level"),
           "New alerts stored; level unknown: stored before levels were counted.", "store: alerts, alerts.LEVEL"),
    Metric("vedette_alerts_suppressed_total", "counter", "findings", ("stream",),
           "Findings that came to an alert already stored, by suppression or because they were read again.",
           "store: suppressed"),
    Metric("vedette_alerts_held_back_total", "counter", "findings", ("stream",),
           "Findings past the delivery cap: stored, not sent.", "store: vedette.alerting.held_back"),
    Metric("vedette_alerts_excepted_total", "counter", "findings", ("stream", "rule"),
           "Findings of a rule that an exception of the configuration silences.",
           "store: vedette.alerting.excepted.RULE"),
    Metric("vedette_alerts_pruned_total", "counter", "alerts", (),
           "Delivered alerts forgotten by retention.", "store: alerts_pruned"),
    Metric("vedette_canary_timestamp_seconds", "gauge", "seconds", ("stream",),
           "When the newest canary alert was stored, since 1970.", "store: alerts of vedette.canary"),
    # --- delivery
    Metric("vedette_sink_up", "gauge", _FLAG, ("sink",),
           "Whether the sink answered when it was last asked.", "service"),
    Metric("vedette_sink_delivered_total", "counter", "documents", ("sink",),
           "Documents that the sink has taken.", "store: delivered"),
    Metric("vedette_sink_refused_total", "counter", "documents", ("sink",),
           "Documents that the sink will never take; they stay in the outbox with the reason.", "store: refused"),
    Metric("vedette_sink_retried_total", "counter", "documents", ("sink",),
           "Offers that the sink did not take and that are made again.", "store: retried"),
    Metric("vedette_sink_spilled_total", "counter", "alerts", ("sink",),
           "Alerts never offered to a best-effort sink because it was full.", "store: spilled"),
    Metric(DELIVERY, "histogram", "seconds", ("sink",),
           "Time from the fetch of an alert's events to the sink's yes.", "meters"),
    Metric("vedette_sink_counts_total", "counter", "as the name says", ("sink", "name"),
           "What else a sink counts, since the start.", "service: the sink's own counts"),
    Metric("vedette_outbox_waiting", "gauge", "documents", ("sink", "dataset"),
           "Documents that wait for the sink: alerts, and copies of the audit log.", "store"),
    Metric("vedette_outbox_oldest_age_seconds", "gauge", "seconds", ("sink",),
           "Age of the oldest alert that waits for the sink; 0 if none does.", "store"),
    # --- store
    Metric("vedette_store_database_bytes", "gauge", "bytes", (), "Size of the database file.", "file system"),
    Metric("vedette_store_wal_bytes", "gauge", "bytes", (), "Size of the write-ahead log.", "file system"),
    Metric("vedette_store_free_bytes", "gauge", "bytes", (), "Space left for the data folder.", "file system"),
    Metric("vedette_state_bytes", "gauge", "bytes", ("stream",),
           "Size of what the stream's operators know, as stored.", "store"),
    Metric("vedette_state_keys", "gauge", "keys", ("stream", "operator"),
           "Keys that an operator of the stream holds in memory.", "service"),
    Metric("vedette_dead_letter_bytes", "gauge", "bytes", (), "Size of the records kept as dead letters.", "service"),
    Metric("vedette_dead_letters_cut_total", "counter", "records", ("stream",),
           "Dead letters of which only place, reason and digest were kept.", "store: dead_letters_cut"),
    # --- configuration and audit
    Metric("vedette_configuration_revision", "gauge", "revision", (),
           "Number of the configuration that runs.", "service"),
    Metric("vedette_configurations_total", "counter", "configurations", ("outcome",),
           "Configurations accepted and refused since the start.", "meters"),
    Metric("vedette_audit_leaves_total", "counter", "leaves", (), "Leaves of the audit log.", "store"),
    Metric("vedette_audit_unsigned_leaves", "gauge", "leaves", (), "Leaves that no checkpoint signs yet.", "store"),
    Metric("vedette_audit_checkpoint_timestamp_seconds", "gauge", "seconds", (),
           "When the newest checkpoint was signed, since 1970.", "store"),
    # --- the process
    Metric("vedette_start_timestamp_seconds", "gauge", "seconds", (),
           "When the process started, since 1970.", "service"),
    Metric("vedette_process_cpu_seconds_total", "counter", "seconds", (),
           "Processor time, user and system.", "operating system"),
    Metric("vedette_process_resident_memory_bytes", "gauge", "bytes", (), "Memory in use.", "operating system"),
    Metric("vedette_build_info", "gauge", "1", ("version", "python", "sqlite"), "What runs.", "installation"),
    Metric("vedette_counts_total", "counter", "as the name says", ("stream", "name"),
           "What else an operator or a source counts.", "store: every other counter"),
    Metric("vedette_metrics_left_out", "gauge", "series", ("metric",),
           f"Series beyond the {MOST_SERIES} that a metric shows.", "this list"),
)  # fmt: skip


# --- what the service knows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectorState:
    """A detector that is made of rules: how many run and how many were refused."""

    id: str
    rules: int
    refused: int


@dataclass(frozen=True)
class StreamState:
    """One stream: how it is, what its source says about what is unread (None: it cannot tell), and what it holds."""

    id: str
    source: str
    status: Literal["ok", "degraded", "failed", "paused"]
    reason: str = ""
    lag_events: int | None = None
    lag_seconds: float | None = None
    state_keys: Mapping[str, int] = field(default_factory=dict)
    detectors: Sequence[DetectorState] = ()


@dataclass(frozen=True)
class SinkState:
    """One sink: whether it answered when it was last asked, and what it counts of its own."""

    id: str
    up: bool
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelState:
    """One model on one stream; a refused one may have no end that is known."""

    id: str
    stream: str
    state: Literal["active", "shadow", "refused"]
    budget: float
    expires: Timestamp | None = None


@dataclass(frozen=True)
class Snapshot:
    """What the service knows at the moment *at*; *started* is when the process did."""

    at: Timestamp
    started: Timestamp
    revision: int
    dead_letter_bytes: int
    streams: Sequence[StreamState] = ()
    sinks: Sequence[SinkState] = ()
    models: Sequence[ModelState] = ()


# --- from there to samples --------------------------------------------------------------------------------------------

Value: TypeAlias = float | Distribution
Sample: TypeAlias = tuple[str, Labels, Value]

_OF_STREAMS: Mapping[str, str] = {
    "received": "vedette_events_received_total",
    "scored": "vedette_events_scored_total",
    "quarantined": "vedette_events_quarantined",
    "future": "vedette_events_future_total",
    "untimed": "vedette_events_untimed_total",
    "gone_before_read": "vedette_source_lost_total",
    "gaps": "vedette_source_gaps_total",
    "history_breaks": "vedette_source_history_breaks_total",
    "searches": "vedette_source_searches_total",
    "failed_searches": "vedette_source_failed_searches_total",
    "suppressed": "vedette_alerts_suppressed_total",
    "vedette.alerting.held_back": "vedette_alerts_held_back_total",
    "dead_letters_cut": "vedette_dead_letters_cut_total",
}
_OF_SINKS: Mapping[str, str] = {
    name: f"vedette_sink_{name}_total" for name in ("delivered", "refused", "retried", "spilled")
}
"""A sink may have the name of a stream, and then they share a scope: the name of the counter tells them apart."""
_SUMS = frozenset({"alerts", "vedette.alerting.excepted"})
"""Counters of which the parts come out, by level and by rule."""
_PATTERNS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"vedette\.alerting\.excepted\.(.+)"), "vedette_alerts_excepted_total"),
    (re.compile(rf"alerts\.({'|'.join(LEVELS)})"), "vedette_alerts_total"),
    (re.compile(r"filtered\.(.+)"), "vedette_events_filtered_total"),
    (re.compile(r"wrong_type:(.+)"), "vedette_values_wrong_type_total"),
    (re.compile(r"(.+)\.model\.(?:\1)\.judged"), "vedette_model_judged_total"),
    (re.compile(r"(.+)\.model\.(?:\1)\.found"), "vedette_model_found_total"),
    (re.compile(r"(.+)\.(late|future|untimed|ungrouped|not_a_number)"), "vedette_detector_left_out_total"),
    (re.compile(r"(.+)\.capped"), "vedette_detector_capped_total"),
    (re.compile(r"(.+)\.combinations_cut"), "vedette_detector_combinations_cut_total"),
    (re.compile(r"(.*)", re.DOTALL), "vedette_counts_total"),
)
"""What a counter's name beside the scope says, the first that fits; the parts in brackets are labels."""


def render(snapshot: Snapshot, numbers: Numbers, meters: Meters) -> bytes:
    """Return all metrics in the text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures([*_of_service(snapshot), *_of_store(snapshot, numbers), *_of_process(snapshot, meters)]))
    return generate_latest(registry)


class _Figures(Collector):
    """Samples as families, one for each of METRICS, also where there is no sample."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._series: dict[str, dict[Labels, Value]] = defaultdict(dict)
        for name, labels, value in samples:
            self._series[name][labels] = value

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        left_out: dict[Labels, Value] = {}
        for metric in METRICS:
            series = self._series[metric.name] if metric is not METRICS[-1] else left_out
            shown = sorted(series)[:MOST_SERIES]  # by name, so that the same ones are shown each time
            if len(shown) < len(series):
                left_out[(metric.name,)] = len(series) - len(shown)
            yield _family(metric, {labels: series[labels] for labels in shown})


def _family(
    metric: Metric, series: Mapping[Labels, Value]
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    name, about = metric.name, metric.documentation
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, about, labels=metric.labels)
        for labels, value in series.items():
            assert isinstance(value, Distribution)
            bounds = [*(f"{bound:g}" for bound in BOUNDS[name]), "+Inf"]
            histogram.add_metric(labels, list(zip(bounds, accumulate(value.counts), strict=True)), value.total)
        return histogram
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(name, about, labels=metric.labels)
    for labels, value in series.items():
        assert not isinstance(value, Distribution)
        family.add_metric(labels, value)
    return family


def _of_service(snapshot: Snapshot) -> Iterator[Sample]:
    yield "vedette_configuration_revision", (), snapshot.revision
    yield "vedette_dead_letter_bytes", (), snapshot.dead_letter_bytes
    for stream in snapshot.streams:
        one = (stream.id,)
        yield "vedette_stream_up", one, stream.status not in ("failed", "paused")
        yield "vedette_stream_degraded", one, stream.status in ("degraded", "failed")
        yield "vedette_stream_paused", one, stream.status == "paused"
        if stream.lag_events is not None:
            yield "vedette_source_lag_events", (stream.id, stream.source), stream.lag_events
        if stream.lag_seconds is not None:
            yield "vedette_source_lag_seconds", (stream.id, stream.source), stream.lag_seconds
        for operator, keys in stream.state_keys.items():
            yield "vedette_state_keys", (stream.id, operator), keys
        for detector in stream.detectors:
            yield "vedette_rules_loaded", (stream.id, detector.id), detector.rules
            yield "vedette_rules_refused", (stream.id, detector.id), detector.refused
    for sink in snapshot.sinks:
        yield "vedette_sink_up", (sink.id,), sink.up
        for name, number in sink.counts.items():
            yield "vedette_sink_counts_total", (sink.id, name), number
    for model in snapshot.models:
        which = (model.stream, model.id)
        yield "vedette_model_admitted", (*which, model.state), model.state != "refused"
        yield "vedette_model_budget_alerts_per_day", which, model.budget
        if model.expires is not None:
            yield "vedette_model_expiry_timestamp_seconds", which, model.expires / SECOND


def _of_store(snapshot: Snapshot, numbers: Numbers) -> Iterator[Sample]:
    yield from _zeros(snapshot)
    for scope, counters in numbers.counters.items():
        yield from _counted(scope, counters)
    for id, (as_of, watermark) in numbers.streams.items():
        yield "vedette_stream_committed_timestamp_seconds", (id,), as_of / SECOND
        if watermark != NO_TIME:
            yield "vedette_stream_watermark_timestamp_seconds", (id,), watermark / SECOND
    for id, size in numbers.state_bytes.items():
        yield "vedette_state_bytes", (id,), size
    for id, time in numbers.canaries.items():
        yield "vedette_canary_timestamp_seconds", (id,), time / SECOND
    for sink, waiting in numbers.waiting.items():
        yield "vedette_outbox_waiting", (sink, "alert"), waiting.alerts
        yield "vedette_outbox_waiting", (sink, "audit"), waiting.audit
        age = 0.0 if waiting.oldest is None else max(0, snapshot.at - waiting.oldest) / SECOND
        yield "vedette_outbox_oldest_age_seconds", (sink,), age
    yield "vedette_audit_leaves_total", (), numbers.leaves
    yield "vedette_audit_unsigned_leaves", (), numbers.leaves - numbers.signed
    if numbers.checkpoint is not None:
        yield "vedette_audit_checkpoint_timestamp_seconds", (), numbers.checkpoint / SECOND
    yield "vedette_store_database_bytes", (), numbers.database_bytes
    yield "vedette_store_wal_bytes", (), numbers.wal_bytes
    yield "vedette_store_free_bytes", (), numbers.free_bytes


def _zeros(snapshot: Snapshot) -> Iterator[Sample]:
    """Yield 0 for what the store has not counted yet: Prometheus sees a rise only from a number to a number."""
    for stream in snapshot.streams:
        for metric in _OF_STREAMS.values():
            yield metric, (stream.id,), 0
        for level in LEVELS:
            yield "vedette_alerts_total", (stream.id, level), 0
    for sink in snapshot.sinks:
        for metric in _OF_SINKS.values():
            yield metric, (sink.id,), 0
    for model in snapshot.models:
        yield "vedette_model_judged_total", (model.stream, model.id), 0
        yield "vedette_model_found_total", (model.stream, model.id), 0


def _counted(scope: str, counters: Mapping[str, int]) -> Iterator[Sample]:
    for name, number in counters.items():
        if name == "alerts_pruned":
            yield "vedette_alerts_pruned_total", (), number
        elif metric := _OF_STREAMS.get(name) or _OF_SINKS.get(name):
            yield metric, (scope,), number
        elif name not in _SUMS:
            found = ((metric, fit.groups()) for pattern, metric in _PATTERNS if (fit := pattern.fullmatch(name)))
            metric, labels = next(found)
            yield metric, (scope, *labels), number
    if unknown := counters.get("alerts", 0) - sum(counters.get(f"alerts.{level}", 0) for level in LEVELS):
        yield "vedette_alerts_total", (scope, "unknown"), unknown


def _of_process(snapshot: Snapshot, meters: Meters) -> Iterator[Sample]:
    for name in BOUNDS:
        for labels, distribution in meters.distributions(name).items():
            yield name, labels, distribution
    for outcome, number in meters.configurations().items():
        yield "vedette_configurations_total", (outcome,), number
    used = os.times()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    yield "vedette_process_cpu_seconds_total", (), used.user + used.system
    yield "vedette_process_resident_memory_bytes", (), pages * os.sysconf("SC_PAGE_SIZE")
    yield "vedette_start_timestamp_seconds", (), snapshot.started / SECOND
    yield "vedette_build_info", (version("vedette"), platform.python_version(), apsw.sqlite_lib_version()), 1
