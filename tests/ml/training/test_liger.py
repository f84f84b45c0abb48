"""Liger Kernel's operations are called as the package takes them, and taken only where they prove equal.

The package needs a GPU to compute anything. Here stands a package of its name whose functions take the arguments that
liger_kernel 0.8 takes, in its order, and compute plain formulas; tests/gpu runs the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from luthier.ml.training import kernels
from luthier.ml.training.losses.cross_entropy import cross_entropy_sum


class LigerRMSNormFunction:
    @staticmethod
    def apply(
        x: Tensor, w: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool, row_mode: bool | None
    ) -> Tensor:
        assert (offset, casting_mode, in_place, row_mode) == (0.0, "llama", False, None)
        return w * (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class LigerSiLUMulFunction:
    @staticmethod
    def apply(a: Tensor, b: Tensor, gate_multiplier: float, down_multiplier: float) -> Tensor:
        assert (gate_multiplier, down_multiplier) == (1.0, 1.0)
        return F.silu(a) * b


class LigerFusedLinearCrossEntropyFunction:
    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: None,
        ce_weight: None,
        ignore_index: int,
        lse_square_scale: float,
        label_smoothing: float,
        reduction: str,
        softcap: None,
        return_z_loss: bool,
        accum_dtype: torch.dtype,
        use_token_scaling: bool,
        return_token_accuracy: bool,
        return_predicted_tokens: bool,
    ) -> tuple[Tensor, None, None, Tensor]:
        assert (lse_square_scale, label_smoothing, reduction, accum_dtype) == (0.0, 0.0, "sum", torch.float32)
        assert not return_z_loss
        assert not use_token_scaling
        assert not return_token_accuracy
        assert return_predicted_tokens
        logits = (_input @ weight.t()).float()
        return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum"), None, None, logits.argmax(1)


KNOWN = (LigerRMSNormFunction, LigerSiLUMulFunction, LigerFusedLinearCrossEntropyFunction)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of that name that is at hand on a CPU."""
    operations = ModuleType("liger_kernel.ops")
    for known in KNOWN:
        setattr(operations, known.__name__, known)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", operations)
    monkeypatch.setattr(kernels, "has_liger", lambda _: True)
    return operations


def tiny(path: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model


@pytest.mark.usefixtures("stand_in")
def test_what_proves_equal_is_taken(tiny_model: Path) -> None:
    plain, fast = tiny(tiny_model), tiny(tiny_model)
    assert kernels.install(fast) == {"LlamaRMSNorm (liger)": 5, "LlamaMLP (liger)": 2}
    ids = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(fast(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
    kernels.uninstall(fast)
    assert torch.equal(fast(ids).logits, plain(ids).logits)


def test_what_computes_something_else_gives_way_to_ours(stand_in: ModuleType, tiny_model: Path) -> None:
    class Wrong:
        @staticmethod
        def apply(a: Tensor, b: Tensor, *_: object) -> Tensor:
            return F.silu(a) * b * 1.01

    stand_in.LigerSiLUMulFunction = Wrong  # type: ignore[attr-defined]
    assert kernels.install(tiny(tiny_model)) == {"LlamaRMSNorm (liger)": 5, "LlamaMLP": 2}


@pytest.mark.usefixtures("stand_in")
def test_it_can_be_left_out(tiny_model: Path) -> None:
    assert kernels.install(tiny(tiny_model), with_liger=False) == {"LlamaRMSNorm": 5, "LlamaMLP": 2}
    assert kernels.linear_cross_entropy(torch.zeros(9, 4), with_liger=False) is cross_entropy_sum


@pytest.mark.usefixtures("stand_in")
def test_the_loss_of_a_head_is_taken_where_it_proves_equal() -> None:
    torch.manual_seed(0)
    head, hidden, targets = torch.randn(50, 16), torch.randn(30, 16), torch.randint(50, (30,))
    chosen = kernels.linear_cross_entropy(head)
    assert chosen is kernels.liger_cross_entropy_sum
    for one, other in zip(chosen(hidden, head, targets), cross_entropy_sum(hidden, head, targets), strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_is_another_gives_way_to_ours(stand_in: ModuleType) -> None:
    right: Callable[..., Any] = LigerFusedLinearCrossEntropyFunction.apply

    class Mean:
        @staticmethod
        def apply(x: Tensor, *rest: Any) -> tuple[Any, ...]:
            loss, *others = right(x, *rest)
            return loss / len(x), *others

    stand_in.LigerFusedLinearCrossEntropyFunction = Mean  # type: ignore[attr-defined]
    assert kernels.linear_cross_entropy(torch.randn(50, 16)) is cross_entropy_sum


def test_on_a_cpu_it_is_never_at_hand() -> None:
    assert not kernels.has_liger(torch.device("cpu"))


def test_without_the_package_it_is_not_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    assert not kernels.has_liger(torch.device("cuda"))
    monkeypatch.setattr(kernels, "find_spec", lambda _: object())
    assert kernels.has_liger(torch.device("cuda"))
