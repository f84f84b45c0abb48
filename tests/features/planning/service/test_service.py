"""A plan made twice is the same plan, and its rows are tokenised once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.features.planning.service import make_plan
from luthier.features.recipes.service import load_recipe
from luthier.ml.data.tokenise import tokenised_cache
from luthier.platform.home.context import Context


def test_a_second_plan_reads_the_tokens_of_the_first(
    context: Context, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()

    def plan() -> str:
        return make_plan(context, load_recipe(recipe), base_dir=recipe.parent).hash

    first = plan()
    kept = sorted(context.settings.tokenised_folder.iterdir())
    assert len(kept) == 3  # train, validation, held-out

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenised_cache, "tokenise_all", refuse)
    assert plan() == first
    assert sorted(context.settings.tokenised_folder.iterdir()) == kept


def test_the_cache_can_be_turned_off(
    context: Context, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"tokenised_cache_bytes": 0}))
    recipe = make_recipe()
    make_plan(context, load_recipe(recipe), base_dir=recipe.parent)
    assert not context.settings.tokenised_folder.exists()
