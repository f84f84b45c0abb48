"""Texts as vectors: the mean of a causal model's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.engines.length_batches import length_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_TOKENS = 2048


@torch.inference_mode()
def mean_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, skip: int = 0) -> Tensor:
    """[prompts, width] in float32: of each prompt the mean over its tokens, scaled to the length 1.

    skip: how many ids at the beginning stand for a trained prompt, and are left out of the mean.
    """
    found: dict[int, Tensor] = {}
    lengths = [len(ids) for ids in prompts]
    for part in length_batches(lengths, max_tokens=_MAX_TOKENS, max_rows=len(prompts)):
        width = max(lengths[place] for place in part)
        tokens = torch.zeros((len(part), width), dtype=torch.long)
        for line, place in enumerate(part):
            tokens[line, : lengths[place]] = torch.tensor(list(prompts[place]))
        # Padding on the right needs no mask: no token looks at what comes after it.
        states = model.base_model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state.float()
        for line, place in enumerate(part):
            found[place] = states[line, skip : lengths[place]].mean(0)
    return torch.nn.functional.normalize(torch.stack([found[place] for place in range(len(prompts))]), dim=-1)
