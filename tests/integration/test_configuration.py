"""Signed configuration as people use it: init, check, sign, diff, apply, and a daemon that keeps what is good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from agent.cli import config
from agent.config import load_bootstrap
from agent.config.revision import ENVELOPE, FILE
from agent.control import ask
from agent.errors import ConfigError, VedetteError
from rules.sigma.documents import content_digest, read_files
from tests.process import VEDETTE
from tests.site import LINE, RULE, Site

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end_anyhow()


# --- init -------------------------------------------------------------------------------------------------------------


def init(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    (tmp_path / "auth.log").write_text(LINE.format(1))
    key, passphrase, log = tmp_path / "keys" / "alice.pem", tmp_path / "passphrase", tmp_path / "auth.log"
    words = ["init", str(tmp_path / "etc"), "--name", "alice", "--key", str(key)]
    words += ["--passphrase-file", str(passphrase), "--logs", str(log), *options]
    return subprocess.run([*VEDETTE, *words], capture_output=True, text=True, check=False)


def test_init_makes_a_set_up_that_runs(tmp_path: Path) -> None:
    """Key, trust root, signed configuration; the daemon takes it and says that one person signs everything."""
    done = init(tmp_path)
    assert done.returncode == 0, done.stderr
    assert PASSPHRASE not in done.stdout + done.stderr
    bootstrap = tmp_path / "etc" / "bootstrap.yml"
    process = subprocess.Popen([*VEDETTE, "run", "-b", str(bootstrap)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(json.loads(line))
        if said[-1]["message"].startswith("trust: single-user"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert next(one for one in said if one["message"] == "configuration accepted")["vedette.signers"] == ["alice"]


def test_init_says_where_health_is_served(tmp_path: Path) -> None:
    """An address that cannot be leaves nothing behind; without one there is a hint."""
    wrong = init(tmp_path, "--listen", "9464")
    assert wrong.returncode == 3
    assert "listen" in wrong.stderr
    assert not (tmp_path / "keys" / "alice.pem").exists()
    done = init(tmp_path, "--listen", "[::1]:9464")
    assert done.returncode == 0, done.stderr
    assert load_bootstrap(tmp_path / "etc" / "bootstrap.yml").listen == "[::1]:9464"


def test_init_overwrites_nothing_and_keeps_keys_away_from_the_service(tmp_path: Path) -> None:
    assert init(tmp_path).returncode == 0
    again = init(tmp_path)
    assert again.returncode == 3
    assert "not overwritten" in again.stderr
    inside = init(tmp_path, "--key", str(tmp_path / "etc" / "data" / "alice.pem"))
    assert inside.returncode == 3


@pytest.mark.parametrize("name", ["Alice", "1001", "no", "dom\\bob", "x: y"])
def test_init_makes_nothing_for_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    done = init(tmp_path, "--name", name)
    assert done.returncode == 3
    assert "give --name" in done.stderr
    assert not (tmp_path / "etc").exists()
    assert not (tmp_path / "keys").exists()


def test_whoever_may_not_read_the_data_can_still_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signing needs the configuration's folder only; what is in force is the service's to say."""
    init(tmp_path)
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    bootstrap, key = tmp_path / "etc" / "bootstrap.yml", tmp_path / "keys" / "alice.pem"
    subprocess.run([*VEDETTE, "run", "-b", str(bootstrap), "--once"], capture_output=True, timeout=30, check=False)
    for path in (tmp_path / "etc", key.parent, key, tmp_path / "passphrase", *(tmp_path / "etc").iterdir()):
        if path.name != "data":
            os.chown(path, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)

    secret = tmp_path / "passphrase"
    with suppress(ConfigError):  # with all that it imports: another user cannot read this Python
        config.sign(bootstrap, key, secret)
    with become(65534):
        config.sign(bootstrap, key, secret)
        assert "signed revision 1 as alice" in capsys.readouterr().out
        for command in (config.check, config.diff, config.apply):
            with pytest.raises(ConfigError, match="is closed to nobody"):
                command(bootstrap)


@contextmanager
def become(uid: int) -> Iterator[None]:
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_link_laid_under_a_signature_leads_nowhere(tmp_path: Path) -> None:
    """Signing replaces what lies there; it follows no link to somebody else's file."""
    init(tmp_path)
    etc, victim = tmp_path / "etc", tmp_path / "victim"
    victim.write_text("precious")
    for name in (ENVELOPE, f"{FILE}.new", f"{ENVELOPE}.new"):
        (etc / name).unlink(missing_ok=True)
        (etc / name).symlink_to(victim)
    words = ["config", "sign", "-b", str(etc / "bootstrap.yml"), "--key", str(tmp_path / "keys" / "alice.pem")]
    subprocess.run(
        [*VEDETTE, *words, "--passphrase-file", str(tmp_path / "passphrase")], capture_output=True, check=True
    )
    assert victim.read_text() == "precious"
    assert not (etc / ENVELOPE).is_symlink()


def test_check_writes_nothing(site: Site) -> None:
    assert site.ask("config", "check").returncode == 0
    assert not site.data.exists()


def test_the_service_user_cannot_read_a_signing_key(tmp_path: Path) -> None:
    """The file is its owner's alone, and even who reads it needs the passphrase."""
    init(tmp_path)
    key = tmp_path / "keys" / "alice.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    script = (
        "import os, sys\nos.setgid(65534); os.setuid(65534)\n"
        f"os.stat({str(tmp_path)!r})\n"
        f"try: open({str(key)!r}).read()\nexcept PermissionError: sys.exit(42)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 42


def test_the_schema_for_editors_is_what_the_models_say(tmp_path: Path) -> None:
    init(tmp_path)
    printed = subprocess.run([*VEDETTE, "config", "schema"], capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "etc" / "vedette.schema.json").read_text() == printed
    assert Path("packaging/vedette.schema.json").read_text() == printed, "run: make schema"
    recipe = subprocess.run([*VEDETTE, "config", "schema", "--recipe"], capture_output=True, text=True, check=True)
    assert Path("packaging/recipe.schema.json").read_text() == recipe.stdout, "run: make schema"


# --- signing and applying ---------------------------------------------------------------------------------------------


def test_a_second_signature_is_kept_beside_the_first(tmp_path: Path) -> None:
    """Sign, see what is missing, and sign as somebody else."""
    init(tmp_path)
    etc, passphrase = tmp_path / "etc", ["--passphrase-file", str(tmp_path / "passphrase")]
    bob = subprocess.run(
        [*VEDETTE, "access", "key", "bob", "--key", str(tmp_path / "keys" / "bob.pem"), "--role", "admin", *passphrase],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    configuration = yaml.safe_load((etc / FILE).read_text())
    permissions = {"tenant": {"roles": ["admin"], "approvals": 2}}
    configuration |= {"access": {"principals": yaml.safe_load(bob), "permissions": permissions}}

    def sign(name: str) -> str:
        (etc / FILE).write_text(yaml.safe_dump(configuration))
        words = ["config", "sign", "-b", str(etc / "bootstrap.yml"), "--key", str(tmp_path / "keys" / f"{name}.pem")]
        return subprocess.run([*VEDETTE, *words, *passphrase], capture_output=True, text=True, check=True).stdout

    sign("alice")
    run = [*VEDETTE, "run", "-b", str(etc / "bootstrap.yml")]
    configuration["sources"]["logs"]["follow"] = False
    sign("alice")
    assert subprocess.run([*run, "--once"], capture_output=True, check=False).returncode == 0
    configuration |= {"revision": 2, "tenant": "other"}
    assert "takes 2 of admin; signed by alice (admin), of whom 1 may" in sign("alice")
    assert subprocess.run([*VEDETTE, "config", "check", "-b", str(etc / "bootstrap.yml")], check=False).returncode == 4
    assert "not enough" not in sign("bob")
    assert subprocess.run([*VEDETTE, "config", "check", "-b", str(etc / "bootstrap.yml")], check=False).returncode == 0
    assert len(json.loads((etc / ENVELOPE).read_bytes())["signatures"]) == 2


def test_an_authorised_change_takes_effect_while_the_daemon_runs(site: Site) -> None:
    """The stream goes on where it stood: no event is seen twice, none is missed."""
    site.start()
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    site.sign("ana", sinks={"out": {"type": "ndjson", "path": str(site.folder / "other.ndjson")}})
    assert site.ask("config", "diff").returncode == 1
    done = site.ask("config", "apply", "--json")
    assert json.loads(done.stdout) == {"revision": 2, "changed": ["sinks"]}
    assert site.ask("config", "diff").returncode == 0
    accepted = site.audited("configuration-accepted")
    assert [one["data"]["revision"] for one in accepted] == [1, 2]
    assert accepted[1]["data"]["changed"] == {"sinks": ["ana"]}
    assert [one["data"]["revision"] for one in site.audited("configuration-applied")] == [2]
    site.log_line(2)
    site.until(lambda: site.delivered("other.ndjson"))
    assert (site.received(), len(site.delivered()), len(site.delivered("other.ndjson"))) == (3, 2, 1)
    assert len({*site.delivered(), *site.delivered("other.ndjson")}) == 3
    assert site.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "at a restart"])
@pytest.mark.parametrize(
    "how", ["unauthorised", "changed", "unsigned", "broken", "monstrous", "older", "missing rules", "no such folder"]
)
def test_a_bad_configuration_never_stops_what_runs(site: Site, how: str, restart: bool) -> None:
    """The last good one goes on; the refusal is on record and says who, what section, which permission."""
    site.start()
    if restart:
        assert site.end(signal.SIGTERM) == 0
    expected = 4
    if how == "unauthorised":
        site.sign("dex", sinks={"out": {"type": "ndjson", "path": str(site.folder / "evil.ndjson")}})
        reason = "section sinks: takes 1 of operator, admin; signed by dex (detection-engineer), of whom 0 may"
    elif how == "changed":
        site.config.write_text(site.config.read_text() + "\n# harmless?\n")
        reason = "this is not what was signed"
    elif how == "unsigned":
        (site.folder / ENVELOPE).unlink()
        site.config.write_text(site.config.read_text() + "\n")
        reason = "not signed"
    elif how == "broken":
        site.sign("root", streams={"main": {"source": "nowhere", "detectors": ["rules"]}})
        reason, expected = "no 'nowhere'", 3
    elif how == "monstrous":
        site.config.write_text("[" * 3000)
        reason = "not what was signed"
    elif how == "no such folder":
        site.sign("root", sinks={"out": {"type": "ndjson", "path": str(site.folder / "nowhere" / "out.ndjson")}})
        reason, expected = "nowhere", 3
    elif how == "older":
        site.configuration["revision"] = 0
        site.sign("root", tenant="x")
        reason = "expected more than 1"
    else:
        site.sign("root", detectors={"rules": {"type": "sigma", "path": str(site.folder / "nowhere")}})
        reason, expected = "nowhere", 3
    if restart:
        site.start()
    else:
        done = site.ask("config", "apply")
        assert done.returncode == expected
        assert reason in done.stderr.replace("\n", " ")
    if how not in ("no such folder", "monstrous"):  # check opens nothing
        assert site.ask("config", "check").returncode == expected
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    refusals = site.audited("configuration-refused")
    assert reason in refusals[-1]["data"]["reason"]
    assert site.process is not None
    assert site.process.poll() is None
    assert site.end(signal.SIGTERM) == 0


def test_rules_that_the_signature_does_not_cover_are_refused(site: Site) -> None:
    """A folder of rules is part of what is signed by its digest; change a rule, and it does not load."""
    rules = site.folder / "own"
    rules.mkdir()
    (rules / "rule.yml").write_text(RULE)
    site.sign("root", detectors={"rules": {"type": "sigma", "path": str(rules)}})
    check = site.ask("config", "check")
    assert check.returncode == 4
    digest = check.stderr.partition("add digest: ")[2].split()[0]
    site.sign("root", detectors={"rules": {"type": "sigma", "path": str(rules), "digest": digest}})
    assert site.ask("config", "check").returncode == 0
    (rules / "rule.yml").write_text(RULE.replace("failure", "success"))
    changed = site.ask("config", "check")
    assert changed.returncode == 4
    assert f"expected the rules {digest}" in changed.stderr


def test_why_a_rule_was_refused_is_on_record(site: Site) -> None:
    """The leaf of the detector names the reasons, not their number alone."""
    own = site.folder / "own"
    own.mkdir()
    (own / "good.yml").write_text(RULE)
    (own / "bad.yml").write_text(RULE.replace("condition: selection", "condition: nothing").replace("6e0f", "7e0f"))
    digest = content_digest(read_files(own))
    site.sign("root", detectors={"rules": {"type": "sigma", "path": str(own), "digest": digest}})
    site.start()
    (loaded,) = [one["data"] for one in site.audited("detector-loaded")]
    assert loaded["refused"] == 1
    (reason,) = loaded["reasons"]
    assert "bad.yml" in reason
    assert loaded["reasons_digest"] == f"sha256:{sha256(reason.encode()).hexdigest()}"


def test_at_a_restart_a_stream_whose_rules_were_edited_is_left_out_alone(site: Site) -> None:
    """What was accepted goes on as far as it can be made; what cannot is on record."""
    streams = site.configuration["streams"] | {"second": {"source": "logs", "detectors": ["own"], "sinks": ["out"]}}
    site.sign(
        "root",
        detectors={**site.configuration["detectors"], "own": {"type": "sigma", "path": "builtin"}},
        streams=streams,
    )
    site.start()
    assert site.end(signal.SIGTERM) == 0
    (site.folder / "rules" / "rule.yml").write_text(RULE.replace("failure", "success"))
    site.start()
    assert site.status("main")["status"] == "failed"
    assert "expected the rules sha256:" in site.status("main")["reason"]
    assert site.status("second")["status"] == "ok"
    (site.folder / "rules" / "rule.yml").write_text(RULE)
    assert site.ask("config", "apply").returncode == 0, "it looks again for what was missing"
    assert site.status("main")["status"] == "ok"
    assert len(site.audited("stream-refused")) == 1


def test_at_a_restart_a_sink_whose_folder_is_gone_is_waited_for(site: Site) -> None:
    """What ran once starts again: the stream reads on, alerts wait, and they come when the folder does."""
    folder = site.folder / "alerts"
    folder.mkdir()
    site.sign("root", sinks={"out": {"type": "ndjson", "path": str(folder / "out.ndjson")}})
    site.start()
    site.until(lambda: len(site.delivered("alerts/out.ndjson")) == 1)
    assert site.end(signal.SIGTERM) == 0
    folder.rename(site.folder / "away")
    site.start()
    site.log_line(1)
    site.until(lambda: site.received() == 2)
    (site.folder / "away").rename(folder)
    site.until(lambda: len(site.delivered("alerts/out.ndjson")) == 2)


def test_a_fault_in_a_command_leaves_the_daemon_answering(site: Site) -> None:
    site.start()
    with pytest.raises(VedetteError, match="no stream"):
        ask(site.data, {"do": "replay", "late": True, "stream": "x"})
    with pytest.raises(VedetteError):
        ask(site.data, {"do": "ack"})
    assert site.status()["status"] == "ok"
