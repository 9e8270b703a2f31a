"""The one law of configuration: what is signed, by whom, and whether they may. Pure but for `Files.read`.

A revision becomes the configuration in this order, and nothing of it runs if one step fails:

1. The envelope verifies with keys of principals in force: those of the revision before, and of the trust root.
2. What was signed is the file, byte for byte; from here on only these bytes are looked at.
3. They are a configuration: every key known, every name defined, every key of a principal a P-256 key of one principal.
4. Its number is above that of the revision before.
5. For each section that it changes, enough of the signers may change that section, by the table in force *before*.
6. Somebody may still change `access` afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agent.access import Policy, Principal
from agent.config.load import Locator, parse, read
from agent.config.model import Bootstrap, Configuration, PrincipalConfig
from agent.errors import ConfigError, TrustError, VedetteError
from agent.trust import dsse, keys

FILE = "vedette.yml"
ENVELOPE = FILE + ".dsse"
PAYLOAD_TYPE = "application/vnd.vedette.configuration+yaml"
_MAX_ENVELOPE = 4 << 20


@dataclass(frozen=True)
class Files:
    """A configuration and its signatures as they lie in *folder*."""

    folder: Path
    text: bytes
    envelope: bytes

    @classmethod
    def read(cls, folder: Path) -> Files:
        """Return what lies in *folder*; ConfigError without a configuration, TrustError without signatures."""
        text, path = read(folder / FILE), folder / ENVELOPE
        if not path.exists():
            raise TrustError(f"{folder / FILE}: not signed: {path} is missing; sign it with 'vedette config sign'")
        envelope = read(path, _MAX_ENVELOPE)
        return cls(folder, text, envelope)


@dataclass(frozen=True)
class Accepted:
    """A configuration that may run: what it says, who signed it, and who of them stands for which changed section."""

    files: Files
    configuration: Configuration
    locator: Locator
    policy: Policy
    signers: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]

    @property
    def revision(self) -> int:
        return self.configuration.revision

    @property
    def digest(self) -> str:
        return digest_of(self.files.text)

    @property
    def trust(self) -> str:
        """``single-user`` until two principals exist."""
        return "single-user" if len(self.policy.names) < 2 else "signed"

    def facts(self) -> dict[str, Any]:
        """Return what an audit record says of it."""
        approved = {section: list(names) for section, names in self.changed.items()}
        return {"revision": self.revision, "digest": self.digest, "signers": list(self.signers),
                "changed": approved, "trust": self.trust}  # fmt: skip


def digest_of(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()


def root_of(bootstrap: Bootstrap) -> list[Principal]:
    """Return the principals that this machine trusts before it has read any configuration."""
    return list(_principals(bootstrap.trust_root, root=True))


def policy_of(configuration: Configuration | None, root: list[Principal], locator: Locator | None = None) -> Policy:
    """Return who may what under *configuration*; before there is one, the trust root and the default table.

    ConfigError, with the place by *locator*, if a key would speak for two.
    """
    if configuration is None:
        return Policy(root)
    access = configuration.access
    named = list(_principals(access.principals, root=False))
    owner = {one.key_id: one.name for one in root}
    for one in named:
        if (other := owner.setdefault(one.key_id, one.name)) != one.name:
            place = locator("access", "principals", one.name, "key") if locator else ""
            raise ConfigError(f"access.principals: {one.name} and {other} have the same key", place)
    return Policy([*named, *root], access.permissions, access.revoked)


def changes(before: Configuration | None, after: Configuration) -> list[str]:
    """Return the sections that differ; without a *before*, all that say something."""
    old = before.section if before else _default
    return [name for name in Configuration.sections() if _bytes(old(name)) != _bytes(after.section(name))]


def recall(kept: Sequence[tuple[int, Files]], root: list[Principal]) -> tuple[Accepted | None, int]:
    """Return the configuration that ran last, and its number. *kept*: all that were accepted, by number, the last last.

    All are verified again, each by the one before it, for what the trust root of today does not stand behind is not
    believed: neither are those whom an older root named. Where the chain breaks it begins anew with what the root
    itself has signed. None if the last one does not verify; its number stays used.
    """
    before: Accepted | None = None
    for number, files in kept:
        try:
            before = accept(files, root, before)
        except VedetteError:
            try:
                before = accept(files, root, None)
            except VedetteError:
                before = None
        if before is not None and before.revision != number:
            before = None
    return before, kept[-1][0] if kept else 0


def assumed(files: Files, root: list[Principal], place: Path | None = None) -> Accepted:
    """Return *files* as if they had been accepted: to look at, never to run."""
    configuration, locator = parse(files.text, place or files.folder / FILE)
    return Accepted(files, configuration, locator, policy_of(configuration, root, locator), (), {})


def accept(files: Files, root: list[Principal], before: Accepted | None, *, above: int = 0) -> Accepted:
    """Return *files* as the configuration that may run after *before*; TrustError, AccessDenied or ConfigError.

    *above*: a number that was used already, though nothing before is known to be good.
    """
    policy = before.policy if before else policy_of(None, root)
    place = files.folder / FILE
    # 1. and 2.
    verified = dsse.verify(files.envelope, PAYLOAD_TYPE, [one.key for one in policy.principals.values()])
    if verified.payload != files.text:
        raise TrustError(
            f"{place}: this is not what was signed: the file has {digest_of(files.text)}, the signatures are over"
            f" {digest_of(verified.payload)}; sign it anew with 'vedette config sign'"
        )
    # 3.
    configuration, locator = parse(verified.payload, place)
    after = policy_of(configuration, root, locator)
    # 4.
    last = max(before.revision if before else 0, above)
    if configuration.revision <= last:
        raise TrustError(
            f"{locator('revision')}: revision: expected more than {last}, which ran before, got"
            f" {configuration.revision}; to go back, sign the old text under a higher number"
        )
    # 5.
    what = f"configuration revision {configuration.revision}"
    approved = {
        name: policy.authorise(f"{what}: section {name}", name, verified.signers)
        for name in changes(before.configuration if before else None, configuration)
    }
    # 6.
    if len({one.name for one in after.principals.values() if one.key_id in after.keys_for("access")}) < (
        after.permissions["access"].approvals
    ):
        raise ConfigError("access: nobody could change it any more: too few principals may", locator("access"))
    signers = tuple(sorted({policy.principals[id].name for id in verified.signers}))
    return Accepted(files, configuration, locator, after, signers, approved)


def _principals(named: Mapping[str, PrincipalConfig], *, root: bool) -> Iterator[Principal]:
    for name, one in named.items():
        key = keys.from_pem(one.key.encode())
        yield Principal(name, frozenset(one.roles), keys.key_id(key), key, root)


def _bytes(section: Any) -> bytes:
    """Return a section so that ``1``, ``1.0`` and ``true`` are three things."""
    return orjson.dumps(section, option=orjson.OPT_SORT_KEYS)


def _default(name: str) -> Any:
    field = Configuration.model_fields[name]
    default = field.get_default(call_default_factory=True) if not field.is_required() else {}
    return default.model_dump(mode="json") if hasattr(default, "model_dump") else default
