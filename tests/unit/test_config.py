"""The configuration: every key known, every error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import load
from agent.errors import ConfigError

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
        ("    source: auth", "    source: !!python/name:os.system x", 7, "not YAML"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    """What is wrong is said with the place where it stands."""
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{path}:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """No file, no stack trace."""
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / "none.yml")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """The reader is bounded."""
    with pytest.raises(ConfigError, match="at most"):
        load(write(tmp_path, "#" * (2 << 20)))
