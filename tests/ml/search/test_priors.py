"""Where a search begins, and that it goes on the same way after a kill."""

from __future__ import annotations

import pytest

from luthier.core.workflows.study import StartPoint, Trial
from luthier.ml.search.sampling import next_values
from luthier.ml.search.space import default_space, fixed_values, narrowed, own_values, start_points
from luthier.testing.made_curves import OWN, MadeSearch, MadeTask, made_spec
from luthier.testing.records import make_plan

SPACE = default_space(make_plan(), most_rank=64)


def test_the_plans_own_values_are_found_as_the_space_has_them():
    own = own_values(make_plan(), SPACE)
    assert own["training.learning_rate"] == 2e-4
    assert own["training.epochs"] == 2
    assert own["method.alpha_over_rank"] == 2.0
    assert own["training.warmup_fraction"] == 0.1
    assert "method.targets" not in own  # the plan names modules, and not what was asked


def test_a_recipe_for_a_subset_has_all_of_its_rows():
    plan = make_plan()
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"part": (0.2, 0.6)})})
    space = narrowed(SPACE, {"parameters": {"data.fraction": [0.5, 1.0]}, "only": True}, place="s")
    assert own_values(plan, space) == {"data.fraction": 1.0}


def test_it_begins_with_other_rates_inside_the_space():
    rates = [point.values["training.learning_rate"] for point in start_points(SPACE, OWN)]
    assert rates == [6e-4, 6.667e-5]
    narrow = {"parameters": {"training.learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}}}
    assert len(start_points(narrowed(SPACE, narrow, place="s"), OWN)) == 1
    assert start_points(narrowed(SPACE, {"without": ["training.learning_rate"]}, place="s"), OWN) == ()


def test_points_come_in_their_order_after_the_recipe_itself():
    spec = made_spec(SPACE, hours=9, seed=0)
    spec = spec.model_copy(update={"start": (StartPoint(values={"method.rank": 4}, why="known"), *spec.start)})
    assert next_values(spec, [], 0) == {}
    assert next_values(spec, [], 1) == {"method.rank": 4}
    assert next_values(spec, [], 3) == {"training.learning_rate": 6.667e-5}


@pytest.mark.parametrize(("sampler", "goals"), [("cmaes", ("quality",)), ("nsga2", ("quality", "size"))])
def test_a_search_that_was_killed_goes_on_with_the_same_trials(sampler, goals):
    def spec(hours):
        return made_spec(SPACE, hours=hours, seed=3, sampler=sampler).model_copy(update={"goals": goals})

    whole = MadeSearch(MadeTask(2), spec(6.0)).run().trials
    half = MadeSearch(MadeTask(2), spec(3.0)).run().trials
    resumed = MadeSearch(MadeTask(2), spec(6.0), trials=list(half)).run().trials
    # only what a smaller budget made it bring up early may differ: all values up to there are the same
    assert [t.values for t in half] == [t.values for t in whole[: len(half)]]
    assert [t.values for t in resumed[: len(half)]] == [t.values for t in half]
    assert len({str(sorted(t.values.items())) for t in whole}) == len(whole)


def test_a_choice_near_the_recipes_own_rate_is_another_one():
    """Own values count as tried: a rate that is taken for another one would keep that from being tried."""
    file = {"parameters": {"training.learning_rate": [1e-4, 3e-4], "training.epochs": [1, 2]}, "only": True}
    space = narrowed(SPACE, file, place="s")
    own = own_values(make_plan(), space)
    assert own == {"training.learning_rate": 2e-4, "training.epochs": 2}
    spec = made_spec(space, hours=9, seed=0).model_copy(update={"own_values": own, "start": ()})
    trials = [Trial(number=0, values={}, run_id="run-0")]
    while (values := next_values(spec, trials, len(trials))) is not None:
        trials.append(Trial(number=len(trials), values=values, run_id="run"))
    tried = {(one.values["training.learning_rate"], one.values["training.epochs"]) for one in trials[1:]}
    assert tried == {(1e-4, 1), (1e-4, 2), (3e-4, 1), (3e-4, 2)}


def test_a_value_that_a_file_fixes_holds_for_the_points_that_a_search_begins_with():
    length = {"low": 2, "high": 2}
    file = {"parameters": {"training.lr_schedule": "linear", "method.rank": 8, "training.epochs": length}}
    space = narrowed(SPACE, file, place="s")
    own = own_values(make_plan(), space)
    assert own["training.schedule"] == "cosine"
    assert own["method.rank"] == 8
    points = [point.values for point in start_points(space, own)]
    assert points == [
        {"training.learning_rate": 6e-4, "training.schedule": "linear"},
        {"training.learning_rate": 6.667e-5, "training.schedule": "linear"},
    ]
    assert fixed_values(space, {}) == {"training.schedule": "linear", "method.rank": 8, "training.epochs": 2}
