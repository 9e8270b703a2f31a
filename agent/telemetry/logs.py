"""The agent's own log on standard error: ECS as JSON lines, or readable where that is a terminal.

A line that repeats is let through at a bounded rate, by what it says, its level and its stream; the next one says how
many were left out. No text of an event's own ends a line or moves a cursor, no secret is written, long values are cut
with a number, and a log that cannot be written stops nothing.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from itertools import islice
from types import FrameType
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import Processor

_NAMES: Mapping[str, str] = {
    "stream": "vedette.stream.id",
    "source": "vedette.source.id",
    "sink": "vedette.sink.id",
    "detector": "vedette.detector.id",
    "model": "vedette.model.id",
    "revision": "vedette.configuration.revision",
    "reason": "error.message",
    "kind": "error.type",
    "logger": "log.logger",
}
"""What the keys of our log calls are called in ECS; any other gets the prefix ``vedette.``."""
_LEVELS: Mapping[str, str] = {"exception": "error", "warn": "warning", "fatal": "critical"}
"""Methods that do not have the name of their level."""
_BURST = 20
_PER_SECOND = 1.0
_BUCKETS = 1000
_CHARACTERS = 2000
_STACK_CHARACTERS = 16_000
_ITEMS = 50
_DEPTH = 4
_SECRET_KEY = re.compile(r"(?i)pass(word|phrase)|secret|api_?key|authorization|private_?key")
_SECRET = re.compile(
    r"(?is)\b(?:bearer|basic|apikey)\s+(?=\S*\d)[\w+/=.~-]{12,}"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_HIDDEN = "[secret]"

_Event = MutableMapping[str, Any]


def start_logging(file: TextIO = sys.stderr) -> None:
    """Log to *file*: readable on a terminal, ECS lines elsewhere; what libraries log from warning on goes there too."""
    configure = ecs_lines if not file.isatty() else readable_lines
    lines = _Lines(file)
    structlog.configure(
        processors=configure(Limiter()), logger_factory=lambda *_: lines, cache_logger_on_first_use=True
    )
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Libraries)]:
        root.removeHandler(handler)
    root.addHandler(_Libraries(logging.WARNING))


def ecs_lines(limiter: Limiter) -> list[Processor]:
    """Return what makes one line of JSON of a log call."""
    from agent.normalise.catalogue import catalogue

    return [limiter, _caught, _Ecs(catalogue().version)]


def readable_lines(limiter: Limiter) -> list[Processor]:
    """Return what makes a line for a terminal of a log call."""
    return [
        limiter,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="@timestamp"),
        _caught,
        _printable,
        structlog.dev.ConsoleRenderer(timestamp_key="@timestamp", exception_formatter=structlog.dev.plain_traceback),
    ]


class Limiter:
    """Lets through `_BURST` equal lines at once and then `_PER_SECOND`; *clock* returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str, str], tuple[float, float, int]] = {}
        """Lines allowed, as of when, and how many were left out since the last one."""

    def __call__(self, _logger: object, method: str, event: _Event) -> _Event:
        key = (str(event["event"]), method, str(event.get("stream") or event.get("sink")))
        with self._lock:
            if key not in self._buckets and len(self._buckets) >= _BUCKETS:
                key = ("", method, "")  # too many different ones: they share what is allowed
            now = self._clock()
            allowed, before, left_out = self._buckets.get(key, (_BURST, now, 0))
            allowed = min(_BURST, allowed + (now - before) * _PER_SECOND)
            if allowed < 1:
                self._buckets[key] = allowed, now, left_out + 1
                raise structlog.DropEvent
            self._buckets[key] = allowed - 1, now, 0
        if left_out:
            event["suppressed"] = left_out
        return event


class _Ecs:
    """The last step to a JSON line; *version* is the one of ECS."""

    def __init__(self, version: str) -> None:
        self._fixed = {
            "ecs.version": version,
            "service.name": "vedette",
            "process.pid": os.getpid(),
            "event.dataset": "vedette.agent",
        }

    def __call__(self, _logger: object, method: str, event: _Event) -> str:
        message, stack = event.pop("event"), event.pop("exception", None)
        line = {
            "@timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "log.level": _LEVELS.get(method, method),
            "message": _clean(message),
            "log.logger": _caller(sys._getframe(1)),
            **self._fixed,
        }
        for key, value in event.items():
            line[_NAMES.get(key) or f"vedette.{_clean(key)}"] = _value(key, value)
        if stack is not None:
            line["error.stack_trace"] = stack
        return orjson.dumps(line).decode()


def _caught(_logger: object, method: str, event: _Event) -> _Event:
    """Put the exception that a call speaks of into words; a reason of the call's own stands before its text."""
    found = event.pop("exc_info", None) or method == "exception"
    if isinstance(found, tuple):
        found = found[1]
    error = found if isinstance(found, BaseException) else sys.exc_info()[1] if found else None
    if error is not None:
        event["kind"] = type(error).__name__
        event["reason"] = ": ".join(filter(None, (str(event.get("reason", "")), str(error))))
        event["exception"] = _stack(error)
    return event


def _printable(_logger: object, _method: str, event: _Event) -> _Event:
    return {_clean(key): value if key == "exception" else _value(key, value) for key, value in event.items()}


def _caller(frame: FrameType | None) -> str:
    """Return the module that logs: the first above this one and structlog's own."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__ and name.partition(".")[0] not in ("structlog", "logging"):
            return name
        frame = frame.f_back
    return ""


def _stack(error: BaseException) -> str:
    """Return the stack trace, its end if it is long; indented, so that no text in it begins a line of the log."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    text = _hide("\n".join(f"  {_escape(line)}" for line in lines))
    cut = len(text) - _STACK_CHARACTERS
    return text if cut <= 0 else f"({cut:,} characters before) …{text[cut:]}"


def _value(key: str, value: Any, depth: int = 0) -> Any:
    """Return what may be written of *value*."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if _SECRET_KEY.search(key):
        return _HIDDEN
    if depth == _DEPTH or not isinstance(value, Mapping | list | tuple | set | frozenset):
        return _clean(value)
    more = len(value) - _ITEMS
    if isinstance(value, Mapping):
        kept = {_clean(name): _value(str(name), one, depth + 1) for name, one in islice(value.items(), _ITEMS)}
        return kept | ({"left_out": more} if more > 0 else {})
    items: Iterable[Any] = islice(value, _ITEMS)
    return [_value(key, one, depth + 1) for one in items] + ([f"… ({more:,} more)"] if more > 0 else [])


def _clean(value: object) -> str:
    """Return *value* as text: without secrets, with control characters written out, cut where it is long."""
    text = str(value)
    more = len(text) - _CHARACTERS
    text = _escape(_hide(text[: 2 * _CHARACTERS]))
    return text if more <= 0 else f"{text[:_CHARACTERS]}… ({more:,} characters more)"


def _hide(text: str) -> str:
    return _SECRET.sub(_HIDDEN, text)


def _escape(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class _Lines:
    """What structlog writes to: every method writes one line, whole."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        with self._lock:
            try:
                self._file.write(f"{line}\n")
                self._file.flush()
            except (OSError, ValueError):  # nobody reads any more: no reason to stop
                pass

    debug = info = warn = warning = error = exception = critical = fatal = msg


class _Libraries(logging.Handler):
    """Takes what libraries log into our log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger()
            say = log.error if record.levelno >= logging.ERROR else log.warning
            say(record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:
            self.handleError(record)
