"""The demo's set-up: two people with keys, a model that one signs, a configuration that the other approves.

Their keys live as long as this process: nobody signs anything for them afterwards.
"""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import yaml

from agent import artifact
from agent.config.revision import ENVELOPE, FILE, PAYLOAD_TYPE
from agent.model import SECOND
from agent.trust import dsse, keys, oms

MODEL = "ssh-logins-by-address"
BUDGET = 1.0
"""Alerts a day that the demo's model may raise."""


class SetUp:
    """A machine in *folder* that reads *logs*."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.bootstrap = folder / "bootstrap.yml"
        self._folder = folder
        self._admin, self._scientist = keys.generate(), keys.generate()
        self._text = _shipped("own_logs.yml").replace("{logs}", str(logs.resolve()))
        root = {"alex": {"roles": ["admin"], "key": keys.to_pem(self._admin.public_key()).decode()}}
        self.bootstrap.write_text(yaml.safe_dump({"data": "data", "trust_root": root}))

    def train(self, history: Path) -> str:
        """Train the demo's model on the logs in *history*, sign it, name it in the configuration; return its name."""
        from agent.science.inputs import Logs, load
        from agent.science.train import Options, train

        recipe = self._folder / "recipe.yml"
        recipe.write_text(_shipped("recipe.yml"))
        options = Options(
            title="SSH logins from an address that are unlike all others",
            source="the demo's history",
            command="vedette demo",
            by="dana",
            now=int(time.time()) * SECOND,
            techniques=("T1110.003",),
        )
        made = train(load(recipe), Logs([history]), options)
        signature = oms.sign(made, MODEL, self._scientist)
        signed = oms.verify(made, signature, [self._scientist.public_key()])
        artifact.write(self._folder / "models" / MODEL, {**made, oms.SIGNATURE: signature})
        scientist = {"roles": ["data-scientist"], "key": keys.to_pem(self._scientist.public_key()).decode()}
        sections = {
            "models": {
                MODEL: {
                    "path": f"models/{MODEL}",
                    "digest": f"sha256:{signed.digest}",
                    "streams": ["company"],
                    "budget": BUDGET,
                }
            },
            "access": {"principals": {"dana": scientist}},
        }
        logs = str((self._folder / "logs").resolve())
        self._text = _shipped("vedette.yml").replace("{logs}", logs) + "\n" + yaml.safe_dump(sections, sort_keys=False)
        return MODEL

    def approve(self) -> None:
        """Write the configuration and sign it as the admin."""
        text = f"revision: 1\n{self._text}".encode()
        (self._folder / FILE).write_bytes(text)
        (self._folder / ENVELOPE).write_bytes(dsse.sign(text, PAYLOAD_TYPE, self._admin))


def _shipped(name: str) -> str:
    return files("agent.demo").joinpath(name).read_text("utf-8")
