"""An objective takes its own settings and the rows it can learn from, and no others."""

from __future__ import annotations

import pytest

from luthier.core.errors import RecipeError
from luthier.core.recipe import ObjectiveRecipe
from luthier.plan.objectives import resolve_objective
from luthier.plan.sources import Sources


def test_silence_means_supervised_fine_tuning() -> None:
    sources = Sources()
    assert resolve_objective(None, "chat", sources).name == "sft"
    assert sources.found["objective.name"].source == "default"


def test_what_was_asked_is_noted_as_asked() -> None:
    sources = Sources()
    resolve_objective(ObjectiveRecipe(name="sft"), "text", sources)
    assert sources.found["objective.name"].source == "asked"


def test_an_unknown_objective_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="not an objective") as caught:
        ObjectiveRecipe(name="sfft")
    assert "sft" in str(caught.value.errors()[0]["ctx"]["expected"])  # type: ignore[attr-defined]
    assert not isinstance(caught.value, RecipeError)
