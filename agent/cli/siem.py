"""`vedette setup` and `vedette replay`: what is done at the SIEM on the other side."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.doctor import show
from agent.cli.options import BOOTSTRAP, CONFIG, AsJson, Bootstrap, Config, instant
from agent.control import login
from agent.errors import ConfigError, VedetteError

if TYPE_CHECKING:
    from agent.config import Accepted, SinkConfig
    from agent.ports import Check, Sink, Source

_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def setup(
    config: Config = CONFIG,
    print_roles: Annotated[
        bool, typer.Option("--print-roles", help="Only print the least privileges that each account needs.")
    ] = False,
    username: Annotated[str | None, typer.Option(help="Account that may install (role vedette-setup).")] = None,
    password_file: Annotated[str | None, typer.Option(help="File with that account's password.")] = None,
    api_key_file: Annotated[str | None, typer.Option(help="File with an API key instead (Elasticsearch).")] = None,
    as_json: AsJson = False,
) -> None:
    """Install what alerts and the audit log need: ingest pipelines, mappings, templates. A second run changes nothing.

    Example: vedette setup -c vedette.yml --username admin --password-file admin.password
    """
    from agent.assemble import build_sink, build_source
    from agent.cli.terminal import print_json, say
    from agent.config import load
    from agent.normalise.catalogue import catalogue
    from agent.ports import Installable, Privileged

    configuration, locator = load(config)
    if print_roles:
        parts: list[Source | Sink] = [
            *(build_source(configuration, locator, name) for name in configuration.sources),
            *(build_sink(configuration, locator, name) for name in configuration.sinks),
        ]
        roles: dict[str, Any] = {}
        for part in parts:
            for name, body in part.roles().items() if isinstance(part, Privileged) else ():
                roles[_unused(roles, name, part.id, body)] = body
        print_json([roles])
        return
    secrets = {"password": password_file, "api_key": api_key_file}
    account = {"username": username, **{name: f"file:{file}" for name, file in secrets.items() if file}}
    fields = {name: field.type for name, field in catalogue().fields.items()}
    checks: list[Check] = []
    for name, section in configuration.sinks.items():
        sinks = {**configuration.sinks, name: _as_account(section, account)}
        sink = build_sink(configuration.model_copy(update={"sinks": sinks}), locator, name)
        if not isinstance(sink, Installable):
            continue
        for check in sink.install(fields):
            checks.append(check)
            show(f"sink {name}", check, as_json)
        sink.close()
    if not checks:
        say("no sink needs anything installed")
    raise typer.Exit(1 if any(check.state == "failed" for check in checks) else 0)


def replay(
    bootstrap: Bootstrap = BOOTSTRAP,
    stream: Annotated[str | None, typer.Option(help="Which stream; needed if there are several.")] = None,
    index: Annotated[str | None, typer.Option(help="Read this index again, a copy or restored one too.")] = None,
    begin: Annotated[str | None, typer.Option("--from", help="Events from this time on (ISO 8601).")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Events before this time (ISO 8601).")] = None,
    late: Annotated[bool, typer.Option("--late", help="The hours of which events came too late for windows.")] = False,
    warm_up: Annotated[
        str, typer.Option("--warm-up", help="Read so much before it, for detectors that learn (such as 14d).")
    ] = "0d",
    as_json: AsJson = False,
) -> None:
    """Evaluate again what the SIEM still holds: known alerts are found again and not sent twice, missing ones added.

    A running daemon does it; without one, the command does it itself and the next run sends what is new.

    Example: vedette replay -b bootstrap.yml --from 2026-11-01T00:00Z --to 2026-11-02T00:00Z
    """
    from agent.cli.terminal import print_json, say
    from agent.config import load_bootstrap
    from agent.control import ask
    from agent.service import accepted_last

    if bool(index or begin or end) == late:
        raise typer.BadParameter("say what to read again: --index, --from and --to, or --late")
    spans = None if late else [{"start": begin and instant(begin), "end": end and instant(end), "place": index}]
    asked = {"do": "replay", "spans": spans, "late": late, "warm_up": _duration(warm_up), "by": login()}
    where = load_bootstrap(bootstrap)
    accepted = accepted_last(where)
    request = {**asked, "stream": _stream(accepted.configuration.streams, stream)}
    report = ask(where.data, request)
    if report is None:
        report = _replay_here(request, accepted, where.data)
    else:
        with _Waiting(as_json) as waiting:
            while not report["done"]:
                waiting.show(report)
                time.sleep(0.5)
                report = ask(where.data, {"do": "replay"}) or {
                    **report,
                    "done": True,
                    "failure": "the daemon has ended",
                }
    if report["failure"]:
        raise VedetteError(f"replay ended early after {report['read']:,} events: {report['failure']}")
    if as_json:
        print_json([report])
    else:
        hours = f" in {report['spans']} spans of time" if late else ""
        say(f"read {report['read']:,} events again{hours}; new alerts: {report['new']:,}")


def _replay_here(request: Mapping[str, Any], accepted: Accepted, data: Path) -> dict[str, Any]:
    from agent.service import replay_of, resumed, take_late
    from agent.store import Store
    from agent.telemetry.logs import start_logging

    start_logging()

    store = Store(data)
    try:
        job = replay_of(request, lambda name: take_late(resumed(accepted, name, store), store), store)
        job.run(accepted, store)
        return job.report()
    finally:
        store.close()


class _Waiting:
    """A line that says how far the daemon's replay is, on a terminal only."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._status = Console(stderr=True, quiet=quiet).status("replay")

    def __enter__(self) -> _Waiting:
        self._status.start()
        return self

    def show(self, report: Mapping[str, Any]) -> None:
        self._status.update(f"replay: {report['read']:,} events, {report['new']:,} new alerts")

    def __exit__(self, *_: object) -> None:
        self._status.stop()


def _stream(streams: Mapping[str, Any], name: str | None) -> str:
    if name is None and len(streams) == 1:
        return next(iter(streams))
    if name is None or name not in streams:
        raise ConfigError(f"--stream: expected one of {', '.join(sorted(streams))}")
    return name


def _duration(text: str) -> int:
    found = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no duration; write 12h or 14d")
    return int(found[1]) * _SECONDS[found[2]]


def _as_account(section: SinkConfig, account: Mapping[str, str | None]) -> SinkConfig:
    """Return the sink's section with the credentials of *account*, if one is named."""
    from agent.config import SinkConfig

    given = {key: value for key, value in account.items() if value is not None}
    own = {key: value for key, value in section.model_dump().items() if not given or key not in account}
    return SinkConfig.model_validate({**own, **given})


def _unused(taken: Mapping[str, Any], name: str, part: str, body: object) -> str:
    """Return a role name that is free, or that stands for the same privileges already."""
    return name if taken.get(name, body) == body else f"{name}-{part}"
