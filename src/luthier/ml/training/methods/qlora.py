"""QLoRA: LoRA over a base that is held in four or eight bits.

Dettmers et al., 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, section 3. The base arrives
packed (`ml/inference/models/quantised.py`), and the fused product unpacks each matrix where it needs it; all else is
LoRA.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from luthier.ml.training.methods.lora import Lora


class QLora(Lora):
    """LoRA whose adapter keeps the precision that is computed in, since the base's own is that of its packing."""

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """LoRA's, in the precision of what is not packed."""
        precision = model.get_input_embeddings().weight.dtype
        adapted = super().prepare(model, seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(precision)
        return adapted
