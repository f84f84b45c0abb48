"""Rows that end with a prompt, as reinforcement takes them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import LoadedFile, load_file
from luthier.ml.data.rows.prompt_rows import ANSWER, PromptRule

ASKED = [{"role": "user", "content": "2 + 2?"}]
PROMPT = {"messages": ASKED, "answer": 4}
ANSWERED = {"messages": [*ASKED, {"role": "assistant", "content": "6"}]}
PLAIN, NEEDING = PromptRule(needs_reference=False), PromptRule(needs_reference=True)


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows), encoding="utf-8")
    return path


def taken(path: Path, rule: PromptRule | None = PLAIN, **mapping: str) -> LoadedFile:
    return load_file(path, mapping=mapping or None, prompts=rule)


def answers(loaded: LoadedFile) -> list[tuple[str | None, bool]]:
    return [(example.reference, example.has_answer) for example in loaded.examples]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (PROMPT, "chat"),
        ({"messages": [{"role": "system", "content": "Add."}, *ASKED]}, "chat"),
        ({"prompt": "2 + 2?", "solution": 4}, "prompt_completion"),
        ({"prompt": "2 + 2?", "completion": None}, "prompt_completion"),
        ({"prompt": ASKED}, "prompt_completion"),
        ({"instruction": "Add.", "input": "2 + 2"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}]}, "sharegpt"),
        ({"conversations": ASKED}, "sharegpt"),
    ],
)
def test_rows_of_every_shape_that_end_with_a_prompt_are_taken(row: dict[str, Any], shape: str, tmp_path: Path) -> None:
    path = write(tmp_path, [row])
    loaded = taken(path)
    assert (loaded.shape, answers(loaded)) == (shape, [(ANSWER, False)])
    prompt = loaded.examples[0].prompt
    assert prompt is not None
    assert "2 + 2" in (prompt.messages[-1].content or "")
    # The file is as it was: the plan has its digest, and graders read its own fields.
    assert json.loads(path.read_text()) == row
    with pytest.raises(DataError):
        taken(path, None)


def test_rows_with_and_without_answers_lie_in_one_file_and_keep_their_lines(tmp_path: Path) -> None:
    loaded = taken(write(tmp_path, [PROMPT, ANSWERED]))
    assert [example.id for example in loaded.examples] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert answers(loaded) == [(ANSWER, False), ("6", True)]
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        taken(write(tmp_path, [PROMPT, "no JSON"]))


@pytest.mark.parametrize(("own", "answer"), [("four", "four"), (4, "4"), ({"n": 4}, '{"n": 4}')])
def test_the_field_reference_of_a_row_is_its_answer(own: object, answer: str, tmp_path: Path) -> None:
    path = write(tmp_path, [PROMPT | {"reference": own}])
    assert answers(taken(path, NEEDING)) == answers(taken(path)) == [(answer, True)]


def test_a_reward_that_compares_with_the_answer_needs_one_in_each_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 3 rows of rows\.jsonl are wrong") as caught:
        taken(write(tmp_path, [PROMPT, ANSWERED, {"messages": ASKED}]), NEEDING)
    assert [(one.line, one.field) for one in caught.value.problems] == [(1, "reference"), (3, "reference")]
    assert "has nothing in a field reference" in str(caught.value)
    blank = write(tmp_path, [PROMPT | {"reference": " "}])
    assert answers(taken(blank)) == [(ANSWER, False)]
    with pytest.raises(DataError, match="1 of 1 rows"):
        taken(blank, NEEDING)


def test_columns_that_are_mapped_and_cells_that_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "result"], ["2 + 2?", "4"], ["3 + 3?", ""]])
    loaded = taken(path, prompt="question")
    assert [example.reference for example in loaded.examples] == [ANSWER, ANSWER]
    assert loaded.unused == ("result",)


def test_an_answer_in_a_column_with_other_capitals_is_the_rows_own(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "2 + 2?", "Completion": "4"}, {"prompt": "3 + 3?", "Completion": "6"}])
    assert answers(taken(path, NEEDING)) == answers(taken(path)) == [("4", True), ("6", True)]
    assert answers(taken(write(tmp_path, [{"Prompt": "2 + 2?"}]))) == [(ANSWER, False)]


def test_preference_pairs_get_no_answer(tmp_path: Path) -> None:
    loaded = taken(write(tmp_path, [{"prompt": "Which?", "chosen": "a", "rejected": "b"}]))
    assert loaded.shape == "preference"
