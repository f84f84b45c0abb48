"""Cost of a teacher: one pass forward over every row, before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.core.plan import Plan

Stored = Literal["float32", "bfloat16", "int8", "nf4"]
Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TeacherPass:
    """A teacher's pass over all rows, forward only.

    Attributes:
        num_tokens, num_learned: of training, replayed and validation rows together; states are kept of the learned
            ones.
        vocabulary_size, hidden_size: of its head, which stays in memory while the student learns.
    """

    num_parameters: int
    vocabulary_size: int
    hidden_size: int
    stored: Stored
    compute: Compute
    num_tokens: float
    num_learned: float

    @property
    def head_parameters(self) -> int:
        """Parameters of its head."""
        return self.vocabulary_size * self.hidden_size


def teacher_pass(plan: Plan) -> TeacherPass | None:
    """The pass of a plan's teacher; None where it has none."""
    teacher, replay = plan.objective.teacher, plan.data.replay
    splits = (plan.data.train, plan.data.validation, replay.rows if replay else None)
    if teacher is None:
        return None
    return TeacherPass(
        num_parameters=teacher.num_parameters,
        vocabulary_size=teacher.vocabulary_size,
        hidden_size=teacher.hidden_size,
        stored=teacher.quantisation or teacher.precision,
        compute=teacher.precision,
        num_tokens=sum(split.num_tokens for split in splits if split is not None),
        num_learned=sum(split.num_trained_tokens for split in splits if split is not None),
    )
