"""Rows of many shapes, and what their tokens and marks must be by transformers' own rendering alone.

The prompt of an answer is `apply_chat_template` of the turns before it with the generation prompt; what is learned is
what the template writes after it once the answer is there, as the tokenizer encodes both.
"""

from __future__ import annotations

import json
from typing import Any, Final

import jinja2
from tests.ml.data.tokenise.other_templates import given_to
from tests.ml.data.tokenise.template_rows import CALL, ROWS, TOOL

from luthier.core.conversation import Conversation, Message
from luthier.ml.data.tokenise.loss_mask import Unit
from luthier.ml.data.tokenise.template import decode
from luthier.ml.inference.models.templates.chat_template import ChatTemplate


def _talk(*turns: tuple[Any, str], **more: Any) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns), **more)


_SECOND_CALL: Final = CALL | {"id": "abcdefgh2", "function": {"name": "price", "arguments": '{"wood": "Ahorn, süß"}'}}
MORE_ROWS: Final = {
    "spaces": _talk(("user", "Which wood?"), ("assistant", "  Spruce wood.  \n")),
    "same words": _talk(("user", "Spruce wood."), ("assistant", "Spruce wood.")),
    "two answers": _talk(("user", "Which wood?"), ("assistant", "Spruce."), ("assistant", "Or cedar.")),
    "two questions": _talk(("user", "Which wood?"), ("user", "And why?"), ("assistant", "Spruce, it is stiff.")),
    "developer": _talk(("developer", "Be brief."), ("user", "Which wood?"), ("assistant", "Spruce.")),
    "late system": _talk(
        ("user", "Which wood?"),
        ("assistant", "Spruce."),
        ("system", "Be rude."),
        ("user", "Why?"),
        ("assistant", "Bah."),
    ),
    "empty answer": _talk(("user", "Which wood?"), ("assistant", "")),
    "marks": _talk(("user", "Is it Answer: or model?"), ("assistant", "Answer: user assistant model.")),
    "other letters": _talk(("user", "Wie heißt 日本語?"), ("assistant", "Naïve 🎻 señor.")),
    "unlearned": Conversation(
        messages=(
            Message(role="user", content="Which wood?"),
            Message(role="assistant", content="Oak.", weight=0),
            Message(role="user", content="Sure?"),
            Message(role="assistant", content="Spruce."),
        )
    ),
    "ends with a question": _talk(("user", "Which wood?"), ("assistant", "Spruce."), ("user", "Why?")),
    "begins with an answer": _talk(("assistant", "Welcome."), ("user", "Which wood?"), ("assistant", "Spruce.")),
    "two calls": Conversation(
        messages=(
            Message(role="user", content="How much are both?"),
            Message(role="assistant", tool_calls=(CALL, _SECOND_CALL)),
            Message(role="tool", content="12 Euro", tool_call_id="abcdefgh1"),
            Message(role="tool", content="9 Euro", tool_call_id="abcdefgh2"),
            Message(role="assistant", content="12 and 9 Euro."),
        ),
        tools=(TOOL,),
    ),
}
ALL_ROWS: Final = ROWS | MORE_ROWS


def _plain(name: str, row: Conversation, num: int, template: ChatTemplate, *, is_prompt: bool) -> str | None:
    """What transformers renders of the first turns by itself; None where the template refuses them."""
    tokenizer = template.tokenizer
    messages = [given_to(name, message) for message in row.messages[:num]]
    tools = list(row.tools) or None
    text = tokenizer.chat_template.replace("strftime_now('%d %B %Y')", "'01 January 2025'")
    try:
        return str(
            tokenizer.apply_chat_template(
                json.loads(json.dumps(messages)), tools=tools, chat_template=text, tokenize=False,
                add_generation_prompt=is_prompt,
            )
        )  # fmt: skip
    except (jinja2.TemplateError, TypeError):
        return None


def spans_of(unit: Unit) -> list[tuple[list[int], int, int]]:
    """ids, start and end of every learned stretch."""
    found = []
    for row in unit:
        end = 0
        while (start := row.loss_mask.find(1, end)) >= 0:
            end = row.loss_mask.find(0, start)
            end = row.num_tokens if end < 0 else end
            found.append((list(row.input_ids), start, end))
    return found


def check(name: str, row: Conversation, unit: Unit, template: ChatTemplate) -> None:
    learned = [number for number, message in enumerate(row.messages) if message.is_learned]
    spans = spans_of(unit)
    if row is MORE_ROWS["two answers"] and len(spans) == 1:  # nothing stands between the two
        ids, start, _ = spans[0]
        second = start + ids[start:].index(template.end_of_turn_ids[0]) + 1
        spans = [(ids, start, second), (ids, second, len(ids))]
    assert len(spans) == len(learned)
    for number, (ids, start, end) in zip(learned, spans, strict=True):
        prompt = _plain(name, row, number, template, is_prompt=True)
        through = _plain(name, row, number + 1, template, is_prompt=False)
        assert prompt is not None
        assert through is not None
        before, whole = (_ids(text, template) for text in (prompt, through))
        assert ids[: len(before)] == before
        between, written = (decode(template, ids[a:b]) for a, b in ((len(before), start), (start, end)))
        assert set(ids[start:end]) & set(template.end_of_turn_ids)
        if not through.startswith(prompt):
            assert _solid(between) in ("", "</think>")
            assert _solid((row.messages[number].content or "").rpartition("</think>")[2], template) in _solid(written)
            continue
        assert start == len(before)
        if whole[: len(before)] == before:  # no token reaches over the border
            answer = whole[len(before) :]
            assert ids[start:end][: len(answer)] == answer
            assert decode(template, ids[start + len(answer) : end]) in ("", *template.end_texts)
        else:
            assert _solid(written) in {
                _solid(through[len(prompt) :] + ending, template) for ending in ("", *template.end_texts)
            }


def _ids(text: str, template: ChatTemplate) -> list[int]:
    return list(template.tokenizer(text, add_special_tokens=False)["input_ids"])


def _solid(text: str, template: ChatTemplate | None = None) -> str:
    """Without white space, which tokenizers move; by way of a tokenizer that folds letters."""
    return "".join((text if template is None else decode(template, _ids(text, template))).split())
