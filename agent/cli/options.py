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
