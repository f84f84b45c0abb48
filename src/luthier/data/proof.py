"""Prove where the learned answers stand in the text that a chat template makes of a conversation.

A template is a program that nobody checked. Some strip reasoning from earlier turns, some drop tool calls or tools,
some move the system prompt when a turn is added. A mask that is laid over such a text marks the wrong tokens, and
training goes on as if nothing were wrong. So nothing is assumed here. For each learned turn the conversation is
rendered three times: up to the turn with the generation prompt (what the model sees when it must answer), through the
turn, and whole. Only where each is the beginning of the next, and what lies between the first two holds the answer, is
that stretch taken as learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.data.template import Template

_EXCERPT_CHARACTERS = 50


@dataclass(frozen=True, slots=True)
class ProvedText:
    """A rendered conversation and its learned spans: [start, end) in characters, ascending, never overlapping.

    A span holds all that the template writes for the turn after the generation prompt: the answer, the end-of-turn
    text, and the white space that closes the turn.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def prove(row_id: str, conversation: Conversation, template: Template) -> ProvedText:
    """Render a conversation and prove where its learned turns stand. Raises TemplateError where it cannot be proved."""
    text = template.render(conversation)
    _check_context(row_id, conversation, text, template)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(conversation.messages):
        if message.is_learned:
            turn = _Turn(row_id, index, message, len(conversation.messages))
            start, end = _span(turn, conversation, text, template)
            if spans and start < spans[-1][1]:
                raise turn.error(
                    "the template joins this answer with the one before it",
                    text[max(0, start - _EXCERPT_CHARACTERS) : end],
                    "put a user turn between the two, or join them in the row",
                )
            spans.append((start, end))
    return ProvedText(text, tuple(spans))


@dataclass(frozen=True, slots=True)
class _Turn:
    row_id: str
    index: int
    message: Message
    num_messages: int

    def error(self, what: str, rendered: str, do: str) -> TemplateError:
        if len(rendered) > 4 * _EXCERPT_CHARACTERS:
            rendered = f"{rendered[: 2 * _EXCERPT_CHARACTERS]} ... {rendered[-2 * _EXCERPT_CHARACTERS :]}"
        return TemplateError(
            f"{self.row_id}, turn {self.index + 1} of {self.num_messages} ({self.message.role}): {what}; "
            f"it rendered {rendered!r}",
            expected="a template that writes each turn once, whole, and never changes it when turns are added: "
            "only then can a loss mask be trusted",
            do=do,
        )


def _span(turn: _Turn, conversation: Conversation, text: str, template: Template) -> tuple[int, int]:
    is_last = turn.index == turn.num_messages - 1
    if turn.index == 0 and template.kind == "chat":
        raise turn.error(
            "the conversation begins with an answer, and a chat template has no prompt for that",
            text,
            "put a user turn before it, or set weight 0 on it",
        )
    before = template.render(conversation.up_to(turn.index), add_generation_prompt=True)
    through = text if is_last else template.render(conversation.up_to(turn.index + 1))
    if not text.startswith(through):
        raise turn.error(
            "the template writes this turn differently once other turns follow it (some strip reasoning, trim white "
            "space, or move the system prompt)",
            _difference(through, text),
            "make one row for each answer, or set weight 0 on all assistant turns but the last",
        )
    if not through.startswith(before):
        raise turn.error(
            "what the template writes before the answer is not what the model sees when it must answer (the text up "
            "to the turn with the generation prompt is no beginning of the text through the turn)",
            _difference(before, through),
            "check the template's generation prompt, and whether it adds or moves a system prompt; give the row a "
            "system turn of its own, or use another template (data.template: plain)",
        )
    _check_answer(turn, through[len(before) :], template.end_of_turn)
    return len(before), len(through)


def _check_answer(turn: _Turn, piece: str, end_of_turn: str) -> None:
    """The piece must hold the answer, every tool call, and after them the text that ends the turn."""
    content = (turn.message.content or "").strip()
    if content not in piece:
        raise turn.error(
            "the answer does not stand in what the template wrote for it",
            piece,
            "look at the row with `luthier data preview`; write the answer as the template wants it (some templates "
            "take reasoning apart), or use another template (data.template: plain)",
        )
    for missing in _missing_calls(turn.message, piece):
        raise turn.error(
            f"{missing} of a tool call does not stand in what the template wrote: the template drops tool calls",
            piece,
            "choose a base model whose template supports tools, or write the call into the content",
        )
    if end_of_turn not in piece[piece.index(content) + len(content) :]:
        raise turn.error(
            f"the end-of-turn text {end_of_turn!r} does not follow the answer, so the model would never learn to stop",
            piece,
            "check the template and the tokenizer's end token, or use another template (data.template: plain)",
        )


def _missing_calls(message: Message, text: str) -> Iterator[str]:
    for call in message.tool_calls:
        function = call["function"]
        if function["name"] not in text:
            yield f"the name {function['name']!r}"
        for leaf in _leaves(json.loads(function["arguments"])):
            if not _stands_in(leaf, text):
                yield f"the argument {leaf!r}"


def _leaves(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys included. Numbers are left out: 1.0 may rightly be written 1."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def _stands_in(part: str, text: str) -> bool:
    """Whether `part` stands in `text` as it is or as JSON writes it."""
    forms = (part.strip(), json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    return any(form in text for form in forms)


def _check_context(row_id: str, conversation: Conversation, text: str, template: Template) -> None:
    """Nothing that the row holds as context may be lost: an answer to an unseen request teaches invention."""
    num_messages = len(conversation.messages)
    for index, message in enumerate(conversation.messages):
        turn = _Turn(row_id, index, message, num_messages)
        for missing in _missing_calls(message, text):
            raise turn.error(
                f"{missing} of a tool call does not stand in the text: the template drops tool calls",
                text,
                "choose a base model whose template supports tools, or write the call into the content",
            )
        content = (message.content or "").strip()
        # Earlier answers are left to the template: some rightly strip their reasoning, at inference as well.
        if message.role == "assistant" or content in text or (message.role == "tool" and _stands_in(content, text)):
            continue
        raise turn.error(
            "the template drops or changes this turn",
            text,
            "choose a base model whose template supports this role, or move the text into a user turn",
        )
    if conversation.tools:
        _check_tools(row_id, conversation, text, template)


def _check_tools(row_id: str, conversation: Conversation, text: str, template: Template) -> None:
    without = template.render(Conversation(messages=conversation.messages))
    names = [str(tool["function"]["name"]) for tool in conversation.tools]
    missing = [name for name in names if name not in text]
    if without != text and not missing:
        return
    raise TemplateError(
        f"{row_id}: the row has {len(names)} tools ({', '.join(names[:5])}) and the template does not write "
        f"{', '.join(missing[:5]) or 'them'}; it rendered {text[: 2 * _EXCERPT_CHARACTERS]!r}...",
        expected="a template that shows the model the tools it may call: otherwise it would learn to call tools that "
        "it was never told of",
        do="choose a base model whose template supports tools, or describe the tools in a system turn and remove "
        "`tools` from the rows",
    )


def _difference(one: str, other: str) -> str:
    """The place where two texts part, as each goes on."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, at - _EXCERPT_CHARACTERS // 2)
    return f"{one[start : at + _EXCERPT_CHARACTERS]} <<< against >>> {other[start : at + _EXCERPT_CHARACTERS]}"
