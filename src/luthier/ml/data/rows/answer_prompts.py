"""Answers to prompts, written by a teacher model: rows that a student then learns like any others (distillation).

row of any shape -> its prompt -> teacher -> answer, kept or refused with a reason

`leans_on_passage` finds questions and answers that cannot be understood without the passage they were written from.

Source: Kim & Rush, 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, Row
from luthier.core.defaults import TEACHER_TOKENS
from luthier.core.errors import OverlongError
from luthier.core.ids import sha256_document
from luthier.core.ports import Generation, Progress, Prompt
from luthier.ml.data.files.bad_field import ABSENT, BadFieldError
from luthier.ml.data.provenance import PROVENANCE
from luthier.ml.data.rows.chat_rows import (
    alpaca_conversation,
    chat_conversation,
    prompt_completion_conversation,
    tool_call,
)
from luthier.ml.data.rows.shapes import renamed
from luthier.ml.data.rows.sharegpt_rows import sharegpt_conversation
from luthier.ml.inference.engine_wrappers import CachedEngine

ReasonCode = Literal["too_long", "cut_off", "empty", "bad_call"]
BATCH_PROMPTS: Final = 32
# Rows are read by the same code as those with answers: this takes the place of the teacher's.
_ANSWER: Final = "answer"
_ANSWERING: Final = ("assistant", "gpt", "chatgpt", "bot", "model")


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How answers are written.

    Attributes:
        max_new_tokens: most tokens of an answer, its thought included.
        temperature: 0 is greedy; above it the draws depend on seed and prompt alone.
        seed: of the draws.
        keeps_thoughts: rows get the teacher's thought as `reasoning_content`; else they get the answer alone.
    """

    max_new_tokens: int = TEACHER_TOKENS
    temperature: float = 0.0
    seed: int = 0
    keeps_thoughts: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A row to be answered.

    Attributes:
        id: `rows.jsonl:17`.
        prompt: the turns up to the answer; those of the assistant have weight 0.
        provenance: the row's own record of where it comes from; empty where it has none.
    """

    id: str
    prompt: Conversation
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """One question and its answer, or why that is refused.

    Attributes:
        question: the row that was answered.
        text: the answer, also where it is refused.
        reason: why it is refused; None where the answer is kept.
        explanation: the reason for people.
        thought: the teacher's thought before the answer; None where it wrote none.
        tool_calls: the teacher's calls of tools, in OpenAI's format.
    """

    question: Question
    text: str = ""
    reason: ReasonCode | None = None
    explanation: str = ""
    thought: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


def question_of(row: Row, mapping: Mapping[str, str]) -> Question:
    """The prompt of a row in any shape that has one; an answer that is at its end is left out.

    Earlier turns of the assistant are context.

    Args:
        row: the raw row.
        mapping: field of the shape to field of the file.

    Raises:
        BadFieldError: the row has no prompt, or a wrong value in it.
    """
    fields = renamed(row.fields, mapping) if mapping else dict(row.fields)
    found = _conversation(fields)
    # The last message is the placeholder that _conversation has put where the answer goes.
    last = len(found.messages) - 1
    context = tuple(
        message.model_copy(update={"weight": 0}) if message.role == "assistant" else message
        for message in found.messages[:last]
    )
    provenance = row.fields.get(PROVENANCE)
    return Question(
        row.id,
        Conversation(messages=context, tools=found.tools),
        provenance if isinstance(provenance, dict) else {},
    )


def answers(
    questions: Iterable[Question],
    teacher: CachedEngine,
    options: AnswerOptions,
    progress: Progress,
    *,
    batch_done: Callable[[int], None] = lambda _: None,
    batch_prompts: int = BATCH_PROMPTS,
) -> Iterator[Answered]:
    """Answer each question, in order, streamed in batches.

    A prompt that is too long for the teacher is refused and raises no OverlongError.

    Args:
        questions: read as they are needed.
        teacher: the engine that answers.
        options: how answers are written.
        progress: shows the generation.
        batch_done: called after each batch with the number of its questions.
        batch_prompts: questions of a batch.
    """
    stream = iter(questions)
    while batch := list(islice(stream, batch_prompts)):
        prompts = [_prompt(question, options) for question in batch]
        for question, reply in zip(batch, teacher.generate_each(prompts, progress), strict=True):
            if isinstance(reply, OverlongError):
                words = f"{reply.came}; expected {reply.expected}"
                yield Answered(question, reason="too_long", explanation=words)
            elif reply.finish_reason == "length":
                within = "within its thought" if reply.ends_in_thought else "before its end"
                words = f"cut off after {reply.num_new_tokens} tokens, {within}"
                # A student that learns an answer without its end learns not to stop.
                yield Answered(question, reply.text, "cut_off", words)
            elif not reply.text.strip() and not reply.tool_calls:
                yield Answered(question, reply.text, "empty", "the teacher wrote nothing")
            else:
                yield _answered(question, reply)
        batch_done(len(batch))


def _answered(question: Question, reply: Generation) -> Answered:
    """The answer with its calls; refused where a row cannot have one of them."""
    try:
        calls = tuple(tool_call(f"tool_calls[{n}]", call) for n, call in enumerate(reply.tool_calls))
    except BadFieldError as error:
        words = f"the teacher called a tool, and {error.field} {error.reason}"
        return Answered(question, reply.text, "bad_call", words)
    return Answered(question, reply.text, thought=reply.reasoning, tool_calls=calls)


def answered_row(answered: Answered, options: AnswerOptions, *, teacher: str) -> dict[str, Any]:
    """A chat row that ends with the teacher's answer, the only turn that is learned."""
    turn: dict[str, Any] = {"role": "assistant", "content": _writable(answered.text)}
    if answered.tool_calls:
        # A turn of calls alone has no content.
        turn |= {"content": turn["content"] if answered.text.strip() else None, "tool_calls": list(answered.tool_calls)}
    if answered.thought is not None and options.keeps_thoughts:
        turn["reasoning_content"] = _writable(answered.thought)
    return _with_prompt(answered, turn) | {PROVENANCE: _provenance(answered, options, teacher)}


def gold_row(example: Example) -> dict[str, Any]:
    """A row as `answered_row` writes it, with the answer that is in the data: the only turn that is learned.

    Raises:
        BadFieldError: an example without a prompt and an answer as text.
    """
    prompt, conversation = example.prompt, example.conversation
    if prompt is None or conversation is None or conversation.last_answer is None or not example.reference:
        raise BadFieldError("completion", ABSENT, "is not a text answer to a prompt")
    earlier = [_turn(m.model_copy(update={"weight": 0}) if m.role == "assistant" else m) for m in prompt.messages]
    answer = _turn(conversation.messages[conversation.last_answer].model_copy(update={"weight": None}))
    return {"messages": [*earlier, answer]} | ({"tools": list(prompt.tools)} if prompt.tools else {})


def refused_row(answered: Answered, options: AnswerOptions, *, teacher: str) -> dict[str, Any]:
    """The row of a refused answer, with its reason and all that was written."""
    origin = {"source_row": answered.question.id, "reason": answered.reason, "explanation": answered.explanation}
    return (
        origin
        | _with_prompt(answered, None)
        | {"reply": _writable(answered.text), PROVENANCE: _provenance(answered, options, teacher)}
    )


def _conversation(fields: dict[str, Any]) -> Conversation:
    """The row with a placeholder in place of its answer."""
    if fields.get("messages") is not None:
        turns = _turns(fields, "messages", "role")
        return chat_conversation(fields | {"messages": [*turns, {"role": "assistant", "content": _ANSWER}]})
    if fields.get("conversations") is not None:
        turns = _turns(fields, "conversations", "from", "role")
        return sharegpt_conversation(fields | {"conversations": [*turns, {"from": "gpt", "value": _ANSWER}]})
    if fields.get("prompt") is not None:
        kept = {name: value for name, value in fields.items() if name != "label"}
        return prompt_completion_conversation(kept | {"completion": _ANSWER})
    if fields.get("instruction") is not None:
        return alpaca_conversation(fields | {"output": _ANSWER})
    raise BadFieldError("prompt", ABSENT, "is absent, and so are messages, conversations and instruction")


def _turns(fields: Mapping[str, Any], name: str, *speaker: str) -> list[Any]:
    """The turns up to the last one that is not an answer. speaker: keys of a turn for who speaks; the first counts."""
    turns = fields[name]
    if not isinstance(turns, list):
        raise BadFieldError(name, turns, "is not a list of turns")
    end = len(turns)
    while end and isinstance(turn := turns[end - 1], dict):
        if next((turn[key] for key in speaker if key in turn), None) not in _ANSWERING:
            break
        end -= 1
    if not end:
        raise BadFieldError(name, ABSENT, "has no turn to answer")
    return turns[:end]


def _prompt(question: Question, options: AnswerOptions) -> Prompt:
    # from the prompt and not from its line, so that rows put before it change neither the draws nor the cache
    seed = int(sha256_document([options.seed, question.prompt.model_dump(mode="json")])[:7], 16)
    return Prompt(
        conversation=question.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=seed if options.temperature else 0,
    )


def _with_prompt(answered: Answered, answer: dict[str, Any] | None) -> dict[str, Any]:
    prompt = answered.question.prompt
    turns = [*map(_turn, prompt.messages), *([answer] if answer is not None else [])]
    return {"messages": turns} | ({"tools": list(prompt.tools)} if prompt.tools else {})


def _turn(message: Message) -> dict[str, Any]:
    # Empty tool_calls are left out: a strict reader takes an empty list for a mistake.
    turn = message.model_dump(mode="json", exclude_none=True)
    if not message.tool_calls:
        del turn["tool_calls"]
    return turn


def _provenance(answered: Answered, options: AnswerOptions, teacher: str) -> dict[str, Any]:
    thought = {} if answered.thought is None else {"thought": "kept" if options.keeps_thoughts else "left out"}
    return {
        **answered.question.provenance,
        **thought,
        "synthetic": True,
        "teacher": teacher,
        "kind": "answer",
        "source_row": answered.question.id,
        "temperature": options.temperature,
        "seed": options.seed,
    }


def _writable(text: str) -> str:
    """Text as UTF-8 can hold it: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


_SOURCES: Final = (
    "passage|text|article|document|excerpt|extract|paragraph|section|snippet|context|chapter|page|author|writer|"
    "table|figure|story|report"
)
_QUALIFIERS: Final = "given|above|following|provided|preceding|same|present|whole|entire|short|input|source"
_PATTERN = re.compile(
    rf"\b(?:(?:the|this|that|these|those|your|my)\s+(?:(?:{_QUALIFIERS})\s+)*(?:{_SOURCES})s?\b(?!\s+(?:of|in|on|for|"
    r"called|named|from\s+\d)\b)"
    rf"|(?:given|above|following|provided)\s+(?:{_SOURCES})s?\b"
    r"|(?:mentioned|described|stated|discussed|given|shown|listed|quoted)\s+(?:above|below|here)\b"
    r"|as\s+(?:mentioned|described|stated)\b"
    r"|according\s+to\s+(?:the|this)\s+(?:information|source|description|statement)\b)",
    re.IGNORECASE,
)


def leans_on_passage(text: str) -> str | None:
    """The words that refer to the passage in a question or an answer ("the text"), or None.

    English only. "The text of the treaty" names what it is about, and is no such case.
    """
    found = _PATTERN.search(text)
    return " ".join(found[0].split()) if found else None
