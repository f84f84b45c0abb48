"""Bodies of /v1/messages as requests for the engine, without a server; and what is refused, by its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.conversation import Message
from luthier.core.errors import UnsupportedError
from luthier.core.stream import TextRequest
from luthier.features.serving.api.answering import strict_warning
from luthier.features.serving.api.message_body import MessagesBody, PromptBody
from luthier.features.serving.api.message_turns import ERROR_PREFIX, message_request
from luthier.features.serving.api.messages import thinking_warning
from luthier.platform.http.errors import ApiError, invalid_request

USER = {"role": "user", "content": "Which wood?"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"wood": "Fichte ü"}}
OTHER_CALL = CALL | {"id": "toolu_2"}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "light"}
OTHER_RESULT = RESULT | {"tool_use_id": "toolu_2"}
TEXT = {"type": "text", "text": "And maple?"}
THOUGHT = {"type": "thinking", "thinking": "It is wood.", "signature": "s"}
TOOL = {"name": "look_up", "description": "d", "input_schema": {"type": "object", "properties": {"wood": {}}}}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def request(*messages: Any, **wishes: Any) -> TextRequest:
    given = {"model": "m", "max_tokens": 50, "messages": list(messages or [USER])} | wishes
    return message_request(MessagesBody.model_validate(given))


def turns(asked: TextRequest) -> list[tuple[str, str | None]]:
    assert asked.conversation is not None
    return [(one.role, one.content) for one in asked.conversation.messages]


def refusal(body: dict[str, Any], form: type[PromptBody] = MessagesBody) -> tuple[str | None, str]:
    """The field and the message of a refused body."""
    try:
        message_request(form.model_validate(body))
    except ValidationError as error:
        problems = [(("body", *one["loc"]), one["msg"]) for one in error.errors()]
        found = invalid_request(problems, body)
        return found.param, found.message
    except ApiError as error:
        return error.param, error.message
    except UnsupportedError as error:
        return error.param, str(error)
    raise AssertionError("it was not refused")


def test_texts_of_a_turn_are_joined_and_turns_of_one_role_are_one() -> None:
    asked = request(
        USER,
        user(TEXT, {"type": "text", "text": "Say."}),
        assistant({"type": "text", "text": "Spruce."}),
        assistant({"type": "text", "text": "Or maple."}),
        {"role": "system", "content": "Be short."},
        USER,
        system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}],
    )
    assert turns(asked) == [
        ("system", "a\nb"),
        ("user", "Which wood?\nAnd maple?\nSay."),
        ("assistant", "Spruce.\nOr maple."),
        ("system", "Be short."),
        ("user", "Which wood?"),
    ]


def test_calls_and_their_results_become_turns_of_the_tool() -> None:
    failed = OTHER_RESULT | {"content": [{"type": "text", "text": "none"}], "is_error": True}
    spoken = {"type": "text", "text": "I look."}
    asked = request(USER, assistant(THOUGHT, spoken, CALL, OTHER_CALL), user(failed, RESULT, TEXT), tools=[TOOL])
    assert asked.conversation is not None
    _, called, first, second, last = asked.conversation.messages
    assert (called.content, called.reasoning) == ("I look.", "It is wood.")
    assert [call["id"] for call in called.tool_calls] == ["toolu_1", "toolu_2"]
    assert called.tool_calls[0]["function"]["name"] == "look_up"
    assert json.loads(called.tool_calls[0]["function"]["arguments"]) == {"wood": "Fichte ü"}
    assert first == Message(role="tool", content=f"{ERROR_PREFIX}none", tool_call_id="toolu_2")
    assert second == Message(role="tool", content="light", tool_call_id="toolu_1")
    assert (last.role, last.content) == ("user", "And maple?")
    function = {"name": "look_up", "description": "d", "parameters": TOOL["input_schema"]}
    assert asked.tools == ({"type": "function", "function": function},)


def test_results_alone_leave_no_empty_turn() -> None:
    # Tools of the client that return nothing send null.
    for empty in (
        RESULT | {"content": ""},
        RESULT | {"content": None},
        {k: v for k, v in RESULT.items() if k != "content"},
    ):
        asked = request(USER, assistant(CALL), user(empty))
        assert turns(asked) == [("user", "Which wood?"), ("assistant", ""), ("tool", "")]


@pytest.mark.parametrize(
    ("messages", "place", "says"),
    [
        ([USER, assistant(CALL), user(TEXT, RESULT)], "messages.2.content.0", "toolu_1 first, then text"),
        ([USER, assistant(CALL), USER], "messages.2.content", "toolu_1 first, then text"),
        ([USER, assistant(CALL, OTHER_CALL), user(RESULT)], "messages.2", "without a tool_result: toolu_2"),
        ([USER, assistant(CALL, OTHER_CALL), user(RESULT), assistant(TEXT), USER], "messages.2", "toolu_2"),
        ([USER, assistant(CALL)], "messages.1", "without a tool_result: toolu_1"),
        ([USER, assistant(CALL), {"role": "system", "content": "s"}, user(RESULT)], "messages.2.content", "toolu_1"),
        ([USER, user(RESULT)], "messages.1.content.0", "which the message before does not call"),
        ([USER, assistant(CALL), user(RESULT, RESULT)], "messages.2.content.1", "or which has one"),
        ([USER, assistant(CALL, CALL), user(RESULT)], "messages.1.content.1", "a second call with the id 'toolu_1'"),
        ([user(CALL)], "messages.0.content.0", "a tool_use block in a message of the role user"),
        ([USER, assistant(RESULT), USER], "messages.1.content.0", "a tool_result block in a message of the role ass"),
        ([user(THOUGHT)], "messages.0.content.0", "a thinking block in a message of the role user"),
        ([USER, assistant(TEXT, THOUGHT), USER], "messages.1.content.1", "thinking blocks first"),
        ([assistant(TEXT), USER], "messages.0", "the first message is one of the assistant"),
        ([USER, assistant(TEXT)], "messages.1", "which the answer would continue"),
    ],
)
def test_blocks_in_the_wrong_order_are_refused_by_their_place(messages: list[Any], place: str, says: str) -> None:
    found, message = refusal({"model": "m", "max_tokens": 5, "messages": messages})
    assert found == place
    assert says in message
    assert "; expected: " in message
    assert "; what to do: " in message


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("wishes", "place", "says"),
    [
        ({"messages": [user(IMAGE)]}, "messages.0.content.0", "a block of the type 'image'"),
        ({"messages": [user({"type": "document"})]}, "messages.0.content.0", "a block of the type 'document'"),
        (
            {"messages": [USER, assistant(CALL), user(RESULT | {"content": [IMAGE]})]},
            "messages.2.content.0.content.0",
            "'image'",
        ),
        ({"messages": [user(TEXT | {"citations": []})]}, "messages.0.content.0.citations", "does not support"),
        ({"messages": [user({"type": "text", "text": 5})]}, "messages.0.content.0.text", "valid string"),
        ({"messages": [user()]}, "messages.0.content", "at least 1 item"),
        (
            {"messages": [USER, assistant({"type": "redacted_thinking", "data": "x"}), USER]},
            "messages.1.content.0",
            "red",
        ),
        ({"messages": [USER, assistant({"type": "server_tool_use"}), USER]}, "messages.1.content.0", "server_tool_use"),
        ({"system": [IMAGE]}, "system.0", "expected: text"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0", "web_search_20250305"),
        ({"tools": [TOOL | {"input_examples": []}]}, "tools.0.input_examples", "does not support"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools.0.defer_loading", "False"),
        ({"tools": [TOOL | {"allowed_callers": ["code_execution_20250825"]}]}, "tools.0.allowed_callers.0", "direct"),
        ({"tools": [TOOL, TOOL]}, "tools", "two tools are called 'look_up'"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "one of the tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice", "'f'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens", "under max_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking", "between_tools"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5}, "tools": [TOOL], "tool_choice": {"type": "any"}},
            "thinking",
            "forces a call",
        ),
        ({"mcp_servers": []}, "mcp_servers", "does not support"),
        ({"container": "c"}, "container", "does not support"),
        ({"context_management": {"edits": [{"type": "other"}]}}, "context_management.edits.0.type", "Input should be"),
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"speed": "fast"}, "speed", "one speed"),
        ({"thread": {"type": "create"}}, "thread", "the whole conversation"),
        ({"temperature": 1.5}, "temperature", "less than or equal to 1"),
        ({"stop_sequences": [""]}, "stop_sequences.0", "at least 1 character"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"betas": []}, "betas", "not permitted"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type", "json_schema"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(wishes: dict[str, Any], place: str, says: str) -> None:
    found, message = refusal({"model": "m", "max_tokens": 50, "messages": [USER]} | wishes)
    assert (found, says in message) == (place, True), message


def test_a_schema_without_a_finite_instance_is_refused_where_it_is_enforced() -> None:
    loop = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    wishes = {"output_config": {"format": {"type": "json_schema", "schema": loop}}}
    assert refusal({"model": "m", "max_tokens": 5, "messages": [USER]} | wishes)[0] == "output_config.format.schema"
    forced = {"tools": [TOOL | {"input_schema": loop}], "tool_choice": {"type": "any"}}
    assert refusal({"model": "m", "max_tokens": 5, "messages": [USER]} | forced)[0] == "tools.0.input_schema"


def test_choices_of_tools() -> None:
    one = {"tools": [TOOL, TOOL | {"name": "f"}]}
    auto, forced = request(**one), request(**one, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert (auto.tool_choice, auto.calls_in_parallel) == ("auto", True)
    assert (forced.tool_choice, forced.tool_name, forced.calls_in_parallel) == ("required", None, False)
    named = request(**one, tool_choice={"type": "tool", "name": "f"})
    assert (named.tool_choice, named.tool_name) == ("required", "f")
    assert request(**one, tool_choice={"type": "none"}).tools == ()


def test_strict_tools_and_the_engine_that_holds_calls_to_them() -> None:
    tools = [TOOL | {"strict": True}, TOOL | {"name": "f"}]
    auto = request(tools=tools)
    assert auto.strict_tools == (TOOL["name"],)
    assert request(tools=tools, tool_choice={"type": "any"}).strict_tools == ()
    assert request(tools=tools, tool_choice={"type": "none"}).strict_tools == ()
    assert strict_warning([auto], "transformers") is None
    assert strict_warning([request(tools=[TOOL])], "llama_cpp") is None
    assert "the engine llama_cpp does not hold optional calls" in (strict_warning([request(), auto], "llama_cpp") or "")
    loop = {"$ref": "#"}
    body = {"model": "m", "max_tokens": 5, "messages": [USER], "tools": [tools[0] | {"input_schema": loop}]}
    assert refusal(body)[0] == "tools.0.input_schema"


def test_thinking_and_what_limits_it() -> None:
    assert (request().thinks, request().thinking_budget) == (None, None)
    enabled = request(thinking={"type": "enabled", "budget_tokens": 20})
    disabled = request(thinking={"type": "disabled"})
    assert [thinking_warning(one, "transformers") for one in (enabled, disabled)] == [None, None]
    assert "budget_tokens" in (thinking_warning(enabled, "llama_cpp") or "")
    assert thinking_warning(disabled, "llama_cpp") is None
    for one in (enabled, disabled):
        assert "the other server decides" in (thinking_warning(one, "openai_http") or "")
    assert thinking_warning(request(), "openai_http") is None
    assert (enabled.thinks, enabled.thinking_budget, enabled.max_new_tokens) == (True, 20, 50)
    assert enabled.max_thinking_tokens == 0  # a thought counts among max_tokens
    assert request(thinking={"type": "disabled"}).thinks is False
    assert request(thinking={"type": "adaptive"}).thinks is None
    assert request(output_config={"effort": "low"}).reasoning_effort == "low"


def test_sampling_and_form() -> None:
    schema = {"type": "object"}
    form = {"format": {"type": "json_schema", "schema": schema}}
    asked = request(
        temperature=0,
        top_p=0.5,
        top_k=5,
        stop_sequences=["a", "b"],
        output_config=form,
    )
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (0.0, 0.5, 5)
    assert asked.stop == ("a", "b")
    assert asked.json_schema == schema
    assert not asked.counts_tokens
    assert request().sampling.temperature == 1.0


def test_a_prompt_is_counted_with_what_makes_it_and_nothing_else() -> None:
    body = {"model": "m", "messages": [USER], "tools": [TOOL], "system": "s"}
    asked = message_request(PromptBody.model_validate(body))
    assert asked.counts_tokens
    assert turns(asked) == [("system", "s"), ("user", "Which wood?")]
    assert asked.tools == request(tools=[TOOL]).tools
    assert refusal(body | {"max_tokens": 5}, PromptBody)[0] == "max_tokens"
