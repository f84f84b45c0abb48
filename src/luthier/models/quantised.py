"""A frozen base in fewer bits: each matrix packed once, and unpacked where it is multiplied, there and back.

Only the packed form is held. A plain linear layer over an unpacked matrix would keep that matrix for the way back, and
so hold the whole base unpacked; here both ways unpack anew. The kernels that libraries have for products with packed
matrices are not used: bitsandbytes' for AVX512 repacks a layer at its first call in evaluation and has no way back, so
that gradients are silently wrong afterwards (docs/log.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.plan import Quantisation

_LARGEST_INT8 = 127


class _UnpackedProduct(torch.autograd.Function):
    """x W^T (+ bias) with W frozen and packed; the way back unpacks it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = gradients
        return (grad @ ctx.layer.unpacked(grad.dtype) if ctx.needs_input_grad[0] else None), None


class PackedLinear(nn.Linear, ABC):
    """A frozen linear layer whose matrix is held packed."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias

    @abstractmethod
    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in that precision, made anew at each call."""

    @property
    def num_weights(self) -> int:
        """Weights of the matrix, however they are packed."""
        return self.in_features * self.out_features

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for, up to what packing has rounded."""
        out: Tensor = _UnpackedProduct.apply(input, self)  # type: ignore[no-untyped-call]
        return out


class Int8Linear(PackedLinear):
    """Eight bits a weight, one scale an output: w = q * scale, |q| <= 127 (rounded to nearest).

    The scale is a number of bfloat16, so that unpacking in either precision multiplies by the same.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        wide = layer.weight.detach().float()
        scale = (wide.abs().amax(1, keepdim=True) / _LARGEST_INT8).bfloat16()
        divisor = torch.where(scale == 0, 1.0, scale.float())  # a row of zeros stays one
        packed = (wide / divisor).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8).to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """q * scale."""
        return self.weight.to(dtype).mul_(self.scale.to(dtype))


class Nf4Linear(PackedLinear):
    """Four bits a weight in blocks of 64 with doubly quantised scales (Dettmers et al., 2023, arXiv:2305.14314,
    section 3), packed and unpacked by bitsandbytes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.library = import_module("bitsandbytes.functional")
        packed, self.scales = self.library.quantize_4bit(
            layer.weight.detach(), quant_type="nf4", compress_statistics=True
        )
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Looked up in the sixteen values of NF4, times the scale of the block."""
        out: Tensor = self.library.dequantize_4bit(self.weight.data, self.scales).to(dtype)
        return out


def quantise(model: PreTrainedModel, kind: Quantisation, device: str = "cpu") -> int:
    """Pack every linear layer of a model but its output head, in place, one after the other; returns how many.

    device: where each is packed, and stays; what is not packed is left where it is.
    """
    layer_kind = {"int8": Int8Linear, "nf4": Nf4Linear}[kind]
    head = model.get_output_embeddings()
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    for name, layer in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer_kind(layer.to(device)))
    return len(found)


@torch.no_grad()
def unpack(model: PreTrainedModel) -> int:
    """Replace each packed layer by a plain one with the matrix that it stands for, in float32; returns how many."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, PackedLinear)]
    for name, layer in found:
        parent, _, own = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.unpacked(torch.float32), requires_grad=False)
        plain.bias = layer.bias
        setattr(model.get_submodule(parent), own, plain)
    return len(found)


def num_parameters(model: nn.Module) -> int:
    """All parameters, tied ones once; packed matrices count the weights that they stand for."""
    packed = sum(m.num_weights - m.weight.numel() for m in model.modules() if isinstance(m, PackedLinear))
    return packed + sum(p.numel() for p in model.parameters())
