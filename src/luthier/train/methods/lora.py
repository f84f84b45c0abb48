"""LoRA: a frozen base, and beside each chosen matrix a trained product of two thin ones.

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1:
y = x W^T + (alpha / r) dropout(x) A^T B^T, with B zero at the start. PEFT makes, names and saves the adapter, so that
every tool of the field can load it; the computation is ours, one fused function a matrix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.digest import sha256_file
from luthier.core.plan import MethodPlan
from luthier.models.quiet import quiet_peft

_DROPOUT_STEPS = 1 << 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(NamedTuple):
    """One draw of dropout, named by a key: the same key gives the same mask again, so no mask is ever kept.

    Half the time and none of the memory of torch's own dropout on a CPU (docs/log.md).
    """

    probability: float
    key: int

    @property
    def kept_fraction(self) -> float:
        """The exact share of inputs kept: the probability is rounded to a multiple of 1/32768."""
        return self._num_kept / _DROPOUT_STEPS

    @property
    def _num_kept(self) -> int:
        return _DROPOUT_STEPS - round(self.probability * _DROPOUT_STEPS)

    def mask(self, like: Tensor) -> Tensor | None:
        """All ones where an input is kept, all zeros where not: integers as wide as the elements of `like`.

        Fifteen random bits an element. None where the probability is too small to drop anything.
        """
        if self._num_kept == _DROPOUT_STEPS:
            return None
        count = like.numel()
        mask = self._random_words((count + 3) // 4, like.device).view(torch.int16)[:count]
        # 0..32767 less the number kept is negative exactly where kept; shifting spreads the sign over all bits
        mask.bitwise_and_(_DROPOUT_STEPS - 1).sub_(self._num_kept).bitwise_right_shift_(15)
        return mask.view(like.shape).to(_INTEGERS[like.element_size()])

    def _random_words(self, count: int, device: torch.device) -> Tensor:
        if device.type == "cpu":  # NumPy's raw streams are stable over versions and twice as fast as torch's
            return torch.from_numpy(np.random.SFC64(self.key).random_raw(count).view(np.int64))
        generator = torch.Generator(device).manual_seed(self.key)
        return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with what the mask drops set to zero, and the rest as it is, not scaled up; laid over it bit by bit."""
    return x if mask is None else (x.view(mask.dtype) & mask).view(x.dtype)


class LoraProduct(torch.autograd.Function):
    """x W^T (+ bias) + scale * dropout(x) A^T B^T with W frozen.

    x: [..., in]; W: [out, in]; A: [rank, in]; B: [out, rank]. Keeps x and the thin product for the way back; neither
    the dropped-out copy of x nor its mask is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        dropout: Dropout | None,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        thin = keep(rows, None if dropout is None else dropout.mask(rows)) @ a.t()
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(thin, b.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, thin)
        ctx.scale, ctx.shape, ctx.dropout = scale, x.shape, dropout
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        rows, weight, a, b, thin = ctx.saved_tensors
        mask = None if ctx.dropout is None else ctx.dropout.mask(rows)
        grad = grad.reshape(-1, grad.shape[-1])
        grad_b = (grad.t() @ thin).mul_(ctx.scale)
        grad_thin = (grad @ b).mul_(ctx.scale)
        grad_a = grad_thin.t() @ keep(rows, mask)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if mask is None:
                grad_x.addmm_(grad_thin, a)
            else:
                grad_x.add_(keep(grad_thin @ a, mask))
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


class _FusedForward:
    """Stands in for the forward of one PEFT LoRA layer. `training` is read from the layer at each call."""

    def __init__(self, layer: PeftLoraLinear, probability: float) -> None:
        self.layer, self.probability = layer, probability
        self.base = layer.get_base_layer()
        self.a, self.b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        self.scale = float(layer.scaling["default"])

    def __call__(self, x: Tensor) -> Tensor:
        dropout, scale = None, self.scale
        if self.layer.training and self.probability > 0:
            # The key comes from torch's generator, which the loop seeds from (seed, step).
            dropout = Dropout(self.probability, int(torch.randint(2**62, ())))
            scale /= dropout.kept_fraction
        out: Tensor = LoraProduct.apply(x, self.base.weight, self.base.bias, self.a, self.b, dropout, scale)
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
