"""Exceptions: what a rule finds before a time raises no alert and is counted; and how they get into the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.access import Principal
from agent.alerting import Judge
from agent.alerting.judge import OPERATOR, STORM, Suppression
from agent.assemble import build_judge, strangers
from agent.config import Configuration, ExceptionConfig, Files, accept
from agent.config.edit import end_exception, put_exception
from agent.config.load import parse
from agent.config.revision import PAYLOAD_TYPE
from agent.errors import AccessDenied, ConfigError
from agent.model import SECOND, Records
from agent.normalise.clock import from_datetime
from agent.pipeline import Pipeline
from agent.state import State
from agent.trust import dsse, keys
from rules.detector import build
from tests.signing import key
from tests.unit.test_pipeline import Every, event, first_second, records

PATH = Path("vedette.yml")
UNTIL = "2026-12-24T00:00:00Z"
ONE = ExceptionConfig(rule="noisy", until=datetime(2026, 12, 24, tzinfo=UTC), reason='a "quiet" week: ü', owner="kim")
LATER = ONE.model_copy(update={"until": datetime(2027, 1, 1, 12, 30, tzinfo=UTC), "reason": "longer"})
OTHER = ONE.model_copy(update={"rule": "other"})
BARE = """\
# what runs
revision: 7  # raised by hand
sources: {logs: {type: ndjson, path: logs}}
detectors:
  noisy: {type: first-seen}   # a baseline
streams: {main: {source: logs, detectors: [noisy]}}
"""


# --- what an exception means ------------------------------------------------------------------------------------------


def judged(batches: Sequence[Records], **more: Any) -> tuple[list[Any], Counter[str]]:
    """Return the alerts of *batches*, one after the other, and what alerting counted."""
    pipeline, state, alerts, counts = Pipeline([Every()]), State(), [], Counter[str]()
    judge = Judge(pipeline.normaliser, tenant="t", stream="s", **{"cap": None, **more})
    for batch in batches:
        transaction = state.transaction()
        found, view = pipeline.evaluate(batch, transaction), transaction.view(OPERATOR)
        alerts += judge.judge(found.findings, found.dead, found.batch, view, lambda _: {}, found.watermark)
        counts.update(transaction.changes().counts)
        transaction.apply()
    return alerts, counts


def test_an_event_at_the_very_end_fires_and_one_before_is_counted() -> None:
    batch = records(event(8), event(9), event(10), event(11))
    alerts, counts = judged([batch], exceptions={"every": first_second(10)})
    assert [alert.time for alert in alerts] == [first_second(10), first_second(11)]
    assert counts == {"vedette.alerting.excepted": 2, "vedette.alerting.excepted.every": 2}


def test_other_rules_are_as_loud_as_ever() -> None:
    alerts, counts = judged([records(event(8))], exceptions={"another": first_second(10)})
    assert len(alerts) == 1
    assert not counts


def test_order_and_cuts_change_nothing() -> None:
    """Late events and batches of any size come to the same alerts and the same counts."""
    raws = [event(second, n=second) for second in (12, 3, 10, 9, 11, 1, 10)]
    whole, counts = judged([records(*raws)], exceptions={"every": first_second(10)})
    for cut in range(1, len(raws)):
        parts = [records(*raws[:cut], partition="p"), records(*raws[cut:], partition="q")]
        alerts, again = judged(parts, exceptions={"every": first_second(10)})
        assert sorted(one.time for one in alerts) == sorted(one.time for one in whole)
        assert again == counts
    turned, again = judged([records(*raws[::-1])], exceptions={"every": first_second(10)})
    assert (sorted(one.time for one in turned), again) == (sorted(one.time for one in whole), counts)


def test_what_is_withheld_uses_up_no_delivery_cap() -> None:
    batch = records(*(event(second) for second in range(12)))
    alerts, counts = judged([batch], exceptions={"every": first_second(10)}, cap=2)
    assert [alert.deliver for alert in alerts] == [True, True]
    assert STORM.id not in {alert.rule_id for alert in alerts}
    assert counts["vedette.alerting.excepted"] == 10


def test_the_first_event_after_the_end_raises_an_alert_that_earlier_ones_are_suppressed_into() -> None:
    """The period of a suppression may have begun under the exception."""
    coarse = {"every": Suppression((), 3600)}
    alerts, _ = judged(
        [records(event(8), event(10), event(11))], exceptions={"every": first_second(10)}, suppressions=coarse
    )
    assert [alert.time for alert in alerts] == [first_second(10), first_second(11)]
    assert len({alert.id for alert in alerts}) == 1


def test_what_was_not_asked_of_a_replay_is_not_counted() -> None:
    span = (first_second(9), first_second(20))
    alerts, counts = judged([records(event(8), event(9))], exceptions={"every": first_second(10)}, span=span)
    assert (alerts, counts["vedette.alerting.excepted"]) == ([], 1)


def test_records_that_could_not_be_read_are_said_whatever_is_silent() -> None:
    alerts, counts = judged([records(b"{")], exceptions={"vedette.quarantine": first_second(10**6)})
    assert [alert.rule_id for alert in alerts] == ["vedette.quarantine"]
    assert not counts


def test_the_configuration_is_what_the_judge_goes_by() -> None:
    text = BARE.replace("noisy", "every") + entry("every", until="2026-01-02T04:00:10+01:00")
    configuration, _ = parse(text.encode(), PATH)
    pipeline, transaction = Pipeline([Every()]), State().transaction()
    judge = build_judge(configuration, "main", pipeline, stamp={})
    found = pipeline.evaluate(records(event(9), event(10)), transaction)
    view = transaction.view(OPERATOR)
    alerts = judge.judge(found.findings, found.dead, found.batch, view, lambda _: {}, found.watermark)
    assert [alert.time for alert in alerts] == [first_second(10)]


def test_rules_that_nothing_has_are_named(tmp_path: Path) -> None:
    """By the rule where a detector has rules, by the detector's own id where it has none, and by the model."""
    (tmp_path / "r.yml").write_text(
        "title: x\nid: 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11\nlevel: low\nlogsource: {product: linux}\n"
        "detection: {a: {user.name: x}, condition: a}\n"
    )
    rules = ["6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11", "every", "a-model", "sigma", "gone"]
    model = f"{{path: m, digest: 'sha256:{'0' * 64}', streams: [main], budget: 1}}"
    text = f"{BARE}models: {{a-model: {model}}}\nexceptions: [{', '.join(map(flow, rules))}]\n"
    configuration, _ = parse(text.encode(), PATH)
    sigma = build("sigma", {"path": str(tmp_path)}, None)
    assert strangers(configuration, [sigma, Every()]) == ["sigma", "gone"]


def test_who_may_not_silence_a_rule_does_not() -> None:
    """An analyst may silence one and nothing else; an operator may not."""
    people = [principal("root", "admin"), principal("ana", "analyst"), principal("opal", "operator")]
    before = accept(signed(BARE.encode(), "root"), people, None)
    text = put_exception(BARE.encode(), PATH, ONE)
    with pytest.raises(AccessDenied, match="section exceptions: takes 1 of detection-engineer, analyst, admin"):
        accept(signed(text, "opal"), people, before)
    assert accept(signed(text, "ana"), people, before).changed == {"exceptions": ("ana",)}
    more = text.replace(b"a baseline", b"x").replace(b"{type: first-seen}", b"{type: hour-of-week}")
    with pytest.raises(AccessDenied, match="section detectors"):
        accept(signed(more, "ana"), people, before)


def principal(name: str, role: str) -> Principal:
    public = key(name).public_key()
    return Principal(name, frozenset({role}), keys.key_id(public), public, root=role == "admin")


def signed(text: bytes, name: str) -> Files:
    return Files(Path(), text, dsse.sign(text, PAYLOAD_TYPE, key(name)))


# --- what the file may say --------------------------------------------------------------------------------------------


def flow(rule: str, until: str = UNTIL, reason: str = "why") -> str:
    return f'{{rule: "{rule}", until: "{until}", reason: "{reason}", owner: kim}}'


def entry(rule: str, **more: str) -> str:
    return f"exceptions:\n  - {flow(rule, **more)}\n"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ('[{rule: a, reason: x, owner: k}]', "vedette.yml:7: exceptions.0.until: Field required"),
        ('[{rule: a, until: "2026-12-24", reason: x, owner: k}]', "a time with its zone, in quotes"),
        ('[{rule: a, until: "2026-12-24T00:00:00", reason: x, owner: k}]', "a time with its zone, in quotes"),
        ('[{rule: a, until: 2026-12-24T00:00:00Z, reason: x, owner: k}]', "put it in quotes"),
        ('[{rule: a, until: 1798070400, reason: x, owner: k}]', "a time with its zone, in quotes"),
        ('[{rule: a, until: "0001-01-01T00:00:00+14:00", reason: x, owner: k}]', "a time with its zone, in quotes"),
        ('[{rule: a, until: "2026-12-24T00:00:00Z", reason: "", owner: k}]', "exceptions.0.reason"),
        ('[{rule: a, until: "2026-12-24T00:00:00Z", reason: "a\\nb", owner: k}]', "one line of plain text"),
        ('[{rule: a, until: "2026-12-24T00:00:00Z", reason: x, owner: k, ruel: a}]', "ruel: unknown key"),
        (f"[{flow('vedette.loss')}]", "what Vedette says of itself cannot be silenced"),
        (f"[{flow('a')}, {flow('a')}]", "more than one for the rule a"),
    ],
)  # fmt: skip
def test_a_wrong_exception_is_said_with_its_line(section: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"vedette\.yml:7") as caught:
        parse(f"{BARE}exceptions: {section}\n".encode(), PATH)
    assert says in str(caught.value)


def test_there_are_a_thousand_at_most() -> None:
    def of(number: int) -> bytes:
        return f"{BARE}exceptions: [{', '.join(flow(f'r{one}') for one in range(number))}]\n".encode()

    assert len(parse(of(1000), PATH)[0].exceptions) == 1000
    with pytest.raises(ConfigError, match="at most 1000"):
        parse(of(1001), PATH)


def test_an_exception_is_over_when_its_end_has_come() -> None:
    configuration = read(put_exception(put_exception(BARE.encode(), PATH, ONE), PATH, LATER.model_copy(
        update={"rule": "other"})))  # fmt: skip
    assert [one.rule for one in configuration.exceptions_over(ONE.until)] == ["noisy"]
    assert configuration.exceptions_over(datetime(2026, 12, 23, tzinfo=UTC)) == []
    assert from_datetime(configuration.exceptions[0].until) % SECOND == 0


# --- how it gets there ------------------------------------------------------------------------------------------------


def read(text: bytes) -> Configuration:
    return parse(text, PATH)[0]


_ENTRY = """\
{0}- rule: "noisy"
{0}  until: "2026-12-24T00:00:00Z"
{0}  reason: "a \\"quiet\\" week: ü"
{0}  owner: "kim"
"""
_FLOW = '{rule: "noisy", until: "2026-12-24T00:00:00Z", reason: "a \\"quiet\\" week: ü", owner: "kim"}'
_TWO = f"""\
exceptions:   # who is silent
- {flow("a")}  # the first
- rule: b

  until: '{UNTIL}'
  owner: kim
  reason: >-
    folded
    text

# an afterthought
"""


@pytest.mark.parametrize(
    ("section", "becomes"),
    [
        pytest.param("", "\nexceptions:\n" + _ENTRY.format("  "), id="no section"),
        pytest.param("# the end", "# the end\n\nexceptions:\n" + _ENTRY.format("  "), id="no section, open last line"),
        pytest.param("exceptions: []\n", "exceptions:\n" + _ENTRY.format("  "), id="empty"),
        pytest.param(
            "exceptions:  [ ] # none\n\ntenant: x\n",
            "exceptions: # none\n" + _ENTRY.format("  ") + "\ntenant: x\n",
            id="empty with a comment",
        ),
        pytest.param("exceptions: []", "exceptions:\n" + _ENTRY.format("  "), id="empty, open last line"),
        pytest.param(f"exceptions: [{flow('a')}, ]\n", f"exceptions: [{flow('a')}, {_FLOW}, ]\n", id="in brackets"),
        pytest.param(
            f"exceptions:\n    - {flow('a')}  # first\n\n# then\ntenant: x\n",
            f"exceptions:\n    - {flow('a')}  # first\n{_ENTRY.format('    ')}\n# then\ntenant: x\n",
            id="a list",
        ),
        pytest.param(
            _TWO, _TWO.replace("\n\n# an", "\n" + _ENTRY.format("") + "\n# an"), id="a list not indented, folded text"
        ),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["", "BOM"])
def test_an_exception_is_added_and_all_else_stays(section: str, becomes: str, line_end: str, bom: str) -> None:
    """Comments, blank lines and line ends too, byte for byte."""
    text = (bom + BARE + section).replace("\n", line_end).encode()
    wanted = (bom + BARE.replace("revision: 7", "revision: 8") + becomes).replace("\n", line_end)
    changed = put_exception(text, PATH, ONE)
    assert changed.decode() == wanted
    assert read(changed).exceptions[-1] == ONE
    assert read(end_exception(changed, PATH, "noisy")).exceptions == read(text).exceptions


def test_an_exception_is_made_longer_where_it_stands() -> None:
    text = put_exception(BARE.encode() + _TWO.encode(), PATH, ONE)
    for rule in ("a", "b", "noisy"):
        longer = LATER.model_copy(update={"rule": rule})
        after = put_exception(text, PATH, longer)
        assert longer in read(after).exceptions
        assert len(read(after).exceptions) == 3
        assert after.splitlines().count(b"# an afterthought") == 1
        assert b"# the first" in after
    assert after.decode() == (
        text.decode()
        .replace("revision: 8", "revision: 9")
        .replace(UNTIL + '"\n  reason: "a \\"quiet\\" week: ü"', '2027-01-01T12:30:00Z"\n  reason: "longer"')
    )


def test_the_last_exception_leaves_an_empty_list() -> None:
    one = f"  -\n    rule: a\n    until: '{UNTIL}'\n    reason: x\n    owner: k # k\n"
    text = f"{BARE}exceptions:  # why\n  # about a\n{one}\n"
    assert end_exception(text.encode(), PATH, "a").decode() == (
        BARE.replace("revision: 7", "revision: 8") + "exceptions: []  # why\n  # about a\n\n"
    )


@pytest.mark.parametrize(("rule", "left"), [("a", "[{0}, {1}]"), ("b", "[{2}, {1}]"), ("c", "[{2}, {0}]")])
def test_one_of_several_in_brackets_is_removed(rule: str, left: str) -> None:
    """The others stay as they are written."""
    a, b, c = flow("a"), flow("b"), flow("c")
    after = end_exception(f"{BARE}exceptions: [{a}, {b}, {c}]\n".encode(), PATH, rule).decode()
    assert after.endswith(f"exceptions: {left.format(b, c, a)}\n")


def test_one_of_several_in_a_list_is_removed() -> None:
    after = end_exception((BARE + _TWO).encode(), PATH, "a").decode()
    assert after == (BARE + _TWO).replace("revision: 7", "revision: 8").replace(f"- {flow('a')}  # the first\n", "")


def test_a_file_without_a_revision_gets_one() -> None:
    text = "\n".join(BARE.splitlines()[2:]).encode()
    assert put_exception(text, PATH, ONE).startswith(b"revision: 1\nsources")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "{sources: {l: {type: x}}, detectors: {d: {type: y}}, streams: {m: {source: l, detectors: [d]}}}\n",
            id="all in braces",
        ),
        pytest.param(BARE + "...\n", id="an end marked"),
    ],
)
def test_a_layout_that_cannot_be_kept_is_refused(text: str) -> None:
    """What comes out must say what was meant, or nothing is changed."""
    with pytest.raises(ConfigError, match="cannot be changed here as the file is laid out"):
        put_exception(text.encode(), PATH, ONE)


def test_two_exceptions_come_and_go_in_any_order() -> None:
    both = put_exception(put_exception(BARE.encode(), PATH, ONE), PATH, OTHER)
    assert [one.rule for one in read(both).exceptions] == ["noisy", "other"]
    none = end_exception(end_exception(both, PATH, "noisy"), PATH, "other")
    assert read(none).exceptions == []
    assert read(none).revision == 11
    assert put_exception(none, PATH, ONE).count(b"exceptions:") == 1
