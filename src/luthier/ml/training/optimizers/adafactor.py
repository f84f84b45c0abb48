"""Adafactor: the second moment of a matrix as one number a row and one a column; no first moment.

Shazeer & Stern, 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235: factored
second moments (algorithm 4), updates whose root mean square is clipped (section 6), a second moment that forgets by
1 - t^-0.8 (section 7.2). The step is the recipe's learning rate, not one relative to the weight (section 8): a LoRA
matrix that starts at zero has no size to be relative to, and the rate would mean something else than with every other
optimizer. torch's own Adafactor always makes it relative; that of transformers, which is used here, does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers.optimization import Adafactor as HubAdafactor

from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.protocol import Trained, in_groups

_PARTS = {"exp_avg_sq_row": "rows", "exp_avg_sq_col": "columns", "exp_avg_sq": "second"}


class Adafactor:
    """Transformers' Adafactor at a rate that is given."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:  # noqa: ARG002
        self.trained = tuple(trained)
        self.optimizer = HubAdafactor(in_groups(trained), lr=0.0, relative_step=False, scale_parameter=False)

    def update(self, rate: float) -> None:
        """One step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """`rows.` and `columns.` of matrices, `second.` of vectors."""
        return {
            f"{part}.{one.name}": held[key]
            for one in self.trained
            if (held := self.optimizer.state.get(one.master))
            for key, part in _PARTS.items()
            if key in held
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """The same; the root mean square of the weight, which it also keeps, is computed again before it is read."""
        for one in self.trained:
            found = {
                key: state[f"{part}.{one.name}"].to(one.master.device, copy=True)
                for key, part in _PARTS.items()
                if f"{part}.{one.name}" in state
            }
            self.optimizer.state[one.master] = {"step": num_steps_taken, "RMS": 0.0, **found}
