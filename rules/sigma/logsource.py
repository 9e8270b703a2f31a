"""Which events a Sigma log source means, in ECS.

A log source is the conjunction of what its product, category and service stand for. Each entry lists alternatives; an
alternative is a set of ECS fields with the values they may have (``True``: any value, ``False``: none). A log source
with a part that is in none of the tables is not fed by any mapping yet: its rules are loaded, counted and named in the
plan, and match nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]

_SYSMON = "Microsoft-Windows-Sysmon/Operational"
_LINUX_SYSMON = "Linux-Sysmon/Operational"
_SYSLOG = ["system.auth", "system.syslog"]
_AUDITD = ["auditd.log", "auditd_manager.auditd"]
_POWERSHELL = ["Microsoft-Windows-PowerShell/Operational", "PowerShellCore/Operational"]


# fmt: off
_SENSORS = [
    "crowdstrike.fdr", "endpoint.events.file", "endpoint.events.library", "endpoint.events.network",
    "endpoint.events.process", "endpoint.events.registry",
]
# fmt: on
"""What sensors of hosts tell in ECS, of whatever system: Elastic Defend, CrowdStrike Falcon."""
_FIREWALLS = [
    "aws.firewall_logs",
    "checkpoint.firewall",
    "cisco_asa.log",
    "fortinet_fortigate.log",
    "gcp.firewall",
    "iptables.log",
    "juniper_srx.log",
    "panw.panos",
    "pfsense.log",
]
_ZEEK = {"conn": "connection", "signatures": "signature"}
"""Zeek's logs whose data set has another name."""
# fmt: off
_ZEEK_LOGS = [
    "capture_loss", "conn", "dce_rpc", "dhcp", "dns", "dpd", "files", "ftp", "http", "intel", "kerberos", "known_certs",
    "known_hosts", "known_services", "modbus", "mysql", "notice", "ntlm", "ntp", "ocsp", "pe", "rdp", "signatures",
    "sip", "smb_files", "smb_mapping", "smtp", "snmp", "socks", "software", "ssh", "ssl", "syslog", "traceroute",
    "tunnel", "weird", "x509",
]
# fmt: on


def _channel(*names: str) -> list[Fields]:
    return [{"winlog.channel": list(names)}]


def _event(channel: str | list[str], *codes: int) -> Fields:
    return {"winlog.channel": channel, "event.code": [str(code) for code in codes]}


def _sysmon(*codes: int) -> list[Fields]:
    return [_event(_SYSMON, *codes)]


def _dataset(*names: str, **more: Any) -> list[Fields]:
    """Return a log source that is not Windows: a Windows channel without a data set has none of its rules."""
    return [{"winlog.channel": False, "event.dataset": list(names), **more}]


def _told(**more: Any) -> list[Fields]:
    """Return what sensors of hosts tell; the names of fields have ``_`` for ``.``."""
    return _dataset(*_SENSORS, **{key.replace("_", "."): one for key, one in more.items()})


def _zeek(log: str) -> str:
    return f"zeek.{_ZEEK.get(log, log)}"


def _process(*names: str) -> list[Fields]:
    return [{"event.dataset": _SYSLOG, "process.name": list(names)}]


PRODUCTS: Mapping[str, list[Fields]] = {
    "windows": [{"winlog.channel": True}, *_told(host_os_type="windows")],
    "linux": [
        {"winlog.channel": False, "event.dataset": [*_SYSLOG, *_AUDITD]},
        {"winlog.channel": _LINUX_SYSMON},
        *_told(host_os_type="linux"),
    ],
    "macos": _told(host_os_type="macos"),
    "aws": [{"winlog.channel": False, "event.dataset": "aws.cloudtrail"}],
    "azure": _dataset(
        *("azure.activitylogs", "azure.auditlogs", "azure.identity_protection", "azure.platformlogs"),
        *("azure.provisioning", "azure.signinlogs"),
    ),
    "cisco": _dataset("cisco_asa.log"),
    "fortigate": _dataset("fortinet_fortigate.log"),
    "fortios": _dataset("fortinet_fortigate.log"),
    "gcp": _dataset("gcp.audit"),
    "github": _dataset("github.audit"),
    "kubernetes": _dataset("kubernetes.audit_logs"),
    "m365": _dataset("o365.audit"),
    "okta": _dataset("okta.system"),
    "zeek": _dataset(*map(_zeek, _ZEEK_LOGS)),
}

CATEGORIES: Mapping[tuple[str | None, str], list[Fields]] = {
    ("windows", "process_creation"): [
        _event(_SYSMON, 1),
        _event("Security", 4688),
        *_told(event_category="process", event_type="start"),
    ],
    ("windows", "file_access"): _told(event_category="file", event_type="access"),
    ("windows", "file_change"): [*_sysmon(2), *_told(event_category="file", event_type="change")],
    ("windows", "file_rename"): _told(event_category="file", event_action="rename"),
    ("windows", "network_connection"): [*_sysmon(3), *_told(event_category="network", event_type="start")],
    ("windows", "sysmon_status"): _sysmon(4, 16),
    ("windows", "process_termination"): [*_sysmon(5), *_told(event_category="process", event_type="end")],
    ("windows", "driver_load"): [*_sysmon(6), *_told(event_category="driver", event_type="start")],
    ("windows", "image_load"): [*_sysmon(7), *_told(event_category="library", event_type="start")],
    ("windows", "create_remote_thread"): _sysmon(8),
    ("windows", "raw_access_thread"): _sysmon(9),
    ("windows", "process_access"): _sysmon(10),
    ("windows", "file_event"): [*_sysmon(11), *_told(event_category="file", event_type="creation")],
    ("windows", "registry_add"): [*_sysmon(12), *_told(event_category="registry", event_type="creation")],
    ("windows", "registry_delete"): [*_sysmon(12), *_told(event_category="registry", event_type="deletion")],
    ("windows", "registry_set"): [*_sysmon(13), *_told(event_category="registry", event_type="change")],
    ("windows", "registry_rename"): _sysmon(14),
    ("windows", "registry_event"): [
        *_sysmon(12, 13, 14),
        *_told(event_category="registry", event_type=["change", "creation", "deletion"]),
    ],
    ("windows", "create_stream_hash"): _sysmon(15),
    ("windows", "pipe_created"): _sysmon(17, 18),
    ("windows", "wmi_event"): _sysmon(19, 20, 21),
    ("windows", "dns_query"): [*_sysmon(22), *_told(dns_question_name=True)],
    ("windows", "file_delete"): [*_sysmon(23, 26), *_told(event_category="file", event_type="deletion")],
    ("windows", "clipboard_change"): _sysmon(24),
    ("windows", "process_tampering"): _sysmon(25),
    ("windows", "file_block"): _sysmon(27),
    ("windows", "file_executable_detected"): _sysmon(29),
    ("windows", "sysmon_error"): _sysmon(255),
    ("windows", "ps_module"): [_event(_POWERSHELL, 4103)],
    ("windows", "ps_script"): [_event(_POWERSHELL, 4104)],
    ("windows", "ps_classic_start"): [_event("Windows PowerShell", 400)],
    ("windows", "ps_classic_provider_start"): [_event("Windows PowerShell", 600)],
    ("windows", "ps_classic_script"): [_event("Windows PowerShell", 800)],
    ("kubernetes", "application"): _dataset("kubernetes.audit_logs"),
    ("linux", "process_creation"): [
        _event(_LINUX_SYSMON, 1),
        *_dataset("auditd.log", **{"event.action": "execve"}),
        *_told(event_category="process", event_type="start"),
    ],
    ("linux", "network_connection"): [_event(_LINUX_SYSMON, 3), *_told(event_category="network", event_type="start")],
    ("linux", "process_termination"): [_event(_LINUX_SYSMON, 5), *_told(event_category="process", event_type="end")],
    ("linux", "file_event"): [_event(_LINUX_SYSMON, 11), *_told(event_category="file", event_type="creation")],
    ("linux", "file_delete"): [_event(_LINUX_SYSMON, 23), *_told(event_category="file", event_type="deletion")],
    ("macos", "process_creation"): _told(event_category="process", event_type="start"),
    ("macos", "file_event"): _told(event_category="file", event_type="creation"),
    (None, "process_creation"): [
        _event([_SYSMON, _LINUX_SYSMON], 1),
        _event("Security", 4688),
        *_told(event_category="process", event_type="start"),
    ],
    (None, "webserver"): [
        {"winlog.channel": False, "event.dataset": ["apache.access", "nginx.access", "iis.access", "web.access"]},
        {"winlog.channel": False, "event.category": "web"},
    ],
    (None, "antivirus"): [_event("Microsoft-Windows-Windows Defender/Operational", 1006, 1007, 1116, 1117)],
    (None, "database"): _dataset("mysql.error", "postgresql.log"),
    (None, "firewall"): _dataset(*_FIREWALLS),
    (None, "proxy"): _dataset("squid.log"),
    (None, "dns"): [{"dns.question.name": True}],
}

SERVICES: Mapping[tuple[str | None, str], list[Fields]] = {
    ("windows", "application"): _channel("Application"),
    ("windows", "applocker"): _channel(
        "Microsoft-Windows-AppLocker/EXE and DLL",
        "Microsoft-Windows-AppLocker/MSI and Script",
        "Microsoft-Windows-AppLocker/Packaged app-Deployment",
        "Microsoft-Windows-AppLocker/Packaged app-Execution",
    ),
    ("windows", "appmodel-runtime"): _channel("Microsoft-Windows-AppModel-Runtime/Admin"),
    ("windows", "appxdeployment-server"): _channel("Microsoft-Windows-AppXDeploymentServer/Operational"),
    ("windows", "appxpackaging-om"): _channel("Microsoft-Windows-AppxPackaging/Operational"),
    ("windows", "bits-client"): _channel("Microsoft-Windows-Bits-Client/Operational"),
    ("windows", "capi2"): _channel("Microsoft-Windows-CAPI2/Operational"),
    ("windows", "certificateservicesclient-lifecycle-system"): _channel(
        "Microsoft-Windows-CertificateServicesClient-Lifecycle-System/Operational"
    ),
    ("windows", "codeintegrity-operational"): _channel("Microsoft-Windows-CodeIntegrity/Operational"),
    ("windows", "dhcp"): _channel("Microsoft-Windows-DHCP-Server/Operational"),
    ("windows", "diagnosis-scripted"): _channel("Microsoft-Windows-Diagnosis-Scripted/Operational"),
    ("windows", "dns-client"): _channel("Microsoft-Windows-DNS Client Events/Operational"),
    ("windows", "dns-server"): _channel("DNS Server"),
    ("windows", "dns-server-analytic"): _channel("Microsoft-Windows-DNS-Server/Analytical"),
    ("windows", "dns-server-audit"): _channel("Microsoft-Windows-DNS-Server/Audit"),
    ("windows", "driver-framework"): _channel("Microsoft-Windows-DriverFrameworks-UserMode/Operational"),
    ("windows", "firewall-as"): _channel("Microsoft-Windows-Windows Firewall With Advanced Security/Firewall"),
    ("windows", "hyper-v-worker"): _channel("Microsoft-Windows-Hyper-V-Worker"),
    ("windows", "iis-configuration"): _channel("Microsoft-IIS-Configuration/Operational"),
    ("windows", "kernel-event-tracing"): _channel("Microsoft-Windows-Kernel-EventTracing"),
    ("windows", "kernel-shimengine"): _channel(
        "Microsoft-Windows-Kernel-ShimEngine/Operational", "Microsoft-Windows-Kernel-ShimEngine/Diagnostic"
    ),
    ("windows", "ldap"): _channel("Microsoft-Windows-LDAP-Client/Debug"),
    ("windows", "ldap_debug"): _channel("Microsoft-Windows-LDAP-Client/Debug"),
    ("windows", "lsa-server"): _channel("Microsoft-Windows-LSA/Operational"),
    ("windows", "microsoft-servicebus-client"): _channel("Microsoft-ServiceBus-Client"),
    ("windows", "msexchange-management"): _channel("MSExchange Management"),
    ("windows", "ntfs"): _channel("Microsoft-Windows-Ntfs/Operational"),
    ("windows", "ntlm"): _channel("Microsoft-Windows-NTLM/Operational"),
    ("windows", "openssh"): _channel("OpenSSH/Operational"),
    ("windows", "powershell"): _channel(*_POWERSHELL),
    ("windows", "powershell-classic"): _channel("Windows PowerShell"),
    ("windows", "printservice-admin"): _channel("Microsoft-Windows-PrintService/Admin"),
    ("windows", "printservice-operational"): _channel("Microsoft-Windows-PrintService/Operational"),
    ("windows", "security"): _channel("Security"),
    ("windows", "security-mitigations"): _channel(
        "Microsoft-Windows-Security-Mitigations/Kernel Mode", "Microsoft-Windows-Security-Mitigations/User Mode"
    ),
    ("windows", "sense"): _channel("Microsoft-Windows-SENSE/Operational"),
    ("windows", "servicebus-client"): _channel(
        "Microsoft-ServiceBus-Client/Admin", "Microsoft-ServiceBus-Client/Operational"
    ),
    ("windows", "shell-core"): _channel("Microsoft-Windows-Shell-Core/Operational"),
    ("windows", "smbclient-connectivity"): _channel("Microsoft-Windows-SmbClient/Connectivity"),
    ("windows", "smbclient-security"): _channel("Microsoft-Windows-SmbClient/Security"),
    ("windows", "smbserver-connectivity"): _channel("Microsoft-Windows-SMBServer/Connectivity"),
    ("windows", "sysmon"): _channel(_SYSMON),
    ("windows", "system"): _channel("System"),
    ("windows", "taskscheduler"): _channel("Microsoft-Windows-TaskScheduler/Operational"),
    ("windows", "terminalservices-localsessionmanager"): _channel(
        "Microsoft-Windows-TerminalServices-LocalSessionManager/Operational"
    ),
    ("windows", "vhdmp"): _channel("Microsoft-Windows-VHDMP/Operational"),
    ("windows", "windefend"): _channel("Microsoft-Windows-Windows Defender/Operational"),
    ("windows", "wmi"): _channel("Microsoft-Windows-WMI-Activity/Operational"),
    ("linux", "auditd"): [{"event.dataset": _AUDITD}],
    ("linux", "auth"): [{"event.dataset": "system.auth"}],
    ("linux", "clamav"): _process("clamd", "clamscan", "freshclam"),
    ("linux", "cron"): _process("cron", "CRON", "crond", "crontab", "anacron"),
    ("linux", "guacamole"): _process("guacd"),
    ("linux", "sshd"): _process("sshd", "sshd-session", "sshd-auth"),
    ("linux", "sudo"): _process("sudo"),
    ("linux", "syslog"): [{"event.dataset": _SYSLOG}],
    ("linux", "vsftpd"): _process("vsftpd"),
    ("aws", "cloudtrail"): [{"event.dataset": "aws.cloudtrail"}],
    ("azure", "activitylogs"): _dataset("azure.activitylogs", "azure.platformlogs"),
    ("azure", "auditlogs"): _dataset("azure.auditlogs"),
    ("azure", "riskdetection"): _dataset("azure.identity_protection", "azure.platformlogs"),
    ("azure", "signinlogs"): _dataset("azure.signinlogs"),
    ("cisco", "aaa"): _dataset("cisco_asa.log"),
    ("fortigate", "event"): _dataset("fortinet_fortigate.log", **{"fortinet.firewall.type": "event"}),
    ("fortios", "sslvpnd"): _dataset("fortinet_fortigate.log"),
    ("gcp", "gcp.audit"): _dataset("gcp.audit"),
    ("gcp", "google_workspace.admin"): _dataset("gcp.audit", **{"service.name": "admin.googleapis.com"}),
    ("gcp", "google_workspace.login"): _dataset("gcp.audit", **{"service.name": "login.googleapis.com"}),
    ("github", "audit"): _dataset("github.audit"),
    ("kubernetes", "audit"): _dataset("kubernetes.audit_logs"),
    ("m365", "audit"): _dataset("o365.audit"),
    ("m365", "exchange"): _dataset("o365.audit"),
    ("m365", "threat_detection"): _dataset("o365.audit"),
    ("m365", "threat_management"): _dataset("o365.audit"),
    ("okta", "okta"): _dataset("okta.system"),
    **{("zeek", log): _dataset(_zeek(log)) for log in _ZEEK_LOGS},
    (None, "apache"): [{"winlog.channel": False, "event.dataset": ["apache.access", "apache.error"]}],
    (None, "nginx"): [{"winlog.channel": False, "event.dataset": ["nginx.access", "nginx.error"]}],
}

_WEB = {
    "c-ip": "source.ip",
    "c-uri": "url.original",
    "c-uri-extension": "url.extension",
    "c-uri-query": "url.query",
    "c-uri-stem": "url.path",
    "c-useragent": "user_agent.original",
    "cs-bytes": "http.request.bytes",
    "cs-cookie": "http.request.cookie",
    "cs-host": "url.domain",
    "cs-method": "http.request.method",
    "cs-referer": "http.request.referrer",
    "cs-referrer": "http.request.referrer",
    "cs-uri": "url.original",
    "cs-uri-query": "url.query",
    "cs-uri-stem": "url.path",
    "cs-user-agent": "user_agent.original",
    "cs-username": "user.name",
    "s-ip": "destination.ip",
    "s-port": "destination.port",
    "sc-bytes": "http.response.bytes",
    "sc-status": "http.response.status_code",
}

ALIASES: Mapping[str, Mapping[str, str]] = {
    "": {
        "gcp.audit.method_name": "event.action",
        "riskEventType": "azure.identityprotection.properties.risk_event_type",
    },
    "antivirus": {"Signature": "winlog.event_data.Threat Name", "Filename": "winlog.event_data.Path"},
    "firewall": {
        "src_ip": "source.ip",
        "src_port": "source.port",
        "dst_ip": "destination.ip",
        "dst_port": "destination.port",
    },
    "process_creation": {
        "CommandLine": "process.command_line",
        "CurrentDirectory": "process.working_directory",
        "Image": "process.executable",
        "ParentCommandLine": "process.parent.command_line",
        "ParentImage": "process.parent.executable",
    },
    "proxy": {**_WEB, "dst_ip": "destination.ip", "src_ip": "source.ip"},
    "webserver": _WEB,
    "dns": {
        "answer": "dns.answers.data",
        "query": "dns.question.name",
        "QueryName": "dns.question.name",
        "record_type": "dns.question.type",
        "src_ip": "source.ip",
        "dst_ip": "destination.ip",
        "dst_port": "destination.port",
    },
}
"""Names of a category's own taxonomy, for kinds whose mapping knows nothing of them; under "" those of rules without a
category that no other product has."""

# fmt: off
ECS_ROOTS = frozenset([
    "@timestamp", "agent", "client", "cloud", "container", "data_stream", "destination", "device", "dll", "dns",
    "ecs", "email", "error", "event", "file", "group", "host", "http", "labels", "log", "message", "network",
    "observer", "orchestrator", "organization", "package", "process", "registry", "related", "rule", "server",
    "service", "source", "span", "tags", "threat", "tls", "trace", "transaction", "url", "user", "user_agent",
    "vulnerability", "winlog",
])
# fmt: on
"""A rule may also name an ECS field itself."""


def _expression(alternatives: list[Fields]) -> list[Any]:
    return ["or", [["and", [_field(*item) for item in one.items()]] for one in alternatives]]


def _field(name: str, values: Any) -> list[Any]:
    if isinstance(values, bool):
        return ["is", name, "exists", [values]]
    return ["is", name, "equals", values if isinstance(values, list) else [values]]


@cache
def condition(product: str | None, category: str | None, service: str | None) -> list[Any] | None:
    """Return the condition over ECS fields that stands for a log source; None if no mapping feeds it yet."""
    parts: list[list[Fields] | None] = []
    if product is not None:
        parts.append(PRODUCTS.get(product))
    if category is not None:
        parts.append(CATEGORIES.get((product, category)) or CATEGORIES.get((None, category)))
    if service is not None:
        parts.append(SERVICES.get((product, service)) or SERVICES.get((None, service)))
    if any(part is None for part in parts):
        return None
    return ["and", [_expression(part) for part in parts if part]]
