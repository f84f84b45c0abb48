"""Output items of a response as they are written, and the events that show them to a client.

    reasoning        output_item.added, content_part.added, reasoning_text.delta ..., reasoning_text.done,
                     content_part.done, output_item.done; as a summary: reasoning_summary_part.added and so on
    message          output_item.added, content_part.added, output_text.delta ..., output_text.done, content_part.done,
                     output_item.done
    function_call    output_item.added, function_call_arguments.delta ..., function_call_arguments.done,
                     output_item.done

Source: OpenAI's API reference, "Responses streaming events".
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from luthier.core.stream import CallPiece, Ended, Piece, TokenLikelihood, WrittenToken
from luthier.features.serving.api.block_order import BlockOrder, Part

Event = dict[str, Any]
_Kind = Literal["reasoning", "message", "function_call"]
_PREFIXES: Final[dict[_Kind, str]] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class OutputItems:
    """The items of one answer, in the order in which they are written.

    Args:
        summarises: Whether reasoning is returned as the summary of its item, rather than as its content.
        returns_logprobs: Whether text comes with the likelihoods of its tokens.

    Attributes:
        items: Those that are complete.
    """

    def __init__(self, *, summarises: bool, returns_logprobs: bool) -> None:
        self._summarises, self._returns_logprobs = summarises, returns_logprobs
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
        item_id = f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"
        self._open, self._texts, self._tokens = {"id": item_id, "type": kind, "status": "in_progress", **fields}, [], []
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
