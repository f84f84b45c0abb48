"""The fields of the form and the rules of the planner say the same: what a method takes, which rows fit what."""

from __future__ import annotations

import pytest

from luthier.core.aliases import stored_key
from luthier.core.recipe import METHODS, OBJECTIVES, MethodRecipe, ObjectiveRecipe, TrainingRecipe
from luthier.features.run_drafts import fields as recipe_fields
from luthier.ml.planning import methods, objectives


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_each_of_its_fields(name: str) -> None:
    taken = set(methods.rules_of(name).settings)
    fields = recipe_fields.METHOD_FIELDS[name]
    assert {field.name.removeprefix("method.") for field in fields} <= taken & set(MethodRecipe.model_fields)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_takes_each_of_its_fields_and_learns_from_its_shapes(name: str) -> None:
    rules = objectives.rules_of(name)
    fields = recipe_fields.OBJECTIVE_FIELDS[name]
    assert {stored_key(field.name).removeprefix("objective.") for field in fields} <= set(rules.settings) & set(
        ObjectiveRecipe.model_fields
    )
    assert recipe_fields.SHAPES[name] == rules.shapes


def test_each_is_explained_once_and_its_sliders_have_ends() -> None:
    assert sorted(choice.name for choice in recipe_fields.METHODS) == sorted(METHODS)
    assert sorted(choice.name for choice in recipe_fields.OBJECTIVES) == sorted(OBJECTIVES)
    fields = [*recipe_fields.MAIN, *recipe_fields.MORE]
    assert {field.name.removeprefix("training.") for field in fields} <= set(TrainingRecipe.model_fields)
    for field in fields + [one for section in recipe_fields.METHOD_FIELDS.values() for one in section]:
        assert field.high >= field.low
        assert field.scale == "linear" or field.low > 0
