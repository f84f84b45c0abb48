"""A trained prompt as tokens of its own: rows behind the vocabulary, so that every engine can put it before a text."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def virtual_tokens(model: PreTrainedModel | PeftModel) -> tuple[int, ...]:
    """The ids that represent the model's trained prompt; none where it has no such prompt.

    The first call puts the prompt's rows behind those of the input embedding, in place. The output head keeps its rows,
    also where the two were tied: no virtual token is ever predicted.
    """
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return ()
    prompt = model.prompt_encoder[model.active_adapter].embedding.weight
    embedding = model.get_base_model().get_input_embeddings()
    size = model.get_base_model().get_output_embeddings().weight.shape[0]
    # Done once: afterwards the table is longer than the head.
    if embedding.num_embeddings == size:
        scale = getattr(embedding, "embed_scale", 1.0)  # some models multiply embeddings on their way in
        rows = (prompt / scale).to(embedding.weight)
        embedding.weight = nn.Parameter(torch.cat([embedding.weight, rows]), requires_grad=False)
        embedding.num_embeddings += len(rows)
    return tuple(range(size, size + len(prompt)))
