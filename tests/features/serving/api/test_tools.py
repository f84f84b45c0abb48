"""Tools in training rows are written into prompts as the server writes those of requests."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.conversation import Conversation
from luthier.features.serving.api.message_body import CustomTool
from luthier.features.serving.api.responses.body import FunctionTool
from luthier.features.serving.api.sent_back import ToolCall
from luthier.features.serving.api.tools import Tool
from luthier.ml.data.rows.chat_rows import chat_conversation

PARAMETERS: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
CALL = {"function": {"arguments": '{"city": "Cremona"}', "name": "get_weather"}, "type": "function", "id": "call_1"}


def row(tool: dict[str, Any]) -> Conversation:
    turns = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        {"role": "assistant", "content": "Sunny."},
    ]
    return chat_conversation({"messages": turns, "tools": [tool]})


@pytest.mark.parametrize("num", [64, 128, 129])
def test_names_of_tools_have_the_length_of_those_of_the_model_context_protocol(num: int) -> None:
    name, is_right = "a" * num, num <= 128
    bodies: list[tuple[Any, dict[str, Any]]] = [
        (Tool, {"type": "function", "function": {"name": name}}),
        (FunctionTool, {"type": "function", "name": name}),
        (CustomTool, {"name": name, "input_schema": {}}),
    ]
    for body, document in bodies:
        with nullcontext() if is_right else pytest.raises(ValidationError, match="name"):
            body.model_validate(document)


@pytest.mark.parametrize(
    "function",
    [
        # As `openai.pydantic_function_tool` makes it.
        {"name": "get_weather", "strict": True, "parameters": PARAMETERS, "description": "The weather."},
        {"parameters": PARAMETERS, "description": None, "name": "get_weather", "strict": False},
        {"description": "The weather.", "name": "get_weather", "parameters": None},
    ],
)
def test_a_tool_of_a_row_is_written_as_that_of_a_request(function: dict[str, Any]) -> None:
    tool = {"function": function, "type": "function"}
    (trained,) = row(tool).tools
    served = Tool.model_validate(tool).document()
    # As texts: templates print the keys in the order in which they come.
    assert json.dumps(trained) == json.dumps(served)
    assert "strict" not in json.dumps(trained)


def test_keys_that_only_rows_have_stay_behind_those_of_functions() -> None:
    own = {"returns": {"type": "string"}, "name": "get_weather", "strict": True, "description": "The weather."}
    (trained,) = row({"type": "function", "function": own, "group": "outside"}).tools
    assert json.dumps(trained) == json.dumps(
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "The weather.", "returns": {"type": "string"}},
            "group": "outside",
        }
    )


def test_a_call_of_a_row_is_written_as_one_that_is_sent_back() -> None:
    (trained,) = row({"type": "function", "function": {"name": "get_weather"}}).messages[1].tool_calls
    assert json.dumps(trained) == json.dumps(ToolCall.model_validate(CALL).document())
