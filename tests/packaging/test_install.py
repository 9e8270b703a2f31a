"""`make install` and `make uninstall`: the files in their places, under another root, and nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.conftest import EPOCH, ROOT, Built, build


def make(*words: str, source: Path = ROOT, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(["make", *words], cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_uninstall_takes_what_install_put_there_and_nothing_else(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(built.tree, root, symlinks=True, copy_function=os.link)
    kept = [root / name for name in ("etc/vedette/vedette.yml", "var/lib/vedette/vedette.db", "opt/other/file")]
    kept += [root / "etc/systemd/system/vedette.service.d/own.conf", root / "usr/bin/other"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("somebody's")
    make("uninstall", f"DESTDIR={root}")
    assert sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()) == sorted(kept)
    make("uninstall", f"DESTDIR={root}")


@pytest.mark.parametrize("do", ["install", "uninstall"])
def test_a_folder_of_somebody_else_is_left_alone(do: str, tmp_path: Path) -> None:
    precious = tmp_path / "srv" / "precious"
    precious.parent.mkdir()
    precious.write_text("precious")
    done = make(do, f"DESTDIR={tmp_path}", "PREFIX=/srv", code=2 if do == "install" else 0)
    assert precious.read_text() == "precious"
    assert do == "uninstall" or "choose another PREFIX" in done.stderr


def test_a_prefix_is_an_absolute_path(tmp_path: Path) -> None:
    done = make("install", f"DESTDIR={tmp_path}", "PREFIX=opt/vedette", code=2)
    assert "expected an absolute path, got opt/vedette" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_make_install_puts_in_place_what_the_package_does_but_under_its_prefix(
    built: Built, source: Path, tmp_path: Path
) -> None:
    """A second time too, as an upgrade does."""
    words = ("install", "--root", tmp_path / "root", "--prefix", "/srv/vedette")
    build(source, *words)
    (tmp_path / "root/srv/vedette/lib/of-an-older-version").touch()
    build(source, *words)
    root = tmp_path / "root"
    made = {str(path.relative_to(root)).replace("srv/vedette", "opt/vedette") for path in root.rglob("*")} - {"srv"}
    assert made == {str(path.relative_to(built.tree)) for path in built.tree.rglob("*")} - {"opt"}
    assert "ExecStart=/srv/vedette/bin/vedette run" in (root / "usr/lib/systemd/system/vedette.service").read_text()
    assert (root / "srv/vedette/bin/vedette").read_text().startswith("#!/srv/vedette/bin/python -I\n")
    assert (root / "usr/bin/vedette").readlink() == Path("/srv/vedette/bin/vedette")


@pytest.mark.slow
def test_the_bill_can_be_made_alone(built: Built, source: Path, tmp_path: Path) -> None:
    printed = build(source, "sbom", "--output", tmp_path)
    made = json.loads(Path(printed.strip()).read_text())
    assert made == json.loads((built.tree / "usr/share/doc/vedette/sbom.cdx.json").read_text())
