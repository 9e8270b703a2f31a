"""Models under a real daemon: what is admitted finds and says so; what is not is refused, and the rest goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent import artifact
from agent.alerting.judge import nest
from agent.model import SECOND
from agent.normalise.clock import to_text
from agent.science.train import train
from agent.store import Reader
from agent.trust import keys, oms
from tests.models import HOUR, ROWS, history, logon, options, recipe, records
from tests.signing import key, pem
from tests.site import RULE_ID, Site

MODEL = "logon-rows"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def trained() -> Files:
    """A model that is valid now."""
    return train(recipe(ROWS), records(history()), options(now=time.time_ns() // 1000))


class ModelSite(Site):
    """A machine whose stream has a rule and a model; logons at night, from addresses nobody knows, are in its logs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.artifact = folder / "models" / MODEL
        self.artifact.parent.mkdir()
        self.logons(1)

    def logons(self, number: int) -> None:
        now = time.time_ns() // 1000 - 48 * HOUR
        day = now - now % (24 * HOUR)
        events = [logon(day + 3 * HOUR + n * SECOND, "eve", f"203.0.113.{n}") for n in range(number)]
        with (self.folder / "logs" / "logons.jsonl").open("ab") as log:
            for event in events:
                fields = {**event, "@timestamp": to_text(event["@timestamp"]), "ecs.version": "8"}
                log.write(orjson.dumps(nest(fields)) + b"\n")

    def install(self, files: Files, name: str = "sam", **more: Any) -> None:
        """Sign *files* as *name*, write them, and name them in the configuration, which root signs."""
        signature = oms.sign(files, MODEL, key(name))
        artifact.write(self.artifact, {**files, oms.SIGNATURE: signature})
        self.sign("root", models={MODEL: self.section(files, **more)}, access=self.access())

    def section(self, files: Files, **more: Any) -> dict[str, Any]:
        return {
            "path": f"models/{MODEL}",
            "digest": f"sha256:{oms.digest(files)}",
            "streams": ["main"],
            "budget": 5,
            **more,
        }

    def access(self, **more: Any) -> dict[str, Any]:
        scientist = {"roles": ["data-scientist"], "key": pem("sam")}
        known = self.configuration["access"]["principals"]
        return {"principals": {**known, "sam": scientist}, **more}

    def alerts(self) -> dict[str, list[dict[str, Any]]]:
        """Return the documents of stored alerts by rule."""
        found: dict[str, list[dict[str, Any]]] = {}
        with Reader(self.data) as reader:
            for alert in reader.alerts():
                found.setdefault(alert["rule_id"], []).append(alert)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ModelSite]:
    made = ModelSite(tmp_path)
    yield made
    made.end_anyhow()


def test_an_admitted_model_finds_and_says_who_signed_it(site: ModelSite, trained: Files) -> None:
    """The alert names artifact, signer and configuration; so does the audit log."""
    site.install(trained)
    site.start()
    site.until(lambda: MODEL in site.alerts())
    own = site.alerts()[MODEL][0]["document"]["vedette"]
    assert own["model"] == {"id": MODEL, "digest": oms.digest(trained), "signer": "sam"}
    assert (own["trust"], own["configuration"]["revision"]) == ("signed", 2)
    assert own["score"]["p_value"] < 0.05
    assert own["explain"]
    loaded = [one["data"] for one in site.audited("detector-loaded") if one["data"]["detector"] == MODEL]
    assert (loaded[0]["signer"], loaded[0]["digest"]) == ("sam", oms.digest(trained))
    assert site.status() == {"status": "ok", "reason": ""}
    assert site.ask("model", "list").returncode == 0
    words = ["model", "verify", str(site.artifact)]
    assert "signed by sam (data-scientist)" in site.ask(*words).stdout


def test_a_shadow_model_is_counted_and_leaves_nothing(site: ModelSite, trained: Files) -> None:
    site.install(trained, state="shadow")
    site.start()
    site.until(lambda: MODEL in site.alerts())
    assert not any(alert["deliver"] for alert in site.alerts()[MODEL])
    with Reader(site.data) as reader:
        counters = reader.counters("main")["main"]
    judged, found = (counters[f"{MODEL}.model.{MODEL}.{what}"] for what in ("judged", "found"))
    assert judged >= found >= 1
    row = json.loads(site.ask("model", "list", "--json").stdout)
    assert (row["judged"], row["found"]) == (judged, found)
    rate = json.loads(trained["manifest.json"])["calibration"]["rows_per_day"]
    assert row["realised"] == pytest.approx(found / judged * rate)


def edited(files: Files, **changes: Any) -> Files:
    manifest = {**json.loads(files["manifest.json"]), **changes}
    return {**files, "manifest.json": orjson.dumps(manifest)}


REFUSALS = {
    "unsigned": "step 1",
    "altered": "step 2",
    "signed by nobody": "step 2",
    "signed by an operator": "step 2",
    "not named": "step 3",
    "revoked": "step 4",
    "expired": "step 7",
    "not yet valid": "step 7",
    "another tenant": "step 6",
    "other features": "step 9",
    "missing": "cannot be read",
    "too small a budget": "budget",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_model_that_is_not_admitted_is_refused_and_the_rest_runs(site: ModelSite, trained: Files, how: str) -> None:
    """On record, in one clear line, and the stream shows as degraded while its rules go on."""
    files, name, more = trained, "sam", {}
    if how == "signed by nobody":
        name = "stranger"
    elif how == "signed by an operator":
        name = "ana"
    elif how == "expired":
        files = edited(trained, not_before="2020-01-01T00:00:00Z", not_after="2020-02-01T00:00:00Z")
    elif how == "not yet valid":
        files = edited(trained, not_before="2090-01-01T00:00:00Z", not_after="2091-01-01T00:00:00Z")
    elif how == "another tenant":
        files = edited(trained, tenants=["elsewhere"])
    elif how == "other features":
        files = edited(trained, schema_hash="sha256:" + "0" * 64)
    elif how == "not named":
        more = {"digest": "sha256:" + "1" * 64}
    elif how == "too small a budget":
        more = {"budget": 1e-9}
    site.install(files, name, **more)
    if how == "unsigned":
        (site.artifact / oms.SIGNATURE).unlink()
    elif how == "altered":
        (site.artifact / "manifest.json").write_bytes(edited(files, title="Harmless")["manifest.json"])
    elif how == "missing":
        site.artifact.rename(site.folder / "elsewhere")
    elif how == "revoked":
        site.sign("root", access=site.access(revoked=[oms.digest(files)]))
    site.start()
    site.until(lambda: RULE_ID in site.alerts())
    assert MODEL not in site.alerts()
    status = site.status()
    assert status["status"] == "degraded"
    assert f"model {MODEL} refused" in status["reason"]
    assert REFUSALS[how] in status["reason"]
    (refused,) = site.audited("model-refused")
    assert REFUSALS[how] in refused["data"]["reason"]
    assert sum("model refused" in line for line in site.log.splitlines()) == 1
    assert site.ask("config", "check").returncode == 0, "the configuration itself is good"


def test_a_revocation_acts_at_once(site: ModelSite, trained: Files) -> None:
    """Applied to the running daemon, it stops the model; the stream goes on."""
    site.install(trained)
    site.start()
    site.until(lambda: MODEL in site.alerts())
    before = len(site.alerts()[MODEL])
    site.sign("root", access=site.access(revoked=[keys.key_id(key("sam").public_key())]))
    assert site.ask("config", "apply").returncode == 0
    assert "refused" in site.status()["reason"]
    site.logons(3)
    site.log_line(1)
    site.until(lambda: len(site.alerts()[RULE_ID]) == 2 and site.received() == 6)
    assert len(site.alerts()[MODEL]) == before


def test_a_model_that_expires_while_it_runs_goes_on_with_a_warning_or_stops(site: ModelSite, trained: Files) -> None:
    """`on_expiry: stop` ends it then; the stream goes on either way and shows it."""
    end = datetime.now(UTC) + timedelta(seconds=8)
    files = edited(trained, not_after=f"{end:%Y-%m-%dT%H:%M:%SZ}")
    site.install(files)
    site.start()
    site.until(lambda: site.status()["reason"] == f"model {MODEL} has expired")
    (said,) = [one["data"]["text"] for one in site.audited("model-expiry")][-1:]
    assert "expired" in said
    site.until(lambda: len(site.alerts().get("vedette.model-expired", ())) == 1)
    (alert,) = site.alerts()["vedette.model-expired"]
    assert alert["document"]["event"]["reason"] == said
    site.until(lambda: alert["id"] in site.delivered())
    site.sign("root", models={MODEL: site.section(files, on_expiry="stop")})
    assert site.ask("config", "apply").returncode == 0
    assert "refused at step 7" in site.status()["reason"]
    site.log_line(1)
    site.until(lambda: len(site.alerts()[RULE_ID]) == 2)


def test_a_model_that_must_stop_at_its_end_stops(site: ModelSite, trained: Files) -> None:
    """Rules that lie broken on the disk by then go on as they were admitted."""
    end = datetime.now(UTC) + timedelta(seconds=8)
    site.install(edited(trained, not_after=f"{end:%Y-%m-%dT%H:%M:%SZ}"), on_expiry="stop")
    site.start()
    site.until(lambda: MODEL in site.alerts())
    (site.folder / "rules" / "rule.yml").write_text("half a rule")
    site.until(lambda: "refused at step 7" in site.status()["reason"])
    assert "one until" in site.audited("model-refused")[0]["data"]["reason"]
    site.log_line(1)
    site.until(lambda: len(site.alerts()[RULE_ID]) == 2)


def test_a_higher_revision_rolls_back_to_an_older_artifact(site: ModelSite, trained: Files) -> None:
    """Only the number of the revision is monotonic; which artifact it names is free, signed and on record."""
    site.install(trained)
    newer = edited(trained, title="Newer")
    artifact.write(site.folder / "models" / "newer", {**newer, oms.SIGNATURE: oms.sign(newer, MODEL, key("sam"))})
    site.start()
    site.sign("root", models={MODEL: site.section(newer, path="models/newer")})
    assert site.ask("config", "apply").returncode == 0
    site.sign("root", models={MODEL: site.section(trained)})
    assert site.ask("config", "apply").returncode == 0
    loaded = [one["data"]["digest"] for one in site.audited("detector-loaded") if one["data"]["detector"] == MODEL]
    assert loaded == [oms.digest(trained), oms.digest(newer), oms.digest(trained)]
    assert [one["data"]["revision"] for one in site.audited("configuration-accepted")] == [2, 3, 4]
