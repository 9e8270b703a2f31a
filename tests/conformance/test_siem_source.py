"""The SIEM source keeps the port's promises on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, ClassVar
from uuid import uuid4

import orjson
import pytest

from agent.alerting.document import iso
from agent.model import Timestamp
from agent.ports import Source
from agent.testing import SOURCE_CHECKS, Raw, SourceHarness, run
from connectors.siem import elasticsearch, opensearch
from connectors.siem.client import Access, Cluster

CONNECTORS = {"elasticsearch": elasticsearch, "opensearch": opensearch}
SECRET = "kV7-moss-Tundra-19"
LOOKS_A_SECOND = 100


class Siem(SourceHarness):
    """An index of three shards."""

    secrets: ClassVar[Sequence[str]] = (SECRET,)

    def __init__(self, server: Any, folder: Path) -> None:
        self._server = server
        self._index = f"conformance-{uuid4().hex[:12]}"
        self._number = 0
        self._folder = folder
        self._cluster = Cluster("test", server.flavour, Access(**server.access()))
        self._cluster.connect()
        settings = {"number_of_shards": 3, "number_of_replicas": 0, "refresh_interval": "-1"}
        self._cluster.request("PUT", f"/{self._index}", body={"settings": settings})

    def close(self) -> None:
        self._cluster.request("DELETE", f"/{self._index}", accept=(404,))
        self._cluster.close()

    def grow(self, number: int, time: Timestamp) -> Sequence[Raw]:
        documents = []
        for _ in range(number):
            self._number += 1
            documents.append({"@timestamp": iso(time), "message": f"line {self._number}", "number": self._number})
        lines = (line for one in documents for line in (b'{"create":{}}', orjson.dumps(one)))
        body = b"\n".join(lines) + b"\n"
        answer = self._cluster.request("POST", f"/{self._index}/_bulk", params={"refresh": True}, body=body)
        assert not answer.body["errors"]
        sleep(1 / LOOKS_A_SECOND)  # no source looks again sooner
        return documents

    def same(self, raw: Raw) -> Any:
        """What is projected away may be missing."""
        document = orjson.loads(raw) if isinstance(raw, bytes) else raw
        return document["@timestamp"], document["message"]

    def _make(self, **options: Any) -> Source:
        make = CONNECTORS[self._server.flavour].source
        assert make is not None
        base = {
            **self._server.access(),
            "indices": [self._index],
            "start": "earliest",
            "searches_per_second": LOOKS_A_SECOND,
        }
        return make("siem", {**base, **options})

    def source(self) -> Source:
        return self._make()

    def misconfigured(self) -> Iterable[Callable[[], Source]]:
        wrong: list[dict[str, Any]] = [
            {"hosts": []},
            {"hosts": ["ftp://localhost"]},
            {"hosts": ["http://siem.example:9200"]},
            {"hosts": [f"https://user:{SECRET}@localhost:9200"]},
            {"indices": ["a/b"]},
            {"indices": ["-only-this"]},
            {"start": "yesterday"},
            {"surprise": 1},
            {"password": "file:/nowhere"},
            {"username": "u", "password": "file:/nowhere"},
            {"api_key": "file:/nowhere"},
            {"hosts": ["https://localhost:9200"], "ca_file": "/nowhere"},
        ]
        return [partial(self._make, **options) for options in wrong]

    def troubled(self) -> Iterable[AbstractContextManager[Source]]:
        yield self._unreachable()

    @contextmanager
    def _unreachable(self) -> Iterator[Source]:
        secret = self._folder / "password"
        secret.write_text(SECRET)
        yield self._make(hosts=["http://127.0.0.1:1"], username="vedette", password=f"file:{secret}")


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_siem_source(check: Callable[[SourceHarness], None], siem: Any, tmp_path: Path) -> None:
    run(check, lambda: Siem(siem, tmp_path))
