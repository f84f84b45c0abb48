"""A packed micro-batch trains what its rows train one by one, and a model proves it before any is given to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ml.training.conftest import VOCABULARY, FixedSchedule, random_examples
from tests.vacuous import nonempty
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    Lfm2Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.training import attention
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.equivalence import why_not_packed
from luthier.ml.training.loop import train
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objectives.rules import load_objective

PACKED = (0,)
"""The prefixes of rows that lie end to end with nothing in common."""


def loss_and_gradients(
    model: TrainableModel, batches: list[list[TokenisedExample]], prefix_lengths: tuple[int, ...] = ()
) -> tuple[float, Tensor]:
    """Of all batches together; without dropout, which draws for other positions where rows lie end to end."""
    model.module.zero_grad()
    model.module.eval()
    total = 0.0
    for rows in batches:
        loss, _ = model.loss_sum(collate(rows, model.pad_id, model.device, prefix_lengths=prefix_lengths))
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None]).double()


def shaken(model: TrainableModel) -> TrainableModel:
    """B of an adapter is zero at the start, and would hide what A receives."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def assert_packed_equals_row_by_row(model: TrainableModel, rows: list[TokenisedExample]) -> None:
    loss, gradients = loss_and_gradients(model, [[row] for row in rows])
    packed_loss, packed = loss_and_gradients(model, [rows], PACKED)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert float((packed - gradients).norm() / gradients.norm()) < 1e-5


@pytest.mark.parametrize("method", ["lora", "full", "dora", "ia3", "adalora", "qlora"])
def test_packed_equals_row_by_row(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], method: str
) -> None:
    assert_packed_equals_row_by_row(shaken(make_model(make_plan(method))), random_examples(7, seed=3))


def test_packed_with_layers_computed_again(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    model = make_model(make_plan("lora", gradient_checkpointing=True))
    model.module.train()
    assert_packed_equals_row_by_row(shaken(model), random_examples(7, seed=3))


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def trainable(config: PreTrainedConfig, plan: Plan) -> TrainableModel:
    torch.manual_seed(0)
    return TrainableModel(AutoModelForCausalLM.from_config(config).float(), load_method(plan.method), seed=0)


def test_windows_look_back_within_their_own_example(make_plan: Callable[..., Plan]) -> None:
    """Rows of up to 20 tokens, of which a layer sees the last 5."""
    model = trainable(MistralConfig(sliding_window=5, head_dim=8, **SIZES), make_plan("full"))
    rows = random_examples(7, seed=3)
    assert_packed_equals_row_by_row(model, rows)
    whole = trainable(MistralConfig(sliding_window=None, head_dim=8, **SIZES), make_plan("full"))
    assert loss_and_gradients(model, [rows], PACKED)[0] != loss_and_gradients(whole, [rows], PACKED)[0]


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(head_dim=8, **SIZES),
        MistralConfig(sliding_window=5, head_dim=8, **SIZES),
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_look_back_by_attention_alone_may_be_packed(
    make_plan: Callable[..., Plan], config: PreTrainedConfig
) -> None:
    model = trainable(config, make_plan("full"))
    model.module.train()
    assert why_not_packed(model) is None
    assert model.module.training
    assert all(nonempty(p.grad is None for p in model.module.parameters()))


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_a_model_with_convolutions_must_not_be_packed(make_plan: Callable[..., Plan], spread: float) -> None:
    """A short convolution looks a few tokens back whatever example they are of."""
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    config = Lfm2Config(intermediate_size=48, layer_types=["conv", "full_attention"], initializer_range=spread, **sizes)
    found = why_not_packed(trainable(config, make_plan("full")))
    assert found is not None
    assert "of packed rows differ" in found


def test_a_model_that_counts_positions_by_itself_must_not_be_packed(make_plan: Callable[..., Plan]) -> None:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    assert why_not_packed(trainable(config, make_plan("full"))) is not None


def test_a_model_that_does_not_hand_on_what_its_attention_is_told_must_not_be_packed(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_plan())
    assert why_not_packed(model) is None
    body = model.body.forward
    monkeypatch.setattr(model.body, "forward", lambda *, prefix_layout=None, **rest: body(**rest))
    assert "outputs of packed rows differ" in str(why_not_packed(model))


def test_gradients_are_part_of_the_proof(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel whose way forward is right and whose way back is not."""
    model, right = make_model(make_plan()), attention._in_two_parts

    def wrong(query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        return right(query, key.detach(), *rest)

    monkeypatch.setattr(attention, "_uncompiled", wrong)
    assert "gradients of packed rows differ" in str(why_not_packed(model))


def test_what_a_kernel_says_is_the_reason(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no valid\n triton configs")

    model = make_model(make_plan())
    monkeypatch.setattr(attention, "_uncompiled", fails)
    assert why_not_packed(model) == "no valid triton configs"
    assert not model.uses_flex_attention


def test_prompt_tuning_puts_a_prompt_before_each_row(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    assert "its own prompt" in str(why_not_packed(make_model(make_plan("prompt_tuning"))))


def test_tensors_lie_on_the_device_that_is_asked_for() -> None:
    rows = random_examples(3, seed=0)
    batch = collate(rows, 0, "meta", prefix_lengths=PACKED)
    assert {batch.input_ids.device.type, batch.rows.device.type, batch.targets.device.type} == {"meta"}
    assert batch.num_computed_tokens == sum(row.num_tokens for row in rows)


class PackedSchedule(FixedSchedule):
    """The same steps, each micro-batch end to end."""

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        return PACKED


def test_a_whole_run_learns_the_same(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    plan, rows = make_plan(num_steps=4), random_examples(12, seed=2)
    units = [(row,) for row in rows]
    losses: dict[bool, list[float]] = {}
    for packs in (False, True):
        model, events = make_model(plan), []
        train(
            plan,
            model,
            load_objective(plan.objective),
            units,
            [(units[:5], PACKED if packs else ())],
            PackedSchedule(12, size=6, micro=3) if packs else FixedSchedule(12, size=6, micro=3),
            CheckpointStore(tmp_path / str(packs), 2),
            emit=events.append,
            stop_requested=lambda: None,
            progress=SilentProgress(),
        )
        losses[packs] = [e.loss for e in events if isinstance(e, StepDone | ValidationDone)]
        assert next(e.num_tokens for e in events if isinstance(e, StepDone)) == sum(r.num_tokens for r in rows[:6])
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[False][-1] < losses[False][0]
