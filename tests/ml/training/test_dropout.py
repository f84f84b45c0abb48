"""Dropout from a key: the stated share, independent neighbours, the same mask again."""

from __future__ import annotations

import pytest
import torch

from luthier.ml.training.low_rank import Dropout, keep


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.25, 0.3, 0.0001])
def test_dropout_keeps_the_stated_fraction(probability: float, dtype: torch.dtype) -> None:
    dropout = Dropout(probability, key=1)
    x = torch.full((1000, 1001), 1.5, dtype=dtype)
    kept = keep(x, dropout.mask(x))
    assert set(kept.unique().tolist()) == {0.0, 1.5}, "what is kept is kept to the bit"
    assert dropout.keep_probability == pytest.approx(1 - probability, abs=2e-5)
    deviation = (dropout.keep_probability * (1 - dropout.keep_probability) / x.numel()) ** 0.5
    assert abs(float((kept != 0).double().mean()) - dropout.keep_probability) < 5 * deviation


def kept_ones(probability: float, key: int, x: torch.Tensor) -> torch.Tensor:
    return keep(x, Dropout(probability, key).mask(x))


def test_dropout_neighbours_are_independent() -> None:
    flat = (kept_ones(0.5, 2, torch.ones(500, 2000)) - 0.5).flatten().double()
    for lag in (1, 2, 3, 4, 2000):
        assert abs(float((flat[:-lag] * flat[lag:]).mean()) * 4) < 5e-3


def test_the_same_key_gives_the_same_mask_in_every_precision() -> None:
    x = torch.ones(7, 9)
    first = kept_ones(0.5, 3, x)
    assert torch.equal(kept_ones(0.5, 3, x), first)
    assert torch.equal(kept_ones(0.5, 3, x.bfloat16()).float(), first)
    assert not torch.equal(kept_ones(0.5, 4, x), first)


def test_a_probability_too_small_to_draw_drops_nothing() -> None:
    x = torch.ones(3, 3)
    assert Dropout(1e-9, key=0).mask(x) is None
    assert keep(x, None) is x
    assert Dropout(1e-9, key=0).keep_probability == 1.0
