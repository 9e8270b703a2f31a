"""`vedette rules sign`: what lies there gets a name and a version, and somebody who stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.keys import Key, PassphraseFile
from agent.cli.options import AsJson

_Name = Annotated[
    str | None, typer.Option("--name", help="The pack's name (default: as it was signed before, else as the path's).")
]
_Version = Annotated[
    int | None, typer.Option("--version", min=1, help="Its number (default: one more than it was signed with before).")
]


def sign(
    path: Annotated[Path, typer.Argument(help="The folder or archive of rules.")],
    name: _Name = None,
    version: _Version = None,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign rules as they lie, so that a daemon whose configuration names the pack takes them on 'vedette config apply'.

    The signature goes beside them, into PATH.dsse. Signing the same content again adds your signature to those of
    others. Rules that cannot run are named; they do not stop the others.

    Example: vedette rules sign packs/own --name own
    """
    from pydantic import ValidationError

    from agent.cli.config import replace
    from agent.cli.keys import unlock
    from agent.cli.terminal import print_json, safe, say
    from agent.config.load import read
    from agent.errors import ConfigError
    from agent.trust import pack
    from rules.sigma.documents import content_digest, read_files
    from rules.sigma.parse import compile_files

    files = read_files(path)
    digest = content_digest(files)
    place = pack.envelope_of(path)
    envelope = read(place, pack.MAX_ENVELOPE) if place.exists() else b""
    before = pack.claimed(envelope) if envelope else None
    if version is None:
        version = 1 if before is None else before.version + (before.digest != digest)
    if name is None:
        name = before.name if before else path.name.partition(".")[0]
    try:
        said = pack.Pack(name=name, version=version, digest=digest)
    except ValidationError as error:
        raise ConfigError(f"{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}", str(path)) from None
    collection = compile_files(files)
    replace(place, pack.sign(said, unlock(key, passphrase_file), envelope))
    facts = {
        **said.model_dump(),
        "rules": len(collection.rules),
        "correlations": len(collection.correlations),
        "refused": collection.refused,
        "envelope": str(place),
    }
    if as_json:
        print_json([facts])
        return
    say(
        f"signed pack {said.name} version {said.version}, {said.digest}: {len(collection.rules)} rules,"
        f" {len(collection.correlations)} correlations"
    )
    for reason in collection.refused:
        say(f"cannot run: {safe(reason)}", "yellow")
    say(f"in {place}; the configuration names it as 'pack: {said.name}'; next: vedette config apply")
