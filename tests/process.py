"""The real `vedette run`, started, watched and ended as a user or a service manager does it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.signing import signed

VEDETTE = [sys.executable, "-m", "agent"]


class Process:
    """The daemon of a folder: its `vedette.yml`, its `log`, and its data in `data`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.config = folder / "vedette.yml"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def ready(self) -> bool:
        """Whether what was launched last is past its start-up."""
        return (self.data / "vedette.sock").exists()

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        (self.data / "vedette.sock").unlink(missing_ok=True)
        command = [*VEDETTE, "run", *options, "-b", str(signed(self.config, self.data))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self.process

    def start(self) -> None:
        """Launch it and wait until it is ready."""
        self.launch()
        self.until(lambda: self.ready)

    def until(self, holds: Callable[[], object], seconds: float = 40.0) -> None:
        """Wait until *holds*; AssertionError if the daemon ends before, or if it takes longer than *seconds*."""
        end = time.monotonic() + seconds
        while not holds():
            assert self.process is None or self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def end(self, number: int) -> int:
        """Send it a signal; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def stop(self) -> None:
        """End it in order; AssertionError if it does not."""
        code = self.end(signal.SIGTERM)
        assert code == 0, f"SIGTERM ended it with {code}:\n{self.log}"
        self.process = None

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
