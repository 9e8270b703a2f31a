"""The change feed against a model of a shard: any interleaving of writes, refreshes and fetches delivers each visible
document once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.siem.feed import START, Position, Proof, Sight, clauses


class Shard:
    """A shard as it behaves: operations are processed in any order, shown at a refresh that began after them."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.next = 0
        self.pending: list[tuple[int, str, str]] = []
        self.processed: set[int] = set()
        self.held: dict[str, int] = {}
        self.visible: dict[int, str] = {}
        self.refreshes = 0
        self.begun: dict[int, str] | None = None
        self.ever_gone = 0

    def write(self, id: str) -> None:
        self.pending.append((self.next, "index", id))
        self.next += 1

    def delete(self, id: str) -> None:
        self.pending.append((self.next, "delete", id))
        self.next += 1

    def process(self, place: int) -> None:
        """Process a pending operation; those of one document stay in order, as the primary takes care of."""
        number, what, id = self.pending[place % len(self.pending)]
        if any(other < number and name == id for other, _, name in self.pending):
            return
        self.pending.remove((number, what, id))
        self.processed.add(number)
        if what == "index":
            self.held[id] = number
        else:
            self.held.pop(id, None)

    @property
    def checkpoint(self) -> int:
        checkpoint = START
        while checkpoint + 1 in self.processed:
            checkpoint += 1
        return checkpoint

    def begin(self) -> None:
        if self.begun is None:
            self.begun = {number: id for id, number in self.held.items()}

    def end(self) -> None:
        if self.begun is not None:
            self.visible, self.begun = self.begun, None
            self.refreshes += 1


def search(shard: Shard, position: Position, above: int, checkpoint: int, size: int) -> list[tuple[int, str]]:
    ranges = position.wanted(above, checkpoint)
    return sorted((n, id) for n, id in shard.visible.items() if any(a <= n <= b for a, b in ranges))[:size]


def round_of(shard: Shard, position: Position, proof: Proof, size: int, got: list[tuple[int, str]]) -> int:
    proof.look(Sight("n", "h", shard.checkpoint, shard.refreshes))
    above, checkpoint, gone = position.floor, shard.checkpoint, 0
    while above < checkpoint:
        hits = search(shard, position, above, checkpoint, size)
        covered = checkpoint if len(hits) < size else hits[-1][0]
        got += [hits[place] for place in position.take(hits, covered)]
        gone += position.settle(min(proof.shown, covered))
        above = covered
    return gone


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 9)),
        st.tuples(st.just("delete"), st.integers(0, 9)),
        st.tuples(st.just("process"), st.integers(0, 30)),
        st.tuples(st.just("process"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["begin", "end", "read", "restart"]), st.integers(1, 4)),
    ),
    max_size=120,
)


@settings(max_examples=600, deadline=None)
@given(steps)
def test_every_document_is_delivered_once_in_its_newest_version(script: list[tuple[str, int]]) -> None:
    shard, position, proof = Shard(), Position("h"), Proof()
    got: list[tuple[int, str]] = []
    gone = 0
    for what, number in script:
        if what == "write":
            shard.write(f"d{number}")
        elif what == "delete":
            shard.delete(f"d{number}")
        elif what == "process" and shard.pending:
            shard.process(number)
        elif what == "begin":
            shard.begin()
        elif what == "end":
            shard.end()
        elif what == "read":
            gone += round_of(shard, position, proof, number, got)
        elif what == "restart":
            position, proof = Position.from_row(position.row()), Proof()
    while shard.pending:
        shard.process(0)
    for _ in range(4):
        shard.begin()
        shard.end()
        gone += round_of(shard, position, proof, 3, got)
    assert len(set(got)) == len(got), "a version was delivered twice"
    newest = {id: number for number, id in shard.visible.items()}
    delivered = {}
    for number, id in got:
        delivered[id] = max(number, delivered.get(id, START))
    assert {id: number for id, number in delivered.items() if id in newest} == newest
    assert position.floor == shard.checkpoint
    assert not position.holes
    assert gone + len(got) == shard.next, "an operation is neither delivered nor counted as gone"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=40, unique=True),
    st.integers(1, 5),
)
def test_numbers_that_repeat_lose_nothing_at_a_page_end(documents: list[tuple[int, int]], limit: int) -> None:
    everything = sorted((number, f"{number}-{copy}") for number, copy in documents)
    position, got, above = Position("h"), [], START
    while above < 12:
        ranges = position.wanted(above, 12)
        skip = position.cut[1] if position.cut else ()
        hits = [hit for hit in everything if any(a <= hit[0] <= b for a, b in ranges)][: limit + len(skip)]
        covered = 12 if len(hits) < limit + len(skip) else hits[-1][0] - 1
        got += [hits[place] for place in position.take(hits, covered)]
        position = Position.from_row(position.row())
        above = covered
    assert got == everything


def test_clauses_say_the_ranges_or_where_they_end() -> None:
    assert clauses([]) == ([], None)
    assert clauses([(3, 3), (5, 6), (10, 100)]) == (
        [{"range": {"_seq_no": {"gte": 10, "lte": 100}}}, {"terms": {"_seq_no": [3, 5, 6]}}],
        None,
    )
    found, end = clauses([(10 * n, 10 * n) for n in range(40_000)])
    assert end == 327_670
    assert len(found[0]["terms"]["_seq_no"]) == 32_768
