"""Answers that are drawn in training: a thought is learned with its answer, and the answer alone is graded."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.ml.inference.test_generated_calls import QUESTION, SPECIAL, engine_that_writes

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import TokenisedExample
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.inference.decode import Continuation
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.objectives import sampling
from luthier.ml.training.objectives.sampling import draw_samples
from luthier.testing.tiny import ANSWER, CHAT_TEMPLATE, OPENING_TEMPLATE, THINKING_TEMPLATE, THOUGHT


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


@pytest.mark.parametrize(
    ("template", "special", "text"),
    [
        (CHAT_TEMPLATE, "", 'I look.\n<call>{"name": "price", "arguments": {"wood": "maple"}}</call>'),
        (SPECIAL, "[TOOL_CALLS]", 'I look.[TOOL_CALLS][{"name": "price", "arguments": {"wood": "maple"}}]'),
    ],
    ids=["in text", "behind a special token"],
)
def test_a_sampled_answer_is_graded_as_an_evaluation_reads_it(
    template: str, special: str, text: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_that_writes(text, tiny_model, monkeypatch, template, special)
    (evaluated,) = engine.generate([Prompt(conversation=QUESTION, max_new_tokens=8)], SilentProgress())
    ids = engine.template.tokenizer.encode(text, add_special_tokens=False)
    monkeypatch.setattr(
        sampling,
        "batch_generate",
        lambda decoder, requests, *more, **options: [Continuation(list(ids), end_id=0) for _ in requests],
    )
    model: Any = SimpleNamespace(
        method=SimpleNamespace(virtual_prompt=lambda: None), pad_id=0, as_decoder=lambda: nullcontext(engine.causal)
    )
    rows = [TokenisedExample(name, array("i", [1, 2, 3]), b"\0\0\1") for name in ("with tools", "without")]
    options: dict[str, Any] = {"num_samples": 1, "max_new_tokens": 40, "temperature": 0.0, "seed": ""}
    found = draw_samples(model, engine.template, rows, prompts={"with tools": QUESTION}, **options)
    (called,), (plain,) = found
    assert (called.attempt.text, called.attempt.tool_calls) == (evaluated.text, evaluated.tool_calls)
    assert evaluated.text == "I look."
    assert [call["function"]["name"] for call in called.attempt.tool_calls] == ["price"]
    assert (plain.attempt.text, plain.attempt.tool_calls) == (text.replace(special, "") if special else text, ())
    assert called.tokens.input_ids == plain.tokens.input_ids, "what is learned is the same"
