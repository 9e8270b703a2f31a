"""Nothing missed, nothing twice: the real daemon against a real cluster that makes it hard.

Several writers at once index, update and delete documents, back-dated and future ones among them, while refresh
intervals change and the write index rolls over. `vedette run` reads all of it from the start, with a rule that hits
every event, and is killed (SIGKILL) and started again and again. At the end each document that exists must have exactly
one alert in the SIEM, no alert may name a document that was never acknowledged, and an undisturbed second run over the
same indices must come to the same alert ids. Beside it run pollers as they are usually written (newer than the last
timestamp seen); what they lose is printed, and the test fails if that is nothing, since then it proves nothing.

    python -m tests.faults.exactness --server elasticsearch:8 --events 200000 --writers 8 --kills 20 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import VedetteError
from agent.normalise.catalogue import catalogue
from agent.store import Reader
from connectors.siem.client import Cluster, FlavourName
from connectors.siem.install import LAYOUTS, install, stream_name
from tests.faults.proxy import FaultProxy
from tests.process import Process
from tests.servers import Server, start
from tests.siem import connected, snapshot

STREAM = "logs-vedette.alert-"
INTERVALS = ("100ms", "300ms", "1s", "3s", "10s", "30s")
SHARDS = 3
KILL_EVERY_S = 3.0
REMEMBERED = 5_000
"""Own documents that a writer may still update or delete."""
STALLED_S = 15.0
"""Seconds without an acknowledged document after which the next event comes: a shard may have lost its only node."""
REST_S = 5.0
"""Seconds without any movement after which the daemon has read and delivered all there is."""
CATCH_UP_S = 90.0
"""Seconds without any progress after which the daemon will not get further."""

CONFIG = """
sources:
  logs: {{type: {flavour}, hosts: {source}, indices: {indices}, start: earliest, timeout_s: {timeout_s}}}
detectors:
  rules: {{type: sigma, path: "{rules}"}}
sinks:
  siem: {{type: {flavour}, hosts: {sink}, namespace: {namespace}, timeout_s: {timeout_s}}}
streams:
  main: {{source: logs, detectors: [rules], sinks: [siem], batch: {batch}}}
alerts: {{max_per_rule_and_hour: 100000000}}
"""
RULE = """
title: Any request
id: 7a2f3b60-53b1-4b53-9c0a-2f2b7f0f5b10
status: test
level: low
logsource: {category: webserver}
detection: {selection: {http.request.method: GET}, condition: selection}
"""
FIELDS = {
    "@timestamp": {"type": "date"},
    "message": {"type": "text"},
    "event": {
        "properties": {
            "category": {"type": "keyword"},
            "dataset": {"type": "keyword"},
            "ingested": {"type": "date"},
            "sequence": {"type": "long"},
        }
    },
    "http": {"properties": {"request": {"properties": {"method": {"type": "keyword"}}}}},
    "labels": {"properties": {"touched": {"type": "keyword"}}},
}


# --- the cluster ------------------------------------------------------------------------------------------------------


def connect(server: Server) -> Cluster:
    return connected(server.flavour, {"hosts": server.urls, "timeout_s": 60})


def put_template(cluster: Cluster, name: str, pattern: str, **settings: Any) -> None:
    """Give indices that match *pattern* our fields, some shards, a refresh each second, and *settings*."""
    settings = {"number_of_shards": SHARDS, "refresh_interval": "1s", **settings}
    template = {"settings": settings, "mappings": {"dynamic": False, "properties": FIELDS}}
    body = {"index_patterns": [pattern], "priority": 700, "template": template}
    cluster.request("PUT", f"/_index_template/{name}", body=body)


def install_alert_stream(cluster: Cluster, run: str) -> None:
    """Do what `vedette setup` does for the sink."""
    fields = {name: field.type for name, field in catalogue().fields.items()}
    failed = [check for check in install(cluster, run, fields) if check.state == "failed"]
    assert not failed, failed


def remove_alert_streams(cluster: Cluster, run: str) -> None:
    """Remove what `install_alert_stream` made, where the server can."""
    for layout in LAYOUTS:
        cluster.request("DELETE", f"/_data_stream/{stream_name(f'{run}*', layout.dataset)}", accept=range(400, 504))


def new_name() -> str:
    """Return a name that nothing else in a cluster has, for all that one run makes there."""
    return f"x{os.getpid()}.{time.time_ns() // 10**6 % 10**8}"


def scan(cluster: Cluster, name: str, source: Sequence[str] | bool) -> Iterator[dict[str, Any]]:
    """Yield every document of an alias, index or data stream; none if there is no such thing."""
    cluster.request("POST", f"/{name}/_refresh", accept=(404,))
    body = {"size": 5000, "sort": ["_doc"], "_source": source}
    answer = cluster.request("POST", f"/{name}/_search", params={"scroll": "2m"}, body=body, accept=(404,))
    if answer.status == 404:
        return
    page = answer.body
    while hits := page["hits"]["hits"]:
        assert page["_shards"]["failed"] == 0, page["_shards"]
        yield from hits
        again = {"scroll": "2m", "scroll_id": page["_scroll_id"]}
        page = cluster.request("POST", "/_search/scroll", body=again).body
    cluster.request("DELETE", "/_search/scroll", body={"scroll_id": page["_scroll_id"]})


@dataclass
class Delivered:
    """Alerts in the SIEM: how often each id is there, over all backing indices, and for which document."""

    times: Counter[str] = field(default_factory=Counter)
    key: dict[str, str] = field(default_factory=dict)

    @property
    def twice(self) -> list[str]:
        return sorted(id for id, times in self.times.items() if times > 1)


def delivered(cluster: Cluster, namespace: str) -> Delivered:
    """Read every alert of the namespace back from the SIEM."""
    found = Delivered()
    for hit in scan(cluster, f"{STREAM}{namespace}", ["event.id", "vedette.evidence.records"]):
        alert = hit["_source"]
        records = alert["vedette"]["evidence"]["records"]
        assert len(records) == 1, alert
        found.times[alert["event"]["id"]] += 1
        found.key[alert["event"]["id"]] = records[0]["key"]
    return found


# --- the daemon -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Books:
    """What the store says: counters, alerts stored, documents that wait for the sink, documents it refused."""

    received: int = 0
    scored: int = 0
    filtered: int = 0
    quarantined: int = 0
    alerts: int = 0
    waiting: int = 0
    refused: int = 0

    @property
    def balanced(self) -> bool:
        return self.received == self.scored + self.filtered + self.quarantined


class Vedette(Process):
    """The real process over one configuration and one data folder."""

    def __init__(
        self,
        folder: Path,
        flavour: FlavourName,
        *,
        source: Sequence[str],
        sink: Sequence[str],
        indices: Sequence[str],
        namespace: str,
        timeout_s: float = 30,
        batch: int = 2000,
    ) -> None:
        folder.mkdir()
        (folder / "rules").mkdir()
        (folder / "rules" / "rule.yml").write_text(RULE)
        super().__init__(folder)
        self.given_up = 0
        """Ends with exit code 5 (unreachable at the start), which a service manager answers with a start."""
        self._facts: dict[str, Any] = {
            "flavour": flavour,
            "source": json.dumps(list(source)),
            "sink": json.dumps(list(sink)),
            "indices": json.dumps(list(indices)),
            "namespace": namespace,
            "timeout_s": timeout_s,
            "rules": folder / "rules",
            "batch": batch,
        }
        self.configure()

    def configure(self, **changed: Any) -> None:
        """Write the configuration, with *changed* for the next start."""
        self._facts |= changed
        self.config.write_text(CONFIG.format(**self._facts))

    @property
    def log(self) -> str:
        return super().log[-4000:]

    def once(self, seconds: float) -> int | None:
        """Run until all is read and delivered; return the exit code, None if it was not done in time and is killed."""
        try:
            return self.launch("--once").wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def keep_up(self) -> None:
        """Start it again if it ended because the cluster could not be reached; AssertionError if for another reason."""
        code = self.process.poll() if self.process else None
        if code is not None:
            assert code == 5, f"vedette ended with {code}:\n{self.log}"
            self.given_up += 1
            self.launch()

    def books(self) -> Books:
        if not (self.data / "vedette.db").exists():
            return Books()
        with Reader(self.data) as reader:
            counts = reader.counters("main").get("main", {})
            (alerts,) = reader.rows("SELECT count(*) FROM alert")[0]
            waiting, refused = reader.rows("SELECT count(*) - count(refused), count(refused) FROM outbox")[0]
        filtered = sum(number for name, number in counts.items() if name.startswith("filtered."))
        named = {name: counts.get(name, 0) for name in ("received", "scored", "quarantined")}
        return Books(**named, filtered=filtered, alerts=alerts, waiting=waiting, refused=refused)

    def catch_up(self, alerts: int) -> Books:
        """Wait until *alerts* are stored and delivered and nothing moves any more, or for long; return the books.

        There may be more alerts in the end: for documents that are gone again.
        """
        last, since = Books(), time.monotonic()
        while time.monotonic() - since < CATCH_UP_S:
            self.keep_up()
            books = self.books()
            if books != last:
                last, since = books, time.monotonic()
            if books.alerts >= alerts and not books.waiting and time.monotonic() - since > REST_S:
                break
            time.sleep(0.3)
        return self.books()


# --- who writes -------------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """What the cluster has said, by document id. *unsure*: the request was lost, it may have been done."""

    acknowledged: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    updated: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)


class Writers:
    """Threads that write *events* documents to *alias* within about *seconds*, and update and delete some of their own.

    With *own_ids* every document has an id of the writer's, so that a lost answer leaves a name for what was lost; else
    half of the requests leave the ids to the cluster.
    """

    def __init__(
        self,
        connected: Callable[[], Cluster],
        alias: str,
        *,
        events: int,
        writers: int,
        seconds: float,
        seed: int,
        own_ids: bool,
    ) -> None:
        self.oracle = Oracle()
        self.frozen: set[str] = set()
        """Indices in which no document may be touched any more."""
        self.failures: list[BaseException] = []
        self._connected, self._alias, self._own_ids = connected, alias, own_ids
        self._share, self._seconds = -(-events // writers), seconds
        self._lock = threading.Lock()
        self._gate = [threading.Lock() for _ in range(writers)]
        self._threads = [
            threading.Thread(target=self._guard, args=(number, random.Random(f"{seed}/{number}")), daemon=True)
            for number in range(writers)
        ]
        self.written_s = 0.0

    def start(self) -> None:
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> bool:
        if self.failures:
            raise AssertionError(f"a writer failed: {self.failures[0]!r}") from self.failures[0]
        return any(thread.is_alive() for thread in self._threads)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no request be under way."""
        for gate in self._gate:
            gate.acquire()
        try:
            yield
        finally:
            for gate in self._gate:
                gate.release()

    def write_into(self, index: str, number: int, mark: str) -> None:
        """Write *number* documents straight into *index*."""
        ids = [f"{mark}-{place}" for place in range(number)]
        cluster, rng = self._connected(), random.Random(mark)
        self._create(cluster, rng, index, [(id, place) for place, id in enumerate(ids)])
        cluster.close()

    def _guard(self, number: int, rng: random.Random) -> None:
        cluster = self._connected()
        try:
            self._write(cluster, number, rng)
        except BaseException as error:
            self.failures.append(error)
        finally:
            self.written_s = time.monotonic() - self._begun
            cluster.close()

    def _write(self, cluster: Cluster, number: int, rng: random.Random) -> None:
        mine: list[tuple[str, str]] = []
        done = 0
        while done < self._share:
            size = min(rng.randint(200, 500), self._share - done)
            own = self._own_ids or rng.random() < 0.5
            wanted = [
                (f"w{number}-{place}" if own else None, number << 32 | place) for place in range(done, done + size)
            ]
            with self._gate[number]:
                mine += self._create(cluster, rng, self._alias, wanted)
                if rng.random() < 0.4:
                    self._touch(cluster, rng, mine)
            del mine[:-REMEMBERED]
            done += size
            ahead = self._begun + self._seconds * done / self._share - time.monotonic()
            time.sleep(max(0.0, ahead))

    def _create(
        self, cluster: Cluster, rng: random.Random, target: str, wanted: Sequence[tuple[str | None, int]]
    ) -> list[tuple[str, str]]:
        """Write documents until each is answered for good; return (index, id) of those that were acknowledged."""
        made = []
        while wanted:
            lines = []
            for id, sequence in wanted:
                lines += [b'{"create":{}}' if id is None else b'{"create":{"_id":"%s"}}' % id.encode()]
                lines += [request_document(rng, sequence)]
            items = self._bulk(cluster, target, lines, [id for id, _ in wanted if id])
            again = []
            with self._lock:
                for one, item in zip(wanted, items, strict=True):
                    if item["status"] == 201:
                        self.oracle.acknowledged.add(item["_id"])
                        made.append((item["_index"], item["_id"]))
                    elif item["status"] == 409 and one[0]:
                        self.oracle.acknowledged.add(one[0])  # sent twice, over the other node: it is there
                    elif item["status"] in (429, 503):
                        again.append(one)
                    else:
                        self.oracle.refused[f"{item['status']} {item['error']['type']}"] += 1
            if again:
                time.sleep(0.5)
            wanted = again
        return made

    def _touch(self, cluster: Cluster, rng: random.Random, mine: list[tuple[str, str]]) -> None:
        """Update some own documents, in a field that no rule reads, and delete others."""
        lines, deleted, updated = [], set(), set()
        for _ in range(min(len(mine) // 50, rng.randint(1, 60))):
            index, id = mine.pop(rng.randrange(len(mine)))
            if index in self.frozen:
                continue
            target = json.dumps({"_index": index, "_id": id}).encode()
            if rng.random() < 0.5:
                deleted.add(id)
                lines.append(b'{"delete":%s}' % target)
            else:
                updated.add(id)
                lines += [b'{"update":%s}' % target, b'{"doc":{"labels":{"touched":"%d"}}}' % rng.randrange(10**6)]
        with self._lock:
            self.oracle.deleted |= deleted
            self.oracle.updated |= updated
        if lines:
            self._bulk(cluster, self._alias, lines, [])

    def _bulk(
        self, cluster: Cluster, target: str, lines: Sequence[bytes], ids: Sequence[str]
    ) -> Sequence[Mapping[str, Any]]:
        """Send a bulk request. If its answer is lost, *ids* are unsure, and nothing of it is answered."""
        params = {"filter_path": "items.*._id,items.*._index,items.*.status,items.*.error.type"}
        try:
            answer = cluster.request("POST", f"/{target}/_bulk", params=params, body=b"\n".join([*lines, b""]))
        except VedetteError:
            if not self._own_ids:
                raise
            with self._lock:
                self.oracle.unsure.update(ids)
            time.sleep(0.5)
            return [{"status": 0, "error": {"type": "lost"}}] * len(ids)
        return [next(iter(item.values())) for item in answer.body["items"]]


def request_document(rng: random.Random, sequence: int) -> bytes:
    """Return an ECS document: most are of the last minute, some back-dated by up to 30 days, some from the future."""
    now = time.time()
    kind = rng.random()
    offset = -60 * rng.random() if kind < 0.7 else -30 * 86_400 * rng.random() if kind < 0.9 else 3600 * rng.random()
    return (
        b'{"@timestamp":%d,"ecs":{"version":"8.11.0"},"event":{"category":["web"],"dataset":"shop.requests",'
        b'"ingested":%d,"sequence":%d},"http":{"request":{"method":"GET"}},"url":{"original":"/item/%d"},'
        b'"source":{"address":"192.0.2.%d"},"user_agent":{"original":"Mozilla/5.0 (X11; Linux x86_64)"},'
        b'"message":"request %d"}'
        % ((now + offset) * 1000, now * 1000, sequence, rng.randrange(5000), rng.randrange(256), sequence)
    )


class Poller(threading.Thread):
    """The usual poller, for comparison: twice a second, all that is newer than the newest *time_field* seen so far."""

    def __init__(self, cluster: Cluster, pattern: str, time_field: str) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self._cluster, self._pattern, self._field = cluster, pattern, time_field
        self._last = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.5):
            self.poll()

    def end(self) -> None:
        self._done.set()
        self.join()
        self.poll()

    def poll(self) -> None:
        newer = {"range": {self._field: {"gt": self._last, "format": "epoch_millis"}}}
        body: dict[str, Any] = {"size": 5000, "query": newer, "sort": [self._field, "event.sequence"], "_source": False}
        while True:
            answer = self._cluster.request("POST", f"/{self._pattern}/_search", body=body, accept=range(400, 504))
            hits = answer.body["hits"]["hits"] if answer.status == 200 else []
            if not hits:
                break
            self.seen.update(hit["_id"] for hit in hits)
            body["search_after"] = hits[-1]["sort"]
            self._last = max(self._last, hits[-1]["sort"][0])

    def against(self, exists: set[str]) -> dict[str, int]:
        twice = sum(times > 1 for times in self.seen.values())
        return {"lost": len(exists - self.seen.keys()), "doubled": twice}


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How hard a run is. *during* names what else happens half way: node-kill, shrink, restore, match-everything."""

    events: int = 200_000
    writers: int = 8
    kills: int = 20
    seed: int = 1
    during: str = ""

    @property
    def seconds(self) -> float:
        """How long the writers write: long enough for the kills to find the daemon at work."""
        return max(15.0, 2 * KILL_EVERY_S * self.kills, self.events / 5000)


SHORT = Plan(events=20_000, writers=4, kills=4)


@dataclass
class Result:
    """The counts of a run. `wrong` is empty if nothing was missed, doubled, made up or different the second time."""

    server: str
    during: str
    events: int = 0
    acknowledged: int = 0
    deleted: int = 0
    updated: int = 0
    unsure: int = 0
    exists: int = 0
    alerts: int = 0
    alerts_of_gone: int = 0
    missing: int = 0
    double: int = 0
    unknown: int = 0
    differs: int = 0
    kills: int = 0
    kills_at_work: int = 0
    """Kills that struck while something was unread or not delivered, after the start-up."""
    given_up: int = 0
    seconds: float = 0.0
    written_per_s: float = 0.0
    behind_s: float = 0.0
    again_s: float = 0.0
    requests_per_min: dict[str, float] = field(default_factory=dict)
    megabytes_per_min: float = 0.0
    pollers: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def check(self, fact: bool, text: str) -> None:
        if not fact:
            self.wrong.append(text)


def judge(result: Result, oracle: Oracle, exists: set[str], first: Delivered, second: Delivered) -> None:
    """Compare what was acknowledged, what exists and what was alerted, and write it into *result*."""
    alerted = set(first.key.values())
    known = oracle.acknowledged | oracle.unsure
    gone = known - exists
    result.acknowledged, result.deleted, result.updated = map(
        len, (oracle.acknowledged, oracle.deleted, oracle.updated)
    )
    result.unsure, result.exists = len(oracle.unsure), len(exists)
    result.alerts, result.alerts_of_gone = first.times.total(), len(alerted & gone)
    missing, unknown = exists - alerted, alerted - known
    alerts_of = Counter(first.key.values())
    double = {id for id, key in first.key.items() if first.times[id] > 1 or alerts_of[key] > 1}
    if result.during == "shrink" and result.server.startswith("elasticsearch"):
        # Elasticsearch keeps no record of what an index was shrunk from: who comes later takes it for one of its own.
        differs = (set(second.key.values()) ^ alerted) - gone
    else:
        extra = {first.key[id] for id in first.key.keys() - second.key.keys()} - gone
        differs = (second.key.keys() - first.key.keys()) | extra
    result.missing, result.double = len(missing), len(double)
    result.unknown, result.differs = len(unknown), len(differs)
    result.check(not oracle.refused.keys() - {"0 lost"}, f"the cluster refused documents: {dict(oracle.refused)}")
    result.check(not missing, f"missed: {sorted(missing)[:5]}")
    result.check(not double, f"twice: {sorted(double)[:5]}")
    result.check(not unknown, f"alerts for documents never acknowledged: {sorted(unknown)[:5]}")
    result.check(not second.twice, f"twice in the undisturbed run: {second.twice[:5]}")
    result.check(not differs, f"other ids in the undisturbed run: {sorted(differs)[:5]}")


class Exactness:
    """One run of *plan* against *server*; all it makes there has a name of its own."""

    def __init__(self, folder: Path, server: Server, plan: Plan, *, show: bool = False) -> None:
        self.plan, self._server, self._folder, self._show = plan, server, folder, show
        self._rng = random.Random(plan.seed)
        self._run = new_name()
        self._alias = f"logs-exact.{self._run}"
        self._cluster = self._connected()
        self.result = Result(f"{server.flavour} {'.'.join(map(str, self._cluster.version))}", plan.during, plan.events)

    def run(self) -> Result:
        self._set_up()
        proxies = [FaultProxy(url).__enter__() for url in self._server.urls]
        vedette = self._vedette("first", [proxy.url for proxy in proxies])
        try:
            first, seconds = self._disturbed(vedette)
        finally:
            vedette.kill()
            for proxy in proxies:
                proxy.__exit__()
        self._say("comparing")
        requests = sum((proxy.requests for proxy in proxies), Counter[str]())
        self.result.requests_per_min = {name: round(n * 60 / seconds, 1) for name, n in requests.most_common(6)}
        self.result.megabytes_per_min = round(sum(proxy.bytes_read for proxy in proxies) * 60e-6 / seconds, 1)
        exists = {hit["_id"] for hit in scan(self._cluster, self._alias, False)}
        judge(self.result, self._writers.oracle, exists, first, self._undisturbed())
        self.result.pollers = {name: poller.against(exists) for name, poller in self._pollers.items()}
        usual = self.result.pollers["@timestamp"]
        self.result.check(not self.plan.kills or self.result.kills_at_work > 0, "no kill found the daemon at work")
        self.result.check(usual["lost"] + usual["doubled"] > 0, "a plain poller lost nothing: the run was too easy")
        return self.result

    def close(self) -> None:
        """Remove what can be removed."""
        indices = ",".join(self._indices())
        self._cluster.request("DELETE", f"/{indices}", accept=range(400, 504)) if indices else None
        self._cluster.request("DELETE", f"/_index_template/{self._alias}", accept=(404,))
        remove_alert_streams(self._cluster, self._run)
        self._cluster.close()

    def _connected(self) -> Cluster:
        return connect(self._server)

    def _say(self, text: str) -> None:
        if self._show:
            print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr)

    def _set_up(self) -> None:
        replicas = len(self._server.urls) - 1
        put_template(self._cluster, self._alias, f"{self._alias}-*", number_of_replicas=replicas)
        aliases = {self._alias: {"is_write_index": True}}
        self._cluster.request("PUT", f"/{self._alias}-000001", body={"aliases": aliases})
        install_alert_stream(self._cluster, self._run)

    def _indices(self) -> list[str]:
        answer = self._cluster.request("GET", f"/_alias/{self._alias}", accept=(404,))
        return sorted(answer.body) if answer.status == 200 else []

    def _vedette(self, which: str, source: Sequence[str]) -> Vedette:
        pattern = f"logs-*{self._run}*" if self.plan.during == "match-everything" else f"{self._alias}*"
        return Vedette(
            self._folder / which,
            self._server.flavour,
            source=source,
            sink=self._server.urls,
            indices=[pattern],
            namespace=f"{self._run}.{which}",
        )

    # --- the disturbed run --------------------------------------------------------------------------------------------

    def _disturbed(self, vedette: Vedette) -> tuple[Delivered, float]:
        """Write, read and kill; return what was delivered and how long the daemon was at it."""
        plan = self.plan
        self._writers = Writers(
            self._connected,
            self._alias,
            events=plan.events,
            writers=plan.writers,
            seconds=plan.seconds,
            seed=plan.seed,
            own_ids=plan.during == "node-kill",
        )
        fields = ("@timestamp", "event.ingested")
        self._pollers = {name: Poller(self._connected(), f"{self._alias}-*", name) for name in fields}
        start = time.monotonic()
        self._writers.start()
        for poller in self._pollers.values():
            poller.start()
        vedette.launch()
        self._make_trouble(vedette, start)
        self._cluster.request("PUT", f"/{self._alias}/_settings", body={"index": {"refresh_interval": "1s"}})
        self._cluster.request("POST", f"/{self._alias}/_refresh")
        for poller in self._pollers.values():
            poller.end()
        end = time.monotonic()
        oracle = self._writers.oracle
        self.result.written_per_s = round(len(oracle.acknowledged) / self._writers.written_s)
        exists = self._cluster.request("GET", f"/{self._alias}/_count").body["count"]
        self._say(f"written: {len(oracle.acknowledged)}, exist: {exists}; {vedette.books()}")
        vedette.catch_up(exists)
        if plan.during == "match-everything":
            self._must_rest(vedette)
        vedette.keep_up()
        vedette.stop()
        books = vedette.books()
        seconds = time.monotonic() - start
        self.result.seconds, self.result.behind_s = round(seconds, 1), round(time.monotonic() - end, 1)
        self.result.given_up = vedette.given_up
        self.result.check(books.balanced, f"the books do not balance: {books}")
        self.result.check(not books.waiting and not books.refused, f"not all was delivered: {books}")
        return delivered(self._cluster, f"{self._run}.first"), seconds

    def _make_trouble(self, vedette: Vedette, start: float) -> None:
        """Change refresh intervals, roll over, kill, and what the plan names, while the writers write."""
        plan, next_refresh = self.plan, start + 2.0
        patience = self._patience()
        ready_at = moved = start
        stalled = 0
        events: list[tuple[float, Callable[[], None]]] = [
            (0.33, self._roll_over),
            (0.66, self._roll_over),
            *{
                "node-kill": [(0.4, lambda: self._server.kill_node(1)), (0.6, lambda: self._server.start_node(1))],
                "shrink": [(0.5, lambda: self._shrink(vedette))],
                "restore": [(0.5, lambda: self._restore(vedette))],
            }.get(plan.during, []),
        ]
        events.sort(key=lambda event: event[0])
        while self._writers.busy or self.result.kills < plan.kills:
            now = time.monotonic()
            vedette.keep_up()
            if now >= next_refresh:
                next_refresh = now + self._rng.uniform(1.0, 6.0)
                setting = {"index": {"refresh_interval": self._rng.choice(INTERVALS)}}
                self._try("PUT", f"/{self._alias}/_settings", setting)
            if not vedette.ready and patience > 0:
                ready_at = now
            if now >= ready_at + abs(patience) and self.result.kills < plan.kills:
                self._kill(vedette)
                patience, ready_at = self._patience(), time.monotonic()
            acknowledged = len(self._writers.oracle.acknowledged)
            moved = moved if acknowledged == stalled else now
            stalled = acknowledged
            while events and (acknowledged >= events[0][0] * plan.events or now - moved > STALLED_S):
                events.pop(0)[1]()
                moved = now
            time.sleep(0.1)
        for _, event in events:
            event()

    def _patience(self) -> float:
        """Return how many seconds until the next kill: after the start-up, or, negative, after the start."""
        seconds = self._rng.uniform(0.1, 1.5 * KILL_EVERY_S)
        return seconds if self._rng.random() < 0.85 else -seconds

    def _kill(self, vedette: Vedette) -> None:
        ready = vedette.ready
        vedette.kill()
        written, books = len(self._writers.oracle.acknowledged), vedette.books()
        self.result.kills += 1
        self.result.kills_at_work += ready and (books.alerts < written or books.waiting > 0)
        self._say(f"kill {self.result.kills}: {written} written, {books}")
        vedette.launch()

    def _try(self, method: str, path: str, body: Any = None) -> None:
        """Do what may fail while a node is away."""
        try:
            self._cluster.request(method, path, body=body)
        except VedetteError as error:
            if self.plan.during != "node-kill":
                raise
            self._say(f"not done: {error}")

    def _roll_over(self) -> None:
        self._say("rolling over")
        self._try("POST", f"/{self._alias}/_rollover")

    def _read_up(self, vedette: Vedette) -> None:
        """Wait until the daemon has read all that is there; the writers must be paused."""
        self._cluster.request("PUT", f"/{self._alias}/_settings", body={"index": {"refresh_interval": "1s"}})
        self._cluster.request("POST", f"/{self._alias}/_refresh")
        vedette.catch_up(self._cluster.request("GET", f"/{self._alias}/_count").body["count"])
        time.sleep(2.0)

    def _shrink(self, vedette: Vedette) -> None:
        """Do what lifecycle management does with a rolled-over index: one shard, a new name, the old one deleted."""
        index = f"{self._alias}-000001"
        small = f"shrink-ab12-{index}"
        self._say(f"shrinking {index}")
        self._writers.frozen.add(index)
        with self._writers.paused():
            self._read_up(vedette)
            cluster = self._cluster
            cluster.request("PUT", f"/{index}/_settings", body={"index.blocks.write": True})
            target = {
                "settings": {"index.number_of_shards": 1, "index.number_of_replicas": 0, "index.blocks.write": None},
                "aliases": {self._alias: {"is_write_index": False}},
            }
            cluster.request("POST", f"/{index}/_shrink/{small}", body=target)
            cluster.request("GET", f"/_cluster/health/{small}", params={"wait_for_status": "green", "timeout": "60s"})
            cluster.request("DELETE", f"/{index}")

    def _restore(self, vedette: Vedette) -> None:
        """Put an older state of a rolled-over index back under its name; new documents then take the old numbers."""
        index = f"{self._alias}-000001"
        self._say(f"restoring {index}")
        self._writers.frozen.add(index)
        with self._writers.paused(), snapshot(self._cluster, index) as restore:
            self._writers.write_into(index, 300, "lost")
            self._read_up(vedette)
            self._cluster.request("POST", f"/{index}/_close")
            restore()
            self._writers.write_into(index, 300, "after")

    def _must_rest(self, vedette: Vedette) -> None:
        """The daemon must not read its own alerts: nothing more comes once the writers are done."""
        before = vedette.books()
        time.sleep(10.0)
        after = vedette.books()
        self.result.check(before == after, f"it does not come to rest: {before}, then {after}")

    # --- the undisturbed run ------------------------------------------------------------------------------------------

    def _undisturbed(self) -> Delivered:
        vedette = self._vedette("second", self._server.urls)
        start = time.monotonic()
        code = vedette.once(900)
        self.result.again_s = round(time.monotonic() - start, 1)
        self.result.check(code == 0, f"the undisturbed run ended with {code}: {vedette.log}")
        return delivered(self._cluster, f"{self._run}.second")


def run(folder: Path, server: Server, plan: Plan, *, show: bool = False) -> Result:
    """Run *plan* against *server* with *folder* for the daemons' files, and remove what it made in the cluster."""
    exactness = Exactness(folder, server, plan, show=show)
    try:
        return exactness.run()
    finally:
        exactness.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="elasticsearch:8", help="flavour:major, as tests/servers.py has it")
    parser.add_argument("--events", type=int, default=Plan.events)
    parser.add_argument("--writers", type=int, default=Plan.writers)
    parser.add_argument("--kills", type=int, default=Plan.kills)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--short", action="store_true", help="few events, few kills")
    parser.add_argument("--json", type=Path)
    for variant in ("node-kill", "shrink", "restore", "match-everything"):
        parser.add_argument(f"--{variant}", dest="during", action="store_const", const=variant, default="")
    given = parser.parse_args()
    events, writers, kills = (SHORT.events, SHORT.writers, SHORT.kills) if given.short else (
        given.events, given.writers, given.kills)  # fmt: skip
    plan = Plan(events, writers, kills, given.seed, given.during)
    flavour, _, major = given.server.partition(":")
    nodes = 2 if plan.during == "node-kill" else 1
    with tempfile.TemporaryDirectory() as folder, start(flavour, int(major), nodes=nodes) as server:
        result = run(Path(folder), server, plan, show=True)
    text = json.dumps(asdict(result), indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
