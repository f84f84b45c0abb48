"""A shared beginning changes nothing but the work: outputs, losses and gradients are those of separate rows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.training.attention import causal_attention
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.loop import train
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.prefix_attention import PrefixLayout

LAYOUTS = {
    "one beginning": PrefixLayout((5,), (4, 4, 4)),
    "ragged": PrefixLayout((5,), (4, 1, 3)),
    "pairs": PrefixLayout((5, 2, 0), (4, 2, 1, 3, 2, 2)),
}


def draw(layout: PrefixLayout, num_heads: int = 6, num_kv_heads: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    num_tokens = sum(layout.prefix_tokens) + sum(layout.suffix_tokens)
    shapes = [(1, heads, num_tokens, 8) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def row_by_row(layout: PrefixLayout, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Each suffix behind a copy of its beginning, in a row of its own; then all laid as the layout lays them."""
    prefix_lengths, suffixes = [], []
    starts, own = layout.starts()
    for number, (start, size) in enumerate(zip(own, layout.suffix_tokens, strict=True)):
        group = number // layout.num_suffixes
        cut = layout.prefix_tokens[group]
        pieces = (slice(starts[group], starts[group] + cut), slice(start, start + size))
        row = [torch.cat([t[:, :, piece] for piece in pieces], 2) for t in (q, k, v)]
        out, _ = causal_attention(nn.Identity(), *row, None, sliding_window=window)
        suffixes.append(out[:, cut:])
        if number % layout.num_suffixes == 0:
            prefix_lengths.append(out[:, :cut])
    return torch.cat(prefix_lengths + suffixes, 1)


@pytest.mark.parametrize("window", [None, 3, 6, 100])
@pytest.mark.parametrize("kept_max", [512, 0])
@pytest.mark.parametrize("block_scores", [1 << 20, 500, 1])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_equals_separate_rows(
    layout: PrefixLayout, window: int | None, kept_max: int, block_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = draw(layout)
    expected = row_by_row(layout, q, k, v, window)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [q, k, v])
    monkeypatch.setattr("luthier.ml.training.attention.KEPT_MAX_TOKENS", kept_max)
    monkeypatch.setattr("luthier.ml.training.prefix_attention.BLOCK_SCORES", block_scores)
    out, _ = causal_attention(nn.Identity(), q, k, v, None, sliding_window=window, prefix_layout=layout)
    torch.testing.assert_close(out, expected)
    for one, other in zip(torch.autograd.grad((out * weight).sum(), [q, k, v]), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_torchs_own_kernel_gives_the_same(
    layout: PrefixLayout, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = draw(layout)
    expected = row_by_row(layout, q, k, v, window)
    monkeypatch.setattr("luthier.ml.training.attention.is_blocked", lambda device: False)
    out, _ = causal_attention(nn.Identity(), q, k, v, None, sliding_window=window, prefix_layout=layout)
    torch.testing.assert_close(out, expected)


def test_gradient_is_the_derivative() -> None:
    layout = PrefixLayout((3, 1), (2, 1, 2, 3))
    q, k, v = draw(layout, num_heads=2, num_kv_heads=1)

    def shared(*tensors: Tensor) -> Tensor:
        return causal_attention(nn.Identity(), *tensors, None, prefix_layout=layout)[0]

    assert torch.autograd.gradcheck(shared, (q, k, v))


def test_positions_of_each_suffix_go_on_from_the_beginning() -> None:
    positions = PrefixLayout((2, 1), (3, 1, 1, 2)).positions(torch.device("cpu"))
    assert positions.tolist() == [[0, 1, 0, 2, 3, 4, 2, 1, 1, 2]]


def test_a_layout_that_cannot_be_is_refused() -> None:
    for prefix, suffix in (((3, 3), (1, 2, 3)), ((3,), ()), ((3,), (0, 2)), ((-1,), (2,))):
        with pytest.raises(ValueError, match="each beginning needs equally many suffixes"):
            PrefixLayout(prefix, suffix)


def family(num: int, num_shared: int, seed: int = 0) -> list[TokenisedExample]:
    """Rows with a common beginning; the first learned token follows it at once in some of them."""
    draws = random.Random(seed)
    header = draws.choices(range(300), k=num_shared)
    rows = []
    for number in range(num):
        own = draws.choices(range(300), k=draws.randint(2, 9))
        first = num_shared + (0 if number % 2 else 1)
        ids = array("i", header + own)
        rows.append(TokenisedExample(f"row:{number}", ids, bytes(int(i >= first) for i in range(len(ids)))))
    return rows


def loss_and_gradients(
    model: TrainableModel, rows: list[TokenisedExample], prefix_lengths: tuple[int, ...]
) -> tuple[float, Tensor]:
    model.module.zero_grad()
    model.module.eval()  # dropout draws for other positions where a beginning is shared
    loss, _ = model.loss_sum(collate(rows, model.pad_id, "cpu", prefix_lengths=prefix_lengths))
    loss.backward()
    found = [p.grad.flatten() for p in model.module.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found).double()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_loss_and_gradients_of_a_model(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    method: str,
    checkpointing: bool,
    num_groups: int,
) -> None:
    model = make_model(make_plan(method, gradient_checkpointing=checkpointing))
    with torch.no_grad():  # B of an adapter is zero at the start, and would hide what A receives
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    if num_groups == 1:
        rows, prefix_lengths = family(6, num_shared=17), (17,)
    else:  # three pairs, each with a beginning of its own length
        prefix_lengths = (17, 4, 11)
        rows = [row for seed, num in enumerate(prefix_lengths) for row in family(2, num_shared=num, seed=seed)]
    plain_loss, plain = loss_and_gradients(model, rows, ())
    shared_loss, shared = loss_and_gradients(model, rows, prefix_lengths)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-6)
    assert float((shared - plain).norm() / plain.norm()) < 5e-6


def test_the_model_proves_that_it_can(
    make_plan: Callable[..., Plan], make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_plan())
    model.module.train()
    assert model.can_share_prefix()
    assert model.module.training
    body = model.body.forward
    # a model that does not hand on what its attention is told
    monkeypatch.setattr(model.body, "forward", lambda *, prefix_layout=None, **rest: body(**rest))
    assert not model.can_share_prefix()


def test_rows_that_do_not_begin_alike_are_refused() -> None:
    rows = [*family(2, 5), *family(1, 5, seed=1)]
    with pytest.raises(ValueError, match=r"row:0 does not begin with the 5 tokens"):
        collate(rows, 0, "cpu", prefix_lengths=(5,))


class SharedSchedule:
    """All rows in every step, in one micro-batch, with or without a shared beginning."""

    def __init__(self, num: int, prefix_lengths: tuple[int, ...]) -> None:
        self.num, self.prefix_lengths = num, prefix_lengths

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(self.num)),)

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        return self.step(step)[rank::size]

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        return self.prefix_lengths

    def epoch_of(self, step: int) -> float:
        return float(step)

    def position(self, step: int) -> None:
        return None

    def resume_at(self, position: object) -> None:
        pass


def test_a_whole_run_learns_the_same(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    rows, plan, events = family(6, num_shared=17), make_plan(num_steps=4), []
    units = [(row,) for row in rows]
    losses: dict[int, list[float]] = {}
    for num_shared in (0, 17):
        events.clear()
        prefix_lengths = (num_shared,) if num_shared else ()
        train(
            plan,
            make_model(plan),
            load_objective(plan.objective),
            units,
            [(units, prefix_lengths)],
            SharedSchedule(6, prefix_lengths),
            CheckpointStore(tmp_path / str(num_shared), 2),
            emit=events.append,
            stop_requested=lambda: None,
            progress=SilentProgress(),
        )
        losses[num_shared] = [e.loss for e in events if isinstance(e, StepDone | ValidationDone)]
        tokens = {e.num_tokens for e in events if isinstance(e, StepDone)}
        assert tokens == {sum(row.num_tokens for row in rows)}
    assert losses[17] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
