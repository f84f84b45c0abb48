from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.ml.inference.models.templates.thinking import ThinkingFormat
from luthier.ml.inference.models.templates.thinking_probe import (
    default_switches,
    effort_options,
    measured_format,
    option_names,
    thinking_options,
)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TAGS = ("<think>", "</think>")
# Of each template: its delimiters, and whether the generation prompt opens or closes a thought, by options.
KNOWN: dict[str, tuple[tuple[str, str], list[tuple[dict[str, Any], str]]]] = {
    "Qwen-Qwen3-0.6B": (TAGS, [({}, ""), ({"enable_thinking": False}, "closes")]),
    "Qwen3.5-4B": (TAGS, [({}, "opens"), ({"enable_thinking": False}, "closes")]),
    "Qwen-QwQ-32B": (TAGS, [({"enable_thinking": True}, "opens"), ({}, "closes")]),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (TAGS, [({"enable_thinking": True}, "opens"), ({}, "closes")]),
    "deepseek-ai-DeepSeek-V3.1": (TAGS, [({}, "closes"), ({"thinking": True}, "opens")]),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (TAGS, [({}, "opens"), ({"enable_thinking": False}, "closes")]),
    "GLM-4.6": (TAGS, [({}, ""), ({"enable_thinking": False}, "closes")]),
    "LFM2.5-Instruct": (TAGS, [({}, "")]),
    "google-gemma-4-31B-it": (
        ("<|channel>thought", "<channel|>"),
        [({}, "closes"), ({"enable_thinking": True}, "")],
    ),
    "mistralai-Ministral-3-14B-Reasoning-2512": (("[THINK]", "[/THINK]"), [({}, "")]),
    "ibm-granite-granite-3.3-2B-Instruct": (TAGS, [({"thinking": True}, "")]),
    "openai-gpt-oss-120b": (
        ("<|channel|>analysis<|message|>", "<|end|>"),
        [({}, ""), ({"reasoning_effort": "low"}, "")],
    ),
}
NONE = [
    "Kimi-K2-Instruct", "Mistral-Small-3.2-24B-Instruct-2506", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder", "Qwen3-Instruct-2507", "Qwen3-VL", "google-gemma-2-2b-it",
    "google-gemma-3", "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct",
    "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407",
]  # fmt: skip

HEAD = "{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}{% endif %}"


def template_of(shared_data: Path, name: str) -> str:
    return (shared_data / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def measured(template: str, **options: Any) -> ThinkingFormat:
    found = measured_format(template, TOKENS, options)
    assert found is not None
    return found


@pytest.mark.shared_data
def test_every_real_template_is_in_the_table(shared_data: Path) -> None:
    files = {file.stem for file in (shared_data / "chat_templates").glob("*.jinja")}
    assert len(files) >= 25
    assert files == {*KNOWN, *NONE}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", KNOWN)
def test_real_templates_that_think_are_measured(name: str, shared_data: Path) -> None:
    delimiters, prompts = KNOWN[name]
    for options, state in nonempty(prompts):
        found = measured(template_of(shared_data, name), **options)
        assert (found.start, found.end) == delimiters
        assert (found.prompt_opens, found.prompt_closes) == (state == "opens", state == "closes"), options


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [*NONE, "ibm-granite-granite-3.3-2B-Instruct"])
def test_real_templates_that_know_no_thoughts_have_no_format(name: str, shared_data: Path) -> None:
    assert measured_format(template_of(shared_data, name), TOKENS) is None


@pytest.mark.shared_data
def test_the_frames_of_real_answers_are_measured(shared_data: Path) -> None:
    channels = measured(template_of(shared_data, "openai-gpt-oss-120b"))
    assert channels.answer_start == "<|channel|>final<|message|>"
    assert channels.answer_frame == "<|start|>assistant<|channel|>final<|message|>"
    assert channels.next_start == "<|start|>assistant<|channel|>analysis<|message|>"
    granite = measured(template_of(shared_data, "ibm-granite-granite-3.3-2B-Instruct"), thinking=True)
    assert (granite.answer_frame, granite.answer_end) == ("<response>", "</response>")
    assert measured(template_of(shared_data, "Qwen-Qwen3-0.6B")).delimiters == TAGS


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "switches", "efforts"),
    [
        ("Qwen-Qwen3-0.6B", ("enable_thinking",), ()),
        ("deepseek-ai-DeepSeek-V3.1", ("enable_thinking", "thinking"), ()),
        ("openai-gpt-oss-120b", (), ("reasoning_effort",)),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", ("enable_thinking",), ()),
        ("LFM2.5-Instruct", (), ()),
        ("Qwen-Qwen2.5-7B-Instruct", (), ()),
    ],
)
def test_the_options_of_thoughts_are_found_by_what_they_change(
    name: str, switches: tuple[str, ...], efforts: tuple[str, ...], shared_data: Path
) -> None:
    template = template_of(shared_data, name)
    assert thinking_options(template, TOKENS) == switches
    assert effort_options(template) == efforts
    assert {*switches, *efforts} <= {*option_names(template)}


def test_options_are_names_that_the_template_reads_and_does_not_set() -> None:
    template = (
        "{% set a = b %}{% set c = c | default(1) %}{{ a }}{{ bos_token }}{% for m in messages %}{{ m }}{% endfor %}"
    )
    assert option_names(template) == ("b", "c")
    assert option_names("{{ broken") == ()


def test_tags_of_any_name_are_measured_beside_the_content() -> None:
    template = HEAD + (
        "{% if m.role == 'assistant' %}<|bot|>{% if m.reasoning_content %}<muse>{{ m.reasoning_content }}</muse>\n"
        "<say>{% else %}<say>{% endif %}{{ m.content }}</say><|stop|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|bot|>{% endif %}"
    )
    found = measured(template)
    assert (found.start, found.end) == ("<muse>", "</muse>")
    assert (found.answer_start, found.answer_frame, found.answer_end) == ("<say>", "<say>", "</say>")
    split = found.split("<muse>so</muse>\n<say>4</say>", is_open=False)
    assert (split.reasoning, split.content) == ("so", "4")
    assert found.split("<say>4</say>", is_open=False).content == "4"


def test_a_tag_that_ends_a_thought_within_the_content_is_measured() -> None:
    template = HEAD + (
        "{% if m.role == 'assistant' %}<|bot|>{{ m.content.split('[/MUSE]')[-1] }}<|stop|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|bot|>[MUSE]\n{% endif %}"
    )
    found = measured(template)
    assert (found.start, found.end, found.prompt_opens) == ("[MUSE]", "[/MUSE]", True)


def test_an_empty_thought_in_the_generation_prompt_is_measured() -> None:
    template = HEAD + (
        "{% if m.role == 'assistant' %}<|bot|>{{ m.content }}<|stop|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|bot|>{% if reason_first is defined and not reason_first %}"
        "<muse>\n\n</muse>\n{% endif %}{% endif %}"
    )
    assert (measured(template).start, measured(template).prompt_closes) == ("<muse>", False)
    assert measured(template, reason_first=False).prompt_closes


def test_a_template_that_fails_or_ignores_thoughts_has_no_format() -> None:
    assert measured_format("{{ raise_exception('no') }}", TOKENS) is None
    assert measured_format("{{ broken", TOKENS) is None
    plain = HEAD + "{% if m.role == 'assistant' %}<|bot|>{{ m.content }}<|stop|>{% endif %}{% endfor %}"
    assert measured_format(plain + "{% if add_generation_prompt %}<|bot|>{% endif %}", TOKENS) is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen-QwQ-32B", {"enable_thinking": False}),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", {"enable_thinking": False}),
        ("Qwen-Qwen3-0.6B", {"enable_thinking": True}),
        ("Qwen-Qwen2.5-7B-Instruct", {}),
    ],
)
def test_the_value_that_a_template_has_where_nobody_sets_its_switch(
    shared_data: Path, name: str, found: dict[str, bool]
) -> None:
    template = (shared_data / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    assert default_switches(template, TOKENS) == found
    # with another default in front of it, that one counts
    for switch, value in found.items():
        changed = f"{{%- if {switch} is not defined %}}{{%- set {switch} = {not value} %}}{{%- endif %}}{template}"
        assert default_switches(changed, TOKENS) == {switch: not value}


def test_a_template_whose_unset_switch_is_neither_has_no_default() -> None:
    template = "{{ messages[0].content }}{{ enable_thinking if enable_thinking is defined else 'neither' }}"
    assert thinking_options(template, {}) == ("enable_thinking",)
    assert default_switches(template, {}) == {}
