"""/v1/responses by the unmodified client and a real model: answers, streams, tools, forms, and counts of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, get_args

import openai
import pytest
from openai.types.responses import ResponseIncludable
from pydantic import BaseModel, ConfigDict
from tests.vacuous import nonempty

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Cremona", "Füssen"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
OTHER = WEATHER | {"name": "get_time"}
QUESTION = "How is the weather?"
ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


class Violin(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wood: Literal["spruce", "maple"]
    is_old: bool


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    def create(question: Any = QUESTION, **wishes: Any) -> Any:
        given: dict[str, Any] = {"model": "tiny", "input": question, "store": False, "extra_body": {"seed": 7}}
        return client.responses.create(**given | wishes)

    return create


def test_a_response_has_the_text_of_the_chat_completion_with_the_same_messages(
    client: openai.OpenAI, ask: Callable[..., Any]
) -> None:
    made = ask(instructions="Be short.", max_output_tokens=6, temperature=0, metadata={"a": "b"}, user="anna")
    messages: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, temperature=0)
    assert chat.usage is not None
    assert made.output_text == chat.choices[0].message.content
    assert (made.usage.input_tokens, made.usage.output_tokens) == (chat.usage.prompt_tokens, 6)
    assert made.usage.total_tokens == chat.usage.total_tokens
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (item,) = made.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "incomplete")
    assert (made.object, made.model, made.instructions, made.metadata) == ("response", "tiny", "Be short.", {"a": "b"})
    assert (made.store, made.truncation, made.tool_choice, made.user) == (False, "disabled", "auto", "anna")
    assert made.text.format.type == "text"


def test_a_stream_tells_the_same_answer_event_by_event(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    wishes = {"max_output_tokens": 8, "temperature": 0, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    whole = ask(**wishes)
    events = list(ask(stream=True, **wishes))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == whole.output_text
    final = events[-1].response
    assert final.id == events[0].response.id
    assert (final.status, final.output_text) == (whole.status, whole.output_text)
    assert (final.usage.input_tokens, final.usage.output_tokens) == (whole.usage.input_tokens, 8)
    # the prompt had come before
    assert final.usage.input_tokens_details.cached_tokens >= whole.usage.input_tokens_details.cached_tokens
    logprobs = final.output[0].content[0].logprobs
    assert logprobs == whole.output[0].content[0].logprobs
    assert [len(one.top_logprobs) for one in nonempty(logprobs)] == [2] * 8
    with client.responses.stream(
        model="tiny", input="Describe a violin.", text_format=Violin, store=False, temperature=0
    ) as stream:
        parsed = stream.get_final_response()
    assert isinstance(parsed.output_parsed, Violin)
    assert parsed.status == "completed"


def test_a_tool_is_called_and_its_result_goes_back(ask: Callable[..., Any]) -> None:
    wishes: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    made = ask(**wishes, temperature=0)
    (call,) = made.output
    assert (call.type, call.name, call.status, made.status) == (
        "function_call", "get_weather", "completed", "completed",
    )  # fmt: skip
    assert json.loads(call.arguments)["city"] in ("Cremona", "Füssen")
    assert (made.tools[0].name, made.tool_choice, made.parallel_tool_calls) == ("get_weather", "required", False)
    events = list(ask(**wishes, temperature=0, stream=True))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert "".join(pieces) == done.arguments == call.arguments
    assert events[-1].type == "response.completed"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    conversation = [{"role": "user", "content": QUESTION}, *made.output, result]
    again = ask(conversation, tools=[WEATHER], max_output_tokens=4)
    assert again.usage.input_tokens > made.usage.input_tokens


def test_the_tools_that_may_be_called_can_be_restricted(ask: Callable[..., Any]) -> None:
    tools = [WEATHER, OTHER]
    for choice in (
        {"type": "function", "name": "get_time"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_time"}]},
    ):
        made = ask(tools=tools, tool_choice=choice, parallel_tool_calls=False)
        assert [call.name for call in nonempty(made.output)] == ["get_time"]
    none = ask(tools=tools, tool_choice="none", max_output_tokens=4)
    assert none.usage.input_tokens == ask(max_output_tokens=4).usage.input_tokens


def test_a_schema_is_kept(client: openai.OpenAI, ask: Callable[..., Any]) -> None:
    found = client.responses.parse(model="tiny", input="Describe a violin.", text_format=Violin, store=False)
    assert isinstance(found.output_parsed, Violin)
    assert ask(text={"format": {"type": "json_object"}}, max_output_tokens=5).output_text.startswith("{")


@pytest.mark.parametrize(
    ("wishes", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "invalid_value"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice", "invalid_value"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
            {"type": "function", "name": "x"}]}}, "tool_choice.tools", "invalid_value"),
        ({"tools": [WEATHER | {"parameters": ENDLESS}], "tool_choice": "required"}, "tools.0.parameters",
         "invalid_value"),
        ({"tools": [WEATHER | {"parameters": ENDLESS, "strict": True}]}, "tools.0.parameters", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "s", "schema": {"$ref": "#"}}}}, "text.format.schema",
         "invalid_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "invalid_value"),
        ({"include": ["file_search_call.everything"]}, "include", "invalid_value"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary", "invalid_value"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "invalid_value"),
        ({"background": True}, "background", "invalid_value"),
        ({"conversation": "conv_1"}, "conversation", "conversation_not_found"),
        ({"conversation": {}}, "conversation.id", "missing_required_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"service_tier": "flex"}, "service_tier", "invalid_value"),
        ({"model": "none"}, "model", "model_not_found"),
        ({"input": []}, "input", "invalid_value"),
        ({"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id",
         "invalid_value"),
        ({"input": [{"type": "computer_call_output"}]}, "input.0", "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_refused_by_name(
    ask: Callable[..., Any], wishes: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(**({"question": wishes["input"]} if "input" in wishes else wishes))
    assert caught.value.status_code == (404 if code in ("model_not_found", "conversation_not_found") else 400)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_conversation_that_is_too_long_is_refused_or_shortened(ask: Callable[..., Any]) -> None:
    turn = [{"role": "user", "content": "word " * 40}, {"role": "assistant", "content": "word " * 40}]
    long = [{"role": "system", "content": "S"}, *turn * 30, {"role": "user", "content": QUESTION}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
    made = ask(long, truncation="auto", max_output_tokens=4)
    assert made.truncation == "auto"
    assert 0 < made.num_dropped_messages < 60
    assert made.num_dropped_messages % 2 == 0
    final = list(ask(long, truncation="auto", max_output_tokens=4, stream=True))[-1].response
    assert final.num_dropped_messages == made.num_dropped_messages
    assert ask(truncation="auto", max_output_tokens=4).num_dropped_messages == 0
    with pytest.raises(openai.BadRequestError):
        ask("word " * 4000, truncation="auto")


def test_the_tokens_of_an_input_are_counted_as_an_answer_counts_them(
    client: openai.OpenAI, ask: Callable[..., Any]
) -> None:
    for wishes in (
        {},
        {"instructions": "Be short."},
        {"tools": [WEATHER], "tool_choice": "required"},
    ):
        made = ask(max_output_tokens=300, **wishes)
        counted = client.responses.input_tokens.count(model="tiny", input=QUESTION, **wishes)  # type: ignore[arg-type]
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", made.usage.input_tokens)
    for model, wrong, code in (("none", "x", "model_not_found"), ("tiny", "word " * 4000, "context_length_exceeded")):
        with pytest.raises(openai.APIStatusError) as caught:
            client.responses.input_tokens.count(model=model, input=wrong)
        assert caught.value.code == code


def test_the_key_needs_the_scope_to_ask(make_client: Callable[..., openai.OpenAI]) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        make_client("read").responses.create(model="tiny", input="x")
    with pytest.raises(openai.PermissionDeniedError):
        make_client("train").responses.input_tokens.count(model="tiny", input="x")
    made = make_client("infer").responses.create(model="tiny", input="x", max_output_tokens=2, temperature=0)
    assert made.status == "incomplete"


def test_the_beta_resource_of_the_client_is_the_same_api(client: openai.OpenAI) -> None:
    beta: Any = client.beta.responses
    made = beta.create(model="tiny", input=QUESTION, max_output_tokens=4, temperature=0)
    text = made.output[0].content[0].text
    assert beta.retrieve(made.id).output[0].content[0].text == text
    assert [item.content[0].text for item in beta.input_items.list(made.id)] == [QUESTION]
    *_, last = beta.create(model="tiny", input=QUESTION, max_output_tokens=4, temperature=0, stream=True)
    assert last.response.output[0].content[0].text == text
    counted = beta.input_tokens.count(model="tiny", input=QUESTION)
    assert counted.input_tokens == made.usage.input_tokens
    beta.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.models.list(extra_query={"beta": "true"})
    assert (caught.value.param, caught.value.code) == ("beta", "unknown_parameter")


def test_a_conversation_is_not_compacted_and_the_client_told_so(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "tiny", "input": "Hello", "max_output_tokens": 4, "temperature": 0}
    plain = client.responses.with_raw_response.create(**wishes, context_management=[], text={"verbosity": "medium"})
    assert "x-luthier-warning" not in plain.headers
    edits: Any = [{"type": "compaction", "compact_threshold": 1000}]
    found = client.responses.with_raw_response.create(**wishes, context_management=edits)
    assert "compacted" in found.headers["x-luthier-warning"]
    assert found.parse().output_text == plain.parse().output_text


def test_what_no_answer_has_may_be_included_and_is_named(client: openai.OpenAI) -> None:
    """Code that always sends the values of its tools goes on; which ones add nothing is said."""
    names: list[Any] = list(get_args(ResponseIncludable))
    made = client.responses.with_raw_response.create(model="tiny", input="a", max_output_tokens=2, include=names)
    own = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    (*_, added) = made.headers["x-luthier-warning"].split(": ")
    assert sorted(added.split(", ")) == sorted(set(names) - set(own))
    assert made.parse().output[0].content[0].logprobs  # type: ignore[union-attr]
    found = client.responses.with_raw_response.retrieve(made.parse().id, include=["web_search_call.results"])
    assert found.headers["x-luthier-warning"].endswith("add: web_search_call.results")
    assert "x-luthier-warning" not in client.responses.with_raw_response.retrieve(made.parse().id, include=own).headers
