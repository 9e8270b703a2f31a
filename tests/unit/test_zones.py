"""Sources whose records name no zone: their times are read in the zone that the operator named, and say so."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError, RecordError
from agent.model import SECOND, Chunk, Records
from agent.normalise import Normaliser
from agent.normalise.clock import from_datetime, localised, parse, parse_all, zone_in
from agent.testing import identities
from agent.zones import parted, with_zone, zone_of
from connectors.files import build

AS_OF = parse("2024-12-01T12:00:00Z")
SSHD = "{} web-1 sshd[812]: Failed password for root from 203.0.113.5 port 4711 ssh2"
WANTED = frozenset({"event.timezone", "event.start", "source.ip"})


def normaliser() -> Normaliser:
    return Normaliser(lambda kind: WANTED)


def both(format: str, raw: str) -> tuple[str, Any]:
    """Return time and zone of a record's document, having seen that its columns say the same."""
    document = normaliser().document(format, raw.encode(), as_of=AS_OF)
    batch = normaliser()(Records("s", (Chunk("p", "f", format, [0], [raw.encode()]),), {}, AS_OF), {}).batch
    zone = document["event"].get("timezone")
    assert (int(batch.time[0]), batch.value(0, "event.timezone")) == (parse(document["@timestamp"]), zone)
    return document["@timestamp"], zone


@pytest.mark.parametrize(
    ("zone", "at", "time", "said"),
    [
        ("", "Jul  9 10:00:00", "2024-07-09T10:00:00.000Z", "+0000"),
        ("Europe/Berlin", "Jan  9 10:00:00", "2024-01-09T09:00:00.000Z", "Europe/Berlin"),
        ("Europe/Berlin", "Jul  9 10:00:00", "2024-07-09T08:00:00.000Z", "Europe/Berlin"),
        ("Europe/Berlin", "Mar 31 01:59:59", "2024-03-31T00:59:59.000Z", "Europe/Berlin"),
        ("Europe/Berlin", "Mar 31 02:30:00", "2024-03-31T01:30:00.000Z", "+01:00"),  # there was no such time
        ("Europe/Berlin", "Mar 31 03:00:00", "2024-03-31T01:00:00.000Z", "Europe/Berlin"),
        ("Europe/Berlin", "Oct 27 01:59:59", "2024-10-26T23:59:59.000Z", "Europe/Berlin"),
        ("Europe/Berlin", "Oct 27 02:30:00", "2024-10-27T00:30:00.000Z", "+02:00"),  # it came twice
        ("Europe/Berlin", "Oct 27 03:00:00", "2024-10-27T02:00:00.000Z", "Europe/Berlin"),
        ("America/New_York", "2024-07-09 10:00:00.25", "2024-07-09T14:00:00.250Z", "America/New_York"),
        ("-04:30", "Jul  9 10:00:00", "2024-07-09T14:30:00.000Z", "-04:30"),
        ("UTC", "Jul  9 10:00:00", "2024-07-09T10:00:00.000Z", "UTC"),
        ("Europe/Berlin", "2024-07-09T10:00:00Z", "2024-07-09T10:00:00.000Z", None),
        ("Europe/Berlin", "2024-07-09T10:00:00+05:45", "2024-07-09T04:15:00.000Z", None),
    ],
)
def test_times_of_lines_are_in_the_sources_zone(zone: str, at: str, time: str, said: str | None) -> None:
    """Summer time included; where the clock was changed, the offset from before is taken and said to be assumed."""
    assert both(with_zone("syslog", zone), SSHD.format(at)) == (time, said)


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("260709  9:46:45 [ERROR] Aborting", "2026-07-09T07:46:45.000Z"),
        ("2026/07/09 10:00:00 [error] 7#8: *9 text, client: 192.0.2.1", "2026-07-09T08:00:00.000Z"),
        ("2026-07-09 10:00:00.250 IST [7] a@b LOG:  x", "2026-07-09T08:00:00.250Z"),
        ("09-Jul-2026 10:00:00.250 queries: info: client 192.0.2.1#7 (a): query: a IN A +", "2026-07-09T08:00:00.250Z"),
        ("[Thu Jul 09 10:00:00.250 2026] [core:error] [pid 7] text", "2026-07-09T08:00:00.250Z"),
        ("1,2026/07/09 10:00:01,0011,SYSTEM,general,0,2026/07/09 10:00:00,,x", "2026-07-09T08:00:00.000Z"),
        ("Jul 09 2023 10:00:00: %ASA-6-302013: Built outbound TCP connection 71", "2023-07-09T08:00:00.000Z"),
    ],
)
def test_lines_without_a_syslog_head_too(line: str, time: str) -> None:
    """Each form of time that the mappings read is set into the zone."""
    assert both("syslog@Europe/Berlin", line) == (time, "Europe/Berlin")


def test_times_of_objects_are_in_the_sources_zone() -> None:
    """A Windows agent's local time says the zone; an object's other times keep their offset, as indices read them."""
    record = '{"EventTime":"2024-07-09 10:00:00","EventID":4624,"Channel":"Security","SourceName":"x"}'
    assert both("json", record) == ("2024-07-09T10:00:00.000Z", "+00:00")
    assert both("json@Europe/Berlin", record) == ("2024-07-09T08:00:00.000Z", "Europe/Berlin")


def test_a_time_with_its_zone_in_brackets_is_a_time() -> None:
    """Setting a time into a zone changes neither what it is nor how it is read again."""
    text = localised("2024-07-09 10:00:00.25", "Europe/Berlin")
    assert (text, zone_in(text)) == ("2024-07-09T10:00:00.25+02:00[Europe/Berlin]", "Europe/Berlin")
    assert parse_all([text]).tolist() == [parse("2024-07-09T08:00:00.25Z")]
    assert localised(text, "UTC") == text


@pytest.mark.parametrize(
    "place", ["", "+02:00", "-05:00[America/New_York]", "+05:45:30", "+24:00", " +01:00", " CET", " CST"]
)
@pytest.mark.parametrize(
    "at", ["2024-07-09 10:00:00", "9999-12-31T23:59:59.5", "1970-01-01T00:00:00", "1601-01-01T01:00:00"]
)
def test_many_times_at_once_are_read_as_one_is(at: str, place: str) -> None:
    assert parse_all(["2024-07-09T10:00:00Z", at + place]).tolist()[1] == parse(at + place)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-07-09 10:00:00.25 CEST", "2024-07-09T08:00:00.25Z"),
        ("2024-07-09 10:00:00 -03", "2024-07-09T13:00:00Z"),
        ("2024-07-09 10:00:00 +0530", "2024-07-09T04:30:00Z"),
        ("2024-07-09 10:00:00 GMT", "2024-07-09T10:00:00Z"),
        ("09-Jul-2024 10:00:00.250", "2024-07-09T10:00:00.25Z"),
        ("9.7.2024 10:00:00", "2024-07-09T10:00:00Z"),
    ],
)
def test_short_names_of_zones_and_times_of_bind(text: str, time: str) -> None:
    assert parse(text) == parse_all([text])[0] == parse(time)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "+05:45", "America/St_Johns"])
def test_a_minutes_offset_is_that_of_each_of_its_seconds(zone: str) -> None:
    """What is kept by the minute agrees with the zone itself over a year of quarters of an hour."""
    place = zone_of(zone)
    for quarter in range(0, 366 * 96, 7):
        local = datetime(2024, 1, 1, tzinfo=place) + timedelta(minutes=15 * quarter, seconds=59)
        text = local.replace(tzinfo=None).isoformat(sep=" ")
        assert parse(localised(text, zone)) == from_datetime(local)


@pytest.mark.parametrize("text", ["10:00", "2024-07-09", "1720519200", "1970-01-01 00:00:00", "x: y", "", "1:" * 60])
def test_what_is_no_time_of_day_stays_as_it_is(text: str) -> None:
    assert localised(text, "Europe/Berlin") == text


@pytest.mark.parametrize("line", ["9999-12-31T23:59:59-12:00 web a: x", "0001-01-01T00:00:01+14:00 web a: x"])
def test_a_time_that_its_offset_moves_out_of_all_years_stops_nothing(line: str) -> None:
    assert normaliser().document("syslog", line.encode(), as_of=AS_OF)["@timestamp"] == "2024-12-01T12:00:00.000Z"


def test_a_zone_that_is_not_known_any_more_refuses_the_record() -> None:
    """A dead letter that is read again where the zone is unknown stays one, with the reason."""
    raw = SSHD.format("Jul  9 10:00:00").encode()
    with pytest.raises(RecordError, match="unknown time zone 'Mars/Base'"):
        normaliser().document("syslog@Mars/Base", raw, as_of=AS_OF)
    result = normaliser()(Records("s", (Chunk("p", "f", "syslog@Mars/Base", [0], [raw]),), {}, AS_OF), {})
    assert [letter.reason.partition(";")[0] for letter in result.dead] == ["unknown time zone 'Mars/Base'"]


@pytest.mark.parametrize(
    "name", ["Europe/Berln", "Europe", "../etc/passwd", "/etc/localtime", "+25:00", "+2", "02:00", "a\0b", "x" * 300]
)
def test_an_unknown_zone_is_refused(name: str) -> None:
    """The option, the value and what is expected are said."""
    with pytest.raises(ValueError, match="unknown time zone"):
        zone_of(name)
    with pytest.raises(ConfigError, match=r"source logs: timezone: unknown time zone .*Europe/Berlin, or \+02:00"):
        build("logs", {"paths": ["/"], "timezone": name})


def test_an_offset_that_yaml_took_for_a_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"timezone: expected a text .* in quotes, found 600"):
        build("logs", {"paths": ["/"], "timezone": 600})


@pytest.mark.parametrize("follow", [False, True])
def test_the_zone_changes_neither_identities_nor_the_cursor(tmp_path: Path, follow: bool) -> None:
    """Only the format of what a source gives says the zone; so does the reference that an alert is made of."""
    (tmp_path / "auth.log").write_text(SSHD.format("Jul  9 10:00:00") + "\n")
    fetched = []
    for options in ({}, {"timezone": "Europe/Berlin"}):
        source = build("logs", {"paths": [str(tmp_path)], "follow": follow, **options}, lambda: 4_000_000_000 * SECOND)
        source.open(frozenset())
        fetched.append(source.fetch(None, 10))
        assert set(source.full([fetched[-1].reference(0)])) == {fetched[-1].reference(0)}
        source.close()
    plain, zoned = fetched
    assert [parted(one.reference(0).format) for one in fetched] == [("syslog", ""), ("syslog", "Europe/Berlin")]
    assert (plain.cursor, identities(plain)) == (zoned.cursor, identities(zoned))
