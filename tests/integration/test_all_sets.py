"""All sets of real logs at hand are read without a crash and without a silent loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.sets import SETS, Fate, fate, fates, table

DATA = Path(os.environ.get("VEDETTE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
on_real_logs = pytest.mark.skipif(not DATA.is_dir(), reason=f"real logs are not at {DATA} (set VEDETTE_TEST_DATA)")

FLOORS = {
    "panther-tests": 0.32,
    "crowdsec-tests": 0.41,
    "fail2ban-logs": 0.9,
    "wazuh-rule-tests": 0.63,
    "loghub": 0.57,
    "zeek-samples": 1.0,
    "mordor": 0.999,
    "cloudtrail": 1.0,
}
"""Measured; the share of records that a mapping of their product reads. The rest is unmapped or a dead letter."""
DEAD = {"crowdsec-tests": 17, "fail2ban-logs": 33, "wazuh-rule-tests": 31}
"""Measured; how many records are dead letters at most, none in the other sets."""
RECORDS = {
    "panther-tests": 1_587,
    "zeek-samples": 2 * 11_128,
    "cloudtrail": 1_448 + 142,
    "loghub": 7 * 2_000,
    "wazuh-rule-tests": 155,
}
"""What the sets' own description says that they hold."""


@on_real_logs
@pytest.mark.timeout(180)
def test_every_record_of_every_set_has_a_fate(capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is mapped, unmapped or a dead letter with a reason; numbers add up; no share is below its floor."""
    found = fates(DATA)
    with capsys.disabled():
        print(f"\n{table(found)}")
    assert {name: one.faults[:5] for name, one in found.items() if one.faults} == {}
    assert {name: one.records for name, one in found.items() if one.records != RECORDS.get(name, one.records)} == {}
    assert {name: one.share for name, one in found.items() if one.share < FLOORS[name]} == {}
    assert {name: one.dead for name, one in found.items() if one.dead.total() > DEAD.get(name, 0)} == {}
    if absent := SETS.keys() - found.keys():
        pytest.skip(f"the other sets are fine; not at {DATA}: {', '.join(sorted(absent))}")


def small() -> Fate:
    return fate(
        [
            ("auth.log", b"Jan  2 03:04:05 gate sshd[4]: Accepted password for ann from 192.0.2.1 port 4 ssh2\n" * 3),
            ("doors", b"door 4 opened\ndoor 5 refused\n"),
            ("events", b'{"door": 4}\n\n{"door": \n'),
        ]
    )


def test_fates_are_counted() -> None:
    """Mapped, unmapped and unreadable records are each counted as such."""
    found = small()
    assert found.faults == []
    assert (found.records, found.mapped, found.unmapped, found.dead.total(), found.documents) == (7, 3, 3, 1, 7)
    assert found.mappings == {"linux": 3, "text": 2, "json": 1}


def test_a_loss_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the reader drops, or that is said to be one thing and becomes another, does not go unsaid."""
    monkeypatch.setattr("tests.integration.sets._count", lambda data: len(data.splitlines()) + 1)
    monkeypatch.setattr("tests.integration.sets._UNMAPPED", frozenset({"text"}))
    faults = "; ".join(small().faults)
    assert "auth.log: 4 records, 3 were read" in faults
    assert "events: 0 unmapped rows, counted 1" in faults
