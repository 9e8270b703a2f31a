"""Making sources, pipelines, sinks and streams of what a configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from agent import artifact, plugins
from agent.access import Policy
from agent.access.policy import ARTIFACTS, PACKS
from agent.alerting import Judge, Suppression, maxmind
from agent.alerting.enrich import MAX_BYTES, Enrich, Listing, Table, enricher
from agent.alerting.maintenance import Maintenance, spans
from agent.config import Accepted, Configuration, Locator, StreamConfig
from agent.config.load import read
from agent.config.model import MaintenanceConfig
from agent.detect.model import ModelDetector
from agent.detect.model import load as load_model
from agent.errors import ConfigError, TrustError
from agent.featurise.recipe import schema_hash
from agent.model import NO_TIME, SECOND, Timestamp
from agent.normalise.clock import from_datetime
from agent.pipeline import Filter, Pipeline
from agent.ports import Detector, Referring, Ruled, Sink, Source
from agent.state import State
from agent.stream import Stream
from agent.trust import pack
from agent.trust.admission import Admitted, Terms, admit, ended
from agent.trust.manifest import instant
from agent.trust.pack import Pack
from agent.zones import zone_of

T = TypeVar("T")
DAY = 24 * 3_600 * SECOND
_TABLES: WeakValueDictionary[tuple[str, str, bytes], Table] = WeakValueDictionary()
"""The tables in use, by what is said of them, path and content: streams share them, for they may be large."""


def build_pipeline(
    configuration: Configuration,
    locator: Locator,
    stream: StreamConfig,
    cache: Path | None,
    models: Sequence[Detector] = (),
) -> Pipeline:
    """Make the detectors and filters that *stream* names; ConfigError with the line of what is wrong."""
    detectors = [*(build_detector(configuration, locator, name, cache) for name in stream.detectors), *models]
    ids = [one.id for one in detectors]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise ConfigError(f"two detectors of one stream have the id {', '.join(repeated)}")
    return Pipeline(detectors, _filters(configuration, stream))


def _filters(configuration: Configuration, stream: StreamConfig) -> list[Filter]:
    return [
        Filter(name, {key: frozenset(values) for key, values in configuration.filters[name].items()})
        for name in stream.filters
    ]


def build_detector(configuration: Configuration, locator: Locator, name: str, cache: Path | None) -> Detector:
    section = configuration.detectors[name]
    with _at(locator("detectors", name)):
        return plugins.detector(section.type)(name, section.options, cache)


def strangers(configuration: Configuration, detectors: Iterable[Detector]) -> list[str]:
    """Return the rules that have an exception and are none of *detectors*': gone by now, or a slip of the pen."""
    if not configuration.exceptions:
        return []
    known = set(configuration.models)
    for one in detectors:
        known |= {rule.id for rule in one.rules()} if isinstance(one, Ruled) else {one.id}
    return [one.rule for one in configuration.exceptions if one.rule not in known]


def build_source(configuration: Configuration, locator: Locator, name: str) -> Source:
    section = configuration.sources[name]
    with _at(locator("sources", name)):
        return _made(plugins.connector(section.type).source, section.type, "source")(name, section.options)


def build_sink(configuration: Configuration, locator: Locator, name: str) -> Sink:
    section = configuration.sinks[name]
    with _at(locator("sinks", name)):
        return _made(plugins.connector(section.type).sink, section.type, "sink")(name, section.options)


@dataclass(frozen=True)
class Refusal:
    """A model that a stream should run and does not: why."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"model {self.model} refused: {self.reason}"


@dataclass(frozen=True)
class AdmittedPack:
    """A signed pack that a detector is made of, and who signed it."""

    pack: Pack
    signers: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return what an audit record says of it."""
        one = self.pack
        return {"pack": one.name, "version": one.version, "digest": one.digest, "signers": list(self.signers)}


@dataclass(frozen=True)
class Built:
    """A stream, what of it was refused (the rest of it runs), the packs that its detectors are made of, and what adds
    tables to its alerts."""

    stream: Stream
    refused: tuple[Refusal, ...]
    packs: Mapping[str, AdmittedPack]
    enrich: Enrich | None


def build_stream(accepted: Accepted, id: str, cache: Path | None, now: Timestamp) -> Built:
    """Make the stream *id* as *accepted* says, at its very beginning; its source is not open yet.

    TrustError for content that no signature covers. A model that is not admitted is refused alone.
    """
    configuration, locator = accepted.configuration, accepted.locator
    section = configuration.streams[id]
    models, refused = models_of(accepted, id, now)
    pipeline = build_pipeline(configuration, locator, section, cache, models)
    packs = {
        one.id: admit_pack(accepted, one)
        for one in pipeline.detectors
        if isinstance(one, Referring) and (one.unpinned or one.pack)
    }
    return _joined(accepted, id, pipeline, refused, packs, build_enrichment(accepted))


def build_again(accepted: Accepted, built: Built, now: Timestamp) -> Built:
    """Make *built* anew, at its very beginning, of the detectors and tables that were admitted for it: nothing that a
    signature covers is read again. A model that has expired meanwhile and must not go on is refused alone.
    """
    configuration, stream = accepted.configuration, built.stream
    detectors: list[Detector] = []
    refused = list(built.refused)
    for one in stream.pipeline.detectors:
        if isinstance(one, ModelDetector) and _must_end(configuration, one, now):
            refused.append(Refusal(one.id, str(ended(one.manifest, one.id))))
        else:
            detectors.append(one)
    pipeline = stream.pipeline
    if len(detectors) < len(pipeline.detectors):
        pipeline = Pipeline(detectors, _filters(configuration, configuration.streams[stream.id]))
    return _joined(accepted, stream.id, pipeline, tuple(refused), built.packs, built.enrich)


def _must_end(configuration: Configuration, model: ModelDetector, now: Timestamp) -> bool:
    return configuration.models[model.id].on_expiry == "stop" and now >= instant(model.manifest.not_after)


def _joined(
    accepted: Accepted,
    id: str,
    pipeline: Pipeline,
    refused: tuple[Refusal, ...],
    packs: Mapping[str, AdmittedPack],
    enrich: Enrich | None,
) -> Built:
    """Return what is admitted joined with a source and a judge, which are made by the configuration's text alone."""
    configuration = accepted.configuration
    source = build_source(configuration, accepted.locator, configuration.streams[id].source)
    judge = build_judge(configuration, id, pipeline, stamp=stamp(accepted), enrich=enrich)
    return Built(Stream(id, source, pipeline, judge, None, State(), provenance(accepted)), refused, packs, enrich)


def admit_pack(accepted: Accepted, detector: Referring) -> AdmittedPack:
    """Return the signed pack that *detector* is made of; TrustError or AccessDenied if it is none."""
    id = getattr(detector, "id", "")
    place = accepted.locator("detectors", id)
    if not detector.pack:
        raise TrustError(
            f"{place}: detectors.{id}: the signature does not cover the content; add digest: {detector.unpinned}"
        )
    path, policy = pack.envelope_of(detector.place), accepted.policy
    if not path.exists():
        raise TrustError(f"{place}: pack {detector.pack}: {path} is missing; sign it with 'vedette rules sign'")
    said, signers = pack.verify(read(path, pack.MAX_ENVELOPE), [one.key for one in policy.principals.values()])
    for what, wanted, found in (("name", detector.pack, said.name), ("content", detector.unpinned, said.digest)):
        if wanted != found:
            raise TrustError(
                f"{place}: pack {detector.pack}: {path} is about the {what} {found}, here is {wanted};"
                " sign what lies there with 'vedette rules sign'"
            )
    return AdmittedPack(said, policy.authorise(f"pack {said.name} version {said.version}", PACKS, signers))


def stamp(accepted: Accepted) -> dict[str, Any]:
    """Return what every alert says of the configuration that it was raised under."""
    return {"trust": accepted.trust, "configuration": {"revision": accepted.revision, "digest": accepted.digest}}


def provenance(accepted: Accepted) -> dict[str, Any]:
    """Return what the audit log says of the configuration that something ran under."""
    return {"configuration": accepted.digest, "revision": accepted.revision}


def models_of(accepted: Accepted, stream: str, now: Timestamp) -> tuple[list[Detector], tuple[Refusal, ...]]:
    """Admit the models of *stream*; those that are not admitted are named with the reason."""
    admitted: list[Detector] = []
    refused: list[Refusal] = []
    for name, section in accepted.configuration.models.items():
        if stream in section.streams:
            try:
                admitted.append(admit_model(accepted, name, now))
            except (TrustError, ConfigError) as error:
                refused.append(Refusal(name, str(error)))
    return admitted, tuple(refused)


def admit_model(accepted: Accepted, name: str, now: Timestamp) -> ModelDetector:
    """Return the model *name* as a detector; TrustError names the step of its admission that failed."""
    section, policy = accepted.configuration.models[name], accepted.policy
    files = artifact.read(accepted.files.folder / section.path)
    digest = section.digest.removeprefix("sha256:")
    found = admit_files(files, name, digest, policy, accepted.configuration.tenant, now)
    if found.manifest.id != name:
        raise TrustError(f"model {name}: the artifact is one of {found.manifest.id}; call it so under models")
    return ModelDetector(
        found.manifest.id,
        load_model(found.files),
        found.manifest,
        digest=found.digest,
        signer=policy.principals[found.signer].name,
        budget=section.budget,
        shadow=section.state == "shadow",
    )


def admit_files(
    files: Mapping[str, bytes], name: str, digest: str, policy: Policy, tenant: str, now: Timestamp
) -> Admitted:
    """Admit the artifact that *files* are by what *policy* allows; TrustError names the step that failed."""
    terms = Terms(name, digest, tenant, policy.keys_for(ARTIFACTS), policy.revoked, now)
    return admit(files, terms, schema_hash)


def build_judge(
    configuration: Configuration,
    stream: str,
    pipeline: Pipeline,
    *,
    stamp: Mapping[str, Any],
    span: tuple[Timestamp, Timestamp] | None = None,
    enrich: Enrich | None = None,
) -> Judge:
    settings = configuration.alerts
    return Judge(
        pipeline.normaliser,
        tenant=configuration.tenant,
        stream=stream,
        cap=settings.max_per_rule_and_hour,
        suppressions={rule: Suppression(tuple(one.by), one.minutes * 60) for rule, one in settings.suppress.items()},
        span=span,
        stamp=stamp,
        exceptions={one.rule: from_datetime(one.until) for one in configuration.exceptions},
        maintenance=[_maintenance(name, one) for name, one in configuration.maintenance.items()],
        enrich=enrich,
    )


def _maintenance(name: str, section: MaintenanceConfig) -> Maintenance:
    return Maintenance(
        name,
        from_datetime(section.since) if section.since else NO_TIME,
        from_datetime(section.until),
        {field: frozenset(map(str.lower, values)) for field, values in section.where.items()},
        frozenset(section.rules),
        spans(section.weekly),
        zone_of(section.zone),
    )


def build_enrichment(accepted: Accepted) -> Enrich:
    """Return what adds the configuration's tables to alerts; TrustError if a table is not the one that was signed."""
    tables = []
    for name, section in accepted.configuration.enrichments.items():
        path = accepted.files.folder / section.path
        listing = Listing(
            name,
            section.digest,
            section.key,
            tuple(section.match) or maxmind.ADDRESSES,
            section.set,
            tuple(section.tags),
            section.networks,
            section.indicators,
            from_datetime(section.made) if section.made else None,
            section.max_age_days * DAY if section.max_age_days else None,
        )
        with _at(accepted.locator("enrichments", name)):
            data = _content(path)
            key = repr(listing), str(path), sha256(data).digest()
            table = _TABLES.get(key)
            if table is None:
                table = _TABLES[key] = Table(listing, data, str(path))
            tables.append(table)
    return enricher(tables)


def _content(path: Path) -> bytes:
    most = maxmind.MAX_BYTES if path.name.endswith(maxmind.ENDING) else MAX_BYTES
    size = 0
    with suppress(OSError):  # which `read` explains
        size = path.stat().st_size
    if size > most:
        raise ConfigError(f"a table of this kind may have at most {most} bytes, it has {size}", str(path))
    return read(path, size)


def _made(make: T | None, connector: str, what: str) -> T:
    if make is None:
        raise ConfigError(f"connector {connector!r} has no {what}")
    return make


class _at:  # noqa: N801
    """Gives a ConfigError from a plug-in the line of the section it was made from."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError) and not error.path:
            raise ConfigError(str(error), self._place) from None
