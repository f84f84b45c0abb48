"""`functions` and `function_call`: the older form of tools means the same, in use as in training."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.stream import CallPiece, Ended, Piece
from luthier.features.evals_api.data import sample_fields
from luthier.features.serving import service
from luthier.features.serving.api.chat import ChatBody, chat_request
from luthier.features.serving.api.functions import function_delta
from luthier.features.serving.api.offline import answer_offline
from luthier.ml.data.rows.chat_rows import chat_conversation
from luthier.platform.http.errors import ApiError

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED: dict[str, Any] = {"role": "user", "content": "How is the weather?"}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "function_call": {"name": "get_weather", "arguments": '{"city": "Cremona"}'},
}
RESULT: dict[str, Any] = {"role": "function", "name": "get_weather", "content": "sunny"}
TOOL: dict[str, Any] = {"type": "function", "function": WEATHER}


def request_of(**wishes: Any) -> Any:
    return chat_request(ChatBody.model_validate({"model": "m", "messages": [ASKED], "seed": 1} | wishes), 16)


def test_a_conversation_is_read_as_training_reads_it() -> None:
    turns = [ASKED, CALLED, RESULT]
    answer = {"role": "assistant", "content": "It is sunny."}
    asked = request_of(messages=[*turns, ASKED, CALLED, RESULT], functions=[WEATHER]).conversation
    row = {"messages": [*turns, ASKED, CALLED, RESULT, answer], "functions": [WEATHER]}
    trained = chat_conversation(row)
    assert [one.model_dump() | {"content": one.content or ""} for one in trained.messages[:-1]] == [
        one.model_dump() for one in asked.messages
    ]
    assert trained.tools == asked.tools == (TOOL,)
    assert [one.tool_call_id for one in asked.messages] == [None, None, "call_1", None, None, "call_4"]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({}, {}),
        ({"function_call": "auto"}, {"tool_choice": "auto"}),
        ({"function_call": "none"}, {"tool_choice": "none"}),
        (
            {"function_call": {"name": "get_weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
    ],
)
def test_functions_are_tools_of_which_one_at_most_is_called(older: dict[str, Any], newer: dict[str, Any]) -> None:
    made = request_of(functions=[WEATHER], **older)
    assert made == request_of(tools=[TOOL], parallel_tool_calls=False, **newer)


def test_a_result_answers_the_last_call_of_either_form() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    newer = {"role": "assistant", "content": None, "tool_calls": [call]}
    talk = [ASKED, RESULT, CALLED, newer, RESULT | {"content": None}]
    messages = request_of(messages=talk).conversation.messages
    assert [(one.role, one.tool_call_id) for one in messages if one.role == "tool"] == [("tool", None), ("tool", "c")]
    assert messages[-1].content == ""


@pytest.mark.parametrize(
    ("wishes", "param", "words"),
    [
        ({"tools": [TOOL]}, "functions", "functions with tools; expected: either"),
        ({"tool_choice": "auto"}, "functions", "functions with tool_choice"),
        ({"parallel_tool_calls": True}, "functions", "functions with parallel_tool_calls"),
        ({"functions": [WEATHER, WEATHER]}, "functions", "two functions are called 'get_weather'"),
        ({"function_call": {"name": "f"}}, "function_call", "wants 'f'; expected: one of the functions sent: get_w"),
        ({"functions": None, "function_call": {"name": "f"}}, "function_call", "functions sent: none"),
        ({"functions": None, "function_call": "none", "tools": [TOOL]}, "function_call", "expected: tool_choice: none"),
        ({"messages": [ASKED | {"function_call": CALLED["function_call"]}]}, "messages.0.function_call", "assistant"),
        ({"messages": [RESULT | {"tool_call_id": "c"}]}, "messages.0.tool_call_id", "role tool"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(wishes: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        request_of(**{"functions": [WEATHER]} | wishes)
    assert caught.value.param == param
    assert words in caught.value.message


def test_both_forms_of_a_call_in_one_message_are_refused() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    with pytest.raises(ApiError, match="without tool_calls") as caught:
        request_of(messages=[ASKED, CALLED | {"tool_calls": [call]}])
    assert caught.value.param == "messages.1.function_call"


@pytest.mark.parametrize("choice", ["required", "get_weather", 1, []])
def test_other_choices_are_refused_by_what_they_are(choice: Any) -> None:
    with pytest.raises(ValueError, match=r'expected: none, auto or \{"name": NAME\}'):
        request_of(functions=[WEATHER], function_call=choice)


def test_a_stream_has_the_first_call_alone() -> None:
    begun = CallPiece(index=0, call_id="c", name="f")
    more, other = CallPiece(index=0, arguments='{"a"'), CallPiece(index=1, call_id="d", name="g", arguments="{}")
    assert function_delta([begun, more, other]) == {"function_call": {"name": "f", "arguments": '{"a"'}}
    assert function_delta([more]) == {"function_call": {"arguments": '{"a"'}}
    assert function_delta([other]) == {}


def test_graders_read_a_call_of_the_older_form() -> None:
    sample = {"choices": [{"message": CALLED, "finish_reason": "function_call"}]}
    called = [{"type": "function", "function": CALLED["function_call"]}]
    assert sample_fields(sample)["output_tools"] == called


def test_a_request_of_a_batch_is_answered_in_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = service.Answer([service.Choice()])
    call = CallPiece(index=0, call_id="c", name="f", arguments="{}")
    for event in (Piece(text="", calls=(call,)), Ended(choice=0, reason="tool_calls", num_new_tokens=3)):
        answer.hear(event)
    monkeypatch.setattr(service, "complete", lambda *_: (answer, "fp"))
    body: dict[str, Any] = {"model": "m", "messages": [ASKED], "service_tier": "auto"}
    context: Any = None  # the answer is there already
    for form, key in (({"functions": [WEATHER]}, "function_call"), ({"tools": [TOOL]}, "tool_calls")):
        found = answer_offline(context, Caller(), "/v1/chat/completions", body | form, default_max_tokens=4).body
        (choice,) = found["choices"]
        assert (choice["finish_reason"], found["service_tier"]) == (key, "default")
        assert {"function_call", "tool_calls"} & set(choice["message"]) == {key}
    assert choice["message"]["tool_calls"][0]["id"] == "c"
