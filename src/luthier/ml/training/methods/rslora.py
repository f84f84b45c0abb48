"""rsLoRA: the scale falls with the square root of the rank, so that high ranks go on learning.

Kalajdzievski, 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732, section 3:
alpha / sqrt(r) in place of alpha / r. All else is LoRA.
"""

from __future__ import annotations

from peft import LoraConfig

from luthier.ml.training.methods.lora import Lora


class RsLora(Lora):
    """LoRA with the scale alpha / sqrt(rank)."""

    def config(self) -> LoraConfig:
        """LoRA's, with the other scale."""
        config = super().config()
        config.use_rslora = True
        return config

    def expert_alpha(self) -> float:
        """The same alpha: the square root of the rank makes the scale of any rank a fitting one."""
        return self.plan.alpha
