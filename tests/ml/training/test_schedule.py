"""The learning rate of each step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from luthier.core.recipe import ScheduleName
from luthier.ml.training.optimizer import learning_rate_factor


def test_linear_without_warm_up_is_the_one_of_transformers() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_linear_schedule_with_warmup(optimizer, 0, 7)
    for step in range(7):
        ours = learning_rate_factor(step, num_steps=7, num_warmup_steps=0, schedule="linear")
        assert ours == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_cosine_goes_from_one_through_a_half_towards_zero() -> None:
    factors = [learning_rate_factor(s, num_steps=10, num_warmup_steps=0, schedule="cosine") for s in range(11)]
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)


def test_cosine_with_an_end_above_zero_is_the_one_of_transformers() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 0, 9, min_lr_rate=0.1)
    for step in range(9):
        ours = learning_rate_factor(step, num_steps=9, num_warmup_steps=0, schedule="cosine", min_lr_ratio=0.1)
        assert ours == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.25 + 0.75 * 0.1), ("constant", 1.0)])
def test_the_last_step_of_a_schedule_that_ends_at_a_quarter(schedule: ScheduleName, last: float) -> None:
    found = learning_rate_factor(9, num_steps=10, num_warmup_steps=0, schedule=schedule, min_lr_ratio=0.25)
    assert found == pytest.approx(last)


def test_a_run_of_this_version_has_the_very_rates_of_earlier_ones() -> None:
    for step in range(7):
        ours = learning_rate_factor(step, num_steps=7, num_warmup_steps=0, schedule="cosine")
        assert ours == 0.5 * (1.0 + math.cos(math.pi * step / 7))


@given(
    num_steps=st.integers(1, 300),
    warmup=st.integers(0, 300),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_always_in_range_rising_then_never_rising(num_steps: int, warmup: int, schedule: ScheduleName) -> None:
    warmup = min(warmup, num_steps)
    factors = [
        learning_rate_factor(s, num_steps=num_steps, num_warmup_steps=warmup, schedule=schedule)
        for s in range(num_steps)
    ]
    assert all(0.0 < f <= 1.0 for f in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
