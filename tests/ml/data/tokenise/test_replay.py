"""Steps of task and general rows: each in micro-batches of its own, as often as asked, the same at each asking."""

from __future__ import annotations

from luthier.ml.data.tokenise.batches import ReplaySchedule, StepSchedule


def schedule(num_task: int, num_general: int, task: int, general: int) -> ReplaySchedule:
    made = [
        StepSchedule(
            [5 + i % 7 for i in range(num)], global_batch_size=size, micro_batch_tokens=30, order="by_length", seed=3
        )
        for num, size in ((num_task, task), (num_general, general))
    ]
    return ReplaySchedule(made[0], made[1], num_task)


def test_each_step_holds_both_kinds_apart() -> None:
    steps = schedule(60, 10, 6, 2)
    for step in range(25):
        batches = steps.step(step)
        assert [i for batch in batches for i in batch if i >= 60] != []
        assert all(len({i >= 60 for i in batch}) == 1 for batch in batches), "one kind a micro-batch"
        assert sum(i < 60 for batch in batches for i in batch) == 6
        assert sum(i >= 60 for batch in batches for i in batch) == 2


def test_an_epoch_of_the_task_sees_each_row_once_and_general_rows_go_round() -> None:
    steps = schedule(60, 10, 6, 2)
    assert steps.num_steps_per_epoch == 10
    assert steps.epoch_of(15) == 1.5
    seen = sorted(i for step in range(10) for batch in steps.step(step) for i in batch)
    assert [i for i in seen if i < 60] == list(range(60))
    assert [i for i in seen if i >= 60] == sorted([*range(60, 70)] * 2), "ten rows, two a step, ten steps"


def test_a_step_depends_on_its_number_alone() -> None:
    one, other = schedule(60, 10, 6, 2), schedule(60, 10, 6, 2)
    later = [one.step(step) for step in range(30)]
    assert other.step(29) == later[29]
    assert other.step(4) == later[4]


def test_the_shares_of_two_ranks_are_the_step() -> None:
    steps = schedule(60, 10, 6, 2)
    for step in range(12):
        shares = [i for rank in (0, 1) for batch in steps.share(step, rank, 2) for i in batch]
        assert sorted(shares) == sorted(i for batch in steps.step(step) for i in batch)
