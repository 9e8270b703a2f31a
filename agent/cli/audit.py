"""`vedette audit`: what was done, who allowed it, and that the record of it holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from agent.cli.options import DATA, AsJson, Data
from agent.errors import ConfigError, TrustError

if TYPE_CHECKING:
    from agent.audit import Entry, Leaf, Proof, Proven, Report, Verifier
    from agent.model import Document
    from agent.store import Reader

app = typer.Typer(help="Read the audit log, hold it to its signatures, prove one alert.", no_args_is_help=True)

KEY_HELP = "Verifier key, or a file that holds it; else audit.pub in the data folder."
Key = Annotated[str | None, typer.Option("--key", help=KEY_HELP)]
CopyFile = Annotated[
    Path | None,
    typer.Option("--copy", help="Read a copy of the log instead: documents from the SIEM or a sink's file."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")]
Alert = Annotated[str, typer.Argument(help="Alert id, or a unique beginning of it.")]


@app.command()
def verify(
    data: Data = DATA,
    copy: CopyFile = None,
    proof: Annotated[Path | None, typer.Option("--proof", help="Check what 'vedette audit prove' has written.")] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A checkpoint or a copy kept elsewhere: the log must hold it too.")
    ] = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Hold the audit log to what it signed: nothing edited, removed, inserted or moved, no stored alert changed.

    That the end of the log was cut off, checkpoints and all, shows only with --against. Exit code 4: it does not hold.

    Example: vedette audit verify --copy audit.ndjson --key vedette/2f1c...+0378a6f2+Ad...
    """
    from agent.audit import check_alerts, check_stored, not_stored
    from agent.audit import verify as hold
    from agent.cli.terminal import print_json, say

    if proof is not None:
        _verify_proof(proof, _verifier(key, data), as_json)
        return
    trusted = _verifier(key, data)
    alerts = None
    with _json_on_failure(as_json), _log(data, copy, trusted) as (entries, notes, stored):
        report = hold(entries, chain(notes, _notes(against, trusted) if against else ()), trusted)
        if stored is not None:
            with _store(data) as reader:
                alerts = check_alerts(reader.alert_members(), reader.members, trusted)
                gone = not_stored(reader.leaves(report.leaves), reader.alert_members())
                check_stored(report, stored, gone, trusted)
    if as_json:
        print_json([{"ok": True, **asdict(report), "stored_alerts": alerts}])
        return
    _say_report(report)
    if alerts is not None:
        say(f"  alerts    {alerts:,} are stored, each as its leaf says")
    say(f"  key       {trusted}")
    if key is None:
        say("            this key lies beside the log: compare it with the one that you keep elsewhere", "dim")


@app.command()
def show(
    data: Data = DATA,
    action: Annotated[str | None, typer.Option("--action", help="Only this action.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only from this time on (ISO 8601, UTC).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the newest.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show what was done and who did it, the newest at the end.

    Example: vedette audit show --action configuration-accepted
    """
    from agent.audit import ACTIONS
    from agent.cli.terminal import print_json, table

    if action is not None and action not in ACTIONS:
        raise typer.BadParameter(f"--action: expected one of {', '.join(ACTIONS)}")
    with _store(data) as reader:
        leaves = reader.recorded(action=action, since=None if since is None else _time(since), limit=limit)
    if as_json:
        print_json(_flat(leaf) for leaf in leaves)
    else:
        table(
            ("leaf>", "time (UTC)", "action", "what"),
            ((leaf.number, _iso(leaf)[:19].replace("T", " "), leaf.action, leaf.sentence) for leaf in leaves),
        )


@app.command()
def prove(
    alert: Alert, data: Data = DATA, copy: CopyFile = None, key: Key = None, output: Output = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Prove that an alert was found when it says, under what, and who allowed that; the whole log is verified first.

    The proof is one small file, one line for each revision of the alert, that anybody checks offline with
    'vedette audit verify --proof FILE --key KEY'.

    Example: vedette audit prove 3f2a -o proof.json
    """
    from agent.audit import check_alerts, check_proof
    from agent.audit import prove as proofs_of
    from agent.cli.terminal import say

    trusted = _verifier(key, data)
    with _log(data, copy, trusted) as (entries, notes, _):
        proofs = proofs_of(alert, entries, notes, trusted)
    proven = [check_proof(one, trusted) for one in proofs]
    if copy is None:
        with _store(data) as reader:
            check_alerts(reader.alert_members(proven[0].alert), reader.members, trusted)
    if output is not None:
        output.write_bytes(b"".join(_line(one) for one in proofs))
    if as_json:
        sys.stdout.buffer.writelines(_line(one) for one in proofs)
        return
    for one in proven:
        _say_proven(one, trusted)
    if output is not None:
        say(f"written to {output}; check it with 'vedette audit verify --proof {output} --key {trusted}'")


@app.command()
def export(data: Data = DATA, output: Output = None) -> None:
    """Write a whole copy of the audit log: one document a line, the same that sinks get.

    Example: vedette audit export -o audit.ndjson
    """
    out = sys.stdout.buffer if output is None else output.open("wb")
    try:
        out.writelines(one.body + b"\n" for one in _documents(data))
        out.flush()
    finally:
        if output is not None:
            out.close()


# --- where the log and the key come from ------------------------------------------------------------------------------


_Log: TypeAlias = "tuple[Iterable[Entry], Iterable[str], int | None]"


@contextmanager
def _log(data: Path, copy: Path | None, key: Verifier) -> Iterator[_Log]:
    """Give the leaves and the checkpoints of the log in *copy*, or in the store with how many alerts it holds."""
    from agent.audit import Copy

    if copy is not None:
        with _open(copy) as lines:
            found = Copy(lines, key.name)
        yield found.leaves(), found.checkpoints(), None
        return
    with _store(data) as reader:
        leaves, stored, signed = reader.extent()
        yield reader.leaves(leaves), (note for _, _, note in reader.checkpoints(signed)), stored


@contextmanager
def _store(data: Path) -> Iterator[Reader]:
    """Give a reader of the store; what was written over its file and cannot even be read does not hold either."""
    import apsw

    from agent.store import Reader

    try:
        with Reader(data) as reader:
            yield reader
    except apsw.Error as error:
        raise TrustError(f"the store in {data} cannot be read: {error}; keep the data folder as evidence") from None


def _verifier(key: str | None, data: Path) -> Verifier:
    from agent.audit import Verifier

    if key is not None and not Path(key).is_file():
        return Verifier.parse(key)
    path = Path(key) if key is not None else data / "audit.pub"
    if not path.is_file():
        raise ConfigError(f"no verifier key in {path}: name it with --key, or the data folder with --data")
    return Verifier.parse(path.read_text("utf-8", "replace"))


def _notes(path: Path, key: Verifier) -> list[str]:
    """Return the checkpoints in a file: a note as it is, or those in a copy of the log."""
    from agent.audit import Copy

    with _open(path) as lines:
        text = lines.read()
    if text.startswith(f"{key.name}\n".encode()):
        return [text.decode("utf-8", "replace")]
    found = Copy(text.splitlines(), key.name).checkpoints()
    if not found:
        raise ConfigError(f"{path} holds no checkpoint of the log {key.name}")
    return found


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _documents(data: Path) -> Iterator[Document]:
    from agent.audit.copy import of_checkpoint, of_leaf

    origin = _verifier(None, data).name
    with _store(data) as reader:
        leaves, _, signed = reader.extent()
        for entry in reader.leaves(leaves):
            yield of_leaf(origin, entry)
        for size, time, note in reader.checkpoints(signed):
            yield of_checkpoint(origin, size, time, note)


# --- what a person reads ----------------------------------------------------------------------------------------------


def _verify_proof(path: Path, key: Verifier, as_json: bool) -> None:
    from agent.audit import check_proof
    from agent.audit.proof import parse
    from agent.cli.terminal import print_json

    with _json_on_failure(as_json), _open(path) as file:
        proven = [check_proof(one, key) for one in parse(file.read())]
        if not proven:
            raise TrustError(f"{path} holds no proof")
    for one in proven:
        if as_json:
            print_json([{"ok": True, "alert": one.alert, "revision": one.revision, "document": one.document,
                         "batch": _flat(one.batch), "allowed": [_flat(leaf) for leaf in one.allowed],
                         "signed": one.checkpoint.size}])  # fmt: skip
        else:
            _say_proven(one, key)


def _say_report(report: Report) -> None:
    from agent.cli.terminal import say
    from agent.normalise.clock import to_text

    what = f"in its {report.signed:,} signed leaves"
    say(f"audit log {report.origin} holds: nothing edited, removed, inserted or moved {what}", "bold")
    span = f", from {to_text(report.first)} to {to_text(report.last)}" if report.leaves else ""
    say(f"  leaves    {report.leaves:,}{span}")
    say(f"  signed    {report.signed:,} by {report.checkpoints:,} checkpoints")
    if report.signed < report.leaves:
        say(f"            {report.leaves - report.signed:,} at the end are not signed yet", "yellow")
    pruned = f", {report.pruned:,} of them pruned on record" if report.pruned else ""
    say(f"  members   {report.members:,} alerts{pruned}")


def _say_proven(one: Proven, key: Verifier) -> None:
    from agent.cli.terminal import safe, say

    batch = one.batch
    ran = ", ".join(f"{name} {value}" for name, value in batch.data.items() if name not in _OF_A_BATCH)
    say(f"alert {safe(one.alert)} ({safe(one.revision)}) is in the log", "bold")
    say(f"  found     {_iso(batch)} in stream {safe(batch.stream)}, leaf {batch.number:,}")
    say(f"  ran       {safe(ran) or 'under no configuration that was signed'}")
    for leaf in one.allowed:
        say(f"  allowed   {_iso(leaf)} leaf {leaf.number:,}: {safe(leaf.sentence)}")
    say(f"  document  SHA-256 {safe(one.document)}")
    say(f"  signed    checkpoint of {one.checkpoint.size:,} leaves by {key}")


_OF_A_BATCH = frozenset({"alerts", "root", "cursor", "books"})


@contextmanager
def _json_on_failure(as_json: bool) -> Iterator[None]:
    """Let a machine read what does not hold."""
    from agent.audit import LogBroken
    from agent.cli.terminal import print_json

    try:
        yield
    except TrustError as error:
        if not as_json:
            raise
        print_json([{"ok": False, "leaf": error.number if isinstance(error, LogBroken) else None, "why": str(error)}])
        raise typer.Exit(4) from None


def _line(proof: Proof) -> bytes:
    return proof.model_dump_json().encode() + b"\n"


def _flat(leaf: Leaf) -> dict[str, Any]:
    return {**asdict(leaf), "time": _iso(leaf)}


def _iso(leaf: Leaf) -> str:
    from agent.normalise.clock import to_text

    return to_text(leaf.time)


def _time(text: str) -> int:
    from agent.model import NO_TIME
    from agent.normalise.clock import parse

    time = parse(text)
    if time == NO_TIME:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-11-01T00:00Z")
    return time
