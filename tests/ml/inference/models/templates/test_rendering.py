"""Templates are rendered without transformers as transformers renders them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.vacuous import nonempty
from transformers.utils.chat_template_utils import render_jinja_template

from luthier.ml.inference.models.templates.jinja_sandbox import use_bounded_sandbox
from luthier.ml.inference.models.templates.rendering import render_template

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "It's <b>bold</b>.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "Größe"}}},
    },
}
CALL = {"type": "function", "id": "call12345", "function": {"name": "f", "arguments": {"a": "1"}}}
USER: dict[str, Any] = {"role": "user", "content": "Q <&>"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "S"}, USER, {"role": "assistant", "content": "A", "reasoning_content": "T"}, USER],
    [USER, {"role": "assistant", "content": "A", "thinking": "T"}],
    [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1", "name": "f"}],
    [{"role": "user", "content": [{"type": "text", "text": "Q"}]}],
]
OPTIONS: dict[str, Any] = {"enable_thinking": False, "thinking": True, "reasoning_effort": "low"}


def outcome(render: Any, *given: Any, **values: Any) -> Any:
    """What is rendered, or the kind of error."""
    try:
        return render(*given, **values)
    except Exception as error:  # noqa: BLE001 - templates raise anything
        return type(error)


def test_every_template_gives_the_same_text_or_error(shared_data: Path) -> None:
    use_bounded_sandbox()
    num_texts, different = 0, []
    for file in nonempty(sorted((shared_data / "chat_templates").glob("*.jinja"))):
        template = file.read_text(encoding="utf-8")
        for number, messages in enumerate(CONVERSATIONS):
            # Every second one with tools and options, without the beginning of an answer.
            tools, prompts, values = ([TOOL], False, OPTIONS) if number % 2 else (None, True, {})
            given = {"bos_token": "<s>", "eos_token": "</s>"} | values
            ours = outcome(
                render_template, template, messages, tools=tools, add_generation_prompt=prompts, values=given
            )
            theirs = outcome(
                render_jinja_template,
                [messages],
                tools=tools,
                chat_template=template,
                add_generation_prompt=prompts,
                **given,
            )
            num_texts += isinstance(ours, str)
            if ours != (theirs if isinstance(theirs, type) else theirs[0][0]):
                different.append((file.name, number))
    assert different == []
    assert num_texts > 60


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ dict(a=1) | tojson }}{{ dict.fromkeys(['b'], 2) | tojson(indent=1) }}", '{"a": 1}{\n "b": 2\n}'),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}a{% endgeneration %}{{ x }}", "a1"),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}", "Q <&>"),
        ("{{ strftime_now('%Y') }}", "2025"),
    ],
)
def test_functions_of_templates(template: str, text: str) -> None:
    use_bounded_sandbox()
    assert render_template(template, [USER, USER]) == text
    assert render_jinja_template([[USER, USER]], chat_template=template)[0][0] == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ broken",
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__class__ }}{{ ''.__class__.__mro__ }}",
        "{% for i in range(9999999) %}{% endfor %}",
    ],
)
def test_a_template_that_may_not_be_rendered_is_an_error(template: str) -> None:
    with pytest.raises((jinja2.TemplateError, OverflowError)):
        render_template(template, [USER])
