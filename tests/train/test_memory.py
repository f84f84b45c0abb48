"""The peak is a real one, and can be forgotten."""

from __future__ import annotations

import sys

import pytest
import torch

from luthier.train import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process forget its peak")
def test_a_peak_is_seen_and_forgotten() -> None:
    memory.forget_peak()
    before = memory.peak_memory_bytes()
    block = torch.ones(40 << 20, dtype=torch.uint8)
    assert memory.peak_memory_bytes() >= before + (30 << 20)
    del block
    memory.forget_peak()
    assert memory.peak_memory_bytes() < before + (30 << 20)
