"""The figures that the SIEM benchmark prints are what it says they are."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest

from tests.bench.bench_siem import Meter, spread
from tests.faults.proxy import FaultProxy


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank: of 200 values the 99th percentile is the 198th; of few it is the greatest."""
    assert spread([n / 1000 for n in range(200, 0, -1)]) == {"p50": 0.1, "p99": 0.198, "max": 0.2}
    assert spread([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "max": 3.0}
    assert spread([]) == {}


class _Proxy:
    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes_read = 0


def test_the_meter_counts_only_what_was_spent_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests before it began are left out, looks at shards are told from searches, and all is by the minute."""
    source, sink = _Proxy(), _Proxy()
    source.requests.update({"_search": 7, "refresh": 7})
    source.bytes_read = 1_000
    now = iter((100.0, 130.0))
    monkeypatch.setattr("tests.bench.bench_siem.time.monotonic", lambda: next(now))
    facts: dict[str, Any] = {}
    with Meter(cast(FaultProxy, source), cast(FaultProxy, sink)).minute(facts):
        source.requests.update({"_search": 2, "refresh": 60, "logs-*": 3})
        source.bytes_read += 5_000_000
        sink.requests.update({"_bulk": 1})
    assert facts["source"] == {"searches": 4.0, "_stats": 120.0, "bulks": 0.0, "other": 6.0, "MB_read": 10.0}
    assert facts["sink"] == {"searches": 0.0, "_stats": 0.0, "bulks": 2.0, "other": 0.0, "MB_read": 0.0}
