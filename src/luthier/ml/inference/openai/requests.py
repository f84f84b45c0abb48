"""What is sent to a server of OpenAI's API: headers, messages, and the body that asks for a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.core.conversation import Message
from luthier.core.errors import RequestError
from luthier.core.stream import TextRequest

_GREEDY_BELOW: Final = 1e-4
# OpenAI takes no more; the others are looked for here.
_MAX_STOPS: Final = 4


def auth_headers(key: str) -> Mapping[str, str]:
    """The key as a bearer token; none for an empty one.

    Raises:
        RequestError: no header can carry it.
    """
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise RequestError(
            "an API key with characters that no header can carry",
            expected="plain ASCII in one line",
            do="set the variable again, without line breaks",
        )
    return {"Authorization": f"Bearer {key}"}


def message_document(message: Message) -> dict[str, Any]:
    """A turn as the API takes it: only fields with a value, and no earlier thought, which hosted services refuse."""
    unsent = {"weight", "reasoning", "learn_reasoning"}
    document = message.model_dump(mode="json", exclude_none=True, exclude=unsent)
    # An empty list is refused by OpenAI.
    if not message.tool_calls:
        document.pop("tool_calls")
    return {"content": None, **document}


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The wish for JSON of a schema and nothing else."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def stream_path(asked: TextRequest) -> str:
    """Where a request is posted, below the address of the API."""
    return "completions" if asked.conversation is None else "chat/completions"


def stream_body(asked: TextRequest, model: str, choice: int, limit_name: str) -> dict[str, Any]:
    """The document that asks for one choice as a stream."""
    rules = asked.sampling
    is_greedy = rules.temperature < _GREEDY_BELOW or rules.top_p == 0
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        # Without it a stream ends without any count of tokens.
        "stream_options": {"include_usage": True},
        "temperature": 0.0 if is_greedy else rules.temperature,
        "top_p": 1.0 if is_greedy else rules.top_p,
        # Each choice is a request of its own: with one seed they would all be the same answer.
        "seed": rules.seed + choice,
        limit_name: asked.max_new_tokens,
    }
    for name in ("frequency_penalty", "presence_penalty"):
        if value := getattr(rules, name):
            body[name] = value
    if rules.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in rules.logit_bias}
    if asked.stop:
        body["stop"] = list(asked.stop[:_MAX_STOPS])
    if asked.json_schema is not None:
        body["response_format"] = response_format(asked.json_schema)
    if asked.conversation is None:
        body["prompt"] = asked.text if asked.token_ids is None else list(asked.token_ids)
        if asked.num_top is not None:
            body["logprobs"] = asked.num_top
        return body
    body["messages"] = [message_document(message) for message in asked.conversation.messages]
    if options := asked.trained_options | asked.template_options:
        body["chat_template_kwargs"] = options
    if asked.reasoning_effort is not None:
        body["reasoning_effort"] = asked.reasoning_effort
    if asked.num_top is not None:
        body |= {"logprobs": True, "top_logprobs": asked.num_top}
    if asked.tools:
        named_tool = {"type": "function", "function": {"name": asked.tool_name}}
        body |= {
            "tools": list(asked.tools),
            "tool_choice": named_tool if asked.tool_name else asked.tool_choice,
            "parallel_tool_calls": asked.calls_in_parallel,
        }
    return body
