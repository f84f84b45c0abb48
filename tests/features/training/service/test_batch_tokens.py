"""Runs whose batch is set in tokens: trained as with that many examples, and resumed to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import RecipeError
from luthier.core.events import StepDone
from luthier.features.planning.format import plan_lines
from luthier.features.planning.service import make_plan, with_batch_and_rate
from luthier.features.recipes.service import load_recipe
from luthier.features.training import service as training_module
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
TRAINING = {"max_steps": 3, "learning_rate": 0.01, "precision": "float32", "num_threads": 1,
            "checkpoint_every_steps": 1}  # fmt: skip


def run(context: Context, path: Path) -> TrainOutcome:
    return train(context, load_recipe(path), base_dir=path.parent)


def test_it_trains_as_with_that_many_examples_and_resumes_to_the_byte(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_rows = make_recipe(training=TRAINING | {"global_batch_size": 4}, evaluation={"few_shot": 0})
    plan = make_plan(context, load_recipe(by_rows), base_dir=by_rows.parent)
    mean = plan.data.train.num_tokens / plan.data.train.num_examples
    expected = run(context, by_rows).as_json()
    by_tokens = make_recipe(training=TRAINING | {"global_batch_tokens": round(4 * mean)}, evaluation={"few_shot": 0})
    real = training_module.recorder

    def dying(context: Context, run_id: str, warnings: list[str], listener: Any = None, **given: Any) -> Any:
        inner = real(context, run_id, warnings, listener, **given)

        def emit(event: Any) -> None:
            inner(event)
            if isinstance(event, StepDone) and event.step == 2:
                raise KeyboardInterrupt

        return emit

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "recorder", dying)
        with pytest.raises(KeyboardInterrupt):
            run(context, by_tokens)
    paused = next(record for record in context.runs.list() if record.status == "paused")
    found = resume(context, paused.run_id).as_json()
    assert (found["adapter_sha256"], found["train_loss"]) == (expected["adapter_sha256"], expected["train_loss"])


def test_the_plan_says_examples_and_tokens(context: Context, make_recipe: MakeRecipe) -> None:
    path = make_recipe(training=TRAINING | {"global_batch_tokens": 200})
    plan = make_plan(context, load_recipe(path), base_dir=path.parent)
    line = next(line for line in plan_lines("", plan) if line.startswith("  training"))
    assert f"of {plan.training.global_batch_size} examples (about " in line
    assert "training.global_batch_tokens 200)" in line


def test_what_is_compared_with_a_run_has_its_examples(context: Context, make_recipe: MakeRecipe) -> None:
    path = make_recipe(training=TRAINING | {"global_batch_tokens": 200})
    recipe = load_recipe(path)
    plan = make_plan(context, recipe, base_dir=path.parent)
    same = with_batch_and_rate(recipe, plan)
    again = make_plan(context, same, base_dir=path.parent)
    assert same.training is not None
    assert same.training.global_batch_tokens is None
    assert again.training == plan.training


def test_replayed_rows_need_a_number_of_examples(context: Context, make_recipe: MakeRecipe) -> None:
    path = make_recipe(training=TRAINING | {"global_batch_tokens": 200})
    write_rows(path.parent / "general.jsonl", [chat_row(n) for n in range(500, 540)])
    recipe = load_recipe(path, ["data.replay.file=general.jsonl"])
    with pytest.raises(RecipeError, match=r"global_batch_tokens 200 with data\.replay") as caught:
        make_plan(context, recipe, base_dir=path.parent)
    assert caught.value.do == "set training.global_batch_size in its place"
