"""A small HTTP server that plays Elasticsearch or OpenSearch: enough of a data stream in memory, and answers by script.

::

    with FakeSiem("opensearch") as siem:
        siem.on("_bulk", Reply(503), Fault("reset"))     # the next two requests whose path ends so
        siem.on("_search", lambda request: Reply(200, {...}))

What is not scripted is answered from memory: `documents` by backing index and id, the backing indices of each data
stream in `streams` (`backing` are those of `stream`, the one that a test is about), and `templates`. `requests` are all
that came, in order.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

TEMPLATES: list[dict[str, Any]] = [
    {
        "name": f"logs-vedette.{dataset}",
        "index_template": {"index_patterns": [f"logs-vedette.{dataset}-*"], "priority": 600, "data_stream": {}},
    }
    for dataset in ("alert", "audit")
]


@dataclass(frozen=True)
class Request:
    """One request as it came; *path* is decoded, *last* is its last part."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def last(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass(frozen=True)
class Reply:
    """An answer: *body* is JSON-able, or bytes sent as they are."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """No whole answer. *done* says that the request was carried out first."""

    kind: Literal["reset", "truncate", "hang"]
    done: bool = False


Answer: TypeAlias = Reply | Fault
Step: TypeAlias = Answer | Callable[[Request], Answer]


class FakeSiem:
    """One server on a free port of this machine; a context manager."""

    def __init__(
        self,
        flavour: Literal["elasticsearch", "opensearch"] = "elasticsearch",
        version: str = "",
        stream: str = "logs-vedette.alert-default",
    ) -> None:
        self.flavour = flavour
        self.version = version or {"elasticsearch": "8.19.8", "opensearch": "2.19.4"}[flavour]
        self.stream = stream
        self.requests: list[Request] = []
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        self.streams: dict[str, list[str]] = defaultdict(list)
        self.templates: list[dict[str, Any]] = list(TEMPLATES)
        self._script: dict[str, deque[Step]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.siem = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> FakeSiem:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def access(self) -> dict[str, Any]:
        """Return the access options of this server."""
        return {"hosts": [self.url], "timeout_s": 5}

    def on(self, last: str, *steps: Step) -> None:
        """Answer the next requests whose path ends in *last* so, one each."""
        self._script[last].extend(steps)

    def sent(self, last: str) -> list[Request]:
        return [request for request in self.requests if request.last == last]

    @property
    def backing(self) -> list[str]:
        return self.streams[self.stream]

    def rollover(self, stream: str = "") -> str:
        """Give the data stream a new write index, its first if it had none; return its name."""
        stream = stream or self.stream
        backing = self.streams[stream]
        date = "" if self.flavour == "opensearch" else "2026.01.01-"
        backing.append(f".ds-{stream}-{date}{len(backing) + 1:06}")
        return backing[-1]

    def answer(self, request: Request) -> Answer:
        """Answer by script, else from memory."""
        with self._lock:
            self.requests.append(request)
            steps = self._script.get(request.last)
            step = steps.popleft() if steps else self.reply
        answer = step(request) if callable(step) else step
        if isinstance(answer, Fault) and answer.done:
            self.reply(request)
        if isinstance(answer, Fault) and answer.kind == "hang":
            self._over.wait(10)
        return answer

    def reply(self, request: Request) -> Reply:
        """Answer from memory."""
        if request.path == "/":
            return Reply(body=self._info())
        if request.path.startswith("/_resolve/index/logs-vedette."):
            return self._resolve(request.last)
        if request.path == "/_index_template":
            return Reply(body={"index_templates": self.templates} if self.templates else {})
        if request.path == "/_mget":
            return Reply(body={"docs": [self._get(**one) for one in json.loads(request.body)["docs"]]})
        if request.path.startswith("/logs-vedette.") and request.last == "_bulk":
            return self._bulk(request)
        return Reply(404, {"error": {"type": "not_played", "reason": request.path}, "status": 404})

    def _info(self) -> dict[str, Any]:
        version = {"number": self.version, "build_flavor": "default"}
        if self.flavour == "opensearch":
            version = {"number": self.version, "distribution": "opensearch"}
        return {"name": "fake", "cluster_name": "fake", "cluster_uuid": "f" * 22, "version": version}

    def _resolve(self, name: str) -> Reply:
        none: dict[str, Any] = {"indices": [], "aliases": [], "data_streams": []}
        if backing := self.streams[name]:
            stream = {"name": name, "backing_indices": list(backing), "timestamp_field": "@timestamp"}
            return Reply(body=none | {"data_streams": [stream]})
        if self.flavour == "opensearch":
            return Reply(body=none)
        return Reply(404, {"error": {"type": "index_not_found_exception", "reason": "no such index"}, "status": 404})

    def _get(self, _index: str, _id: str) -> dict[str, Any]:
        if not any(_index in backing for backing in self.streams.values()):
            return {"_index": _index, "_id": _id, "error": {"type": "index_not_found_exception", "reason": "gone"}}
        return {"_index": _index, "_id": _id, "found": (_index, _id) in self.documents}

    def _bulk(self, request: Request) -> Reply:
        if "require_data_stream" in request.query and self.flavour == "opensearch":
            return Reply(400, {"error": {"type": "illegal_argument_exception", "reason": "unrecognized parameter"}})
        stream = request.path.split("/")[1]
        place = self.streams[stream][-1] if self.streams[stream] else self.rollover(stream)
        items = []
        for action, body in zip(request.lines[::2], request.lines[1::2], strict=True):
            id = action["create"]["_id"]
            if (place, id) in self.documents:
                error = {"type": "version_conflict_engine_exception", "reason": f"[{id}]: document already exists"}
                items.append({"create": {"_index": place, "_id": id, "status": 409, "error": error}})
                continue
            self.documents[place, id] = body
            items.append({"create": {"_index": place, "_id": id, "result": "created", "status": 201}})
        return Reply(body={"took": 1, "errors": any("error" in item["create"] for item in items), "items": items})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    siem: FakeSiem

    def handle_error(self, *_: object) -> None:
        """A client that goes away is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    server: _Server

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body)
        answer = self.server.siem.answer(request)
        if isinstance(answer, Fault):
            self.close_connection = True
            if answer.kind == "truncate":
                self._send(Reply(), b'{"took":1', 1000)
            return
        self._send(answer, answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode())

    def _send(self, reply: Reply, content: bytes, length: int | None = None) -> None:
        self.send_response(reply.status)
        headers = {"content-type": "application/json; charset=UTF-8"}
        if self.server.siem.flavour == "elasticsearch":
            headers["x-elastic-product"] = "Elasticsearch"
        for name, value in (headers | reply.headers | {"content-length": str(length or len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""
