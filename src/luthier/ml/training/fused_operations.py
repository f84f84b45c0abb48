"""The choice between plain operations and loops compiled by Numba, for elementwise work of a training step on a CPU.

The plan of a run decides whether loops are used (`training.numba_kernels`). They are used for bfloat16 and fp32 on a
CPU, after all of them have been compared with the plain operations in this process: dropout to the bit, the others
within rounding, on random input and with a NaN in it. Where one differs, fails or cannot be compiled, all work stays
with the plain operations, which the callers have.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.errors import first_line
from luthier.core.system.libraries import NUMBA, has_numba

if TYPE_CHECKING:
    from types import ModuleType

_log = logging.getLogger(__name__)

_TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_DTYPES: Final = tuple(_TOLERANCE)
_PLAIN: Final = (Tensor, nn.Parameter)


def applies(*tensors: Tensor) -> bool:
    """Whether the loops may be used on these tensors of one type, each contiguous on the CPU."""
    first = tensors[0]
    if first.dtype not in _TOLERANCE or torch.compiler.is_compiling():
        return False
    # By their exact types: tensors that are spread over devices, or only play a part, have no memory to loop over.
    if not all(type(t) in _PLAIN and t.device.type == "cpu" for t in tensors):
        return False
    if not all(t.dtype == first.dtype and t.is_contiguous() for t in tensors):
        return False
    return why_not(first.dtype) is None


@lru_cache(maxsize=len(_DTYPES))
def why_not(dtype: torch.dtype) -> str | None:
    """Why the loops are not used for a type of number; None where they are. Compiled and proved at the first call."""
    if not has_numba():
        return f"{NUMBA} is not installed"
    try:
        with torch.inference_mode():
            different = _differences(dtype)
    except Exception as error:  # noqa: BLE001  # whatever a compiler raises: the plain operations need none
        reason = f"{type(error).__name__}: {first_line(error)}"
    else:
        if not different:
            return None
        reason = f"{', '.join(different)} differ from the plain operations"
    _log.warning("Loops compiled by Numba are not used for %s, so that training is slower: %s.", dtype, reason)
    return reason


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """weight * x / rms(x), x / rms(x), and 1 / rms(x) in fp32 [..., 1]; x: [..., width], weight: [width]."""
    loops = _loops()
    out, normal = torch.empty_like(x), torch.empty_like(x)
    inverse = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    loops.rms_norm(*loops.as_arrays(x, weight), np.float32(eps), *loops.as_arrays(out, normal, inverse))
    return out, normal, inverse


def rms_norm_backward(
    grad: Tensor, normal: Tensor, weight: Tensor, inverse: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and, where it is wanted, of the weight; as `rms_norm` returned them."""
    loops = _loops()
    grad_x, grad_weight = torch.empty_like(grad), None
    loops.rms_norm_backward(*loops.as_arrays(grad, normal, weight, inverse, grad_x))
    if wants_weight:
        # [width], summed over all positions in fp32: in bf16 each product would be rounded before it is added.
        grad_weight = torch.empty(weight.shape, dtype=torch.float32)
        loops.rms_norm_weight_backward(*loops.as_arrays(grad, normal, grad_weight))
        grad_weight = grad_weight.to(weight.dtype)
    return grad_x, grad_weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    loops, out = _loops(), torch.empty_like(gate)
    loops.swiglu(*loops.as_arrays(gate, up, out))
    return out


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    loops, grad_gate, grad_up = _loops(), torch.empty_like(gate), torch.empty_like(up)
    loops.swiglu_backward(*loops.as_arrays(grad, gate, up, grad_gate, grad_up))
    return grad_gate, grad_up


def dropout(x: Tensor, key: int, keep_steps: int) -> Tensor:
    """x with dropped elements set to zero, the others unscaled: 15 random bits below `keep_steps` keep one."""
    loops, out = _loops(), torch.empty_like(x)
    loops.dropout(*loops.as_arrays(x), np.uint64(key), np.uint16(keep_steps), *loops.as_arrays(out))
    return out


def add_dropout_(total: Tensor, part: Tensor, key: int, keep_steps: int) -> Tensor:
    """total += part where `dropout` keeps an element, in place."""
    loops = _loops()
    loops.add_dropout(*loops.as_arrays(total, part), np.uint64(key), np.uint16(keep_steps))
    return total


def cross_entropy_(logits: Tensor, targets: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, fp32 [n], and whether no logit is larger than the target's, bool [n].

    Args:
        logits: [n, vocabulary]; with `needs_gradient` they become d(loss)/d(logits).
        targets: [n] int64.
        needs_gradient: whether the gradient is formed.
    """
    loops = _loops()
    losses, correct = torch.empty(len(targets)), torch.empty(len(targets), dtype=torch.bool)
    loops.cross_entropy(*loops.as_arrays(logits, targets), needs_gradient, *loops.as_arrays(losses, correct))
    return losses, correct


def token_log_probabilities_(
    logits: Tensor, own: Tensor, targets: Tensor, temperature: float, needs_gradient: bool
) -> Tensor:
    """Log-probabilities of targets under softmax(logits / temperature) in nats, fp32 [n].

    Args:
        logits: [n, vocabulary]; with `needs_gradient` they become d(log-probability)/d(logits).
        own: [n] fp32, the targets' logits, which count in place of those in `logits`.
        targets: [n] int64.
        temperature: divides the logits.
        needs_gradient: whether the gradient is formed.
    """
    loops, found, scale = _loops(), torch.empty(len(targets)), np.float32(1.0 / temperature)
    arrays = loops.as_arrays(logits, own, targets)
    loops.token_log_probability(*arrays, scale, needs_gradient, *loops.as_arrays(found))
    return found


def entropies(logits: Tensor, temperature: float) -> Tensor:
    """The entropy of softmax(logits / temperature) of each row in nats, fp32 [n]; logits: [n, vocabulary]."""
    loops, found = _loops(), torch.empty(len(logits))
    loops.entropy(*loops.as_arrays(logits), np.float32(1.0 / temperature), *loops.as_arrays(found))
    return found


def random_words(key: int, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The words of `dropout`, [count] uint64: SplitMix64 of the positions from 0."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(key)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def _loops() -> ModuleType:
    # Imported here: Numba takes half a second, and most processes never train.
    from luthier.ml.training import numba_kernels

    return numba_kernels


def _differences(dtype: torch.dtype) -> list[str]:
    """The names of the operations whose loops differ from the plain ones."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return (3.0 * torch.randn(*shape, generator=generator)).to(dtype)

    # A width that is no multiple of a vector, and more elements than a block of random words decides about.
    gate, up, grad = (drawn(67, 77) for _ in range(3))
    weight, eps = drawn(77), 1e-5
    wide = gate.float()
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    normal = (wide * inverse).to(dtype)
    own = grad.float() * weight.float()
    grad_norm = (own - normal.float() * (own * normal.float()).mean(-1, keepdim=True)) * inverse
    sigmoid = torch.sigmoid(wide)
    slope = sigmoid * (1.0 + wide * (1.0 - sigmoid))
    key, keep_steps = 0x1234_5678_9ABC_DEF0, 29_491
    draws = torch.from_numpy(random_words(key, (gate.numel() + 3) // 4).view(np.int16))[: gate.numel()]
    keeps = ((draws & 0x7FFF) < keep_steps).view(gate.shape)
    targets = torch.randint(77, (67,), generator=generator)
    one_hot = F.one_hot(targets, 77).float()
    logits = gate.clone()
    losses, correct = cross_entropy_(logits, targets, needs_gradient=True)
    exact, cooled = torch.randn(67, generator=generator), gate.clone()
    chosen = token_log_probabilities_(cooled, exact, targets, 0.7, needs_gradient=True)
    scores = wide.scatter(1, targets[:, None], exact[:, None]) / 0.7
    found = {
        "norm": (rms_norm(gate, weight, eps)[0], normal.float() * weight.float()),
        "gradient of the norm": (rms_norm_backward(grad, normal, weight, inverse, False)[0], grad_norm),
        "gradient of the norm's weight": (
            rms_norm_backward(grad, normal, weight, inverse, True)[1],
            (grad.float() * normal.float()).sum(0),
        ),
        "gate": (swiglu(gate, up), F.silu(wide) * up.float()),
        "gradient of the gate": (swiglu_backward(grad, gate, up)[0], grad.float() * up.float() * slope),
        "gradient of the gated": (swiglu_backward(grad, gate, up)[1], grad.float() * F.silu(wide)),
        "dropout": (dropout(gate, key, keep_steps), torch.where(keeps, gate, 0)),
        "sum with dropout": (add_dropout_(gate.clone(), up, key, keep_steps), gate + torch.where(keeps, up, 0)),
        "cross-entropy": (losses, F.cross_entropy(wide, targets, reduction="none")),
        "gradient of the cross-entropy": (logits, torch.softmax(wide, -1) - one_hot),
        "log-probability": (chosen, scores.log_softmax(1).gather(1, targets[:, None])[:, 0]),
        "gradient of the log-probability": (cooled, (one_hot - scores.softmax(1)) / 0.7),
        "entropy": (entropies(gate, 0.7), -((wide / 0.7).softmax(1) * (wide / 0.7).log_softmax(1)).sum(1)),
        "correct predictions": (correct.float(), (wide.gather(1, targets[:, None])[:, 0] == wide.amax(1)).float()),
    }
    different = [name for name, (one, other) in found.items() if not _same(one, other, _TOLERANCE[dtype])]
    gate[1, 2] = torch.nan
    for name, one in (
        ("norm", rms_norm(gate, weight, eps)[0]),
        ("gate", swiglu(gate, up)),
        ("gradient of the gate", swiglu_backward(grad, gate, up)[0]),
        ("sum with dropout", add_dropout_(gate.clone(), up, key, keep_steps)),
        ("cross-entropy", cross_entropy_(gate.clone(), targets, needs_gradient=False)[0]),
        ("log-probability", token_log_probabilities_(gate.clone(), exact, targets, 1.0, needs_gradient=False)),
        ("entropy", entropies(gate, 1.0)),
    ):
        lost = not one.reshape(67, -1)[1].isnan().any() or one.reshape(67, -1)[2:].isnan().any()
        different += [f"{name} of a NaN"] * bool(lost)
    return different


def _same(one: Tensor | None, other: Tensor, tolerance: float) -> bool:
    # Relative to the largest entry: small entries may be sums of large ones that cancel.
    assert one is not None
    return bool((one.float() - other.float()).abs().max() <= tolerance * other.float().abs().max())
