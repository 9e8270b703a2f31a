"""Pages of the documentation, followed as they stand: their fenced blocks, and a shell that remembers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: under which heading, in which language."""

    heading: str
    language: str
    text: str


def blocks(page: Path, *, without: Collection[str] = ()) -> Iterator[Block]:
    """Yield the page's fenced blocks in order, but for those under the headings *without*."""
    heading = ""
    for title, language, text in re.findall(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S):
        heading = title or heading
        if language and heading not in without:
            yield Block(heading, language, text)


class Shell:
    """Somebody who follows a page in *folder*, in one shell, with names of *own* in place of the page's."""

    def __init__(self, folder: Path, own: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._own = own or {}
        (folder / "shell").touch()

    def name(self, text: str) -> str:
        for theirs, own in self._own.items():
            text = text.replace(theirs, own)
        return text

    def do(self, text: str, *, code: int = 0) -> str:
        """Run *text* in the shell as it was left; return what it printed. AssertionError unless it ends with *code*."""
        kept = "{ declare -f; export -p; declare -p ALERT 2> /dev/null || true; } > ./shell"
        script = f"source ./shell\n{self.name(text)}\n{kept}\n"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["timeout", "120", "bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={"PATH": path, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def do_until(self, text: str, holds: str) -> str:
        end = time.monotonic() + 20
        while holds not in (said := self.do(text)):
            assert time.monotonic() < end, said
            time.sleep(0.5)
        return said
