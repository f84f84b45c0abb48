"""Metrics of preferences, by hand."""

from __future__ import annotations

import pytest

from luthier.core.ports import Score
from luthier.ml.evaluation.metrics.likelihood import PreferenceAccuracy, PreferenceMargin, RewardAccuracy
from luthier.ml.evaluation.metrics.protocol import Observations

CHOSEN = [Score(nll_nats=n, num_tokens=4, num_correct=0) for n in (1.0, 5.0, 2.0)]
REJECTED = [Score(nll_nats=n, num_tokens=9, num_correct=0) for n in (3.0, 4.0, 2.0)]
OBSERVED = Observations(scores=CHOSEN, rejected_scores=REJECTED)


def test_the_share_of_pairs_in_which_the_chosen_side_is_likelier() -> None:
    """Likelier, unlikelier, and a tie, which is a miss."""
    metric = PreferenceAccuracy()
    assert metric.aggregate(metric.statistics(OBSERVED).sum(0)) == pytest.approx(1 / 3)


def test_the_mean_margin_in_nats() -> None:
    metric = PreferenceMargin()
    statistics = metric.statistics(OBSERVED)
    assert metric.aggregate(statistics).tolist() == [2.0, -1.0, 0.0]
    assert metric.aggregate(statistics.sum(0)) == pytest.approx(1 / 3)


def test_the_share_of_pairs_whose_chosen_side_has_gained_more() -> None:
    """Margins are 2, -1 and 0: up from 1, down from 0, as they were."""
    metric = RewardAccuracy()
    observed = Observations(scores=CHOSEN, rejected_scores=REJECTED, first_margins=[1.0, 0.0, 0.0])
    assert metric.aggregate(metric.statistics(observed)).tolist() == [1.0, 0.0, 0.5]
    assert metric.aggregate(metric.statistics(observed).sum(0)) == pytest.approx(0.5)
