"""Tables of an organisation in a running daemon: in its alerts, and only as they were signed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.maxmind import database
from tests.site import Site

TABLE = b"ip,name,owner\n192.0.2.0/24,guests,Olaf\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    (tmp_path / "guests.csv").write_bytes(TABLE)
    made.configuration["enrichments"] = {
        "guests": {
            "path": "guests.csv",
            "digest": f"sha256:{sha256(TABLE).hexdigest()}",
            "key": "ip",
            "match": ["source.ip"],
            "networks": True,
            "set": {"name": ".domain"},
        }
    }
    made.sign("root")
    yield made
    made.end_anyhow()


def test_alerts_carry_what_the_tables_know_and_where_it_is_from(site: Site) -> None:
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    (alert,) = [json.loads(line) for line in (site.folder / "out.ndjson").read_text().splitlines()]
    assert alert["source"]["domain"] == "guests"
    (found,) = alert["vedette"]["enrichment"]
    assert (found["table"], found["row"]["owner"]) == ("guests", "Olaf")
    assert found["digest"] == f"sha256:{sha256(TABLE).hexdigest()}"


def test_a_table_that_nobody_signed_for_is_refused(site: Site) -> None:
    """A new revision over it changes nothing; what runs goes on with the table as it was read."""
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    (site.folder / "guests.csv").write_bytes(TABLE.replace(b"Olaf", b"Eve"))
    site.sign("root", dead_letters={"max_bytes": 1 << 20})
    applied = site.ask("config", "apply")
    assert "expected the table sha256:" in " ".join(applied.stderr.split())
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    last = json.loads((site.folder / "out.ndjson").read_text().splitlines()[-1])
    assert last["vedette"]["enrichment"][0]["row"]["owner"] == "Olaf"
    assert last["vedette"]["configuration"]["revision"] == 1


def test_a_table_goes_on_from_memory_when_a_reload_fails(site: Site) -> None:
    """A configuration that cannot be opened has stopped what ran; the file of the table holds another by then."""
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    (site.folder / "guests.csv").write_bytes(TABLE.replace(b"Olaf", b"Eve"))
    nowhere = {"out": {"type": "ndjson", "path": str(site.folder / "nowhere" / "out.ndjson")}}
    site.sign("root", enrichments={}, sinks=nowhere)
    assert "nowhere" in site.ask("config", "apply").stderr
    site.log_line(1)
    site.until(lambda: len(site.delivered()) == 2)
    last = json.loads((site.folder / "out.ndjson").read_text().splitlines()[-1])
    assert last["vedette"]["enrichment"][0]["row"]["owner"] == "Olaf"


def test_alerts_say_where_an_address_is_by_a_database_of_the_user(site: Site) -> None:
    """How old it is it says itself; one that is damaged is refused before it runs."""
    data = database({"192.0.2.0/24": {"country": {"iso_code": "NO", "names": {"en": "Norway"}}}})
    (site.folder / "places.mmdb").write_bytes(data)
    places = {"path": "places.mmdb", "digest": f"sha256:{sha256(data).hexdigest()}", "max_age_days": 1}
    site.sign("root", enrichments={"places": places})
    site.start()
    site.until(lambda: len(site.delivered()) == 1)
    (alert,) = [json.loads(line) for line in (site.folder / "out.ndjson").read_text().splitlines()]
    assert alert["source"]["geo"] == {"country_iso_code": "NO", "country_name": "Norway"}
    assert alert["vedette"]["enrichment"][0]["digest"] == places["digest"]
    assert alert["vedette"]["enrichment_stale"] == ["places"]

    cut = data[: len(data) // 2]
    (site.folder / "places.mmdb").write_bytes(cut)
    site.sign("root", enrichments={"places": {**places, "digest": f"sha256:{sha256(cut).hexdigest()}"}})
    checked = site.ask("config", "check")
    assert checked.returncode == 3
    assert "places.mmdb: no MaxMind DB file, or its end is missing" in " ".join(checked.stderr.split())
