"""The seven kinds of rows that every model meets, and what the marks of any of them must be, read off the template.

The expectation is the template's own, rendered by transformers alone: what is learned of an answer follows the exact
prompt that inference would see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerFast

from luthier.core.dataset import TokenisedExample

_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of a wood.",
        "parameters": {
            "type": "object",
            "properties": {"wood": {"type": "string", "description": "Its name."}},
            "required": ["wood"],
        },
    },
}
_CALL: Final[dict[str, Any]] = {
    "id": "callAB123",
    "type": "function",
    "function": {"name": "price", "arguments": json.dumps({"wood": "ebony"})},
}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


_DAY: Final = re.compile(r"\d{1,2}[A-Z][a-z]{2,8}\d{4}|\d{4}-\d{2}-\d{2}|[A-Z][a-z]{2,8}\d{1,2},\d{4}")

ROWS: Final[dict[str, dict[str, Any]]] = {
    "one_turn": {"messages": [_user("Which wood is the front of?"), _answer("Spruce.")]},
    "two_turns": {
        "messages": [
            _user("Which wood is the front of?"), _answer("Spruce."), _user("And the back?"), _answer("Maple."),
        ]
    },
    "system": {
        "messages": [{"role": "system", "content": "Answer in one word."}, _user("The front?"), _answer("Spruce.")]
    },
    "tools": {
        "messages": [
            _user("What does ebony cost?"),
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "callAB123", "name": "price", "content": "12"},
            _answer("It costs 12."),
        ],
        "tools": [_TOOL],
    },
    "reasoning_content": {
        "messages": [_user("The front?"), _answer("Spruce.", reasoning_content="It must be light.")]
    },
    "think_text": {"messages": [_user("The front?"), _answer("<think>\nIt must be light.\n</think>\n\nSpruce.")]},
    "two_turns_thinking": {
        "messages": [
            _user("The front?"), _answer("Spruce.", reasoning_content="It must be light."),
            _user("And the back?"), _answer("Maple.", reasoning_content="It must reflect."),
        ]
    },
}  # fmt: skip
"""One row of each kind, as OpenAI's format writes it."""


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def wrong_marks(
    row: dict[str, Any], examples: Sequence[TokenisedExample], tokenizer: PreTrainedTokenizerFast, stop_ids: set[int]
) -> str | None:
    """Why the marks of a row's examples are wrong, or None. stop_ids: what ends a generation.

    Each answer of the row must be learned once, whole, with an end that stops a generation, and follow the prompt that
    transformers renders of the turns before it; between the two only marks of an empty thought may lie.
    """
    answers = [number for number, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    spans = [(example, *span) for example in examples for span in _spans(example)]
    if len(spans) != len(answers):
        return f"{len(spans)} learned stretches of {len(answers)} answers"
    for number, (example, start, end) in zip(answers, spans, strict=True):
        message = row["messages"][number]
        learned = _text(tokenizer, example.input_ids[start:end])
        for part in (message.get("content"), message.get("reasoning_content")):
            if part and not all(_bare(piece) in _bare(learned) for piece in _pieces(part)):
                return f"turn {number + 1}: {part!r} is not all learned: {learned!r}"
        if not set(example.input_ids[start:end]) & stop_ids:
            return f"turn {number + 1}: nothing that is learned stops a generation: {learned!r}"
        prompt = _bare(_prompt(row, number, tokenizer))
        before = _bare(_text(tokenizer, example.input_ids[:start]))
        if not before.endswith(prompt) and not _is_empty_thought(before, prompt):
            return f"turn {number + 1}: learned behind {before[-80:]!r}, asked behind {prompt[-80:]!r}"
    return None


def _spans(example: TokenisedExample) -> list[tuple[int, int]]:
    mask = [0, *example.loss_mask, 0]
    starts = [place for place in range(len(mask) - 1) if not mask[place] and mask[place + 1]]
    ends = [place for place in range(len(mask) - 1) if mask[place] and not mask[place + 1]]
    return list(zip(starts, ends, strict=True))


def _pieces(text: str) -> list[str]:
    return [part for part in text.replace("<think>", "\n").replace("</think>", "\n").split("\n") if part.strip()]


def _is_empty_thought(before: str, prompt: str) -> bool:
    """Whether what lies between prompt and learned text holds no word but names of channels and thoughts."""
    if prompt not in before:
        return False
    between = before[before.rindex(prompt) + len(prompt) :]
    return len(between) < 60 and not any(word in between for word in ("light", "reflect", "Spruce", "Maple"))


def _prompt(row: dict[str, Any], number: int, tokenizer: PreTrainedTokenizerFast) -> str:
    messages = json.loads(json.dumps(row["messages"][:number]))
    for message in messages:
        message["content"] = message.get("content") or ""
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return str(
        tokenizer.apply_chat_template(messages, tools=row.get("tools"), tokenize=False, add_generation_prompt=True)
    )


def _text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _bare(text: str) -> str:
    """Without white space, which SentencePiece moves, and without the day, of which templates get one for good."""
    return _DAY.sub("DAY", "".join(text.split()))
