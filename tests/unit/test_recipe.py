"""Feature recipes as data: what may stand there, what is refused and where, and what the digest binds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError
from agent.featurise import recipe
from agent.featurise.recipe import MAX_COLUMNS, Recipe, parse, schema, schema_hash
from agent.science.inputs import load

ROW: dict[str, Any] = {"name": "r", "features": {"bytes": {"number": "source.bytes", "log": True}}}
WINDOW: dict[str, Any] = {
    "name": "w",
    "entity": ["user.name"],
    "window": "1h",
    "features": {"events": {"count": True}, "failed": {"share": {"event.outcome": "failure"}}},
}


@pytest.mark.parametrize("data", [ROW, WINDOW])
def test_a_recipe_is_read_back_from_its_own_data(data: Mapping[str, Any]) -> None:
    """The plain form, as a manifest carries it through JSON, is the same recipe with the same digest."""
    once = parse(data)
    again = json.loads(json.dumps(once.dump()))
    assert parse(again) == once
    assert schema_hash(again) == schema_hash(data)


def test_defaults_are_part_of_what_the_digest_binds() -> None:
    """Writing a default out, another form of a duration or another order of keys changes nothing."""
    spelt: dict[str, Any] = {
        "lateness": "300s",
        "version": 1,
        "where": {},
        "features": {"failed": {"share": {"event.outcome": ["failure"]}}, "events": {"log": False, "count": True}},
        "window": "60m",
        "entity": ["user.name"],
        "name": "w",
    }
    assert schema_hash(spelt) == schema_hash(WINDOW)
    assert schema_hash({**WINDOW, "window": "2h"}) != schema_hash(WINDOW)
    assert schema_hash({**WINDOW, "features": {"events": {"count": True}}}) != schema_hash(WINDOW)


def test_the_digest_binds_how_features_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no model runs on numbers other than those it has learnt."""
    now = schema_hash(WINDOW)
    monkeypatch.setattr(recipe, "_COMPUTED", recipe._COMPUTED + 1)
    assert schema_hash(WINDOW) != now


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"features": {"x": {"number": "source.bytes", "scale": 2}}}, "features.x.scale: unknown key"),
        ({"features": {"x": {"numbr": "source.bytes"}}}, "features.x: expected one of hour, weekday, number"),
        ({"features": {"x": {"number": "source.byts"}}}, "features.x.number: no field 'source.byts' in ECS"),
        ({"features": {"x": {"number": "source.byts"}}}, "did you mean source.bytes?"),
        ({"features": {"x": {"length": "SubjectSid_"}}}, "stand under their vendor's prefix"),
        ({"where": {"event.categry": ["x"]}}, "where.event.categry: no field"),
        ({"where": {"event.category": []}}, "where.event.category: "),
        ({"features": {}}, "features: "),
        ({"features": {"X": {"number": "source.bytes"}}}, "features.X: "),
        ({"features": {"x": {"hour": False}, "y": {"number": "source.bytes"}}}, "features.x.hour: "),
        ({"features": {"x": {"hour": True}}}, "at least one besides hour and weekday"),
        ({"features": {"x": {"count": True}}}, "features.x: count is not a row feature"),
        ({"entity": ["user.name"]}, "entity and window: expected both"),
        ({"window": "1h"}, "entity and window: expected both"),
        ({"name": "No Spaces"}, "name: "),
        ({"features": {f"x{n}": {"one_of": "user.name", "values": [*map(str, range(60))]} for n in range(5)}},
         f"come to 300 columns, at most {MAX_COLUMNS}"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_place(change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({**ROW, **change})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": "1x"}, "window: expected a duration"),
        ({"window": "30s"}, "window: expected at least 1m"),
        ({"entity": ["user.name"] * 5}, "entity: "),
        ({"features": {"x": {"rarity": "user.name"}}}, "features.x: rarity is not a window feature"),
        ({"features": {"x": {"count": {}}}}, "features.x.count"),
    ],
)
def test_what_is_wrong_with_a_window_is_refused_with_its_place(change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({**WINDOW, **change})
    assert said in str(error.value)


@pytest.mark.parametrize("field", ["source.ip", "winlog.event_data.TargetUserName", "labels.team", "@timestamp"])
def test_fields_of_ecs_and_of_vendors_are_known(field: str) -> None:
    assert parse({"name": "r", "features": {"x": {"present": field}}}).features["x"]


@pytest.mark.parametrize("data", [None, [], "text", {}, {"name": "r"}])
def test_what_is_no_recipe_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError):
        parse(data)


def test_a_file_is_refused_with_the_line_of_each_mistake(tmp_path: Path) -> None:
    """Two mistakes, two lines."""
    path = tmp_path / "recipe.yml"
    path.write_text("name: r\nfeatures:\n  a: {length: user.name}\n  b:\n    number: source.byts\nextra: 1\n")
    with pytest.raises(ConfigError) as error:
        load(path)
    assert f"{path}:5: features.b.number: no field" in str(error.value)
    assert f"{path}:6: extra: unknown key" in str(error.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text("name: r\nfeatures:\n  a: {length: user.name}\n")
    assert isinstance(load(path), Recipe)


def test_the_schema_for_editors_names_every_feature_and_forbids_the_rest() -> None:
    found = schema()
    assert found["additionalProperties"] is False
    assert {"Number", "OneOf", "Rarity", "Count", "Distinct", "Share", "Hour"} <= found["$defs"].keys()
    assert all(one["additionalProperties"] is False for one in found["$defs"].values())
