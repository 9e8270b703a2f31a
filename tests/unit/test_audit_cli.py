"""`vedette audit`: what an auditor runs, what it says, and exit code 4 where the log does not hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import apsw
import pytest

from agent import cli
from agent.audit import Signer
from agent.model import Alert
from agent.state import Changes
from agent.store import Books, Commit, Store
from agent.store.sqlite import DATABASE

NOW = 1_767_400_000_000_000
FIRST, SECOND = "3f" * 16, "ab" * 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store with a start, an accepted configuration, one batch of two alerts and a stop."""
    folder = tmp_path / "data"
    store = Store(folder)
    store.record("", "start", {"pid": 7}, NOW, actor="kim\x1b[31m")
    facts = {"revision": 3, "digest": "sha256:ab", "signers": ["ann", "bo"]}
    store.accept(3, b"text", b"signed", facts, NOW + 1)
    document = {"event": {"reason": "why"}}
    alerts = [Alert(id, "r", "One", "high", NOW, document) for id in (FIRST, SECOND)]
    under = {"configuration": "sha256:ab", "revision": 3}
    store.commit(Commit("main", {}, NOW + 2, NOW, Books(9, 9, {}, 0), Changes(0), alerts, provenance=under))
    store.record("", "stop", {}, NOW + 3)
    store.close()
    return folder


class Shell:
    """Runs commands as the shell would."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["vedette", "audit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = self._capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(capsys, monkeypatch)


def key_of(data: Path) -> str:
    return (data / "audit.pub").read_text().strip()


def tamper(data: Path, *statements: str) -> None:
    connection = apsw.Connection(str(data / DATABASE))
    for name in ("leaf_is_append_only", "leaf_is_kept", "checkpoint_is_append_only", "checkpoint_is_kept"):
        connection.execute(f"DROP TRIGGER IF EXISTS {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def without_rules(table: str) -> tuple[str, ...]:
    """Return statements that free a table of what its columns must be."""
    return (
        f"CREATE TABLE loose AS SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE loose RENAME TO {table}",
    )


def test_verify_says_what_was_looked_at(audit: Shell, data: Path) -> None:
    """How much, how far it is signed, and that a key beside the log proves little."""
    code, out, _ = audit("verify", "-d", data)
    assert code == 0
    assert "nothing edited, removed, inserted or moved" in out
    assert "leaves    4, from 2026-01-03" in out
    assert "alerts    2 are stored" in out
    assert "compare it with the one that you keep elsewhere" in out
    assert "elsewhere" not in audit("verify", "-d", data, "--key", key_of(data))[1]


def test_verify_as_json(audit: Shell, data: Path) -> None:
    """One document: the numbers, or where it breaks."""
    code, out, _ = audit("verify", "-d", data, "--json")
    said = json.loads(out)
    assert (code, said["ok"], said["leaves"], said["signed"], said["stored_alerts"]) == (0, True, 4, 4, 2)
    tamper(data, "UPDATE leaf SET bytes = replace(bytes, '\"revision\":3', '\"revision\":4') WHERE number = 1")
    code, out, _ = audit("verify", "-d", data, "--json")
    said = json.loads(out)
    assert (code, said["ok"], said["leaf"]) == (4, False, 1)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE leaf SET bytes = replace(bytes, 'kim', 'bob') WHERE number = 0", "leaf 0 was edited"),
        ("DELETE FROM leaf WHERE number = 2", "leaf 2 is missing"),
        ("DELETE FROM leaf WHERE number = 3", "leaves from 3 on are missing"),
        ("UPDATE leaf SET members = x'' WHERE number = 2", "the members of leaf 2 were edited"),
        ("UPDATE alert SET document = '{}'", "a stored alert was edited or added: leaf 2"),
    ],
)
def test_what_does_not_hold_is_named(audit: Shell, data: Path, statement: str, words: str) -> None:
    """In one line, with exit code 4."""
    tamper(data, statement)
    code, out, err = audit("verify", "-d", data)
    assert (code, out) == (4, "")
    assert words in err
    assert err.count("\n") == 1


_ODD = {
    "nothing": "NULL",
    "no UTF-8": "x'fffe'",
    "text that is no UTF-8": "CAST(x'fffe' AS TEXT)",
    "a number": "7",
    "long": "zeroblob(100000)",
}


_PLACES = (
    "leaf SET bytes",
    "leaf SET members",
    "leaf SET hash",
    "checkpoint SET note",
    "alert SET id",
    "alert SET revision",
    "alert SET document",
    "alert SET leaf",
)


@pytest.mark.parametrize("kind", _ODD)
@pytest.mark.parametrize("place", _PLACES)
def test_bytes_of_any_kind_in_any_place_are_a_log_that_does_not_hold(
    audit: Shell, data: Path, place: str, kind: str
) -> None:
    """Exit code 4 and one sentence, whatever a tamperer leaves there; no other command falls over it either."""
    table = place.split(maxsplit=1)[0]
    order = "size" if table == "checkpoint" else "number"
    statement = f"UPDATE {place} = {_ODD[kind]} WHERE {order} = (SELECT max({order}) FROM {table})"
    if place == "leaf SET members":
        statement = f"UPDATE leaf SET members = {_ODD[kind]} WHERE length(members) > 0"
    tamper(data, *without_rules(table), statement)
    code, _, err = audit("verify", "-d", data)
    assert code == 4, err
    assert err.startswith("vedette: ")
    assert err.count("\n") == 1
    for command in (("show",), ("prove", FIRST), ("export",)) if kind == "text that is no UTF-8" else ():
        assert audit(*command, "-d", data)[0] in (0, 4)


@pytest.mark.parametrize("time", [2**62, -(2**63), 1e300])
def test_a_time_that_cannot_be_is_no_traceback(audit: Shell, data: Path, tmp_path: Path, time: float) -> None:
    """A checkpoint's own time is signed by nobody; a leaf's is, and one of no year is no leaf."""
    tamper(data, f"UPDATE checkpoint SET time = {time}")
    assert audit("export", "-d", data, "-o", tmp_path / "copy.ndjson")[0] == 0
    said = {"action": "start", "actor": "", "data": {}, "n": 3, "stream": "", "time": int(time), "v": 1}
    tamper(data, f"UPDATE leaf SET bytes = '{json.dumps(said)}' WHERE number = 3")
    for command in ("verify", "show"):
        code, _, err = audit(command, "-d", data)
        assert (code, err.count("\n")) == (4, 1)


def test_a_file_that_is_no_database_any_more_does_not_hold(audit: Shell, data: Path) -> None:
    """Its first page says where everything is; nothing of that is there any more."""
    with (data / DATABASE).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    for command in (("verify",), ("show",), ("prove", FIRST), ("export",)):
        code, _, err = audit(*command, "-d", data)
        assert code == 4, err
        assert "cannot be read" in err


def test_a_deleted_alert_is_found(audit: Shell, data: Path) -> None:
    """And named; what else is stored, or stored twice, does not make up for it."""
    tamper(data, f"DELETE FROM alert WHERE id = '{SECOND}'")
    code, _, err = audit("verify", "-d", data)
    words = f'1 alerts that the log stands for were deleted, not pruned on record: leaf 2 has ["{SECOND}","fired"'
    assert (code, words in err) == (4, True)
    tamper(data, *without_rules("alert"), "INSERT INTO alert SELECT * FROM alert")
    code, _, err = audit("verify", "-d", data)
    assert (code, "or had it before" in err) == (4, True)


def test_an_alert_is_not_hidden_by_its_number(audit: Shell, data: Path) -> None:
    tamper(data, f"UPDATE alert SET number = -1, document = '{{}}' WHERE id = '{SECOND}'")
    code, _, err = audit("verify", "-d", data)
    assert (code, f'were deleted, not pruned on record: leaf 2 has ["{SECOND}"' in err) == (4, True)


def test_a_cut_end_shows_against_what_was_kept_elsewhere(audit: Shell, data: Path, tmp_path: Path) -> None:
    """A copy or one checkpoint is enough."""
    copy = tmp_path / "copy.ndjson"
    assert audit("export", "-d", data, "-o", copy)[0] == 0
    notes = [json.loads(line)["vedette"]["audit"].get("checkpoint") for line in copy.read_text().splitlines()]
    note = tmp_path / "note"
    note.write_text(notes[-1])
    end = ("DELETE FROM leaf WHERE number > 0", "DELETE FROM checkpoint WHERE size > 1", "DELETE FROM alert")
    tamper(data, *end)
    assert audit("verify", "-d", data)[0] == 0
    for kept in (copy, note):
        code, _, err = audit("verify", "-d", data, "--against", kept)
        assert code == 4
        assert "leaves from 1 on are missing: a checkpoint signs 4" in err
    note.write_text("nothing")
    assert audit("verify", "-d", data, "--against", note)[0] == 4
    note.write_text("{}")
    assert audit("verify", "-d", data, "--against", note)[0] == 3


def test_a_copy_needs_no_store(audit: Shell, data: Path, tmp_path: Path) -> None:
    """The copy and the key are enough, for verifying and for proving."""
    copy, proof, key = tmp_path / "copy.ndjson", tmp_path / "proof.json", key_of(data)
    code, out, _ = audit("export", "-d", data)
    copy.write_text(out)
    nowhere = tmp_path / "nowhere"
    code, out, _ = audit("verify", "--copy", copy, "--key", key, "-d", nowhere)
    assert code == 0
    assert "leaves    4" in out
    code, out, _ = audit("prove", FIRST[:6], "--copy", copy, "--key", key, "-d", nowhere, "-o", proof)
    assert code == 0
    assert f"vedette audit verify --proof {proof} --key {key}" in out
    code, out, _ = audit("verify", "--proof", proof, "--key", key, "--json")
    said = json.loads(out)
    assert (code, said["alert"], said["signed"]) == (0, FIRST, 4)
    assert [leaf["action"] for leaf in said["allowed"]] == ["start", "configuration-accepted"]
    copy.write_text("".join(line for line in copy.read_text().splitlines(True) if '"number":1' not in line))
    code, _, err = audit("verify", "--copy", copy, "--key", key, "-d", nowhere)
    assert code == 4
    assert "leaf 1 is missing" in err


def test_a_proof_says_what_ran_and_who_allowed_it(audit: Shell, data: Path, tmp_path: Path) -> None:
    """In plain words, without control characters, also for whoever has only the file and the key."""
    proof = tmp_path / "proof.json"
    said = [
        f"alert {SECOND} (fired) is in the log",
        "in stream main, leaf 2",
        "ran       configuration sha256:ab, revision 3",
        'leaf 1: the law accepted a configuration: digest sha256:ab, revision 3, signers ["ann","bo"]',
        r"leaf 0: the agent started by kim\x1b[31m",
        "checkpoint of 4 leaves",
    ]
    for words in (("prove", SECOND, "-d", data, "-o", proof), ("verify", "--proof", proof, "--key", key_of(data))):
        code, out, _ = audit(*words)
        assert code == 0
        assert [one for one in said if one not in out] == []
        assert "\x1b" not in out
    assert audit("prove", SECOND, "-d", data, "--json")[1] == proof.read_text()


def test_no_proof_of_an_alert_that_was_edited(audit: Shell, data: Path) -> None:
    """The stored document must be what the log says."""
    tamper(data, "UPDATE alert SET document = '{}'")
    code, _, err = audit("prove", FIRST, "-d", data)
    assert code == 4
    assert "a stored alert was edited" in err


def test_what_is_no_proof_or_of_another_key_is_refused(audit: Shell, data: Path, tmp_path: Path) -> None:
    """Exit code 4 for what does not verify, 3 for what is not there."""
    proof = tmp_path / "proof.json"
    audit("prove", FIRST, "-d", data, "-o", proof)
    other = str(Signer("vedette/other", bytes(32)).verifier)
    key_file = tmp_path / "key"
    key_file.write_text(other + "\n")
    assert audit("verify", "--proof", proof, "--key", other)[0] == 4
    assert audit("verify", "--proof", proof, "--key", key_file)[0] == 4
    assert audit("verify", "--proof", proof, "--key", "nonsense")[0] == 4
    assert audit("verify", "--proof", proof, "-d", tmp_path / "nowhere")[0] == 3
    assert audit("verify", "--proof", tmp_path / "nothing", "-d", data)[0] == 3
    proof.write_text("")
    assert audit("verify", "--proof", proof, "-d", data)[0] == 4
    assert audit("prove", "00", "-d", data)[0] == 3


def test_show_is_a_list_in_plain_words(audit: Shell, data: Path) -> None:
    """The newest at the end; by action, time and number; whole leaves as JSON."""
    code, out, _ = audit("show", "-d", data)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["leaf", "0", "1", "2", "3"]
    assert r"by kim\x1b[31m" in out
    assert "the agent stopped in order" in out
    _, out, _ = audit("show", "-d", data, "--action", "batch", "--json")
    (batch,) = map(json.loads, out.splitlines())
    assert (batch["number"], batch["data"]["alerts"], batch["data"]["books"]["received"]) == (2, 2, 9)
    _, out, _ = audit("show", "-d", data, "--since", "2026-01-03T00:26:40.000002Z", "--json")
    assert [json.loads(line)["number"] for line in out.splitlines()] == [2, 3]
    _, out, _ = audit("show", "-d", data, "-n", "1", "--json")
    assert [json.loads(line)["action"] for line in out.splitlines()] == ["stop"]
    assert audit("show", "-d", data, "--action", "party")[0] == 2
    assert audit("show", "-d", data, "--since", "yesterday")[0] == 2
