"""What the commands of science read from disk: recipes, and logs without a daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent import plugins
from agent.config.load import read, read_yaml
from agent.errors import ConfigError
from agent.featurise.recipe import Recipe, parse
from agent.model import Records

_LIMIT = 8_192


def load(path: Path) -> Recipe:
    """Return the recipe in the YAML file *path*; ConfigError names file, line and key."""
    data, locator = read_yaml(read(path), path)
    return parse(data, locator)


class Logs:
    """Log files, folders or archives, read once and to their end; *notes* then says what of them was not read.

    *format* is that of their records; it is told by their content if it is ``auto``.
    """

    def __init__(self, paths: Sequence[Path], format: str = "auto") -> None:
        if missing := [str(path) for path in paths if not path.exists()]:
            raise ConfigError(f"no such file or folder: {', '.join(missing)}")
        self._options = {"paths": [str(path) for path in paths], "format": format}
        self.notes: Mapping[str, str] = {}

    def __iter__(self) -> Iterator[Records]:
        build = plugins.connector("files").source
        assert build is not None
        source = build("logs", self._options)
        source.open(frozenset())
        try:
            cursor, more = None, True
            while more:
                records = source.fetch(cursor, _LIMIT)
                cursor, more = records.cursor, len(records) > 0
                yield records
            self.notes = source.notes()
        finally:
            source.close()
