"""Views over stored alerts: whom they are about, how much risk that is, and which of them belong together.

Nothing here is part of an alert's id or of a threshold. An alert that an analyst has found false or benign counts for
nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.alerting.document import texts_at
from agent.model import Timestamp

FIELDS = ("host.name", "user.name", "source.ip", "destination.ip")
"""The fields of an alert that name an entity."""
SETTLED = frozenset({"false-positive", "benign"})
_CEILING = 2.612
"""The sum of ``n ** -1.5``: what an entity with endless alerts of full score comes to."""

Entity = tuple[str, str]
Alert = Mapping[str, Any]
"""An alert as `Reader.alerts` gives it."""


@dataclass(frozen=True)
class Risk:
    """How much risk an entity is at, 0 to 100, and what makes most of it."""

    entity: Entity
    score: float
    alerts: int
    last: Timestamp
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Incident:
    """Alerts that share entities, each within the gap of another."""

    id: str
    start: Timestamp
    end: Timestamp
    level: str
    entities: tuple[Entity, ...]
    alerts: tuple[str, ...]
    rules: tuple[str, ...]
    techniques: tuple[str, ...]


def entities(alert: Alert) -> list[Entity]:
    """Return whom an alert is about: hosts, users and addresses, names in lower case."""
    found: list[Entity] = []
    for name in FIELDS:
        for one in texts_at(alert["document"], name):
            if one and (name, one.lower()) not in found:
                found.append((name, one.lower()))
    return found


def _counts(alert: Alert) -> bool:
    return alert["verdict"] not in SETTLED


def risks(alerts: Iterable[Alert], now: Timestamp, half_life: int) -> list[Risk]:
    """Return the entities by risk, the highest first.

    An alert's own score loses half of its weight in *half_life* (microseconds). The greatest counts whole, the n-th
    ``n ** -1.5`` of it, so that many small ones do not outweigh a grave one; of one rule only the greatest of an hour
    counts.
    """
    scores: dict[Entity, dict[tuple[str, int], float]] = defaultdict(dict)
    titles: dict[Entity, Counter[str]] = defaultdict(Counter)
    last: dict[Entity, Timestamp] = {}
    number: Counter[Entity] = Counter()
    for alert in filter(_counts, alerts):
        weight = 0.5 ** (max(0, now - alert["time"]) / half_life)
        score = float(alert["document"]["event"]["risk_score"]) * weight
        key = alert["rule_id"], alert["time"] // 3_600_000_000
        for entity in entities(alert):
            number[entity] += 1
            last[entity] = max(last.get(entity, alert["time"]), alert["time"])
            if score > scores[entity].get(key, 0.0):
                titles[entity][alert["title"]] += score - scores[entity].get(key, 0.0)
                scores[entity][key] = score
    found = [
        Risk(
            entity,
            sum(one * place**-1.5 for place, one in enumerate(sorted(each.values(), reverse=True), 1)) / _CEILING,
            number[entity],
            last[entity],
            tuple(title for title, _ in titles[entity].most_common(3)),
        )
        for entity, each in scores.items()
    ]
    return sorted(found, key=lambda one: (-one.score, one.entity))


def incidents(alerts: Sequence[Alert], gap: int, levels: Sequence[str]) -> list[Incident]:
    """Return the incidents that *alerts*, in order of time, fall into, the oldest first.

    Two alerts are of one incident if they share an entity and lie within *gap* (microseconds), directly or by others.
    *levels* are all levels, the least grave first.
    """
    kept = [alert for alert in alerts if _counts(alert)]
    parent = list(range(len(kept)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    latest: dict[Entity, int] = {}
    for place, alert in enumerate(kept):
        for entity in entities(alert):
            before = latest.get(entity)
            if before is not None and alert["time"] - kept[before]["time"] <= gap:
                parent[max(root(before), root(place))] = min(root(before), root(place))
            latest[entity] = place
    groups: dict[int, list[Alert]] = defaultdict(list)
    for place, alert in enumerate(kept):
        groups[root(place)].append(alert)
    return [_incident(group, levels) for group in groups.values()]


def _incident(group: Sequence[Alert], levels: Sequence[str]) -> Incident:
    shared = Counter(entity for alert in group for entity in entities(alert))
    most = [entity for entity, _ in sorted(shared.items(), key=lambda item: (-item[1], item[0]))]
    return Incident(
        id=group[0]["id"],
        start=group[0]["time"],
        end=group[-1]["time"],
        level=max((alert["level"] for alert in group), key=levels.index),
        entities=tuple(most),
        alerts=tuple(alert["id"] for alert in group),
        rules=tuple(dict.fromkeys(alert["title"] for alert in group)),
        techniques=tuple(sorted({one for alert in group for one in _techniques(alert)})),
    )


def _techniques(alert: Alert) -> Iterator[str]:
    for name in ("threat.technique.id", "threat.technique.subtechnique.id"):
        yield from texts_at(alert["document"], name)
