"""Signed packs of rules as people use them: signed, taken without a new revision, and refused where nobody stands for
them."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from agent import service as service_module
from agent.config import load_bootstrap
from agent.errors import RetryableError
from agent.pipeline import Pipeline
from agent.ports import Detector
from agent.replay import Replay, Span
from agent.service import Service
from agent.store import Reader
from agent.trust import keys, pack
from agent.workers import last_pack
from rules.sigma.documents import content_digest, read_files
from tests.process import VEDETTE
from tests.signing import key
from tests.site import RULE, RULE_ID, Site

PASSPHRASE = "correct horse battery staple"
SECOND = RULE.replace(RULE_ID, "7f0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11").replace("Failed password", "Refused")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site whose configuration names its rules as the pack *own*."""
    made = Site(tmp_path)
    rules = {"type": "sigma", "path": str(tmp_path / "rules"), "pack": "own"}
    made.configuration["detectors"] = {"rules": rules}
    made.sign("root")
    yield made
    made.end_anyhow()


def sign(site: Site, *options: str, name: str = "dex") -> subprocess.CompletedProcess[str]:
    """Sign the site's rules as they lie, by the command that people use."""
    sealed, passphrase = site.folder / f"{name}.pem", site.folder / "passphrase"
    passphrase.write_text(PASSPHRASE)
    if not sealed.exists():
        sealed.write_bytes(keys.seal(key(name), PASSPHRASE.encode()))
    words = ["rules", "sign", str(site.folder / "rules"), "--name", "own", "--key", str(sealed)]
    return subprocess.run(
        [*VEDETTE, *words, "--passphrase-file", str(passphrase), *options], capture_output=True, text=True, check=False
    )


def put(site: Site, text: str, *, version: int) -> None:
    """Sign *text* as that version of the pack, whatever was signed before."""
    (site.folder / "rules" / "rule.yml").write_text(text)
    said = pack.Pack(name="own", version=version, digest=content_digest(read_files(site.folder / "rules")))
    pack.envelope_of(site.folder / "rules").write_bytes(pack.sign(said, key("dex")))


def test_a_new_version_runs_without_a_new_revision(site: Site) -> None:
    """It is on record who signed it before it runs; what it finds is found from then on, and nothing twice."""
    done = sign(site, "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["version"], json.loads(done.stdout)["rules"]) == (1, 1)
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    (site.folder / "rules" / "second.yml").write_text(SECOND)
    assert "version 2" in sign(site).stdout
    applied = site.ask("config", "apply")
    assert "revision 1 runs; changed: pack own" in applied.stdout, applied.stderr
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 3)
    assert len(set(site.delivered())) == 3
    accepted = [one["data"] for one in site.audited("pack-accepted")]
    assert [(one["version"], one["signers"]) for one in accepted] == [(1, ["dex"]), (2, ["dex"])]
    assert site.ask("config", "apply").stdout.strip() == "revision 1 runs, as before"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("altered", "is about the content"),
        ("older", "expected more than version 2, which ran before"),
        ("same number", "expected more than version 2, which ran before"),
        ("stranger", "expected a signature by one of"),
        ("not allowed", "takes 1 of detection-engineer, admin"),
        ("another name", "is about the name other"),
        ("no signature", "is missing; sign it with"),
        ("broken", "envelope: not plain JSON"),
        ("nothing left", "no rules found"),
    ],
)
def test_a_pack_that_may_not_run_changes_nothing(site: Site, wrong: str, reason: str) -> None:
    """It is refused on record and in one line; what ran goes on, and finds."""
    put(site, RULE, version=2)
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    rule, envelope = site.folder / "rules" / "rule.yml", pack.envelope_of(site.folder / "rules")
    match wrong:
        case "altered":
            rule.write_text(RULE.replace("failure", "success"))
        case "older":
            put(site, SECOND, version=1)
        case "same number":
            put(site, SECOND, version=2)
        case "stranger" | "not allowed":
            rule.write_text(SECOND)
            said = pack.Pack(name="own", version=3, digest=content_digest(read_files(rule.parent)))
            envelope.write_bytes(pack.sign(said, key("eve" if wrong == "stranger" else "ana")))
        case "another name":
            rule.write_text(SECOND)
            said = pack.Pack(name="other", version=3, digest=content_digest(read_files(rule.parent)))
            envelope.write_bytes(pack.sign(said, key("dex")))
        case "no signature":
            envelope.unlink()
        case "broken":
            envelope.write_bytes(b"{")
        case "nothing left":
            rule.unlink()
    applied = site.ask("config", "apply")
    assert applied.returncode != 0
    assert reason in " ".join(applied.stderr.split()), applied.stderr
    assert [reason in one["data"]["reason"] for one in site.audited("pack-refused")] == [True]
    assert not site.audited("configuration-refused")
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    assert site.status()["status"] == "ok"


def test_an_older_pack_does_not_run_after_a_restart_either(site: Site) -> None:
    """To go back, the old content is signed under a higher number."""
    put(site, SECOND, version=2)
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    assert site.end(15) == 0
    put(site, RULE, version=1)
    started = subprocess.run(
        [*VEDETTE, "run", "-b", str(site.bootstrap)], capture_output=True, text=True, check=False, timeout=60
    )
    assert started.returncode == 4
    assert "expected more than version 2" in started.stderr
    put(site, RULE, version=3)
    site.start()
    site.until(lambda: site.status()["status"] == "ok")


def test_two_may_have_to_sign(site: Site) -> None:
    """A second signature over the same version is added to the first."""
    access = site.configuration["access"]
    principals = {
        **access["principals"],
        "eda": {"roles": ["detection-engineer"], "key": keys.to_pem(key("eda").public_key()).decode()},
    }
    permissions = {"packs": {"roles": ["detection-engineer"], "approvals": 2}}
    site.configuration["access"] = {"principals": principals, "permissions": permissions}
    site.sign("root")
    assert sign(site).returncode == 0
    refused = site.ask("config", "check")
    assert "takes 2 of detection-engineer" in " ".join(refused.stderr.split())
    done = sign(site, name="eda")
    assert "version 1" in done.stdout
    checked = site.ask("config", "check")
    assert checked.returncode == 0, checked.stderr + checked.stdout


def add_second(site: Site, folder: str, version: int, text: str = SECOND) -> None:
    """Let a second stream read the same logs under the pack *own* as it lies in *folder*."""
    rules = site.folder / folder
    rules.mkdir()
    (rules / "rule.yml").write_text(text)
    said = pack.Pack(name="own", version=version, digest=content_digest(read_files(rules)))
    pack.envelope_of(rules).write_bytes(pack.sign(said, key("dex")))
    site.configuration["detectors"] |= {"more": {"type": "sigma", "path": str(rules), "pack": "own"}}
    site.configuration["streams"] |= {"second": {"source": "logs", "detectors": ["more"], "sinks": ["out"]}}
    site.sign("root")


@pytest.mark.parametrize("version", [1, 2])
def test_one_configuration_runs_one_version_of_a_pack(site: Site, version: int) -> None:
    """Neither an older one beside a newer, nor two contents under one number: the next start would refuse them."""
    put(site, RULE, version=2)
    add_second(site, "other", version)
    started = subprocess.run(
        [*VEDETTE, "run", "-b", str(site.bootstrap)], capture_output=True, text=True, check=False, timeout=60
    )
    assert started.returncode == 4, started.stderr
    assert f"pack own: version {version} with" in started.stderr
    assert not site.audited("pack-accepted")


def test_a_pack_whose_signer_may_not_sign_stops_its_own_stream_alone(site: Site) -> None:
    """At a start, where there is no predecessor to go on with."""
    put(site, RULE, version=1)
    site.configuration["detectors"] |= {"ours": {"type": "sigma", "path": "builtin"}}
    site.configuration["streams"] |= {"second": {"source": "logs", "detectors": ["ours"], "sinks": ["out"]}}
    site.sign("root")
    site.start()
    assert site.end(15) == 0
    said = pack.Pack(name="own", version=2, digest=content_digest(read_files(site.folder / "rules")))
    pack.envelope_of(site.folder / "rules").write_bytes(pack.sign(said, key("ana")))
    site.start()
    assert site.status("second")["status"] == "ok"
    assert site.status()["status"] == "failed"
    assert "takes 1 of detection-engineer" in site.status()["reason"]


def test_a_pack_that_may_not_run_stops_nothing_while_another_stream_is_missing(site: Site) -> None:
    """What is missing is looked for again, but never at the cost of what runs."""
    put(site, RULE, version=1)
    digested = site.folder / "digested"
    digested.mkdir()
    (digested / "rule.yml").write_text(SECOND)
    digest = content_digest(read_files(digested))
    site.configuration["detectors"] |= {"more": {"type": "sigma", "path": str(digested), "digest": digest}}
    site.configuration["streams"] |= {"second": {"source": "logs", "detectors": ["more"], "sinks": ["out"]}}
    site.sign("root")
    site.start()
    assert site.end(15) == 0
    (digested / "rule.yml").write_text(RULE)
    site.start()
    assert (site.status()["status"], site.status("second")["status"]) == ("ok", "failed")
    (site.folder / "rules" / "rule.yml").write_text(SECOND)
    assert site.ask("config", "apply").returncode != 0
    assert site.audited("pack-refused")
    assert site.status()["status"] == "ok"
    (digested / "rule.yml").write_text(SECOND)
    put(site, SECOND, version=2)
    assert "changed: pack own" in site.ask("config", "apply").stdout
    assert (site.status()["status"], site.status("second")["status"]) == ("ok", "ok")


@pytest.mark.parametrize("broken", ["half copied", "no signature", "withdrawn"])
def test_what_ran_goes_on_from_memory_whatever_lies_on_the_disk(site: Site, broken: str) -> None:
    """A pack is broken and refused; then a configuration stops all that runs and cannot be opened."""
    put(site, RULE, version=1)
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    assert site.process is not None
    rule, envelope = site.folder / "rules" / "rule.yml", pack.envelope_of(site.folder / "rules")
    match broken:
        case "half copied":
            rule.write_text(RULE[: len(RULE) // 2])
        case "no signature":
            envelope.unlink()
        case "withdrawn":
            rule.unlink()
    site.process.send_signal(signal.SIGHUP)
    site.until(lambda: site.audited("pack-refused"))
    site.sign(
        "root",
        detectors={"rules": {"type": "sigma", "path": "builtin"}},
        sinks={"out": {"type": "ndjson", "path": str(site.folder / "nowhere" / "out.ndjson")}},
    )
    site.process.send_signal(signal.SIGHUP)
    site.until(lambda: site.audited("configuration-refused"))
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    assert site.status()["status"] == "ok"
    first, again = [one["data"] for one in site.audited("detector-loaded")]
    assert first == again, "what goes on is on record as what it was"
    assert len(site.audited("pack-accepted")) == 1


def test_a_new_version_that_cannot_be_opened_does_not_run(site: Site) -> None:
    """It is refused on record, and its predecessor goes on, though it lies nowhere any more."""
    folder = site.folder / "alerts"
    folder.mkdir()
    put(site, RULE, version=1)
    site.sign("root", sinks={"out": {"type": "ndjson", "path": str(folder / "out.ndjson")}})
    site.start()
    site.until(lambda: len(site.delivered("alerts/out.ndjson")) == 1)
    put(site, SECOND, version=2)
    folder.rename(site.folder / "away")
    assert site.ask("config", "apply").returncode != 0
    assert ["alerts" in one["data"]["reason"] for one in site.audited("pack-refused")] == [True]
    assert [one["data"]["version"] for one in site.audited("pack-accepted")] == [1]
    (site.folder / "away").rename(folder)
    site.log_line(1)
    site.until(lambda: len(site.delivered("alerts/out.ndjson")) == 2)
    out = (folder / "out.ndjson").read_text().splitlines()
    assert {json.loads(line)["rule"]["id"] for line in out} == {RULE_ID}
    assert "changed: pack own" in site.ask("config", "apply").stdout


def test_a_version_that_is_on_record_and_could_not_begin_is_still_the_newest(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its predecessor goes on without a second record, and the next look lets the new one run."""

    def accepted() -> list[object]:
        with Reader(site.data) as reader:
            assert last_pack(reader, "other") == {}
            newest = last_pack(reader, "own")["version"]
            return [newest, *(leaf.data["version"] for leaf in reader.recorded(action="pack-accepted"))]

    with running(site) as service:
        put(site, SECOND, version=2)
        with monkeypatch.context() as patch:
            patch.setattr(service_module, "strangers", Mock(side_effect=[RetryableError("no space left"), []]))
            with pytest.raises(RetryableError):
                service._apply("test")
        assert [one.pack.version for one in service._workers.packs.values()] == [1]
        assert accepted() == [2, 1, 2]
        service._apply("test")
        assert [one.pack.version for one in service._workers.packs.values()] == [2]
        assert accepted() == [2, 1, 2]


@pytest.mark.parametrize(("text", "version"), [(SECOND, 2), (SECOND, 1), (RULE, 1)])
def test_a_replay_takes_no_pack_that_was_not_accepted(site: Site, text: str, version: int) -> None:
    """Neither a newer one, which nobody has put on record, nor another one under the accepted number."""
    with running(site) as service:
        put(site, text, version=version)
        replay = Replay("main", [Span()])
        replay.run(service._workers.accepted, service._store)
        assert replay.done
        expected = "cannot be asked again" if text == RULE else f"version {version} lies there, accepted is 1"
        assert expected in replay.error


@contextmanager
def running(site: Site) -> Iterator[Service]:
    """Run the site's daemon in this process, under version 1 of its pack, without a main thread that looks around."""
    put(site, RULE, version=1)
    service = Service(load_bootstrap(site.bootstrap))
    try:
        for step in Service.STEPS[:3]:
            getattr(service, step)()
        yield service
    finally:
        service._shut()
        gc.unfreeze()


def test_a_stream_reads_on_until_a_new_version_is_ready(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of rules, what they want of a source takes seconds to say."""
    stopped: list[bool] = []
    projection = Pipeline.projection

    def watched(pipeline: Pipeline, also: frozenset[str]) -> frozenset[str]:
        stopped.append(service._workers._stop.is_set())
        return projection(pipeline, also)

    with running(site) as service:
        before = service._workers.runners[0].fields
        monkeypatch.setattr(Pipeline, "projection", watched)
        put(site, SECOND, version=2)
        service._apply("test")
        assert stopped == [False]
        assert service._workers.runners[0].fields == before != frozenset()
        service._apply("test")
        assert stopped == [False], "nothing has changed, nothing is made ready"


@pytest.mark.parametrize("fails", [False, True])
def test_the_rules_that_run_no_more_give_their_memory_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Those of the old version, or those of a new one that could not begin; the collector has nothing to find."""
    seen: list[weakref.ref[object]] = []

    def strangers(_: object, detectors: Iterable[Detector]) -> list[str]:
        seen.extend(weakref.ref(vars(one)["_engine"]) for one in detectors)
        if fails and len(seen) == 2:
            raise RetryableError("no space left")
        return []

    monkeypatch.setattr(service_module, "strangers", strangers)
    with running(site) as service:
        put(site, SECOND, version=2)
        with pytest.raises(RetryableError) if fails else nullcontext():
            service._apply("test")
        alive = [one() is not None for one in seen]
        assert alive == ([True, False, True] if fails else [False, True])
