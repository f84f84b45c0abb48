"""The file that a run has divided itself, evaluated again: its held-out rows, in full."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import LeakageError
from luthier.core.evaluation import Evaluation
from luthier.features.evaluations.service import evaluate
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.platform.home.context import Context

SHARE, NUM_ROWS = 0.25, 40


def prompts(evaluation: Evaluation) -> set[str]:
    return {sample.prompt for sample in evaluation.systems[-1].samples}


def test_of_its_training_file_a_run_is_evaluated_by_the_rows_that_it_has_kept_back(
    context: Context, make_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        data={"train": "train.jsonl", "held_out": SHARE},
        training={"epochs": 1, "global_batch_size": 15, "precision": "float32", "num_threads": 1},
        evaluation={"few_shot": 0, "max_new_tokens": 2, "max_samples": 4, "metrics": ["exact_match"]},
    )
    outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
    assert outcome.evaluation is not None
    assert outcome.evaluation.num_rows == 4, "a quick run evaluates a part of them"
    run_id, copy = outcome.record.run_id, tmp_path / "uploaded.jsonl"
    shutil.copy(recipe.parent / "train.jsonl", copy)
    again = evaluate(context, [run_id, str(tiny_model)], data=copy, metrics=["exact_match"], max_new_tokens=2)
    assert again.num_rows == SHARE * NUM_ROWS
    assert prompts(outcome.evaluation) < prompts(again)
    assert again.held_out_sha256 == outcome.evaluation.held_out_sha256
    (note,) = [one for one in again.rows_notes if "has kept back" in one]
    assert note.startswith(f"Of this file 10 rows are evaluated, which run {run_id} has kept back")
    assert again.verdict is not None
    assert again.verdict.num_leaked == 0

    asked = evaluate(
        context, [run_id, str(tiny_model)], data=copy, metrics=["exact_match"], max_new_tokens=2, allow_leakage=True
    )
    assert asked.num_rows == NUM_ROWS, "all rows were asked for"
    write_rows(copy, [chat_row(n) for n in range(NUM_ROWS + 1)])
    with pytest.raises(LeakageError, match="30 of 41 held-out rows are in the training rows"):
        evaluate(context, [run_id, str(tiny_model)], data=copy, metrics=["exact_match"], max_new_tokens=2)
