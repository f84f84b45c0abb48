"""What was stored under other defaults keeps them: values that its recipe leaves open, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.features.planning.kept_defaults import as_planned, changed_defaults, defaults_format, with_values
from luthier.features.planning.service import make_plan
from luthier.features.recipes.service import recipe_from
from luthier.ml.planning import defaults
from luthier.platform.home.context import Context


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [chat_row(n) for n in range(24)])
    return path


def recipe_of(model: Path, rows: Path, **more: Any) -> Recipe:
    training = {"num_threads": 1, "precision": "float32"} | more.pop("training", {})
    document = {"base_model": str(model), "data": {"train": str(rows)}, "training": training} | more
    return recipe_from(document, base_dir=rows.parent)


def planned(context: Context, recipe: Recipe) -> Plan:
    return make_plan(context, recipe, base_dir=Path())


def test_a_plan_of_today_keeps_nothing(context: Context, tiny_model: Path, rows: Path) -> None:
    for more in ({}, {"method": {"name": "rslora"}}, {"training": {"optimizer": "lion", "max_steps": 3}},
                 {"training": {"global_batch_tokens": 300}}):  # fmt: skip
        recipe = recipe_of(tiny_model, rows, **more)
        assert changed_defaults(recipe, planned(context, recipe), planned(context, recipe)) == {}


def test_values_of_other_defaults_are_kept_and_those_of_the_recipe_stay(
    context: Context, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_model, rows, training={"lr_schedule": "linear"})
    with monkeypatch.context() as earlier:
        earlier.setattr(defaults, "WEIGHT_DECAY", (0.05, "an earlier default"))
        earlier.setattr(defaults, "SCHEDULE", ("constant", "an earlier default"))
        earlier.setattr(defaults, "SMALL_BATCH_SIZE", (4, "an earlier default"))
        earlier.setattr(defaults, "WARMUP_FRACTION", (0.5, "an earlier default"))
        before = planned(context, recipe)
    today = planned(context, recipe)
    kept = changed_defaults(recipe, today, before)
    assert kept.keys() == {
        "training.weight_decay",
        "training.epochs",
        "training.global_batch_size",
        "training.learning_rate",
        "training.warmup_fraction",
    }
    assert "weight_decay 0.05" in defaults_format(kept)
    again = planned(context, with_values(recipe, kept))
    assert again.training == before.training != today.training
    assert again.training.schedule == "linear"
    assert as_planned(recipe, before) == as_planned(with_values(recipe, kept), again) != as_planned(recipe, today)


def test_a_batch_in_tokens_stays_one(context: Context, tiny_model: Path, rows: Path) -> None:
    recipe = recipe_of(tiny_model, rows, training={"global_batch_tokens": 300})
    plan = planned(context, recipe)
    again = planned(context, as_planned(recipe, plan))
    assert again.training == plan.training
    assert again.recipe.training is not None
    assert (again.recipe.training.global_batch_tokens, again.recipe.training.global_batch_size) == (300, None)


def test_a_default_method_is_kept_with_all_of_its_settings(context: Context, tiny_model: Path, rows: Path) -> None:
    recipe = recipe_of(tiny_model, rows)
    before = planned(context, recipe_of(tiny_model, rows, method={"name": "lora", "rank": 4, "alpha": 32.0}))
    again = planned(context, with_values(recipe, changed_defaults(recipe, planned(context, recipe), before)))
    assert (again.method.name, again.method.rank, again.method.alpha) == ("lora", 4, 32.0)
    assert again.method == before.method


def test_muon_of_before_the_second_rate_keeps_its_one_rate(context: Context, tiny_model: Path, rows: Path) -> None:
    more = {"method": {"name": "full"}, "training": {"optimizer": {"name": "muon", "momentum": 0.9}}}
    recipe = recipe_of(tiny_model, rows, **more)
    today = planned(context, recipe)
    optimizer = today.training.optimizer.model_copy(update={"adamw_rate_factor": None})
    before = today.model_copy(update={"training": today.training.model_copy(update={"optimizer": optimizer})})
    kept = changed_defaults(recipe, today, before)
    assert kept.keys() == {"training.optimizer"}
    again = planned(context, with_values(recipe, kept)).training.optimizer
    assert (again.adamw_rate_factor, again.momentum) == (1.0, 0.9)
