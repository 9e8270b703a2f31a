"""What the SIEM sink makes of each answer a cluster may give."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal

import pytest

from agent.errors import ConfigError
from agent.model import DELIVERED, Document, Outcome
from connectors.siem import sink as room
from connectors.siem.sink import SiemSink, build
from tests.fake_siem import FakeSiem, Fault, Reply, Request, Step
from tests.siem import audit_copy, document

Flavour = Literal["elasticsearch", "opensearch"]


def named(value: Any) -> str:
    """Return the same name for a parameter in every process."""
    return getattr(value, "__name__", None) or str(value)


PARSING = {"type": "document_parsing_exception", "reason": "[1:45] object mapping for [host] found a concrete value"}


@pytest.fixture(params=["elasticsearch", "opensearch"])
def siem(request: pytest.FixtureRequest) -> Iterator[FakeSiem]:
    with FakeSiem(request.param) as running:
        yield running


@contextmanager
def opened(siem: FakeSiem, **options: Any) -> Iterator[SiemSink]:
    with closing(build(siem.flavour)("out", siem.access() | options)) as sink:
        sink.open()
        yield sink


def item(siem: FakeSiem, name: str, status: int, **answer: Any) -> dict[str, Any]:
    return {"create": {"_index": siem.backing[-1], "_id": name, "status": status, **answer}}


def items(*given: Any) -> Reply:
    return Reply(body={"took": 1, "errors": True, "items": list(given)})


def refused(siem: FakeSiem, name: str, **answer: Any) -> Reply:
    return items(item(siem, name, 400, **{"error": PARSING} | answer))


def states(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.state for outcome in outcomes]


# --- the way of one document ------------------------------------------------------------------------------------------


def test_a_document_is_created_in_our_stream(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        assert sink.write([document("a", host={"name": "h"})]) == [DELIVERED]
    (body,) = siem.documents.values()
    assert body["data_stream"] == {"type": "logs", "dataset": "vedette.alert", "namespace": "default"}
    assert body["host"] == {"name": "h"}
    (sent,) = siem.sent("_bulk")
    assert sent.path == "/logs-vedette.alert-default/_bulk"
    assert "x-ndjson" in sent.headers["content-type"]
    assert sink.counts["created"] == 1
    assert sink.counts["bytes"] == len(sent.body)


@pytest.mark.parametrize(
    ("flavour", "version", "asked"),
    [("elasticsearch", "8.12.2", False), ("elasticsearch", "8.13.0", True), ("elasticsearch", "9.4.3", True),
     ("opensearch", "2.19.4", False), ("opensearch", "3.2.0", False)],
)  # fmt: skip
def test_a_data_stream_is_required_where_the_server_knows_how(flavour: Flavour, version: str, asked: bool) -> None:
    with FakeSiem(flavour, version) as siem, opened(siem) as sink:
        assert sink.write([document("a")]) == [DELIVERED]
        assert siem.sent("_bulk")[0].query == ({"require_data_stream": "true"} if asked else {})


def test_the_stream_of_the_event_gives_way_to_ours(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        sink.write([document("a", data_stream={"dataset": "windows.sysmon"})])
    (body,) = siem.documents.values()
    assert body["data_stream"]["dataset"] == "vedette.alert"


def test_all_other_bytes_stay_as_they_are(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        sink.write([Document("a", b' {\n "n" : 123456789012345678901234567890,\n "z" : 1.0e2\n}\n')])
    assert b'"n" : 123456789012345678901234567890,  "z" : 1.0e2 }' in siem.sent("_bulk")[0].body


def test_an_empty_object_is_a_document(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        assert sink.write([Document("a", b"{}")]) == [DELIVERED]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"\xff{}", b'{"a":"\\ud800"}', b'{"a":NaN}', b"[" * 2000])
def test_what_is_no_object_is_rejected_alone(body: bytes) -> None:
    with FakeSiem() as siem, opened(siem) as sink:
        assert states(sink.write([document("a"), Document("x", body), document("b")])) == [
            "delivered",
            "rejected",
            "delivered",
        ]
        assert sink.counts["rejected_unusable"] == 1


@pytest.mark.parametrize("id", ["", "x" * 513, "\ud800"])
def test_an_id_that_no_server_takes_is_rejected_alone(id: str) -> None:
    with FakeSiem() as siem, opened(siem) as sink:
        assert states(sink.write([Document(id, b"{}"), document("b")])) == ["rejected", "delivered"]


def test_an_id_twice_in_one_call_leaves_one_document(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        assert sink.write([document("a"), document("b"), document("a")]) == [DELIVERED] * 3
    assert [line["create"]["_id"] for line in siem.sent("_bulk")[0].lines[::2]] == ["a", "b"]


def test_a_call_without_usable_documents_asks_nothing() -> None:
    with FakeSiem() as siem, opened(siem) as sink:
        asked = len(siem.requests)
        assert sink.write([]) == []
        assert states(sink.write([Document("a", b"")])) == ["rejected"]
        assert len(siem.requests) == asked


# --- what an answer means ---------------------------------------------------------------------------------------------


def test_a_duplicate_is_delivered(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        sink.write([document("a")])
        assert sink.write([document("a")]) == [DELIVERED]
        assert sink.counts["duplicate"] == 1


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_one_item_may_wait_while_its_neighbours_are_stored(siem: FakeSiem, status: int) -> None:
    siem.rollover()
    error = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
    with opened(siem) as sink:
        created = {"result": "created"}
        siem.on("_bulk", items(item(siem, "a", 201, **created), item(siem, "b", status, error=error),
                               item(siem, "c", 201, **created)))  # fmt: skip
        outcomes = sink.write([document("a"), document("b"), document("c")])
    assert states(outcomes) == ["delivered", "retryable", "delivered"]
    assert "queue is full" in outcomes[1].reason


ELSEWHERE = [
    {"status": 201, "result": "created", "_index": "logs-vedette.alert-default"},
    {"status": 201, "result": "created", "_index": "somewhere"},
    {"status": 201, "result": "created", "_index": ".ds-logs-vedette.alert-other-000001"},
    {"status": 201, "result": "created", "_index": ".fs-logs-vedette.alert-default-2026.01.01-000001"},
    {"status": 201, "result": "created", "failure_store": "used"},
    {"status": 200, "result": "noop", "_index": "logs-vedette.alert-default"},
    {"status": 409, "error": {"type": "version_conflict_engine_exception"}, "_index": "somewhere"},
]


@pytest.mark.parametrize("answer", ELSEWHERE, ids=named)
def test_what_did_not_come_to_our_stream_is_rejected_with_its_place(siem: FakeSiem, answer: dict[str, Any]) -> None:
    siem.rollover()
    siem.on("_bulk", items({"create": {"_index": siem.backing[-1], "_id": "a", **answer}}))
    with opened(siem) as sink:
        (outcome,) = sink.write([document("a")])
        assert outcome.state == "rejected"
        assert (
            "dropped" if answer.get("result") == "noop" else answer.get("_index", siem.backing[-1])
        ) in outcome.reason
        assert sink.counts["created"] == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b"[]", b"{}", b'{"items":{}}', b'{"items":[]}', b'{"items":[{},{},{}]}',
     b'{"items":[null,1]}', b'{"items":[{"create":{"_id":"b","status":201}},{"create":{"_id":"a","status":201}}]}',
     b'{"items":[{"index":{"_id":"a","status":201}},{"create":{"_id":"b"}}]}'],
)  # fmt: skip
def test_an_answer_that_is_not_understood_delivers_nothing(siem: FakeSiem, body: bytes) -> None:
    siem.on("_bulk", Reply(body=body))
    with opened(siem) as sink:
        assert states(sink.write([document("a"), document("b")])) == ["retryable", "retryable"]


def test_only_the_item_that_is_not_understood_waits(siem: FakeSiem) -> None:
    siem.rollover()
    siem.on("_bulk", items(item(siem, "a", 201, result="created"), item(siem, "b", 200, result="updated")))
    with opened(siem) as sink:
        assert states(sink.write([document("a"), document("b")])) == ["delivered", "retryable"]


# --- whole requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [Reply(429), Reply(503), Reply(502, b"<html>bad gateway"), Reply(500), Reply(401), Reply(403), Reply(404),
     Reply(405), Reply(200, b"<html>log in", {"content-type": "text/html"}), Fault("reset"), Fault("truncate"),
     Fault("hang"), Fault("reset", done=True)],
    ids=named,
)  # fmt: skip
def test_a_request_in_trouble_loses_and_doubles_nothing(siem: FakeSiem, step: Step) -> None:
    """Its documents wait; offered again they are delivered, also if the trouble came after the write and a rollover."""
    siem.on("_bulk", step)
    with opened(siem, timeout_s=1.0) as sink:
        outcomes = sink.write([document("a"), document("b")])
        assert states(outcomes) == ["retryable", "retryable"]
        assert all(outcome.reason for outcome in outcomes)
        siem.rollover()
        assert sink.write([document("a", True), document("b", True)]) == [DELIVERED] * 2
    assert sorted(id for _, id in siem.documents) == ["a", "b"]


def test_the_server_says_how_long_to_wait(siem: FakeSiem) -> None:
    siem.on("_bulk", Reply(429, {}, {"retry-after": "7"}))
    with opened(siem) as sink:
        assert sink.write([document("a")])[0].retry_after == 7.0


def test_requests_before_the_trouble_keep_their_outcomes(siem: FakeSiem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LARGEST", 400)
    siem.on("_bulk", siem.reply, Reply(503))
    with opened(siem) as sink:
        outcomes = sink.write([document(name, text="x" * 100) for name in "abcd"])
        assert states(outcomes) == ["delivered", "retryable", "retryable", "retryable"]
    assert len(siem.sent("_bulk")) == 2, "nothing is sent into the trouble"


def test_requests_are_bounded_in_bytes(siem: FakeSiem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LARGEST", 10_000)
    with opened(siem) as sink:
        assert sink.write([document(f"{number}", text="x" * 900) for number in range(50)]) == [DELIVERED] * 50
    sizes = [len(request.body) for request in siem.sent("_bulk")]
    assert max(sizes) <= 10_000
    assert 5 <= len(sizes) <= 7


def test_too_large_requests_are_halved_and_stay_small(siem: FakeSiem) -> None:
    def narrow(request: Request) -> Reply:
        return Reply(413) if len(request.body) > 5_000 else siem.reply(request)

    siem.on("_bulk", *[narrow] * 100)
    with opened(siem) as sink:
        assert sink.write([document(f"{number}", text="x" * 900) for number in range(40)]) == [DELIVERED] * 40
        first = len(siem.sent("_bulk"))
        sink.write([document(f"again{number}", text="x" * 900) for number in range(40)])
        assert max(len(request.body) for request in siem.sent("_bulk")[first:]) <= 5_000


def test_a_slow_way_gets_smaller_requests(siem: FakeSiem) -> None:
    def slow(request: Request) -> Reply | Fault:
        return Fault("hang") if len(request.body) > 200_000 else siem.reply(request)

    siem.on("_bulk", *[slow] * 100)
    documents = [document(f"{number}", text="x" * 10_000) for number in range(100)]
    with opened(siem, timeout_s=0.2) as sink:
        for _ in range(20):
            outcomes = sink.write([document(one.id, True, text="x" * 10_000) for one in documents])
            if set(states(outcomes)) == {"delivered"}:
                break
    assert len(siem.documents) == 100


def test_one_document_that_spoils_its_request_is_found(siem: FakeSiem) -> None:
    def strict(request: Request) -> Reply:
        return (
            Reply(400, {"error": {"type": "x", "reason": "bad"}}) if b"poison" in request.body else siem.reply(request)
        )

    siem.on("_bulk", *[strict] * 100)
    documents = [document(f"{number}", text="poison" if number == 33 else "") for number in range(64)]
    with opened(siem) as sink:
        outcomes = list(sink.write(documents))
    assert outcomes[:33] + outcomes[34:] == [DELIVERED] * 63
    assert outcomes[33].state == "retryable", "what refuses the least document too is not about documents"


# --- reduced documents ------------------------------------------------------------------------------------------------


def test_a_refused_document_lands_reduced_with_the_reason(siem: FakeSiem) -> None:
    siem.rollover()
    siem.on("_bulk", refused(siem, "a"))
    offered = document("a", message="Title", host="flat", rule={"id": "r"}, vedette={"tenant": "t"},
                       event={"id": "a", "kind": "alert", "duration": "soon"})  # fmt: skip
    with opened(siem) as sink:
        assert sink.write([offered]) == [DELIVERED]
        assert sink.counts["reduced"] == sink.counts["created"] == 1
    (body,) = siem.documents.values()
    assert body["event"] == {"id": "a", "kind": "alert"}
    assert (body["message"], body["rule"], "host" in body) == ("Title", {"id": "r"}, False)
    assert body["vedette"]["tenant"] == "t"
    assert "object mapping for [host]" in body["vedette"]["mapping_conflict"]
    assert json.loads(body["vedette"]["original_document"]) == json.loads(offered.body)
    assert body["data_stream"]["dataset"] == "vedette.alert"


def test_a_field_that_only_a_server_may_set_is_not_sent_as_one(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        assert sink.write([document("a", _routing="elsewhere", message="Title")]) == [DELIVERED]
    (body,) = siem.documents.values()
    assert ("_routing" in body, body["message"]) == (False, "Title")
    assert "_routing" in body["vedette"]["mapping_conflict"]


def test_the_least_of_a_document_lands_if_the_reduced_one_is_refused(siem: FakeSiem) -> None:
    siem.rollover()
    siem.on("_bulk", refused(siem, "a"), refused(siem, "a"))
    offered = document(
        "a",
        message="m" * 5000,
        rule={"id": "r", "name": ["n"], "author": {}},
        vedette={"score": "high"},
        observer=1,
        ecs=7,
        event={"id": "a", "kind": {"x": 1}, "category": ["c", {"x": 1}]},
    )
    with opened(siem) as sink:
        assert sink.write([offered]) == [DELIVERED]
        assert sink.counts["minimal"] == 1
    (body,) = siem.documents.values()
    assert len(body.pop("message")) == 1000
    assert set(body) == {"@timestamp", "event", "rule", "vedette", "data_stream"}
    assert set(body["vedette"]) == {"mapping_conflict", "original_document"}
    assert body["rule"] == {"id": "r", "name": ["n"]}


@pytest.mark.parametrize(("place", "state"), [("", "rejected"), ("logs-vedette.alert-default", "retryable")])
def test_what_the_stream_refuses_in_each_form_is_rejected_but_a_broken_pipeline_is_waited_for(
    siem: FakeSiem, place: str, state: str
) -> None:
    siem.rollover()
    siem.on("_bulk", *[refused(siem, "a", _index=place or siem.backing[-1])] * 3)
    with opened(siem) as sink:
        (outcome,) = sink.write([document("a")])
        assert outcome.state == state
        assert "object mapping" in outcome.reason
        assert sink.counts["rejected_refused"] == (state == "rejected")
    assert siem.documents == {}


def test_a_document_larger_than_a_request_lands_reduced(siem: FakeSiem) -> None:
    large = document("a", text="x" * room.LARGEST)
    with opened(siem) as sink:
        assert sink.write([document("b"), large, document("c")]) == [DELIVERED] * 3
    own = next(body for (_, id), body in siem.documents.items() if id == "a")["vedette"]
    assert len(own["original_document"]) + own["original_document_cut"] == len(large.body)
    assert "at most 5,242,880" in own["mapping_conflict"]


def test_a_document_that_is_too_large_in_each_form_is_rejected_alone(siem: FakeSiem) -> None:
    siem.on("_bulk", *[Reply(413)] * 3)
    with opened(siem) as sink:
        assert states(sink.write([document("a", text="x" * 100_000)])) == ["rejected"]
        assert sink.counts["rejected_too_large"] == 1
        assert sink.write([document("b")]) == [DELIVERED]


@pytest.mark.parametrize("where", ["vedette", "data_stream"])
def test_a_document_too_deep_to_write_lands_reduced(siem: FakeSiem, where: str) -> None:
    deep = b'{"a":' * 500 + b"1" + b"}" * 500
    siem.rollover()
    siem.on("_bulk", refused(siem, "a"))
    with opened(siem) as sink:
        assert sink.write([Document("a", b'{"message":"m","%b":%b}' % (where.encode(), deep))]) == [DELIVERED]
    (body,) = siem.documents.values()
    assert body["message"] == "m"


def test_reasons_are_bounded(siem: FakeSiem) -> None:
    siem.rollover()
    error = {"type": "t", "reason": "r" * 50_000, "caused_by": {"reason": "c" * 50_000}}
    siem.on("_bulk", *[refused(siem, "a", error=error)] * 3)
    with opened(siem) as sink:
        assert len(sink.write([document("a")])[0].reason) < 1200


# --- what was offered before ------------------------------------------------------------------------------------------


def test_a_repeat_is_found_behind_a_rollover(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        sink.write([document("a")])
        siem.rollover()
        assert sink.write([document("a", True), document("b", True)]) == [DELIVERED] * 2
        assert sink.counts["found_before_resend"] == 1
    assert sorted(id for _, id in siem.documents) == ["a", "b"]


def test_a_new_document_is_not_looked_for(siem: FakeSiem) -> None:
    siem.rollover()
    with opened(siem) as sink:
        sink.write([document("a"), document("b")])
    assert siem.sent("_mget") == []


def test_a_repeat_is_looked_for_in_bounded_requests(siem: FakeSiem) -> None:
    for _ in range(4):
        siem.rollover()
    documents = [document(f"{number}", True) for number in range(700)]
    siem.documents[siem.backing[0], "5"] = {}
    with opened(siem) as sink:
        assert sink.write(documents) == [DELIVERED] * 700
    asked = [len(json.loads(request.body)["docs"]) for request in siem.sent("_mget")]
    assert (max(asked), sum(asked)) == (room.LOOKED_UP, 2800)
    assert len(siem.documents) == 700


def _gone(siem: FakeSiem) -> Callable[[Request], Reply]:
    def answer(request: Request) -> Reply:
        return Reply(body={"docs": [{**one, "error": {"type": "index_not_found_exception", "reason": "gone"}}
                                    for one in json.loads(request.body)["docs"]]})  # fmt: skip

    return answer


@pytest.mark.parametrize(
    "step",
    [Reply(503), Reply(403), Fault("reset"), Reply(body={}), Reply(body={"docs": []}), Reply(body={"docs": [1]}),
     Reply(body={"docs": [{"_index": "other", "_id": "a", "found": False}]}), Reply(body=b"<html>"), _gone],
    ids=named,
)  # fmt: skip
def test_a_repeat_that_cannot_be_looked_for_is_not_written(siem: FakeSiem, step: Any) -> None:
    siem.rollover()
    siem.on("_mget", step(siem) if callable(step) else step)
    with opened(siem) as sink:
        outcomes = sink.write([document("a", True), document("b")])
    assert states(outcomes) == ["retryable", "delivered"]
    assert outcomes[0].reason
    assert [id for _, id in siem.documents] == ["b"]


def test_a_repeat_found_anywhere_is_delivered_whatever_the_others_say(siem: FakeSiem) -> None:
    for _ in range(2):
        siem.rollover()
    old, new = siem.backing
    siem.on("_mget", Reply(body={"docs": [{"_index": new, "_id": "a", "error": {"type": "t", "reason": "r"}},
                                          {"_index": old, "_id": "a", "found": True}]}))  # fmt: skip
    with opened(siem) as sink:
        assert sink.write([document("a", True)]) == [DELIVERED]


@pytest.mark.parametrize(
    "step",
    [Reply(503), Reply(403), Fault("reset"), Reply(body=[])],
    ids=named,
)
def test_nothing_is_written_while_the_stream_cannot_be_seen(siem: FakeSiem, step: Step) -> None:
    with opened(siem) as sink:
        siem.on(siem.stream, step)
        assert states(sink.write([document("a"), document("b", True)])) == ["retryable"] * 2
    assert siem.sent("_bulk") == []


# --- copies of the audit log ------------------------------------------------------------------------------------------

AUDIT = "logs-vedette.audit-default"


def test_a_copy_of_the_audit_log_goes_to_a_stream_of_its_own(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        assert sink.write([audit_copy("a"), document("b"), audit_copy("c")]) == [DELIVERED] * 3
    assert [request.path for request in siem.sent("_bulk")] == [f"/{siem.stream}/_bulk", f"/{AUDIT}/_bulk"]
    stamps = {id: body["data_stream"]["dataset"] for (_, id), body in siem.documents.items()}
    assert stamps == {"a": "vedette.audit", "b": "vedette.alert", "c": "vedette.audit"}


def test_outcomes_come_in_the_order_of_the_documents(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        siem.on("_bulk", siem.reply, Reply(503))
        outcomes = sink.write([audit_copy("a"), document("b"), audit_copy("c"), Document("d", b"")])
    assert states(outcomes) == ["retryable", "delivered", "retryable", "rejected"]


def test_one_id_in_both_streams_is_two_documents(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        assert sink.write([document("a"), audit_copy("a")]) == [DELIVERED] * 2
        assert sink.write([document("a", True), audit_copy("a", True)]) == [DELIVERED] * 2
        assert (sink.counts["created"], sink.counts["found_before_resend"]) == (2, 2)


@pytest.mark.parametrize("stream", ["logs-vedette.alert-default", AUDIT])
def test_trouble_with_one_stream_leaves_the_other_alone(siem: FakeSiem, stream: str) -> None:
    with opened(siem) as sink:
        siem.on(stream, Reply(503))
        outcomes = dict(zip((siem.stream, AUDIT), sink.write([document("a"), audit_copy("a")]), strict=True))
    assert outcomes.pop(stream).state == "retryable"
    assert list(outcomes.values()) == [DELIVERED]


def test_a_repeated_copy_is_found_behind_a_rollover_of_its_stream(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        sink.write([audit_copy("a")])
        siem.rollover(AUDIT)
        assert sink.write([audit_copy("a", True), audit_copy("b", True)]) == [DELIVERED] * 2
    assert sorted(id for _, id in siem.documents) == ["a", "b"]
    assert {one["_index"] for one in json.loads(siem.sent("_mget")[0].body)["docs"]} == set(siem.streams[AUDIT])


def test_a_copy_that_came_to_the_alert_stream_is_not_delivered(siem: FakeSiem) -> None:
    siem.on("_bulk", items(item(siem, "a", 201, result="created", _index=siem.rollover())))
    with opened(siem) as sink:
        assert states(sink.write([audit_copy("a")])) == ["retryable"]


def test_a_copy_that_is_refused_waits_and_is_not_cut(siem: FakeSiem) -> None:
    siem.stream = AUDIT
    siem.rollover()
    siem.on("_bulk", refused(siem, "a"))
    with opened(siem) as sink:
        (outcome,) = sink.write([audit_copy("a")])
        assert outcome.state == "retryable"
        assert "object mapping" in outcome.reason
        assert siem.documents == {}
        assert sink.write([audit_copy("a", True)]) == [DELIVERED]
    assert len(siem.sent("_bulk")) == 2


def test_a_copy_larger_than_a_request_is_sent_as_it_is(siem: FakeSiem) -> None:
    large = audit_copy("a", message="x" * room.LARGEST)
    with opened(siem) as sink:
        assert sink.write([audit_copy("b"), large, audit_copy("c")]) == [DELIVERED] * 3
    assert len(next(body for (_, id), body in siem.documents.items() if id == "a")["message"]) == room.LARGEST
    assert [len(request.lines) // 2 for request in siem.sent("_bulk")] == [1, 1, 1]


def test_a_copy_too_large_for_the_server_waits_alone(siem: FakeSiem) -> None:
    siem.on("_bulk", *[lambda request: Reply(413) if b"big" in request.body else siem.reply(request)] * 9)
    with opened(siem) as sink:
        outcomes = sink.write([audit_copy("a"), audit_copy("b", message="big"), audit_copy("c")])
        assert states(outcomes) == ["delivered", "retryable", "delivered"]


def test_a_copy_with_a_field_of_the_server_is_rejected_unsent(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        (outcome,) = sink.write([audit_copy("a", _routing="x")])
    assert (outcome.state, "_routing" in outcome.reason) == ("rejected", True)
    assert siem.sent("_bulk") == []


def test_opening_proves_the_stream_of_copies_too(siem: FakeSiem) -> None:
    siem.templates = [OURS]
    with pytest.raises(ConfigError, match=f"{AUDIT}: run 'vedette setup'"), opened(siem):
        pass
    siem.rollover(AUDIT)
    with opened(siem) as sink:
        assert sink.write([audit_copy("a")]) == [DELIVERED]


# --- where it goes ----------------------------------------------------------------------------------------------------


def template(name: str, pattern: str, priority: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "index_template": {"index_patterns": [pattern], "priority": priority, **more}}


FOREIGN = template("logs", "logs-*-*", 100, data_stream={})
OURS = template("ours", "logs-vedette.alert-*", 600, data_stream={})


@pytest.mark.parametrize(
    "templates",
    [[], [FOREIGN], [template("ours", "logs-vedette.alert-*", 600)], [OURS, template("over", "logs-*", 900)],
     [template("ours", "logs-vedette.alert-other", 600, data_stream={})]],
)  # fmt: skip
def test_no_other_template_may_make_the_stream(siem: FakeSiem, templates: list[dict[str, Any]]) -> None:
    siem.templates = templates
    with pytest.raises(ConfigError, match="run 'vedette setup'"), opened(siem):
        pass


def test_a_template_that_goes_away_stops_the_first_write(siem: FakeSiem) -> None:
    with opened(siem) as sink:
        siem.templates = [FOREIGN]
        (outcome,) = sink.write([document("a")])
        assert outcome.state == "retryable"
        assert "vedette setup" in outcome.reason
        siem.templates = [FOREIGN, OURS]
        assert sink.write([document("a", True)]) == [DELIVERED]


def test_templates_need_not_be_readable_if_the_streams_are_there(siem: FakeSiem) -> None:
    for stream in (siem.stream, AUDIT):
        siem.rollover(stream)
    with opened(siem) as sink:
        assert sink.write([document("a")]) == [DELIVERED]
    assert siem.sent("_index_template") == []


def test_templates_that_cannot_be_read_are_not_trusted(siem: FakeSiem) -> None:
    siem.on("_index_template", Reply(403, {"error": {"type": "security_exception", "reason": "unauthorized"}}))
    with pytest.raises(ConfigError, match="templates cannot be read"), opened(siem):
        pass


@pytest.mark.parametrize("key", ["indices", "aliases"])
def test_another_thing_with_the_name_of_the_stream_is_refused(siem: FakeSiem, key: str) -> None:
    siem.on(siem.stream, Reply(body={"data_streams": [], key: [{"name": siem.stream}]}))
    with pytest.raises(ConfigError, match="not a data stream"), opened(siem):
        pass


@pytest.mark.parametrize("status", [401, 403])
def test_missing_privileges_are_named_at_open(siem: FakeSiem, status: int) -> None:
    siem.on(siem.stream, Reply(status, {"error": {"type": "security_exception", "reason": "unauthorized"}}))
    with pytest.raises(ConfigError, match="needs an account with the role"), opened(siem):
        pass


def test_the_namespace_is_in_the_name(siem: FakeSiem) -> None:
    siem.stream = "logs-vedette.alert-plant_1"
    with opened(siem, namespace="plant_1") as sink:
        assert sink.write([document("a")]) == [DELIVERED]
    (body,) = siem.documents.values()
    assert body["data_stream"]["namespace"] == "plant_1"


@pytest.mark.parametrize(
    "options",
    [{"namespace": "a-b"}, {"namespace": "A"}, {"namespace": ""}, {"namespace": "a\n"}, {"namespace": "*"},
     {"namespace": "x" * 101}, {"colour": "red"}, {"hosts": []}],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        build("elasticsearch")("out", {"hosts": ["http://127.0.0.1:1"]} | options)


def test_no_reason_holds_a_secret(siem: FakeSiem, tmp_path: Any) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2-and-more")
    with opened(siem, username="writer", password=f"file:{secret}") as sink:
        siem.on("_bulk", Reply(401), Reply(403), Reply(503), Fault("reset"), Reply(400))
        reasons = [sink.write([document("a")])[0].reason for _ in range(4)]
        assert siem.sent("_bulk")[0].headers["authorization"].startswith("Basic ")
    assert not any("hunter2" in reason or "Basic" in reason for reason in [*reasons, repr(sink)])
