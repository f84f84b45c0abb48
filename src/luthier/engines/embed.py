"""Texts as vectors: the mean of a causal model's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def mean_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, skip: int = 0) -> Tensor:
    """[prompts, width] in float32: of each prompt the mean over its tokens, scaled to the length 1.

    skip: how many ids at the beginning stand for a trained prompt, and are left out of the mean.
    """
    lengths = [len(ids) for ids in prompts]
    tokens = torch.zeros((len(prompts), max(lengths)), dtype=torch.long)
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = torch.tensor(list(ids))
    # Padding on the right needs no mask: no token looks at what comes after it.
    states = model.base_model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state.float()
    means = [states[row, skip:length].mean(0) for row, length in enumerate(lengths)]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)
