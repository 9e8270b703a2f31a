"""What mappings of network devices need: their transforms, columns parted by commas, structured data, Cisco's tags."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import ConfigError
from agent.normalise import Normaliser
from agent.normalise.clock import parse as parse_time
from agent.normalise.clock import to_text
from agent.normalise.lines import line_reader
from agent.normalise.mapping import parse
from agent.normalise.transforms import JOINT, PLAIN, answered, arn, community_id, kubernetes

AS_OF = parse_time("2024-05-01T12:00:00Z")


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("elapsed", "1:02:03", 3_723_000_000_000),
        ("elapsed", "0h:01m:52s", 112_000_000_000),
        ("facility", "189", 23),
        ("syslog_severity", "189", 5),
        ("hexadecimal", "00:ab:cd", "00ABCD"),
        ("mac", "000c.29eb.35de", "00-0C-29-EB-35-DE"),
        ("time", "1704164645", "2024-01-02T03:04:05.000Z"),
        ("url_domain", "https://ann@Example.com:8443/a?b", "example.com"),
        ("url_domain", "/a", None),
        ("url_path", "https://example.com/a%20b?c", "/a b"),
        ("url_path", "https://example.com", None),
        ("url_port", "https://example.com:8443/a", 8443),
        ("url_port", "https://example.com/a:1", None),
        ("url_scheme", "HTTPS://example.com/", "https"),
        ("url_scheme", "/a://b", None),
        ("before_colon", "Trojan:EC2/Drop:1", "Trojan"),
        ("before_colon", ":1", None),
        ("tcp_flags", "18", ["syn", "ack"]),
        ("tcp_flags", 0, []),
        ("undotted", "www.example.com.", "www.example.com"),
        ("undotted", ["a.", "b"], ["a", "b"]),
        ("undotted", ".", None),
        ("decoded", "a%20b%2", "a b%2"),
    ],
)
def test_transforms(name: str, raw: Any, expected: Any) -> None:
    assert PLAIN[name](raw) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [("3", "wafv2"), ("4", "eu-west-1"), ("5", "1234"), ("6", "regional/webacl/a:b")]
)
def test_parts_of_arns(number: str, expected: str) -> None:
    """The last part of an ARN keeps its own colons; a text that is shorter has no such part."""
    assert arn(number)("arn:aws:wafv2:eu-west-1:1234:regional/webacl/a:b") == expected
    assert arn(number)("arn:aws") is None


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("https", "a.example", "/b", "c=1"), "https://a.example/b?c=1"),
        (("http", "a.example", "/b", "-"), "http://a.example/b"),
        (("http", "a.example", None, None), "http://a.example"),
        ((None, "a.example", "/b", "c"), None),
    ],
)
def test_urls_of_their_parts(parts: tuple[str | None, ...], expected: str | None) -> None:
    assert JOINT["whole_url"](parts) == expected


def test_an_arn_has_six_parts() -> None:
    """A mapping that asks for a seventh is refused when it is read."""
    with pytest.raises(ValueError, match="parts 1 to 6"):
        arn("7")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("core/v1/nodes", ("v1", None, "nodes", None)),
        ("core/v1/nodes/n-1", ("v1", None, "nodes", "n-1")),
        ("core/v1/namespaces/shop", ("v1", None, "namespaces", "shop")),
        ("apps/v1/namespaces/shop/deployments", ("v1", "shop", "deployments", None)),
        ("apps/v1/namespaces/shop/pods/p/exec", ("v1", "shop", "pods", "p")),
        ("api/v1", ("v1", None, None, None)),
        ("readyz", (None, None, None, None)),
        ("", (None, None, None, None)),
    ],
)
def test_paths_of_kubernetes(path: str, expected: tuple[str | None, ...]) -> None:
    assert tuple(kubernetes(part)(path) for part in ("version", "namespace", "type", "name")) == expected


def test_lines_of_a_zone_file() -> None:
    """Each whole line gives its part; one cut off before its data gives none."""
    text = 'a.example.\t300\tIN\ttxt\t"one\ttwo"\na.example.\t300\tIN\ttxt...'
    assert {part: answered(part)(text) for part in ("name", "ttl", "class", "type", "data")} == {
        "name": ["a.example."],
        "ttl": ["300"],
        "class": ["IN"],
        "type": ["TXT"],
        "data": ['"one\ttwo"'],
    }


def test_flow_hashes_of_numbered_transports() -> None:
    """A number is as good as a name, but not for ICMP, whose type and code such logs write as port 0."""
    flow = ("192.0.2.1", 4000, "198.51.100.2", 53)
    assert community_id(None)((*flow, "17")) == community_id("udp")(flow)
    assert community_id(None)(("192.0.2.1", 0, "198.51.100.2", 0, "1")) is None


@pytest.mark.parametrize(("name", "raw"), [("mac", "00:0c"), ("mac", "a name"), ("time", "soon"), ("elapsed", "long")])
def test_what_is_malformed_is_refused(name: str, raw: str) -> None:
    """A value that is none of its sort is wrong, not bent."""
    with pytest.raises(ValueError, match=r".+"):
        PLAIN[name](raw)


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("before", ("2024-01-02T03:04:05Z", "0:00:05"), "2024-01-02T03:04:00.000Z"),
        ("before", ("2024-01-02T03:04:05Z", None), None),
        ("after", ("2024-01-02T03:04:05Z", "5"), "2024-01-02T03:04:10.000Z"),
        ("after", (None, "5"), None),
        ("changed", ("10.0.0.5", "192.0.2.1"), "192.0.2.1"),
        ("changed", ("10.0.0.5", "10.0.0.5"), None),
    ],
)
def test_transforms_of_several_fields(name: str, raw: tuple[Any, ...], expected: Any) -> None:
    assert JOINT[name](raw) == expected


@pytest.mark.parametrize("port", [-1, 2**16, 10**30])
def test_a_number_out_of_range_makes_no_flow_hash(port: int) -> None:
    """An impossible port is a wrong value of one field; the record is read."""
    mapping = parse(
        "mapping: m\nformat: json\nshapes: {a: {when: [p]}}\n"
        "kinds: [{fields: {network.community_id: 'community_id(s, p, d, p, t)'}}]\n",
        "m.yml",
    )
    record = {"s": "192.0.2.1", "d": "192.0.2.2", "p": port, "t": "tcp"}
    (field,) = mapping.product({}).fields["network.community_id"]
    with pytest.raises(ValueError, match="range"):
        field.convert((record["s"], port, record["d"], port, "tcp"))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1704164645", "2024-01-02T03:04:05.000Z"),
        ("1704164645123", "2024-01-02T03:04:05.123Z"),
        ("1704164645123456", "2024-01-02T03:04:05.123456Z"),
        ("1704164645123456789", "2024-01-02T03:04:05.123456Z"),
        (1704164645, "2024-01-02T03:04:05.000Z"),
        (1704164645123456, "2024-01-02T03:04:05.123456Z"),
        (1704164645123456789, "2024-01-02T03:04:05.123456Z"),
        ("Jan 02 2024 03:04:05", "2024-01-02T03:04:05.000Z"),
    ],
)
def test_times_since_1970_in_four_units(raw: Any, expected: str) -> None:
    """The unit of a number is told by its size, of digits in a text by how many there are."""
    assert to_text(parse_time(raw)) == expected


COLUMNS = """
mapping: m
format: syslog
shapes: {{line: {{when: [m], data: [m]}}}}
patterns:
  - programs: ["-"]
    match:
      - {{name: m, regex: "^(?P<m>.*)$", columns: {{m: {columns}}}}}
"""


@pytest.mark.parametrize("columns", ["{A: a, other: b}", "{by: x, other: b}", '{by: "1", A: a}'])
def test_columns_say_where_their_kind_is_and_what_else_there_is(columns: str) -> None:
    """Without the place of the kind, or names for what is none of the kinds, a mapping is refused with its line."""
    with pytest.raises(ConfigError, match=r"m\.yml:8: expected 'by'"):
        parse(COLUMNS.format(columns=columns), "m.yml")


@pytest.mark.parametrize(
    ("columns", "line", "expected"),
    [
        ("'a, _, b'", 'x,y,"1, 2",z', {"a": "x", "b": "1, 2"}),
        ('{by: "1", Y: "a, kind, c", other: "a"}', "x,Y,z", {"a": "x", "kind": "Y", "c": "z"}),
        ('{by: "1", Y: "a, kind, c", other: "a"}', "x,Z,z", {"a": "x"}),
        ('{by: "9", Y: "a, kind, c", other: "a"}', "x,Y,z", {"a": "x"}),
        ("'a, b'", f'"{"x" * 200_000}",y', {"a": f'"{"x" * 200_000}"', "b": "y"}),
    ],
)
def test_columns_have_names_by_their_kind(columns: str, line: str, expected: dict[str, str]) -> None:
    """Values have names in their order; ``_`` and what has no name is left out; a huge value does no harm."""
    (patterns,) = parse(COLUMNS.format(columns=columns), "m.yml").pattern_sets
    assert patterns.patterns[0].payloads["m"](line) == expected


@pytest.mark.parametrize(
    ("line", "program", "code"),
    [
        ("Jan  2 03:04:05 gate : %ASA-6-302013: Built", "%ASA-302013", "302013"),
        ("Jan 02 2024 03:04:05: %FTD-6-302013: Built", "%ASA-302013", "302013"),
        ("<166>%ASA-session-5-106100: access-list", "%ASA-106100", "106100"),
        ("Jan  2 03:04:05 core app[7]: %SYS-5-CONFIG_I: Configured", "%SYS-CONFIG_I", "CONFIG_I"),
    ],
)
def test_tags_of_cisco_are_programs(line: str, program: str, code: str) -> None:
    """A tag stands for the program, wherever it stands in the line; firewalls share their numbers."""
    record = line_reader("syslog", AS_OF)(line.encode())
    assert (record["program"], record["code"]) == (program, code)
    assert record.get("process") == ("app" if "app[7]" in line else None)


def test_what_only_looks_like_a_tag_is_none() -> None:
    """A percent sign at a message's beginning does not make it Cisco's."""
    record = line_reader("syslog", AS_OF)(b"Jan  2 03:04:05 host app: %d items")
    assert (record["program"], record["message"]) == ("app", "%d items")


def test_a_later_field_takes_the_place_of_an_earlier_constant() -> None:
    """Kinds are layers: what a later one derives is not hidden by what an earlier one assumed."""
    mapping = parse(
        "mapping: m\nformat: json\nidentity: {k: ''}\nkinds:\n  - constants: {event.type: [info]}\n"
        "  - {when: {k: [a]}, fields: {event.type: t}}\n",
        "m.yml",
    )
    assert mapping.product({}).constants == {"event.type": ("info",)}
    assert mapping.product({"k": "a"}).constants == {}


def test_structured_data_is_read_where_the_message_is_empty() -> None:
    """A pattern may look at RFC 5424's structured data in place of the message."""
    line = b'<14>1 2024-01-02T03:04:05Z gate RT_FLOW - RT_FLOW_SESSION_CREATE [junos@1 source-address="192.0.2.1"]'
    document = Normaliser(lambda kind: frozenset()).document("syslog", line, as_of=AS_OF)
    assert document["source"]["ip"] == "192.0.2.1"
    assert document["event"]["action"] == "flow_started"
