"""`vedette init` and `vedette config`: a configuration, who signed it, whether they may, and what it changes."""

from __future__ import annotations

import difflib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.keys import Key, PassphraseFile, check_name, key_path, make, principal, unlock
from agent.cli.options import BOOTSTRAP, AsJson, Bootstrap
from agent.control import login
from agent.errors import AccessDenied, ConfigError, TrustError, VedetteError

if TYPE_CHECKING:
    from agent.access import Principal
    from agent.config import Accepted
    from agent.ports import Check
    from agent.trust.keys import PrivateKey

app = typer.Typer(help="The configuration: check, sign, diff, apply.", no_args_is_help=True)

_STARTER = """\
# yaml-language-server: $schema=vedette.schema.json
# What Vedette does. Every change takes a higher revision and a signature: 'vedette config sign'.
revision: 1

sources:
  logs: {{type: files, paths: [{logs}], follow: true}}

detectors:
  rules: {{type: sigma, path: builtin}}

streams:
  main: {{source: logs, detectors: [rules]}}
"""
_TRUST = """\
# What this machine is told by hand: where things lie, and whom it trusts before it has read anything.
data: {data}
configuration: .
{listen}  # /livez, /readyz and /metrics over HTTP, without a login
trust_root:
  {name}:
{principal}"""


def init(
    folder: Annotated[Path, typer.Argument(help="Where bootstrap.yml and vedette.yml go.")] = Path(),
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Data folder (default: data in it).")] = None,
    logs: Annotated[str, typer.Option("--logs", help="What to read, to begin with.")] = "/var/log",
    name: Annotated[str | None, typer.Option("--name", help="Your name as a principal (default: your login).")] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", help="Serve health and metrics there, such as 127.0.0.1:9464.")
    ] = None,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a set-up for one person that works: a signing key, a trust root, a signed configuration.

    The key is sealed by a passphrase and lies outside the data folder: the service never needs it.

    Example: vedette init /etc/vedette --data /var/lib/vedette --name alice
    """
    from agent.cli.terminal import say
    from agent.config.model import Configuration
    from agent.config.revision import ENVELOPE, FILE

    who = name or login()
    check_name(who)
    path = key or key_path(who)
    where = (folder / (data or "data")).resolve()
    served = "# listen: 127.0.0.1:9464" if listen is None else f"listen: {_quoted(listen)}"
    bootstrap, config, schema = folder / "bootstrap.yml", folder / FILE, folder / "vedette.schema.json"
    for taken in (bootstrap, config):
        if taken.exists():
            raise ConfigError("it is there already and is not overwritten", str(taken))
    if path.resolve().is_relative_to(where):
        raise ConfigError("a signing key must not lie in the service's data folder; choose another --key", str(path))
    with _all_or_nothing(path, bootstrap, config, schema, folder / ENVELOPE):
        folder.mkdir(parents=True, exist_ok=True)
        private = make(path, passphrase_file)
        me = principal(private, ["admin"], 4)
        bootstrap.write_text(_TRUST.format(data=_quoted(str(data or "data")), listen=served, name=who, principal=me))
        config.write_text(_STARTER.format(logs=_quoted(logs)))
        schema.write_text(_schema_text(Configuration.model_json_schema()))
        say_signed(sign_as(bootstrap, private))
    say(f"signing key of {who}: {path}")
    say(f"trust root: {bootstrap}; configuration: {config}, its schema for editors beside it")
    say("trust: single-user - you sign everything until the configuration names a second principal", "yellow")
    say(f"\nnext: vedette run -b {bootstrap}")


@app.command("check")
def check(bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """Say whether the configuration can run, what it changes, and whose signatures it has and needs.

    Exit codes: 0 it would be taken, 3 it is wrong, 4 signatures are missing or not enough.

    Example: vedette config check -b bootstrap.yml
    """
    from agent.assemble import build_sink, build_stream
    from agent.cli.terminal import print_json, safe, say
    from agent.config.edit import instant_text
    from agent.config.load import read
    from agent.config.revision import FILE, Files, assumed
    from agent.normalise.clock import to_datetime
    from agent.store.sqlite import clock

    where, root, before, above = standing(bootstrap)
    text = read(where.configuration / FILE)
    candidate = assumed(Files(where.configuration, text, b""), root)
    for name in candidate.configuration.sinks:
        build_sink(candidate.configuration, candidate.locator, name)
    refused = [
        str(one) for id in candidate.configuration.streams for one in build_stream(candidate, id, None, clock()).refused
    ]
    over = candidate.configuration.exceptions_over(to_datetime(clock()))
    verdict = _verdict(where.configuration, root, before, above)
    rows = _needs(candidate, before, root)
    if as_json:
        print_json([{"revision": candidate.revision, "digest": candidate.digest, "sections": rows, "refused": refused,
                     "over": [one.rule for one in over], "accepted": verdict is None,
                     "reason": str(verdict or "")}])  # fmt: skip
    else:
        say(f"revision {candidate.revision}, {candidate.digest}; trust: {candidate.trust}")
        _say_needs(rows)
        for one in refused:
            say(safe(one), "bold red")
        for past in over:
            say(f"exception over since {instant_text(past)}: {safe(past.rule)}; 'vedette rules enable' removes it")
        say(
            "it would be taken" if verdict is None else f"not taken: {safe(verdict)}",
            "green" if verdict is None else "",
        )
    if verdict is not None:
        raise typer.Exit(3 if isinstance(verdict, ConfigError) else 4)


@app.command("sign")
def sign(bootstrap: Bootstrap = BOOTSTRAP, key: Key = None, passphrase_file: PassphraseFile = None) -> None:
    """Sign the configuration as it lies; a signature of somebody else over the same text is kept beside yours.

    Example: vedette config sign -b bootstrap.yml --key ~/.config/vedette/keys/alice.pem
    """
    say_signed(sign_as(bootstrap, unlock(key, passphrase_file)))


@dataclass(frozen=True)
class Signed:
    """What a signature came to: over which revision, whose, what it changes, and what is still missing."""

    revision: int
    signer: str
    sections: list[dict[str, Any]]
    missing: str


def sign_as(bootstrap: Path, private: PrivateKey) -> Signed:
    """Sign the configuration as it lies, beside the signatures of others over the same text."""
    from agent.config import load_bootstrap, root_of
    from agent.config.load import read
    from agent.config.revision import ENVELOPE, FILE, PAYLOAD_TYPE, Files, assumed
    from agent.trust import dsse, keys

    where = load_bootstrap(bootstrap)
    text = read(where.configuration / FILE)
    candidate = assumed(Files(where.configuration, text, b""), root_of(where))
    path = where.configuration / ENVELOPE
    envelope = read(path, 4 * len(text) + (1 << 20)) if path.exists() else b""
    try:
        same = bool(envelope) and dsse.payload(envelope, PAYLOAD_TYPE) == text
    except TrustError:
        same = False
    signed = dsse.cosign(envelope, PAYLOAD_TYPE, private) if same else dsse.sign(text, PAYLOAD_TYPE, private)
    me = keys.key_id(private.public_key())
    try:
        _, root, before, above = standing(bootstrap)
    except ConfigError as error:
        replace(path, signed)
        signer = str(candidate.policy.principals.get(me) or "somebody whom the configuration does not name")
        return Signed(candidate.revision, signer, [], f"whether that is enough is not known here: {error}")
    last = max(before.revision if before else 0, above)
    if candidate.revision <= last:
        raise ConfigError(
            f"revision: expected more than {last}, which was accepted before, got {candidate.revision}; raise it first",
            candidate.locator("revision"),
        )
    replace(path, signed)
    known = {one.key_id: str(one) for one in [*root, *(before.policy.principals.values() if before else ())]}
    who = known.get(me) or "somebody whom the configuration in force does not name"
    verdict = _verdict(where.configuration, root, before, above)
    missing = "" if verdict is None else f"not enough yet: {verdict}"
    return Signed(candidate.revision, who, _needs(candidate, before, root), missing)


def say_signed(signed: Signed) -> None:
    from agent.cli.terminal import say

    say(f"signed revision {signed.revision} as {signed.signer}")
    _say_needs(signed.sections)
    if signed.missing:
        say(signed.missing, "yellow")


@app.command("diff")
def diff(bootstrap: Bootstrap = BOOTSTRAP) -> None:
    """Show what the file would change of the configuration that was accepted last. Exit code 1 if anything.

    Example: vedette config diff -b bootstrap.yml
    """
    from agent.config.load import read
    from agent.config.revision import FILE

    where, _, before, _ = standing(bootstrap)
    name = f"revision {before.revision}" if before else "nothing accepted yet"
    path = where.configuration / FILE
    lines = differences(before.files.text if before else b"", read(path), name, str(path))
    say_differences(lines)
    raise typer.Exit(1 if lines else 0)


def differences(old: bytes, new: bytes, old_name: str, new_name: str) -> list[str]:
    """Return a unified diff of two configurations."""
    before, after = old.decode().splitlines(), new.decode().splitlines()
    return list(difflib.unified_diff(before, after, old_name, new_name, lineterm=""))


def say_differences(lines: list[str]) -> None:
    from agent.cli.terminal import safe, say

    for line in lines:
        say(safe(line), {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], ""))


@app.command("apply")
def apply(bootstrap: Bootstrap = BOOTSTRAP, as_json: AsJson = False) -> None:
    """Let the running daemon take the signed configuration; refused, it goes on with what it has and says why.

    Example: vedette config apply -b bootstrap.yml
    """
    from agent.cli.terminal import print_json, say
    from agent.config import load_bootstrap
    from agent.control import ask

    where = load_bootstrap(bootstrap)
    answer = ask(where.data, {"do": "apply", "by": login()})
    if answer is None:
        raise VedetteError(f"no daemon runs over {where.data}; it takes the configuration when it starts")
    if as_json:
        print_json([answer])
    else:
        changed = ", ".join(answer["changed"])
        say(f"revision {answer['revision']} runs" + (f"; changed: {changed}" if changed else ", as before"))


@app.command("schema")
def schema(
    recipe: Annotated[bool, typer.Option("--recipe", help="Of a feature recipe instead.")] = False,
) -> None:
    """Print the JSON Schema of vedette.yml, for editors.

    Example: vedette config schema > vedette.schema.json
    """
    from agent.config.model import Configuration
    from agent.featurise.recipe import schema as of_recipe

    print(_schema_text(of_recipe() if recipe else Configuration.model_json_schema()), end="")


def examine(bootstrap: Path) -> Iterator[Check]:
    """Yield what is so about signatures, people and models."""
    from agent.assemble import admit_model
    from agent.config.load import read
    from agent.config.revision import FILE, Files, assumed
    from agent.ports import Check
    from agent.store.sqlite import clock
    from agent.trust.admission import expiry

    where, root, before, above = standing(bootstrap)
    verdict = _verdict(where.configuration, root, before, above)
    if verdict is None:
        yield Check("configuration", "ok", "signed by principals who may change what it changes")
    else:
        running = f"revision {before.revision} goes on" if before else "nothing runs"
        yield Check("configuration", "failed", f"{verdict}; {running}", "vedette config check")
    now = assumed(Files(where.configuration, read(where.configuration / FILE), b""), root)
    if now.trust == "single-user":
        remedy = "name a second principal under access.principals: vedette access key NAME"
        yield Check("principals", "warning", "trust: single-user, one person signs everything", remedy)
    else:
        yield Check("principals", "ok", ", ".join(sorted(now.policy.names)))
    for name in now.configuration.models:
        try:
            manifest = admit_model(now, name, clock()).manifest
            text = expiry(manifest, clock())
            yield Check(f"model {name}", "warning" if text else "ok", text or f"may run until {manifest.not_after}")
        except (TrustError, ConfigError) as error:
            yield Check(f"model {name}", "failed", str(error), "vedette model list")


def _schema_text(schema: Mapping[str, Any]) -> str:
    import orjson

    named = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return orjson.dumps(named, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n"


def standing(path: Path) -> tuple[Any, list[Principal], Accepted | None, int]:
    """Return the bootstrap, the trust root, the configuration that was accepted last and the last number used."""
    from agent.config import load_bootstrap, root_of
    from agent.service import last_accepted

    where = load_bootstrap(path)
    root = root_of(where)
    return where, root, *last_accepted(where, root)


def _verdict(folder: Path, root: list[Principal], before: Accepted | None, above: int) -> VedetteError | None:
    """Return why the configuration in *folder* would not be taken."""
    from agent.config.revision import Files, accept

    try:
        files = Files.read(folder)
        if before is None or files.text != before.files.text:
            accept(files, root, before, above=above)
    except (TrustError, AccessDenied, ConfigError) as error:
        return error
    return None


def _needs(candidate: Accepted, before: Accepted | None, root: list[Principal]) -> list[dict[str, Any]]:
    """Return, by changed section, who may sign for it, and how many of them it takes."""
    from agent.config.revision import changes, policy_of

    policy = before.policy if before else policy_of(None, root)
    rows = []
    for name in changes(before.configuration if before else None, candidate.configuration):
        wanted = policy.permissions[name]
        able = sorted({policy.principals[id].name for id in policy.keys_for(name)})
        rows.append({"section": name, "approvals": wanted.approvals, "roles": list(wanted.roles), "may": able})
    return rows


def _say_needs(rows: list[dict[str, Any]]) -> None:
    from agent.cli.terminal import table

    if rows:
        table(
            ("changes", "takes", "of role", "who has it"),
            ((one["section"], one["approvals"], ", ".join(one["roles"]), ", ".join(one["may"])) for one in rows),
        )


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Let the configuration in *path* be *new*, with owner and mode as they are, if it is still *old*."""
    from agent.config.load import read

    place = path.resolve()
    if read(place) != old:
        raise ConfigError("it was changed meanwhile and is left as it is; try again", str(path))
    replace(place, new, place.stat())


def replace(path: Path, content: bytes, like: os.stat_result | None = None) -> None:
    """Let *path* hold *content*, whole, whatever lies there; a link is replaced and not followed.

    *like*: whose owner and mode it gets.
    """
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with fresh.open("xb") as file:
            if like is not None:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", str(path)) from None
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


@contextmanager
def _all_or_nothing(*paths: Path) -> Iterator[None]:
    """Let *paths* be made, with the folders that they need; if that fails, what was not there before is not there."""
    new = {one for path in paths for one in (path, *path.parents) if not os.path.lexists(one)}
    try:
        yield
    except BaseException as error:
        for one in sorted(new, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                one.rmdir() if one.is_dir() else one.unlink()
        if isinstance(error, OSError):
            raise ConfigError(f"cannot make the set-up: {error.strerror}", str(error.filename or "")) from None
        raise


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)
