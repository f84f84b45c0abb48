"""Prompt/completion, Alpaca and plain text rows."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.chat_rows import alpaca_conversation, plain_text, prompt_completion_conversation


def test_texts_become_a_user_and_an_assistant_turn() -> None:
    conversation = prompt_completion_conversation({"prompt": "q", "completion": " a", "system": "s"})
    assert [(m.role, m.content) for m in conversation.messages] == [("system", "s"), ("user", "q"), ("assistant", " a")]


def test_only_the_completion_is_learned_though_the_prompt_holds_answers() -> None:
    conversation = prompt_completion_conversation(
        {
            "prompt": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "r"},
            ],
            "completion": [{"role": "assistant", "content": "b"}],
        }
    )
    assert [message.is_learned for message in conversation.messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q", "completion": ""}, "completion"),
        ({"prompt": "q", "completion": "\n"}, "completion"),
        ({"prompt": "", "completion": "a"}, "prompt"),
        ({"prompt": None, "completion": "a"}, "prompt"),
        ({"prompt": {"text": "q"}, "completion": "a"}, "prompt"),
        ({"prompt": "q", "completion": []}, "completion"),
        ({"prompt": "q", "completion": [{"role": "user", "content": "x"}]}, "completion[0].role"),
        ({"prompt": ["q"], "completion": "a"}, "prompt[0]"),
        ({"prompt": [{"role": "assistant", "content": "x", "weight": 1}], "completion": "a"}, "prompt[0].weight"),
        ({"prompt": "q", "completion": "a", "label": False}, "label"),
        ({"prompt": "q", "completion": "a", "system": 3}, "system"),
    ],
)
def test_wrong_pairs_are_named(row: dict[str, Any], field: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        prompt_completion_conversation(row)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("row", "request_text"),
    [
        ({"instruction": "Sum up.", "output": "a"}, "Sum up."),
        ({"instruction": "Sum up.", "input": "", "output": "a"}, "Sum up."),
        ({"instruction": "Sum up.", "input": None, "output": "a", "history": []}, "Sum up."),
        ({"instruction": "Sum up.", "input": "Text.", "output": "a"}, "Sum up.\n\nText."),
    ],
)
def test_alpaca_joins_instruction_and_input(row: dict[str, Any], request_text: str) -> None:
    conversation = alpaca_conversation(row)
    assert [(m.role, m.content) for m in conversation.messages] == [("user", request_text), ("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"instruction": "x", "output": ""}, "output"),
        ({"instruction": "", "input": " ", "output": "a"}, "instruction"),
        ({"instruction": "x", "input": 3, "output": "a"}, "input"),
        ({"instruction": "x", "output": "a", "history": [["q", "a"]]}, "history"),
    ],
)
def test_wrong_alpaca_rows_are_named(row: dict[str, Any], field: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        alpaca_conversation(row)
    assert caught.value.field == field


def test_empty_text_is_refused() -> None:
    assert plain_text({"text": " a "}) == " a "
    with pytest.raises(BadFieldError, match="is empty"):
        plain_text({"text": " \n"})
