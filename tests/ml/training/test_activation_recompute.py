"""What is computed again on the way back is what was there, to the last bit, and is not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.ml.training.test_model import gradients

from luthier.core.dataset import TokenisedExample
from luthier.ml.training import kernels as module
from luthier.ml.training.kernels import mark_recomputable, recomputed


def test_a_tensor_tells_how_it_is_made_again() -> None:
    one, other = torch.randn(3, 4, requires_grad=True), torch.randn(4)
    product = mark_recomputable(one * other, torch.mul, one, other)
    how = recomputed(product)
    assert how is not None
    assert torch.equal(how.make(*how.parts), product)
    assert not any(part.requires_grad for part in how.parts)  # they keep no graph alive
    assert recomputed(product[0]) is None
    assert recomputed(product + 0) is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(("method", "targets"), [("lora", "all"), ("lora", "some"), ("dora", "all"), ("qlora", "all")])
def test_gradients_are_those_of_kept_inputs_to_the_last_bit(
    method: str,
    targets: str,
    dropout: float,
    checkpoints: bool,
    precision: str,
    make_plan: Callable[..., Any],
    examples: list[TokenisedExample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"targets": "all-linear"} if targets == "all" else None
    plan = make_plan(
        method, dropout=dropout, settings=settings, precision=precision, gradient_checkpointing=checkpoints
    )
    kept, kept_before = _kept_bytes_of_equal_gradients(plan, examples, monkeypatch)
    assert checkpoints or kept < kept_before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointed"])
def test_trained_matrices_keep_less_and_have_the_same_gradients_to_the_last_bit(
    checkpoints: bool,
    precision: str,
    make_plan: Callable[..., Any],
    examples: list[TokenisedExample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan("full", dropout=0.0, precision=precision, gradient_checkpointing=checkpoints)
    kept, kept_before = _kept_bytes_of_equal_gradients(plan, examples, monkeypatch)
    assert checkpoints or kept < 0.85 * kept_before  # weights are saved, too, and are the same


def _kept_bytes_of_equal_gradients(
    plan: Any, examples: list[TokenisedExample], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """Bytes that the forward pass keeps, with and without recomputed inputs, whose gradients are the same."""
    loss, found, kept = gradients(plan, examples)
    monkeypatch.setattr(module, "recomputed", lambda tensor: None)
    loss_before, wanted, kept_before = gradients(plan, examples)
    assert loss == loss_before
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    return kept, kept_before
