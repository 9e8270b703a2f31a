"""The standard output sink: one document a line, flushed before the answer.

Nobody can look into what was printed, so a repeated document is printed again: at least once, not exactly once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from agent.errors import ConfigError
from agent.model import DELIVERED, Document, Outcome
from agent.ports import Connector
from connectors.ndjson import plan


class StdoutSink:
    """Prints documents to *stream*, by default the process's standard output."""

    def __init__(self, id: str, stream: BinaryIO | None = None) -> None:
        self.id = id
        self._stream = stream

    def open(self) -> None:
        """Nothing to prove: the stream is there or the first write says that it is not."""

    def write(self, documents: Sequence[Document]) -> Sequence[Outcome]:
        outcomes, lines = plan(documents, set())
        try:
            stream = self._stream or sys.stdout.buffer
            stream.write(b"".join(lines))
            stream.flush()
        except (OSError, ValueError) as error:
            return [outcome or Outcome("retryable", f"cannot print: {error}") for outcome in outcomes]
        return [outcome or DELIVERED for outcome in outcomes]

    def close(self) -> None:
        """Nothing to do: the stream is not ours."""


def build(id: str, options: Mapping[str, Any]) -> StdoutSink:
    """Return the sink; there is nothing to set, so any option is a ConfigError."""
    if options:
        raise ConfigError(f"sink {id}: unknown option {next(iter(options))!r}; 'stdout' takes none")
    return StdoutSink(id)


connector = Connector(sink=build)
