"""What a person sees: colours only on a terminal, and no control character of an attacker's on it."""

from __future__ import annotations

import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import compress, repeat
from typing import Any

import orjson

STYLES: Mapping[str, str] = {  # of cells that are one of these words
    "critical": "bold white on red",
    "high": "bold red",
    "medium": "yellow",
    "low": "cyan",
    "informational": "dim",
    "caught": "green",
    "missed": "bold red",
}
WIDE = 200
"""Columns of a table that goes to a file or a pipe."""
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def safe(text: object) -> str:
    """Return *text* with control, format (bidi) and surrogate characters written out as escapes."""
    return "".join(
        char if unicodedata.category(char) not in _UNSAFE else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def print_json(rows: Iterable[Any]) -> None:
    """Write one JSON document a line to standard output."""
    out = sys.stdout.buffer
    for row in rows:
        out.write(orjson.dumps(row, default=str) + b"\n")
    out.flush()


def table(headings: Iterable[str], rows: Iterable[Iterable[object]], *, headless: bool = False) -> None:
    """Print a table; cells are made safe, a heading ending in '>' aligns right, some words get their colour.

    A column without any text is left out, so that the others have its room.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold", show_header=not headless)
    lines = [[safe(cell) for cell in row] for row in rows]
    used = [any(column) for column in zip(*lines, strict=True)]
    for heading in compress(headings, used or repeat(True)):
        right = heading.endswith(">")
        shown.add_column(heading.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for cells in lines:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in compress(cells, used)))
    Console(width=None if sys.stdout.isatty() else WIDE).print(shown)


def say(text: str, style: str = "") -> None:
    """Print a line of ours (already safe) to standard output; on a terminal it breaks between words."""
    from rich.console import Console

    console = Console(highlight=False)
    text = wrapped(text, console.width) if sys.stdout.isatty() else text
    console.print(text, style=style or None, markup=False, soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """Return *text* with lines of at most *width*, under its value where it begins with a label; no word is broken."""
    return "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    begin = re.match(r" *(?:\S+ {2,}|-> )?", line)
    hanging = " " * (begin.end() if begin else 0)
    return textwrap.fill(
        line, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
