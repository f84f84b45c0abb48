"""Cross-entropy and log-probabilities of the learned tokens, with logits for one chunk of rows at a time.

A vocabulary of 50,000 makes logits the largest tensor of a small model's step. Here only rows whose next token is
learned are multiplied with the head, one chunk at a time, and the gradient of each chunk is computed immediately, so
that at most one chunk of logits exists at any moment.

`cross_entropy_sum` is the sum over all rows. `token_log_probabilities` gives one value per row: a loss over whole
completions scales the gradient of each row by a different factor, known only once all rows are. Label smoothing moves a
share of the weight from the target token to the whole vocabulary, evenly, using the same logits. A soft cap on logits
is cap * tanh(logits / cap).

Sources: Hsu et al., 2024, "Liger Kernel", arXiv:2410.10989, section 3.2 (fused linear cross-entropy). Szegedy et al.,
2016, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567, section 7 (label smoothing). Gemma
Team, 2024, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118, section 2 (soft cap).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.ml.training import fused_operations


def cap_(logits: Tensor, cap: float | None) -> Tensor:
    """The logits, capped in place; unchanged with None."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def through_cap_(gradient: Tensor, capped: Tensor, cap: float | None) -> Tensor:
    """Convert, in place, the gradient by capped logits into the gradient by uncapped ones; unchanged with None.

    d/dx of cap tanh(x / cap) is 1 - tanh^2.

    Args:
        gradient: by the capped logits, in the shape of `capped`; changed in place.
        capped: the logits after the cap; they are overwritten.
        cap: of the soft cap; None for none.
    """
    if cap is None:
        return gradient
    return gradient.mul_(capped.div_(cap).square_().neg_().add_(1.0))


CHUNK_ROWS = 512
WIDE_ROWS = 16
"""Rows of a chunk that are held in fp32 at a time: few enough to stay in the processor's caches."""


def _one_chunk(
    rows: Tensor,
    weight: Tensor,
    wanted: Tensor,
    wide: torch.dtype,
    needs_gradient: bool,
    smoothing: float,
    cap: float | None,
    numba_kernels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Smoothed and plain loss of a chunk, number of correct predictions, and the gradient of its logits if needed.

    A separate function, so that its logits are freed before the next chunk's are allocated.

    Args:
        rows: [n, width].
        weight: [vocabulary, width].
        wanted: [n, 1].
        wide: dtype of the sums and of softmax, fp32 or wider.
        needs_gradient: whether the gradient is computed.
        smoothing: share of the target that is spread over the vocabulary.
        cap: of a soft cap on the logits; None for none.
        numba_kernels: whether one loop does all of it where there is neither smoothing nor cap.
    """
    logits = rows @ weight.t()  # [n, vocabulary], in the precision of the model
    if numba_kernels and cap is None and not smoothing and fused_operations.applies(logits):
        losses, matches = fused_operations.cross_entropy_(logits, wanted[:, 0].contiguous(), needs_gradient)
        return losses.sum(), losses.sum(), matches.sum(), logits if needs_gradient else None
    loss, plain = (torch.zeros((), dtype=wide, device=rows.device) for _ in range(2))
    correct = torch.zeros((), dtype=torch.int64, device=rows.device)
    for start in range(0, len(logits), WIDE_ROWS):
        # [WIDE_ROWS, vocabulary] and [WIDE_ROWS, 1]: only these few rows are ever held in the wider type
        part, target = logits[start : start + WIDE_ROWS], wanted[start : start + WIDE_ROWS]
        # Compared by value, not by argmax: a tie for the largest logit counts as right, on every device.
        correct += (part.gather(1, target) == part.amax(1, keepdim=True)).sum()
        # log_softmax in fp32: over 50,000 terms a bf16 sum of exponentials would lose most of its digits.
        capped = part if cap is None else cap_(part.to(wide, copy=True), cap)
        log_probabilities = torch.log_softmax(capped, 1, dtype=wide)
        chosen = log_probabilities.gather(1, target).sum()
        plain -= chosen
        loss -= (1.0 - smoothing) * chosen
        if smoothing:
            loss -= smoothing * log_probabilities.mean(1).sum()
        if needs_gradient:
            # d(loss)/d(logits) = softmax - (1 - s) one_hot - s / vocabulary, written over the logits
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(1, target, torch.full_like(target, smoothing - 1.0, dtype=wide))
            if smoothing:
                gradient.sub_(smoothing / gradient.shape[1])
            part.copy_(through_cap_(gradient, capped, cap))
            del gradient
        del log_probabilities, capped  # otherwise they would live until the next iteration has allocated its own
    return loss, plain, correct, logits if needs_gradient else None


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T` against targets.

    The gradient of the weight is formed only where the weight is trained.

    Args:
        hidden: [N, width].
        weight: [vocabulary, width].
        targets: [N].
        cap: of a soft cap on the logits, or None.
        numba_kernels: whether loops compiled by Numba are used.

    Returns:
        The sum in nats (a scalar, fp32 or wider), the same without smoothing (not differentiable), and the number of
        targets with the largest logit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        smoothing: float,
        cap: float | None = None,
        numba_kernels: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=wide, device=hidden.device)
        plain = torch.zeros_like(total)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None  # [N, width]
        # [vocabulary, width]; fp32, since every chunk adds into the same entries
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        for start in range(0, hidden.shape[0], chunk):
            rows = hidden[start : start + chunk]
            wanted = targets[start : start + chunk, None]
            loss, own, right, narrow = _one_chunk(
                rows, weight, wanted, wide, needs_hidden or needs_weight, smoothing, cap, numba_kernels
            )
            total += loss
            plain += own
            correct += right
            # narrow: d(loss)/d(logits) [n, vocabulary], rounded to the precision of the model
            if narrow is not None and grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[start : start + chunk])  # [n, width]
            if narrow is not None and grad_weight is not None:
                grad_weight.add_(narrow.t() @ rows)  # summed in fp32 over chunks: [vocabulary, width]
            del narrow  # otherwise two chunks of logits would exist at one time
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(plain, correct)
        return total, plain, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients were formed in forward, for an incoming gradient of 1; the loss is a scalar, so they only scale.
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            *(None,) * 5,
        )


def cross_entropy_sum(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    chunk: int = CHUNK_ROWS,
    cap: float | None = None,
    numba_kernels: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy in nats and number of correct predictions; shapes as in `ChunkedCrossEntropy`.

    Args:
        hidden: [N, width].
        head: [vocabulary, width].
        targets: [N] int64.
        chunk: rows whose logits exist at one time.
        cap: of a soft cap on the logits; None for none.
        numba_kernels: whether loops compiled by Numba are used.
    """
    total, _, correct = ChunkedCrossEntropy.apply(hidden, head, targets, chunk, 0.0, cap, numba_kernels)
    return total, correct


def smoothed_cross_entropy_sum(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    smoothing: float,
    chunk: int = CHUNK_ROWS,
    cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross-entropy with label smoothing, the sum without, and number of correct predictions.

    Args:
        hidden: [N, width].
        head: [vocabulary, width].
        targets: [N] int64.
        chunk: rows whose logits exist at one time.
        cap: of a soft cap on the logits; None for none.
        smoothing: the share of the weight that is spread evenly over the vocabulary, in [0, 1).
    """
    out: tuple[Tensor, Tensor, Tensor] = ChunkedCrossEntropy.apply(hidden, head, targets, chunk, smoothing, cap)
    return out


def _log_probabilities_of_chunk(
    rows: Tensor,
    weight: Tensor,
    wanted: Tensor,
    wide: torch.dtype,
    needs_gradient: bool,
    temperature: float,
    cap: float | None,
    numba_kernels: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [n] of a chunk, and d(log-probability)/d(logits) [n, vocabulary] where it is needed.

    The logit of the token itself is computed in `wide`: a bf16 logit near 20 is off by up to 0.06, and a completion
    adds up hundreds of them, while the training signal is the difference between two models' sums.
    """
    own = (rows.to(wide) * weight.index_select(0, wanted[:, 0]).to(wide)).sum(1, keepdim=True)
    narrow = rows @ weight.t()  # [n, vocabulary], in the precision of the model
    if numba_kernels and cap is None and fused_operations.applies(narrow):
        fused = fused_operations.token_log_probabilities_
        found = fused(narrow, own[:, 0].contiguous(), wanted[:, 0].contiguous(), temperature, needs_gradient)
        return found, narrow if needs_gradient else None
    own = cap_(own, cap) / temperature
    found = torch.empty(len(narrow), dtype=wide, device=narrow.device)
    for few in few_at_a_time(narrow):
        part = narrow[few]
        found[few], gradient = _log_probabilities_of_few(part, own[few], wanted[few], needs_gradient, temperature, cap)
        if gradient is not None:
            part.copy_(gradient)
        del gradient  # otherwise it would live until the next iteration has formed its own
    return found, narrow if needs_gradient else None


def few_at_a_time(logits: Tensor) -> Iterator[slice]:
    """Which rows are widened at a time: few on a CPU, all on an accelerator, where many small operations take longer.

    A chunk in fp32 and what is formed of it are several times as large as the chunk itself.
    """
    step = WIDE_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _log_probabilities_of_few(
    narrow: Tensor, own: Tensor, wanted: Tensor, needs_gradient: bool, temperature: float, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [n] and d(log-probability)/d(logits) [n, vocabulary], in the precision of `own` [n, 1]."""
    logits = cap_(narrow.to(own.dtype, copy=True), cap)
    capped = None if cap is None or not needs_gradient else logits.scatter(1, wanted, own * temperature)
    # The exact logit also replaces the rounded one in the sum: otherwise p could exceed 1.
    logits = logits.div_(temperature).scatter_(1, wanted, own)
    # log p = own - logsumexp, with the largest logit taken off before exp so that nothing overflows
    largest = logits.amax(1, keepdim=True)  # [n, 1]
    exponents = logits.sub_(largest).exp_()
    sums = exponents.sum(1, keepdim=True)
    found = (own - largest - sums.log()).squeeze(1)
    if not needs_gradient:
        return found, None
    # d(log p)/d(logits) = one_hot - softmax, formed in place of the exponents
    exponents.div_(sums).neg_().scatter_add_(1, wanted, torch.ones_like(own))
    exponents.div_(temperature)
    return found, exponents if capped is None else through_cap_(exponents, capped, cap)


class TokenLogProbabilities(torch.autograd.Function):
    """Log-probabilities of targets under softmax(`hidden @ weight.T` / temperature), in nats.

    The gradient of each row, [N, width], is saved for the backward pass; where the weight is trained, the logits are
    recomputed instead.

    Args:
        hidden: [N, width].
        weight: [vocabulary, width].
        targets: [N].
        chunk: rows whose logits exist at one time.
        temperature: divides the logits.
        cap: of a soft cap on the logits, or None.
        numba_kernels: whether loops compiled by Numba are used.

    Returns:
        [N], fp32 or wider.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        temperature: float,
        cap: float | None = None,
        numba_kernels: bool = False,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        # [N, width]: d(log p)/d(hidden) of each row, for an incoming gradient of 1
        unit = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            found[part], narrow = _log_probabilities_of_chunk(
                hidden[part], weight, targets[part, None], wide, unit is not None, temperature, cap, numba_kernels
            )
            if narrow is not None and unit is not None:
                torch.mm(narrow, weight, out=unit[part])
            del narrow  # otherwise two chunks of logits would exist at one time
        # Inputs are saved and logits computed twice: [N, vocabulary] for all rows would not fit.
        again = (hidden, weight, targets) if ctx.needs_input_grad[1] else (None, None, None)
        ctx.save_for_backward(unit, *again)
        ctx.chunk, ctx.temperature, ctx.cap, ctx.numba_kernels = chunk, temperature, cap, numba_kernels
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unit, hidden, weight, targets = ctx.saved_tensors
        scale = gradients[0][:, None]  # [N, 1]: one scale per row
        grad_hidden = None if unit is None else unit * scale.to(unit.dtype)
        if weight is None:
            return grad_hidden, *(None,) * 6
        wide = scale.dtype
        grad_weight = torch.zeros_like(weight, dtype=wide)
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            _, narrow = _log_probabilities_of_chunk(
                hidden[part], weight, targets[part, None], wide, True, ctx.temperature, ctx.cap, ctx.numba_kernels
            )
            assert narrow is not None
            # The row factor is folded into the logits' gradient, so that one product sums over the rows.
            grad_weight.add_(narrow.mul_(scale[part].to(narrow.dtype)).t() @ hidden[part])
            del narrow
        return grad_hidden, grad_weight.to(weight.dtype), *(None,) * 5


def token_log_probabilities(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    chunk: int = CHUNK_ROWS,
    temperature: float = 1.0,
    cap: float | None = None,
    numba_kernels: bool = False,
) -> Tensor:
    """The log-probability of each target in nats, [N]; shapes as in `TokenLogProbabilities`.

    Args:
        hidden: [N, width].
        head: [vocabulary, width].
        targets: [N] int64.
        chunk: rows whose logits exist at one time.
        temperature: divides the logits.
        cap: of a soft cap on the logits; None for none.
        numba_kernels: whether loops compiled by Numba are used.
    """
    out: Tensor = TokenLogProbabilities.apply(hidden, head, targets, chunk, temperature, cap, numba_kernels)
    return out


@torch.no_grad()
def entropy_sum(
    hidden: Tensor,
    head: Tensor,
    temperature: float = 1.0,
    chunk: int = CHUNK_ROWS,
    cap: float | None = None,
    numba_kernels: bool = False,
) -> Tensor:
    """The sum over all rows of the entropy of softmax(`hidden @ head.T` / temperature), in nats; no gradient.

    Args:
        hidden: [N, width].
        head: [vocabulary, width].
        temperature: divides the logits.
        chunk: rows whose logits exist at one time.
        cap: of a soft cap on the logits, or None.
        numba_kernels: whether loops compiled by Numba are used.
    """
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for rows in hidden.split(chunk):
        logits = rows @ head.t()  # [n, vocabulary]
        if numba_kernels and cap is None and fused_operations.applies(logits):
            total += fused_operations.entropies(logits, temperature).sum()
            continue
        for few in few_at_a_time(logits):
            wide = cap_(logits[few].to(total.dtype, copy=True), cap).div_(temperature)
            logarithms = wide.log_softmax(1)  # [n, vocabulary]
            total -= torch.exp(logarithms, out=wide).mul_(logarithms).sum()
            del wide, logarithms  # otherwise they would live until the next iteration has formed its own
    return total


def summed_by_row(values: Tensor, learned: Sequence[int]) -> Tensor:
    """Sum values [N] over the learned tokens of each row: [rows].

    Args:
        values: [N], row after row.
        learned: number of learned tokens of each row; they add up to N.
    """
    counts = torch.tensor(learned, device=values.device)
    # [N]: the row that each value belongs to
    owner = torch.repeat_interleave(torch.arange(len(learned), device=values.device), counts)
    return values.new_zeros(len(learned)).index_add(0, owner, values)
