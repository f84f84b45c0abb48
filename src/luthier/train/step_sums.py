"""What a step or a validation adds up, over its micro-batches and then over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.train.distributed import World

if TYPE_CHECKING:
    from luthier.train.model import MicroBatch
    from luthier.train.objectives.protocol import Losses

_MEASURE = "measure "


@dataclass(slots=True)
class StepSums:
    """The loss, the measures of the objective by name, and counts, added up."""

    loss: float = 0.0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_examples: int = 0
    measures: dict[str, float] = field(default_factory=dict)

    def add(self, losses: Losses, batch: MicroBatch) -> None:
        """Add one micro-batch."""
        self.loss += losses.total.item()
        self.num_tokens += batch.num_tokens
        self.num_trained_tokens += batch.num_trained_tokens
        for name, value in losses.measures.items():
            self.measures[name] = self.measures.get(name, 0.0) + value.item()

    def over(self, world: World) -> StepSums:
        """The sums over all ranks, the same on each."""
        own = {"loss": self.loss, "tokens": self.num_tokens, "trained": self.num_trained_tokens}
        own["examples"] = self.num_examples
        found = world.sums(own | {_MEASURE + name: value for name, value in self.measures.items()})
        measures = {n.removeprefix(_MEASURE): value for n, value in found.items() if n.startswith(_MEASURE)}
        tokens, trained, examples = (int(found[name]) for name in ("tokens", "trained", "examples"))
        return StepSums(found["loss"], tokens, trained, examples, measures)

    def means(self, weight: float) -> dict[str, float]:
        """The measures divided by the weight of all units."""
        return {name: value / weight for name, value in self.measures.items()}
