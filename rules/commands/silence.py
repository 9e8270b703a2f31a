"""`vedette rules list`, `disable` and `enable`: which rules run, and those that are silent for a time."""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.keys import Key, PassphraseFile
from agent.cli.options import BOOTSTRAP, AsJson, Bootstrap
from agent.errors import ConfigError, VedetteError

if TYPE_CHECKING:
    from agent.config import Configuration, Locator

LONGEST = timedelta(days=366)
"""How far ahead an exception may end: who wants a rule gone for good leaves it out."""

_Rule = Annotated[str, typer.Argument(metavar="ID", help="The rule's id, as 'vedette rules list' and alerts have it.")]
_NoSign = Annotated[bool, typer.Option("--no-sign", help="Only write; sign it later with 'vedette config sign'.")]


def disable(
    rule: _Rule,
    until: Annotated[str, typer.Option("--until", help="A date, a time, or how long from now: 7d, 12h, 4w.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever reads it later.")],
    owner: Annotated[str | None, typer.Option("--owner", help="Whom to ask (default: your login).")] = None,
    bootstrap: Bootstrap = BOOTSTRAP,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    no_sign: _NoSign = False,
    as_json: AsJson = False,
) -> None:
    """Let a rule raise no alerts for events before a time; what it finds is counted. It ends by itself.

    Writes an exception into vedette.yml, shows the change, and signs it with your key. 'vedette config apply' lets the
    daemon take it. Exit code 1: no such rule, or it is silent for longer already.

    Example: vedette rules disable 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11 --until 7d --reason "ticket 4711"
    """
    from pydantic import ValidationError

    from agent.config import ExceptionConfig
    from agent.config.edit import instant_text, put_exception
    from agent.control import login

    file = File.read(bootstrap)
    end = _end(until)
    about = _known(rule, _rows(file))
    for one in file.configuration.exceptions:
        if one.rule == rule and one.until > end:
            raise VedetteError(
                f"rule {rule} is silent until {instant_text(one)} already, later than {until}: give a later --until,"
                f" or end it with 'vedette rules enable {rule}'"
            )
    try:
        wanted = ExceptionConfig(rule=rule, until=end, reason=reason, owner=owner or login())
    except ValidationError as error:
        raise typer.BadParameter("; ".join(f"--{one['loc'][0]}: {one['msg']}" for one in error.errors())) from None
    facts = {**about, **wanted.model_dump(mode="json")}
    heading = (
        f"rule {rule}: {about['title']} (level {about['level'] or 'not known here'}, detector {about['detector']})"
    )
    change = _Change(file, put_exception(file.text, file.path, wanted), heading, facts)
    change.make(bootstrap, key, passphrase_file, sign=not no_sign, as_json=as_json)


def enable(
    rule: _Rule,
    bootstrap: Bootstrap = BOOTSTRAP,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    no_sign: _NoSign = False,
    as_json: AsJson = False,
) -> None:
    """Remove the exception of a rule: it raises alerts again, for events of any time.

    Exit code 1: there is no exception for it.

    Example: vedette rules enable 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11
    """
    from agent.config.edit import end_exception, instant_text

    file = File.read(bootstrap)
    found = next((one for one in file.configuration.exceptions if one.rule == rule), None)
    if found is None:
        there = ", ".join(one.rule for one in file.configuration.exceptions) or "none"
        raise VedetteError(f"no exception for the rule {rule} in {file.path}; there are: {there}")
    heading = f"rule {rule}: silent until {instant_text(found)}: {found.reason} ({found.owner})"
    change = _Change(file, end_exception(file.text, file.path, rule), heading, {"id": rule})
    change.make(bootstrap, key, passphrase_file, sign=not no_sign, as_json=as_json)


def list_(bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """List the rules of each detector of the configuration, those that cannot run and why, and which are silent.

    Withheld is how many findings exceptions have kept from being alerts so far.

    Example: vedette rules list -b bootstrap.yml
    """
    from agent.cli.terminal import print_json, safe, say, table
    from agent.config.edit import instant_text

    file = File.read(bootstrap)
    rows = _rows(file)
    ends = {one.rule: instant_text(one) for one in file.configuration.exceptions}
    withheld = _withheld(file.data)
    for row in rows:
        row |= {"until": ends.get(row["id"], ""), "withheld": withheld.get(row["id"], 0)}
    if as_json:
        print_json(rows)
        return
    table(
        ("detector", "rule", "title", "level", "silent until", "withheld>"),
        (
            (row["detector"], row["id"], row["title"], row["level"], row["until"], row["withheld"] or "")
            for row in rows
            if row["state"] == "loaded"
        ),
    )
    for row in rows:
        if row["state"] == "refused":
            say(f"{row['detector']}: refused: {safe(row['reason'])}", "yellow")
    for rule in ends.keys() - {row["id"] for row in rows}:
        say(f"exception for {safe(rule)}: no detector has such a rule", "yellow")


@dataclass(frozen=True)
class File:
    """The configuration as it lies."""

    path: Path
    data: Path
    text: bytes
    configuration: Configuration
    locator: Locator

    @classmethod
    def read(cls, bootstrap: Path) -> File:
        from agent.config import load_bootstrap
        from agent.config.load import parse, read
        from agent.config.revision import FILE

        where = load_bootstrap(bootstrap)
        path = where.configuration / FILE
        text = read(path)
        return cls(path, where.data, text, *parse(text, path))


@dataclass(frozen=True)
class _Change:
    """A new text of the configuration, and what it is about."""

    file: File
    text: bytes
    heading: str
    facts: dict[str, Any]

    def make(
        self, bootstrap: Path, key: Path | None, passphrase_file: Path | None, *, sign: bool, as_json: bool
    ) -> None:
        """Show it, have it signed unless *sign* is false, and say what comes next.

        Nothing is written before the key is open: whoever gives no passphrase has changed nothing.
        """
        from agent.cli import config
        from agent.cli.keys import unlock
        from agent.cli.terminal import print_json, safe, say

        path = str(self.file.path)
        lines = config.differences(self.file.text, self.text, path, path)
        pending = _pending(self.file, bootstrap)
        if not as_json:
            say(safe(self.heading), "bold")
            config.say_differences(lines)
            for section in pending:
                say(f"not applied yet, and signed with it: {section}", "yellow")
        private = unlock(key, passphrase_file) if sign else None
        config.rewrite(self.file.path, self.file.text, self.text)
        try:
            signed = config.sign_as(bootstrap, private) if private else None
        except VedetteError:
            config.rewrite(self.file.path, self.text, self.file.text)
            raise
        following = f"vedette config {'apply' if signed and not signed.missing else 'sign'} -b {bootstrap}"
        if as_json:
            done = {"diff": lines, "pending": pending, "signed": asdict(signed) if signed else None}
            print_json([{**self.facts, **done, "next": following}])
            return
        if signed:
            config.say_signed(signed)
        say(f"next: {following}")


def _pending(file: File, bootstrap: Path) -> list[str]:
    """Return the sections in which the file differs from what runs already; none where that cannot be known."""
    from agent.cli.config import standing
    from agent.config.revision import changes

    try:
        _, _, before, _ = standing(bootstrap)
    except ConfigError:
        return []
    return changes(before.configuration, file.configuration) if before else []


def _rows(file: File) -> list[dict[str, Any]]:
    """Return each rule of the configuration, by detector, and each that its detector refused."""
    from agent.assemble import build_detector
    from agent.ports import Ruled

    cache = file.data / "cache"
    rows = []
    for name, section in file.configuration.detectors.items():
        detector = build_detector(file.configuration, file.locator, name, cache if _writable(cache) else None)
        if isinstance(detector, Ruled):
            rows += [_row(name, one.id, one.title, one.level) for one in detector.rules()]
        else:
            rows.append(_row(name, detector.id, str(section.options.get("title", section.type))))
        rows += [_row(name, reason=reason) for reason in detector.plan().get("refused", ())]
    return rows + [_row("", name, "model") for name in file.configuration.models]


def _row(detector: str, id: str = "", title: str = "", level: str = "", reason: str = "") -> dict[str, Any]:
    return {"detector": detector, "id": id, "title": title, "level": level,
            "state": "refused" if reason else "loaded", "reason": reason}  # fmt: skip


def _known(rule: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of *rule*; VedetteError with those that look like it if there is none."""
    titles = {row["id"]: row["title"] for row in rows if row["state"] == "loaded"}
    if rule in titles:
        return next(
            {key: row[key] for key in ("detector", "id", "title", "level")} for row in rows if row["id"] == rule
        )
    close = [id for id, title in titles.items() if rule.lower() in title.lower()][:5]
    close += [id for id in difflib.get_close_matches(rule, titles, n=3) if id not in close]
    named = "; ".join(f"{id} ({titles[id]})" for id in close)
    raise VedetteError(
        f"no detector of the configuration has a rule {rule!r}; "
        + (f"did you mean {named}" if close else "'vedette rules list' names all there are")
    )


def _end(text: str) -> datetime:
    """Return the time that ``--until`` means: what is no duration is a time, in UTC unless it says otherwise."""
    from agent.detect.windows import duration
    from agent.normalise.clock import to_datetime
    from agent.store.sqlite import clock

    now = to_datetime(clock()).replace(microsecond=0)
    end = None
    with suppress(ValueError):
        end = now + timedelta(microseconds=duration(text))
    with suppress(ValueError, OverflowError):
        if end is None:
            end = datetime.fromisoformat(text)
            end = end.astimezone(UTC) if end.tzinfo else end.replace(tzinfo=UTC)
    if end is None:
        raise typer.BadParameter(f"--until: expected a date such as 2026-12-24 or a duration such as 7d, got {text!r}")
    if not now < end <= now + LONGEST:
        raise typer.BadParameter(
            f"--until: expected a time from now on, at most {LONGEST.days} days ahead, got {text!r}"
        )
    return end


def _withheld(data: Path) -> dict[str, int]:
    """Return how many findings were withheld by rule; nothing where there is no store to read."""
    from collections import Counter

    from agent.alerting.judge import EXCEPTED, OPERATOR
    from agent.store import Reader

    prefix, found = f"{OPERATOR}.{EXCEPTED}.", Counter[str]()
    with suppress(ConfigError), Reader(data) as reader:
        for numbers in reader.counters().values():
            for name, number in numbers.items():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] += number
    return found


def _writable(folder: Path) -> bool:
    import os

    return os.access(folder, os.W_OK)
