"""Print the CycloneDX bill of materials of the environment that runs this.

Read from the metadata of what is installed, so it names what is there and not what was meant to be. Standard input is
pip's report of the installation: it has the digest of each archive that was unpacked, as the lock file allows it.
The same environment and SOURCE_DATE_EPOCH give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, uuid5

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SPEC = "1.6"
APPLICATION = "vedette"


def bill(found: Mapping[str, Distribution], digests: Mapping[str, str], made: datetime) -> dict[str, Any]:
    """Return the bill of *found*, made at *made*; *digests* are SHA-256 of archives by name."""
    components = {name: component(name, one, digests.get(name)) for name, one in found.items()}
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": components[APPLICATION] | {"type": "application"},
        },
        "components": [one for name, one in components.items() if name != APPLICATION],
        "dependencies": [
            {"ref": purl(name, one), "dependsOn": [purl(needed, found[needed]) for needed in needs(one, found)]}
            for name, one in found.items()
        ],
    }
    serial = uuid5(NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {"$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json", "serialNumber": serial.urn, **content}


def component(name: str, one: Distribution, digest: str | None) -> dict[str, Any]:
    licence = one.metadata["License-Expression"]
    classified = [text.rpartition(" :: ")[2] for text in one.metadata.get_all("Classifier", []) if "License ::" in text]
    named = classified or [(one.metadata["License"] or "").partition("\n")[0]]
    return {
        "type": "library",
        "bom-ref": purl(name, one),
        "name": name,
        "version": one.version,
        "description": one.metadata["Summary"] or "",
        "licenses": [{"expression": licence}] if licence else [{"license": {"name": text}} for text in named if text],
        "purl": purl(name, one),
        **({"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {}),
    }


def purl(name: str, one: Distribution) -> str:
    return f"pkg:{'generic' if name == APPLICATION else 'pypi'}/{name}@{one.version}"


def needs(one: Distribution, found: Mapping[str, Distribution]) -> list[str]:
    """Return the names of what *one* requires here."""
    wanted = (Requirement(text) for text in one.requires or ())
    here = {canonicalize_name(each.name) for each in wanted if not each.marker or each.marker.evaluate({"extra": ""})}
    return sorted(here & found.keys())


def digest_of(archive: dict[str, Any]) -> str:
    """Return the SHA-256 of *archive*, which pip notes unless it is a file of this machine."""
    if hashes := archive["archive_info"].get("hashes"):
        return str(hashes["sha256"])
    return hashlib.sha256(Path(unquote(urlsplit(archive["url"]).path)).read_bytes()).hexdigest()


if __name__ == "__main__":
    everything: dict[str, Distribution] = {canonicalize_name(one.name): one for one in distributions()}
    archives: dict[str, str] = {
        canonicalize_name(one["metadata"]["name"]): digest_of(one["download_info"])
        for one in json.load(sys.stdin)["install"]
    }
    made = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    print(json.dumps(bill(dict(sorted(everything.items())), archives, made), indent=1))
