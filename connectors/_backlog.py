"""Since when what was not read yet has been there."""

from __future__ import annotations

from agent.model import Timestamp

KEPT = 256


class Backlog:
    """Looks at something that grows (a shard, a file): how much there was, and when.

    At most `KEPT` looks are kept. Where there would be more, neighbours become one, so that what is unread may seem a
    little older than it is (by a fiftieth of the time that is looked back on), and never younger.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[int, Timestamp]] = []
        self._step = 0
        """How far apart looks are that are kept."""

    def look(self, end: int, now: Timestamp) -> None:
        """Note that everything before *end* is there *now*."""
        if self._looks and end <= self._looks[-1][0]:
            return
        if self._looks and now - self._looks[-1][1] < self._step:
            self._looks[-1] = (end, self._looks[-1][1])
            return
        self._looks.append((end, now))
        if len(self._looks) == KEPT:
            pairs = zip(self._looks[::2], self._looks[1::2], strict=True)
            self._looks = [(later[0], earlier[1]) for earlier, later in pairs]
            self._step = (now - self._looks[0][1]) // len(self._looks)

    def since(self, read: int) -> Timestamp | None:
        """Return when something behind *read* was first seen; None if there is nothing. What was read is forgotten."""
        while self._looks and self._looks[0][0] <= read:
            del self._looks[0]
        if not self._looks:
            self._step = 0
            return None
        return self._looks[0][1]
