"""The exactness run, short at every push, long in the long run; and that its judge sees what is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.exactness import SHORT, Delivered, Oracle, Plan, Result, judge, run
from tests.siem import started

ORACLE = Oracle(acknowledged={"a", "b", "c"}, deleted={"c"}, updated={"b"})
GOOD = {"1": "a", "2": "b"}


def _judged(first: dict[str, str], second: dict[str, str], times: int = 1) -> Result:
    result = Result("test", "")
    delivered = [Delivered(Counter(dict.fromkeys(keys, 1)), dict(keys)) for keys in (first, second)]
    delivered[0].times["1"] = times
    judge(result, ORACLE, {"a", "b"}, *delivered)
    return result


@pytest.mark.parametrize("first", [GOOD, GOOD | {"3": "c"}], ids=["not alerted", "alerted"])
def test_a_deleted_document_may_have_an_alert_or_none(first: dict[str, str]) -> None:
    """It depends on whether it was read before it was gone."""
    result = _judged(first, GOOD)
    assert (result.wrong, result.alerts_of_gone) == ([], len(first) - 2)


@pytest.mark.parametrize(
    ("first", "second", "times", "field"),
    [
        ({"1": "a"}, {"1": "a"}, 1, "missing"),
        (GOOD, GOOD, 2, "double"),
        (GOOD | {"4": "a"}, GOOD | {"4": "a"}, 1, "double"),
        (GOOD | {"4": "x"}, GOOD | {"4": "x"}, 1, "unknown"),
        (GOOD, GOOD | {"3": "c"}, 1, "differs"),
        ({"1": "a", "5": "b"}, GOOD, 1, "differs"),
    ],
)
def test_the_judge_sees_what_is_wrong(
    first: dict[str, str], second: dict[str, str], times: int, field: str
) -> None:  # fmt: skip
    """Missed, twice under one id or two, made up, other ids the second time: each is told by name."""
    result = _judged(first, second, times)
    assert result.wrong
    assert getattr(result, field) > 0


def _run(tmp_path: Path, flavour: Literal["elasticsearch", "opensearch"], major: int, plan: Plan) -> Result:
    with started(flavour, major, nodes=2 if plan.during == "node-kill" else 1) as server:
        return run(tmp_path, server, plan)


@pytest.mark.servers
@pytest.mark.parametrize(("flavour", "major"), [("elasticsearch", 8), ("opensearch", 2)])
def test_nothing_is_missed_and_nothing_comes_twice(
    tmp_path: Path, flavour: Literal["elasticsearch", "opensearch"], major: int
) -> None:
    """Concurrent writers, updates, deletes, rollovers, changing refresh and SIGKILL, for a minute."""
    result = _run(tmp_path, flavour, major, SHORT)
    assert result.wrong == []
    assert result.kills == SHORT.kills


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("during", ["", "node-kill", "shrink", "restore", "match-everything"])
@pytest.mark.parametrize(
    ("flavour", "major"), [("elasticsearch", 8), ("elasticsearch", 9), ("opensearch", 2), ("opensearch", 3)]
)
def test_nothing_is_missed_whatever_else_happens(
    tmp_path: Path, flavour: Literal["elasticsearch", "opensearch"], major: int, during: str
) -> None:
    """The long run, and what lifecycle management, operators and hardware do to indices meanwhile."""
    plan = Plan() if not during else Plan(events=50_000, kills=8, during=during)
    assert _run(tmp_path, flavour, major, plan).wrong == []
