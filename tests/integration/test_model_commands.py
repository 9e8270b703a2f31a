"""Commands about models say what the daemon would do, and where it would find them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import artifact
from agent.config.model import ModelConfig
from agent.science.train import train
from agent.trust import oms
from agent.trust.keys import seal
from tests.models import ROWS, history, options, recipe, records
from tests.process import VEDETTE
from tests.signing import key
from tests.site import Site

MODEL = "logon-rows"
PASSPHRASE = "correct horse battery staple"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def trained() -> Files:
    return train(recipe(ROWS), records(history()), options(now=time.time_ns() // 1000))


@pytest.fixture
def site(tmp_path: Path, trained: Files) -> Site:
    """A machine with a signed model that no daemon has run yet."""
    made = Site(tmp_path)
    artifact.write(tmp_path / MODEL, {**trained, oms.SIGNATURE: oms.sign(trained, MODEL, key("root"))})
    return made


def name_it(site: Site, trained: Files, name: str = MODEL, **more: Any) -> None:
    section = {"path": MODEL, "digest": f"sha256:{oms.digest(trained)}", "streams": ["main"], "budget": 5, **more}
    site.sign("root", models={name: section})


def sign(artifact: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VEDETTE, "model", "sign", artifact, *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def planned(site: Site) -> dict[str, Any]:
    done = site.ask("plan", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["main"]
    return found


def test_the_plan_of_a_model_has_its_threshold_and_makes_nothing(site: Site, trained: Files) -> None:
    """It follows from the budget: nobody sets it, so the plan says what it is."""
    name_it(site, trained)
    facts = planned(site)["detectors"][MODEL]
    assert facts["budget"] == 5
    assert 0 < facts["threshold"]["p_value"] < 1
    assert facts["smallest_budget"] > 0
    assert "threshold" in site.ask("plan").stdout
    assert not site.data.exists()


def test_the_plan_names_a_model_that_is_refused(site: Site, trained: Files) -> None:
    name_it(site, trained, budget=0.000001)
    (refused,) = planned(site)["models_refused"]
    assert refused.startswith(f"model {MODEL} refused: ")
    assert "budget" in refused
    assert f"model {MODEL} refused" in site.ask("plan").stdout


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [("other", {}, "the artifact is one of logon-rows"), (MODEL, {"budget": 0.000001}, "budget")],
)
def test_list_refuses_what_the_daemon_refuses(
    site: Site, trained: Files, name: str, more: dict[str, Any], says: str
) -> None:
    name_it(site, trained, name, **more)
    site.start()
    site.end_anyhow()
    done = site.ask("model", "list", "--json")
    assert done.returncode == 4
    assert says in json.loads(done.stdout)["refused"]


def test_what_sign_prints_is_found_from_anywhere(site: Site, trained: Files) -> None:
    """The path is read relative to the configuration, not to where somebody signed."""
    (site.folder / "key").write_bytes(seal(key("root"), PASSPHRASE.encode()))
    (site.folder / "passphrase").write_text(PASSPHRASE)
    away = site.folder / "away"
    away.mkdir()
    artifact.write(away / MODEL, trained)
    words = ["--key", str(site.folder / "key"), "--passphrase-file", str(site.folder / "passphrase")]
    done = sign(MODEL, *words, cwd=away)
    section = ModelConfig.model_validate(yaml.safe_load(done.stdout[done.stdout.index("models:") :])["models"][MODEL])
    site.sign("root", models={MODEL: section.model_dump(exclude_defaults=True)})
    assert planned(site)["models_refused"] == []


def test_a_folder_that_is_no_artifact_is_not_signed(site: Site) -> None:
    (site.folder / "other").mkdir()
    (site.folder / "other" / "file").write_text("x")
    done = sign("other", cwd=site.folder)
    assert done.returncode == 3
    assert "it has no manifest.json" in done.stderr
    assert "Traceback" not in done.stderr
