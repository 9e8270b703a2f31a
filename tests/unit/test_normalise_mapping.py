"""Mapping files: errors name the line, later layers win, and what is shipped holds together."""

from __future__ import annotations

import pytest

from agent.errors import ConfigError
from agent.model import Kind
from agent.normalise.catalogue import catalogue
from agent.normalise.mapping import MappingFile, parse, shipped
from agent.normalise.transforms import PLAIN

AUDITD = ("user.audit.", "user.saved.", "user.filesystem.", "user.owner.", "user.terminal")
"""auditd's users that ECS has no place for, under the names that Elastic's agents give them."""
HEAD = "mapping: m\nformat: json\nprefix: v.\nidentity: {id: event.code}\nabsent: ['-']\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "found nothing"),
        ("mapping: *nowhere", 1, "not YAML"),
        ("mapping: m\n", 1, "missing key format"),
        ("mapping: m\nformat: json\nmaping: x\n", 1, "unknown key maping"),
        ("mapping: m\nformat: {a: b}\n", 2, "expected a text"),
        ("mapping: \x1b\n", 1, "not YAML"),
        (HEAD + "kinds:\n  - constants: {event.kind: thing}\n", 7, "ECS does not allow thing"),
        (HEAD + "kinds:\n  - fields:\n      user.name: shout(User)\n", 8, "unknown transform shout"),
        (HEAD + "kinds:\n  - fields:\n      user.name: table.no(User)\n", 8, "unknown transform table.no"),
        (HEAD + "kinds:\n  - fields:\n      user.name: lower(User\n", 8, "expected Field"),
        (HEAD + "kinds:\n  - renames:\n      A: user.name\n      A: user.id\n", 9, "A is there twice"),
        (HEAD + "kinds:\n  - renames:\n      A: user.name\n      B: user.name\n", 8, "renamed to one ECS field"),
        (HEAD + "kinds: {a: b}\n", 6, "expected a list"),
        (HEAD + "patterns:\n  - programs: [p]\n    match:\n      - {name: n, regex: '(?<!a)b'}\n", 9, "refused"),
    ],
)
def test_errors_name_the_line(text: str, line: int, says: str) -> None:
    """Whatever is wrong in a mapping is a ConfigError with file:line."""
    with pytest.raises(ConfigError, match=says) as caught:
        parse(text, "m.yml")
    assert caught.value.path == f"m.yml:{line}"


def layered() -> MappingFile:
    return parse(
        HEAD
        + """kinds:
  - renames: {A: user.name, B: process.executable}
    fields: {host.name: H}
  - when: {id: ["7"]}
    declared: true
    constants: {event.category: [process]}
    renames: {C: process.executable}
    fields: {user.name: lower(A)}
""",
        "m.yml",
    )


def test_later_layers_win() -> None:
    """A layer that gives an ECS field another source takes it from the earlier rename or derivation."""
    product = layered().product({"id": "7"})
    assert product.renames == {"id": "event.code", "C": "process.executable"}
    assert [item.native for item in product.fields["process.executable"]] == ["C"]
    assert [item.native for item in product.fields["user.name"]] == ["A"]
    assert product.fields["user.name"][0].convert("BOB") == "bob"
    assert product.fields["user.name"][0].convert("-") is None
    assert "host.name" in product.fields


def test_steps_follow_one_another() -> None:
    """An expression inside an expression is the first step; what finds nothing ends the way."""
    text = HEAD + "kinds:\n  - fields: {process.args_count: count(arguments(line.HostApplication(Context)))}\n"
    (item,) = parse(text, "m.yml").product({}).fields["process.args_count"]
    assert item.natives == ("Context",)
    assert item.convert("HostName=x\nHostApplication=a.exe /b") == 2
    assert item.convert("HostName=x") is None


@pytest.mark.parametrize("spec", ["count(arguments(Field)", "lower(Field))", "lower(shout(Field))", "lower()"])
def test_a_broken_step_is_refused(spec: str) -> None:
    """Brackets must close, and each step must be known."""
    with pytest.raises(ConfigError, match=r"expected Field|unknown transform shout"):
        parse(HEAD + f"kinds:\n  - fields:\n      user.name: {spec}\n", "m.yml")


def test_layers_hold_only_for_their_identity() -> None:
    """Other events keep what holds for all."""
    mapping = layered()
    assert mapping.product({"id": "8"}).renames["B"] == "process.executable"
    assert not mapping.declares({"id": "8"})


def products(mapping: MappingFile) -> list[tuple[Kind, dict[str, str]]]:
    """Return kind and renames for every combination of identity that the mapping's layers speak of."""
    wholes = [
        dict(zip(layer.when, values, strict=True))
        for layer in mapping.layers
        for values in zip(*(sorted(values) for values in layer.when.values()), strict=False)
    ]
    found = []
    for identity in wholes:
        product = mapping.product(identity)
        constants = {name: values[0] for name, values in product.constants.items()}
        constants |= {mapping.identity[native]: value for native, value in identity.items() if mapping.identity[native]}
        found.append((Kind(mapping.name, tuple(sorted(constants.items()))), dict(product.renames)))
    return found


@pytest.mark.parametrize("mapping", shipped(), ids=lambda mapping: mapping.name)
def test_equal_kinds_have_equal_renames(mapping: MappingFile) -> None:
    """A rule engine keeps one view for a kind: two products that make equal kinds must name columns alike."""
    seen: dict[Kind, dict[str, str]] = {}
    for kind, renames in products(mapping):
        assert seen.setdefault(kind, renames) == renames


@pytest.mark.parametrize("mapping", shipped(), ids=lambda mapping: mapping.name)
def test_renames_keep_the_native_value(mapping: MappingFile) -> None:
    """The column that a rename points to holds the native field itself, so that rules see what the source wrote."""
    for layer in mapping.layers:
        for identity in [{native: min(values) for native, values in layer.when.items()}]:
            product = mapping.product(identity)
            for native, name in {**mapping.identity, **layer.renames}.items():
                if name and product.renames.get(native) == name:
                    assert [(item.native, item.moves) for item in product.fields[name]] == [(native, True)]


@pytest.mark.parametrize("mapping", shipped(), ids=lambda mapping: mapping.name)
def test_mapped_fields_are_ecs_or_the_vendors(mapping: MappingFile) -> None:
    """Every ECS name that a mapping writes is in the catalogue, or lies under a vendor's root."""
    shared = ("winlog.", "sysmon.", "endpoint.", "aws.", "gcp.", "system.auth.", "powershell.", "nginx.", "apache.")
    shared += AUDITD
    vendors = (mapping.prefix.partition(".")[0] + ".", *shared) if mapping.prefix else shared
    names = {name for layer in mapping.layers for name in (*layer.fields, *layer.constants, *layer.renames.values())}
    assert not [name for name in names if name not in catalogue().fields and not name.startswith(vendors)]


def test_catalogue_facts() -> None:
    """The catalogue knows types, lists and allowed values."""
    fields = catalogue().fields
    assert (fields["process.pid"].type, fields["process.args"].array) == ("long", True)
    assert catalogue().allowed["event.outcome"] == {"success", "failure", "unknown"}
    assert len(fields) > 2_500


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("account", "DOM\\bob", "bob"),
        ("domain", "bob", None),
        ("basename", "C:\\a\\b.exe", "b.exe"),
        ("basename", "/usr/bin/ls", "ls"),
        ("extension", "C:\\a\\b.tar.GZ", "GZ"),
        ("directory", "C:\\a\\b.exe", "C:\\a"),
        ("integer", "0x1f", 31),
        ("ip", "::ffff:192.0.2.1", "192.0.2.1"),
        ("ip", "fe80::1%eth0", "fe80::1"),
        ("ip", "075.050.255.67", None),
        ("host", "192.0.2.1", None),
        ("port", "0", None),
        ("arguments", 'a "b c"d  e', ["a", "b cd", "e"]),
        ("addresses", "type:  5 x.example;::ffff:192.0.2.1;", ["192.0.2.1"]),
        ("url_extension", "/a.b/c?x=.d", None),
        ("registry_hive", "HKLM\\Software\\X", "HKLM"),
        ("registry_key", "HKLM\\Software\\X", "Software\\X"),
        ("list", "a, b,,c", ["a", "b", "c"]),
        ("http_outcome", "302", "success"),
    ],
)
def test_transforms(name: str, raw: object, expected: object) -> None:
    """What each transform makes of a value."""
    assert PLAIN[name](raw) == expected
