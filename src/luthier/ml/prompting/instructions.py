"""An instruction for rows that hold none: derived from what the training rows' answers are.

A base model that is only given a bare input (a review, a question) cannot know that one of five labels is expected.
Compared with that, every tuned model looks good. So the base is also evaluated with a plain instruction that says what
the training rows show: the labels, a number, words of the text, or that answers look like those of the examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import TemplateError
from luthier.ml.baselines.copying import commonest_fields
from luthier.ml.baselines.json_fields import JsonStyle, Raw, fields_of, written
from luthier.ml.baselines.numbers import are_numbers
from luthier.ml.baselines.rows import TaskRow, same_label, spellings, task_rows
from luthier.ml.evaluation.metrics.classification import answer_labels, label
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

Task = Literal["labels", "numbers", "extraction", "examples"]
_LOOKED_AT: Final = 1_000
"""Training rows that decide what they contain."""
_SHARED_WORDS: Final = 3
"""Words at the start or the end of most prompts that count as an instruction."""
_COPIED_SHARE: Final = 0.8
_LONGEST_COPY: Final = 200
"""Characters of an answer that is taken for words of its prompt."""
_LONGEST_FORM: Final = 600
"""Characters of a JSON object that an instruction shows."""
_OPENING_ROLES: Final = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Instruction:
    """A derived instruction.

    Attributes:
        task: what the answers are; `examples`: a task that only examples can describe.
        variants: ways to say it, the plainest first.
    """

    task: Task
    variants: tuple[str, ...]

    @property
    def text(self) -> str:
        """The plainest way to say it."""
        return self.variants[0]

    @property
    def needs_examples(self) -> bool:
        """Whether it means nothing without examples in the prompt."""
        return self.task == "examples"


def derive_instruction(train: Sequence[Example]) -> Instruction | None:
    """The instruction that the training rows lack; None where they hold one, or no prompts with text answers.

    Rows whose answers are labels hold one where most of them name two of the labels; other rows where most have a
    system prompt, or begin or end with the same three words.
    """
    rows = task_rows(train)[:_LOOKED_AT]
    if not rows:
        return None
    # From the training rows alone: held-out rows must not decide how the baseline is asked.
    found = instruction_for(rows)
    if found.task == "labels":
        return None if _name_labels(train[:_LOOKED_AT], rows) else found
    return None if _have_system_prompts(train[:_LOOKED_AT]) or _share_words(rows) else found


def instruction_for(rows: Sequence[TaskRow]) -> Instruction:
    """What can be said of the answers of these rows, whether the rows say it themselves or not."""
    answers = [row.answer for row in rows]
    if labels := _labels(answers):
        shown = ", ".join(f'"{one}"' if "," in one else one for one in labels)
        return Instruction(
            "labels",
            (
                f"Answer with one of: {shown}. Write nothing else.",
                f"Classify the text. Possible labels: {shown}. Reply with the label only.",
                f"Which of these fits best: {shown}? Reply with that and nothing else.",
            ),
        )
    if are_numbers(answers):
        # A number of the commonest length shows decimals and separators as most answers have them.
        like = Counter(map(len, answers)).most_common(1)[0][0]
        sample = next(one for one in answers if len(one) == like).strip()
        return Instruction(
            "numbers",
            (
                f"Answer with a number alone, written like {sample}.",
                f"Work out the number that is asked for. Reply with the number only, in the form {sample}.",
            ),
        )
    if form := _json_form(rows):
        return Instruction(
            "extraction",
            (
                f"Answer with a JSON object of this form, and nothing else: {form}",
                f"Read the text and fill in this JSON object. Reply with the object only: {form}",
            ),
        )
    if _are_copied(rows):
        return Instruction(
            "extraction",
            (
                "Answer with words copied from the text, and nothing else.",
                "Find the part of the text that answers the request. Reply with that part only, word for word.",
            ),
        )
    return Instruction(
        "examples",
        (
            "Answer as in these examples.",
            "Reply in exactly the form of the earlier answers, with the answer alone.",
        ),
    )


def with_instruction(example: Example, instruction: str, *, as_system: bool) -> Example:
    """The example with an instruction before its first turn, after its own system prompt.

    Args:
        example: a row with a conversation; another one is returned unchanged.
        instruction: its text; empty changes nothing.
        as_system: as a system turn; else at the start of the first user turn, for templates without system turns.
    """
    if example.conversation is None or not instruction:
        return example
    changed = {"conversation": _instructed(example.conversation, instruction, as_system)}
    if example.rejected is not None:
        changed["rejected"] = _instructed(example.rejected, instruction, as_system)
    return example.model_copy(update=changed)


def takes_system_turns(template: ChatTemplate) -> bool:
    """Whether a template writes a system turn, rather than refuse or drop it."""
    probe = "Name the wood."
    turns = (Message(role="system", content=probe), Message(role="user", content="Which?"))
    try:
        return probe in template.render(Conversation(messages=turns), add_generation_prompt=True)
    except TemplateError:
        return False


def _instructed(conversation: Conversation, instruction: str, as_system: bool) -> Conversation:
    messages = list(conversation.messages)
    first = messages[0] if messages else None
    if first is not None and (first.role in _OPENING_ROLES or (not as_system and first.role == "user")):
        both = (
            (first.content or "", instruction) if first.role in _OPENING_ROLES else (instruction, first.content or "")
        )
        messages[0] = first.model_copy(update={"content": "\n\n".join(filter(None, both))})
    else:
        messages.insert(0, Message(role="system", content=instruction))
    return conversation.model_copy(update={"messages": tuple(messages)})


def _labels(answers: Sequence[str]) -> tuple[str, ...]:
    """The labels that answers are, each in its commonest spelling; empty where they are none."""
    found = answer_labels(answers)
    forms = spellings([one.strip() for one in answers])
    return tuple(forms.get(same_label(one), one) for one in found)


def _name_labels(train: Sequence[Example], rows: Sequence[TaskRow]) -> bool:
    labels = [label(one) for one in _labels([row.answer for row in rows])]
    prompts = [
        "\n".join(message.content or "" for message in example.prompt.messages).casefold()
        for example in train
        if example.prompt is not None and example.reference is not None
    ]
    named = sum(sum(one in prompt for one in labels) >= 2 for prompt in prompts)
    # Two labels at least: a single one often occurs in a prompt by chance, such as "good" in a review.
    return named >= len(prompts) / 2


def _have_system_prompts(train: Sequence[Example]) -> bool:
    prompts = [example.prompt.messages for example in train if example.prompt is not None]
    return sum(bool(turns) and turns[0].role in _OPENING_ROLES for turns in prompts) >= len(prompts) / 2


def _share_words(rows: Sequence[TaskRow]) -> bool:
    words = [row.prompt.split() for row in rows]
    for part in (slice(None, _SHARED_WORDS), slice(-_SHARED_WORDS, None)):
        # Prompts of just these words are the same prompt, which is no instruction in front of different inputs.
        ends = Counter(tuple(one[part]) for one in words if len(one) > _SHARED_WORDS)
        if ends and max(ends.values()) >= max(2, len(rows) / 2):
            return True
    return False


def _json_form(rows: Sequence[TaskRow]) -> str:
    """The JSON object that answers are, with its keys alone; empty where they are none, or where it is long."""
    paths = commonest_fields(rows)
    fields = (fields_of(row.answer) for row in rows)
    like = next((one for one in fields if one and tuple(one) == paths), {})
    form = written({path: _blank(value) for path, value in like.items()}, JsonStyle()) if like else ""
    return form if len(form) <= _LONGEST_FORM else ""


def _blank(value: object) -> object:
    """What says of which type a value is."""
    if isinstance(value, Raw):
        return Raw("0")
    return "..." if isinstance(value, str) else [] if isinstance(value, list) else value


def _are_copied(rows: Sequence[TaskRow]) -> bool:
    copied = sum(
        0 < len(row.answer) <= _LONGEST_COPY and same_label(row.answer) in same_label(row.prompt) for row in rows
    )
    return copied >= max(2, _COPIED_SHARE * len(rows))
