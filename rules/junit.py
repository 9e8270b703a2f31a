"""Checks as JUnit XML, which every CI shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from agent.cli.terminal import safe
from agent.errors import VedetteError

_NOT_XML = re.compile("[^ -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Check(NamedTuple):
    """One thing that was checked; *failure* says in a line why it failed, empty if it did not."""

    group: str
    name: str
    failure: str


def write(file: Path, suite: str, checks: Sequence[Check]) -> None:
    """Write *checks* as the test suite *suite*; VedetteError if the file cannot be written."""
    failures = sum(bool(one.failure) for one in checks)
    root = ElementTree.Element("testsuite", name=suite, tests=str(len(checks)), failures=str(failures), errors="0")
    for one in checks:
        group, name, failure = (_NOT_XML.sub("?", safe(text)) for text in one)
        case = ElementTree.SubElement(root, "testcase", classname=group, name=name)
        if failure:
            ElementTree.SubElement(case, "failure", message=failure)
    ElementTree.indent(root)
    try:
        ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise VedetteError(f"cannot write {file}: {error.strerror}") from error
