"""`vedette rules check`, `test` and `explain`: a rule while it is written."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from agent.cli.options import BOOTSTRAP, AsJson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.sigma.correlate import Attempt
    from rules.sigma.documents import Files
    from rules.sigma.explain import Test
    from rules.sigma.parse import Collection
    from rules.verdict import Account, Hearing, Lines, Verdict, Written

Rules = Annotated[str, typer.Argument(metavar="PATH", help="Rules: a folder, a file, .tar.gz or .zip; builtin: ours.")]
Pipelines = Annotated[
    list[Path] | None,
    typer.Option(
        "--pipeline",
        metavar="FILE",
        help="pySigma processing pipelines, read as if they lay beside the rules; may be repeated.",
    ),
]

_SHOWN = 10

Junit = Annotated[Path | None, typer.Option("--junit", help="Write the checks there as JUnit XML, for CI.")]


def check(
    path: Rules,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="A check not to make, by its name; may be repeated.")
    ] = None,
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Name all that is wrong with rules at once, with file:line:column, check and reason.

    Checks: refused (it cannot run), missing (id, title, level, description, logsource), key (unknown keys), tag (ATT&CK
    tags), title (titles given twice), remark (it runs, but not as it may be meant), log-source (no mapping feeds it),
    field (no mapping writes it). Exit code 1: something is wrong.

    Examples:
      vedette rules check rules/
      vedette rules check sigma-rules.tar.gz --leave-out log-source --json
    """
    from collections import Counter

    from agent.cli.terminal import print_json, safe, say
    from rules.detector import place
    from rules.lint import CHECKS, lint
    from rules.sigma.documents import read_files, read_pipelines

    if unknown := set(leave_out or ()) - CHECKS.keys():
        raise typer.BadParameter(f"--leave-out: expected {', '.join(CHECKS)}, got {', '.join(sorted(unknown))}")
    files = read_files(place(path))
    found = [one for one in lint(files + read_pipelines(pipeline or ())) if one.check not in (leave_out or ())]
    if as_json:
        print_json({"path": one.path, "line": one.line, "column": one.column, "check": one.check,
                    "reason": one.reason} for one in found)  # fmt: skip
    else:
        for one in found:
            print(safe(f"{one.place}: {one.check}: {one.reason}"))
        numbers = ", ".join(f"{number} {name}" for name, number in Counter(one.check for one in found).most_common())
        say(f"{len(files):,} files: {numbers or 'nothing wrong'}")
    if found:
        raise typer.Exit(1)


def put(
    path: Rules,
    events: Annotated[
        Path | None,
        typer.Option("--events", help="A folder of log files by rule id: ID/hits/... and ID/misses/..."),
    ] = None,
    junit: Junit = None,
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Put rules to their hits and near misses, which lie beside them: name.test.json beside name.yml.

    Each case that fails is a line, with the reason. Exit code 1: a case failed, or a rule cannot run.

    Examples:
      vedette rules test rules/
      vedette rules test rules/ --events samples/ --junit results.xml
    """
    from agent.cli.terminal import print_json, safe, say
    from agent.errors import ConfigError
    from agent.store.sqlite import clock
    from rules.cases import Trial, read_cases
    from rules.detector import place
    from rules.junit import Check, write
    from rules.sigma.documents import read_files, read_pipelines

    where = place(path)
    if events is not None and not events.is_dir():
        raise ConfigError("no such folder", str(events))
    files = read_files(where)
    trial = Trial(files + read_pipelines(pipeline or ()), clock())
    folder = where if where.is_dir() else where.parent
    checks = [Check("collection", "can run", reason) for reason in trial.refused]
    bare = []
    for name, _ in files:
        cases = read_cases(folder, name)
        checks += [trial.put(name, case) for case in cases]
        if not cases:
            bare.append(name)
    if events is not None:
        checks += trial.put_logs(events)
    if junit is not None:
        write(junit, "vedette rules test", checks)
    failed = [one for one in checks if one.failure]
    if as_json:
        print_json(one._asdict() for one in checks)
    else:
        for one in failed:
            print(safe(f"{one.group}: {one.name}: {one.failure}"))
        say(f"{len(checks)} checks, {len(failed)} failed; {len(files)} rule files, {len(bare)} without cases")
    if failed:
        raise typer.Exit(1)


def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="A rule file, or an id: one of ours or configured.")],
    event: Annotated[
        str,
        typer.Argument(
            metavar="EVENTS", help="A file with one event; for a correlation any number, one a line. -: standard input."
        ),
    ],
    format: Annotated[
        str, typer.Option("--format", help="The events' format; auto: json for an object, else lines of syslog.")
    ] = "auto",
    bootstrap: Annotated[
        Path, typer.Option("--bootstrap", "-b", envvar="VEDETTE_BOOTSTRAP", help="Names the configuration.")
    ] = BOOTSTRAP,
    pipeline: Pipelines = None,
    as_json: AsJson = False,
) -> None:
    """Show why a rule did or did not match an event: its log source, then selection by selection, test by test.

    Of a correlation: how many events each of its rules matched, and for which groups and windows its condition held, as
    if no more events came; where it held for none, which came nearest. The events that count are named by their lines.

    Exit code 1: it did not match.

    Examples:
      vedette rules explain rules/mimikatz.yml event.json
      jq .event sample.json | vedette rules explain 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11 -
      vedette rules explain rules/password_guessing.yml auth.log
    """
    from agent.cli.terminal import print_json
    from agent.store.sqlite import clock
    from rules.sigma.documents import read_pipelines
    from rules.verdict import Hearing, hear, judge, wanted

    raw = _events(event)
    if format == "auto":
        format = "json" if raw[:1] == b"{" else "syslog"
    beside = read_pipelines(pipeline or ())
    collection, id = _correlations_called(rule, bootstrap, beside)
    correlations = wanted(collection, id)
    lines = _lines(raw)
    verdicts: list[Verdict] = []
    heard = Hearing((), {}, {})
    if not correlations or (len(lines) == 1 and not id):
        verdicts = [judge(one, format, _one(raw, event), clock()) for one in rules_called(rule, bootstrap, beside)]
    if correlations:
        heard = hear(collection, correlations, format, lines, clock())
    if as_json:
        print_json([*map(_facts, verdicts), *(_account_facts(one, heard) for one in heard.accounts)])
    else:
        for verdict in verdicts:
            _say_verdict(verdict)
        for account in heard.accounts:
            _say_account(account)
        _say_rest(heard)
    taken = {id for one in heard.accounts for id in one.inner}
    outer = [one for one in heard.accounts if one.about.id not in taken]
    if not any(one.held for one in outer) if outer else not any(one.matched for one in verdicts):
        raise typer.Exit(1)


def _events(name: str) -> bytes:
    """Return what the file *name* holds."""
    from agent.errors import ConfigError

    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the event: {error.strerror}", name) from error
    if not raw.strip():
        raise ConfigError("no event: the input is empty", name)
    return raw


def _one(raw: bytes, name: str) -> bytes:
    """Return the only event: a line of JSON or of text, or an object over several lines."""
    from agent.errors import ConfigError

    raw = raw.strip()
    if raw[:1] == b"{":
        try:
            orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"expected one event, a JSON object: {error}", name) from error
    return raw


def _lines(raw: bytes) -> Lines:
    """Return the events of which each has a line; an object over several lines is one."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    return [(1, raw.strip())]


def _correlations_called(name: str, bootstrap: Path, beside: Files) -> tuple[Collection, str]:
    """Return the collection with the correlations of the file *name*, or with the one of that id; empty if there is
    none, and the id to look for. *beside* is read as if it lay beside either."""
    from rules.sigma.documents import parse_documents, read_files
    from rules.sigma.parse import Collection, compile_files

    if Path(name).exists():
        return compile_files(read_files(Path(name)) + beside), ""
    for files in _collections(bootstrap):
        for path, content in files:
            if name.encode() not in content:
                continue
            if any(
                one.data.get("id") == name and "correlation" in one.data for one in parse_documents(path, content, [])
            ):
                return compile_files(files + beside), name
    return Collection(), name


def rules_called(name: str, bootstrap: Path, beside: Files) -> list[Written]:
    """Return the rules of the file *name* alone, or the one of that id with what lies beside it in its collection.

    *beside* is read as if it lay beside either."""
    from agent.errors import ConfigError, VedetteError
    from rules.sigma.documents import read_files
    from rules.sigma.parse import compile_files
    from rules.verdict import Library

    if Path(name).exists():
        files = read_files(Path(name)) + beside
        if found := list(Library(files).rules()):
            return found
        reasons = compile_files(files).refused or ["it holds correlations only: explain one of the rules they join"]
        raise ConfigError(reasons[0], name)
    for files in _collections(bootstrap):
        if found := list(Library(files + beside).rules(id=name)):
            return found
    raise VedetteError(f"no rule file {name}, and no rule of that id, neither ours nor in {bootstrap}")


def _collections(bootstrap: Path) -> Iterator[Files]:
    """Yield our own rules, and those of the configuration's detectors where there is one."""
    from rules.commands.silence import File
    from rules.detector import place
    from rules.sigma.documents import read_files

    yield read_files(place("builtin"))
    detectors = File.read(bootstrap).configuration.detectors if bootstrap.exists() else {}
    for detector in detectors.values():
        if detector.type == "sigma" and "path" in detector.options:
            where = [place(detector.options["path"]), *map(Path, detector.options.get("pipeline", ()))]
            yield [(f"{one}:{name}", content) for one in where for name, content in read_files(one)]


def _facts(verdict: Verdict) -> dict[str, Any]:
    return {
        "rule": verdict.rule.id, "title": verdict.rule.title, "matched": verdict.matched,
        "condition": verdict.condition, "log_source": verdict.source and asdict(verdict.source),
        "selections": {name: asdict(test) for name, test in verdict.selections.items()},
        "filters": {place: asdict(test) for place, test in verdict.filters.items()},
        "why_not": verdict.why_not(),
    }  # fmt: skip


def _account_facts(account: Account, heard: Hearing) -> dict[str, Any]:
    about = account.about
    return {
        "rule": about.id, "title": about.title, "matched": bool(account.held),
        "condition": account.asked, "group_by": about.group_by,
        "matches": account.matches, "inner": account.inner,
        "groups": len({one.group for one in account.attempts}), "windows": len(account.attempts),
        "held": [_attempt_facts(account, one) for one in account.held],
        "nearest": account.nearest and _attempt_facts(account, account.nearest),
        "uncounted": heard.uncounted,
        "unreadable": [{"line": line, "reason": reason} for line, reason in heard.unreadable.items()],
    }  # fmt: skip


def _attempt_facts(account: Account, attempt: Attempt) -> dict[str, Any]:
    from agent.normalise.clock import to_text

    about = account.about
    return {
        "group": dict(zip(about.group_by, attempt.group, strict=True)),
        "window": [*map(to_text, attempt.window)], "holds": attempt.holds,
        "measured": attempt.measured, "rules": [about.rules[number] for number in attempt.present],
        "since": to_text(attempt.since), "until": to_text(attempt.until),
        "lines": [one.key for one in attempt.events], "total": attempt.total,
        "said": account.found(attempt),
    }  # fmt: skip


def _say_account(account: Account) -> None:
    from agent.cli.terminal import safe, say

    about, held = account.about, account.held
    said = f"holds in {_number(len(held), 'window')}" if held else "does not hold"
    say(f"{safe(about.title)} ({safe(about.id)}): {said}", "bold green" if held else "bold yellow")
    say(f"  asked: {safe(account.asked)}")
    for id, number in account.matches.items():
        say(f"    {safe(account.titles[id])}: matches {_number(number, 'event')}")
    for id, number in account.inner.items():
        say(f"    {safe(account.titles[id])}: holds in {_number(number, 'window')}")
    groups = len({one.group for one in account.attempts})
    say(f"  counted: {_number(groups, 'group')}, {_number(len(account.attempts), 'window')}")
    for one in held[:_SHOWN]:
        say(f"    {safe(_attempt_text(account, one))}")
    if len(held) > _SHOWN:
        say(f"    and {_number(len(held) - _SHOWN, 'more window')}")
    if account.nearest:
        say(f"    nearest: {safe(_attempt_text(account, account.nearest))}")


def _attempt_text(account: Account, attempt: Attempt) -> str:
    from rules.verdict import moment

    start, end = attempt.window
    group = ", ".join(f"{name} {value}" for name, value in zip(account.about.group_by, attempt.group, strict=True))
    lines = [str(one.key) for one in attempt.events]
    total = len(lines) if account.about.monotone else max(attempt.total, len(lines))
    more = f" and {total - _SHOWN} more" if total > _SHOWN else ""
    cited = f"; line{'' if total == 1 else 's'} {', '.join(lines[:_SHOWN])}{more}" if lines else ""
    return (
        f"{group}{', ' if group else ''}window {moment(start)} to {moment(end, start)}: {account.found(attempt)}{cited}"
    )


def _say_rest(heard: Hearing) -> None:
    from agent.cli.terminal import safe, say

    if heard.uncounted:
        say(f"not counted: {', '.join(f'{number:,} {name}' for name, number in heard.uncounted.items())}")
    for number, reason in list(heard.unreadable.items())[:_SHOWN]:
        say(f"line {number} cannot be read: {safe(reason)}")
    if len(heard.unreadable) > _SHOWN:
        say(f"and {_number(len(heard.unreadable) - _SHOWN, 'more line')}")


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _say_verdict(verdict: Verdict) -> None:
    from agent.cli.terminal import safe, say
    from rules.verdict import source_name

    about = verdict.rule
    said = "matches" if verdict.matched else "does not match"
    say(f"{safe(about.title)} ({safe(about.id)}): {said}", "bold green" if verdict.matched else "bold yellow")
    source = safe(source_name(about))
    if verdict.source is None:
        say(f"  log source {source}: no mapping feeds it")
    else:
        say(f"  log source {source}: {_truth(verdict.source)}")
        if not verdict.source.holds:
            _say_test(verdict.source, 4)
    say(f"  condition {safe(verdict.condition)}: {'true' if verdict.holds else 'false'}")
    for name, test in verdict.selections.items():
        say(f"    {safe(name)}: {_truth(test)}")
        _say_test(test, 6)
    for place, test in verdict.filters.items():
        say(f"  filter {safe(place)}: {_truth(test)}")
        _say_test(test, 4)


def _say_test(test: Test, depth: int) -> None:
    from agent.cli.terminal import safe, say
    from rules.verdict import sentence

    if not test.parts:
        say(f"{' ' * depth}{_truth(test)}: {safe(sentence(test))}")
        return
    say(f"{' ' * depth}{_truth(test)}: {test.expected}")
    for part in test.parts:
        _say_test(part, depth + 2)


def _truth(test: Test) -> str:
    return "true" if test.holds else "false"
