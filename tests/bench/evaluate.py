"""What is caught and what is loud, on real logs: one table (`docs/evaluation.md` says how to read it).

`observe` shows the logs to the detectors without their labels; here the labels are read and the alerts are judged.

    python -m tests.bench.evaluate [--json FILE] [--docs FILE]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tests.bench.observe import FAMILIES, Observation, Seen, build_detectors, observe

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("VEDETTE_TEST_DATA") or ROOT.parent / "shared" / "data")
ANY = "any"

# --- judging ----------------------------------------------------------------------------------------------------------

LADDER = ("technique", "parent", "tactic")
"""How well an alert fits a label: the same technique, the same parent technique, only the same tactic."""


RENUMBERED = {
    "T1685": "T1562.001",
    "T1685.001": "T1562.002",
    "T1685.002": "T1562.008",
    "T1685.004": "T1562.012",
    "T1685.005": "T1070.001",
    "T1685.006": "T1070.002",
    "T1686": "T1562.004",
    "T1686.001": "T1562.007",
    "T1686.002": "T1562.013",
    "T1686.003": "T1562.004",
    "T1689": "T1562.010",
    "T1690": "T1562.003",
    "TA0112": "TA0005",
}
"""ATT&CK 19 took techniques out of T1562 and T1070 and the tactic Defense Impairment out of TA0005. SigmaHQ writes the
new ids, the labels the old ones: new id -> the old one for the same thing."""


def _old(ids: Iterable[str]) -> set[str]:
    return {one for id in ids for one in (id, RENUMBERED.get(id, id))}


@dataclass(frozen=True)
class Label:
    techniques: frozenset[str] = frozenset()
    tactics: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.techniques or self.tactics)

    def fit(self, alert: Seen) -> str | None:
        techniques = _old(alert.techniques)
        if techniques & self.techniques:
            return "technique"
        if set(map(_parent, techniques)) & set(map(_parent, self.techniques)):
            return "parent"
        return "tactic" if _old(alert.tactics) & self.tactics else None

    def best(self, alerts: Iterable[Seen]) -> str | None:
        fits = {self.fit(alert) for alert in alerts}
        return next((rung for rung in LADDER if rung in fits), None)


def _parent(technique: str) -> str:
    return technique.partition(".")[0]


@dataclass(frozen=True)
class Row:
    """One line of the table: of *of* things, how many by family; *rate* lines are alerts per 10,000 of *of* events.

    *chance* is what the same alerts would score with another file's labels.
    """

    set: str
    measure: str
    of: int
    found: Mapping[str, float]
    rate: bool = False
    chance: float | None = None


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    misses: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def _by_family(alerts: Iterable[Seen]) -> dict[str, list[Seen]]:
    alerts = list(alerts)
    return {ANY: alerts, **{family: [one for one in alerts if one.family == family] for family in FAMILIES}}


def _rate(set: str, measure: str, events: int, alerts: Iterable[Seen]) -> Row:
    found = {family: 10_000 * len(some) / max(events, 1) for family, some in _by_family(alerts).items()}
    return Row(set, measure, events, found, rate=True)


def _count(set: str, measure: str, groups: Sequence[Sequence[Seen]]) -> Row:
    """Count the groups (files, calls, addresses) that have at least one of the alerts given for them."""
    split = [_by_family(group) for group in groups]
    return Row(
        set, measure, len(groups), {family: sum(bool(one[family]) for one in split) for family in (ANY, *FAMILIES)}
    )


def _loudest(alerts: Iterable[Seen], number: int = 10) -> list[dict[str, Any]]:
    counted = Counter((alert.family, alert.title) for alert in alerts)
    return [
        {"family": family, "rule": title, "alerts": count} for (family, title), count in counted.most_common(number)
    ]


def judge_files(report: Report, set: str, thing: str, seen: Observation, labels: Mapping[str, Label]) -> None:
    """Judge a set that has a label a file."""
    found = seen.by_file()
    labelled = [name for name in seen.events if labels.get(name)]
    for number, measure in enumerate(("technique", "technique or its parent", "technique, parent or tactic"), 1):
        rungs = LADDER[:number]
        names = [name for name in labelled if labels[name].techniques or "tactic" in rungs]
        fitting = [[one for one in found[name] if labels[name].fit(one) in rungs] for name in names]
        row = _count(set, f"{thing}, alert of the labelled {measure}", fitting)
        report.rows.append(replace(row, chance=_chance(found, labels, names, rungs)))
    unlabelled = [name for name in seen.events if not labels.get(name)]
    if unlabelled:
        report.rows.append(_count(set, f"{thing} without a label, any alert", [found[name] for name in unlabelled]))
    report.rows.append(_rate(set, "alerts per 10,000 events", seen.total, seen.alerts))
    details = {name: _file_details(seen, found[name], labels.get(name, Label()), name) for name in sorted(seen.events)}
    report.details[set] = {"files": details, "loudest": _loudest(seen.alerts)}
    report.misses[f"{set}: neither technique nor tactic"] = [
        f"{name} ({_what(labels[name])}): {len(found[name])} alerts of others"
        for name in labelled
        if not details[name]["fit"]
    ]
    report.misses[f"{set}: the tactic only"] = [
        f"{name} ({_what(labels[name])})"
        for name in labelled
        if labels[name].techniques and details[name]["fit"] == "tactic"
    ]
    report.misses[f"{set}: no label, no alert"] = [name for name in unlabelled if not found[name]]


def _chance(
    found: Mapping[str, Sequence[Seen]], labels: Mapping[str, Label], names: Sequence[str], rungs: Sequence[str]
) -> float:
    """Return how many files would count as found if each had another file's label, averaged over those labels."""
    total = 0.0
    for name in names:
        others = [labels[other] for other in names if labels[other] != labels[name]]
        total += sum(other.best(found[name]) in rungs for other in others) / max(len(others), 1)
    return total


def _file_details(seen: Observation, alerts: Sequence[Seen], label: Label, name: str) -> dict[str, Any]:
    by = _by_family(alerts)
    best = label.best(alerts)
    return {
        "label": sorted(label.techniques) + sorted(label.tactics),
        "fit": best,
        "fit_by": {family: fit for family in FAMILIES if (fit := label.best(by[family]))},
        "rules": sorted({alert.title for alert in alerts if best and label.fit(alert) == best}),
        "events": seen.events[name],
        "unreadable": seen.unreadable[name],
        "alerts": {family: len(by[family]) for family in FAMILIES},
    }


def _what(label: Label) -> str:
    return ", ".join(sorted(label.techniques) or sorted(label.tactics))


# --- mordor -----------------------------------------------------------------------------------------------------------


def mordor_logs(data: Path) -> dict[str, bytes]:
    """All archives but those of Zeek, which no mapping reads yet."""
    paths = sorted(path for path in (data / "mordor").glob("*/*") if "zeek" not in path.name)
    return {str(path.relative_to(data / "mordor")): path.read_bytes() for path in paths}


def name_lsass_reader(raw: bytes) -> str:
    """Name an event in which a process opens lsass.exe after that process: ``winx64_payload.exe 0x1410``."""
    if b"lsass.exe" not in raw or b"GrantedAccess" not in raw:
        return ""
    event = orjson.loads(raw)
    if not str(event.get("TargetImage")).lower().endswith("\\lsass.exe"):
        return ""
    return f"{str(event.get('SourceImage')).rpartition(chr(92))[2]} {event.get('GrantedAccess')}"


def judge_mordor(report: Report, seen: Observation, data: Path) -> None:
    raw = json.loads((data / "mordor" / "labels.json").read_text("utf-8"))
    labels = {
        one["file"]: Label(frozenset(one.get("techniques", ())), frozenset(one.get("tactics", ()))) for one in raw
    }
    judge_files(report, "mordor", "archives", seen, labels)
    campaign = "lsass_campaign_01/metasploit_logonpasswords_lsass_memory_dump.zip"
    about = {name: [alert for alert in seen.alerts if alert.file == campaign and name in seen.named(alert)]
             for name in ("winx64_payload.exe 0x1410", "VBoxService.exe 0x1400")}  # fmt: skip
    stolen, neighbour = about.values()
    fitting = [alert for alert in stolen if labels[campaign].fit(alert) in LADDER[:2]]
    report.rows.append(_count("mordor", "winx64_payload.exe reads lsass.exe: found", [fitting]))
    opened = sum(name == "VBoxService.exe 0x1400" for (file, _), name in seen.names.items() if file == campaign)
    report.rows.append(_rate("mordor", "false alarms per 10,000: VBoxService.exe opens lsass.exe", opened, neighbour))
    report.details["lsass"] = {"winx64_payload.exe": _loudest(fitting), "VBoxService.exe": _loudest(neighbour)}


# --- evtx -------------------------------------------------------------------------------------------------------------


def evtx_logs(data: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in _members(data / "evtx" / "evtx-attack-samples.tar.gz") if name.endswith(".evtx")}


def judge_evtx(report: Report, seen: Observation, data: Path) -> None:
    rows = _table(data / "evtx" / "evtx-attack-samples.tar.gz", "index.csv")
    judge_files(report, "evtx", "files", seen, {row["file"]: _evtx_label(row, data) for row in rows})


def _evtx_label(row: Mapping[str, str], data: Path) -> Label:
    """Read the tactic from the folder's name: ``TA0003-Persistence`` or ``Lateral Movement``."""
    folder, technique = row["tactic_folder"], row["technique_in_path"]
    tactic = folder.partition("-")[0] if folder.startswith("TA0") else _tactics(data).get(folder, "")
    return Label(frozenset([technique] if technique else []), frozenset([tactic] if tactic else []))


@cache
def _tactics(data: Path) -> dict[str, str]:
    text = (data / "attack" / "tactics.csv").read_text("utf-8")
    return {row["name"]: row["id"] for row in csv.DictReader(io.StringIO(text))}


# --- cloudtrail -------------------------------------------------------------------------------------------------------

NAMED_CALLS = frozenset(
    {
        "ec2:GetPasswordData",
        "secretsmanager:GetSecretValue",
        "cloudtrail:StopLogging",
        "cloudtrail:DeleteTrail",
        "cloudtrail:PutEventSelectors",
        "ec2:DeleteFlowLogs",
        "organizations:LeaveOrganization",
        "ssm:SendCommand",
    }
)
"""What the data's own description says is to be found."""
CALLER_RULE = "AWS STS AssumeRole Misuse"
"""A rule that fires on every call of an assumed role, whatever the call: what only it sees is hardly seen."""


def without_user_agent(content: bytes) -> bytes:
    """Return CloudTrail records (a delivery file or a list) as a delivery file, `userAgent` left out of each."""
    data = orjson.loads(content)
    events = data["Records"] if isinstance(data, dict) else data
    return orjson.dumps({"Records": [{k: v for k, v in event.items() if k != "userAgent"} for event in events]})


def aws_logs(data: Path) -> dict[str, bytes]:
    members = _members(data / "cloudtrail" / "aws-dataset.tar.gz")
    return {name: without_user_agent(raw) for name, raw in members if name.endswith(".json")}


def stratus_logs(data: Path) -> dict[str, bytes]:
    members = _members(data / "cloudtrail" / "stratus-detonation-logs.tar.gz")
    return {name: without_user_agent(raw) for name, raw in members if name.endswith(".json")}


def name_event(raw: bytes) -> str:
    return str(orjson.loads(raw)["eventID"])


def name_call(raw: bytes) -> str:
    event = orjson.loads(raw)
    return _call(event)


def _call(event: Mapping[str, Any]) -> str:
    return f"{event['eventSource'].partition('.')[0]}:{event['eventName']}"


@cache
def _decisive(data: Path) -> dict[str, frozenset[str]]:
    rows = _table(data / "cloudtrail" / "stratus-detonation-logs.tar.gz", "index.csv")
    return {row["file"]: frozenset(row["detonation_events"].split(";")) for row in rows}


def judge_aws(report: Report, seen: Observation, data: Path) -> None:
    rows = {row["eventID"]: row for row in _table(data / "cloudtrail" / "aws-dataset.tar.gz", "labels.csv")}
    alerts_of: dict[str, list[Seen]] = {id: [] for id in rows}
    for alert in seen.alerts:
        for id in seen.named(alert):
            alerts_of[id].append(alert)
    decisive = NAMED_CALLS.union(*_decisive(data).values())
    attack = [id for id, row in rows.items() if row["phase"].startswith("detonation")]
    calls = [id for id in attack if _call(rows[id]) in decisive]
    names = sorted({_call(rows[id]) for id in calls})
    of_name = {name: [one for id in calls if _call(rows[id]) == name for one in alerts_of[id]] for name in names}
    report.rows += [
        _count("cloudtrail", "events of the attack tool, all", [alerts_of[id] for id in attack]),
        _count("cloudtrail", "events of the attack tool that are attack calls", [alerts_of[id] for id in calls]),
        _count("cloudtrail", "kinds of attack call", list(of_name.values())),
    ]
    for phase in ("other", "warmup_or_cleanup"):
        inside = {id for id, row in rows.items() if row["phase"] == phase}
        loud = [alert for alert in seen.alerts if seen.named(alert) & inside]
        report.rows.append(_rate("cloudtrail", f"false alarms per 10,000: {phase}", len(inside), loud))
        report.details.setdefault("cloudtrail", {})[phase] = _loudest(loud)
    report.details["cloudtrail"]["calls"] = {
        name: {
            "events": sum(_call(rows[id]) == name for id in calls),
            "found": sum(bool(alerts_of[id]) for id in calls if _call(rows[id]) == name),
            "rules": sorted({alert.title for alert in of_name[name]}),
        }
        for name in names
    }
    report.misses["cloudtrail: kinds of attack call seen only by a rule on who calls"] = [
        name for name in names if {alert.title for alert in of_name[name]} == {CALLER_RULE}
    ]
    report.misses["cloudtrail: kinds of attack call"] = [name for name in names if not of_name[name]]


def judge_stratus(report: Report, seen: Observation, data: Path) -> None:
    decisive = _decisive(data)
    hits = {
        name: [one for one in alerts if seen.named(one) & decisive[name]] for name, alerts in seen.by_file().items()
    }
    report.rows.append(_count("stratus", "techniques found by a decisive call", list(hits.values())))
    report.rows.append(_rate("stratus", "alerts per 10,000 events", seen.total, seen.alerts))
    report.details["stratus"] = {
        name: {"decisive": sorted(decisive[name]), "rules": sorted({alert.title for alert in hits[name]})}
        for name in hits
    }
    report.misses["stratus: techniques seen only by a rule on who calls"] = [
        name for name in hits if {alert.title for alert in hits[name]} == {CALLER_RULE}
    ]
    report.misses["stratus: techniques"] = [
        f"{name} ({', '.join(sorted(decisive[name]))})" for name in hits if not hits[name]
    ]


# --- loghub and web ---------------------------------------------------------------------------------------------------

OPENSSH, LINUX = "OpenSSH/OpenSSH_2k.log", "Linux/Linux_2k.log"
ATTACKERS = {
    OPENSSH: ("183.62.140.253", "187.141.143.180", "103.99.0.122"),
    LINUX: ("150.183.249.110", "203.101.45.59", "207.30.238.8"),
}
"""What the data's own description says is to be found: the most failed logins and, in Linux, two bursts over FTP."""
ACCEPTED = "Accepted password for fztu from 119.137.62.142"


def loghub_logs(data: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in _members(data / "loghub" / "loghub-2k.tar.gz") if name in ATTACKERS}


def name_line(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def judge_loghub(report: Report, seen: Observation, data: Path) -> None:
    found = seen.by_file()
    details = report.details["loghub"] = {}
    for file, addresses in ATTACKERS.items():
        name = file.partition("/")[0]
        about = {address: [alert for alert in found[file] if _is_about(seen, alert, address)] for address in addresses}
        report.rows.append(
            _count("loghub", f"{name}: attacking addresses, each named by an alert", list(about.values()))
        )
        report.misses[f"loghub: {name}, attacking addresses"] = [one for one in addresses if not about[one]]
        report.rows.append(_rate("loghub", f"{name}: alerts per 10,000 events", seen.events[file], found[file]))
        details[name] = {
            "addresses": {address: _loudest(alerts) for address, alerts in about.items()},
            "loudest": _loudest(found[file]),
        }
    accepted = [alert for alert in found[OPENSSH] if any(ACCEPTED in line for line in seen.named(alert))]
    report.rows.append(_rate("loghub", "OpenSSH: false alarms per 10,000: the accepted login", 1, accepted))


def _is_about(seen: Observation, alert: Seen, address: str) -> bool:
    words = re.split(r"[^0-9.]+", " ".join([*alert.entity.values(), *seen.named(alert)]))
    return address in words


def web_logs(data: Path) -> dict[str, bytes]:
    return {"apache_access.log": gzip.decompress((data / "web" / "apache_access.log.gz").read_bytes())}


def judge_web(report: Report, seen: Observation, data: Path) -> None:
    report.rows.append(_rate("web", "false alarms per 10,000: access log of a public site", seen.total, seen.alerts))
    report.details["web"] = {"loudest": _loudest(seen.alerts)}


# --- clouds and Zeek --------------------------------------------------------------------------------------------------

CLOUDS = frozenset(
    {
        "AWS.CloudTrail",
        "Amazon.EKS.Audit",
        "Azure.Audit",
        "Azure.MonitorActivity",
        "GCP.AuditLog",
        "GitHub.Audit",
        "Okta.SystemLog",
    }
)
"""The kinds of log that a mapping reads, of those that the tests of another project's rules are about."""
MEANT, NEAR = "meant", "near miss"


def cloud_logs(data: Path) -> dict[str, bytes]:
    lines: dict[str, list[bytes]] = {MEANT: [], NEAR: []}
    for line in gzip.decompress((data / "panther-tests" / "panther-rule-tests.ndjson.gz").read_bytes()).splitlines():
        test = orjson.loads(line)
        if test.get("log") and not CLOUDS.isdisjoint(test["log_types"] or ()):
            lines[MEANT if test["expected"] else NEAR].append(orjson.dumps(test["log"]))
    return {name: b"\n".join(some) for name, some in lines.items()}


def name_record(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def judge_clouds(report: Report, seen: Observation, data: Path) -> None:
    found = seen.by_file()
    of_event: dict[str, list[Seen]] = {key: [] for key in seen.names.values()}
    for alert in found[MEANT]:
        for name in seen.named(alert):
            of_event[name].append(alert)
    meant = {name for (file, _), name in seen.names.items() if file == MEANT}
    report.rows.append(_count("clouds", "events meant for another project's rules", [of_event[one] for one in meant]))
    report.rows.append(_rate("clouds", "alerts per 10,000: near misses of those rules", seen.events[NEAR], found[NEAR]))
    report.details["clouds"] = {name: _loudest(found[name]) for name in (MEANT, NEAR)}


ZEEK = re.compile(r"(001|008|010)-.*(labeled-conn\.log|\.labeled)$")


def zeek_logs(data: Path) -> dict[str, bytes]:
    members = _members(data / "zeek-labelled" / "zeek-labelled.tar.gz")
    return {name: _without_labels(raw) for name, raw in members if ZEEK.match(name)}


def _without_labels(table: bytes) -> bytes:
    """Return a table of Zeek without its last two columns."""
    lines = table.splitlines()
    return b"\n".join(
        line if line.startswith(b"#") and not line.startswith((b"#fields", b"#types")) else line.rsplit(b"\t", 2)[0]
        for line in lines
    )


def name_connection(raw: bytes) -> str:
    return str(orjson.loads(raw).get("uid") or "")


def judge_zeek(report: Report, seen: Observation, data: Path) -> None:
    """Connections are named by their uid, and the labels of conn.log are those to trust."""
    labels: dict[str, str] = {}
    for name, raw in _members(data / "zeek-labelled" / "zeek-labelled.tar.gz"):
        if ZEEK.match(name) and "conn.log" in name:
            rows = (line.decode().split("\t") for line in raw.splitlines() if not line.startswith(b"#"))
            labels |= {row[1]: row[-2] for row in rows}
    for label in ("Benign", "Malicious"):
        uids = {uid for uid, said in labels.items() if said == label}
        alerts = [alert for alert in seen.alerts if seen.named(alert) & uids]
        what = "false alarms per 10,000: benign connections" if label == "Benign" else "alerts per 10,000: attacks"
        report.rows.append(_rate("zeek", what, len(uids), alerts))
        report.details.setdefault("zeek", {})[label] = _loudest(alerts)


# --- reading the data -------------------------------------------------------------------------------------------------


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                yield member.name, file.read()


def _table(archive: Path, name: str) -> list[dict[str, str]]:
    text = next(raw for member, raw in _members(archive) if member == name).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text)))


# --- the whole run ----------------------------------------------------------------------------------------------------


class Set(NamedTuple):
    """A set of logs, how its events are named and its alerts judged; *apart*: each file is a stream of its own."""

    logs: Callable[[Path], dict[str, bytes]]
    judge: Callable[[Report, Observation, Path], None]
    name_of: Callable[[bytes], str] | None = None
    apart: bool = True


SETS: Mapping[str, Set] = {
    "mordor": Set(mordor_logs, judge_mordor, name_lsass_reader),
    "evtx": Set(evtx_logs, judge_evtx),
    "cloudtrail": Set(aws_logs, judge_aws, name_event, apart=False),
    "stratus": Set(stratus_logs, judge_stratus, name_call),
    "loghub": Set(loghub_logs, judge_loghub, name_line),
    "web": Set(web_logs, judge_web),
    "clouds": Set(cloud_logs, judge_clouds, name_record),
    "zeek": Set(zeek_logs, judge_zeek, name_connection),
}


def evaluate(data: Path, cache: Path, say: Callable[[str], None] = lambda text: None) -> Report:
    """Run every set through all detectors and judge what came of it."""
    detectors = build_detectors(data, cache)
    report = Report()
    for name, set in SETS.items():
        started = time.monotonic()
        seen = observe(set.logs(data), detectors, set.name_of, apart=set.apart)
        say(f"{name}: {seen.total:,} events, {len(seen.alerts):,} alerts, {time.monotonic() - started:.1f} s")
        report.details.setdefault("events", {})[name] = {"events": seen.total, "unreadable": seen.unreadable.total()}
        set.judge(report, seen, data)
    plans = {one.id: one.plan() for one in detectors}
    report.details["rules"] = {id: plan["rules"] for id, plan in plans.items() if "rules" in plan}
    return report


def table(rows: Sequence[Row]) -> str:
    head = ("set", "measure", "of", ANY, *FAMILIES, "chance")
    cells = [head, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) if column < 2 else text.rjust(width)
                  for column, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in cells
    ]  # fmt: skip
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (f"{row.found[family]:,.1f}" if row.rate else f"{row.found[family]:,}" for family in (ANY, *FAMILIES))
    return row.set, row.measure, f"{row.of:,}", *numbers, "" if row.chance is None else f"{row.chance:.1f}"


def as_json(report: Report) -> dict[str, Any]:
    return {"rows": [_round(row) for row in report.rows], "misses": report.misses, "details": report.details}


def _round(row: Row) -> dict[str, Any]:
    found = {family: round(number, 4) for family, number in row.found.items()}
    return {**asdict(row), "found": found, "chance": None if row.chance is None else round(row.chance, 4)}


def into_docs(docs: str, table: str) -> str:
    """Return *docs* with *table* in place of what its first plain-text block holds."""
    before, fence, rest = docs.partition("```text\n")
    _, end, after = rest.partition("```")
    return f"{before}{fence}{table}\n{end}{after}"


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.evaluate", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this document")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"no data in {DATA}: set VEDETTE_TEST_DATA", file=sys.stderr)
        return 2
    report = evaluate(DATA, ROOT / ".cache", _say)
    print(table(report.rows))
    for what, names in report.misses.items():
        if names:
            print(f"\nMissed, {what}: {len(names)}")
            print("\n".join(f"  {name}" for name in names))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(report), indent=1) + "\n", "utf-8")
    if options.docs:
        options.docs.write_text(into_docs(options.docs.read_text("utf-8"), table(report.rows)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
