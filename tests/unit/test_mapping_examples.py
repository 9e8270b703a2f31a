"""Examples of every mapping: lines and records made up by us, and what must come of them (`tests/mappings/*.yml`).

`agent.normalise.check` says how an example is written; a value of null says that the document has no such field.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from agent.alerting.document import value_at
from agent.model import Chunk, Records
from agent.normalise import Normaliser
from agent.normalise.check import check_example, check_mapping
from agent.normalise.clock import parse as parse_time
from agent.normalise.mapping import parse, shipped

AS_OF = parse_time("2026-11-21T00:00:00Z")
FOLDER = Path(__file__).parents[1] / "mappings"
EXAMPLES = [
    pytest.param(path.stem, example, id=f"{path.stem}-{number}")
    for path in sorted(FOLDER.glob("*.yml"))
    for number, example in enumerate(yaml.safe_load(path.read_text("utf-8")), 1)
]
OWN = """
mapping: own
format: json
prefix: own.
shapes: {record: {when: [door], time: [at]}}
kinds:
  - constants: {event.kind: event, event.category: [authentication]}
    renames: {by: user.name, door: own.door}
"""


@cache
def normaliser() -> Normaliser:
    return Normaliser(lambda kind: frozenset())


@cache
def telling() -> Normaliser:
    """One that reads what kinds say is absent."""
    return Normaliser(lambda kind: kind.absent)


@pytest.mark.parametrize(("mapping", "example"), EXAMPLES)
def test_examples_become_what_they_should(mapping: str, example: dict[str, Any]) -> None:
    """An example is read by its mapping; its document has the fields stated, and categories that ECS allows."""
    check_example(normaliser(), example, mapping, "the example")


@pytest.mark.parametrize(("mapping", "example"), EXAMPLES)
def test_what_a_kind_says_is_absent_is_in_no_document(mapping: str, example: dict[str, Any]) -> None:
    """Rules are not evaluated over fields that a kind cannot have: its rows and documents must have none of them."""
    raw = example["line"].encode() if "line" in example else orjson.dumps(example["record"])
    records = Records("s", (Chunk("p", "f", example["format"], range(1), [raw]),), {}, AS_OF)
    batch = telling()(records, {}).batch
    absent = batch.kinds[0].absent
    document = telling().document(example["format"], raw, as_of=AS_OF)
    assert {name: (batch.value(0, name), value_at(document, name)) for name in absent} == dict.fromkeys(
        absent, (None, None)
    ), mapping


def test_every_mapping_has_examples() -> None:
    """No mapping is without examples, and no file of examples without a mapping."""
    assert {path.stem for path in FOLDER.glob("*.yml")} == {mapping.name for mapping in shipped()}


def test_a_third_partys_mapping_is_checked_beside_ours() -> None:
    """A mapping that is not installed passes with examples that hold."""
    check_mapping(
        parse(OWN, "own.yml"), "- {format: json, record: {door: 4, by: ann}, fields: {user.name: ann, user.id: }}"
    )


@pytest.mark.parametrize(
    ("mapping", "example", "says"),
    [
        (OWN.replace("own.door", "door"), "[]", "neither ECS nor under 'own.': door"),
        (
            OWN,
            "- {format: json, record: {door: 4, by: ann}, fields: {user.name: bob}}",
            "example 1: {'user.name': 'ann'}",
        ),
        (OWN, "- {format: json, record: {door: 4, by: ann}, fields: {user.name: }}", "example 1: {'user.name': 'ann'}"),
        (OWN, "- {format: json, record: {by: ann}, fields: {}}", "example 1: read by the mapping json"),
        (OWN.replace("event.kind: event, ", ""), "- {format: json, record: {door: 4}, fields: {}}", "no event.kind"),
    ],
)
def test_what_a_mapping_does_wrong_is_said(mapping: str, example: str, says: str) -> None:
    """Names outside ECS, other values than stated, another mapping's record and a missing kind fail the check."""
    with pytest.raises(AssertionError, match=says.replace("{", r"\{")):
        check_mapping(parse(mapping, "own.yml"), example)
