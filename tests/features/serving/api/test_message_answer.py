"""Answers of /v1/messages as events, without a server."""

from __future__ import annotations

import json
from typing import Any

from luthier.core.stream import CallPiece, Ended, Piece
from luthier.features.serving.api.message_body import ToolUseBlock
from luthier.features.serving.api.messages import MessageWriter


def blocks(*pieces: Piece) -> list[dict[str, Any]]:
    """The content blocks that a client puts together from the events."""
    writer = MessageWriter("m", 50, "req", shows_thoughts=True)
    events = [*pieces, Ended(reason="tool_calls", num_new_tokens=9)]
    lines = [line for event in events for line in writer.event(event)]
    found: list[dict[str, Any]] = []
    for line in lines:
        document = json.loads(line.split(b"data: ")[1])
        if document["type"] == "content_block_start":
            found.append(document["content_block"] | {"written": ""})
        elif document["type"] == "content_block_delta":
            assert document["index"] == len(found) - 1
            delta = document["delta"]
            assert (found[-1]["type"], delta["type"]) in (("text", "text_delta"), ("tool_use", "input_json_delta"))
            found[-1]["written"] += delta.get("text", delta.get("partial_json"))
    return found


def test_ids_of_other_servers_are_ids_that_the_api_takes_back() -> None:
    calls = (
        CallPiece(index=0, call_id="functions.f:0", name="f"),
        CallPiece(index=1, call_id="functions.f:1", name="f"),
    )
    ids = [one["id"] for one in blocks(Piece(text="", calls=calls))]
    assert ids == ["toolu_functions_f_0", "toolu_functions_f_1"]
    for number in ids:
        assert ToolUseBlock.model_validate({"type": "tool_use", "id": number, "name": "f", "input": {}}).id == number


def test_text_behind_a_call_in_the_same_piece_is_a_block_of_its_own() -> None:
    begin = CallPiece(index=0, call_id="call_1", name="f", arguments='{"a": ')
    both = (CallPiece(index=0, arguments="1}"), CallPiece(index=1, call_id="call_2", name="g", arguments="{}"))
    found = blocks(Piece(text="", calls=(begin,)), Piece(text="Well", calls=both))
    assert [(one["type"], one["written"]) for one in found] == [
        ("tool_use", '{"a": 1}'),
        ("text", "Well"),
        ("tool_use", "{}"),
    ]


def test_calls_that_are_written_at_once_are_blocks_one_after_the_other() -> None:
    first, second = CallPiece(index=0, call_id="a", name="f"), CallPiece(index=1, call_id="b", name="g")
    found = blocks(
        Piece(text="", calls=(first, second)),
        Piece(text="", calls=(CallPiece(index=1, arguments='{"b": '), CallPiece(index=0, arguments='{"a": '))),
        Piece(text="", calls=(CallPiece(index=1, arguments="2}"), CallPiece(index=0, arguments="1}"))),
    )
    assert [(one["name"], json.loads(one["written"])) for one in found] == [("f", {"a": 1}), ("g", {"b": 2})]
