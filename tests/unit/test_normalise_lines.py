"""Syslog and access lines: what is read from them, and which year a time without one belongs to."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import RecordError
from agent.normalise import Normaliser
from agent.normalise.clock import parse
from agent.normalise.lines import line_reader, patterns_of
from agent.normalise.mapping import parse as parse_mapping

AS_OF = parse("2024-03-10T12:00:00Z")
NORMALISER = Normaliser(lambda kind: frozenset())


def document(line: str, format: str = "syslog", as_of: int = AS_OF) -> dict[str, Any]:
    return NORMALISER.document(format, line.encode(), as_of=as_of)


def field(doc: Any, name: str) -> Any:
    for part in name.split("."):
        doc = doc.get(part) if isinstance(doc, dict) else None
    return doc


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("Mar  9 10:00:00 h p: m", "2024-03-09T10:00:00.000Z"),
        ("Mar 11 11:59:59 h p: m", "2024-03-11T11:59:59.000Z"),
        ("Mar 12 00:00:01 h p: m", "2023-03-12T00:00:01.000Z"),
        ("Dec 31 23:59:59 h p: m", "2023-12-31T23:59:59.000Z"),
        ("Feb 29 08:00:00 h p: m", "2024-02-29T08:00:00.000Z"),
        ("Mar 09 2019 10:00:00 h p: m", "2019-03-09T10:00:00.000Z"),
        ("2024-03-01T10:00:00.25+02:00 h p: m", "2024-03-01T08:00:00.250Z"),
        ("<34>1 2024-03-01T10:00:00.003Z h p 7 ID47 - m", "2024-03-01T10:00:00.003Z"),
    ],
)
def test_time_of_a_syslog_line(line: str, time: str) -> None:
    """Without a year the latest such day is meant that is at most a day ahead; other times speak for themselves."""
    assert document(line)["@timestamp"] == time


def test_leap_day_seen_in_a_common_year_is_that_of_the_last_leap_year() -> None:
    """29 February without a year is never a day that does not exist."""
    doc = document("Feb 29 08:00:00 h p: m", as_of=parse("2026-03-10T12:00:00Z"))
    assert doc["@timestamp"] == "2024-02-29T08:00:00.000Z"


@pytest.mark.parametrize("line", ["Foo 99 10:00:00 h p: m", "Feb 30 10:00:00 h p: m", "Mar 9 25:61:61 h p: m"])
def test_impossible_dates_are_untimed(line: str) -> None:
    """A date that no year has is no time; the line is read all the same."""
    assert document(line)["@timestamp"] == "2024-03-10T12:00:00.000Z"


MODULE = "pam_unix(sshd:auth): "
PAM = MODULE + "authentication failure; logname= uid=0 euid=0 tty={tty} ruser= rhost={host}"
SSH = "Mar  9 10:00:00 web-1 sshd[812]: "


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Failed password for invalid user admin from 203.0.113.5 port 4711 ssh2",
            {"user.name": "admin", "source.ip": "203.0.113.5", "source.port": 4711, "event.outcome": "failure"},
        ),
        (
            "Accepted publickey for alice from 2001:db8::1 port 22 ssh2: RSA SHA256:abc",
            {"user.name": "alice", "source.ip": "2001:db8::1", "event.outcome": "success", "process.pid": 812},
        ),
        (
            "Failed password for x from 192.0.2.1 port 1 ssh2 from 203.0.113.5 port 4711 ssh2",
            {"user.name": "x from 192.0.2.1 port 1 ssh2", "source.ip": "203.0.113.5"},
        ),
        (
            PAM.format(tty="ssh", host="203.0.113.5  user=root"),
            {"user.name": "root", "source.ip": "203.0.113.5", "event.action": "pam_authentication"},
        ),
        (
            "reverse mapping checking getaddrinfo for h.example.com [203.0.113.5] failed - POSSIBLE BREAK-IN ATTEMPT!",
            {"source.ip": "203.0.113.5", "source.domain": "h.example.com"},
        ),
        ("Server listening on 0.0.0.0 port 22.", {"source": None, "message": "Server listening on 0.0.0.0 port 22."}),
    ],
)
def test_sshd(message: str, expected: dict[str, Any]) -> None:
    """Logins, failures and their addresses; a user name cannot pass for an address, since the last one counts."""
    doc = document(SSH + message)
    assert {name: field(doc, name) for name in expected} == expected
    assert (doc["process"]["name"], doc["host"]["name"], doc["event"]["dataset"]) == ("sshd", "web-1", "system.auth")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Mar  9 10:00:00 h sudo:    bob : TTY=pts/0 ; PWD=/home/bob ; USER=root ; COMMAND=/bin/cat /etc/shadow",
            {"user.name": "bob", "user.effective.name": "root", "system.auth.sudo.command": "/bin/cat /etc/shadow"},
        ),
        (
            "Mar  9 10:00:00 h su[9]: FAILED SU (to root) bob on pts/1",
            {"user.name": "bob", "user.effective.name": "root", "event.outcome": "failure"},
        ),
        (
            "Mar  9 10:00:00 h sshd(pam_unix)[19]: " + PAM.format(tty="x", host="192.0.2.9 ").removeprefix(MODULE),
            {"process.name": "sshd", "process.pid": 19, "source.address": "192.0.2.9", "event.outcome": "failure"},
        ),
        (
            "Mar  9 10:00:00 h useradd[5]: new user: name=eve, UID=1001, GID=100, home=/home/eve, shell=/bin/sh",
            {"user.name": "eve", "user.id": "1001", "event.category": ["iam"], "event.type": ["user", "creation"]},
        ),
        ("<13>Mar  9 10:00:00 h kernel: eth0 up", {"process.name": "kernel", "log.syslog.priority": 13}),
        ("Mar  9 10:00:00 h -- MARK --", {"message": "-- MARK --", "host.name": "h"}),
    ],
)
def test_other_programs(line: str, expected: dict[str, Any]) -> None:
    """sudo, su, PAM, account tools, and any program by its name."""
    doc = document(line)
    assert {name: field(doc, name) for name in expected} == expected


def test_bytes_that_are_not_utf8_stay_visible() -> None:
    """One odd byte in a name hides neither the line nor the address."""
    read = line_reader("syslog", AS_OF)
    record = read(b"Mar  9 10:00:00 h sshd[1]: Failed password for ad\xffmin from 192.0.2.7 port 9 ssh2\r\n")
    assert (record["user"], record["address"]) == ("ad\\xffmin", "192.0.2.7")


@pytest.mark.parametrize("format", ["syslog", "access"])
@pytest.mark.parametrize("raw", [b"", b" \r\n", b"no such line", b"\x00" * 100, b"\xff\xfea\x00b\x00"])
def test_lines_that_are_neither_are_refused(format: str, raw: bytes) -> None:
    """What is no line of the format raises RecordError."""
    with pytest.raises(RecordError):
        line_reader(format, AS_OF)(raw)


ACCESS = '[09/Mar/2024:11:00:00 +0100] "GET /a/b.php?q=1&r=%20 HTTP/1.1" 404 12'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            f'192.0.2.1 - - {ACCESS} "-" "curl/8"',
            {"source.ip": "192.0.2.1", "user": None, "user_agent.original": "curl/8", "http.request.referrer": None},
        ),
        (f"192.0.2.1 - carol {ACCESS}", {"user.name": "carol", "source.address": "192.0.2.1"}),
        (f"www.example.com 192.0.2.1 - - {ACCESS}", {"source.ip": "192.0.2.1", "url.domain": "www.example.com"}),
        (f"10.0.0.2, 10.0.0.1 - - {ACCESS}", {"source.ip": "10.0.0.2"}),
        (f"192.0.2.1 - x 192.0.2.9 - y {ACCESS}", {"source.ip": "192.0.2.1", "user.name": "x 192.0.2.9 - y"}),
        (f"cache-7 - - {ACCESS}", {"source.address": "cache-7", "source.ip": None}),
        (f"- frank bob {ACCESS}", {"user.name": "bob", "source.ip": None}),
        (f"\x1d - bob {ACCESS}", {"user.name": "bob", "source.ip": None}),
        (f'" " \x1c - bob {ACCESS}', {"user.name": "bob", "source.ip": None}),
    ],
)
def test_access_lines(line: str, expected: dict[str, Any]) -> None:
    """Common and combined format, proxies and virtual hosts; a user name cannot pass for an address."""
    doc = document(line, "access")
    common = {
        "@timestamp": "2024-03-09T10:00:00.000Z",
        "url.path": "/a/b.php",
        "url.query": "q=1&r=%20",
        "url.extension": "php",
        "http.request.method": "GET",
        "http.version": "1.1",
        "http.response.status_code": 404,
        "http.response.body.bytes": 12,
        "event.outcome": "failure",
    }
    assert {name: field(doc, name) for name in common} == common
    assert {name: field(doc, name) for name in expected} == expected


def test_an_odd_blank_in_a_name_hides_no_line() -> None:
    doc = document("<13>1 2024-05-01T11:00:00Z host-1 a\x0bb 12 ID - hello", "syslog")
    assert (field(doc, "host.name") or field(doc, "host.hostname"), field(doc, "message")) == ("host-1", "hello")


@pytest.mark.parametrize("head", ["<>1", "<13>1 ", "<13>1 a\tb"])
def test_a_head_of_another_form_is_none(head: str) -> None:
    with pytest.raises(RecordError):
        document(f"{head} 2024-05-01T11:00:00Z host-1 app 12 ID - hello", "syslog")


def test_request_that_is_none() -> None:
    """Bytes in place of a request are kept as the request's text."""
    doc = document(r'192.0.2.1 - - [09/Mar/2024:11:00:00 +0000] "\x16\x03\x01" 400 0 "-" "-"', "access")
    assert doc["url"]["original"] == r"\x16\x03\x01"
    assert doc["http"]["response"]["status_code"] == 400


def test_kind_of_a_line_names_program_and_action() -> None:
    """Linux kinds carry program and dataset, and the action where the message is known."""
    from tests.unit.test_normalise import kind_of

    constant = kind_of((SSH + "Failed password for a from 192.0.2.1 port 1 ssh2").encode(), "syslog").constant
    assert (constant["process.name"], constant["event.dataset"], constant["event.action"]) == (
        "sshd",
        "system.auth",
        "ssh_login",
    )


def test_a_pattern_is_tried_only_where_its_literals_are() -> None:
    """What a pattern begins with and contains selects the lines that it may read; others are for the next."""
    mapping = parse_mapping(
        """
mapping: doors
format: syslog
prefix: doors.
shapes: {line: {when: [door], time: [time]}}
patterns:
  - programs: ["-"]
    match:
      - {name: opened, starts: "door", contains: " by ", regex: '^door (?P<door>.*)$'}
      - {name: other, regex: '^(?P<door>.*)$'}
kinds: [{constants: {event.kind: event}}]
""",
        "doors.yml",
    )
    read = line_reader("text", AS_OF, patterns_of([mapping]))
    found = [read(line)["pattern"] for line in (b"door 4 by ann", b"door 4", b"4 by ann")]
    assert found == ["opened", "other", "other"]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("^(?P<door>opened)|(?P<gate>shut)", b"gate 4 shut"),
        ("^(?P<door>o*)", b"shut"),
        ("^(?P<door>)", b"shut"),
        (r"^(?P<door>door)|\B(?P<gate>ate)", b"gate 4"),
    ],
)
def test_a_pattern_is_tried_on_each_line_that_has_its_form(form: str, line: bytes) -> None:
    """The first byte rules out no line that matches: not further inside, not with nothing."""
    mapping = parse_mapping(
        f"""
mapping: doors
format: syslog
prefix: doors.
shapes: {{line: {{when: [door], time: [time]}}}}
patterns: [{{programs: ["-"], match: [{{name: doors, regex: '{form}'}}]}}]
kinds: [{{constants: {{event.kind: event}}}}]
""",
        "doors.yml",
    )
    assert line_reader("text", AS_OF, patterns_of([mapping]))(line)["pattern"] == "doors"
