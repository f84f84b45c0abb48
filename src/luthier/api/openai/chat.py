"""/v1/chat/completions: a model answers a conversation, whole or as it writes."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from luthier.api.authentication import Asker, HomeContext
from luthier.api.errors import ApiError
from luthier.api.openai.answering import ANSWERS, respond, usage_of
from luthier.api.openai.sampling import Ignored, SamplingBody, Unsupported
from luthier.core.conversation import Conversation, Message
from luthier.core.stream import Ended, Piece, TextRequest, TokenLikelihood, WrittenToken
from luthier.service.serving import Answer

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

_MAX_MESSAGES: Final = 2048
_STRICT: Final = ConfigDict(extra="forbid", strict=True)


class TextPart(BaseModel):
    """A part of a message; text is the only kind that models here read."""

    model_config = _STRICT

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; what the client has got as an answer may be sent back as it came."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Ignored = None
    audio: Unsupported = None
    tool_calls: Unsupported = None
    function_call: Unsupported = None

    def text(self) -> str | None:
        """The content as one text; None where there is none."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content if self.content is not None else self.refusal


class TextFormat(BaseModel):
    """The only format of an answer that is built."""

    model_config = _STRICT

    type: Literal["text"]


class ChatBody(SamplingBody):
    """What is asked. Parameters that are not built are refused by name, those that change no answer are accepted."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None

    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None

    tools: Unsupported = None
    functions: Unsupported = None
    audio: Unsupported = None
    moderation: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None


@router.post("", responses=ANSWERS, response_class=Response)
async def create_chat_completion(body: ChatBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """The next turn of a conversation; with `stream` as server-sent events."""
    asked = TextRequest(
        conversation=_conversation(body),
        sampling=body.sampling(),
        max_new_tokens=_max_tokens(body) or context.settings.serving_new_tokens,
        stop=body.stops(),
        num_choices=body.n or 1,
        num_top=_num_top(body),
    )
    return await respond(
        request,
        context,
        caller,
        model=body.model,
        asked=[asked],
        words=lambda fingerprint: _ChatWords(body.model, fingerprint, body.tells_usage, bool(body.logprobs)),
        is_streamed=bool(body.stream),
        user=body.asked_by(),
    )


def _conversation(body: ChatBody) -> Conversation:
    messages = []
    for number, message in enumerate(body.messages):
        text = message.text()
        if text is None and message.role != "assistant":
            raise ApiError(
                400,
                f"Invalid message {number + 1} ({message.role}): it has no content; expected: a text",
                param=f"messages.{number}.content",
                code="invalid_value",
            )
        messages.append(Message(role=message.role, content=text or "", name=message.name))
    return Conversation(messages=tuple(messages))


def _max_tokens(body: ChatBody) -> int | None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise ApiError(
            400,
            f"max_tokens={body.max_tokens} contradicts max_completion_tokens={body.max_completion_tokens}; "
            "expected: one of them",
            param="max_tokens",
            code="invalid_value",
        )
    return body.max_completion_tokens or body.max_tokens


def _num_top(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, "top_logprobs needs logprobs: true; expected: both", param="top_logprobs", code="invalid_value"
        )
    return (body.top_logprobs or 0) if body.logprobs else None


@dataclass(slots=True)
class _ChatWords:
    """`chat.completion` and `chat.completion.chunk`."""

    model: str
    fingerprint: str
    tells_usage: bool
    tells_likelihoods: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [
            {
                "index": number,
                "message": {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []},
                "logprobs": self._likelihoods(choice.tokens),
                "finish_reason": choice.reason,
            }
            for number, choice in enumerate(answer.choices)
        ]
        return self._document("chat.completion", choices) | {"usage": usage_of(answer)}

    def first(self, choice: int) -> dict[str, Any]:
        return self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(piece.choice, {"content": piece.text}, logprobs=self._likelihoods(piece.tokens))

    def end(self, ended: Ended) -> dict[str, Any]:
        return self._chunk(ended.choice, {}, reason=ended.reason)

    def usage(self, answer: Answer) -> dict[str, Any] | None:
        if not self.tells_usage:
            return None
        return self._document("chat.completion.chunk", []) | {"usage": usage_of(answer)}

    def _chunk(
        self, choice: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._document("chat.completion.chunk", [told]) | ({"usage": None} if self.tells_usage else {})

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _likelihoods(self, tokens: list[WrittenToken] | tuple[WrittenToken, ...]) -> dict[str, Any] | None:
        if not self.tells_likelihoods:
            return None
        content = [_token(token.chosen) | {"top_logprobs": [_token(one) for one in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


def _token(token: TokenLikelihood) -> dict[str, Any]:
    """A token that is no whole characters has no bytes that could be told."""
    is_whole = "\ufffd" not in token.token
    return {
        "token": token.token,
        "logprob": token.log_probability,
        "bytes": list(token.token.encode()) if is_whole else None,
    }
