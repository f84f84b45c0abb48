"""Requests made to break something are refused with 400 and their field, and the next one is answered."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from tests.clock import today
from tests.vacuous import nonempty

from luthier.features.serving.api.chat import ChatBody
from luthier.features.serving.api.completions import CompletionBody
from luthier.features.serving.api.pooling import EmbeddingBody
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context

ServedHome = tuple[Context, str]
QUESTION: list[Any] = [{"role": "user", "content": "Which wood?"}]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


def tool(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], **more}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "c", "content": "done"}
    return {"messages": [*QUESTION, {"role": "assistant", "tool_calls": [call]}, answer]}


ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "half a character": ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages.0.content"),
    "half a character in a name": ({"model": "\udc00"}, "model"),
    "a deep schema": (form(nested(200)), "response_format"),
    "deep parameters": (tool(nested(300)), "tools"),
    "brackets as arguments": (called("[" * 100_000), "messages.1.tool_calls.0.function.arguments"),
    "half a character in arguments": (called(r'{"a": "\ud800"}'), "messages.1.tool_calls.0.function.arguments"),
    "a schema that is only itself": (form({"$ref": "#"}), "response_format"),
    "a schema without end": (form(ENDLESS), "response_format"),
    "arguments without end": (tool(ENDLESS, tool_choice="required"), "tools.0.function.parameters"),
    "strict arguments without end": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": ENDLESS, "strict": True}}]},
        "tools.0.function.parameters",
    ),
    "a vast schema": (form({"description": "a" * 200_000}), "response_format"),
    "many biases": ({"logit_bias": {str(n): 1 for n in range(2000)}}, "logit_bias"),
    "many stops": ({"stop": ["a"] * 1000}, "stop"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_by_its_field_and_not_to_be_repeated(served: ServedHome, name: str) -> None:
    wishes, param = HOSTILE[name]
    _, key = create_key(served[0], "hostile", scopes=("infer",))
    body = json.dumps({"model": "tiny", "messages": QUESTION, "max_tokens": 4} | wishes)
    answer = httpx2.post(
        f"{served[1]}/v1/chat/completions",
        content=body.encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        timeout=120,
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


MANY: dict[str, Any] = {
    "prompt": [[1] * 200_000 + ["a"], ["a"] * 40_000, [["a"]] * 40_000, [True] * 40_000],
    "stop": [[1] * 200_000, [[]] * 40_000],
    "messages": [[1] * 200_000, [{"role": "user", "content": [1] * 200_000}], [[]] * 40_000],
    "tools": [[1] * 200_000],
    "modalities": [["audio"] * 40_000, [1] * 200_000],
    "input": [[1] * 200_000 + ["a"], ["a"] * 40_000, [["a"]] * 40_000],
}


@pytest.mark.parametrize("field", MANY)
def test_many_wrong_elements_make_few_errors(field: str) -> None:
    """An error of each would take seconds, and they are looked at on the event loop."""
    kinds: dict[str, type[BaseModel]] = {"prompt": CompletionBody, "input": EmbeddingBody}
    given = {"model": "m", "messages": QUESTION} if field not in kinds else {"model": "m"}
    for value in nonempty(MANY[field]):
        with pytest.raises(ValidationError) as caught:
            kinds.get(field, ChatBody).model_validate(given | {field: value})
        assert 0 < caught.value.error_count() < 10


def test_the_next_one_is_answered(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3)
    assert made.choices[0].message.content is not None


def test_a_recursion_that_can_end_is_kept_to(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    wish: Any = form(schema)["response_format"]
    made = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=200, response_format=wish, temperature=0
    )
    inner = from_json(made.choices[0].message.content or "", allow_partial=True)  # it may be cut by max_tokens
    assert inner is not None
    while inner:
        assert list(inner) == ["a"]
        inner = inner["a"]
    assert inner == {}


def test_a_prompt_of_many_contexts_counts_as_many_requests_and_on_the_day(served: ServedHome) -> None:
    day = today().isoformat()
    made, key = create_key(served[0], "long", scopes=("infer",), requests_per_minute=60, tokens_per_day=1_000_000)
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt="wood " * 700_000, max_tokens=1)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.RateLimitError, match="requests per minute"):
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
    assert served[0].access.num_tokens_on(made.key_id, day) > 100_000


def test_vectors_of_what_is_too_long_are_counted_too(served: ServedHome) -> None:
    day = today().isoformat()
    made, key = create_key(served[0], "vectors", scopes=("infer",), tokens_per_day=1_000_000)
    with (
        openai.OpenAI(base_url=f"{served[1]}/v1", api_key=key, max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="at least"),
    ):
        client.embeddings.create(model="tiny", input="wood " * 700_000)
    assert served[0].access.num_tokens_on(made.key_id, day) > 100_000
