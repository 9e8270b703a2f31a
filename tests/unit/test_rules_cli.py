"""`vedette rules`: silencing a rule for a time is one command, and nothing is written that was not meant."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from agent import cli
from agent.alerting.judge import OPERATOR
from agent.config import Files, load
from agent.config.revision import ENVELOPE, PAYLOAD_TYPE
from agent.state import Changes
from agent.store import Books, Commit, Store
from agent.trust import dsse, keys
from rules.sigma.documents import content_digest, read_files
from tests.signing import key, pem
from tests.site import RULE, RULE_ID

Shell = Callable[..., tuple[int, str, str]]
PASSPHRASE = b"correct horse battery staple"
BROKEN = "title: Broken\nid: 6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b12\ndetection: {condition: nothing}\n"
TEXT = """\
# ours
revision: 3
sources: {{logs: {{type: files, paths: [{logs}]}}}}
detectors:
  rules: {{type: sigma, path: {path}, digest: '{digest}'}}   # from the team
  seen: {{type: first-seen, entity: [user.name], value: [source.ip], title: A new address}}
streams: {{main: {{source: logs, detectors: [rules, seen]}}}}
access:
  principals:
    ana: {{roles: [analyst], key: {key}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with one rule that runs, one that cannot, a baseline, and an analyst with a sealed key."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "rule.yml").write_text(RULE)
    (rules / "broken.yml").write_text(BROKEN)
    root = {"root": {"roles": ["admin"], "key": pem("root")}}
    (tmp_path / "bootstrap.yml").write_text(yaml.safe_dump({"data": "data", "trust_root": root}))
    digest = content_digest(read_files(rules))
    config = tmp_path / "vedette.yml"
    config.write_text(
        TEXT.format(logs=tmp_path / "logs", path=json.dumps(str(rules)), digest=digest, key=json.dumps(pem("ana")))
    )
    config.chmod(0o640)
    (tmp_path / "ana.pem").write_bytes(keys.seal(key("ana"), PASSPHRASE))
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    return tmp_path


@pytest.fixture
def shell(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run a command of `vedette rules`; return exit code, standard output and standard error."""

    def run(command: str, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["vedette", "rules", command, *words, "-b", str(folder / "bootstrap.yml")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return run


def signing(folder: Path) -> list[str]:
    return ["--key", str(folder / "ana.pem"), "--passphrase-file", str(folder / "passphrase")]


def test_disable_writes_shows_and_signs(folder: Path, shell: Shell) -> None:
    """The rule by its title, the change as a diff, whose signature it is, and what comes next."""
    before = (folder / "vedette.yml").read_text()
    code, out, err = shell(
        "disable", RULE_ID, "--until", "7d", "--reason", "ticket 4711", "--owner", "ana", *signing(folder)
    )
    assert code == 0, err
    assert f"rule {RULE_ID}: Failed password (level high, detector rules)" in out
    assert "\n-revision: 3\n+revision: 4\n" in out
    assert f'\n+  - rule: "{RULE_ID}"\n' in out
    assert "\x1b" not in out
    assert "signed revision 4 as" in out
    after = (folder / "vedette.yml").read_text()
    assert after.startswith(before.replace("revision: 3", "revision: 4"))
    (one,) = load(folder / "vedette.yml")[0].exceptions
    assert (one.rule, one.reason, one.owner) == (RULE_ID, "ticket 4711", "ana")
    assert abs(one.until - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=1)
    envelope = Files.read(folder).envelope
    assert dsse.verify(envelope, PAYLOAD_TYPE, [key("ana").public_key()]).payload == after.encode()
    assert stat.S_IMODE((folder / "vedette.yml").stat().st_mode) == 0o640


def test_the_next_command_is_apply_only_if_the_signature_is_enough(folder: Path, shell: Shell) -> None:
    """The first revision takes the trust root; an analyst's signature alone is said to be not enough."""
    _, out, _ = shell("disable", RULE_ID, "--until", "7d", "--reason", "x", *signing(folder))
    assert "not enough yet" in out
    assert out.endswith(f"next: vedette config sign -b {folder / 'bootstrap.yml'}\n")
    (folder / "ana.pem").write_bytes(keys.seal(key("root"), PASSPHRASE))
    _, out, _ = shell("disable", RULE_ID, "--until", "8d", "--reason", "x", *signing(folder))
    assert "not enough" not in out
    assert out.endswith(f"next: vedette config apply -b {folder / 'bootstrap.yml'}\n")


def test_enable_takes_it_back(folder: Path, shell: Shell) -> None:
    shell("disable", RULE_ID, "--until", "7d", "--reason", "x", "--no-sign")
    code, out, _ = shell("enable", RULE_ID, "--no-sign")
    assert code == 0
    assert f'\n-  - rule: "{RULE_ID}"\n' in out
    configuration = load(folder / "vedette.yml")[0]
    assert (configuration.exceptions, configuration.revision) == ([], 5)
    code, _, err = shell("enable", RULE_ID, "--no-sign")
    assert code == 1
    assert "no exception for the rule" in err


def test_without_a_signature_it_is_only_written(folder: Path, shell: Shell) -> None:
    code, out, _ = shell("disable", "seen", "--until", "2h", "--reason", "x", "--no-sign", "--json")
    (said,) = map(json.loads, out.splitlines())
    assert code == 0
    assert (said["rule"], said["title"], said["detector"], said["signed"]) == ("seen", "A new address", "seen", None)
    assert "+revision: 4" in said["diff"]
    assert not (folder / ENVELOPE).exists()
    assert load(folder / "vedette.yml")[0].exceptions[0].rule == "seen"


def test_json_says_who_signed(folder: Path, shell: Shell) -> None:
    code, out, _ = shell("disable", "seen", "--until", "2h", "--reason", "x", "--json", *signing(folder))
    (said,) = map(json.loads, out.splitlines())
    assert code == 0
    assert said["signed"]["revision"] == 4
    assert said["signed"]["missing"].startswith("not enough yet")


@pytest.mark.parametrize("secret", ["none", "wrong"])
def test_without_the_passphrase_nothing_is_written(
    folder: Path, shell: Shell, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where there is no terminal to ask on, nor where it is wrong."""
    before = (folder / "vedette.yml").read_bytes()
    words = signing(folder)
    (folder / "passphrase").write_text("not this one at all")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    code, _, err = shell(
        "disable", RULE_ID, "--until", "7d", "--reason", "x", *(words[:2] if secret == "none" else words)
    )
    assert code in (3, 4)
    assert ("give --passphrase-file" if secret == "none" else "passphrase") in err
    assert (folder / "vedette.yml").read_bytes() == before
    assert not (folder / ENVELOPE).exists()


def test_what_was_changed_meanwhile_is_left_alone(folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the passphrase was typed somebody saved the file."""

    def typing(*_: object) -> object:
        (folder / "vedette.yml").write_text("theirs")
        return key("ana")

    monkeypatch.setattr("agent.cli.keys.unlock", typing)
    code, _, err = shell("disable", RULE_ID, "--until", "7d", "--reason", "x")
    assert code == 3
    assert "changed meanwhile" in err
    assert (folder / "vedette.yml").read_text() == "theirs"


def test_a_link_stays_a_link(folder: Path, shell: Shell) -> None:
    """The configuration may lie elsewhere, in a work tree."""
    elsewhere = folder / "elsewhere.yml"
    (folder / "vedette.yml").rename(elsewhere)
    (folder / "vedette.yml").symlink_to(elsewhere)
    assert shell("disable", RULE_ID, "--until", "7d", "--reason", "x", "--no-sign")[0] == 0
    assert (folder / "vedette.yml").is_symlink()
    assert RULE_ID in elsewhere.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_whose_file_it_is_stays_as_it_was(folder: Path, shell: Shell) -> None:
    """Else the service could not read what an administrator has changed."""
    os.chown(folder / "vedette.yml", 65534, 65533)
    assert shell("disable", RULE_ID, "--until", "7d", "--reason", "x", "--no-sign")[0] == 0
    found = (folder / "vedette.yml").stat()
    assert (found.st_uid, found.st_gid) == (65534, 65533)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (RULE_ID[:-1] + "f", f"did you mean {RULE_ID} (Failed password)"),
        ("failed pass", f"did you mean {RULE_ID} (Failed password)"),
        ("6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b12", f"did you mean {RULE_ID}"),
        ("zzz", "'vedette rules list' names all there are"),
    ],
    ids=["a slip", "a title", "a rule that cannot run", "nothing like it"],
)
def test_a_rule_that_nothing_has_is_not_silenced(folder: Path, shell: Shell, rule: str, says: str) -> None:
    before = (folder / "vedette.yml").read_bytes()
    code, _, err = shell("disable", rule, "--until", "7d", "--reason", "x", "--no-sign")
    assert code == 1
    assert says in err
    assert (folder / "vedette.yml").read_bytes() == before


def test_an_exception_is_made_longer_and_never_shorter(folder: Path, shell: Shell) -> None:
    shell("disable", RULE_ID, "--until", "7d", "--reason", "x", "--no-sign")
    code, _, err = shell("disable", RULE_ID, "--until", "6d", "--reason", "y", "--no-sign")
    assert code == 1
    assert "give a later --until" in err
    assert load(folder / "vedette.yml")[0].exceptions[0].reason == "x"
    assert shell("disable", RULE_ID, "--until", "8d", "--reason", "y", "--no-sign")[0] == 0
    assert [one.reason for one in load(folder / "vedette.yml")[0].exceptions] == ["y"]


@pytest.mark.parametrize("until", ["yesterday", "2020-01-01", "0d", "367d", "53w", "2999-01-01", "7", ""])
def test_an_end_that_cannot_be_is_refused(shell: Shell, until: str) -> None:
    code, _, err = shell("disable", RULE_ID, "--until", until, "--reason", "x", "--no-sign")
    assert code == 2
    assert "--until" in err


def test_a_date_is_its_beginning_in_utc(folder: Path, shell: Shell) -> None:
    day = (datetime.now(UTC) + timedelta(days=9)).date()
    for until, hour in ((f"{day}", 0), (f"{day}T05:00", 5), (f"{day}T05:00-02:00", 7)):
        assert shell("disable", RULE_ID, "--until", until, "--reason", "x", "--no-sign")[0] == 0
        (one,) = load(folder / "vedette.yml")[0].exceptions
        assert one.until == datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


@pytest.mark.parametrize("reason", ["", "two\nlines", "\x1b[31m", "x" * 501])
def test_a_reason_is_a_line_that_can_be_read(folder: Path, shell: Shell, reason: str) -> None:
    code, _, err = shell("disable", RULE_ID, "--until", "7d", "--reason", reason, "--no-sign")
    assert code == 2
    assert "--reason" in err
    assert load(folder / "vedette.yml")[0].exceptions == []


def test_a_file_that_is_no_configuration_is_left_alone(folder: Path, shell: Shell) -> None:
    (folder / "vedette.yml").write_text("revision: 1\nwhat: ever\n")
    code, _, err = shell("disable", RULE_ID, "--until", "7d", "--reason", "x", "--no-sign")
    assert code == 3
    assert "vedette.yml:2: what: unknown key" in err


def test_list_names_what_runs_what_cannot_and_what_is_silent(folder: Path, shell: Shell) -> None:
    shell("disable", RULE_ID, "--until", "2h", "--reason", "x", "--no-sign")
    with (folder / "vedette.yml").open("a") as config:
        config.write('  - {rule: gone, until: "2026-01-01T00:00:00Z", reason: x, owner: k}\n')
    store = Store(folder / "data")
    counts = {f"{OPERATOR}.excepted": 7, f"{OPERATOR}.excepted.{RULE_ID}": 7}
    for stream in ("one", "two"):
        store.commit(Commit(stream, {}, 1, 1, Books(7, 7, {}, 0), Changes(1, counts=counts), []))
    store.close()
    code, out, _ = shell("list", "--json")
    assert code == 0
    rule, refused, seen = map(json.loads, out.splitlines())
    assert rule.pop("until").endswith("Z")
    assert rule == {"detector": "rules", "id": RULE_ID, "title": "Failed password", "level": "high", "state": "loaded",
                    "reason": "", "withheld": 14}  # fmt: skip
    assert (refused["state"], refused["id"]) == ("refused", "")
    assert "broken.yml" in refused["reason"]
    assert (seen["detector"], seen["id"], seen["title"], seen["until"]) == ("seen", "seen", "A new address", "")
    code, out, _ = shell("list")
    assert code == 0
    assert re.search(rf"rules +{RULE_ID} +Failed password +high +20\S+Z +14\b", out)
    assert "rules: refused: " in out
    assert "exception for gone: no detector has such a rule" in out


@pytest.fixture
def excepted(folder: Path) -> Path:
    """Three exceptions: in force, over, and for a rule that nothing has."""
    (folder / "logs").mkdir()
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    with (folder / "vedette.yml").open("a") as config:
        config.write("exceptions:\n")
        for rule, until in ((RULE_ID, later), ("seen", "2020-01-01T00:00:00Z"), ("gone", later)):
            config.write(f'  - {{rule: {rule}, until: "{until}", reason: "why {rule}", owner: kim}}\n')
    return folder


def ran(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["vedette", *words, "-b", str(folder / "bootstrap.yml")])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr()
    assert out.out, out.err
    return out.out


def test_the_plan_shows_exceptions_in_force_and_over(
    excepted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = json.loads(ran(["plan", "--json"], excepted, capsys, monkeypatch))["main"]["exceptions"]
    assert [(one["rule"], one["over"], one["runs"]) for one in plan] == [
        (RULE_ID, False, True), ("seen", True, True), ("gone", False, False)
    ]  # fmt: skip
    text = ran(["plan"], excepted, capsys, monkeypatch)
    assert re.search(rf"{RULE_ID} until \S+Z, in force: why {RULE_ID} \(kim\)", text)
    assert "seen until 2020-01-01T00:00:00Z, over: why seen (kim)" in text
    assert text.count("none of the detectors has a rule") == text.count("none of the detectors has a rule gone") == 1


def test_the_check_names_exceptions_that_are_over(
    excepted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(ran(["config", "check", "--json"], excepted, capsys, monkeypatch))["over"] == ["seen"]
    text = ran(["config", "check"], excepted, capsys, monkeypatch)
    assert "exception over since 2020-01-01T00:00:00Z: seen; 'vedette rules enable' removes it" in text
    assert text.count("exception over") == 1
