"""The canary: proof that a log still goes all the way, from where it is written to the alert at every sink.

An event whose *field* has ``vedette-canary:`` and a token in it makes one finding, whose id depends on the token and
nothing else: a canary that is read twice, or by two ways, is one alert. Class ``set``. `vedette canary` writes one and
waits for its alert.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.alerting.document import ALWAYS
from agent.detect.windows import FieldName, FieldView, rank
from agent.errors import ConfigError
from agent.model import Batch, Description, Explanation, Finding, Kind, PerValue, Reference, Timestamp, Value
from agent.ports import Detector, StateView

MARK = "vedette-canary:"
TOKEN = re.compile(r"[A-Za-z0-9-]{8,64}")
MOST = 100
"""Tokens of one batch that are found; whoever can write into a log can write more."""
CANARY = Description(
    id="vedette.canary",
    title="Canary",
    kind="quality",
    level="informational",
    description="A test event has gone the whole way from its log to this alert: 'vedette canary'.",
    author="Vedette",
)
_MARKED = re.compile(rf"{MARK}({TOKEN.pattern})(?![A-Za-z0-9-])")


class CanaryOptions(BaseModel):
    """What may stand under a detector of type ``canary``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: FieldName = Field(default="message", description="Where an event has the canary's text.")


def build(id: str, options: Mapping[str, Any], cache: Path | None) -> Detector:  # noqa: ARG001 (nothing to compile)
    """Build a canary detector; ConfigError names wrong options. Its own id is always that of its alerts' rule."""
    try:
        return Canary(CanaryOptions.model_validate(dict(options)))
    except ValidationError as error:
        raise ConfigError("; ".join(f"detectors.{id}.{_say(one)}" for one in error.errors())) from None


def found(token: str, time: Timestamp, evidence: tuple[Reference, ...], row: int | None = None) -> Finding:
    """Return what is said of the canary *token*."""
    return Finding(
        detector=CANARY,
        time=time,
        evidence=evidence,
        explanation=Explanation(f"The canary {token} has arrived."),
        entity=(("vedette.canary.id", token),),
        window=ALWAYS,
        key=token,
        row=row,
    )


class Canary:
    id = CANARY.id
    order: Literal["set", "sequence"] = "set"

    def __init__(self, options: CanaryOptions) -> None:
        self._field = options.field
        self._tokens = PerValue(_tokens)

    def fields(self, kind: Kind) -> frozenset[str]:
        return frozenset({self._field}) - kind.constant.keys()

    def plan(self) -> Mapping[str, Any]:
        return {"id": self.id, "type": "canary", "fields": [self._field], "most_in_a_batch": MOST}

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        view = FieldView(events, self._field)
        marked = {code: tokens for code, tokens in view.apply(self._tokens).items() if tokens}
        if not marked:
            return []
        rows = np.flatnonzero(np.isin(view.codes, list(marked)))
        _, first = np.unique(view.codes[rows], return_index=True)
        by_token: dict[str, int] = {}
        for row in np.sort(rows[first]).tolist():
            for token in marked[int(view.codes[row])]:
                by_token.setdefault(token, row)
        if len(by_token) > MOST:
            state.count("capped", len(by_token) - MOST)
        kept = heapq.nsmallest(MOST, by_token, key=rank)
        return [
            found(token, int(events.time[row]), (events.reference(row),), row)
            for token, row in ((token, by_token[token]) for token in kept)
        ]

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:  # noqa: ARG002 (nothing waits)
        return []


def _tokens(value: Value) -> tuple[str, ...]:
    if isinstance(value, str):  # once for each distinct value: of nearly all, only this is looked at
        return tuple(_MARKED.findall(value)) if MARK in value else ()
    return tuple(token for text in value for token in _tokens(text)) if isinstance(value, tuple) else ()


def _say(problem: Any) -> str:
    text = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
    return f"{'.'.join(map(str, problem['loc']))}: {text}"
