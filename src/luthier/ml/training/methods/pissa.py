"""PiSSA: training starts from the principal part of each matrix, where most of what the base knows lies.

Meng et al., 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
arXiv:2404.02948, section 3: with W = U S V^T, A0 = S^(1/2) V^T and B0 = U S^(1/2) of the first r singular values.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from luthier.ml.training.methods.from_base import FromBase

# More triplets than are wanted make those that are more exact (Halko et al., section 4.2: 5 or 10).
_OVERSAMPLED: Final = 8


class Pissa(FromBase):
    """LoRA from the first singular triplets; `num_svd_iterations` of the randomised SVD, 0 for the exact one."""

    def initial(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The square root of the first singular values on either side.

        Randomised SVD: Halko et al., 2011, arXiv:0909.4061, algorithm 5.1 after power iterations (4.4).
        """
        rank = self.plan.rank
        if self.plan.num_svd_iterations:
            wanted = min(rank + _OVERSAMPLED, *weight.shape)
            u, s, v = torch.svd_lowrank(weight, q=wanted, niter=self.plan.num_svd_iterations)
            vh = v.t()
        else:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        # The forward multiplies B A by `scale`: it is divided out, half on either side.
        root = (s[:rank] / scale).sqrt()
        return root[:, None] * vh[:rank], u[:, :rank] * root
