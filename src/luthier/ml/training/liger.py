"""Liger Kernel's fused operations, for CUDA, ROCm and XPU where the package is installed (extra `gpu`).

Hsu et al., 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv:2410.10989: normalisation (section
3.1), the gated MLP (3.1) and the loss of a linear head (3.2). Each reads and writes its tensors once where plain
operations do so several times. Callers first compare each operation with the plain formula on the same numbers, and
keep the plain one where they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from luthier.ml.inference.accelerator import has_triton

PACKAGE = "liger_kernel"


def is_available(device: torch.device) -> bool:
    """Whether its kernels can run on this device; checked without importing anything."""
    return has_triton(device) and find_spec(PACKAGE) is not None


def _operations() -> Any:
    return import_module(f"{PACKAGE}.ops")


def norm_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """w * x / rms(x), statistics in fp32; the incoming gradient is not overwritten."""
    weight, eps, apply = module.weight, module.variance_epsilon, _operations().LigerRMSNormFunction.apply
    return lambda x: apply(x, weight, eps, 0.0, "llama", False, None)


def gated_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """down(silu(gate(x)) * up(x))."""
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    apply = _operations().LigerSiLUMulFunction.apply
    return lambda x: down(apply(gate(x), up(x), 1.0, 1.0))  # type: ignore[operator]


def cross_entropy_sum(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy in nats and number of correct predictions, in the form of `cross_entropy`.

    The gradient of a trained head adds up in fp32. Positional, as autograd takes them: bias, class weights, the index
    to ignore, two regularisers, how to reduce, capping, and what to return besides the loss.
    """
    found = _operations().LigerFusedLinearCrossEntropyFunction.apply(
        hidden, head, targets, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32, False, False, True
    )
    return found[0], (found[3] == targets).sum()
