"""Several goals: what no other beats, in which order, and where the knee is."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from luthier.core.workflows.study import Result, Trial
from luthier.ml.search.rungs import GoOn, beats, front_numbers, in_order, knee, next_step, ranked, room_around

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=20)


@given(POINTS)
def test_nothing_beats_the_first_front_and_each_other_is_beaten_by_the_one_before(points):
    numbers = front_numbers(points)
    for point, number in zip(points, numbers, strict=True):
        beaten_by = [other for other, front in zip(points, numbers, strict=True) if beats(other, point)]
        assert bool(beaten_by) == (number > 0)
        if number:
            assert any(front == number - 1 and beats(o, point) for o, front in zip(points, numbers, strict=True))


@given(POINTS)
def test_all_stand_in_order_of_their_fronts(points):
    numbers, order = front_numbers(points), in_order(points)
    assert sorted(order) == list(range(len(points)))
    assert [numbers[i] for i in order] == sorted(numbers)


def test_ends_have_most_room():
    room = room_around([(0.0, 4.0), (1.0, 1.0), (4.0, 0.0)])
    assert math.isinf(room[0])
    assert math.isinf(room[2])
    assert room[1] == 2.0


def test_the_knee_is_where_the_front_bends():
    assert knee({7: (0.0, 10.0), 3: (1.0, 1.0), 5: (10.0, 0.0), 9: (9.0, 9.0)}) == 3
    assert knee({2: (1.0, 1.0)}) == 2
    assert knee({}) is None


def trial(number, loss, size):
    result = Result(rung=0, step=1, share=0.5, loss=loss)
    return Trial(number=number, values={}, run_id="r", state="paused", results=(result,), goals={"size": size})


def test_a_small_one_that_learned_a_little_goes_on_beside_a_large_one_that_learned_more():
    trials = [trial(0, 1.0, 9.0), trial(1, 2.0, 1.0), trial(2, 3.0, 8.0), trial(3, 4.0, 9.0)]
    asked = {"num_rungs": 2, "reduction": 2, "most_trials": 4}
    assert {t.number for t in ranked(trials, ("quality", "size"))[:2]} == {0, 1}
    first = next_step(trials, **asked, goals=("quality", "size"))
    assert isinstance(first, GoOn)
    trials[first.number] = trials[first.number].model_copy(update={"state": "done"})
    second = next_step(trials, **asked, goals=("quality", "size"))
    assert {first.number, second.number} == {0, 1}


def test_the_knee_is_chosen_among_what_was_repeated_and_by_the_whole_front():
    points = {7: (0.0, 10.0), 3: (1.0, 1.0), 4: (2.0, 0.5), 5: (10.0, 0.0), 9: (9.0, 9.0)}
    assert knee(points) == 3
    assert knee(points, [4, 7]) == 4
    assert knee(points, [7, 9]) == 7, "what is on the front goes first"
    assert knee(points, [9]) == 9
