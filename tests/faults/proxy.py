"""A proxy that injects faults between Vedette and a real Elasticsearch or OpenSearch on this machine.

    with FaultProxy("http://127.0.0.1:9200") as proxy:
        proxy.script(FAULTS["status-503"], match=bulk, when="after", times=2)

strikes the next two requests that *match*, and lets all others through. *when* says how far a struck request gets:
``before``: the server never hears of it; ``during``: it gets the first half of its bytes and no more; ``after``: it has
done the work. In each case the client gets the fault for an answer. Faults of single items (`ITEMS`) let
the request through less some items (``before``), whole with some answers rewritten (``after``), or both (``during``).

`struck` lists what was done, so that a test in which nothing struck can fail; `requests` and `bytes_read` are the meter
of a proxy without a script.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

When: TypeAlias = Literal["before", "during", "after"]
Match: TypeAlias = Callable[[str, str], bool]
WHEN: tuple[When, ...] = ("before", "during", "after")

DRIP_S = 0.1
_MADE_UP = b'{"took":3,"timed_out":false,"errors":false,"items":[{"create":{"_index":"logs","status":201}}]}'
_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_PRODUCT = {"X-elastic-product": "Elasticsearch", "content-type": "application/json"}
_KINDS = {
    400: "document_parsing_exception",
    409: "version_conflict_engine_exception",
    429: "es_rejected_execution_exception",
    503: "unavailable_shards_exception",
}


@dataclass(frozen=True)
class Fault:
    """What a struck client gets.

    ``status``: an answer with *status*, and Retry-After of *retry_after* seconds. ``item``: 200, and *status* for every
    second item. ``partial``: 200 for a search that timed out on a shard, or statistics that lack a shard. ``cut``: half
    of the JSON in a proper answer. ``short``: half of what Content-Length says. ``drip``: a byte every 100 ms.
    ``reset``: a TCP reset. ``refused``: a reset, and nobody listens for *seconds*.
    """

    name: str
    kind: Literal["status", "item", "partial", "cut", "short", "drip", "reset", "refused"]
    status: int = 200
    retry_after: int = 0
    seconds: float = 1.0


STATUSES = (
    Fault("status-429", "status", 429, retry_after=1),
    Fault("status-503", "status", 503),
    Fault("status-502", "status", 502),
    Fault("status-413", "status", 413),
    Fault("status-401", "status", 401),
)
BROKEN = (
    Fault("reset", "reset"),
    Fault("cut", "cut"),
    Fault("short", "short"),
    Fault("drip", "drip"),
    Fault("refused", "refused"),
)
ITEMS = tuple(Fault(f"item-{status}", "item", status) for status in (429, 400, 409, 503))
PARTIAL = Fault("partial", "partial")
FAULTS = {fault.name: fault for fault in (*STATUSES, *BROKEN, *ITEMS, PARTIAL)}


class Strike(NamedTuple):
    """One thing that was done to a request."""

    fault: str
    when: When
    method: str
    path: str


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def encode(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers if name.lower() not in _HOP]
        lines += [f"Content-Length: {len(self.body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    length: str = ""
    """Content-Length where it is not that of the body."""

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers if name.lower() not in _HOP]
        lines += [f"Content-Length: {self.length or len(self.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1")


@dataclass
class _Script:
    fault: Fault
    match: Match
    when: When
    left: int


class _Lost(Exception):
    """The client's connection cannot go on."""


class FaultProxy:
    """Listens on a port of its own from `__enter__` to `__exit__`; safe to script while it runs."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 9200)
        self._lock = threading.Lock()
        self._scripts: list[_Script] = []
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._place: socket.socket | None = None
        """Keeps the port while nobody listens: it refuses, and no other process gets it."""
        self._closed = threading.Event()
        self._port = 0
        self.struck: list[Strike] = []
        self.requests: Counter[str] = Counter()
        """Requests by the last part of their path."""
        self.bytes_read = 0
        """Bytes of the server's answers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultProxy:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._deafen()
        if self._place is not None:
            self._place.close()

    def script(self, fault: Fault, *, match: Match, when: When, times: int = 1) -> None:
        """Strike the next *times* requests of which *match* holds (method, path with query) and no earlier script."""
        with self._lock:
            self._scripts.append(_Script(fault, match, when, times))

    # --- listening ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._closed.is_set():
            return
        listener = socket.create_server(("127.0.0.1", self._port), backlog=64, reuse_port=True)
        self._port = listener.getsockname()[1]
        self._listener = listener
        if self._place is None:
            self._place = socket.socket()
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._place.bind(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _deafen(self) -> None:
        """Close the listener and every client's connection."""
        listener, self._listener = self._listener, None
        if listener:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    # --- one client ---------------------------------------------------------------------------------------------------

    def _serve(self, client: socket.socket) -> None:
        reading = client.makefile("rb")
        try:
            while (request := _read_request(reading)) is not None:
                self._handle(client, request)
        except (_Lost, OSError, ValueError, http.client.HTTPException):
            pass
        finally:
            with self._lock:
                self._clients.discard(client)
            reading.close()
            client.close()

    def _handle(self, client: socket.socket, request: _Request) -> None:
        script = self._take(request)
        if script is None:
            answer = self._forward(request)
            client.sendall(answer.head() + answer.body)
            return
        fault, when = script.fault, script.when
        if fault.kind == "item":
            answer = _of_items(self._forward, request, fault, when)
            client.sendall(answer.head() + answer.body)
        elif fault.kind == "partial":
            answer = _with_a_gap(self._forward(request))
            client.sendall(answer.head() + answer.body)
        else:
            reached = self._reach(request, when)
            self._give(client, fault, reached)

    def _take(self, request: _Request) -> _Script | None:
        with self._lock:
            self.requests[request.path.partition("?")[0].rsplit("/", 1)[-1]] += 1
            for script in self._scripts:
                if script.left and script.match(request.method, request.path):
                    script.left -= 1
                    self.struck.append(Strike(script.fault.name, script.when, request.method, request.path))
                    return script
        return None

    def _reach(self, request: _Request, when: When) -> _Answer:
        """Let *request* get as far as *when* says; return the server's answer, or one made up."""
        if when == "after":
            return self._forward(request)
        if when == "during":
            raw = request.encode()
            with socket.create_connection(self._upstream, timeout=60) as server:
                server.sendall(raw[: len(raw) // 2])
        return _Answer(200, tuple(_PRODUCT.items()), _MADE_UP)

    def _give(self, client: socket.socket, fault: Fault, reached: _Answer) -> None:
        """Answer with *fault*, whatever the server said."""
        half = reached.body[: len(reached.body) // 2]
        match fault.kind:
            case "status":
                answer = _failure(fault)
                client.sendall(answer.head() + answer.body)
            case "cut":
                answer = replace(reached, body=half, length="")
                client.sendall(answer.head() + answer.body)
            case "short":
                client.sendall(reached.head() + half)
                raise _Lost
            case "drip":
                client.sendall(reached.head())
                for number in range(len(reached.body)):
                    if self._closed.wait(DRIP_S):
                        break
                    client.sendall(reached.body[number : number + 1])
            case _:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if fault.kind == "refused":
                    with self._lock:
                        self._clients.discard(client)
                    self._deafen()
                    threading.Thread(target=self._return, args=(fault.seconds,), daemon=True).start()
                raise _Lost

    def _return(self, seconds: float) -> None:
        if not self._closed.wait(seconds):
            self._listen()

    def _forward(self, request: _Request) -> _Answer:
        with socket.create_connection(self._upstream, timeout=120) as server:
            server.sendall(request.encode())
            response = http.client.HTTPResponse(server, method=request.method)
            try:
                response.begin()
                body = response.read()
            finally:
                response.close()
        with self._lock:
            self.bytes_read += len(body)
        length = response.headers.get("content-length", "0") if request.method == "HEAD" else ""
        return _Answer(response.status, tuple(response.headers.items()), body, length)


def _read_request(reading: Any) -> _Request | None:
    """Return the next request, or None at the end of the connection."""
    line = reading.readline(65_536).decode("latin-1").split()
    if not line:
        return None
    method, path, _ = line
    headers = http.client.parse_headers(reading)
    size = int(headers.get("content-length", "0"))
    body = reading.read(size)
    if len(body) < size:
        return None
    return _Request(method, path, tuple(headers.items()), body)


def _failure(fault: Fault) -> _Answer:
    said = {"type": _KINDS.get(fault.status, "injected"), "reason": f"injected {fault.status}"}
    body = json.dumps({"error": {"root_cause": [said], **said}, "status": fault.status}).encode()
    waits = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
    return _Answer(fault.status, tuple((_PRODUCT | waits).items()), body)


# --- single items -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """One operation of a bulk request: its action, what the action line says, and its lines."""

    action: str
    target: dict[str, Any]
    lines: bytes = field(repr=False)

    def refused(self, index: str, status: int) -> dict[str, Any]:
        """Return the answer for this item that says *status*."""
        error = {"type": _KINDS[status], "reason": f"injected {status}"}
        return {self.action: {"_index": index, "_id": self.target.get("_id"), "status": status, "error": error}}


def _items(body: bytes) -> Iterator[_Item]:
    lines = iter(body.splitlines(keepends=True))
    for line in lines:
        if line.strip():
            ((action, target),) = json.loads(line).items()
            yield _Item(action, target, line if action == "delete" else line + next(lines))


def _of_items(forward: Callable[[_Request], _Answer], request: _Request, fault: Fault, when: When) -> _Answer:
    """Do *request* but for every second item, of which the answer says that it failed."""
    if "_mget" in request.path:
        return _of_gets(forward(request), fault)
    items = list(_items(request.body))
    struck = range(0, len(items), 2)
    removed = {"before": set(struck), "during": set(struck[::2]), "after": set[int]()}[when]
    kept = [number for number in range(len(items)) if number not in removed]
    answer, told = _bulk(forward, request, [items[number] for number in kept])
    places = [one["_index"] for item in told for one in item.values()]
    place = places[0] if places else request.path.partition("?")[0].strip("/").split("/")[0]
    answers: list[dict[str, Any]] = [item.refused(place, fault.status) for item in items]
    for number, one in zip(kept, told, strict=True):
        if number not in struck:
            answers[number] = one
    body = {"took": 3, "errors": True, "items": answers}
    return replace(answer, body=json.dumps(body).encode())


def _bulk(
    forward: Callable[[_Request], _Answer], request: _Request, items: Sequence[_Item]
) -> tuple[_Answer, list[dict[str, Any]]]:
    if not items:
        return _Answer(200, tuple(_PRODUCT.items()), b""), []
    answer = forward(replace(request, body=b"".join(item.lines for item in items)))
    return answer, json.loads(answer.body)["items"]


def _of_gets(answer: _Answer, fault: Fault) -> _Answer:
    """Return the answer of a multi-get in which every second document could not be had."""
    body = json.loads(answer.body)
    error = {"type": _KINDS[fault.status], "reason": f"injected {fault.status}"}
    for number in range(0, len(body["docs"]), 2):
        found = body["docs"][number]
        body["docs"][number] = {"_index": found["_index"], "_id": found["_id"], "error": error}
    return replace(answer, body=json.dumps(body).encode())


def _with_a_gap(answer: _Answer) -> _Answer:
    """Return *answer* (of a search or of `_stats`) as if one shard had not taken part."""
    body = json.loads(answer.body)
    if isinstance(hits := body.get("hits"), dict):
        body["timed_out"] = True
        hits["hits"] = hits["hits"][: len(hits["hits"]) // 2]
    for index in body.get("indices", {}).values():
        if shards := index.get("shards"):
            del shards[min(shards)]
    if isinstance(shards := body.get("_shards"), dict):
        shards |= {"successful": max(0, shards["successful"] - 1), "failed": shards.get("failed", 0) + 1}
    return replace(answer, body=json.dumps(body).encode())
