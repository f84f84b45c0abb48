"""The logits before each learned token of a micro-batch, represented by their factors and never all materialised.

    product   rows [N, width] times a matrix [vocabulary, width], with a soft cap on it or none, in fused chunks with
              gradients of our own
    formed    a function of a chunk of rows, differentiated by autograd and called again in the backward pass

Every objective takes its loss from here, so that none of them needs to know which path a model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.ml.inference.models.forward import PLAIN, ScaledHead
from luthier.ml.training.losses import cross_entropy

if TYPE_CHECKING:
    from luthier.ml.training.losses.divergence import Mixing

CHUNK_ROWS: Final = 128
"""Rows per chunk where a model forms logits with its own head: autograd keeps several tensors of that size."""

CrossEntropySum = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Form = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LogitRows:
    """The logits of rows, as a product that is never whole in memory, or made in chunks by the model's own head.

    Attributes:
        rows: [N, w] hidden states.
        matrix: [vocabulary, w]; the logits are rows @ matrix.T. None where `form` makes them.
        form: logits [n, vocabulary] of rows [n, w]; None where there is a `matrix`.
        product_loss: sums the cross-entropy of a product without a cap.
        cap: of a soft cap on the product; None for none.
        numba_kernels: whether loops compiled by Numba do the elementwise work of log-probabilities and entropies.
    """

    rows: Tensor
    matrix: Tensor | None = None
    form: Form | None = None
    product_loss: CrossEntropySum = cross_entropy.cross_entropy_sum
    cap: float | None = None
    numba_kernels: bool = False

    def detach(self) -> LogitRows:
        """A copy that is detached from the graph."""
        return replace(self, rows=self.rows.detach())

    def cross_entropy_sum(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats (scalar) against targets [N], and the number of correct predictions."""
        if self.matrix is not None:
            if self.cap is not None:
                return cross_entropy.cross_entropy_sum(self.rows, self.matrix, targets, cap=self.cap)
            return self.product_loss(self.rows, self.matrix, targets)
        total, _, correct = self._smoothed(targets, 0.0)
        return total, correct

    def smoothed_cross_entropy_sum(self, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        """The sum with label smoothing, the plain sum, and the number of correct predictions."""
        if self.matrix is not None:
            return cross_entropy.smoothed_cross_entropy_sum(self.rows, self.matrix, targets, smoothing, cap=self.cap)
        return self._smoothed(targets, smoothing)

    def token_log_probabilities(self, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """The log-probability of each target, [N], in nats, with logits divided by `temperature`."""
        if self.matrix is not None:
            return cross_entropy.token_log_probabilities(
                self.rows,
                self.matrix,
                targets,
                temperature=temperature,
                cap=self.cap,
                numba_kernels=self.numba_kernels,
            )

        def of_chunk(logits: Tensor, wanted: Tensor) -> Tensor:
            return (logits / temperature).log_softmax(1).gather(1, wanted[:, None])[:, 0]

        return torch.cat([found for (found,) in self._chunks(of_chunk, targets)])

    @torch.no_grad()
    def entropy_sum(self, temperature: float = 1.0) -> Tensor:
        """The sum over all rows of the entropy of softmax(logits / temperature), in nats; no gradient."""
        if self.matrix is not None:
            return cross_entropy.entropy_sum(
                self.rows, self.matrix, temperature, cap=self.cap, numba_kernels=self.numba_kernels
            )

        def of_chunk(logits: Tensor) -> Tensor:
            logarithms = (logits / temperature).log_softmax(1)
            return -(logarithms.exp() * logarithms).sum()

        return torch.stack([found for (found,) in self._chunks(of_chunk)]).sum()

    def distillation_sum(
        self,
        targets: Tensor,
        states: Tensor,
        teacher_head: Tensor,
        mixing: Mixing,
        teacher_scaled: ScaledHead = PLAIN,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, cross-entropy and divergence from a teacher, summed, and the number of correct predictions.

        Args:
            targets: [N] int64.
            states: [N, teacher's width], the teacher's last hidden states.
            teacher_head: [its vocabulary, its width]; states @ teacher_head.T, scaled and capped as in the teacher, are
                its logits.
            mixing: weights, temperature and kind of divergence.
            teacher_scaled: scale and soft cap of the teacher's logits.
        """
        from luthier.ml.training.losses import divergence

        if self.matrix is not None:
            return divergence.distillation_sum(
                self.rows,
                self.matrix,
                targets,
                states,
                teacher_head,
                mixing,
                cap=self.cap,
                teacher_scaled=teacher_scaled,
            )

        def of_chunk(logits: Tensor, wanted: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
            teacher = teacher_scaled.of((seen @ teacher_head.t()).to(logits.dtype))
            return divergence.of_logits(logits, teacher, wanted, mixing)

        sums = [torch.stack(each).sum(0) for each in zip(*self._chunks(of_chunk, targets, states), strict=True)]
        return sums[0], sums[1], sums[2], sums[3]

    def _smoothed(self, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        def of_chunk(logits: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
            found = logits.log_softmax(1)
            plain = -found.gather(1, wanted[:, None]).sum()
            loss = (1.0 - smoothing) * plain - smoothing * found.mean(1).sum() if smoothing else plain
            correct = (logits.gather(1, wanted[:, None]) == logits.amax(1, keepdim=True)).sum()
            return loss, plain.detach(), correct

        sums = [torch.stack(each).sum(0) for each in zip(*self._chunks(of_chunk, targets), strict=True)]
        return sums[0], sums[1], sums[2]

    def _chunks(self, compute: Callable[..., Any], *along: Tensor) -> Sequence[tuple[Tensor, ...]]:
        """Call `compute` on each chunk: logits [n, vocabulary] in fp32 or wider, and the rows of `along` [N, ...]."""
        form = self.form
        assert form is not None

        def of_rows(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            logits = form(rows)  # [n, vocabulary]
            found = compute(logits.to(torch.promote_types(logits.dtype, torch.float32)), *others)
            return found if isinstance(found, tuple) else (found,)

        made = []
        for chunk in zip(self.rows.split(CHUNK_ROWS), *(each.split(CHUNK_ROWS) for each in along), strict=True):
            # Non-reentrant: reentrant checkpointing drops the gradient of a trained head where the rows need none.
            made.append(
                checkpoint(of_rows, *chunk, use_reentrant=False) if torch.is_grad_enabled() else of_rows(*chunk)
            )
        return made
