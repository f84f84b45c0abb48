"""Rows of one micro-batch on both sides of the length from which positions are encoded otherwise (LongRoPE).

Phi 3 and others rotate by other frequencies where a text is longer than what they were first trained on. transformers
chooses them by the longest row of a call, so that a short row would be encoded in another way beside a long one than by
itself, as inference encodes it. Here each row has the frequencies that it has alone.

Rows that share a beginning are encoded as the longest of them, since their common tokens exist once.

Source: Ding et al., 2024, "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", arXiv:2402.13753.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch
    from luthier.ml.training.prefix_attention import PrefixLayout

_KIND = "longrope"


class LongRows:
    """Has the rotary embeddings of a model encode each row of a micro-batch by its own length.

    Args:
        body: the model without its head; its rotary embeddings of this kind are changed.
        border: the longest row that has the frequencies of short ones, in tokens; None where there is no such border.
    """

    def __init__(self, body: nn.Module, border: int | None) -> None:
        self._border = border or 0
        self._batch: MicroBatch | None = None
        for module in body.modules() if border else ():
            kind = getattr(module, "rope_type", None)
            if _KIND in (kind.values() if isinstance(kind, dict) else (kind,)):
                module.forward = partial(self._encoded, module.forward)

    @contextmanager
    def of(self, batch: MicroBatch) -> Iterator[None]:
        """Within the block the body computes this micro-batch."""
        self._batch = batch
        try:
            yield
        finally:
            self._batch = None

    def _encoded(
        self, forward: Callable[..., Sequence[Tensor]], x: Tensor, position_ids: Tensor, *_args: Any, **_named: Any
    ) -> Sequence[Tensor]:
        """Cosines and sines [rows, T, head] of positions [rows or 1, T]."""
        found = forward(x, position_ids, *_args, **_named)
        batch = self._batch
        if batch is None:
            return found
        # A trained prompt lies before the tokens of each row.
        num_ahead = position_ids.shape[-1] - batch.input_ids.shape[1]
        is_long = [length + num_ahead > self._border for length in batch.lengths]
        if all(is_long) or not any(is_long):
            return found
        # Up to the border positions alone mean a short text, and no short row has others.
        short = forward(x, position_ids.clamp(max=self._border - 1), *_args, **_named)
        choice = _of_tokens(is_long, batch.layout).to(x.device)
        return tuple(torch.where(choice, one, other) for one, other in zip(found, short, strict=True))


def _of_tokens(is_long: Sequence[bool], layout: PrefixLayout | None) -> Tensor:
    """Which tokens belong to a long row: [rows, 1, 1], or [1, T, 1] of rows that lie end to end."""
    if layout is None:
        return torch.tensor(is_long)[:, None, None]
    num = layout.num_suffixes
    of_groups = [any(is_long[start : start + num]) for start in range(0, len(is_long), num)]
    own = [of_groups[n // num] if layout.prefix_tokens[n // num] else one for n, one in enumerate(is_long)]
    sizes = torch.tensor([*layout.prefix_tokens, *layout.suffix_tokens])
    return torch.tensor([*of_groups, *own]).repeat_interleave(sizes)[None, :, None]
