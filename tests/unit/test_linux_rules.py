"""Rules for Linux and web servers find their fields by the native names, in lines of several products."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.model import Chunk, Records
from agent.normalise import Normaliser
from agent.normalise.clock import parse
from agent.state import State
from rules.detector import build
from tests.sigma_events import rule_text

AUDITD = "{product: linux, service: auditd}"
START = 'type=EXECVE msg=audit(1700000000.000:1): argc=3 a0="chmod" a1="u+s" a2=2F746D702F61'
CALL = 'type=SYSCALL msg=audit(1700000000.000:1): syscall=313 success=yes pid=2 uid=0 comm="insmod" exe="/usr/bin/kmod"'
NAMED = CALL + "\x1dSYSCALL=finit_module"
ACCESS = '192.0.2.1 - - [09/Mar/2026:11:00:00 +0000] "GET /../../etc/passwd HTTP/1.1" 404 6 "-" "x"'
IIS = "2026-03-09 10:00:00 198.51.100.4 GET /a.aspx cmd=whoami 443 - 192.0.2.1 x - 200 0 0 15"


@pytest.mark.parametrize(
    ("logsource", "selection", "format", "line"),
    [
        (AUDITD, "{type: EXECVE, a0: chmod, a1|startswith: u, a2: /tmp/a}", "syslog", START),
        (AUDITD, "{type: SYSCALL, comm: insmod, exe|endswith: /kmod}", "syslog", CALL),
        (AUDITD, "{type: SYSCALL, SYSCALL: finit_module}", "syslog", NAMED),
        (AUDITD, "{type: SYSCALL, comm: insmod}", "syslog", f"Nov 14 22:13:20 web-1 audispd: {CALL}"),
        ("{category: webserver}", "{cs-uri-query|contains: ../etc/passwd, sc-status: 404}", "nginx", ACCESS),
        ("{service: nginx}", "{c-uri|contains: ../etc/passwd}", "nginx", ACCESS),
        ("{service: apache}", "{c-uri|contains: ../etc/passwd}", "apache", ACCESS),
        ("{category: webserver}", "{cs-uri-query|contains: whoami, cs-uri-stem: /a.aspx}", "syslog", IIS),
    ],
)
def test_native_names(tmp_path: Path, logsource: str, selection: str, format: str, line: str) -> None:
    """A rule in native names matches the line it was written for, and not another."""
    (tmp_path / "rule.yml").write_text(rule_text(f"{{sel: {selection}, condition: sel}}", logsource))
    detector = build("sigma", {"path": str(tmp_path / "rule.yml")}, tmp_path)
    raw = [line.encode(), line.replace("a", "o").replace("i", "y").encode()]
    chunk = Chunk("p", "f", format, range(2), raw)
    batch = Normaliser(detector.fields)(Records("s", (chunk,), {}, parse("2026-03-10T00:00:00Z")), {}).batch
    found = detector.detect(batch, State().transaction().view("sigma"))
    assert [finding.row for finding in found] == [0]
