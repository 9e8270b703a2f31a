"""A rule is silenced and let speak again while the daemon runs: by an analyst, on record, with what it cost counted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store import Reader
from agent.trust import keys
from tests.signing import key, pem
from tests.site import RULE_ID, Site

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """With an analyst beside the others."""
    one = Site(tmp_path)
    one.configuration["access"]["principals"]["kim"] = {"roles": ["analyst"], "key": pem("kim")}
    one.sign("root")
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    for name in ("kim", "ana"):
        (tmp_path / f"{name}.pem").write_bytes(keys.seal(key(name), PASSPHRASE))
    yield one
    one.end_anyhow()


def signing(site: Site, name: str) -> list[str]:
    return ["--key", str(site.folder / f"{name}.pem"), "--passphrase-file", str(site.folder / "passphrase")]


def excepted(site: Site) -> int:
    with Reader(site.data) as reader:
        return reader.counters("main").get("main", {}).get("vedette.alerting.excepted", 0)


def changed(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    sections: list[str] = json.loads(done.stdout)["changed"]
    return sections


def test_a_rule_is_silenced_and_let_speak_again(site: Site) -> None:
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    silence = ["rules", "disable", RULE_ID, "--until", "30d", "--reason", "a test of penetration"]

    refused = site.ask(*silence, *signing(site, "ana"))  # an operator
    assert "not enough yet" in refused.stdout
    assert site.ask("config", "apply").returncode == 4
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)

    assert site.ask(*silence, *signing(site, "kim")).returncode == 0
    assert changed(site.ask("config", "apply", "--json")) == ["exceptions"]
    accepted = site.audited("configuration-accepted")
    assert accepted[-1]["data"]["changed"] == {"exceptions": ["kim"]}
    for number in (2, 3):
        site.log_line(number)
    site.until(lambda: excepted(site) == 2)
    rows = [json.loads(line) for line in site.ask("rules", "list", "--json").stdout.splitlines()]
    assert [(row["id"], row["withheld"]) for row in rows] == [(RULE_ID, 2)]

    assert site.ask("rules", "enable", RULE_ID, *signing(site, "kim")).returncode == 0
    assert changed(site.ask("config", "apply", "--json")) == ["exceptions"]
    site.log_line(4)
    site.until(lambda: len(site.delivered()) == 3)
    assert (site.received(), excepted(site)) == (5, 2)


def test_an_exception_for_a_rule_that_nothing_has_is_said_at_the_start(site: Site) -> None:
    one = {"until": "2026-12-24T00:00:00Z", "reason": "x", "owner": "kim"}
    site.sign("root", exceptions=[{"rule": RULE_ID, **one}, {"rule": "gone", **one}])
    site.start()
    said = [json.loads(line) for line in site.log.splitlines() if "exception for a rule" in line]
    assert [(line["vedette.rule"], line["log.level"]) for line in said] == [("gone", "warning")]


def test_what_else_waits_in_the_file_is_said_before_it_is_signed(site: Site) -> None:
    """A signature covers the whole file: changes of others that are not applied yet are named first."""
    site.start()
    site.end_anyhow()
    site.sign("root", filters={"chatter": {"message": ["noise"]}})
    silence = ["rules", "disable", RULE_ID, "--until", "30d", "--reason", "x", *signing(site, "kim")]
    done = site.ask(*silence, "--json")
    assert json.loads(done.stdout)["pending"] == ["filters"]
    said = site.ask("rules", "enable", RULE_ID, *signing(site, "kim")).stdout
    assert "not applied yet, and signed with it: filters" in said


def test_a_signature_that_cannot_be_leaves_the_file_as_it_was(site: Site) -> None:
    """The file's number is below the one that runs: nothing is signed, and nothing stays changed."""
    site.sign("root", tenant="other")
    site.start()
    site.end_anyhow()
    site.configuration["revision"] = 0
    site.sign("root")
    before = (site.folder / "vedette.yml").read_bytes()
    done = site.ask("rules", "disable", RULE_ID, "--until", "30d", "--reason", "x", *signing(site, "kim"))
    assert done.returncode == 3
    assert (site.folder / "vedette.yml").read_bytes() == before
