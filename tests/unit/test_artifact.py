"""An artifact's folder: read whole within bounds, written whole or not at all."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from agent import artifact
from agent.errors import ConfigError, TrustError

FILES = {"manifest.json": b"{}", "weights.npz": b"\0" * 1000, "more/a/b/c/notes.txt": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    artifact.write(made, FILES)
    return made


def test_what_was_written_is_read(folder: Path) -> None:
    assert artifact.read(folder) == FILES
    assert list(folder.parent.iterdir()) == [folder]


def test_other_users_may_read_an_artifact_if_the_umask_says_so(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        artifact.write(tmp_path / "model", FILES)
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "model" / "weights.npz").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_exists_is_left_alone(folder: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        artifact.write(folder, {"other": b""})
    assert artifact.read(folder) == FILES


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """Here one file is in the way of another."""
    with pytest.raises(ConfigError, match="cannot write"):
        artifact.write(tmp_path / "model", {"a": b"", "a/b": b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../up", "/etc/x", ".hidden", "a/.b", "", "a//b", "a b", "é", "a\nb", "a/b/c/d/e/f"])
def test_what_could_not_be_read_is_not_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        artifact.write(tmp_path / "model", {path: b""})
    with pytest.raises(ConfigError, match="cannot write"):
        artifact.put(tmp_path, path, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_file_can_be_put_and_replaced(folder: Path) -> None:
    artifact.put(folder, "model.sig", b"old")
    artifact.put(folder, "model.sig", b"new")
    assert artifact.read(folder) == {**FILES, "model.sig": b"new"}
    assert list(folder.parent.iterdir()) == [folder]


def test_nothing_is_put_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        artifact.put(tmp_path / "model", "model.sig", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="model: cannot be read"):
        artifact.read(tmp_path / "model")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"")
    with pytest.raises(TrustError, match="model: cannot be read"):
        artifact.read(tmp_path / "model")


def test_what_may_not_be_read_is_refused(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "weights.npz").chmod(0)
    with pytest.raises(TrustError, match=r"weights\.npz: cannot be read"):
        artifact.read(folder)


def test_links_in_the_way_to_the_folder_are_the_callers(folder: Path) -> None:
    """Only the artifact itself must be what it says."""
    (folder.parent / "here").symlink_to(folder.parent)
    assert artifact.read(folder.parent / "here" / "model") == FILES


def test_the_folder_itself_is_no_link(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)
    with pytest.raises(TrustError, match="latest: cannot be read without following links"):
        artifact.read(folder.parent / "latest")


@pytest.mark.parametrize("target", ["manifest.json", "more", "nowhere", "/etc/passwd"])
def test_symbolic_links_are_refused(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(TrustError, match="link: expected a plain file, found a symbolic link"):
        artifact.read(folder)


def test_hard_links_are_refused(folder: Path) -> None:
    """Somebody else may hold the file open for writing."""
    os.link(folder / "weights.npz", folder.parent / "elsewhere")
    with pytest.raises(TrustError, match=r"weights\.npz: the file has 2 names"):
        artifact.read(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(TrustError, match="pipe: expected a plain file, found a pipe"):
        artifact.read(folder)


def test_a_socket_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(TrustError, match="socket: expected a plain file, found a socket"):
            artifact.read(folder)


@pytest.mark.parametrize("name", [".git", ".hidden", "a b", "a\nb", "é", "a\\b", "x" * 129, "a:b", "~"])
def test_hidden_and_odd_names_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(TrustError, match="expected a name of letters"):
        artifact.read(folder)


def test_names_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(TrustError, match="expected a name of letters"):
        artifact.read(folder)


@pytest.mark.parametrize("path", ["empty", "more/empty"])
def test_empty_folders_are_refused(folder: Path, path: str) -> None:
    (folder / path).mkdir()
    with pytest.raises(TrustError, match=f"{path}: an artifact has no empty folders"):
        artifact.read(folder)


def test_an_empty_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(TrustError, match="no empty folders"):
        artifact.read(tmp_path / "model")


def test_deep_folders_are_refused(folder: Path) -> None:
    (folder / "1/2/3/4/5").mkdir(parents=True)
    with pytest.raises(TrustError, match="1/2/3/4/5: deeper than 4"):
        artifact.read(folder)


@pytest.mark.parametrize("names", [[f"f{n}" for n in range(62)], [f"d{n % 8}/f{n}" for n in range(62)]])
def test_too_many_files_are_refused(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    with pytest.raises(TrustError, match="more than 64 files"):
        artifact.read(folder)


@pytest.mark.parametrize("sizes", [[artifact.MAX_BYTES], [artifact.MAX_BYTES // 2] * 2, [8 << 30]])
def test_too_many_bytes_are_refused_unread(folder: Path, sizes: list[int]) -> None:
    """One file or all together; a sparse file costs its maker nothing."""
    for number, size in enumerate(sizes):
        with (folder / f"big{number}").open("wb") as file:
            file.truncate(size)
    with pytest.raises(TrustError, match="larger than 67108864 bytes"):
        artifact.read(folder)


@pytest.mark.parametrize("data", [b"\0" * 1001, b"\0" * 999, b"\1" * 1000])
def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """Longer, shorter or just other bytes, also when its time is set back."""
    path = folder / "weights.npz"
    os.utime(path, (1, 1))
    time.sleep(0.02)  # beyond the grain of the file system's clock
    original = os.read

    def read_and_change(descriptor: int, size: int) -> bytes:
        found = original(descriptor, size)
        if size == 1001:
            path.write_bytes(data)
            os.utime(path, (1, 1))
        return found

    monkeypatch.setattr(os, "read", read_and_change)
    with pytest.raises(TrustError, match=r"weights\.npz: changed while it was read"):
        artifact.read(folder)
