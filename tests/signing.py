"""Signed configurations for tests: what a person does with `vedette init` and `vedette config sign`, in one call."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from agent.config import Bootstrap, load_bootstrap
from agent.config.revision import ENVELOPE, FILE, PAYLOAD_TYPE
from agent.trust import dsse, keys
from agent.trust.keys import PrivateKey
from rules.detector import place
from rules.sigma.documents import content_digest, read_files

NAME = "tester"


@cache
def key(name: str = NAME) -> PrivateKey:
    """Return the signing key of *name*, the same all over this process."""
    return keys.generate()


def pem(name: str = NAME) -> str:
    return keys.to_pem(key(name).public_key()).decode()


def signed(config: Path, data: Path) -> Path:
    """Sign what *config* says for a daemon over *data*; return its bootstrap file.

    The signed form lies beside *data*: numbered one up whenever it says something new, and with the digests of its
    rules.
    """
    folder = data.with_name(data.name + ".signed")
    folder.mkdir(parents=True, exist_ok=True)
    bootstrap = folder / "bootstrap.yml"
    if not bootstrap.exists():
        root = {NAME: {"roles": ["admin"], "key": pem()}}
        bootstrap.write_text(yaml.safe_dump({"data": str(data.resolve()), "trust_root": root}))
    written = yaml.safe_load(config.read_text())
    for section in written["detectors"].values():
        if section["type"] == "sigma" and section["path"] != "builtin":
            section.setdefault("digest", content_digest(read_files(place(section["path"]))))
    before = folder / "before.json"
    last, revision = json.loads(before.read_text()) if before.exists() else (None, 0)
    if written != last:
        revision += 1
        before.write_text(json.dumps([written, revision]))
        write(folder, {"revision": revision, **written})
    return bootstrap


def loaded(config: Path, data: Path) -> Bootstrap:
    """Sign as `signed` does and return the bootstrap itself, for a service in this process."""
    return load_bootstrap(signed(config, data))


def write(folder: Path, configuration: dict[str, Any], *names: str) -> None:
    """Write *configuration* into *folder*, signed by *names* (the tester, if there are none)."""
    text = yaml.safe_dump(configuration, sort_keys=False).encode()
    (folder / FILE).write_bytes(text)
    (folder / ENVELOPE).write_bytes(dsse.sign(text, PAYLOAD_TYPE, *(key(name) for name in names or (NAME,))))
