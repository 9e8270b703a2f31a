"""`vedette demo`: make a day of logs, run the daemon's own pipeline over it, and show what came of it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import audit
from agent.cli.terminal import safe, say, table

if TYPE_CHECKING:
    from agent.demo import Scorecard, Verdict

_ORDER = ("critical", "high", "medium", "low", "informational")


def demo(
    logs: Annotated[
        Path | None, typer.Option("--logs", help="Your own file or folder instead of made-up logs.")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where the demo works; it is made anew.")] = Path(".demo"),
    seed: Annotated[int, typer.Option("--seed", help="Another seed makes another day.")] = 7,
) -> None:
    """Run the daemon over a day of made-up logs with attacks in it, with a model of its own, and show what it found.

    All that a real set-up has is here: keys of two people, a model that one of them signs, a configuration that the
    other approves, and an audit log that is verified at the end.

    Example: vedette demo --logs /var/log
    """
    from agent.config import load_bootstrap
    from agent.demo import generate, judge, last_working_day
    from agent.demo.setup import SetUp
    from agent.service import Service
    from agent.store import Reader

    _make_room(folder)
    labels = None
    site = SetUp(folder, logs or folder / "logs")
    if logs is None:
        begin = time.perf_counter()
        labels = generate(folder / "logs", seed=seed, day=last_working_day(datetime.now(UTC).date()))
        say(f"made {labels.total:,} records of {labels.day} in {time.perf_counter() - begin:.1f} s: {folder / 'logs'}")
        begin = time.perf_counter()
        with _Progress("training on four weeks of SSH logins …"):
            trained = site.train(folder / "logs" / "history")
        say(f"trained model {trained} in {time.perf_counter() - begin:.1f} s; signed by dana (data-scientist)")
    site.approve()
    say("configuration revision 1: approved and signed by alex (admin)")
    _quiet()
    begin = time.perf_counter()
    with _Progress("reading, scoring, committing …"):
        Service(load_bootstrap(site.bootstrap), once=True).run()
    taken = time.perf_counter() - begin
    with Reader(folder / "data") as reader:
        alerts = list(reader.alerts())
        _print_books(reader.counters(), taken)
    _print_alerts(alerts)
    if labels is not None:
        _print_score(judge(labels, (alert["document"] for alert in alerts)))
    say("\nthe audit log", "bold")
    audit.verify(data=folder / "data")
    _print_next(folder, site.bootstrap, alerts)


def _make_room(folder: Path) -> None:
    """Empty *folder* if an earlier demo made it; refuse to touch any other."""
    from agent.errors import ConfigError

    mark = folder / ".made-by-vedette-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise ConfigError(f"{folder} is not empty and no earlier demo made it; choose another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


def _quiet() -> None:
    """Only warnings from the service: the demo prints its own summary."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


class _Progress:
    """A progress line on a terminal while the service works; nothing elsewhere."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        from rich.console import Console

        console = Console(stderr=True)
        self._status = console.status(self._text) if console.is_terminal else None
        if self._status:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()


def _print_books(counters: Mapping[str, Mapping[str, int]], taken: float) -> None:
    totals: Counter[str] = Counter()
    for numbers in counters.values():
        totals.update(numbers)
    filtered = sum(number for name, number in totals.items() if name.startswith("filtered."))
    received, scored, quarantined = totals["received"], totals["scored"], totals["quarantined"]
    say(f"\nread {received:,} events in {taken:.1f} s ({received / taken:,.0f} a second)")
    say(
        f"books: {received:,} received = {scored:,} scored + {filtered:,} filtered + {quarantined:,} quarantined"
        f" + 0 held{'' if received == scored + filtered + quarantined else '   DO NOT BALANCE'}",
        "bold",
    )
    for name in ("future", "untimed", "late"):
        number = sum(value for key, value in totals.items() if key == name or key.endswith(f".{name}"))
        if number:
            say(f"  {number:,} {_NOTES[name]}", "dim")


_NOTES = {
    "future": "dated ahead of their arrival: scored, but they move no window",
    "untimed": "without a readable time: scored with the time they were read",
    "late": "too late for a baseline's window, counted and not folded",
}


def _print_alerts(alerts: list[dict[str, Any]]) -> None:
    levels = Counter(alert["level"] for alert in alerts)
    counts = ", ".join(f"{levels[level]} {level}" for level in _ORDER if levels[level])
    say(f"\n{len(alerts)} alerts: {counts}", "bold")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for alert in alerts:
        groups.setdefault((alert["level"], alert["title"]), []).append(alert)
    ordered = sorted(groups.items(), key=lambda item: (_ORDER.index(item[0][0]), -len(item[1]), item[0][1]))
    table(
        ("level", "alerts>", "what", "why (the first of them)"),
        (
            (level, len(found), title, _why(found[0]["document"]["event"]["reason"], title))
            for (level, title), found in ordered
        ),
    )


def _print_score(card: Scorecard) -> None:
    say("\nagainst the labels", "bold")
    for _, verdicts in groupby(card.attacks, key=lambda verdict: verdict.story.id):
        steps = list(verdicts)
        say(f"  {steps[0].story.title}", "dim")
        table(("", "ATT&CK", "step", "alert (number)"), map(_verdict_row, steps), headless=True)
    caught = sum(verdict.caught for verdict in card.attacks)
    say(f"{caught} of {len(card.attacks)} attack steps caught, {card.stories_caught} of {_stories(card)} attacks")
    loud = [verdict for verdict in card.harmless if verdict.caught]
    say(f"harmless but loud: {len(loud)} of {len(card.harmless)} raised an alert", "dim")
    stray = sum(card.false_alarms.values())
    detail = ", ".join(f"{safe(name)} ({number})" for name, number in card.false_alarms.items())
    say(f"alerts that belong to no label: {stray}{f': {detail}' if detail else ''}", "dim")
    say("(logs and rules come from one hand: this shows the way of an event; docs/evaluation.md has real logs)", "dim")


def _stories(card: Scorecard) -> int:
    return len({verdict.story.id for verdict in card.attacks})


def _print_next(folder: Path, bootstrap: Path, alerts: list[dict[str, Any]]) -> None:
    vedette, data = shutil.which("vedette") or ".venv/bin/vedette", folder / "data"
    vedette = ".venv/bin/vedette" if Path(".venv/bin/vedette").exists() else vedette
    worst = min(alerts, key=lambda alert: _ORDER.index(alert["level"]), default=None)
    say("\nwhat to try next", "bold")
    say(f"  {vedette} alerts list --data {data} --min-level high")
    say(f"  {vedette} alerts incidents --data {data}        (what belongs together)")
    if worst is not None:
        say(f"  {vedette} alerts show {worst['id'][:8]} --data {data}")
        say(f"  {vedette} audit prove {worst['id'][:8]} --data {data}        (why it fired, and who allowed it)")
        say(f"  {vedette} alerts ack {worst['id'][:8]} --data {data} --verdict true-positive")
    say(f"  {vedette} alerts export --data {data} --format csv -o alerts.csv")
    say(f"  {vedette} deadletter list --data {data}")
    say(f"  {vedette} audit show --data {data}")
    say(f"  {vedette} model list -b {bootstrap}")
    say(f"  {vedette} plan -c {folder / 'vedette.yml'} --data {data}")
    say("  make demo LOGS=/var/log        (your own files)")


def _verdict_row(verdict: Verdict) -> tuple[str, str, str, str]:
    by = ", ".join(f"{name} ({number})" for name, number in verdict.alerts.items())
    return f"{'caught' if verdict.caught else 'missed'}", verdict.step.technique, verdict.step.what, by


def _why(reason: str, title: str, width: int = 110) -> str:
    """Return *reason* without the title it begins with, on about a line."""
    text = reason.removeprefix(f"{title}: ")
    return text if len(text) <= width else text[: width - 1] + "…"
