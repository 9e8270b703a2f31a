"""Secrets are found where the configuration says, and never stand in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from connectors import ndjson
from connectors._options import read_secret
from connectors.siem import elasticsearch


def test_a_secret_is_read_from_a_file_the_environment_or_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "siem").write_text("s3cret\n")
    monkeypatch.setenv("SIEM", "s3cret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for reference in (f"file:{tmp_path}/siem", "env:SIEM", "credential:siem"):
        assert read_secret(reference) == "s3cret"


@pytest.mark.parametrize("reference", ["file:/nowhere", "env:NOT_THERE", "credential:siem"])
def test_a_secret_that_is_not_there_is_said_with_its_place(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=reference.partition(":")[2]):
        read_secret(reference)


def test_a_secret_written_out_is_refused_and_not_repeated() -> None:
    assert elasticsearch.source is not None
    options = {"hosts": ["https://localhost:9200"], "indices": ["logs-*"], "username": "u", "password": "hunter22"}
    with pytest.raises(ConfigError, match="expected where the secret is") as caught:
        elasticsearch.source("siem", options)
    assert "hunter22" not in str(caught.value)


def test_an_option_that_nobody_knows_is_said_in_our_words() -> None:
    assert ndjson.connector.sink is not None
    with pytest.raises(ConfigError, match="sink out: paht: unknown key"):
        ndjson.connector.sink("out", {"path": "x", "paht": "x"})
