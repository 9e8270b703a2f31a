"""What tests of a SIEM share: a server or the reason why there is none, requests to it, and alerts to write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import orjson
import pytest

from agent.model import Document
from connectors.siem.client import Access, Cluster, FlavourName
from connectors.siem.install import LAYOUTS, stream_name
from tests.servers import Server, Unavailable, start

MARK = "vedettetest"
"""What every namespace of these tests begins with."""


def started(flavour: FlavourName, major: int, **wishes: Any) -> Server:
    """Start a server; where this machine cannot, skip the test with the reason."""
    try:
        return start(flavour, major, **wishes)
    except Unavailable as error:
        pytest.skip(str(error))


def connected(flavour: FlavourName, access: Mapping[str, Any]) -> Cluster:
    cluster = Cluster("test", flavour, Access(**access))
    cluster.connect()
    return cluster


def bulk(cluster: Cluster, index: str, lines: Iterable[Any], *, refresh: bool = True) -> None:
    """Do what *lines* say (JSON-able, or bytes without their end); AssertionError if a part of it failed."""
    body = b"".join(b"%s\n" % (line if isinstance(line, bytes) else orjson.dumps(line)) for line in lines)
    answer = cluster.request("POST", f"/{index}/_bulk", params={"refresh": refresh}, body=body).body
    assert not answer["errors"], answer


def remove(cluster: Cluster, pattern: str) -> None:
    """Delete all indices that *pattern* names, one by one, for servers refuse patterns."""
    found = cluster.request("GET", f"/_resolve/index/{pattern}", params={"expand_wildcards": "all"}, accept=(404,)).body
    for one in found.get("indices", ()):
        cluster.request("DELETE", f"/{one['name']}", accept=(404,))


@contextmanager
def snapshot(cluster: Cluster, index: str) -> Iterator[Callable[..., None]]:
    """Keep *index* as it is now in a repository of its own; give a function that restores it, under *name* if given."""
    repository, whole = f"/_snapshot/of-{index}", {"indices": index, "include_global_state": False}
    cluster.request("PUT", repository, body={"type": "fs", "settings": {"location": index}})
    cluster.request("PUT", f"{repository}/one", params={"wait_for_completion": True}, body=whole)

    def restore(name: str = "") -> None:
        renamed = {"rename_pattern": ".+", "rename_replacement": name} if name else {}
        path = f"{repository}/one/_restore"
        cluster.request("POST", path, params={"wait_for_completion": True}, body=whole | renamed)

    try:
        yield restore
    finally:
        cluster.request("DELETE", f"{repository}/one")
        cluster.request("DELETE", repository)


# --- Vedette's streams ------------------------------------------------------------------------------------------------


def new_namespace() -> str:
    return MARK + uuid4().hex[:12]


def put_away(cluster: Cluster) -> None:
    """Let our templates match no stream but those of tests, which not every server can delete."""
    for layout in LAYOUTS:
        template = {"index_patterns": [stream_name(f"{MARK}*", layout.dataset)], "priority": 500, "data_stream": {}}
        cluster.request("PUT", f"/_index_template/{layout.name}", body=template)
        cluster.request("DELETE", f"/_component_template/{layout.name}", accept={400, 404})
        cluster.request("DELETE", f"/_component_template/{layout.custom}", accept={400, 404})
        cluster.request("DELETE", f"/_ingest/pipeline/{layout.name}", accept={400, 404})
    cluster.close()


def document(name: str, repeat: bool = False, **fields: Any) -> Document:
    """Return an alert to write, whose id and event id are *name*."""
    body = {"@timestamp": "2026-01-01T00:00:00Z", "event": {"id": name, "kind": "alert"}, **fields}
    return Document(name, json.dumps(body).encode(), repeat)


def audit_copy(name: str, repeat: bool = False, **fields: Any) -> Document:
    """Return a copy of an audit leaf to write, whose id is *name*."""
    body = {"@timestamp": "2026-01-01T00:00:00Z", "event": {"kind": "event"}, **fields}
    return Document(name, json.dumps(body).encode(), repeat, "audit")
