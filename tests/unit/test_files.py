"""The files source: which files, who is who, rotation and its relatives, resuming, and what goes wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.model import SECOND, Cursor, Records, Reference
from agent.ports import Source
from agent.testing import drain, payloads, stored_cursor
from connectors._follow import FollowedFiles
from connectors._readers import LONGEST
from connectors.files import UNOPENED, build

LATER = 4_000_000_000 * SECOND
"""A clock on which every file has been at rest for long."""


def source_of(*paths: Path | str, clock: Any = lambda: LATER, **options: Any) -> Any:
    source = build("files", {"paths": [str(path) for path in paths], **options}, clock)
    source.open(frozenset())
    return source


class Follower:
    """A consumer of one followed source that can be killed at any time."""

    def __init__(self, *paths: Path | str, **options: Any) -> None:
        self._make = lambda: source_of(*paths, follow=True, **options)
        self.source = self._make()
        self.cursor: Cursor | None = None
        self.read: list[tuple[str, Any, bytes]] = []

    def fetch(self, limit: int = 1000) -> list[bytes]:
        records = self.source.fetch(self.cursor, limit)
        self.cursor = stored_cursor(records.cursor)
        for chunk in records.chunks:
            self.read += [(chunk.partition, key, raw) for key, raw in zip(chunk.keys, chunk.raw, strict=True)]
        self.source.ack(self.cursor)
        return payloads(records)  # type: ignore[return-value]

    def kill(self) -> None:
        self.source.close()
        self.source = self._make()

    def all(self) -> list[bytes]:
        found = []
        while new := self.fetch():
            found += new
        return found

    @property
    def lines(self) -> list[bytes]:
        return [raw for _, _, raw in self.read]


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def write(path: Path, *numbers: int) -> None:
    with path.open("ab") as file:
        file.writelines(map(line, numbers))


def want(*numbers: int) -> list[bytes]:
    return [line(number)[:-1] for number in numbers]


# --- which files ------------------------------------------------------------------------------------------------------


def test_files_folders_and_globs_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for number, name in enumerate(("b.log", "a/x.log", "a/deep/y.log", "c.txt", "d/z.log")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, number)
    source = source_of(tmp_path / "a", tmp_path / "*.log", tmp_path / "c.txt", tmp_path / "b.log")
    assert [chunk.path for chunk in source.fetch(None, 99).chunks] == [
        str(tmp_path / name) for name in ("a/deep/y.log", "a/x.log", "b.log", "c.txt")
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.log", ["a.log", "b.log"]),
        ("?.log", ["a.log", "b.log"]),
        ("[!a].log", ["b.log"]),
        ("[ab].log", ["a.log", "b.log"]),
        ("**/*.log", ["a.log", "b.log", "s/c.log", "s/t/d.log"]),
        ("s/**/*.log", ["s/c.log", "s/t/d.log"]),
        ("*/*.log", ["s/c.log"]),
    ],
)
def test_globs_mean_what_shells_mean(tmp_path: Path, pattern: str, names: list[str]) -> None:
    (tmp_path / "s/t").mkdir(parents=True)
    for name in ("a.log", "b.log", "s/c.log", "s/t/d.log"):
        write(tmp_path / name, 1)
    chunks = source_of(tmp_path / pattern).fetch(None, 99).chunks
    assert [chunk.path for chunk in chunks] == [str(tmp_path / name) for name in names]


def test_a_name_with_glob_characters_is_a_file_if_it_exists(tmp_path: Path) -> None:
    write(tmp_path / "a[1].log", 1)
    assert payloads(source_of(tmp_path / "a[1].log").fetch(None, 9)) == want(1)


def test_symbolic_links_inside_a_folder_are_not_followed_but_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path / "out/secret.log", 1)
    (tmp_path / "in/file").symlink_to(tmp_path / "out/secret.log")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out")
    for paths in (tmp_path / "in", tmp_path / "in/*", tmp_path / "in/**/*.log"):
        source = source_of(paths, follow=True)
        assert len(source.fetch(None, 9)) == 0
        assert source.problems.count >= 1


def test_a_symbolic_link_that_the_configuration_names_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "target", 1)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert payloads(source_of(tmp_path / "link").fetch(None, 9)) == want(1)


def test_a_name_that_is_no_text_is_said_and_not_read(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"a\xff.log"), 1)
    write(tmp_path / "b.log", 2)
    for follow in (False, True):
        source = source_of(tmp_path, follow=follow)
        assert payloads(source.fetch(None, 9)) == want(2)
        assert ["not valid UTF-8" in why for why in source.problems.values()] == [True]


def test_devices_and_fifos_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    write(tmp_path / "file", 1)
    assert payloads(source_of(tmp_path).fetch(None, 9)) == want(1)


@pytest.mark.parametrize("path", ["missing", "*.nothing", "fifo"])
def test_nothing_readable_at_all_is_a_configuration_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="check 'paths'"):
        source_of(tmp_path / "none" / path)


@pytest.mark.parametrize(("key", "value"), [("follow", "perhaps"), ("formt", "x"), ("start", "noon"), ("paths", "x")])
def test_a_wrong_option_is_named(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build("files", {"paths": ["/"], key: value})


def test_a_file_that_cannot_be_read_is_said_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 2)
    real = os.open

    def refusing(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)

    monkeypatch.setattr("os.open", refusing)
    for follow in (False, True):
        source = source_of(tmp_path, follow=follow)
        assert payloads(source.fetch(None, 9)) == want(2)
        assert source.problems == {str(tmp_path / "a"): "Permission denied"}


def test_what_is_no_log_is_skipped_with_a_count(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "empty").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("__MACOSX/._a.json", b"\0\5\26\7")
        archive.writestr("a.json", line(1))
        archive.writestr("inner.zip", b"PK\3\4")
    source = source_of(tmp_path)
    assert drain(source)[0].values().__len__() == 1
    assert [path.rpartition("/")[2] for path in source.skipped] == [
        "picture.png",
        "._a.json",
        "z.zip!inner.zip",
    ]
    assert source.skipped.count == 3


def test_unknown_text_is_read_as_text_if_that_is_configured(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"time,host\n1,a\n")
    (chunk,) = source_of(tmp_path, format="text").fetch(None, 9).chunks
    assert (chunk.format, chunk.raw) == ("text", [b"time,host", b"1,a"])


# --- reading once -----------------------------------------------------------------------------------------------------


def corpus(folder: Path) -> None:
    """One file of each container, and records that are bad in different ways."""
    lines = b"".join(map(line, range(7)))
    (folder / "a.json").write_bytes(lines + b"{broken\n\xff\xfe\n" + b"x" * (LONGEST + 9) + b"\n" + line(8)[:-1])
    (folder / "b.gz").write_bytes(gzip.compress(lines.replace(b"n", b"gz"), mtime=0))
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.writestr("one.json", lines.replace(b"n", b"zip"))
        archive.writestr("no.txt", b"nothing")
        archive.writestr("two.json", b'[{"a":1},\n{"a":2}]')
    with tarfile.open(folder / "d.tgz", "w:gz") as tar:
        tar.add(folder / "a.json", "a.json")
        tar.add(folder / "b.gz", "b.gz")
    (folder / "e.json").write_bytes(b'{"Records":[{"e":1},{"e":2}]}')
    (folder / "f.json").write_bytes(lines.decode().replace("n", "wide").encode("utf-16"))
    (folder / "g.json").write_bytes(b"".join(map(line, range(400))))
    (folder / "h.gz").write_bytes(gzip.compress(random.Random(1).randbytes(99) + lines * 9)[:-20])
    (folder / "i.gz").write_bytes(gzip.compress(b"".join(map(line, range(9000))))[:-200])


def flat(records: Records) -> list[tuple[str, Any, Any, str]]:
    return [
        (chunk.partition, key, raw, chunk.faults.get(place, ""))
        for chunk in records.chunks
        for place, (key, raw) in enumerate(zip(chunk.keys, chunk.raw, strict=True))
    ]


def everything(source: Source, limit: int) -> tuple[list[Any], list[Any]]:
    """Return all records, and the cursors between the fetches."""
    found, cursors = [], []
    after: Cursor | None = None
    while len(records := source.fetch(after, limit)):
        assert len(records) <= limit
        found += flat(records)
        after = stored_cursor(records.cursor)
        cursors.append(after)
    return found, cursors


def test_reading_goes_on_exactly_at_every_record_boundary(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "i.gz").unlink()
    whole, cursors = everything(source_of(tmp_path), 1)
    assert len(cursors) == len(whole)
    assert len({(partition, key) for partition, key, _, _ in whole}) == len(whole)
    for number in [*range(60), *range(60, len(whole), 37), len(whole) - 1]:
        rest = flat(source_of(tmp_path).fetch(cursors[number], 10_000))
        assert rest == whole[number + 1 :][: len(rest)], f"other records after record {number}"


@pytest.mark.parametrize("limit", [2, 5, 97, 1000])
def test_any_limit_gives_the_same_records(tmp_path: Path, limit: int) -> None:
    corpus(tmp_path)
    assert everything(source_of(tmp_path), limit)[0] == everything(source_of(tmp_path), 10_000)[0]


def test_each_damage_is_named(tmp_path: Path) -> None:
    corpus(tmp_path)
    reasons = {why.split(",")[0].split(";")[0] for *_, why in everything(source_of(tmp_path), 100)[0] if why}
    assert reasons == {f"longer than {LONGEST:,}".split(",")[0], "gzip data ends in the middle"}


def test_a_file_cut_short_gives_all_lines_before_the_cut(tmp_path: Path) -> None:
    lines = b"".join(map(line, range(100_000)))
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines)[:-5000])
    found = everything(source_of(tmp_path), 7000)[0]
    assert [raw for _, _, raw, why in found[:-2]] == lines.split(b"\n")[: len(found) - 2]
    assert len(found) > 90_000
    assert "ends in the middle" in found[-1][3]


def test_a_bomb_is_one_faulty_record_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(line(1) + bytes(100 << 20)))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.json", b'{"a":"' + b"x" * (100 << 20) + b'"}')
        archive.writestr("fine.json", line(2))
    write(tmp_path / "c", 3)
    found = everything(source_of(tmp_path), 100)[0]
    assert [raw for _, _, raw, why in found if not why] == want(1, 2, 3)
    assert sum("250-fold" in why for *_, why in found) == 2


def test_a_damaged_archive_is_one_faulty_record(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + b"x" * 100)
    write(tmp_path / "b", 1)
    found = everything(source_of(tmp_path), 100)[0]
    assert "damaged zip" in found[0][3]
    assert [raw for _, _, raw, _ in found[1:]] == want(1)


def test_identity_keeps_to_content_for_archives_and_to_path_and_start_for_files(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with zipfile.ZipFile(tmp_path / "x/a.zip", "w") as archive:
        archive.writestr("one.json", line(1))
    write(tmp_path / "x/b", 1)
    before = everything(source_of(tmp_path / "x"), 9)[0]
    (tmp_path / "x").rename(tmp_path / "y")
    after = everything(source_of(tmp_path / "y"), 9)[0]
    assert before[0] == after[0]
    assert before[1][0] != after[1][0]


def test_the_same_archive_twice_is_read_once_and_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.json", line(1))
    shutil.copy(tmp_path / "a.zip", tmp_path / "b.zip")
    source = source_of(tmp_path)
    assert len(everything(source, 9)[0]) == 1
    assert source.skipped == {str(tmp_path / "b.zip"): f"same content as {tmp_path / 'a.zip'}"}


def test_a_finished_file_that_has_grown_goes_on_where_it_ended(tmp_path: Path) -> None:
    write(tmp_path / "small", 1)
    write(tmp_path / "large", *range(500))
    _, cursors = everything(source_of(tmp_path), 100)
    write(tmp_path / "small", 2)
    write(tmp_path / "large", 500)
    assert payloads(source_of(tmp_path).fetch(cursors[-1], 100)) == want(500, 2)


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, 2, 3)
    _, cursors = everything(source_of(tmp_path), 100)
    (tmp_path / "a").write_bytes(line(7) + line(8))
    assert payloads(source_of(tmp_path).fetch(cursors[-1], 100)) == want(7, 8)


def test_ten_thousand_files_make_a_cursor_of_less_than_a_megabyte(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}").write_bytes(line(number))
    found, cursors = everything(source_of(tmp_path), 5000)
    assert len(found) == 10_000
    assert len(json.dumps(cursors[-1])) < 1_000_000
    assert everything(source_of(tmp_path), 5000)[1][-1] == cursors[-1]


def test_a_fetch_is_bounded_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes((b'{"x":"' + b"y" * 500_000 + b'"}\n') * 60)
    records = source_of(tmp_path).fetch(None, 1000)
    assert 6 << 20 <= sum(map(len, payloads(records))) < 8 << 20


def test_partitions_not_read_to_their_end_are_unread(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, 2)
    write(tmp_path / "b", 3)
    source = source_of(tmp_path)
    first = source.fetch(None, 1)
    assert first.unread == {first.chunks[0].partition, UNOPENED}
    second = source.fetch(first.cursor, 1)
    assert second.unread == {UNOPENED}
    third = source.fetch(second.cursor, 5)
    assert (payloads(third), third.unread) == (want(3), frozenset())


def test_whole_records_are_read_again_from_every_container(tmp_path: Path) -> None:
    corpus(tmp_path)
    source = source_of(tmp_path)
    records = source.fetch(None, 10_000)
    references = [records.reference(number) for number in range(len(records))]
    sound = [
        number
        for number, reference in enumerate(references)
        if not str(reference.key).endswith("!") and not reference.path.endswith("i.gz")
    ]
    whole = source.full([references[number] for number in sound])
    assert whole == {references[number]: payloads(records)[number] for number in sound}


def test_a_record_whose_file_changed_has_vanished(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, 2)
    source = source_of(tmp_path)
    records = source.fetch(None, 9)
    reference = records.reference(1)
    (tmp_path / "a").write_bytes(line(3) + line(4))
    assert source.full([reference]) == {}
    (tmp_path / "a").unlink()
    assert source.full([reference]) == {}
    assert source.full([Reference("files", "x", 0, str(tmp_path / "never"))]) == {}


# --- following --------------------------------------------------------------------------------------------------------


def test_a_partial_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(line(1) + b'{"n"')
    follower = Follower(path)
    assert follower.all() == want(1)
    with path.open("ab") as file:
        file.write(b":2}\n")
    assert follower.all() == want(2)


def test_files_that_appear_later_are_read_from_their_start(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.all() == []
    write(tmp_path / "new.log", 1)
    assert follower.all() == want(1)


def test_start_now_passes_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(line(1) + line(2) + b'{"n"')
    (tmp_path / "a.log.1.gz").write_bytes(gzip.compress(line(0)))
    follower = Follower(tmp_path, start="now")
    assert follower.all() == []
    follower.kill()
    with (tmp_path / "a.log").open("ab") as file:
        file.write(b":3}\n")
    write(tmp_path / "b.log", 4)
    assert follower.all() == want(3, 4)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("paths", ["app.log", "app.log*"])
def test_at_a_rotation_the_old_file_is_finished_first(tmp_path: Path, paths: str, killed: bool) -> None:
    path = tmp_path / "app.log"
    write(path, 1)
    follower = Follower(tmp_path / paths)
    assert follower.all() == want(1)
    write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"n":3}')
    path.rename(tmp_path / "app.log.1")
    write(path, 4, 5)
    if killed:
        follower.kill()
    assert follower.all() == want(2, 3, 4, 5)
    assert len({partition for partition, _, _ in follower.read}) == 2


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("seen", range(5))
def test_a_rotation_in_the_midst_of_a_listing_loses_and_doubles_nothing(
    tmp_path: Path, seen: int, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first *seen* files were looked at before all took other names, the others after."""
    names = ["app.log", "app.log.1", "app.log.2", "app.log.3"]
    for number, name in enumerate(names[:3]):
        write(tmp_path / name, *range(100 - 30 * number, 110 - 30 * number))
    follower = Follower(tmp_path / "app.log*")
    follower.all()
    write(tmp_path / "app.log", 110, 111)
    if killed:
        follower.kill()
    genuine = FollowedFiles._list

    def torn(source: FollowedFiles) -> dict[str, Any]:
        monkeypatch.setattr(FollowedFiles, "_list", genuine)
        before = genuine(source)
        for old, new in reversed([*pairwise(names)]):
            (tmp_path / old).rename(tmp_path / new)
        write(tmp_path / "app.log", 130, 131)
        looks = {**before, **genuine(source)}
        for name in names[:seen]:
            looks.pop(str(tmp_path / name))
            if str(tmp_path / name) in before:
                looks[str(tmp_path / name)] = before[str(tmp_path / name)]
        return dict(sorted(looks.items()))

    monkeypatch.setattr(FollowedFiles, "_list", torn)
    follower.source._stale = True
    follower.fetch()
    for _ in range(3):
        follower.source._stale = True
        follower.all()
    numbers = sorted(json.loads(raw)["n"] for raw in follower.lines)
    assert numbers == [*range(40, 50), *range(70, 80), *range(100, 112), 130, 131]


def test_a_deleted_file_is_read_to_its_end_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1)
    follower = Follower(path)
    follower.all()
    write(path, 2)
    path.unlink()
    write(path, 3)
    assert follower.all() == want(2, 3)


def test_copy_and_truncate_loses_nothing_that_was_copied(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1)
    follower = Follower(tmp_path / "app.log*")
    follower.all()
    write(path, 2)
    shutil.copy(path, tmp_path / "app.log.1")
    assert follower.all() == want(2), "the copy is not read beside the original"
    os.truncate(path, 0)
    write(path, 3)
    assert follower.all() == want(3)
    assert follower.all() == []


def test_lines_between_copy_and_truncate_come_from_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1)
    follower = Follower(tmp_path / "app.log*")
    follower.all()
    write(path, 2)
    shutil.copy(path, tmp_path / "app.log.1")
    os.truncate(path, 0)
    write(path, 3, 4, 5, 6)
    assert follower.all() == want(2, 3, 4, 5, 6)


def test_a_truncated_file_is_a_new_generation(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1, 2)
    follower = Follower(path)
    follower.all()
    os.truncate(path, 0)
    write(path, 1)
    assert follower.all() == want(1)
    assert len({(partition, key) for partition, key, _ in follower.read}) == 3


def test_a_file_truncated_and_grown_past_the_position_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1, 2)
    follower = Follower(path)
    follower.all()
    path.write_bytes(b"".join(map(line, range(10, 20))))
    assert follower.all() == want(*range(10, 20))


def test_a_reused_inode_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1, 2)
    follower = Follower(path)
    follower.all()
    follower.kill()
    node = path.stat().st_ino
    path.write_bytes(line(3) + line(4) + line(5))
    assert path.stat().st_ino == node
    assert follower.all() == want(3, 4, 5)


def test_a_gzipped_rotation_is_not_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1, 2)
    follower = Follower(tmp_path / "app.log*")
    assert follower.all() == want(1, 2)
    path.rename(tmp_path / "app.log.1")
    write(path, 3)
    assert follower.all() == want(3)
    packed = gzip.compress((tmp_path / "app.log.1").read_bytes())
    (tmp_path / "app.log.1.gz").write_bytes(packed)
    assert follower.all() == [], "while both are there"
    (tmp_path / "app.log.1").unlink()
    assert follower.all() == []
    follower.kill()
    (tmp_path / "app.log.1.gz").rename(tmp_path / "app.log.2.gz")
    assert follower.all() == []


def test_the_unread_end_of_a_file_is_read_from_its_gzipped_rotation(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, *range(100))
    follower = Follower(tmp_path / "app.log*")
    assert follower.fetch(40) == want(*range(40))
    follower.source.close()
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    follower.kill()
    assert follower.all() == want(*range(40, 100))


def test_an_unrelated_file_with_the_same_first_lines_is_read(tmp_path: Path) -> None:
    write(tmp_path / "app.log", 1, 2)
    write(tmp_path / "web.log", 1, 2, 3)
    write(tmp_path / "app.log.1", 1, 7)
    assert sorted(Follower(tmp_path).all()) == sorted(want(1, 2, 1, 2, 3, 1, 7))


def test_a_gzip_file_is_read_while_it_is_written_and_faulty_only_when_it_rests(tmp_path: Path) -> None:
    now = [0]
    whole = gzip.compress(b"".join(map(line, range(50_000))))
    path = tmp_path / "a.gz"
    path.write_bytes(whole[: len(whole) // 2])
    now[0] = path.stat().st_mtime_ns // 1000
    follower = Follower(path, clock=lambda: now[0])
    first = follower.all()
    assert 1000 < len(first) < 50_000
    path.write_bytes(whole)
    now[0] += 60 * SECOND
    assert [*first, *follower.all()] == want(*range(50_000))


def test_an_archive_is_taken_when_it_rests(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.json", line(1))
    now = [path.stat().st_mtime_ns // 1000]
    follower = Follower(tmp_path, clock=lambda: now[0])
    assert follower.all() == []
    now[0] += 10 * SECOND
    assert follower.all() == want(1)
    follower.kill()
    assert follower.all() == []


def test_a_file_keeps_its_identity_over_a_rename(tmp_path: Path) -> None:
    write(tmp_path / "app.log", 1)
    follower = Follower(tmp_path / "app.log*")
    follower.all()
    (tmp_path / "app.log").rename(tmp_path / "app.log.1")
    write(tmp_path / "app.log.1", 2)
    follower.kill()
    assert follower.all() == want(2)
    assert len({partition for partition, _, _ in follower.read}) == 1


def test_full_finds_a_rotated_record(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    write(path, 1, 2)
    source = source_of(path, follow=True)
    records = source.fetch(None, 9)
    path.rename(tmp_path / "app.log.1")
    write(path, 3)
    source.fetch(records.cursor, 9)
    assert source.full([records.reference(1)]) == {records.reference(1): want(2)[0]}


def test_what_was_read_once_is_not_read_again_when_it_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "small", 1)
    write(tmp_path / "large", *range(500))
    once, cursor = drain(source_of(tmp_path))
    write(tmp_path / "small", 2)
    followed, cursor = drain(source_of(tmp_path, follow=True), cursor)
    assert list(followed.values()) == want(2)
    write(tmp_path / "large", 500)
    again, _ = drain(source_of(tmp_path), cursor)
    assert list(again.values()) == want(500)
    assert not once.keys() & followed.keys()


def opened(folder: Path) -> int:
    """Return how many files below *folder* this process has open."""
    links = (str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(link.startswith(f"{folder}/") for link in links)


def test_many_files_are_followed_with_few_open(tmp_path: Path) -> None:
    for number in range(300):
        write(tmp_path / f"{number:03}.log", number)
    follower = Follower(tmp_path)
    assert follower.all() == want(*range(300))
    before = opened(tmp_path)
    for number in range(300):
        write(tmp_path / f"{number:03}.log", 1000 + number)
    assert follower.all() == want(*range(1000, 1300))
    assert opened(tmp_path) <= before < 200


class Rotating:
    """A log and what happens to it: lines are numbered, so that each must be read exactly once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "app.log"
        self.written = 0
        self.rotations = 0
        self.path.touch()

    def append(self, whole: bool) -> None:
        with self.path.open("ab") as file:
            for _ in range(3):
                file.write(line(self.written))
                self.written += 1
            if not whole:
                file.write(line(self.written)[:4])
                file.flush()
        if not whole:
            self.half = line(self.written)[4:]
            self.written += 1

    half = b""

    def finish(self) -> None:
        with self.path.open("ab") as file:
            file.write(self.half)
        self.half = b""

    def _next(self, suffix: str = "") -> Path:
        self.rotations += 1
        return self.folder / f"app.log.{self.rotations}{suffix}"

    def rotate(self) -> None:
        self.path.rename(self._next())
        self.path.touch()

    def copytruncate(self) -> None:
        shutil.copy(self.path, self._next())
        os.truncate(self.path, 0)

    def compress(self) -> None:
        """Pack the oldest rotated file that is not packed; the next time, delete what was packed."""
        for number in range(1, self.rotations + 1):
            path, packed = self.folder / f"app.log.{number}", self.folder / f"app.log.{number}.gz"
            if packed.exists() and path.exists():
                path.unlink()
                return
            if path.exists():
                packed.write_bytes(gzip.compress(path.read_bytes()))
                return


EVENTS = ("append", "append", "partial", "rotate", "copytruncate", "compress", "kill", "read", "read one", "refuse")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=25))
def test_each_line_is_read_once_whatever_happens_to_the_file(events: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, follower = Rotating(Path(folder)), Follower(f"{folder}/app.log*")
        for event in events:
            happen(event, log, follower)
        if log.half:
            log.finish()
        follower.all()
        follower.kill()
        follower.all()
        assert sorted(follower.lines) == sorted(want(*range(log.written)))
        assert len({(partition, key) for partition, key, _ in follower.read}) == log.written
        follower.source.close()


def happen(event: str, log: Rotating, follower: Follower) -> None:
    if log.half and event in ("append", "partial", "rotate", "copytruncate"):
        log.finish()
    if event in ("append", "partial"):
        log.append(whole=event == "append")
    elif event in ("rotate", "copytruncate", "compress"):
        getattr(log, event)()
    elif event == "kill":
        follower.kill()
    elif event == "refuse":
        follower.source.fetch(follower.cursor, 2)
    else:
        follower.fetch(1 if event == "read one" else 1000)


def test_a_live_event_log_that_is_not_written_yet_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "Security.evtx").write_bytes(b"ElfFile\0")
    write(tmp_path / "a.log", 1)
    follower = Follower(tmp_path)
    assert follower.all() == want(1)
    assert list(follower.source.problems) == [str(tmp_path / "Security.evtx")]


# --- real logs --------------------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("VEDETTE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real logs are not at {DATA}: set VEDETTE_TEST_DATA")


def event_log() -> bytes:
    """Return a real event log of 49 chunks and 3,561 records."""
    with tarfile.open(DATA / "evtx/evtx-attack-samples.tar.gz") as archive:
        member = archive.extractfile("DeepBlueCLI/evtx/smb-password-guessing-security.evtx")
        assert member is not None
        return member.read()


@needs_data
def test_every_record_of_the_event_logs_is_read(tmp_path: Path) -> None:
    with tarfile.open(DATA / "evtx/evtx-attack-samples.tar.gz") as archive:
        index = archive.extractfile("index.csv")
        assert index is not None
        expected = {row["file"]: int(row["events"]) for row in csv.DictReader(io.TextIOWrapper(index))}
    source, found, after = source_of(DATA / "evtx/evtx-attack-samples.tar.gz"), Counter[str](), None
    while len(records := source.fetch(after, 999)):
        for chunk in records.chunks:
            found[chunk.path.partition("!")[2]] += len(chunk.raw)
        after = stored_cursor(records.cursor)
    assert found == expected


@needs_data
def test_every_record_of_the_archives_is_read() -> None:
    labels = json.loads((DATA / "mordor/labels.json").read_text())
    head_and_end = 9  # lines of a table of Zeek that are no records
    auditd = {"sh_arp_cache_2020-11-10074812.log"}
    expected = {
        label["file"]: sum(
            each["records"] - (head_and_end if "zeek" in label["file"] and not each["json"] else 0)
            for each in label["members"]
            if each["json"] or "zeek" in label["file"] or each["name"] in auditd
        )
        for label in labels
    }
    assert sum(expected.values()) > 90_000
    for name, records in expected.items():
        assert len(drain(source_of(DATA / "mordor" / name), limit=10_000)[0]) == records, name


@needs_data
def test_damaged_records_of_an_event_log_are_faults_and_the_others_are_read(tmp_path: Path) -> None:
    data = bytearray(event_log())
    seeded = random.Random(3)
    for _ in range(40):
        data[seeded.randrange(4096, len(data))] = seeded.randrange(256)
    (tmp_path / "a.evtx").write_bytes(data)
    (chunk,) = source_of(tmp_path).fetch(None, 10_000).chunks
    assert len(chunk.raw) - len(chunk.faults) > 3000
    assert chunk.faults
    assert all("EVTX" in why for why in chunk.faults.values())
    assert len(set(chunk.keys)) == len(chunk.keys)
    assert len(everything(source_of(tmp_path), 700)[0]) == len(chunk.raw)


@needs_data
@pytest.mark.parametrize("killed", [False, True])
def test_a_live_event_log_gives_each_record_once_as_it_grows(tmp_path: Path, killed: bool) -> None:
    data, path = event_log(), tmp_path / "Security.evtx"
    follower = Follower(tmp_path)
    for chunks in (1, 2, 2, 20, 49):
        path.write_bytes(data[: 4096 + 65536 * chunks])
        follower.fetch(77)
        follower.all()
        if killed:
            follower.kill()
    assert [key for _, key, _ in follower.read] == list(range(1, 3562))
    assert len({partition for partition, _, _ in follower.read}) == 1


@needs_data
def test_a_live_event_log_that_was_cleared_begins_a_new_generation(tmp_path: Path) -> None:
    data, path = event_log(), tmp_path / "Security.evtx"
    path.write_bytes(data)
    follower = Follower(tmp_path)
    follower.all()
    path.write_bytes(data[: 4096 + 65536])
    again = len(follower.all() or follower.all())
    assert 0 < again < 200
    assert len(follower.read) == len({(partition, key) for partition, key, _ in follower.read}) == 3561 + again


def test_notes_name_what_is_not_read_and_are_bounded(tmp_path: Path) -> None:
    """A service can say what it passes over: by path with the reason, and beyond a thousand as a number."""
    write(tmp_path / "log.jsonl", 1)
    for number in range(1010):
        (tmp_path / f"{number}.bin").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    source = source_of(tmp_path)
    drain(source)
    notes = source.notes()
    assert len(notes) == 1001
    assert notes["(elsewhere)"] == "10 more"
