"""What lies beside the rules and changes what they mean: values of placeholders, and pySigma's processing pipelines.

Both are YAML documents of the collection. ``placeholders: {admins: [root, adm_*]}`` gives what ``%admins%`` stands for
in a value with ``|expand``. A document with ``transformations:`` is a pipeline as other tools of Sigma read it; of
several the one of lower ``priority`` comes first. What runs a command, reads a file or asks a server is refused:
rules are data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.model import digest
from rules.sigma.documents import Document

_OUTSIDE = {
    "command_placeholders": "runs a command",
    "file_placeholders": "reads a file",
    "http_placeholders": "asks a server",
}
_QUERY = ("postprocessing", "finalizers")
MOST_VALUES = 1_000
"""Values that a placeholder may have."""


class SettingError(Exception):
    """Why a document beside the rules cannot be used, and the text to look for to find the line."""

    def __init__(self, reason: str, needle: str = "") -> None:
        super().__init__(reason)
        self.needle = needle


def is_setting(document: Document) -> bool:
    """Say whether a document is no rule, but about rules."""
    data = document.data
    return set(data) == {"placeholders"} or ("transformations" in data and "detection" not in data)


@dataclass
class Setting:
    """The placeholders and pipelines of a collection; *digest* names the pipelines, if there are any."""

    placeholders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    digest: str = ""
    _pipelines: list[Any] = field(default_factory=list)

    def add(self, document: Document) -> Iterator[str]:
        """Take a document in, and yield remarks; SettingError if it cannot be used."""
        if "placeholders" in document.data:
            self._add_placeholders(document.data["placeholders"])
        else:
            yield from self._add_pipeline(document.data)

    def _add_placeholders(self, written: Any) -> None:
        if not isinstance(written, dict):
            raise SettingError("placeholders must map names to lists of values", "placeholders:")
        for name, values in written.items():
            several = values if isinstance(values, list) else [values]
            if (
                not several
                or len(several) > MOST_VALUES
                or not all(isinstance(one, str | int | float) for one in several)
            ):
                raise SettingError(
                    f"placeholders: '{name}' must have 1 to {MOST_VALUES} values, texts or numbers", f"{name}:"
                )
            if name in self.placeholders:
                raise SettingError(f"placeholder '{name}' is given twice", f"{name}:")
            self.placeholders[str(name)] = tuple(map(str, several))

    def _add_pipeline(self, data: dict[str, Any]) -> Iterator[str]:
        from sigma.exceptions import SigmaError
        from sigma.processing.pipeline import ProcessingPipeline

        for kind in _kinds(data.get("transformations")):
            if kind in _OUTSIDE:
                raise SettingError(f"pipeline: {kind} {_OUTSIDE[kind]}, which a rule may not", kind)
        text = repr(data)
        try:
            pipeline = ProcessingPipeline.from_dict({name: each for name, each in data.items() if name not in _QUERY})
        except (SigmaError, AttributeError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise SettingError(
                f"not a valid pipeline: {str(error).partition(chr(10))[0]}", "transformations:"
            ) from error
        self._pipelines.append(pipeline)
        self._pipelines.sort(key=lambda each: each.priority)
        self.digest = digest(self.digest, text)
        for name in _QUERY:
            if data.get(name):
                yield f"pipeline: {name} is about the text of queries and has no meaning here"

    def apply(self, rule: Any) -> None:
        """Change a pySigma rule as the pipelines say."""
        for pipeline in self._pipelines:
            pipeline.apply(rule)

    def expand(self, value: Any, missing: Callable[[str], Exception]) -> list[Any]:
        """Return a pySigma value once for each of the values of its placeholders; raise *missing* of one without."""
        from sigma.types import Placeholder, SigmaCasedString, SigmaRegularExpression, SigmaString

        if not isinstance(value, SigmaString | SigmaRegularExpression) or not value.contains_placeholder():
            return [value]

        def replacements(placeholder: Placeholder) -> Iterator[SigmaString]:
            if placeholder.name not in self.placeholders:
                raise missing(placeholder.name)
            yield from map(SigmaString, self.placeholders[placeholder.name])

        found: list[Any] = list(value.replace_placeholders(replacements))
        return (
            [SigmaCasedString.from_sigma_string(one) for one in found] if isinstance(value, SigmaCasedString) else found
        )

    def used(self, detection: Mapping[str, Any]) -> str:
        """Return a digest of all that changes what *detection* means; empty if nothing does."""
        text = str(detection)
        values = {name: each for name, each in sorted(self.placeholders.items()) if f"%{name}%" in text}
        return digest(self.digest, repr(values)) if self.digest or values else ""


def _kinds(node: Any) -> Iterator[str]:
    """Yield the types of transformations, nested ones included."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("type"), str):
                yield one["type"]
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
