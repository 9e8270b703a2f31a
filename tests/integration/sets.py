"""Every set of real logs at hand through the real source and normaliser: what became of each record.

No expected documents are needed: a record is a row that a mapping made, a row that none did (unmapped, kept whole) or a
dead letter with its reason, and the three add up to what the files hold, counted without our readers. The table stands
below that of `python -m tests.bench.normalise`.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import RecordError
from agent.model import UNPARSED, Records
from agent.normalise import Normaliser
from agent.normalise.decode import text_of
from agent.normalise.mapping import installed
from agent.science.inputs import Logs

WANTED = frozenset(
    {
        *("event.action", "event.code", "event.original", "event.outcome", "host.name", "message"),
        *("process.command_line", "process.executable", "process.name", "process.pid"),
        *("source.ip", "source.port", "destination.ip", "destination.port", "url.original", "user.name"),
    }
)
_DOCUMENTS = 2_000
"""Records of a file that are also made whole documents, evenly spread."""
_UNMAPPED = frozenset(mapping.name for mapping in installed() if mapping.unmapped)
_WAZUH = re.compile(rb"^log \d+ (?:pass|fail) = (.+)$", re.MULTILINE)


@dataclass
class Fate:
    """What became of the records of one set; *faults* are what must not be, in words."""

    records: int = 0
    mappings: Counter[str] = field(default_factory=Counter)
    unmapped: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def mapped(self) -> int:
        return self.records - self.unmapped - self.dead.total()

    @property
    def share(self) -> float:
        return self.mapped / self.records if self.records else 0.0


Files = Iterator[tuple[str, bytes]]


def _tar(data: Path, name: str, keep: Callable[[str], bool]) -> Files:
    with tarfile.open(data / name) as archive:
        for member in archive:
            if member.isfile() and keep(member.name) and (file := archive.extractfile(member)):
                yield member.name, file.read()


def _panther(data: Path) -> Files:
    rows = map(
        json.loads, gzip.decompress((data / "panther-tests/panther-rule-tests.ndjson.gz").read_bytes()).splitlines()
    )
    yield "events", b"\n".join(json.dumps(row["log"]).encode() for row in rows if "log" in row)


def _crowdsec(data: Path) -> Files:
    return _tar(data, "crowdsec-tests/crowdsec-hub-tests.tar.gz", lambda name: name.endswith(".log"))


def _fail2ban(data: Path) -> Files:
    for name, text in _tar(data, "fail2ban-logs/fail2ban-logs.tar.gz", lambda name: name.startswith("logs/")):
        yield name, b"\n".join(line for line in text.splitlines() if not line.startswith(b"#"))


def _wazuh(data: Path) -> Files:
    for name, text in _tar(data, "wazuh-rule-tests/wazuh-rule-tests.tar.gz", lambda name: name.endswith(".ini")):
        yield name, b"\n".join(_WAZUH.findall(text))


def _loghub(data: Path) -> Files:
    return _tar(data, "loghub/loghub-2k.tar.gz", lambda name: name.endswith("_2k.log"))


def _zeek(data: Path) -> Files:
    return _tar(data, "zeek-samples/zeek-wrccdc.tar.gz", lambda name: name.startswith("zeek-"))


def _cloudtrail(data: Path) -> Files:
    for name in ("aws-dataset.tar.gz", "stratus-detonation-logs.tar.gz"):
        yield from _tar(data, f"cloudtrail/{name}", lambda name: name.endswith(".json"))


def _mordor(data: Path) -> Files:
    for path in sorted((data / "mordor").glob("*/*")):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if not name.startswith("__MACOSX") and not name.endswith("/"):
                        yield f"{path.stem}/{name}", archive.read(name)
        else:
            yield from _tar(data, str(path.relative_to(data)), lambda name: not Path(name).name.startswith("._"))


SETS: Mapping[str, tuple[str, Callable[[Path], Files]]] = {
    "panther-tests": ("panther-tests/panther-rule-tests.ndjson.gz", _panther),
    "crowdsec-tests": ("crowdsec-tests/crowdsec-hub-tests.tar.gz", _crowdsec),
    "fail2ban-logs": ("fail2ban-logs/fail2ban-logs.tar.gz", _fail2ban),
    "wazuh-rule-tests": ("wazuh-rule-tests/wazuh-rule-tests.tar.gz", _wazuh),
    "loghub": ("loghub/loghub-2k.tar.gz", _loghub),
    "zeek-samples": ("zeek-samples/zeek-wrccdc.tar.gz", _zeek),
    "mordor": ("mordor/labels.json", _mordor),
    "cloudtrail": ("cloudtrail/aws-dataset.tar.gz", _cloudtrail),
}
"""Set -> a file that is there if the set is, and what yields the names and contents of its logs."""


def fates(data: Path) -> dict[str, Fate]:
    """Return what became of each set under *data*; one that is not there is left out."""
    return {name: fate(files(data)) for name, (there, files) in SETS.items() if (data / there).is_file()}


def fate(files: Iterable[tuple[str, bytes]]) -> Fate:
    """Return what became of the records of *files*, each read as an operator's `files` source reads it.

    A file whose format its content does not tell is read line by line, as ``--format text`` does.
    """
    found = Fate()
    normaliser = Normaliser(lambda _kind: WANTED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.log"
        for name, data in files:
            expected = _count(data)
            if not expected:
                continue
            path.write_bytes(data)
            logs = Logs([path])
            read = list(logs)
            if logs.notes:
                logs = Logs([path], "text")
                read = list(logs)
            found.faults += [f"{name}: {reason}" for reason in logs.notes.values()]
            if expected != (number := sum(map(len, read))):
                found.faults.append(f"{name}: {expected} records, {number} were read")
            every = max(1, -(-expected // _DOCUMENTS))
            for records in read:
                _take(found, normaliser, records, name, every)
    return found


def table(fates: Mapping[str, Fate]) -> str:
    """Return one row a set: its records by outcome, and how many each mapping read."""
    rows = [f"{'set':16} {'records':>7} {'mapped':>7} {'share':>7} {'unmapped':>8} {'dead':>5}  by mapping"]
    for name, fate in fates.items():
        by_mapping = ", ".join(f"{mapping} {number}" for mapping, number in fate.mappings.most_common())
        rows.append(
            f"{name:16} {fate.records:7} {fate.mapped:7} {fate.share:7.1%} {fate.unmapped:8} {fate.dead.total():5}"
            f"  {by_mapping}"
        )
        rows += [f"{'':16} {number:7} dead letters: {reason}" for reason, number in fate.dead.most_common(5)]
    return "\n".join(rows)


def _count(data: bytes) -> int:
    """Count the records of a file without the readers of the product."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    if data.startswith(b"#separator"):
        return sum(not line.startswith(b"#") for line in lines)
    if data[:1] in (b"[", b"{"):
        try:
            whole = json.loads(data)
        except ValueError:
            return len(lines)
        if isinstance(whole, dict) and isinstance(whole.get("Records"), list):
            return len(whole["Records"])
        return len(whole) if isinstance(whole, list) else 1
    return len(lines)


def _take(found: Fate, normaliser: Normaliser, records: Records, name: str, every: int) -> None:
    """Add what became of *records*, and whatever does not fit together."""
    result = normaliser(records, {})
    batch = result.batch
    mappings = [batch.kinds[number].mapping for number in batch.kind.tolist()]
    unmapped = sum(mapping in _UNMAPPED for mapping in mappings)
    found.records += len(records)
    found.mappings.update(mapping for mapping in mappings if mapping != UNPARSED)
    found.unmapped += unmapped
    found.dead.update(letter.reason for letter in result.dead)
    if len(batch) != len(records):
        found.faults.append(f"{name}: {len(records)} records, {len(batch)} rows")
    if mappings.count(UNPARSED) != len(result.dead) or result.counts.get("quarantined", 0) != len(result.dead):
        found.faults.append(f"{name}: {mappings.count(UNPARSED)} unparsed rows, {len(result.dead)} dead letters")
    if result.counts.get("unmapped", 0) != unmapped:
        found.faults.append(f"{name}: {unmapped} unmapped rows, counted {result.counts.get('unmapped', 0)}")
    found.faults += [f"{name}: a dead letter without a reason" for letter in result.dead if not letter.reason]
    for row in range(0, len(records), every):
        chunk, place = records.locate(row)
        raw = chunk.raw[place]
        if batch.value(row, "event.original") != text_of(raw):
            found.faults.append(f"{name}: record {row} is not kept whole")
        if place in chunk.faults:
            continue
        found.documents += 1
        try:
            whole = normaliser.whole(chunk.format, raw, as_of=records.as_of)
        except RecordError:
            if mappings[row] != UNPARSED:
                found.faults.append(f"{name}: record {row} is a row and no document")
            continue
        if whole.mapping.name != mappings[row]:
            found.faults.append(f"{name}: record {row} is read by {mappings[row]} and by {whole.mapping.name}")
        if not {"@timestamp", "event"} <= whole.document.keys():
            found.faults.append(f"{name}: the document of record {row} has no time or no event")
