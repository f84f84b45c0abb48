"""Equal systems are seldom called better than the best alternative: a small benchmarks/verdict_truth.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.vacuous import nonempty

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "verdict_truth.py"
NUM_STUDIES = 200


@pytest.fixture(scope="module")
def truth() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdict_truth", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_system_of_a_study_is_an_alternative_but_the_base_as_it_is(truth: ModuleType) -> None:
    case = next(one for one in truth.CASES if one.num_prompts == 4)
    found = truth.study(case, np.random.default_rng(0))
    kinds = [one.kind for one in found.alternatives]
    assert kinds == [*(["few_shot"] * 4), "majority", "nearest", "linear", "copy"]
    assert found.metric == case.metric
    assert found.best_alternative in [one.name for one in found.alternatives]


@pytest.mark.parametrize("name", ["exact_match, 0 prompts, 1 baselines, 0", "rouge_l, 0 prompts, 1 baselines, 0.7"])
def test_200_studies_of_the_case_in_which_it_is_said_most_often(truth: ModuleType, name: str) -> None:
    (case,) = (one for one in truth.CASES if one.name == f"{name} common")
    found = truth.simulate(case, NUM_STUDIES)
    assert found["better"] <= 0.05
    assert found["word"] <= found["better"]  # the base itself is one more to be better than


@pytest.mark.drill
def test_1000_studies_of_every_case(truth: ModuleType) -> None:
    for case in nonempty(truth.CASES):
        found = truth.simulate(case, 1_000)
        assert found["better"] <= 0.05, case.name
        assert found["worse"] <= 0.07, case.name  # three standard errors above one in twenty


def test_groups_leave_the_studies_of_other_cases_as_they_are(truth: ModuleType) -> None:
    case = truth.Case("exact_match", 0, 1, 0.7)
    drawn = truth._right_words(case, np.random.default_rng(3), (3, 60))
    generator = np.random.default_rng(3)
    is_common = generator.random((1, 60)) < 0.7
    one, own = (truth.NUM_WORDS * (generator.random(shape) < truth.RIGHT) for shape in ((1, 60), (3, 60)))
    assert (drawn == np.where(is_common, one, own)).all()
    assert len({case.name for case in truth.CASES}) == len(truth.CASES)


def test_rows_of_most_groups_do_the_same(truth: ModuleType) -> None:
    case = truth.Case("rouge_l", 0, 1, 0.0, groups=(5,) * 12)
    found = np.concatenate(
        [truth._right_words(case, np.random.default_rng(seed), (3, 60)).reshape(-1, 5) for seed in range(50)]
    )
    are_alike = (found == found[:, :1]).all(axis=1)
    assert 0.78 <= are_alike.mean() <= 0.84  # four in five, and a few by chance
    assert found.mean() == pytest.approx(truth.NUM_WORDS * truth.RIGHT, abs=0.1)


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l"])
def test_groups_that_count_together_are_seldom_called_better_and_rows_alone_often(
    truth: ModuleType, metric: str
) -> None:
    (case,) = (one for one in truth.CASES if one.name == f"{metric}, 0 prompts, 1 baselines, 0 common, 12 groups of 5")
    found = truth.simulate(case, NUM_STUDIES)
    assert found["better"] <= 0.05
    assert found["better_of_rows"] >= 2 * 0.025
    assert found["better_of_rows"] > found["better"]
