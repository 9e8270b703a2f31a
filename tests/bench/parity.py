"""The fast engine beside a plain reading of the specification and beside four other tools, match by match.

Each record of `evtx` and `mordor` that is a Windows event or a CloudTrail record is judged twice by every SigmaHQ rule:
by the product (source, normaliser, engine) and by `tests.sigma_reference` on the record as it was read, with nothing of
the product between. Only the table of log sources is shared: what it says is held against the other tools here.

    python -m tests.bench.parity [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent import plugins
from agent.model import Chunk
from agent.normalise import Normaliser
from agent.state import State
from rules.detector import SigmaDetector, build
from rules.sigma import logsource
from tests.sigma_reference import PlainEvent, Reference, texts_of
from tests.sigma_scan import DATA, PEERS, TOOLS, Event, evtx_matches, mordor_matches, peer_events

RULES = DATA / "sigma" / "sigma-rules.tar.gz"

# --- the plain side ---------------------------------------------------------------------------------------------------

_HEADER = {
    "EventID": ("EventID",),
    "Channel": ("Channel", "EventLog"),
    "Provider_Name": ("SourceName", "Provider_Name", "EventSourceName", "ProviderName", "Source"),
    "Computer": ("Hostname", "Computer", "ComputerName", "host"),
    "Execution_ProcessID": ("ExecutionProcessID",),
    "Security_UserID": ("UserID",),
}
"""Sigma's names of an event's header in flat JSON, which has no one form."""
_CREATION = {
    "Image": "NewProcessName",
    "ParentImage": "ParentProcessName",
    "User": "SubjectUserName",
    "LogonId": "SubjectLogonId",
}
"""What Sigma's taxonomy calls the fields of Security 4688."""
_INTEGRITY = {"S-1-16-4096": "Low", "S-1-16-8192": "Medium", "S-1-16-12288": "High", "S-1-16-16384": "System"}


@dataclass(frozen=True)
class Plain:
    """A record as the specification sees it: what decides on log sources, and the fields by their own names."""

    source: tuple[tuple[str, str], ...]
    event: PlainEvent


def plain(format: str, raw: bytes) -> Plain | None:
    """Return *raw* as the plain reading sees it; None if it is none of the events that are compared."""
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    everything = tuple(texts_of(tuple(_scalars(record))))
    if format == "evtx":
        return _windows(_evtx(record["Event"]), everything)
    if isinstance(record, dict) and "EventID" in record and ("Channel" in record or "EventLog" in record):
        return _windows(_flat(record), everything)
    if isinstance(record, dict) and {"eventSource", "eventName"} <= record.keys():
        fields = dict(_dotted(record, ""))
        return Plain((("event.dataset", "aws.cloudtrail"),), PlainEvent(fields, everything))
    return None


def _windows(fields: dict[str, Any], everything: tuple[str, ...]) -> Plain:
    values = {name: texts_of(value) for name, value in fields.items()}
    code, channel = values["EventID"][0], values["Channel"][0]
    if (code, channel.lower()) == ("4688", "security"):
        values |= {name: values[native] for name, native in _CREATION.items() if native in values}
        if label := values.get("MandatoryLabel"):
            values["IntegrityLevel"] = (_INTEGRITY.get(label[0], label[0]),)
    return Plain((("event.code", code), ("winlog.channel", channel)), PlainEvent(values, everything))


def _evtx(event: dict[str, Any]) -> dict[str, Any]:
    system = event["System"]
    fields = {name: _content(value) for name, value in system.items() if _content(value) is not None}
    for name, value in system.items():
        attributes = value.get("#attributes", {}) if isinstance(value, dict) else {}
        fields |= {f"{name}_{key}": each for key, each in attributes.items()}
    fields.setdefault("Provider_Name", fields.get("Provider_EventSourceName"))
    for name in ("EventData", "UserData"):
        data = event.get(name) or {}
        for inner in [data, *(value for value in data.values() if isinstance(value, dict) and name == "UserData")]:
            fields |= {key: found for key, value in inner.items() if (found := _content(value)) is not None}
    return fields


def _content(value: Any) -> Any:
    """Return an element's text, or several; None if it has none."""
    if isinstance(value, dict):
        value = value.get("#text")
    return tuple(value) if isinstance(value, list) else value


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in record.items() if value is not None and not isinstance(value, dict)}
    for name, sources in _HEADER.items():
        found = next((fields[source] for source in sources if source in fields), None)
        if found is not None:
            fields[name] = found
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _dotted(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, texts_of(tuple(value) if isinstance(value, list) else value)


def _scalars(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _scalars(inner)
    elif node is not None:
        yield node


class Plainly:
    """All rules of an archive, read plainly."""

    def __init__(self, archive: Path) -> None:
        self._rules: dict[Any, list[tuple[str, Reference]]] = defaultdict(list)
        self._of_source: dict[Any, list[tuple[str, Reference]]] = {}
        self.rules = 0
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.startswith("rules") and member.name.endswith(".yml"):
                    stream = files.extractfile(member)
                    assert stream is not None
                    self._add(yaml.load(stream.read(), yaml.CSafeLoader))

    def _add(self, rule: Mapping[str, Any]) -> None:
        text = str(rule["detection"])
        if "|expand" in text and "%" in text:
            return  # placeholders without values: the rule is refused
        source = rule["logsource"]
        key = tuple(
            str(source[part]).lower() if part in source else None for part in ("product", "category", "service")
        )
        self._rules[key].append((str(rule["id"]), Reference(rule)))
        self.rules += 1

    def matches(self, one: Plain) -> set[str]:
        """Return the ids of the rules that match."""
        rules = self._of_source.get(one.source)
        if rules is None:
            fields = {name: value.lower() for name, value in one.source}
            rules = self._of_source[one.source] = [
                rule
                for key, group in self._rules.items()
                if (condition := logsource.condition(*key)) and _fits(condition, fields)
                for rule in group
            ]
        return {id for id, rule in rules if rule.holds(one.event)}


def _fits(condition: Sequence[Any], fields: Mapping[str, str]) -> bool:
    if condition[0] == "is":
        _, name, operator, values = condition
        if operator == "exists":
            return (name in fields) is values[0]
        return fields.get(name) in [value.lower() for value in values]
    return (all if condition[0] == "and" else any)(_fits(part, fields) for part in condition[1])


# --- both sides -------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What both sides said of the records of one input."""

    records: int = 0
    left_out: int = 0
    matches: int = 0
    only_fast: list[tuple[str, str, str]] = field(default_factory=list)
    only_plain: list[tuple[str, str, str]] = field(default_factory=list)


def compare(detector: SigmaDetector, plainly: Plainly, paths: Sequence[Path], every: int = 1) -> Comparison:
    """Judge every *every*-th record of *paths* on both sides."""
    found = Comparison()
    source_of = plugins.connector("files").source
    assert source_of is not None
    source = source_of("test", {"paths": [str(path) for path in paths]})
    source.open(frozenset())
    normaliser, cursor, number = Normaliser(detector.fields), None, 0
    while len(records := source.fetch(cursor, 8_192)):
        cursor = records.cursor
        batch = normaliser(records, {}).batch
        fast: dict[int, set[str]] = defaultdict(set)
        for finding in detector.detect(batch, State().transaction().view("sigma")):
            assert finding.row is not None
            fast[finding.row].add(finding.detector.id)
        for row, origin in enumerate(batch.origin.tolist()):
            number += 1
            if number % every:
                continue
            chunk, place = records.locate(origin)
            one = plain(chunk.format, chunk.raw[place])
            if one is None:
                found.left_out += 1
                continue
            slow = plainly.matches(one)
            found.records += 1
            found.matches += len(slow)
            where = _where(chunk, place)
            found.only_fast += [(rule, *where) for rule in sorted(fast[row] - slow)]
            found.only_plain += [(rule, *where) for rule in sorted(slow - fast[row])]
    source.close()
    return found


def _where(chunk: Chunk, place: int) -> tuple[str, str]:
    return chunk.path.rpartition("/")[2], str(chunk.keys[place])


def inputs(data: Path) -> dict[str, list[Path]]:
    """Return the files of each input."""
    mordor = sorted(path for path in (data / "mordor").glob("*/*") if path.is_file())
    return {"evtx": [data / "evtx" / "evtx-attack-samples.tar.gz"], "mordor": mordor}


# --- beside other tools -----------------------------------------------------------------------------------------------

CAUSES: Mapping[str, tuple[Sequence[str], Sequence[str], str]] = {
    "absent-column": (["zircolite"], [], "their fault: a field that no event has is an error of SQL"),
    "typed-value": (["chainsaw", "zircolite"], ["chainsaw"], "their fault: a number or a boolean is not its text"),
    "unnamed-data": (["chainsaw", "zircolite"], [], "their fault: EventData without names is not called Data"),
    "single-wildcard": (["chainsaw", "rsigma"], [], "their fault: ? as the last character matches nothing"),
    "backslash": (["chainsaw", "hayabusa"], [], "their fault: doubled backslashes are not read as one"),
    "modifier": (["chainsaw"], [], "their fault: modifiers that they do not know"),
    "identifier": (["chainsaw"], [], "their fault: names of selections that they do not read"),
    "keywords": (["chainsaw", "zircolite"], [], "their limit: rules with keywords are not loaded"),
    "null": ([], ["chainsaw"], "the specification leaves it open: for them null does not hold for an absent field"),
    "provider": (["chainsaw"], [], "their fault: service security is tied to one provider"),
    "unmapped-field": (["chainsaw"], [], "their fault: a field without a mapping drops the rule"),
    "no-channel": ([], ["rsigma"], "their fault: services and PowerShell categories are bound to no channel"),
    "4688": (
        ["chainsaw", "rsigma", "zircolite", "hayabusa"],
        ["hayabusa"],
        "a choice: for us Security 4688 is process_creation, and 5156 is not network_connection, as it is for Hayabusa",
    ),
    "left-out": (["hayabusa"], [], "their choice: the rule is switched off, replaced or not converted"),
    "channel-filter": (["hayabusa"], [], "their fault: rules that name no channel are switched off"),
    "rule-version": (["hayabusa"], [], "an older form of the rule"),
    "trailing-space": ([], ["hayabusa"], "their fault: Windows writes a space that the rule does not have"),
    "channel-missing": (["hayabusa", "zircolite"], [], "open: an event with EventLog in place of Channel"),
}
"""Class of `peer-matches/README.md` -> which tools lack matches for it, which have too many, and why."""


@dataclass
class Difference:
    """What one tool and we do not both report of one rule, and why; *events* are lines or record numbers by file."""

    input: str
    tool: str
    rule: str
    title: str
    only: str
    matches: int
    cause: str
    events: dict[str, str]


def differences(which: str, ours: set[Event], rules: frozenset[str]) -> tuple[list[Difference], int]:
    """Return every difference from the four tools for *rules*, and how many matches are of rules that are not ours."""
    with (PEERS / "summary.csv").open(newline="") as file:
        summary = {row["rule_id"]: row for row in csv.DictReader(file) if row["input"] == which}
    found, aside = [], 0
    for tool in TOOLS:
        theirs = peer_events(which)[tool]
        aside += sum(match[0] not in rules for match in theirs)
        theirs = {match for match in theirs if match[0] in rules}
        for only, matches in (("ours", ours - theirs), ("theirs", theirs - ours)):
            for rule, group in _by_rule(matches).items():
                row = summary.get(rule, {"class": "", "title": ""})
                cause = _cause(row, tool, only, len(group))
                events = {file: " ".join(one[2] for one in group if one[1] == file) for _, file, _ in group}
                found.append(Difference(which, tool, rule, row["title"], only, len(group), cause, events))
    return found, aside


def _by_rule(matches: set[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for match in sorted(matches):
        found[match[0]].append(match)
    return found


def _cause(row: Mapping[str, str], tool: str, only: str, matches: int) -> str:
    """Return why a tool and we differ on a rule; empty if the known causes do not say it."""
    if only == "ours" and row.get("reading_4688", "0") not in ("", "0") and matches <= int(row["reading_4688"]):
        return f"4688: {CAUSES['4688'][2]}"
    for name in row["class"].split():
        lacking, beyond, reason = CAUSES.get(name, ((), (), ""))
        if tool in (lacking if only == "ours" else beyond):
            return f"{name}: {reason}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    detector = build("sigma", {"path": str(RULES)}, None)
    plainly = Plainly(RULES)
    windows = frozenset(rule.id for rule in detector._engine.rules if rule.place.startswith("rules/windows/"))
    report: dict[str, Any] = {"rules": plainly.rules}
    wrong = 0
    for which, paths in inputs(DATA).items():
        begin = time.perf_counter()
        both = compare(detector, plainly, paths)
        report[which] = {**asdict(both), "seconds": round(time.perf_counter() - begin)}
        wrong += len(both.only_fast) + len(both.only_plain)
        print(
            f"{which}: {both.records:,} records ({both.left_out:,} are neither Windows' nor CloudTrail's),"
            f" {both.matches:,} matches; {len(both.only_fast)} of the engine alone,"
            f" {len(both.only_plain)} of the plain reading alone"
        )
        ours = {
            match for match in (evtx_matches if which == "evtx" else mordor_matches)(detector) if match[0] in windows
        }
        found, aside = differences(which, ours, windows)
        report[which]["tools"] = [asdict(one) for one in found]
        report[which]["aside"] = aside
        sums: Counter[tuple[str, str, str]] = Counter()
        for one in found:
            sums[one.tool, one.only, one.cause or "NOT EXPLAINED"] += one.matches
        wrong += sum(not one.cause for one in found)
        for (tool, only, cause), matches in sorted(sums.items()):
            print(f"  {tool:10} {only:6} {matches:6,}  {cause}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(f"{wrong} differences that nothing explains" if wrong else 0)


if __name__ == "__main__":
    main()
