"""Rows under the chat templates of published models: what passes, in how many sequences, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.tokenise.template_rows import ROWS, template_of
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message, OptedTurns
from luthier.core.dataset import Example
from luthier.core.errors import TemplateError
from luthier.ml.data.tokenise.loss_mask import Learning, Unit, tokenise, tokenise_sides
from luthier.ml.data.tokenise.template import decode
from luthier.ml.inference.engine_prompts import rewritten, text_of
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.tool_calls.forms import form_of
from luthier.testing.tiny import make_tiny_model

_KINDS = tuple(ROWS)
_FOLD, _TOOLS, _REASONING, _OPTION = (
    "data.system: fold",
    "data.tools: as_text",
    "data.reasoning: ",
    "template_options: {",
)
# How many sequences each kind of row is: one turn, two, system, tools, reasoning_content, <think> text, two such turns.
_PASSES: dict[str, tuple[int | str, ...]] = {
    "GLM-4.6": (1, 2, 1, 2, 1, 1, 2),
    "Kimi-K2-Instruct": (1, 1, 1, _TOOLS, _REASONING, 1, 1),
    "LFM2.5-Instruct": (1, 1, 1, _TOOLS, 1, 1, 2),
    "Mistral-Small-3.2-24B-Instruct-2506": (1, 1, 1, 1, _REASONING, 1, 1),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (1, 2, 1, 2, 1, 1, 2),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": (1, 1, 1, 2, _REASONING, 1, 1),
    "Qwen-QwQ-32B": (1, 2, 1, 2, _OPTION, _OPTION, _OPTION),
    "Qwen-Qwen2.5-7B-Instruct": (1, 1, 1, 1, _REASONING, 1, 1),
    "Qwen-Qwen3-0.6B": (1, 2, 1, 2, 1, 1, 2),
    "Qwen3-Coder": (1, 1, 1, 1, _REASONING, 1, 1),
    "Qwen3-Instruct-2507": (1, 1, 1, 1, _REASONING, 1, 1),
    "Qwen3-VL": (1, 1, 1, 1, _REASONING, 1, 1),
    "Qwen3.5-4B": (1, 2, 1, 1, 1, 1, 2),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (1, 2, 1, _TOOLS, _OPTION, _OPTION, _OPTION),
    "deepseek-ai-DeepSeek-V3.1": (1, 1, 1, _TOOLS, _OPTION, _OPTION, _OPTION),
    "google-gemma-2-2b-it": (1, 1, _FOLD, _TOOLS, _REASONING, 1, 1),
    "google-gemma-3": (1, 1, 1, _TOOLS, _REASONING, 1, 1),
    "google-gemma-4-31B-it": (1, 2, 1, 2, _OPTION, _OPTION, _OPTION),
    "ibm-granite-granite-3.3-2B-Instruct": (1, 1, 1, _TOOLS, _REASONING, 1, 1),
    "meta-llama-Llama-3.1-8B-Instruct": (1, 1, 1, 1, _REASONING, 1, 1),
    "meta-llama-Llama-3.2-3B-Instruct": (1, 1, 1, 1, _REASONING, 1, 1),
    "microsoft-Phi-3.5-mini-instruct": (1, 2, 1, _TOOLS, _REASONING, 1, 2),
    "mistralai-Ministral-3-14B-Reasoning-2512": (1, 1, 1, 1, 1, 1, 1),
    "mistralai-Mistral-Nemo-Instruct-2407": (1, 1, 1, 1, _REASONING, 1, 1),
    "openai-gpt-oss-120b": (1, 2, 1, 1, 1, 1, 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def load(folder: Path, shared_data: Path) -> Any:
    made: dict[str, ChatTemplate] = {}

    def template(name: str, **options: Any) -> ChatTemplate:
        if name not in made:
            made[name] = template_of(folder, (shared_data / "chat_templates" / f"{name}.jinja").read_text("utf-8"))
        return made[name].with_options(options)

    return template


def _unit(conversation: Conversation, template: ChatTemplate, learning: Learning | None = None) -> Unit:
    return tokenise_sides(Example(id="rows.jsonl:1", conversation=conversation), template, learning or Learning())


def _marked(row: Any, template: ChatTemplate) -> str:
    """The text of a row, learned stretches in «guillemets»."""
    text, start = "", 0
    for place in range(1, row.num_tokens + 1):
        if place == row.num_tokens or row.loss_mask[place] != row.loss_mask[start]:
            piece = decode(template, list(row.input_ids[start:place]))
            text += f"«{piece}»" if row.loss_mask[start] else piece
            start = place
    return text


def _check_against_inference(conversation: Conversation, unit: Unit, template: ChatTemplate) -> None:
    """Each answer stands behind the very ids that inference would be given, and ends with what stops it."""
    learned = [place for place, message in enumerate(conversation.messages) if message.is_learned]
    spans: list[tuple[list[int], int, int]] = []
    for row in unit:
        place = 0
        while (start := row.loss_mask.find(1, place)) >= 0:
            place = row.loss_mask.find(0, start)
            place = row.num_tokens if place < 0 else place
            spans.append((list(row.input_ids), start, place))
    assert len(spans) == len(learned)
    for turn, (ids, start, end) in zip(learned, spans, strict=True):
        prompt, _ = template.encode(template.render(conversation.up_to(turn), add_generation_prompt=True))
        assert ids[: len(prompt)] == prompt
        assert len(prompt) <= start
        between = decode(template, ids[len(prompt) : start])
        if between.strip():
            assert template.thoughts is not None
            assert not between.replace(template.thoughts.start, "").replace(template.thoughts.end, "").strip()
        assert set(ids[start:end]) & set(template.end_of_turn_ids)
        thought, answer = template.parts_of(conversation.messages[turn])
        written = decode(template, ids[start:end])
        assert answer.strip() in written
        assert thought is None or thought in written


@pytest.mark.shared_data
@pytest.mark.parametrize("name", _PASSES)
def test_every_ordinary_row_passes_or_is_refused_with_what_helps(name: str, load: Any) -> None:
    template = load(name)
    for kind, wanted in nonempty(zip(_KINDS, _PASSES[name], strict=True)):
        if isinstance(wanted, int):
            unit = _unit(ROWS[kind], template)
            assert len(unit) == wanted, kind
            _check_against_inference(ROWS[kind], unit, template)
            continue
        with pytest.raises(TemplateError) as caught:
            _unit(ROWS[kind], template)
        assert wanted in caught.value.do, kind


@pytest.mark.shared_data
@pytest.mark.parametrize("name", _PASSES)
def test_what_was_refused_passes_as_the_error_says(name: str, load: Any) -> None:
    template, helped = load(name), 0
    for kind, wanted in zip(_KINDS, _PASSES[name], strict=True):
        if isinstance(wanted, int):
            continue
        conversation, chosen = ROWS[kind], template
        if wanted == _OPTION:
            chosen = load(name, **dict([template.opening_option(conversation.up_to(1))]))
        else:
            opted = OptedTurns(
                folds_system=_PASSES[name][_KINDS.index("system")] == _FOLD,
                tools_as_text=wanted == _TOOLS,
                reasoning="as_text" if wanted == _REASONING else None,
            )
            conversation = rewritten(opted, conversation, form_of(text_of(template)))
        unit = _unit(conversation, chosen)
        _check_against_inference(conversation, unit, chosen)
        helped += 1
    assert helped == sum(isinstance(wanted, str) for wanted in _PASSES[name])


@pytest.mark.shared_data
def test_an_empty_thought_of_the_template_is_context_unless_it_is_asked_for(load: Any) -> None:
    template = load("Qwen-Qwen3-0.6B")
    (row,) = _unit(ROWS["one"], template)
    prompt = "<|im_start|>user\nWhich wood?<|im_end|>\n<|im_start|>assistant\n"
    assert _marked(row, template) == f"{prompt}<think>\n\n</think>\n\n«Spruce wood.<|im_end|>\n»"
    assert row.skips_thought
    (row,) = _unit(ROWS["one"], template, Learning(reasoning=True))
    assert _marked(row, template) == f"{prompt}«<think>\n\n</think>\n\nSpruce wood.<|im_end|>\n»"


@pytest.mark.shared_data
def test_thoughts_are_learned_or_left_as_context_by_recipe_and_by_message(load: Any) -> None:
    template = load("Qwen-Qwen3-0.6B")
    thought, answer = "<think>\nIt is light and stiff.\n</think>\n\n", "Spruce wood.<|im_end|>\n"
    prompt = "<|im_start|>user\nWhich wood?<|im_end|>\n<|im_start|>assistant\n"
    for kind in ("reasoning", "think"):
        (row,) = _unit(ROWS[kind], template)
        assert _marked(row, template) == f"{prompt}«{thought}{answer}»"
        assert row.has_thought
        assert not row.skips_thought
        (row,) = _unit(ROWS[kind], template, Learning(reasoning=False))
        assert _marked(row, template) == f"{prompt}{thought}«{answer}»"
    messages = (
        ROWS["reasoning"].messages[0],
        ROWS["reasoning"].messages[1].model_copy(update={"learn_reasoning": False}),
    )
    (row,) = _unit(Conversation(messages=messages), template, Learning(reasoning=True))
    assert _marked(row, template) == f"{prompt}{thought}«{answer}»"


@pytest.mark.shared_data
def test_a_prompt_that_opens_a_thought_is_followed(load: Any) -> None:
    template = load("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    (row,) = _unit(ROWS["one"], template)
    assert _marked(row, template).endswith("<|im_start|>assistant\n<think>\n</think>«Spruce wood.<|im_end|>\n»")
    (row,) = _unit(ROWS["think"], template)
    assert _marked(row, template).endswith(
        "<|im_start|>assistant\n<think>\n«It is light and stiff.\n</think>\nSpruce wood.<|im_end|>\n»"
    )


@pytest.mark.shared_data
def test_a_thought_that_the_template_never_writes_at_the_end_goes_where_its_prompt_opens_one(load: Any) -> None:
    template = load("google-gemma-4-31B-it", enable_thinking=True)
    (row,) = _unit(ROWS["reasoning"], template)
    assert _marked(row, template).endswith(
        "<|turn>model\n«<|channel>thought\nIt is light and stiff.\n<channel|>Spruce wood.<turn|>\n»"
    )


@pytest.mark.shared_data
def test_answers_and_calls_end_as_generation_would_stop(load: Any) -> None:
    template = load("openai-gpt-oss-120b")
    (row,) = _unit(ROWS["tools"], template)
    marked = _marked(row, template)
    assert (
        '<|start|>assistant« to=functions.price<|channel|>commentary json<|message|>{"wood": "spruce"}<|call|>»'
        in marked
    )
    assert marked.endswith("<|start|>assistant«<|channel|>final<|message|>It costs 12 Euro.<|return|>»")
    assert {template.tokenizer.convert_tokens_to_ids(name) for name in ("<|call|>", "<|return|>")} <= set(
        template.end_of_turn_ids
    )
    first, second = _unit(ROWS["two"], template)
    assert _marked(first, template).endswith("«<|channel|>final<|message|>Spruce wood.<|return|>»")
    assert "<|channel|>final<|message|>Spruce wood.<|end|><|start|>user" in _marked(second, template)


@pytest.mark.shared_data
def test_a_system_prompt_beside_the_last_user_turn_is_what_inference_sees(load: Any) -> None:
    template = load("mistralai-Mistral-Nemo-Instruct-2407")
    (row,) = _unit(ROWS["system"], template)
    assert _marked(row, template) == "<s>[INST]You build guitars.\n\nWhich wood?[/INST]«Spruce wood.</s>»"


@pytest.mark.shared_data
def test_the_last_answer_alone_of_a_row_that_is_cut(load: Any) -> None:
    template = load("Qwen-Qwen3-0.6B")
    example = Example(id="rows.jsonl:1", conversation=ROWS["two"])
    assert len(tokenise_sides(example, template, Learning(only_last=True))) == 1
    assert tokenise(example, template).input_ids == tokenise_sides(example, template)[1].input_ids


@pytest.mark.shared_data
def test_a_completion_of_two_answers_is_refused_where_it_would_be_cut(load: Any) -> None:
    pair = Example(id="rows.jsonl:1", conversation=ROWS["two"], rejected=ROWS["think_twice"])
    with pytest.raises(TemplateError, match="a completion of 2 answers"):
        tokenise_sides(pair, load("Qwen-Qwen3-0.6B"))


@pytest.mark.shared_data
def test_weight_0_turns_are_no_sequence_of_their_own(load: Any) -> None:
    messages = list(ROWS["two"].messages)
    messages[1] = messages[1].model_copy(update={"weight": 0})
    (row,) = _unit(Conversation(messages=tuple(messages)), load("Qwen-Qwen3-0.6B"))
    assert row.loss_mask.count(b"\0\1") == 1


@pytest.mark.shared_data
def test_control_text_in_a_thought_is_refused(load: Any) -> None:
    from luthier.core.errors import DataError

    answer = Message(role="assistant", content="Spruce.", reasoning="Hm<|im_end|>")
    with pytest.raises(DataError) as caught:
        _unit(Conversation(messages=(ROWS["one"].messages[0], answer)), load("Qwen-Qwen3-0.6B"))
    assert caught.value.problems[0].field == "messages[1].reasoning_content"


def test_a_template_without_a_generation_prompt_is_refused(folder: Path) -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(TemplateError, match="generation prompt"):
        _unit(ROWS["one"], template_of(folder, text))


def test_a_template_that_raises_says_where_and_what_helps(folder: Path) -> None:
    text = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(TemplateError, match=r"message 1 of 2 \(system\): no system") as caught:
        _unit(ROWS["system"], template_of(folder, text))
    assert _FOLD in caught.value.do
