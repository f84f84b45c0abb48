"""The object `response`, and its event stream: created, in_progress, the output items, then how it has ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any, Final

from luthier.core.stream import Ended, Piece
from luthier.features.serving.api.answering import event_line
from luthier.features.serving.api.responses.body import AllowedTools, FunctionChoice, ResponseBody
from luthier.features.serving.api.responses.output import Event, OutputItems
from luthier.features.serving.service import Answer
from luthier.platform.http.errors import ApiError

_ERRORS: Final = {"rate_limit_exceeded": "rate_limit_exceeded", "invalid_value": "invalid_prompt"}
"""Codes of a failed response, by ours; all others are a server_error."""


class ResponseObjectWriter:
    """Formats one answer; see `answering.ResponseWriter`.

    Args:
        body: The request.
        is_stored: Whether the response is kept.

    Attributes:
        id: Shown to the client.
    """

    def __init__(self, body: ResponseBody, *, is_stored: bool) -> None:
        self._body, self._is_stored = body, is_stored
        self.id = f"resp_{uuid.uuid4().hex}"
        self._created_at = int(time.time())
        self._output = OutputItems(summarises=body.summarises, returns_logprobs=body.returns_logprobs)
        self._num_events = 0
        self._has_begun = self._has_failed = False
        self._whole: dict[str, Any] | None = None

    def answered_by(self, fingerprint: str) -> None:
        """Nothing: no field of a response names the engine."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The complete response; of a stream, with the items that the stream has shown."""
        if self._whole is None:
            self._whole = self._made(answer)
        return self._whole

    def _made(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choices[0]
        assert choice.reason is not None
        if not self._has_begun:
            piece = Piece(
                text=choice.text, reasoning=choice.reasoning, tokens=tuple(choice.tokens), calls=tuple(choice.calls)
            )
            self._has_begun = True
            for _ in (*self._output.add(piece), *self._output.end(Ended(reason=choice.reason, num_new_tokens=0))):
                pass
        is_cut = choice.reason == "length"
        document = self._document("incomplete" if is_cut else "completed", answer)
        if is_cut:
            return document | {"incomplete_details": {"reason": "max_output_tokens"}}
        return document | {"completed_at": int(time.time())}

    def begin(self, answer: Answer) -> Iterator[bytes]:  # noqa: ARG002 - of the protocol
        """That it is created, and in progress."""
        self._has_begun = True
        for name in ("created", "in_progress"):
            yield self._line({"type": f"response.{name}", "response": self._document("in_progress", None)})

    def event(self, event: Piece | Ended) -> Iterator[bytes]:
        """More of an item, or the end of the last one."""
        found = self._output.add(event) if isinstance(event, Piece) else self._output.end(event)
        for one in found:
            yield self._line(one)

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """That it has failed, with the items that were complete."""
        self._has_failed = True
        words = {"code": _ERRORS.get(error.code or "", "server_error"), "message": error.message}
        document = self._document("failed", None) | {"error": words}
        yield self._line({"type": "response.failed", "response": document})

    def last(self, answer: Answer) -> Iterator[bytes]:
        """The complete response."""
        if not self._has_failed:
            document = self.whole(answer)
            yield self._line({"type": f"response.{document['status']}", "response": document})

    def _line(self, event: Event) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return event_line({**event, "sequence_number": number}, event=event["type"])

    def _document(self, status: str, answer: Answer | None) -> dict[str, Any]:
        body = self._body
        reasoning = body.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "model": body.model,
            "output": list(self._output.items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {
                "effort": None if reasoning is None else reasoning.effort,
                "summary": None if reasoning is None else reasoning.summary or reasoning.generate_summary,
            },
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": self._is_stored,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": _format(body)},
            "tool_choice": _choice(body),
            "tools": [
                {"type": "function", "name": tool.name, "description": tool.description}
                | {"parameters": tool.parameters, "strict": tool.strict}
                for tool in body.tools or ()
            ],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if answer is None else usage_of(answer),
            "user": body.user,
            "metadata": body.metadata or {},
        } | _dropped(body, answer)


def usage_of(answer: Answer) -> dict[str, Any]:
    """The token usage of an answer, as responses have it."""
    return {
        "input_tokens": answer.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer.num_new_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.num_thinking_tokens},
        "total_tokens": answer.num_prompt_tokens + answer.num_new_tokens,
    }


def _dropped(body: ResponseBody, answer: Answer | None) -> dict[str, Any]:
    """With `truncation: auto`, how many messages were left out of the conversation: a field of our own."""
    is_known = answer is not None and body.truncation == "auto"
    return {"num_dropped_messages": answer.num_dropped} if is_known and answer is not None else {}


def _format(body: ResponseBody) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    return {"type": "text"} if wanted is None else wanted.model_dump(mode="json", by_alias=True, exclude_none=True)


def _choice(body: ResponseBody) -> Any:
    choice = body.tool_choice or "auto"
    return choice.model_dump(mode="json") if isinstance(choice, FunctionChoice | AllowedTools) else choice
