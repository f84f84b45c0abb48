#!/usr/bin/env python3
"""Tokens computed of two-turn rows under a template that drops earlier thoughts, against one that keeps all turns.

    python benchmarks/cut_rows.py FOLDER     FOLDER holds chat templates, Qwen-Qwen3-0.6B.jinja among them

Each row becomes a sequence an answer; `shared` computes what both begin with once; `joined` is what
`data.reset_template: training` makes of it, one sequence. The template that keeps its turns is
plain ChatML with the same words in it, thoughts included. Made-up rows of random words, on the tiny model's tokenizer,
64 rows of each kind, in steps of 16 whose rows lie end to end.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.ml.data.tokenise.loss_mask import Learning, tokenise_sides
from luthier.ml.data.tokenise.shared_prefix import unit_prefixes
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model

WORDS = (
    "spruce", "maple", "light", "stiff", "front", "back", "glue", "hide", "string", "gut", "steel", "sound", "warm",
    "bright", "tone", "joint", "repair", "price",
)  # fmt: skip
# words of: system, question, thought, first answer, second question, second answer
KINDS = {
    "thoughts of 200 words, answers of 60": (0, 20, 200, 60, 20, 60),
    "thoughts of 400 words, answers of 80": (0, 40, 400, 80, 40, 80),
    "a passage of 400 words, answers of 60": (0, 400, 0, 60, 20, 60),
    "a passage of 800 words, answers of 80": (0, 800, 0, 80, 20, 80),
    "a system prompt of 300 words, answers of 40": (300, 20, 0, 40, 20, 40),
    "a first answer of 10 words, a second of 200": (0, 30, 0, 10, 20, 200),
    "questions of 20 words, answers of 60": (0, 20, 0, 60, 20, 60),
}


def rows(sizes: Sequence[int], num: int = 64) -> list[Example]:
    """Made-up conversations of two turns."""
    draw, made = random.Random(0), []
    system, first, thought, answer, second, last = sizes

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    for number in range(num):
        messages = [Message(role="system", content=words(system))] if system else []
        for asked, answered in ((first, answer), (second, last)):
            thinks = words(thought) if thought else None
            messages.append(Message(role="user", content=words(asked)))
            messages.append(Message(role="assistant", content=words(answered), reasoning=thinks))
        made.append(Example(id=f"rows:{number}", conversation=Conversation(messages=tuple(messages))))
    return made


def as_text(example: Example) -> Example:
    """The row with its thoughts in its answers, for a template that knows of none."""
    assert example.conversation is not None
    messages = [
        message.model_copy(
            update={"content": f"<think>\n{message.reasoning}\n</think>\n\n{message.content}", "reasoning": None}
        )
        if message.reasoning
        else message
        for message in example.conversation.messages
    ]
    return example.model_copy(update={"conversation": Conversation(messages=tuple(messages))})


def computed(units: Sequence[Sequence[TokenisedExample]], *, shares: bool) -> int:
    """Tokens that an epoch computes."""
    own = unit_prefixes(units, are_cut=True)
    whole = [sum(row.num_tokens for row in unit) for unit in units]
    schedule = StepSchedule(
        [max(row.num_tokens for row in unit) for unit in units],
        global_batch_size=16,
        micro_batch_tokens=4096,
        order="by_length",
        seed=0,
        rows_per_unit=[len(unit) for unit in units],
        own=own if shares else None,
        packed=whole,
    )
    total = 0
    for step in range(schedule.num_steps_per_epoch):
        for batch in schedule.step(step):
            total += int(own.computed_tokens[list(batch)].sum()) if shares else sum(whole[index] for index in batch)
    return total


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_tiny_model(Path(folder) / "tiny")
        keeps = ChatTemplate.load(path)
        tokenizer = load_tokenizer(path)
        tokenizer.chat_template = (Path(sys.argv[1]) / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
        rewrites = ChatTemplate(tokenizer, "chat")
    print(
        "| two-turn rows | tokens, all kept | cut | cut, shared | joined | first answers, of what is computed twice |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for kind, sizes in KINDS.items():
        examples = rows(sizes)
        whole = computed([tokenise_sides(as_text(example), keeps) for example in examples], shares=False)
        units = [tokenise_sides(example, rewrites) for example in examples]
        cut, shared = computed(units, shares=False), computed(units, shares=True)
        joined = computed(
            [tokenise_sides(example, rewrites, Learning(joins=True)) for example in examples], shares=False
        )
        answers = sum(unit[0].num_tokens - unit[0].num_prompt_tokens for unit in units)
        ratios = " | ".join(f"{num / whole:.3f}x" for num in (cut, shared, joined))
        print(f"| {kind} | {whole:,} | {ratios} | {answers:,} of {shared - joined:,} |")


if __name__ == "__main__":
    main()
