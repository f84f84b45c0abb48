"""Every method from recipe to verdict: trained, judged as it was trained, judged again by its run's id, reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.features.training.service.test_service import Child, _after
from tests.fixtures.forked_children import SessionForkServer

from luthier.features.evaluations.service import evaluate
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, train
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
QUICK = {
    "epochs": 2,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "early_stopping_patience": 0,
}


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def asked(name: str) -> dict[str, Any]:
    """Settings that fit the tiny model, whose smallest matrix is 16 wide."""
    low_rank = name not in ("full", "ia3", "prompt_tuning", "adalora")
    return {"name": name} | ({"rank": 4} if low_rank else {}) | ({"quantisation": "int8"} if name == "qlora" else {})


@pytest.mark.parametrize("name", METHODS)
def test_the_whole_way(context: Context, make_recipe: MakeRecipe, name: str) -> None:
    # AdaLoRA needs its ten steps; one system of the base is enough to compare with.
    training = QUICK if name == "adalora" else QUICK | {"epochs": 1}
    evaluation = {"few_shot": 0, "instruction": False, "max_new_tokens": 8}
    recipe = make_recipe(method=asked(name), training=training, evaluation=evaluation)
    outcome = run(context, recipe)
    result, evaluation = outcome.record.result, outcome.evaluation
    assert result is not None
    assert evaluation is not None
    assert result.num_trainable_parameters == outcome.plan.method.num_trainable_parameters
    assert 0 < result.trainable_fraction <= 1
    assert result.peak_memory_bytes > 0
    # What is evaluated is what was trained: the judge's perplexity of the tuned model is not the base's.
    base, tuned = (s.metrics["perplexity"].value for s in evaluation.systems if s.kind == "model")
    assert tuned != base
    again = evaluate(
        context,
        [outcome.record.run_id, outcome.plan.base_model.name],
        data=recipe.parent / "test.jsonl",
        max_new_tokens=8,
    )
    assert again.systems[-1].metrics["perplexity"].value == pytest.approx(tuned, rel=1e-6)
    page = Path(outcome.record.report_path or "").read_text(encoding="utf-8")
    assert ("Rank of each matrix at the end" in page) == (name == "adalora")
    if name == "adalora":
        assert sum(result.ranks.values()) == 16 * len(result.ranks) == 16 * 14
    else:
        assert result.ranks == {}


def test_validation_and_judging_agree_on_the_tuned_model(context: Context, make_recipe: MakeRecipe) -> None:
    """On the same rows, the loss of the last validation and the judge's likelihood are the same number."""
    import math

    for name in ("adalora", "qlora", "prompt_tuning", "pissa"):
        data = {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "valid2.jsonl"}
        recipe = make_recipe(method=asked(name), data=data, training=QUICK, evaluation={"metrics": ["perplexity"]})
        (recipe.parent / "valid2.jsonl").write_bytes((recipe.parent / "valid.jsonl").read_bytes())
        outcome = run(context, recipe)
        assert outcome.record.result is not None
        assert outcome.evaluation is not None
        judged = math.log(outcome.evaluation.systems[-1].metrics["perplexity"].value)
        assert judged == pytest.approx(outcome.record.result.best_validation_loss, rel=1e-4), name


@pytest.mark.drill
def test_kill_9_gives_the_undisturbed_ranks_and_bytes(
    context: Context, make_recipe: MakeRecipe, fork_server: SessionForkServer
) -> None:
    training = QUICK | {"epochs": 8, "checkpoint_every_steps": 2}
    recipe = make_recipe(method={"name": "adalora"}, training=training, data={"train": "train.jsonl"})
    expected = run(context, recipe).as_json()
    child = Child(fork_server, context.home, "train", str(recipe))
    run_id = _after(context, child, expected["run_id"])
    for step in (12, 30):  # of 40: in the reallocation, and in the final phase
        assert child.wait_for_step(context, step) == run_id
        child.process.kill()
        child.process.communicate()
        child = Child(fork_server, context.home, "resume", run_id)
    document = child.finish()
    assert document["status"] == "succeeded"
    assert document["adapter_sha256"] == expected["adapter_sha256"]
    assert document["ranks"] == expected["ranks"]
    assert document["train_loss"] == expected["train_loss"]


def test_bad_methods_are_refused_before_anything_is_trained(context: Context, make_recipe: MakeRecipe) -> None:
    from luthier.core.errors import RecipeError

    for method, words in (
        ({"name": "adalora", "warmup_steps": 10}, "in a run of 10 steps"),
        ({"name": "dora", "rank": 99}, "a rank of at most 16"),
        ({"name": "pissa", "targets": "q_prj"}, "nearest: q_proj"),
        ({"name": "full", "quantisation": "int8"}, "method.quantisation"),
        ({"name": "prompt_tuning", "num_virtual_tokens": 511}, "room for a text"),
    ):
        with pytest.raises(RecipeError, match=words):
            run(context, make_recipe(method=method, training=QUICK))
    assert context.runs.list(limit=5) == []
