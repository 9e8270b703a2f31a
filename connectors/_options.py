"""A connector's options as configured, validated; and secrets, which are never options but where to find them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from agent.errors import ConfigError

_KINDS = ("file:", "env:", "credential:")


def _reference(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_KINDS):  # what was written may be the secret: not repeated
        raise ValueError("expected where the secret is: file:PATH, env:NAME or credential:NAME (of systemd)")
    return value


Secret: TypeAlias = Annotated[str, BeforeValidator(_reference)]
"""A reference to a secret. The configuration is signed, copied and shown: no secret is in it."""


def read_secret(reference: str) -> str:
    """Return the secret that *reference* names, as it is now; ConfigError says where none is."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"cannot read the secret {reference}: the environment has no {name}")
        return os.environ[name]
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if kind == "credential" and not folder:
        raise ConfigError(f"cannot read the secret {reference}: systemd gave this process no credentials")
    path = Path(folder or "", name) if kind == "credential" else Path(name)
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the secret in {path}: {error.strerror}") from None


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def parse(model: type[OptionsT], owner: str, options: Mapping[str, Any]) -> OptionsT:
    """Return *options* as *model*; ConfigError of *owner* (``sink siem``) names each that is unknown or wrong."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(f"{owner}: {'; '.join(map(_say, error.errors()))}") from None


def _say(problem: Any) -> str:
    text = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, problem['loc']))}: {text}"
