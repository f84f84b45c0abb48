"""Prompt/completion, Alpaca and plain text rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.chat_rows import alpaca_conversation, plain_text, prompt_completion_conversation
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.preference_rows import preference_sides


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
        ({"instruction": "x", "output": "a", "history": ["q", "a"]}, "history[0]"),
        ({"instruction": "x", "output": "a", "history": [["q", "a", "b"]]}, "history[0]"),
        ({"instruction": "x", "output": "a", "history": [["q", "a"], ["r", " "]]}, "history[1][1]"),
        ({"instruction": "x", "output": "a", "history": [["q", 3]]}, "history[0][1]"),
        ({"instruction": "x", "output": "a", "history": {"q": "a"}}, "history"),
        ({"instruction": "x", "output": "a", "history": "q"}, "history"),
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


@pytest.mark.parametrize("history", [[["q", "a"], ["r", "b"]], '[["q", "a"], ["r", "b"]]'])
def test_the_history_of_an_alpaca_row_is_its_earlier_turns(history: Any) -> None:
    """As in LLaMA-Factory, whose answers in a history are learned, too."""
    row = {"instruction": "x", "output": "c", "history": history, "system": "Be kind."}
    messages = alpaca_conversation(row).messages
    assert [m.content for m in messages] == ["Be kind.", "q", "a", "r", "b", "x", "c"]
    assert [m.role for m in messages[1:]] == ["user", "assistant"] * 3
    assert [m.is_learned for m in messages[2::2]] == [True] * 3


def test_turns_as_json_text_are_turns(tmp_path: Path) -> None:
    """CSV has no lists: as plain text, the model would learn to write JSON."""
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]
    row = {"prompt": json.dumps(prompt), "completion": json.dumps([{"role": "assistant", "content": "a"}])}
    messages = prompt_completion_conversation(row).messages
    assert [(m.role, m.content) for m in messages] == [("system", "Be kind."), ("user", "q"), ("assistant", "a")]
    chosen, rejected = preference_sides(
        {
            "prompt": json.dumps(prompt),
            "chosen": json.dumps([*prompt, {"role": "assistant", "content": "a"}]),
            "rejected": json.dumps([*prompt, {"role": "assistant", "content": "b"}]),
        }
    )
    assert [m.content for m in chosen.messages] == ["Be kind.", "q", "a"]
    assert [m.content for m in rejected.messages] == ["Be kind.", "q", "b"]


def test_json_that_is_no_list_of_turns_stays_a_text() -> None:
    row = {"prompt": 'Sort [{"role": 1}]', "completion": '[{"role": "admin"}, {"role": "guest"}]'}
    assert [m.content for m in prompt_completion_conversation(row).messages] == [row["prompt"], row["completion"]]


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_turns_as_python_prints_them_are_named(field: str) -> None:
    row = {"prompt": "q", "completion": "a"} | {field: str([{"role": "assistant", "content": "it's so"}])}
    with pytest.raises(BadFieldError, match="as Python prints it") as caught:
        prompt_completion_conversation(row)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("good", "bad"),
    [(1, 0), (1, -1), ("1", "0"), ("good", "bad"), ("desirable", "undesirable"), ("chosen", "rejected")],
)
def test_labels_that_may_say_which_answers_are_bad_need_a_decision(tmp_path: Path, good: Any, bad: Any) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "label": good if n % 2 else bad} for n in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match="which completions are bad") as caught:
        load_file(path)
    assert "--map label=label" in caught.value.do
    kto = load_file(path, mapping={"label": "label"})
    assert (kto.shape, [example.is_wanted for example in kto.examples]) == ("unpaired", [False, True] * 3)
    assert load_file(path, mapping={"completion": "completion"}).shape == "prompt_completion"
    path.write_text("".join(json.dumps(row | {"label": f"class {row['label']}"}) + "\n" for row in rows))
    assert load_file(path).shape == "prompt_completion"
