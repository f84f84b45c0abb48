"""Answers that are drawn in training: a thought is learned with its answer, and the answer alone is graded."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import TokenisedExample
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.objectives.sampling import draw_samples
from luthier.testing.tiny import ANSWER, OPENING_TEMPLATE, THINKING_TEMPLATE, THOUGHT


@pytest.mark.parametrize("template", [THINKING_TEMPLATE, OPENING_TEMPLATE, None], ids=["writes", "opens", "unknown"])
def test_the_answer_is_graded_without_its_thought(template: str | None, tiny_thinker: Callable[..., Path]) -> None:
    folder = tiny_thinker(template)
    loaded = ChatTemplate.load(folder)
    asked = Conversation(messages=(Message(role="user", content="Which wood?"),))
    prompt = loaded.ids(loaded.render(asked, add_generation_prompt=True))
    row = TokenisedExample("rows:1", array("i", [*prompt, 1]), bytes(len(prompt)) + b"\1")
    causal = load_model(str(folder), dtype="float32", attention="sdpa").eval()
    model: Any = SimpleNamespace(
        method=SimpleNamespace(virtual_prompt=lambda: None), pad_id=0, as_decoder=lambda: nullcontext(causal)
    )
    ((sample,),) = draw_samples(model, loaded, [row], num_samples=1, max_new_tokens=40, temperature=0.0, seed="")
    assert (sample.attempt.text, sample.attempt.reasoning, sample.attempt.ended) == (ANSWER, THOUGHT, True)
    assert sample.tokens.num_trained_tokens == sample.attempt.num_new_tokens
    learned = sample.tokens.input_ids[len(prompt) :].tolist()
    assert THOUGHT in loaded.tokenizer.decode(learned)
