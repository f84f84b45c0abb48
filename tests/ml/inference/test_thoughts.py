"""Generated tokens become answers without thoughts, thoughts have a budget of their own, constraints wait for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken

from luthier.core.conversation import Conversation, Message
from luthier.core.ports import Generation, Prompt, SilentProgress
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.thoughts import Thoughts
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.tiny import (
    ANSWER,
    OPENING_TEMPLATE,
    THINKING_TEMPLATE,
    THOUGHT,
    make_tiny_model,
)

ASKED = Conversation(messages=(Message(role="user", content="Which wood?"),))


@pytest.fixture(scope="module", params=[THINKING_TEMPLATE, OPENING_TEMPLATE, None], ids=["writes", "opens", "unknown"])
def thinker(request: pytest.FixtureRequest, tiny_thinker: Callable[..., Path]) -> Path:
    return tiny_thinker(request.param)


def generate(engine: TransformersEngine, prompt: Prompt) -> Generation:
    (found,) = engine.generate([prompt], SilentProgress())
    return found


def test_a_thought_is_no_part_of_the_answer(thinker: Path) -> None:
    engine = TransformersEngine.open(str(thinker), dtype="float32")
    found = generate(engine, Prompt(conversation=ASKED, max_thinking_tokens=64))
    assert (found.text, found.reasoning, found.finish_reason) == (ANSWER, THOUGHT, "stop")
    # what follows the thought are the blank lines and the answer
    rest = engine.template.ids(f"\n\n{ANSWER}")
    assert found.num_new_tokens - found.num_thinking_tokens == len(rest)
    assert not found.ends_in_thought


def test_a_thought_has_a_budget_beside_the_answer(thinker: Path) -> None:
    engine = TransformersEngine.open(str(thinker), dtype="float32")
    whole = generate(engine, Prompt(conversation=ASKED, max_thinking_tokens=64))
    num_answer = whole.num_new_tokens - whole.num_thinking_tokens

    def with_limits(new: int, thinking: int | None) -> Generation:
        return generate(engine, Prompt(conversation=ASKED, max_new_tokens=new, max_thinking_tokens=thinking))

    enough = with_limits(num_answer + 1, 64)
    assert (enough.text, enough.finish_reason) == (ANSWER, "stop")
    short = with_limits(num_answer - 1, 64)
    assert ANSWER.startswith(short.text)
    assert 0 < len(short.text) < len(ANSWER)
    assert (short.reasoning, short.finish_reason, short.ends_in_thought) == (THOUGHT, "length", False)
    cut = with_limits(64, whole.num_thinking_tokens - 4)
    assert (cut.text, cut.finish_reason, cut.ends_in_thought) == ("", "length", True)
    assert cut.num_new_tokens == cut.num_thinking_tokens == whole.num_thinking_tokens - 4
    shared = with_limits(whole.num_thinking_tokens, 0)
    assert (shared.text, shared.num_new_tokens) == ("", whole.num_thinking_tokens)


def test_a_model_that_is_known_to_think_has_a_budget_without_being_asked(thinker: Path) -> None:
    engine = TransformersEngine.open(str(thinker), dtype="float32")
    found = generate(engine, Prompt(conversation=ASKED, max_new_tokens=7))
    knows = engine.template.tokenizer.chat_template in (THINKING_TEMPLATE, OPENING_TEMPLATE)
    assert (found.text == ANSWER) == knows
    assert found.ends_in_thought != knows


def test_an_option_that_closes_the_thought_leaves_the_answer_alone(tiny_thinker: Callable[..., Path]) -> None:
    loaded = TransformersEngine.open(str(tiny_thinker()), dtype="float32")
    engine = TransformersEngine(loaded.causal, loaded.template.with_options({"enable_thinking": False}))
    found = generate(engine, Prompt(conversation=ASKED, max_new_tokens=8))
    assert (found.text, found.reasoning, found.num_thinking_tokens) == (ANSWER, None, 0)


def test_what_goes_on_after_a_text_is_text(thinker: Path) -> None:
    engine = TransformersEngine.open(str(thinker), dtype="float32")
    text = engine.template.render(ASKED, add_generation_prompt=True)
    found = generate(engine, Prompt(text=text, max_new_tokens=64))
    assert found.reasoning is None
    assert found.text.endswith(f"{THOUGHT}\n</think>\n\n{ANSWER}")


def test_json_is_kept_to_behind_the_thought(tiny_thinker: Callable[..., Path]) -> None:
    engine = TransformersEngine.open(str(tiny_thinker(OPENING_TEMPLATE)), dtype="float32")
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    found = generate(engine, Prompt(conversation=ASKED, json_schema=schema))
    assert found.reasoning == THOUGHT
    assert found.text == '{"a": 1}'


def test_special_tokens_that_delimit_thoughts_are_seen_and_others_are_not(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    template = ChatTemplate.load(folder)
    marks = ["[MUSE]", "[/MUSE]", "[OTHER]"]
    template.tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks], special_tokens=True)
    template.tokenizer.chat_template = THINKING_TEMPLATE.replace("<think>", "[MUSE]").replace("</think>", "[/MUSE]")
    thoughts = Thoughts(template)
    assert thoughts.shown == ("[MUSE]", "[/MUSE]")
    ids = template.tokenizer.backend_tokenizer.encode("[MUSE]so[OTHER][/MUSE]\n4[OTHER]").ids
    found, num = thoughts.split(ids, is_open=False)
    assert (found.reasoning, found.content) == ("so", "4")
    assert num == ids.index(template.tokenizer.convert_tokens_to_ids("[/MUSE]")) + 1
    prompt = template.render(ASKED, add_generation_prompt=True)
    assert not thoughts.is_open(template.ids(prompt))
    assert thoughts.is_open(template.ids(prompt + "[MUSE]\n"))


def test_a_model_that_never_thinks_is_decoded_as_ever(tmp_path: Path) -> None:
    template = ChatTemplate.load(make_tiny_model(tmp_path / "model"))
    thoughts = Thoughts(template)
    assert not thoughts.is_known
    assert thoughts.budget(None, 500) == 0
    ids = template.tokenizer.backend_tokenizer.encode(" \nSo it is. <think>no</think><|im_end|>").ids
    found, num = thoughts.split(ids, is_open=False)
    assert (found.content, found.reasoning, num) == (" \nSo it is. <think>no</think>", None, 0)
