"""Noise on the embeddings: its size as in the paper, where it falls, and when there is none."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.training.embedding_noise import EmbeddingNoise, own_lengths
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.prefix_attention import PrefixLayout

WIDTH = 64


def noisy(lengths: tuple[int, ...], layout: PrefixLayout | None = None, alpha: float = 5.0, seed: int = 0) -> Tensor:
    """The noise alone: what comes out of an embedding of zeros, at positions laid as the layout says."""
    embedding = nn.Embedding(3, WIDTH)
    nn.init.zeros_(embedding.weight)
    noise = EmbeddingNoise(embedding, alpha)
    shape = (len(lengths), max(lengths))
    if layout is not None:
        shape = (1, sum(layout.prefix_tokens) + sum(layout.suffix_tokens))
    ids = torch.zeros(shape, dtype=torch.int64)
    noise.expect(ids, lengths, layout)
    torch.manual_seed(seed)
    out: Tensor = embedding(ids)
    return out.detach()


def test_each_row_gets_noise_by_its_own_length_and_padding_none() -> None:
    found = noisy((200, 50))
    for row, length in ((0, 200), (1, 50)):
        most = 5.0 / math.sqrt(length * WIDTH)
        own = found[row, :length]
        assert float(own.abs().max()) <= most
        assert float(own.abs().max()) > 0.99 * most
        assert float(own.mean()) == pytest.approx(0.0, abs=5 * most / math.sqrt(3 * own.numel()))
        assert float(own.square().mean()) == pytest.approx(most**2 / 3, rel=0.05), "the variance of uniform noise"
    assert not found[1, 50:].any()


def test_a_shared_beginning_gets_the_noise_of_its_longest_example_once() -> None:
    layout = PrefixLayout(prefix_tokens=(100,), suffix_tokens=(60, 20))
    found = noisy((160, 120), layout)[0]
    longest, shorter = (5.0 / math.sqrt(length * WIDTH) for length in (160, 120))
    assert 0.99 * longest < float(found[:100].abs().max()) <= longest
    assert 0.99 * longest < float(found[100:160].abs().max()) <= longest
    assert longest < float(found[160:180].abs().max()) <= shorter


def test_own_lengths_by_hand() -> None:
    assert own_lengths(torch.zeros(2, 3), (3, 1)).tolist() == [[3, 3, 3], [1, 0, 0]]
    layout = PrefixLayout(prefix_tokens=(1,), suffix_tokens=(1, 2))
    assert own_lengths(torch.zeros(1, 4), (2, 3), layout).tolist() == [[3, 2, 3, 3]]
    pairs = PrefixLayout(prefix_tokens=(2, 1), suffix_tokens=(1, 3, 1, 1))
    assert own_lengths(torch.zeros(1, 9), (3, 5, 2, 2), pairs).tolist() == [[5, 5, 2, 3, 5, 5, 5, 2, 2]]


def test_noise_comes_from_torchs_generator() -> None:
    first = noisy((8, 5), seed=3)
    assert torch.equal(noisy((8, 5), seed=3), first)
    assert not torch.equal(noisy((8, 5), seed=4), first)


def test_without_alpha_nothing_is_drawn() -> None:
    assert not noisy((8, 5), alpha=0.0, seed=3).any()
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning"])
def test_only_training_is_noisy(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    examples: list[TokenisedExample],
    method: str,
) -> None:
    plan = make_plan(method, neftune_alpha=5.0)
    model, plain = make_model(plan), make_model(make_plan(method))
    batch = collate(examples[:4], model.pad_id, "cpu")
    model.module.eval(), plain.module.eval()
    assert torch.equal(model.loss_sum(batch)[0], plain.loss_sum(batch)[0])
    model.module.train(), plain.module.train()
    torch.manual_seed(1)
    one = model.loss_sum(batch)[0]
    torch.manual_seed(2)
    assert not torch.equal(one, model.loss_sum(batch)[0])
    torch.manual_seed(1)
    assert torch.equal(one, model.loss_sum(batch)[0])
    torch.manual_seed(1)
    assert not torch.equal(one, plain.loss_sum(batch)[0])


def test_a_shared_beginning_with_noise_trains_as_one_noisy_beginning(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    """Two equal examples that share a beginning of all but the last token: the loss is that of a single noisy row."""
    ids = array("i", range(2, 22))
    row = TokenisedExample("a", ids, bytes([0] * 19 + [1]))
    model = make_model(make_plan(neftune_alpha=5.0), torch.float64)
    model.module.train()
    torch.manual_seed(0)
    pair = model.loss_sum(collate([row, replace(row, id="b")], model.pad_id, "cpu", prefix_lengths=(19,)))[0]
    torch.manual_seed(0)
    single = model.loss_sum(collate([row], model.pad_id, "cpu"))[0]
    # the learned token is predicted at the end of the beginning, whose noise is the same first draw for both
    assert float(pair.detach()) == pytest.approx(2 * float(single.detach()), rel=1e-6)
