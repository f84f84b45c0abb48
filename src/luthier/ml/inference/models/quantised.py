"""Weight-only quantisation of a frozen base: matrices are packed once and unpacked on use, forward and backward.

Only matrices that are called are packed. A matrix whose weight other code reads directly (`module_roles.py`), and a
layer that computes more than its product, such as a router that also chooses, keep the precision of the model; so do
stacked experts, embeddings and head.

Only the packed form is stored. A plain linear layer over an unpacked matrix would save that matrix for the backward
pass, and so hold the whole unpacked base; here both passes unpack. The kernels that libraries have for products with
packed matrices are not used: bitsandbytes' AVX512 kernel repacks a layer at its first call in evaluation and has no
backward pass, so that gradients are silently wrong afterwards (docs/log.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.plan import Quantisation
from luthier.core.system.extras import missing_extra
from luthier.ml.inference.models.architecture import causal_model
from luthier.ml.inference.models.attention_proof import shallow
from luthier.ml.inference.models.forward import FORWARD_ERRORS, text_inputs
from luthier.ml.inference.models.module_roles import is_product, watched_reads, weight_reads

_LARGEST_INT8: Final = 127
_FEW: Final = 8
"""Number of tokens of a pass in tests."""


class _UnpackedProduct(torch.autograd.Function):
    """x W^T (+ bias) with W frozen and packed; the backward pass unpacks it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        # The layer rather than its matrix: an unpacked matrix saved for the backward pass would stay in memory.
        ctx.layer = layer
        return nn.functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = gradients
        return (grad @ ctx.layer.unpacked(grad.dtype) if ctx.needs_input_grad[0] else None), None


class PackedLinear(nn.Linear, ABC):
    """A frozen linear layer with a packed matrix."""

    def __init__(self, layer: nn.Linear) -> None:
        # Bypasses `nn.Linear.__init__`, which would allocate the full matrix.
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias

    @abstractmethod
    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in that precision, unpacked at each call."""

    @property
    def num_weights(self) -> int:
        """Number of weights of the matrix, regardless of packing."""
        return self.in_features * self.out_features

    def forward(self, input: Tensor) -> Tensor:
        """The output of the replaced layer, up to the rounding of packing."""
        out: Tensor = _UnpackedProduct.apply(input, self)  # type: ignore[no-untyped-call]
        return out


class Int8Linear(PackedLinear):
    """Eight bits per weight, one scale per output: w = q * scale, |q| <= 127 (rounded to nearest).

    The scale is representable in bfloat16, so that unpacking multiplies by the same value in either precision.
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


class Bf16Linear(PackedLinear):
    """Sixteen bits per weight: the very weights of a base that was published in bfloat16, for products in float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.weight = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weights in that precision."""
        return self.weight.to(dtype)


class Nf4Linear(PackedLinear):
    """Four bits a weight in blocks of 64 with doubly quantised scales (Dettmers et al., 2023, arXiv:2305.14314,
    section 3), packed and unpacked by bitsandbytes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        try:
            self.library = import_module("bitsandbytes.functional")
        except ImportError as error:
            raise missing_extra("nf4", "a base in 4 bits", "bitsandbytes") from error
        packed, self.scales = self.library.quantize_4bit(
            layer.weight.detach(), quant_type="nf4", compress_statistics=True
        )
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The NF4 value of each code, times the scale of its block."""
        out: Tensor = self.library.dequantize_4bit(self.weight.data, self.scales).to(dtype)
        return out


def packable_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that can be packed according to the model's code, by name, in model order.

    All except the output head, layers whose weight other code uses or inspects, and layers that compute more than a
    product. The model may be on torch's meta device.
    """
    head, reads = model.get_output_embeddings(), weight_reads(model)
    past = reads.used | reads.asked
    plain: dict[type[nn.Module], bool] = {}
    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer is head or name in past:
            continue
        if type(layer) not in plain:
            plain[type(layer)] = is_product(layer)
        if plain[type(layer)]:
            found[name] = layer
    return found


def quantise(model: PreTrainedModel, kind: Quantisation, device: str = "cpu") -> int:
    """Pack the packable linear layers of a model in place, one after the other.

    A traced pass over the first layers finds what the code hides: a matrix whose weight is read outside its module is
    not packed, nor are those of the same name in modules of the same class.

    Args:
        model: with its weights on the CPU or on `device`.
        kind: how matrices are packed.
        device: where each layer is packed and stays; other layers are not moved.

    Returns:
        The number of packed layers.
    """
    kinds: dict[str, Callable[[nn.Linear], PackedLinear]] = {
        "bfloat16": Bf16Linear, "int8": Int8Linear, "nf4": Nf4Linear,
    }  # fmt: skip
    packed = kinds[kind]
    past = _read_in_a_pass(model)
    found = {name: layer for name, layer in packable_layers(model).items() if _place(model, name) not in past}
    for name, layer in found.items():
        parent, _, own = name.rpartition(".")
        # One at a time: at most one layer exists in both forms.
        setattr(model.get_submodule(parent), own, packed(layer.to(device)))
    return len(found)


def _read_in_a_pass(model: PreTrainedModel) -> set[tuple[type[nn.Module], str]]:
    """Linear layers whose weight is read outside their module in a pass of a few tokens, by owner and name.

    Empty if the pass fails: the model will report that itself.
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
    """Replace each packed layer by a plain one with its unpacked matrix in float32; returns how many."""
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
