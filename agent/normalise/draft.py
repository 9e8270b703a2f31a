"""A first mapping for records that none knows, to be finished by hand (`docs/mappings.md`).

It says only what the samples show: names that all records have select them, names that many products share are mapped,
and every other name stands in a comment with a value of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import re2
import yaml

from agent.normalise.guess import guess
from agent.normalise.mapping import Path, parse

_MOST_NAMES = 200
_MOST_PATTERNS = 10
_TIMES = ("@timestamp", "timestamp", "time", "ts", "date_time", "eventTime", "created_at", "date")
_MESSAGES = ("message", "msg", "text")
_CLOCK = r"\d{4}[-/]\d{2}[-/]\d{2}[T ]\d{2}:\d{2}:\d{2}(?:[.,]\d{1,9})?(?:Z|[+-]\d{2}:?\d{2})?"
_LEADING = re2.compile(rf"^\[?{_CLOCK}\]?(?: |$)")
_PLAIN = re2.compile(r"^[A-Za-z0-9_.@-]+$")
_SPEC = re2.compile(r"^(?:[a-z_]+\()?([A-Za-z0-9_.]+)\)?$")


def draft(name: str, records: Sequence[Mapping[str, Any] | str]) -> str:
    """Return a mapping called *name* for *records*, which are objects or lines of text, all of one kind."""
    lines = [record for record in records if isinstance(record, str)]
    objects = [record for record in records if not isinstance(record, str)]
    text = _of_lines(name, lines) if lines else _of_objects(name, objects)
    parse(text, f"{name}.yml")  # a draft that is no mapping would be a fault of ours
    return text


# --- JSON -------------------------------------------------------------------------------------------------------------


def _of_objects(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    names, examples = _seen([dict(_leaves(record, ())) for record in records])
    always = [path for path, number in names.items() if number == len(records)]
    when = [path for path in always if ".".join(path) not in (*_TIMES, *_MESSAGES)][:3]
    time = [path for path in names if path[-1] in _TIMES]
    message = [path for path in names if path[-1] in _MESSAGES]
    return "\n".join(
        [
            *_head(name, "json", len(records)),
            "shapes:",
            "  record:",
            f"    when: {_paths(when)}",
            f"    time: {_paths(time)}",
            f"    message: {_paths(message)}",
            "",
            *_kinds({".".join(path): number for path, number in names.items()}, examples, {*time, *message}),
        ]
    )


def _leaves(value: Mapping[str, Any], above: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the paths and values that are no objects; decoding bounds the depth."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, (*above, key))
        else:
            yield (*above, key), inner


# --- lines ------------------------------------------------------------------------------------------------------------


def _of_lines(name: str, lines: Sequence[str]) -> str:
    guesses = [guess(line) for line in lines]
    paired = [found["guessed"] for found in guesses if len(found["guessed"]) > 1]
    if 2 * len(paired) >= len(lines):
        return _of_pairs(name, lines, paired)
    templates = Counter(_template(line) for line in lines)
    shown = [template.replace("NAME", name, 1) for template, _ in templates.most_common(_MOST_PATTERNS)]
    rows = [f"      - {{name: {name}-{number}, regex: {_quoted(regex)}}}" for number, regex in enumerate(shown, 1)]
    groups = sorted({group for regex in shown for group in re2.compile(regex).groupindex} - {"time", name})
    return "\n".join(
        [
            *_head(name, "syslog", len(lines)),
            "shapes:",
            "  line:",
            f"    when: [{name}]",
            "    time: [time]",
            f"    message: [message, {name}]",
            "",
            "patterns:",
            '  - programs: ["-"]            # lines without a syslog head',
            "    match:",
            *rows,
            "",
            *_kinds(dict.fromkeys(groups, 0), {}, set()),
        ]
    )


def _of_pairs(name: str, lines: Sequence[str], paired: Sequence[Mapping[str, str]]) -> str:
    names, examples = _seen([{(key,): value for key, value in pairs.items()} for pairs in paired])
    literal = _common(lines).partition("=")[0]
    times = [path for path in names if path[-1] in _TIMES]
    messages = [path for path in names if path[-1] in _MESSAGES]
    regex = _quoted(f"(?s)^(?P<{name}>{_escaped(literal)}.*)$")
    return "\n".join(
        [
            *_head(name, "syslog", len(lines)),
            "shapes:",
            "  line:",
            f"    when: [{name}]",
            f"    data: [{name}]",
            f"    time: {_paths([*((name, *path) for path in times), ('time',)])}",
            f"    message: {_paths([*((name, *path) for path in messages), ('message',)])}",
            "",
            "patterns:",
            '  - programs: ["-", ""]        # lines without a syslog head, and messages of any program',
            "    match:",
            f"      - {{name: {name}, starts: {_quoted(literal)}, regex: {regex}, payload: {{{name}: pairs}}}}",
            "",
            *_kinds({".".join(path): number for path, number in names.items()}, examples, {*times, *messages}),
        ]
    )


def _common(lines: Sequence[str]) -> str:
    """Return what all lines begin with."""
    first, last = min(lines), max(lines)
    pairs = enumerate(zip(first, last, strict=False))
    same = next((place for place, (a, b) in pairs if a != b or not a.isprintable()), min(len(first), len(last)))
    return first[:same]


def _template(line: str) -> str:
    """Return the line as a regular expression: words stay, what has a digit or a sign of quoting varies."""
    leading = _LEADING.match(line)
    begin, rest = (r"\[?(?P<time>" + _CLOCK + r")\]? ?", line[leading.end() :]) if leading else ("", line)
    number, parts = 0, []
    for word in rest.split(" ")[:60]:
        if not word.isprintable() or any(letter.isdigit() or letter in "\"'=" for letter in word):
            number += 1
            parts.append(rf"(?P<field{number}>[^ ]+)")
        else:
            parts.append(_escaped(word))
    return f"(?s)^{begin}(?P<NAME>{' '.join(parts)}.*)$"


# --- both -------------------------------------------------------------------------------------------------------------


def _seen(records: Sequence[Mapping[Path, Any]]) -> tuple[dict[Path, int], dict[str, Any]]:
    """Return how many of *records* have each name, most frequent first, and a value of each."""
    counts: Counter[Path] = Counter()
    examples: dict[str, Any] = {}
    for record in records:
        counts.update(record.keys())
        for path, value in record.items():
            examples.setdefault(".".join(path), value)
    return dict(counts.most_common(_MOST_NAMES)), examples


def _head(name: str, format: str, number: int) -> list[str]:
    return [
        f"# Drafted by `vedette normalise --draft` from {number:,} records; what it could not know is in comments.",
        f"mapping: {name}",
        f"format: {format}",
        f"prefix: {name}.",
        "related:",
        "  hosts: [host.name]",
        "  ip: [source.ip, destination.ip]",
        "  user: [user.name]",
        "",
    ]


def _kinds(names: Mapping[str, int], examples: Mapping[str, Any], known: set[Path]) -> list[str]:
    specs = _shared_names()
    fields: dict[str, list[str]] = {}
    left = []
    for native in names:
        spec = specs.get(native.rpartition(".")[2].lower()) if _PLAIN.match(native) else None
        if spec:
            fields.setdefault(spec[0], []).append(spec[1].replace("*", native))
        elif tuple(native.split(".")) not in known:
            left.append(
                f"      # ECS.NAME: {_example(native)}".ljust(48) + f" # {_example(examples.get(native))}".rstrip(" #")
            )
    return [
        "kinds:",
        "  - declared: true",
        "    constants:",
        "      event.kind: event",
        "      # event.category: [...]                   # what ECS allows, such as authentication, network, process",
        "      # event.type: [...]",
        *(["    fields:"] if fields else ["    # fields:"]),
        *(f"      {ecs}: {forms[0] if len(forms) == 1 else _flow(forms)}" for ecs, forms in fields.items()),
        *left,
        "",
    ]


@cache
def _shared_names() -> dict[str, tuple[str, str]]:
    """Return native name, in lower case -> ECS field and expression with ``*`` for the name, as `text.yml` has them."""
    text = files(__package__).joinpath("mappings/text.yml").read_text("utf-8")
    found: dict[str, tuple[str, str]] = {}
    for ecs, forms in yaml.safe_load(text)["kinds"][0]["fields"].items():
        for form in forms:
            if match := _SPEC.match(form):
                found.setdefault(match[1].lower(), (ecs, f"{form[: match.start(1)]}*{form[match.end(1) :]}"))
    return found


def _example(value: Any) -> str:
    text = "" if value is None else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:60]


def _escaped(text: str) -> str:
    return str(re2.escape(text))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _paths(paths: Sequence[Path]) -> str:
    return _flow([path[0] if len(path) == 1 else list(path) for path in paths])


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).strip()
