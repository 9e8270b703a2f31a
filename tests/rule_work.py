"""A folder of rules and logs, and the commands of `vedette rules` that work on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import cli

RULE_ID = "11111111-1111-4111-8111-111111111111"
OTHER_ID = "22222222-2222-4222-8222-222222222222"
Shell = Callable[..., tuple[int, str, str]]


def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> Shell:
    """Return a function that runs `vedette rules ...`: exit code, standard output, standard error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("VEDETTE_BOOTSTRAP", str(home / "bootstrap.yml"))
    registered = {name: list(getattr(cli.app, name)) for name in ("registered_groups", "registered_commands")}
    # `main` is called once in a process: it adds to them what other rooms bring

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["vedette", "rules", *map(str, words)])
        for name, own in registered.items():
            monkeypatch.setattr(cli.app, name, list(own))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return run


def rule(detection: str, id: str = RULE_ID, title: str = "A rule", **more: str) -> str:
    """Return a rule with nothing to complain of."""
    said = {"logsource": "{product: windows, category: process_creation}", "level": "high", **more}
    extra = "".join(f"{name}: {value}\n" for name, value in said.items())
    return f"title: {title}\nid: {id}\ndescription: What it finds.\n{extra}detection:\n  {detection}\n"


def process(command: str, **more: Any) -> dict[str, Any]:
    """Return a started process, as Sysmon tells it."""
    return {"EventID": 1, "Channel": "Microsoft-Windows-Sysmon/Operational", "Hostname": "host1",
            "EventTime": "2024-05-05 10:00:00", "Image": "C:\\a.exe", "CommandLine": command, **more}  # fmt: skip


def write_log(file: Path, *events: dict[str, Any]) -> Path:
    """Write *events*, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return file
