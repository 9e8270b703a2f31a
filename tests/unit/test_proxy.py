"""The fault proxy does to a request what it says, no more."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.faults.proxy import FAULTS, PARTIAL, WHEN, FaultProxy, When

BULK = b"".join(b'{"create":{"_index":"logs","_id":"%d"}}\n{"n":%d}\n' % (n, n) for n in range(6))


class Upstream(ThreadingHTTPServer):
    """Keeps what it was sent whole, and answers like a bulk API, a search or a multi-get."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        body = self.rfile.read(size)
        if len(body) < size:
            return
        assert isinstance(self.server, Upstream)
        self.server.bodies.append(body)
        ids = [json.loads(line)["create"]["_id"] for line in body.splitlines()[::2]] if "_bulk" in self.path else []
        created = [{"create": {"_index": "logs", "_id": id, "status": 201}} for id in ids]
        answer: dict[str, Any] = {"errors": False, "items": created}
        if "_mget" in self.path:
            answer = {"docs": [{"_index": "logs", "_id": str(n), "found": True} for n in range(4)]}
        if "_search" in self.path:
            shards = {"total": 1, "successful": 1, "failed": 0}
            answer = {"timed_out": False, "_shards": shards, "hits": {"hits": [{"_id": str(n)} for n in range(4)]}}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{upstream.server_port}") as made:
        yield made


def send(proxy: FaultProxy, path: str = "/logs/_bulk", body: bytes = BULK) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=5)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def bulk(method: str, path: str) -> bool:
    return method == "POST" and "_bulk" in path


def test_what_is_not_scripted_passes(proxy: FaultProxy, upstream: Upstream) -> None:
    """The server gets the bytes, the client the answer, and the meter counts both."""
    proxy.script(FAULTS["reset"], match=lambda method, path: "_search" in path, when="before")
    status, body, _ = send(proxy)
    assert (status, upstream.bodies, proxy.struck) == (200, [BULK], [])
    assert proxy.requests == {"_bulk": 1}
    assert proxy.bytes_read == len(body)


@pytest.mark.parametrize("when", WHEN)
def test_a_status_is_the_answer_however_far_the_request_got(proxy: FaultProxy, upstream: Upstream, when: When) -> None:
    """Only *after* lets the server do the work; the next request passes."""
    proxy.script(FAULTS["status-429"], match=bulk, when=when)
    status, _, headers = send(proxy)
    assert (status, headers["retry-after"]) == (429, "1")
    assert upstream.bodies == ([BULK] if when == "after" else [])
    assert send(proxy)[0] == 200
    assert [(strike.fault, strike.when) for strike in proxy.struck] == [("status-429", when)]


@pytest.mark.parametrize("when", WHEN)
def test_a_reset_is_a_reset(proxy: FaultProxy, upstream: Upstream, when: When) -> None:
    """The client's connection is torn down, *times* times."""
    proxy.script(FAULTS["reset"], match=bulk, when=when, times=2)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            send(proxy)
    assert send(proxy)[0] == 200
    assert len(upstream.bodies) == (3 if when == "after" else 1)


def test_cut_json_comes_in_a_proper_answer(proxy: FaultProxy) -> None:
    """200 with a right Content-Length, and half of a document."""
    proxy.script(FAULTS["cut"], match=bulk, when="after")
    status, body, _ = send(proxy)
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


def test_a_short_answer_ends_early(proxy: FaultProxy) -> None:
    """Content-Length promises more than there is."""
    proxy.script(FAULTS["short"], match=bulk, when="after")
    with pytest.raises(http.client.IncompleteRead):
        send(proxy)


def test_a_drip_is_slow(proxy: FaultProxy) -> None:
    """Bytes come all the time, and still no answer in half a second."""
    proxy.script(FAULTS["drip"], match=bulk, when="before")
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=5)
    start = time.monotonic()
    connection.request("POST", "/_bulk", BULK)
    answer = connection.getresponse()
    assert answer.read(4) == b'{"to'
    assert 0.3 < time.monotonic() - start < 3
    connection.close()


def test_refused_means_that_nobody_listens_for_a_while(proxy: FaultProxy, upstream: Upstream) -> None:
    """After the reset the port is closed; then it is back, and only then the server hears again."""
    proxy.script(FAULTS["refused"], match=bulk, when="before")
    with pytest.raises(ConnectionResetError):
        send(proxy)
    with pytest.raises(ConnectionRefusedError):
        send(proxy)
    end, status = time.monotonic() + 20, 0
    while not status and time.monotonic() < end:
        with suppress(ConnectionRefusedError):
            status, _, _ = send(proxy)
    assert status == 200
    assert upstream.bodies == [BULK]


@pytest.mark.parametrize(("when", "sent"), [("before", "135"), ("during", "1235"), ("after", "012345")])
def test_items_fail_one_by_one(proxy: FaultProxy, upstream: Upstream, when: When, sent: str) -> None:
    """Every second item is answered with the status; how many of them the server got depends on *when*."""
    proxy.script(FAULTS["item-503"], match=bulk, when=when)
    status, body, _ = send(proxy)
    items = [item["create"] for item in json.loads(body)["items"]]
    assert status == 200
    assert [(item["_id"], item["status"]) for item in items] == [
        (str(n), 201 if n % 2 else 503) for n in range(6)
    ]  # fmt: skip
    assert [json.loads(line)["n"] for line in upstream.bodies[0].splitlines()[1::2]] == [int(n) for n in sent]


def test_a_bulk_of_one_item_can_fail_without_reaching_the_server(proxy: FaultProxy, upstream: Upstream) -> None:
    """Nothing is left to forward, and the answer is that of the item."""
    proxy.script(FAULTS["item-429"], match=bulk, when="before")
    _, body, _ = send(proxy, body=b"".join(BULK.splitlines(keepends=True)[:2]))
    assert [item["create"]["status"] for item in json.loads(body)["items"]] == [429]
    assert upstream.bodies == []


def test_a_multi_get_can_lack_documents(proxy: FaultProxy) -> None:
    """Every second document is an error."""
    proxy.script(FAULTS["item-503"], match=lambda method, path: "_mget" in path, when="after")
    _, body, _ = send(proxy, "/_mget")
    assert ["error" in one for one in json.loads(body)["docs"]] == [True, False, True, False]


def test_a_partial_search_says_so_only_in_its_fine_print(proxy: FaultProxy) -> None:
    """200 and half of the hits; `timed_out` and `_shards` tell."""
    proxy.script(PARTIAL, match=lambda method, path: "_search" in path, when="after")
    status, body, _ = send(proxy, "/logs/_search")
    found = json.loads(body)
    assert (status, len(found["hits"]["hits"]), found["timed_out"]) == (200, 2, True)
    assert found["_shards"] == {"total": 1, "successful": 0, "failed": 1}
