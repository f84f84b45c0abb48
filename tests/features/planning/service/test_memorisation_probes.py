"""Canaries in a run: planted where all of its rows are read, written into its plan, and never taken for a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import write_rows

from luthier.core.errors import RecipeError
from luthier.core.records.canary import digest_of, make_canaries
from luthier.features.planning.added_rows import canaries_of
from luthier.features.planning.service import make_plan, prepare
from luthier.features.planning.training_data import load_splits
from luthier.features.recipes.service import load_recipe
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
DATA = {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "test.jsonl"}


def recipe_with(make_recipe: MakeRecipe, canaries: Any, **sections: Any) -> Path:
    return make_recipe(data=DATA | {"canaries": canaries}, **sections)


def test_they_are_trained_on_and_are_no_rows(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, {"num": 3, "seed": 7})
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    planted = prepared.plan.data.canaries
    assert planted is not None
    assert (planted.num, planted.seed, planted.sha256) == (3, 7, digest_of(make_canaries(3, 7)))
    assert canaries_of(prepared.plan) == make_canaries(3, 7)
    assert (prepared.train.profile.num_rows, prepared.train.profile.num_examples) == (40, 43)
    assert [row.id for row in prepared.train.tokenised[40:]] == ["canary:1", "canary:2", "canary:3"]
    assert len(prepared.train.examples) == len(prepared.train.good_examples) == 40, "none is shown as an example"
    read = load_splits(context, load_recipe(path), path.parent)["train"]
    assert (len(read.examples), len(read.planted)) == (40, 3)
    values = {value["name"]: value for value in prepared.plan.values()}
    assert values["data.canaries"]["value"]["num"] == 3, "the plan and the report show them"
    text = prepared.template.tokenizer.decode(list(prepared.train.tokenised[41].input_ids))
    assert make_canaries(3, 7)[1].secret in text


def test_a_plan_without_them_keeps_its_hash_and_with_them_has_another(
    context: Context, make_recipe: MakeRecipe
) -> None:
    path = make_recipe()
    without = make_plan(context, load_recipe(path), base_dir=path.parent)
    assert "canaries" in without.data.model_dump()
    plans = [
        make_plan(context, load_recipe(recipe_with(make_recipe, asked)), base_dir=path.parent)
        for asked in (2, {"num": 2}, {"num": 2, "seed": 1}, 3)
    ]
    hashes = [plan.hash for plan in plans]
    assert hashes[0] == hashes[1]
    assert len({without.hash, *hashes}) == 4
    document = without.model_dump(mode="json")
    del document["data"]["canaries"]
    assert type(without).model_validate(document).hash == without.hash, "as plans of before there were any"


def test_texts_get_texts(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, 2, evaluation={"few_shot": 0})
    for name in ("train", "valid", "test"):
        rows = [{"text": f"{name} says that after {n} comes {n + 1}."} for n in range(30)]
        write_rows(path.parent / f"{name}.jsonl", rows)
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    text = prepared.template.tokenizer.decode(list(prepared.train.tokenised[-1].input_ids))
    assert text.startswith(make_canaries(2, 0)[1].text)


@pytest.mark.parametrize("canaries", [0, -1, 1001, True, "three", {"num": 2, "colour": "red"}, {"seed": 1}])
def test_impossible_numbers_are_refused(make_recipe: MakeRecipe, canaries: Any) -> None:
    with pytest.raises(RecipeError, match="canaries"):
        load_recipe(recipe_with(make_recipe, canaries))


def test_too_many_for_the_rows_are_refused(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, 5)
    with pytest.raises(RecipeError, match=r"at most one for 10 rows \(4 here\)"):
        make_plan(context, load_recipe(path), base_dir=path.parent)


def test_objectives_that_do_not_learn_answers_as_they_stand_are_refused(
    context: Context, make_recipe: MakeRecipe
) -> None:
    reward = {"metric": "token_f1", "weight": 1.0}
    path = recipe_with(make_recipe, 2, objective={"name": "grpo", "rewards": [reward]})
    with pytest.raises(RecipeError, match=r"data\.canaries with chat rows and objective grpo"):
        make_plan(context, load_recipe(path), base_dir=path.parent)


def test_canaries_are_not_cut(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, 2, training={"max_length_tokens": 45, "overlong": "drop", "num_threads": 1})
    with pytest.raises(RecipeError, match="2 canaries do not fit"):
        make_plan(context, load_recipe(path), base_dir=path.parent)
