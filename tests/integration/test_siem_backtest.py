"""`vedette rules backtest` against real servers: it counts what they still hold, and leaves no trace."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.test_siem_commands import Site, ago
from tests.process import VEDETTE
from tests.servers import Server
from tests.signing import signed

pytestmark = [pytest.mark.servers, pytest.mark.parametrize("siem", ["elasticsearch9", "opensearch2"], indirect=True)]


def test_backtest_counts_what_lies_in_the_time(siem: Server, tmp_path: Path) -> None:
    """A rule that no daemon has run yet; neither the alert store nor the SIEM has an alert more."""
    site = Site(siem, tmp_path)
    try:
        for path, hours in (("/bad", 1), ("/worse", 1), ("/worse", 2)):
            site.event(path, timedelta(hours=hours))
        site.succeed("setup")
        site.succeed("run", "--once")
        before = site.ids(), site.stored()
        rules = tmp_path / "new"
        rules.mkdir()
        site.rule("/worse", "c2b1e6f4-7f0f-4d0a-9a53-61a3f0c7d9aa")
        (tmp_path / "rules" / "c2b1e6f4-7f0f-4d0a-9a53-61a3f0c7d9aa.yml").rename(rules / "worse.yml")
        bootstrap = str(signed(site.config, site.data))
        for words, number in (([], 2), (["--from", ago(1.5)], 1), (["--to", ago(1.5)], 1)):
            command = [*VEDETTE, "rules", "backtest", str(rules), "-b", bootstrap, "--json", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout.splitlines()[0])["alerts"] == number
        assert (site.ids(), site.stored()) == before
    finally:
        site.close()


def test_correlations_start_warm(siem: Server, tmp_path: Path) -> None:
    """The event before the time counts for the one in it; it is read, and raises no alert itself."""
    site = Site(siem, tmp_path)
    try:
        for hours in (2, 1):
            site.event("/bad", timedelta(hours=hours))
        (rule,) = (tmp_path / "rules").iterdir()
        twice = "{type: event_count, rules: [5ff3cf1f-0a6c-4b43-8b6c-0a2d93f3b0a1], timespan: 4h, condition: {gte: 2}}"
        rule.write_text(f"{rule.read_text()}---\ntitle: Twice\nlevel: high\ncorrelation: {twice}\n")
        bootstrap = str(signed(site.config, site.data))
        command = [*VEDETTE, "rules", "backtest", str(rule), "-b", bootstrap, "--json", "--from", ago(1.5)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        row, facts = map(json.loads, done.stdout.splitlines())
        assert (row["title"], row["alerts"], facts["events"]) == ("Twice", 1, 2)
        assert facts["warm_from"] < ago(5)
    finally:
        site.close()
