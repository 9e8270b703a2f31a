"""Admission: which model may run.

`admit` is the one door; it returns the model that may run or raises one TrustError. The steps, in this order:

1. the folder holds the manifest, the weights and the signature, and nothing else
2. a principal who may sign models signed just these files
3. the configuration names this artifact, by its digest
4. neither the artifact nor the key is revoked
5. the manifest says all that it must, and nothing that this version does not know
6. the model is for this tenant
7. it is valid now
8. it passed its gates, and was calibrated on events later than those it was trained on
9. its features are the ones that this version computes

Nothing here reads a disk, a clock or the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from agent.errors import TrustError, VedetteError
from agent.model import Timestamp
from agent.trust import oms
from agent.trust.keys import PublicKey
from agent.trust.manifest import MANIFEST, WEIGHTS, Manifest, instant, parse

FILES = frozenset({MANIFEST, WEIGHTS, oms.SIGNATURE})

_DAY = timedelta(days=1) // timedelta(microseconds=1)
_WARNINGS = (1, 7, 30)


@dataclass(frozen=True)
class Terms:
    """On which terms a model may run.

    *model* is what the configuration calls it and *digest* the artifact that it names. *keys* are those of the
    principals who may sign models, by key id; *revoked* holds digests of artifacts and key ids.
    """

    model: str
    digest: str
    tenant: str
    keys: Mapping[str, PublicKey]
    revoked: frozenset[str]
    now: Timestamp


@dataclass(frozen=True)
class Admitted:
    """A model that may run: the very bytes that were verified, the artifact's digest and the id of the signing key."""

    manifest: Manifest
    files: Mapping[str, bytes]
    digest: str
    signer: str


def admit(files: Mapping[str, bytes], terms: Terms, schema_hash: Callable[[Mapping[str, Any]], str]) -> Admitted:
    """Return the model in *files*, all files of its folder, if it may run on these *terms*; otherwise TrustError.

    *schema_hash* gives the digest of a feature recipe as this version computes it.
    """
    files = dict(files)
    refuse = _Refusal(terms.model)
    _check_files(files, refuse)  # 1. the manifest, the weights and the signature, and nothing else
    signed = _check_signature(files, terms, refuse)  # 2. by a principal who may sign models, over just these files
    if signed.digest != terms.digest:  # 3. the configuration names this artifact
        raise refuse(3, "digest", terms.digest, signed.digest, "name the artifact that is meant in the configuration")
    _check_revocation(signed, terms, refuse)  # 4. neither the artifact nor the key is revoked
    manifest = _check_manifest(files, refuse)  # 5. the manifest says all that it must, and nothing unknown
    if manifest.tenants and terms.tenant not in manifest.tenants:  # 6. the model is for this tenant
        found = f"one for {', '.join(manifest.tenants)}"
        raise refuse(6, "tenant", f"a model for tenant {terms.tenant}", found, "train one for this tenant")
    _check_validity(manifest, terms.now, refuse)  # 7. it is valid now
    _check_gates(manifest, refuse)  # 8. it passed its gates, and was calibrated on later events
    _check_features(manifest, schema_hash, refuse)  # 9. its features are the ones that this version computes
    return Admitted(manifest, files, signed.digest, signed.signer)


def expiry(manifest: Manifest, now: Timestamp) -> str:
    """Say how near the end of a model that runs is: nothing, or one text from 30, 7 and 1 days before; then one a day.

    The text changes just when somebody should hear of it again.
    """
    left = instant(manifest.not_after) - now
    if left <= 0:
        days = -left // _DAY
        since = f"{days} days ago" if days > 1 else "yesterday" if days else "today"
        return f"model {manifest.id}: expired {since}, on {manifest.not_after}; train and sign a new one"
    for days in _WARNINGS:
        if left <= days * _DAY:
            within = f"{days} days" if days > 1 else "one day"
            return f"model {manifest.id}: expires within {within}, on {manifest.not_after}; train and sign a new one"
    return ""


def ended(manifest: Manifest, model: str) -> TrustError:
    """Return why *model*, whose time is over, may not run."""
    found = f"one until {manifest.not_after}"
    return _Refusal(model)(7, "validity", "a model that is valid now", found, "train and sign a new one")


class _Refusal:
    """The sentence of a step that failed: model, step, expected, found, way out."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, number: int, step: str, expected: str, found: str, way_out: str) -> TrustError:
        fault = f"expected {expected}, found {found}" if expected else found
        return TrustError(f"model {self.model}: refused at step {number}, {step}: {fault}; {way_out}")


def _check_files(files: Mapping[str, bytes], refuse: _Refusal) -> None:
    if oms.SIGNATURE not in files:
        raise refuse(1, "files", f"a signature in {oms.SIGNATURE}", "none", "sign it with 'vedette model sign'")
    if files.keys() != FILES:
        found = ", ".join(sorted(files)[:8])
        raise refuse(1, "files", f"just {', '.join(sorted(FILES))}", found, "remove what does not belong, sign again")


def _check_signature(files: Mapping[str, bytes], terms: Terms, refuse: _Refusal) -> oms.Signed:
    covered = {path: data for path, data in files.items() if path != oms.SIGNATURE}
    try:
        return oms.verify(covered, files[oms.SIGNATURE], terms.keys.values())
    except TrustError as error:
        raise refuse(2, "signature", "", str(error), "have it signed by a principal who may sign models") from None


def _check_revocation(signed: oms.Signed, terms: Terms, refuse: _Refusal) -> None:
    for what, which in (("artifact", signed.digest), ("key", signed.signer)):
        if which in terms.revoked:
            expected = f"{'an' if what == 'artifact' else 'a'} {what} that is not revoked"
            raise refuse(4, "revocation", expected, f"{which} among the revoked", "train or choose another")


def _check_manifest(files: Mapping[str, bytes], refuse: _Refusal) -> Manifest:
    try:
        return parse(files[MANIFEST])
    except TrustError as error:
        raise refuse(5, "manifest", "", str(error), "train it again with this version") from None


def _check_validity(manifest: Manifest, now: Timestamp, refuse: _Refusal) -> None:
    begins, ends = manifest.not_before, manifest.not_after
    if instant(ends) <= instant(begins):
        raise refuse(7, "validity", "an end after the beginning", f"{begins} to {ends}", "train it again")
    if now < instant(begins):
        raise refuse(7, "validity", "a model that is valid now", f"one not before {begins}", "wait until then")
    if now >= instant(ends):
        raise ended(manifest, refuse.model)


def _check_gates(manifest: Manifest, refuse: _Refusal) -> None:
    if not manifest.gates:
        raise refuse(8, "gates", "at least one gate", "none", "train it with a gate that it must pass")
    for gate in manifest.gates:
        expected = f"{gate.metric} {gate.comparator} {gate.threshold}"
        figures = [one.value for one in manifest.evaluation if one.metric == gate.metric]
        missed = [value for value in figures if not gate.allows(value)]
        if not figures:
            raise refuse(8, "gates", expected, "no figure for it", "evaluate it, then sign again")
        if missed or not gate.passed:
            raise refuse(8, "gates", expected, missed[0] if missed else "a gate not passed", "train a better one")
    if instant(manifest.calibration.begin) < instant(manifest.training.end):
        expected = f"a calibration from {manifest.training.end} on"
        raise refuse(8, "gates", expected, f"one from {manifest.calibration.begin}", "calibrate on later events")


def _check_features(manifest: Manifest, schema_hash: Callable[[Mapping[str, Any]], str], refuse: _Refusal) -> None:
    try:
        found = schema_hash(manifest.recipe)
    except VedetteError as error:
        raise refuse(9, "features", "", str(error), "train it again with this version") from None
    if found != manifest.schema_hash:
        raise refuse(9, "features", manifest.schema_hash, found, "train it again with this version")
