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
