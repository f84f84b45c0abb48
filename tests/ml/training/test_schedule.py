"""The learning rate of each step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup

from luthier.core.recipe import ScheduleName
from luthier.ml.training.step import learning_rate_factor


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
