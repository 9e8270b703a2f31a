"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.errors import ConfigError

DATA = Path("/var/lib/vedette")

Data = Annotated[
    Path,
    typer.Option("--data", "-d", envvar="VEDETTE_DATA", help="Data folder: cursors, state, alerts, dead letters."),
]
Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="VEDETTE_CONFIG", help="Configuration file (vedette.yml).")
]


def _named(file: Path) -> Path:
    if file == BOOTSTRAP and not file.exists():
        raise ConfigError("no such file; name yours with -b, or make one: 'vedette init'", str(file))
    return file


Bootstrap = Annotated[
    Path,
    typer.Option(
        "--bootstrap",
        "-b",
        envvar="VEDETTE_BOOTSTRAP",
        help="What names data folder, configuration and trust root.",
        callback=_named,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document a line on standard output.")]
BOOTSTRAP = Path("/etc/vedette/bootstrap.yml")
CONFIG = Path("vedette.yml")


def instant(text: str) -> int:
    """Return the time that an option names, in microseconds: in UTC unless it says otherwise."""
    from datetime import UTC, datetime

    from agent.normalise.clock import from_datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-11-01 or 2026-11-01T12:00Z") from None
    return from_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
