"""Rows under templates that nobody has seen: each as plain jinja and the tokenizer say, or refused with what helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.ml.data.row_oracle import ALL_ROWS, check
from tests.ml.data.tokenise.other_templates import FAILS_AT_LOAD, TEMPLATES
from tests.ml.data.tokenise.template_rows import ROWS, template_of

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError, TemplateError
from luthier.ml.data.tokenise.loss_mask import Learning, Unit, tokenise_sides
from luthier.ml.data.tokenise.template import decode
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTemplate]:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return {name: template_of(folder, text) for name, text in TEMPLATES.items() if name not in FAILS_AT_LOAD}


def _unit(row: Conversation, template: ChatTemplate) -> Unit:
    return tokenise_sides(Example(id="rows.jsonl:1", conversation=row), template, Learning())


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in FAILS_AT_LOAD])
def test_rows_are_as_plain_jinja_writes_them_or_refused_with_what_helps(
    name: str, templates: dict[str, ChatTemplate]
) -> None:
    template, num_right, helped = templates[name], 0, []
    for kind, row in ALL_ROWS.items():
        try:
            unit = _unit(row, template)
        except (TemplateError, DataError) as refused:
            helped.append((kind, refused.do))
            continue
        check(name, row, unit, template)
        num_right += 1
    assert [kind for kind, remedy in helped if not remedy] == []
    assert num_right >= 3 or name in ("no prompt",)


def _text(unit: Unit, template: ChatTemplate) -> str:
    (row,) = unit
    return decode(template, list(row.input_ids))


def test_arguments_come_as_text_where_the_template_writes_them_as_they_are(templates: dict[str, ChatTemplate]) -> None:
    for name, written in (
        ("arguments as text", 'price {"wood": "spruce"}'),
        ("arguments joined as text", '```json\n{"wood": "spruce"}\n```'),
        ("sorted tools", 'price {"wood": "spruce"}'),
    ):
        assert written in _text(_unit(ROWS["tools"], templates[name]), templates[name])


def test_content_comes_as_parts_where_the_template_knows_no_text(templates: dict[str, ChatTemplate]) -> None:
    for name in ("parts alone", "parts selected"):
        text = _text(_unit(ROWS["one"], templates[name]), templates[name])
        assert text == "<|im_start|>user\nWhich wood?<|im_end|>\n<|im_start|>assistant\nSpruce wood.<|im_end|>\n"


def test_a_result_is_given_the_name_of_its_tool_where_the_template_refuses_it_without(
    templates: dict[str, ChatTemplate],
) -> None:
    name = "named results"
    assert "<|im_start|>price\n12 Euro<|im_end|>" in _text(_unit(ROWS["tools"], templates[name]), templates[name])
    assert "<|im_start|>tool\n12 Euro" in _text(
        _unit(ROWS["tools"], templates["sorted tools"]), templates["sorted tools"]
    )


@pytest.mark.parametrize("name", FAILS_AT_LOAD)
def test_a_template_that_changes_what_turns_say_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    with pytest.raises(TemplateError, match="does not write the answer 'Spruce-wood' unchanged"):
        template_of(folder, TEMPLATES[name])


def test_a_call_without_a_generation_prompt_is_refused_as_an_answer_is(tmp_path: Path) -> None:
    text = TEMPLATES["sorted tools"].partition("{% if add_generation_prompt %}")[0]
    template = template_of(make_tiny_model(tmp_path), text)
    for kind in ("one", "tools"):
        with pytest.raises(TemplateError, match="has no generation prompt"):
            _unit(ROWS[kind], template)
    empty = Conversation(messages=(Message(role="user", content="Which wood?"), Message(role="assistant", content="")))
    with pytest.raises(TemplateError, match="has no generation prompt"):
        _unit(empty, template)


def test_an_answer_that_follows_its_prompt_at_once_takes_two_renderings(
    templates: dict[str, ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt, and what begins with it; a third one would take a third more of the time of all rows."""
    rendered, render = [], ChatTemplate.render

    def counted(template: ChatTemplate, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        rendered.append((len(conversation.messages), add_generation_prompt))
        return render(template, conversation, add_generation_prompt=add_generation_prompt)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    _unit(ROWS["one"], templates["sorted tools"])
    assert rendered == [(1, True), (2, False)]


@pytest.mark.parametrize(
    "text", ["{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "{{ 'x' * 999999999 }}"]
)
def test_a_template_without_an_end_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateError):
        template_of(make_tiny_model(tmp_path), text)


_LEFT_OPEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>\n{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] | trim }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""The last answer begins with the tag that the prompt ends with, and what closes the thought is left to the content."""


@pytest.mark.parametrize(
    ("kind", "context", "learned"),
    [
        ("one", "\n</think>\n\n", "Spruce wood.<|im_end|>\n"),
        ("reasoning", "", "It is light and stiff.\n</think>\n\nSpruce wood.<|im_end|>\n"),
        ("think", "", "It is light and stiff.\n</think>\n\nSpruce wood.<|im_end|>\n"),
    ],
)
def test_a_thought_that_prompt_and_answer_both_open_is_closed_once_and_before_the_answer(
    kind: str, context: str, learned: str, tmp_path: Path
) -> None:
    template = template_of(make_tiny_model(tmp_path), _LEFT_OPEN)
    (row,) = _unit(ROWS[kind], template)
    marks = list(zip(row.input_ids, row.loss_mask, strict=True))
    prompt = "<|im_start|>user\nWhich wood?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert decode(template, [token for token, is_learned in marks if not is_learned]) == prompt + context
    assert decode(template, [token for token, is_learned in marks if is_learned]) == learned


@pytest.mark.parametrize("content", ["<think>\nlight\n</think>\n\n</think>", "<think>\nwood</think>wood</think>"])
def test_an_answer_that_is_dropped_is_not_found_in_the_thought_before_it(
    content: str, templates: dict[str, ChatTemplate]
) -> None:
    row = Conversation(messages=(ROWS["one"].messages[0], Message(role="assistant", content=content)))
    with pytest.raises(TemplateError, match="the answer is not in what the template wrote for it"):
        tokenise_sides(Example(id="rows.jsonl:1", conversation=row), templates["opens a thought"], Learning())


def test_an_answer_that_closes_the_opened_thought_itself_stays_as_the_template_writes_it(tmp_path: Path) -> None:
    template = template_of(make_tiny_model(tmp_path), _LEFT_OPEN)
    answer = Message(role="assistant", content="It is light.\n</think>\nSpruce.")
    row = Conversation(messages=(Message(role="user", content="Which wood?"), answer))
    assert _text(_unit(row, template), template).endswith(
        "<|im_start|>assistant\n<think>\nIt is light.\n</think>\nSpruce.<|im_end|>\n"
    )


_CLOSING_TAG_ALONE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% else %}</think>{% endif %}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)
"""Without thinking, the prompt ends with the closing tag and nothing before it (GLM 4.7, DeepSeek V3.1)."""


def test_a_thought_behind_a_closing_tag_alone_is_refused(tmp_path: Path) -> None:
    template = template_of(make_tiny_model(tmp_path), _CLOSING_TAG_ALONE)
    silent = template.with_options({"enable_thinking": False})
    assert _text(_unit(ROWS["one"], silent), silent).endswith("<|im_start|>assistant\n</think>Spruce wood.<|im_end|>\n")
    with pytest.raises(TemplateError, match="the prompt closes an empty one") as refused:
        _unit(ROWS["reasoning"], silent)
    assert "enable_thinking" in str(refused.value)
    assert "<think>It is light and stiff.</think>Spruce wood." in _text(_unit(ROWS["reasoning"], template), template)


_SWITCHED = (
    "{% set said = messages[0].content if messages[0].role == 'system' else '' %}"
    "<|im_start|>system\nThinking: {{ 'off' if '/no_think' in said else 'on' }}\n"
    "{{ said.replace('/no_think', '').replace('/think', '').replace('please', '') | trim }}<|im_end|>\n"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Words of the system turn switch thinking, and are no part of its text."""


def _with_system(system: str) -> Conversation:
    return Conversation(messages=(Message(role="system", content=system), *ROWS["one"].messages))


@pytest.mark.parametrize(
    ("system", "written"),
    [
        ("You build guitars. /no_think", "Thinking: off\nYou build guitars."),
        ("/no_think\nYou build guitars.", "Thinking: off\nYou build guitars."),
        ("/think You build guitars.", "Thinking: on\nYou build guitars."),
        ("/no_think", "Thinking: off\n"),
    ],
)
def test_a_switch_that_the_template_takes_out_of_a_turn_is_no_lost_text(
    system: str, written: str, tmp_path: Path
) -> None:
    template = template_of(make_tiny_model(tmp_path), _SWITCHED)
    assert f"<|im_start|>system\n{written}<|im_end|>\n" in _text(_unit(_with_system(system), template), template)


def test_words_that_a_template_takes_out_beside_a_switch_are_lost_text(tmp_path: Path) -> None:
    template = template_of(make_tiny_model(tmp_path), _SWITCHED)
    for system in ("You build guitars, please, for me.", "You build guitars, please, for me. /no_think"):
        with pytest.raises(TemplateError, match="drops or changes this turn"):
            _unit(_with_system(system), template)


_ALWAYS_OPENS = (
    "{{ bos_token }}{% for m in messages %}<|START|>{% if m.role == 'assistant' %}<|BOT|><|SAY|>{{ m.content }}<|SAID|>"
    "{% else %}<|{{ m.role | upper }}|>{{ m.content }}{% endif %}<|im_end|>{% endfor %}<|START|><|BOT|>"
)
"""The header of an answer is behind every conversation, as in Cohere's template of Command R7B."""


def test_the_header_of_an_answer_behind_every_conversation_is_its_prompt_and_no_part_of_an_answer(
    tmp_path: Path,
) -> None:
    template = template_of(make_tiny_model(tmp_path), _ALWAYS_OPENS)
    question = "<s><|START|><|USER|>Which wood?<|im_end|>"
    first = Conversation(messages=ROWS["one"].messages[:1])
    assert template.render(first, add_generation_prompt=True) == f"{question}<|START|><|BOT|>"
    assert template.render(first) == question
    (row,) = _unit(ROWS["two"], template)
    learned = [token for token, is_learned in zip(row.input_ids, row.loss_mask, strict=True) if is_learned]
    assert decode(template, learned) == "<|SAY|>Spruce wood.<|SAID|><|im_end|><|SAY|>Maple wood.<|SAID|><|im_end|>"
    assert decode(template, list(row.input_ids)) == (
        f"{question}<|START|><|BOT|><|SAY|>Spruce wood.<|SAID|><|im_end|>"
        "<|START|><|USER|>And the back?<|im_end|><|START|><|BOT|><|SAY|>Maple wood.<|SAID|><|im_end|>"
    )


_BARE_CLOSING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}<|THINK|>{{ m.reasoning_content }}{% endif %}<|THOUGHT|>{{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '<|THINK|>' if thinks else '<|THOUGHT|>' }}{% endif %}"
)
"""The tags of a thought begin with the same letters, and an answer without one has the closing tag alone: GLM 4.7."""


def test_tags_that_begin_alike_are_found_whole(tmp_path: Path) -> None:
    template = template_of(make_tiny_model(tmp_path), _BARE_CLOSING)
    assert template.thoughts is not None
    assert (template.thoughts.start, template.thoughts.end) == ("<|THINK|>", "<|THOUGHT|>")
    prompt = "<|im_start|>userWhich wood?<|im_end|><|im_start|>assistant"
    assert _text(_unit(ROWS["one"], template), template) == f"{prompt}<|THOUGHT|>Spruce wood.<|im_end|>"
    thinking = template.with_options({"thinks": True})
    thought = "<|THINK|>It is light and stiff.<|THOUGHT|>"
    assert _text(_unit(ROWS["reasoning"], thinking), thinking) == f"{prompt}{thought}Spruce wood.<|im_end|>"
