"""Steps of two kinds of rows: those of the task, and general ones that are replayed against forgetting.

Rehearsal of earlier examples is the oldest remedy for what a network forgets while it learns something else (Robins,
1995, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7(2)); a few percent are often enough
(Scialom et al., 2022, "Fine-tuned Language Models are Continual Learners", arXiv:2205.12393, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.ml.data.tokenise.batches import StepSchedule


class ReplaySchedule:
    """Each step is a step of the task and a step of general rows, in micro-batches of their own.

    Indices of general rows begin at `num_task`, behind those of the task. Epochs are the task's; general rows are
    repeated as often as needed. Both are functions of (seed, step) alone.

    Args:
        task: batches of the task's rows.
        general: batches of the replayed rows, counted from 0.
        num_task: number of the task's rows.
    """

    def __init__(self, task: StepSchedule, general: StepSchedule, num_task: int) -> None:
        self.task, self.general, self.num_task = task, general, num_task

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the examples of the task."""
        return self.task.num_steps_per_epoch

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The micro-batches of a step, those of the task first."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        """What rank `rank` of `size` trains of that step: its share of either kind."""
        general = self.general.share(step, rank, size)
        own = self.task.share(step, rank, size)
        return (*own, *(tuple(self.num_task + i for i in batch) for batch in general))

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        """Tokens of the beginnings in a micro-batch that are computed once."""
        # The first index decides: a micro-batch never mixes the two kinds.
        if micro_batch[0] < self.num_task:
            return self.task.shared_tokens(micro_batch)
        return self.general.shared_tokens([i - self.num_task for i in micro_batch])

    def epoch_of(self, step: int) -> float:
        """Epochs of the task that are done once `step` steps are done."""
        return self.task.epoch_of(step)
