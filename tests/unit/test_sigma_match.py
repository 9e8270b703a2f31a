"""What each Sigma construct means, asked through the whole engine."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from agent.model import UNPARSED, Dictionary, Kind
from rules.sigma import predicate
from rules.sigma.engine import Engine
from tests.sigma_events import WINDOWS, batch, compiled, engine, matching_rows, rule_text

FIELD = "winlog.event_data.F"


def rows(item: str, values: list[Any]) -> list[int]:
    """Return which of *values* of the field F a selection with *item* matches."""
    return matching_rows(f"{{sel: {{{item}}}, condition: sel}}", [{FIELD: value, "other": "x"} for value in values])


@pytest.mark.parametrize(
    ("item", "values", "expected"),
    [
        ("F: Abc", ["abc", "ABC", "abcd", "", None], [0, 1]),
        ("F: [abc, x]", ["abc", "X", "y"], [0, 1]),
        ("F: ''", ["", "x", None], [0]),
        ("F: null", ["", "x", None], [2]),
        ("F: [null, '']", ["", "x", None], [0, 2]),
        ("F: '*'", ["", "x", None], [0, 1]),
        ("F: 7", ["7", "07", "17", None], [0]),
        ("F: 'a*c'", ["ac", "abbc", "AXC", "acd", "a\nc"], [0, 1, 2, 4]),
        ("F: 'a?c'", ["ac", "abc", "abbc", "aéc"], [1, 3]),
        (r"F: 'a\*c'", ["a*c", "abc", "a\\bc"], [0]),
        (r"F: 'a\\*c'", ["a\\c", "a\\bc", "a*c"], [0, 1]),
        (r"F: 'C:\dir\file'", ["c:\\DIR\\file", "c:dirfile"], [0]),
        ("F|contains: 'b'", ["abc", "B", "ac", None], [0, 1]),
        ("F|contains: 'b*d'", ["abcde", "xbdx", "db"], [0, 1]),
        ("F|contains|all: [a, b]", ["ab", "bXA", "a", "b"], [0, 1]),
        ("F|startswith: '\\a'", ["\\abc", "x\\a", "\\A"], [0, 2]),
        ("F|startswith: 'a?c'", ["abcd", "acd"], [0]),
        ("F|endswith: ['.exe', '1?']", ["x.EXE", "0x10", "0x1", ".exe "], [0, 1]),
        ("F|cased: Abc", ["Abc", "abc"], [0]),
        ("F|contains|cased: B", ["aBc", "abc"], [0]),
        ("F|endswith|cased: 'Σ'", ["ΑΣ", "ας"], [0]),
        ("F|re: 'a[0-9]+b'", ["xa12by", "A1B", "ab"], [0]),
        ("F|re|i: 'a[0-9]+b'", ["xa12by", "A1B", "ab"], [0, 1]),
        ("F|re: 'a.b'", ["axb", "a\nb"], [0]),
        ("F|re|s: 'a.b'", ["axb", "a\nb"], [0, 1]),
        ("F|re|m: '^b'", ["a\nb", "ab"], [0]),
        ("F|re: '^b'", ["a\nb", "bb"], [1]),
        ("F|base64: foo", ["Zm9v", "foo"], [0]),
        ("F|base64offset|contains: foobar", ["xZm9vYmFyx", "xZvb2Jhcx", "xmb29iYXx", "foobar"], [0, 1, 2]),
        ("F|wide|base64offset|contains: foo", ["eGYAbwBvAHg=", "foo", "ZgBvAG8A"], [0, 2]),
        ("F|wide: ab", ["a\0b\0", "ab"], [0]),
        ("F|utf16le: ab", ["a\0b\0", "\0a\0b"], [0]),
        ("F|utf16be: ab", ["a\0b\0", "\0a\0b"], [1]),
        ("F|utf16: ab", ["\ufeffa\0b\0", "a\0b\0"], [0]),
        ("F|utf16le|base64: foo", ["ZgBvAG8A", "AGYAbwBv"], [0]),
        ("F|utf16be|base64: foo", ["ZgBvAG8A", "AGYAbwBv"], [1]),
        ("F|utf16|base64: foo", ["//5mAG8AbwA=", "ZgBvAG8A"], [0]),
        ("F|utf16be|base64offset|contains: foo", ["AGYAbwBv", "xxxAGYAbwBvxx", "ZgBvAG8A"], [0, 1]),
        ("F|contains|windash: ' -x'", ["a -x", "a /x", "a –x", "a x"], [0, 1, 2]),
        ("F|contains|all|windash: ['-a', '-b']", ["/a -b", "-a", "/b /a"], [0, 2]),
        ("F|cidr: 10.0.0.0/8", ["10.1.2.3", "11.0.0.1", "10.1.2", "010.1.2.3", "::1"], [0]),
        ("F|cidr: 'fe80::/10'", ["fe80::1", "10.1.2.3"], [0]),
        ("F|exists: true", ["", "x", None], [0, 1]),
        ("F|exists: false", ["", "x", None], [2]),
        ("F|gt: 5", ["6", "5", "5.5", "x", "", None, "nan", "1_0", "-6", "0x10"], [0, 2]),
        ("F|gte: 5", ["6", "5", "4"], [0, 1]),
        ("F|lt: 5", ["6", "5", "-4", None], [2]),
        ("F|lte: 5.5", ["6", "5.5", "4e0"], [1, 2]),
        ("F|neq: a", ["a", "b", None], [1, 2]),
        ("F|hour: 3", ["2024-05-05T03:59:00Z", "2024-05-05T05:00:00+02:00", "2024-05-05T04:00:00Z", "x"], [0, 1]),
        ("F|minute: 59", ["2024-05-05T03:59:00Z", "2024-05-05T03:58:00Z"], [0]),
        ("F|day: 29", ["2024-02-29T00:00:00Z", "2024-02-28T23:00:00-05:00", "2024-02-28T00:00:00Z"], [0, 1]),
        ("F|week: 1", ["2024-12-30T00:00:00Z", "2024-12-29T00:00:00Z"], [0]),
        ("F|month: [2, 3]", ["2024-02-29", "2024-03-01", "2024-04-01"], [0, 1]),
        ("F|year: 2024", ["2024-12-31T23:00:00Z", "2024-12-31T23:00:00-05:00", "no time"], [0]),
        ("F|neq: [a, 7]", ["A", "b", "7", None], [1, 3]),
        ("F|contains|neq: a", ["xax", "b"], [1]),
        ("F|contains|all|neq: [a, b]", ["ab", "a", "c"], [1, 2]),
        ("F|re|neq: '^a'", ["ab", "ba"], [1]),
        ("F|re|i|s: 'A.B'", ["a\nb", "ab"], [0]),
        ("F|fieldref|neq: other", ["X", "y", None], [1, 2]),
        ("F|fieldref: other", ["X", "y", None], [0]),
        ("F|fieldref|startswith: other", ["Xy", "yx"], [0]),
        ("F|fieldref|endswith: other", ["Xy", "yx"], [1]),
        ("F|fieldref|contains: other", ["yxy", "y"], [0]),
        ("F|fieldref: absent", ["x", None], []),
    ],
)
def test_modifier(item: str, values: list[Any], expected: list[int]) -> None:
    """Each modifier matches exactly the values that it names."""
    kind = Kind("windows", WINDOWS.constants, {**WINDOWS.renames, "other": "other"}, WINDOWS.prefix)
    events = [{FIELD: value, "other": "x"} for value in values]
    assert matching_rows(f"{{sel: {{{item}}}, condition: sel}}", events, kind) == expected


@pytest.mark.parametrize(
    ("item", "values", "expected"),
    [
        ("F: 7", [7, 17, 70], [0]),
        ("F: '7'", [7, 17], [0]),
        ("F: 7", [7.0, 7.5], [0]),
        ("F|contains: '7'", [17, 1], [0]),
        ("F|gt: 9007199254740992", [9007199254740993, 9007199254740992], [0]),
        ("F: true", [True, False], [0]),
        ("F: 'TRUE'", [True, False], [0]),
    ],
)
def test_numbers_and_booleans_are_compared_by_their_text(item: str, values: list[Any], expected: list[int]) -> None:
    """Typed columns answer as their text would."""
    assert rows(item, values) == expected


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("F|contains|all: a", "'F|contains|all': all needs a list of two values or more"),
        ("F|contains|all: [a]", "'F|contains|all': all needs a list of two values or more"),
        ("F|re|startswith: a", "'F|re|startswith': re cannot be combined with startswith"),
        ("F|contains|re: a", "'F|contains|re': re cannot be combined with contains"),
        ("F|hour: 24", "'F|hour': hour must be a number from 0 to 23"),
        ("F|month: [1, 13]", "'F|month': month must be a number from 1 to 12"),
        ("F|week: x", "'F|week': week must be a number from 1 to 53"),
        ("F|gt: x", "GreaterThanModifier incompatible"),
        ("F|exists: maybe", "ExistsModifier incompatible"),
        ("F|cidr: 10.0.0.300/8", "10.0.0.300/8"),
        ("F|cidr|contains: 10.0.0.0/8", "ContainsModifier incompatible"),
        ("F|fieldref: 'a*'", "must not contain wildcards"),
        ("F|wide: é漢", "only allowed for ascii"),
        ("F|base64offset: 'a?'", "wildcards is not allowed"),
        ("F|contains|windash: ' -a -b -c -d'", "at most three dash occurrences"),
        ("F|fancy: a", "Unknown modifier 'fancy'"),
    ],
)
def test_what_the_specification_excludes_is_refused(item: str, reason: str) -> None:
    """The refusal says where, to the column, and why."""
    (refusal,) = compiled(
        f"title: t\nlogsource: {{product: windows}}\ndetection:\n  sel:\n    {item}\n  condition: sel"
    ).refused
    place, _, said = refusal.partition(": ")
    assert reason in said
    path, line, column = place.split(":")
    assert (path, int(line) in (1, 5), int(column) > 0) == ("0.yml", True, True)


def test_a_field_with_several_values_matches_if_one_does() -> None:
    """Tests of one item may be met by different values; a negation fails if any value meets it."""
    values = [("a", "b"), ("b", "c"), ("c",), "a"]
    assert rows("F: a", values) == [0, 3]
    assert rows("F|contains|all: [b, c]", values) == [1]
    assert matching_rows("{sel: {F: a}, condition: not sel}", [{FIELD: value} for value in values]) == [1, 2]


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ("{s: {A: x}, t: {B: y}, condition: s and t}", [2]),
        ("{s: {A: x}, t: {B: y}, condition: s or t}", [0, 1, 2]),
        ("{s: {A: x}, t: {B: y}, condition: s and not t}", [0]),
        ("{s: {A: x}, t: {B: y}, condition: not (s or t)}", [3]),
        ("{s1: {A: x}, s2: {B: y}, condition: 1 of s*}", [0, 1, 2]),
        ("{s1: {A: x}, s2: {B: y}, condition: all of s*}", [2]),
        ("{s1: {A: x}, s2: {B: y}, condition: all of them}", [2]),
        ("{s1: {A: x}, f1: {B: y}, condition: s1 and not 1 of f*}", [0]),
        ("{s: [{A: x}, {B: y}], condition: s}", [0, 1, 2]),
        ("{s: {A: x, B: y}, condition: s}", [2]),
        ("{s: {A: x}, t: {B: y}, condition: [s and t, not s and not t]}", [2, 3]),
        ("{s: {A: null}, condition: s}", [1, 3]),
        ("{s: {A: '*'}, condition: not s}", [1, 3]),
    ],
)
def test_condition(detection: str, expected: list[int]) -> None:
    """Conditions combine selections as the specification says."""
    name = "winlog.event_data."
    events = [{name + "A": "x"}, {name + "B": "y"}, {name + "A": "x", name + "B": "y"}, {}]
    assert matching_rows(detection, [{**event, "pad": "-"} for event in events]) == expected


def test_many_rows_and_few_rows_give_the_same_answer() -> None:
    """Selecting from arrays and deciding one by one are the same function."""
    name = "winlog.event_data."
    events = [{name + "A": f"v{n % 7}", name + "B": f"w{n % 5}", name + "C": "abc"} for n in range(400)]
    detection = "{s: {C: abc}, t: {A: [v1, v2]}, u: {B: w3}, condition: s and (t or not u)}"
    together = matching_rows(detection, events)
    one_by_one = [n for n, event in enumerate(events) if matching_rows(detection, [event])]
    assert together == one_by_one
    assert 0 < len(together) < 400


# --- kinds and log sources --------------------------------------------------------------------------------------------


def test_constants_of_a_kind_decide_the_log_source() -> None:
    """A process creation rule sees Sysmon 1 and Security 4688 and nothing else."""
    sysmon = "Microsoft-Windows-Sysmon/Operational"
    kinds = [
        Kind("windows", (("event.code", code), ("winlog.channel", channel)), {}, "")
        for code, channel in [("1", sysmon), ("3", sysmon), ("4688", "security"), ("1", "System")]
    ]
    detection = "{sel: {F: a}, condition: sel}"
    assert matching_rows(detection, [{"F": "a"}] * 4, kinds) == [0, 2]


def test_without_constants_the_log_source_is_decided_by_columns() -> None:
    """A kind that lost its constants to the cap is still matched exactly."""
    bare = Kind("windows", (), WINDOWS.renames, WINDOWS.prefix)
    sysmon = {"winlog.channel": "Microsoft-Windows-Sysmon/Operational", "process.executable": "a"}
    events = [{**sysmon, "event.code": "1"}, {**sysmon, "event.code": "3"}, {"process.executable": "a"}]
    assert matching_rows("{sel: {Image: a}, condition: sel}", events, bare) == [0]


def test_only_the_fields_that_are_left_to_look_at_are_wanted() -> None:
    """Constants are folded away, and rules of other log sources want nothing."""
    other = rule_text("{sel: {Query: a}, condition: sel}", "{product: windows, category: dns_query}")
    rules = engine(rule_text("{sel: {EventID: 1, Image: a}, condition: sel}"), other)
    assert rules.plan(WINDOWS).fields == {"process.executable"}
    assert engine(rule_text("{sel: {EventID: 2, Image: a}, condition: sel}")).plan(WINDOWS).rules == 0


def test_a_condition_of_constants_alone_matches_every_event_of_the_kind() -> None:
    """Nothing needs to be read for such a rule."""
    rules = engine(rule_text("{sel: {EventID: 1}, condition: sel}"))
    assert rules.plan(WINDOWS).fields == frozenset()
    assert [row for row, _ in rules.match(batch([{"x": "1"}, {"x": "2"}]))] == [0, 1]


def test_a_field_may_be_compared_with_a_constant_of_the_kind() -> None:
    """What every event of the kind has is in no column, on either side of a reference."""
    events = [{FIELD: "1"}, {FIELD: "2"}]
    assert matching_rows("{sel: {F|fieldref: EventID}, condition: sel}", events) == [0]
    assert matching_rows("{sel: {EventID|fieldref: F}, condition: sel}", events) == [0]
    assert matching_rows("{sel: {EventID|fieldref|neq: F}, condition: sel}", events) == [1]


def test_a_log_source_that_nothing_feeds_matches_nothing() -> None:
    """Its rule is loaded and silent; the plan counts it."""
    rules = engine(rule_text("{sel: {Image: '*'}, condition: sel}", "{product: vax, service: vms}"))
    assert list(rules.match(batch([{"process.executable": "a"}]))) == []


def test_a_mapping_that_knows_nothing_of_web_names_gets_them_from_the_category() -> None:
    """cs-method and its like find their ECS fields; a rule may name ECS itself."""
    kind = Kind("access", (("event.dataset", "nginx.access"),), {}, "")
    events = [{"http.request.method": "GET", "url.original": "/x"}, {"http.request.method": "POST"}]
    detection = "{sel: {cs-method: get, url.original|contains: x}, condition: sel}"
    rules = engine(rule_text(detection, "{category: webserver}"))
    assert [row for row, _ in rules.match(batch(events, kind))] == [0]


def test_another_vendors_kind_is_not_searched_for_windows_rules() -> None:
    """A kind with a vendor's prefix can never have winlog fields, so no Windows rule is planned for it."""
    kind = Kind("cloudtrail", (("event.dataset", "aws.cloudtrail"),), {}, "aws.cloudtrail.")
    assert engine(rule_text("{sel: {F: a}, condition: sel}")).plan(kind).rules == 0


# --- keywords ---------------------------------------------------------------------------------------------------------

KEYWORDS = "{keywords: [evil, 'c:\\dir', 'qu\"ote', 'f*o'], condition: keywords}"


def keyword_rows(texts: list[str]) -> list[int]:
    return matching_rows(KEYWORDS, [{"event.original": text} for text in texts])


def test_keywords_are_sought_in_plain_text() -> None:
    """Anywhere in the text, whatever its case."""
    assert keyword_rows(["an EVIL thing", "good", "C:\\DIR\\x", "f--o", "of"]) == [0, 2, 3]


def test_keywords_are_sought_in_the_values_of_json_and_not_in_its_names() -> None:
    """Escapes of the JSON text hide nothing, and field names are not values."""
    records = [{"a": ["x", {"b": "evil"}]}, {"evil": 1}, {"a": "C:\\dir\\x"}, {"a": 'qu"ote'}, {"a": "plain"}]
    assert keyword_rows([orjson.dumps(record).decode() for record in records]) == [0, 2, 3]
    assert keyword_rows([r'{"a": "\u0065vil"}', r'{"a": "c:\u005cdir"}', "{broken evil"]) == [0, 1, 2]


def test_keywords_are_found_however_their_letters_are_written() -> None:
    """Letters whose lower case is ASCII, and texts with more characters than bytes before them, hide nothing."""
    assert keyword_rows(["x", "ev\u0130l", "é" * 50 + "EVIL", "\u0130evil", "EV\u0131L"]) == [2, 3]
    kelvin = "{keywords: [kiwi], condition: keywords}"
    assert matching_rows(kelvin, [{"event.original": text} for text in ["\u212aiwi", "iwi"]]) == [0]


def test_every_one_of_many_raw_texts_is_judged_by_itself() -> None:
    """Texts are searched together, and no hit is given to a neighbour."""
    texts = [("evil" if number % 37 == 0 else "good") + " é" * (number % 5) for number in range(300)]
    assert keyword_rows(texts) == list(range(0, 300, 37))


def test_all_keywords_must_be_there() -> None:
    """``|all`` wants each of them, in any value."""
    detection = "{keywords: {'|all': [one, two]}, condition: keywords}"
    events = [{"event.original": text} for text in ["one two", "one", '{"a": "one", "b": "two"}']]
    assert matching_rows(detection, events) == [0, 2]


def test_a_keyword_may_be_a_regular_expression() -> None:
    """``|re`` without a field searches the text."""
    events = [{"event.original": text} for text in ["id=42", "id=x"]]
    assert matching_rows("{keywords: {'|re': 'id=[0-9]+'}, condition: keywords}", events) == [0]


def test_quarantined_records_are_shown_to_keyword_rules_only() -> None:
    """What could not be parsed cannot hide from raw text rules, and raises no other."""
    kind = Kind(UNPARSED)
    events = [{"event.original": "\ufffd evil"}, {"event.original": "good"}]
    plain = rule_text("{sel: {F: null}, condition: sel}")
    rules = engine(plain, rule_text("{k: [evil], condition: k}", "{product: windows, service: security}"))
    assert rules.plan(kind).fields == {"event.original"}
    assert [(row, rule.place) for row, rule in rules.match(batch(events, kind))] == [(0, "1.yml:1")]


# --- robustness -------------------------------------------------------------------------------------------------------


def test_lone_surrogates_and_control_characters_are_only_text() -> None:
    """No value makes the engine raise."""
    values = ["\ud800abc", "\x00abc", "abc\udfff", "é\ud800", ""]
    for item in ("F|contains: abc", "F|re: abc", "F: '*b*c'", "F|endswith: c"):
        assert rows(item, values)[:2] == [0, 1]


def test_a_hostile_pattern_costs_linear_time() -> None:
    """What takes a backtracking engine hours takes RE2 no time."""
    assert rows("F|re: '(a+)+$'", ["a" * 50_000 + "!"]) == []


def test_memory_of_verdicts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever new values do not grow a rule's memo without end."""
    monkeypatch.setattr("rules.sigma.engine._MEMO", 10)
    assert len(matching_rows("{sel: {F|contains: a}, condition: sel}", [{FIELD: f"a{n}"} for n in range(99)])) == 99


def test_batches_that_share_dictionaries_give_the_answers_of_new_ones() -> None:
    """What is remembered from one batch holds in the next, also for values that came later."""
    rules = engine(rule_text("{sel: {F|contains: evil}, condition: sel}"))
    shared: dict[str, Dictionary] = {}
    for part in (["evil", "good"], ["good", "more evil", "new"], [f"n{n}" for n in range(200)] + ["evil"]):
        found = [row for row, _ in rules.match(batch([{FIELD: text} for text in part], WINDOWS, shared))]
        assert found == [row for row, text in enumerate(part) if "evil" in text]


def test_matches_come_in_the_order_of_rows_then_of_rules() -> None:
    """The order does not depend on how the index found them."""
    rules = engine(*(rule_text(f"{{sel: {{F|contains: {word}}}, condition: sel}}") for word in ("b", "a")))
    found = [(row, rule.place) for row, rule in rules.match(batch([{FIELD: "ab"}, {FIELD: "a"}]))]
    assert found == [(0, "0.yml:1"), (0, "1.yml:1"), (1, "1.yml:1")]


def test_an_engine_without_rules_matches_nothing() -> None:
    """An empty collection is not an error of the engine."""
    assert list(Engine(compiled().rules).match(batch([{"a": "b"}]))) == []


TESTS = ["EventID: 1", "Provider_Name|startswith: a", "Level: null", "EventID: [1, 2], Own: x", "Own|contains: y"]
MEETINGS = ["Own|fieldref: Provider_Name", "Provider_Name|fieldref: Level"]


@pytest.mark.parametrize(("detections", "least"), [(TESTS, 20), ([*TESTS, *MEETINGS], 0), (MEETINGS, 20)])
def test_kinds_share_a_plan_only_where_rules_see_no_difference(detections: list[str], least: int) -> None:
    """Over kinds of all sorts, each in turn: an engine that met the others before is one that met none."""
    rules = [
        rule_text(
            f"{{s: {{{detection}}}, condition: {way}s}}",
            "{product: windows}",
            id=f"00000000-0000-4000-8000-{number:012}",
        )
        for number, (detection, way) in enumerate(itertools.product(detections, ["", "not "]))
    ]
    met = engine(*rules)
    choices = itertools.product(
        ["1", "2", "3", None], ["a", "ab", "b", None, ""], ["a", "b", None], [frozenset[str](), frozenset(["level"])]
    )
    shared = 0
    for code, provider, level, absent in choices:
        constants = {"event.code": code, "provider": provider, "level": level, "winlog.channel": "System"}
        kind = Kind(
            "windows",
            tuple((name, value) for name, value in constants.items() if value is not None),
            {"EventID": "event.code", "Provider_Name": "provider", "Level": "level"},
            "winlog.event_data.",
            absent if level is None else frozenset(),
        )
        varying = [name for name in ("provider", "level") if name not in kind.constant and name not in kind.absent]
        events = [
            {"winlog.event_data.Own": own, **dict.fromkeys(varying, other)}
            for own in ("x", "xy", "ab", "", None)
            for other in ("ab", "b", None)
        ]
        fresh = engine(*rules)
        assert met.fields(kind) == fresh.fields(kind)
        found, expected = ([(row, rule.id) for row, rule in one.match(batch(events, kind))] for one in (met, fresh))
        assert found == expected
        assert expected
        shared += met.plan(kind) in [plan for other, plan in met.plans.items() if other != kind]
    assert shared >= least


def test_plans_of_kinds_long_gone_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can name channels makes no memory grow; a kind that comes back matches as before."""
    monkeypatch.setattr("rules.sigma.engine._MOST_PLANS", 4)
    one = engine(rule_text("{sel: {Image: a}, condition: sel}"))
    kinds = [
        Kind("windows", (*WINDOWS.constants, ("labels.site", str(number))), WINDOWS.renames, WINDOWS.prefix)
        for number in range(20)
    ]
    for kind in [*kinds, *kinds[:2]]:
        assert [row for row, _ in one.match(batch([{"process.executable": "a"}], kind))] == [0]
        assert len(one.plans) <= 4
    assert [*one.plans][-2:] == kinds[:2]


def test_conditions_that_were_given_up_are_bound_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds that were only asked about hold no conditions for long; when events come they are matched as ever."""
    monkeypatch.setattr("rules.sigma.engine._MOST_BOUND", 6)
    fields = ["A", "B", "C", "D"]
    texts = [
        rule_text(f"{{s: {{{one}: a, EventID: 1}}, condition: s}}", "{product: windows}", name=one) for one in fields
    ]
    one = engine(*texts)
    constants = (("winlog.channel", "System"), ("event.code", "1"))
    kinds = [Kind(f"m{n}", constants, {"EventID": "event.code", "A": f"c{n}"}, f"winlog.{n}.") for n in range(8)]
    assert [len(one.fields(kind)) for kind in kinds] == [4] * 8
    assert [plan.rules for plan in one._heavy] == [4]
    for number, kind in enumerate(kinds):
        events = [{f"c{number}": "a"}, {f"winlog.{number}.B": "a"}, {"c9": "a"}]
        assert [(row, rule.name) for row, rule in one.match(batch(events, kind))] == [(0, "A"), (1, "B")]


def test_groups_of_rules_that_never_come_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write what many rules look for makes no memory grow; every answer stays what it was."""
    monkeypatch.setattr("rules.sigma.engine._MOST_LISTED", 200)
    names = [f"word{number:02}x" for number in range(12)]
    one = engine(*(rule_text(f"{{sel: {{CommandLine|contains: {name}}}, condition: sel}}") for name in names))
    for number in range(1, 2**12, 11):
        there = [place for place in range(12) if number >> place & 1]
        text = " ".join(names[place] for place in there)
        found = [*one.match(batch([{"process.command_line": text}], WINDOWS))]
        assert [one.rules.index(rule) for _, rule in found] == there
        indexes = [index for plan in one.plans.values() for index in plan._looked_up[1].values()]
        assert sum(len(index._groups) for index in indexes) < 100


def test_fields_that_are_compared_are_not_remembered() -> None:
    detection = "{sel: {F|fieldref: winlog.event_data.G}, condition: sel}"
    before = predicate._text_test.cache_info().currsize
    events = [{FIELD: f"a{number}", "winlog.event_data.G": f"a{number}"} for number in range(20)]
    assert matching_rows(detection, events) == [*range(20)]
    assert predicate._text_test.cache_info().currsize < before + 5
