"""A training is stopped only where no finished one makes one expect that it can still become the best."""

from __future__ import annotations

import pytest

from luthier.ml.search.rungs import MIN_FINISHED, Finished, end_of
from luthier.ml.search.sampling import suggest
from luthier.ml.search.space import default_space
from luthier.testing.made_curves import OWN, MadeTask
from luthier.testing.records import make_plan

SHARES = [n / 9 for n in range(1, 10)]


def power_law(end, gain):
    return tuple((share, end + gain * (share**-0.5 - 1)) for share in SHARES)


def test_a_power_law_is_drawn_on_to_its_end():
    assert end_of(power_law(1.0, 0.4)[:3]) == pytest.approx(1.0, abs=1e-6)


def test_a_curve_that_rises_ends_at_its_lowest():
    assert end_of([(0.1, 1.0), (0.2, 0.9), (0.3, 1.2), (0.4, 1.5)]) == 0.9


def test_too_few_points_or_finished_ones_say_nothing():
    finished = Finished(tuple(power_law(1.0 + n / 10, 0.4) for n in range(MIN_FINISHED)))
    bad = power_law(3.0, 0.4)
    assert finished.why_hopeless(bad[:2]) == ""
    assert Finished(finished.curves[1:]).why_hopeless(bad[:3]) == ""
    assert finished.why_hopeless(()) == ""
    assert finished.why_hopeless(bad) == ""  # it is through


def test_what_cannot_become_the_best_is_named_and_what_can_is_not():
    finished = Finished(tuple(power_law(1.0 + n / 10, 0.4) for n in range(MIN_FINISHED)))
    said = finished.why_hopeless(power_law(2.0, 0.4)[:4])
    assert said.startswith("after 44% of its steps it should end at 2.0000")
    assert "another has 1.0000" in said
    assert finished.why_hopeless(power_law(0.9, 0.4)[:4]) == ""


def test_a_schedule_that_helps_late_is_allowed_for():
    """One that was finished ended far below its line: so may another."""
    late = [(share, 1.5 + 0.1 * (share**-0.5 - 1) - (0.8 if share > 0.8 else 0.0)) for share in SHARES]
    finished = Finished((tuple(late), *(power_law(1.0 + n / 10, 0.4) for n in range(MIN_FINISHED))))
    assert finished.why_hopeless(power_law(1.4, 0.1)[:4]) == ""


def stopping_of(task, num):
    """Over `num` trainings drawn at random, one after the other: (stopped, wrongly, steps saved, would have won)."""
    space, made = default_space(make_plan(), most_rank=64), MadeTask(task)
    finished: list[tuple[tuple[float, float], ...]] = []
    stopped = wrong = won = 0
    saved = 0.0
    for number in range(num):
        values = suggest(space, [], sampler="random", seed=task, number=number, num_rungs=1)
        curve = tuple(zip(SHARES, made.curve(OWN | values, SHARES), strict=True))
        best = min((loss for whole in finished for _, loss in whole), default=9.0)
        is_winner = min(loss for _, loss in curve) < best
        won += is_winner and len(finished) >= MIN_FINISHED
        at = next((n for n in range(3, 9) if Finished(tuple(finished)).why_hopeless(curve[:n])), None)
        if at is None:
            finished.append(curve)
            continue
        stopped, saved, wrong = stopped + 1, saved + 1 - SHARES[at - 1], wrong + is_winner
    return stopped, wrong, saved, won


def test_how_often_it_stops_what_would_have_won():
    """The bound allows at most one in five at first, and fewer with each training that is finished."""
    found = [stopping_of(task, 25) for task in range(12)]
    stopped, wrong, saved, won = (sum(column) for column in zip(*found, strict=True))
    assert stopped > 100
    assert wrong <= 0.02 * stopped
    assert wrong <= 0.2 * won
    assert saved / (12 * 25) > 0.15
