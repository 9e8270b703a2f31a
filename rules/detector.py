"""The Sigma detector: a collection of rules as one `Detector`, each rule under its own id."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agent.errors import ConfigError
from agent.model import Batch, Description, Finding, Kind, Timestamp, Value
from agent.ports import StateView
from rules.sigma import logsource
from rules.sigma.correlate import Attempt, Correlator
from rules.sigma.correlation import Correlation
from rules.sigma.engine import RAW, Binder, Engine, leaves, raw_values
from rules.sigma.explain import Reasons
from rules.sigma.parse import LEVELS, Collection, Rule, load

_TECHNIQUE = re.compile(r"attack\.(t\d{4}(?:\.\d{3})?)", re.IGNORECASE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MOST_GROUPS = 200_000
_TACTIC = re.compile(r"attack\.([a-z][a-z_-]+)")
_MOST_REASONS = 1_024
"""Kinds and rules whose explanations are kept ready."""


def build(id: str, options: Mapping[str, Any], cache: Path | None) -> SigmaDetector:
    """Return the detector for the rules at ``path``: a folder, a file, or a .tar.gz or .zip of them.

    ``path: builtin`` means the rules that come with Vedette.

    ``digest`` names the content that must lie there (`plan` prints it), ``pack`` the signed pack that it must be
    ('vedette rules sign'): a signed configuration names one of them for rules of its own. ``min_level`` leaves out what
    is less grave, ``status`` all but the named ones, ``exclude`` single rules by id; a rule that a correlation takes is
    still read for it. ``max_groups`` bounds what correlations keep. ``pipeline`` names files with pySigma's processing
    pipelines, which are read as if they lay beside the rules: they are part of the digest. Rules that cannot run do not
    stop the others: `plan` names them.
    """
    known = {
        "path": str,
        "digest": str,
        "pack": str,
        "min_level": str,
        "status": list,
        "exclude": list,
        "max_groups": int,
        "pipeline": list,
    }
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"detector {id}: {name}: unknown key; there are: {', '.join(known)}")
        if not isinstance(value, known[name]):
            raise ConfigError(f"detector {id}: {name} must be a {known[name].__name__}, got {value!r}")
    if "digest" in options and not _DIGEST.fullmatch(options["digest"]):
        raise ConfigError(f"detector {id}: digest must be sha256: and 64 hex digits, got {options['digest']!r}")
    if "digest" in options and "pack" in options:
        raise ConfigError(f"detector {id}: digest or pack: one of them says what must lie there")
    if "pack" in options and "pipeline" in options:
        raise ConfigError(f"detector {id}: the pack's signature does not cover the pipeline: put it into the pack")
    if not all(isinstance(one, str) for one in options.get("pipeline", ())):
        raise ConfigError(f"detector {id}: pipeline must list files, got {options['pipeline']!r}")
    if "path" not in options:
        raise ConfigError(f"detector {id}: option path is missing: where are the rules?")
    if not 0 < options.get("max_groups", MOST_GROUPS) <= 10_000_000:
        raise ConfigError(f"detector {id}: max_groups must be 1 to 10000000, got {options['max_groups']!r}")
    if options.get("min_level", LEVELS[0]) not in LEVELS:
        raise ConfigError(f"detector {id}: min_level must be one of {', '.join(LEVELS)}, got {options['min_level']!r}")
    pipelines = [Path(one) for one in options.get("pipeline", ())]
    return SigmaDetector(id, load(place(options["path"]), cache, options.get("digest", ""), pipelines), options)


def place(path: str) -> Path:
    """Return where the rules lie that *path* means."""
    return Path(__file__).parent / "content" if path == "builtin" else Path(path)


def silenced(correlations: Sequence[Correlation]) -> frozenset[str]:
    """Return the rules and correlations that make no alerts of their own: what takes them does not say `generate`."""
    loud = {rule for one in correlations if one.generate for rule in one.rules}
    return frozenset(rule for one in correlations for rule in one.rules) - loud


def _with_inner(correlations: Sequence[Correlation], wanted: set[str]) -> list[Correlation]:
    """Return the *wanted* correlations and those whose triggers they take, in their order."""
    needed = set(wanted)
    for one in reversed(correlations):
        if one.id in needed:
            needed.update(one.rules)
    return [one for one in correlations if one.id in needed]


class SigmaDetector:
    """Sigma rules and correlations over batches; it keeps nothing but memos of pure functions."""

    order: Literal["set", "sequence"] = "set"

    def __init__(self, id: str, collection: Collection, options: Mapping[str, Any]) -> None:
        self.id = id
        ours = options.get("path") == "builtin" and not options.get("pipeline")
        self.unpinned = "" if ours or options.get("digest") else collection.content
        self.pack: str = options.get("pack", "")
        self.place = place(options.get("path", ""))
        self._collection = collection
        self._ruleset = Path(options.get("path", "")).name
        self._left_out: Counter[str] = Counter()
        self._descriptions: dict[str, Description] = {}
        wanted = {one.id for one in collection.correlations if self._runs(one, options)}
        kept = _with_inner(collection.correlations, wanted)
        taken = {rule for one in kept for rule in one.rules}
        loud = {rule.id for rule in collection.rules if self._runs(rule, options)}
        self._engine = Engine([rule for rule in collection.rules if rule.id in loud or rule.id in taken])
        by_id = {rule.id: rule for rule in self._engine.rules}
        silent = silenced(collection.correlations)
        self._loud = loud - silent
        self._correlator = (
            Correlator(kept, by_id, self.describe, wanted - silent, options.get("max_groups", MOST_GROUPS))
            if kept
            else None
        )
        self._why: dict[tuple[Kind, str], Reasons] = {}

    def _runs(self, rule: Rule | Correlation, options: Mapping[str, Any]) -> bool:
        reason = (
            "below min_level"
            if LEVELS.index(rule.level) < LEVELS.index(options.get("min_level", LEVELS[0]))
            else "other status"
            if "status" in options and rule.status not in options["status"]
            else "excluded"
            if rule.id in options.get("exclude", ())
            else ""
        )
        self._left_out[reason] += 1
        return not reason

    def fields(self, kind: Kind) -> frozenset[str]:
        fields = self._engine.fields(kind)
        if self._correlator is None:
            return fields
        return fields | self._correlator.fields(kind, self._engine.rules_of(kind))

    def detect(self, events: Batch, state: StateView) -> Sequence[Finding]:
        findings: list[Finding] = []
        taken: dict[str, list[int]] = defaultdict(list)
        for row, rule in self._engine.match(events):
            if rule.id in self._loud:
                findings.append(self._finding(events, row, rule))
            if self._correlator is not None and self._correlator.takes(rule):
                taken[rule.id].append(row)
        if self._correlator is not None and taken:
            findings += self._correlator.detect(events, taken, state)
        return findings

    def advance(self, watermark: Timestamp, state: StateView) -> Sequence[Finding]:
        return () if self._correlator is None else self._correlator.advance(watermark, state)

    def attempts(self, events: Batch, state: StateView) -> tuple[Mapping[str, int], Sequence[Attempt]]:
        """Return how many of *events* each rule matched, and how near each group came to each correlation by them."""
        matches: dict[str, list[int]] = defaultdict(list)
        for row, rule in self._engine.match(events):
            matches[rule.id].append(row)
        found = self._correlator.attempts(events, matches, state) if self._correlator else ()
        return {id: len(rows) for id, rows in matches.items()}, found

    def _finding(self, events: Batch, row: int, rule: Rule) -> Finding:
        kind = events.kinds[events.kind[row]]

        def lookup(name: str) -> Value | None:
            if name == RAW:
                return raw_values(events.value(row, "event.original"))
            return kind.constant[name] if name in kind.constant else events.value(row, name)

        return Finding(
            detector=self.describe(rule),
            time=int(events.time[row]),
            evidence=(events.reference(row),),
            explanation=self._reasons(kind, rule).of(rule, lookup),
            row=row,
        )

    def _reasons(self, kind: Kind, rule: Rule) -> Reasons:
        """Return why *rule* matches events of *kind*: its constants are left in, so that they explain too."""
        key = kind, rule.id
        if key not in self._why:
            if len(self._why) >= _MOST_REASONS:
                self._why.clear()
            self._why[key] = Reasons(Binder(kind, rule.category, tests=None).bind(rule.condition))
        return self._why[key]

    def rules(self) -> Sequence[Description]:
        found = [self.describe(rule) for rule in self._engine.rules if rule.id in self._loud]
        return [*found, *map(self.describe, self._correlator.loud if self._correlator else ())]

    def describe(self, rule: Rule | Correlation) -> Description:
        """Return what an alert says of *rule*."""
        known = self._descriptions.get(rule.id)
        if known is None:
            tags = [tag.lower() for tag in rule.tags]
            known = self._descriptions[rule.id] = Description(
                id=rule.id,
                title=rule.title,
                kind="rule",
                level=rule.level,
                description=rule.description,
                author=rule.author,
                license=rule.license,
                status=rule.status,
                techniques=tuple(found[1].upper() for tag in tags if (found := _TECHNIQUE.fullmatch(tag))),
                tactics=tuple(found[1].replace("_", "-") for tag in tags if (found := _TACTIC.fullmatch(tag))),
                references=rule.references,
                false_positives=rule.false_positives,
                ruleset=self._ruleset,
                digest=rule.digest,
                path=rule.place,
            )
        return known

    def plan(self) -> dict[str, Any]:
        rules = self._engine.rules
        tests = [(rule, leaf) for rule in rules for leaf in leaves(rule.condition)]
        unfed = Counter(_source_name(rule) for rule in rules if logsource.condition(*rule.logsource) is None)
        keywords = {rule.id for rule, leaf in tests if leaf[1] is None}
        return {
            "rules": len(rules),
            "digest": self._collection.content,
            "levels": dict(Counter(rule.level for rule in rules)),
            "left_out": {reason: number for reason, number in self._left_out.items() if reason},
            "refused": list(self._collection.refused),
            "remarks": list(self._collection.remarks),
            "filters": dict(self._collection.filters),
            "correlations": self._correlator.plan() if self._correlator else [],
            "unfed": {"rules": sum(unfed.values()), "log_sources": dict(unfed.most_common())},
            "atoms": sum(len(leaf[3]) for _, leaf in tests),
            "fields": sorted({leaf[1] for _, leaf in tests if leaf[1]}),
            "costs": [f"{len(keywords)} rules look for keywords: they add event.original to their log sources"],
            "kinds": [
                {
                    "mapping": kind.mapping,
                    **dict(kind.constants),
                    "rules": plan.rules,
                    "literals": plan.atoms,
                    "without_literal": plan.scanned,
                    "fields": sorted(plan.fields),
                }
                for kind, plan in self._engine.plans.items()
            ],
        }


def _source_name(rule: Rule) -> str:
    parts = zip(("product", "category", "service"), rule.logsource, strict=True)
    return " ".join(f"{name}={value}" for name, value in parts if value is not None)
