"""`vedette deadletter`: records that could not be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import BOOTSTRAP, DATA, AsJson, Bootstrap, Data
from agent.control import login

if TYPE_CHECKING:
    from agent.config import Bootstrap as Where

app = typer.Typer(help="Look at records that could not be read, and try them again.", no_args_is_help=True)


@app.command("list")
def list_(
    data: Data = DATA,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the oldest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters: where each lies, why it could not be read, how it begins.

    Example: vedette deadletter list
    """
    from agent.cli.terminal import print_json, table
    from agent.normalise.clock import to_text
    from agent.store import Reader

    with Reader(data) as reader:
        letters = list(reader.dead_letters(limit))
    for letter in letters:
        raw = letter.pop("raw")
        letter["time"] = to_text(letter["time"])
        letter["begins"] = None if raw is None else raw[:200].decode("utf-8", "backslashreplace")
    if as_json:
        print_json(letters)
    else:
        table(
            ("seen (UTC)", "where", "at>", "bytes>", "reason", "begins"),
            (
                (one["time"][:19], one["path"], one["key"], one["size"], one["reason"], (one["begins"] or "")[:60])
                for one in letters
            ),
        )


@app.command()
def retry(bootstrap: Bootstrap = BOOTSTRAP) -> None:
    """Read dead letters again with today's mappings; what can be read now is scored and leaves the list.

    A running daemon does it; without one, the command does it itself with the configuration that was accepted last.

    Example: vedette deadletter retry -b bootstrap.yml
    """
    from agent.cli.terminal import say
    from agent.config import load_bootstrap
    from agent.control import ask

    where = load_bootstrap(bootstrap)
    answer = ask(where.data, {"do": "retry", "by": login()})
    retried = answer["retried"] if answer is not None else _retry_here(where)
    say(f"{retried} read and scored")


def _retry_here(where: Where) -> int:
    from agent.service import accepted_last, resumed, retry_dead_letters
    from agent.store import Reader, Store
    from agent.telemetry.logs import start_logging

    start_logging()

    accepted = accepted_last(where)
    store = Store(where.data)
    try:
        done = 0
        for name, section in accepted.configuration.streams.items():
            stream = resumed(accepted, name, store)
            with Reader(where.data) as reader:
                done += retry_dead_letters(stream, store, reader, sinks=section.sinks, by=login())
            stream.source.close()
        return done
    finally:
        store.close()
