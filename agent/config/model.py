"""What `vedette.yml` and `bootstrap.yml` may say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from agent.access import PERMISSIONS, Permission, Role
from agent.alerting.maintenance import spans
from agent.alerting.maxmind import ENDING
from agent.errors import TrustError
from agent.trust import keys
from agent.zones import zone_of

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$")]


def _instant(value: Any) -> datetime:
    try:
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        if isinstance(value, str) and (found := datetime.fromisoformat(value)).tzinfo:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"expected a time with its zone, in quotes, such as '2026-12-24T00:00:00Z', got {value!r}")


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of plain text, without control characters")
    return text


Instant = Annotated[datetime, BeforeValidator(_instant)]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]


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


class ExceptionConfig(_Section):
    """A rule whose findings about events before *until* are counted and raise no alert.

    It goes by event time, so that a replay gives the same, and ends by itself.
    """

    rule: Line
    """Its id: a rule's own, a detector's, or a model's."""
    until: Instant
    reason: Line
    owner: Line
    """Whom to ask."""

    @field_validator("rule")
    @classmethod
    def _not_ours(cls, rule: str) -> str:
        if rule.startswith("vedette."):
            raise ValueError("what Vedette says of itself cannot be silenced")
        return rule


class MaintenanceConfig(_Section):
    """A planned time in which events of *where* raise no alerts of *rules* (of any, if none is named).

    It goes by event time, is counted, and ends by itself.
    """

    until: Instant
    reason: Line
    owner: Line
    """Whom to ask."""
    since: Instant | None = None
    where: dict[Line, Annotated[list[Line], Field(min_length=1, max_length=1000)]] = {}
    """ECS fields with the values that an event must have one of, in every field; case does not matter."""
    rules: list[Line] = Field(default=[], max_length=1000)
    weekly: list[Line] = Field(default=[], max_length=100)
    """Spans of the week, `Sat 22:00-06:00` or `Mon-Fri 08:00-18:00`; without one it is all the time."""
    zone: Line = "UTC"
    """Zone of the spans, such as `Europe/Berlin`."""

    @field_validator("weekly")
    @classmethod
    def _spans(cls, texts: list[str]) -> list[str]:
        spans(texts)
        return texts

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        zone_of(zone)
        return zone

    @model_validator(mode="after")
    def _scoped(self) -> MaintenanceConfig:
        if not self.where and not self.rules:
            raise ValueError("expected where, rules or both: nothing silences everything")
        if self.since is not None and self.since >= self.until:
            raise ValueError("since: expected a time before until")
        if any(rule.startswith("vedette.") for rule in self.rules):
            raise ValueError("rules: what Vedette says of itself cannot be silenced")
        return self


class EnrichmentConfig(_Section):
    """A table whose rows are added to the alerts about what it lists."""

    path: str
    """A CSV file with a header, NDJSON (`.ndjson`) or MaxMind DB (`.mmdb`); relative to the configuration's folder."""
    digest: Digest
    """Digest of the file: nothing else than this is used."""
    key: Line | None = None
    """The column that says what a row is about; a MaxMind DB file has none."""
    match: list[Line] = Field(default=[], max_length=32)
    """The ECS fields whose values are looked up; for a MaxMind DB file, if none is named, the addresses of `source`,
    `destination`, `client`, `server` and `host`."""
    set: dict[Line, Line] = {}
    """Which ECS field a column goes to, where the event says nothing itself; ``.x`` is one beside the matched field."""
    tags: list[Line] = []
    """Tags for an alert about something listed."""
    networks: bool = False
    """Keys are networks or addresses; the smallest network counts."""
    indicators: bool = False
    """What is listed is a sign of an attack: rows go to `threat.enrichments`."""
    made: Instant | None = None
    """When the table was made; a MaxMind DB file says so itself."""
    max_age_days: int | None = Field(default=None, ge=1, le=36_500)
    """How old it may be: each alert says which tables are older."""

    @model_validator(mode="after")
    def _whole(self) -> EnrichmentConfig:
        if not self.path.endswith(ENDING):
            if self.key is None or not self.match:
                raise ValueError("expected key and match: which column says what a row is about, and where that is met")
        elif given := sorted({"key", "networks", "indicators", "made"} & self.model_fields_set):
            raise ValueError(
                f"{', '.join(given)}: not for a MaxMind DB file; remove {'it' if len(given) == 1 else 'them'}"
            )
        return self


class DeadLettersConfig(_Section):
    max_bytes: int = Field(default=1 << 30, ge=0)


class ModelConfig(_Section):
    """Which artifact runs, in which state, on which streams, and how many alerts a day it may raise."""

    path: str
    """The artifact's folder; relative to the configuration's own."""
    digest: Digest
    """What `vedette model verify` prints: nothing else than this runs."""
    streams: list[Name] = Field(min_length=1)
    state: Literal["active", "shadow"] = "active"
    """A shadow model is scored and counted and raises no alert."""
    budget: float = Field(gt=0, le=1_000_000)
    """Alerts a day; the threshold follows from it and from the calibration."""
    on_expiry: Literal["warn", "stop"] = "warn"
    """What happens when it expires while it runs: go on with a daily warning, or stop."""


class PrincipalConfig(_Section):
    """Somebody who signs: what they are and their public key (PEM, P-256)."""

    roles: list[Role]
    key: str

    @field_validator("key")
    @classmethod
    def _is_one(cls, pem: str) -> str:
        try:
            keys.from_pem(pem.encode())
        except TrustError as error:
            raise ValueError(str(error)) from None
        return pem


class AccessConfig(_Section):
    """Who may change what. *permissions* has a row for each section that the default table is not right for."""

    principals: dict[Name, PrincipalConfig] = {}
    permissions: dict[str, Permission] = {}
    revoked: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = []
    """Key ids and artifact digests that count for nothing any more, from now on."""

    @field_validator("permissions")
    @classmethod
    def _known(cls, rows: dict[str, Permission]) -> dict[str, Permission]:
        if unknown := sorted(set(rows) - set(PERMISSIONS)):
            raise ValueError(f"no permission {', '.join(unknown)}; there are: {', '.join(PERMISSIONS)}")
        return rows


class AuditConfig(_Section):
    """Where copies of the audit log go: *sinks*, or where none is named every sink that is a SIEM."""

    sinks: list[Name] | None = None


class Configuration(_Section):
    """The whole file."""

    revision: int = Field(default=0, ge=0)
    """Its number: what is signed and applied must be above what ran before."""
    tenant: Name = "default"
    sources: dict[Name, PluginConfig] = Field(min_length=1)
    detectors: dict[Name, PluginConfig] = Field(min_length=1)
    filters: dict[Name, dict[str, list[str]]] = {}
    sinks: dict[Name, SinkConfig] = {}
    streams: dict[Name, StreamConfig] = Field(min_length=1)
    models: dict[Name, ModelConfig] = {}
    alerts: AlertsConfig = AlertsConfig()
    enrichments: dict[Name, EnrichmentConfig] = {}
    exceptions: list[ExceptionConfig] = Field(default=[], max_length=1000)
    maintenance: dict[Name, MaintenanceConfig] = {}
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    audit: AuditConfig = AuditConfig()
    access: AccessConfig = AccessConfig()

    @field_validator("exceptions")
    @classmethod
    def _once(cls, exceptions: list[ExceptionConfig]) -> list[ExceptionConfig]:
        rules = [one.rule for one in exceptions]
        if repeated := sorted({rule for rule in rules if rules.count(rule) > 1}):
            raise ValueError(f"more than one for the rule {', '.join(repeated)}")
        return exceptions

    def exceptions_over(self, now: datetime) -> list[ExceptionConfig]:
        """Return those that no event of *now* falls under."""
        return [one for one in self.exceptions if one.until <= now]

    def section(self, name: str) -> Any:
        """Return one section as JSON-able data, defaults filled in."""
        return self.model_dump(mode="json", include={name})[name]

    @classmethod
    def sections(cls) -> tuple[str, ...]:
        """Return the names of the sections that signers may or may not change."""
        return tuple(name for name in cls.model_fields if name != "revision")


class Bootstrap(_Section):
    """What this machine is told by hand: where things lie, and whom it trusts before it has read anything."""

    data: Path
    """The data folder. Paths are relative to this file's folder."""
    configuration: Path = Path()
    """The folder of `vedette.yml` and its signatures, `vedette.yml.dsse`."""
    listen: Address | None = None
    """Where health and metrics are served over HTTP, ``host:port``; without it nowhere. Loopback unless a network that
    may read them is meant: there is no login."""
    trust_root: dict[Name, PrincipalConfig] = Field(min_length=1)

    @field_validator("trust_root")
    @classmethod
    def _differ(cls, principals: dict[str, PrincipalConfig]) -> dict[str, PrincipalConfig]:
        owner: dict[str, str] = {}
        for name, one in principals.items():
            if (other := owner.setdefault(keys.key_id(keys.from_pem(one.key.encode())), name)) != name:
                raise ValueError(f"{other} and {name} have the same key")
        return principals
