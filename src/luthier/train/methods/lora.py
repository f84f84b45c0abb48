"""LoRA: a frozen base, and beside each chosen matrix a trained product of two thin ones.

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1:
y = x W^T + (alpha / r) dropout(x) A^T B^T, with B zero at the start. PEFT makes, names and saves the adapter, so that
every tool of the field can load it; the computation is ours, one fused function a matrix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.digest import sha256_file
from luthier.core.plan import MethodPlan
from luthier.models.quiet import quiet_peft

_DROPOUT_STEPS = 1 << 16


def dropout_mask(shape: torch.Size, probability: float, device: torch.device) -> Tensor:
    """Boolean keep-mask from 16 random bits an element: a quarter of the generator calls of `bernoulli_`.

    The probability is rounded to a multiple of 1/65536 (`kept_fraction` gives the exact value used in the scale).
    """
    count = shape.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    draws.random_(-(2**63), None)
    threshold = round(probability * _DROPOUT_STEPS) - _DROPOUT_STEPS // 2
    return (draws.view(torch.int16)[:count] >= threshold).view(shape)


def kept_fraction(probability: float) -> float:
    """The exact fraction of inputs that `dropout_mask` keeps."""
    return 1.0 - round(probability * _DROPOUT_STEPS) / _DROPOUT_STEPS


class LoraProduct(torch.autograd.Function):
    """x W^T (+ bias) + scale * (x * keep) A^T B^T with W frozen.

    x: [..., in]; W: [out, in]; A: [rank, in]; B: [out, rank]; keep: boolean, as x, or None (no dropout).
    Keeps x, keep and the thin product for the way back; the dropped-out copy of x is never kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        keep: Tensor | None,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        thin = (rows if keep is None else rows * keep) @ a.t()
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(thin, b.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, keep, thin)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        rows, weight, a, b, keep, thin = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_b = (grad.t() @ thin).mul_(ctx.scale)
        grad_thin = (grad @ b).mul_(ctx.scale)
        grad_a = grad_thin.t() @ (rows if keep is None else rows * keep)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if keep is None:
                grad_x.addmm_(grad_thin, a)
            else:
                grad_x.add_((grad_thin @ a).mul_(keep))
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


class _FusedForward:
    """Stands in for the forward of one PEFT LoRA layer. `training` is read from the layer at each call."""

    def __init__(self, layer: PeftLoraLinear, dropout: float) -> None:
        self.layer, self.dropout = layer, dropout
        self.base = layer.get_base_layer()
        self.a, self.b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        self.scale = float(layer.scaling["default"])

    def __call__(self, x: Tensor) -> Tensor:
        keep, scale = None, self.scale
        if self.layer.training and self.dropout > 0:
            keep = dropout_mask(x.reshape(-1, x.shape[-1]).shape, self.dropout, x.device)
            scale = scale / kept_fraction(self.dropout)
        out: Tensor = LoraProduct.apply(x, self.base.weight, self.base.bias, self.a, self.b, keep, scale)
        return out


class Lora:
    """Trains a low-rank adapter; the base stays untouched."""

    outcome_name: ClassVar[str] = "adapter"

    def __init__(self, plan: MethodPlan) -> None:
        self.plan = plan

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Add the adapter in the base's own precision, A random from `seed` and B zero, and fuse its layers."""
        torch.manual_seed(seed)
        config = LoraConfig(
            r=self.plan.rank,
            lora_alpha=self.plan.alpha,
            lora_dropout=self.plan.dropout,
            target_modules=list(self.plan.targets),
            task_type="CAUSAL_LM",
        )
        with quiet_peft():
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        for layer in adapted.modules():
            if isinstance(layer, PeftLoraLinear):
                layer.forward = _FusedForward(layer, self.plan.dropout)
        return adapted  # type: ignore[no-any-return]

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT reads them, the same bytes each time."""
        assert isinstance(model, PeftModel)
        model.save_pretrained(str(folder), save_embedding_layers=False)
        config_path = folder / "adapter_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = str(base_path)
        # PEFT keeps the targets in a set, whose order changes from process to process.
        config["target_modules"] = sorted(config["target_modules"])
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").unlink(missing_ok=True)
        return sha256_file(folder / "adapter_model.safetensors")
