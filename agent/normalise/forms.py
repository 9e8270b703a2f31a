"""Forms of text lines: regular expressions with named groups, matched over bytes in linear time.

Bytes, since google-re2 works on them and would count every character of a text anew. A byte that is not UTF-8 stays
visible as ``\\xff`` in what is read: one odd byte in a name hides nothing.
"""

from __future__ import annotations

import re
from functools import partial

import re2

error = re2.error


_RANGE_BYTES = 8
_EVERYTHING = re.compile(r"\(\?s\)\^\(\?P<(\w+)>\.\*\)\$")


class Form:
    """One compiled form; raises `error` if RE2 refuses the expression.

    It asks RE2 itself, for all groups at once: the wrapper's own match takes several times as long. *first* are the
    bytes that what has the form may begin with.
    """

    def __init__(self, expression: str) -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        regex = re2.compile(expression.encode(), options)
        self._match = partial(regex._regexp.Match, re2._Anchor.UNANCHORED)
        numbered = sorted((number, name) for name, number in regex.groupindex.items())
        self._names = [(name.decode() if isinstance(name, bytes) else name, number) for number, name in numbered]
        everything = _EVERYTHING.fullmatch(expression)
        self._everything = everything[1] if everything else ""
        self.first = _first_bytes(expression.encode(), options)

    def read(self, data: bytes) -> dict[str, str] | None:
        """Return the named groups that took part, or None if *data* has not this form."""
        if self._everything:
            return {self._everything: text_of(data)}
        spans = self._match(data, 0, len(data))
        if spans[0][0] < 0:
            return None
        return {
            name: data[span[0] : span[1]].decode("utf-8", "backslashreplace")
            for name, number in self._names
            if (span := spans[number])[0] >= 0
        }


def _first_bytes(expression: bytes, options: re2.Options) -> range:
    """Return the bytes that a text of this form may begin with: any, unless each alternative is bound to the begin."""
    try:
        inside = re2.compile(b"[\n_](?:%b)" % expression, options).possiblematchrange(_RANGE_BYTES)
        least, greatest = re2.compile(expression, options).possiblematchrange(_RANGE_BYTES)
    except error:  # RE2 cannot say
        return range(256)
    is_bound = inside == (b"\n", b"_")
    return range(least[0], greatest[0] + 1) if is_bound and least else range(256)


def text_of(data: bytes) -> str:
    """Return *data* as text."""
    return data.decode("utf-8", "backslashreplace")
