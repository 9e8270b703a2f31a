"""Changing the exceptions of a `vedette.yml` in its text: comments, layout and line ends stay as they are.

What comes out is read again and must say exactly what was meant, else ConfigError and nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.config.load import compose, parse
from agent.config.model import ExceptionConfig
from agent.errors import ConfigError

_BOM = "\ufeff"


def put_exception(text: bytes, path: Path, wanted: ExceptionConfig) -> bytes:
    """Return *text*, one revision on, with *wanted* in place of what it says of that rule."""
    kept = _exceptions(text, path)
    if any(one.rule == wanted.rule for one in kept):
        after = [wanted if one.rule == wanted.rule else one for one in kept]
        number = after.index(wanted)
        return _changed(text, path, after, lambda source: source.replace_entry(number, wanted))
    return _changed(text, path, [*kept, wanted], lambda source: source.add_entry(wanted))


def end_exception(text: bytes, path: Path, rule: str) -> bytes:
    """Return *text*, one revision on, without the exception that it has for *rule*."""
    kept = _exceptions(text, path)
    number = next(number for number, one in enumerate(kept) if one.rule == rule)
    return _changed(text, path, [*kept[:number], *kept[number + 1 :]], lambda source: source.remove_entry(number))


def instant_text(one: ExceptionConfig) -> str:
    """Return the end of an exception as it is written."""
    return one.until.isoformat().replace("+00:00", "Z")


def _exceptions(text: bytes, path: Path) -> list[ExceptionConfig]:
    return parse(text, path)[0].exceptions


@dataclass(frozen=True)
class _Splice:
    """What comes in place of the characters from *start* to *end*."""

    start: int
    end: int
    text: str


def _changed(
    text: bytes, path: Path, exceptions: list[ExceptionConfig], change: Callable[[_Source], Iterable[_Splice]]
) -> bytes:
    before, locator = parse(text, path)
    wanted = before.model_copy(update={"revision": before.revision + 1, "exceptions": exceptions})
    source = _Source(text.decode("utf-8-sig"))
    splices = [source.number(wanted.revision), *change(source)]
    after = source.text
    for one in sorted(splices, key=lambda splice: splice.start, reverse=True):
        after = after[: one.start] + one.text + after[one.end :]
    changed = (_BOM if text.decode().startswith(_BOM) else "").encode() + after.encode()
    try:
        found = parse(changed, path)[0]
    except ConfigError:
        found = before
    if found != wanted:
        raise ConfigError(
            "the exceptions cannot be changed here as the file is laid out: write the section by hand, as a list with"
            f" one key a line, and raise revision to {wanted.revision}",
            locator("exceptions"),
        )
    return changed


class _Source:
    """The text of a configuration and where in it the exceptions stand."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._line_end = "\r\n" if "\r\n" in text else "\n"
        self._root = compose(text)
        self._key: yaml.Node | None
        self._section: yaml.SequenceNode | None
        self._key, self._section = _find(self._root, "exceptions")

    def number(self, revision: int) -> _Splice:
        """Raise the revision; a file without one gets it as its first key."""
        _, value = _find(self._root, "revision")
        if value is None:
            start, indent = self._root.start_mark.index, " " * self._root.start_mark.column
            return _Splice(start, start, f"revision: {revision}{self._line_end}{indent}")
        return _Splice(value.start_mark.index, value.end_mark.index, str(revision))

    def add_entry(self, one: ExceptionConfig) -> list[_Splice]:
        if self._key is None or self._section is None:
            indent = " " * self._root.start_mark.column
            text = f"{self._line_end}{indent}exceptions:{self._line_end}{self._block(one, indent + '  ')}"
            return [self._lines(len(self.text), text)]
        items = self._section.value
        if items and self._section.flow_style:
            end = items[-1].end_mark.index
            return [_Splice(end, end, ", {" + ", ".join(_pairs(one)) + "}")]
        if items:
            return [self._lines(self._after(self._section), self._block(one, " " * self._section.start_mark.column))]
        colon, end = self._colon(self._key), self._section.end_mark.index
        block = self._block(one, " " * (self._key.start_mark.column + 2))
        return [_Splice(colon, end, ""), self._lines(self._after(self._section), block)]

    def replace_entry(self, number: int, one: ExceptionConfig) -> list[_Splice]:
        assert self._section is not None
        new = dict(pair.split(": ", 1) for pair in _pairs(one))
        return [
            _Splice(value.start_mark.index, self._end(value), new[key.value])
            for key, value in self._section.value[number].value
            if key.value != "rule"
        ]

    def remove_entry(self, number: int) -> list[_Splice]:
        assert self._key is not None
        assert self._section is not None
        items: Sequence[yaml.Node] = self._section.value
        item = items[number]
        if self._section.flow_style:
            start, end = item.start_mark.index, item.end_mark.index
            if number + 1 < len(items):
                end = items[number + 1].start_mark.index
            elif number:
                start = items[number - 1].end_mark.index
            return [_Splice(start, end, "")]
        dash = self.text.rindex("-", 0, item.start_mark.index)
        cut = _Splice(self.text.rfind("\n", 0, dash) + 1, self._after(item), "")
        if len(items) > 1:
            return [cut]
        colon = self._colon(self._key)
        return [_Splice(colon, colon, " []"), cut]

    def _block(self, one: ExceptionConfig, indent: str) -> str:
        between = f"{self._line_end}{indent}  "
        return f"{indent}- {between.join(_pairs(one))}{self._line_end}"

    def _lines(self, start: int, lines: str) -> _Splice:
        """Put whole *lines* at *start*, behind a line or at the end of a text whose last line may be open."""
        whole = not start or self.text[start - 1] == "\n"
        return _Splice(start, start, lines if whole else self._line_end + lines)

    def _colon(self, key: yaml.Node) -> int:
        """Return the place behind the colon of *key*."""
        return self.text.index(":", key.end_mark.index) + 1

    def _after(self, node: yaml.Node) -> int:
        """Return where the line begins that follows what *node* says, and the comment beside it."""
        end = self._end(node)
        line_end = self.text.find("\n", end)
        return len(self.text) if line_end < 0 else line_end + 1

    def _end(self, node: yaml.Node) -> int:
        """Return where *node* ends: the parser counts blank lines and comments after a block to it."""
        if isinstance(node, yaml.SequenceNode) and not node.flow_style:
            return self._end(node.value[-1])
        if isinstance(node, yaml.MappingNode) and not node.flow_style:
            return self._end(node.value[-1][1])
        return len(self.text[: node.end_mark.index].rstrip("\r\n"))


def _find(node: yaml.MappingNode, name: str) -> tuple[Any, Any]:
    """Return the nodes of a key of *node* and of its value; None, None without it."""
    return next(((key, value) for key, value in node.value if key.value == name), (None, None))


def _pairs(one: ExceptionConfig) -> list[str]:
    """Return the keys and values of an entry; JSON's text in quotes is YAML's too, for what is printable."""
    values = {"rule": one.rule, "until": instant_text(one), "reason": one.reason, "owner": one.owner}
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
