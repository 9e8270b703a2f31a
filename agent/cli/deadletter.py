"""`vedette deadletter`: records that could not be read."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli.options import CONFIG, DATA, AsJson, Config, Data

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
def retry(config: Config = CONFIG, data: Data = DATA) -> None:
    """Read dead letters again with today's mappings; what can be read now is scored and leaves the list.

    A running daemon does it; without one, the command does it itself with the configuration.

    Example: vedette deadletter retry -c vedette.yml
    """
    from agent.cli.terminal import say
    from agent.control import ask

    answer = ask(data, {"do": "retry"})
    retried = answer["retried"] if answer is not None else _retry_here(config, data)
    say(f"{retried} read and scored")


def _retry_here(config: Config, data: Data) -> int:
    from agent.assemble import build_stream
    from agent.config import load
    from agent.service import retry_dead_letters
    from agent.store import Reader, Store

    configuration, locator = load(config)
    store = Store(data)
    try:
        done = 0
        for name, section in configuration.streams.items():
            stream = build_stream(configuration, locator, name, store)
            with Reader(data) as reader:
                done += retry_dead_letters(stream, store, reader, sinks=section.sinks)
            stream.source.close()
        return done
    finally:
        store.close()
