"""README.md and docs/operate.md are followed as they stand; the figures, tests, rooms and links they name are there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from connectors.siem.install import stream_name
from tests.pages import DOCS, Shell, blocks
from tests.servers import Server
from tests.siem import connected, new_namespace, put_away
from tests.site import Site

ROOT = Path(__file__).parents[2]
README, SECURITY, OPERATE = ROOT / "README.md", ROOT / "SECURITY.md", DOCS / "operate.md"
TEN_MINUTES = "Ten minutes to your own Elasticsearch"
EVENT = {
    "@timestamp": "2026-01-01T00:00:00Z",
    "ecs": {"version": "8.17.0"},
    "host": {"name": "trial"},
    "event": {"code": "1"},
    "winlog": {"channel": "Microsoft-Windows-Sysmon/Operational", "event_id": "1"},
    "process": {
        "executable": "C:\\Windows\\System32\\vssadmin.exe",
        "command_line": "vssadmin.exe delete shadows /all",
    },
}


def under(page: Path, heading: str, language: str = "sh") -> list[str]:
    """Return the page's blocks of one language under *heading*; AssertionError if there are none."""
    found = [one.text for one in blocks(page) if (one.heading, one.language) == (heading, language)]
    assert found, f"{page.name} has no {language} under {heading!r}"
    return found


# --- README -----------------------------------------------------------------------------------------------------------


def made_by(command: str) -> str:
    """Return the last thing that a `make` command of the page would run."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # make runs us, too
    words = [*command.split(), "--dry-run", "--always-make", "--no-print-directory"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_make_commands_do_what_the_page_says() -> None:
    commands = [line.partition("#")[0].strip() for text in under(README, "Two commands") for line in text.splitlines()]
    assert [made_by(one).removeprefix(".venv/bin/") for one in commands] == [
        "vedette demo ",
        'vedette demo --logs "/var/log"',
        'pytest -n 2 --dist loadgroup -m "not slow"',
    ]


def test_whoever_looks_around_after_the_demo_sees_what_the_page_says(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    demo = shell.do("vedette demo")
    (around,) = under(README, "What you see")
    said = {" ".join(line.split()[1:3]): shell.do(line) for line in around.splitlines()}
    assert all(word in demo for word in ("against the labels", "books: ", " quarantined", "the audit log", "holds: "))
    assert "LSASS memory read" in said["alerts list"]
    assert " low " not in said["alerts list"]
    assert "amelie.roth" in said["alerts incidents"]
    assert "detector " in said["plan -b"]
    assert "{" not in said["plan -b"]
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d +dana", said["model list"])
    assert "holds: nothing edited" in said["audit verify"]
    assert "not a syslog line" in said["deadletter list"]


@pytest.fixture
def elasticsearch(elasticsearch8_secure: Server) -> Iterator[Server]:
    yield elasticsearch8_secure
    put_away(connected("elasticsearch", elasticsearch8_secure.access()))


def test_ten_minutes_end_with_an_alert_in_the_readers_own_elasticsearch(elasticsearch: Server, tmp_path: Path) -> None:
    """The page's commands in their order; the reader makes the accounts with the roles that are printed."""
    admin = connected("elasticsearch", elasticsearch.access())
    index, namespace = f"logs-readme-{uuid4().hex[:12]}", new_namespace()
    host = elasticsearch.url.removeprefix("https://")
    own = {"siem.example.com:9200": host, "logs-*": index, "namespace: default": f"namespace: {namespace}",
           "start: 24h": "start: earliest"}  # fmt: skip
    shell = Shell(tmp_path, own)
    (tmp_path / "ca.pem").write_bytes(Path(elasticsearch.ca_file or "").read_bytes())
    (tmp_path / "passphrase").write_text("long enough to be one\n")
    shell.do("export VEDETTE_PASSPHRASE_FILE=passphrase")  # a terminal is asked
    admin.request("PUT", f"/{index}/_doc/1", params={"refresh": True}, body=EVENT)

    init, roles, rest = under(README, TEN_MINUTES)
    shell.do(init)
    (configuration,) = under(README, TEN_MINUTES, "yaml")
    (tmp_path / "vedette.yml").write_text(shell.name(configuration))
    for name, role in json.loads(shell.do(roles)).items():
        password = uuid4().hex
        admin.request("PUT", f"/_security/role/{name}", body=role)
        admin.request("PUT", f"/_security/user/{name}", body={"password": password, "roles": [name]})
        (tmp_path / f"{name.removeprefix('vedette-')}.password").write_text(password)
    said = shell.do(rest)
    assert "read so far: 1 events, 1 alerts\nnext: vedette alerts list --data " in said
    assert "Shadow copies or recovery deleted" in said
    stream = stream_name(namespace)
    admin.request("POST", f"/{stream}/_refresh")
    assert admin.request("GET", f"/{stream}/_count").body["count"] == 1


def test_the_figures_are_those_that_were_measured() -> None:
    """Each row of the table has the figures of the file that it names, as they stand there."""
    section = README.read_text().partition("## What was measured")[2].partition("\n## ")[0]
    _, _, *rows = re.findall(r"^\| (.+) \| (.+) \| ([a-z0-9-]+) \|$", section, re.M)
    results = {name: json.loads((ROOT / "tests" / "results" / f"{name}.json").read_text()) for _, _, name in rows}
    exact, kill = results["exactness-elasticsearch-8"], results["kill-points"]
    siem, scan = results["bench-siem"], results["bench-scan"]
    real, distinct = scan["real"], scan["distinct"]
    quick = siem["latency"][0]["searchable_to_delivered_s"]
    found = {row["measure"]: row for row in results["evaluate"]["rows"] if row["set"] == "mordor"}
    archives = found["archives, alert of the labelled technique"]
    rate = found["alerts per 10,000 events"]["found"]["any"]
    pollers = exact["pollers"]
    assert rows == [
        (
            f"{exact['events']:,} events into Elasticsearch 8.19 by 8 writers, the agent killed {exact['kills']} times",
            f"{exact['missing']} missing, {exact['double']} twice; beside it a plain poller by `@timestamp` without"
            f" overlap lost {pollers['@timestamp']['lost']:,}, one by `event.ingested`"
            f" {pollers['event.ingested']['lost']:,}",
            "exactness-elasticsearch-8",
        ),
        (
            f"SIGKILL, a full disk or a sick one at {kill['struck']} system calls,"
            " with rules, correlations and a baseline",
            f"{len(kill['wrong'])} alerts lost, doubled or unscored",
            "kill-points",
        ),
        (
            f"Elasticsearch to alerts, {siem['throughput']['rules']:,} rules, one process",
            f"{siem['throughput']['vedette']['events_per_s']:,} events a second",
            "bench-siem",
        ),
        (
            f"the same at {siem['latency'][0]['rate']:,} events a second, searchable until delivered",
            f"median {quick['p50']:.1f} s, 99 % within {quick['p99']:.1f} s",
            "bench-siem",
        ),
        (
            f"`vedette scan`, {scan['events']:,} Windows events, {scan['rules']:,} rules, one core",
            f"{real['vedette']['events_per_cpu_s']:,} events a CPU second (rsigma 0.23.0 in turn:"
            f" {real['rsigma']['events_per_cpu_s']:,}), {real['vedette']['matches']} matches"
            f" ({real['rsigma']['matches']}); with every long value made distinct"
            f" {distinct['vedette']['events_per_cpu_s']:,} ({distinct['rsigma']['events_per_cpu_s']:,})",
            "bench-scan",
        ),
        (
            "attack archives with an alert of the labelled technique ([more](docs/evaluation.md))",
            f"{archives['found']['any']} of {archives['of']}; {rate:.1f} alerts per 10,000 events",
            "evaluate",
        ),
    ]


# --- the operator's page ----------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end_anyhow()


def operator(site: Site) -> Shell:
    """Return somebody who follows the operator's page on *site*."""
    backups = site.folder / "backups"
    backups.mkdir()
    own = {"/etc/vedette/bootstrap.yml": str(site.bootstrap), "/var/lib/vedette": str(site.data),
           "/var/backups/vedette": str(backups)}  # fmt: skip
    return Shell(site.folder, own)


def test_an_operator_sees_how_it_is_and_pauses_a_stream(site: Site) -> None:
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    shell = operator(site)
    (look,) = under(OPERATE, "How is it?")
    said = shell.do(look)
    assert "streams: 1 ok; 1 events, 1 alerts" in said
    assert "ok       machine: stream main: reads" in said
    (pause,) = under(OPERATE, "Pause a stream")
    paused, resumed = shell.do(pause).splitlines()
    assert "stream main: paused" in paused
    assert resumed == "stream main: ok"


def test_a_backup_of_a_running_daemon_is_whole_and_a_restore_goes_on_from_it(site: Site) -> None:
    """The alert that came after the backup is found again under its id; the log says where it was cut."""
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    shell = operator(site)
    backup, restore = under(OPERATE, "Backup and restore")
    assert "holds: nothing edited" in shell.do(backup)
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    before = site.delivered()
    site.stop()
    shell.do(f"vedette audit export --data {site.data} -o copy.ndjson")
    shell.do(restore)
    site.start()
    site.until(lambda: len(site.delivered()) == 3)
    site.stop()
    assert site.delivered() == [*before, before[1]]
    assert "holds: nothing edited" in shell.do(f"vedette audit verify --data {site.data}")
    against = f"vedette audit verify --data {site.data} --against copy.ndjson 2>&1"
    assert "leaf 5 is not what the checkpoint of 6 leaves signs" in shell.do(against, code=4)


def test_the_operators_page_knows_every_alert_that_leads_there() -> None:
    """By its name, in the section that its runbook names."""
    _, *parts = re.split(r"^## (.+)$", OPERATE.read_text(), flags=re.M)
    sections = dict(zip(map(anchor, parts[::2]), parts[1::2], strict=True))
    rules = yaml.safe_load((ROOT / "packaging" / "prometheus" / "vedette-rules.yml").read_text())
    alerts = [one for group in rules["groups"] for one in group["rules"] if "alert" in one]
    leading = {one["alert"]: one["annotations"]["runbook"].split("#") for one in alerts}
    here = {name: sections[place] for name, (page, place) in leading.items() if page == "docs/operate.md"}
    assert here
    assert [name for name, section in here.items() if not re.search(rf"\b{name}\b", section)] == []


# --- claims and links -------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [README, SECURITY, OPERATE, DOCS / "design.md"], ids=lambda one: one.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, place = link.partition("#")
        if link.startswith("https://"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if place else []
        assert not place or place in map(anchor, headings), link


def test_every_test_that_the_threat_model_names_is_there() -> None:
    """And every row of its tables names one."""
    text = SECURITY.read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named - set(re.findall(r"^def (test_\w+)", tests, re.M)) == set()
    assert [one for one in re.findall(r"`(\w+/\w+\.py)`", text) if not (ROOT / "tests" / one).exists()] == []
    model = text[text.index("## Threat model") : text.index("## Defaults")]
    rows = [row for row in re.findall(r"^\| .+ \| .+ \| .+ \|$", model, re.M) if "| shown by |" not in row]
    assert len(rows) > 30
    assert [row for row in rows if "test_" not in row and "---" not in row] == []


def test_the_exposure_of_the_unit_is_the_one_that_is_held() -> None:
    """The page's bound and that of the unit's own test are one."""
    source = (ROOT / "tests" / "packaging" / "test_unit.py").read_text()
    (most,) = re.findall(r"^MOST_EXPOSURE = ([\d.]+)$", source, re.M)
    assert f"holds it to {most} at most" in SECURITY.read_text()


def test_the_map_of_rooms_names_what_is_there_and_all_of_it() -> None:
    cells = re.findall(r"^\| (`.+?`) \| ", (DOCS / "design.md").read_text(), re.M)
    named = set(re.findall("`(.+?)`", " ".join(cells)))
    assert [one for one in named if not (ROOT / one).exists()] == []
    there = (path for path in (ROOT / "agent").iterdir() if not path.name.startswith("__"))
    assert {f"agent/{one.name}{'/' * one.is_dir()}" for one in there} - named == set()
