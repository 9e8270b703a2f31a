"""A short run over the kill points; `make kill-points` strikes all of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults import kill_points
from tests.faults.kill_points import Left, judge


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: install it (apt-get install strace)")
def test_nothing_is_lost_doubled_or_unscored(tmp_path: Path, record_property: object) -> None:
    """SIGKILL, ENOSPC and EIO at a sample of system calls: the next start leaves what an undisturbed run leaves."""
    result = kill_points.strike_all(tmp_path, every=int(os.environ.get("VEDETTE_KILL_EVERY", "19")))
    print(f"kill points: {result.points.total()} tried, {dict(result.struck)} struck, {len(result.wrong)} wrong")
    assert result.wrong == []
    assert result.struck["KILL"] >= 10
    assert result.struck["ENOSPC"] + result.struck["EIO"] >= 20


def test_the_comparison_sees_losses_and_doubles() -> None:
    """The judge is no rubber stamp."""
    golden = Left(("a", "b"), ("a", "b"), (), {"received": 2})
    assert judge(golden, golden) == []
    assert judge(golden, Left(("a",), ("a", "b"), (), {"received": 2}))
    assert judge(golden, Left(("a", "b"), ("a", "a", "b"), (), {"received": 2}))
    assert judge(golden, Left(("a", "b"), ("a", "b"), ("x",), {"received": 3}))
