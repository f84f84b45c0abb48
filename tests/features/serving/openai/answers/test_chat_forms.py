"""Answers that keep to a form: calls of tools and JSON schemas, with the unmodified OpenAI client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Cremona", "Füssen"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
QUESTION: list[Any] = [{"role": "user", "content": "How is the weather?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


class Violin(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wood: Literal["spruce", "maple"]
    is_old: bool


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    def create(**wishes: Any) -> Any:
        given = {"model": "tiny", "messages": QUESTION, "max_tokens": 200, "seed": 7} | wishes
        return client.chat.completions.create(**given)

    return create


def test_a_tool_is_called_and_its_result_goes_back(ask: Callable[..., Any]) -> None:
    made = ask(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    [choice] = made.choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments)["city"] in ("Cremona", "Füssen")
    assert call.id.startswith("call_")
    talk = [*QUESTION, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert ask(messages=talk, tools=[WEATHER], max_tokens=4).usage.prompt_tokens > made.usage.prompt_tokens
    assert ask(tools=[WEATHER], tool_choice=NAMED).choices[0].finish_reason == "stop"


def test_the_tools_that_may_be_called_can_be_restricted(ask: Callable[..., Any]) -> None:
    time: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}

    def allowed(mode: str, *names: str) -> dict[str, Any]:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    made = ask(tools=[time, WEATHER], tool_choice=allowed("required", "get_weather"), parallel_tool_calls=False)
    assert made.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in made.choices[0].message.tool_calls] == ["get_weather"]
    some = ask(tools=[time, WEATHER], tool_choice=allowed("auto", "get_time"), max_tokens=4)
    assert some.usage.prompt_tokens == ask(tools=[time], max_tokens=4).usage.prompt_tokens
    assert some.usage.prompt_tokens < ask(tools=[time, WEATHER], max_tokens=4).usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="allows 'f'; expected: tools of this request") as caught:
        ask(tools=[WEATHER], tool_choice=allowed("auto", "get_weather", "f"))
    assert caught.value.param == "tool_choice.allowed_tools.tools"


def test_a_streamed_call_comes_in_pieces_as_openai_writes_them(ask: Callable[..., Any], client: openai.OpenAI) -> None:
    wishes = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    whole = ask(**wishes).choices[0].message.tool_calls[0]
    chunks = [chunk.choices[0] for chunk in ask(stream=True, **wishes)]
    assert (chunks[0].delta.role, chunks[0].delta.content) == ("assistant", None)
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert pieces[0].function.name == "get_weather"
    assert pieces[0].id.startswith("call_")
    assert {(piece.id, piece.function.name, piece.type) for piece in pieces[1:]} <= {(None, None, None)}
    assert {piece.index for piece in pieces} == {0}
    assert "".join(piece.function.arguments for piece in pieces) == whole.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    given: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 200, **wishes}
    with client.chat.completions.stream(**given) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == json.loads(whole.function.arguments)  # type: ignore[index]


# The client's own: it writes `parsed` as another type than that of the field.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_answers_go_back_as_the_clients_helpers_hold_them(ask: Callable[..., Any], client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 200, "temperature": 0}
    tools: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    with client.chat.completions.stream(**given, **tools) as stream:
        streamed = stream.get_final_completion().choices[0].message
    parsed = client.chat.completions.parse(**given, **tools).choices[0].message
    formed = client.chat.completions.parse(**given, response_format=Violin).choices[0].message
    assert isinstance(formed.parsed, Violin)
    [call] = streamed.tool_calls or []
    [again] = parsed.tool_calls or []
    assert "index" in call.model_dump()
    assert call.function.parsed_arguments == again.function.parsed_arguments
    talk = [*QUESTION, streamed, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    talk += [*QUESTION, parsed, {"role": "tool", "tool_call_id": again.id, "content": "sunny"}, *QUESTION, formed]
    plain = [
        one if isinstance(one, dict) else {"role": "assistant", "content": one.content} | calls
        for one, calls in zip(talk, [{}, _calls(call), {}, {}, _calls(again), {}, {}, {}], strict=True)
    ]
    both = [ask(messages=[*turns, *QUESTION], max_tokens=4, temperature=0) for turns in (talk, plain)]
    assert both[0].usage.prompt_tokens == both[1].usage.prompt_tokens
    assert both[0].choices[0].message.content == both[1].choices[0].message.content


def _calls(call: Any) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"tool_calls": [{"id": call.id, "type": "function", "function": function}]}


@pytest.mark.parametrize("temperature", [0.0, 1.8])
def test_a_schema_is_kept(client: openai.OpenAI, temperature: float) -> None:
    parsed = client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "Describe a violin."}],
        response_format=Violin,
        temperature=temperature,
        seed=1,
    )
    assert isinstance(parsed.choices[0].message.parsed, Violin)


def test_any_object_begins_as_one(ask: Callable[..., Any]) -> None:
    made = ask(response_format={"type": "json_object"}, max_tokens=5)
    assert made.choices[0].message.content.startswith("{")


def test_a_schema_that_cannot_be_followed_is_refused_before_the_stream(ask: Callable[..., Any]) -> None:
    wrong = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "elephant"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="elephant"):
            ask(response_format=wrong, stream=stream)


def test_a_bias_is_followed(ask: Callable[..., Any], client: openai.OpenAI) -> None:
    made = ask(logit_bias={"50": 100}, temperature=0, max_tokens=4)
    assert len(set(made.choices[0].message.content)) == 1
    with pytest.raises(openai.BadRequestError, match="999999"):
        ask(logit_bias={"999999": 1})


def test_functions_are_called_in_the_older_form(ask: Callable[..., Any], client: openai.OpenAI) -> None:
    """As code from before `tools` writes requests and reads answers."""
    functions, named = [WEATHER["function"]], {"name": "get_weather"}
    wishes: dict[str, Any] = {"functions": functions, "function_call": named, "temperature": 0}
    made = ask(**wishes)
    [choice] = made.choices
    call = choice.message.function_call
    # As with tools: a call that was asked for by its name ends with stop.
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", None, None)
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in ("Cremona", "Füssen")
    tool = ask(tools=[WEATHER], tool_choice=NAMED, temperature=0, parallel_tool_calls=False)
    assert tool.choices[0].message.tool_calls[0].function.arguments == call.arguments
    assert tool.usage.prompt_tokens == made.usage.prompt_tokens

    chunks = [chunk.choices[0] for chunk in ask(**wishes, stream=True)]
    pieces = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call is not None]
    assert "".join(piece.name or "" for piece in pieces) == "get_weather"
    assert "".join(piece.arguments for piece in pieces) == call.arguments
    assert not any(chunk.delta.tool_calls for chunk in chunks)

    result = {"role": "function", "name": "get_weather", "content": "sunny"}
    talk = [*QUESTION, choice.message.model_dump(exclude_none=True), result]
    back = ask(messages=talk, functions=functions, max_tokens=4)
    assert back.usage.prompt_tokens > made.usage.prompt_tokens
    stored = ask(**wishes, store=True)
    found = client.chat.completions.retrieve(stored.id)
    assert found.choices[0].message.function_call == call
    client.chat.completions.delete(stored.id)


def test_the_tier_that_answers_is_said_where_it_is_asked_for(ask: Callable[..., Any]) -> None:
    assert ask(max_tokens=1).service_tier is None
    for tier in ("auto", "default"):
        assert ask(max_tokens=1, service_tier=tier).service_tier == "default"
        assert {chunk.service_tier for chunk in ask(max_tokens=1, service_tier=tier, stream=True)} == {"default"}
