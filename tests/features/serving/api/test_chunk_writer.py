"""The chunks of several choices, as OpenAI's client puts them together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from luthier.core.stream import CallPiece, Ended, Piece
from luthier.features.serving.api.answering import ChunkWriter
from luthier.features.serving.api.chat_answer import ChatResponseBuilder
from luthier.features.serving.api.completions import CompletionResponseBuilder

CALL = CallPiece(index=0, call_id="call_1", name="f", arguments="{}")
ENDS = [Ended(choice=number, reason="stop", num_new_tokens=1) for number in range(3)]


def chunks_of(events: Sequence[Piece | Ended]) -> list[dict[str, Any]]:
    writer = ChunkWriter(ChatResponseBuilder("m", "fp", tells_usage=False, tells_likelihoods=False))
    lines = [line for event in events for line in writer.event(event)]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_choices_begin_in_their_order_whichever_the_engine_writes_first(order: tuple[int, ...]) -> None:
    events = [Piece(choice=number, text=f"text {number}") for number in order]
    chunks = chunks_of([*events, *ENDS])
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    choices = state.get_final_completion().choices
    assert [(one.index, one.message.content, one.finish_reason) for one in choices] == [
        (number, f"text {number}", "stop") for number in range(3)
    ]
    begun = [chunk["choices"][0]["index"] for chunk in chunks if "role" in chunk["choices"][0]["delta"]]
    assert begun == [0, 1, 2]


def test_a_choice_that_calls_first_has_no_content() -> None:
    chunks = chunks_of([Piece(choice=1, text="", calls=(CALL,)), Piece(choice=0, text="a")])
    deltas = [(one["choices"][0]["index"], one["choices"][0]["delta"].get("content")) for one in chunks]
    assert deltas == [(0, ""), (1, None), (1, None), (0, "a")]


def test_texts_begin_without_a_chunk_of_their_own() -> None:
    writer = ChunkWriter(CompletionResponseBuilder("m", "fp", tells_usage=False, tells_likelihoods=False))
    lines = [*writer.event(Piece(choice=1, text="b")), *writer.event(Piece(choice=0, text="a"))]
    found = [json.loads(line.removeprefix(b"data: "))["choices"][0] for line in lines]
    assert [(one["index"], one["text"]) for one in found] == [(1, "b"), (0, "a")]


def test_a_chunk_has_one_entry_of_each_call() -> None:
    """Two entries of one index in the first list of calls are two calls to older clients of OpenAI."""
    calls = (
        CallPiece(index=0, arguments="}"),
        CallPiece(index=1, call_id="call_1", name="f"),
        CallPiece(index=1, arguments='{"a"'),
        CallPiece(index=1, arguments=": 1}"),
        CALL.model_copy(update={"index": 2, "call_id": "call_2"}),
    )
    (_, chunk) = chunks_of([Piece(text="", calls=calls)])
    assert chunk["choices"][0]["delta"] == {
        "tool_calls": [
            {"index": 0, "function": {"arguments": "}"}},
            {"index": 1, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"index": 2, "id": "call_2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]
    }
