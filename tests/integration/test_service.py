"""The daemon as an operator meets it: signals, pausing, and how it says that it is well."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end_anyhow()


def test_a_paused_stream_fetches_nothing_until_it_is_told_to_go_on(site: Site) -> None:
    """What it had read is delivered, a restart does not wake it, and both commands are on record."""
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    done = site.ask("pause", "main")
    assert done.returncode == 0, done.stderr
    assert "stream main: paused: paused by" in done.stdout
    site.log_line(1)
    assert site.end(signal.SIGTERM) == 0
    site.start()
    assert site.status()["status"] == "paused"
    assert site.ask("pause", "main").returncode == 0, "paused already"
    again = site.ask("resume", "main", "--json")
    assert json.loads(again.stdout)["status"] == "ok"
    site.until(lambda: len(site.delivered()) == 2)
    assert [len(site.audited(action)) for action in ("stream-paused", "stream-resumed")] == [1, 1]
    assert site.audited("stream-paused")[0]["actor"]


def test_a_pause_that_cannot_be_is_refused(site: Site) -> None:
    nobody = site.ask("pause", "main")
    assert nobody.returncode == 5
    assert "no daemon runs" in nobody.stderr
    site.start()
    wrong = site.ask("pause", "other")
    assert wrong.returncode == 3
    assert "no stream 'other' runs; there is: main" in wrong.stderr
    assert len(site.audited("command-refused")) == 1


def test_a_hangup_takes_a_new_configuration_and_keeps_the_last_good_one(site: Site) -> None:
    """SIGHUP is 'vedette config apply' for a service manager; a broken file changes nothing."""
    site.start()
    assert site.process is not None
    site.sign("root", tenant="other")
    site.process.send_signal(signal.SIGHUP)
    site.until(lambda: len(site.audited("configuration-applied")) == 1)
    assert site.audited("configuration-applied")[0]["actor"] == "SIGHUP"
    (site.folder / "vedette.yml").write_text("sources: [")
    for _ in range(50):
        site.process.send_signal(signal.SIGHUP)
    site.until(lambda: site.audited("configuration-refused"))
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    assert site.status()["status"] == "ok"
