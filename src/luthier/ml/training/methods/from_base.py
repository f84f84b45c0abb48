"""PiSSA and OLoRA: adapters that start from a part of the base weights instead of from zero.

Both write W = R + s B0 A0 and train the product from (A0, B0) on, with the rest R frozen. Subtracting the product from
the base would change the base, and the adapter would only fit that R with its rounding. Here the base is unchanged and
the initial product is subtracted next to the trained one:

    y = x W^T + s dropout(x) (A^T B^T - A0^T B0^T)

which is the same function, and the result is a plain adapter of twice the rank, [A; A0] and [B, -B0], on the published
base. Dropout then acts on the learned update and not on the base.

- PiSSA: with W = U S V^T, A0 = S^(1/2) V^T and B0 = U S^(1/2) of the first r singular values.
- OLoRA: with W = Q R, B0 is the first r columns of Q and A0 the first r rows of R.

Sources: Meng et al., 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
Models", arXiv:2404.02948, section 3. Buyukakyuz, 2024, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language
Models", arXiv:2406.01775, section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from luthier.core.plan import MethodPlan
from luthier.ml.training.methods.lora import ADAPTER, AdaptedForward, AdaptedLayer, Lora, matrix_of
from luthier.ml.training.methods.peft_adapter import adapter_tensors, meant_for_peft


class _DifferenceForward(AdaptedForward):
    """The trained product minus the initial one."""

    def __init__(self, layer: AdaptedLayer, probability: float, first_a: Tensor, first_b: Tensor) -> None:
        super().__init__(layer, probability)
        self.first_a, self.minus_first_b = first_a, -first_b

    def factors(self) -> tuple[Tensor, Tensor]:
        # [2 rank, in] and [out, 2 rank]
        return torch.cat([self.a, self.first_a]), torch.cat([self.b, self.minus_first_b], 1)


class FromBase(Lora, ABC):
    """LoRA that starts from low-rank factors of the base weights (`initial`)."""

    def __init__(self, plan: MethodPlan) -> None:
        super().__init__(plan)
        self.forwards: dict[str, _DifferenceForward] = {}

    @abstractmethod
    def initial(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """A0 [rank, in] and B0 [out, rank] in fp32, from a matrix [out, in] in fp32."""

    @torch.no_grad()
    def forward_of(self, name: str, layer: AdaptedLayer) -> AdaptedForward:
        """Sets A and B to the initial matrices and stores those with them."""
        weight = matrix_of(layer.get_base_layer())
        a, b = self.initial(weight.float(), float(layer.scaling[ADAPTER]))
        # Rounded once, to the precision of the adapter, so that the two products are bit-identical at the start.
        layer.lora_A[ADAPTER].weight.copy_(a)
        layer.lora_B[ADAPTER].weight.copy_(b)
        kept = layer.lora_A[ADAPTER].weight.clone(), layer.lora_B[ADAPTER].weight.clone()
        self.forwards[name] = _DifferenceForward(layer, self.plan.dropout, *kept)
        return self.forwards[name]

    def state(self) -> dict[str, Tensor]:
        """The initial matrices: stored, so that a resume does not depend on recomputing them to the bit."""
        found = {}
        for name, forward in self.forwards.items():
            found[f"first_a.{name}"], found[f"first_b.{name}"] = forward.first_a, -forward.minus_first_b
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the initial matrices of the start of the run."""
        for name, forward in self.forwards.items():
            forward.first_a.copy_(state[f"first_a.{name}"])
            forward.minus_first_b.copy_(-state[f"first_b.{name}"])

    def export(self, model: PeftModel) -> tuple[dict[str, Tensor], LoraConfig]:
        """A plain LoRA of twice the rank and the same scale, for the unchanged base."""
        tensors = adapter_tensors(model)
        for name, forward in self.forwards.items():
            a, b = forward.factors()
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
        config = super().config()
        # Both double, so alpha / r, the scale, is unchanged.
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
        return tensors, meant_for_peft(model.get_base_model(), config)


# Oversampling makes the requested triplets more exact (Halko et al., section 4.2: 5 or 10).
_OVERSAMPLED: Final = 8


class Pissa(FromBase):
    """LoRA from the first singular triplets; `num_svd_iterations` of the randomised SVD, 0 for the exact one."""

    def initial(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The first singular vectors, each side multiplied by the square root of the singular values.

        Randomised SVD: Halko et al., 2011, arXiv:0909.4061, algorithm 5.1 after power iterations (4.4).
        """
        rank = self.plan.rank
        if self.plan.num_svd_iterations:
            wanted = min(rank + _OVERSAMPLED, *weight.shape)
            u, s, v = torch.svd_lowrank(weight, q=wanted, niter=self.plan.num_svd_iterations)
            vh = v.t()
        else:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        # The forward multiplies B A by `scale`, so each factor is divided by its square root.
        root = (s[:rank] / scale).sqrt()
        return root[:, None] * vh[:rank], u[:, :rank] * root


class OLora(FromBase):
    """LoRA from the QR decomposition."""

    def initial(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rows of R and columns of Q."""
        q, r = torch.linalg.qr(weight)
        return r[: self.plan.rank], q[:, : self.plan.rank]
