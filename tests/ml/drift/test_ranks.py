"""Ranks that are fair whatever the values are like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from luthier.ml.drift.evidence import conformal_ranks, hours_of, lots, no_slots, slots_of


@pytest.mark.parametrize("law", ["normal", "heavy", "yes or no", "always the same"])
def test_ranks_are_uniform_for_any_law_also_with_ties(law: str) -> None:
    generator = np.random.default_rng(1)
    values = {
        "normal": generator.normal(size=4_000),
        "heavy": generator.standard_cauchy(4_000),
        "yes or no": (generator.random(4_000) < 0.03).astype(float),
        "always the same": np.ones(4_000),
    }[law]
    ranks = conformal_ranks(values, np.arange(4_000) // 20, generator.random(4_000), no_slots)
    assert kstest(ranks, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 0.06


def test_a_rank_knows_what_came_before_and_nothing_of_what_comes() -> None:
    generator = np.random.default_rng(2)
    values, hours, draws = generator.normal(size=900), np.arange(900) // 7, generator.random(900)
    whole = conformal_ranks(values, hours, draws)
    assert (conformal_ranks(values[:500], hours[:500], draws[:500]) == whole[:500]).all()
    plain = [(values[:n] < values[n]).sum() for n in range(900)]
    alone = conformal_ranks(values, hours, np.zeros(900), no_slots)
    assert alone == pytest.approx(np.array(plain) / np.arange(1, 901))


def test_a_rhythm_of_the_day_is_no_change_within_slots() -> None:
    generator = np.random.default_rng(3)
    hours = np.repeat(np.arange(24 * 28), 10)
    values = generator.normal(size=len(hours)) + 5.0 * ((hours % 24) >= 12)
    ranks = conformal_ranks(values, hours, generator.random(len(hours)))
    assert abs(ranks[hours % 24 >= 12].mean() - 0.5) < 0.02


def test_slots_are_quarters_of_the_day_apart_at_weekends() -> None:
    saturday = 20_050 * 24  # 2024-11-23
    assert slots_of(np.array([saturday - 24, saturday - 1, saturday, saturday + 6, saturday + 48])).tolist() == [
        0,
        3,
        4,
        5,
        0,
    ]
    assert hours_of(np.array([0.0, 3_599.9, 3_600.0, -1.0])).tolist() == [0, 0, 1, -1]


def test_lots_are_the_same_at_every_look_and_differ_by_purpose() -> None:
    ids = [f"chatcmpl-{one}" for one in range(2_000)]
    assert (lots(ids, "a") == lots(ids, "a")).all()
    assert abs(np.corrcoef(lots(ids, "a"), lots(ids, "b"))[0, 1]) < 0.08
    assert kstest(lots(ids, "a"), "uniform").pvalue > 0.001
    assert lots(["\ud800"], "a").shape == (1,)
