"""Low-rank adapters on experts, without a copy of the experts' matrices.

    y_e = x_e W_e^T + s (x_e A_e^T) B_e^T     for the tokens x_e that chose expert e

PEFT adds the update of every expert to a copy of the whole tensor at each call, and in training keeps the copy and a
gradient of its size for the backward pass. Here the tokens of each expert are multiplied with its frozen matrix and its
two low-rank factors, and nothing as large as the matrices is allocated.

The layout of the experts (fused gate and up or no gate, biases, transposition) is declared by transformers on every
experts class with several implementations (`use_experts_implementation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, Final

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, float], Tensor]
"""x W^T + bias + scale (x A^T) B^T of x [N, in], W [out, in], bias [out], A [rank, in], B [out, rank] and scale."""
_PROBED_TOKENS: Final = 12


def added_product(x: Tensor, matrix: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The product in torch's own operations, for inference.

    Args:
        x: [N, in].
        matrix: [out, in], frozen.
        bias: [out]; None for none.
        a: [rank, in].
        b: [out, rank].
        scale: alpha / rank.
    """
    return F.linear(x, matrix, bias) + F.linear(F.linear(x, a), b) * scale


class ExpertProduct:
    """Replaces the forward of the outermost PEFT wrapper of an experts module.

    Args:
        outer: the wrapper.
        adapter: name of the adapter in it.
        product: computes the product of one expert.
    """

    def __init__(self, outer: ParamWrapper, adapter: str, product: Product) -> None:
        self.outer, self.adapter, self.product = outer, adapter, product
        self.inner: Any = outer.get_base_layer()
        self.wrappers = {wrapper.parameter_name: wrapper for wrapper in _nested(outer)}

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted output of the chosen experts: [N, width] for hidden states [N, width], choices [N, k]."""
        if self.outer.disable_adapters or self.outer.merged:
            plain: Tensor = type(self.outer).forward(self.outer, hidden_states, top_k_index, top_k_weights)
            return plain
        # k choices per token: [N, k] flattened to [N k].
        inner, num_chosen = self.inner, top_k_index.shape[-1]
        experts = top_k_index.reshape(-1)
        # [N k], choices sorted by expert: the rows of one expert are contiguous.
        order = torch.argsort(experts, stable=True)
        counts: list[int] = torch.bincount(experts, minlength=inner.num_experts).tolist()
        rows = hidden_states[order // num_chosen]  # [N k, width]; choice i is of token i // k
        wide = self._product("gate_up_proj" if inner.has_gate else "up_proj", rows, counts)
        activated = inner._apply_gate(wide) if inner.has_gate else inner.act_fn(wide)
        out = self._product("down_proj", activated, counts)
        if inner.has_post_expert_norm:
            out = inner.post_expert_norm(out)
        out = out * top_k_weights.reshape(-1)[order][:, None]
        # back in token order, and summed over the choices of each token: no sum depends on another token
        out = out[torch.argsort(order)].view(hidden_states.shape[0], num_chosen, -1).sum(1)
        return out.to(hidden_states.dtype)

    def _product(self, name: str, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Apply each expert's matrix, plus its low-rank product if any, to its rows [N k, in], in order."""
        matrices: Tensor = getattr(self.inner, name)
        biases = getattr(self.inner, f"{name}_bias") if self.inner.has_bias else None
        wrapper = self.wrappers.get(name)
        factors = [] if wrapper is None else list(zip(*_factors(wrapper, self.adapter), strict=True))
        parts = []
        for number, x in enumerate(torch.split(rows, list(counts))):
            if not counts[number]:
                continue
            matrix = matrices[number].t() if self.inner.is_transposed else matrices[number]
            bias = None if biases is None else biases[number]
            if wrapper is None:
                parts.append(F.linear(x, matrix, bias))
            else:
                scale = float(wrapper.scaling[self.adapter])
                parts.append(self.product(x, matrix, bias, *factors[number], scale))
        return torch.cat(parts)


def install_products(model: nn.Module, adapter: str, product: Product = added_product) -> list[str]:
    """Compute adapted experts of a model without copies; returns the names of those left to PEFT.

    The same is done for single matrices that PEFT adapts as parameters, which may be packed. A class of experts is
    replaced only after it reproduced PEFT's output on a few random tokens.
    """
    inside = {id(wrapper.base_layer) for wrapper in model.modules() if isinstance(wrapper, ParamWrapper)}
    proved: dict[type[nn.Module], bool] = {}
    left = []
    for name, outer in model.named_modules():
        if not isinstance(outer, ParamWrapper) or id(outer) in inside:
            continue
        inner = outer.get_base_layer()
        if isinstance(inner, nn.Linear):
            outer.forward = MethodType(_single_forward, outer)
            continue
        found = ExpertProduct(outer, adapter, product)
        if type(inner) not in proved:
            proved[type(inner)] = _is_the_same(found)
        if proved[type(inner)]:
            outer.forward = found
        else:
            left.append(name)
    return left


def _single_forward(wrapper: ParamWrapper, x: Tensor) -> Tensor:
    """A single matrix plus the products of its active adapters."""
    out: Tensor = wrapper.base_layer(x)
    if wrapper.disable_adapters or wrapper.merged:
        return out
    for name in wrapper.active_adapters:
        if name in wrapper.lora_A:
            out = out + wrapper.lora_B[name](wrapper.lora_A[name](x)) * wrapper.scaling[name]
    return out


@torch.no_grad()
def _is_the_same(product: ExpertProduct) -> bool:
    """Whether it reproduces PEFT's output with non-zero updates; the weights are restored afterwards."""
    inner, outer = product.inner, product.outer
    known = ("is_transposed", "has_gate", "has_bias", "has_post_expert_norm", "num_experts")
    if not all(hasattr(inner, name) for name in known) or getattr(inner, "_is_expert_parallel", False):
        return False
    if not set(product.wrappers) <= {"gate_up_proj", "up_proj", "down_proj"}:
        return False
    draw = torch.Generator().manual_seed(0)
    down = inner.down_proj
    width = int(down.shape[2] if inner.is_transposed else down.shape[1])
    chosen = torch.stack([torch.randperm(inner.num_experts, generator=draw)[:2] for _ in range(_PROBED_TOKENS)])
    x, weights = torch.randn(_PROBED_TOKENS, width, generator=draw), torch.rand(_PROBED_TOKENS, 2, generator=draw)
    thin = [wrapper.lora_B[product.adapter].weight for wrapper in product.wrappers.values()]
    before = [weight.clone() for weight in thin]
    try:
        for weight in thin:
            # B starts at zero, which would make the compared products zero.
            weight.copy_(0.1 * torch.randn(weight.shape, generator=draw))
        # In the type and on the device of the weights.
        given = (x.to(down), chosen.to(down.device), weights.to(down))
        theirs, ours = type(outer).forward(outer, *given), product(*given)
    finally:
        for weight, old in zip(thin, before, strict=True):
            weight.copy_(old)
    tolerance = 1e-4 if down.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-30))


def _factors(wrapper: ParamWrapper, adapter: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """A [rank, in] and B [out, rank] of each expert; PEFT stacks those of all experts in one matrix each."""
    a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
    num = wrapper.num_experts
    # A is [experts * rank, in], expert by expert; B is [out, rank * experts], rank by rank.
    return a.reshape(num, -1, a.shape[-1]).unbind(0), b.reshape(b.shape[0], -1, num).permute(2, 0, 1).unbind(0)


def _nested(outer: ParamWrapper) -> list[ParamWrapper]:
    """The wrappers around one module, outermost first: each adapts one of its tensors."""
    found, layer = [], outer
    while isinstance(layer, ParamWrapper):
        found.append(layer)
        layer = layer.base_layer
    return found
