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

    from rules.sigma.documents import Files
    from rules.sigma.explain import Test
    from rules.verdict import Verdict, Written

Rules = Annotated[str, typer.Argument(metavar="PATH", help="Rules: a folder, a file, .tar.gz or .zip; builtin: ours.")]

Junit = Annotated[Path | None, typer.Option("--junit", help="Write the checks there as JUnit XML, for CI.")]


def check(
    path: Rules,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="A check not to make, by its name; may be repeated.")
    ] = None,
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
    from rules.sigma.documents import read_files

    if unknown := set(leave_out or ()) - CHECKS.keys():
        raise typer.BadParameter(f"--leave-out: expected {', '.join(CHECKS)}, got {', '.join(sorted(unknown))}")
    files = read_files(place(path))
    found = [one for one in lint(files) if one.check not in (leave_out or ())]
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
    from rules.sigma.documents import read_files

    where = place(path)
    if events is not None and not events.is_dir():
        raise ConfigError("no such folder", str(events))
    files = read_files(where)
    trial = Trial(files, clock())
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
    event: Annotated[str, typer.Argument(metavar="EVENT", help="A file with one event, or - for standard input.")],
    format: Annotated[
        str, typer.Option("--format", help="The event's format; auto: json for an object, else a line of syslog.")
    ] = "auto",
    bootstrap: Annotated[
        Path, typer.Option("--bootstrap", "-b", envvar="VEDETTE_BOOTSTRAP", help="Names the configuration.")
    ] = BOOTSTRAP,
    as_json: AsJson = False,
) -> None:
    """Show why a rule did or did not match an event: its log source, then selection by selection, test by test.

    Exit code 1: it did not match.

    Examples:
      vedette rules explain rules/mimikatz.yml event.json
      jq .event sample.json | vedette rules explain 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11 -
    """
    from agent.cli.terminal import print_json
    from agent.store.sqlite import clock
    from rules.verdict import judge

    raw = _event(event)
    if format == "auto":
        format = "json" if raw[:1] == b"{" else "syslog"
    verdicts = [judge(one, format, raw, clock()) for one in rules_called(rule, bootstrap)]
    if as_json:
        print_json(map(_facts, verdicts))
    else:
        for one in verdicts:
            _say_verdict(one)
    if not any(one.matched for one in verdicts):
        raise typer.Exit(1)


def _event(name: str) -> bytes:
    """Return the event in the file *name*: a line of JSON or of text, or an object over several lines."""
    from agent.errors import ConfigError

    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the event: {error.strerror}", name) from error
    if not (raw := raw.strip()):
        raise ConfigError("no event: the input is empty", name)
    if raw[:1] == b"{":
        try:
            orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"expected one event, a JSON object: {error}", name) from error
    return raw


def rules_called(name: str, bootstrap: Path) -> list[Written]:
    """Return the rules of the file *name* alone, or the one of that id with what lies beside it in its collection."""
    from agent.errors import ConfigError, VedetteError
    from rules.sigma.documents import read_files
    from rules.sigma.parse import compile_files
    from rules.verdict import Library

    if Path(name).exists():
        files = read_files(Path(name))
        if found := list(Library(files).rules()):
            return found
        reasons = compile_files(files).refused or ["it holds correlations only: explain one of the rules they join"]
        raise ConfigError(reasons[0], name)
    for files in _collections(bootstrap):
        if found := list(Library(files).rules(id=name)):
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
