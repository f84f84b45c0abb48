"""Texts as vectors: the mean of a causal model's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.ml.inference.decode import cache_argument
from luthier.ml.inference.models.architecture import language_model
from luthier.ml.inference.models.forward_arguments import accepted

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


@dataclass(slots=True)
class PartialStates:
    """A long text of which a part has gone through the model.

    Attributes:
        cache: keys and values of that part.
        total: [width], the sum of its states in float32.
        num_tokens: tokens of that part, those of a trained prompt included.
    """

    cache: DynamicCache
    total: Tensor
    num_tokens: int


@torch.inference_mode()
def mean_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, skip: int = 0) -> Tensor:
    """[prompts, width] in float32: of each prompt the mean over its tokens, scaled to the length 1.

    Args:
        model: a causal model.
        prompts: token ids of each text.
        skip: how many ids at the beginning represent a trained prompt, and are left out of the mean.
    """
    lengths = [len(ids) for ids in prompts]
    tokens = torch.zeros((len(prompts), max(lengths)), dtype=torch.long)  # [prompts, longest]
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = torch.tensor(list(ids))
    # Padding on the right needs no mask: no token looks at what comes after it.
    states = language_model(model)(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state.float()
    # states: [prompts, longest, width], float32 so that long sums keep their digits
    means = [states[row, skip:length].mean(0) for row, length in enumerate(lengths)]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


@torch.inference_mode()
def add_states(
    model: PreTrainedModel, ids: Sequence[int], before: PartialStates | None, *, new_cache: DynamicCache, skip: int = 0
) -> PartialStates:
    """Send the next tokens of a long text through the model, and add up their states.

    Args:
        model: a causal model.
        ids: the next tokens.
        before: what of the text has gone through already; it is used up.
        new_cache: an empty one, for the first part.
        skip: as in `mean_states`; the first part must be longer.
    """
    first = 0 if before is None else before.num_tokens
    cache = new_cache if before is None else before.cache
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(first, first + len(ids), device=model.device)[None]
    body = language_model(model)
    arguments: dict[str, Any] = {cache_argument(body): cache, "position_ids": positions}
    # The cache is updated in place: only its reference is carried on.
    states = body(input_ids=tokens, use_cache=True, **accepted(body, arguments)).last_hidden_state[0].float()
    # Ids of the trained prompt lie at the beginning of the text: all of them in the first part.
    total = states[max(0, skip - first) :].sum(0)  # [width] of states [tokens, width]
    return PartialStates(cache, total if before is None else before.total + total, first + len(ids))


def unit(states: PartialStates) -> Tensor:
    """[1, width]: the mean, scaled to the length 1, which does not depend on how many tokens were added up."""
    return torch.nn.functional.normalize(states.total[None], dim=-1)
