"""Who asks the daemon is what the kernel says, whatever the request says."""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.control import Control


@pytest.mark.parametrize(
    ("uid", "by"),
    [(0, "kim"), (pwd.getpwnam("nobody").pw_uid, "nobody"), (4_123_456, "uid 4123456")],
    ids=["root speaks for somebody", "a user for itself", "nobody has this number"],
)
def test_only_root_may_speak_for_somebody_else(tmp_path: Path, uid: int, by: str) -> None:
    heard: list[Mapping[str, Any]] = []

    def handle(request: Mapping[str, Any]) -> Mapping[str, Any]:
        heard.append(request)
        return {}

    control = Control(tmp_path, handle)
    try:
        assert control._answer(orjson.dumps({"do": "ack", "by": "kim"}), uid) == b"{}"
        control._answer(orjson.dumps({"do": "ack"}), uid)
    finally:
        control.close()
    assert heard[0]["by"] == by
    assert heard[1]["by"] == ("root" if uid == 0 else by)
