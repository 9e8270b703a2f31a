"""Native records as their sources write them: flat Windows JSON, syslog and access lines, ECS DNS, CloudTrail.

Every function returns one line (or, for CloudTrail, one record) for a time in microseconds since 1970. Names and
addresses are invented: example.com, and the address ranges that are set aside for documentation.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
DOMAIN = "CORP"
SUFFIX = "corp.example.com"
ACCOUNT = "111122223333"
REGION = "eu-central-1"
_SYSMON = "Microsoft-Windows-Sysmon"
_PROVIDERS = {"Security": "Microsoft-Windows-Security-Auditing", "System": "Service Control Manager"}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@cache
def _date(day: int) -> datetime:
    return datetime.fromtimestamp(day * DAY // SECOND, UTC)


def _clock(time: int) -> tuple[datetime, int, int, int, int]:
    day, rest = divmod(time, DAY)
    hours, rest = divmod(rest, HOUR)
    minutes, rest = divmod(rest, MINUTE)
    return _date(day), hours, minutes, rest // SECOND, rest % SECOND // 1000


def iso(time: int) -> str:
    """ISO 8601 with milliseconds."""
    date, hour, minute, second, milli = _clock(time)
    return f"{date:%Y-%m-%d}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"


# --- Windows ----------------------------------------------------------------------------------------------------------


def sysmon(time: int, event: int, host: str, **fields: Any) -> bytes:
    """One Sysmon event, flat, as a forwarder writes it."""
    stamp = iso(time)
    return orjson.dumps(
        {
            "@timestamp": stamp,
            "EventID": event,
            "Channel": f"{_SYSMON}/Operational",
            "SourceName": _SYSMON,
            "Hostname": f"{host}.{SUFFIX}",
            "Level": "4",
            "RuleName": "-",
            "UtcTime": stamp[:-1].replace("T", " "),
            **fields,
        }
    )


def process(time: int, host: str, user: str, image: str, command: str, parent: str, *, pid: int) -> bytes:
    """Sysmon 1: a program was started."""
    system = user == "SYSTEM"
    return sysmon(
        time,
        1,
        host,
        ProcessGuid=_guid(host, pid, time),
        ProcessId=str(pid),
        Image=image,
        OriginalFileName=image.rpartition("\\")[2],
        CommandLine=command,
        CurrentDirectory="C:\\Windows\\system32\\" if system else f"C:\\Users\\{user}\\",
        User=account(user),
        LogonId="0x3e7" if system else hex(0x10000 + len(user) * 977),
        IntegrityLevel="System" if system else "Medium",
        Hashes=_hashes(image),
        ParentImage=parent,
        ParentCommandLine=parent,
    )


def windows(time: int, event: int, host: str, channel: str = "Security", **fields: Any) -> bytes:
    """One event of the Security or System channel, flat."""
    return orjson.dumps(
        {
            "@timestamp": iso(time),
            "EventID": event,
            "Channel": channel,
            "SourceName": fields.pop("SourceName", _PROVIDERS[channel]),
            "Hostname": f"{host}.{SUFFIX}",
            "Level": "0" if channel == "Security" else "4",
            "Keywords": fields.pop("Keywords", "0x8020000000000000" if channel == "Security" else "0x8080000000000000"),
            **fields,
        }
    )


def logon(time: int, host: str, user: str, kind: int, address: str, *, failed: bool = False, serial: int = 0) -> bytes:
    """Security 4624 or 4625: somebody logged on, or failed to."""
    failure = {"Status": "0xc000006d", "SubStatus": "0xc000006a", "FailureReason": "%%2313"}
    return windows(
        time,
        4625 if failed else 4624,
        host,
        SubjectUserSid="S-1-5-18",
        SubjectUserName=f"{host.upper()}$",
        SubjectDomainName=DOMAIN,
        TargetUserName=user,
        TargetDomainName=DOMAIN,
        TargetLogonId=hex(0x40000 + serial),
        LogonType=str(kind),
        AuthenticationPackageName="Kerberos" if kind == 3 else "Negotiate",
        LogonProcessName="Kerberos" if kind == 3 else "User32",
        WorkstationName=host.upper() if kind == 2 else "-",
        IpAddress=address,
        IpPort="0" if address == "127.0.0.1" else str(49152 + serial % 16000),
        Keywords="0x8010000000000000" if failed else "0x8020000000000000",
        **(failure if failed else {}),
    )


def logoff(time: int, host: str, user: str, kind: int, serial: int) -> bytes:
    """Security 4634."""
    return windows(
        time,
        4634,
        host,
        TargetUserName=user,
        TargetDomainName=DOMAIN,
        TargetLogonId=hex(0x40000 + serial),
        LogonType=str(kind),
    )


def account(user: str) -> str:
    """The account as Sysmon names it."""
    return "NT AUTHORITY\\SYSTEM" if user == "SYSTEM" else f"{DOMAIN}\\{user}"


def sid(user: str) -> str:
    """An invented security identifier, the same for the same user."""
    return f"S-1-5-21-1004336348-1177238915-682003330-{1100 + int(_hex(user, 4), 16) % 8000}"


def _guid(host: str, pid: int, time: int) -> str:
    digits = f"{len(host):04x}{pid:06x}{time:016x}".zfill(32)
    return f"{{{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}}}"


@cache
def _hashes(image: str) -> str:
    return f"SHA256={_hex(image, 64).upper()},IMPHASH={_hex('imp' + image, 32).upper()}"


def _hex(text: str, digits: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=digits // 2).hexdigest()


# --- Linux, web, DNS --------------------------------------------------------------------------------------------------


def syslog(time: int, host: str, program: str, text: str, pid: int | None = None) -> bytes:
    """One line of auth.log in the traditional form, which says neither year nor zone."""
    date, hour, minute, second, _ = _clock(time)
    tag = program if pid is None else f"{program}[{pid}]"
    return f"{_MONTHS[date.month - 1]} {date.day:2} {hour:02}:{minute:02}:{second:02} {host} {tag}: {text}".encode()


def access(
    time: int, address: str, request: str, status: int, size: int, agent: str, referrer: str = "-", user: str = "-"
) -> bytes:
    """One line of a web server's access log in the combined form."""
    date, hour, minute, second, _ = _clock(time)
    stamp = f"{date.day:02}/{_MONTHS[date.month - 1]}/{date.year}:{hour:02}:{minute:02}:{second:02} +0000"
    return f'{address} - {user} [{stamp}] "{request}" {status} {size or "-"} "{referrer}" "{agent}"'.encode()


def dns(time: int, client: str, name: str, kind: str = "A", code: str = "NOERROR") -> bytes:
    """One query in the resolver's log, ECS JSON."""
    return orjson.dumps(
        {
            "@timestamp": iso(time),
            "ecs": {"version": "8.17.0"},
            "event": {
                "kind": "event",
                "category": ["network"],
                "type": ["protocol"],
                "module": "dns",
                "dataset": "dns.query",
                "outcome": "success" if code == "NOERROR" else "failure",
            },
            "host": {"name": "dc-01"},
            "source": {"ip": client, "port": 40000 + time // 1000 % 20000},
            "destination": {"ip": "10.20.0.10", "port": 53},
            "network": {"protocol": "dns", "transport": "udp"},
            "dns": {"type": "query", "question": {"name": name, "type": kind, "class": "IN"}, "response_code": code},
        }
    )


# --- CloudTrail -------------------------------------------------------------------------------------------------------


def identity(user: str) -> dict[str, Any]:
    """The `userIdentity` of an IAM user, or of the role that an instance or service has taken."""
    if user.startswith("role/"):
        role = user.removeprefix("role/")
        return {
            "type": "AssumedRole",
            "principalId": f"AROA{_hex(role, 16).upper()}:session",
            "arn": f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/session",
            "accountId": ACCOUNT,
            "accessKeyId": f"ASIA{_hex(role, 16).upper()}",
            "sessionContext": {"sessionIssuer": {"type": "Role", "userName": role, "accountId": ACCOUNT}},
        }
    return {
        "type": "IAMUser",
        "principalId": f"AIDA{_hex(user, 16).upper()}",
        "arn": f"arn:aws:iam::{ACCOUNT}:user/{user}",
        "accountId": ACCOUNT,
        "accessKeyId": f"AKIA{_hex(user, 16).upper()}",
        "userName": user,
    }


def cloudtrail(
    time: int, user: str, address: str, action: str, request: dict[str, Any] | None = None, **fields: Any
) -> bytes:
    """One CloudTrail record; *action* is ``service:EventName``."""
    service, _, name = action.partition(":")
    reads = name.startswith(("Get", "List", "Describe", "Lookup", "Head"))
    number = _hex(f"{time}{user}{action}{request}", 32)
    return orjson.dumps(
        {
            "eventVersion": "1.10",
            "userIdentity": identity(user),
            "eventTime": iso(time)[:-5] + "Z",
            "eventSource": f"{service}.amazonaws.com",
            "eventName": name,
            "awsRegion": REGION,
            "sourceIPAddress": address,
            "userAgent": fields.pop("userAgent", "aws-cli/2.22.4 md/awscrt#0.22.0 ua/2.0 os/linux"),
            "requestParameters": request,
            "responseElements": None,
            "requestID": number[:16].upper(),
            "eventID": f"{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}",
            "readOnly": reads,
            "eventType": "AwsApiCall",
            "managementEvent": name != "GetObject",
            "recipientAccountId": ACCOUNT,
            "eventCategory": "Data" if name == "GetObject" else "Management",
            **fields,
        }
    )


# --- collecting and writing -------------------------------------------------------------------------------------------


class Logs:
    """Records by file, in order of time; `write` puts them on disk.

    *mark* is a number of the caller's choice: where the records that carry it came to lie is in `Written.places`.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, int, bytes, int]]] = {}

    def add(self, path: str, time: int, raw: bytes, mark: int = -1) -> None:
        rows = self._rows.setdefault(path, [])
        rows.append((time, len(rows), raw, mark))

    def write(self, folder: Path, end: int) -> Written:
        """Write the records that are older than *end*; files whose name ends in ``.gz`` are CloudTrail deliveries."""
        written = Written({}, {})
        for path, rows in sorted(self._rows.items()):
            kept = sorted(row for row in rows if row[0] < end)
            first, between, last = _DELIVERY if path.endswith(".gz") else _LINES
            offset = len(first)
            for time, _, raw, mark in kept:
                if mark >= 0:
                    written.places.setdefault(mark, []).append((path, offset, time))
                offset += len(raw) + len(between)
            data = first + between.join(row[2] for row in kept) + last
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.compress(data, compresslevel=6, mtime=0) if path.endswith(".gz") else data)
            os.utime(target, (end // SECOND, end // SECOND))
            written.counts[path] = len(kept)
        return written


class Written(NamedTuple):
    """Records by file, and for each mark the (file, offset in its unpacked bytes, time) of what carries it."""

    counts: dict[str, int]
    places: dict[int, list[tuple[str, int, int]]]


_LINES = (b"", b"\n", b"\n")
_DELIVERY = (b'{"Records":[', b",", b"]}")


def delivery_path(time: int) -> str:
    """The file into which CloudTrail delivers a record of *time*: one for each quarter of an hour."""
    start = time - time % (15 * MINUTE)
    date, hour, minute, _, _ = _clock(start)
    stamp = f"{date:%Y%m%d}T{hour:02}{minute:02}Z"
    return (
        f"aws/AWSLogs/{ACCOUNT}/CloudTrail/{REGION}/{date:%Y/%m/%d}/"
        f"{ACCOUNT}_CloudTrail_{REGION}_{stamp}_{_hex(stamp, 16)}.json.gz"
    )
