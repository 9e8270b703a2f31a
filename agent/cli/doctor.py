"""`vedette doctor`: what is wrong, here and on the other side, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import CONFIG, AsJson, Config
from agent.errors import VedetteError

if TYPE_CHECKING:
    from agent.ports import Check, Sink, Source

_STYLES = {"changed": "cyan", "warning": "yellow", "failed": "bold red"}


def doctor(
    config: Config = CONFIG,
    bootstrap: Annotated[
        Path | None,
        typer.Option("--bootstrap", "-b", help="Look at this machine, the daemon, signatures and models too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong and what to do: at every source and sink and, with -b, here. Exit code 1 if something fails.

    Examples:
      vedette doctor -c vedette.yml
      vedette doctor -b bootstrap.yml
    """
    from agent import machine
    from agent.assemble import build_sink, build_source
    from agent.cli.config import examine
    from agent.config import load, load_bootstrap
    from agent.config.revision import FILE
    from agent.ports import Examinable

    if bootstrap is not None:
        where = load_bootstrap(bootstrap)
        config = where.configuration / FILE
    configuration, locator = load(config)
    checks: list[Check] = []
    running: dict[str, Check] = {}
    if bootstrap is not None:
        own = [("trust", one) for one in examine(bootstrap)]
        own += [("machine", one) for one in machine.examine(where, [*configuration.sinks])]
        for place, check in own:
            checks.append(check)
            show(place, check, as_json)
        running = _running(where.data)
    parts: list[tuple[str, Source | Sink]] = [
        *((f"source {name}", build_source(configuration, locator, name)) for name in configuration.sources),
        *((f"sink {name}", build_sink(configuration, locator, name)) for name in configuration.sinks),
    ]
    for place, part in parts:
        if isinstance(part, Examinable):
            found = part.examine()
        else:
            found = iter([running[place]]) if place in running else _opened(part)
        for check in found:
            checks.append(check)
            show(place, check, as_json)
        part.close()
    raise typer.Exit(1 if any(check.state == "failed" for check in checks) else 0)


def _running(data: Path) -> dict[str, Check]:
    """Return what the running daemon says of its sinks: what it holds open may not be opened twice."""
    from agent.control import ask
    from agent.ports import Check

    report = ask(data, {"do": "report"}) if data.exists() else None
    sinks = () if report is None else report["sinks"]
    return {
        f"sink {one['id']}": Check("daemon", "ok", "takes what it is given")
        if one["up"]
        else Check("daemon", "failed", one["reason"])
        for one in sinks
    }


def _opened(part: Source | Sink) -> Iterator[Check]:
    """Yield what opening a source or sink says that cannot look deeper."""
    from agent.ports import Check, Source

    try:
        if isinstance(part, Source):
            part.open(frozenset())
        else:
            part.open()
        yield Check("open", "ok", "can be opened")
    except VedetteError as error:
        yield Check("open", "failed", str(error))


def show(part: str, check: Check, as_json: bool) -> None:
    from agent.cli.terminal import print_json, safe, say

    if as_json:
        print_json(
            [{"part": part, "check": check.name, "state": check.state, "detail": check.detail, "remedy": check.remedy}]
        )
        return
    say(
        f"{check.state:8} {safe(part)}: {safe(check.name)}: {safe(check.detail.removeprefix(f'{part}: '))}",
        _STYLES.get(check.state, ""),
    )
    if check.remedy:
        say(f"         -> {safe(check.remedy)}")
