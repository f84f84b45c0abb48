"""One step of a plan's own objective, on made-up rows: what `plan_rehearsal` takes on a small copy of the model.

The step is the loop's own (`train.step.one_step`), with all that an objective does before it: a reference is computed,
answers are drawn and graded by made-up rewards, a teacher of the plan's architecture is asked.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.plan import Plan, TeacherPlan
from luthier.core.ports import Attempt, Grade, SilentProgress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.inference.models.scaled_head import ScaledHead
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objective_protocol import Objective, Unit
    from luthier.ml.training.optimizer import MasterOptimizer

_PROMPT_TOKENS: Final = 4
_ANSWER_TOKENS: Final = (8, 5, 6, 3)
NUM_SAMPLES: Final = 2
MAX_NEW_TOKENS: Final = 3


class _OneStep:
    """A schedule of one step: all units in one micro-batch, which shares these beginnings."""

    def __init__(self, num_units: int, beginnings: tuple[int, ...]) -> None:
        self._batch, self._beginnings = tuple(range(num_units)), beginnings

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        return (self._batch,)

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        return (self._batch,)

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002
        return self._beginnings

    def epoch_of(self, step: int) -> float:
        return float(step)


class AskedTeacher:
    """What a small copy of a teacher says of rows: hidden states, head and what is done to their product.

    Raises:
        RequestError: no one matrix makes its logits of its states, so that nothing could be kept of it.
    """

    def __init__(self, small: PreTrainedModel, teacher: TeacherPlan) -> None:
        from luthier.ml.inference.likelihood import Scorer

        _refuse_adapted_head(small, teacher)
        self._scorer = Scorer(small, pad_id=0)
        self.head: Tensor = self._scorer.head
        self.scaled: ScaledHead = self._scorer.scaled

    def of(self, rows: Sequence[TokenisedExample]) -> Tensor:
        """[learned tokens of all rows, width], row after row."""
        import torch

        return torch.cat(self._scorer.states(rows)).clone()  # what is made in inference mode has no way on


def take_step(
    plan: Plan,
    model: TrainableModel,
    optimizer: MasterOptimizer,
    folder: Path,
    *,
    template: ChatTemplate | None,
    teacher: AskedTeacher | None,
) -> None:
    """Take the step, and validate where the run will.

    Args:
        plan: of the small copy.
        model: the small copy with the method on it.
        optimizer: of this model.
        folder: where the objective may write.
        template: of an objective that draws answers.
        teacher: of an objective that learns from one; None where no small copy of it runs.

    Raises:
        RequestError: loss or gradients are no numbers; and what the objective raises.
    """
    from luthier.ml.training.checkpoint import LoopState
    from luthier.ml.training.early_stopping import EarlyStopping
    from luthier.ml.training.objectives.reference import shared_prefix_tokens
    from luthier.ml.training.objectives.rules import rules_of
    from luthier.ml.training.step import one_step, validate

    rows_per_unit = rules_of(plan.objective.name).rows_per_unit
    units = made_up_units(rows_per_unit, model.vocabulary_size, with_replay=plan.data.replay is not None)
    objective = _prepared(plan, model, units, folder, template, teacher)
    beginnings = shared_prefix_tokens(model, units) if rows_per_unit > 1 else ()
    schedule = _OneStep(len(units), beginnings)
    # No checkpoint is written, so no hash is needed.
    state = LoopState(plan_hash="", early_stopping=EarlyStopping(patience=1))
    state, event = one_step(plan, model, objective, optimizer, units, schedule, state)
    # The gradient norm, too: a loss may be finite while its gradient overflows.
    if not (math.isfinite(event.loss) and math.isfinite(event.gradient_norm)):
        raise RequestError(
            f"loss {event.loss} and gradient norm {event.gradient_norm} of one step of objective "
            f"{plan.objective.name} on a small copy of the architecture",
            expected="numbers",
            do="choose another method, another objective or another base model",
        )
    if plan.data.validation is not None:
        validate(model, objective, [(units, beginnings)], state, SilentProgress())


def made_up_units(rows_per_unit: int, vocabulary: int, *, with_replay: bool = False) -> list[Unit]:
    """Two units: rows of one prompt and different answers, wanted and not by turns; the second replayed, if asked."""
    units: list[Unit] = []
    for unit in range(2):
        prompt = range(3 + unit, 3 + unit + _PROMPT_TOKENS)
        rows = []
        for place in range(rows_per_unit):
            number = unit * rows_per_unit + place
            num = _ANSWER_TOKENS[number % len(_ANSWER_TOKENS)]
            # Modulo the vocabulary: small copies may have few tokens.
            ids = array(
                "i", (token % vocabulary for token in (*prompt, *range(11 + 3 * number, 11 + 3 * number + num)))
            )
            rows.append(
                TokenisedExample(
                    f"made-up:{number}",
                    ids,
                    bytes(_PROMPT_TOKENS) + b"\1" * num,
                    is_wanted=number % 2 == 0,
                    is_replayed=with_replay and unit == 1,
                )
            )
        units.append(tuple(rows))
    return units


def _prepared(
    plan: Plan,
    model: TrainableModel,
    units: Sequence[Unit],
    folder: Path,
    template: ChatTemplate | None,
    teacher: AskedTeacher | None,
) -> Objective:
    from luthier.ml.training.objective_protocol import Tools
    from luthier.ml.training.objectives.distillation import Distillation
    from luthier.ml.training.objectives.registry import load_objective

    tools = Tools(template=template, grade=_made_up_grades, seed=plan.training.seed)
    objective = load_objective(plan.objective, tools)
    if isinstance(objective, Distillation):
        objective.rehearse(model, teacher)
    else:
        folder.mkdir(exist_ok=True)
        objective.prepare(model, units, folder, SilentProgress())
    return objective


def _made_up_grades(attempts: Sequence[Attempt]) -> list[Grade]:
    """Answers of one prompt differ in what they are worth, or nothing would be learned."""
    return [Grade(reward=float(number % 2), parts={"made up": float(number % 2)}) for number in range(len(attempts))]


def _refuse_adapted_head(small: PreTrainedModel, teacher: TeacherPlan) -> None:
    """An adapter on the output head: logits are then not states times the matrix that would be kept."""
    if teacher.adapter_path is None:
        return
    config = json.loads((Path(teacher.adapter_path) / "adapter_config.json").read_text(encoding="utf-8"))
    head = small.get_output_embeddings()
    name = next(name for name, module in small.named_modules() if module is head)
    targets, saved = config.get("target_modules") or (), config.get("modules_to_save") or ()
    # PEFT's rule: a string is a pattern for the whole name, a list holds last parts of names.
    is_hit = (
        re.fullmatch(targets, name) is not None
        if isinstance(targets, str)
        else any(name == one or name.endswith(f".{one}") for one in targets)
    )
    if is_hit or any(name == one or name.endswith(f".{one}") for one in saved):
        raise RequestError(
            f"the teacher {teacher.name} carries an adapter on its output head {name}",
            expected="a teacher whose logits are its last hidden state times one matrix",
            do="choose a teacher that was trained without lm_head among method.targets, or one that was merged",
        )
