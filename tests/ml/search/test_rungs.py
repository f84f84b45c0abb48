"""Which trial is next: promotions first, then new ones, and at the end one that gets to the top."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.workflows.study import Result, Trial
from luthier.ml.search.rungs import RUNGS, Begin, GoOn, next_step, ranked, rung_steps, usable

ASKED = {"num_rungs": 3, "reduction": 3, "most_trials": 9}


def trial(number, *losses, state="paused"):
    results = tuple(Result(rung=r, step=r + 1, share=0.1 * (r + 1), loss=loss) for r, loss in enumerate(losses))
    return Trial(number=number, values={}, run_id=f"run-{number}", results=results, state=state)


def test_the_first_is_begun_and_one_that_waits_goes_first():
    assert next_step([], **ASKED) == Begin()
    assert next_step([trial(0, state="waiting")], **ASKED) == GoOn(0, 0)


def test_the_best_of_three_goes_on_and_only_once():
    three = [trial(0, 3.0), trial(1, 1.0), trial(2, 2.0)]
    assert next_step(three, **ASKED) == GoOn(1, 1)
    gone_on = [three[0], trial(1, 1.0, 0.9), three[2]]
    assert next_step(gone_on, **ASKED) == Begin()


def test_a_higher_rung_goes_before_a_lower_one():
    there = [trial(n, 1.0 + n, 0.5 + n) for n in range(3)] + [trial(n, 9.0) for n in range(3, 6)] + [trial(6, 0.1)]
    assert next_step(there, **ASKED) == GoOn(0, 2)


def test_with_no_room_for_more_the_best_is_brought_up():
    two = [trial(0, 2.0), trial(1, 1.0)]
    assert next_step(two, **ASKED, may_begin=False) == GoOn(1, 1)
    assert next_step([two[0], trial(1, 1.0, 0.8)], **ASKED, may_begin=False) == GoOn(1, 2)
    assert next_step([two[0], trial(1, 1.0, 0.8, 0.7, state="done")], **ASKED, may_begin=False) is None


def test_nothing_is_brought_up_while_others_work():
    assert next_step([trial(0, 2.0), trial(1, state="running")], **ASKED, may_begin=False) is None


def test_failed_ones_are_never_gone_on_with():
    assert next_step([trial(0, 0.1, state="failed"), trial(1, 5.0)], **ASKED, may_begin=False) == GoOn(1, 1)
    assert ranked([trial(0, 0.1, state="failed")]) == []


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(2, 4), st.integers(1, 4))
def test_every_search_ends_with_one_at_the_top_and_none_ahead_of_its_turn(losses, reduction, num_rungs):
    trials: list[Trial] = []
    for _ in range(1000):
        step = next_step(trials, num_rungs=num_rungs, reduction=reduction, most_trials=len(losses))
        if step is None:
            break
        if isinstance(step, Begin):
            trials.append(trial(len(trials), state="waiting"))
            continue
        before = trials[step.number]
        assert before.rung == step.rung - 1
        if step.rung and len(trials) < len(losses):
            better = [t for t in trials if t.rung >= before.rung and t.results[before.rung].loss < before.loss]
            there = [t for t in trials if t.rung >= before.rung]
            assert len(better) < max(1, len(there) // reduction)
        so_far = [result.loss for result in before.results]
        state = "done" if step.rung == num_rungs - 1 else "paused"
        trials[step.number] = trial(step.number, *so_far, losses[step.number], state=state)
    assert len(trials) == len(losses)
    assert ranked(trials)[0].rung == num_rungs - 1


def test_rungs_lie_where_one_interval_of_validations_meets_them():
    steps = rung_steps((1 / 9, 1 / 3, 1.0), num_steps=90, tokens_per_step=100, whole_tokens=9000)
    assert steps == [10, 30, 90]
    # half as many rows a step: the same tokens are twice the steps
    assert rung_steps((1 / 9, 1 / 3, 1.0), 180, 50, 9000) == [20, 60, 180]
    # a training that is shorter than a rung ends on it
    assert rung_steps((1 / 9, 1 / 3, 1.0), 20, 100, 9000) == [10, 20, 20]


@pytest.mark.parametrize(
    ("num_steps", "rungs"),
    [(1000, RUNGS), (19, RUNGS), (18, RUNGS[1:]), (8, RUNGS[1:]), (7, RUNGS[1:]), (6, (1.0,)), (1, (1.0,))],
)
def test_a_rung_of_a_step_or_two_is_none(num_steps, rungs):
    """A training's first steps say who diverges, and no more: five real ones, docs/log.md."""
    assert usable(RUNGS, num_steps) == rungs
