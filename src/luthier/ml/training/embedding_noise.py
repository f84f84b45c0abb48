"""NEFTune: noise on the embeddings while training.

Each entry of an example's embeddings gets uniform noise between -a and a, a = alpha / sqrt(L * d), with L the tokens of
the example and d the width of the model. Choices beyond the paper:

- L is the example's own length, prompt included: padding does not count and gets no noise.
- A prefix shared by examples of a micro-batch gets noise once, scaled for the longest of them: no example gets more
  noise than it would alone.
- Only tokens get noise; a trained prompt before them (prompt tuning) does not.
- Noise comes from torch's own generator, which each step seeds from (seed, step): a resumed run draws the same. As for
  dropout, the assignment of random numbers depends on how a step is cut into micro-batches.

Sources: Jain et al., 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv:2310.05914, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.ml.training.prefix_attention import PrefixLayout


class EmbeddingNoise:
    """Adds noise to the output of the embedding for the announced tokens, in training mode only.

    Args:
        embeddings: the module whose output gets the noise.
        alpha: noise scale; 0 adds none.
    """

    def __init__(self, embeddings: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self._own_lengths: Tensor | None = None
        if alpha:
            embeddings.register_forward_hook(self._add)

    def expect(self, input_ids: Tensor, lengths: Sequence[int], layout: PrefixLayout | None = None) -> None:
        """Announce the next call of the embedding: its ids, and the number of tokens of each example.

        Args:
            input_ids: [rows, T], as the embedding gets them.
            lengths: tokens of each example.
            layout: how rows share prefixes; None for plain rows.
        """
        if self.alpha:
            self._own_lengths = own_lengths(input_ids, lengths, layout)

    def _add(self, module: nn.Module, _: Any, embedded: Tensor) -> Tensor:
        lengths, self._own_lengths = self._own_lengths, None
        if lengths is None or not module.training:
            return embedded
        # lengths: [rows, T] float32, 0 at padding, where the divisor is clamped and the result multiplied by 0
        size = (self.alpha / (lengths.clamp_min(1) * embedded.shape[-1]).sqrt()).mul_(lengths > 0)
        # [rows, T, width], in fp32: uniform draws in bf16 would take few distinct values
        noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1.0, 1.0)
        return embedded + noise.mul_(size[..., None]).to(embedded.dtype)


def own_lengths(input_ids: Tensor, lengths: Sequence[int], layout: PrefixLayout | None = None) -> Tensor:
    """For each position the token count of its example, float32 in the shape of the ids; 0 for padding.

    A shared prefix counts as part of the longest of its examples.

    Args:
        input_ids: [rows, T]; [1, T] with a layout.
        lengths: tokens of each example.
        layout: how rows share prefixes; None for plain rows.
    """
    device = input_ids.device
    if layout is None:
        of_rows = torch.tensor(lengths, dtype=torch.float32, device=device)[:, None]
        return torch.where(torch.arange(input_ids.shape[1], device=device) < of_rows, of_rows, 0.0)
    of_groups = [max(lengths[i : i + layout.num_suffixes]) for i in range(0, len(lengths), layout.num_suffixes)]
    owners = torch.tensor([*of_groups, *lengths], dtype=torch.float32, device=device)
    sizes = torch.tensor([*layout.prefix_tokens, *layout.suffix_tokens], device=device)
    return owners.repeat_interleave(sizes)[None]
