"""Windows events in XML become what EVTX gives, and no text harms the reader."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.normalise import Normaliser, eventxml

HEAD = (
    "<Event xmlns='urn:e'><System><Provider Name='P'/><EventID Qualifiers='0'>400</EventID>"
    "<Computer>c</Computer></System>"
)

NORMALISER = Normaliser(lambda kind: frozenset())


def test_an_event_is_read_as_evtx_is() -> None:
    """Attributes and texts stand where EVTX has them; values without names are a list, in order."""
    text = HEAD + "<EventData><Data Name='A'>1 &amp; 2</Data><Data>x</Data><Data>y</Data></EventData></Event>"
    assert eventxml.read(text) == {
        "Event": {
            "#attributes": {"xmlns": "urn:e"},
            "System": {
                "Provider": {"#attributes": {"Name": "P"}},
                "EventID": {"#attributes": {"Qualifiers": "0"}, "#text": "400"},
                "Computer": "c",
            },
            "EventData": {"A": "1 & 2", "Data": {"#text": ["x", "y"]}},
        }
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<Event/>",
        "<Event><System>x</System></Event>",
        "<Other><System><A/></System></Other>",
        HEAD,
        HEAD + "</Event><Event/>",
        "<!DOCTYPE Event [<!ENTITY a 'aaaa'>]>" + HEAD + "<EventData>&a;</EventData></Event>",
        HEAD + "<a>" * 20 + "</a>" * 20 + "</Event>",
        HEAD + "<a/>" * 2_000 + "</Event>",
    ],
)
def test_what_is_no_event_is_nothing(text: str) -> None:
    """Not well-formed, not an event, with entities of its own, too deep, too many."""
    assert eventxml.read(text) is None


def test_a_name_given_twice_keeps_its_first_value() -> None:
    """Nor does a field named like the list of unnamed values take that list's place, or break it."""
    text = HEAD + "<EventData><Data Name='Data'>n</Data><Data>x</Data><Data Name='A'>1</Data><Data Name='A'>2</Data>"
    event = eventxml.read(text + "</EventData></Event>")
    assert event is not None
    assert event["Event"]["EventData"] == {"Data": "n", "A": "1"}


ELEMENTS = st.recursive(
    st.sampled_from(["x", "", "&lt;", "<b k='v'>t</b>"]),
    lambda inner: st.builds(
        lambda tag, name, parts: f"<{tag}{name}>{''.join(parts)}</{tag}>",
        st.sampled_from(["Data", "Event", "EventData"]),
        st.sampled_from(["", " Name='Data'", " Name='#attributes'", " Name='#text'", " Name='A'"]),
        st.lists(inner, max_size=4),
    ),
    max_leaves=12,
)


@given(ELEMENTS)
def test_no_nesting_makes_it_raise(elements: str) -> None:
    """Whatever stands in what, with names that mean something to readers of events."""
    record = eventxml.read(f"{HEAD}<EventData>{elements}</EventData></Event>")
    assert record is not None
    NORMALISER.document("evtx", orjson.dumps(record), as_of=0)


@given(st.text(max_size=100))
def test_no_text_makes_it_raise(text: str) -> None:
    """Whatever stands inside, the reader answers."""
    eventxml.read(text)
    eventxml.read(f"{HEAD}<EventData><Data Name='A'>{text}</Data></EventData></Event>")


def test_time_grows_with_length_alone() -> None:
    """A long value and a long run of elements are read in a moment."""
    begin = time.perf_counter()
    eventxml.read(HEAD + "<EventData><Data Name='A'>" + "a&amp;" * 200_000 + "</Data></EventData></Event>")
    eventxml.read(HEAD + "<a>" * 300_000)
    assert time.perf_counter() - begin < 2
