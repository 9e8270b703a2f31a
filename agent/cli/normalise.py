"""`vedette normalise`: what comes of log files as ECS, what stays outside it, and a mapping drafted for the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import AsJson
from agent.cli.terminal import print_json, safe, say, table

if TYPE_CHECKING:
    from agent.model import Timestamp
    from agent.normalise import Normaliser
    from agent.normalise.decode import Raw

LogPaths = Annotated[list[Path], typer.Argument(metavar="LOGS...", help="Log files, folders or archives.")]
Format = Annotated[
    str, typer.Option("--format", help="Format of the records (json, evtx, syslog, access, cloudtrail, text).")
]
MappingPath = Annotated[
    Path | None, typer.Option("--mapping", help="A mapping (YAML) to try beside the installed ones.")
]
_SHOWN = 20
_SAMPLES = 2_000
_SUMMARY = ("event.category", "event.type", "event.outcome", "event.action", "host.name", "user.name", "source.ip")


@dataclass(frozen=True)
class Record:
    """One record of a file, by the file's name and its place there, and what came of it or why nothing did."""

    place: str
    format: str
    raw: Raw
    mapping: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    unmapped: bool = False
    timed: bool = True
    error: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        return dict(_leaves(self.document, ""))


def normalise(
    logs: LogPaths,
    format: Format = "auto",
    mapping: MappingPath = None,
    as_json: AsJson = False,
    draft: Annotated[bool, typer.Option("--draft", help="Print a mapping for what no mapping knows.")] = False,
) -> None:
    """Show what comes of each record as ECS: its mapping, what is no ECS field, what is unmapped or unreadable and why.

    The exit code is 1 if a record is unmapped or unreadable.

    Examples:
      vedette normalise /var/log/auth.log
      vedette normalise app.log --format text --draft > app.yml
      vedette normalise app.log --format text --mapping app.yml
      vedette normalise cloudtrail.json.gz --json
    """
    if as_json and draft:
        raise typer.BadParameter("--json and --draft exclude each other")
    records = _records(logs, format, _normaliser(mapping))
    if draft:
        _draft(logs[0], records)
    elif as_json:
        print_json(_row(record) for record in records)
    else:
        _show(records)


def _normaliser(mapping: Path | None) -> Normaliser:
    from agent.config.load import read
    from agent.errors import ConfigError
    from agent.normalise import Normaliser
    from agent.normalise.mapping import installed, parse

    mappings = list(installed())
    if mapping:
        own = parse(read(mapping).decode(), str(mapping))
        if own.name in {each.name for each in mappings}:
            raise ConfigError(f"a mapping called {own.name} is installed already; choose another name", str(mapping))
        mappings.append(own)
    return Normaliser(lambda _kind: frozenset(), mappings)


def _records(paths: list[Path], format: str, normaliser: Normaliser) -> Iterator[Record]:
    """Yield the records of *paths*; what could not be opened goes to standard error."""
    import sys

    from agent.science.inputs import Logs

    logs = Logs(paths, format)
    for records in logs:
        for chunk in records.chunks:
            for place, (key, raw) in enumerate(zip(chunk.keys, chunk.raw, strict=True)):
                where = f"{Path(chunk.path).name}:{key}"
                fault = chunk.faults.get(place, "")
                yield _record(normaliser, where, chunk.format, raw, fault, records.as_of)
    for name, reason in logs.notes.items():
        hint = "; --format text reads it all the same" if format == "auto" and "known log formats" in reason else ""
        print(safe(f"not read: {name}: {reason}{hint}"), file=sys.stderr)


def _record(normaliser: Normaliser, place: str, format: str, raw: Raw, fault: str, as_of: Timestamp) -> Record:
    from agent.errors import RecordError

    try:
        if fault:
            raise RecordError(fault)
        whole = normaliser.whole(format, raw, as_of=as_of)
    except RecordError as error:
        return Record(place, format, raw, error=str(error))
    return Record(place, format, raw, whole.mapping.name, whole.document, whole.mapping.unmapped, whole.timed)


def _leaves(document: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def _outside_ecs(record: Record) -> list[str]:
    from agent.normalise.catalogue import catalogue

    return sorted(name for name in record.fields if name not in catalogue().fields)


def _row(record: Record) -> dict[str, Any]:
    head = {"record": record.place, "format": record.format}
    if record.error:
        return {**head, "error": record.error}
    return {
        **head,
        "mapping": record.mapping,
        "unmapped": record.unmapped,
        "timed": record.timed,
        "outside_ecs": _outside_ecs(record),
        "document": record.document,
    }


def _show(records: Iterator[Record]) -> None:
    """Print a line for each record, then sums: by mapping, names outside ECS, what is unmapped or unreadable."""
    by_mapping: Counter[str] = Counter()
    outside: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], Any] = {}
    trouble: list[tuple[str, str, str]] = []
    untimed = unmapped = unreadable = 0
    for record in records:
        _say_record(record)
        if record.error:
            unreadable += 1
        else:
            by_mapping[record.mapping] += 1
            untimed += not record.timed
            unmapped += record.unmapped
            fields = record.fields
            for name in _outside_ecs(record):
                outside[record.mapping, name] += 1
                examples.setdefault((record.mapping, name), fields[name])
        if (record.error or record.unmapped) and len(trouble) < _SHOWN:
            trouble.append((record.place, record.error or "no mapping knows it", _short(record.raw)))
    if not by_mapping and not unreadable:
        say("no records")
        return
    print()
    table(["mapping", "records>"], by_mapping.most_common())
    if outside:
        print()
        ordered = sorted(outside.items(), key=lambda each: (each[0][0], -each[1]))
        rows = [(*named, number, str(examples[named])[:60]) for named, number in ordered]
        table(["mapping", "field outside ECS", "records>", "example"], rows)
    if trouble:
        print()
        table(["record", "unmapped or unreadable", "begins"], trouble)
    total = by_mapping.total() + unreadable
    sums = {"mapped": total - unmapped - unreadable, "unmapped": unmapped, "unreadable": unreadable, "untimed": untimed}
    say(f"\n{total:,} records: " + ", ".join(f"{number:,} {name}" for name, number in sums.items()))
    if unmapped or unreadable:
        raise typer.Exit(1)


def _say_record(record: Record) -> None:
    if record.error:
        print(safe(f"{record.place}  unreadable: {record.error}"))
        return
    fields = record.fields
    said = [f"{name}={_text(fields[name])}" for name in _SUMMARY if name in fields]
    mapping = f"{record.mapping} (unmapped)" if record.unmapped else record.mapping
    print(safe(f"{record.place}  {fields['@timestamp'] if record.timed else 'no time'}  {mapping}  {' '.join(said)}"))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(raw: Raw) -> str:
    from agent.normalise.decode import text_of

    return text_of(raw)[:80]


def _draft(path: Path, records: Iterator[Record]) -> None:
    """Print a mapping for the records that no mapping knows; those of JSON or the lines, whichever are more."""
    import orjson

    from agent.normalise.decode import text_of
    from agent.normalise.draft import draft

    lines: list[str] = []
    objects: list[Mapping[str, Any]] = []
    for record in records:
        text = text_of(record.raw).strip()
        if record.unmapped and record.format in {"json", "cloudtrail"} and len(objects) < _SAMPLES:
            objects.append(orjson.loads(text))
        elif (record.unmapped or record.error) and text and len(lines) < _SAMPLES:
            lines.append(text)
    if not lines and not objects:
        say("every record has a mapping; there is nothing to draft")
        return
    name = re.sub(r"[^a-z0-9]+", "_", path.name.lower().partition(".")[0]).strip("_")
    print(
        draft(name if name[:1].isalpha() else f"log_{name}", objects if len(objects) >= len(lines) else lines), end=""
    )
