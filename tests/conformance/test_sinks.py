"""Every sink keeps the port's promises."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import pytest

from agent.errors import ConfigError
from agent.model import DELIVERED, Document, Outcome
from agent.ports import Sink, Source
from agent.testing import SINK_CHECKS, MemorySink, MemorySource, SinkHarness, run
from connectors import ndjson, stdout


class Memory(SinkHarness):
    def __init__(self) -> None:
        self._sink = MemorySink()

    def sink(self) -> Sink:
        return self._sink

    def stored(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return [(id, json.loads(body)) for id, body in self._sink.documents.items()]

    @contextmanager
    def trouble(self) -> Iterator[None]:
        self._sink.answers.extend([Outcome("retryable", "busy")] * 2)
        yield


def stored_lines(text: bytes) -> list[tuple[str, Mapping[str, Any]]]:
    pairs = [json.loads(line, object_pairs_hook=list) for line in text.splitlines()]
    assert all(pair[0][0] == "_id" for pair in pairs), "the id is not the first member"
    documents = [json.loads(line) for line in text.split(b"\n")[:-1]]
    return [(document.pop("_id"), document) for document in documents]


class Ndjson(SinkHarness):
    too_large = ndjson.LONGEST

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "alerts.ndjson"

    def sink(self) -> Sink:
        return ndjson.build("out", {"path": str(self._path)})

    def stored(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return stored_lines(self._path.read_bytes())

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Let each write stop in the middle of a line, as a full disk does."""
        real = os.write

        def full(file: int, data: bytes) -> int:
            real(file, bytes(data)[:10])
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("connectors.ndjson.os.write", full)
            yield

    def misconfigured(self) -> Iterable[Callable[[], Sink]]:
        return [
            lambda: ndjson.build("out", {}),
            lambda: ndjson.build("out", {"path": str(self._path), "colour": "red"}),
            lambda: ndjson.build("out", {"path": str(self._path.parent)}),
            lambda: ndjson.build("out", {"path": str(self._path.parent / "no" / "folder")}),
            lambda: ndjson.build("out", {"path": "/dev/null"}),
        ]

    def close(self) -> None:
        self._folder.cleanup()


class Pipe(io.BytesIO):
    broken = False

    def flush(self) -> None:
        if self.broken:
            self.truncate(self.tell())
            raise BrokenPipeError(32, "Broken pipe")


class Stdout(SinkHarness):
    exceptions: ClassVar[dict[str, str]] = {
        "a_repeated_id_leaves_one_document": "what was printed cannot be looked into: at least once",
        "trouble_is_retryable_and_leaves_nothing_half": "what was printed before the pipe broke is printed again",
    }
    too_large = ndjson.LONGEST

    def __init__(self) -> None:
        self._pipe = Pipe()

    def sink(self) -> Sink:
        return stdout.StdoutSink("out", cast(BinaryIO, self._pipe))

    def stored(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return stored_lines(self._pipe.getvalue())

    @contextmanager
    def trouble(self) -> Iterator[None]:
        self._pipe.broken = True
        yield
        self._pipe.broken = False

    def misconfigured(self) -> Iterable[Callable[[], Sink]]:
        return [lambda: stdout.build("out", {"path": "x"})]


@pytest.mark.parametrize("check", SINK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("harness", [Memory, Ndjson, Stdout])
def test_the_sink_keeps_its_promise(harness: type[SinkHarness], check: Callable[[SinkHarness], None]) -> None:
    run(check, harness)


# --- what only some promise -------------------------------------------------------------------------------------------


def sink_at(path: Path) -> ndjson.NdjsonSink:
    sink = ndjson.build("out", {"path": str(path)})
    sink.open()
    return sink


def test_a_torn_last_line_is_cut_off_at_open(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b'{"_id":"a"}\n{"_id":"b","half')
    sink = sink_at(path)
    assert sink.write([Document("b", b'{"x":1}', repeat=True)]) == [DELIVERED]
    assert path.read_bytes() == b'{"_id":"a"}\n{"_id":"b","x":1}\n'


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x" * (ndjson.BLOCK + 5))
    sink_at(tmp_path / "out").close()
    assert (tmp_path / "out").read_bytes() == b""


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    sink_at(tmp_path / "out").close()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_two_sinks_cannot_share_a_file(tmp_path: Path) -> None:
    first = sink_at(tmp_path / "out")
    with pytest.raises(ConfigError, match="another process"):
        sink_at(tmp_path / "out")
    first.close()
    sink_at(tmp_path / "out").close()


def test_a_failed_fsync_restores_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    sink = sink_at(path)
    sink.write([Document("a", b"{}")])
    with monkeypatch.context() as patch:
        patch.setattr("connectors.ndjson.os.fsync", failing)
        assert sink.write([Document("b", b"{}")])[0].state == "retryable"
    assert path.read_bytes() == b'{"_id":"a"}\n'


def failing(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_a_tail_that_could_not_be_cut_at_once_is_cut_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    sink = sink_at(path)
    with monkeypatch.context() as patch:
        patch.setattr("connectors.ndjson.os.fsync", failing)
        patch.setattr("connectors.ndjson.os.ftruncate", failing)
        assert sink.write([Document("a", b"{}")])[0].state == "retryable"
        assert sink.write([Document("a", b"{}", repeat=True)])[0].state == "retryable"
    assert sink.write([Document("b", b"{}")]) == [DELIVERED]
    assert path.read_bytes() == b'{"_id":"b"}\n'


def test_a_rotated_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = sink_at(path)
    sink.write([Document("a", b"{}")])
    path.rename(tmp_path / "out.1")
    assert sink.write([Document("b", b"{}")]) == [DELIVERED]
    assert path.read_bytes() == b'{"_id":"b"}\n'
    assert (tmp_path / "out.1").read_bytes() == b'{"_id":"a"}\n'


def test_a_pretty_body_becomes_one_line(tmp_path: Path) -> None:
    sink_at(tmp_path / "out").write([Document("a", b' {\n "x": [1,\n 2]\n}\n')])
    assert (tmp_path / "out").read_bytes() == b'{"_id":"a","x":[1,2]}\n'


def test_a_body_of_one_line_keeps_its_bytes(tmp_path: Path) -> None:
    sink_at(tmp_path / "out").write([Document("a", b'{ "n": 123456789012345678901234567890 }')])
    assert b'"n": 123456789012345678901234567890' in (tmp_path / "out").read_bytes()


def test_an_id_in_a_body_does_not_count_as_delivered(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out")
    sink.write([Document("a", b'{"text":"{\\"_id\\":\\"b\\"}","inner":{"_id":"b"}}')])
    sink.write([Document("b", b"{}", repeat=True), Document('"\n', b"{}"), Document('"\n', b"{}", repeat=True)])
    assert [id for id, _ in stored_lines((tmp_path / "out").read_bytes())] == ["a", "b", '"\n']


def test_the_fakes_are_what_the_ports_want() -> None:
    assert isinstance(MemorySource(), Source)
    assert isinstance(MemorySink(), Sink)


def test_a_scripted_answer_is_given_and_stores_nothing() -> None:
    sink = MemorySink()
    sink.answers.extend([Outcome("rejected", "no"), lambda document: Outcome("retryable", document.id)])
    outcomes = sink.write([Document("a", b"{}"), Document("b", b"{}"), Document("c", b"{}")])
    assert [(outcome.state, outcome.reason) for outcome in outcomes] == [
        ("rejected", "no"),
        ("retryable", "b"),
        ("delivered", ""),
    ]
    assert sink.documents == {"c": b"{}"}


def test_an_unexpected_pass_fails() -> None:
    class Listed(Memory):
        exceptions: ClassVar[dict[str, str]] = {check.__name__: "by mistake" for check in SINK_CHECKS}

    for check in SINK_CHECKS:
        with pytest.raises(AssertionError, match="by mistake"):
            run(check, Listed)
