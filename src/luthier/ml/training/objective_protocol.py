"""The interface of an objective, and a base class with its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan
from luthier.core.ports import Grading, Progress

if TYPE_CHECKING:
    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.training.model import MicroBatch, TrainableModel

Unit = tuple[TokenisedExample, ...]
"""The rows that a loss needs side by side: one example, or the two completions of a preference pair."""

Batch = tuple[Sequence[Unit], tuple[int, ...]]
"""The units of a micro-batch, and the prefixes that its rows share (`collate`)."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run lends its objective beside the plan: what one that writes answers itself cannot do without.

    Attributes:
        template: what ids are as text, and which of them end an answer.
        grade: what answers are worth.
        seed: the run's.
        writes_files: false in all but one of several processes.
    """

    template: ChatTemplate | None = None
    grade: Grading | None = None
    seed: int = 0
    writes_files: bool = True


NO_TOOLS: Final = Tools()


@dataclass(frozen=True, slots=True)
class Losses:
    """What a micro-batch gives.

    Attributes:
        total: a scalar, the sum of the loss over its units, of which gradients are taken.
        measures: other sums over its units, by name, such as how many tokens are predicted right; the loop divides them
            by the weight of the whole batch, as it does the loss.
    """

    total: Tensor
    measures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One thing to minimise: the sum over all units of a global batch, divided by their weight.

    A micro-batch holds whole units, so any cut into micro-batches gives the gradient of the whole batch.

    Attributes:
        loss_tells_overfitting: whether the losses of training and validation measure the same thing, so that a
            growing difference means overfitting.
    """

    loss_tells_overfitting: ClassVar[bool]

    def __init__(self, plan: ObjectivePlan, tools: Tools = ...) -> None: ...

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """Compute once what every step needs of these units, all that are trained or validated on.

        Called with the model as it is before its first step.

        Args:
            folder: the run's own, where what is computed is kept, so that a run that resumes, its weights no longer the
                first ones, reads the same bytes.
        """
        ...

    def draw(self, model: TrainableModel, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro-batches that a step is really made of, such as fresh samples for the prompts that it was given.

        A function of (weights, step): torch's generator is seeded from (seed, step) when it is called.
        """
        ...

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:
        """See all units of a step, or of a validation, before the loss of any is computed; those of all ranks.

        For what belongs to the whole and not to one micro-batch, such as an estimate over the batch.
        """
        ...

    def draw_validation(self, model: TrainableModel, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro-batches that a validation looks at; a function of the weights alone."""
        ...

    def weight(self, units: Sequence[Unit]) -> float:
        """What the sums over these units are divided by: their trained tokens, or how many pairs they are."""
        ...

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The loss of a micro-batch.

        Args:
            batch: the rows of all its units, in order.
        """
        ...

    def finish(self, model: TrainableModel, validation: Sequence[Batch]) -> None:
        """Measure what the outcome needs beside its weights, such as how sure its classes are.

        Called once, in one process, with the weights that the run ends with; only where there is a task head.
        """
        ...


class PlainObjective:
    """An objective that looks at each unit by itself and needs nothing prepared: the base of most."""

    loss_tells_overfitting: ClassVar[bool] = True

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        self.plan, self.tools = plan, tools

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """There is nothing to prepare."""

    def draw(self, model: TrainableModel, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:  # noqa: ARG002
        """The micro-batches as they were given."""
        return batches

    def draw_validation(self, model: TrainableModel, batches: Sequence[Batch]) -> Sequence[Batch]:  # noqa: ARG002
        """The micro-batches as they were given."""
        return batches

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:
        """There is nothing to see."""

    def weight(self, units: Sequence[Unit]) -> float:
        """The trained tokens of all rows."""
        return float(sum(row.num_trained_tokens for unit in units for row in unit))

    def finish(self, model: TrainableModel, validation: Sequence[Batch]) -> None:
        """There is nothing to measure."""


def rows_of(units: Sequence[Unit]) -> list[TokenisedExample]:
    """The rows of all units, in order."""
    return [row for unit in units for row in unit]
