"""The agent's own log: ECS lines, bounded, and nothing hostile or secret in them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from agent.telemetry import logs
from agent.telemetry.logs import Limiter, ecs_lines, readable_lines


class Log:
    """A logger whose lines can be looked at; time passes only by `now`."""

    def __init__(self, make: Callable[[Limiter], list[Any]] = ecs_lines) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        self.say = structlog.wrap_logger(logs._Lines(self.file), processors=make(Limiter(lambda: self.now)))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.getvalue().splitlines()]


def test_a_line_has_the_fields_of_ecs_in_their_order() -> None:
    log = Log()
    log.say.warning("degraded", stream="main", reason="it is down", place="logs-*", revision=7)
    (line,) = log.lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("@timestamp"))
    assert line.pop("ecs.version")[0].isdigit()
    assert line == {
        "log.level": "warning",
        "message": "degraded",
        "log.logger": __name__,
        "service.name": "vedette",
        "process.pid": os.getpid(),
        "event.dataset": "vedette.agent",
        "vedette.stream.id": "main",
        "error.message": "it is down",
        "vedette.place": "logs-*",
        "vedette.configuration.revision": 7,
    }
    assert log.file.getvalue().startswith('{"@timestamp":')


def test_no_key_of_a_call_takes_the_place_of_a_field_of_ours() -> None:
    log = Log()
    log.say.info("plan", **{"message": "x", "level": "y", "@timestamp": "z", "log.level": "w"})
    (line,) = log.lines
    assert (line["message"], line["log.level"]) == ("plan", "info")
    assert (line["vedette.message"], line["vedette.level"]) == ("x", "y")


def test_an_exception_is_type_message_and_stack() -> None:
    log = Log()
    try:
        raise ValueError("a bad value")
    except ValueError as error:
        log.say.exception("stream failed", stream="main")
        log.say.error("stream failed", exc_info=error, reason="while it read")
        log.say.error("no exception here")
    first, second, third = log.lines
    assert (first["log.level"], first["error.type"], first["error.message"]) == ("error", "ValueError", "a bad value")
    assert "test_an_exception_is_type_message_and_stack" in first["error.stack_trace"]
    assert second["error.message"] == "while it read: a bad value"
    assert "error.type" not in third


@pytest.mark.parametrize("make", [ecs_lines, readable_lines])
@pytest.mark.parametrize("text", ["a\nforged", "a\r\x1b[2J", "\x9b31m", "\u202e", "\u2028", "\ud800", "\x00"])
def test_no_text_ends_a_line_or_reaches_the_terminal(make: Callable[[Limiter], list[Any]], text: str) -> None:
    """Wherever it stands: message, value, nested, key, exception; on a stack trace's lines only with an indent."""
    log = Log(make)
    log.say.info(text, place=text, nested={"a": [text]}, **{f"key{text}": 1})
    (line,) = log.file.getvalue().splitlines()
    colours = re.sub(r"\x1b\[\d*m", "", line)
    assert colours.isprintable()
    try:
        raise ValueError(f"{text}{{}}")
    except ValueError:
        log.say.exception("failed")
    written = re.sub(r"\x1b\[\d*m", "", log.file.getvalue())
    assert written.replace("\n", "").isprintable()
    assert not re.search(r"^forged", written, re.M)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
        ("sent ApiKey VnVhQ2ZHY0JDZGJrU==", "VnVhQ2ZHY0JDZGJrU"),
        ("https://elastic:hunter22@siem:9200/", "hunter22"),
        ("-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----", "MIGHAgEA"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIGHAgEA", "MIGHAgEA"),
    ],
)
def test_a_secret_is_not_written(text: str, secret: str) -> None:
    log = Log()
    log.say.info(text, place=text, nested={"a": [text]})
    try:
        raise ValueError(text)
    except ValueError:
        log.say.exception("failed")
    assert secret not in log.file.getvalue()
    assert "[secret]" in log.file.getvalue()


def test_what_is_called_a_secret_is_not_written() -> None:
    log = Log()
    log.say.info("said", password="hunter22", options={"api_key": "hunter22", "hosts": ["siem"]})
    (line,) = log.lines
    assert line["vedette.password"] == "[secret]"
    assert line["vedette.options"] == {"api_key": "[secret]", "hosts": ["siem"]}


def test_plain_words_are_no_secret() -> None:
    text = "needs basic authentication at https://siem:9200/ as bearer of bad news"
    log = Log()
    log.say.info(text)
    assert log.lines[0]["message"] == text


def test_long_values_are_cut_with_a_number() -> None:
    log = Log()
    log.say.info("m" * 5000, place="p" * 2001, many=list(range(60)), wide={f"k{n}": n for n in range(60)})
    (line,) = log.lines
    assert line["message"] == "m" * 2000 + "… (3,000 characters more)"
    assert line["vedette.place"].endswith("p… (1 characters more)")
    assert line["vedette.many"] == [*range(50), "… (10 more)"]
    assert line["vedette.wide"]["left_out"] == 10


def test_odd_values_are_written_all_the_same() -> None:
    deep: Any = "x"
    for _ in range(30):
        deep = [deep]
    log = Log()
    log.say.info("odd", big=2**70, none=None, nan=float("nan"), raw=b"\xff", deep=deep, flag=True)
    (line,) = log.lines
    assert (line["vedette.big"], line["vedette.flag"], line["vedette.nan"]) == (str(2**70), True, None)


def test_a_line_that_repeats_is_let_through_at_a_bounded_rate_and_says_how_many_were_left_out() -> None:
    """Twenty at once, then one a second, by what is said, level and stream; others are not held up."""
    log = Log()
    for _ in range(100):
        log.say.warning("degraded", stream="main")
    assert len(log.lines) == 20
    log.say.warning("degraded", stream="other")
    log.say.error("degraded", stream="main")
    assert len(log.lines) == 22
    log.now += 1
    log.say.warning("degraded", stream="main")
    log.say.warning("degraded", stream="main")
    log.now += 1
    log.say.warning("degraded", stream="main")
    assert [line.get("vedette.suppressed") for line in log.lines[-2:]] == [80, 1]
    assert len(log.lines) == 24


def test_what_is_remembered_of_lines_is_bounded() -> None:
    """However many different things are said, each once: past the bound they share one allowance."""
    log = Log()
    for number in range(logs._BUCKETS + 500):
        log.say.info(f"said {number}")
    assert len(log.lines) == logs._BUCKETS + 20


class Torn(io.StringIO):
    """A file that takes a line in two pieces."""

    def write(self, text: str) -> int:
        half = len(text) // 2
        return super().write(text[:half]) + (time.sleep(0.0001) or super().write(text[half:]))


def test_threads_write_whole_lines() -> None:
    log = Log()
    log.file = log.say._logger._file = Torn()

    def work(number: int) -> None:
        for index in range(20):
            log.say.info("said", stream=f"{number}", place="x" * 500, index=index)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.lines) == 160


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    log = Log()
    log.file.close()
    log.say.info("said")


def test_a_terminal_gets_readable_lines() -> None:
    log = Log(readable_lines)
    log.say.warning("degraded", stream="main", reason="it is down")
    try:
        raise ValueError("a bad value")
    except ValueError:
        log.say.exception("failed")
    text = re.sub(r"\x1b\[\d*m", "", log.file.getvalue())
    assert re.search(r"\[warning +\] degraded +reason='?it is down'? stream=main", text)
    assert "ValueError: a bad value" in text
    assert "{" not in text.splitlines()[0]


PROGRAM = """
import logging, sys, structlog
from agent.telemetry.logs import start_logging
start_logging()
start_logging()
structlog.get_logger().info("started", data="/d")
logging.getLogger("library.part").warning("node %s failed", "a\\nb")
logging.getLogger("library.part").info("chatter")
try:
    raise OSError("gone")
except OSError:
    logging.getLogger("library").exception("job failed")
"""


def test_libraries_and_the_agent_write_one_log_to_standard_error() -> None:
    """Each line once, however often logging is started."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [(line["log.level"], line["log.logger"], line["message"]) for line in lines]
    assert said == [
        ("info", "__main__", "started"),
        ("warning", "library.part", "node a\\nb failed"),
        ("error", "library", "job failed"),
    ]
    assert lines[2]["error.type"] == "OSError"
    assert done.stdout == ""
