"""A seeded day in a small company: ordinary work, robots, jobs and mistakes, with attacks among them (`stories`).

The same arguments give the same bytes. *history* of logons before the day lets baselines know the habits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from agent.demo import records as native
from agent.demo.records import DAY, HOUR, MINUTE, SECOND, Logs, Written
from agent.demo.score import Labels, Step, Story
from agent.demo.stories import Draft, tell

WINDOWS = "windows/sysmon-security.jsonl"
AUTH = "linux/auth.log"
WEB = "web/access.log"
DNS = "dns/dns.jsonl"
HISTORY_DAYS = 28

_SYSTEM32 = "C:\\Windows\\System32\\"
_OFFICE = "C:\\Program Files\\Microsoft Office\\root\\Office16\\"
_EDGE = "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe"


@dataclass(frozen=True)
class Person:
    """Somebody who works here: a workstation, a habit of coming at *start* o'clock (UTC), and perhaps SSH keys."""

    user: str
    number: int
    start: float
    ssh: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return f"ws-{self.number:02}"

    @property
    def address(self) -> str:
        return f"10.20.1.{self.number + 20}"


# fmt: off
_NAMES = (
    "amelie.roth", "jonas.brandt", "noah.winter", "deniz.kaya", "lena.vogt", "mila.hofer", "paul.linden",
    "ida.sommer", "emil.falk", "nora.berg", "finn.adler", "lea.kraus", "ben.thal", "mia.stein", "luca.moser",
    "anna.huber", "tom.egger", "sara.wolf", "jan.beck", "elif.demir", "max.pohl", "julia.kern", "oscar.lang",
    "rosa.frey",
)
# fmt: on
_LINUX = {
    "deniz.kaya": ("srv-web-01", "srv-db-01", "srv-jump-01"),
    "jonas.brandt": ("srv-web-01", "srv-git-01"),
} | dict.fromkeys(("emil.falk", "finn.adler", "ben.thal", "noah.winter", "jan.beck"), ("srv-git-01",))
PEOPLE = tuple(
    Person(name, number, 6.2 + (number * 7 % 5) * 0.55, _LINUX.get(name, ())) for number, name in enumerate(_NAMES, 1)
)
SERVERS = {"dc-01": "10.20.0.10", "srv-file-01": "10.20.0.20", "srv-app-01": "10.20.0.30"}
LINUX = {"srv-web-01": "10.20.0.40", "srv-git-01": "10.20.0.41", "srv-db-01": "10.20.0.42", "srv-jump-01": "10.20.0.43"}
OFFICE_ADDRESS = "192.0.2.10"

_BROWSERS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
)
_ROBOTS = (
    "Mozilla/5.0 (compatible; ExampleBot/2.1; +https://bot.example.org/)",
    "FeedFetcher-Example/1.0 (feeds.example.net; 12 subscribers)",
    "curl/8.10.1",
)
# fmt: off
_PAGES = (
    "/", "/shop", "/shop/item?id=1042", "/shop/item?id=88", "/cart", "/about", "/blog", "/blog/2026/how-we-roast",
    "/contact", "/login", "/search?q=blue+mug", "/static/app.css", "/static/app.js", "/img/logo.svg", "/img/hero.jpg",
    "/favicon.ico", "/api/v1/stock?sku=77",
)
# fmt: on
# fmt: off
_SITES = (
    "www.example.com", "mail.example.com", "intranet.corp.example.com", "login.example.org", "cdn.example.net",
    "news.example.org", "updates.example.net", "time.example.net", "files.corp.example.com", "crm.example.com",
    "docs.example.org", "maps.example.net", "fonts.example.net", "video.example.org", "chat.example.com",
    "git.corp.example.com", "dc-01.corp.example.com",
)
# fmt: on
_PROGRAMS = (
    (_EDGE, f'"{_EDGE}" --profile-directory=Default', "C:\\Windows\\explorer.exe"),
    (f"{_OFFICE}OUTLOOK.EXE", f'"{_OFFICE}OUTLOOK.EXE"', "C:\\Windows\\explorer.exe"),
    (f"{_OFFICE}WINWORD.EXE", f'"{_OFFICE}WINWORD.EXE" /n "report.docx"', "C:\\Windows\\explorer.exe"),
    (f"{_OFFICE}EXCEL.EXE", f'"{_OFFICE}EXCEL.EXE" /dde', "C:\\Windows\\explorer.exe"),
    (f"{_SYSTEM32}svchost.exe", f"{_SYSTEM32}svchost.exe -k netsvcs -p -s Schedule", f"{_SYSTEM32}services.exe"),
    (f"{_SYSTEM32}conhost.exe", f"{_SYSTEM32}conhost.exe 0xffffffff -ForceV1", f"{_SYSTEM32}cmd.exe"),
    (f"{_SYSTEM32}backgroundTaskHost.exe", "backgroundTaskHost.exe -ServerName:App", f"{_SYSTEM32}svchost.exe"),
    (f"{_SYSTEM32}taskhostw.exe", "taskhostw.exe", f"{_SYSTEM32}svchost.exe"),
)
_LIBRARIES = ("kernel32", "user32", "advapi32", "ws2_32", "crypt32", "ole32", "shell32", "combase", "bcrypt", "winhttp")
_VALUES = (
    ("HKLM\\System\\CurrentControlSet\\Services\\W32Time\\Config\\LastKnownGoodTime", "QWORD (0x01db3a00-0x7c11d2aa)"),
    (
        "HKLM\\Software\\Microsoft\\Windows\\CurrentVersion\\WindowsUpdate\\Auto Update\\LastOnline",
        "DWORD (0x00000001)",
    ),
    ("HKU\\.DEFAULT\\Software\\Classes\\Local Settings\\MuiCache\\3\\52C64B7E\\LanguageList", "Binary Data"),
)
_JOBS = (
    (5, "root", "cd / && run-parts --report /etc/cron.hourly", 60),
    (0, "root", "command -v debian-sa1 > /dev/null && debian-sa1 1 1", 10),
    (20, "www-data", "/usr/bin/php /var/www/shop/cron.php", 15),
)


def generate(folder: Path, *, seed: int = 7, day: date, hours: int = 24, scale: float = 1.0) -> Labels:
    """Write the logs of *day* (its first *hours*) below *folder*, with ``labels.json``; return the labels.

    *scale* multiplies ordinary traffic; attacks stay as they are, cut off where the day ends. Baselines close a window
    only when it is over, so *day* has to lie in the past for them to speak.
    """
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND
    end = start + hours * HOUR
    logs = Logs()
    _history(logs, seed, start)
    _Ordinary(logs, random.Random(f"{seed}:{start}:day"), start, scale).live()  # noqa: S311
    drafts = tell(logs, random.Random(f"{seed}:{start}:stories"), start)  # noqa: S311
    written = logs.write(folder, end)
    labels = Labels(seed, day.isoformat(), written.counts, _stories(drafts, written))
    (folder / "labels.json").write_bytes(labels.to_json())
    return labels


def last_working_day(today: date) -> date:
    """The newest day before *today* that is no weekend: a day on which a company works."""
    days = (today - timedelta(days=back) for back in range(1, 4))
    return next(day for day in days if day.weekday() < 5)


def _stories(drafts: Sequence[Draft], written: Written) -> tuple[Story, ...]:
    """Put the drafts' steps, now that it is known where their records lie, together as stories."""
    stories: dict[str, Story] = {}
    for mark, draft in enumerate(drafts):
        story = stories.get(draft.story.id, draft.story)
        step = _located(draft.step, written.places.get(mark, []))
        stories[story.id] = replace(story, steps=(*story.steps, step))
    return tuple(stories.values())


def _located(step: Step, places: Sequence[tuple[str, int, int]]) -> Step:
    if not places:
        return step
    times = [time for _, _, time in places]
    return replace(
        step,
        start=native.iso(min(times)),
        end=native.iso(max(times)),
        events=len(places),
        places=tuple((file, offset) for file, offset, _ in places),
    )


# --- habits: what is the same in history and on the day ---------------------------------------------------------------


def _history(logs: Logs, seed: int, start: int) -> None:
    for back in range(HISTORY_DAYS, 0, -1):
        before = start - back * DAY
        habits = _Habits(logs, random.Random(f"{seed}:{before}:habits"), before, "history/")  # noqa: S311
        habits.live()


class _Habits:
    """Logons of one day: people at their desks and over SSH, backup at night, programs that call AWS, and guesses."""

    def __init__(self, logs: Logs, rng: random.Random, start: int, prefix: str) -> None:
        self._logs = logs
        self._rng = rng
        self._start = start
        self._prefix = prefix
        self._serial = 0
        self._works = datetime.fromtimestamp(start // SECOND, UTC).weekday() < 5

    def live(self) -> None:
        self._backup()
        self._deployments()
        self._internet_noise()
        for person in PEOPLE if self._works else PEOPLE[:2]:
            self._desk(person)
            self._shell(person)
            self._console(person)

    def _at(self, hour: float, spread: float = 0.5) -> int:
        return self._start + int(max(0.0, hour + self._rng.uniform(-spread, spread)) * HOUR)

    def _logon(self, time: int, host: str, user: str, kind: int, address: str, minutes: float) -> None:
        self._serial += 1
        path = self._prefix + WINDOWS
        self._logs.add(path, time, native.logon(time, host, user, kind, address, serial=self._serial))
        later = time + int(minutes * MINUTE)
        self._logs.add(path, later, native.logoff(later, host, user, kind, self._serial))

    def _desk(self, person: Person) -> None:
        arrives = self._at(person.start)
        self._logon(arrives, person.host, person.user, 2, "127.0.0.1", 480)
        for hour in range(9):
            time = arrives + int((hour + self._rng.random()) * HOUR)
            self._logon(time, "srv-file-01", person.user, 3, person.address, 12)
            self._logon(time + SECOND, "dc-01", person.user, 3, person.address, 1)

    def _shell(self, person: Person) -> None:
        for host in person.ssh:
            for _ in range(2):
                self._ssh(self._at(person.start + 4, 3.5), host, person.user.partition(".")[0], person.address)

    def _ssh(self, time: int, host: str, user: str, address: str) -> None:
        pid = self._rng.randrange(900, 32000)
        port = self._rng.randrange(40000, 60000)
        accepted = f"Accepted publickey for {user} from {address} port {port} ssh2: ED25519 SHA256:{pid:043d}"
        path = self._prefix + AUTH
        self._logs.add(path, time, native.syslog(time, host, "sshd", accepted, pid))
        opened = f"pam_unix(sshd:session): session opened for user {user}(uid={1000 + len(user)}) by (uid=0)"
        self._logs.add(path, time + 1000, native.syslog(time, host, "sshd", opened, pid))
        later = time + self._rng.randrange(2, 50) * MINUTE
        closed = f"pam_unix(sshd:session): session closed for user {user}"
        self._logs.add(path, later, native.syslog(later, host, "sshd", closed, pid))

    def _backup(self) -> None:
        """The backup server logs on to every computer once in the hour after one o'clock."""
        for number, host in enumerate([*(person.host for person in PEOPLE), *SERVERS]):
            self._logon(self._start + HOUR + number * 2 * MINUTE, host, "svc-backup", 3, "10.20.0.50", 1.5)

    def _internet_noise(self) -> None:
        """What every SSH server on the Internet sees all day: single guesses from everywhere."""
        for number in range(24 * 6):
            time = self._at(number / 6, 0.2)
            name = self._rng.choice(("admin", "test", "oracle", "ubuntu", "pi", "guest", "root"))
            address = f"198.51.100.{self._rng.randrange(100, 250)}"
            port, pid = self._rng.randrange(30000, 60000), self._rng.randrange(900, 32000)
            unknown = "" if name == "root" else "invalid user "
            text = f"Failed password for {unknown}{name} from {address} port {port} ssh2"
            self._logs.add(self._prefix + AUTH, time, native.syslog(time, "srv-jump-01", "sshd", text, pid))

    def _deployments(self) -> None:
        for hour in range(24):
            self._aws(self._at(hour + 0.5, 0.4), "deploy", "10.20.0.41", "ecr:GetAuthorizationToken")
            self._aws(self._at(hour + 0.5, 0.4), "backup", "10.20.0.50", "s3:ListObjects")

    def _console(self, person: Person) -> None:
        if person.ssh:
            self._aws(self._at(person.start + 3, 2), person.user, OFFICE_ADDRESS, "ec2:DescribeInstances")

    def _aws(self, time: int, user: str, address: str, action: str) -> None:
        path = native.delivery_path(self._start + 12 * HOUR if self._prefix else time)
        self._logs.add(self._prefix + path, time, native.cloudtrail(time, user, address, action))


# --- the day itself ---------------------------------------------------------------------------------------------------


class _Ordinary(_Habits):
    """Everything that is no attack on the day: habits, and the noise that machines and people make besides."""

    def __init__(self, logs: Logs, rng: random.Random, start: int, scale: float) -> None:
        super().__init__(logs, rng, start, "")
        self._scale = scale

    def live(self) -> None:
        super().live()
        for person in PEOPLE:
            self._workstation(person)
        for host, address in SERVERS.items():
            for hour in range(24):
                self._computer(host, address, "SYSTEM", hour, 60)
        self._monitoring()
        self._linux_jobs()
        self._administration()
        self._web()
        self._resolver()
        self._cloud()

    def _times(self, hour: int, rate: float) -> Iterator[int]:
        """Moments within the hour, *rate* of them on average."""
        begin = self._start + hour * HOUR
        for _ in range(round(rate * self._scale * self._rng.uniform(0.7, 1.3))):
            yield begin + int(self._rng.random() * HOUR)

    def _busy(self, person: Person, hour: int) -> float:
        """How much a person does in an hour: full at work, less at lunch, hardly anything else."""
        since = hour - person.start
        return 0.03 if not (self._works and 0 <= since <= 9) else 0.45 if 4 <= since < 5 else 1.0

    def _workstation(self, person: Person) -> None:
        for hour in range(24):
            busy = self._busy(person, hour)
            self._computer(person.host, person.address, person.user if busy > 0.1 else "SYSTEM", hour, 150 * busy + 6)
        for hour in self._rng.sample(range(7, 16), 2):
            time = self._at(hour)
            self._logs.add(WINDOWS, time, native.logon(time, person.host, person.user, 2, "127.0.0.1", failed=True))

    def _computer(self, host: str, address: str, user: str, hour: int, rate: float) -> None:
        makers = (self._image, self._access, self._registry, self._connection, self._file, self._name, self._process)
        for time in self._times(hour, rate):
            maker = self._rng.choices(makers, (30, 18, 15, 12, 10, 8, 7))[0]
            self._logs.add(WINDOWS, time, maker(time, host, address, user))

    def _process(self, time: int, host: str, address: str, user: str) -> bytes:  # noqa: ARG002
        image, command, parent = self._rng.choice(_PROGRAMS)
        return native.process(time, host, user, image, command, parent, pid=self._rng.randrange(1000, 30000))

    def _image(self, time: int, host: str, address: str, user: str) -> bytes:  # noqa: ARG002
        library = f"{_SYSTEM32}{self._rng.choice(_LIBRARIES)}.dll"
        image = self._rng.choice(_PROGRAMS)[0]
        return native.sysmon(
            time,
            7,
            host,
            Image=image,
            ImageLoaded=library,
            Signed="true",
            SignatureStatus="Valid",
            User=native.account(user),
        )

    def _access(self, time: int, host: str, address: str, user: str) -> bytes:  # noqa: ARG002
        source, target = (self._rng.choice(_PROGRAMS)[0] for _ in range(2))
        return native.sysmon(
            time,
            10,
            host,
            SourceImage=source,
            TargetImage=target,
            GrantedAccess=self._rng.choice(("0x1000", "0x1400", "0x1478")),
            SourceUser=native.account(user),
        )

    def _registry(self, time: int, host: str, address: str, user: str) -> bytes:  # noqa: ARG002
        target, details = self._rng.choice(_VALUES)
        image = f"{_SYSTEM32}svchost.exe"
        return native.sysmon(
            time,
            13,
            host,
            EventType="SetValue",
            Image=image,
            TargetObject=target,
            Details=details,
            User=native.account(user),
        )

    def _connection(self, time: int, host: str, address: str, user: str) -> bytes:
        return native.sysmon(
            time,
            3,
            host,
            Image=_EDGE,
            User=native.account(user),
            Protocol="tcp",
            Initiated="true",
            SourceIp=address,
            SourcePort=str(self._rng.randrange(49152, 65535)),
            DestinationIp=f"203.0.113.{self._rng.randrange(1, 60)}",
            DestinationPort="443",
        )

    def _file(self, time: int, host: str, address: str, user: str) -> bytes:  # noqa: ARG002
        name = f"C:\\Users\\{user}\\AppData\\Local\\Microsoft\\Edge\\User Data\\Default\\Cache\\f_{time % 9973:06x}"
        return native.sysmon(time, 11, host, Image=_EDGE, TargetFilename=name, User=native.account(user))

    def _name(self, time: int, host: str, address: str, user: str) -> bytes:  # noqa: ARG002
        return native.sysmon(
            time, 22, host, QueryName=self._rng.choice(_SITES), QueryStatus="0", Image=_EDGE, User=native.account(user)
        )

    def _monitoring(self) -> None:
        """The monitoring agent asks every process, LSASS too, for its state: often, and harmless."""
        for minute in range(0, 24 * 60, 30):
            for person in PEOPLE:
                time = self._start + minute * MINUTE + person.number * SECOND
                raw = native.sysmon(
                    time,
                    10,
                    person.host,
                    SourceImage="C:\\Program Files\\Example Monitor\\monsvc.exe",
                    TargetImage=f"{_SYSTEM32}lsass.exe",
                    GrantedAccess="0x1400",
                    SourceUser=native.account("SYSTEM"),
                )
                self._logs.add(WINDOWS, time, raw)

    def _linux_jobs(self) -> None:
        for number, host in enumerate(LINUX):
            for offset, user, command, every in _JOBS:
                for minute in range(offset, 24 * 60, every):
                    time = self._start + minute * MINUTE + number * SECOND
                    self._logs.add(
                        AUTH, time, native.syslog(time, host, "CRON", f"({user}) CMD ({command})", 700 + minute)
                    )

    def _administration(self) -> None:
        """Administrators use sudo, now and then with a typing error."""
        commands = (
            "/usr/bin/apt update",
            "/usr/bin/systemctl reload nginx",
            "/usr/bin/journalctl -u nginx",
            "/bin/bash",
        )
        for hour in range(8, 16):
            for time in self._times(hour, 4):
                host = self._rng.choice(tuple(LINUX))
                text = f"   deniz : TTY=pts/0 ; PWD=/home/deniz ; USER=root ; COMMAND={self._rng.choice(commands)}"
                self._logs.add(AUTH, time, native.syslog(time, host, "sudo", text))

    def _web(self) -> None:
        for hour in range(24):
            daylight = 0.25 + 0.75 * max(0.0, 1 - abs(hour - 14) / 9)
            for time in self._times(hour, 1000 * daylight):
                self._logs.add(WEB, time, self._visit(time))

    def _visit(self, time: int) -> bytes:
        rng = self._rng
        if rng.random() < 0.12:
            address, agent = f"203.0.113.{rng.randrange(200, 210)}", rng.choice(_ROBOTS)
        else:
            address, agent = f"198.51.100.{rng.randrange(100, 250)}", rng.choice(_BROWSERS)
        page = rng.choice(_PAGES) if rng.random() < 0.97 else "/old-page-that-moved"
        status = 404 if page.startswith("/old") else 304 if rng.random() < 0.2 else 200
        method = "POST" if page in {"/cart", "/login"} and rng.random() < 0.5 else "GET"
        size = 0 if status == 304 else rng.randrange(300, 60000)
        return native.access(time, address, f"{method} {page} HTTP/1.1", status, size, agent)

    def _resolver(self) -> None:
        for person in PEOPLE:
            for hour in range(24):
                for time in self._times(hour, 60 * self._busy(person, hour) + 3):
                    self._logs.add(DNS, time, self._query(time, person.address))
        for address in (*SERVERS.values(), *LINUX.values()):
            for hour in range(24):
                for time in self._times(hour, 6):
                    self._logs.add(DNS, time, self._query(time, address))

    def _query(self, time: int, client: str) -> bytes:
        chance = self._rng.random()
        if chance < 0.02:
            return native.dns(time, client, "printer-3rd-floor.corp.example.com", code="NXDOMAIN")
        if chance < 0.04:
            return native.dns(time, client, f"{self._rng.randrange(1, 250)}.0.20.10.in-addr.arpa", "PTR")
        return native.dns(time, client, self._rng.choice(_SITES), self._rng.choice(("A", "A", "AAAA", "HTTPS")))

    def _cloud(self) -> None:
        """Roles of services read and write all day; the deployment user works in office hours."""
        actions = (
            "s3:GetObject",
            "s3:PutObject",
            "kms:Decrypt",
            "sts:AssumeRole",
            "logs:PutLogEvents",
            "ec2:DescribeTags",
        )
        for hour in range(24):
            for time in self._times(hour, 90):
                action = self._rng.choice(actions)
                bucket = {"bucketName": "example-shop-assets"} if action.startswith("s3") else None
                raw = native.cloudtrail(time, "role/shop-backend", "10.20.0.30", action, bucket)
                self._logs.add(native.delivery_path(time), time, raw)
