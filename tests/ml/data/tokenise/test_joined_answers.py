"""Answers that a template needs a sequence each for, joined into one: what is learned, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.tokenise.template_rows import ROWS, template_of
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, profile_tokens
from luthier.core.errors import TemplateError
from luthier.ml.data.tokenise.loss_mask import Learning, tokenise_sides
from luthier.ml.data.tokenise.preview import preview_sides
from luthier.ml.data.tokenise.template import decode
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model

_JOINED = Learning(joins=True)
# Under these templates, these kinds of rows need a sequence an answer.
_CUT: dict[str, tuple[str, ...]] = {
    "GLM-4.6": ("two", "tools", "think_twice"),
    "LFM2.5-Instruct": ("think_twice",),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("two", "tools", "think_twice"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("tools",),
    "Qwen-QwQ-32B": ("two", "tools"),
    "Qwen-Qwen3-0.6B": ("two", "tools", "think_twice"),
    "Qwen3.5-4B": ("two", "think_twice"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("two",),
    "google-gemma-4-31B-it": ("two", "tools"),
    "microsoft-Phi-3.5-mini-instruct": ("two", "think_twice"),
    "openai-gpt-oss-120b": ("two", "think_twice"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def load(folder: Path, shared_data: Path) -> Any:
    def template(name: str) -> ChatTemplate:
        return template_of(folder, (shared_data / "chat_templates" / f"{name}.jinja").read_text("utf-8"))

    return template


def _example(conversation: Conversation) -> Example:
    return Example(id="rows.jsonl:1", conversation=conversation)


def _learned(rows: Any) -> list[list[int]]:
    """The stretches of learned ids, in order."""
    stretches: list[list[int]] = []
    for row in rows:
        was = 0
        for number, mark in zip(row.input_ids, row.loss_mask, strict=True):
            if mark and not was:
                stretches.append([])
            if mark:
                stretches[-1].append(number)
            was = mark
    return stretches


@pytest.mark.shared_data
@pytest.mark.parametrize("name", _CUT)
def test_the_same_answers_are_learned_in_one_sequence_the_first_behind_its_own_prompt(name: str, load: Any) -> None:
    template = load(name)
    for kind in nonempty(_CUT[name]):
        conversation = ROWS[kind]
        cut = tokenise_sides(_example(conversation), template)
        assert len(cut) == 2, kind
        (joined,) = tokenise_sides(_example(conversation), template, _JOINED)
        assert joined.is_joined
        assert _learned([joined]) == _learned(cut), kind
        first = cut[0]
        assert joined.input_ids[: first.num_tokens] == first.input_ids, kind
        # behind the first answer stands what the original's prompt of the second one ends with, and that answer
        prompt = template.render(conversation.up_to(len(conversation.messages) - 1), add_generation_prompt=True)
        shown = decode(template, list(joined.input_ids[first.num_tokens :])).rstrip("\n")
        second = decode(template, list(cut[1].input_ids))
        assert second.rstrip("\n").endswith(shown)
        assert second.startswith(prompt)
        question = conversation.messages[-2].content or ""
        assert decode(template, list(joined.input_ids)).count(question) == second.count(question), kind
        assert joined.num_tokens <= sum(row.num_tokens for row in cut)


@pytest.mark.shared_data
def test_rows_of_one_answer_and_rows_that_the_template_keeps_are_not_touched(load: Any) -> None:
    compared = 0
    for name in ("Qwen-Qwen3-0.6B", "openai-gpt-oss-120b", "Qwen-Qwen2.5-7B-Instruct"):
        template = load(name)
        for kind in ("one", "system", "think", *(("two", "tools") if "2.5" in name else ())):
            assert tokenise_sides(_example(ROWS[kind]), template, _JOINED) == tokenise_sides(
                _example(ROWS[kind]), template
            )
            compared += 1
    assert compared == 11


@pytest.mark.shared_data
def test_what_inference_would_not_show_is_named(load: Any) -> None:
    def differs(name: str, kind: str) -> tuple[str, ...]:
        (row,) = tokenise_sides(_example(ROWS[kind]), load(name), _JOINED)
        return row.differs

    assert differs("Qwen-Qwen3-0.6B", "two") == (r'"<think>\n\n</think>\n\n" added',)
    assert differs("Qwen-Qwen3-0.6B", "think_twice") == (r'"<think>\n{thought}\n</think>\n\n" added',)
    assert differs("openai-gpt-oss-120b", "two") == ('"<|return|>" in place of "<|end|>"',)
    assert differs("microsoft-Phi-3.5-mini-instruct", "two") == ('"</s>" added',)
    assert differs("LFM2.5-Instruct", "think_twice") == ()


@pytest.mark.shared_data
def test_three_answers_and_context_turns_lie_in_order_and_once(load: Any) -> None:
    template = load("Qwen-Qwen3-0.6B")
    texts = ["Which wood?", "Spruce.", "And the back?", "Maple.", "And the neck?", "Mahogany.", "Thanks."]
    roles = ["user", "assistant"] * 3 + ["user"]
    messages = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=True)]  # type: ignore[arg-type]
    messages[3] = messages[3].model_copy(update={"weight": 0})
    example = _example(Conversation(messages=tuple(messages)))
    (row,) = tokenise_sides(example, template, _JOINED)
    text = decode(template, list(row.input_ids))
    assert [text.index(one) for one in texts[:-1]] == sorted(text.index(one) for one in texts[:-1])
    assert "Thanks." not in text  # nothing is learned behind the last answer
    assert [decode(template, ids) for ids in _learned([row])] == ["Spruce.<|im_end|>\n", "Mahogany.<|im_end|>\n"]
    assert "<|im_start|>assistant\nMaple.<|im_end|>" in text  # context is written as the later prompt has it
    (shown,) = preview_sides(example, (row,), template)
    assert shown.joined == row.differs != ()
    assert shown.text == text


_HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
_TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("body", "match"),
    [
        # the text after an answer holds how long the answer was
        (
            "{% if m.role == 'user' and loop.index0 > 0 %}[{{ loop.previtem.content | length }}] {% endif %}"
            "{% if loop.last and m.role == 'assistant' %}= {% endif %}{{ m.content }}",
            "where the end of this answer lies",
        ),
        # an earlier answer is not shown at all
        (
            "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}",
            "depends on the answer itself",
        ),
        # an earlier answer ends in a way that no user's turn and no last answer ends
        (
            "{{ m.content }}{% if m.role == 'assistant' and not loop.last %}~~{% endif %}",
            "where the end of this answer lies",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused_with_the_turn_and_the_remedy(folder: Path, body: str, match: str) -> None:
    template = template_of(folder, _HEAD + body + _TAIL)
    assert len(tokenise_sides(_example(ROWS["two"]), template)) == 2
    with pytest.raises(TemplateError, match=match) as caught:
        tokenise_sides(_example(ROWS["two"]), template, _JOINED)
    assert "turn 2 of 4 (assistant)" in str(caught.value)
    assert "data.reset_template" in caught.value.do


def test_a_system_text_beside_each_user_turn_stays_there(folder: Path) -> None:
    """As it was when that turn was the last, which inference of a later turn would not show."""
    body = "{% if m.role == 'user' and loop.index0 == messages | length - 1 %}(Be brief.) {% endif %}{{ m.content }}"
    template = template_of(folder, _HEAD + body + _TAIL)
    (row,) = tokenise_sides(_example(ROWS["two"]), template, _JOINED)
    assert decode(template, list(row.input_ids)).count("(Be brief.)") == 2
    assert row.differs == ('"(Be brief.) " added',)
    assert profile_tokens([row, row])["joined_differs"] == row.differs


def test_only_the_last_answer_is_not_joined_with_others(folder: Path) -> None:
    body = "{{ m.content }}{% if m.role == 'assistant' and loop.last %}!{% endif %}"
    template = template_of(folder, _HEAD + body + _TAIL)
    (row,) = tokenise_sides(_example(ROWS["two"]), template, Learning(joins=True, only_last=True))
    assert not row.is_joined
    assert len(_learned([row])) == 1
