"""What the packages hold, and that it is the same whoever builds them, where and when."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import subprocess
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.conftest import EPOCH, ROOT, Built, build

MOST_DISTRIBUTIONS = 70
SITE = "opt/vedette/lib/python3.11/site-packages"


def names(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*")}


def installed(tree: Path) -> dict[str, Distribution]:
    return {normal(one.name): one for one in distributions(path=[str(tree / SITE)])}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(tree: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tree / "usr/share/doc/vedette/sbom.cdx.json").read_text())
    return found


def locked() -> dict[str, tuple[str, set[str]]]:
    """Return each name of the lock file that this platform takes, with its version and the digests it allows."""
    blocks = re.split(r"(?m)^(?=\S)", (ROOT / "packaging" / "requirements.lock").read_text())
    found = {}
    for block in blocks:
        if head := re.match(r"([\w.-]+)==(\S+)(?: ; (.*?))? \\", block):
            marker = head[3] or ""
            if "win32" not in marker and ">= '3.12'" not in marker:
                found[normal(head[1])] = (head[2], set(re.findall(r"sha256:([0-9a-f]{64})", block)))
    return found


# --- content ----------------------------------------------------------------------------------------------------------


def test_the_environment_holds_what_the_lock_file_names_and_nothing_else(built: Built) -> None:
    """No pip, no build tool: a base installation stays light."""
    found = {name: one.version for name, one in installed(built.tree).items() if name != "vedette"}
    assert found == {name: version for name, (version, _) in locked().items()}
    assert len(found) < MOST_DISTRIBUTIONS


def test_nothing_lies_outside_of_the_places_that_are_ours(built: Built) -> None:
    """Neither configuration nor data belongs to the package, so no removal takes them."""
    tops = re.compile(
        r"opt(/vedette(/.*)?)?|usr(/bin(/vedette)?)?|usr/lib(/systemd(/system(/vedette\.service)?)?)?"
        r"|usr/lib/sysusers\.d(/vedette\.conf)?|usr/share(/doc(/vedette(/.*)?)?)?"
    )
    assert [name for name in names(built.tree) if not tops.fullmatch(name)] == []
    assert (built.tree / "usr/bin/vedette").readlink() == Path("/opt/vedette/bin/vedette")
    assert sorted(one.name for one in (built.tree / "opt/vedette/bin").iterdir()) == ["python", "vedette"]
    assert (built.tree / "opt/vedette/bin/python").readlink() == Path("/usr/bin/python3.11")


def test_each_distribution_is_as_its_record_says(built: Built) -> None:
    """What was left out (commands, tests) is out of the record too."""
    for name, one in installed(built.tree).items():
        for file in one.files or []:
            path = file.locate()
            assert path.is_file(), f"{name}: {file}"
            assert "tests" not in file.parts, f"{name}: {file}"
    assert not list(built.tree.rglob("tests"))


def test_every_module_is_compiled_and_never_looked_at_again(built: Built) -> None:
    """Unchecked: the service cannot write there, and a time in them would differ with each build."""
    sources = {path for path in (built.tree / SITE).rglob("*.py") if "lib2to3" not in path.parts}
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00", source


def test_the_modes_are_right_whatever_the_umask_was(built: Built) -> None:
    """It was built under 077."""
    listed = subprocess.run(["dpkg-deb", "-c", built.deb], capture_output=True, text=True, check=True).stdout
    kinds = {tuple(line.split()[:2]) for line in listed.splitlines() if not line.startswith("l")}
    assert kinds == {(mode, "root/root") for mode in ("drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--")}


def test_the_rpm_holds_the_same_files(built: Built) -> None:
    """And nothing of the folders that are the system's own."""
    try:
        done = subprocess.run(["rpm", "-qlp", built.rpm], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("rpm is not installed")
    listed = {line.lstrip("/") for line in done.stdout.splitlines()}
    shared = {"opt", "usr", "usr/bin", "usr/lib", "usr/share", "usr/share/doc"}
    shared |= {"usr/lib/systemd", "usr/lib/systemd/system", "usr/lib/sysusers.d"}
    assert listed == names(built.tree) - shared


# --- the same every time ----------------------------------------------------------------------------------------------


def test_no_file_knows_where_or_when_it_was_built(built: Built, source: Path) -> None:
    for path in built.tree.rglob("*"):
        assert int(path.lstat().st_mtime) == int(EPOCH), path
        if path.is_file() and not path.is_symlink():
            assert str(source.parent).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_packages_are_the_same_byte_for_byte_whoever_builds_them_and_where(
    built: Built, source: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(source, tmp_path / "a folder" / "elsewhere")
    for second in map(Path, build(again, "packages", "--output", tmp_path / "made", umask=0o002).split("\n")[:2]):
        first = built.deb.with_name(second.name)
        assert filecmp.cmp(first, second, shallow=False), second.name


# --- the bill of materials --------------------------------------------------------------------------------------------


def test_the_bill_names_what_is_installed_and_the_archive_it_came_from(built: Built) -> None:
    """Each digest is one that the lock file allows for that name and version."""
    components = {one["name"]: one for one in bill(built.tree)["components"]}
    assert {name: one["version"] for name, one in components.items()} == {
        name: version for name, (version, _) in locked().items()
    }
    for name, one in components.items():
        (digest,) = one["hashes"]
        assert digest["alg"] == "SHA-256"
        assert digest["content"] in locked()[name][1], name
        assert one["licenses"], name


def test_the_bill_says_what_needs_what(built: Built) -> None:
    """Everything is reached from the application; references lead somewhere."""
    found = bill(built.tree)
    edges = {one["ref"]: one["dependsOn"] for one in found["dependencies"]}
    reached: set[str] = set()
    waiting = [found["metadata"]["component"]["bom-ref"]]
    while waiting:
        if (ref := waiting.pop()) not in reached:
            reached.add(ref)
            waiting += edges[ref]
    assert reached == set(edges)
    assert reached == {one["bom-ref"] for one in [found["metadata"]["component"], *found["components"]]}


def test_the_bill_is_cyclonedx(built: Built) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    text = (built.tree / "usr/share/doc/vedette/sbom.cdx.json").read_text()
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None


def test_the_time_of_the_bill_is_the_sources(built: Built) -> None:
    assert bill(built.tree)["metadata"]["timestamp"] == "2026-09-21T14:13:20Z"
