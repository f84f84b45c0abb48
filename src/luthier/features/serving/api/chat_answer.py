"""`chat.completion` and `chat.completion.chunk`: the objects in which a chat completion is answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.stream import CallPiece, Ended, Piece, TokenLikelihood, WrittenToken
from luthier.features.serving.api.answering import usage_of
from luthier.features.serving.api.functions import as_function_call, function_delta
from luthier.features.serving.service import Answer, Choice


@dataclass(slots=True)
class ChatResponseBuilder:
    """Of one answer.

    Attributes:
        model: As the request names it.
        fingerprint: Of the model that answers.
        tells_usage: Whether a stream ends with a chunk of token counts.
        tells_likelihoods: Whether log probabilities are returned.
        has_functions: Whether a call is written in the older form, `function_call`.
        service_tier: The tier that answers, if the request names one.
        id: `chatcmpl-...`, the same in all chunks.
        created: Seconds since 1970.
    """

    model: str
    fingerprint: str
    tells_usage: bool
    tells_likelihoods: bool
    has_functions: bool = False
    service_tier: str | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [
            {
                "index": number,
                "message": self._message(choice),
                "logprobs": self._likelihoods(choice.tokens),
                "finish_reason": self._reason(choice.reason),
            }
            for number, choice in enumerate(answer.choices)
        ]
        return self._document("chat.completion", choices) | {"usage": usage_of(answer)}

    def first(self, event: Piece | Ended) -> dict[str, Any]:
        is_no_text = isinstance(event, Piece) and (event.calls or event.reasoning) and not event.text
        # OpenAI's first chunk has an empty content before text, and null before tool calls.
        content = None if is_no_text else ""
        return self._chunk(event.choice, {"role": "assistant", "content": content, "refusal": None})

    def piece(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.text or not (piece.calls or piece.reasoning):
            delta["content"] = piece.text
        if piece.calls and self.has_functions:
            delta |= function_delta(piece.calls)
        elif piece.calls:
            delta["tool_calls"] = [_call_delta(call) for call in _joined(piece.calls)]
        return self._chunk(piece.choice, delta, logprobs=self._likelihoods(piece.answer_tokens))

    def end(self, ended: Ended) -> dict[str, Any]:
        return self._chunk(ended.choice, {}, reason=self._reason(ended.reason))

    def usage(self, answer: Answer) -> dict[str, Any] | None:
        if not self.tells_usage:
            return None
        return self._document("chat.completion.chunk", []) | {"usage": usage_of(answer)}

    def _chunk(
        self, choice: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        # With include_usage, every chunk but the last has usage null (OpenAI: "Chat completion chunk").
        return self._document("chat.completion.chunk", [told]) | ({"usage": None} if self.tells_usage else {})

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **({} if self.service_tier is None else {"service_tier": self.service_tier}),
        }

    def _reason(self, reason: str | None) -> str | None:
        return "function_call" if self.has_functions and reason == "tool_calls" else reason

    def _message(self, choice: Choice) -> dict[str, Any]:
        calls = choice.tool_calls()
        content = choice.text if choice.text or not calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        thought = {"reasoning_content": choice.reasoning} if choice.reasoning else {}
        called = as_function_call(calls) if self.has_functions else {"tool_calls": calls} if calls else {}
        return message | thought | called

    def _likelihoods(self, tokens: list[WrittenToken] | tuple[WrittenToken, ...]) -> dict[str, Any] | None:
        if not self.tells_likelihoods:
            return None
        content = [_token(token.chosen) | {"top_logprobs": [_token(one) for one in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


def _joined(calls: Sequence[CallPiece]) -> list[CallPiece]:
    """The pieces, those of one call joined: older clients take two entries of one index in a chunk for two calls."""
    found: list[CallPiece] = []
    for call in calls:
        if call.name is None and found and found[-1].index == call.index:
            found[-1] = found[-1].model_copy(update={"arguments": found[-1].arguments + call.arguments})
        else:
            found.append(call)
    return found


def _call_delta(call: CallPiece) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.call_id, "type": "function", "function": function}


def _token(token: TokenLikelihood) -> dict[str, Any]:
    """A token that is not whole characters has no reportable bytes."""
    # A token may end inside a UTF-8 character; decoded alone it becomes the replacement character.
    is_whole = "\ufffd" not in token.token
    return {
        "token": token.token,
        "logprob": token.log_probability,
        "bytes": list(token.token.encode()) if is_whole else None,
    }
