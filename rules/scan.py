"""`vedette scan`: Sigma rules over log files, for forensics; the daemon's own pipeline without a store."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agent.ports import Detector, Source

_TOP = 10


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Log files, folders or archives.")],
    rules: Annotated[Path, typer.Option("--rules", "-r", help="Sigma rules: a folder, a file, .tar.gz or .zip.")],
    min_level: Annotated[str, typer.Option("--min-level", help="Leave out rules below this level.")] = "informational",
    as_json: Annotated[bool, typer.Option("--json", help="One alert a line on standard output, as ECS.")] = False,
) -> None:
    """Scan log files with Sigma rules; print matches as they are found and a summary at the end.

    Reads JSON lines, EVTX, syslog, access logs and CloudTrail, plain, gzipped or in archives.
    Exit codes: 0 nothing found, 1 found something, 2 usage, 3 rules or paths cannot be used.

    Examples:
      vedette scan /evidence --rules sigma-rules.tar.gz
      vedette scan Security.evtx --rules rules/ --min-level high --json > alerts.ndjson
    """
    from rules.detector import build
    from rules.running import cache, log_source

    gc.set_threshold(1_000_000, 50, 50)  # compiled rules live to the end; events hold no cycles, counting frees them
    source = log_source(paths)
    detector = build("sigma", {"path": str(rules), "min_level": min_level}, cache())
    summary = _Summary(detector.plan())
    show = _print_json if as_json else _print_line
    progress = _Progress()
    for document in _alerts(source, detector, summary, progress):
        progress.clear()
        show(document)
    progress.clear()
    sys.stdout.flush()
    for line in summary.lines():
        print(line, file=sys.stderr if as_json else sys.stdout)
    if summary.matches:
        raise typer.Exit(1)


def _alerts(source: Source, detector: Detector, summary: _Summary, progress: _Progress) -> Iterator[Mapping[str, Any]]:
    """Yield the alert document of each match, in reading order."""
    from rules.running import Runner, fetches

    runner = Runner(detector)
    for records in fetches(source):
        step = runner.step(records, source)
        summary.add(len(records), len(step.evaluation.dead), step.evaluation.filtered, step.alerts)
        progress.show(summary.events, summary.matches)
        for alert in step.alerts:
            yield alert.document
    summary.notes(source)


@dataclass
class _Summary:
    """What the scan came to, as numbers."""

    plan: Mapping[str, Any]
    events: int = 0
    quarantined: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    levels: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def matches(self) -> int:
        return self.levels.total()

    def add(self, events: int, quarantined: int, filtered: Mapping[str, int], alerts: Sequence[Any]) -> None:
        self.events += events
        self.quarantined += quarantined
        self.filtered.update(filtered)
        self.levels.update(alert.level for alert in alerts)
        self.rules.update(alert.title for alert in alerts)

    def notes(self, source: Any) -> None:
        """Keep what the source did not read."""
        self.problems += [f"not read: {path}: {reason}" for path, reason in source.notes().items()]

    def lines(self) -> Iterator[str]:
        from agent.cli.terminal import safe
        from rules.sigma.parse import LEVELS

        seconds = time.monotonic() - self.started
        levels = ", ".join(f"{self.levels[level]} {level}" for level in reversed(LEVELS) if self.levels[level])
        yield f"{self.events:,} events in {seconds:.1f} s ({self.events / seconds:,.0f}/s), {self.matches:,} matches"
        if levels:
            yield f"matches: {levels}"
        for title, number in self.rules.most_common(_TOP):
            yield f"{number:>8,}  {safe(title)}"
        if len(self.rules) > _TOP:
            yield f"          and {len(self.rules) - _TOP} more rules"
        if self.quarantined:
            yield f"quarantined: {self.quarantined:,} records that could not be read; raw-text rules saw them"
        for name, number in self.filtered.items():
            yield f"left out by filter {safe(name)}: {number:,}"
        unfed, refused = self.plan["unfed"]["rules"], self.plan["refused"]
        yield f"rules: {self.plan['rules']:,} loaded, {len(refused)} refused, {unfed} for log sources not read yet"
        yield from (f"  refused: {safe(reason)}" for reason in refused)
        yield from map(safe, self.problems)


class _Progress:
    """One line on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, events: int, matches: int) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{events:,} events, {matches:,} matches")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _print_json(document: Mapping[str, Any]) -> None:
    import orjson

    sys.stdout.buffer.write(orjson.dumps(document, default=str) + b"\n")


def _print_line(document: Mapping[str, Any]) -> None:
    """Print time, level, title, who and where; nothing in it can steer the terminal."""
    from agent.cli.terminal import safe

    who = "/".join(str(name) for key in ("host", "user") if (name := (document.get(key) or {}).get("name")))
    event, vedette = document["event"], document["vedette"]
    record = vedette["evidence"]["records"][0]
    parts = (
        event["start"],
        vedette["level"],
        document["rule"]["name"],
        who or "-",
        f"{record['path']}:{record['key']}",
    )
    print("  ".join(map(safe, parts)))
