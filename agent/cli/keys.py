"""Signing keys of people: files sealed by a passphrase, far from the data folder. And `vedette access key`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.control import login
from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.trust.keys import PrivateKey

SHORTEST = 12
"""Characters that a passphrase must have."""

Key = Annotated[
    Path | None,
    typer.Option(
        "--key", "-k", envvar="VEDETTE_KEY", help="Your sealed signing key; by default the one of your login."
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", envvar="VEDETTE_PASSPHRASE_FILE", help="File with its passphrase; else you are asked."
    ),
]
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""What YAML takes for something else than a name."""
app = typer.Typer(help="Who may change what.", no_args_is_help=True)


def key_path(name: str) -> Path:
    """Return where the key of *name* lies unless somebody says otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "vedette" / "keys" / f"{name}.pem"


def unlock(key: Path | None, passphrase_file: Path | None) -> PrivateKey:
    """Return the signing key in *key*, opened with its passphrase."""
    from agent.trust import keys

    path = key or key_path(login())
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{error.strerror}; make a key with 'vedette access key', or name yours: --key", str(path)
        ) from None
    return keys.unseal(pem, _passphrase(passphrase_file, f"Passphrase of {path}"))


def make(path: Path, passphrase_file: Path | None) -> PrivateKey:
    """Make a key in *path*, readable by its owner only, and return it."""
    from agent.trust import keys

    if path.exists():
        raise ConfigError("there is a key already; it is not overwritten", str(path))
    passphrase = _passphrase(passphrase_file, f"New passphrase for {path}", twice=True)
    if len(passphrase) < SHORTEST:
        raise ConfigError(f"a passphrase of at least {SHORTEST} characters is needed, got {len(passphrase)}")
    private = keys.generate()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(place, "wb") as file:  # noqa: PTH123 (it is a descriptor)
        file.write(keys.seal(private, passphrase))
        file.flush()
        os.fsync(file.fileno())
    return private


@app.command("key")
def key(
    name: Annotated[str, typer.Argument(help="Whose key: the name it gets in the configuration.")],
    path: Annotated[Path | None, typer.Option("--key", "-k", help="Where to put it.")] = None,
    role: Annotated[list[str] | None, typer.Option("--role", help="Roles to write beside it; may be repeated.")] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a signing key, and print what `access.principals` in the configuration needs to name it.

    Example: vedette access key kim --role detection-engineer
    """
    from agent.cli.terminal import say

    check_name(name)
    private = make(path or key_path(name), passphrase_file)
    print(f"{name}:\n{principal(private, role or ['viewer'])}")
    if sys.stdout.isatty():
        say("put this under access.principals in vedette.yml; an admin signs it", "dim")


def check_name(name: str) -> None:
    """ConfigError unless *name* can be a principal's in a configuration."""
    if not re.fullmatch(r"[a-z][a-z0-9._-]{0,63}", name) or name in _WORDS:
        raise ConfigError(
            f"{name!r} cannot be a principal's name: letters a to z first, then digits . _ - too; give --name"
        )


def principal(private: PrivateKey, roles: list[str], indent: int = 2) -> str:
    """Return the lines of one principal, as YAML."""
    from agent.trust import keys

    space = " " * indent
    pem = "".join(f"{space}  {line}\n" for line in keys.to_pem(private.public_key()).decode().splitlines())
    return f"{space}roles: [{', '.join(roles)}]\n{space}key: |\n{pem}"


def _passphrase(file: Path | None, prompt: str, *, twice: bool = False) -> bytes:
    if file is not None:
        try:
            return file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"cannot read the passphrase: {error.strerror}", str(file)) from None
    if not sys.stdin.isatty():
        raise ConfigError("no terminal to ask for the passphrase on; give --passphrase-file")
    text: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True)
    return text.encode()
