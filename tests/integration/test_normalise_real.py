"""Real logs through the normaliser: nothing is lost, types hold, and the documents agree with Elastic's own."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evtx
import pytest

from agent import plugins
from agent.errors import RecordError
from agent.model import DOCUMENT, UNPARSED, Chunk, Kind, Records
from agent.normalise import Normaliser
from agent.normalise.catalogue import catalogue
from agent.normalise.clock import parse
from agent.pipeline import Pipeline
from tests.integration.integrations import PRODUCTS, WITHOUT, classes, compare, explained, leaves, streams, table

DATA = Path(os.environ.get("VEDETTE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"real logs are not at {DATA} (set VEDETTE_TEST_DATA)")

ARCHIVE = DATA / "integrations/integration-pipeline-tests.tar.gz"
AS_OF = parse("2026-11-01T00:00:00Z")
VENDORS = (
    *("winlog.", "sysmon.", "aws.", "system.", "powershell.", "web.", "json."),
    *("auditd.", "nginx.", "apache.", "iis.", "haproxy.", "iptables.", "mysql.", "squid."),
    *("user.audit.", "user.saved.", "user.filesystem.", "user.owner.", "user.terminal"),  # of auditd
)
FLOORS = {
    "aws cloudfront_logs": 0.99,
    "aws elb_logs": 1.0,
    "aws firewall_logs": 0.9,
    "aws guardduty": 0.96,
    "aws route53_resolver_logs": 0.93,
    "aws s3access": 0.97,
    "aws securityhub_findings": 0.87,
    "aws vpcflow": 0.96,
    "aws waf": 1.0,
    "gcp dns": 0.98,
    "gcp firewall": 0.97,
    "gcp loadbalancing_logs": 0.94,
    "gcp vpcflow": 0.99,
    "google_workspace token": 0.71,
    "google_workspace rules": 0.68,
    "google_workspace device": 0.84,
    "google_workspace context_aware_access": 0.72,
    "google_workspace alert": 0.87,
    "google_workspace access_transparency": 0.75,
    "google_workspace saml": 1.0,
    "google_workspace login": 0.96,
    "google_workspace drive": 0.97,
    "google_workspace admin": 0.95,
    "o365 audit": 0.95,
    "gcp audit": 0.97,
    "github secret_scanning": 0.94,
    "github code_scanning": 0.98,
    "github audit": 0.99,
    "crowdstrike fdr": 0.88,
    "crowdstrike falcon": 0.87,
    "azure activitylogs": 0.45,
    "azure application_gateway": 0.86,
    "azure auditlogs": 0.82,
    "azure firewall_logs": 0.93,
    "azure identity_protection": 0.92,
    "azure provisioning": 0.93,
    "azure signinlogs": 0.98,
    "okta system": 0.92,
    "zeek capture_loss": 1.0,
    "zeek connection": 0.96,
    "zeek dhcp": 0.96,
    "zeek dns": 0.98,
    "zeek dpd": 1.0,
    "zeek ftp": 1.0,
    "zeek http": 1.0,
    "zeek intel": 0.98,
    "zeek kerberos": 0.9,
    "zeek known_certs": 1.0,
    "zeek known_hosts": 1.0,
    "zeek known_services": 1.0,
    "zeek modbus": 1.0,
    "zeek mysql": 1.0,
    "zeek notice": 0.96,
    "zeek ntlm": 1.0,
    "zeek ntp": 0.95,
    "zeek ocsp": 1.0,
    "zeek pe": 1.0,
    "zeek signature": 0.94,
    "zeek sip": 0.99,
    "zeek smb_files": 0.96,
    "zeek snmp": 1.0,
    "zeek socks": 1.0,
    "zeek software": 0.93,
    "zeek ssh": 1.0,
    "zeek traceroute": 1.0,
    "zeek tunnel": 1.0,
    "zeek weird": 1.0,
    "zeek x509": 1.0,
    "system auth": 0.98,
    "auditd log": 0.98,
    "auditd_manager auditd": 0.99,
    "apache error": 0.98,
    "iis access": 0.97,
    "iis error": 0.98,
    "haproxy log": 0.97,
    "iptables log": 0.96,
    "mysql error": 0.99,
    "mysql slowlog": 0.99,
    "system syslog": 0.94,
    "system security": 0.98,
    "nginx access": 1.0,
    "apache access": 1.0,
    "aws cloudtrail": 0.97,
    "windows sysmon": 0.96,
    "windows forwarded": 0.97,
    "sysmon_linux log": 0.88,
    "windows powershell": 0.98,
    "windows powershell_operational": 0.97,
    "cef log": 0.98,
    "cisco asa": 0.99,
    "fortinet fortigate": 0.98,
    "panw panos": 0.95,
    "suricata eve": 0.98,
    "checkpoint firewall": 0.96,
    "juniper_srx log": 0.88,
    "pfsense log": 0.56,
}
"""Measured; the share of expected fields that our documents have with the same value."""


def archive_lines(path: Path) -> Iterator[bytes]:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
            parts = [archive.read(name) for name in names]
    else:
        with tarfile.open(path) as tar:
            members = [tar.extractfile(one) for one in tar if one.isfile() and not Path(one.name).name.startswith("._")]
            parts = [member.read() for member in members if member]
    for part in parts:
        yield from (line for line in part.split(b"\n") if line.strip())


def mordor() -> list[bytes]:
    names = [*sorted((DATA / "mordor/atomic").iterdir()), DATA / "mordor/goldensamladfsmailaccess/WindowsEvents.Zip"]
    return [line for path in names for line in archive_lines(path) if line.startswith(b"{")]


def sources() -> Iterator[tuple[str, list[bytes]]]:
    """Yield formats with real records of them."""
    yield "json", mordor()
    with tarfile.open(DATA / "evtx/evtx-attack-samples.tar.gz") as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".evtx")]
        raw = [io.BytesIO(one.read()) for one in files if one]
    yield "evtx", [row["data"].encode() for one in raw for row in evtx.PyEvtxParser(one).records_json()]
    with tarfile.open(DATA / "loghub/loghub-2k.tar.gz") as tar:
        logs = {Path(one.name).name: tar.extractfile(one) for one in tar if one.name.endswith("_2k.log")}
        for name in ("OpenSSH_2k.log", "Linux_2k.log", "Apache_2k.log"):
            file = logs[name]
            assert file
            yield "syslog", file.read().splitlines()
    yield "syslog", list(archive_lines(DATA / "mordor/atomic/sh_arp_cache.zip"))
    yield "access", gzip.decompress((DATA / "web/apache_access.log.gz").read_bytes()).splitlines()
    yield "cloudtrail", list(cloudtrail())


def cloudtrail() -> Iterator[bytes]:
    with tarfile.open(DATA / "cloudtrail/stratus-detonation-logs.tar.gz") as tar:
        for member in tar:
            if member.name.endswith(".json") and (file := tar.extractfile(member)):
                events = json.loads(file.read())
                yield from (json.dumps(one).encode() for one in (events if isinstance(events, list) else [events]))


@pytest.fixture(scope="module")
def real() -> list[tuple[str, list[bytes]]]:
    return list(sources())


def test_every_real_record_is_read(real: list[tuple[str, list[bytes]]]) -> None:
    """No real record of a supported product is quarantined, untimed or of unknown shape."""
    seen: Counter[tuple[str, str]] = Counter()
    wanted = frozenset({"host.name", "process.pid", "source.ip", "source.port", "user.name", "event.original"})
    for format, raw in real:
        result = Normaliser(lambda kind: wanted)(
            Records("s", (Chunk("p", "f", format, range(len(raw)), raw),), {}, AS_OF), {}
        )
        seen.update((format, result.batch.kinds[number].mapping) for number in result.batch.kind)
        assert len(result.batch) == len(raw)
        assert not result.dead
        assert result.counts.get("untimed", 0) == 0
        assert not any(name.startswith("wrong_type") for name in result.counts)
    assert set(seen) == {
        ("json", "windows"),
        ("json", "cloudtrail"),
        ("evtx", "windows"),
        ("syslog", "linux"),
        ("syslog", "apache_error"),
        ("syslog", "auditd"),
        ("access", "web"),
        ("cloudtrail", "cloudtrail"),
    }
    assert UNPARSED not in {mapping for _, mapping in seen}


def test_documents_follow_the_catalogue(real: list[tuple[str, list[bytes]]]) -> None:
    """Every field of every document is ECS of the right type and with an allowed value, or the vendor's."""
    normaliser = Normaliser(lambda kind: frozenset())
    faults: Counter[str] = Counter()
    for format, raw in real:
        for record in raw[:: max(1, len(raw) // 1500)]:
            for name, value in leaves(normaliser.document(format, record, as_of=AS_OF)):
                faults.update(faults_of(name, value))
    assert not faults


def faults_of(name: str, value: Any) -> Iterator[str]:
    field = catalogue().fields.get(name)
    items = value if isinstance(value, list) else [value]
    if field is None:
        if not name.startswith(VENDORS):
            yield f"{name} is no ECS field"
        return
    if field.array != isinstance(value, list) and field.array:
        yield f"{name} is no list"
    if any(isinstance(item, dict) for item in items):
        for key, inner in ((key, inner) for item in items for key, inner in item.items()):
            yield from faults_of(f"{name}.{key}", inner)
        return
    expected = catalogue().converter(name)
    if any(expected(item) != item or type(expected(item)) is not type(item) for item in items):
        yield f"{name} is no {field.type}"
    if allowed := catalogue().allowed.get(name):
        yield from (f"{name}: {item} is not allowed" for item in items if item not in allowed)


def test_attackers_of_openssh_are_in_columns(real: list[tuple[str, list[bytes]]]) -> None:
    """The addresses of failed logins are those that the data set names."""
    (raw,) = (lines for format, lines in real if format == "syslog" and b"LabSZ" in lines[0])

    def wanted(kind: Kind) -> frozenset[str]:
        return frozenset({"source.ip", "system.auth.ssh.event", "event.outcome"})

    batch = Normaliser(wanted)(Records("s", (Chunk("p", "f", "syslog", range(len(raw)), raw),), {}, AS_OF), {}).batch
    failed = Counter(
        batch.value(row, "source.ip")
        for row in range(len(batch))
        if batch.value(row, "system.auth.ssh.event") == "Failed"
    )
    assert (failed["183.62.140.253"], failed["187.141.143.180"], failed["103.99.0.122"]) == (286, 80, 46)


def test_regression_events_of_sigma_are_windows() -> None:
    """The JSON form of SigmaHQ's regression events is read like EVTX."""
    normaliser = Normaliser(lambda kind: frozenset())
    mappings = Counter()
    with tarfile.open(DATA / "sigma/sigma-regression.tar.gz") as tar:
        for member in tar:
            if member.name.endswith(".json") and (file := tar.extractfile(member)):
                for event in concatenated(file.read().decode()):
                    document = normaliser.document("json", event, as_of=AS_OF)
                    mappings["windows" if "winlog" in document else "other"] += 1
    assert mappings["windows"] > 90
    assert mappings["other"] <= 2


def concatenated(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file that holds one or more, one after the other."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        event, place = decoder.raw_decode(text, place)
        place += len(text[place:]) - len(text[place:].lstrip())
        yield event


def test_agreement_with_elastic(capsys: pytest.CaptureFixture[str]) -> None:
    """Our documents agree with those of Elastic's integrations at least as far as measured."""
    tallies = compare(ARCHIVE)
    with capsys.disabled():
        print(f"\n{table(tallies)}\nDifferences by class\n{explained(tallies)}")
    assert {name: tally.share for name, tally in tallies.items() if tally.share < FLOORS[name]} == {}
    assert {name: tally.lost for name, tally in tallies.items() if tally.lost} == {}
    assert classes(tallies)["unclassed"] == {}


def test_every_product_is_compared_or_has_a_reason() -> None:
    """Each product of the archive's index has a row in the comparison, or the reason why not; never both."""
    folders = {folder for folder, *_ in PRODUCTS.values()}
    found = streams(ARCHIVE)
    assert {name for name, folder in found.items() if folder not in folders} == set(WITHOUT)
    assert folders <= set(found.values())
    assert set(FLOORS) == set(PRODUCTS)


def test_what_is_not_mapped_yet_is_a_dead_letter() -> None:
    """A line of a form that no mapping knows is refused, not misread."""
    line = b"record=EXECVE of=audit(1604994496.155:92733) argc=2"
    with pytest.raises(RecordError):
        Normaliser(lambda kind: frozenset()).document("syslog", line, as_of=AS_OF)


def projected(document: Any, places: frozenset[str]) -> Any:
    """Return what a SIEM gives of a document when only *places* are asked for; a star stands for any name."""
    stars = [place.partition("*") for place in places if "*" in place]

    def is_asked(name: str) -> bool:
        return name in places or any(name.startswith(a) and name.endswith(b) for a, _, b in stars)

    def keep(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {k: kept for k, v in value.items() if (kept := of(v, f"{name}.{k}" if name else k)) is not None}
        return [kept for one in value if isinstance(one, dict) and (kept := keep(one, name))]

    def of(value: Any, name: str) -> Any:
        if is_asked(name):
            return value
        return (keep(value, name) or None) if isinstance(value, dict | list) else None

    return keep(document, "")


@pytest.mark.parametrize("product", ["windows", "cloudtrail"])
def test_projected_documents_give_the_same_columns(real: list[tuple[str, list[bytes]]], product: str) -> None:
    """What a source leaves out, no rule reads: every column of every real event is the same without it."""
    detector = plugins.detector("sigma")("rules", {"path": "builtin"}, None)
    formats = {"windows": ("json", "evtx"), "cloudtrail": ("cloudtrail",)}[product]
    whole = [json.loads(line) for format, raw in real if format in formats for line in raw[::3]]
    places = Pipeline([detector]).projection()
    part = [projected(document, places) for document in whole]
    assert sum(map(len, map(str, part))) < sum(map(len, map(str, whole)))
    batches = []
    for documents in (whole, part):
        chunk = Chunk("p", "index", DOCUMENT, range(len(documents)), documents)
        batches.append(Normaliser(detector.fields)(Records("s", (chunk,), {}, AS_OF), {}).batch)
    assert [batches[0].kinds[number] for number in batches[0].kind] == [batches[1].kinds[n] for n in batches[1].kind]
    assert list(batches[0].time) == list(batches[1].time)
    assert batches[0].columns.keys() == batches[1].columns.keys()
    for name in batches[0].columns:
        for row in range(len(whole)):
            assert batches[0].value(row, name) == batches[1].value(row, name), (name, whole[row])
