"""OLoRA: training starts from an orthonormal basis of each matrix's own columns.

Buyukakyuz, 2024, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv:2406.01775, section 3: with
W = Q R, B0 is the first r columns of Q and A0 the first r rows of R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.ml.training.methods.from_base import FromBase


class OLora(FromBase):
    """LoRA from the QR decomposition."""

    def initial(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rows of R and columns of Q."""
        q, r = torch.linalg.qr(weight)
        return r[: self.plan.rank], q[:, : self.plan.rank]
