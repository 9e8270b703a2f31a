"""Commands to the running daemon: `vedette status`, `pause`, `resume`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agent.cli.options import BOOTSTRAP, AsJson, Bootstrap

Stream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream, as the configuration calls it.")]


def status(bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """Show how streams, sinks and models are, and what was read, found and sent. Exit code 1 if one does not work.

    Example: vedette status -b bootstrap.yml
    """
    from agent.cli.terminal import print_json, safe, say, table

    found = asked({"do": "report"}, bootstrap)
    counts, waiting = found["counts"], found["waiting"]
    well = [one["status"] in ("ok", "paused") for one in found["streams"]] + [one["up"] for one in found["sinks"]]
    if as_json:
        print_json([found])
        raise typer.Exit(0 if all(well) else 1)
    say(safe(found["summary"]), "bold")
    table(
        ("stream", "is", "events>", "alerts>", "unread>", "behind>", "why"),
        (
            (
                one["id"],
                one["status"],
                f"{counts.get(one['id'], {}).get('received', 0):,}",
                f"{counts.get(one['id'], {}).get('alerts', 0):,}",
                "" if one["lag_events"] is None else f"{one['lag_events']:,}",
                "" if one["lag_seconds"] is None else f"{one['lag_seconds']:,.0f} s",
                one["reason"],
            )
            for one in found["streams"]
        ),
    )
    if found["sinks"]:
        table(
            ("sink", "is", "delivered>", "waiting>", "refused>", "why"),
            (
                (
                    one["id"],
                    "up" if one["up"] else "down",
                    f"{counts.get(one['id'], {}).get('delivered', 0):,}",
                    f"{waiting[one['id']]['alerts']:,}",
                    f"{counts.get(one['id'], {}).get('refused', 0):,}",
                    one["reason"],
                )
                for one in found["sinks"]
            ),
        )
    raise typer.Exit(0 if all(well) else 1)


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
