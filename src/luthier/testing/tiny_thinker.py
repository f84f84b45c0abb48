"""A tiny reasoning model: it answers every prompt with the same thought and the same answer.

It replaces a reasoning model in tests of how thoughts are handled. The text is overfitted, which takes
a few seconds; the template is one of two that behave as those of makers do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM

from luthier.core.conversation import Conversation, Message
from luthier.ml.inference.models.chat_template import ChatTemplate
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.testing.tiny import make_tiny_model

THOUGHT: Final = "It is light."
ANSWER: Final = "Spruce."
WRITTEN: Final = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
"""What the model writes where its template leaves the thought to it; without the first line where it opens it."""

_TURNS: Final = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
"""
_SHUT: Final = "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}"
THINKING_TEMPLATE: Final = (
    _TURNS + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}" + _SHUT + "{%- endif -%}{%- endif -%}"
)
"""The model opens its thought, unless `enable_thinking` is false: then the prompt holds an empty one."""
OPENING_TEMPLATE: Final = (
    _TURNS
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    + _SHUT
    + "{%- else -%}{{- '<think>\\n' -}}{%- endif -%}{%- endif -%}"
)
"""The generation prompt opens the thought, unless `enable_thinking` is false."""

_QUESTIONS: Final = (
    "Which wood?", "Which wood is used for the front of a violin?", "Hi", "What comes after 205?",
    *(f"Which wood, of {number}?" for number in range(4)),
)  # fmt: skip
_STEPS: Final = 120


def make_tiny_thinker(
    folder: Path, template: str | None = THINKING_TEMPLATE, *, written: str = WRITTEN, context_length_tokens: int = 512
) -> Path:
    """Write the model as a transformers folder and return the folder.

    Args:
        folder: Where it goes.
        template: The chat template; None for the tiny model's own, which knows no thoughts.
        written: What the model has to write after the header of its turn; it learns what the generation prompt leaves
            to it.
        context_length_tokens: Its context.
    """
    make_tiny_model(folder, context_length_tokens=context_length_tokens)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    loaded = ChatTemplate.load(folder)
    rows = []
    for options in ({}, {"enable_thinking": False}):
        for question in _QUESTIONS:
            asked = Conversation(messages=(Message(role="user", content=question),))
            prompt = loaded.with_options(options).render(asked, add_generation_prompt=True)
            # What the generation prompt has begun: nothing, an open thought, or an empty one that is closed.
            begun = prompt.rpartition("assistant")[2].strip()
            rest = written[len("<think>\n") :] if begun == "<think>" else ANSWER if begun else written
            rows.append((loaded.ids(prompt), [*loaded.ids(rest), loaded.end_of_turn_ids[0]]))
    _overfit(folder, rows)
    return folder


def _overfit(folder: Path, rows: list[tuple[list[int], list[int]]]) -> None:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        # ids, labels: [rows, width]. -100 is ignored by the loss: prompts and padding are not learned. Padding is on
        # the right, so a causal model needs no attention mask for the tokens before it.
        width = max(len(prompt) + len(rest) for prompt, rest in rows)
        ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
        for row, (prompt, rest) in enumerate(rows):
            ids[row, : len(prompt) + len(rest)] = torch.tensor([*prompt, *rest])
            labels[row, len(prompt) : len(prompt) + len(rest)] = torch.tensor(rest)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model.train()
        for _ in range(_STEPS):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval().save_pretrained(folder)
