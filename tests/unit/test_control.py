"""Who asks the daemon is what the kernel says, whatever the request says."""

from __future__ import annotations

import pwd
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.control import NAME, Control, ask


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


def test_where_the_socket_lies_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the file may ask at once; one that a dead daemon has left is replaced."""
    (tmp_path / NAME).touch()
    seen = []

    class Slow(socket.socket):
        def listen(self, *backlog: Any) -> None:
            seen.append((tmp_path / NAME).is_socket())
            super().listen(*backlog)

    monkeypatch.setattr("agent.control.socket.socket", Slow)
    control = Control(tmp_path, lambda request: {"did": request["do"]})
    try:
        assert ask(tmp_path, {"do": "status"}) == {"did": "status"}
        assert seen == [False]
        assert [one.name for one in tmp_path.iterdir()] == [NAME]
    finally:
        control.close()
    assert ask(tmp_path, {"do": "status"}) is None
