"""What a study searches and trains: keys of any depth, values that are fixed, and what trials leave of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.features.studies.service.test_service import context_trial, recipe, request

from luthier.core.recipe import BudgetRecipe, MethodRecipe
from luthier.core.workflows.study import Trial
from luthier.features.planning.service import make_plan
from luthier.features.studies import end as study_end
from luthier.features.studies import service as studies
from luthier.features.studies.trials import price, trial_recipe

__all__ = ["recipe"]  # the fixture


def planned(context, asked, space, values):
    """The plan of a trial with these values in a study of this space."""
    spec = studies.begin(context, request(asked, space={"parameters": space, "only": True})).spec
    trial = Trial(number=1, values=values, run_id="run-20260101-000000-abcdef")
    return price(context, spec, trial, make_plan(context, asked, base_dir=Path())).prepared.plan


def test_a_key_is_searched_beside_the_names_that_the_recipe_leaves_open(context, recipe):
    space = {
        "method.dropout": [0.0, 0.2],
        "objective.label_smoothing": [0.0, 0.1],
        "training.optimizer.beta2": [0.9, 0.99],
    }
    values = {"method.dropout": 0.2, "objective.label_smoothing": 0.1, "training.optimizer.beta2": 0.9}
    plan = planned(context, recipe.model_copy(update={"method": None}), space, values)
    assert (plan.method.name, plan.method.dropout) == ("lora", 0.2)
    assert (plan.objective.name, plan.objective.label_smoothing) == ("sft", 0.1)
    assert (plan.training.optimizer.name, plan.training.optimizer.beta2) == ("adamw", 0.9)


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_alpha_is_a_multiple_of_a_rank_that_the_recipe_leaves_open(context, recipe, ratio):
    asked = recipe.model_copy(update={"method": MethodRecipe(name="lora")})
    plan = planned(context, asked, {"method.alpha_over_rank": [1.0, 4.0]}, {"method.alpha_over_rank": ratio})
    assert plan.method.rank > 0
    assert plan.method.alpha == ratio * plan.method.rank


def test_one_point_that_is_not_the_recipe_is_trained_beside_it(context, recipe):
    space = {"parameters": {"method.rank": 2}, "only": True}
    study = studies.begin(context, request(recipe, space=space))
    assert (study.spec.most_trials, [point.values for point in study.spec.start]) == (2, [{"method.rank": 2}])
    assert study.notes[0] == "the space has one point: it is trained beside the recipe, nothing is searched"


def test_a_trial_has_no_budget_of_its_own(context, recipe):
    """It would be paused by it, and the study with it, for good."""
    capped = recipe.model_copy(update={"budget": BudgetRecipe(hours=3.0)})
    spec = studies.begin(context, request(capped)).spec
    assert spec.recipe.budget == BudgetRecipe(hours=3.0)
    assert trial_recipe(spec, context_trial()).budget is None


def test_the_final_run_makes_as_many_passes_as_the_winning_trial(context, recipe):
    """Under a limit of steps their number depends on the batch size, which a trial may have changed."""
    training = recipe.training.model_copy(update={"epochs": None, "max_steps": 16})
    asked = recipe.model_copy(update={"training": training})
    own, spec = make_plan(context, asked, base_dir=Path()), studies.begin(context, request(asked)).spec
    trial = Trial(number=1, values={"training.global_batch_size": 4}, run_id="run-20260101-000000-abcdef")
    plan = price(context, spec, trial, own).prepared.plan
    rows = plan.data.train.num_examples
    assert plan.training.num_steps_per_epoch == -(-rows // 4)
    made = study_end.final_recipe(spec, trial, plan)
    assert made.training.max_steps == 16
    assert made.training.epochs == pytest.approx(16 / -(-rows // 4))


def test_runs_of_a_study_belong_to_its_project_whoever_goes_on_with_it(context, recipe):
    context.access.add_project("proj-friend", "friend")
    asked = request(recipe, space={"parameters": {"method.rank": 4}, "only": True})
    study = studies.begin(context, asked, project_id="proj-friend")
    done = studies.go_on(context, study.study_id)
    made = [*(trial.run_id for trial in context.studies.trials(study.study_id)), done.final_run_id]
    assert [context.runs.project_of(run_id) for run_id in made] == ["proj-friend"] * 2
    assert context.owner_project_id is None
