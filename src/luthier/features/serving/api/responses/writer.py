"""The object `response`, and its event stream: created, in_progress, the output items, then how it has ended.

    reasoning        output_item.added, content_part.added, reasoning_text.delta ..., reasoning_text.done,
                     content_part.done, output_item.done; as a summary: reasoning_summary_part.added and so on
    message          output_item.added, content_part.added, output_text.delta ..., output_text.done, content_part.done,
                     output_item.done
    function_call    output_item.added, function_call_arguments.delta ..., function_call_arguments.done,
                     output_item.done

Source: OpenAI's API reference, "Responses streaming events".
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from luthier.core.stream import CallPiece, Ended, Piece, TokenLikelihood, WrittenToken
from luthier.features.serving.api.answering import event_line
from luthier.features.serving.api.block_order import BlockOrder, Part
from luthier.features.serving.api.responses.body import AllowedTools, FunctionChoice, ResponseBody
from luthier.features.serving.api.responses.items import as_encrypted_content
from luthier.features.serving.service import Answer
from luthier.features.traffic.stored_responses import item_id
from luthier.platform.http.errors import ApiError

Event = dict[str, Any]
_Kind = Literal["reasoning", "message", "function_call"]
_PREFIXES: Final[dict[_Kind, str]] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class OutputItems:
    """The items of one answer, in the order in which they are written.

    Args:
        summarises: Whether reasoning is returned as the summary of its item, rather than as its content.
        returns_logprobs: Whether text comes with the likelihoods of its tokens.
        returns_encrypted: Whether reasoning has `encrypted_content`, too.
        response_id: Of the response; the ids of the items are made of it.

    Attributes:
        items: Those that are complete.
    """

    def __init__(
        self, *, summarises: bool, returns_logprobs: bool, response_id: str, returns_encrypted: bool = False
    ) -> None:
        self._summarises, self._returns_logprobs, self._response_id = summarises, returns_logprobs, response_id
        self._returns_encrypted = returns_encrypted
        self.items: list[dict[str, Any]] = []
        self._order = BlockOrder()
        self._open: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._tokens: list[dict[str, Any]] = []

    def add(self, piece: Piece) -> Iterator[Event]:
        """Take in more of the answer; yields the events of it, without their sequence numbers."""
        for part in self._order.add(piece):
            yield from self._part_of(part)

    def _part_of(self, part: Part) -> Iterator[Event]:
        if part.call is not None:
            yield from self._call(part.call)
        elif part.kind == "reasoning":
            yield from self._in("reasoning")
            yield from self._reasoning(part.text)
        else:
            yield from self._in("message")
            yield from self._text(part.text, part.tokens)

    def end(self, ended: Ended) -> Iterator[Event]:
        """Complete the last item; an answer of nothing is a message without text."""
        for part in self._order.end():
            yield from self._part_of(part)
        is_cut = ended.reason == "length"
        kinds = {item["type"] for item in self.items} | ({self._open["type"]} if self._open else set())
        if not kinds or (kinds == {"reasoning"} and not is_cut):
            yield from self._in("message")
        yield from self._close("incomplete" if is_cut else "completed")

    def _in(self, kind: _Kind) -> Iterator[Event]:
        """Have an item of this kind open."""
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            extra: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant", "content": []}
            yield from self._begin(kind, extra)
            yield from self._part_added(kind)

    def _begin(self, kind: _Kind, fields: dict[str, Any]) -> Iterator[Event]:
        own_id = item_id(_PREFIXES[kind], self._response_id, len(self.items))
        self._open, self._texts, self._tokens = {"id": own_id, "type": kind, "status": "in_progress", **fields}, [], []
        yield {"type": "response.output_item.added", "output_index": len(self.items), "item": dict(self._open)}

    def _part_added(self, kind: _Kind) -> Iterator[Event]:
        if kind == "reasoning" and self._summarises:
            part = {"type": "summary_text", "text": ""}
            yield self._of_item("response.reasoning_summary_part.added", summary_index=0, part=part)
            return
        yield self._of_item("response.content_part.added", content_index=0, part=self._part(kind))

    def _part(self, kind: str) -> dict[str, Any]:
        """The one part of a message or of reasoning, as far as it is written."""
        text = "".join(self._texts)
        if kind == "reasoning":
            return {"type": "summary_text" if self._summarises else "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._tokens)}

    def _reasoning(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        if self._summarises:
            yield self._of_item("response.reasoning_summary_text.delta", summary_index=0, delta=text)
        else:
            yield self._of_item("response.reasoning_text.delta", content_index=0, delta=text)

    def _text(self, text: str, tokens: Sequence[WrittenToken]) -> Iterator[Event]:
        likelihoods = [token_document(token) for token in tokens] if self._returns_logprobs else []
        self._texts.append(text)
        self._tokens += likelihoods
        yield self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=likelihoods)

    def _call(self, call: CallPiece) -> Iterator[Event]:
        if call.name is not None:
            yield from self._close("completed")
            yield from self._begin("function_call", {"call_id": call.call_id, "name": call.name, "arguments": ""})
        if call.arguments:
            self._texts.append(call.arguments)
            yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def _close(self, status: Literal["completed", "incomplete"]) -> Iterator[Event]:
        if self._open is None:
            return
        kind, text = self._open["type"], "".join(self._texts)
        if kind == "function_call":
            yield self._of_item("response.function_call_arguments.done", name=self._open["name"], arguments=text)
            self._open["arguments"] = text
        elif kind == "reasoning" and self._summarises:
            yield self._of_item("response.reasoning_summary_text.done", summary_index=0, text=text)
            yield self._of_item("response.reasoning_summary_part.done", summary_index=0, part=self._part(kind))
            self._open["summary"] = [self._part(kind)]
        else:
            name, likelihoods = "response.reasoning_text.done", {}
            if kind == "message":
                name, likelihoods = "response.output_text.done", {"logprobs": list(self._tokens)}
            yield self._of_item(name, content_index=0, text=text, **likelihoods)
            yield self._of_item("response.content_part.done", content_index=0, part=self._part(kind))
            self._open["content"] = [self._part(kind)]
        if kind == "reasoning" and self._returns_encrypted:
            self._open["encrypted_content"] = as_encrypted_content(text)
        self._open["status"] = status
        done, self._open = self._open, None
        place = len(self.items)
        self.items.append(done)
        yield {"type": "response.output_item.done", "output_index": place, "item": done}

    def _of_item(self, kind: str, /, **_fields: Any) -> Event:
        assert self._open is not None
        return {"type": kind, "item_id": self._open["id"], "output_index": len(self.items), **_fields}


def token_document(token: WrittenToken) -> dict[str, Any]:
    """A token with its log-probability, as parts of a message have it."""
    return _likelihood(token.chosen) | {"top_logprobs": [_likelihood(one) for one in token.top]}


def _likelihood(token: TokenLikelihood) -> dict[str, Any]:
    # A token may end inside a UTF-8 character; decoded alone it becomes the replacement character, and has no bytes.
    has_bytes = "\ufffd" not in token.token
    number = list(token.token.encode("utf-8", "surrogatepass")) if has_bytes else []
    return {"token": token.token, "logprob": token.log_probability, "bytes": number}


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
        self._output = OutputItems(
            summarises=body.summarises,
            returns_logprobs=body.returns_logprobs,
            response_id=self.id,
            returns_encrypted=body.returns_encrypted,
        )
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
        } | _where_asked(body, answer)


def usage_of(answer: Answer) -> dict[str, Any]:
    """The token usage of an answer, as responses have it."""
    return {
        "input_tokens": answer.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.num_new_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.num_thinking_tokens},
        "total_tokens": answer.num_prompt_tokens + answer.num_new_tokens,
    }


def _where_asked(body: ResponseBody, answer: Answer | None) -> dict[str, Any]:
    """Fields that only some requests ask for.

    With `truncation: auto`, how many messages were left out of the conversation: a field of our own. And the
    conversation that the response is created in.
    """
    found: dict[str, Any] = {}
    if answer is not None and body.truncation == "auto":
        found["num_dropped_messages"] = answer.num_dropped
    if body.conversation_id is not None:
        found["conversation"] = {"id": body.conversation_id}
    return found


def _format(body: ResponseBody) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    return {"type": "text"} if wanted is None else wanted.model_dump(mode="json", by_alias=True, exclude_none=True)


def _choice(body: ResponseBody) -> Any:
    choice = body.tool_choice or "auto"
    return choice.model_dump(mode="json") if isinstance(choice, FunctionChoice | AllowedTools) else choice
