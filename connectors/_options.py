"""A connector's options as configured, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agent.errors import ConfigError

OptionsT = TypeVar("OptionsT", bound=BaseModel)


def parse(model: type[OptionsT], owner: str, options: Mapping[str, Any]) -> OptionsT:
    """Return *options* as *model*; ConfigError of *owner* (``sink siem``) names each that is unknown or wrong."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{owner}: {wrong}") from None
