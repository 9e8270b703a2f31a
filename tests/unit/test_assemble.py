"""What streams of one configuration have in common."""

from __future__ import annotations

import weakref
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import assemble
from agent.alerting.enrich import Table
from agent.assemble import build_enrichment
from agent.config.model import EnrichmentConfig
from agent.errors import TrustError

TABLE = b"user,team\nalice,blue\n"


def test_streams_share_a_table_as_long_as_one_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes seconds and hundreds of megabytes; yet its file is looked at for each."""
    made: weakref.WeakSet[Table] = weakref.WeakSet()

    class Noted(Table):
        def __init__(self, *terms: Any) -> None:
            super().__init__(*terms)
            made.add(self)

    monkeypatch.setattr(assemble, "Table", Noted)
    file = tmp_path / "people.csv"
    file.write_bytes(TABLE)
    digest = f"sha256:{sha256(TABLE).hexdigest()}"
    section = EnrichmentConfig(path="people.csv", digest=digest, key="user", match=["user.name"])
    accepted: Any = SimpleNamespace(
        configuration=SimpleNamespace(enrichments={"people": section}),
        files=SimpleNamespace(folder=tmp_path),
        locator=lambda *_: "vedette.yml:3",
    )
    one, other = build_enrichment(accepted), build_enrichment(accepted)
    for enrich in (one, other):
        document: dict[str, Any] = {"user": {"name": "alice"}, "vedette": {}}
        enrich(document, 0)
        assert document["vedette"]["enrichment"][0]["row"]["team"] == "blue"
    assert len(made) == 1
    file.write_bytes(TABLE.replace(b"blue", b"red"))
    with pytest.raises(TrustError, match="expected the table"):
        build_enrichment(accepted)
    del one, other, enrich
    assert not made, "nothing is held that no stream uses"
