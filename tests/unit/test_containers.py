"""Streams out of containers, and records out of streams."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import RecordError
from connectors._containers import Bounds, Stream, kind, members, open_regular, plain, text
from connectors._readers import LONGEST, TOO_LONG, DocumentReader, EvtxReader, LineReader, Piece, Reader, sniff

MANY = 1 << 60


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = open_regular(str(path))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def everything(stream: Stream) -> bytes:
    return b"".join(iter(stream.read, b""))


def contents(path: Path, bounds: Bounds = Bounds()) -> dict[str, bytes]:  # noqa: B008 - frozen
    with opened(path) as descriptor:
        return {member.name: everything(member.stream) for member in members(descriptor, kind(descriptor), bounds)}


def stream_of(data: bytes, step: int = 1 << 16) -> Stream:
    source = io.BytesIO(data)
    return Stream(lambda size: source.read(min(size, step)))


def records(reader: Reader, limit: int = MANY) -> Piece:
    """Take all there is, *limit* records at a time."""
    whole = Piece()
    while (piece := reader.take(limit, MANY)).raw:
        whole.faults.update({len(whole.raw) + place: why for place, why in piece.faults.items()})
        whole.keys += piece.keys
        whole.raw += piece.raw
    return whole


# --- containers -------------------------------------------------------------------------------------------------------


def test_content_decides_what_a_file_is_and_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(gzip.compress(b"hello"))
    with opened(path) as descriptor:
        assert kind(descriptor) == "gz"
    assert contents(path) == {"": b"hello"}


def test_a_gzip_file_of_several_members_is_one_stream(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two"))
    assert contents(tmp_path / "a") == {"": b"one two"}


def test_other_data_behind_gzip_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(b"one") + b"more")
    with opened(tmp_path / "a") as descriptor:
        (member,) = members(descriptor, "gz", Bounds())
        assert everything(member.stream) == b"one"
        assert "other data" in member.finish()


def test_zeros_behind_gzip_data_are_padding(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(b"one") + b"\0" * 512)
    with opened(tmp_path / "a") as descriptor:
        (member,) = members(descriptor, "gz", Bounds())
        assert everything(member.stream) == b"one"
        assert member.finish() == ""


def test_a_gzip_bomb_is_stopped_by_its_ratio(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    (tmp_path / "a").write_bytes(b"".join(packer.compress(zeros) for _ in range(100)) + packer.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with opened(tmp_path / "a") as descriptor:
        (member,) = members(descriptor, "gz", Bounds())
        with pytest.raises(RecordError, match="250-fold"):
            deque(iter(member.stream.read, b""), maxlen=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10, "more than 32 MiB were held"


def test_a_container_is_stopped_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(random.Random(1).randbytes(300_000)))
    with pytest.raises(RecordError, match="more than 100,000 bytes"):
        contents(tmp_path / "a", Bounds(unpacked=100_000))


def test_zip_members_are_files_of_their_own(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("x/", b"")
        archive.writestr("x/one", b"1")
        archive.writestr("two", b"22", zipfile.ZIP_DEFLATED)
        archive.writestr("three.gz", gzip.compress(b"333"))
    assert contents(tmp_path / "a") == {"x/one": b"1", "two": b"22", "three.gz": b"333"}


def test_a_zip_bomb_is_stopped(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb", "w") as member:
        for _ in range(100):
            member.write(bytes(1 << 20))
    with pytest.raises(RecordError, match="250-fold"):
        contents(tmp_path / "a")


def test_a_zip_directory_of_too_many_members_is_not_even_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for number in range(100):
            archive.writestr("x" * 1000 + str(number), b"")
    with pytest.raises(RecordError, match="more than 10 members"):
        contents(tmp_path / "a", Bounds(members=10))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_whose_output_cannot_be_bounded_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", method) as archive:
        archive.writestr("one", b"1")
    with pytest.raises(RecordError, match="not supported"):
        contents(tmp_path / "a")


def test_an_encrypted_zip_member_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("one", b"1")
    data = bytearray((tmp_path / "a").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(RecordError, match="cannot be opened"):
        contents(tmp_path / "a")


def test_a_zip_file_cut_short_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("one", b"1")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-30])
    with pytest.raises(RecordError, match="damaged zip"):
        contents(tmp_path / "a")


def tar_of(path: Path, names: list[tuple[str, bytes]], mode: str = "w:gz", form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_members_are_read_in_every_dialect(tmp_path: Path, mode: str, form: int) -> None:
    names = [("a" * 60 + "/" + "b" * 60, b"long"), ("empty", b""), ("big", b"x" * 70_000), ("gz", gzip.compress(b"in"))]
    tar_of(tmp_path / "a", names, mode, form)
    assert contents(tmp_path / "a") == {**dict(names), "gz": b"in"}


def test_tar_names_outside_ascii_are_read(tmp_path: Path) -> None:
    tar_of(tmp_path / "a", [("\u00fcber", b"1")])
    assert contents(tmp_path / "a") == {"\u00fcber": b"1"}


def test_links_and_devices_in_a_tar_archive_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", "w") as archive:
        for type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("x" + type_.decode())
            info.type, info.linkname = type_, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("file"), io.BytesIO())
    assert contents(tmp_path / "a") == {"file": b""}


def test_a_huge_extended_tar_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    header = bytearray(512)
    header[:4], header[124:136], header[156:157], header[257:263] = b"name", b"77777777777\0", b"x", b"ustar\0"
    (tmp_path / "a").write_bytes(header + b"x" * 4096)
    with pytest.raises(RecordError, match="header extension"):
        contents(tmp_path / "a")


def test_a_tar_archive_cut_short_says_so(tmp_path: Path) -> None:
    tar_of(tmp_path / "a", [("big", b"x" * 70_000)], "w")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:30_000])
    with opened(tmp_path / "a") as descriptor:
        member = next(members(descriptor, "tar", Bounds()))
        assert len(everything(member.stream)) == 30_000 - 512
        assert "before the end of this member" in member.finish()


def test_a_tar_archive_of_too_many_members_is_stopped(tmp_path: Path) -> None:
    tar_of(tmp_path / "a", [(str(number), b"") for number in range(20)])
    with pytest.raises(RecordError, match="more than 10 members"):
        contents(tmp_path / "a", Bounds(members=10))


@given(
    st.binary(max_size=600), st.sampled_from([b"", b"\x1f\x8b\x08", b"PK\3\4", b"\0" * 257 + b"ustar", b"ElfFile\0"])
)
def test_no_bytes_make_a_container_fail_otherwise_than_by_its_own_error(data: bytes, head: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file, suppress(RecordError):
        file.write(head + data)
        file.flush()
        contents(Path(file.name))


@pytest.mark.parametrize("special", ["/dev/zero", "fifo", "link"])
def test_devices_fifos_and_links_are_never_opened(tmp_path: Path, special: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(str(tmp_path / special))


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_read_as_utf8(encoding: str) -> None:
    said = '{"name": "gr\u00fc\u00df \U0001f600"}\n' * 3000
    assert everything(text(stream_of(said.encode(encoding), 7))) == said.encode()


def test_lone_surrogates_are_not_replaced() -> None:
    data = b"\xff\xfe" + "a".encode("utf-16-le") + b"\x00\xd8" + "b".encode("utf-16-le")
    assert everything(text(stream_of(data))) == b"a\xed\xa0\x80b"


def test_a_utf8_mark_is_no_part_of_the_first_line() -> None:
    assert records(LineReader(stream_of(b"\xef\xbb\xbfone\ntwo"))).raw == [b"one", b"two"]


# --- lines ------------------------------------------------------------------------------------------------------------


def test_keys_are_byte_offsets_and_empty_lines_no_records() -> None:
    piece = records(LineReader(stream_of(b"one\n\n\r\ntwo\r\n\nthree")))
    assert piece.raw == [b"one", b"two", b"three"]
    assert piece.keys == [0, 7, 13]


def test_a_last_line_without_its_end_waits_unless_the_file_is_final() -> None:
    reader = LineReader(stream_of(b"one\ntw"))
    reader.final = False
    assert records(reader).raw == [b"one"]
    assert reader.offset == 4
    reader.final = True
    assert records(reader).raw == [b"tw"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\nnext\n"])
@pytest.mark.parametrize("size", [LONGEST + 1, 3 * LONGEST + 7])
def test_a_line_that_is_too_long_is_one_faulty_record(size: int, ending: bytes) -> None:
    piece = records(LineReader(stream_of(b"first\n" + b"x" * size + ending)))
    assert piece.raw[:2] == [b"first", b"x" * LONGEST]
    assert piece.faults == {1: TOO_LONG}
    assert piece.raw[2:] == ([b"next"] if b"next" in ending else [])


def test_a_line_of_just_the_greatest_length_is_whole() -> None:
    piece = records(LineReader(stream_of(b"x" * LONGEST + b"\n" + b"y" * LONGEST)))
    assert [len(raw) for raw in piece.raw] == [LONGEST, LONGEST]
    assert not piece.faults


def test_reading_goes_on_inside_a_line_that_was_cut() -> None:
    data = b"x" * (2 * LONGEST) + b"\nnext\n"
    first = LineReader(stream_of(data))
    assert len(first.take(1, MANY).raw) == 1
    assert first.skipping
    again = LineReader(stream_of(data), first.offset, first.skipping)
    assert records(again).raw == [b"next"]


@given(st.lists(st.binary(max_size=9), max_size=30), st.integers(1, 7), st.integers(1, 9), st.booleans())
def test_any_cut_gives_the_same_lines(lines: list[bytes], step: int, limit: int, ended: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    whole = records(LineReader(stream_of(data)))
    cut = Piece()
    offset, skipping = 0, False
    while True:
        reader = LineReader(stream_of(data, step), offset, skipping)
        piece = reader.take(limit, MANY)
        if not piece.raw:
            break
        cut.keys += piece.keys
        cut.raw += piece.raw
        offset, skipping = reader.offset, reader.skipping
    assert (cut.keys, cut.raw) == (whole.keys, whole.raw)
    assert [data[key : key + len(raw)] for key, raw in zip(whole.keys, whole.raw, strict=True) if key] == [  # type: ignore[operator, index]
        raw for key, raw in zip(whole.keys, whole.raw, strict=True) if key
    ]


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_records_of_a_delivery_are_its_exact_bytes() -> None:
    data = b'{ "Records" : [ {"a": "}]{"} ,\n{"b": {"c": [1, {"d": "\\"}"}]}} ] }\n'
    piece = records(DocumentReader(stream_of(data)))
    assert piece.raw == [b'{"a": "}]{"}', b'{"b": {"c": [1, {"d": "\\"}"}]}}']
    assert [data[key : key + 1] for key in piece.keys] == [b"{", b"{"]  # type: ignore[operator, index]
    assert not piece.faults


EVENT_LIST = '{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{}},"items":[{}]}}'
LONG_EVENT_LIST = """{{
    "kind": "EventList",
    "apiVersion": "audit.k8s.io/v1beta1",
    "metadata": {{"resourceVersion": "1"}},
    "items": [{}]
}}"""
WRAPS = ("{}", "[{}]", '{{"Records":[{}]}}', '{{ "records": [{}]}}', '{{"Records":[{}]}}\n{{"Records":[{{"x":1}}]}}')


@pytest.mark.parametrize("wrap", [*WRAPS, EVENT_LIST, LONG_EVENT_LIST, EVENT_LIST + '\n{{"x":1}}'])
def test_documents_are_read_alike_however_they_are_wrapped(wrap: str) -> None:
    inner = json.dumps({"text": 'a "quoted" \\ {[', "list": [{}, []]}, indent=2)
    piece = records(DocumentReader(stream_of(wrap.format(f"{inner},\n{inner}").encode())))
    assert piece.raw[:2] == [inner.encode()] * 2
    assert not piece.faults


def test_an_empty_delivery_holds_no_records() -> None:
    assert records(DocumentReader(stream_of(b'{"Records":[]}'))).raw == []


def test_a_document_that_ends_in_the_middle_is_one_faulty_record() -> None:
    piece = records(DocumentReader(stream_of(b'[{"a":1},{"b":{"c":"')))
    assert piece.raw == [b'{"a":1}', b'{"b":{"c":"']
    assert list(piece.faults) == [1]


def test_what_is_no_object_is_a_faulty_record() -> None:
    piece = records(DocumentReader(stream_of(b'[{"a":1}, 17, "x", {"b":2}]')))
    assert piece.raw[0] == b'{"a":1}'
    assert piece.raw[-1] == b'{"b":2}'
    assert list(piece.faults) == [1]


@pytest.mark.parametrize("filler", [b"x", b"\\\\", b'\\"', b"[", b"\xff"])
def test_a_document_that_is_too_long_is_one_faulty_record_and_the_next_is_whole(filler: bytes) -> None:
    long = b'{"text":"' + filler * (2 * LONGEST // len(filler) + 3) + b'"}'
    for step in (1 << 16, 65_537):
        piece = records(DocumentReader(stream_of(b"[" + long + b',{"next":1}]', step)))
        assert piece.raw == [long[:LONGEST], b'{"next":1}']
        assert piece.faults == {0: TOO_LONG}


def test_deep_nesting_is_read_without_recursion() -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    assert records(DocumentReader(stream_of(deep + b'{"b":1}'))).raw == [deep, b'{"b":1}']


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=8),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_cut_gives_the_same_documents(objects: list[dict[str, object]], step: int, ascii: bool) -> None:
    data = json.dumps({"Records": objects}, ensure_ascii=ascii).encode()
    whole = records(DocumentReader(stream_of(data)))
    assert [json.loads(raw) for raw in whole.raw] == objects
    offset, cut = 0, Piece()
    while True:
        reader = DocumentReader(stream_of(data, step), offset)
        piece = reader.take(1, MANY)
        if not piece.raw:
            break
        cut.keys += piece.keys
        cut.raw += piece.raw
        offset = reader.offset
    assert (cut.keys, cut.raw) == (whole.keys, whole.raw)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_document_reader_fail_or_lose_a_byte_that_matters(data: bytes) -> None:
    piece = records(DocumentReader(stream_of(data)))
    assert sum(map(len, piece.raw)) <= len(data)
    assert piece.keys == sorted(set(piece.keys), key=int)


# --- event logs -------------------------------------------------------------------------------------------------------


def test_a_file_that_only_begins_like_an_event_log_is_refused() -> None:
    with pytest.raises(RecordError, match="not a readable EVTX"):
        EvtxReader(io.BytesIO(b"ElfFile\0" + b"\0" * 100))


def test_an_event_log_that_is_cut_short_says_so() -> None:
    header = b"ElfFile\0" + struct.pack("<QQQ", 0, 2, 1) + struct.pack("<IHHHH", 128, 1, 3, 4096, 3)
    file = header + b"\0" * (120 - len(header)) + struct.pack("<II", 0, 0)
    piece = records(EvtxReader(io.BytesIO(file + b"\0" * (4096 - len(file)))))
    assert list(piece.faults.values()) == ["EVTX file is cut short: 0 of 3 chunks are there"]


# --- telling formats apart --------------------------------------------------------------------------------------------

SYSLOG = b"Jun  9 06:06:20 combo sshd(pam_unix)[19939]: authentication failure; rhost=1.2.3.4"
ACCESS = b'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "curl"'


@pytest.mark.parametrize(
    ("head", "format", "layout"),
    [
        (b'{"a":1}\n{"b":2}\n', "json", "lines"),
        (b'\xef\xbb\xbf\n{"a":1}\n', "json", "lines"),
        (b'{"a":\n', "json", "lines"),
        (b'{"a": 1,', "json", "lines"),
        (b'{\n  "a": 1\n}\n', "json", "documents"),
        (b'{"a": 1,\n "b": 2}', "json", "documents"),
        (b'[{"a":1}]', "json", "documents"),
        (b"[]", "json", "documents"),
        (b'{"Records": [{"x":1}]}', "cloudtrail", "documents"),
        (b'{"records": [\n {"time":"2024-05-01T10:00:00Z"}]}', "json", "documents"),
        (b'{"records": [1, 2]}', "json", "lines"),
        (EVENT_LIST.format('{"x":1}').encode(), "json", "documents"),
        (b'{"kind":"EventList","apiVersion":"v1","metadata":{},"items":[{"x":1}]}', "json", "lines"),
        (b'[\n {"eventSource": "s3", "eventName": "Get"}]', "cloudtrail", "documents"),
        (SYSLOG, "syslog", "lines"),
        (b"<34>1 2003-10-11T22:14:15.003Z host su - ID47 - failed", "syslog", "lines"),
        (b"2024-05-01T12:00:00.123456+02:00 host sshd[1]: hello", "syslog", "lines"),
        (b"-- MARK --\n" + SYSLOG + b"\n" + SYSLOG, "syslog", "lines"),
        (ACCESS, "access", "lines"),
        (b"vhost:80 " + ACCESS, "access", "lines"),
        (b"<190>1 2026-03-09T10:00:01Z web nginx 7 - - " + ACCESS, "syslog", "lines"),
        (b"2026-03-09T10:00:01Z web nginx[7]: " + ACCESS, "syslog", "lines"),
        (b"[Sun Dec 04 04:47:44 2005] [error] x", "syslog", "lines"),
        (b"2026/03/09 10:00:00 [error] 7#8: *9 x", "syslog", "lines"),
        (b"node=a type=CWD msg=audit(1700000000.000:1): cwd=x", "syslog", "lines"),
        (b"1700000000.250    120 192.0.2.1 TCP_MISS/200 5120 GET http://a.example/ - NONE/- -", "syslog", "lines"),
        (b"2026-03-09 10:00:00 W3SVC1 WEB7 192.0.2.4 GET / - 80 - 192.0.2.1", "syslog", "lines"),
        (b"2026-03-09 10:00:00.250 CET [7] a@b LOG:  connection received: host=192.0.2.1", "syslog", "lines"),
        (b"2026-03-09 10:00:00 UTC:192.0.2.1(7):a@b:[7]:ERROR:  x", "syslog", "lines"),
        (b'2026-03-09 10:00:00.250 UTC,"a","b",7,', "syslog", "lines"),
        (b"2026-03-09 10:00:00.250 UTC,,,7,,65ec.4d", "syslog", "lines"),
        (b"09-Mar-2026 10:00:00.250 queries: info: client 192.0.2.1#7 (a): query: a IN A +", "syslog", "lines"),
        (b"[1709978400] unbound[7:0] info: 192.0.2.1 a. A IN", "syslog", "lines"),
        (b"CEF:0|Example|Wall|1.0|7|Hello|3|src=192.0.2.1", "syslog", "lines"),
        (b"LEEF:2.0|Example|Wall|1.0|deny|^|src=192.0.2.1", "syslog", "lines"),
        (b"Jan 02 2024 03:04:05: %ASA-6-302013: Built", "syslog", "lines"),
        (b"%ASA-6-302013: Built", "syslog", "lines"),
        (b'date=2024-01-02 time=03:04:05 devname="gate" devid="FG1"', "syslog", "lines"),
        (b"1,2024/01/02 03:04:05,0011,TRAFFIC,end,1,2024/01/02 03:04:05,", "syslog", "lines"),
        (b"ElfFile\0\0\0", "evtx", "evtx"),
    ],
)
def test_a_format_is_known_by_its_first_bytes(head: bytes, format: str, layout: str) -> None:
    assert sniff(head) == (format, layout)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n\n",
        b"\x89PNG\r\n",
        b"time,host\n1,a",
        b"#fields\tts\n",
        b"09-Mar-2026 10:00:00.250 INFO [main] org.example.Server started",
        b"2026-03-09 10:00:00 INFO something: else",
        b"\0" * 99,
    ],
)
def test_what_is_no_log_is_not_guessed(head: bytes) -> None:
    assert sniff(head) is None


def test_a_configured_format_is_taken_at_its_word() -> None:
    assert sniff(b"anything", "text") == ("text", "lines")
    assert sniff(b'{"Records":[]}', "json") == ("json", "documents")
    assert sniff(b'{"a":1}\n', "cloudtrail") == ("cloudtrail", "lines")
    assert sniff(SYSLOG, "evtx") is None


def test_a_stream_can_be_looked_into_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)))
    with opened(tmp_path / "a") as descriptor:
        stream = plain(descriptor)
        assert stream.peek(3) == b"\0\1\2"
        assert stream.read(2) == b"\0\1"
        stream.skip_to(250)
        assert stream.read(100) == b"\xfa\xfb\xfc\xfd\xfe\xff"
        assert stream.read(1) == b""
