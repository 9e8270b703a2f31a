"""The one comparison: our documents beside the ECS documents that Elastic's integrations make of the same logs.

`PRODUCTS` says how each product of the archive is read; one that is not read has its reason in `WITHOUT`. A difference
that is known and meant has a class in `CLASSES`, with its reason. `python -m tests.bench.normalise` prints it all.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from agent.errors import RecordError
from agent.normalise import Normaliser
from agent.normalise.catalogue import catalogue
from agent.normalise.clock import parse
from agent.zones import with_zone

_OFFSET = re.compile(r"[+-]\d\d:\d\d$")
_WRITTEN_OFFSET = re.compile(r"(?:GMT|UTC)?([+-])(\d{1,2}?):?(\d\d)?$")
_DATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
LEFT_OUT = (
    "geo.",
    "user_agent.",
    "event.ingested",
    "event.original",
    "event.created",
    "tags",
    "ecs.version",
    "_tmp",
    "agent.",
)
_ACCESS = ("access", "nginx", "apache")
_NOTHING = ("", "-")
"""What a log writes where it has no value: a document without the field says the same."""
PRODUCTS = {
    "system auth": ("packages/system/data_stream/auth/", "syslog", "2023-12-01T00:00:00Z"),
    "system security": ("packages/system/data_stream/security/", "json", ""),
    "auditd log": ("packages/auditd/data_stream/log/", "syslog", ""),
    "auditd_manager auditd": ("packages/auditd_manager/data_stream/auditd/", "json", ""),
    "nginx access": ("packages/nginx/data_stream/access/", "nginx", ""),
    "apache access": ("packages/apache/data_stream/access/", "apache", ""),
    "apache error": ("packages/apache/data_stream/error/", "syslog", ""),
    "iis access": ("packages/iis/data_stream/access/", "syslog", ""),
    "iis error": ("packages/iis/data_stream/error/", "syslog", ""),
    "haproxy log": ("packages/haproxy/data_stream/log/", "syslog", ""),
    "iptables log": ("packages/iptables/data_stream/log/", "syslog", "2023-12-01T00:00:00Z"),
    "mysql error": ("packages/mysql/data_stream/error/", "syslog", ""),
    "mysql slowlog": ("packages/mysql/data_stream/slowlog/", "text", ""),
    "system syslog": ("packages/system/data_stream/syslog/", "syslog", "2022-12-31T00:00:00Z"),
    "aws cloudtrail": ("packages/aws/data_stream/cloudtrail/", "cloudtrail", ""),
    "okta system": ("packages/okta/data_stream/system/", "json", ""),
    "azure signinlogs": ("packages/azure/data_stream/signinlogs/", "json", ""),
    "azure auditlogs": ("packages/azure/data_stream/auditlogs/", "json", ""),
    "azure activitylogs": ("packages/azure/data_stream/activitylogs/", "json", ""),
    "azure identity_protection": ("packages/azure/data_stream/identity_protection/", "json", ""),
    "azure provisioning": ("packages/azure/data_stream/provisioning/", "json", ""),
    "azure firewall_logs": ("packages/azure/data_stream/firewall_logs/", "json", ""),
    "azure application_gateway": ("packages/azure/data_stream/application_gateway/", "json", ""),
    "github audit": ("packages/github/data_stream/audit/", "json", ""),
    "github code_scanning": ("packages/github/data_stream/code_scanning/", "json", ""),
    "github secret_scanning": ("packages/github/data_stream/secret_scanning/", "json", ""),
    "crowdstrike falcon": ("packages/crowdstrike/data_stream/falcon/", "json", ""),
    "crowdstrike fdr": ("packages/crowdstrike/data_stream/fdr/", "json", ""),
    "gcp audit": ("packages/gcp/data_stream/audit/", "json", ""),
    "o365 audit": ("packages/o365/data_stream/audit/", "json", ""),
    "google_workspace admin": ("packages/google_workspace/data_stream/admin/", "json", ""),
    "google_workspace drive": ("packages/google_workspace/data_stream/drive/", "json", ""),
    "google_workspace login": ("packages/google_workspace/data_stream/login/", "json", ""),
    "google_workspace saml": ("packages/google_workspace/data_stream/saml/", "json", ""),
    "google_workspace token": ("packages/google_workspace/data_stream/token/", "json", ""),
    "google_workspace access_transparency": ("packages/google_workspace/data_stream/access_transparency/", "json", ""),
    "google_workspace context_aware_access": (
        "packages/google_workspace/data_stream/context_aware_access/",
        "json",
        "",
    ),
    "google_workspace device": ("packages/google_workspace/data_stream/device/", "json", ""),
    "google_workspace rules": ("packages/google_workspace/data_stream/rules/", "json", ""),
    "google_workspace alert": ("packages/google_workspace/data_stream/alert/", "json", ""),
    "aws vpcflow": ("packages/aws/data_stream/vpcflow/", "text", ""),
    "aws s3access": ("packages/aws/data_stream/s3access/", "text", ""),
    "aws cloudfront_logs": ("packages/aws/data_stream/cloudfront_logs/", "text", ""),
    "aws elb_logs": ("packages/aws/data_stream/elb_logs/", "text", ""),
    "aws route53_resolver_logs": ("packages/aws/data_stream/route53_resolver_logs/", "json", ""),
    "aws guardduty": ("packages/aws/data_stream/guardduty/", "json", ""),
    "aws waf": ("packages/aws/data_stream/waf/", "json", ""),
    "aws firewall_logs": ("packages/aws/data_stream/firewall_logs/", "json", ""),
    "aws securityhub_findings": ("packages/aws/data_stream/securityhub_findings/", "json", ""),
    "gcp loadbalancing_logs": ("packages/gcp/data_stream/loadbalancing_logs/", "json", ""),
    "gcp vpcflow": ("packages/gcp/data_stream/vpcflow/", "json", ""),
    "gcp firewall": ("packages/gcp/data_stream/firewall/", "json", ""),
    "gcp dns": ("packages/gcp/data_stream/dns/", "json", ""),
    "zeek capture_loss": ("packages/zeek/data_stream/capture_loss/", "json", ""),
    "zeek connection": ("packages/zeek/data_stream/connection/", "json", ""),
    "zeek dhcp": ("packages/zeek/data_stream/dhcp/", "json", ""),
    "zeek dns": ("packages/zeek/data_stream/dns/", "json", ""),
    "zeek dpd": ("packages/zeek/data_stream/dpd/", "json", ""),
    "zeek ftp": ("packages/zeek/data_stream/ftp/", "json", ""),
    "zeek http": ("packages/zeek/data_stream/http/", "json", ""),
    "zeek intel": ("packages/zeek/data_stream/intel/", "json", ""),
    "zeek kerberos": ("packages/zeek/data_stream/kerberos/", "json", ""),
    "zeek known_certs": ("packages/zeek/data_stream/known_certs/", "json", ""),
    "zeek known_hosts": ("packages/zeek/data_stream/known_hosts/", "json", ""),
    "zeek known_services": ("packages/zeek/data_stream/known_services/", "json", ""),
    "zeek modbus": ("packages/zeek/data_stream/modbus/", "json", ""),
    "zeek mysql": ("packages/zeek/data_stream/mysql/", "json", ""),
    "zeek notice": ("packages/zeek/data_stream/notice/", "json", ""),
    "zeek ntlm": ("packages/zeek/data_stream/ntlm/", "json", ""),
    "zeek ntp": ("packages/zeek/data_stream/ntp/", "json", ""),
    "zeek ocsp": ("packages/zeek/data_stream/ocsp/", "json", ""),
    "zeek pe": ("packages/zeek/data_stream/pe/", "json", ""),
    "zeek signature": ("packages/zeek/data_stream/signature/", "json", ""),
    "zeek sip": ("packages/zeek/data_stream/sip/", "json", ""),
    "zeek smb_files": ("packages/zeek/data_stream/smb_files/", "json", ""),
    "zeek snmp": ("packages/zeek/data_stream/snmp/", "json", ""),
    "zeek socks": ("packages/zeek/data_stream/socks/", "json", ""),
    "zeek software": ("packages/zeek/data_stream/software/", "json", ""),
    "zeek ssh": ("packages/zeek/data_stream/ssh/", "json", ""),
    "zeek traceroute": ("packages/zeek/data_stream/traceroute/", "json", ""),
    "zeek tunnel": ("packages/zeek/data_stream/tunnel/", "json", ""),
    "zeek weird": ("packages/zeek/data_stream/weird/", "json", ""),
    "zeek x509": ("packages/zeek/data_stream/x509/", "json", ""),
    "windows sysmon": ("packages/windows/data_stream/sysmon_operational/", "json", ""),
    "windows powershell": ("packages/windows/data_stream/powershell/", "json", ""),
    "windows forwarded": ("packages/windows/data_stream/forwarded/", "json", ""),
    "sysmon_linux log": ("packages/sysmon_linux/data_stream/log/", "json", ""),
    "windows powershell_operational": ("packages/windows/data_stream/powershell_operational/", "json", ""),
    "suricata eve": ("packages/suricata/data_stream/eve/", "json", ""),
    "fortinet fortigate": ("packages/fortinet_fortigate/data_stream/log/", "text", ""),
    "panw panos": ("packages/panw/data_stream/panos/", "text", ""),
    "juniper_srx log": ("packages/juniper_srx/data_stream/log/", "syslog", ""),
    "pfsense log": ("packages/pfsense/data_stream/log/", "syslog", "2023-12-01T00:00:00Z"),
    "checkpoint firewall": ("packages/checkpoint/data_stream/firewall/", "syslog", ""),
    "cisco asa": ("packages/cisco_asa/data_stream/log/", "syslog", "2023-06-01T00:00:00Z"),
    "cef log": ("packages/cef/data_stream/log/", "syslog", ""),
}
"""Name -> folder of the archive, format of its records, and when they were read (it settles years that they lack)."""


class Class(NamedTuple):
    """A class of differences: in which products, in which fields (a regular expression), and why they stay."""

    name: str
    products: str
    fields: str
    reason: str


WITHOUT: dict[str, str] = {
    "squid log": "its expected documents are the lines themselves; squid.yml has examples of its own",
    "azure platformlogs": "read by azure.yml in what all records of Azure share; what a service says stays under "
    "azure.properties, and of the samples one is no JSON",
    "aws securityhub_insights": "a saved search for findings: what it groups by and filters, no event",
    **dict.fromkeys(
        ("aws cloudwatch_logs", "aws ec2_logs", "azure eventhub", "azure springcloudlogs"),
        "an envelope around lines of any kind: what is in it is the product",
    ),
    "gcp compute": "metrics, not events",
}
"""Product of the archive (``package stream``) -> why no row of `PRODUCTS` reads it."""

CLASSES = [
    Class(
        "time of the log's header",
        "windows (sysmon|forwarded)",
        "@timestamp",
        "theirs is Sysmon's UtcTime; ours is TimeCreated, one clock for all channels, and UtcTime stays in event_data",
    ),
    Class(
        "names from look-ups",
        "windows.*|system security",
        r"winlog\.event_data\..*(Description|[DS]acl\d|Category)|winlog\.logon\.failure\..*",
        "theirs adds English texts for codes that are in the event; ours has those that rules ask for",
    ),
    Class(
        "public suffixes",
        "windows.*",
        r"dns\.question\.(registered_domain|subdomain|top_level_domain)",
        "theirs knows hosting companies' suffixes from a list; ours follows a rule",
    ),
    Class(
        "lists of objects outside ECS",
        "windows.*",
        r"powershell\.command\.invocation_details",
        "theirs parts the text of a pipeline; ours keeps the text",
    ),
    Class(
        "truth values of vendors",
        "windows.*",
        r"sysmon\.file\..*",
        "fields outside ECS are text in ours",
    ),
    Class(
        "who and whose",
        "windows.*|system security",
        r"(user\.(target|effective)|destination\.user)\..*|user\.id|related\.user|winlog\.logon\.id",
        "theirs takes the last DC of a name, a null SID, a SACL's trustee or the caller's session; ours the first DC, "
        "those who took part and the new session",
    ),
    Class(
        "nothing written as something",
        "windows.*|system security",
        r"source\.(port|domain)|process\.(executable|name)",
        "theirs keeps port 0, - and an address as a name, or a consumer's command as the process",
    ),
    Class(
        "what Windows wrote",
        "windows.*|system security",
        r"dns\.answers|registry\.data\..*|process\.(args|pe\.description)|message|winlog\.event_data\.TargetProcessGUID|event\.dataset",
        "theirs calls types SZ_DWORD, keeps quotes in one stream and not in the other, and moves texts to other fields,"
        " or leaves an answer without data",
    ),
    Class(
        "Sysmon for Linux",
        "sysmon_linux log",
        r"event\.action|process\..*",
        "theirs names the process after the program that wrote the log, and keeps (null)",
    ),
    Class(
        "zone beside the line's own",
        "system syslog",
        r"event\.timezone",
        "theirs names the zone of the test's settings also for lines that name their own",
    ),
    Class(
        "finer time",
        "system auth|azure identity_protection",
        "@timestamp",
        "theirs cuts microseconds off",
    ),
    Class(
        "user of a session",
        "system auth",
        r"user\.name|event\.timezone",
        "theirs leaves the user of a session empty that root's process opened, and marks a zone that the line names",
    ),
    Class(
        "arguments that are not there",
        "auditd log",
        r"process\.args",
        "theirs counts the arguments that earlier records hold in a text among the arguments",
    ),
    Class(
        "values that ECS does not allow",
        "auditd.*|apache error",
        r"event\.(type|category)",
        "theirs says stop and mac, which ECS does not know, or calls a warning an error",
    ),
    Class(
        "truth values and derived names",
        "auditd.*|haproxy.*",
        r"auditd\..*|haproxy\..*|network\.direction|group\.id|message",
        "fields outside ECS are as the log has them in ours; theirs moves a few to other names and parts headers",
    ),
    Class(
        "message",
        "iptables log|mysql error|system syslog",
        "message",
        "theirs keeps the host and program, or code and subsystem, which are fields, in the message",
    ),
    Class(
        "slow statement",
        "mysql slowlog",
        r"event\.duration|slowlog\.query",
        "theirs rounds a duration on the way, and takes the server's start behind a statement for a part of it",
    ),
    Class(
        "query as written",
        "iis .*",
        r"url\.query|related\.ip",
        "theirs makes blanks of plus signs, and lists an address twice where both ends are one",
    ),
    Class(
        "name of the zone",
        "panw panos",
        r"event\.timezone",
        "theirs calls an assumed zone UTC, and names one beside times that name their own",
    ),
    Class(
        "rare kinds of record",
        "panw panos",
        r"^(?!labels|log\.(file|offset)|.*user|.*change_detail).*",
        "GTP, SCTP, IP tags and tunnel inspection are read as far as their columns are those of traffic",
    ),
    Class(
        "labels",
        "panw panos",
        r"labels\..*|log\.(file|offset).*|panw\.panos\.(before|after)_change_detail",
        "theirs makes labels of bits, and calls sequence number and flags details of the change",
    ),
    Class(
        "users with a domain",
        "panw panos|cisco asa",
        r".*user.*",
        "theirs parts name@domain and takes the user of the session as well; ours keeps the name as it is written",
    ),
    Class(
        "ends of a tunnel",
        "cisco asa",
        r"destination\..*|server\.domain|related\.hosts|network\..*|host\.hostname|observer\.hostname|@timestamp",
        "theirs makes the VPN client the destination, and hosts of the list that named an address",
    ),
    Class(
        "certificates",
        "suricata eve",
        r"tls\.server\.x509\..*|suricata\.eve\.alert\.(created|updated)_at",
        "theirs keeps the comma behind a part of a name, and dates that are no times",
    ),
    Class(
        "answers",
        "suricata eve|fortinet fortigate",
        r"dns\..*|related\.ip",
        "lists of objects are lists by field in ours, and domains follow a rule",
    ),
    Class(
        "names rewritten",
        "fortinet fortigate",
        r"rule\.category|event\.(type|timezone)|fortinet\..*",
        "theirs writes Web-Client for Web.Client and a closed session as denied",
    ),
    Class(
        "a line cut short",
        "fortinet fortigate",
        r".*",
        "a line without device and log id is not taken for Fortinet's; it is kept as unmapped text",
    ),
    Class(
        "numbers and blanks",
        "cef log",
        r"network\.transport|message|cef\.extensions\.(message|agentMacAddress)|related\.hosts",
        "theirs leaves protocol numbers as transport and the blank after msg=",
    ),
    Class(
        "labelled strings",
        "cef log",
        r"rule\.id|network\.community_id|destination\.service\.name",
        "theirs reads a rule out of cs1 by its label, and numbers as transport; ECS has no destination.service",
    ),
    Class(
        "names from settings",
        "o365",
        r"host\.name|organization\.name",
        "theirs is the tenant's name in the collector's settings; it is not in the record",
    ),
    Class(
        "order of an object's keys",
        "aws cloudtrail",
        r"request_parameters|response_elements|additional_eventdata|flattened",
        "theirs writes an object as text in the order of a hash table, ours as it came",
    ),
    Class(
        "one value under two names",
        "google_workspace (token|access_transparency|context_aware_access|device|rules)",
        r"google_workspace\.(actor|id|event|ip_address|rules\.(id|name)$)",
        "these tests are set to keep under the vendor's names what ECS fields hold as well",
    ),
    Class(
        "whose address",
        "google_workspace (alert|device)",
        r"(user|source|related)\..*|email\..*|rule\.name|event\.action|file\.hash|rule_description|data_rows|headers$",
        "theirs has whoever works on the alert as its user, the alert's source for what it is about, and lists of all "
        "messages; ours the account that it is about, its type, and the first message",
    ),
    Class(
        "numbers worked out",
        "github (code|secret)",
        r"time_to_resolution|github\.severity",
        "theirs counts the seconds between two times of the record, and calls no severity undefined",
    ),
    Class(
        "a sensor's own numbers and names",
        "crowdstrike",
        r"process\.(pid|args|executable)|threat\.|event\.(outcome|action)|message|related\.hosts|url\.scheme|"
        r"observer\.address",
        "theirs takes Falcon's number of a process for its pid and its command line for its path, lists addresses as "
        "hosts, and makes up actions, messages and a scheme",
    ),
    Class(
        "sign-ins among other records",
        "azure activitylogs",
        r"azure\.activitylogs\.",
        "one of the two samples is a sign-in, which ours reads as one; theirs adds a category that no record has, and "
        "writes claims with underscores for dots",
    ),
    Class(
        "numbers that are none",
        "azure",
        r"event\.(duration|risk_score)|source\.port",
        "theirs overflows after two seconds, takes a rule's priority for the event's risk, and keeps port 0",
    ),
    Class(
        "sentences of a firewall",
        "azure firewall",
        r"event\.reason|icmp|network\.protocol",
        "theirs takes sentences without a name for the reason, keeps a blank, and a type of ICMP as its code",
    ),
    Class(
        "lists of objects outside ECS",
        "azure|okta|gcp|google_workspace|o365",
        r"target_resources|okta\.(target|request\.ip_chain)|authorization_info|managedFields|applied_conditional|"
        r"authentication_details|rule\.|event\.severity|user\.target",
        "theirs numbers the items, renames or drops their keys, or takes values out; ours keeps the list as it came",
    ),
    Class(
        "texts taken apart",
        "okta|azure|gcp|o365",
        r"behaviors|risk|logOnlySecurityData|device_integrator|authentication_processing_details|orchestrator\.|"
        r"(server|client|destination)\.|_value$",
        "theirs reads inside of a text or a method's name; ours keeps it whole",
    ),
    Class(
        "texts added",
        "zeek connection",
        r"state_message",
        "theirs explains the code in English; ours has the code",
    ),
    Class(
        "escapes",
        "zeek (kerberos|smb_files)",
        r"x509|subject|file\.path",
        "theirs drops an escaped comma and doubles backslashes; ours keeps the name and the path",
    ),
    Class(
        "ports that no record states",
        "zeek dhcp",
        r"network\.community_id",
        "theirs assumes ports 67 and 68; ours makes no hash of what is not in the record",
    ),
    Class(
        "parameters without a place",
        "google_workspace",
        r"google_workspace\.|file\.type|network\.name|event\.(start|end|duration)|message",
        "ours keeps them under google_workspace.events.parameters, by Google's names",
    ),
    Class(
        "an answer that never was",
        "aws cloudfront",
        r"event\.outcome|http\.response\.status_code",
        "theirs takes the status 000, where the viewer left before an answer, for a failure of the request",
    ),
    Class(
        "categories",
        "zeek|azure|okta|gcp|github|google_workspace|o365|aws|crowdstrike",
        r"event\.(category|type|kind|outcome)",
        "ours are those of ECS for what happened; theirs differ by the first word of an action",
    ),
    Class(
        "nothing written as something",
        "zeek (dns|ntp)",
        r"dns\.resolved_ip|zeek\.ntp\..*_time",
        "theirs keeps an empty list and times that were never set",
    ),
    Class(
        "lines of Junos without structured data",
        "juniper_srx log",
        r".*",
        "daemons of Junos in plain text are read as syslog of their program; theirs parts their texts",
    ),
    Class(
        "settings of a gateway",
        "checkpoint firewall",
        r".*",
        "theirs takes some times of the test's own settings, parts free texts of changes, and keeps a session's end",
    ),
    Class(
        "daemons of the firewall",
        "pfsense log",
        r".*",
        "DHCP, IPsec and name server of pfSense are read as syslog of their programs; theirs parts their texts",
    ),
    Class(
        "users and hosts named twice, or by number",
        "github|google_workspace|o365",
        r"related\.(user|hosts|ip)",
        "theirs lists one name twice, profile numbers, domains of mail, addresses in other texts and users in lists of "
        "properties; ours has each name and address of a field once",
    ),
    Class(
        "texts taken apart",
        "o365",
        r"_raw$|ExceptionInfo|source\.ip|event\.action",
        "theirs makes an action of each user operation, keeps a command line under _raw, an object as text, and finds "
        "an address inside brackets; ours has the operation, and the fields as they came",
    ),
    Class(
        "names as Azure writes them",
        "azure",
        r"authentication_requirement_policies|network_location_details|log\.level|resource\.provider|_steps$|modified_prop|"
        r"dervice|detected_datetime|additional_info|event\.action",
        "theirs renames the keys of listed objects, takes the collector's level for the event's, names the type of a "
        "resource with its provider, takes a verdict for the action, reads inside of a text, and misspells a name",
    ),
    Class(
        "whose group",
        "github|google_workspace",
        r"group\.name",
        "theirs takes the organisation for the group when a repository moves, and a filter's text for a group",
    ),
    Class(
        "fragments",
        "zeek intel",
        r"url\.fragment",
        "what stands behind # in an indicator's URL is in the indicator's name",
    ),
    Class(
        "whose instance",
        "gcp vpcflow",
        r"cloud\..*|network\.name",
        "theirs is the other end's where both are instances; ours that of the instance that reported the flow",
    ),
    Class(
        "times that are none",
        "aws vpcflow",
        r"event\.start",
        "the sample has nine digits where seconds since 1970 have ten",
    ),
    Class(
        "names and addresses of name servers",
        "(aws route53|gcp dns)",
        r"dns\.|related\.",
        "theirs keeps the root's dot in some answers and long forms of addresses, makes a name of an alias's target, "
        "leaves out reverse names, or takes amazonaws.com for a suffix; ours has names without the dot, and the rule",
    ),
    Class(
        "who asked",
        "aws s3access",
        r"related\.user",
        "theirs has the owner of the bucket only; ours has the one who asked too",
    ),
    Class(
        "lists of objects outside ECS",
        "aws (guardduty|securityhub)",
        r"details$|network_interfaces|product_codes|tags$|reasons$|_path$|related_findings|indicators$|vulnerabilities|"
        r"malware",
        "theirs renames the keys of listed objects; ours keeps the list as it came",
    ),
    Class(
        "several users of one finding",
        "aws guardduty",
        r"user",
        "theirs lists the ids of a key and of a cluster's user in one field; ours has the first",
    ),
    Class(
        "places in ECS",
        "aws securityhub",
        r"^(@timestamp|source\.|destination\.|related\.|network\.|threat\.|url\.|vulnerability\.)|mac$",
        "theirs takes the finding's first time, lists both addresses of an end, keeps IN, and TCP as the protocol, "
        "and has an indicator's source as the event's URL; ours the last update, one address, and ECS's values",
    ),
    Class(
        "names derived",
        "aws firewall",
        r"tcp_flags_array|cloud\.region|network\.protocol",
        "theirs makes a region of the zone's name, names of flags of numbers, and the protocol of a flow of none",
    ),
    Class("unclassed", "", "", "not looked into yet"),
]
"""The first whose expressions fit takes a difference; the last takes what is left."""


@dataclass
class Tally:
    """Lines and expected fields of one product by outcome, and which fields they are.

    *lines* are all records of the product; *documents* are those for which the archive has a document to compare with.
    """

    lines: int = 0
    lost: int = 0
    documents: int = 0
    seconds: float = 0.0
    equal: int = 0
    different: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Tally)))

    @property
    def expected(self) -> int:
        return self.equal + self.different.total() + self.missing.total()

    @property
    def share(self) -> float:
        return self.equal / self.expected if self.expected else 0.0


def compare(archive: Path, only: Collection[str] = ()) -> dict[str, Tally]:
    """Return a tally for each product of `PRODUCTS`, or for those of *only*."""
    members = _members(archive)
    normaliser = Normaliser(lambda kind: frozenset())
    names = [name for name in PRODUCTS if not only or name in only]
    return {name: _product(normaliser, members, *PRODUCTS[name]) for name in names}


def streams(archive: Path) -> dict[str, str]:
    """Return the products of the archive's index, ``package stream``, and the folder of each."""
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.csv")
        assert index
        rows = list(csv.DictReader(index.read().decode().splitlines()))
    return {
        f"{row['package']} {row['data_stream']}": f"packages/{row['package']}/data_stream/{row['data_stream']}/"
        for row in rows
    }


def table(tallies: Mapping[str, Tally]) -> str:
    """Return one row a product: what was read, how its fields compare, and the time to make one whole document."""
    rows = [
        f"{'product':32} {'lines':>6} {'fields':>7} {'equal':>7} {'share':>7} {'different':>9} {'missing':>7} "
        f"{'extra':>6} {'lost':>4} {'µs/line':>7}"
    ]
    rows += [_row(name, tally) for name, tally in tallies.items()]
    if len(tallies) > 1:
        rows.append(_row("all together", sum(tallies.values(), Tally())))
    return "\n".join(rows)


def _row(name: str, tally: Tally) -> str:
    return (
        f"{name:32} {tally.lines:6} {tally.expected:7} {tally.equal:7} {tally.share:7.1%} "
        f"{tally.different.total():9} {tally.missing.total():7} {tally.extra.total():6} {tally.lost:4} "
        f"{1e6 * tally.seconds / max(1, tally.lines):7.0f}"
    )


def classes(tallies: Mapping[str, Tally]) -> dict[str, Counter[str]]:
    """Return by class of difference how many fields of each product are in it, missing and different ones together."""
    found: dict[str, Counter[str]] = {one.name: Counter() for one in CLASSES}
    for product, tally in tallies.items():
        for name, number in (tally.different + tally.missing).items():
            found[_class_of(product, name)][product] += number
    return found


def explained(tallies: Mapping[str, Tally]) -> str:
    """Return the differences by class, with the reason of each."""
    reasons = {one.name: one.reason for one in CLASSES}
    rows = []
    for name, products in classes(tallies).items():
        if products:
            where = ", ".join(f"{product} {number}" for product, number in products.most_common())
            rows.append(f"{products.total():6}  {name}: {reasons[name]}\n        {where}")
    return "\n".join(rows)


def _class_of(product: str, name: str) -> str:
    return next(one.name for one in CLASSES if re.match(one.products, product) and re.search(one.fields, name))


def _members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            member.name: file.read()
            for member in tar
            if (file := tar.extractfile(member)) and "/pipeline/" in member.name
        }


def _product(normaliser: Normaliser, members: dict[str, bytes], folder: str, format: str, as_of: str) -> Tally:
    tally = Tally()
    for name, data in members.items():
        if name.startswith(folder) and name + "-expected.json" in members and not name.endswith(".yml"):
            wanted = json.loads(members[name + "-expected.json"])["expected"]
            wanted = [one for one in wanted if (one or {}).get("message") != ""]  # those of blank lines
            settings = _settings(name, members)
            first_line = "" if format in _ACCESS else _first_line(settings)
            records = list(_records(name, data, format, first_line))
            zoned = with_zone(format, _zone(settings))
            for raw, expected in _pairs(records, wanted):
                _one(tally, normaliser, zoned, raw, expected, parse(as_of or "2026-01-01T00:00:00Z"))
    return tally


def _settings(name: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what the test of the file *name* sets, and what all tests beside it do."""
    common = name.rpartition("/")[0] + "/test-common-config.yml"
    parts = [yaml.safe_load(members.get(one, b"")) or {} for one in (common, name + "-config.yml")]
    fields = {key: value for part in parts for key, value in (part.get("fields") or {}).items()}
    return {**parts[0], **parts[1], "fields": fields}


def _first_line(settings: Mapping[str, Any]) -> str:
    """Return the expression for a record's first line, empty where each line is a record."""
    return str((settings.get("multiline") or {}).get("first_line_pattern", ""))


def _zone(settings: Mapping[str, Any]) -> str:
    """Return the zone in which the file was written, as its test says; nothing for UTC, which is assumed anyway."""
    fields = settings["fields"]
    said = (fields.get("event.timezone"), fields.get("_tmp.tz_offset"), (fields.get("_conf") or {}).get("tz_offset"))
    found = next((zone for one in said if one and _OFFSET.match(zone := _offset(str(one)))), "")
    return "" if found == "+00:00" else found


def _offset(zone: str) -> str:
    """Return ``GMT-0200``, ``GMT-2`` and ``-02:00`` as the last of them."""
    found = _WRITTEN_OFFSET.match(zone)
    return f"{found[1]}{found[2]:0>2}:{found[3] or '00'}" if found else zone


def _records(name: str, data: bytes, format: str, first_line: str) -> Iterator[bytes]:
    if name.endswith(".json"):
        yield from (_record(event, format) for event in json.loads(data)["events"])
        return
    joined: list[bytes] = []
    for written in data.splitlines():
        is_wrapped = format == "text" and written.startswith(b'{"message":')
        line = _record(json.loads(written), format) if is_wrapped else written
        if joined and (not first_line or re.search(first_line.encode(), line)):
            yield b"\n".join(joined)
            joined = []
        if line.strip():
            joined.append(line)
    if joined:
        yield b"\n".join(joined)


def _record(event: dict[str, Any], format: str) -> bytes:
    """Return what *event* holds: the line where a collector wrapped one up, else the event itself."""
    line = (event.get("event") or {}).get("original") or event.get("message")
    return str(line).encode() if format in {"syslog", "text", *_ACCESS} and line else json.dumps(event).encode()


def _pairs(records: list[bytes], wanted: list[dict[str, Any] | None]) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Pair by place if there are as many, else by the original that the expected documents keep.

    A record without a document is one that Elastic drops; it comes alone.
    """
    if len(records) == len(wanted):
        yield from zip(records, wanted, strict=True)
        return
    by_line = {record.decode(errors="replace").strip(): record for record in records}
    paired: Counter[bytes] = Counter()
    for record, expected in zip_longest(records, wanted):
        original = str(((expected or {}).get("event") or {}).get("original", "")).strip()
        found = by_line.get(original) or by_line.get(original.partition("\n")[0])
        found = record if found is None and expected else found
        if found is not None and expected:
            paired[found] += 1
            yield found, expected
    for record, number in (Counter(records) - paired).items():
        yield from [(record, None)] * number


def _one(
    tally: Tally, normaliser: Normaliser, format: str, raw: bytes, expected: dict[str, Any] | None, as_of: int
) -> None:
    tally.lines += 1
    fields = {name: value for name, value in leaves(expected or {}) if _counts(name)}
    begin = time.perf_counter()
    try:
        document = normaliser.document(format, raw, as_of=as_of)
    except RecordError:
        tally.lost += 1
        document = {}
    tally.seconds += time.perf_counter() - begin
    if expected is None:
        return
    tally.documents += 1
    ours = dict(leaves(document))
    for name, value in fields.items():
        if name not in ours and value not in _NOTHING:
            tally.missing[name] += 1
        elif _same(name, value, ours.get(name, value)):
            tally.equal += 1
        else:
            tally.different[name] += 1
    tally.extra.update(name for name in ours if name not in fields and _counts(name))


def _counts(name: str) -> bool:
    return not name.startswith(LEFT_OUT) and ".geo." not in name and ".as." not in name


def leaves(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _same(name: str, theirs: Any, ours: Any) -> bool:
    known = catalogue().fields.get(name)
    if known and known.type == "date":
        grain = 1 if parse(theirs) % 1000 else 1000  # theirs are often cut to milliseconds
        return parse(theirs) // grain == parse(ours) // grain
    if name == "event.timezone":
        return _offset(str(theirs)) == _offset(str(ours))
    theirs, ours = (value if isinstance(value, list) else [value] for value in (theirs, ours))
    if known and known.type in ("long", "float"):
        return sorted(map(_said, theirs)) == sorted(map(_said, ours))
    if name in catalogue().fields:
        return sorted(map(_written, theirs)) == sorted(map(_written, ours))
    return sorted(map(_said, theirs)) == sorted(map(_said, ours))


def _written(value: Any) -> str:
    """Return a value as text, an object whatever the order of its keys."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)


def _said(value: Any) -> str:
    """Return what a value outside ECS says: ours are text, theirs JSON's numbers and booleans, and times to the ms."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and _DATED.match(value):
        return str(parse(value) // 1000)
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return _written(value)
