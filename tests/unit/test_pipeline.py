"""The pipeline: books, filters, the watermark, and what makes an alert's id."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import orjson

from agent.alerting import Judge, Suppression, alert_id
from agent.alerting.judge import OPERATOR
from agent.model import (
    DOCUMENT,
    NO_TIME,
    SECOND,
    UNPARSED,
    Batch,
    Chunk,
    Description,
    Explanation,
    Factor,
    Finding,
    Kind,
    Notice,
    Records,
    Reference,
    Timestamp,
)
from agent.pipeline import WATERMARKS, Filter, Pipeline
from agent.ports import StateView
from agent.state import State, Transaction
from rules.detector import build

NOW = 1_767_400_000 * SECOND
EVERY = Description("every", "Every event", "rule", "medium", author="Vedette", techniques=("T1003.001",))


class Every:
    """A detector that finds each row, and says how far it was told the watermark is."""

    id = "every"
    order: Literal["set", "sequence"] = "set"

    def __init__(self) -> None:
        self.watermarks: list[Timestamp] = []

    def fields(self, kind: Kind) -> frozenset[str]:
        return frozenset({"message", "event.original"})

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        why = Explanation("it is there", (Factor("message", "x", "y"),))
        return [
            Finding(EVERY, int(events.time[row]), (events.reference(row),), why, row=row)
            for kind, rows in events.rows_by_kind()
            if kind.mapping != UNPARSED
            for row in map(int, rows)
        ]

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        self.watermarks.append(watermark)
        return []

    def plan(self) -> Mapping[str, Any]:
        return {}


def event(second: int, **fields: Any) -> bytes:
    stamp = f"2026-01-02T03:{second // 60:02d}:{second % 60:02d}Z"
    return orjson.dumps({"@timestamp": stamp, "ecs": {"version": "8.0.0"}, **fields})


def records(*raws: bytes, partition: str = "p", unread: frozenset[str] = frozenset()) -> Records:
    return Records("s", (Chunk(partition, "/log", "json", range(len(raws)), raws),), {}, NOW, unread)


def first_second(second: int = 0) -> Timestamp:
    return 1_767_322_800 * SECOND + second * SECOND


def judged(
    pipeline: Pipeline, given: Records, transaction: Transaction, cap: int | None = None, **more: Any
) -> list[Any]:
    judge = Judge(pipeline.normaliser, tenant="t", stream="s", cap=cap, **more)
    found = pipeline.evaluate(given, transaction)
    return judge.judge(
        found.findings, found.dead, found.batch, transaction.view(OPERATOR), lambda _: {}, found.watermark
    )


def test_the_books_balance_with_broken_and_filtered_records() -> None:
    """Each record is scored, filtered by name or quarantined, and never two of these."""
    pipeline = Pipeline([Every()], [Filter("chatter", {"message": frozenset({"noise"})})])
    raws = (event(1, message="a"), b"{broken", event(2, message="noise"), event(3, observer={"product": "vedette"}))
    found = pipeline.evaluate(records(*raws), State().transaction())
    assert (found.scored, dict(found.filtered), len(found.dead)) == (1, {"chatter": 1, "own-alerts": 1}, 1)


def test_a_pipeline_that_nobody_has_any_more_is_gone_at_once() -> None:
    """Thousands of rules are millions of objects: no circle of them may wait for the collector."""
    gc.collect()
    gc.disable()
    try:
        pipeline = Pipeline([build("rules", {"path": "builtin"}, None)])
        pipeline.projection()
        judged(pipeline, records(event(1, EventID=4688, Channel="Security")), State().transaction())
        engine = pipeline.detectors[0]._engine  # type: ignore[attr-defined]
        assert engine.plans
        held = [weakref.ref(part) for part in (pipeline, pipeline.normaliser, pipeline.detectors[0], engine)]
        del pipeline, engine
        assert [ref() for ref in held] == [None] * 4
    finally:
        gc.enable()


def test_our_own_alerts_are_not_events() -> None:
    """A document that Vedette wrote raises nothing, wherever it lies."""
    pipeline = Pipeline([Every()])
    found = pipeline.evaluate(records(event(1, observer={"product": "vedette"}, message="x")), State().transaction())
    assert found.findings == ()


def test_the_watermark_is_held_back_by_unread_partitions() -> None:
    """It is the least of the partitions that hold more, the fetch's time when all are read up, and never falls."""
    every = Every()
    pipeline, transaction = Pipeline([every]), State().transaction()
    pipeline.evaluate(records(event(5), unread=frozenset({"p", "q"})), transaction)
    pipeline.evaluate(records(event(7), unread=frozenset({"p"})), transaction)
    pipeline.evaluate(records(event(9)), transaction)
    pipeline.evaluate(records(event(10), unread=frozenset({"p"})), transaction)
    assert every.watermarks == [NO_TIME, first_second(7), NOW, NOW]


def test_an_event_dated_9999_moves_no_watermark() -> None:
    """One line from the far future must not blind the windows."""
    every = Every()
    raws = (event(5), orjson.dumps({"@timestamp": "9999-12-31T23:59:59Z", "ecs": {"version": "8.0.0"}}))
    found = Pipeline([every]).evaluate(records(*raws, unread=frozenset({"p"})), State().transaction())
    assert every.watermarks == [first_second(5)]
    assert list(found.batch.future) == [False, True]


def test_marks_are_kept_between_fetches() -> None:
    """A row's `high` counts earlier fetches of its partition."""
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    pipeline.evaluate(records(event(50)), transaction)
    found = pipeline.evaluate(records(event(20), event(60), event(30)), transaction)
    assert list(found.batch.high) == [first_second(50), first_second(50), first_second(60)]
    assert transaction.view(WATERMARKS).get("p") == first_second(60)


def test_an_alert_id_says_what_was_found_and_nothing_else() -> None:
    """Not the version, not the time of finding, not the order of the evidence."""
    one, two = Reference("s", "p", 1), Reference("s", "p", 2)
    why = Explanation("x")
    base = alert_id("t", Finding(EVERY, 1, (one, two), why))
    newer = Description("every", "New title", "rule", "high", digest="v2")
    assert alert_id("t", Finding(newer, 9, (two, one), why, score=0.5)) == base
    assert alert_id("u", Finding(EVERY, 1, (one, two), why)) != base
    assert alert_id("t", Finding(EVERY, 1, (one,), why)) != base
    window = Finding(EVERY, 1, (one,), why, window=(0, 60))
    assert alert_id("t", window) == alert_id("t", Finding(EVERY, 5, (two,), why, window=(0, 60)))
    assert alert_id("t", window) != alert_id("t", Finding(EVERY, 1, (one,), why, window=(0, 60), key="k"))


def test_the_alert_document_carries_what_a_siem_reads() -> None:
    """Kind, severity, risk, rule with author, ATT&CK names, evidence, trust, original."""
    pipeline = Pipeline([Every()])
    raw = event(1, message="hello", user={"name": "kim"}, event={"category": ["process"]})
    (alert,) = judged(pipeline, records(raw), State().transaction())
    document = alert.document
    assert document["event"]["kind"] == "alert"
    assert document["event"]["category"] == ["intrusion_detection", "process"]
    assert document["event"]["type"] == ["info"]
    assert (document["event"]["severity"], document["event"]["risk_score"]) == (47, 47.0)
    assert document["event"]["start"] == "2026-01-02T03:00:01.000Z"
    assert document["message"] == "Every event"
    assert document["rule"]["author"] == ["Vedette"]
    assert document["threat"]["tactic"]["id"] == ["TA0006"]
    assert document["threat"]["technique"]["id"] == ["T1003"]
    assert document["threat"]["technique"]["subtechnique"]["name"] == ["LSASS Memory"]
    assert document["user"]["name"] == "kim"
    assert document["event"]["original"].encode() == raw
    assert document["log"] == {"file": {"path": "/log"}, "offset": 0}
    assert document["vedette"]["trust"] == "local"
    assert document["vedette"]["evidence"]["records"][0]["id"] == Reference("s", "p", 0).identity


def test_the_cap_holds_back_delivery_and_says_so_once() -> None:
    """Past the cap alerts are stored and not sent, and one storm alert stands for them."""
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    alerts = judged(pipeline, records(*(event(second) for second in range(6))), transaction, cap=2)
    assert [alert.deliver for alert in alerts if alert.rule_id == "every"] == [True, True, False, False, False, False]
    assert [alert.id for alert in alerts if alert.rule_id == "vedette.storm"].__len__() == 1
    assert transaction.view(OPERATOR).counts["held_back"] == 4


def test_the_cap_counts_alerts_and_not_what_they_are_made_of() -> None:
    """Many findings of one alert raise no storm, and what was let out is let out when it comes again."""
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    coarse = {"every": Suppression(("user.name",), 3600)}
    names = ("kim", "kim", "kim", "lee", "kim", "ann", "kim", "lee", "ann")
    raws = [event(second, user={"name": name}) for second, name in enumerate(names)]
    alerts = judged(pipeline, records(*raws), transaction, cap=2, suppressions=coarse)
    delivered = {alert.id for alert in alerts if alert.rule_id == "every" and alert.deliver}
    held = {alert.id for alert in alerts if alert.rule_id == "every" and not alert.deliver}
    assert (len(delivered), len(held), delivered & held) == (2, 1, set())
    assert len({alert.id for alert in alerts if alert.rule_id == "vedette.storm"}) == 1
    again = judged(pipeline, records(*raws), transaction, cap=2, suppressions=coarse)
    assert {alert.id for alert in again if alert.rule_id == "every" and alert.deliver} == delivered


def test_what_the_cap_has_counted_is_bounded_and_forgotten_a_day_later() -> None:
    """Its state holds one alert more than the cap an hour, and nothing of hours that are long closed."""
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    judged(pipeline, records(*(event(second) for second in range(50)), unread=frozenset({"p"})), transaction, cap=5)
    assert len([key for key, _ in transaction.view(OPERATOR).items() if key]) == 7
    later = replace(records(), as_of=NOW + 48 * 3600 * SECOND)
    judged(pipeline, later, transaction, cap=5)  # all is read: the watermark is the time of the fetch
    assert [key for key, _ in transaction.view(OPERATOR).items()] == [""]


def test_suppression_is_a_coarser_key() -> None:
    """Alerts of one rule with the same values in one period share one id."""
    pipeline = Pipeline([Every()])
    raws = [event(second, user={"name": name}) for second, name in ((1, "kim"), (2, "kim"), (3, "lee"))]
    coarse = {"every": Suppression(("user.name",), 3600)}
    alerts = judged(pipeline, records(*raws), State().transaction(), suppressions=coarse)
    assert len({alert.id for alert in alerts}) == 2


def test_one_quality_alert_a_partition() -> None:
    """Breaking the parser is seen: one alert for each log, however many lines are broken."""
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    alerts = judged(pipeline, records(b"{", b"[", event(1)), transaction)
    assert [alert.rule_id for alert in alerts] == ["every", "vedette.quarantine"]
    again = judged(pipeline, records(b"{", partition="p"), transaction)
    assert alerts[1].id == again[0].id


def document_records(*raws: dict[str, Any], **more: Any) -> Records:
    chunk = Chunk("uuid/0", "logs-1", DOCUMENT, [f"id{number}" for number in range(len(raws))], raws, lineage="uuid")
    return Records("siem", (chunk,), {}, NOW, projected=True, **more)


def judged_with(given: Records, fetched: Mapping[Reference, Any], **more: Any) -> list[Any]:
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    judge = Judge(pipeline.normaliser, tenant="t", stream="s", cap=None, **more)
    found = pipeline.evaluate(given, transaction)
    return judge.judge(
        found.findings, found.dead, found.batch, transaction.view(OPERATOR), lambda _: fetched, found.watermark
    )


def test_of_projected_records_the_alert_shows_the_whole_one_or_says_that_it_is_partial() -> None:
    """The alert's id comes from what was evaluated, whether or not the whole record can still be had."""
    raw = {"@timestamp": "2026-01-01T00:00:00Z", "ecs": {"version": "8.0.0"}, "user": {"name": "ann"}}
    given = document_records(raw)
    by_user = {"every": Suppression(("user.name",), 60)}
    whole = {given.reference(0): {**raw, "user": {"name": "changed since"}, "event": {"original": "the line"}}}
    [full], [partial] = judged_with(given, whole, suppressions=by_user), judged_with(given, {}, suppressions=by_user)
    assert full.id == partial.id
    assert full.document["event"]["original"] == "the line"
    assert "log" not in full.document
    assert full.document["vedette"]["evidence"]["state"] == "complete"
    assert partial.document["user"]["name"] == "ann"
    assert "original" not in partial.document["event"]
    assert partial.document["vedette"]["evidence"]["state"] == "partial"


def test_what_a_rule_calls_its_group_is_no_field_of_an_alert_whose_evidence_is_gone() -> None:
    """A baseline's entity is of ECS fields; a correlation's has the rule's own names."""
    given = document_records({"@timestamp": "2026-01-01T00:00:00Z"})
    entity = (("TargetUserName", "ann"),)
    gone = Reference("siem", "uuid/0", "gone", "logs-1", DOCUMENT, "uuid")
    pipeline = Pipeline([Every()])
    judge = Judge(pipeline.normaliser, tenant="t", stream="s", cap=None)
    transaction = State().transaction()
    found = pipeline.evaluate(given, transaction)
    documents = [
        judge.judge(
            [Finding(replace(EVERY, kind=kind), NOW, (gone,), Explanation("x"), entity)],
            (), found.batch, transaction.view(OPERATOR), lambda _: {}, found.watermark,
        )[0].document
        for kind in ("rule", "baseline")
    ]  # fmt: skip
    assert ["TargetUserName" in one for one in documents] == [False, True]
    assert [one["vedette"]["entity"] for one in documents] == [dict(entity)] * 2


def test_a_document_keeps_its_identity_in_a_copy_of_its_index() -> None:
    """Identity is source, lineage and document id; the shard that holds it does not matter."""
    here = Reference("siem", "uuid/0", "id", "logs-1", DOCUMENT, "uuid")
    assert here._replace(partition="other/3", path="shrink-logs-1").identity == here.identity
    assert here._replace(lineage="other").identity != here.identity


def test_a_loss_at_the_source_is_an_alert() -> None:
    """Events that were deleted unread cannot be found any more, so their loss must be."""
    notice = Notice("index-lost", "logs-1", "index logs-1 was deleted with 5 operations unread", lost=True)
    [alert] = judged_with(document_records(notices=(notice,)), {})
    assert (alert.rule_id, alert.level) == ("vedette.loss", "high")
    assert "5 operations" in alert.document["event"]["reason"]
