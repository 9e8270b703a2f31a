"""Speed of normalisation on one core, product by product, with the fields that a plan of rules asks for.

    python -m tests.bench.bench_normalise [PRODUCT...] [--json FILE] [--records N] [--profile]

Input: the records of the archive of integrations, of `mordor`, `loghub` and `web` in the test data, repeated up to N
with other addresses and numbers each time, so that no value is remembered for want of others. Figures are records a CPU
second of this process, the best of three rounds. Goals: 60,000 for JSON, 40,000 for lines. Beside them stands what the
JSON decoder alone does with the same records: where that is near, what is left is the size of the records.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import gzip
import itertools
import json
import os
import pstats
import re
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import orjson

from agent.errors import RecordError
from agent.model import Chunk, Records
from agent.normalise import Normaliser
from agent.normalise.clock import parse
from tests.integration.integrations import PRODUCTS, _members, _records

DATA = Path(os.environ.get("VEDETTE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
GOALS = {"json": 60_000, "lines": 40_000}
WANTED = frozenset(
    {
        *("event.action", "event.code", "event.outcome", "host.name"),
        *("process.command_line", "process.executable", "process.name", "process.pid"),
        *("source.ip", "source.port", "destination.ip", "destination.port", "url.original", "user.name"),
    }
)
AS_OF = parse("2024-01-01T00:00:00Z")
BATCH = 5_000
ROUNDS = 7
_ADDRESS = re.compile(rb"(?<![\d.])(\d{1,3}\.\d{1,3}\.)\d{1,3}\.\d{1,3}(?![\d.])")
_NUMBER = re.compile(rb"(?<![\w.:/+-])\d{5}(?![\w.:/-])")


def sources() -> Iterator[tuple[str, str, list[bytes]]]:
    """Yield name, format and records of each product."""
    with zipfile.ZipFile(DATA / "mordor/atomic/empire_shell_rubeus_asktgt_ptt.zip") as archive:
        (name,) = (name for name in archive.namelist() if not name.startswith("__MACOSX"))
        yield "windows (mordor)", "json", archive.read(name).splitlines()
    with tarfile.open(DATA / "loghub/loghub-2k.tar.gz") as tar:
        for product in ("OpenSSH", "Linux"):
            file = tar.extractfile(f"{product}/{product}_2k.log")
            assert file
            yield f"{product} (loghub)", "syslog", file.read().splitlines()
    yield "web (apache)", "access", gzip.decompress((DATA / "web/apache_access.log.gz").read_bytes()).splitlines()
    members = _members(DATA / "integrations/integration-pipeline-tests.tar.gz")
    for product, (folder, format, _) in PRODUCTS.items():
        records = [
            record
            for name, data in members.items()
            if name.startswith(folder) and name + "-expected.json" in members
            for record in _records(name, data, format, "")
        ]
        yield product, format, records


def varied(records: Sequence[bytes], number: int) -> list[bytes]:
    """Return *number* records: those given, again and again, with other addresses and numbers of five digits."""
    random = Random(7)
    found = []
    for record in itertools.islice(itertools.cycle(records), number):
        address = b"%d.%d" % (random.randrange(16), random.randrange(1, 255))
        numeral = b"%d" % random.randrange(10_000, 60_000)
        found.append(_NUMBER.sub(numeral, _ADDRESS.sub(rb"\g<1>" + address, record)))
    return found


def readable(format: str, records: Sequence[bytes]) -> list[bytes]:
    """Return the records that a mapping reads: the others cost something else."""
    normaliser = Normaliser(lambda _kind: frozenset())
    found = []
    for record in records:
        try:
            whole = normaliser.whole(format, record, as_of=AS_OF)
        except RecordError:
            continue
        if not whole.mapping.unmapped:
            found.append(record)
    return found


def speed(format: str, records: Sequence[bytes], profile: cProfile.Profile | None) -> float:
    """Return how many of *records* a CPU second takes, at best of some rounds after one to warm up."""
    normaliser = Normaliser(lambda _kind: WANTED)
    batches = [
        Records("bench", (Chunk("p", "f", format, range(len(part)), part),), {}, AS_OF)
        for part in (records[begin : begin + BATCH] for begin in range(0, len(records), BATCH))
    ]
    normaliser(batches[0], {})
    best = float("inf")
    for _ in range(ROUNDS):
        gc.collect()
        if profile:
            profile.enable()
        begin = time.process_time()
        for batch in batches:
            normaliser(batch, {})
        best = min(best, time.process_time() - begin)
        if profile:
            profile.disable()
    return len(records) / best


def decoding(records: Sequence[bytes]) -> float:
    """Return how many of *records* a CPU second takes that only decodes them, block by block as the normaliser does."""
    best = float("inf")
    for _ in range(ROUNDS):
        gc.collect()
        begin = time.process_time()
        for start in range(0, len(records), 256):
            list(map(orjson.loads, records[start : start + 256]))
        best = min(best, time.process_time() - begin)
    return len(records) / best


def main(arguments: Sequence[str]) -> int:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("products", nargs="*", metavar="PRODUCT", help="only products whose names hold one of these")
    reader.add_argument("--json", type=Path)
    reader.add_argument("--records", type=int, default=10_000)
    reader.add_argument("--profile", action="store_true", help="show where the time goes, product by product")
    options = reader.parse_args(arguments)
    if not DATA.is_dir():
        print(f"no test data in {DATA}: set VEDETTE_TEST_DATA")
        return 0
    facts: dict[str, dict[str, Any]] = {}
    print(f"{'product':32} {'input':6} {'bytes':>6} {'records/s':>10} {'JSON alone':>10}  below the goal")
    for product, format, given in sources():
        if options.products and not any(part in product for part in options.products):
            continue
        if not (records := varied(readable(format, given), options.records)):
            continue
        profile = cProfile.Profile() if options.profile else None
        kind = "json" if records[0].startswith(b"{") else "lines"
        size = sum(map(len, records)) // len(records)
        rate = speed(format, records, profile)
        facts[product] = {"input": kind, "bytes": size, "records_per_s": round(rate)}
        floor = ""
        if kind == "json":
            facts[product]["decoded_per_s"] = round(decoding(records))
            floor = f"{facts[product]['decoded_per_s']:,}"
        missed = "*" if rate < GOALS[kind] else ""
        print(f"{product:32} {kind:6} {size:6} {rate:10,.0f} {floor:>10}  {missed}", flush=True)
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    if options.json:
        options.json.write_text(json.dumps({"records": options.records, "products": facts}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
