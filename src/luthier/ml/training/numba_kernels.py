"""Elementwise work of a training step on a CPU, compiled by Numba for the processor at hand.

torch computes a chain of elementwise operations one by one, and each of them reads and writes whole tensors; in
bfloat16 each also converts to fp32 and back. The loops here read their inputs once, compute in fp32 in registers, and
round once. They need no compiler on the user's machine: Numba brings LLVM, compiles a loop at its first call, and keeps
the machine code in its cache for later processes.

Arrays of bfloat16 are passed as uint16 (NumPy has no bfloat16), arrays of fp32 as they are; `as_arrays` makes both from
tensors without a copy. Each loop runs on the calling thread without the GIL, in a fixed order: equal input gives equal
bytes on the same machine. Nothing here is used before `fused_operations` has held it against the plain operations.

Sums are taken in fp32 with partial sums of the vector width. exp is Cephes' polynomial, off by at most 2 units in the
last place of fp32 (Moshier, 1989, "Methods and Programs for Mathematical Functions", chapter 5). Dropout draws from
SplitMix64 by position (Steele, Lea and Flood, 2014, "Fast Splittable Pseudorandom Number Generators", figure 14).
"""

# Numba infers types from values, so constants are written as np.float32 and np.uint64: one Python number would widen a
# whole loop to float64.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

F32, U16, U32, U64 = np.float32, np.uint16, np.uint32, np.uint64
ONE, ZERO = F32(1), F32(0)

# No "nnan" or "ninf": a NaN in a gradient has to arrive, where it ends the run with a message.
_COMPILE: Any = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


def _loop(function: Callable[..., None]) -> Callable[..., None]:
    try:
        compiled: Callable[..., None] = njit(**_COMPILE)(function)
    except RuntimeError:  # no folder that its cache could be written to: compiled again in each process
        compiled = njit(**_COMPILE | {"cache": False})(function)
    return compiled


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that loops call: compiled into each of them, and cached with them."""
    compiled: Callable[..., Any] = njit(**_COMPILE | {"cache": False})(function)
    return compiled


_ELEMENTS: dict[torch.dtype, str] = {
    torch.bfloat16: np.dtype(np.uint16).str,
    torch.float32: np.dtype(np.float32).str,
    torch.int64: np.dtype(np.int64).str,
    torch.bool: np.dtype(np.bool_).str,
}


class _Memory:
    """The memory of a tensor by NumPy's protocol; whoever loops over it holds the tensor."""

    __slots__ = ("__array_interface__",)

    def __init__(self, tensor: Tensor) -> None:
        elements, pointer = _ELEMENTS[tensor.dtype], (tensor.data_ptr(), False)
        self.__array_interface__ = {"shape": (tensor.numel(),), "typestr": elements, "data": pointer, "version": 3}


def as_arrays(*tensors: Tensor) -> list[Any]:
    """Contiguous tensors as flat NumPy arrays of the same memory: bfloat16 as uint16.

    Not by `Tensor.numpy`, after which a storage can no longer be resized: FSDP frees gathered weights in this way.

    Raises:
        ValueError: A tensor is not contiguous.
    """
    if not all(t.is_contiguous() for t in tensors):
        raise ValueError("loops take contiguous tensors: one here has strides")
    return [np.asarray(_Memory(t)) if t.numel() else np.empty(0, _ELEMENTS[t.dtype]) for t in tensors]


def _bits_of(_: Any, value: Any) -> Any:  # noqa: ARG001
    return types.uint32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.IntType(32))  # noqa: ARG005


def _float_of(_: Any, value: Any) -> Any:  # noqa: ARG001
    return types.float32(types.uint32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.FloatType())  # noqa: ARG005


# fp32 as uint32 of the same bits, and back
_bits: Any = intrinsic(_bits_of)
_from_bits: Any = intrinsic(_float_of)


def _wide(value: Any) -> Any:  # noqa: ARG001
    """An element as fp32. In loops only: Numba takes the implementation for its type from `_wide_of`."""
    raise TypeError("this function works in compiled loops only")


@overload(_wide)
def _wide_of(value: Any) -> Any:
    def from_bfloat16(value: Any) -> Any:
        return _from_bits(U32(value) << U32(16))

    def itself(value: Any) -> Any:
        return value

    return from_bfloat16 if value == types.uint16 else itself


def _rounded(value: Any, like: Any) -> Any:  # noqa: ARG001
    """fp32 as an element of the type of `like`, to the nearest, ties to even; a NaN stays one. In loops only."""
    raise TypeError("this function works in compiled loops only")


@overload(_rounded)
def _rounded_to(value: Any, like: Any) -> Any:  # noqa: ARG001
    def to_bfloat16(value: Any, like: Any) -> Any:  # noqa: ARG001
        # A NaN that was computed from bfloat16 has only zeros in its lower half, so that the addition leaves it a NaN.
        bits = _bits(value)
        return U16((bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16))

    def itself(value: Any, like: Any) -> Any:  # noqa: ARG001
        return value

    return to_bfloat16 if like == types.uint16 else itself


@_inlined
def _exp(x: Any) -> Any:
    held = min(max(x, F32(-87.0)), F32(88.0))
    steps = np.floor(held * F32(1.44269504088896341) + F32(0.5))
    # ln 2 in two parts, so that the remainder keeps its digits
    r = held - steps * F32(0.693359375) - steps * F32(-2.12194440e-4)
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    found = (p * r * r + r + ONE) * _from_bits(U32((np.int32(steps) + np.int32(127)) << np.int32(23)))
    found = found if x >= F32(-87.0) else ZERO
    found = found if x <= F32(88.0) else F32(np.inf)
    return found if x == x else x


@_inlined
def _word(key: Any, position: Any) -> Any:
    """The 64 random bits of a position under a key: SplitMix64."""
    z = key + (U64(position) + U64(1)) * U64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


@_loop
def rms_norm(x: Any, weight: Any, eps: Any, out: Any, normal: Any, inverse: Any) -> None:
    """out = weight * x / rms(x); x, out, normal [n * width], weight [width], inverse (1 / rms) fp32 [n]."""
    width = weight.size
    for row in range(inverse.size):
        start = row * width
        total = ZERO
        for j in range(width):
            total += _wide(x[start + j]) * _wide(x[start + j])
        scale = ONE / np.sqrt(total / F32(width) + eps)
        inverse[row] = scale
        for j in range(width):
            normal[start + j] = _rounded(_wide(x[start + j]) * scale, x[0])
        for j in range(width):
            out[start + j] = _rounded(_wide(normal[start + j]) * _wide(weight[j]), x[0])


@_loop
def rms_norm_backward(grad: Any, normal: Any, weight: Any, inverse: Any, grad_x: Any) -> None:
    """grad_x = (g - n * mean(g * n)) / rms with g = grad * weight, n = x / rms; shapes as in `rms_norm`."""
    width = weight.size
    for row in range(inverse.size):
        start = row * width
        total = ZERO
        for j in range(width):
            total += _wide(grad[start + j]) * _wide(weight[j]) * _wide(normal[start + j])
        mean = total / F32(width)
        for j in range(width):
            own = _wide(grad[start + j]) * _wide(weight[j])
            grad_x[start + j] = _rounded((own - _wide(normal[start + j]) * mean) * inverse[row], grad[0])


@_loop
def rms_norm_weight_backward(grad: Any, normal: Any, grad_weight: Any) -> None:
    """grad_weight [width], fp32: the sum over rows of grad * n."""
    width = grad_weight.size
    grad_weight[:] = ZERO
    for row in range(grad.size // width):
        start = row * width
        for j in range(width):
            grad_weight[j] += _wide(grad[start + j]) * _wide(normal[start + j])


@_loop
def swiglu(gate: Any, up: Any, out: Any) -> None:
    """out = silu(gate) * up."""
    for i in range(gate.size):
        g = _wide(gate[i])
        out[i] = _rounded(g / (ONE + _exp(-g)) * _wide(up[i]), gate[0])


@_loop
def swiglu_backward(grad: Any, gate: Any, up: Any, grad_gate: Any, grad_up: Any) -> None:
    """Gradients of gate and up."""
    for i in range(gate.size):
        g, d = _wide(gate[i]), _wide(grad[i])
        s = ONE / (ONE + _exp(-g))
        grad_up[i] = _rounded(d * g * s, gate[0])
        grad_gate[i] = _rounded(d * _wide(up[i]) * s * (ONE + g * (ONE - s)), gate[0])


@_inlined
def _order(x: Any) -> Any:
    """An integer that orders as x does (a NaN above or below all): the largest of integers is found many at a time."""
    bits = np.int32(_bits(x))
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_inlined
def _of_order(order: Any) -> Any:
    return _from_bits(U32(order ^ ((order >> np.int32(31)) & np.int32(0x7FFFFFFF))))


_BLOCK = 1024
"""Random words that are held at a time: few enough to stay in the processor's first cache."""


@_inlined
def _draw(key: Any, first: Any, words: Any) -> None:
    for w in range(words.size):
        words[w] = _word(key, first + w)


@_loop
def dropout(x: Any, key: Any, keep_steps: Any, out: Any) -> None:
    """out = x where kept, 0 elsewhere; x is not scaled. x, out: [n].

    Element i is decided by 15 of the bits 16 * (i % 4) to 16 * (i % 4) + 15 of word i / 4.
    """
    words = np.empty(_BLOCK, np.uint64)
    draws = words.view(np.uint16)
    for start in range(0, x.size, draws.size):
        _draw(key, start // 4, words)
        part, put = x[start : start + draws.size], out[start : start + draws.size]
        for i in range(part.size):
            put[i] = part[i] if draws[i] & U16(0x7FFF) < keep_steps else type(part[i])(0)


@_loop
def add_dropout(total: Any, part: Any, key: Any, keep_steps: Any) -> None:
    """total += part where kept; total, part: [n], as in `dropout`."""
    words = np.empty(_BLOCK, np.uint64)
    draws = words.view(np.uint16)
    for start in range(0, total.size, draws.size):
        _draw(key, start // 4, words)
        put, more = total[start : start + draws.size], part[start : start + draws.size]
        for i in range(put.size):
            added = _wide(more[i]) if draws[i] & U16(0x7FFF) < keep_steps else ZERO
            put[i] = _rounded(_wide(put[i]) + added, put[0])


@_inlined
def _largest(logits: Any, start: Any, stop: Any, at_least: Any) -> Any:
    order = _order(at_least)
    for i in range(start, stop):
        order = max(order, _order(_wide(logits[i])))
    return _of_order(order)


@_inlined
def _exponentials(logits: Any, start: Any, stop: Any, scale: Any, top: Any) -> Any:
    total = ZERO
    for i in range(start, stop):
        total += _exp(_wide(logits[i]) * scale - top)
    return total


@_loop
def cross_entropy(logits: Any, targets: Any, needs_gradient: Any, losses: Any, correct: Any) -> None:
    """Cross-entropy of each row in nats; with `needs_gradient`, logits become softmax - one_hot.

    logits: [n * vocabulary]; targets: int64 [n]; losses: fp32 [n]; correct: bool [n], whether no logit is larger.
    """
    width = logits.size // targets.size
    for row in range(targets.size):
        start = row * width
        own = _wide(logits[start + targets[row]])
        largest = _largest(logits, start, start + width, own)
        total = _exponentials(logits, start, start + width, ONE, largest)
        losses[row] = np.log(total) + largest - own
        correct[row] = own == largest
        if needs_gradient:
            scale = ONE / total
            for j in range(width):
                logits[start + j] = _rounded(_exp(_wide(logits[start + j]) - largest) * scale, logits[0])
            target = _exp(own - largest) * scale - ONE
            logits[start + targets[row]] = _rounded(target, logits[0])


@_loop
def token_log_probability(logits: Any, own: Any, targets: Any, scale: Any, needs_gradient: Any, found: Any) -> None:
    """Log-probabilities of the targets under softmax(logits * scale); `needs_gradient`: logits become their gradients.

    logits: [n * vocabulary]; own: fp32 [n], the logits of the targets, in place of those in `logits`; targets: int64
    [n]; found: fp32 [n].
    """
    width = logits.size // targets.size
    for row in range(targets.size):
        start = row * width
        stop, target = start + width, start + targets[row]
        top = _largest(logits, start, stop, own[row]) * scale
        mine = _exp(own[row] * scale - top)
        # in two parts, without the target: its own logit counts, which is not rounded
        total = _exponentials(logits, start, target, scale, top) + _exponentials(logits, target + 1, stop, scale, top)
        total += mine
        found[row] = own[row] * scale - top - np.log(total)
        if needs_gradient:
            factor = -scale / total
            for i in range(start, stop):
                logits[i] = _rounded(_exp(_wide(logits[i]) * scale - top) * factor, logits[0])
            logits[target] = _rounded(mine * factor + scale, logits[0])


@_loop
def entropy(logits: Any, scale: Any, found: Any) -> None:
    """Entropy of softmax(logits * scale) of each row, in nats; logits: [n * vocabulary], found: fp32 [n]."""
    width = logits.size // found.size
    for row in range(found.size):
        start = row * width
        top = _largest(logits, start, start + width, _wide(logits[start])) * scale
        total = ZERO
        along = ZERO
        for i in range(start, start + width):
            below = _wide(logits[i]) * scale - top
            weight = _exp(below)
            total += weight
            along += weight * max(below, F32(-100.0))  # where the weight is 0, "below" may be -inf
        found[row] = np.log(total) - along / total
