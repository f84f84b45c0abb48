"""Chat rows as OpenAI writes them, older fields, and every way to write them wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.chat_rows import chat_conversation

_USER = {"role": "user", "content": "q"}
_ANSWER = {"role": "assistant", "content": "a"}
_PART = {"type": "text", "text": "b"}
_CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"where": "attic"}'}}
_CALLING = {"role": "assistant", "content": None, "tool_calls": [_CALL]}


def test_a_full_row_is_read_as_it_stands() -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    conversation = chat_conversation(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}],
                    "name": "x",
                },
                _CALLING,
                {"role": "tool", "content": "found", "tool_call_id": "c1"},
                {"role": "assistant", "content": "a", "weight": 0},
                _USER,
                {"role": "assistant", "content": "b", "weight": 1.0},
            ],
            "tools": [tool],
            "parallel_tool_calls": False,
        }
    )
    roles = [message.role for message in conversation.messages]
    assert roles == ["developer", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert conversation.messages[1].content == "a b"
    assert conversation.messages[1].name == "x"
    assert conversation.messages[2].content is None
    assert conversation.messages[2].tool_calls == (_CALL,)
    assert [message.weight for message in conversation.messages] == [None, None, None, None, 0, None, 1]
    assert conversation.tools == (tool,)


def test_parts_as_responses_names_them_are_read_as_text() -> None:
    said = {"role": "user", "content": [{"type": "input_text", "text": "a "}, {"type": "text", "text": "b"}]}
    answer = {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]}
    conversation = chat_conversation({"messages": [said, answer]})
    assert [message.content for message in conversation.messages] == ["a b", "c"]
    picture = {"role": "user", "content": [{"type": "input_image", "image_url": "http://example/a.png"}]}
    with pytest.raises(BadFieldError, match="no images or audio"):
        chat_conversation({"messages": [picture, answer]})


def test_functions_of_the_older_format_become_tools() -> None:
    conversation = chat_conversation(
        {
            "messages": [
                _USER,
                {"role": "assistant", "function_call": {"name": "find", "arguments": "{}"}},
                {"role": "function", "name": "find", "content": "found"},
                _ANSWER,
            ],
            "functions": [{"name": "find"}],
        }
    )
    assert conversation.tools == ({"type": "function", "function": {"name": "find"}},)
    assert conversation.messages[1].tool_calls[0]["function"] == {"name": "find", "arguments": "{}"}
    assert conversation.messages[2].role == "tool"
    assert conversation.messages[2].tool_call_id == conversation.messages[1].tool_calls[0]["id"]


def test_arguments_given_as_an_object_become_json_text() -> None:
    call = {"function": {"name": "find", "arguments": {"where": "grüner Keller"}}}
    conversation = chat_conversation({"messages": [_USER, {"role": "assistant", "tool_calls": [call]}]})
    arguments = conversation.messages[1].tool_calls[0]["function"]["arguments"]
    assert json.loads(arguments) == {"where": "grüner Keller"}


@pytest.mark.parametrize("name", ["train", "loss"])
@pytest.mark.parametrize(("no", "yes"), [(False, True), (0, 1), (0.0, 1.0)])
def test_turns_that_other_trainers_leave_out_are_not_learned(name: str, no: float, yes: float) -> None:
    """axolotl's `train` and ms-swift's `loss`; a user's turn is not learned in any case."""
    turns = [{**_USER, name: no}, {**_ANSWER, name: no}, _USER, {**_ANSWER, name: yes}, _USER, _ANSWER]
    turns[5] = {"role": "assistant", "content": [{**_PART, name: yes}, _PART]}
    found = chat_conversation({"messages": turns}).messages
    assert [message.is_learned for message in found] == [False, False, False, True, False, True]
    assert [message.weight for message in found] == [None, 0, None, 1, None, None]


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        (None, "messages", "is absent or null"),
        ("not json", "messages", "is text that is not JSON where a list is expected"),
        ({"role": "user"}, "messages", "is an object where a list is expected"),
        (["hello"], "messages[0]", "is a text where an object is expected"),
        ([], "messages", "has no assistant turn (roles: none)"),
        ([_USER], "messages", "has no assistant turn (roles: user)"),
        ([{"content": "x"}], "messages[0].role", "is not a known role"),
        ([{"role": "bot", "content": "x"}], "messages[0].role", "is not a known role; known: system"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "is not a known role"),
        ([{"role": "user"}], "messages[0].content", "is absent"),
        ([{"role": "user", "content": None}], "messages[0].content", "is null where text is expected"),
        ([{"role": "user", "content": 3}], "messages[0].content", "is a number where text is expected"),
        ([_USER, {"role": "assistant", "content": " "}], "messages[1].content", "is an empty answer"),
        ([_USER, {"role": "assistant", "content": None}], "messages[1].content", "is null"),
        ([{**_USER, "weight": 1}, _ANSWER], "messages[0].weight", "weight is for assistant turns only"),
        ([_USER, {**_ANSWER, "weight": 2}], "messages[1].weight", "is not 0 or 1"),
        ([_USER, {**_ANSWER, "weight": True}], "messages[1].weight", "is not 0 or 1"),
        ([_USER, {**_ANSWER, "weight": "1"}], "messages[1].weight", "is not 0 or 1"),
        ([_USER, {**_ANSWER, "weight": 0.5}], "messages[1].weight", "is not 0 or 1"),
        ([_USER, {**_ANSWER, "weight": 0}], "messages", "has weight 0 on every assistant turn"),
        ([_USER, {**_ANSWER, "train": False}], "messages", "has weight 0 on every assistant turn"),
        ([_USER, {**_ANSWER, "train": "no"}], "messages[1].train", "is not true or false"),
        ([_USER, {**_ANSWER, "loss": 0.5}], "messages[1].loss", "is not true or false"),
        ([_USER, {**_ANSWER, "weight": 0, "train": True}], "messages[1].train", "is the opposite"),
        ([{**_USER, "train": True}, _ANSWER], "messages[0].train", "only the assistant's turns are learned"),
        ([_USER, {**_ANSWER, "train_detail": [{"begin_offset": 0}]}], "messages[1].train_detail", "lost in silence"),
        ([_USER, {**_ANSWER, "reasoning_training_detail": [1]}], "messages[1].reasoning_training_detail", "silence"),
        (
            [_USER, {"role": "assistant", "content": [{"type": "text", "text": "hm", "train": False}, _PART]}],
            "messages[1].content[0].train",
            "a turn is learned as a whole",
        ),
        (
            [_USER, {"role": "assistant", "content": [{"type": "text", "text": "hm", "weight": 0}]}],
            "messages[1].content[0].weight",
            "a turn is learned as a whole",
        ),
        (
            [{"role": "user", "content": [{**_PART, "train": True}]}, _ANSWER],
            "messages[0].content[0].train",
            "a turn is learned as a whole",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, _ANSWER],
            "messages[0].content[0]",
            "no images or audio",
        ),
        ([{"role": "user", "content": ["x"]}, _ANSWER], "messages[0].content[0]", "is not a text part"),
        ([{"role": "user", "content": [{"type": "text"}]}, _ANSWER], "messages[0].content[0].text", "is null"),
        ([_USER, {**_ANSWER, "refusal": "hm"}], "messages[1].refusal", "lost in silence"),
        ([{**_USER, "reasoning": "hm"}, _ANSWER], "messages[0].reasoning", "only the assistant thinks"),
        ([_USER, {**_ANSWER, "thinking": 3}], "messages[1].thinking", "is a number where text is expected"),
        ([_USER, {**_ANSWER, "thinking": "a", "reasoning": "b"}], "messages[1].thinking", "says another thought"),
        ([_USER, {**_ANSWER, "learn_reasoning": 1}], "messages[1].learn_reasoning", "is not true or false"),
        ([{**_USER, "learn_reasoning": True}, _ANSWER], "messages[0].learn_reasoning", "for assistant turns only"),
        ([{**_USER, "tool_calls": [_CALL]}, _ANSWER], "messages[0].tool_calls", "only the assistant calls tools"),
        (
            [_USER, {"role": "tool", "content": "x", "tool_call_id": "c9"}, _ANSWER],
            "messages[1].tool_call_id",
            "answers no tool call",
        ),
        ([{**_USER, "tool_call_id": "c1"}, _ANSWER], "messages[0].tool_call_id", "it is for role tool only"),
        ([_USER, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0].function", "is not an object"),
        (
            [_USER, {"role": "assistant", "tool_calls": [{"type": "code", "function": {}}]}],
            "messages[1].tool_calls[0].type",
            "is not 'function'",
        ),
        (
            [_USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{bad"}}]}],
            "messages[1].tool_calls[0].function.arguments",
            "is not JSON",
        ),
        (
            [_USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "messages[1].tool_calls[0].function.arguments",
            "is a list where a JSON object is expected",
        ),
        (
            [_USER, {"role": "assistant", "tool_calls": [{"function": {"name": " "}}]}],
            "messages[1].tool_calls[0].function.name",
            "is empty",
        ),
        ([_USER, {**_CALLING, "function_call": {"name": "f"}}], "messages[1].function_call", "with tool_calls"),
    ],
)
def test_wrong_messages_are_named_by_field_and_reason(messages: Any, field: str, reason: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        chat_conversation({"messages": messages})
    assert caught.value.field == field
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"tools": "{"}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [3]}, "tools[0]"),
        ({"functions": [{"description": "nameless"}]}, "functions[0]"),
        ({"tools": [], "functions": []}, "functions"),
    ],
)
def test_wrong_tools_are_named(extra: dict[str, Any], field: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        chat_conversation({"messages": [_USER, _ANSWER], **extra})
    assert caught.value.field == field


def test_tools_may_be_json_text() -> None:
    conversation = chat_conversation({"messages": [_USER, _ANSWER], "tools": json.dumps([{"name": "find"}])})
    assert conversation.tools == ({"type": "function", "function": {"name": "find"}},)


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning_content": "It is light."},
        {"reasoning": "It is light."},
        {"thinking": "It is light.", "reasoning_content": "It is light."},
        {"content": [{"type": "thinking", "thinking": "It is light."}, {"type": "text", "text": "spruce"}]},
    ],
)
def test_a_thought_is_read_by_whichever_of_its_names(thought) -> None:
    answer = {"role": "assistant", "content": "spruce", "learn_reasoning": False} | thought
    message = chat_conversation({"messages": [_USER, answer]}).messages[1]
    assert message.reasoning == "It is light."
    assert message.content == "spruce"
    assert message.learn_reasoning is False


def test_an_empty_thought_is_none() -> None:
    answer = {"role": "assistant", "content": "spruce", "reasoning_content": " "}
    assert chat_conversation({"messages": [_USER, answer]}).messages[1].reasoning is None


def test_a_system_text_beside_the_messages_is_their_system_turn() -> None:
    made = chat_conversation({"system": "Be brief.", "messages": [_USER, _ANSWER]})
    assert (made.messages[0].role, made.messages[0].content) == ("system", "Be brief.")
    turns = [{"role": "system", "content": "Be brief. "}, _USER, _ANSWER]
    assert len(chat_conversation({"system": "Be brief.", "messages": turns}).messages) == 3
    assert len(chat_conversation({"system": " ", "messages": turns}).messages) == 3
    with pytest.raises(BadFieldError, match="says something else"):
        chat_conversation({"system": "Be long.", "messages": turns})


def test_calls_without_an_object_around_name_and_arguments_are_read() -> None:
    calls = [{"name": "find", "arguments": {"what": "it"}, "id": "c1"}, {"name": "stop"}]
    answered = {"role": "tool", "content": "there", "tool_call_id": "c1"}
    made = chat_conversation({"messages": [_USER, {"role": "assistant", "tool_calls": calls}, answered, _ANSWER]})
    assert made.messages[1].tool_calls == (
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"what": "it"}'}},
        {"type": "function", "function": {"name": "stop", "arguments": "{}"}},
    )
