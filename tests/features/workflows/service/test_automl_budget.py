"""A budget that cannot be enough is refused before any row is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.workflows.pipeline import Contender
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.automl.report import further_prompts
from luthier.features.workflows.automl.request import refuse_hopeless_hours, shortest_row_tokens
from luthier.platform.home.context import Context


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": "x" * 700, "completion": "y" * 80}) + "\n" for _ in range(200)))
    return file


def refuse(context: Context, hours: float, model: Path, data: Path) -> None:
    refuse_hopeless_hours(context, hours=hours, share=0.3, models=[str(model)], data=data)


def test_the_refusal_says_what_the_least_is(context: Context, tiny_model: Path, data: Path) -> None:
    with pytest.raises(BudgetTooSmallError) as caught:
        refuse(context, 1e-9, tiny_model, data)
    assert "--budget-hours 1e-09" in caught.value.came
    least = float(caught.value.expected.split()[0])
    refuse(context, 1.1 * least, tiny_model, data)
    with pytest.raises(BudgetTooSmallError):
        refuse(context, 0.8 * least, tiny_model, data)


def test_further_ways_to_prompt_take_a_tenth_of_the_hours_at_most() -> None:
    usual = {"zero-shot": 1.0, "few-shot": 2.0, "few-shot-nearest": 3.0, "likeliest-label": 1.0}
    one = Contender.model_construct(label="one", judging_seconds=usual)
    # 100 rows: three more draws take 600 s, and a search as long as the nearest examples, 300 s.
    assert further_prompts(one, 100, 2.5) == (4, True, 900.0, "")
    assert further_prompts(one, 100, 2.0)[:3] == (4, False, 600.0)
    assert further_prompts(one, 100, 2.0).left_out == (
        "Left out of the ways to prompt one: a search, which would take more than 10% of the 2 h."
    )
    assert further_prompts(one, 100, 1.0)[:3] == (1, True, 300.0)
    assert further_prompts(one, 100, 0.8)[:3] == (1, False, 0.0)
    assert "further draws of examples and a search" in further_prompts(one, 100, 0.8).left_out
    text = Contender.model_construct(label="one", judging_seconds={"zero-shot": 1.0})
    assert further_prompts(text, 100, 1.0) == (1, False, 0.0, "")  # plain text has no prompt to put examples into


def test_rows_are_never_taken_for_longer_than_they_are(data: Path, tmp_path: Path) -> None:
    assert 80 < shortest_row_tokens(data) < 120  # some 810 bytes a row, eight to a token
    assert shortest_row_tokens(tmp_path) == 8  # documents: nothing is known of their rows
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    assert shortest_row_tokens(empty) == 8
