"""The health server: three pages, nothing else, and nobody who is slow, loud or many keeps a probe out."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from typing import Any

import pytest
import structlog

from agent.errors import ConfigError
from agent.telemetry import server
from agent.telemetry.server import MOST_OPEN, HealthServer

Make = Callable[..., HealthServer]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def made(**work: Any) -> HealthServer:
            one = HealthServer("127.0.0.1", 0, **{"live": list, "ready": list, "metrics": lambda: b"a 1\n", **work})
            stack.callback(one.close)
            return one

        yield made


def ask(one: HealthServer, path: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    connection = HTTPConnection(*one.address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def say(one: HealthServer, data: bytes) -> bytes:
    """Send *data* as it stands; return all that comes back."""
    with socket.create_connection(one.address, timeout=10) as peer:
        peer.sendall(data)
        return b"".join(iter(lambda: peer.recv(65_536), b""))


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_200_or_503_with_reasons(make: Make, path: str) -> None:
    reasons: list[str] = []
    one = make(live=lambda: reasons, ready=lambda: reasons)
    status, body, headers = ask(one, path)
    assert (status, json.loads(body)) == (200, {"status": "ok", "reasons": []})
    assert headers["Content-Type"] == "application/json"
    reasons.append("stream main: unreachable")
    status, body, _ = ask(one, path)
    assert (status, json.loads(body)) == (503, {"status": "failed", "reasons": ["stream main: unreachable"]})


def test_metrics_are_text_of_prometheus(make: Make) -> None:
    status, body, headers = ask(make(), "/metrics?x=1")
    assert (status, body) == (200, b"a 1\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_head_has_the_headers_and_no_body(make: Make) -> None:
    answer = say(make(), b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/livez/x", "/%6civez", "//livez"])
def test_anything_else_is_not_found_and_not_repeated(make: Make, path: str) -> None:
    status, body, headers = ask(make(), path)
    assert status == 404
    assert path.encode() not in body + str(headers).encode() or path == "/"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
def test_other_methods_are_refused(make: Make, method: str) -> None:
    status, body, headers = ask(make(), "/livez", method)
    assert (status, body, headers["Allow"]) == (405, b"", "GET, HEAD")


def test_the_server_says_no_version_and_keeps_no_connection(make: Make) -> None:
    answer = say(make(), b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /livez HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nServer: vedette\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n", b"400"),
        (b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n", b"400"),
        (b"GET /livez\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"431"),
    ],
)
def test_a_request_is_bounded_and_well_formed(make: Make, request_: bytes, status: bytes) -> None:
    one = make()
    try:
        assert say(one, request_).startswith(b"HTTP/1.1 " + status)
    except ConnectionResetError:  # there was more to read than we read: the answer may be lost with it
        assert status == b"431"
    assert ask(one, "/livez")[0] == 200


def test_who_opens_connections_and_says_nothing_keeps_no_probe_out(make: Make) -> None:
    """Many more than are held at once, half of them with a beginning of a request: each probe is answered at once."""
    one = make()
    with ExitStack() as stack:
        for number in range(3 * MOST_OPEN):
            peer = stack.enter_context(socket.create_connection(one.address, timeout=5))
            if number % 2:
                peer.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        begun = time.monotonic()
        assert [ask(one, path)[0] for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
        assert time.monotonic() - begun < server.PATIENCE_S / 2
        assert len(one._open) <= MOST_OPEN


def test_who_does_not_read_keeps_no_probe_out(make: Make) -> None:
    one = make(metrics=lambda: b"x" * (32 << 20))
    with ExitStack() as stack:
        for _ in range(MOST_OPEN):
            peer = stack.enter_context(socket.create_connection(one.address, timeout=5))
            peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert ask(one, "/livez")[0] == 200


def test_metrics_that_hang_keep_no_probe_out(make: Make) -> None:
    """A store that does not answer must not have the process killed; the rest of those who ask is told at once."""
    go_on = threading.Event()

    def hang() -> bytes:
        go_on.wait(30)
        return b"a 1\n"

    one = make(metrics=hang)
    try:
        with ExitStack() as stack:
            peers = [stack.enter_context(socket.create_connection(one.address, timeout=10)) for _ in range(MOST_OPEN)]
            for peer in peers:
                peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert ask(one, "/livez")[0] == 200
            assert ask(one, "/metrics")[0] == 503
    finally:
        go_on.set()


def test_who_is_being_answered_is_not_sent_away_for_others(make: Make) -> None:
    """However many come meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        begun.set()
        go_on.wait(30)
        return b"a 1\n"

    one = make(metrics=slow)
    try:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_connection(one.address, timeout=10))
            first.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert begun.wait(10)
            for _ in range(2 * MOST_OPEN):
                stack.enter_context(socket.create_connection(one.address, timeout=10))
            assert ask(one, "/livez")[0] == 200
            go_on.set()
            assert first.recv(65_536).startswith(b"HTTP/1.1 200 ")
    finally:
        go_on.set()


def test_a_connection_lasts_no_longer_than_our_patience(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not prolong it."""
    monkeypatch.setattr(server, "PATIENCE_S", 0.3)
    one = make()
    begun = time.monotonic()
    with socket.create_connection(one.address, timeout=5) as peer, suppress(OSError):
        while time.monotonic() - begun < 5:
            peer.sendall(b"G")
            time.sleep(0.02)
    assert 0.2 < time.monotonic() - begun < 2


def test_a_fault_of_ours_is_a_503_without_its_text(make: Make) -> None:
    def broken() -> Any:
        raise RuntimeError("the password is hunter22")

    one = make(live=broken, ready=broken, metrics=broken)
    with structlog.testing.capture_logs() as said:
        answers = [ask(one, path) for path in ("/livez", "/readyz", "/metrics")]
    assert [status for status, _, _ in answers] == [503, 503, 503]
    assert not any(b"hunter22" in body for _, body, _ in answers)
    assert [line["event"] for line in said] == ["health failed"] * 3


def test_an_address_in_use_is_said_with_the_way_out(make: Make) -> None:
    one = make()
    with pytest.raises(ConfigError, match=rf"port {one.address[1]}: it is in use; name another address under 'listen'"):
        HealthServer(*one.address, live=list, ready=list, metrics=bytes)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "::ffff:192.0.2.1"])
def test_an_address_that_is_not_ours_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host} port 0: "):
        HealthServer(host, 0, live=list, ready=list, metrics=bytes)


def test_close_ends_open_connections_and_is_safe_twice(make: Make) -> None:
    one = make()
    with socket.create_connection(one.address, timeout=5) as peer:
        peer.sendall(b"GET ")
        assert ask(one, "/livez")[0] == 200
        one.close()
        one.close()
        with pytest.raises(OSError):  # noqa: PT011
            socket.create_connection(one.address, timeout=5)


def test_the_address_can_be_taken_again_at_once(make: Make) -> None:
    first = make()
    assert ask(first, "/livez")[0] == 200
    first.close()
    again = HealthServer(*first.address, live=list, ready=list, metrics=bytes)
    try:
        assert ask(again, "/livez")[0] == 200
    finally:
        again.close()
