"""What is in the generated logs (labels), and how alerts compare with it (scorecard).

A step is part of a story: an attack, or something odd and harmless. An alert belongs to a step if it cites one of the
step's records. A count over a window cites only a few of what it counted: it also belongs to a step of many records
inside the window, in the same kind of log, of the same entity. An alert that belongs to no step is a false alarm; one
that belongs to a harmless story is counted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from agent.alerting.document import value_at

Expectation = Literal["rule", "baseline", "missed", "quiet", "loud"]
"""What we think of a step: an attack that a rule sees, that only a baseline sees, that nothing sees yet;
something harmless that stays quiet, or that raises an alarm all the same."""

_MANY = 10


@dataclass(frozen=True)
class Step:
    """A part of a story: *events* records between *start* and *end* (ISO 8601, UTC) about *entities*.

    *places* says where they lie: file, and offset in its (unpacked) bytes.
    """

    id: str
    what: str
    technique: str
    expected: Expectation
    entities: Mapping[str, tuple[str, ...]]
    start: str = ""
    end: str = ""
    events: int = 0
    places: tuple[tuple[str, int], ...] = ()

    @property
    def logs(self) -> frozenset[str]:
        """The kinds of log (top folders) that hold the step."""
        return frozenset(file.partition("/")[0] for file, _ in self.places)


@dataclass(frozen=True)
class Story:
    id: str
    title: str
    harmless: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Labels:
    """The truth about a generated folder: records by file, and the stories in them."""

    seed: int
    day: str
    events: Mapping[str, int]
    stories: tuple[Story, ...]

    @property
    def total(self) -> int:
        return sum(self.events.values())

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)

    @classmethod
    def read(cls, path: Path) -> Labels:
        raw = orjson.loads(path.read_bytes())
        stories = tuple(_story(story) for story in raw.pop("stories"))
        return cls(**raw, stories=stories)


@dataclass(frozen=True)
class Verdict:
    """How one step fared: alerts by the name of the rule or detector that raised them."""

    story: Story
    step: Step
    alerts: Mapping[str, int]

    @property
    def caught(self) -> bool:
        return bool(self.alerts)


@dataclass(frozen=True)
class Scorecard:
    """Alerts against labels. An alert may belong to several steps; *false_alarms* belong to none, by rule."""

    verdicts: tuple[Verdict, ...]
    false_alarms: Mapping[str, int]
    alerts: int

    @property
    def attacks(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if not verdict.story.harmless)

    @property
    def harmless(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.story.harmless)

    @property
    def stories_caught(self) -> int:
        """Attacks of which at least one step was seen."""
        return len({verdict.story.id for verdict in self.attacks if verdict.caught})


def judge(labels: Labels, alerts: Iterable[Mapping[str, Any]]) -> Scorecard:
    """Compare alert documents (nested ECS) with *labels*."""
    steps = [(story, step) for story in labels.stories for step in story.steps]
    seen: list[Counter[str]] = [Counter() for _ in steps]
    stray: Counter[str] = Counter()
    total = 0
    for alert in alerts:
        total += 1
        facts = _Facts(alert, labels.events)
        homes = [number for number, (_, step) in enumerate(steps) if facts.belongs_to(step)]
        for number in homes:
            seen[number][facts.rule] += 1
        if not homes:
            stray[facts.rule] += 1
    verdicts = tuple(Verdict(story, step, dict(count)) for (story, step), count in zip(steps, seen, strict=True))
    return Scorecard(verdicts, dict(stray.most_common()), total)


class _Facts:
    """What an alert says about where, when and who."""

    def __init__(self, alert: Mapping[str, Any], files: Iterable[str]) -> None:
        self.rule = str(value_at(alert, "rule.name") or value_at(alert, "rule.id") or value_at(alert, "message"))
        cited = value_at(alert, "vedette.evidence.records") or []
        self._places = {(_file(str(record["path"]), files), str(record["key"])) for record in cited}
        self._logs = {file.partition("/")[0] for file, _ in self._places}
        self._start = _seconds(value_at(alert, "event.start") or alert["@timestamp"])
        self._end = _seconds(value_at(alert, "event.end") or alert["@timestamp"])
        self._entity: Mapping[str, str] = value_at(alert, "vedette.entity") or {}

    def belongs_to(self, step: Step) -> bool:
        return any((file, str(offset)) in self._places for file, offset in step.places) or self._counts(step)

    def _counts(self, step: Step) -> bool:
        """Is this a count over a window in which the step's many records lie?"""
        return (
            len(self._places) > 1
            and step.events >= _MANY
            and self._start <= _seconds(step.end)
            and self._end > _seconds(step.start)
            and not self._logs.isdisjoint(step.logs)
            and bool(self._entity)
            and all(value in step.entities.get(name, ()) for name, value in self._entity.items())
        )


def _file(path: str, files: Iterable[str]) -> str:
    """The labelled file that lies at *path*, wherever the folder is."""
    return max((file for file in files if path.endswith(f"/{file}")), key=len, default=path)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _place(raw: Sequence[Any]) -> tuple[str, int]:
    return str(raw[0]), int(raw[1])


def _story(raw: dict[str, Any]) -> Story:
    return Story(raw["id"], raw["title"], raw["harmless"], tuple(_step(step) for step in raw["steps"]))


def _step(raw: dict[str, Any]) -> Step:
    entities = {name: tuple(values) for name, values in raw.pop("entities").items()}
    return Step(**raw | {"entities": entities, "places": tuple(map(_place, raw["places"]))})
