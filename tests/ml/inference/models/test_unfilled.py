"""Tensors without content are not filled; all others are, in the same block too."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from luthier.ml.inference.models.unfilled import Unfilled


def test_what_is_on_the_meta_device_stays_as_it_is_and_what_is_not_is_filled() -> None:
    elsewhere = list[Tensor]()
    with torch.device("meta"), Unfilled():
        empty = torch.empty(2, 3)
        assert nn.init.normal_(tensor=empty) is empty
        assert nn.init.trunc_normal_(empty) is empty
        assert nn.init.kaiming_uniform_(empty) is empty
        assert empty.uniform_(0, 1) is empty
        assert nn.Linear(3, 2).weight.is_meta
        filled = nn.init.normal_(torch.zeros(4, device="cpu"))
        thread = threading.Thread(target=lambda: elsewhere.append(nn.init.uniform_(torch.zeros(4), 1.0, 2.0)))
        thread.start()
        thread.join()
    assert filled.count_nonzero() == 4
    assert elsewhere[0].min() >= 1
    assert nn.init.ones_(torch.zeros(2)).tolist() == [1, 1]


def test_random_numbers_of_others_stay_the_same() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.device("meta"), Unfilled():
        nn.Linear(4, 4)
    assert torch.rand(2).equal(expected)
