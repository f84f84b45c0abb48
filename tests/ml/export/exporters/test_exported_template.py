"""What another runtime renders with an exported template, given nothing, is what training rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.tokenise.template_rows import template_of

from luthier.core.conversation import AS_THEY_ARE, Conversation, Message, OptedTurns
from luthier.core.errors import RequestError
from luthier.ml.export.exporters.companions import ExportedTemplate, exported_template
from luthier.ml.inference.engine_prompts import rewritten, text_of
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.tool_calls.forms import form_of
from luthier.testing.tiny import make_tiny_model

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "Of a “wood”.",
        "parameters": {"type": "object", "properties": {"wood": {"type": "string"}}},
    },
}
_CALL = {"id": "callAB123", "type": "function", "function": {"name": "price", "arguments": '{"wood": "érable"}'}}
_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What does it cost?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "callAB123", "name": "price", "content": "12"},
    {"role": "assistant", "content": "12.", "reasoning_content": " The tool says so. "},
    {"role": "user", "content": "And maple?"},
    {"role": "assistant", "content": "<think>\nAgain?\n</think>\n\n13."},
    {"role": "user", "content": "Ebony?"},
]
_TALK = Conversation(
    messages=tuple(
        Message.model_validate({{"reasoning_content": "reasoning"}.get(name, name): v for name, v in one.items()})
        for one in _MESSAGES
    ),
    tools=(_TOOL,),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def load(folder: Path, shared_data: Path) -> Any:
    def template(name: str, **options: Any) -> ChatTemplate:
        text = (shared_data / "chat_templates" / f"{name}.jinja").read_text("utf-8")
        return template_of(folder, text).with_options(options)

    return template


def own_of(template: ChatTemplate) -> str:
    return str(template.tokenizer.get_chat_template())


def rendered(template: ChatTemplate, exported: ExportedTemplate, messages: Any, tools: Any = None, **given: Any) -> str:
    return str(
        template.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=exported.text, tokenize=False, add_generation_prompt=True, **given
        )
    )


def _with_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arguments as servers give them to templates."""
    call = {**_CALL, "function": {"name": "price", "arguments": {"wood": "érable"}}}
    return [{**one, "tool_calls": [call]} if "tool_calls" in one else one for one in messages]


@pytest.mark.parametrize("name", ["google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct"])
@pytest.mark.parametrize("reasoning", ["as_text", "drop"])
def test_all_that_a_template_has_no_place_for_is_written_by_the_exported_one(load, name, reasoning):
    opted = OptedTurns(folds_system=True, tools_as_text=True, reasoning=reasoning)
    template = load(name)
    made = exported_template(template, opted, own_of(template))
    assert made.says_turns
    assert made.notes == ()
    trained = template.render(rewritten(opted, _TALK, form_of(text_of(template))), add_generation_prompt=True)
    assert rendered(template, made, _with_objects(_MESSAGES), [_TOOL]) == trained
    assert rendered(template, made, _MESSAGES, [_TOOL]) == trained  # arguments as the wire has them
    assert ("Again?" in trained) == ("The tool says so." in trained) == (reasoning == "as_text")
    assert all(part in trained for part in ("Be short.", "Of a “wood”.", '"wood": "érable"', "12</tool_response>"))


def test_a_system_text_of_blocks_and_a_question_of_blocks_are_folded_too(load):
    template = load("google-gemma-3")
    made = exported_template(template, OptedTurns(folds_system=True), own_of(template))
    blocks = [
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {"role": "user", "content": [{"type": "text", "text": "Which wood?"}]},
    ]
    words = [{"role": "user", "content": "Be short.\n\nWhich wood?"}]
    assert rendered(template, made, blocks) == rendered(template, made, words)


def test_options_are_defaults_that_a_caller_overrides(load):
    template = load("Qwen-Qwen3-0.6B", enable_thinking=False)
    made = exported_template(template, AS_THEY_ARE, own_of(template))
    asked = [{"role": "user", "content": "Which wood?"}]
    expected = template.render(Conversation(messages=_TALK.messages[1:2]), add_generation_prompt=True)
    assert "<think>\n\n</think>" in expected
    assert rendered(template, made, _MESSAGES[1:2]) == expected
    thinks = load("Qwen-Qwen3-0.6B")
    untouched = thinks.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert rendered(template, made, asked, enable_thinking=True) == untouched


def test_a_word_of_any_characters_is_an_option_too(load):
    word = 'low "é" %} {{ x }}\n\\ '
    template = load("openai-gpt-oss-120b", reasoning_effort=word)
    made = exported_template(template, AS_THEY_ARE, own_of(template))
    assert f"Reasoning: {word}" in rendered(template, made, _MESSAGES[1:2])


def test_without_options_and_rewritten_turns_the_template_is_the_models_own(load):
    template = load("Qwen-Qwen2.5-7B-Instruct")
    assert exported_template(template, AS_THEY_ARE, own_of(template)).text == own_of(template)


def test_an_option_that_the_template_sets_itself_is_refused(folder):
    text = "{%- set tone = 'dry' %}{%- for m in messages %}{{ m.role + tone + m.content + '<|im_end|>' }}{%- endfor %}"
    template = template_of(folder, text).with_options({"tone": "warm"})
    own = text.replace("'dry'", "'cold'")  # whatever it is given
    with pytest.raises(RequestError, match=r'"tone": "warm"'):
        exported_template(template, AS_THEY_ARE, own)


def test_what_the_template_cannot_write_is_a_note(load):
    template = load("openai-gpt-oss-120b")  # takes thoughts in a field, and none in tags
    made = exported_template(template, OptedTurns(reasoning="as_text"), own_of(template))
    assert not made.says_turns
    assert len(made.notes) == 1
    assert "must do so before: send thoughts of earlier turns as reasoning_content" in made.notes[0]
    assert made.text == own_of(template)


def test_the_exported_template_is_rewritten_for_nobody_twice(load):
    """An engine of Luthier rewrites turns by the plan of a bundle, and then renders with the bundle's template."""
    opted = OptedTurns(folds_system=True, tools_as_text=True, reasoning="as_text")
    template = load("google-gemma-2-2b-it")
    made = exported_template(template, opted, own_of(template))
    form = form_of(text_of(template))
    assert form_of(made.text) == form
    once = rewritten(opted, _TALK, form)
    messages = [{"role": one.role, "content": one.content} for one in once.messages]
    assert rendered(template, made, messages) == template.render(once, add_generation_prompt=True)
