"""Preferences the whole way: rows in, a tuned model and a verdict out; killed, it ends with the same bytes."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.fixtures.forked_children import SessionForkServer
from tests.vacuous import nonempty

from luthier.core.errors import DataError, LeakageError, OverlongError, RecipeError, RequestError
from luthier.core.events import StepDone, ValidationDone
from luthier.features.datasets import previews as datasets
from luthier.features.evaluations.service import evaluate
from luthier.features.planning.quotes import exact_batches, quote_of
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.repeated_runs import _ready
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.training.distributed import World
from luthier.platform.home.context import Context
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]


def pair(number: int) -> dict[str, Any]:
    start = f"After {number} comes"
    return {
        "prompt": f"What comes after {number}?",
        "chosen": f"{start} {number + 1}.",
        "rejected": f"{start} {number + 7}, or so it is said.",
    }


def single(number: int) -> dict[str, Any]:
    row = pair(number)
    is_good = number % 3 > 0
    return {"prompt": row["prompt"], "completion": row["chosen" if is_good else "rejected"], "label": is_good}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def recipe_of(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes files of pairs and of single answers, and a recipe on one of them."""

    def make(objective: dict[str, Any] | None, kind: str = "pairs", **sections: Any) -> Path:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        for name, first, num in (("train", 0, 24), ("valid", 100, 6), ("test", 200, 8)):
            write_rows(folder / f"pairs-{name}.jsonl", [pair(n) for n in range(first, first + num)])
            write_rows(folder / f"singles-{name}.jsonl", [single(n) for n in range(first, first + num)])
        data = {"train": f"{kind}-train.jsonl", "validation": f"{kind}-valid.jsonl", "held_out": "pairs-test.jsonl"}
        recipe = {
            "base_model": str(tiny_model),
            "data": data,
            "method": {"name": "lora", "rank": 4, "dropout": 0.1},
            "training": {
                "epochs": 2,
                "global_batch_size": 8,
                "learning_rate": 0.01,
                "precision": "float32",
                "num_threads": 1,
                "validate_every_steps": 3,
                "checkpoint_every_steps": 2,
                "early_stopping_patience": 0,
            },
        } | sections
        if objective is not None:
            recipe["objective"] = objective
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return make


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def ready(context: Context, recipe: Path) -> Prepared:
    return prepare(context, load_recipe(recipe), base_dir=recipe.parent)


@pytest.mark.parametrize(
    ("name", "kind", "num_steps"),
    [
        ("dpo", "pairs", 6),
        ("ipo", "pairs", 6),
        ("orpo", "pairs", 6),
        ("simpo", "pairs", 6),
        ("kto", "singles", 6),
        ("kto", "pairs", 12),
    ],
)
def test_each_objective_the_whole_way(
    context: Context, recipe_of: MakeRecipe, name: str, kind: str, num_steps: int
) -> None:
    """Each learns the preference; KTO takes the two sides of a pair as two examples."""
    outcome = run(context, recipe_of({"name": name}, kind))
    document = outcome.as_json()
    assert (document["status"], document["num_steps"]) == ("succeeded", num_steps)
    events = context.runs.events(document["run_id"])
    steps = [event for event in events if isinstance(event, StepDone)]
    validations = [event for event in events if isinstance(event, ValidationDone)]
    assert all(nonempty(math.isfinite(value) for step in steps for value in step.measures.values()))
    assert steps[-1].measures["reward_accuracy"] > 0.8
    assert validations[-1].measures["chosen_reward"] > validations[-1].measures["rejected_reward"]
    assert document["num_examples"] == 2 * outcome.plan.data.train.num_examples
    evaluation = outcome.evaluation
    assert evaluation is not None
    base, tuned = evaluation.systems
    assert list(base.metrics) == ["reward_accuracy", "preference_accuracy", "preference_margin", "perplexity"]
    assert base.metrics["reward_accuracy"].value == 0.5
    assert tuned.metrics["reward_accuracy"].value > 0.7
    assert tuned.metrics["preference_margin"].value > base.metrics["preference_margin"].value
    assert evaluation.verdict is not None
    assert evaluation.verdict.metric == "reward_accuracy"
    page = Path(document["report_path"]).read_text(encoding="utf-8")
    assert "Reward accuracy" in page
    assert "nats a trained token" not in page


def test_losses_before_the_first_update(context: Context, recipe_of: MakeRecipe) -> None:
    """Nothing has moved: DPO's loss is log 2, and IPO's is the square of the margin that is to be reached."""
    for name, expected in (("dpo", math.log(2)), ("ipo", 25.0)):
        recipe = recipe_of({"name": name}, method={"name": "lora", "rank": 4, "dropout": 0.0})
        document = yaml.safe_load(recipe.read_text())
        document["training"]["max_steps"] = 1
        del document["training"]["epochs"], document["data"]["held_out"]
        recipe.write_text(yaml.safe_dump(document))
        outcome = run(context, recipe)
        first = next(e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone))
        assert first.loss == pytest.approx(expected, abs=1e-3)


def test_shared_prompts_change_the_work_and_not_the_losses(context: Context, recipe_of: MakeRecipe) -> None:
    losses, computed = {}, {}
    for shares in (False, True):
        recipe = recipe_of({"name": "dpo"}, method={"name": "lora", "rank": 4, "dropout": 0.0})
        document = yaml.safe_load(recipe.read_text())
        document["training"]["shared_prefix"] = shares
        del document["data"]["held_out"]
        recipe.write_text(yaml.safe_dump(document))
        outcome = run(context, recipe)
        events = context.runs.events(outcome.record.run_id)
        losses[shares] = [e.loss for e in events if isinstance(e, StepDone | ValidationDone)]
        computed[shares] = exact_batches(ready(context, recipe), micro_batch_tokens=4096).num_computed
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert computed[True] < 0.8 * computed[False]


def test_killed_in_the_middle_it_ends_with_the_same_bytes(
    context: Context, recipe_of: MakeRecipe, fork_server: SessionForkServer
) -> None:
    recipe = recipe_of({"name": "dpo"})
    document = yaml.safe_load(recipe.read_text())
    document["training"]["epochs"] = 4
    del document["data"]["held_out"]
    recipe.write_text(yaml.safe_dump(document))
    expected = run(context, recipe)
    with fork_server.module("tests.fixtures.training_child", context.home, "train", recipe, 9) as child:
        end = time.monotonic() + 120
        newest = context.runs.list(limit=1)[0]
        while time.monotonic() < end and (newest.run_id == expected.record.run_id or newest.step < 9):
            assert child.poll() is None
            time.sleep(0.01)
            newest = context.runs.list(limit=1)[0]
        os.kill(child.pid, signal.SIGKILL)
    reference = context.settings.run_folder(newest.run_id) / "reference.safetensors"
    content = reference.read_bytes()
    assert content == (context.settings.run_folder(expected.record.run_id) / reference.name).read_bytes()
    again = resume(context, newest.run_id)
    assert again.as_json()["adapter_sha256"] == expected.as_json()["adapter_sha256"]
    assert again.as_json()["train_loss"] == expected.as_json()["train_loss"]
    assert reference.read_bytes() == content


def test_a_pair_is_two_rows_in_the_plan_and_the_reference_stands_in_the_quote(
    context: Context, recipe_of: MakeRecipe
) -> None:
    dpo = ready(context, recipe_of({"name": "dpo"}))
    profile = dpo.plan.data.train
    assert (profile.num_rows, profile.num_examples, len(dpo.train.tokenised)) == (24, 24, 48)
    assert profile.num_tokens == sum(row.num_tokens for row in dpo.train.tokenised)
    assert exact_batches(dpo, micro_batch_tokens=4096).num_tokens == pytest.approx(profile.num_tokens / 3)
    assert dpo.plan.training.num_steps == 6
    kto = ready(context, recipe_of({"name": "kto"}))
    assert (kto.plan.data.train.num_rows, kto.plan.data.train.num_examples) == (24, 48)
    parts = {name: quote_of(context, made).hours_by_part for name, made in (("dpo", dpo), ("kto", kto))}
    simpo = quote_of(context, ready(context, recipe_of({"name": "simpo"}))).hours_by_part
    assert "reference" not in simpo
    assert 0 < parts["dpo"]["reference"].value < parts["dpo"]["steps"].value
    assert parts["kto"]["reference"].value > 1.2 * parts["dpo"]["reference"].value
    assert parts["dpo"]["steps"].value == pytest.approx(simpo["steps"].value, rel=0.01)


def test_a_probe_runs_the_steps_of_an_objective(context: Context, recipe_of: MakeRecipe) -> None:
    for name, kind in (("dpo", "pairs"), ("kto", "singles")):
        assert quote_of(context, ready(context, recipe_of({"name": name}, kind)), is_probed=True).prediction.calibrated


@pytest.mark.parametrize(
    ("objective", "kind", "said", "do"),
    [
        (None, "pairs", "objective sft with preference rows", "completion=chosen"),
        ({"name": "sft"}, "singles", "objective sft with unpaired rows", "bad answers would be learned too"),
        ({"name": "dpo"}, "singles", "objective dpo with unpaired rows", "give it such rows"),
        ({"name": "ipo", "label_smoothing": 0.1}, "pairs", "objective ipo with objective.label_smoothing", "remove"),
        ({"name": "simpo", "nll_over": "all"}, "pairs", "objective simpo with objective.nll_over", "remove"),
    ],
)
def test_objectives_that_do_not_go_with_the_rows_are_refused(
    context: Context, recipe_of: MakeRecipe, objective: dict[str, Any] | None, kind: str, said: str, do: str
) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        run(context, recipe_of(objective, kind))
    assert do in caught.value.do
    assert not context.runs.list()


def test_what_cannot_be_learned_or_judged_is_refused(context: Context, recipe_of: MakeRecipe) -> None:
    recipe = recipe_of({"name": "dpo"})
    write_rows(recipe.parent / "pairs-train.jsonl", [pair(1), pair(2) | {"rejected": pair(2)["chosen"]}, pair(3)])
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        run(context, recipe)
    assert "says the same as chosen" in str(caught.value)
    recipe = recipe_of({"name": "kto"}, "singles")
    write_rows(recipe.parent / "singles-train.jsonl", [single(n) | {"label": True} for n in range(9)])
    with pytest.raises(DataError, match=r"all 9 training rows .* have label True"):
        run(context, recipe)
    recipe = recipe_of({"name": "kto"}, "singles")
    document = yaml.safe_load(recipe.read_text())
    document["data"]["held_out"] = "singles-test.jsonl"
    recipe.write_text(yaml.safe_dump(document))
    with pytest.raises(RequestError, match="a single answer marked as"):
        run(context, recipe)
    document["data"] |= {"held_out": "pairs-test.jsonl", "validation": "chat.jsonl"}
    write_rows(recipe.parent / "chat.jsonl", [{"prompt": "Hi", "completion": "Ho"}])
    recipe.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError, match="objective kto with prompt_completion rows"):
        run(context, recipe)


def test_the_sides_of_a_pair_stay_or_go_together(context: Context, recipe_of: MakeRecipe) -> None:
    """A long rejected side takes its chosen one along; a held-out pair that training has seen is a leak."""
    recipe = recipe_of({"name": "dpo"})
    document = yaml.safe_load(recipe.read_text())
    document["training"]["max_length_tokens"] = 90
    rows = [pair(n) for n in range(8)]
    rows[3]["rejected"] += " It is said again." * 20
    write_rows(recipe.parent / "pairs-train.jsonl", rows)
    recipe.write_text(yaml.safe_dump(document))
    with pytest.raises(OverlongError, match="1 of 8 rows is longer") as caught:
        ready(context, recipe)
    assert [problem.line for problem in caught.value.problems] == [4]
    document["training"]["overlong"] = "drop"
    recipe.write_text(yaml.safe_dump(document))
    dropped = ready(context, recipe)
    assert [e.id for e in dropped.train.examples] == [f"pairs-train.jsonl:{n}" for n in (1, 2, 3, 5, 6, 7, 8)]
    assert len(dropped.train.units) == 7
    assert {len(unit) for unit in dropped.train.units} == {2}
    assert dropped.plan.data.train.dropped_ids == ("pairs-train.jsonl:4",)
    document["training"]["overlong"] = "truncate"
    recipe.write_text(yaml.safe_dump(document))
    cut = ready(context, recipe)
    assert cut.plan.data.train.truncated_ids == ("pairs-train.jsonl:4",)
    assert max(row.num_tokens for row in cut.train.tokenised) == 90
    write_rows(recipe.parent / "pairs-test.jsonl", [pair(5)])
    with pytest.raises(LeakageError, match="1 of 1 held-out rows"):
        ready(context, recipe)


def test_the_preview_shows_both_sides(context: Context, recipe_of: MakeRecipe, tiny_model: Path) -> None:
    folder = recipe_of({"name": "dpo"}).parent
    found = datasets.preview(context, folder / "pairs-train.jsonl", str(tiny_model), num_rows=2)
    assert [row.side for row in found.rows] == ["chosen", "rejected"] * 2
    assert [row.learned_text.strip().split("<")[0] for row in found.rows[:2]] == [
        pair(0)["chosen"],
        pair(0)["rejected"],
    ]
    found = datasets.preview(context, folder / "singles-train.jsonl", str(tiny_model), num_rows=2)
    assert [row["side"] for row in found.as_json()["rows"]] == ["not wanted", "wanted"]


def train_share(world: World, prepared: Prepared, folder: Path) -> None:
    train_worker(prepared, silent_hooks(folder), world)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_two_processes_learn_the_same_preferences(
    context: Context, recipe_of: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    kind = "singles" if name == "kto" else "pairs"
    prepared = ready(context, recipe_of({"name": name}, kind, method={"name": "lora", "rank": 4, "dropout": 0.0}))
    train_worker(prepared, silent_hooks(tmp_path / "one"))
    assert [e.error for e in in_world(2, train_share, prepared, tmp_path / "two")] == ["", ""]
    alone, two = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("one", "two"))
    for weight, expected in alone.items():
        torch.testing.assert_close(two[weight], expected, atol=1e-5, rtol=0)


def test_a_learning_curve_says_that_its_losses_are_no_nats(context: Context, recipe_of: MakeRecipe) -> None:
    for name, is_said in (("dpo", True), (None, False)):
        recipe = load_recipe(recipe_of({"name": name} if name else None))
        _, notes = _ready(recipe)
        assert any("plain numbers" in note for note in notes) == is_said


def test_a_run_is_judged_on_pairs_of_a_file(context: Context, recipe_of: MakeRecipe, tiny_model: Path) -> None:
    recipe = recipe_of({"name": "dpo"})
    outcome = run(context, recipe)
    write_rows(recipe.parent / "more.jsonl", [pair(n) for n in range(300, 306)])
    found = evaluate(context, [outcome.record.run_id, str(tiny_model)], data=recipe.parent / "more.jsonl")
    base, tuned = found.systems
    assert (base.metrics["reward_accuracy"].value, found.num_rows) == (0.5, 6)
    assert tuned.metrics["reward_accuracy"].value > 0.5
