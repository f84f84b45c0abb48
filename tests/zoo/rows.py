"""The seven kinds of rows that every model meets, and what the marks of any of them must be, read off the template.

The expectation is the template's own, rendered by transformers alone: what is learned of an answer follows the exact
prompt that inference would see.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from transformers import PreTrainedTokenizerFast

from luthier.core.dataset import TokenisedExample
from luthier.core.workflows.trial_rows import TRIAL_ROWS

_DAY: Final = re.compile(r"\d{1,2}[A-Z][a-z]{2,8}\d{4}|\d{4}-\d{2}-\d{2}|[A-Z][a-z]{2,8}\d{1,2},\d{4}")

ROWS: Final[dict[str, dict[str, Any]]] = {kind.replace(" ", "_"): row for kind, row in TRIAL_ROWS.items()}
"""One row of each kind, as OpenAI's format writes it, by the name of its stage."""


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
        prompts = [_bare(prompt) for prompt in _prompts(row, number, tokenizer)]
        before = _bare(_text(tokenizer, example.input_ids[:start]))
        if not any(before.endswith(prompt) or _is_empty_thought(before, prompt) for prompt in prompts):
            return f"turn {number + 1}: learned behind {before[-80:]!r}, asked behind {prompts[0][-80:]!r}"
    return None


def is_said(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template writes all that the row holds: its system turn, its tools with call and result, its thought.

    Of two thoughts the last one; an earlier one may be left out, as inference would.
    """
    last = row["messages"][-1]
    parts = [str(message["content"]) for message in row["messages"] if message["role"] in ("system", "tool")]
    parts += [last["reasoning_content"]] if "reasoning_content" in last else []
    parts += ["light"] if "<think>" in str(last["content"]) else []
    parts += ["ebony", "price", "The price of a wood"] if "tools" in row else []
    try:
        text = _bare(_render(row["messages"], row.get("tools"), tokenizer, is_prompt=False))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError):
        return False
    return all(_bare(part) in text for part in parts)


def closes_thought(row: dict[str, Any], options: dict[str, bool], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the prompt of the last answer is the one with these options of the template and a closed thought behind.

    Then no thought can follow it, whatever the template writes of an answer that is there already.
    """
    before = row["messages"][:-1]
    asked = _bare(before[-1]["content"])
    tails = [
        _bare(_render(before, row.get("tools"), tokenizer, is_prompt=True, **given)).rpartition(asked)[2]
        for given in ({}, options)
    ]
    return tails[0] != tails[1] and tails[0].startswith(tails[1])


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


def _prompts(row: dict[str, Any], number: int, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The prompt of a turn: earlier thoughts in a field of their own, in tags, and as a part of the content."""
    before = row["messages"][:number]
    forms: list[list[dict[str, Any]]] = [before, [], []]
    for message in before:
        thought, rest = message.get("reasoning_content"), message.get("content")
        same = {name: value for name, value in message.items() if name != "reasoning_content"}
        parts = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": rest}]
        forms[1].append(same | {"content": f"<think>\n{thought}\n</think>\n\n{rest}" if thought else rest})
        forms[2].append(same | {"content": parts if thought else rest})
    found = [_render(before, row.get("tools"), tokenizer, is_prompt=True)]
    for form in forms[1:]:
        with contextlib.suppress(jinja2.TemplateError, TypeError, ValueError):  # it reads no such form
            found.append(_render(form, row.get("tools"), tokenizer, is_prompt=True))
    return found


def _render(
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    is_prompt: bool,
    **options: bool,
) -> str:
    """The template's text, by transformers alone."""
    given = json.loads(json.dumps(messages))
    for message in given:
        message["content"] = message.get("content") or ""
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    text = tokenizer.apply_chat_template(given, tools=tools, tokenize=False, add_generation_prompt=is_prompt, **options)
    return str(text)


def _text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _bare(text: str) -> str:
    """Without white space, which SentencePiece moves, and without the day, of which templates get one for good."""
    return _DAY.sub("DAY", "".join(text.split()))
