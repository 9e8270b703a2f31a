"""What is built once for all tests of packages: both packages of this tree, and a newer deb to upgrade to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.machine import Machine, Unavailable, cannot

ROOT = Path(__file__).parents[2]
PYTHON = Path("/usr/bin/python3.11")
EPOCH = "1790000000"
NEWER = "99.0.0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("packaging"))


@dataclass(frozen=True)
class Built:
    """Packages, and where what is in the deb lies unpacked."""

    deb: Path
    rpm: Path
    tree: Path


def build(source: Path, *words: str | Path, umask: int = -1) -> str:
    """Run the builder of *source*, with its own files beside that; return what it printed."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH, "TMPDIR": str(source.parent)}
    command = [PYTHON, source / "packaging" / "build.py", *words]
    done = subprocess.run(command, env=environment, umask=umask, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout


@pytest.fixture(scope="session")
def builder() -> None:
    """Whatever a build needs, or a skip."""
    if missing := [name for name in ("go", "dpkg-deb", str(PYTHON)) if shutil.which(name) is None]:
        pytest.skip(f"no packages without {', '.join(missing)}")
    if subprocess.run([PYTHON, "-c", "import ensurepip"], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} has no venv: Debian's package python3.11-venv is missing")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build may read, as it is now."""
    place = tmp_path_factory.mktemp("source")
    for name in ("agent", "connectors", "rules", "docs", "packaging"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    return place


@pytest.fixture(scope="session")
def built(builder: None, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    deb, rpm = map(Path, build(source, "packages", "--output", folder, umask=0o077).split())
    subprocess.run(["dpkg-deb", "-x", deb, folder / "tree"], check=True)
    return Built(deb, rpm, folder / "tree")


@pytest.fixture(scope="session")
def newer(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deb packed anew as another version: one folder has another name."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", built.deb, folder / "tree"], check=True)
    (folder / "tree/DEBIAN/conffiles").unlink()  # an empty line by nfpm, which dpkg takes and dpkg-deb does not
    control = folder / "tree/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {NEWER}", control.read_text()))
    (info,) = (folder / "tree").rglob("vedette-*.dist-info")
    info.rename(info.with_name(f"vedette-{NEWER}.dist-info"))
    words = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", folder / "tree", folder / "newer.deb"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return folder / "newer.deb"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that runs systemd."""
    yield from _started(tmp_path / "machine", booted=True)


@pytest.fixture
def changed_root(tmp_path: Path) -> Iterator[Machine]:
    """A root without an init, as an image is built in."""
    yield from _started(tmp_path / "root", booted=False)


def _started(folder: Path, *, booted: bool) -> Iterator[Machine]:
    if reason := cannot():
        pytest.skip(reason)
    try:
        machine = Machine(folder, booted=booted)
    except Unavailable as error:
        pytest.skip(str(error))
    yield machine
    machine.end()
