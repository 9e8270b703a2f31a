"""The command line: one file a noun, and the commands that other rooms bring.

Exit codes: 0 fine, 1 found something, a check failed or it could not be done, 2 usage, 3 configuration, 4 trust
refused, 5 unreachable.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from agent import plugins
from agent.cli import (
    alerts,
    audit,
    canary,
    config,
    daemon,
    deadletter,
    demo,
    doctor,
    features,
    keys,
    model,
    normalise,
    run,
    siem,
)
from agent.errors import AccessDenied, ConfigError, RetryableError, TrustError, VedetteError

_CODES: tuple[tuple[type[VedetteError], int], ...] = (
    (ConfigError, 3),
    (TrustError, 4),
    (AccessDenied, 4),
    (RetryableError, 5),
    (VedetteError, 1),
)

app = typer.Typer(
    name="vedette",
    help="Security analytics for the SIEM you already have: logs in, alerts out, nothing lost, nothing doubled.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("init")(config.init)
app.command("run")(run.run)
app.command("plan")(run.plan)
app.command("demo")(demo.demo)
app.command("setup")(siem.setup)
app.command("status")(daemon.status)
app.command("pause")(daemon.pause)
app.command("resume")(daemon.resume)
app.command("doctor")(doctor.doctor)
app.command("canary")(canary.canary)
app.command("replay")(siem.replay)
app.command("features")(features.features)
app.command("normalise")(normalise.normalise)
app.add_typer(config.app, name="config")
app.add_typer(model.app, name="model")
app.add_typer(keys.app, name="access")
app.add_typer(alerts.app, name="alerts")
app.add_typer(audit.app, name="audit")
app.add_typer(deadletter.app, name="deadletter")


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"vedette {version('vedette')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of the `vedette` command."""
    for entry in plugins.commands():
        found = entry.load()
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=entry.name)
        else:
            app.command(entry.name)(found)
    try:
        app()
    except VedetteError as error:
        print(f"vedette: {error}", file=sys.stderr)
        sys.exit(next(code for kind, code in _CODES if isinstance(error, kind)))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def start() -> None:
    """Entry point of the process: `main`, but a scan ends at once.

    To take apart all that it holds, piece by piece, would be a tenth of its work. Nor does it multiply matrices:
    threads that wait for one would spin.
    """
    if is_scan := sys.argv[1:2] == ["scan"]:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code: int | str | None = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    if not is_scan or isinstance(code, str):
        sys.exit(code)
    with suppress(OSError, ValueError):  # whoever read it may be gone
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code or 0)
