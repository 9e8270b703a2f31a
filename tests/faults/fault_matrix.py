"""Every fault at every request: what the real process makes of a bad network and a struggling cluster.

A cell is a request (what the source and the sink ask), a fault and how far the struck request got. `vedette run --once`
reads the same few hundred events in each cell, through a proxy that strikes the first and the third such request, and
writes one alert for each. Where it gives up at the start, because it cannot reach the cluster, it is started again as a
service manager would. Then the books must balance, each event must have one alert in the SIEM, and nothing may wait.

    python -m tests.faults.fault_matrix --server elasticsearch:8 --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from connectors.siem.client import Cluster
from tests.faults.exactness import (
    Vedette,
    connect,
    delivered,
    install_alert_stream,
    new_name,
    put_template,
    remove_alert_streams,
    request_document,
)
from tests.faults.proxy import BROKEN, FAULTS, ITEMS, PARTIAL, STATUSES, WHEN, Fault, FaultProxy, Match, When
from tests.servers import Server, start

Side: TypeAlias = Literal["source", "sink"]

EVENTS = 300
BATCH = 50
STARTS = 4
"""How often the process may be started for one cell."""
TIMEOUT_S = 2.0
CELL_S = 60.0
GONE = "https://gone.invalid:9200"
HEAP = "2g"
"""Each cell leaves two data streams behind, which not every server can delete."""
REQUESTS: dict[tuple[Side, str], str] = {
    ("source", "search"): "search",
    ("source", "stats"): "/_stats",
    ("source", "resolve"): "/_resolve",
    ("source", "settings"): "/_settings",
    ("sink", "resolve"): "/_resolve",
    ("sink", "bulk"): "/_bulk",
    ("sink", "mget"): "/_mget",
}
"""By side and request, the part of the path that tells it."""


@dataclass(frozen=True)
class Cell:
    """What is struck, with what, and how far the request got; *request* ``dns`` is a host name that is gone."""

    side: Side
    request: str
    fault: str
    when: When

    def __str__(self) -> str:
        return f"{self.side} {self.request} {self.fault} {self.when}"


@dataclass(frozen=True)
class Outcome:
    """What a cell came to; `wrong` is empty if nothing was lost, doubled or left waiting."""

    cell: Cell
    struck: int
    codes: tuple[int | None, ...]
    seconds: float
    wrong: tuple[str, ...]


def cells() -> list[Cell]:
    """Return every cell that means something.

    Left out: items that fail in requests without items, a gap in answers that tell of no shard, and a 409 for an item
    that did not reach the server, which no server says.
    """
    found = []
    for side, request in REQUESTS:
        found += [Cell(side, request, fault.name, when) for fault in (*STATUSES, *BROKEN) for when in WHEN]
        if request in ("search", "stats"):
            found.append(Cell(side, request, PARTIAL.name, "after"))
        if request == "mget":
            found += [Cell(side, request, f"item-{status}", "after") for status in (429, 503)]
        if request == "bulk":
            found += [Cell(side, request, fault.name, when) for fault in ITEMS if fault.status != 409 for when in WHEN]
            found.append(Cell(side, request, "item-409", "after"))
    found += [Cell(side, "dns", fault, "before") for side in ("source", "sink") for fault in ("alone", "beside")]
    return found


def sample(each: int, seed: int = 1) -> list[Cell]:
    """Return *each* cells of every request, the same ones for the same *seed*."""
    shuffled = cells()
    random.Random(seed).shuffle(shuffled)
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for cell in shuffled:
        seen[cell.side, cell.request] += 1
        if seen[cell.side, cell.request] <= each:
            chosen.append(cell)
    return chosen


class Matrix:
    """The cells over one cluster: what all share is written at the start and removed by `close`."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder, self._server, self._run = folder, server, new_name()
        self._index = f"logs-matrix.{self._run}"
        self._cluster = connect(server)
        install_alert_stream(self._cluster, self._run)
        self._events = _write_events(self._cluster, self._index)

    def close(self) -> None:
        self._cluster.request("DELETE", f"/{self._index}", accept=(404,))
        self._cluster.request("DELETE", f"/_index_template/{self._index}", accept=(404,))
        remove_alert_streams(self._cluster, self._run)
        self._cluster.close()

    def run(self, cells: Iterable[Cell], *, workers: int = 2, show: bool = False) -> list[Outcome]:
        def one(numbered: tuple[int, Cell]) -> Outcome:
            outcome = self.strike(*numbered)
            if show:
                print(_line(outcome), file=sys.stderr)
            return outcome

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, enumerate(cells)))

    def strike(self, number: int, cell: Cell) -> Outcome:
        """Run the process through *cell* in a folder and a data stream of its own."""
        namespace = f"{self._run}.{number}"
        (url, *_), begun = self._server.urls, time.monotonic()
        with FaultProxy(url) as source, FaultProxy(url) as sink:
            vedette = Vedette(
                self._folder / f"{number}",
                self._server.flavour,
                source=[source.url],
                sink=[sink.url],
                indices=[self._index],
                namespace=namespace,
                timeout_s=TIMEOUT_S,
                batch=BATCH,
            )
            proxy = source if cell.side == "source" else sink
            codes: list[int | None] = []
            if cell.request == "dns":
                hosts = [GONE] if cell.fault == "alone" else [GONE, proxy.url]
                vedette.configure(**{cell.side: json.dumps(hosts)})
                if cell.fault == "alone":
                    codes.append(vedette.once(10))
                    vedette.configure(**{cell.side: json.dumps([proxy.url])})
            else:
                _script(proxy, cell)
            while (not codes or codes[-1] != 0) and len(codes) < STARTS:
                codes.append(vedette.once(CELL_S))
        struck = 1 if cell.request == "dns" else sum(strike.fault == cell.fault for strike in proxy.struck)
        wrong = tuple(self._judge(vedette, cell, namespace, codes, struck))
        return Outcome(cell, struck, tuple(codes), round(time.monotonic() - begun, 1), wrong)

    def _judge(
        self, vedette: Vedette, cell: Cell, namespace: str, codes: Sequence[int | None], struck: int
    ) -> Iterable[str]:
        """Yield what is wrong after the last run."""
        if not struck:
            yield "nothing struck"
        allowed: set[int | None] = {0, 5}
        if cell.fault == "status-401":
            allowed.add(3)  # by all that it can know at the start, only a person can mend that
        elif cell.request == "dns":
            allowed.add(None)  # it waits for the name
        if codes[-1] != 0 or not set(codes) <= allowed:
            yield f"exit codes {list(codes)}: {vedette.log[-300:]}"
        books = vedette.books()
        if not books.balanced or books.received != EVENTS:
            yield f"the books do not balance: {books}"
        if books.waiting or books.refused:
            yield f"{books.waiting} alerts wait, {books.refused} are refused"
        found = delivered(self._cluster, namespace)
        keys = Counter(found.key.values())
        if missing := self._events - keys.keys():
            yield f"{len(missing)} events without an alert"
        if unknown := keys.keys() - self._events:
            yield f"{len(unknown)} alerts for no event"
        if twice := [*found.twice, *(key for key, times in keys.items() if times > 1)]:
            yield f"{len(twice)} twice"


def _write_events(cluster: Cluster, index: str) -> set[str]:
    put_template(cluster, index, index, number_of_replicas=0)
    rng = random.Random(5)
    ids = [f"e{number}" for number in range(EVENTS)]
    lines = [line for number, id in enumerate(ids) for line in (
        b'{"create":{"_id":"%s"}}' % id.encode(), request_document(rng, number))]  # fmt: skip
    answer = cluster.request("POST", f"/{index}/_bulk", params={"refresh": True}, body=b"\n".join([*lines, b""]))
    assert not answer.body["errors"], answer.body
    return set(ids)


def _script(proxy: FaultProxy, cell: Cell) -> None:
    """Strike the first and the third such request. A multi-get only follows a bulk whose answer was lost."""
    if cell.request == "mget":
        proxy.script(Fault("lost answer", "reset"), match=_odd("/_bulk"), when="after", times=2)
    proxy.script(FAULTS[cell.fault], match=_odd(REQUESTS[cell.side, cell.request]), when=cell.when, times=2)


def _odd(part: str) -> Match:
    """Match the first, third, ... request with *part* in its path."""
    seen = 0

    def match(method: str, path: str) -> bool:
        nonlocal seen
        fits = part in path.partition("?")[0]
        seen += fits
        return fits and seen % 2 == 1

    return match


def _line(outcome: Outcome) -> str:
    state = "; ".join(outcome.wrong) or "ok"
    return (
        f"{outcome.cell!s:<40} struck {outcome.struck}  starts {len(outcome.codes)}  {outcome.seconds:5.1f} s  {state}"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a row for each request and fault, and in its columns how far the request got."""
    rows: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        row = rows.setdefault(f"{cell.side} {cell.request} {cell.fault}", {})
        row[cell.when] = "WRONG" if outcome.wrong else f"ok {outcome.seconds:.0f}s"
    lines = [f"{'':<30}" + "".join(f"{when:<10}" for when in WHEN)]
    lines += [f"{name:<30}" + "".join(f"{row.get(when, '-'):<10}" for when in WHEN) for name, row in rows.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="elasticsearch:8", help="flavour:major, as tests/servers.py has it")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--sample", type=int, help="so many cells of each request")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    wanted = [cell for cell in (sample(given.sample) if given.sample else cells()) if given.only in str(cell)]
    flavour, _, major = given.server.partition(":")
    with tempfile.TemporaryDirectory() as folder, start(flavour, int(major), heap=HEAP) as server:
        matrix = Matrix(Path(folder), server)
        try:
            outcomes = matrix.run(wanted, workers=os.cpu_count() or 1, show=True)
        finally:
            matrix.close()
    print(table(outcomes))
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    print(f"{len(outcomes)} cells, {sum(outcome.struck for outcome in outcomes)} strikes, {len(wrong)} wrong")
    if given.json:
        given.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
