"""A frozen base in fewer bits: each matrix packed once, and unpacked where it is multiplied, forward and backward.

Only matrices that are called are packed. One whose weight other code reads itself (`weight_reads.py`), and a layer that
computes more than its product, such as a router that also chooses, stay in the precision of the model; so do the
experts that lie in one tensor, and embeddings and head.

Only the packed form is held. A plain linear layer over an unpacked matrix would keep that matrix for the backward pass,
and so hold the whole base unpacked; here both passes unpack again. The kernels that libraries have for products with
packed matrices are not used: bitsandbytes' for AVX512 repacks a layer at its first call in evaluation and has no
backward pass, so that gradients are silently wrong afterwards (docs/log.md).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.plan import Quantisation
from luthier.ml.inference.models.architecture import causal_model
from luthier.ml.inference.models.attention_proof import shallow
from luthier.ml.inference.models.forward import FORWARD_ERRORS, text_inputs
from luthier.ml.inference.models.module_roles import watched_reads, weight_reads

_LARGEST_INT8: Final = 127
_FEW: Final = 8
"""Inputs of a layer, and tokens of a pass, by which it is tried."""


class _UnpackedProduct(torch.autograd.Function):
    """x W^T (+ bias) with W frozen and packed; the backward pass unpacks it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        # The layer and not its matrix: saved for the backward pass, the unpacked matrix would stay in memory.
        ctx.layer = layer
        return nn.functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = gradients
        return (grad @ ctx.layer.unpacked(grad.dtype) if ctx.needs_input_grad[0] else None), None


class PackedLinear(nn.Linear, ABC):
    """A frozen linear layer whose matrix is held packed."""

    def __init__(self, layer: nn.Linear) -> None:
        # Past `nn.Linear.__init__`, which would allocate a whole matrix.
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias

    @abstractmethod
    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in that precision, unpacked at each call."""

    @property
    def num_weights(self) -> int:
        """Weights of the matrix, however they are packed."""
        return self.in_features * self.out_features

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it replaces, up to what packing has rounded."""
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
        # [out, in]. Clamped: bfloat16 may have rounded the scale down, and 127 up.
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


def packable_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that can be packed as far as the code of the model shows, in its order, by their names.

    All but the output head, those whose weight other code computes with or asks about, and those that are more than a
    product. The model may lie on torch's meta device.
    """
    head, reads = model.get_output_embeddings(), weight_reads(model)
    past = reads.used | reads.asked
    plain: dict[type[nn.Module], bool] = {}
    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer is head or name in past:
            continue
        if type(layer) not in plain:
            plain[type(layer)] = _is_product(layer)
        if plain[type(layer)]:
            found[name] = layer
    return found


def quantise(model: PreTrainedModel, kind: Quantisation, device: str = "cpu") -> int:
    """Pack the linear layers of a model that can be packed, in place, one after the other.

    A pass over the first layers shows what their code hides: a matrix whose weight was read there past its module stays
    as it is, and so do those of the same name in modules of the same class.

    Args:
        model: with its weights on the CPU or on `device`.
        kind: how matrices are packed.
        device: where each is packed, and stays; what is not packed is left where it is.

    Returns:
        How many layers were packed.
    """
    layer_kind = {"int8": Int8Linear, "nf4": Nf4Linear}[kind]
    past = _read_in_a_pass(model)
    found = {name: layer for name, layer in packable_layers(model).items() if _place(model, name) not in past}
    for name, layer in found.items():
        parent, _, own = name.rpartition(".")
        # One at a time: at most one layer is held both ways.
        setattr(model.get_submodule(parent), own, layer_kind(layer.to(device)))
    return len(found)


def _is_product(layer: nn.Linear) -> bool:
    """Whether a layer computes x W^T + bias and nothing else, in training and in evaluation, tried with few inputs."""
    if type(layer).forward is nn.Linear.forward:
        return True
    draw = torch.Generator().manual_seed(0)
    # A shallow copy with small parameters of its own: the layer keeps its weights.
    few = copy.copy(layer)
    weight = torch.randn(layer.out_features, _FEW, generator=draw)
    bias = None if layer.bias is None else torch.randn(layer.out_features, generator=draw)
    few._parameters = {"weight": nn.Parameter(weight), "bias": None if bias is None else nn.Parameter(bias)}
    x = torch.randn(2, 3, _FEW, generator=draw)
    expected = nn.functional.linear(x, weight, bias)
    for training in (False, True):
        few.training = training
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
                found: object = few(x.clone())
        except FORWARD_ERRORS:
            return False
        if not (isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected)):
            return False
    return True


def _read_in_a_pass(model: PreTrainedModel) -> set[tuple[type[nn.Module], str]]:
    """Linear layers whose weight is read past their module in a pass of a few tokens, each by its owner and name.

    Empty where such a pass fails: then the model will say so itself.
    """
    causal = causal_model(model)
    ids = torch.arange(1, 1 + _FEW, device=model.device)[None]
    with shallow(model), watched_reads(model, nn.Linear) as seen, torch.no_grad():
        with suppress(*FORWARD_ERRORS):
            causal(input_ids=ids, **text_inputs(causal, ids))
        return {_place(model, name) for name in seen}


def _place(model: nn.Module, name: str) -> tuple[type[nn.Module], str]:
    parent, _, own = name.rpartition(".")
    return type(model.get_submodule(parent)), own


@torch.no_grad()
def unpack(model: PreTrainedModel) -> int:
    """Replace each packed layer by a plain one with the matrix that it represents, in float32; returns how many."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, PackedLinear)]
    for name, layer in found:
        parent, _, own = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.unpacked(torch.float32), requires_grad=False)
        plain.bias = layer.bias
        setattr(model.get_submodule(parent), own, plain)
    return len(found)


def num_parameters(model: nn.Module) -> int:
    """All parameters, tied ones once; packed matrices count the weights that they represent."""
    packed = sum(m.num_weights - m.weight.numel() for m in model.modules() if isinstance(m, PackedLinear))
    return packed + sum(p.numel() for p in model.parameters())
