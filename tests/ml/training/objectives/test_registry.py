"""Every objective that a recipe may name has rules for the plan and a class for the loop."""

from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.plan import ObjectivePlan
from luthier.core.recipe import OBJECTIVES
from luthier.ml.planning.objectives import RULES
from luthier.ml.training.objectives.registry import BUILT_IN, load_objective


def test_recipe_plan_and_loop_know_the_same_objectives() -> None:
    assert set(OBJECTIVES) == set(RULES) == set(BUILT_IN)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"'dpoo'[\s\S]*sft"):
        load_objective(ObjectivePlan.model_construct(name="dpoo"))
