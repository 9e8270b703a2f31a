"""The daemon: the only room that knows all the others.

Start-up is the list `Service.STEPS`. Then each stream has a thread that reads, evaluates and commits, and each sink has
one that drains its outbox; they share the store's writer. A stream that fails backs off and shows as degraded while
the others go on; a sick disk ends the process.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import structlog

from agent.assemble import build_sink, build_stream
from agent.config import Configuration, Locator, StreamConfig
from agent.control import Control
from agent.errors import RetryableError, VedetteError
from agent.model import Chunk, Records
from agent.pipeline import LATE, late_spans
from agent.ports import Sink
from agent.replay import Replay, Span
from agent.store import Reader, Store, StoreBroken
from agent.store.sqlite import backoff, clock
from agent.stream import Stream, drain, process, run_cycle

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
PRUNE_EVERY_MIN = 60
_NOT_THE_END = frozenset({"dead letters"})
"""A partition without a mark: reading dead letters again moves no watermark."""
VERDICTS = ("true-positive", "false-positive", "benign")


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass
class _Runner:
    """One stream's thread, its work queue for commands, and how it is."""

    stream: Stream
    config: StreamConfig
    tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=queue.SimpleQueue)
    status: str = "starting"
    reason: str = ""
    failures: int = 0
    idle: threading.Event = field(default_factory=threading.Event)
    said: set[str] = field(default_factory=set)
    is_open: bool = False

    def open(self) -> None:
        """Open the source, once; RetryableError while its upstream cannot be reached."""
        if not self.is_open:
            self.stream.source.open(self.stream.pipeline.projection(self.stream.judge.fields))
            self.is_open = True

    def say_notes(self) -> None:
        """Log what the source does not read, each place once."""
        for place, reason in self.stream.source.notes().items():
            if place not in self.said and len(self.said) < NOTES_SAID:
                self.said.add(place)
                log.warning("not read", stream=self.stream.id, place=place, reason=reason)


class Service:
    """Runs a configuration over a data folder until it is stopped, or with *once* until all is read and delivered."""

    STEPS: ClassVar[tuple[str, ...]] = (
        "_take_store",
        "_build_streams",
        "_open_sources",
        "_open_sinks",
        "_settle_memory",
        "_start_chores",
        "_listen",
        "_start_threads",
    )

    def __init__(self, configuration: Configuration, locator: Locator, data: Path, *, once: bool = False) -> None:
        self._configuration = configuration
        self._locator = locator
        self._data = data
        self._once = once
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._fatal: BaseException | None = None
        self._runners: list[_Runner] = []
        self._sinks: dict[str, Sink] = {}
        self._open_sink_names: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._store: Store
        self._closing: list[Callable[[], object]] = []
        self._replays: list[Replay] = []

    def run(self) -> None:
        """Start, work, stop in order. Raises what made it stop, if that was not a signal or the end of the work."""
        gc.set_threshold(100_000, 50, 50)
        try:
            for step in self.STEPS:
                getattr(self, step)()
            self._store.record("", "start", {"pid": os.getpid(), "trust": "local", "by": _user()}, clock())
            log.info("started", data=str(self._data), streams=[one.stream.id for one in self._runners], trust="local")
            log.warning("trust: local - configuration and rules are not signed; alerts are stamped so")
            self._wait()
            if self._fatal is None:
                self._store.record("", "stop", {"pid": os.getpid()}, clock())
        finally:
            self._shut()
        if self._fatal is not None:
            raise self._fatal
        log.info("stopped")

    def stop(self, *_: object) -> None:
        """Ask for an orderly end: the running cycles finish and commit, nothing new is fetched."""
        self._stop.set()
        self._wake.set()

    def stop_on_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)

    # --- start-up, in order -------------------------------------------------------------------------------------------

    def _take_store(self) -> None:
        self._store = Store(self._data, dead_letter_bytes=self._configuration.dead_letters.max_bytes)
        self._closing.append(self._store.close)

    def _build_streams(self) -> None:
        for id, section in self._configuration.streams.items():
            stream = build_stream(self._configuration, self._locator, id, self._store)
            self._runners.append(_Runner(stream, section))
            for name, plan in stream.pipeline.plan()["detectors"].items():
                refused = plan.get("refused", [])
                for reason in refused:
                    log.warning("refused", stream=id, detector=name, reason=reason)
                log.info("plan", stream=id, detector=name, **{key: plan[key] for key in plan if _is_short(plan[key])})

    def _open_sources(self) -> None:
        """Open every source; one that cannot be reached now is tried again by its stream."""
        for runner in self._runners:
            self._closing.append(runner.stream.source.close)
            try:
                runner.open()
            except RetryableError as error:
                self._degrade(runner, str(error), 0.0)

    def _open_sinks(self) -> None:
        for name in sorted({name for runner in self._runners for name in runner.config.sinks}):
            sink = build_sink(self._configuration, self._locator, name)
            self._closing.append(sink.close)
            self._sinks[name] = sink
            try:
                sink.open()
                self._open_sink_names.add(name)
            except RetryableError as error:
                log.warning("sink waits", sink=name, reason=str(error))

    def _settle_memory(self) -> None:
        gc.collect()
        gc.freeze()  # compiled rules live to the end: the collector need not look at them again

    def _start_chores(self) -> None:
        from apscheduler.schedulers.background import BackgroundScheduler

        settings = self._configuration.alerts
        chores = BackgroundScheduler(timezone="UTC")

        def prune() -> None:
            self._store.prune(clock(), days=settings.retention_days, max_bytes=settings.retention_bytes)

        chores.add_job(prune, "interval", minutes=PRUNE_EVERY_MIN)
        chores.start()
        self._closing.append(chores.shutdown)

    def _listen(self) -> None:
        self._closing.append(Control(self._data, self.answer).close)

    def _start_threads(self) -> None:
        work = [
            *((f"stream-{one.stream.id}", self._run_stream, one) for one in self._runners),
            *((f"sink-{name}", self._run_sink, sink) for name, sink in self._sinks.items()),
        ]
        for name, target, argument in work:
            thread = threading.Thread(target=self._guard, args=(target, argument), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- the threads --------------------------------------------------------------------------------------------------

    def _guard(self, target: Callable[[Any], None], argument: Any) -> None:
        """Run a thread's work; what it cannot handle itself ends the process."""
        try:
            target(argument)
        except BaseException as error:
            self._fatal = self._fatal or error
            self.stop()

    def _run_stream(self, runner: _Runner) -> None:
        with Reader(self._data) as reader:
            while not self._stop.is_set():
                self._run_tasks(runner)
                pause = self._cycle(runner, reader)
                if pause:
                    self._stop.wait(pause)

    def _cycle(self, runner: _Runner, reader: Reader) -> float:
        """Do one cycle and return how many seconds to wait before the next."""
        full = [name for name in runner.config.sinks if self._is_full(reader, name)]
        blocking = [name for name in full if self._configuration.sinks[name].delivery == "required"]
        if blocking:
            return self._degrade(runner, f"sink {blocking[0]} is full, reading waits for it", IDLE_S)
        room = [name for name in runner.config.sinks if name not in full]
        try:
            runner.open()
            records = run_cycle(runner.stream, self._store, limit=runner.config.batch, sinks=room, spilled=full)
        except StoreBroken:
            raise
        except (RetryableError, OSError) as error:
            runner.failures += 1
            if self._once and runner.failures >= ONCE_PATIENCE:
                raise
            return self._degrade(runner, str(error), backoff(runner.failures, getattr(error, "retry_after", None)))
        except Exception as error:  # a fault of ours or a plug-in's must not take the other streams down
            if self._once:
                raise
            log.exception("stream failed", stream=runner.stream.id)
            runner.failures += 1
            return self._degrade(runner, f"{type(error).__name__}: {error}", backoff(runner.failures))
        runner.failures = 0
        self._recover(runner)
        runner.say_notes()
        if len(records):
            runner.idle.clear()
            self._wake.set()
            return 0.0
        if not records.unread:
            runner.idle.set()
        return UNREAD_S if records.unread else IDLE_S

    def _is_full(self, reader: Reader, name: str) -> bool:
        cap = self._configuration.sinks[name].max_waiting
        return reader.waiting(name, cap) >= cap

    @staticmethod
    def _degrade(runner: _Runner, reason: str, pause: float) -> float:
        if runner.reason != reason:
            log.warning("degraded", stream=runner.stream.id, reason=reason)
        runner.status, runner.reason = "degraded", reason
        return pause

    @staticmethod
    def _recover(runner: _Runner) -> None:
        if runner.status == "degraded":
            log.info("recovered", stream=runner.stream.id)
        runner.status, runner.reason = "ok", ""

    def _run_sink(self, sink: Sink) -> None:
        failures = 0
        with Reader(self._data) as reader:
            while not self._stop.is_set():
                self._wake.clear()
                try:
                    if sink.id not in self._open_sink_names:
                        sink.open()
                        self._open_sink_names.add(sink.id)
                    offered = drain(sink, self._store, reader, limit=DRAIN_LIMIT, now=clock())
                    failures = 0
                except StoreBroken:
                    raise
                except (RetryableError, OSError) as error:
                    failures += 1
                    log.warning("sink waits", sink=sink.id, reason=str(error))
                    self._stop.wait(backoff(failures))
                    continue
                if not offered:
                    self._wake.wait(IDLE_S)

    def _wait(self) -> None:
        """Until a signal, a fatal error, or with *once* the end of the work."""
        with Reader(self._data) as reader:
            while not self._stop.wait(0.05 if self._once else 1.0):
                if self._once and self._is_done(reader):
                    break
        self.stop()
        for thread in self._threads:
            thread.join()

    def _is_done(self, reader: Reader) -> bool:
        return all(one.idle.is_set() for one in self._runners) and not any(
            reader.waiting(name, 1) for name in self._sinks
        )

    def _shut(self) -> None:
        while self._closing:
            try:
                self._closing.pop()()
            except Exception as error:
                log.error("closing failed", reason=str(error))

    # --- commands -----------------------------------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a command asks of the running daemon."""
        if request.get("do") == "ack":
            return acknowledge(self._store, request)
        if request.get("do") == "retry":
            return {"retried": sum(self._on_stream(one, partial(self._retry, one)) for one in self._runners)}
        if request.get("do") == "replay":
            return self._replay(request)
        if request.get("do") == "status":
            return {one.stream.id: {"status": one.status, "reason": one.reason} for one in self._runners}
        raise VedetteError(f"unknown request {request.get('do')!r}")

    def _replay(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the replay that *request* describes, unless one runs; say how far it is."""
        running = self._replays[-1] if self._replays else None
        if request.get("spans") is not None or request.get("late"):
            if running and not running.done:
                raise VedetteError(f"a replay of stream {running.stream} runs already; wait for it")
            running = replay_of(request, self._late)
            self._replays.append(running)
            self._store.record(running.stream, "replay", {"by": request["by"], "spans": len(running.spans)}, clock())
            work = partial(running.run, self._configuration, self._locator, self._store)
            threading.Thread(target=work, name="replay", daemon=True).start()
            self._closing.append(running.stopped.set)
        if running is None:
            raise VedetteError("no replay has run since the start")
        if running.done:
            self._wake.set()
        return running.report()

    def _late(self, stream: str) -> list[Span]:
        """Take the late spans of *stream* out of its state."""
        runner = next(one for one in self._runners if one.stream.id == stream)
        return self._on_stream(runner, partial(take_late, runner.stream, self._store))

    def _on_stream(self, runner: _Runner, work: Callable[[], T]) -> T:
        future: Future[T] = Future()
        runner.tasks.put((work, future))
        return future.result(timeout=60)

    @staticmethod
    def _run_tasks(runner: _Runner) -> None:
        while not runner.tasks.empty():
            work, future = runner.tasks.get()
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def _retry(self, runner: _Runner) -> int:
        with Reader(self._data) as reader:
            return retry_dead_letters(runner.stream, self._store, reader, sinks=runner.config.sinks)


def replay_of(request: Mapping[str, Any], late: Callable[[str], Sequence[Span]]) -> Replay:
    """Return the replay that *request* describes; *late* gives the spans of a stream that came too late."""
    stream = str(request["stream"])
    spans = late(stream) if request.get("late") else [Span(**one) for one in request["spans"]]
    return Replay(stream, spans, warm_up=int(request.get("warm_up") or 0))


def take_late(stream: Stream, store: Store) -> list[Span]:
    """Return the spans of event time of which events came too late for *stream*, and forget them."""
    transaction = stream.state.transaction()
    view = transaction.view(LATE)
    spans = [Span(start, end) for start, end in late_spans(view)]
    for key, _ in list(view.items()):
        view.delete(key)
    if spans:
        store.remember(stream.id, transaction.changes())
        transaction.apply()
    return spans


def acknowledge(store: Store, request: Mapping[str, Any]) -> dict[str, Any]:
    """Acknowledge the alerts that *request* names; VedetteError for an id that is not stored."""
    verdict = request.get("verdict")
    if verdict is not None and verdict not in VERDICTS:
        raise VedetteError(f"verdict {verdict!r}: expected one of {', '.join(VERDICTS)}")
    unknown = []
    for id in request["ids"]:
        found = store.acknowledge(id, by=str(request["by"]), verdict=verdict, note=request.get("note"), now=clock())
        if not found:
            unknown.append(id)
    if unknown:
        raise VedetteError(f"no alert {', '.join(unknown)}; see 'vedette alerts list'")
    return {"acknowledged": len(request["ids"])}


def retry_dead_letters(stream: Stream, store: Store, reader: Reader, *, sinks: Sequence[str]) -> int:
    """Read the stream's dead letters again, as far as their bytes are kept; return how many are scored now."""
    letters = [one for one in reader.dead_letters() if one["stream"] == stream.id and one["raw"] is not None]
    if not letters:
        return 0
    chunks = tuple(
        Chunk(one["partition"], one["path"], one["format"], (one["key"],), (one["raw"],), lineage=one["lineage"])
        for one in letters
    )
    records = Records(letters[0]["source"], chunks, stream.cursor or {}, clock(), unread=_NOT_THE_END)
    identities = {one["identity"] for one in letters}
    process(stream, store, records, sinks=sinks, released=sorted(identities))
    return len(identities) - sum(one["identity"] in identities for one in reader.dead_letters())


def _user() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid())


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, dict) and len(value) <= 8)
