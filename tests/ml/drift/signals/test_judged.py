import numpy as np
import pytest

from luthier.ml.drift.signals.training import FEWEST, Scored, judged_signals


def scored(values, prefix: str = "a") -> Scored:
    return Scored([f"{prefix}{n}" for n in range(len(values))], {"accuracy": list(values)}, len(values) + 3)


def test_a_fall_of_two_points_is_told_with_the_worst_answers_first():
    before, now = scored([5, 4] * 30, "b"), scored([3, 2] * 29 + [1, 1])
    (found,) = judged_signals("judge", before, now, num_signals=30)
    assert found.state == "changed"
    assert found.reference == 4.5
    assert found.low < found.value < found.high
    assert found.examples[:2] == ("a58", "a59")
    assert "human-eval create" in found.do


def test_the_same_scores_are_steady_and_it_is_said_what_would_have_been_seen():
    (found,) = judged_signals("judge", scored([5, 3, 4] * 20), scored([4, 5, 3] * 20), num_signals=30)
    assert found.state == "steady"
    assert "points would be" in found.sentence


@pytest.mark.parametrize(("num_before", "num_now"), [(0, 60), (60, FEWEST - 1), (0, 0)])
def test_too_few_verdicts_are_unknown(num_before, num_now):
    (found,) = judged_signals("judge", scored([4] * num_before), scored([1] * num_now), num_signals=30)
    assert found.state == "unknown"
    assert f"now {num_now} of {num_now + 3}; " in found.sentence


def test_a_judge_that_always_says_the_same_does_not_make_a_point_sure_that_could_be_chance():
    (found,) = judged_signals("judge", scored([4] * 20), scored([4] * 19 + [3]), num_signals=30)
    assert found.state == "steady"


def test_of_judges_that_see_no_change_none_tells_one():
    random = np.random.default_rng(5)
    found = [
        judged_signals("judge", scored(random.integers(1, 6, 60)), scored(random.integers(1, 6, 60)), num_signals=30)[
            0
        ].state
        for _ in range(300)
    ]
    assert set(found) == {"steady"}


def test_a_mean_score_has_an_interval_between_1_and_5():
    for values in ([5] * 24, [5] * 23 + [4], [1] * 20 + [2], [1, 5] * 10):
        (found,) = judged_signals("judge", scored([4] * 20), scored(values), num_signals=30)
        assert 1 <= found.low <= found.value <= found.high <= 5
        assert found.low < found.high
