"""An answer as Anthropic's clients read it: a message of content blocks, complete or as events of a stream.

    message_start, ping
    for each block: content_block_start, content_block_delta (thinking_delta, signature_delta, text_delta,
        input_json_delta), content_block_stop
    message_delta (stop_reason, usage), message_stop

Source: Anthropic's API reference, "Create a Message" and "Streaming messages".
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Iterator
from typing import Any, Final, Literal

from pydantic_core import from_json

from luthier.core.stream import CallPiece, Ended, EndReason, Piece
from luthier.features.serving.api.answering import event_line
from luthier.features.serving.api.block_order import BlockOrder, Part
from luthier.features.serving.service import Answer, Choice
from luthier.platform.http.anthropic import error_document
from luthier.platform.http.errors import ApiError

INVALID_JSON: Final = "invalid_json"
"""The key of a call's input that holds what the model wrote, where that is no JSON object."""
_Kind = Literal["thinking", "text", "tool_use"]
_NO_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_ID: Final = 100


class MessageWriter:
    """Writes one answer.

    Args:
        model: Its name in the request.
        max_tokens: The limit of the request.
        request_id: Of the answer, for errors in the middle of a stream.
        shows_thoughts: Whether thinking blocks have their text; otherwise the signature alone.
    """

    def __init__(self, model: str, max_tokens: int, request_id: str, *, shows_thoughts: bool) -> None:
        self._model, self._max_tokens, self._request_id = model, max_tokens, request_id
        self._shows_thoughts = shows_thoughts
        self._id = f"msg_{uuid.uuid4().hex}"
        self._order = BlockOrder()
        self._open: _Kind | None = None
        self._num_blocks = 0
        self._thought: list[str] = []
        self._calls = self._has_failed = False

    @property
    def id(self) -> str:
        """Shown to the client."""
        return self._id

    def answered_by(self, fingerprint: str) -> None:
        """Nothing: a message has no fingerprint."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The complete message."""
        (choice,) = answer.choices
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            thought = choice.reasoning if self._shows_thoughts else ""
            content.append({"type": "thinking", "thinking": thought, "signature": signature_of(choice.reasoning)})
        calls = [_block_of(call) for call in choice.tool_calls()]
        # Never without a block: clients read the first one.
        if choice.text or not calls:
            content.append({"type": "text", "text": choice.text})
        return self._message([*content, *calls], answer) | _stop_of(choice, bool(calls), self._max_tokens)

    def begin(self, answer: Answer) -> Iterator[bytes]:
        """The message without content."""
        message = self._message([], answer) | _stopped(None)
        yield _event("message_start", message=message)
        yield _event("ping")

    def event(self, event: Piece | Ended) -> Iterator[bytes]:
        """More of a block, or the end of the last one."""
        for part in self._order.end() if isinstance(event, Ended) else self._order.add(event):
            yield from self._part(part)
        if isinstance(event, Ended):
            if not self._num_blocks:
                yield from self._begin("text", {"type": "text", "text": ""})
            yield from self._close()

    def _part(self, part: Part) -> Iterator[bytes]:
        if part.call is not None:
            yield from self._call(part.call)
        elif part.kind == "reasoning":
            yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thought.append(part.text)
            if self._shows_thoughts:
                yield self._delta({"type": "thinking_delta", "thinking": part.text})
        else:
            yield from self._begin("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": part.text})

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """An event `error`, the last one."""
        self._has_failed = True
        found = error_document(error.status, error.message, self._request_id, param=error.param, code=error.code)
        yield event_line(found, event="error")

    def last(self, answer: Answer) -> Iterator[bytes]:
        """Why the answer ended, and its usage; nothing after an error."""
        if self._has_failed:
            return
        (choice,) = answer.choices
        yield _event("message_delta", delta=_stop_of(choice, self._calls, self._max_tokens), usage=_usage(answer))
        yield _event("message_stop")

    def _message(self, content: list[dict[str, Any]], answer: Answer) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "usage": _usage(answer) | {"service_tier": "standard"},
        }

    def _call(self, call: CallPiece) -> Iterator[bytes]:
        if call.name is not None:
            # Each call is a block of its own.
            yield from self._close()
            self._calls = True
            block = {"type": "tool_use", "id": _tool_use_id(call.call_id), "name": call.name, "input": {}}
            yield from self._begin("tool_use", block)
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _begin(self, kind: _Kind, block: dict[str, Any]) -> Iterator[bytes]:
        """Open a block, unless one of this kind is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield _event("content_block_start", index=self._num_blocks, content_block=block)
        self._num_blocks += 1

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "thinking":
            signature = signature_of("".join(self._thought))
            self._thought = []
            yield self._delta({"type": "signature_delta", "signature": signature})
        self._open = None
        yield _event("content_block_stop", index=self._num_blocks - 1)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta=delta)


def signature_of(thought: str) -> str:
    """What a thinking block carries beside its text: the SHA-256 of it. Nothing depends on it here."""
    return base64.b64encode(hashlib.sha256(thought.encode(errors="surrogatepass")).digest()).decode()


def _event(kind: str, **fields: Any) -> bytes:
    return event_line({"type": kind, **fields}, event=kind)


def _usage(answer: Answer) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "input_tokens": answer.num_prompt_tokens,
        "output_tokens": answer.num_new_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    if num_thinking := answer.num_thinking_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": num_thinking}
    return usage


def _stop_of(choice: Choice, has_calls: bool, max_tokens: int) -> dict[str, str | None]:
    reason: EndReason | None = choice.reason
    if reason == "length":
        # Fewer tokens than the request allows: the context is full.
        is_full = choice.num_new_tokens < max_tokens
        return _stopped("model_context_window_exceeded" if is_full else "max_tokens")
    # A stop text after a call ends the turn of the call: its result is what comes next.
    if has_calls:
        return _stopped("tool_use")
    if choice.stop_text is not None:
        return _stopped("stop_sequence", choice.stop_text)
    return _stopped("end_turn")


def _stopped(reason: str | None, sequence: str | None = None) -> dict[str, str | None]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}


def _tool_use_id(call_id: str | None) -> str:
    # Other servers use characters (`functions.f:0`) that the API does not take back.
    return f"toolu_{_NO_ID.sub('_', (call_id or uuid.uuid4().hex).removeprefix('call_'))[:_MAX_ID]}"


def _block_of(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": _tool_use_id(call["id"]),
        "name": function["name"],
        "input": _input_of(function["arguments"]),
    }


def _input_of(arguments: str) -> dict[str, Any]:
    """The arguments of a call; what is complete of them where the answer was cut off, as clients read a stream."""
    for is_partial in (False, True):
        try:
            found = from_json(arguments or "{}", allow_inf_nan=False, allow_partial=is_partial)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {INVALID_JSON: arguments}
