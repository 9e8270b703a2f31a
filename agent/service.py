"""The daemon: the only room that knows all the others.

Start-up is the list `Service.STEPS`. What works under one configuration is `Workers`; a new configuration that the law
accepts takes their place, one that it refuses changes nothing. The main thread does what changes the whole.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar, TypeVar

import apsw
import structlog

from agent.access import Principal
from agent.assemble import build_stream, provenance, strangers
from agent.chores import Chores
from agent.config import Accepted, Bootstrap, Files, accept, root_of
from agent.config.revision import recall
from agent.control import Control, login
from agent.detect.model import ModelDetector
from agent.errors import ConfigError, RetryableError, TrustError, VedetteError
from agent.health import Health
from agent.model import MODEL_EXPIRED, Chunk, Notice, Records, Timestamp
from agent.pipeline import LATE, late_spans
from agent.replay import Replay, Span
from agent.store import Reader, Store, StoreBroken, numbers
from agent.store.sqlite import DATABASE, clock
from agent.stream import Stream, process
from agent.telemetry import notify
from agent.telemetry.meters import Meters
from agent.telemetry.metrics import Snapshot, render
from agent.telemetry.summary import summary
from agent.trust.admission import expiry
from agent.trust.manifest import instant
from agent.workers import Runner, Workers, answer, audit_sinks, last_pack

log = structlog.get_logger()
T = TypeVar("T")
PRUNE_EVERY_S = 3600
EXPIRY_EVERY_S = 10
STATUS_EVERY_S = 10
RELOAD_S = 600.0
"""How long the main thread may be silent while it makes everything anew."""
FAREWELL_S = 3.0
"""Seconds that an orderly stop gives the sinks for what waits; the rest is sent after the next start."""
_NOT_READY = frozenset({"degraded", "failed"})
_NOT_THE_END = frozenset({"dead letters"})
"""A partition without a mark: what is no fetch of the source moves no watermark."""
_REASONS, _REASON_TEXT = 100, 300
"""How many reasons for refused rules a leaf names, and how much of each."""
VERDICTS = ("true-positive", "false-positive", "benign")


class Service:
    """Runs what *bootstrap* names until it is stopped, or with *once* until all is read and delivered."""

    STEPS: ClassVar[tuple[str, ...]] = (
        "_take_store",
        "_take_configuration",
        "_start_workers",
        "_listen",
        "_serve_health",
        "_start_chores",
    )

    def __init__(self, bootstrap: Bootstrap, *, once: bool = False) -> None:
        self._bootstrap = bootstrap
        self._root = root_of(bootstrap)
        self._once = once
        self._stop = threading.Event()
        self._asked_to_stop = self._asked_to_reload = False
        """What signals set: no more may be done in a handler, which can find the main thread inside any lock."""
        self._fatal: BaseException | None = None
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._closing: list[Callable[[], object]] = []
        self._replays: list[Replay] = []
        self._said: dict[str, str] = {}
        """What was last put on record about the end of a model."""
        self._raised: dict[str, str] = {}
        """The same, of alerts that are stored."""
        self._meters = Meters()
        self._started = clock()
        self._chores = Chores()
        self._store: Store
        self._health: Health
        self._workers: Workers

    def run(self) -> None:
        """Start, work, stop in order. Raises what made it stop, if that was not a signal or the end of the work."""
        gc.set_threshold(100_000, 50, 50)
        try:
            for step in self.STEPS:
                getattr(self, step)()
            self._work()
            if self._fatal is None:
                self._store.record("", "stop", {"pid": os.getpid()}, clock())
                self._store.checkpoint()
                self._workers.stop(patience=FAREWELL_S)
        finally:
            self._shut()
        if self._fatal is not None:
            raise self._fatal
        log.info("stopped")

    def stop(self) -> None:
        """Ask for an orderly end: the running cycles finish and commit, nothing new is fetched."""
        self._stop.set()

    def stop_on_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_asked_to_stop", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "_asked_to_reload", True))

    # --- start-up, in order -------------------------------------------------------------------------------------------

    def _take_store(self) -> None:
        self._store = Store(self._bootstrap.data)
        self._closing.append(self._store.close)
        self._store.record("", "start", {"pid": os.getpid()}, clock(), actor=login())

    def _take_configuration(self) -> None:
        """Take what lies in the configuration's folder, else the last good one; without either there is no start."""
        before, above = last_accepted(self._bootstrap, self._root)
        self._closing.append(self._stop_workers)
        try:
            files = Files.read(self._bootstrap.configuration)
            if before is None or files.text != before.files.text:
                accepted = accept(files, self._root, before, above=above)
                self._take(self._built(accepted, strict=True).prepare())
                return
        except StoreBroken:
            raise
        except Exception as error:  # whatever is wrong with a configuration, the last good one goes on
            self._refuse(error)
            if before is None:
                raise
            log.warning("the last good configuration goes on", revision=before.revision)
        self._go_on(self._built(before, strict=False).prepare())

    def _start_workers(self) -> None:
        self._begin()
        accepted = self._workers.accepted
        log.info("started", data=str(self._store.folder), revision=accepted.revision, trust=accepted.trust,
                 streams=[one.stream.id for one in self._workers.runners])  # fmt: skip
        if accepted.trust == "single-user":
            log.warning("trust: single-user - one principal signs everything; alerts are stamped so")

    def _listen(self) -> None:
        self._closing.append(Control(self._store.folder, self.answer).close)

    def _serve_health(self) -> None:
        self._health = Health(self._bootstrap.listen, troubles=self._troubles, metrics=self._metrics)
        self._closing.append(self._health.close)

    def _start_chores(self) -> None:
        self._chores.every(PRUNE_EVERY_S, self._prune)
        self._chores.every(EXPIRY_EVERY_S, self._watch_expiry)
        self._chores.every(STATUS_EVERY_S, lambda: notify.status(self._status_line()))
        self._chores.start()
        self._closing.append(self._chores.close)
        self._health.started(self._status_line())

    # --- the law at work ----------------------------------------------------------------------------------------------

    def _built(self, accepted: Accepted, *, strict: bool) -> Workers:
        workers = Workers(accepted, self._store, self._meters, once=self._once, fail=self._fail)
        workers.build(strict=strict)
        return workers

    def _take(self, workers: Workers) -> None:
        """Let a new configuration, made whole, be what runs from `begin` on: if all that it names can be opened.

        It is on record, and what the next start goes on with, before it runs.
        """
        accepted, files = workers.accepted, workers.accepted.files
        try:
            workers.open(strict=True)
            self._store.accept(accepted.revision, files.text, files.envelope, accepted.facts(), clock())
            self._enter(workers)
        except BaseException:
            workers.stop()
            raise
        self._meters.configuration("accepted")
        log.info("configuration accepted", **accepted.facts())

    def _go_on(self, workers: Workers) -> None:
        """Let what was accepted before be what runs, as far as it can be opened today."""
        try:
            workers.open(strict=False)
            self._enter(workers)
        except BaseException:
            workers.stop()
            raise

    def _enter(self, workers: Workers) -> None:
        self._workers = self._recorded(workers)
        self._store.dead_letter_bytes = workers.accepted.configuration.dead_letters.max_bytes
        self._store.audit_sinks = audit_sinks(workers.accepted)

    def _recorded(self, workers: Workers) -> Workers:
        """Put on record what runs and what is refused, before it runs."""
        under = provenance(workers.accepted)
        for runner in workers.runners:
            stream = runner.stream.id
            self._record_packs(runner)
            for name, plan in runner.stream.pipeline.plan()["detectors"].items():
                refused = plan.get("refused", [])
                for reason in refused:
                    log.warning("refused", stream=stream, detector=name, reason=reason)
                said = {key: plan[key] for key in plan if _is_short(plan[key])}
                data = {"detector": name, "refused": len(refused), **_reasons(refused), **said, **under}
                self._store.record(stream, "detector-loaded", data, clock())
                log.info("plan", stream=stream, detector=name, **said)
            for one in runner.refused:
                data = {"model": one.model, "reason": one.reason, **under}
                self._store.record(stream, "model-refused", data, clock())
                log.error("model refused", stream=stream, **data)
        for stream, reason in workers.missing.items():
            self._store.record(stream, "stream-refused", {"reason": reason, **under}, clock())
            log.error("stream refused", stream=stream, reason=reason)
        detectors = (one for runner in workers.runners for one in runner.stream.pipeline.detectors)
        for rule in strangers(workers.accepted.configuration, detectors):
            log.warning("exception for a rule that nothing here has", rule=rule)
        return workers

    def _record_packs(self, runner: Runner) -> None:
        """Put on record each version of a pack that runs for the first time."""
        for admitted in runner.packs.values():
            with Reader(self._store.folder) as reader:
                last = last_pack(reader, admitted.pack.name)
            if last.get("version", 0) < admitted.pack.version:
                self._store.record(runner.stream.id, "pack-accepted", admitted.facts(), clock())
                log.info("pack accepted", stream=runner.stream.id, **admitted.facts())

    def _refuse(self, error: Exception) -> None:
        data = {"reason": str(error), "kind": type(error).__name__}
        self._meters.configuration("refused")
        self._store.record("", "configuration-refused", data, clock())
        log.error("configuration refused", **data)

    def _apply(self, by: str) -> dict[str, Any]:
        """Look at the configuration's folder and let a new revision take the place of what runs, if the law does.

        If it cannot be opened, what ran before is opened again and goes on.
        """
        before = self._workers.accepted
        try:
            files = Files.read(self._bootstrap.configuration)
            is_new = files.text != before.files.text
            if is_new:
                accepted = accept(files, self._root, before, above=self._used(files))
                workers = self._built(accepted, strict=True).prepare()
        except Exception as error:
            self._refuse(error)
            raise
        if not is_new:
            return {"revision": before.revision, "changed": self._renew(before)}

        def enter() -> None:
            self._take(workers)
            applied = {"revision": accepted.revision, "digest": accepted.digest}
            self._store.record("", "configuration-applied", applied, clock(), actor=by)

        self._swap(workers, "the configuration changes", enter, self._refuse)
        self._begin()
        return {"revision": accepted.revision, "changed": sorted(accepted.changed)}

    def _renew(self, accepted: Accepted) -> list[str]:
        """Look for what is missing under the configuration that runs, and for packs that have changed; return these.

        A changed pack takes its predecessor's place between two batches. If one may not run, all that runs goes on.
        """
        running = {key: one.pack for key, one in self._workers.packs.items()}
        lacks = self._workers.lacks_something
        if not running and not lacks:
            return []
        try:
            workers = self._built(accepted, strict=not lacks)
            for stream in sorted(workers.missing.keys() - self._workers.missing.keys()):
                raise TrustError(f"stream {stream}: {workers.missing[stream]}")
            changed = sorted({one.pack.name for key, one in workers.packs.items() if one.pack != running.get(key)})
            if not lacks and not changed:
                return []
            workers.prepare()
        except Exception as error:
            self._refuse_pack(error)
            raise

        def enter() -> None:
            workers.open(strict=not lacks)
            self._enter(workers)

        reason = "what was missing is looked for again" if lacks else "a pack has changed"
        self._swap(workers, reason, enter, self._refuse_pack)
        self._begin()
        return [f"pack {name}" for name in changed]

    def _refuse_pack(self, error: Exception) -> None:
        self._store.record("", "pack-refused", {"reason": str(error), "kind": type(error).__name__}, clock())
        log.error("pack refused", reason=str(error))

    def _swap(
        self, workers: Workers, reason: str, enter: Callable[[], None], refuse: Callable[[Exception], None]
    ) -> None:
        """Stop what runs and let *workers*, made whole, take its place by *enter*; if they cannot, it goes on."""
        before = self._workers
        self._pause(reason)
        try:
            enter()
        except Exception as error:
            workers.stop()
            try:
                refuse(error)
            finally:
                self._resume(before)
            raise

    def _look_again(self) -> None:
        """Do what a SIGHUP asks; why it cannot be done is on record and in the log, and what runs goes on."""
        notify.reloading()
        try:
            done = self._apply("SIGHUP")
            log.info("configuration looked at again", revision=done["revision"], changed=done["changed"])
        except Exception as error:
            log.warning(
                "the last good configuration goes on", revision=self._workers.accepted.revision, reason=str(error)
            )
        notify.ready(self._status_line())

    def _used(self, files: Files) -> int:
        """Return the newest number that was accepted for anything but *files*, though it may never have run."""
        with Reader(self._store.folder) as reader:
            return max((number for number, text, _ in reader.configurations() if text != files.text), default=0)

    def _resume(self, before: Workers) -> None:
        """Let what *before* were made of go on, whatever lies on the disk by now; if that fails, nothing runs and the
        process must end."""
        try:
            while not self._asked_to_stop and not self._stop.is_set():
                try:
                    self._go_on(before.again())
                    self._begin()
                    return
                except RetryableError as error:  # the disk is full: whatever works could commit nothing either
                    log.warning("work waits", reason=str(error))
                    self._health.beat()
                    self._stop.wait(1)
        except BaseException as error:
            self._fail(error)
            raise

    def _end_expired(self) -> None:
        """Let all go on but the models that have expired and must not."""
        self._pause("a model has expired")
        self._resume(self._workers)

    def _begin(self) -> None:
        self._workers.begin()
        gc.unfreeze()  # what ran before may be in circles
        gc.collect()
        gc.freeze()  # compiled rules live long: the collector need not look at them again

    def _pause(self, reason: str) -> None:
        """Stop what works, replays too: they would go on under what does not run any more."""
        for one in self._replays:
            one.stop(reason)
        self._workers.stop()

    def _stop_workers(self) -> None:
        if hasattr(self, "_workers"):
            self._workers.stop()

    # --- at work ------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self.stop()

    def _work(self) -> None:
        """Until a signal, a fatal error, or with *once* the end of the work."""
        with Reader(self._store.folder) as reader:
            while not self._asked_to_stop and not self._stop.wait(0.05 if self._once else 0.2):
                self._health.beat()
                self._chores.look()
                if self._asked_to_reload or not self._tasks.empty():
                    self._health.beat(RELOAD_S)
                if self._asked_to_reload:
                    self._asked_to_reload = False
                    self._look_again()
                while not self._tasks.empty():
                    answer(*self._tasks.get())
                if self._once and self._workers.is_done(reader):
                    break
        self._stop.set()
        notify.stopping()
        while not self._tasks.empty():
            self._tasks.get()[1].set_exception(VedetteError("the daemon is stopping"))
        self._workers.stop_reading()

    def _in_main(self, work: Callable[[], T]) -> T:
        if self._stop.is_set():
            raise VedetteError("the daemon is stopping")
        future: Future[T] = Future()
        self._tasks.put((work, future))
        return future.result(timeout=60)

    def _shut(self) -> None:
        while self._closing:
            try:
                self._closing.pop()()
            except Exception as error:
                log.error("closing failed", reason=str(error))

    def _prune(self) -> None:
        settings = self._workers.accepted.configuration.alerts
        self._store.prune(clock(), days=settings.retention_days, max_bytes=settings.retention_bytes)

    def _watch_expiry(self) -> None:
        """Put on record which models expire or have expired; start anew without those that must not go on."""
        workers, now = self._workers, clock()
        models = workers.accepted.configuration.models
        for runner in workers.runners:
            for one in runner.models:
                try:
                    self._say_expiry(workers, runner, one, now)
                except StoreBroken as error:
                    self._fail(error)
                except (VedetteError, OSError) as error:  # said again at the next look
                    log.warning("model expiry waits", stream=runner.stream.id, model=one.id, reason=str(error))
            runner.expired = [one.id for one in runner.models if now >= instant(one.manifest.not_after)]
        if any(models[id].on_expiry == "stop" for runner in workers.runners for id in runner.expired):
            self._in_main(self._end_expired)

    def _say_expiry(self, workers: Workers, runner: Runner, model: ModelDetector, now: Timestamp) -> None:
        """Say once what `expiry` says now: on record first, and of a model that has expired by an alert too."""
        id, text = model.id, expiry(model.manifest, now)
        if text and self._said.get(id) != text:
            data = {"model": id, "text": text}
            self._store.record(runner.stream.id, "model-expiry", data, now)
            self._said[id] = text
            log.warning("model expiry", stream=runner.stream.id, **data)
        over = now >= instant(model.manifest.not_after)
        if over and self._raised.get(id) != text:
            if workers.on_stream(runner, partial(self._raise_expired, runner, id, text)):
                self._raised[id] = text
            workers.wake()

    def _raise_expired(self, runner: Runner, model: str, text: str) -> bool:
        """Raise the alert of the day about a model that has expired, on the stream's thread; False if it never read."""
        stream = runner.stream
        if stream.cursor is None:
            return False
        notice = Notice(MODEL_EXPIRED, model, text)
        records = Records(stream.source.id, (), stream.cursor, clock(), unread=_NOT_THE_END, notices=(notice,))
        process(stream, self._store, records, sinks=runner.config.sinks)
        return True

    # --- how it is ----------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        now = clock()
        return Snapshot(now, self._started, self._workers.accepted.revision, self._store.dead_bytes,
                        *self._workers.states(now))  # fmt: skip

    def _seen(self) -> tuple[Snapshot, numbers.Numbers]:
        """Return what the daemon knows of itself, and what its store holds."""
        snapshot = self._snapshot()
        return snapshot, numbers.read(self._store.folder, [one.id for one in snapshot.sinks])

    def _metrics(self) -> bytes:
        return render(*self._seen(), self._meters)

    def _troubles(self) -> list[str]:
        """Why a load balancer or a person should not take it for ready: streams and sinks that do not work."""
        snapshot = self._snapshot()
        troubles = [f"stream {one.id}: {one.reason}" for one in snapshot.streams if one.status in _NOT_READY]
        return troubles + [f"sink {one.id}: {one.reason}" for one in snapshot.sinks if not one.up]

    def _status_line(self) -> str:
        """Return what `systemctl status` shows; nothing if it cannot be told: no reason to stop."""
        if not notify.has_listener():
            return ""
        try:
            return summary(*self._seen())
        except (VedetteError, apsw.Error) as error:
            log.warning("status cannot be told", reason=str(error))
            return ""

    def _report(self) -> dict[str, Any]:
        """Return how everything is and what has been counted, for people and machines that ask."""
        snapshot, counted = self._seen()
        return {"summary": summary(snapshot, counted), **asdict(snapshot), "waiting": counted.waiting,
                "counts": counted.counters}  # fmt: skip

    # --- commands -----------------------------------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a command asks of the running daemon; what it refuses is on record too."""
        try:
            return self._do(request)
        except VedetteError as error:
            data = {"command": str(request.get("do"))[:64], "reason": str(error)[:1000]}
            self._store.record("", "command-refused", data, clock(), actor=str(request.get("by", "")))
            raise

    def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        by = str(request.get("by", ""))
        commands: Mapping[str, Callable[[], dict[str, Any]]] = {
            "ack": lambda: acknowledge(self._store, request),
            "apply": lambda: self._in_main(partial(self._apply, by)),
            "pause": lambda: self._pause_stream(str(request.get("stream")), by, paused=True),
            "replay": lambda: self._replay(request),
            "report": self._report,
            "resume": lambda: self._pause_stream(str(request.get("stream")), by, paused=False),
            "retry": lambda: self._retry_all(by),
            "status": lambda: {**self._workers.status()},
        }
        command = commands.get(str(request.get("do")))
        if command is None:
            raise VedetteError(f"unknown request {request.get('do')!r}")
        return command()

    def _replay(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the replay that *request* describes, unless one runs; say how far it is."""
        running = self._replays[-1] if self._replays else None
        if request.get("spans") is not None or request.get("late"):
            if running and not running.done:
                raise VedetteError(f"a replay of stream {running.stream} runs already; wait for it")
            running = replay_of(request, self._late, self._store)
            self._replays.append(running)
            work = partial(running.run, self._workers.accepted, self._store)
            threading.Thread(target=work, name="replay", daemon=True).start()
            self._closing.append(running.stopped.set)
        if running is None:
            raise VedetteError("no replay has run since the start")
        if running.done:
            self._workers.wake()
        return running.report()

    def _late(self, stream: str) -> list[Span]:
        """Take the late spans of *stream* out of its state."""
        runner = self._workers.runner(stream)
        return self._workers.on_stream(runner, partial(take_late, runner.stream, self._store))

    def _pause_stream(self, stream: str, by: str, *, paused: bool) -> dict[str, Any]:
        """Stop or go on fetching, once the running cycle has committed; on record before it is so."""
        runner = self._workers.runner(stream)

        def work() -> None:
            if bool(runner.paused) != paused:
                runner.paused = self._store.pause(stream, by, clock(), paused=paused)

        self._workers.on_stream(runner, work)
        return {"stream": stream, **runner.status}

    def _retry_all(self, by: str) -> dict[str, Any]:
        workers = self._workers
        done = (workers.on_stream(one, partial(self._retry, one, by)) for one in workers.runners)
        return {"retried": sum(done)}

    def _retry(self, runner: Runner, by: str) -> int:
        with Reader(self._store.folder) as reader:
            return retry_dead_letters(runner.stream, self._store, reader, sinks=runner.config.sinks, by=by)


def last_accepted(bootstrap: Bootstrap, root: list[Principal]) -> tuple[Accepted | None, int]:
    """Return the configuration that ran last over the data, if it still verifies, and its number (0: none has).

    ConfigError if the data is closed to whoever asks.
    """
    try:
        if not (bootstrap.data / DATABASE).exists():
            return None, 0
        with Reader(bootstrap.data) as reader:
            rows = reader.configurations()
    except (OSError, apsw.CantOpenError):
        raise ConfigError(f"{bootstrap.data} is closed to {login()}: ask as the service's user, or as root") from None
    return recall([(number, Files(bootstrap.configuration, text, envelope)) for number, text, envelope in rows], root)


def accepted_last(bootstrap: Bootstrap) -> Accepted:
    """Return the configuration that ran last over the data; TrustError if there is none that verifies."""
    accepted, _ = last_accepted(bootstrap, root_of(bootstrap))
    if accepted is None:
        raise TrustError(f"no configuration has been accepted in {bootstrap.data}: 'vedette run' takes one")
    return accepted


def resumed(accepted: Accepted, id: str, store: Store) -> Stream:
    """Return the stream *id*, standing where *store* says; its source is not open."""
    stream = build_stream(accepted, id, store.folder / "cache", clock()).stream
    stream.cursor, stream.state = store.load(id)
    return stream


def replay_of(request: Mapping[str, Any], late: Callable[[str], Sequence[Span]], store: Store) -> Replay:
    """Return the replay that *request* describes, on record now; *late* gives a stream's spans that came too late."""
    stream = str(request["stream"])
    spans = late(stream) if request.get("late") else [Span(**one) for one in request["spans"]]
    asked = {"late": bool(request.get("late")), "spans": request.get("spans") or len(spans)}
    store.record(stream, "replay", asked, clock(), actor=str(request["by"]))
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


def retry_dead_letters(stream: Stream, store: Store, reader: Reader, *, sinks: Sequence[str], by: str) -> int:
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
    store.record(stream.id, "dead-letters-retried", {"records": len(letters)}, clock(), actor=by)
    process(stream, store, records, sinks=sinks, released=sorted(identities))
    return len(identities) - sum(one["identity"] in identities for one in reader.dead_letters())


def _reasons(refused: Sequence[str]) -> dict[str, Any]:
    """Return why rules were refused as a leaf holds it: the first of the reasons, and the digest of them all."""
    if not refused:
        return {}
    whole = sha256("\n".join(refused).encode("utf-8", "backslashreplace")).hexdigest()
    return {"reasons": [one[:_REASON_TEXT] for one in refused[:_REASONS]], "reasons_digest": f"sha256:{whole}"}


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, dict) and len(value) <= 8)
