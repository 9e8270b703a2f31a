"""Tables that add to alerts what an organisation knows: found, placed, bounded, and honest about their age."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from agent.alerting.enrich import Listing, Table, enricher
from agent.errors import ConfigError, TrustError
from agent.normalise.clock import parse

ASSETS = b"""ip,name,owner,country,criticality
192.0.2.9,srv-db-01,Dana,NL,high
192.0.2.0/24,office,Olaf,DE,low
2001:db8::/32,lab,Lena,,low
"""
NOW = parse("2026-03-01T00:00:00Z")
DAY = 86_400_000_000


def table(data: bytes = ASSETS, path: str = "assets.csv", **terms: Any) -> Table:
    usual = {"key": "ip", "match": ("source.ip", "destination.ip"), "networks": True}
    digest = f"sha256:{sha256(data).hexdigest()}"
    return Table(Listing("assets", digest, **{**usual, **terms}), data, path)


def enriched(*tables: Table, now: int = NOW, **document: Any) -> dict[str, Any]:
    whole = {"vedette": {}, **document}
    enricher(tables)(whole, now)
    return whole


def test_a_row_is_added_whole_and_where_ecs_has_a_place_for_it() -> None:
    """The smallest network counts; with the row comes the digest of the table that it is from."""
    assets = table(set={"name": ".domain", "country": ".geo.country_iso_code", "owner": "user.full_name"})
    found = enriched(assets, source={"ip": "192.0.2.9"}, destination={"ip": "2001:db8::1"})
    (one, other) = found["vedette"]["enrichment"]
    assert (one["table"], one["field"], one["value"]) == ("assets", "source.ip", "192.0.2.9")
    assert one["row"]["criticality"] == "high"
    assert one["digest"] == assets.terms.digest
    assert other["row"]["name"] == "lab"
    assert found["source"] == {"ip": "192.0.2.9", "domain": "srv-db-01", "geo": {"country_iso_code": "NL"}}
    assert found["destination"] == {"ip": "2001:db8::1", "domain": "lab"}
    assert found["user"] == {"full_name": "Dana"}


def test_what_the_event_says_is_not_overwritten() -> None:
    found = enriched(table(set={"name": ".domain"}), source={"ip": "192.0.2.77", "domain": "guest"})
    assert found["source"]["domain"] == "guest"
    assert found["vedette"]["enrichment"][0]["row"]["name"] == "office"


def test_what_is_not_listed_adds_nothing() -> None:
    document = {"source": {"ip": "198.51.100.1"}, "destination": {"ip": "no address"}}
    assert enriched(table(), **document) == {"vedette": {}, **document}


def test_names_are_found_whatever_their_case_and_each_of_a_list() -> None:
    data = b'{"user": "Alice", "risk": 7, "vip": true}\n\n{"user": "bob", "risk": null}\n'
    people = table(data, "people.ndjson", key="user", match=("related.user",), networks=False, tags=("staff",))
    found = enriched(people, related={"user": ["ALICE", "bob", "eve"]}, tags=["staff", "x"])
    assert [one["row"] for one in found["vedette"]["enrichment"]] == [
        {"user": "Alice", "risk": "7", "vip": "true"},
        {"user": "bob"},
    ]
    assert found["tags"] == ["staff", "x"]


def test_indicators_become_threat_enrichments() -> None:
    """As SIEMs show them: what matched where, and what is known of it."""
    data = b"hash,kind,feed\nabc123,file,ours\n"
    terms = {"key": "hash", "match": ("file.hash.sha256",), "networks": False, "indicators": True}
    found = enriched(
        table(data, set={"kind": ".type", "feed": ".provider"}, **terms), file={"hash": {"sha256": "ABC123"}}
    )
    (one,) = found["threat"]["enrichments"]
    assert one["indicator"] == {"type": "file", "provider": "ours"}
    assert (one["matched"]["atomic"], one["matched"]["field"]) == ("ABC123", "file.hash.sha256")


@pytest.mark.parametrize(
    ("threat", "expected"),
    [
        ({"enrichments": {"indicator": {}}}, [{"indicator": {}}]),
        ({"enrichments": "odd"}, ["odd"]),
        ({"enrichments": ["odd"]}, ["odd"]),
        ("odd", None),
        (["odd"], None),
    ],
)
def test_an_indicator_bears_an_event_whose_threat_is_odd(threat: Any, expected: list[Any] | None) -> None:
    """What the event says stays; the row is in the alert in any case."""
    data = b"name\nabc\n"
    hashes = table(data, key="name", match=("file.name",), networks=False, indicators=True)
    found = enriched(hashes, file={"name": "abc"}, threat=threat)
    assert found["vedette"]["enrichment"][0]["row"] == {"name": "abc"}
    if expected is None:
        assert found["threat"] == threat
    else:
        assert found["threat"]["enrichments"][:-1] == expected
        assert found["threat"]["enrichments"][-1]["matched"]["atomic"] == "abc"


def test_an_ipv4_address_inside_ipv6_is_that_address() -> None:
    """Whichever of the two the table or the event has."""
    inside = table(b"ip,name\n::ffff:192.0.2.0/120,office\n")
    assert enriched(inside, source={"ip": "192.0.2.7"})["vedette"]["enrichment"][0]["row"]["name"] == "office"
    assert (
        enriched(table(), source={"ip": "::ffff:192.0.2.9"})["vedette"]["enrichment"][0]["row"]["name"] == "srv-db-01"
    )
    with pytest.raises(ConfigError, match=r"row 2: 192\.0\.2\.1 is listed twice"):
        table(b"ip,name\n::ffff:192.0.2.1,a\n192.0.2.1,b\n")


def test_only_a_line_feed_ends_a_line_of_ndjson() -> None:
    data = '{"user": "alice", "note": "a\u2028b\u0085c"}\r\n{"user": "bob"}'.encode()
    people = table(data, "people.ndjson", key="user", match=("user.name",), networks=False)
    assert enriched(people, user={"name": "alice"})["vedette"]["enrichment"][0]["row"]["note"] == "a\u2028b\u0085c"
    assert len(people) == 2


def test_a_table_that_is_too_old_says_so_in_every_alert() -> None:
    """It is still used; an alert that it knows nothing about says so too."""
    old = table(made=NOW - 8 * DAY, max_age=7 * DAY)
    assert enriched(old)["vedette"] == {"enrichment_stale": ["assets"]}
    found = enriched(old, source={"ip": "192.0.2.9"})["vedette"]
    assert (found["enrichment_stale"], found["enrichment"][0]["made"]) == (["assets"], "2026-02-21T00:00:00.000Z")
    assert enriched(old, now=NOW - DAY)["vedette"] == {}


def test_one_alert_gets_so_many_rows_and_the_number_of_the_others() -> None:
    data = b"user\n" + b"".join(b"u%d\n" % number for number in range(30))
    people = table(data, key="user", match=("related.user",), networks=False)
    found = enriched(people, related={"user": [f"u{number}" for number in range(30)]})["vedette"]
    assert (len(found["enrichment"]), found["enrichment_cut"]) == (20, 10)


@pytest.mark.parametrize(
    ("data", "terms", "reason"),
    [
        (b"ip,name\n192.0.2.1,a\n192.0.2.1,b\n", {}, "row 2: 192.0.2.1 is listed twice"),
        (b"ip,name\n192.0.2.1/24,a\n", {}, "row 1: 192.0.2.1/24 has host bits set"),
        (b"ip,name\n,a\n", {}, "row 1: no value in ip, the key"),
        (b"ip,name\n192.0.2.1\n", {}, "line 2: expected 2 columns"),
        (b"ip,name\n192.0.2.1,a,b\n", {}, "line 2: expected 2 columns"),
        (b'ip\n"192.0.2.1', {}, "unexpected end of data"),
        (b"ip\n\xff\n", {}, "not UTF-8"),
        (b"ip\n192.0.2.1\n", {"key": "address", "networks": False}, "no value in address"),
        (b"ip\n192.0.2.1\n", {"set": {"name": ".domain"}}, "no column name; there are: ip"),
        (ASSETS, {"set": {"name": ".colour"}}, "ECS has no field source.colour"),
        (ASSETS, {"set": {"name": "user.name"}, "indicators": True}, "ECS has no field user.name"),
        (b"ip\n" + b"x" * 9_000 + b"\n", {"networks": False}, "at most 64 columns of 8192 characters"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_right_is_refused_with_its_line(data: bytes, terms: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason.replace("/", "\\/")) as refused:
        table(data, **terms)
    assert "assets.csv" in str(refused.value)


@pytest.mark.parametrize("line", ["[1]", '{"ip": {"a": 1}}', "{"])
def test_ndjson_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="line 1: "):
        table(line.encode(), "assets.ndjson")


def test_another_file_than_the_signed_one_is_refused() -> None:
    with pytest.raises(TrustError, match="expected the table sha256:0000"):
        Table(Listing("assets", f"sha256:{'0' * 64}", "ip", ("source.ip",)), ASSETS, "assets.csv")
