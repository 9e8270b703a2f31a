"""`vedette alerts`: the embedded alert store."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.options import DATA, AsJson, Data
from agent.control import login
from agent.errors import ConfigError

app = typer.Typer(help="Look at, acknowledge and export stored alerts.", no_args_is_help=True)


class Level(StrEnum):
    """Sigma's levels."""

    informational = "informational"
    low = "low"
    medium = "medium"
    high = "high"
    critical = "critical"


class Verdict(StrEnum):
    """What an analyst found the alert to be."""

    true_positive = "true-positive"
    false_positive = "false-positive"
    benign = "benign"


class Format(StrEnum):
    """How to export."""

    csv = "csv"
    ndjson = "ndjson"


MinLevel = Annotated[Level | None, typer.Option("--min-level", help="This level and above.")]
Rule = Annotated[str | None, typer.Option("--rule", help="Only alerts of this rule id.")]
Ids = Annotated[list[str], typer.Argument(help="Alert ids, or unique beginnings of them.")]


@app.command("list")
def list_(
    data: Data = DATA,
    min_level: MinLevel = None,
    rule: Rule = None,
    open_only: Annotated[bool, typer.Option("--open", help="Only those nobody has acknowledged.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the oldest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List stored alerts, oldest evidence first.

    Example: vedette alerts list --min-level high --open
    """
    from agent.cli.terminal import print_json, say, table
    from agent.store import Reader

    with Reader(data) as reader:
        level = min_level.value if min_level else None
        found = list(reader.alerts(rule=rule, min_level=level, open_only=open_only, limit=limit + 1))
    if as_json:
        print_json(_flat(alert) for alert in found[:limit])
        return
    if not found:
        say("no alerts" if level or rule or open_only else "no alerts yet", "dim")
        return
    table(
        ("time (UTC)", "level", "alert", "about", "where", "id", "verdict"),
        ([*_row(alert), alert["verdict"] or ("acked" if alert["acked"] else "")] for alert in found[:limit]),
    )
    if len(found) > limit:
        say(f"more than {limit}: --limit shows more", "dim")


@app.command()
def show(ids: Ids, data: Data = DATA, as_json: AsJson = False) -> None:
    """Show alerts whole: why they fired, on what evidence, and the document that sinks get.

    Example: vedette alerts show 3f2a
    """
    from agent.cli.terminal import print_json, safe, say

    for alert in _find(data, ids):
        document = alert["document"]
        if as_json:
            print_json([{**_flat(alert), "document": document}])
            continue
        say(f"{alert['title']}  [{alert['level']}]", "bold")
        say(f"  id        {alert['id']}  (rule {safe(alert['rule_id'])})")
        say(f"  evidence  {iso(alert['time'])}  found {iso(alert['created'])}  trust {document['vedette']['trust']}")
        if about := _about(document):
            say(f"  about     {safe(about)}")
        say(f"  why       {safe(document['event']['reason'].removeprefix(alert['title'] + ': '))}")
        for factor in document["vedette"]["explain"]:
            observed, expected = safe(factor["observed"]), safe(factor["expected"])
            say(f"              {safe(factor['field'])}: {observed}  (expected: {expected})")
        if description := document["rule"].get("description"):
            say(f"  means     {safe(' '.join(description.split()))}")
        if author := document["rule"].get("author"):
            say(f"  author    {safe(', '.join(author))}")
        for technique in _techniques(document):
            say(f"  ATT&CK    {safe(technique)}")
        for record in _records(document):
            say(f"  record    {safe(record['path'])} at {safe(record['key'])}")
        if original := document["event"].get("original"):
            say(f"  original  {safe(original)}")
        if alert["acked"]:
            say(f"  verdict   {alert['verdict'] or 'seen'} by {safe(alert['acked_by'])}, {iso(alert['acked'])}")
        say("")


@app.command()
def ack(
    ids: Ids,
    data: Data = DATA,
    verdict: Annotated[Verdict | None, typer.Option("--verdict", help="What it turned out to be.")] = None,
    note: Annotated[str | None, typer.Option("--note", help="Free text, kept with the alert.")] = None,
) -> None:
    """Acknowledge alerts, with a verdict if there is one.

    Example: vedette alerts ack 3f2a --verdict false-positive --note "our own scanner"
    """
    from agent.cli.terminal import say
    from agent.control import ask
    from agent.service import acknowledge
    from agent.store import Store

    found = [alert["id"] for alert in _find(data, ids)]
    request = {
        "do": "ack",
        "ids": found,
        "by": login(),
        "verdict": verdict.value if verdict else None,
        "note": note,
    }
    if ask(data, request) is None:
        store = Store(data)
        try:
            acknowledge(store, request)
        finally:
            store.close()
    say(f"{len(found)} acknowledged")


@app.command()
def export(
    data: Data = DATA,
    format: Annotated[Format, typer.Option("--format", help="csv for a spreadsheet, ndjson whole.")] = Format.csv,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
    min_level: MinLevel = None,
    rule: Rule = None,
) -> None:
    """Export alerts, as a table for a spreadsheet or as whole documents.

    Example: vedette alerts export --format csv -o alerts.csv
    """
    from agent.cli.terminal import print_json
    from agent.store import Reader

    with Reader(data) as reader:
        found = reader.alerts(rule=rule, min_level=min_level.value if min_level else None)
        if format is Format.ndjson and output is None:
            print_json(alert["document"] for alert in found)
        elif format is Format.ndjson and output is not None:
            import orjson

            with output.open("wb") as file:
                file.writelines(orjson.dumps(alert["document"]) + b"\n" for alert in found)
        else:
            with output.open("w", newline="", encoding="utf-8-sig") if output else sys.stdout as out:
                writer = csv.writer(out)
                writer.writerow(CSV_COLUMNS)
                writer.writerows([cell(value) for value in csv_row(alert)] for alert in found)


Since = Annotated[str, typer.Option("--since", help="How far back: 12h, 7d, 4w.")]


@app.command()
def risk(
    data: Data = DATA,
    since: Since = "30d",
    half_life: Annotated[str, typer.Option("--half-life", help="In which an alert loses half of its weight.")] = "7d",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the highest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List hosts, users and addresses by the risk that alerts about them come to, 0 to 100.

    Old alerts weigh less, many small ones do not outweigh a grave one, and what was found false or benign counts for
    nothing.

    Example: vedette alerts risk --since 7d
    """
    from agent.alerting.incidents import risks
    from agent.cli.terminal import print_json, say, table
    from agent.store import Reader
    from agent.store.sqlite import clock

    now = clock()
    with Reader(data) as reader:
        found = risks(reader.alerts(since=now - _duration(since)), now, _duration(half_life))[:limit]
    if as_json:
        print_json({"field": one.entity[0], "value": one.entity[1], "score": round(one.score, 1), "alerts": one.alerts,
                    "last": iso(one.last), "rules": list(one.rules)} for one in found)  # fmt: skip
        return
    if not found:
        say("no alerts", "dim")
        return
    table(
        ("risk>", "entity", "alerts>", "last (UTC)", "most of it by"),
        (
            (f"{one.score:.0f}", " ".join(one.entity), one.alerts, _minute(one.last), "; ".join(one.rules))
            for one in found
        ),
    )


@app.command("incidents")
def incidents_(
    data: Data = DATA,
    since: Since = "30d",
    gap: Annotated[str, typer.Option("--gap", help="How far apart alerts about one entity may lie.")] = "1h",
    min_level: MinLevel = None,
    as_json: AsJson = False,
) -> None:
    """Group alerts that share a host, user or address within a time, and show each group as one incident.

    The incident's level is that of its gravest alert. What was found false or benign is left out.

    Example: vedette alerts incidents --since 7d --min-level high
    """
    from agent.alerting.incidents import incidents
    from agent.cli.terminal import print_json, say, table
    from agent.store import Reader
    from agent.store.sqlite import clock

    levels = [one.value for one in Level]
    with Reader(data) as reader:
        found = incidents(list(reader.alerts(since=clock() - _duration(since))), _duration(gap), levels)
    least = levels.index(min_level.value) if min_level else 0
    found = [one for one in found if levels.index(one.level) >= least]
    if as_json:
        print_json({"id": one.id, "start": iso(one.start), "end": iso(one.end), "level": one.level,
                    "entities": [{"field": name, "value": value} for name, value in one.entities],
                    "alerts": list(one.alerts), "rules": list(one.rules), "techniques": list(one.techniques)}
                   for one in found)  # fmt: skip
        return
    if not found:
        say("no incidents", "dim")
        return
    table(
        ("from (UTC)", "to", "level", "alerts>", "about", "what", "first alert"),
        (
            (
                _minute(one.start),
                _minute(one.end),
                one.level,
                len(one.alerts),
                _few([value for _, value in one.entities]),
                _few(one.rules),
                one.id[:8],
            )
            for one in found
        ),
    )


def _duration(text: str) -> int:
    from agent.detect.windows import duration

    try:
        return duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _minute(time: int) -> str:
    return iso(time)[:16].replace("T", " ")


def _few(texts: Sequence[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


_WHERE = 24
"""Characters of a file's or index's name in the list; `show` has the whole."""
CSV_COLUMNS = ("id", "evidence_time", "found", "level", "title", "reason", "host", "user", "source_ip", "file",
               "techniques", "rule_id", "author", "repeats", "verdict", "acknowledged_by", "note")  # fmt: skip


def csv_row(alert: Mapping[str, Any]) -> list[Any]:
    document = alert["document"]
    return [
        alert["id"], iso(alert["time"]), iso(alert["created"]), alert["level"], alert["title"],
        document["event"]["reason"], _at(document, "host.name"), _at(document, "user.name"),
        _at(document, "source.ip"), _at(document, "log.file.path"),
        _at(document, "threat.technique.id"), alert["rule_id"],
        ", ".join(document["rule"].get("author", [])), alert["repeats"], alert["verdict"], alert["acked_by"],
        alert["note"],
    ]  # fmt: skip


def cell(value: Any) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def iso(time: int) -> str:
    from agent.normalise.clock import to_text

    return to_text(time)


def _find(data: Path, ids: list[str]) -> list[dict[str, Any]]:
    """Return the alerts that *ids* begin; ConfigError for one that begins none or several."""
    from agent.store import Reader

    found = []
    with Reader(data) as reader:
        for id in ids:
            matches = list(reader.alerts(id=id, limit=2))
            if len(matches) != 1:
                trouble = "no alert has" if not matches else "several alerts have"
                raise ConfigError(f"{trouble} an id that begins with {id!r}; see 'vedette alerts list'")
            found.extend(matches)
    return found


def _flat(alert: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in alert.items() if key != "document"}
    return {
        **row,
        "time": iso(alert["time"]),
        "created": iso(alert["created"]),
        "reason": alert["document"]["event"]["reason"],
    }


def _row(alert: Mapping[str, Any]) -> list[object]:
    document = alert["document"]
    file = _at(document, "log.file.path") or next((one["path"] for one in _records(document)), "")
    where = Path(str(file)).name
    return [
        iso(alert["time"])[:19].replace("T", " "), alert["level"], alert["title"],
        _about(document), where if len(where) <= _WHERE else f"{where[: _WHERE - 1]}…", alert["id"][:8],
    ]  # fmt: skip


def _about(document: Mapping[str, Any]) -> str:
    return " ".join(str(one) for name in ("host.name", "user.name", "source.ip") if (one := _at(document, name)))


def _records(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = document["vedette"]["evidence"]["records"]
    return found


def _techniques(document: Mapping[str, Any]) -> list[str]:
    """Return id and name of each technique, and then of each subtechnique."""
    both = ("threat.technique", "threat.technique.subtechnique")
    pairs = (zip(_all(document, f"{one}.id"), _all(document, f"{one}.name"), strict=False) for one in both)
    return [" ".join(dict.fromkeys(map(str, pair))) for pair in chain.from_iterable(pairs)]


def _at(document: Mapping[str, Any], name: str) -> Any:
    from agent.alerting.document import value_at

    found = value_at(document, name)
    return " ".join(map(str, found)) if isinstance(found, list) else found


def _all(document: Mapping[str, Any], name: str) -> list[Any]:
    from agent.alerting.document import value_at

    found = value_at(document, name)
    return found if isinstance(found, list) else [] if found is None else [found]
