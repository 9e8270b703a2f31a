"""`vedette canary`: does an event still go all the way, from its log to an alert at every sink?"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.daemon import asked
from agent.cli.options import BOOTSTRAP, AsJson, Bootstrap
from agent.errors import ConfigError, VedetteError

if TYPE_CHECKING:
    from agent.config import Accepted, Configuration

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_LOOK_S = 0.05
_TAIL = 64 << 10
_JSON = (".json", ".ndjson", ".jsonl")


def canary(
    bootstrap: Bootstrap = BOOTSTRAP,
    write: Annotated[
        str | None,
        typer.Option("--write", metavar="PLACE", help="Where to put it: a log file, or SOURCE:INDEX of a SIEM."),
    ] = None,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="TOKEN", help="Wait for one that was put there by hand.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Which stream it goes through; needed if several may.")] = None,
    timeout: Annotated[str, typer.Option(help="How long to wait (90s, 5m).")] = "60s",
    create: Annotated[bool, typer.Option("--create", help="Make the log file if there is none.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a test event into a log, and wait until its alert is stored and every sink of the stream has it.

    The stream needs a detector of type canary. Exit code 1 if the event got stuck, 5 if no daemon runs.

    Without --write and --wait it prints an event to be put there by hand, on any machine.

    Examples:
      vedette canary -b bootstrap.yml --write /var/log/auth.log
      vedette canary -b bootstrap.yml --write siem:logs-app-default --timeout 2m
    """
    from agent.cli.terminal import print_json, safe, say
    from agent.config import load_bootstrap
    from agent.detect.canary import MARK, TOKEN
    from agent.service import accepted_last

    if write and wait:
        raise typer.BadParameter("--write puts a new one there, --wait awaits an old one: give one of them")
    if wait and not TOKEN.fullmatch(wait):
        raise typer.BadParameter(f"{wait!r} is no token; it follows {MARK!r}: 8 to 64 letters, digits and hyphens")
    patience = _duration(timeout)
    token = wait or f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    if not write and not wait:
        if as_json:
            print_json([{"token": token, "text": MARK + token}])
        else:
            say(f"logger -t vedette {MARK}{token}")
            say(f"then: vedette canary -b {bootstrap} --wait {token}", "dim")
        return
    asked({"do": "status"}, bootstrap)  # before anything is written
    where = load_bootstrap(bootstrap)
    accepted = accepted_last(where)
    watch = _Watch(accepted, where.data, _stream(accepted.configuration, stream), token)
    if write:
        watch.report.written = _now()
        _put(write, token, accepted, watch.field, create=create)
    stuck = watch.wait(patience)
    if stuck:
        stuck = f"canary {token}: {stuck}; {_condition(watch.report.stream, bootstrap)}"
    if as_json:
        print_json([watch.report.flat(stuck)])
    else:
        watch.report.say(write or "")
    if stuck:
        raise VedetteError(safe(stuck))


def _condition(stream: str, bootstrap: Path) -> str:
    """Return how the daemon says that *stream* is."""
    try:
        status = asked({"do": "status"}, bootstrap).get(stream, {"status": "not there any more", "reason": ""})
    except VedetteError as error:
        return str(error)
    return ": ".join(one for one in (f"stream {stream} is {status['status']}", status["reason"]) if one)


# --- putting it there -------------------------------------------------------------------------------------------------


def _put(place: str, token: str, accepted: Accepted, field: str, *, create: bool) -> None:
    """Put the canary into a log file, or into an index of a configured source."""
    from agent.assemble import build_source
    from agent.ports import Plantable

    name, _, index = place.partition(":")
    section = accepted.configuration.sources.get(name)
    if not index or section is None:
        append(Path(place), token, field, create=create)
        return
    source = build_source(accepted.configuration, accepted.locator, name)
    if not isinstance(source, Plantable):
        raise ConfigError(f"source {name} is of type {section.type}: name one of its files, without {name!r} before it")
    try:
        source.plant(index, _document(token, field))
    finally:
        source.close()


def _document(token: str, field: str) -> dict[str, Any]:
    """Return the canary as an ECS document."""
    from agent.alerting.judge import nest
    from agent.detect.canary import MARK
    from agent.normalise.catalogue import catalogue
    from agent.normalise.clock import to_text

    text = MARK + token
    fields = {"@timestamp": to_text(_now()), "ecs.version": catalogue().version, "event.kind": "event",
              "host.name": socket.gethostname(), "message": text, field: text}  # fmt: skip
    return nest(fields)


def append(path: Path, token: str, field: str, *, create: bool) -> None:
    """Append one line to a log: JSON to a file of JSON, else syslog (RFC 5424). Nothing that is there is touched."""
    import orjson

    from agent.detect.canary import MARK
    from agent.normalise.clock import to_text

    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path, flags, 0o640)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, nor such a source; --create makes the file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: expected a log file: this is no plain file")
        tail = os.pread(descriptor, _TAIL, max(0, status.st_size - _TAIL))
        last = tail.rstrip().rpartition(b"\n")[2].lstrip()
        if last.startswith(b"{") or (not last and path.suffix in _JSON):
            line = orjson.dumps(_document(token, field))
        else:
            head = f"<14>1 {to_text(_now())} {socket.gethostname()} vedette {os.getpid()} - -"
            line = f"{head} {MARK}{token}".encode()
        whole = b"" if not tail or tail.endswith(b"\n") else b"\n"
        os.write(descriptor, whole + line + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to: {error.strerror}") from None
    finally:
        os.close(descriptor)


# --- waiting for it ---------------------------------------------------------------------------------------------------


@dataclass
class _Report:
    """When the canary passed which stage; times are microseconds."""

    token: str
    stream: str
    alert: str
    written: int | None = None
    stored: int | None = None
    delivered: dict[str, int] = field(default_factory=dict)

    def flat(self, stuck: str) -> dict[str, Any]:
        from agent.normalise.clock import to_text

        def text(moment: int | None) -> str | None:
            return None if moment is None else to_text(moment)

        return {
            "token": self.token,
            "stream": self.stream,
            "alert": self.alert,
            "written": text(self.written),
            "stored": text(self.stored),
            "delivered": {sink: text(moment) for sink, moment in self.delivered.items()},
            "stuck": stuck,
        }

    def say(self, place: str) -> None:
        from agent.cli.terminal import safe, say
        from agent.normalise.clock import to_text

        say(f"canary {self.token}", "bold")
        stages = [
            ("written", self.written, place),
            ("stored", self.stored, f"alert {self.alert}, stream {self.stream}"),
        ]
        stages += [("delivered", moment, f"sink {sink}") for sink, moment in self.delivered.items()]
        for name, moment, where in stages:
            if moment is not None:
                after = f"+{(moment - self.written) / 1e6:.2f} s" if self.written and moment > self.written else ""
                say(f"  {name:10}{to_text(moment)}  {after:>10}  {safe(where)}")


class _Watch:
    """Looks into the store of the running daemon for the alert of one canary."""

    def __init__(self, accepted: Accepted, data: Path, stream: str, token: str) -> None:
        from agent.alerting.judge import alert_id
        from agent.detect.canary import found
        from agent.store import Reader

        configuration = accepted.configuration
        self.report = _Report(token, stream, alert_id(configuration.tenant, found(token, 0, ())))
        self.field = _fields(configuration)[stream]
        self._source = configuration.streams[stream].source
        self._sinks = configuration.streams[stream].sinks
        self._reader = Reader(data)
        self._spilled = self._count_spilled()

    def wait(self, patience: float) -> str:
        """Watch the canary for *patience* seconds; return where it is stuck and what to do, empty if it came."""
        end = time.monotonic() + patience
        try:
            while (missing := self._look()) and time.monotonic() < end:
                time.sleep(_LOOK_S)
        except VedetteError as error:
            return str(error)
        finally:
            self._reader.close()
        return missing

    def _look(self) -> str:
        """Take in what the store says; return what is missing, empty if nothing is. VedetteError: it never comes."""
        report = self.report
        about = "SELECT number, stream, created, deliver FROM alert WHERE id = ? AND revision = 'fired'"
        for number, stream, created, deliver in self._reader.rows(about, report.alert):
            if stream != report.stream:
                raise VedetteError(f"it came through stream {stream}: name that one, or another place")
            if report.stored is None:
                report.stored = _now() if report.written else created
            if self._sinks and not deliver:
                raise VedetteError("stored, and held back by alerts.max_per_rule_and_hour: wait an hour, or raise it")
            return self._look_at_sinks(number)
        return (
            f"not stored: does source {self._source} read that place, and does field {self.field} hold the text? See "
            "'vedette plan' and 'vedette deadletter list'"
        )

    def _look_at_sinks(self, alert: int) -> str:
        waiting = dict(self._reader.rows("SELECT sink, refused FROM outbox WHERE alert = ?", alert))
        spilled = self._count_spilled()
        for sink in self._sinks:
            if reason := waiting.get(sink):
                raise VedetteError(f"stored, and refused by sink {sink}: {reason}")
            if sink not in waiting and spilled[sink] > self._spilled[sink]:
                raise VedetteError(f"stored, and sink {sink} was full and may have let it go: see 'vedette status'")
            if sink not in waiting:
                self.report.delivered.setdefault(sink, _now())
        left = [sink for sink in self._sinks if sink in waiting]
        return f"stored, and not delivered to {', '.join(left)}: see 'vedette status'" if left else ""

    def _count_spilled(self) -> dict[str, int]:
        return {sink: self._reader.counters(sink).get(sink, {}).get("spilled", 0) for sink in self._sinks}


def _stream(configuration: Configuration, name: str | None) -> str:
    """Return the stream to watch: the one that is named, else the only one with a canary detector."""
    known = sorted(_fields(configuration))
    if not known:
        raise ConfigError("no stream has a detector of type canary: add 'canary: {type: canary}' to detectors, and it"
                          " to the stream's detectors")  # fmt: skip
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        raise ConfigError(f"--stream: expected one with a detector of type canary: {', '.join(known)}")
    return name


def _fields(configuration: Configuration) -> dict[str, str]:
    """Return by stream the field in which its canary detector looks."""
    detectors = {id: one for id, one in configuration.detectors.items() if one.type == "canary"}
    return {
        id: str(detectors[name].options.get("field", "message"))
        for id, stream in configuration.streams.items()
        for name in stream.detectors
        if name in detectors
    }


def _duration(text: str) -> int:
    found = re.fullmatch(r"(\d{1,5})([smh])", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s or 5m")
    return int(found[1]) * _SECONDS[found[2]]


def _now() -> int:
    return time.time_ns() // 1000
