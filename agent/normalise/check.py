"""What a mapping must keep, checked with its examples. For our own mappings and for those of third parties.

An example is a record and the ECS fields that must come of it::

    - format: syslog                           # as in `--format` of `vedette normalise`
      line: "Jan  2 03:04:05 gate CEF:0|..."   # or record: an object, for a format of JSON
      as_of: "2024-05-01T12:00:00Z"            # when it was read; this time if left out
      mapping: linux                           # what reads it in the end, if not the mapping that is checked
      fields: {source.ip: 192.0.2.1, user.name: null}    # null: the document must not have it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import yaml

from agent.normalise.catalogue import catalogue
from agent.normalise.clock import parse as parse_time
from agent.normalise.mapping import MappingFile, installed
from agent.normalise.normaliser import Normaliser

_AS_OF = "2024-05-01T12:00:00Z"
_CATEGORIES = ("event.kind", "event.category", "event.type", "event.outcome")


def check_mapping(mapping: MappingFile, examples: str) -> None:
    """Raise AssertionError if *mapping* writes what it should not, or one of *examples* (YAML) comes out otherwise."""
    assert not (outside := _outside(mapping)), f"neither ECS nor under {mapping.prefix!r}: {', '.join(outside)}"
    others = [one for one in installed() if one.name != mapping.name]
    normaliser = Normaliser(lambda _kind: frozenset(), [*others, mapping])
    for number, example in enumerate(yaml.safe_load(examples), 1):
        check_example(normaliser, example, mapping.name, f"example {number}")


def check_example(normaliser: Normaliser, example: Mapping[str, Any], mapping: str, name: str) -> None:
    """Raise AssertionError unless *mapping* reads the example, all its fields are as stated and categories allowed."""
    raw = example["line"].encode() if "line" in example else orjson.dumps(example["record"])
    whole = normaliser.whole(example["format"], raw, as_of=parse_time(example.get("as_of", _AS_OF)))
    assert whole.mapping.name == example.get("mapping", mapping), f"{name}: read by the mapping {whole.mapping.name}"
    found = dict(_leaves(whole.document, ""))
    wrong = {field: found.get(field) for field, value in example["fields"].items() if found.get(field) != value}
    assert not wrong, f"{name}: {wrong}, expected { {field: example['fields'][field] for field in wrong} }"
    assert "event.kind" in found, f"{name}: no event.kind"
    for field in _CATEGORIES:
        values = found.get(field, [])
        odd = set(values if isinstance(values, list) else [values]) - catalogue().allowed[field]
        assert not odd, f"{name}: {field}: ECS does not allow {', '.join(map(str, odd))}"


def _outside(mapping: MappingFile) -> Sequence[str]:
    """Return the fields that *mapping* writes outside ECS and its vendor's prefix."""
    names = {name for layer in mapping.layers for name in (*layer.fields, *layer.constants, *layer.renames.values())}
    root = mapping.prefix.partition(".")[0] + "."
    return sorted(name for name in names if name not in catalogue().fields and not name.startswith(root))


def _leaves(document: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value
