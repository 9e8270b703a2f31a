"""Making sources, pipelines, sinks and streams of what a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from agent import plugins
from agent.alerting import Judge, Suppression
from agent.config import Configuration, Locator, StreamConfig
from agent.errors import ConfigError
from agent.model import Timestamp
from agent.pipeline import Filter, Pipeline
from agent.ports import Detector, Sink, Source
from agent.store import Store
from agent.stream import Stream

T = TypeVar("T")


def build_pipeline(configuration: Configuration, locator: Locator, stream: StreamConfig, cache: Path) -> Pipeline:
    """Make the detectors and filters that *stream* names; ConfigError with the line of what is wrong."""
    detectors = [_detector(configuration, locator, name, cache) for name in stream.detectors]
    filters = [
        Filter(name, {key: frozenset(values) for key, values in configuration.filters[name].items()})
        for name in stream.filters
    ]
    return Pipeline(detectors, filters)


def build_source(configuration: Configuration, locator: Locator, name: str) -> Source:
    section = configuration.sources[name]
    with _at(locator("sources", name)):
        return _made(plugins.connector(section.type).source, section.type, "source")(name, section.options)


def build_sink(configuration: Configuration, locator: Locator, name: str) -> Sink:
    section = configuration.sinks[name]
    with _at(locator("sinks", name)):
        return _made(plugins.connector(section.type).sink, section.type, "sink")(name, section.options)


def build_stream(configuration: Configuration, locator: Locator, id: str, store: Store) -> Stream:
    """Make the stream *id*, standing where *store* says; its source is not open yet."""
    section = configuration.streams[id]
    pipeline = build_pipeline(configuration, locator, section, store.folder / "cache")
    source = build_source(configuration, locator, section.source)
    cursor, state = store.load(id)
    return Stream(id, source, pipeline, build_judge(configuration, id, pipeline), cursor, state)


def build_judge(
    configuration: Configuration, stream: str, pipeline: Pipeline, span: tuple[Timestamp, Timestamp] | None = None
) -> Judge:
    settings = configuration.alerts
    return Judge(
        pipeline.normaliser,
        tenant=configuration.tenant,
        stream=stream,
        cap=settings.max_per_rule_and_hour,
        suppressions={rule: Suppression(tuple(one.by), one.minutes * 60) for rule, one in settings.suppress.items()},
        span=span,
    )


def _detector(configuration: Configuration, locator: Locator, name: str, cache: Path) -> Detector:
    section = configuration.detectors[name]
    with _at(locator("detectors", name)):
        return plugins.detector(section.type)(name, section.options, cache)


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
