"""A sample of the fault matrix at every push, all of it in the long run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fault_matrix import HEAP, Cell, Matrix, cells, sample
from tests.siem import started

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("fault-matrix")]


@pytest.fixture(params=[("elasticsearch", 8), ("opensearch", 2)], ids=["elasticsearch", "opensearch"])
def matrix(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Matrix]:
    with started(*request.param, heap=HEAP) as server:
        made = Matrix(tmp_path, server)
        yield made
        made.close()


def _wrong(matrix: Matrix, chosen: list[Cell]) -> list[str]:
    return [f"{outcome.cell}: {text}" for outcome in matrix.run(chosen) for text in outcome.wrong]


def test_faults_on_the_way_lose_and_double_nothing(matrix: Matrix) -> None:
    """For a cell of each request: books balance, one alert an event, nothing waits."""
    assert _wrong(matrix, sample(1)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_loses_and_doubles_nothing(matrix: Matrix) -> None:
    """The same for all cells."""
    assert _wrong(matrix, cells()) == []
