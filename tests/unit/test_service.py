"""What the daemon does beside its streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import service as service_module
from agent.config import Bootstrap
from agent.errors import RetryableError
from agent.service import Service
from agent.store import Store
from agent.trust.manifest import Manifest
from tests.artifacts import manifest
from tests.signing import pem


class _Workers:
    """One stream with one model; its thread cannot store anything the first time that it is asked."""

    def __init__(self, model: Any) -> None:
        stream = SimpleNamespace(id="main", cursor=None)
        self.runners = [SimpleNamespace(stream=stream, models=[model], expired=[])]
        sections = {model.id: SimpleNamespace(on_expiry="warn")}
        self.accepted = SimpleNamespace(configuration=SimpleNamespace(models=sections))
        self.answers: list[Exception | bool] = [RetryableError("no space left"), False, True]
        self.asked = 0

    def on_stream(self, _runner: Any, _work: Callable[[], bool]) -> bool:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wake(self) -> None: ...


def test_the_alert_about_an_expired_model_is_raised_until_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a stream that has not read yet puts it off; once stored it is raised no more, and said once."""
    root = {"root": {"roles": ["admin"], "key": pem("root")}}
    service = Service(Bootstrap.model_validate({"data": tmp_path, "trust_root": root}))
    past = Manifest.model_validate(manifest(not_before="2026-01-01T00:00:00Z", not_after="2026-01-02T00:00:00Z"))
    workers: Any = _Workers(SimpleNamespace(id="logons", manifest=past))
    monkeypatch.setattr(service, "_workers", workers, raising=False)
    said: list[str] = []
    monkeypatch.setattr(service_module, "log", SimpleNamespace(warning=lambda event, **_: said.append(event)))
    store = Store(tmp_path)
    monkeypatch.setattr(service, "_store", store, raising=False)
    try:
        for _ in range(5):
            service._watch_expiry()
    finally:
        store.close()
    assert workers.asked == 3
    assert said.count("model expiry") == 1
    assert workers.runners[0].expired == ["logons"]
