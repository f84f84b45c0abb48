"""Evidence of a change: right at every look, and soon."""

from __future__ import annotations

import math

import numpy as np

from luthier.ml.drift.evidence import RANGES, evidence, false_alarms_a_month, has_ended, needed_strength


def test_the_chance_to_reach_a_strength_within_so_many_hours_is_as_bounded() -> None:
    generator = np.random.default_rng(4)
    num_hours, num_streams, strength = 100, 300, 10 * 100
    reached = 0
    for _ in range(num_streams):
        hours = np.repeat(np.arange(num_hours), generator.poisson(6, num_hours))
        found = evidence(generator.random(len(hours)), hours)
        assert found is not None
        reached += found.log_strength.max() >= math.log(strength)
    assert reached / num_streams <= num_hours / strength + 0.05  # 3 standard errors of 300 streams


def test_a_change_is_found_with_its_beginning_and_its_place() -> None:
    generator = np.random.default_rng(5)
    hours = np.repeat(np.arange(200), 10)
    ranks = generator.random(2_000)
    moved = (hours >= 150) & (generator.random(2_000) < 0.2)
    ranks[moved] = 1 - 0.05 * generator.random(moved.sum())
    found = evidence(ranks, hours)
    assert found is not None
    assert found.log_strength[-1] > needed_strength(25)
    assert found.log_strength[:150].max() < needed_strength(25)
    assert 145 <= found.began <= 160
    assert found.low >= 0.9
    assert 0.05 < found.moved < 0.5


def test_what_a_look_has_seen_a_later_look_does_not_change() -> None:
    generator = np.random.default_rng(6)
    hours, ranks = np.repeat(np.arange(60), 5), generator.random(300)
    early, late = evidence(ranks[:150], hours[:150]), evidence(ranks, hours)
    assert early is not None
    assert late is not None
    assert (late.log_strength[:30] == early.log_strength).all()
    assert evidence(ranks[:0], hours[:0]) is None


def test_a_change_is_over_when_all_is_as_before_again() -> None:
    generator = np.random.default_rng(7)
    hours, ranks = np.repeat(np.arange(300), 10), generator.random(3_000)
    ranks[1_000:1_300] = 0.5 + ranks[1_000:1_300] / 2
    found = evidence(ranks, hours)
    assert found is not None
    assert found.log_strength[129] > needed_strength(25)
    assert has_ended(found.dropped, 25)
    during = evidence(ranks[:1_300], hours[:1_300])
    assert during is not None
    assert not has_ended(during.dropped, 25)


def test_alarms_a_month_are_shared_out_to_all_signals() -> None:
    assert math.isclose(false_alarms_a_month(needed_strength(25), 25), 0.05)
    assert false_alarms_a_month(0.0, 25) == 1.0
    assert false_alarms_a_month(1e6, 25) == 0.0
    assert needed_strength(50) > needed_strength(25)
    assert (RANGES[:, 0] < RANGES[:, 1]).all()
