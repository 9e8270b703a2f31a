"""Which indices there are, where they come from, and how their shards stand."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.errors import RetryableError
from connectors.siem.client import Cluster, Param, segment
from connectors.siem.feed import Sight

OWN = ("logs-vedette.*", ".ds-logs-vedette.*", ".alerts-*", ".internal.alerts-*")
"""What no source reads: what Vedette writes, and what Kibana makes of it."""

_LINE = 3_000
"""Characters of index names in one request line; servers take 4,096 in all."""
_DERIVED = re.compile(r"^(?:shrink-[a-z0-9]+-|restored-|partial-|downsample-[^-]+-|\.?reindexed-v\d+-)+")


@dataclass(frozen=True, slots=True)
class Match:
    """An index that a pattern matches. *writable*: it may be the one that a data stream or alias writes to."""

    name: str
    closed: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """What is true of an index for ever: uuid, time of creation (ms), where it was made from."""

    name: str
    uuid: str
    created: int
    shards: int
    source_uuid: str
    source_name: str
    unnumbered: bool
    """Sequence numbers are switched off: no change feed."""
    refresh_s: float
    """Seconds between refreshes; infinite where they are switched off."""


def find(cluster: Cluster, patterns: Sequence[str]) -> dict[str, Match]:
    """Return what *patterns* match, by name: concrete indices, those behind aliases and data streams."""
    include = [one for one in patterns if not one.startswith("-")]
    exclude = [*OWN, *(one[1:] for one in patterns if one.startswith("-"))]
    answer = cluster.request(
        "GET", f"/_resolve/index/{segment(','.join(include))}",
        params={"expand_wildcards": "open,closed"}, accept=(404,),
    )  # fmt: skip
    if answer.status == 404:
        return {}
    found: dict[str, Match] = {}
    for one in answer.body["indices"]:
        if one.get("data_stream") is None:
            found[one["name"]] = Match(one["name"], "closed" in one.get("attributes", ()), True)
    for alias in answer.body["aliases"]:
        for name in _listed(alias["indices"]):
            found.setdefault(name, Match(name, False, True))
    for stream in answer.body["data_streams"]:
        if not _any_match(stream["name"], exclude):
            *older, newest = _listed(stream["backing_indices"])
            found.update({name: Match(name, False, False) for name in older})
            found[newest] = Match(newest, False, True)
    return {name: one for name, one in found.items() if not _any_match(name, exclude)}


def identify(cluster: Cluster, names: Collection[str]) -> dict[str, Identity]:
    """Return who the indices *names* are; one that has vanished meanwhile is missing."""
    found: dict[str, Identity] = {}
    for batch in batches(names):
        params: dict[str, Param] = {"flat_settings": True, "ignore_unavailable": True, "expand_wildcards": "all"}
        body = cluster.request("GET", f"/{segment(batch)}/_settings", params=params, accept=(404,)).body
        for name, one in body.items() if "error" not in body else ():
            found[name] = _identity(name, one["settings"])
    return found


def is_resized(cluster: Cluster, name: str) -> bool:
    """Say whether *name* was shrunk, split or cloned, where settings do not tell: on Elasticsearch."""
    if cluster.flavour != "elasticsearch":
        return False
    answer = cluster.request("GET", f"/{segment(name)}/_recovery", params={"detailed": False}, accept=(404,)).body
    return any(one.get("type") == "LOCAL_SHARDS" for one in answer.get(name, {}).get("shards", ()))


def original_of(cluster: Cluster, copy: str, names: Collection[str]) -> str | None:
    """Return which of *names* holds the first documents of *copy*; None if that has none or no index has them all."""
    body = {"size": 10, "_source": False, "sort": [{"_seq_no": "asc"}], "track_total_hits": False}
    first, _ = search(cluster, copy, body)
    ids = {hit.id for hit in first}
    for batch in batches(names) if ids else ():
        query = {"size": 1000, "_source": False, "query": {"ids": {"values": sorted(ids)}}}
        found, _ = search(cluster, batch, query)
        for name in names:
            if ids == {hit.id for hit in found if hit.index == name}:
                return name
    return None


def exists(cluster: Cluster, name: str) -> bool:
    """Say whether there is still an index *name*, open or closed."""
    answer = cluster.request(
        "GET", f"/_resolve/index/{segment(name)}", params={"expand_wildcards": "all"}, accept=(404,)
    )
    return answer.status != 404 and any(one["name"] == name for one in answer.body["indices"])


def sights(cluster: Cluster, names: Collection[str]) -> dict[str, tuple[str, dict[int, Sight]]]:
    """Return by index name its uuid and a look at the primary of each shard; what is not whole is missing."""
    keep = ("uuid", "shards.*.routing", "shards.*.seq_no", "shards.*.commit.user_data.history_uuid",
            "shards.*.refresh.external_total")  # fmt: skip
    params: dict[str, Param] = {
        "level": "shards",
        "ignore_unavailable": True,
        "filter_path": ",".join(f"indices.*.{one}" for one in keep),
    }
    found = {}
    for batch in batches(names):
        body = cluster.request("GET", f"/{segment(batch)}/_stats/refresh", params=params, accept=(404,)).body
        for name, one in body.get("indices", {}).items():
            shards = {int(number): sight for number, rows in one.get("shards", {}).items() if (sight := _primary(rows))}
            found[name] = (one["uuid"], shards)
    return found


def batches(names: Iterable[str]) -> Iterator[str]:
    """Yield *names* joined by commas, as many as fit a request line."""
    batch: list[str] = []
    length = 0
    for name in sorted(names):
        if batch and length + len(name) > _LINE:
            yield ",".join(batch)
            batch, length = [], 0
        batch.append(name)
        length += len(name) + 1
    if batch:
        yield ",".join(batch)


def preference(cluster: Cluster, shard: int, copy: str) -> str:
    """Return what sends a search to the one copy that the look was taken at."""
    return f"_shards:{shard}|" + (f"_only_nodes:{copy}" if cluster.flavour == "elasticsearch" else "_primary")


class Hit(msgspec.Struct, gc=False, rename={"index": "_index", "id": "_id", "source": "_source"}):
    """One document that a search found."""

    index: str
    id: str
    source: msgspec.Raw = msgspec.Raw()
    sort: tuple[int, ...] = ()

    @property
    def raw(self) -> bytes:
        """The document as it came, empty if there is none: decoded alone, where it is used, it spoils no other."""
        return bytes(self.source)


class _Hits(msgspec.Struct):
    hits: list[Hit]


class Found(msgspec.Struct, rename={"shards": "_shards", "clusters": "_clusters"}):
    """What a search answers."""

    hits: _Hits
    timed_out: bool
    shards: dict[str, Any]
    clusters: dict[str, Any] = {}
    pit_id: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether no time ran out and neither a shard nor a cluster was left out."""
        shards, clusters = self.shards, self.clusters
        whole = not self.timed_out and shards["failed"] == 0 and shards["successful"] == shards["total"]
        return whole and not any(clusters.get(state, 0) for state in ("skipped", "failed", "partial", "running"))


_DECODER = msgspec.json.Decoder(Found)
_TOKENS = re.compile(rb'("_source"\s*:\s*(?={))|"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_HIT = 4
"""How deep the members of a hit lie in an answer."""


def read_search(body: bytes) -> Found:
    """Decode an answer but not the documents in it; ValueError if it is none."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _read_slowly(body)


def _read_slowly(body: bytes) -> Found:
    """Decode an answer with a document in it that the decoder does not take (half a surrogate pair, great depth): cut
    the documents out, whatever they hold."""
    documents: list[msgspec.Raw] = []
    rest: list[bytes] = []
    depth = end = 0
    inside = False
    for token in _TOKENS.finditer(body):
        first = body[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
            if inside and depth == _HIT:
                documents.append(msgspec.Raw(body[end : token.end()]))
                end, inside = token.end(), False
        elif depth == _HIT and token[1]:
            rest += [body[end : token.end()], b"{}"]
            end, inside = token.end(), True
    found = _DECODER.decode(b"".join([*rest, body[end:]]))
    with_source = [hit for hit in found.hits.hits if hit.source]
    for hit, document in zip(with_source, documents, strict=True):
        hit.source = document
    return found


def search(
    cluster: Cluster,
    index: str,
    body: Mapping[str, Any],
    *,
    shard: tuple[int, str] | None = None,
    params: Mapping[str, Param] | None = None,
) -> tuple[list[Hit], int]:
    """Return the hits of a search, on one copy of one *shard* or over all, and the answer's bytes.

    RetryableError if the answer is not whole.
    """
    given = cluster.request(
        "POST",
        f"/{segment(index)}/_search",
        params={
            "allow_partial_search_results": False,
            "request_cache": False,
            **({"preference": preference(cluster, *shard)} if shard else {}),
            **(params or {}),
        },
        body=body,
        decode=read_search,
    )
    found: Found = given.body
    if not found.is_whole or (shard and found.shards["total"] != 1):
        raise RetryableError(f"{index}: the answer to a search is not whole: {found.shards} {found.clusters}"[:500])
    return found.hits.hits, given.size


def base_name(name: str) -> str:
    """Return the name of the index that *name* was made from, as lifecycle managers name copies."""
    return _DERIVED.sub("", name)


def _identity(name: str, settings: Mapping[str, str]) -> Identity:
    def of(key: str) -> str:
        return settings.get(f"index.{key}", "")

    return Identity(
        name=name,
        uuid=of("uuid"),
        created=int(of("creation_date") or 0),
        shards=int(of("number_of_shards") or 1),
        source_uuid=of("resize.source.uuid"),
        source_name=of("resize.source.name") or of("store.snapshot.index_name") or of("downsample.source.name"),
        unnumbered=of("disable_sequence_numbers") == "true",
        refresh_s=_seconds(of("refresh_interval") or "1s"),
    )


def _seconds(text: str) -> float:
    """Return a time value of the server's in seconds; a negative one means never."""
    found = re.fullmatch(r"(-?\d+)(nanos|micros|ms|s|m|h|d|)", text)
    if not found or int(found[1]) < 0:
        return math.inf
    return int(found[1]) * {"nanos": 1e-9, "micros": 1e-6, "ms": 1e-3, "m": 60, "h": 3600, "d": 86_400}.get(found[2], 1)


def _primary(rows: Sequence[Mapping[str, Any]]) -> Sight | None:
    for row in rows:
        routing = row["routing"]
        if routing["primary"] and routing["state"] in ("STARTED", "RELOCATING"):
            try:
                return Sight(
                    routing["node"],
                    row["commit"]["user_data"]["history_uuid"],
                    int(row["seq_no"]["global_checkpoint"]),
                    int(row["refresh"]["external_total"]),
                )
            except KeyError:
                return None
    return None


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def matches(pattern: str, name: str) -> bool:
    """Say whether the index pattern fits *name*: a star stands for any text, nothing else is special."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _any_match(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(pattern, name) for pattern in patterns)
