"""Fixtures that are real servers, started by the first test that wants one and stopped at the end of the session.

Where this machine cannot start one, the tests that want it are skipped with the reason. `siem` runs a test once for
each of three servers, or those that the environment variable ``VEDETTE_TEST_SIEM`` names, joined by commas.

A test that uses one of these is marked ``servers``, runs on the same worker as all others that use it, and its time
limit does not count the start. A test of its own server (several nodes, other settings) calls `servers.start`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from _pytest.nodeid import NodeId

from tests.servers import FlavourName, Server
from tests.siem import started

DEFAULT = "elasticsearch8,elasticsearch9,opensearch2"
SERVERS = frozenset(
    {"elasticsearch8", "elasticsearch9", "opensearch2", "opensearch3", "elasticsearch8_secure", "opensearch2_secure"}
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if call := getattr(item, "callspec", None):
            names.update(value for value in call.params.values() if isinstance(value, str))
        if used := sorted(names & SERVERS):
            item.add_marker(pytest.mark.servers)
            item.add_marker(pytest.mark.timeout(func_only=True))
            item.add_marker(pytest.mark.xdist_group("+".join(used)))
        group = item.get_closest_marker("xdist_group")
        if group and getattr(config.option, "loadgroup", False):
            # xdist 3.8 hands the group to its scheduler in an attribute that pytest 9.2 no longer has
            item._id = NodeId.parse(f"{item.nodeid}@{group.args[0]}")


def _running(flavour: FlavourName, major: int, *, security: bool = False) -> Iterator[Server]:
    with started(flavour, major, security=security) as server:
        yield server


@pytest.fixture(scope="session")
def elasticsearch8() -> Iterator[Server]:
    yield from _running("elasticsearch", 8)


@pytest.fixture(scope="session")
def elasticsearch9() -> Iterator[Server]:
    yield from _running("elasticsearch", 9)


@pytest.fixture(scope="session")
def opensearch2() -> Iterator[Server]:
    yield from _running("opensearch", 2)


@pytest.fixture(scope="session")
def opensearch3() -> Iterator[Server]:
    yield from _running("opensearch", 3)


@pytest.fixture(scope="session")
def elasticsearch8_secure() -> Iterator[Server]:
    yield from _running("elasticsearch", 8, security=True)


@pytest.fixture(scope="session")
def opensearch2_secure() -> Iterator[Server]:
    yield from _running("opensearch", 2, security=True)


@pytest.fixture(scope="session", params=os.environ.get("VEDETTE_TEST_SIEM", DEFAULT).split(","))
def siem(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server
