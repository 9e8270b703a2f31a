"""ATT&CK names: from the ids on a rule to the `threat.*` fields of ECS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

_RENAMED = {"stealth": "TA0005"}
"""ATT&CK 19 renamed Defense Evasion and took TA0112 out of it; the catalogue is older, rules use either."""
_SITE = "https://attack.mitre.org"


@cache
def catalogue() -> dict[str, tuple[tuple[str, ...], str]]:
    """Return id -> (tactic short names, name) for every tactic and every technique in force."""
    text = files("agent.alerting").joinpath("attack.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {id: (tuple(tactics.split(",")), name) for id, tactics, name in rows}


@cache
def _tactic_ids() -> dict[str, str]:
    return _RENAMED | {tactics[0]: id for id, (tactics, _) in catalogue().items() if id.startswith("TA")}


def threat(techniques: Sequence[str], tactics: Sequence[str]) -> dict[str, Any]:
    """Return the `threat` object for technique ids (``T1003.001``) and tactics (short names or ids); {} for none.

    An id that the catalogue lacks is kept without a name. Tactics that are not named come from the techniques.
    """
    named = [_tactic_ids().get(tactic, tactic) for tactic in tactics]
    if not named:
        shorts = (short for technique in techniques for short in catalogue().get(technique, ((), ""))[0])
        named = [_tactic_ids()[short] for short in shorts]
    parents = [technique for technique in techniques if "." not in technique]
    subs = [technique for technique in techniques if "." in technique]
    parents += [sub.partition(".")[0] for sub in subs]
    found: dict[str, Any] = {}
    if named:
        found["tactic"] = _objects(named, "tactics")
    if parents:
        found["technique"] = _objects(parents, "techniques")
    if subs:
        found.setdefault("technique", {})["subtechnique"] = _objects(subs, "techniques")
    return {"framework": "MITRE ATT&CK", **found} if found else {}


def _objects(ids: Sequence[str], folder: str) -> dict[str, list[str]]:
    """Return ECS's parallel lists of ids, names and references, without repeats."""
    unique = list(dict.fromkeys(ids))
    return {
        "id": unique,
        "name": [catalogue().get(id, ((), id))[1] for id in unique],
        "reference": [f"{_SITE}/{folder}/{id.replace('.', '/')}/" for id in unique],
    }
