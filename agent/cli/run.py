"""`vedette run` and `vedette plan`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.options import BOOTSTRAP, CONFIG, DATA, AsJson, Bootstrap, Config, Data


def run(
    bootstrap: Bootstrap = BOOTSTRAP,
    once: Annotated[bool, typer.Option("--once", help="Stop when everything is read and delivered.")] = False,
) -> None:
    """Read, detect and deliver until a signal (SIGTERM or Ctrl-C ends in order).

    Runs the newest configuration that is signed by principals who may; without one there is no start ('vedette init').

    Example: vedette run -b /etc/vedette/bootstrap.yml
    """
    from agent.config import load_bootstrap
    from agent.service import Service
    from agent.telemetry.logs import start_logging

    start_logging()
    where = load_bootstrap(bootstrap)
    service = Service(where, once=once)
    service.stop_on_signals()
    service.run()
    if once:
        _say_found(where.data)


def _say_found(data: Path) -> None:
    from agent.cli.terminal import say
    from agent.store import Reader

    with Reader(data) as reader:
        counters = reader.counters().values()
    events, alerts = (sum(one.get(name, 0) for one in counters) for name in ("received", "alerts"))
    say(f"read so far: {events:,} events, {alerts:,} alerts")
    say(f"next: vedette alerts list --data {data}")


def plan(
    config: Config = CONFIG,
    data: Data = DATA,
    bootstrap: Annotated[
        Path | None, typer.Option("--bootstrap", "-b", help="What its configuration would run, models included.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what would run and what it costs: sources, detectors, rules refused and why, fields wanted, thresholds.

    Examples:
      vedette plan -c vedette.yml
      vedette plan -b bootstrap.yml
    """
    from agent.assemble import build_enrichment, build_pipeline, build_source, models_of, strangers
    from agent.cli.terminal import print_json
    from agent.config import load_bootstrap, root_of
    from agent.config.load import read
    from agent.config.revision import FILE, Files, assumed
    from agent.normalise.clock import to_datetime
    from agent.ports import Detector, Estimable
    from agent.store.sqlite import clock

    root = []
    if bootstrap is not None:
        where = load_bootstrap(bootstrap)
        config, data, root = where.configuration / FILE, where.data, root_of(where)
    candidate = assumed(Files(config.parent, read(config), b""), root, config)
    configuration, locator = candidate.configuration, candidate.locator
    build_enrichment(candidate)  # says what is wrong with a table
    cache = data / "cache" if os.access(data / "cache", os.W_OK) else None
    plans: dict[str, Any] = {}
    detectors: list[Detector] = []
    for name, stream in configuration.streams.items():
        source = build_source(configuration, locator, stream.source)
        source.open(frozenset())
        models, refused = models_of(candidate, name, clock())
        pipeline = build_pipeline(configuration, locator, stream, cache, models)
        plans[name] = {
            "source": stream.source,
            "sinks": stream.sinks,
            "not_read": dict(source.notes()),
            **({"first_start": dict(source.estimate())} if isinstance(source, Estimable) else {}),
            "models_refused": [str(one) for one in refused],
            **pipeline.plan(),
        }
        source.close()
        detectors += pipeline.detectors
    unknown = set(strangers(configuration, detectors))
    over = [one.rule for one in configuration.exceptions_over(to_datetime(clock()))]
    exceptions = [
        {**one, "over": one["rule"] in over, "runs": one["rule"] not in unknown}
        for one in configuration.section("exceptions")
    ]
    for each in plans.values():
        each["exceptions"] = exceptions
    if as_json:
        print_json([plans])
    else:
        for name, one in plans.items():
            _print_plan(name, one)
        _print_exceptions(exceptions)


def _print_plan(name: str, plan: dict[str, Any]) -> None:
    from agent.cli.terminal import safe, say

    say(f"stream {name}: source {plan['source']} -> {', '.join(plan['sinks']) or 'embedded alert store'}", "bold")
    if first := plan.get("first_start"):
        say(
            f"  a first start ({first['start']}) reads {first['documents']:,} documents of {first['hours']:,} hours"
            f" in {first['places']:,} indices"
        )
    for place, reason in plan["not_read"].items():
        say(f"  not read: {safe(place)}: {safe(reason)}")
    for refused in plan["models_refused"]:
        say(f"  {safe(refused)}", "bold red")
    for filter_name, where in plan["filters"].items():
        say(f"  filter {filter_name}: {safe(_said(where))}")
    for detector, facts in plan["detectors"].items():
        say(f"  detector {detector}", "bold")
        for key, value in facts.items():
            if isinstance(value, list | tuple) and key == "fields":
                say(f"    {key} ({len(value)}): {safe(_said(value))}")
            elif isinstance(value, list | tuple):
                say(f"    {key}: {len(value)}")
                for item in value:
                    say(f"      {safe(_said(item) if isinstance(item, Mapping) else item)}")
            else:
                say(f"    {key}: {safe(_said(value))}")


def _said(value: object) -> str:
    """Return a plan's value without the marks of Python's own notation."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _print_exceptions(exceptions: list[dict[str, Any]]) -> None:
    from agent.cli.terminal import safe, say

    if exceptions:
        say("exceptions: no alerts of these rules for events before the time given", "bold")
    for one in exceptions:
        state = "over" if one["over"] else "in force"
        say(f"  {safe(one['rule'])} until {one['until']}, {state}: {safe(one['reason'])} ({safe(one['owner'])})")
        if not one["runs"]:
            say(f"    none of the detectors has a rule {safe(one['rule'])}", "yellow")
