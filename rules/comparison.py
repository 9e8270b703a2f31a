"""What rules find on the same events: counted and held against what was expected, or against other rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from agent.config.load import read, read_yaml
from agent.errors import ConfigError
from agent.model import SECOND, Alert, Description, Timestamp
from agent.normalise.clock import to_text
from agent.ports import Source
from rules.detector import SigmaDetector, silenced
from rules.junit import Check
from rules.running import Runner, Span, fetches
from rules.sigma.correlation import Correlation

_YEAR_1 = -62_135_596_800 * SECOND
"""Before it there is no time."""


class Found(NamedTuple):
    """An alert, as far as people tell alerts apart."""

    id: str
    rule: str
    title: str
    time: str
    place: str


@dataclass
class Change:
    """The alerts of one rule that only the old or only the new collection makes, and how many both do."""

    title: str
    lost: list[Found] = field(default_factory=list)
    gained: list[Found] = field(default_factory=list)
    both: int = 0


def differences(old: SigmaDetector, new: SigmaDetector, source: Source) -> dict[str, Change]:
    """Return by rule what *new* makes of the events of *source* that *old* does not, and the reverse.

    Alerts are the same if their ids are: of one rule, about the same events or the same window.
    """
    changes: dict[str, Change] = {}
    only_old: dict[str, Found] = {}
    only_new: dict[str, Found] = {}
    runners = Runner(old), Runner(new)
    for records in fetches(source):
        for runner, mine, others in zip(runners, (only_old, only_new), (only_new, only_old), strict=True):
            for found in _found(runner.step(records, source).alerts):
                change = changes.setdefault(found.rule, Change(found.title))
                if others.pop(found.id, None):
                    change.both += 1
                else:
                    mine[found.id] = found
    for found in only_old.values():
        changes[found.rule].lost.append(found)
    for found in only_new.values():
        changes[found.rule].gained.append(found)
    return changes


def _found(alerts: Any) -> Iterator[Found]:
    alert: Alert
    for alert in alerts:
        if alert.revision == "fired":
            records = alert.document["vedette"]["evidence"]["records"]
            place = f"{records[0]['path']}:{records[0]['key']}" if records else ""
            yield Found(alert.id, alert.rule_id, alert.title, to_text(alert.time), place)


@dataclass(frozen=True)
class Backtest:
    """How many alerts each rule made of how many events; *late* events came too late for a correlation."""

    rules: Mapping[str, Description]
    counts: Mapping[str, int]
    events: int
    late: int

    def checks(self, expected: Mapping[str, int]) -> list[Check]:
        """Return for each rule that alerts, or should, whether it made as many alerts as expected; unnamed ones none.

        A rule that is expected and does not run fails whatever the number.
        """
        checks = []
        for id in sorted({*expected, *self.counts}):
            wanted, number = expected.get(id, 0), self.counts.get(id, 0)
            title = self.rules[id].title if id in self.rules else id
            failure = (
                f"rule {id} does not run: it is not among these rules, or cannot"
                if id not in self.rules
                else f"rule {id}: expected {wanted} alerts, got {number}"
                if wanted != number
                else ""
            )
            checks.append(Check(title, "alerts", failure))
        return checks


def backtest(detector: SigmaDetector, source: Source, span: Span) -> Backtest:
    """Return what *detector* makes of what happened in *span* of what *source* gives."""
    runner, counts, events, late = Runner(detector, span=span), Counter[str](), 0, 0
    for records in fetches(source, runner.pipeline.projection()):
        step = runner.step(records, source)
        events += len(records)
        late += step.late
        counts.update(found.rule for found in _found(step.alerts))
    return Backtest({one.id: one for one in detector.rules()}, counts, events, late)


def warm_from(correlations: Sequence[Correlation], begin: Timestamp) -> Timestamp:
    """Return since when events decide what *correlations* find from *begin* on; *begin* if there are none.

    What tumbles needs its window whole. What slides has one alert a window, at its first trigger: whether there was one
    before *begin* is decided by events up to a time span older than the window. What others take is needed for as long
    before the first trigger that they need. Events that came late need no more: they are asked for by their own time.
    """
    silent = silenced(correlations)
    triggers: dict[str, Timestamp] = {}
    first = begin
    for one in reversed(correlations):  # those that take others' triggers come after them
        window = begin // one.timespan * one.timespan
        needed = [] if one.id in silent else [window - one.timespan if one.monotone else window]
        if one.id in triggers:
            since = triggers[one.id]
            needed.append(since - one.timespan if one.monotone else since // one.timespan * one.timespan)
        for rule in one.rules:
            triggers[rule] = min(triggers.get(rule, begin), *needed)
        first = min(first, *needed)
    return max(first, _YEAR_1)


def read_expected(file: Path) -> dict[str, int]:
    """Return the numbers of alerts by rule id in a YAML or JSON file; ConfigError names what is wrong, and where."""
    data, locator = read_yaml(read(file), file)
    if not isinstance(data, dict):
        raise ConfigError("expected a mapping of rule ids to numbers of alerts", str(file))
    for id, number in data.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{id}: expected a number of alerts, got {number!r}", locator(id))
    return data
