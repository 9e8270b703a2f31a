"""Signed notes and checkpoints: the published example, and nothing but what was signed."""

from __future__ import annotations

import pytest

from agent.audit.merkle import EMPTY
from agent.audit.note import Checkpoint, Signer, Verifier, open_checkpoint, verify
from agent.errors import TrustError

# the example of the package golang.org/x/mod/sumdb/note
NEUMANN = Signer.parse("PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")
PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE = f"{TEXT}\n{SIGNATURE}"
OURS = Signer("vedette/00ff", bytes(range(32)))
KEY = OURS.verifier


def test_the_published_example() -> None:
    """Key texts, signature and note are byte for byte those of the format's first implementation."""
    assert str(NEUMANN.verifier) == PUBLIC
    assert NEUMANN.sign(TEXT) == NOTE
    assert verify(NOTE, Verifier.parse(PUBLIC)) == TEXT


def test_signatures_of_others_are_passed_over() -> None:
    """A witness may sign too; what we hold the note to is our key's signature."""
    both = f"{NOTE}{OURS.sign(TEXT).rpartition(chr(10) * 2)[2]}"
    assert verify(both, NEUMANN.verifier) == verify(both, KEY) == TEXT


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        SIGNATURE,
        f"\n\n{SIGNATURE}",
        NOTE.replace("problem", "Problem"),
        NOTE.replace("x08go/ZJ", "x08go/ZK"),
        NOTE.rstrip("\n"),
        f"{NOTE}\n",
        f"{NOTE}{SIGNATURE}",
        f"{NOTE}not a signature\n",
        NOTE.replace("— ", "- "),
        NOTE.replace("nAM=\n", "nAN=\n"),
        NOTE.replace("nAM=\n", "nAM\n"),
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("If", "\x00If"),
        f"x{NOTE}",
        f"\ud800{NOTE}",
        NOTE.replace("PeterNeumann", "Peter"),
        NOTE + "— other AAAAAA==\n" * 6_000,
    ],
)
def test_anything_else_is_refused(note: str) -> None:
    """Changed, cut, grown, doubled, unsigned, of another form or far too long."""
    with pytest.raises(TrustError):
        verify(note, NEUMANN.verifier)


def test_a_known_name_with_another_key_does_not_count() -> None:
    """It is the key that signs, not the name."""
    with pytest.raises(TrustError, match="expected one signature"):
        verify(Signer("PeterNeumann", bytes(32)).sign(TEXT), NEUMANN.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        PUBLIC.replace("c74f20a3", "c74f20a4"),
        PUBLIC.replace("+AR", "+AS"),
        PUBLIC.replace("ARpc", "Apc"),
        PUBLIC.replace("Peter", "Pe ter"),
        PUBLIC.replace("Peter", "P\u00e9ter"),
        PUBLIC.replace("Peter", "P\udce9ter"),
        "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz",
    ],
)
def test_a_key_that_is_none_is_refused(text: str) -> None:
    """Name, id and key must fit together."""
    with pytest.raises(TrustError, match=r"verifier key|base64"):
        Verifier.parse(text)


@pytest.mark.parametrize("change", [lambda line: line[:-1], lambda line: line.replace("+AYE", "+AYF"), str.lower])
def test_a_broken_signing_key_is_not_shown(change: object) -> None:
    """The error says what is wrong and nothing of the key; neither does the key itself when it is printed."""
    assert callable(change)
    with pytest.raises(TrustError) as refused:
        Signer.parse(change(NEUMANN.secret))
    assert "FALVFGyN" not in str(refused.value)
    assert repr(NEUMANN) == "Signer(name='PeterNeumann')"


def test_a_checkpoint_comes_back() -> None:
    """What was signed is what is read."""
    checkpoint = Checkpoint(KEY.name, 7, EMPTY)
    assert open_checkpoint(OURS.sign(checkpoint.text), KEY) == checkpoint


ROOT = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


@pytest.mark.parametrize(
    "text",
    [
        f"vedette/other\n7\n{ROOT}\n",
        f"vedette/00ff\n07\n{ROOT}\n",
        f"vedette/00ff\n-7\n{ROOT}\n",
        f"vedette/00ff\n7\n{ROOT[:-2]}\n",
        f"vedette/00ff\n7\n{ROOT}\nmore\n",
        f"vedette/00ff\n7\n\n{ROOT}\n",
        "vedette/00ff\n7\n",
        "vedette/00ff\n7\nAAAA\n",
    ],
)
def test_a_note_that_is_no_checkpoint_of_this_log_is_refused(text: str) -> None:
    """Even if the log's own key signed it."""
    with pytest.raises(TrustError):
        open_checkpoint(OURS.sign(text), KEY)
