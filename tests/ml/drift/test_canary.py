"""Canaries against the rest: what is called worse, what is not, and how often that is wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from luthier.core.records.deployment import CanaryRules
from luthier.ml.drift.canary import (
    KINDS,
    Units,
    compare,
    failing_streak,
    gap,
    level_of,
    look_at,
    p_value,
    place_of,
    units_of,
)
from luthier.testing.traffic import CanaryWorld, draw, found_at


def test_looks_are_at_set_places_and_spend_less_than_all() -> None:
    assert look_at(499, 500) == (0, 0)
    assert look_at(500, 500) == (1, 500)
    assert look_at(749, 500) == (1, 500)
    assert look_at(750, 500) == (2, 750)
    assert [place_of(k, 500) for k in (1, 2, 3)] == [500, 750, 1125]
    spent = sum(level_of(k, 0.05, 5) for k in range(1, 10_000)) * 5
    assert 0.0499 < spent < 0.05


def test_the_p_value_is_that_of_all_draws() -> None:
    """Against every draw of 3 of 9, one by one."""
    random = np.random.default_rng(3)
    mean, weight = random.random(9), random.integers(1, 20, 9).astype(float)
    is_canary = np.array([True] * 3 + [False] * 6)
    units = Units(mean, weight, is_canary)
    scores = weight * (mean - np.average(mean, weights=weight))
    above = [sum(scores[list(one)]) >= sum(scores[:3]) - 1e-12 for one in itertools.combinations(range(9), 3)]
    assert p_value(units, 1e-4, seed=1) == pytest.approx(np.mean(above), abs=0.01)
    assert units.least_p_value == 1 / math.comb(9, 3)


def test_a_user_counts_once_however_much_they_ask() -> None:
    units = units_of(
        np.array([1, 1, 1, 2, 3]), np.array([True, True, True, False, False]), np.array([1.0, 0.0, np.nan, 0.5, np.nan])
    )
    assert units.mean.tolist() == [0.5, 0.5]
    assert units.weight.tolist() == [2.0, 1.0]
    busy = units_of(np.zeros(500, dtype=np.int64), np.ones(500, dtype=bool), np.ones(500))
    assert busy.weight.tolist() == [20.0]


def test_none_in_fifty_is_not_never() -> None:
    units = Units(np.zeros(100), np.ones(100), np.arange(100) < 50)
    found = gap(units, is_fraction=True)
    assert found.difference == 0
    assert found.low < -0.03
    assert found.high > 0.03


def test_nothing_is_said_before_the_first_look() -> None:
    found = compare(draw(CanaryWorld(num_exchanges=499, more_refusals=0.9), 1), 0.1, CanaryRules())
    assert (found.state, found.look, found.next_at) == ("too early", 0, 500)
    assert found.signals == ()


def test_no_exchange_at_all_is_too_early() -> None:
    assert compare(draw(CanaryWorld(), 1).head(0), 0.1, CanaryRules()).state == "too early"


def test_what_comes_between_two_looks_changes_nothing() -> None:
    frame = draw(CanaryWorld(more_refusals=0.3), 1)
    one, other = (compare(frame.head(num), 0.1, CanaryRules(), seed=5) for num in (760, 1100))
    assert one.signals == other.signals
    assert one.look == other.look == 2


@pytest.mark.parametrize(
    ("world", "signal"),
    [
        (CanaryWorld(more_failures=0.4), "failures"),
        (CanaryWorld(slower=4.0), "seconds"),
        (CanaryWorld(more_refusals=0.5), "refusals"),
        (CanaryWorld(more_bad=0.8, rated=0.5, fraction=0.5), "thumbs"),
    ],
)
def test_what_is_much_worse_is_seen_by_its_own_signal(world: CanaryWorld, signal: str) -> None:
    found = compare(draw(world, 2), world.fraction, CanaryRules(), seed=2)
    assert found.state == "worse"
    worse = {one.name for one in found.signals if one.state == "worse"}
    assert signal in worse
    one = next(one for one in found.signals if one.name == signal)
    assert one.p_value is not None
    assert one.level is not None
    assert one.p_value <= one.level
    assert one.difference is not None
    assert one.low is not None
    assert one.low <= one.difference
    assert one.sentence in found.sentence


def test_what_is_surely_worse_but_by_less_than_the_margin_is_kept() -> None:
    world = CanaryWorld(slower=1.5, fraction=0.5, num_exchanges=20_000, num_users=4_000)
    frame = draw(world, 4)
    strict = compare(frame, 0.5, CanaryRules(), seed=4)
    lenient = compare(frame, 0.5, CanaryRules(margin_seconds_ratio=2.0), seed=4)
    assert strict.state == "worse"
    assert lenient.state == "holding"
    assert strict.signals[1].p_value == lenient.signals[1].p_value


def test_what_is_better_is_kept() -> None:
    found = compare(draw(CanaryWorld(slower=0.3, fraction=0.5), 4), 0.5, CanaryRules(), seed=4)
    assert found.state == "holding"


def test_few_users_are_said_to_be_few() -> None:
    """Of two users among five it may be the users: no figures of theirs can tell."""
    frame = draw(CanaryWorld(num_users=5, fraction=0.4, more_refusals=0.9), 3)
    two = frame.with_columns(pl.col("unit").is_in(["user 0", "user 1"]).alias("is_canary"))
    found = compare(two, 0.4, CanaryRules(), seed=1)
    assert found.state == "too early"
    assert "too few: 2 users of the canary compared with 3" in found.signals[0].sentence


def frame_of(rows: list[tuple[str, bool, float]]) -> pl.DataFrame:
    columns = {"unit": [r[0] for r in rows], "is_canary": [r[1] for r in rows], "failed": [r[2] for r in rows]}
    return pl.DataFrame(columns).with_columns(pl.Series("ended_at", np.arange(len(rows), dtype=float)))


def test_a_canary_that_has_stopped_working_is_seen_at_once() -> None:
    rows = [("c", False, 0.0)] * 10
    for number in range(20):
        rows += [("ab"[number % 2], True, 1.0), ("c", False, 0.0)]
    assert "20 answers of the canary, of 2 users, have all failed" in (failing_streak(frame_of(rows)) or "")
    assert compare(with_nothing_else(frame_of(rows)), 0.1, CanaryRules()).state == "worse"


@pytest.mark.parametrize("case", ["one user", "an outage of everything", "nobody else asks", "one answer came"])
def test_what_is_no_fault_of_the_canary_is_not(case: str) -> None:
    rows = [("c", False, 0.0)] * 10
    for number in range(20):
        user = "a" if case == "one user" else "ab"[number % 2]
        rows.append((user, True, 0.0 if case == "one answer came" and number == 19 else 1.0))
        if case != "nobody else asks":
            rows.append(("c", False, 1.0 if case == "an outage of everything" else 0.0))
    assert failing_streak(frame_of(rows)) is None


def with_nothing_else(frame: pl.DataFrame) -> pl.DataFrame:
    names = ("seconds", "refused", "bad", "lacking", "rated_at")
    return frame.with_columns(*(pl.lit(None, dtype=pl.Float64).alias(name) for name in names))


def test_false_rollbacks_stay_below_the_error() -> None:
    """The small version of `benchmarks/canary.py`: at an error of 5%, 4 of 25 or more would come once in 30 times."""
    world = CanaryWorld(num_exchanges=1_200, num_users=150, fraction=0.25)
    assert sum(found_at(world, seed) is not None for seed in range(25)) < 4


def test_a_broken_canary_is_found_before_the_first_look() -> None:
    world = CanaryWorld(num_exchanges=1_200, more_failures=1.0)
    found = [found_at(world, seed) for seed in range(5)]
    assert all(one is not None and one <= 500 for one in found)


def test_every_kind_has_its_margin() -> None:
    assert {kind.margin for kind in KINDS} == {name for name in CanaryRules.model_fields if name.startswith("margin")}


@pytest.mark.parametrize(("num_canary", "rate"), [(2, 1.0), (3, 0.9), (2, 0.0)])
def test_a_difference_of_shares_stays_between_minus_1_and_1(num_canary: int, rate: float) -> None:
    """Two users of the canary that fail beside none of the rest: 1.96 standard errors would reach beyond 1."""
    mean = np.concatenate([np.full(num_canary, rate), np.full(40, 0.02)])
    units = Units(mean, np.full(len(mean), 2.0), np.arange(len(mean)) < num_canary)
    for is_fraction in (True, False):
        found = gap(units, is_fraction=is_fraction)
        assert -1 <= found.low <= found.difference <= found.high <= 1
    assert gap(units, is_fraction=True).low < gap(units, is_fraction=True).high
