"""Metrics: exactly the names of the list, every number of the store somewhere, bounded, cheap."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.model import DELIVERED, SECOND, Alert, DeadLetter, Outcome, Reference
from agent.state import Changes, StoredDelta, pack
from agent.store import Books, Commit, Reader, Store, numbers
from agent.telemetry import meters as measured
from agent.telemetry.meters import Meters
from agent.telemetry.metrics import (
    METRICS,
    MOST_SERIES,
    DetectorState,
    ModelState,
    SinkState,
    Snapshot,
    StreamState,
    render,
)

NOW = 1_700_000_000 * SECOND
NOTHING = numbers.Numbers({}, {}, {}, {}, {}, 0, 0, None, 0, 0, 0)
SNAPSHOT = Snapshot(
    at=NOW,
    started=NOW - 60 * SECOND,
    revision=7,
    dead_letter_bytes=12,
    streams=(
        StreamState("main", "siem", "ok", lag_events=5, lag_seconds=1.5, state_keys={"first": 3},
                    detectors=(DetectorState("rules", 2400, 3),)),
        StreamState("other", "files", "degraded", "it waits"),
        StreamState("still", "files", "paused", "ada, today"),
        StreamState("gone", "files", "failed", "no such rule"),
    ),
    sinks=(SinkState("siem", True, counts={"requests": 9}), SinkState("file", False, "disk full")),
    models=(
        ModelState("auth", "main", "active", 5, NOW + SECOND),
        ModelState("dns", "main", "refused", 2.5),
    ),
)  # fmt: skip

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    """Return what a Prometheus server reads: the value by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def rendered(
    snapshot: Snapshot = SNAPSHOT, figures: numbers.Numbers = NOTHING, meters: Meters | None = None
) -> Samples:
    return samples(render(snapshot, figures, meters or Meters()))


def counted(**counters: dict[str, int]) -> numbers.Numbers:
    return numbers.Numbers(counters, {}, {}, {}, {}, 0, 0, None, 0, 0, 0)


def filled() -> Meters:
    meters = Meters()
    meters.stage("main", "fetch", 0.02)
    meters.batch("main", 800)
    meters.delivered("siem", 0.3)
    meters.configuration("refused")
    return meters


def test_exactly_the_names_of_the_list_come_out_each_with_help_type_and_unit() -> None:
    """HELP and TYPE stand for every metric, also for one without a sample; nothing else is there."""
    text = render(SNAPSHOT, NOTHING, filled()).decode()
    helps = {line.split()[2]: line.split(" ", 3)[3] for line in text.splitlines() if line.startswith("# HELP ")}
    kinds = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert helps == {one.name: one.documentation for one in METRICS}
    assert kinds == {one.name: one.kind for one in METRICS}
    assert all(one.documentation.endswith(f". Unit: {one.unit}.") for one in METRICS)


def test_names_and_labels_follow_the_conventions_of_prometheus() -> None:
    """Prefix, counters end in _total, units in the name, no label that a histogram needs for itself."""
    for one in METRICS:
        assert one.name.startswith("vedette_")
        assert one.name.endswith("_total") == (one.kind == "counter")
        assert (one.unit == "seconds") <= ("_seconds" in one.name)
        assert (one.unit == "bytes") <= ("_bytes" in one.name)
        assert not {"le", "job", "instance"} & set(one.labels)
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_every_sample_has_the_labels_of_its_metric() -> None:
    labels = {one.name: set(one.labels) for one in METRICS}
    figures = counted(main={"received": 1, "filtered.noise": 1, "alerts": 3, "alerts.high": 1, "x.y": 1, "x.late": 2})
    for name, found in rendered(figures=figures, meters=filled()):
        base = name
        for suffix in ("_bucket", "_sum", "_count"):
            base = base if base in labels else name.removesuffix(suffix)
        assert {key for key, _ in found} - {"le"} == labels[base], name


def test_what_the_service_knows_is_said() -> None:
    found = rendered()
    flags = {
        status: [found[f"vedette_stream_{flag}", (("stream", name),)] for flag in ("up", "degraded", "paused")]
        for name, status in (("main", "ok"), ("other", "degraded"), ("still", "paused"), ("gone", "failed"))
    }
    assert flags == {"ok": [1, 0, 0], "degraded": [1, 1, 0], "paused": [0, 0, 1], "failed": [0, 1, 0]}
    assert found["vedette_source_lag_events", (("source", "siem"), ("stream", "main"))] == 5
    assert found["vedette_source_lag_seconds", (("source", "siem"), ("stream", "main"))] == 1.5
    assert ("vedette_source_lag_events", (("source", "files"), ("stream", "other"))) not in found
    assert found["vedette_state_keys", (("operator", "first"), ("stream", "main"))] == 3
    assert found["vedette_rules_refused", (("detector", "rules"), ("stream", "main"))] == 3
    assert [found["vedette_sink_up", (("sink", one),)] for one in ("siem", "file")] == [1, 0]
    assert found["vedette_sink_counts_total", (("name", "requests"), ("sink", "siem"))] == 9
    assert found["vedette_model_admitted", (("model", "auth"), ("state", "active"), ("stream", "main"))] == 1
    assert found["vedette_model_admitted", (("model", "dns"), ("state", "refused"), ("stream", "main"))] == 0
    auth = (("model", "auth"), ("stream", "main"))
    assert found["vedette_model_expiry_timestamp_seconds", auth] == NOW / SECOND + 1
    assert found["vedette_model_budget_alerts_per_day", auth] == 5
    assert found["vedette_configuration_revision", ()] == 7
    assert found["vedette_start_timestamp_seconds", ()] == NOW / SECOND - 60


@pytest.mark.parametrize(
    ("name", "metric", "labels"),
    [
        ("received", "vedette_events_received_total", {}),
        ("scored", "vedette_events_scored_total", {}),
        ("quarantined", "vedette_events_quarantined", {}),
        ("filtered.own-alerts", "vedette_events_filtered_total", {"filter": "own-alerts"}),
        ("wrong_type:source.ip", "vedette_values_wrong_type_total", {"field": "source.ip"}),
        ("future", "vedette_events_future_total", {}),
        ("untimed", "vedette_events_untimed_total", {}),
        ("logons.future", "vedette_detector_left_out_total", {"detector": "logons", "reason": "future"}),
        ("a.b.late", "vedette_detector_left_out_total", {"detector": "a.b", "reason": "late"}),
        ("rules.ungrouped", "vedette_detector_left_out_total", {"detector": "rules", "reason": "ungrouped"}),
        ("logons.capped", "vedette_detector_capped_total", {"detector": "logons"}),
        ("logons.combinations_cut", "vedette_detector_combinations_cut_total", {"detector": "logons"}),
        ("a.b.model.a.b.judged", "vedette_model_judged_total", {"model": "a.b"}),
        ("auth.model.auth.found", "vedette_model_found_total", {"model": "auth"}),
        ("auth.model.other.found", "vedette_counts_total", {"name": "auth.model.other.found"}),
        ("vedette.alerting.held_back", "vedette_alerts_held_back_total", {}),
        ("vedette.late.hours_forgotten", "vedette_counts_total", {"name": "vedette.late.hours_forgotten"}),
        ("alerts.high", "vedette_alerts_total", {"level": "high"}),
        ("vedette.alerting.excepted.a.late", "vedette_alerts_excepted_total", {"rule": "a.late"}),
        ("suppressed", "vedette_alerts_suppressed_total", {}),
        ("dead_letters_cut", "vedette_dead_letters_cut_total", {}),
        ("gone_before_read", "vedette_source_lost_total", {}),
        ("gaps", "vedette_source_gaps_total", {}),
        ("history_breaks", "vedette_source_history_breaks_total", {}),
        ("searches", "vedette_source_searches_total", {}),
        ("failed_searches", "vedette_source_failed_searches_total", {}),
        ("a new\none", "vedette_counts_total", {"name": "a new\none"}),
    ],
)
def test_every_counter_of_a_stream_comes_out(name: str, metric: str, labels: dict[str, str]) -> None:
    """Under its own metric where there is one, else by its name."""
    found = rendered(figures=counted(main={name: 41}))
    assert found[metric, tuple(sorted({"stream": "main", **labels}.items()))] == 41


def test_a_stream_and_a_sink_of_one_name_are_told_apart() -> None:
    found = rendered(figures=counted(main={"received": 3, "delivered": 2, "spilled": 1}))
    assert found["vedette_events_received_total", (("stream", "main"),)] == 3
    assert found["vedette_sink_delivered_total", (("sink", "main"),)] == 2
    assert found["vedette_sink_spilled_total", (("sink", "main"),)] == 1


def test_alerts_of_unknown_level_are_what_the_levels_lack() -> None:
    found = rendered(figures=counted(main={"alerts": 10, "alerts.high": 4, "alerts.low": 1}))
    by_level = {dict(key[1])["level"]: number for key, number in found.items() if key[0] == "vedette_alerts_total"
                and dict(key[1])["stream"] == "main"}  # fmt: skip
    assert by_level == {"informational": 0, "low": 1, "medium": 0, "high": 4, "critical": 0, "unknown": 5}


def test_what_is_not_counted_yet_is_zero() -> None:
    """A rise from nothing would not be seen."""
    found = rendered()
    assert found["vedette_source_lost_total", (("stream", "main"),)] == 0
    assert found["vedette_sink_spilled_total", (("sink", "file"),)] == 0
    assert found["vedette_configurations_total", (("outcome", "refused"),)] == 0


def test_a_metric_shows_so_many_series_and_says_how_many_it_leaves_out() -> None:
    """However many fields are of a wrong type; the same ones are shown each time."""
    wrong = {f"wrong_type:field{number:04}": 1 for number in range(MOST_SERIES + 20)}
    found = rendered(figures=counted(main=wrong))
    shown = sorted(key for key in found if key[0] == "vedette_values_wrong_type_total")
    assert len(shown) == MOST_SERIES
    assert found["vedette_metrics_left_out", (("metric", "vedette_values_wrong_type_total"),)] == 20
    again = rendered(figures=counted(main=dict(reversed(wrong.items()))))
    assert shown == sorted(key for key in again if key[0] == "vedette_values_wrong_type_total")


def test_histograms_are_cumulative_and_end_without_a_bound() -> None:
    meters = Meters()
    for seconds in (0.05, 0.06, 7200):
        meters.delivered("siem", seconds)
    found = rendered(meters=meters)
    name = "vedette_sink_delivery_seconds"
    buckets = [found[f"{name}_bucket", (("le", bound), ("sink", "siem"))] for bound in ("0.05", "0.1", "3600", "+Inf")]
    assert buckets == [1, 2, 2, 3]
    assert found[f"{name}_count", (("sink", "siem"),)] == 3
    assert found[f"{name}_sum", (("sink", "siem"),)] == pytest.approx(7200.11)


def test_meters_lose_nothing_between_threads() -> None:
    meters = Meters()

    def work() -> None:
        for _ in range(2000):
            meters.stage("main", "commit", 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = meters.distributions(measured.STAGE).values()
    assert sum(found.counts) == 8000
    assert found.total == pytest.approx(8)


# --- what the store holds ---------------------------------------------------------------------------------------------


def test_numbers_of_a_store_that_worked(tmp_path: Path) -> None:
    """Books, outbox by dataset, oldest alert, state, dead letters, canary and audit log are what was committed."""
    store = Store(tmp_path)
    store.audit_sinks = ["siem"]

    def alert(id: str, rule: str = "rule") -> Alert:
        return Alert(id, rule, "T", "high", NOW, {"event": {"id": id}})

    delta = StoredDelta("first", 1, pack({"k": b"[1]"}))
    letter = DeadLetter(Reference("src", "p", 1, "/a", "json"), "broken", b"raw", NOW)
    for number, made in enumerate(([alert("a")], [alert("b"), alert("c", "vedette.canary")])):
        changes = Changes(number + 1, (delta,) if not number else ())
        books = Books(4, 2, {"noise": 1}, 1)
        store.commit(Commit("main", {}, NOW + number, NOW - 5, books, changes, made, ["siem", "file"], dead=[letter]))
    store.checkpoint()
    with Reader(tmp_path) as reader:
        first = store.waiting(reader, "file", 1, NOW)
        store.settle("file", [(one, DELIVERED) for one in first], NOW)
        refused = store.waiting(reader, "file", 1, NOW)
        store.settle("file", [(one, Outcome("rejected", "no")) for one in refused], NOW)
        leaves = len(list(reader.leaves()))
        copies = [one for one in store.waiting(reader, "siem", 100, NOW) if one.dataset == "audit"]
        store.settle("siem", [(copies[0], Outcome("rejected", "no"))], NOW)
    found = numbers.read(tmp_path, ["siem", "file", "idle"])
    store.close()
    assert found.counters["main"]["received"] == 8
    assert found.streams == {"main": (NOW + 1, NOW - 5)}
    assert found.waiting["file"] == numbers.Waiting(1, 0, NOW + 1)
    assert (found.waiting["siem"].alerts, found.waiting["siem"].oldest) == (3, NOW)
    assert found.waiting["siem"].audit == len(copies) - 1
    assert found.waiting["idle"] == numbers.Waiting(0, 0, None)
    assert found.state_bytes == {"main": len(delta.block)}
    assert found.canaries == {"main": NOW + 1}
    assert (found.leaves, found.signed) == (leaves, leaves)
    assert found.checkpoint is not None
    assert found.database_bytes > 0
    assert found.wal_bytes > 0
    assert found.free_bytes > 0
    text = rendered(figures=found)
    assert text["vedette_outbox_waiting", (("dataset", "alert"), ("sink", "siem"))] == 3
    assert text["vedette_outbox_waiting", (("dataset", "audit"), ("sink", "file"))] == 0
    assert text["vedette_outbox_oldest_age_seconds", (("sink", "idle"),)] == 0
    assert text["vedette_audit_unsigned_leaves", ()] == 0
    assert text["vedette_canary_timestamp_seconds", (("stream", "main"),)] == pytest.approx(NOW / SECOND)


def test_the_age_of_the_oldest_alert_is_held_against_now() -> None:
    waiting = {"siem": numbers.Waiting(1, 0, NOW - 90 * SECOND)}
    figures = numbers.Numbers({}, {}, waiting, {}, {}, 5, 3, NOW, 0, 0, 0)
    found = rendered(figures=figures)
    assert found["vedette_outbox_oldest_age_seconds", (("sink", "siem"),)] == 90
    assert found["vedette_audit_unsigned_leaves", ()] == 2


def test_no_figure_is_made_by_reading_all_alerts(tmp_path: Path) -> None:
    """SQLite answers every question from an index, or from a table that does not grow with what was found."""
    Store(tmp_path).close()
    with Reader(tmp_path) as reader:
        for sql, values in ((numbers._ALERTS, ("s",)), (numbers._AUDIT, ("s",)), (numbers._STORED, (1,)),
                            (numbers._NEWEST, ("r", 5))):  # fmt: skip
            plan = [row[3] for row in reader.rows(f"EXPLAIN QUERY PLAN {sql}", *values)]
            scanned = [step for step in plan if step.startswith("SCAN") and "subquery" not in step]
            assert not scanned, (sql, plan)
            assert "USE TEMP B-TREE FOR ORDER BY" not in plan, (sql, plan)
