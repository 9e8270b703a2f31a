"""Install Vedette into a private environment, and make the deb and the rpm that do so without a network.

All three put the same files in place: an environment under /opt/vedette that holds what packaging/requirements.lock
names, by hash, and nothing else; a link in /usr/bin; a unit, a system user and the documents. Nothing in them depends
on the time, the user or the folder of the build; files that say when are from SOURCE_DATE_EPOCH, or the last commit.
The interpreter that runs this is the one that the environment will use.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent
PREFIX = Path("/opt/vedette")
DOCUMENTS = Path("usr/share/doc/vedette")
BILL = "sbom.cdx.json"
UNIT = Path("usr/lib/systemd/system/vedette.service")
USERS = Path("usr/lib/sysusers.d/vedette.conf")
COMMAND = Path("usr/bin/vedette")
NFPM = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.1"
UNWANTED = {"tests", "direct_url.json"}
SCRIPT = """\
#!{python} -I
from agent.cli import start

start()
"""


def install(root: Path, prefix: Path = PREFIX) -> None:
    """Put everything in place under *root*. An earlier version stays until this one is made, and if it cannot be."""
    environment = within(root, prefix)
    if environment.exists() and not (environment / "pyvenv.cfg").exists():
        sys.exit(f"{environment} is no environment of Vedette and is not replaced; choose another PREFIX")
    fresh, old = (environment.with_name(f"{environment.name}.{word}") for word in ("new", "old"))
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        bill = make_environment(fresh, prefix)
        level(fresh)
        if environment.exists():
            environment.rename(old)
        fresh.rename(environment)
    finally:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
    documents = root / DOCUMENTS
    shutil.rmtree(documents, ignore_errors=True)
    shutil.copytree(SOURCE / "docs", documents / "docs")
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "packaging/requirements.lock"):
        shutil.copy(SOURCE / name, documents)
    shutil.copy(SOURCE / "LICENSE", documents / "copyright")
    write(documents / BILL, bill)
    level(documents)
    for source, place in (("vedette.service", UNIT), ("vedette.sysusers", USERS)):
        write(root / place, (HERE / "systemd" / source).read_text().replace(str(PREFIX), str(prefix)))
    link(root / COMMAND, prefix / "bin/vedette")


def uninstall(root: Path, prefix: Path = PREFIX) -> None:
    """Take away what `install` put in place. Configuration, data and the system user stay."""
    environment = within(root, prefix)
    if (environment / "pyvenv.cfg").exists():
        shutil.rmtree(environment)
    shutil.rmtree(root / DOCUMENTS, ignore_errors=True)
    for place in (UNIT, USERS, COMMAND):
        (root / place).unlink(missing_ok=True)


def packages(kinds: list[str], output: Path) -> list[Path]:
    """Make *kinds* of packages (deb, rpm) of this version, for machines like this, in *output*; return their paths."""
    output.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as work:
        tree, description = Path(work) / "tree", Path(work) / "nfpm.json"
        install(tree)
        level(tree)
        for kind in kinds:
            description.write_text(json.dumps(described(kind, tree)))
            said = run("go", "run", NFPM, "package", "-f", description, "-p", kind, "-t", output.resolve())
            made.append(Path(said.split()[-1]))
    return made


def described(kind: str, tree: Path) -> dict[str, Any]:
    """Return what nfpm is told about the package of *tree*."""
    return {
        "name": "vedette",
        "arch": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "version": re.sub(r"\.?(dev|a|b|rc)", r"~\1", project()["version"]),
        "version_schema": "none",
        "release": "1",
        "section": "admin",
        "maintainer": "The Vedette authors <vedette@example.invalid>",
        "description": project()["description"],
        "license": project()["license"],
        "mtime": datetime.fromtimestamp(epoch(), UTC).isoformat(),
        "depends": ["python3.11", {"deb": "libstdc++6", "rpm": "libstdc++"}[kind]],
        "contents": [{"src": str(tree), "dst": "/", "type": "tree"}],
        "scripts": {name: str(HERE / "package" / f"{name}.sh") for name in ("postinstall", "preremove", "postremove")},
        "deb": {"compression": "zstd"},
        "rpm": {"compression": "zstd", "buildhost": "anywhere"},
    }


def write_bill(output: Path) -> Path:
    """Write the bill of materials of an installation into the folder *output*; return its path."""
    with tempfile.TemporaryDirectory() as work:
        install(Path(work))
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(Path(work) / DOCUMENTS / BILL, output))


def make_environment(place: Path, prefix: Path) -> str:
    """Make in *place* the environment that will work under *prefix*; return its bill of materials."""
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    link(place / "bin/python", python)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    write(place / "pyvenv.cfg", f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {version}\n")
    with tempfile.TemporaryDirectory() as work:
        run(sys.executable, "-m", "venv", f"{work}/tools")
        pip = (f"{work}/tools/bin/pip", "--quiet", "--disable-pip-version-check")
        locked = ("--require-hashes", "--only-binary", ":all:", "-r")
        run(*pip, "install", *locked, HERE / "requirements-build.lock")
        run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work, SOURCE)
        into = (*pip, "--python", place / "bin/python", "install", "--no-compile", "--no-warn-script-location")
        run(*into, "--report", f"{work}/report", *locked, HERE / "requirements.lock")
        run(*into, "--no-deps", "--no-index", "--find-links", work, f"vedette=={project()['version']}")
        trim(place)
        script = place / "bin/vedette"
        write(script, SCRIPT.format(python=prefix / "bin/python"))
        script.chmod(0o755)
        compiled = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", place, "-p", prefix)
        run(place / "bin/python", *compiled, place / "lib")
        return run(place / "bin/python", "-I", HERE / "sbom.py", given=Path(work, "report").read_text())


def trim(place: Path) -> None:
    """Leave of what pip installed in *place* no command, no tests and no note of where it came from."""
    packages = next(place.glob("lib/python3.*/site-packages"))
    for record in packages.glob("*.dist-info/RECORD"):
        rows = list(csv.reader(record.read_text().splitlines()))
        gone = [row for row in rows if row[0].startswith("../") or UNWANTED & set(Path(row[0]).parts)]
        for name, *_ in gone:
            (packages / name).unlink()
        with record.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(row for row in rows if row not in gone)
    for folder in sorted(place.rglob("*/"), reverse=True):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def level(folder: Path) -> None:
    """Give everything in *folder* the mode and the time that it has wherever and by whomever it is built."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (epoch(), epoch()), follow_symlinks=False)


def run(*words: str | Path, given: str = "") -> str:
    """Run a command in the same way whatever is set around it; return what it printed."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch()), "PYTHONHASHSEED": "0"}
    done = subprocess.run(words, input=given, env=environment, check=False, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"build: {' '.join(map(str, words))}: failed with exit code {done.returncode}")
    return done.stdout


def within(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")


def write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


@cache
def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    found: dict[str, Any] = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    return found


@cache
def epoch() -> int:
    """Return the time that everything is dated to, in seconds."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    git = ["git", "-C", str(SOURCE), "log", "-1", "--format=%ct"]
    if (SOURCE / ".git").exists() and (done := subprocess.run(git, capture_output=True, check=False)).returncode == 0:
        return int(done.stdout)
    return int((SOURCE / "pyproject.toml").stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("install", "uninstall", "deb", "rpm", "packages", "sbom"))
    parser.add_argument("--root", type=Path, default=Path("/"), help="put everything under it and start nothing")
    parser.add_argument("--prefix", type=Path, default=PREFIX, help="where the environment goes, an absolute path")
    parser.add_argument("--output", type=Path, default=SOURCE / "dist", help="folder of what is made")
    given = parser.parse_args()
    if not given.prefix.is_absolute():
        parser.error(f"--prefix: expected an absolute path, got {given.prefix}")
    os.umask(0o022)
    scripts = HERE / "package" if given.root == Path("/") else None
    match given.do:
        case "install":
            install(given.root, given.prefix)
            if scripts:
                run("sh", scripts / "postinstall.sh")
        case "uninstall":
            if scripts and (given.root / UNIT).exists():
                run("sh", scripts / "preremove.sh", "remove")
            uninstall(given.root, given.prefix)
            if scripts:
                run("sh", scripts / "postremove.sh", "remove")
        case "sbom":
            print(write_bill(given.output))
        case kind:
            print(*packages(["deb", "rpm"] if kind == "packages" else [kind], given.output), sep="\n")


if __name__ == "__main__":
    main()
