"""Health and metrics over HTTP: `/livez`, `/readyz`, `/metrics`, to whoever can reach the address; nothing changes.

One thread, one event loop, one request a connection. At most `MOST_OPEN` connections are held: for one more, the one
that has kept us waiting longest goes, so that whoever opens connections and says nothing keeps nobody out. `/livez` is
answered by the loop itself and waits for nothing; the other two are worked out on threads of their own.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import TypeVar

import orjson
import structlog

from agent.errors import ConfigError

log = structlog.get_logger()
T = TypeVar("T")
MOST_OPEN = 16
PATIENCE_S = 5.0
"""How long a connection may take, from the first byte awaited to the last one sent."""
_HEAD_BYTES = 8192
_HOST_BYTES = 255
_THREADS = 2
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json"

Reasons = Callable[[], list[str]]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes = b""
    kind: str = _JSON
    allow: str = ""

    def encode(self, *, with_body: bool = True) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            "Server: vedette",
            f"Content-Type: {self.kind}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *([f"Allow: {self.allow}"] if self.allow else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + (self.body if with_body else b"")


class HealthServer:
    """Answers on *host* and *port* until `close`; ConfigError if it cannot.

    *live* and *ready* return why not, nothing if all is well; *live* must not wait for anything. *metrics* returns the
    text of all metrics.
    """

    def __init__(self, host: str, port: int, *, live: Reasons, ready: Reasons, metrics: Callable[[], bytes]) -> None:
        self._live, self._ready, self._metrics = live, ready, metrics
        self._socket = _bind(host, port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="health")
        self._open: dict[asyncio.Task[None], bool] = {}
        """Connections, the oldest first, and whether one may be ended for another."""
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering; safe twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=_HEAD_BYTES)
        await self._end.wait()
        server.close()  # the runner ends what is still open

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._make_room()
        self._open[task] = True
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(await self._answer(task, reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._open.pop(task, None)

    def _make_room(self) -> None:
        """End the oldest connection that waits for its client, if there are too many."""
        waiting = [task for task, idle in self._open.items() if idle]
        if len(self._open) >= MOST_OPEN and waiting:
            del self._open[waiting[0]]
            waiting[0].cancel()

    async def _answer(self, task: asyncio.Task[None], reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE).encode()
        line, _, rest = head.partition(b"\r\n")
        words = line.split(b" ")
        if len(words) != 3 or not _is_sound(words[2], rest):
            return _Answer(HTTPStatus.BAD_REQUEST).encode()
        method, target, _ = words
        if method not in (b"GET", b"HEAD"):
            return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD").encode()
        answer = await self._page(task, target.partition(b"?")[0])
        return answer.encode(with_body=method == b"GET")

    async def _page(self, task: asyncio.Task[None], path: bytes) -> _Answer:
        if path == b"/livez":
            return _health(self._live)
        work = {b"/readyz": lambda: _health(self._ready), b"/metrics": lambda: _figures(self._metrics)}.get(path)
        if work is None:
            return _Answer(HTTPStatus.NOT_FOUND)
        if sum(not idle for idle in self._open.values()) >= MOST_OPEN // 2:
            return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, _body(["too many ask at once"]))
        self._open[task] = False  # not to be ended while somebody works for it
        answer = await self._loop.run_in_executor(self._executor, work)
        self._open[task] = True
        return answer


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; name another address under 'listen' in bootstrap.yml"
        ) from None


def _is_sound(version: bytes, headers: bytes) -> bool:
    """Whether the version is one that we speak, with one Host, which only HTTP/1.0 may lack, of a sane length."""
    fields = (line.partition(b":") for line in headers.split(b"\r\n"))
    hosts = [value for name, _, value in fields if name.lower() == b"host"]
    least = {b"HTTP/1.0": 0, b"HTTP/1.1": 1}.get(version, 2)
    return least <= len(hosts) <= 1 and all(len(host) <= _HOST_BYTES for host in hosts)


def _health(reasons: Reasons) -> _Answer:
    found = _tried(reasons, ["it could not be found out; see the log"])
    status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
    return _Answer(status, _body(found))


def _figures(metrics: Callable[[], bytes]) -> _Answer:
    text = _tried(metrics, b"")
    if not text:
        return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, _body(["the metrics could not be read; see the log"]))
    return _Answer(HTTPStatus.OK, text, _TEXT)


def _tried(work: Callable[[], T], otherwise: T) -> T:
    """Return what *work* does; a fault of it is logged, and the next request is answered."""
    try:
        return work()
    except Exception:
        log.exception("health failed")
        return otherwise


def _body(reasons: list[str]) -> bytes:
    said: Mapping[str, object] = {"status": "failed" if reasons else "ok", "reasons": reasons}
    return orjson.dumps(said)
