"""Reading a SIEM: how fast, how late, and at what price to the cluster. On a real server, with 3,600 rules.

    python -m tests.bench.bench_siem [--server elasticsearch:8] [--events N] [--pairs N] [--json FILE]

Throughput: Windows events of ``mordor``, repeated to *N*, in an index of two shards. In turn, each in a process of
its own: a bare read (the flavour's client and its default decoder, a thread a shard, pages of 5,000 whole documents,
nothing done with them) and ``vedette run --once`` from the earliest event to the alert stream on the same server.
Vedette's time runs from its log line "started" to the first look (every 20 ms) that finds all events in the books and
no alert waiting; start-up, with the rules cached, is shown apart.

Latency: a daemon beside a writer of a fixed rate, one event in a thousand hitting a rule of the benchmark's own. From
the last look (every 20 ms) that a search did not find the event, to the first (every 10 ms) that finds its alert stored
and settled, which is after the answer to its bulk request: both errors make it look later. `total` begins before the
event's own bulk request, so it holds the wait for the refresh (1 s) as well.

Budget: requests and bytes that a metering proxy sees of such a daemon at rest and under load, beside those of pollers:
at least one search a rule and minute. ElastAlert2 (ELASTALERT: its program) is run with 50 rules if it is there.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from agent.store import Reader
from connectors.siem.client import Access, Cluster, FlavourName
from tests.bench.bench_scan import DATA, unpack_rules, write_events
from tests.faults.proxy import FaultProxy
from tests.servers import start
from tests.signing import signed

SHARDS = 2
PAGE = 5_000
BULK = 4_000
STEADY_RATE = 2_000
"""Events a second of the latency's first load, and of the budget."""
WARM_UP_S, LOAD_S, REST_S = 15, 60, 60
TICK_S = 0.05
LOOK_S, SETTLED_LOOK_S = 0.02, 0.01
ONE_IN = 1_000
POLLED_RULES = 2_400
PEER_RULES, PEER_MINUTES = 50, 3
END_S = 900

MARK = "vedette-bench.exe"
RULE_ID = "5f0f1f6e-3b8e-4b0e-9c58-1f8f3d8a7c11"
RULE = f"""
title: The benchmark's own process
id: {RULE_ID}
status: test
level: low
logsource: {{product: windows, category: process_creation}}
detection: {{selection: {{Image|endswith: '\\{MARK}'}}, condition: selection}}
"""
MARKED = {
    "Channel": "Microsoft-Windows-Sysmon/Operational",
    "SourceName": "Microsoft-Windows-Sysmon",
    "EventID": 1,
    "Hostname": "BENCH",
    "Image": f"C:\\Windows\\{MARK}",
    "CommandLine": MARK,
    "ProcessId": "4711",
    "User": "BENCH\\bench",
}
CONFIG = """
sources:
  logs: {{type: {flavour}, hosts: ["{source}"], indices: ["{index}"], start: {start}}}
detectors:
  rules: {{type: sigma, path: "{rules}"}}
sinks:
  siem: {{type: {flavour}, hosts: ["{sink}"], namespace: {namespace}}}
streams:
  main: {{source: logs, detectors: [rules], sinks: [siem]}}
alerts: {{max_per_rule_and_hour: 100000000}}
"""
PEER_CONFIG = """
es_host: {host}
es_port: {port}
rules_folder: {rules}
run_every: {{minutes: 1}}
buffer_time: {{minutes: 15}}
writeback_index: {writeback}
alert_time_limit: {{days: 2}}
"""
PEER_RULE = """
name: bench-{number}
type: any
index: {index}
filter: [{{query_string: {{query: "Image.keyword: *tool{number}.exe"}}}}]
alert: [debug]
"""


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A server under test. *group*: its process group, if it was started here."""

    flavour: FlavourName
    url: str
    cluster: Cluster
    name: str
    """What everything that is made on the server begins with."""
    group: int | None = None

    def cpu(self) -> float:
        """Return the CPU seconds that the server has used so far; not a number where that cannot be known."""
        return math.nan if self.group is None else group_cpu(self.group)

    def make_index(self, index: str, refresh: str) -> None:
        settings = {"number_of_shards": SHARDS, "number_of_replicas": 0, "refresh_interval": refresh}
        mappings = {"dynamic": False, "properties": {"@timestamp": {"type": "date"}}}
        self.cluster.request("PUT", f"/{index}", body={"settings": settings, "mappings": mappings})

    def clean(self) -> None:
        """Remove what was made, one by one, for servers refuse patterns; alert streams where there is that API."""
        found = self.cluster.request("GET", f"/_resolve/index/{self.name}*,logs-vedette.alert-{self.name}*").body
        paths = [f"/{one['name']}" for one in found["indices"]]
        paths += [f"/_data_stream/{one['name']}" for one in found["data_streams"]]
        for path in paths:
            self.cluster.request("DELETE", path, accept=range(400, 500))


@contextmanager
def site(server: str) -> Iterator[Site]:
    """Start a server, such as ``elasticsearch:8``, or connect to the one that tests/servers.py takes in its place."""
    kind, _, major = server.partition(":")
    flavour: FlavourName = "opensearch" if kind == "opensearch" else "elasticsearch"
    with start(flavour, int(major), full_jit=True, heap="2g") as started:
        process = started._nodes[0].process if started._nodes else None
        group = process.pid if process else None
        found = Site(flavour, started.url, connect(started.url, flavour), f"bench{os.getpid()}", group)
        try:
            yield found
        finally:
            found.clean()


def connect(url: str, flavour: FlavourName) -> Cluster:
    cluster = Cluster("bench", flavour, Access(hosts=[url], timeout_s=120))
    cluster.connect()
    return cluster


def process_cpu(process: int | str) -> float:
    """Return user and system seconds of a process; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def group_cpu(group: int) -> float:
    total = 0.0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(path.name)) == group:
                total += process_cpu(path.name)
    return total


def fill(site: Site, index: str, source: Path, number: int) -> None:
    """Write the lines of *source*, over and over, until there are *number*."""
    site.make_index(index, "-1")
    lines = islice(repeated(source), number)
    while part := list(islice(lines, BULK)):
        body = b"".join(b'{"create":{}}\n' + line for line in part)
        if site.cluster.request("POST", f"/{index}/_bulk", body=body).body["errors"]:
            raise SystemExit("the server has refused an event")
    site.cluster.request("PUT", f"/{index}/_settings", body={"index": {"refresh_interval": "1s"}})
    site.cluster.request("POST", f"/{index}/_refresh")


def repeated(source: Path) -> Iterator[bytes]:
    while True:
        with source.open("rb") as lines:
            yield from lines


# --- a bare read ------------------------------------------------------------------------------------------------------


def read_bare(flavour: FlavourName, url: str, index: str) -> dict[str, float]:
    """Read every document of *index* as fast as its flavour's client can; return events, seconds and CPU seconds."""
    search = _elasticsearch(url, index) if flavour == "elasticsearch" else _opensearch(url, index)

    def read(shard: int) -> int:
        number = 0
        hits = search(shard, None)
        while hits:
            number += len(hits)
            hits = search(shard, hits[-1]["sort"]) if len(hits) == PAGE else []
        return number

    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(SHARDS) as pool:
        events = sum(pool.map(read, range(SHARDS)))
    return {"events": events, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _body(after: Sequence[Any] | None) -> dict[str, Any]:
    body = {"size": PAGE, "sort": [{"_seq_no": "asc"}], "track_total_hits": False}
    return body if after is None else {**body, "search_after": after}


def _elasticsearch(url: str, index: str) -> Any:
    from elasticsearch import Elasticsearch

    client = Elasticsearch(url, request_timeout=120)

    def search(shard: int, after: Sequence[Any] | None) -> Any:
        return client.search(index=index, preference=f"_shards:{shard}", request_cache=False, **_body(after))["hits"][
            "hits"
        ]

    return search


def _opensearch(url: str, index: str) -> Any:
    from elastic_transport import NodeConfig, Transport

    parts = urlsplit(url)
    transport = Transport(
        [NodeConfig(parts.scheme, parts.hostname or "", parts.port or 9200, request_timeout=120)], meta_header=False
    )
    headers = {"content-type": "application/json", "accept": "application/json"}

    def search(shard: int, after: Sequence[Any] | None) -> Any:
        target = f"/{index}/_search?preference=_shards:{shard}&request_cache=false"
        return transport.perform_request("POST", target, headers=headers, body=_body(after)).body["hits"]["hits"]

    return search


# --- Vedette ----------------------------------------------------------------------------------------------------------


class Vedette:
    """The real process over a data folder of its own, from `__enter__` until it has ended."""

    def __init__(
        self, folder: Path, site: Site, index: str, rules: Path, *, start: str, hosts: Sequence[str] = (), once: bool
    ) -> None:
        """*hosts*: of source and sink, where they are not the site's. The cache of rules beside *folder* is used."""
        self.data = folder / "data"
        self.rules = 0
        self.started_s = 0.0
        self.started = threading.Event()
        self._cache = folder.parent / "cache"
        if self._cache.exists():
            shutil.copytree(self._cache, self.data / "cache")
        source, sink = hosts or (site.url, site.url)
        namespace = f"{site.name}.{folder.name}"
        text = CONFIG.format(flavour=site.flavour, source=source, sink=sink, index=index, start=start, rules=rules,
                             namespace=namespace)  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "vedette.yml"
        config.write_text(text)
        self._command = [sys.executable, "-m", "agent", "run", "-b", str(signed(config, self.data))]
        self._command += ["--once"] if once else []
        self._setup = [sys.executable, "-m", "agent", "setup", "-c", str(config)]
        self._once = once
        self._log: list[str] = []

    def __enter__(self) -> Vedette:
        subprocess.run(self._setup, check=True, stdout=subprocess.DEVNULL)
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        if not self.started.wait(END_S) or self._process.poll() is not None:
            self._process.kill()
            raise SystemExit("vedette did not start:\n" + "\n".join(self._log[-20:]))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self._once:
            self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        self._reading.join()
        if code and kind is None:
            raise SystemExit(f"vedette ended with {code}:\n" + "\n".join(self._log[-20:]))
        if not self._cache.exists() and (self.data / "cache").exists():
            shutil.copytree(self.data / "cache", self._cache)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line.rstrip())
            with suppress(ValueError):
                said = json.loads(line)
                if said["message"] == "plan":
                    self.rules = said["vedette.rules"]
                elif said["message"] == "started":
                    self.started_s = time.perf_counter()
                    self.started.set()
        self.started.set()

    def cpu(self) -> float:
        return process_cpu(self._process.pid)

    def await_books(self, received: int, seconds: float = END_S) -> bool:
        """Return once *received* events are in the books and no alert waits; whether that was in time."""
        end = time.monotonic() + seconds
        with Reader(self.data) as reader:
            while not (done := self.received(reader) >= received and not reader.waiting("siem", 1)):
                if time.monotonic() > end:
                    break
                time.sleep(LOOK_S)
        return done

    @staticmethod
    def received(reader: Reader) -> int:
        rows = reader.rows("SELECT value FROM counter WHERE scope = 'main' AND name = 'received'")
        return int(rows[0][0]) if rows else 0


def run_once(folder: Path, site: Site, index: str, rules: Path, events: int) -> dict[str, float]:
    """Let Vedette read *events* of *index*; return what that took."""
    begun, server = time.perf_counter(), site.cpu()
    with Vedette(folder, site, index, rules, start="earliest", once=True) as vedette:
        started, before, server = vedette.started_s, vedette.cpu(), site.cpu()
        if not vedette.await_books(events):
            raise SystemExit("vedette did not read all events:\n" + "\n".join(vedette._log[-20:]))
        row = {"events": events, "wall_s": time.perf_counter() - started, "cpu_s": vedette.cpu() - before}
        row |= {"start_s": started - begun, "start_cpu_s": before, "server_cpu_s": site.cpu() - server}
    with Reader(vedette.data) as reader:
        (row["alerts"],) = reader.rows("SELECT count(*) FROM alert")[0]
    return row | {"rules": vedette.rules}


# --- throughput -------------------------------------------------------------------------------------------------------


def throughput(site: Site, folder: Path, rules: Path, events: Path, number: int, pairs: int) -> dict[str, Any]:
    index = f"{site.name}-throughput"
    fill(site, index, events, number)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for pair in range(pairs + 1):
            server = site.cpu()
            bare = pool.submit(read_bare, site.flavour, site.url, index).result()
            bare["server_cpu_s"] = site.cpu() - server
            ours = run_once(folder / f"pair{pair}", site, index, rules, number)
            if bare["events"] != number:
                raise SystemExit(f"the bare read found {bare['events']} of {number} events")
            ratio = bare["wall_s"] / ours["wall_s"]
            say_pair(pair, bare, ours, ratio)
            if pair:  # the first fills the rule cache and warms the server
                rows.append({"ratio": ratio, "load_1min": os.getloadavg()[0], "bare": bare, "vedette": ours})
    reads, runs = [row["bare"] for row in rows], [row["vedette"] for row in rows]
    return {
        "shards": SHARDS,
        "rules": runs[0]["rules"],
        "alerts": runs[0]["alerts"],
        "bare": middle(reads),
        "vedette": middle(runs),
        "ratio": extent([row["ratio"] for row in rows]),
        "client_cpu_ratio": extent([a["cpu_s"] / b["cpu_s"] for a, b in zip(reads, runs, strict=True)]),
        "load_1min": [round(row["load_1min"], 1) for row in rows],
    }


def extent(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def middle(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return medians of what the runs took, and the events a wall second of each run."""
    names = [name for name in rows[0] if name.endswith("_s") and not math.isnan(rows[0][name])]
    each = sorted(round(row["events"] / row["wall_s"]) for row in rows)
    medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in names}
    return {"events_per_s": round(statistics.median(each)), "events_per_s_each": each, **medians}


def say_pair(pair: int, bare: Mapping[str, float], ours: Mapping[str, float], ratio: float) -> None:
    name = f"pair {pair}" if pair else "warm-up"
    print(f"{name:8} bare {bare['wall_s']:5.2f} s, {bare['cpu_s']:5.2f} CPU s, server {bare['server_cpu_s']:5.2f};"
          f"  vedette {ours['wall_s']:5.2f} s, {ours['cpu_s']:5.2f} CPU s, server {ours['server_cpu_s']:5.2f}"
          f"  (start {ours['start_s']:.1f} s);  ratio {ratio:.2f}, load {os.getloadavg()[0]:.1f}",
          flush=True)  # fmt: skip


# --- latency ----------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Writes *events* at a fixed rate and follows those of its own on their way to the alert; times are wall times."""

    cluster: Cluster
    index: str
    events: Iterator[bytes]
    rate: int
    data: Path
    written: int = 0
    begun: dict[str, float] = field(default_factory=dict)
    unseen: dict[str, float] = field(default_factory=dict)
    """When a search did not find it, for the last time so far."""
    seen: set[str] = field(default_factory=set)
    delivered: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, seconds: float) -> float:
        """Write for so long, wait for the alerts that are due, and return the rate that was reached."""
        self._ended = threading.Event()
        self._failures: list[BaseException] = []
        watchers = [threading.Thread(target=self._guard, args=(each,)) for each in (self._look, self._settled)]
        for one in watchers:
            one.start()
        before = self.written
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds and not self._failures:
            self._write(name, min(int(passed * self.rate) + before - self.written, 2 * BULK))
            time.sleep(max(0.0, TICK_S - (time.monotonic() - begun - passed)))
        taken = time.monotonic() - begun
        end = time.monotonic() + 60
        while len(self.delivered) < len(self.begun) and time.monotonic() < end and not self._failures:
            time.sleep(0.05)
        self._ended.set()
        for one in watchers:
            one.join()
        if self._failures:
            raise self._failures[0]
        return (self.written - before) / taken

    def _guard(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            self._failures.append(error)

    def _write(self, name: str, number: int) -> None:
        if number <= 0:
            return
        lines = []
        for place in range(self.written, self.written + number):
            if place % ONE_IN:
                lines.append(b'{"create":{}}\n' + next(self.events))
            else:
                id, now = f"{name}-{place}", time.time()
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e3):03}Z"
                event = MARKED | {"@timestamp": stamp, "ProcessGuid": id}
                lines.append(b'{"create":{"_id":"%s"}}\n%s\n' % (id.encode(), orjson.dumps(event)))
                self.begun[id] = now
        answer = self.cluster.request("POST", f"/{self.index}/_bulk", body=b"".join(lines)).body
        if answer["errors"]:
            raise SystemExit("the server has refused an event")
        self.written += number

    def _look(self) -> None:
        """Note of each event of ours when it was not to be found for the last time."""
        while not self._ended.wait(LOOK_S):
            ids = [id for id in list(self.begun) if id not in self.seen]
            if not ids:
                continue
            at = time.time()
            body = {"size": len(ids), "_source": False, "query": {"ids": {"values": ids}}}
            answer = self.cluster.request("POST", f"/{self.index}/_search", body=body).body
            found = {hit["_id"] for hit in answer["hits"]["hits"]}
            self.seen |= found
            self.unseen |= {id: at for id in ids if id not in found}

    def _settled(self) -> None:
        """Note when the alert of each event of ours was first seen stored and waiting for the sink no more."""
        last, waiting = 0, dict[int, str]()
        sql = "SELECT number, rule_id, document FROM alert WHERE number > ? ORDER BY number"
        with Reader(self.data) as reader:
            while not self._ended.wait(SETTLED_LOOK_S):
                for number, rule, document in reader.rows(sql, last):
                    last = number
                    if rule == RULE_ID:
                        waiting[number] = orjson.loads(document)["vedette"]["evidence"]["records"][0]["key"]
                held = {number for (number,) in reader.rows("SELECT alert FROM outbox")} if waiting else set()
                now = time.time()
                for number in waiting.keys() - held:
                    self.delivered[waiting.pop(number)] = now


def latency(site: Site, folder: Path, rules: Path, events: Sequence[bytes], rate: int) -> dict[str, Any]:
    """Return the latencies at *rate* events a second, after a warm-up."""
    index = f"{site.name}-latency-{rate}"
    site.make_index(index, "1s")
    with Vedette(folder / f"latency{rate}", site, index, rules, start="earliest", once=False) as vedette:
        load = Load(connect(site.url, site.flavour), index, cycle(events), rate, vedette.data)
        load.run("warm", WARM_UP_S)
        warm, cpu, server = set(load.begun), vedette.cpu(), site.cpu()
        reached = load.run("hit", LOAD_S)
        facts = {"cpu_s": vedette.cpu() - cpu, "server_cpu_s": site.cpu() - server}
        kept_up = vedette.await_books(load.written, 10)
    ids = [id for id in load.begun if id not in warm and id in load.delivered]
    missing = len(load.begun) - len(warm) - len(ids)
    visible = [load.delivered[id] - max(load.unseen.get(id, 0.0), load.begun[id]) for id in ids]
    return {
        "rate": rate,
        "reached": round(reached),
        "seconds": LOAD_S,
        "alerts_followed": len(ids),
        "alerts_not_in_time": missing,
        "kept_up": kept_up,
        "searchable_to_delivered_s": spread(visible),
        "total_s": spread([load.delivered[id] - load.begun[id] for id in ids]),
        **{name: round(value, 2) for name, value in facts.items() if not math.isnan(value)},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile (nearest rank) and maximum; nothing of nothing."""
    ranked = sorted(values)
    places = {"p50": math.ceil(0.5 * len(ranked)), "p99": math.ceil(0.99 * len(ranked)), "max": len(ranked)}
    return {name: round(ranked[place - 1], 3) for name, place in places.items()} if ranked else {}


# --- what it costs the cluster ----------------------------------------------------------------------------------------


class Meter:
    """Counts what passes two proxies, one before the source and one before the sink, a minute."""

    def __init__(self, source: FaultProxy, sink: FaultProxy) -> None:
        self._proxies = {"source": source, "sink": sink}

    def _read(self) -> dict[str, tuple[Counter[str], int]]:
        return {name: (Counter(proxy.requests), proxy.bytes_read) for name, proxy in self._proxies.items()}

    @contextmanager
    def minute(self, facts: dict[str, Any]) -> Iterator[None]:
        """Put into *facts* what was spent inside, by the minute."""
        before, begun = self._read(), time.monotonic()
        yield
        minutes = (time.monotonic() - begun) / 60
        for name, (requests, read) in self._read().items():
            spent = requests - before[name][0]
            kinds: Counter[str] = Counter()
            for path, number in spent.items():
                kinds[{"_search": "searches", "refresh": "_stats", "_bulk": "bulks"}.get(path, "other")] += number
            facts[name] = {kind: round(kinds[kind] / minutes, 1) for kind in ("searches", "_stats", "bulks", "other")}
            facts[name]["MB_read"] = round((read - before[name][1]) / minutes / 1e6, 2)


def budget(site: Site, folder: Path, rules: Path, events: Sequence[bytes]) -> dict[str, Any]:
    index = f"{site.name}-budget"
    site.make_index(index, "1s")
    facts: dict[str, Any] = {"indices": 1, "shards": SHARDS, "rest": {}, "load": {"rate": STEADY_RATE}}
    with FaultProxy(site.url) as source, FaultProxy(site.url) as sink:
        hosts, meter = (source.url, sink.url), Meter(source, sink)
        with Vedette(folder / "budget", site, index, rules, start="earliest", hosts=hosts, once=False) as vedette:
            load = Load(connect(site.url, site.flavour), index, cycle(events), STEADY_RATE, vedette.data)
            load.run("warm", WARM_UP_S)
            time.sleep(REST_S)
            for name in ("rest", "load"):
                cpu, server = vedette.cpu(), site.cpu()
                with meter.minute(facts[name]):
                    if name == "rest":
                        time.sleep(REST_S)
                    else:
                        load.run("load", LOAD_S)
                facts[name] |= {"cpu_s": round(vedette.cpu() - cpu, 2)}
                if site.group:
                    facts[name] |= {"server_cpu_s": round(site.cpu() - server, 2)}
    return facts


def peer(site: Site, folder: Path) -> dict[str, Any] | str:
    """Return what ElastAlert2 asks of the cluster at rest with a few rules, or how to get it."""
    program = os.environ.get("ELASTALERT") or shutil.which("elastalert")
    if not program:
        return "not installed: pip install elastalert2 in an environment of its own, and set ELASTALERT"
    rules = folder / "elastalert" / "rules"
    rules.mkdir(parents=True)
    for number in range(PEER_RULES):
        (rules / f"{number}.yml").write_text(PEER_RULE.format(number=number, index=f"{site.name}-budget"))
    facts: dict[str, Any] = {"rules": PEER_RULES, "minutes": PEER_MINUTES}
    with FaultProxy(site.url) as proxy, FaultProxy(site.url) as unused:
        parts = urlsplit(proxy.url)
        config = folder / "elastalert" / "config.yaml"
        config.write_text(PEER_CONFIG.format(host=parts.hostname, port=parts.port, rules=rules,
                                             writeback=f"{site.name}-elastalert"))  # fmt: skip
        log = folder / "elastalert" / "log.txt"
        with log.open("wb") as out:
            create = Path(program).with_name("elastalert-create-index")
            made = subprocess.run([create, "--config", config], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                  check=False)  # fmt: skip
            process = subprocess.Popen([program, "--config", config, "--verbose"], stdout=out, stderr=out)
            time.sleep(20)
            cpu = process_cpu(process.pid)
            with Meter(proxy, unused).minute(facts):
                time.sleep(60 * PEER_MINUTES)
            ended = process.poll()
            facts["cpu_s_a_minute"] = round((process_cpu(process.pid) - cpu) / PEER_MINUTES, 2)
            process.kill()
            process.wait()
    if made.returncode or ended is not None:
        return "it does not run against this server: " + log.read_text(errors="replace")[-600:]
    spent: dict[str, Any] = facts.pop("source")
    del facts["sink"]
    return facts | spent


# --- all of it --------------------------------------------------------------------------------------------------------


def measure(site: Site, number: int, pairs: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "server": f"{site.flavour} {'.'.join(map(str, site.cluster.version))}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "events": number,
    }
    with tempfile.TemporaryDirectory(prefix="vedette-bench-") as name:
        folder = Path(name)
        events = folder / "events.jsonl"
        write_events(events)
        unpack_rules(rules := folder / "sigma")
        shutil.rmtree(rules / "specification", ignore_errors=True)
        (rules / "bench.yml").write_text(RULE)
        facts["throughput"] = throughput(site, folder, rules, events, number, pairs)
        with events.open("rb") as lines:
            some = list(islice(lines, 0, None, 5))
        half = round(facts["throughput"]["vedette"]["events_per_s"] / 2, -2)
        facts["latency"] = []
        for rate in (STEADY_RATE, int(half)):
            facts["latency"].append(latency(site, folder, rules, some, rate))
            print("latency", facts["latency"][-1], flush=True)
        facts["budget_per_minute"] = budget(site, folder, rules, some)
        print("budget", facts["budget_per_minute"], flush=True)
        facts["poller_per_minute"] = {
            "by_arithmetic": {"rules": POLLED_RULES, "interval_s": 60, "searches": POLLED_RULES},
            "elastalert2": peer(site, folder),
        }
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="elasticsearch:8")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"no test data in {DATA}: set VEDETTE_TEST_DATA")
        return 0
    with site(options.server) as where:
        facts = measure(where, options.events, options.pairs)
    say(facts)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


def say(facts: Mapping[str, Any]) -> None:
    speed, ratio = facts["throughput"], facts["throughput"]["ratio"]
    print(f"\n{facts['server']}: {facts['events']:,} events, {speed['rules']:,} rules, {speed['alerts']:,} alerts")
    for name in ("bare", "vedette"):
        row = speed[name]
        print(f"{name:8} {row['events_per_s']:>7,} events/s  {row['wall_s']:6.2f} s  {row['cpu_s']:6.2f} CPU s"
              f"  server {row.get('server_cpu_s', math.nan):6.2f} CPU s")  # fmt: skip
    print(
        f"vedette reads {ratio['median']:.2f} times as fast as a bare read ({ratio['min']:.2f} to {ratio['max']:.2f})"
    )
    for row in facts["latency"]:
        print(f"at {row['reached']:,} events/s: searchable to delivered {row['searchable_to_delivered_s']} s,"
              f" total {row['total_s']} s, {row['alerts_followed']} alerts")  # fmt: skip
    for name in ("rest", "load"):
        print(f"a minute, {name}: {facts['budget_per_minute'][name]}")
    print(f"a poller with {POLLED_RULES:,} rules: {POLLED_RULES:,} searches a minute, at rest as under load")
    print(f"ElastAlert2: {facts['poller_per_minute']['elastalert2']}")


if __name__ == "__main__":
    sys.exit(main())
