"""Knowledge distillation by logits: learn at each learned token what the teacher would have said there.

The teacher runs once, before training (`teacher_states.py`); steps read its stored states and need no teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.plan import ObjectivePlan, TeacherPlan
from luthier.core.ports import Progress
from luthier.ml.training.divergence import Mixing
from luthier.ml.training.objective_protocol import NO_TOOLS, Losses, PlainObjective, Tools, Unit, rows_of
from luthier.ml.training.objectives.teacher_states import FOLDER, MadeUpStates, States, TeacherStates

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


class Distillation(PlainObjective):
    """Learn a teacher's distribution beside the answers. A unit is one example."""

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        self._states: States | None = None
        self._mixing = Mixing(
            plan.divergence or "forward_kl",
            plan.temperature or 1.0,
            0.5 if plan.alpha is None else plan.alpha,
            plan.teacher_share or 0.5,
        )

    @property
    def teacher(self) -> TeacherPlan:
        """Whose distribution is learned."""
        if self.plan.teacher is None:
            raise ValueError("a plan of distillation without a teacher")
        return self.plan.teacher

    def prepare(
        self,
        model: TrainableModel,
        units: Sequence[Unit],
        folder: Path,
        progress: Progress,  # noqa: ARG002
    ) -> None:
        """Open the teacher's states, which were computed before the model was loaded."""
        self._states = TeacherStates(folder / FOLDER, self.teacher, rows_of(units), model.device)

    def rehearse(self, model: TrainableModel, states: States | None = None) -> None:
        """Take these states, or made-up ones, for a probe."""
        self._states = states or MadeUpStates(self.teacher, model.device)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """Cross-entropy and divergence in nats, mixed by alpha; each by itself among the measures."""
        if self._states is None:
            raise ValueError("a step of distillation before the teacher was asked")
        states = self._states.of(rows_of(units))
        rows = model.logit_rows(batch)
        total, entropy, divergence, correct = rows.distillation_sum(
            batch.targets, states, self._states.head, self._mixing, self._states.scaled
        )
        return Losses(total, {"token_accuracy": correct, "cross_entropy": entropy, "divergence": divergence})
