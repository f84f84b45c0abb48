"""What a study searches and trains: keys of any depth, values that are fixed, and what trials leave of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.features.studies.service.test_service import context_trial, recipe, request

from luthier.core.errors import RequestError
from luthier.core.recipe import BudgetRecipe, MethodRecipe
from luthier.core.workflows.study import Result, Trial
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


def test_a_searched_batch_takes_the_place_of_one_in_tokens_and_the_other_way_round(context, recipe):
    for asked, searched in (
        ({"global_batch_size": None, "global_batch_tokens": 400}, {"training.global_batch_size": 4}),
        ({"global_batch_size": 8}, {"training.global_batch_tokens": 400}),
    ):
        training = recipe.training.model_copy(update=asked)
        made = planned(context, recipe.model_copy(update={"training": training}), searched, searched)
        name = next(iter(searched)).removeprefix("training.")
        assert getattr(made.recipe.training, name) == next(iter(searched.values()))
        assert None in (made.recipe.training.global_batch_size, made.recipe.training.global_batch_tokens)


def test_the_final_run_keeps_a_batch_in_tokens(context, recipe):
    training = recipe.training.model_copy(update={"global_batch_size": None, "global_batch_tokens": 400})
    asked = recipe.model_copy(update={"training": training})
    own, spec = make_plan(context, asked, base_dir=Path()), studies.begin(context, request(asked)).spec
    trial = Trial(number=1, values={"method.rank": 2}, run_id="run-20260101-000000-abcdef")
    made = study_end.final_recipe(spec, trial, price(context, spec, trial, own).prepared.plan)
    assert (made.training.global_batch_tokens, made.training.global_batch_size) == (400, None)


def test_runs_of_a_study_belong_to_its_project_whoever_goes_on_with_it(context, recipe):
    context.access.add_project("proj-friend", "friend")
    asked = request(recipe, space={"parameters": {"method.rank": 4}, "only": True})
    study = studies.begin(context, asked, project_id="proj-friend")
    done = studies.go_on(context, study.study_id)
    made = [*(trial.run_id for trial in context.studies.trials(study.study_id)), done.final_run_id]
    assert [context.runs.project_of(run_id) for run_id in made] == ["proj-friend"] * 2
    assert context.owner_project_id is None


def test_a_setting_that_changes_what_the_loss_measures_is_refused(context, recipe):
    space = {"parameters": {"objective.loss_weighting": ["token", "sample"]}, "only": True}
    with pytest.raises(RequestError, match=r"objective\.loss_weighting among what is searched"):
        studies.begin(context, request(recipe, space=space))


def test_a_trial_that_is_validated_on_other_rows_fails(context, recipe):
    """Rows of 24 tokens are cut at 16: a loss over fewer tokens is another measure."""
    training = recipe.training.model_copy(update={"overlong": "truncate"})
    asked = recipe.model_copy(update={"training": training})
    longest = make_plan(context, asked, base_dir=Path()).data.validation.max_tokens
    space = {"training.max_length_tokens": [longest - 1, longest]}
    assert planned(context, asked, space, {"training.max_length_tokens": longest}).training.max_length_tokens == longest
    with pytest.raises(RequestError, match="its validation rows are others, or are cut"):
        planned(context, asked, space, {"training.max_length_tokens": longest - 1})


def test_a_searched_seed_moves_no_row_between_the_parts(context, recipe):
    own = make_plan(context, recipe, base_dir=Path())
    plan = planned(context, recipe, {"training.seed": [0, 5]}, {"training.seed": 5})
    assert plan.training.seed == 5
    assert plan.data.validation.num_trained_tokens == own.data.validation.num_trained_tokens


def repeated(number, of, loss):
    result = Result(rung=0, step=4, share=1.0, loss=loss)
    kind = "search" if of is None else "confirm"
    return Trial(number=number, kind=kind, of=of, values={}, run_id="r", state="done", results=(result,))


def test_means_over_seeds_have_as_many_losses_each():
    """A trial was chosen by its first loss: as half of one mean and a third of another it would favour the one."""
    trials = [
        repeated(0, None, 1.0),
        repeated(1, None, 0.9),
        repeated(2, None, 1.1),
        repeated(3, 0, 1.2),
        repeated(4, 1, 1.4),
        repeated(5, 0, 1.3),
    ]
    assert study_end.mean_losses(trials) == {0: [1.0, 1.2], 1: [0.9, 1.4]}
    assert study_end.mean_losses(trials[:3]) == {}


class Kept:
    """As much of a `Search` as its end needs to repeat trials."""

    def __init__(self, study, trials):
        self.study, self.trials, self.left_hours = study, list(trials), 1e9

    def change(self, study):
        self.study = study

    def keep(self, trial):
        self.trials.append(trial)
        return trial


def test_all_that_are_repeated_are_trained_with_the_same_further_seeds(context, recipe):
    study = studies.begin(context, request(recipe))
    search = Kept(study, [repeated(0, None, 1.0), repeated(1, None, 0.9)])
    for _ in range(2):
        for trial in search.trials[:2]:
            again = [one for one in search.trials if one.kind == "confirm" and one.of == trial.number]
            study_end._begun_again(search, trial, again)
    further = search.trials[2:]
    first, *_ = seeds = [trial_recipe(study.spec, one).training.seed for one in further]
    assert [one.of for one in further] == [0, 1, 0, 1]
    assert seeds == [first, first, first + 1, first + 1]
    # Repetitions that an earlier version has begun keep the seed that they were begun with.
    old = further[1].model_copy(update={"repetition": None})
    assert trial_recipe(study.spec, old).training.seed == first + old.number
