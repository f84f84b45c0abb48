"""ShareGPT rows, their names for roles, and tool calls written as turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.sharegpt_rows import sharegpt_conversation


def _turn(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def test_speakers_become_roles() -> None:
    conversation = sharegpt_conversation(
        {
            "conversations": [
                _turn("system", "s"),
                _turn("human", "q"),
                {**_turn("gpt", "a"), "weight": 0},
                {**_turn("human", "r"), "train": False},
                {**_turn("gpt", "b"), "train": True},
            ]
        }
    )
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.is_learned for message in conversation.messages] == [False, False, False, False, True]


def test_role_and_content_are_read_as_well() -> None:
    conversation = sharegpt_conversation(
        {"conversations": [{"role": "human", "content": "q"}, {"role": "assistant", "content": "a"}], "system": "s"}
    )
    assert [(m.role, m.content) for m in conversation.messages] == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_function_calls_are_the_same_by_role_and_content() -> None:
    turns = [
        _turn("human", "q"),
        _turn("function_call", '{"name": "find", "arguments": {"where": "attic"}}'),
        _turn("function_call", '{"name": "look", "arguments": {}}'),
        _turn("observation", "found"),
        _turn("observation", "seen"),
        _turn("gpt", "a"),
    ]
    by_role = [{"role": turn["from"], "content": turn["value"]} for turn in turns]
    found = sharegpt_conversation({"conversations": by_role})
    assert found == sharegpt_conversation({"conversations": turns})
    assert [call["function"]["name"] for message in found.messages for call in message.tool_calls] == ["find", "look"]
    with pytest.raises(BadFieldError, match="is a function call that is not JSON") as caught:
        sharegpt_conversation({"conversations": [by_role[0], {"role": "function_call", "content": "find it"}]})
    assert caught.value.field == "conversations[1].content"


def test_function_calls_and_observations() -> None:
    conversation = sharegpt_conversation(
        {
            "conversations": [
                _turn("human", "q"),
                _turn("function_call", '{"name": "find", "arguments": {"where": "attic"}}'),
                _turn("observation", "found"),
                _turn("gpt", "a"),
            ],
            "tools": '[{"name": "find"}]',
        }
    )
    call, answer = conversation.messages[1], conversation.messages[2]
    assert call.tool_calls[0]["function"] == {"name": "find", "arguments": '{"where": "attic"}'}
    assert answer.role == "tool"
    assert answer.tool_call_id == call.tool_calls[0]["id"]
    assert conversation.tools[0]["function"]["name"] == "find"


@pytest.mark.parametrize(
    ("turns", "answered"),
    [
        (["cc", "o1", "o2"], ["0_0", "0_1"]),
        (["cc", "o1", "o2", "o3"], ["0_0", "0_1", "0_1"]),
        (["c", "c", "o1", "o2"], ["0_0", "1_0"]),
        (["cc", "o1", "c", "o2"], ["0_0", "2_0"]),
        (["c", "o1", "c", "o2"], ["0_0", "2_0"]),
    ],
)
def test_observations_answer_the_calls_in_their_order(turns: list[str], answered: list[str]) -> None:
    call = '{"name": "find", "arguments": {}}'
    calls = {"c": call, "cc": f"[{call}, {call}]"}
    rows = [_turn("function_call", calls[one]) if one in calls else _turn("observation", one) for one in turns]
    conversation = sharegpt_conversation({"conversations": [_turn("human", "q"), *rows, _turn("gpt", "a")]})
    found = [one.tool_call_id for one in conversation.messages if one.role == "tool"]
    # One more than the place among the turns here: the question comes first.
    assert found == [f"call_{int(one[0]) + 1}_{one[2]}" for one in answered]


@pytest.mark.parametrize(
    ("turns", "field"),
    [
        (None, "conversations"),
        ("text", "conversations"),
        (["x"], "conversations[0]"),
        ([_turn("alien", "x")], "conversations[0].from"),
        ([_turn("human", None)], "conversations[0].value"),
        ([_turn("human", "q"), _turn("gpt", "")], "conversations[1].value"),
        ([_turn("human", "q"), _turn("function_call", "find()")], "conversations[1].value"),
        ([_turn("human", "q"), _turn("function_call", "[]")], "conversations[1].value"),
        ([{"role": "alien", "content": "x"}], "conversations[0].role"),
        ([_turn("human", "q")], "conversations"),
    ],
)
def test_wrong_turns_are_named(turns: Any, field: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        sharegpt_conversation({"conversations": turns})
    assert caught.value.field == field


def test_two_system_prompts_are_refused() -> None:
    with pytest.raises(BadFieldError, match="system turn already"):
        sharegpt_conversation({"conversations": [_turn("system", "s"), _turn("gpt", "a")], "system": "t"})


def test_turns_in_a_table_are_json_text() -> None:
    turns = [_turn("human", "q"), _turn("gpt", "a")]
    made = sharegpt_conversation({"conversations": json.dumps(turns)})
    assert [(one.role, one.content) for one in made.messages] == [("user", "q"), ("assistant", "a")]
