"""A machine with a trust root, principals and a daemon, as `vedette init` and its successors leave one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from agent.control import ask
from agent.store import Reader
from rules.sigma.documents import content_digest, read_files
from tests.process import VEDETTE, Process
from tests.signing import pem, write

LINE = "2026-03-01T10:00:{0:02d}.000000+00:00 web1 sshd[7{0}]: Failed password for root from 192.0.2.9 port 5022 ssh2\n"
RULE_ID = "6e0f7a52-8d5e-4ac4-9a53-0f1f6a6a0b11"
RULE = f"""
title: Failed password
id: {RULE_ID}
level: high
logsource: {{product: linux, service: sshd}}
detection: {{selection: {{event.outcome: failure}}, condition: selection}}
"""
"""It hits each `LINE`."""


class Site(Process):
    """A machine with a trust root, three more principals, and a daemon that follows a log."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bootstrap = folder / "bootstrap.yml"
        root = {"root": {"roles": ["admin"], "key": pem("root")}}
        self.bootstrap.write_text(yaml.safe_dump({"data": "data", "trust_root": root}))
        (folder / "logs").mkdir()
        rules = folder / "rules"
        rules.mkdir()
        (rules / "rule.yml").write_text(RULE)
        digest = content_digest(read_files(rules))
        self.log_line(0)
        self.configuration: dict[str, Any] = {
            "revision": 1,
            "sources": {"logs": {"type": "files", "paths": [str(folder / "logs")], "follow": True}},
            "detectors": {"rules": {"type": "sigma", "path": str(rules), "digest": digest}},
            "sinks": {"out": {"type": "ndjson", "path": str(folder / "out.ndjson")}},
            "streams": {"main": {"source": "logs", "detectors": ["rules"], "sinks": ["out"]}},
            "access": {
                "principals": {
                    "ana": {"roles": ["operator"], "key": pem("ana")},
                    "dex": {"roles": ["detection-engineer"], "key": pem("dex")},
                }
            },
        }
        self.sign("root")

    def log_line(self, number: int) -> None:
        with (self.folder / "logs" / "auth.log").open("a") as log:
            log.write(LINE.format(number))

    def sign(self, *names: str, **sections: Any) -> None:
        """Change sections, under the next number if there are any, and sign the whole as *names*."""
        if sections:
            self.configuration |= {"revision": self.configuration["revision"] + 1, **sections}
        write(self.folder, self.configuration, *names)

    def end_anyhow(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        (self.data / "vedette.sock").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*VEDETTE, "run", "-b", str(self.bootstrap)], stdout=log, stderr=log)
        self.until(lambda: self.ready)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*VEDETTE, *words, "-b", str(self.bootstrap)], capture_output=True, text=True, check=False
        )

    def audited(self, action: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*VEDETTE, "audit", "show", "--json", "--action", action, "-d", str(self.data)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]

    def received(self) -> int:
        """Return how many records the stream has read."""
        with Reader(self.data) as reader:
            return reader.counters("main").get("main", {}).get("received", 0)

    def delivered(self, name: str = "out.ndjson") -> list[str]:
        """Return the ids of the alerts in the file of a sink, in their order."""
        out = self.folder / name
        return [json.loads(line)["event"]["id"] for line in out.read_text().splitlines()] if out.exists() else []

    def status(self, stream: str = "main") -> dict[str, str]:
        """Return how the running daemon says that a stream is."""
        answer = ask(self.data, {"do": "status"})
        assert answer is not None, self.log
        found: dict[str, str] = answer[stream]
        return found
