"""What `vedette.yml` may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginConfig(BaseModel):
    """A source or a detector: its type names the plug-in, all other keys are that plug-in's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SinkConfig(PluginConfig):
    """A sink. *delivery* says what happens when *max_waiting* alerts wait: stop reading, or spill with a count."""

    delivery: Literal["required", "best_effort"] = "required"
    max_waiting: int = Field(default=100_000, ge=1)


class StreamConfig(_Section):
    """One source, the detectors its events are shown to, the sinks its alerts go to, the filters before both."""

    source: Name
    detectors: list[Name] = Field(min_length=1)
    sinks: list[Name] = []
    filters: list[Name] = []
    batch: int = Field(default=8192, ge=1, le=65_536)
    """Most records in one fetch."""


class SuppressionConfig(_Section):
    """Alerts of one rule with the same values of *by* within *minutes* are one alert."""

    by: list[str] = []
    minutes: int = Field(ge=1)


class AlertsConfig(_Section):
    """What happens to alerts of every stream."""

    max_per_rule_and_hour: int = Field(default=1000, ge=1)
    retention_days: int = Field(default=30, ge=1)
    retention_bytes: int = Field(default=2 << 30, ge=1 << 20)
    suppress: dict[str, SuppressionConfig] = {}


class DeadLettersConfig(_Section):
    max_bytes: int = Field(default=1 << 30, ge=0)


class Configuration(_Section):
    """The whole file."""

    tenant: Name = "default"
    sources: dict[Name, PluginConfig] = Field(min_length=1)
    detectors: dict[Name, PluginConfig] = Field(min_length=1)
    filters: dict[Name, dict[str, list[str]]] = {}
    sinks: dict[Name, SinkConfig] = {}
    streams: dict[Name, StreamConfig] = Field(min_length=1)
    alerts: AlertsConfig = AlertsConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
