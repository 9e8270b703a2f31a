"""Commands to the running daemon: `vedette pause`, `resume`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agent.cli.options import BOOTSTRAP, AsJson, Bootstrap

Stream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream, as the configuration calls it.")]


def pause(stream: Stream, bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """Let a stream fetch nothing until 'vedette resume'; what it has read is delivered, and nothing else changes.

    It stays paused over a restart. Who paused it and when is on record.

    Example: vedette pause main -b bootstrap.yml
    """
    _tell("pause", stream, bootstrap, as_json)


def resume(stream: Stream, bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """Let a paused stream go on where it stood.

    Example: vedette resume main -b bootstrap.yml
    """
    _tell("resume", stream, bootstrap, as_json)


def _tell(what: str, stream: str, bootstrap: Bootstrap, as_json: bool) -> None:
    from agent.cli.terminal import print_json, safe, say

    answer = asked({"do": what, "stream": stream}, bootstrap)
    if as_json:
        print_json([answer])
    else:
        say(f"stream {safe(stream)}: {answer['status']}{': ' if answer['reason'] else ''}{safe(answer['reason'])}")


def asked(request: dict[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the running daemon's answer; RetryableError if none runs over the bootstrap's data."""
    from agent.config import load_bootstrap
    from agent.control import ask, login
    from agent.errors import RetryableError

    data = load_bootstrap(bootstrap).data
    answer = ask(data, {**request, "by": login()})
    if answer is None:
        raise RetryableError(f"no daemon runs over {data}: start it with 'vedette run -b {bootstrap}'")
    return answer
