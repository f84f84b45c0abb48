"""Exact replacements for small operations whose plain form wastes passes over memory.

On a CPU with fast bf16 products, half of a training step goes into elementwise passes. Each function here computes
the same formula as the module that it replaces, in fewer passes and with fewer tensors saved for the backward pass. On
CUDA, ROCm and XPU the kernels of Liger Kernel are tried first, if installed (extra `gpu`).

A replacement is never assumed to fit: `install` runs the original and the replacement on the same random input, in
the model's own precision, compares outputs and gradients, and leaves a module unchanged where they differ.

Tensors that are cheap to compute from others that are saved anyway are recomputed in the backward pass instead of being
saved: the input of an adapted or trained matrix is x / rms times the norm's weight, and that of a gated MLP's last
matrix follows from gate and up. The operations are the same, so the results are bit-identical.

Sources: Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 4.2; Hsu et al.,
2024, "Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv:2410.10989: normalisation (section 3.1), gated
MLP (3.1) and the loss of a linear head (3.2), each of which reads and writes its tensors once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.ml.inference.accelerator import forked_random, has_triton, seed_random
from luthier.ml.training import fused_operations
from luthier.ml.training.losses.cross_entropy import cross_entropy_sum

_NAME = "_luthier_recomputation"


class Recomputation(NamedTuple):
    """How to recompute a tensor: make(*parts) equals it bit for bit."""

    make: Callable[..., Tensor]
    parts: tuple[Tensor, ...]


def mark_recomputable(tensor: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Mark a tensor as recomputable: make(*parts) gives the same bits. Returns the tensor.

    The parts must be saved for the backward pass elsewhere, and never be changed in place.
    """
    # Detached, so that the mark keeps no part of the graph alive.
    setattr(tensor, _NAME, Recomputation(make, tuple(part.detach() for part in parts)))
    return tensor


def recomputed(tensor: Tensor) -> Recomputation | None:
    """How a tensor can be recomputed; None if it has to be saved."""
    return getattr(tensor, _NAME, None)


def save_input(ctx: Any, x: Tensor, *others: Tensor | None) -> None:
    """Save x [..., width] for the backward pass, or the parts it can be recomputed from, and the other tensors."""
    # An unmarked input counts as its own part, so that the backward pass has one code path.
    how = recomputed(x) or Recomputation(_itself, (x,))
    ctx.make, ctx.num_parts = how.make, len(how.parts)
    ctx.save_for_backward(*how.parts, *others)


def saved_rows(ctx: Any) -> tuple[Tensor, Any]:
    """The input saved by `save_input`, or recomputed, as rows [N, width], and the other tensors."""
    saved = ctx.saved_tensors
    x = ctx.make(*saved[: ctx.num_parts])
    return x.reshape(-1, x.shape[-1]), saved[ctx.num_parts :]


def _itself(x: Tensor) -> Tensor:
    return x


CrossEntropySum = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# Two implementations of one formula differ only by rounding: a few units in the last place of the result's largest
# entry.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
_ROWS, _LARGE = 4, 1000.0
"""Rows of a probe, and the factor of its large ones."""
_GATED: Final = ("gate_proj", "up_proj", "down_proj")


class RmsNorm(torch.autograd.Function):
    """y = w * x / rms(x) (Zhang & Sennrich, 2019, arXiv:1910.07467), statistics in fp32, keeping only x/rms and rms.

    Returns y and x/rms; the latter is not differentiable.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # x: [..., width]; the mean of squares is taken in fp32, since bf16 sums over a width of thousands lose digits
        wide = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # 1 / rms, [..., 1]
        normal = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(normal, weight, inverse)
        ctx.mark_non_differentiable(normal)
        return normal * weight, normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_out = gradients[0]
        normal, weight, inverse = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            wide_out = grad_out.to(inverse.dtype)
            # [width], a sum over all positions: in bf16 each product would be rounded before it is added.
            grad_weight = (wide_out * normal).flatten(0, -2).sum(0).to(weight.dtype)
        grad = (grad_out * weight).to(inverse.dtype)
        wide = normal.to(inverse.dtype, copy=True)
        # d(x / rms)/dx applied to g is (g - n * mean(g * n)) / rms, with n = x / rms
        mean = (grad * wide).mean(-1, keepdim=True)
        return grad.sub_(wide.mul_(mean)).mul_(inverse).to(grad_out.dtype), grad_weight, None


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)  # in place on the tensor that silu has just made


class FusedRmsNorm(torch.autograd.Function):
    """`RmsNorm` in two loops, one there and one back (`fused_operations`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        out, normal, inverse = fused_operations.rms_norm(x, weight, eps)
        ctx.save_for_backward(normal, weight, inverse)
        ctx.mark_non_differentiable(normal)
        return out, normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, inverse = ctx.saved_tensors
        grad, wants_weight = gradients[0].contiguous(), ctx.needs_input_grad[1]
        grads = fused_operations.rms_norm_backward(grad, normal, weight, inverse, wants_weight)
        return *grads, None


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up (Shazeer, 2020, arXiv:2002.05202), recomputing silu in the backward pass instead of saving it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


class FusedSwiGlu(torch.autograd.Function):
    """`SwiGlu` in two loops, one there and one back (`fused_operations`)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return fused_operations.swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return fused_operations.swiglu_backward(gradients[0].contiguous(), *ctx.saved_tensors)


class TrainedProduct(torch.autograd.Function):
    """x W^T (+ bias) with W trained, keeping what x is made of in place of x; x: [..., in], W: [out, in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        save_input(ctx, x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad = gradients[0].reshape(-1, gradients[0].shape[-1])  # [N, out]
        rows, (weight,) = saved_rows(ctx)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_x = (grad @ weight).view(*gradients[0].shape[:-1], weight.shape[1]) if wants_x else None
        return grad_x, grad.t() @ rows if wants_weight else None, grad.sum(0) if wants_bias else None


def _is_trained_linear(module: nn.Module) -> bool:
    # By its exact type: a subclass may compute something else.
    return type(module) is nn.Linear and module.weight.requires_grad and module.weight.device.type == "cpu"


def _linear_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    assert isinstance(module, nn.Linear)

    def forward(x: Tensor) -> Tensor:
        # Weight and bias are read at each call: sharding replaces them.
        if recomputed(x) is None or not torch.is_grad_enabled():
            return F.linear(x, module.weight, module.bias)
        out: Tensor = TrainedProduct.apply(x, module.weight, module.bias)
        return out

    return forward


def _norm_forward(module: nn.Module, *, with_numba: bool = False) -> Callable[[Tensor], Tensor]:
    eps = module.variance_epsilon

    def forward(x: Tensor) -> Tensor:
        weight: Tensor = module.weight  # type: ignore[assignment]  # read at each call: sharding replaces it
        norm = FusedRmsNorm if with_numba and fused_operations.applies(x, weight) else RmsNorm
        out, normal = norm.apply(x, weight, eps)
        return mark_recomputable(out, torch.mul, normal, weight)

    return forward


def _gated_forward(module: nn.Module, *, with_numba: bool = False) -> Callable[[Tensor], Tensor]:
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj

    def forward(x: Tensor) -> Tensor:
        gating, raised = gate(x), up(x)  # type: ignore[operator]
        is_fused = with_numba and fused_operations.applies(gating, raised)
        gated, make = (FusedSwiGlu, fused_operations.swiglu) if is_fused else (SwiGlu, _gated)
        out: Tensor = down(mark_recomputable(gated.apply(gating, raised), make, gating, raised))  # type: ignore[operator]
        return out

    return forward


LIGER_PACKAGE: Final = "liger_kernel"


def has_liger(device: torch.device) -> bool:
    """Whether the kernels of Liger Kernel can run on this device; checked without importing anything."""
    return has_triton(device) and find_spec(LIGER_PACKAGE) is not None


def _liger_operations() -> Any:
    return import_module(f"{LIGER_PACKAGE}.ops")


def _liger_norm_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """w * x / rms(x), statistics in fp32; the incoming gradient is not overwritten."""
    weight, eps, apply = module.weight, module.variance_epsilon, _liger_operations().LigerRMSNormFunction.apply
    return lambda x: apply(x, weight, eps, 0.0, "llama", False, None)


def _liger_gated_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """down(silu(gate(x)) * up(x))."""
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    apply = _liger_operations().LigerSiLUMulFunction.apply
    return lambda x: down(apply(gate(x), up(x), 1.0, 1.0))  # type: ignore[operator]


def liger_cross_entropy_sum(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy in nats and number of correct predictions, in the form of `cross_entropy_sum`.

    The gradient of a trained head adds up in fp32.

    Args:
        hidden: last hidden states, [N, width].
        head: the output matrix, [vocabulary, width].
        targets: token ids, [N].
    """
    # Positional, as autograd takes them: bias, class weights, the index to ignore, two regularisers, how to reduce,
    # capping, and what to return besides the loss.
    found = _liger_operations().LigerFusedLinearCrossEntropyFunction.apply(
        hidden, head, targets, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32, False, False, True
    )
    return found[0], (found[3] == targets).sum()


Make = Callable[[nn.Module], Callable[[Tensor], Tensor]]


def _replacements(module: nn.Module, with_liger: bool, with_numba: bool = False) -> tuple[dict[str, Make], int]:
    """Candidate replacements for a known module, by their suffix in reports, in the order of trial; and its width."""
    theirs: Make
    ours: Make
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        theirs, ours, width = _liger_norm_forward, _norm_forward, next(module.parameters()).shape[-1]
    elif all(hasattr(module, name) for name in (*_GATED, "act_fn")):
        inputs = getattr(module.gate_proj, "in_features", None)
        if not isinstance(inputs, int):  # a tower may have another kind of module there
            return {}, 0
        theirs, ours, width = _liger_gated_forward, _gated_forward, inputs
    else:
        return {}, 0
    found: dict[str, Make] = {" (liger)": theirs} if with_liger else {}
    if with_numba:
        found[" (numba)"] = partial(ours, with_numba=True)
    return found | {"": ours}, width


def _output_and_gradient(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        out = forward(x)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    return out.detach(), gradient


def _same(one: Tensor, other: Tensor) -> bool:
    # Relative to the largest entry: small entries may be sums of large ones that cancel.
    scale = one.abs().max().clamp_min(torch.finfo(one.dtype).tiny)
    return bool((one - other).abs().max() <= _TOLERANCE[one.dtype] * scale)


@contextmanager
def _drawing_its_own(module: nn.Module) -> Iterator[None]:
    """Within the block a module is in training mode, and its matrices, whose adapters may draw dropout, are not."""
    others = (child for name, child in module.named_children() if name not in _GATED)
    parts = [module, *(part for child in others for part in child.modules())]
    before = [part.training for part in parts]
    try:
        for part in parts:
            part.training = True
        yield
    finally:
        for part, was_training in zip(parts, before, strict=True):
            part.training = was_training


def _same_function(module: nn.Module, forward: Callable[[Tensor], Tensor], width: int, like: Tensor) -> bool:
    """Whether original and replacement agree in output and input gradient on random rows, in the dtype of `like`.

    Half of the rows are large: a limit within the module (a clamped gate, a soft cap) changes no ordinary ones, and
    real activations are not all ordinary. The original is in training mode, in which dropout of its own shows, which no
    replacement has.
    """
    generator = torch.Generator().manual_seed(0)
    # drawn on the CPU, so that the probe is the same on every device
    x = torch.randn(2 * _ROWS, width, generator=generator)
    x[_ROWS:] *= _LARGE
    x = x.to(like.device, like.dtype)
    with forked_random(like.device), _drawing_its_own(module):
        seed_random(0)
        before = _output_and_gradient(module.forward, x)
    after = _output_and_gradient(forward, x)
    # Each half by itself, since the tolerance is relative to the largest entry.
    return all(
        _same(one, other)
        for a, b in zip(before, after, strict=True)
        for one, other in zip(a.split(_ROWS), b.split(_ROWS), strict=True)
    )


def install(
    model: nn.Module, *, with_liger: bool = True, with_numba: bool = False, recomputes_trained: bool = True
) -> Counter[str]:
    """Swap in every replacement that proves equal; returns how many modules of each class were swapped or kept.

    Trained matrices on a CPU compute what they did, and keep less for the backward pass; they are not counted. Not with
    `recomputes_trained` false: where whole layers are computed again, torch leaves the last product of each out, which
    one of its own functions would not let it.

    Call it after the adapter is in place, in eval mode (dropout of adapters would make two honest runs differ).

    Keys of the result: a class name, followed by " (liger)" for a Liger kernel, by " (numba)" for loops compiled by
    Numba, and by " (kept)" where no replacement agreed.

    Args:
        model: with its adapter; its modules get the replacements.
        with_liger: also try the kernels of Liger Kernel, if installed.
        with_numba: also try loops compiled by Numba, where `fused_operations` has them for the model's type of number.
        recomputes_trained: whether trained matrices on a CPU keep less for the backward pass.
    """
    swapped: Counter[str] = Counter()
    # packed matrices are integers; computation uses the precision of the unpacked weights
    like = next(p for p in model.parameters() if p.is_floating_point())
    with_liger = with_liger and has_liger(like.device)
    with_numba = with_numba and fused_operations.applies(like.detach().new_empty(1))
    for module in model.modules():
        if recomputes_trained and _is_trained_linear(module):
            module.forward = _linear_forward(module)
            continue
        found, width = _replacements(module, with_liger, with_numba)
        for said, make in found.items():
            forward = make(module)
            if _same_function(module, forward, width, like):
                module.forward = forward
                swapped[f"{type(module).__name__}{said}"] += 1
                break
        else:
            if found:
                swapped[f"{type(module).__name__} (kept)"] += 1
    return swapped


def uninstall(model: nn.Module) -> None:
    """Restore the original forward of every module that `install` handles."""
    for module in model.modules():
        if _is_trained_linear(module) or _replacements(module, False)[0]:
            # `install` set an instance attribute; without it the forward of the class is found again.
            vars(module).pop("forward", None)


def linear_cross_entropy(head: Tensor, *, with_liger: bool = True, with_numba: bool = False) -> CrossEntropySum:
    """The loss of a linear head: Liger Kernel's if it is installed and proves equal, otherwise ours.

    From reading the code, not from measurement (benchmarks/train_gpu.py measures it): ours passes over the logits of a
    chunk about seven times in fp32, theirs twice in the precision of the model.
    """
    if not (with_liger and has_liger(head.device)):
        return partial(cross_entropy_sum, numba_kernels=True) if with_numba else cross_entropy_sum
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, head.shape[1], generator=generator).to(head)
    targets = torch.randint(head.shape[0], (8,), generator=generator).to(head.device)
    found = []
    for loss in (cross_entropy_sum, liger_cross_entropy_sum):
        x = hidden.clone().requires_grad_()
        with torch.enable_grad():
            total, _ = loss(x, head.detach(), targets)
        found.append((total.detach().to(head.dtype), *torch.autograd.grad(total, x)))
    ours, theirs = found
    is_same = all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    return liger_cross_entropy_sum if is_same else cross_entropy_sum
