"""Calls of tools in answers to batches of prompts."""

from __future__ import annotations

from typing import Any

from luthier.core.ports import Generation
from luthier.core.stream import CallPiece, Ended, Piece, Started
from luthier.ml.inference.engine_wrappers import StreamedAnswer
from luthier.ml.inference.openai.messages import generation_of

CALLS: list[dict[str, Any]] = [
    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}},
    {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
]


def test_a_streamed_answer_has_its_calls() -> None:
    answer = StreamedAnswer()
    events = [
        Started(num_prompt_tokens=3),
        Piece(text="I look."),
        Piece(text="", calls=(CallPiece(index=0, call_id="c1", name="look", arguments='{"at"'),)),
        Piece(text="", calls=(CallPiece(index=0, arguments=': "x"}'), CallPiece(index=1, call_id="c2", name="clock"))),
        Piece(text="", calls=(CallPiece(index=1, arguments="{}"),)),
        Ended(reason="tool_calls", num_new_tokens=9),
    ]
    *before, made = [answer.hear(event) for event in events]
    assert before == [None] * 5
    assert made is not None
    assert (made.text, made.tool_calls, made.finish_reason) == ("I look.", tuple(CALLS), "stop")


def test_a_server_answers_with_calls() -> None:
    def made(**message: Any) -> Generation:
        choice = {"message": {"role": "assistant"} | message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 3, "completion_tokens": 9}
        return generation_of({"choices": [choice], "usage": usage}, 10, is_chat=True)

    assert (made(content=None, tool_calls=CALLS).text, made(content=None, tool_calls=CALLS).tool_calls) == (
        "",
        tuple(CALLS),
    )
    assert [made(content="a", tool_calls=other).tool_calls for other in (None, [], "x", [1])] == [()] * 4


def test_what_is_stored_of_an_answer_without_calls_is_as_before() -> None:
    plain = Generation(text="a", num_prompt_tokens=1, num_new_tokens=1, finish_reason="stop", token_ids=(1,))
    assert plain.model_dump() == {
        "text": "a", "num_prompt_tokens": 1, "num_new_tokens": 1, "finish_reason": "stop", "reasoning": None,
        "num_thinking_tokens": 0, "ends_in_thought": False,
    }  # fmt: skip
    calling = plain.model_copy(update={"tool_calls": tuple(CALLS), "token_ids": None})
    assert Generation.model_validate_json(calling.model_dump_json()) == calling
