"""Log sources of clouds, networks and hosts: what a native event is to SigmaHQ's own rules."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from agent.model import DOCUMENT, Chunk, Kind, Records
from agent.normalise import Normaliser
from agent.normalise.clock import parse
from agent.normalise.mapping import installed
from agent.state import State
from rules.detector import SigmaDetector, build
from rules.sigma import logsource
from tests.sigma_events import engine, rule_text

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("VEDETTE_TEST_DATA", REPO.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real rules are not at {DATA}; set VEDETTE_TEST_DATA")

DEFENDER = {
    "@timestamp": "2026-11-20T09:00:00Z",
    "EventID": 1116,
    "Channel": "Microsoft-Windows-Windows Defender/Operational",
    "SourceName": "Microsoft-Windows-Windows Defender",
    "Hostname": "ws-07.corp.example.com",
}
OKTA = {"published": "2026-11-20T09:00:00Z", "actor": {"id": "u1", "alternateId": "ann@a.example"}, "uuid": "1"}
AZURE = {"time": "2026-11-20T09:00:00Z", "resourceId": "/tenants/t", "operationName": "x", "category": "Administrative"}
DIRECTORY = AZURE | {"category": "AuditLogs", "properties": {"id": "1", "result": "success"}}
SIGN_IN = AZURE | {"category": "SignInLogs", "operationName": "Sign-in activity"}
CUBE = {"kind": "Event", "apiVersion": "audit.k8s.io/v1", "auditID": "1", "stage": "ResponseComplete", "verb": "get"}
UNIFIED = {"CreationTime": "2026-11-20T09:00:00", "RecordType": 8, "UserType": 0, "Id": "1", "UserId": "ann@a.example"}
CODE = {"actor": "ann", "created_at": 1795000000000, "_document_id": "1"}
FLOW = {"ts": 1795000000.0, "uid": "C1", "id.orig_h": "192.0.2.7", "id.orig_p": 50000, "id.resp_h": "192.0.2.9"}
CONFIG = 'date=2026-11-20 time=09:00:00 devname="fw" devid="FG1" type="event" subtype="system" level="notice" '
FORTI = CONFIG + 'logdesc="Object attribute configured" user="ann" action="Add" cfgpath="%s" msg="%s"'
ASA = "Nov 20 09:00:00 fw1 %%ASA-5-111008: User 'ann' executed the '%s' command."
SQUID = "1795000000.123 45 192.0.2.1 TCP_MISS/200 512 GET %s - HIER_DIRECT/198.51.100.9 text/html"
LINK = "Nov 20 09:00:00 gw kernel: IN=eth0 OUT= SRC=192.0.2.1 DST=%s LEN=60 TTL=64 PROTO=TCP SPT=50000 DPT=443"
EXECVE = 'type=EXECVE msg=audit(1795000000.000:1): argc=3 a0="%s" a1="-c" a2="%s"'


def sensor(log: str, action: str, type: str, system: str = "windows", **more: Any) -> dict[str, Any]:
    """Return a document as Elastic Defend writes it."""
    event = {"module": "endpoint", "dataset": f"endpoint.events.{log}", "category": [log], "type": [type]}
    return {
        "@timestamp": "2026-11-20T09:00:00Z",
        "ecs": {"version": "8.10.0"},
        "event": {**event, "kind": "event", "action": action},
        "host": {"os": {"type": system}},
        **more,
    }


def gcp(method: str, service: str = "dlp.googleapis.com", **payload: Any) -> dict[str, Any]:
    payload = {"methodName": method, "serviceName": service, **payload}
    return {
        "logName": "projects/p/logs/a",
        "timestamp": "2026-11-20T09:00:00Z",
        "insertId": "1",
        "protoPayload": payload,
    }


def cube(verb: str, resource: str, **rest: Any) -> dict[str, Any]:
    return CUBE | {"verb": verb, "objectRef": {"resource": resource, **rest}}


def sign_in(**properties: Any) -> dict[str, Any]:
    return SIGN_IN | {"properties": {"id": "1", **properties}}


def at(log: str, **fields: Any) -> dict[str, Any]:
    return FLOW | {"_path": log} | fields


ELSEWHERE = {"web.access", *(f"endpoint.events.{log}" for log in ("file", "library", "network", "process", "registry"))}
"""Data sets of documents in a SIEM, which other agents wrote."""

FIRES: list[tuple[str, Any]] = [
    ("av_password_dumper", DEFENDER | {"Threat Name": "HackTool:Win32/Mimikatz!pz", "Path": "file:_C:\\a.exe"}),
    ("okta_admin_role_assignment_created", OKTA | {"eventType": "iam.resourceset.bindings.add"}),
    (
        "okta_fastpass_phishing_detection",
        OKTA
        | {
            "eventType": "user.authentication.auth_via_mfa",
            "outcome": {"result": "FAILURE", "reason": "FastPass declined phishing attempt"},
        },
    ),
    (
        "azure_network_firewall_rule_modified_or_deleted",
        AZURE | {"operationName": "MICROSOFT.NETWORK/FIREWALLPOLICIES/RULEGROUPS/DELETE"},
    ),
    ("azure_granting_permission_detection", AZURE | {"operationName": "Microsoft.Authorization/roleAssignments/write"}),
    (
        "azure_app_owner_added",
        DIRECTORY | {"operationName": "Add owner to application"},
    ),
    (
        "azure_ad_device_registration_policy_changes",
        DIRECTORY | {"properties": {"category": "Policy", "activityDisplayName": "Set device registration policies"}},
    ),
    (
        "azure_login_to_disabled_account",
        SIGN_IN
        | {
            "resultType": "50057",
            "properties": {
                "status": {
                    "errorCode": 50057,
                    "failureReason": "User account is disabled. The account has been disabled by an administrator.",
                }
            },
        },
    ),
    (
        "microsoft365_activity_by_terminated_user",
        UNIFIED
        | {
            "Operation": "AlertTriggered",
            "Workload": "SecurityComplianceCenter",
            "Name": "Activity performed by terminated user",
            "ResultStatus": "Succeeded",
        },
    ),
    (
        "gcp_gworkspace_application_removed",
        gcp("x", "admin.googleapis.com", metadata={"event": [{"eventName": "REMOVE_APPLICATION"}]}),
    ),
    ("proxy_susp_flash_download_loc", SQUID % "http://a.example/install_flash_player.exe"),
    ("azure_service_principal_removed", DIRECTORY | {"operationName": "Remove service principal"}),
    (
        "azure_identity_protection_token_issuer_anomaly",
        AZURE | {"category": "UserRiskEvents", "properties": {"riskEventType": "tokenIssuerAnomaly"}},
    ),
    ("gcp_dlp_re_identifies_sensitive_information", gcp("projects.content.reidentify")),
    (
        "gcp_gworkspace_govattack",
        gcp(
            "google.login.LoginService.x",
            "login.googleapis.com",
            metadata={"event": [{"eventName": "gov_attack_warning"}]},
        ),
    ),
    ("kubernetes_audit_events_deleted", cube("delete", "events")),
    ("kubernetes_audit_pod_in_system_namespace", cube("create", "pods", namespace="kube-system")),
    ("kubernetes_audit_cronjob_modification", cube("create", "cronjobs", apiGroup="batch")),
    (
        "kubernetes_audit_unauthorized_unauthenticated_actions",
        cube("get", "pods") | {"responseStatus": {"code": 403}},
    ),
    (
        "microsoft365_disabling_mfa",
        UNIFIED | {"Operation": "Disable Strong Authentication.", "Workload": "AzureActiveDirectory"},
    ),
    (
        "microsoft365_suspicious_email_delivered",
        UNIFIED | {"Operation": "TIMailData", "Workload": "ThreatIntelligence", "Directionality": "Inbound"},
    ),
    ("github_ssh_certificate_config_changed", CODE | {"action": "ssh_certificate_authority.create"}),
    ("github_secret_scanning_feature_disabled", CODE | {"action": "secret_scanning.disable"}),
    ("zeek_default_cobalt_strike_certificate", at("x509", **{"certificate.serial": "8BB00EE"})),
    ("zeek_rdp_public_listener", at("rdp", cookie="x", cert_count=0) | {"id.orig_h": "203.0.113.9"}),
    ("zeek_susp_kerberos_rc4", at("kerberos", request_type="TGS", cipher="rc4-hmac", service="cifs/a")),
    ("zeek_dns_mining_pools", at("dns", query="a.minexmr.com", rejected=False)),
    (
        "zeek_dce_rpc_potential_petit_potam_efs_rpc_call",
        at("dce_rpc", endpoint="efsrpc", operation="EfsRpcOpenFileRaw"),
    ),
    ("zeek_http_webdav_put_request", at("http", user_agent="x WebDAV y", method="PUT", uri="/a")),
    ("fortinet_fortigate_new_local_user_created", FORTI % ("user.local", "")),
    ("fortios_sslvpnd_exploit_cve_2022_42475_exploitation_indicators", FORTI % ("x", "/data/lib/libips.bak")),
    ("cisco_cli_collect_data", ASA % "show running-config"),
    ("cisco_cli_crypto_actions", ASA % "crypto pki export a"),
    ("proxy_raw_paste_service_access", SQUID % "http://a.pastebin.com/raw/x"),
    ("net_firewall_apt_equationgroup_c2", LINK % "69.42.98.86"),
    ("proc_creation_lnx_python_pty_spawn", EXECVE % ("/usr/bin/python3", "import pty; pty.spawn(1)")),
    (
        "proc_creation_macos_csrutil_status",
        sensor(
            "process",
            "exec",
            "start",
            "macos",
            process={"executable": "/usr/bin/csrutil", "command_line": "csrutil status"},
        ),
    ),
    (
        "proc_creation_lnx_base64_decode",
        sensor(
            "process", "exec", "start", "linux", process={"executable": "/usr/bin/base64", "command_line": "base64 -d"}
        ),
    ),
    (
        "proc_creation_win_certutil_download",
        sensor(
            "process",
            "start",
            "start",
            process={
                "executable": "C:\\a.exe",
                "pe": {"original_file_name": "CertUtil.exe"},
                "command_line": "a -urlcache -f http://192.0.2.1/a",
            },
        ),
    ),
    (
        "registry_set_disable_defender_firewall",
        sensor(
            "registry",
            "modification",
            "change",
            registry={
                "path": "HKLM\\SYSTEM\\CurrentControlSet\\Services\\SharedAccess\\Parameters\\FirewallPolicy\\"
                "DomainProfile\\EnableFirewall",
                "data": {"type": "REG_DWORD", "strings": ["0"]},
            },
        ),
    ),
    (
        "image_load_dll_amsi_suspicious_process",
        sensor(
            "library",
            "load",
            "start",
            dll={"path": "C:\\Windows\\System32\\amsi.dll"},
            process={"executable": "C:\\Windows\\System32\\rundll32.exe"},
        ),
    ),
    (
        "file_event_win_susp_exchange_aspx_write",
        sensor(
            "file",
            "creation",
            "creation",
            file={"path": "C:\\a.aspx"},
            process={"executable": "C:\\MSExchangeMailboxReplication.exe"},
        ),
    ),
    (
        "dns_query_win_tor_onion_domain_query",
        sensor("network", "lookup_requested", "info", dns={"question": {"name": "a.onion"}}),
    ),
    (
        "net_connection_win_certutil_initiated_connection",
        sensor(
            "network",
            "connection_attempted",
            "start",
            destination={"ip": "192.0.2.1", "port": 443},
            process={"executable": "C:\\Windows\\System32\\certutil.exe"},
        ),
    ),
    (
        "file_rename_win_ransomware",
        sensor(
            "file",
            "rename",
            "change",
            file={
                "path": "C:\\a.docx.locked",
                "Ext": {"original": {"path": "C:\\a.docx"}},
            },
        ),
    ),
    (
        "proc_creation_lnx_crontab_removal",
        {
            "event_simpleName": "ProcessRollup2",
            "aid": "a1",
            "timestamp": "1795000000000",
            "event_platform": "Lin",
            "ImageFileName": "/usr/bin/crontab",
            "CommandLine": "crontab -r",
        },
    ),
    (
        "file_event_macos_emond_launch_daemon",
        sensor("file", "creation", "creation", "macos", file={"path": "/etc/emond.d/rules/a.plist"}),
    ),
]


def unpack(names: Container[str], folder: Path) -> None:
    """Put SigmaHQ's rules of these file names into *folder*."""
    with tarfile.open(DATA / "sigma" / "sigma-rules.tar.gz") as archive:
        for member in archive:
            if Path(member.name).stem in names and (stream := archive.extractfile(member)) is not None:
                (folder / Path(member.name).name).write_bytes(stream.read())


@needs_data
def test_a_native_event_is_found_by_the_rule_of_its_log_source_and_by_no_other(tmp_path: Path) -> None:
    """Each event is found by SigmaHQ's rule for it, and no rule finds an event of another product."""
    names = {name for name, _ in FIRES}
    unpack(names, tmp_path)
    titles = {name: yaml.safe_load((tmp_path / f"{name}.yml").read_text())["title"] for name in names}
    detector = build("sigma", {"path": str(tmp_path)}, None)
    found = {(name, title) for name, event in FIRES for title in find(detector, event)}
    assert found == {(name, titles[name]) for name in names}


@needs_data
def test_a_siem_is_asked_for_all_that_rules_read_of_sensors(tmp_path: Path) -> None:
    """A document with nothing but the fields that the rules want of a source is found as the whole one is."""
    documents = {name: event for name, event in FIRES if isinstance(event, dict) and "ecs" in event}
    unpack(documents, tmp_path)
    detector = build("sigma", {"path": str(tmp_path)}, None)
    wanted = Normaliser(detector.fields).projection(frozenset())
    for event in documents.values():
        pruned = kept(event | {"labels": {"site": "a"}}, wanted)
        assert "labels" not in pruned
        assert find(detector, pruned, DOCUMENT) == find(detector, event) != []


def kept(document: dict[str, Any], wanted: frozenset[str], above: str = "") -> dict[str, Any]:
    """Return what *wanted* names of a document, as a SIEM returns it."""
    found = {
        key: kept(value, wanted, f"{above}{key}.") if isinstance(value, dict) else value
        for key, value in document.items()
        if isinstance(value, dict) or f"{above}{key}" in wanted
    }
    return {key: value for key, value in found.items() if value != {}}


@pytest.mark.parametrize(
    ("source", "event"),
    [
        ("{category: antivirus}", DEFENDER | {"EventID": 5001}),
        ("{category: proxy}", ASA % "x"),
        ("{category: firewall}", SQUID % "http://a.example/"),
        ("{product: zeek, service: http}", at("dns", query="a.example")),
        ("{product: fortigate, service: event}", FORTI.replace('type="event"', 'type="traffic"') % ("a", "b")),
        ("{product: azure, service: auditlogs}", SIGN_IN),
        ("{product: gcp, service: google_workspace.login}", gcp("projects.content.reidentify")),
        ("{product: linux, category: process_creation}", EXECVE.replace("EXECVE", "SYSCALL") % ("a", "b")),
        ("{product: linux, category: process_creation}", sensor("process", "exec", "start", "macos")),
        ("{product: windows, category: process_creation}", sensor("process", "exec", "start", "linux")),
        ("{product: windows, category: process_creation}", sensor("process", "end", "end")),
        ("{product: windows, category: file_event}", sensor("file", "deletion", "deletion")),
        ("{product: windows, category: registry_add}", sensor("registry", "modification", "change")),
        ("{product: windows, category: image_load}", sensor("process", "start", "start")),
    ],
)
def test_the_neighbour_is_another_log_source(tmp_path: Path, source: str, event: Any) -> None:
    """A log of the same product, or of the same kind of device, that is not the log source is left alone."""
    (tmp_path / "rule.yml").write_text(rule_text("{sel: {a: null}, condition: sel}", source))
    assert find(build("sigma", {"path": str(tmp_path)}, None), event) == []


def test_windows_pays_nothing_for_other_products() -> None:
    """An event of a Windows channel that has no data set has no rule of another product to look at."""
    products = [f"{{product: {name}}}" for name in logsource.PRODUCTS]
    categories = [f"{{category: {name}}}" for name in ("antivirus", "database", "firewall", "proxy")]
    setup = Kind("windows", (("event.code", "1"), ("winlog.channel", "Setup")), {}, "winlog.event_data.")
    rules = engine(*(rule_text("{sel: {a: b}, condition: sel}", one) for one in products + categories))
    assert [rule.logsource for rule in rules.rules_of(setup)] == [("windows", None, None)]


def test_each_data_set_is_one_that_a_mapping_writes() -> None:
    """No log source waits for a data set that nobody names."""
    written = {
        value
        for mapping in installed()
        for layer in mapping.layers
        for value in layer.constants.get("event.dataset", ())
    }
    tables = (logsource.PRODUCTS, logsource.CATEGORIES, logsource.SERVICES)
    named = [one.get("event.dataset", ()) for table in tables for rows in table.values() for one in rows]
    assert {name for one in named for name in ([one] if isinstance(one, str) else one)} - written <= ELSEWHERE


def find(detector: SigmaDetector, event: Any, format: str = "") -> list[str]:
    """Return the titles of the rules that find a native record: a text is a line, an object JSON."""
    line = isinstance(event, str)
    raw = event.encode() if line else event if format == DOCUMENT else orjson.dumps(event)
    chunk = Chunk("p", "f", format or ("syslog" if line else "json"), range(1), [raw])
    batch = Normaliser(detector.fields)(Records("s", (chunk,), {}, parse("2026-11-21T00:00:00Z")), {}).batch
    return [finding.detector.title for finding in detector.detect(batch, State().transaction().view("sigma"))]
