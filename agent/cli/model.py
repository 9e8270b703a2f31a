"""`vedette model`: training a model artifact, signing it, and asking whether it may run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agent.cli.config import standing
from agent.cli.features import LogPaths, RecipeFile, reading
from agent.cli.keys import Key, PassphraseFile, unlock
from agent.cli.options import BOOTSTRAP, AsJson, Bootstrap
from agent.cli.terminal import print_json, safe, say, table

if TYPE_CHECKING:
    from agent.access import Policy

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The artifact's folder.")]
app = typer.Typer(help="Models: train, sign, verify, list.", no_args_is_help=True)


@app.command("train")
def train(
    recipe: RecipeFile,
    logs: LogPaths,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the artifact; it must not exist.")],
    title: Annotated[str, typer.Option("--title", help="Short, stable title of its alerts.")] = "",
    level: Annotated[
        Literal["informational", "low", "medium", "high", "critical"],
        typer.Option("--level", help="Severity of its alerts."),
    ] = "medium",
    technique: Annotated[list[str] | None, typer.Option("--technique", help="ATT&CK technique id; repeatable.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave out a span, BEGIN/END in ISO 8601; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Same input and seed, same model.")] = 7,
    days: Annotated[int, typer.Option("--days", min=1, max=3_660, help="How long the model holds.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Train an isolation forest on log files: the first 70 % of the rows, calibrated on what comes later.

    The same input, seed and SOURCE_DATE_EPOCH give the same bytes. It is not signed yet: 'vedette model sign'.

    Example: vedette model train recipes/logons-by-user.yml logs/ -o models/logons --title "Unusual logons of a user"
    """
    from agent import artifact
    from agent.errors import ConfigError
    from agent.model import SECOND
    from agent.science.inputs import load
    from agent.science.train import Options
    from agent.science.train import train as learn
    from agent.trust.manifest import MANIFEST, parse

    if out.exists():
        raise ConfigError(f"{out} exists; choose another folder for the artifact")
    wanted = load(recipe)
    options = Options(
        title=title or f"Unusual {wanted.name}",
        source=", ".join(map(str, logs)),
        command=f"vedette model train {recipe}",
        by=os.environ.get("USER") or f"uid {os.getuid()}",
        now=int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()) * SECOND,
        seed=seed,
        days=days,
        level=level,
        techniques=tuple(technique or ()),
        exclude=[_span(text) for text in exclude or ()],
    )
    files = learn(wanted, reading(logs), options)
    artifact.write(out, files)
    manifest = parse(files[MANIFEST])
    learnt, later = manifest.training, manifest.calibration
    if as_json:
        print_json([{"folder": str(out), "manifest": manifest.model_dump(mode="json")}])
        return
    say(f"{out}: {manifest.title} ({manifest.id}), holds until {manifest.not_after}")
    say(f"learnt from {learnt.rows:,} rows, {learnt.begin} to {learnt.end}")
    say(f"calibrated on {later.rows:,} rows up to {later.end}, {later.rows_per_day:,.0f} a day")
    say(f"smallest alert budget: {later.smallest_budget:.3g} a day")
    if constant := manifest.provenance.get("constant"):
        say(f"always the same in training, so of no use: {constant}")
    say(f"next: vedette model sign {out}")


@app.command("sign")
def sign(folder: Folder, key: Key = None, passphrase_file: PassphraseFile = None) -> None:
    """Sign an artifact (OpenSSF Model Signing, P-256) and say how a configuration names it.

    Example: vedette model sign models/logons --key ~/.config/vedette/keys/kim.pem
    """
    from agent import artifact
    from agent.errors import ConfigError
    from agent.trust import oms
    from agent.trust.manifest import MANIFEST, parse

    files = artifact.read(folder)
    files.pop(oms.SIGNATURE, None)
    if MANIFEST not in files:
        raise ConfigError(f"{folder} is no artifact: it has no {MANIFEST}; 'vedette model train' makes one")
    manifest = parse(files[MANIFEST])
    private = unlock(key, passphrase_file)
    signature = oms.sign(files, manifest.id, private)
    signed = oms.verify(files, signature, [private.public_key()])
    artifact.put(folder, oms.SIGNATURE, signature)
    say(f"signed {folder} with the key {signed.signer}")
    say("to let it run, put this into vedette.yml, raise its revision and sign it:\n")
    print(f"models:\n  {manifest.id}:\n    path: {folder.resolve()}\n    digest: sha256:{signed.digest}")
    print("    streams: [main]\n    state: shadow\n    budget: 5  # alerts a day")


@app.command("verify")
def verify(folder: Folder, bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """Say whether an artifact may run: signed by whom, as what, until when. Exit code 4 if it may not.

    Example: vedette model verify models/logons -b bootstrap.yml
    """
    policy, tenant = _in_force(bootstrap)
    facts = _admitted(folder, policy, tenant)
    if as_json:
        print_json([facts])
    else:
        say(f"{folder}: {facts['title']} ({facts['id']}) may run for tenant {tenant} until {facts['not_after']}")
        say(f"digest {facts['digest']}, signed by {facts['signer']}")


@app.command("list")
def list_(bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """List the models that the configuration in force names, and whether each may run. Exit code 4 if one may not.

    Realised is how many alerts a day its findings so far come to, at as many events or windows a day as it was
    calibrated on: hold it against the budget.

    Example: vedette model list -b bootstrap.yml
    """
    from agent.assemble import admit_model
    from agent.config import load_bootstrap
    from agent.errors import ConfigError, TrustError
    from agent.service import accepted_last
    from agent.store import Reader
    from agent.store.sqlite import clock

    where = load_bootstrap(bootstrap)
    accepted = accepted_last(where)
    with Reader(where.data) as reader:
        counters = reader.counters()
    rows: list[dict[str, Any]] = []
    for name, section in accepted.configuration.models.items():
        row = {"name": name, "state": section.state, "streams": section.streams, "budget": section.budget,
               "digest": section.digest, "until": "", "signer": "", "threshold": None, "refused": "",
               "judged": 0, "found": 0, "realised": None}  # fmt: skip
        try:
            found = admit_model(accepted, name, clock())
            plan = found.plan()
            judged, findings = (
                sum(one.get(f"{name}.model.{name}.{what}", 0) for one in counters.values())
                for what in ("judged", "found")
            )
            rate = found.manifest.calibration.rows_per_day
            row |= {"judged": judged, "found": findings, "realised": findings / judged * rate if judged else None}
            row |= {"until": plan["not_after"], "signer": plan["signer"], "threshold": plan["threshold"]["p_value"]}
        except (TrustError, ConfigError) as error:
            row["refused"] = str(error)
        rows.append(row)
    if as_json:
        print_json(rows)
    elif rows:
        table(
            (
                "model",
                "state",
                "streams",
                "budget>",
                "realised>",
                "of judged>",
                "alerts if p is at most>",
                "until (UTC)",
                "signed by",
            ),
            (
                (
                    r["name"],
                    r["state"],
                    ", ".join(r["streams"]),
                    r["budget"],
                    _number(r["realised"]),
                    r["judged"],
                    _number(r["threshold"]),
                    r["until"][:16].replace("T", " "),
                    r["signer"],
                )
                for r in rows
            ),
        )
        for row in rows:
            if row["refused"]:
                say(f"{row['name']}: {safe(row['refused'])}", "bold red")
    else:
        say(f"revision {accepted.revision} names no model")
    raise typer.Exit(4 if any(row["refused"] for row in rows) else 0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _in_force(bootstrap: Path) -> tuple[Policy, str]:
    """Return who may what now, and for which tenant: by the last configuration, or by the trust root alone."""
    from agent.config.revision import policy_of

    _, root, accepted, _ = standing(bootstrap)
    return (accepted.policy, accepted.configuration.tenant) if accepted else (policy_of(None, root), "default")


def _admitted(folder: Path, policy: Policy, tenant: str) -> dict[str, str]:
    """Return what is true of the artifact in *folder*, if it may run once it is named; else TrustError."""
    from agent import artifact
    from agent.assemble import admit_files
    from agent.store.sqlite import clock
    from agent.trust import oms

    files = artifact.read(folder)
    digest = oms.digest({name: data for name, data in files.items() if name != oms.SIGNATURE})
    found = admit_files(files, folder.name, digest, policy, tenant, clock())
    return {
        "id": found.manifest.id,
        "title": found.manifest.title,
        "digest": f"sha256:{found.digest}",
        "signer": str(policy.principals[found.signer]),
        "not_after": found.manifest.not_after,
    }


def _span(text: str) -> tuple[int, int]:
    from agent.model import NO_TIME
    from agent.normalise.clock import parse

    begin, end = (parse(part) for part in (*text.split("/", 1), "")[:2])
    if NO_TIME in (begin, end) or begin >= end:
        raise typer.BadParameter(f"--exclude: expected BEGIN/END such as 2026-01-05/2026-01-07T12:00Z, got {text!r}")
    return begin, end
