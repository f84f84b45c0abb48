"""What a step or a validation adds up, over its micro-batches and then over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from luthier.ml.training.distributed import World

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch
    from luthier.ml.training.objective_protocol import Losses

_MEASURE = "measure "


@dataclass(slots=True)
class StepSums:
    """The loss, the measures of the objective by name, and counts, added up."""

    loss: float = 0.0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_examples: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    _pending: list[Losses] = field(default_factory=list)

    def add(self, losses: Losses, batch: MicroBatch) -> None:
        """Add one micro-batch. Its numbers stay on their device until `over`: to read one is to wait for all before."""
        self.num_tokens += batch.num_tokens
        self.num_trained_tokens += batch.num_trained_tokens
        measures = {name: value.detach() for name, value in losses.measures.items()}
        self._pending.append(replace(losses, total=losses.total.detach(), measures=measures))

    def _read(self) -> None:
        """Bring what was added from the device, all at once, and add it up in the order in which it came."""
        # One transfer for all micro-batches: each .item() would wait for the device. float64, so that the order of the
        # additions does not show in the reported loss.
        found = [value for losses in self._pending for value in (losses.total, *losses.measures.values())]
        values = iter(torch.stack([value.double() for value in found]).tolist() if found else [])
        for losses in self._pending:
            self.loss += next(values)
            for name in losses.measures:
                self.measures[name] = self.measures.get(name, 0.0) + next(values)
        self._pending.clear()

    def over(self, world: World) -> StepSums:
        """The sums over all ranks, the same on each."""
        self._read()
        own = {"loss": self.loss, "tokens": self.num_tokens, "trained": self.num_trained_tokens}
        own["examples"] = self.num_examples
        found = world.sums(own | {_MEASURE + name: value for name, value in self.measures.items()})
        measures = {n.removeprefix(_MEASURE): value for n, value in found.items() if n.startswith(_MEASURE)}
        tokens, trained, examples = (int(found[name]) for name in ("tokens", "trained", "examples"))
        return StepSums(found["loss"], tokens, trained, examples, measures)

    def means(self, weight: float) -> dict[str, float]:
        """The measures divided by the weight of all units."""
        return {name: value / weight for name, value in self.measures.items()}
