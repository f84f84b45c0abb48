"""Rows of preferences: every form gives the same two conversations, and what cannot be preferred is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.conversation import Conversation
from luthier.core.errors import DataError
from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.preference_rows import preference_sides, unpaired_conversation
from luthier.ml.data.split.split import leaked_ids
from luthier.ml.data.text.normalise import content_key

USER = {"role": "user", "content": "Name a colour."}
GOOD, BAD = {"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Seven."}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]

FORMS: dict[str, dict[str, Any]] = {
    "explicit text": {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."},
    "explicit messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "explicit text with whole conversations": {
        "prompt": "Name a colour.",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "turns of ShareGPT, one a side": {
        "prompt": [{"from": "human", "value": "Name a colour."}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Seven."},
    },
    "whole conversations of ShareGPT": {
        "chosen": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue."}],
        "rejected": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Seven."}],
    },
    "messages, one a side": {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    "implicit": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "implicit as JSON text": {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])},
    "openai": {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    "openai of before": {
        "input": {"messages": [USER]},
        "preferred_completion": [GOOD],
        "non_preferred_completion": [BAD],
    },
    "dialogue": {
        "chosen": "\n\nHuman: Name a colour.\n\nAssistant: Blue.",
        "rejected": "\n\nHuman: Name a colour.\n\nAssistant: Seven.",
    },
}


def said(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_two_conversations(form: str) -> None:
    chosen, rejected = preference_sides(FORMS[form])
    assert said(chosen) == [("user", "Name a colour."), ("assistant", "Blue.")]
    assert said(rejected) == [("user", "Name a colour."), ("assistant", "Seven.")]
    assert [m.is_learned for m in chosen.messages] == [m.is_learned for m in rejected.messages] == [False, True]


def test_earlier_answers_are_context_and_the_system_turn_stands_first() -> None:
    before = [USER, {"role": "assistant", "content": "Which kind?"}, {"role": "user", "content": "Any."}]
    chosen, rejected = preference_sides({"chosen": [*before, GOOD], "rejected": [*before, BAD], "system": "Be brief."})
    for side in (chosen, rejected):
        assert [m.role for m in side.messages] == ["system", "user", "assistant", "user", "assistant"]
        assert [m.is_learned for m in side.messages] == [False] * 4 + [True]


def test_tools_of_either_form_are_kept() -> None:
    assert preference_sides({**FORMS["implicit"], "tools": TOOLS})[1].tools == tuple(TOOLS)
    given = {**FORMS["openai"], "input": {"messages": [USER], "tools": TOOLS}}
    assert preference_sides(given)[0].tools == tuple(TOOLS)


OTHER = {"role": "user", "content": "Name a number."}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "rejected", "says the same as chosen"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "rejected", "says the same as chosen"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen", "empty answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "  "}, "rejected", "empty answer"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": []}, "rejected", "empty answer"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected", "is absent or null"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "is empty"),
        ({"chosen": [USER, GOOD], "rejected": [OTHER, BAD]}, "rejected", "answers another prompt"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, OTHER, BAD]}, "rejected", "after 2 common turns"),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [OTHER, BAD]}, "rejected", "answers another prompt"),
        ({"chosen": "Blue.", "rejected": "Seven."}, "chosen", "of which the prompt is not known"),
        ({"prompt": "q", "chosen": [GOOD, BAD], "rejected": [BAD]}, "chosen[1]", "second answer in a row"),
        ({"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": [BAD]}, "chosen", "another prompt"),
        (
            {"input": {"messages": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "input.messages",
            "ends with no turn",
        ),
        ({"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "input.messages", "not a list"),
    ],
)
def test_what_cannot_be_preferred_is_named(row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(BadFieldError, match=reason) as caught:
        preference_sides(row)
    assert caught.value.field == field


@pytest.mark.parametrize(("label", "is_wanted"), [(True, True), (0, False), ("True", True), ("false", False)])
def test_an_unpaired_row_says_whether_its_completion_is_wanted(label: Any, is_wanted: bool) -> None:
    conversation, found = unpaired_conversation({"prompt": [USER], "completion": [GOOD], "label": label})
    assert said(conversation) == [("user", "Name a colour."), ("assistant", "Blue.")]
    assert found is is_wanted


@pytest.mark.parametrize("label", [None, "fine", 2, 0.5])
def test_a_label_that_says_neither_is_named(label: Any) -> None:
    with pytest.raises(BadFieldError, match="is not true or false") as caught:
        unpaired_conversation({"prompt": "q", "completion": "a", "label": label})
    assert caught.value.field == "label"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_shape_is_seen_with_its_reason(tmp_path: Path) -> None:
    found = load_file(write(tmp_path / "pairs.jsonl", [{**FORMS["explicit text"], "score": 3}] * 2))
    assert (found.shape, found.shape_reason) == ("preference", "every row has chosen and rejected (not used: score)")
    found = load_file(write(tmp_path / "openai.jsonl", [FORMS["openai"]]))
    assert found.shape_reason == "every row has preferred_output and non_preferred_output"
    found = load_file(write(tmp_path / "kto.jsonl", [{"prompt": "q", "completion": "a", "label": False}]))
    assert (found.shape, found.shape_reason) == ("unpaired", "every row has prompt and completion and label")
    assert found.examples[0].is_wanted is False


def test_a_chat_file_with_sides_is_one_of_preferences(tmp_path: Path) -> None:
    row = {"prompt": "Name a colour.", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert load_file(write(tmp_path / "rows.jsonl", [row])).shape == "preference"


@pytest.mark.parametrize("words", [("True", "False"), ("true", "false"), ("TRUE", " FALSE")])
def test_labels_that_a_table_writes_as_words_are_those_of_preferences(tmp_path: Path, words: tuple[str, str]) -> None:
    path = tmp_path / "kto.csv"
    path.write_text(f"prompt,completion,label\nq,good,{words[0]}\nq,bad,{words[1]}\n")
    found = load_file(path)
    assert found.shape == "unpaired"
    assert [(one.reference, one.is_wanted) for one in found.examples] == [("good", True), ("bad", False)]
    path.write_text(f"prompt,completion,label\nq,good,{words[0]}\nq,bad,\n")
    with pytest.raises(DataError, match="bad answers would be learned"):
        load_file(path)
    assert load_file(path, mapping={"completion": "completion"}).shape == "prompt_completion"


def test_a_label_that_is_a_class_is_no_preference(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "a", "label": "spam"}])
    assert load_file(path).shape == "prompt_completion"
    both = {"prompt": "prompt", "completion": "completion"}
    assert load_file(path, mapping=both).shape == "prompt_completion"
    flags = write(tmp_path / "flags.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    assert load_file(flags, mapping=both).shape == "prompt_completion"
    assert load_file(flags, mapping={**both, "label": "label"}).shape == "unpaired"


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "q", "better": "a", "worse": "b"}])
    found = load_file(path, mapping={"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert found.shape == "preference"
    rejected = found.examples[0].rejected
    assert rejected is not None
    assert said(rejected) == [
        ("user", "q"),
        ("assistant", "b"),
    ]
    bad = write(tmp_path / "bad.jsonl", [{"question": "q", "better": "a", "worse": "a"}])
    with pytest.raises(DataError) as caught:
        load_file(bad, mapping={"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert [problem.field for problem in caught.value.problems] == ["worse"]


def test_all_wrong_rows_of_a_file_are_listed(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b" if n % 2 else "a"} for n in range(6)]
    with pytest.raises(DataError, match=r"3 of 6 rows of pairs\.jsonl are wrong") as caught:
        load_file(write(tmp_path / "pairs.jsonl", rows))
    assert [problem.line for problem in caught.value.problems] == [1, 3, 5]


def test_dialogues_in_one_text_are_read_from_a_packed_file(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl.gz"
    turns = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A colour?\n\nAssistant: "
    path.write_bytes(gzip.compress(json.dumps({"chosen": turns + "Blue.", "rejected": turns + "No."}).encode()))
    (example,) = load_file(path).examples
    assert example.prompt is not None
    assert said(example.prompt) == [("user", "Hi"), ("assistant", "Hello."), ("user", "A colour?")]
    assert example.reference == "Blue."


def test_the_same_pair_is_a_leak_and_another_choice_only_the_same_prompt(tmp_path: Path) -> None:
    train = load_file(write(tmp_path / "train.jsonl", [FORMS["explicit text"]])).examples
    swapped = {"prompt": "Name a colour.", "chosen": "Seven.", "rejected": "Blue."}
    held_out = load_file(write(tmp_path / "held_out.jsonl", [FORMS["implicit"], swapped])).examples
    found = leaked_ids(train, held_out)
    assert [problem.line for problem in found.exact] == [1]
    assert [problem.line for problem in found.same_prompt] == [2]
    assert content_key(held_out[0]) != content_key(held_out[1])


def _file(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["question", "input", "Instruction"])
def test_answers_alone_have_the_question_beside_them_as_prompt(tmp_path: Path, name: str) -> None:
    row = {"system": "Be brief.", name: "Why?", "chosen": "So.", "rejected": "No."}
    loaded = load_file(_file(tmp_path, row, row | {"chosen": "Therefore."}))
    assert loaded.shape_reason == f"every row has chosen and rejected (prompt = {name})"
    conversation = loaded.examples[0].conversation
    assert conversation is not None
    assert [one.content for one in conversation.messages] == ["Be brief.", "Why?", "So."]


def test_a_question_beside_whole_conversations_is_no_prompt(tmp_path: Path) -> None:
    sides = {side: [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": side}] for side in _SIDES}
    assert load_file(_file(tmp_path, sides | {"question": "Why, then?"})).unused == ("question",)
    two = {"question": "Why?", "instruction": "Answer.", "chosen": "So.", "rejected": "No."}
    with pytest.raises(DataError, match="1 of 1 rows"):
        load_file(_file(tmp_path, two))


_SIDES = ("chosen", "rejected")


def test_functions_of_the_older_format_are_tools_of_both_sides() -> None:
    """Left out, both would be learned behind another prompt than the row says."""
    functions = [one["function"] for one in TOOLS]
    openai = FORMS["openai"]
    for row in (
        FORMS["implicit"] | {"functions": functions},
        openai | {"functions": json.dumps(functions)},
        openai | {"input": {"messages": [USER], "functions": functions}},
    ):
        assert [side.tools for side in preference_sides(row)] == [tuple(TOOLS)] * 2
    both = openai | {"input": {"messages": [USER], "functions": functions, "tools": TOOLS}}
    with pytest.raises(BadFieldError) as caught:
        preference_sides(both)
    assert caught.value.field == "input.functions"


def test_an_unpaired_row_may_have_turns_of_sharegpt() -> None:
    fields = {"prompt": [{"from": "human", "value": "Name a colour."}], "completion": {"from": "gpt", "value": "Blue."}}
    as_messages = {"prompt": [USER], "completion": [GOOD]}
    assert unpaired_conversation(fields | {"label": True}) == unpaired_conversation(as_messages | {"label": True})


def test_a_speaker_that_is_not_known_is_named_with_its_place() -> None:
    fields = {"prompt": "a", "chosen": {"from": "elf", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}
    with pytest.raises(BadFieldError) as caught:
        preference_sides(fields)
    assert caught.value.field == "chosen[0].from"
