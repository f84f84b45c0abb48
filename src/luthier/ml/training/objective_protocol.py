"""The interface of an objective, and a base class with its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from torch import Tensor

from luthier.core.conversation import Conversation
from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan
from luthier.core.ports import Grading, Progress

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.training.model import MicroBatch, TrainableModel

Unit = tuple[TokenisedExample, ...]
"""The rows that a loss needs together: one example, or the two completions of a preference pair."""

Batch = tuple[Sequence[Unit], tuple[int, ...]]
"""The units of a micro-batch, and the prefixes that its rows share (`collate`)."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run provides to its objective in addition to the plan; needed by objectives that sample answers.

    Attributes:
        template: converts ids to text and knows which ids end an answer.
        grade: returns the reward of each answer.
        seed: the run's seed.
        writes_files: false in all processes except one.
        is_streamed: whether training rows are read while the run trains, so that `prepare` gets validation units alone.
        over_ranks: sums numbers by name over all processes of the run, each of which calls it at the same place.
        prompts: by id of a row whose prompt offers tools, that prompt: calls are taken out of the answers to it.
    """

    template: ChatTemplate | None = None
    grade: Grading | None = None
    seed: int = 0
    writes_files: bool = True
    is_streamed: bool = False
    over_ranks: Callable[[Mapping[str, float]], dict[str, float]] = dict
    prompts: Mapping[str, Conversation] = field(default_factory=dict)


NO_TOOLS: Final = Tools()


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of a micro-batch.

    Attributes:
        total: a scalar, the sum of the loss over its units, which is differentiated.
        measures: other sums over its units, by name, such as the number of correct predictions; like the loss, the loop
            divides them by the weight of the whole batch.
    """

    total: Tensor
    measures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A training objective: minimises the sum over all units of a global batch, divided by their weight.

    A micro-batch contains whole units, so any split into micro-batches gives the gradient of the whole batch.

    Attributes:
        loss_tells_overfitting: whether the losses of training and validation measure the same thing, so that a
            growing difference means overfitting.
    """

    loss_tells_overfitting: ClassVar[bool]

    def __init__(self, plan: ObjectivePlan, tools: Tools = ...) -> None: ...

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """Compute once what every step needs of these units, which are all the training and validation units.

        Of streamed training rows (`Tools.is_streamed`) they are the validation units alone.

        Called with the model before its first step.

        Args:
            folder: the run's folder, where the results are stored, so that a resumed run, whose weights have changed,
                reads the same bytes.
            model: before its first step.
            units: all training and validation units; those of validation alone where training rows are streamed.
            progress: shows the work.
        """
        ...

    def draw(self, model: TrainableModel, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The actual micro-batches of a step, such as fresh samples for the given prompts.

        A function of (weights, step): torch's generator is seeded from (seed, step) when it is called.

        Args:
            model: with the weights before the step.
            step: steps that are done.
            batches: the micro-batches of this rank, as scheduled.
        """
        ...

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:
        """See all units of a step or a validation, on all ranks, before any loss is computed.

        For quantities of the whole batch rather than of one micro-batch, such as an estimate over the batch.

        Args:
            model: in the mode of the pass that follows.
            micro_batches: the units of all micro-batches of the step or validation, on all ranks.
        """
        ...

    def draw_validation(self, model: TrainableModel, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro-batches of a validation; a function of the weights only.

        Args:
            model: in evaluation mode.
            batches: the micro-batches of this rank.
        """
        ...

    def weight(self, units: Sequence[Unit]) -> float:
        """The divisor of the sums over these units: their trained tokens, or their number of pairs."""
        ...

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The loss of a micro-batch.

        Args:
            batch: the rows of all its units, in order; see `MicroBatch` for shapes.
            model: in training mode for a step, in evaluation mode for a validation.
            units: of the micro-batch.
        """
        ...

    def finish(self, model: TrainableModel, validation: Sequence[Batch]) -> None:
        """Measure what the result needs in addition to its weights, such as the calibration of its classes.

        Called once, in one process, with the final weights of the run; only if there is a task head.

        Args:
            model: with the final weights.
            validation: all validation micro-batches.
        """
        ...


class PlainObjective:
    """An objective that treats each unit separately and needs no preparation: the base class of most objectives."""

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


_OF_THE_WHOLE = ("draw", "draw_validation", "look")


def sees_all_together(objective: Objective) -> bool:
    """Whether it sees all micro-batches of a step or of a validation together, or draws others in their place."""
    kind = type(objective)
    return any(getattr(kind, name, None) is not getattr(PlainObjective, name) for name in _OF_THE_WHOLE)


def rows_of(units: Sequence[Unit]) -> list[TokenisedExample]:
    """The rows of all units, in order."""
    return [row for unit in units for row in unit]
