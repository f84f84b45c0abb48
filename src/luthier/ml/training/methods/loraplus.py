"""LoRA+: the matrix B, which starts at zero, learns at a multiple of A's rate.

Hayou et al., 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv:2402.12354, section 4. All else is
LoRA, and so is the adapter that comes out.
"""

from __future__ import annotations

from luthier.ml.training.methods.lora import Lora


class LoraPlus(Lora):
    """LoRA with two learning rates."""

    def rate_factor(self, name: str) -> float:
        """`learning_rate_ratio` for B."""
        return float(self.plan.learning_rate_ratio or 1.0) if ".lora_B." in name else 1.0
