"""Calls of tools that clients send back with an earlier answer."""

from __future__ import annotations

import json

import pytest

from luthier.features.serving.api.chat import ChatBody, chat_request
from luthier.features.serving.api.responses.items import messages_of, parsed_items

INVALID = ['{"a": ', "[1]", '"a"', '{"a": NaN}', "{'a': 1}", "it costs 12"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('{"a": 1, "b":  [null]}', '{"a": 1, "b":  [null]}'),
        ("{}", "{}"),
        ("", "{}"),
        (" \n", "{}"),
        ("null", "{}"),
        *((text, json.dumps({"invalid_json": text})) for text in INVALID),
    ],
)
def test_arguments_that_are_no_object_are_kept_in_one(sent: str, kept: str) -> None:
    """A model wrote them, and the client tells it so with the result: the conversation must not end there."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": sent}}
    chat = [
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "error: no JSON"},
    ]
    body = ChatBody.model_validate({"model": "m", "messages": chat})
    conversation = chat_request(body, 16).conversation
    assert conversation is not None
    items = [
        {"role": "user", "content": "How much?"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": sent},
        {"type": "function_call_output", "call_id": "c", "output": "error: no JSON"},
    ]
    for messages in (conversation.messages, messages_of(None, parsed_items(items), 0)):
        (found,) = messages[1].tool_calls
        assert found == {"id": "c", "type": "function", "function": {"name": "f", "arguments": kept}}
