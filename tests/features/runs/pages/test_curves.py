"""The charts of a run: in their order, with what is known, in few bytes."""

from __future__ import annotations

import json

from luthier.features.runs.series import MINIMISED, TRAINING, VALIDATION, Curves
from luthier.features.runs.view import layout_of, overlaid, rounded, run_charts


def test_loss_comes_first_and_measures_last() -> None:
    points = {("token_accuracy", "training"): [(1.0, 0.5)], VALIDATION: [(1.0, 2.0)], TRAINING: [(1.0, 1.0)]}
    curves = Curves(points | {MINIMISED: [(1.0, 1.5)]}, best=(1.0, 2.0))
    charts = run_charts(curves, "nats a learned token")
    assert [chart.key for chart in charts] == [
        "loss", "learning_rate", "gradient_norm", "tokens_per_second", "token_accuracy"
    ]  # fmt: skip
    assert [one.name for one in charts[0].series] == ["training", "validation", "minimised"]
    assert [mark.x for mark in charts[0].marks] == [1.0]
    assert charts[0].y.title == "loss (nats a learned token)"
    assert layout_of(curves) == "loss/minimised,loss/training,loss/validation,token_accuracy/training"


def test_the_reward_of_a_metric_has_its_range_as_a_unit() -> None:
    names = ("reward_token_f1", "reward_spread", "reward", "reward_bleu")
    charts = run_charts(Curves({(name, "training"): [(1.0, 0.5)] for name in names}), "")
    assert {chart.key: chart.y.unit for chart in charts if chart.key in names} == {
        "reward_token_f1": "0 to 1",
        "reward_spread": "",
        "reward": "",
        "reward_bleu": "0 to 1",
    }


def test_a_measure_has_the_title_that_its_objective_gives() -> None:
    curves = Curves({(name, "training"): [(1.0, 0.5)] for name in ("divergence", "token_accuracy")})
    for objective, title in (("distillation", "Divergence from the teacher, nats a token"), ("gone", "Divergence")):
        titles = {chart.key: chart.title for chart in run_charts(curves, "", objective)}
        assert (titles["divergence"], titles["token_accuracy"]) == (title, "Token accuracy")


def test_values_are_short() -> None:
    assert json.dumps(rounded([(1, 0.123456789), (4, 2e-9), (5, 3210.98)])) == "[[1, 0.12346], [4, 2e-09], [5, 3211.0]]"


def test_each_run_has_a_colour() -> None:
    chart = overlaid({name: Curves({TRAINING: [(1, 1)]}) for name in "ABCDEF"}, TRAINING, "k", "Training loss", "")
    assert len({series.role for series in chart.series}) == 6
