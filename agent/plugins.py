"""Finding what lives outside the core: connectors, detectors, mappings and commands, by entry point and by name.

Nothing is imported before somebody names it, so the command line answers at once.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.ports import Connector, DetectorFactory


MAPPINGS = "vedette.mappings"


def connector(name: str) -> Connector:
    """Return the connector called *name*, else ConfigError with the names there are."""
    return cast("Connector", _load("vedette.connectors", name, "connector"))


def detector(name: str) -> DetectorFactory:
    """Return the factory of detectors of type *name*, else ConfigError with the names there are."""
    return cast("DetectorFactory", _load("vedette.detectors", name, "detector"))


def commands() -> list[EntryPoint]:
    """Return the commands that other rooms bring, by name, not loaded yet."""
    return sorted(entry_points(group="vedette.commands"), key=lambda found: found.name)


def mappings() -> list[EntryPoint]:
    """Return the packages that bring mappings, by name, not imported yet."""
    return sorted(entry_points(group=MAPPINGS), key=lambda found: found.name)


def _load(group: str, name: str, what: str) -> Any:
    found = entry_points(group=group, name=name)
    if not found:
        known = ", ".join(sorted(entry.name for entry in entry_points(group=group)))
        raise ConfigError(f"no {what} of type {name!r} is installed; there are: {known or 'none'}")
    return next(iter(found)).load()
