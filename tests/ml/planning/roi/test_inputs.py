"""Draws of the inputs, against what their distributions are by other means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from luthier.core.results.roi import Range
from luthier.core.results.roi_result import MeasuredGains
from luthier.ml.planning.roi.inputs import TUNED_OVER_TODAY, Input, draw, inputs_of, typical_values

NUM = 10_000


def one(low: float, typical: float, high: float, *, key: str = "a", is_measured: bool = False) -> dict[str, Input]:
    return {key: Input(key, key, "number", Range(low=low, typical=typical, high=high), is_measured)}


@pytest.mark.parametrize("ends", [(0, 1, 10), (-5, -5, 3), (2, 9, 9), (0, 0.5, 1)])
def test_a_range_is_drawn_from_its_pert_distribution(ends: tuple[float, float, float]) -> None:
    low, typical, high = ends
    drawn = draw(one(*ends), NUM, seed=0)["a"]
    a, b = 1 + 4 * (typical - low) / (high - low), 1 + 4 * (high - typical) / (high - low)
    reference = stats.beta(a, b, loc=low, scale=high - low)
    assert drawn.mean() == pytest.approx((low + 4 * typical + high) / 6, abs=1e-3 * (high - low))
    assert stats.kstest(drawn, reference.cdf).pvalue > 0.5
    assert low <= drawn.min()
    assert drawn.max() <= high


def test_a_measured_figure_has_its_value_as_median_and_its_interval_as_95_percent_of_the_draws() -> None:
    drawn = draw(one(0.04, 0.1, 0.25, is_measured=True), NUM, seed=0)["a"]
    assert np.quantile(drawn, [0.025, 0.5, 0.975]) == pytest.approx([0.04, 0.1, 0.25], abs=1e-3)


def test_draws_hang_on_seed_and_key_alone() -> None:
    alone = draw(one(0, 1, 2, key="a"), NUM, seed=3)["a"]
    beside = draw({**one(5, 6, 7, key="b"), **one(0, 1, 2, key="a")}, NUM, seed=3)
    assert np.array_equal(alone, beside["a"])
    assert not np.array_equal(alone, draw(one(0, 1, 2, key="a"), NUM, seed=4)["a"])
    assert abs(np.corrcoef(beside["a"], beside["b"])[0, 1]) < 0.03


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.9, 1.0, 1.0 + 2**-52])
def test_a_measured_figure_follows_another(correlation: float) -> None:
    both = one(0.1, 0.2, 0.3, key="a", is_measured=True)
    both["b"] = Input("b", "b", "gain", Range(low=0.1, typical=0.2, high=0.3), True, "a", correlation)
    drawn = draw(both, NUM, seed=0)
    assert np.corrcoef(drawn["a"], drawn["b"])[0, 1] == pytest.approx(correlation, abs=0.02)
    assert np.quantile(drawn["b"], [0.025, 0.5, 0.975]) == pytest.approx([0.1, 0.2, 0.3], abs=4e-3)
    # What is followed stays as it is.
    assert np.array_equal(drawn["a"], draw(one(0.1, 0.2, 0.3, key="a", is_measured=True), NUM, seed=0)["a"])


def test_what_is_exact_is_not_drawn() -> None:
    assert set(draw(one(3, 3, 3), 10, seed=0)["a"].tolist()) == {3.0}


def test_every_figure_of_a_case_is_an_input_with_a_title_of_its_own(make_case: Any, measured: MeasuredGains) -> None:
    found = inputs_of(make_case({"alternatives.few_shot": {"gain": 0.02}}), measured)
    assert found["calls.per_month"].title == "calls a month"
    assert found["today.hosted.input_price_per_million_tokens"].kind == "money"
    assert found["alternatives.few_shot.gain"].title == "accuracy gained, few-shot"
    assert found[TUNED_OVER_TODAY].is_measured
    assert "seed" not in found
    assert len({one.title for one in found.values()}) == len(found)
    assert float(typical_values(found)["tuned.gain"]) == 0.1


def test_an_interval_of_a_bootstrap_that_misses_its_value_is_stretched_to_it(
    make_case: Any, measured: MeasuredGains
) -> None:
    odd = measured.model_copy(update={"tuned": measured.tuned.model_copy(update={"low": 0.11})})
    assert inputs_of(make_case(), odd)[TUNED_OVER_TODAY].range.low == 0.1
