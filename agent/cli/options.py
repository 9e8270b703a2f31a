"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA = Path("/var/lib/vedette")

Data = Annotated[
    Path,
    typer.Option("--data", "-d", envvar="VEDETTE_DATA", help="Data folder: cursors, state, alerts, dead letters."),
]
Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="VEDETTE_CONFIG", help="Configuration file (vedette.yml).")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document a line on standard output.")]
CONFIG = Path("vedette.yml")
