"""Logs in, alerts out: the daemon's own way, without labels.

The logs go through the files source, the whole pipeline and the store; an alert is what the store holds. `observe` is
given contents only and writes them under numbers, so nothing that detects can read a label, not even in a file's name.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import plugins
from agent.alerting import Judge
from agent.model import Records
from agent.pipeline import Pipeline
from agent.ports import Detector
from agent.store import Reader, Store
from agent.stream import Stream, run_cycle

CONTENT = Path(__file__).parents[2] / "rules" / "content"
SIGMAHQ = Path("sigma/sigma-rules.tar.gz")
LIMIT = 8192

FAMILIES = ("SigmaHQ", "own rules", "baselines")
_LOGIN = {"event.category": ["authentication"]}
BASELINES: Mapping[str, Mapping[str, Any]] = {
    "new-address-of-user": {
        "type": "first-seen",
        "title": "User logged in from a new address",
        "techniques": ["T1078"],
        "where": {**_LOGIN, "event.outcome": ["success"]},
        "entity": ["user.name"],
        "value": ["source.ip"],
        "bucket": "1h",
    },
    "new-failing-address-of-host": {
        "type": "first-seen",
        "title": "Address that is new for a host fails to log in",
        "techniques": ["T1110"],
        "where": {**_LOGIN, "event.outcome": ["failure"]},
        "entity": ["host.name"],
        "value": ["source.ip"],
        "bucket": "1h",
    },
    "new-call-of-user": {
        "type": "first-seen",
        "title": "User made a cloud call that is new for this user",
        "techniques": ["T1078.004"],
        "where": {"event.dataset": ["aws.cloudtrail"]},
        "entity": ["user.name"],
        "value": ["event.provider", "event.action"],
        "bucket": "1h",
    },
    "failed-logins-of-host": {
        "type": "hour-of-week",
        "title": "Unusually many failed logins on a host",
        "techniques": ["T1110"],
        "where": {**_LOGIN, "event.outcome": ["failure"]},
        "entity": ["host.name"],
        "min_history": 24,
    },
    "requests-of-address": {
        "type": "hour-of-week",
        "title": "Unusually many web requests of an address",
        "techniques": ["T1595"],
        "where": {"event.category": ["web"]},
        "entity": ["source.ip"],
        "min_history": 24,
    },
}
"""Both baselines with hours in place of days, since the logs are hours to weeks long: learning takes three active hours
(first seen) or a day (hour of week). All else is default."""

Place = tuple[str, str]
"""File and position of an event."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An alert as its document states it; *places* are its evidence, *file* is where the first of it lies."""

    rule: str
    title: str
    family: str
    file: str
    places: tuple[Place, ...]
    techniques: frozenset[str]
    tactics: frozenset[str]
    entity: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass
class Observation:
    """What came of a set of logs: events and unreadable ones by file, alerts, and the events that were given names."""

    events: Counter[str]
    unreadable: Counter[str]
    alerts: list[Seen]
    names: dict[Place, str]

    @property
    def total(self) -> int:
        return self.events.total()

    def by_file(self) -> dict[str, list[Seen]]:
        found: dict[str, list[Seen]] = {name: [] for name in self.events}
        for alert in self.alerts:
            found[alert.file].append(alert)
        return found

    def named(self, alert: Seen) -> set[str]:
        """Return the names of the events that the alert is about."""
        return {self.names[place] for place in alert.places if place in self.names}


def build_detectors(data: Path, cache: Path) -> list[Detector]:
    """Return the two rule sets and the baselines; *cache* keeps compiled rules."""
    rules = {"sigmahq": {"type": "sigma", "path": str(data / SIGMAHQ)}, "own": {"type": "sigma", "path": str(CONTENT)}}
    return [_detector(id, dict(section), cache) for id, section in {**rules, **BASELINES}.items()]


def _detector(id: str, options: dict[str, Any], cache: Path) -> Detector:
    return plugins.detector(options.pop("type"))(id, options, cache)


def observe(
    logs: Mapping[str, bytes],
    detectors: Iterable[Detector],
    name_of: Callable[[bytes], str] | None = None,
    *,
    apart: bool = False,
) -> Observation:
    """Run *logs* (name -> content) as one stream, or *apart*: each as a stream of its own that knows nothing before.

    *name_of* gives an event a name by which alerts can be judged, or "".
    """
    seen = Observation(Counter(dict.fromkeys(logs, 0)), Counter(), [], {})
    for part in [{name: logs[name]} for name in logs] if apart else [logs]:
        with tempfile.TemporaryDirectory(prefix="vedette-evaluate-") as folder:
            _Run(Path(folder), part, detectors, seen).run(name_of)
    return seen


class _Run:
    """One stream over *logs*, with its store in *folder*; what comes of it is added to *seen*."""

    def __init__(
        self, folder: Path, logs: Mapping[str, bytes], detectors: Iterable[Detector], seen: Observation
    ) -> None:
        self._folder = folder
        self._written = _write(logs, folder / "logs")
        self._pipeline = Pipeline(list(detectors))
        self._seen = seen

    def run(self, name_of: Callable[[bytes], str] | None) -> None:
        make = plugins.connector("files").source
        assert make is not None
        source = make("logs", {"paths": [str(self._folder / "logs")]})
        store = Store(self._folder / "store")
        judge = Judge(self._pipeline.normaliser, tenant="default", stream="main", cap=None)
        stream = Stream("main", source, self._pipeline, judge, *store.load("main"))
        try:
            source.open(frozenset())
            records = run_cycle(stream, store, limit=LIMIT)
            while len(records) or records.unread:
                self._note(records, name_of)
                records = run_cycle(stream, store, limit=LIMIT)
        finally:
            source.close()
            store.close()
        self._read()

    def _note(self, records: Records, name_of: Callable[[bytes], str] | None) -> None:
        for chunk in records.chunks:
            self._seen.events[self._name(chunk.path)] += len(chunk.raw)
            for key, raw in zip(chunk.keys, chunk.raw, strict=True) if name_of else ():
                if name_of and isinstance(raw, bytes) and (name := name_of(raw)):
                    self._seen.names[self._place(chunk.path, key)] = name

    def _read(self) -> None:
        with Reader(self._folder / "store") as reader:
            documents = [alert["document"] for alert in reader.alerts()]
            self._seen.unreadable.update(self._name(letter["path"]) for letter in reader.dead_letters())
        self._seen.alerts += [self._alert(one) for one in documents if one["vedette"]["detector"] != "quality"]

    def _alert(self, document: Mapping[str, Any]) -> Seen:
        rule, threat, own = document["rule"], document.get("threat", {}), document["vedette"]
        technique = threat.get("technique", {})
        places = tuple(self._place(one["path"], one["key"]) for one in own["evidence"]["records"])
        return Seen(
            rule=rule["id"],
            title=rule["name"],
            family=_family(rule),
            file=places[0][0],
            places=places,
            techniques=frozenset([*technique.get("id", []), *technique.get("subtechnique", {}).get("id", [])]),
            tactics=frozenset(threat.get("tactic", {}).get("id", [])),
            entity=own.get("entity", {}),
        )

    def _place(self, path: str, key: int | str) -> Place:
        return self._name(path), f"{path.partition('!')[2]}#{key}"

    def _name(self, path: str) -> str:
        """Return the name of the log that we wrote: ``/tmp/.../logs/0003!member`` -> the name of number 0003."""
        return self._written[Path(path.partition("!")[0]).name]


def _write(logs: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """Write *logs* under numbers; return number -> name."""
    folder.mkdir()
    numbers = {f"{number:04}": name for number, name in enumerate(logs)}
    for number, name in numbers.items():
        (folder / number).write_bytes(logs[name])
    return numbers


def _family(rule: Mapping[str, Any]) -> str:
    if rule["category"] == "baseline":
        return "baselines"
    return "own rules" if rule["ruleset"] == CONTENT.name else "SigmaHQ"
