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
Bootstrap = Annotated[
    Path,
    typer.Option(
        "--bootstrap", "-b", envvar="VEDETTE_BOOTSTRAP", help="What names data folder, configuration and trust root."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document a line on standard output.")]
BOOTSTRAP = Path("/etc/vedette/bootstrap.yml")
CONFIG = Path("vedette.yml")
