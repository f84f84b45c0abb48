"""The divergence of a student's next-token distribution from a teacher's, with one chunk of logits of each at a time.

    loss = (1 - alpha) * cross-entropy + alpha * T^2 * D(teacher, student), both softened by the temperature T

Hinton et al., 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: T^2 keeps the scale of
the gradient independent of T. D is the forward Kullback-Leibler divergence KL(p || q) of the student q from the teacher
p, the reverse one KL(q || p), or the generalised Jensen-Shannon divergence b KL(p || m) + (1 - b) KL(q || m) with the
mixture m = b p + (1 - b) q (Agarwal et al., 2023, "On-Policy Distillation of Language Models", arXiv:2306.13649,
equation 1). Gradients are computed per chunk, as in cross_entropy.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.recipe import Divergence
from luthier.ml.inference.models.forward import PLAIN, ScaledHead
from luthier.ml.training.losses.cross_entropy import cap_, few_at_a_time, through_cap_

CHUNK_ROWS = 128


@dataclass(frozen=True, slots=True)
class Mixing:
    """The divergence, its temperature and its weight in the loss.

    Attributes:
        divergence: which divergence from the teacher is learned.
        temperature: T, which softens both distributions.
        alpha: share of the divergence in the loss; the rest is cross-entropy.
        teacher_share: b of the Jensen-Shannon divergence.
    """

    divergence: Divergence
    temperature: float
    alpha: float
    teacher_share: float = 0.5


def divergence_of(log_p: Tensor, log_q: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """The summed divergence of students from teachers, and its gradient with respect to the student's logits.

    Args:
        log_p: [N, vocabulary], log-probabilities of the teacher.
        log_q: [N, vocabulary], log-probabilities of the student; the gradient is by the logits behind it.
        mixing: kind of divergence and share of the teacher.
    """
    q = log_q.exp()  # [N, vocabulary]
    # The gradients are those by the student's logits z: with q = softmax(z), d/dz of sum(q f) is q (f - sum(q f)).
    if mixing.divergence == "forward_kl":
        p = log_p.exp()
        # only the cross-entropy of q under p depends on z; its gradient is q - p
        return (p * (log_p - log_q)).sum(), q.sub_(p)
    if mixing.divergence == "reverse_kl":
        apart = log_q - log_p
        each = (q * apart).sum(1, keepdim=True)
        return each.sum(), q.mul_(apart.sub_(each))
    share = mixing.teacher_share
    # log(b p + (1 - b) q) without leaving the log domain, where small probabilities would underflow
    log_m = torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
    of_teacher = (log_p.exp() * (log_p - log_m)).sum()
    apart = log_q - log_m
    each = (q * apart).sum(1, keepdim=True)
    return share * of_teacher + (1 - share) * each.sum(), q.mul_(apart.sub_(each)).mul_(1 - share)


def _one_chunk(
    student: Tensor, teacher: Tensor, wanted: Tensor, mixing: Mixing, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cross-entropy, divergence, number of correct predictions, and the gradient of the student's logits if needed.

    Only tokens of both vocabularies are compared: further rows pad a head to a round number and never occur in text.

    Args:
        student: logits [n, vocabulary].
        teacher: logits [n, teacher's vocabulary].
        wanted: targets [n, 1].
        mixing: weights, temperature and kind of divergence.
        needs_gradient: whether the gradient is computed.
    """
    common, soft = min(student.shape[1], teacher.shape[1]), mixing.temperature
    # A tie for the largest logit counts as right, as in cross_entropy.py.
    chosen = student.gather(1, wanted)
    correct = (chosen == student.amax(1, keepdim=True)).sum()
    hard = student.log_softmax(1)  # [n, vocabulary], at temperature 1: the cross-entropy is not softened
    cross_entropy = -hard.gather(1, wanted).sum()
    log_q = (student[:, :common] / soft).log_softmax(1)
    log_p = (teacher[:, :common] / soft).log_softmax(1)
    divergence, towards = divergence_of(log_p, log_q, mixing)
    if not needs_gradient:
        return cross_entropy, divergence, correct, None
    gradient = hard.exp_().scatter_add_(1, wanted, torch.full_like(chosen, -1.0)).mul_(1 - mixing.alpha)
    # alpha * T^2 from the loss, times 1 / T from the softened logits: alpha * T
    gradient[:, :common].add_(towards, alpha=mixing.alpha * soft)
    return cross_entropy, divergence, correct, gradient


class ChunkedDistillation(torch.autograd.Function):
    """The summed loss of `hidden @ head.T` against targets and the teacher's `states @ teacher_head.T`.

    Args:
        hidden: [N, width].
        head: [vocabulary, width].
        targets: [N].
        states: [N, teacher's width].
        teacher_head: [teacher's vocabulary, its width].
        mixing: weights, temperature and kind of divergence.
        chunk: rows whose logits exist at one time.
        cap: of a soft cap on the student's logits, or None.
        teacher_scaled: scale and soft cap of the teacher's logits.

    Returns:
        The loss and its two parts, cross-entropy and divergence, all summed in nats (fp32 or wider), and the number of
        targets with the largest logit. Only the loss has a gradient, and only with respect to the student.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        states: Tensor,
        teacher_head: Tensor,
        mixing: Mixing,
        chunk: int,
        cap: float | None = None,
        teacher_scaled: ScaledHead = PLAIN,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        entropy, apart = (torch.zeros((), dtype=wide, device=hidden.device) for _ in range(2))
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_head = torch.zeros_like(head, dtype=wide) if needs_head else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            student = hidden[part] @ head.t()  # [n, vocabulary], in the precision of the model
            teacher = states[part] @ teacher_head.t()  # [n, teacher's vocabulary]
            for few in few_at_a_time(student):
                # Cast before the softmax: log-probabilities in bf16 would have two or three digits. Copied, since the
                # gradient of these rows takes their place.
                own = cap_(student[few].to(wide, copy=True), cap)
                other = teacher_scaled.of(teacher[few].to(wide, copy=True))
                found = _one_chunk(own, other, targets[part][few, None], mixing, needs_hidden or needs_head)
                entropy, apart, correct = entropy + found[0], apart + found[1], correct + found[2]
                if found[3] is not None:
                    student[few].copy_(through_cap_(found[3], own, cap))
                del own, other, found  # otherwise they would live until the next iteration has formed its own
            del teacher
            if grad_hidden is not None:
                torch.mm(student, head, out=grad_hidden[part])  # [n, width]
            if grad_head is not None:
                grad_head.add_(student.t() @ hidden[part])  # [vocabulary, width]
            del student  # otherwise two chunks of logits would exist at one time
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(head.dtype))
        ctx.mark_non_differentiable(entropy, apart, correct)
        loss = (1 - mixing.alpha) * entropy + mixing.alpha * mixing.temperature**2 * apart
        return loss, entropy, apart, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        own = (None if found is None else found * scale.to(found.dtype) for found in ctx.saved_tensors)
        return (*own, *(None,) * 7)


class _OfLogits(torch.autograd.Function):
    """The same sums from given logits: student [n, vocabulary] with a gradient, teacher [n, its vocabulary] without."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, targets: Tensor, mixing: Mixing
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs = ctx.needs_input_grad[0]
        entropy, apart, correct, gradient = _one_chunk(student, teacher, targets[:, None], mixing, needs)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, apart, correct)
        loss = (1 - mixing.alpha) * entropy + mixing.alpha * mixing.temperature**2 * apart
        return loss, entropy, apart, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * gradients[0]), None, None, None


def of_logits(
    student: Tensor, teacher: Tensor, targets: Tensor, mixing: Mixing
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums of `distillation_sum` for a few learned tokens whose logits exist already, in fp32 or wider.

    Args:
        student: [n, vocabulary].
        teacher: [n, teacher's vocabulary].
        targets: [n] int64.
        mixing: weights, temperature and kind of divergence.
    """
    out: tuple[Tensor, Tensor, Tensor, Tensor] = _OfLogits.apply(student, teacher, targets, mixing)
    return out


def distillation_sum(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    states: Tensor,
    teacher_head: Tensor,
    mixing: Mixing,
    chunk: int = CHUNK_ROWS,
    cap: float | None = None,
    teacher_scaled: ScaledHead = PLAIN,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over N learned tokens: loss, cross-entropy, divergence and number of correct predictions.

    Shapes as in `ChunkedDistillation`.

    Args:
        hidden: [N, width].
        head: [vocabulary, width].
        targets: [N] int64.
        states: [N, teacher's width].
        teacher_head: [teacher's vocabulary, teacher's width].
        mixing: weights, temperature and kind of divergence.
        chunk: rows whose logits exist at one time.
        cap: of a soft cap on the student's logits; None for none.
        teacher_scaled: scale and soft cap of the teacher's logits.
    """
    out: tuple[Tensor, Tensor, Tensor, Tensor] = ChunkedDistillation.apply(
        hidden, head, targets, states, teacher_head, mixing, chunk, cap, teacher_scaled
    )
    return out
