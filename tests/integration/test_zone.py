"""A daemon that is told in which zone its logs are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import Site

LINE = "Jul  9 10:00:00 web1 sshd[7]: Failed password for root from 192.0.2.9 port 5022 ssh2\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.end_anyhow()


def test_an_alert_has_the_right_time_and_names_the_zone(site: Site) -> None:
    """From the signed configuration to the delivered alert, by way of columns and the whole document."""
    (site.folder / "logs" / "auth.log").write_text(LINE)
    logs = {**site.configuration["sources"]["logs"], "timezone": "Europe/Berlin"}
    site.sign("root", sources={"logs": logs})
    site.start()
    site.until(site.delivered)
    site.stop()
    [alert] = map(json.loads, (site.folder / "out.ndjson").read_text().splitlines())
    assert alert["event"]["timezone"] == "Europe/Berlin"
    assert alert["event"]["start"][4:] == "-07-09T08:00:00.000Z"
