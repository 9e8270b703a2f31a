"""Roles and permissions as a plain table, and the one question that is asked of it: may these signers do this?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field

from agent.errors import AccessDenied
from agent.trust.keys import PublicKey

Role: TypeAlias = Literal[
    "viewer", "analyst", "detection-engineer", "data-scientist", "ml-engineer", "operator", "auditor", "admin"
]
ROLES: tuple[str, ...] = get_args(Role)
"""Viewer and auditor change nothing: they are named so that who holds them can be seen and counted."""
ARTIFACTS = "artifacts"
"""The permission to sign a model artifact."""
PACKS = "packs"
"""The permission to sign a pack of rules. All others are named after the section that they let change."""


class Permission(BaseModel):
    """Who may do one thing: holders of any of *roles*, so many different principals of them together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: tuple[Role, ...] = Field(min_length=1)
    approvals: int = Field(default=1, ge=1, le=16)


def _rows(rows: Mapping[str, str]) -> Mapping[str, Permission]:
    return {
        name: Permission.model_validate({"roles": [*roles.split(), "admin"] if roles else ["admin"]})
        for name, roles in rows.items()
    }


PERMISSIONS: Mapping[str, Permission] = _rows(
    {
        "tenant": "",
        "sources": "operator",
        "streams": "operator",
        "sinks": "operator",
        "dead_letters": "operator",
        "detectors": "detection-engineer",
        "filters": "detection-engineer",
        "alerts": "detection-engineer",
        "enrichments": "detection-engineer",
        "exceptions": "detection-engineer analyst",
        "maintenance": "detection-engineer analyst operator",
        "models": "ml-engineer",
        "audit": "",
        "access": "",
        ARTIFACTS: "data-scientist ml-engineer",
        PACKS: "detection-engineer",
    }
)
"""What holds where the configuration has no row of its own in `access.permissions`."""


@dataclass(frozen=True)
class Principal:
    """Somebody with a key. *root*: named by the trust root of this machine, not by the configuration."""

    name: str
    roles: frozenset[str]
    key_id: str
    key: PublicKey
    root: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(sorted(self.roles)) or 'no role'})"


class Policy:
    """The principals by key id and the permissions that are in force.

    Keys in *revoked* count for nothing, but for those of the trust root: it is not for a configuration to end them.
    """

    def __init__(
        self,
        principals: Iterable[Principal],
        permissions: Mapping[str, Permission] | None = None,
        revoked: Collection[str] = (),
    ) -> None:
        self.principals = {one.key_id: one for one in principals if one.root or one.key_id not in revoked}
        self.permissions = {**PERMISSIONS, **(permissions or {})}
        self.revoked = frozenset(revoked)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(one.name for one in self.principals.values())

    def keys_for(self, permission: str) -> dict[str, PublicKey]:
        """Return the keys, by id, whose holders have *permission*."""
        return {id: one.key for id, one in self.principals.items() if self._holds(one, permission)}

    def authorise(self, what: str, permission: str, signers: Collection[str]) -> tuple[str, ...]:
        """Return the names of the *signers* (key ids) who stand for *what*; AccessDenied if they are not enough."""
        wanted = self.permissions[permission]
        known = sorted((self.principals[id] for id in signers if id in self.principals), key=str)
        approving = sorted({one.name for one in known if self._holds(one, permission)})
        if len(approving) >= wanted.approvals:
            return tuple(approving)
        signed = ", ".join(map(str, known)) or "nobody known here"
        able = ", ".join(map(str, self._able(permission))) or "nobody: the trust root has to name somebody"
        raise AccessDenied(
            f"{what}: takes {wanted.approvals} of {', '.join(wanted.roles)}; signed by {signed}, of whom"
            f" {len(approving)} may (permission {permission}). Who may: {able}"
        )

    def _able(self, permission: str) -> list[Principal]:
        return sorted((one for one in self.principals.values() if self._holds(one, permission)), key=lambda x: x.name)

    def _holds(self, principal: Principal, permission: str) -> bool:
        return not principal.roles.isdisjoint(self.permissions[permission].roles)
