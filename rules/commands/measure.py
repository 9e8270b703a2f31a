"""`vedette rules coverage`, `diff`, `backtest` and `tune`: rules on many events."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import BOOTSTRAP, DATA, AsJson, Data, instant
from rules.commands.work import Junit, Pipelines, Rules

if TYPE_CHECKING:
    from agent.ports import Source
    from rules.coverage import Coverage

From = Annotated[str | None, typer.Option("--from", help="What happened from this time on (ISO 8601).")]
To = Annotated[str | None, typer.Option("--to", help="What happened before this time (ISO 8601).")]
Configured = Annotated[
    Path, typer.Option("--bootstrap", "-b", envvar="VEDETTE_BOOTSTRAP", help="Names the SIEM, without EVENTS.")
]
Stream = Annotated[str | None, typer.Option("--stream", help="Whose source; needed if there are several.")]
_SHOWN = 15
"""Fields of a mapping that no rule reads which a person is shown; --json has all."""


def coverage(
    path: Rules = "builtin",
    events: Annotated[
        list[Path] | None, typer.Argument(metavar="[EVENTS]...", help="Log files, folders or archives.")
    ] = None,
    begin: From = None,
    end: To = None,
    bootstrap: Configured = BOOTSTRAP,
    stream: Stream = None,
    navigator: Annotated[
        Path | None, typer.Option("--navigator", help="Write a layer for ATT&CK Navigator (4.5) there.")
    ] = None,
    techniques: Annotated[
        Path | None, typer.Option("--techniques", help="A file that names techniques to compare with, one a line.")
    ] = None,
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Say which rules can never fire on events and why, which fields no rule reads, and what of ATT&CK is covered.

    Events are those of log files, or with --from what the SIEM has of a time. Without either: which rules no mapping
    feeds. With them, a rule can never fire if none of the events is of its log source, if it needs a field that none
    has, or if a part that must hold is true of none. Exit code 1: a rule can never fire, or for a technique of the list
    there is no rule that may.

    Examples:
      vedette rules coverage rules/ /var/log --navigator layer.json
      vedette rules coverage builtin -b bootstrap.yml --from 2026-11-01
      vedette rules coverage builtin --techniques wanted.txt
    """
    import orjson

    from agent.cli.terminal import print_json
    from agent.errors import VedetteError
    from rules.coverage import navigator_layer, of_events, of_rules, read_techniques
    from rules.detector import place
    from rules.running import loaded, log_source
    from rules.sigma.documents import read_files, read_pipelines

    if events and (begin or end):
        raise typer.BadParameter("--from and --to are for what the SIEM holds; without them EVENTS are read whole")
    asked = begin and instant(begin), end and instant(end)
    source = log_source(events) if events else _replayed(bootstrap, stream, *asked) if begin or end else None
    wanted = read_techniques(techniques) if techniques else []
    detector, collection = loaded(path, pipeline)
    if source is None:
        found = of_rules(detector, collection)
    else:
        found = of_events(detector, collection, read_files(place(path)) + read_pipelines(pipeline or ()), source)
    compared = found.compared(wanted)
    if navigator is not None:
        try:
            navigator.write_bytes(orjson.dumps(navigator_layer(found, f"Vedette: {path}"), option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise VedetteError(f"cannot write {navigator}: {error.strerror}") from error
    if as_json:
        print_json([_row(one) for one in found.rows])
        print_json([{"events": found.events, "unread": found.unread, "techniques": compared,
                     "refused": collection.refused}])  # fmt: skip
    else:
        _say_coverage(found, compared, source is not None)
        _say_left_out(collection.refused, source)
    if any(row.never for row in found.rows) or not all(compared.values()):
        raise typer.Exit(1)


def _row(row: Any) -> dict[str, Any]:
    return {"id": row.rule.id, "title": row.rule.title, "level": row.rule.level, "techniques": row.rule.techniques,
            "state": row.state, "detail": row.detail, "matches": row.matches}  # fmt: skip


def _say_coverage(found: Coverage, compared: dict[str, int], measured: bool) -> None:
    from collections import Counter

    from agent.cli.terminal import safe, say, table

    never = [row for row in found.rows if row.never]
    table(
        ("rule", "title", "state", "why"),
        ((row.rule.id, row.rule.title, row.state, row.detail) for row in never),
        headless=not never,
    )
    if measured:
        states = Counter(row.state for row in found.rows)
        said = ", ".join(f"{number:,} {state}" for state, number in states.most_common())
        say(f"{found.events:,} events, {len(found.rows):,} rules: {said}", "bold")
        for mapping, fields in found.unread.items():
            shown = ", ".join(list(fields)[:_SHOWN])
            more = f" and {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
            say(f"{safe(mapping)}: no rule reads {safe(shown)}{more}")
    else:
        say(f"{len(found.rows):,} rules, {len(never):,} of log sources that no mapping feeds", "bold")
    say(f"ATT&CK: {sum('.' not in one for one in found.techniques())} techniques have a rule")
    for id, number in compared.items():
        say(f"  {id}: {f'{number} rules' if number else 'no rule that may fire'}", "" if number else "yellow")


def _say_left_out(refused: Iterable[str], source: Source | None) -> None:
    """Say which rules did not run and what was not read."""
    from agent.cli.terminal import safe

    for reason in dict.fromkeys(refused):
        print(safe(f"refused: {reason}"))
    for place, reason in source.notes().items() if source else ():
        print(safe(f"not read: {place}: {reason}"))


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Rules as they were: folder, file or archive; builtin.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Rules as they shall be.")],
    events: Annotated[list[Path], typer.Argument(metavar="EVENTS...", help="Log files, folders or archives.")],
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Show the alerts that are lost and gained by rule between two collections, on the same events.

    Exit code 1: there are some.

    Example: vedette rules diff released/ rules/ /evidence --json
    """
    from agent.cli.terminal import print_json, safe, say, table
    from rules.comparison import differences
    from rules.running import loaded, log_source

    source = log_source(events)
    one, other = (loaded(path, pipeline)[0] for path in (old, new))
    changes = dict(sorted(differences(one, other, source).items()))
    changed = {id: change for id, change in changes.items() if change.lost or change.gained}
    if as_json:
        print_json(
            {"change": name, **found._asdict()}
            for change in changed.values()
            for name, alerts in (("lost", change.lost), ("gained", change.gained))
            for found in alerts
        )
    else:
        rows = ((id, one.title, len(one.lost), len(one.gained), one.both) for id, one in changed.items())
        table(("rule", "title", "lost>", "gained>", "in both>"), rows, headless=not changed)
        for sign, found in (
            (s, f) for c in changed.values() for s, a in (("-", c.lost), ("+", c.gained)) for f in a[:3]
        ):
            print(safe(f"{sign} {found.time}  {found.title}  {found.place}"))
        lost, gained = (sum(len(getattr(one, name)) for one in changes.values()) for name in ("lost", "gained"))
        both = sum(one.both for one in changes.values())
        say(f"{both:,} alerts in both, {lost:,} lost, {gained:,} gained", "bold")
        _say_left_out([*one.plan()["refused"], *other.plan()["refused"]], source)
    if changed:
        raise typer.Exit(1)


def backtest(
    path: Rules = "builtin",
    events: Annotated[
        list[Path] | None, typer.Argument(metavar="[EVENTS]...", help="Log files, folders or archives; else the SIEM.")
    ] = None,
    begin: From = None,
    end: To = None,
    bootstrap: Configured = BOOTSTRAP,
    stream: Stream = None,
    expect: Annotated[
        Path | None, typer.Option("--expect", help="A YAML file, rule id: number of alerts; who is not named has none.")
    ] = None,
    junit: Junit = None,
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Count what rules would have found in a time: of log files, or of what the configured SIEM still holds.

    The daemon's own engine with a state of its own: no alert is stored or sent, nothing of the production changes.
    Correlations start warm: they know what happened before --from, as far back as their windows reach. Exit code 1:
    a number is not the expected one.

    Examples:
      vedette rules backtest rules/ -b bootstrap.yml --from 2026-11-01 --to 2026-11-08
      vedette rules backtest rules/ samples/ --expect expected.yml --junit results.xml
    """
    from agent.cli.terminal import print_json, safe, say, table
    from agent.normalise.clock import to_text
    from rules.comparison import backtest as run
    from rules.comparison import read_expected, warm_from
    from rules.junit import write
    from rules.running import ALWAYS, loaded, log_source

    if junit is not None and expect is None:
        raise typer.BadParameter("--junit needs --expect: without it there is nothing to check")
    span = (ALWAYS[0] if begin is None else instant(begin), ALWAYS[1] if end is None else instant(end))
    expected = read_expected(expect) if expect else {}
    detector, collection = loaded(path, pipeline)
    since = None if begin is None else warm_from(collection.correlations, span[0])
    warm = None if since is None or since >= span[0] else to_text(since)
    source = log_source(events) if events else _replayed(bootstrap, stream, since, end and span[1])
    found = run(detector, source, span)
    checks = found.checks(expected) if expect else []
    failed = [one.failure for one in checks if one.failure]
    if junit is not None:
        write(junit, "vedette rules backtest", checks)
    rows = [(id, found.rules[id].title, found.rules[id].level, number) for id, number in sorted(found.counts.items())]
    if as_json:
        print_json(dict(zip(("id", "title", "level", "alerts"), row, strict=True)) for row in rows)
        print_json([{"events": found.events, "late": found.late, "warm_from": warm, "failed": failed}])
    else:
        table(("rule", "title", "level", "alerts>"), rows, headless=not rows)
        late = f", {found.late:,} of them too late for correlations" if found.late else ""
        say(f"{found.events:,} events{late}; {sum(found.counts.values()):,} alerts of {len(rows):,} rules", "bold")
        if warm:
            say(f"correlations start warm: they know what happened from {warm} on")
        _say_left_out(detector.plan()["refused"], source)
        for failure in failed:
            print(safe(failure))
    if failed:
        raise typer.Exit(1)


def _replayed(bootstrap: Path, stream: str | None, begin: Any, end: Any) -> Source:
    """Return the stream's source over a span of time, each record with the identity that it has in production."""
    from contextlib import suppress

    from agent.assemble import build_source
    from agent.errors import ConfigError
    from agent.ports import Replayable
    from agent.store import Reader
    from rules.commands.silence import File

    if not bootstrap.exists():
        raise ConfigError("name log files to read, or the bootstrap file of what reads a SIEM with -b", str(bootstrap))
    file = File.read(bootstrap)
    streams = file.configuration.streams
    name = stream or (next(iter(streams)) if len(streams) == 1 else "")
    if name not in streams:
        raise ConfigError(f"--stream: expected one of {', '.join(sorted(streams))}")
    source = build_source(file.configuration, file.locator, streams[name].source)
    if not isinstance(source, Replayable):
        raise ConfigError(f"source {source.id} cannot be asked again: name the log files instead")
    cursor = None
    with suppress(ConfigError), Reader(file.data) as reader:
        cursor = reader.cursor(name)
    return source.replay(cursor, place=None, start=begin, end=end)


def tune(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="A rule file, or an id: one of ours or configured.")],
    data: Data = DATA,
    bootstrap: Annotated[
        Path, typer.Option("--bootstrap", "-b", envvar="VEDETTE_BOOTSTRAP", help="Names the configuration.")
    ] = BOOTSTRAP,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the filter there.")] = None,
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Propose a Sigma filter for a rule from alerts that were marked, and show what else it would have hidden.

    Marks are what 'vedette alerts ack --verdict' says. A filter never hides an alert that was marked true-positive.
    Exit code 1: there is nothing to propose.

    Example: vedette rules tune 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11 -o filters/backup.yml
    """
    from agent.cli.terminal import print_json, safe, say
    from agent.errors import VedetteError
    from agent.store import Reader
    from rules.commands.work import rules_called
    from rules.sigma.documents import read_pipelines
    from rules.tuning import FALSE, TRUE, Marked, propose

    written = rules_called(rule, bootstrap, read_pipelines(pipeline or ()))[0]
    about = written.rule
    with Reader(data) as reader:
        alerts = [Marked(one["id"], one["verdict"] or "", one["document"]) for one in reader.alerts(rule=about.id)]
    number = {name: sum(one.verdict == name for one in alerts) for name in (FALSE, TRUE)}
    if not number[FALSE]:
        raise VedetteError(
            f"none of the {len(alerts)} stored alerts of rule {about.id} is marked {FALSE}; mark some:"
            f" vedette alerts ack ID --verdict {FALSE}"
        )
    found = propose(about, alerts)
    if found is None:
        raise VedetteError(
            f"the {number[FALSE]} alerts marked {FALSE} share nothing that no alert marked {TRUE} has too: no filter"
        )
    text = found.sigma(about, written.logsource)
    if output is not None:
        try:
            output.write_text(text)
        except OSError as error:
            raise VedetteError(f"cannot write {output}: {error.strerror}") from error
    hidden = {name or "unmarked": ids for name, ids in found.hidden.items()}
    if as_json:
        print_json([{"rule": about.id, "filter": text, "hidden": hidden, "left": found.left}])
        return
    if output is None:
        print("\n".join(map(safe, text.splitlines())))
    say(f"would have hidden: {len(hidden.get(FALSE, ()))} of {number[FALSE]} marked {FALSE},"
        f" {len(hidden.get(TRUE, ()))} of {number[TRUE]} marked {TRUE}", "bold")  # fmt: skip
    if not number[TRUE]:
        say(f"no alert of this rule is marked {TRUE}: there is nothing to hold the filter against", "yellow")
    for name, ids in hidden.items():
        if name != FALSE:
            say(f"  {name}: {len(ids)}: {', '.join(one[:8] for one in ids)}")
    if found.left:
        say(f"  left as they are, {FALSE}: {', '.join(one[:8] for one in found.left)}")
