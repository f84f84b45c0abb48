"""The trained weights as they were before the first step, to be put back for one pass.

Every method starts out equal to the base model (or, with prompt tuning, at a prompt of random tokens), so a model with
its first weights is the reference that preference objectives and GRPO compare with. The copy holds the trained weights
alone: with LoRA that is the adapter, a percent of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from luthier.ml.training.model import TrainableModel


class FirstWeights:
    """A copy of the trained weights of a model.

    Args:
        model: before its first step.
    """

    def __init__(self, model: TrainableModel) -> None:
        trained = ((name, p) for name, p in model.module.named_parameters() if p.requires_grad)
        self._first = {name: p.detach().clone() for name, p in trained}

    @contextmanager
    def restored(self, model: TrainableModel) -> Iterator[None]:
        """The model with its first weights and in evaluation mode within the block, as it was afterwards.

        Args:
            model: that the copy was made of.
        """
        trained = [(p, self._first[name]) for name, p in model.module.named_parameters() if p.requires_grad]
        now = [p.detach().clone() for p, _ in trained]
        was_training = model.module.training
        model.module.eval()
        try:
            with torch.no_grad():
                for p, first in trained:
                    p.copy_(first)
            yield
        finally:
            with torch.no_grad():
                for (p, _), kept in zip(trained, now, strict=True):
                    p.copy_(kept)
            model.module.train(was_training)
