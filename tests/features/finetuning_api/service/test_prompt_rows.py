"""Rows of reinforcement jobs that end with the user's message, as OpenAI's do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.features.finetuning_api.job import ANSWER, with_answers

PROMPT = {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": 4}
ANSWERED = {"messages": [{"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}]}


def write(folder: Path, lines: list[Any]) -> Path:
    path = folder / "training.jsonl"
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines), encoding="utf-8")
    return path


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_that_end_with_a_prompt_get_an_answer_and_keep_their_fields(tmp_path: Path) -> None:
    made = with_answers(write(tmp_path, [PROMPT, ANSWERED]), needs_reference=False)
    assert made.name == "training-prompts.jsonl"
    asked, answered = rows(made)
    assert asked == PROMPT | {"messages": [*PROMPT["messages"], {"role": "assistant", "content": ANSWER}]}
    assert answered == ANSWERED
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    (tmp_path / "training.jsonl").unlink()
    assert with_answers(tmp_path / "training.jsonl", needs_reference=False) == made  # made once


@pytest.mark.parametrize(("own", "answer"), [("four", "four"), (4, "4"), ({"n": 4}, '{"n": 4}'), ("", ANSWER)])
def test_the_field_reference_of_a_row_is_its_answer(own: object, answer: str, tmp_path: Path) -> None:
    made = with_answers(write(tmp_path, [PROMPT | {"reference": own}]), needs_reference=True)
    assert rows(made)[0]["messages"][-1] == {"role": "assistant", "content": answer}


def test_a_grader_that_reads_the_answer_needs_one_in_each_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training.jsonl:2 ends with a prompt and has no field reference"):
        with_answers(write(tmp_path, [ANSWERED, PROMPT]), needs_reference=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["training.jsonl"]


@pytest.mark.parametrize("lines", [[ANSWERED], ["no JSON", "[1]", '{"messages": []}', '{"messages": ["x"]}'], []])
def test_files_without_such_rows_are_used_as_they_are(lines: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path, lines)
    assert with_answers(path, needs_reference=True) == path


def test_wrong_lines_keep_their_place_and_their_bytes(tmp_path: Path) -> None:
    made = with_answers(write(tmp_path, [PROMPT, "no JSON", "", PROMPT]), needs_reference=False)
    lines = made.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    assert lines[1:3] == ["no JSON", ""]
