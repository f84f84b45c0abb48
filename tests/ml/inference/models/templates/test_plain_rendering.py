"""Plain messages are rendered as transformers renders them, and others by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.tokenise.other_tokenizers import make_tokenizer
from tests.vacuous import nonempty

from luthier.ml.inference.models.templates.jinja_sandbox import use_bounded_sandbox
from luthier.ml.inference.models.templates.plain_rendering import is_plain, rendered

USER: dict[str, Any] = {"role": "user", "content": " Q <&> </think> ß\n"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "<think>\nT\n</think>\n\nA"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "S /no_think"}
PLAIN: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER, ANSWER],
    [USER, ANSWER, USER, ANSWER, {**USER, "name": "N"}],
    [ANSWER, USER],
    [{"role": "tool", "content": "1", "tool_call_id": "call12345"}],
    [{"role": "nobody", "content": ""}, USER],
]
OPTIONS: list[dict[str, Any]] = [{}, {"enable_thinking": False, "bos_token": "<other>", "reasoning_effort": "low"}]


def outcome(render: Any, *given: Any, **values: Any) -> Any:
    """What is rendered, or the error."""
    try:
        return render(*given, **values)
    except Exception as error:  # noqa: BLE001 - templates raise anything
        return type(error), str(error)


def test_plain_messages_give_the_text_or_error_of_transformers(shared_data: Path) -> None:
    use_bounded_sandbox()
    num_texts, different = 0, []
    for file in nonempty(sorted((shared_data / "chat_templates").glob("*.jinja"))):
        tokenizer = make_tokenizer("bytes", file.read_text(encoding="utf-8"))
        for number, messages in enumerate(PLAIN):
            for options in OPTIONS:
                assert is_plain(messages, options)
                begins = number % 2 == 0
                ours = outcome(rendered, tokenizer, messages, None, options, add_generation_prompt=begins)
                theirs = outcome(
                    tokenizer.apply_chat_template, messages, tokenize=False, add_generation_prompt=begins, **options
                )
                num_texts += isinstance(ours, str)
                if ours != theirs:
                    different.append((file.name, number, options))
    assert different == []
    assert num_texts > 100


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        ([{**ANSWER, "reasoning_content": "T"}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "Q"}]}], {}),
        ([{"role": "user", "content": None}], {}),
        ([USER], {"names": ["a"]}),
        ([USER], {"padding": True}),
    ],
)
def test_what_transformers_converts_is_not_plain(messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    assert not is_plain(messages, options)


def test_what_is_not_plain_is_rendered_by_transformers() -> None:
    use_bounded_sandbox()
    tokenizer = make_tokenizer("bytes", "{{ messages[0].thinking }}|{{ tools is none }}|{{ names | length }}")
    given = [{"role": "user", "content": "Q", "reasoning": "T"}]
    assert rendered(tokenizer, given, None, {"names": ["a", "b"]}, add_generation_prompt=False) == "T|True|2"
    tool = {"type": "function", "function": {"name": "f"}}
    assert rendered(tokenizer, [USER], [tool], {"names": ""}, add_generation_prompt=False) == "|False|0"


def test_messages_are_not_changed_by_a_template() -> None:
    use_bounded_sandbox()
    tokenizer = make_tokenizer("bytes", "{% set m = messages[0] %}{{ m.update({'content': 'other'}) }}")
    given = [dict(USER)]
    assert outcome(rendered, tokenizer, given, None, {}, add_generation_prompt=False) == outcome(
        tokenizer.apply_chat_template, given, tokenize=False
    )
    assert given == [USER]
