"""One Elasticsearch or OpenSearch cluster over HTTP.

`Cluster.request` returns an answer that is whole, or raises by what the caller can do next::

    RetryableError     not reached, cut off, too slow, 5xx, 408, 429 (`retry_after` where the server said)
    ├── Denied         401 or 403: credentials or a privilege are missing; at start this is a ConfigError
    └── Refused        any other status from 400 on: `status`, the server's error `type` and its reason

Elasticsearch is spoken to by its official client, OpenSearch, which that client refuses, by the transport below it.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import orjson
import urllib3
from elastic_transport import ApiError, NodeConfig, OrjsonSerializer, Transport, TransportError, Urllib3HttpNode
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agent.errors import ConfigError, RetryableError, VedetteError
from connectors._options import Secret, read_secret

logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)  # what fails is said once, by whoever asked

FlavourName = Literal["elasticsearch", "opensearch"]
Param = str | int | bool

MAX_ANSWER = 256 << 20
"""Bytes of one answer, decompressed; more is refused."""
_PART = 256 << 10
_SIZE = "x-vedette-bytes"
_BUSY = frozenset({408, 429, 502, 503, 504})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
JSON = "application/json"
NDJSON = "application/x-ndjson"


class Denied(RetryableError):
    """The cluster does not know us or does not let us: credentials may be rotated, privileges granted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Refused(RetryableError):
    """The cluster, or what stands before it, will not do this; asked again it may, once somebody has changed it."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Access(BaseModel):
    """How to reach a cluster and as whom. Secrets are references, never values; they are read again after a 401."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: list[str] = Field(min_length=1)
    username: str | None = None
    password: Secret | None = None
    api_key: Secret | None = None
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Most seconds that one request may take, answer included."""

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            parts = urlsplit(host)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("expected https://HOST:PORT")
            if parts.username or parts.password:
                raise ValueError("no credentials in an address: use username and password, or api_key")
            if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
                raise ValueError(f"http:// only to this machine; use https://{parts.hostname}")
        return hosts

    @model_validator(mode="after")
    def _whole(self) -> Access:
        if self.api_key and (self.username or self.password):
            raise ValueError("give api_key, or username and password, not both")
        if bool(self.username) != bool(self.password):
            raise ValueError("username and password go together")
        if self.client_key and not self.client_cert:
            raise ValueError("client_key needs client_cert")
        return self


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its status, its decoded JSON body and how many bytes that was."""

    status: int
    body: Any
    size: int = 0


class Cluster:
    """A connection to one cluster; safe to use from several threads. `requests` and `bytes_read` only count."""

    def __init__(self, owner: str, flavour: FlavourName, access: Access) -> None:
        """*owner* names the source or sink in errors. Nothing is sent before `connect`."""
        self.flavour = flavour
        self.version: tuple[int, ...] = ()
        self.build = ""
        self.uuid = ""
        self.spent: Counter[str] = Counter()
        """Requests by the last part of their path (``_search``, ``_stats``, ``_bulk``), and ``bytes`` received."""
        self._owner = owner
        self._access = access
        self._lock = threading.Lock()
        self._send: _Elastic | _Open | None = None

    @property
    def place(self) -> str:
        return ", ".join(self._access.hosts)

    def connect(self) -> None:
        """Reach the cluster and learn what it is; ConfigError for what only a person can mend."""
        self._sender()
        try:
            info = self.request("GET", "/").body
        except Denied as error:
            raise ConfigError(str(error)) from None
        except Refused as error:
            raise ConfigError(f"{self._owner}: {self.place} is no {self.flavour}: {error}") from None
        if not isinstance(info, dict) or not isinstance(version := info.get("version"), dict):
            raise ConfigError(f"{self._owner}: {self.place} is no {self.flavour}: its answer names no version")
        found = "opensearch" if version.get("distribution") == "opensearch" else "elasticsearch"
        if found != self.flavour:
            raise ConfigError(f"{self._owner}: {self.place} is {found}: write 'type: {found}'")
        self.build = str(version.get("build_flavor", ""))
        self.version = tuple(int(part) for part in str(version["number"]).split("-")[0].split("."))
        self.uuid = str(info.get("cluster_uuid", ""))

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Param] | None = None,
        body: Any = None,
        accept: Collection[int] = (),
        timeout_s: float | None = None,
        decode: Callable[[bytes], Any] = orjson.loads,
    ) -> Answer:
        """Send one request. *body* is JSON-able, or bytes of NDJSON; statuses in *accept* are answers, not errors.

        *decode* reads the body of a success, and raises ValueError for what it cannot read.
        """
        sender = self._sender()
        with self._lock:
            self.spent[path.rsplit("/", 1)[-1] or "info"] += 1
        content = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = {"accept": JSON} | ({"content-type": NDJSON if isinstance(body, bytes) else JSON} if content else {})
        try:
            status, answer, given = sender.send(
                method, _target(path, params), headers, content, timeout_s or self._access.timeout_s
            )
        except TransportError as error:
            raise RetryableError(f"{self._owner}: {self.place}: {_say(error)}") from None
        size = int(given.get(_SIZE, 0))
        with self._lock:
            self.spent["bytes"] += size
        if status >= 300 and status not in accept:
            raise self._error(status, _read(answer, orjson.loads), given, f"{method} {path}")
        found = _read(answer, decode if status < 300 else orjson.loads)
        if found is answer and isinstance(answer, bytes):
            raise RetryableError(f"{self._owner}: {self.place}: {method} {path}: {status}, and no JSON as expected")
        return Answer(status, found, size)

    def close(self) -> None:
        with self._lock:
            if self._send:
                self._send.close()
            self._send = None

    def _sender(self) -> _Elastic | _Open:
        with self._lock:
            if self._send is None:
                make = _Elastic if self.flavour == "elasticsearch" else _Open
                self._send = make([self._node(host) for host in self._access.hosts], self._authorization())
            return self._send

    def _node(self, host: str) -> NodeConfig:
        parts, access = urlsplit(host), self._access
        port = parts.port or (443 if parts.scheme == "https" else 9200)
        secure: dict[str, Any] = {}
        if parts.scheme == "https":
            for option in ("ca_file", "client_cert", "client_key"):
                name = getattr(access, option)
                if name and not Path(name).is_file():
                    raise ConfigError(f"{self._owner}: {option}: no file {name}")
            secure = {"ca_certs": access.ca_file, "client_cert": access.client_cert, "client_key": access.client_key}
        return NodeConfig(
            parts.scheme,
            parts.hostname or "",
            port,
            path_prefix=parts.path.rstrip("/"),
            http_compress=False,
            connections_per_node=8,
            **secure,
        )

    def _authorization(self) -> dict[str, str]:
        access = self._access
        if access.api_key:
            return {"authorization": f"ApiKey {self._secret(access.api_key)}"}
        if access.username and access.password:
            return dict(urllib3.util.make_headers(basic_auth=f"{access.username}:{self._secret(access.password)}"))
        return {}

    def _secret(self, reference: str) -> str:
        try:
            return read_secret(reference)
        except ConfigError as error:
            raise ConfigError(f"{self._owner}: {error}") from None

    def _error(self, status: int, body: Any, headers: Mapping[str, str], what: str) -> VedetteError:
        kind, reason = _reason(body)
        text = f"{self._owner}: {self.place}: {what}: {status} {kind}: {reason}".rstrip(": ")
        if status in (401, 403):
            if status == 401:
                self.close()  # the next request reads the credentials again
            return Denied(status, text)
        if status in _BUSY:
            return RetryableError(text, _seconds(headers.get("retry-after")))
        if status >= 500:
            return RetryableError(text)
        return Refused(status, kind, text)


class _Elastic:
    """Sends by the official client, which checks that the server is Elastic's."""

    def __init__(self, nodes: list[NodeConfig], headers: Mapping[str, str]) -> None:
        from elasticsearch import Elasticsearch, ElasticsearchWarning

        warnings.filterwarnings("ignore", category=ElasticsearchWarning)  # the server's deprecations, not for our log
        self._client = Elasticsearch(
            nodes,
            headers=headers,
            node_class=_BoundedNode,
            serializer=_Undecoded(),
            max_retries=len(nodes) - 1,
            retry_on_status=(),
        )

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> tuple[int, Any, Mapping[str, str]]:
        from elasticsearch import UnsupportedProductError

        try:
            client = self._client.options(request_timeout=timeout_s)
            answer = client.perform_request(method, target, headers=headers, body=body)
        except UnsupportedProductError as error:
            raise ConfigError(f"{error}; if this is OpenSearch, write 'type: opensearch'") from None
        except ApiError as error:
            return error.meta.status, error.body, error.meta.headers
        return answer.meta.status, answer.body, answer.meta.headers

    def close(self) -> None:
        self._client.close()


class _Open:
    """Sends by the transport alone."""

    def __init__(self, nodes: list[NodeConfig], headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._transport = Transport(
            nodes,
            node_class=_BoundedNode,
            serializers={JSON: _Undecoded()},
            max_retries=len(nodes) - 1,
            retry_on_status=(),
            meta_header=False,
        )

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> tuple[int, Any, Mapping[str, str]]:
        answer = self._transport.perform_request(
            method, target, headers={**self._headers, **headers}, body=body, request_timeout=timeout_s
        )
        return answer.meta.status, answer.body, answer.meta.headers

    def close(self) -> None:
        self._transport.close()


class _Undecoded(OrjsonSerializer):
    """Leaves JSON answers as they are: whoever asked knows how to read them."""

    def loads(self, data: bytes) -> bytes:
        return data


class _BoundedNode(Urllib3HttpNode):
    """Reads an answer within the request's time as a whole (the library bounds each wait only) and within a size."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        inner = self.pool.urlopen

        def urlopen(method: str, target: str, **options: Any) -> _Whole:
            limit = options.get("timeout") or config.request_timeout or 30.0
            deadline = time.monotonic() + float(limit)
            response = inner(method, target, preload_content=False, decode_content=False, **options)
            try:
                return _Whole(response, deadline)
            except BaseException:
                response.close()
                raise
            finally:
                response.release_conn()

        self.pool.urlopen = urlopen  # type: ignore[method-assign, assignment]


class _Whole:
    """What the transport reads of a response: status, headers and all of the body."""

    def __init__(self, response: urllib3.BaseHTTPResponse, deadline: float) -> None:
        parts: list[bytes] = []
        size = 0
        while part := response.read1(_PART, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER:
                raise urllib3.exceptions.HTTPError(f"answer of more than {MAX_ANSWER >> 20} MiB")
            if time.monotonic() > deadline:
                raise urllib3.exceptions.HTTPError("answer not whole within the time")
        self.status = response.status
        self.headers = {**response.headers, _SIZE: str(size)}
        self.data = b"".join(parts)


def _read(body: Any, decode: Callable[[bytes], Any]) -> Any:
    """Return a body decoded; as it is if it cannot be, None if there is none."""
    if not isinstance(body, bytes):
        return body
    try:
        return decode(body) if body else None
    except ValueError:
        return body


def _target(path: str, params: Mapping[str, Param] | None) -> str:
    if not params:
        return path
    return path + "?" + urlencode({key: str(value).lower() if isinstance(value, bool) else value
                                   for key, value in params.items()})  # fmt: skip


def segment(name: str) -> str:
    """Return *name* (an index, an id, names joined by commas) as one part of a path."""
    return quote(name, safe=",*-_.")


def _say(error: TransportError) -> str:
    return str(error.message or error.__class__.__name__)


def _reason(body: Any) -> tuple[str, str]:
    """Return the server's error type and reason, bounded."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        cause = (error.get("root_cause") or [{}])[0] if isinstance(error.get("root_cause"), list) else {}
        return str(error.get("type", ""))[:100], str(error.get("reason") or cause.get("reason") or "")[:500]
    return "", str(error or body or "")[:300]


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
