"""What is learned of how long actions take."""

from __future__ import annotations

import random

import pytest

from luthier.ml.training.ledger import Throughput


def after(steps: list[tuple[int, float]]) -> Throughput:
    pace = Throughput()
    for tokens, seconds in steps:
        pace = pace.after_step(tokens, seconds)
    return pace


def test_steps_weigh_by_their_tokens() -> None:
    pace = after([(10, 100.0), (100, 10.0), (300, 30.0), (50, 5.0)])  # the first warms up
    assert pace.seconds_for(1000, 10).value == pytest.approx(100.0)
    assert pace.spread == pytest.approx(0.0, abs=1e-6)


def test_spread_is_the_standard_deviation_of_the_rate_weighted_by_tokens() -> None:
    # rates 0.1 and 0.3 with equal tokens: mean 0.2, deviation 0.1; fading is under 3% a step
    pace = after([(100, 1.0), *[(100, 10.0), (100, 30.0)] * 20])
    assert pace.spread == pytest.approx(0.5, rel=0.03)


def test_old_steps_fade_when_the_machine_slows_down() -> None:
    pace = after([(100, 1.0)] * 200 + [(100, 2.0)] * 100)
    assert pace.seconds_for(100, 1).value == pytest.approx(2.0, rel=0.06)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw, held, trials = random.Random(0), 0, 300
    for _ in range(trials):
        measured = [(t := draw.randint(50, 150), t * 0.01 * draw.lognormvariate(0, 0.2)) for _ in range(30)]
        ahead = [(t := draw.randint(50, 150), t * 0.01 * draw.lognormvariate(0, 0.2)) for _ in range(60)]
        estimate = after(measured).seconds_for(sum(t for t, _ in ahead), len(ahead))
        held += estimate.low <= sum(s for _, s in ahead) <= estimate.high
    assert held / trials >= 0.92


def test_judging_is_known_to_take_at_least_what_it_took() -> None:
    pace = Throughput().after("judging", 30.0).after("judging", 10.0)
    assert pace.others["judging"] == 30.0
    assert Throughput().after("validation", 4.0).after("validation", 2.0).others["validation"] == 3.0


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 15, 30, 100])
def test_the_short_formula_is_students_t(freedom: int) -> None:
    from scipy.stats import t

    from luthier.ml.training.ledger import _student

    assert _student(freedom) == pytest.approx(float(t.ppf(0.975, freedom)), rel=0.04)
