"""Tools about models: list them, list base models, and ask one."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.frozen_model import ClosedModel
from luthier.core.stream import Piece, Sampling, TextRequest
from luthier.core.text.counted import counted
from luthier.features.mcp_server.records import Arguments, Call, Limit, Name, NoArguments, Tool, ToolResult
from luthier.features.model_browser import api as base_models
from luthier.features.playground.chat import MAX_CHARACTERS, MAX_TURNS, route_to
from luthier.features.serving.api import models as served_models
from luthier.features.serving.api.answering import usage_of
from luthier.features.serving.completion_stream import CompletionStream
from luthier.features.serving.service import new_seed

_PROGRESS_SECONDS: Final = 1.0


class AskMessage(ClosedModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class AskArguments(Arguments):
    """A question."""

    model: Annotated[Name, Field(description="A deployment, a tuned model (ft:...), a run, or a base model.")]
    prompt: Annotated[
        str | None, Field(min_length=1, max_length=MAX_CHARACTERS, description="One question of a user.")
    ] = None
    messages: Annotated[
        list[AskMessage] | None,
        Field(
            min_length=1,
            max_length=MAX_TURNS,
            description="In place of prompt: a conversation, the last turn a user's.",
        ),
    ] = None
    max_tokens: Annotated[
        int, Field(ge=1, le=32_768, description="The most tokens of the answer; a thought before it has its own.")
    ] = 256
    temperature: Annotated[float, Field(ge=0, le=2, description="0: the same answer each time.")] = 0.0
    seed: Annotated[int | None, Field(ge=0, lt=1 << 63, description="Of sampling, for a temperature above 0.")] = None


class BaseModelArguments(Arguments):
    """Which base models."""

    only_here: Annotated[
        bool, Field(description="Only those on the machine of the server; others are fetched first.")
    ] = False
    limit: Limit = 50


def list_models(call: Call, _asked: NoArguments) -> ToolResult:
    """What the project can ask."""
    found = served_models.model_documents(call.context, call.caller)
    return ToolResult(f"{counted(len(found), 'model')} can be used.", {"models": found})


def list_base_models(call: Call, asked: BaseModelArguments) -> ToolResult:
    """What a recipe may name."""
    found = [one for one in base_models.list_all(call.context, call.caller).data if one.is_here or not asked.only_here]
    fields = {"name", "title", "is_here", "licence", "is_gated", "num_parameters", "context_length_tokens"}
    fields |= {"has_chat_template", "training_memory"}
    shown = [one.model_dump(mode="json", include=fields) for one in found[: asked.limit]]
    summary = f"{counted(len(found), 'base model')}, on the machine of the server: {sum(one.is_here for one in found)}."
    return ToolResult(summary, {"base_models": shown, "num_base_models": len(found)})


async def ask(call: Call, asked: AskArguments) -> ToolResult:
    """The answer of a model; generation ends when the client cancels the call."""
    request = _request(asked)
    stream = CompletionStream(call.context, call.caller, [request], model=asked.model)
    sent_at, num_pieces = time.monotonic(), 0
    try:
        await stream.begin(lambda: route_to(call.context, call.caller, asked.model, [request]))
        while not stream.answer.has_ended:
            event = await stream.next()
            num_pieces += isinstance(event, Piece)
            if time.monotonic() - sent_at >= _PROGRESS_SECONDS and num_pieces:
                sent_at = time.monotonic()
                await call.progress(num_pieces, None, f"{num_pieces:,} pieces of text written")
        if stream.answer.error is not None:
            raise stream.answer.error
        await stream.charge()
    finally:
        await stream.leave()
    choice, routed = stream.answer.choices[0], stream.answer.routed
    document: dict[str, Any] = {
        "model": asked.model,
        "target": None if routed is None else routed.target,
        "text": choice.text,
        "reasoning": choice.reasoning or None,
        "finish_reason": choice.reason,
        "usage": usage_of(stream.answer),
    }
    cut = "\n\n(cut off at max_tokens)" if choice.reason == "length" else ""
    return ToolResult(f"{choice.text}{cut}", document)


def _request(asked: AskArguments) -> TextRequest:
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError(
            "both prompt and messages" if asked.prompt is not None else "neither prompt nor messages",
            expected="a prompt, or the messages of a conversation",
            do="give one of the two",
        )
    turns = asked.messages or [AskMessage(role="user", content=asked.prompt or "")]
    if turns[-1].role != "user":
        raise RequestError(
            f"the last message is of the role {turns[-1].role}",
            expected="a message of the user",
            do="end with a question",
        )
    messages = tuple(Message(role=turn.role, content=turn.content) for turn in turns)
    seed = new_seed() if asked.seed is None else asked.seed
    return TextRequest(
        conversation=Conversation(messages=messages),
        sampling=Sampling(temperature=asked.temperature, seed=seed),
        max_new_tokens=asked.max_tokens,
        max_thinking_tokens=None,
    )


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        "list_models",
        "List models",
        "Models that ask and deploy take: deployments, tuned models, and base models on the machine of the server.",
        ("read", "infer"),
        NoArguments,
        list_models,
        is_read_only=True,
    ),
    Tool(
        "list_base_models",
        "List base models",
        "Base models that a recipe may name, with licence, size and the memory that training takes.",
        ("read",),
        BaseModelArguments,
        list_base_models,
        is_read_only=True,
    ),
    Tool(
        "ask",
        "Ask a model",
        "Send a question or conversation to a model and return its answer. Its tokens are charged to the key.",
        ("infer",),
        AskArguments,
        waits=ask,
        is_read_only=True,
    ),
)
