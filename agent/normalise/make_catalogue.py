"""Write `ecs.txt`, the field catalogue, from the `ecs_flat.yml` that the ECS project generates.

    python -m agent.normalise.make_catalogue ecs_flat.yml[.gz] VERSION > agent/normalise/ecs.txt

Facts only: name, type, level, whether the field holds a list, and the allowed values of the categorisation fields.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_HEADER = """\
# Field names, types and allowed values of the Elastic Common Schema (https://github.com/elastic/ecs).
# Copyright Elasticsearch B.V. and contributors. Licensed under the Apache License, Version 2.0 (SPDX: Apache-2.0).
# Made by agent/normalise/make_catalogue.py; do not edit.\
"""


def lines(fields: Mapping[str, Mapping[str, Any]], version: str) -> Iterator[str]:
    """Yield the catalogue line by line, sorted by field name."""
    yield _HEADER
    yield f"version {version}"
    for name, facts in sorted(fields.items()):
        array = " array" if "array" in facts.get("normalize", ()) else ""
        yield f"field {name} {facts['type']} {facts['level']}{array}"
    for name, facts in sorted(fields.items()):
        if allowed := facts.get("allowed_values"):
            yield f"allowed {name} {' '.join(value['name'] for value in allowed)}"


def main(path: str, version: str) -> None:
    data = Path(path).read_bytes()
    fields = yaml.safe_load(gzip.decompress(data) if path.endswith(".gz") else data)
    sys.stdout.write("\n".join(lines(fields, version)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
