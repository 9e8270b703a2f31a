"""Hits and near misses: events that a rule must find and events that it must leave alone.

They lie beside the rule, ``name.test.json`` beside ``name.yml``::

    {"format": "json", "hits": [{"what": "why it is one", "event": {...}}], "misses": [...]}

``format`` is the records', as a source tells it; an event is an object, or a text where the log is lines. A correlation
needs several: ``events``. ``rule`` names the rule that is meant, by id or name, where the file holds more than one. A
folder of events holds log files instead, any that sources read: ``ID/hits/...`` and ``ID/misses/...``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agent.errors import ConfigError, VedetteError
from agent.model import Chunk, Finding, Records, Timestamp
from agent.pipeline import Pipeline
from agent.state import State
from rules.detector import SigmaDetector
from rules.junit import Check
from rules.running import Runner, fetches, log_source
from rules.sigma.correlation import Correlation
from rules.sigma.documents import Files
from rules.sigma.parse import Collection, Rule, compile_files
from rules.verdict import Library, judge

SUFFIX = ".test.json"


@dataclass(frozen=True)
class Case:
    """Events that a rule must find (*hit*) or must leave alone: of those in its file the first, or the one *rule*."""

    path: str
    rule: str
    what: str
    hit: bool
    format: str
    events: tuple[bytes, ...]


def read_cases(folder: Path, name: str) -> list[Case]:
    """Return the cases of the rule file *name* in *folder*, none if there are none; ConfigError if they are wrong."""
    file = (folder / name).with_suffix(SUFFIX)
    try:
        data = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"not a file of cases: {error}", str(file)) from error
    if not isinstance(data, dict) or not isinstance(data.get("format"), str):
        raise ConfigError("expected an object with format, hits and misses", str(file))
    if unknown := data.keys() - {"format", "rule", "hits", "misses"}:
        raise ConfigError(f"unknown key {min(unknown)}; there are: format, rule, hits, misses", str(file))
    return [
        _case(str(file), data, kind, number, case)
        for kind in ("hits", "misses")
        for number, case in enumerate(data.get(kind) or ())
    ]


def _case(file: str, data: dict[str, Any], kind: str, number: int, case: Any) -> Case:
    events = case.get("events", [case["event"]] if "event" in case else None) if isinstance(case, dict) else None
    if not isinstance(events, list) or not events or not all(isinstance(one, str | dict) for one in events):
        raise ConfigError(f"{kind}[{number}]: expected what and event, an object or a text, or a list of events", file)
    raws = tuple(one.encode() if isinstance(one, str) else orjson.dumps(one) for one in events)
    return Case(file, str(data.get("rule", "")), str(case.get("what", "")), kind == "hits", data["format"], raws)


class Trial:
    """The rules of a collection, each put to its cases."""

    def __init__(self, files: Files, as_of: Timestamp) -> None:
        """*as_of* is when the events are taken to be read: it says the year where a line does not."""
        self._library = Library(files)
        self._as_of = as_of
        self._collection = compile_files(files)
        self._all: list[Rule | Correlation] = [*self._collection.correlations[::-1], *self._collection.rules]
        alone = Collection(rules=self._collection.rules)  # a rule may be silent but for its correlation
        self._detectors = [SigmaDetector("rules", one, {}) for one in (alone, self._collection)]
        self._pipelines = [Pipeline([one]) for one in self._detectors]

    @property
    def refused(self) -> Sequence[str]:
        """Rules that cannot run, as ``file:line: reason``."""
        return self._collection.refused

    def find(self, case: Case) -> list[Finding]:
        """Return all that any rule finds in the events of *case*."""
        chunk = Chunk("case", case.path, case.format, range(len(case.events)), case.events)
        records = Records("case", (chunk,), {}, self._as_of)
        return [
            finding
            for pipeline in self._pipelines
            for finding in pipeline.evaluate(records, State().transaction()).findings
        ]

    def put(self, name: str, case: Case) -> Check:
        """Put the rule that the file *name* holds to *case*."""
        kind = "hit" if case.hit else "near miss"
        check = Check(name, f"{kind}: {case.what}", "")
        id = next((one.id for one in self._of(name) if case.rule in ("", one.id, one.name)), "")
        if not id:
            return check._replace(failure=f"no rule {case.rule} here that can run".replace("  ", " "))
        finding = next((one for one in self.find(case) if one.detector.id == id), None)
        if (finding is not None) is case.hit:
            return check
        return check._replace(failure=finding.explanation.sentence if finding else self._why_not(name, id, case))

    def _of(self, name: str) -> list[Rule | Correlation]:
        """Return what the file *name* holds, the outermost correlations first."""
        return [one for one in self._all if one.place.rpartition(":")[0] == name]

    def _why_not(self, name: str, id: str, case: Case) -> str:
        rule = next((one for one in self._library.rules(path=name) if one.rule.id == id), None)
        if rule is None:
            return f"a correlation that these {len(case.events)} events do not fulfil"
        try:
            return judge(rule, case.format, case.events[0], self._as_of).why_not()
        except VedetteError as error:
            return str(error)

    def put_logs(self, folder: Path) -> Iterator[Check]:
        """Put rules to the log files that lie in *folder*, by id: a match in each hit, none in any miss."""
        titles = {one.id: one.title for one in self._all}
        for place in sorted(one for one in folder.iterdir() if one.is_dir()):
            if place.name not in titles:
                yield Check(place.name, "events", f"{place} is named after the id of no rule that can run")
                continue
            for kind, hit in (("hits", True), ("misses", False)):
                for file in sorted((place / kind).iterdir()) if (place / kind).is_dir() else ():
                    number = self._count(place.name, file)
                    failure = "" if bool(number) is hit else f"{number or 'no'} matches in {file}"
                    yield Check(titles[place.name], f"{kind}: {file.name}", failure)

    def _count(self, id: str, file: Path) -> int:
        """Return how often the rule or correlation *id* fires on the log file."""
        for detector in self._detectors:
            source, runner = log_source([file]), Runner(detector)
            steps = (runner.step(records, source) for records in fetches(source))
            if number := sum(one.detector.id == id for step in steps for one in step.evaluation.findings):
                return number
        return 0
