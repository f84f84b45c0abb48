"""Where a search begins, and that it goes on the same way after a kill."""

from __future__ import annotations

import pytest

from luthier.core.workflows.study import StartPoint
from luthier.ml.search.sampling import next_values
from luthier.ml.search.space import default_space, narrowed, own_values, start_points
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
