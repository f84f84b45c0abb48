"""Compiled layers compute what plain ones do, are compiled once for all, and are left alone where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.ml.training.test_packing import PACKED, loss_and_gradients, shaken
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex

from luthier.core.plan import Plan
from luthier.ml.training import attention
from luthier.ml.training.equivalence import why_not_compiled
from luthier.ml.training.methods.lora import AdaptedForward
from luthier.ml.training.model import TrainableModel


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch._dynamo.reset()


def assert_same(model: TrainableModel, plain: list[tuple[float, Tensor]], prefix_lengths: tuple[int, ...]) -> None:
    for seed, (loss, gradients) in enumerate(plain):
        found_loss, found = loss_and_gradients(model, [random_examples(3 + seed, seed=seed)], prefix_lengths)
        assert found_loss == pytest.approx(loss, rel=1e-5)
        assert float((found - gradients).norm() / gradients.norm()) < 1e-5


def test_compiled_layers_train_the_same_and_are_compiled_once(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    model = shaken(make_model(make_plan("full")))
    plain = [loss_and_gradients(model, [random_examples(3 + n, seed=n)]) for n in range(3)]
    counter = CompileCounterWithBackend("aot_eager")
    assert why_not_compiled(model, counter) is None
    assert_same(model, plain[:1], ())
    compiled = counter.frame_count  # torch traces some layers twice, and those whose input wants no gradient again
    assert compiled <= 4
    assert_same(model, plain, ())
    assert counter.frame_count == compiled  # rows of other lengths use what there is


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flex_attention_is_compiled_into_its_layer_and_once(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    monkeypatch: pytest.MonkeyPatch,
    checkpointing: bool,
) -> None:
    """On a CPU torch refuses the gradient of FlexAttention, though its formula has one."""
    model = shaken(make_model(make_plan("lora", gradient_checkpointing=checkpointing)))
    plain = [loss_and_gradients(model, [random_examples(3 + n, seed=n)], PACKED) for n in range(3)]
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: torch_flex.flex_attention)
    model.uses_flex_attention = True
    assert_same(model, plain, PACKED)
    counter = CompileCounterWithBackend("aot_eager")
    assert why_not_compiled(model, counter) is None
    assert_same(model, plain[:1], PACKED)
    compiled = counter.frame_count
    assert compiled <= 6
    assert_same(model, plain, PACKED)
    assert counter.frame_count == compiled


def test_what_a_compiler_gets_wrong_is_left_uncompiled(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    model = shaken(make_model(make_plan("lora")))
    plain = [loss_and_gradients(model, [random_examples(3, seed=0)])]
    replaced, calls = model.replaced, [0]

    def wrong(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> Any:
            calls[0] += 1
            first, *rest = graph(*inputs)
            return (first * 1.1, *rest)

        return run

    found = why_not_compiled(model, wrong)
    assert found is not None
    assert "outputs of compiled layers differ" in found
    num_calls = calls[0]
    assert num_calls > 0
    assert_same(model, plain, ())
    assert calls[0] == num_calls
    assert model.replaced == replaced
    assert isinstance(model.body.layers[0].mlp.down_proj.forward, AdaptedForward)  # type: ignore[union-attr, index]
    assert "forward" in vars(model.body.layers[0].mlp)  # type: ignore[index]


def test_why_a_compiler_gave_up_is_said(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    def fails(*_: object) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    assert "no compiler here" in str(why_not_compiled(make_model(make_plan("full")), fails))


def test_a_model_without_known_layers_is_left_alone(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    model = make_model(make_plan("full"))
    model.body = torch.nn.Identity()
    assert why_not_compiled(model, "eager") == "Identity has no layers of a kind that is known"
