"""The threads of one configuration: one a stream, which reads, evaluates and commits, and one a sink.

`build` makes everything that the configuration names without touching the outside; `start` opens it and begins. A
stream that fails backs off and shows as degraded while the others go on; a sick disk ends the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import structlog

from agent import plugins
from agent.assemble import AdmittedPack, Built, Refusal, build_again, build_sink, build_stream
from agent.config import Accepted, StreamConfig
from agent.detect.model import ModelDetector
from agent.errors import AccessDenied, ConfigError, RetryableError, TrustError, VedetteError
from agent.model import SECOND, Timestamp
from agent.ports import Measured, Sink, Source
from agent.store import Reader, Store, StoreBroken
from agent.store.sqlite import backoff, clock
from agent.stream import Stream, drain, run_cycle
from agent.telemetry.meters import Meters
from agent.telemetry.metrics import DetectorState, ModelState, SinkState, StreamState
from agent.trust.manifest import instant

log = structlog.get_logger()
T = TypeVar("T")
IDLE_S = 0.5
"""Seconds between fetches of a source that had nothing new."""
UNREAD_S = 0.05
"""Seconds between fetches of a source that holds more and spares its upstream."""
ONCE_PATIENCE = 5
"""Failures in a row after which a run that is to end by itself gives up."""
DRAIN_LIMIT = 500
NOTES_SAID = 1000
"""How many places that are not read a stream names in the log."""


@dataclass
class Runner:
    """One stream's thread, its work queue for commands, and how it is."""

    built: Built
    config: StreamConfig
    detectors: Sequence[DetectorState]
    """Those made of rules, as far as they could be made."""
    fields: frozenset[str] = frozenset()
    """The native fields that its source is asked for; none: all that there are."""
    expired: Sequence[str] = ()
    """Models that have expired while they ran."""
    tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=queue.SimpleQueue)
    trouble: str = "starting"
    paused: str = ""
    """Who has paused it and when; empty: nobody."""
    failures: int = 0
    idle: threading.Event = field(default_factory=threading.Event)
    nudge: threading.Event = field(default_factory=threading.Event)
    """Ends a pause: there is something to do."""
    said: set[str] = field(default_factory=set)
    is_open: bool = False

    @property
    def stream(self) -> Stream:
        return self.built.stream

    @property
    def refused(self) -> Sequence[Refusal]:
        """What it should run and does not."""
        return self.built.refused

    @property
    def packs(self) -> Mapping[str, AdmittedPack]:
        """The signed packs that detectors are made of."""
        return self.built.packs

    @property
    def status(self) -> dict[str, str]:
        reasons = [*([self.trouble] if self.trouble else []), *map(str, self.refused)]
        reasons += [f"model {one} has expired" for one in self.expired]
        if self.paused:
            return {"status": "paused", "reason": "; ".join([self.paused, *reasons])}
        return {"status": "degraded" if reasons else "ok", "reason": "; ".join(reasons)}

    def state(self, now: Timestamp) -> StreamState:
        """Return how it is, as metrics and people see it."""
        stream, status = self.stream, self.status
        return StreamState(
            stream.id,
            stream.source.id,
            cast(Any, status["status"]),
            status["reason"],
            *_lag(stream.source, now),
            stream.state.keys(),
            self.detectors,
        )

    def open(self) -> None:
        """Open the source, once; RetryableError while its upstream cannot be reached."""
        if not self.is_open:
            self.stream.source.open(self.fields)
            self.is_open = True

    def say_notes(self) -> None:
        """Log what the source does not read, each place once."""
        for place, reason in self.stream.source.notes().items():
            if place not in self.said and len(self.said) < NOTES_SAID:
                self.said.add(place)
                log.warning("not read", stream=self.stream.id, place=place, reason=reason)

    @property
    def models(self) -> list[ModelDetector]:
        return [one for one in self.stream.pipeline.detectors if isinstance(one, ModelDetector)]

    def run_tasks(self) -> None:
        while not self.tasks.empty():
            answer(*self.tasks.get())

    def degrade(self, reason: str, pause: float) -> float:
        if self.trouble != reason:
            log.warning("degraded", stream=self.stream.id, reason=reason)
        self.trouble = reason
        return pause

    def recover(self) -> None:
        if self.trouble and self.trouble != "starting":
            log.info("recovered", stream=self.stream.id)
        self.trouble = ""


class Workers:
    """Everything that works under *accepted*. *fail* is called, once, with what must end the process."""

    def __init__(
        self, accepted: Accepted, store: Store, meters: Meters, *, once: bool, fail: Callable[[BaseException], None]
    ) -> None:
        self.accepted = accepted
        self._meters = meters
        self.runners: list[Runner] = []
        self.missing: dict[str, str] = {}
        """Streams that could not be made, and why."""
        self._store = store
        self._once = once
        self._fail = fail
        self._stop = threading.Event()
        """No more reading."""
        self._end = threading.Event()
        """No more delivering."""
        self._wake = threading.Event()
        self._sinks: dict[str, Sink] = {}
        self._open_sinks: set[str] = set()
        self._sink_trouble: dict[str, str] = {}
        """Why a sink did not take what it was offered last; empty if it did."""
        self._readers: list[threading.Thread] = []
        self._writers: list[threading.Thread] = []

    def build(self, *, strict: bool) -> None:
        """Make all parts; nothing outside is touched.

        TrustError, AccessDenied or ConfigError if the configuration cannot run. Unless *strict*, a stream that cannot
        be made is left out alone: it could be made once, and the others go on.
        """
        self._make(self._admitted, strict=strict)

    def prepare(self) -> Workers:
        """Find out what each source is asked for: some thousand rules take seconds to say, in which others may read."""
        for runner in self.runners:
            stream = runner.stream
            runner.fields = stream.pipeline.projection(stream.judge.fields)
        return self

    def again(self) -> Workers:
        """Return what goes on where these have stopped: the detectors and tables that were admitted for them, with
        sources and sinks made anew. What a signature covers is not read again, so it may be anything by now.
        """
        anew = Workers(self.accepted, self._store, self._meters, once=self._once, fail=self._fail)
        anew._make(self._kept, strict=False)
        return anew

    def _admitted(self, id: str) -> Runner:
        built = build_stream(self.accepted, id, self._store.folder / "cache", clock())
        self._forward_only(built)
        return Runner(built, self.accepted.configuration.streams[id], _made_of_rules(built.stream))

    def _kept(self, id: str) -> Runner:
        if id in self.missing:
            raise ConfigError(self.missing[id])
        old = self.runner(id)
        return Runner(build_again(self.accepted, old.built, clock()), old.config, old.detectors, old.fields)

    def _make(self, make: Callable[[str], Runner], *, strict: bool) -> None:
        configuration, locator = self.accepted.configuration, self.accepted.locator
        for id in configuration.streams:
            try:
                runner = make(id)
            except (TrustError, AccessDenied, ConfigError) as error:
                self.missing[id] = str(error)
                if strict or len(self.missing) == len(configuration.streams):
                    raise
                continue
            runner.stream.meters = self._meters
            self.runners.append(runner)
        used = {name for one in configuration.streams.values() for name in one.sinks} | set(audit_sinks(self.accepted))
        for name in sorted(used):
            self._sinks[name] = build_sink(configuration, locator, name)

    def _forward_only(self, built: Built) -> None:
        """Raise TrustError for a pack that is older than one that ran, that calls other content its version, or of
        which another version is to run beside it: the next start would find one of them older."""
        beside = {one.pack.name: one.pack for one in self.packs.values()}
        for one in (admitted.pack for admitted in built.packs.values()):
            with Reader(self._store.folder) as reader:
                last = last_pack(reader, one.name)
            version, digest = last.get("version", 0), last.get("digest", one.digest)
            if one.version < version or (one.version == version and one.digest != digest):
                raise TrustError(
                    f"pack {one.name}: expected more than version {version}, which ran before with {digest}, found"
                    f" version {one.version} with {one.digest}; to go back, sign the old content under a higher version"
                )
            other = beside.setdefault(one.name, one)
            if other != one:
                raise TrustError(
                    f"pack {one.name}: version {one.version} with {one.digest} and, in another detector, version"
                    f" {other.version} with {other.digest}: all have to be made of one version"
                )

    @property
    def packs(self) -> dict[str, AdmittedPack]:
        """The signed packs that run, by stream and detector."""
        return {f"{one.stream.id}.{name}": pack for one in self.runners for name, pack in one.packs.items()}

    def open(self, *, strict: bool) -> None:
        """Open all parts. What cannot be reached now is tried again; with *strict*, what only a person can mend raises
        ConfigError, else its stream shows as degraded."""
        for runner in self.runners:
            try:
                runner.open()
            except Exception as error:
                if strict and not isinstance(error, RetryableError | OSError):
                    raise
                runner.degrade(str(error), 0.0)
        for sink in self._sinks.values():
            try:
                self._open(sink)
            except Exception as error:
                if strict and not isinstance(error, RetryableError | OSError):
                    raise
                self._sink_trouble[sink.id] = str(error)
                log.warning("sink waits", sink=sink.id, reason=str(error))

    def begin(self) -> None:
        """Begin where the store says that each stream stands; what an operator has paused stays so."""
        with Reader(self._store.folder) as reader:
            paused = reader.paused()
        for runner in self.runners:
            runner.paused = paused.get(runner.stream.id, "")
            runner.stream.cursor, runner.stream.state = self._store.load(runner.stream.id)
        self._readers = [self._thread(f"stream-{one.stream.id}", self._run_stream, one) for one in self.runners]
        self._writers = [self._thread(f"sink-{name}", self._run_sink, sink) for name, sink in self._sinks.items()]
        for thread in (*self._readers, *self._writers):
            thread.start()

    def stop_reading(self) -> None:
        """Let the running cycles finish and commit; nothing new is fetched. Safe twice, safe unstarted."""
        self._stop.set()
        for runner in self.runners:
            runner.nudge.set()
        _join(self._readers)

    def stop(self, *, patience: float = 0.0) -> None:
        """Stop reading, give the sinks *patience* seconds for what waits, then let go of everything; safe twice."""
        self.stop_reading()
        end = time.monotonic() + patience
        with Reader(self._store.folder) as reader:
            while self._writers and time.monotonic() < end and any(reader.waiting(one, 1) for one in self._sinks):
                self._wake.set()
                time.sleep(0.02)
        self._end.set()
        self._wake.set()
        _join(self._writers)
        parts: list[Source | Sink] = [*(one.stream.source for one in self.runners), *self._sinks.values()]
        for part in parts:
            try:
                part.close()
            except Exception as error:
                log.error("closing failed", part=part.id, reason=str(error))

    def wake(self) -> None:
        """Let the sinks look at once whether something waits."""
        self._wake.set()

    def is_done(self, reader: Reader) -> bool:
        """Whether all that there is has been read and delivered."""
        return all(one.idle.is_set() for one in self.runners) and not any(
            reader.waiting(name, 1) for name in self._sinks
        )

    def on_stream(self, runner: Runner, work: Callable[[], T]) -> T:
        """Do *work* between two cycles of the stream's thread."""
        future: Future[T] = Future()
        runner.tasks.put((work, future))
        runner.nudge.set()
        return future.result(timeout=60)

    def runner(self, stream: str) -> Runner:
        """Return what runs *stream*; ConfigError if nothing does."""
        for one in self.runners:
            if one.stream.id == stream:
                return one
        raise ConfigError(f"no stream {stream!r} runs; there is: {', '.join(self.status())}")

    @property
    def lacks_something(self) -> bool:
        """Whether anything that the configuration names is not at work."""
        return bool(self.missing) or any(one.refused for one in self.runners)

    def status(self) -> dict[str, dict[str, str]]:
        """Return how each stream is."""
        missing = {id: {"status": "failed", "reason": reason} for id, reason in self.missing.items()}
        return missing | {one.stream.id: one.status for one in self.runners}

    def states(self, now: Timestamp) -> tuple[list[StreamState], list[SinkState], list[ModelState]]:
        """Return how everything is at *now*."""
        configuration = self.accepted.configuration
        streams = [
            StreamState(id, configuration.streams[id].source, "failed", reason) for id, reason in self.missing.items()
        ]
        streams += [one.state(now) for one in self.runners]
        sinks = [self._sink_state(one) for one in self._sinks.values()]
        models: list[ModelState] = []
        for runner in self.runners:
            stream = runner.stream.id
            for model in runner.models:
                section = configuration.models[model.id]
                end = instant(model.manifest.not_after)
                models.append(ModelState(model.id, stream, section.state, section.budget, end))
            for refusal in runner.refused:
                budget = configuration.models[refusal.model].budget
                models.append(ModelState(refusal.model, stream, "refused", budget))
        return streams, sinks, models

    def _sink_state(self, sink: Sink) -> SinkState:
        why = self._sink_trouble.get(sink.id, "")
        return SinkState(sink.id, not why, why, dict(tuple(getattr(sink, "counts", {}).items())))

    # --- the threads --------------------------------------------------------------------------------------------------

    def _thread(self, name: str, target: Callable[[Any], None], argument: Any) -> threading.Thread:
        return threading.Thread(target=self._guard, args=(target, argument), name=name, daemon=True)

    def _guard(self, target: Callable[[Any], None], argument: Any) -> None:
        """Run a thread's work; what it cannot handle itself ends the process."""
        try:
            target(argument)
        except BaseException as error:
            self._fail(error)

    def _run_stream(self, runner: Runner) -> None:
        with Reader(self._store.folder) as reader:
            while not self._stop.is_set():
                runner.nudge.clear()
                runner.run_tasks()
                pause = self._cycle(runner, reader)
                if pause and not self._stop.is_set():
                    runner.nudge.wait(pause)
        runner.run_tasks()

    def _cycle(self, runner: Runner, reader: Reader) -> float:
        """Do one cycle and return how many seconds to wait before the next."""
        if runner.paused:
            runner.trouble = ""
            runner.idle.set()
            return IDLE_S
        full = [name for name in runner.config.sinks if self._is_full(reader, name)]
        blocking = [name for name in full if self.accepted.configuration.sinks[name].delivery == "required"]
        if blocking:
            return runner.degrade(f"sink {blocking[0]} is full, reading waits for it", IDLE_S)
        room = [name for name in runner.config.sinks if name not in full]
        try:
            runner.open()
            records = run_cycle(runner.stream, self._store, limit=runner.config.batch, sinks=room, spilled=full)
        except StoreBroken:
            raise
        except (VedetteError, OSError) as error:
            runner.failures += 1
            if self._once and (runner.failures >= ONCE_PATIENCE or not isinstance(error, RetryableError | OSError)):
                raise
            return runner.degrade(str(error), backoff(runner.failures, error))
        except Exception as error:  # a fault of ours or a plug-in's must not take the other streams down
            if self._once:
                raise
            log.exception("stream failed", stream=runner.stream.id)
            runner.failures += 1
            return runner.degrade(f"{type(error).__name__}: {error}", backoff(runner.failures))
        runner.failures = 0
        runner.recover()
        runner.say_notes()
        if len(records):
            runner.idle.clear()
            self._wake.set()
            return 0.0
        if not records.unread:
            runner.idle.set()
        return UNREAD_S if records.unread else IDLE_S

    def _is_full(self, reader: Reader, name: str) -> bool:
        cap = self.accepted.configuration.sinks[name].max_waiting
        return reader.waiting(name, cap, alerts_only=True) >= cap

    def _open(self, sink: Sink) -> None:
        if sink.id not in self._open_sinks:
            sink.open()
            self._open_sinks.add(sink.id)

    def _run_sink(self, sink: Sink) -> None:
        failures = 0
        with Reader(self._store.folder) as reader:
            while not self._end.is_set():
                self._wake.clear()
                try:
                    self._open(sink)
                    offered = drain(sink, self._store, reader, self._meters, limit=DRAIN_LIMIT, now=clock())
                    failures, self._sink_trouble[sink.id] = 0, ""
                except StoreBroken:
                    raise
                except Exception as error:  # whatever a sink does, streams and other sinks go on
                    failures += 1
                    self._sink_trouble[sink.id] = str(error)
                    if self._once and failures >= ONCE_PATIENCE:
                        raise
                    if isinstance(error, VedetteError | OSError):
                        log.warning("sink waits", sink=sink.id, reason=str(error))
                    else:
                        log.exception("sink failed", sink=sink.id)
                    self._end.wait(backoff(failures, error))
                    continue
                if not offered:
                    self._wake.wait(IDLE_S)


def _lag(source: Source, now: Timestamp) -> tuple[int | None, float | None]:
    """Return how many records the source says are unread, and how many seconds the oldest has waited."""
    if not isinstance(source, Measured):
        return None, None
    lag = source.lag()
    since = 0.0 if lag.events == 0 else None if lag.oldest is None else max(0, now - lag.oldest) / SECOND
    return lag.events, since


def last_pack(reader: Reader, name: str) -> dict[str, Any]:
    """Return what is on record of the newest version of the pack *name* that was accepted; empty if none was.

    It is the last one on record, since none is accepted but with a higher number than all before.
    """
    accepted = (dict(leaf.data) for leaf in reader.backwards("pack-accepted"))
    return next((one for one in accepted if one.get("pack") == name), {})


def _made_of_rules(stream: Stream) -> list[DetectorState]:
    plans = stream.pipeline.plan()["detectors"]
    return [
        DetectorState(name, plan["rules"], len(plan.get("refused", ())))
        for name, plan in plans.items()
        if "rules" in plan
    ]


def _join(threads: list[threading.Thread]) -> None:
    while threads:
        threads.pop().join()


def answer(work: Callable[[], Any], future: Future[Any]) -> None:
    """Do *work* for whoever waits for *future*."""
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)


def audit_sinks(accepted: Accepted) -> tuple[str, ...]:
    """Return the sinks that get copies of the audit log: those that are named, else all whose kind is made for it."""
    configuration = accepted.configuration
    if configuration.audit.sinks is not None:
        return tuple(configuration.audit.sinks)
    return tuple(sorted(name for name, one in configuration.sinks.items() if plugins.connector(one.type).keeps_audit))
