"""The alert as a nested ECS document."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from agent.alerting.attack import threat
from agent.model import Finding, Level, Timestamp
from agent.normalise.catalogue import catalogue
from agent.normalise.clock import to_text as iso

SEVERITY: Mapping[Level, tuple[int, float]] = {
    "informational": (21, 10.0),
    "low": (21, 21.0),
    "medium": (47, 47.0),
    "high": (73, 73.0),
    "critical": (99, 99.0),
}
"""`event.severity` and `event.risk_score` by level, as Elastic Security reads them (equality on 21, 47, 73, 99)."""
ORIGINAL_CAP = 32_766
"""Characters of `event.original` that an alert carries; what is cut off is said in `vedette.original_cut`."""
EVIDENCE_CAP = 100
ALWAYS = (0, 0)
"""The window of a finding that is made once and for all."""
_VERSION = version("vedette")


def build(
    finding: Finding, id: str, source: Mapping[str, Any], *, tenant: str, stream: str, as_of: Timestamp, partial: bool
) -> dict[str, Any]:
    """Return the alert document for *finding* over *source*, the full ECS document of its (first) evidence.

    *partial* says that the evidence has vanished upstream and *source* is only what was projected.
    """
    about = finding.detector
    severity, risk = SEVERITY[about.level]
    event = dict(source.get("event") or {})
    start, end = finding.window or ALWAYS
    if start == end:
        start = end = finding.time
    categories = [one for one in _list(event.get("category")) if one != "intrusion_detection"]
    event |= {
        "kind": "alert" if finding.revision == "fired" else "event",
        "category": ["intrusion_detection", *categories],
        "type": ["info"],
        "id": id,
        "module": "vedette",
        "dataset": "vedette.alert",
        "severity": severity,
        "risk_score": risk,
        "risk_score_norm": risk,
        "reason": finding.explanation.sentence,
        "start": iso(start),
        "end": iso(end),
        "created": iso(as_of),
    }
    original = event.get("original")
    cut = 0
    if isinstance(original, str) and len(original) > ORIGINAL_CAP:
        cut = len(original) - ORIGINAL_CAP
        event["original"] = original[:ORIGINAL_CAP]
    document = {
        **source,
        "@timestamp": iso(as_of),
        "ecs": {"version": catalogue().version},
        "message": about.title,
        "event": event,
        "rule": _rule(finding),
        "observer": {"vendor": "Vedette", "product": "vedette", "type": "siem-agent", "version": _VERSION},
        "vedette": _own(finding, tenant, stream, partial, cut),
    }
    attack = threat(about.techniques, about.tactics)
    if attack:
        document["threat"] = attack
    return document


def value_at(document: Mapping[str, Any], name: str) -> Any:
    """Return what a nested document has at a dotted *name*; None if nothing."""
    found: Any = document
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def texts_at(document: Mapping[str, Any], name: str) -> list[str]:
    """Return the plain values that a nested document has at a dotted *name*, as texts."""
    found = value_at(document, name)
    values = found if isinstance(found, list | tuple) else [found]
    return [_text(one) for one in values if one is not None and not isinstance(one, list | tuple | dict)]


def _rule(finding: Finding) -> dict[str, Any]:
    """Return `rule.*`: whoever shares an alert of a DRL-licensed rule must keep its author."""
    about = finding.detector
    fields = {
        "id": about.id,
        "name": about.title,
        "description": about.description,
        "author": [about.author] if about.author else None,
        "license": about.license,
        "reference": about.references[0] if about.references else None,
        "ruleset": about.ruleset,
        "version": about.digest,
        "category": about.kind,
    }
    return {name: value for name, value in fields.items() if value}


def _own(finding: Finding, tenant: str, stream: str, partial: bool, cut: int) -> dict[str, Any]:
    """Return `vedette.*`: where it ran, why it fired, pointers to the evidence, and what the finding adds.

    A model adds `model.id`, `model.digest`, `model.signer` (text), `score.raw`, `score.p_value` and `score.budget`
    (numbers); windows add `evidence.total` (a number), what a cap has touched `capped` (true).
    """
    why = finding.explanation
    own: dict[str, Any] = {
        "revision": finding.revision,
        "tenant": tenant,
        "stream": stream,
        "detector": finding.detector.kind,
        "level": finding.detector.level,
        "explain": [
            {
                "field": factor.field,
                "observed": _text(factor.observed),
                "expected": _text(factor.expected),
                **({} if factor.contribution is None else {"contribution": factor.contribution}),
            }
            for factor in why.factors
        ],
        "evidence": {
            "state": "partial" if partial else "complete",
            "count": len(finding.evidence),
            "records": [
                {"id": one.identity, "source": one.source, "path": one.path, "key": str(one.key)}
                for one in finding.evidence[:EVIDENCE_CAP]
            ],
        },
    }
    if finding.entity:
        own["entity"] = dict(finding.entity)
    if finding.score is not None:
        own["score"] = {"value": finding.score}
    if why.maturity is not None:
        own["maturity"] = why.maturity
    if finding.detector.false_positives:
        own["false_positives"] = list(finding.detector.false_positives)
    if cut:
        own["original_cut"] = cut
    for name, value in finding.fields.items():
        if name.startswith("vedette."):
            _put(own, name.removeprefix("vedette.").split("."), value)
    return own


def _put(place: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
