"""Asking the running daemon: one JSON line each way over a Unix socket in the data folder, for its owner only.

The daemon holds the store's only writing connection, so commands that change something are done by it.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from agent.errors import AccessDenied, ConfigError, RetryableError, TrustError, VedetteError

NAME = "vedette.sock"
_FRESH = f"{NAME}.new"
_MAX_REQUEST = 1 << 20
_TIMEOUT_S = 60.0

_KINDS: Mapping[str, type[VedetteError]] = {one.__name__: one for one in (AccessDenied, ConfigError, TrustError)}
"""Refusals that whoever asked tells apart, by exit code at least."""

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Control:
    """The daemon's side: answers one request at a time with *handle*, whose errors become ``{"error": …}``.

    Who asks (*by*) is what the kernel says of the other side; only root may speak for somebody else.
    """

    def __init__(self, folder: Path, handle: Handler) -> None:
        self._handle = handle
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(FileNotFoundError):
            os.unlink(_FRESH, dir_fd=self._folder)
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._socket.bind(f"/proc/self/fd/{self._folder}/{_FRESH}")  # no limit on the folder's own length
        finally:
            os.umask(before)
        self._socket.listen(8)
        os.rename(_FRESH, NAME, src_dir_fd=self._folder, dst_dir_fd=self._folder)  # where it lies, it answers
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def close(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(NAME, dir_fd=self._folder)
        self._socket.close()
        os.close(self._folder)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.settimeout(_TIMEOUT_S)
                _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                peer.sendall(self._answer(_read_line(peer), uid) + b"\n")

    def _answer(self, line: bytes, uid: int) -> bytes:
        try:
            request = orjson.loads(line)
            by = str(request.get("by") or "") if uid == 0 else ""
            return orjson.dumps(self._handle({**request, "by": by or _name(uid)}))
        except (VedetteError, orjson.JSONDecodeError) as error:
            return orjson.dumps({"error": str(error), "kind": type(error).__name__})
        except Exception as error:  # a fault of ours: whoever asks is told, and the next one is answered
            import structlog  # not before: a command that only asks has no use for it

            structlog.get_logger().exception("command failed")
            return orjson.dumps({"error": f"{type(error).__name__}: {error}; see the daemon's log", "kind": ""})


def ask(folder: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the running daemon's answer, or None if none runs there; its refusal is raised."""
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise ConfigError(f"{folder} is closed to {login()}: ask as the service's user, or as root") from None
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(f"/proc/self/fd/{place}/{NAME}")
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        finally:
            os.close(place)
        peer.settimeout(_TIMEOUT_S)
        try:
            peer.sendall(orjson.dumps(request) + b"\n")
            answer: dict[str, Any] = orjson.loads(_read_line(peer))
        except (OSError, orjson.JSONDecodeError):
            raise RetryableError(f"the daemon over {folder} did not answer; see its log") from None
    if "error" in answer:
        raise _KINDS.get(answer["kind"], VedetteError)(answer["error"])
    return answer


def login() -> str:
    """Return who is at work, behind sudo too."""
    return os.environ.get("SUDO_USER") or _name(os.geteuid())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _read_line(peer: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= _MAX_REQUEST:
        part = peer.recv(65_536)
        if not part:
            break
        data += part
    return data
