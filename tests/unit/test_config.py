"""The configuration: every key known, every error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agent.config import Bootstrap, Files, load, load_bootstrap, root_of
from agent.config.model import PrincipalConfig
from agent.config.revision import assumed
from agent.errors import ConfigError
from tests.signing import pem

GOOD = """\
sources:
  auth: {type: files, paths: [/var/log/auth.log], follow: true}
detectors:
  rules: {type: sigma, path: rules/content}
streams:
  main:
    source: auth
    detectors: [rules]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "vedette.yml"
    path.write_text(text)
    return path


def test_a_good_file_is_read_with_plugin_options_as_they_stand(tmp_path: Path) -> None:
    """A plug-in's own keys are kept for the plug-in."""
    configuration, locator = load(write(tmp_path, GOOD))
    assert configuration.sources["auth"].options == {"paths": ["/var/log/auth.log"], "follow": True}
    assert configuration.streams["main"].batch == 8192
    assert locator("streams", "main", "source") == f"{tmp_path}/vedette.yml:7"


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("    source: auth", "    sauce: auth", 7, "sauce: unknown key"),
        ("source: auth", "source: oath", 7, "no 'oath'; there is: auth"),
        ("[rules]", "[rules, nope]", 8, "no 'nope'"),
        ("sources:", "sources: {}\nx:", 1, "sources"),
        ("  main:", "  Main:", 6, "streams.Main"),
        ("    detectors: [rules]", "    detectors: [rules]\n    detectors: [rules]", 9, "'detectors' stands twice"),
        ("    source: auth", "    batch: 0\n    source: auth", 7, "batch"),
        ("    source: auth", "    source: [auth", 8, "not YAML"),
        ("    detectors: [rules]", "    detectors: &a [rules]\n    sinks: *a", 9, "aliases"),
        ("    source: auth", "    source: !!python/name:os.system x", 7, "tags are not read"),
        ("    source: auth", "    source: !!bool foo", 7, "tags are not read"),
        ("    source: auth", "    source: 2026-01-01", 7, "a timestamp is not read here"),
        ("    source: auth", "    ? [a]\n    : b", 7, "expected a name as key"),
        ("    source: auth", "    1: b", 7, "expected a name as key"),
        ("    source: auth", "    source: 0b_", 7, "no plain value"),
        ("    source: auth", "    ? {a: b}\n    : c", 7, "expected a name as key"),
        ("    source: auth", "    batch: .inf", 7, "finite"),
        ("    source: auth", "    batch: .nan", 7, "finite"),
        ("    source: auth", "    batch: 99999999999999999999", 7, "64-bit"),
        ("    source: auth", "    batch: 1" + ":0" * 400 + ".5", 7, "too large"),
        ("    source: auth", '    source: "\\ud800"', 7, "surrogates"),
        ("    source: auth", '    source: "\\UFFFFFFFF"', 7, "too large"),
        ("    source: auth", "    source: a\0", 7, "special characters"),
        ("    source: auth", "    source: " + "[" * 3000, 7, "deeper than"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    """What is wrong is said with the place where it stands."""
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{path}:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_bytes_that_are_no_text_are_said_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.write_bytes(GOOD.encode() + b"x: \xc3(\n")
    with pytest.raises(ConfigError, match=rf"{path}:9: not YAML: expected UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("principals", "says"),
    [
        ({"ana": "no key"}, r"access\.principals\.ana\.key: public key: expected"),
        ({"ana": pem("ana"), "bob": pem("ana")}, "bob and ana have the same key"),
        ({"ana": pem("root")}, "ana and root have the same key"),
    ],
)
def test_a_key_that_is_wrong_is_said_with_its_line(tmp_path: Path, principals: dict[str, str], says: str) -> None:
    named = {name: {"roles": ["operator"], "key": key} for name, key in principals.items()}
    text = GOOD + yaml.safe_dump({"access": {"principals": named}}, sort_keys=False)
    line = 1 + max(number for number, line in enumerate(text.splitlines()) if "key:" in line)
    root = root_of(Bootstrap(data=tmp_path, trust_root={"root": PrincipalConfig(roles=["admin"], key=pem("root"))}))
    with pytest.raises(ConfigError, match=says) as caught:
        assumed(Files(tmp_path, text.encode(), b""), root)
    assert str(caught.value).startswith(f"{tmp_path}/vedette.yml:{line}: ")


def test_a_key_of_two_in_the_trust_root_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.yml"
    twins = {name: {"roles": ["admin"], "key": pem("ana")} for name in ("ana", "bob")}
    path.write_text(yaml.safe_dump({"data": "data", "trust_root": twins}, sort_keys=False))
    with pytest.raises(ConfigError, match=rf"{path}:2: trust_root: ana and bob have the same key"):
        load_bootstrap(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """No file, no stack trace."""
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / "none.yml")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """The reader is bounded."""
    with pytest.raises(ConfigError, match="at most"):
        load(write(tmp_path, "#" * (2 << 20)))
