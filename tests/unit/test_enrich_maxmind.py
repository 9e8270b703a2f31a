"""MaxMind DB files in alerts: where an address is, whose network it is, and how old the answer is."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from agent.alerting import maxmind
from agent.alerting.enrich import Listing, Table, enricher
from agent.assemble import build_enrichment
from agent.config.model import EnrichmentConfig
from agent.errors import ConfigError, TrustError
from agent.model import SECOND
from tests.maxmind import BUILT, database

CITY = {
    "city": {"geoname_id": 2950159, "names": {"de": "Berlin (de)", "en": "Berlin"}},
    "continent": {"code": "EU", "names": {"en": "Europe"}},
    "country": {"iso_code": "DE", "is_in_european_union": True, "names": {"en": "Germany", "fr": "Allemagne"}},
    "location": {"latitude": 52.5, "longitude": 13.25, "time_zone": "Europe/Berlin"},
    "postal": {"code": "10115"},
    "subdivisions": [{"iso_code": "BE", "names": {"en": "State of Berlin"}}],
}
PLACE = {
    "continent_code": "EU",
    "continent_name": "Europe",
    "country_iso_code": "DE",
    "country_name": "Germany",
    "region_iso_code": "DE-BE",
    "region_name": "State of Berlin",
    "city_name": "Berlin",
    "postal_code": "10115",
    "timezone": "Europe/Berlin",
    "location": {"lat": 52.5, "lon": 13.25},
}
OSLO = {"country": {"iso_code": "NO", "names": {"en": "Norway"}}, "city": {"names": {"en": "Oslo"}}}
NETWORK = {"autonomous_system_number": 64500, "autonomous_system_organization": "Example Net"}
PLACES = database({"198.51.100.0/24": CITY, "2001:db8::/32": OSLO})
NETWORKS = database({"198.51.0.0/16": NETWORK})
NOW = BUILT * SECOND
DAY = 86_400 * SECOND


def table(data: bytes = PLACES, **terms: Any) -> Table:
    digest = f"sha256:{sha256(data).hexdigest()}"
    return Table(Listing("places", digest, None, **{"match": maxmind.ADDRESSES, **terms}), data, "places.mmdb")


def enriched(*tables: Table, now: int = NOW, **document: Any) -> dict[str, Any]:
    whole = {"vedette": {}, **document}
    enricher(tables)(whole, now)
    return whole


def test_an_address_gets_its_place_and_its_network() -> None:
    """Each beside the address that it is about, whole, with the digest and the time of the database."""
    places, networks = table(), table(NETWORKS)
    found = enriched(places, networks, source={"ip": "198.51.100.7"}, destination={"ip": "2001:db8::5"})
    organization = {"number": 64500, "organization": {"name": "Example Net"}}
    assert found["source"] == {"ip": "198.51.100.7", "geo": PLACE, "as": organization}
    assert found["destination"]["geo"] == {"country_iso_code": "NO", "country_name": "Norway", "city_name": "Oslo"}
    (place, other, network) = found["vedette"]["enrichment"]
    assert (place["table"], place["field"], place["value"]) == ("places", "source.ip", "198.51.100.7")
    assert (place["digest"], place["made"]) == (places.terms.digest, "2026-03-01T00:00:00.000Z")
    assert other["field"] == "destination.ip"
    assert network["row"] == {
        "autonomous_system_number": "64500",
        "autonomous_system_organization": "Example Net",
    }


def test_the_whole_record_is_in_the_alert_in_one_language() -> None:
    (found,) = enriched(table(), source={"ip": "198.51.100.7"})["vedette"]["enrichment"]
    assert found["row"] == {
        "city.geoname_id": "2950159",
        "city.name": "Berlin",
        "continent.code": "EU",
        "continent.name": "Europe",
        "country.iso_code": "DE",
        "country.is_in_european_union": "true",
        "country.name": "Germany",
        "location.latitude": "52.5",
        "location.longitude": "13.25",
        "location.time_zone": "Europe/Berlin",
        "postal.code": "10115",
        "subdivisions.0.iso_code": "BE",
        "subdivisions.0.name": "State of Berlin",
    }


@pytest.mark.parametrize("value", ["10.0.0.7", "fe80::1%eth0", "203.0.113.1", "no address", "2001:db9::1"])
def test_what_the_database_does_not_know_adds_nothing(value: str) -> None:
    document = {"source": {"ip": value}}
    assert enriched(table(), **document) == {"vedette": {}, **document}


def test_an_ipv4_address_inside_ipv6_is_that_address() -> None:
    assert enriched(table(), source={"ip": "::ffff:198.51.100.7"})["source"]["geo"] == PLACE


def test_a_database_of_ipv4_knows_nothing_of_ipv6() -> None:
    old = table(database({"198.51.100.0/24": CITY}, version=4))
    assert enriched(old, source={"ip": "198.51.100.7"})["source"]["geo"] == PLACE
    assert enriched(old, source={"ip": "2001:db8::5"})["vedette"] == {}


def test_the_smallest_network_counts() -> None:
    both = table(database({"198.51.0.0/16": OSLO, "198.51.100.0/24": CITY}))
    assert enriched(both, source={"ip": "198.51.100.7"})["source"]["geo"] == PLACE
    assert enriched(both, source={"ip": "198.51.101.7"})["source"]["geo"]["city_name"] == "Oslo"


def test_what_the_event_says_is_completed_where_both_agree() -> None:
    found = enriched(table(), source={"ip": "198.51.100.7", "geo": {"country_iso_code": "DE", "name": "branch"}})
    assert found["source"]["geo"] == {**PLACE, "name": "branch"}


@pytest.mark.parametrize(
    "said", [{"country_iso_code": "NL"}, {"city_name": "Potsdam"}, {"location": {"lat": 0.0, "lon": 0.0}}]
)
def test_an_event_that_says_otherwise_keeps_its_place_as_it_is(said: dict[str, Any]) -> None:
    """Half of each would be a place that neither means; what the database says is in the row, and the network too."""
    address = {"ip": "198.51.100.7", "geo": said}
    both = table(database({"198.51.100.0/24": {**CITY, **NETWORK}}))
    found = enriched(both, source=address)
    assert found["source"]["geo"] == said
    assert found["source"]["as"]["number"] == 64500
    assert found["vedette"]["enrichment"][0]["row"]["city.name"] == "Berlin"


@pytest.mark.parametrize("geo", ["odd", ["odd"], 7])
def test_an_event_whose_place_is_odd_is_borne(geo: Any) -> None:
    assert enriched(table(), source={"ip": "198.51.100.7", "geo": geo})["source"]["geo"] == geo


def test_a_host_of_several_addresses_is_in_one_place() -> None:
    """ECS has no `host.as`; what it has no place for is in the row alone."""
    found = enriched(table(), table(NETWORKS), host={"ip": ["10.0.0.7", "2001:db8::5", "198.51.100.7"]})
    assert found["host"]["geo"] == {"country_iso_code": "NO", "country_name": "Norway", "city_name": "Oslo"}
    assert "as" not in found["host"]
    assert [one["value"] for one in found["vedette"]["enrichment"]] == ["2001:db8::5", "198.51.100.7", "198.51.100.7"]


def test_the_most_specific_region_is_the_region() -> None:
    record = {"country": {"iso_code": "GB"}, "subdivisions": [{"iso_code": "ENG"}, {"iso_code": "OXF"}]}
    found = enriched(table(database({"198.51.100.0/24": record})), source={"ip": "198.51.100.7"})
    assert found["source"]["geo"] == {"country_iso_code": "GB", "region_iso_code": "GB-OXF"}


def test_networks_of_databases_that_have_them_among_the_traits() -> None:
    found = enriched(table(database({"198.51.100.0/24": {"traits": NETWORK}})), client={"ip": "198.51.100.7"})
    assert found["client"]["as"] == {"number": 64500, "organization": {"name": "Example Net"}}


@pytest.mark.parametrize(
    "record",
    [
        {"location": {"latitude": 91.0, "longitude": 0.0}},
        {"location": {"latitude": float("nan"), "longitude": 0.0}},
        {"location": {"latitude": 1.0}},
        {"country": "DE", "city": {"names": "Berlin"}, "subdivisions": {}, "traits": "none"},
        {"location": {"latitude": True, "longitude": True}},
        {"country": {"iso_code": 7, "names": {}}, "subdivisions": [7]},
        {"country": {"iso_code": 7}, "subdivisions": [{"iso_code": "BE"}]},
        {"country": {"iso_code": ""}, "subdivisions": [{"iso_code": "BE"}]},
        {"city": {"names": {"en": {"short": "Berlin"}}}},
        {"autonomous_system_number": "AS64500"},
        {"autonomous_system_number": True},
        {"autonomous_system_number": 1 << 70},
    ],
)
def test_a_record_of_another_layout_is_kept_and_sets_nothing(record: Any) -> None:
    """A place outside of the earth, or a number that is none, would be refused by the SIEM."""
    found = enriched(table(database({"198.51.100.0/24": record})), source={"ip": "198.51.100.7"})
    assert found["source"] == {"ip": "198.51.100.7"}
    assert found["vedette"]["enrichment"][0]["row"]


@pytest.mark.parametrize(
    ("record", "row"),
    [("text", {"value": "text"}), ([True, b"\x01"], {"0": "true", "1": "01"}), (7, {"value": "7"})],
)
def test_a_record_that_is_no_object_is_in_the_row(record: Any, row: dict[str, str]) -> None:
    data = database({"198.51.100.0/24": record})
    assert enriched(table(data), source={"ip": "198.51.100.7"})["vedette"]["enrichment"][0]["row"] == row


def test_columns_of_other_makers_go_where_the_configuration_says() -> None:
    data = database({"198.51.100.0/24": {"country_code": "DE", "asn": "64500", "names": ["x"]}})
    flat = table(data, set={"country_code": ".geo.country_iso_code", "asn": ".as.number"}, match=("source.ip",))
    found = enriched(flat, source={"ip": "198.51.100.7"})
    assert found["source"] == {"ip": "198.51.100.7", "geo": {"country_iso_code": "DE"}, "as": {"number": 64500}}
    assert found["vedette"]["enrichment"][0]["row"]["names.0"] == "x"


def test_names_that_are_not_in_english_are_those_that_there_are() -> None:
    data = database({"198.51.100.0/24": {"city": {"names": {"de": "Wien", "fr": "Vienne"}}}})
    assert enriched(table(data), source={"ip": "198.51.100.7"})["source"]["geo"] == {"city_name": "Wien"}


def test_a_record_is_bounded_in_the_alert() -> None:
    data = database({"198.51.100.0/24": {"long": "x" * 9_000, **{f"c{number}": "y" for number in range(99)}}})
    row = enriched(table(data), source={"ip": "198.51.100.7"})["vedette"]["enrichment"][0]["row"]
    assert (len(row), len(row["long"])) == (64, 8_192)


@pytest.mark.parametrize(
    "record",
    [
        {"k" * 20_000: [0] * 3_000},
        {"k" * 900: {str(number): "v" * 30 for number in range(2_000)}},
        {"city": {"names": {"en": "c" * 60_000}}, "asn": "a" * 60_000, "b": b"b" * 60_000},
    ],
)
def test_what_a_record_repeats_is_bounded(record: Any) -> None:
    """A name stands before all values below it: 30 kB of file would be 60 MB of columns."""
    found = maxmind.Database(database({"192.0.2.0/24": record}), "x.mmdb").find(ip_address("192.0.2.1"))
    assert found is not None
    columns, fields = found
    assert sum(len(name) + len(text) for name, text in columns.items()) < 1_000_000
    assert fields == {}


def test_a_database_is_as_old_as_it_says_itself() -> None:
    """Nobody has to name the date; each alert says that it is too old."""
    old = table(max_age=30 * DAY)
    assert enriched(old, now=NOW + 30 * DAY)["vedette"] == {}
    assert enriched(old, now=NOW + 30 * DAY + 1)["vedette"] == {"enrichment_stale": ["places"]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no MaxMind DB file, or its end is missing"),
        (b"ip,name\n192.0.2.1,a\n", "no MaxMind DB file, or its end is missing"),
        (PLACES[:-400], "no MaxMind DB file, or its end is missing"),
        (PLACES[:-60], "a damaged MaxMind DB file: "),
        (PLACES[600:], r"a damaged MaxMind DB file: .*\(places\.mmdb\)\. The search tree extends past the end"),
        (database({"198.51.100.0/24": CITY}, record_size=20), "a damaged MaxMind DB file: Unknown record size: 20"),
        (database({"198.51.100.0/24": CITY}, node_count="many"), "a damaged MaxMind DB file: "),
        (database({"198.51.100.0/24": CITY}, odd=True), "a damaged MaxMind DB file: .*odd"),
        (database({"198.51.100.0/24": CITY}, ip_version=5), "expected format 2 for IP 4 or 6, got format 2 for IP 5"),
        (database({"198.51.100.0/24": CITY}, binary_format_major_version=3), "got format 3 for IP 6"),
        (database({"198.51.100.0/24": CITY}, ip_version=[6]), r"got format 2 for IP \[6\]"),
        (database({"198.51.100.0/24": CITY}, build_epoch=0), "built at 0"),
        (database({"198.51.100.0/24": CITY}, build_epoch=1 << 60), "built at 1152921504606846976"),
        (database({"198.51.100.0/24": CITY}, build_epoch="now"), "built at 'now'"),
    ],
)
def test_a_file_that_is_no_database_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        table(data)
    assert "places.mmdb" in str(refused.value)


@pytest.mark.parametrize("damage", [b"\x46\xffBerli", b"\x00Berlin", b"\xe6Berlin"])
def test_a_damaged_record_is_named_in_the_alert_and_stops_nothing(damage: bytes) -> None:
    data = PLACES.replace(b"\x46Berlin", damage)
    assert data != PLACES
    found = enriched(table(data), source={"ip": "198.51.100.7"}, destination={"ip": "2001:db8::5"})
    assert found["source"] == {"ip": "198.51.100.7"}
    assert found["destination"]["geo"]["city_name"] == "Oslo"
    assert found["vedette"]["enrichment"][0]["row"]["error"].startswith("the file is damaged here: ")


def test_another_file_than_the_signed_one_is_refused() -> None:
    with pytest.raises(TrustError, match="expected the table sha256:0000"):
        Table(Listing("places", f"sha256:{'0' * 64}", None, ("source.ip",)), PLACES, "places.mmdb")


# --- in a configuration -----------------------------------------------------------------------------------------------


def accepted(folder: Path, **section: Any) -> Any:
    return SimpleNamespace(
        configuration=SimpleNamespace(enrichments={"places": EnrichmentConfig(path="places.mmdb", **section)}),
        files=SimpleNamespace(folder=folder),
        locator=lambda *_: "vedette.yml:3",
    )


def test_what_was_checked_is_what_is_used(tmp_path: Path) -> None:
    """Whatever is written into the file afterwards."""
    file = tmp_path / "places.mmdb"
    file.write_bytes(PLACES)
    enrich = build_enrichment(accepted(tmp_path, digest=f"sha256:{sha256(PLACES).hexdigest()}"))
    with file.open("r+b") as same:
        same.write(bytes(len(PLACES)))
    for name in ("source", "destination", "client", "server", "host"):
        document: dict[str, Any] = {name: {"ip": "198.51.100.7"}, "vedette": {}}
        enrich(document, NOW)
        assert document[name]["geo"] == PLACE, name


def test_a_database_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "places.mmdb").open("wb") as file:
        file.truncate((512 << 20) + 1)
    with pytest.raises(ConfigError, match="may have at most 536870912 bytes, it has 536870913"):
        build_enrichment(accepted(tmp_path, digest=f"sha256:{'0' * 64}"))


@pytest.mark.parametrize(
    ("path", "given", "reason"),
    [
        ("places.mmdb", {"key": "ip"}, "key: not for a MaxMind DB file; remove it"),
        ("places.mmdb", {"networks": True, "indicators": True}, "indicators, networks: not for .*; remove them"),
        ("places.mmdb", {"made": "2026-03-01T00:00:00Z"}, "made: not for a MaxMind DB file"),
        ("places.csv", {"key": "ip"}, "expected key and match"),
        ("places.csv", {"match": ["source.ip"]}, "expected key and match"),
    ],
)
def test_what_has_no_meaning_for_a_kind_of_table_is_refused(path: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        EnrichmentConfig(path=path, digest=f"sha256:{'0' * 64}", **given)


def test_the_reader_is_loaded_only_where_there_is_a_database() -> None:
    """The command line answers at once."""
    code = "import sys, agent.assemble; sys.exit('maxminddb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
