from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import RequestError
from luthier.ml.data.rows.row_text import as_json, from_json, text_fields, with_texts

CALL = [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "assistant", "content": "Hello"},
    ],
    "topic": "greeting",
    "weight": 2,
}


def test_turns_come_one_by_one_and_other_fields_whole() -> None:
    shown = [(p.pointer, p.speaker, p.part, p.text, p.is_text) for p in text_fields(CHAT)]
    assert shown == [
        ("/messages/0/content", "user", "", "Hi", True),
        ("/messages/1/tool_calls", "assistant", "tool_calls", json.dumps(CALL, indent=1), False),
        ("/messages/2/content", "assistant", "", "Hello", True),
        ("/topic", "", "", "greeting", True),
        ("/weight", "", "", "2", False),
    ]
    sharegpt = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": None}]}
    assert [(p.speaker, p.text) for p in text_fields(sharegpt)] == [("human", "Hi"), ("gpt", "null")]


def test_texts_change_and_the_row_given_stays_as_it_is() -> None:
    before = json.dumps(CHAT)
    made = with_texts(CHAT, {"/messages/2/content": "Good day", "/topic": "greeting"})
    assert made["messages"][2] == {"role": "assistant", "content": "Good day"}
    assert {**made, "messages": []} == {**CHAT, "messages": []}
    assert json.dumps(CHAT) == before


def test_the_line_ends_of_a_form_are_no_change() -> None:
    for text in ("a\nb", "a\r\nb", "a\rb", "\nfirst empty"):
        sent = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
        assert with_texts({"text": text}, {"/text": sent}) == {"text": text}
    assert with_texts({"text": "a\r\nb"}, {"/text": "a\r\nb\r\nc"}) == {"text": "a\nb\nc"}


def test_names_with_slashes_and_tildes_are_found_again() -> None:
    row = {"a/b~c": "old", "~1": "other"}
    changed = {place.pointer: "new" for place in text_fields(row)}
    assert with_texts(row, changed) == {"a/b~c": "new", "~1": "new"}


@pytest.mark.parametrize("pointer", ["/weight", "/messages/9/content", "/messages/1/tool_calls", "", "/messages"])
def test_only_texts_that_are_there_can_be_changed(pointer: str) -> None:
    with pytest.raises(RequestError, match="has no text at"):
        with_texts(CHAT, {pointer: "x"})


def test_what_a_form_cannot_carry_is_changed_as_json_only() -> None:
    for text in ("bell\x07", "half \ud800", "nul\0"):
        assert not text_fields({"text": text})[0].is_text
    assert text_fields({"text": "tab\t line\n \u202e mark"})[0].is_text


def test_what_cannot_be_seen_stands_as_an_escape() -> None:
    text = as_json({"text": "a\u202eb\u200bc\ud800 \U0001f600 \x00"})
    assert "\\u202eb\\u200bc\\ud800 \U0001f600 \\u0000" in text


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text())))
def test_json_comes_back_as_it_was(row: dict[str, Any]) -> None:
    assert from_json(as_json(row)) == row
    assert from_json(as_json(row).replace("\n", "\r\n")) == row, "as a form sends it"


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[]", "not an object"), ('{"a":1,"a":2}', "twice")])
def test_what_is_no_row_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        from_json(text)
