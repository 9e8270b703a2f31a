"""Small models for tests: made-up logons, trained on through the real pipeline."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import orjson

from agent.alerting.judge import nest
from agent.detect.model import ModelDetector, load
from agent.featurise.features import Featuriser
from agent.featurise.recipe import Recipe, parse
from agent.model import SECOND, Chunk, Records
from agent.normalise.clock import to_text
from agent.science.train import Options, train
from agent.trust.manifest import parse as parse_manifest

HOUR = 3_600 * SECOND
DAY = 24 * HOUR
NOW = 20_500 * DAY
"""When the models are made; their logs lie before."""
BEGIN = NOW - 40 * DAY

ROWS: Mapping[str, Any] = {
    "name": "logon-rows",
    "where": {"event.category": ["authentication"], "event.outcome": ["success"]},
    "features": {
        "address": {"rarity": "source.ip"},
        "inside": {"private_address": "source.ip"},
        "user": {"rarity": "user.name"},
        "hour": {"hour": True},
    },
}
WINDOWS: Mapping[str, Any] = {
    "name": "logon-windows",
    "where": {"event.category": ["authentication"]},
    "entity": ["user.name"],
    "window": "1h",
    "features": {
        "logons": {"count": True, "log": True},
        "sources": {"distinct": "source.ip"},
        "bytes": {"sum": "source.bytes"},
        "mean": {"mean": "source.bytes"},
        "failed": {"share": {"event.outcome": ["failure"]}},
        "hour": {"hour": True},
    },
}


def logon(time: int, user: str, address: str, **more: Any) -> dict[str, Any]:
    """Return one event as dotted ECS fields."""
    fields = {"event.category": "authentication", "event.outcome": "success", "user.name": user, "source.ip": address}
    return {"@timestamp": time, **fields, **more}


@cache
def history(days: int = 30) -> Sequence[Mapping[str, Any]]:
    """Four users, each with an address of their own, a few logons in each working hour of each day.

    Now and then somebody errs, comes from elsewhere, works late or sends more: what never varies teaches nothing.
    """
    chance = random.Random(1)
    return sorted(
        (
            _one(chance, BEGIN + day * DAY + hour * HOUR + n * 60 * SECOND, number, user)
            for day in range(days)
            for hour in range(8, 18)
            for number, user in enumerate(("alice", "bob", "carol", "dan"))
            for n in range(chance.randint(1, 4))
        ),
        key=lambda event: int(event["@timestamp"]),
    )


def _one(chance: random.Random, time: int, number: int, user: str) -> dict[str, Any]:
    address = f"10.0.0.{number}" if chance.random() < 0.95 else f"10.0.1.{chance.randrange(40)}"
    return logon(
        time if chance.random() < 0.97 else time + chance.randrange(2, 8) * HOUR,
        user,
        address if chance.random() < 0.99 else f"198.51.100.{chance.randrange(40)}",
        **{
            "source.bytes": round(chance.lognormvariate(5, 1)),
            "event.outcome": "success" if chance.random() < 0.97 else "failure",
        },
    )


def records(events: Iterable[Mapping[str, Any]], *, size: int = 500, as_of: int = NOW) -> list[Records]:
    """Return *events* as fetches of JSON documents, as a source gives them; an empty one ends them."""
    written = ({**event, "@timestamp": to_text(event["@timestamp"]), "ecs.version": "8"} for event in events)
    raw = [orjson.dumps(nest(event)) for event in written]
    fetches = [
        Records(
            "s",
            (Chunk("p", "/p", "json", range(at, at + len(raw[at : at + size])), raw[at : at + size]),),
            {"at": at},
            as_of,
            frozenset({"p"}),
        )
        for at in range(0, len(raw), size)
    ]
    return [*fetches, Records("s", (), {"at": len(raw)}, as_of)]


def recipe(data: Mapping[str, Any], **more: Any) -> Recipe:
    return parse({**data, **more})


def options(**more: Any) -> Options:
    return Options(**{"title": "Unusual logons", "source": "made up", "command": "t", "by": "t", "now": NOW, **more})


_trained: dict[str, dict[str, bytes]] = {}


def artifact(data: Mapping[str, Any], **more: Any) -> dict[str, bytes]:
    """Return the files of a model that has learnt `history` by the recipe *data*; trained once a session."""
    wanted = recipe(data, **more)
    key = wanted.model_dump_json()
    if key not in _trained:
        _trained[key] = train(wanted, records(history()), options())
    return _trained[key]


def detector(
    files: Mapping[str, bytes], *, share: float = 0.01, shadow: bool = False, max_windows: int | None = None
) -> ModelDetector:
    """Return the model as a detector that finds the most unusual *share* of what is like its calibration.

    One of windows may be told how many it may hold open.
    """
    manifest, loaded = parse_manifest(files["manifest.json"]), load(files)
    if max_windows is not None:
        loaded = replace(loaded, featuriser=Featuriser(loaded.featuriser.recipe, max_windows=max_windows))
    budget = manifest.calibration.rows_per_day * share
    return ModelDetector(manifest.id, loaded, manifest, digest="d" * 64, signer="5" * 64, budget=budget, shadow=shadow)
