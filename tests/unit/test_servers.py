"""How servers for tests are fetched, kept and ended: what shows without starting one."""

from __future__ import annotations

import base64
import hashlib
import http.server
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store

from tests import conftest, servers
from tests.servers import Unavailable


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for flavour, major in servers._RELEASES:
        monkeypatch.delenv(f"VEDETTE_TEST_{flavour}_{major}".upper(), raising=False)


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def jdk(folder: Path, version: str) -> Path:
    program(folder / "bin", "java", "")
    program(folder / "bin", "jlink", "")
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def until(holds: Any) -> bool:
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(holds())


# -- Getting it -------------------------------------------------------------------------------------------------------


def test_a_jdk_beside_the_one_of_java_home_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among JDKs that lie together the one of a fitting version is taken."""
    jdk(tmp_path / "jvm" / "17", "17.0.2")
    jdk(tmp_path / "jvm" / "25", "25")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jvm" / "17"))
    assert servers._java(servers._RELEASES["opensearch", 2]).name == "17"
    assert servers._java(servers._RELEASES["elasticsearch", 9]).name == "25"


@pytest.mark.parametrize("lack", ["jlink", "release", "version"])
def test_no_fitting_jdk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str) -> None:
    """A runtime without tools, one that says no version and one of another version are no JDK to use."""
    home = jdk(tmp_path / "jvm" / "x", "11.0.1" if lack == "version" else "21.0.1")
    if lack != "version":
        (home / "bin" / lack if lack == "jlink" else home / lack).unlink()
    monkeypatch.setenv("JAVA_HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "bin"))
    with pytest.raises(Unavailable, match=r"no JDK of version 21 to .* set JAVA_HOME"):
        servers.start("elasticsearch", 9)


def test_no_maven_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Maven the reason says so and what to do."""
    monkeypatch.setenv("JAVA_HOME", str(jdk(tmp_path / "jdk", "21.0.1")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="install Maven"):
        servers.start("opensearch", 3)


def test_what_maven_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Maven fails, the reason holds what failed and Maven's words."""
    program(tmp_path / "bin", "mvn", "echo 'Unknown host repo'; exit 1")
    monkeypatch.setenv("JAVA_HOME", str(jdk(tmp_path / "jdk", "21.0.1")))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(Unavailable, match=r"(?s)opensearch:3\.6\.0.*Unknown host repo"):
        servers.start("opensearch", 3)


def test_security_is_refused_where_none_is_published(tmp_path: Path) -> None:
    """OpenSearch 3 has no security plugin to fetch, and the reason says that."""
    with pytest.raises(Unavailable, match=r"no security plugin is published for OpenSearch 3\.6\.0"):
        servers._security_plugin(servers._RELEASES["opensearch", 3])


def test_the_cache_is_filled_once(tmp_path: Path) -> None:
    """Who comes while another fills waits, and takes what that one made."""
    calls: list[str] = []
    found: list[Path] = []

    def fill(work: Path) -> Path:
        calls.append(work.name)
        time.sleep(0.1)
        (work / "home").mkdir()
        return work / "home"

    threads = [threading.Thread(target=lambda: found.append(servers._cached("x", 1, fill))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(set(found)) == 1
    assert found[0].is_dir()


def test_another_recipe_is_another_entry(tmp_path: Path) -> None:
    """What a changed recipe makes is not mistaken for what the old one made."""

    def fill(work: Path) -> Path:
        (work / "home").mkdir()
        return work / "home"

    assert servers._cached("x", 1, fill) != servers._cached("x", 2, fill)


def test_a_broken_off_filling_leaves_nothing(tmp_path: Path) -> None:
    """Neither a failure nor what a killed process left is ever taken for a distribution."""
    cache = tmp_path / "cache" / "vedette-test-servers"
    (cache / ".new-killed" / "home").mkdir(parents=True)

    def fill(work: Path) -> Path:
        (work / "home").mkdir()
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        servers._cached("x", 1, fill)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_ports_are_free_and_differ() -> None:
    """Each port can be bound and is not one that the system gives to clients."""
    ports = servers._free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        assert port < 32_000
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", port))


# -- Security ---------------------------------------------------------------------------------------------------------


def test_certificates_verify_against_their_authority_only(tmp_path: Path) -> None:
    """A certificate is good for a server on loopback and for a client; another authority does not vouch for it."""
    authority = servers._Authority(tmp_path / "ca.pem")
    certificate, key = authority.issue("someone", tmp_path / "clients")
    leaf = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    assert load_pem_private_key(Path(key).read_bytes(), None).public_key() == leaf.public_key()
    assert Path(key).stat().st_mode & 0o777 == 0o600
    assert authority.issue("someone", tmp_path / "clients") == (certificate, key)

    def trusting(file: Path) -> PolicyBuilder:
        return PolicyBuilder().store(Store([x509.load_pem_x509_certificate(file.read_bytes())]))

    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    trusting(tmp_path / "ca.pem").build_server_verifier(loopback).verify(leaf, [])
    trusting(tmp_path / "ca.pem").build_client_verifier().verify(leaf, [])
    servers._Authority(tmp_path / "other.pem")
    with pytest.raises(x509.verification.VerificationError):
        trusting(tmp_path / "other.pem").build_client_verifier().verify(leaf, [])


def test_the_hash_of_a_password_holds_what_checks_it() -> None:
    """Method, rounds, salt and derived key, as the server's file of users has them."""
    method, salt, derived = servers._hashed("secret").split("$")
    assert method == "{PBKDF2}10000"
    assert base64.b64decode(derived) == hashlib.pbkdf2_hmac("sha512", b"secret", base64.b64decode(salt), 10_000, 32)


# -- Ending it --------------------------------------------------------------------------------------------------------


def test_the_keeper_ends_what_it_watches(tmp_path: Path) -> None:
    """Closing ends the watched groups, not those forgotten, and removes the folder."""
    folder = tmp_path / "server"
    (folder / "data").mkdir(parents=True)
    keeper = servers._Keeper(folder)
    watched, forgotten = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2))
    keeper.watch(watched.pid)
    keeper.watch(forgotten.pid)
    keeper.forget(forgotten.pid)
    keeper.close()
    keeper.close()
    assert watched.wait(10) == -signal.SIGKILL
    assert forgotten.poll() is None
    assert not folder.exists()
    forgotten.kill()
    forgotten.wait()


def test_nothing_survives_a_session_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the process that started a server ends the server's processes, grandchildren too."""
    folder = tmp_path / "server"
    folder.mkdir()
    program(tmp_path, "node", "sleep 60 & wait")
    script = (
        "import subprocess, sys, time; from pathlib import Path; from tests.servers import _Keeper\n"
        f"keeper = _Keeper(Path({str(folder)!r}))\n"
        f"node = subprocess.Popen([{str(tmp_path / 'node')!r}], start_new_session=True)\n"
        "keeper.watch(node.pid); print(node.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout
        group = int(session.stdout.readline())
        assert servers._lives(group)
        session.kill()
    assert until(lambda: not servers._lives(group))
    assert until(lambda: not folder.exists())


# -- A server given by its address ------------------------------------------------------------------------------------


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"version": {"number": "8.1.2"}}' if self.path == "/" else b"?"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_in_the_environment_wins(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of that address is used, and nothing is left of ours when it is stopped."""
    monkeypatch.setenv("VEDETTE_TEST_ELASTICSEARCH_8", address + "/")
    with servers.start("elasticsearch", 8) as server:
        assert server.access() == {"hosts": [address]}
        assert server.version == "8.1.2"
        with pytest.raises(ValueError, match="security=True"):
            server.client_cert("someone")
    assert not server.folder.exists()


@pytest.mark.parametrize("wish", [{"security": True}, {"nodes": 2}, {"settings": {"action.auto_create_index": False}}])
def test_an_address_does_not_serve_special_wishes(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wish: dict[str, Any]
) -> None:
    """What a server that somebody else started may not have is started."""
    monkeypatch.setenv("VEDETTE_TEST_ELASTICSEARCH_8", address)
    monkeypatch.setenv("JAVA_HOME", str(jdk(tmp_path / "jdk", "17.0.1")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="install Maven"):
        servers.start("elasticsearch", 8, **wish)


def test_an_address_without_a_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address is not passed over in silence."""
    (port,) = servers._free_ports(1)
    monkeypatch.setenv("VEDETTE_TEST_OPENSEARCH_3", f"http://127.0.0.1:{port}")
    with pytest.raises(RuntimeError, match=f"no opensearch at http://127.0.0.1:{port}, which the environment names"):
        servers.start("opensearch", 3)


# -- Fixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [False, True])
@pytest.mark.parametrize(
    ("fixtures", "parameter", "chosen", "group"),
    [
        (["tmp_path"], "", None, None),
        (["elasticsearch8", "tmp_path"], "", None, "elasticsearch8"),
        (["siem", "request"], "siem", "opensearch2", "opensearch2"),
        (["secure", "request"], "secure", "opensearch2_secure", "opensearch2_secure"),
        (["opensearch2", "elasticsearch9"], "", None, "elasticsearch9+opensearch2"),
    ],
)
def test_tests_of_one_server_run_together(
    fixtures: list[str], parameter: str, chosen: str | None, group: str | None, workers: bool
) -> None:
    """A test that uses a server is marked with it, by whichever way it gets it; others are left alone."""
    marks: dict[str, pytest.Mark] = {}
    item: Any = SimpleNamespace(
        fixturenames=fixtures,
        add_marker=lambda mark: marks.update({mark.name: mark.mark}),
        get_closest_marker=marks.get,
    )
    item.nodeid = item._id = "test_a.py::test_b[x]"
    if chosen:
        item.callspec = SimpleNamespace(params={parameter: chosen, "number": 1})
    config: Any = SimpleNamespace(option=SimpleNamespace(loadgroup=workers))
    conftest.pytest_collection_modifyitems(config, [item])
    assert set(marks) == ({"servers", "xdist_group", "timeout"} if group else set())
    assert not group or marks["xdist_group"].args == (group,)
    assert str(item._id) == item.nodeid + (f"@{group}" if group and workers else "")
