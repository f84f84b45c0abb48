"""Sums are those of the numbers one by one, read from their device at one time."""

from __future__ import annotations

from array import array

import pytest
import torch

from luthier.core.dataset import TokenisedExample
from luthier.ml.training.distributed import ALONE
from luthier.ml.training.model import collate
from luthier.ml.training.objective_protocol import Losses
from luthier.ml.training.step import StepSums


def test_nothing_is_read_before_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([TokenisedExample("a", array("i", [1, 2, 3]), b"\0\1\1")], 0, "cpu")
    numbers = [0.1, 1e8, 0.3, -1e8]
    totals = [torch.tensor(number, requires_grad=True) for number in numbers]
    sums, reads = StepSums(num_examples=4), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "item", lambda _: pytest.fail("a number was read by itself"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda found: reads.append(found.shape) or tolist(found))
    for number, total in enumerate(totals):
        measures = {"right": torch.tensor(number)} | ({"rare": torch.tensor(0.5)} if number == 2 else {})
        sums.add(Losses(total, measures), batch)
    assert reads == []
    found = sums.over(ALONE)
    assert reads == [(9,)]
    by_hand = 0.0
    for total in totals:
        by_hand += float(total.detach().double().numpy())
    assert found.loss == by_hand  # to the bit: in the order in which they came
    assert found.measures == {"right": 6.0, "rare": 0.5}
    assert (found.num_tokens, found.num_trained_tokens, found.num_examples) == (12, 8, 4)
    assert sums.over(ALONE).loss == by_hand  # and not twice
