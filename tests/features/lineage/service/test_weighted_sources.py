"""Rows that the weights of their sources leave out were never trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fixtures.service import chat_row, write_rows

from luthier.features.lineage.rows import _splits_with
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import load_recipe, with_absolute_paths
from luthier.platform.home.context import Context


def test_a_row_that_no_epoch_has_was_given_to_no_split(context: Context, make_recipe: Callable[..., Path]) -> None:
    sources = [{"path": "train.jsonl", "weight": 1}, {"path": "more.jsonl", "weight": 3}]
    recipe = make_recipe(
        data={"train": sources},
        training={"max_steps": 2, "global_batch_size": 8, "precision": "float32", "num_threads": 1},
        evaluation={"metrics": ["perplexity"], "few_shot": 0},
    )
    write_rows(recipe.parent / "more.jsonl", [chat_row(n) for n in range(300, 340)])
    asked = with_absolute_paths(load_recipe(recipe), recipe.parent)
    prepared = prepare(context, asked, base_dir=recipe.parent)
    trained = {int(example.id.rpartition(":")[2]) for example in prepared.train.examples}
    assert len(trained) == 60, "a source of 40 rows has a share of 20"
    profile, left_out = prepared.plan.data.train, min(set(range(1, 41)) - trained)
    for line, splits in ((min(trained), ("train",)), (left_out, ())):
        assert _splits_with(context, prepared.plan, [profile], {"train": (line,)}) == splits


def test_files_that_match_a_pattern_later_move_no_row(context: Context, make_recipe: Callable[..., Path]) -> None:
    sources = [{"path": "train.jsonl", "weight": 1}, {"path": "more/*.jsonl", "weight": 3}]
    recipe = make_recipe(
        data={"train": sources},
        training={"max_steps": 2, "global_batch_size": 8, "precision": "float32", "num_threads": 1},
        evaluation={"metrics": ["perplexity"], "few_shot": 0},
    )
    (recipe.parent / "more").mkdir()
    write_rows(recipe.parent / "more/1.jsonl", [chat_row(n) for n in range(300, 340)])
    asked = with_absolute_paths(load_recipe(recipe), recipe.parent)
    prepared = prepare(context, asked, base_dir=recipe.parent)
    trained = {int(example.id.rpartition(":")[2]) for example in prepared.train.examples}
    write_rows(recipe.parent / "more/0.jsonl", [chat_row(n) for n in range(400, 460)])
    every = {"train": tuple(range(1, 81))}
    assert _splits_with(context, prepared.plan, [prepared.plan.data.train], every) == ("train",)
    for line in (min(trained), min(set(range(1, 81)) - trained)):
        found = _splits_with(context, prepared.plan, [prepared.plan.data.train], {"train": (line,)})
        assert found == (("train",) if line in trained else ())
