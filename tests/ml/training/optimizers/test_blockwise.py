"""Eight bits a number: the published levels, the nearest of them, and no more room than that."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.training.optimizers import update_rules


def test_the_levels_by_hand() -> None:
    signed, unsigned = update_rules.levels(is_signed=True), update_rules.levels(is_signed=False)
    assert len(signed) == len(unsigned) == 256
    # the largest power has 64 steps from 0.1 to 1 with a sign, 128 without; a level is the middle of one
    assert signed[-2:].tolist() == pytest.approx([0.1 + 0.9 * 63.5 / 64, 1.0])
    assert unsigned[-2:].tolist() == pytest.approx([0.1 + 0.9 * 127.5 / 128, 1.0])
    # the smallest has one step with a sign and two without
    assert signed[signed > 0][0].item() == pytest.approx(0.55e-6)
    assert unsigned[1:3].tolist() == pytest.approx([0.325e-6, 0.775e-6])
    assert signed[0].item() == -signed[-2].item()
    assert 0.0 in signed
    assert unsigned[0] == 0.0


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="no bitsandbytes")
def test_levels_and_codes_are_those_of_bitsandbytes() -> None:
    from bitsandbytes import functional

    for is_signed in (True, False):
        theirs = functional.create_dynamic_map(signed=is_signed)
        torch.testing.assert_close(update_rules.levels(is_signed=is_signed), theirs, rtol=0, atol=1e-7)
        numbers = torch.randn(64 * 256, generator=torch.Generator().manual_seed(0))
        numbers = numbers if is_signed else numbers.abs()
        codes, state = functional.quantize_blockwise(numbers, code=theirs, blocksize=256)
        ours = update_rules.zeros(numbers.numel(), "cpu", is_signed=is_signed)
        update_rules.pack(numbers, ours, is_signed=is_signed)
        torch.testing.assert_close(ours.largest, state.absmax)
        apart = (ours.codes.flatten().int() - codes.flatten().int()).abs()
        # where a number is within a thousandth of the middle between two levels; theirs is no exact search either
        assert apart.max() <= 2
        assert (apart > 0).float().mean() < 0.02


@given(st.integers(1, 600), st.integers(0, 2**31), st.booleans())
def test_what_comes_back_is_the_nearest_level_of_its_block(count: int, seed: int, is_signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, generator=generator) * torch.randn(count, generator=generator).exp()
    numbers = numbers if is_signed else numbers.abs()
    packed = update_rules.zeros(count, "cpu", is_signed=is_signed)
    update_rules.pack(numbers, packed, is_signed=is_signed)
    back = update_rules.unpack(packed, is_signed=is_signed, dtype=torch.float32)[:count]
    for start in range(0, count, 256):
        block, found = numbers[start : start + 256], back[start : start + 256]
        scale = block.abs().max()
        best = (block[:, None] / scale - update_rules.levels(is_signed=is_signed)).abs().amin(1)
        assert ((found - block).abs() / scale <= best + block.abs() / scale * 2e-3 + 1e-7).all()


def test_zeros_stay_zeros() -> None:
    packed = update_rules.zeros(300, "cpu", is_signed=True)
    assert not update_rules.unpack(packed, is_signed=True, dtype=torch.float32).any()
    update_rules.pack(torch.zeros(300), packed, is_signed=True)
    assert not update_rules.unpack(packed, is_signed=True, dtype=torch.float32).any()
