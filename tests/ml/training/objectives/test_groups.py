"""What answers are worth beside each other, and how they are laid into micro-batches."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import TokenisedExample
from luthier.core.ports import Grade, Rollout
from luthier.features.planning.batch_schedules import _drawn
from luthier.ml.planning.batch_shapes import num_computed_tokens
from luthier.ml.training.objective_protocol import rows_of
from luthier.ml.training.objectives.grpo import Answer, Group, make_batches
from luthier.ml.training.objectives.sampling import Sample


def answer(name: str, reward: float, num_prompt: int = 3, num_new: int = 2) -> Answer:
    ids = array("i", [7] * num_prompt + [9] * num_new)
    row = TokenisedExample(name, ids, bytes(num_prompt) + b"\1" * num_new)
    return Answer(Sample("row", row, Rollout("row", "", num_new, True), ()), Grade(reward, {"x": reward}))


def group_of(rewards: Sequence[float], *, divide_by_spread: bool = True) -> Group:
    return Group.of([answer(f"a{i}", r) for i, r in enumerate(rewards)], divide_by_spread=divide_by_spread)


def test_an_advantage_is_how_far_above_the_mean_in_spreads() -> None:
    found = group_of([0.0, 1.0, 1.0, 2.0])
    spread = (2 / 3) ** 0.5  # squares 1, 0, 0, 1 over n - 1
    assert [a.advantage for a in found.answers] == pytest.approx([-1 / (spread + 1e-4), 0, 0, 1 / (spread + 1e-4)])
    assert found.spread == pytest.approx(spread)
    plain = group_of([0.0, 1.0, 1.0, 2.0], divide_by_spread=False)
    assert [a.advantage for a in plain.answers] == [-1.0, 0.0, 0.0, 1.0]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.booleans())
def test_advantages_of_a_group_add_up_to_nothing_and_keep_the_order(rewards: list[float], divided: bool) -> None:
    found = group_of(rewards, divide_by_spread=divided)
    advantages = np.array([a.advantage for a in found.answers])
    assert np.isfinite(advantages).all()
    assert abs(advantages.sum()) < 1e-6 * max(1.0, np.abs(advantages).max())
    assert found.has_signal == (max(rewards) > min(rewards))
    if not found.has_signal:
        assert (advantages == 0).all()  # also where the mean of equal numbers is rounded: 0.1 three times
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(advantages[order]) >= -1e-9).all()


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.integers(1, 150),
    st.booleans(),
)
def test_every_answer_is_in_one_micro_batch_that_keeps_its_size(
    lengths: list[list[int]], alike: list[bool], budget: int, shares: bool
) -> None:
    groups = [
        Group.of(
            [answer(f"{g}.{i}", 0.0 if alike[g] else i, g + 2, n) for i, n in enumerate(new)], divide_by_spread=True
        )
        for g, new in enumerate(lengths)
    ]
    made = make_batches(groups, micro_batch_tokens=budget, shares_prefix=shares)
    found = [row.id for units, _ in made for row in rows_of(units)]
    assert sorted(found) == sorted(a.row.id for group in groups for a in group.answers)
    for units, prefix_lengths in made:
        rows = rows_of(units)
        assert len({alike[int(row.id.split(".")[0])] for row in rows}) == 1  # nothing idle beside what is learned
        assert shares or not prefix_lengths
        if prefix_lengths:  # as `collate` reads them: equally many rows each, that begin with so many tokens
            each = len(rows) // len(prefix_lengths)
            assert [prefix_lengths[i // each] for i in range(len(rows))] == [row.num_prompt_tokens for row in rows]
        assert len(rows) == 1 or num_computed_tokens([row.num_tokens for row in rows], prefix_lengths) <= budget


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(2, 5),
    st.integers(1, 30),
    st.integers(1, 300),
    st.booleans(),
)
def test_a_quote_cuts_answers_as_long_as_they_may_be_as_a_step_cuts_them(
    prompts: list[int], num: int, new: int, budget: int, shares: bool
) -> None:
    groups = [
        Group.of([answer(f"{g}.{i}", float(i), prompt, new) for i in range(num)], divide_by_spread=True)
        for g, prompt in enumerate(prompts)
    ]
    made = make_batches(groups, micro_batch_tokens=budget, shares_prefix=shares)
    wanted = [(cuts, tuple((r.num_tokens, r.num_trained_tokens) for r in rows_of(units))) for units, cuts in made]
    assert sorted(_drawn(prompts, num, new, budget, shares_prefix=shares)) == sorted(wanted)
